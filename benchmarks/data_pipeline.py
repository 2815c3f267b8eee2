"""How fast training batches arrive: this package, fastai, torchvision and timm, side by side in one process.

    python benchmarks/data_pipeline.py
    python benchmarks/data_pipeline.py --folder pictures --json out.json
    python benchmarks/data_pipeline.py --accuracy

Every loader reads the same JPEG files and gives the same kind of batch: 32 pictures, float32, 3x224x224, normalized, on the
CPU, in shuffled order, each picture cropped at random (35 % to 100 % of its area, sides 3:4 to 4:3), resized with antialiasing
and flipped left to right half of the time. There are pictures of two sizes, 500x375 and 4000x3000, drawn and kept in a folder.

1. Check. Each loader runs one epoch that is not timed: shape, type, range, number of pictures and labels of its batches must
   be right, and the pixels of all loaders must have about the same mean and spread. A column, `detail`, shows how much
   neighbouring pixels differ, so that a loader that is fast because it blurs is seen. All files are in the page cache now.
2. Settings. Of each peer, several settings are timed, and the one with the fastest epoch goes on; all are listed under the
   table. fastai as its documentation has it goes on in any case; the ratios are to the faster one.
3. Table. Several rounds. In each, every loader is built anew, then all of them run epoch 1, then all run epoch 2, and so on,
   so that whatever else the machine does meets all alike; the order rotates. Figures are medians over rounds and epochs.

Building a loader, which is where files are listed, and where ours decodes every picture once to see that it can be read, and
keeps what it decoded, has a column of its own; nothing that an earlier run found out about the files is there to help, and the
decoded cache is empty. Epoch 1 includes the start of the worker processes. So that no work can hide in the building, a further
column has the rate from nothing to the end of epoch 1. No loader works on the next epoch between two timed ones: timm's
`use_multi_epochs_loader` would, so it is not among the settings. Nothing is pinned: there is no GPU. "By hand" is no library's
loader but what somebody who knows about JPEG would write.

`--accuracy` asks the other question: does decoding at a smaller size, or once for all epochs, cost accuracy? It trains small
networks in place of timing, seed by seed with each way to open pictures.
"""
import argparse
import contextlib
import gc
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path

from imgcls_nb.data import image_dls  # first, because it imports fastai quietly

# isort: split
import fastai.vision.all as fv
import numpy as np
import psutil
import timm.data
import torch
from bars import BARS, meets, ratio_row, save_rows
from bars import Row as Bar
from machine import listed, machine, versions
from PIL import Image, features
from scipy import stats
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image
from torchvision.transforms import v2

from imgcls_nb.core import IMAGENET_MEAN, IMAGENET_STD
from imgcls_nb.evaluate import evaluate
from imgcls_nb.learner import image_learner

BS, SIZE, SCALE, RATIO, CLASSES = 32, 224, (.35, 1.), (3/4, 4/3), 8

# ---- Pictures

def random_field(rng, width, height, cells):
    grid = rng.standard_normal((max(2, round(cells*height/width)), cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))

def draw_scene(seed, width, height, decay): # smooth fields, each twice as fine as the one before and `decay` times as strong
    rng = np.random.default_rng(seed)
    cells = [3*2**k for k in range(12) if 3*2**k <= width]
    light = sum(decay**k*random_field(rng, width, height, c) for k, c in enumerate(cells))
    tints = [sum(decay**k*random_field(rng, width, height, c) for k, c in enumerate(cells[:3])) for _ in 'rgb']
    return np.stack([118 + light*48/light.std() + 14*o for o in tints], -1).clip(0, 255).astype(np.uint8)

def vary_scene(scenes, noise, i, width, height): # a crop of a scene, perhaps mirrored, brighter or darker, with sensor noise
    rng = np.random.default_rng([7, i])
    def cut(a):
        y, x = (rng.integers(0, s - t + 1) for s, t in zip(a.shape, (height, width)))
        return a[y:y + height, x:x + width]
    pixels = cut(scenes[i % len(scenes)])
    if rng.random() < .5: pixels = pixels[:, ::-1]
    return (pixels*rng.uniform(.8, 1.1, 3).astype(np.float32) + cut(noise)).clip(0, 255).astype(np.uint8)

