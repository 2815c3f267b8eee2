"`Predictor`: pictures from anywhere, in order and in bounded memory; files that outlive a kill; models that lie are refused"
import csv
import errno
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colours import CARD, COLOURS, GOOD, PREPROCESS, colour, colour_proto, paint, paint_bad, write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from imgcls_nb import inputs, running
from imgcls_nb.core import BadPictureError, InputError, ModelCard, ModelFileError, list_images
from imgcls_nb.inputs import iter_pictures, read_ahead, walk_images
from imgcls_nb.metadata import find_model, read_card, read_metadata
from imgcls_nb.predict import Predictor
from imgcls_nb.records import Records, json_line
from imgcls_nb.running import Way, choose_way, read_providers

NAMES = [f'{i:02}_{list(COLOURS)[i % 3]}.png' for i in range(10)]
few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

@pytest.fixture(scope='module')
def model(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model')/'model.onnx')

@pytest.fixture(scope='module')
def predictor(model): return Predictor(model, threads=1)

@pytest.fixture(scope='module')
def pictures(tmp_path_factory): return paint(tmp_path_factory.mktemp('pictures')/'all', NAMES)

@pytest.fixture
def bad(tmp_path): return paint_bad(tmp_path/'bad')

# Pictures from anywhere

def test_every_way_to_name_a_picture(predictor, pictures):
    file = pictures/NAMES[2]
    with Image.open(file) as im: im = im.convert('RGB')
    one = [file, str(file), file.read_bytes(), bytearray(file.read_bytes()), im, np.asarray(im)]
    assert [predictor(o).label for o in one] == ['blue']*6
    assert [[p.label for p in predictor.batch(o)] for o in one] == [['blue']]*6
    assert [p.label for p in predictor.batch(one)] == ['blue']*6
    many = [pictures, str(pictures), f'{pictures}/*.png', [*pictures.iterdir()], (o for o in pictures.iterdir()),
            np.stack([np.asarray(im)]*10), map(str, pictures.iterdir()), [pictures], [f'{pictures}/*.png']]
    assert [len(list(predictor.batch(o))) for o in many] == [10]*9
    for o in (pictures, f'{pictures}/*.png'):
        assert [(Path(p.source).name, p.label) for p in predictor.batch(o)] == [(n, colour(n)) for n in NAMES]

def test_answers_at_home(predictor, tmp_path, monkeypatch):
    for o in ('HOME', 'USERPROFILE'): monkeypatch.setenv(o, str(tmp_path))
    paint(tmp_path/'photos', ['red_1.png', 'red_2.png'])
    assert predictor.stream('~/photos', '~/out/labels.csv').pictures == 2 and (tmp_path/'out/labels.csv').is_file()

def test_names_with_brackets_are_names(predictor, tmp_path):
    paint(tmp_path, ['red_[1].png', 'red_1.png'])
    preds = list(predictor.batch([tmp_path/'red_[1].png', tmp_path/'blue[9].png', tmp_path/'red_1.png']))
    assert [o.label for o in preds] == ['red', None, 'red'] and 'no such file' in preds[1].error

def test_a_list_is_read_as_in_training(tmp_path): # notes are none of its pictures, and a label may follow a tab
    (tmp_path/'list.txt').write_text('# mine\na b.jpg 0\n c.png\t1\n\nd.png\n./#e 2\n')
    names = [os.path.relpath(o, tmp_path) for o in iter_pictures(tmp_path/'list.txt')]
    assert names == ['a b.jpg', 'c.png', 'd.png', '#e']

def test_pictures_at_home(predictor, tmp_path, monkeypatch): # a shell leaves the ~ behind an = as it is
    for o in ('HOME', 'USERPROFILE'): monkeypatch.setenv(o, str(tmp_path))
    paint(tmp_path/'mine', ['red_1.png'])
    for o in ('~/mine', '~/mine/*.png', ['~/mine'], ['~/mine/red_1.png'], '~/mine/red_1.png'):
        assert [Path(p.source) for p in predictor.batch(o)] == [tmp_path/'mine/red_1.png'], o

@pytest.mark.parametrize('pattern, want', [
    ('m/*', 'a.png s.tar sub-x/1.png sub/b.png sub/d/c.jpg'), ('m/**', 'a.png s.tar sub-x/1.png sub/b.png sub/d/c.jpg'),
    ('**/**/*', 'a.png s.tar sub-x/1.png sub/b.png sub/d/c.jpg'), ('./m/*/', 'sub-x/1.png sub/b.png sub/d/c.jpg'),
    ('m/**/*.png', 'a.png sub-x/1.png sub/b.png'), ('m/su?', 'sub/b.png sub/d/c.jpg'), ('m/*.csv', '')])
def test_a_pattern_means_what_its_folders_hold(tmp_path, monkeypatch, pattern, want):
    for o in ('a.png', 't.csv', 's.tar', 'sub/b.png', 'sub/d/c.jpg', 'sub-x/1.png', '.h/x.png'):
        (tmp_path/'m'/o).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path/'m'/o).touch()
    monkeypatch.chdir(tmp_path)
    for sources in (pattern, [pattern]):
        assert sorted(os.path.relpath(o, 'm') for o in iter_pictures(sources)) == want.split(), "each once"

