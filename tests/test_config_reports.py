"What a training from a config tells: the original's lines, its logs, its events, and validations left out"
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls_nb.cli import main
from imgcls_nb.config import plan_from_config, read_config
from imgcls_nb.config.inference import save_answers
from imgcls_nb.learner import train_plan
from imgcls_nb.runs import Run
from imgcls_nb.words import plan_in_words

QUICK = 'configs/quick_start/MobileNetV3_large_x1_0.yaml'

@pytest.fixture
def small(tmp_path, monkeypatch):
    "Overrides that bring the shipped config to few pictures of six classes and a small network"
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path('data').mkdir()
    for i in range(24): Image.fromarray(rng.integers(0, 256, (40, 44, 3), np.uint8)).save(f'data/{i}.png')
    Path('data/list.txt').write_text(''.join(f'{i}.png {i % 6}\n' for i in range(24)))
    settings = ['Arch.name=test_resnet', 'Arch.class_num=6', 'Global.epochs=2', 'Global.device=cpu', 'Global.print_batch_step=2',
                'Optimizer.lr.warmup_epoch=1', 'DataLoader.Train.sampler.batch_size=8', 'Infer.transforms=None',
                'Global.image_shape=None', 'DataLoader.Eval.dataset.transform_ops.1.ResizeImage.resize_short=36',
                'DataLoader.Eval.dataset.transform_ops.2.CropImage.size=32', 'Infer.PostProcess.class_id_map_file=None',
                'DataLoader.Train.dataset.transform_ops.1.RandCropImage.size=32']
    for k in ('Train', 'Eval'):
        settings += [f'DataLoader.{k}.dataset.image_root=data', f'DataLoader.{k}.dataset.cls_label_path=data/list.txt',
                     f'DataLoader.{k}.loader.num_workers=0']
    return settings

def train(small, *more): return train_plan(plan_from_config(read_config(QUICK, [*small, *more])))

NUMBER, STAMP = r'\d+\.\d{5}', r'\[\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\] imgcls INFO: '
LOSS = f'CELoss: {NUMBER}, loss: {NUMBER}'

def test_the_lines_of_a_training(small, capsys):
    run = train(small).run_folder
    told = capsys.readouterr().out
    iters = re.findall(rf'{STAMP}\[Train\]\[Epoch (\d)/2\]\[Iter: (\d)/3\]lr\(LinearWarmup\): (\d\.\d{{8}}), {LOSS}, '
                       rf'top1: {NUMBER}, top5: {NUMBER}, '
                       rf'batch_cost: {NUMBER}s, reader_cost: {NUMBER}, ips: {NUMBER} samples/s, eta: \d+:\d\d:\d\d\n',
                       told)
    assert [o[:2] for o in iters] == [('1', '0'), ('1', '2'), ('2', '0'), ('2', '2')]
    assert [float(o[2]) for o in iters[:3]] == pytest.approx([0, .00375*2/3, .00375], abs=1e-8)
    assert len(re.findall(rf'{STAMP}\[Train\]\[Epoch \d/2\]\[Avg\]{LOSS}, top1: {NUMBER}, top5: {NUMBER}\n', told)) == 2
    found = re.findall(rf'{STAMP}\[Eval\]\[Epoch (\d)\]\[Avg\]{LOSS}, top1: ({NUMBER}), top5: {NUMBER}\n', told)
    assert [o[0] for o in found] == ['1', '2']
    assert len(re.findall(rf'{STAMP}\[Eval\]\[Epoch \d\]\[best metric: [\d.]+\]\n', told)) == 2
    assert len(re.findall(rf'\[Eval\]\[Epoch \d\]\[Iter: 0/1\]{LOSS}, .*ips: {NUMBER} images/sec\n', told)) == 2
    log = (run.path/'train.log').read_text().splitlines()
    said = [o for o in told.splitlines() if 'INFO' in o]
    assert log[-len(said):] == said, "the log has the same lines"
    head = '\n'.join(re.sub(STAMP, '', o) for o in log[:-len(said)])
    assert head == plan_in_words(run.plan) and 'Departures:\n- There is no AMP section' in head, "behind what is trained"
    assert [f"{o['top1']:.5f}" for o in run.events('epoch')] == [o[1] for o in found], "and the run the same numbers"
    assert 'train_loss' not in told and '\r' not in told, "no table and no bar"

def test_no_hits_while_mixing(small, capsys):
    mixing = 'DataLoader.Train.dataset.batch_transform_ops=[{"MixupOperator": {"alpha": 0.2}}]'
    run = train(small, mixing, 'Global.epochs=1').run_folder
    told = capsys.readouterr().out
    assert re.search(rf'\[Train\]\[Epoch 1/1\]\[Avg\]{LOSS}\n', told) and re.search(rf'\[Eval\].*\[Avg\]{LOSS}, top1', told)
    assert 0 <= [*run.events('epoch')][0]['train_top1'] <= 1, "against the larger part of a label"

