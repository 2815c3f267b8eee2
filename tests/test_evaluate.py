"One table answers every question: hand-computed cases, scikit-learn's numbers, saved and opened again, any size"
import errno
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk

from imgcls_nb.compare import common_pictures, compare
from imgcls_nb.confusion import Confusion
from imgcls_nb.core import InputError
from imgcls_nb.evaluation import MANIFEST, Evaluation, Told, judge, saved_in
from imgcls_nb.scores import class_scores, count_pairs, mean_score


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return (e/e.sum(1, keepdims=True)).astype(np.float32)

def made(n=200, c=7, seed=0, skill=1.5, absent=()):
    rng = np.random.default_rng(seed)
    targs = rng.choice([i for i in range(c) if i not in absent], n)
    probs = softmax(rng.normal(size=(n, c)) + skill*np.eye(c)[targs])
    return Evaluation(probs, targs, [f'c{i}' for i in range(c)], [f'f/{i:04}.png' for i in range(n)], root='pictures')

# By hand

PROBS = [[.5, .3, .2], [.2, .5, .3], [.4, .35, .25], [.1, .2, .7], [.3, .3, .4]]

def test_by_hand():
    ev = Evaluation(PROBS, [0, 1, 1, 2, 0], 'abc')
    assert ev.preds.tolist() == [0, 1, 0, 2, 2] and ev.ranks.tolist() == [0, 0, 1, 0, 1] and ev.correct.sum() == 3
    assert ev.top1 == .6 and ev.topk(2) == 1. and len(ev) == 5
    assert ev.confusion_matrix().tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert ev.confusion_matrix(normalize=True).tolist() == [[.5, 0, .5], [.5, .5, 0], [0, 0, 1]]
    assert ev.balanced_accuracy == pytest.approx((.5 + .5 + 1)/3) and ev.precision == pytest.approx((.5 + 1 + .5)/3)
    assert ev.report().pictures.tolist() == [2, 2, 1, 5] and ev.report().index[-1] == 'mean of classes'
    assert ev.most_confused().values.tolist() == [['a', 'c', 1, .5], ['b', 'a', 1, .5]]
    assert ev.top_losses(2).index.tolist() == [4, 2] and ev.top_losses(1).loss.item() == pytest.approx(-np.log(.3))
    assert ev.where('b', 'a').tolist() == [2] and ev.where(label='a').tolist() == [0, 4]
    assert ev.where(predicted=2).tolist() == [3, 4]
    assert ev.guesses(3, 2) == [('c', pytest.approx(.7)), ('b', pytest.approx(.2))]

def test_of_equal_probabilities_the_smaller_number_is_ahead():
    ev = Evaluation([[.25]*4]*4, range(4), 'abcd')
    assert ev.ranks.tolist() == [0, 1, 2, 3] and ev.preds.tolist() == [0]*4
    assert [ev.topk(k) for k in (1, 2, 3)] == [.25, .5, .75]

@pytest.mark.parametrize('n, c', [(1, 1), (1, 2), (2, 2), (50, 3), (300, 1000), (37, 5000)])
def test_ranks_are_those_of_a_stable_sort(n, c):
    rng = np.random.default_rng(n)
    probs, targs = (rng.integers(0, 9, (n, c))/10).astype(np.float32), rng.integers(0, c, n) # many are equal
    order = np.argsort(-probs, 1, kind='stable')
    seen = judge(probs, targs)
    assert np.array_equal(seen['ranks'], (order == targs[:, None]).argmax(1)) and np.array_equal(seen['preds'], order[:, 0])
    assert np.array_equal(seen['label_probs'], probs[np.arange(n), targs]) and np.array_equal(seen['confidence'], probs.max(1))

# scikit-learn says the same

@pytest.mark.parametrize('how', [
    dict(), dict(c=2), dict(n=3000, c=100), dict(absent=(2, 5)), dict(n=5, c=30), dict(skill=9)], ids=str)
