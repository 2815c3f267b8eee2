"Distillation: the formulas of the papers, the teacher sees what it was trained to see, and nothing else changes"
import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback import schedule  # noqa: F401 (adds lr_find)
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from torch import nn

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.callbacks.clock import Clock, EpochMetrics
from imgcls_nb.callbacks.compile import CompileModel
from imgcls_nb.callbacks.distill import (
    DISTILLATIONS,
    Distill,
    as_teacher_sees,
    decoupled_kl,
    relation_gap,
    soft_kl,
    spherical_kl,
    symmetric_kl,
    weighted_kl,
)
from imgcls_nb.callbacks.guards import DivergenceGuard
from imgcls_nb.callbacks.mixing import MixBatch
from imgcls_nb.callbacks.precision import Precision
from imgcls_nb.callbacks.steps import BackOff
from imgcls_nb.core import FILTERS, InputError, Preprocess
from imgcls_nb.features import features_of, map_gaps, tapped
from imgcls_nb.losses import LOSSES, make_loss
from imgcls_nb.mixing import Mixer
from imgcls_nb.models import create_model

C = 4
BY_LOGITS = [k for k, o in DISTILLATIONS.items() if not o.learns]

def draw(n=9, c=C, seed=0, scale=2., dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    return *(scale*torch.randn(2, n, c, generator=rng, dtype=dtype)), torch.randint(c, (n,), generator=rng)

def near(a, b, **kwargs): torch.testing.assert_close(a, b, **kwargs)

# Formulas, by hand

@pytest.mark.parametrize('t', [1., 2., 4., 20.])
def test_the_soft_distance_by_hand(t):
    s, q, _ = draw()
    p, own = (q/t).softmax(1), (s/t).softmax(1)
    near(soft_kl(s, q, t), t**2*(p*(p/own).log()).sum(1).mean())
    assert soft_kl(q, q, t) == pytest.approx(0, abs=1e-12) and soft_kl(s, q, t) > 0

def by_hand(s, q, y, alpha, beta, t): # as the paper writes it, with probabilities
    p, own, total = (q/t).softmax(1), (s/t).softmax(1), 0.
    for i, k in enumerate(y.tolist()):
        pt, st, others = p[i, k], own[i, k], [j for j in range(p.shape[1]) if j != k]
        right = pt*(pt/st).log() + (1 - pt)*((1 - pt)/(1 - st)).log()
        ph, sh = p[i, others]/(1 - pt), own[i, others]/(1 - st)
        total += alpha*right + beta*(ph*(ph/sh).log()).sum()
    return total*t**2/len(y)

@pytest.mark.parametrize('alpha, beta, t', [(1., 8., 4.), (1., .5, 1.), (0., 1., 2.), (1., 0., 2.), (.3, 2., 10.)])
@pytest.mark.parametrize('c', [2, 3, 7])
def test_the_decoupled_distance_by_hand(alpha, beta, t, c):
    s, q, y = draw(c=c)
    near(decoupled_kl(s, q, y, alpha, beta, t), by_hand(s, q, y, alpha, beta, t))
    assert decoupled_kl(q, q, y, alpha, beta, t) == pytest.approx(0, abs=1e-12)

@pytest.mark.parametrize('t', [1., 4.])
def test_the_parts_are_the_whole_again(t): # the paper's equation: the second part is weighed by the teacher's doubt
    s, q, y = draw(1)
    near(decoupled_kl(s, q, y, 1., 1 - (q/t).softmax(1)[0, y[0]], t), soft_kl(s, q, t))

@pytest.mark.parametrize('c', [2, 5])
def test_the_symmetric_distance_by_hand(c):
    s, q, _ = draw(c=c)
    p, own = q.softmax(1), s.softmax(1)
    near(symmetric_kl(s, q), ((p - own)*(p/own).log()).sum(1).mean()/2)
    near(symmetric_kl(s, q), symmetric_kl(q, s))

def test_relations_by_hand():
    s, q, _ = draw()
    own, given = s.softmax(1).numpy(), q.softmax(1).numpy()
    of_pictures = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(own, given)])
    of_classes = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(own.T, given.T)])
    assert relation_gap(s, q, 2., 3.).item() == pytest.approx(2*(1 - of_pictures) + 3*(1 - of_classes), abs=1e-5)
    assert relation_gap(q, q).item() == pytest.approx(0, abs=1e-5)

