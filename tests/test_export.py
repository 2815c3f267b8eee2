"`model.onnx`: equal to the network it came from, whole or not written, refused when it is not what it says"
import itertools
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from imgcls_nb import export
from imgcls_nb.core import CARD_KEY, BadPictureError, InputError, ModelFileError, list_images
from imgcls_nb.export import export_onnx
from imgcls_nb.files import write_atomic
from imgcls_nb.pictures import PictureList
from imgcls_nb.predict import Predictor, softmax
from imgcls_nb.trained import TorchPredictor, load_trained


@pytest.fixture(scope='module')
def files(shapes, tmp_path_factory):
    "Pictures of the data set, and some that are larger, narrower, sideways or of another mode"
    folder, pics = tmp_path_factory.mktemp('pictures'), list_images(shapes)[::4]
    for i, (size, mode, kind) in enumerate([
            ((300, 200), 'RGB', 'png'), ((40, 90), 'RGB', 'jpg'), ((48, 48), 'L', 'png'), ((50, 48), 'RGBA', 'webp'),
            ((48, 60), 'P', 'gif')]):
        exif = Image.Exif()
        exif[0x0112] = i + 2
        Image.open(pics[i]).resize(size).convert(mode).save(folder/f'{i}.{kind}', **(dict(exif=exif) if kind != 'gif' else {}))
    return pics + list_images(folder)

@pytest.fixture(scope='module')
def predictor(model_file): return Predictor(model_file)

# Equal

@pytest.mark.parametrize('bs', [1, 2, 5])
def test_answers_are_torchs(trained_run, predictor, files, bs):
    trained = load_trained(trained_run)
    x = torch.from_numpy(np.stack([trained.preprocess(o) for o in files]))
    with torch.no_grad(): want = trained.model(x).softmax(1).numpy()
    preds = list(predictor.batch(files, k=3, bs=bs))
    got = np.array([[dict(o.topk)[label] for label in trained.vocab] for o in preds])
    assert len(files) == 20 and np.ptp(want) > .9 and np.abs(got - want).max() <= 1e-4
    assert [o.label for o in preds] == [trained.vocab[i] for i in want.argmax(1)]
    assert [o.source for o in preds] == [str(o) for o in files]
    for one, o in zip(map(predictor, files), preds): assert one.label == o.label and one.prob == pytest.approx(o.prob, abs=1e-5)

def test_a_network_that_was_not_exported_predicts_alike(trained_run, predictor, files):
    ours, theirs = (list(o.batch(files, k=3)) for o in (predictor, TorchPredictor(load_trained(trained_run))))
    assert [o.label for o in ours] == [o.label for o in theirs]
    assert np.allclose([o.prob for o in ours], [o.prob for o in theirs], atol=1e-4)

def test_nobody_else_writes_what_is_being_checked(trained_run, tmp_path, monkeypatch):
    path, check = tmp_path/'model.onnx', export._check_file
    other = threading.Thread(target=write_atomic, args=(path, b'of another export'), daemon=True)
    def wait(*args):
        other.start()
        other.join(.2)
        assert not path.exists()
        check(*args)
    monkeypatch.setattr(export, '_check_file', wait)
    assert export_onnx(trained_run, path).megabytes > 0
    other.join(10)
    assert path.read_bytes() == b'of another export', "whoever came second"

def test_one_file_holds_everything(model_file, tmp_path, files):
    assert [o.name for o in model_file.parent.iterdir()] == ['model.onnx']
    proto = onnx.load(model_file, load_external_data=False)
    onnx.checker.check_model(proto)
    assert {o.data_location for o in proto.graph.initializer} == {onnx.TensorProto.DEFAULT}
    shutil.copy(model_file, tmp_path/'renamed é.onnx')
    assert Predictor(tmp_path/'renamed é.onnx')(files[0]).topk == Predictor(model_file)(files[0]).topk

def test_the_card_says_where_it_came_from(trained_run, predictor):
    card, trained = predictor.card, load_trained(trained_run)
    assert card.labels == ('circle', 'square', 'triangle') and card.preprocess == trained.preprocess
    assert card.metrics['top1'] == pytest.approx(trained.facts['top1']) and card.code['arch'] == 'test_resnet'
    assert str(trained_run.parent) not in card.to_json(), "no paths of the machine that trained it"

