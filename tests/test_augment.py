"Training pictures: what a crop takes, what has to be decoded for it, and operations by name"
import io
import math
import random

import numpy as np
import pytest
from PIL import Image

from imgcls_nb.augment import (
    AUGMENT_OPS,
    PRESETS,
    Augment,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomShift,
    RandomVerticalFlip,
    Resize,
)
from imgcls_nb.core import InputError, Preprocess
from imgcls_nb.data import BatchMaker
from imgcls_nb.decode import Decoded, decode
from imgcls_nb.erasing import ERASERS
from imgcls_nb.mixing import MIX_OPS
from imgcls_nb.pictures import PictureList
from imgcls_nb.policies import POLICIES
from imgcls_nb.seeds import mix_seed

PREP = Preprocess(crop=(48, 40), resize_short=56)
NEEDS = { # arguments without a default
    'TimmAugment': {'config': 'rand-m9-mstd0.5-inc1'}, 'RandomRotation': {'degrees': 30}, 'RandomAffine': {'degrees': 10},
    'ColorJitter': {'brightness': 0.4}, 'JPEG': {'quality': [5, 60]}, 'RandomAdjustSharpness': {'sharpness_factor': 3},
    'RandomPosterize': {'bits': 2}}

def noise(h, w, c=3): return np.random.default_rng([h, w]).integers(0, 256, (h, w, c), np.uint8)

def as_decoded(pixels): return Decoded(pixels, *pixels.shape[:2])

def jpeg(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, 'JPEG', quality=92)
    return out.getvalue()

# The contract of every operation, by name, on its own

@pytest.mark.parametrize('mean, channels', [((.5,)*3, 3), ((.5,), 1)], ids=['RGB', 'grey'])
@pytest.mark.parametrize('name', AUGMENT_OPS)
def test_size_range_and_kind_are_kept(name, mean, channels):
    aug = Augment([(name, NEEDS.get(name, {}))], Preprocess(crop=(48, 40), resize_short=56, mean=mean, std=mean))
    pixels = noise(70, 90, channels)
    before = pixels.copy()
    for seed in range(6):
        out = aug(as_decoded(pixels), seed)
        assert out.shape == (48, 40, channels) and out.dtype == np.uint8
        assert np.array_equal(out, aug(as_decoded(pixels), seed)), "a function of the seed"
    assert np.array_equal(pixels, before)

def test_no_name_hides_another():
    own = {o.__name__ for o in (RandomResizedCrop, Resize, RandomShift, RandomHorizontalFlip, RandomVerticalFlip)}
    assert not own & set(POLICIES) and not set(POLICIES) & set(ERASERS) and not own & set(ERASERS)
    assert set(AUGMENT_OPS) == own | set(POLICIES) | set(ERASERS)

# The crop

@pytest.mark.parametrize('log_aspect', [True, False])
@pytest.mark.parametrize('hw', [(500, 500), (300, 700), (700, 300)], ids=str)
def test_crops_have_the_promised_areas_and_aspects(hw, log_aspect):
    crop, rng = RandomResizedCrop((48, 48), scale=(.1, .5), ratio=(.6, 1.8), log_aspect=log_aspect), random.Random(0)
    boxes = np.array([crop.draw(*hw, rng) for _ in range(2000)])
    (top, left), (h, w) = boxes[:, :2].T, boxes[:, 2:].T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= hw[0]).all() and (left + w <= hw[1]).all()
    share, ratio = h*w/math.prod(hw), w/h
    assert share.min() > .095 and share.max() < .505 and ratio.min() > .59 and ratio.max() < 1.83
    assert share.min() < .12 and ratio.min() < .65 and ratio.max() > 1.7
    if hw == (500, 500): assert share.max() > .48 and abs(share.mean() - .3) < .01, "every share alike"

def test_crops_lie_anywhere():
    crop, rng, covered = RandomResizedCrop((8, 8), scale=(.2, .3)), random.Random(0), np.zeros((40, 40))
    for _ in range(3000):
        top, left, h, w = crop.draw(40, 40, rng)
        covered[top:top + h, left:left + w] += 1/3000
    assert abs(covered - covered[::-1]).max() < .05 and abs(covered - covered.T).max() < .05 and covered[0, 0] > 0

