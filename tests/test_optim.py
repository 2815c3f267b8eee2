"Optimizers by name: the same steps as torch's own, steered in depths, exact after a file, still where frozen"
import json
import math
from functools import partial

import fastai.callback.schedule
import fastai.optimizer
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from timm.optim import Lamb, RMSpropTF, list_optimizers
from torch import nn

from imgcls_nb.checkpoints import state_from_bytes, state_to_bytes
from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.models import create_model, split_params
from imgcls_nb.optim import OPTIMIZERS, DepthOptimizer, add_params, make_optimizer, read_optimizer

SOME = ['sgd', 'adamw', 'lamb', 'rmsprop', 'rmsproptf', 'muon', 'adan', 'lion', 'adafactor', 'nadamuon']

def net(seed=0, layout=torch.channels_last): # three depths: filters with their norm, a hidden layer, a head
    torch.manual_seed(seed)
    stem = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    body = nn.Linear(32, 16), nn.LayerNorm(16), nn.ReLU()
    return nn.Sequential(nn.Sequential(*stem), nn.Sequential(*body), nn.Linear(16, 3)).to(memory_format=layout)

def depths(model): return [list(o.parameters()) for o in model]

def make(name='sgd', model=None, **kwargs):
    model = model or net()
    return model, make_optimizer(name, model, depths(model), **kwargs)

def train(model, opt, n, start=0):
    for i in range(start, start + n):
        x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(i))
        F.cross_entropy(model(x), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
        opt.step()
        opt.zero_grad()

def weights(model): return [p.detach().clone() for p in model.parameters()]

def equal(a, b): return all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))

def below(opt): # what torch steps with: rate and decay of each of its groups
    opt.hand_over()
    return [(o['lr'], o['weight_decay']) for o in opt.opt.param_groups]

# Names and arguments

def test_names():
    assert {'sgd', 'nesterov', 'adamw', 'adam', 'lamb', 'lars', 'rmsprop', 'rmsproptf', 'muon', 'lion', 'adan'} <= set(OPTIMIZERS)
    assert set(OPTIMIZERS) < set(list_optimizers()) and all(isinstance(o, str) and o for o in OPTIMIZERS.values())

@pytest.mark.parametrize('name, args, native', [
    ('sgd', {}, {}), ('SGD', dict(mom=.8), dict(momentum=.8)), ('momentum', dict(momentum=.8), dict(momentum=.8)),
    ('sgd', dict(mom=0, nesterov=False), dict(momentum=0, nesterov=False)),
    ('adamw', dict(mom=.8), dict(betas=(.8, .999))), ('adamw', dict(sqr_mom=.99), dict(betas=(.9, .99))),
    ('adamw', dict(mom=.8, sqr_mom=.99, eps=1e-5), dict(betas=(.8, .99), eps=1e-5)),
    ('adamw', dict(betas=[.8, .99]), dict(betas=(.8, .99))), ('adam', dict(amsgrad=True), dict(amsgrad=True)),
    ('adanw', dict(mom=.5, sqr_mom=.6), dict(betas=(.5, .92, .6))), ('rmsprop', dict(sqr_mom=.95), dict(alpha=.95)),
    ('rmsproptf', dict(mom=.9, sqr_mom=.95, eps=1e-6), dict(momentum=.9, alpha=.95, eps=1e-6)),
    ('muon', dict(mom=.95, sqr_mom=.99, ns_steps=4), dict(momentum=.95, betas=(.9, .99), ns_steps=4)),
    ('cadafactor', dict(betas=[.5, .999]), dict(betas=(.5, .999))),
    ('adafactor', dict(betas=(.5, .9)), dict(betas=(.5, .9)))], ids=str)
def test_arguments(name, args, native): assert read_optimizer(name, args) == (name.lower(), native)

