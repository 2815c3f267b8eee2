"Probabilities taken at their word: calibration error, temperature, thresholds, and how far off a score could be"
import numpy as np
import pytest
from scipy.stats import binom
from sklearn.calibration import calibration_curve

from imgcls_nb.calibration import (
    COLDEST,
    HOTTEST,
    best_temperature,
    calibration_of,
    coverage_of,
    mean_nll,
    row_blocks,
    with_temperature,
)
from imgcls_nb.core import InputError
from imgcls_nb.evaluation import Evaluation, Told
from imgcls_nb.intervals import Interval, bootstrap, draw_counts, share_interval


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return (e/e.sum(1, keepdims=True)).astype(np.float32)

def honest(n=20000, c=6, seed=0): # logits, and labels drawn from their softmax
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, c))*2
    return z, (softmax(z).cumsum(1) > rng.random((n, 1))).argmax(1).clip(0, c - 1)

# Reliability

def test_by_hand():
    cal = calibration_of([.95, .85, .45, .55], [True, False, True, True], bins=2)
    assert cal.counts.tolist() == [1, 3] and cal.accuracy.tolist() == [1, pytest.approx(2/3)]
    assert cal.confidence.tolist() == [.45, pytest.approx(2.35/3)]
    assert cal.ece == pytest.approx((1*.55 + 3*abs(2.35/3 - 2/3))/4) and cal.max_gap == pytest.approx(.55)

def test_edges_belong_to_the_lower_bin_and_one_to_the_last():
    cal = calibration_of([0., .2, .4, .6, .8, 1.], [True]*6, bins=5)
    assert cal.counts.tolist() == [2, 1, 1, 1, 1]

@pytest.mark.parametrize('bins', [1, 2, 10, 15])
@pytest.mark.parametrize('equal, strategy', [('width', 'uniform'), ('count', 'quantile')])
def test_bins_are_scikit_learns(bins, equal, strategy):
    rng = np.random.default_rng(bins)
    sure = rng.random(3000)
    right = rng.random(3000) < sure**2
    cal = calibration_of(sure, right, bins, equal)
    accuracy, confidence = calibration_curve(right, sure, n_bins=bins, strategy=strategy)
    assert np.allclose(cal.accuracy[cal.counts > 0], accuracy, atol=2e-3)
    assert np.allclose(cal.confidence[cal.counts > 0], confidence, atol=2e-3)
    assert cal.counts.sum() == 3000 and (equal == 'width' or np.ptp(cal.counts) < 30)

def test_the_error_of_an_honest_network_is_small_and_of_a_sure_one_large():
    z, y = honest()
    errors = []
    for scale in (1, 3):
        p = softmax(z*scale)
        errors.append(calibration_of(p.max(1), p.argmax(1) == y).ece)
    assert errors[0] < .015 < .1 < errors[1]

def test_all_equally_sure():
    cal = calibration_of([1.]*5, [True]*4 + [False], equal='count')
    assert cal.counts.tolist() == [5] and cal.ece == pytest.approx(.2)

@pytest.mark.parametrize('how', [dict(bins=0), dict(bins=2.5), dict(equal='size')])
def test_no_bins(how):
    with pytest.raises(InputError, match='bins=|equal='): calibration_of([.5], [True], **how)

# Temperature

@pytest.mark.parametrize('scale', [.4, 1., 2.5])
def test_the_temperature_is_found(scale):
    z, y = honest()
    probs = softmax(z*scale)
    t = best_temperature(probs, y)
    assert t == pytest.approx(scale, rel=.05)
    for o in (.9, 1.1): assert mean_nll(probs, y, t) < mean_nll(probs, y, t*o)

def test_applied_to_probabilities_as_to_logits():
    z, y = honest(500)
    for t in (.3, 1., 4.):
        assert np.allclose(with_temperature(softmax(z), t), softmax(z/t), atol=2e-6)
        true = softmax(z/t)[np.arange(500), y].astype(float)
        assert mean_nll(softmax(z), y, t) == pytest.approx(-np.log(true).mean(), rel=1e-5)

