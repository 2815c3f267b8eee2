"What models say and where they looked, and the queues of the cleaner"
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.datasets import draw_shape, make_shapes
from imgcls_nb.edits import Edits
from imgcls_nb.evaluation import Evaluation
from imgcls_nb.plan import DataPlan, ModelPlan, Plan, plan_to_yaml
from imgcls_nb.predict import Predictor, softmax
from imgcls_nb.revise import apply_edits
from imgcls_nb.saliency import activation_map, grid_layers, looked_at, occlusion_map, overlay, predictor_of
from imgcls_nb.widgets import cleaner
from imgcls_nb.widgets.cleaner import QUEUES, Cleaner, DatasetCleaner, Union
from imgcls_nb.widgets.gallery import Gallery, edits_of, judged_of
from imgcls_nb.widgets.topk import TopK, TopKViewer, pictures_of

# Whoever can answer

def test_file_run_and_learner_say_the_same(model_file, trained_run, shapes):
    dls = image_dls(shapes, size=32, bs=8, num_workers=0, device='cpu')
    from imgcls_nb.learner import image_learner
    from imgcls_nb.models import load_weights
    learn = image_learner(dls, 'test_resnet')
    load_weights(learn.model, trained_run/'best_model.safetensors')
    learn.model.train()
    says = [predictor_of(o)(shapes/'square/004.png') for o in (model_file, str(trained_run), learn)]
    assert len({o.label for o in says}) == 1 and np.allclose([o.prob for o in says], says[0].prob, atol=2e-3)
    assert learn.model.training, 'a copy was asked'
    own = Predictor(model_file)
    assert predictor_of(own) is own

def test_a_learner_without_a_run_has_a_predictor_to_look_at(shapes):
    from imgcls_nb.learner import image_learner
    learn = image_learner(image_dls(shapes, size=32, bs=8, num_workers=0, device='cpu'), 'test_resnet')
    assert repr(predictor_of(learn)) == 'Predictor(in memory: 3 classes, 32x32 pixels)'

@pytest.mark.parametrize('what', [3, object(), None])
def test_what_cannot_answer_is_refused(what):
    with pytest.raises(InputError, match='cannot be asked'): predictor_of(what)

# Where they looked

class Corner: # says how bright the upper left quarter is
    def probs(self, x):
        lit = x[:, :, :x.shape[2]//2, :x.shape[3]//2].mean((1, 2, 3))
        return softmax(np.stack([lit, -lit], 1))

class Both(Corner): # of classes that do not exclude each other: the second is always there
    def probs(self, x): return np.stack([super().probs(x)[:, 0], np.ones(len(x))], 1)

def test_classes_that_do_not_exclude_each_other_have_maps_of_their_own():
    one, other = (occlusion_map(Both(), np.ones((3, 32, 32), np.float32), i) for i in (0, 1))
    assert np.allclose(one, occlusion_map(Corner(), np.ones((3, 32, 32), np.float32), 0)) and not other.any()

@pytest.mark.parametrize('hw', [(32, 32), (64, 48), (7, 9), (224, 224)])
def test_occlusion_finds_what_was_looked_at(hw):
    heat = occlusion_map(Corner(), np.ones((3, *hw), np.float32), 0)
    assert heat.shape == (8, 8) and heat.max() == 1 and heat.min() >= 0
    assert heat[:3, :3].min() > 0 and heat[5:, 5:].max() == 0
    assert occlusion_map(Corner(), np.ones((3, *hw), np.float32), 1).max() == 0, 'what speaks against a class is nothing'

ARCHS = [f'test_{o}' for o in ('resnet', 'vit', 'convnext', 'efficientnet', 'mambaout', 'byobnet')]

@pytest.mark.parametrize('arch', ARCHS)
def test_a_last_layer_with_places_is_found(arch):
    import timm
    import torch
    size = timm.get_pretrained_cfg(arch).input_size[1]
    model = timm.create_model(arch, num_classes=4).eval()
    layers = grid_layers(model, torch.zeros(1, 3, size, size))
    assert layers and not any(o._forward_hooks for o in model.modules())

@pytest.mark.parametrize('arch, shape', [('test_resnet', (5, 5)), ('test_vit', (10, 10)), ('test_convnext', (5, 5))])
def test_the_map_follows_the_gradient(arch, shape):
    pytest.importorskip('captum')
    import timm
    import torch
    torch.manual_seed(0)
    model = timm.create_model(arch, num_classes=4).eval()
    x, heats = torch.randn(1, 3, 160, 160), []
    for target in range(4): heats.append(activation_map(model, x, target))
    assert all(o.shape == shape and 0 <= o.min() <= o.max() <= 1 for o in heats)
    assert len({o.tobytes() for o in heats}) > 1, 'other classes look elsewhere'
    assert all(p.grad is None for p in model.parameters())

def test_of_a_mean_over_places_it_is_the_class_activation_map():
    pytest.importorskip('captum')
    import torch
    from torch import nn
    torch.manual_seed(0)
    body, head = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, 3)
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    x = torch.randn(1, 3, 17, 17)
    with torch.no_grad(): want = torch.einsum('chw,c->hw', body(x)[0], head.weight[1]).clamp(min=0)
    assert np.allclose(activation_map(model, x, 1), (want/want.max()).numpy(), atol=1e-5)