@pytest.mark.parametrize('sources, says', [
    ('nowhere', "no file or folder 'nowhere'"), ('nowhere/*.png', "no file or folder 'nowhere/"), (7, 'A int is no picture'),
    (None, 'A NoneType is no picture')])
def test_nothing_to_label(predictor, sources, says):
    with pytest.raises(InputError, match=says.replace('*', r'\*')): list(predictor.batch(sources))

@few
@given(st.lists(st.lists(st.sampled_from(['a', 'a-b', 'a b', 'b', 'B', 'é', 'a.png', 'z.JPG', '.x.png', 'n.txt']), min_size=1,
                         max_size=4), max_size=12))
def test_a_folder_is_walked_in_the_order_of_its_list(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp('tree')
    for parts in paths:
        try:
            (root.joinpath(*parts[:-1])).mkdir(parents=True, exist_ok=True)
            root.joinpath(*parts).touch()
        except OSError: pass # a folder where a file is, or the other way round
    assert list(walk_images(root)) == list(map(str, list_images(root)))

def test_links_in_circles_end(tmp_path):
    paint(tmp_path/'a/b', ['red.png'])
    (tmp_path/'a/b/up').symlink_to(tmp_path/'a')
    (tmp_path/'a/again').symlink_to(tmp_path/'a/b')
    assert list(walk_images(tmp_path/'a')) == list(map(str, list_images(tmp_path/'a')))

@pytest.mark.skipif(os.name != 'posix', reason="pipes with names")
def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path, predictor):
    paint(tmp_path, ['red.png'])
    os.mkfifo(tmp_path/'a.png')
    assert [o.label for o in predictor.batch(tmp_path)] == ['red']

@pytest.mark.skipif(os.name != 'posix', reason="links")
def test_links_to_nothing_are_pictures_that_cannot_be_read(tmp_path, predictor):
    paint(tmp_path, ['red.png'])
    os.mkfifo(tmp_path/'pipe')
    for name, to in {'circle.png': 'circle.png', 'broken.png': 'nowhere', 'pipe.png': 'pipe', 'loop': 'loop'}.items():
        (tmp_path/name).symlink_to(tmp_path/to)
    got = list(predictor.batch(tmp_path))
    assert [(Path(o.source).name, bool(o.error)) for o in got] == [('broken.png', True), ('circle.png', True), ('red.png', False)]

def test_a_folder_is_listed_while_it_is_used(tmp_path, monkeypatch):
    for o in 'abc': paint(tmp_path/o, ['red.png'])
    looked, scandir = [], os.scandir
    with monkeypatch.context() as m:
        m.setattr(inputs.os, 'scandir', lambda o: looked.append(Path(o).name) or scandir(o))
        next(walk_images(tmp_path))
    assert looked == [tmp_path.name, 'a']

# Ahead, in order, bounded

@pytest.mark.parametrize('workers', [0, 1, 3])
@pytest.mark.parametrize('bs', [1, 3, 16])
def test_answers_do_not_depend_on_how_they_are_read(predictor, pictures, bs, workers):
    want = [predictor(o) for o in list_images(pictures)]
    got = list(predictor.batch(pictures, bs=bs, workers=workers))
    assert [(o.label, Path(o.source), o.ids) for o in got] == [(o.label, Path(o.source), o.ids) for o in want]
    assert np.allclose([o.prob for o in got], [o.prob for o in want], atol=1e-6)

def test_order_is_kept_and_no_more_is_read_than_said():
    begun, lock = [], threading.Lock()
    def read(i):
        with lock: begun.append(i)
        time.sleep(.003*(i*7 % 5))
        return i
    pairs = read_ahead(itertools.count(), read, ahead=6, workers=4)
    for i in range(20):
        assert next(pairs) == (i, i)
        assert max(begun) <= i + 6
    pairs.close()
    assert not [o for o in threading.enumerate() if o.name.startswith('read_ahead')], "no thread is left behind"

