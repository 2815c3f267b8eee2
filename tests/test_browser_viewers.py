"The viewers of pictures in JupyterLab, as a person uses them: clicks, keys, and what is in the files afterwards"
import json
from pathlib import Path

import numpy as np
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

from imgcls_nb.datasets import make_shapes

pytestmark = needs_browser
KINDS, SIZE = ('circle', 'square', 'triangle'), 32

LISTS = dict(train='train_list.txt', label_file='label_list.txt')
IMPORTS = f'''
from imgcls_nb.edits import Edits
from imgcls_nb.evaluation import Evaluation
from imgcls_nb.plan import DataPlan
from imgcls_nb.widgets.cleaner import DatasetCleaner
from imgcls_nb.widgets.confusion import ConfusionViewer
from imgcls_nb.widgets.losses import TopLosses
from imgcls_nb.widgets.topk import TopKViewer
LISTS = {LISTS}
'''
CELLS = [IMPORTS, "ConfusionViewer(Evaluation.load('ev'), edits=Edits('confusion.jsonl', root='shapes'))",
         "DatasetCleaner(DataPlan('shapes', **LISTS), Evaluation.load('oof'), edits=Edits('cleaner.jsonl', root='shapes'))",
         "TopKViewer('model.onnx', pictures='shapes/square')", "TopLosses(Evaluation.load('ev'), edits=False)"]

# Real pictures, real networks: 240 shapes, 20 of them with a wrong label in the list

@pytest.fixture(scope='module')
def work(tmp_path_factory):
    from imgcls_nb.data import image_dls
    from imgcls_nb.evaluate import evaluate
    from imgcls_nb.export import export_onnx
    from imgcls_nb.label_errors import out_of_fold
    from imgcls_nb.learner import image_learner
    folder = tmp_path_factory.mktemp('viewers')
    path = make_shapes(folder/'shapes', n=80, size=SIZE)
    names = [o.relative_to(path).as_posix() for o in sorted(path.rglob('*.png'))]
    labels, rng = np.array([KINDS.index(o.split('/')[0]) for o in names]), np.random.default_rng(1)
    planted = rng.choice(len(names), 20, replace=False)
    labels[planted] = (labels[planted] + 1 + rng.integers(0, 2, 20)) % 3
    (path/'train_list.txt').write_text(''.join(f'{o} {i}\n' for o, i in zip(names, labels)))
    (path/'label_list.txt').write_text(''.join(f'{i} {o}\n' for i, o in enumerate(KINDS)))
    dls = image_dls(path, **LISTS, valid=.3, size=SIZE, bs=16, aug='light', num_workers=0, device='cpu')
    learn = image_learner(dls, 'test_resnet')
    with learn.no_bar(): learn.fit_one_cycle(10, 1e-2)
    evaluate(learn).save(folder/'ev')
    out_of_fold(learn.plan, k=2).save(folder/'oof')
    export_onnx(learn, folder/'model.onnx')
    return folder

@pytest.fixture(scope='module')
def url(work):
    write_notebook(work/'viewers.ipynb', *CELLS)
    write_notebook(work/'other.ipynb', IMPORTS, CELLS[1].replace('confusion.jsonl', 'other.jsonl'))
    with jupyter(work, ANY_APP) as url: yield url

@pytest.fixture(scope='module')
def page(url):
    with chromium() as page:
        open_notebook(page, url, 'viewers.ipynb')
        run_all_cells(page)
        failed = errors(page)
        wait_for(lambda: page.locator('.icd').count() == 4 or failed.count(), 120, 'four viewers')
        wait_for(lambda: page.locator('.js-plotly-plot .nsewdrag').count() or failed.count(), 60, 'the matrix')
        assert not failed.count(), failed.first.inner_text()
        yield page

