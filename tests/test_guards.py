"Ends before the end: the epoch is whole, the reason is said, the learner can go on; lost trainings give good weights back"
import math
import time

import pytest
import torch
import torch.nn.functional as F
from fastai.callback import schedule as _schedule  # noqa: F401 (adds lr_find)
from fastai.callback.core import Callback, CancelEpochException
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from torch import nn

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.callbacks import guards
from imgcls_nb.callbacks.averaging import EMA, SWA
from imgcls_nb.callbacks.clock import Clock, EpochMetrics
from imgcls_nb.callbacks.guards import DivergenceGuard, EarlyStop, LossWatch, TimeLimit
from imgcls_nb.callbacks.progress import EpochTable, _html
from imgcls_nb.callbacks.steps import Accumulate, ClipNorm
from imgcls_nb.callbacks.validating import ValidateEvery
from imgcls_nb.checkpoints import state_from_bytes, state_to_bytes
from imgcls_nb.core import InputError

X = torch.randn(20, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long()

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))

def make(*cbs, x=X, bs=4, lr=.05, loss=F.cross_entropy, **kwargs):
    dls = DataLoaders(DataLoader(list(zip(x, Y)), bs=bs, num_workers=0), DataLoader(list(zip(X, Y)), bs=8, num_workers=0))
    learn = Learner(dls, net(), loss, opt_func=SGD, lr=lr, metrics=accuracy, cbs=[Clock(), EpochMetrics(), *cbs], **kwargs)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    return learn

def fit(learn, n_epoch=2):
    with learn.no_logging(): learn.fit(n_epoch)
    return learn

def state(model): return {k: v.clone() for k, v in model.state_dict().items()}
def equal(a, b): return all(torch.equal(a[k], b[k]) for k in a)
def names(learn): return ['train_loss', 'valid_loss', 'accuracy', 'train_top1']

class Script(Callback): # says what an epoch gave
    order = 47
    def __init__(self, values, metric='valid_loss'): self.script, self.column, self.at = values, metric, 0
    def after_epoch(self):
        self.epoch_metrics.values[self.column] = self.script[self.at]
        self.at += 1

# Early stopping

NAN = math.nan

@pytest.mark.parametrize('metric, args, values, stopped', [
    ('valid_loss', dict(patience=2), [3, 2, 1, 1, 1, 1], 5), ('valid_loss', dict(patience=1), [3, 2, 2, 1], 3),
    ('valid_loss', dict(patience=2), [3, 4, 2, 3, 1, 3], 6), 
    ('valid_loss', dict(patience=2, min_delta=.5), [3, 2.6, 2.4, 2.3, 2.2, 0], 5),
    ('accuracy', dict(patience=2), [.1, .2, .2, .1, .9], 4), ('accuracy', dict(patience=2, mode='min'), [.1, .2, .2, .1, .9], 3),
    ('valid_loss', dict(patience=2, mode='max'), [1, 2, 3, 4, 5], 5),
    ('valid_loss', dict(patience=3), [NAN, NAN, 2, NAN, NAN, NAN, 1], 6),
    ('valid_loss', dict(patience=2), [NAN, NAN, 1], 2), ('train_top1', dict(patience=1), [.5, .6, .6, .7], 3),
    ('train_loss', dict(patience=1), [2, 1, 1, 0], 3), ('ema_valid_loss', dict(patience=1), [2, 1, 1, 0], 3),
    ('ema_accuracy', dict(patience=1), [.1, .3, .2, 1.], 3), ('accuracy', dict(patience=1, min_delta=.1), [.1, .2, .3, .4], 2)])
def test_when_it_stops(metric, args, values, stopped, capsys):
    learn = fit(make(EMA(), Script(values, metric), EarlyStop(metric, **args)), len(values))
    assert learn.clock.epochs == stopped
    stop, out = learn.early_stop, capsys.readouterr().out
    if stopped < len(values): assert out == f'Stopped after epoch {stopped}: {stop.why}.\n' and metric in stop.why
    else: assert stop.why is None and out == '', "the last epoch is an end of its own"

