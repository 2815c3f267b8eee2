"Erased regions have the size, the place, the colour and the frequency that the papers promise"
import inspect
import json
import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing as TimmErasing
from torchvision.transforms import v2

from imgcls_nb.core import IMAGENET_MEAN, IMAGENET_STD, InputError
from imgcls_nb.erasing import ERASERS, Cutout, GridMask, HideAndSeek, RandomErasing
from imgcls_nb.policies import POLICIES
from imgcls_nb.seeds import seeded

MEANS = {'RGB': dict(mean=IMAGENET_MEAN, std=IMAGENET_STD), 'L': dict(mean=[.45], std=[.22])}
SURE = {'Cutout': {}, 'RandomErasing': {'p': 1}, 'HideAndSeek': {'grid_sizes': [2]}, 'GridMask': {}} # act on every picture
every_eraser = pytest.mark.parametrize('name', ERASERS)

def picture(h, w, mode='RGB'): # brighter everywhere than any mean colour
    return Image.fromarray(np.random.default_rng(0).integers(200, 256, (h, w, 3), np.uint8)).convert(mode)

def build(name, channels='RGB', **args):
    args = json.loads(json.dumps(SURE[name] | args))
    return ERASERS[name](size=(48, 64), interpolation='bilinear', **MEANS[channels], **args)

def runs(op, im, seed=0, n=12):
    with seeded(seed): return [np.asarray(op(im)) for _ in range(n)]

def masks(op, hw, n, seed=0):
    with seeded(seed): return np.stack([op.mask(*hw) for _ in range(n)])

def near(share, expected, n): return abs(share - expected) < 4.5*math.sqrt(expected*(1 - expected)/n)

# The contract of an operation

@every_eraser
@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('hw', [(8, 8), (8, 64), (48, 64), (64, 48), (2, 2)], ids=str)
def test_kind_is_kept_and_only_the_mask_is_painted(name, mode, hw):
    im, op = picture(*hw, mode), build(name, mode)
    before, colour = np.asarray(im).copy(), np.asarray(op.colour if mode == 'RGB' else op.colour[0])
    for seed in range(12):
        with seeded(seed): out = op(im)
        with seeded(seed): hidden = np.random.rand() < op.p and op.mask(*hw)
        assert (out.mode, out.size, np.asarray(out).dtype) == (mode, hw[::-1], np.uint8)
        assert hidden.shape == hw and hidden.dtype == bool
        assert (np.asarray(out)[hidden] == colour).all() and (np.asarray(out)[~hidden] == before[~hidden]).all()
    assert (np.asarray(im) == before).all()

@every_eraser
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_repeats_under_a_seed_whatever_was_drawn_before(name, mode):
    im, op = picture(24, 32, mode), build(name, mode)
    first = runs(op, im, 1)
    other = runs(op, im, 2)
    assert all((a == b).all() for a, b in zip(first, runs(op, im, 1)))
    assert all((a == b).all() for a, b in zip(first, runs(pickle.loads(pickle.dumps(op)), im, 1)))
    assert any((a != b).any() for a, b in zip(first, other))

@every_eraser
def test_probability(name):
    im, n = picture(16, 16), 600
    changed = lambda **args: sum((o != np.asarray(im)).any() for o in runs(build(name, **args), im, 3, n))
    assert changed(p=0) == 0
    assert changed(p=1) == n
    for p in (.2, .7): assert near(changed(p=p)/n, p, n)

def test_default_probabilities():
    op = {o: ERASERS[o](size=(8, 8), interpolation='nearest', **MEANS['RGB']) for o in ERASERS}
    assert {k: v.p for k, v in op.items()} == {'Cutout': 1, 'RandomErasing': .5, 'HideAndSeek': 1, 'GridMask': 1}

@every_eraser
def test_colour_modes_must_agree(name):
    for mode, other in (('RGB', 'L'), ('L', 'RGB')):
        with pytest.raises(InputError, match='both RGB or both grey'): build(name, mode)(picture(8, 8, other))

def test_tables_merge():
    assert not set(POLICIES) & set(ERASERS)

@pytest.mark.parametrize('name', ['Cutout', 'HideAndSeek', 'GridMask'])
@pytest.mark.parametrize('fill, colour', [('mean', (124, 116, 104)), (0, (0, 0, 0)), ([1, 2, 3], (1, 2, 3))], ids=str)
def test_fill(name, fill, colour):
    hidden = masks(build(name), (16, 16), 1)[0]
    with seeded(0):
        op = build(name, fill=fill)
        op.mask = lambda h, w: hidden
        out = np.asarray(op(picture(16, 16)))
    assert hidden.any() and {tuple(o) for o in out[hidden].tolist()} == {colour}

