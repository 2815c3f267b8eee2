"Names to networks, and weights from files that may be damaged, foreign or hostile"
import json
import os
import pickle
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from imgcls_nb.archs import find_arch
from imgcls_nb.core import InputError
from imgcls_nb.models import (
    count_channels,
    create_model,
    layer_scales,
    load_weights,
    model_preprocess,
    split_params,
    undecayed,
    weights_available,
)
from imgcls_nb.weights import find_weights, host_answers, read_weights

# Sizes and arguments

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

@pytest.mark.parametrize('name', ['checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir', 'weights'])
@pytest.mark.parametrize('arch', ['test_resnet', 'AlexNet', 'MobileNetV3_small_x0_35']) # timm, torchvision, timm's parts
def test_arguments_by_which_a_library_would_load_a_file(arch, name):
    with pytest.raises(InputError, match=f"^{name}='x.pth' is not handed on: .* Give weights by pretrained"):
        create_model(arch, **{name: 'x.pth'})

@pytest.mark.parametrize('arch, stride, left', [
    ('resnet18', 2, 2), ('resnet18', 1, 4), ('test_resnet', 1, 4), ('resnetv2_50', 1, 4), ('densenet121', 2, 2),
    ('mobilenetv2_100', 1, 2), ('mobilenetv3_small_050', 1, 2), ('test_convnext', 1, 3), ('regnetx_002', 1, 2)])
def test_small_steps_for_small_pictures(arch, stride, left):
    with torch.device('meta'):
        usual, slow = create_model(arch), create_model(arch, stem_stride=stride)
        conv, features = slow.get_submodule(slow.pretrained_cfg['first_conv']), slow.forward_features(torch.zeros(1, 3, 32, 32))
    assert conv.stride == (stride, stride) and features.shape[-1] == left
    assert {k: v.shape for k, v in slow.state_dict().items()} == {k: v.shape for k, v in usual.state_dict().items()}

@pytest.mark.parametrize('arch, stride, said', [
    ('resnet18', 3, 'steps by 2; give'), ('resnet18', 0, 'steps by 2'), ('resnet18', True, 'stem_stride=True'),
    ('vgg11', 2, 'steps by 1'), ('test_vit', 8, 'leave it out')])
def test_steps_that_are_none(arch, stride, said):
    with torch.device('meta'), pytest.raises(InputError, match=said): create_model(arch, stem_stride=stride)

def test_weights_fit_a_network_of_small_steps(tmp_path):
    torch.save((state := timm.create_model('test_resnet').state_dict()), tmp_path/'net.pth')
    slow = create_model('test_resnet', pretrained=tmp_path/'net.pth', stem_stride=1).state_dict()
    assert all(torch.equal(state[k], slow[k]) for k in state)

@pytest.mark.parametrize('num_classes', [-1, 2.5, True, '10', None])
def test_numbers_of_classes_that_are_none(num_classes):
    with pytest.raises(InputError, match=rf'num_classes={num_classes!r} is no number'):
        create_model('test_resnet', num_classes=num_classes)

@pytest.mark.parametrize('in_chans', [0, '3', 1.])
def test_numbers_of_channels_that_are_none(in_chans):
    with pytest.raises(InputError, match='in_chans='): create_model('test_resnet', in_chans=in_chans)

@pytest.mark.parametrize('arch', ['test_resnet', 'test_vit', 'ShuffleNetV2_x0_25', 'SqueezeNet1_1', 'MobileNetV3_small_x0_35'])
@pytest.mark.parametrize('in_chans', [1, 3, 4])
def test_channels(arch, in_chans):
    model = create_model(arch, num_classes=2, in_chans=in_chans, **(dict(size=64) if arch == 'test_vit' else {})).eval()
    assert model(torch.zeros(1, in_chans, 64, 64)).shape == (1, 2) and count_channels(model) == in_chans
    pre = model_preprocess(model)
    assert pre.mode == {1: 'L', 3: 'RGB', 4: 'RGB'}[in_chans] and pre.shape[0] == in_chans

def test_two_channels_have_no_pictures():
    with pytest.raises(InputError, match='takes 2 channels; pictures have 3'):
        model_preprocess(create_model('test_resnet', num_classes=2, in_chans=2))

