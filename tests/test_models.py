"Names to networks, and weights from files that may be damaged, foreign or hostile"
import csv
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from imgcls_nb.core import InputError
from imgcls_nb.models import (
    create_model,
    find_weights,
    load_weights,
    model_preprocess,
    paddleclas_names,
    read_weights,
    resolve_arch,
    split_params,
    weights_available,
)
from imgcls_nb.shipped import shipped_path

# Names

@pytest.mark.parametrize('arch, says', [
    ('resnet81', "no architecture 'resnet81'.*Did you mean .*'resnet18'"), ('Test_ResNet', "Did you mean .*'test_resnet'"),
    ('MobileNetV3_large_x1_1', "Did you mean .*'MobileNetV3_large_x1_0'"),
    ('qqqqqq', r"no architecture 'qqqqqq'\. timm.list_models"),
    ('', 'no architecture'), ('resnet18.a1_in2k', "'resnet18' has no weights tagged 'a1_in2k'.*Did you mean .*'a1_in1k'"),
    ('hf_hub:timm/resnet18', 'no architecture')])
def test_unknown_names(arch, says):
    for call in (resolve_arch, create_model):
        with pytest.raises(InputError, match=says): call(arch)

@pytest.mark.parametrize('arch, name', [
    ('resnet18', 'resnet18'), ('resnet18.a1_in1k', 'resnet18.a1_in1k'),
    ('MobileNetV3_large_x1_0', 'mobilenetv3_large_100.ra_in1k'),
    ('coatnet_0_224', 'coatnet_0_224')])
def test_known_names(arch, name): assert resolve_arch(arch) == name

def test_every_paddleclas_name_is_a_network_with_weights():
    names = paddleclas_names()
    with open(shipped_path('configs/paddleclas_names.csv'), encoding='utf-8') as f: rows = list(csv.DictReader(f))
    assert len(rows) == len(names) > 200 and {r['paddleclas']: r['timm'] for r in rows} == names
    published = set(timm.list_pretrained())
    assert not {k: v for k, v in names.items() if v not in published or resolve_arch(k) != v}

@pytest.mark.parametrize('arch, millions', [ # as published
    ('MobileNetV3_large_x1_0', 5.483032), ('ResNet18', 11.689512), ('ResNet50', 25.557032), ('DenseNet121', 7.978856),
    ('MobileNetV2', 3.504872), ('ViT_base_patch16_224', 86.567656), ('SwinTransformer_tiny_patch4_window7_224', 28.288354)])
def test_paddleclas_names_build_what_they_say(arch, millions):
    with torch.device('meta'): model = create_model(arch)
    assert sum(p.numel() for p in model.parameters()) == round(millions*1e6)

@pytest.mark.parametrize('arch, size', [
    ('test_resnet', 32), ('test_resnet', (40, 64)), ('test_vit', 64), ('test_convnext', 64)])
def test_any_size_and_any_number_of_classes(arch, size):
    model = create_model(arch, num_classes=3, size=size)
    h, w = model_preprocess(model, size).size
    assert model(torch.zeros(2, 3, h, w)).shape == (2, 3)

@pytest.mark.parametrize('arch, kwargs', [
    ('test_resnet', dict(dropout_rat=.1)), ('test_vit', dict(depth='x')), ('test_vit', dict(size=50))]) # of patches of 16 pixels
def test_arguments_that_an_architecture_does_not_take(arch, kwargs):
    with pytest.raises(InputError, match=f"'{arch}'"): create_model(arch, **kwargs)

# Published weights, without a network

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "An empty cache, and no network"
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path/'hub'))
    return tmp_path/'hub'

@pytest.mark.parametrize('arch', ['resnet18', 'MobileNetV3_large_x1_0', 'test_resnet.r160_in1k'])
def test_pretrained_without_a_network_says_what_to_fetch(hub, arch):
    began = time.monotonic()
    assert not weights_available(arch)
    with pytest.raises(InputError) as e: create_model(arch, pretrained=True, num_classes=3)
    assert time.monotonic() - began < 5
    repo = timm.get_pretrained_cfg(resolve_arch(arch)).hf_hub_id
    assert f"'{arch}'" in str(e.value) and f'https://huggingface.co/{repo}/resolve/main/model.safetensors' in str(e.value)

def test_a_hub_that_does_not_answer(hub, monkeypatch):
    monkeypatch.delenv('HF_HUB_OFFLINE')
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9') # nobody listens there
    began = time.monotonic()
    with pytest.raises(InputError, match='resolve/main/model.safetensors'): create_model('resnet18', pretrained=True)
    assert time.monotonic() - began < 5

def test_pretrained_from_the_cache(hub):
    repo, state = hub/'models--timm--test_resnet.r160_in1k', create_model('test_resnet').state_dict()
    for o in ('refs', 'snapshots/abc'): (repo/o).mkdir(parents=True)
    (repo/'refs/main').write_text('abc')
    safetensors.torch.save_file(state, repo/'snapshots/abc/model.safetensors')
    assert weights_available('test_resnet')
    model = create_model('test_resnet', pretrained=True, num_classes=3)
    assert model.fc.weight.shape[0] == 3 and torch.equal(model.conv1[0].weight, state['conv1.0.weight'])