@pytest.mark.parametrize('name, args, says', [
    ('adamv', {}, "opt='adamv' is unknown.*'adamw'.*OPTIMIZERS lists all"), ('', {}, "opt='' is unknown"),
    (None, {}, 'opt=None is unknown'), (5, {}, 'opt=5 is unknown'), ('moun', {}, "Did you mean 'muon'"),
    ('cadannw', {}, "Did you mean 'adanw'"), ('nadamwlegacy', {}, 'is unknown'),
    ('fusedlamb', {}, "cannot be used: it needs the package 'apex' and a CUDA device"),
    ('bnbsgd8bit', {}, "needs the package 'bitsandbytes'"),
    ('adahessian', {}, 'needs second derivatives'), ('kron', {}, 'random generator of its own'),
    ('adamc', {}, "must know the highest rate"), ('lookahead_adamw', {}, 'is unknown'),
    ('adamw', dict(momentum=.9), "takes no 'momentum'.*It takes: mom, sqr_mom, "), ('adamw', dict(epps=1), "Did you mean 'eps'"),
    ('sgd', dict(sqr_mom=.9), "opt='sgd' takes no 'sqr_mom'"), ('lion', dict(eps=1e-8), "takes no 'eps'"),
    ('adagrad', dict(mom=.9), "takes no 'mom'"), ('sgd', dict(lr=1), "takes no 'lr'.*method that trains"),
    ('sgd', dict(weight_decay=1), "takes no 'weight_decay'.*as wd"),
    ('sgd', dict(mom=.9, momentum=.8), 'mom=0.9 and momentum=0.8 say the same thing'),
    ('adamw', dict(mom=.9, betas=(.9, .99)), r'mom=0.9 and betas=\(0.9, 0.99\) say the same'),
    ('sgd', dict(mom=-1), 'cannot be built with .*Invalid momentum'), ('sgd', dict(mom='x'), 'cannot be built'),
    ('adamw', dict(mom=1.5), 'cannot be built with .*Invalid beta'), ('adamw', dict(eps=-1), 'Invalid epsilon'),
    ('adamw', dict(betas=.9), 'cannot be built'), ('nesterov', dict(mom=0), 'cannot be built'),
    ('muon', dict(algo='nuon'), 'Invalid algo')], ids=str)
def test_what_cannot_be(name, args, says):
    with pytest.raises(InputError, match=says): read_optimizer(name, args)
    if 'lr' in args: return # an argument of its own
    with pytest.raises(InputError, match=says): make_optimizer(name, net(), depths(net()), **args)

# The same steps as the optimizer's own class

CASES = [ # name, arguments, and what they mean
    ('sgd', dict(wd=.1), torch.optim.SGD, dict(momentum=.9, weight_decay=.1)),
    ('sgd', dict(mom=0), torch.optim.SGD, {}), ('nesterov', dict(mom=.8), torch.optim.SGD, dict(momentum=.8, nesterov=True)),
    ('adam', dict(wd=.1), torch.optim.Adam, dict(weight_decay=.1)), ('adamw', {}, torch.optim.AdamW, dict(weight_decay=.01)),
    ('adamw', dict(wd=.1, mom=.8, sqr_mom=.99, eps=1e-5), torch.optim.AdamW, dict(weight_decay=.1, betas=(.8, .99), eps=1e-5)),
    ('adamw', dict(wd=0, amsgrad=True), torch.optim.AdamW, dict(weight_decay=0, amsgrad=True)),
    ('lamb', dict(wd=.1), Lamb, dict(weight_decay=.1)),
    ('rmsproptf', dict(wd=.1, mom=.5), RMSpropTF, dict(weight_decay=.1, momentum=.5)),
    ('adagrad', {}, torch.optim.Adagrad, dict(eps=1e-8))]

@pytest.mark.parametrize('name, args, cls, kwargs', CASES, ids=str)
@pytest.mark.parametrize('decay_norm_bias', [False, True])
def test_steps_are_those_of_the_class(name, args, cls, kwargs, decay_norm_bias):
    model, opt = make(name, lr=.01, decay_norm_bias=decay_norm_bias, **args)
    twin = net()
    kinds = [p for p in twin.parameters() if p.ndim > 1], [p for p in twin.parameters() if p.ndim <= 1]
    free = {} if decay_norm_bias else dict(weight_decay=0.)
    train(model, opt, 4)
    train(twin, cls([dict(params=kinds[0]), dict(params=kinds[1], **free)], lr=.01, **kwargs), 4)
    for p, q in zip(weights(model), weights(twin)): assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)
    assert not any(torch.equal(p, q) for p, q in zip(weights(model), weights(net())))

def one(name, grads, start=1., lr=.1, **kwargs): # one number, and the gradients it is given
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(start)
    opt, path = make_optimizer(name, model, [[model.weight]], lr=lr, **kwargs), []
    for g in grads:
        model.weight.grad = torch.full((1, 1), float(g), dtype=torch.float64)
        opt.step()
        path.append(model.weight.item())
    return path