class Seldom(Script): # of the epochs that are validated
    def after_epoch(self):
        if 'valid_loss' in self.epoch_metrics.values: super().after_epoch()

@pytest.mark.parametrize('n, patience, values, stopped, says', [
    (4, 3, [3, 2, 1, 1, 1], 20, None), (4, 3, [3, 2, 1, 1, 1, 1, 0], 24, 'in 3 epochs with a validation'),
    (2, 2, [1, 2, .5, 1, 1, 9], 10, 'in 2 epochs with a validation'), (3, 1, [1, 1, 1], 6, 'in 1 epoch with a validation'),
    (2, 2, [NAN, NAN, 1], 4, 'was no number in 2 epochs'), (0, 1, [], 5, None)])
def test_an_epoch_that_was_not_validated_does_not_count(n, patience, values, stopped, says, capsys):
    learn = fit(make(ValidateEvery(n), Seldom(values), EarlyStop(patience=patience)), max(n*len(values), 5))
    why = learn.early_stop.why
    assert learn.clock.epochs == stopped and (why is None if says is None else says in why)

def test_the_epoch_is_whole_and_the_learner_goes_on(capsys):
    learn = make(EMA(), Script([1]*9), EarlyStop(patience=1), EpochTable())
    learn.fit(9)
    rows = [o.split() for o in capsys.readouterr().out.splitlines()]
    assert [o[0] for o in rows] == ['epoch', '1', '2', 'Stopped'] and learn.logger is print
    assert list(learn.epoch_metrics.values) == names(learn) + learn.ema.names
    fit(learn)
    assert learn.clock.epochs == 4 and learn.early_stop.best_epoch == 3, "counted anew"
    kept = learn.early_stop.state()
    learn.validate()
    learn.get_preds()
    assert learn.early_stop.state() == kept

@pytest.mark.parametrize('metric, says', [('acuracy', "Did you mean 'accuracy'"), ('train_top', "Did you mean 'train_top1'"),
    ('ema_valid_loss', 'An epoch gives'), ('time', 'An epoch gives'), ('epoch', 'An epoch gives'), ('top5', 'An epoch gives')])
def test_unknown_metrics_are_found_before_the_first_batch(metric, says):
    learn = make(EarlyStop(metric))
    with pytest.raises(InputError, match=says): fit(learn)
    assert learn.clock.steps == 0

@pytest.mark.parametrize('args', [dict(mode='low'), dict(patience=0), dict(patience=-1), dict(patience=1.5), dict(patience='3'),
                                  dict(min_delta=-1)], ids=str)
def test_what_early_stopping_refuses(args):
    with pytest.raises(InputError, match=next(iter(args))): EarlyStop(**args)

@pytest.mark.parametrize('args', [dict(patience=0), dict(every=0), dict(keep_every=-1), dict(factor=1)], ids=str)
def test_what_the_guard_refuses(args):
    with pytest.raises(InputError, match=next(iter(args))): DivergenceGuard(**args)

def test_a_resumed_fit_goes_on_counting():
    first = fit(make(Script([1, 2, 2]), EarlyStop(patience=4)), 3)
    kept = state_from_bytes(state_to_bytes(first.early_stop.state()))
    assert kept == dict(best=1, best_epoch=1, waited=2, trained=False)
    second = make(Script([2]*9), EarlyStop(patience=4))
    second.early_stop.load_state(kept)
    second.validate()
    second.clock.epochs = 3
    assert fit(second, 9).clock.epochs == 5

def test_searches_and_validations_are_no_epochs(tmp_path):
    learn = make(EarlyStop(patience=1), TimeLimit(10), DivergenceGuard(), path=tmp_path)
    with learn.no_logging(): learn.lr_find(num_it=12, show_plot=False)
    for _ in range(3): learn.validate()
    assert (learn.early_stop.best, learn.early_stop.waited, learn.time_limit.spent) == (None, 0, 0)

def test_skipped_epochs_do_not_count():
    class Skip(Callback):
        order = 70
        def before_epoch(self):
            if self.epoch < 3: raise CancelEpochException
    assert fit(make(Skip(), EarlyStop(patience=1)), 4).early_stop.best_epoch == 1

