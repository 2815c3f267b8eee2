"Label mixing: the label's weight is the pasted area, everything drawn follows from seed and step, and any loss will do"
import random
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelTrainException,
)
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from torch import nn

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.callbacks.clock import Clock, EpochMetrics
from imgcls_nb.callbacks.mixing import MixBatch
from imgcls_nb.callbacks.precision import Precision
from imgcls_nb.callbacks.progress import EpochTable
from imgcls_nb.core import InputError
from imgcls_nb.mixing import MIX_OPS, Mix, Mixer, cutmix, draw_cutmix, draw_fmix, mix_ops, mixup, neighbours
from imgcls_nb.samplers import part_of

OPS, PASTING = list(MIX_OPS), ['CutMix', 'FMix']
ALL = [('Mixup', dict(alpha=1., prob=.25)), ('CutMix', dict(prob=.3)), ('FMix', dict(prob=.2))] # a quarter is left alone
SIZES = [(8, 8), (7, 13), (1, 9), (33, 20), (1, 1)]

def numbered(n, h, w): # picture i is all i
    return torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(n, 3, h, w).contiguous()

def same(a, b): return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))

# The weight of a label is the share of the picture that carries it

@pytest.mark.parametrize('hw', SIZES, ids=str)
@pytest.mark.parametrize('op', PASTING)
@pytest.mark.parametrize('alpha', [.2, 1., 5.])
def test_the_pasted_area_is_the_labels_weight(op, hw, alpha):
    mixer, x, seen = Mixer([(op, dict(alpha=alpha))], 3), numbered(5, *hw), set()
    for step in range(100):
        mix = mixer.draw(step, 5, hw)
        out = mix.apply(x)
        for i, j in enumerate(mix.perm):
            own, partners = ((out[i] == k).sum().item()/out[i].numel() for k in (i, j))
            assert own == (1 if i == j else mix.lam) and partners == pytest.approx(1 if i == j else mix.weights[1], abs=1e-15)
        seen.add(mix.lam)
    assert len(seen) > min(20, hw[0]*hw[1])//2 and min(seen) >= 0 and max(seen) <= 1

@pytest.mark.parametrize('op', OPS)
def test_soft_targets_are_weighted_as_the_pictures(op): # a picture that is its own one-hot label
    x = torch.eye(6)[:, :, None, None].expand(6, 6, 12, 12)
    for step in range(50):
        mix = Mixer(op, 1).draw(step, 6, (12, 12))
        target = sum(w*F.one_hot(o, 6) for w, o in zip(mix.weights, (torch.arange(6), mix.partner(torch.arange(6)))))
        assert torch.allclose(mix.apply(x).mean((2, 3)), target, atol=1e-6)

def test_mixup_as_published():
    x, perm = torch.randn(4, 3, 5, 5), torch.tensor([2, 0, 3, 1])
    for lam in (0., .1, .5, .9, 1.): assert torch.allclose(mixup(x, perm, lam), x*lam + x[perm]*(1 - lam), atol=1e-6)
    assert torch.equal(mixup(x, perm, 1.), x) and torch.equal(mixup(x, perm, 0.), x[perm])
    assert torch.equal(mixup(x, torch.arange(4), .37), x), "a picture mixed with itself is itself, to the bit"

class Given: # a generator that gives what it is told
    def __init__(self, lam, *centre): self.lam, self.centre, self.rng = lam, list(centre), np.random.default_rng(0)
    def beta(self, a, b): return self.lam
    def integers(self, n): return self.centre.pop(0)
    def standard_normal(self, size): return self.rng.standard_normal(size)

@pytest.mark.parametrize('lam, centre, box, left', [
    (.75, (32, 32), (16, 16, 48, 48), .75), (.75, (0, 0), (0, 0, 16, 16), 15/16), (.75, (63, 32), (47, 16, 64, 48), 1 - 17/128),
    (1., (5, 5), (5, 5, 5, 5), 1.), (0., (32, 32), (0, 0, 64, 64), 0.), (0., (0, 0), (0, 0, 32, 32), .75)])
