"""An hour of what people do, at random: trainings, kills, interrupts, resumes, evaluations, edits, exports, damage. After each
action everything that is on the disk is looked at.

    python tests/soak.py                          # an hour; `make soak`
    python tests/soak.py --minutes 3 --seed 7     # a shorter one, with these dice
    python tests/soak.py --keep runs/soak         # leave the folder for a look

What must hold, whatever happened: a run that was killed and resumed goes on where its last whole checkpoint stands, and ends with
the weights, the best epoch and the history of one that was left alone, bit for bit, and without a file more; a kill costs two
epochs at most; a checkpoint is whole, or its damage is named and an earlier one taken; a log can be read at any time, also while
it is written; a model file answers as it did, as torch does, and as that of an equal run; rows that were written stay; edits are
those that were made, less those taken back, and lists follow them; pictures are never touched. No command ends in a traceback.

`test_soak.py` breaks each of these on purpose, to see that it is noticed. The dice are those of the seed; at which step a kill
hits depends on the machine as well.
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
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # results are equal for one number of threads

import numpy as np

from imgcls_nb.core import InputError, list_images

CLASSES = 'circle', 'square', 'triangle'
SMALL = '--arch test_resnet --size 32 --bs 16 --aug light --num-workers 0'.split()
TIMED = 'seconds', 'data_wait', 'images_per_s' # of an epoch, which no two trainings share
MOST_S = 300 # without a line in its log, a training hangs


@dataclass
class Soaked:
    "A run, and what must be true of it"
    name: str
    seed: int
    epochs: int
    done: bool = False
    hurt: bool = False # Its newest checkpoint was damaged
    spoilt: set = field(default_factory=set) # Files of earlier ones that were, and stay
    answers: dict|None = None # Of its model file: picture to label and probability
    edits: list = field(default_factory=list) # `(picture, field, old, new)`, those that stand, in order

class Failed(Exception): pass

def need(truth, what):
    if not truth: raise Failed(what)

class Soak:
    def __init__(self, folder, seed):
        from imgcls_nb.datasets import make_shapes
        self.folder, self.dice, self.runs, self.n = Path(folder), random.Random(seed), {}, 0
        self.shapes = make_shapes(self.folder/'shapes')
        self.pictures, self.digest = list_images(self.shapes), self.hash_pictures()
        self.whole, self.answered = {}, {} # by seed and epochs: what a run left alone comes to, what its model file answers
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
        self.check_words(args)
        need(got == status, f'imgcls {args} ended with {got}: {self.said}')
        return self.said

    def check_words(self, args): need(not any(o in self.said for o in ('defect', 'Traceback')), f'imgcls {args}: {self.said}')

    def start(self, *args):
        return subprocess.Popen([sys.executable, '-m', 'imgcls_nb.cli', *map(str, args)], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True)

    def train_command(self, run):
        return ['train', 'shapes', *SMALL, '--epochs', run.epochs, '--seed', run.seed, '--run', f'runs/{run.name}']

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
        at, n = self.place(run), len(self.events(run))
        command = ['resume', f'runs/{run.name}'] if self.path(run, 'config.yaml').is_file() else self.train_command(run)
        if self.dice.random() < .3: self.kill(run, command)
        else: self.finish(run, command)
        if at is not None: self.check_place(run, at, self.events(run)[n:])

    def again(self): # nothing is left to do, and nothing is done
        run = self.some(lambda o: o.done)
        if not run: return False
        n = len(self.events(run))
        need('nothing was left to do' in self.imgcls('resume', f'runs/{run.name}'), self.said)
        need(not any(o['event'] in ('epoch', 'steps') for o in self.events(run)[n:]), f'{run.name} was trained once more')

    def events(self, run):
        from imgcls_nb.runs import Run
        return Run.open(self.path(run)).events() if self.path(run, 'config.yaml').is_file() else []

    def place(self, run):
        "The step at which a run goes on; None: it has not begun"
        from imgcls_nb.checkpoints import read_checkpoint
        return read_checkpoint(self.path(run), 'latest').facts['step'] if self.path(run, 'latest.json').is_file() else None

    def check_place(self, run, at, news):
        where = next((o['step'] for o in news if o['event'] == 'resume'), None)
        stopped = where is None and not any(o['event'] in ('steps', 'epoch') for o in news)
        need(where == at or stopped, f'{run.name} stood at step {at}, and went on from {where}')

    def finish(self, run, command):
        self.imgcls(*command)
        run.done = True

    def kill(self, run, command):
        "Kill it, or interrupt it, when its log has some more lines, and look on meanwhile"
        more, wait, second = self.dice.randint(1, 4*run.epochs), self.dice.random()*.05, self.dice.random() < .3
        how = self.dice.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        process = self.start(*command)
        try: self.wait_for_lines(run, process, more)
        except BaseException:
            process.kill()
            raise
        if second: self.refuse_second_writer(run, process)
        time.sleep(wait)
        process.send_signal(how)
        self.said = process.communicate(timeout=MOST_S)[0]
        self.check_end(run, command, process.returncode, how)

    def wait_for_lines(self, run, process, more):
        from imgcls_nb.runs import Run
        log = self.path(run, 'run.jsonl')
        lines = lambda: log.read_bytes().count(b'\n') if log.exists() else 0
        target, seen, since = lines() + more, lines(), time.monotonic()
        while process.poll() is None and lines() < target:
            if self.path(run, 'config.yaml').is_file(): Run.open(self.path(run)).history() # as a dashboard does
            if lines() > seen: seen, since = lines(), time.monotonic()
            need(time.monotonic() - since < MOST_S, f'{run.name} hangs after {seen} lines of its log')
            time.sleep(.01)

    def check_end(self, run, command, status, how):
        "Of a process that was sent a signal, perhaps when it had come to its end"
        ended = any(o['event'] == 'end' for o in self.events(run))
        gentle = how in (signal.SIGINT, signal.SIGTERM)
        wanted = (0, -how, 130) if gentle else (0, -how)
        if not (ended and gentle): # Python itself may be interrupted while it leaves
            self.check_words(command)
            need(status in wanted, f'{command} ended with {status}: {self.said}')
        run.done = status == 0

    def refuse_second_writer(self, run, process):
        from imgcls_nb.runs import Run
        process.send_signal(signal.SIGSTOP)
        try:
            if process.poll() is not None or Run.open(self.path(run)).status != 'running': return # it is about to leave
            said = self.imgcls('resume', f'runs/{run.name}', status=2)
            need(str(process.pid) in said, f'the writer is not named: {said}')
        finally: process.send_signal(signal.SIGCONT)

    def damage(self): # of the newest checkpoint: a bit, or the end of a file
        from imgcls_nb.checkpoints import read_checkpoint
        run = self.some(lambda o: not o.done and not o.hurt and self.path(o, 'latest.json').is_file())
        if not run: return False
        part, cut = self.dice.choice(('weights', 'state_file', 'manifest')), self.dice.random() < .3
        good = read_checkpoint(self.path(run), 'latest')
        file = self.path(run, 'latest.json') if part == 'manifest' else Path(getattr(good, part))
        spoil(file, self.dice, cut or part == 'manifest')
        run.hurt = True
        if part != 'manifest': run.spoilt.add(file.name)
        try: read_checkpoint(self.path(run), 'latest')
        except InputError as e: need('latest' in str(e), f'what is damaged is not named: {e}')
        else: raise Failed(f'a damaged {part} was read as if it were whole')

    def mend(self): # go on from an earlier checkpoint, or start again
        run = self.some(lambda o: o.hurt and not o.done)
        if not run: return False
        n = len(self.events(run))
        try: self.finish(run, ['resume', f'runs/{run.name}'])
        except Failed:
            need('no whole checkpoint' in self.said, self.said)
            shutil.rmtree(self.path(run))
            run.spoilt.clear()
            self.finish(run, self.train_command(run))
        else:
            need('damaged' in self.said, f'the damage was passed over in silence: {self.said}')
            need(not any(o['event'] == 'resume' and o['checkpoint'] == 'latest' for o in self.events(run)[n:]),
                 f'{run.name} went on from what is damaged')
        run.hurt = False
        if not self.facts_of(run, 'best_model'): self.give_away(run)

    def facts_of(self, run, name):
        "Of a checkpoint that is whole; None: a part of it was damaged, when it was one of `latest`, too"
        from imgcls_nb.checkpoints import read_checkpoint
        try: return read_checkpoint(self.path(run), name).facts
        except InputError as e:
            manifest = self.path(run, f'{name}.json').read_text()
            need(name != 'latest' and any(o in manifest for o in run.spoilt), f'{run.name}, {name}: {e}')

    def give_away(self, run): # the best of it is lost, which is said; there is nothing to do with it
        self.imgcls('export', f'runs/{run.name}', status=2)
        need('is damaged' in self.said, f'a damaged best_model was exported: {self.said}')
        self.remove(run)

    def evaluate(self): # also before its end
        run = self.some(lambda o: not o.hurt and self.path(o, 'best_model.json').is_file())
        if not run: return False
        from imgcls_nb.runs import Run
        said, top1 = self.imgcls('eval', f'runs/{run.name}'), Run.open(self.path(run)).best.facts['top1']
        need(f'top1 {top1:.4f}' in said, f'{run.name}: the best checkpoint had {top1:.4f}: {said}')

    def export(self):
        run = self.some(lambda o: o.done)
        if not run: return False
        self.imgcls('export', f'runs/{run.name}')
        run.answers = self.answers(run)
        theirs = self.torch_answers(run)
        need(all(label == theirs[k][0] and abs(prob - theirs[k][1]) < 1e-3 for k, (label, prob) in run.answers.items()),
             f'{run.name}: the file says {run.answers}, and torch {theirs}')
        self.check_answers(run)

    def answers(self, run):
        from imgcls_nb.predict import Predictor
        return labels_of(Predictor(self.path(run, 'model.onnx'), threads=1), self.pictures[::11])

    def torch_answers(self, run):
        from imgcls_nb.predict import Predictor
        return labels_of(Predictor(self.path(run), engine='torch'), self.pictures[::11])

    def check_answers(self, run):
        "Of one file at all times, and of all runs with the same end"
        before = self.answered.setdefault((run.seed, run.epochs), run.answers)
        need(self.answers(run) == run.answers == before, f'{run.name}: its model file answers otherwise')

    def predict(self): # into a file, killed now and then
        run = self.some(lambda o: o.answers)
        if not run: return False
        out = self.folder/f'labels_{self.n}_{self.dice.randrange(10**6)}.jsonl'
        command = ['predict', f'runs/{run.name}/model.onnx', 'shapes', '--out', out, '--bs', 4]
        some = self.predict_and_kill(command, out) if self.dice.random() < .5 else []
        self.imgcls(*command)
        rows = [json.loads(o) for o in out.read_text().splitlines()]
        found = {str(self.folder/o['source']): (o['label'], o['prob']) for o in rows}
        need(len(rows) == len(found) and found.keys() == set(map(str, self.pictures)), f'{len(rows)} rows: {sorted(found)}')
        need(rows[:len(some)] == some, 'what was written before the kill was written again, otherwise')
        need(all(found[k][0] == label and abs(found[k][1] - prob) < 1e-3 for k, (label, prob) in run.answers.items()),
             f'{out} has other labels than the model file gives')

    def predict_and_kill(self, command, out):
        "The whole rows that a killed process leaves"
        process = self.start(*command)
        time.sleep(self.dice.uniform(.2, 1.5))
        process.kill()
        process.communicate()
        draft = next((o for o in (out, out.with_name(f'{out.name}.part')) if o.exists()), None)
        lines = draft.read_bytes().split(b'\n')[:-1] if draft else []
        return [row for row in map(json.loads, lines) if 'source' in row]

    def edit(self): # some relabelled, some left out, some taken back
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
            if name not in self.ignored(run) and self.dice.random() < .2: change = name, 'ignore', False, True
            else:
                old = self.labels(run).get(name, name.split('/')[0])
                change = name, 'label', old, self.dice.choice([o for o in CLASSES if o != old])
            log.add(*change, 'soak')
            run.edits.append(change)

    def labels(self, run): return {name: new for name, what, _, new in run.edits if what == 'label'}

    def ignored(self, run): return {name for name, what, *_ in run.edits if what == 'ignore'}

    def apply(self): # edits, to a new list
        from imgcls_nb.revise import apply_edits, lists_of
        run = self.some(lambda o: o.edits)
        if not run: return False
        revision = apply_edits(self.path(run), self.path(run), self.folder/f'mended_{self.n}_{self.dice.randrange(10**6)}')
        sides = {side: [self.name(pics.source(i)) for i in range(len(pics))] for side, pics in lists_of(self.path(run)).items()}
        wanted = {(side, name, self.labels(run).get(name, name.split('/')[0])) for side, names in sides.items()
                  for name in names if name not in self.ignored(run)}
        lines = [(side, *line.rsplit(' ', 1)) for side, file in revision.files.items()
                 for line in Path(file).read_text().splitlines()]
        found = [(side, name, CLASSES[int(label)] if label.isdigit() else label) for side, name, label in lines]
        need(sorted(found) == sorted(wanted), f'{run.name}: lists and edits differ in {set(found) ^ wanted}')

    def name(self, picture): return (self.folder/picture).relative_to(self.shapes).as_posix()

    def forget(self): # a run that nobody needs
        run = self.some() if len(self.runs) > 8 else None
        if not run: return False
        self.remove(run)

    def remove(self, run):
        shutil.rmtree(self.path(run), ignore_errors=True)
        del self.runs[run.name]

    WEIGHTS = dict(train=4, resume=6, again=1, damage=1, mend=2, evaluate=2, export=2, predict=2, edit=3, apply=2, forget=3)

    # What must hold

    def path(self, run, *more): return self.folder.joinpath('runs', run.name, *more)

    def hash_pictures(self):
        sha = hashlib.sha256()
        for o in sorted(o for o in self.shapes.rglob('*') if o.is_file()):
            sha.update(o.relative_to(self.shapes).as_posix().encode() + o.read_bytes())
        return sha.hexdigest()

    def left_alone(self, run):
        "What the same training without any accident comes to"
        key = run.seed, run.epochs
        if key not in self.whole:
            alone = Soaked(f'whole_{run.seed}_{run.epochs}', *key)
            self.imgcls(*self.train_command(alone))
            self.whole[key] = self.came_to(alone)
        return self.whole[key]

    def came_to(self, run):
        "Weights, those of the best epoch, and the history; and the files, where the hash that names a part is of a clock as well"
        from imgcls_nb.runs import Run
        history = Run.open(self.path(run)).history().drop(columns=list(TIMED), errors='ignore')
        weights = [hash_of(self.path(run, f'{o}.safetensors')) for o in ('latest', 'best_model')]
        return dict(zip(('last weights', 'best weights'), weights), history=history.to_csv(), files=self.files(run))

    def files(self, run):
        names = [o.relative_to(self.path(run)).as_posix() for o in self.path(run).rglob('*') if o.is_file()]
        return sorted(o.split('-')[0] for o in names if o not in ('edits.jsonl', 'model.onnx'))

    def check(self):
        need(self.hash_pictures() == self.digest, 'pictures were touched')
        for run in self.runs.values():
            if self.path(run, 'config.yaml').is_file(): self.check_run(run)
            else: need(not run.done, f'{run.name} has no plan')

    def check_run(self, run):
        from imgcls_nb.edits import Edits
        from imgcls_nb.runs import Run
        opened, path = Run.open(self.path(run)), self.path(run)
        need(opened.plan.data.seed == run.seed, f'{run.name}: another plan')
        need(opened.status == 'finished' if run.done else opened.status != 'running', f'{run.name} is {opened.status}')
        if not run.hurt: self.check_checkpoints(run, len(opened.history()))
        kept = [(o['picture'], o['field'], o['old'], o['new']) for o in Edits(path, root=self.shapes).standing()]
        need(kept == run.edits, f'{run.name}: edits are {kept}, not {run.edits}')
        if run.done: self.check_done(run, opened)

    def check_checkpoints(self, run, epochs):
        names = [o.stem for o in self.path(run).glob('*.json') if o.stem.startswith(('latest', 'best_model', 'epoch_'))]
        facts = {o: found for o in names if (found := self.facts_of(run, o))}
        need(len(names) <= 2 + 4, f'{run.name} keeps too many checkpoints: {names}')
        need(not epochs or 'latest' in facts, f'{run.name} has {epochs} epochs and no checkpoint')
        behind = epochs - facts['latest']['epoch'] if facts.get('latest') else 0
        need(0 <= behind <= 2, f'{run.name} has {epochs} epochs in its log, and is {behind} behind')

    def check_done(self, run, opened):
        history, mine, whole = opened.history(), self.came_to(run), self.left_alone(run)
        need(list(history.epoch) == list(range(1, run.epochs + 1)), f'{run.name}: epochs {list(history.epoch)}')
        need(np.isclose(history.top1.max(), opened.best.facts['top1']), f'{run.name}: the best is not the best')
        for o in whole: need(mine[o] == whole[o], f'{run.name} did not end as if left alone; {o}: {mine[o]}, not {whole[o]}')
        if run.answers: self.check_answers(run)

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

def labels_of(predictor, pictures):
    return {str(o): (p.label, round(p.prob, 6)) for o, p in zip(pictures, predictor.batch(pictures))}

def spoil(file, dice, cut):
    "Cut the end of a file off, or turn a bit of it"
    with file.open('r+b') as f:
        at = dice.randrange(file.stat().st_size)
        if cut: return f.truncate(at)
        f.seek(at)
        byte = f.read(1)
        f.seek(at)
        f.write(bytes([byte[0] ^ 1 << dice.randrange(8)]))

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
        except Exception as e: # whatever it is, something did not hold
            if not isinstance(e, Failed): traceback.print_exc()
            print(f'After {dict(soak.did)}:\n{type(e).__name__}: {e}\nTo do it again: python tests/soak.py --seed {args.seed}')
            return 1
        print(f'{sum(soak.did.values()):4} {name:9} {time.monotonic() - began:5.1f} s, {len(soak.runs)} runs', flush=True)
    print(f'{sum(soak.did.values())} actions, and all held: {", ".join(f"{n} {k}" for k, n in soak.did.most_common())}')
    if not args.keep: shutil.rmtree(folder)
    return 0

if __name__ == '__main__': sys.exit(main())