@pytest.mark.alone
def test_decoding_and_the_network_overlap(predictor, monkeypatch):
    x = np.zeros(PREPROCESS.shape, np.float32)
    monkeypatch.setattr(predictor, '_read', lambda o: time.sleep(.01) or x)
    monkeypatch.setattr(predictor, '_run', lambda x: time.sleep(.01*len(x)) or np.zeros((len(x), 3), np.float32))
    def seconds():
        start = time.perf_counter()
        assert len(list(predictor.batch([b'']*40, bs=4, workers=1))) == 40
        return time.perf_counter() - start
    assert min(seconds() for _ in range(3)) < .01*40*1.7, "one after the other takes .8 s"

def test_an_error_of_the_source_is_the_callers(predictor, pictures):
    def sources():
        yield from list_images(pictures)
        raise RuntimeError('the camera is gone')
    with pytest.raises(RuntimeError, match='the camera is gone'): list(predictor.batch(sources()))

def test_threads_may_share_a_predictor(predictor, pictures):
    files = list_images(pictures)*20
    with ThreadPoolExecutor(8) as pool: got = list(pool.map(predictor, files))
    assert [o.label for o in got] == [colour(o) for o in files]

@pytest.mark.parametrize('how', [dict(k=0), dict(k=True), dict(bs=0), dict(bs=1.5), dict(workers=-1)], ids=str)
def test_counts_are_counts(predictor, pictures, how):
    with pytest.raises(InputError, match=f'{[*how][0]}='): predictor.batch(pictures, **how)

# Bad pictures

def test_bad_pictures_one_at_a_time(predictor, bad):
    files = list_images(bad)
    assert len(files) == 13
    for o in files:
        if o.name in GOOD: assert predictor(o).label == 'green'
        else:
            with pytest.raises(BadPictureError, match=o.name): predictor(o)

@pytest.mark.parametrize('workers', [0, 2])
def test_bad_pictures_are_reported_in_place(predictor, bad, workers):
    preds = list(predictor.batch(bad, bs=3, workers=workers))
    assert [Path(o.source).name for o in preds] == [o.name for o in list_images(bad)]
    assert {Path(o.source).name for o in preds if not o.error} == set(GOOD)
    assert all(Path(o.source).name in o.error and (o.label, o.prob, o.topk) == (None, 0, ()) for o in preds if o.error)
    assert all(o.error for o in predictor.batch([b'', b'GIF89a', bytearray(b'x'), np.zeros((0, 4), np.uint8), np.zeros((2, 2)),
                                                 Path('nowhere.png'), 3.5]))

def test_bad_pictures_in_hand_end_no_batch(predictor, pictures):
    cut = io.BytesIO((pictures/NAMES[2]).read_bytes()[:-30])
    preds = list(predictor.batch([Image.open(pictures/NAMES[2]), Image.open(cut), Image.new('RGB', (0, 3)), pictures/NAMES[2]]))
    assert [o.label for o in preds] == ['blue', None, None, 'blue']

def test_bad_pictures_in_a_file(predictor, bad, tmp_path):
    done = predictor.stream(bad, tmp_path/'o.jsonl', bs=3)
    assert (done.pictures, done.failed) == (13, 13 - len(GOOD))
    got, want = rows(tmp_path/'o.jsonl'), [predictor(o).label if o.name in GOOD else None for o in list_images(bad)]
    assert [o['label'] for o in got] == want and all(Path(o['source']).name in o['error'] for o in got if not o['label'])

def test_pictures_that_vanish_meanwhile(predictor, tmp_path):
    files = list_images(paint(tmp_path/'p', NAMES))
    def going():
        for i, o in enumerate(files):
            if i == 4: o.unlink()
            yield o
    preds = list(predictor.batch(going(), bs=2))
    assert [o.label for o in preds] == [colour(o) if i != 4 else None for i, o in enumerate(NAMES)]
    assert 'no such file' in preds[4].error

@few
@given(st.sampled_from(['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF']), st.data())
def test_any_bytes_are_a_picture_or_a_bad_one(predictor, kind, data):
    import io
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(file, kind)
    good = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[:data.draw(st.integers(1, len(good)))])
    (pred,) = predictor.batch([cut], workers=0)
    assert (pred.error is None) == (pred.label in COLOURS)

@few
@given(st.binary(max_size=300))
def test_noise_is_no_picture(predictor, data):
    with pytest.raises(BadPictureError): predictor(data)

# Into a file

def rows(file):
    if file.suffix == '.jsonl': return [json.loads(o) for o in file.read_text().splitlines()]
    if file.suffix == '.json': return json.loads(file.read_text())
    if file.suffix == '.parquet': return pytest.importorskip('pyarrow.parquet').read_table(file).to_pylist()
    return list(csv.DictReader(file.open(newline='')))