def test_boxes(lam, centre, box, left): assert draw_cutmix(Given(lam, *centre), (64, 64)) == (left, box)

@pytest.mark.parametrize('lam', [0., .01, .3, .5, .999, 1.])
@pytest.mark.parametrize('hw', SIZES, ids=str)
def test_fmix_keeps_as_many_pixels_as_asked(hw, lam):
    got, mask = draw_fmix(Given(lam), hw)
    assert mask.shape == hw and mask.sum() == round(lam*hw[0]*hw[1]) and got == mask.mean()

def test_fmix_shapes_are_smooth(): # how often neighbours differ
    def edges(power):
        masks = [draw_fmix(Given(.5), (48, 48), decay_power=power)[1] for _ in range(5)]
        return np.mean([np.diff(m, axis=a).mean() for m in masks for a in (0, 1)])
    assert edges(5) < edges(3) < edges(2) < edges(1) and edges(3) < .06 < .25 < edges(.1)

def test_boxes_lie_anywhere():
    rng = np.random.default_rng(0)
    covered = sum(cutmix(numbered(2, 16, 16), [1, 0], draw_cutmix(rng, (16, 16))[1])[0, 0] for _ in range(2000))/2000
    assert torch.allclose(covered, covered.flip(0), atol=.05) and torch.allclose(covered, covered.T, atol=.05)
    assert covered.min() > .1, "corners have their turn too"

# Which batches are mixed, and how: a function of seed and step

def test_each_op_gets_its_share():
    mixer, n = Mixer(ALL, 42), 2000
    drawn = [mixer.draw(step, 4, (4, 4)).op for step in range(n)]
    for op, p in (('Mixup', .25), ('CutMix', .3), ('FMix', .2), (None, .25)):
        assert abs(drawn.count(op) - n*p) < 4.5*(n*p*(1 - p))**.5, op

@pytest.mark.parametrize('alpha', [.2, 1., 4.])
def test_shares_follow_beta(alpha): # its mean is 1/2, its variance 1/(8 alpha + 4)
    lams = np.array([Mixer([('Mixup', dict(alpha=alpha))], 7).draw(step, 2, (4, 4)).lam for step in range(2000)])
    assert lams.mean() == pytest.approx(.5, abs=.04) and lams.var() == pytest.approx(1/(8*alpha + 4), rel=.15)