@pytest.mark.parametrize('t', [1., 2.])
def test_the_weighted_distance_by_hand(t):
    s, q, y = draw()
    wrong, expected = (-o.log_softmax(1)[range(9), y] for o in (s, q))
    soft = -((q/t).softmax(1)*(s/t).log_softmax(1)).sum(1)
    near(weighted_kl(s, q, y, t), ((1 - (-wrong/expected).exp())*soft).mean()*t**2, atol=1e-5, rtol=1e-5)

def test_the_spherical_distance_by_hand():
    s, q, y = draw()
    a, b = (2*(o - o.mean(1, keepdim=True))/o.std(1, keepdim=True, unbiased=False) for o in (s, q))
    soft = -((b/3.).softmax(1)*(a/3.).log_softmax(1)).sum(1).mean()*9
    near(spherical_kl(s, q, y, .7, 3., 2.), .7*soft - .3*a.log_softmax(1)[range(9), y].mean(), atol=1e-5, rtol=1e-5)
    near(spherical_kl(10*s, q, y), spherical_kl(s, q, y), atol=1e-5, rtol=1e-5)

SOFT = [soft_kl, symmetric_kl, relation_gap, *(lambda s, q, f=f: f(s, q, torch.arange(9) % C)
                                               for f in (decoupled_kl, spherical_kl))]

@pytest.mark.parametrize('func', SOFT, ids=['soft', 'symmetric', 'relations', 'decoupled', 'spherical'])
def test_slopes(func):
    s, q, _ = draw()
    assert torch.autograd.gradcheck(lambda o: func(o, q), s.clone().requires_grad_())
    for scale in (50., 500.): # probabilities that 32 bits round to 0 and 1
        s, q, _ = draw(scale=scale, dtype=torch.float32)
        s.requires_grad_()
        out = func(s, q)
        out.backward()
        assert out.isfinite() and s.grad.isfinite().all()

# What the teacher sees

PRE = Preprocess(crop=(12, 12), resize_short=12)
OTHERS = dict(stats=dict(mean=(.5,)*3, std=(.25, .5, .3)), mean=dict(mean=(0., 0., 0.)), std=dict(std=(1., 1., 1.)))

@pytest.mark.parametrize('name', OTHERS)
def test_a_batch_is_normalized_anew(name):
    other = Preprocess(**dict(crop=(12, 12), resize_short=12) | OTHERS[name])
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 12, 12), dtype=np.uint8)
    x = as_teacher_sees(torch.tensor(PRE.normalize(pixels)), PRE, other)
    near(x, torch.tensor(other.normalize(pixels)), atol=1e-5, rtol=1e-5)

def test_what_differs_in_nothing_is_not_touched():
    x = torch.randn(2, 3, 12, 12)
    assert as_teacher_sees(x, PRE, Preprocess(crop=(12, 12), resize_short=14, interpolation='bicubic')) is x

@pytest.mark.parametrize('interpolation', FILTERS)
@pytest.mark.parametrize('hw', [(24, 24), (6, 10), (12, 13)])
def test_a_batch_is_resized(interpolation, hw):
    other = Preprocess(crop=hw, resize_short=max(hw), interpolation=interpolation)
    x = torch.randn(2, 3, 12, 12)
    mode = 'bicubic' if interpolation in ('bicubic', 'lanczos') else 'bilinear'
    near(as_teacher_sees(x, PRE, other), F.interpolate(x, hw, mode=mode, antialias=True))

def test_grey_pictures_become_three_equal_channels():
    grey = Preprocess(crop=(12, 12), resize_short=12, mean=(.4,), std=(.2,))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 12, 12), dtype=np.uint8)
    x = as_teacher_sees(torch.tensor(grey.normalize(pixels)), grey, PRE)
    near(x, torch.tensor(PRE.normalize(pixels.repeat(3, 1))), atol=1e-5, rtol=1e-5)

# In a learner

X = torch.rand(35, 3, 12, 12, generator=torch.Generator().manual_seed(0))
PAIRS = [((o - .5)/.3, i % C) for i, o in enumerate(X)]

def net(seed=0, c=C, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(.5), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(width, c))