def test_a_bar_on_a_terminal(small, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True, raising=False)
    train(small, 'Global.epochs=1')
    assert '\r\033[K' in capsys.readouterr().out and '\r' not in Path('output/test_resnet/train.log').read_text()

def test_averages_have_a_best_of_their_own(small, capsys):
    train(small, 'EMA.decay=0.5')
    told = capsys.readouterr().out
    assert len(re.findall(r'\[best metric ema: [\d.]+\]', told)) == 2 and told.count('[Eval][Epoch 1][Avg]') == 1

@pytest.mark.parametrize('more, validated', [
    ((), [1, 2, 3, 4]), (['Global.eval_interval=2'], [2, 4]), (['Global.start_eval_epoch=2'], [3, 4]),
    (['Global.eval_during_train=False'], [])], ids=str)
def test_validations_left_out(small, more, validated, capsys):
    run = train(small, 'Global.epochs=4', *more).run_folder
    assert [o['epoch'] for o in run.events('epoch') if 'valid_loss' in o] == validated
    assert [int(o) for o in re.findall(r'\[Eval\]\[Epoch (\d)\]\[Avg\]', capsys.readouterr().out)] == validated
    best = [o['epoch'] for o in run.events('checkpoint') if o['best']][-1]
    if validated: assert best in validated, "what was not validated is not the best"
    else: assert best == min(run.events('epoch'), key=lambda o: o['train_loss'])['epoch']

def test_events_with_the_tags_of_visualdl(small):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = train(small, 'Global.use_visualdl=True', 'EMA.decay=0.5').run_folder
    read = EventAccumulator(str(run.path/'tensorboard'), size_guidance=dict(images=0, histograms=0)).Reload()
    scalars = {'lr(LinearWarmup)', 'train_CELoss', 'train_loss', 'train_top1', 'train_top5', 'eval_acc', 'eval_acc_ema'}
    tags = read.Tags()
    assert scalars <= set(tags['scalars']) and tags['graph'] and any(o.startswith('train_batch') for o in tags['images'])
    assert any(o.startswith('weights/') for o in tags['histograms'])
    assert not any(o.startswith('eval_ema') for o in tags['scalars']), "what is averaged has one name"
    top1 = [o['top1'] for o in run.events('epoch')]
    assert [o.value for o in read.Scalars('eval_acc')] == pytest.approx(top1)
    assert [o.step for o in read.Scalars('eval_acc')] == [1, 2] and len(read.Scalars('lr(LinearWarmup)')) == 4
    assert [*(run.path/'tensorboard').rglob('tensors.tsv')], "the projector's features"

def args(small, *more): return [p for o in (*small, *more) for p in ('-o', o)]

def test_the_guide_command_for_command(small, capsys):
    assert main(['train', '-c', QUICK, *args(small)]) == 0
    files = {o.name for o in Path('output/test_resnet').iterdir()}
    assert {'epoch_1.safetensors', 'epoch_2.safetensors', 'best_model.safetensors', 'latest.safetensors'} <= files
    assert main(['train', '-c', QUICK, *args(small, 'Global.checkpoints=output/test_resnet/epoch_1', 'Global.epochs=2')]) == 0
    assert [o['epoch'] for o in Run('output/test_resnet').events('resume')] == [1]
    capsys.readouterr()
    for name in ('best_model', 'best_model.safetensors', 'epoch_2'):
        weights = f'Global.pretrained_model=./output/test_resnet/{name}'
        assert main(['eval', '-c', QUICK, *args(small, weights)]) == 0
        assert re.search(rf'\[Eval\]\[Epoch 0\]\[Avg\]{LOSS}, top1: {NUMBER}, top5: {NUMBER}\n', capsys.readouterr().out)
    assert len(Path('output/test_resnet/eval.log').read_text().splitlines()) == 3
    assert main(['infer', '-c', QUICK, *args(small, weights, 'Infer.infer_imgs=data/1.png', 'Infer.save_dir=out/x')]) == 0
    assert '"file_name": "data/1.png"' in Path('out/x.json').read_text()
    assert main(['export', '-c', QUICK, *args(small, weights)]) == 0 and Path('inference/inference.onnx').exists()

def test_answers_that_end_early_leave_no_draft(tmp_path):
    def answers():
        yield dict(class_ids=[0])
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): save_answers(answers(), tmp_path/'x.json')
    assert not list(tmp_path.iterdir())

