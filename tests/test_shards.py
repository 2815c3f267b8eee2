"Tar shards as one data set: nothing twice, nothing left out, whoever reads; and small in memory, however many pictures"
import gc
import io
import itertools
import os
import pickle
import shutil
import signal
import tarfile
import tracemalloc
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from fastai.callback.core import Callback

from imgcls_nb import archives, data
from imgcls_nb.archives import TarIndex, index_tars
from imgcls_nb.columns import Texts
from imgcls_nb.core import BadPictureError, InputError
from imgcls_nb.data import image_dls
from imgcls_nb.datasets import draw_shape, make_shapes
from imgcls_nb.learner import image_learner
from imgcls_nb.packed import find_tars, read_shards
from imgcls_nb.pictures import Files, PictureList
from imgcls_nb.samplers import batches, shuffled, shuffled_near

KINDS = 'circle', 'square', 'triangle'
HOW = dict(size=32, bs=8, aug='light', device='cpu', num_workers=0, cache=False)

def png(i):
    from PIL import Image
    out = io.BytesIO()
    Image.fromarray(draw_shape(KINDS[i % 3], i, 32)).save(out, 'png')
    return out.getvalue()

def write_tar(file, members):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, 'w') as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file

def write_shard(file, numbers): return write_tar(file, [o for i in numbers for o in ((f'{i:03}.png', png(i)),
                                                                                   (f'{i:03}.cls', KINDS[i % 3].encode()))])

@pytest.fixture(scope='session')
def shards(tmp_path_factory): # 60 pictures in six shards, 12 more to validate on; not to be changed
    root = tmp_path_factory.mktemp('shards')
    sizes = [0, 7, 19, 29, 40, 48, 60] # of different lengths
    for k, (a, b) in enumerate(itertools.pairwise(sizes)): write_shard(root/f'train-{k:03}.tar', range(a, b))
    write_shard(root/'val-000.tar', range(60, 72))
    return root

@pytest.fixture
def own(shards, tmp_path): # a copy to change
    return Path(shutil.copytree(shards, tmp_path/'own'))

# Which shards

@pytest.mark.parametrize('name, found', [
    ('train-{000..002}.tar', ['train-000', 'train-001', 'train-002']), ('train-00{1,4}.tar', ['train-001', 'train-004']),
    ('train-{000..000}.tar', ['train-000']), ('{train,val}-{000..001}.tar', None),
    ('{train,val}-000.tar', ['train-000', 'val-000']), ('train-{003..004}.*', ['train-003', 'train-004']),
    ('train-00{4..5}.tar', ['train-004', 'train-005'])])
def test_patterns(shards, name, found):
    if found:
        assert [o.stem for o in find_tars(shards, name)] == found
        return
    with pytest.raises(InputError, match=r"lacks 1 of 4 tar files '\{train,val\}-\{000..001\}.tar': val-001.tar"):
        find_tars(shards, name)

def test_patterns_may_be_absolute(shards, tmp_path):
    assert find_tars(tmp_path, f'{shards}/train-00[0-2].tar') == find_tars(shards, 'train-00[0-2].tar') != []
    assert len(read_shards(tmp_path, f'{shards}/train-*.tar')[0]) == 60

def test_a_pattern_in_a_plan(shards):
    train, valid = read_shards(shards, 'train-{000..003}.tar', 'train-{004..005}.tar')
    assert (len(train), len(valid)) == (40, 20)
    dls = image_dls(shards, 'train-{000..001}.tar', 'val-*.tar', **HOW)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (19, 12) and list(dls.vocab) == list(KINDS)
    with pytest.raises(InputError, match=r"A pattern goes with its folder: path='.*', train='train-\{000..005\}.tar'"):
        image_dls(shards/'train-{000..005}.tar', **HOW)

# Orders

