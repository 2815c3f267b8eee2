"Schedules: values worked out by hand, those of torch, timm and fastai where they mean the same, and nothing but the step decides"
import json
import math
import random
from dataclasses import asdict
from functools import partial

import fastai.callback.schedule
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler, StepLRScheduler
from torch import nn
from torch.optim import lr_scheduler as torch_schedulers

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.core import InputError
from imgcls_nb.optim import make_optimizer
from imgcls_nb.schedules import FADES, SCHEDULES, LRSchedule, Schedule, fit_scheduled

ARGS = dict(cosine={}, linear={}, polynomial=dict(power=3), constant={}, step=dict(step_epochs=2.4, gamma=.5),
            multi_step=dict(milestones=[2, 5], gamma=.1), piecewise=dict(decay_epochs=[2, 5], values=[.1, .03, .02]),
            exponential=dict(gamma=.9), one_cycle={})
WARM = [o for o in SCHEDULES if o != 'one_cycle']

def make(name='cosine', n_epoch=8, s=5, args=None, **kwargs):
    return Schedule(name, kwargs.pop('lr', .1), n_epoch, s, args=ARGS.get(name, {}) if args is None else args, **kwargs)

def rates(schedule): return [schedule(o) for o in range(schedule.steps)]

def test_every_shape_is_tested(): assert ARGS.keys() == SCHEDULES.keys()

# By hand: 8 epochs of 5 steps

@pytest.mark.parametrize('name, kwargs, want', [
    ('constant', {}, {0: .1, 39: .1}), ('cosine', {}, {0: .1, 20: .05, 10: .05*(1 + 2**-.5), 40: 0, 99: 0}),
    ('cosine', dict(lr_min=.02), {0: .1, 20: .06, 40: .02}), ('linear', {}, {0: .1, 4: .09, 20: .05, 39: .0025, 40: 0}),
    ('linear', dict(lr_min=.05), {0: .1, 20: .075, 40: .05}), ('polynomial', {}, {0: .1, 20: .0125, 40: 0}),
    ('polynomial', dict(args={}), {20: .025}), ('polynomial', dict(args=dict(power=.5)), {30: .05}),
    ('step', {}, {0: .1, 11: .1, 12: .05, 23: .05, 24: .025, 39: .0125}), ('step', dict(lr_min=.03), {12: .05, 24: .03, 39: .03}),
    ('step', dict(args=dict(step_epochs=3)), {14: .1, 15: .01, 30: .001}),
    ('step', dict(args=dict(step_epochs=.01, gamma=.5)), {0: .1, 1: .05, 2: .025}),
    ('multi_step', {}, {9: .1, 10: .01, 24: .01, 25: .001, 39: .001}), ('multi_step', dict(args=dict(milestones=[99])), {39: .1}),
    ('multi_step', dict(args=dict(milestones=[0, .5])), {0: .01, 1: .01, 2: .001}),
    ('piecewise', {}, {0: .1, 9: .1, 10: .03, 24: .03, 25: .02}), ('piecewise', dict(lr=None), {0: .1, 10: .03, 25: .02}),
    ('piecewise', dict(args=dict(decay_epochs=[4], values=[.1, 0.])), {19: .1, 20: 0}),
    ('piecewise', dict(args=dict(decay_epochs=[4], values=[.1, .4])), {19: .1, 20: .4}),
    ('exponential', {}, {0: .1, 5: .09, 10: .081, 35: .1*.9**7}), ('exponential', dict(by_epoch=True), {4: .1, 5: .09, 9: .09}),
    ('one_cycle', {}, {0: .004, 5: .052, 10: .1, 25: .0500005, 40: 1e-6}),
    ('one_cycle', dict(args=dict(pct_start=.5, div=10, div_final=100)), {0: .01, 20: .1, 40: .001}),
    ('cosine', dict(by_epoch=True), {0: .1, 4: .1, 5: .05*(1 + math.cos(math.pi/8)), 39: .05*(1 + math.cos(math.pi*7/8))})],
    ids=str)
def test_by_hand(name, kwargs, want):
    schedule = make(name, **kwargs)
    assert {o: schedule(o) for o in want} == {k: pytest.approx(v, abs=1e-12) for k, v in want.items()}

