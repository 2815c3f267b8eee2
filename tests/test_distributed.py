"Several processes do what one does, and say so when they cannot"
import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import together
import torch
import yaml
from fastai.callback.core import Callback
from safetensors.torch import load_file

from imgcls_nb import data, distributed, launching, learner, ranks, resume, verbs
from imgcls_nb.callbacks import parallel
from imgcls_nb.callbacks.control import ask_run
from imgcls_nb.callbacks.steps import BackOff, ClipNorm
from imgcls_nb.checkpoints import read_checkpoint
from imgcls_nb.cli import main, make_parser
from imgcls_nb.core import InputError, is_one_of_many
from imgcls_nb.data import BatchMaker
from imgcls_nb.datasets import make_shapes
from imgcls_nb.distributed import _take_over, _write_cell, launch_cell, load_ipython_extension, plan_to_launch, take_back
from imgcls_nb.distributed import launch as launch_learner
from imgcls_nb.learner import resume_run
from imgcls_nb.plan import FitPlan
from imgcls_nb.ranks import LostError, first_alone, forget_leftovers, rank, wait_for_all, world
from imgcls_nb.runs import Run
from imgcls_nb.shipped import shipped_path

pytestmark = pytest.mark.alone
SCRIPT = Path(together.__file__)
linux_here = sys.platform == 'linux'
linux = pytest.mark.skipif(not linux_here, reason="processes end with their launcher on Linux only")

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
    status, _, errors = launch(2, pictures, out, *(f'case:{o}' for o in together.CASES), 'run:whole', 'curves:', 'late:')
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

@pytest.mark.parametrize('name', [*(f'case-{o}' for o in together.CASES), 'run-whole'])
def test_processes_end_with_the_same_weights(two, name):
    first, second = load(two, name)['hashes'] # of the weights and of their average
    assert first == second

def test_batchnorm_of_each_process_learns_as_fast(two, pictures):
    one, both = (np.array(o['losses']) for o in (together.curves(pictures), load(two, 'curves-')))
    assert one.shape == both.shape and not np.allclose(one, both, atol=1e-3), "they are not the same steps"
    apart, spread = (both - one).mean(0), np.sqrt((one.var(0, ddof=1) + both.var(0, ddof=1))/len(one))
    assert np.all(abs(apart) < 3*spread), "no more apart than seeds are"
    for o in (one, both): assert o[:, -1].mean() < o[:, 0].mean() - .02, "it learns"

def test_one_process_writes(two):
    run = Run(two/'run-whole')
    assert [o['epoch'] for o in run.events('epoch')] == [1, 2] and len(run.events('end')) == 1
    assert run.env['processes'] == 2

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
    assert [three['hashes'][0]]*3 == three['hashes'] and len(three['rest']['preds']) == len(one['names']) - 1
    assert np.allclose(three['rest']['values'], one['rest']['values'], atol=1e-6), "who can read nothing counts nothing"
    assert torch.allclose(three['rest']['preds'], one['rest']['preds'], atol=1e-6)

def test_only_the_first_has_all_probabilities(three, out):
    n = len(three['names'])
    assert three['rows'] == [[n, n], [0, 0], [0, 0]]
    (kinds, nlls, *others) = zip(*three['told'])
    assert kinds == ('Evaluation', 'Told', 'Told') and np.allclose(nlls, nlls[0], atol=1e-6)
    assert all(o == (o[0],)*3 for o in others), "whoever decides by a figure decides alike"

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
def test_resumed_with_another_number_of_processes(two, pictures, out, capsys, monkeypatch):
    made, make = [], BatchMaker.item
    monkeypatch.setattr(BatchMaker, 'item', lambda self, i, *how: made.append(self.pics.name(i)) or make(self, i, *how))
    learn = resume_run(out/'run-another')
    assert 'processes was 2 and is 1' in capsys.readouterr().out and not Run(out/'run-another').events('resume')[-1]['exact']
    whole, now = load(two, 'run-whole'), [float(o) for o in learn.recorder.losses]
    assert len(now) == len(whole['losses']) and learn.dls.train.bs == together.BATCH, "the steps are those that were planned"
    assert np.allclose(now[:4], whole['losses'][:4]) and Run(out/'run-another').status == 'finished'
    dl = learn.dls.train
    dl.epoch = 1
    first, *rest = [[dl.dataset.name(i) for i in idxs] for _, idxs, _ in dl.epoch_batches()]
    trained = {dl.dataset.name(i) for i in range(len(dl.dataset))}
    assert [o for o in made if o in trained] == sum(rest, []), "what the two had not seen yet of the second epoch"
    assert {*first}.isdisjoint(sum(rest, [])) and Run(out/'run-another').events('resume')[-1]['checkpoint'] == 'latest'

