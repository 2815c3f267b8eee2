"The state behind the viewers of pictures: pages, decisions, undo, matrices of two and of a thousand classes"
import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from imgcls_nb.core import InputError
from imgcls_nb.datasets import draw_shape
from imgcls_nb.edits import EditConflict, Edits
from imgcls_nb.evaluation import Evaluation
from imgcls_nb.widgets.confusion import CELLS, COLOURS, NAMED, ConfusionMap, ConfusionViewer, Grid, Navigator
from imgcls_nb.widgets.desk import Desk
from imgcls_nb.widgets.gallery import DIGITS, Gallery, Judged, Pages, edits_of, judged_of, page_starts
from imgcls_nb.widgets.looks import Note
from imgcls_nb.widgets.losses import TopLosses

KINDS = ('circle', 'square', 'triangle')

def png(i): # a picture as the bytes of a file
    out = io.BytesIO()
    Image.fromarray(draw_shape(KINDS[i % 3], i, 16)).save(out, 'PNG')
    return out.getvalue()

def made_up(n, classes, seed=0, wrong=.2, **kwargs):
    "An evaluation of which some guesses are wrong"
    rng = np.random.default_rng(seed)
    targs = rng.integers(0, classes, n)
    preds = np.where(rng.random(n) < wrong, rng.integers(0, classes, n), targs)
    probs = rng.random((n, classes), np.float32)*.1/classes
    probs[np.arange(n), preds] += 1 - probs.sum(1)
    vocab = KINDS if classes == 3 else tuple(f'class {i}' for i in range(classes))
    return Evaluation(probs, targs, vocab, [f'{i:05}.png' for i in range(n)], **dict(facts=dict(side='valid')) | kwargs)

def judged(n=50, classes=3): return judged_of(made_up(n, classes))

@pytest.fixture
def gallery(tmp_path):
    made = Gallery(judged(), Edits(tmp_path/'edits.jsonl'), 'test', per_page=8)
    made.show(np.arange(50))
    return made

def log(gallery): return [json.loads(o) for o in gallery.decisions.edits.file.read_text().splitlines()]

# Pages, a cursor, a selection

@pytest.mark.parametrize('n, per_page, pages', [(0, 8, 1), (1, 8, 1), (8, 8, 1), (9, 8, 2), (50, 8, 7), (50, 1, 50)])
def test_every_picture_is_on_one_page(n, per_page, pages):
    o = Pages(judged(), per_page)
    o.show(np.arange(n)[::-1])
    assert o.n_pages == pages
    seen = [*o.on_page]
    while o.page < pages - 1:
        o.turn(1)
        seen += [*o.on_page]
    assert seen == list(range(n))[::-1]

@pytest.mark.parametrize('groups, starts', [
    (None, [0, 8, 16]), ([], [0]), ([3, 5, 2], [0, 8]), ([3, 6, 2], [0, 3]), ([8, 8], [0, 8]), ([2, 20, 3], [0, 2, 10, 18]),
    ([20], [0, 8, 16]), ([2]*10, [0, 8, 16])])
def test_what_belongs_together_is_on_one_page(groups, starts):
    n = sum(groups) if groups is not None else 20
    assert page_starts(n, 8, groups).tolist() == starts
    pages = Pages(judged(), per_page=8)
    pages.show(np.arange(n), groups=groups)
    seen = []
    for k, start in enumerate(starts):
        assert (pages.page, pages.first) == (k, start) and len(pages.on_page) <= 8
        seen += pages.on_page.tolist()
        pages.point(len(pages.on_page) - 1)
        assert pages.page == k and pages.at == start + max(0, len(pages.on_page) - 1)
        pages.turn(1)
    assert seen == list(range(n)) and pages.n_pages == len(starts)
    pages.turn(-len(starts))
    assert pages.at == 0

