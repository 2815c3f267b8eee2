"The configs that travel with the package: each is built, each distinct recipe is trained, saved and resumed"
import importlib.util
import sys
from pathlib import Path

import pytest

from imgcls_nb.config import plan_from_config, read_config
from imgcls_nb.shipped import list_shipped, shipped_path

OWN = [o for o in list_shipped() if o.startswith('configs/') and o.endswith('.yaml') and 'inference' not in o]

def benchmark():
    file = Path(__file__).parents[1]/'benchmarks/paddleclas_configs.py'
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent)) # it reads its neighbours
    try: spec.loader.exec_module(module)
    finally: sys.path.remove(str(file.parent))
    return module

BENCHMARK = benchmark()

@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr('imgcls_nb.datasets.named_dataset', lambda name, root=None: tmp_path/name)

def plan(name): return plan_from_config(read_config(shipped_path(name), ['Global.device=cpu']))

def test_what_there_is():
    assert len(OWN) >= 20
    wanted = 'ResNet50 MobileNetV3 PPLCNet ViT DeiT Swin ConvNeXt digits Fashion CIFAR100 Mixup distill'.split()
    assert not [o for o in wanted if not any(o in name for name in OWN)]

@pytest.mark.parametrize('name', OWN)
def test_each_is_built(name, capsys):
    BENCHMARK.build(plan(name))

def test_a_network_for_small_pictures_steps_less():
    model, _ = BENCHMARK.build(plan('configs/quick_start/CIFAR100_ResNet18.yaml'))
    conv = next(o for o in model.modules() if hasattr(o, 'stride'))
    assert conv.stride == (1, 1)

@pytest.mark.parametrize('name', OWN)
def test_each_says_how_it_is_started(name):
    head = [o for o in shipped_path(name).read_text('utf-8').splitlines() if o.startswith('#')]
    assert any(f'imgcls train -c {name}' in o for o in head)

def test_each_recipe_is_trained_saved_and_resumed(tmp_path):
    folder = tmp_path/'pictures'
    folder.mkdir()
    BENCHMARK.draw_pictures(folder)
    recipes = {BENCHMARK.recipe(o): (name, o) for name in OWN for o in [plan(name)]}
    assert len(recipes) > 12
    teacher = BENCHMARK.train(BENCHMARK.shrink(plan('configs/quick_start/digits.yaml'), folder, tmp_path/'runs/teacher'))
    for i, (name, o) in enumerate(recipes.values()):
        try: BENCHMARK.train(BENCHMARK.shrink(o, folder, tmp_path/f'runs/{i}', teacher))
        except Exception as e: raise AssertionError(f'{name}: {e}') from e