def test_one_is_killed(two, pictures, out):
    status, said, errors = launch(2, pictures, out, 'run:one')
    assert status == 137 and 'process 1 was killed by SIGKILL' in errors and 'Traceback' not in errors
    assert len(errors.strip().splitlines()) <= 2, errors
    (out/'died').unlink()
    status, said, errors = launch(2, pictures, out, 'run:one', options=['--max-restarts', 1])
    assert status == 0 and 'goes on from' in said, errors
    assert load(out, 'run-one')['moment'] == load(two, 'run-whole')['moment']

# From the shell

@pytest.fixture(scope='module')
def config(two, pictures, out):
    "A YAML file that goes on from the weights of another run"
    return write_config(pictures, out, 5, name='test_resnet', pretrained=str(two/'run-whole/best_model.safetensors'))

def write_config(pictures, out, epochs, **arch):
    names = sorted(o.name for o in pictures.iterdir())
    listed = [f'{o.relative_to(pictures)} {i}\n' for i, name in enumerate(names) for o in sorted((pictures/name).iterdir())]
    (out/'train.txt').write_text(''.join(listed[::2] + listed[1::4]))
    (out/'val.txt').write_text(''.join(listed[3::4]))
    cfg = yaml.safe_load(shipped_path('configs/quick_start/digits.yaml').read_text('utf-8'))
    cfg['Global'] |= dict(device='cpu', epochs=epochs, print_batch_step=100)
    cfg['AMP']['use_amp'] = False # all digits are compared
    cfg['Arch'] |= dict(class_num=3, **arch)
    for o, name in (('Train', 'train'), ('Eval', 'val')):
        part = cfg['DataLoader'][o]
        part['dataset'] |= dict(name='ImageNetDataset', image_root=str(pictures), cls_label_path=str(out/f'{name}.txt'))
        part['sampler']['batch_size'] = 4
    (out/'X.yaml').write_text(yaml.safe_dump(cfg, sort_keys=False))
    return out/'X.yaml'

def setting(out, name): return '-o', f'Global.output_dir={out/name}'

def same_weights(*runs):
    first, *others = (load_file(o/'test_resnet/latest.safetensors') for o in runs)
    return all(first.keys() == o.keys() and all(torch.equal(v, o[k]) for k, v in first.items()) for o in others)

def process_of(launcher, number): # by its environment; None: it is not there
    for o in Path('/proc').glob('[0-9]*'):
        with suppress(OSError):
            mine = f'PPid:\t{launcher.pid}\n' in (o/'status').read_text()
            if mine and f'\0RANK={number}\0'.encode() in b'\0' + (o/'environ').read_bytes(): return int(o.name)

@pytest.fixture(scope='module')
def shell(config, out):
    "`imgcls launch --max-restarts 1 train -c`, one of whose processes is killed; a copy of the run as it was then"
    run, stale = out/'shell/test_resnet', dict(WORLD_SIZE='7', RANK='3')
    command = imgcls('launch', '--nproc', 2, '--max-restarts', 1, 'train', '-c', config, *setting(out, 'shell'))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | stale)
    deadline, paused = time.monotonic() + 150, lambda: (run/'config.yaml').is_file() and Run(run).events('paused')
    while not paused() and process.poll() is None and time.monotonic() < deadline:
        with suppress(InputError): ask_run(run, 'pause') # in vain until somebody listens
        time.sleep(.1)
    shutil.copytree(run, out/'cut/test_resnet')
    if linux_here: os.kill(process_of(process, 1), signal.SIGKILL)
    else: ask_run(run, 'resume')
    said, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    return said

def test_killed_and_restarted(shell, out):
    run = Run(out/'shell/test_resnet')
    assert run.last_status == 'finished' and run.env['processes'] == 2 and (run.path/'ranks').is_dir()
    assert shell.count('The run is in') == 1 and ('goes on from' in shell or not linux_here)

TRAIN = '-m', 'imgcls_nb.cli', 'train', '-c'
LAUNCHERS = dict(torchrun=['torch.distributed.run', '--standalone', '--nproc-per-node', '2'],
                 accelerate=['accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--main_process_port', '0'])

