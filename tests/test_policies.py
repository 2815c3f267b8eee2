"Policies keep the picture's kind, repeat under a seed, and refuse what would do something else than it says"
import json
import math
import pickle

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment, posterize
from torchvision.transforms import v2

from imgcls_nb.core import FILTERS, IMAGENET_MEAN, IMAGENET_STD, InputError
from imgcls_nb.policies import POLICIES, check_timm_config, mean_colour, op_builder, warp_filter
from imgcls_nb.seeds import seeded

NEEDS = { # arguments without a default; JSON, as a plan holds them
    'TimmAugment': {'config': 'rand-m9-mstd0.5-inc1'}, 'RandomRotation': {'degrees': 30}, 'RandomCrop': {'padding': 2},
    'RandomAffine': {'degrees': 10, 'translate': [0.1, 0.2], 'scale': [0.5, 1.5], 'shear': 10},
    'ColorJitter': {'brightness': 0.4, 'contrast': [0.5, 1.5], 'saturation': 0.4, 'hue': 0.1}, 'JPEG': {'quality': [5, 60]},
    'RandomAdjustSharpness': {'sharpness_factor': 3}, 'RandomPosterize': {'bits': 2},
}
TIMM = ['rand-m9-mstd0.5-inc1', 'rand', 'rand-m5-n3-p1', 'rand-n2-tweights', 'rand-n2-m10-inc1-t3aw', 'rand-t3a',
        'augmix-m5-w4-d2', 'augmix-b1', 'original', 'original-mstd0.5', 'originalr', 'v0', 'v0r', '3a']
MEANS = {'RGB': dict(mean=IMAGENET_MEAN, std=IMAGENET_STD), 'L': dict(mean=[.45], std=[.22])}

