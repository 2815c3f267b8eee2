"The wheel in empty environments: the base package predicts without torch, the extras train from an empty folder"
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imgcls_nb.core import list_images
from imgcls_nb.predict import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.net]

ROOT = Path(__file__).resolve().parents[1]
QUICK = 'configs/quick_start/MobileNetV3_large_x1_0.yaml'
HEAVY = 'torch torchvision timm fastai fastcore onnx IPython matplotlib pandas sklearn'.split()

def run(cwd, *args, status=0):
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'IN_TEST')}
    done = subprocess.run(list(map(str, args)), cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr

@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    "The wheel of a copy of this tree"
    tree, dist = tmp_path_factory.mktemp('tree'), tmp_path_factory.mktemp('dist')
    for o in ('imgcls_nb', 'nbs', 'configs'):
        shutil.copytree(ROOT/o, tree/o, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'runs', 'models'))
    for o in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'): shutil.copy(ROOT/o, tree)
    run(tree, sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', dist, '.')
    return next(dist.glob('*.whl'))

@pytest.fixture
def venv(wheel, tmp_path):
    "Makes an empty environment with the wheel and some of its extras; it is gone after the test"
    def make(extras=''):
        run(tmp_path, sys.executable, '-m', 'venv', tmp_path/'venv')
        scripts = tmp_path/'venv'/('Scripts' if os.name == 'nt' else 'bin')
        run(tmp_path, scripts/'python', '-m', 'pip', 'install', '--quiet', '--no-compile', f'{wheel}{extras}')
        (tmp_path/'work').mkdir()
        return tmp_path/'work', scripts/'python', scripts/'imgcls'
    yield make
    shutil.rmtree(tmp_path/'venv', ignore_errors=True)

PREDICT = '''
import json, sys
from imgcls_nb.predict import Predictor
print(json.dumps([(o.label, o.prob) for o in Predictor(sys.argv[1]).batch(sys.argv[2:])]))
'''

def test_the_base_package_predicts_without_torch(venv, model_file, shapes):
    work, python, imgcls = venv()
    found, _ = run(work, python, '-c', f'from importlib.util import find_spec; print([o for o in {HEAVY} if find_spec(o)])')
    assert found.strip() == '[]'
    _, err = run(work, python, '-c', 'import torch', status=1)
    assert 'ModuleNotFoundError' in err
    where, _ = run(work, python, '-c', 'import imgcls_nb.predict as p; print(p.__file__)')
    assert Path(where.strip()).is_relative_to(work.parent/'venv')
    shutil.copy(model_file, work/'model.onnx')
    pictures = list_images(shapes)[::7]
    want = [[o.label, pytest.approx(o.prob, abs=1e-4)] for o in Predictor(model_file).batch(pictures)]
    got = json.loads(run(work, python, '-c', PREDICT, 'model.onnx', *pictures)[0])
    assert got == want
    out, _ = run(work, imgcls, 'predict', 'model.onnx', *pictures)
    assert [o.rpartition('.png: ')[2].split()[0] for o in out.splitlines()] == [label for label, _ in want]
    _, err = run(work, imgcls, 'train', shapes, status=2)
    assert "is not installed" in err and "pip install 'imgcls_nb[train,lab]'" in err and 'Traceback' not in err

def test_the_extras_train_from_an_empty_folder(venv, shapes):
    work, python, imgcls = venv('[train,lab]')
    out, _ = run(work, imgcls, 'quickstart', '--epochs', '1')
    assert 'Model file: runs/quickstart/model.onnx' in out and 'Top-1:' in out and 'epoch 1: valid_loss' in out
    names = {o.name for o in (work/'runs/quickstart').iterdir()}
    assert {'model.onnx', 'summary.json', 'quickstart.ipynb', 'quickstart.html', 'best_model.safetensors', 'config.yaml'} <= names
    summary = json.loads((work/'runs/quickstart/summary.json').read_text('utf-8'))
    assert 'test_resnet' in summary['model'] and Predictor(work/summary['file']).labels == tuple('0123456789')
    digit = next((work/'runs/data').rglob('7/*.png'))
    assert run(work, imgcls, 'predict', summary['file'], digit)[0].startswith(f'{digit}: ')

    where, _ = run(work, python, '-c', f'from imgcls_nb.config import find_config; print(find_config({QUICK!r}))')
    where = Path(where.strip())
    assert where.is_relative_to(work.parent/'venv') and where.as_posix().endswith(f'imgcls_nb/shipped/{QUICK}')
    widgets = next(o for o in where.parents if o.name == 'imgcls_nb')/'widgets'
    assert {'desk.js', 'desk.css', 'looks.js', 'looks.css'} <= {o.name for o in widgets.iterdir()}
    lines = [f'{c}/{n:03}.png {i}\n' for i, c in enumerate(('circle', 'square', 'triangle')) for n in range(20)]
    overrides = ['Arch.class_num=3', 'Global.epochs=1', 'Global.device=cpu']
    for part, name, chosen in (('Train', 'train', lines[::2]), ('Eval', 'val', lines[1::4])):
        (work/f'{name}.txt').write_text(''.join(chosen))
        overrides += [f'DataLoader.{part}.dataset.image_root={shapes}', f'DataLoader.{part}.dataset.cls_label_path={name}.txt',
                      f'DataLoader.{part}.sampler.batch_size=15', f'DataLoader.{part}.loader.num_workers=0']
    out, _ = run(work, imgcls, 'train', '-c', QUICK, *(o for p in overrides for o in ('-o', p)))
    assert 'The run is in output/MobileNetV3_large_x1_0' in out
    assert (work/'output/MobileNetV3_large_x1_0/best_model.safetensors').exists()
    assert {o.name for o in work.iterdir()} == {'runs', 'output', 'train.txt', 'val.txt'}, "nothing else is left behind"
