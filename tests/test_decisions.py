"Decisions about what was seen: other people, other viewers, keys that come too early"
import json

import numpy as np
import pytest

from imgcls_nb.core import InputError
from imgcls_nb.edits import EditConflict, Edits
from imgcls_nb.widgets.desk import Desk
from imgcls_nb.widgets.gallery import Gallery, Judged
from imgcls_nb.widgets.looks import Note

VOCAB = tuple('abc')

def make(folder, who=None, vocab=VOCAB, n=10):
    pics = Judged([f'{i}.png' for i in range(n)], lambda i: np.zeros((8, 8), np.uint8), np.zeros(n, int), tuple(vocab),
                  np.random.default_rng(0).random((n, len(vocab))), 'valid')
    gallery = Gallery(pics, Edits(folder/'edits.jsonl', who=who))
    gallery.show(np.arange(n))
    return gallery

@pytest.fixture
def two(tmp_path): return make(tmp_path, 'ann'), make(tmp_path, 'bob')

def standing(gallery): return [(o['who'], o['picture'], o['old'], o['new']) for o in gallery.decisions.edits.standing()]

# Two people

@pytest.mark.parametrize('hers, his', [('2', '3'), ('x', '2'), ('m', '2')])
def test_a_decision_of_somebody_else_is_not_overridden(two, hers, his):
    ann, bob = two
    ann.press(hers)
    if hers != '2': # about something else than the label: both stand
        bob.press(his)
        assert [o[0] for o in standing(ann)] == ['ann', 'bob']
        return
    with pytest.raises(EditConflict, match="'b' by now, and not 'a'.* by ann"): bob.press(his)
    assert standing(ann) == [('ann', '0.png', 'a', 'b')] and bob.at == 0
    bob.press(his)
    assert standing(ann)[1:] == [('bob', '0.png', 'b', 'c')], 'the second time he knows'

@pytest.mark.parametrize('key', ['x', 'm', '2'])
def test_two_who_decide_the_same_agree(two, key):
    ann, bob = two
    ann.press(key)
    bob.press(key)
    assert len(standing(ann)) == 1 and bob.says.startswith('Nothing to change') and ann.standing(0) == bob.standing(0)

def test_a_choice_over_pages_remembers_what_was_seen(tmp_path):
    ann, bob = make(tmp_path, 'ann', n=60), make(tmp_path, 'bob', n=60)
    bob.toggle()
    bob.turn(1)
    bob.toggle()
    ann.press('2')
    with pytest.raises(EditConflict): bob.relabel('c')
    assert ann.standing(0).label == 'b'

def test_a_viewer_follows_what_it_was_told(two):
    ann, bob = two
    ann.press('2')
    bob.move(0) # whatever redraws it
    bob.press('3')
    assert standing(ann) == [('ann', '0.png', 'a', 'b'), ('bob', '0.png', 'b', 'c')]

# Taking back

def test_what_another_viewer_took_back_is_passed_over(tmp_path):
    one, other = make(tmp_path), make(tmp_path)
    for key in 'x2': one.press(key)
    other.press('u')
    assert [o['picture'] for o in one.decisions.edits.standing()] == ['0.png']
    one.press('u')
    assert '0.png' in one.says and not one.decisions.edits.standing()
    for o in (one, other):
        with pytest.raises(InputError, match='no edit to take back'): o.press('u')

@pytest.mark.parametrize('again', [False, True])
def test_an_action_is_taken_back_as_a_whole(tmp_path, again):
    gallery = make(tmp_path)
    gallery.press('x')
    gallery.select_page()
    gallery.press('2')
    if again: gallery = make(tmp_path) # the kernel was started anew
    n = len(gallery.decisions.edits.standing())
    gallery.press('u')
    left = gallery.decisions.edits.standing()
    assert n == 12 and [(o['picture'], o['field'], o['new']) for o in left] == [('0.png', 'ignore', True)]
    gallery.press('u')
    assert not gallery.decisions.edits.standing()

def test_nobody_takes_back_what_somebody_else_decided(two):
    ann, bob = two
    ann.press('x')
    with pytest.raises(InputError, match='no edit to take back of bob'): bob.press('u')
    bob.move(1)
    bob.press('x')
    bob.press('u')
    assert [o[0] for o in standing(ann)] == ['ann']

def test_an_action_that_something_was_built_on_stays_whole(tmp_path):
    one, other = make(tmp_path), make(tmp_path)
    one.select_page()
    one.press('2')
    other.show(np.arange(3, 10))
    other.press('3')
    with pytest.raises(EditConflict, match="'3.png' was edited again"): one.press('u')
    assert len(one.decisions.edits.standing()) == 11
    other.press('u')
    one.press('u')
    assert not one.decisions.edits.standing()

def test_lines_without_an_action_are_read_and_taken_back(tmp_path):
    old = [dict(edit=f'e{i}', picture=f'{i}.png', field='label', old='a', new='b') for i in range(3)]
    (tmp_path/'edits.jsonl').write_text(''.join(json.dumps(o) + '\n' for o in old))
    gallery = make(tmp_path)
    assert [gallery.standing(i).label for i in range(4)] == ['b', 'b', 'b', 'a']
    gallery.press('u')
    assert [len(o) for o in gallery.decisions.edits.actions()] == [1, 1]

# What a message says of what was seen

def message(desk, what='key', key='2', **seen):
    card = desk.marks['cards'][desk.marks['at']]
    seen = dict(turn=desk.turn, name=card['name'], tag=card['tag']) | seen
    return dict(what=what, key=key, label='c', columns=6, shift=False, seen=seen)

@pytest.fixture
def desk(tmp_path): return Desk(make(tmp_path), Note())

@pytest.mark.parametrize('what', ['key', 'choose', 'ignore', 'move'])
@pytest.mark.parametrize('seen', [dict(name='4.png'), dict(tag='→ c'), dict(name='')])
def test_a_message_about_another_picture_is_refused(desk, what, seen):
    late = message(desk, what, **seen)
    desk.receive(message(desk, key='ArrowRight'))
    desk.receive(dict(what='point', at=0, more=False, extend=False))
    with pytest.raises(InputError, match='Press it again'): desk.receive(late)
    assert not desk.gallery.decisions.edits.standing() and desk.note.kind == 'error'

def test_a_message_about_the_next_picture_counts(desk):
    early = message(desk, name='1.png')
    desk.receive(message(desk))
    desk.receive(early)
    assert [o['picture'] for o in desk.gallery.decisions.edits.standing()] == ['0.png', '1.png']

@pytest.mark.parametrize('n_classes, fine', [(10, True), (11, False)])
def test_digits_that_vary_must_have_been_shown(tmp_path, n_classes, fine):
    desk = Desk(make(tmp_path, vocab=[f'class {i}' for i in range(n_classes)]), Note())
    early = message(desk, name='1.png')
    desk.receive(message(desk))
    if fine: desk.receive(early)
    else:
        with pytest.raises(InputError, match='Press it again'): desk.receive(early)

def test_every_message_is_answered(desk):
    for i, o in enumerate([message(desk, key='End'), message(desk, key='End'), message(desk, key='9'), message(desk)]):
        try: desk.receive(o | dict(n=['me', i]))
        except InputError: pass
        assert desk.marks['heard'] == ['me', i] and desk.marks['turn'] == desk.turn
    assert json.dumps(desk.marks)