@pytest.mark.parametrize('keys, at', [
    (['ArrowRight'], 1), (['ArrowLeft'], 0), (['ArrowDown'], 4), (['ArrowDown', 'ArrowUp'], 0), (['End'], 49),
    (['End', 'ArrowRight'], 49), (['End', 'Home'], 0), (['PageDown'], 8), (['PageDown', 'ArrowRight', 'PageUp'], 0),
    (['PageUp'], 0), (['End', 'PageDown'], 49), (['End', 'PageUp'], 40), (['ArrowDown']*20, 49)])
def test_keys_move_the_cursor(gallery, keys, at):
    for key in keys: gallery.press(key, columns=4)
    assert gallery.at == at and gallery.current == at

def test_listeners_hear_of_pages_and_of_marks(gallery):
    heard = []
    gallery.changed.append(lambda: heard.append('page'))
    gallery.marked.append(lambda: heard.append('marks'))
    for key in ('ArrowRight', 'PageDown', ' ', 'a', 'Escape', 'Home'): gallery.press(key)
    assert heard == ['marks', 'page', 'marks', 'marks', 'marks', 'page']

def test_choosing(gallery):
    gallery.point(3)
    gallery.press('ArrowRight', shift=True)
    gallery.press('ArrowRight', shift=True)
    assert gallery.targets() == [3, 4, 5]
    gallery.press('ArrowLeft', shift=True)
    assert gallery.targets() == [3, 4], 'what is passed over backwards is let go'
    gallery.point(7, more=True)
    assert gallery.targets() == [3, 4, 7]
    gallery.point(4, more=True)
    assert gallery.targets() == [3, 7]
    gallery.point(1)
    assert gallery.targets() == [1]
    gallery.point(4, extend=True)
    assert gallery.targets() == [1, 2, 3, 4]
    gallery.press('a')
    assert gallery.targets() == list(range(8))
    gallery.press('a')
    assert gallery.targets() == [4], 'nothing is chosen, so it is the one under the cursor'
    gallery.point(99) # the page was turned meanwhile
    assert gallery.current == 4

# What digits mean

def test_digits_of_few_classes_are_always_the_same(gallery):
    for _ in range(5):
        assert [(d, o) for d, o, _ in gallery.choices()] == [*zip('123', KINDS)]
        gallery.press('ArrowRight')

@pytest.mark.parametrize('vocab, digits', [('0123456789', '0123456789'), ('3579', '3579'), ('abcdefghij', DIGITS)])
def test_classes_called_by_a_digit_have_that_digit(vocab, digits):
    o = Gallery(Judged(['a'], lambda i: png(0), np.array([0]), tuple(vocab)))
    o.show([0])
    assert [d for d, _, _ in o.choices()] == list(digits) and [label for _, label, _ in o.choices()] == list(vocab)

@pytest.mark.parametrize('classes', [11, 1000])
def test_of_many_classes_the_first_guesses_and_the_label_have_digits(classes):
    ev = made_up(40, classes, wrong=.5)
    o = Gallery(judged_of(ev))
    o.show(np.arange(40))
    for i in range(40):
        offered = [label for _, label, _ in o.choices()]
        assert len(offered) == 9 == len(set(offered)) and ev.vocab[ev.targs[i]] == offered[-1]
        others = [ev.vocab[c] for c in np.argsort(-ev.probs[i], kind='stable') if c != ev.targs[i]][:8]
        assert offered[:8] == others
        o.move(1)

@pytest.mark.parametrize('text, label', [('circle', 'circle'), (' Circle ', 'circle'), ('tri', 'triangle'), ('SQ', 'square')])
def test_a_class_is_found_by_what_is_typed(gallery, text, label): assert gallery.class_named(text) == label

@pytest.mark.parametrize('text', ['', 'circel', 'x'])
def test_an_unknown_class_is_refused(gallery, text):
    with pytest.raises(InputError, match='no class'): gallery.relabel(text)
    assert not gallery.decisions.edits.file.exists()

# Decisions and undo

