"Averaged weights: the mean is exact, it has its own numbers, and the training beside it does not notice"
import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback import fp16
from fastai.callback import schedule as _schedule  # noqa: F401 (adds lr_find)
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.metrics import accuracy
from safetensors.torch import save_file
from torch import nn

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.callbacks.averaging import EMA, SWA, average_weights, greedy_soup, refresh_batchnorm
from imgcls_nb.callbacks.clock import Clock, EpochMetrics
from imgcls_nb.callbacks.precision import Precision
from imgcls_nb.callbacks.steps import Accumulate, BackOff
from imgcls_nb.checkpoints import state_from_bytes, state_to_bytes
from imgcls_nb.core import InputError
from imgcls_nb.metrics import lower_is_better

X = torch.randn(23, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long()

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(.2), nn.Linear(64, 2))

def make(*cbs, model=None, bs=5, lr=.05, **kwargs):
    dls = DataLoaders(*(DataLoader(list(zip(X, Y)), bs=bs, num_workers=0) for _ in range(2)))
    learn = Learner(dls, model or net(), F.cross_entropy, lr=lr, metrics=accuracy, cbs=[Clock(), EpochMetrics(), *cbs], **kwargs)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    return learn

def fit(learn, n_epoch=2):
    with learn.no_logging(): learn.fit(n_epoch)
    return learn

def state(model): return {k: v.clone() for k, v in model.state_dict().items()}
def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def gap(a, b): return max((a[k].double() - b[k].double()).abs().max().item() for k in a)
def mean(states): return {k: sum(o[k].double() for o in states)/len(states) for k in states[0]}

class Keep(Callback): # the weights after each step, and at the end of each epoch
    order = 100
    def before_fit(self): self.steps, self.epochs_end = [], []
    def after_step(self): self.steps.append(state(self.learn.model))
    def after_train(self): self.epochs_end.append(state(self.learn.model))

def ema_of(states, decay=.9998, warmup=2/3):
    out = {k: v.clone() for k, v in states[0].items()}
    for t, o in enumerate(states[1:], 2):
        keep = min(decay, 1 - t**-warmup) if warmup else decay
        out = {k: out[k]*keep + v*(1 - keep) if v.is_floating_point() else v for k, v in o.items()}
    return out

# EMA

@pytest.mark.parametrize('decay, warmup', [(.9998, 2/3), (.5, 0), (.3, 1.), (0., 2/3), (.9, .5)])
def test_the_average_is_that_of_the_formula(decay, warmup):
    learn = fit(make(EMA(decay, warmup), Keep()))
    got, want = learn.ema.average.module.state_dict(), ema_of(learn.keep.steps, decay, warmup)
    assert got.keys() == want.keys() and gap(got, want) < 1e-6 and learn.ema.updates == 10
    assert got['1.num_batches_tracked'] == 10 and got['1.running_mean'].abs().sum() > 0, "BatchNorm's statistics too"

@pytest.mark.parametrize('cbs', [[], [Precision], [partial(Accumulate, 2)], [BackOff]], ids=range(4))
def test_training_does_not_notice(cbs):
    a, b = (fit(make(*more, *(o() for o in cbs))) for more in ([EMA(), SWA(start=.9)], []))
    assert equal(state(a.model), state(b.model)) and a.recorder.values == b.recorder.values
    assert a.recorder.losses == b.recorder.losses and len(a.recorder.values) == 2
    own = {k: v for k, v in a.epoch_metrics.values.items() if not k.startswith('ema_')}
    assert own == b.epoch_metrics.values and a.clock.steps == b.clock.steps and 'forward' not in vars(a.model)

def test_its_numbers_are_those_of_a_validation():
    learn = fit(make(EMA()))
    assert list(learn.epoch_metrics.values) == ['train_loss', 'valid_loss', 'accuracy', 'train_top1', *learn.ema.names]
    assert learn.ema.names == ['ema_valid_loss', 'ema_accuracy']
    with learn.ema.swapped(): by_hand = learn.validate()
    assert by_hand == [learn.epoch_metrics.values[o] for o in learn.ema.names]
    assert learn.validate() == [learn.epoch_metrics.values[o] for o in ('valid_loss', 'accuracy')] != by_hand

