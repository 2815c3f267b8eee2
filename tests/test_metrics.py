"Metrics: equal to scikit-learn however the pictures are cut into batches, counted once, and never a silent 1.0"
import math
from types import SimpleNamespace
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest
import torch
from fastai.callback import progress  # noqa: F401 (adds no_bar)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import AvgMetric, Learner, Recorder
from fastai.metrics import accuracy
from fastcore.foundation import L
from sklearn import metrics as sk
from torch import nn

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.callbacks.clock import Clock, EpochMetrics
from imgcls_nb.callbacks.mixing import MixBatch
from imgcls_nb.core import InputError
from imgcls_nb.metrics import METRICS, CountedMetric, Counts, counts_of, lower_is_better, make_metrics

ALL = ['top1', 'top3', 'top5', 'precision', 'recall', 'f1', 'balanced_accuracy']

def draw(n, c, seed, classes=None): # some classes may be missing, in the truth or in the guesses
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=rng)
    y = torch.randint(classes or c, (n,), generator=rng)
    logits[range(n), y] += 1
    if classes: logits[:, 1] -= 9
    return logits, y

def counted(logits, y, cuts, ks=(3, 5)):
    counts = Counts(logits.shape[1], ks)
    for o, t in zip(logits.tensor_split(cuts), y.tensor_split(cuts)): counts.add(o, t)
    return counts

def quiet(func, *args, **kwargs):
    with catch_warnings():
        simplefilter('ignore')
        return func(*args, **kwargs)

@pytest.mark.parametrize('n, c, classes', [(1, 7, None), (10, 7, None), (200, 7, None), (200, 7, 4), (50, 40, None), (300, 6, 2)])
@pytest.mark.parametrize('seed', range(3))
def test_equal_to_scikit_learn_whatever_the_batches(n, c, classes, seed):
    logits, y = draw(n, c, seed, classes)
    guess, order = logits.argmax(1), logits.argsort(1, descending=True)
    args = dict(average='macro', zero_division=0)
    want = dict(top1=sk.accuracy_score(y, guess), precision=sk.precision_score(y, guess, **args),
                recall=sk.recall_score(y, guess, **args), f1=sk.f1_score(y, guess, **args),
                balanced_accuracy=quiet(sk.balanced_accuracy_score, y, guess),
                top3=(order[:, :3] == y[:, None]).any(1).float().mean().item(),
                top5=(order[:, :5] == y[:, None]).any(1).float().mean().item())
    for cuts in ([], list(range(0, n, 3)), sorted(np.random.default_rng(seed).integers(0, n + 1, 4).tolist())):
        counts = counted(logits, y, cuts)
        assert {k: CountedMetric(k, counts).value for k in want} == pytest.approx(want)
        assert np.array_equal(counts.matrix, sk.confusion_matrix(y, guess, labels=range(c)))

@pytest.mark.parametrize('classes', [None, 4])
def test_each_class_by_itself(classes):
    logits, y = draw(150, 7, 0, classes)
    guess, table = logits.argmax(1), counted(logits, y, [40, 90]).per_class(list('abcdefg'))
    p, r, f, n = sk.precision_recall_fscore_support(y, guess, labels=range(7), zero_division=0)
    occurs = np.isin(range(7), [*y.tolist(), *guess.tolist()])
    for name, values in dict(precision=p, recall=r, f1=f).items():
        np.testing.assert_allclose(table[name], np.where(occurs, values, np.nan))
    assert table.pictures.tolist() == n.tolist() and list(table.index) == list('abcdefg') and table.pictures.dtype == np.int64

def test_a_class_that_does_not_occur_says_nothing():
    counts = Counts(4)
    counts.add(torch.eye(4)[[0, 1, 1]], torch.tensor([0, 1, 0])) # 2 and 3 neither occur nor are guessed
    assert counts.per_class().precision.isna().tolist() == [False, False, True, True]
    assert (counts.precision, counts.recall, counts.balanced_accuracy) == (.75, .75, .75)
    counts.add(torch.eye(4)[[2]], torch.tensor([0])) # 2 is guessed
    assert counts.recall == pytest.approx((1/3 + 1 + 0)/3) and counts.balanced_accuracy == pytest.approx((1/3 + 1)/2)

def test_many_classes_need_no_matrix():
    counts = Counts(21_841, [5])
    for i in range(3): counts.add(torch.randn(8, 21_841, generator=torch.Generator().manual_seed(i)), torch.arange(8)*2700)
    assert sum(o.nbytes for o in counts.cells) == 24*8 and 0 <= counts.f1 <= 1 and counts.topk(5) >= counts.top1

