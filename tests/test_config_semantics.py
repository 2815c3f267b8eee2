"What a config's numbers do, against small cases that were computed by hand"
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from imgcls_nb.augment import Augment
from imgcls_nb.config.objective import read_objective, read_schedule, read_smoothing, read_step_callbacks, schedule_name
from imgcls_nb.config.transforms import read_augmentation, read_mixing, read_sizes
from imgcls_nb.core import InputError, Preprocess
from imgcls_nb.losses import make_loss
from imgcls_nb.optim import make_optimizer
from imgcls_nb.samplers import batches
from imgcls_nb.schedules import Schedule
from imgcls_nb.sections import Section
from imgcls_nb.transform_ops import read_preprocess


def dataset(*ops, **more): return Section(dict(transform_ops=list(ops), **more), 'dataset')

def noise(h, w, seed=0): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8))

NORM = dict(NormalizeImage=dict(scale=1/255, mean=[.485, .456, .406], std=[.229, .224, .225], order=''))

# Pictures

@pytest.mark.parametrize('h, w, short, size', [(375, 500, 256, (256, 341)), (500, 375, 256, (341, 256)),
                                               (333, 500, 256, (256, 384)), (100, 151, 256, (256, 387)),
                                               (256, 300, 256, (256, 300))])
def test_the_longer_side_is_rounded(h, w, short, size):
    pre = read_preprocess(dataset(dict(ResizeImage=dict(resize_short=short)), dict(CropImage=dict(size=224)), NORM), [])
    assert pre._resize(noise(h, w)).size == size[::-1], "and not cut off, as torchvision does"

def test_shrinking_samples_points_as_opencv_does():
    pre = read_preprocess(dataset(dict(ResizeImage=dict(size=[60, 40])), NORM), [])
    assert (pre.resize, pre.antialias) == ((40, 60), False), "the original writes width before height"
    im = noise(100, 130)
    x = torch.from_numpy(np.array(im)).permute(2, 0, 1)[None].float()
    want = F.interpolate(x, (40, 60), mode='bilinear', antialias=False, align_corners=False)[0]
    got = torch.from_numpy(np.array(pre.fit(im))).permute(2, 0, 1).float()
    assert (got - want).abs().max() <= 1.01, "OpenCV itself rounds its weights"

def test_the_pil_backend_is_pillow():
    ops = dict(ResizeImage=dict(resize_short=50, interpolation='bicubic', backend='pil')), dict(CropImage=dict(size=50)), NORM
    im = noise(100, 100)
    assert np.array_equal(np.array(read_preprocess(dataset(*ops), []).fit(im)), np.array(im.resize((50, 50), Image.BICUBIC)))

def test_the_crop_is_in_the_middle():
    pre = read_preprocess(dataset(dict(ResizeImage=dict(resize_short=7)), dict(CropImage=dict(size=4)), NORM), [])
    im = noise(7, 9)
    assert np.array_equal(np.array(pre.fit(im)), np.array(im)[1:5, 2:6])

def test_a_crop_at_a_ratio_is_a_resize_and_a_crop():
    pre = read_preprocess(dataset(dict(CropImageAtRatio=dict(size=384, pad=32)), NORM), [])
    assert (pre.resize_short, pre.crop) == (416, (384, 384))

