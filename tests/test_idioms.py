"What a fastai user does to a learner: it does here what it does there, or says in one line what to do"
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ShowGraphCallback
from fastai.data.core import DataLoaders
from fastai.interpret import ClassificationInterpretation
from fastai.losses import LabelSmoothingCrossEntropy
from fastai.metrics import accuracy, error_rate
from fastai.optimizer import SGD, OptimWrapper
from torch import nn

from imgcls_nb.callbacks.averaging import EMA, average_weights, greedy_soup
from imgcls_nb.callbacks.distill import Distill
from imgcls_nb.callbacks.precision import Precision
from imgcls_nb.callbacks.recording import best_of
from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.export import export_onnx
from imgcls_nb.learner import image_learner, learner_from_plan, run_schedule
from imgcls_nb.models import classes_of, create_model
from imgcls_nb.plan import plan_from_yaml, plan_to_yaml
from imgcls_nb.runs import Run
from imgcls_nb.schedules import Schedule
from imgcls_nb.trained import load_trained


def load(path, **kwargs):
    return image_dls(path, **dict(size=32, bs=16, aug='none', device='cpu', num_workers=0) | kwargs)

@pytest.fixture(scope='module')
def dls(shapes): return load(shapes)

@pytest.fixture(scope='module')
def renamed(shapes, tmp_path_factory): # the same pictures; circle, square, triangle are now c, b, a
    folder = tmp_path_factory.mktemp('renamed')
    for new, old in zip('cba', ('circle', 'square', 'triangle')): shutil.copytree(shapes/old, folder/new)
    return folder

@pytest.fixture(scope='module')
def reordered_run(trained_run, tmp_path_factory): # the run with its classes named so that they come in another order
    folder = tmp_path_factory.mktemp('runs')/'renamed'
    shutil.copytree(trained_run, folder)
    text = (folder/'config.yaml').read_text()
    for new, old in zip('cba', ('circle', 'square', 'triangle')): text = text.replace(f'- {old}\n', f'- {new}\n')
    (folder/'config.yaml').write_text(text)
    return folder

def make(dls, arch='test_resnet', **kwargs): return image_learner(dls, arch, **kwargs)

def fit(learn, n=1, lr=1e-3, **kwargs):
    with learn.no_bar(): learn.fit(n, lr, **kwargs)
    return learn

def top1(learn):
    with learn.no_bar(): return dict(zip(['loss', *(o.name for o in learn.metrics)], learn.validate()))['top1']

# Classes go by their names

def test_weights_of_a_run_follow_the_names(shapes, renamed, trained_run, reordered_run, capsys):
    assert classes_of(trained_run) == ('circle', 'square', 'triangle') and classes_of(reordered_run) == ('c', 'b', 'a')
    plain = make(load(shapes), pretrained=trained_run)
    assert 'another order' not in capsys.readouterr().out
    put_in_order = make(load(renamed), pretrained=reordered_run)
    assert capsys.readouterr().out.count('the same classes in another order') == 1
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad(): a, b = (o.model.eval()(x) for o in (plain, put_in_order))
    assert torch.equal(a, b[:, [2, 1, 0]]) and top1(put_in_order) > .8

def test_other_classes_get_a_new_head(renamed, trained_run, capsys):
    make(load(renamed), pretrained=trained_run)
    out = capsys.readouterr().out
    assert "other classes, such as 'circle'" in out and 'the head (fc.weight, fc.bias) is new' in out

def test_a_foreign_config_beside_weights_says_nothing(trained_run, tmp_path, capsys):
    shutil.copy(trained_run/'best_model.safetensors', tmp_path)
    (tmp_path/'config.yaml').write_text('Global: {epochs: 3}')
    assert classes_of(tmp_path/'best_model') == ()
    assert "Which classes best_model.safetensors was trained on is not known" in capsys.readouterr().out

def teachers(learn, run, model_file):
    best = run/'best_model'
    return dict(learner=learn, run=run, best=best, file=best.with_suffix('.safetensors'), text=str(run), onnx=model_file)

