"Training: what repeats, what is written, what survives an interrupt, and what a fastai user expects"
import gc
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from PIL import Image

from imgcls_nb.callbacks.precision import describe_hardware
from imgcls_nb.checkpoints import sha256
from imgcls_nb.core import InputError, list_images, open_image
from imgcls_nb.data import image_dls
from imgcls_nb.datasets import make_shapes
from imgcls_nb.learner import image_learner, learner_from_plan, run_schedule
from imgcls_nb.plan import FitPlan, plan_from_yaml, plan_to_dict, plan_to_yaml
from imgcls_nb.runs import Run
from imgcls_nb.trained import TorchPredictor, load_trained


@pytest.fixture(scope='module')
def dls(shapes): return image_dls(shapes, size=32, bs=16, aug='light', device='cpu', num_workers=0)

@pytest.fixture
def learn(dls): return image_learner(dls, 'test_resnet')

def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}

def equal(a, b): return all(torch.equal(a[k], b[k]) for k in a.keys() | b.keys())

def finite(learn): return all(v.isfinite().all() for v in learn.model.state_dict().values())

# A plan, replayed

REPLAY = """
import sys
from dataclasses import replace
from imgcls_nb.learner import learner_from_plan, run_schedule
from imgcls_nb.checkpoints import sha256
from imgcls_nb.runs import Run
plan = Run(sys.argv[1]).plan
learn = run_schedule(learner_from_plan(replace(plan, run=sys.argv[2])), plan.schedule)
print(sha256(f'{sys.argv[2]}/latest.safetensors'))
"""

