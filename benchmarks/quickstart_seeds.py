"""The quickstart on digits with five seeds: top-1 on the held-out 20 %, and seconds from kernel start to the end.

    python benchmarks/quickstart_seeds.py
"""
import json
import statistics
import tempfile
import time
from pathlib import Path

from imgcls_nb.tutorials import quickstart

SEEDS = 1, 2, 3, 4, 5


def measure(seed, folder):
    start = time.monotonic()
    quickstart(run=Path(folder)/f'seed_{seed}', show=lambda line: None, seed=seed)
    seconds = time.monotonic() - start
    events = [json.loads(line) for line in (Path(folder)/f'seed_{seed}/run.jsonl').read_text('utf-8').splitlines()]
    return [e['top1'] for e in events if e['event'] == 'epoch'][-1], seconds


def main():
    with tempfile.TemporaryDirectory() as folder: rows = [measure(seed, folder) for seed in SEEDS]
    top1, seconds = zip(*rows)
    print('| seed | top-1 | seconds |\n|---|---|---|')
    for seed, acc, s in zip(SEEDS, top1, seconds): print(f'| {seed} | {acc:.2%} | {s:.0f} |')
    print(f'| median | {statistics.median(top1):.2%} | {statistics.median(seconds):.0f} |')


if __name__ == '__main__': main()