def learner(*cbs, loss='cross_entropy', model=None, clock=True, lr=.1, n=35, bs=12):
    dls = DataLoaders(*[DataLoader(PAIRS[:n], bs=bs)]*2)
    dls.preprocess = Preprocess(crop=(12, 12), resize_short=12, mean=(.5,)*3, std=(.3,)*3)
    return Learner(dls, model or net(), make_loss(loss) if isinstance(loss, str) else loss, SGD, lr=lr,
                   cbs=[*([Clock(), EpochMetrics()] if clock else []), *cbs])

def fit(learn, n=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, **kwargs)
    return learn.recorder.values[-1]

class Watch(Callback):
    order = 3 # right after the teacher
    def __init__(self): self.seen = []
    def after_loss(self): self.seen.append((self.training, self.xb[0], self.yb[0], self.pred.detach(), self.loss.item()))

def answers(teacher, x):
    with torch.no_grad(): return teacher(x)

@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('kind, args', [('kl', {}), ('kl', dict(alpha=.9, temperature=2.)), ('kl', dict(alpha=0.)), ('dkd', {}),
                                        ('dkd', dict(alpha=2., beta=.5, temperature=1.)), ('dist', dict(weight=3., gamma=.5)),
                                        ('dml', dict(weight=2., label_weight=.5)), ('wsl', {}),
                                        ('skd', dict(multiplier=3.))], ids=str)
def test_the_loss_is_that_of_label_and_teacher(kind, args, loss):
    teacher, watch, own = net(9), Watch(), make_loss(loss)
    fit(learner(Distill(teacher, kind=kind, **args), watch, loss=loss), 2)
    assert len(watch.seen) == 12
    for training, x, y, pred, got in watch.seen:
        q, label = answers(teacher, x), own(pred, y)
        if kind == 'kl':
            a = args.get('alpha', .5)
            want = (1 - a)*label + a*soft_kl(pred, q, args.get('temperature', 4.))
        elif kind == 'dkd': want = label + decoupled_kl(pred, q, y, **args)
        elif kind == 'dist': want = label + 3*relation_gap(pred, q, gamma=.5)
        elif kind == 'dml': want = .5*label + 2*symmetric_kl(pred, q)
        elif kind == 'wsl': want = label + 2.5*weighted_kl(pred, q, y)
        else: want = spherical_kl(pred, q, y, multiplier=3.)
        assert got == pytest.approx((want if training else label).item(), rel=1e-5), "validation is of the label alone"

def test_a_network_with_published_weights_teaches(monkeypatch):
    monkeypatch.setattr('imgcls_nb.callbacks.distill.create_model',
                        lambda name, pretrained, n: nn.Sequential(create_model(name, num_classes=n), nn.Linear(n, C)))
    monkeypatch.setattr('imgcls_nb.callbacks.distill.model_preprocess', lambda m: Preprocess(crop=(16, 16), resize_short=16))
    cb = Distill('test_resnet')
    fit(learner(cb, n=12))
    assert cb.vocab is None and cb.preprocess.size == (16, 16) and cb.compared is None

def test_who_cannot_teach():
    with pytest.raises(InputError, match="no teacher at 'runs/nowhere', and no network of that name"): Distill('runs/nowhere')
    with pytest.raises(InputError, match='not in the cache, and the hub cannot be reached'): Distill('resnet34.a1_in1k')

def test_gradients_are_those_of_the_loss():
    teacher, model = net(9), net()
    model[3] = nn.Identity()
    twin = copy.deepcopy(model)
    fit(learner(Distill(teacher, alpha=.7), model=model, lr=.5, n=12))
    x, y = torch.stack([o for o, _ in PAIRS[:12]]), torch.arange(12) % C
    pred = twin(x)
    (.3*F.cross_entropy(pred, y) + .7*soft_kl(pred, answers(teacher, x))).backward()
    for p, q in zip(twin.parameters(), model.parameters()): near(p - .5*p.grad, q)

def test_the_teacher_is_as_before():
    teacher = net(9).train()
    before, flags = copy.deepcopy(teacher.state_dict()), [o.requires_grad for o in teacher.parameters()]
    learn = learner(Distill(teacher))
    fit(learn, 2)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items()), "neither weights nor running means moved"
    assert not teacher.training and [o.requires_grad for o in teacher.parameters()] == flags
    assert all(o.grad is None for o in teacher.parameters())
    ids = {*map(id, teacher.parameters())}
    assert not ids & {id(p) for p in learn.opt.all_params().itemgot(0)} and not ids & {*map(id, learn.model.parameters())}

