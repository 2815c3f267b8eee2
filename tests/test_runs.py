"A run folder: one writer, a log that survives anything, and readers that may look at any time"
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from imgcls_nb.checkpoints import save_checkpoint
from imgcls_nb.comparing import compare, plan_settings
from imgcls_nb.core import InputError
from imgcls_nb.locks import Holder, Lock, _me
from imgcls_nb.plan import DataPlan, FitPlan, ModelPlan, ObjectivePlan, Plan, begun_in, plan_from_yaml, plan_to_yaml
from imgcls_nb.resume import plan_changes
from imgcls_nb.runs import Run, describe_env

posix = pytest.mark.skipif(os.name != 'posix', reason="needs fork and signals")
linux = pytest.mark.skipif(platform.system() != 'Linux', reason="needs /proc")

def plan(path='photos', **kwargs): return Plan(DataPlan(path, **kwargs), ModelPlan('resnet18'))

@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path/'run')
    run.start(plan(seed=7), dict(vocab=['cat', 'dog']))
    return run

@pytest.fixture
def project(tmp_path, monkeypatch): # one with photos, beside another with other photos, in which we are
    for o in 'one/photos/train one/held one/lists one/train one/runs/a two/photos'.split(): (tmp_path/o).mkdir(parents=True)
    (tmp_path/'one/lists/all.txt').write_text('')
    monkeypatch.chdir(tmp_path/'two')
    return tmp_path/'one'

def written(project, run='runs/a', **data):
    (project/'runs/a/config.yaml').write_text(plan_to_yaml(replace(plan(**data), run=run)))
    return Run(project/'runs/a')

@pytest.mark.parametrize('data, found', [
    (dict(), dict(path='{}/photos')), (dict(path='.'), dict(path='{}')), (dict(path='{}/held'), dict(path='{}/held')),
    (dict(train='lists/all.txt', valid_path='held'), dict(path='{}/photos', train='{}/lists/all.txt', valid_path='{}/held')),
    (dict(train='train'), dict(train='train')), (dict(valid=.2), dict(valid=.2)),
    (dict(label_file='gone.txt'), dict(label_file='gone.txt')),
    (dict(path='held/{{0..9}}.tar'), dict(path='{}/held/{{0..9}}.tar'))], ids=str)
def test_paths_of_a_plan_lead_there_from_another_folder(project, data, found):
    def full(o): return {k: v.format(project.as_posix()) if isinstance(v, str) else v for k, v in o.items()}
    run = written(project, **full(data))
    got = run.plan.data
    assert {k: getattr(got, k) for k in found} == full(found)
    before = run.path.joinpath('config.yaml').read_text()
    run.write_plan(replace(run.plan, run=str(run.path)))
    after = plan_from_yaml(run.path.joinpath('config.yaml').read_text())
    if not os.path.isabs(full(data).get('path', '')): assert after == plan_from_yaml(before), "as it was typed where it began"
    else: assert after.data.path == 'held'

@pytest.mark.parametrize('run, named, home', [
    ('../one/runs/a', 'runs/a', 'one'), ('../two/../one/runs/a', 'runs/a', 'one'), ('../one/runs/b', 'runs/a', 'one'),
    ('../two/runs/a', 'runs/a', 'two'), ('../two/a', 'a', 'two'), ('../one/other', 'runs/a', None),
    ('../one/runs/a', '../runs/a', None), ('../one/runs/a', '/x/runs/a', None), ('../one/runs/a', None, None)])
def test_where_a_run_was_begun(project, run, named, home):
    (project.parent/'two/runs').mkdir()
    written(project, named).path.rename(project.parent/'two'/run)
    assert begun_in(named, run) == (home and project.parent/home)
    assert Run(run).plan.data.path == ((project/'photos').as_posix() if home == 'one' else 'photos')

@pytest.mark.skipif(os.name == 'nt', reason='needs links')
def test_links_to_runs(project, monkeypatch):
    run = written(project).path
    (project/'link').symlink_to(run)
    (project.parent/'beside').symlink_to(project)
    for o in (project/'link', '../beside/link', '../beside/runs/a'): assert Path(Run(o).plan.data.path).samefile(project/'photos')
    monkeypatch.chdir(project)
    Run('link').write_plan(replace(Run('link').plan, run='link'))
    assert Run('runs/a').plan == plan_from_yaml((run/'config.yaml').read_text()) == replace(plan(), run='runs/a')
    shutil.move(run.parent, project.parent/'large') # all runs are on another disk
    (project/'runs').symlink_to(project.parent/'large')
    monkeypatch.chdir(project.parent)
    assert Run('one/runs/a').plan.data.path == (project/'photos').as_posix()

