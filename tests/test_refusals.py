"What an error says is accepted stands beside the parameter too, so that nobody needs the error to learn it"
import ast
import re
from functools import cache

import pytest
from reading import comments, is_record, own_parameters
from test_repository import MODULES, name, public, read

from imgcls_nb.plan import CHOICES, LIMITS, MOST

# What is accepted, as far as words tell: quoted texts, True and False, lists of names, numbers

def values(words):
    return set(re.findall(r"'\w+'|\bTrue\b|\bFalse\b|`[A-Z_]+`|(?<![\w.])\d+(?:\.\d+)?(?:/\d+)?", words.replace('..', ' to ')))

def words_of(node):
    "What an error says; a list of names by the name of the list"
    if isinstance(node, ast.Constant): return str(node.value)
    if isinstance(node, ast.JoinedStr): return ''.join(map(words_of, node.values))
    if isinstance(node, ast.BinOp): return words_of(node.left) + words_of(node.right)
    v = ast.unparse(getattr(node, 'value', node))
    return f'`{m[1]}`' if (m := re.fullmatch(r"', '\.join\((\w+)\)", v)) else f'{{{v}}}'

def advice(words):
    "The sentences that say what to give, without their examples"
    said = re.split(r'(?<=[.?!;]) ', re.sub(r'\{[^}]*\}|\w+\([^)]*\)', '…', words))
    return ' '.join(re.split(',? such as|; ', o)[0] for o in said if re.match(r'(?:.*: )?(?:give|use|ask for)\b', o, re.I))

# Who refuses what

MEANT = dict(check_count='1', check_probability='0, 1') # what these accept, where a call does not say it

def within(f):
    "All that a function does itself, without the functions in it"
    todo = list(f.body)
    while todo:
        yield (o := todo.pop())
        if not isinstance(o, (ast.FunctionDef, ast.ClassDef, ast.Lambda)): todo += ast.iter_child_nodes(o)

def refused(f, private):
    "Parameters of which an error names the value, and what it says is accepted; private functions are looked into"
    names = {o.arg for o in own_parameters(f)}
    for o in within(f):
        if isinstance(o, ast.Raise) and isinstance(o.exc, ast.Call) and o.exc.args:
            words = words_of(o.exc.args[0])
            yield from ((m[1], values(advice(words))) for m in re.finditer(r"\b(\w+)='?\{\1\}", words) if m[1] in names)
        elif isinstance(o, ast.Call) and isinstance(o.func, ast.Name) and ('check_' in o.func.id or o.func.id in private):
            given = [str(a.value) if isinstance(a, ast.Constant) else ast.unparse(a) for a in o.args]
            if twice := [a for a in given if a in names and given.count(a) == 2]: # it, and its name for the message
                yield twice[0], values(' '.join(given)) or values(MEANT.get(o.func.id, ''))
            elif other := private.get(o.func.id):
                theirs = dict(zip([p.arg for p in own_parameters(other)], given))
                yield from ((theirs[k], v) for k, v in refused(other, {}) if theirs.get(k) in names)

def functions(tree):
    "Public functions, and classes as they are made, by name; and methods"
    for node in public(tree.body):
        if isinstance(node, ast.FunctionDef): yield node.name, node
        for o in getattr(node, 'body', ()) if isinstance(node, ast.ClassDef) else ():
            if isinstance(o, ast.FunctionDef) and (o.name in ('__init__', '__call__') or not o.name.startswith('_')):
                yield node.name if o.name == '__init__' else f'{node.name}.{o.name}', o

def beside(f, noted):
    "Parameter to what stands beside it"
    def kind(o): return 'True, False: '*(getattr(o.annotation, 'id', '') == 'bool')
    return {o.arg: kind(o) + noted.get(o.lineno, '') for o in own_parameters(f)}

@cache
def everything(): # function or class to parameters
    return {k: beside(f, noted) for text in map(read, MODULES) for noted in [comments(text)]
            for k, f in functions(ast.parse(text))}

def whole(text, param):
    "`As for` another function or class: what stands there, too"
    m = re.match(r'As for `(\w+)`', text)
    return f"{text} {whole(everything().get(m[1], {}).get(param, ''), param)}" if m else text

def refusals(text):
    "Function or class, parameter, what an error says it can be, what stands beside it"
    tree, noted = ast.parse(text), comments(text)
    private = {o.name: o for o in tree.body if isinstance(o, ast.FunctionDef) and o.name.startswith('_')}
    for owner, f in functions(tree):
        here = beside(f, noted)
        yield from ((owner, param, accepted, values(whole(here[param], param))) for param, accepted in refused(f, private))

def unsaid(text):
    return sorted({f'{owner}: {param} can be {", ".join(sorted(lost))}' for owner, param, accepted, told in refusals(text)
                   if (lost := accepted - told)})

@pytest.mark.parametrize('path', MODULES, ids=name)
def test_what_is_accepted_stands_beside_the_parameter(path): assert not unsaid(read(path))

def test_many_refusals_are_looked_at():
    assert sum(bool(accepted) for o in MODULES for _, _, accepted, _ in refusals(read(o))) > 50

def test_fields_of_plans_say_what_is_accepted():
    text = read('imgcls_nb/plan.py')
    noted, lost = comments(text), []
    for record in ast.parse(text).body:
        for o in record.body if isinstance(record, ast.ClassDef) and is_record(record) else ():
            if not isinstance(o, ast.AnnAssign) or (k := o.target.id) not in LIMITS | CHOICES: continue
            accepted = {repr(v) for v in CHOICES.get(k, ())} | {str(v[k]) for v in (LIMITS, MOST) if k in v}
            lost += [f'{record.name}: {k} can be {v}' for v in sorted(accepted - values(noted.get(o.lineno, '')))]
    assert not lost

@pytest.mark.parametrize('stands, error, lost', [
    ('How many', 'n={n!r} is none. Give 1 or more.', 'n can be 1'), ('1 or more', 'n={n!r} is none. Give 1 or more.', ''),
    ('How', "n={n!r} is unknown. Use 'a' or 'b'.", "n can be 'a', 'b'"), ("'a' or 'b'", "n='{n}' is none. Use 'a' or 'b'.", ''),
    ('Which', "n={n!r} is unknown. Use one of {', '.join(KINDS)}, such as 'a'.", 'n can be `KINDS`'),
    ('Which', 'The file {n} is damaged. Give 7.', ''), ('Share, 0..1', 'n={n} is no share: give one between 0 and 1.', '')])
def test_silence_about_what_is_accepted_is_found(stands, error, lost):
    body = f'    if n: raise InputError(f"{error}")\n'
    direct = f'def f(\n    n, # {stands}\n):\n    "x"\n{body}'
    inside = f'def f(\n    n, # {stands}\n):\n    "x"\n    _check(n)\n\ndef _check(n):\n{body}'
    for text in (direct, inside): assert unsaid(text) == ([f'f: {lost}'] if lost else [])

def test_silence_about_checked_numbers_is_found():
    text = 'class A:\n    "x"\n    def __init__(self,\n        n, # How many\n        p=0, # Share\n    ):\n        {}\n'
    assert unsaid(text.format("check_count(n, 'n')")) == ['A: n can be 1']
    assert unsaid(text.format("self.p = check_number('p', p, 0, 1)")) == ['A: p can be 0, 1']
