"Whatever a file holds: nothing in it runs, and reading it takes neither all time nor all memory"
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from imgcls_nb.archives import read_pickled_batch
from imgcls_nb.checkpoints import newest_checkpoint, read_checkpoint, save_checkpoint
from imgcls_nb.config import read_config
from imgcls_nb.core import InputError
from imgcls_nb.documents import MAX_DEPTH, read_json, read_yaml
from imgcls_nb.paddle import read_pdparams
from imgcls_nb.plan import DataPlan, ModelPlan, Plan, plan_from_yaml, plan_to_yaml
from imgcls_nb.runs import Run
from imgcls_nb.states import state_from_bytes, state_to_bytes
from imgcls_nb.trained import load_trained
from imgcls_nb.weights import read_weights

posix = pytest.mark.skipif(os.name != 'posix', reason="needs fork and limits")

def confined(f, seconds=15, gb=1.5): # the message of the `InputError`, from a process that may take no more than this
    def child(pipe):
        used = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize() if Path('/proc').exists() else 2**36
        resource.setrlimit(resource.RLIMIT_AS, (used + int(gb*2**30),)*2)
        try: said = f() or 'nothing was said'
        except InputError as e: said = str(e)
        except BaseException as e: said = f'{type(e).__name__}, no InputError: {e}'
        pipe.send(said)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context('fork').Process(target=child, args=(theirs,))
    process.start()
    answered = ours.poll(seconds)
    if not answered: process.kill()
    process.join()
    assert answered, f"not done after {seconds} s, or killed: {process.exitcode}"
    return ours.recv()

# Pickles

class Runs:
    "A pickle that leaves a file behind when it is opened by the wrong reader"
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call

def cases(trace):
    touch = Runs(os.system, f'touch {trace}')
    return {'plain': touch, 'in a state dict': dict(state_dict=dict(w=touch)),
            'beside tensors': dict(w=torch.ones(2), x=[{'y': (touch,)}]),
            'as a key': {Runs(os.mkdir, str(trace)): 1}, 'eval': Runs(eval, f"open({str(trace)!r}, 'w')"),
            'in an ordered dict': OrderedDict(w=torch.ones(2), b=touch), 'getattr': Runs(getattr, Path, 'home'),
            'hub': Runs(torch.hub.load, 'a/b', 'c'), 'loading': Runs(torch.load, '/elsewhere/x'), 'path': Path(trace)}

SAYS = {'eval': r'builtin.*\.eval', 'getattr': 'getattr', 'as a key': 'mkdir', 'hub': r'torch\.hub\.load',
        'loading': r'torch\.serialization\.load', 'path': 'pathlib'}

@pytest.mark.filterwarnings('ignore::UserWarning') # of torch, about the protocol
@pytest.mark.parametrize('case', cases(''))
@pytest.mark.parametrize('form', ['zip', 'legacy', 'bare 0', 'bare 2', 'bare 4'])
def test_a_pickle_that_wants_to_run(case, form, tmp_path):
    file, o = tmp_path/'hostile.pth', cases(tmp_path/'trace')[case]
    if form.startswith('bare'): file.write_bytes(pickle.dumps(o, protocol=int(form[-1])))
    else: torch.save(o, file, _use_new_zipfile_serialization=form == 'zip')
    says = f"hostile.pth' cannot be read as weights: it wants to run .*{SAYS.get(case, 'system')}"
    with pytest.raises(InputError, match=says): read_weights(file)
    for suffix in ('.safetensors', '.bin', '.pt'): # whatever it is called
        shutil.copy(file, other := tmp_path/f'other{suffix}')
        with pytest.raises(InputError): read_weights(other)
    assert not (tmp_path/'trace').exists()

def test_a_name_from_the_pickles_memory(tmp_path):
    text = lambda s: b'\x8c' + bytes([len(s)]) + s + b'\x94' # kept in memory
    kept = text(b'posix') + b'0' + text(b'system') + b'0'
    (tmp_path/'x.pth').write_bytes(b'\x80\x04' + kept + b'h\x00h\x01\x93' + b'\x8c\x02id\x85R.')
    with pytest.warns(), pytest.raises(InputError, match=r'it wants to run posix\.system'): read_weights(tmp_path/'x.pth')