@pytest.mark.parametrize('window', [1, 2, 3, 100])
def test_a_window_mixes_a_few_shards(window):
    which = np.repeat(np.arange(9), [5, 1, 9, 12, 3, 0, 7, 4, 6]) # one of them is empty on this side
    orders = [shuffled_near(which, window, 1, epoch) for epoch in range(6)]
    for order in orders:
        assert sorted(order) == list(range(47)), "every picture once"
        there = [which[order[k]] for k in range(47)]
        turns = list(dict.fromkeys(there))
        for k in range(0, 8, window): # the pictures of these come one after the other, and mixed
            few = turns[k:k + window]
            places = np.flatnonzero(np.isin(there, few))
            assert len(places) == places[-1] - places[0] + 1
    assert len({tuple(o) for o in orders}) == 6 and len({tuple(which[o]) for o in orders}) > 1
    assert (shuffled_near(which, window, 1, 3) == orders[3]).all() and (shuffled_near(which, window, 2, 3) != orders[3]).any()
    assert any((np.diff(o) < 0).any() for o in orders), "within a shard, too"
    if window == 100: assert (orders[0] == shuffled(47, 1, 0)).all()

def test_batches_are_a_sequence():
    got = batches(shuffled(50, 0, 0), 8)
    assert len(got) == 7 and len(got[2:]) == 5 and np.array_equal(got[2:][0][1], got[2][1]) and len(got[-1][1]) == 2
    assert np.array_equal(np.concatenate([o[1] for o in got]), shuffled(50, 0, 0)) and not batches([], 8)
    with pytest.raises(IndexError): got[7]

def test_what_goes_with_a_window(shards, shapes):
    for where, how in ((shards, dict(balance='sampler')), (shards, dict(repeats=2)), (shapes, {})):
        with pytest.raises(InputError, match='shard_window=2 mixes the pictures of a few tar shards'):
            image_dls(where, **HOW | how, shard_window=2)
    with pytest.raises(InputError, match='shard_window=0 is too small'): image_dls(shards, **HOW, shard_window=0)

# Who reads what

def pass_(dl, epoch): # names, batch by batch, as the maker was asked for them; without those that are lent, and count nothing
    dl.epoch, asked, names, got = epoch, [], [], []
    make = dl.maker.__class__.__getitem__
    class Asked(dl.maker.__class__):
        def __getitem__(self, entry):
            asked.append([self.pics.name(i) for i in entry[2].tolist()])
            return make(self, entry)
    dl.maker.__class__ = Asked
    for x, y in dl:
        got.append((x.numpy().tobytes(), y.tolist()))
        names.append(asked.pop()[:dl.part.n])
    dl.maker.__class__ = Asked.__base__
    return names, got

@pytest.mark.parametrize('window', [None, 2])
def test_ranks_and_workers_share_an_epoch(shards, window, monkeypatch):
    seen, rank = {}, 0
    monkeypatch.setattr(data, 'rank', lambda: rank)
    dls = image_dls(shards, **HOW, shard_window=window)
    both = image_dls(shards, **HOW | dict(num_workers=2), shard_window=window)
    for n in (1, 2, 3):
        monkeypatch.setattr(data, 'world', lambda n=n: n)
        for rank in range(n): # which the loader asks for
            seen[n, rank], pixels = pass_(dls.train, 1)
            assert len(seen[n, rank]) == len(dls.train)
            both.train.epoch = 1
            if (n, rank) in ((1, 0), (3, 1)): assert [(x.numpy().tobytes(), y.tolist()) for x, y in both.train] == pixels
    alone = seen[1, 0]
    assert sorted(sum(alone, [])) == sorted(dls.train_ds.name(i) for i in range(60))
    for n in (2, 3):
        for k, batch in enumerate(alone): assert sum((seen[n, r][k] for r in range(n)), []) == batch, "in order, nothing twice"

def test_a_validation_is_cut_once(shards, monkeypatch):
    dls, names = image_dls(shards, **HOW), []
    for n in (1, 2, 3):
        monkeypatch.setattr(data, 'world', lambda n=n: n)
        names.append([])
        for r in range(n):
            monkeypatch.setattr(data, 'rank', lambda r=r: r)
            names[-1] += [dls.valid_ds.name(i) for o in dls.valid.epoch_batches() for i in o[1]]
    assert names[0] == names[1] == names[2] == [dls.valid_ds.name(i) for i in range(12)]