# Warm-up

@pytest.mark.parametrize('name', WARM)
def test_warm_up(name): # 2 epochs, 10 steps
    plain, schedule = make(name), make(name, warmup_epochs=2, warmup_lr=.02)
    assert rates(schedule)[:10] == pytest.approx([.02 + .008*o for o in range(10)])
    if name in FADES: # what is left is the same shape in less time
        rest = Schedule(name, .1, 6, 5, args=ARGS[name])
        assert rates(schedule)[10:] == pytest.approx(rates(rest))
    elif name != 'exponential': assert rates(schedule)[10:] == rates(plain)[10:], "milestones are epochs of the training"
    later = make(name, warmup_epochs=2, warmup_lr=.02, after_warmup=True)
    assert rates(later)[10:] == pytest.approx(rates(schedule)[10:] if name in FADES else rates(plain)[:30])

def test_paddleclas(): # facts about the original, with its own numbers: 20 epochs of 32 steps, 5 of warm-up
    cosine = Schedule('cosine', .0125, 20, 32, warmup_epochs=5)
    assert cosine(0) == 0 and cosine(1) == .0125/160 and cosine(160) == .0125, "the first step is at the start of the warm-up"
    for t in range(480): assert cosine(160 + t) == pytest.approx(.0125*(1 + math.cos(math.pi*t/((20 - 5)*32)))/2)
    drops = Schedule('piecewise', None, 120, 10, warmup_epochs=5, after_warmup=True,
                     args=dict(decay_epochs=[30, 60, 90], values=[.1, .01, .001, .0001]))
    changes = [o for o in range(51, drops.steps) if drops(o) != drops(o - 1)]
    assert changes == [350, 650, 950] and drops(50) == .1, "warm-up puts the milestones off"
    assert [Schedule('cosine', .1, 8, 5, warmup_epochs=o).warmup for o in (.3, .5, 1, 1.5)] == [2, 2, 5, 8]
    half = Schedule('cosine', .1, 8, 5, warmup_epochs=2, by_epoch=True)
    assert rates(half)[:11] == [0]*5 + [.05]*5 + [.1]

@pytest.mark.parametrize('kwargs, steps', [
    (dict(warmup_epochs=2), 10), (dict(warmup_epochs=.5), 2), (dict(warmup_steps=7), 7), (dict(warmup_steps=0), 0), ({}, 0),
    (dict(warmup_epochs=8), 40), (dict(warmup_epochs=99), 40), (dict(warmup_steps=99), 40)], ids=str)
def test_how_long_it_is(kwargs, steps):
    schedule = make(**kwargs)
    assert schedule.warmup == steps and schedule(0) == (0 if steps else .1)
    if steps: assert schedule(steps - 1) == pytest.approx(.1*(steps - 1)/steps)
    assert schedule(steps) == .1

# The same as others, where they mean the same

def by_torch(cls, n, *args, **kwargs): # rates of n steps
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=.1)
    scheduler, out = cls(opt, *args, **kwargs), []
    for _ in range(n):
        out.append(opt.param_groups[0]['lr'])
        opt.step()
        scheduler.step()
    return out

@pytest.mark.parametrize('ours, theirs', [
    (dict(name='cosine', lr_min=.01), (torch_schedulers.CosineAnnealingLR, 40, 40, .01)),
    (dict(name='polynomial'), (torch_schedulers.PolynomialLR, 40, 40, 3)),
    (dict(name='linear', lr_min=.05), (torch_schedulers.LinearLR, 40, 1, .5, 40)),
    (dict(name='step'), (torch_schedulers.StepLR, 40, 12, .5)),
    (dict(name='multi_step'), (torch_schedulers.MultiStepLR, 40, [10, 25])),
    (dict(name='exponential'), (torch_schedulers.ExponentialLR, 40, .9**.2))], ids=lambda o: str(o)[:40])
def test_as_torch(ours, theirs): assert rates(make(**ours)) == pytest.approx(by_torch(*theirs))

