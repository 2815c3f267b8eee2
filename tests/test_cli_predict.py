"`imgcls predict` and `infer`: as a person types it, and as PaddleClas's guide has it"
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from colours import COLOURS, colour, paint, write_model

from imgcls_nb.benchmark import _start_once, benchmark
from imgcls_nb.cli import main
from imgcls_nb.core import InputError
from imgcls_nb.deploy import Progress
from imgcls_nb.shipped import shipped_path

NAMES = [f'image_{i:05}_{list(COLOURS)[i % 3]}.jpg' for i in range(7)]

GUIDE = '''python3 python/predict_cls.py \\
    -c configs/inference_cls.yaml \\
    -o Global.infer_imgs=../dataset/flowers102/jpg/image_00001.jpg \\
    -o Global.inference_model_dir=../inference/ \\
    -o PostProcess.Topk.class_id_map_file=None
'''

@pytest.fixture
def deploy(tmp_path, monkeypatch):
    "A folder as the guide leaves it: the model in inference/, pictures in dataset/, and we are in deploy/"
    for o in ('inference', 'deploy'): (tmp_path/o).mkdir()
    write_model(tmp_path/'inference/inference.onnx')
    pictures = paint(tmp_path/'dataset/flowers102/jpg', NAMES)
    shutil.copy(pictures/NAMES[1], pictures/'image_00001.jpg')
    monkeypatch.chdir(tmp_path/'deploy')
    return tmp_path

@pytest.fixture
def imgcls(deploy, capsys):
    def run(*args, status=0):
        try: got = main(list(map(str, args)))
        except SystemExit as e: got = e.code
        out, err = capsys.readouterr()
        assert got == status and 'defect' not in err and 'Traceback' not in err, err
        return out, err
    return run

def words(command, prefix): return ['predict', *shlex.split(command.replace('\\\n', ' '))[len(prefix.split()):]]

def guide(*overrides): return [*words(GUIDE, 'python3 python/predict_cls.py'), *(p for o in overrides for p in ('-o', o))]

# The guide's command

LINE = r'^(\S+):\tclass id\(s\): (\[.*?\]), score\(s\): \[(.*?)\], label_name\(s\): (\[.*\])$'

def parse(out): return {m[1]: (json.loads(m[2]), m[3].split(', '), m[4]) for m in re.finditer(LINE, out, re.M)}

def test_the_guides_command_word_for_word(imgcls):
    out, err = imgcls(*guide())
    assert out.count('\n') == 1
    ids, scores, names = parse(out)['image_00001.jpg']
    assert ids[0] == 1 and all(re.fullmatch(r'[01]\.\d\d', o) for o in scores) and len(ids) == len(scores) == 3
    assert names.startswith("['green', ")
    assert 'CUDAExecutionProvider was preferred' in err and err.count('\n') == 1, "use_gpu is True in the file: a wish"

