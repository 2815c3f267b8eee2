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
from test_distributed import SCRIPT, load

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

def start(hosts, port, pictures, out, *jobs, wait_s=WAIT_S):
    names, _, address = hosts
    options = ['--nproc', 1, '--nnodes', 2, '--rdzv-endpoint', f'{address}:{port}', '--timeout', wait_s]
    processes = []
    for node, name in enumerate(names):
        command = ['ip', 'netns', 'exec', name, sys.executable, '-m', 'imgcls_nb.cli', 'launch', *options, '--node-rank', node,
                   'python', SCRIPT, pictures, out, *jobs]
        processes.append(subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return processes

def finish(processes, timeout=120):
    try: said = [o.communicate(timeout=timeout) for o in processes]
    finally:
        for o in processes: o.kill()
    return [o.returncode for o in processes], [o[1] for o in said]

@pytest.fixture(scope='module')
def trained(hosts, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp('hosts')
    codes, errors = finish(start(hosts, 29411, pictures, out, 'case:plain', 'run:whole'))
    assert codes == [0, 0], errors
    return out

def test_two_hosts_make_the_steps_of_one(trained, pictures):
    one, both = together.case(pictures, 'plain'), load(trained, 'case-plain')
    assert (one['grads'] - both['grads']).abs().max() < 1e-5 and np.allclose(one['losses'], both['losses'], atol=1e-5)
    for k, v in one['weights'].items(): assert torch.allclose(v, both['weights'][k], atol=1e-5), k

def test_a_cable_that_is_cut_outside_of_a_step_ends_both_sides(hosts, trained, pictures):
    names, ends, _ = hosts
    processes, deadline = start(hosts, 29414, pictures, trained, 'apart:', wait_s=8), time.monotonic() + 90
    while not all((trained/f'apart-{i}').exists() for i in range(2)) and time.monotonic() < deadline: time.sleep(.05)
    ip('-n', names[1], 'link', 'set', ends[1], 'down')
    began = time.monotonic()
    try: codes, errors = finish(processes)
    finally: ip('-n', names[1], 'link', 'set', ends[1], 'up')
    assert time.monotonic() - began < 8 + STUCK_S + 30 and 0 not in codes, errors
    assert "waited at 'lunch' for process 1" in errors[0] and 'lost the machine of process 0' in errors[1], errors

def test_a_cut_cable_ends_both_sides_and_the_run_goes_on(hosts, trained, pictures):
    names, ends, _ = hosts
    processes, deadline = start(hosts, 29412, pictures, trained, 'run:linger'), time.monotonic() + 90
    mark = trained/'lingers-1'
    while not (mark.exists() and mark.read_text() in ('4', '5')) and time.monotonic() < deadline: time.sleep(.05)
    ip('-n', names[1], 'link', 'set', ends[1], 'down')
    began = time.monotonic()
    codes, errors = finish(processes)
    assert time.monotonic() - began < 4*WAIT_S + 30 and 0 not in codes, errors
    assert 'process 1' in errors[0] and 'machine of process 0' in errors[1], errors
    assert not any('Traceback' in o for o in errors)
    assert Run(trained/'run-linger').status in ('failed', 'killed')
    ip('-n', names[1], 'link', 'set', ends[1], 'up')
    codes, errors = finish(start(hosts, 29413, pictures, trained, 'run:linger-resumed'))
    assert codes == [0, 0], errors
    assert load(trained, 'run-linger-resumed')['moment'] == load(trained, 'run-whole')['moment'], "as if it had not been cut"