@pytest.mark.parametrize('kind', ['jsonl', 'json', 'csv', 'parquet'])
def test_formats_hold_the_same(predictor, pictures, tmp_path, kind):
    if kind == 'parquet': pytest.importorskip('pyarrow')
    (pictures/'zz.png').write_text('bad')
    try: done = predictor.stream(pictures, tmp_path/f'out.{kind}', k=2, bs=4)
    finally: (pictures/'zz.png').unlink()
    assert (done.pictures, done.failed, done.before) == (11, 1, 0) and os.listdir(tmp_path) == [f'out.{kind}']
    got, want = rows(tmp_path/f'out.{kind}'), list(predictor.batch(pictures, k=2))
    assert [Path(o['source']).name for o in got] == [*NAMES, 'zz.png']
    assert [o['label'] for o in got[:10]] == [o.label for o in want] and not got[10]['label'] and 'zz.png' in got[10]['error']
    assert [float(o['prob']) for o in got[:10]] == pytest.approx([o.prob for o in want], abs=1e-5)
    second = [o['topk'][1]['label'] if 'topk' in o else o['label_2'] for o in got[:10]]
    assert second == [o.topk[1][0] for o in want]

def test_what_cannot_begin_leaves_no_draft(predictor, tmp_path):
    with pytest.raises(InputError, match='no file or folder'): predictor.stream(tmp_path/'nowhere', tmp_path/'o.csv')
    assert not os.listdir(tmp_path)

def test_nothing_makes_a_whole_file_too(predictor, tmp_path):
    for kind in ('jsonl', 'json', 'csv'):
        predictor.stream(iter(()), tmp_path/f'no.{kind}')
        assert rows(tmp_path/f'no.{kind}') == []

def test_names_may_be_any_bytes(predictor, tmp_path):
    paint(tmp_path/'p', ['red.png'])
    os.rename(tmp_path/'p/red.png', os.fsencode(tmp_path/'p') + b'/r\xff"\n,.png')
    for kind in ('jsonl', 'json', 'csv'):
        predictor.stream(tmp_path/'p', tmp_path/f'o.{kind}')
        assert predictor.stream(tmp_path/'p', tmp_path/f'o.{kind}').pictures == 1
    assert rows(tmp_path/'o.jsonl')[0]['source'].endswith('r\udcff"\n,.png')
    assert b'r\xff""\n,.png' in (tmp_path/'o.csv').read_bytes()

def test_a_cut_anywhere_is_gone_on_from(predictor, pictures, tmp_path):
    class Stop(Exception): pass
    def stop(n):
        if n == 4: raise Stop
    out, part = tmp_path/'o.jsonl', tmp_path/'o.jsonl.part'
    with pytest.raises(Stop): predictor.stream(pictures, out, bs=2, workers=1, progress=stop)
    assert not out.exists()
    whole, lines = part.read_bytes(), part.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 4
    predictor.stream(pictures, tmp_path/'want.jsonl')
    want = (tmp_path/'want.jsonl').read_bytes()
    for n in range(0, len(whole) + 1, 7):
        part.write_bytes(whole[:n])
        done = predictor.stream(pictures, out)
        kept = max(0, whole[:n].count(b'\n') - 1)
        assert (done.before, done.pictures) == (kept, 10) and out.read_bytes() == want
    for tail in (b'\0'*4096, b'{"a": 1}\n', b'[]\n', b'\xff\xfe\n', b'['*2000 + b'\n'): # a crash of the machine leaves anything
        part.write_bytes(whole + tail)
        assert predictor.stream(pictures, out).before == 4 and out.read_bytes() == want

KILLED = '''
import sys, time
from imgcls_nb.predict import Predictor
def slow(n):
    print(n, flush=True)
    time.sleep(.3)
Predictor(sys.argv[1], threads=1).stream(sys.argv[2], sys.argv[3], bs=2, progress=slow)
'''

