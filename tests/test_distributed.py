"Several processes do what one does, and say so when they cannot"
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import together
import torch

from imgcls_nb.checkpoints import read_checkpoint
from imgcls_nb.core import InputError
from imgcls_nb.datasets import make_shapes
from imgcls_nb.distributed import follow, load_ipython_extension, plan_to_launch, take_back
from imgcls_nb.distributed import launch as launch_learner
from imgcls_nb.learner import resume_run
from imgcls_nb.plan import FitPlan
from imgcls_nb.ranks import forget_leftovers, is_launched, rank, world
from imgcls_nb.runs import Run

SCRIPT = Path(together.__file__)
linux = pytest.mark.skipif(sys.platform != 'linux', reason="processes end with their launcher on Linux only")

@pytest.fixture(scope='module')
def pictures(tmp_path_factory): # 20 to train on, 5 to validate
    folder = make_shapes(tmp_path_factory.mktemp('data')/'shapes', n=9)
    for o in sorted(folder.glob('circle/*'))[:2]: o.unlink()
    return folder

@pytest.fixture(scope='module')
def out(tmp_path_factory): return tmp_path_factory.mktemp('together')

def imgcls(*args, **kwargs): return [sys.executable, '-m', 'imgcls_nb.cli', *map(str, args)]

def finish(command, timeout=150, env=None):
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env and os.environ | env)
    return done.returncode, done.stdout, done.stderr

def launch(nproc, pictures, out, *jobs, options=()):
    status, said, errors = finish(imgcls('launch', '--nproc', nproc, *options, 'python', SCRIPT, pictures, out, *jobs))
    return status, said, errors

def load(out, name): return torch.load(out/f'{name}.pt', weights_only=False) # our own

# The same steps

@pytest.fixture(scope='module')
def two(pictures, out):
    status, _, errors = launch(2, pictures, out, *(f'case:{o}' for o in together.CASES), 'run:whole', 'late:')
    assert status == 0, errors
    return out

@pytest.mark.parametrize('name', together.CASES)
def test_two_processes_make_the_steps_of_one(two, pictures, name):
    one, both = together.case(pictures, name), load(two, f'case-{name}')
    assert one['grads'].shape == both['grads'].shape and one['grads'].abs().max() > .01
    assert (one['grads'] - both['grads']).abs().max() < 1e-5, "step by step"
    assert np.allclose(one['losses'], both['losses'], atol=1e-5) and one['counts'] == both['counts'] and both['bare']
    assert one['values'].keys() == both['values'].keys()
    for k, v in one['values'].items(): assert v == pytest.approx(both['values'][k], abs=2e-4), k
    for state in ('weights', 'average'):
        for k, v in one[state].items(): assert torch.allclose(v, both[state][k], atol=1e-5), k

def test_who_is_late_is_named(two):
    got = load(two, 'late-')
    assert 'for process 1, in vain' in got['said'][0] and 'lunch' in got['said'][0] and got['there'] == [True, True]

# Each picture once

@pytest.fixture(scope='module')
def three(pictures, out):
    learn = together.make(pictures, arch='test_resnet')
    with learn.no_bar(): learn.fit_one_cycle(4, 1e-2)
    torch.save(learn.model.state_dict(), out/'alone.pt')
    status, _, errors = launch(3, pictures, out, 'count:')
    assert status == 0, errors
    return load(out, 'count-')

def test_three_processes_count_as_one(three, pictures, out):
    (out/'alone').mkdir()
    shutil.copyfile(out/'alone.pt', out/'alone/alone.pt')
    one = together.count(pictures, out/'alone')
    assert len(one['names']) % 3, "they cannot be shared out evenly"
    for k in ('matrix', 'per_class', 'names'): assert three[k] == one[k], k
    assert torch.allclose(three['preds'], one['preds'], atol=1e-6) and torch.equal(three['targs'], one['targs'])
    assert np.allclose(three['values'], one['values'], atol=1e-6) and torch.allclose(three['few'], one['few'], atol=.5)
    assert len(three['worst']) == len(one['worst']) == len(one['names'])

