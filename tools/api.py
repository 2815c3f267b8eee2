"List all that is public in tests/api.txt: names, parameters, defaults, verbs; with --check, say what is different"
import argparse
import ast
import difflib
import sys
from pathlib import Path

from reading import is_record

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT/'tests/api.txt'

def parameters(args):
    "As they are called: names and defaults, without `self` and annotations"
    args = ast.parse(f'def f({ast.unparse(args)}): pass').body[0].args # a copy
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, [args.vararg, args.kwarg])]
    for o in every: o.annotation = None
    first = (args.posonlyargs or args.args or every)[:1]
    if first and first[0].arg in ('self', 'cls'): (args.posonlyargs or args.args).pop(0)
    return f'({ast.unparse(args)})'

def fields(cls):
    found = [o for o in cls.body if isinstance(o, ast.AnnAssign) and isinstance(o.target, ast.Name)]
    return f"({', '.join(o.target.id + (f'={ast.unparse(o.value)}' if o.value else '') for o in found)})"

def decorators(node): return {ast.unparse(o).split('(')[0].rpartition('.')[2] for o in node.decorator_list}

def is_patched_property(f): return any(ast.unparse(o) == 'patch(as_prop=True)' for o in f.decorator_list)

def member(owner, f):
    if decorators(f) & {'property', 'cached_property'} or is_patched_property(f): return f'{owner}.{f.name}'
    if 'setter' in decorators(f): return f'{owner}.{f.name} ='
    shown = parameters(f.args)
    return f'{owner}.{f.name}{shown}'

def of_class(name, cls):
    own = [o for o in cls.body if isinstance(o, ast.FunctionDef)]
    init = next((parameters(o.args) for o in own if o.name == '__init__'), fields(cls) if is_record(cls) else '')
    bases = ', '.join(ast.unparse(o) for o in cls.bases)
    yield f"{name}{init}{f' < {bases}' if bases else ''}"
    yield from (member(name, o) for o in own if not o.name.startswith('_') or o.name == '__call__')

def of_module(path):
    tree, module = ast.parse(path.read_text('utf-8')), path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')
    module = module.removesuffix('.__init__')
    listed = [o.value for o in tree.body if isinstance(o, ast.Assign) and ast.unparse(o.targets[0]) == '__all__']
    public = set(ast.literal_eval(listed[0])) if listed else set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and 'patch' in decorators(node) and not node.name.startswith('_'):
            yield member(f'{module}:{ast.unparse(node.args.args[0].annotation)}', node)
        elif getattr(node, 'name', None) in public:
            if isinstance(node, ast.ClassDef): yield from of_class(f'{module}.{node.name}', node)
            else: yield member(module, node)
            public.discard(node.name)
    yield from (f'{module}.{o}' for o in public) # constants and instances

def public_names():
    "Functions and classes whose name is unique: name to module and full name; and all modules"
    names, modules = {}, []
    for f in sorted(ROOT.glob('imgcls_nb/**/*.py')):
        module = f.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.').removesuffix('.__init__')
        found = {o[len(module) + 1:].partition('(')[0].partition(' ')[0] for o in of_module(f) if o.startswith(f'{module}.')}
        if not found or f.name == '_modidx.py': continue
        modules.append(module)
        for o in found:
            if o.isidentifier() and not o.isupper(): names.setdefault(o, []).append((module, f'{module}.{o}'))
    return {k: v[0] for k, v in names.items() if len(v) == 1}, modules

def of_shell():
    from imgcls_nb.cli import make_parser
    for name, verb in make_parser()._subparsers._group_actions[0].choices.items():
        words = ['/'.join(o.option_strings) or (f'[{o.dest}]' if o.nargs in ('?', '*') else o.dest) for o in verb._actions]
        yield ' '.join(['imgcls', name, *(o for o in words if o != '-h/--help')])

def listing():
    modules = [o for o in ROOT.glob('imgcls_nb/**/*.py') if o.name != '_modidx.py']
    return sorted(o for f in modules for o in of_module(f)) + list(of_shell())

MEANT = "What is public has changed. If that is meant: python tools/api.py, and a line in CHANGELOG.md."

def main(check=False):
    text = '\n'.join(listing()) + '\n'
    before = LIST.read_text('utf-8') if LIST.exists() else ''
    if not check: LIST.write_text(text, 'utf-8')
    else:
        lines = difflib.unified_diff(before.splitlines(), text.splitlines(), lineterm='', n=0)
        changed = [o for o in lines if o[0] in '+-' and o[:3] not in ('+++', '---')]
        if changed: return '\n'.join([*changed, MEANT])

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true')
    sys.exit(main(parser.parse_args().check))