@pytest.mark.skipif(os.name != 'posix', reason="kill -9")
def test_a_killed_process_is_gone_on_from(model, predictor, pictures, tmp_path):
    out, befores = tmp_path/'out.csv', []
    for stop in (2, 3):
        process = subprocess.Popen([sys.executable, '-c', KILLED, model, pictures, out], stdout=subprocess.PIPE, text=True)
        for _ in range(stop): befores.append(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
        assert not out.exists()
    assert befores[2] > befores[1], "the second went on where the first was killed"
    done = predictor.stream(pictures, out)
    assert 5 <= done.before < 10 and done.pictures == 10
    assert [Path(o['source']).name for o in rows(out)] == NAMES and [o['label'] for o in rows(out)] == list(map(colour, NAMES))

def test_a_draft_of_other_work_is_refused(model, predictor, pictures, tmp_path):
    def fail(n): raise KeyboardInterrupt
    out = tmp_path/'o.csv'
    with pytest.raises(KeyboardInterrupt): predictor.stream(pictures, out, progress=fail)
    before = (tmp_path/'o.csv.part').read_bytes()
    other = Predictor(write_model(tmp_path/'other.onnx', temperature=2.))
    bf16 = Predictor(model)
    bf16.way = replace(bf16.way, precision='bf16')
    for who, how in ((other, {}), (predictor, dict(k=1)), (Predictor(model, threshold=.5), {}), (bf16, {})):
        with pytest.raises(InputError, match='made otherwise'): who.stream(pictures, out, **how)
    with pytest.raises(InputError, match=f"picture 1 is .*{NAMES[0]}.*{NAMES[1]}"):
        predictor.stream(list_images(pictures)[1:], out)
    with pytest.raises(InputError, match='picture 1 is .*now there is none in'): predictor.stream([], out)
    assert (tmp_path/'o.csv.part').read_bytes() == before
    (tmp_path/'n.csv.part').write_text('my own notes')
    with pytest.raises(InputError, match='no draft of ours'): predictor.stream(pictures, tmp_path/'n.csv')
    assert (tmp_path/'n.csv.part').read_text() == 'my own notes'

@pytest.mark.skipif(os.name != 'posix', reason="locks of files")
def test_two_writers_of_one_file(predictor, pictures, tmp_path):
    with Records(tmp_path/'o.csv', {}), pytest.raises(InputError, match='another process'):
        predictor.stream(pictures, tmp_path/'o.csv')

def test_a_draft_that_another_took_over_at_the_end(tmp_path, monkeypatch):
    records = Records(tmp_path/'o.jsonl', {})
    records.add(dict(source='a', label='x'))
    monkeypatch.setattr(records, 'close', lambda: (records._file.close(), records.part.unlink())) # which has ended before us
    records.finish()
    assert [o.name for o in tmp_path.iterdir()] == ['o.jsonl'] and (tmp_path/'o.jsonl').read_text().count('\n') == 1

def test_a_full_disk_keeps_what_is_there(predictor, pictures, tmp_path, monkeypatch):
    write, calls = Records._write, []
    def full(self, data):
        calls.append(data)
        if len(calls) == 4: self._file = open('/dev/full', 'wb')
        write(self, data)
    monkeypatch.setattr(Records, '_write', full)
    try:
        with pytest.raises(InputError, match='No space left.*is kept'): predictor.stream(pictures, tmp_path/'o.csv')
    except OSError: pass # closing the full file
    monkeypatch.undo()
    assert predictor.stream(pictures, tmp_path/'o.csv').before == 2

def test_a_full_disk_at_the_end_keeps_what_is_there(predictor, pictures, tmp_path, monkeypatch):
    def full(a, b): raise OSError(errno.ENOSPC, 'No space left')
    monkeypatch.setattr('os.replace', full)
    with pytest.raises(InputError, match='o.csv. cannot be written .No space left.*is kept'):
        predictor.stream(pictures, tmp_path/'o.csv')
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ['o.csv.part'] and predictor.stream(pictures, tmp_path/'o.csv').before == 10

@pytest.mark.parametrize('out, says', [('o.xls', 'end in .csv'), ('o', 'does not say its format'), ('o.jsnol', "Did you mean")])
def test_formats_that_there_are_not(predictor, pictures, tmp_path, out, says):
    with pytest.raises(InputError, match=says): predictor.stream(pictures, tmp_path/out)
    assert not os.listdir(tmp_path)

def test_memory_does_not_grow_with_the_pictures(predictor, tmp_path):
    def peak(n):
        tracemalloc.start()
        predictor.stream((np.zeros((8, 8, 3), np.uint8) for _ in range(n)), tmp_path/f'{n}.csv', k=3)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top
    peak(50)
    assert peak(2400) < peak(600) + 100_000

# Engines and providers

WAYS = dict(slow=dict(engine='onnxruntime', precision='fp32', needs=[], ms=9.), vnni=dict(
    engine='onnxruntime', precision='int8', needs=['avx512_vnni', 'avx_vnni'], ms=3.), amx=dict(
    engine='openvino', precision='bf16', needs=['amx_bf16'], ms=1.))

@pytest.mark.parametrize('engines, features, passed, want', [
    ('onnxruntime openvino', 'amx_bf16 avx_vnni', 'slow vnni amx', 'openvino bf16'),
    ('onnxruntime', 'amx_bf16 avx_vnni', 'slow vnni amx', 'onnxruntime int8'), ('onnxruntime openvino', '', 'slow vnni amx',
    'onnxruntime fp32'), ('onnxruntime openvino', 'amx_bf16', '', 'onnxruntime fp32')])
def test_auto_takes_what_was_proven_and_can_run(monkeypatch, engines, features, passed, want):
    monkeypatch.setattr(running, 'engines_here', engines.split)
    monkeypatch.setattr(running, 'cpu_features', lambda: frozenset(features.split()))
    assert str(choose_way(replace(CARD, passed=tuple(WAYS[o] for o in passed.split())))) == want

def test_eight_bits_without_instructions_are_calculated_in_32(monkeypatch):
    monkeypatch.setattr(running, 'cpu_features', frozenset)
    assert choose_way(replace(CARD, precision='int8', passed=(WAYS['vnni'],))) == Way('onnxruntime', 'int8', exact=True)

@pytest.mark.parametrize('how, says', [
    (dict(engine='onnx'), "engine='onnx' is unknown"), (dict(providers='cuda'), 'CUDAExecutionProvider was asked for'),
    (dict(providers=['tensorrt', 'cpu']), 'TensorrtExecutionProvider was asked for'),
    (dict(providers='GPU'), "no provider 'GPU'"), (dict(precision='int4'), 'Export it in int4'),
    (dict(threads=0), 'threads=0'), (dict(engine='torch'), 'is a graph'), (dict(threshold=2), 'threshold=2'),
    (dict(labels=['a']), '1 names are given'), (dict(labels={9: 'a'}), 'a name for class 9'),
    (dict(labels='no.txt'), "class_id_map_file 'no.txt' cannot be read"), (dict(labels=3), 'labels=3 names none'),
    (dict(engine='torch', threads=2), "threads=2 is not for engine='torch'"),
    (dict(engine='torch', providers='cuda'), "providers='cuda' is not for"),
    (dict(engine='torch', prefer='cuda'), "prefer='cuda' is not for")], ids=str)
def test_what_cannot_be_had_is_said(model, how, says):
    if how.get('engine') == 'torch': pytest.importorskip('torch')
    with pytest.raises(InputError, match=says): Predictor(model, **how)

def test_a_wish_falls_back_with_one_line(model, capsys):
    assert Predictor(model, prefer=['cuda']).provider == 'CPUExecutionProvider'
    out, err = capsys.readouterr()
    assert not out and err.count('\n') == 1 and 'CUDAExecutionProvider was preferred' in err and 'on the CPU' in err

@pytest.mark.parametrize('engine', ['auto', 'openvino'])
def test_a_wish_that_is_not_there_keeps_the_fastest_way(engine, tmp_path, capsys):
    pytest.importorskip('openvino')
    file = write_model(tmp_path/'model.onnx', passed=[dict(engine='openvino', precision='fp32', needs=[], ms=1.)])
    assert Predictor(file, engine=engine, prefer=['cuda']).way.engine == 'openvino'
    err = capsys.readouterr().err
    assert err == 'CUDAExecutionProvider was preferred, but openvino has none: running on the CPU.\n'

def test_a_provider_that_does_not_start_is_noticed(model, monkeypatch, capsys):
    import onnxruntime
    there = ['CUDAExecutionProvider', 'CPUExecutionProvider']
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: there)
    with pytest.raises(InputError, match='did not start|asked for'): Predictor(model, providers='cuda')
    assert Predictor(model, prefer='cuda').provider == 'CPUExecutionProvider' and 'did not start' in capsys.readouterr().err

