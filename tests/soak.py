"""An hour of what people do, at random: trainings, kills, resumes, evaluations, edits, exports, damage. After each action
everything that is on the disk is looked at.

    python tests/soak.py                          # an hour; `make soak`
    python tests/soak.py --minutes 3 --seed 7     # a shorter one, with these dice
    python tests/soak.py --keep runs/soak         # leave the folder for a look

What must hold, whatever happened: a run that was killed and resumed ends with the weights of one that was left alone, bit for
bit; a checkpoint is whole, or its damage is named; a log can be read at any time, also while it is written; a model file answers
as it did; edits are those that were made, less those taken back; pictures are never touched. And no command ends in a traceback.
"""
import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # results are equal for one number of threads

import numpy as np

from imgcls_nb.core import InputError, list_images

CLASSES = 'circle', 'square', 'triangle'
SMALL = '--arch test_resnet --size 32 --bs 16 --aug light --num-workers 0'.split()


@dataclass
class Soaked:
    "A run, and what must be true of it"
    name: str
    seed: int
    epochs: int
    done: bool = False
    hurt: bool = False # A checkpoint of it was damaged
    answers: dict|None = None # Of its model file: picture to label and probability
    edits: list = field(default_factory=list) # `(picture, old, new)`, those that stand, in order

class Failed(Exception): pass

def need(truth, what):
    if not truth: raise Failed(what)

