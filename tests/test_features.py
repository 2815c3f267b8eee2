"Layers inside networks: found by name, heard without a trace, and compared as the papers say"
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.core import InputError
from imgcls_nb.features import (
    Attention,
    Distance,
    Generation,
    Projectors,
    feature_shapes,
    features_of,
    find_layers,
    map_gaps,
    stage_layers,
    tapped,
)
from imgcls_nb.models import create_model


def draw(*shapes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(o, generator=rng) for o in shapes]

def near(a, b, **kwargs): torch.testing.assert_close(a, b, **dict(atol=1e-5, rtol=1e-5) | kwargs)

# Names

@pytest.fixture(scope='module')
def resnet(): return create_model('test_resnet', num_classes=3)

@pytest.mark.parametrize('names, found', [
    ('layer1', ['layer1']), (['layer2.0', 'layer1.0'], ['layer2.0', 'layer1.0']), ('global_pool', ['global_pool']),
    ('layer?', ['layer1', 'layer2', 'layer3', 'layer4']), ('layer*.*', [f'layer{i}.0' for i in range(1, 5)]),
    (['layer1.0', 'layer[12].0'], ['layer1.0', 'layer2.0'])], ids=str)
def test_layers_by_name(resnet, names, found): assert find_layers(resnet, names) == found

@pytest.mark.parametrize('name, says', [
    ('layer5', "The ResNet has no layer 'layer5'. Did you mean 'layer4'"), ('layer4.1', "'layer4.1'. Did you mean 'layer4.0'"),
    ('*.*.*.*.*.*.*', 'It has such as .*layer1, layer2'), ('', "no layer ''"), (None, "no layer 'None'")], ids=str)
def test_layers_that_are_not_there(resnet, name, says):
    with pytest.raises(InputError, match=says): find_layers(resnet, [name])

@pytest.mark.parametrize('arch, last', [('test_resnet', 'layer4'), ('lcnet_050', 'blocks.5'), ('test_efficientnet', 'blocks.4'),
                                        ('mobilenetv3_small_050', 'blocks.5')])
def test_ends_of_stages(arch, last):
    with torch.device('meta'): model = create_model(arch, num_classes=3)
    found = stage_layers(model)
    assert found[-1] == last and found == find_layers(model, found) and len(found) > 3

def test_a_network_without_stages():
    with pytest.raises(InputError, match='Name the layers that are to be compared, layers='): stage_layers(nn.Sequential())

# Hearing

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.over, self.twice = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Identity()
        self.pair, self.unused = nn.MaxPool2d(2, return_indices=True), nn.Identity()
    def forward(self, x): return self.twice(self.twice(self.pair(self.over(self.conv(x)))[0])).mean((2, 3))

def hear(model, names, x):
    with tapped(model, names) as heard: model(x)
    return features_of(heard, names)

def test_what_is_heard_is_what_the_layer_gives(resnet):
    (x,), names = draw((2, 3, 32, 32)), ['layer2', 'global_pool']
    resnet.eval()
    stem = resnet.maxpool(resnet.act1(resnet.bn1(resnet.conv1(x))))
    second, pooled = hear(resnet, names, x)
    near(second, resnet.layer2(resnet.layer1(stem)))
    near(pooled, resnet.forward_features(x).mean((2, 3)))
    assert second.requires_grad and feature_shapes(resnet, names, x) == dict(layer2=(48, 4, 4), global_pool=(96,))

def test_nothing_is_left_behind(resnet):
    (x,) = draw((2, 3, 32, 32))
    before = {k: v.clone() for k, v in resnet.train().state_dict().items()}
    shapes = feature_shapes(resnet, ['layer1'], x)
    with pytest.raises(RuntimeError), tapped(resnet, ['layer1']): resnet(x[0, 0])
    assert shapes and resnet.training and not any(o._forward_hooks for o in resnet.modules())
    assert all(torch.equal(v, before[k]) for k, v in resnet.state_dict().items())

@pytest.mark.parametrize('name, says', [('conv', 'writes over its output'), ('twice', 'ran 2 times'), ('unused', 'ran 0 times'),
                                        ('pair', 'gives a tuple')])
def test_what_cannot_be_heard(name, says):
    with pytest.raises(InputError, match=says): hear(Odd(), [name], *draw((2, 3, 4, 4)))

def test_channels_come_first():
    class Last(nn.Module):
        output_fmt = 'NHWC'
        def __init__(self):
            super().__init__()
            self.stage = nn.Linear(3, 5)
        def forward(self, x): return self.stage(x.permute(0, 2, 3, 1)).mean((1, 2))
    assert feature_shapes(Last(), ['stage'], *draw((2, 3, 4, 6))) == dict(stage=(5, 4, 6))

# AFD