def test_maps_by_hand(model_file):
    predictor = Predictor(model_file)
    heat = looked_at(predictor, draw_shape('circle', 1))
    assert heat.shape == (8, 8)
    im = overlay(predictor, draw_shape('circle', 1), heat)
    assert im.mode == 'RGB' and min(im.size) >= 160 and overlay(predictor, draw_shape('circle', 1)).size == im.size
    with pytest.raises(InputError, match="method='occlusion'"): looked_at(predictor, draw_shape('circle', 1), method='activation')
    with pytest.raises(InputError, match='unknown'): looked_at(predictor, draw_shape('circle', 1), method='magic')

# Top-k

def test_answers_are_the_predictors(model_file, shapes):
    topk = TopK([model_file], k=2)
    topk.take(pictures_of(shapes))
    want = list(Predictor(model_file).batch([shapes/o for o in topk.pics.names], k=2))
    got = [topk.answers(i)[0] for i in range(60)]
    assert [o.label for o in got] == [o.label for o in want]
    assert np.allclose([o.prob for o in got], [o.prob for o in want], atol=1e-5) and all(len(o.topk) == 2 for o in got)

def test_any_pictures(shapes, tmp_path):
    ev = Evaluation(np.eye(3), [0, 1, 2], 'abc', ['x.png', 'y.png', 'z.png'])
    dls = image_dls(shapes, size=32, bs=8, num_workers=0, device='cpu')
    for given, n in ((None, 0), (ev, 3), (shapes, 60), (shapes/'circle/001.png', 1), (dls.valid_ds, len(dls.valid_ds)),
                     ([draw_shape('circle', 1), shapes/'circle/002.png'], 2)):
        assert len(pictures_of(given)) == n
    assert pictures_of(dls.valid_ds).label(0) in dls.vocab and pictures_of([draw_shape('circle', 1)]).label(0) == ''
    with pytest.raises(InputError, match='no file or folder'): pictures_of(tmp_path/'gone')

def test_pictures_where_a_model_should_be(model_file, shapes):
    for odd in (shapes/'circle', str(shapes/'circle/001.png')):
        with pytest.raises(InputError, match='pictures='): TopKViewer(model_file, odd)

def test_the_models_disagree_once(model_file, shapes):
    viewer = TopKViewer(model_file, model_file, pictures=shapes/'circle')
    viewer.topk.agree = lambda i: False
    assert viewer.widget and viewer.answer.value.count('disagree') == 1 and viewer.answer.value.count('<section') == 2

def test_two_models_of_one_name_are_told_apart(model_file, tmp_path):
    import shutil
    for o in 'ab':
        (tmp_path/o).mkdir()
        shutil.copy(model_file, tmp_path/o/'model.onnx')
    assert TopKViewer(tmp_path/'a/model.onnx', tmp_path/'b/model.onnx').subtitle() == 'a/model.onnx and b/model.onnx'

