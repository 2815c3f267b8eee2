"The dashboard and the viewers beside it in a browser, as a person uses them: JupyterLab, and Notebook 7 on the same run"
import json
import os
import subprocess
import sys
import time

import pytest
from browsing import (
    ANY_APP,
    chromium,
    errors,
    jupyter,
    needs_browser,
    needs_notebook,
    open_notebook,
    run_all_cells,
    save,
    set_theme,
    snap,
    violations,
    wait_for,
    write_notebook,
)

pytestmark = needs_browser

START = '''
import time
from pathlib import Path
from fastai.callback.core import Callback
from imgcls_nb.data import image_dls
from imgcls_nb.datasets import make_shapes
from imgcls_nb.learner import image_learner
from imgcls_nb.widgets import AugmentExplorer, LRFinder, ModelPicker, TrainingDashboard

class Slow(Callback): # so that it can be told which batch a click falls into
    def before_batch(self):
        if self.training:
            with open('batches.txt', 'a') as f: f.write(f'{time.time()}\\n')
            time.sleep(.3)

dls = image_dls(make_shapes('shapes', 12), size=32, bs=8, aug='light', device='cpu', num_workers=0, cache=False)
learn = image_learner(dls, 'test_resnet', run='runs/x', save_interval=0, cbs=Slow())
'''
BOARD = "TrainingDashboard(learn, 'fit_one_cycle', 400, 1e-2)"
OTHERS = ["LRFinder(learn, num_it=30)", "ModelPicker(max_params=30)", "AugmentExplorer(dls, rows=1)"]


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('jupyter')

@pytest.fixture(scope='module')
def url(folder):
    write_notebook(folder/'train.ipynb', START, *OTHERS, BOARD)
    write_notebook(folder/'watch.ipynb', "from imgcls_nb.widgets import TrainingDashboard\nTrainingDashboard('runs/x')")
    write_notebook(folder/'shell.ipynb', "from imgcls_nb.widgets import TrainingDashboard\nTrainingDashboard('runs/shell')")
    with jupyter(folder, ANY_APP) as url: yield url

@pytest.fixture(scope='module')
def page(url):
    with chromium(1300, 3600) as page:
        open_notebook(page, url, 'train.ipynb')
        run_all_cells(page)
        wait_for(lambda: page.locator('.imgcls').count() == 4 or errors(page).count(), 120, 'four viewers')
        wait_for(lambda: board(page).locator('.js-plotly-plot').count() or errors(page).count(), 30, 'the chart')
        assert not errors(page).count(), errors(page).first.inner_text()
        yield page

def board(page): return page.locator('.imgcls:has(button:has-text("Save now"))')
def press(page, label): board(page).locator(f'button:has-text("{label}")').click()
def status(page): return board(page).locator('[role=status]').first.inner_text()

def log(folder, *names):
    file = folder/'runs/x/run.jsonl'
    events = [json.loads(o) for o in file.read_text().splitlines() if o.endswith('}')] if file.exists() else []
    return [o for o in events if o['event'] in names]

def batches(folder): return [float(o) for o in (folder/'batches.txt').read_text().splitlines()]

def steps(page):
    text = board(page).locator('dt:text-is("steps") + dd').inner_text()
    return int(text.replace(',', ''))


def test_both_themes_can_be_read(page):
    for name in ('JupyterLab Light', 'JupyterLab Dark'):
        set_theme(page, name)
        page.wait_for_timeout(500) # colours fade over
        snap(page, f'training-{name.split()[-1].lower()}')
        assert violations(page) == []
    set_theme(page, 'JupyterLab Light')

def test_charts_fit_their_frames_in_any_window(page):
    for width in (620, 1300):
        page.set_viewport_size(dict(width=width, height=3600))
        wait_for(lambda: all(abs(have - frame) < 2 for have, frame in page.evaluate(_WIDTHS)), 10, f'charts for {width} pixels')
    rows = {round(o.bounding_box()['y']) for o in board(page).locator('.ic-facts > div').all()}
    assert len(rows) <= 3, 'several numbers stand in a row'

