"Doubtful labels: scores follow the formula, planted errors are found, pictures are judged by who has not seen them"
import shutil
import tarfile
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls_nb.archives import index_tar
from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.label_errors import (
    QUALITY,
    _content_hash,
    _key,
    confident_classes,
    find_label_errors,
    label_quality,
    out_of_fold,
    outlier_scores,
    picture_features,
)
from imgcls_nb.learner import image_learner
from imgcls_nb.pictures import Arrays, Members, PictureList
from imgcls_nb.runs import Run


def draw(n, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet([.5]*classes, n).astype(np.float32), rng.integers(0, classes, n)

@pytest.mark.parametrize('n, classes', [(1, 2), (50, 2), (4096, 3), (4097, 3), (9000, 10)])
def test_scores_follow_the_formula(n, classes):
    probs, labels = draw(n, classes)
    own = probs[np.arange(n), labels]
    rival = np.array([max(p[k] for k in range(classes) if k != y) for p, y in zip(probs.tolist(), labels.tolist())], np.float32) \
        if n < 5000 else np.where(np.arange(classes) == labels[:, None], -1, probs).max(1)
    assert np.allclose(label_quality(probs, labels, 'self_confidence'), own)
    assert np.allclose(label_quality(probs, labels), (own - rival + 1)/2)

@pytest.mark.parametrize('method', QUALITY)
def test_scores_are_shares(method):
    scores = label_quality(*draw(500, 4), method)
    assert scores.min() >= 0 and scores.max() <= 1 and scores.dtype == np.float32

def test_classes_by_hand():
    probs = np.array([[.9, .1], [.7, .3], [.2, .8], [.4, .6], [.55, .45]])
    labels = np.array([0, 0, 1, 1, 1]) # limits: (.9 + .7)/2 = .8 and (.8 + .6 + .45)/3 = .617
    assert confident_classes(probs, labels).tolist() == [0, -1, 1, -1, -1]
    assert find_label_errors(probs, labels).tolist() == []
    labels[0] = 1 # limits: .7 and (.1 + .8 + .6 + .45)/4 = .4875
    assert confident_classes(probs, labels).tolist() == [0, 0, 1, 1, -1] and find_label_errors(probs, labels).tolist() == [0]

def test_the_worst_comes_first_and_a_class_without_labels_suspects_nothing():
    probs, labels = draw(2000, 6)
    labels[labels == 5] = 4
    found = find_label_errors(probs, labels)
    assert (np.diff(label_quality(probs, labels)[found]) >= 0).all() and not (confident_classes(probs, labels) == 5).any()

def test_probabilities_mapped_from_a_file_give_the_same(tmp_path):
    probs, labels = draw(9000, 5)
    np.save(tmp_path/'p.npy', probs)
    mapped = np.load(tmp_path/'p.npy', mmap_mode='r')
    assert np.array_equal(find_label_errors(mapped, labels), find_label_errors(probs, labels))

@pytest.mark.parametrize('ask', [confident_classes, label_quality, find_label_errors])
def test_the_table_stays_in_its_file(tmp_path, ask):
    probs, labels = draw(20_000, 100)
    np.save(tmp_path/'p.npy', probs)
    mapped = np.load(tmp_path/'p.npy', mmap_mode='r')
    tracemalloc.start()
    ask(mapped, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < probs.nbytes, f'{peak/1e6:.1f} MB for a table of {probs.nbytes/1e6:.1f} MB'

def test_nothing_to_judge():
    none, labels = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    assert label_quality(none, labels).shape == find_label_errors(none, labels).shape == (0,)

@pytest.mark.parametrize('probs, labels, says', [
    (np.ones((3, 2)), [0, 1], 'do not fit 2 labels'), (np.ones((2, 1)), [0, 0], 'two classes'), (np.ones(3), [0]*3, 'do not fit'),
    (np.ones((2, 2)), [0, 2], 'Labels from 0 to 2'), (np.ones((2, 2)), [-1, 0], 'Labels from -1')])
def test_what_does_not_fit_is_refused(probs, labels, says):
    with pytest.raises(InputError, match=says): label_quality(probs, labels)

def test_an_unknown_score_is_refused():
    with pytest.raises(InputError, match="Did you mean 'margin'"): label_quality(*draw(3, 2), 'margins')

# Training

@pytest.fixture(scope='module')
def learn(shapes):
    made = image_learner(image_dls(shapes, size=32, bs=8, aug='none', num_workers=0, device='cpu'), 'test_resnet')
    with made.no_bar(): made.fit(1)
    return made

def test_each_picture_is_judged_once_by_who_has_not_seen_it(learn, monkeypatch):
    from imgcls_nb import label_errors
    seen = []
    def spy(learner, **kwargs):
        names = lambda o: {o.name(i) for i in range(len(o))}
        seen.append((names(learner.dls.train_ds), names(learner.dls.valid_ds)))
        return real(learner, **kwargs)
    real = label_errors.evaluate
    monkeypatch.setattr(label_errors, 'evaluate', spy)
    ev = out_of_fold(learn.plan, k=3, epochs=1)
    assert len(seen) == 3 and all(not train & valid for train, valid in seen)
    assert sorted(ev.paths) == sorted(n for _, valid in seen for n in valid) and len(set(ev.paths)) == len(ev.paths) == 60
    by_name = {f'{learn.dls.vocab[t]}': n for t, n in zip(ev.targs, ev.paths)}
    assert all(n.startswith(kind) for kind, n in by_name.items()) and ev.source(0).endswith(ev.paths[0])

def counted(monkeypatch, stop_at=None):
    from imgcls_nb import label_errors
    real, folds = label_errors._judge, []
    def judge(learn, *args):
        folds.append(learn.plan.data.fold)
        if len(folds) == stop_at: raise KeyboardInterrupt
        return real(learn, *args)
    monkeypatch.setattr(label_errors, '_judge', judge)
    return folds

def test_folds_that_are_judged_are_not_judged_again(learn, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as m:
        folds = counted(m, stop_at=2)
        with pytest.raises(KeyboardInterrupt): out_of_fold(learn.plan, k=2, epochs=1, keep=tmp_path)
    folds = counted(monkeypatch)
    went_on, again = (out_of_fold(learn.plan, k=2, epochs=1, keep=tmp_path) for _ in range(2))
    assert folds == [(1, 2)] and 'Fold 2 of 2: 30 pictures judged, top1' in capsys.readouterr().out
    whole = out_of_fold(learn.plan, k=2, epochs=1, keep=False)
    assert capsys.readouterr().out.count('loader process') == 1, "the machine is introduced once"
    for o in (went_on, again): assert o.paths == whole.paths and np.array_equal(o.probs, whole.probs)
    assert len(folds) == 3 and len(list(tmp_path.iterdir())) == 2

def test_another_list_is_another_question(shapes, tmp_path):
    folder = shutil.copytree(shapes, tmp_path/'shapes')
    def key(bs=8):
        dls = image_dls(folder, size=32, bs=bs, fold=(0, 2), num_workers=0, device='cpu')
        return _key(image_learner(dls, 'test_resnet'), (), 1)
    before = [key(), key(bs=4)]
    (folder/'circle/000.png').rename(folder/'square/100.png') # a mended label
    assert len({*before, key()}) == 3
    (folder/'square/100.png').rename(folder/'circle/000.png')
    assert key() == before[0]

def test_other_pictures_of_the_same_names_are_another_question(shapes, tmp_path):
    folder = shutil.copytree(shapes, tmp_path/'shapes')
    plan = image_learner(image_dls(folder, size=32, bs=8, num_workers=0, device='cpu'), 'test_resnet').plan
    def ask(): return out_of_fold(plan, k=2, epochs=1, keep=tmp_path/'folds').probs
    before = ask()
    assert np.array_equal(ask(), before)
    for o in folder.rglob('*.png'): Image.new('RGB', (48, 48)).save(o)
    assert not np.array_equal(ask(), before)

def test_pictures_of_every_place_are_told_from_others(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), np.uint8).transpose(0, 2, 3, 1)
    def arrays(o): return PictureList(tmp_path, Arrays(o), [0]*3, 'a', idxs=[4, 0, 2])
    same, other = pixels.copy(), pixels.copy()
    same[1], other[2] = 0, 0 # the first is not in the list
    hashes = [_content_hash(arrays(o)) for o in (pixels, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    def members(colour):
        Image.new('RGB', (8, 8), colour).save(tmp_path/'a.png')
        with tarfile.open(tmp_path/'a.tar', 'w') as f: f.add(tmp_path/'a.png', 'a.png')
        index = index_tar(tmp_path/'a.tar')
        return PictureList(tmp_path, Members([tmp_path/'a.tar'], [0], index.names, index.offsets, index.sizes), [0], 'a')
    one, two = (_content_hash(members(o)) for o in ('red', 'blue'))
    assert one != two
    assert _content_hash(PictureList(tmp_path, [tmp_path/'none.png'], [0], 'a')), "what is lost is told elsewhere"

@pytest.mark.parametrize('package', ['imgcls_nb', 'torch'])
def test_another_version_is_another_judge(learn, monkeypatch, package):
    from imgcls_nb import label_errors
    before, env = _key(learn, (), 1), label_errors.describe_env()
    changed = env | dict(packages=env['packages'] | {package: '0'})
    monkeypatch.setattr(label_errors, 'describe_env', lambda: changed)
    assert _key(learn, (), 1) != before

def test_decisions_about_folds_belong_to_the_run_of_the_plan(trained_run, tmp_path):
    plan = Run(trained_run).plan
    ev = out_of_fold(replace(plan, run=str(trained_run)), k=2, epochs=1, keep=tmp_path)
    assert ev.run == trained_run and ev.facts['side'] is None, "some are training pictures, some are held out"
    assert out_of_fold(replace(plan, run=str(tmp_path/'none')), k=2, epochs=1, keep=tmp_path).run is None

def test_a_run_folder_says_its_plan(trained_run, tmp_path, monkeypatch):
    moved = shutil.copytree(trained_run, tmp_path/'moved')
    folds = counted(monkeypatch)
    evs = [out_of_fold(o, k=2, epochs=1, keep=tmp_path/'folds') for o in (Run(trained_run).plan, str(moved), moved)]
    assert folds == [(0, 2), (1, 2)] and [o.run for o in evs[1:]] == [moved, moved]
    with pytest.raises(InputError, match="none' is no run folder"): out_of_fold(tmp_path/'none', k=2)

def test_a_plan_without_training_is_refused(shapes):
    plan = image_learner(image_dls(shapes, size=32, bs=8, num_workers=0, device='cpu'), 'test_resnet').plan
    with pytest.raises(InputError, match='no training in it yet'): out_of_fold(plan)

@pytest.mark.parametrize('how', [dict(epochs=0), dict(epochs='3'), dict(k=1, epochs=1)], ids=str)
def test_nobody_judges_who_was_not_trained(learn, how):
    with pytest.raises(InputError, match=f'{next(iter(how))}='): out_of_fold(learn.plan, **how)

def test_features_leave_the_network_as_it_was(learn):
    learn.model.train()
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    features = picture_features(learn, learn.dls.valid_ds)
    assert learn.model.training and all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
    assert features.shape[0] == len(learn.dls.valid_ds) and np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)

def test_features_of_a_picture_that_is_gone_are_nobodys(shapes, tmp_path): # those behind it would be taken for its
    how = dict(size=32, bs=8, num_workers=0, device='cpu', cache=False, on_lost='skip')
    dls = image_dls(shutil.copytree(shapes, tmp_path/'shapes'), **how)
    learn, gone = image_learner(dls, 'test_resnet'), dls.valid_ds.name(1)
    (tmp_path/'shapes'/gone).unlink()
    with pytest.raises(InputError, match=f'{gone} cannot be read any more'): picture_features(learn, dls.valid_ds)

def test_the_far_one_is_an_outlier():
    rng = np.random.default_rng(0)
    features = rng.normal([5, 0, 0], .1, (200, 3))
    features[77] = 0, 5, 0
    features[78] = 0, 5, .01 # and has a copy
    assert set(np.argsort(-outlier_scores(features))[:2]) == {77, 78}

@pytest.mark.parametrize('n', [0, 1, 2, 5])
def test_few_pictures_have_scores(n): assert outlier_scores(np.eye(max(n, 1))[:n]).shape == (n,)