@pytest.mark.parametrize('kind', ['learner', 'run', 'best', 'file', 'text', 'onnx'])
def test_every_kind_of_teacher(dls, trained_run, model_file, kind, capsys):
    teacher = teachers(make(dls, pretrained=trained_run), trained_run, model_file)[kind]
    learn = make(dls, cbs=('distill', dict(teacher=teacher)))
    assert learn.plan.replayable == (kind != 'learner') and tuple(learn.distill.vocab) == ('circle', 'square', 'triangle')
    fit(learn)
    assert 'another order' not in capsys.readouterr().out and learn.distill.columns is None

def test_a_teacher_with_its_classes_in_another_order(renamed, reordered_run, capsys):
    learn = make(load(renamed), cbs=Distill(reordered_run))
    fit(fit(learn))
    assert capsys.readouterr().out.count('its answers are put in the order of the data') == 1
    x, y = learn.dls.valid.one_batch()
    assert (learn.distill.ask(x).argmax(1) == y).float().mean() > .8

def test_a_teacher_of_other_classes_is_refused(renamed, trained_run):
    with pytest.raises(InputError, match='only the teacher has circle, square, triangle; only the student has a, b, c'):
        fit(make(load(renamed), cbs=Distill(trained_run)))

@pytest.mark.parametrize('args, says', [(dict(teacher='/nowhere'), "no teacher at '/nowhere'"), ({}, "needs teacher"),
    (dict(teacher=5), 'cannot be asked'), (dict(loss='dkd'), "said by kind: 'kl' or 'dkd'"),
    (dict(kind='kld'), "Did you mean 'kl'")])
def test_a_distillation_that_cannot_be(dls, trained_run, args, says):
    args = args if 'teacher' in args or not args else dict(teacher=str(trained_run)) | args
    with pytest.raises(InputError, match=says): make(dls, cbs=('distill', args))

def test_layers_that_are_compared_stay_out_of_the_model_file(dls, trained_run, tmp_path):
    plain, learn = make(dls), make(dls, cbs=('distill', dict(teacher=str(trained_run), kind='mgd')))
    fit(learn)
    assert {*learn.distill.beside.parameters()} <= {*learn.parameters()} and [*plain.parameters()] == [*plain.model.parameters()]
    plain.model.load_state_dict(learn.model.state_dict())
    files = [tmp_path/'plain.onnx', tmp_path/'distilled.onnx']
    for o, file in zip((plain, learn), files): export_onnx(o, file)
    held = [{o.name: tuple(o.dims) for o in onnx.load(file).graph.initializer} for file in files]
    assert held[0] == held[1] and files[1].stat().st_size < files[0].stat().st_size + 4096

# What is exchanged

def test_larger_pictures_keep_the_normalization(shapes, tmp_path):
    learn = fit(make(load(shapes, size=24), run=tmp_path/'run'))
    before = learn.preprocess
    learn.dls = load(shapes, size=32, bs=8)
    assert learn.preprocess == before.resized((32, 32)) and learn.preprocess.mean == before.mean != (.485, .456, .406)
    assert learn.plan.data.size == (32, 32) and learn.plan.data.bs == 8
    assert learn.plan.custom == ('other data after training',) and fit(learn).recorder.values

def test_other_data_before_training_are_the_plans(shapes, tmp_path):
    learn = make(load(shapes, size=24))
    learn.dls = load(shapes, size=32)
    fit(learn)
    assert learn.plan.replayable
    again = learner_from_plan(plan_from_yaml(plan_to_yaml(learn.plan)))
    with again.no_bar(): run_schedule(again, learn.plan.schedule)
    assert all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), again.model.state_dict().values()))

def test_what_does_not_fit_the_network_is_refused(shapes, renamed):
    learn = make(load(shapes))
    own = learn.dls
    with pytest.raises(InputError, match='mean .*circle.*new data have .*a'): learn.dls = load(renamed)
    with pytest.raises(InputError, match='Make it with image_dls'): learn.dls = DataLoaders(own.train, own.valid)
    with pytest.raises(InputError, match='multiple of it. Take size=.96, 96. or .112, 112.'):
        create_model('vit_tiny_patch16_224', size=100, num_classes=2)
    assert learn.dls is own and learn.plan.replayable