def test_the_guides_command_in_its_own_process(deploy):
    command = [sys.executable, '-m', 'imgcls_nb.cli', *guide('Global.infer_imgs=../dataset/flowers102/jpg')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and len(parse(done.stdout)) == 8
    assert list(parse(done.stdout)) == sorted(parse(done.stdout)) and '\r' not in done.stderr

@pytest.mark.parametrize('name', ['', '/', '/inference.onnx', '/inference.pdmodel', '/inference'])
def test_a_model_folder_or_a_file(imgcls, name):
    assert 'class id(s): [1, ' in imgcls(*guide(f'Global.inference_model_dir=../inference{name}'))[0]

def test_top_k_threads_and_batches(imgcls):
    changed = 'PostProcess.Topk.topk=2', 'Global.cpu_num_threads=1', 'Global.batch_size=3', 'Global.use_gpu=False'
    out, err = imgcls(*guide('Global.infer_imgs=../dataset/flowers102/jpg/', *changed))
    assert {len(o[0]) for o in parse(out).values()} == {2} and not err
    assert all(colour(k) == list(COLOURS)[v[0][0]] for k, v in parse(out).items() if k in NAMES)
    assert len(parse(imgcls(*guide(), '--topk', 1)[0])['image_00001.jpg'][0]) == 1

def test_names_from_a_class_id_map_file(imgcls, deploy):
    (deploy/'names.txt').write_text('0 rose, red\n1 oak, English oak\n2 sea\n')
    assert "['oak, English oak', " in imgcls(*guide('PostProcess.Topk.class_id_map_file=../names.txt'))[0]
    (deploy/'commas.txt').write_text('1,oak tree\n')
    commas = 'PostProcess.Topk.class_id_map_file=../commas.txt', 'PostProcess.Topk.delimiter=,'
    assert "['oak tree', " in imgcls(*guide(*commas))[0]
    plain, _ = imgcls('predict', '../inference', f'../dataset/flowers102/jpg/{NAMES[0]}', '--labels', '../names.txt')
    assert ': rose, red ' in plain

@pytest.mark.parametrize('size', [dict(resize_short=12), dict(resize_short=12, resize=8), dict(resize=8)], ids=str)
def test_resize_short_and_resize_both_work(imgcls, size):
    assert 'class id(s): [1, ' in imgcls(*guide(*(f'{k}={v}' for k, v in size.items())))[0]

def test_a_size_that_the_graph_does_not_take(imgcls):
    assert 'its pictures are [3, 9, 9], but its graph takes' in imgcls(*guide('resize_short=9', 'resize=9'), status=2)[1]

def test_what_is_not_said_with_o_is_the_models(imgcls, deploy):
    write_model(deploy/'inference/inference.onnx', threshold=.99)
    assert '[0.' in imgcls(*guide())[0], "PreProcess of the file says 224 pixels, the model says 8"
    assert 'takes' in imgcls(*guide('PreProcess.transform_ops.1.CropImage.size=224'), status=2)[1]

def test_a_file_that_is_not_ours(imgcls, deploy):
    write_model(deploy/'inference/inference.onnx', card=None)
    mine = deploy/'deploy/mine.yaml'
    mine.write_text('''Global: {infer_imgs: ../dataset/flowers102/jpg, inference_model_dir: ../inference}
PreProcess: {transform_ops: [ResizeImage: {resize_short: 8}, CropImage: {size: 8}, NormalizeImage: {}]}
PostProcess: {main_indicator: Topk, Topk: {topk: 1, class_id_map_file: null}}''')
    out, _ = imgcls('predict', '-c', mine)
    assert len(parse(out)) == 8 and all(names == '[]' for *_, names in parse(out).values())

def test_keys_of_the_file_are_checked_as_well(imgcls, deploy):
    text = shipped_path('configs/inference_cls.yaml').read_text('utf-8')
    (deploy/'deploy/mine.yaml').write_text(text.replace('use_gpu:', 'use_gqu:'), 'utf-8')
    command = ['mine.yaml' if 'inference_cls' in o else o for o in guide()]
    assert "Global.use_gqu is not a key that is read here. Did you mean 'use_gpu'" in imgcls(*command, status=2)[1]

def test_an_engine_and_a_threshold_beside_a_config(imgcls):
    told = imgcls(*guide(), '--engine', 'onnxruntime', '--threshold', '1', '--reject', 'nobody')[0]
    assert 'class id(s): [1, ' in told
    assert "--threads cannot stand beside -c" in imgcls(*guide(), '--threads', 2, status=2)[1]

# Providers: demanded or preferred

@pytest.mark.parametrize('overrides, says', [
    (['Global.use_gpu=True'], 'CUDAExecutionProvider was asked for'),
    (['Global.use_gpu=True', 'Global.use_tensorrt=True'], 'TensorrtExecutionProvider was asked for'),
    (['Global.use_gpu=False', 'Global.use_tensorrt=True'], 'needs a GPU'), (['Global.use_fp16=True'], 'use_tensorrt=True only'),
    (['Global.use_gpu=yes'], "use_gpu='yes' is not True or False"), (['Global.cpu_num_threads=0'], 'cpu_num_threads=0'),
    (['Global.use_gqu=False'], "Did you mean 'use_gpu'"), (['resize_shrt=9'], "Did you mean 'resize_short'"),
    (['PostProcess.Topk.top_k=1'], 'PostProcess.Topk.top_k is not a key'), (['batch_size=2'], 'The config has Global.batch_size'),
    (['PostProcess.main_indicator=ThreshOutput'], "main_indicator='ThreshOutput' is not supported"),
    (['Global.batch_size=two'], "batch_size='two'"),
    (['resize=big'], "resize='big'"), (['PostProcess.Topk.topk=0'], 'topk=0'), (['Global.infer_imgs=no.jpg'], "'no.jpg'"),
    (['PostProcess.Topk.class_id_map_file=no.txt'], "The class_id_map_file 'no.txt' cannot be read"),
    (['PostProcess.Topk.topkk=3'], "PostProcess.Topk.topkk is not a key that is read here. Did you mean 'topk'"),
    (['PostProcess.Topkk={}'], "PostProcess.Topkk is not a key that is read here. Did you mean 'Topk'"),
    (['Foo=1'], 'Foo is not a section'), (['PreProcess.transform_op=[]'], "Did you mean 'transform_ops'"),
    (['PostProcess=5'], 'PostProcess: expected keys and values'),
    (['Global.inference_model_dir=../nowhere'], 'no model file')], ids=' '.join)
def test_what_cannot_be_done_is_said(imgcls, overrides, says):
    out, err = imgcls(*guide(*overrides), status=2)
    assert says in err and not out

def test_mkldnn_beside_a_gpu_is_ignored_with_a_notice(imgcls, monkeypatch):
    from imgcls_nb.predict import Predictor
    assert 'mkldnn' not in imgcls(*guide('Global.enable_mkldnn=True'))[1]
    monkeypatch.setattr(Predictor, 'provider', 'CUDAExecutionProvider')
    assert 'enable_mkldnn is ignored' in imgcls(*guide('Global.enable_mkldnn=True'))[1]

# Plainly

def test_into_files(imgcls, deploy):
    for kind in ('csv', 'json', 'jsonl'):
        out, err = imgcls('predict', '../inference', '../dataset', '--topk', 2, '--out', f'o.{kind}')
        assert out == f'o.{kind}: 8 pictures\n' and not err
    one = '../dataset/flowers102/jpg/image_00001.jpg'
    assert imgcls('predict', '../inference', one, '--out', '1.csv')[0] == '1.csv: 1 picture\n'
    table = list(csv.DictReader(Path('o.csv').open(newline='')))
    assert [o['source'] for o in table] == sorted(o['source'] for o in table) and {o['sure'] for o in table} == {'True'}
    assert [o['label'] for o in table] == [o['label'] for o in json.loads(Path('o.json').read_text())]
    assert os.listdir() and not [o for o in os.listdir() if o.endswith('.part')]

def test_the_status_tells_whether_all_were_read(imgcls, deploy):
    (deploy/'dataset/flowers102/jpg/zz.jpg').write_text('no picture')
    out, err = imgcls('predict', '../inference', '../dataset', status=1)
    assert len(out.splitlines()) == 8 and '1 of 9 pictures could not be read' in err
    out, _ = imgcls('predict', '../inference', '../dataset', '--out', 'o.csv', status=1)
    assert out == 'o.csv: 9 pictures (1 without an answer)\n'
    assert imgcls(*guide('Global.infer_imgs=../dataset'), status=1)[0].count('class id(s)') == 8

@pytest.mark.skipif(os.name != 'posix', reason="needs names that Windows forbids")
def test_a_picture_has_one_line_whatever_its_name(imgcls, deploy, trained_run):
    names = ['a\nb.png', '\x1b[31mred.png', 'c\u2028d\u0085.png', 'at 3.45\u202fPM 方形.png', os.fsdecode(b'\xff.png')]
    for o in names: shutil.copy(deploy/'dataset/flowers102/jpg/image_00001.jpg', paint(deploy/'odd', [])/o)
    said = [r'\x1b[31mred.png', r'a\nb.png', 'at 3.45\u202fPM 方形.png', r'c\u2028d\x85.png', r'\udcff.png']
    for args, end in ((('predict', '../inference', '../odd'), ': '), (guide('Global.infer_imgs=../odd'), ':\tclass'),
                      (('infer', trained_run, '../odd'), ': ')):
        lines = imgcls(*args)[0].splitlines()
        assert sorted(o.partition(end)[0].removeprefix('../odd/') for o in lines) == sorted(said)
    for o in names: (deploy/'odd'/o).write_bytes(b'none')
    err = imgcls('predict', '../inference', '../odd', status=1)[1].splitlines()
    assert len(err) == 6 and not any('\x1b' in o for o in err)

def test_patterns_and_thresholds(imgcls):
    out, _ = imgcls('predict', '../inference', '../dataset/*/*/*red.jpg', '--threshold', 1, '--reject', 'unknown', '--topk', 1)
    assert len(out.splitlines()) == 3 and out.count('(unknown)') == 3

@pytest.mark.parametrize('args, says', [
    ([], 'takes a model.onnx and pictures'), (['../inference'], 'takes a model.onnx and pictures'),
    (['../inference', '../dataset', '-o', 'Global.batch_size=2'], 'Name the file: -c'),
    (['../inference', '../dataset', '--engine', 'onxruntime'], "Did you mean 'onnxruntime'"),
    (['../inference', '../dataset', '--out', 'o.xls'], 'end in .csv'),
    (['../inference', '../deploy'], 'no pictures in ../deploy'),
    (['-c', 'configs/inference_cls.yaml', '--threads', '2'], '--threads cannot stand beside -c'),
    (['-c', 'configs/inference_cls.yaml'], "Global.inference_model_dir=./inference: There is no model file"),
    (['../deploy', '../dataset'], "no model file in the folder '../deploy'"),
    (['../inference', '../dataset', '--out', '/proc/o.csv'], "'/proc/o.csv.part' cannot be written"),
    *((['../inference', '../dataset', f'--{k}', '0'], f"--{k}: '0' is no whole number") for k in ('topk', 'bs', 'threads'))],
    ids=' '.join)
def test_slips(imgcls, args, says):
    out, err = imgcls('predict', *args, status=2)
    assert says in err and not out

@pytest.mark.parametrize('out, says', [(['--out', 'o.csv'], 'kept beside o.csv, and the same command'), ([], 'interrupted.')])
def test_interrupted(imgcls, monkeypatch, out, says):
    from imgcls_nb.predict import Predictor
    def stop(*_): raise KeyboardInterrupt
    monkeypatch.setattr(Predictor, '_label', stop)
    _, err = imgcls('predict', '../inference', '../dataset', *out, status=130)
    assert says in err and 'resume RUN' not in err

def test_a_model_file_is_no_run(imgcls):
    for verb in ('infer', 'export', 'eval'):
        assert 'imgcls predict ../inference/inference.onnx' in imgcls(verb, '../inference/inference.onnx', status=2)[1]

@pytest.mark.parametrize('how', [('serve', '--max-mb', 0), ('serve', '--timeout', -1), ('serve', '--timeout', 'nan'),
                                 ('benchmark', '../dataset', '--limit', 0), ('benchmark', '../dataset', '--seconds', 0)], ids=str)
def test_limits_that_are_none(imgcls, how):
    verb, *rest = how
    assert ' is no ' in imgcls(verb, '../inference', *rest, status=2)[1]

def test_a_benchmark_is_shown_before_it_is_saved(imgcls):
    how = '--seconds', .05, '--engine', 'onnxruntime', '--json', '/proc/t.json'
    out, err = imgcls('benchmark', '../inference', '../dataset', *how, status=2)
    assert '| onnxruntime fp32 |' in out and "'/proc/.t.json.part': No such file or directory." in err

@pytest.mark.parametrize('file, says', [('no/such/t.json', "there is no folder 'no/such'"), ('.', "'.' is a folder")])
@pytest.mark.parametrize('verb', [('benchmark', 'nothing', 'nothing'), ('check-data', 'nothing')], ids=lambda o: o[0])
def test_a_place_that_is_none_is_refused_before_the_work(imgcls, verb, file, says):
    assert says in imgcls(*verb, '--json', file, status=2)[1]

def test_infer_writes_files_too(imgcls, trained_run, shapes):
    out, _ = imgcls('infer', trained_run, shapes/'circle', '--out', 'o.jsonl', '--topk', 2)
    lines = Path('o.jsonl').read_text().splitlines()
    assert out == 'o.jsonl: 20 pictures\n' and {len(json.loads(o)['topk']) for o in lines} == {2}

# Progress

class Terminal:
    def __init__(self, tty): self.tty, self.text = tty, ''
    def isatty(self): return self.tty
    def write(self, text): self.text += text
    def flush(self): pass

def test_progress_is_for_terminals():
    for tty in (True, False):
        to = Terminal(tty)
        progress = Progress(200, to, every=0)
        for n in (101, 150, 200): progress(n)
        progress.close()
        assert bool(to.text) == tty
        if tty: assert '[###############.....] 150 of 200' in to.text and to.text.endswith('\r\x1b[K')
    to = Terminal(True)
    Progress(None, to, every=0)(7)
    assert '7 pictures' in to.text


# Benchmark

def test_benchmark(imgcls, deploy, monkeypatch):
    monkeypatch.setenv('IMGCLS_CACHE', str(deploy/'cache'))
    write_model(deploy/'inference/inference.onnx', code=dict(arch='resnet18'))
    for o in COLOURS: paint(deploy/'sorted'/o, [f'{o}_1.png', f'{o}_2.png'])
    (deploy/'sorted/red/bad.png').write_text('no picture')
    out, _ = imgcls('benchmark', '../inference', '../sorted', '--seconds', .05, '--json', 'times.json', '--engine', 'onnxruntime')
    assert '| onnxruntime fp32 |' in out and '100.00% | chosen by auto |' in out
    report = json.loads(Path('times.json').read_text())
    (o,) = report['timings']
    assert report['chosen'] == 'onnxruntime fp32' and (o['top1'], o['pictures'], o['proven']) == (1, 6, True)
    assert 0 < o['p50_ms'] <= o['p90_ms'] <= o['p99_ms'] and o['run_ms'] < o['p50_ms'] and o['images_s'] > 0
    assert .05 < o['start_s'] < 60 and (sys.platform != 'linux' or 20 < o['memory_mb'] < 1000)
    pytest.importorskip('timm')
    from imgcls_nb.zoo import models_table
    assert models_table('resnet18', pretrained_only=False).query('size == 8').empty, "there is no row for 8 pixels"
    noted = json.loads((deploy/'cache/latency/measured.jsonl').read_text())
    assert (noted['name'], noted['size'], noted['engine']) == ('resnet18', [8, 8], 'onnxruntime')

def test_a_process_that_dies_without_a_word():
    with pytest.raises(InputError, match='ended with status 9, without a word'):
        _start_once([sys.executable, '-c', 'import os; os._exit(9)'])
    for how in (dict(limit=0), dict(bs=0)):
        with pytest.raises(InputError, match=f'{next(iter(how))}=0 is no number'): benchmark('model.onnx', 'pictures', **how)

def test_benchmark_without_labels_or_pictures(imgcls):
    out, _ = imgcls('benchmark', '../inference', '../dataset', '--seconds', .05, '--engine', 'onnxruntime')
    assert '% |' not in out
    assert 'no pictures' in imgcls('benchmark', '../inference', '../deploy', status=2)[1]
    assert "engine='abacus' is not here" in imgcls('benchmark', '../inference', '../dataset', '--engine', 'abacus', status=2)[1]