class Viewer:
    "A viewer on the page, as a person sees it"
    def __init__(self, page, nth): self.page, self.box = page, page.locator('.imgcls').nth(nth)

    def text(self, css): return self.box.locator(css).inner_text()
    def names(self): return [o.get_attribute('title') for o in self.box.locator('.icd-card').all()]
    def note(self): return self.text('.ic-note')
    def at(self): return self.box.locator('.icd-at').get_attribute('title')

    def height(self): return self.box.bounding_box()['height']

    def press(self, key): # and wait for the answer, as a person does
        self.page.keyboard.press(key)
        self.box.locator('.icd-grid[aria-busy=false]').wait_for(timeout=10_000)

def read_list(file):
    rows = [line.rsplit(' ', 1) for line in Path(file).read_text().splitlines()]
    return {Path(name).as_posix().removeprefix('shapes/'): KINDS[int(label)] for name, label in rows}

def apply(work, log, name):
    from imgcls_nb.edits import Edits
    from imgcls_nb.revise import apply_edits
    apply_edits(work/'shapes/train_list.txt', Edits(work/log, root=work/'shapes'), work/name)
    return read_list(work/name)


def test_a_cell_shows_its_pictures_and_a_digit_repairs_one(page, work):
    from imgcls_nb.evaluation import Evaluation
    from imgcls_nb.widgets.confusion import Navigator
    ev, viewer = Evaluation.load(work/'ev'), Viewer(page, 0)
    assert set(viewer.names()) <= {ev.paths[i] for i in np.flatnonzero(~ev.correct)}, 'mistakes, to begin with'
    cm, height = ev.confusion_matrix(), viewer.height()
    np.fill_diagonal(cm, 0)
    truth, guess = np.unravel_index(cm.argmax(), cm.shape)
    order = Navigator(ev).order.tolist()
    place = viewer.box.locator('.nsewdrag').bounding_box()
    x = place['x'] + place['width']*(order.index(guess) + .5)/3
    y = place['y'] + place['height']*(order.index(truth) + .5)/3
    page.mouse.move(x - 4, y - 4)
    page.mouse.move(x, y)
    page.wait_for_timeout(300) # plotly looks where the mouse rests
    page.mouse.click(x, y)
    want = {ev.paths[i] for i in np.flatnonzero((ev.targs == truth) & (ev.preds == guess))}
    wait_for(lambda: 'taken for' in viewer.text('.icd-status'), 10, 'the cell')
    assert len(viewer.names()) == len(want) and set(viewer.names()) == want and viewer.height() == height
    viewer.box.locator('.icd-grid').focus()
    name, before = viewer.at(), read_list(work/'shapes/train_list.txt')
    viewer.press(str(guess + 1))
    edit = json.loads((work/'confusion.jsonl').read_text().splitlines()[-1])
    assert (edit['picture'], edit['old'], edit['new']) == (name, KINDS[truth], KINDS[guess])
    assert apply(work, 'confusion.jsonl', 'mended.txt') == before | {name: KINDS[guess]} and before[name] == KINDS[truth]
    viewer.press('u')
    wait_for(lambda: 'Taken back' in viewer.note(), 10, 'the word')
    assert viewer.at() == name and apply(work, 'confusion.jsonl', 'undone.txt') == before

def test_twenty_wrong_labels_are_repaired_by_keyboard(page, work):
    viewer, before = Viewer(page, 1), read_list(work/'shapes/train_list.txt')
    right = {name: name.split('/')[0] for name in before} # the folder says what was drawn
    left = {name for name in before if before[name] != right[name]}
    assert len(left) == 20
    viewer.box.locator('.icd-grid').focus()
    for _ in range(30): # those that are wrong come first
        name = viewer.at()
        viewer.press(str(KINDS.index(right[name]) + 1) if name in left else 'ArrowRight')
        left -= {name}
        if not left: break
    assert not left
    height = viewer.height()
    page.keyboard.press('9')
    wait_for(lambda: viewer.note().startswith('No class has the digit 9'), 10, 'the error')
    assert viewer.height() == height, 'an error moves nothing'
    assert apply(work, 'cleaner.jsonl', 'clean.txt') == right
    cells = page.locator('.jp-Notebook:visible .jp-Cell').count()
    assert cells == len(CELLS), 'no key reached the notebook'