def test_counting_waits_for_no_device(): # to read from "meta" is an error
    counts = Counts(5, [3])
    for _ in range(2): counts.add(torch.zeros(4, 5, device='meta'), torch.zeros(4, device='meta').long())
    assert [o.device.type for o in counts.cells] == ['meta']*2 and counts.hits[3].device.type == 'meta'

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_number_formats(dtype):
    logits, y = torch.eye(4)[[0, 1, 2, 2]].to(dtype), torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    counts = Counts(4, [2])
    counts.add(logits, y)
    assert counts.top1 == .75 and type(counts.top1) is type(counts.f1) is type(counts.topk(2)) is float

# In a learner

X, Y = draw(70, 6, 0) # logits of six classes as the input of a linear layer

def learner(metrics=ALL, cbs=(), n=70, **kwargs):
    torch.manual_seed(0)
    train, valid = (DataLoader(list(zip(X[:n, :, None, None], Y[:n])), bs=16) for n in (48, n))
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 6))
    return Learner(DataLoaders(train, valid), model, nn.CrossEntropyLoss(), lr=.05, metrics=make_metrics(metrics, 6),
                   cbs=[Clock(), EpochMetrics(), *cbs], **kwargs)

def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn.epoch_metrics.values

def preds(learn):
    with torch.no_grad(): return learn.model.eval()(X[:, :, None, None])

def test_an_epoch_is_counted_once():
    learn = learner()
    for n in (1, 2):
        values, logits = fit(learn, n), preds(learn)
        want = counted(logits, Y, [])
        assert values['top1'] == (logits.argmax(1) == Y).sum().item()/70
        assert {k: values[k] for k in ALL} == {k: CountedMetric(k, want).value for k in ALL}
        counts = counts_of(learn.metrics)
        assert np.array_equal(counts.matrix, want.matrix) and counts.matrix.sum() == 70
        assert counts.per_class().equals(want.per_class())

def test_any_of_the_metrics_will_count():
    learn = learner()
    for names in (ALL[1:], ['f1'], ['balanced_accuracy', 'top5']): # some were taken out, or another order
        learn.metrics = [m for n in names for m in make_metrics(ALL, 6) if m.name == n]
        counts = counts_of(learn.metrics)
        for m in learn.metrics: m.counts = counts
        fit(learn)
        assert counts.matrix.sum() == 70 and learn.recorder.metric_names[3:-1] == L(names)

def test_names_and_metrics_of_your_own():
    seen = AvgMetric(lambda pred, targ: pred.max())
    learn = learner(['f1', accuracy, seen, 'top1'])
    values = fit(learn)
    assert [m.name for m in learn.metrics] == ['f1', 'accuracy', '<lambda>', 'top1']
    assert values['accuracy'] == pytest.approx(values['top1']) and counts_of(learn.metrics).matrix.sum() == 70
    assert counts_of([accuracy]) is None and counts_of([]) is None

def test_validation_elsewhere_counts_anew():
    learn = learner()
    fit(learn)
    with learn.no_bar(), learn.no_logging():
        assert learn.validate(dl=learn.dls.train)[1] == counts_of(learn.metrics).top1
        assert counts_of(learn.metrics).matrix.sum() == 48
        learn.get_preds(dl=learn.dls.valid)
    assert counts_of(learn.metrics).matrix.sum() == 70

def test_mixed_pictures_do_not_reach_validation():
    learn = learner(cbs=[MixBatch('mixup')])
    assert fit(learn)['top1'] == (preds(learn).argmax(1) == Y).sum().item()/70

def test_metrics_of_training_batches():
    learn = learner(['top1', 'f1'])
    learn.remove_cbs(Recorder)
    learn.add_cb(Recorder(train_metrics=True))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, lr=0.)
    values, logits = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[0])), preds(learn)
    assert (values['train_f1'], values['valid_f1']) == (counted(logits[:48], Y[:48], []).f1, counted(logits, Y, []).f1)

def test_an_interrupted_epoch_is_forgotten():
    learn = learner()
    fit(learn)
    m = learn.metrics[0]
    m.accumulate(SimpleNamespace(pred=X, yb=(Y,)))
    fit(learn)
    assert m.counts.matrix.sum() == 70

# By name

@pytest.mark.parametrize('c, names', [(2, ['top1']), (5, ['top1']), (6, ['top1', 'top5'])])
def test_without_names(c, names, capsys):
    assert [o.name for o in make_metrics(None, c)] == names and not capsys.readouterr().out