def picture(h, w, mode='RGB'):
    y, x = np.mgrid[:h, :w]
    noise = np.random.default_rng(0).integers(0, 60, (h, w, 3))
    rgb = np.stack([x*195//w, y*195//h, (x + y)*195//(h + w)], -1) + noise
    return Image.fromarray(rgb.astype(np.uint8)).convert(mode)

def build(name, hw=(48, 64), mode='RGB', interpolation='bilinear', **args):
    args = json.loads(json.dumps(NEEDS.get(name, {}) | args))
    return POLICIES[name](size=hw, interpolation=interpolation, **MEANS[mode], **args)

def runs(op, im, seed, n=12):
    with seeded(seed): return [np.asarray(op(im)) for _ in range(n)]

def equal(a, b): return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

CASES = [(o, {}) for o in POLICIES if o != 'TimmAugment'] + [('TimmAugment', {'config': o}) for o in TIMM]
every_policy = pytest.mark.parametrize('name, args', CASES, ids=[a.get('config', n) for n, a in CASES])

# The contract of an operation

@every_policy
@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('hw', [(8, 8), (33, 20), (20, 33)], ids=str)
def test_mode_and_size_are_kept(name, args, mode, hw):
    im = picture(*hw, mode)
    before = im.tobytes()
    for interpolation in FILTERS:
        op = build(name, hw, mode, interpolation, **args)
        with seeded(1):
            for _ in range(8):
                out = op(im)
                assert (out.mode, out.size) == (mode, hw[::-1])
    assert im.tobytes() == before

@every_policy
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_repeats_under_a_seed_whatever_was_drawn_before(name, args, mode):
    im, op = picture(24, 32, mode), build(name, (24, 32), mode, **args)
    first = runs(op, im, 1)
    others = runs(op, im, 2) + runs(op, im, 3)
    assert equal(runs(op, im, 1), first) and equal(runs(pickle.loads(pickle.dumps(op)), im, 1), first)
    if mode == 'RGB' or name != 'RandomGrayscale': # grey stays grey
        assert not equal(first + first, others)
        assert any((o != np.asarray(im)).any() for o in first + others)

@pytest.mark.parametrize('name', POLICIES)
def test_probability_of_none_and_of_nonsense(name):
    im = picture(24, 24)
    assert equal(runs(build(name, (24, 24), p=0), im, 0, 30), [np.asarray(im)]*30)
    for p in (-.1, 1.1, 'x'):
        with pytest.raises(InputError, match=name): build(name, p=p)

SURE = { # arguments with which an operation changes every picture that it gets
    'RandomRotation': {'degrees': [30, 60]}, 'RandomAffine': {'degrees': [30, 60]}, 'RandomPerspective': {'distortion_scale': .9}}

@pytest.mark.parametrize('p', [.2, .7])
@pytest.mark.parametrize('name', [o for o in POLICIES if o not in ('AutoAugment', 'RandAugment', 'TimmAugment', 'RandomCrop')])
def test_probability_is_what_was_asked_for(name, p):
    im, n = picture(20, 20), 800
    op = build(name, (20, 20), **SURE.get(name, {}), p=p)
    changed = sum((o != np.asarray(im)).any() for o in runs(op, im, 5, n))
    doubt = .15*n*p if name in ('TrivialAugment', 'AugMix') else 0 # one of their steps is the identity
    assert -4.5*math.sqrt(n*p*(1 - p)) - doubt < changed - n*p < 4.5*math.sqrt(n*p*(1 - p))

@pytest.mark.parametrize('name', ['AutoAugment', 'RandAugment', 'TimmAugment', 'RandomCrop']) # they may do nothing
def test_probability_is_how_often_it_is_called(name):
    op, calls, n = build(name, p=.3), [], 800
    op.transforms = [lambda im: calls.append(im) or im]
    runs(op, picture(12, 12), 5, n)
    assert abs(len(calls) - .3*n) < 4.5*math.sqrt(n*.3*.7)

def test_random_crop_is_torchvisions():
    im = picture(60, 70)
    for args in ({}, dict(padding=4), dict(padding=[1, 2], padding_mode='reflect'), dict(pad_if_needed=True)):
        args = dict(padding=None) | args
        ours, theirs = build('RandomCrop', (48, 64), **args), v2.RandomCrop((48, 64), fill=(124, 116, 104), **args)
        assert equal(runs(ours, im, 1), runs(theirs, im, 1))
    assert build('RandomCrop', (48, 64), padding=None, pad_if_needed=True)(picture(20, 90)).size == (64, 48)
    with pytest.raises(InputError, match='smaller|larger.*Put a Resize before it, or give pad_if_needed'):
        build('RandomCrop', (48, 64), padding=None)(picture(20, 90))

# Borders and filters

@pytest.mark.parametrize('mode, colour', [('RGB', (124, 116, 104)), ('L', 115)])
def test_uncovered_corners_are_of_the_mean_colour(mode, colour):
    white = Image.new(mode, (40, 40), 255 if mode == 'L' else (255,)*3)
    assert build('RandomRotation', (40, 40), mode, degrees=[45, 45])(white).getpixel((0, 0)) == colour
    op = build('TimmAugment', (40, 40), mode, config='rand-m10-p1-inc1')
    for step in op.ops:
        if step.name in ('Rotate', 'TranslateXRel', 'ShearY'):
            out = [step(white) for _ in range(8)] # to either side
            corners = {o.getpixel((x, y)) for o in out for x in (0, 39) for y in (0, 39)}
            assert colour in corners and corners <= {colour, white.getpixel((0, 0))}
    for name in ('AutoAugment', 'RandAugment', 'TrivialAugment', 'AugMix'):
        assert build(name, mode=mode).fill == mean_colour(MEANS[mode]['mean'])

def test_fill_can_be_given():
    white = Image.new('RGB', (40, 40), (255,)*3)
    for fill, colour in ((0, (0, 0, 0)), ([1, 2, 3], (1, 2, 3)), ('mean', (124, 116, 104))):
        assert build('RandomRotation', degrees=[45, 45], fill=fill)(white).getpixel((0, 0)) == colour

def test_every_filter_is_near_one_that_can_turn():
    assert {warp_filter(o) for o in FILTERS} == {'nearest', 'bilinear', 'bicubic'}
    for o in ('nearest', 'bilinear', 'bicubic'): assert warp_filter(o) == o
    im, turn = picture(24, 24), dict(degrees=[30, 30])
    nearest, bicubic, lanczos = (np.asarray(build('RandomRotation', interpolation=o, **turn)(im))
                                 for o in ('nearest', 'bicubic', 'lanczos'))
    assert (bicubic == lanczos).all() and (bicubic != nearest).any()

def test_random_filter_is_for_timm_only():
    op = build('TimmAugment', interpolation='random', config='rand')
    assert {tuple(o.kwargs['resample']) for o in op.ops} == {(Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)}
    with pytest.raises(InputError, match="interpolation='random' is unknown"): build('RandomRotation', interpolation='random')

# What the libraries promise

def steps(op): return [o for pair in op.policy for o in pair] if hasattr(op, 'policy') else op.ops

@pytest.mark.parametrize('config', TIMM)
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'random'])
def test_same_policy_as_timms_own_training(config, interpolation):
    tfms = create_transform((3, 48, 64), is_training=True, auto_augment=config, interpolation=interpolation, mean=IMAGENET_MEAN)
    theirs = next(o for o in tfms.transforms if isinstance(o, (AugMixAugment, AutoAugment, RandAugment)))
    ours = build('TimmAugment', config=config, interpolation=interpolation)
    assert repr(ours) == repr(theirs)
    assert [{k: v for k, v in o.hparams.items() if k != 'interpolation'} for o in steps(ours)] == [
        {k: v for k, v in o.hparams.items() if k != 'interpolation'} for o in steps(theirs)]
    for o in steps(theirs): # Pillow refuses to keep no bits
        if o.aug_fn is posterize: o.aug_fn = lambda im, bits, **kw: posterize(im, bits) if bits else im.point(lambda _: 0)
    im = picture(48, 64)
    assert equal(runs(ours, im, 4, 20), runs(theirs, im, 4, 20))