def test_without_a_say_all_is_as_without_a_teacher(): # the teacher draws nothing and moves nothing
    a, b = learner(Distill(net(9), alpha=0.)), learner()
    assert list(fit(a, 2)) == pytest.approx(list(fit(b, 2)))
    for p, q in zip(a.model.parameters(), b.model.parameters()): near(p, q)

def test_it_comes_closer_to_the_teacher():
    teacher, x = net(9), torch.stack([o for o, _ in PAIRS])
    learn = learner(Distill(teacher, alpha=1.), lr=.05)
    before = soft_kl(answers(learn.model.eval(), x), answers(teacher.eval(), x))
    fit(learn, 20)
    assert soft_kl(answers(learn.model.eval(), x), answers(teacher, x)) < before/2

@pytest.mark.parametrize('answer', [lambda q: q, lambda q: q.numpy(), lambda q: q.double(), lambda q: q.bfloat16()],
                         ids=['tensor', 'numpy', 'double', 'bfloat16'])
def test_any_function_can_teach(answer):
    teacher, seen = net(9).eval(), []
    def ask(x):
        assert not torch.is_grad_enabled()
        seen.append(len(x))
        return answer(teacher(x))
    learn, twin = learner(Distill(ask)), learner(Distill(teacher))
    assert fit(learn)[0] == pytest.approx(fit(twin)[0], abs=.02) and seen == [12, 12, 11], "asked once a training batch"

def test_the_teacher_gets_its_own_normalization_and_size():
    seen = []
    def ask(x):
        seen.append(x)
        return torch.zeros(len(x), C)
    fit(learner(Distill(ask, Preprocess(crop=(8, 8), resize_short=8, mean=(0., 0., 0.), std=(1., 1., 1.)))))
    near(seen[0], F.interpolate(X[:12], (8, 8), mode='bilinear', antialias=True), atol=1e-5, rtol=1e-5)

# With others

@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize('kind', BY_LOGITS)
def test_mixed_pictures(kind, first): # whatever the order in which they are given
    teacher, watch, mixing = net(9), Watch(), MixBatch('mixup+cutmix', 7)
    cbs = [mixing, Distill(teacher, kind=kind)]
    fit(learner(*(cbs if first else cbs[::-1]), watch), 2)
    for step, (_, x, y, pred, got) in enumerate(o for o in watch.seen if o[0]):
        mix = Mixer('mixup+cutmix', 7).draw(step, len(x), (12, 12))
        own = torch.arange(35)[step % 3*12:][:len(x)] % C
        label = mix.lam*F.cross_entropy(pred, own) + (1 - mix.lam)*F.cross_entropy(pred, mix.partner(own))
        q = answers(teacher, x)
        assert torch.equal(y, mix.dominant(own))
        want = DISTILLATIONS[kind].loss(label, pred, q, mix.dominant(own), 1.)
        assert got == pytest.approx(want.item(), rel=1e-5)

def test_gradients_can_be_gathered():
    model = net()
    model[1], model[3] = nn.Identity(), nn.Identity()
    twin = copy.deepcopy(model)
    for m, cbs, bs in ((model, [GradientAccumulation(12)], 4), (twin, [], 12)):
        fit(learner(Distill(net(9), kind='dkd'), *cbs, model=m, n=12, bs=bs, lr=.3))
    for p, q in zip(twin.parameters(), model.parameters()): near(p, q)

def test_in_the_number_format_of_the_training():
    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen = net(9), []
        def forward(self, x):
            out = self.net(x)
            self.seen.append((out.dtype, torch.is_autocast_enabled('cpu')))
            return out
    for cbs, want in (([], (torch.float32, False)), ([Precision()], (torch.bfloat16, True))):
        spy, watch = Spy(), Watch()
        assert np.isfinite(fit(learner(Distill(spy), *cbs, watch))).all()
        assert set(spy.seen) == {want} and watch.seen[0][3].dtype == torch.float32
    assert not torch.is_autocast_enabled('cpu')

def test_in_the_layout_of_the_student():
    teacher, model = net(9), net().to(memory_format=torch.channels_last)
    fit(learner(Distill(teacher), model=model))
    assert teacher[0].weight.is_contiguous(memory_format=torch.channels_last) and not teacher[0].weight.is_contiguous()

