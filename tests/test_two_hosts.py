"Two machines, as two network namespaces that a cable joins: root on Linux"
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import together
import torch
from colours import PREPROCESS, write_model
from safetensors.torch import load_file
from test_distributed import SCRIPT, load, stamped_lines, write_config
from test_split import random_network

from imgcls_nb.cli import main
from imgcls_nb.core import ModelCard
from imgcls_nb.datasets import make_shapes
from imgcls_nb.launching import STUCK_S
from imgcls_nb.runs import Run

pytestmark = pytest.mark.netns
WAIT_S = 20 # that processes wait for each other

def ip(*args): return subprocess.run(['ip', *map(str, args)], check=True, capture_output=True, text=True)

def why_not(): # empty: such a network can be made
    if sys.platform != 'linux' or os.geteuid(): return 'network namespaces take root on Linux'
    if not shutil.which('ip'): return 'there is no command ip, of the package iproute2'
    name = f'imgcls-try-{os.getpid()}'
    try: ip('netns', 'add', name)
    except subprocess.CalledProcessError as e: return e.stderr.strip()
    ip('netns', 'del', name)
    return ''

@pytest.fixture(scope='module')
def hosts():
    "Names of two namespaces, and the address of the first"
    if why := why_not():
        if os.environ.get('CI') == 'true': pytest.fail(f"two hosts are to be tested here, and cannot be: {why}")
        pytest.skip(why)
    n = os.getpid()
    names, ends = [f'imgcls-{n}-{i}' for i in range(2)], [f'ic{n}x{i}'[-15:] for i in range(2)]
    net = f'10.{n//250 % 250}.{n % 250}'
    try:
        for o in names: ip('netns', 'add', o)
        ip('link', 'add', ends[0], 'netns', names[0], 'type', 'veth', 'peer', 'name', ends[1], 'netns', names[1])
        for i, o in enumerate(names):
            ip('-n', o, 'addr', 'add', f'{net}.{i + 1}/24', 'dev', ends[i])
            for end in ('lo', ends[i]): ip('-n', o, 'link', 'set', end, 'up')
        yield names, ends, f'{net}.1'
    finally:
        for o in names: subprocess.run(['ip', 'netns', 'del', o], capture_output=True)

@pytest.fixture(scope='module')
def pictures(tmp_path_factory): return make_shapes(tmp_path_factory.mktemp('data')/'shapes', n=9)

def start(hosts, port, *command, options=(), wait_s=WAIT_S):
    names, _, address = hosts
    options = ['--nproc', 1, '--nnodes', 2, '--rdzv-endpoint', f'{address}:{port}', '--timeout', wait_s, *options]
    processes = []
    for node, name in enumerate(names):
        launch = ['ip', 'netns', 'exec', name, sys.executable, '-m', 'imgcls_nb.cli', 'launch', *options, '--node-rank', node]
        processes.append(subprocess.Popen(list(map(str, [*launch, *command])), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                          text=True))
    return processes

def finish(processes, timeout=120):
    try: said = [o.communicate(timeout=timeout) for o in processes]
    finally:
        for o in processes: o.kill()
    return [o.returncode for o in processes], *zip(*said)

