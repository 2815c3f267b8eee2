"`imgcls`: every stage after the other, as a person types it, and every slip answered in one message"
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from browsing import wait_for

from imgcls_nb import verbs
from imgcls_nb.checkpoints import read_manifest
from imgcls_nb.cli import main
from imgcls_nb.core import InputError, list_images
from imgcls_nb.datasets import make_shapes
from imgcls_nb.edits import Edits
from imgcls_nb.evaluate import evaluate
from imgcls_nb.evaluation import Evaluation
from imgcls_nb.metadata import read_card
from imgcls_nb.plan import plan_from_yaml, plan_to_yaml
from imgcls_nb.runs import Run
from imgcls_nb.shipped import list_shipped

QUICK = 'configs/quick_start/MobileNetV3_large_x1_0.yaml'
SMALL = ['--arch', 'test_resnet', '--size', '32', '--bs', '16', '--epochs', '2']

def start(cwd, *args):
    return subprocess.Popen([sys.executable, '-m', 'imgcls_nb.cli', *map(str, args)], cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def done(process, status=0):
    out, err = process.communicate()
    assert process.returncode == status and 'Traceback' not in err, err
    return out, err

@pytest.fixture
def imgcls(tmp_path, monkeypatch, capsys):
    "Runs a command in a new folder, without a process of its own"
    monkeypatch.chdir(tmp_path)
    def run(*args, status=0):
        try: got = main(list(map(str, args)))
        except SystemExit as e: got = e.code
        out, err = capsys.readouterr()
        assert got == status, err
        assert 'Traceback' not in err and 'This is a defect' not in err, err
        return out, err
    return run

@pytest.fixture
def refused(imgcls):
    "Runs a command that must fail, for its one message"
    def run(*args):
        out, err = imgcls(*args, status=2)
        assert err.count('imgcls: ') == 1, err
        return err.partition('imgcls: ')[2]
    return run

def words(o): return ' '.join(o) if isinstance(o, list) else '' # names of cases

def labels(out): return dict(re.findall(r'^(.+?): (\S+) \d+\.\d%', out, re.M))

# The way from a folder

@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory):
    "A folder in which `imgcls train` was run, and what it said"
    cwd = tmp_path_factory.mktemp('shell')
    return cwd, done(start(cwd, 'train', shapes, *SMALL, '--run', 'runs/shapes'))[0]

def test_from_a_folder_to_predictions(trained, shapes, imgcls, monkeypatch):
    cwd, said = trained
    assert re.search(r'^ +epoch +train_loss +valid_loss +top1', said, re.M) and len(re.findall(r'^ +[12] +\d', said, re.M)) == 2
    assert 'The run is in runs/shapes' in said and 'Next: imgcls export runs/shapes' in said
    exporting = start(cwd, 'export', 'runs/shapes')
    monkeypatch.chdir(cwd)
    pictures = shapes/'circle', shapes/'square/003.png'
    report, inferred = imgcls('eval', 'runs/shapes')[0], imgcls('infer', 'runs/shapes', *pictures)[0]
    top1 = json.loads((cwd/'runs/shapes/best_model.json').read_text())['facts']['top1']
    assert f'Evaluation(12 pictures, 3 classes, top1 {top1:.4f})' in report
    assert all(o in report for o in ('circle', 'square', 'triangle', 'precision', 'recall'))
    exported, _ = done(exporting)
    assert 'runs/shapes/model.onnx' in exported and 'top-1 agrees on 100.0%' in exported
    assert 'Next: imgcls predict runs/shapes/model.onnx PICTURES' in exported
    assert read_card('runs/shapes/model.onnx').metrics['top1'] == top1
    predicted, _ = done(start(cwd, 'predict', 'runs/shapes/model.onnx', *pictures, '--topk', '2'))
    assert list(labels(predicted)) == [str(o) for o in [*list_images(pictures[0]), pictures[1]]]
    assert labels(predicted) == labels(inferred) and set(labels(predicted).values()) <= {'circle', 'square', 'triangle'}
    assert all(o.count('%') == 2 for o in predicted.splitlines())