def make_pictures(folder, n, width, height, decay):
    "Class folders of `n` training pictures, and one validation picture a class; kept when they are there"
    folder = Path(folder)/f'{width}x{height}_{n}'
    if (folder/'.complete').exists(): return folder
    shutil.rmtree(folder, ignore_errors=True)
    w, h = width*9//8, height*9//8
    scenes = [draw_scene([i, width], w, h, decay) for i in range(min(4, n))]
    noise = (3*np.random.default_rng(5).standard_normal((h, w, 3), dtype=np.float32)).round().astype(np.int8)
    def write(i):
        file = folder/('train' if i < n else 'valid')/f'class_{i % CLASSES}'/f'{i:05}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(vary_scene(scenes, noise, i, width, height)).save(file, quality=90)
    with ThreadPoolExecutor(os.cpu_count()) as pool: list(pool.map(write, range(n + CLASSES)))
    (folder/'.complete').touch()
    return folder

# ---- Loaders

def fresh_times(): return dict(build=[], first=[], later=[], cpu=[])

@dataclass(eq=False)
class Row:
    name: str # Whose loader
    settings: str # What was chosen
    build: callable # `(folder, workers)` to a loader
    ours: bool = False
    by_hand: bool = False # More than settings of a library
    pixels: dict|None = None # What `check` found
    times: dict = field(default_factory=fresh_times) # Seconds, a number an epoch

    def rate(self, n, what): return n/statistics.median(self.times[what])

    @property
    def from_nothing(self): return [a + b for a, b in zip(self.times['build'], self.times['first'])] # seconds, a number a round

def ours(folder, workers, scratch, cache): # each time as if for the first: nothing is known of the pictures, nothing is kept
    os.environ['IMGCLS_CACHE'] = tempfile.mkdtemp(dir=scratch, prefix='scan_') # what looking at the files found goes there
    cache = cache and tempfile.mkdtemp(dir=scratch, prefix='decoded_')
    return image_dls(folder, valid='valid', size=SIZE, bs=BS, num_workers=workers, device='cpu', cache=cache).train

def our_rows(scratch):
    row = lambda settings, **kw: Row('imgcls_nb', settings, partial(ours, scratch=scratch, **kw), ours=True)
    return [row('decoded cache, the default', cache=True), row('cache=False', cache=False)]

def flip_after_crop(): # left alone, fastai sorts FlipItem before the crop, and it flips the whole picture
    flip = fv.FlipItem()
    flip.order = fv.RandomResizedCrop.order + 1
    return flip

def fastai_loader(folder, workers, flip, **kwargs):
    item, batch = [fv.RandomResizedCrop(SIZE, min_scale=SCALE[0])], [fv.Normalize.from_stats(*fv.imagenet_stats)]
    (batch if flip is fv.Flip else item).append(flip())
    return fv.ImageDataLoaders.from_folder(folder, train='train', valid='valid', item_tfms=item, batch_tfms=batch, bs=BS,
                                           num_workers=workers, device='cpu', drop_last=False, **kwargs).train

def fastai_rows():
    row = lambda settings, **kw: Row('fastai', settings, partial(fastai_loader, **kw))
    return [row('Flip on batches, as documented', flip=fv.Flip),
            row('FlipItem', flip=fv.FlipItem),
            row('FlipItem moved behind the crop', flip=flip_after_crop),
            row('FlipItem moved behind the crop; persistent_workers, though fastai starts new ones all the same',
                flip=flip_after_crop, persistent_workers=True)]

MEAN255, STD255 = (torch.tensor(o).mul(255).view(3, 1, 1) for o in (IMAGENET_MEAN, IMAGENET_STD))

def normalize(x): return (x - MEAN255).div_(STD255) # two passes over the pixels; v2.ToDtype and v2.Normalize take four

def normalizing_collate(items):
    xb, yb = default_collate(items)
    return normalize(xb), yb

class NormalizingLoader:
    "Normalizes whole batches in the main process"
    def __init__(self, loader): self.loader = loader
    def __iter__(self): return ((normalize(xb), yb) for xb, yb in self.loader)

def open_tensor(path): return decode_image(path, mode='RGB')

def open_pil(path): return Image.open(path).convert('RGB')

def open_draft(path): # the decoder shrinks by 2, 4 or 8 while it decodes; the smallest crop still has enough pixels
    im = Image.open(path)
    least = round(SIZE/SCALE[0]**.5)
    im.draft('RGB', (least, least))
    return im.convert('RGB')