# Refused to be written

@pytest.fixture
def exported(model_file, monkeypatch):
    "What comes out of torch's exporter is the good graph, with a change to the head's bias"
    def change(how):
        proto = onnx.load(model_file)
        del proto.metadata_props[:]
        bias = next(o for o in proto.graph.initializer if o.name.endswith('fc.bias'))
        bias.CopyFrom(onnx.numpy_helper.from_array(how(onnx.numpy_helper.to_array(bias)), bias.name))
        monkeypatch.setattr(export, 'to_onnx', lambda *_: proto)
    return change

@pytest.mark.parametrize('earlier', [True, False])
@pytest.mark.parametrize('fault, says', [
    (lambda b: b + np.float32([.1, 0, 0]), 'disagree'), (lambda b: b[[1, 0, 2]], 'disagree'),
    (lambda b: b + np.float32([np.nan, 0, 0]), 'not finite'), (lambda b: b + np.float32([np.inf, 0, 0]), 'not finite')])
def test_a_model_that_answers_otherwise_is_not_written(trained_run, model_file, exported, tmp_path, fault, says, earlier):
    exported(fault)
    if earlier: shutil.copy(model_file, tmp_path/'model.onnx')
    with pytest.raises(InputError, match=f"model.onnx' was not written.*{says}"): export_onnx(trained_run, tmp_path/'model.onnx')
    assert [o.name for o in tmp_path.iterdir()] == (['model.onnx'] if earlier else [])
    assert not earlier or (tmp_path/'model.onnx').read_bytes() == model_file.read_bytes()

def test_a_model_that_answers_alike_is_written(trained_run, exported, tmp_path, files):
    exported(lambda b: b*np.float32(1 + 1e-6))
    for _ in range(2): # the second replaces the first
        report = export_onnx(trained_run, tmp_path/'new folder/model.onnx', pictures=files)
        assert report.pictures == len(files) and 0 <= report.max_diff <= 1e-3*report.spread and report.top1_agreement == 1
    assert [o.name for o in (tmp_path/'new folder').iterdir()] == ['model.onnx']

def test_an_exporter_that_fails_leaves_nothing(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, 'export', lambda *_, **__: 1/0)
    with pytest.raises(InputError, match='cannot write this network as ONNX: ZeroDivisionError.*TorchPredictor'):
        export_onnx(trained_run, tmp_path/'model.onnx')
    assert not list(tmp_path.iterdir())

def test_nothing_to_compare_on(trained_run, exported, tmp_path):
    exported(lambda b: b)
    with pytest.raises(InputError, match='no picture to compare'): export_onnx(trained_run, tmp_path/'model.onnx', pictures=[])
    (tmp_path/'bad.png').write_text('no')
    with pytest.raises(BadPictureError, match='bad.png'):
        export_onnx(trained_run, tmp_path/'model.onnx', pictures=[tmp_path/'bad.png'])
    assert [o.name for o in tmp_path.iterdir()] == ['bad.png']

@pytest.mark.parametrize('how, says', [
    (dict(limit=0), 'limit=0 is no number'), (dict(limit=-5), 'limit=-5'), (dict(threads=0), 'threads=0'),
    (dict(threshold=7), 'threshold=7 is no probability'), (dict(max_drop='a'), "max_drop='a' is no number"),
    (dict(max_rel_diff=-1), 'max_rel_diff=-1'), (dict(temperature=0), 'temperature=0'),
    (dict(activation='relu'), "activation='relu'"), (dict(pictures='nowhere'), "no file or folder 'nowhere'"),
    (dict(path='.'), "'.' is a folder"),
    (dict(path='/proc/model.onnx'), "'/proc/model.onnx' was not written")], ids=str)
def test_arguments_are_looked_at_first(trained_run, tmp_path, monkeypatch, how, says):
    monkeypatch.setattr(export, 'to_onnx', lambda *_: 1/0)
    with pytest.raises(InputError, match=says): export_onnx(trained_run, **dict(path=tmp_path/'model.onnx') | how)
    assert not list(tmp_path.iterdir())

