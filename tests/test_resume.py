"A run that was killed at any moment ends as if nothing had happened, or says why it cannot"
import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.optimizer import SGD, Adam, OptimWrapper
from fastcore.foundation import L
from torch.optim import AdamW

from imgcls_nb import files
from imgcls_nb.callbacks.clock import Clock
from imgcls_nb.checkpoints import drop_checkpoint, link_checkpoint, read_checkpoint, save_checkpoint
from imgcls_nb.config import plan_from_config, read_config
from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.datasets import make_shapes
from imgcls_nb.decode import PixelCache
from imgcls_nb.evaluate import evaluate
from imgcls_nb.export import export_onnx
from imgcls_nb.learner import image_learner, learner_from_plan, resume_run, run_schedule, train_plan
from imgcls_nb.moments import Moment, Position, put_state, state_of
from imgcls_nb.plan import FitPlan
from imgcls_nb.resume import find_checkpoint
from imgcls_nb.runs import Run, describe_env

posix = pytest.mark.skipif(os.name != 'posix', reason="needs fork and SIGKILL")


@pytest.fixture(scope='module')
def pictures(tmp_path_factory): return make_shapes(tmp_path_factory.mktemp('data')/'shapes', n=10) # 24 to train on

def make(pictures, run, data=None, **how):
    dls = image_dls(pictures, **dict(size=32, bs=8, aug='standard', device='cpu', num_workers=0) | (data or {}))
    return image_learner(dls, 'test_resnet', run=run, **dict(drop_rate=.2, save_steps=2) | how)

def hash_of(values):
    sha = hashlib.sha256()
    def add(o):
        if isinstance(o, torch.Tensor): sha.update(o.detach().contiguous().numpy().tobytes())
        elif isinstance(o, dict): add([x for pair in sorted(o.items(), key=str) for x in pair])
        elif isinstance(o, (list, tuple, L)): [add(x) for x in o]
        else: sha.update(repr(o.item() if hasattr(o, 'item') else o).encode())
    add(values)
    return sha.hexdigest()

def outcome(learn): # all that a training leaves, but for times
    moment, run, timed = Moment.of(learn, None), learn.run_folder, ['seconds', 'data_wait', 'images_per_s']
    states = {k: v for k, v in moment.state['callbacks'].items() if k not in ('run_writer', 'epoch_table', 'time_limit')}
    saved = [o for o in run.path.glob('*.safetensors') if not o.name.endswith('.state.safetensors')]
    epochs, steps = run.history().drop(columns=timed, errors='ignore'), run.steps().drop(columns='wait')
    return dict(weights=hash_of(moment.weights), opt=hash_of(moment.state['opt']), epochs=epochs.to_json(), steps=steps.to_json(),
                files={o.name: files.sha256(o) for o in saved}) | {k: hash_of(v) for k, v in states.items()}

# A learner trains in a child process that is killed

class Die(Callback):
    "Kills its process at the `n`-th event of a name, before or after other callbacks"
    def __init__(self, event, n, order, saved=False): self.event, self.n, self.order, self.saved = event, n, order, saved
    def __call__(self, event):
        self.n -= event == self.event
        if self.n or event != self.event: return
        if self.saved: self.learn.checkpointer.wait() # it writes beside the training
        os.kill(os.getpid(), signal.SIGKILL)

def die_at_file_operation(n):
    points = itertools.count(1)
    def reached(point):
        if next(points) == n: os.kill(os.getpid(), signal.SIGKILL)
    files.reached = reached

def killed(learn, train, event=None, n=1, order=99, operation=None, saved=False): # whether it was
    if pid := os.fork(): return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if operation: die_at_file_operation(operation)
        if event:
            learn.add_cb(Die(event, n, order, saved))
            learn.planned = tuple(learn.cbs)
        with learn.no_bar(): train(learn)
    finally: os._exit(0)

def resumed(learn, train):
    with learn.no_bar(): train(learn, resume=True)
    return learn

MOMENTS = [dict(event='before_batch', n=4, order=-99), dict(event='after_batch', n=6), dict(event='after_train', n=1),
           dict(event='after_validate', n=2), dict(event='after_epoch', n=2, order=72), dict(event='after_epoch', n=1),
           dict(event='after_fit', n=1), dict(operation=33), dict(operation=47), dict(operation=81)]

def one_cycle(learn, **kwargs): learn.fit_one_cycle(2, 4e-3, **kwargs)
def fine_tune(learn, **kwargs): learn.fine_tune(1, 4e-3, freeze_epochs=1, **kwargs)
def flat(learn, **kwargs): learn.fit_flat_cos(2, 4e-3, **kwargs)
def scheduled(learn, **kwargs): learn.fit_scheduled(3, 'multi_step', 3e-3, .5, milestones=[1], gamma=.5, **kwargs)
def several(learn, **kwargs):
    learn.freeze()
    learn.fit(1, 3e-3, **kwargs)
    learn.unfreeze()
    learn.fit_one_cycle(1, slice(1e-4, 1e-3), **kwargs)

STEPS = [('accumulate', dict(n=2)), ('clip_norm', dict(max_norm=1.))]
WAYS = dict(
    fine_tune=(fine_tune, dict(cbs='ema', mix='mixup+cutmix')),
    one_cycle=(one_cycle, dict(precision='fp32', metrics=['top1', 'f1'], opt='sgd')),
    average=(scheduled, dict(cbs=['swa', *STEPS, 'csv'], save_steps=1, keep_last=1)),
    stops_early=(scheduled, dict(cbs=[('swa', dict(start=0.)), ('early_stop', dict(patience=1, min_delta=9.))])),
    several=(several, dict(opt='lamb', layer_decay=.8, cbs=[('ema', dict(decay=.9))])),
    sizes=(flat, dict(data=dict(sizes=[32, 24], balance='both'), opt='muon')),
    grows=(flat, dict(data=dict(start_size=24, repeats=2, bs=7, cache=False), loss='focal')),
    fastai_opt=(one_cycle, dict(opt=Adam, save_interval=0)),
    torch_opt=(fine_tune, dict(opt=partial(OptimWrapper, opt=AdamW), monitor='valid_loss')))

@posix
@pytest.mark.parametrize('way', WAYS)
def test_killed_and_resumed_is_as_if_nothing_had_happened(pictures, tmp_path, way):
    train, how = WAYS[way]
    whole = make(pictures, tmp_path/'whole', **how)
    with whole.no_bar(): train(whole)
    want, first = outcome(whole), list(WAYS).index(way)
    for i, moment in enumerate((MOMENTS*3)[3*first:3*first + 3]):
        run = tmp_path/f'run_{i}'
        assert killed(make(pictures, run, **how), train, **moment), f'{moment} never came'
        got = outcome(resumed(make(pictures, run, **how), train))
        assert {k: got.get(k) == v for k, v in want.items()} == dict.fromkeys(want, True), moment