# Published weights, without a network

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "An empty cache, and no network"
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setenv('HF_HOME', str(tmp_path))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path/'hub'))
    return tmp_path/'hub'

@pytest.mark.alone
@pytest.mark.parametrize('arch', ['resnet18', 'MobileNetV3_large_x1_0', 'test_resnet.r160_in1k'])
def test_pretrained_without_a_network_says_what_to_fetch(hub, arch):
    began = time.monotonic()
    assert not weights_available(arch)
    with pytest.raises(InputError) as e: create_model(arch, pretrained=True, num_classes=3)
    assert time.monotonic() - began < 5
    repo = timm.get_pretrained_cfg(find_arch(arch).full_name).hf_hub_id
    assert f"'{arch}'" in str(e.value) and f'https://huggingface.co/{repo}/resolve/main/model.safetensors' in str(e.value)

@pytest.mark.alone
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

@pytest.fixture
def torch_hub(tmp_path, monkeypatch):
    "An empty cache of torch's, and no network"
    monkeypatch.setattr('imgcls_nb.weights.host_answers', lambda url, timeout_s=3.: False)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'torch'))
    (tmp_path/'torch/checkpoints').mkdir(parents=True)
    return tmp_path/'torch/checkpoints'

@pytest.mark.parametrize('arch, url', [
    ('ShuffleNetV2_x0_5', 'https://download.pytorch.org/models/shufflenetv2_x0.5-f707e7126e.pth'),
    ('legacy_seresnet18', r'https://github.com/.*seresnet18-4bb0ce65.pth')])
def test_weights_at_a_plain_address_say_where_to_put_the_file(torch_hub, arch, url):
    with pytest.raises(InputError, match=rf'{url}(.|\n)*put it at\n  {torch_hub}/') as e: create_model(arch, pretrained=True)
    assert 'pretrained=False' in str(e.value) and not weights_available(arch)

@pytest.mark.parametrize('classes, in_chans', [(1000, 3), (3, 3), (3, 1)])
def test_torchvision_weights_from_the_cache(torch_hub, monkeypatch, classes, in_chans):
    source = create_model('SqueezeNet1_1')
    torch.save(source.state_dict(), torch_hub/'squeezenet1_1-b8a52dc0.pth')
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', # whose hash a file made here cannot have
                        lambda url, **kwargs: torch.load(torch_hub/url.rpartition('/')[2], weights_only=True))
    assert weights_available('SqueezeNet1_1')
    model = create_model('SqueezeNet1_1', True, classes, in_chans=in_chans)
    a, b = model.state_dict(), source.state_dict()
    taken = [k for k in a if k not in (() if classes == 1000 else ('classifier.1.weight', 'classifier.1.bias'))]
    assert all(torch.equal(a[k], b[k]) for k in taken if in_chans == 3 or k != 'features.0.weight')
    sums = [o['features.0.weight'].sum(1) for o in (a, b)]
    assert torch.allclose(*sums, atol=1e-5), "grey pictures look alike to both"
    assert len(a['classifier.1.weight']) == classes

@pytest.mark.parametrize('pretrained, file', [(True, 'config.json'), (False, 'config.json')])
def test_an_architecture_of_the_hub_without_a_network(hub, pretrained, file):
    with pytest.raises(InputError, match=rf"'hf-hub:someone/birds'(.|\n)*someone/birds/resolve/main/{file}"):
        create_model('hf-hub:someone/birds', pretrained=pretrained)

def fill_hub(hub, repo, **files):
    folder = hub/f"models--{repo.replace('/', '--')}"
    for o in ('refs', 'snapshots/abc'): (folder/o).mkdir(parents=True)
    (folder/'refs/main').write_text('abc')
    return folder/'snapshots/abc'