@pytest.mark.parametrize('epochs', [2., .5, 1.5])
def test_the_teacher_gets_its_say_step_by_step(epochs):
    ramps = []
    class Note(Callback):
        def after_loss(self): self.training and ramps.append(self.distill.ramp)
    learn = learner(Distill(net(9), kind='dkd', warmup_epochs=epochs), Note())
    fit(learn, 2)
    fit(learn, 1) # the count goes on over fits
    assert ramps == pytest.approx([min(1., (i + 1)/3/epochs) for i in range(9)])

@pytest.mark.parametrize('kind', BY_LOGITS)
def test_a_share_of_its_weight(kind):
    teacher, watch = net(9), Watch()
    fit(learner(Distill(teacher, kind=kind, warmup_epochs=3), watch))
    for i, (_, x, y, pred, got) in enumerate(watch.seen[:3]):
        label, q, r = F.cross_entropy(pred, y), answers(teacher, x), (i + 1)/9
        alone, whole = (DISTILLATIONS[kind].loss(label, pred, q, y, o) for o in (0., 1.))
        want = (1 - r)*alone + r*whole
        assert got == pytest.approx(want.item(), rel=1e-5)

def test_soft_targets_have_a_right_class():
    model, teacher = net(), net(9)
    learn = learner(Distill(teacher, kind='dkd'))
    rows = [(x, F.one_hot(torch.tensor(y), C).float()*.7 + .075) for x, y in PAIRS]
    learn.dls = DataLoaders(*[DataLoader(rows, bs=12)]*2)
    learn.model = model
    assert np.isfinite(fit(learn)).all()

@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'before_step', 'before_validate'])
def test_an_interrupt_leaves_nothing_behind(event):
    stop = type('Stop', (Callback,), {event: lambda self: (_ for _ in ()).throw(KeyboardInterrupt())})
    learn = learner(Distill(net(9)))
    loss = learn.loss_func
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=[stop()])
    assert learn.loss_func is loss and np.isfinite(fit(learn)).all()

def test_a_search_works_and_predictions_do_not_ask():
    asked = []
    def ask(x):
        asked.append(len(x))
        return torch.zeros(len(x), C)
    learn = learner(Distill(ask))
    with learn.no_bar(), learn.no_logging():
        learn.get_preds()
        learn.validate()
        assert not asked
        learn.lr_find(num_it=5, show_plot=False)
    assert learn.clock.steps == 0 and asked

# Layers

RESNET, BOTH = 'test_resnet', ('mutual', 'udml') # a peer begins by its name
INSIDE = dict(afd=dict(layers=['0', '2'], teacher_layers=['0', '1', '2'], dim=4),
              mgd=dict(layers='2', teacher_layers='2', mask=0.), pefd=dict(layers='2', teacher_layers='4'), mutual={}, udml={})

def distill(kind, teacher=None, **args):
    return Distill(RESNET if kind in BOTH else teacher or net(9, width=6), kind=kind, **INSIDE[kind] | args)

def inside(kind, *cbs, teacher=None, args=None, lr=.05, **kwargs):
    model = create_model(RESNET, num_classes=C) if kind in BOTH else net()
    learn = learner(distill(kind, teacher, **args or {}), *cbs, model=model, lr=lr, **kwargs)
    learn.dls.c = C
    return learn

def gap_by_hand(cb, model, x): # once more, with what stands between as it is
    models = model, cb.network
    with torch.no_grad():
        heard = []
        for m, names in zip(models, cb.taps):
            with tapped(m, names) as found: m(x)
            heard.append(features_of(found, names))
        return cb.beside['adapter'](*heard)

@pytest.mark.parametrize('kind, args', [('afd', {}), ('afd', dict(weight=3., logits_weight=0., label_weight=.5)), ('mgd', {}),
                                        ('mgd', dict(logits_weight=2., temperature=3.)), ('pefd', {}), ('udml', {}),
                                        ('udml', dict(weight=2., logits_weight=.5, label_weight=3.)),
                                        ('mutual', dict(weight=2.))], ids=str)
