"Trackers: what they write is what others read, they agree with the run, and they are closed whatever happens"
import csv
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from imgcls_nb.callbacks.timing import StepTimer
from imgcls_nb.callbacks.trackers import (
    TRACKERS,
    CSVTable,
    MLflow,
    TensorBoard,
    Tracker,
    WandB,
    append_row,
    hyperparameters,
    last_layer,
    make_tracker,
)
from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.learner import image_learner
from imgcls_nb.models import create_model
from imgcls_nb.runs import Run


@pytest.fixture(scope='module')
def dls(shapes): return image_dls(shapes, size=32, bs=16, aug='light', device='cpu', num_workers=0) # 3 steps an epoch

def make(dls, *cbs, **kwargs): return image_learner(dls, 'test_resnet', cbs=[StepTimer(), *cbs], **kwargs)

def fit(learn, n=2, method='fit_one_cycle', **kwargs):
    with learn.no_bar(): getattr(learn, method)(n, **kwargs)
    return learn

def read(folder): return EventAccumulator(str(folder), size_guidance=dict(scalars=0, images=0, histograms=0)).Reload()

def curve(events, tag): return {o.step: o.value for o in events.Scalars(tag)}

class Rates(Callback):
    "Loss and learning rate of every step"
    order = 71
    def __init__(self): self.losses, self.rates = [], []
    def after_batch(self):
        if self.training: self.losses.append(self.loss.item()), self.rates.append(self.opt.hypers[-1]['lr'])

# TensorBoard

def test_curves(dls, tmp_path):
    seen = Rates()
    learn = make(dls, TensorBoard(tmp_path, every=1), seen)
    fit(learn)
    first = dict(learn.epoch_metrics.values)
    fit(learn, 1)
    events, steps = read(tmp_path), range(1, 10)
    assert curve(events, 'step_loss') == pytest.approx(dict(zip(steps, seen.losses)), rel=1e-6)
    assert curve(events, 'lr') == pytest.approx(dict(zip(steps, seen.rates)), rel=1e-6)
    mean = (16*sum(seen.losses[6:8]) + 16*seen.losses[8])/48
    assert curve(events, 'train_loss')[9] == pytest.approx(mean, rel=1e-5)
    assert curve(events, 'train_top1')[9] == pytest.approx(learn.epoch_metrics.values['train_top1'])
    acc = curve(events, 'eval_acc')
    assert list(acc) == [1, 2, 3]
    assert acc[2] == pytest.approx(first['top1']) and acc[3] == pytest.approx(learn.epoch_metrics.values['top1'])
    assert curve(events, 'eval_loss')[3] == pytest.approx(learn.epoch_metrics.values['valid_loss'])
    assert curve(events, 'images_per_s')[3] == pytest.approx(learn.step_timer.values['images_per_s'])
    assert set(events.Tags()['scalars']) == {'lr', 'step_loss', 'train_loss', 'train_top1', 'eval_acc', 'eval_loss',
                                             'data_wait', 'images_per_s'}

@pytest.mark.parametrize('every, steps', [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 3, 4, 6]), (5, [3, 5, 6]), (100, [3, 6])])
def test_points(dls, tmp_path, every, steps): # and always one at the end of an epoch
    fit(make(dls, TensorBoard(tmp_path, every=every)))
    assert list(curve(read(tmp_path), 'step_loss')) == steps

def test_a_run_that_goes_on_draws_nothing_twice(dls, tmp_path):
    learn = make(dls, TensorBoard(tmp_path, every=1))
    fit(learn, 2)
    learn.clock.epochs, learn.clock.steps = 1, 3 # as if resumed from the checkpoint of the first epoch
    fit(learn, 1)
    events = read(tmp_path)
    assert [o.step for o in events.Scalars('step_loss')] == [1, 2, 3, 4, 5, 6]
    assert [o.step for o in events.Scalars('eval_acc')][0] == 1

def test_hyperparameters_are_shown(dls, tmp_path):
    fit(make(dls, TensorBoard(tmp_path), label_smoothing=.1), 1)
    assert {'_hparams_/experiment', '_hparams_/session_start_info'} <= read(tmp_path).summary_metadata.keys()