def test_one_key_is_one_edit(gallery):
    old = gallery.pics.label(0)
    new = next(o for o in KINDS if o != old)
    gallery.press(str(KINDS.index(new) + 1))
    edit, = log(gallery)
    assert {k: edit[k] for k in ('picture', 'field', 'old', 'new', 'why')} == dict(picture='00000.png', field='label', old=old,
                                                                                 new=new, why='test')
    assert gallery.standing(0).tag == f'→ {new}' and gallery.at == 1

def test_what_a_picture_is_already_is_not_noted(gallery):
    gallery.press(str(KINDS.index(gallery.pics.label(0)) + 1))
    assert not gallery.decisions.edits.file.exists() and 'Nothing to change' in gallery.says and gallery.at == 1

def test_a_selection_is_one_undo(gallery):
    for _ in range(3): gallery.press('ArrowRight', shift=True)
    gallery.press('x')
    assert [gallery.standing(i).kind for i in range(5)] == ['ignore']*4 + [''] and not gallery.selected
    gallery.press('u')
    assert not any(gallery.standing(i).kind for i in range(5)) and gallery.at == 0

def test_a_page_is_decided_and_taken_back_in_one_write_each(gallery, monkeypatch):
    synced, edits = [], gallery.decisions.edits
    monkeypatch.setattr('os.fsync', synced.append)
    for key in 'ax': gallery.press(key)
    assert len(synced) == 1 and len(edits.standing()) == 8
    gallery.press('u')
    assert len(synced) == 2 and not edits.standing()

def test_undo_goes_back_through_everything(gallery):
    keys = [*'123', 'x', 'm', *'321', 'x', 'm', *'231']
    before = [gallery.standing(i) for i in range(50)]
    for key in keys: gallery.press(key)
    made = len(gallery.decisions.actions)
    for _ in range(made): gallery.press('u')
    assert [gallery.standing(i) for i in range(50)] == before and not gallery.decisions.edits.standing()
    with pytest.raises(InputError, match='no edit to take back'): gallery.press('u')

def test_undo_turns_to_the_page_of_the_picture(gallery):
    gallery.press('x')
    gallery.press('End')
    gallery.press('u')
    assert (gallery.at, gallery.page) == (0, 0) and '00000.png' in gallery.says

def test_a_chain_of_decisions_about_one_picture(gallery):
    first = gallery.pics.label(0)
    second, third = (o for o in KINDS if o != first)
    for label in (second, third):
        gallery.relabel(label)
        gallery.move(-1)
    gallery.move_split()
    gallery.move(-1)
    gallery.ignore()
    gallery.move(-1)
    assert gallery.standing(0).kind == 'ignore' and gallery.standing(0).split == 'train'
    gallery.relabel(first) # which takes it in again, and is one action
    assert (gallery.standing(0).kind, gallery.standing(0).label) == ('split', first)
    for kind, label, split in (('ignore', third, 'train'), ('label', third, 'train'), ('label', third, 'valid'),
                               ('label', second, 'valid'), ('', first, 'valid')):
        gallery.undo()
        now = gallery.standing(0)
        assert (now.kind, now.label, now.split) == (kind, label, split)

@pytest.mark.parametrize('side', ['train', 'valid'])
def test_pictures_leave_the_side_that_was_evaluated(tmp_path, side):
    o = Gallery(judged_of(made_up(5, 3, facts=dict(side=side))), Edits(tmp_path/'edits.jsonl'))
    o.show(np.arange(5))
    o.press('m')
    other = {'train': 'valid', 'valid': 'train'}[side]
    assert [(e['old'], e['new']) for e in o.decisions.edits.standing()] == [(side, other)] and other in o.says

def test_where_the_side_is_not_known_none_is_changed(tmp_path):
    o = Gallery(judged_of(made_up(5, 3, facts={})), Edits(tmp_path/'edits.jsonl'))
    o.show(np.arange(5))
    with pytest.raises(InputError, match='is not known.*DatasetCleaner'): o.press('m')
    o.press('x')
    assert [e['field'] for e in o.decisions.edits.standing()] == ['ignore']

