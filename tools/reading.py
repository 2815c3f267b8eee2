"What source code says of itself: comments by line, parameters, records"
import ast
import io
import tokenize


def comments(text):
    "Line to what the comment there says"
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {o.start[0]: o.string.lstrip('# ') for o in tokens if o.type == tokenize.COMMENT}

def own_parameters(f):
    "The parameters of a function, without `self` and `cls`"
    args = [*f.args.posonlyargs, *f.args.args, f.args.vararg, *f.args.kwonlyargs, f.args.kwarg]
    return [o for o in args if o and o.arg not in ('self', 'cls')]

def is_record(cls):
    "Whether its fields stand in the class: a dataclass or a named tuple"
    return any(ast.unparse(o).startswith(('dataclass', 'NamedTuple')) for o in [*cls.decorator_list, *cls.bases])
