"What a practitioner asks of a learner: everything by name, everything in the plan, and nothing lost"
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.losses import LabelSmoothingCrossEntropy
from torch import nn

from imgcls_nb.callbacks.catalog import CALLBACKS
from imgcls_nb.callbacks.recording import score_of
from imgcls_nb.callbacks.steps import Accumulate
from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.evaluate import evaluate, evaluate_plan
from imgcls_nb.learner import image_learner, learner_from_plan, run_schedule
from imgcls_nb.losses import LOSSES
from imgcls_nb.runs import Run
from imgcls_nb.trained import load_trained


@pytest.fixture(scope='module')
def dls(shapes): return image_dls(shapes, size=32, bs=8, aug='light', device='cpu', num_workers=0)

def make(dls, **kwargs): return image_learner(dls, 'test_resnet', **kwargs)

def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}

def equal(a, b): return all(torch.equal(a[k], b[k]) for k in a.keys() | b.keys())

# By name

EVERYTHING = ['ema', ('accumulate', dict(n=2)), ('clip_norm', dict(max_norm=1.)),
              ('early_stop', dict(monitor='valid_loss', patience=9)), ('divergence_guard', dict(patience=5)), 'csv']

def test_a_plan_with_everything_gives_the_same_weights(dls, tmp_path):
    how = dict(loss='focal', loss_args=dict(gamma=1.), label_smoothing=.1, opt='lamb', layer_decay=.8, wd=.02, mix='mixup',
               metrics=['top1', 'f1', 'balanced_accuracy'], cbs=EVERYTHING, monitor='ema_top1', keep_last=2)
    learn = make(dls, run=tmp_path/'first', **how)
    with learn.no_bar():
        learn.fine_tune(1, 2e-3, freeze_epochs=1)
        learn.fit_scheduled(2, 'multi_step', lr=1e-3, warmup_epochs=.5, milestones=[1], gamma=.5)
    plan = Run(tmp_path/'first').plan
    assert plan.replayable and plan.objective.loss == 'focal' and len(plan.callbacks) == len(EVERYTHING)
    again = learner_from_plan(replace(plan, run=str(tmp_path/'second')))
    with again.no_bar(): run_schedule(again, plan.schedule)
    assert equal(weights(learn), weights(again))
    assert equal(*(o.ema.average.module.state_dict() for o in (learn, again)))
    first, second = (Run(tmp_path/o) for o in ('first', 'second'))
    drop = lambda o: {k: v for k, v in o.items() if k not in ('time', 'seconds', 'data_wait', 'images_per_s')}
    assert [drop(o) for o in first.events('epoch')] == [drop(o) for o in second.events('epoch')]

@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('mix', [None, 'cutmix'])
def test_every_loss_trains_and_predicts_probabilities(dls, loss, mix):
    learn = make(dls, loss=loss, mix=mix)
    with learn.no_bar(): learn.fit_one_cycle(1, 2e-3)
    ev = evaluate(learn)
    assert ((ev.probs >= 0) & (ev.probs <= 1)).all() and np.isfinite(learn.recorder.values[-1]).all()

@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), LabelSmoothingCrossEntropy(), nn.functional.cross_entropy],
                         ids=['module', 'fastai', 'function'])
def test_a_loss_from_elsewhere_predicts_probabilities(dls, loss):
    learn = make(dls, loss=loss)
    with learn.no_bar(): learn.fit(1)
    assert np.allclose(evaluate(learn).probs.sum(1), 1, atol=1e-5) and learn.plan.custom == ('loss',)

