"Every tutorial runs from top to bottom in a real kernel, with little of everything, and they share their words"
import ast
import pkgutil
import re
import runpy
import shlex
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
import safetensors.torch
import timm
from nbclient import NotebookClient
from PIL import Image
from scipy.io import savemat

from imgcls_nb.cli import make_parser
from imgcls_nb.config import plan_from_config, read_config
from imgcls_nb.core import list_images
from imgcls_nb.data import dls_from_plan
from imgcls_nb.datasets import draw_shape, make_shapes
from imgcls_nb.edits import Edits
from imgcls_nb.evaluation import Evaluation
from imgcls_nb.learner import learner_from_plan
from imgcls_nb.tutorials import _epoch, with_settings
from imgcls_nb.widgets import VIEWERS

ROOT = Path(__file__).parent.parent
FOLDER = ROOT/'nbs/tutorials'
TUTORIALS = sorted(FOLDER.glob('*.ipynb'))
SHARED = 'path = few_of_each(data, ', 'def train(', 'def sh(' # a cell that begins so is the same in all
SAME_LINES = "data = 'digits'", 'quick = '
TWICE = 'by this cell before' # a cell that says so meets what it has done itself
SAME_WORDS = '`data` is the one thing to change: '
SWITCHES = 'data', 'flowers', 'full', 'gpus' # one of them leads to photographs, published data or a GPU

def read(path): return nbformat.read(path, as_version=4)

def names(paths): return [o.stem for o in paths]

def sources(nb, kind): return [o.source for o in nb.cells if o.cell_type == kind]

def outputs(nb): return [(c, o) for c in nb.cells if c.cell_type == 'code' for o in c.outputs]

each = pytest.mark.parametrize('path', TUTORIALS, ids=names(TUTORIALS))

@each
def test_runs_in_a_kernel(path, tmp_path):
    nb = with_settings(read(path), dict(quick=True))
    nb.cells = [o for c in nb.cells for o in ([c, nbformat.v4.new_code_cell(c.source)] if TWICE in c.source else [c])]
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = []
    NotebookClient(nb, kernel_name='python3', timeout=180, store_widget_state=False,
                   resources={'metadata': {'path': str(tmp_path)}}).execute()
    shown = [o for _, o in outputs(nb)]
    assert not [o.text for o in shown if o.output_type == 'stream' and o.name == 'stderr'], "warnings on the page"
    lines = [o.text.count('\n') for o in shown if o.output_type == 'stream']
    assert max(lines, default=0) <= 25, "a wall of output"

# What photographs take, and a data set that is published; both are drawn here

def run_cells(nb, first='', last='', /, **variables): # here, from the cell that begins with `first` to the one with `last`
    cells = [o for o in sources(nb, 'code') if not o.startswith('%%')]
    a = next(i for i, o in enumerate(cells) if o.startswith(first))
    b = next(i for i, o in enumerate(cells) if o.startswith(last)) if last else len(cells) # none named: all of them
    for o in cells[a:b + 1]: exec(o, variables)
    return variables

PHOTOS = [o for o in TUTORIALS if any('tiny = ' in c for c in sources(read(o), 'code'))]
SMALLER = {"'resnet18'": "'test_resnet'", "'mobilenetv3_small_100'": "'test_efficientnet'",
           "'convnext_tiny'": "'test_convnext'", '224)': '64)'} # the same way with less to compute
LAST = dict(augmentation_and_mixing="mix = mixed('cutmix')", distillation='teacher = train(', export_and_deploy='dls = ',
            fine_tuning='tuned = image_learner(', imbalanced_data='plain = ', quickstart='ev = ', resume_after_a_crash='rate = ',
            several_processes='layer_norm, ', tuning='def reached(', watching_and_stopping="shutil.rmtree('runs/watched'",
            where_the_model_is_wrong='how = ', your_own_pictures='first = ') # from there on nothing asks what the pictures are

