"Which pictures make which batch"
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls_nb.callbacks.resizing import grown_size
from imgcls_nb.core import BadPictureError, InputError
from imgcls_nb.data import image_dls
from imgcls_nb.datasets import draw_shape, make_shapes
from imgcls_nb.learner import image_learner
from imgcls_nb.lists import read_list_file
from imgcls_nb.samplers import balanced, batches, class_weights, occurrences, repeated, shuffled

# Orders

@pytest.mark.parametrize('n', [1, 2, 7, 1000])
def test_every_picture_once(n):
    orders = [shuffled(n, 1, e) for e in range(3)]
    assert all(sorted(o) == list(range(n)) for o in orders)
    assert n < 7 or len({tuple(o) for o in orders}) == 3

@pytest.mark.parametrize('counts', [(900, 100), (10, 0, 5), (1, 50), (3, 3, 3), (100, 10, 1)])
def test_balanced_classes(counts):
    labels, present = np.repeat(np.arange(len(counts)), counts), np.count_nonzero(counts)
    orders = [balanced(labels, 5, e) for e in range(40)]
    for o in orders:
        drawn = np.bincount(labels[o], minlength=len(counts))
        assert len(o) == len(labels) and all(abs(d - len(labels)/present) < 1 for d, c in zip(drawn, counts) if c)
    seen = np.bincount(np.concatenate(orders), minlength=len(labels))
    for c in range(len(counts)):
        if counts[c]: assert np.ptp(seen[labels == c]) <= 40//10 + 1, "pictures of a class take turns"
    assert np.array_equal(orders[0], balanced(labels, 5, 0))
    assert len(labels) < 20 or not np.array_equal(orders[0], balanced(labels, 6, 0))

def test_a_balanced_epoch_is_whole_whatever_the_shares_add_up_to():
    labels = np.repeat(np.arange(500), np.arange(500) % 80 + 10)
    assert len(balanced(labels, 42, 4607)) == len(labels)

def test_power_is_between():
    labels = np.repeat([0, 1], [900, 100])
    shares = [np.mean(labels[balanced(labels, 0, 0, power)]) for power in (0, .5, 1)]
    assert shares == pytest.approx([.1, .25, .5], abs=.01)

@pytest.mark.parametrize('power', [0, .5, 1])
def test_class_weights_leave_the_mean_loss_as_it_was(power):
    labels = np.repeat([0, 1, 3], [50, 30, 3])
    weights = class_weights(labels, 4, power)
    assert weights[labels].mean() == pytest.approx(1) and weights[2] == 0
    assert weights[3]/weights[0] == pytest.approx((50/3)**power)

@pytest.mark.parametrize(('n', 'repeats'), [(9, 3), (10, 3), (4, 7), (100, 2)])
def test_repeated_augmentation(n, repeats):
    epochs = [repeated(n, repeats, 3, e) for e in range(12)]
    assert all(len(o) == n for o in epochs)
    for o in epochs: assert all(np.ptp(o[i:i + repeats]) == 0 for i in range(0, n, repeats))
    seen = Counter(np.concatenate(epochs).tolist())
    assert len(seen) == n or n == 100 and len(seen) == 100

def test_occurrences():
    rng = np.random.default_rng(0)
    for _ in range(20):
        order, count = rng.integers(0, 9, 30), Counter()
        for i, seen in zip(order, occurrences(order)):
            assert seen == count[i]
            count[i] += 1

def test_lines_of_one_picture_come_again():
    rng = np.random.default_rng(0)
    for _ in range(20):
        order, same, count = rng.integers(0, 9, 30), rng.integers(0, 4, 9), Counter()
        for i, seen in zip(order, occurrences(order, same)):
            assert seen == count[same[i]]
            count[same[i]] += 1
        parts = batches(order, 4, same=same)
        assert np.array_equal(np.concatenate([o[2] for o in parts]), occurrences(order, same))

def test_a_list_that_names_a_picture_again_varies_it_anew(tmp_path):
    path = make_shapes(tmp_path/'shapes', n=2)
    (path/'l.txt').write_text(''.join(f'{c}/000.png {n}\n' for n, c in enumerate(('circle', 'square')) for _ in range(4)))
    pics = read_list_file(path/'l.txt', path)
    entries = batches(shuffled(8, 1, 0), 4, same=pics.same)
    seeds = [(pics.name(i), k) for _, idxs, seen in entries for i, k in zip(idxs.tolist(), seen.tolist())]
    assert len(set(seeds)) == 8, 'a picture is varied by its name and how often it has come'