def test_scores_are_scikit_learns(how):
    ev = made(**how)
    there = sorted({*ev.targs, *ev.preds})
    p, r, f, n = sk.precision_recall_fscore_support(ev.targs, ev.preds, labels=range(len(ev.vocab)), zero_division=0)
    report = ev.report()
    for k, want in (('precision', p), ('recall', r), ('f1', f), ('pictures', n)):
        got = report[k].to_numpy()[:-1]
        assert np.allclose(got[there], want[there]) and (k == 'pictures' or np.isnan(np.delete(got, there)).all())
    means = sk.precision_recall_fscore_support(ev.targs, ev.preds, average='macro', zero_division=0)[:3]
    assert np.allclose(report.iloc[-1, :3].to_numpy(float), means) and np.allclose([ev.precision, ev.recall, ev.f1], means)
    assert ev.balanced_accuracy == pytest.approx(np.mean([(ev.preds[ev.targs == i] == i).mean() for i in set(ev.targs)]))
    assert np.array_equal(ev.confusion_matrix(), sk.confusion_matrix(ev.targs, ev.preds, labels=range(len(ev.vocab))))
    assert ev.top1 == sk.accuracy_score(ev.targs, ev.preds)
    if ev.probs.shape[1] > 2:
        assert ev.topk(2) == pytest.approx(sk.top_k_accuracy_score(ev.targs, ev.probs, k=2, labels=range(len(ev.vocab))))
    probs = ev.probs.astype(float)
    probs /= probs.sum(1, keepdims=True) # of float32 it thinks that they do not add up
    assert ev.nll == pytest.approx(sk.log_loss(ev.targs, probs, labels=range(len(ev.vocab))), rel=1e-4)

def test_absent_classes_are_left_out_and_counted():
    ev = Evaluation(PROBS[:3], [0, 1, 1], 'abc')
    assert ev.confusion.absent == ('c',) and ev.report().index[-1] == 'mean of 2 classes (1 absent)'
    assert ev.report().loc['c'].isna().tolist() == [True, True, True, False] and ev.recall == .75 == ev.balanced_accuracy

def test_a_class_that_is_guessed_but_never_there(): # counts in precision, as for scikit-learn, and not in balanced accuracy
    ev = Evaluation(PROBS, [0, 1, 1, 1, 0], 'abc')
    assert ev.report().loc['c'].tolist() == [0, 0, 0, 0] and ev.recall == pytest.approx((.5 + 1/3 + 0)/3)
    assert ev.balanced_accuracy == pytest.approx((.5 + 1/3)/2)

