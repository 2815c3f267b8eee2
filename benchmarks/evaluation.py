"""What questions to a large evaluation cost: seconds, and memory beyond the predictions, which are mapped from a file.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --classes 100 --pictures 10000

Predictions are drawn: for each picture a softmax in which the label, or a class like it, stands out. They are saved once, and
opened in a new process for each question, so that nothing is there from the one before; libraries are imported before the clock
starts. Seconds are the median of five. Memory is the peak that Python and numpy have asked for while the question was answered,
in a run of its own, since counting takes time.

The first row is held to bars: the confusion matrix of 1000 classes and 50,000 pictures, from the opened file. scikit-learn
counts the same matrix from class numbers that it is given, so argmax is added to it. fastai's way, from its source, holds one
boolean for each cell and picture; it is not run.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import scipy.cluster.hierarchy
import scipy.optimize
import scipy.sparse  # noqa: F401 (so that no question waits for it)
import sklearn.metrics
from bars import judged, save_rows

from imgcls_nb.compare import compare
from imgcls_nb.evaluation import Evaluation

BAR = 'confusion matrix'

QUESTIONS = {
    BAR: lambda ev, folder: ev.confusion_matrix(),
    'the same by scikit-learn': lambda ev, folder: sklearn.metrics.confusion_matrix(
        ev.targs, ev.probs.argmax(1), labels=np.arange(len(ev.vocab))),
    'top-1, top-5, balanced accuracy': lambda ev, folder: (ev.top1, ev.top5, ev.balanced_accuracy),
    'report of each class': lambda ev, folder: ev.report(),
    'classes in order of confusion': lambda ev, folder: ev.confusion.order,
    '20 most confused pairs': lambda ev, folder: ev.most_confused(20),
    '100 top losses': lambda ev, folder: ev.top_losses(100),
    'calibration and coverage': lambda ev, folder: (ev.calibration().ece, ev.coverage),
    'temperature fitted': lambda ev, folder: ev.fit_temperature(),
    'temperature applied': lambda ev, folder: ev.calibrated(1.5),
    'interval of top-1': lambda ev, folder: ev.interval(),
    'interval of F1': lambda ev, folder: ev.interval('f1'),
    'compared with itself': lambda ev, folder: str(compare(ev, ev)),
    'saved': lambda ev, folder: ev.save(Path(folder)/'again'),
}
OPENED = 'opened, hashes checked', 'opened, unchecked'


def draw(n, c, seed=0):
    "Predictions whose errors are within groups of five classes"
    rng = np.random.default_rng(seed)
    targs = rng.integers(0, c, n)
    like = np.minimum(targs//5*5 + rng.integers(0, 5, n), c - 1)
    probs = rng.random((n, c), dtype=np.float32)**8*.2
    probs[np.arange(n), targs] += rng.random(n, dtype=np.float32)*c/100 + .5
    probs[np.arange(n), like] += rng.random(n, dtype=np.float32)*c/100
    return Evaluation(probs/probs.sum(1, keepdims=True), targs, map(str, range(c)), [f'{i}.png' for i in range(n)])


def ask(question, folder):
    "Seconds, five times, and megabytes of one question, in this process"
    def once(opened=None):
        if question in OPENED: Evaluation.load(folder, check=question == OPENED[0])
        else: QUESTIONS[question](opened, folder)
    seconds = []
    for _ in range(5):
        ev = Evaluation.load(folder, check=False)
        start = time.perf_counter()
        once(ev)
        seconds.append(time.perf_counter() - start)
    ev = Evaluation.load(folder, check=False)
    tracemalloc.start()
    once(ev)
    return seconds, tracemalloc.get_traced_memory()[1]/1e6


def bar_rows(seconds, megabytes):
    middle, spread = statistics.median(seconds), f'{min(seconds):.2f} to {max(seconds):.2f} s'
    return [judged('confusion, seconds', middle, f'{middle:.2f} s', spread),
            judged('confusion, memory', megabytes, f'{megabytes:.0f} MB')]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pictures', type=int, default=50_000)
    parser.add_argument('--classes', type=int, default=1000)
    parser.add_argument('--ask', nargs=2, help=argparse.SUPPRESS) # a question and a folder: the child's part
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args = parser.parse_args()
    if args.ask: return print(json.dumps(ask(*args.ask)))
    n, c = args.pictures, args.classes
    print(f'{n:,} pictures, {c:,} classes, predictions of {n*c*4/1e6:.0f} MB\n\n| question | seconds | MB |\n|---|---|---|')
    with tempfile.TemporaryDirectory() as folder:
        draw(n, c).save(folder)
        for question in (*QUESTIONS, *OPENED):
            child = [sys.executable, __file__, '--ask', question, folder]
            done = subprocess.run(child, capture_output=True, text=True, check=True)
            seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
            print(f'| {question} | {statistics.median(seconds):.3f} | {megabytes:.1f} |', flush=True)
            if question == BAR: bars = bar_rows(seconds, megabytes)
    print(f"| the confusion matrix as fastai counts it | not run | {n*c*c/1e6:,.0f} |")
    save_rows(args.bars, bars)


if __name__ == '__main__': main()