def test_the_first_guess_is_the_predictors(page, work):
    from imgcls_nb.predict import Predictor
    viewer, predict = Viewer(page, 2), Predictor(work/'model.onnx')
    for key in (None, 'ArrowRight', 'End'):
        if key: viewer.press(key)
        else: viewer.box.locator('.icd-grid').focus()
        said = predict(work/'shapes/square'/viewer.at())
        viewer.box.locator(f'.ict li:first-child b:text-is("{said.prob:.1%}")').wait_for(timeout=10_000)
        assert viewer.box.locator('.ict li span').all_inner_texts() == [label for label, _ in said.topk]
    new = work/'new.png'
    new.write_bytes((work/'shapes/circle/003.png').read_bytes())
    with page.expect_file_chooser() as dialog: viewer.box.locator('button:text-is("Choose files")').click()
    dialog.value.set_files(str(new))
    wait_for(lambda: viewer.at() == 'new.png', 10, 'the new picture')
    wait_for(lambda: viewer.box.locator('.ict li span').first.inner_text() == predict(new).label, 10, 'the answer')
    plain = viewer.box.locator('.ict img').get_attribute('src')
    viewer.box.locator('input[type=checkbox]').check()
    wait_for(lambda: viewer.box.locator('.ict img').get_attribute('src') != plain, 10, 'what it looked at')

IN_SIGHT = ('.icd-at', '.icd-big', '.icd-chip[aria-pressed=true]') # where, what, and which class

def test_the_cursor_stays_in_sight_in_a_small_window(page):
    viewer, panel = Viewer(page, 1), page.locator('.jp-WindowedPanel-outer:visible')
    def hidden():
        top, bottom = (o := panel.bounding_box())['y'], o['y'] + o['height']
        places = {css: viewer.box.locator(css).bounding_box() for css in IN_SIGHT}
        return [css for css, o in places.items() if o['y'] < top - 1 or o['y'] + o['height'] > bottom + 1]
    def scroll(edge, css): # the notebook, until something lies just within its upper or lower edge
        page.evaluate("""([edge, o, panel]) => {
          const [a, b] = [o.getBoundingClientRect(), panel.getBoundingClientRect()]
          panel.scrollTop += edge === 'upper' ? a.top - b.top : a.bottom - b.bottom
        }""", [edge, viewer.box.locator(css).element_handle(), panel.element_handle()])
    page.set_viewport_size(dict(width=1100, height=760))
    try:
        viewer.box.locator('.icd-grid').focus()
        for key in ('Home', 'ArrowDown', 'ArrowDown', 'ArrowDown', 'ArrowLeft', 'Home'):
            viewer.press(key)
            wait_for(lambda: not hidden(), 5, f'what {key} brings into sight') # Lab may still lay out the smaller window
        for edge, css in (('lower', '.icd-at'), ('upper', '.icd-chip[aria-pressed=true]'), ('lower', '.icd-big')):
            scroll(edge, css)
            assert hidden()
            viewer.press('ArrowRight')
            assert not hidden()
        viewer.press('Home')
        scroll('lower', '.icd-at')
        assert hidden()
        before = panel.evaluate('o => o.scrollTop')
        viewer.box.locator('.icd-at').click()
        viewer.box.locator('.icd-grid[aria-busy=false]').wait_for(timeout=10_000)
        assert panel.evaluate('o => o.scrollTop') == before, 'nothing moves under the mouse'
    finally: page.set_viewport_size(dict(width=1300, height=6000))

def test_a_reload_finds_the_viewers_again(page, url):
    save(page)
    page.wait_for_timeout(500)
    page.goto('about:blank')
    open_notebook(page, url, 'viewers.ipynb', reset=False)
    wait_for(lambda: page.locator('.icd').count() == 4, 60, 'four viewers')
    viewer = Viewer(page, 0)
    wait_for(lambda: viewer.box.locator('.heatmaplayer text').count() >= 3, 30, 'the counts in the matrix')
    viewer.box.get_by_label('Most confused pairs').select_option(index=1)
    wait_for(lambda: 'taken for' in viewer.text('.icd-status') and viewer.names(), 10, 'the pictures of a pair')