STUDENT, TEACHER = dict(a=(4, 8, 8), b=(6, 4, 4), c=(7, 2, 2)), dict(x=(5, 8, 8), y=(3, 4, 4))

def features(shapes, n=6, seed=0): return draw(*((n, *o) for o in shapes.values()), seed=seed)

def gap_by_hand(s, t): # of one picture
    s = F.adaptive_avg_pool2d((s**2).mean(0)[None], t.shape[1:]).flatten()
    t = (t**2).mean(0).flatten()
    return ((s/s.norm() - t/t.norm())**2).mean()

def test_gaps_of_maps_by_hand():
    own, given = features(STUDENT), features(TEACHER, seed=1)
    gaps = map_gaps(own, given)
    assert gaps.shape == (6, 2, 3)
    for i in range(6):
        for t in range(2):
            for s in range(3): near(gaps[i, t, s], gap_by_hand(own[s][i], given[t][i]))

def normalized(x): return (x - x.mean(0))/(x.var(0, unbiased=False) + 1e-5).sqrt() # by a BatchNorm as it begins

def test_attention_by_hand():
    torch.manual_seed(0)
    own, given, m = features(STUDENT), features(TEACHER, seed=1), Attention(STUDENT, TEACHER, dim=4)
    q = [normalized(o.mean((2, 3)) @ f[0].weight.T) for f, o in zip(m.queries, given)]
    k = [normalized(o.mean((2, 3)) @ f[0].weight.T).relu() for f, o in zip(m.keys, own)]
    mixed = normalized(torch.stack([k[s][i] for i in range(6) for s in range(3)]) @ m.pairs[0].weight.T).view(6, 3, 2, 4)
    total = 0.
    for i in range(6):
        for t in range(2):
            fit = torch.stack([(mixed[i, s, t] @ q[t][i] + m.given[t] @ m.own[s])/2 for s in range(3)]) # sqrt(4)
            total += sum(w*gap_by_hand(own[s][i], given[t][i]) for s, w in enumerate(fit.exp()/fit.exp().sum()))
    near(m(own, given), total/6)

def test_attention_without_an_opinion_is_a_mean():
    own, given, m = features(STUDENT), features(TEACHER, seed=1), Attention(STUDENT, TEACHER, dim=4)
    for o in m.parameters(): nn.init.zeros_(o)
    near(m(own, given), map_gaps(own, given).mean(2).sum(1).mean())
    m.own.data[2] = m.given.data[1] = 100. # one pair that belongs together whatever the picture is
    near(m.weights(own, given)[:, 1], torch.tensor([0., 0., 1.]).expand(6, 3))

def test_attention_begins_as_paddle_does():
    torch.manual_seed(0)
    m = Attention({f's{i}': (512, 7, 7) for i in range(8)}, {f't{i}': (512, 7, 7) for i in range(16)})
    assert m.own.shape == (8, 128) and m.given.shape == (16, 128) and m.pairs[0].weight.shape == (2048, 128)
    assert m.given.std().item() == pytest.approx(math.sqrt(2/(16 + 128)), rel=.05)
    assert m.keys[0][0].weight.abs().max().item() == pytest.approx(math.sqrt(6/(512 + 128)), rel=.01)
    assert all(not o[0].bias.any() for o in (*m.keys, *m.queries, m.pairs))

# MGD

def test_generation_by_hand():
    torch.manual_seed(0)
    (own,), (given,), m = features(dict(a=(4, 5, 5))), features(dict(x=(6, 5, 5)), seed=1), Generation(dict(a=(4, 5, 5)),
                                                                                                      dict(x=(6, 5, 5)), mask=0.)
    a, first, _, second = (m.align, *m.generate)
    made = F.conv2d(F.conv2d(F.conv2d(own, a.weight), first.weight, padding=1).relu(), second.weight, padding=1)
    near(m([own], [given]), ((made - given)**2).mean())

def test_whole_channels_are_left_out():
    m, seen, share = Generation(dict(a=(64, 3, 3)), dict(x=(64, 3, 3)), mask=.15), [], []
    m.generate = nn.Sequential()
    m.generate.register_forward_hook(lambda module, args, out: seen.append(out))
    for i in range(20):
        torch.manual_seed(i)
        m([torch.ones(32, 64, 3, 3)], [torch.zeros(32, 64, 3, 3)])
        assert set(seen[-1].unique().tolist()) == {0., 1.} and (seen[-1] == seen[-1][:, :, :1, :1]).all()
        share.append(1 - seen[-1].mean().item())
    assert sum(share)/20 == pytest.approx(.15, abs=.005) and len({*share}) > 10
    torch.manual_seed(3)
    m([torch.ones(32, 64, 3, 3)], [torch.zeros(32, 64, 3, 3)])
    assert torch.equal(seen[-1], seen[3]), "what is left out follows from the generator, which a step seeds"