# Cutout

@pytest.mark.parametrize('length', [1, 7, 12])
def test_cutout_is_a_square_that_the_border_clips(length):
    whole = clipped = 0
    for hidden in masks(Cutout(length=length), (40, 50), 500):
        ys, xs = (np.flatnonzero(hidden.any(axis)) for axis in (1, 0))
        h, w = len(ys), len(xs)
        assert hidden.sum() == h*w and (np.ptp(ys), np.ptp(xs)) == (h - 1, w - 1) # a full rectangle
        touches = min(ys) == 0 or max(ys) == 39, min(xs) == 0 or max(xs) == 49
        assert h == length or touches[0] and length/2 - 1 < h < length
        assert w == length or touches[1] and length/2 - 1 < w < length
        whole += h*w == length**2
        clipped += h*w < length**2
    assert whole and (clipped or length == 1)

def test_cutout_centre_may_be_anywhere():
    share = masks(Cutout(length=1), (6, 9), 6*9*200).mean(0)
    assert share.min() > 0 and all(near(o, 1/54, 54*200) for o in share.ravel())

def test_cutout_holes_and_default_length():
    assert masks(Cutout(n_holes=3, length=3), (200, 200), 50).sum((1, 2)).max() == 27
    for side in (224, 32, 8): # half of the shorter side
        assert {int(np.sqrt(o)) for o in [masks(Cutout(), (side, 2*side), 200).sum((1, 2)).max()]} == {side//2}
    assert masks(Cutout(length=1000), (8, 8), 5).all()

# Random erasing

@pytest.mark.parametrize('hw', [(64, 64), (40, 90)], ids=str)
def test_random_erasing_has_the_promised_areas_and_aspects(hw):
    op, shares, aspects = RandomErasing(scale=(.05, .3), ratio=(.4, 1/.4)), [], []
    for hidden in masks(op, hw, 800):
        h, w = hidden.any(1).sum(), hidden.any(0).sum()
        assert hidden.sum() == h*w > 0
        assert (h - .5)*(w - .5) <= .3*hw[0]*hw[1] and (h + .5)*(w + .5) >= .05*hw[0]*hw[1] # sides are rounded
        assert (h + .5)/(w - .5) >= .4 and (h - .5)/(w + .5) <= 1/.4
        shares.append(hidden.mean())
        aspects.append(h/w)
    reached = masks(op, hw, 800).any(0)
    assert reached[0].any() and reached[-1].any() and reached[:, 0].any() and reached[:, -1].any()
    assert min(shares) < .07 and max(shares) > .27 and min(aspects) < .5 and max(aspects) > 2
    if hw == (64, 64): assert abs(np.mean(np.log(aspects))) < .1 # tall as often as wide

@pytest.mark.parametrize('args, theirs', [
    ({}, v2.RandomErasing(p=1)),
    (dict(scale=(.02, 1/3), ratio=(.3, 1/.3)), TimmErasing(probability=1, device='cpu'))],
    ids=['torchvision', 'timm'])
def test_random_erasing_takes_as_much_as_theirs(args, theirs):
    areas = []
    with seeded(0):
        for _ in range(2000): areas.append(float((theirs(torch.ones(1, 48, 48)) == 0).float().mean()))
    ours = masks(RandomErasing(**args), (48, 48), 2000).mean((1, 2))
    assert abs(np.mean(ours) - np.mean(areas)) < .01 and abs(np.std(ours) - np.std(areas)) < .01
    assert np.abs(np.quantile(ours, [.1, .5, .9]) - np.quantile(areas, [.1, .5, .9])).max() < .02

@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_what_random_erasing_paints(mode):
    channels, im = len(mode.replace('L', 'x')), picture(32, 32, mode)
    mean, std = [.5, .4, .6][:channels], [.1, .05, .08][:channels]
    def erased(kind):
        op = RandomErasing(1, (.3, .4), mode=kind, mean=mean, std=std)
        for seed in range(60):
            with seeded(seed): out = op(im)
            with seeded(seed): hidden = np.random.rand() < 1 and op.mask(32, 32)
            yield np.asarray(out).reshape(32, 32, -1)[hidden]
    assert {tuple(o) for px in erased('const') for o in px.tolist()} == {tuple(round(255*o) for o in mean)}
    rand = [np.unique(px, axis=0) for px in erased('rand')]
    assert {len(o) for o in rand} == {1} and len({tuple(o[0]) for o in rand}) > 20
    pixel = list(erased('pixel'))
    assert min(len(np.unique(px, axis=0)) for px in pixel) > 20
    noise = np.concatenate(pixel)/255
    assert np.abs(noise.mean(0) - mean).max() < .003 and np.abs(noise.std(0) - std).max() < .003

def test_noise_beyond_white_and_black_is_cut_off():
    op = RandomErasing(1, (.5, .6), mode='pixel', mean=[.5], std=[2.])
    values = np.concatenate([o.ravel() for o in runs(op, Image.new('L', (32, 32), 7))])
    assert near((values == 0).mean()/(values != 7).mean(), .4, 2000) and (values == 255).mean() > .1

def test_rectangle_that_never_fits_leaves_the_picture():
    assert not masks(RandomErasing(1, (.9, 1.), (1., 1.)), (8, 64), 20).any()
    tight = RandomErasing(1, (.3, 1/3), (.05, 20), attempts=1)
    assert masks(tight, (32, 32), 300).any((1, 2)).mean() < .9
    tight.attempts = 50
    assert masks(tight, (32, 32), 300).any((1, 2)).all()

def test_arguments_are_torchvisions():
    ours, theirs = (inspect.signature(o).parameters for o in (RandomErasing, v2.RandomErasing))
    names = [o for o in theirs if o not in ('value', 'inplace')]
    assert names == ['p', 'scale', 'ratio'] == list(ours)[:3] and 'value' in ours
    assert all(ours[o].default == theirs[o].default for o in names)

@pytest.mark.parametrize('value, colour', [('mean', (124, 116, 104)), (0, (0, 0, 0)), ([1, 2, 3], (1, 2, 3))], ids=str)
def test_value(value, colour):
    im, hidden = picture(32, 32), []
    for o in runs(build('RandomErasing', value=value), im): hidden += o[(o != np.asarray(im)).any(-1)].tolist()
    assert {tuple(o) for o in hidden} == {colour}

def test_a_random_value_is_noise():
    for a, b in zip(*(runs(build('RandomErasing', **o), picture(32, 32)) for o in (dict(value='random'), dict(mode='pixel')))):
        assert (a == b).all()

# Hide-and-Seek

@pytest.mark.parametrize('hw', [(32, 32), (30, 45), (8, 8)], ids=str)
def test_cells_are_hidden_whole(hw):
    shown = masks(HideAndSeek(grid_sizes=[8], hide_prob=.3), hw, 500)
    cells = [shown[:, y:y + 8, x:x + 8] for y in range(0, hw[0], 8) for x in range(0, hw[1], 8)]
    for o in cells: assert ((share := o.mean((1, 2))) == share.round()).all() and near(share.mean(), .3, 500)
    flat = np.stack([o[:, 0, 0] for o in cells], 1)
    if len(cells) > 1: assert abs(np.corrcoef(flat[:, 0], flat[:, 1])[0, 1]) < .2 # each its own coin

def test_grid_size_is_drawn_for_each_picture():
    sizes = [int(np.diff(np.flatnonzero(np.diff(o.any(0).astype(int) + 2*o[0]))).min(initial=99)) for o in
             masks(HideAndSeek(grid_sizes=[0, 4]), (32, 32), 60)]
    assert 99 in sizes and 4 in sizes
    share = (masks(HideAndSeek(), (224, 224), 400).any((1, 2))).mean()
    assert near(share, .8, 400)
    assert not masks(HideAndSeek(grid_sizes=[0]), (16, 16), 20).any()
    assert not masks(HideAndSeek(hide_prob=0), (16, 16), 20).any() and masks(HideAndSeek([3], 1.), (16, 16), 20).all()

def test_small_pictures_get_small_cells():
    shown = masks(HideAndSeek(), (32, 32), 300) # cells of 2, 5, 6 and 8
    hidden = shown.mean((1, 2))
    assert near(hidden[hidden > 0].mean(), .5, 200) and hidden.max() < .95

# GridMask

@pytest.mark.parametrize('ratio, kept', [(.25, 1 - .75**2), (.5, .75), (.75, 1 - .25**2)])
@pytest.mark.parametrize('hw', [(32, 32), (16, 48), (64, 32)], ids=str)
def test_gridmask_keeps_what_the_paper_says(ratio, kept, hw): # whole units: exact at every offset
    shown = masks(GridMask(d1=16, d2=16, ratio=ratio), hw, 100)
    assert set((1 - shown.mean((1, 2))).tolist()) == {kept}
    assert len({o.tobytes() for o in shown}) > 50
    strips = masks(GridMask(d1=16, d2=16, ratio=ratio, mode=0), hw, 100)
    assert (strips == ~shown).all()

def test_gridmask_is_made_of_squares():
    for hidden in masks(GridMask(d1=10, d2=14), (60, 60), 50):
        ys, xs = hidden.any(1), hidden.any(0)
        assert (hidden == ys[:, None] & xs).all() # unturned: rows and columns
        runs_of = lambda o: [len(s) for s in ''.join('x' if v else ' ' for v in o).strip('x').split()]
        sides = set(runs_of(ys)) | set(runs_of(xs))
        assert len(sides) == 1 and sides <= {5, 6, 7}

def removed(d1, d2, ratio=.5): # strips are whole pixels
    return np.mean([(1 - round(d*ratio + 1e-9)/d)**2 for d in range(d1, d2 + 1)])

def test_gridmask_can_be_turned():
    turned = masks(GridMask(d1=12, d2=20, rotate=360), (48, 64), 400)
    straight = [o for o in turned if (o == o.any(1)[:, None] & o.any(0)).all()]
    assert len(straight) < 40 and abs(turned.mean() - removed(12, 20)) < .01
    assert np.abs(turned.mean(0) - removed(12, 20)).max() < .11 # no place is favoured: 5 sigma

def test_gridmask_distances_scale_with_the_picture():
    for side, d1 in ((224, 96), (56, 24), (8, 3)):
        shares = masks(GridMask(), (side, side), 300).mean((1, 2))
        assert abs(shares.mean() - removed(d1, side)) < .03 and shares.min() > 0 and shares.max() < .8
    for ratio in (0, 1): # something always goes, and something stays
        shares = masks(GridMask(d1=4, d2=4, ratio=ratio), (16, 16), 20).mean((1, 2))
        assert 0 < shares.min() and shares.max() < 1

# What is refused

@pytest.mark.parametrize('name, args, says', [
    ('Cutout', dict(n_holes=0), 'from 1 up'), ('Cutout', dict(length=0), 'length=0'), ('Cutout', dict(length=-3), 'length=-3'),
    ('Cutout', dict(length=2.5), 'length=2.5 is no whole number'), ('Cutout', dict(length=True), 'length=True'),
    ('Cutout', dict(fill=[1, 2]), 'a list of 3'), ('Cutout', dict(fill='none'), "fill='none' is no colour"),
    ('Cutout', dict(p=2), 'p=2 is no number from 0 to 1'), ('Cutout', dict(p='a'), "p='a'"),
    ('Cutout', dict(lenght=8), "Did you mean 'length'"), ('Cutout', dict(prob=.5), 'It takes n_holes, length, p, fill.'),
    ('RandomErasing', dict(scale=[.5, .3]), 'scale=[0.5, 0.3] should be two numbers above 0, the smaller first, up to 1'),
    ('RandomErasing', dict(scale=.5), 'scale=0.5'), ('RandomErasing', dict(scale=[.5, 1.5]), '1.5'),
    ('RandomErasing', dict(scale=['a', 'b']), 'two numbers'), ('RandomErasing', dict(scale=[.1, .2, .3]), 'two numbers'),
    ('RandomErasing', dict(ratio=[0, 3]), 'ratio=[0, 3]'), ('RandomErasing', dict(ratio=[3, .3]), 'smaller first'),
    ('RandomErasing', dict(mode='x'), "'const', 'rand' or 'pixel'"), ('RandomErasing', dict(attempts=0), 'attempts=0'),
    ('RandomErasing', dict(value='x'), "fill='x' is no colour"), ('RandomErasing', dict(value='random', mode='rand'), 'both say'),
    ('RandomErasing', dict(value=0, mode='pixel'), 'both say'),
    ('RandomErasing', dict(min_area=.1), 'It takes p, scale, ratio, value'),
    ('RandomErasing', dict(p=float('nan')), 'p=nan'), ('RandomErasing', dict(fill=0), "no argument 'fill'"),
    ('HideAndSeek', dict(grid_sizes=[]), 'no list'), ('HideAndSeek', dict(grid_sizes=8), 'no list'),
    ('HideAndSeek', dict(grid_sizes=[-1]), 'from 0 up'), ('HideAndSeek', dict(hide_prob=2), 'hide_prob=2'),
    ('GridMask', dict(d1=5), 'give both'), ('GridMask', dict(d2=5), 'give both'), ('GridMask', dict(d1=10, d2=5), 'from 10 up'),
    ('GridMask', dict(d1=1, d2=3), 'from 2 up'), ('GridMask', dict(mode=2), 'mode=2'),
    ('GridMask', dict(rotate=0), 'from 1 to 360'),
    ('GridMask', dict(ratio=-1), 'ratio=-1'), ('GridMask', dict(ratio='a'), "ratio='a'")], ids=str)
def test_bad_arguments(name, args, says):
    with pytest.raises(InputError, match=name) as e: build(name, **args)
    assert says in str(e.value)