def new_head(learn): learn.model.fc = nn.Linear(learn.model.fc.in_features, 3)
EXCHANGES = dict(loss_func=lambda learn: setattr(learn, 'loss_func', nn.CrossEntropyLoss(label_smoothing=.1)),
                 opt_func=lambda learn: setattr(learn, 'opt_func', SGD),
                 metrics=lambda learn: setattr(learn, 'metrics', [accuracy]),
                 train_bn=lambda learn: setattr(learn, 'train_bn', False), layers=new_head)

@pytest.mark.parametrize('what', EXCHANGES)
@pytest.mark.parametrize('trained', [False, True])
def test_a_plan_notices_what_was_exchanged(dls, what, trained):
    learn = make(dls)
    if trained: fit(learn)
    EXCHANGES[what](learn)
    fit(learn)
    assert learn.plan.custom == (dict(layers='replaced layers').get(what, what),)
    with learn.no_bar(): assert learn.get_preds()[0].sum(1).allclose(torch.ones(12))

def test_a_new_head_is_trained_by_a_new_optimizer(dls, capsys):
    learn = fit(make(dls))
    new_head(learn)
    before = learn.model.fc.weight.clone()
    fit(learn)
    assert not torch.equal(before, learn.model.fc.weight) and 'the optimizer is made anew' in capsys.readouterr().out

def test_a_new_optimizer_function_takes_effect(dls):
    learn = fit(make(dls))
    learn.opt_func = torch.optim.SGD
    assert isinstance(fit(learn).opt, OptimWrapper) and isinstance(learn.opt.opt, torch.optim.SGD)

# Number formats

def conv(learn): return next(o for o in learn.model.parameters() if o.ndim == 4 and o.shape[1] > 1 and o.shape[2] > 1)

def formats(learn): return [type(o) for o in learn.cbs if isinstance(o, (Precision, MixedPrecision))]

def test_switching_the_number_format(dls):
    learn = make(dls, precision='bf16')
    assert learn.to_fp32() is learn and formats(learn) == [] and learn.plan.precision == 'fp32'
    learn.to_bf16().to_bf16()
    assert formats(learn) == [Precision] and learn.plan.precision == 'bf16' and fit(learn).plan.replayable
    with pytest.raises(InputError, match='fp16 needs a CUDA device'): learn.to_fp16()
    with pytest.raises(InputError, match='fp16 needs a CUDA device'): learn.to_channelslast(use_amp=True)
    assert formats(learn) == [Precision] and fit(learn.to_fp32()).plan.custom == ('another number format',)

def test_switching_the_memory_format(dls):
    learn = make(dls, precision='fp32', channels_last=False)
    learn.to_channelslast()
    assert learn.plan.channels_last and conv(learn).is_contiguous(memory_format=torch.channels_last)
    assert formats(learn) == [] and fit(learn.to_channelslast(use_amp=True, amp_mode='bf16')).plan.precision == 'bf16'
    assert learn.to_contiguous(to_fp32=True).plan.precision == 'fp32' and conv(learn).is_contiguous()

# fastai's methods and callbacks

def test_interpretation_shows_pictures(dls, trained_run):
    learn = make(dls, pretrained=trained_run)
    with learn.no_bar():
        seen = ClassificationInterpretation.from_learner(learn)
        seen.plot_top_losses(4)
        seen.show_results([0, 1])
        seen.plot_confusion_matrix()

def test_labels_of_known_pictures(dls, trained_run, shapes, tmp_path):
    learn = make(dls, pretrained=trained_run)
    with learn.no_bar(): assert learn.validate(dl=learn.dls.test_dl(dls.valid_ds.items, with_labels=True)) == learn.validate()
    shutil.copy(shapes/'square/007.png', tmp_path)
    with pytest.raises(InputError, match='1 of 1 pictures are not of these data'): dls.test_dl(tmp_path, with_labels=True)

def test_a_pickle_is_not_written(dls, tmp_path):
    with pytest.raises(InputError, match='export_onnx'): make(dls).export(tmp_path/'x.pkl')

def test_what_to_use_for_the_graph(dls):
    with pytest.raises(InputError, match='plot_loss'): fit(make(dls), cbs=ShowGraphCallback())