def test_the_notice_names_what_runs(monkeypatch, capsys):
    there = ['CUDAExecutionProvider', 'CPUExecutionProvider']
    monkeypatch.setattr(running.ort, 'get_available_providers', lambda: there)
    assert read_providers(['tensorrt', 'cuda'], demanded=False) == there
    assert 'Tensorrt' in (err := capsys.readouterr().err) and 'running on CUDAExecutionProvider.' in err

def test_providers_with_options():
    assert read_providers([('cpu', dict(a=1))]) == [('CPUExecutionProvider', dict(a=1))]

def test_openvino_says_the_same(model, pictures):
    pytest.importorskip('openvino')
    ours, theirs = Predictor(model), Predictor(model, engine='openvino', threads=1)
    assert [o.label for o in theirs.batch(pictures)] == [o.label for o in ours.batch(pictures)]
    with ThreadPoolExecutor(4) as pool:
        assert [o.label for o in pool.map(theirs, list_images(pictures)*5)] == list(map(colour, NAMES))*5

def test_weights_do_not_share_a_file(trained_run, shapes, tmp_path): # a run has several, of one card
    import torch

    from imgcls_nb.trained import TorchPredictor, load_trained
    one, other = (TorchPredictor(load_trained(trained_run)) for _ in range(2))
    assert one.fingerprint() == other.fingerprint() == Predictor(trained_run, engine='torch').fingerprint()
    with torch.no_grad(): next(other.model.parameters()).view(-1)[0] += 1e-6
    def stop(n): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): one.stream(shapes/'circle', tmp_path/'o.csv', progress=stop)
    with pytest.raises(InputError, match='made otherwise .model'): other.stream(shapes/'circle', tmp_path/'o.csv')
    assert one.stream(shapes/'circle', tmp_path/'o.csv').before == 1 and str(one.way) == one.provider + ' fp32' == 'torch fp32'

