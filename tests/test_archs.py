"Every name of the table builds the network it stands for"
import copy
from collections import Counter

import pytest
import timm
import torch
from torch.overrides import TorchFunctionMode

from imgcls_nb.archs import TORCHVISION, arch_cfg, build_arch, find_arch, paddleclas_kind, paddleclas_table, published
from imgcls_nb.core import InputError
from imgcls_nb.models import create_model, model_preprocess, split_params

TABLE = paddleclas_table()
BUILDABLE = [k for k, o in TABLE.items() if o['library']]

# Names

@pytest.mark.parametrize('arch, says', [
    ('resnet81', "no architecture 'resnet81'.*Did you mean .*'resnet18'"), ('Test_ResNet', "Did you mean .*'test_resnet'"),
    ('MobileNetV3_large_x1_1', "Did you mean .*'MobileNetV3_large_x1_0'"), ('', 'no architecture'), (None, 'no architecture'),
    ('qqqqqq', r"no architecture 'qqqqqq'\. timm.list_models"),
    ('resnet18.a1_in2k', "'resnet18' has no weights tagged 'a1_in2k'.*Did you mean .*'a1_in1k'"),
    ('coatnet_0_224.x', "'coatnet_0_224' has no weights tagged 'x'. Known tags: none"),
    ('hf_hub:timm/resnet18', 'no architecture'),
    ('CvT_13_224', "'CvT_13_224' is a PaddleClas architecture that neither timm nor torchvision has. .* is 'pvt_v2_b2.in1k'")])
def test_names_that_mean_nothing(arch, says):
    for call in (find_arch, create_model):
        with pytest.raises(InputError, match=says): call(arch)

@pytest.mark.parametrize('arch, name', [
    ('resnet18', 'resnet18'), ('resnet18.a1_in1k', 'resnet18.a1_in1k'), ('coatnet_0_224', 'coatnet_0_224'),
    ('MobileNetV3_large_x1_0', 'mobilenetv3_large_100.ra_in1k'), ('AlexNet', 'torchvision:alexnet.IMAGENET1K_V1'),
    ('hf-hub:timm/resnet18.a1_in1k', 'hf-hub:timm/resnet18.a1_in1k')])
def test_known_names(arch, name): assert find_arch(arch).full_name == name

# The table

def test_the_table_counted():
    kinds = Counter(map(paddleclas_kind, TABLE.values()))
    assert kinds == dict(timm=227, torchvision=8, built=46, none=89, **{'arch-only': 2})

def test_every_row_holds_together():
    with_weights = set(timm.list_pretrained())
    for name, row in TABLE.items():
        kind, near = paddleclas_kind(row), row['nearest']
        assert (near == '') == (kind in ('timm', 'torchvision')), name
        if kind == 'timm': assert f"{row['base']}.{row['tag']}" in with_weights, name
        if row['library'] == 'torchvision': assert row['base'] in TORCHVISION, name
        if near: assert near in with_weights or TABLE[near]['library'], name
        if kind != 'none': assert (published(find_arch(name)) is None) == (kind in ('built', 'arch-only')), name
        assert not row['top1'] or 40 < float(row['top1']) < 95, name

class NoInit(TorchFunctionMode):
    "Meta tensors have no numbers; not filling them makes the sweep three times faster"
    SKIP = {f'{o}_' for o in 'normal uniform trunc_normal fill zero mul add erfinv clamp bernoulli copy div sub'.split()}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        skip = getattr(func, '__name__', '') in self.SKIP
        return (args[0] if args else kwargs['tensor']) if skip else func(*args, **(kwargs or {}))

@pytest.fixture(scope='module')
def counts():
    "Of every name that can be built: parameters, and statistics of batch norm"
    found = {}
    for name in BUILDABLE:
        with torch.device('meta'), NoInit(): model = build_arch(find_arch(name))
        stats = (o.numel() for k, o in model.named_buffers() if k.endswith(('running_mean', 'running_var')))
        found[name] = sum(p.numel() for p in model.parameters()), sum(stats)
        assert model.pretrained_cfg['input_size'] and model.num_classes is not None, name
    return found

def test_every_name_has_the_parameters_of_the_original(counts):
    counted = {k: int(TABLE[k]['params']) for k in BUILDABLE if TABLE[k]['params']}
    assert len(counted) > 270
    differ = {k for k, n in counted.items() if counts[k][0] != n}
    assert differ == {k for k in BUILDABLE if TABLE[k]['differs']}, "each has its reason in the table, and no other has one"
    far = {k for k in differ if abs(counts[k][0]/counted[k] - 1) > .03}
    assert {o.partition('_')[0] for o in far} == {'GoogLeNet', 'LeViT', 'TinyNet'}, "all others are nearly the same"