def test_a_crop_of_all_is_the_picture():
    pixels, rng = noise(48, 40), random.Random(0)
    for op in (RandomResizedCrop((48, 40), scale=(1, 1), ratio=(40/48, 40/48)), Resize((48, 40))):
        assert np.array_equal(op(as_decoded(pixels), rng).pixels, pixels)

# Shift

def test_a_shift_moves_whole_pixels_and_fills_what_is_left():
    pixels, rng, n = noise(9, 7), random.Random(0), 2
    wide = np.pad(pixels, ((n, n), (n, n), (0, 0)), constant_values=5)
    all_of_them = {wide[i:i + 9, j:j + 7].tobytes() for i in range(5) for j in range(5)}
    assert {RandomShift(n, fill=(5, 5, 5))(as_decoded(pixels), rng).pixels.tobytes() for _ in range(500)} == all_of_them
    assert np.array_equal(RandomShift(0)(as_decoded(pixels), rng).pixels, pixels)

# Flips

@pytest.mark.parametrize('op, turned', [(RandomHorizontalFlip, lambda a: a[:, ::-1]), (RandomVerticalFlip, lambda a: a[::-1])])
def test_flips(op, turned):
    picture, rng, n = as_decoded(noise(9, 7)), random.Random(0), 1000
    for p in (0, .2, .5, 1):
        out = [op(p)(picture, rng).pixels for _ in range(n)]
        changed = sum(np.array_equal(o, turned(picture.pixels)) for o in out)
        assert sum(np.array_equal(o, picture.pixels) for o in out) == n - changed
        assert abs(changed - n*p) <= 4.5*math.sqrt(n*p*(1 - p))

# What is decoded

def whole(source): return as_decoded(np.array(Image.open(io.BytesIO(source))))

@pytest.mark.parametrize('ops, least', [
    ([('Resize', dict(size=512)), ('RandomCrop', dict(padding=0))], 512),
    ([('RandomHorizontalFlip', {}), ('Resize', dict(size=[512, 400])), ('RandomCrop', {})], 512),
    ([('RandomResizedCrop', dict(size=448, scale=[1, 1], ratio=[1, 1])), ('RandomCrop', {})], 448),
    ([('RandomResizedCrop', dict(size=448, scale=[.25, 1])), ('RandomCrop', {})], 896),
    ([('Resize', {})], 224), ([('RandomResizedCrop', dict(scale=[1, 1], ratio=[1, 1]))], 224),
    ([('RandomCrop', {})], 1000), ([('RandomHorizontalFlip', {})], 1000), ([], 1000)], ids=str)
def test_no_operation_enlarges_what_was_made_smaller_for_it(ops, least):
    y, x = np.mgrid[:1000, :1000]
    source = jpeg(np.stack([127 + 120*np.sin(x/3), 127 + 120*np.cos(y/4), (x + y)/8], -1).astype(np.uint8))
    for make in (Augment(ops, Preprocess()).need, maker(ops).kept.need):
        got = decode(source, make)
        assert least <= min(got.pixels.shape[:2]) < max(least + 126, 1001)
    aug = Augment(ops, Preprocess())
    small, full = (aug(o, 3).astype(int) for o in (decode(source, aug.need), whole(source)))
    assert abs(small - full).mean() < 6, "nothing is blurred"

def maker(ops, largest=(224, 224), **kwargs):
    pics = PictureList('.', ['x.jpg'], [0], ('any',))
    return BatchMaker(pics, Preprocess(), tuple(ops), 0, largest, **kwargs)

def test_several_sizes_need_the_largest():
    assert maker([('RandomResizedCrop', {})], (320, 288)).kept.need.size == (320, 288)
    assert maker([('RandomResizedCrop', dict(size=448))], (320, 288)).kept.need.size == (448, 448)
    assert maker([('RandomResizedCrop', {})], full_size=True).kept.need.area == 0

