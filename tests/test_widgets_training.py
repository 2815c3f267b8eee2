"The dashboard without a browser: what a log says in every odd state, and what each action does"
import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.learner import image_learner
from imgcls_nb.plan import DataPlan, FitPlan, ModelPlan, Plan
from imgcls_nb.runs import Run
from imgcls_nb.widgets import TrainingDashboard
from imgcls_nb.widgets.following import Curve, LogReader, RunFollower, RunState, planned_epochs
from imgcls_nb.widgets.training import DashboardState


def make(shapes, run=None, **kwargs):
    dls = image_dls(shapes, size=32, bs=8, aug='none', device='cpu', num_workers=0, cache=False)
    return image_learner(dls, 'test_resnet', run=run, save_interval=0, precision='fp32', **kwargs)

@pytest.fixture(scope='module')
def runs(shapes, tmp_path_factory):
    "Two finished runs; not to be changed"
    folder = tmp_path_factory.mktemp('watched')
    for name, n in (('a', 2), ('b', 3)): TrainingDashboard(make(shapes, folder/name), 'fit_one_cycle', n, 1e-2).start().wait()
    return folder

def steps(first, n, time=0., loss=1.): # a block of the log
    numbers = list(range(first, first + n))
    return dict(event='steps', time=time, step=numbers, loss=[loss]*n, lr=[.1]*n, lr_first=[.1]*n, wait=[.1]*n)

def epoch(n, step, time=0., **values): return dict(event='epoch', time=time, epoch=n, step=step, seconds=4.) | values

def fed(*events, plan=None):
    state = RunState('x')
    state.plan = plan
    for o in events: state.feed(o)
    return state

def planned(*fits, bs=8): return SimpleNamespace(schedule=fits, data=SimpleNamespace(step_bs=bs), monitor=None)

# Curves

@pytest.mark.parametrize('n', [0, 1, 7, 8, 9, 1000, 123_456])
def test_a_curve_stays_short_and_keeps_its_mean(n):
    curve = Curve(limit=64)
    for i in range(n): curve.add(i + 1, float(i))
    x, y = curve.points()
    assert len(x) == len(y) <= 65 and x == sorted(set(x)) and (not n or x[-1] == n)
    if n: assert abs(np.interp(n/2, x, y) - n/2) <= 2 + n/16

@pytest.mark.parametrize('back', [1, 30, 64, 90])
def test_a_resume_forgets_what_it_does_again(back):
    curve = Curve(limit=1000)
    for i in range(1, 91): curve.add(i, 1.)
    for i in range(back, 101): curve.add(i, 2.)
    x, y = curve.points()
    assert x == list(range(1, 101)) and y == [1.]*(back - 1) + [2.]*(101 - back)

# Logs

def test_a_log_is_read_once(tmp_path):
    reader, file = LogReader(tmp_path), tmp_path/'run.jsonl'
    assert reader.read() == []
    file.write_text('{"event": "a"}\nno json\n[1]\n{"time": 3}\n\n{"event": "b"}\n{"eve')
    assert [o['event'] for o in reader.read()] == ['a', 'b'] and reader.read() == []
    with open(file, 'a') as f: f.write('nt": "c"}\n')
    assert [o['event'] for o in reader.read()] == ['c'] and not reader.renewed

def test_another_run_in_the_same_place(tmp_path):
    reader = LogReader(tmp_path/'run')
    for name in ('first', 'second'):
        (tmp_path/'run').mkdir()
        (tmp_path/'run/run.jsonl').write_text(json.dumps(dict(event=name)) + '\n')
        assert [o['event'] for o in reader.read()] == [name] and reader.renewed == (name == 'second')
        os.rename(tmp_path/'run', tmp_path/name)

# States

START = dict(event='start', time=0.)
STOPPED = dict(event='stopped', time=5., step=8, why='time is up')