@pytest.mark.parametrize('how, says', [
    (dict(loss='cros_entropy'), "loss='cros_entropy' is unknown.*Did you mean 'cross_entropy'"),
    (dict(loss='focal', loss_args=dict(gama=1)), "takes no 'gama'.*Did you mean 'gamma'"),
    (dict(opt='adamv'), "opt='adamv' is unknown.*Did you mean 'adam"),
    (dict(opt='sgd', opt_args=dict(mum=1)), "takes no 'mum'.*Did you mean 'mom'"),
    (dict(metrics=['top_1']), "'top_1' is unknown.*Did you mean 'top1'"),
    (dict(cbs='early_stopping'), "cbs='early_stopping' is unknown.*Did you mean 'early_stop'"),
    (dict(cbs=[('ema', dict(decey=.9))]), "'ema' takes no 'decey'.*It takes: decay"),
    (dict(cbs=[('accumulate', 4)]), "is no callback. Give a name such as 'ema'"),
    (dict(cbs='tensorboard'), "Give the learner a run folder with run="),
    (dict(precision='bf61'), "precision='bf61' is unknown.*Did you mean 'bf16'"),
    (dict(monitor='top_1'), "top_1.*Did you mean 'top1'"),
    (dict(loss=nn.CrossEntropyLoss(), label_smoothing=.1), "label_smoothing=0.1 goes with a name for loss"),
    (dict(layer_decay=-1), 'layer_decay=-1 is too small')], ids=lambda o: str(o)[:40])
def test_names_that_are_unknown(dls, how, says):
    with pytest.raises(InputError, match=f'(?s){says}'): make(dls, **how)

@pytest.mark.parametrize('schedule, says', [('cosin', "Did you mean 'cosine'"), ('step', 'needs')])
def test_schedules_that_cannot_be(dls, schedule, says):
    learn = make(dls)
    with pytest.raises(InputError, match=says), learn.no_bar(): learn.fit_scheduled(1, schedule)
    assert learn.plan.schedule == () and learn.plan.replayable, "what was refused is not part of the plan"

def test_every_callback_has_a_name_and_says_what_it_takes(dls):
    for name in CALLBACKS:
        with pytest.raises(InputError, match=f"'{name}' (takes no.*It takes: |needs )"): make(dls, cbs=[(name, dict(nonsense=1))])

# The run's record