def test_warm_up_as_torch():
    def both(opt):
        warm = torch_schedulers.LinearLR(opt, 1e-9, 1., 10)
        return torch_schedulers.SequentialLR(opt, [warm, torch_schedulers.CosineAnnealingLR(opt, 30)], [10])
    assert rates(make(warmup_epochs=2)) == pytest.approx(by_torch(both, 40), abs=1e-9)

def by_timm(cls, **kwargs):
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=.1)
    scheduler = cls(opt, **kwargs)
    return [scheduler._get_lr(o)[0] for o in range(40)]

STEPS = dict(t_in_epochs=False)
PREFIX = dict(warmup_prefix=True, **STEPS)

@pytest.mark.parametrize('ours, theirs', [
    (dict(lr_min=.01), dict(cls=CosineLRScheduler, t_initial=40, lr_min=.01, **STEPS)),
    (dict(warmup_epochs=2, warmup_lr=.02, lr_min=.01),
     dict(cls=CosineLRScheduler, t_initial=30, warmup_t=10, warmup_lr_init=.02, lr_min=.01, **PREFIX)),
    (dict(name='polynomial', warmup_epochs=2), dict(cls=PolyLRScheduler, t_initial=30, power=3, warmup_t=10, **PREFIX)),
    (dict(name='step', warmup_epochs=1),
     dict(cls=StepLRScheduler, decay_t=12, decay_rate=.5, warmup_t=5, warmup_prefix=False, **STEPS)),
    (dict(name='step', warmup_epochs=1, after_warmup=True),
     dict(cls=StepLRScheduler, decay_t=12, decay_rate=.5, warmup_t=5, **PREFIX)),
    (dict(name='multi_step'), dict(cls=MultiStepLRScheduler, decay_t=[11, 26], decay_rate=.1, **STEPS))], # it looks a step ahead
    ids=lambda o: str(o)[:60])
def test_as_timm(ours, theirs): assert rates(make(**ours)) == pytest.approx(by_timm(**theirs))

# Only the step decides

@pytest.mark.parametrize('kwargs', [{}, dict(warmup_epochs=1.5), dict(by_epoch=True), dict(warmup_steps=3, after_warmup=True)])
@pytest.mark.parametrize('name', WARM)
def test_any_order_gives_the_same(name, kwargs):
    first, steps = rates(make(name, **kwargs)), list(range(40))
    random.Random(0).shuffle(steps)
    schedule = make(name, **kwargs)
    assert {o: schedule(o) for o in steps} == dict(enumerate(first))
    assert all(0 <= o <= .1 for o in first) and all(type(o) is float for o in first)
    if kwargs.get('by_epoch'): assert all(len(set(first[o:o + 5])) == 1 for o in range(0, 40, 5))

@pytest.mark.parametrize('name', SCHEDULES)
def test_through_json(name):
    schedule = make(name, lr_min=.001)
    again = Schedule(**json.loads(json.dumps(asdict(schedule))))
    assert again == schedule and rates(again) == rates(schedule)

@pytest.mark.parametrize('name', SCHEDULES)
def test_the_rate_of_the_last_step_is_drawn(name):
    line = make(name).plot().lines[0]
    assert line.get_ydata().tolist() == rates(make(name)) and line.get_xdata()[-1] == 39/5

# What cannot be

