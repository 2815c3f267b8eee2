"What viewers are given and do not expect: names that are markup, sources without pictures, logs of others, runs that were killed"
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.evaluation import Evaluation
from imgcls_nb.learner import image_learner
from imgcls_nb.predict import Prediction
from imgcls_nb.widgets import AugmentExplorer, ModelPicker, TopKViewer, TopLosses, TrainingDashboard
from imgcls_nb.widgets.confusion import ConfusionViewer
from imgcls_nb.widgets.desk import Desk
from imgcls_nb.widgets.following import LearnerFollower, RunState, Watcher
from imgcls_nb.widgets.gallery import Gallery
from imgcls_nb.widgets.looks import Note, chart_text, distinct_names, paper_text
from imgcls_nb.widgets.topk import pictures_of
from imgcls_nb.widgets.training import DashboardState


def made_up(n, vocab, **kwargs):
    targs = np.arange(n) % len(vocab)
    return Evaluation(np.eye(len(vocab))[targs[::-1]], targs, vocab, [f'{i}.png' for i in range(n)], **kwargs)

def make(shapes, **kwargs):
    dls = image_dls(shapes, size=32, bs=8, aug='none', device='cpu', num_workers=0, cache=False)
    return image_learner(dls, 'test_resnet', save_interval=0, precision='fp32', **kwargs)

