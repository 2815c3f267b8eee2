"""A newcomer's walk: clone into an empty folder, and do what README.md and each tutorial say, word for word, in their order.

    python tests/walk.py                      # with an environment of its own; `make walk`
    python tests/walk.py --venv .venv         # in an environment that is there, which saves the install
    python tests/walk.py --only README        # or the name of a tutorial

Nothing of README is repeated here: its blocks of shell and Python are taken out of it, and so are the commands of `make` and
`imgcls` in its sentences. The newcomer owns a folder of `photos`, some `new_pictures` and a `new.jpg`, all drawn, and has what
README asks for; `.venv/bin` is on the path. What serves a page is asked for it, and stopped. A command may be refused where it
needs something from the network that is not there, if it says what to do, and so may one that needs its result; that is written
down, and so is what was left out and why. The exit status is 1 where anything else went wrong.
"""
import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {'make test': 'CI does it', '.venv/bin/python -m pytest': 'CI does it', 'make bench': 'it takes hours',
            'pip install imgcls_nb': 'it is not published yet'}
SERVES = 'make lab', 'imgcls lab', 'imgcls app', 'make app' # what such a command begins with
FROM_THE_NET = re.compile(r'--pretrained|pretrained=True')
INSTALLS = re.compile(r'^make |^python -m venv| -m pip install -e')
THEREAFTER = re.compile(r'Global\.pretrained_model=') # it needs the result of one of these
ADDRESS = re.compile(r'http://(?:localhost|127\.0\.0\.1):\d+\S*')
HOUR = 3600
SAYS_WHAT_TO_DO = re.compile(r'^imgcls: .*(download|fetch|put (it|them)|there (is|are) no|cannot be reached)', re.I | re.M | re.S)

class Step(NamedTuple):
    where: str
    what: str
    status: str # 'done', 'refused', 'left out' or 'FAILED'
    seconds: float = 0
    said: str = ''

DRAW = ("from PIL import Image; from imgcls_nb.datasets import make_shapes as m; m('photos'); new = m('new_pictures', n=2); "
        "Image.open(next(new.rglob('*.png'))).convert('RGB').save('new.jpg')")

def blocks_of(page):
    "What a page says to do, in its order: 'sh', 'python' or 'prose', and the text; comments of the shell are none of it"
    for part in re.split(r'^(```\w*\n.*?^```)$', page, flags=re.M | re.S):
        if m := re.fullmatch(r'```(sh|python)\n(.*?)```', part, re.S): yield m[1], m[2]
        elif not part.startswith('```'):
            for o in re.findall(r'`((?:make|imgcls) [^`]+)`', part): yield 'prose', o

def steps_of(page):
    "The same, as commands of a shell one by one, and the Python blocks between two of them as one program, cell by cell"
    for lang, group in groupby(blocks_of(page), lambda o: 'python' if o[0] == 'python' else 'sh'):
        texts = [text for _, text in group]
        if lang == 'python': yield lang, texts
        else: yield from (('sh', line) for text in texts for o in text.splitlines() if (line := re.sub(r'\s+#.*', '', o)))