@pytest.mark.parametrize('kwargs, says', [
    (dict(name='cosin'), "schedule='cosin' is unknown. Use one of cosine, linear.*Did you mean 'cosine'"),
    (dict(name=None), 'is unknown'),
    (dict(name='poly'), "Did you mean 'polynomial'"), (dict(name='multistep'), "Did you mean 'multi_step'"),
    (dict(args=dict(gamma=.1)), "'cosine' takes no 'gamma'.*it takes: nothing"),
    (dict(name='step', args={}), 'needs step_epochs'),
    (dict(name='step', args=dict(step_epochs=3, gama=.1)), "Did you mean 'gamma'.*it takes: step_epochs, gamma"),
    (dict(args=dict(warmup_epoch=5)), "Did you mean 'warmup_epochs'"), (dict(args=dict(eta_min=5)), "takes no 'eta_min'"),
    (dict(name='multi_step', args={}), 'needs milestones'), (dict(name='piecewise', args={}), 'needs decay_epochs and values'),
    (dict(name='exponential', args={}), 'needs gamma'), (dict(name='piecewise', args=dict(values=[.1])), 'needs decay_epochs'),
    *((dict(name='multi_step', args=dict(milestones=o)), 'is no list of') for o in (30, [], 'ab', [1, 'x'], [-1, 2], [None])),
    *((dict(name='multi_step', args=dict(milestones=o)), 'must rise') for o in ([5, 2], [2, 2])),
    (dict(name='piecewise', args=dict(decay_epochs=[2, 5], values=[.1, .2])), '2 decay_epochs need 3 values, and there are 2'),
    (dict(name='piecewise', lr=.2), r'lr=0.2 and the first of values=\(0.1, 0.03, 0.02\) differ'),
    *((dict(name='step', args=dict(step_epochs=o)), 'is no number above') for o in (0, -1, 'x', None, True, float('nan'), [3])),
    (dict(name='one_cycle', args=dict(pct_start=1)), 'Give it below 1'),
    (dict(name='one_cycle', warmup_epochs=1), 'warms up by itself'),
    (dict(name='one_cycle', warmup_steps=1), 'warms up by itself'),
    *((dict(lr=o), 'lr=.*give a number that is not negative') for o in (-.1, 'x', None, float('inf'), True, slice(.1))),
    (dict(lr=0), 'lr=0: a schedule needs a full rate above zero'), (dict(lr=0.), 'above zero'),
    (dict(n_epoch=0), 'n_epoch=0: give a whole number, at least 1'), (dict(n_epoch=1.5), 'whole number'),
    (dict(s=0), 'steps_per_epoch=0'), (dict(warmup_steps=-1), 'warmup_steps=-1'),
    (dict(warmup_steps=.5), 'whole number'), (dict(warmup_epochs=-1), 'warmup_epochs=-1'),
    (dict(warmup_epochs=1, warmup_steps=5), 'say the same. Give one'),
    (dict(warmup_lr=.2), 'warmup_lr=0.2 is above the full rate, lr=0.1'),
    (dict(lr_min=.2), 'lr_min=0.2 is above')], ids=lambda o: str(o)[:60])
def test_what_cannot_be(kwargs, says):
    with pytest.raises(InputError, match=says): make(**kwargs)

# In a learner

class Numbers:
    def __len__(self): return 10
    def __getitem__(self, i): return torch.full((4,), i/10), i % 2

class Rates(Callback):
    "The rates that every batch was trained with"
    order = 90
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append([o['lr'] for o in self.opt.hypers])

def learner(*cbs, lr=.1, bs=2): # 5 steps an epoch, three groups
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    def split(m): return [list(o.parameters()) for o in m]
    dls = DataLoaders(DataLoader(Numbers(), bs=bs), DataLoader(Numbers(), bs=bs))
    return Learner(dls, model, F.cross_entropy, partial(make_optimizer, 'sgd', model), lr=lr, splitter=split, cbs=[Rates(), *cbs])

def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): fit_scheduled(learn, *args, **kwargs)
    return np.array(learn.rates.seen)

@pytest.mark.parametrize('name', WARM)
def test_every_batch_has_its_rate(name):
    seen = fit(learner(), 8, name, warmup_epochs=1.5, warmup_lr=.01, **ARGS[name])
    want = rates(make(name, warmup_epochs=1.5, warmup_lr=.01))
    assert seen.shape == (40, 3) and seen[:, 2].tolist() == want and np.allclose(seen, seen[:, 2:])

def test_groups_keep_their_ratio():
    seen = fit(learner(), 8, 'cosine', slice(.001, .1), warmup_epochs=1, warmup_lr=.01, lr_min=.02)
    assert np.allclose(seen[:, 2], rates(make(warmup_epochs=1, warmup_lr=.01, lr_min=.02)))
    assert np.allclose(seen[:, 1]/seen[:, 2], .1) and np.allclose(seen[:, 0]/seen[:, 2], .01)