def test_momentum_has_the_decay_in_the_gradient(): # v = mom*v + g + wd*p; p = p - lr*v
    p, v, want = 1., 0., []
    for g in (.5, -.2, .3):
        v = .9*v + g + .1*p
        p -= .1*v
        want.append(p)
    assert one('sgd', (.5, -.2, .3), wd=.1) == pytest.approx(want)

def test_adamw_has_the_decay_beside_the_gradient_and_adam_within():
    p, m, s, want = 1., 0., 0., []
    for t, g in enumerate((.5, -.2, .3), 1):
        p *= 1 - .1*.2
        m, s = .9*m + .1*g, .999*s + .001*g*g
        p -= .1*m/(1 - .9**t)/(math.sqrt(s/(1 - .999**t)) + 1e-8)
        want.append(p)
    assert one('adamw', (.5, -.2, .3), wd=.2) == pytest.approx(want)
    assert one('adam', (.5,), wd=.2) == pytest.approx([1 - .1*.7/(.7 + 1e-8)])

def test_rmsproptf_has_eps_under_the_root(): # and the rate within the momentum
    p, v, s, want = 1., 0., 1., []
    for g in (.5, -.2, .3):
        s += .1*(g*g - s)
        v = .9*v + .1*g/math.sqrt(s + .01)
        p -= v
        want.append(p)
    assert one('rmsproptf', (.5, -.2, .3), mom=.9, sqr_mom=.9, eps=.01) == pytest.approx(want)

def test_muon_turns_matrices_only():
    model, opt = make('muon', lr=.01)
    train(model, opt, 1)
    turned = {tuple(p.shape): opt.opt.state[p]['use_muon'] for p in model.parameters()}
    assert turned == {(8, 3, 3, 3): True, (8,): False, (16, 32): True, (16,): False, (3, 16): False, (3,): False}

# Depths, and what decays in each

def test_depths_are_not_groups_of_decay():
    model, opt = make('adamw', lr=slice(1e-4, 1e-2), wd=.1)
    assert [len(o) for o in opt.param_lists] == [3, 4, 2] and len(opt.hypers) == 3
    assert [o['lr'] for o in opt.hypers] == pytest.approx([1e-4, 1e-3, 1e-2])
    assert below(opt) == [(pytest.approx(lr), wd) for lr in (1e-4, 1e-3, 1e-2) for wd in (.1, 0)]
    kinds = [[p.ndim > 1 for p in o['params']] for o in opt.opt.param_groups]
    assert kinds == [[True], [False]*2, [True], [False]*3, [True], [False]]

@pytest.mark.parametrize('lr, want', [
    (.3, [.3]*3), ([.1, .2, .3], [.1, .2, .3]), (np.array([.1, .2, .3]), [.1, .2, .3]), ([.3], [.3]*3), (np.float64(.3), [.3]*3),
    (slice(.3), [.03, .03, .3]), (slice(.003, .3), [.003, .03, .3]), (torch.tensor(.25), [.25]*3)], ids=str)
def test_ways_to_say_it(lr, want):
    _, opt = make()
    opt.set_hypers(lr=lr)
    assert [o['lr'] for o in opt.hypers] == pytest.approx(want) and {type(o['lr']) for o in opt.hypers} == {float}
    assert [o['lr'] for o in make(lr=lr)[1].hypers] == pytest.approx(want)

@pytest.mark.parametrize('hyper, says', [
    (dict(lr=[.1, .2]), r"lr=\[0.1, 0.2\] has 2 values for 3 groups of depth"), (dict(lr='fast'), "lr='fast' is no number"),
    (dict(lr=None), 'is no number'), (dict(lr=slice(None)), 'is no number'), (dict(lr=['a', 'b', 'c']), 'is no number'),
    (dict(mon=.9), "has no 'mon'. Did you mean 'mom'"), (dict(sqr_mom=.9), "has no 'sqr_mom'"),
    (dict(betas=(1, 2)), 'no .betas')])
def test_numbers_that_cannot_be(hyper, says):
    with pytest.raises(InputError, match=says): make()[1].set_hypers(**hyper)