def test_an_architecture_of_the_hub_from_the_cache(hub):
    folder, source = fill_hub(hub, 'someone/birds'), create_model('test_resnet', num_classes=5)
    cfg = dict(architecture='test_resnet', num_classes=5, pretrained_cfg=dict(
        num_classes=5, input_size=[3, 96, 96], mean=[.5, .5, .5], std=[.25, .25, .25], classifier='fc', first_conv='conv1.0'))
    (folder/'config.json').write_text(json.dumps(cfg))
    model = create_model('hf-hub:someone/birds', num_classes=2) # the config is enough
    assert model_preprocess(model).size == (96, 96) and model_preprocess(model).std == (.25,)*3 and model.num_classes == 2
    with pytest.raises(InputError, match='model.safetensors'): create_model('hf-hub:someone/birds', pretrained=True)
    safetensors.torch.save_file(source.state_dict(), folder/'model.safetensors')
    assert equal(create_model('hf-hub:someone/birds', pretrained=True, num_classes=5).state_dict(), source.state_dict())
    assert equal(create_model('test_resnet', 'hf-hub:someone/birds', num_classes=5).state_dict(), source.state_dict())

def test_weights_of_the_hub_without_a_network(hub):
    with pytest.raises(InputError, match='someone/birds/resolve/main/model.safetensors'):
        create_model('test_resnet', 'hf-hub:someone/birds')

@pytest.mark.parametrize('error', [OSError('connection lost\nlater'), ConnectionResetError()])
def test_a_download_that_breaks_off(hub, monkeypatch, error):
    def fail(*args, **kwargs): raise error
    monkeypatch.setattr('imgcls_nb.weights.host_answers', lambda url, timeout_s=3.: True)
    monkeypatch.delenv('HF_HUB_OFFLINE')
    monkeypatch.setattr('timm.create_model', fail)
    reason = 'connection lost' if error.args else 'ConnectionResetError'
    with pytest.raises(InputError, match=rf'not be fetched \({reason}\)(.|\n)*resolve/main/model.safetensors'):
        create_model('resnet18', pretrained=True)

def test_behind_a_proxy_it_is_the_proxy_that_answers(monkeypatch):
    url = 'https://hub.invalid/x' # which has no address
    with socket.create_server(('127.0.0.1', 0)) as proxy:
        port = proxy.getsockname()[1]
        for k in ('https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY', 'no_proxy', 'NO_PROXY'): monkeypatch.delenv(k, False)
        assert not host_answers(url)
        for k, proxied in (('https_proxy', f'http://127.0.0.1:{port}'), ('all_proxy', f'127.0.0.1:{port}')):
            with monkeypatch.context() as m:
                m.setenv(k, proxied)
                assert host_answers(url)
                m.setenv('no_proxy', 'hub.invalid')
                assert not host_answers(url)
    monkeypatch.setenv('https_proxy', f'http://127.0.0.1:{port}') # where nothing listens any more
    assert not host_answers(url)

def test_what_to_take_instead_of_weights_that_do_not_exist():
    for arch, near in (('ResNet200_vd', 'resnet200d.ra2_in1k'), ('ShuffleNetV2_x0_25', 'ShuffleNetV2_x0_5')):
        with pytest.raises(InputError, match=f"'{arch}' has no published weights. The nearest that has them is '{near}'"):
            create_model(arch, pretrained=True)

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

EMA = {'plain and average': ('state_dict', 'state_dict_ema'), 'of timm': ('state_dict_ema', 'state_dict'),
       'of DeiT': ('model', 'model_ema')}

@pytest.mark.parametrize('keys', EMA.values(), ids=EMA)
def test_an_average_is_never_taken_silently(tmp_path, state, keys, capsys):
    other = {k: v + 1 for k, v in state.items()}
    trained = next(k for k in keys if 'ema' not in k)
    content = {k: state if k == trained else other for k in keys}
    torch.save(content | dict(epoch=3), tmp_path/'w.pth')
    assert equal(read_weights(tmp_path/'w.pth'), state)
    said, ema = capsys.readouterr().out, next(k for k in keys if 'ema' in k)
    assert said == f"w.pth holds several networks: '{trained}' was taken. weights_key='{ema}' takes another.\n"
    for key, want in content.items(): assert equal(read_weights(tmp_path/'w.pth', key), want)
    assert equal(create_model('test_resnet', tmp_path/'w.pth', 5, weights_key=ema).state_dict(), other)
    assert capsys.readouterr().out == '', "what was asked for needs no notice"