def test_nothing_is_lost_at_the_edge_of_float():
    probs = np.array([[1, 0, 0], [.5, .5, 0]], np.float32)
    out = with_temperature(probs, 2.)
    assert np.isfinite(out).all() and np.allclose(out.sum(1), 1) and out[0].argmax() == 0
    assert np.isfinite(mean_nll(probs, np.array([2, 2])))

def test_blocks_are_all_rows_once():
    for shape in ((0, 5), (1, 5), (10, 10**7), (10**5, 1000), (3, 0)):
        rows = [i for o in row_blocks(shape) for i in range(o.start, o.stop)]
        assert rows == list(range(shape[0]))

def test_in_blocks_or_at_once(monkeypatch):
    z, y = honest(1000)
    before = mean_nll(softmax(z), y, 1.7), with_temperature(softmax(z), 1.7)
    monkeypatch.setattr('imgcls_nb.calibration.row_blocks', lambda shape: row_blocks(shape, 100))
    assert mean_nll(softmax(z), y, 1.7) == pytest.approx(before[0], rel=1e-6)
    assert np.array_equal(with_temperature(softmax(z), 1.7), before[1])

@pytest.mark.parametrize('probs, targs, says', [
    (np.eye(3)*.8 + .0667, [0, 1, 2], 'no picture tells that it should be less sure'),
    (np.eye(3)*.8 + .0667, [1, 2, 0], 'no better than chance')])
def test_where_none_can_be_fitted_it_stays(capsys, probs, targs, says):
    assert best_temperature(probs, np.array(targs)) == 1. and says in capsys.readouterr().out

def test_what_is_no_softmax_is_refused():
    with pytest.raises(InputError, match='add up to 1.80.*no softmax'): best_temperature(np.array([[.9, .9]]), np.array([0]))

def test_probabilities_that_each_stand_for_themselves(): # of a binary loss
    ev = Evaluation([[.9, .8], [.2, .7]], [0, 1], 'ab')
    told = Told(ev.judge(), ev.targs, ev.vocab)
    assert ev.nll == told.nll == pytest.approx(-np.log([.9, .7]).mean()) == ev.table([0, 1]).loss.mean()
    with pytest.raises(InputError, match='add up to 1.70.*no softmax'): ev.calibrated(2.)

@pytest.mark.parametrize('t', [0, -1, np.inf, np.nan, 'hot', None])
def test_no_temperature(t):
    with pytest.raises(InputError, match='no positive number'): with_temperature(np.eye(2), t)

def test_an_evaluation_remembers_its_temperature():
    z, y = honest(3000)
    ev = Evaluation(softmax(z*2.5), y, 'abcdef')
    better = ev.calibrated()
    assert better.temperature == pytest.approx(2.5, rel=.1) and better.nll < ev.nll
    assert better.calibration().ece < ev.calibration().ece
    assert np.array_equal(better.preds, ev.preds) and better.fit_temperature() == pytest.approx(better.temperature, rel=.01)
    assert np.allclose(better.calibrated(1.).probs, ev.probs, atol=1e-5)
    assert COLDEST < better.temperature < HOTTEST

# Thresholds

def test_coverage_by_hand():
    curve = coverage_of([.9, .5, .7, .7], [True, False, True, False])
    assert curve.threshold.tolist() == pytest.approx([.8, .6, 0]) and curve.coverage.tolist() == [.25, .75, 1]
    assert curve.accuracy.tolist() == pytest.approx([1, 2/3, .5])
    assert curve.choose(1.) == pytest.approx(.8) and curve.choose(.6) == pytest.approx(.6) and curve.choose(.5) == 0.
    with pytest.raises(InputError, match='such as 0.99'): curve.choose(99)

@pytest.mark.parametrize('seed', range(4))
def test_a_threshold_does_what_the_curve_says(seed):
    rng = np.random.default_rng(seed)
    sure = rng.integers(1, 30, 200)/30
    right = rng.random(200) < sure
    curve = coverage_of(sure, right)
    for t in (*curve.threshold, *curve.confidence, 0, .123, .5, 1, 1.5):
        keep = sure >= t
        share, accuracy = curve.at(t)
        assert share == pytest.approx(keep.mean())
        assert accuracy == pytest.approx(right[keep].mean()) if keep.any() else np.isnan(accuracy)

