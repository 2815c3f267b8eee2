"""What a checkpoint costs, as a table: how long training waits for it, and what it takes from the processor meanwhile.

    python benchmarks/checkpoint_cost.py            # into a temporary folder
    python benchmarks/checkpoint_cost.py --at runs  # on the disk where runs are kept

One row for each network, with AdamW after one step. At the end of an epoch the weights and the optimizer are copied; then they
are hashed, written, forced to disk, and linked as `latest`, `best_model` and `epoch_N`: **at once**, before training goes on, or
**in background**, while it does. **waits** is how long training stands still, and its share of an epoch of one minute.
**processor** is how much of one core that takes; it is what **waits** would be on a machine with nothing else to do and a disk
without delay.
"""
import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import imgcls_nb.data  # noqa: F401 (first, because it imports fastai quietly)

# isort: split
import torch
from bars import judged, save_rows

from imgcls_nb.checkpoints import Background, drop_checkpoint, link_checkpoint, take_snapshot, write_snapshot
from imgcls_nb.models import create_model

NETS = {'ResNet-50, 1000 classes': ('resnet50', 1000, 64), "the quickstart's, 10 classes": ('test_resnet', 10, 32)}
EPOCH_S = 60

def trained(arch, classes, size): # a network and its optimizer, after a step
    model = create_model(arch, False, classes)
    opt = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, size, size)).square().mean().backward()
    opt.step()
    opt.zero_grad()
    return model, opt

def write(folder, shot, n): # all that the end of an epoch does
    write_snapshot(folder, 'latest', shot, dict(step=n, epoch=n))
    link_checkpoint(folder, 'latest', 'best_model')
    link_checkpoint(folder, 'latest', f'epoch_{n}')
    drop_checkpoint(folder, f'epoch_{n - 3}')

def timed(f): # what it gave, seconds, and seconds of a processor
    wall, used = time.perf_counter(), time.process_time()
    out = f()
    return out, time.perf_counter() - wall, time.process_time() - used

def measure(arch, classes, size, folder, repeats):
    (model, opt), writer, rows = trained(arch, classes, size), Background(), []
    snapshot = lambda: take_snapshot(model.state_dict(), dict(opt=opt.state_dict()))
    for n in range(1, 2*repeats, 2):
        with torch.no_grad(): model.get_classifier().bias += 1 # every epoch has a content of its own
        shot, made, made_cpu = timed(snapshot)
        _, written, written_cpu = timed(lambda: write(folder, shot, n)) # noqa: B023 (called at once)
        _, free, _ = timed(lambda: writer.do(write, folder, snapshot(), n + 1)) # noqa: B023
        writer.wait()
        rows.append((made + written, made_cpu + written_cpu, free, made_cpu))
    return (len(shot.weights) + len(shot.state))/1e6, rows

def bar_row(key, mb, rows): # written in the background, as a run does it
    waits = [100*row[2]/EPOCH_S for row in rows]
    middle = statistics.median(waits)
    return judged(key, middle, f'{middle:.2f} %, {middle*EPOCH_S/100:.3f} s', f'{min(waits):.2f} to {max(waits):.2f} %',
                  note=f'{mb:.0f} MB, in the background')

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--at', help="folder on the disk to measure; default: temporary files")
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args, bars = parser.parse_args(), []
    print(f"{'network':30}{'MB':>7}{'at once: waits':>24}{'processor':>18}{'in background: waits':>24}{'processor':>18}")
    for name, how in NETS.items():
        with tempfile.TemporaryDirectory(dir=args.at) as folder: mb, rows = measure(*how, Path(folder), args.repeats)
        row = [statistics.median(o) for o in zip(*rows)]
        bars.append(bar_row('checkpoint, ResNet-50' if 'ResNet' in name else 'checkpoint, quickstart', mb, rows))
        print(f'{name:30}{mb:7.1f}' + ''.join(f'{s:{w}.3f} s {100*s/EPOCH_S:5.2f} %' for s, w in zip(row, (14, 8, 14, 8))))
    print(f"Shares are of an epoch of {EPOCH_S} s. Medians of {args.repeats}; load of the machine: {os.getloadavg()[0]:.1f}.")
    save_rows(args.bars, bars)

if __name__ == '__main__': main()