@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('config', ['rand-m10-inc1', 'rand-m0', 'v0'])
def test_posterizing_to_no_bits_is_black(config, mode):
    im, op = picture(16, 16, mode), build('TimmAugment', (16, 16), mode, config=config)
    black = 0
    for step in steps(op):
        if not step.name.startswith('Posterize'): continue
        step.prob = 1.
        black += not np.asarray(step(im)).any()
    assert black

def test_magnitude_spread_is_a_normal_distribution_cut_off():
    step = next(o for o in build('TimmAugment', config='rand-m9-mstd0.5-inc1-p1').ops if o.name == 'Rotate')
    drawn = []
    step.aug_fn = lambda im, degrees, **kw: drawn.append(abs(degrees)/3)
    with seeded(0):
        for _ in range(5000): step(None)
    inside = np.array([o for o in drawn if o < 10])
    assert max(drawn) == 10 and abs(1 - len(inside)/5000 - .02275) < .01 # P(z > 2)
    assert abs(np.median(drawn) - 9) < .04 and abs(np.std(drawn) - .5) < .03

def test_magnitudes_of_the_two_libraries_have_different_scales():
    timm_step = next(o for o in build('TimmAugment', config='rand-m9-inc1').ops if o.name == 'Rotate')
    assert {abs(timm_step.level_fn(9, timm_step.hparams)[0])} == {27.} and timm_step.prob == .5
    torchvision_op = build('RandAugment', magnitude=9)
    assert float(torchvision_op._AUGMENTATION_SPACE['Rotate'][0](31, 48, 64)[torchvision_op.magnitude]) == 9.

def test_defaults_are_the_published_ones():
    assert build('AutoAugment').policy == v2.AutoAugmentPolicy.IMAGENET
    for o in ('cifar10', 'svhn'): assert build('AutoAugment', policy=o).policy == v2.AutoAugmentPolicy(o)
    op = build('RandAugment')
    assert (op.num_ops, op.magnitude, op.num_magnitude_bins) == (2, 9, 31)
    assert [build('GaussianBlur', (n, n)).transforms[0].kernel_size for n in (224, 32, 8)] == [(23, 23), (3, 3), (3, 3)]

# What is refused

@pytest.mark.parametrize('config', TIMM + ['rand-m15-mmax20', 'augmix-m3-a0.5-mstd101', 'rand-m09-n10', 'rand-p0.25', '3a-mstd1'])
def test_good_timm_configs(config): check_timm_config(config)

@pytest.mark.parametrize('config, says', [
    ('rand-x9', "'x9' cannot be read"), ('rand-m', "'m' cannot be read"), ('rand-mx', "'mx' cannot be read"),
    ('rand-', "'' cannot"), ('rand--m9', "'' cannot"), ('rand-m9.5', "m9.5' cannot"), ('rand-m-9', "'m' cannot"),
    ('rand-m9-nope', "'nope' cannot"), ('rand-n0', "'n0' cannot"), ('rand-tfoo', "'tfoo' cannot"), ('rand-t', "'t' cannot"),
    ('rand-p5', "'p5' cannot"), ('rand-p.5', "'p.5' cannot"), ('rand-mstd', "'mstd' cannot"),
    ('rand-mstdinf', "'mstdinf' cannot"), ('rand-inc2', "'inc2' cannot"), ('rand-mmax0', "'mmax0' cannot"),
    ('rand-m9 -n3', "'m9 ' cannot"), ('rand-m9\n', "'m9\n' cannot"), ('rand-m9-m5', "'m5' comes a second time"),
    ('rand-mstd1-mstd2', "'mstd2' comes a second"), ('rand-w3', "'w3' cannot"), ('augmix-w0', "'w0' cannot"),
    ('augmix-d0', "'d0' cannot"), ('augmix-a0', "'a0' cannot"), ('augmix-a0.00', "'a0.00' cannot"),
    ('augmix-inc1', "'inc1' cannot"), ('original-m9', "'m9' cannot"), ('v0-', "'' cannot"), ('foo-m9', 'no policy of timm'),
    ('', 'no policy of timm'), ('rand_m9', "Did you mean 'rand'"), ('Rand-m9', "Did you mean 'rand'"),
    ('random', "Did you mean 'rand'"), ('v1', 'one of rand, augmix'), (None, 'config=None is no policy'),
    (9, 'config=9 is no policy'), (['rand'], 'is no policy')], ids=repr)