def test_a_plan_gives_the_same_weights_in_a_new_process(dls, tmp_path):
    how = dict(label_smoothing=.1, opt='sgd', opt_args=dict(mom=.8), drop_rate=.2)
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'first', **how)
    learn.fine_tune(1, 2e-3, freeze_epochs=1)
    learn.fit_scheduled(1, lr=1e-3, warmup_epochs=.5)
    done = subprocess.run([sys.executable, '-c', REPLAY, tmp_path/'first', tmp_path/'second'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == sha256(tmp_path/'first/latest.safetensors')
    first, second = (Run(tmp_path/o) for o in ('first', 'second'))
    assert plan_to_dict(replace(first.plan, run=None)) == plan_to_dict(replace(second.plan, run=None))
    assert [o['train_loss'] for o in first.events('epoch')] == [o['train_loss'] for o in second.events('epoch')]

def test_seeds_matter(shapes):
    a, b = (image_learner(image_dls(shapes, size=32, seed=o, device='cpu'), 'test_resnet') for o in (1, 2))
    assert not equal(weights(a), weights(b))

@pytest.mark.parametrize('method, says', [('fit_one_cicle', "Did you mean 'fit_one_cycle'"), ('__init__', 'Use one of fit, ')])
def test_unknown_method_of_a_plan(learn, method, says):
    with pytest.raises(InputError, match=f"'{method}' is unknown.*{says}"): run_schedule(learn, [FitPlan(method)])

@pytest.mark.parametrize('given, name', [
    (dict(loss=CrossEntropyLossFlat()), 'loss'), (dict(opt=Adam), 'opt'), (dict(metrics=[accuracy]), 'metrics'),
    (dict(cbs=[Callback()]), 'cbs')],
    ids=lambda o: str(o)[:8])
def test_objects_make_a_plan_that_cannot_be_replayed(dls, tmp_path, given, name):
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run', **given)
    assert learn.plan.custom == (name,) and not learn.plan.replayable
    with learn.no_bar(): learn.fit(1)
    with pytest.raises(InputError, match=f'cannot be replayed: {name} were objects'): learner_from_plan(learn.run_folder.plan)

def test_callbacks_of_a_fit_cannot_be_replayed(learn):
    assert learn.plan.replayable
    with learn.no_bar(): learn.fit(1, cbs=Callback())
    assert learn.plan.custom == ('cbs',) and learn.plan.schedule == (FitPlan('fit', dict(n_epoch=1)),)

# Learners side by side

def test_learners_on_the_same_loaders_are_independent(dls):
    before = dls.preprocess
    a, b = image_learner(dls, 'test_resnet'), image_learner(dls, 'mobilenetv3_small_050')
    assert a.preprocess.mean == (.5,)*3 and b.preprocess.mean == (.485, .456, .406) and dls.preprocess == before
    x = a.dls.train.one_batch()[0]
    with b.no_bar(): b.fit(2)
    assert torch.equal(a.dls.train.one_batch()[0], x), "the other's epochs are not ours"
    twin = image_learner(dls, 'test_resnet')
    for o in (a, twin):
        with o.no_bar(): o.fit(1)
    assert equal(weights(a), weights(twin))

@pytest.mark.parametrize('classes, names', [(2, ['top1']), (5, ['top1']), (6, ['top1', 'top5'])])
def test_top5_is_for_more_than_five_classes(shapes, tmp_path, classes, names):
    for i in range(classes): shutil.copytree(shapes/'circle', tmp_path/str(i), ignore=lambda _, names: sorted(names)[4:])
    learn = image_learner(image_dls(tmp_path, size=32, valid=.5, device='cpu'), 'test_resnet')
    assert [o.name for o in learn.metrics] == names
    with learn.no_bar(): assert len(learn.validate()) == 1 + len(names)

def test_classes_that_do_not_fit(dls, learn):
    plan = replace(learn.plan, model=replace(learn.plan.model, num_classes=7))
    with pytest.raises(InputError, match='7 outputs, but the data have 3 classes'): learner_from_plan(plan)

@pytest.mark.parametrize('given, says', [
    (dict(loss='cross_entropi'), "loss='cross_entropi' is unknown.*Did you mean 'cross_entropy'"),
    (dict(opt='adamv'), "opt='adamv' is unknown.*Did you mean .*'adamw'"), (dict(opt=''), "opt='' is unknown"),
    (dict(precision='bf61'), "precision='bf61' is unknown.*Did you mean 'bf16'"),
    (dict(precision='fp16'), 'fp16 needs a CUDA device'),
    (dict(arch='test_resnot'), "Did you mean .*'test_resnet'"), (dict(opt_args=dict(momentum=.9)), 'momentum'),
    (dict(pretrained='nowhere.pth'), "no weights at 'nowhere.pth'")], ids=str)
def test_unknown_names(dls, given, says):
    with pytest.raises(InputError, match=says): image_learner(dls, given.pop('arch', 'test_resnet'), **given)

def test_a_last_batch_of_one_picture(shapes):
    dls = image_dls(shapes, size=32, bs=47, device='cpu', num_workers=0)
    learn = image_learner(dls, 'test_resnet')
    with learn.no_bar(): learn.fit(1)
    assert finite(learn) and learn.clock.steps in (1, 2)

# Precision

def test_precisions(dls):
    losses = {}
    for precision, kind in (('fp32', torch.float32), ('bf16', torch.bfloat16)):
        learn, seen = image_learner(dls, 'test_resnet', precision=precision), set()
        learn.model.fc.register_forward_hook(lambda module, x, out, seen=seen: seen.add(out.dtype))
        with learn.no_bar(): learn.fit_one_cycle(1, 1e-3)
        assert seen == {kind} and {p.dtype for p in learn.model.parameters()} == {torch.float32}
        assert finite(learn) and 'forward' not in vars(learn.model)
        losses[precision] = learn.recorder.values[-1]
    assert losses['fp32'] != losses['bf16'] and np.allclose(losses['fp32'][:2], losses['bf16'][:2], atol=.1)

def test_freezing_is_part_of_the_plan(dls):
    learn = image_learner(dls, 'test_resnet')
    learn.freeze()
    with learn.no_bar(): learn.fit(1, 1e-3)
    learn.unfreeze()
    frozen, fit, free = learn.plan.schedule
    assert (frozen, free) == (FitPlan('freeze_to', dict(n=-1)), FitPlan('freeze_to', dict(n=0)))
    assert fit == FitPlan('fit', dict(n_epoch=1, lr=1e-3))
    again = run_schedule(learner_from_plan(learn.plan), learn.plan.schedule)
    assert equal(weights(learn), weights(again))

# Label mixing

@pytest.mark.parametrize('mix', ['mixup+cutmix', [('FMix', dict(prob=.7)), ('mixup', dict(alpha=1, prob=.2))]], ids=str)
def test_mixing_is_part_of_the_plan(dls, mix):
    learn = image_learner(dls, 'test_resnet', mix=mix, label_smoothing=.1)
    with learn.no_bar(): learn.fine_tune(1, 2e-3)
    plan = plan_from_yaml(plan_to_yaml(learn.plan))
    assert learn.mix_batch.mixer.seed == dls.plan.seed
    assert learn.plan.replayable and [o for o, _ in plan.mix] == [o for o, _ in learn.mix_batch.mixer.ops]
    again, plain = learner_from_plan(plan), learner_from_plan(replace(plan, mix=()))
    for o in (again, plain):
        with o.no_bar(): run_schedule(o, plan.schedule)
    assert equal(weights(learn), weights(again)) and plan_to_dict(again.plan) == plan_to_dict(learn.plan)
    assert not equal(weights(learn), weights(plain)) and not hasattr(plain, 'mix_batch')
    assert again.epoch_metrics.values == learn.epoch_metrics.values

def test_validation_is_by_plain_labels(dls):
    learn = image_learner(dls, 'test_resnet', label_smoothing=.4, precision='fp32', cbs='ema')
    with learn.no_bar(): learn.fit(1, 1e-3)
    probs, targs = learn.get_preds()
    plain = F.nll_loss(probs.log(), targs).item()
    assert learn.validate()[0] == pytest.approx(plain, rel=1e-4) == learn.epoch_metrics.values['valid_loss']
    assert learn.get_preds(with_loss=True)[2].mean().item() == pytest.approx(plain, rel=1e-4)
    assert learn.loss_func.training, "what is trained on is smoothed"

def test_mixing_in_a_run(dls, tmp_path):
    learn, twin = (image_learner(dls, 'test_resnet', mix='cutmix', run=tmp_path/o) for o in ('run', 'twin'))
    learn.lr_find(num_it=6, show_plot=False)
    for o in (learn, twin):
        with o.no_bar(): o.fit(2)
    assert equal(weights(learn), weights(twin)), "the search left no trace"
    assert learn.run_folder.history().train_top1.tolist() == twin.run_folder.history().train_top1.tolist()
    assert learn.run_folder.plan.mix == (['CutMix', dict(alpha=1., prob=1.)],)

@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'after_step', 'before_validate'])
def test_an_interrupt_while_mixing(dls, event):
    learn = image_learner(dls, 'test_resnet', mix='mixup', precision='bf16')
    loss = learn.loss_func
    with pytest.raises(KeyboardInterrupt), learn.no_bar(): learn.fit(2, cbs=[Stop(event, KeyboardInterrupt())])
    assert learn.loss_func is loss and learn.mix_batch.mixed.op is None
    with learn.no_bar(): learn.fit(1)
    assert finite(learn) and learn.predict(dls.valid_ds.items[0])[0] in dls.vocab