# The time limit, with a clock of its own: each batch takes a second, and a validation as long as it is told to

class Watch:
    def __init__(self): self.now = 100.
    def monotonic(self): return self.now

class Second(Callback):
    def __init__(self, watch, valid_s=0.): self.watch, self.valid_s = watch, valid_s
    def after_batch(self):
        if self.training: self.watch.now += 1
    def before_validate(self): self.watch.now += self.valid_s

@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    monkeypatch.setattr(guards, 'time', watch)
    return watch

@pytest.mark.parametrize('limit_s, valid_s, steps, epochs, used', [
    (3, 0, 3, 1, 3), (5, 0, 5, 1, 5), (7, 0, 7, 2, 7), (10, 0, 10, 2, 10), (100, 0, 20, 4, 20), (.5, 0, 1, 1, 1), (1, 0, 1, 1, 1),
    (12, 4, 5, 1, 9), (14, 4, 6, 2, 14), (16, 4, 8, 2, 16), (17.5, 4, 10, 2, 18), (2, 4, 2, 1, 6)])
def test_where_it_stops(watch, limit_s, valid_s, steps, epochs, used, capsys):
    learn = fit(make(TimeLimit(limit_s/60), Second(watch, valid_s)), 4) # five batches an epoch
    assert (learn.clock.steps, learn.clock.epochs, learn.time_limit.spent) == (steps, epochs, used)
    assert list(learn.epoch_metrics.values) == names(learn) and len(learn.recorder.values) == epochs
    out, cut = capsys.readouterr().out, f' at batch {steps % 5} of 5'
    assert (cut in out) == (steps % 5 > 0) and (out == '') == (epochs == 4) == (learn.time_limit.why is None)

@pytest.mark.parametrize('n, limit_s, valid_s, steps, epochs, used', [
    (0, 7, 0, 7, 2, 7), (0, 10, 0, 10, 2, 10), (0, .5, 0, 1, 1, 1), (0, 7, 4, 7, 2, 11), # nothing was known of validations
    (2, 18, 4, 10, 2, 14), (2, 20, 4, 12, 3, 20), (2, 23, 4, 15, 3, 23), (2, 24, 4, 16, 4, 24), (3, 100, 4, 20, 4, 24)])
def test_the_last_epoch_is_validated_in_any_case(watch, n, limit_s, valid_s, steps, epochs, used):
    learn = fit(make(ValidateEvery(n), TimeLimit(limit_s/60), Second(watch, valid_s)), 4)
    assert (learn.clock.steps, learn.clock.epochs, learn.time_limit.spent) == (steps, epochs, used)
    assert (list(learn.epoch_metrics.values) == names(learn)) == bool(learn.time_limit.why)
    assert '_do_epoch_validate' not in vars(learn)

def test_time_that_ends_after_a_training_begins_another(watch): # so that what it stops with was validated
    slow = type('Slow', (Callback,), dict(after_epoch=lambda self: setattr(watch, 'now', watch.now + 1)))
    learn = fit(make(ValidateEvery(0), TimeLimit(5.5/60), Second(watch), slow()), 4)
    assert learn.clock.steps == 6 and list(learn.epoch_metrics.values) == names(learn)

def test_a_cut_epoch_has_its_own_loss(watch):
    learn = fit(make(TimeLimit(3/60), Second(watch), lr=0.), 4)
    assert learn.epoch_metrics.values['train_loss'] == pytest.approx(float(learn.recorder.smooth_loss.value))
    with learn.no_bar(): assert learn.validate() == [learn.epoch_metrics.values[o] for o in ('valid_loss', 'accuracy')]

def test_half_a_group_of_gradients_is_dropped(watch):
    learn = fit(make(Accumulate(2), EMA(), TimeLimit(3/60), Second(watch)))
    assert learn.ema.updates == 1 and all(p.grad.abs().sum() == 0 for p in learn.model.parameters())

