"""Fashion-MNIST from nothing to 94.0 % of its test pictures: this package, and fastai with three settings.

Every arm is a process of its own that uses all cores. The processes take turns: while one runs the others are stopped, and only
an arm's own running time counts, so whatever else the machine does meets all of them alike. Imports are not in the time; reading
the data, building the network and judging all 10,000 test pictures after every epoch are.
"""
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

GOAL = .94
SIZES = {'imgcls_nb': None, 'fastai, 28 px, 5 epochs': (28, 5), 'fastai, 28 px, all the time': (28, None),
         'fastai, 56 px, all the time': (56, None)} # size and epochs; None: as many as fit

# ---- The arms, each in its own process

NET = dict(arch='resnet18', layers=[1, 1, 1, 1], channels=[64, 128, 192, 256], in_chans=1, stem_stride=2)
EPOCHS, LR = 20, 8e-3

def train_ours(report, folder, cap):
    from imgcls_nb.core import Preprocess
    from imgcls_nb.data import image_dls
    from imgcls_nb.datasets import named_dataset
    from imgcls_nb.learner import image_learner
    data = named_dataset('fashion_mnist')
    report(event='start')
    pre = Preprocess(crop=(28, 28), resize_short=28, mean=(.286,), std=(.353,))
    dls = image_dls(data, size=28, bs=256, valid_bs=500, preprocess=pre, drop_last=True, device='cpu',
                    aug=[('RandomShift', dict(pixels=2, fill=0)), ('RandomHorizontalFlip', {})])
    learn = image_learner(dls, **NET, opt='nmuon', wd=.05, label_smoothing=.1, cbs=[both_ways(), judge(report)])
    learn.fit_scheduled(EPOCHS, 'linear', LR, warmup_epochs=.2*EPOCHS)

def train_fastai(report, folder, cap, size, epochs):
    import fastai.vision.all as fv
    def learner():
        dls = fv.ImageDataLoaders.from_folder(folder, train='train', valid='valid', device='cpu', item_tfms=fv.Resize(size),
                                              batch_tfms=[fv.Flip(), fv.Normalize.from_stats(*fv.imagenet_stats)])
        return fv.vision_learner(dls, fv.resnet18, pretrained=False, metrics=fv.accuracy, cbs=[judge(report)])
    if epochs is None: epochs = how_many_fit(learner(), cap)
    report(event='start')
    with (learn := learner()).no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs)

def how_many_fit(learn, cap, steps=40): # not in the time; the median, for the process may be stopped between two steps
    from itertools import islice
    learn.create_opt()
    times = [time.perf_counter()]
    for x, y in islice(learn.dls.train, steps):
        learn.loss_func(learn.model(x), y).backward()
        learn.opt.step()
        learn.opt.zero_grad()
        times.append(time.perf_counter())
    step = statistics.median(b - a for a, b in zip(times, times[1:]))
    return max(1, int(.9*cap/(1.08*step*len(learn.dls.train)))) # of an epoch about 8 % is judging

def judge(report):
    "A callback that reports the share of right answers after each epoch, the same for all"
    from fastai.callback.core import Callback
    class Judge(Callback):
        order = 90
        def before_validate(self): self.right = self.seen = 0
        def after_pred(self):
            if self.training: return
            self.right += (self.pred.argmax(1) == self.y).sum().item()
            self.seen += len(self.y)
        def after_epoch(self): report(event='epoch', top1=self.right/self.seen)
    return Judge()

def both_ways():
    "A callback that judges a picture and its mirror image together"
    from fastai.callback.core import Callback
    class BothWays(Callback):
        def after_pred(self):
            if not self.training: self.learn.pred = self.pred + self.model(self.x.flip(-1))
    return BothWays()

def main(name, folder, cap):
    sys.stdout.flush()
    lines = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1) # what libraries print goes elsewhere
    report = lambda **event: print(json.dumps(event), file=lines, flush=True)
    if SIZES[name]: train_fastai(report, Path(folder), float(cap), *SIZES[name])
    else: train_ours(report, Path(folder), float(cap))

# ---- The referee