@pytest.mark.parametrize('scale, mean, std', [(1/255, [.485, .456, .406], [.229, .224, .225]),
                                              (1., [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
                                              (.00392157, [.5]*3, [.5]*3), (1., [128.]*3, [128.]*3), (1/255, [0.]*3, [1.]*3)])
def test_normalization_in_the_original_order(scale, mean, std):
    norm = dict(NormalizeImage=dict(scale=scale, mean=mean, std=std, order='hwc'))
    pre = read_preprocess(dataset(dict(ResizeImage=dict(size=8)), norm), [])
    pixels = np.array(noise(8, 8))
    want = (pixels.astype(np.float32)*scale - np.array(mean, np.float32))/np.array(std, np.float32)
    assert np.abs(pre(pixels) - want.transpose(2, 0, 1)).max() < 2e-4

def test_four_channels_are_three_and_a_plane_of_zeros():
    norm = dict(NormalizeImage=NORM['NormalizeImage'] | dict(channel_num=4))
    pre = read_preprocess(dataset(dict(ResizeImage=dict(size=8)), norm), [])
    assert pre(np.array(noise(8, 8))).shape == (4, 8, 8) and not pre(np.array(noise(8, 8)))[3].any()

def test_the_aspect_of_a_random_crop_is_linear_and_its_area_exact():
    crop = dict(RandCropImage=dict(size=24, scale=[.3, .3], ratio=[.5, 1.5]))
    name, args = read_augmentation(dataset(crop, NORM), Preprocess(crop=(24, 24), resize_short=28), [])[0]
    assert args['log_aspect'] is False and 'size' not in args
    step = Augment([(name, args)], Preprocess(crop=(24, 24), resize_short=28)).steps[0][1][0]
    import random
    boxes = [step.draw(400, 400, random.Random(i)) for i in range(2000)]
    ratios = np.array([w/h for _, _, h, w in boxes])
    assert all(abs(h*w - .3*400*400) < 900 for _, _, h, w in boxes) and all(t + h <= 400 and q + w <= 400 for t, q, h, w in boxes)
    assert abs(ratios.mean() - 1.) < .02, "uniform in the ratio; uniform in its logarithm has a mean of 0.91"

@pytest.mark.parametrize('own, size, bs', [(192, 256, 64), (224, 288, 128), (256, 224, 64)])
def test_a_batch_at_another_size_is_as_large_as_the_file_says(own, size, bs):
    got = read_sizes(dataset(dict(RandCropImage=dict(size=own))), Section(dict(batch_size=bs), 'sampler'), (size, size), [])
    cut = batches(range(1000), got['bs'], size=(size, size), sizes=got['sizes'])
    assert len(cut[0][1]) == bs and cut[0][0] == (own, own)

def test_several_sizes_have_batches_of_equal_cost():
    sampler = Section(dict(scales=[256, 160, 330], first_bs=48, divided_factor=32, is_training=True), 'sampler')
    got = read_sizes(dataset(dict(RandCropImage=dict(size=256))), sampler, (256, 256), [])
    assert got == dict(bs=48, sizes=((256, 256), (160, 160), (320, 320)))
    at160 = next(o for o in batches(range(5000), 48, size=(256, 256), sizes=got['sizes']) if o[0] == (160, 160))
    assert len(at160[1]) == round(48*256**2/160**2)

# Loss

def test_label_smoothing_by_hand():
    smoothing = read_smoothing(Section(dict(Train=[dict(CELoss=dict(weight=1., epsilon=.1))]), 'Loss'), [])
    logits, targ = torch.tensor([[2., 0., -1., 1.]]), torch.tensor([0])
    logp = logits.log_softmax(1)[0]
    want = -(.925*logp[0] + .025*(logp[1] + logp[2] + logp[3]))
    assert torch.isclose(make_loss('cross_entropy', smoothing)(logits, targ), want)

def test_mixed_labels_are_taken_as_they_are():
    smoothing = read_smoothing(Section(dict(Train=[dict(CELoss=dict(weight=1.))]), 'Loss'), [])
    logits, soft = torch.tensor([[2., 0., -1.]]), torch.tensor([[.7, .3, 0.]])
    logp = logits.log_softmax(1)[0]
    assert torch.isclose(make_loss('cross_entropy', smoothing)(logits, soft), -(.7*logp[0] + .3*logp[1]))

@pytest.mark.parametrize('epsilon', [-.1, 1., 2])
def test_an_epsilon_out_of_range_is_none(epsilon):
    notes = []
    assert read_smoothing(Section(dict(Train=[dict(CELoss=dict(epsilon=epsilon))]), 'Loss'), notes) == 0. and len(notes) == 1

def test_mixing_is_as_the_file_says():
    ops = dict(OpSampler=dict(MixupOperator=dict(alpha=.8, prob=.5), CutmixOperator=dict(alpha=1., prob=.3)))
    assert read_mixing(Section(dict(batch_transform_ops=[ops]), 'd')) == (('Mixup', dict(alpha=.8, prob=.5)),
                                                                        ('CutMix', dict(alpha=1., prob=.3)))

# Optimizers, one step each on one weight of 2, one bias of 1, and gradients of 0.5 and 0.25

def step(optimizer, arch='ResNet50', n=1):
    net, plan = nn.Sequential(nn.Linear(1, 1)), read_objective(dict(Optimizer=optimizer), arch, 0., [])
    model = net[0]
    with torch.no_grad(): model.weight.fill_(2.), model.bias.fill_(1.)
    opt = make_optimizer(plan.opt, net, [list(net.parameters())], lr=.1, wd=plan.weight_decay,
                         decay_norm_bias=plan.decay_norm_bias, no_decay=plan.no_decay, **plan.opt_args)
    for _ in range(n):
        model.weight.grad, model.bias.grad = torch.full((1, 1), .5), torch.full((1,), .25)
        opt.step()
    return float(model.weight.detach()), float(model.bias.detach())

L2 = dict(regularizer=dict(name='L2', coeff=.1))

@pytest.mark.parametrize('optimizer, arch, n, weight, bias', [
    (dict(name='SGD', **L2), 'ResNet50', 1, 2 - .1*(.5 + .2), 1 - .1*(.25 + .1)),
    (dict(name='Momentum', momentum=.9, **L2), 'ResNet50', 1, 2 - .1*.7, 1 - .1*.35),
    (dict(name='Momentum', momentum=.9, **L2), 'PPLCNet_x1_0', 1, 2 - .1*.7, 1 - .1*.25), # its norms are left out
    (dict(name='Momentum', momentum=.9, one_dim_param_no_weight_decay=True, **L2), 'ResNet50', 1, 2 - .07, 1 - .035),
    (dict(name='Momentum', momentum=.9, no_weight_decay_name='.bias', **L2), 'ResNet50', 1, 2 - .07, 1 - .025),
    (dict(name='Momentum', momentum=.9, no_weight_decay_name='pos_embed', **L2), 'PPLCNet_x1_0', 1, 2 - .07, 1 - .035),
    (dict(name='AdamW', weight_decay=.1, no_weight_decay_name='weight'), 'ViT', 1, 2 - .1, 1*(1 - .01) - .1),
    (dict(name='Momentum', momentum=.9, weight_decay=0.), 'ResNet50', 2, 2 - .1*.5*(1 + 1.9), 1 - .1*.25*2.9),
    (dict(name='Momentum', momentum=.9, use_nesterov=True), 'ResNet50', 1, 2 - .1*.5*1.9, 1 - .1*.25*1.9),
    (dict(name='AdamW', weight_decay=.1), 'ViT', 1, 2*(1 - .01) - .1, 1*(1 - .01) - .1),
    (dict(name='AdamW', weight_decay=.1, one_dim_param_no_weight_decay=True), 'ViT', 1, 2*(1 - .01) - .1, 1 - .1),
    (dict(name='RMSProp', momentum=.9, rho=.9, epsilon=.001), 'ResNet50', 1, 2 - .1*.5/(.9 + .1*.25 + .001)**.5,
     1 - .1*.25/(.9 + .1*.0625 + .001)**.5)], ids=lambda o: str(o)[:60])
def test_a_step_by_hand(optimizer, arch, n, weight, bias):
    got = step(optimizer, arch, n)
    assert got == pytest.approx((weight, bias), abs=2e-6)

def test_both_decays_are_told():
    notes = []
    plan = read_objective(dict(Optimizer=dict(name='Momentum', weight_decay=.5, **L2)), 'ResNet50', 0., notes)
    assert plan.weight_decay == .1 and 'the first is taken' in notes[0]

def test_several_optimizers_are_refused():
    cfg = dict(Optimizer=[dict(SGD={})])
    with pytest.raises(InputError, match='Optimizer is a list'): read_objective(cfg, 'ResNet50', 0., [])

# Schedules

def rates(lr, epochs, steps=10):
    args = dict(read_schedule(dict(Optimizer=dict(lr=lr)), epochs, notes := [])[0].args)
    names = 'lr', 'n_epoch', 'warmup_epochs', 'warmup_lr', 'lr_min', 'by_epoch', 'after_warmup'
    own = {k: args.pop(k) for k in names if k in args}
    return Schedule(args.pop('schedule'), steps_per_epoch=steps, args=args, **own), notes

def test_cosine_by_step_with_a_warm_up():
    rate, notes = rates(dict(name='Cosine', learning_rate=.4, warmup_epoch=2, warmup_start_lr=.1, eta_min=.01), 10)
    want = [.1, .1 + .3*.5, .4, .01 + .39*(1 + np.cos(np.pi*40/80))/2, .01 + .39*(1 + np.cos(np.pi*79/80))/2]
    assert [rate(o) for o in (0, 10, 20, 60, 99)] == pytest.approx(want) and not notes

def test_cosine_by_epoch():
    rate, _ = rates(dict(name='Cosine', learning_rate=.4, by_epoch=True), 10)
    assert len({rate(o) for o in range(10)}) == 1 and rate(10) == pytest.approx(.2*(1 + np.cos(np.pi*.1)))

STEPS = dict(name='Piecewise', learning_rate=.1, decay_epochs=[30, 60], values=[.1, .01, .001], warmup_epoch=5)

def test_milestones_in_both_readings():
    rate, notes = rates(STEPS, 90)
    assert [rate(o*10) for o in (29, 30, 35, 60)] == pytest.approx([.1, .01, .01, .001])
    assert '5 epochs later: -o Optimizer.lr.after_warmup=True' in notes[0]
    rate, notes = rates(STEPS | dict(after_warmup=True), 90)
    assert [rate(o*10) for o in (30, 34, 35, 64, 65)] == pytest.approx([.1, .1, .01, .01, .001]) and not notes

def test_piecewise_values_count_also_beside_a_learning_rate():
    rate, notes = rates(dict(name='Piecewise', learning_rate=.5, decay_epochs=[2], values=[.1, .05]), 4)
    assert [rate(0), rate(20)] == [.1, .05] and 'the values are taken' in notes[0]
    assert rates(dict(name='Piecewise', decay_epochs=[2], values=[.1, .05]), 4)[0](0) == .1, "AlexNet's file has none"
    rate, _ = rates(dict(name='Piecewise', learning_rate=.1), 100)
    assert [rate(o*10) for o in (0, 30, 60, 90)] == pytest.approx([.1, .01, .001, .0001]), "the original's own table"

def test_steps_of_broken_epochs_and_milestones():
    rate, _ = rates(dict(name='Step', learning_rate=.048, step_size=2.4, gamma=.97), 10)
    assert [rate(o) for o in (23, 24, 48)] == pytest.approx([.048, .048*.97, .048*.97**2])
    rate, _ = rates(dict(name='MultiStepDecay', learning_rate=.1, milestones=[2, 3], gamma=.5), 4)
    assert [rate(o) for o in (19, 20, 30)] == pytest.approx([.1, .05, .025])

def test_linear_constant_and_one_cycle():
    rate, _ = rates(dict(name='Linear', learning_rate=.1, end_lr=.02, power=2.), 10)
    assert rate(50) == pytest.approx(.02 + .08*.25)
    assert rates(dict(name='ConstLR', learning_rate=.1), 10)[0](77) == .1
    rate, _ = rates(dict(name='OneCycleLR', max_learning_rate=.5, divide_factor=25, phase_pct=.3), 10)
    assert (rate(0), rate(30)) == pytest.approx((.02, .5))

@pytest.mark.parametrize('lr, says', [(dict(name='ReduceOnPlateau', learning_rate=.1), 'ReduceOnPlateau.*not supported'),
                                      (dict(name='Linear', learning_rate=.1, cycle=True), 'cycle=True'),
                                      (dict(name='Piecewise'), 'needs decay_epochs and values'),
                                      (dict(name='Step', learning_rate=.1), 'step_epochs'),
                                      (dict(name='Piecewise', decay_epochs=[3], values=[.1]), '1 decay_epochs need 2 values')],
                         ids=str)
def test_schedules_that_cannot_be(lr, says):
    with pytest.raises(InputError, match=f'Optimizer.lr.*{says}'): rates(lr, 10)

def test_a_schedule_has_the_name_of_the_original():
    assert [schedule_name(dict(Optimizer=dict(lr=o))) for o in (STEPS, dict(name='Cosine'), dict(name='ConstLR'))] == [
        'LinearWarmup', 'CosineAnnealingDecay', 'ConstLR']

# Beside the steps

def test_callbacks_of_a_step():
    notes = []
    cfg = dict(EMA=dict(decay=.9995), Optimizer=dict(clip_norm=10))
    assert read_step_callbacks(cfg, 4, notes) == (('accumulate', dict(n=4)), ('clip_norm', dict(max_norm=10.)),
                                                  ('ema', dict(decay=.9995, warmup=0)))
    assert 'as a whole' in notes[0]
    assert read_step_callbacks(dict(EMA={}), 1, notes) == (('ema', dict(decay=.9999, warmup=0)),), "the section says it"
    assert read_step_callbacks(dict(EMA=None), 1, notes) == ()
    assert read_step_callbacks(dict(Optimizer=dict(clip_grad=None)), 1, notes) == ()

def test_averages_by_hand():
    from fastai.test_utils import synth_learner

    from imgcls_nb.callbacks.averaging import EMA
    from imgcls_nb.callbacks.clock import Clock, EpochMetrics
    seen = []
    torch.manual_seed(0) # for the weights that it begins with
    learn = synth_learner(cbs=[Clock(), EpochMetrics(), EMA(**read_step_callbacks(dict(EMA=dict(decay=.5)), 1, [])[0][1])])
    seen.append(float(learn.model.a))
    learn.ema.after_step, first = lambda f=learn.ema.after_step: (f(), seen.append(float(learn.model.a))), seen[0]
    with learn.no_logging(): learn.fit(1)
    average = first
    for v in seen[1:]: average = .5*average + .5*v
    assert float(learn.ema.average.module.a) == pytest.approx(average, rel=1e-4, abs=1e-5)