def test_unknown_mixing(dls):
    says = "'mixop' is unknown.*Did you mean 'Mixup'"
    with pytest.raises(InputError, match=says): image_learner(dls, 'test_resnet', mix='mixop')

# Interrupts

class Stop(Callback):
    def __init__(self, event, error): self.event, self.error, self.on = event, error, True
    def __call__(self, event):
        if self.on and event == self.event and (self.learn.iter >= 1 or 'epoch' in event): raise self.error

@pytest.mark.parametrize('method, event', [
    ('fit_one_cycle', 'before_batch'), ('fit_one_cycle', 'after_pred'), ('fit_one_cycle', 'after_step'),
    ('fit_one_cycle', 'after_epoch'),
    ('fine_tune', 'after_pred'), ('fit_scheduled', 'after_backward'), ('fit', 'before_validate')])
@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError('defect')], ids=['interrupt', 'error'])
def test_an_interrupt_leaves_a_usable_learner(dls, tmp_path, method, event, error):
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run', precision='bf16')
    cbs, logger = [o.name for o in learn.cbs], learn.logger
    with pytest.raises((KeyboardInterrupt, RuntimeError)): getattr(learn, method)(2, cbs=[Stop(event, error)])
    assert [o.name for o in learn.cbs] == cbs and learn.logger == logger and 'forward' not in vars(learn.model)
    last = learn.run_folder.events()[-1]
    assert (last['event'], last['error']) == (('interrupted', None) if error is KeyboardInterrupt else ('failed', 'defect'))
    for again in ('fit_one_cycle', 'fine_tune'):
        with learn.no_bar(): getattr(learn, again)(1)
    assert finite(learn) and learn.predict(dls.valid_ds.items[0])[0] in dls.vocab
    assert [o['epoch'] for o in learn.run_folder.events('epoch')][-3:] == [learn.clock.epochs - i for i in (2, 1, 0)]