class Walk:
    def __init__(self, folder, venv=None):
        self.home, self.venv, self.steps, self.drawn = Path(folder)/'imgcls_nb', venv, [], False
        self.env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'IN_TEST')}
        self.env |= dict(IMGCLS_CACHE=str(Path(folder)/'cache'), BROWSER='true') # a browser that opens nothing

    def run(self, where, line, cwd=None):
        "A line of a shell; whether it went as it should"
        if why := LEFT_OUT.get(line): return self.note(Step(where, line, 'left out', said=why))
        if line.startswith(SERVES): return self.serve(where, line)
        began = time.monotonic()
        process = self.start(line, cwd or self.home, subprocess.PIPE)
        try: said, code = process.communicate(timeout=HOUR)[0][-3000:], process.returncode
        except subprocess.TimeoutExpired:
            end_all(process)
            said, code = 'It did not end within an hour.', None
        status = 'done' if code == 0 else 'refused' if code == 2 and self.may_refuse(line, said) else 'FAILED'
        self.note(Step(where, line, status, time.monotonic() - began, '' if status == 'done' else said))

    def start(self, line, cwd, out):
        return subprocess.Popen(line, shell=True, cwd=cwd, env=self.env, stdout=out, stderr=subprocess.STDOUT, text=True,
                                stdin=subprocess.DEVNULL, start_new_session=True)

    def may_refuse(self, line, said):
        before = any(o.status == 'refused' for o in self.steps)
        wants = FROM_THE_NET.search(line) or before and THEREAFTER.search(line)
        return bool(wants and SAYS_WHAT_TO_DO.search(said) and 'Traceback' not in said)

    def serve(self, where, line, patience=180):
        "A server, which is asked for its page and stopped"
        began, said, answered = time.monotonic(), '', False
        with open(self.home/'served.log', 'w+b') as log:
            process = self.start(line, self.home, log)
            while not answered and process.poll() is None and time.monotonic() - began < patience:
                time.sleep(.5)
                said = Path(log.name).read_text('utf-8', 'replace')
                answered = any(map(answers, ADDRESS.findall(said)))
            end_all(process)
        status = 'done' if answered else 'FAILED'
        self.note(Step(where, line, status, time.monotonic() - began, '' if answered else said[-3000:]))

    def note(self, step):
        self.steps.append(step)
        print(f'{step.status:9} {step.seconds:6.0f} s  {step.where}: {step.what.splitlines()[0][:90]}', flush=True)
        if step.status in ('FAILED', 'refused'): print('    ' + step.said.strip().replace('\n', '\n    '), flush=True)

    def tell(self):
        print(f'\n{len(self.steps)} steps')
        for status in ('FAILED', 'refused', 'left out'):
            for o in self.steps:
                why = f': {o.said}' if status == 'left out' else ''
                if o.status == status: print(f'  {status}: {o.where}: {o.what.splitlines()[0]}{why}')

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
        for lang, what in steps_of((self.home/'README.md').read_text('utf-8')):
            if lang == 'python': self.cells('README', what, self.home)
            elif what.startswith('make quickstart'): self.quickstart(what)
            elif self.venv and what not in LEFT_OUT and INSTALLS.search(what):
                self.note(Step('README', what, 'left out', said='it installs, and --venv is taken as it is'))
            else: self.run('README', what)

    def quickstart(self, line): # with --venv, what is installed is taken as it is; afterwards there is Python to draw with
        if self.venv: line = line.replace('make quickstart', '.venv/bin/imgcls quickstart').replace('DATA=', '')
        self.run('README', line)
        if not self.drawn: self.draw()

    def draw(self): # what the newcomer owns
        self.drawn = True
        self.run('photos', f'python -c "{DRAW}"')

    def tutorials(self):
        self.run('tutorials', 'imgcls tutorials lessons')
        return sorted((self.home/'lessons').rglob('*.ipynb'))

    def tutorial(self, path):
        self.run(path.stem, f"python -m jupyter execute --timeout=1200 '{path.name}'", path.parent)

    def cells(self, where, sources, cwd):
        "Code of a page, cell by cell in a kernel, as somebody would paste it"
        cells = [dict(cell_type='code', id=f'cell{i}', metadata={}, execution_count=None, outputs=[], source=o.rstrip('\n'))
                 for i, o in enumerate(sources)]
        (cwd/'pasted.ipynb').write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)), 'utf-8')
        self.run(where, 'python -m jupyter execute --timeout=1200 pasted.ipynb', cwd)

def answers(url):
    "Whether a page is there"
    try: return urllib.request.urlopen(url, timeout=10).status == 200
    except OSError: return False

def end_all(process): # with what it has started
    if process.poll() is None: os.killpg(process.pid, signal.SIGTERM)
    try: process.wait(20)
    except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)

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
    lessons = walk.tutorials()
    if odd := [o for o in args.only if o not in ('README', *(p.stem for p in lessons))]: parser.error(f'there is no {odd[0]!r}')
    for o in lessons:
        if not args.only or o.stem in args.only: walk.tutorial(o)
    walk.tell()
    failed = any(o.status == 'FAILED' for o in walk.steps)
    if failed: print(f'\nIt stays as it is in {folder}')
    elif not args.keep: shutil.rmtree(folder)
    return int(failed)

if __name__ == '__main__': sys.exit(main())