def test_ignoring_twice_takes_in_again(gallery):
    gallery.ignore()
    gallery.move(-1)
    gallery.ignore()
    assert gallery.standing(0).kind == '' and 'taken in again' in gallery.says

def test_decisions_survive_the_kernel(gallery):
    gallery.press('x')
    again = Gallery(gallery.pics, Edits(gallery.decisions.edits.file), per_page=8)
    again.show(np.arange(50))
    assert again.standing(0).ignored
    again.press('End')
    again.press('u') # without a memory of its own: the last action of the log
    assert again.at == 0 and not again.standing(0).ignored and not gallery.standing(0).ignored

def test_an_action_is_one_undo_also_after_a_restart(gallery):
    for label in ('circle', 'square'):
        gallery.select_page()
        gallery.relabel(label)
    assert len({o['action'] for o in log(gallery)}) == 2
    again = Gallery(gallery.pics, Edits(gallery.decisions.edits.file), per_page=8)
    again.show(np.arange(50))
    again.undo()
    assert all(again.standing(i).label == 'circle' for i in range(8)) and 'Taken back' in again.says
    again.undo()
    assert not any(again.standing(i).kind for i in range(8))
    with pytest.raises(InputError, match='to take back'): again.undo()

def test_all_of_an_action_is_noted_or_nothing(gallery):
    other = Edits(gallery.decisions.edits.file)
    wrong = next(o for o in KINDS if o != gallery.pics.label(3))
    other.relabel(gallery.pics.names[3], gallery.pics.label(3), wrong)
    changes = [(i, 'label', gallery.pics.label(i), next(o for o in KINDS if o not in (gallery.pics.label(i), wrong)))
               for i in range(5)] # as it was before the other came
    with pytest.raises(EditConflict): gallery.decisions.decide([o for o in changes if o[2] != o[3]], 'test')
    assert len(log(gallery)) == 1 and not gallery.decisions.actions

def test_what_another_viewer_took_back_is_passed_over(gallery):
    for _ in range(2): gallery.ignore()
    other = Gallery(gallery.pics, Edits(gallery.decisions.edits.file))
    other.show(np.arange(50))
    other.undo()
    assert not gallery.standing(1).ignored and gallery.standing(0).ignored
    gallery.undo()
    assert not gallery.standing(0).ignored

def test_two_viewers_of_one_log(gallery):
    other = Gallery(gallery.pics, Edits(gallery.decisions.edits.file))
    other.show(np.arange(50))
    label = next(o for o in KINDS if o != gallery.pics.label(0))
    gallery.relabel(label)
    assert other.standing(0).label == label
    third = next(o for o in KINDS if o not in (label, gallery.pics.label(0)))
    with pytest.raises(EditConflict): other.relabel(third) # of a picture that was seen before the other's decision
    other.relabel(third)
    assert gallery.standing(0).label == third
    with pytest.raises(EditConflict): gallery.undo()
    other.undo()
    gallery.undo()
    assert gallery.standing(0).kind == ''

def test_only_looking():
    o = Gallery(judged(), None)
    o.show(np.arange(5))
    for key in ('1', 'x', 'm', 'u'):
        with pytest.raises(InputError, match='only be looked at'): o.press(key)
    o.press('ArrowRight')
    assert o.current == 1

def test_nothing_to_decide_about(tmp_path):
    o = Gallery(judged(0), Edits(tmp_path/'edits.jsonl'))
    o.show([])
    assert o.current is None and o.choices() == [] and o.targets() == []
    for key in ('ArrowRight', 'End', 'PageDown', 'a', ' ', 'Escape'): o.press(key)
    with pytest.raises(InputError): o.press('1')
    with pytest.raises(InputError, match='no picture to decide'): o.press('x')