def test_batches_of_changing_size():
    sizes = ((32, 32), (64, 64), (64, 96))
    got = batches(shuffled(500, 0, 0), 16, size=(64, 64), sizes=sizes, seed=1, epoch=2)
    assert np.concatenate([o[1] for o in got]).tolist() == shuffled(500, 0, 0).tolist()
    assert {o[0] for o in got} == set(sizes)
    for hw, idxs, _ in got[:-1]: assert len(idxs) == round(16*64*64/(hw[0]*hw[1]))
    assert [o[0] for o in got] != [o[0] for o in batches(shuffled(500, 0, 0), 16, size=(64, 64), sizes=sizes, seed=1, epoch=3)]

def test_one_size_has_batches_as_large_as_is_said():
    assert {len(o[1]) for o in batches(range(320), 32, size=(224, 224), sizes=[(192, 192)])} == {32}

# Loaders

def unbalanced(path):
    make_shapes(path, n=4)
    for i in range(4, 40): Image.fromarray(draw_shape('circle', i)).save(path/f'circle/{i:03}.png')
    return path

def run(dl, epochs=2):
    out = []
    for dl.epoch in range(epochs): out.append([(tuple(x.shape), x.sum().item(), y.tolist()) for x, y in dl])
    return out

HOW = dict(valid=.25, size=48, bs=8, device='cpu')

@pytest.mark.parametrize('how', [dict(balance='sampler'), dict(repeats=3), dict(sizes=[[32, 32], [48, 48]]),
                                 dict(balance='both', sizes=[[40, 24], [48, 48]], aug='strong')], ids=str)
def test_samplers_do_not_see_loader_processes(tmp_path, how):
    path = unbalanced(tmp_path)
    runs = [run(image_dls(path, **HOW | how, num_workers=w).train) for w in (0, 1, 3)]
    assert runs[0] == runs[1] == runs[2] and runs[0][0] != runs[0][1]

def test_a_picture_that_comes_again_is_varied_anew(tmp_path):
    dl = image_dls(unbalanced(tmp_path), **HOW | dict(bs=2, repeats=2)).train
    for x, y in dl: assert len(y) == 1 or y[0] == y[1] and not torch.equal(x[0], x[1])

@pytest.mark.parametrize('workers', [0, 2])
def test_two_passes_at_once_and_a_broken_off_one(tmp_path, workers):
    dl = image_dls(unbalanced(tmp_path), **HOW, num_workers=workers).train
    want = run(dl, 1)[0]
    both = [(tuple(x.shape), x.sum().item(), y.tolist(), y2.tolist()) for (x, y), (_, y2) in zip(dl, dl)]
    assert [o[:3] for o in both] == want and [o[3] for o in both] == [o[2] for o in want]
    next(iter(dl))
    assert run(dl, 1)[0] == want

@pytest.mark.parametrize(('balance', 'drawn', 'loss'), [(None, .8, 1), ('sampler', 1/3, 1), ('loss', .8, 3), ('both', .5, 2)])
def test_balance_table(tmp_path, balance, drawn, loss):
    dls = image_dls(unbalanced(tmp_path), **HOW, balance=balance)
    table = dls.balance_table()
    assert table.pictures.tolist() == [30, 3, 3] and table.before['circle'] == pytest.approx(30/36)
    assert table.after.sum() == pytest.approx(1)
    if balance: assert table.after.tolist() == pytest.approx([1/3]*3, abs=.04)
    weights = getattr(image_learner(dls, 'test_resnet').loss_func, 'weight', None)
    assert (weights is None) == (balance in (None, 'sampler'))
    if weights is not None: assert weights.tolist() == pytest.approx(table.loss_weight.tolist())

def test_balance_needs_a_named_loss(tmp_path):
    dls = image_dls(unbalanced(tmp_path), **HOW, balance='loss')
    with pytest.raises(InputError, match="balance='loss' gives weights"):
        image_learner(dls, 'test_resnet', loss=torch.nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="balance='samplr' is unknown.*'sampler'"): image_dls(tmp_path, balance='samplr')

def test_sizes_grow_and_are_put_back(shapes):
    dls, seen = image_dls(shapes, size=48, bs=16, start_size=24, device='cpu'), []
    learn = image_learner(dls, 'test_resnet')
    from fastai.callback.core import Callback
    class See(Callback):
        order = 50
        def before_batch(self): seen.append((self.training, tuple(self.x.shape[2:])))
    with learn.no_bar(): learn.fit(4, 1e-3, cbs=See())
    sizes = list(dict.fromkeys(hw for training, hw in seen if training))
    assert sizes == [grown_size(24, (48, 48), e/4) for e in range(4)] == [(24, 24), (32, 32), (40, 40), (48, 48)]
    assert {hw for training, hw in seen if not training} == {(48, 48)} and learn.dls.train.size == (48, 48)
    with pytest.raises(InputError, match='start_size=48'):
        image_learner(image_dls(shapes, size=48, start_size=48, device='cpu'), 'test_resnet').fit(1)