@pytest.mark.parametrize('n, updates', [(1, 10), (2, 6), (5, 2), (9, 2)])
def test_it_follows_steps_and_not_batches(n, updates):
    learn = fit(make(Accumulate(n), EMA(), Keep()))
    assert learn.ema.updates == len(learn.keep.steps) == updates
    assert gap(learn.ema.average.module.state_dict(), ema_of(learn.keep.steps)) < 1e-6

def test_steps_that_fp16_skips_do_not_count(monkeypatch):
    monkeypatch.setattr(fp16, 'GradScaler', lambda kind, **kw: torch.amp.GradScaler('cpu', init_scale=1024.))
    monkeypatch.setattr(fp16, 'autocast', lambda kind, dtype: nullcontext())
    class Overflow(Callback):
        def after_backward(self):
            if self.iter == 3: next(self.learn.model.parameters()).grad.fill_(float('inf'))
    assert fit(make(EMA(), MixedPrecision(), Overflow())).ema.updates == 8

def test_what_only_looks_changes_nothing(tmp_path):
    learn = fit(make(EMA(), path=tmp_path))
    before, values = state(learn.ema.average.module), dict(learn.epoch_metrics.values)
    learn.validate()
    learn.get_preds()
    with learn.no_logging(): learn.lr_find(num_it=12, show_plot=False)
    with learn.ema.swapped(): learn.get_preds()
    assert equal(before, state(learn.ema.average.module)) and learn.ema.updates == 10 and learn.epoch_metrics.values == values
    fit(learn, 1)
    assert learn.ema.updates == 15

def test_a_search_before_the_first_fit_makes_no_average(tmp_path):
    learn = make(EMA(), path=tmp_path)
    with learn.no_logging(): learn.lr_find(num_it=7, show_plot=False)
    learn.validate()
    learn.get_preds()
    assert learn.ema.average is None
    with pytest.raises(InputError, match='no averaged weights yet'):
        with learn.ema.swapped(): pass