def test_the_weight_of_the_paper_is_that_of_a_mean():
    (made, given) = draw((2, 512, 7, 7), (2, 512, 7, 7))
    assert 7e-5*F.mse_loss(made, given, reduction='sum')/2 == pytest.approx(1.756*F.mse_loss(made, given).item(), rel=1e-3)

def test_a_map_of_another_size_is_averaged():
    m = Generation(dict(a=(4, 8, 8)), dict(x=(4, 4, 4)), mask=0.)
    (own,), (given,) = features(dict(a=(4, 8, 8))), features(dict(x=(4, 4, 4)), seed=1)
    assert isinstance(m.align, nn.Identity)
    near(m([own], [given]), m([F.avg_pool2d(own, 2)], [given]))

def test_generation_begins_as_paddle_does():
    torch.manual_seed(0)
    m = Generation(dict(a=(64, 3, 3)), dict(x=(128, 3, 3)))
    for o in (m.generate[0], m.generate[2], m.align):
        fan = 128*o.kernel_size[0]**2
        assert o.weight.std().item() == pytest.approx(math.sqrt(2/fan), rel=.05) and not o.bias.any()

# PEFD

@pytest.mark.parametrize('own, given', [((4,), (6,)), ((4, 3, 3), (6, 2, 2)), ((4,), (4, 2, 2))], ids=str)
def test_projectors_by_hand(own, given):
    torch.manual_seed(0)
    m, (s,), (t,) = Projectors(dict(a=own), dict(x=given), 3), features(dict(a=own)), features(dict(x=given), seed=1)
    a, b = (o.mean((2, 3)) if o.ndim == 4 else o for o in (s, t))
    mean = sum((a @ f.weight.T + f.bias).relu() for f in m.projectors)/3
    near(m([s], [t]), sum(1 - x @ y/(x.norm()*y.norm()) for x, y in zip(mean, b))/6)
    assert len({f.weight.sum().item() for f in m.projectors}) == 3, "each begins otherwise"

def test_features_of_nothing_have_a_finite_slope():
    m = Projectors(dict(a=(4,)), dict(x=(4,)))
    m([torch.zeros(3, 4)], [torch.ones(3, 4)]).backward()
    assert all(o.grad.isfinite().all() for o in m.parameters())

# UDML

def test_the_distance_by_hand():
    own, given = features(STUDENT), features(STUDENT, seed=1)
    near(Distance(STUDENT, STUDENT)(own, given), sum(((a - b)**2).sum()/a.numel() for a, b in zip(own, given)))

# All

MADE = dict(attention=lambda: (Attention(STUDENT, TEACHER, 8), STUDENT, TEACHER),
            generation=lambda: (Generation(dict(a=(4, 8, 8)), dict(x=(5, 8, 8))), dict(a=(4, 8, 8)), dict(x=(5, 8, 8))),
            projectors=lambda: (Projectors(dict(a=(4,)), dict(x=(5,))), dict(a=(4,)), dict(x=(5,))),
            distance=lambda: (Distance(STUDENT, STUDENT), STUDENT, STUDENT))

@pytest.mark.parametrize('name', MADE)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_the_student_and_all_that_stands_between_learn(name, dtype):
    torch.manual_seed(0)
    m, student, teacher = MADE[name]()
    own, given = features(student, 16), features(teacher, 16, seed=1)
    own = [o.requires_grad_() for o in own]
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16): gap = m([o.to(dtype) for o in own], given)
    gap.backward()
    assert gap.dtype == torch.float32 and gap > 0 and gap.ndim == 0
    silent = [k for k, o in m.named_parameters() if not o.grad.any()]
    assert all(o.grad.any() for o in own) and all('bias' in o for o in silent) # before a BatchNorm a bias is nothing

@pytest.mark.parametrize('make, says', [
    (lambda: Attention(dict(a=(4,)), TEACHER), r"layer 'a' gives \(4,\) for a picture, and what is compared are maps"),
    (lambda: Generation(dict(a=(197, 192)), dict(x=(5, 8, 8))), r"'a' gives \(197, 192\)"),
    (lambda: Projectors(dict(a=(197, 192)), dict(x=(5,))), r'rows of numbers, \(channels,\) or maps'),
    (lambda: Generation(STUDENT, dict(x=(5, 8, 8))), 'of the student are 3: a, b, c'),
    (lambda: Projectors(dict(a=(4,)), TEACHER), 'of the teacher are 2: x, y'),
    (lambda: Distance(dict(a=(4, 8, 8)), dict(x=(5, 8, 8))), r'a \(4, 8, 8\) of the student, x \(5, 8, 8\) of the teacher'),
    (lambda: Distance(dict(a=(4,)), dict(x=(4,), y=(4,))), 'have other shapes')], ids=range(7))
def test_layers_that_cannot_be_compared(make, says):
    with pytest.raises(InputError, match=says): make()
