"What is public: a list of it all, so that a change is a decision, and a word about each of its parts"
import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
from functools import cached_property
from pathlib import Path

from reading import comments, own_parameters

ROOT = Path(__file__).resolve().parents[1]

def test_what_is_public_is_listed():
    done = subprocess.run([sys.executable, ROOT/'tools/api.py', '--check'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

# Methods and properties; functions, classes and their first parameters are in test_repository.py

PROTOCOL = {'close', 'state', 'load_state'} # of callbacks; CONTRIBUTING.md says what they are for
FASTAI = {'encodes', 'decodes'} # of its transforms, which find them by these names

def public_objects():
    "Functions and classes by full name, each in the module that has it"
    import imgcls_nb
    for o in pkgutil.walk_packages(imgcls_nb.__path__, 'imgcls_nb.'):
        if o.name.startswith('imgcls_nb._'): continue
        module = importlib.import_module(o.name)
        for name in getattr(module, '__all__', ()):
            if getattr(found := getattr(module, name), '__module__', '') == o.name: yield f'{o.name}.{name}', found

def public_classes(): return {name: o for name, o in public_objects() if inspect.isclass(o)}

SAME_DEED = {'compare'} # of runs, and of evaluations

def test_one_name_means_one_thing():
    homes = {}
    for o, _ in public_objects(): homes.setdefault(o.rpartition('.')[2], []).append(o)
    assert {name for name, found in homes.items() if len(found) > 1} == SAME_DEED

# What a picture was given is its label, what a network says is predicted; what really is on it, nobody but a tutorial knows
OTHER_WORDS = re.compile('(?<![a-z])(?:(?:ground_)?truth|gt|guess|val|validation|batch_size|image_size|learning_rate)s?(?![a-z])')

def test_one_thing_has_one_name():
    lines = (ROOT/'tests/api.txt').read_text('utf-8').splitlines()
    assert not [o for o in lines if OTHER_WORDS.search(o)]
    assert OTHER_WORDS.search('where(truth=None)') and not OTHER_WORDS.search('guesses(valid)')

def plain(member):
    "The function behind a property, a class method or a delegate"
    if isinstance(member, property): member = member.fget
    elif isinstance(member, cached_property): member = member.func
    elif isinstance(member, (classmethod, staticmethod)): member = member.__func__
    return inspect.unwrap(member) if callable(member) else None

def own_methods(cls):
    "Public ones that were written for this class, and mean what no class above it says"
    from fastai.callback.core import Callback
    from fasttransform import Transform
    for name, member in vars(cls).items():
        f = plain(member)
        if name.startswith('_') or not inspect.isfunction(f) or 'imgcls_nb' not in f.__code__.co_filename: continue
        if any(name in vars(o) for o in cls.__mro__[1:]): continue
        if issubclass(cls, Callback) and (name in PROTOCOL or name.startswith(('before_', 'after_'))): continue
        if issubclass(cls, Transform) and name in FASTAI: continue
        yield name, f, member.__doc__ or f.__doc__ or ''

def unexplained(f, doc=''):
    "What neither a docstring nor a comment on its line says; a docstring may name parameters in backticks"
    text = textwrap.dedent(inspect.getsource(f))
    noted, node = comments(text), ast.parse(text).body[0]
    if not isinstance(node, ast.FunctionDef): return [] if doc else ['what it does'] # made in a loop
    args = own_parameters(node)
    lines = [o.lineno for o in args]
    said = bool(doc) or node.lineno in noted
    silent = [o.arg for o in args if (o.lineno not in noted or lines.count(o.lineno) > 1) and f'`{o.arg}`' not in doc]
    return ([] if said else ['what it does']) + silent

def test_methods_are_explained():
    found = {f'{cls}.{name}': lost for cls, o in public_classes().items() for name, f, doc in own_methods(o)
             if (lost := unexplained(f, doc))}
    assert not found

def test_silence_about_methods_is_found():
    class A:
        def one(self): return 1
        def two(self): return 2 # twice as much
        def three(self,
            a, # First
            b,
        ): "Sum"
        def four(self, a, b):
            "The sum of `a` and `b`"
        def five(self, a): # of an example
            return a
        def six(self, a, b): # on one line
            return a
    found = {n: unexplained(f, f.__doc__ or '') for n, f in vars(A).items() if inspect.isfunction(f)}
    assert found == dict(one=['what it does'], two=[], three=['b'], four=[], five=[], six=['a', 'b'])