# The way from a PaddleClas config

@pytest.fixture
def listed(shapes, tmp_path):
    "The overrides that bring the shipped config to a small data set, network and size"
    shutil.copytree(shapes, tmp_path/'data')
    lines = [f'{c}/{n:03}.png {i}\n' for i, c in enumerate(('circle', 'square', 'triangle')) for n in range(20)]
    (tmp_path/'data/train_list.txt').write_text(''.join(lines[::2]))
    (tmp_path/'data/val_list.txt').write_text(''.join(lines[1::4]))
    (tmp_path/'data/names.txt').write_text('0 a circle\n1 square\n2 triangle\n')
    loaders = {'Train': ('train', 'RandCropImage.size=32'), 'Eval': ('val', 'ResizeImage.resize_short=36')}
    settings = ['Arch.name=test_resnet', 'Arch.class_num=3', 'Global.epochs=1', 'Global.device=cpu',
                'Optimizer.lr.warmup_epoch=0', 'Infer.infer_imgs=data/square',
                'Infer.PostProcess.class_id_map_file=data/names.txt',
                'DataLoader.Eval.dataset.transform_ops.2.CropImage.size=32',
                'Infer.transforms.1.ResizeImage.resize_short=36', 'Infer.transforms.2.CropImage.size=32']
    for k, (name, size) in loaders.items():
        settings += [f'DataLoader.{k}.dataset.image_root=data', f'DataLoader.{k}.dataset.cls_label_path=data/{name}_list.txt',
                     f'DataLoader.{k}.dataset.transform_ops.1.{size}', f'DataLoader.{k}.sampler.batch_size=16',
                     f'DataLoader.{k}.loader.num_workers=0']
    return ['-c', QUICK, *(p for o in settings for p in ('-o', o))]

def test_from_a_config_to_predictions(listed, imgcls, tmp_path):
    out, err = done(start(tmp_path, 'train', *listed))
    assert 'The run is in output/test_resnet' in out and (tmp_path/'output/test_resnet/epoch_1.safetensors').exists()
    weights = ['-o', 'Global.pretrained_model=output/test_resnet/best_model']
    report, _ = imgcls('eval', *listed, *weights)
    facts = json.loads((tmp_path/'output/test_resnet/best_model.json').read_text())['facts']
    assert 'a circle' in report and f"Evaluation(15 pictures, 3 classes, top1 {facts['top1']:.4f})" in report
    assert re.search(r'\[Eval\]\[Epoch 0\]\[Avg\]CELoss: \d\.\d{5}, loss: \d\.\d{5}, top1: \d\.\d{5}\n', report)
    inferred, _ = imgcls('infer', *listed, *weights)
    answers = [o for line in inferred.splitlines() for o in ast.literal_eval(line.partition('INFO: ')[2])]
    assert len(inferred.splitlines()) == 2 and len(answers) == 20 and answers[0]['file_name'] == 'data/square/000.png'
    assert set(answers[0]) == {'class_ids', 'scores', 'file_name', 'label_names'} and 'a circle' in answers[0]['label_names']
    exported, _ = imgcls('export', *listed, *weights)
    assert (tmp_path/'inference/inference.onnx').exists() and 'inference/inference.onnx' in exported
    predicted, _ = imgcls('predict', 'inference/inference.onnx', 'data/square')
    assert predicted.splitlines()[0].startswith('data/square/000.png: ') and 'a circle' in predicted
    assert re.findall(r'^(.*?): (.*?) [\d.]+%', predicted, re.M) == [(o['file_name'], o['label_names'][0]) for o in answers]
    plan, _ = imgcls('config', QUICK, '--yaml', *listed[2:], *weights)
    assert 'arch: test_resnet' in plan and 'pretrained: output/test_resnet/best_model' in plan
    one, _ = imgcls('infer', *listed, *weights, 'data/circle/001.png')
    assert "'file_name': 'data/circle/001.png'" in one and len(one.splitlines()) == 1, "named pictures come before the config's"

# Pictures that cannot be read