@pytest.mark.parametrize('name, slots', [
    ('sgd', dict(mom=.7)), ('adamw', dict(mom=.7, sqr_mom=.8, eps=.1)), ('rmsprop', dict(mom=.7, sqr_mom=.8, eps=.1)),
    ('adanw', dict(mom=.7, sqr_mom=.8)), ('muon', dict(mom=.7, sqr_mom=.8)), ('lars', dict(mom=.7)), ('adagrad', {})])
def test_numbers_reach_torch(name, slots):
    _, opt = make(name)
    assert opt.slots.keys() >= slots.keys() and opt.hypers[0].keys() >= slots.keys()
    opt.set_hypers(lr=.5, wd=.25, **slots)
    opt.hand_over()
    for o in opt.opt.param_groups:
        assert (o['lr'], o['weight_decay']) == (.5, .25 if o['decays'] else 0)
        found = dict(mom=o.get('momentum', (o.get('betas') or [None])[0]), eps=o.get('eps'),
                     sqr_mom=o.get('alpha', (o.get('betas') or [None])[-1]))
        assert {k: found[k] for k in slots} == slots
    if name == 'adanw': assert o['betas'] == (.7, .92, .8)
    if name == 'muon': assert o['betas'] == (.9, .8), "the first is AdamW's, for what is no matrix"

def test_each_depth_has_its_own():
    _, opt = make('adamw')
    opt.set_hypers(mom=[.1, .2, .3], wd=[.4, .5, .6])
    opt.hand_over()
    assert [o['betas'][0] for o in opt.opt.param_groups] == [.1, .1, .2, .2, .3, .3]
    assert [o['weight_decay'] for o in opt.opt.param_groups] == [.4, 0, .5, 0, .6, 0]

@pytest.mark.parametrize('name, args', [('adagrad', {}), ('sgd', dict(mom=0)), ('adamw', dict(mom=0))], ids=str)
def test_an_optimizer_without_momentum_stays_without(name, args):
    (model, opt), (twin, plain) = make(name, lr=.01, **args), make(name, lr=.01, **args)
    opt.set_hypers(mom=.95)
    train(model, opt, 3), train(twin, plain, 3)
    assert opt.hypers[-1]['mom'] == .95 and equal(model, twin)

def test_factors_of_depth_multiply_whatever_is_set():
    _, opt = make(lr=slice(.001, .1), layer_scales=[.25, .5, 1])
    assert [o['lr'] for o in opt.hypers] == pytest.approx([.001, .01, .1])
    assert [o[0] for o in below(opt)[::2]] == pytest.approx([.00025, .005, .1])
    opt.set_hyper('lr', .8)
    assert [o[0] for o in below(opt)] == [.2, .2, .4, .4, .8, .8] and [o['lr'] for o in opt.hypers] == [.8]*3

@pytest.mark.parametrize('scales', [[1, 1], [1]*4, [1, -1, 1], []])
def test_factors_that_do_not_fit(scales):
    with pytest.raises(InputError, match='do not fit 3 groups of depth'): make(layer_scales=scales)

ARCHS = ['test_vit', 'test_resnet', 'mobilenetv3_small_050', 'convnext_atto', 'swin_tiny_patch4_window7_224']

@pytest.mark.parametrize('arch', ARCHS)
def test_what_decays_in_a_network(arch):
    with torch.device('meta'): model = create_model(arch)
    opt = make_optimizer('adamw', model, split_params(model), wd=.1)
    decays = {id(p): o['decays'] for o in opt.opt.param_groups for p in o['params']}
    patterns = getattr(model, 'no_weight_decay', set)()
    for name, p in model.named_parameters():
        named = any(o.strip('*') in name for o in patterns)
        assert decays[id(p)] == (p.ndim > 1 and not name.endswith('.bias') and not named), name
    assert len(decays) == len(list(model.parameters())) and set(decays.values()) == {True, False}
    everything = make_optimizer('adamw', model, split_params(model), wd=.1, decay_norm_bias=True)
    assert all(o['decays'] for o in everything.opt.param_groups)
    assert [o['depth'] for o in opt.opt.param_groups] == sorted(o['depth'] for o in opt.opt.param_groups)