def test_where_decisions_go(tmp_path):
    ev = made_up(3, 3, root=tmp_path)
    assert edits_of(None, ev).file == tmp_path/'edits.jsonl' and edits_of(False, ev) is None
    assert edits_of(str(tmp_path/'own.jsonl'), ev).file == tmp_path/'own.jsonl'
    assert edits_of(None, made_up(3, 3)) is None and edits_of(None, made_up(3, 3, root=tmp_path/'gone')) is None
    mine = Edits(tmp_path/'mine.jsonl')
    assert edits_of(mine, ev) is mine

def test_names_below_another_root(tmp_path):
    (tmp_path/'valid').mkdir()
    (tmp_path/'valid/00000.png').write_bytes(png(0))
    ev = made_up(1, 3, root=tmp_path/'valid') # the evaluation speaks of the folder of validation pictures
    o = Gallery(judged_of(ev), Edits(tmp_path/'edits.jsonl', root=tmp_path))
    o.show([0])
    o.press('x')
    assert log(o)[0]['picture'] == 'valid/00000.png' and o.standing(0).ignored

# The view: what is sent, and what a message does

@pytest.fixture
def desk(tmp_path):
    for i in range(12): (tmp_path/f'{i:05}.png').write_bytes(png(i))
    gallery = Gallery(judged_of(made_up(12, 3, root=tmp_path)), Edits(tmp_path/'edits.jsonl'), per_page=8)
    gallery.show(np.arange(12), 'all')
    return Desk(gallery, Note())

def key(name, **kwargs): return dict(what='key', key=name, columns=4, shift=False) | kwargs

def test_moving_the_cursor_sends_no_pictures(desk):
    page = desk.page
    desk.receive(key('ArrowRight'))
    assert desk.page is page and desk.marks['at'] == 1 and desk.marks['facts'][0] == ('file', '00001.png')
    desk.receive(dict(what='turn', by=1))
    assert desk.page is not page and len(desk.page['cards']) == 4 and desk.marks['status'] == ('all', '9–12 of 12')
    assert not desk.marks['first'] and desk.marks['last']

@pytest.mark.parametrize('message', [dict(what='ignore'), dict(what='move'), dict(what='choose', label='square'), key('x')])
def test_a_message_decides(desk, message):
    if 'label' in message: desk.gallery.move(next(i for i in range(12) if desk.gallery.pics.label(i) != 'square'))
    at = desk.gallery.at
    desk.receive(message)
    assert desk.gallery.standing(at).kind and desk.note.kind == 'done' and desk.marks['cards'][at]['tag']
    desk.receive(dict(what='undo'))
    assert not desk.gallery.standing(at).kind and 'Taken back' in desk.note.text

def test_what_goes_wrong_is_said_and_raised(desk):
    with pytest.raises(InputError): desk.receive(key('9'))
    assert desk.note.kind == 'error' and 'No class has the digit 9' in desk.note.text
    with pytest.raises(InputError): desk.receive(dict(what='choose', label='hexagon'))
    desk.receive(key('ArrowRight'))
    assert desk.note.kind != 'error'

def test_room_is_kept_for_names(desk):
    assert not desk.page['long']
    gallery = Gallery(Judged(['a.png'], lambda i: png(0), np.array([0]), ('short', 'a name of more than eighteen letters')))
    gallery.show([0])
    assert Desk(gallery, Note()).page['long']

def test_a_picture_that_is_gone_has_a_place(desk, tmp_path):
    (tmp_path/'00009.png').unlink()
    desk.receive(key('PageDown'))
    desk.receive(key('ArrowRight'))
    card = desk.marks['cards'][1]
    assert 'cannot be shown' in card['lines'] and 'no such file' in dict(desk.marks['facts'])['problem']
    desk.receive(key('x'))
    assert desk.gallery.standing(9).ignored, 'and can be decided about'

def test_an_evaluation_without_a_place_can_be_shown():
    gallery = Gallery(judged_of(made_up(3, 3)))
    gallery.show([0, 1, 2])
    desk = Desk(gallery, Note())
    assert 'attach' in dict(desk.marks['facts'])['problem'] and len(desk.page['cards']) == 3