def test_every_published_figure(counts):
    def equal(text, n): return abs(float(text) - n/1e6) <= max(.5*10**-len(text.partition('.')[2]), .005*n/1e6)
    off = set()
    for name, (params, stats) in counts.items():
        text, own = TABLE[name]['params_m'], int(TABLE[name]['params'] or params)
        if text and not (equal(text, own) or equal(text, own + stats)): off.add(name) # most were counted with the statistics
    assert off == {k for k in BUILDABLE if TABLE[k]['remark']}

def test_what_the_guide_trains_first():
    model = create_model('ShuffleNetV2_x0_25', num_classes=102).eval()
    assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 102) and model_preprocess(model).to_dict()['resize_short'] == 256

@pytest.mark.parametrize('arch', [
    'MobileNetV3_small_x0_35', 'MobileNetV1_x0_25', 'PPLCNet_x0_25', 'MobileNetV2_x0_25', 'ShuffleNetV2_swish', 'SE_ResNet18_vd',
    'EfficientNetB0_small', 'SqueezeNet1_0', 'RepVGG_B1g2', 'ResNet50_adaptive_max_pool2d'])
def test_built_networks_compute(arch):
    big = arch in ('RepVGG_B1g2', 'ResNet50_adaptive_max_pool2d')
    with torch.device('meta' if big else 'cpu'): model = create_model(arch, num_classes=4).eval()
    out = model(torch.rand(2, 3, 64, 64, device='meta' if big else 'cpu'))
    assert out.shape == (2, 4) and (big or out.isfinite().all())

def test_mobilenetv3_ends_1280_wide_and_scales_like_the_original():
    for width, stem in (('0_35', 8), ('0_5', 8), ('1_0', 16), ('1_25', 24)):
        with torch.device('meta'): model = create_model(f'MobileNetV3_small_x{width}')
        assert model.conv_stem.out_channels == stem and model.conv_head.out_channels == 1280 and model.conv_head.bias is None

def test_swish_in_place_of_relu():
    with torch.device('meta'): model = create_model('ShuffleNetV2_swish')
    kinds = Counter(type(o).__name__ for o in model.modules())
    assert kinds['ReLU'] == 0 and kinds['SiLU'] == 37

# torchvision's networks answer what timm's do

@pytest.mark.parametrize('base', TORCHVISION)
def test_torchvision_networks_answer_like_timms(base):
    name = next(k for k, o in TABLE.items() if o['base'] == base and o['library'] == 'torchvision')
    with torch.device('meta'): model = create_model(name, num_classes=7)
    head, cfg = model.get_classifier(), model.pretrained_cfg
    assert getattr(head, 'out_features', None) == 7 or head.out_channels == 7
    assert model.num_classes == 7 and cfg['architecture'] == base and model.get_submodule(cfg['first_conv']).in_channels == 3
    groups, blocks = split_params(model), split_params(model, coarse=False)
    assert 2 < len(groups) <= len(blocks) and len(groups) < 22 and sum(map(len, groups)) == len(list(model.parameters()))
    assert {id(p) for p in head.parameters()} <= {id(p) for p in groups[-1]}
    twin = copy.deepcopy(model) # as an average of the weights does
    assert twin.get_classifier() is twin.get_submodule(cfg['classifier']) is not head

def test_torchvision_preprocessing():
    for name, mean, short in (('AlexNet', .485, 256), ('GoogLeNet', .5, 256), ('ShuffleNetV2_x2_0', .485, 232)):
        with torch.device('meta'): got = model_preprocess(create_model(name))
        assert (got.mean[0], got.resize_short, got.size, got.interpolation) == (mean, short, (224, 224), 'bilinear')

def test_arguments_reach_torchvision():
    assert create_model('SqueezeNet1_1', drop_rate=.3).classifier[0].p == .3
    with pytest.raises(InputError, match="'AlexNet' cannot be built with"): create_model('AlexNet', depth=3)
    with pytest.raises(InputError, match="'ShuffleNetV2_x1_0' cannot"): create_model('ShuffleNetV2_x1_0', drop_rate=.1)

def test_built_networks_claim_no_weights():
    for name in ('ResNet200_vd', 'MobileNetV1_x0_5', 'PPLCNet_x0_35'):
        cfg = arch_cfg(find_arch(name))
        assert not cfg['hf_hub_id'] and not cfg['url'] and cfg['input_size'] == (3, 224, 224)
        with torch.device('meta'): assert create_model(name).pretrained_cfg == cfg