@pytest.mark.parametrize('named', [(), ('norm', '.bias'), ('relative_position_bias_table', 'logit_scale')], ids=str)
@pytest.mark.parametrize('flat', [False, True])
def test_a_recipe_names_what_does_not_decay(named, flat):
    with torch.device('meta'): model = create_model('swinv2_cr_tiny_ns_224')
    opt = make_optimizer('adamw', model, split_params(model), wd=.1, decay_norm_bias=not flat, no_decay=named)
    decays = {id(p): o['decays'] for o in opt.opt.param_groups for p in o['params']}
    for name, p in model.named_parameters():
        assert decays[id(p)] == (not any(o in name for o in named) and not (flat and p.ndim <= 1)), name
    assert len(decays) == len(list(model.parameters()))

def test_a_vit_keeps_its_embeddings():
    with torch.device('meta'): model = create_model('test_vit')
    opt = make_optimizer('muon', model, split_params(model), wd=.1)
    apart = {id(p) for o in opt.opt.param_groups if not o['decays'] for p in o['params']}
    assert {id(model.pos_embed), id(model.cls_token)} <= apart and id(model.head.weight) not in apart
    assert all(o.get('use_fallback', False) == (not o['decays']) for o in opt.opt.param_groups)

# Frozen

@pytest.mark.parametrize('name', SOME)
@pytest.mark.parametrize('clear', [False, True])
def test_what_is_frozen_does_not_move(name, clear):
    model, opt = make(name, lr=.01, wd=.5)
    train(model, opt, 2)
    opt.freeze_to(-1)
    if clear: opt.clear_state()
    before = weights(model)
    train(model, opt, 2)
    assert [torch.equal(p, q) for p, q in zip(before, weights(model))] == [True]*7 + [False]*2
    assert [p.requires_grad for p in model.parameters()] == [False]*7 + [True]*2 and opt.frozen_idx == 2
    opt.unfreeze()
    train(model, opt, 1)
    assert not any(torch.equal(p, q) for p, q in zip(before, weights(model)))

def test_a_gradient_is_gone_when_its_layer_is_frozen():
    model, opt = make(lr=.1)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    before = weights(model)
    opt.freeze_to(1)
    opt.step()
    assert [torch.equal(p, q) for p, q in zip(before, weights(model))] == [True]*3 + [False]*6

def test_what_fastai_keeps_training_is_trained():
    model, opt = make(lr=.1)
    for p in model[0][1].parameters(): opt.state[p]['force_train'] = True
    opt.freeze_to(2)
    before = weights(model)
    train(model, opt, 1)
    opt.clear_state()
    train(model, opt, 1)
    assert [torch.equal(p, q) for p, q in zip(before, weights(model))] == [True] + [False]*2 + [True]*4 + [False]*2

@pytest.mark.parametrize('name', ['lamb', 'adan', 'adamw', 'radam'])
def test_what_is_frozen_does_not_age(name): # whose bias correction counts the steps of a whole group
    (model, opt), twin = make(name, lr=.01), net()
    opt.freeze_to(2)
    train(model, opt, 5)
    for p, q in zip(depths(model)[2], depths(twin)[2]): q.data.copy_(p)
    model[0][1].reset_running_stats()
    for p, q in zip(twin.parameters(), model.parameters()): assert torch.equal(p, q)
    fresh = make_optimizer(name, twin, depths(twin), lr=.01)
    for o in (opt, fresh): o.freeze_to(0), o.param_lists[2].map(lambda p: p.requires_grad_(False))
    train(model, opt, 2), train(twin, fresh, 2)
    assert equal(model, twin)

def test_nothing_to_do():
    for name in ('sgd', 'lamb', 'adan'):
        model, opt = make(name)
        before = weights(model)
        opt.step()
        assert all(torch.equal(p, q) for p, q in zip(before, weights(model))) and not opt.opt.state

# Saved and continued

def through_a_file(sd):
    json.dumps(sd, default=lambda o: 'tensor' if isinstance(o, torch.Tensor) else 1/0)
    return state_from_bytes(state_to_bytes(sd))

@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
def test_three_and_three_are_six(name):
    whole, half, rest = (make(name, lr=slice(.001, .01), wd=.05, layer_scales=[.5, 1, 1]) for _ in range(3))
    train(*whole, 6)
    train(*half, 3)
    sd = through_a_file(half[1].state_dict())
    rest[0].load_state_dict(half[0].state_dict())
    rest[1].set_hypers(lr=9., wd=9.)
    rest[1].load_state_dict(sd)
    before = through_a_file(sd)
    train(*rest, 3, start=3)
    assert equal(whole[0], rest[0]) and not equal(half[0], rest[0]) and all(o.isfinite().all() for o in weights(rest[0]))
    assert all(torch.equal(a, b) for a, b in zip(tensors(before), tensors(sd), strict=True)), "what was loaded is not trained on"