def test_names_are_no_markup(tmp_path):
    name = '<img src=x onerror=alert(1)>.png'
    gallery = Gallery(Judged([name], lambda i: png(0), np.array([0]), ('<b>', 'b')), Edits(tmp_path/'e.jsonl'))
    gallery.show([0])
    desk = Desk(gallery, Note())
    desk.receive(key('2'))
    assert '<img' not in desk.note.value and desk.marks['cards'][0]['name'] == name # which the script sets as text

# The confusion matrix

@pytest.mark.parametrize('classes, n', [(2, 100), (3, 50), (10, 1000), (1000, 20_000)])
def test_cells_hold_their_pictures(classes, n):
    ev = made_up(n, classes)
    map_, counts = ConfusionMap(ev), ev.confusion_matrix()
    rng = np.random.default_rng(0)
    cells = set(zip(ev.targs[:50].tolist(), ev.preds[:50].tolist())) | {*map(tuple, rng.integers(0, classes, (50, 2)).tolist())}
    for t, p in cells:
        found = map_.pictures(t, p)
        assert set(found) == set(np.flatnonzero((ev.targs == t) & (ev.preds == p))) and len(found) == counts[t, p]
        assert (np.diff(ev.confidence[found]) <= 0).all()

def test_errors_of_a_class_are_both_ways():
    ev = made_up(500, 5)
    for c in range(5):
        found = ConfusionMap(ev).errors_of(c)
        assert set(found) == {i for i in range(500) if ev.targs[i] != ev.preds[i] and c in (ev.targs[i], ev.preds[i])}

@pytest.mark.parametrize('classes', [2, 3, 40, 200, 201, 1000])
def test_what_is_drawn_is_small(classes):
    grid = Grid(ConfusionMap(made_up(2000, classes)))
    assert max(grid.values.shape) <= CELLS and grid.values.shape == (len(grid.names(0)), len(grid.names(1)))
    assert grid.named == (classes <= NAMED) and len(set(grid.names(0))) == len(grid.names(0))

@pytest.mark.parametrize('colour', COLOURS)
def test_colours(colour):
    map_ = ConfusionMap(made_up(900, 6, wrong=.5))
    map_.colour = colour
    grid, counts = Grid(map_), map_.confusion.counts[np.ix_(map_.order, map_.order)].astype(float)
    if colour.startswith('error'): np.fill_diagonal(counts, 0)
    if not colour.endswith('count'): counts /= map_.confusion.there[map_.order][:, None]
    assert np.allclose(grid.values, counts)

def test_a_square_of_cells_is_as_dark_as_its_darkest():
    map_ = ConfusionMap(made_up(20_000, 1000))
    map_.colour = 'count'
    counts = map_.confusion.counts[np.ix_(map_.order, map_.order)]
    assert np.array_equal(Grid(map_).values, counts.reshape(200, 5, 200, 5).max((1, 3)))

def test_a_click_goes_in_and_then_chooses():
    map_ = Navigator(made_up(20_000, 1000))
    for at in ((0, 0), (199, 199), (3, 150)):
        map_.whole()
        assert not map_.click(*at), 'a square of many cells'
        top, bottom, left, right = map_.window
        assert 0 <= top < bottom <= 1000 and 0 <= left < right <= 1000
        assert top <= at[0]*5 + 2 < bottom and left <= at[1]*5 + 2 < right, 'what was clicked is within'
        assert map_.click(1, 2) and map_.cell == (map_.order[top + 1], map_.order[left + 2])

def test_classes_are_found_by_parts_of_their_names():
    map_ = Navigator(made_up(2000, 1000))
    number = map_.find('CLASS 77')
    assert map_.vocab[number] == 'class 77', 'the whole name comes before a part'
    top, bottom, left, right = map_.window
    assert number in map_.order[top:bottom] and number in map_.order[left:right]
    with pytest.raises(InputError, match='No class is called'): map_.find('klass')
    with pytest.raises(InputError): map_.find('  ')