@pytest.mark.parametrize('cbs', [[Precision], [BackOff], [Precision, BackOff]], ids=range(3))
def test_the_copy_carries_nothing_of_a_fit(cbs):
    model = net().to(memory_format=torch.channels_last)
    learn = fit(make(EMA(), *(o() for o in cbs), model=model))
    average = learn.ema.average.module
    assert 'forward' not in vars(average) and average[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert {o.dtype for o in average.state_dict().values()} == {torch.float32, torch.int64}
    with learn.ema.swapped(): torch.testing.assert_close(learn.model(X), average(X))

def test_the_copy_has_32_bits():
    learn = make(EMA(), model=net().bfloat16())
    learn.ema.before_train()
    assert {o.dtype for o in learn.ema.average.module.parameters()} == {torch.float32}
    with learn.ema.swapped(): assert learn.model[0].weight.dtype == torch.bfloat16

def test_without_its_own_evaluation():
    learn = fit(make(EMA(evaluate=False)))
    assert learn.ema.names == [] and learn.ema.updates == 10 and 'ema' not in str(learn.epoch_metrics.values)

def test_an_epoch_without_validation_has_none_of_the_average():
    class Skip(Callback):
        def before_validate(self): raise CancelValidException
    assert list(fit(make(EMA(), Skip())).epoch_metrics.values) == ['train_loss', 'train_top1']

def test_the_optimizer_keeps_its_tensors():
    learn = make(EMA())
    before = list(learn.model.parameters())
    fit(learn)
    assert all(a is b for a, b in zip(before, learn.model.parameters()))
    assert all(a is b for a, (b, *_) in zip(before, learn.opt.all_params()))

def test_state_goes_through_a_file_and_on():
    def half(learn): return fit(learn, 1)
    whole, first = make(EMA(.9)), half(make(EMA(.9)))
    half(half(whole))
    kept = dict(ema=first.ema.state(), opt=first.opt.state_dict(), model=first.model.state_dict())
    kept = state_from_bytes(state_to_bytes(kept))
    second = make(EMA(.9))
    second.model.load_state_dict(kept['model'])
    second.create_opt()
    second.opt.load_state_dict(kept['opt'])
    second.clock.epochs, second.clock.steps = 1, 5
    second.ema.load_state(kept['ema'])
    half(second)
    assert second.ema.updates == 10 and equal(state(whole.ema.average.module), state(second.ema.average.module))
    empty = make(EMA())
    empty.ema.load_state(make(EMA()).ema.state())
    assert empty.ema.average is None
    first.ema.forget()
    assert first.ema.average is None and first.ema.updates == 0

@pytest.mark.parametrize('args', [dict(decay=1.), dict(decay=-.1), dict(decay=2), dict(warmup=-1), dict(warmup=2)], ids=str)
def test_what_is_no_average(args):
    with pytest.raises(InputError, match=next(iter(args))): EMA(**args)

class Interrupt(Callback):
    order = 200
    def __init__(self, event, at=0): self.event, self.at, self.seen = event, at, 0
    def __call__(self, event):
        super().__call__(event)
        if event != self.event: return
        self.seen += 1
        if self.seen == self.at + 1: raise KeyboardInterrupt

@pytest.mark.parametrize('event, at', [(e, i) for e in ('before_batch', 'after_step', 'after_batch') for i in (0, 3, 6, 9, 13)] +
                         [('before_validate', 1), ('after_validate', 1)])
def test_interrupts(event, at):
    learn = make(EMA(), SWA(start=0.), Keep(), Interrupt(event, at))
    if (event, at) != ('after_step', 13):
        with pytest.raises(KeyboardInterrupt): fit(learn)
        for cb in (learn.ema, learn.swa): cb.close()
        last = (learn.keep.steps or [state(net())])[-1]
        assert all(torch.equal(v, last[k]) for k, v in learn.model.named_parameters())
        assert learn.ema.updates == len(learn.keep.steps)
    learn.remove_cbs(Interrupt)
    learn.validate()
    assert 'ema_accuracy' in fit(learn, 1).epoch_metrics.values

# SWA

@pytest.mark.parametrize('start, n_epoch, n', [(.75, 8, 2), (.5, 4, 2), (0., 3, 3), (.75, 3, 1), (.9, 1, 1), (.99, 2, 1)])
def test_the_mean_of_the_last_epochs(start, n_epoch, n):
    learn = fit(make(SWA(start), Keep()), n_epoch)
    assert learn.swa.n_averaged == n and len(learn.keep.epochs_end) == n_epoch
    got, want = state(learn.model), mean(learn.keep.epochs_end[-n:])
    params = [k for k, _ in learn.model.named_parameters()]
    assert max((got[k] - want[k]).abs().max().item() for k in params) < 1e-6
    if n == 1: return
    batches = [X[i:i + 5] for i in range(0, 23, 5)]
    h = [learn.model[0](o) for o in batches]
    want = torch.stack([o.mean((0, 2, 3)) for o in h]).mean(0)
    torch.testing.assert_close(got['1.running_mean'], want, atol=1e-6, rtol=0)
    assert got['1.num_batches_tracked'] == 5 and learn.model[1].momentum == .1
    assert learn.validate() == list(learn.swa.values.values())

def test_its_end_stands_in_no_epochs_record(capsys):
    a, b = fit(make(SWA(.5)), 4), fit(make(), 4)
    assert a.epoch_metrics.values == b.epoch_metrics.values and a.recorder.values == b.recorder.values
    out = capsys.readouterr().out
    assert out.startswith('SWA: the network now has the mean of 2 epochs: valid_loss') and out.count('\n') == 1

def test_the_rate_moves_and_stays():
    learn = make(SWA(.5, lr=.02, anneal=1.), lr=.1)
    fit(learn, 4)
    lrs = learn.recorder.lrs
    assert lrs[:11] == [.1]*11 and lrs == sorted(lrs, reverse=True) and lrs[15:] == pytest.approx([.02]*5) and .02 < lrs[13] < .1
    with learn.no_logging(): learn.fit_one_cycle(4, .1)
    assert learn.recorder.lrs[15:] == pytest.approx([.02]*5), "over any schedule"
    fit(learn, 1)
    assert fit(make(SWA(.5, lr=.02, anneal=0.), lr=.1), 2).recorder.lrs[5:] == pytest.approx([.02]*5)

def test_groups_keep_their_ratios():
    learn = make(SWA(.5, lr=.02, anneal=0.), splitter=lambda m: [list(m[0].parameters()), list(m[1:].parameters())])
    with learn.no_logging(): learn.fit(2, slice(.01, .1))
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx([.002, .02])

def test_a_fit_that_is_stopped_ends_with_the_mean():
    class Stop(Callback):
        order = 90
        def after_epoch(self):
            if self.clock.epochs == 3: raise CancelFitException
    learn = fit(make(SWA(.25), Stop(), Keep()), 4)
    want = mean(learn.keep.epochs_end[1:])
    assert learn.swa.n_averaged == 2 and (state(learn.model)['0.weight'] - want['0.weight']).abs().max() < 1e-6

def test_an_interrupted_fit_keeps_its_weights_and_the_mean(tmp_path):
    learn = make(SWA(0.), Keep(), Interrupt('before_epoch', 3), path=tmp_path)
    with pytest.raises(KeyboardInterrupt): fit(learn, 4)
    assert equal(state(learn.model), learn.keep.epochs_end[-1]) and learn.swa.n_averaged == 3
    learn.remove_cbs(Interrupt)
    ends = learn.keep.epochs_end
    learn.validate()
    learn.get_preds()
    with learn.no_logging(): learn.lr_find(num_it=7, show_plot=False)
    assert not learn.swa.applied
    learn.swa.apply()
    assert (state(learn.model)['0.weight'] - mean(ends)['0.weight']).abs().max() < 1e-6
    kept = state_from_bytes(state_to_bytes(learn.swa.state()))
    other = make(SWA(0.))
    other.swa.load_state(kept)
    assert other.swa.n_averaged == 3 and equal(state(other.swa.average.module), state(learn.swa.average.module))
    fit(other, 1)
    assert other.swa.n_averaged == 4

def test_searches_and_predictions_do_not_average(tmp_path):
    learn = make(SWA(0., lr=.1), path=tmp_path)
    with learn.no_logging(): learn.lr_find(num_it=12, show_plot=False)
    learn.get_preds()
    assert learn.swa.n_averaged == 0
    with pytest.raises(InputError, match='nothing to apply'): learn.swa.apply()

@pytest.mark.parametrize('args', [dict(start=1.), dict(start=-.1), dict(lr=0.), dict(lr=-1.)], ids=str)
def test_what_swa_refuses(args):
    with pytest.raises(InputError, match=next(iter(args))): SWA(**args)

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize('at', range(4))
def test_a_pass_for_statistics_that_fails_leaves_all_as_it_was(error, at):
    learn = fit(make())
    learn.model[1].momentum = .3
    before, training = state(learn.model), learn.model.training
    def batches():
        for i in range(at): yield X[i:i + 4]
        raise error
    with pytest.raises(error): refresh_batchnorm(learn.model, batches())
    assert equal(before, state(learn.model)) and learn.model[1].momentum == .3 and learn.model.training == training

def test_without_batchnorm_no_picture_is_read():
    refresh_batchnorm(nn.Linear(2, 2), (1/0 for _ in range(1)))

# Soups

def test_means_of_states(tmp_path):
    states = [state(fit(make(), i).model) for i in (1, 2, 3)]
    files = [tmp_path/f'epoch_{i}.safetensors' for i in range(3)]
    for f, o in zip(files, states): save_file(o, f)
    for sources in (states, files, [states[0], *files[1:]], iter(files)):
        got = average_weights(sources)
        want = mean(states)
        want['1.num_batches_tracked'] = states[0]['1.num_batches_tracked']
        assert gap(got, want) < 1e-6 and {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in states[0].items()}
    second = average_weights(states, [0, 1, 0])
    assert all(torch.equal(second[k], v) for k, v in states[1].items() if v.is_floating_point())
    assert equal(average_weights(files[:1]), states[0])
    twice = average_weights(states[:1])
    twice['0.weight'].zero_()
    assert states[0]['0.weight'].abs().sum() > 0, "nothing is shared with what went in"

W = dict(w=torch.ones(2))

@pytest.mark.parametrize('sources, weights, says', [
    ([], None, 'no weights to average'), ([W], [1, 2], 'one of them above 0'), ([W, W], [-1, 2], 'not negative'),
    ([W, W], [0, 0], 'not negative'), ([W, dict(w=torch.ones(3))], None, r"'w' is \(2,\) in one and \(3,\)"),
    ([W, dict(v=torch.ones(2))], None, "only one of them has 'v'")])
def test_what_gives_no_mean(sources, weights, says):
    with pytest.raises(InputError, match=says): average_weights(sources, weights)

def test_greedy_soups():
    learn = fit(make(Keep(), lr=.02), 5)
    states, before = learn.keep.epochs_end, state(learn.model)
    learn.remove_cbs(Keep)
    for metric in ('accuracy', 'valid_loss'):
        soup, sign = greedy_soup(learn, states, metric), -1 if metric == 'valid_loss' else 1
        assert equal(state(learn.model), before) and sign*soup.value >= sign*soup.alone[0][1]
        assert [v for _, v in soup.alone] == sorted((v for _, v in soup.alone), reverse=sign > 0) and len(soup.alone) == 5
        assert soup.members[0] == soup.alone[0][0]
        learn.model.load_state_dict(soup.weights)
        assert dict(zip(['valid_loss', 'accuracy'], learn.validate()))[metric] == soup.value
        learn.model.load_state_dict(before)
    one = greedy_soup(learn, states[:1])
    assert one.members == ('#0',) and equal(one.weights, states[0])
    with pytest.raises(InputError, match="'acuracy' is unknown.*Did you mean 'accuracy'.*valid_loss, accuracy"):
        greedy_soup(learn, states, 'acuracy')
    with pytest.raises(InputError, match='no weights'): greedy_soup(learn, [])

def test_a_bad_one_stays_out():
    learn = fit(make())
    good, bad = state(learn.model), copy.deepcopy(state(learn.model))
    bad['5.weight'] = -20*bad['5.weight']
    assert greedy_soup(learn, [bad, good]).members == ('#1',)

@pytest.mark.parametrize('name, lower', [('valid_loss', True), ('error_rate', True), ('ema_valid_loss', True), ('top1', False),
                                         ('accuracy', False), ('f1_score', False), ('precision_score', False)])
def test_directions(name, lower): assert lower_is_better(name) == lower

# On an image learner, with a run folder

def test_runs_tell_both(shapes, tmp_path, capsys):
    from imgcls_nb.data import image_dls
    from imgcls_nb.learner import image_learner
    from imgcls_nb.trained import load_trained
    dls = image_dls(shapes, size=32, bs=8, aug='light', device='cpu', num_workers=0)
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run', cbs=[EMA(), SWA(0.)])
    learn.fit_one_cycle(2, 1e-2)
    rows = [o.split() for o in capsys.readouterr().out.splitlines()]
    assert {'ema_valid_loss', 'ema_top1'} <= set(rows[1]) and len(rows[2]) == len(rows[1])
    history = learn.run_folder.history()
    assert {'ema_valid_loss', 'ema_top1', 'valid_loss', 'top1'} <= set(history.columns) and len(history) == 2
    swa, latest = (load_trained(learn.run_folder.path, o) for o in ('swa', 'latest'))
    assert swa.facts['averaged'] == 2 and swa.facts['top1'] == learn.swa.values['top1']
    assert equal(state(swa.model), state(learn.model)) and not equal(state(latest.model), state(learn.model))
    files = [learn.run_folder.path/f'epoch_{i}.safetensors' for i in (1, 2)]
    mean = average_weights([files[0], learn.run_folder.path/'epoch_1.state.safetensors'])
    assert equal(mean, average_weights(files[:1])), "what holds no weights is left out"
    soup = greedy_soup(learn, files, 'top1')
    assert soup.value >= soup.alone[0][1] and set(soup.members) <= {str(o) for o in files}