def test_a_search_leaves_no_folder(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run')
    with learn.no_bar(): learn.lr_find(num_it=5, show_plot=False)
    assert not (tmp_path/'run').exists()

def test_cycles_are_noted_and_limited(dls):
    learn = make(dls)
    with learn.no_bar():
        learn.fit_sgdr(2, 1, 1e-3)
        learn.fit_sgdr(1, 2, 1e-3, max_minutes=5)
    assert learn.plan.schedule[0].args == dict(n_cycles=2, cycle_len=1, lr_max=1e-3)
    assert learn.plan.epochs == 5 == learn.clock.epochs
    assert learn.plan.custom == ('max_minutes',)

def test_weights_of_another_network(dls, tmp_path):
    make(dls).save(tmp_path/'a')
    with pytest.raises(InputError, match='cannot be loaded into this test_vit: ') as e: make(dls, 'test_vit').load(tmp_path/'a')
    assert len(str(e.value)) < 1000
    with pytest.raises(InputError, match='cannot be loaded'): make(dls).load(tmp_path/'none')

@pytest.mark.parametrize('write, says', [
    (lambda file: torch.save(dict(model=Hostile(), opt=None), file), r'it wants to run (posix|nt)\.system'),
    (lambda file: file.write_text('notes'), 'it is cut short, or torch has not written it')], ids=['hostile', 'text'])
def test_weights_that_are_none(dls, tmp_path, write, says):
    write(tmp_path/'a.pth')
    with pytest.raises(InputError, match=rf"a' cannot be loaded into this test_resnet: {says}\.$"): make(dls).load(tmp_path/'a')

class Hostile:
    def __reduce__(self): return os.system, ('true',)

# Counts of classes, sizes of batches

@pytest.mark.parametrize('n', [2, 7])
@pytest.mark.parametrize('how', ['fit', 'lr_find'])
def test_a_head_of_another_size_does_not_train(dls, n, how):
    learn = make(dls, loss=nn.CrossEntropyLoss(), metrics=[])
    learn.model.fc = nn.Linear(learn.model.fc.in_features, n)
    with pytest.raises(InputError, match=f'gives {n} outputs, and the data have 3 classes: circle'), learn.no_bar():
        getattr(learn, how)(*[1] if how == 'fit' else [])

def test_a_batch_larger_than_the_set_is_said_once(shapes, capsys):
    learn = fit(fit(make(load(shapes, bs=500))))
    assert capsys.readouterr().out.count('bs=500 is more than the 48 training pictures') == 1 and learn.clock.steps == 2

def test_a_batch_of_one_picture(shapes):
    with pytest.raises(InputError, match='bs=1 there is nothing to compare'): fit(make(load(shapes, bs=1)))

@pytest.mark.parametrize('weight, want', [([1, 2, 3], [1, 2, 3]), (dict(square=2), [1, 2, 1]),
                                          (torch.ones(3), [1, 1, 1])], ids=str)
def test_class_weights(dls, weight, want):
    learn = fit(make(dls, loss_args=dict(weight=weight, label_smoothing=.1)))
    assert learn.loss_func.weight.tolist() == want and learn.loss_func.label_smoothing == .1
    again = learner_from_plan(plan_from_yaml(plan_to_yaml(learn.plan)))
    assert again.loss_func.weight.tolist() == want and again.plan.objective.label_smoothing == .1

def test_class_weights_of_a_loss_from_elsewhere(dls):
    with pytest.raises(InputError, match='2 class weights, and the data have 3 classes'):
        fit(make(dls, loss=nn.CrossEntropyLoss(weight=torch.ones(2))))

# Which epoch was the best

def my_spread(probs, targ): return probs.float().softmax(1).gather(1, targ[:, None]).mean()

@pytest.mark.parametrize('mode', ['min', 'max'])
def test_the_direction_of_a_metric_of_ones_own(dls, tmp_path, mode):
    learn = fit(make(dls, run=tmp_path/'run', metrics=[my_spread], monitor='my_spread', monitor_mode=mode), 3)
    values = [o['my_spread'] for o in learn.run_folder.events('epoch')]
    assert load_trained_epoch(tmp_path/'run') == 1 + int(getattr(np, f'arg{mode}')(values)) and len(set(values)) == 3

def load_trained_epoch(run):
    text = (run/'best_model.json').read_text()
    facts = json.loads(text)
    return facts.get('facts', facts)['epoch']

@pytest.mark.parametrize('values, averaged', [
    (dict(top1=.9, valid_loss=1., ema_top1=.5, ema_valid_loss=.5), False), (dict(top1=.9, valid_loss=1., ema_top1=.95), True),
    (dict(top1=.9, valid_loss=1., ema_top1=.9, ema_valid_loss=.9), True), (dict(top1=.9, valid_loss=1.), False),
    (dict(valid_loss=1., ema_valid_loss=2.), False)], ids=str)
def test_the_better_of_two_networks(values, averaged): assert best_of(values)[1] == averaged

def test_an_average_that_is_far_behind_is_not_the_best_model(dls, tmp_path, capsys):
    learn = make(dls, run=tmp_path/'run', cbs=('ema', dict(decay=.9999, warmup=0)))
    with learn.no_bar(): learn.fit_one_cycle(8, 1e-2)
    out = capsys.readouterr().out
    assert 'EMA: the averaged weights are far behind' in out and "cbs=('ema', dict(decay=0.583))" in out
    assert 'best_model has the plain weights of epoch' in out
    best = load_trained(tmp_path/'run')
    assert best.facts['top1'] > best.facts['ema_top1'] + .2

def test_too_few_epochs_to_average(dls, capsys):
    fit(make(dls, cbs='swa'), 3)
    assert 'SWA: nothing was averaged, for one epoch of 3 came after start=0.75' in capsys.readouterr().out
    fit(make(dls, cbs='swa'), 8)
    assert 'mean of 2 epochs' in capsys.readouterr().out

# Soups of a run

def test_a_soup_of_a_run_folder(dls, tmp_path):
    learn = fit(make(dls, run=tmp_path/'run'), 3)
    soup = greedy_soup(learn, tmp_path/'run', 'top1')
    assert len(soup.alone) == 3 and all('epoch_' in o and '.opt' not in o for o, _ in soup.alone)
    files = sorted((tmp_path/'run').glob('epoch_*.safetensors'))
    assert all(torch.equal(v, average_weights(files)[k]) for k, v in average_weights(str(tmp_path/'run')).items())
    with pytest.raises(InputError, match='no run folder with epochs'): average_weights(tmp_path)

# Words and nonsense

@pytest.mark.parametrize('kwargs, says', [
    (dict(loss_func=1), 'word for it is loss'), (dict(opt_func=SGD), 'word for it is opt'), (dict(metric='f1'), 'is metrics'),
    (dict(callbacks='ema'), 'is cbs'), (dict(lr=1), 'learn.fit_one_cycle'), (dict(moms=(.9, .8, .9)), 'learn.fit_one_cycle'),
    (dict(path='x'), 'is run'), (dict(model_dir='x'), 'is run'), (dict(n_out=3), 'data say'), (dict(num_classes=5), 'data say'),
    (dict(size=32), r'image_dls\(…, size'), (dict(device='cpu'), r'image_dls\(…, device'),
    (dict(splitter=None), 'no such choice'), (dict(train_bn=True), 'always trained'),
    (dict(monitr='top1'), "Did you mean 'monitor'"), (dict(mettrics=None), "'metrics'"),
    (dict(pretrained=''), 'names no weights'), (dict(pretrained=None), 'names no weights'), (dict(channels_last='yes'), "'auto'"),
    (dict(precision='fp8'), 'Use one of auto'), (dict(precision=torch.float64), 'Use one of auto'),
    (dict(layer_decay=1.7), 'at most 1'), (dict(wd=-1), 'at least 0'),
    (dict(label_smoothing=.1, loss_args=dict(label_smoothing=.2)), 'differ'),
    (dict(loss_args=dict(weight=[1, 2])), '2 numbers, and there are 3 classes'), (dict(monitor='acc'), "'top1'"),
    (dict(monitor='val_loss'), "'valid_loss'"), (dict(monitor_mode='up'), "'min' or 'max'"), (dict(opt=5), 'makes no optimizer'),
    (dict(cbs='mixup'), "mix='mixup'"), (dict(cbs='cosine'), "fit_scheduled"), (dict(cbs=['ema', 'EMA']), 'there twice'),
    (dict(cbs=['ema', EMA()]), 'there twice'),
    (dict(cbs='accumulate'), r"dict\(n=2\)"), (dict(cbs=('ema', dict(dcay=.9))), "'decay'"),
    (dict(cbs=('early_stop', dict(metric='top1'))), "'monitor'"),
    (dict(cbs=('early_stop', dict(patience='x'))), 'no number of epochs'),
    (dict(cbs=('ema', dict(decay='x'))), 'no share'), (dict(cbs=('swa', dict(start='x'))), 'no share'),
    (dict(cbs=5), 'no callback'),
    (dict(loss=nn.CrossEntropyLoss(reduction='none')), "reduction='mean'")], ids=lambda o: str(o).partition(' at 0x')[0])
def test_what_is_refused_by_name(dls, kwargs, says):
    with pytest.raises(InputError, match=says): make(dls, **kwargs)

@pytest.mark.parametrize('call, says', [
    (lambda o: o.fit(0), 'n_epoch=0'), (lambda o: o.fit(1.5), 'whole number'), (lambda o: o.fine_tune('3'), "epochs='3'"),
    (lambda o: o.fit(1, 0), 'no learning rate'), (lambda o: o.fit_one_cycle(1, -1e-3), 'no learning rate'),
    (lambda o: o.fit_one_cycle(1, slice(1e-3, 0)), 'no learning rate'), (lambda o: o.fit(1, 'fast'), 'no learning rate'),
    (lambda o: o.fit_scheduled(3, 'step'), 'needs step_epochs, such as step_epochs=30'),
    (lambda o: o.tta(n=0), 'no number of looks'),
    (lambda o: o.fit_scheduled(3, 'cosine_annealing', 1e-3), "Did you mean 'cosine'")])
def test_what_no_fit_can_be(dls, call, says):
    learn = make(dls)
    with pytest.raises(InputError, match=says): call(learn)
    assert learn.plan.schedule == () and learn.clock.steps == 0

def test_data_and_networks_of_another_kind(dls):
    with pytest.raises(InputError, match='what image_dls makes'): image_learner(SimpleNamespace(c=3), 'test_resnet')
    with pytest.raises(InputError, match="arch is Linear, and not a name"): image_learner(dls, nn.Linear)

def test_late_events_are_said(dls, capsys):
    learn = make(dls)
    with learn.no_bar():
        learn.fit_scheduled(1, 'Cosine', 1e-3, warmup_epochs=3)
        learn.fit_scheduled(1, 'multi_step', 1e-3, milestones=[30, 60])
    out = capsys.readouterr().out
    assert 'warm-up is longer than the training, 9 steps of 3' in out and 'before it comes to 30, 60' in out

def test_none_means_the_default(dls):
    learn = make(dls, loss=None, opt=None)
    assert learn.plan == make(dls).plan and learn.plan.replayable
    with pytest.raises(InputError, match='is unknown'): Schedule(None)

def test_no_metrics_at_all(dls, tmp_path):
    learn = fit(make(dls, metrics=[], run=tmp_path/'run'))
    assert list(learn.epoch_metrics.values) == ['train_loss', 'valid_loss', 'train_top1'] and learn.plan.metrics == ()
    assert Run(tmp_path/'run').plan.metrics == () and list(learner_from_plan(learn.plan).metrics) == []

def each_class(probs, targ): return torch.ones(3)

def test_a_metric_that_is_no_number_is_named(dls):
    with pytest.raises(InputError, match="metric 'each_class' gives Tensor"): fit(make(dls, metrics=['top1', each_class]))

def test_objects_go_beside_names(dls):
    learn = fit(make(dls, metrics=['top1', error_rate], opt=torch.optim.AdamW, loss=LabelSmoothingCrossEntropy()))
    assert learn.plan.custom == ('loss', 'opt', 'metrics') and isinstance(learn.opt.opt, torch.optim.AdamW)

def test_trackers_by_name_take_arguments(dls, tmp_path):
    learn = make(dls, run=tmp_path/'run', cbs=[('TensorBoard', dict(every=2, histograms=True)), 'csv'])
    assert (learn.tensorboard.every, learn.tensorboard.histograms) == (2, True) and learn.plan.replayable
    with pytest.raises(InputError, match="Did you mean 'histograms'"):
        make(dls, run=tmp_path/'other', cbs=('tensorboard', dict(histogram=True)))
