"What only a machine with two GPUs can tell; the same on the CPU is in test_distributed.py"
import os

import numpy as np
import pytest
import together
import torch
from test_distributed import finish, imgcls, load

from imgcls_nb.datasets import make_shapes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

@pytest.fixture(scope='module')
def pictures(tmp_path_factory): return make_shapes(tmp_path_factory.mktemp('data')/'shapes', n=9)

def launch(pictures, out, *jobs):
    command = imgcls('launch', '--gpus', '0,1', 'python', together.__file__, pictures, out, *jobs)
    status, said, errors = finish(command, env=dict(TOGETHER_DEVICE='cuda'))
    assert status == 0, errors
    return said

@pytest.mark.parametrize('name', ['plain', 'mixed', 'averaged', 'gathered', 'weighed'])
def test_two_gpus_make_the_steps_of_one(name, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv('TOGETHER_DEVICE', 'cuda')
    launch(pictures, tmp_path, f'case:{name}')
    one, both = together.case(pictures, name), load(tmp_path, f'case-{name}')
    assert (one['grads'].cpu() - both['grads'].cpu()).abs().max() < 1e-4
    assert np.allclose(one['losses'], both['losses'], atol=1e-4)

def test_synchronized_batchnorm_is_batchnorm_of_the_whole(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv('TOGETHER_DEVICE', 'cuda')
    launch(pictures, tmp_path, 'case:synced')
    one, both = together.case(pictures, 'synced'), load(tmp_path, 'case-synced')
    assert np.allclose(one['losses'], both['losses'], atol=1e-3) and both['bare']

def test_resumed(pictures, tmp_path):
    launch(pictures, tmp_path, 'run:whole')
    assert torch.load(tmp_path/'run-whole.pt', weights_only=False)['losses'] and os.listdir(tmp_path/'run-whole')