def test_paths_of_a_run_elsewhere_are_absolute(project, monkeypatch): # its name does not tell where it was begun
    monkeypatch.chdir(project)
    for run in (project.parent/'far', Path('../up')):
        run.mkdir()
        Run(run).write_plan(replace(plan(valid='held', train='train'), run=str(run)))
        data = Run(run).plan.data
        assert (data.path, data.valid, data.train) == (str(project/'photos'), str(project/'held'), 'train')
        assert plan_changes(Run(run).plan, replace(plan(valid='held', train='train'), run=str(run))) == {}, "the same places"

def test_what_is_gone_is_not_looked_for_elsewhere(project, monkeypatch):
    run, there = written(project, train='lists/all.txt'), project.parent/'two'
    (there/'lists').mkdir()
    (there/'lists/all.txt').write_text('')
    shutil.rmtree(project/'lists')
    shutil.rmtree(project/'photos')
    assert (run.plan.data.path, run.plan.data.train) == (str(project/'photos'), str(project/'lists/all.txt'))

def test_a_plan_that_goes_on_from_elsewhere(project):
    run = written(project)
    run.write_plan(replace(run.plan, run='../one/runs/a', data=replace(run.plan.data, path='photos'))) # those that are here
    said = plan_from_yaml(run.path.joinpath('config.yaml').read_text())
    assert said.run == 'runs/a' and said.data.path == (project.parent/'two/photos').as_posix()
    run.path.joinpath('config.yaml').write_text('data: [') # damaged
    run.write_plan(plan(str(project)))
    assert run.plan == plan(str(project))

def left_by(run, **changes): # a lock file, as another process would have left it
    (run.path/'run.lock').write_text(json.dumps(asdict(replace(_me('theirs'), **changes))))

# One writer

HOLD = """import sys, time
from imgcls_nb.runs import Run
Run(sys.argv[1]).lock()
print('held', flush=True)
time.sleep(60)"""