@pytest.mark.parametrize('events, status', [
    ([], 'waiting'), ([START], 'training'), ([START, steps(1, 4)], 'training'),
    ([START, steps(1, 4), dict(event='paused')], 'paused'),
    ([START, dict(event='paused'), dict(event='resumed')], 'training'), ([START, steps(1, 8), STOPPED], 'stopped'),
    ([START, STOPPED, steps(5, 4)], 'stopped'), ([START, STOPPED, steps(9, 4)], 'training'),
    ([START, steps(1, 4), dict(event='failed', error='no disk')], 'failed'), ([START, dict(event='interrupted')], 'interrupted'),
    ([START, epoch(1, 4)], 'training'), ([START, epoch(1, 4), epoch(2, 8)], 'done'), ([START, epoch(2, 8), START], 'training'),
    ([dict(event='unheard of')], 'waiting')])
def test_status(events, status):
    assert fed(*events, plan=planned(FitPlan('fit', dict(n_epoch=2)))).status == status

@pytest.mark.parametrize('fits, n', [
    ([], None), ([FitPlan('fit', dict(n_epoch=3))], 3), ([FitPlan('fine_tune', dict(epochs=3))], 4),
    ([FitPlan('fine_tune', dict(epochs=3, freeze_epochs=2))], 5),
    ([FitPlan('freeze_to', {}), FitPlan('fit_flat_cos', dict(n_epoch=2))], 2),
    ([FitPlan('fit_sgdr', dict(n_cycles=3, cycle_len=2))], 2 + 4 + 8)])
def test_planned_epochs(fits, n): assert planned_epochs(planned(*fits)) == n

def test_cycles_count_while_they_last_and_when_they_are_over():
    plan = planned(FitPlan('fit_sgdr', dict(n_cycles=2, cycle_len=1)), FitPlan('fit', dict(n_epoch=5)))
    states = [fed(*(epoch(i + 1, 4*i + 4) for i in range(n)), plan=plan) for n in range(1, 5)]
    assert [(o.call, o.total) for o in states] == [(0, 8), (0, 8), (0, 8), (1, 8)]

def test_a_run_with_odd_notes_is_followed(tmp_path):
    run = Run(tmp_path/'run')
    run.start(Plan(DataPlan('photos'), ModelPlan('resnet18'), run=str(tmp_path/'run')), {})
    (run.path/'data.json').write_text('[1]')
    assert RunFollower(run.path).update()

def test_speed_and_time_left():
    plan = planned(FitPlan('fit', dict(n_epoch=3)))
    state = fed(START, steps(1, 2, 1.), steps(3, 2, 2.), plan=plan)
    state.pictures = 64
    assert state.speed() == dict(steps_per_s=2., data_wait=pytest.approx(.2), images_per_s=16.)
    assert state.seconds_left() == pytest.approx((24 - 4)/2)
    state.feed(epoch(1, 8, 6.))
    assert state.seconds_left() == pytest.approx(8.) and state.progress() == pytest.approx(1/3)
    assert fed(START, steps(1, 2)).seconds_left() is None

ONE_CYCLE = FitPlan('fit_one_cycle', dict(n_epoch=4))

def run_log(first, last, before=0, step=0): # epochs of four steps, each with its block
    for n in range(first, last + 1): yield from (steps(step + 4*(n - first) + 1, 4), epoch(n, step + 4*(n - first + 1)))

@pytest.mark.parametrize('end', [dict(event='stopped', step=10, why='somebody asked for it'), dict(event='interrupted', step=10)])
def test_a_training_started_again_counts_its_own_epochs(end):
    state = fed(START, *run_log(1, 2), steps(9, 2), end, plan=planned(ONE_CYCLE, ONE_CYCLE))
    state.feed(steps(11, 2))
    assert (state.status, state.why, state.total) == ('training', '', 2 + 4) and state.progress() == pytest.approx(2.5/6)
    for o in run_log(3, 6, step=10): state.feed(o)
    assert (state.status, state.progress(), state.steps_per_epoch()) == ('done', 1., 4)

@pytest.mark.parametrize('events, status, total', [
    ([*run_log(1, 4)], 'training', 8), ([*run_log(1, 4), dict(event='end', step=16), *run_log(5, 8, step=16)], 'done', 8),
    ([*run_log(1, 2), dict(event='end', step=8)], 'done', 8), # ended by a callback: the rest is not of this call
    ([*run_log(1, 3), dict(event='interrupted', step=12), dict(event='resume', step=12), *run_log(4, 4, step=12)], 'training', 8),
    ([*run_log(1, 4), *run_log(5, 8, step=16)], 'done', 8)])
