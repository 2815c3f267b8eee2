"""Trainings killed by SIGKILL at random moments and resumed, against the same trainings left alone: sha256 of what comes out.

    python benchmarks/kill_resume.py --kills 20

A row is a training in processes of its own. It is killed once or twice, at a random moment or at a random point within the
writing of a checkpoint, and resumed until it is done. Compared are the weights, their average, the optimizer and every
callback's state, and the table of epochs. The exit status is 1 if anything differs.
"""
import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bars import Row, save_rows

TIMED = 'seconds', 'data_wait', 'images_per_s' # of an epoch, which no two trainings share
KINDS = ('fine_tune', 'fit_one_cycle', 'everything')


# What is trained, in a process that may be killed

def make_learner(pictures, run, kind, workers, cache):
    from imgcls_nb.data import image_dls
    from imgcls_nb.learner import image_learner
    dls = image_dls(pictures, size=32, bs=16, aug='standard', device='cpu', num_workers=workers, cache=str(cache))
    more = [('accumulate', dict(n=3)), ('clip_norm', dict(max_norm=1.)), ('swa', dict(start=.4)), 'csv',
            ('early_stop', dict(monitor='train_loss', patience=2, min_delta=.15))]
    return image_learner(dls, 'test_resnet', run=run, drop_rate=.2, mix='mixup+cutmix', save_steps=4, keep_last=2,
                         cbs=['ema', *(more if kind == 'everything' else [])])

def train(learn, kind):
    if kind == 'fine_tune': learn.fine_tune(2, 4e-3, freeze_epochs=1, resume=True)
    elif kind == 'fit_one_cycle': learn.fit_one_cycle(3, 6e-3, resume=True)
    else:
        learn.fit_scheduled(4, lr=4e-3, warmup_epochs=.5, resume=True)
        learn.fit(1, 1e-3, resume=True)

def digest(values):
    "sha256 of nested dicts, lists, tensors and plain values"
    import torch
    sha = hashlib.sha256()
    def add(o):
        if isinstance(o, torch.Tensor): sha.update(o.detach().contiguous().numpy().tobytes())
        elif isinstance(o, dict): add([x for pair in o.items() for x in pair])
        elif isinstance(o, (list, tuple)): [add(x) for x in o]
        else: sha.update(repr(o).encode())
    add(values)
    return sha.hexdigest()

def worker(task):
    "Train, and print what came out"
    from imgcls_nb import files
    from imgcls_nb.moments import Moment
    points = itertools.count(1)
    def reached(point):
        if next(points) == task['die_at']: os.kill(os.getpid(), signal.SIGKILL)
    files.reached = reached
    learn = make_learner(task['pictures'], task['run'], task['kind'], task['workers'], task['cache'])
    print('ready', flush=True)
    with learn.no_bar(): train(learn, task['kind'])
    end = Moment.of(learn, None)
    state = {k: v for k, v in end.state['callbacks'].items() if k not in ('run_writer', 'epoch_table')} # which have times in them
    rows = learn.run_folder.history().drop(columns=[*TIMED], errors='ignore').to_dict('list')
    steps = learn.run_folder.steps().drop(columns='wait').to_dict('list')
    out = dict(weights=end.weights, optimizer=end.state['opt'], callbacks=state, epochs=rows, steps=steps)
    print(json.dumps({k: digest(v) for k, v in out.items()} | dict(points=next(points) - 1)), flush=True)


# Killing

def start(task):
    command, env = [sys.executable, __file__, '--worker', json.dumps(task)], os.environ | dict(OMP_NUM_THREADS='1')
    with open(said_by(task), 'w') as said:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, stderr=said)

def said_by(task): return f"{task['run']}.txt" # on its second channel

def finish(task):
    "What a training prints at its end; None: it was killed"
    with start(task) as process: lines = process.communicate()[0].splitlines()
    if process.returncode == -signal.SIGKILL: return None
    if process.returncode:
        last = ''.join(Path(said_by(task)).read_text().splitlines(True)[-25:])
        raise SystemExit(f'{last}\nA training failed with status {process.returncode}: {json.dumps(task)}')
    return json.loads(lines[-1])

def kill_after(task, seconds):
    "Start a training and kill it `seconds` after it is ready"
    with start(task) as process:
        for line in process.stdout:
            if line == 'ready\n': break
        time.sleep(seconds)
        process.kill()

def stood_at(run):
    "Where a killed run would go on"
    from imgcls_nb.moments import Position
    from imgcls_nb.resume import find_checkpoint
    from imgcls_nb.runs import Run
    if not Run(run).exists or not (found := find_checkpoint(Run(run))): return 'nothing saved'
    at = Position(**found.facts['position'])
    return f'call {at.call + 1}, fit {at.fit}, {at}'

def measure(folder, pictures, kills, seed):
    draw, whole, rows = random.Random(seed), {}, []
    ways = [dict(kind=k, workers=w, warm=c) for w, c in ((0, False), (2, True), (2, False), (0, True)) for k in KINDS]
    for i in range(kills):
        way = ways[i % len(ways)]
        kind = way['kind']
        base = dict(pictures=str(pictures), kind=kind, workers=way['workers'], die_at=0)
        if kind not in whole:
            began = time.monotonic()
            task = base | dict(run=str(folder/f'whole_{kind}'), workers=0, cache=str(folder/f'warm_{kind}'))
            whole[kind] = finish(task) | dict(seconds=time.monotonic() - began)
        cache = folder/(f'warm_{kind}' if way['warm'] else f'cold_{i}')
        task, deaths = base | dict(run=str(folder/f'run_{i}'), cache=str(cache)), []
        for _ in range(draw.choice((1, 1, 2))):
            if draw.random() < .5:
                at = draw.randint(1, whole[kind]['points'])
                if finish(task | dict(die_at=at)): break
                how = f'file operation {at}'
            else:
                seconds = draw.uniform(0, whole[kind]['seconds']*.6)
                kill_after(task, seconds)
                how = f'after {seconds:.1f} s'
            deaths.append(f"{how} ({stood_at(task['run'])})")
        rows.append(way | dict(deaths=deaths, equal=_equal(whole[kind], finish(task))))
        show(i + 1, rows[-1])
        shutil.rmtree(task['run'])
    return rows

def _equal(a, b): return not [k for k in a if k not in ('points', 'seconds') and a[k] != b[k]]

def show(n, row):
    deaths, cache = '; '.join(row['deaths']) or 'too late', 'warm' if row['warm'] else 'cold'
    cells = n, row['kind'], row['workers'], cache, deaths, 'yes' if row['equal'] else 'NO'
    print('| ' + ' | '.join(map(str, cells)) + ' |', flush=True)

def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--kills', type=int, default=20, help='trainings that are killed (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=1, help='of when they are killed (default: %(default)s)')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args = parser.parse_args()
    if args.worker: return worker(json.loads(args.worker))
    from imgcls_nb.datasets import make_shapes
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_shapes(Path(folder)/'shapes', n=40)
        print('| | training | workers | cache | killed (and went on) | equal |\n|---|---|---|---|---|---|')
        rows = measure(Path(folder), pictures, args.kills, args.seed)
    equal = sum(o['equal'] for o in rows)
    killed = sum(len(o['deaths']) for o in rows)
    print(f'{equal} of {len(rows)} trainings, killed {killed} times, ended as if nothing had happened.')
    save_rows(args.bars, [Row('kills, equal', f'{equal} of {len(rows)}', equal == len(rows), note=f'killed {killed} times')])
    return int(equal < len(rows))


if __name__ == '__main__': sys.exit(main())