@pytest.mark.parametrize('classes, colour', [(10, 'share'), (1000, 'errors')])
def test_the_diagonal_does_not_outshine_the_mistakes_of_many_classes(classes, colour):
    assert ConfusionMap(made_up(200, classes)).colour == colour

def test_the_most_confused_pairs_lead_to_their_pictures():
    ev = made_up(3000, 50)
    map_ = Navigator(ev)
    counts = ev.confusion_matrix()
    np.fill_diagonal(counts, 0)
    pairs = map_.pairs(20)
    assert [counts[o] for _, o in pairs] == sorted(counts.ravel(), reverse=True)[:20]
    text, (t, p) = pairs[0]
    assert text.endswith(f' {ev.vocab[t]} → {ev.vocab[p]}') and len(map_.pictures(t, p)) == counts[t, p]

def test_the_viewer_draws_what_its_state_says(tmp_path):
    viewer = ConfusionViewer(made_up(400, 12, wrong=.5), edits=tmp_path/'e.jsonl')
    assert viewer.widget is viewer.widget
    sure = viewer.ev.confidence[viewer.gallery.order]
    assert set(viewer.gallery.order) == set(np.flatnonzero(~viewer.ev.correct)) and (np.diff(sure) <= 0).all(), 'all mistakes'
    heat = viewer.figure.data[0]
    assert np.array_equal(heat.z, Grid(viewer.map).values) and tuple(heat.x) == tuple(Grid(viewer.map).names(1))
    pair = viewer.pairs.options[0][1]
    viewer.pairs.value = pair
    assert set(viewer.gallery.order) == set(viewer.map.pictures(*pair)) and len(viewer.figure.layout.shapes) == 1
    viewer.colour('errors')
    assert np.max(heat.z) == pytest.approx(Grid(viewer.map).values.max())
    viewer.find('class 3')
    assert 'mistakes with class 3' in viewer.desk.marks['status']
    with pytest.raises(InputError): viewer.find('klass')

def test_an_empty_evaluation_is_explained(tmp_path):
    none = Evaluation(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), KINDS)
    for viewer in (ConfusionViewer(none), TopLosses(none)):
        assert viewer.widget and viewer.plot() is None and 'no pictures' in viewer.desk.page['empty']

def test_without_a_mistake(tmp_path):
    viewer = ConfusionViewer(made_up(50, 3, wrong=0))
    assert viewer.widget and not len(viewer.gallery.order) and 'No mistakes' in viewer.desk.page['empty']
    assert viewer.pairs.options == (('none', None),)
    viewer.show_cell('circle', 'circle')
    assert len(viewer.gallery.order)

@pytest.mark.parametrize('classes, buttons', [(2, 0), (NAMED, 0), (NAMED + 1, 1)])
def test_a_matrix_that_is_always_whole_has_no_button_for_it(classes, buttons):
    tools = ConfusionViewer(made_up(100, classes)).widget.children[2].children
    assert sum(getattr(o, 'description', '') == 'Whole matrix' for o in tools) == buttons

# Top losses

def test_losses_come_in_order():
    ev = made_up(300, 4)
    viewer = TopLosses(ev, edits=False)
    assert (np.diff(viewer.losses[viewer.gallery.order]) <= 0).all() and len(viewer.gallery.order) == 300
    viewer.show('class 2')
    assert set(viewer.gallery.order) == set(np.flatnonzero(ev.targs == 2))
    viewer.show('class 2', predicted=True)
    assert set(viewer.gallery.order) == set(np.flatnonzero(ev.preds == 2))
    with pytest.raises(InputError, match='Did you mean'): viewer.show('class 22')

def test_twins_on_paper(tmp_path):
    for i in range(9): (tmp_path/f'{i:05}.png').write_bytes(png(i))
    ev = made_up(9, 3, root=tmp_path)
    (tmp_path/'00004.png').unlink()
    for viewer in (ConfusionViewer(ev), TopLosses(ev)):
        bundle = viewer._repr_mimebundle_()
        assert Image.open(io.BytesIO(base64.b64decode(bundle['image/png']))).width > 200