def test_the_threshold_is_what_a_model_file_takes():
    z, y = honest(2000)
    ev = Evaluation(softmax(z), y, 'abcdef')
    t = ev.coverage.choose(.9)
    sure = np.array([float(o) >= t for o in ev.confidence]) # as `Predictor` decides
    assert ev.correct[sure].mean() >= .9 and (sure.mean(), ev.correct[sure].mean()) == pytest.approx(ev.coverage.at(t))

def test_a_goal_out_of_reach_names_the_best():
    with pytest.raises(InputError, match='No threshold reaches an accuracy of 99.00%; the best is 50.00%'):
        coverage_of([.9, .8], [False, True]).choose(.99)

# Intervals

def test_the_bootstrap_of_a_share_is_binomial():
    found, exact = share_interval(80, 100, n=20000), binom(100, .8)
    assert (found.low, found.high) == pytest.approx((exact.ppf(.025)/100, exact.ppf(.975)/100), abs=.011) and found.value == .8

def test_seeded():
    assert share_interval(8000, 9999) == share_interval(8000, 9999) != share_interval(8000, 9999, seed=1)
    before = np.random.get_state()[1].copy()
    share_interval(5, 10)
    assert np.array_equal(before, np.random.get_state()[1])

@pytest.mark.parametrize('right, low, high', [(0, 0, 1 - .025**.1), (10, .025**.1, 1)])
def test_none_or_all(right, low, high):
    found = share_interval(right, 10)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))

@pytest.mark.parametrize('counts', [[500, 300, 200], [2, 1, 1, 1, 0, 3, 1]]) # few kinds, and nearly as many as pictures
def test_both_ways_of_drawing_have_one_distribution(counts):
    counts, n = np.array(counts), counts and sum(counts)
    draws = draw_counts(counts, 40000, np.random.default_rng(0))
    assert (draws.sum(1) == n).all() and np.allclose(draws.mean(0), counts, atol=.5)
    assert np.allclose(draws.var(0), counts*(1 - counts/n), rtol=.05, atol=.02)

def test_strata_keep_their_totals():
    draws = draw_counts([5, 5, 0, 30, 70], 500, np.random.default_rng(0), strata=[1, 0, 1, 0, 2])
    assert (draws[:, [0, 2]].sum(1) == 5).all() and (draws[:, [1, 3]].sum(1) == 35).all() and (draws[:, 4] == 70).all()

@pytest.mark.parametrize('metric', ['top1', 'top2', 'balanced_accuracy', 'f1', 'precision', 'recall'])
@pytest.mark.parametrize('stratified', [False, True])
def test_as_drawing_pictures_would(metric, stratified):
    z, y = honest(300, 4)
    ev, rng = Evaluation(softmax(z), y, 'abcd'), np.random.default_rng(1)
    def again():
        if not stratified: return ev.take(rng.integers(0, 300, 300))
        return ev.take(np.concatenate([rng.choice(o, len(o)) for c in range(4) if len(o := np.flatnonzero(ev.targs == c))]))
    of = lambda o: o.topk(int(metric[3:])) if metric.startswith('top') else getattr(o, metric)
    scores = [of(again()) for _ in range(600)]
    found = ev.interval(metric, stratified=stratified)
    assert found.value == pytest.approx(of(ev)) and found.low < found.value < found.high
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(scores, [.025, .975])), abs=.015)

def test_a_thousand_classes_in_portions(monkeypatch):
    z, y = honest(3000, 50)
    ev = Evaluation(softmax(z), y, map(str, range(50)))
    assert ev.interval('f1', n=300).low < ev.f1 < ev.interval('f1', n=300).high

@pytest.mark.parametrize('how', [dict(level=0), dict(level=1.), dict(level=95), dict(n=0), dict(n=1.5)])
def test_no_interval(how):
    with pytest.raises(InputError, match='level=|n='): bootstrap([1, 2], lambda o: o[:, 0], **how)

def test_an_interval_is_a_line(): assert str(Interval(.5, .25, .75, .9)) == '0.5000 (90%: 0.2500 to 0.7500)'