def tensors(o):
    if isinstance(o, torch.Tensor): return [o]
    return [t for v in (o.values() if isinstance(o, dict) else o if isinstance(o, list) else ()) for t in tensors(v)]

@pytest.mark.parametrize('name', sorted(OPTIMIZERS))
def test_without_its_state_it_is_new(name):
    (model, opt), (twin, fresh) = make(name, lr=.01), make(name, lr=.01)
    train(model, opt, 2)
    model.load_state_dict(twin.state_dict())
    opt.clear_state()
    train(model, opt, 3), train(twin, fresh, 3)
    assert equal(model, twin)

@pytest.mark.parametrize('name', SOME)
@pytest.mark.parametrize('n, force', [(1, False), (2, True)])
def test_three_and_three_are_six_where_parts_are_frozen(name, n, force):
    whole, half, rest = (make(name, lr=.01, wd=.1) for _ in range(3))
    for model, opt in (whole, half, rest):
        if force: opt.state[model[0][1].weight]['force_train'] = True
        train(model, opt, 1) # every part has a state
        opt.freeze_to(n)
    train(*whole, 6, start=1)
    train(*half, 3, start=1)
    rest[0].load_state_dict(half[0].state_dict())
    sd = through_a_file(half[1].state_dict())
    rest[1].load_state_dict(sd)
    train(*rest, 3, start=4)
    assert sd['frozen'] == n and equal(whole[0], rest[0])
    for o in (whole, rest): o[1].unfreeze(), train(*o, 2, start=7)
    assert equal(whole[0], rest[0])

def test_a_state_from_before_the_first_step():
    for name in ('adamw', 'lamb'):
        (model, opt), (twin, fresh) = make(name), make(name)
        sd = through_a_file(opt.state_dict())
        train(model, opt, 3)
        opt.load_state_dict(sd)
        model.load_state_dict(twin.state_dict())
        train(model, opt, 2), train(twin, fresh, 2)
        assert equal(model, twin)

def test_loading_sets_numbers_and_leaves_freezing():
    (_, opt), (model, other) = make(lr=slice(.01, .1), wd=.3, mom=.5), make()
    opt.freeze_to(2)
    other.load_state_dict(through_a_file(opt.state_dict()))
    assert other.hypers == opt.hypers and other.hypers[0] is not opt.hypers[0]
    assert other.frozen_idx == 0 and all(p.requires_grad for p in model.parameters())

def test_what_does_not_fit_is_refused():
    model, opt = make('adamw')
    train(model, opt, 1)
    sd = opt.state_dict()
    wide = nn.Sequential(*list(net())[:2], nn.Linear(16, 5))
    cases = [(make('sgd')[1], "is of opt='adamw', the optimizer is 'sgd'"),
             (make('adamw', wide)[1], 'other parameters: 9 tensors in 6 groups against 9 tensors in 6 .*3x16 against 5x16'),
             (make_optimizer('adamw', model, [list(model.parameters())]), '9 tensors in 6 groups against 9 tensors in 2 groups'),
             (make_optimizer('adamw', model, depths(model)[:2]), 'against 7 tensors in 4 groups')]
    for other, says in cases:
        before = other.state_dict()
        with pytest.raises(InputError, match=says): other.load_state_dict(sd)
        assert before == other.state_dict()
    plain = fastai.optimizer.Adam(depths(net()), lr=.1).state_dict()
    for wrong in (plain, {}, None, [], {k: v for k, v in sd.items() if k != 'hypers'}):
        with pytest.raises(InputError, match='no state of an optimizer that make_optimizer built'): opt.load_state_dict(wrong)

# Fast loops, and how tensors lie in memory

LAYOUTS = [torch.channels_last, torch.contiguous_format]