def test_pictures_in_a_folder(trained_run, exported, tmp_path, shapes):
    exported(lambda b: b)
    assert export_onnx(trained_run, tmp_path/'model.onnx', pictures=shapes/'circle').pictures == 20

def test_pictures_without_labels(trained_run, exported, tmp_path, shapes):
    exported(lambda b: b)
    pics = PictureList(shapes, list_images(shapes)[:7], np.full(7, -1), ())
    assert export_onnx(trained_run, tmp_path/'model.onnx', pictures=pics).pictures == 7

# Many pictures

def test_bad_pictures_stay_in_their_place(predictor, files, tmp_path):
    (tmp_path/'text.jpg').write_text('no')
    (tmp_path/'cut.png').write_bytes(files[0].read_bytes()[:200])
    text, missing, cut = (tmp_path/o for o in ('text.jpg', 'missing.png', 'cut.png'))
    mixed = [text, files[0], missing, cut, files[1], np.zeros(3), files[2], text]
    want = [o.label for o in predictor.batch(files[:3])]
    for bs in (1, 2, 3, 16):
        preds = list(predictor.batch(mixed, bs=bs))
        assert [o.label for o in preds] == [None, want[0], None, None, want[1], None, want[2], None]
        assert [o.source for o in preds] == ['<ndarray>' if isinstance(o, np.ndarray) else str(o) for o in mixed]
        assert all(bool(o.error) != bool(o.label) and str(o) for o in preds) and 'text.jpg: not a picture' in preds[0].error
    assert all(o.error for o in predictor.batch([text]*3))
    for o in (text, missing, cut):
        with pytest.raises(BadPictureError, match=o.name): predictor(o)

def test_a_generator_is_taken_as_it_comes(predictor, files):
    endless = itertools.cycle(files)
    preds = list(itertools.islice(predictor.batch(endless, bs=2, workers=0), 5))
    assert [o.source for o in preds] == [str(o) for o in files[:5]]
    assert next(endless) == files[6], "three groups of two were read, no more"
    assert list(predictor.batch(iter(()))) == []

@pytest.mark.parametrize('k, n', [(1, 1), (2, 2), (3, 3), (5, 3), (1000, 3)])
def test_k(predictor, files, k, n):
    for o in (predictor(files[0], k=k), *predictor.batch(files[:1], k=k)):
        probs = [p for _, p in o.topk]
        assert len(o.topk) == n and probs == sorted(probs, reverse=True) and o.topk[0] == (o.label, o.prob)
    assert n < 3 or sum(probs) == pytest.approx(1, abs=1e-5)

def test_sources(predictor, files):
    im = Image.open(files[0]).convert('RGB')
    for o in (str(files[0]), files[0].read_bytes(), im, np.asarray(im)): assert predictor(o).topk == predictor(files[0]).topk

# Models that are not what they say

@pytest.fixture
def altered(model_file, tmp_path):
    "The model with another card: entries replaced, or the text of it, or none"
    def alter(text=None, **entries):
        proto = onnx.load(model_file)
        card = json.loads(next(o.value for o in proto.metadata_props if o.key == CARD_KEY))
        del proto.metadata_props[:]
        if text != 'none': onnx.helper.set_model_props(proto, {CARD_KEY: text or json.dumps(card | entries)})
        onnx.save(proto, tmp_path/'altered.onnx')
        return tmp_path/'altered.onnx'
    alter.preprocess = json.loads(Predictor(model_file).card.to_json())['preprocess']
    return alter

def test_temperature_and_threshold(altered, predictor, files):
    cool = Predictor(altered(temperature=4., threshold=.99))
    x = predictor.preprocess(files[0])[None]
    assert np.allclose(cool.logits(x), predictor.logits(x))
    assert cool(files[0]).prob == pytest.approx(softmax(predictor.logits(x)[0]/4).max())
    assert not cool(files[0]).sure and '(unsure)' in str(cool(files[0])) and predictor(files[0]).sure