def test_calls_one_after_the_other(events, status, total):
    state = fed(START, *events, plan=planned(ONE_CYCLE, ONE_CYCLE))
    assert (state.status, state.total) == (status, total)

def test_steps_between_calls_count_for_none_of_them():
    state = fed(START, *run_log(1, 1), STOPPED, dict(event='resume', step=4), plan=planned(ONE_CYCLE))
    assert (state.status, state.why, state.total) == ('training', '', 4), 'the same call goes on'
    freezing = planned(FitPlan('freeze_to', {}), ONE_CYCLE, FitPlan('unfreeze', {}), ONE_CYCLE)
    assert fed(START, *run_log(1, 2), STOPPED, steps(13, 2), plan=freezing).total == 6

def test_values_that_are_no_numbers():
    state = fed(START, steps(1, 2, loss='nan'), epoch(1, 2, valid_loss='nan', top1=.5), epoch(2, 4, valid_loss=.3, top1='nan'))
    assert state.loss.points() == ([], []) and state.curve('valid_loss') == ([4], [.3]) and state.curve('top1') == ([2], [.5])

def test_an_epoch_done_again_replaces_the_first():
    state = fed(START, epoch(1, 4, top1=.1), epoch(2, 8, top1=.2), epoch(2, 8, top1=.3))
    assert state.curve('top1') == ([4, 8], [.1, .3])

@pytest.mark.parametrize('pictures, spike', [(33, False), (40, True), (None, True)])
def test_a_tiny_last_batch_makes_no_spike(pictures, spike):
    state = RunState('x')
    state.plan, state.pictures = planned(ONE_CYCLE), pictures
    for n in range(1, 4): # four batches of eight, and one of a single picture
        for o in (steps(5*n - 4, 4), steps(5*n, 1, loss=9.), epoch(n, 5*n)): state.feed(o)
    assert (max(state.smooth.points()[1]) > 1.5) == spike and max(state.loss.points()[1]) == 9.

def test_the_training_loss_is_that_of_the_epoch_and_within_one_of_the_last_steps():
    state = fed(START, steps(1, 4), steps(5, 1, loss=9.), epoch(1, 5, train_loss=.7))
    assert state.train_loss == .7
    state.feed(steps(6, 1, loss=1.))
    assert state.train_loss == state.smooth.points()[1][-1] != 1.
    assert RunState('x').train_loss is None

# The dashboard's state

def test_the_follower_agrees_with_the_run(runs):
    follower, run = RunFollower(runs/'b'), Run(runs/'b')
    assert follower.update() and not follower.update()
    state, table = follower.state, run.steps()
    assert state.loss.points() == (table.step.tolist(), table.loss.tolist()) and state.progress() == 1. and state.status == 'done'
    assert state.curve('top1')[1] == run.history().top1.tolist() and len(state.worst['pictures']) == 12

@pytest.mark.parametrize('source, words', [([], 'no run to show'), (['a', 'gone'], 'no run folder')])
def test_what_cannot_be_watched(runs, source, words):
    with pytest.raises(InputError, match=words): DashboardState([runs/o for o in source])

def test_a_run_that_is_about_to_begin(shapes, tmp_path):
    state = DashboardState(tmp_path/'soon')
    assert (state.status(), state.actions(), state.lines()[0][4]) == ('No run is here yet.', set(), [])
    learn = make(shapes, tmp_path/'soon')
    with learn.no_bar(): learn.fit(1)
    assert state.update() and state.run.step == len(learn.dls.train)

def test_folders_are_watched_and_not_started(runs):
    state = DashboardState(runs/'a')
    with pytest.raises(InputError, match='cannot be started'): state.start()
    with pytest.raises(InputError, match='cannot be started'): DashboardState(runs/'a', 'fit', 3)
    with pytest.raises(InputError, match='Several runs'): DashboardState([runs/'a', runs/'b']).ask('stop')
    assert state.actions() == set() and state.wait()

def test_requests_reach_another_process(tmp_path):
    (tmp_path/'config.yaml').touch()
    state = DashboardState(tmp_path)
    state.run.feed(START)
    assert state.actions() == {'pause', 'stop', 'save'}
    state.run.feed(dict(event='paused'))
    assert state.actions() == {'resume', 'stop', 'save'}
    for o in ('resume', 'stop'): state.ask(o)
    assert [json.loads(o)['ask'] for o in (tmp_path/'requests.jsonl').read_text().splitlines()] == ['resume', 'stop']