# The learning rate search

def test_lr_find_leaves_no_trace(dls, tmp_path):
    learn, twin = (image_learner(dls, 'test_resnet', run=tmp_path/o, drop_rate=.3) for o in ('run', 'twin'))
    for step in range(2): # before any training, and after some
        before, count = weights(learn), (learn.clock.epochs, learn.clock.steps)
        learn.lr_find(num_it=5, show_plot=False)
        assert equal(weights(learn), before) and (learn.clock.epochs, learn.clock.steps) == count
        for o in (learn, twin): o.fit_one_cycle(1, 3e-3)
        assert equal(weights(learn), weights(twin)), step
    assert learn.plan.schedule == twin.plan.schedule and len(learn.plan.schedule) == 2
    assert [o['event'] for o in learn.run_folder.events()] == [o['event'] for o in twin.run_folder.events()]

def test_lr_find_makes_no_run(dls, tmp_path):
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run')
    learn.lr_find(num_it=3, show_plot=False)
    assert not learn.run_folder.exists

# Schedules

@pytest.mark.parametrize('warmup', [0, .5, 1, 2, 4, 9])
def test_cosine_with_warmup(learn, warmup):
    with learn.no_bar(): learn.fit_scheduled(4, lr=.1, warmup_epochs=warmup, warmup_lr=.01, lr_min=.001)
    steps, n = 4*len(learn.dls.train), round(min(warmup, 4)*len(learn.dls.train))
    want = [.01 + .09*t/n if t < n else .001 + .099*(1 + math.cos(math.pi*(t - n)/(steps - n)))/2 for t in range(steps)]
    assert np.allclose(learn.recorder.lrs, want, atol=1e-7)
    assert want[0] == (.01 if warmup else .1) and warmup > 2 or want[-1] < .01

def test_cosine_takes_the_learners_rate(learn):
    learn.lr = .004
    with learn.no_bar(): learn.fit_scheduled(1)
    assert learn.recorder.lrs[0] == pytest.approx(.004)
    assert learn.plan.schedule == (FitPlan('fit_scheduled', dict(n_epoch=1)),)

# The run folder

@pytest.fixture(scope='module')
def ran(dls, tmp_path_factory):
    "A run of three epochs in two fits"
    learn = image_learner(dls, 'test_resnet', run=tmp_path_factory.mktemp('runs')/'run')
    with learn.no_bar(): learn.fit_one_cycle(1, 5e-3), learn.fit_one_cycle(2, 5e-3)
    return learn

def test_what_a_run_folder_holds(ran):
    names = {o.name for o in ran.run_folder.path.iterdir()} - {'models'}
    checkpoints, kinds = ('best_model', 'latest', 'epoch_1', 'epoch_2', 'epoch_3'), ('safetensors', 'state.safetensors', 'json')
    others = {'config.yaml', 'env.json', 'data.json', 'run.jsonl', 'parts'}
    assert names == {f'{o}.{k}' for o in checkpoints for k in kinds} | others
    assert plan_to_dict(ran.run_folder.plan) == plan_to_dict(ran.plan) and len(ran.plan.schedule) == 2
    data = json.loads((ran.run_folder.path/'data.json').read_text('utf-8'))
    assert data['vocab'] == list(ran.dls.vocab) and data['train']['pictures'] == 48
    assert data['valid']['classes'] == dict(circle=4, square=4, triangle=4)
    assert data['train']['list_sha256'] == ran.dls.train_ds.list_hash()
    env = json.loads((ran.run_folder.path/'env.json').read_text('utf-8'))
    assert env['packages']['torch'] in torch.__version__ and env['torch_threads'] == torch.get_num_threads()