def test_more_than_curves(dls, tmp_path):
    tracker = TensorBoard(tmp_path, graph=True, samples=4, histograms=True, embedding=10)
    learn = make(dls, tracker, precision='bf16', mix='mixup')
    fit(learn)
    events = read(tmp_path)
    assert events.Tags()['graph'] and 'layer' in str(events.Graph())
    pictures = events.Images('train_batch')
    assert [o.step for o in pictures] == [0, 3] and (pictures[0].width, pictures[0].height) == (4*32, 32)
    names = {f'weights/{k}' for k, _ in learn.model.named_parameters()}
    assert set(events.Tags()['histograms']) == names and len(events.Histograms('weights/fc.weight')) == 2
    folder = next(tmp_path.rglob('tensors.tsv')).parent
    features = pd.read_csv(folder/'tensors.tsv', sep='\t', header=None)
    labels = (folder/'metadata.tsv').read_text().split()
    assert features.shape == (10, learn.model.num_features) and len(labels) == 10
    assert labels == [dls.vocab[i] for i in dls.valid_ds.labels[:10]]
    assert Image.open(folder/'sprite.png').size == (4*32, 4*32)
    assert 'sprite.png' in (tmp_path/'projector_config.pbtxt').read_text()

def test_the_features_are_what_the_head_sees(dls, tmp_path):
    learn = fit(make(dls, TensorBoard(tmp_path, embedding=12)), 1)
    got = pd.read_csv(next(tmp_path.rglob('tensors.tsv')), sep='\t', header=None).to_numpy()
    x = torch.cat([b[0] for b in learn.dls.valid])
    model = learn.model.eval()
    with torch.no_grad(): want = model.forward_head(model.forward_features(torch.as_tensor(x)), pre_logits=True)
    assert got == pytest.approx(want.numpy(), abs=1e-4)

def state(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}

@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_looking_changes_nothing(dls, tmp_path, precision):
    plain = fit(make(dls, precision=precision, drop_rate=.2))
    watched = make(dls, TensorBoard(tmp_path, 1, True, 4, True, 8), CSVTable(tmp_path/'o.csv'), precision=precision, drop_rate=.2)
    training = fit(watched).model.training
    a, b = state(plain), state(watched)
    assert all(torch.equal(a[k], b[k]) for k in a) and training == plain.model.training
    assert not any(m._forward_pre_hooks for m in watched.model.modules())

def test_a_model_that_cannot_be_drawn_is_trained(dls, tmp_path, capsys):
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
        def forward(self, x):
            if torch.jit.is_tracing(): raise TypeError('not while you look')
            return self.layer(x.mean((2, 3)))
    learn = make(dls, TensorBoard(tmp_path, graph=True), precision='fp32')
    learn.model, learn.splitter = Fickle(), lambda m: list(m.parameters())
    fit(learn, 1)
    told = capsys.readouterr().out
    assert told.count('cannot be drawn (not while you look)') == 1 and 'No graph saved' not in told

def test_weights_that_are_no_numbers(dls, tmp_path):
    learn = make(dls, TensorBoard(tmp_path, histograms=True))
    learn.remove_cb(learn.divergence_guard)
    with torch.no_grad(): learn.model.fc.weight.fill_(float('nan'))
    fit(learn, 1)
    assert 'weights/fc.weight' not in read(tmp_path).Tags()['histograms']

@pytest.mark.parametrize('arch', ['test_resnet', 'test_vit', 'convnext_atto', 'mobilenetv3_small_050', 'vgg11',
                                  'deit_tiny_distilled_patch16_224'])
def test_heads(arch):
    with torch.device('meta'): model = create_model(arch, num_classes=7)
    assert last_layer(model).out_features == 7

# In a run

def test_beside_a_run_folder(dls, tmp_path):
    run = tmp_path/'run'
    trackers = [make_tracker(o, run) for o in ('tensorboard', 'csv')]
    learn = make(dls, *trackers, run=run)
    learn.fine_tune(1, freeze_epochs=1)
    assert [o['epoch'] for o in Run(run).events('epoch')] == [1, 2]
    assert list(curve(read(run/'tensorboard'), 'eval_acc')) == [1, 2]
    table = pd.read_csv(run/'epochs.csv')
    assert table.epoch.tolist() == [1, 2] and table.step.tolist() == [3, 6]
    assert table.top1.tolist() == pytest.approx([o['top1'] for o in Run(run).events('epoch')])
    again = make(dls, *[make_tracker(o, Run(run)) for o in ('tensorboard', 'csv')], run=run)
    fit(again, 1) # the earlier run is moved aside, with what its trackers wrote
    assert len(pd.read_csv(run/'epochs.csv')) == 1 and len(pd.read_csv(tmp_path/'run-1/epochs.csv')) == 2