@pytest.mark.parametrize('apart', [1, 2, 3])
@pytest.mark.parametrize('n', range(1, 26))
def test_partners_are_neighbours(n, apart):
    perm = neighbours(n, apart)
    assert sorted(perm) == list(range(n)), "each is the partner of one"
    assert n == 1 or (perm != np.arange(n)).all(), "nobody is mixed with itself"
    assert np.abs(perm - np.arange(n)).max() < 4*apart
    if n >= 2*apart: assert (np.arange(n)//apart != perm//apart).all(), "nor with a variation of itself"
    for which, parts in ((0, 2), (1, 2), (1, 3)): # what several processes have of it
        part = part_of(n, which, parts, 2*apart)
        if part.n: assert np.array_equal(perm[part.start:part.stop], part.start + neighbours(part.n, apart))

@pytest.mark.parametrize('ops', ['mixup', 'cutmix', 'fmix', ALL], ids=str)
def test_seed_and_step_decide(ops):
    steps = range(40)
    first = [Mixer(ops, 42).draw(o, 6, (9, 9)) for o in steps]
    mixer = Mixer(ops, 42)
    for o in reversed(steps): assert same(mixer.draw(o, 6, (9, 9)), first[o]), "whatever was asked before"
    others = [Mixer(ops, 43).draw(o, 6, (9, 9)) for o in steps], first[1:] + first[:1]
    for other in others: assert sum(same(a, b) and a.op is not None for a, b in zip(first, other)) <= 1, "boxes may coincide"

def test_the_batch_size_changes_nothing_but_the_partners():
    for step in range(40):
        a, b = (Mixer(ALL, 1).draw(step, n, (9, 9)) for n in (2, 50))
        assert (a.op, a.lam) == (b.op, b.lam) and np.array_equal(a.region, b.region)

def test_global_generators_are_left_alone():
    def states(): return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    before, x = states(), numbered(4, 8, 8)
    for step in range(20): Mixer(ALL, 42).draw(step, 4, (8, 8)).apply(x)
    assert states() == before
    first = Mixer(ALL, 42).draw(2, 4, (8, 8))
    for o in (random.seed, np.random.seed, torch.manual_seed): o(99)
    assert same(Mixer(ALL, 42).draw(2, 4, (8, 8)), first)

@pytest.mark.parametrize('n', [0, 1])
@pytest.mark.parametrize('op', OPS)
def test_one_picture_has_no_partner(op, n):
    x, y, mix = numbered(n, 8, 8), torch.arange(n), Mixer(op, 1).draw(0, n, (8, 8))
    assert mix.weights == (1, 0) and mix.op is None
    assert mix.apply(x) is x and mix.partner(y) is y and mix.dominant(y) is y

# Number formats, memory formats, devices

FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64

@pytest.mark.parametrize('op, dtype', [(op, d) for op in OPS for d in FLOATS] + [(op, torch.uint8) for op in PASTING], ids=str)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
def test_kind_range_and_layout_are_kept(op, dtype, layout):
    x = (torch.randn(6, 3, 10, 12, generator=torch.Generator().manual_seed(0))*50 + 100).clamp(0, 255).to(dtype)
    low, high, plain = x.amin(0), x.amax(0), x.clone()
    x = x.to(memory_format=layout)
    for step in range(10):
        mix = Mixer(op, 5).draw(step, 6, (10, 12))
        out = mix.apply(x)
        assert out.dtype == dtype and out.is_contiguous(memory_format=layout) and torch.equal(x, plain)
        slack = abs(high.float()).max()*torch.finfo(dtype).eps if dtype.is_floating_point else 0
        assert (out.float() >= low.float() - slack).all() and (out.float() <= high.float() + slack).all()
        assert torch.equal(out, mix.apply(plain)), "the layout changes no value"

@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64, torch.bool], ids=str)
def test_mixup_of_whole_numbers_is_refused(dtype):
    with pytest.raises(InputError, match=f"needs floating point; this batch is {str(dtype)[6:]}.*use CutMix or FMix"):
        mixup(torch.zeros(2, 3, 4, 4).to(dtype), torch.tensor([1, 0]), .5)

@pytest.mark.parametrize('op', OPS)
def test_nothing_is_read_back_from_the_device(op): # a meta tensor has no values to read
    x, y = torch.empty(4, 3, 8, 8, device='meta'), torch.empty(4, dtype=torch.int64, device='meta')
    mix = Mixer(op, 1).draw(0, 4, (8, 8))
    assert mix.apply(x).device.type == mix.partner(y).device.type == mix.dominant(y).device.type == 'meta'

@pytest.mark.parametrize('shape', [(3, 3, 8, 8), (5, 3, 8, 8), (4, 3, 8, 9), (4, 3, 9, 8), (4, 8, 8)])
@pytest.mark.parametrize('op', OPS)
def test_a_mix_is_for_one_size_of_batch(op, shape):
    mix = Mixer(op, 1).draw(0, 4, (8, 8))
    with pytest.raises(InputError, match='drawn for 4 pictures of .8, 8. pixels'): mix.apply(torch.zeros(shape))

def test_dominant_labels():
    y = torch.tensor([0, 1])
    for lam, want in ((.9, [0, 1]), (.5, [0, 1]), (.49, [1, 0]), (0., [1, 0])):
        assert Mix('Mixup', lam, np.array([1, 0]), lam, (4, 4)).dominant(y).tolist() == want

# By name

@pytest.mark.parametrize('spec, ops', [
    (None, {}), ((), {}), ([], {}), ('mixup', dict(Mixup=(.2, 1.))), ('CUTMIX', dict(CutMix=(1., 1.))),
    (' FMix ', dict(FMix=(1., 1.))),
    ('mixup+cutmix', dict(Mixup=(.2, .5), CutMix=(1., .5))), ('Mixup + CutMix', dict(Mixup=(.2, .5), CutMix=(1., .5))),
    (['mixup', ['cutmix', dict(alpha=2, prob=.4)]], dict(Mixup=(.2, .6), CutMix=(2., .4))),
    ([('fmix', dict(prob=.1))], dict(FMix=(1., .1))), ([('fmix', dict(prob=0))], dict(FMix=(1., 0.)))], ids=str)