def test_an_architecture_without_published_weights(hub, monkeypatch):
    monkeypatch.delenv('HF_HUB_OFFLINE')
    assert not weights_available('coatnet_0_224')
    with pytest.raises(InputError, match="'coatnet_0_224' has no published weights"):
        create_model('coatnet_0_224', pretrained=True)

# Weights from files

@pytest.fixture(scope='module')
def state():
    "Weights of a test_resnet for five classes"
    return {k: torch.randn(v.shape).to(v.dtype) for k, v in create_model('test_resnet', num_classes=5).state_dict().items()}

def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

WRAPPED = {'plain': lambda o: o, 'state_dict': lambda o: dict(state_dict=o, epoch=3), 'model': lambda o: dict(model=o, opt=[1]),
           'module': lambda o: {f'module.{k}': v for k, v in o.items()},
           'both': lambda o: WRAPPED['state_dict'](WRAPPED['module'](o))}

@pytest.mark.parametrize('wrap', WRAPPED)
@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.bin'])
def test_weights_of_torch(tmp_path, state, wrap, suffix):
    torch.save(WRAPPED[wrap](state), tmp_path/f'w{suffix}')
    assert equal(read_weights(tmp_path/f'w{suffix}'), state)
    model = create_model('test_resnet', tmp_path/f'w{suffix}', num_classes=5)
    assert equal(model.state_dict(), state)

@pytest.mark.parametrize('wrap', ['plain', 'module'])
def test_weights_of_safetensors(tmp_path, state, wrap):
    safetensors.torch.save_file(WRAPPED[wrap](state), tmp_path/'w.safetensors')
    model = create_model('test_resnet', num_classes=5)
    assert load_weights(model, tmp_path/'w.safetensors') == [] and equal(model.state_dict(), state)

class Hostile:
    def __init__(self, call, *args): self.call, self.args = call, args
    def __reduce__(self): return self.call, self.args

