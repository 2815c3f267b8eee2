"""What a second process is worth: two processes of one thread against one process of two threads, on the same batches.

    python benchmarks/scaling.py                       # ResNet-18 and MobileNetV3-large, 224x224; five minutes
    python benchmarks/scaling.py --rounds 5 --bs 64

Both arrangements have the same cores, train the same network on the same batches and make the same steps, so what differs is
what threads and processes cost: a thread waits for the other in every layer, a process once a step, for the gradients. They take
turns, so that whatever else the machine does meets both alike. The first steps of each turn are left out.

The last columns are the bytes that a process sends in a step, as the loopback interface of the system counts them, beside the
size of the gradients. A ring that adds up over n processes sends 2(n - 1)/n times as much, once for two.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bars import ratio_row, save_rows

ARCHS = 'resnet18', 'mobilenetv3_large_100'

def sent_bytes(): # by the loopback interface, since the machine was started
    for line in Path('/proc/net/dev').read_text().splitlines():
        name, _, counts = line.strip().partition(':')
        if name == 'lo': return int(counts.split()[8])
    return 0

def work(folder, arch, bs, steps, out):
    "Train for some steps, in one of the processes"
    from imgcls_nb.ranks import join, leave, rank, wait_for_all, world
    join()
    from imgcls_nb.data import image_dls  # first, because it imports fastai quietly

    # isort: split
    from fastai.callback.core import Callback, CancelFitException

    from imgcls_nb.learner import image_learner

    class Enough(Callback):
        order = 99
        def after_batch(self):
            if self.iter + 1 == 4: self.began = sent_bytes()
            if self.iter + 1 == steps: raise CancelFitException

    dls = image_dls(folder, size=224, bs=bs//world(), device='cpu', num_workers=0, aug='light')
    enough = Enough()
    learn = image_learner(dls, arch, cbs=enough)
    with learn.no_bar(): learn.fit(1)
    times = [o.seconds for o in learn.step_timer.steps][4:steps - 1]
    wait_for_all('the end')
    size = sum(p.numel()*p.element_size() for p in learn.model.parameters())
    sent = (sent_bytes() - enough.began)/(steps - 4)/world()
    if rank() == 0: Path(out).write_text(json.dumps(dict(images_per_s=bs/statistics.median(times), sent=sent, size=size)))
    leave()

def arranged(processes, threads, *args):
    "One turn: what the processes measured"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)/'figures.json'
        launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']*(processes > 1)
        env = os.environ | dict(OMP_NUM_THREADS=str(threads), TORCH_CPP_LOG_LEVEL='ERROR')
        command = [sys.executable, *launcher, __file__, 'work', *map(str, args), str(out)]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())

def main(args):
    from imgcls_nb.datasets import make_shapes
    bars = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = make_shapes(Path(folder)/'shapes', n=args.bs*args.steps//3 + 64, size=256)
        print(f"{'network':24}{'1 x 2 threads':>14}{'2 x 1 thread':>14}{'efficiency':>12}{'sent, MB':>10}{'gradients, MB':>15}")
        for arch in args.archs:
            one, two = [], []
            for _ in range(args.rounds):
                one.append(arranged(1, 2, pictures, arch, args.bs, args.steps))
                two.append(arranged(2, 1, pictures, arch, args.bs, args.steps))
            ratios = [b['images_per_s']/a['images_per_s'] for a, b in zip(one, two)]
            ratio = statistics.median(ratios)
            speed = [statistics.median(o['images_per_s'] for o in turns) for turns in (one, two)]
            sent, size = (statistics.median(o[k] for o in two)/1e6 for k in ('sent', 'size'))
            print(f'{arch:24}{speed[0]:10.1f} /s{speed[1]:10.1f} /s{ratio:12.2f}{sent:10.1f}{size:15.1f}', flush=True)
            note = f'sent {sent:.1f} MB a step, gradients {size:.1f} MB'
            bars.append(ratio_row(f'scaling, {arch}', ratios, f'{speed[1]:.1f} img/s', note))
    save_rows(args.bars, bars)

if __name__ == '__main__':
    if sys.argv[1:2] == ['work']: work(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument('--archs', nargs='+', default=ARCHS)
        for name, usual in (('rounds', 3), ('bs', 32), ('steps', 16)): parser.add_argument(f'--{name}', type=int, default=usual)
        parser.add_argument('--bars', help='file for the rows of RESULTS.md')
        main(parser.parse_args())