@pytest.mark.parametrize('n, says', [(1, 'cpu (1 thread'), (2, 'cpu (2 threads')])
def test_the_line_about_the_hardware(monkeypatch, n, says):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: n)
    line = describe_hardware('cpu', 'fp32', True, n)
    assert line.startswith(says) and line[len(says)] in '),' and line.endswith(f"{n} loader process{'es'*(n > 1)}")

def test_history(ran):
    h = ran.run_folder.history()
    assert list(h) == ['epoch', 'step', 'train_loss', 'valid_loss', 'top1', 'train_top1', 'lr',
                       'data_wait', 'images_per_s', 'seconds']
    assert h.epoch.tolist() == [1, 2, 3] and h.step.tolist() == [3, 6, 9] and (h.seconds > 0).all()
    assert h.train_loss.tolist()[1:] == pytest.approx([o[0] for o in ran.recorder.values])
    assert all(o*48 == pytest.approx(round(o*48)) for o in h.train_top1) and h.train_top1.between(.2, 1).all()

def test_latest_is_the_last_epoch(ran):
    path = ran.run_folder.path
    assert sha256(path/'latest.safetensors') == sha256(path/'epoch_3.safetensors') != sha256(path/'epoch_2.safetensors')
    assert equal(load_trained(path, 'latest').model.state_dict(), weights(ran))

class Scores(Callback):
    "Epochs that end with given metrics"
    order = 56 # between those who measure and those who write
    def __init__(self, *rows): self.rows = iter(rows)
    def after_epoch(self): self.learn.epoch_metrics.values |= dict(zip(('top1', 'valid_loss'), next(self.rows)))

@pytest.mark.parametrize('rows, best', [
    ([(.2, 1), (.6, 3), (.5, .1)], 2), ([(.2, 1), (.6, 3), (.6, 2)], 3), ([(.6, 2), (.6, 2), (.6, 3)], 1), ([(0, 3), (0, 2),
    (0, 2.5)], 2)])
def test_the_best_model_is_the_best_epoch(dls, tmp_path, rows, best):
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run', cbs=[Scores(*rows)])
    with learn.no_bar(): learn.fit(1), learn.fit(2)
    assert learn.run_folder.history().top1.tolist() == [o[0] for o in rows]
    assert sha256(tmp_path/'run/best_model.safetensors') == sha256(tmp_path/f'run/epoch_{best}.safetensors')
    assert load_trained(tmp_path/'run').facts['epoch'] == best

@pytest.mark.parametrize('n, best', [(0, 4), (2, 2), (4, 4), (9, 4)])
def test_the_newest_stands_in_for_the_best_until_there_is_one(dls, tmp_path, n, best): # to export the first would be odd
    fall = type('Fall', (Callback,), dict(order=46, after_epoch=lambda self: 'top1' in self.epoch_metrics.values and
                                          self.epoch_metrics.values.update(top1=1/self.clock.epochs)))
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run', cbs=[('validate_every', dict(n=n)), fall()])
    with learn.no_bar(): learn.fit(3), learn.fit(1)
    assert load_trained(tmp_path/'run').facts['epoch'] == best

@pytest.mark.parametrize('interval, kept', [(0, []), (2, [2])])
def test_save_interval(dls, tmp_path, interval, kept):
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run', save_interval=interval)
    with learn.no_bar(): learn.fit(3)
    assert [o.name for o in (tmp_path/'run').glob('epoch_*.json')] == [f'epoch_{i}.json' for i in kept]
    assert (tmp_path/'run/latest.json').exists() and (tmp_path/'run/best_model.json').exists()

