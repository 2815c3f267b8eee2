"Parts of the benchmarks that must be right before anything is measured"
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1]/'benchmarks'

def flat(name):
    "torchvision's name as it was when the weights were made: layers of a block counted in one row, with the ReLU between"
    parts = name.split('.')
    if len(parts) == 6: return '.'.join([*parts[:3], str(3*int(parts[3]) + int(parts[4])), parts[5]])
    if len(parts) < 5: return name
    n = int(parts[3]) + (4 if parts[1] != '1' else 2) # the last convolution and its norm have no ReLU
    return '.'.join([*parts[:3], str(n), parts[4]])

def test_imagenet_weights_are_mapped_by_name(monkeypatch):
    import timm
    import torch
    import torchvision
    monkeypatch.syspath_prepend(BENCHMARKS)
    from imagenet_mobilenetv2 import timm_name, timm_state
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v2().eval()
    for m in theirs.modules(): # statistics that tell channels apart
        if not isinstance(m, torch.nn.BatchNorm2d): continue
        m.running_mean.normal_(), m.running_var.uniform_(.5, 2), m.weight.data.uniform_(.5, 2)
    ours = timm.create_model('mobilenetv2_100').eval()
    ours.load_state_dict(timm_state({flat(k): v for k, v in theirs.state_dict().items() if k.startswith('features.')}))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(theirs.features(x), ours.forward_features(x), atol=1e-5)
    for name in ('classifier.1.weight', 'features.3.block.0.weight', 'features.3.conv.2.weight'):
        with pytest.raises(KeyError): timm_name(name)

ARM = '''
import json, sys, time
def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
print(json.dumps(dict(event='start')), flush=True)
for top1 in (.5, .95, .9):
    work(float(sys.argv[1]))
    print(json.dumps(dict(event='epoch', top1=top1)), flush=True)
'''

def test_only_the_own_time_of_an_arm_counts(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from fashion import Arm, compete, first_at, table
    arms = {o: Arm([sys.executable, '-c', ARM, str(s)]) for o, s in dict(quick=.03, slow=.15, endless=60).items()}
    compete(arms, turn=.1, cap=8, show=lambda line: None)
    result = {k: o.epochs for k, o in arms.items()}
    assert [[top1 for _, top1 in o] for o in result.values()] == [[.5, .95, .9]]*2 + [[]]
    assert first_at(result['quick']) < first_at(result['slow']) < 8 and first_at(result['endless']) is None
    assert all(o.process.returncode is not None for o in arms.values()) and arms['endless'].seconds >= 8
    lines = list(table(result, 8))
    assert lines[1].startswith('| quick |') and '| 95.00% |' in lines[1] and '| not reached | 0.00% |' in lines[3]
    assert 'quick is' in lines[4] and 'times as fast as the best of the others' in lines[4]

def test_an_arm_that_fails_is_out(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from fashion import Arm, compete, table
    arms = {o: Arm([sys.executable, '-c', code]) for o, code in dict(ours='raise SystemExit(1)', theirs='1/0').items()}
    compete(arms, turn=5, cap=20, show=None)
    assert list(table({k: o.epochs for k, o in arms.items()}, 20))[-1].endswith('did not reach 94.0%.')

SCRIPTS = sorted(o.name for o in BENCHMARKS.glob('*.py') if 'argparse' in o.read_text('utf-8'))

@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_say_what_they_do(script):
    done = subprocess.run([sys.executable, BENCHMARKS/script, '--help'], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr.count('Traceback'), done.stderr
