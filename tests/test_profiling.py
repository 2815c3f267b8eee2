"The profile: what was made slow is what it names, and nothing is where it was not before"
import random
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

import imgcls_nb.data as data
from imgcls_nb.callbacks.timing import StepTimer
from imgcls_nb.callbacks.trackers import CSVTable, TensorBoard
from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.learner import image_learner
from imgcls_nb.profiling import Profile, profile

pytestmark = pytest.mark.alone

@pytest.fixture(scope='module')
def dls(shapes): return image_dls(shapes, size=32, bs=16, aug='light', device='cpu', num_workers=0) # 3 steps an epoch

def fit(learn, n=1):
    with learn.no_bar(): learn.fit_one_cycle(n)
    return learn

def opt_state(learn):
    states = (o for depth in learn.opt.state_dict()['state'] for o in depth)
    return [v.clone() for o in states for v in o.values() if hasattr(v, 'clone')]

def everything(learn): # plain values of what training moves
    random_state = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    dl = learn.dls.train
    return dict(random=random_state, clock=(learn.clock.epochs, learn.clock.steps), loader=(dl.epoch, dl.size, list(dl.lost)),
                loaders=list(map(id, learn.dls.loaders)), cbs=[(id(o), o.name) for o in learn.cbs], plan=learn.plan,
                values=dict(learn.epoch_metrics.values), logger=learn.logger, mode=learn.model.training, lr=learn.lr,
                grads=[o.grad is None for o in learn.model.parameters()], hooks=len(learn.model._forward_hooks),
                hypers=[dict(o) for o in learn.opt.hypers] if learn.opt else None)

@pytest.mark.parametrize('how', [dict(), dict(mix='mixup', precision='bf16', drop_rate=.3)], ids=['plain', 'mixed'])
def test_nothing_changes(dls, tmp_path, how):
    learn, twin = (image_learner(dls, 'test_resnet', run=tmp_path/o, **how) for o in ('run', 'twin'))
    for i in (0, 1) if not how else (1,): # before any training, and after some
        if i and not learn.clock.steps: fit(learn), fit(twin)
        before, opt = everything(learn), opt_state(learn) if learn.opt else None
        profile(learn, 4)
        assert everything(learn) == before
        if i: assert all(torch.equal(a, b) for a, b in zip(opt, opt_state(learn)))
        else: assert learn.opt is None and not learn.run_folder.exists
        for o in (learn, twin): fit(o)
        a, b = learn.model.state_dict(), twin.model.state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert [o['event'] for o in learn.run_folder.events()] == [o['event'] for o in twin.run_folder.events()]

def test_what_grows_or_varies_stays(shapes):
    for how in (dict(start_size=24), dict(sizes=(24, 32))):
        dls = image_dls(shapes, size=32, bs=16, device='cpu', num_workers=0, **how)
        learn = image_learner(dls, 'test_resnet')
        before = everything(learn)
        profile(learn, 4)
        assert everything(learn) == before

def test_loader_processes_end(shapes):
    learn = image_learner(image_dls(shapes, size=32, bs=16, device='cpu', num_workers=1), 'test_resnet')
    before = {o.pid for o in mp.active_children()}
    p = profile(learn, 4)
    deadline = time.monotonic() + 10
    while {o.pid for o in mp.active_children()} - before and time.monotonic() < deadline: time.sleep(.05)
    assert {o.pid for o in mp.active_children()} == before and p.num_workers == 1 and p.loader_busy is None

def test_writers_and_judges_are_no_part_of_it(dls, tmp_path):
    judges = [EarlyStoppingCallback('top1'), SaveModelCallback('top1')]
    writers = [TensorBoard(tmp_path/'tb', graph=True), CSVTable(tmp_path/'o.csv'), StepTimer()]
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run', cbs=[*judges, *writers, GradientAccumulation(32)])
    p = profile(learn, 4)
    assert not list(tmp_path.iterdir()) and p.left_out == () and learn.step_timer.steps == []
    assert p.parts['optimizer'] > 0

class Locked(Callback):
    def __init__(self): self.lock = threading.Lock()
    def after_pred(self): time.sleep(0)

def test_what_cannot_be_copied_is_named(dls):
    p = profile(image_learner(dls, 'test_resnet', cbs=[Locked()]), 4)
    assert p.left_out == ('Locked',) and 'measured without Locked' in repr(p)