@posix
def test_epochs_of_several_sizes_go_on_where_they_were(pictures, tmp_path):
    def train(learn, **kwargs): learn.fit_scheduled(3, 'cosine', 3e-3, warmup_steps=2, **kwargs)
    how = dict(data=dict(sizes=[24, 32, 48], bs=4), save_steps=1, precision='fp32')
    whole = make(pictures, tmp_path/'whole', **how)
    lengths = []
    for whole.dls.train.epoch in range(3): lengths.append(len(whole.dls.train))
    with whole.no_bar(): train(whole)
    assert len(set(lengths)) == 3, "else this shows nothing"
    rates = whole.run_folder.steps().lr.tolist()
    assert len(rates) == sum(lengths) and rates[2:] == sorted(rates[2:], reverse=True) and min(rates[2:]) > 0
    want = outcome(whole)
    for n in (lengths[0] + 3, sum(lengths[:2]) + 3, sum(lengths) - 1):
        run = tmp_path/f'run_{n}'
        assert killed(make(pictures, run, **how), train, event='after_backward', n=n)
        got = outcome(resumed(make(pictures, run, **how), train))
        assert {k: got.get(k) == v for k, v in want.items()} == dict.fromkeys(want, True), n

@posix
@pytest.mark.parametrize('moment', [dict(event='after_epoch', n=2, order=81), dict(event='after_cancel_fit', order=-99)])
def test_a_fit_that_was_about_to_end_ends_as_it_would_have(pictures, tmp_path, moment): # saved, and not yet stopped
    train, how = WAYS['stops_early']
    whole = make(pictures, tmp_path/'whole', **how)
    with whole.no_bar(): train(whole)
    assert whole.clock.epochs == 2 and whole.swa.applied
    assert killed(make(pictures, tmp_path/'run', **how), train, **moment, saved=True)
    want, got = outcome(whole), outcome(resumed(make(pictures, tmp_path/'run', **how), train))
    assert {k: got.get(k) == v for k, v in want.items()} == dict.fromkeys(want, True)

@posix
def test_killed_again_and_again(pictures, tmp_path):
    how = dict(cbs=['ema', 'swa'], mix='cutmix', save_steps=1)
    whole = make(pictures, tmp_path/'whole', **how)
    with whole.no_bar(): fine_tune(whole)
    while killed(make(pictures, tmp_path/'run', **how), partial(fine_tune, resume=True), 'after_batch', 3): pass
    events = Run(tmp_path/'run').events('resume')
    assert len(events) > 2 and all(o['exact'] for o in events)
    assert outcome(resumed(make(pictures, tmp_path/'run', **how), fine_tune)) == outcome(whole)

# From the folder alone, in other processes, with loader processes

TRAIN = """
import sys
from imgcls_nb.data import image_dls
from imgcls_nb.learner import image_learner
dls = image_dls(sys.argv[1], size=32, bs=8, aug='standard', device='cpu', num_workers=2)
learn = image_learner(dls, 'test_resnet', run=sys.argv[2], mix='mixup', cbs='ema', save_steps=2)
with learn.no_bar(): learn.fine_tune(9, 3e-3)
"""