def test_a_mix_of_pictures(model_file, shapes, imgcls, tmp_path):
    for o in ('a.png', 'c.png', 'd/e.png'):
        (tmp_path/'mix'/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes/'circle/001.png', tmp_path/'mix'/o)
    (tmp_path/'mix/b.jpg').write_text('I am not a picture')
    (tmp_path/'mix/cut.png').write_bytes((shapes/'circle/001.png').read_bytes()[:150])
    (tmp_path/'mix/notes.txt').write_text('not asked for')
    out, err = imgcls('predict', model_file, 'mix', status=1)
    assert list(labels(out)) == ['mix/a.png', 'mix/c.png', 'mix/d/e.png']
    first, second, last = err.splitlines()
    assert first.startswith('mix/b.jpg: not a picture') and second.startswith('mix/cut.png: not a picture')
    assert last == '2 of 5 pictures could not be read.'
    out, err = done(start(tmp_path, 'predict', model_file, 'mix', 'mix/notes.txt'), status=1)
    assert len(labels(out)) == 3 and '3 of 6 pictures' in err

def test_predict_without_pictures(model_file, refused, tmp_path):
    (tmp_path/'empty').mkdir()
    assert 'no file or folder' in refused('predict', model_file, 'nowhere.png')
    assert 'no pictures in empty' in refused('predict', model_file, 'empty')

# Slips

def touch(folder, *names):
    for o in names:
        (folder/o).parent.mkdir(parents=True, exist_ok=True)
        (folder/o).touch()

@pytest.mark.parametrize('files, says', [
    ([], 'holds no pictures'), (['a/1.png', 'a/2.png'], "one class only, 'a'"), (['1.png'], '1 picture but no class folders'),
    ([f'{p}/{c}/1.png' for p, cs in (('train', 'ab'),
    ('valid', 'abc')) for c in cs], r"\['c'\] are not in the training set, which has a, b")])
def test_train_on_folders_that_will_not_do(refused, tmp_path, files, says):
    (tmp_path/'photos').mkdir()
    touch(tmp_path/'photos', *files)
    assert re.search(says, refused('train', 'photos', *SMALL))
    assert not (tmp_path/'runs').exists()

BAD_LIST = 'circle/000.png 0\nmissing.png 1\ncircle/001.png x\n\nsquare/000.png 3\nnothing\n'

def test_bad_lines_of_a_list_are_one_report(listed, refused, tmp_path):
    (tmp_path/'data/val_list.txt').write_text(BAD_LIST)
    said = refused('train', *listed)
    assert "val_list.txt' has 4 bad lines" in said and re.findall(r'line (\d)', said) == ['2', '3', '5', '6']
    assert not (tmp_path/'output').exists()

@pytest.mark.parametrize('args, says', [
    (['--arch', 'resnet81'], "no architecture 'resnet81'.*Did you mean .*'resnet18'"), (['--epochs', '0'], 'epochs=0'),
    (['--arch', 'test_resnet.x'], "no weights tagged 'x'"), (['--size', '0'], 'size=0'),
    (['--aug', 'stron'], "Did you mean 'strong'"),
    (['--bs', '0'], 'bs'), (['--lr', '-1'], 'lr'), (['--num-workers', 'x'], 'num.workers'),
    (['--precision', 'bf61'], "Did you mean 'bf16'"),
    (['--valid', 'nowhere'], "no 'nowhere'"), (['--valid', '1.5'], 'no share'), (['--train', 'list.txt'], "no 'list.txt'"),
    (['--pretrained', 'nowhere.pth'], "no weights at 'nowhere.pth'"), (['--label-file', 'nowhere.txt'], 'nowhere.txt'),
    (['--arch', 'test_vit', '--size', '50'], 'test_vit'), (['--run', 'file/run'], 'file/run'),
    (['-o', 'Global.epochs=1'], '-o')], ids=words)
def test_settings_that_cannot_be(refused, shapes, tmp_path, args, says):
    (tmp_path/'file').touch()
    said = refused('train', shapes, *SMALL, *args)
    assert re.search(says, said), said
    assert not list(tmp_path.glob('runs/*'))

def test_settings_beside_a_config_are_not_lost(listed, refused):
    assert '--epochs' in refused('train', *listed, '--epochs', '3')