def test_a_file_with_only_an_average_says_so(tmp_path, state, capsys):
    torch.save(dict(model_ema=state), tmp_path/'w.pth')
    assert equal(read_weights(tmp_path/'w.pth'), state)
    assert capsys.readouterr().out == "w.pth holds one network, under 'model_ema'.\n"

def test_keys_that_are_not_there(tmp_path, state):
    torch.save(dict(teacher=state, student=state), tmp_path/'w.pth')
    with pytest.raises(InputError, match="several networks: teacher, student. Say which: weights_key='teacher'"):
        read_weights(tmp_path/'w.pth')
    says = "under weights_key='studnt'. It holds networks under: teacher, student. Did you mean 'student'"
    with pytest.raises(InputError, match=says): read_weights(tmp_path/'w.pth', 'studnt')
    torch.save(state, tmp_path/'one.pth')
    with pytest.raises(InputError, match="one.pth' holds one network.*Leave weights_key='student' out"):
        read_weights(tmp_path/'one.pth', 'student')

@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
def test_names_of_wrapped_networks(tmp_path, state, prefix):
    torch.save({prefix + k: v for k, v in state.items()}, tmp_path/'w.pth')
    assert equal(read_weights(tmp_path/'w.pth'), state)

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

@pytest.mark.parametrize('text', ['hello', '# Notes', 'import torch', '{}', ' '])
def test_a_file_that_torch_has_not_written(tmp_path, text):
    (tmp_path/'notes.txt').write_text(text)
    with pytest.raises(InputError, match=r"notes\.txt'.*: it is cut short, or torch has not written it\."):
        read_weights(tmp_path/'notes.txt')

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

@pytest.mark.parametrize('arch', [
    'test_vit', 'mobilenetv2_050', 'test_efficientnet', 'SqueezeNet1_1', 'deit_tiny_distilled_patch16_224'])
def test_a_new_head_starts_from_not_knowing(tmp_path, arch):
    torch.manual_seed(0)
    torch.save(create_model(arch, num_classes=5, size=64).state_dict(), tmp_path/'w.pth')
    model = create_model(arch, tmp_path/'w.pth', num_classes=10, size=64).eval()
    with torch.no_grad(): logits = model(torch.randn(8, 3, 64, 64))
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(8))
    assert abs(loss - np.log(10)) < .3 and logits.std() > 0

def test_the_trained_head_is_kept_whatever_the_config_says(tmp_path, state):
    torch.save(state, tmp_path/'w.pth') # timm's own overlay drops a head that has other than 1000 classes
    model = create_model('test_resnet', tmp_path/'w.pth', num_classes=5)
    assert torch.equal(model.fc.weight, state['fc.weight']) and torch.equal(model.fc.bias, state['fc.bias'])

def test_weights_without_a_head(tmp_path, state, capsys):
    torch.save({k: v for k, v in state.items() if not k.startswith('fc.')}, tmp_path/'w.pth')
    create_model('test_resnet', tmp_path/'w.pth', num_classes=3)
    assert 'fc.weight, fc.bias) is new, for 3 classes' in capsys.readouterr().out
    with pytest.raises(InputError, match=r'missing in the file \(2\): fc.weight, fc.bias'): # not the weights of a run
        load_weights(create_model('test_resnet', num_classes=3), tmp_path/'w.pth')

def test_features_take_no_head(tmp_path, state):
    torch.save(state, tmp_path/'w.pth')
    assert torch.equal(create_model('test_resnet', tmp_path/'w.pth', num_classes=0).conv1[0].weight, state['conv1.0.weight'])

def test_numbers_of_classes_are_named_when_they_differ(tmp_path, state):
    torch.save(state, tmp_path/'w.pth')
    with pytest.raises(InputError, match='network for 5 classes, this one is for 7'):
        load_weights(create_model('test_resnet', num_classes=7), tmp_path/'w.pth')

def test_the_norm_before_a_new_head_is_kept(tmp_path):
    source = create_model('test_convnext', num_classes=5)
    torch.nn.init.constant_(source.head.norm.weight, .25)
    torch.save(source.state_dict(), tmp_path/'w.pth')
    model = create_model('test_convnext', tmp_path/'w.pth', num_classes=3)
    assert (model.head.norm.weight == .25).all() and model.head.fc.out_features == 3