def torchvision_loader(folder, workers, opener, where='main', prefetch=2, persistent=True):
    crop = [v2.RandomResizedCrop(SIZE, scale=SCALE, ratio=RATIO, antialias=True), v2.RandomHorizontalFlip()]
    to_tensor = [] if opener is open_tensor else [v2.PILToTensor()]
    each = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)] if where == 'item' else []
    dataset = ImageFolder(folder/'train', v2.Compose(crop + to_tensor + each), loader=opener)
    loader = DataLoader(dataset, BS, shuffle=True, num_workers=workers, persistent_workers=persistent and workers > 0,
                        prefetch_factor=prefetch if workers else None,
                        collate_fn=normalizing_collate if where == 'collate' else default_collate)
    return NormalizingLoader(loader) if where == 'main' else loader

def torchvision_rows():
    row = lambda settings, **kw: Row('torchvision v2', settings, partial(torchvision_loader, **kw))
    return [row('decode_image, batches normalized in the main process', opener=open_tensor),
            row('decode_image, batches normalized in the workers', opener=open_tensor, where='collate'),
            row('decode_image, items normalized in the workers', opener=open_tensor, where='item'),
            row('decode_image, batches normalized in the workers, prefetch_factor 4',
                opener=open_tensor, where='collate', prefetch=4),
            row('decode_image, batches normalized in the workers, these not persistent',
                opener=open_tensor, where='collate', persistent=False),
            row('PIL, batches normalized in the main process', opener=open_pil),
            row('PIL, batches normalized in the workers', opener=open_pil, where='collate')]

def draft_rows():
    row = lambda settings, **kw: Row('by hand: torchvision v2', settings, partial(torchvision_loader, opener=open_draft, **kw),
                                     by_hand=True)
    return [row('PIL draft, batches normalized in the main process'),
            row('PIL draft, batches normalized in the workers', where='collate')]

def timm_loader(folder, workers, use_prefetcher):
    return timm.data.create_loader(timm.data.create_dataset('', str(folder/'train')), (3, SIZE, SIZE), BS, is_training=True,
                                   scale=SCALE, ratio=RATIO, hflip=.5, color_jitter=None, auto_augment=None,
                                   interpolation='bilinear', num_workers=workers, persistent_workers=workers > 0,
                                   device=torch.device('cpu'), use_prefetcher=use_prefetcher)

def timm_rows():
    return [Row('timm', f'use_prefetcher={o}', partial(timm_loader, use_prefetcher=o)) for o in (True, False)]

# ---- Checking and timing