def test_the_learners_rate_is_the_default():
    assert fit(learner(lr=.4), 2, 'constant').tolist() == [[.4]*3]*10
    assert fit(learner(lr=.4), 2, 'piecewise', decay_epochs=[1], values=[.3, .2]).tolist() == [[.3]*3]*5 + [[.2]*3]*5
    assert fit(learner(lr=.4), 2, 'Piecewise', decay_epochs=[1], values=[.3, .2])[0, 0] == .3
    seen = fit(learner(), 2, 'piecewise', slice(.03, .3), decay_epochs=[1], values=[.3, .15])
    assert np.allclose(seen[[0, 9]], [[.03, .03*10**.5, .3], [.015, .015*10**.5, .15]])

def test_as_fit_one_cycle():
    a, b = learner(), learner()
    seen = fit(a, 8, 'one_cycle', slice(.01, .1))
    with b.no_bar(), b.no_logging(): b.fit_one_cycle(8, slice(.01, .1), moms=(.9, .9, .9))
    assert np.allclose(seen, b.rates.seen)
    for p, q in zip(a.model.parameters(), b.model.parameters()): assert torch.allclose(p, q)

@pytest.mark.parametrize('warmup, n_epoch', [(0, 4), (1, 4), (2, 4), (4, 4), (9, 4)])
def test_as_the_combined_annealers_of_fastai(warmup, n_epoch):
    share = min(warmup/n_epoch, 1.)
    parts = [(share, fastai.callback.schedule.SchedLin(.01, .1)), (1 - share, fastai.callback.schedule.SchedCos(.1, .001))]
    parts = fastai.callback.schedule.combine_scheds(*zip(*[o for o in parts if o[0]]))
    seen = fit(learner(), n_epoch, 'cosine', .1, warmup_epochs=warmup, warmup_lr=.01, lr_min=.001)
    assert np.allclose(seen[:, 2], [parts(o/20) for o in range(20)], atol=1e-7)

class Stop(Callback):
    def after_batch(self):
        if self.training and (self.epoch, self.iter) == (1, 2): raise KeyboardInterrupt

def test_after_an_interrupt_it_starts_anew():
    learn = learner(Stop())
    with pytest.raises(KeyboardInterrupt): fit(learn, 8)
    learn.remove_cbs([*learn.cbs.filter(lambda o: isinstance(o, Stop | LRSchedule))])
    assert fit(learn, 8)[:, 2].tolist() == rates(make())

def test_gathered_gradients_do_not_slow_it_down():
    assert fit(learner(GradientAccumulation(4)), 8)[:, 2].tolist() == rates(make())

def test_it_is_recorded_and_leaves_the_learner_as_it_was():
    learn = learner()
    before = {o.name for o in learn.cbs}
    seen = fit(learn, 2, cbs=Callback())
    assert {o.name for o in learn.cbs} == before and learn.recorder.lrs == seen[:, 2].tolist()
    assert np.allclose(learn.recorder.hps['lr'], seen[:, 2])

def test_the_loaders_say_how_many_steps_there_are(): # whoever wraps them does so when the fit begins
    learn = learner(bs=5)
    with learn.no_bar(), learn.no_logging(): learn.fit(8, .1, cbs=LRSchedule(make()))
    assert np.array(learn.rates.seen)[:, 2].tolist() == rates(make(s=2))

def test_weight_decay_is_handed_on():
    learn = learner()
    fit(learn, 1, wd=.3)
    assert learn.opt.hypers[0]['wd'] == .3

@pytest.mark.parametrize('kwargs, says', [
    (dict(schedule='cosin'), "Did you mean 'cosine'"), (dict(warmup=5), "takes no 'warmup'. Did you mean 'warmup_lr'"),
    (dict(schedule='piecewise'), 'needs decay_epochs and values'),
    (dict(schedule='piecewise', values=3, decay_epochs=[1]), 'no list'),
    (dict(lr='fast'), "lr='fast' is no number"), (dict(lr=0.), 'full rate above zero'), (dict(n_epoch=0), 'n_epoch=0')], ids=str)
def test_mistakes_are_found_before_training(kwargs, says):
    learn = learner()
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(InputError, match=says): fit(learn, **dict(n_epoch=1) | kwargs)
    assert all(torch.equal(p, q) for p, q in zip(before, learn.model.parameters()))