_WIDTHS = """[...document.querySelectorAll('.ic-chart')].map(o =>
  [o.querySelector('.main-svg').getBoundingClientRect().width, o.getBoundingClientRect().width])"""

def test_a_click_picks_a_network(page):
    picker = page.locator('.imgcls:has-text("in the zoo")')
    before = picker.locator('code').inner_text()
    picker.locator('select[size], select').last.select_option(index=3)
    wait_for(lambda: picker.locator('code').inner_text() != before, 10, 'another network')
    assert errors(page).count() == 0

def test_a_training_starts_and_shows_itself(page, folder):
    height = board(page).bounding_box()['height']
    press(page, 'Start')
    wait_for(lambda: log(folder, 'worst'), 30, 'an epoch')
    wait_for(lambda: steps(page) > 0 and board(page).locator('.ic-gallery img').count() > 3, 10, 'the worst pictures')
    assert status(page) == 'Training.' and board(page).bounding_box()['height'] == height

def test_a_reload_finds_the_training_again(page, url, folder):
    save(page)
    before = len(batches(folder))
    page.goto('about:blank')
    open_notebook(page, url, 'train.ipynb', reset=False)
    wait_for(lambda: board(page).count() and steps(page) > before, 60, 'the dashboard, with steps made meanwhile')
    first = steps(page)
    wait_for(lambda: steps(page) > first, 10, 'more steps')
    press(page, 'Save now')
    wait_for(lambda: log(folder, 'saved'), 30, 'a checkpoint')

@needs_notebook
def test_notebook_7_watches_and_pauses_the_same_run(page, url, folder):
    other = page.context.new_page()
    open_notebook(other, url, 'watch.ipynb', app='notebook')
    run_all_cells(other)
    wait_for(lambda: board(other).count() and steps(other) > 0, 60, 'the run in another kernel')
    assert board(other).locator('button:has-text("Start")').count() == 0 and violations(other) == []
    press(other, 'Pause')
    wait_for(lambda: status(other) == 'Paused.' and status(page) == 'Paused.', 10, 'a pause on both pages')
    snap(other, 'notebook-training')
    n = len(batches(folder))
    time.sleep(.8)
    assert len(batches(folder)) <= n + 1 and log(folder, 'paused')
    press(other, 'Resume')
    wait_for(lambda: len(batches(folder)) > n + 2, 10, 'more batches')
    other.close()

def test_stop_ends_within_two_batches(page, folder):
    press(page, 'Stop')
    clicked = time.time()
    wait_for(lambda: log(folder, 'stopped'), 30, 'the end')
    assert sum(o > clicked + 1 for o in batches(folder)) <= 2, "when the click has come through"
    wait_for(lambda: status(page).startswith('Stopped'), 10, 'its word')
    wait_for(board(page).locator('button:has-text("Start")').is_enabled, 5, 'a new start')
    time.sleep(.8)
    assert len(log(folder, 'stopped')) == 1 and batches(folder)[-1] < clicked + 2
    assert (folder/'runs/x/latest.safetensors').exists() and errors(page).count() == 0

def test_a_training_of_the_shell_is_watched_and_stopped(page, url, folder):
    command = 'train shapes --arch test_resnet --epochs 100000 --size 32 --bs 8 --valid .2 --run runs/shell'.split()
    env, log = os.environ | dict(PYTHONUNBUFFERED='1'), folder/'runs/shell/run.jsonl'
    shell = subprocess.Popen([sys.executable, '-m', 'imgcls_nb.cli', *command], cwd=folder, env=env, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: '"epoch"' in log.read_text(), 90, 'an epoch from the shell')
        open_notebook(page, url, 'shell.ipynb')
        run_all_cells(page)
        wait_for(lambda: board(page).count() and steps(page) > 0 and status(page).startswith('Training'), 60, 'the run')
        press(page, 'Stop')
        assert shell.wait(30) == 0
        wait_for(lambda: status(page).startswith('Stopped'), 10, 'its word')
        assert errors(page).count() == 0 and '"stopped"' in log.read_text()
    finally:
        shell.kill()
        shell.wait()