@pytest.mark.parametrize('name', LAUNCHERS)
def test_other_launchers_give_the_same(name, shell, config, out):
    command = [sys.executable, '-m', *LAUNCHERS[name], *TRAIN, str(config), *setting(out, name)]
    status, said, errors = finish(command, env=dict(HF_HOME=str(out/'hf')))
    assert status == 0 and said.count('The run is in') == 1 and 'find_unused' not in errors, errors
    assert Run(out/name/'test_resnet').env['processes'] == 2 and same_weights(out/'shell', out/name)

def test_resumed_and_evaluated_as_paddleclas_does(shell, config, out, capsys):
    options = ['-c', config, *setting(out, 'cut')]
    checkpoint = f'Global.checkpoints={out/"cut/test_resnet/latest"}'
    status, said, errors = finish(imgcls('launch', '--nproc', 2, 'train', *options, '-o', checkpoint))
    assert status == 0 and 'goes on from' in said and same_weights(out/'shell', out/'cut'), errors
    options += ['-o', f'Global.pretrained_model={out/"cut/test_resnet/best_model"}']
    status, said, errors = finish(imgcls('launch', '--nproc', 2, 'eval', *options))
    capsys.readouterr()
    assert status == 0 and main(['eval', *map(str, options)]) == 0, errors
    alone = capsys.readouterr().out
    assert said.count('precision') == 1 and stamped_lines(said) == stamped_lines(alone), "as one process does"

def stamped_lines(text): return [re.sub(r'^\[.*?\] ', '', o) for o in text.splitlines() if 'loader processes' not in o]

def test_one_message(pictures, out, capsys):
    status, said, errors = finish(imgcls('launch', '--nproc', 2, 'train', out/'nowhere', '--run', out/'none'))
    assert status == 2 and errors.count('imgcls:') == 1 and 'nowhere' in errors and 'Traceback' not in errors + said
    for args, text in ((['launch', 'train', 'x'], 'say how many'), (['launch', '--gpus', '0,1', 'train', 'x'], '--nproc 2'),
                       (['launch', '--nproc', '0', 'train', 'x'], '--nproc 0 is no number'),
                       (['launch', '--nproc', 'two', 'train', 'x'], 'two is no number of processes. Give a whole one'),
                       (['launch', '--nnodes', '1.5', 'train', 'x'], '1.5 is no number of machines'),
                       (['launch', '--node-rank', '-1', 'train', 'x'], "-1 is no machine's number"),
                       (['launch', '--max-restarts', 'often', 'train', 'x'], 'such as --max-restarts 3'),
                       (['launch', '--timeout', '0', 'train', 'x'], '0 is no time to wait. Give seconds'),
                       (['launch', '--timeout', 'nan', 'train', 'x'], 'nan is no time to wait'),
                       (['launch', '--nproc', '2', 'export', 'x'], 'Run imgcls export by itself'),
                       (['launch', '--nproc', '2', 'trian', 'x'], "Did you mean 'train'?"),
                       (['launch', '--nproc', '2'], 'takes a command'), (['launch', '--nproc', '2', '--'], 'takes a command')):
        if torch.cuda.is_available() and args[1] in ('train', '--gpus'): continue
        assert main(args) == 2 and text in capsys.readouterr().err, args

@pytest.fixture
def own_sys(monkeypatch):
    "What a script changes is put back"
    for o in ('path', 'argv'): monkeypatch.setattr(sys, o, [*getattr(sys, o)])

def test_a_script_finds_what_lies_beside_it(tmp_path, own_sys, capsys):
    (tmp_path/'beside_the_script.py').write_text('there = 3')
    (tmp_path/'script.py').write_text('import beside_the_script; print(beside_the_script.there); import not_there_either')
    assert main(['python', str(tmp_path/'script.py')]) == 2
    said, errors = capsys.readouterr()
    assert said == '3\n' and "No module named 'not_there_either'" in errors and 'pip install' not in errors

def test_a_script_that_says_it_is_done_is(tmp_path, own_sys):
    script = tmp_path/'script.py'
    for text in ('sys.exit()', 'sys.exit(0)'):
        script.write_text(f'import sys; {text}')
        assert main(['python', str(script)]) == 0
    script.write_text('import sys; sys.exit(sys.argv[1])')
    with pytest.raises(SystemExit, match='7'): main(['python', str(script), '7'])