def test_names(spec, ops):
    got = mix_ops(spec)
    assert {name: (args['alpha'], args['prob']) for name, args in got} == {k: pytest.approx(v) for k, v in ops.items()}
    assert mix_ops(got) == got and all(type(v) is float for _, args in got for v in args.values())
    assert all(args['decay_power'] == 3 for name, args in got if name == 'FMix')

@pytest.mark.parametrize('spec, says', [
    ('mixupp', "'mixupp' is unknown. Known: Mixup, CutMix, FMix.*Did you mean 'Mixup'"), ('', "'' is unknown"),
    ('mixup+', "'' is unknown"), (5, 'mix=5 says nothing'), (True, 'mix=True says nothing'), (dict(Mixup={}), 'says nothing'),
    ([5], '5 is no operation'),
    (('Mixup', dict(alpha=1)), "{'alpha': 1} is no operation.*or pairs"), ([('Mixup', 1)], 'is no operation'),
    ([('Mixup', dict(alfa=1))], "takes no 'alfa'. Did you mean 'alpha'.*It takes: alpha, prob"),
    ([('Mixup', dict(decay_power=3))], "Mixup takes no 'decay_power'"),
    *(([('CutMix', dict(alpha=o))], 'Give a number above 0') for o in (0, -1, 'x', None, True, float('nan'), float('inf'))),
    *(([('CutMix', dict(prob=o))], 'Give the share of batches') for o in (-.1, 1.1, 'x', True, float('nan'))),
    ([('Mixup', dict(prob=.6)), ('CutMix', dict(prob=.5))], 'add up to 1.1'),
    ([('Mixup', dict(prob=1)), 'cutmix'], 'CutMix would have none')], ids=str)
def test_names_that_mean_nothing(spec, says):
    with pytest.raises(InputError, match=says): mix_ops(spec)

def test_thirds_may_be_rounded(): assert len(mix_ops([(o, dict(prob=.3333335)) for o in OPS])) == 3

# The callback

class Pictures: # class i is bright in channel i
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return F.one_hot(torch.tensor(i % 3), 3)[:, None, None].expand(3, 8, 8)*1., i % 3

def make(loss=F.cross_entropy, ops='mixup+cutmix', cbs=(), n=34, lr=.1, model=None, **kwargs):
    torch.manual_seed(0)
    dls = DataLoaders(DataLoader(Pictures(n), bs=11, shuffle=True), DataLoader(Pictures(12), bs=11)) # 34: the last batch has one
    mix = [MixBatch(ops, 7)] if ops else []
    model = model or nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return Learner(dls, model, loss, SGD, lr=lr, cbs=[Clock(), EpochMetrics(), *mix, *cbs], **kwargs)

def fit(learn, n_epoch=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n_epoch, **kwargs)
    return learn.epoch_metrics.values

class Watch(Callback):
    "Keeps every batch as it was before it was mixed, and what became of it"
    order = -20
    def __init__(self): self.seen = []
    def before_batch(self): self.came = self.xb[0], self.yb[0]
    def after_batch(self): self.seen.append((self.training, *self.came, self.xb[0], self.pred.detach(), self.loss.detach()))

class OneMinusProbability: # neither a function nor a module, and without `reduction`
    def __call__(self, pred, targ): return 1 - pred.softmax(1).gather(1, targ[:, None]).mean()

def smooth(pred, targ): return F.cross_entropy(pred, targ, label_smoothing=.1)

LOSSES = {'function': F.cross_entropy, 'smooth': smooth, 'module': nn.CrossEntropyLoss(),
          'flat': CrossEntropyLossFlat(label_smoothing=.2), 'weights': nn.CrossEntropyLoss(weight=torch.tensor([1., 5., .2])),
          'sum': nn.CrossEntropyLoss(reduction='sum'),
          'object': OneMinusProbability(), 'lambda': lambda pred, targ: F.multi_margin_loss(pred, targ)}

