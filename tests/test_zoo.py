"The table to search, times of this machine, and what a network costs"
import json

import pandas as pd
import pytest
import timm
import torch

from imgcls_nb.archs import find_arch, paddleclas_table
from imgcls_nb.core import InputError
from imgcls_nb.models import create_model
from imgcls_nb.places import cache_folder
from imgcls_nb.summary import ModelSummary, model_summary
from imgcls_nb.zoo import COLUMNS, models_table, note_latency, read_latencies


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch): monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path))

@pytest.fixture(scope='module')
def everything(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('IMGCLS_CACHE', str(tmp_path_factory.mktemp('cache')))
        return models_table(pretrained_only=False, sort='name')

# The table

def test_every_row_has_a_name_and_is_there_once(everything):
    assert list(everything) == COLUMNS and len(everything) > 2000 and not everything.duplicated(['name', 'size']).any()
    for name in everything.name: find_arch(name)
    assert everything[['name', 'size', 'params_m']].notna().all().all() and everything.params_m.between(.1, 7000).all()

def test_pretrained_is_what_the_libraries_say(everything):
    timms = everything[everything.name.map(timm.is_model)]
    assert set(timms[timms.pretrained].name) <= set(timm.list_pretrained())
    others = everything[~everything.name.map(timm.is_model)]
    tagged = {k for k, o in paddleclas_table().items() if o['library'] == 'torchvision' and o['tag']}
    assert set(others[others.pretrained].name) == tagged and len(tagged) == 8

def test_every_figure_has_a_source(everything):
    assert (everything.source != '').equals(everything.top1.notna()) and everything.top1.dropna().between(25, 95).all()
    assert set(everything.source.map(lambda o: o.partition(' ')[0].rstrip(','))) == {'', 'timm', 'torchvision', 'PaddleClas'}

@pytest.mark.parametrize('name, size, top1, source', [
    ('resnet50.a1_in1k', 224, 80.4, 'timm'), ('AlexNet', 224, 56.5, 'torchvision'),
    ('ShuffleNetV2_x0_25', 224, 49.9, 'PaddleClas')])
def test_known_figures(everything, name, size, top1, source):
    row = everything[(everything.name == name) & (everything['size'] == size)]
    assert len(row) == 1 and abs(row.top1.item() - top1) < .1 and row.source.item().startswith(source)

def test_every_paddleclas_name_is_found(everything):
    found = {o for names in everything.paddleclas for o in names.split(', ') if o}
    missing = {k for k, o in paddleclas_table().items() if o['library']} - found
    assert not {o for o in missing if o in everything.name.values} and len(missing) < 8, missing

@pytest.mark.parametrize('pattern, known', [
    ('*mobilenet*', 'mobilenetv3_large_100.ra_in1k'), ('MOBILENETV3_large', 'mobilenetv3_large_100.ra_in1k'),
    ('ResNet50_vd', 'resnet50d.ra2_in1k'), ('squeeze', 'SqueezeNet1_1'), ('resnet18.tv_in1k', 'resnet18.tv_in1k')])
def test_patterns(pattern, known):
    names = set(models_table(pattern).name)
    assert known in names and 'vit_base_patch16_224.augreg_in1k' not in names

def test_filters_and_order():
    df = models_table(max_params=6, max_gmacs=.5, min_top1=75)
    assert len(df) > 5 and (df.params_m <= 6).all() and (df.gmacs <= .5).all() and (df.top1 >= 75).all() and df.pretrained.all()
    assert df.top1.is_monotonic_decreasing and models_table('resnet', sort='params_m').params_m.is_monotonic_increasing
    assert models_table('no such network').empty
    with pytest.raises(InputError, match="sort='top' is no column. .*Did you mean .*'top1'"): models_table(sort='top')

# Times of this machine

def test_times_join_the_table():
    assert read_latencies() == [] and not [o for o in models_table('resnet18') if o.endswith('_ms')]
    note_latency('resnet18.a1_in1k', 224, 'onnxruntime', 9)
    note_latency('resnet18', (224, 224), 'onnxruntime', 8.)
    note_latency('resnet18', 224, 'openvino', 3)
    note_latency('resnet18', (224, 160), 'onnxruntime', 6) # no row has such a size
    assert [o['ms'] for o in read_latencies()] == [8, 3, 6]
    df = models_table('resnet18.*')
    assert (df.onnxruntime_ms[df['size'] == 224] == 8).all() and df.onnxruntime_ms[df['size'] != 224].isna().all()
    assert (df.openvino_ms[df['size'] == 224] == 3).all() and models_table('*resnet*', sort='openvino_ms').openvino_ms[0] == 3

def test_times_by_the_names_of_paddleclas_join_too(): # as the card of a model has them, which a YAML file trained
    note_latency('ResNet18', 224, 'onnxruntime', 8)
    assert (models_table('resnet18.*')['onnxruntime_ms'].dropna() == 8).any()

def test_a_line_cut_short_is_left_out():
    note_latency('resnet18', 224, 'x', 1)
    file = cache_folder('latency')/'measured.jsonl'
    for torn in ('{"name": "resnet50", "si', '5', '{"name": "resnet50"}'):
        file.write_text(json.dumps(read_latencies()[0]) + '\n' + torn)
        assert len(read_latencies()) == 1

@pytest.mark.parametrize('size, ms', [(0, 1), ('x', 1), (224, 0), (224, -1), (224, float('nan'))])
def test_times_that_are_none(size, ms):
    with pytest.raises(InputError): note_latency('resnet18', size, 'x', ms)
    assert read_latencies() == []

# What a network costs

@pytest.mark.parametrize('arch, size', [
    ('resnet18', None), ('resnet18', 288), ('mobilenetv3_large_100', None), ('vit_tiny_patch16_224', None),
    ('convnext_atto', None),
    ('swin_tiny_patch4_window7_224', None), ('levit_128s', None), ('ShuffleNetV2_x1_0', None), ('SqueezeNet1_1', None)])
def test_costs_are_those_of_timms_benchmark(everything, arch, size):
    s = model_summary(arch, size)
    rows = everything[(everything.name.str.partition('.')[0] == arch) & (everything['size'] == s.size[0])]
    assert abs(s.gmacs - rows.gmacs.iloc[0]) <= .011 + .05*s.gmacs and abs(s.params/1e6 - rows.params_m.iloc[0]) < .01

def test_one_layer_counted_by_hand():
    net = create_model('test_resnet', num_classes=3)
    net.layer1 = net.layer2 = net.layer3 = net.layer4 = torch.nn.Identity()
    stem = [(o.in_channels, o.out_channels, o.kernel_size[0], o.stride[0]) for o in net.conv1 if isinstance(o, torch.nn.Conv2d)]
    macs, hw = 0, 32
    for c_in, c_out, k, stride in stem:
        hw //= stride
        macs += hw*hw*c_in*c_out*k*k
    with pytest.raises(InputError, match='cannot take'): model_summary(net, 32) # the head no longer fits
    net.fc = torch.nn.Linear(stem[-1][1], 3)
    assert model_summary(net, 32).gmacs*1e9 == macs + stem[-1][1]*3

def test_counting_leaves_a_network_as_it_was():
    net = create_model('test_resnet', num_classes=3).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    a, b = model_summary(net, 64), model_summary(net, 64)
    assert a.gmacs == b.gmacs and net.training and not any(o._forward_hooks for o in net.modules())
    assert all(torch.equal(v, before[k]) and v.device.type == 'cpu' for k, v in net.state_dict().items())

def test_groups_and_what_is_frozen():
    net = create_model('test_resnet', num_classes=3)
    net.requires_grad_(False)
    net.fc.requires_grad_(True)
    net.layer4[0].conv1.requires_grad_(True)
    s = model_summary(net)
    assert isinstance(s, ModelSummary) and s.groups.params.sum() == s.params == sum(p.numel() for p in net.parameters())
    assert list(s.groups.frozen) == ['all', 'all', 'all', 'all', 'some', ''] and s.groups.layers.iloc[-1] == 'fc'
    assert s.trainable == sum(p.numel() for p in net.parameters() if p.requires_grad) and f'{s.trainable:,} of them' in repr(s)
    page = s._repr_html_()
    assert '<table' in page and 'layer4' in page and isinstance(s.groups, pd.DataFrame)

def test_channels_and_sizes():
    grey = model_summary(create_model('test_resnet', in_chans=1), size=(32, 48))
    assert (grey.channels, grey.size) == (1, (32, 48)) and '1 × 32 × 48' in repr(grey)
    assert model_summary('test_vit', 64).size == (64, 64)
    with pytest.raises(InputError, match='resnet81'): model_summary('resnet81')