# What a restart goes on with

@pytest.fixture
def resumed(monkeypatch, tmp_path):
    "What `train` and `resume` go on with, by the line of the shell; nothing is trained"
    asked = []
    monkeypatch.setattr(learner, 'train_plan', lambda plan, allow=(): asked.append(plan.resume))
    monkeypatch.setattr(learner, 'resume_run', lambda run, checkpoint, *args, **kwargs: asked.append(checkpoint))
    monkeypatch.setattr(verbs, '_tell_run', lambda learn: None)
    def ask(*line):
        args = make_parser().parse_args([*map(str, line)])
        args.func(args)
        return asked[-1]
    return ask

def test_a_restart_goes_on_with_what_this_launch_has_begun(resumed, pictures, trained_run, tmp_path, monkeypatch):
    train, back = ('train', pictures), ('resume', trained_run, '--checkpoint', 'epoch_1')
    monkeypatch.setenv('IMGCLS_LOGS', str(tmp_path))
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    assert (resumed(*train), resumed(*back)) == (None, 'epoch_1'), "an attempt that opened no run has left nothing"
    (tmp_path/'run').write_text('runs/x')
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '0') # as where another machine has failed
    assert (resumed(*train), resumed(*back)) == ('newest', True)
    monkeypatch.delenv('IMGCLS_LOGS')
    assert resumed(*train) is None
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1') # of torchrun
    assert resumed(*train) == 'newest'

def test_processes_decide_together_whether_to_go_on(monkeypatch):
    monkeypatch.setattr(ranks, 'all_values', lambda here: [here, True]) # the first has the word, and this one has not
    assert ranks.has_begun()