def test_unreadable_and_new_pictures(model_file, shapes):
    viewer = TopKViewer(model_file, model_file, pictures=shapes/'square')
    assert viewer.widget and viewer.topk.agree(0)
    viewer.add([('bad.jpg', b'nothing'), ('<i>.png', (shapes/'circle/001.png').read_bytes())])
    assert viewer.gallery.current == 20 and 'bad.jpg: not a picture' in viewer.answer.value and viewer.topk.picture(20, 0) is None
    viewer.look(True)
    viewer.gallery.move(1)
    assert '<i>' not in viewer.answer.value and viewer.answer.value.count('<section>') == 2
    assert viewer.answer.value.count('in orange') == 2 and len(viewer.topk.heats) == 2
    viewer.desk.receive(dict(what='drop', name='new.png'), [memoryview((shapes/'square/001.png').read_bytes())])
    assert viewer.topk.pics.names[viewer.gallery.current] == 'new.png'
    assert viewer.plot() is not None
    viewer.take(None)
    assert 'Drop pictures' in viewer.desk.page['empty'] and viewer.plot() is None

@pytest.mark.parametrize('n', [0, 3])
def test_one_or_two_models(model_file, n):
    with pytest.raises(InputError, match='one, or two'): TopKViewer(*[model_file]*n)

def test_without_torch(model_file, shapes):
    code = (f"import sys; sys.modules['torch'] = None\nfrom imgcls_nb.widgets.topk import TopKViewer\n"
            f"v = TopKViewer({str(model_file)!r}, pictures={str(shapes/'circle')!r}); v.look(True); v.widget\n"
            "print(v.topk.answers(0)[0].label)")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.split() == [Predictor(model_file)(shapes/'circle/000.png').label], done.stderr

# The cleaner

@pytest.fixture
def dirty(tmp_path):
    path = make_shapes(tmp_path/'dirty', n=20, size=32)
    (path/'circle/copy.png').write_bytes((path/'square/003.png').read_bytes())
    (path/'triangle/broken.png').write_bytes(b'nothing')
    return path

def judge(union, names, sure=.9):
    truth = [union.vocab.index('square' if o == 'circle/copy.png' else o.split('/')[0]) for o in names]
    probs = np.where(np.arange(3) == np.array(truth)[:, None], sure, (1 - sure)/2)
    labels = [union.labels[union.names.index(o)] for o in names]
    return Evaluation(probs, labels, union.vocab, names)

@pytest.mark.parametrize('as_loaders', [False, True])
def test_four_queues(dirty, as_loaders):
    data = image_dls(dirty, size=32, bs=8, num_workers=0, device='cpu') if as_loaders else dirty
    union = Union(data)
    assert len(union) == 62 and [o[1] for o in union.bad] == ['triangle/broken.png']
    rng = np.random.default_rng(0)
    names = [union.names[i] for i in rng.permutation(61)] # an evaluation has an order of its own
    cleaner = Cleaner(data, judge(union, names))
    order, notes, _ = cleaner.queue('labels')
    assert union.names[order[0]] == 'circle/copy.png' and 'perhaps square' in notes[order[0]]
    assert len(order) == 61 == len(set(order)) and all('perhaps' not in notes[i] for i in order[1:])
    order, notes, _ = cleaner.queue('copies')
    assert {union.names[i] for i in order[:2]} == {'circle/copy.png', 'square/003.png'} and 'labels disagree' in notes[order[0]]
    order, notes, _ = cleaner.queue('unreadable')
    assert [union.names[i] for i in order] == ['triangle/broken.png'] and notes[order[0]]
    order, _, why = cleaner.queue('strangers')
    assert not len(order) and 'learn=' in why
    for i in range(62): assert str(union.source(i)).endswith(union.names[i])

def test_queues_without_judgements_say_how_to_get_them(dirty):
    order, _, why = Cleaner(dirty).queue('labels')
    assert not len(order) and 'out_of_fold' in why
    with pytest.raises(InputError, match="Did you mean 'copies'"): Cleaner(dirty).queue('copys')