@posix
def test_another_process_writes_and_is_killed(run, capsys):
    other = subprocess.Popen([sys.executable, '-c', HOLD, run.path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == 'held\n' and run.status == 'running'
        for act in (run.lock, lambda: Run(run.path).start(plan(), {})):
            with pytest.raises(InputError, match=f"is being written by process {other.pid} on .*Wait for it, stop it"): act()
        assert run.exists and run.data['vocab'] == ['cat', 'dog'], "nothing was moved aside"
    finally: other.kill()
    other.wait()
    assert run.status == 'killed'
    run.lock()
    assert f'was left by process {other.pid} on' in capsys.readouterr().out and run.status == 'running'
    run.unlock()
    assert run.status == 'empty' and not (run.path/'run.lock').exists()

@posix
def test_a_killed_one_whose_workers_live_on(run): # they inherit whatever it had open
    code = f"import os, time, sys\nfrom imgcls_nb.runs import Run\nRun({str(run.path)!r}).lock()\n" \
           "child = os.fork()\nif child == 0: time.sleep(60)\nprint(child, flush=True)\ntime.sleep(60)"
    other = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    worker = int(other.stdout.readline())
    other.kill()
    other.wait()
    try: run.lock()
    finally: os.kill(worker, signal.SIGKILL)
    run.unlock()

@linux
def test_a_killed_one_nobody_asked_about(run): # its parent has not read how it ended: a zombie
    other = subprocess.Popen([sys.executable, '-c', HOLD, run.path], stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED|os.WNOWAIT)
    assert run.status == 'killed'
    other.wait()

@posix
@pytest.mark.parametrize('changes, alive', [
    (dict(), True), (dict(began='1'), False), (dict(boot='another'), False), (dict(host='elsewhere', pid=2**22 + 1), True),
    (dict(pid=2**22 + 1), False), (dict(pid=1, began='1'), False)], ids=str)
def test_who_is_alive(run, changes, alive, capsys):
    if not _me('').began: pytest.skip('the system does not say when a process began')
    left_by(run, **changes)
    assert run.status == ('running' if alive else 'killed')
    if alive:
        with pytest.raises(InputError, match="is being written by"): run.lock()
        assert (f"delete '{run.path/'run.lock'}'" in str(pytest.raises(InputError, run.lock).value)) == ('host' in changes)
    else:
        run.lock()
        assert 'is taken over' in capsys.readouterr().out
        run.unlock()

def test_two_in_one_process(run):
    with run.locked():
        with pytest.raises(InputError, match='by another learner of this process'): Run(run.path).lock()
        with run.locked(): run.lock() # one that has it may ask again
        assert run.status == 'running', "and the inner block does not give it back"
    Run(run.path).lock()

def test_a_lock_is_given_back_after_an_error(run):
    with pytest.raises(ZeroDivisionError), run.locked(): raise ZeroDivisionError
    with Run(run.path).locked(): pass

@pytest.mark.parametrize('text', ['', '{', '{}', '[1]', 'null', '{"pid": 1}'])
def test_a_lock_that_was_cut_short(run, text):
    (run.path/'run.lock').write_text(text)
    with run.locked(): assert run.status == 'running'

def test_others_locks_are_not_given_back(run):
    run.lock()
    left_by(run) # somebody deleted ours by hand, and took it
    run.unlock()
    assert isinstance(Lock(run.path/'run.lock', '').holder, Holder)

@posix
def test_many_at_once(run):
    def ask(gate, answers):
        gate.wait()
        try: Run(run.path).lock()
        except InputError: answers.put(False)
        else: answers.put(True)
        threading.Event().wait(60)
    fork = multiprocessing.get_context('fork')
    for _ in range(5):
        left_by(run, pid=2**22 + 1)
        gate, answers = fork.Event(), fork.Queue()
        others = [fork.Process(target=ask, args=(gate, answers)) for _ in range(6)]
        for o in others: o.start()
        gate.set()
        got = [answers.get(timeout=60) for _ in others]
        for o in others: o.kill(), o.join()
        assert sum(got) == 1

# Starting

def test_what_a_start_writes(run):
    env, packages = run.env, run.env['packages']
    assert env['seed'] == 7 and packages['torch'] in torch.__version__ and run.data == dict(vocab=['cat', 'dog'])
    assert run.plan.data.seed == 7 and [o['event'] for o in run.events()] == ['start'] and not (run.path/'run.lock').exists()

@pytest.mark.skipif(not shutil.which('git'), reason="needs git")
def test_the_git_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert describe_env()['git'] is None
    git = lambda *a: subprocess.run(['git', '-c', 'user.name=a', '-c',
    'user.email=a@b', *a], check=True, capture_output=True, text=True)
    git('init')
    (tmp_path/'a').write_text('1')
    git('add', '.')
    git('commit', '-m', 'x')
    head = git('rev-parse', 'HEAD').stdout.strip()
    assert describe_env()['git'] == head
    (tmp_path/'a').write_text('2')
    assert describe_env()['git'] == f'{head}-dirty'

@pytest.mark.parametrize('text, cpu, units', [
    ('', None, ''), ('model name\t: X', 'X', ''), ('model name : X\nflags\t: sse fma avx2 avx\n', 'X', 'avx avx2 fma'),
    ('model name : X\nflags : avx\n\nmodel name : Y\nflags : fma\n\n', 'X', 'avx'),
    ('processor\t: 0\nFeatures\t: fp asimd sve asimddp aes\n\nprocessor\t: 1\n', None, 'asimd asimddp sve')])
def test_processors_of_all_kinds(monkeypatch, tmp_path, text, cpu, units):
    (tmp_path/'cpuinfo').write_text(text)
    monkeypatch.setattr('imgcls_nb.engines.Path', lambda _: tmp_path/'cpuinfo')
    env = describe_env()
    assert (env['cpu'], env['cpu_units']) == (cpu or platform.processor() or platform.machine(), units)

def test_a_start_that_was_killed_is_no_obstacle(tmp_path):
    (tmp_path/'run').mkdir()
    for o in ('run.lock', '.config.yaml.part'): (tmp_path/'run'/o).touch()
    Run(tmp_path/'run').start(plan(), {})
    assert Run.open(tmp_path/'run').status == 'empty'

def test_an_earlier_run_leaves_its_lock_behind(run):
    with run.locked():
        run.start(plan(), {})
        assert run.status == 'running', "who held it before holds it still"
        assert Run.open(run.path.with_name('run-1')).status == 'empty'
        with pytest.raises(InputError): Run(run.path).lock()

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0 or not shutil.which('mount'), reason="needs to mount")
def test_a_folder_that_can_only_be_read(tmp_path):
    (folder := tmp_path/'disk').mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'ro',
    'tmpfs', folder], capture_output=True).returncode: pytest.skip('no mounts')
    try:
        for act in (lambda r: r.check_alone(tmp_path/'photos'), lambda r: r.start(plan(), {}), lambda r: r.lock()):
            with pytest.raises(InputError, match="run' cannot be written: nothing may be written"): act(Run(folder/'run'))
    finally: subprocess.run(['umount', folder], check=True)