def test_each_picture_is_seen_once_in_an_epoch(three, pictures):
    dls = together.make(pictures, arch='test_resnet', bs=3*(together.BATCH//3)).dls # as many as three make
    for epoch in range(2):
        parts = [o[epoch] for o in three['pictures']]
        assert sorted(sum(sum(parts, []), [])) == sorted(map(dls.train_ds.name, range(len(dls.train_ds))))
        dls.train.epoch = epoch
        whole = [[dls.train_ds.name(i) for i in o[1]] for o in dls.train.epoch_batches()]
        together_ = [sum(batch, []) for batch in zip(*parts)]
        assert [sorted(o) for o in whole if len(o) > 3] == [sorted(o) for o in together_][:len([o for o in whole if len(o) > 3])]

# Cut, and gone on with

def alive(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError: return False

@linux
def test_killed_whole_and_resumed(two, pictures, out):
    whole = load(two, 'run-whole')
    command = imgcls('launch', '--nproc', 2, 'python', SCRIPT, pictures, out, 'run:all')
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    marks, deadline = [out/f'waits-{r}' for r in range(2)], time.monotonic() + 120
    while not all(o.exists() and o.read_text() for o in marks) and time.monotonic() < deadline: time.sleep(.1)
    process.kill()
    process.wait()
    pids = [int(o.read_text()) for o in marks]
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline: time.sleep(.1)
    assert not any(map(alive, pids)), "nobody is left behind"
    assert Run(out/'run-all').status == 'killed'
    shutil.copytree(out/'run-all', out/'run-another')
    status, said, errors = launch(2, pictures, out, 'run:all-resumed')
    assert status == 0 and 'goes on from' in said, errors
    assert load(out, 'run-all-resumed')['moment'] == whole['moment'], "bit by bit"
    assert Run(out/'run-all').events('resume')[-1]['exact']

@linux
def test_resumed_with_another_number_of_processes(two, pictures, out, capsys):
    learn = resume_run(out/'run-another')
    assert 'processes was 2 and is 1' in capsys.readouterr().out and not Run(out/'run-another').events('resume')[-1]['exact']
    whole, now = load(two, 'run-whole'), [float(o) for o in learn.recorder.losses]
    assert len(now) == len(whole['losses']) and learn.dls.train.bs == together.BATCH, "the steps are those that were planned"
    assert np.allclose(now[:4], whole['losses'][:4]) and Run(out/'run-another').status == 'finished'

def test_one_is_killed(two, pictures, out):
    status, said, errors = launch(2, pictures, out, 'run:one')
    assert status == 137 and 'process 1 was killed by SIGKILL' in errors and 'Traceback' not in errors
    assert len(errors.strip().splitlines()) <= 2, errors
    (out/'died').unlink()
    status, said, errors = launch(2, pictures, out, 'run:one', options=['--max-restarts', 1])
    assert status == 0 and 'goes on from' in said, errors
    assert load(out, 'run-one')['moment'] == load(two, 'run-whole')['moment']

# From the shell

def test_shell(pictures, out):
    train = ['train', pictures, '--arch', 'test_resnet', '--size', 32, '--epochs', 1, '--bs', 4]
    stale = dict(WORLD_SIZE='7', RANK='3')
    status, said, errors = finish(imgcls('launch', '--nproc', 2, *train, '--run', out/'shell'), env=stale)
    assert status == 0 and said.count('train_loss') == 1, errors
    run = Run(out/'shell')
    assert run.status == 'finished' and run.env['processes'] == 2 and run.plan.data.processes == 2 and (run.path/'ranks').is_dir()
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', '--', 'imgcls_nb.cli']
    status, said, errors = finish([*torchrun, *map(str, train), '--run', str(out/'torchrun')])
    assert status == 0 and said.count('train_loss') == 1, errors
    assert Run(out/'torchrun').best.facts['train_loss'] == run.best.facts['train_loss']
    status, said, errors = finish(imgcls('launch', '--nproc', 2, 'eval', out/'shell'))
    assert status == 0 and said.count('precision') == 1 and 'top1' in said, errors

def test_one_message(pictures, out):
    status, said, errors = finish(imgcls('launch', '--nproc', 2, 'train', out/'nowhere', '--run', out/'none'))
    assert status == 2 and errors.count('imgcls:') == 1 and 'nowhere' in errors and 'Traceback' not in errors + said
    for args, text in ((['launch', 'train', 'x'], 'say how many'), (['launch', '--gpus', '0,1', 'train', 'x'], '--nproc 2'),
                       (['launch', '--nproc', '2', 'export', 'x'], 'train, resume'),
                       (['launch', '--nproc', '2'], 'takes a command')):
        if torch.cuda.is_available() and args[1] in ('train', '--gpus'): continue
        status, said, errors = finish(imgcls(*args))
        assert status == 2 and text in errors and 'Traceback' not in errors, args

# From a notebook

def test_stopped_from_a_notebook(pictures, out):
    learn = together.make(pictures, out/'asked', 'test_resnet', bs=8)
    job = launch_learner(learn, nproc=2, fit=('fit', dict(n_epoch=2000)), wait=False)
    deadline = time.monotonic() + 90
    while job.running and not Run(job.run).events('epoch') and time.monotonic() < deadline: time.sleep(.1)
    assert job.running, job.read()
    job.stop()
    assert follow(job, show=lambda *args, **kwargs: None) == 0, job.text
    assert Run(job.run).last_status == 'stopped' and job.text.count('train_loss') == 1
    before = learn.model.state_dict()['fc.weight'].clone()
    assert take_back(learn, job.run) is learn and learn.clock.steps == read_checkpoint(job.run, 'latest').facts['step'] > 0
    assert not torch.equal(learn.model.state_dict()['fc.weight'], before)
    with pytest.raises(InputError, match='nothing to stop'): job.stop()
    again = plan_to_launch(learn, ('fit', dict(n_epoch=1)), folder=out)
    assert again.model.pretrained == str(out/'asked-start.safetensors') and again.schedule == (FitPlan('fit', dict(n_epoch=1)),)

def test_what_failed_is_said_once(pictures, out):
    plan = replace(together.make(pictures).plan, run=str(out/'failed'), schedule=(FitPlan('fit', dict(n_epoch=1)),))
    plan = replace(plan, data=replace(plan.data, path='nowhere'))
    with pytest.raises(InputError, match='nowhere'): launch_learner(plan, nproc=2)

class Shell: # as much of IPython as a magic needs
    def __init__(self): self.user_ns = {}
    def register_magic_function(self, f, kind, name): self.magic = f

def test_a_cell_of_ones_own(pictures, out, capsys):
    shell = Shell()
    load_ipython_extension(shell)
    cell = "raise ValueError('on purpose')\n"
    with pytest.raises(InputError, match='has failed'): shell.magic(f'--nproc 2 --run {out/"cell"}', cell)
    said = capsys.readouterr().out
    assert said.count('ValueError: on purpose') == 1 and "cell.py" in said and (out/'cell/cell.py').read_text().startswith(cell)
    with pytest.raises(InputError, match='--nprocs is unknown'): shell.magic('--nprocs 2', cell)
    with pytest.raises(InputError, match='invalid int'): shell.magic('--nproc two', cell)

def test_leftovers(monkeypatch, capsys):
    for k, v in dict(WORLD_SIZE='2', RANK='1').items(): monkeypatch.setenv(k, v)
    assert (rank(), world(), is_launched()) == (0, 1, False)
    forget_leftovers()
    assert 'left over' in capsys.readouterr().out and 'WORLD_SIZE' not in os.environ

def test_sync_bn_is_for_cuda(pictures):
    with pytest.raises(InputError, match='for CUDA only'): together.make(pictures, sync_bn=True)

def test_plans_tell_who_shares(pictures):
    learn = together.make(pictures)
    assert learn.plan.data.processes == 1 and json.dumps(learn.plan.data.processes) == '1'