def test_the_loss_is_that_of_label_logits_and_layers(kind, args):
    watch, usual = Watch(), dict(afd=(50., .9), mgd=(1.756, 0.), pefd=(25., 0.), udml=(1., 1.), mutual=(0., 1.))[kind]
    learn = inside(kind, watch, args=args, lr=0.)
    fit(learn)
    cb, model = learn.distill, learn.model.train()
    weight, soft = args.get('weight', usual[0]), args.get('logits_weight', usual[1])
    if kind == 'mutual': weight, soft = 0., weight
    for training, x, y, pred, got in watch.seen:
        if not training: continue
        q, label = answers(cb.network, x), F.cross_entropy(pred, y)
        if kind in BOTH: label, far = label + F.cross_entropy(q, y), symmetric_kl(pred, q)
        else: far = soft_kl(pred, q, args.get('temperature', 4.))
        want = args.get('label_weight', 1.)*label + soft*far + (weight*gap_by_hand(cb, model, x) if weight else 0.)
        assert got == pytest.approx(want.item(), rel=1e-4)

@pytest.mark.parametrize('kind', INSIDE)
def test_what_stands_between_learns_and_stays_outside(kind):
    teacher, learn = net(9, width=6), None
    learn = inside(kind, teacher=teacher)
    fit(learn, 1, lr=0.)
    cb, first, depths = learn.distill, copy.deepcopy(learn.distill.beside.state_dict()), len(learn.opt.hypers)
    fixed, names = copy.deepcopy(teacher.state_dict()), [*learn.model.state_dict()]
    fit(learn, 2)
    moved = [k for k, v in cb.beside.named_parameters() if not torch.equal(v, first[k])]
    assert len(moved) >= len(first)/3 and len(learn.opt.hypers) == depths
    stepped = [id(p) for p, *_ in learn.opt.all_params()]
    assert {id(p) for p in cb.beside.parameters()} <= {*stepped} and len({*stepped}) == len(stepped), "once, over fits"
    assert all(torch.equal(v, fixed[k]) for k, v in teacher.state_dict().items()) and [*learn.model.state_dict()] == names
    assert not any(o._forward_hooks for m in (learn.model, teacher, cb.beside) for o in m.modules())

@pytest.mark.parametrize('kind', [o for o in INSIDE if o != 'mutual'])
def test_layers_come_closer(kind):
    x = torch.stack([o for o, _ in PAIRS])
    learn = inside(kind, args=dict(label_weight=.01, logits_weight=0.))
    fit(learn, lr=0.)
    learn.model.train(), learn.distill.beside.train()
    before = gap_by_hand(learn.distill, learn.model, x)
    fit(learn, 15)
    assert gap_by_hand(learn.distill, learn.model.train(), x) < .9*before

def test_the_student_is_what_attention_moves(): # towards the maps of the teacher, and not the other way round
    learn = inside('afd', args=dict(label_weight=0., logits_weight=0., weight=50.), lr=.1)
    x, teacher = torch.stack([o for o, _ in PAIRS]), learn.distill.teacher
    def gaps():
        with tapped(learn.model.train(), ['2']) as own, tapped(teacher.eval(), ['2']) as given, torch.no_grad():
            learn.model(x), teacher(x)
        return map_gaps(features_of(own, ['2']), features_of(given, ['2'])).mean()
    before = gaps()
    fit(learn, 20)
    assert gaps() < before

def test_both_networks_learn_from_each_other():
    learn = inside('udml', lr=0., n=12)
    fit(learn)
    student, peer = copy.deepcopy(learn.model).train(), copy.deepcopy(learn.distill.beside['peer']).train()
    assert not torch.equal(student.fc.weight, peer.fc.weight), "they begin otherwise"
    fit(learn, lr=.1)
    x, y, names = torch.stack([o for o, _ in PAIRS[:12]]), torch.arange(12) % C, ['layer4']
    with tapped(student, names) as a, tapped(peer, names) as b: p, q = student(x), peer(x)
    gap = F.mse_loss(*(features_of(o, names)[0] for o in (a, b)))
    (F.cross_entropy(p, y) + F.cross_entropy(q, y) + symmetric_kl(p, q) + gap).backward() # neither is held still
    for before, after in ((student, learn.model), (peer, learn.distill.beside['peer'])):
        for o, n in zip(before.parameters(), after.parameters(), strict=True): near(o - .1*o.grad, n, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('kind', INSIDE)
def test_a_search_and_predictions_leave_no_trace(kind):
    learn = inside(kind)
    with learn.no_bar(), learn.no_logging(): learn.get_preds()
    assert learn.distill.beside is None
    fit(learn, lr=0.)
    before = copy.deepcopy(learn.distill.beside.state_dict())
    with learn.no_bar(), learn.no_logging(): learn.lr_find(start_lr=1e-3, num_it=5, show_plot=False)
    assert all(torch.equal(v, before[k]) for k, v in learn.distill.beside.state_dict().items())

@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'before_step', 'before_validate'])
def test_an_interrupt_leaves_no_one_listening(event):
    stop = type('Stop', (Callback,), {event: lambda self: (_ for _ in ()).throw(KeyboardInterrupt()), 'order': 1})
    learn = inside('mgd')
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=[stop()])
    learn.distill.close() # as a learner of ours does
    assert not any(o._forward_hooks for o in learn.model.modules()) and np.isfinite(fit(learn)).all()