def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path/'file').touch()
    for path in ('file', 'file/run'):
        with pytest.raises(InputError, match='file'): Run(tmp_path/path).check_alone(tmp_path/'photos')

def test_a_run_that_another_begins_meanwhile_is_no_other_file(run, tmp_path, monkeypatch):
    seen = iter([False, True])
    with monkeypatch.context() as m:
        m.setattr(Run, 'exists', property(lambda self: next(seen)))
        run.check_alone(tmp_path/'photos')
    assert next(seen, None) is None

@pytest.mark.parametrize('file', ['config.yaml', 'run.jsonl'])
def test_files_that_vanish_while_they_are_looked_at(run, monkeypatch, file): # the run is moved aside
    run.log('epoch', epoch=1)
    monkeypatch.setattr(type(run.path), 'is_file', lambda self: True)
    (run.path/file).unlink()
    if file == 'run.jsonl': assert run.events() == []
    else:
        with pytest.raises(InputError, match='There is no file'): run.plan # noqa: B018

# What happened

def epoch(run, n, loss=1., step=None): run.log('epoch', epoch=n, step=step or 10*n, train_loss=loss, top1=1 - loss/2)
def steps(run, first, last, loss=1.):
    at = list(range(first, last + 1))
    run.log('steps', step=at, loss=[loss]*len(at), lr=[.1]*len(at), lr_first=[.1]*len(at), wait=[None]*len(at))

def test_an_epoch_that_was_done_again(run):
    for n in (1, 2, 3): epoch(run, n)
    epoch(run, 3, .5)
    epoch(run, 4, .4)
    assert run.history().epoch.tolist() == [1, 2, 3, 4] and run.history().train_loss.tolist() == [1, 1, .5, .4]

def test_after_a_resume_the_lost_branch_is_gone(run):
    for n in range(1, 6): epoch(run, n), steps(run, 10*n - 9, 10*n)
    run.log('resume', epoch=2, step=20)
    assert run.history().epoch.tolist() == [1, 2] and run.steps().step.tolist() == list(range(1, 21))
    epoch(run, 3, .5), steps(run, 21, 27, .5)
    assert run.history().train_loss.tolist() == [1, 1, .5]
    steps(run, 25, 30, .2) # killed once more, between two checkpoints
    table = run.steps()
    assert table.step.tolist() == list(range(1, 31)) and table.loss.tolist() == [1]*20 + [.5]*4 + [.2]*6

def test_nothing_yet(run):
    assert run.history().empty and run.steps().empty and list(run.steps()) == ['step', 'loss', 'lr', 'lr_first', 'wait']
    assert run.plot() and "0 epochs, empty" in repr(run)
    run.log('epoch', epoch=1, step=1)
    assert "1 epoch, killed" in repr(run)

def test_a_line_cut_within_a_letter(run):
    epoch(run, 1)
    with open(run.path/'run.jsonl', 'ab') as f: f.write('{"event": "warning", "text": "Ö'.encode()[:-1])
    assert len(run.events()) == 2
    run.log('warning', text='Größe \ud800') # a name that no UTF-8 holds
    assert [o['event'] for o in run.events()] == ['start', 'epoch', 'warning']

@pytest.mark.parametrize('events, status', [
    ('', 'empty'), ('resume', 'killed'), ('epoch checkpoint', 'killed'), ('epoch checkpoint end', 'finished'),
    ('epoch interrupted', 'interrupted'), ('epoch failed', 'failed'), ('epoch warning lost steps end', 'finished'),
    ('epoch stopped end', 'stopped'), ('epoch stopped checkpoint end', 'stopped'), ('epoch end +1 epoch', 'killed'),
    ('interrupted resume epoch', 'killed'), ('interrupted resume +1 epoch end', 'finished'), ('failed +1 epoch', 'killed'),
    ('stopped +1 epoch end', 'finished'), ('interrupted end', 'finished')])