def test_judgements_of_other_data_are_refused(dirty):
    other = Evaluation(np.eye(3), [0, 1, 2], ('circle', 'square', 'triangle'), ['a.png', 'b.png', 'c.png'])
    with pytest.raises(InputError, match='Evaluate the same data'): Cleaner(dirty, other)

def test_classes_are_matched_by_name(dirty):
    union = Union(dirty)
    ev, turned = judge(union, union.names[:61]), [2, 0, 1]
    other = Evaluation(ev.probs[:, turned], np.argsort(turned)[ev.targs], [ev.vocab[i] for i in turned], ev.paths)
    assert other.top1 == ev.top1 and Cleaner(dirty, other).queue('labels')[1] == Cleaner(dirty, ev).queue('labels')[1]
    assert np.array_equal(Cleaner(dirty, other)[7], ev.probs[7])

@pytest.mark.parametrize('vocab, says', [('circle square triangle star', "'star' is among those of the evaluation"),
                                         ('circle sqare triangle', "'sqare' .* not of the data.* Did you mean 'square'")])
def test_other_classes_are_refused(dirty, vocab, says):
    union, vocab = Union(dirty), vocab.split()
    with pytest.raises(InputError, match=says):
        Cleaner(dirty, Evaluation(np.full((61, len(vocab)), 1/len(vocab)), union.labels[:61], vocab, union.names[:61]))

@pytest.fixture
def two_sides(tmp_path):
    for side in ('train', 'valid'): make_shapes(tmp_path/'both'/side, n=4, size=32)
    (tmp_path/'both/valid/circle/broken.png').write_bytes(b'nothing')
    return tmp_path/'both'

@pytest.mark.parametrize('moved', [False, True])
def test_namesakes_of_the_two_sides_are_two_pictures(two_sides, moved):
    union = Union(two_sides)
    assert len(set(union.names)) == 25 and {o.split('/')[0] for o in union.names} == {'train', 'valid'}
    for i, name in enumerate(union.names): assert union.source(i) == str(two_sides/name) and (two_sides/name).is_file()
    names, labels = [o.removeprefix('train/') for o in union.names[:12]], union.labels[:12]
    probs = np.where(np.arange(3) == labels[:, None], .9, .05)
    ev = Evaluation(probs, labels, union.vocab, names, two_sides/'train') # as out_of_fold names the training pictures
    if moved: two_sides = two_sides.rename(two_sides.with_name('elsewhere'))
    rows = Cleaner(two_sides, ev).rows
    assert rows[:12].tolist() == [*range(12)] and (rows[12:] == -1).all(), "nobody has judged those of validation"

def test_namesakes_in_another_folder_are_not_meant(two_sides):
    names = [o.removeprefix('train/') for o in Union(two_sides).names[:12]]
    ev = Evaluation(np.full((12, 3), 1/3), [0]*12, ('circle', 'square', 'triangle'), names, two_sides/'train')
    with pytest.raises(InputError, match="speaks of 'circle/000.png' in '.*train', and here is .*if these are a copy"):
        Cleaner(two_sides/'valid', ev)

def test_edits_of_two_sides_go_to_the_folder_above(two_sides):
    viewer = DatasetCleaner(two_sides)
    names = ['train/circle/001.png', 'valid/circle/001.png', 'valid/circle/broken.png']
    for name in names:
        viewer.gallery.show([viewer.cleaner.union.names.index(name)])
        viewer.gallery.press('x')
    assert [o['picture'] for o in Edits(two_sides).standing()] == names
    done = apply_edits(two_sides, Edits(two_sides), two_sides/'lists')
    assert done.diff == [f"- {o.split('/')[0]} {o} circle" for o in names] and not done.missing

def test_all_viewers_of_an_evaluation_write_to_one_log(dirty, tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'run/config.yaml').write_text(plan_to_yaml(Plan(DataPlan(str(dirty)), ModelPlan('resnet18'))))
    union = Union(dirty)
    ev = judge(union, union.names[:61])
    ev.run, ev.root = tmp_path/'run', str(dirty)
    viewer = DatasetCleaner(dirty, ev)
    assert viewer.gallery.decisions.edits.file == edits_of(None, ev).file == tmp_path/'run/edits.jsonl'
    viewer.gallery.press('x')
    assert Gallery(judged_of(ev), edits_of(None, ev)).standing(ev.paths.index('circle/copy.png')).ignored
    assert 'decisions go to run/edits.jsonl' in viewer.subtitle()