@pytest.mark.parametrize('name, first, last', [('your_own_pictures', 'messy = ', 'rng, truth'),
                                               ('where_the_model_is_wrong', 'mixed = ', 'mixed = ')], ids=str)
def test_what_is_put_into_wrong_folders_may_be_put_there_again(name, first, last, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nb = read(FOLDER/f'{name}.ipynb')
    found = run_cells(nb, '', 'path = ', quick=True)
    seen = []
    for cells in ((first, last), (last, last)): # the second time as with another Shift+Enter
        found = run_cells(nb, *cells, **found)
        files = (o for folder in ('messy', 'pictures') for o in tmp_path.rglob(f'{folder}/*/*.png'))
        seen.append((found['truth'], sorted(o.name for o in files)))
    assert seen[0] == seen[1] and sorted(seen[0][0]) == seen[0][1]
    assert all(name.startswith(f'{right}-') for name, right in seen[0][0].items())

@pytest.mark.parametrize('line, says', [
    ('{"event": "epoch", "valid_loss": "nan", "top1": 0.5}', "{'top1': 0.5, 'valid_loss': nan}"),
    ('{"event": "epoch"}', '{}'), ('{"event": "epo', None), ('[1]', None), ('{"event": "steps"}', None)], ids=str)
def test_an_odd_line_of_a_log(line, says): # the shell shows what there is, whatever a crash has left
    found = _epoch(line)
    assert (found and str({k: found[k] for k in sorted({*found} - {'event'})})) == says

@pytest.fixture(scope='module')
def photographs(tmp_path_factory): return make_shapes(tmp_path_factory.mktemp('photographs')/'shapes', n=12, size=80)

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A cache without a network; what is published of the small networks are random weights"
    monkeypatch.setenv('HF_HUB_OFFLINE', '1'), monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path/'hub'))
    for arch in ('test_resnet', 'test_efficientnet', 'test_convnext'):
        repo = tmp_path/'hub'/f"models--{timm.get_pretrained_cfg(arch).hf_hub_id.replace('/', '--')}"
        for o in ('refs', 'snapshots/abc'): (repo/o).mkdir(parents=True)
        (repo/'refs/main').write_text('abc')
        safetensors.torch.save_file(timm.create_model(arch).state_dict(), repo/'snapshots/abc/model.safetensors')

def on_photographs(path, photographs, **settings):
    nb = with_settings(read(path), dict(quick=True, data=str(photographs), **settings))
    for cell in nb.cells:
        for large, small in SMALLER.items(): cell.source = cell.source.replace(large, small)
    return nb

@pytest.mark.parametrize('path', PHOTOS, ids=names(PHOTOS))
def test_photographs_go_the_same_way(path, hub, photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path), monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '') # which a cell may do
    found = run_cells(on_photographs(path, photographs), '', LAST[path.stem])
    assert found['pretrained'] and not found['tiny'] and found['arch'] == 'test_resnet'