def test_bad_timm_configs(config, says):
    with pytest.raises(InputError, match='config=') as e: build('TimmAugment', config=config)
    assert says in str(e.value) and repr(config) in str(e.value) and 'Examples: rand-m9-mstd0.5-inc1' in str(e.value)

@pytest.mark.parametrize('name, args, says', [
    ('TimmAugment', dict(config='rand-n99-tweights'), 'draws 99 different steps of 15'),
    ('AutoAugment', dict(policy='cifar'), "Did you mean 'cifar10'"),
    ('AutoAugment', dict(policy=None), 'policy=None is unknown'),
    ('RandAugment', dict(magnitude=31), 'magnitude=31 is no whole number from 0 to 30'),
    ('RandAugment', dict(magnitude=-1), '-1'), ('RandAugment', dict(magnitude='9'), "'9'"),
    ('RandAugment', dict(magnitude=True), 'True'), ('RandAugment', dict(magnitude=9, num_magnitude_bins=5), 'from 0 to 4'),
    ('RandAugment', dict(num_ops=-1), 'num_ops'), ('RandAugment', dict(num_magnitude_bins=1), 'from 2 up'),
    ('RandAugment', dict(magnitud=3), "Did you mean 'magnitude'"),
    ('TrivialAugment', dict(num_magnitude_bins=0), 'from 2 up'), ('AugMix', dict(severity=11), 'from 1 to 10'),
    ('AugMix', dict(severity=2.5), '2.5'), ('AugMix', dict(alpha=0), 'alpha=0'),
    ('AugMix', dict(mixture_width=0), 'mixture_width=0'), ('AugMix', dict(chain_depth='a'), "chain_depth='a'"),
    ('ColorJitter', dict(brightness=0, contrast=0, saturation=0, hue=0), 'such as'), ('ColorJitter', dict(hue=.9), 'hue'),
    ('ColorJitter', dict(brightness='a'), 'brightness'), ('RandomRotation', dict(degrees=-5), 'must be positive'),
    ('RandomRotation', dict(expand=True), "no argument 'expand'"),
    ('RandomRotation', dict(fill='red'), "fill='red' is no colour"), ('RandomRotation', dict(fill=[1, 2]), 'a list of 3'),
    ('RandomRotation', dict(fill=True), 'fill=True'), ('RandomRotation', dict(fill=256), 'fill=256'),
    ('RandomAffine', dict(translate=[5, 5]), 'between 0 and 1'),
    ('RandomPerspective', dict(distortion_scale=2), 'between 0 and 1'), ('RandomCrop', dict(padding=-4), 'padding=-4'),
    ('RandomCrop', dict(padding='a'), "padding='a'"),
    ('RandomCrop', dict(padding=2, padding_mode='foo'), 'Padding mode'), ('GaussianBlur', dict(kernel_size=4), 'odd'),
    ('GaussianBlur', dict(kernel_size=97), 'too large'), ('GaussianBlur', dict(sigma=[2, 1]), 'sigma'),
    ('JPEG', dict(quality=200), 'quality'), ('RandomPosterize', dict(bits=9), 'from 1 to 8'),
    ('RandomSolarize', dict(threshold='a'), 'threshold'), ('RandomAdjustSharpness', dict(sharpness_factor=-1), 'from 0 up'),
    ('RandomGrayscale', dict(prob=.5), 'It takes p.')], ids=str)
def test_bad_arguments(name, args, says):
    with pytest.raises(InputError, match=name) as e: build(name, **args)
    assert says in str(e.value)

@pytest.mark.parametrize('name', [o for o in NEEDS if o not in ('ColorJitter', 'RandomCrop')])
def test_missing_arguments_are_named(name):
    with pytest.raises(InputError, match=f"{name} cannot be built with {{}} .*missing.*{next(iter(NEEDS[name]))}"):
        POLICIES[name](size=(8, 8), interpolation='bilinear', **MEANS['RGB'])

def test_builder_hands_over_what_is_asked_for_and_no_more():
    seen = []
    def make(size, mean, strength=1): seen.append((size, mean, strength)); return lambda im: im
    op_builder('X', make)(size=(1, 2), interpolation='bilinear', mean=(.5,), std=(.1,), strength=3)
    assert seen == [((1, 2), (.5,), 3)]