def test_scores_of_many_draws_at_once():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, (20, 4, 4))
    right, there, guessed = np.diagonal(counts, axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    for metric in ('precision', 'recall', 'f1', 'balanced_accuracy'):
        each = [Confusion(o, 'abcd').mean(metric) for o in counts]
        assert np.allclose(mean_score(metric, right, there, guessed), each)
    assert class_scores(right, there, guessed)['f1'].shape == (20, 4)

# Top-k that says nothing

def test_a_k_that_always_hits_is_said(capsys):
    ev = made(c=3)
    assert ev.topk(3) == ev.top5 == 1. and capsys.readouterr().out.count('always hold the right one') == 2
    repr(ev), ev.top1
    assert not capsys.readouterr().out
    assert 'top5' not in repr(ev) and 'top5' in repr(made())

@pytest.mark.parametrize('k', [0, -1, 1.5, True, '5'])
def test_no_number_of_guesses(k):
    with pytest.raises(InputError, match='no number of guesses'): made().topk(k)

# Nothing, and next to nothing

def test_without_a_picture():
    ev = Evaluation(np.zeros((0, 3)), [], 'abc')
    assert np.isnan([ev.top1, ev.balanced_accuracy, ev.f1, ev.nll, ev.calibration().ece]).all() and len(ev) == 0
    assert ev.confusion_matrix().sum() == 0 and ev.confusion.order.tolist() == [0, 1, 2] and len(ev.confusion.absent) == 3
    assert len(ev.most_confused()) == len(ev.top_losses()) == len(ev.where('a')) == 0 and ev.report().pictures.iloc[-1] == 0
    assert 'nan' in repr(ev) and np.isnan(ev.interval().low) and np.isnan(ev.interval('f1').value)
    for o in (ev.confusion, ev.calibration(), ev.coverage): o.plot()
    with pytest.raises(InputError, match='no picture to fit'): ev.fit_temperature()
    with pytest.raises(InputError, match='No threshold'): ev.coverage.choose(.9)

def test_one_picture():
    ev = Evaluation([[.2, .8]], [1], ['no', 'yes'])
    assert ev.top1 == 1 == ev.balanced_accuracy and ev.interval().low == pytest.approx(.025) and ev.interval().high == 1
    assert ev.coverage.choose(1.) == 0. and ev.calibration().ece == pytest.approx(.2)

# What is refused

@pytest.mark.parametrize('probs, targs, says', [
    ([[np.nan, 1, 0]], [0], 'Picture 0 has a probability of nan.*diverged'),
    ([[.1, .2, .7], [np.inf, 0, 0]], [0, 0], 'Picture 1 has a probability of inf.*diverged'),
    ([[5., -2., 0]], [0], 'probability of 5, .*give their softmax'),
    ([[.1, .9, 0]], [3], 'class number 3, but there are 3 classes'), ([[.1, .9, 0]], [-1], 'class number -1'),
    ([[.1, .9, 0]], [1.5], 'float64 are no class numbers'), ([[.1, .9, 0]], ['a'], 'no class numbers'),
    ([[.1, .9]], [0], r'shape \(1, 2\) do not fit targets of shape \(1,\) and 3 classes'), ([[.1, .9, 0]], [[0]], 'do not fit')])
def test_what_is_no_table(probs, targs, says):
    with pytest.raises(InputError, match=says): Evaluation(probs, targs, 'abc')

def test_names_that_do_not_fit():
    with pytest.raises(InputError, match='There are 1 names for 5 pictures'): Evaluation(PROBS, [0]*5, 'abc', ['x.png'])
    with pytest.raises(InputError, match="'caat' is none of the 3 classes.*Did you mean 'cat'"):
        Evaluation(PROBS, [0]*5, ['cat', 'dog', 'fox']).where('caat')
    with pytest.raises(InputError, match='Where .*#0.* lies is not known'): Evaluation(PROBS, [0]*5, 'abc').source(0)
    with pytest.raises(InputError, match="metric='top_1' is unknown"): made().interval('top_1')

# Order and figures

def test_confused_classes_stand_together():
    rng = np.random.default_rng(3)
    groups = rng.permutation(60).reshape(20, 3)
    counts = np.diag(rng.integers(20, 40, 60))
    for g in groups:
        for a in g:
            for b in g: counts[a, b] += rng.integers(2, 6)*(a != b)
    order = Confusion(counts, map(str, range(60))).order
    at = np.argsort(order)
    assert sorted(order) == list(range(60)) and all(np.ptp(at[g]) == 2 for g in groups)

def test_order_of_two_and_of_none():
    assert Confusion([[3, 1], [0, 2]], 'ab').order.tolist() == [0, 1]
    assert Confusion(np.eye(4, dtype=int), 'abcd').order.tolist() == [0, 1, 2, 3]
    assert Confusion([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], 'abcd').order.tolist() == [0, 3, 1, 2]

def test_a_part_keeps_its_shares():
    cm = made(n=500, c=9).confusion
    part = cm.among(['c3', 1])
    assert part.vocab == ('c3', 'c1') and np.array_equal(part.shares, cm.shares[np.ix_([3, 1], [3, 1])])
    assert len(cm.among(4).vocab) == 4 and len(cm.among(99).vocab) == 9 and np.array_equal(cm.among(99).there.sum(), 500)

@pytest.mark.parametrize('c', [1, 2, 20, 41, 350, 1000])
def test_figures_of_any_size(c):
    import matplotlib.pyplot as plt
    ev = made(n=400, c=c)
    ax = ev.confusion.plot()
    assert len(ax.get_xticks()) <= 41 and ax.images[0].get_array().shape[0] <= 500
    assert len(ax.texts) == (np.count_nonzero(ev.confusion_matrix()) if c <= 20 else 0)
    for o in (ev.calibration(), ev.coverage): o.plot().figure.canvas.draw()
    ax.figure.canvas.draw()
    plt.close('all')

def test_the_largest_confusion_survives_the_shrinking():
    counts = np.zeros((1000, 1000), int)
    counts[123, 877], counts[5, 5] = 7, 9
    shown = Confusion(counts, map(str, range(1000))).plot(sort=False, normalize=False).images[0].get_array()
    assert shown.max() == 7 and np.count_nonzero(shown) == 1, "the diagonal is left out"

# Saved

def test_opened_again(tmp_path):
    ev = made()
    ev.facts['epoch'] = 3
    same = Evaluation.load(ev.save(tmp_path/'a/b'))
    assert np.array_equal(same.probs, ev.probs) and isinstance(same.probs.base, np.memmap) and not same.probs.flags.writeable
    assert np.array_equal(same.targs, ev.targs) and same.facts == ev.facts and same.vocab == ev.vocab and same.paths == ev.paths
    assert same.top1 == ev.top1 and same.root == 'pictures' and same.report().equals(ev.report()) and repr(same) == repr(ev)
    assert same.source(3) == os.path.join('pictures', 'f/0003.png')

def test_names_of_any_bytes(tmp_path):
    names = ['a\nb.png', 'ä ö.png', os.fsdecode(b'\xff\xfe.png'), '{"x": 1}', ' ']
    ev = Evaluation(PROBS, [0]*5, ['a b', 'ü', '\u2028'], names)
    same = Evaluation.load(ev.save(tmp_path/'kept'))
    assert same.paths == names and same.vocab == ev.vocab and same.list_hash() == ev.list_hash()

@pytest.mark.parametrize('n', [0, 1])
def test_small_ones_are_kept_too(tmp_path, n):
    ev = Evaluation(np.full((n, 4), .25), [0]*n, 'abcd')
    assert np.array_equal(Evaluation.load(ev.save(tmp_path/'kept')).probs, ev.probs)

def test_what_cannot_be_saved_leaves_no_draft(tmp_path, monkeypatch):
    ev, real = made(), np.save
    with pytest.raises(InputError, match='with the first of several'): Told(ev.judge(), ev.targs, ev.vocab).save(tmp_path/'told')
    def full(f, data):
        real(f, data)
        raise OSError(errno.ENOSPC, 'full')
    monkeypatch.setattr(np, 'save', full)
    with pytest.raises(InputError, match='disk is full'): ev.save(tmp_path/'full')
    assert {o.name for o in tmp_path.rglob('*')} == {'told', 'full', '.lock'}

def test_a_new_one_takes_the_place_of_the_old(tmp_path):
    old = Evaluation.load(made().save(tmp_path))
    files = sorted(o.name for o in tmp_path.iterdir())
    new = Evaluation.load(made(seed=1).save(tmp_path))
    assert new.top1 != old.top1 and np.isfinite(old.probs).all(), "who has the old one mapped keeps it"
    assert len(list(tmp_path.iterdir())) == len(files) and not set(files) >= {o.name for o in tmp_path.iterdir()}

def test_one_that_is_replaced_while_it_is_opened(tmp_path, monkeypatch):
    from imgcls_nb import evaluation
    old, new = made(), made(seed=1)
    old.save(tmp_path)
    def faster(file, sha256=evaluation.sha256): # another evaluation is, once
        monkeypatch.setattr(evaluation, 'sha256', sha256)
        new.save(tmp_path)
        return sha256(file)
    monkeypatch.setattr(evaluation, 'sha256', faster)
    assert Evaluation.load(tmp_path).top1 == new.top1 != old.top1

class Killed(BaseException): pass

@pytest.fixture
def dies_at(monkeypatch):
    "A context in which the n-th call that changes the disk never returns"
    @contextmanager
    def within(n):
        calls = count()
        def dying(real):
            def call(*args, **kwargs):
                if next(calls) == n: raise Killed
                return real(*args, **kwargs)
            return call
        with monkeypatch.context() as m:
            for o in ('replace', 'fsync', 'open', 'unlink'): m.setattr(os, o, dying(getattr(os, o)))
            try: yield
            except Killed: pass
    return within

def test_killed_at_each_write(tmp_path, dies_at): # the old evaluation or the new one, never a mixture
    old, new, found = made(), made(seed=1), []
    for n in range(20):
        folder = old.save(tmp_path/str(n))
        with dies_at(n): new.save(folder)
        same = Evaluation.load(folder)
        found.append([old.list_hash(), new.list_hash()].index(same.list_hash()))
        assert same.top1 == (old.top1, new.top1)[found[-1]]
    assert found == sorted(found) and 8 < sum(o == 0 for o in found) < 20

@pytest.mark.parametrize('file', ['probs', 'targs', 'names'])
@pytest.mark.parametrize('how', ['byte', 'cut', 'gone', 'empty'])
def test_damage_is_named(tmp_path, file, how):
    made().save(tmp_path)
    o = next(tmp_path.glob(f'{file}-*'))
    if how == 'gone': o.unlink()
    else: o.write_bytes(dict(byte=o.read_bytes()[:-1] + b'~', cut=o.read_bytes()[:-7], empty=b'')[how])
    with pytest.raises(InputError, match=f'{file}-.*(damaged|missing).*Evaluate again'): Evaluation.load(tmp_path)

@pytest.mark.parametrize('text', ['', '{', '[]', '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "files": {"probs": 3}}'])
def test_a_damaged_manifest(tmp_path, text):
    made().save(tmp_path)
    (tmp_path/MANIFEST).write_text(text)
    with pytest.raises(InputError, match='[Ee]valuate again'): Evaluation.load(tmp_path)

def test_a_pickle_is_not_run(tmp_path):
    made().save(tmp_path)
    np.save(tmp_path/'probs-000000000000.npy', np.array([print], dtype=object), allow_pickle=True)
    said = json.loads((tmp_path/MANIFEST).read_text())
    said['files']['probs']['file'] = 'probs-000000000000.npy'
    (tmp_path/MANIFEST).write_text(json.dumps(said))
    with pytest.raises(InputError, match='damaged'): Evaluation.load(tmp_path, check=False)

def test_what_there_is_is_named(tmp_path):
    with pytest.raises(InputError, match=r'Make it with evaluate\(learn\)'): Evaluation.load(tmp_path)
    for o in ('valid', 'test'): made().save(tmp_path/'evaluation'/o)
    assert list(saved_in(tmp_path)) == ['test', 'valid'] and len(Evaluation.load(tmp_path, 'test')) == 200
    with pytest.raises(InputError, match="no saved evaluation 'valld'.*It has: test, valid"): Evaluation.load(tmp_path, 'valld')

def test_opening_needs_no_torch(tmp_path):
    made().save(tmp_path)
    code = ("import sys; from imgcls_nb.evaluation import Evaluation; from imgcls_nb.compare import compare\n"
            f"ev = Evaluation.load({str(tmp_path)!r}); ev.report(); ev.calibrated(2.); compare(ev, ev)\n"
            f"ev.save({str(tmp_path/'x')!r})\n"
            "print([o for o in ('torch', 'fastai', 'timm', 'IPython') if o in sys.modules])")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stdout + done.stderr

def test_many_classes_and_pictures(): # the bar itself is in benchmarks/evaluation.py
    import tracemalloc
    ev = made(n=4000, c=1000)
    tracemalloc.start()
    cm = Evaluation(ev.probs, ev.targs, ev.vocab).confusion_matrix()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert cm.sum() == 4000 and peak < 60e6

def test_the_benchmark_asks(tmp_path):
    made(n=50, c=9).save(tmp_path)
    script = Path(__file__).parents[1]/'benchmarks/evaluation.py'
    done = subprocess.run([sys.executable, script, '--ask', 'interval of F1', tmp_path], capture_output=True, text=True)
    seconds, megabytes = json.loads(done.stdout)
    assert len(seconds) == 5 and 0 < max(seconds) < 30 and 0 < megabytes < 300, done.stderr

# Two of them

def told(truth, guess, vocab='abc', names=None):
    probs = np.full((len(truth), len(vocab)), .1)
    probs[np.arange(len(truth)), [vocab.index(o) for o in guess]] = .8
    return Evaluation(probs, [vocab.index(o) for o in truth], vocab, names or [str(i) for i in range(len(truth))])

def test_compared_by_hand():
    both = compare(told('aabbcc', 'abbacc'), told('aabbcc', 'aabacb'), ('old', 'new'))
    assert both.gained.tolist() == [1] and both.lost.tolist() == [5] and both.p_value == 1. and both.difference().value == 0
    assert both.flips().values[:, :5].tolist() == [['lost', '5', 'c', 'c', 'b'], ['gained', '1', 'a', 'b', 'a']]
    assert both.per_class().gain.to_dict() == {'c': -.5, 'b': 0., 'a': .5} and 'Only new is right about 1' in str(both)
    both.plot()

def test_changes_from_wrong_to_wrong_are_listed_when_asked():
    both = compare(told('aa', 'bb'), told('aa', 'cb'))
    assert len(both.flips()) == 0 and both.flips(all_changes=True).change.tolist() == ['other']

@pytest.mark.parametrize('only_b, only_a', [(0, 0), (1, 0), (10, 2), (5, 5), (0, 9)])
def test_the_test_is_exact(only_b, only_a):
    from math import comb
    truth, n = 'a'*(only_a + only_b + 3), only_a + only_b
    both = compare(told(truth, 'b'*only_b + 'a'*only_a + 'aab'), told(truth, 'a'*only_b + 'b'*only_a + 'aab'))
    tail = sum(comb(n, i) for i in range(min(only_a, only_b) + 1))/2**n
    assert both.p_value == pytest.approx(min(1, 2*tail if only_a != only_b else 1))
    diff = both.difference()
    assert diff.value == pytest.approx((only_b - only_a)/len(truth)) and diff.low <= diff.value <= diff.high

def test_classes_and_pictures_in_another_order():
    a = made(n=60, c=5)
    order, classes = np.random.default_rng(1).permutation(60), [3, 1, 4, 0, 2]
    where = np.argsort(classes)
    b = Evaluation(a.probs[order][:, classes], where[a.targs[order]], [a.vocab[i] for i in classes], [a.paths[i] for i in order])
    both = compare(a, b)
    assert np.array_equal(*both.correct) and np.array_equal(*both.preds) and both.p_value == 1 and len(both.flips(True)) == 0

def test_only_common_pictures_are_compared_and_that_is_said(capsys):
    a = made(n=50)
    both = compare(a.take(range(40)), a.take(range(30, 50)))
    assert len(both) == 10 and both.of_a.tolist() == list(range(30, 40)) and both.of_b.tolist() == list(range(10))
    assert '10 pictures are in both evaluations and are compared; 30 and 10 are in one only' in capsys.readouterr().out

def test_a_name_that_comes_twice_is_matched_in_order(capsys):
    a, b = told('aabb', 'aabb', names=['x', 'y', 'x', 'z']), told('bab', 'aab', names=['z', 'x', 'x'])
    assert [o.tolist() for o in common_pictures(a, b)] == [[0, 2, 3], [1, 2, 0]]
    assert len(compare(a, b).lost) == 1 and '3 pictures' in capsys.readouterr().out

@pytest.mark.parametrize('b, says', [
    (told('bab', 'aaa'), "1 pictures have two different labels: '0' is 'a' in one"),
    (told('aab', 'aaa', 'abd'), "class 'c' is in one"),
    (told('aab', 'aaa', names=['u', 'v', 'w']), 'No picture is in both'),
    (Evaluation([[.9, .1, 0]], [0], 'abc'), 'no names to match them by')])
def test_what_cannot_be_compared(b, says):
    with pytest.raises(InputError, match=says): compare(told('aab', 'aaa'), b)

def test_paths_are_compared_as_well(tmp_path):
    for o in 'ab': made().save(tmp_path/o)
    assert len(compare(tmp_path/'a', str(tmp_path/'b'))) == len(made())
    with pytest.raises(InputError, match='There is no'): compare(made(), tmp_path/'gone')

def test_two_names_tell_apart():
    with pytest.raises(InputError, match='does not tell two networks apart'): compare(made(), made(), ('x', 'x'))

def test_of_nothing_nothing_is_different():
    a = Evaluation(np.zeros((0, 3)), [], 'abc')
    both = compare(a, a)
    assert both.p_value == 1 and len(both.flips()) == len(both.per_class()) == 0 and 'nan' in str(both)
    both.plot()

def test_count_pairs_of_nothing(): assert count_pairs([], [], 3).tolist() == [[0]*3]*3

def test_a_relative_folder_is_reopened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ev = Evaluation(np.eye(3), [0, 1, 2], 'abc')
    ev.save('kept')
    assert Evaluation.load('kept').top1 == 1 and Evaluation.load('kept').run is None