def test_a_run_in_torch(trained_run, model_file, shapes):
    run, file = Predictor(trained_run, engine='torch'), Predictor(model_file)
    assert run.labels == file.labels and repr(run).startswith('Predictor(')
    assert [o.label for o in run.batch(shapes/'circle')] == [o.label for o in file.batch(shapes/'circle')]

# What an answer is

def test_threshold_and_reject(model, pictures):
    gray = np.full((8, 8, 3), 90, np.uint8)
    sure, unsure = Predictor(model, threshold=.5, reject='other').batch([pictures/NAMES[0], gray])
    assert (sure.label, sure.sure) == ('red', True) and (unsure.label, unsure.sure) == ('other', False)
    assert str(unsure).endswith('(other)') and len(unsure.topk) == 3 and unsure.prob == pytest.approx(1/3)
    assert Predictor(model, threshold=.5)(gray).label == 'red', "without a name for it, the first guess stays"

def test_other_labels(model, pictures):
    assert Predictor(model, labels=list('rgb'))(pictures/NAMES[1]).topk[0][0] == 'g'
    assert Predictor(model, labels={1: 'leaf'}).labels == ('red', 'leaf', 'blue')
    (model.parent/'names.txt').write_text('2 sea\n0 rose, red\n')
    assert Predictor(model, labels=model.parent/'names.txt').labels == ('rose, red', 'green', 'sea')

def test_names_are_no_row_of_letters(model):
    with pytest.raises(InputError, match="class_id_map_file 'rgb' cannot be read"): Predictor(model, labels='rgb')

def test_class_numbers_go_with_the_names(predictor, pictures):
    pred = predictor(pictures/NAMES[2], k=2)
    assert pred.ids[0] == 2 and [predictor.labels[i] for i in pred.ids] == [o for o, _ in pred.topk]

@pytest.mark.parametrize('n', [1, 4])
def test_a_graph_for_so_many_pictures(tmp_path, pictures, n):
    fixed = Predictor(write_model(tmp_path/'m.onnx', proto=colour_proto(batch=n)))
    assert [o.label for o in fixed.batch(pictures, bs=3)] == list(map(colour, NAMES))
    assert fixed(pictures/NAMES[0]).label == 'red'

@pytest.mark.parametrize('entries, scale', [({}, float('nan')), (dict(output='probabilities'), 100.)])
def test_an_answer_that_is_none_is_reported(tmp_path, pictures, entries, scale):
    broken = Predictor(write_model(tmp_path/'m.onnx', proto=colour_proto(scale=scale), **entries))
    assert all('no row of probabilities' in o.error for o in broken.batch(pictures))
    assert broken.stream(pictures, tmp_path/'o.csv').failed == 10

# Model files that are not what they say

def test_a_folder_stands_for_its_model(model, tmp_path):
    assert find_model(model.parent) == model
    with pytest.raises(ModelFileError, match='no model file'): find_model(tmp_path)
    for o in ('a.onnx', 'b.onnx'): write_model(tmp_path/o)
    with pytest.raises(ModelFileError, match='holds a.onnx, b.onnx: name one'): find_model(tmp_path)
    write_model(tmp_path/'inference.onnx')
    assert find_model(tmp_path).name == 'inference.onnx'
    (tmp_path/'p').mkdir()
    (tmp_path/'p/inference.pdmodel').touch()
    for o in ('p', 'p/inference.pdmodel', 'p/inference'):
        if o == 'p/inference.pdmodel': continue
        with pytest.raises(ModelFileError, match='paddle2onnx'): find_model(tmp_path/o)

