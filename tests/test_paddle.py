"Paddle's weights: read without running anything, every array in its place, and whatever does not fit named"
import os
import pickle
import re

import numpy as np
import pytest
import torch

from imgcls_nb.archs import build_arch, find_arch
from imgcls_nb.cli import main
from imgcls_nb.core import InputError
from imgcls_nb.models import create_model, load_weights
from imgcls_nb.paddle import convert_pdparams, layer_names, read_pdparams


def theirs_of_resnet(names):
    "Our names to theirs"
    stem = {'conv1.0': 'stem.0.conv', 'conv1.1': 'stem.0.bn', 'conv1.3': 'stem.1.conv', 'conv1.4': 'stem.1.bn',
            'conv1.6': 'stem.2.conv', 'bn1': 'stem.2.bn' if any(o.startswith('conv1.6') for o in names) else 'stem.0.bn',
            'conv1': 'stem.0.conv'}
    blocks = sorted({re.match(r'layer\d\.\d+', o)[0] for o in names if o.startswith('layer')},
                    key=lambda o: [int(i) for i in re.findall(r'\d+', o)])
    def rename(name):
        owner, _, part = name.rpartition('.')
        if not name.startswith('layer'): return f'{stem.get(owner, owner)}.{part}'
        block = next(o for o in blocks if name.startswith(f'{o}.'))
        inner = owner.removeprefix(f'{block}.')
        if inner.startswith('downsample'): inner = f"short.{'conv' if part == 'weight' and dims[name] == 4 else 'bn'}"
        else: inner = f"conv{int(inner[-1]) - 1}.{'conv' if inner.startswith('conv') else 'bn'}"
        return f'blocks.{blocks.index(block)}.{inner}.{part}'
    dims = {k: v.ndim for k, v in names.items()}
    return rename