def test_nothing_to_start(shapes):
    with pytest.raises(InputError, match="TrainingDashboard\\(learn, 'fine_tune', 5\\)"): DashboardState(make(shapes)).start()

def test_saving_needs_a_folder(shapes):
    state = DashboardState(make(shapes), 'fit', 1000)
    state.start()
    try:
        with pytest.raises(InputError, match='run='): state.ask('save')
    finally:
        state.ask('stop')
        state.wait(30)

def test_pictures_that_are_gone_have_a_place(runs, shapes):
    state = DashboardState(runs/'a')
    (source, name, truth, guess, loss, prob), *_ = state.worst()
    assert source == shapes/name and truth in ('circle', 'square', 'triangle') and 0 <= prob <= 1
    state.run.worst = dict(root='nowhere', pictures=[['x.png', 'circle', 'square', None, None]])
    board = TrainingDashboard(runs/'a')
    card = board._card(state.worst()[0])
    assert 'no such file' in card[0].why and board._card(('x', 'x', 'a', 'a', None, None))[1] == ['a', 'right', '–']

# The view

def shown(board): return board.widget # which builds it

def test_buttons_do_what_the_state_can(shapes, tmp_path):
    board = TrainingDashboard(make(shapes, tmp_path/'run'), 'fit', 1000)
    assert board.plot() is None and set(board._repr_mimebundle_()) == {'text/plain'}
    shown(board)
    enabled = lambda: {k for k, v in board.buttons.items() if not v.disabled}
    assert enabled() == {'start'}
    board.buttons['start'].click()
    assert enabled() == {'pause', 'stop', 'save'} and board.state.running
    board.buttons['save'].click()
    board.buttons['stop'].click()
    board.wait(30)
    assert enabled() == {'start'} and board.line.value.count('>Stopped') == 1
    assert names(tmp_path/'run') == ['saved', 'stopped'] and 'image/png' in board._repr_mimebundle_()

def test_started_again_after_a_stop(shapes, tmp_path):
    board = TrainingDashboard(make(shapes, tmp_path/'run'), 'fit', 1000)
    shown(board)
    board.start()
    board.note.say('Saved as latest after step 12.', 'done')
    board.stop()
    board.wait(30)
    done, board.state.args = board.state.run.done, (2,)
    board.start()
    assert board.note.text == '', 'what was said of the first is gone'
    board.wait(30)
    assert board.state.facts()['epochs done'] == f'{done + 2} of {done + 2}' and board.state.status() == 'Done.'

def names(path): return [o['event'] for o in Run(path).events() if o['event'] in ('saved', 'stopped')]

def test_an_error_is_shown_and_raised(shapes):
    def trip(): raise InputError("The lights went out.")
    board = TrainingDashboard(make(shapes), trip)
    shown(board)
    board.start()
    with pytest.raises(InputError, match='lights'): board.wait(30)
    assert (board.note.text, board.note.kind) == ('The lights went out.', 'error') and not board.buttons['start'].disabled

def test_several_runs(runs):
    board = TrainingDashboard([runs/'a', runs/'b'])
    shown(board)
    assert {o.name.partition(':')[0] for o in board.chart.data} == {'a', 'b'} and board.facts.value.count('<tr>') == 3
    assert len(board.plot().axes) == 3

def test_new_points_come_into_the_old_lines(runs):
    board = TrainingDashboard(runs/'a')
    shown(board)
    chart = board.chart
    n, line = len(chart.data), next(o for o in chart.data if o.name == 'training loss')
    before = len(line.x)
    board.state.run.feed(steps(1000, 5))
    board.refresh()
    assert len(chart.data) == n and len(line.x) == before + 5

def test_a_learner_without_a_run_folder(shapes):
    board = TrainingDashboard(make(shapes), 'fit', 2).start()
    assert board.wait(30) and board.state.facts()['epochs done'] == '2 of 2' and board.state.worst()
    assert board.state.learn.plan.custom == ()

