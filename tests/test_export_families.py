"One small network of each family: with random weights, its file answers as torch does, one picture at a time and several"
import runpy
from pathlib import Path

import pytest
import timm
import torch

from imgcls_nb.core import InputError
from imgcls_nb.engines import OnnxRuntime
from imgcls_nb.export import to_onnx

bench = runpy.run_path(Path(__file__).parents[1]/'benchmarks/export.py') # which does the same to all families of timm
differences, shake = bench['differences'], bench['shake']

SMALL = dict(img_size=64)
FLAT = SMALL | dict(depth=2)
FAMILIES = dict(
    resnet18={}, mobilenetv2_035={}, mobilenetv3_small_050={}, mobilenetv4_conv_small_035={}, tf_efficientnetv2_b0={},
    efficientnet_lite0={}, convnext_atto={}, vit_tiny_patch16_224=FLAT, deit_tiny_distilled_patch16_224=FLAT,
    swin_tiny_patch4_window7_224=SMALL | dict(embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=2),
    mobilevit_xxs={}, levit_128s=SMALL, hgnetv2_b0={}, lcnet_035={}, repvgg_a0={}, maxvit_pico_rw_256=SMALL, regnety_002={},
    densenet121=dict(growth_rate=8, block_config=(2, 2, 2, 2)), ghostnet_050={}, edgenext_xx_small={}, efficientformer_l1=224,
    poolformer_s12={}, mixer_s32_224=SMALL, resmlp_12_224=SMALL,
    coat_tiny=SMALL | dict(serial_depths=(1, 1, 1, 1), parallel_depth=1), crossvit_tiny_240=240, inception_v3=96,
    legacy_xception=96, dpn48b={}, res2net50_14w_8s={}, mobileone_s0={}, vgg11={}, rexnet_100={})

@pytest.mark.parametrize('name', FAMILIES)
def test_the_file_answers_as_torch_does(name):
    how = FAMILIES[name]
    size, kwargs = (how, {}) if isinstance(how, int) else (64, how)
    torch.manual_seed(0)
    model = shake(timm.create_model(name, num_classes=7, **kwargs), (3, size, size))
    off, spread, most = differences(model, (3, size, size))
    assert off <= most and most < .5*spread and spread > 1e-5

def test_branches_become_one():
    "RepVGG is small in the file; what it was trained with stays as it is"
    model = shake(timm.create_model('repvgg_a0', num_classes=3), (3, 32, 32))
    branches = len(list(model.modules()))
    convs = [o for o in to_onnx(model, (3, 32, 32)).graph.node if o.op_type == 'Conv']
    assert len(convs) == 22 and len(list(model.modules())) == branches

class Forks(torch.nn.Module):
    "Looks at the numbers before it decides what to do, which no graph can"
    def forward(self, x): return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

class Fixed(torch.nn.Module):
    def forward(self, x): raise RuntimeError("made for the GPU only\nsecond line")

@pytest.mark.parametrize('net, says', [
    (Forks(), 'ONNX: .*[a-z].*TorchPredictor'), (Fixed(), 'RuntimeError: made for the GPU only. It')])
def test_what_torch_cannot_write_is_refused_in_words(net, says):
    with pytest.raises(InputError, match=says): to_onnx(net.eval(), (3, 8, 8))

def test_an_opset_that_runs():
    proto = to_onnx(shake(timm.create_model('test_resnet', num_classes=3), (3, 32, 32)), (3, 32, 32))
    assert next(o.version for o in proto.opset_import if not o.domain) >= 18 and OnnxRuntime(proto.SerializeToString(), threads=1)