def test_nothing_to_train_on_is_an_error(shapes):
    dls = image_dls(shapes, size=48, bs=100, drop_last=True, device='cpu')
    with pytest.raises(InputError, match='48 pictures make no full batch of bs=100'): next(iter(dls.train))

# Pictures that vanish

@pytest.mark.parametrize('workers', [0, 2])
def test_a_lost_picture_stops_or_leaves_its_place_empty(tmp_path, workers):
    path = make_shapes(tmp_path/'shapes', n=8)
    dls = image_dls(path, **HOW, num_workers=workers, on_lost='skip', cache=False)
    whole = run(dls.train, 1)[0]
    gone = dls.train.dataset.name(5)
    os.unlink(dls.train.dataset.source(5))
    less = run(dls.train, 1)[0]
    assert sum(len(y) for *_, y in whole) - 1 == sum(len(y) for *_, y in less)
    assert sum(a == b for a, b in zip(whole, less)) == len(whole) - 1, "all other batches stay"
    assert [o[0] for o in dls.train.lost] == [gone] and 'no such file' in dls.train.lost[0][1]
    with pytest.raises(BadPictureError, match=gone): run(dls.train.new(on_lost='raise'), 1)

def test_lost_pictures_stand_in_the_run(tmp_path):
    dls = image_dls(make_shapes(tmp_path/'shapes', n=8), **HOW, on_lost='skip')
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run')
    os.unlink(dls.train.dataset.source(5))
    with learn.no_bar(): learn.fit(1)
    lost = [o for o in learn.run_folder.events() if o['event'] == 'lost']
    assert [o['exact'] for o in lost] == [False] and lost[0]['pictures'][0][0] == dls.train.dataset.name(5)

# Memory

GROWTH = """
import os, sys
from imgcls_nb.pictures import PictureList
n, kind = 200_000, sys.argv[1]
names = [f'a/rather/long/folder/name/{i:09}.jpg' for i in range(n)]
pics = PictureList('.', names, [0]*n, ['a']) if kind == 'ours' else names
name = pics.name if kind == 'ours' else pics.__getitem__
def private(): return sum(int(o.split()[1]) for o in open('/proc/self/smaps_rollup') if o.startswith('Private_Dirty'))
if not os.fork():
    start = private()
    for i in range(n): name(i)
    print(private() - start, flush=True)
    os._exit(0)
os.wait()
"""

@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='reads /proc')
def test_reading_names_copies_no_pages():
    grown = {o: int(subprocess.run([sys.executable, '-c', GROWTH, o], capture_output=True, text=True, check=True).stdout)
             for o in ('ours', 'list')}
    assert grown['ours'] < 4_000 < grown['list'], "in KB; a list of strings is copied page by page when it is read"

EPOCHS = """
import gc, os, sys
from imgcls_nb.data import image_dls
def tree(): # resident memory of this process and its loader processes, in KB; shared pages count in part
    pids = [os.getpid(), *map(int, open(f'/proc/self/task/{os.getpid()}/children').read().split())]
    return sum(int(o.split()[1]) for p in pids for o in open(f'/proc/{p}/smaps_rollup') if o.startswith('Pss:'))
if __name__ == '__main__':
    dls = image_dls(sys.argv[1], size=48, bs=16, num_workers=4, device='cpu', cache=sys.argv[2])
    gc.collect(), gc.freeze() # a collection writes to every page, and is of the interpreter's choosing
    for dls.train.epoch in range(8):
        most = 0
        for _ in dls.train: most = max(most, tree())
        print(most, flush=True)
"""

@pytest.mark.alone # memory that others share counts less
@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='reads /proc')
def test_memory_stays_flat_over_epochs(tmp_path):
    path = make_shapes(tmp_path/'shapes', n=100, size=96)
    done = subprocess.run([sys.executable, '-c', EPOCHS, path, tmp_path/'kept'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = list(map(int, done.stdout.split()))
    assert len(used) == 8 and max(used[4:]) < 1.05*max(used[1:4]), used

@pytest.mark.parametrize('workers', [0, 1])
def test_four_copies_in_a_batch_are_varied_in_four_ways(tmp_path, workers):
    path = make_shapes(tmp_path/'shapes', n=2)
    (path/'l.txt').write_text(''.join(f'{c}/000.png {n}\n' for n, c in enumerate(('circle', 'square')) for _ in range(4)))
    (path/'v.txt').write_text('circle/001.png 0\nsquare/001.png 1\n')
    x, y = image_dls(path, 'l.txt', 'v.txt', size=32, bs=8, num_workers=workers, device='cpu').train.one_batch()
    assert len({o.numpy().tobytes() for o in x}) == 8
