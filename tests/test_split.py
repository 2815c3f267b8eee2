"Several processes label one list of pictures: one result, as one process makes it, also after kills"
import ast
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import labelling
import numpy as np
import onnx
import pytest
from colours import PREPROCESS, write_model
from PIL import Image

from imgcls_nb.cli import main
from imgcls_nb.core import LAUNCHED, InputError, ModelCard
from imgcls_nb.deploy import find_all
from imgcls_nb.inputs import iter_pictures, own_cpus
from imgcls_nb.predict import Predictor
from imgcls_nb.running import read_providers
from imgcls_nb.sharing import label_in_turn, own_turns, stream_in_turn

N = 47 # pictures, the last batch is not full
linux = pytest.mark.skipif(sys.platform != 'linux', reason="processes end with their launcher on Linux only")

def random_network(classes=10, width=8):
    "A convolution and a layer, whose weights mean nothing"
    helper, t, rng = onnx.helper, onnx.TensorProto.FLOAT, np.random.default_rng(42)
    sizes = dict(w=(width, 3, 3, 3), a=(classes, width), b=(classes,))
    weights = [helper.make_tensor(k, t, v, rng.normal(0, 1, v).astype(np.float32).ravel()) for k, v in sizes.items()]
    nodes = [helper.make_node('Conv', ['image', 'w'], ['maps']), helper.make_node('Relu', ['maps'], ['on']),
             helper.make_node('GlobalAveragePool', ['on'], ['avg']), helper.make_node('Flatten', ['avg'], ['flat']),
             helper.make_node('Gemm', ['flat', 'a', 'b'], ['logits'], transB=1)]
    graph = helper.make_graph(nodes, 'random', [helper.make_tensor_value_info('image', t, ['batch', 3, 8, 8])],
                              [helper.make_tensor_value_info('logits', t, ['batch', classes])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A model, and digits in two folders, one of them no picture"
    from sklearn.datasets import load_digits
    place = tmp_path_factory.mktemp('split')
    write_model(place/'model.onnx', ModelCard(tuple(map(str, range(10))), PREPROCESS), random_network())
    for o in ('a', 'b'): (place/'digits'/o).mkdir(parents=True)
    for i, o in enumerate(load_digits().images[:N]):
        Image.fromarray((o*15).astype(np.uint8)).resize((16, 16)).save(place/f'digits/{"ab"[i%2]}/{i:02}.png')
    (place/'digits/a/12.png').write_text('no picture')
    return place

@pytest.fixture
def alone(place, tmp_path, monkeypatch):
    "What one process writes"
    def run(name, *args, bs=2):
        monkeypatch.chdir(place)
        assert main(['predict', 'model.onnx', 'digits', '--bs', str(bs), '--out', str(tmp_path/name), *args]) == 1
        return (tmp_path/name).read_bytes()
    return run

def imgcls(*args): return [sys.executable, '-m', 'imgcls_nb.cli', *map(str, args)]

def finish(command, cwd):
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, cwd=cwd)
    return done.returncode, done.stdout, done.stderr

def launch(cwd, nproc, *args, options=()): return finish(imgcls('launch', '--nproc', nproc, *options, *args), cwd)

def script(how, notes, *outs): return 'python', labelling.__file__, 'model.onnx', 'digits', notes, how, *outs

def noted(notes): return [o for file in notes.glob('*.txt') for o in file.read_text().splitlines()]

# One result

def test_one_file_as_one_process_writes_it(place, tmp_path, alone):
    out = tmp_path/'two.csv'
    status, said, errors = launch(place, 2, 'predict', 'model.onnx', 'digits', '--bs', 2, '--out', out)
    assert (status, said, errors) == (1, f'{out}: {N} pictures (1 without an answer)\n', '')
    assert out.read_bytes() == alone('one.csv') and sorted(os.listdir(tmp_path)) == ['one.csv', 'two.csv']
    sources = [o.partition(',')[0] for o in out.read_text().splitlines()[1:]]
    assert sources == sorted(sources) and len({*sources}) == N and 'digits/a/12.png' in sources[6]

def test_every_format_and_each_picture_once(place, tmp_path, alone):
    names = ['o.jsonl', 'o.json'] + ['o.parquet']*(pytest.importorskip('pyarrow') is not None)
    (tmp_path/'many').mkdir()
    (tmp_path/'notes').mkdir()
    assert launch(place, 3, *script('', tmp_path/'notes', *(tmp_path/'many'/o for o in names)))[0] == 0
    for o in names: assert (tmp_path/'many'/o).read_bytes() == alone(o), o
    assert sorted(noted(tmp_path/'notes')) == sorted(o.name for o in place.glob('digits/*/*') for _ in names)
    each = [len(o.read_text().splitlines()) for o in (tmp_path/'notes').glob('*.txt')]
    assert sorted(each) == [15*3, 16*3, 16*3], "dealt out evenly"

def test_lines_in_order_once(place, capfd, monkeypatch):
    monkeypatch.chdir(place)
    Path('list.txt').write_text(''.join(f'digits/{"ab"[i%2]}/{i:02}.png {i%10}\n' for i in (*range(20, 9, -1), 99)))
    asked = 'predict', 'model.onnx', 'list.txt', '--bs', '2', '--topk', '2'
    assert main([*asked]) == 1
    one = capfd.readouterr()
    assert launch(place, 2, *asked) == (1, one.out, one.err)
    assert re.findall(r'^digits/./(\d+)', one.out, re.M) == [str(i) for i in range(20, 9, -1) if i != 12]
    assert 'digits/b/99.png' in one.err and '2 of 12 pictures could not be read' in one.err

def test_infer_gives_its_dicts_in_order_once(place, tmp_path, capsys, monkeypatch):
    import torch
    from safetensors.torch import save_file

    from imgcls_nb.models import create_model
    monkeypatch.chdir(place)
    torch.manual_seed(0)
    save_file(create_model('test_resnet', False, 10, size=32).state_dict(), tmp_path/'w.safetensors')
    settings = ['Arch.name=test_resnet', 'Arch.class_num=10', 'Global.device=cpu', f'Global.pretrained_model={tmp_path}/w',
                'Infer.infer_imgs=digits', 'Infer.batch_size=3']
    asked = ['infer', '-c', 'configs/quick_start/digits.yaml', *(p for o in settings for p in ('-o', o))]
    def answers(said): return [ast.literal_eval(o.partition('INFO: ')[2]) for o in said.splitlines() if 'INFO: ' in o]
    assert main(asked) == 1
    one = answers(capsys.readouterr().out)
    assert [len(o) for o in one] == [3, 3, 2, *[3]*12, 2]
    (tmp_path/'commands.json').write_text(json.dumps([asked, [*asked, '-o', f'Infer.save_dir={tmp_path}/all'],
                                                      [*asked, '--out', f'{tmp_path}/o.jsonl']]))
    status, said, errors = launch(place, 2, 'python', labelling.__file__, tmp_path/'commands.json')
    assert status == 0 and answers(said) == one and errors.count('1 of 47 pictures could not be read') == 2, errors
    assert re.sub('.*INFO.*\n', '', said) == (f'status 1\n46 answers are in {tmp_path}/all.json.\nstatus 1\n'
                                               f'{tmp_path}/o.jsonl: 47 pictures (1 without an answer)\nstatus 1\n')
    assert json.loads((tmp_path/'all.json').read_text()) == sum(one, [])
    labels = [json.loads(o)['label'] for o in (tmp_path/'o.jsonl').read_text().splitlines()]
    assert len(labels) == N and [o for o in labels if o] == [str(x['class_ids'][0]) for o in one for x in o]
    assert len(os.listdir(tmp_path)) == 4, "no process writes for itself"

# Shards

@pytest.fixture(scope='module')
def shards(place):
    "The digits in three tar files, in their order"
    names = sorted(o.relative_to(place).as_posix() for o in place.glob('digits/*/*'))
    (place/'shards').mkdir()
    for k in range(3):
        with tarfile.open(place/f'shards/{k}.tar', 'w') as tar:
            for o in names[16*k:16*k + 16]: tar.add(place/o, o)
    return [f'shards/{i//16}.tar:{o}' for i, o in enumerate(names)]

def test_shards_are_labelled_as_their_pictures_are(place, tmp_path, shards, alone):
    files = [json.loads(o) for o in alone('files.jsonl').splitlines()]
    assert main(['predict', 'model.onnx', 'shards', '--bs', '2', '--out', str(tmp_path/'one.jsonl')]) == 1
    rows = [json.loads(o) for o in (tmp_path/'one.jsonl').read_text().splitlines()]
    assert [o['source'] for o in rows] == shards and rows[6]['error'].startswith('shards/0.tar:digits/a/12.png: not a picture')
    for one, other in zip(rows, files): assert {**other, 'source': one['source'], 'error': one['error']} == one
    Path('shards.txt').write_text(''.join(f'shards/{k}.tar\n' for k in range(3)))
    assert [*map(str, find_all(['shards.txt']))] == [*map(str, find_all('shards'))] == shards
    preds = Predictor('model.onnx').batch('shards/*.tar', bs=2) # in Python as on the command line
    assert [(o.source, o.label) for o in preds] == [(o['source'], o['label']) for o in rows]

def test_several_processes_go_on_within_a_shard(place, tmp_path, shards, monkeypatch):
    monkeypatch.chdir(place)
    def stop(n):
        if n == 21: raise KeyboardInterrupt
    out, predict = tmp_path/'many.csv', ('predict', 'model.onnx', 'shards', '--bs', 2, '--out')
    predictor = Predictor('model.onnx', threads=1)
    with pytest.raises(KeyboardInterrupt): predictor.stream(find_all(['shards']), out, bs=2, progress=stop)
    status, said, errors = launch(place, 2, *predict, out)
    assert (status, said, errors) == (1, f'{out}: {N} pictures (1 without an answer, 21 from before)\n', '')
    assert main([*map(str, predict), str(tmp_path/'one.csv')]) == 1
    assert out.read_bytes() == (tmp_path/'one.csv').read_bytes()

@pytest.mark.parametrize('change, says', [
    (gzip.compress, 'is compressed with gzip'), (lambda o: o[:5000], 'cannot be read as a tar file'),
    (lambda o: bytes(10240), 'no pictures in')], ids=['packed', 'cut', 'empty'])
def test_shards_that_cannot_be_read_are_named(place, shards, tmp_path, change, says):
    odd = tmp_path/'odd.tar'
    odd.write_bytes(change((place/'shards/0.tar').read_bytes()))
    with pytest.raises(InputError, match=says) as e: list(find_all([odd]))
    assert str(odd) in str(e.value)

def test_what_is_a_shard(tmp_path):
    for o in ('a.tar.jpg', 'b.jpg', 'c.tar'): (tmp_path/o).touch()
    assert [Path(o).name for o in find_all([tmp_path])] == ['a.tar.jpg', 'b.jpg'], "pictures, whatever lies beside them"

# Kills

@linux
def test_all_are_killed_and_others_go_on(place, tmp_path, alone):
    notes, out = tmp_path/'notes', tmp_path/'o.csv'
    notes.mkdir()
    job = subprocess.Popen(imgcls('launch', '--nproc', 2, *script('wait:11', notes, out)), cwd=place, start_new_session=True)
    end = time.monotonic() + 100
    while not (notes/'waits').exists() and time.monotonic() < end: time.sleep(.05)
    part = out.with_name('o.csv.part')
    assert part.read_bytes().count(b'\n') == 1 + 11
    time.sleep(1)
    os.killpg(job.pid, signal.SIGKILL)
    assert job.wait(30) == -signal.SIGKILL
    before = noted(notes)
    assert 11 < len(before) <= 12 + 7*2 + 2, "the second process is some batches ahead and no more, however long the first waits"
    status, said, errors = launch(place, 3, *script('', notes, out))
    assert status == 0 and f'{N} pictures (1 without an answer, 11 from before)' in said, errors
    assert out.read_bytes() == alone('one.csv') and not part.exists()
    assert len(noted(notes)) - len(before) == N - 10, "what was written is not labelled again, but for a batch that was cut"

@linux
def test_a_process_that_dies_is_named_or_all_go_on(place, tmp_path, alone):
    notes, out = tmp_path/'notes', tmp_path/'o.jsonl'
    notes.mkdir()
    status, _, errors = launch(place, 2, *script('die:1', notes, out))
    assert status == 137 and 'process 1 was killed by SIGKILL' in errors and not out.exists()
    kept = out.with_name('o.jsonl.part').read_bytes().count(b'\n') - 1
    assert kept <= 14
    status, said, errors = launch(place, 2, *script('die:2', notes, out), options=['--max-restarts', 1])
    assert status == 0 and f'{N} pictures (1 without an answer' in said, errors
    assert out.read_bytes() == alone('one.jsonl')

def test_a_batch_that_was_cut_is_labelled_as_a_whole(place, tmp_path, alone, monkeypatch):
    "What else is in a batch changes the last digit of an answer, so a file that was gone on with has the same batches"
    batches, label = [], Predictor._label
    def noted(self, group, k):
        batches.append([Path(o).name for o, _ in group])
        yield from label(self, group, k)
    monkeypatch.setattr(Predictor, '_label', noted)
    want = alone('whole.jsonl', bs=4)
    whole, seen = [*batches], (tmp_path/'whole.jsonl').read_bytes().splitlines(keepends=True)
    def stop(n):
        if n == 10: raise KeyboardInterrupt
    predictor, out = Predictor('model.onnx', threads=1), tmp_path/'o.jsonl'
    with pytest.raises(KeyboardInterrupt): predictor.stream('digits', out, bs=4, progress=stop)
    for kept in (10, 8, 7, 0):
        part = out.with_name('o.jsonl.part')
        head = part.read_bytes().splitlines(keepends=True)[0]
        part.write_bytes(head + b''.join(seen[:kept]))
        batches.clear()
        done = predictor.stream('digits', out, bs=4)
        assert (done.before, done.pictures, done.failed) == (kept, N, 1) and out.read_bytes() == want
        assert batches == whole[kept//4:]
        part.write_bytes(head)

# What a process does, alone

def test_turns_are_dealt_out(monkeypatch):
    monkeypatch.setattr('imgcls_nb.sharing.world', lambda: 3)
    got = []
    for r in range(3):
        monkeypatch.setattr('imgcls_nb.sharing.rank', lambda r=r: r)
        got.append([*own_turns(range(20), 2)])
    assert got == [[0, 1, 6, 7, 12, 13, 18, 19], [2, 3, 8, 9, 14, 15], [4, 5, 10, 11, 16, 17]]

def test_alone_it_is_the_same(place, tmp_path, alone, monkeypatch):
    want = alone('one.csv')
    predictor = Predictor('model.onnx', threads=1)
    assert [*label_in_turn(predictor, 'digits', bs=2)] == [*predictor.batch('digits', bs=2)]
    assert stream_in_turn(predictor, 'digits', tmp_path/'o.csv', bs=2).failed == 1
    assert (tmp_path/'o.csv').read_bytes() == want

@pytest.mark.parametrize('change, says', [
    (lambda rows: rows[1:], "number 1 is 'digits/a/00.png' for process 0, and 'digits/a/02.png' for process 0"),
    (lambda rows: rows[:-1], "number 47 is 'digits/b/45.png' for process 0, and 'None' for process 1"),
    (lambda rows: rows + rows[:1], "number 48 is 'None' for process 0, and 'digits/a/00.png' for process 1")], ids='abc')
def test_lists_that_differ_are_noticed(place, monkeypatch, change, says):
    monkeypatch.chdir(place)
    predictor = Predictor('model.onnx', threads=1)
    rows = change([vars(o) for o in predictor.batch('digits', bs=2)])
    monkeypatch.setattr('imgcls_nb.sharing.world', lambda: 2)
    monkeypatch.setattr('imgcls_nb.sharing.in_turn', lambda parts: [rows])
    with pytest.raises(InputError, match=f'do not have the same pictures: {re.escape(says)}'):
        for _ in label_in_turn(predictor, 'digits', bs=2): pass

def test_memory_does_not_grow_with_the_pictures(place, monkeypatch):
    import tracemalloc
    monkeypatch.chdir(place)
    predictor = Predictor('model.onnx', threads=1)
    def peak(n):
        pictures = (f'nowhere/{i}.png' for i in range(n))
        tracemalloc.start()
        for _ in label_in_turn(predictor, pictures): pass
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top
    peak(50)
    assert peak(4000) < peak(1000) + 100_000

def test_processors_and_devices_are_shared(monkeypatch):
    for k in (*LAUNCHED, 'LOCAL_WORLD_SIZE'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr('imgcls_nb.inputs.free_cpus', lambda: 8)
    monkeypatch.setattr('onnxruntime.get_available_providers', lambda: ['CUDAExecutionProvider', 'CPUExecutionProvider'])
    assert own_cpus() == 8 and read_providers('cuda') == ['CUDAExecutionProvider', 'CPUExecutionProvider']
    left = dict(WORLD_SIZE=6, LOCAL_WORLD_SIZE=3, LOCAL_RANK=2) # by a program that is gone
    for k, v in left.items(): monkeypatch.setenv(k, str(v))
    assert own_cpus() == 8 and read_providers('cuda')[0] == 'CUDAExecutionProvider'
    for k, v in dict(RANK=5, MASTER_ADDR='localhost', MASTER_PORT=1).items(): monkeypatch.setenv(k, str(v))
    assert own_cpus() == 2 and read_providers('cuda')[0] == ('CUDAExecutionProvider', dict(device_id='2'))
    assert read_providers([('cuda', dict(device_id='5'))])[0][1] == dict(device_id='5')
    assert read_providers('cpu')[0] == 'CPUExecutionProvider'

def test_a_list_of_pictures(tmp_path):
    lines = '\ufeffa/1.jpg 3', '', ' my photo.PNG\r', '/there/b 2.jpeg cat', 'ÿ.jpg'
    (tmp_path/'list.txt').write_bytes('\n'.join(lines).encode())
    names = [*iter_pictures(tmp_path/'list.txt')]
    assert names == [f'{tmp_path}/a/1.jpg', f'{tmp_path}/my photo.PNG', '/there/b 2.jpeg', f'{tmp_path}/ÿ.jpg']
    assert [*iter_pictures([tmp_path/'list.txt', 'x.jpg'])] == [*names, 'x.jpg']

# What is refused

@pytest.mark.parametrize('args, says', [
    (['--nproc', '2', '--max-restarts', '1', 'predict', 'm.onnx', 'p'], 'Give --out FILE, such as'),
    (['--gpus', '0,1', 'predict', 'm.onnx', 'p'], 'Add --provider cuda'),
    (['--gpus', '0,1', 'predict', 'm.onnx', 'p', '--provider', 'cuda'], 'there is no GPU 0'),
    (['--gpus', '0,1', 'infer', 'run', 'p'], 'predict model.onnx PICTURES --provider cuda'),
    (['--nproc', '2', 'export', 'run'], 'train, resume, eval, predict, infer, python')], ids=str)
def test_what_cannot_be_shared_is_said(args, says, capsys):
    assert main(['launch', *args]) == 2 and says in capsys.readouterr().err

def test_an_error_is_said_once(place, tmp_path):
    status, said, errors = launch(place, 2, 'predict', 'model.onnx', 'digits', '--out', tmp_path)
    assert (status, said, errors.count('imgcls: ')) == (2, '', 1) and 'end in .csv' in errors