@pytest.mark.parametrize('call', [os.system, Path.touch, eval], ids=lambda o: o.__name__)
@pytest.mark.parametrize('write', [torch.save, lambda o, file: Path(file).write_bytes(pickle.dumps(o))], ids=['torch', 'pickle'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_a_file_that_wants_to_run_code_is_refused(tmp_path, call, write, suffix):
    trace, name = tmp_path/'trace', call.__name__
    arg = {'system': f'touch {trace}', 'touch': trace, 'eval': f"open({str(trace)!r}, 'w')"}[name]
    write({'state_dict': {'fc.weight': torch.zeros(1), 'x': Hostile(call, arg)}}, tmp_path/f'w{suffix}')
    says = '' if suffix == '.safetensors' else rf'\b{name}\b' # what it wanted to run
    with pytest.raises(InputError, match=rf"w{suffix}' cannot be read as weights.*{says}") as e:
        read_weights(tmp_path/f'w{suffix}')
    assert not trace.exists() and 'can still be loaded' not in str(e.value) and '\033' not in str(e.value), "no advice to load it"
    with pytest.raises(InputError): create_model('test_resnet', str(tmp_path/f'w{suffix}'))
    assert not trace.exists()

@pytest.mark.parametrize('content', [
    {}, [torch.zeros(1)], torch.zeros(2), {'a': 1}, {'state_dict': {}}, {'state_dict': {'a': 'b'}}, 5], ids=repr)
def test_files_that_hold_no_table_of_tensors(tmp_path, content):
    torch.save(content, tmp_path/'w.pth')
    with pytest.raises(InputError, match="w.pth' holds no plain table of tensors, but"): read_weights(tmp_path/'w.pth')

@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
@pytest.mark.parametrize('size', [0, 5, 300, -1], ids='empty start header last-byte'.split())
def test_cut_files(tmp_path, state, suffix, size):
    file = tmp_path/f'w{suffix}'
    safetensors.torch.save_file(state, file) if suffix == '.safetensors' else torch.save(state, file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(InputError, match=rf"w\{suffix}' cannot be read as weights.*\w"):
        load_weights(create_model('test_resnet'), file)

def test_every_tensor_that_does_not_fit_is_named(tmp_path, state):
    odd = dict(state, extra=torch.zeros(1))
    del odd['conv1.0.weight']
    odd['layer1.0.conv1.weight'] = torch.zeros(1, 2)
    safetensors.torch.save_file(odd, tmp_path/'w.safetensors')
    model = create_model('test_resnet', num_classes=7)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError) as e: load_weights(model, tmp_path/'w.safetensors')
    says = str(e.value)
    assert f"'{tmp_path/'w.safetensors'}' do not fit" in says
    for o in ('missing in the file (1): conv1.0.weight', 'unknown to the model (1): extra', 'other shapes (3): ',
              'fc.weight: (5, ', 'layer1.0.conv1.weight: (1, 2) in the file', 'fc.bias: (5,) in the file, (7,) in the model'):
        assert o in says
    assert equal(model.state_dict(), before), "a refused file changes nothing"

def test_weights_of_another_architecture(tmp_path, state):
    torch.save(state, tmp_path/'w.pth')
    says = r'do not fit(.|\n)*missing in the file \(\d+\): .*, …(.|\n)*unknown to the model \(\d+\): '
    with pytest.raises(InputError, match=says):
        create_model('test_vit', str(tmp_path/'w.pth'), num_classes=5)

def test_a_new_head_for_another_number_of_classes(tmp_path, state, capsys):
    torch.save(state, tmp_path/'w.pth')
    model = create_model('test_resnet', str(tmp_path/'w.pth'), num_classes=3)
    said = capsys.readouterr().out
    assert 'w.pth' in said and 'fc.weight, fc.bias' in said and '3 classes' in said
    own = model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in state.items() if not k.startswith('fc.')) and own['fc.weight'].shape[0] == 3
    create_model('test_resnet', str(tmp_path/'w.pth'), num_classes=5)
    assert capsys.readouterr().out == '', "nothing to say when all fits"

@pytest.mark.parametrize('arch', [
    'test_vit', 'test_convnext', 'mobilenetv3_small_050', 'test_efficientnet', 'deit_tiny_distilled_patch16_224'])
def test_the_head_of_every_kind_of_network(tmp_path, arch, capsys):
    torch.save(create_model(arch, num_classes=5, size=64).state_dict(), tmp_path/'w.pth')
    create_model(arch, str(tmp_path/'w.pth'), num_classes=3, size=64)
    assert 'is new, for 3 classes' in capsys.readouterr().out

@pytest.mark.parametrize('given, found', [
    ('best_model', 'best_model.safetensors'), ('best_model.safetensors', 'best_model.safetensors'), ('epoch_1', 'epoch_1.pth'),
    ('v1.2', 'v1.2.safetensors'), ('', 'best_model.safetensors')])
def test_names_without_suffix(tmp_path, monkeypatch, given, found):
    run = tmp_path/'run'
    run.mkdir()
    for o in ('best_model.json', 'best_model.safetensors', 'epoch_1.pth', 'v1.2.safetensors', 'v1.opt.safetensors'):
        (run/o).touch()
    assert find_weights(run/given) == run/found
    monkeypatch.chdir(tmp_path)
    assert find_weights(f'run/{given}') == Path('run')/found

def test_missing_weights_name_what_is_there(tmp_path):
    for o in ('epoch_1.safetensors', 'old.pth', 'notes.txt'): (tmp_path/o).touch()
    with pytest.raises(InputError, match=r"no weights at '.*epoch_9'.*There is: epoch_1.safetensors, old.pth\.$"):
        find_weights(tmp_path/'epoch_9')
    with pytest.raises(InputError, match='There is: epoch_1.safetensors, old.pth'): find_weights(tmp_path)
    with pytest.raises(InputError, match='no weights at'): find_weights(tmp_path/'nowhere/x.pth')

# What a network says about itself

@pytest.mark.parametrize('arch', [
    'test_resnet', 'test_vit', 'mobilenetv3_large_100', 'inception_v3', 'crossvit_9_240', 'ConvNeXt_base_384'])
@pytest.mark.parametrize('size', [None, 96])
def test_preprocessing_is_timms(arch, size):
    with torch.device('meta'): model = create_model(arch)
    width = 200 if arch.startswith('ConvNeXt') else 150 # that one squeezes; elsewhere the two crops may differ by one pixel
    pic = np.random.default_rng(0).integers(0, 256, (150, width, 3), np.uint8)
    cfg = timm.data.resolve_model_data_config(model) | (dict(input_size=(3, size, size)) if size else {})
    want = timm.data.create_transform(**cfg)(Image.fromarray(pic)).numpy()
    got = model_preprocess(model, size)
    assert (got.mean, got.std, got.interpolation) == tuple(cfg[k] for k in ('mean', 'std', 'interpolation'))
    assert got.size == want.shape[1:] and np.abs(got(pic) - want).max() < 1e-4

@pytest.mark.parametrize('arch', ['test_resnet', 'test_vit', 'test_convnext', 'mobilenetv3_small_050', 'test_efficientnet'])
def test_parameter_groups(arch):
    model = create_model(arch, num_classes=3)
    names, groups = {id(p): n for n, p in model.named_parameters()}, split_params(model)
    grouped = [[names[id(p)] for p in g] for g in groups]
    assert len(groups) > 2 and sorted(n for g in grouped for n in g) == sorted(names.values()), "each parameter once"
    head = model.pretrained_cfg['classifier']
    assert {n for g in grouped for n in g if n.startswith(f'{head}.')} == {f'{head}.weight', f'{head}.bias'} <= set(grouped[-1])
    assert any(o in grouped[0][0] for o in ('stem', 'conv1', 'conv_stem', 'patch_embed', 'cls_token', 'pos_embed'))