def test_a_run_is_noted_when_it_is_open(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv('IMGCLS_LOGS', str(tmp_path))
    learn, start = together.make(pictures, tmp_path/'noted', 'test_resnet'), Run.start
    monkeypatch.setattr(Run, 'start', lambda self, *args: start(self, *args) or noted.append((tmp_path/'run').exists()))
    noted = []
    with learn.no_bar(): learn.fit(1, .01)
    assert noted == [False] and (tmp_path/'run').read_text() == str(tmp_path/'noted')

def test_all_have_read_the_run_before_it_is_written(pictures, tmp_path, monkeypatch):
    run, waited = tmp_path/'run', []
    with (learn := together.make(pictures, run, 'test_resnet')).no_bar(): learn.fit(1, .01)
    again = together.make(pictures, run, 'test_resnet')
    monkeypatch.setattr(resume, 'wait_for_all', lambda what: waited.append((again.resumption.env, again.origin is not None)))
    resume.take_up(again)
    assert waited == [({}, True)]
    Run(run).unlock()

def test_a_launcher_hears_at_once_of_a_process_that_lives(tmp_path, monkeypatch):
    monkeypatch.setenv('IMGCLS_LOGS', str(tmp_path))
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setitem(sys.modules, 'imgcls_nb.ranks', None) # as if torch took forever
    monkeypatch.setattr(launching, '_on_signals', lambda do: None)
    (tmp_path/'1.lost').touch()
    with pytest.raises(ImportError): launching.take_part(lambda: (0, ''))
    assert not (tmp_path/'1.lost').exists()

def test_where_launchers_meet():
    one, two = (launching.launcher_arguments(2, endpoint='127.0.0.1:29400') for _ in range(2))
    names = [next(o for o in args if o.startswith('--rdzv-id=')) for args in (one, two)]
    assert names[0] != names[1] and len(names[0]) > 40 and not any('c10d' in o for o in one), "no state is unpickled"
    where = dict(nnodes=2, node_rank=1, endpoint='127.0.0.1:29400')
    assert '--node-rank=1' in (fixed := launching.launcher_arguments(2, **where)) and not any('c10d' in o for o in fixed)
    assert '--rdzv-backend=c10d' in launching.launcher_arguments(2, **where, max_restarts=1)

@pytest.mark.parametrize('how, says', [
    (dict(nnodes=2), '--nnodes 2 needs --rdzv-endpoint HOST:PORT'), (dict(endpoint='a:1'), 'Say how many there are'),
    (dict(nnodes=2, endpoint='a'), '; a is none'), (dict(nnodes=2, endpoint='a:99999'), '; a:99999 is none'),
    (dict(nnodes=2, node_rank=2, endpoint='a:1'), 'have the numbers 0 to 1'),
    (dict(node_rank=1), 'is for several machines')], ids=str)
def test_machines_that_cannot_meet_are_told_before_anything_starts(how, says):
    with pytest.raises(InputError, match=re.escape(says)): launching.check_machines(**how)

# What a GPU gets; what it does with it is for test_distributed_gpu.py

def test_each_gpu_has_a_process_that_sends_by_nccl(monkeypatch):
    asked = []
    for k, v in dict(RANK=3, LOCAL_RANK=1, WORLD_SIZE=4, MASTER_ADDR='here', MASTER_PORT=1).items(): monkeypatch.setenv(k, str(v))
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.set_device', asked.append)
    monkeypatch.setattr(ranks, 'rendezvous', lambda *args, **how: iter([(torch.distributed.HashStore(), 3, 4)]))
    monkeypatch.setattr('torch.distributed.init_process_group', lambda backend, **how: asked.append((backend, how['rank'])))
    ranks.join()
    assert asked == [1, ('cpu:gloo,cuda:nccl', 3)]

def test_pictures_for_a_gpu_are_pinned_and_sent_without_waiting(pictures, monkeypatch):
    sent = []
    monkeypatch.setattr(data, 'known_device', lambda device: torch.device('cuda'))
    monkeypatch.setattr(data, 'to_device', lambda b, device, non_blocking: sent.append((device.type, non_blocking)) or b)
    monkeypatch.setattr(data, 'DataLoader', lambda *args, **how: SimpleNamespace(_iterator=None, **how))
    dl = data.image_dls(pictures, size=32, bs=8, num_workers=0, cache=False).valid
    next(iter(dl))
    assert sent == [('cuda', True)] and data._start(dl, 1).pin_memory

def test_the_port_of_a_launch_is_its_own_at_once():
    store = launching.meeting_point()
    with socket.socket() as other, pytest.raises(OSError): other.bind(('', store.port))
    launcher = torch.distributed.TCPStore('127.0.0.1', store.port, 1, True, timedelta(seconds=5), multi_tenant=True)
    launcher.set('who', 'the launcher')
    assert store.get('who') == b'the launcher'

def test_a_port_that_is_taken():
    with socket.create_server(('', 0)) as other:
        endpoint = f'127.0.0.1:{other.getsockname()[1]}'
        status, _, errors = finish(imgcls('launch', '--nproc', 1, '--nnodes', 2, '--rdzv-endpoint', endpoint, 'python', 'x.py'))
    assert status == 2 and errors.startswith('imgcls: the port of --rdzv-endpoint is taken') and errors.count('\n') == 1, errors

def test_logs_of_a_run_that_goes_on_are_added(tmp_path):
    run = tmp_path/'run'
    run.mkdir()
    (run/'config.yaml').touch()
    for said in ('before', 'after'):
        (logs := tmp_path/'logs').mkdir()
        (logs/'run').write_text(str(run))
        (logs/'1.log').write_text(f'{said}\n')
        launching.keep_logs(logs, failed=False)
        assert not logs.exists()
    before, between, after = re.split('\n--- of the launch that ended at (.*)\n', (run/'ranks/1.log').read_text())
    assert (before, after) == ('before\n', 'after\n')

# Waiting

class Store: # as much of torch's as a wait needs
    def __init__(self): self.values, self.lock = {}, threading.Lock()
    def set(self, key, value): self.values[key] = value.encode()
    def get(self, key): return self.values[key]
    def check(self, keys): return self.values.keys() >= {*keys}
    def add(self, key, n):
        with self.lock:
            now = int(self.values.get(key, 0)) + n
            if n: self.values[key] = str(now).encode()
        return now

class Deaf(Store): # behind a cable that was cut
    def _hear(self, *args): time.sleep(60)
    add = check = get = _hear

@pytest.fixture
def second(monkeypatch): # of two processes
    def put(store, limit='.2'):
        put = dict(rank=lambda: 1, world=lambda: 2, _store=lambda: store, ANSWER_S=.1)
        for k, v in put.items(): monkeypatch.setattr(ranks, k, v)
        monkeypatch.setenv('IMGCLS_TIMEOUT', limit)
        return store
    return put

def test_a_store_that_cannot_be_reached_is_waited_for_no_longer_than_the_limit(second):
    second(Deaf())
    began = time.monotonic()
    for ask in (lambda: wait_for_all('lunch'), lambda: ranks.absent('mark', .2), lambda: first_alone('it is done').__enter__()):
        with pytest.raises(LostError, match='lost the machine of process 0'): ask()
    assert ranks.who_is_gone(LostError('it is far')) == 'it is far' and ranks.says_first()
    assert time.monotonic() - began < 5

def test_a_first_process_is_waited_for_while_it_lives(second, monkeypatch):
    store = second(Store(), limit='.4')
    def work(): # of the first: longer than the limit
        with ranks._heard('imgcls/it is done/1/0'): time.sleep(1)
    first = threading.Thread(target=work)
    first.start()
    with first_alone('it is done'): assert store.check(['imgcls/it is done/1/0'])
    first.join()
    with pytest.raises(LostError, match='process 0, of which nothing is heard'): first_alone('it is done').__enter__()
    monkeypatch.setattr(ranks, '_machine', lambda: (0, 2, False))
    store.set('imgcls/it is done/3/0', 'done')
    with pytest.raises(LostError, match='machine 1, of which nothing'): first_alone('it is done', True).__enter__()
    for key in ('imgcls/it is done/4/failed', 'imgcls/reports'): store.set(key, 'yes')
    with pytest.raises(InputError, match='The first process could not do it'): first_alone('it is done').__enter__()

FIRSTS = """
import os, sys, time
from pathlib import Path
from imgcls_nb.ranks import first_alone, join, rank
join()
with first_alone('it is done', each_machine=True):
    began = time.time()
    if os.environ['LOCAL_RANK'] == '0': time.sleep(4)
    Path(sys.argv[1], str(rank())).write_text(f'{began} {time.time()}')
"""

def test_one_process_of_each_machine_goes_first(tmp_path):
    (tmp_path/'firsts.py').write_text(FIRSTS)
    with socket.create_server(('', 0)) as s: endpoint = f'127.0.0.1:{s.getsockname()[1]}'
    machines = [imgcls('launch', '--nproc', 2, '--nnodes', 2, '--node-rank', i, '--rdzv-endpoint', endpoint, 'python',
                       tmp_path/'firsts.py', tmp_path) for i in range(2)]
    processes = [subprocess.Popen(o, stderr=subprocess.PIPE, text=True) for o in machines]
    errors = [o.communicate(timeout=120)[1] for o in processes]
    assert [o.returncode for o in processes] == [0, 0], errors
    begin, end = zip(*(map(float, (tmp_path/str(i)).read_text().split()) for i in range(4)))
    assert max(begin[0], begin[2]) < min(end[0], end[2]), "both machines at once"
    assert min(begin[1], begin[3]) > max(end[0], end[2]), "the others when it is done everywhere"

# Memory

def test_what_does_batches_in_parts_is_left_out(pictures, monkeypatch, capsys):
    monkeypatch.setattr(parallel, 'world', lambda: 2)
    learn = together.make(pictures, cbs=['back_off', ClipNorm(1.)])
    assert capsys.readouterr().out.count('back_off is left out') == 1 and hasattr(learn, 'clip_norm')
    assert not hasattr(learn, 'back_off') and not parallel.without_back_off([BackOff, BackOff()])

def test_who_runs_out_of_memory_says_what_to_do(pictures, monkeypatch):
    class Full(Callback):
        def before_batch(self): raise torch.OutOfMemoryError('CUDA out of memory.')
    learn = together.make(pictures)
    for o in (learner, parallel): monkeypatch.setattr(o, 'world', lambda: 2)
    with pytest.raises(InputError, match=r"in process 0 of 2, with 8 pictures.*bs=4 with cbs=\('accumulate'"), learn.no_bar():
        learn.fit(1, cbs=Full())

# From a notebook

def test_stopped_from_a_notebook(pictures, out):
    learn = together.make(pictures, out/'asked', 'test_resnet', bs=8)
    job = launch_learner(learn, nproc=2, fit=('fit', dict(n_epoch=2000)), wait=False)
    deadline = time.monotonic() + 90
    while job.running and not Run(job.run).events('epoch') and time.monotonic() < deadline: time.sleep(.1)
    assert job.running, job.text
    job.stop()
    assert job.follow(show=lambda *args, **kwargs: None) == 0, job.text
    assert Run(job.run).last_status == 'stopped' and job.text.count('train_loss') == 1
    before = learn.model.state_dict()['fc.weight'].clone()
    assert take_back(learn, job.run) is learn and learn.clock.steps == read_checkpoint(job.run, 'latest').facts['step'] > 0
    assert not torch.equal(learn.model.state_dict()['fc.weight'], before)
    anew = take_back(None, job.run) # as of a plan that was launched
    assert torch.equal(anew.model.state_dict()['fc.weight'], learn.model.state_dict()['fc.weight'])
    with pytest.raises(InputError, match='nothing to stop'): job.stop()
    again = plan_to_launch(learn, ('fit', dict(n_epoch=1)), folder=out)
    assert again.model.pretrained == str(out/'asked-start.safetensors') and again.schedule == (FitPlan('fit', dict(n_epoch=1)),)

def test_what_was_trained_without_a_run_is_handed_over(pictures, tmp_path):
    with (learn := together.make(pictures, arch='test_resnet')).no_bar(): learn.fit(1, .01)
    plan = plan_to_launch(learn, ('fit', dict(n_epoch=1)), run=tmp_path/'no/folder/yet')
    kept = load_file(plan.model.pretrained)
    assert all(torch.equal(v, kept[k]) for k, v in learn.model.state_dict().items())

def test_what_processes_have_ended_is_not_cut(pictures, tmp_path, capsys): # though the notebook's own fit was, before
    class Cut(Callback):
        def after_step(self): raise KeyboardInterrupt
    learn, there = (together.make(pictures, tmp_path/o, 'test_resnet') for o in ('here', 'there'))
    with pytest.raises(KeyboardInterrupt), learn.no_bar(): learn.fit(1, .01, cbs=Cut())
    with there.no_bar(): there.fit(1, .01)
    distributed.hand_back(there, tmp_path)
    assert distributed.receive(learn, tmp_path) is learn and not learn.interrupted
    with learn.no_bar(): learn.fit(1, .01)
    assert 'gives it up' not in capsys.readouterr().out

def test_what_failed_is_said_once_and_nothing_is_left(pictures, out, tmp_path, monkeypatch):
    monkeypatch.setenv('TMPDIR', str(tmp_path)) # also for the launcher
    monkeypatch.setattr(tempfile, 'tempdir', None)
    plan = replace(together.make(pictures).plan, run=str(out/'failed'), schedule=(FitPlan('fit', dict(n_epoch=1)),))
    plan = replace(plan, data=replace(plan.data, path='nowhere'))
    with pytest.raises(InputError, match='nowhere') as said: launch_learner(plan, nproc=2)
    assert [*tmp_path.glob('imgcls-*')], "as long as somebody may look at it"
    del said
    gc.collect()
    assert not [o for o in tmp_path.iterdir() if o.name.startswith(('imgcls-', 'torchelastic_'))]

class Shell: # as much of IPython as a magic needs
    def __init__(self): self.user_ns = {}
    def register_magic_function(self, f, kind, name): self.magic = f

def test_a_cell_of_ones_own(pictures, out, capsys):
    shell = Shell()
    load_ipython_extension(shell)
    cell = "raise ValueError('on purpose')\n"
    with pytest.raises(InputError, match='has failed'): shell.magic(f'--nproc 2 --run {out/"cell"}', cell)
    said = capsys.readouterr().out
    assert said.count('ValueError: on purpose') == 1 and said.count('  File ') == 1 and 'cell.py", line 2' in said
    assert (out/'cell/cell.py').read_text().splitlines()[1] == cell.strip(), "a line has the number that it has in the notebook"
    with pytest.raises(InputError, match='--nprocs is unknown'): shell.magic('--nprocs 2', cell)
    with pytest.raises(InputError, match='two is no number of processes'): shell.magic('--nproc two', cell)

@linux
def test_interrupted(out):
    cell = "import os, time\nprint('process', os.getpid(), flush=True)\ntime.sleep(100)\n"
    job, deadline = launch_cell(f'--nproc 2 --run {out/"asleep"}', cell, wait=False), time.monotonic() + 90
    while 'process' not in job.text and job.running and time.monotonic() < deadline: time.sleep(.1)
    began, pid = time.monotonic(), int(job.text.split()[1])
    job.stop() # no training listens
    with pytest.raises(InputError, match='interrupted'): job.wait(60)
    assert time.monotonic() - began < 20 and not alive(pid) and repr(job).endswith('ended with status 130)')

def test_only_a_training_that_is_at_work_is_asked(pictures, tmp_path):
    with (learn := together.make(pictures, tmp_path/'old', 'test_resnet')).no_bar(): learn.fit(1, .01)
    job = distributed.Launched(['python', '-'], tmp_path/'old') # starting up, beside a run that is finished
    ended = []
    job.end = lambda: ended.append(True)
    assert not job.heard and (job.run/'config.yaml').is_file()
    for ask in (job.stop, job.interrupt): ask()
    Run(job.run).lock()
    job.stop()
    assert job.heard and ended == [True, True] and 'stop' in (job.run/'requests.jsonl').read_text()
    Run(job.run).unlock()
    job.process.kill()

def test_a_cell_that_would_begin_anew_is_refused(tmp_path):
    with pytest.raises(InputError, match='resume=resume'): launch_cell('--nproc 2 --max-restarts 1', 'learn.fit(1)')

def test_a_cell_does_not_take_the_place_of_one_that_runs(tmp_path):
    with Run(tmp_path).locked():
        (tmp_path/'cell.py').write_text('1')
        with pytest.raises(InputError, match="is being written by another.*--run runs/other"):
            launch_cell(f'--nproc 1 --run {tmp_path}', '2', wait=False)
        assert (tmp_path/'cell.py').read_text() == '1' and not list(tmp_path.glob('cell-*'))

def test_the_text_of_a_cell_is_kept(tmp_path):
    for text in ('a = 1', 'a = 1', 'a = 2', 'a = 3'): _write_cell(tmp_path, text)
    assert [(tmp_path/f'cell{o}.py').read_text() for o in ('', '-1', '-2')] == ['a = 3', 'a = 1', 'a = 2']
    (tmp_path/'cell.py').unlink() # moved aside
    assert _take_over(None, tmp_path, 'a = 3') is None and (tmp_path/'cell.py').read_text() == 'a = 3'

def test_what_is_wrong_with_a_launch_is_said_at_once(pictures, out):
    learn = together.make(pictures, out/'never', 'test_resnet')
    for how, text in ((dict(nproc='two'), "nproc='two' is no number"), (dict(nproc=0), '--nproc 0 is no number'),
                      (dict(timeout_s='soon'), 'soon is no time to wait'), (dict(max_restarts=-1), '-1 is no number of restarts'),
                      (dict(fit='fine_tun'), "Did you mean 'fine_tune'"), (dict(fit=('fit', 3)), 'does not say what to do'),
                      (dict(fit='fit'), "missing a required argument: 'n_epoch'"),
                      (dict(fit=None), 'needs to know what to do')):
        with pytest.raises(InputError, match=text): launch_learner(learn, **dict(nproc=2, fit=('fit', dict(n_epoch=1))) | how)
    with pytest.raises(InputError, match='Line 3 of the cell is no Python'): launch_cell('--nproc 2', 'x = 1\ny = (\n')
    (out/'file').touch()
    for act in (lambda: launch_learner(learn, nproc=2, fit=('fit', dict(n_epoch=1)), run=out/'file/run'),
                lambda: launch_cell(f'--nproc 2 --run {out/"file"}', 'x = 1')):
        with pytest.raises(InputError, match="run folder '.*file.*' cannot be written: .* or give another as run=…"): act()

def test_leftovers(monkeypatch, capsys):
    for k, v in dict(WORLD_SIZE='2', RANK='1').items(): monkeypatch.setenv(k, v)
    assert (rank(), world(), is_one_of_many()) == (0, 1, False)
    forget_leftovers()
    assert 'left over' in capsys.readouterr().out and 'WORLD_SIZE' not in os.environ
    for k, v in dict(MASTER_ADDR='127.0.0.1', MASTER_PORT='29500', ACCELERATE_USE_CPU='True').items(): monkeypatch.setenv(k, v)
    forget_leftovers() # as `accelerate launch --cpu --num_processes 2` starts a program
    assert 'trains alone' in capsys.readouterr().out and 'MASTER_ADDR' not in os.environ

def test_sync_bn_is_for_cuda(pictures):
    with pytest.raises(InputError, match='for CUDA only'): together.make(pictures, sync_bn=True)

def test_plans_tell_who_shares(pictures):
    learn = together.make(pictures)
    assert learn.plan.data.processes == 1 and json.dumps(learn.plan.data.processes) == '1'
