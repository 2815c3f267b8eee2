"What the soak test says must hold is broken on purpose: each time it must notice"
import json
import signal
import subprocess
import sys

import pytest
import soak as soaking
from soak import Failed, Soak, Soaked

from imgcls_nb.core import InputError


@pytest.fixture(scope='module')
def soak(tmp_path_factory):
    "A run that came to its end, with a model file and an edit; and all holds"
    folder = tmp_path_factory.mktemp('soak')
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        m.setenv('IMGCLS_CACHE', str(folder))
        soak = Soak(folder, 1)
        soak.runs['run'] = run = Soaked('run', 1, 2)
        soak.finish(run, soak.train_command(run))
        soak.export(), soak.edit(), soak.edit()
        soak.check()
        yield soak

def without(data, **values): return b''.join(o for o in data.splitlines(True) if not values.items() <= json.loads(o).items())

def zeros(data): return data[:len(data)//2] + bytes(2**14) + data[len(data)//2 + 2**14:]

LATER = json.dumps(dict(event='epoch', time=0, epoch=3, step=9, top1=1., train_loss=0.)).encode() + b'\n'
FAILED = json.dumps(dict(event='failed', time=0, step=6)).encode() + b'\n'
EDIT = dict(edit='0'*12, picture='circle/001.png', field='ignore', old=False, new=True, why='', time=0, who=None, session='x')
BROKEN = { # what is done to a file
    'a picture has changed': ('shapes/circle/000.png', lambda o: o + b' '),
    'a file was put beside the pictures': ('shapes/Thumbs.db', lambda o: b' '),
    'the last weights': ('runs/run/latest.safetensors', zeros),
    'their manifest': ('runs/run/latest.json', lambda o: o[:-1]),
    'another best epoch': ('runs/run/best_model.json', lambda o: o.replace(b'"epoch": ', b'"epoch": 1')),
    'an epoch is not in the log': ('runs/run/run.jsonl', lambda o: without(o, event='epoch', epoch=2)),
    'an epoch too many': ('runs/run/run.jsonl', lambda o: o + LATER),
    'it seems to have failed': ('runs/run/run.jsonl', lambda o: o + FAILED),
    'another seed': ('runs/run/config.yaml', lambda o: o.replace(b'seed: 1', b'seed: 2')),
    'a file is left over': ('runs/run/.latest.json.part', lambda o: b''),
    'an edit was lost': ('runs/run/edits.jsonl', lambda o: b''),
    'an edit that nobody made': ('runs/run/edits.jsonl', lambda o: o + json.dumps(EDIT).encode() + b'\n'),
    'the model file': ('runs/run/model.onnx', zeros)}

@pytest.mark.parametrize('what', BROKEN)
def test_a_look_at_everything_notices(soak, what):
    name, change = BROKEN[what]
    file = soak.folder/name
    before = file.read_bytes() if file.exists() else None
    file.write_bytes(change(before or b''))
    assert file.read_bytes() != before
    try:
        with pytest.raises((Failed, InputError, OSError)): soak.check()
    finally: file.unlink() if before is None else file.write_bytes(before)
    soak.check()

def test_where_a_run_goes_on_is_noticed(soak):
    run, trained = soak.runs['run'], dict(event='epoch', step=9)
    soak.check_place(run, 6, [dict(event='resume', step=6), trained])
    soak.check_place(run, 6, []) # killed before it began, or nothing was left to do
    for news in ([dict(event='resume', step=0), trained], [trained], [dict(event='start'), trained]):
        with pytest.raises(Failed, match='stood at step 6'): soak.check_place(run, 6, news)

def test_how_a_process_ends_is_noticed(soak, monkeypatch):
    run = Soaked('never', 1, 2)
    for status, how in ((-9, signal.SIGKILL), (0, signal.SIGKILL), (-15, signal.SIGTERM), (130, signal.SIGTERM),
                        (130, signal.SIGINT)):
        soak.check_end(run, 'train', status, how)
        assert run.done == (status == 0)
    for status, how in ((1, signal.SIGKILL), (2, signal.SIGINT), (-11, signal.SIGTERM)):
        with pytest.raises(Failed, match='ended with'): soak.check_end(run, 'train', status, how)
    monkeypatch.setattr(soak, 'said', 'Traceback (most recent call last):')
    with pytest.raises(Failed): soak.check_end(run, 'train', -9, signal.SIGKILL)

def test_a_training_that_hangs_is_noticed(soak, monkeypatch):
    monkeypatch.setattr(soaking, 'MOST_S', .2)
    with subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']) as process:
        with pytest.raises(Failed, match='hangs'): soak.wait_for_lines(soak.runs['run'], process, 1)
        process.kill()

def test_answers_that_differ_are_noticed(soak, monkeypatch):
    run = soak.runs['run']
    name, (label, prob) = next(iter(run.answers.items()))
    other = run.answers | {name: (next(o for o in soaking.CLASSES if o != label), prob)}
    soak.evaluate(), soak.predict()
    with monkeypatch.context() as m:
        m.setattr(soak, 'torch_answers', lambda run: other)
        with pytest.raises(Failed, match='and torch'): soak.export()
    with monkeypatch.context() as m:
        m.setitem(soak.answered, (run.seed, run.epochs), other)
        with pytest.raises(Failed, match='answers otherwise'): soak.check()
    with monkeypatch.context() as m:
        m.setattr(run, 'answers', other)
        with pytest.raises(Failed, match='other labels'): soak.predict()
    with monkeypatch.context() as m:
        m.setattr(soak, 'imgcls', lambda *args: 'top1 0.0000')
        with pytest.raises(Failed, match='the best checkpoint had'): soak.evaluate()

def test_rows_that_were_written_again_are_noticed(soak, monkeypatch):
    monkeypatch.setattr(soak, 'predict_and_kill', lambda command, out: [dict(source='shapes/circle/000.png')])
    monkeypatch.setattr(soak.dice, 'random', lambda: 0.)
    with pytest.raises(Failed, match='written again'): soak.predict()

def test_lists_that_do_not_follow_the_edits_are_noticed(soak, monkeypatch):
    run = soak.runs['run']
    assert soak.apply() is None
    name = next(o for o in map(soak.name, soak.pictures) if o not in {n for n, *_ in run.edits})
    old = name.split('/')[0]
    new = next(o for o in soaking.CLASSES if o != old)
    for extra in ((name, 'label', old, new), (name, 'ignore', False, True)):
        monkeypatch.setattr(run, 'edits', [*run.edits, extra])
        with pytest.raises(Failed, match='lists and edits differ'): soak.apply()

def test_damage_may_stay_where_it_was_done_and_not_as_latest(soak, monkeypatch):
    run = soak.runs['run']
    for name in ('epoch_1', 'latest'):
        part = json.loads(soak.path(run, f'{name}.json').read_text())['parts']['weights']['file']
        file = soak.path(run, 'parts', part)
        before = file.read_bytes()
        try:
            file.write_bytes(zeros(before))
            with pytest.raises(Failed, match='is damaged'): soak.facts_of(run, name) # nobody did it
            with monkeypatch.context() as m:
                m.setattr(run, 'spoilt', {part})
                if name == 'epoch_1': assert soak.facts_of(run, name) is None
                else:
                    with pytest.raises(Failed, match='latest'): soak.facts_of(run, name)
        finally: file.write_bytes(before)
        assert soak.facts_of(run, name)

def test_damage_that_is_read_as_whole_is_noticed(soak, monkeypatch):
    from imgcls_nb import checkpoints
    run, files = soak.runs['run'], {}
    for o in soak.path(run).glob('latest*'): files[o] = o.read_bytes()
    monkeypatch.setattr(run, 'done', False)
    monkeypatch.setattr(run, 'hurt', False)
    good = checkpoints.read_checkpoint(soak.path(run), 'latest')
    try:
        assert soak.damage() is None and run.hurt # which is named
        run.hurt = False
        for o, data in files.items(): o.write_bytes(data)
        monkeypatch.setattr(checkpoints, 'read_checkpoint', lambda *args: good)
        with pytest.raises(Failed, match='as if it were whole'): soak.damage()
    finally:
        for o, data in files.items(): o.write_bytes(data)