@pytest.mark.parametrize('how, says', [
    (dict(text='none'), "not one of ours: it holds no 'imgcls_nb' entry"), (dict(text='{'), 'is no JSON'),
    (dict(labels=['a', 'b']), 'names 2 labels, but its graph answers with'), (dict(labels=list('abcd')), 'names 4 labels'),
    (dict(schema=3), 'card schema 3; this version reads 1 to 2'), (dict(schema=None), 'card schema None'),
    (dict(critical=['turn']), "must understand its 'turn'"), (dict(activation='relu'), 'activation is none of'),
    (dict(temperature=0), 'temperature')], ids=str)
def test_cards_that_do_not_fit(altered, how, says):
    with pytest.raises(ModelFileError, match=f'altered.onnx.*{says}'): Predictor(altered(**how))

@pytest.mark.parametrize('how, says', [
    (dict(crop=[64, 64], resize_short=64), r"its pictures are \[3, 64, 64\], but its graph takes"),
    (dict(mean=[.5], std=[.5]), r"its pictures are \[1, 32, 32\]"), (dict(crop=None), 'preprocessing cannot be read')], ids=str)
def test_preprocessing_that_does_not_fit(altered, how, says):
    with pytest.raises(ModelFileError, match=f'altered.onnx.*{says}'): Predictor(altered(preprocess=altered.preprocess | how))