def run_of(path, *events): # a run folder with a log
    path.mkdir(parents=True, exist_ok=True)
    (path/'config.yaml').touch()
    (path/'run.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in events))
    return path

START = dict(event='start', time=0.)

def steps(n, loss=1., first=1):
    numbers = list(range(first, first + n))
    return dict(event='steps', time=1., step=numbers, loss=[loss]*n, lr=[.1]*n, lr_first=[.1]*n, wait=[.1]*n)

@pytest.fixture
def kernel(monkeypatch):
    for o in ('looks', 'training'): monkeypatch.setattr(f'imgcls_nb.widgets.{o}.has_kernel', lambda: True)

# Names that are markup, and figures that cannot be drawn

ODD = ['$\\frac$', 'a$b^^$c', '<a href="https://x.y">cat</a>', 'US$ 5_']

def test_names_are_text_for_matplotlib_and_plotly():
    viewer = ConfusionViewer(made_up(40, ODD), edits=False)
    assert 'image/png' in viewer._repr_mimebundle_() and viewer.widget
    texts = [*viewer.figure.data[0].x, *viewer.figure.layout.xaxis.ticktext]
    assert not [o for o in texts if '<' in o or '$' in o] and '&lt;a href' in ''.join(texts)
    assert (paper_text('5$'), chart_text('<b>&$')) == (r'5\$', '&lt;b&gt;&amp;&#36;')

def test_a_run_may_be_called_anything(tmp_path):
    runs = [run_of(tmp_path/o, START, steps(9)) for o in ('<b>a', 'b$c$')]
    board = TrainingDashboard(runs)
    assert board.widget and 'image/png' in board._repr_mimebundle_()
    assert {o.name.partition(':')[0] for o in board.chart.data} == {'&lt;b&gt;a', 'b&#36;c&#36;'}

def test_without_its_pictures_a_viewer_is_shown(kernel):
    viewer = TopLosses(made_up(4, 'abc'))
    bundle = viewer._repr_mimebundle_()
    assert {'image/png', 'application/vnd.jupyter.widget-view+json'} <= set(bundle)

def test_a_twin_that_fails_costs_nothing_else(kernel, monkeypatch):
    viewer = ConfusionViewer(made_up(4, 'abc'), edits=False)
    monkeypatch.setattr(viewer, 'plot', lambda: 1/0)
    bundle = viewer._repr_mimebundle_()
    assert 'application/vnd.jupyter.widget-view+json' in bundle and 'image/png' not in bundle
    assert viewer.note.kind == 'error' and 'division by zero' in viewer.note.text

def test_a_picker_that_finds_nothing_says_so(shapes):
    picker = ModelPicker(pattern='zzzzz')
    assert picker.widget and picker.arch is None and picker.choice.code == '' and '0 found' in picker.line.value
    assert picker.plot() is not None
    picker.inputs['pattern'].value = 'resnet18'
    assert picker.arch.startswith('resnet18') and picker.arch in picker.line.value

def test_an_augmentation_of_ranges_has_a_slider(shapes):
    explorer = AugmentExplorer(shapes, size=32, rows=1, cols=2, aug=[('ColorJitter', dict(brightness=(.6, 1.3)))])
    assert explorer.widget and explorer.inputs['colours'].value == pytest.approx(.4)

# Pictures that come and go

class Answering: # a model
    path, card, asked = None, type('Card', (), dict(temperature=1.)), 0
    def logits(self, x): return np.zeros((1, 2))
    def __call__(self, source, k=5):
        self.asked += 1
        return Prediction(None, 0., source='x', error='-')

def test_a_thousand_dropped_files():
    model = Answering()
    viewer = TopKViewer(model, pictures=[np.zeros((8, 8), np.uint8)])
    answers = viewer.topk.answers(0)
    for i in range(1100): viewer.add([(f'{i}.png', b'%d' % i)])
    pics = viewer.topk.pics
    assert len(pics) == 1101 and pics.source(1100) == b'1099' and pics.source(1) == b'0' and len(pics.labels) == 1101
    assert viewer.topk.answers(0) is answers and model.asked == 1, 'what was answered stays'
    viewer.add([])
    viewer.take(None)
    assert len(viewer.topk.pics) == 0

def test_another_picture_of_the_same_name_has_its_own_thumbnail():
    red, blue = np.zeros((2, 300, 300, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    gallery = Gallery(pictures_of([red]))
    desk = Desk(gallery, Note())
    shown = []
    for o in (red, blue, red):
        gallery.pics = pictures_of([o])
        gallery.show([0])
        shown.append((desk.page['cards'][0]['src'], desk.marks['big']))
    assert shown[0] == shown[2] and all(a != b for a, b in zip(*shown[:2]))

# Several runs, several dashboards

@pytest.mark.parametrize('paths, names', [
    (['x/a', 'x/b'], ['a', 'b']), (['x/a', 'y/a'], ['x/a', 'y/a']), (['x/1/a', 'y/1/a', 'y/2/b'], ['x/1/a', 'y/1/a', 'y/2/b']),
    (['x/a', 'x/a'], ['a', 'a']), ([], [])])
def test_as_much_of_a_path_as_tells_it_apart(paths, names): assert distinct_names(paths) == names

@pytest.mark.parametrize('folders', [('x/net', 'y/net'), ('x/net', 'x/net')])
def test_runs_of_one_name_have_their_own_lines(tmp_path, folders):
    runs = [run_of(tmp_path/o, START, steps(20, i + 1.)) for i, o in enumerate(folders)]
    board = TrainingDashboard(runs)
    assert board.widget
    for i, o in enumerate(runs):
        with open(o/'run.jsonl', 'a') as f: f.write(json.dumps(steps(20, i + 1., 21)) + '\n')
    board.refresh()
    lines = [o for o in board.chart.data if 'training loss' in o.name]
    assert len(lines) == 2 and all(len(o.x) >= 40 for o in lines)
    if folders[0] != folders[1]:
        assert [o.y[-1] for o in lines] == [1., 2.] and [o.name.partition(':')[0] for o in lines] == list(folders)

def test_two_who_follow_a_learner_see_all_of_it(shapes):
    learn = make(shapes)
    first, second = LearnerFollower(learn), LearnerFollower(learn)
    with learn.no_bar(): learn.fit(2)
    late = LearnerFollower(learn)
    for o in (first, second, late): assert o.update() and not o.update()
    assert [len(o.state.epochs) for o in (first, second, late)] == [2, 2, 2]

def test_a_dashboard_made_before_start_can_stop_it(shapes):
    learn = make(shapes)
    first, second = (DashboardState(learn, 'fit', 1000) for _ in range(2))
    first.start()
    try:
        assert second.running and 'stop' in second.actions()
        second.ask('stop')
    finally:
        first.training.stop() if not learn.control.asked and first.running else None
        assert first.wait(30) and second.wait(30)
    assert not second.running and second.actions() == {'start'}

# Threads

def watchers(): return [o for o in threading.enumerate() if isinstance(o, Watcher)]

def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end: time.sleep(.05)
    return found

def test_a_cell_that_is_run_again_leaves_no_thread(kernel, tmp_path):
    boards = []
    for _ in range(4):
        boards.append(TrainingDashboard(tmp_path/'soon'))
        assert boards[-1].widget
    other = TrainingDashboard(tmp_path/'else')
    assert other.widget and wait_until(lambda: len(watchers()) == 2), watchers()
    for o in (boards[-1], other): o.close()
    assert wait_until(lambda: not watchers())

def test_it_looks_while_a_page_shows_it(kernel, tmp_path):
    board, second = (TrainingDashboard(tmp_path/'soon') for _ in range(2))
    dress = board.widget.children[0]
    dress.views = 1
    assert second.widget and len(watchers()) == 2, 'one that is seen goes on'
    second.close()
    dress.views = 0
    assert wait_until(lambda: not watchers())
    dress.views = 1
    assert wait_until(lambda: len(watchers()) == 1)
    board.close()
    assert wait_until(lambda: not watchers())

# Logs of others, and of the dead

@pytest.mark.parametrize('event, skipped', [
    (dict(event='epoch', time=1., epoch=1), 0), (dict(event='epoch', step=3), 1), (dict(event='epoch', epoch='x', step=[]), 1),
    (dict(event='steps', step=[1], loss=[1.], lr=[.1], lr_first=[.1]), 0), (dict(event='steps', step=[1, 2]), 0),
    (dict(event='steps', time='noon', step=[1], loss=['x'], lr=[None], wait=[None, 'x']), 0), (dict(event='steps'), 1),
    (dict(event='steps', step=[]), 1), (dict(event='steps', step=['a'], loss=[1.]), 1), (dict(event='saved'), 0),
    (dict(event='worst', pictures=[['a']]), 1), (dict(event='worst', pictures=7), 1), (dict(event='worst'), 0),
    (dict(event='stopped', step='x'), 1), (dict(event='checkpoint', best=True), 0), (dict(event=['odd']), 0)])
def test_an_odd_line_ends_no_dashboard(tmp_path, event, skipped):
    board = TrainingDashboard(run_of(tmp_path/'r', START, event, steps(4)))
    assert board.widget and board.state.run.skipped == skipped and board.state.run.step == 4
    with open(tmp_path/'r/run.jsonl', 'a') as f: f.write(json.dumps(event) + '\n' + json.dumps(steps(4, first=5)) + '\n')
    board.refresh()
    assert board.state.run.step == 8 and len(board.state.run.loss.points()[0]) >= 5
    assert ('odd events' in board.state.status()) == bool(skipped)

def test_skipping_is_forgotten_with_the_run():
    state = RunState('x')
    for o in (START, dict(event='steps'), START): state.feed(o)
    assert state.skipped == 0

TRAIN = '''
import imgcls_nb.data
from imgcls_nb.data import image_dls
from imgcls_nb.learner import image_learner
dls = image_dls({!r}, size=32, bs=8, aug='none', device='cpu', num_workers=0, cache=False)
image_learner(dls, 'test_resnet', run={!r}, save_interval=0).fit(100_000)'''

def test_a_killed_run_says_so_and_how_to_go_on(shapes, tmp_path):
    run = tmp_path/'run'
    script = subprocess.Popen([sys.executable, '-c', TRAIN.format(str(shapes), str(run))], stdout=subprocess.DEVNULL)
    log = run/'run.jsonl'
    try:
        assert wait_until(lambda: log.exists() and log.read_text().count('"epoch"') > 2, 60)
        watching = DashboardState(run)
        assert watching.status().startswith('Training') and watching.actions() == {'pause', 'stop', 'save'}
    finally:
        os.kill(script.pid, signal.SIGKILL)
        script.wait()
    fresh = DashboardState(run)
    watching.update()
    watching.update()
    for state in (fresh, watching):
        assert state.status() == f'Killed after step {state.run.step:,}. Go on with: imgcls resume {run}'
        assert state.actions() == set() and state.update() is False
        with pytest.raises(InputError, match='imgcls resume'): state.ask('stop')
    assert DashboardState([run, run]).table()[1][1] == 'killed'
    board = TrainingDashboard(run)
    assert board.widget and all(o.disabled for o in board.buttons.values())