class Arm:
    "A process that is stopped but for its turns; what it prints is stamped with its own running time"
    def __init__(self, command, **kwargs):
        pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.process = subprocess.Popen(command, start_new_session=True, **pipes, **kwargs)
        self.ran, self.begun, self.epochs, self.unread = 0., None, [], b''
        self._signal(signal.SIGSTOP)

    @property
    def seconds(self): return 0. if self.begun is None else self.ran - self.begun

    def take_turn(self, seconds, cap): # whether it wants another
        self._signal(signal.SIGCONT)
        start, before, open_ = time.monotonic(), self.ran, True
        while open_ and (left := seconds - (self.ran - before)) > 0 and self.seconds < cap:
            there, *_ = select.select([self.process.stdout], [], [], min(left, cap - self.seconds))
            self.ran = before + time.monotonic() - start
            if there: open_ = self._read()
        if open_ and self.seconds < cap: self._signal(signal.SIGSTOP)
        else: self.close()
        return self.process.returncode is None

    def _read(self):
        data = os.read(self.process.stdout.fileno(), 2**16)
        *lines, self.unread = (self.unread + data).split(b'\n')
        for event in map(json.loads, lines):
            if event['event'] == 'start': self.begun = self.ran
            else: self.epochs.append((self.seconds, event['top1']))
        return bool(data)

    def _signal(self, number):
        try: os.killpg(self.process.pid, number)
        except ProcessLookupError: pass

    def close(self):
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

def compete(arms, turn, cap, show=print):
    "Let arms take turns until all have ended or used up their time"
    going = dict(arms)
    try:
        while going:
            for name, arm in list(going.items()):
                n = len(arm.epochs)
                if not arm.take_turn(turn, cap): del going[name]
                for s, top1 in arm.epochs[n:]: show(f'{name}: {top1:.2%} after {s:.0f} s')
    finally:
        for arm in going.values(): arm.close()

def first_at(epochs, goal=GOAL): return next((s for s, top1 in epochs if top1 >= goal), None)

def table(result, cap):
    "The lines to print of `{name: [(seconds, top1), ...]}`, ours first"
    yield f'| arm | seconds to {GOAL:.1%} | best top-1 | after | epochs |\n|---|---|---|---|---|'
    for name, epochs in result.items():
        reached, (s, best) = first_at(epochs), max(epochs, key=lambda o: o[1], default=(0, 0))
        yield f"| {name} | {'not reached' if reached is None else f'{reached:.0f}'} | {best:.2%} | {s:.0f} s | {len(epochs)} |"
    (ours, *_), *others = result.items()
    mine, theirs = first_at(result[ours]), min((o for _, e in others if (o := first_at(e))), default=None)
    if mine is None: yield f'\n{ours} did not reach {GOAL:.1%}.'
    elif others: yield (f'\n{ours} is {theirs/mine:.1f} times as fast as the best of the others.' if theirs else
                        f'\nNone of the others reached it in {cap:.0f} s: {ours} is more than {cap/mine:.1f} times as fast.')

def write_files(folder):
    "Fashion-MNIST as class folders of PNG files"
    from PIL import Image

    from imgcls_nb.datasets import named_dataset
    from imgcls_nb.plan import DataPlan
    from imgcls_nb.sources import find_pictures
    for part, pics in zip(('train', 'valid'), find_pictures(DataPlan(str(named_dataset('fashion_mnist'))))):
        for o in pics.vocab: (folder/part/o.replace('/', '-')).mkdir(parents=True, exist_ok=True)
        for i in range(len(pics)):
            file = folder/part/pics.vocab[pics.labels[i]].replace('/', '-')/f'{i:05}.png'
            if not file.exists(): Image.fromarray(pics.source(i)).save(file)
    return folder

def compare_fashion(names, folder, minutes=25, turn=20):
    "Run some of the arms, print their table"
    cap, env = 60*minutes, {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'}
    folder = write_files(Path(folder)/'fashion_mnist')
    arms = {o: Arm([sys.executable, __file__, o, str(folder), str(cap)], env=env, stderr=subprocess.DEVNULL) for o in names}
    compete(arms, turn, cap, show=lambda line: print(line, file=sys.stderr, flush=True))
    result = {k: o.epochs for k, o in arms.items()}
    print(f'\n**fashion**: 60,000 training pictures, judged on the 10,000 test pictures after every epoch, {cap:.0f} s at most\n')
    for line in table(result, cap): print(line)
    return result


if __name__ == '__main__': main(*sys.argv[1:])
