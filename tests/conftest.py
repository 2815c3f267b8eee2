import gc
import json
import multiprocessing.util
import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1') # threads that wait for a busy core make tiny steps take seconds


def has_gpu():
    try:
        import torch
    except ImportError: return False
    return torch.cuda.is_available() or torch.backends.mps.is_available()

# `test_resume` forks, which gradients allow only before anything uses threads; two that are long, or they would be the last
FIRST = 'test_resume.py', 'test_tutorials.py', 'test_wheel.py'

def pytest_collection_modifyitems(items):
    items.sort(key=lambda o: FIRST.index(o.path.name) if o.path.name in FIRST else len(FIRST))
    if vague := [o.nodeid for o in items if ' at 0x' in o.nodeid]: # `pytest -n 2` asks for the same names in every process
        raise pytest.UsageError(f"This case has a name that is another each time. Give its parameters ids: {vague[0]}")
    marked = [o for o in items if o.get_closest_marker('gpu')]
    if not marked or has_gpu(): return
    for o in marked: o.add_marker(pytest.mark.skip(reason="no GPU on this machine"))

def pytest_collection_finish(): # what was imported is not looked through again: that stops all threads for a third of a second
    gc.collect()
    gc.freeze()

# `make pytest` runs in two parts; at the end the slowest tests of both are named

def pytest_addoption(parser):
    parser.addoption('--times', metavar='FILE', help="keep what each test takes in this file, and name the slowest ten in it")

def pytest_terminal_summary(terminalreporter, config):
    if not (file := config.getoption('--times')): return
    times = json.loads(Path(file).read_text('utf-8')) if Path(file).is_file() else {}
    for o in (o for found in terminalreporter.stats.values() for o in found if hasattr(o, 'duration')): # set-up, call, tear-down
        kept = times.setdefault(o.nodeid, dict(seconds=0, browser='browser' in o.keywords))
        kept['seconds'] = round(kept['seconds'] + o.duration, 3)
    Path(file).write_text(json.dumps(times, indent=1), 'utf-8')
    terminalreporter.section(f'slowest of {len(times)} tests')
    for name in sorted(times, key=lambda o: -times[o]['seconds'])[:10]:
        terminalreporter.write_line(f"{times[name]['seconds']:6.1f} s  {name}")

# Small things that many tests use; they import what they need, so that other tests start without torch

@pytest.fixture
def monkeypatch(tmp_path, monkeypatch): return monkeypatch # undone before the folder is removed: it may be `os.scandir`

@pytest.fixture(scope='session', autouse=True)
def surroundings(tmp_path_factory):
    "No windows, and nothing is left in folders of the user or of the system, also by processes that are killed"
    multiprocessing.util.get_temp_dir() # made now, for it is removed after all folders of pytest
    with pytest.MonkeyPatch.context() as m:
        m.setenv('MPLBACKEND', 'agg')
        m.setenv('IMGCLS_CACHE', str(tmp_path_factory.mktemp('cache')))
        temp = str(tmp_path_factory.mktemp('temp'))
        if len(temp) <= MOST: m.setenv('TMPDIR', temp), m.setattr(tempfile, 'tempdir', temp)
        if not os.environ.get('IMGCLS_SCREENSHOTS'): m.setenv('IMGCLS_SCREENSHOTS', str(tmp_path_factory.mktemp('screenshots')))
        yield

MOST = 64 # characters: the path of a socket has at most 104 on a Mac, and its name in a folder of its own takes 32

@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    "60 pictures: circles, squares and triangles; not to be changed"
    from imgcls_nb.datasets import make_shapes
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes')

@pytest.fixture(scope='session')
def trained_run(shapes, tmp_path_factory):
    "A run folder of a small network that knows its shapes; not to be changed"
    from imgcls_nb.data import image_dls
    from imgcls_nb.learner import image_learner
    dls = image_dls(shapes, size=32, bs=8, aug='light', device='cpu', num_workers=0)
    learn = image_learner(dls, 'test_resnet', run=tmp_path_factory.mktemp('runs')/'shapes', save_interval=0)
    with learn.no_bar(): learn.fit_one_cycle(12, 1e-2)
    return learn.run_folder.path

@pytest.fixture(scope='session')
def model_file(trained_run, tmp_path_factory):
    "A model.onnx, alone in its folder; not to be changed"
    from imgcls_nb.export import export_onnx
    file = tmp_path_factory.mktemp('models')/'model.onnx'
    export_onnx(trained_run, file)
    return file