@pytest.mark.parametrize('given, c, left, out', [
    ('top5', 3, [], ['top5']), (['top1', 'top5', 'f1'], 5, ['top1', 'f1'], ['top5']),
    (['top3', 'top10'], 4, ['top3'], ['top10']), (['top2', 'top3'], 2, [], ['top2', 'top3']), (('f1', 'f1'), 9, ['f1'], []),
    ('top1', 1, ['top1'], []), ('top5', 6, ['top5'], [])], ids=str)
def test_more_guesses_than_classes(given, c, left, out, capsys):
    assert [o.name for o in make_metrics(given, c)] == left
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"Of {c} classes the first {o[3:]} guesses always hold the right one: {o} is left out." for o in out]

@pytest.mark.parametrize('name, message', [
    ('top6 ', 'top6 . is unknown.*top1, top5'), ('precison', "Did you mean 'precision'"), ('f1_score', "Did you mean 'f1'"),
    ('balanced_acuracy', "Did you mean 'balanced_accuracy'"), ('top0', "'top0' is unknown.*top3"), ('top', 'is unknown'),
    ('top-5', "Did you mean 'top5'"), ('accuracy', "Did you mean 'top1'"), (5, '5 is unknown'), ('', "'' is unknown")])
def test_names_that_are_unknown(name, message):
    with pytest.raises(InputError, match=message): make_metrics(['top1', name], 9)

def test_every_name_is_known():
    assert [o.name for o in make_metrics(METRICS, 9)] == list(METRICS)
    assert len({o.counts for _ in range(2) for o in make_metrics(METRICS, 9)}) == 2, "one count for each learner"

# What does not fit

Z = torch.zeros
@pytest.mark.parametrize('logits, targ, message', [
    (Z(4, 3), Z(4).long(), r'gave shape \(4, 3\), but metrics of 5 classes'), (Z(4), Z(4).long(), r'gave shape \(4,\)'),
    ((Z(4, 5), Z(4, 5)), Z(4).long(), 'gave a tuple'), (Z(4, 5), Z(4, 5), r'shape \(4, 5\), float32, are no class numbers'),
    (Z(4, 5), Z(4), 'float32, are no class numbers'), (Z(4, 5), Z(3).long(), r'shape \(3,\), int64')],
    ids=lambda o: o[:15] if isinstance(o, str) else '')
def test_batches_that_do_not_fit(logits, targ, message):
    with pytest.raises(InputError, match=message): Counts(5).add(logits, targ)

@pytest.mark.parametrize('label', [-1, 5, 99])
def test_labels_that_do_not_exist(label):
    counts = Counts(5)
    counts.add(Z(2, 5), torch.tensor([0, label]))
    for name in ('top1', 'f1', 'matrix'):
        with pytest.raises(InputError, match=f'class number {label}, but there are 5 classes'): getattr(counts, name)

def test_guesses_that_were_not_counted():
    with pytest.raises(InputError, match=r'Top 5 was not counted.*ks=\[5\]'): Counts(9, [3]).topk(5)

def test_no_pictures():
    counts = Counts(9, [5])
    assert math.isnan(counts.top1) and math.isnan(counts.f1) and math.isnan(counts.topk(5)) and counts.matrix.sum() == 0

def test_capitals_are_read_and_an_empty_list_means_none():
    assert [o.name for o in make_metrics(['Top1', 'F1'], 9)] == ['top1', 'f1'] and make_metrics([], 9) == []

# Which way is better

@pytest.mark.parametrize('name, lower', [('my_distance', True), ('val_mae', True), ('RMSE', True), ('MeanSquaredError', True),
    ('nll', True), ('ece', True), ('receiver', False), ('roc_auc_score', False), ('ema_top1', False), ('lossless', False)])
def test_whole_words_tell_the_direction(name, lower): assert lower_is_better(name) == lower

class Knows:
    def __init__(self, name, higher): self.name, self.higher_is_better = name, higher

def test_what_a_metric_knows_and_what_the_user_says_come_first():
    assert lower_is_better('spread', [Knows('spread', False)]) and lower_is_better('ema_spread', [Knows('spread', False)])
    assert not lower_is_better('my_loss', [Knows('my_loss', True)]) and lower_is_better('my_loss', [Knows('my_loss', None)])
    assert lower_is_better('top1', mode='min') and not lower_is_better('valid_loss', mode='max')
    with pytest.raises(InputError, match="'min' or 'max'"): lower_is_better('top1', mode='up')