def test_weights_that_do_not_fit_name_the_tensors(listed, refused, shapes, tmp_path, trained_run):
    from imgcls_nb.models import create_model
    torch.save(create_model('test_convnext', num_classes=3).state_dict(), tmp_path/'other.pth')
    other = ['-o', 'Global.pretrained_model=other']
    for args in (['train', shapes, *SMALL, '--pretrained', 'other'], ['eval', *listed, *other], ['export', *listed, *other]):
        said = refused(*args)
        for o in ("other.pth' do not fit the model", 'missing in the file', 'conv1.0.weight', 'unknown to the model',
                  'stem.0.weight'):
            assert o in said
    four = ['-o', 'Arch.class_num=4', '-o', 'Infer.PostProcess.class_id_map_file=None']
    assert 'fc.weight: (3, ' in refused('infer', *listed, *four, '-o', f'Global.pretrained_model={trained_run}/latest')

@pytest.mark.parametrize('kind, says', [
    ('text', 'cannot be opened as an ONNX model'), ('foreign', 'not one of ours'), ('missing', 'There is no model file'),
    ('folder', 'There is no model file')])
def test_models_that_are_not_ours(refused, shapes, tmp_path, model_file, kind, says):
    if kind == 'text': (tmp_path/'m.onnx').write_text('no')
    if kind == 'folder': (tmp_path/'m.onnx').mkdir()
    if kind == 'foreign':
        proto = onnx.load(model_file)
        del proto.metadata_props[:]
        onnx.save(proto, tmp_path/'m.onnx')
    said = refused('predict', 'm.onnx', shapes)
    assert 'm.onnx' in said and says in said
    assert done(start(tmp_path, 'predict', 'm.onnx', shapes), status=2)[1] == f'imgcls: {said}', "and so it is in its own process"

@pytest.mark.parametrize('verb', ['eval', 'infer', 'export'])
def test_runs_that_are_none(refused, tmp_path, trained_run, shapes, verb):
    (tmp_path/'empty').mkdir()
    for o in ('empty', shapes): assert 'is no run folder: it has no config.yaml' in refused(verb, o)
    assert "'nowhere' is no run folder: there is nothing of this name" in refused(verb, 'nowhere')
    assert 'Runs beside it: shapes' in refused(verb, trained_run.parent/'shape')
    for o in ('best_model', 'best_model.safetensors'):
        assert f'imgcls {verb} {trained_run} --weights best_model\n' in refused(verb, trained_run/o), "as PaddleClas has it"
    assert 'Runs in it: shapes' in refused(verb, trained_run.parent), "the folder of all runs"
    assert "no checkpoint 'epoch_9'. It has: best_model, latest" in refused(verb, trained_run, '--weights', 'epoch_9')
    assert 'takes a run folder, or -c' in refused(verb)
    assert 'needs weights: -o Global.pretrained_model=' in refused(verb, '-c', QUICK)
    assert "no weights at 'nowhere'" in refused(verb, '-c', QUICK, '-o', 'Global.pretrained_model=nowhere')

@pytest.mark.parametrize('verb', ['eval', 'export'])
def test_where_the_pictures_are_beside_a_config(refused, verb):
    said = refused(verb, '-c', QUICK, '--data', 'photos')
    assert '--data cannot stand beside -c' in said and '-o DataLoader.Eval.dataset.image_root=FOLDER' in said

def test_a_run_that_was_not_exported_yet(refused, trained_run, shapes, tmp_path):
    shutil.copytree(trained_run, tmp_path/'run', ignore=shutil.ignore_patterns('*.onnx'))
    for o in ('run', 'run/model.onnx'): assert refused('predict', o, shapes).endswith(' Write it: imgcls export run\n')

def test_a_damaged_checkpoint(refused, trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path/'run')
    for o in run.rglob('*.safetensors'): o.write_bytes(o.read_bytes()[:-1]) # under all its names
    for verb in ('eval', 'infer', 'export'): assert "best_model.safetensors' is damaged" in refused(verb, 'run')