def test_the_judgements_stay_in_their_file(dirty, tmp_path, monkeypatch):
    union, given = Union(dirty), []
    names = ('find_label_errors', 'confident_classes', 'label_quality')
    def spied(f): return lambda probs, *args: [given.append(probs), f(probs, *args)][1]
    for name in names: monkeypatch.setattr(cleaner, name, spied(getattr(cleaner, name)))
    made = Cleaner(dirty, Evaluation.load(judge(union, union.names[:61]).save(tmp_path/'ev')))
    assert made.queue('labels')[0][0] == union.names.index('circle/copy.png')
    assert len(given) == 3 and all(o.table is made.ev.probs for o in given), "rows are taken a block at a time"

def test_the_cleaner_works_through_all_queues(dirty, tmp_path):
    union = Union(dirty)
    viewer = DatasetCleaner(dirty, judge(union, union.names[:61]), edits=tmp_path/'edits.jsonl')
    assert viewer.widget and viewer.queue == 'labels'
    viewer.gallery.press('2')
    for queue in QUEUES:
        viewer.choice.value = queue
        assert viewer.desk.marks['status'][0] == QUEUES[queue]
    assert viewer.gallery.standing(union.names.index('circle/copy.png')).label == 'square'
    viewer.show('unreadable')
    viewer.gallery.press('x')
    assert viewer.gallery.standing(61).ignored and 'cannot be shown' in viewer.desk.marks['cards'][0]['lines']
    assert viewer.plot() is not None

def test_copies_of_a_picture_are_on_one_page(tmp_path):
    path, rng = tmp_path/'copies', np.random.default_rng(0)
    for kind, sizes in dict(a=(2, 4, 1), b=(4, 2, 1), c=(2, 4, 1)).items():
        (path/kind).mkdir(parents=True)
        for i, n in enumerate(sizes):
            im = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32), 0)
            for k in range(n): im.save(path/kind/f'{i}-{k}.png')
    viewer = DatasetCleaner(path, edits=False, per_page=5)
    assert viewer.widget and viewer.queue == 'copies' and sorted(viewer.cleaner.groups['copies']) == [2]*3 + [4]*3
    note, on = viewer.gallery.note, {}
    for k in range(viewer.gallery.n_pages):
        for i in viewer.gallery.on_page: on.setdefault(note(int(i)), set()).add(k)
        bands = [o['band'] for o in viewer.desk.marks['cards']]
        assert set(bands) <= {'0', '1'}
        viewer.gallery.turn(1)
    assert len(on) == 6 and all(len(o) == 1 for o in on.values())

def test_a_network_without_loaders_is_refused(dirty, model_file):
    with pytest.raises(InputError, match='is no learner'): DatasetCleaner(dirty, learn=model_file)

def test_a_queue_that_fails_leaves_the_choice_as_it_was(dirty, monkeypatch):
    viewer = DatasetCleaner(dirty, edits=False)
    assert viewer.widget
    def fail(self): raise InputError('the network is gone')
    monkeypatch.setattr(Cleaner, '_strangers', fail)
    with pytest.raises(InputError): viewer.choice.value = 'strangers'
    assert viewer.choice.value == viewer.queue == 'copies' and viewer.note.kind == 'error'

def test_strangers(dirty, trained_run):
    from imgcls_nb.learner import image_learner
    from imgcls_nb.models import load_weights
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[::4] = 255
    Image.fromarray(stripes).save(dirty/'square/stripes.png')
    learn = image_learner(image_dls(dirty, size=32, bs=8, num_workers=0, device='cpu'), 'test_resnet')
    load_weights(learn.model, trained_run/'best_model.safetensors')
    cleaner = Cleaner(learn.dls, learn=learn)
    order, notes, _ = cleaner.queue('strangers')
    assert 'square/stripes.png' in [cleaner.union.names[i] for i in order[:3]] and notes[order[0]].startswith('distance')