# Going on in the middle of a shard

class Die(Callback):
    order = 99
    def after_batch(self):
        if self.training and self.clock.steps == 5: os.kill(os.getpid(), signal.SIGKILL)

def train(shards, run, workers, resume=False, die=False):
    dls = image_dls(shards, **HOW | dict(num_workers=workers), shard_window=2)
    learn = image_learner(dls, 'test_resnet', run=run, save_steps=2, precision='fp32')
    if die:
        learn.add_cb(cb := Die())
        learn.planned = (*learn.planned, cb)
    with learn.no_bar(): learn.fit_one_cycle(2, 1e-2, resume=resume)
    return {k: v.numpy().tobytes() for k, v in learn.model.state_dict().items()}

def test_it_goes_on_in_the_middle_of_a_shard(shards, tmp_path):
    whole = train(shards, tmp_path/'whole', 0)
    for workers in (0, 2):
        run = tmp_path/f'cut-{workers}'
        process = get_context('spawn').Process(target=train, args=(shards, run, workers, False, True))
        process.start() # anew: torch may refuse to train in one that is forked
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert train(shards, run, workers, resume=True) == whole

# Shards that are not what they were

def test_truncated_shards_are_named_all_at_once(own):
    for k in (1, 4): (own/f'train-00{k}.tar').write_bytes((own/f'train-00{k}.tar').read_bytes()[:3000])
    with pytest.raises(InputError) as e: image_dls(own, **HOW)
    assert 'train-001.tar' in str(e.value) and 'train-004.tar' in str(e.value) and 'train-002.tar' not in str(e.value)

def test_a_shard_that_changes_is_indexed_anew(own, monkeypatch):
    scanned, scan = [], archives.scan_tar
    monkeypatch.setattr(archives, 'scan_tar', lambda file: scanned.append(file.name) or scan(file))
    assert len(read_shards(own)[0]) == 60 and len(scanned) == 7
    assert len(read_shards(own)[0]) == 60 and len(scanned) == 7
    write_shard(own/'train-003.tar', range(5))
    train, _ = read_shards(own)
    assert len(train) == 60 - 11 + 5 and scanned[7:] == ['train-003.tar']

@pytest.mark.parametrize('workers', [0, 1])
def test_a_shard_that_changes_during_the_epoch_is_refused(own, workers):
    dls = image_dls(own, **HOW | dict(num_workers=workers), on_lost='skip')
    for k in range(6): write_shard(own/f'train-00{k}.tar', range(72, 90)) # all of them longer than they were
    with pytest.raises(InputError, match=r"train-00\d.tar' has changed since its index was made") as e: list(dls.train)
    assert not isinstance(e.value, BadPictureError), "not a picture to skip"

def test_names_that_lead_elsewhere(tmp_path):
    names = '../../etc/circle/a.png', '/square/b.png', 'triangle/../../c/d.png'
    write_tar(tmp_path/'s/x.tar', [(o, png(i)) for i, o in enumerate(names)])
    train, _ = read_shards(tmp_path/'s')
    assert [train.name(i) for i in range(3)] == ['x.tar:../../etc/circle/a.png', 'x.tar:square/b.png', 'x.tar:../c/d.png']
    assert [train.source(i).read_bytes() for i in range(3)] == [png(0), png(1), png(2)], "read where they are, in the tar file"
    assert sorted(o.name for o in tmp_path.rglob('*')) == ['s', 'x.tar'], "nothing is ever unpacked"

# Without a look at each picture

def test_pictures_that_are_trusted(own):
    members = [('a.png', b'no picture'), ('a.cls', b'circle'), *((f'{i}.{k}', png(i) if k == 'png' else KINDS[i % 3].encode())
                                                                 for i in range(9) for k in ('png', 'cls'))]
    write_tar(own/'train-000.tar', members)
    assert len(image_dls(own, **HOW).quarantined['train']) == 1
    dls = image_dls(own, **HOW, on_bad='trust')
    assert not dls.quarantined['train'] and len(dls.train_ds) == 63
    with pytest.raises(BadPictureError, match='train-000.tar:a.png'): list(dls.train)
    dls = image_dls(own, **HOW, on_bad='trust', on_lost='skip')
    assert sum(len(y) for _, y in dls.train) == 62 and [o[0] for o in dls.train.lost] == ['train-000.tar:a.png']