def write_pdparams(path, model, rename, extra=()):
    "A file of the form that Paddle writes"
    held, linear = {}, [k for k, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    for k, v in model.state_dict().items():
        if k.endswith('num_batches_tracked'): continue
        a = (v.T if k.rpartition('.')[0] in linear and v.ndim == 2 else v).contiguous().numpy()
        held[rename(k).replace('running_mean', '_mean').replace('running_var', '_variance')] = a
    path.write_bytes(pickle.dumps(held | dict(extra) | {'StructuredToParameterName@@': {}}, 4))

def shaken(arch, **kwargs): # no two arrays are equal
    torch.manual_seed(0)
    model = build_arch(find_arch(arch), False, 5, **kwargs)
    for o in model.state_dict().values():
        if o.is_floating_point(): o.copy_(torch.rand_like(o) + .5)
    return model.eval()

@pytest.mark.parametrize('arch', ['ResNet50', 'ResNet50_vd'])
def test_resnets(arch, tmp_path):
    model = shaken(arch)
    write_pdparams(tmp_path/'x.pdparams', model, theirs_of_resnet(model.state_dict()))
    state, kwargs = convert_pdparams(tmp_path/'x.pdparams', arch)
    own = model.state_dict()
    assert not kwargs and state.keys() == own.keys() and all(state[k].equal(own[k]) for k in own if 'num_batches' not in k)

def test_vits(tmp_path):
    model = shaken('DeiT_tiny_patch16_224')
    write_pdparams(tmp_path/'x.pdparams', model, lambda k: k)
    state, _ = convert_pdparams(tmp_path/'x.pdparams', 'DeiT_tiny_patch16_224')
    assert all(state[k].equal(v) for k, v in model.state_dict().items())

MOBILE = [(r'^conv_stem', 'conv.conv'), (r'^bn1', 'conv.bn'), ('conv_head', 'last_conv'), ('classifier', 'fc'),
          (r'\.conv_pwl\.', '.linear_conv.conv.'), (r'\.bn3\.', '.linear_conv.bn.'), (r'\.conv_pw\.', '.expand_conv.conv.'),
          (r'\.conv_dw\.', '.bottleneck_conv.conv.'), (r'\.bn1\.', '.expand_conv.bn.'), (r'\.bn2\.', '.bottleneck_conv.bn.'),
          (r'\.se\.conv_reduce', '.mid_se.conv1'), (r'\.se\.conv_expand', '.mid_se.conv2')]

def theirs_of_mobilenet(model):
    places = [f'blocks.{s}.{i}.' for s, stage in enumerate(model.blocks) for i in range(len(stage))]
    last = places.pop()
    def rename(name):
        if name.startswith(last): return name.replace(f'{last}conv', 'last_second_conv.conv').replace(f'{last}bn1',
                                                                                                    'last_second_conv.bn')
        for i, o in enumerate(places): name = re.sub(f'^{re.escape(o)}', f'blocks.{i}.', name)
        for pattern, to in MOBILE: name = re.sub(pattern, to, name)
        return name
    return rename

def test_mobilenet_answers_as_theirs(tmp_path):
    model = shaken('MobileNetV3_small_x0_35')
    write_pdparams(tmp_path/'x.pdparams', model, theirs_of_mobilenet(model))
    state, _ = convert_pdparams(tmp_path/'x.pdparams', 'MobileNetV3_small_x0_35')
    own = model.state_dict()
    assert state['classifier.weight'].allclose(own['classifier.weight']*.8), "their dropout takes its share while predicting"
    gate = next(k for k in own if k.endswith('se.conv_expand.weight'))
    z = torch.linspace(-4, 4, 50)
    theirs, ours = (.2*z + .5).clamp(0, 1), torch.nn.functional.hardsigmoid(1.2*z)
    assert state[gate].allclose(own[gate]*1.2) and theirs.allclose(ours), "a gate of slope 0.2 is one of 1/6 behind 1.2"

def test_the_shell_converts_and_the_network_loads(tmp_path, capsys):
    model = shaken('MobileNetV3_large_x1_0', width=1.)
    write_pdparams(tmp_path/'x.pdparams', model, theirs_of_mobilenet(model))
    out = tmp_path/'out/x.safetensors'
    assert main(['convert', str(tmp_path/'x.pdparams'), str(out), '--arch', 'MobileNetV3_large_x1_0', '--dropout', '0']) == 0
    assert 'Arch.width=1.0' in capsys.readouterr().out
    loaded = create_model('MobileNetV3_large_x1_0', num_classes=5, width=1.)
    assert load_weights(loaded, out) == []
    assert loaded.state_dict()['conv_stem.weight'].equal(model.state_dict()['conv_stem.weight'])

def test_a_file_that_nobody_named_is_not_replaced(tmp_path, capsys):
    model = shaken('MobileNetV3_large_x1_0', width=1.)
    write_pdparams(tmp_path/'x.pdparams', model, theirs_of_mobilenet(model))
    own = tmp_path/'x.safetensors'
    own.write_bytes(b'mine')
    command = ['convert', str(tmp_path/'x.pdparams'), '--arch', 'MobileNetV3_large_x1_0']
    assert main(command) == 2 and own.read_bytes() == b'mine'
    assert f"convert {tmp_path/'x.pdparams'} {own} --arch" in capsys.readouterr().err
    assert main([*command[:2], str(own), *command[2:]]) == 0 and own.stat().st_size > 1000

# What is no file of weights, or of another network

class Runs:
    def __reduce__(self): return os.system, ('touch trace',)

@pytest.mark.parametrize('held, says', [
    (Runs(), "it wants to run '(posix|nt).system'"), (dict(a=Runs()), "it wants to run"), (dict(a=print), "builtins.print"),
    (5, 'no file of Paddle'), (dict(a=5), 'no file of Paddle'), (dict(a=np.array(['x'])), 'arrays of type U1')],
    ids=lambda o: str(o).partition(' at 0x')[0])
def test_pickles_that_are_no_weights(held, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'x.pdparams').write_bytes(pickle.dumps(held, 4))
    with pytest.raises(InputError, match=says): read_pdparams('x.pdparams')
    assert not (tmp_path/'trace').exists()

def test_damaged_and_missing_files(tmp_path):
    (tmp_path/'x.pdparams').write_bytes(pickle.dumps(dict(a=np.zeros(9)), 4)[:60])
    with pytest.raises(InputError, match='no file of Paddle'): read_pdparams(tmp_path/'x.pdparams')
    with pytest.raises(InputError, match='cannot be read'): read_pdparams(tmp_path/'y.pdparams')

@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', 'i8'])
@pytest.mark.parametrize('protocol', [2, 4])
def test_types_and_protocols(dtype, protocol, tmp_path):
    a = np.arange(6).reshape(2, 3).astype(dtype)
    (tmp_path/'x.pdparams').write_bytes(pickle.dumps({'a': a, 'b': ('name', np.asfortranarray(a))}, protocol))
    got = read_pdparams(tmp_path/'x.pdparams')
    assert all(np.array_equal(o, a) and o.dtype == a.dtype for o in got.values()) and list(got) == ['a', 'b']

@pytest.mark.parametrize('arch, says', [
    ('ResNet50', 'does not fit .ResNet50.: .*of other shapes|missing'), ('DenseNet121', 'do not correspond one to one'),
    ('VGG16', 'do not correspond'), ('ResNet5', "no architecture 'ResNet5'")])
def test_other_networks(arch, says, tmp_path):
    model = shaken('DeiT_tiny_patch16_224')
    write_pdparams(tmp_path/'x.pdparams', model, lambda k: k)
    with pytest.raises(InputError, match=says): convert_pdparams(tmp_path/'x.pdparams', arch)

def test_a_name_of_timm_for_another_network(tmp_path):
    write_pdparams(tmp_path/'x.pdparams', torch.nn.ModuleDict(dict(fc=torch.nn.Linear(2, 3))), lambda k: k)
    with pytest.raises(InputError, match="such as 'MobileNetV3_large_x1_0'"):
        convert_pdparams(tmp_path/'x.pdparams', 'mobilenetv3_large_100')

def test_arrays_that_are_left_over_are_named(tmp_path):
    model = shaken('DeiT_tiny_patch16_224')
    write_pdparams(tmp_path/'x.pdparams', model, lambda k: k, dict(more=np.zeros(3, np.float32)))
    with pytest.raises(InputError, match='1 left over, such as more'):
        convert_pdparams(tmp_path/'x.pdparams', 'DeiT_tiny_patch16_224')

# Layers by name

@pytest.mark.parametrize('arch, some, n', [
    ('ResNet18', {'blocks[0]': 'layer1.0', 'blocks[7]': 'layer4.1', 'avg_pool': 'global_pool', 'stem': 'act1'}, 8),
    ('ResNet34', {'blocks[2]': 'layer1.2', 'blocks[3]': 'layer2.0', 'blocks[15]': 'layer4.2'}, 16),
    ('ResNet50_vd', {'blocks[12]': 'layer3.5', 'max_pool': 'maxpool'}, 16),
    ('PPLCNet_x2_5', {'blocks2': 'blocks.0', 'blocks3': 'blocks.1', 'blocks4': 'blocks.2', 'blocks5': 'blocks.4',
                      'blocks6': 'blocks.5', 'blocks5[0]': 'blocks.3.0', 'blocks5[5]': 'blocks.4.3'}, 13),
    ('MobileNetV3_large_x1_0', {'blocks[0]': 'blocks.0.0', 'blocks[14]': 'blocks.5.2'}, 15),
    ('MobileNetV3_small_x0_35', {'blocks[10]': 'blocks.10.0'}, 11),
    ('DeiT_tiny_patch16_224', {'blocks[11]': 'blocks.11'}, 12)], ids=lambda o: str(o)[:24])
def test_layers_have_the_names_of_ours(arch, some, n):
    found = layer_names(arch)
    with torch.device('meta'): known = {k for k, _ in build_arch(find_arch(arch), False, 3).named_modules()}
    assert some.items() <= found.items() and {*found.values()} <= known and sum('[' in k for k in found) == n

def test_layers_give_what_theirs_do(): # of one size and number of channels, as the config of PP-LCNet's authors has them
    from imgcls_nb.features import feature_shapes
    model, names = build_arch(find_arch('PPLCNet_x2_5'), False, 3), layer_names('PPLCNet_x2_5')
    shapes = feature_shapes(model, [names[f'blocks{i}'] for i in range(2, 7)], torch.zeros(1, 3, 64, 64))
    assert [*shapes.values()] == [(80, 32, 32), (160, 16, 16), (320, 8, 8), (640, 4, 4), (1280, 2, 2)]

@pytest.mark.parametrize('arch, says', [('SwinTransformer_tiny_patch4_window7_224', 'known by other names here'),
                                        ('ResNet5', 'no architecture')])
def test_layers_without_an_equal(arch, says):
    with pytest.raises(InputError, match=says): layer_names(arch)
