"The gallery's script in a browser, with its Python side here: what happens while an answer is on its way"
import io

import numpy as np
import pytest
from browsing import chromium, needs_browser
from PIL import Image

from imgcls_nb.core import InputError
from imgcls_nb.edits import Edits
from imgcls_nb.widgets.desk import Desk
from imgcls_nb.widgets.gallery import Gallery, Judged
from imgcls_nb.widgets.looks import Note

pytestmark = needs_browser

MOUNT = """async ([script, style, state]) => {
  const listeners = {}, sent = []
  const model = { get: k => state[k], on: (e, f) => { listeners[e] = f },
    send: (message, _, buffers = []) => sent.push([message, buffers.map(o => [...new Uint8Array(o)])]) }
  window.take = () => sent.splice(0)
  window.update = changes => {
    Object.assign(state, changes)
    for (const k in changes) listeners['change:' + k]?.()
  }
  document.body.innerHTML = `<style>${style}</style><div class="imgcls"></div>`
  const url = URL.createObjectURL(new Blob([script], { type: 'text/javascript' }))
  const { default: { render } } = await import(url)
  render({ model, el: document.querySelector('.imgcls') })
}"""

class Screen:
    "A desk on a page; what a person does reaches Python when `answer` is called, as over a slow line"
    def __init__(self, page, desk):
        self.page, self.desk = page, desk
        page.evaluate(MOUNT, [str(Desk._esm), str(Desk._css), self._state()])

    def _state(self): return dict(page=self.desk.page, marks=self.desk.marks, vocab=self.desk.vocab)

    def answer(self):
        for message, buffers in self.page.evaluate('window.take()'):
            try: self.desk.receive(message, [bytes(o) for o in buffers])
            except InputError: pass # which the note says
            self.page.evaluate('o => window.update(o)', self._state())

    def keys(self, *names):
        self.page.locator('.icd-grid').focus()
        for o in names: self.page.keyboard.press(o)

    def at(self): return self.page.locator('.icd-at').get_attribute('title')
    def edits(self): return [(o['picture'], o['field'], o['new']) for o in self.desk.gallery.decisions.edits.standing()]

@pytest.fixture(scope='module')
def page():
    with chromium(1000, 900) as page: yield page

@pytest.fixture
def screen(page, tmp_path): return make_screen(page, tmp_path, 'abc')

def make_screen(page, folder, vocab, names=None, **kwargs):
    names = names or [f'{i}.png' for i in range(12)]
    probs = np.random.default_rng(0).random((len(names), len(vocab)))
    pics = Judged(names, lambda i: np.full((8, 8), i, np.uint8), np.zeros(len(names), int), tuple(vocab), probs, 'valid')
    gallery = Gallery(pics, Edits(folder/'edits.jsonl'), per_page=8)
    gallery.show(np.arange(len(names)), 'all')
    return Screen(page, Desk(gallery, Note(), **kwargs))


def test_digits_may_be_typed_quicker_than_they_are_answered(screen):
    screen.keys('2', 'ArrowRight', '3', '2')
    assert screen.at() == '4.png', 'the frame does not wait'
    screen.answer()
    assert [o[0::2] for o in screen.edits()] == [('0.png', 'b'), ('2.png', 'c'), ('3.png', 'b')] and screen.at() == '4.png'

def test_a_held_key_decides_once(screen):
    screen.keys()
    for _ in range(5): screen.page.keyboard.down('2') # without a release these are repeats
    for _ in range(3): screen.page.keyboard.down('ArrowRight')
    screen.page.keyboard.up('2')
    screen.answer()
    assert screen.edits() == [('0.png', 'label', 'b')] and screen.at() == '4.png', 'arrows go on'

def test_a_digit_of_many_classes_waits_for_their_names(page, tmp_path):
    screen = make_screen(page, tmp_path, [f'class {i}' for i in range(30)])
    screen.keys('1', '1')
    screen.answer()
    assert len(screen.edits()) == 1 and 'Press it again' in screen.desk.note.text and screen.at() == '1.png'
    screen.keys('1')
    screen.answer()
    assert len(screen.edits()) == 2

def test_what_was_not_seen_is_not_decided_about(screen):
    screen.desk.gallery.move(3) # a cell of the notebook moves the cursor, and the page does not know yet
    screen.keys('2')
    screen.answer()
    assert screen.edits() == [] and 'Press it again' in screen.desk.note.text and screen.at() == '3.png'
    screen.keys('2')
    screen.answer()
    assert screen.edits() == [('3.png', 'label', 'b')]

@pytest.mark.parametrize('key', ['PageDown', 'End', 'a', ' '])
def test_a_decision_right_after_a_jump_or_a_choice_waits(screen, key):
    screen.keys(key, 'x')
    screen.answer()
    assert screen.edits() == [] and 'Press it again' in screen.desk.note.text
    screen.keys('x')
    screen.answer()
    assert len(screen.edits()) == (8 if key == 'a' else 1)

def test_a_click_names_what_it_meant(screen):
    screen.page.locator('.icd-card').nth(5).click()
    screen.page.locator('.icd-chip').nth(2).click()
    screen.answer()
    assert screen.edits() == [('5.png', 'label', 'c')]
    screen.page.locator('button:has-text("Undo")').click()
    screen.answer()
    assert screen.edits() == [] and screen.at() == '5.png'

def test_names_are_text(page, tmp_path):
    odd = '<img src=x onerror="document.title=1">'
    screen = make_screen(page, tmp_path, [odd, 'b'], [f'{odd}.png', 'b.png'])
    screen.keys('2', 'ArrowLeft')
    screen.answer()
    assert screen.page.title() == '' and screen.page.locator('.icd img[src=x]').count() == 0
    for part in ('.icd-chips', '.icd-facts', '.icd-card'): assert odd in screen.page.locator(part).first.inner_text()

def test_the_keys_are_told_above_the_pictures(screen):
    help, grid = (screen.page.locator(o).bounding_box() for o in ('.icd-help', '.icd-grid'))
    assert 'Digits' in screen.page.locator('.icd-help').inner_text() and help['y'] + help['height'] <= grid['y']

def test_files_are_dropped(page, tmp_path):
    got, out = [], io.BytesIO()
    Image.new('RGB', (4, 4)).save(out, 'PNG')
    screen = make_screen(page, tmp_path, 'abc', on_drop=got.extend)
    page.evaluate("""async bytes => {
      const files = new DataTransfer()
      for (const name of ['one.png', 'two.png']) files.items.add(new File([new Uint8Array(bytes)], name))
      const drop = new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true })
      document.querySelector('.icd-grid').dispatchEvent(drop)
    }""", list(out.getvalue()))
    page.wait_for_timeout(200)
    screen.answer()
    assert got == [('one.png', out.getvalue()), ('two.png', out.getvalue())]