def test_pictures_that_moved_away(refused, imgcls, trained_run, shapes, tmp_path):
    run = shutil.copytree(trained_run, tmp_path/'run')
    (run/'config.yaml').write_text((run/'config.yaml').read_text().replace(str(shapes), 'gone'))
    for verb in ('eval', 'export', 'resume'):
        said = refused(verb, 'run')
        assert "no 'gone', which config.yaml in 'run' has as data.path" in said and f'imgcls {verb} run --data FOLDER' in said
        assert "no folder 'nowhere' for --data" in refused(verb, 'run', '--data', 'nowhere')
        imgcls(verb, 'run', '--data', shapes)
    assert labels(imgcls('infer', 'run', shapes/'circle')[0]), "to label other pictures they are not needed"

def test_infer_without_pictures(refused, trained_run):
    assert 'no pictures to label. Name them behind the run folder' in refused('infer', trained_run)

@pytest.mark.parametrize('args, says', [
    ([], 'Look for damaged files'), (['tarin', 'x'], "invalid choice: 'tarin'"),
    (['train', 'x', '--epohcs=3'], "unrecognized arguments: --epohcs=3. Did you mean '--epochs'?"),
    (['train', 'x', '--epochs', 'three'], "invalid int value: 'three'"),
    (['quickstart', 'x', '--epochs', '0'], "'0' is no whole number from 1"), # and not as many as without it
    (['models', 'resnet18', '--limit', '-5'], "'-5' is no whole number from 1")], ids=words)
def test_what_cannot_be_parsed(imgcls, args, says):
    out, err = imgcls(*args, status=2)
    assert says in err and 'usage: imgcls' in err and not out

def test_the_version(imgcls): assert re.fullmatch(r'imgcls_nb \d+\.\d+\.\d+\n', imgcls('--version')[0])

def test_a_config_whose_pictures_are_elsewhere(refused, imgcls, shapes, tmp_path):
    said = refused('train', '-c', QUICK)
    assert 'dataset.image_root. Put the pictures there' in said and '-o DataLoader.Eval.dataset.image_root=FOLDER' in said

def test_a_config_whose_pictures_are_at_home(tmp_path, monkeypatch): # behind the = of -o no shell says where that is
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path/'photos').mkdir()
    verbs._check_root('~/photos', QUICK)
    with pytest.raises(InputError, match="no folder '~/pictures'"): verbs._check_root('~/pictures', QUICK)

def test_an_unknown_verb_in_a_process_of_its_own(tmp_path):
    assert "invalid choice: 'tarin'" in done(start(tmp_path, 'tarin'), status=2)[1]

@pytest.mark.parametrize('args, says', [
    (['config', 'nowhere.yaml'], "no config file 'nowhere.yaml'"), (['config'], 'takes one YAML file'),
    (['config', QUICK, '-c', 'x.yaml'], "takes one YAML file, and 'configs.*' and 'x.yaml' are two"),
    (['train'], 'a folder of pictures, or -c'),
    (['train', 'nowhere', '-c', QUICK], 'a folder of pictures, or -c'),
    (['config', QUICK, '-o', 'Globl.x=1'], "no 'Globl'.*Did you mean 'Global'"),
    (['config', QUICK, '-o', 'Global.epoch=1'], "Did you mean 'epochs'"),
    (['config', QUICK, '-o', 'Global.epochs'], 'written key=value'), (['quickstart', 'nowhere'], "no folder 'nowhere'"),
    (['train', 'nowhere'], "no folder 'nowhere'")], ids=words)
def test_other_slips(refused, args, says): assert re.search(says, refused(*args))

def test_a_picture_in_the_place_of_a_plan(refused, shapes):
    assert 'defect' not in (said := refused('train', '--plan', shapes/'circle/000.png')) and '000.png' in said

def test_a_device_that_is_asked_for(refused, imgcls, monkeypatch):
    import torchvision.transforms.v2  # noqa: F401 (looks for a GPU when it is imported)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert 'Global.device=gpu was asked for' in refused('config', QUICK, '-o', 'Global.device=gpu')
    out, err = imgcls('config', QUICK)
    assert out == imgcls('config', '-c', QUICK)[0]
    assert re.search('device +cpu', out) and 'the CPU is used' in out