@pytest.mark.parametrize('name', ['sgd', 'adam', 'adamw', 'adagrad'])
@pytest.mark.parametrize('layouts', [LAYOUTS, LAYOUTS[::-1]])
def test_fused_loops_survive_another_layout(name, layouts):
    (model, opt), (twin, plain) = (make(name, net(layout=layouts[0]), lr=.01, **o) for o in ({}, dict(foreach=False)))
    assert {o['fused'] for o in opt.opt.param_groups} == {True} and not any(o['fused'] for o in plain.opt.param_groups)
    for i in range(3):
        for m, o in ((model, opt), (twin, plain)):
            for j, p in enumerate(m.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100*i + j))
                if p.ndim == 4: p.grad = p.grad.to(memory_format=layouts[1])
            o.step()
            m.to(memory_format=layouts[i % 2]) # and so the momentum lies otherwise than the weights
    for p, q in zip(weights(model), weights(twin)): assert torch.allclose(p, q, rtol=1e-5, atol=1e-6)

def test_a_file_does_not_change_the_layout():
    model, opt = make('adamw')
    train(model, opt, 1)
    _, other = make('adamw', model)
    other.load_state_dict(through_a_file(opt.state_dict()))
    for p in model.parameters():
        for o in (opt, other): assert all(v.stride() == p.stride() for k, v in o.opt.state[p].items() if k != 'step')

# In a learner

@pytest.fixture(scope='module')
def dls(shapes): return image_dls(shapes, size=32, bs=16, aug='light', device='cpu', num_workers=0)

def learner(dls, name='adamw', opt_func=None, cbs=(), lr=5e-3, **kwargs):
    torch.manual_seed(0)
    model = create_model('test_resnet', num_classes=3)
    return Learner(dls, model, CrossEntropyLossFlat(), opt_func or partial(make_optimizer, name, model, **kwargs), lr=lr,
                   splitter=split_params, cbs=list(cbs), path='.')

class Rates(Callback):
    "The rates that each step was done with, as torch sees them"
    order = 90
    def before_fit(self): self.seen = []
    def after_step(self): self.seen.append([o['lr'] for o in self.opt.opt.param_groups if o['decays']])

METHODS = [('fit', (2, slice(1e-3, 1e-2))), ('fit_one_cycle', (2, slice(1e-2))), ('fit_flat_cos', (2, 1e-2)),
           ('fine_tune', (2, 1e-2))]

@pytest.mark.parametrize('method, args', METHODS, ids=lambda o: o if isinstance(o, str) else '')
@pytest.mark.parametrize('name', ['sgd', 'adamw', 'muon', 'rmsproptf'])
def test_fastais_methods(dls, name, method, args):
    rates = Rates()
    learn = learner(dls, name, cbs=[rates], wd=.01)
    with learn.no_bar(), learn.no_logging(): getattr(learn, method)(*args)
    n = len(dls.train)
    assert isinstance(learn.opt, DepthOptimizer) and len(rates.seen) == 2*n
    assert [o[-1] for o in rates.seen] == pytest.approx(learn.recorder.lrs[-2*n:])
    assert all(o.isfinite().all() for o in weights(learn.model))
    if method == 'fit': assert np.allclose(rates.seen, np.geomspace(1e-3, 1e-2, len(rates.seen[0])))
    if method != 'fit_flat_cos': assert all(o[0] < o[-1] for o in rates.seen)

@pytest.mark.parametrize('opt_func, name, args', [
    (partial(fastai.optimizer.SGD, mom=.9, decouple_wd=False), 'sgd', {}),
    (fastai.optimizer.Adam, 'adamw', dict(sqr_mom=.99, eps=1e-5))], ids=['sgd', 'adamw'])
@pytest.mark.parametrize('method, args_', METHODS, ids=lambda o: o if isinstance(o, str) else '')
def test_as_fastais_own(dls, opt_func, name, args, method, args_):
    losses = []
    for o in (None, opt_func):
        dls.train.epoch = 0
        learn = learner(dls, name, o, **args)
        learn.wd = .1
        with learn.no_bar(), learn.no_logging(): getattr(learn, method)(*args_)
        losses.append(learn.recorder.losses)
    assert np.allclose(*losses, atol=2e-3), "the same training, in another order of sums"

def test_lr_find_puts_all_back(dls, tmp_path):
    learn = learner(dls)
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        before, sd = weights(learn.model), through_a_file(learn.opt.state_dict())
        found = learn.lr_find(num_it=10, show_plot=False)
    assert 0 < found.valley < 10 and all(torch.equal(p, q) for p, q in zip(before, weights(learn.model)))
    assert all(torch.equal(p, q) for p, q in zip(tensors(sd), tensors(learn.opt.state_dict()), strict=True))
    assert learn.opt.state_dict()['hypers'] == sd['hypers']