@pytest.mark.parametrize('before', ['RandomHorizontalFlip', 'RandomVerticalFlip', 'RandomInvert', 'RandomErasing'])
@pytest.mark.parametrize('name', ['Resize', 'RandomResizedCrop', 'RandomCrop'])
def test_any_order_works(before, name):
    face = as_decoded(noise(80, 90))
    a = face.pixels
    turned = {'RandomHorizontalFlip': a[:, ::-1], 'RandomVerticalFlip': a[::-1], 'RandomInvert': 255 - a}
    out = Augment([(before, dict(p=1)), (name, {})], PREP)(face, 3)
    assert out.shape == (48, 40, 3)
    if before in turned and name == 'Resize':
        assert np.array_equal(out, Augment([(name, {})], PREP)(as_decoded(turned[before].copy()), 3))

# What is refused

@pytest.mark.parametrize('name, args, says', [
    ('RandomResizedCrop', dict(p=.5), "no argument 'p'"), ('Resize', dict(p=.5), "no argument 'p'"),
    ('RandomResizedCrop', dict(scale=[.5, .1]), 'smaller first'), ('RandomResizedCrop', dict(scale=[.5, 2]), 'up to 1'),
    ('RandomResizedCrop', dict(ratio=[0, 1]), 'above 0'), ('RandomResizedCrop', dict(scale=.5), 'scale=0.5'),
    ('RandomResizedCrop', dict(size='x'), "size='x'"), ('Resize', dict(size=-1), 'size=-1'),
    ('RandomHorizontalFlip', dict(p=2), 'p=2 is no number from 0 to 1'), ('RandomVerticalFlip', dict(p='x'), "p='x'"),
    ('RandomResizedCrop', dict(interpolation='cubic'), "Did you mean 'bicubic'"),
    ('Resize', dict(interpolation=3), 'interpolation=3'),
    ('RandomResizedCrop', dict(interpolation='lanczos', antialias=False), 'antialias=False works with'),
    ('Resize', dict(interpolation='lanczos', antialias=False), 'antialias=False works with'),
    ('Resize', dict(antialias='no'), "antialias='no' is neither"), ('Resize', dict(size=0), 'size=0 is no size'),
    ('RandomResizedCrop', dict(log_aspect='no'), "log_aspect='no' is neither"),
    ('RandomShift', dict(pixels=1.5), 'pixels=1.5 is no whole number'), ('RandomShift', dict(fill=300), 'fill=300 is no colour'),
    ('RandomVerticalFlip', dict(p=3), 'p=3 is no'), ('RandomVerticalFlip', dict(axis=1), 'It takes p.'),
    ('RandomErasing', dict(prob=.5), "no argument 'prob'")], ids=str)
def test_bad_arguments(name, args, says):
    with pytest.raises(InputError) as e: Augment([(name, args)], PREP)
    assert says in str(e.value)

@pytest.mark.parametrize('aug, says', [
    (['RandAugment'], "'RandAugment' in aug is no pair of a name and its arguments. Did you mean [('RandAugment', {})]?"),
    (('Cutout', {}), "Did you mean [('Cutout', {})]?"), (None, 'aug=None is no preset'), ({'Cutout': {}}, 'is no preset'),
    (5, 'aug=5 is no preset. Use one of none, light, standard, strong'), (True, 'aug=True'), ([5], '5 in aug is no pair'),
    ([('Cutout',)], "('Cutout',) in aug is no pair"), ([('RandomErasing', None)], 'is no pair'), ([(['x'], {})], 'is no pair'),
    ('randaugment', "Did you mean [('RandAugment', {})]?"), ('augmix', "Did you mean [('AugMix', {})]?"),
    ('standart', "Did you mean 'standard'"), ([('cutout', {})], "Did you mean [('Cutout', {})]?"),
    ([('RandomErase', {})], "Did you mean 'RandomErasing'"), ([('Cutout', {3: 4})], 'keywords must be strings'),
    *((o, f"image_learner(…, mix='{k.lower()}')") for k in MIX_OPS for o in (k.lower(), k, [(k, {})]))], ids=str)
def test_wrong_forms(aug, says):
    with pytest.raises(InputError) as e: Augment(aug, PREP)
    assert says in str(e.value)

@pytest.mark.parametrize('preset', PRESETS)
def test_presets_follow_the_seed(preset):
    aug, face = Augment(preset, PREP), as_decoded(noise(80, 80))
    outs = [aug(face, mix_seed(1, o)) for o in (1, 1, 2)]
    assert np.array_equal(outs[0], outs[1]) and np.array_equal(outs[0], outs[2]) == (preset == 'none')