@pytest.mark.parametrize('ops', ['mixup', 'cutmix', 'fmix', ALL], ids=str)
@pytest.mark.parametrize('name', LOSSES)
def test_every_loss_is_weighted(name, ops):
    loss, watch, ran = LOSSES[name], Watch(), set()
    reduction = getattr(loss, 'reduction', None)
    learn = make(loss, ops, [watch], lr=.01)
    fit(learn, 2)
    train = [o[1:] for o in watch.seen if o[0]]
    assert len(train) == 8 and [len(o[0]) for o in train].count(1) == 2
    for step, (x, y, mixed, pred, got) in enumerate(train):
        mix = Mixer(ops, 7).draw(step, len(x), (8, 8))
        assert torch.equal(mixed, mix.apply(x))
        want = mix.lam*loss(pred, y).item() + (1 - mix.lam)*loss(pred, mix.partner(y)).item()
        assert got.item() == pytest.approx(want, rel=1e-5)
        ran.add(mix.op)
    assert learn.loss_func is loss and getattr(loss, 'reduction', None) == reduction
    assert len(ran) > 1, "the batch of one is left alone"
    for training, x, _y, mixed, *_ in watch.seen: assert training or torch.equal(x, mixed), "validation is never mixed"

@pytest.mark.parametrize('smoothing', [0., .1])
@pytest.mark.parametrize('op', OPS)
def test_it_is_soft_target_cross_entropy(op, smoothing):
    watch = Watch()
    fit(make(nn.CrossEntropyLoss(label_smoothing=smoothing), op, [watch]), 2)
    for step, (_, x, y, _, pred, got) in enumerate(o for o in watch.seen if o[0]):
        mix = Mixer(op, 7).draw(step, len(x), (8, 8))
        soft = mix.lam*F.one_hot(y, 3) + (1 - mix.lam)*F.one_hot(mix.partner(y), 3)
        assert got.item() == pytest.approx(F.cross_entropy(pred, soft, label_smoothing=smoothing).item(), rel=1e-5)

def test_class_weights_keep_their_mean(): # partners are the same pictures, so the weights add up to the same
    weight, pred, y = torch.tensor([1., 5., .2]), torch.randn(9, 3), torch.arange(9) % 3
    mix = Mixer('mixup', 1).draw(0, 9, (4, 4))
    each = sum(w*F.cross_entropy(pred, o, weight, reduction='none') for w, o in zip(mix.weights, (y, mix.partner(y))))
    twice = sum(w*F.cross_entropy(pred, o, weight) for w, o in zip(mix.weights, (y, mix.partner(y))))
    assert torch.allclose(each.sum()/weight[y].sum(), twice)

