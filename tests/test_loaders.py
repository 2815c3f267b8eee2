"What a loader says and does when pictures, processes or arguments are not what they should be"
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from fastai.torch_core import TensorCategory, TensorImage
from PIL import Image
from torch.utils.data import get_worker_info

from imgcls_nb.core import BadPictureError, InputError
from imgcls_nb.data import BatchMaker, image_dls
from imgcls_nb.datasets import make_shapes
from imgcls_nb.devices import auto_workers
from imgcls_nb.learner import image_learner

HOW = dict(size=32, bs=8, device='cpu', num_workers=0)

@pytest.fixture
def halves(tmp_path):
    "30 pictures to train on, 15 to validate on"
    for side, n in (('train', 10), ('valid', 5)): make_shapes(tmp_path/'halves'/side, n=n)
    return tmp_path/'halves'

def spoil(folder, *names):
    for o in names: (folder/o).write_bytes(b'')

# Before the first epoch

def test_what_is_left_out_is_said(halves, capsys):
    image_dls(halves, **HOW)
    assert not capsys.readouterr().out
    Image.new('RGB', (9, 9)).save(halves/'train/circle/more.png')
    spoil(halves, 'train/circle/000.png')
    dls = image_dls(halves, **HOW)
    assert capsys.readouterr().out.startswith("1 of 46 pictures left out, unreadable: 'circle/000.png'. The whole list")
    assert [o[0] for o in dls.quarantined['train']] == ['circle/000.png'] and not dls.quarantined['valid']

def test_both_sides_are_in_one_report(halves):
    spoil(halves, *(f'{side}/{k}/00{i}.png' for side in ('train', 'valid') for k in ('circle', 'square') for i in (1, 2)))
    for how in (dict(), dict(on_bad='raise')):
        with pytest.raises(InputError) as e: image_dls(halves, **HOW, **how)
        assert str(e.value).startswith('train: 4 pictures of 30 in') and '\nvalid: 4 pictures of 15 in' in str(e.value)
        assert str(e.value).count('.png: not a picture that can be read (the file is empty)') == 8

def test_a_thread_is_a_picture(halves):
    for side in ('train', 'valid'):
        for i, size in enumerate([(3000, 1), (1, 3000)]): Image.new('RGB', size, 'red').save(halves/side/f'circle/thin{i}.png')
    for aug in ('none', 'standard', 'strong'):
        dls = image_dls(halves, **HOW | dict(size=224, bs=32), aug=aug, cache=False)
        assert not any(dls.quarantined.values())
        assert [sum(len(y) for _, y in dl) for dl in dls] == [32, 17]

@pytest.mark.parametrize('how, says', [
    (dict(device='cpuu'), "device='cpuu' is not to be had. Here there are: cpu.*Did you mean 'cpu'"),
    (dict(device=3.5), "device='3.5' is not to be had"), (dict(device='cuda:99'), "device='cuda:99' is not to be had"),
    (dict(sizes=[24, 32], start_size=16), 'start_size=16 and sizes=.* both decide'),
    (dict(start_size=64), 'start_size=64 should be below the size it grows to, 32'),
    (dict(balance='both', repeats=2), 'both decide the order')], ids=str)
def test_arguments_that_cannot_be(shapes, how, says):
    with pytest.raises(InputError, match=says): image_dls(shapes, **HOW | how)

def test_growing_to_a_size_that_the_model_brings(shapes):
    assert image_dls(shapes, **HOW | dict(size=None), start_size=400).plan.start_size == 400

# Pictures that vanish

@pytest.mark.parametrize('workers', [0, 2])
def test_predictions_without_a_lost_picture(halves, workers):
    dls = image_dls(halves, **HOW | dict(num_workers=workers), on_lost='skip', cache=False)
    learn, dl = image_learner(dls, 'test_resnet'), dls.valid
    with learn.no_bar():
        want, targs = learn.get_preds(dl=dl, reorder=False)
        os.unlink(dl.dataset.source(7))
        for _ in range(2): less, left = learn.get_preds(dl=dl, reorder=False)
    rest = np.delete(np.arange(15), 7)
    assert torch.allclose(less, want[rest], atol=1e-5) and torch.equal(left, targs[rest])
    assert [o[0] for o in dl.lost] == [dl.dataset.name(7)], "each once, over several passes"