LONG = tuple(f'a species of the northern hemisphere, number {i:02} of its kind' for i in range(12))

def test_long_names_can_be_told_apart():
    ev = made_up(200, 12, wrong=.5)
    ev.vocab = LONG
    viewer = ConfusionViewer(ev)
    assert viewer.widget
    ticks = viewer.figure.layout.xaxis.ticktext
    assert len(set(ticks)) == 12 and max(map(len, ticks)) <= 18
    texts = [o for o, _ in viewer.pairs.options]
    assert len(set(texts)) == len(texts) and all(o[0].isdigit() for o in texts), 'the count comes first'
    assert viewer.widget.children[0].tips[texts[0]] in {f'{a} → {b}' for a in LONG for b in LONG}

@pytest.mark.parametrize('classes', [6, 100])
def test_a_page_that_opens_later_gets_the_whole_matrix(classes):
    viewer = ConfusionViewer(made_up(300, classes))
    assert viewer.widget
    heat, grid = viewer.figure.get_state()['_widget_data'][0], Grid(viewer.map)
    assert np.allclose(heat['z'], grid.values) and heat['customdata'] == grid.counts.tolist() and heat['x'] == grid.names(1)
    assert all(isinstance(o, list) for o in heat['z']), 'a page that is reloaded makes nothing of an array'

def test_top_losses_begin_with_all_classes():
    viewer = TopLosses(made_up(20, 3))
    assert viewer.widget
    assert viewer.label.label == 'all classes' and len(viewer.gallery.order) == 20
    viewer.label.value = 'square'
    assert 0 < len(viewer.gallery.order) < 20
    viewer.label.value = ''
    assert len(viewer.gallery.order) == 20

def test_a_missing_picture_keeps_its_line():
    viewer = TopLosses(made_up(4, 3))
    assert viewer.widget
    label, loss, said, gone = viewer.desk.marks['cards'][0]['lines']
    assert label in KINDS and loss.startswith('loss') and said.startswith('said') and gone == 'cannot be shown'

def test_a_path_does_as_well(tmp_path):
    made_up(20, 3).save(tmp_path/'ev')
    for viewer in (ConfusionViewer(tmp_path/'ev', edits=False), TopLosses(str(tmp_path/'ev'), edits=False)):
        assert len(viewer.ev) == 20
    with pytest.raises(InputError, match='There is no'): TopLosses(tmp_path/'gone')

@pytest.mark.parametrize('ask', [lambda ev: TopLosses(ev).show('zebra'), lambda ev: ConfusionViewer(ev).find('zebra')])
def test_an_unknown_class_is_answered_with_those_there_are(ask):
    with pytest.raises(InputError, match='The classes are: circle, square, triangle'): ask(made_up(9, 3))

def test_a_small_network_is_picked_to_begin_with():
    from imgcls_nb.widgets.picker import ModelPicker
    picker = ModelPicker()
    assert picker.choice.facts.params_m <= 30 and picker.choice.facts.gmacs <= 5 and picker.choice.facts.top1 > 75
    assert picker.widget and ', 300 drawn' in picker.line.value
    assert ModelPicker(pattern='vit_giant*', pretrained_only=False).arch.startswith('vit_giant'), 'where there is no small one'
    assert all(o.readout_format == '.4r' for k, o in picker.inputs.items() if k.startswith('max'))

def test_no_augmentation_to_begin_with(shapes):
    from imgcls_nb.widgets.explorer import AugmentExplorer
    explorer = AugmentExplorer(shapes, size=32, aug=None)
    assert explorer.aug == () and explorer.choice.code == "aug='none'"
    assert AugmentExplorer(shapes, size=32).aug != ()
    assert AugmentExplorer(shapes, size=32, aug='light').choice.code == "aug='light'"