@pytest.mark.parametrize('verb', ['eval', 'infer', 'export'])
@pytest.mark.parametrize('weights, says', [
    ((), 'needs weights'), (['Global.pretrained_model=output/best_modell'], "no weights at 'output/best_modell'"),
    (['Arch.pretrained=True'], 'not in the cache, and the hub cannot be reached')], ids=str)
def test_without_weights_nothing_is_answered(verb, weights, says, small, capsys):
    Path('output').mkdir()
    assert main([verb, '-c', QUICK, *args(small, 'Infer.infer_imgs=data', *weights)]) == 2
    assert re.search(says, capsys.readouterr().err)

def test_a_list_of_pictures(small, capsys):
    main(['train', '-c', QUICK, *args(small, 'Global.epochs=1')])
    Path('list.txt').write_text('3.png 0\n5.png\n')
    Path('data/6.png').write_text('no picture')
    capsys.readouterr()
    how = args(small, 'Global.pretrained_model=output/test_resnet/latest', 'Infer.infer_imgs=data', 'Infer.batch_size=2')
    assert main(['infer', '-c', QUICK, *how, '-o', 'Infer.infer_list=list.txt']) == 0
    assert re.findall(r"'file_name': '(.*?)'", capsys.readouterr().out) == ['data/3.png', 'data/5.png']
    assert main(['infer', '-c', QUICK, *how]) == 1, "one of the folder cannot be read"
    out, err = capsys.readouterr()
    assert len(re.findall("'file_name'", out)) == 23 and 'data/6.png' in err, "and its neighbours are answered"
    assert main(['infer', '-c', QUICK, *how, 'data/1?.png']) == 0
    assert re.findall(r"'file_name': '(.*?)'", capsys.readouterr().out) == [f'data/{i}.png' for i in range(10, 20)]
    Path('empty').mkdir()
    assert main(['infer', '-c', QUICK, *how, 'empty']) == 2 and 'no pictures in empty' in capsys.readouterr().err
    assert main(['infer', '-c', QUICK, *how, '-o', 'Infer.infer_imgs=empty']) == 2
    assert 'no pictures in empty' in capsys.readouterr().err
    assert main(['infer', '-c', QUICK, *how, '--bs', '2']) == 2 and '--bs cannot stand beside -c' in capsys.readouterr().err
    assert main(['infer', '-c', QUICK, *how, '--out', 'o.csv']) == 1
    assert capsys.readouterr().out == 'o.csv: 24 pictures (1 without an answer)\n' and 'data/3.png' in Path('o.csv').read_text()
    assert main(['infer', '-c', QUICK, *how, '-o', 'Infer.infer_list=list.txt', '--out', 'l.csv']) == 0
    assert [o.partition(',')[0] for o in Path('l.csv').read_text().splitlines()[1:]] == ['data/3.png', 'data/5.png']

def test_what_the_best_is_told_by(small, capsys):
    run = train(small, 'Metric.Eval.0.TopkAcc.topk=[2, 1]').run_folder
    told, epochs = capsys.readouterr().out, [*run.events('epoch')]
    best = [float(o) for o in re.findall(r'\[best metric: ([\d.]+)\]', told)]
    assert best == [epochs[0]['top2'], max(o['top2'] for o in epochs)] and run.plan.monitor == 'top2'

def test_weights_of_paddle_are_pointed_out(small, capsys):
    Path('theirs').mkdir()
    Path('theirs/best_model.pdparams').touch()
    for weights in ('theirs/best_model', 'theirs/best_model.pdparams', 'theirs'):
        assert main(['eval', '-c', QUICK, *args(small, f'Global.pretrained_model={weights}')]) == 2
        assert 'imgcls convert theirs/best_model.pdparams --arch NAME' in capsys.readouterr().err
    assert main(['train', '-c', QUICK, *args(small, 'Global.checkpoints=theirs/best_model')]) == 2
    assert 'its weights can be converted with imgcls convert' in capsys.readouterr().err
    assert main(['eval', '-c', QUICK, *args(small, 'Global.pretrained_model=https://a/b.pdparams?c=d')]) == 2
    assert "'https://a/b.pdparams?c=d' is an address. Fetch the file" in capsys.readouterr().err

def test_going_on_with_other_lines_and_with_other_settings(small, capsys):
    main(['train', '-c', QUICK, *args(small)])
    again = args(small, 'Global.checkpoints=output/test_resnet/epoch_1', 'Global.print_batch_step=1', 'Global.use_visualdl=True')
    assert main(['train', '-c', QUICK, *again]) == 0, "what is told of a training does not change it"
    assert [o['exact'] for o in Run('output/test_resnet').events('resume')] == [True]
    again += ['-o', 'Global.seed=7']
    assert main(['train', '-c', QUICK, *again]) == 2 and '--allow seed' in capsys.readouterr().err
    assert main(['train', '-c', QUICK, *again, '--allow', 'seed']) == 0