def test_status(run, events, status):
    step = 1
    for o in events.split():
        if o == '+1': step += 1
        else: run.log(o, epoch=1, step=step)
    assert run.status == status

def test_lines_of_many_threads_are_whole(run):
    said = ['x'*20_000]*40
    with ThreadPoolExecutor(8) as pool: [*pool.map(lambda text: run.log('warning', text=text), said)]
    assert [o['text'] for o in run.events('warning')] == said

def test_reading_while_it_is_written(run):
    stop = threading.Event()
    def write():
        n = 0
        while not stop.wait(.02): epoch(run, n := n + 1), steps(run, 10*n - 9, 10*n)
    writer = threading.Thread(target=write)
    writer.start()
    try: seen = [(len(run.history()), len(run.steps())) for _ in range(10) if not stop.wait(.05)]
    finally: stop.set(), writer.join()
    assert seen == sorted(seen) and seen[-1][0] > 1 and run.history().epoch.is_monotonic_increasing

def test_the_best(run):
    with pytest.raises(InputError, match="no checkpoint 'best_model'"): run.best # noqa: B018
    save_checkpoint(run.path, 'best_model', dict(w=torch.ones(2)), None, dict(epoch=3, step=30))
    assert run.best.facts['epoch'] == 3

def test_curves(run):
    for n in range(1, 4): epoch(run, n, 1/n), steps(run, 10*n - 9, 10*n)
    run.log('epoch', epoch=4, step=40, train_loss='nan', top1=.5)
    loss, score, rate = run.plot().axes
    assert [o.get_label() for o in loss.lines] == ['train_loss'] and [o.get_label() for o in score.lines] == ['top1']
    assert rate.lines[0].get_xdata()[-1] == 30 and loss.lines[0].get_xdata().tolist() == [1, 2, 3, 4]

# Side by side

def make_run(folder, epochs=2, **changes):
    run = Run(folder)
    run.start(replace(plan(), schedule=(FitPlan('fine_tune', dict(epochs=epochs)),), **changes), {})
    for n in range(1, epochs + 1): epoch(run, n, 1/n)
    return run

def test_settings_that_differ_come_first(tmp_path):
    make_run(tmp_path/'a')
    make_run(tmp_path/'b', epochs=4, objective=ObjectivePlan(opt='sgd', weight_decay=.1), run='../elsewhere')
    table = compare([tmp_path/'a', Run(tmp_path/'b')]).table
    assert list(table)[:4] == ['objective.opt', 'objective.weight_decay', 'schedule', 'status']
    assert table.loc['a', 'objective.weight_decay'] == '' and table.loc['b', 'schedule'] == 'fine_tune(epochs=4)'
    assert table.epochs.tolist() == [2, 4] and table.top1.tolist() == [.75, .875]

def test_the_best_epoch_counts(tmp_path):
    run = make_run(tmp_path/'a')
    save_checkpoint(run.path, 'best_model', {}, None, dict(epoch=1, step=10, top1=.9, position=dict(call=0)))
    table = compare(run.path).table
    assert (table.best_epoch.item(), table.top1.item()) == (1, .9) and 'position' not in table
    assert list(table)[0] == 'status', "one run differs from none"

def test_runs_of_one_name_and_without_epochs(tmp_path):
    for o in ('x/run', 'y/run'): Run(tmp_path/o).start(plan(), {})
    result = compare(tmp_path.glob('*/run'))
    assert result.table.status.tolist() == ['empty']*2 and result.plot() and '<table' in result._repr_html_()

def test_curves_of_several(tmp_path):
    runs = [make_run(tmp_path/o, n) for o, n in (('a', 2), ('b', 3))]
    left, right = compare(runs).plot().axes
    assert [len(o.get_xdata()) for o in right.lines] == [2, 3] and right.get_title() == 'top1'
    with pytest.raises(InputError, match="metric='top2' is in none of the runs.*Did you mean 'top1'"):
        compare(runs).plot('top2')
    with pytest.raises(InputError, match='no runs to compare'): compare([])
    with pytest.raises(InputError, match='no run folder.*Runs beside it: a, b'): compare([tmp_path/'c'])

def test_settings_are_flat():
    settings = plan_settings(plan(vocab=('cat', 'dog'), augment=(['Flip', {}],)))
    assert settings['data.vocab'] == 'cat, dog' and settings['data.augment'] == '["Flip", {}]' and 'run' not in settings