@pytest.mark.parametrize('error, status, says', [
    (KeyboardInterrupt(), 130, 'interrupted, before anything was saved'),
    (PermissionError(13, 'denied', 'x.png'), 2, "'x.png': denied."),
    (ModuleNotFoundError('no', name='timm'), 2, "'timm' is not installed.*pip install 'imgcls_nb.train,lab.'"),
    (ZeroDivisionError('division by zero'), 2, 'ZeroDivisionError: division by zero\nThis is a defect. Set IMGCLS_TRACEBACK=1')])
def test_errors_that_are_not_the_users(monkeypatch, capsys, error, status, says):
    def fail(*_, **__): raise error
    monkeypatch.setattr('imgcls_nb.learner.train_plan', fail)
    monkeypatch.delenv('IMGCLS_TRACEBACK', raising=False)
    assert main(['train', '.']) == status
    assert re.search(says, capsys.readouterr().err)
    monkeypatch.setenv('IMGCLS_TRACEBACK', '1')
    with pytest.raises(type(error)): main(['train', '.'])

def test_an_encoding_that_lacks_a_name(model_file, shapes, tmp_path):
    picture = shutil.copy(shapes/'circle/000.png', tmp_path/'红.png')
    done = subprocess.run([sys.executable, '-m', 'imgcls_nb.cli', 'predict', str(model_file), str(picture)], capture_output=True,
                          env=os.environ | dict(PYTHONIOENCODING='cp1252'))
    assert done.returncode == 0 and b'\\u7ea2.png' in done.stdout, done

def test_an_interrupted_training_names_its_run(monkeypatch, capsys, shapes, tmp_path):
    def stop(_): raise KeyboardInterrupt
    run = tmp_path/'my run'
    monkeypatch.setattr('imgcls_nb.callbacks.recording.Checkpointer.after_fit', stop)
    assert main(['train', str(shapes), '--arch', 'test_resnet', '--size', '32', '--epochs', '2', '--run', str(run)]) == 130
    assert f"interrupted. Next: imgcls resume '{run}'" in capsys.readouterr().err

@pytest.fixture
def project(shapes, tmp_path, monkeypatch): # with a run; beside it is a folder with other photos, in which we are
    shutil.copytree(shapes, tmp_path/'project/photos')
    make_shapes(tmp_path/'elsewhere/photos', n=3)
    monkeypatch.chdir(tmp_path/'project')
    assert main(['train', 'photos', *SMALL, '--num-workers', '0']) == 0
    evaluate('runs/photos')
    monkeypatch.chdir(tmp_path/'elsewhere')
    return tmp_path/'project'

def test_a_run_is_used_from_another_folder(project, capsys):
    moved, there = project.with_name('moved'), '../moved/runs/photos'
    project.rename(moved)
    capsys.readouterr()
    for verb in ('eval', 'export', 'resume'): assert main([verb, there]) == 0, capsys.readouterr().err
    assert main(['resume', there, '--epochs', '3', '--num-workers', '0']) == 0
    assert 'are others' not in capsys.readouterr().out, "these are the pictures of the run"
    assert plan_from_yaml((moved/'runs/photos/config.yaml').read_text()).data.path == 'photos', "so it can be moved again"
    assert main(['train', '--plan', f'{there}/config.yaml']) == 0
    assert Path(Run('runs/photos').plan.data.path).samefile(moved/'photos'), "a run like it, here"
    ev, edits = Evaluation.load(there), Edits(there)
    assert moved in Path(ev.source(0)).resolve().parents and edits.root.samefile(moved/'photos')
    (moved/'runs/photos/config.yaml').write_bytes(b'\xff')
    assert len(Evaluation.load(there)) == len(ev), "the numbers do not need the plan"