class Soak:
    def __init__(self, folder, seed):
        from imgcls_nb.datasets import make_shapes
        self.folder, self.dice, self.runs, self.whole, self.n = Path(folder), random.Random(seed), {}, {}, 0
        self.shapes = make_shapes(self.folder/'shapes')
        self.pictures, self.digest = list_images(self.shapes), self.hash_pictures()
        self.said, self.did = '', Counter()
        os.environ['IMGCLS_CACHE'] = str(self.folder/'cache')
        os.chdir(self.folder)

    # Commands

    def imgcls(self, *args, status=0):
        "A command in this process; what it said"
        from imgcls_nb.cli import main
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try: got = main(list(map(str, args)))
            except SystemExit as e: got = e.code
        self.said = out.getvalue()
        need('defect' not in self.said and 'Traceback' not in self.said, f'imgcls {args}: {self.said}')
        need(got == status, f'imgcls {args} ended with {got}: {self.said}')
        return self.said

    def start(self, *args):
        return subprocess.Popen([sys.executable, '-m', 'imgcls_nb.cli', *map(str, args)], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)

    def train_command(self, run, name=None):
        return ['train', 'shapes', *SMALL, '--epochs', run.epochs, '--seed', run.seed, '--run', f'runs/{name or run.name}']

    def some(self, *wanted):
        "A run that is so, at random"
        found = [o for o in self.runs.values() if all(f(o) for f in wanted)]
        return self.dice.choice(found) if found else None

    # What people do; an action gives False where there is nothing to do it with

    def train(self): # to its end, or to the moment when it is killed
        self.n += 1
        run = Soaked(f'run_{self.n}', self.dice.choice((1, 2)), self.dice.choice((3, 5)))
        self.runs[run.name] = run
        if self.dice.random() < .3: self.finish(run, self.train_command(run))
        else: self.kill(run, self.train_command(run))

    def resume(self):
        run = self.some(lambda o: not o.done and not o.hurt)
        if not run: return False
        there = self.path(run, 'config.yaml').is_file()
        command = ['resume', f'runs/{run.name}'] if there else self.train_command(run)
        if self.dice.random() < .3: self.kill(run, command)
        else: self.finish(run, command)

    def finish(self, run, command):
        self.imgcls(*command)
        run.done = True

    def kill(self, run, command):
        "Kill it when its log has some more lines, and look on meanwhile"
        from imgcls_nb.runs import Run
        log, process = self.path(run, 'run.jsonl'), self.start(*command)
        lines = lambda: log.read_bytes().count(b'\n') if log.exists() else 0
        target, end = lines() + self.dice.randint(1, 4*run.epochs), time.monotonic() + 120
        while process.poll() is None and lines() < target and time.monotonic() < end:
            if self.path(run, 'config.yaml').is_file(): Run.open(self.path(run)).history() # as a dashboard does
            time.sleep(.01)
        if process.poll() is None and lines() and self.dice.random() < .3: self.refuse_second_writer(run, process)
        time.sleep(self.dice.random()*.05)
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0]
        need(process.returncode in (0, -signal.SIGKILL), f'{command} ended with {process.returncode}: {said}')
        run.done = process.returncode == 0

    def refuse_second_writer(self, run, process):
        process.send_signal(signal.SIGSTOP)
        try: said = self.imgcls('resume', f'runs/{run.name}', status=2)
        finally: process.send_signal(signal.SIGCONT)
        need(str(process.pid) in said, f'the writer is not named: {said}')

    def damage(self): # a byte of the newest weights or of its state
        from imgcls_nb.checkpoints import read_checkpoint
        run = self.some(lambda o: not o.done and not o.hurt and self.path(o, 'latest.json').is_file())
        if not run: return False
        part = self.dice.choice(('weights', 'state_file'))
        file = Path(getattr(read_checkpoint(self.path(run), 'latest'), part))
        with file.open('r+b') as f:
            f.seek(self.dice.randrange(file.stat().st_size))
            byte = f.read(1)
            f.seek(-1, 1)
            f.write(bytes([byte[0] ^ 1 << self.dice.randrange(8)]))
        run.hurt = True
        try: read_checkpoint(self.path(run), 'latest')
        except InputError as e: need('latest' in str(e), f'what is damaged is not named: {e}')
        else: raise Failed(f'a damaged {part} was read as if it were whole')

    def mend(self): # go on from an earlier checkpoint, or start again
        run = self.some(lambda o: o.hurt and not o.done)
        if not run: return False
        try: self.finish(run, ['resume', f'runs/{run.name}'])
        except Failed:
            need('no whole checkpoint' in self.said, self.said)
            shutil.rmtree(self.path(run))
            run.edits, run.answers = [], None
            self.finish(run, self.train_command(run))
        run.hurt = False

    def evaluate(self):
        run = self.some(lambda o: o.done)
        if not run: return False
        from imgcls_nb.runs import Run
        said, top1 = self.imgcls('eval', f'runs/{run.name}'), Run.open(self.path(run)).best.facts['top1']
        need(f'top1 {top1:.4f}' in said, f'{run.name}: the best checkpoint had {top1:.4f}: {said}')

    def export(self):
        run = self.some(lambda o: o.done)
        if not run: return False
        self.imgcls('export', f'runs/{run.name}')
        answers = self.answers(run)
        need(run.answers in (None, answers), f'{run.name}: another export answers otherwise')
        run.answers = answers

    def answers(self, run):
        from imgcls_nb.predict import Predictor
        predictor = Predictor(self.path(run, 'model.onnx'), threads=1)
        return {o.name: (p.label, round(p.prob, 4)) for o, p in zip(self.pictures[::11], predictor.batch(self.pictures[::11]))}

    def predict(self): # into a file, killed now and then
        run = self.some(lambda o: o.answers)
        if not run: return False
        out = self.folder/f'labels_{self.n}_{self.dice.randrange(1000)}.jsonl'
        command = ['predict', f'runs/{run.name}/model.onnx', 'shapes', '--out', out, '--bs', 4]
        if self.dice.random() < .5:
            process = self.start(*command)
            time.sleep(self.dice.uniform(.2, 1.5))
            process.kill()
            process.communicate()
        self.imgcls(*command)
        rows = [json.loads(o) for o in out.read_text().splitlines()]
        n = len(self.pictures)
        need(len(rows) == len({o['file'] for o in rows}) == n, f'{len(rows)} rows for {n} pictures')

    def edit(self): # some relabelled, some taken back
        from imgcls_nb.edits import Edits
        run = self.some(lambda o: o.done)
        if not run: return False
        log = Edits(self.path(run), root=self.shapes) # another one each time, as after a restart
        for _ in range(self.dice.randint(1, 5)):
            if run.edits and self.dice.random() < .3:
                log.undo()
                run.edits.pop()
                continue
            name = self.dice.choice(self.pictures).relative_to(self.shapes).as_posix()
            old = self.labels(run).get(name, name.split('/')[0])
            new = self.dice.choice([o for o in CLASSES if o != old])
            log.relabel(name, old, new, 'soak')
            run.edits.append((name, old, new))

    def labels(self, run): return {name: new for name, _, new in run.edits}

    def apply(self): # edits, to a new list
        from imgcls_nb.revise import apply_edits
        run = self.some(lambda o: o.edits)
        if not run: return False
        out = self.folder/f'mended_{self.n}_{self.dice.randrange(10**6)}'
        try: apply_edits(self.path(run), self.path(run), out)
        except InputError as e: need(not self.changed(run), str(e))
        else:
            text = '\n'.join(o.read_text() for o in sorted(out.rglob('*.txt')))
            for name, label in self.changed(run).items():
                line = next(o for o in text.splitlines() if o.startswith(f'{name} '))
                need(line.split()[-1] in (label, str(CLASSES.index(label))), f'{line} is not {label}')

    def changed(self, run): return {k: v for k, v in self.labels(run).items() if v != k.split('/')[0]}

    def forget(self): # a run that nobody needs
        run = self.some() if len(self.runs) > 8 else None
        if not run: return False
        shutil.rmtree(self.path(run), ignore_errors=True)
        del self.runs[run.name]

    WEIGHTS = dict(train=4, resume=6, damage=1, mend=2, evaluate=2, export=2, predict=2, edit=3, apply=2, forget=3)

    # What must hold

    def path(self, run, *more): return self.folder.joinpath('runs', run.name, *more)

    def hash_pictures(self):
        sha = hashlib.sha256()
        for o in list_images(self.shapes): sha.update(o.name.encode() + o.read_bytes())
        return sha.hexdigest()

    def left_alone(self, run):
        "The weights of the same training without any accident"
        key = run.seed, run.epochs
        if key not in self.whole:
            name = f'whole_{run.seed}_{run.epochs}'
            self.imgcls(*self.train_command(run, name))
            self.whole[key] = hash_of(self.folder/'runs'/name/'latest.safetensors')
        return self.whole[key]

    def check(self):
        need(self.hash_pictures() == self.digest, 'pictures were touched')
        for run in self.runs.values():
            if self.path(run, 'config.yaml').is_file(): self.check_run(run)
            else: need(not run.done, f'{run.name} has no plan')

    def check_run(self, run):
        from imgcls_nb.checkpoints import read_checkpoint
        from imgcls_nb.edits import Edits
        from imgcls_nb.runs import Run
        opened, path = Run.open(self.path(run)), self.path(run)
        history = opened.history()
        need(opened.plan.data.seed == run.seed, f'{run.name}: another plan')
        need(opened.status == 'finished' if run.done else opened.status != 'running', f'{run.name} is {opened.status}')
        for o in path.glob('*.json'): # manifests, of which one may be damaged
            if o.stem in ('latest', 'best_model') or o.stem.startswith('epoch_'):
                try: read_checkpoint(path, o.stem)
                except InputError:
                    if not run.hurt: raise
        need(len(list(path.glob('epoch_*.json'))) <= 4, f'{run.name} keeps too many checkpoints')
        kept = [(o['picture'], o['old'], o['new']) for o in Edits(path, root=self.shapes).standing()]
        need(kept == run.edits, f'{run.name}: edits are {kept}, not {run.edits}')
        if not run.done: return
        need(list(history.epoch) == list(range(1, run.epochs + 1)), f'{run.name}: epochs {list(history.epoch)}')
        need(np.isclose(history.top1.max(), opened.best.facts['top1']), f'{run.name}: the best is not the best')
        need(hash_of(path/'latest.safetensors') == self.left_alone(run), f'{run.name} did not end as if left alone')
        if run.answers: need(self.answers(run) == run.answers, f'{run.name}: its model file answers otherwise')

    def act(self):
        "Do something at random, and look at everything"
        names = list(self.WEIGHTS)
        while True:
            name = self.dice.choices(names, [self.WEIGHTS[o] for o in names])[0]
            if getattr(self, name)() is not False: break
        self.did[name] += 1
        self.check()
        return name

def hash_of(file): return hashlib.sha256(file.read_bytes()).hexdigest()

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=60, help='how long (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=int(time.time()) % 10**6, help='of the dice (default: of the clock)')
    parser.add_argument('--keep', help='folder to work in, which stays; default: a temporary one, which stays after a failure')
    args = parser.parse_args()
    folder = Path(args.keep or tempfile.mkdtemp(prefix='soak_')).resolve()
    soak, end = Soak(folder, args.seed), time.monotonic() + 60*args.minutes
    print(f'seed {args.seed}, in {folder}', flush=True)
    while time.monotonic() < end:
        began = time.monotonic()
        try: name = soak.act()
        except (Failed, InputError, OSError) as e:
            print(f'After {dict(soak.did)}:\n{type(e).__name__}: {e}\nTo do it again: python tests/soak.py --seed {args.seed}')
            return 1
        print(f'{sum(soak.did.values()):4} {name:9} {time.monotonic() - began:5.1f} s, {len(soak.runs)} runs', flush=True)
    print(f'{sum(soak.did.values())} actions, and all held: {", ".join(f"{n} {k}" for k, n in soak.did.most_common())}')
    if not args.keep: shutil.rmtree(folder)
    return 0

if __name__ == '__main__': sys.exit(main())