def test_freezing_in_a_learner_keeps_the_norms_training(dls):
    learn = learner(dls)
    learn.freeze()
    before = dict(zip((n for n, _ in learn.model.named_parameters()), weights(learn.model)))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    moved = {n for n, p in learn.model.named_parameters() if not torch.equal(p, before[n])}
    norms = {f'{n}.{k}' for n, m in learn.model.named_modules() if isinstance(m, nn.BatchNorm2d) for k, _ in m.named_parameters()}
    assert moved == norms | {'fc.weight', 'fc.bias'}

def test_saved_by_a_learner(dls, tmp_path):
    learn = learner(dls)
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    sd, before = through_a_file(learn.opt.state_dict()), weights(learn.model)
    learn.save('stage')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.load('stage')
    assert all(torch.equal(p, q) for p, q in zip(before, weights(learn.model)))
    assert all(torch.equal(p, q) for p, q in zip(tensors(sd), tensors(learn.opt.state_dict()), strict=True))

# One more module

def extra(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

@pytest.mark.parametrize('name', SOME)
def test_one_more_module_is_stepped_with_the_head(name):
    (model, opt), more = make(name, lr=slice(1e-4, 1e-2)), extra()
    before, n = weights(more), len(opt.hypers)
    add_params(opt, more)
    assert len(opt.hypers) == len(opt.param_lists) == n
    for p in (*model.parameters(), *more.parameters()): p.grad = torch.ones_like(p)
    opt.step()
    assert not any(torch.equal(p, q) for p, q in zip(before, weights(more)))
    assert {o['lr'] for o in opt.opt.param_groups if o['depth'] == n - 1} == {1e-2}
    opt.zero_grad()
    assert all(p.grad is None for p in more.parameters())

@pytest.mark.parametrize('how, decayed', [
    ({}, {'0.weight'}), (dict(decay_norm_bias=True), {'0.weight', '0.bias', '1.weight', '1.bias'}),
    (dict(no_decay=('1.',), decay_norm_bias=True), {'0.weight', '0.bias'})],
    ids=lambda o: ' '.join(sorted(o))) # the order in a set differs
def test_one_more_module_decays_by_the_same_rules(how, decayed):
    (_, opt), more = make('adamw', wd=.1, **how), extra()
    add_params(opt, more)
    names = {id(p): k for k, p in more.named_parameters()}
    assert {names[id(p)] for o in opt.opt.param_groups if o['decays'] for p in o['params'] if id(p) in names} == decayed

@pytest.mark.parametrize('name', SOME)
def test_one_more_module_is_exact_after_a_file(name):
    def built():
        (model, opt), more = make(name, lr=.01), extra()
        with torch.no_grad():
            for p in more.parameters(): p.fill_(.5)
        add_params(opt, more)
        return model, opt, more
    def step(model, opt, more, n):
        for i in range(n):
            for k, p in enumerate((*model.parameters(), *more.parameters())): p.grad = torch.full_like(p, math.sin(k + i + 1))
            opt.step()
    whole, half, rest = built(), built(), built()
    step(*whole, 4)
    step(*half, 2)
    for a, b in zip(rest, half): a.load_state_dict(state_from_bytes(state_to_bytes(b.state_dict())))
    for i in (2, 3):
        for k, p in enumerate((*rest[0].parameters(), *rest[2].parameters())): p.grad = torch.full_like(p, math.sin(k + i + 1))
        rest[1].step()
    assert equal(whole[0], rest[0]) and equal(whole[2], rest[2])
    with pytest.raises(InputError, match='of other parameters'): make(name)[1].load_state_dict(half[1].state_dict())

@pytest.mark.parametrize('opt_func', [fastai.optimizer.SGD, fastai.optimizer.Adam,
                                      partial(fastai.optimizer.OptimWrapper, opt=torch.optim.SGD)], ids=['sgd', 'adam', 'torch'])
def test_one_more_module_in_an_optimizer_from_elsewhere(opt_func):
    model, more = net(), extra()
    opt, before = opt_func(depths(model), lr=.1), weights(more)
    add_params(opt, more)
    for p in (*model.parameters(), *more.parameters()): p.grad = torch.ones_like(p)
    opt.step()
    assert not any(torch.equal(p, q) for p, q in zip(before, weights(more))) and len(opt.hypers) == 3
