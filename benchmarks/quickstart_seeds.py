"""The quickstart on digits with five seeds: top-1 on the held-out 20 %, and seconds from kernel start to the end.

    python benchmarks/quickstart_seeds.py
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

from bars import Row, save_rows

from imgcls_nb.runs import Run
from imgcls_nb.tutorials import quickstart

SEEDS = 1, 2, 3, 4, 5


def measure(seed, folder):
    run, start = Path(folder)/f'seed_{seed}', time.monotonic()
    quickstart(run=run, show=lambda line: None, seed=seed)
    seconds = time.monotonic() - start
    return float(Run.open(run).history().top1.iloc[-1]), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder: rows = [measure(seed, folder) for seed in SEEDS]
    top1, seconds = zip(*rows)
    print('| seed | top-1 | seconds |\n|---|---|---|')
    for seed, acc, s in zip(SEEDS, top1, seconds): print(f'| {seed} | {acc:.2%} | {s:.0f} |')
    print(f'| median | {statistics.median(top1):.2%} | {statistics.median(seconds):.0f} |')
    save_rows(args.bars, [
        Row('quickstart, top-1', f'{statistics.median(top1):.2%}', None, f'{min(top1):.2%} to {max(top1):.2%}'),
        Row('quickstart, seconds', f'{statistics.median(seconds):.0f} s', None, f'{min(seconds):.0f} to {max(seconds):.0f} s')])


if __name__ == '__main__': main()