def test_time_counts_over_fits_and_not_between(watch):
    learn = fit(make(TimeLimit(12/60), Second(watch)), 1)
    watch.now += 1000
    assert fit(learn, 4).clock.steps == 12
    before = state(learn.model)
    assert equal(before, state(fit(learn).model)) and learn.clock.steps == 12 and 'nothing is left' in learn.time_limit.why
    kept = state_from_bytes(state_to_bytes(learn.time_limit.state()))
    other = make(TimeLimit(13/60), Second(watch))
    other.time_limit.load_state(kept)
    assert fit(other).clock.steps == 1

def test_an_interrupt_stops_the_watch(watch):
    learn = make(TimeLimit(1), Second(watch), Interrupt('after_batch', 3))
    with pytest.raises(KeyboardInterrupt): fit(learn)
    learn.time_limit.close()
    watch.now += 50
    assert learn.time_limit.spent == 4 and learn.time_limit.left_s == 56

@pytest.mark.parametrize('minutes', [0, -1, '1', None, True, NAN])
def test_what_is_no_time(minutes):
    with pytest.raises(InputError, match='max_minutes='): TimeLimit(minutes)

def test_with_averages_at_the_end(watch):
    learn = fit(make(SWA(0.), EMA(), EarlyStop(patience=9), TimeLimit(12/60), Second(watch)), 9)
    assert learn.swa.applied and learn.swa.n_averaged == 3

def test_with_a_real_clock():
    slow = type('Slow', (Callback,), dict(after_step=lambda self: time.sleep(.02)))
    start = time.monotonic()
    learn = fit(make(TimeLimit(.3/60), slow()), 10**4)
    assert time.monotonic() - start < 5 and learn.clock.epochs >= 1

def test_fine_tuning_stays_within_its_time(shapes, watch):
    from imgcls_nb.data import image_dls
    from imgcls_nb.learner import image_learner
    learn = image_learner(image_dls(shapes, size=32, bs=8, device='cpu', num_workers=0), 'test_resnet')
    limit = TimeLimit(2/60)
    with learn.no_bar(): learn.fine_tune(3, cbs=[limit, Second(watch)])
    assert (learn.clock.epochs, learn.clock.steps) == (1, 2) and 'nothing is left' in limit.why
    with learn.no_bar(): learn.fit(1)
    assert learn.clock.epochs == 2

# The guard

@pytest.mark.parametrize('losses, at', [
    ([1.]*30 + [9.]*5, 34), ([1.]*30 + [9.]*4 + [1.] + [9.]*5, 39), ([1.]*10 + [9.]*9, None),
    ([5.]*20 + [1.]*100 + [4.9]*9, None), ([5.]*20 + [1.]*100 + [5.1]*9, 124), ([1., NAN], 1), ([math.inf], 0),
    ([-5.]*40 + [-1.]*20, None), ([0.]*90, None),
    ([1.]*200 + [3.1]*4 + [2.9]*50, None), ([2.**-i for i in range(100)], None), ([1.]*30 + [NAN], 30)], ids=range(12))
def test_which_losses_are_lost(losses, at):
    watch = LossWatch(patience=5)
    assert next((i for i, o in enumerate(losses) if watch.add(o)), None) == at

def test_some_losses_may_be_no_numbers():
    watch = LossWatch(odd=2)
    assert [bool(watch.add(o)) for o in (NAN, NAN, 1., NAN, NAN, NAN)] == [False]*5 + [True] and watch.typical == 1

class Interrupt(Callback):
    order = 200
    def __init__(self, event, at=0): self.event, self.at, self.count = event, at, 0
    def __call__(self, event):
        super().__call__(event)
        if event == self.event and self.learn.training:
            self.count += 1
            if self.count == self.at + 1: raise KeyboardInterrupt

def broken(i, value=NAN):
    x = X.clone()
    x[i, 0, 2, 2] = value
    return x

class Steps(Callback):
    order = 200
    def before_fit(self): self.seen = [state(self.learn.model)]
    def after_batch(self):
        if self.training: self.seen.append(state(self.learn.model))

def fails(learn, n_epoch=3):
    with pytest.raises(InputError) as e: fit(learn, n_epoch)
    for cb in learn.cbs: getattr(cb, 'close', lambda: None)()
    return str(e.value)

