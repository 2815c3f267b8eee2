"""A newcomer's walk: clone into an empty folder, and do literally what README and each tutorial say, one after the other.

    python tests/walk.py                      # with an environment of its own; `make walk`
    python tests/walk.py --venv .venv         # in an environment that is there, which saves the install
    python tests/walk.py --only README        # or the name of a tutorial

The newcomer owns a folder of `photos` and some `new_pictures`, both drawn, and has what README asks for. A command may be refused
where it needs something from the network that is not there, if it says what to do; that is written down, and so is what was left
out. The exit status is 1 where anything else went wrong.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {'make test': 'it is what `make test` does', '.venv/bin/python -m pytest': 'the same',
            'pip install imgcls_nb': 'it is not published yet'}
FROM_THE_NET = re.compile(r'--pretrained|pretrained=True|Global\.pretrained_model=')
SAYS_WHAT_TO_DO = re.compile(r'^imgcls: .*(download|fetch|put it|put them|there is no|cannot be reached)', re.I | re.M | re.S)

class Step(NamedTuple):
    where: str
    what: str
    status: str # 'done', 'refused', 'left out' or 'FAILED'
    seconds: float = 0
    said: str = ''

class Walk:
    def __init__(self, folder, venv=None):
        self.home, self.venv, self.steps = Path(folder)/'imgcls_nb', venv, []
        self.env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'IN_TEST')}
        self.env |= dict(IMGCLS_CACHE=str(Path(folder)/'cache'))

    def run(self, where, line, cwd=None):
        "A line of a shell; whether it went as it should"
        if why := LEFT_OUT.get(line): return self.note(Step(where, line, 'left out', said=why))
        began = time.monotonic()
        done = subprocess.run(line, shell=True, cwd=cwd or self.home, env=self.env, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL)
        said = (done.stdout + done.stderr)[-3000:]
        refused = done.returncode == 2 and FROM_THE_NET.search(line) and SAYS_WHAT_TO_DO.search(said)
        status = 'done' if done.returncode == 0 else 'refused' if refused and 'Traceback' not in said else 'FAILED'
        self.note(Step(where, line, status, time.monotonic() - began, '' if status == 'done' else said))

    def note(self, step):
        self.steps.append(step)
        print(f'{step.status:9} {step.seconds:6.0f} s  {step.where}: {step.what.splitlines()[0][:90]}', flush=True)
        if step.status in ('FAILED', 'refused'): print('    ' + step.said.strip().replace('\n', '\n    '), flush=True)

    # The way

    def clone(self):
        self.home.parent.mkdir(parents=True, exist_ok=True)
        self.run('clone', f"git clone -q '{ROOT}' '{self.home}'", self.home.parent)
        scripts = self.home/'.venv/bin'
        if self.venv:
            (self.home/'.venv').symlink_to(Path(self.venv).resolve())
            self.env['PYTHONPATH'] = str(self.home) # the environment may know another checkout
        self.env['PATH'] = f"{scripts}{os.pathsep}{self.env['PATH']}"

    def readme(self):
        text = (self.home/'README.md').read_text('utf-8')
        blocks = re.findall(r'^```(sh|python)\n(.*?)^```', text, re.M | re.S)
        shell = [[re.sub(r'\s+#.*', '', o) for o in body.splitlines()] for lang, body in blocks if lang == 'sh']
        first, *others = shell
        for line in first: self.make(line)
        self.run('README', "python -c \"from imgcls_nb.datasets import make_shapes as m; m('photos'); m('new_pictures', n=2)\"")
        self.cells('README', [body for lang, body in blocks if lang == 'python'], self.home)
        for line in (o for lines in others for o in lines):
            if line.startswith('python -m venv') or ' -m pip install -e' in line:
                if self.venv: self.note(Step('README', line, 'left out', said='--venv'))
                else: self.run('README', line)
            else: self.run('README', line.replace("'new.jpg'", "'new_pictures/circle/000.png'"))

    def make(self, line): # with --venv, what is installed is taken as it is
        if self.venv and line.startswith('make quickstart'): line = '.venv/bin/imgcls quickstart'
        self.run('README', line)

    def tutorials(self):
        self.run('tutorials', 'imgcls tutorials lessons')
        return sorted((self.home/'lessons').rglob('*.ipynb'))

    def tutorial(self, path):
        self.run(path.stem, f"python -m jupyter execute --timeout=1200 '{path.name}'", path.parent)

    def cells(self, where, sources, cwd):
        "Code of a page, cell by cell in a kernel, as somebody would paste it"
        import nbformat
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o.rstrip('\n')) for o in sources])
        nbformat.write(nb, cwd/'pasted.ipynb')
        self.run(where, 'python -m jupyter execute --timeout=1200 pasted.ipynb', cwd)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--venv', help='an environment with all extras, in place of a new one')
    parser.add_argument('--only', nargs='+', default=[], help='README, or names of tutorials')
    parser.add_argument('--keep', help='folder to walk in, which stays; default: a temporary one')
    args = parser.parse_args()
    folder = Path(args.keep or tempfile.mkdtemp(prefix='walk_')).resolve()
    walk = Walk(folder, args.venv)
    walk.clone()
    if not args.only or 'README' in args.only: walk.readme()
    elif not args.venv: walk.run('README', 'make quickstart')
    for o in walk.tutorials():
        if not args.only or o.stem in args.only: walk.tutorial(o)
    failed = [o for o in walk.steps if o.status == 'FAILED']
    print(f'\n{len(walk.steps)} steps, {len(failed)} failed'
          + ''.join(f'\n  {o.where}: {o.what.splitlines()[0]}' for o in failed))
    if not args.keep and not failed: shutil.rmtree(folder)
    return int(bool(failed))

if __name__ == '__main__': sys.exit(main())