def test_an_error_of_a_step_is_the_users(dls):
    class Defect(Callback):
        def after_pred(self): raise ValueError('defect')
    learn = image_learner(dls, 'test_resnet', cbs=[Defect()])
    before = everything(learn)
    with pytest.raises(ValueError, match='defect'): profile(learn, 4)
    assert everything(learn) == before
    assert profile(learn, 4, without=[Defect]).training > 0

# What was made slow is what it names

@pytest.fixture
def slow_pictures(monkeypatch):
    item = data.BatchMaker.item
    def slow(*args):
        time.sleep(.004)
        return item(*args)
    monkeypatch.setattr(data.BatchMaker, 'item', slow)

class Slow(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.fc = seconds, nn.Linear(3, 3)
    def forward(self, x):
        time.sleep(self.seconds)
        return self.fc(x.mean((2, 3)))

class Points: # pictures that are there at once
    def __len__(self): return 40
    def __getitem__(self, i): return torch.zeros(3, 8, 8), i % 3

def quick(model, **kwargs): # fastai's own learner, without a clock, on loaders without a cache
    dls = DataLoaders(*(DataLoader(Points(), bs=16, shuffle=o, num_workers=0) for o in (True, False)))
    return Learner(dls, model, nn.CrossEntropyLoss(), **kwargs)

def says(p): return ' '.join(p.advice)

def test_a_slow_loader(dls, slow_pictures):
    learn = image_learner(dls, 'test_resnet')
    learn.model, learn.splitter = Slow(.005), lambda m: [list(m.parameters())]
    p = profile(learn, 6)
    assert p.bound == 'data' and p.data_wait > .7 and p.loader < 250 < p.step and p.loader_busy < .5
    assert p.advice[0].startswith('The loader is what training waits for')
    assert 'waits for a disk or a network' in p.advice[1] and 'num_workers=' in p.advice[1]
    assert 'The network' not in says(p)

def test_a_slow_model():
    p = profile(quick(Slow(.05)), 4)
    assert p.bound == 'step' and p.data_wait < .15 and p.parts['forward'] >= 45
    assert 'The network takes' in says(p) and 'loader' not in says(p)

def test_a_model_that_wants_larger_batches(): # it takes as long for half of them
    p = profile(quick(Slow(.05)), 4)
    assert p.step > 1.6*p.step_half and 'Try bs=32' in says(p)

def test_a_slow_optimizer():
    def opt_func(*args, **kwargs):
        opt = torch_opt(*args, **kwargs)
        opt.cbs.append(lambda p, **kw: time.sleep(.05)) # for each parameter
        return opt
    from fastai.optimizer import SGD as torch_opt
    p = profile(quick(Slow(.01), opt_func=opt_func), 4)
    assert p.parts['optimizer'] > 50 and 'The optimizer takes' in says(p) and 'The network takes' not in says(p)

class Idler(Callback):
    def after_pred(self): time.sleep(.05)

def test_a_slow_callback():
    p = profile(quick(Slow(.005), cbs=[Idler()]), 4)
    assert p.parts['rest'] >= 45 and 'neither the network nor the optimizer' in says(p)

def test_the_parts_are_the_step():
    p = profile(quick(Slow(.03)), 4)
    assert list(p.parts) == ['forward', 'backward', 'optimizer', 'rest'] and all(o >= 0 for o in p.parts.values())
    assert sum(p.parts.values()) == pytest.approx(16_000/p.step, rel=.35)
    assert sum(share for _, share, _ in p.operators) <= 1.001 and len(p.operators) <= 8

def test_any_learner():
    learn = quick(Slow(.01))
    state = torch.get_rng_state()
    p = profile(learn, 4)
    assert learn.opt is None and p.source_pixels is None and not p.cached and p.bound == 'step'
    assert torch.equal(torch.get_rng_state(), state)

def test_facts(dls, capfd):
    p = profile(image_learner(dls, 'test_resnet', precision='bf16', channels_last=True), 4)
    assert (p.bs, p.size, p.device, p.num_workers, p.half_precision, p.channels_last) == (16, (32, 32), 'cpu', 0, True, True)
    assert p.source_pixels == 48*48 and p.cached
    p = profile(image_learner(dls, 'test_resnet', precision='fp32', channels_last=False), 4)
    assert (p.half_precision, p.channels_last) == (False, False) and capfd.readouterr().err == ''

@pytest.mark.parametrize('n', [0, 3, -1])
def test_too_few_steps(dls, n):
    with pytest.raises(InputError, match=f'n_steps={n} are too few'): profile(None, n)

# Advice is a function of numbers

P = Profile(training=90., data_wait=.02, loader_first=500., loader=500., loader_busy=.9, step=100., step_beside=100.,
            step_half=98., parts=dict(forward=30., backward=60., optimizer=5., rest=5.), operators=[('mm', .5, 3.)], bs=32,
            size=(224, 224), source_pixels=5e5, cached=True, device='cpu', cores=8, threads=8, num_workers=0,
            half_precision=True, channels_last=True, could=dict(precision='bf16', channels_last=True))
WAITS = dict(data_wait=.6, loader=50., loader_first=50.)

@pytest.mark.parametrize('given, first, also', [
    (dict(), 'The network takes 90% of a step', None),
    (dict(parts=dict(forward=10., backward=10., optimizer=8., rest=8.)), 'Nothing stands out', None),
    (dict(half_precision=False), "faster at bf16: precision='bf16'", 'The network'),
    (dict(half_precision=False, could=dict(precision='fp32')), 'The network', None),
    (dict(channels_last=False), 'channels_last=True', None),
    (dict(step_half=60.), 'A batch of 32 is small.*1.7 times.*bs=64', None), (dict(step_half=None), 'The network', None),
    (dict(parts=dict(forward=10., backward=20., optimizer=25., rest=1.)), 'The optimizer takes 45%', None),
    (dict(parts=dict(forward=10., backward=10., optimizer=2., rest=20.)), '48% of a step is neither', None),
    (dict(loader_first=100.), 'The network', 'The first epoch is slower than the rest, 100 pictures a second against 500'),
    (dict(loader_first=100., cached=False), 'The network', None),
    (dict(num_workers=4, step_beside=60.), 'The network',
     '1.7 times as long.*4 loader processes and 8 threads share 8 cores. Try num_workers=0'),
    (dict(num_workers=4, threads=6, step_beside=60.), 'The network', 'Try num_workers=2'),
    (dict(num_workers=4, step_beside=95.), 'The network', None),
    (dict(num_workers=4, step_beside=60., device='cuda'), 'The network', None),
    (dict(threads=16), 'The network', r'16 threads, but there are 8 cores.*set_num_threads\(8\)'),
    (WAITS, 'The loader is what training waits for, 60% of the time: it makes 50.*could take 100', 'All cores have work already'),
    (dict(data_wait=.3), 'The loader works between the steps, 30% of the time', 'All cores'),
    (WAITS | dict(threads=4), 'waits for', '4 of 8 cores are free: num_workers=2 '),
    (WAITS | dict(threads=7), 'waits for', '1 of 8 cores is free: num_workers=1 '),
    (WAITS | dict(device='cuda', num_workers=2, loader_busy=None), 'waits for', '5 of 8 cores are free: num_workers=4 '),
    (WAITS | dict(device='cuda', num_workers=2, loader=5., loader_busy=None), 'waits for', 'num_workers=7 '),
    (WAITS | dict(device='cuda', num_workers=8, loader_busy=None), 'waits for', 'All cores have work'),
    (WAITS | dict(loader_busy=.1), 'waits for', 'computes 10% of its time and waits for a disk.*num_workers=8'),
    (WAITS | dict(cached=False), 'waits for', 'cache=True'),
    (WAITS | dict(cached=False, source_pixels=12e6), 'waits for', '12.0 megapixels, 239 times.*Copies with 896 pixels'),
    (WAITS | dict(source_pixels=12e6), 'waits for', 'All cores'),
    (WAITS | dict(half_precision=False, step_half=10.), 'waits for', 'All cores')], ids=str)
def test_advice(given, first, also):
    advice = replace(P, **given).advice
    assert re.search(first, advice[0]), advice
    if also: assert any(re.search(also, o) for o in advice[1:]), advice
    else: assert len(advice) == 1 + sum('The network takes' in o for o in advice[1:]), advice
    assert all(o[-1] == '.' and len(o) < 300 for o in advice)

def test_shown():
    p = replace(P, left_out=('A<b>',))
    text, html = repr(p), p._repr_html_()
    assert all(o in text for o in ('32 pictures of 224 x 224', 'steps alone', '100.0', 'mm', 'forward', *p.advice))
    assert html.count('<table>') == 3 and 'A&lt;b&gt;' in html and '<b>' not in html