def test_gradients_are_those_of_the_soft_target():
    watch = Watch()
    learn = make(ops='mixup', cbs=[watch], n=11, lr=.5)
    model = nn.Sequential(*(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    model.load_state_dict(learn.model.state_dict())
    fit(learn)
    _, x, y, *_ = watch.seen[0]
    mix = Mixer('mixup', 7).draw(0, 11, (8, 8))
    F.cross_entropy(model(mix.apply(x)), mix.lam*F.one_hot(y, 3) + (1 - mix.lam)*F.one_hot(mix.partner(y), 3)).backward()
    for p, q in zip(model.parameters(), learn.model.parameters()): assert torch.allclose(p - .5*p.grad, q, atol=1e-6)

def test_gradients_can_be_gathered():
    watch = Watch()
    learn = make(cbs=[watch, GradientAccumulation(22)], n=22, lr=.5)
    model = nn.Sequential(*(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    model.load_state_dict(learn.model.state_dict())
    fit(learn)
    mixes = [Mixer('mixup+cutmix', 7).draw(step, 11, (8, 8)) for step in range(2)]
    for mix, (_, x, y, *_) in zip(mixes, watch.seen):
        pred = model(mix.apply(x))
        ((mix.lam*F.cross_entropy(pred, y) + (1 - mix.lam)*F.cross_entropy(pred, mix.partner(y)))/2).backward()
    for p, q in zip(model.parameters(), learn.model.parameters()): assert torch.allclose(p - .5*p.grad, q, atol=1e-6)
    assert mixes[0].lam != mixes[1].lam, "each batch in its own way"

def test_together_with_16_bits():
    watch = Watch()
    learn = make(cbs=[watch, Precision()])
    learn.model.to(memory_format=torch.channels_last)
    values = fit(learn, 2)
    assert all(np.isfinite(v) for v in values.values()) and {o[4].dtype for o in watch.seen} == {torch.float32}
    assert 'forward' not in vars(learn.model) and all(p.isfinite().all() for p in learn.model.parameters())

def test_a_search_leaves_no_trace():
    import fastai.callback.schedule  # noqa: F401 (adds lr_find)
    a, b = make(), make()
    with a.no_bar(): a.lr_find(num_it=7, show_plot=False)
    assert a.clock.steps == 0 and a.mix_batch.mixed.op is None and a.epoch_metrics.values == {}
    for o in (a, b):
        o.dls.train.rng.seed(1)
        fit(o)
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters()))

def test_the_count_of_steps_is_needed():
    learn = make()
    learn.remove_cbs(Clock)
    with pytest.raises(Exception, match='Add Clock'): fit(learn)

# Interrupts

EVENTS = ('before_epoch', 'before_train', 'before_batch', 'after_pred', 'after_loss', 'before_backward', 'after_backward',
          'before_step', 'after_step', 'after_batch', 'after_train', 'before_validate', 'after_validate', 'after_epoch')

class Stop(Callback):
    "Raises at an event, before or after the mixing has its turn"
    def __init__(self, event, error, order): self.event, self.error, self.order = event, error, order
    def __call__(self, event):
        if event == self.event and (self.clock.steps >= 1 or 'batch' not in event): raise self.error

@pytest.mark.parametrize('order', [-5, 30])
@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('defect'), CancelFitException(), CancelEpochException(),
                                   CancelTrainException(), CancelBatchException()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize('event', EVENTS)
def test_an_interrupt_leaves_nothing_behind(event, error, order):
    loss = nn.CrossEntropyLoss()
    learn = make(loss)
    stop = Stop(event, error, order)
    try: fit(learn, 2, cbs=[stop])
    except BaseException as e: assert e is error or event == 'before_epoch' # whose end fastai's recorder does not expect
    assert learn.loss_func is loss and vars(loss).get('reduction') == 'mean'
    learn.mix_batch.close()
    assert learn.mix_batch.mixed.op is None
    with learn.no_bar(), learn.no_logging(): clean = learn.validate()[0]
    plain = make(loss, ops=None, model=learn.model)
    with plain.no_bar(), plain.no_logging(): assert plain.validate()[0] == pytest.approx(clean)
    assert np.isfinite(fit(learn)['train_loss']) and learn.loss_func is loss

# Top-1 on the training batches

class Brightest(nn.Module): # knows its pictures: the class is the channel with most light
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, x): return x.mean((2, 3))*self.scale

class CountRight(Callback): # by hand: the label whose share is at least a half
    order, right, seen = 20, 0, 0
    def after_pred(self):
        if not self.training: return
        y, mix = self.watch.came[1], self.mix_batch.mixed
        want = y if mix.lam >= .5 else y[mix.perm]
        self.right, self.seen = self.right + (self.pred.argmax(1) == want).sum().item(), self.seen + len(y)

@pytest.mark.parametrize('ops', ['mixup', 'cutmix', 'fmix', ALL], ids=str)
def test_right_answers_are_counted_against_the_dominant_label(ops):
    count = CountRight()
    top1 = fit(make(ops=ops, model=Brightest(), lr=0., cbs=[Watch(), count]))['train_top1']
    assert top1 == count.right/count.seen and count.seen == 34

def test_without_mixing_a_model_that_knows_is_always_right():
    assert fit(make(ops=None, model=Brightest(), lr=0.), 3)['train_top1'] == 1

def test_it_would_be_less_against_the_first_label():
    watch = Watch()
    learn = make(ops=[('Mixup', dict(alpha=9.))], model=Brightest(), lr=0., cbs=[watch]) # shares near a half
    values = [fit(learn)['train_top1'] for _ in range(10)]
    first = np.mean([(pred.argmax(1) == y).float().mean() for training, _, y, _, pred, _ in watch.seen if training])
    assert first < np.mean(values) - .1

def test_train_top1_is_the_share_of_all_pictures():
    model = Brightest()
    model.scale.data.fill_(-1) # takes the first of the two darkest: right never
    assert fit(make(ops=None, model=model, lr=0.))['train_top1'] == 0
    watch = Watch()
    values = fit(make(ops=None, cbs=[watch]))
    right = sum((pred.argmax(1) == y).sum().item() for training, _, y, _, pred, _ in watch.seen if training)
    assert values['train_top1'] == right/34 and list(values) == ['train_loss', 'valid_loss', 'train_top1']

def test_every_epoch_counts_anew_and_skipped_batches_do_not_count():
    model = Brightest()
    learn = make(ops=None, model=model, lr=0.)
    assert fit(learn)['train_top1'] == 1
    model.scale.data.fill_(-1)
    assert fit(learn)['train_top1'] == 0
    model.scale.data.fill_(1)
    skip = type('Skip', (Callback,), dict(before_batch=lambda self: self.iter == 1 and self._skip()))
    skip._skip = lambda self: (_ for _ in ()).throw(CancelBatchException())
    assert fit(learn, cbs=[skip()])['train_top1'] == 1

@pytest.mark.parametrize('pred, targ', [
    (torch.zeros(4, 1), torch.zeros(4)), (torch.zeros(4, 3), torch.zeros(4, 3)), (torch.zeros(4, 3), torch.zeros(4, 3).long()),
    (torch.zeros(4, 1), torch.zeros(4).long()), ((torch.zeros(4, 3),)*2, torch.zeros(4).long())],
    ids=['value', 'several', 'shape', 'one', 'two'])
def test_what_is_no_class_is_not_counted(pred, targ):
    learn = make(ops=None)
    learn.training, learn.pred, learn.yb = True, pred, (targ,)
    learn.epoch_metrics.before_train()
    learn.epoch_metrics.after_loss()
    assert learn.epoch_metrics.train_top1 is None

def test_right_answers_stay_on_the_device():
    learn, targ = make(ops=None), torch.zeros(4, dtype=torch.int64, device='meta')
    learn.training, learn.pred, learn.yb = True, torch.zeros(4, 3, device='meta'), (targ,)
    learn.epoch_metrics.before_train()
    for _ in range(2): learn.epoch_metrics.after_loss()
    assert learn.epoch_metrics.right.device.type == 'meta' and learn.epoch_metrics.seen == 8

def test_an_epoch_without_validation():
    skip = type('Skip', (Callback,), dict(before_validate=lambda self: (_ for _ in ()).throw(CancelEpochException())))
    assert list(fit(make(ops=None), cbs=[skip()])) == ['train_loss', 'train_top1']

def test_the_table_shows_it(capsys):
    learn = make(ops=None, model=Brightest(), lr=0., cbs=[EpochTable()])
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    learn.fit(2)
    rows = [o.split() for o in capsys.readouterr().out.splitlines()]
    assert rows[0] == ['epoch', 'train_loss', 'valid_loss', 'train_top1', 'time'] and [o[0] for o in rows[1:]] == ['1', '2']
    assert [o[3] for o in rows[1:]] == ['1.0000']*2 and learn.logger is print
    learn.fit(3, start_epoch=2)
    rows = [o.split() for o in capsys.readouterr().out.splitlines()]
    assert [o[0] for o in rows] == ['epoch', '3'], "epochs that were skipped have no row"
    assert learn.recorder.metric_names == ['epoch', 'train_loss', 'valid_loss', 'time'], "fastai's own record is as it was"