@pytest.mark.parametrize('value', [NAN, math.inf])
@pytest.mark.parametrize('i', [0, 5, 19])
def test_pixels_that_are_no_numbers(i, value):
    learn = make(DivergenceGuard(), Steps(), x=broken(i, value))
    text, steps = fails(learn), i//4
    assert f'at step {steps + 1} ' in text and f'in this batch at {i % 4},' in text and 'epoch 1' in text
    assert learn.clock.steps == steps and all(o.isfinite().all() for o in learn.model.state_dict().values())
    assert equal(state(learn.model), learn.steps.seen[0]), "BatchNorm had seen it; so all is from the last good copy"
    assert text.index('Pixels') < text.index('learning rate is too high') < text.index('The loss itself')

def test_without_batchnorm_only_that_step_is_not_made():
    learn = make(DivergenceGuard(), Steps(), x=broken(14))
    learn.model[1] = nn.Identity()
    text = fails(learn)
    assert equal(state(learn.model), learn.steps.seen[-1]) and len(learn.steps.seen) == 4 and 'from after step 3' in text

class Root(nn.Module): # a loss that is a number while its gradient is none
    def forward(self, pred, targ): return F.cross_entropy(pred, targ) + (pred*0).sum().sqrt()

def test_a_gradient_that_is_no_number():
    learn = make(DivergenceGuard(), Steps(), loss=Root())
    text = fails(learn)
    assert 'the gradient is nan' in text and all(p.isfinite().all() for p in learn.model.parameters())
    assert all(torch.equal(p, learn.steps.seen[0][k]) for k, p in learn.model.named_parameters())

class Rate(Callback):
    order = 100
    def __init__(self, at, lr): self.at, self.to = at, lr
    def before_batch(self):
        if self.training and self.clock.steps >= self.at: self.opt.set_hyper('lr', self.to)

@pytest.mark.parametrize('every', [1, 7, 20, 64])
def test_losses_that_stay_high(every):
    guard = DivergenceGuard(patience=6, every=every, keep_every=10)
    learn = make(guard, Steps(), Rate(40, 1e4), lr=.01)
    text, before = fails(learn, 40), learn.steps.seen
    assert 'was above' in text and learn.clock.steps <= 60 + every
    at = int(text.partition('from after step ')[2].partition('.')[0])
    assert at <= 41 and (every > 10 or at >= 30) and all(torch.equal(p, before[at][k]) for k, p in learn.model.named_parameters())
    assert all(o.isfinite().all() for o in learn.model.state_dict().values())
    learn.remove_cbs(Rate)
    assert fit(learn, 1).epoch_metrics.values['valid_loss'] < 2, "the next fit goes on from there"

@pytest.mark.parametrize('every', [3, 20])
def test_losses_that_are_read_late(every):
    learn = make(DivergenceGuard(every=every), Steps(), x=broken(6))
    text = fails(learn)
    assert 'at step 2 ' in text and equal(state(learn.model), learn.steps.seen[0])
    assert not [o for o in learn.opt.state.values() if 'grad_avg' in o], "momentum is forgotten too"

def test_a_single_high_loss_is_nothing():
    class High(Callback):
        def after_loss(self):
            if self.training and self.clock.steps % 7 == 6: self.learn.loss = self.learn.loss*1000
    learn = fit(make(DivergenceGuard(patience=3), High()), 12)
    assert learn.divergence_guard.why is None and learn.clock.epochs == 12

@pytest.mark.parametrize('every', [1, 7])
def test_training_does_not_notice_it(every):
    a, b = (fit(make(*cbs), 3) for cbs in ([DivergenceGuard(every=every)], []))
    assert equal(state(a.model), state(b.model)) and a.recorder.values == b.recorder.values

def test_the_norm_is_that_before_clipping():
    learn = fit(make(ClipNorm(1e-3), DivergenceGuard()))
    assert float(learn.divergence_guard.grad_norm) == learn.clip_norm.last_norm > 1e-3
    plain = fit(make(ClipNorm(math.inf)), 1)
    other = fit(make(DivergenceGuard()), 1)
    assert float(other.divergence_guard.grad_norm) == pytest.approx(plain.clip_norm.last_norm)