def test_the_best_epoch_by_any_value(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run', monitor='valid_loss')
    with learn.no_bar(): learn.fit_one_cycle(4, 8e-3)
    losses = [o['valid_loss'] for o in learn.run_folder.events('epoch')]
    assert load_trained(tmp_path/'run').facts['epoch'] == 1 + int(np.argmin(losses))

@pytest.mark.parametrize('monitor, values, better', [
    (None, dict(top1=.5, valid_loss=2.), dict(top1=.6, valid_loss=3.)),
    (None, dict(top1=.5, valid_loss=2.), dict(top1=.5, valid_loss=1.)),
    ('valid_loss', dict(top1=.5, valid_loss=2.), dict(top1=.4, valid_loss=1.)), ('f1', dict(f1=float('nan')), dict(f1=.1))])
def test_which_epoch_is_better(monitor, values, better): assert score_of(better, monitor) > score_of(values, monitor)

def test_averaged_weights_are_judged_and_kept(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run', cbs=[('ema', dict(decay=.9))])
    with learn.no_bar(): learn.fit_one_cycle(3, 5e-3)
    assert learn.plan.monitor is None and {'ema_top1', 'ema_valid_loss'} <= set(learn.run_folder.events('epoch')[-1])
    best = load_trained(tmp_path/'run')
    if best.facts['epoch'] == 3 and 'averaged' in best.facts:
        assert equal(best.model.state_dict(), learn.ema.average.module.state_dict())
    with learn.ema.swapped(): assert evaluate(learn).top1 == pytest.approx(learn.epoch_metrics.values['ema_top1'])

def test_the_values_of_the_best_model_are_its_own(dls, tmp_path): # and go with it into a model file
    learn = make(dls, run=tmp_path/'run', cbs=[('ema', dict(decay=.5))], monitor='ema_valid_loss', precision='fp32')
    with learn.no_bar(): learn.fit_one_cycle(2, 5e-3)
    facts, ev = load_trained(tmp_path/'run').facts, evaluate(tmp_path/'run')
    assert facts['top1'] == pytest.approx(ev.top1) and facts['valid_loss'] == pytest.approx(ev.nll, rel=1e-4)
    values = learn.run_folder.history().set_index('epoch').loc[facts['epoch']]
    assert facts['valid_loss'] == values.ema_valid_loss != values.valid_loss and facts['averaged'] and 'position' not in facts

def test_the_newest_epochs_are_kept(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run', keep_last=2)
    with learn.no_bar(): learn.fit(4)
    assert sorted(o.name for o in (tmp_path/'run').glob('epoch_*')) == sorted(
        f'epoch_{n}.{part}' for n in (3, 4) for part in ('json', 'state.safetensors', 'safetensors'))

def test_every_step_is_in_the_log(dls, tmp_path):
    losses, see = [], type('See', (Callback,), dict(before_backward=lambda self: losses.append(self.loss.item())))
    learn = make(dls, run=tmp_path/'run', cbs=see())
    with learn.no_bar(): learn.fit_one_cycle(2, 4e-3)
    table = learn.run_folder.steps()
    assert table.step.tolist() == list(range(1, 2*len(dls.train) + 1)) and np.allclose(table.lr, learn.recorder.lrs, rtol=1e-5)
    assert np.allclose(table.loss, losses, rtol=1e-5) and (table.wait >= 0).all()

def test_each_class_is_in_the_log(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run')
    with learn.no_bar(): learn.fit_one_cycle(2, 4e-3)
    said, report = learn.run_folder.events('epoch')[-1]['classes'], evaluate(learn).report()
    for k in ('precision', 'recall', 'f1'): assert np.allclose(said[k], report[k][:-1], atol=1e-3)

# What a plan cannot hold is said

def test_callbacks_that_come_later_are_noted(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run')
    learn.add_cb(type('Late', (Callback,), {})())
    with learn.no_bar(): learn.fit(1)
    assert learn.plan.custom == ('callback late',) and not Run(tmp_path/'run').plan.replayable
    assert evaluate_plan(Run(tmp_path/'run').plan, tmp_path/'run/best_model').top1 >= 0, "it can be evaluated all the same"

def test_an_interrupted_fit_cannot_be_repeated(dls, tmp_path):
    class Stop(Callback):
        def after_step(self): raise KeyboardInterrupt
    learn = make(dls, run=tmp_path/'run')
    with pytest.raises(KeyboardInterrupt), learn.no_bar(): learn.fit(1, cbs=Stop())
    assert 'an interrupted fit' in Run(tmp_path/'run').plan.custom

# Time, searches, other views

def test_minutes_are_a_limit(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run')
    with learn.no_bar(): learn.fit_one_cycle(200, 1e-3, max_minutes=.03)
    assert 0 < learn.clock.epochs < 200 and 'max_minutes' in learn.plan.custom
    with learn.no_bar(): learn.fit(1)
    assert (tmp_path/'run/best_model.json').exists()

def test_a_search_while_training_is_refused(dls):
    said = []
    class Search(Callback):
        def before_step(self):
            try: self.learn.lr_find()
            except InputError as e: said.append(str(e))
    learn = make(dls)
    with learn.no_bar(): learn.fit(1, cbs=Search())
    assert said and all('is training' in o for o in said)

def test_many_looks_at_a_picture(dls):
    learn = make(dls, mix='mixup')
    with learn.no_bar(): learn.fit_one_cycle(3, 5e-3)
    before, (probs, targs) = weights(learn), learn.tta(n=2)
    assert targs.tolist() == dls.valid_ds.labels.tolist() and torch.allclose(probs.sum(1), torch.ones(len(probs)), atol=1e-5)
    assert torch.equal(probs, learn.tta(n=2)[0]) and equal(before, weights(learn)) and learn.dls.train.epoch == 2
    looks, plain, _ = learn.tta(n=2, beta=None)
    assert torch.allclose(torch.lerp(looks, plain, .25), probs) and not torch.equal(looks, plain)
    assert torch.equal(plain, learn.get_preds()[0]) and torch.equal(learn.tta(n=1, use_max=True)[0] >= plain, plain >= 0)

# Accumulation is the large batch, from end to end

def test_accumulated_batches_train_like_a_large_one(shapes):
    def trained(bs, cbs):
        dls = image_dls(shapes, size=32, bs=bs, aug='none', device='cpu', num_workers=0)
        small = dict(depth=1, embed_dim=32, num_heads=2)
        learn = image_learner(dls, 'vit_tiny_patch16_224', precision='fp32', opt='sgd', cbs=cbs, **small)
        with learn.no_bar(): learn.fit(2, .05)
        return weights(learn)
    small, large = trained(8, [Accumulate(2)]), trained(16, None)
    assert all(torch.allclose(small[k], large[k], atol=1e-5) for k in large)


# How the parts work together

def test_a_run_with_an_average_is_evaluated(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run', cbs='ema')
    with learn.no_bar(): learn.fit(1)
    assert evaluate_plan(Run(tmp_path/'run').plan, tmp_path/'run/best_model').top1 >= 0

@pytest.mark.parametrize('how', [dict(cbs=[('ema', dict(evaluate=False))]), dict(cbs='ema', metrics=['f1']), dict(metrics=[])])
def test_the_best_is_kept_without_a_word(dls, tmp_path, how):
    learn = make(dls, run=tmp_path/'run', **how)
    with learn.no_bar(): learn.fit(1)
    assert learn.plan.monitor is None and load_trained(tmp_path/'run').facts['epoch'] == 1

def test_an_error_rate_and_a_missing_value():
    assert score_of(dict(error_rate=.1), 'error_rate') > score_of(dict(error_rate=.5), 'error_rate')
    assert score_of(dict(valid_loss=2.), 'valid_loss') > score_of({}, 'valid_loss')

def test_a_search_is_not_part_of_the_plan_and_loading_is(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run', cbs='ema')
    learn.save('start') # before there is a run
    learn.lr_find(num_it=3, show_plot=False)
    assert learn.plan.replayable
    with learn.no_bar(): learn.fit(1)
    learn.load('start')
    assert learn.plan.custom == ('loaded weights',) and learn.ema.average is None

def test_a_search_that_is_interrupted_leaves_no_trace(dls):
    class Stop(Callback):
        def after_step(self):
            if self.iter == 1: raise KeyboardInterrupt
    learn = make(dls)
    learn.add_cb(stop := Stop())
    with pytest.raises(KeyboardInterrupt): learn.lr_find(num_it=5, show_plot=False)
    learn.remove_cb(stop)
    assert learn.opt is None and learn.clock.steps == 0

def test_a_fit_that_is_ended_within_an_epoch_writes_no_epoch(dls, tmp_path):
    from fastai.callback.core import CancelFitException
    class Stop(Callback):
        order = 99
        def after_batch(self):
            if self.training and self.iter == 1: raise CancelFitException
    learn = make(dls, run=tmp_path/'run')
    with learn.no_bar():
        learn.fit(1, cbs=Stop())
        learn.validate()
    assert not learn.run_folder.events('epoch') and len(learn.run_folder.steps()) == 2

def test_the_classes_of_an_epoch_are_those_of_its_own_weights(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run', cbs='ema', metrics=['f1'])
    with learn.no_bar(): learn.fit_one_cycle(2, 5e-3)
    for o in learn.run_folder.events('epoch'):
        assert np.nanmean(np.array(o['classes']['f1'], float)) == pytest.approx(o['f1'], abs=1e-3)

@pytest.mark.parametrize('how, says', [(dict(cbs=[('early_stop', dict(monitor='top_1'))]), "monitor='top_1' is unknown.*'top1'"),
                                       (dict(opt=Callback, layer_decay=.5), 'layer_decay=0.5 goes with a name for opt')])
def test_what_could_not_work_is_refused_before_training(dls, tmp_path, how, says):
    with pytest.raises(InputError, match=says): make(dls, run=tmp_path/'run', **how)
    assert not (tmp_path/'run').exists()

def test_a_callback_given_as_a_class_does_not_hide_an_interrupt(dls):
    class Stop(Callback):
        def before_step(self): raise KeyboardInterrupt
        def close(self): pass
    learn = make(dls)
    with pytest.raises(KeyboardInterrupt), learn.no_bar(): learn.fit(1, cbs=Stop)

def test_numbers_of_numpy_are_numbers_in_the_plan(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run')
    with learn.no_bar():
        learn.fit(1, lr=slice(np.float64(1e-4), np.float64(1e-3)))
        learn.fit(1, lr=np.full(len(learn.opt.hypers), 1e-3))
    assert Run(tmp_path/'run').plan.schedule[0].args['lr'] == dict(slice=[1e-4, 1e-3])