def test_an_earlier_run_is_kept(ran, dls, tmp_path, capsys):
    shutil.copytree(ran.run_folder.path, tmp_path/'run')
    (tmp_path/'run/my notes.txt').write_text('precious')
    for n in (1, 2):
        before = {o.name: sha256(o) for o in (tmp_path/'run').iterdir() if o.is_file()}
        learn = image_learner(dls, 'test_resnet', run=tmp_path/'run')
        assert before == {o.name: sha256(o) for o in (tmp_path/'run').iterdir() if o.is_file()}, "only training replaces a run"
        with learn.no_bar(): learn.fit(1)
        assert f'run-{n}' in capsys.readouterr().out
        assert before == {o.name: sha256(o) for o in (tmp_path/f'run-{n}').iterdir() if o.is_file()}
        assert len(learn.run_folder.history()) == 1

def test_pictures_are_never_moved_aside(tmp_path):
    data = make_shapes(tmp_path/'data', n=4)
    for _ in range(2): # a run in the folder of its own pictures: refused or not, they stay where they are
        try:
            learn = image_learner(image_dls(data, size=32, bs=9, device='cpu'), 'test_resnet', run=data)
            with learn.no_bar(): learn.fit(1)
        except InputError: pass
        assert len(list_images(data)) == 12

def test_a_loss_that_is_not_a_number_is_written_down(dls, tmp_path):
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run')
    learn.remove_cb(learn.divergence_guard)
    learn.model.fc.bias.data.fill_(float('nan'))
    with learn.no_bar(): learn.fit(1)
    assert [(o['train_loss'], o['valid_loss']) for o in learn.run_folder.events('epoch')] == [('nan', 'nan')]
    assert (tmp_path/'run/latest.json').exists()

def test_predictions_write_nothing(ran):
    before = {o.name: o.stat().st_mtime_ns for o in ran.run_folder.path.iterdir()}
    with ran.no_bar(): ran.validate(), ran.get_preds(), ran.predict(ran.dls.valid_ds.items[0])
    assert before == {o.name: o.stat().st_mtime_ns for o in ran.run_folder.path.iterdir()}

# Damaged runs

@pytest.fixture
def copied(ran, tmp_path): # hard links are links here too
    return shutil.copytree(ran.run_folder.path, tmp_path/'run', copy_function=link_once({}))

def link_once(known):
    def copy(src, dst):
        first = known.setdefault(os.stat(src).st_ino, dst)
        return shutil.copy2(src, dst) if first == dst else os.link(first, dst)
    return copy

def flip(file):
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)