def test_metadata_are_those_that_the_engine_sees(model):
    import onnxruntime
    session = onnxruntime.InferenceSession(str(model), providers=['CPUExecutionProvider'])
    assert read_metadata(model) == session.get_modelmeta().custom_metadata_map and read_card(model) == CARD

@few
@given(st.binary(max_size=400))
def test_any_bytes_have_some_metadata_or_none(tmp_path_factory, data):
    file = tmp_path_factory.getbasetemp()/'noise.onnx'
    file.write_bytes(data)
    assert isinstance(read_metadata(file), dict)
    with pytest.raises(ModelFileError): Predictor(file)

@few
@given(st.data())
def test_a_damaged_model_opens_or_is_refused(model, tmp_path_factory, data):
    file, whole = tmp_path_factory.getbasetemp()/'damaged.onnx', bytearray(model.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(whole[:data.draw(st.integers(len(whole)//2, len(whole)))])
    answers_or_refuses(file)

def answers_or_refuses(file):
    try: predictor = Predictor(file, threads=1)
    except InputError as e: assert str(e) and 'Traceback' not in str(e)
    else:
        (pred,) = predictor.batch([np.full((9, 9, 3), 200, np.uint8)], workers=0)
        assert pred.error or (pred.label in predictor.labels and 0 <= pred.prob <= 1)

values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                      lambda o: st.lists(o, max_size=4) | st.dictionaries(st.text(max_size=8), o, max_size=4), max_leaves=8)
KEYS = [*json.loads(CARD.to_json()), 'preprocess.crop', 'preprocess.resize_short', 'preprocess.mean', 'preprocess.std',
        'preprocess.interpolation', 'preprocess.antialias', 'preprocess.channels', 'preprocess.resize']

@few
@given(st.sampled_from(KEYS), values)
def test_a_card_that_lies_is_refused_or_harmless(tmp_path_factory, key, value):
    card = json.loads(CARD.to_json())
    where, _, inner = key.partition('.')
    if inner: card[where][inner] = value
    else: card[where] = value
    file = tmp_path_factory.getbasetemp()/'liar.onnx'
    answers_or_refuses(write_model(file, json.dumps(card)))

@pytest.mark.parametrize('entries, says', [
    (dict(labels=['a', 'b']), 'names 2 labels'), (dict(labels=[]), 'no list of labels'), (dict(temperature=0), 'temperature'),
    (dict(temperature='hot'), 'temperature'), (dict(threshold=7), 'threshold'), (dict(activation='relu'), 'activation'),
    (dict(preprocess=dict(crop=[9, 9], resize_short=9)), r"pictures are \[3, 9, 9\].*takes"), (dict(schema=99), 'schema 99'),
    (dict(preprocess=dict(mean=[.5], std=[.5], crop=[8, 8], resize_short=8)), r'pictures are \[1, 8, 8\]'),
    (dict(passed=[dict(engine='openvino')]), 'proven ways'), (dict(preprocess='as usual'), 'preprocessing cannot be read')],
    ids=str)
def test_a_lie_is_named(tmp_path, entries, says):
    with pytest.raises(ModelFileError, match=says): Predictor(write_model(tmp_path/'m.onnx', **entries))

def test_openvino_refuses_lies_too(tmp_path):
    pytest.importorskip('openvino')
    for entries in (dict(labels=['a', 'b']), dict(preprocess=dict(crop=[9, 9], resize_short=9))):
        with pytest.raises(ModelFileError): Predictor(write_model(tmp_path/'m.onnx', **entries), engine='openvino')

# Light

def test_predicting_loads_nothing_that_it_does_not_use(model, pictures):
    code = '''import sys
from imgcls_nb.predict import Predictor
p = Predictor(sys.argv[1])
assert len(list(p.batch(sys.argv[2]))) == 10
print(*sorted({o.split('.')[0] for o in sys.modules} & set(sys.argv[3:])))'''
    heavy = 'torch fastai timm fastcore IPython pandas pyarrow openvino starlette uvicorn matplotlib onnx'.split()
    done = subprocess.run([sys.executable, '-c', code, model, pictures, *heavy], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == '', done.stderr

def test_lines_are_json_whatever_the_name(): assert json.loads(json_line(dict(a='\udcff é'))) == dict(a='\udcff é')

def test_a_card_as_python_gives_it(model):
    assert Predictor(model, card=ModelCard(('a', 'b', 'c'), PREPROCESS)).labels == ('a', 'b', 'c')

def test_iter_pictures_is_lazy():
    taken = []
    sources = iter_pictures(taken.append(i) or f'{i}.png' for i in itertools.count())
    assert next(sources) == '0.png' and taken == [0]