def test_weights_of_another_picture_size_are_fitted_as_timm_does(tmp_path):
    source = create_model('test_vit', num_classes=5)
    torch.save(source.state_dict(), tmp_path/'w.pth')
    model = create_model('test_vit', tmp_path/'w.pth', 5, size=96)
    want = timm.create_model('test_vit', pretrained=True, num_classes=5, img_size=96,
                             pretrained_cfg_overlay=dict(state_dict=source.state_dict(), num_classes=5, hf_hub_id=None))
    assert equal(model.state_dict(), want.state_dict()) and model.pos_embed.shape != source.pos_embed.shape
    with pytest.raises(InputError, match='pos_embed'): load_weights(model, tmp_path/'w.pth') # a run's weights fit or don't

@pytest.mark.parametrize('arch', ['test_resnet', 'test_convnext', 'test_efficientnet'])
@pytest.mark.parametrize('in_chans', [1, 4])
def test_weights_for_colour_are_adapted_as_timm_does(tmp_path, arch, in_chans, capsys):
    state = create_model(arch, num_classes=5).state_dict()
    torch.save(state, tmp_path/'w.pth')
    model = create_model(arch, tmp_path/'w.pth', 5, in_chans=in_chans)
    want = timm.create_model(arch, pretrained=True, num_classes=5, in_chans=in_chans,
                             pretrained_cfg_overlay=dict(state_dict=state, num_classes=5, hf_hub_id=None))
    assert equal(model.state_dict(), want.state_dict())
    assert f'are for 3 channels, now {in_chans}: {model.pretrained_cfg["first_conv"]}.weight' in capsys.readouterr().out

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

@pytest.mark.parametrize('nameless', ['.', '', './', '/'])
def test_a_folder_without_a_name(tmp_path, monkeypatch, nameless):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no weights at '.*Tried best_model.safetensors\."): find_weights(nameless)
    safetensors.torch.save_file(create_model('test_resnet', num_classes=3).state_dict(), 'best_model.safetensors')
    if nameless == '/': return
    assert find_weights(nameless) == Path('best_model.safetensors')
    create_model('test_resnet', nameless or '.', 3)

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

ARCHS = ['test_resnet', 'test_vit', 'test_convnext', 'mobilenetv3_small_050', 'test_efficientnet', 'MobileNetV3_small_x0_35',
         'ShuffleNetV2_x0_25', 'AlexNet', 'SqueezeNet1_0', 'GoogLeNet', 'MobileNetV2_x0_25', 'swin_tiny_patch4_window7_224',
         'deit_tiny_distilled_patch16_224', 'beit_base_patch16_224', 'levit_128s', 'hrnet_w18_small']

@pytest.mark.parametrize('arch', ARCHS)
def test_layer_scales_are_timms(arch):
    with torch.device('meta'): model = create_model(arch, num_classes=3)
    scales = {id(p): s for s, g in zip(layer_scales(model, .7), split_params(model, coarse=False), strict=True) for p in g}
    groups = param_groups_layer_decay(model, layer_decay=.7)
    assert {id(p): g['lr_scale'] for g in groups for p in g['params']} == scales and max(scales.values()) == 1
    low = layer_scales(model, .7, min_scale=.5)
    assert min(low) == .5 and max(low) == 1 and len(layer_scales(model, coarse=True)) == len(split_params(model))

@pytest.mark.parametrize('arch', ARCHS)
def test_undecayed_are_timms(arch):
    with torch.device('meta'): model = create_model(arch, num_classes=3)
    own = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else set()
    groups = param_groups_weight_decay(model, 1e-2, no_weight_decay_list=own)
    names = {id(p): n for n, p in model.named_parameters()}
    want = {names[id(p)] for g in groups for p in g['params'] if g['weight_decay'] == 0}
    got = undecayed(model)
    assert set(got) == want and len(got) == len(want) and any(n.endswith('.bias') for n in got)
    assert set(own) & set(names.values()) <= want