def test_losses_below_zero_are_not_judged_by_their_size():
    learn = fit(make(DivergenceGuard(patience=2), loss=lambda p, t: F.cross_entropy(p, t) - 5), 10)
    assert learn.divergence_guard.why is None

def test_the_copy_is_freed():
    assert fit(make(DivergenceGuard())).divergence_guard.good is None

@pytest.mark.parametrize('event', ['before_batch', 'after_loss', 'before_step', 'after_batch'])
@pytest.mark.parametrize('at', [0, 4, 7])
def test_interrupts(event, at):
    cbs = [EarlyStop(patience=2), TimeLimit(5), DivergenceGuard()]
    learn = make(*cbs, Interrupt(event, at))
    with pytest.raises(KeyboardInterrupt): fit(learn)
    for cb in cbs: cb.close()
    assert learn.clock.steps == at + (event == 'after_batch') and learn.divergence_guard.good is None
    learn.remove_cbs(Interrupt)
    assert fit(learn, 1).epoch_metrics.values

def test_on_an_image_learner(shapes, tmp_path):
    from imgcls_nb.data import image_dls
    from imgcls_nb.learner import image_learner
    dls = image_dls(shapes, size=32, bs=8, aug='light', device='cpu', num_workers=0)
    cbs = [EarlyStop('top1', patience=1, min_delta=1.), DivergenceGuard()]
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run', cbs=cbs)
    with learn.no_bar(): learn.fit(5)
    assert learn.clock.epochs == 2 and [o['why'] for o in learn.run_folder.events('stopped')] == [learn.early_stop.why]
    assert len(learn.run_folder.events('epoch')) == 2 and (tmp_path/'run/epoch_2.safetensors').exists()
    learn.remove_cbs(EarlyStop)
    learn.add_cb(Rate(0, 1e9))
    with pytest.raises(InputError, match='^Training stopped'), learn.no_bar(): learn.fit(30)
    assert learn.run_folder.events('failed')
    learn.remove_cbs(Rate)
    with learn.no_bar(): learn.fit(1)

def test_all_of_them_interrupted_anywhere(shapes):
    from imgcls_nb.callbacks.compile import CompileModel
    from imgcls_nb.callbacks.steps import BackOff
    from imgcls_nb.data import image_dls
    from imgcls_nb.learner import image_learner
    dls = image_dls(shapes, size=32, bs=8, aug='light', device='cpu', num_workers=0)
    cbs = [Accumulate(2), BackOff(3), ClipNorm(1.), EMA(), SWA(0.), EarlyStop(), TimeLimit(5), DivergenceGuard(),
           CompileModel(backend='eager')]
    learn, before = image_learner(dls, 'test_resnet', mix='mixup', cbs=cbs), learn_names(cbs)
    for event, at in [(e, i) for e in ('after_pred', 'after_backward', 'after_step', 'after_batch') for i in (0, 2, 4)]:
        learn.add_cb(Interrupt(event, at))
        with pytest.raises(KeyboardInterrupt), learn.no_bar(): learn.fit_one_cycle(2)
        learn.remove_cbs(Interrupt)
        assert 'forward' not in vars(learn.model) and '_backward' not in vars(learn)
        assert learn.accumulate.done == 0 and learn.divergence_guard.good is None and learn_names(learn.cbs) >= before
        assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())
    with learn.no_bar(): learn.fit(2)
    assert learn.swa.applied and 'ema_top1' in learn.epoch_metrics.values

def learn_names(cbs): return {o.name for o in cbs}

def test_weights_that_were_lost_before_the_fit_are_named():
    learn = make(DivergenceGuard())
    with torch.no_grad(): learn.model[4].weight[0, 0] = math.nan
    with pytest.raises(InputError, match=r'no numbers when the fit began, such as 4\.weight'): fit(learn)

def test_a_metric_without_a_name_of_its_own_has_one_in_the_table():
    assert '<th>&lt;lambda&gt;</th>' in _html([('epoch', '<lambda>')], '')