def test_a_second_pickle_in_the_old_format(tmp_path):
    (tmp_path/'x.pth').write_bytes(pickle.dumps(0x1950a86a20f9469cfc6c, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
                                   + pickle.dumps(Runs(os.system, 'true'), 2))
    with pytest.raises(InputError, match=r'it wants to run (posix|nt)\.system'): read_weights(tmp_path/'x.pth')

def rezipped(file, change, how=zipfile.ZIP_STORED): # a file of torch's, with other content
    whole = io.BytesIO()
    torch.save(dict(w=torch.ones(1000)), whole)
    with zipfile.ZipFile(whole) as a, zipfile.ZipFile(file, 'w', how) as b:
        for n in a.namelist(): b.writestr(n, change(n, a.read(n)))
    return file

PICKLES = {'deep': b'\x80\x02' + b']'*10**5 + b'a'*(10**5 - 1) + b'.', 'long number': b'\x80\x02\x8b\xff\xff\xff\x7f\x01',
           'much to come': b'\x80\x04\x8d' + struct.pack('<Q', 2**40), 'digits': b'I' + b'9'*10**6 + b'\n.', 'empty': b'',
           'stop': b'.',
           'laughs': b'\x80\x02]q\x00X\x02\x00\x00\x00haa'
           + b''.join(b'0]q%c(' % i + b'h%c' % (i - 1)*20 + b'e' for i in range(1, 9)) + b'.',
           'not a zip': b'PK\x05\x06' + bytes(18), 'broken zip': b'PK\x03\x04' + bytes(100) + b'PK\x05\x06' + b'\xff'*18}

@posix
@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('case', PICKLES)
def test_pickles_that_are_no_pickles(case, tmp_path):
    (tmp_path/'x.pth').write_bytes(PICKLES[case])
    assert 'cannot be read as weights' in confined(lambda: read_weights(tmp_path/'x.pth'))

GREEDY = {'a number in nine bytes': b'\x80\x02}r\x00\x00\x00\x20.', 'in digits': b'}p999999999\n.',
          'bytes': b'\x80\x04\x8e' + struct.pack('<Q', 2**35), 'a bytearray': b'\x80\x05\x96' + struct.pack('<Q', 2**35),
          'a frame': b'\x80\x04\x95' + struct.pack('<Q', 2**35) + b'}.',
          'lists': b'\x80\x02}X\x01\x00\x00\x00a]q\x00'
          + b''.join(b'0]q%c(' % i + b'h%c' % (i - 1)*20 + b'e' for i in range(1, 9)) + b's.'}
SAID = {'a number in nine bytes': 'wants room for 536,870,912 things after 3 bytes', 'in digits': 'wants room for 999,999,999',
        'lists': '(lists within lists|file of Paddle)'}

@posix
@pytest.mark.parametrize('case', PICKLES | GREEDY)
@pytest.mark.parametrize('read', [read_pickled_batch, read_pdparams])
def test_pickled_arrays_that_are_none(case, read, tmp_path):
    (tmp_path/'x').write_bytes((PICKLES | GREEDY)[case])
    assert re.search(f"x' is no.*{SAID.get(case, '')}", confined(lambda: read(tmp_path/'x')))

@posix
@pytest.mark.parametrize('change, how, says', [
    (lambda n, d: bytes(10**8) if n.endswith('/data/0') else d, zipfile.ZIP_DEFLATED, 'it unpacks to 100,000,'),
    (lambda n, d: d.replace(b'M\xe8\x03', b'J\x00\x00\x00\x40'), zipfile.ZIP_STORED, 'does not match'),
    (lambda n, d: d[:-7] if n.endswith('/data/0') else d, zipfile.ZIP_STORED, 'does not match')], ids=['bomb', 'lie', 'cut'])
def test_zip_files_that_lie(change, how, says, tmp_path):
    file = rezipped(tmp_path/'x.pth', change, how)
    assert says in confined(lambda: read_weights(file))

# Safetensors

def header(text, data=b'', length=None): return struct.pack('<Q', len(text) if length is None else length) + text + data

def one(**changes): return json.dumps(dict(w=dict(dtype='F32', shape=[4], data_offsets=[0, 16]) | changes)).encode()

LIES = {'a header beyond the end': header(b'{}', length=2**40), 'the longest header': header(b'{}', length=2**64 - 1),
        'no header': b'', 'half a length': b'\x01\x00', 'too little data': header(one(), bytes(8)),
        'too much': header(one(), bytes(99)),
        'a large shape': header(one(shape=[2**40]), bytes(16)),
        'a shape that overflows': header(one(shape=[2**32, 2**32]), bytes(16)),
        'offsets beyond': header(one(data_offsets=[0, 2**40]), bytes(16)),
        'offsets backwards': header(one(data_offsets=[16, 0]), bytes(16)),
        'a negative one': header(one(data_offsets=[-16, 0]), bytes(16)), 'no type': header(one(dtype='X9'), bytes(16)),
        'no JSON': header(b'{"w": ', bytes(16)), 'deep': header(b'['*10**6), 'deeper': header(b'{"a":'*10**6 + b'1' + b'}'*10**6),
        'a tree that is none': header(json.dumps({'__metadata__': {'tree': '[[['}}).encode()),
        'a deep tree': header(json.dumps({'__metadata__': {'tree': '['*10**6}}).encode()),
        'a tree of nothing': header(json.dumps({'__metadata__': {'tree': '{"tensor": "none"}'}}).encode()),
        'a tree of lists': header(json.dumps({'__metadata__': {'tree': '[1]'}}).encode())}

@posix
@pytest.mark.parametrize('case', LIES)
def test_safetensors_that_lie(case, tmp_path):
    (tmp_path/'x.safetensors').write_bytes(LIES[case])
    if 'tree' not in case:
        assert "x.safetensors' cannot be read as weights" in confined(lambda: read_weights(tmp_path/'x.safetensors'))
    assert 'state' in confined(lambda: state_from_bytes(LIES[case]))

def test_states_with_any_byte_changed(): # read, or refused in our words
    good = state_to_bytes(dict(a=[1, {2: torch.ones(2)}], b=None))
    for i in range(len(good) - 8):
        try: state_from_bytes(bytes([*good[:i], good[i] ^ 1, *good[i + 1:]]))
        except InputError: pass

# JSON

DEEP = ['['*10**6, '{"a":'*10**6 + '1' + '}'*10**6, '['*10**6 + ']'*10**6]

@posix
@pytest.mark.parametrize('text', DEEP, ids=['open', 'dicts', 'closed'])
def test_a_million_levels(text, tmp_path):
    assert 'nested too deeply' in confined(lambda: read_json(text, 'x'))
    save_checkpoint(tmp_path, 'latest', {}, dict(), dict(step=1))
    save_checkpoint(tmp_path, 'epoch_1', {}, dict(), dict(step=1))
    for name in ('latest.json', 'data.json', 'env.json', 'run.jsonl', 'run.lock'): (tmp_path/name).write_text(text)
    (tmp_path/'config.yaml').write_text(plan_to_yaml(Plan(DataPlan('x'), ModelPlan('resnet18'))))
    assert "latest.json' is damaged" in confined(lambda: read_checkpoint(tmp_path, 'latest'))
    assert confined(lambda: newest_checkpoint(tmp_path).name) == 'epoch_1'
    run = Run(tmp_path)
    for o in ('data', 'env'): assert f'{o}.json is nested too deeply' in confined(lambda o=o: getattr(run, o))
    assert confined(lambda: f'{run.events()} {len(run.history())} {len(run.steps())} {run.status}') == '[] 0 0 empty'

@pytest.mark.parametrize('levels, good', [(MAX_DEPTH - 1, True), (MAX_DEPTH, False)])
def test_the_limit_of_levels(levels, good):
    for text in ('['*levels + '1' + ']'*levels, '{"a":'*levels + '1' + '}'*levels):
        for read in (read_json, read_yaml):
            if good: read(text, 'x')
            else:
                with pytest.raises(InputError, match='x is nested too deeply'): read(text, 'x')

@posix
def test_a_line_without_end(tmp_path):
    (tmp_path/'config.yaml').touch()
    with open(tmp_path/'run.jsonl', 'wb') as f:
        f.write(b'{"event": "epoch", "epoch": 1}\n{"event": "')
        f.truncate(2**28) # takes no room on the disk
        f.seek(0, 2)
        f.write(b'\n{"event": "epoch", "epoch": 2}\n')
    assert confined(lambda: str([o['epoch'] for o in Run(tmp_path).events()]), gb=.15) == '[1, 2]'

LINES = ['null', '1', '[]', '{}', '{"event": 1}', '{"event": "epoch"}', '{"event": "epoch", "epoch": "x"}',
         '{"event": "steps", "step": 1}',
         '{"event": "steps", "step": ["a"], "loss": [1], "lr": [1], "lr_first": [1], "wait": [1]}',
         '{"event": "resume", "step": []}', '{"event": "steps", "step": [1, 2], "loss": [1]}',
         '{"event": "epoch", "epoch": {}, "top1": [[]]}', '\ud800', '9'*5000]

def test_lines_of_any_kind(tmp_path):
    (tmp_path/'config.yaml').touch()
    (tmp_path/'run.jsonl').write_text('\n'.join(LINES), encoding='utf-8', errors='surrogatepass')
    run = Run(tmp_path)
    assert isinstance(run.history(), type(run.steps())) and repr(run)

# YAML

def laughs(width, levels, pattern='[{}]'):
    line = lambda i: f'a{i}: &a{i} ' + pattern.format(', '.join([f'*a{i - 1}']*width))
    return 'a0: &a0 {x: ha}\n' + '\n'.join(map(line, range(1, levels)))

BOMBS = {'laughs': laughs(9, 10), 'merged': laughs(9, 12, '{{<<: [{}]}}'), 'a chain': laughs(1, 5000),
    'within itself': 'a: &a [*a]',
         'as a key': 'a: &a {*a : 1}', 'two of each other': 'a: &a {b: &b [*a, *b]}', 'deep': '['*10**6,
         'deep blocks': '- '*10**5 + 'x',
         'base 60': 'a: ' + '1:'*(2**20 - 9) + '1', 'digits': 'a: ' + '9'*2**20, 'hexadecimal': 'a: 0x' + 'f'*2**20,
         'many': '[' + 'a,'*(2**20 - 9) + ']', 'long': '#'*2**22}

@posix
@pytest.mark.parametrize('case', BOMBS)
def test_yaml_bombs(case, tmp_path):
    (tmp_path/'config.yaml').write_text(BOMBS[case])
    says = confined(lambda: read_config(tmp_path/'config.yaml'), seconds=60)
    assert any(o in says for o in ('add up to', 'nested too deeply', 'within itself', 'characters', 'holds more than', 'at most',
                                   'unhashable')), says
    if case not in ('laughs', 'merged', 'within itself'): return
    assert confined(lambda: Run(tmp_path).plan).startswith(says.replace("'", ''))

@pytest.mark.parametrize('tag', [
    '!!python/object/apply:os.system [touch {}]', '!!python/object/new:os.mkdir [{}]', '!!python/name:os.system',
    '!!python/module:os', '!foo x', '!!python/tuple [1]'])
def test_yaml_tags(tag, tmp_path):
    text = 'data: ' + tag.format(tmp_path/'trace')
    with pytest.raises(InputError, match='x is not valid YAML .*could not determine a constructor'): plan_from_yaml(text, 'x')
    (tmp_path/'c.yaml').write_text(text)
    with pytest.raises(InputError, match="c.yaml' is not valid YAML"): read_config(tmp_path/'c.yaml')
    assert not (tmp_path/'trace').exists()

@pytest.mark.parametrize('text', [
    'base: &b {lr: 0.1}\nhead: {<<: *b, wd: 0}', 'a: [1, 1.5, ~, true, 2024-01-01]', '', '# nothing', 'x'])
def test_honest_yaml_is_read_as_ever(text): assert read_yaml(text, 'x') == yaml.safe_load(text)

def test_a_key_that_is_written_twice_is_told(capsys):
    assert read_yaml('a: {b: 1}\nc: 3\nd: {<<: {x: 1}, <<: {y: 2}}\nc: 4', 'run.yaml') == dict(a=dict(b=1), c=4, d=dict(x=1, y=2))
    assert capsys.readouterr().err == "run.yaml: 'c' stands in line 2 and again in line 4, which counts.\n"

def test_many_classes():
    vocab = tuple(f'{i}: a name of some words, as in ImageNet' for i in range(22_000))
    plan = Plan(DataPlan('x', vocab=vocab), ModelPlan('resnet18'))
    start = time.perf_counter()
    assert plan_from_yaml(plan_to_yaml(plan)) == plan and time.perf_counter() - start < 60

# Paths

@pytest.fixture
def outside(tmp_path): # a run folder, and weights that are none of its business
    (tmp_path/'run').mkdir()
    save_checkpoint(tmp_path/'run', 'latest', dict(w=torch.ones(2)), {}, dict(step=1))
    shutil.copytree(tmp_path/'run'/'parts', tmp_path/'parts')
    return tmp_path/'run'

def manifest(run, change): # as a person who knows how to make one would write it
    from imgcls_nb.checkpoints import _hash_of
    body = json.loads((run/'latest.json').read_text())
    del body['sha256']
    change(body)
    (run/'latest.json').write_text(json.dumps(body | dict(sha256=_hash_of(body))))

@pytest.mark.parametrize('path', ['../{}', '../../parts/{}', '{absolute}', './{}', 'x/../{}', '..', '', '{}\0', '/dev/zero'])
def test_paths_that_climb_out(path, outside):
    def climb(body):
        part = body['parts']['weights']
        part['file'] = path.format(part['file'], absolute=outside.parent/'parts'/part['file'])
    manifest(outside, climb)
    with pytest.raises(InputError, match="latest.json' is damaged"): read_checkpoint(outside, 'latest')

@pytest.mark.parametrize('change', [
    lambda b: b['parts'].update(weights=None), lambda b: b['parts'].update(weights=[]), lambda b: b.update(parts=[]),
    lambda b: b.update(facts=[]), lambda b: b.update(facts=dict(step='9')),
    lambda b: b['parts'].update(other=b['parts']['weights']),
    lambda b: b['parts']['weights'].update(bytes='9'), lambda b: b['parts']['weights'].update(file=9),
    lambda b: b.update(format=2),
    lambda b: b['parts'].pop('weights')], ids=range(10))
def test_manifests_that_say_anything(change, outside):
    manifest(outside, change)
    with pytest.raises(InputError, match="latest.json' is damaged"): read_checkpoint(outside, 'latest')
    save_checkpoint(outside, 'latest', {}, {}, dict(step=2))
    assert newest_checkpoint(outside).facts['step'] == 2

@posix
def test_links_out_of_the_folder(outside):
    part = next((outside/'parts').glob('*'))
    for o in outside.glob('latest.*safetensors'): o.unlink()
    elsewhere = outside.parent/'parts'/part.name
    part.unlink()
    part.symlink_to(elsewhere)
    with pytest.raises(InputError, match='is damaged'): read_checkpoint(outside, 'latest')
    shutil.rmtree(outside/'parts')
    (outside/'parts').symlink_to(outside.parent/'parts')
    with pytest.raises(InputError, match='is damaged'): read_checkpoint(outside, 'latest')
    assert elsewhere.is_file()

@posix
def test_what_is_no_file(outside):
    for name in ('latest.json', 'run.jsonl', 'run.lock', 'config.yaml'):
        (outside/name).unlink(missing_ok=True)
        os.mkfifo(outside/name) # whoever opens it waits for ever
    assert 'no checkpoint' in confined(lambda: read_checkpoint(outside, 'latest'))
    assert confined(lambda: str(Run(outside).events())) == '[]' and confined(lambda: Run(outside).status) == 'empty'
    assert 'is no run folder' in confined(lambda: Run.open(outside)) and confined(lambda: Run(outside).plan)

def test_nothing_runs_when_a_run_is_loaded(tmp_path): # pickles in the place of everything
    trace = tmp_path/'trace'
    bad = pickle.dumps(Runs(os.system, f'touch {trace}'))
    save_checkpoint(tmp_path, 'best_model', {}, {}, dict(step=1))
    for o in [*tmp_path.rglob('*.safetensors'), tmp_path/'best_model.json', tmp_path/'config.yaml']: o.write_bytes(bad)
    for act in (load_trained, newest_checkpoint, lambda p: Run(p).plan,
    lambda p: state_from_bytes(bad), safe_weights):
        with pytest.raises(InputError): act(tmp_path)
    assert not trace.exists()

def safe_weights(folder): return read_weights(folder/'best_model.safetensors')

def test_ours_are_read(tmp_path):
    save_checkpoint(tmp_path, 'best_model', dict(w=torch.ones(2)), None, {})
    assert read_weights(tmp_path)['w'].equal(safetensors.torch.load_file(tmp_path/'best_model.safetensors')['w'])
