"For the reference: what the comments beside parameters say, and methods that are written outside their class"
import ast
from functools import cache

import griffe
from reading import comments, own_parameters


@cache
def noted_in(path): return comments(path.read_text('utf-8'))

@cache
def definitions(path):
    "Line to what is defined there"
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    return {o.lineno: o for o in ast.walk(ast.parse(path.read_text('utf-8'))) if isinstance(o, kinds)}

def node_of(obj):
    found = [definitions(obj.filepath).get(o) for o in range(obj.lineno, obj.endlineno + 1)] # decorators stand above
    return next((o for o in found if o is not None and o.name == obj.name), None)

def of_function(node, noted):
    args = own_parameters(node)
    lines = [o.lineno for o in args]
    alone = [o for o in args if o.lineno in noted and lines.count(o.lineno) == 1 and o.lineno != node.lineno]
    said = [(o.arg, noted[o.lineno]) for o in alone]
    if said: yield from ('', 'Args:', *(f'    {name}: {word}' for name, word in said))
    # a colon first: no name, and the type that the signature has
    rest = [k for k in range(node.lineno + 1, node.body[0].lineno) if k in noted and k not in lines]
    if rest and node.returns is not None: yield from ('', 'Returns:', f'    : {noted[rest[-1]]}')

def of_class(node, noted):
    fields = [o for o in node.body if isinstance(o, ast.AnnAssign) and o.lineno in noted]
    if fields: yield from ('', 'Attributes:', *(f'    {ast.unparse(o.target)}: {noted[o.lineno]}' for o in fields))

def described(node, noted):
    "A docstring, or the comment on the first line; then parameters and what comes back"
    text = ast.get_docstring(node) or noted.get(node.lineno) or ''
    more = of_class(node, noted) if isinstance(node, ast.ClassDef) else of_function(node, noted)
    return '\n'.join([text, *more]).rstrip() # an empty first line stays, else the parser takes the next one's indent away

def is_property(f): return any(str(o.value) == 'patch(as_prop=True)' for o in f.decorators)

def as_property(f): # which is read, and not called
    o = griffe.Attribute(f.name, lineno=f.lineno, endlineno=f.endlineno, annotation=f.returns, docstring=f.docstring)
    o.labels |= {'property'}
    return o

class Docments(griffe.Extension):
    def explain(self, obj, loader):
        node = node_of(obj) if obj.lineno and obj.endlineno else None
        text = node and described(node, noted_in(obj.filepath))
        style = dict(parser=loader.docstring_parser, parser_options=loader.docstring_options) # of mkdocs.yml
        if text: obj.docstring = griffe.Docstring(text, lineno=obj.lineno, parent=obj, **style)

    def on_function(self, *, func, loader, **kwargs): self.explain(func, loader)

    def on_class(self, *, cls, loader, **kwargs): self.explain(cls, loader)

    def on_attribute(self, *, attr, loader, **kwargs): # a property is one
        if 'property' in attr.labels: self.explain(attr, loader)

    def on_module_members(self, *, mod, **kwargs):
        "A function under `@patch` becomes a method or a property of its class, where that is of the same module"
        for name, o in list(mod.members.items()):
            if not isinstance(o, griffe.Function) or not any(str(d.value).startswith('patch') for d in o.decorators): continue
            owner = mod.members.get(str(o.parameters[0].annotation)) if len(o.parameters) else None
            if isinstance(owner, griffe.Class) and name not in owner.members:
                mod.del_member(name)
                owner.set_member(name, as_property(o) if is_property(o) else o)