def test_other_pictures_than_a_run_was_validated_on(project, capsys):
    (project/'photos').rename(project/'gone')
    assert main(['eval', '../project/runs/photos']) == 2, "those of that name in the working directory are not taken"
    assert main(['eval', '../project/runs/photos', '--data', 'photos']) == 0
    assert re.search('The run was validated on 12 pictures; these .* are others', capsys.readouterr().out)
    assert main(['eval', '../project/runs/photos', '--data', '../project/gone']) == 0
    assert 'are others' not in capsys.readouterr().out

def test_pictures_in_two_folders_that_moved_away(refused, trained_run, shapes, tmp_path):
    run = shutil.copytree(trained_run, tmp_path/'run')
    plan = plan_from_yaml((run/'config.yaml').read_text())
    (run/'config.yaml').write_text(plan_to_yaml(replace(plan, data=replace(plan.data, valid_path='held'))))
    assert "no 'held', which config.yaml in 'run' has as data.valid_path. If it was moved, write there" in refused('eval', 'run')
    assert '--data is one folder. Write into config.yaml' in refused('eval', 'run', '--data', shapes)

def test_a_checkpoint_for_a_run(refused, trained_run):
    for verb, option in (('resume', 'checkpoint'), ('eval', 'weights')):
        assert f'--{option} latest' in refused(verb, f'{trained_run}/latest')

def test_a_plan_for_a_config(refused, trained_run):
    assert 'imgcls train --plan' in refused('config', f'{trained_run}/config.yaml')
    for o in ('nowhere.yaml', '.'): assert f"no file '{o}' for --plan. Give a run's config.yaml" in refused('train', '--plan', o)

@pytest.mark.parametrize('verb', ['lab', 'app', 'serve'])
@pytest.mark.parametrize('port', ['-1', '65536', 'http'])
def test_what_is_no_port(verb, port, capsys):
    with pytest.raises(SystemExit): main([verb, *['model.onnx']*(verb == 'serve'), f'--port={port}'])
    assert f"'{port}' is no port; they are numbers from 0 to 65535" in capsys.readouterr().err

@pytest.mark.parametrize('out', ['made/', '.'])
def test_a_folder_to_export_into(imgcls, trained_run, tmp_path, out):
    assert main(['export', str(trained_run), '--out', out]) == 0
    assert (tmp_path/out/'model.onnx').is_file()

def test_a_config_for_a_model_file_is_not_for_training(imgcls, tmp_path, capsys):
    (tmp_path/'deploy it.yaml').write_text('Global: {use_gpu: False}\nPreProcess: {transform_ops: []}\nPostProcess: {}\n')
    assert main(['config', 'deploy it.yaml']) == 2
    said = capsys.readouterr().err
    assert "is for a model file and trains nothing. Label pictures with it: imgcls predict -c 'deploy it.yaml'" in said

@pytest.mark.skipif(os.name != 'posix', reason="signals")
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM], ids=lambda o: o.name) # as people do, and schedulers
def test_a_training_that_is_told_to_end_has_saved(shapes, tmp_path, how):
    process = start(tmp_path, 'train', shapes, *SMALL[:-1], 500, '--run', 'run', '--num-workers', 0)
    log = tmp_path/'run/run.jsonl'
    while process.poll() is None and not (log.exists() and b'"epoch"' in log.read_bytes()): time.sleep(.02)
    process.send_signal(how)
    assert 'imgcls: interrupted. Next: imgcls resume run' in done(process, 130)[1]
    event, = Run(tmp_path/'run').events('interrupted')
    assert read_manifest(tmp_path/'run', 'latest')['step'] == event['step'] and not (tmp_path/'run/run.lock').exists()

def test_output_to_a_pipe_that_closes(model_file, shapes, tmp_path):
    command = [sys.executable, '-m', 'imgcls_nb.cli', 'predict', str(model_file), *[str(shapes)]*50] # more than a pipe holds
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 141 and not err, err

def test_the_table_is_plain_where_there_is_no_terminal(trained):
    assert not re.search('[\r\x1b█]', trained[1]) and os.linesep in trained[1]

# Searching the networks

def test_models_are_searched(imgcls):
    out, _ = imgcls('models', 'MobileNetV3', '--max-params', '6', '--sort', 'params_m', '--limit', '3')
    assert 'mobilenetv3_small' in out and re.search(r'and \d+ more', out)
    params = [float(line.split()[1]) for line in out.splitlines()[1:4]]
    assert params == sorted(params) and max(params) <= 6