@pytest.fixture(scope='module')
def trained(hosts, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp('hosts')
    codes, _, errors = finish(start(hosts, 29411, 'python', SCRIPT, pictures, out, 'case:plain', 'run:whole'))
    assert codes == [0, 0], errors
    return out

def test_two_hosts_make_the_steps_of_one(trained, pictures):
    one, both = together.case(pictures, 'plain'), load(trained, 'case-plain')
    assert (one['grads'] - both['grads']).abs().max() < 1e-5 and np.allclose(one['losses'], both['losses'], atol=1e-5)
    for k, v in one['weights'].items(): assert torch.allclose(v, both['weights'][k], atol=1e-5), k

def test_a_cable_that_is_cut_outside_of_a_step_ends_both_sides(hosts, trained, pictures):
    names, ends, _ = hosts
    processes, deadline = start(hosts, 29415, 'python', SCRIPT, pictures, trained, 'apart:', wait_s=8), time.monotonic() + 90
    while not all((trained/f'apart-{i}').exists() for i in range(2)) and time.monotonic() < deadline: time.sleep(.05)
    ip('-n', names[1], 'link', 'set', ends[1], 'down')
    began = time.monotonic()
    try: codes, _, errors = finish(processes)
    finally: ip('-n', names[1], 'link', 'set', ends[1], 'up')
    assert time.monotonic() - began < 8 + STUCK_S + 30 and 0 not in codes, errors
    assert "waited at 'lunch' for process 1" in errors[0] and 'lost the machine of process 0' in errors[1], errors

def test_a_cut_cable_ends_both_sides_and_the_run_goes_on(hosts, trained, pictures):
    names, ends, _ = hosts
    processes = start(hosts, 29412, 'python', SCRIPT, pictures, trained, 'run:linger')
    deadline = time.monotonic() + 90
    mark = trained/'lingers-1'
    while not (mark.exists() and mark.read_text() in ('4', '5')) and time.monotonic() < deadline: time.sleep(.05)
    ip('-n', names[1], 'link', 'set', ends[1], 'down')
    began = time.monotonic()
    codes, _, errors = finish(processes)
    assert time.monotonic() - began < 4*WAIT_S + 30 and 0 not in codes, errors
    assert 'process 1' in errors[0] and 'machine of process 0' in errors[1], errors
    assert not any('Traceback' in o for o in errors)
    assert Run(trained/'run-linger').status in ('failed', 'killed')
    ip('-n', names[1], 'link', 'set', ends[1], 'up')
    codes, _, errors = finish(start(hosts, 29413, 'python', SCRIPT, pictures, trained, 'run:linger-resumed'))
    assert codes == [0, 0], errors
    assert load(trained, 'run-linger-resumed')['moment'] == load(trained, 'run-whole')['moment'], "as if it had not been cut"

def test_one_that_dies_is_started_again_with_the_others(hosts, trained, pictures):
    again = start(hosts, 29414, 'python', SCRIPT, pictures, trained, 'run:one', options=['--max-restarts', 1])
    codes, said, errors = finish(again)
    assert codes == [0, 0] and (trained/'died').exists() and 'goes on from' in said[0], errors
    assert load(trained, 'run-one')['moment'] == load(trained, 'run-whole')['moment']

# The verbs: each says and writes what it does in one process, and on the first machine only

@pytest.fixture(scope='module')
def both(hosts):
    "Run a verb on both machines; what they have printed"
    ports = iter(range(29421, 29430))
    def run(*verb):
        codes, (said, nothing), errors = finish(start(hosts, next(ports), *verb))
        assert codes == [0, 0] and nothing == '', errors
        return said
    return run

def alone(*verb): assert main([*map(str, verb)]) == 0

@pytest.fixture(scope='module')
def runs(both, pictures, tmp_path_factory):
    "A run of one process, and one of two machines whose batches together are as large"
    out = tmp_path_factory.mktemp('verbs')
    config = write_config(pictures, out, 2, name='test_convnext')
    def train(where): return 'train', '-c', config, '-o', 'Optimizer.name=Momentum', '-o', f'Global.output_dir={out/where}'
    alone(*train('one'), '-o', 'DataLoader.Train.sampler.batch_size=8')
    assert both(*train('both')).count('The run is in') == 1
    return [Run(out/o/'test_convnext') for o in ('one', 'both')]

def weights(run): return load_file(run.path/'latest.safetensors')

def test_trained_resumed_and_evaluated_on_two_hosts(runs, both, capsys):
    one, two = runs
    assert np.allclose(one.steps().loss, two.steps().loss, atol=2e-5) and two.env['processes'] == 2, "the same curve"
    whole = weights(two)
    for k, v in weights(one).items(): assert torch.allclose(v, whole[k], atol=1e-5), k
    assert "goes on from 'epoch_1': after epoch 1 of 2" in both('resume', two.path, '--checkpoint', 'epoch_1')
    assert two.events('resume')[-1]['exact'] and len(two.steps()) == len(one.steps())
    for k, v in weights(two).items(): assert torch.equal(v, whole[k]), k
    said = both('eval', two.path)
    capsys.readouterr()
    alone('eval', two.path)
    assert 'precision' in said and stamped_lines(said) == stamped_lines(capsys.readouterr().out)

def test_predicted_on_two_hosts(both, pictures, tmp_path):
    write_model(tmp_path/'model.onnx', ModelCard(('circle', 'square', 'triangle'), PREPROCESS), random_network(3))
    one, two = tmp_path/'one.csv', tmp_path/'two.csv'
    predict = 'predict', tmp_path/'model.onnx', pictures, '--bs', 2, '--out'
    alone(*predict, one)
    assert both(*predict, two) == f'{two}: 27 pictures\n'
    assert two.read_bytes() == one.read_bytes(), "one file, in order"