def check(row, folder, workers, n):
    "One epoch, not timed: are the batches what they should be? Gives mean, spread and detail of the pixels"
    labels, sums = np.zeros(CLASSES, int), []
    low, high = ((torch.tensor([o]*3) - torch.tensor(IMAGENET_MEAN))/torch.tensor(IMAGENET_STD) for o in (0., 1.))
    for xb, yb in row.build(folder, workers):
        xb = torch.as_tensor(xb).as_subclass(torch.Tensor) # fastai's tensors are subclasses
        what = f'{row.name} ({row.settings})'
        assert xb.shape[1:] == (3, SIZE, SIZE) and len(xb) == len(yb) == BS, f'{what}: a batch of shape {tuple(xb.shape)}'
        assert xb.dtype == torch.float32 and yb.dtype == torch.int64, f'{what}: {xb.dtype} pixels and {yb.dtype} labels'
        inside = (xb.amin((0, 2, 3)) >= low - .01) & (xb.amax((0, 2, 3)) <= high + .01)
        assert inside.all(), f'{what}: pixels out of range'
        labels += np.bincount(yb, minlength=CLASSES)
        sums.append((xb.mean().item(), xb.std().item(), xb.diff(dim=3).abs().mean().item()*100))
    assert labels.tolist() == [n//CLASSES]*CLASSES, f'{what}: an epoch of {labels.tolist()} pictures of each class, not of {n}'
    return dict(zip(('mean', 'std', 'detail'), np.mean(sums, 0).round(3).tolist()))

def check_alike(rows):
    for what, slack in dict(mean=.08, std=.05).items(): # random crops of few pictures have some spread
        middle = statistics.median(o.pixels[what] for o in rows)
        for o in rows:
            assert abs(o.pixels[what] - middle) < slack, f'{o.name} ({o.settings}): {what} {o.pixels[what]}, others {middle:.3f}'

def cpu_seconds():
    "Of this process, of its workers that have ended and of those that run; and of all processes of the machine"
    own, every = os.times(), psutil.cpu_times()
    workers = sum(sum(p.cpu_times()[:4]) for p in psutil.Process().children(recursive=True))
    return np.array([sum(own[:4]) + workers, sum(every) - every.idle - getattr(every, 'iowait', 0)])

def run_epoch(loader, n):
    "Seconds, and processor seconds of ours and of others"
    gc.collect()
    time.sleep(.05)
    cpu, start, seen = cpu_seconds(), time.perf_counter(), 0
    for xb, _ in loader: seen += len(xb)
    seconds, (cpu, every) = time.perf_counter() - start, cpu_seconds() - cpu
    assert seen == n, f'{seen} pictures in an epoch, not {n}'
    return seconds, cpu, max(0., every - cpu)

def measure(rows, folder, workers, n, rounds, epochs):
    "Fill in `times` of the rows, taking turns; give the share of the processors that other programs took meanwhile"
    turn, wall, foreign = 0, 0., 0.
    for _ in range(rounds):
        loaders = []
        for row in rows:
            gc.collect()
            start = time.perf_counter()
            loaders.append(row.build(folder, workers))
            row.times['build'].append(time.perf_counter() - start)
        for epoch in range(epochs):
            for i in np.roll(range(len(rows)), turn).tolist():
                seconds, cpu, others = run_epoch(loaders[i], n)
                rows[i].times['later' if epoch else 'first'].append(seconds)
                if epoch: rows[i].times['cpu'].append(cpu)
                wall, foreign = wall + seconds, foreign + others
            turn += 1
    return foreign/wall/os.cpu_count()

def pick_best(rows): return min(rows, key=lambda row: min(row.times['later'])) # its best epoch, which others disturbed least

# ---- Tables

def setting():
    "The machine, and what of it concerns pictures"
    jpeg = features.version_feature('libjpeg_turbo')
    return (f'{machine()}; {listed(versions())}, libjpeg-turbo {jpeg} in Pillow; '
            f'{torch.get_num_threads()} torch threads in the main process')

def times_faster(own, others): # turn by turn
    return statistics.median(b/a for a, b in zip(own, others))

def fastai_and_best(rows, part='later'):
    "Of the libraries' loaders"
    peers = [o for o in rows if not o.ours and not o.by_hand]
    median = lambda row: statistics.median(row.times[part])
    return min((o for o in peers if o.name == 'fastai'), key=median), min(peers, key=median)

def bar_rows(kind, rows, n):
    "Ours against fastai, and where there is a bar against the best other, in first and later epochs"
    ours = next(o for o in rows if o.ours)
    for part, when in dict(first='epoch 1', later='later').items():
        for peer, who in zip(fastai_and_best(rows, part), ('fastai', 'best')):
            if (key := f'{kind}, {when}, {who}') not in BARS: continue
            own, their = ours.times[part], peer.times[part]
            yield ratio_row(key, [b/a for a, b in zip(own, their)], f'{n/statistics.median(own):.0f} img/s',
                            f'{peer.name}: {n/statistics.median(their):.0f} img/s')

def show_table(rows, n):
    fastai, best = fastai_and_best(rows)
    print('| loader | settings | building, s | building and epoch 1, img/s | to fastai | epoch 1, img/s | to fastai '
          f'| later epochs, img/s (range) | to fastai | to best peer: {best.name} | CPU ms a picture | detail |\n{"|---"*12}|')
    for row in rows:
        t = row.times
        print(f"| {row.name} | {row.settings} | {statistics.median(t['build']):.3f} "
              f"| {n/statistics.median(row.from_nothing):.0f} | {times_faster(row.from_nothing, fastai.from_nothing):.2f}x "
              f"| {row.rate(n, 'first'):.0f} | {times_faster(t['first'], fastai.times['first']):.2f}x "
              f"| **{row.rate(n, 'later'):.0f}** ({n/max(t['later']):.0f} to {n/min(t['later']):.0f}) "
              f"| {times_faster(t['later'], fastai.times['later']):.2f}x | {times_faster(t['later'], best.times['later']):.2f}x "
              f"| {statistics.median(t['cpu'])/n*1000:.2f} | {row.pixels['detail']:.1f} |")

def compare(folder, n, args, scratch):
    "Measure all loaders on one set of pictures, and print their table"
    sizes = [o.stat().st_size for o in sorted((folder/'train').rglob('*.jpg'))]
    own, families = our_rows(scratch), [fastai_rows(), torchvision_rows(), timm_rows(), draft_rows()]
    tried = [row for rows in families for row in rows]
    for row in own + tried: row.pixels = check(row, folder, args.workers, n)
    check_alike(own + tried)
    measure(tried, folder, args.workers, n, 1, args.epochs)
    chosen = dict.fromkeys([tried[0], *map(pick_best, families)]) # fastai as documented is always shown
    rows = own + [replace(row, times=fresh_times()) for row in chosen]
    busy = measure(rows, folder, args.workers, n, args.rounds, args.epochs)
    print(f"\n**{folder.name.partition('_')[0]}**: {n} JPEG files of {statistics.median(sizes)/1000:.0f} kB, "
          f'{args.workers} workers, {args.rounds} rounds of {args.epochs} epochs; '
          f'other programs took {busy:.0%} of the processors meanwhile\n')
    show_table(rows, n)
    kept = {o.stat().st_ino: o.stat().st_blocks*512 for o in next(Path(scratch).glob('decoded_*')).rglob('*') if o.is_file()}
    print(f'\nThe files take {sum(sizes)/1e6:.0f} MB, a decoded cache of them {sum(kept.values())/1e6:.0f} MB.')
    print('\nSettings tried, with the CPU ms a picture and the best img/s of their later epochs:\n')
    for o in tried:
        print(f"- {o.name}, {o.settings}: {statistics.median(o.times['cpu'])/n*1000:.2f}, {n/min(o.times['later']):.0f}")
    found = [dict(name=o.name, settings=o.settings, stage=stage, folder=folder.name, pictures=n, seconds=o.times, pixels=o.pixels)
             for stage, part in (('settings', tried), ('table', rows)) for o in part]
    return found, rows

# ---- Accuracy

TEXTURES = dict(upright=lambda u, v: np.sin(u), level=lambda u, v: np.sin(v), slanted=lambda u, v: np.sin(.7*(u + v)),
                checks=lambda u, v: 1.4*np.sin(u)*np.sin(v), diamonds=lambda u, v: np.sin(.7*(u + v)) + np.sin(.7*(u - v)),
                zigzag=lambda u, v: np.sin(u + 1.5*np.sin(v/2))) # a mirrored one is of the same class

def draw_texture(kind, i, width=400, height=300):
    "A fine pattern, a few of the network's pixels wide, under clouds, noise and colours that say nothing about the class"
    rng = np.random.default_rng([11, list(TEXTURES).index(kind), i])
    v, u = np.mgrid[:height, :width].astype(np.float32)*2*np.pi/rng.uniform(11, 19) + rng.uniform(0, 6, (2, 1, 1))
    clouds = sum(.8**k*random_field(rng, width, height, 3*2**k) for k in range(7))
    light = clouds/clouds.std() + rng.uniform(.2, .5)*TEXTURES[kind](u, v)
    pixels = 128 + light[..., None]*rng.uniform(15, 45, 3) + rng.uniform(-40, 40, 3) + rng.normal(0, 6, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8)

def make_textures(folder, train=60, valid=50, width=400, height=300):
    "Class folders of so many pictures each; kept when they are there"
    folder = Path(folder)/f'textures_{train}_{valid}_{width}x{height}'
    if (folder/'.complete').exists(): return folder
    def write(job):
        kind, i = job
        file = folder/('train' if i < train else 'valid')/kind/f'{i:04}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_texture(kind, i, width, height)).save(file, quality=90)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, [(kind, i) for kind in TEXTURES for i in range(train + valid)]))
    (folder/'.complete').touch()
    return folder

VARIANTS = {'scaled decoding, decoded cache': dict(cache=True), 'scaled decoding, no cache': dict(cache=False),
            'full-size decoding, no cache': dict(cache=False, decode='full')} # each is compared with what stands below it

def train_once(folder, scratch, arguments, seed):
    os.environ['IMGCLS_CACHE'] = tempfile.mkdtemp(dir=scratch)
    with contextlib.redirect_stdout(io.StringIO()):
        dls = image_dls(folder, valid='valid', size=64, bs=BS, num_workers=0, seed=seed, device='cpu', **arguments)
        learn = image_learner(dls, 'test_resnet', precision='fp32') # timm's smallest
        learn.fit_one_cycle(16, 4e-3)
        return evaluate(learn).top1

def interval(values): # 95 %, by Student's t, as if the seeds were a sample of all seeds
    return np.mean(values), stats.t.ppf(.975, len(values) - 1)*np.std(values, ddof=1)/len(values)**.5

def show_interval(values): return '{:+.2%} ± {:.2%}'.format(*interval(values))

def accuracy_rows(top1):
    "The cache against none, and the smaller size against the full one"
    cached, scaled, full = top1.values()
    return [accuracy_row('cache, accuracy', cached, scaled), accuracy_row('decoding, accuracy', scaled, full)]

def accuracy_row(key, accs, base):
    gaps = np.subtract(accs, base)
    mean, half = interval(gaps)
    equal = bool(abs(mean) <= half) and meets(key, 100*(abs(mean) + half))
    return Bar(key, show_interval(gaps), equal, f'{gaps.min():+.2%} to {gaps.max():+.2%}', '', f'{len(gaps)} seeds')

def compare_accuracy(folder, seeds, scratch):
    files = make_textures(folder)
    jobs = [(files, scratch, arguments, seed) for seed in seeds for arguments in VARIANTS.values()]
    with ProcessPoolExecutor(os.cpu_count(), get_context('spawn'), torch.set_num_threads, (1,)) as pool: # one core each
        accs = np.reshape(list(pool.map(train_once, *zip(*jobs))), (len(seeds), len(VARIANTS)))
    top1 = dict(zip(VARIANTS, accs.T.tolist()))
    print('\n**Accuracy**: test_resnet at 64x64 for 16 epochs on 360 pictures of 400x300 pixels, '
          f'{len(TEXTURES)} classes of fine patterns; top-1 on 300 others; mean of the seeds with its 95 % interval\n')
    print(f"| opening | top-1 of seeds {', '.join(map(str, seeds))} | mean | difference to the next row, seed by seed |"
          '\n|---|---|---|---|')
    for (name, accs), base in zip_longest(top1.items(), list(top1.values())[1:]):
        gap = '' if base is None else show_interval(np.subtract(accs, base))
        print(f"| {name} | {', '.join(f'{o:.2%}' for o in accs)} | {show_interval(accs).lstrip('+')} | {gap} |")
    return top1

# ---- Command line

def read_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', help='where the pictures are made, and found the next time; default: a temporary folder')
    parser.add_argument('--small', type=int, default=640, help='pictures of 500x375, a multiple of 32, 0: none (default 640)')
    parser.add_argument('--large', type=int, default=64, help='pictures of 4000x3000, a multiple of 32, 0: none (default 64)')
    parser.add_argument('--epochs', type=int, default=3, help='of each loader in a round, at least 2 (default 3)')
    parser.add_argument('--rounds', type=int, default=3, help='times that every loader is built anew (default 3)')
    parser.add_argument('--workers', type=int, default=2, help='worker processes of each loader (default 2)')
    parser.add_argument('--accuracy', action='store_true', help='train small networks in place of timing')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each kind for --accuracy, at least 2 (default 3)')
    parser.add_argument('--json', help='file for every single measurement')
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args = parser.parse_args()
    if args.small % BS or args.large % BS:
        parser.error(f"--small {args.small} and --large {args.large} must be multiples of {BS}: "
                     "timm's training loader always leaves out a last batch that is not full.")
    if args.epochs < 2: parser.error(f'--epochs {args.epochs}: there must be a first epoch and a later one.')
    if args.seeds < 2: parser.error(f'--seeds {args.seeds}: one run has no spread.')
    return args

def main():
    args = read_args()
    result, bars = dict(machine=setting(), arguments=vars(args), measurements=[], top1={}), []
    print(result['machine'])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.folder or scratch)
        if args.accuracy:
            result['top1'] = compare_accuracy(folder, range(1, args.seeds + 1), tempfile.mkdtemp(dir=scratch))
            bars += accuracy_rows(result['top1'])
        else:
            for kind, n, *shape in ('small', args.small, 500, 375, .72), ('large', args.large, 4000, 3000, .8):
                if not n: continue
                found, rows = compare(make_pictures(folder, n, *shape), n, args, tempfile.mkdtemp(dir=scratch))
                result['measurements'] += found
                bars += bar_rows(kind, rows, n)
    save_rows(args.bars, bars)
    if args.json: Path(args.json).write_text(json.dumps(result, indent=1), 'utf-8')


if __name__ == '__main__': main()