def test_models_that_there_are_not(imgcls, refused):
    assert imgcls('models', 'resnet18', '--min-top1', '99', status=1)[0] == 'There is no such network.\n'
    assert "Did you mean 'top1'?" in refused('models', '--sort', 'tpo1')

# Tutorials to take along

def test_tutorials_are_copied_once(imgcls, refused, tmp_path):
    said, _ = imgcls('tutorials', 'lessons')
    copies = sorted(o.relative_to(tmp_path/'lessons').as_posix() for o in (tmp_path/'lessons').rglob('*') if o.is_file())
    assert copies == [o.removeprefix('tutorials/') for o in list_shipped() if o.startswith('tutorials/')]
    assert f'{len(copies)} files were copied to lessons.' in said and 'Next: imgcls lab lessons' in said
    (tmp_path/'lessons/quickstart.ipynb').write_text('my notes')
    (tmp_path/'lessons/fine_tuning.ipynb').unlink()
    said, _ = imgcls('tutorials', 'lessons')
    assert '1 file was copied' in said and 'Kept as they are, because they were changed: quickstart.ipynb.' in said
    assert (tmp_path/'lessons/quickstart.ipynb').read_text() == 'my notes' and (tmp_path/'lessons/fine_tuning.ipynb').exists()
    (tmp_path/'taken').touch()
    assert "'taken' is a file" in refused('tutorials', 'taken')

def test_a_folder_whose_name_begins_with_a_dash(imgcls): # what is to be typed next would take it for an option
    assert 'Next: imgcls lab ./-lessons\n' in imgcls('tutorials', '--', '-lessons')[0]

def test_a_folder_at_home(imgcls, tmp_path, monkeypatch):
    for o in ('HOME', 'USERPROFILE'): monkeypatch.setenv(o, str(tmp_path/'home'))
    imgcls('tutorials', '~/lessons')
    assert (tmp_path/'home/lessons/quickstart.ipynb').is_file() and not (tmp_path/'~').exists()

@pytest.mark.parametrize('args', [['tutorials', ''], ['lab', ''], ['quickstart', ''], ['check-data', ''], ['eval', ''],
                                  ['train', 'photos', '--run', ''], ['predict', 'model.onnx', '']], ids=words)
def test_a_variable_that_was_not_set(refused, tmp_path, args):
    assert 'is given and empty, as a variable' in refused(*args) and not [*tmp_path.iterdir()]

def test_the_app_names_what_it_needs(refused, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert "imgcls app needs voila. Run: pip install 'imgcls_nb[train,lab,app]'" in refused('app')

@pytest.mark.skipif(os.name == 'nt', reason="signals")
def test_lab_serves_the_tutorials_on_this_machine_only(tmp_path):
    log = tmp_path/'log'
    with log.open('w') as f:
        server = subprocess.Popen([sys.executable, '-m', 'imgcls_nb.cli', 'lab', 'lessons', '--no-browser'], cwd=tmp_path,
                                  stdout=f, stderr=f, start_new_session=True)
    try:
        address = r'(http://127\.0\.0\.1:\d+)/lab/tree/quickstart\.ipynb\?token=(\w+)'
        url, token = wait_for(lambda: re.search(address, log.read_text()), 60, 'JupyterLab').groups()
        answer = wait_for(lambda: urllib.request.urlopen(f'{url}/api/contents?token={token}'), 30)
        assert 'quickstart.ipynb' in {o['name'] for o in json.load(answer)['content']}
        with pytest.raises(urllib.error.HTTPError, match='403'): urllib.request.urlopen(f'{url}/api/contents')
        server.terminate()
        server.wait(30)
        with pytest.raises(urllib.error.URLError, match='refused'): urllib.request.urlopen(url) # JupyterLab has ended with it
    finally:
        with suppress(ProcessLookupError): os.killpg(server.pid, signal.SIGKILL)
    assert 'files were copied to lessons' in log.read_text()