@posix
def test_a_process_is_killed_and_the_shell_goes_on(pictures, tmp_path):
    run = Run(tmp_path/'run')
    with subprocess.Popen([sys.executable, '-c', TRAIN, pictures, run.path], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(run.events('epoch')) < 1: time.sleep(.1)
        process.kill()
    assert run.status == 'killed' and run.plan.replayable
    done = subprocess.run([sys.executable, '-m', 'imgcls_nb.cli', 'resume', run.path, '--num-workers', '0'],
                          capture_output=True, text=True)
    assert done.returncode == 0 and 'goes on from' in done.stdout, done.stderr
    learn = make(pictures, tmp_path/'whole', mix='mixup', cbs='ema', drop_rate=0.)
    with learn.no_bar(): learn.fine_tune(9, 3e-3)
    assert run.status == 'finished' and run.events('resume')[-1]['changed'] == {'data.num_workers': [2, 0]}
    assert files.sha256(run.path/'latest.safetensors') == files.sha256(tmp_path/'whole/latest.safetensors')

@posix
def test_calls_that_were_still_to_come_are_in_the_folder(pictures, tmp_path):
    calls = FitPlan('fit', dict(n_epoch=1)), FitPlan('freeze_to', dict(n=-1)), FitPlan('fit_one_cycle', dict(n_epoch=1))
    plan = replace(make(pictures, tmp_path/'run').plan, schedule=calls)
    whole = train_plan(replace(plan, run=str(tmp_path/'whole')))
    assert killed(learner_from_plan(plan), partial(run_schedule, schedule=plan.schedule), 'before_batch', 2)
    shutil.move(tmp_path/'run', tmp_path/'moved')
    assert outcome(resume_run(tmp_path/'moved')) == outcome(whole)

def test_the_weights_that_it_began_with_may_be_gone(pictures, tmp_path):
    torch.save(make(pictures, None).model.state_dict(), first := tmp_path/'first.pth')
    calls = (FitPlan('fit', dict(n_epoch=2)),)
    plan = replace(make(pictures, tmp_path/'run', pretrained=first).plan, schedule=calls)
    whole = train_plan(replace(plan, run=str(tmp_path/'whole')))
    assert killed(learner_from_plan(plan), partial(run_schedule, schedule=calls), 'before_batch', 5)
    copy = shutil.copytree(tmp_path/'run', tmp_path/'copy')
    first.unlink()
    assert outcome(resume_run(tmp_path/'run')) == outcome(whole)
    assert Run(tmp_path/'run').plan.model.pretrained == str(first), "it still says what it began with"
    for name in ('latest', 'epoch_1', 'best_model'): # nothing was saved yet
        for o in copy.glob(f'{name}.*'): o.unlink()
    with pytest.raises(InputError, match='no weights at'): resume_run(copy)

# In one process

@pytest.mark.parametrize('event, n', [('before_batch', 1), ('after_step', 4), ('after_epoch', 1), ('before_validate', 2)])
def test_after_an_interrupt_the_learner_goes_on(pictures, tmp_path, event, n):
    class Stop(Callback):
        seen = 0
        def __call__(self, name):
            self.seen += name == event
            if name == event and self.seen == n: raise KeyboardInterrupt
    how = dict(cbs=['ema', 'swa'], mix='mixup')
    whole, learn = (make(pictures, tmp_path/o, **how) for o in ('whole', 'run'))
    with whole.no_bar(): fine_tune(whole)
    learn.add_cb(stop := Stop())
    learn.planned = tuple(learn.cbs)
    with pytest.raises(KeyboardInterrupt), learn.no_bar(): fine_tune(learn)
    for cb in (stop,): learn.remove_cb(cb)
    learn.planned = tuple(learn.cbs)
    assert outcome(resumed(learn, fine_tune)) == outcome(whole)
    assert learn.plan.replayable and learn.plan.schedule == whole.plan.schedule == Run(tmp_path/'run').plan.schedule

# What a person is told

@pytest.fixture(scope='module')
def cut(pictures, tmp_path_factory):
    "A run that was killed in its second epoch; not to be changed"
    run = tmp_path_factory.mktemp('runs')/'cut'
    assert killed(make(pictures, run), one_cycle, 'before_batch', 6)
    return run

@pytest.fixture
def copied(cut, tmp_path): return shutil.copytree(cut, tmp_path/'run', symlinks=True)

@posix
@pytest.mark.parametrize('change, says', [
    (dict(data=dict(bs=4)), r'data.bs was 8 and is 4.*allow=\[.bs.\]'), (dict(data=dict(seed=1)), 'data.seed was 42 and is 1'),
    (dict(data=dict(aug='none')), 'data.augment was'), (dict(data=dict(size=48)), 'data.size was .32, 32. and is .48, 48.'),
    (dict(loss='focal'), 'objective.loss was'), (dict(opt='sgd'), 'objective.opt was .adamw. and is .sgd.'),
    (dict(wd=.3), 'objective.weight_decay was None and is 0.3'), (dict(mix='mixup'), 'mix was'),
    (dict(cbs='ema'), 'callbacks was'), (dict(precision='fp32'), 'precision was'),
    (dict(drop_rate=.5), "model.kwargs was {'drop_rate': 0.2}"), (dict(monitor='valid_loss'), 'monitor was'),
    (dict(metrics=['f1']), 'metrics was'), (dict(data=dict(valid=.5)), 'pictures.train was .24 of checksum')], ids=str)
def test_a_changed_setting_is_refused(pictures, copied, change, says):
    learn = make(pictures, copied, **change)
    before = (copied/'run.jsonl').read_text()
    with pytest.raises(InputError, match=f'(?s){says}'), learn.no_bar(): one_cycle(learn, resume=True)
    assert learn.plan.schedule == () and (copied/'run.jsonl').read_text() == before

@posix
@pytest.mark.parametrize('change, allow', [
    (dict(data=dict(bs=4)), 'bs'), (dict(opt='sgd'), ['opt']), (dict(wd=.3), 'objective.weight_decay'),
    (dict(data=dict(valid=.5)), ['train', 'valid']), (dict(cbs='ema'), ['callbacks', 'monitor'])], ids=str)
def test_a_changed_setting_is_wanted(pictures, copied, change, allow):
    learn = make(pictures, copied, **change)
    with learn.no_bar(): one_cycle(learn, resume=True, allow=allow)
    said = Run(copied).events('resume')[-1]
    assert not said['exact'] and said['changed'] and Run(copied).history().epoch.tolist() == [1, 2]
    again = make(pictures, copied, **change)
    with again.no_bar(): one_cycle(again, resume=True, allow=allow)
    assert again.clock.epochs == 2, "a setting is new once"

@posix
@pytest.mark.parametrize('change', [dict(data=dict(num_workers=1)), dict(data=dict(cache=False)),
                                    dict(keep_last=1, save_interval=0), dict(save_steps=None, save_minutes=None),
                                    dict(cbs='console')], ids=str)
def test_what_may_change(pictures, copied, cut, tmp_path, change):
    shutil.copytree(cut, tmp_path/'same', symlinks=True)
    same, other = (resumed(make(pictures, run, **how), one_cycle) for run, how in ((tmp_path/'same', {}), (copied, change)))
    assert hash_of(same.model.state_dict()) == hash_of(other.model.state_dict()) and Run(copied).events('resume')[-1]['exact']

@posix
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without the device of the run")
@pytest.mark.parametrize('precision', ['fp16', 'fp32'])
def test_a_run_of_a_machine_with_another_device(copied, capsys, precision):
    plan = replace(Run(copied).plan, device='cuda:0', precision=precision, sync_bn=precision == 'fp16')
    Run(copied).write_plan(plan)
    assert len(evaluate(copied)) == 6 and 'The plan is for' not in capsys.readouterr().out
    if precision == 'fp16':
        with pytest.raises(InputError, match="precision was 'fp16' and is.*sync_bn was True and is False.*--allow precision"):
            resume_run(copied)
    assert resume_run(copied, allow=['precision', 'sync_bn']).clock.epochs == 2 and Run(copied).plan.device == 'cuda:0'
    said = f'The plan is for cuda:0, {precision}, and this machine has no cuda:0: cpu, '
    assert said in capsys.readouterr().out and train_plan(replace(plan, run=None)).clock.epochs == 2
    with pytest.raises(InputError, match="device='cudaa' is not to be had"): learner_from_plan(replace(plan, device='cudaa'))

@posix
def test_a_device_is_part_of_the_machine(pictures, copied, capsys):
    Run(copied).write_plan(replace(Run(copied).plan, device='mps'))
    resumed(make(pictures, copied), one_cycle)
    assert "processes differ: device was 'mps' and is 'cpu'" in capsys.readouterr().out
    assert not Run(copied).events('resume')[-1]['exact']

@posix
def test_more_epochs_are_another_schedule(pictures, copied):
    learn = make(pictures, copied)
    with learn.no_bar(): learn.fit_one_cycle(4, 4e-3, resume=True)
    said = Run(copied).events('resume')[-1]
    assert learn.clock.epochs == 4 and said['changed']['fit_one_cycle.n_epoch'] == [2, 4] and not said['exact']
    long = make(pictures, None)
    with long.no_bar(): long.fit_one_cycle(4, 4e-3)
    assert learn.recorder.lrs[6:] == long.recorder.lrs[6:] and np.allclose(learn.recorder.lrs[4:6], long.recorder.lrs[4:6])

@pytest.mark.parametrize('how, exact', [({}, True), (dict(cbs=[('swa', dict(start=.5))]), False),
                                        (dict(data=dict(start_size=24)), False), (dict(cbs=Callback()), False)], ids=str)
def test_a_longer_fit_is_exact_where_nothing_depends_on_the_length(pictures, tmp_path, how, exact, capsys):
    run = Run(tmp_path/'run')
    first = make(pictures, run.path, **how)
    with first.no_bar(): first.fit(3, 1e-3)
    learn, whole = make(pictures, run.path, **how), make(pictures, tmp_path/'whole', **how)
    capsys.readouterr()
    with learn.no_bar(): learn.fit(6, 1e-3, resume=True)
    assert 'Changed: fit.n_epoch was 3 and is 6.' in capsys.readouterr().out and run.events('resume')[-1]['exact'] == exact
    with whole.no_bar(): whole.fit(6, 1e-3)
    if exact: assert hash_of(learn.model.state_dict()) == hash_of(whole.model.state_dict())
    if 'swa' in str(how): assert whole.swa.n_averaged == 3 and learn.swa.n_averaged == 3, "an average begun too early is none"

def test_a_model_file_as_teacher_is_told_from_another(pictures, tmp_path):
    facts = []
    for seed in (1, 2):
        export_onnx(make(pictures, None, dict(seed=seed), save_steps=None), tmp_path/f'{seed}.onnx')
        cb = ('distill', dict(teacher=str(tmp_path/f'{seed}.onnx')))
        facts.append(make(pictures, tmp_path/f'run_{seed}', cbs=[cb]).run_writer.facts['teacher'])
    assert facts == [files.sha256(tmp_path/f'{o}.onnx') for o in (1, 2)] and facts[0] != facts[1]

@pytest.fixture(scope='module')
def teacher(pictures, tmp_path_factory):
    learn = make(pictures, tmp_path_factory.mktemp('teacher')/'run', dict(seed=3), save_steps=None)
    with learn.no_bar(): learn.fit(1, 1e-3)
    return learn.run_folder.path

INSIDE = dict(afd=dict(layers='layer*.0', teacher_layers=['layer2', 'layer4'], dim=8), mgd={}, pefd={}, udml={})

@posix
@pytest.mark.parametrize('kind, moment', [('afd', dict(event='before_batch', n=5)), ('mgd', dict(event='after_epoch', n=1)),
                                          ('pefd', dict(event='after_batch', n=4)),
                                          ('udml', dict(event='after_backward', n=5))], ids=str)
def test_what_learns_beside_the_network_goes_on(pictures, teacher, tmp_path, kind, moment):
    args = dict(teacher='test_resnet' if kind == 'udml' else str(teacher), kind=kind, logits_weight=.5) | INSIDE[kind]
    def distilled(name): return make(pictures, tmp_path/name, cbs=[('distill', args), 'ema', ('clip_norm', dict(max_norm=1.))])
    whole, plain = distilled('whole'), make(pictures, None, save_steps=None)
    with whole.no_bar(): fine_tune(whole)
    want = outcome(whole)
    assert killed(distilled('run'), fine_tune, **moment)
    got = outcome(resumed(distilled('run'), fine_tune))
    assert {k: got.get(k) == v for k, v in want.items()} == dict.fromkeys(want, True) and 'distill' in want
    assert all(o['exact'] for o in Run(tmp_path/'run').events('resume'))
    for name in ('latest', 'best_model'): # nothing of it is in what is used
        held = safetensors.torch.load_file(tmp_path/f'run/{name}.safetensors')
        assert held.keys() == plain.model.state_dict().keys()
    state = read_checkpoint(tmp_path/'run', 'latest').state()
    assert state['callbacks']['distill'].keys() == whole.distill.beside.state_dict().keys()
    assert len(list(whole.parameters())) == len(list(whole.model.parameters())) + len(list(whole.distill.beside.parameters()))

@posix
@pytest.mark.parametrize('then, now', [('mgd', 'pefd'), ('mgd', 'kl'), ('kl', 'pefd')])
def test_another_distillation_begins_anew(pictures, teacher, tmp_path, then, now):
    def distilled(kind): return make(pictures, tmp_path/'run', cbs=[('distill', dict(teacher=str(teacher), kind=kind))])
    assert killed(distilled(then), one_cycle, 'before_batch', 6)
    with pytest.raises(InputError, match=r"callbacks was .*allow=\['callbacks'\]"): resumed(distilled(now), one_cycle)
    with pytest.raises(InputError, match=r"its parameters are others.*allow=\['opt'\]"):
        with (learn := distilled(now)).no_bar(): one_cycle(learn, resume=True, allow='callbacks')
    with (learn := distilled(now)).no_bar(): one_cycle(learn, resume=True, allow=['callbacks', 'opt'])
    assert learn.clock.epochs == 2

def test_another_teacher(pictures, tmp_path):
    def distilled(): return make(pictures, tmp_path/'run', cbs=[('distill', dict(teacher=str(tmp_path/'teacher')))])
    for seed in (1, 2):
        teacher = make(pictures, tmp_path/'teacher', dict(seed=seed))
        with teacher.no_bar(): teacher.fit(1, 1e-3)
        shutil.rmtree(tmp_path/'teacher-1', ignore_errors=True)
        learn = distilled()
        if seed == 1: resumed(learn, lambda learn, **kwargs: learn.fit(1, 1e-3, **kwargs))
    with pytest.raises(InputError, match=r"teacher was '\w{16}' and is '\w{16}'.*allow=\['teacher'\]"):
        learn.fit(2, 1e-3, resume=True)
    with learn.no_bar(): learn.fit(2, 1e-3, resume=True, allow='teacher')
    assert not Run(tmp_path/'run').events('resume')[0]['exact']
    resumed(distilled(), lambda learn, **kwargs: learn.fit(3, 1e-3, **kwargs))
    assert Run(tmp_path/'run').events('resume')[1]['exact'], "another teacher is new once"

@posix
def test_another_seed_is_one_change(pictures, copied):
    with pytest.raises(InputError, match='data.seed') as e: one_cycle(make(pictures, copied, dict(seed=1)), resume=True)
    assert 'pictures' not in str(e.value)
    learn = make(pictures, copied, dict(seed=1))
    with learn.no_bar(): one_cycle(learn, resume=True, allow='seed')
    assert learn.clock.epochs == 2

def test_fewer_epochs_than_are_done(pictures, tmp_path, capsys):
    run, first = Run(tmp_path/'run'), make(pictures, tmp_path/'run')
    with first.no_bar(): first.fit_one_cycle(3, 4e-3)
    learn = make(pictures, tmp_path/'run')
    with learn.no_bar(): learn.fit_one_cycle(2, 4e-3, resume=True)
    out = capsys.readouterr().out
    assert 'epoch 3 was its last. That is more than it asks for: the run stays fit_one_cycle(n_epoch=3, lr_max=0.004).' in out
    assert learn.plan.schedule == run.plan.schedule == first.plan.schedule and run.status == 'finished'

@posix
def test_as_many_epochs_as_are_done(pictures, tmp_path):
    def train(learn, n=3, **kwargs): learn.fit(n, 1e-3, **kwargs)
    assert killed(make(pictures, tmp_path/'run'), train, 'before_batch', 9) # the first of an epoch, after validation
    learn, run = make(pictures, tmp_path/'run', save_steps=None), Run(tmp_path/'run')
    with learn.no_bar(): learn.fit(1, 1e-3, resume='epoch_1')
    assert learn.plan.schedule == run.plan.schedule == (FitPlan('fit', dict(n_epoch=1, lr=1e-3)),) and run.status == 'finished'

def test_a_cell_that_is_run_twice(pictures, tmp_path, capsys):
    learn = make(pictures, tmp_path/'run')
    for _ in range(2): resumed(learn, one_cycle)
    assert 'came to its end before, so this is one more, training call 2.' in capsys.readouterr().out and learn.clock.epochs == 4

def test_another_machine_is_not_exact(pictures, tmp_path, monkeypatch, capsys):
    first, run = make(pictures, tmp_path/'run'), Run(tmp_path/'run')
    with first.no_bar(): first.fit(1, 1e-3)
    assert {'cpu', 'cpu_units', 'torch_cpu'} <= set(run.env)
    for k, v in (('torch_threads', 64), ('cpu_units', 'none')):
        (run.path/'env.json').write_text(json.dumps(describe_env() | {k: v}))
        learn = make(pictures, run.path)
        with learn.no_bar(): learn.fit(1 + run.plan.schedule[0].args['n_epoch'], 1e-3, resume=True)
        said = run.events('resume')[-1]
        assert f'{k} was {v!r} and is' in capsys.readouterr().out and f'env.{k}' in said['changed'] and not said['exact']

@posix
@pytest.mark.parametrize('call, says', [
    (lambda learn, **kw: learn.fit(2, **kw), 'method was .fit_one_cycle. and is .fit.'),
    (lambda learn, **kw: learn.fit_one_cycle(2, 1e-3, **kw), r'fit_one_cycle.lr_max was 0.004 and is 0.001.*allow=\[.lr_max.\]')])
def test_another_call(pictures, copied, call, says):
    with pytest.raises(InputError, match=says): call(make(pictures, copied), resume=True)

def trackers(): # a random network's loss is never lower by five
    return [EarlyStoppingCallback('valid_loss', patience=2, min_delta=5.), SaveModelCallback(), Counting(),
            ReduceLROnPlateau('train_loss', patience=3, min_delta=5.)]

class Counting(Callback): pass

@posix
@pytest.mark.parametrize('moment', [dict(event='before_batch', n=5), dict(event='after_epoch'), dict(event='after_fit')], ids=str)
def test_callbacks_of_fastai_remember(pictures, tmp_path, moment, capsys):
    def train(learn, **kwargs): learn.fit(5, 1e-3, **kwargs)
    whole = make(pictures, tmp_path/'whole', cbs=trackers())
    with whole.no_bar(): train(whole)
    run = Run(tmp_path/'whole')
    assert run.history().epoch.tolist() == [1, 2, 3] and run.steps().step.tolist() == list(range(1, 10))
    assert read_checkpoint(run.path, 'latest').facts['step'] == 9
    assert killed(make(pictures, tmp_path/'run', cbs=trackers()), train, **moment)
    capsys.readouterr()
    got, want = outcome(resumed(make(pictures, tmp_path/'run', cbs=trackers()), train)), outcome(whole)
    out = capsys.readouterr().out
    assert got == want and "The callback 'counting' keeps no state" in out and 'early_stopping' not in out

def own_loss(pred, targ): return 5*torch.nn.functional.cross_entropy(pred, targ)

@posix
@pytest.mark.parametrize('then, now, name', [({}, dict(loss=own_loss), 'loss'), (dict(loss=own_loss), {}, 'loss'),
                                             ({}, dict(opt=Adam), 'opt'), ({}, dict(cbs=Callback()), 'cbs')],
                         ids=['loss given', 'loss dropped', 'opt given', 'callback given'])
def test_an_object_that_is_given_or_dropped(pictures, tmp_path, then, now, name):
    assert killed(make(pictures, tmp_path/'run', **then), one_cycle, 'before_batch', 6)
    with pytest.raises(InputError, match=fr"objects.{name} was '(not )?given' and is.*allow=\['{name}'\]"):
        resumed(make(pictures, tmp_path/'run', **now), one_cycle)
    learn = make(pictures, tmp_path/'run', **now)
    with learn.no_bar(): one_cycle(learn, resume=True, allow=name)
    assert learn.clock.epochs == 2 and not Run(tmp_path/'run').events('resume')[-1]['exact']

@posix
def test_objects_cannot_be_compared(pictures, tmp_path, capsys):
    assert killed(make(pictures, tmp_path/'run', opt=Adam), one_cycle, 'before_batch', 6)
    with pytest.raises(InputError, match=r"The optimizer is another one.*allow=\['opt'\]"):
        resumed(make(pictures, tmp_path/'run', opt=SGD), one_cycle)
    with pytest.raises(InputError, match="The optimizer is another one"):
        resumed(make(pictures, tmp_path/'run', opt=AdamW), one_cycle)
    learn = make(pictures, tmp_path/'run', opt=SGD)
    with learn.no_bar(): one_cycle(learn, resume=True, allow='opt')
    assert 'nobody can tell whether these are what they were: opt.' in capsys.readouterr().out
    assert not Run(tmp_path/'run').events('resume')[-1]['exact'] and learn.clock.epochs == 2

@posix
def test_a_call_that_was_refused_is_made_again(pictures, copied, cut, tmp_path):
    shutil.copytree(cut, tmp_path/'same', symlinks=True)
    learn, before = make(pictures, copied), (copied/'run.jsonl').read_text()
    with pytest.raises(InputError, match='lr_max'), learn.no_bar(): learn.fit_one_cycle(2, 1e-3, resume=True)
    assert (copied/'run.jsonl').read_text() == before
    assert outcome(resumed(learn, one_cycle)) == outcome(resumed(make(pictures, tmp_path/'same'), one_cycle))

def test_another_call_before(pictures, tmp_path):
    learn = make(pictures, tmp_path/'run')
    with learn.no_bar(): several(learn)
    again = make(pictures, tmp_path/'run')
    again.freeze()
    with pytest.raises(InputError, match=r"had fit\(n_epoch=1, lr=0.003\) as training call 2, which is done, and not fit"):
        again.fit(2, 3e-3, resume=True)

def test_a_finished_run(pictures, tmp_path, capsys):
    learn = make(pictures, tmp_path/'run')
    with learn.no_bar(): several(learn)
    again, before = make(pictures, tmp_path/'run'), (tmp_path/'run/run.jsonl').read_text()
    capsys.readouterr()
    resumed(again, several)
    out = capsys.readouterr().out
    assert 'fit(n_epoch=1, lr=0.003) was done already' in out and 'nothing was left to do; epoch 2 was its last' in out
    assert outcome(again) == outcome(learn) and (tmp_path/'run/run.jsonl').read_text() == before
    with again.no_bar(): again.fit(1, resume=True)
    assert again.clock.epochs == 3 and Run(tmp_path/'run').history().epoch.tolist() == [1, 2, 3], "another call is a new one"

def test_a_fit_that_was_cut_and_given_up_is_not_called_done(pictures, tmp_path, capsys):
    class Cut(Callback):
        def after_step(self): raise KeyboardInterrupt
    learn = make(pictures, tmp_path/'run')
    with pytest.raises(KeyboardInterrupt), learn.no_bar(): learn.fit(5, 3e-3, cbs=Cut())
    with learn.no_bar(): learn.fit(1, 3e-3)
    assert 'fit(n_epoch=5, lr=0.003) was cut, and this call gives it up' in capsys.readouterr().out
    again = make(pictures, tmp_path/'run')
    with again.no_bar(): again.fit(5, 3e-3, resume=True, allow=['cbs'])
    out = capsys.readouterr().out
    assert 'one was cut and given up' in out and 'done already' not in out

def test_a_call_that_trains_nothing_is_not_cut(pictures, tmp_path, capsys):
    class Stop(Callback):
        def after_step(self): self.learn.control.ask('stop')
    learn = make(pictures, tmp_path/'run')
    with learn.no_bar():
        learn.fit(5, 3e-3, cbs=Stop())
        learn.unfreeze()
        assert 'fit(n_epoch=5, lr=0.003) was cut, and this call gives it up' in capsys.readouterr().out and not learn.interrupted
        learn.fit(1, 3e-3)
    assert 'gives it up' not in capsys.readouterr().out and [o.method for o in learn.plan.schedule] == ['fit', 'freeze_to', 'fit']

def test_nothing_to_resume(pictures, tmp_path, capsys):
    learn = make(pictures, tmp_path/'run')
    resumed(learn, one_cycle)
    assert "nothing to resume in" in capsys.readouterr().out and learn.clock.epochs == 2
    with pytest.raises(InputError, match='this learner has none'): make(pictures, None).fit(1, resume=True)
    with pytest.raises(InputError, match='There is no run'): make(pictures, tmp_path/'none').resume()
    with pytest.raises(InputError, match='no run folder'): resume_run(tmp_path/'none')

def test_only_a_call_with_epochs_is_made_longer(pictures, tmp_path):
    with (learn := make(pictures, tmp_path/'run')).no_bar(): learn.fit_sgdr(1, 1)
    with pytest.raises(InputError, match=r'fit_sgdr\(n_cycles=1, cycle_len=1\), and has no number of epochs'):
        resume_run(tmp_path/'run', epochs=4)

def test_a_run_at_home(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('USERPROFILE', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    with (learn := make(pictures, '~/run')).no_bar(): learn.fit(1)
    assert resume_run('~/run').clock.epochs == 1 and (tmp_path/'home/run/latest.json').is_file() and not (tmp_path/'~').exists()

@posix
@pytest.mark.parametrize('damage', [lambda f: f.write_bytes(f.read_bytes()[:-100]), lambda f: f.unlink(),
                                    lambda f: f.write_bytes(f.read_bytes()[:-8] + b'12345678')])
def test_a_damaged_checkpoint_is_passed_over(pictures, tmp_path, damage, capsys):
    whole = make(pictures, tmp_path/'whole')
    with whole.no_bar(): one_cycle(whole)
    run = tmp_path/'run'
    assert killed(make(pictures, run), one_cycle, 'after_train', 2)
    damage(read_checkpoint(run, 'latest').state_file)
    for o in run.glob('latest.state*'): o.unlink()
    learn = resumed(make(pictures, run), one_cycle)
    out = capsys.readouterr().out
    assert 'latest.state.safetensors' in out and "goes on from 'epoch_1'" in out
    assert outcome(learn) == outcome(whole)

@posix
def test_damage_is_not_left_where_nothing_is_left_to_do(pictures, tmp_path, capsys):
    run = tmp_path/'run'
    with (learn := make(pictures, run)).no_bar(): one_cycle(learn)
    link_checkpoint(run, 'epoch_1', 'latest') # killed when epoch_2 was there, and latest did not stand for it yet
    read_checkpoint(run, 'latest').weights.write_bytes(b'not weights')
    resumed(make(pictures, run), one_cycle)
    assert 'latest.safetensors' in (out := capsys.readouterr().out) and 'nothing was left to do' in out
    found = read_checkpoint(run, 'latest')
    assert found.facts['epoch'] == 2 and found.weights == read_checkpoint(run, 'epoch_2').weights

@posix
def test_an_epoch_that_is_there_as_the_best_alone_is_kept_as_itself(pictures, tmp_path, capsys):
    whole, run = make(pictures, tmp_path/'whole'), tmp_path/'run'
    with whole.no_bar(): one_cycle(whole)
    assert killed(make(pictures, run), one_cycle, 'after_train', 2)
    drop_checkpoint(run, 'epoch_1') # killed when it was the best, and had no other name yet
    (run/'latest.json').write_bytes(b'{')
    learn = resumed(make(pictures, run), one_cycle)
    assert "goes on from 'best_model'" in capsys.readouterr().out and outcome(learn) == outcome(whole)
    assert read_checkpoint(run, 'epoch_1').facts == read_checkpoint(tmp_path/'whole', 'epoch_1').facts

def position_of(run, **changes): # a manifest that is whole, and says nonsense
    facts = read_checkpoint(run, 'latest').facts
    link = json.loads((run/'latest.json').read_text())
    link['facts'] = facts | {k: v for k, v in changes.items() if k == 'epoch'}
    link['facts']['position'] = dict(facts['position'], **changes) if changes.get('n_iter') != 'none' else dict(call=0)
    link.pop('sha256')
    link['sha256'] = hashlib.sha256(json.dumps(link, sort_keys=True).encode()).hexdigest()
    (run/'latest.json').write_text(json.dumps(link))

@posix
@pytest.mark.parametrize('changes', [dict(n_iter='none'), dict(n_iter=0), dict(epoch=9), dict(batch=-1), dict(n_epoch='2')],
                         ids=str)
def test_a_position_that_is_none(pictures, copied, changes, capsys):
    position_of(copied, **changes)
    with pytest.raises(InputError, match="'.*latest.json' does not say where the training stood.*resume='epoch_1'"):
        make(pictures, copied).fit_one_cycle(2, 4e-3, resume='latest')

@posix
@pytest.mark.parametrize('file, text', [('data.json', '{}'), ('data.json', None), ('data.json', '{"train": [1]}'),
                                        ('env.json', '[]'), ('env.json', None), ('env.json', '{"packages": 3}'),
                                        ('run.jsonl', None)])
def test_a_file_beside_is_damaged(pictures, copied, file, text, capsys):
    if text is None: (copied/file).unlink()
    else: (copied/file).write_text(text)
    learn = make(pictures, copied)
    if file == 'data.json':
        flaw = 'damaged' if text else 'missing'
        with pytest.raises(InputError, match=rf"data.json is {flaw}.*allow=\['pictures'\]"): one_cycle(learn, resume=True)
    with learn.no_bar(): one_cycle(learn, resume=True, allow='pictures')
    said = Run(copied).events('resume')[-1]
    assert learn.clock.epochs == 2 and said['exact'] == (file == 'run.jsonl') and Run(copied).status == 'finished'
    if file == 'data.json': assert Run(copied).data['vocab']
    if file == 'env.json': assert f"env.json was '{'damaged' if text else 'missing'}'" in capsys.readouterr().out

@posix
def test_a_folder_in_place_of_the_log(pictures, copied):
    (copied/'run.jsonl').unlink()
    (copied/'run.jsonl').mkdir()
    with pytest.raises(InputError, match="The log of the run .*is a directory. Set this right"):
        one_cycle(make(pictures, copied), resume=True)

@posix
@pytest.mark.parametrize('cut_to', [0, 100])
def test_a_plan_that_was_cut(pictures, copied, cut_to):
    (copied/'config.yaml').write_bytes((copied/'config.yaml').read_bytes()[:cut_to])
    for act in (lambda: one_cycle(make(pictures, copied), resume=True), lambda: resume_run(copied)):
        with pytest.raises(InputError, match=r"(?s)config.yaml.*Put the file back.*pretrained='.*latest.safetensors'"): act()

@posix
def test_no_checkpoint_is_whole(pictures, copied):
    for o in copied.rglob('*.safetensors'): o.write_bytes(b'')
    with pytest.raises(InputError, match='no whole checkpoint'): one_cycle(make(pictures, copied), resume=True)

@posix
def test_from_a_checkpoint_by_name(pictures, tmp_path, capsys):
    how = dict(cbs='ema', monitor='ema_valid_loss')
    whole = make(pictures, tmp_path/'run', **how)
    with whole.no_bar(): scheduled(whole)
    want = outcome(whole)
    learn = make(pictures, tmp_path/'run', **how)
    with learn.no_bar(): scheduled(learn, resume='epoch_1')
    assert "goes on from 'epoch_1': after epoch 1 of 3" in capsys.readouterr().out and outcome(learn) == want
    with pytest.raises(InputError, match="'best_model'.*holds weights alone"): make(pictures, tmp_path/'run', **how).fit(
        1, resume='best_model')

def names_of(run): return {o.stem: json.loads(o.read_text())['facts']['step'] for o in run.path.glob('*.json')
                           if o.stem not in ('data', 'env')}

@posix
@pytest.mark.parametrize('how', [{}, dict(save_interval=2, cbs='ema')], ids=str)
def test_going_back_is_kept_by_a_crash(pictures, tmp_path, how):
    def train(learn, rate=4e-3, **kwargs): learn.fit(4, rate, **kwargs)
    run = Run(tmp_path/'run')
    learn = make(pictures, run.path, monitor='train_loss', monitor_mode='max', keep_last=None, **how)
    learn.checkpointer.mode = 'min' # the last epoch is the best
    with learn.no_bar(): train(learn)
    assert names_of(run)['best_model'] == names_of(run)['latest'] == 12
    back = make(pictures, run.path, monitor='train_loss', monitor_mode='max', keep_last=None, **how)
    back.checkpointer.mode = 'min'
    assert killed(back, partial(train, rate=1e-9, resume='epoch_2', allow='lr'), 'before_batch', 1)
    kept = dict(epoch_2=6) if how else dict(epoch_1=3, epoch_2=6)
    assert names_of(run) == kept | dict(latest=6, best_model=6)
    again = make(pictures, run.path, monitor='train_loss', monitor_mode='max', keep_last=None, **how)
    with again.no_bar(): train(again, rate=1e-9, resume=True, allow='lr')
    assert run.events('resume')[-1]['checkpoint'] == 'latest' and run.history().epoch.tolist() == [1, 2, 3, 4]
    assert again.clock.steps == names_of(run)['latest'] == 12

@pytest.mark.parametrize('name', ['epoch_2', 'latest'])
def test_who_goes_back_loses_nothing(pictures, tmp_path, capsys, name):
    run, aside = Run(tmp_path/'run'), Run(tmp_path/'run-1')
    learn = make(pictures, run.path, save_interval=1, keep_last=None)
    with learn.no_bar(): learn.fit(4, 4e-3)
    before, weights = names_of(run), safetensors.torch.load_file(run.path/'best_model.safetensors')
    inodes = {o.stat().st_ino for o in run.path.rglob('*.safetensors')}
    events, back = run.events(), make(pictures, run.path, save_interval=1, keep_last=None)
    with back.no_bar(): back.fit(4, .5, resume=name, allow='lr')
    said = capsys.readouterr().out
    assert aside.path.exists() == ('goes back' in said) == (name != 'latest')
    if name == 'latest': return
    assert f"{run.path} goes back to 'epoch_2', before " in said
    assert f"epoch_4, latest; as it was it is kept as {aside.path}." in said
    assert names_of(aside) == before and aside.events() == events and aside.last_status == 'finished'
    assert {o.stat().st_ino for o in aside.path.rglob('*.safetensors')} == inodes, "no room is taken"
    assert all(torch.equal(v, weights[k]) for k, v in safetensors.torch.load_file(aside.path/'best_model.safetensors').items())
    assert len(evaluate(aside.path)) and names_of(run)['latest'] == before['latest'] and not list(tmp_path.glob('.*'))
    more = make(pictures, aside.path, save_interval=1, keep_last=None)
    with more.no_bar(): more.fit(5, 4e-3, resume=True, allow='n_epoch')
    assert more.clock.epochs == 5, "it can be gone on with"

def test_the_best_of_what_is_left(pictures, tmp_path):
    learn = make(pictures, tmp_path/'run', save_interval=0)
    with learn.no_bar(): learn.fit(1, 1e-3)
    learn.checkpointer.best, learn.clock.steps = (2., 2.), 2 # as if it had gone back into the first epoch
    for o, step in (('best_model', 3), ('latest', 2)): save_checkpoint(tmp_path/'run', o, {}, None, dict(step=step, epoch=0))
    learn.checkpointer.go_back('latest')
    assert learn.checkpointer.best is None and names_of(Run(tmp_path/'run')) == dict(latest=2)
    save_checkpoint(tmp_path/'run', 'epoch_1', {}, None, dict(step=2, epoch=1, top1='nan', valid_loss=.5))
    save_checkpoint(tmp_path/'run', 'best_model', {}, None, dict(step=3, epoch=1))
    learn.checkpointer.go_back('latest')
    assert learn.checkpointer.best == (-np.inf, -.5) and names_of(Run(tmp_path/'run'))['best_model'] == 2
    save_checkpoint(tmp_path/'run', 'best_model', {}, None, dict(step=3, epoch=2))
    (tmp_path/'run/epoch_2.json').write_text('{') # which nobody can know to be of a later step
    learn.checkpointer.go_back('latest')
    assert learn.checkpointer.best == (-np.inf, -.5) and read_checkpoint(tmp_path/'run', 'best_model').facts['step'] == 2

@posix
def test_predictions_before_the_run_goes_on_are_the_runs(pictures, tmp_path):
    assert killed(make(pictures, tmp_path/'run'), several, 'after_train', 2)
    learn = make(pictures, tmp_path/'run')
    with learn.no_bar():
        learn.freeze()
        learn.fit(1, 3e-3, resume=True)
    saved = read_checkpoint(tmp_path/'run', 'latest')
    assert learn.clock.steps == 0 and hash_of(learn.model.state_dict()) == hash_of(Moment.read(saved).weights)
    learn.lr_find(num_it=6, show_plot=False)
    learn.validate()
    learn.unfreeze()
    with learn.no_bar(): learn.fit_one_cycle(1, slice(1e-4, 1e-3), resume=True)
    whole = make(pictures, tmp_path/'whole')
    with whole.no_bar(): several(whole)
    assert outcome(learn) == outcome(whole)

def test_one_writer_at_a_time(pictures, tmp_path):
    said = []
    class Other(Callback):
        def after_batch(self):
            if self.clock.steps == 2 and not said:
                with pytest.raises(InputError) as e: make(pictures, tmp_path/'run').fit_one_cycle(2, 4e-3, resume=True)
                said.append(str(e.value))
    learn = make(pictures, tmp_path/'run', cbs=Other())
    with learn.no_bar(): one_cycle(learn)
    assert 'is being written by' in said[0] and Run(tmp_path/'run').status == 'finished'

def fill_the_disk(monkeypatch): # as far as the run writes
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(files, '_write_pieces', full)

def test_a_full_disk(pictures, tmp_path, monkeypatch, capsys):
    class Fill(Callback):
        def after_batch(self):
            if self.clock.steps == 1: fill_the_disk(monkeypatch)
    class Careless(Callback):
        order = -99
        def close(self): raise ZeroDivisionError('of its own')
    learn = make(pictures, tmp_path/'run', cbs=[Fill(), Careless()])
    with pytest.raises(InputError, match="checkpoint 'latest' could not be written.*disk is full.*whole: latest"), learn.no_bar():
        one_cycle(learn)
    run, out = Run(tmp_path/'run'), capsys.readouterr().out
    assert run.status == 'failed' and 'disk is full' in run.events('failed')[0]['error']
    assert run.steps().step.tolist() == [1, 2, 3]
    assert "The plan of the run" in out and 'careless could not put back what it had changed: of its own' in out
    monkeypatch.undo()
    for cb in (learn.fill, learn.careless): learn.remove_cb(cb)
    with learn.no_bar(): one_cycle(learn, resume=True, allow=['without fill', 'without careless'])
    assert run.status == 'finished' and learn.clock.steps == 6

def test_a_copy_of_a_run_that_goes_on_is_not_finished(pictures, tmp_path):
    class Copy(Callback):
        order = 99
        def before_train(self):
            self.checkpointer.wait()
            if self.clock.epochs == 1: shutil.copytree(tmp_path/'run', tmp_path/'copy', ignore=shutil.ignore_patterns('run.lock'))
    learn = make(pictures, tmp_path/'run', cbs=Copy())
    with learn.no_bar(): one_cycle(learn)
    assert (Run(tmp_path/'copy').status, Run(tmp_path/'run').status) == ('killed', 'finished')

@pytest.mark.parametrize('cut', [False, True], ids=['done', 'cut'])
def test_a_run_that_was_moved_is_not_begun_again_in_its_middle(pictures, tmp_path, cut, capsys):
    class Cut(Callback):
        def after_batch(self):
            if cut and self.clock.steps == 4 and there.exists() and not Run(there).events('interrupted'): raise KeyboardInterrupt
    there = tmp_path/'one'
    learn = make(pictures, there, cbs=['csv', 'console', Cut()])
    with pytest.raises(KeyboardInterrupt) if cut else nullcontext(), learn.no_bar(): one_cycle(learn)
    before = there.rename(tmp_path/'two'), learn.plan, capsys.readouterr()
    for resume in (False, cut):
        with pytest.raises(InputError, match="one', which this learner wrote, is gone; was its folder moved"):
            one_cycle(learn, resume=resume)
    out = capsys.readouterr().out
    assert not there.exists() and learn.plan == before[1] and 'cannot be written' not in out and 'it starts' not in out
    (tmp_path/'two').rename(there)
    with learn.no_bar(): one_cycle(learn, resume=cut)
    assert Run(there).status == 'finished' and Run(there).steps().step.tolist() == list(range(1, 7 if cut else 13))

def test_two_learners_of_one_folder_do_not_mix(pictures, tmp_path, capsys):
    first, second = (make(pictures, tmp_path/'run') for _ in range(2))
    for o in (first, second):
        with o.no_bar(): one_cycle(o)
    files = {o: o.read_bytes() for o in (tmp_path/'run').rglob('*') if o.is_file()}
    for act in (one_cycle, partial(one_cycle, resume=True), evaluate):
        with pytest.raises(InputError, match="run' is another learner's now, .* kept beside it") as e: act(first)
        assert ('run=False' in str(e.value)) == (act is evaluate)
    assert {o: o.read_bytes() for o in (tmp_path/'run').rglob('*') if o.is_file()} == files
    assert evaluate(first, run=False).run is None
    (tmp_path/'run').rename(tmp_path/'second')
    with pytest.raises(InputError, match="is gone; was its folder moved"): evaluate(first)
    assert not (tmp_path/'run').exists()
    (tmp_path/'run-1').rename(tmp_path/'run')
    with first.no_bar(): one_cycle(first)
    assert Run(tmp_path/'run').steps().step.tolist() == list(range(1, 13))

# Parts

def test_an_epoch_entered_in_the_middle_decodes_no_picture_before(pictures, monkeypatch):
    decoded = []
    call = PixelCache.__call__
    monkeypatch.setattr(PixelCache, '__call__', lambda self, source: decoded.append(source) or call(self, source))
    dl = image_dls(pictures, size=32, bs=8, device='cpu', num_workers=0).train
    whole = [x for x, _ in dl]
    decoded.clear()
    dl.first = 2
    rest = [x for x, _ in dl]
    assert len(whole) == 3 and len(rest) == 1 and torch.equal(rest[0], whole[2]) and len(decoded) == 8
    assert len([*dl]) == 3, "the next pass is whole"

def test_loss_scale_goes_along():
    from fastai.callback.fp16 import MixedPrecision
    from fastai.test_utils import synth_learner
    a, b = synth_learner(cbs=[MixedPrecision()]), synth_learner(cbs=[MixedPrecision()])
    for o in (a, b): o.scaler = torch.amp.GradScaler('cpu', init_scale=2.**8)
    a.scaler.scale(torch.ones(1))
    a.scaler.update(2.**5)
    put_state(b.mixed_precision, state_of(a.mixed_precision))
    assert b.scaler.get_scale() == a.scaler.get_scale() == 2.**5

def test_what_a_checkpoint_knows(pictures, tmp_path):
    learn = make(pictures, tmp_path/'run', cbs=['ema', 'early_stop'])
    with learn.no_bar(): fine_tune(learn)
    found = find_checkpoint(Run(tmp_path/'run'))
    assert Position(**found.facts['position']) == Position(0, 2, 1, 0, 1, 3) and found.facts['step'] == 6
    assert {'clock', 'recorder', 'ema', 'early_stop', 'checkpointer'} <= set(found.state()['callbacks'])
    assert Clock.state(learn.clock) == found.state()['callbacks']['clock']

@posix
def test_a_table_of_epochs_has_each_once(pictures, tmp_path):
    import pandas as pd
    how = dict(cbs='csv')
    assert killed(make(pictures, tmp_path/'run', **how), one_cycle, 'after_epoch', 2, 75) # written, and not saved
    learn = make(pictures, tmp_path/'run', **how)
    one_cycle(learn, resume=True)
    assert pd.read_csv(tmp_path/'run/epochs.csv').epoch.tolist() == [1, 2]
    rows = [json.loads(o) for o in (tmp_path/'run/run.jsonl').read_text().splitlines()]
    assert [o['epoch'] for o in rows if o['event'] == 'epoch'] == [1, 2, 2]
    assert Run(tmp_path/'run').history().epoch.tolist() == [1, 2]

@posix
def test_continuing_as_a_yaml_file_says(copied, tmp_path, monkeypatch):
    from pathlib import Path
    quick = Path(__file__).parents[1]/'configs'
    file = next(o for o in sorted(quick.rglob('*.yaml')) if 'DataLoader:' in o.read_text('utf-8'))
    plan = lambda *o: plan_from_config(read_config(file, list(o)))
    assert plan().resume is None
    for given, name in ((copied, 'newest'), (copied/'latest', 'latest'), (copied/'epoch_1.safetensors', 'epoch_1')):
        made = plan(f'Global.checkpoints={given}')
        assert (Path(made.run), made.resume) == (copied, name) and 'goes on in' in made.notes[-1]
    with pytest.raises(InputError, match='no run, and no checkpoint'): plan(f'Global.checkpoints={tmp_path}/nowhere/latest')

def test_time_that_was_spent_counts(pictures, tmp_path):
    learn = make(pictures, tmp_path/'run', cbs=[('time_limit', dict(max_minutes=5))])
    with learn.no_bar(): learn.fit(1)
    spent = find_checkpoint(Run(tmp_path/'run')).state()['callbacks']['time_limit']['spent']
    assert 0 < spent < 300 and np.isclose(spent, learn.time_limit.spent, atol=5)
