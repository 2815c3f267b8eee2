"What only a machine with two GPUs can tell; the same on the CPU is in test_distributed.py"
import numpy as np
import pytest
import together
import torch
from test_distributed import finish, imgcls, load

from imgcls_nb.datasets import make_shapes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]

@pytest.fixture(scope='module')
def pictures(tmp_path_factory): return make_shapes(tmp_path_factory.mktemp('data')/'shapes', n=9)

def launch(pictures, out, *jobs, options=()):
    command = imgcls('launch', '--gpus', '0,1', *options, 'python', together.__file__, pictures, out, *jobs)
    status, said, errors = finish(command, env=dict(TOGETHER_DEVICE='cuda'))
    assert status == 0, errors
    return said

@pytest.mark.parametrize('name', ['plain', 'mixed', 'averaged', 'gathered', 'weighed', 'repeated'])
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

def test_two_gpus_count_as_one(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv('TOGETHER_DEVICE', 'cuda')
    learn = together.make(pictures, arch='test_resnet')
    torch.save(learn.model.cpu().state_dict(), tmp_path/'alone.pt')
    launch(pictures, tmp_path, 'count:')
    (tmp_path/'one').mkdir()
    torch.save(learn.model.state_dict(), tmp_path/'one/alone.pt')
    one, both = together.count(pictures, tmp_path/'one'), load(tmp_path, 'count-')
    assert one['names'] == both['names'] and torch.allclose(one['preds'].cpu(), both['preds'].cpu(), atol=1e-3)
    assert sum(map(sum, one['matrix'])) == sum(map(sum, both['matrix'])) == len(one['names'])

def test_one_is_killed_and_all_go_on(pictures, tmp_path):
    launch(pictures, tmp_path, 'run:whole')
    launch(pictures, tmp_path, 'run:one', options=['--max-restarts', 1])
    whole, cut = load(tmp_path, 'run-whole'), load(tmp_path, 'run-one')
    assert np.allclose(whole['losses'], cut['losses'], atol=1e-4)