@pytest.mark.parametrize('content', [b'', b'I am not a model', b'\x08\x0a'*100, 'half', 'folder', None], ids=str)
def test_files_that_are_no_models(model_file, tmp_path, content):
    file = tmp_path/'m.onnx'
    if content == 'folder': file.mkdir()
    elif content == 'half': file.write_bytes(model_file.read_bytes()[:model_file.stat().st_size//2])
    elif content is not None: file.write_bytes(content)
    says = 'There is no model file' if content in (None, 'folder') else 'cannot be opened as an ONNX model'
    with pytest.raises(ModelFileError, match=f"{says}.*|'.*m.onnx' {says}") as e: Predictor(file)
    assert 'm.onnx' in str(e.value) and '\n' not in str(e.value)

def test_a_folder_with_one_model(model_file):
    assert Predictor(model_file.parent).path == model_file, "a folder with one model stands for it"

def test_unknown_providers(model_file):
    with pytest.raises(InputError, match="no provider 'TPUExecutionProvider'.*Did you mean 'CPUExec.*Known: cpu, cuda"):
        Predictor(model_file, providers=['TPUExecutionProvider'])
    with pytest.raises(InputError, match='no provider 5'): Predictor(model_file, providers=5)

# What serving loads

HEAVY = 'torch torchvision fastai timm fastcore IPython matplotlib pandas sklearn onnx safetensors'.split()

def fresh(code, *args):
    done = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()

@pytest.mark.alone
def test_importing_the_predictor_is_quick_and_light():
    timed = 'import sys, time; t = time.perf_counter(); import imgcls_nb.predict; print(time.perf_counter() - t'
    code = f'{timed}, *sys.modules.keys() & {set(HEAVY)})'
    times, *loaded = zip(*(fresh(code)[0].split() for _ in range(3)))
    assert not loaded and min(map(float, times)) <= .6

@pytest.mark.parametrize('args', [
    [], ['--help'], ['train', '--help'], ['predict', 'MODEL', 'PICTURE'], ['predict', 'PICTURE', 'MODEL']], ids=' '.join)
def test_the_shell_loads_torch_only_to_train(model_file, files, args):
    code = f"""import sys
from imgcls_nb.cli import main
try: main(sys.argv[1:])
except SystemExit: pass
print('loaded:', *sys.modules.keys() & {set(HEAVY)})"""
    args = [{'MODEL': model_file, 'PICTURE': files[0]}.get(o, o) for o in args]
    assert fresh(code, *args)[-1] == 'loaded:'

# Four channels

def test_four_channels_from_training_to_the_file(shapes, tmp_path):
    from imgcls_nb.data import image_dls
    from imgcls_nb.learner import image_learner
    dls = image_dls(shapes, size=32, bs=8, device='cpu', num_workers=0)
    learn = image_learner(dls, 'test_resnet', in_chans=4, precision='fp32')
    with learn.no_bar(): learn.fit(1, 1e-3)
    assert learn.dls.train.decode(learn.dls.one_batch())[0].shape[1] == 3, "shown as pictures"
    export_onnx(learn, tmp_path/'four.onnx')
    predictor, source = Predictor(tmp_path/'four.onnx'), learn.dls.valid_ds.source(0)
    assert predictor.preprocess.channels == 4 and predictor(source).label in learn.dls.vocab

# What the outputs mean, and what the card says of it

@pytest.fixture(scope='module')
def each_for_itself(shapes, tmp_path_factory):
    "A learner that asked every class for itself"
    from imgcls_nb.data import image_dls
    from imgcls_nb.learner import image_learner
    dls = image_dls(shapes, size=32, bs=16, device='cpu', num_workers=0)
    learn = image_learner(dls, 'test_resnet', loss='bce', run=tmp_path_factory.mktemp('runs')/'bce', precision='fp32')
    with learn.no_bar(): learn.fit(1, 1e-3)
    return learn

def test_bce_gives_sigmoids_everywhere(each_for_itself, tmp_path, files):
    trained = load_trained(each_for_itself.run_folder.path)
    x = torch.from_numpy(np.stack([trained.preprocess(o) for o in files[:4]]))
    with torch.no_grad(): want = trained.model(x).sigmoid().numpy()
    assert np.abs(want.sum(1) - 1).max() > .01
    for i, (source, softmax_inside) in enumerate([(each_for_itself, False), (each_for_itself.run_folder, True)]):
        export_onnx(source, tmp_path/f'{i}.onnx', softmax=softmax_inside)
        predictor = Predictor(tmp_path/f'{i}.onnx')
        assert predictor.card.activation == 'sigmoid' and np.abs(predictor.probs(x.numpy()) - want).max() < 1e-5
    assert np.abs(TorchPredictor(trained).probs(x.numpy()) - want).max() < 1e-6

@pytest.mark.parametrize('temperature', [1., .5, 3.])
def test_softmax_inside_or_outside_is_the_same(trained_run, exported, tmp_path, files, temperature):
    found = []
    for inside in (True, False):
        exported(lambda b: b)
        report = export_onnx(trained_run, tmp_path/f'{inside}.onnx', softmax=inside, temperature=temperature, threshold=.6)
        found.append(Predictor(tmp_path/f'{inside}.onnx'))
        assert report.output == found[-1].card.output == ('probabilities' if inside else 'logits')
    a, b = found
    x = np.stack([a.preprocess(o) for o in files[:5]])
    assert np.abs(a.probs(x) - b.probs(x)).max() < 1e-6 and np.abs(b.probs(x) - softmax(b.logits(x), temperature)).max() < 1e-6
    assert np.abs(softmax(a.logits(x), temperature) - b.probs(x)).max() < 1e-5, "logits are found again"
    assert [o.sure for o in a.batch(files)] == [o.sure for o in b.batch(files)] == [o.prob >= .6 for o in b.batch(files)]
    assert a.card.temperature == temperature

class Calibrated: temperature = 1.7

def test_what_can_be_exported(trained_run, exported, tmp_path):
    from imgcls_nb.runs import Run
    best, latest = trained_run/'best_model', dict(weights='latest')
    sources = [*((o, {}) for o in (trained_run, Run(trained_run), trained_run/'best_model.safetensors', best)),
               *((o, latest) for o in (str(trained_run), trained_run/'latest'))]
    for i, (source, how) in enumerate(sources):
        exported(lambda b: b)
        export_onnx(source, tmp_path/f'{i}.onnx', temperature=Calibrated(), **how, max_rel_diff=9)
    cards = [Predictor(tmp_path/f'{i}.onnx').card for i in range(len(sources))]
    assert {o.temperature for o in cards} == {1.7} and cards[0] == cards[1] == cards[2] == cards[3] and cards[4] == cards[5]
    assert {'train', 'valid'} <= set(cards[0].data), "whoever names the checkpoint, it saw the same pictures"
    for o in ('best_model', 'best_model.safetensors'):
        with pytest.raises(InputError, match=f"{o}' is a checkpoint of a run, and 'latest' another.*latest'"):
            export_onnx(trained_run/o, tmp_path/'x.onnx', weights='latest')
    with pytest.raises(InputError, match='epoch_99|no checkpoint'):
        export_onnx(trained_run, tmp_path/'x.onnx', weights='epoch_99')

def test_a_run_that_was_moved(trained_run, tmp_path): # to make room, perhaps, and another run is where it was
    run = shutil.copytree(trained_run, tmp_path/'moved')
    said = json.loads((run/'data.json').read_text())
    (run/'data.json').write_text(json.dumps(said | dict(train=said['train'] | dict(list_sha256='0'*64))))
    trained = load_trained(run)
    export_onnx(trained, tmp_path/'x.onnx')
    assert trained.plan.run == run.as_posix() and Predictor(tmp_path/'x.onnx').card.data['train']['list_sha256'] == '0'*64

def test_damaged_notes_of_a_run(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path/'run')
    (run/'data.json').write_text('{"train": ')
    with pytest.raises(InputError, match=r'data\.json is not valid JSON .* or take it away'): export_onnx(run, tmp_path/'x.onnx')
    (run/'data.json').unlink()
    export_onnx(run, tmp_path/'x.onnx')
    assert 'train' not in Predictor(tmp_path/'x.onnx').card.data

def test_the_card_names_data_and_versions(trained_run, predictor):
    data, code = predictor.card.data, predictor.card.code
    said = json.loads((trained_run/'data.json').read_text())
    assert data['name'] == 'shapes' and data['train']['list_sha256'] == said['train']['list_sha256']
    assert data['valid']['pictures'] == said['valid']['pictures'] and data['classes'] == 3
    assert {'imgcls_nb', 'torch', 'timm', 'onnxruntime', 'arch'} <= set(code)

@pytest.mark.parametrize('loss, want', [
    (torch.nn.CrossEntropyLoss(), 'softmax'), (torch.nn.BCEWithLogitsLoss(), 'sigmoid'), (None, 'softmax')])
def test_activation_of_anybodys_loss(loss, want):
    from imgcls_nb.losses import activation_name, as_loss, like_loss
    assert activation_name(as_loss(loss) if loss else object()) == want
    if loss: assert like_loss(loss) == dict(softmax='cross_entropy', sigmoid='bce')[want]

@pytest.mark.parametrize('exchanged', [False, True])
def test_a_run_knows_what_the_outputs_of_an_object_mean(shapes, tmp_path, exchanged): # of one that no plan can hold
    from imgcls_nb.data import image_dls
    from imgcls_nb.evaluate import evaluate
    from imgcls_nb.learner import image_learner
    from imgcls_nb.losses import BCE
    def make():
        learn = image_learner(image_dls(shapes, size=32, bs=16, device='cpu', num_workers=0), 'test_resnet', run=tmp_path/'run',
                              precision='fp32', **dict(loss='focal', loss_args=dict(gamma=1.)) if exchanged else dict(loss=BCE()))
        if exchanged: learn.loss_func = BCE()
        return learn
    with (learn := make()).no_bar(): learn.fit(1, 1e-3)
    assert learn.plan.objective.loss == 'bce' and learn.plan.custom == ('loss_func' if exchanged else 'loss',)
    probs = evaluate(learn, run=False).probs
    assert np.abs(probs.sum(1) - 1).max() > .01 and np.abs(evaluate(tmp_path/'run', run=False).probs - probs).max() < 1e-5
    export_onnx(tmp_path/'run', tmp_path/'x.onnx')
    assert Predictor(tmp_path/'x.onnx').card.activation == 'sigmoid'
    with (again := make()).no_bar(): again.fit(2, 1e-3, resume=True)
    assert again.clock.epochs == 2 and 'objective.loss' not in again.run_folder.events('resume')[-1]['changed']

def test_a_learner_has_the_weights_that_it_has(each_for_itself, tmp_path):
    with pytest.raises(InputError, match="weights='latest' is a checkpoint of a run.*/bce', …"):
        export_onnx(each_for_itself, tmp_path/'x.onnx', weights='latest')