def cut(file): file.write_bytes(file.read_bytes()[:file.stat().st_size//2])
def empty(file): file.write_bytes(b'')
def remove(file): file.unlink()

@pytest.mark.parametrize('part', ['safetensors', 'state.safetensors'])
@pytest.mark.parametrize('damage', [flip, cut, empty])
def test_a_damaged_checkpoint_is_named(copied, damage, part):
    damage(copied/f'best_model.{part}')
    with pytest.raises(InputError, match=f"best_model.{part}' is damaged.*Use another checkpoint"): load_trained(copied)
    assert load_trained(copied, 'latest').facts['epoch'] == 3

@pytest.mark.parametrize('damage', [cut, empty, lambda file: file.write_text('{}'), lambda file: file.write_text('[1]')])
def test_a_damaged_manifest_is_named(copied, damage):
    damage(copied/'best_model.json')
    with pytest.raises(InputError, match='best_model.json'): load_trained(copied)

@pytest.mark.parametrize('damage, says', [
    (remove, "no run folder: it has no config.yaml"), (lambda file: file.write_text('data: ['), 'config.yaml is not valid YAML'),
    (lambda file: file.write_text('data: {path: x}\nmodell: 1'), "unknown key 'modell'.*Did you mean 'model'"),
    (empty, 'config.yaml')])
def test_a_damaged_plan_is_named(copied, damage, says):
    damage(copied/'config.yaml')
    with pytest.raises(InputError, match=says): load_trained(copied)

def test_missing_checkpoints_and_runs(copied, tmp_path):
    with pytest.raises(InputError, match="no checkpoint 'epoch_9'. It has: best_model, epoch_1, epoch_2, epoch_3, latest"):
        load_trained(copied, 'epoch_9')
    with pytest.raises(InputError, match="no run folder.*Runs beside it: run"): load_trained(tmp_path/'ran')

def test_a_log_whose_last_line_was_cut(copied):
    run = Run(copied)
    with open(copied/'run.jsonl', 'a') as f: f.write('{"event": "epo')
    assert len(run.events('epoch')) == 3
    run.log('start')
    assert len(run.events('epoch')) == 3 and run.events()[-1]['event'] == 'start', "the next line does not suffer from it"

# As in fastai

def test_predict(ran, dls):
    want = TorchPredictor(load_trained(ran.run_folder.path, 'latest'))
    for path in dls.valid_ds.items[:3]:
        label, i, probs = ran.predict(path)
        one = want(path, k=3)
        assert label == dls.vocab[i] == one.label and probs.shape == (3,) and probs.sum().item() == pytest.approx(1, abs=1e-5)
        assert max(probs).item() == pytest.approx(one.prob, abs=.02) # trained and asked in 16 bits
        for o in (open_image(path), np.asarray(open_image(path)), Image.open(path)): assert torch.equal(ran.predict(o)[2], probs)

def test_get_preds(ran, dls):
    with ran.no_bar():
        probs, targs = ran.get_preds()
        assert targs.tolist() == dls.valid_ds.labels.tolist()
        assert probs.shape == (12, 3) and torch.allclose(probs.sum(1), torch.ones(12))
        again, none = ran.get_preds(dl=ran.dls.test_dl(dls.valid_ds.items))
        assert torch.equal(again, probs) and (none is None or (none == -1).all())
        assert ran.get_preds(ds_idx=0)[1].tolist() == dls.train_ds.labels.tolist()
        assert ran.get_preds(with_decoded=True)[2].tolist() == probs.argmax(1).tolist()
        loss, top1 = ran.validate()
        assert top1 == pytest.approx((probs.argmax(1) == targs).float().mean().item())
        assert loss == pytest.approx(torch.nn.functional.nll_loss(probs.log(), targs.long()).item(), abs=1e-3)

def test_one_callback_or_metric_is_as_good_as_a_list(dls):
    counted = type('Counted', (Callback,), dict(n=0, after_fit=lambda self: setattr(self, 'n', self.n + 1)))()
    learn = image_learner(dls, 'test_resnet', cbs=counted, metrics=accuracy)
    with learn.no_bar(): learn.fit(1, cbs=Callback()), learn.fit_scheduled(1, cbs=Callback())
    assert counted.n == 2 and [o.name for o in learn.metrics] == ['accuracy']

def test_show_results(ran):
    import matplotlib.pyplot as plt
    plt.close('all')
    ran.show_results(max_n=4, nrows=2)
    titles = [ax.get_title() for ax in plt.gcf().axes]
    assert len(titles) == 4 and all(set(o.split('\n')) <= set(ran.dls.vocab) for o in titles)
    plt.close('all')

def test_fastai_methods(dls, tmp_path):
    from fastai.interpret import ClassificationInterpretation
    learn = image_learner(dls, 'test_resnet', run=tmp_path/'run')
    with learn.no_bar():
        learn.freeze()
        learn.fit(1)
        learn.unfreeze()
        before = weights(learn)
        learn.save('mine')
        learn.fit(1)
        learn.load('mine')
        assert equal(weights(learn), before)
        assert ClassificationInterpretation.from_learner(learn).confusion_matrix().sum() == 12

def test_learners_that_are_gone_keep_no_processes(shapes):
    before, most = len(multiprocessing.active_children()), 0
    gc.disable() # as it seldom looks through what is old
    try:
        for _ in range(4): # as one tries rates in a loop
            learn = image_learner(image_dls(shapes, size=32, bs=8, num_workers=1, device='cpu'), 'test_resnet')
            with learn.no_bar(): learn.fit(1)
            most = max(most, len(multiprocessing.active_children()) - before)
    finally: gc.enable()
    assert 2 <= most <= 4, "of this one, and of the one before"