def test_searches_and_predictions_write_nothing(dls, tmp_path):
    learn = make(dls, TensorBoard(tmp_path/'tb', graph=True, samples=2, embedding=2), CSVTable(tmp_path/'o.csv'))
    learn.lr_find(num_it=4, show_plot=False)
    learn.get_preds()
    learn.validate()
    assert not list(tmp_path.iterdir())
    fit(learn, 1)
    files = sorted(tmp_path.rglob('*'))
    learn.validate()
    learn.lr_find(num_it=4, show_plot=False)
    assert sorted(tmp_path.rglob('*')) == files and len(pd.read_csv(tmp_path/'o.csv')) == 1

class Stop(Callback):
    order = 200
    def __init__(self, event, error, steps=4): self.event, self.error, self.steps, self.on = event, error, steps, True
    def __call__(self, event):
        if self.on and event == self.event and self.learn.clock.steps >= self.steps and self.learn.training: raise self.error

@pytest.mark.parametrize('event, steps', [('after_pred', 4), ('after_batch', 4), ('before_batch', 4)])
@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError('defect')], ids=['interrupt', 'error'])
def test_an_interrupt(dls, tmp_path, event, steps, error):
    tracker, stop = TensorBoard(tmp_path/'tb', every=1, embedding=4), Stop(event, error)
    learn = make(dls, tracker, CSVTable(tmp_path/'o.csv'), stop)
    with pytest.raises((KeyboardInterrupt, RuntimeError)): fit(learn)
    assert list(curve(read(tmp_path/'tb'), 'step_loss')) == [1, 2, 3, 4]
    assert not tracker.opened and tracker.writer.file_writer is None and not list((tmp_path/'tb').rglob('tensors.tsv'))
    stop.on = False
    fit(learn, 1)
    assert list(curve(read(tmp_path/'tb'), 'eval_acc')) == [1, 2] and len(pd.read_csv(tmp_path/'o.csv')) == 2
    assert len(list((tmp_path/'tb').rglob('tensors.tsv'))) == 1