# A hundred thousand pictures

N, EACH = 100_000, 1000

@pytest.fixture
def many(tmp_path, monkeypatch): # an index of pictures that are not there
    def scan(file):
        names = Texts([f'{file.stem}/{i:08}.jpg' for i in range(EACH)])
        labels = np.arange(EACH, dtype=np.int32) % 7
        return TarIndex(names, np.zeros(EACH, np.int32), np.full(EACH, 512), np.full(EACH, 4), labels, tuple('abcdefg'), True)
    monkeypatch.setattr(archives, 'scan_tar', scan)
    for i in range(N//EACH): write_tar(tmp_path/f'many/{i:03}.tar', [('a.jpg', b'jpeg')])
    return tmp_path/'many'

def read_and_ordered(many): # and what both take, in bytes
    tracemalloc.start()
    try:
        pics, _ = read_shards(many)
        return pics, batches(shuffled(len(pics), 0, 0), 64), tracemalloc.get_traced_memory()[0]
    finally: tracemalloc.stop()

def test_memory_for_each_picture(many):
    read_shards(many) # the first time
    gc.collect()
    objects = len(gc.get_objects())
    least = min(read_and_ordered(many)[2] for _ in range(3)) # threads of this process count as well, whoever started them
    pics, order, _ = read_and_ordered(many)
    assert len(pics) == N and least < 36*N + 10**6, f"{least/N:.1f} bytes a picture"
    assert len(gc.get_objects()) < objects + N//20 and len(order) == -(-N//64)
    sent = pickle.dumps(pics)
    assert len(sent) < 17*N + 10**6, "what a loader process gets that is not forked: labels and positions"
    again = pickle.loads(sent)
    assert again.name(77_123) == pics.name(77_123) == '077.tar:077/00000123.jpg' and again.source(77_123) == pics.source(77_123)
    assert pics.source(77_123).read_bytes() == b'jpeg'

def test_a_file_that_is_replaced_is_not_mapped_again(many):
    pics, _ = read_shards(many)
    sent = pickle.dumps(pics.place.offsets)
    (many/'000.tar').touch()
    os.utime(many/'000.tar', ns=(1, 1))
    read_shards(many)
    with pytest.raises(InputError, match='was replaced while processes began to use it'): pickle.loads(sent)
    assert pics.source(5).member == '000/00000005.jpg', "who has it mapped keeps it"
    with pytest.raises(InputError, match='has changed'): pics.source(5).read_bytes()

def test_a_joined_index_is_that_of_its_parts(shards):
    files = find_tars(shards, 'train-*.tar')
    both, alone = index_tars(files), [archives.index_tar(o) for o in files]
    assert [*both.names] == [name for o in alone for name in o.names]
    assert [both.texts[k] for k in both.labels] == [o.texts[k] for o in alone for k in o.labels]
    assert both.which.tolist() == np.repeat(np.arange(6), list(map(len, alone))).tolist() and both.samples is None
    assert type(both.offsets).__name__ == 'Mapped' and len(index_tars(files[:2])) == 19

def test_the_checksum_of_a_list_is_that_of_its_lines(shards, tmp_path):
    import hashlib
    pics, _ = read_shards(shards)
    few = PictureList(tmp_path, Files(tmp_path, ['ü/a.png', 'b.png']), [1, 0], 'ab')
    for o in (pics, pics.take([5, 3, 3]), pics.take(np.zeros(0, int)), few):
        lines = [f'{o.name(i)} {o.labels[i]}' for i in range(len(o))]
        assert o.list_hash() == hashlib.sha256('\n'.join(lines).encode()).hexdigest()

def test_class_folders_have_no_shards(tmp_path): assert image_dls(make_shapes(tmp_path/'s', n=5), **HOW).train_ds.shards is None