def test_it_begins_from_the_seed():
    first, again, other = (inside('pefd') for _ in range(3))
    other.clock.seed = 7
    torch.manual_seed(5)
    for learn in (first, again, other): fit(learn, lr=0.)
    a, b, c = (o.distill.beside['adapter'].projectors[0].weight for o in (first, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_a_lost_training_begins_anew():
    learn = inside('pefd', DivergenceGuard())
    fit(learn, lr=0.)
    fresh = copy.deepcopy(learn.distill.beside.state_dict())
    for p in learn.distill.beside.parameters(): p.data.fill_(math.nan)
    with pytest.raises(InputError, match='the loss is nan'): fit(learn)
    assert all(torch.equal(v, fresh[k]) for k, v in learn.distill.beside.state_dict().items())
    assert np.isfinite(fit(learn)).all()

def test_the_last_stage_is_usual_and_of_attention_all():
    learn = learner(Distill(create_model(RESNET, num_classes=C), kind='afd', dim=4), model=create_model(RESNET, num_classes=C))
    fit(learn)
    assert learn.distill.taps == [['act1', 'layer1', 'layer2', 'layer3', 'layer4']]*2
    learn = learner(Distill(create_model(RESNET, num_classes=C), kind='pefd'), model=create_model(RESNET, num_classes=C))
    fit(learn)
    assert learn.distill.taps == [['layer4']]*2

def test_a_teacher_that_sees_other_pictures():
    larger = Preprocess(crop=(24, 24), resize_short=24, mean=(0., 0., 0.), std=(1., 1., 1.))
    learn = learner(Distill(net(9, width=6), larger, kind='mgd', layers='2', teacher_layers='2'))
    assert np.isfinite(fit(learn)).all()

def test_in_bfloat16():
    for kind in INSIDE: assert np.isfinite(fit(inside(kind, Precision()))).all()

def test_memory_that_runs_out_is_said():
    class Full(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.armed = nn.Linear(4, C), False
        def forward(self, x):
            if self.armed and torch.is_grad_enabled(): raise torch.OutOfMemoryError
            return self.inner(x)
    learn = inside('mgd', BackOff())
    learn.model[6] = full = Full()
    full.armed = True
    with pytest.raises(InputError, match='with 12 pictures, and a distillation by layers.* as a whole. Take bs=6'): fit(learn)

@pytest.mark.parametrize('args, says', [
    (dict(layers='2'), "kind='kl' compares logits, and no layers. Those that compare layers are afd, mgd, pefd, udml"),
    (dict(kind='mgd', layer='2'), 'Layers of the student are named by layers'), (dict(kind='mgd', mask=2), 'from 0 to 1'),
    (dict(kind='pefd', projectors=0), 'whole number of 1 or more'), (dict(kind='afd', dim=1.5), 'whole number of 1 or more'),
    (dict(kind='udml'), 'Give the name of one as teacher'), (dict(kind='udml', teacher='resnet1'), 'no architecture'),
    (dict(kind='udml', teacher=RESNET, preprocess=PRE), 'both networks get the same pictures'),
    (dict(kind='mgd', teacher=lambda x: x), 'neither a model.onnx nor a function says what is inside')],
    ids=lambda o: str(o).partition(' at 0x')[0])
def test_layers_that_cannot_be_asked_for(args, says):
    with pytest.raises(InputError, match=says): Distill(**dict(teacher=net(9)) | args)

@pytest.mark.parametrize('args, cbs, says', [
    (dict(layers='99'), [], "The Sequential has no layer '99'"), (dict(layers=['0', '2']), [], 'of the student are 2'),
    (dict(layers='5'), [], r"'5' gives \(4,\) for a picture"), (dict(layers=None), [], 'does not say where its stages end'),
    ({}, [CompileModel()], "Leave 'compile' out")], ids=str)
def test_layers_that_are_not_heard(args, cbs, says):
    with pytest.raises(InputError, match=says): fit(inside('mgd', *cbs, args=args))

def test_two_networks_know_no_mixed_pictures():
    with pytest.raises(InputError, match='Leave mix out'): fit(inside('udml', MixBatch('mixup', 7)))

@pytest.mark.parametrize('lost, says', [('clock', 'Add Clock'), ('preprocess', 'how large pictures are')])
def test_what_layers_need(lost, says):
    learn = inside('mgd', clock=lost != 'clock')
    if lost == 'preprocess': del learn.dls.preprocess
    with pytest.raises(InputError, match=says): fit(learn)

# What does not fit

@pytest.mark.parametrize('teacher, message', [
    (net(9, c=3), r'teacher gives shape \(12, 3\) where the student gives shape \(12, 4\).*same classes'),
    (nn.Conv2d(3, 4, 12), r'gives shape \(12, 4, 1, 1\)'), (lambda x: (torch.zeros(len(x), C),)*2, 'gives a tuple.*logits alone'),
    (lambda x: torch.zeros(1, C), r'gives shape \(1, 4\)'), (lambda x: None, 'gives a NoneType')],
    ids=['classes', 'map', 'tuple', 'batch', 'none'])
def test_answers_that_do_not_fit(teacher, message):
    learn = learner(Distill(teacher))
    before = copy.deepcopy(learn.model.state_dict())
    with pytest.raises(InputError, match=message): fit(learn)
    assert all(torch.equal(v, before[k]) for k, v in learn.model.named_parameters()), "before the first step"

@pytest.mark.parametrize('args, message', [
    (dict(kind='dk'), "kind='dk' is unknown. Use one of kl, dkd.*Did you mean"), (dict(kind=None), 'kind=None is unknown'),
    (dict(beta=1.), "kind='kl' takes no 'beta'.*alpha, temperature"), (dict(temprature=1), "Did you mean 'temperature'"),
    (dict(kind='dkd', bета=1.), "takes no.*alpha, beta, temperature"), (dict(alpha=1.5), 'alpha=1.5 does not fit.*0 to 1'),
    *[(dict(temperature=o), 'temperature=.* does not fit.*above 0') for o in (0, -1, math.nan, math.inf, '4', True)],
    (dict(kind='dkd', beta=-1), 'beta=-1 does not fit.*0 or more'),
    (dict(warmup_epochs=-1), 'warmup_epochs=-1 does not fit')], ids=str)
def test_arguments_that_do_not_fit(args, message):
    with pytest.raises(InputError, match=message): Distill(net(9), **args)

def test_weights_of_the_decoupled_may_be_large(): assert Distill(net(9), kind='dkd', alpha=3., beta=0.).args['alpha'] == 3

@pytest.mark.parametrize('teacher, says', [('resnet18', 'no teacher at'), (None, 'cannot be asked'), (5, 'cannot be asked'),
                                           (nn.Linear, 'cannot be asked')], ids=str)
def test_what_cannot_be_asked(teacher, says):
    with pytest.raises(InputError, match=says): Distill(teacher)

def test_before_the_first_batch():
    model = net()
    grey = Preprocess(crop=(12, 12), resize_short=12, mean=(.5,), std=(.5,))
    cases = [(learner(Distill(model), model=model), 'shares weights'),
             (learner(Distill(nn.Sequential(model)), model=model), 'copy'),
             (learner(Distill(net(9), warmup_epochs=1), clock=False), 'Add Clock'),
             (learner(Distill(net(9), grey)), 'takes grey pictures')]
    unsaid = learner(Distill(net(9), PRE))
    del unsaid.dls.preprocess
    for learn, message in [*cases, (unsaid, 'do not say how they normalize')]:
        with pytest.raises(InputError, match=message): fit(learn)
        assert not hasattr(learn, 'clock') or learn.clock.steps == 0