def test_a_second_dashboard_attaches_to_the_training(shapes):
    learn = make(shapes)
    first = TrainingDashboard(learn, 'fit', 1000).start()
    second = TrainingDashboard(learn, 'fit', 1000)
    try:
        assert second.state.running and second.state.actions() == {'pause', 'stop', 'save'}
        with pytest.raises(InputError, match='trained already'): second.start()
    finally: second.stop()
    assert first.wait(30) and second.wait(30)

def test_panels_without_a_point_say_what_they_wait_for(shapes):
    board = TrainingDashboard(make(shapes))
    shown(board)
    layout = board.chart.layout
    axes = lambda: [layout[o].visible for o in ('xaxis', 'xaxis2', 'xaxis3')]
    assert not any(axes()) and layout.annotations[4].text == 'after the first epoch'
    board.state.run.feed(steps(1, 4))
    board.refresh()
    assert axes() == [True, False, True] and layout.xaxis.title.text == 'step'
    assert [o.visible for o in layout.annotations[3:]] == [False, None, False] == [o.visible for o in layout.shapes]

def test_panels_below_each_other_where_it_is_narrow(shapes):
    board = TrainingDashboard(make(shapes))
    dress, layout = shown(board).children[0], board.chart.layout
    places = lambda: [(layout[f'xaxis{i}'].domain, layout[f'yaxis{i}'].domain) for i in (1, 2, 3)]
    wide = places()
    assert board.chart._config['responsive'] and all(a[0][1] < b[0][0] for a, b in zip(wide, wide[1:]))
    dress.narrow = True
    assert all(a[1][0] > b[1][1] for a, b in zip(places(), places()[1:])) and 'ic-narrow' in board.frame._dom_classes
    dress.narrow = False
    assert places() == wide and 'ic-narrow' not in board.frame._dom_classes

def test_one_word_for_going_on(shapes):
    board = TrainingDashboard(make(shapes), 'fit', 1000)
    shown(board)
    board.start()
    try:
        board.pause()
        assert wait_until(lambda: board.refresh() or board.buttons['pause'].description == 'Resume')
    finally:
        board.stop()
        board.wait(30)

def wait_until(true, seconds=20):
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end: time.sleep(.05)
    return found

def test_a_page_that_opens_later_gets_all_points(runs):
    board = TrainingDashboard(runs/'a')
    shown(board)
    board.refresh()
    chart = board.chart
    state = chart.get_state()
    assert len(state['_widget_data']) == len(chart.data) and state['_widget_layout']['height'] == chart.layout.height
    assert set(chart.get_state(key='_view_count')) == {'_view_count'}

def test_a_chart_is_told_of_with_its_lines(runs, monkeypatch):
    from ipywidgets.widgets import widget as module
    told, create = [], module.comm.create_comm
    monkeypatch.setattr(module.comm, 'create_comm', lambda **kwargs: told.append(kwargs) or create(**kwargs))
    board = TrainingDashboard(runs/'a')
    assert board.widget
    charts = [o['data']['state'] for o in told if '_widget_data' in o['data']['state']]
    assert len(charts) == 1 and len(charts[0]['_widget_data']) == len(board.chart.data) > 2
    assert charts[0]['_widget_layout']['height'] == board.chart.layout.height

def test_of_several_runs_the_table_names_the_colours(runs):
    board = TrainingDashboard([runs/'a', runs/'b'])
    assert board.widget and not board.chart.layout.showlegend and TrainingDashboard(runs/'a').widget
    colours = {o.line.color for o in board.chart.data}
    assert len(colours) == 2 and all(f'background:{o}' in board.facts.value for o in colours)

def test_launched_processes(tmp_path):
    asked = []
    job = SimpleNamespace(process=1, run=tmp_path/'run', running=True, text='one\ntwo', error=None, ask=asked.append)
    board = TrainingDashboard(job)
    shown(board)
    assert board.state.status() == 'Starting …' and not board.buttons['stop'].disabled and 'start' not in board.buttons
    assert '<details open>' in board.printed.value and '2 lines' in board.printed.value
    board.stop()
    assert asked == ['stop']
    job.running, job.error = False, InputError('process 1 was killed')
    board.refresh()
    assert board.buttons['stop'].disabled and 'process 1 was killed' in board.note.text