@needs_notebook
def test_notebook_7_repairs_and_takes_back(page, url, work):
    other = page.context.new_page()
    open_notebook(other, url, 'other.ipynb', app='notebook')
    run_all_cells(other)
    wait_for(lambda: other.locator('.icd-card').count() and other.locator('.js-plotly-plot .nsewdrag').count(), 60, 'the viewer')
    viewer, log = Viewer(other, 0), work/'other.jsonl'
    viewer.box.get_by_label('Most confused pairs').select_option(index=0)
    wait_for(lambda: 'taken for' in viewer.text('.icd-status'), 10, 'a pair')
    viewer.box.locator('.icd-grid').focus()
    name, before = viewer.at(), read_list(work/'shapes/train_list.txt')
    new = next(i for i, o in enumerate(KINDS) if o != before[name])
    viewer.press(str(new + 1))
    assert json.loads(log.read_text())['new'] == KINDS[new] and apply(work, log, 'other.txt') == before | {name: KINDS[new]}
    viewer.press('u')
    assert viewer.at() == name and apply(work, log, 'again.txt') == before
    assert other.locator('.jp-Cell').count() == 2 and violations(other) == []
    snap(other, 'notebook-viewer')
    other.close()

def test_chosen_pictures_are_left_out_moved_and_taken_back(page, work):
    viewer, log = Viewer(page, 1), work/'cleaner.jsonl'
    standing = lambda: [json.loads(o) for o in log.read_text().splitlines()]
    viewer.box.locator('.icd-grid').focus()
    for key in ('Home', 'Shift+ArrowRight', 'Shift+ArrowRight'): viewer.press(key)
    chosen, before = viewer.names()[:3], len(standing())
    assert viewer.box.locator('.icd-card[aria-selected=true]').count() == 3 and '3 chosen' in viewer.text('.icd-status')
    viewer.press('x')
    assert [(o['picture'], o['field'], o['new']) for o in standing()[before:]] == [(o, 'ignore', True) for o in chosen]
    assert viewer.box.locator('.icd-card[data-edit=ignore]').count() == 3
    viewer.press('u')
    assert viewer.box.locator('.icd-card[data-edit=ignore]').count() == 0
    assert set(chosen) <= set(apply(work, log.name, 'back.txt'))
    viewer.box.locator('.icd-card').nth(4).click()
    viewer.box.locator('.icd-card').nth(6).click(modifiers=['Control'])
    page.wait_for_timeout(300)
    viewer.box.locator('.icd-acts button:has-text("Move")').click()
    wait_for(lambda: 'moved to' in viewer.note(), 10, 'the word')
    last = standing()[-1]
    assert last['picture'] == viewer.names()[6] and last['field'] == 'split' and last['old'] != last['new']
    viewer.box.locator('.icd-grid').focus()
    viewer.press('u')
    wait_for(lambda: 'Taken back' in viewer.note(), 10, 'the word')

def test_deleted_pictures_have_a_place(page, work):
    from imgcls_nb.evaluation import Evaluation
    ev, viewer = Evaluation.load(work/'ev'), Viewer(page, 3)
    gone = ev.paths[int(np.argsort(ev.label_probs, kind='stable')[24])] # the first of the second page
    (work/'shapes'/gone).unlink()
    viewer.box.locator('.icd-grid').focus()
    viewer.press('PageDown')
    assert viewer.at() == gone and 'cannot be shown' in viewer.box.locator('.icd-at').inner_text()
    assert 'no such file' in viewer.text('.icd-facts')

@pytest.mark.parametrize('theme', ['Light', 'Dark'])
def test_contrast_and_labels(page, work, theme): # the last, so that all viewers have been used
    set_theme(page, f'JupyterLab {theme}')
    page.wait_for_timeout(500) # colours fade over
    for nth in range(4): snap(Viewer(page, nth).box, f'viewer-{nth}-{theme.lower()}')
    assert violations(page) == []