def test_an_interrupt_with_a_tracker_of_one_fit(dls, tmp_path): # fastai takes it away before anyone can close it
    learn = make(dls, Stop('after_pred', KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): fit(learn, cbs=[TensorBoard(tmp_path, every=1)])
    assert list(curve(read(tmp_path), 'step_loss')) == [1, 2, 3, 4]

def test_a_skipped_epoch_is_none(dls, tmp_path):
    stop = Stop('after_pred', CancelEpochException)
    fit(make(dls, CSVTable(tmp_path/'o.csv'), stop))
    assert pd.read_csv(tmp_path/'o.csv').epoch.tolist() == [1]

def test_a_fit_that_is_cancelled_is_closed(dls, tmp_path):
    tracker = TensorBoard(tmp_path, every=1)
    fit(make(dls, tracker, Stop('after_batch', CancelFitException)))
    assert not tracker.opened and list(curve(read(tmp_path), 'lr')) == [1, 2, 3, 4]

def test_only_the_first_process_speaks(dls, tmp_path, monkeypatch):
    monkeypatch.setattr('imgcls_nb.callbacks.trackers.rank', lambda: 1)
    fit(make(dls, TensorBoard(tmp_path/'tb'), CSVTable(tmp_path/'o.csv')), 1)
    assert not list(tmp_path.iterdir())

def test_without_a_clock(dls, tmp_path):
    learn = make(dls, Tracker())
    learn.remove_cb(learn.epoch_metrics)
    with pytest.raises(InputError, match='Tracker takes its numbers from learn.epoch_metrics. Add Clock'): learn.fit(1)

@pytest.mark.parametrize('every', [0, -3])
def test_no_interval(every, tmp_path):
    with pytest.raises(InputError, match=f'every={every} is no number of steps'): TensorBoard(tmp_path, every)

# The table

def rows(file):
    with open(file, newline='', encoding='utf-8') as f: return list(csv.DictReader(f))

@pytest.mark.parametrize('before, row, want', [
    (None, dict(a=1, b=2), [dict(a='1', b='2')]),
    ('', dict(a=1), [dict(a='1')]),
    ('a,b\n1,2\n', dict(a=3, b=4), [dict(a='1', b='2'), dict(a='3', b='4')]),
    ('a,b\n1,2\n', dict(b=4, a=3), [dict(a='1', b='2'), dict(a='3', b='4')]), # in another order
    ('a,b\n1,2\n', dict(a=3), [dict(a='1', b='2'), dict(a='3', b='')]), # one is missing
    ('a,b\n1,2\n', dict(a=3, c=5), [dict(a='1', b='2', c=''), dict(a='3', b='', c='5')]), # one is new
    ('a,b\n1,2\n3,', dict(a=5, b=6), [dict(a='1', b='2'), dict(a='5', b='6')]), # cut short by a crash
    ('a,b\n1,2', dict(a=5, b=6), [dict(a='5', b='6')]),
    ('\ufeffa,b\r\n1,2\r\n', dict(a=3, b=4), [dict(a='1', b='2'), dict(a='3', b='4')]), # saved by a spreadsheet
    ('a\n1\n', dict(a='x, "y"'), [dict(a='1'), dict(a='x, "y"')])], ids=str)
def test_rows(tmp_path, before, row, want):
    file = tmp_path/'deep/table.csv'
    if before is not None:
        file.parent.mkdir()
        file.write_bytes(before.encode())
    append_row(file, row)
    got = [{k.lstrip('\ufeff'): v for k, v in o.items()} for o in rows(file)]
    assert got == want

def test_a_metric_more(dls, tmp_path):
    file = tmp_path/'o.csv'
    fit(make(dls, CSVTable(file)), 1)
    learn = make(dls, CSVTable(file))
    def half(pred, targ): return torch.tensor(.5)
    learn.metrics = [*learn.metrics, half]
    fit(learn, 1)
    table = pd.read_csv(file)
    assert table.half.isna().tolist() == [True, False] and table.top1.notna().all() and table.epoch.tolist() == [1, 1]

# Services, played by modules that write down how they are called

class Calls(list):
    def note(self, name, result=None):
        def call(*args, **kwargs):
            self.append((name, *args, kwargs))
            return result
        return call
    def of(self, name): return [o[1:] for o in self if o[0] == name]

@pytest.fixture
def mlflow(monkeypatch):
    calls, module = Calls(), ModuleType('mlflow')
    for o in ('set_experiment', 'log_params', 'log_dict', 'log_metrics', 'end_run'): setattr(module, o, calls.note(o))
    module.start_run = calls.note('start_run', SimpleNamespace(info=SimpleNamespace(run_id='r1')))
    module.active_run, module.calls = lambda: None, calls
    monkeypatch.setitem(sys.modules, 'mlflow', module)
    return module

@pytest.fixture
def wandb(monkeypatch):
    calls, module = Calls(), ModuleType('wandb')
    for o in ('log', 'watch', 'unwatch'): setattr(module, o, calls.note(o))
    def init(**kwargs):
        calls.append(('init', kwargs))
        module.run = SimpleNamespace(id='w1')
        return module.run
    def finish(**kwargs):
        calls.append(('finish', kwargs))
        module.run = None
    module.init, module.finish, module.run, module.calls = init, finish, None, calls
    module.config = SimpleNamespace(update=calls.note('config'))
    monkeypatch.setitem(sys.modules, 'wandb', module)
    return module

def test_mlflow(dls, mlflow, tmp_path):
    learn = make(dls, MLflow('shapes', 'first', every=2), label_smoothing=.1)
    learn.fine_tune(1, freeze_epochs=1)
    calls = mlflow.calls
    assert [o[0] for o in calls.of('start_run')] == [dict(run_id=None, run_name='first'), dict(run_id='r1', run_name='first')]
    assert calls.of('end_run') == [('FINISHED', {})]*2 and calls.of('set_experiment')[0] == ('shapes', {})
    (params, _), = calls.of('log_params') # which cannot be changed afterwards
    assert params['objective.label_smoothing'] == .1 and params['model.arch'] == 'test_resnet' and 'schedule' not in params
    assert [name for _, name, _ in calls.of('log_dict')] == ['plan.json']*2
    logged = [(how['step'], values) for values, how in calls.of('log_metrics')]
    assert [step for step, o in logged if 'step_loss' in o] == [2, 3, 4, 6]
    epochs = [(step, o['epoch'], o['top1']) for step, o in logged if 'top1' in o]
    assert [o[:2] for o in epochs] == [(3, 1), (6, 2)] and epochs[-1][2] == learn.epoch_metrics.values['top1']
    assert all(type(v) in (float, int) for _, o in logged for v in o.values())

@pytest.mark.parametrize('error, status', [(KeyboardInterrupt, 'KILLED'), (RuntimeError('defect'), 'FAILED')])
def test_mlflow_interrupted(dls, mlflow, error, status):
    learn = make(dls, MLflow(every=1), Stop('after_pred', error))
    with pytest.raises((KeyboardInterrupt, RuntimeError)): fit(learn)
    assert mlflow.calls.of('end_run') == [(status, {})] and len(mlflow.calls.of('log_metrics')) == 4 + 1

def test_a_run_of_the_users_is_left_open(dls, mlflow, wandb):
    mlflow.active_run, wandb.run = lambda: 'mine', SimpleNamespace(id='mine')
    fit(make(dls, MLflow(every=1), WandB(every=1)), 1)
    assert not mlflow.calls.of('start_run') + mlflow.calls.of('end_run') + wandb.calls.of('init') + wandb.calls.of('finish')
    assert len(mlflow.calls.of('log_metrics')) == len(wandb.calls.of('log')) == 4

def test_wandb(dls, wandb):
    learn = make(dls, WandB('shapes', 'first', every=2, watch='gradients', mode='offline'))
    learn.fine_tune(1, freeze_epochs=1)
    calls, how = wandb.calls, dict(project='shapes', name='first', mode='offline', resume='allow')
    assert [o[0] for o in calls.of('init')] == [how | dict(id=None), how | dict(id='w1')]
    assert calls.of('finish') == [({'exit_code': 0},)]*2 and len(calls.of('watch')) == len(calls.of('unwatch')) == 2
    assert calls.of('config')[0][0]['model.arch'] == 'test_resnet'
    steps = [how['step'] for _, how in calls.of('log')]
    assert steps == sorted(steps) == [2, 3, 3, 4, 6, 6], "the service takes no step back"

def test_wandb_interrupted(dls, wandb):
    learn = make(dls, WandB(), Stop('after_pred', KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): fit(learn)
    assert wandb.calls.of('finish') == [({'exit_code': 1},)]

@pytest.mark.parametrize('name', ['mlflow', 'wandb'])
def test_a_package_that_is_not_there(monkeypatch, name, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f'needs the package {name}.*pip install {name}'): make_tracker(name, tmp_path)

# By name

def test_by_name(mlflow, wandb, tmp_path):
    run = tmp_path/'birds'
    made = {o: make_tracker(o, run) for o in TRACKERS}
    assert {k: type(v) for k, v in made.items()} == TRACKERS
    assert made['tensorboard'].folder == run/'tensorboard' and made['csv'].file == run/'epochs.csv'
    assert made['mlflow'].run_name == made['wandb'].init['name'] == 'birds' and not run.exists()
    assert len({o.name for o in made.values()}) == 4

@pytest.mark.parametrize('name, says', [('tensorbord', "Did you mean 'tensorboard'"), ('visualdl', 'Use one of tensorboard, csv'),
                                        ('', 'is unknown'), (None, 'is unknown')])
def test_unknown_names(name, says):
    with pytest.raises(InputError, match=says): make_tracker(name, 'runs/a')

def test_no_run():
    with pytest.raises(InputError, match="tracker 'csv' is for a run.*run="): make_tracker('csv', None)

def test_hyperparameters(dls):
    table = hyperparameters(make(dls, mix='mixup').plan)
    assert all(type(v) in (str, int, float, bool) for v in table.values()) and 'data.vocab' not in table
    assert table['data.bs'] == 16 and 'Mixup' in table['mix'] and Path(table['data.path']).is_dir()
