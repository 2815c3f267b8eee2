"Several processes from JupyterLab, in a browser: the dashboard is in the cell, and its button is heard while the cell waits"
import re

import pytest
from browsing import chromium, errors, jupyter, needs_browser, open_notebook, run_all_cells, wait_for, write_notebook

from imgcls_nb.runs import Run

pytestmark = needs_browser

START = '''
from imgcls_nb.data import image_dls
from imgcls_nb.datasets import make_shapes
from imgcls_nb.distributed import launch
from imgcls_nb.learner import image_learner

dls = image_dls(make_shapes('shapes', 12), size=32, bs=8, device='cpu', num_workers=0, cache=False)
learn = image_learner(dls, 'test_resnet', run='runs/plan')
before = learn.model.state_dict()['fc.weight'].clone()
'''
LAUNCH = "job = launch(learn, nproc=2, fit=('fit', dict(n_epoch=5000)), wait=False)\njob"
AWAIT = "learn = await job\nprint('came back:', learn.clock.steps, bool((learn.model.state_dict()['fc.weight'] != before).any()))"
OWN = '''%%launch --nproc 2 --run runs/own
from imgcls_nb.data import image_dls
from imgcls_nb.learner import image_learner

dls = image_dls('shapes', size=32, bs=4, device='cpu', num_workers=0, cache=False)
learn = image_learner(dls, 'test_resnet', run=run)
learn.fit(5000)
'''
LAST = "print('own came back:', learn.clock.steps)"


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('jupyter')

@pytest.fixture(scope='module')
def page(folder):
    write_notebook(folder/'launch.ipynb', START, LAUNCH, AWAIT, OWN, LAST)
    with jupyter(folder) as url, chromium(1300, 3600) as page:
        open_notebook(page, url, 'launch.ipynb')
        run_all_cells(page)
        yield page

def text(page): return page.locator('.jp-Notebook:visible').inner_text()

def stop_when_it_trains(page, which, run): # by the dashboard of a cell
    board = page.locator('.imgcls:has(button:has-text("Save now"))').nth(which)
    steps = board.locator('dt:text-is("steps") + dd')
    wait_for(lambda: errors(page).count() or board.count() and int(steps.inner_text().replace(',', '')) > 0, 90, 'a training')
    assert not errors(page).count(), errors(page).first.inner_text()
    printed = board.locator('details[open] pre')
    wait_for(lambda: 'train_loss' in printed.inner_text(), 20, 'what the processes print')
    assert Run(run).status == 'running' and Run(run).env['processes'] == 2
    board.locator('button:has-text("Stop")').click()
    wait_for(lambda: board.locator('[role=status]').first.inner_text().startswith('Stopped'), 20, 'the end')
    assert Run(run).last_status == 'stopped'

def test_launched_from_a_plan(page, folder):
    stop_when_it_trains(page, 0, folder/'runs/plan')
    wait_for(lambda: re.search(r'came back: \d+ \w+', text(page)), 20, 'the learner')
    steps, changed = re.search(r'came back: (\d+) (\w+)', text(page)).groups()
    assert changed == 'True' and int(steps) == Run(folder/'runs/plan').events('stopped')[-1]['step']

def test_a_cell_of_ones_own(page, folder):
    stop_when_it_trains(page, 1, folder/'runs/own')
    wait_for(lambda: re.search(r'own came back: \d+', text(page)), 20, 'the learner')
    assert int(re.search(r'own came back: (\d+)', text(page))[1]) == Run(folder/'runs/own').events('stopped')[-1]['step']
    assert not errors(page).count()