def test_a_network_without_errors(hub, photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nb = on_photographs(FOLDER/'where_the_model_is_wrong.ipynb', photographs, wrong=0)
    cell = next(c for c in nb.cells if c.source.startswith('ev = evaluate(first)'))
    cell.source += '\nev = ev._same(probs=np.eye(len(ev.vocab))[ev.targs])'
    last = next(c for c in nb.cells if c.source.startswith('cell = ev.where('))
    last.source = last.source.replace('show_pictures(', 'found = show_pictures(')
    known = run_cells(nb)
    assert known['ev'].top1 == 1 and known['found'].data.startswith('There is nothing to look at: ')

def test_labels_that_nobody_spoiled(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nb = with_settings(read(FOLDER/'your_own_pictures.ipynb'), dict(quick=True, data=str(photographs), wrong=0, seed=1))
    found = run_cells(nb, '', 'some = ')
    assert found['spoiled'] == found['seen'] == []
    found = run_cells(nb, 'found = ', 'found = ', **found, edits=Edits(found['messy']), doubtful=[1, 2])
    assert found['looked'] == 'The person looked at 2 pictures, 6% of all, and repaired 0. '

@pytest.mark.parametrize('name', ['quickstart', 'your_own_pictures', 'fine_tuning'])
def test_pictures_of_which_the_first_is_damaged(name, photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(photographs, tmp_path/'photos')
    first = list_images(folder)[0]
    first.write_bytes(first.read_bytes()[:60])
    found = run_cells(with_settings(read(FOLDER/f'{name}.ipynb'), dict(quick=True, data=str(folder))), '', 'tiny = ' if name ==
                      'quickstart' else 'path = ')
    assert not found['tiny']

def test_weights_that_cannot_be_reached(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path), monkeypatch.setattr('imgcls_nb.models.weights_available', lambda arch: False)
    settings = dict(data=str(photographs), per_class=2, epochs=1, few=1, seed=1, quick=False)
    found = run_cells(read(FOLDER/'fine_tuning.ipynb'), 'import string', 'path = few_of_each(', **settings)
    assert (found['tiny'], found['pretrained'], found['arch'], found['size']) == (False, False, 'resnet18', 224)
    assert 'resnet18 starts from random numbers' in capsys.readouterr().out

def test_a_server_without_what_it_needs(tmp_path, monkeypatch, capsys):
    (tmp_path/'starlette.py').write_text("raise ModuleNotFoundError(\"No module named 'starlette'\", name='starlette')")
    monkeypatch.chdir(tmp_path), monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
    (tmp_path/'runs/deploy').mkdir(parents=True)
    nb = read(FOLDER/'export_and_deploy.ipynb')
    known = run_cells(nb, 'import json', 'import json') | dict(file='model.onnx', picture=None, path=tmp_path)
    nobody = run_cells(nb, "log = Path('runs/deploy/serve.log')", 'server.terminate()', **known)
    assert nobody['url'] is None and nobody['answers'] == []
    assert "imgcls serve needs starlette. Run: pip install 'imgcls_nb[serve]'" in capsys.readouterr().out

def draw_flowers(root):
    (root/'jpg').mkdir(parents=True)
    for i in range(1, 13): Image.fromarray(draw_shape(('circle', 'square')[i % 2], i, 80)).save(root/f'jpg/image_{i:05}.jpg')
    savemat(root/'imagelabels.mat', dict(labels=np.array([1, 102]*6, np.uint8)))
    savemat(root/'setid.mat', dict(trnid=np.arange(1, 7), valid=np.arange(7, 11), tstid=np.arange(11, 13)))

def test_the_flowers_of_the_guide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_flowers(tmp_path/'dataset/flowers102')
    nb = read(FOLDER/'from_paddleclas.ipynb')
    found = run_cells(nb, 'import os', 'config = ', flowers=True, epochs=1, quick=False)
    found = run_cells(nb, 'config = ', 'config = ', **found) # the cell may be run again
    assert len(run_cells(nb, 'pictures = ', 'pictures = ', **found)['pictures']) == 2, "of each class that has some"
    config, *overrides = shlex.split(found['use'])
    plan = plan_from_config(read_config(config, overrides[1::2]))
    dls = dls_from_plan(plan.data)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c, plan.run) == (6, 4, 102, 'output/MobileNetV3_large_x1_0')

def printed(path): # commands of prose that train on the flowers
    text = '\n'.join(sources(read(path), 'markdown')).replace('\\\n', ' ')
    return re.findall('^imgcls .*train -c configs/.*flowers102.*$', text, re.M)

PRINTED = [pytest.param(c, id=o.stem) for o in TUTORIALS for c in printed(o)]

@pytest.mark.parametrize('command', PRINTED)
def test_printed_commands_find_the_flowers(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('imgcls_nb.datasets.download_file', lambda file, path: pytest.fail(f'{path}: the flowers are there'))
    draw_flowers(tmp_path/'dataset/flowers102')
    config, *overrides = shlex.split(command.partition('train -c ')[2])
    dls = dls_from_plan(plan_from_config(read_config(config, overrides[1::2])).data)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c) == (6, 4, 102)

def test_commands_with_a_named_data_set_are_printed(): assert {o.id for o in PRINTED} >= {'distillation', 'several_processes'}

RECIPES = [f'configs/ImageNet/{o}.yaml' for o in ('ResNet50', 'ConvNeXt_tiny', 'DeiT_small_patch16_224')] # it names these
RECIPE = read(FOLDER/'imagenet_recipe.ipynb')

@pytest.fixture(scope='module')
def miniature(tmp_path_factory):
    "A folder with the pictures of that tutorial, and what its cells know by then"
    folder = tmp_path_factory.mktemp('imagenet')
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        return folder, run_cells(RECIPE, 'import io', 'for part, lines in', epochs=2, seed=42, quick=False)

@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_has_a_miniature_and_is_itself_in_full(recipe, miniature, monkeypatch):
    folder, drawn = miniature
    monkeypatch.chdir(folder)
    small, large = (run_cells(RECIPE, 'def short', 'was, now = ', **drawn | dict(recipe=recipe, full=o)) for o in (False, True))
    learn = learner_from_plan(small['plan'])
    assert (len(learn.dls.train_ds), len(learn.dls.valid_ds), learn.dls.c, learn.plan.model.arch) == (150, 50, 10, 'test_resnet')
    assert large['plan'].data.path == './dataset/ILSVRC2012/' and large['plan'].schedule[0].args['n_epoch'] >= 120
    assert not {*large['changed']} - {'device', 'notes'}

@each
def test_opens_and_closes_as_all_do(path):
    texts = sources(read(path), 'markdown')
    assert texts[0].startswith('# ') and 'you will have' in texts[0] and 'Run the cells from top to bottom; it takes' in texts[0]
    assert re.search('^## What to try next$', texts[-1], re.M)

@each
def test_one_variable_leads_to_the_real_thing(path):
    cell = next(c for c in read(path).cells if 'parameters' in c.metadata.get('tags', ()))
    assert set(SWITCHES) & set(re.findall(r'^(\w+) = ', cell.source, re.M))

@each
def test_figures_have_words(path):
    for cell, o in outputs(read(path)):
        html = ''.join(o.get('data', {}).get('text/html', ''))
        assert 'image/png' not in o.get('data', {}), f"use show_figure, which takes words: {cell.source[:80]}"
        assert all(re.search(r'alt="[^"]{10,}"', tag) for tag in re.findall('<img[^>]{,300}', html))

@each
def test_viewers_leave_something_on_the_page(path): # which has no kernel
    cells, viewer = [c for c in read(path).cells if c.cell_type == 'code'], f'(?:{"|".join(VIEWERS)})\\('
    made = re.findall(rf'^(\w+) = {viewer}', '\n'.join(c.source for c in cells), re.M)
    shown = [c for c in cells if (last := c.source.splitlines()[-1]) in made or re.match(viewer, last)]
    assert not [c.source for c in shown if 'answers to clicks' not in str(c.outputs)]

def test_of_a_viewer_its_picture_is_kept():
    kept = runpy.run_path(str(ROOT/'tools/tutorials.py'))['kept'] # the benchmarks have a module of that name
    def shown(text, **more): return nbformat.v4.new_output('display_data', {'text/plain': text, **more})
    live, png = {'application/vnd.jupyter.widget-view+json': {}}, {'image/png': 'cGlj\n'}
    viewer, empty, plain = kept([shown('TopLosses(9 "pictures")', **live, **png), shown('TrainingDashboard(a)', **live),
                                 shown('VBox()', **live), shown('x', **{'text/html': '<style>progress-bar'}), shown('12')])
    assert viewer.data.keys() == empty.data.keys() == {'text/html', 'text/plain'} and plain.data == {'text/plain': '12'}
    assert viewer.data['text/html'].startswith('<img alt="TopLosses(9 &quot;pictures&quot;)" src="data:image/png;base64,cGlj">')
    assert '<img' not in empty.data['text/html'] and 'this TrainingDashboard answers' in empty.data['text/html']

def test_a_python_without_torch_is_on_the_page():
    said = ''.join(o.get('text', '') for _, o in outputs(read(FOLDER/'export_and_deploy.ipynb')))
    assert said.count('heavy libraries loaded: None') == 2 and "ModuleNotFoundError: No module named 'torch'" in said

@each
def test_is_a_page_to_read(path):
    nb = read(path)
    assert [c for c, o in outputs(nb)], "stored without what it shows"
    assert not [o for _, o in outputs(nb) if o.get('name') == 'stderr' or o.output_type == 'error']
    lengths = sorted(len(o.splitlines()) for o in sources(nb, 'code') if 'import' not in o)
    assert lengths[len(lengths)//2] <= 6 and lengths[-1] <= 18, "one idea per cell"

@each
def test_results_are_computed(path): # never typed, or they are those of another day
    text = re.sub('`[^`]*`', '', '\n'.join(sources(read(path), 'markdown')))
    assert not re.findall(r'.{,60}\d ?(?:%|percent\b|points\b)', text)

@each
def test_failures_are_shown(path): # of processes that a cell starts
    assert 'DEVNULL' not in '\n'.join(sources(read(path), 'code'))

@each
def test_imports_stand_alone(path):
    for source in sources(read(path), 'code'):
        if 'sys.path' in source or source.startswith('%%'): continue # a module just written, a program of its own
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body}
        assert len(kinds) <= 1, source[:80]

@each
def test_links_lead_to_tutorials(path):
    for text in sources(read(path), 'markdown'):
        for name in re.findall(r'\]\(([\w./]+\.ipynb)\)', text): assert (FOLDER/name).is_file(), name

@each
def test_what_prose_names_exists(path): # no cell runs it
    text = '\n'.join(sources(read(path), 'markdown'))
    verbs = make_parser()._subparsers._group_actions[0].choices
    for line in re.findall(r'(?:^|`)imgcls ([^`\n]+)', text, re.M):
        words = line.split()
        known = [verbs[o]._option_string_actions for o in words if o in verbs]
        assert words[0] in verbs and all(any(o in k for k in known) for o in words if o.startswith('--')), line
    for name in re.findall(r'`(imgcls_nb(?:\.\w+)+)', text): pkgutil.resolve_name(name)
    for name, call in re.findall(r'`(?:ev|evaluate\(.*?\))\.(\w+)(\(?)', text):
        assert callable(getattr(Evaluation, name)) == bool(call), name
    made = '\n'.join(sources(read(path), 'code'))
    for name in re.findall(r'\w+', ' '.join(re.findall(r'\bevaluate\(([\w, ]+)\)', text))):
        assert re.search(rf'^{name}\b[\w, ]* = ', made, re.M), f'{name} is nothing that this notebook has'

def test_what_is_shared_is_the_same():
    cells = [c for o in TUTORIALS for c in sources(read(o), 'code')]
    for start in SHARED:
        found = [o for o in cells if o.startswith(start)]
        assert len(found) > 1 and len(set(found)) == 1, start
    for start in SAME_LINES:
        found = [line for o in cells for line in o.splitlines() if line.startswith(start)]
        assert len(found) > 1 and len(set(found)) == 1, start
    texts = '\n'.join(o for path in TUTORIALS for o in sources(read(path), 'markdown'))
    found = re.findall(f'{SAME_WORDS}.*?\\.', texts)
    assert len(found) > 1 and len(set(found)) == 1, found

@pytest.mark.parametrize('page', ['README.md', 'README.zh.md'])
def test_all_are_listed(page):
    listed = re.findall(r'^- \[(\w+)\]\(nbs/tutorials/\1\.ipynb\)', (ROOT/page).read_text('utf-8'), re.M)
    assert sorted(listed) == names(TUTORIALS)