@pytest.mark.parametrize('workers', [0, 2])
def test_when_all_are_gone(halves, workers):
    dls = image_dls(halves, **HOW | dict(num_workers=workers), on_lost='skip', cache=False)
    shutil.rmtree(halves/'valid/circle')
    assert sum(len(y) for _, y in dls.valid) == 10 and len(dls.valid.lost) == 5
    shutil.rmtree(halves/'valid')
    for _ in range(2):
        with pytest.raises(BadPictureError, match=r"None of 15 pictures of '.*valid' can be read any more.*no such file"):
            list(dls.valid)
    learn = image_learner(dls, 'test_resnet')
    with learn.no_bar(), pytest.raises(InputError, match='None of 15 pictures'): learn.fit(1)

@pytest.mark.parametrize('on_lost', ['skip', 'raise'])
def test_a_loader_is_copied_without_opening_a_picture(halves, on_lost):
    dls = image_dls(halves, **HOW, on_lost=on_lost)
    shutil.rmtree(halves)
    for dl in dls: assert dl.new(bs=4)._types == {tuple: [TensorImage, TensorCategory]}

@pytest.mark.parametrize('workers', [0, 2])
def test_a_lost_picture_is_named_in_full(halves, workers):
    odd = halves/'train/circle/two\nlines: of BadPictureError: text.png'
    os.rename(halves/'train/circle/000.png', odd)
    dls = image_dls(halves, **HOW | dict(num_workers=workers), cache=False)
    os.unlink(odd)
    with pytest.raises(BadPictureError) as e: list(dls.train)
    assert str(e.value) == f'{odd}: not a picture that can be read (no such file).'

# Loader processes

@pytest.mark.parametrize('workers', [0, 2])
def test_what_an_operation_says_arrives_without_a_traceback(halves, workers):
    dls = image_dls(halves, **HOW | dict(size=200, num_workers=workers), aug=[('RandomCrop', {})])
    with pytest.raises(InputError, match=r'^RandomCrop: .*Put a Resize before it[^\n]*$'): list(dls.train)

@pytest.mark.parametrize('how, end', [('SIGKILL', lambda: os.kill(os.getpid(), signal.SIGKILL)),
                                      ('exit status 3', lambda: os._exit(3))], ids=['killed', 'ended'])
def test_a_loader_process_that_ends(halves, monkeypatch, how, end):
    dl, item = image_dls(halves, **HOW | dict(num_workers=2)).train, BatchMaker.item
    with monkeypatch.context() as m:
        m.setattr(BatchMaker, 'item', lambda *args: end() if get_worker_info() else item(*args))
        with pytest.raises(InputError, match=rf'A loader process has ended \({how}\).*num_workers=2.*bs=8'): list(dl)
    assert sum(len(y) for _, y in dl) == 30, "it can be asked again"

def test_other_errors_are_left_alone(halves, monkeypatch):
    dl = image_dls(halves, **HOW | dict(num_workers=2)).train
    def defect(*args): raise RuntimeError('a defect')
    monkeypatch.setattr(BatchMaker, 'item', defect)
    with pytest.raises(RuntimeError, match='a defect'): list(dl)

# Orders

@pytest.mark.parametrize('how', [dict(), dict(sizes=[24, 32]), dict(drop_last=True)], ids=str)
def test_one_picture_again_and_again(shapes, how):
    dl = image_dls(shapes, **HOW, **how).train
    dl.show_batch(unique=True)
    x, y = dl.one_batch()
    dl.get_idxs = lambda: iter(lambda: 0, 1)
    x, y = dl.one_batch()
    assert set(y.tolist()) == {int(dl.dataset.labels[0])} and not torch.equal(x[0], x[1]), "each time another variation"

def test_lines_of_one_picture_are_varied_apart(tmp_path):
    make_shapes(tmp_path, n=4)
    for side in ('train', 'val'):
        lines = [f'{k}/000.png {c}\n' for c, k in enumerate(('circle', 'square')) for _ in range(4)]
        (tmp_path/f'{side}_list.txt').write_text(''.join(lines))
    x, y = image_dls(tmp_path, **HOW).train.one_batch()
    assert len({o.numpy().tobytes() for o in x}) == 8

def test_a_table_in_place_of_the_folder(shapes):
    import pandas as pd
    table = pd.DataFrame(dict(image=['a.png'], label=['a']))
    with pytest.raises(InputError, match='path is a DataFrame; give the folder .* as table='): image_dls(table)

def test_loader_processes_by_the_processors_that_may_be_used(monkeypatch): # fewer than there are, in a container
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1, 2}, raising=False)
    assert [auto_workers(o) for o in ('cuda', 'cpu')] == [3, 0]
