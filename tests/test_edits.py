"A log of edits loses nothing, whoever writes it and whatever kills it; lists and folders become what it says, and go back"
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from imgcls_nb import moves
from imgcls_nb.core import InputError
from imgcls_nb.datasets import make_shapes
from imgcls_nb.edits import EditConflict, Edits
from imgcls_nb.files import append_line, appending, write_atomic
from imgcls_nb.lists import read_list_file, write_split
from imgcls_nb.moves import IGNORED, finish_moves, move_file, move_pictures, plan_moves, revert_moves
from imgcls_nb.plan import DataPlan, ModelPlan, Plan, plan_to_yaml
from imgcls_nb.records import Records
from imgcls_nb.revise import apply_edits, lists_of
from imgcls_nb.runs import Run
from imgcls_nb.sources import find_pictures, read_class_folders


@pytest.fixture
def pictures(shapes, tmp_path): return shutil.copytree(shapes, tmp_path/'shapes')

def net(edits): return [(o.picture, o.field, o.old, o.new) for o in edits.changes()]
def contents(folder): return {o.relative_to(folder).as_posix(): o.read_bytes() for o in sorted(folder.rglob('*.png'))}

# The log

def test_a_life(tmp_path):
    edits = Edits(tmp_path, who='ann')
    edits.relabel('x.png', 'cat', 'dog', 'barks')
    edits.ignore('y.png')
    edits.move('z.png', 'valid', 'train')
    assert net(edits) == [('x.png', 'label', 'cat', 'dog'), ('y.png', 'ignore', False, True),
                          ('z.png', 'split', 'valid', 'train')]
    edits.relabel('x.png', 'dog', 'fox')
    assert net(edits)[0] == ('x.png', 'label', 'cat', 'fox') and len(edits.changes()[0].edits) == 2
    edits.relabel('x.png', 'fox', 'cat')
    assert ('x.png', 'label') not in {o[:2] for o in net(edits)}, "there and back is no change"
    assert edits.table().who.tolist() == ['ann']*5 and edits.table().why[0] == 'barks'
    assert repr(edits) == 'Edits(edits.jsonl: 5 stand)'
    assert all(abs(o['time'] - time.time()) < 60 and o['session'] == edits.session for o in edits.events())

def test_undo_goes_back_to_the_start_and_stops(tmp_path):
    edits = Edits(tmp_path)
    for old, new in (('a', 'b'), ('b', 'c'), ('c', 'd')): edits.relabel('x', old, new)
    seen = [net(edits)]
    for _ in range(3):
        Edits(tmp_path).undo() # another kernel each time
        seen.append(net(edits))
    assert [o[0][3] if o else None for o in seen] == ['d', 'c', 'b', None] and len(edits.events()) == 6
    with pytest.raises(InputError, match='no edit to take back'): edits.undo()
    edits.relabel('x', 'a', 'z')
    assert net(edits) == [('x', 'label', 'a', 'z')]

def test_undo_of_a_named_edit(tmp_path):
    edits = Edits(tmp_path)
    first, second, other = edits.relabel('x', 'a', 'b'), edits.relabel('x', 'b', 'c'), edits.relabel('y', 'a', 'b')
    with pytest.raises(EditConflict, match=f"edited again after that.*{second['edit']}"): edits.undo(first['edit'])
    assert edits.undo(second['edit'])['new'] == 'c' and edits.undo(first['edit']) == first
    assert net(edits) == [('y', 'label', 'a', 'b')]
    with pytest.raises(InputError, match=f"no edit '{first['edit']}' that stands"): edits.undo(first['edit'])
    assert edits.standing() == [other]

def test_two_people_and_one_picture(tmp_path):
    ann, bob = Edits(tmp_path, who='ann'), Edits(tmp_path, who='bob')
    done = ann.relabel('x', 'cat', 'dog')
    with pytest.raises(EditConflict, match=f"'dog' by now, and not 'cat'.*by ann.*{done['edit']}"): bob.relabel('x', 'cat', 'fox')
    bob.ignore('x')
    bob.relabel('x', 'dog', 'fox')
    assert net(ann) == [('x', 'label', 'cat', 'fox'), ('x', 'ignore', False, True)]

@pytest.mark.parametrize('args, says', [
    (('x', 'lable', 'a', 'b'), "field='lable' is unknown.*Did you mean 'label'"), (('x', 'label', 'a', 'a'), "is 'a' already"),
    (('x', 'label', 'a', 3), 'label=3 .*not a text'), (('x', 'ignore', False, 'yes'), "ignore='yes' .*not True or False"),
    (('x', 'split', 'valid', 'tset'), "split='tset'.*neither"), (('x', 'split', 'train', 'train'), 'already')])
def test_what_is_no_edit(tmp_path, args, says):
    with pytest.raises(InputError, match=says): Edits(tmp_path).add(*args)
    assert not (tmp_path/'edits.jsonl').exists()

@pytest.mark.parametrize('do', [lambda o: o.relabel('a.png', 'x', 'y'), lambda o: o.undo()])
def test_where_nothing_may_be_written_it_is_said(tmp_path, monkeypatch, do):
    import errno
    def refuse(path): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    edits = Edits(tmp_path)
    monkeypatch.setattr('imgcls_nb.edits.appending', refuse)
    with pytest.raises(InputError, match='nothing may be written there.*elsewhere'): do(edits)

def test_a_cut_last_line_costs_only_itself(tmp_path):
    edits = Edits(tmp_path)
    for i in range(3): edits.relabel(f'{i}', 'a', 'b')
    data = edits.file.read_bytes()
    last = data.rstrip(b'\n').rfind(b'\n') + 1
    for cut in range(last, len(data)):
        edits.file.write_bytes(data[:cut])
        whole = cut == len(data) - 1 # only the line break is missing
        assert len(net(edits)) == 2 + whole and edits.damaged == (last < cut < len(data) - 1)
        Edits(tmp_path).relabel('new', 'a', 'b')
        assert [o[0] for o in net(edits)] == ['0', '1'] + ['2']*whole + ['new']

@pytest.mark.parametrize('junk', [b'\x00\xff\xfe', b'[]', b'3', b'{}', b'{"edit": 1}', b'null', b'"undo"'])
def test_foreign_lines_are_passed_over(tmp_path, junk):
    edits = Edits(tmp_path)
    edits.relabel('0', 'a', 'b')
    with open(edits.file, 'ab') as f: f.write(junk + b'\n\n')
    edits.relabel('1', 'a', 'b')
    assert len(net(edits)) == 2 and edits.damaged == 1

def test_all_that_is_done_at_once_or_nothing(tmp_path, monkeypatch):
    edits, synced = Edits(tmp_path, who='ann'), []
    monkeypatch.setattr(os, 'fsync', synced.append)
    made = edits.add_all([(f'{i}', 'label', 'a', 'b') for i in range(50)] + [('0', 'ignore', False, True)], 'why')
    assert len(synced) == 1 and edits.standing() == made and len({o['action'] for o in made}) == 1
    for odd in (('7', 'label', 'a', 'c'), ('new', 'lable', 'a', 'b'), ('new', 'label', 'b', 'b')):
        with pytest.raises(InputError): edits.add_all([('fine', 'label', 'a', 'b'), odd])
    with pytest.raises(EditConflict): edits.add_all([('x', 'label', 'a', 'b'), ('x', 'label', 'a', 'c')])
    assert edits.standing() == made == Edits(tmp_path).standing() and edits.add_all([]) == []

def test_lines_that_were_read_are_not_read_again(tmp_path, monkeypatch):
    from imgcls_nb import edits as module
    edits, real, seen = Edits(tmp_path), module._event, []
    edits.add_all([(f'{i}', 'label', 'a', 'b') for i in range(500)])
    assert len(edits.standing()) == 500
    monkeypatch.setattr(module, '_event', lambda line: [seen.append(line), real(line)][1])
    edits.relabel('x', 'a', 'b')
    edits.undo()
    assert len(edits.standing()) == 500 and len(seen) == 2, "its own edit, and the line that takes it back"

@pytest.mark.parametrize('n', [0, 1, 20, 70])
def test_a_log_that_was_replaced_is_read_anew(tmp_path, n):
    edits, other = Edits(tmp_path), Edits(tmp_path/'other.jsonl')
    for i in range(20): edits.relabel(f'{i}', 'a', 'b')
    for i in range(n): other.relabel(f'other {i}', 'a', 'b')
    assert len(edits.standing()) == 20
    edits.file.write_bytes(other.file.read_bytes() if n else b'') # the same file on the disk, shorter, as long, or longer
    assert edits.standing() == other.standing()

WRITER = """
import sys
from imgcls_nb.edits import EditConflict, Edits
edits, lost = Edits(sys.argv[1]), 0
for i in range(60):
    edits.relabel(f'{sys.argv[2]}/{i}', 'a', 'b')
    try: edits.relabel('shared', *('ab' if i % 2 else 'ba'))
    except EditConflict: lost += 1
    if i % 3 == 0: edits.undo(edits.relabel(f'{sys.argv[2]}/x{i}', 'a', 'b')['edit'])
print(lost, sorted(o for o in ('torch', 'fastai', 'ipywidgets', 'pandas') if o in sys.modules))
"""

def test_two_kernels_at_once(tmp_path):
    Edits(tmp_path).relabel('shared', 'a', 'b')
    kernels = [subprocess.Popen([sys.executable, '-c', WRITER, tmp_path, k], stdout=subprocess.PIPE, text=True) for k in 'pq']
    said = [o.communicate(timeout=60)[0].split(maxsplit=1) for o in kernels]
    edits = Edits(tmp_path)
    assert [o[1].strip() for o in said] == ['[]', '[]'] and edits.damaged == 0, "and neither needs torch"
    mine = [o for o in net(edits) if o[0] != 'shared']
    assert sorted(o[0] for o in mine) == sorted(f'{k}/{i}' for k in 'pq' for i in range(60))
    chain = [o for o in edits.standing() if o['picture'] == 'shared']
    assert all(a['new'] == b['old'] for a, b in zip(chain, chain[1:])), "no edit slipped between look and write"
    assert len(chain) == 121 - sum(int(o[0]) for o in said)

def test_killed_while_writing(tmp_path):
    code = ("import sys; from imgcls_nb.edits import Edits; edits = Edits(sys.argv[1])\n"
            "for i in range(10**6): edits.relabel(str(i), 'a', 'b'); print(i, flush=True)")
    kernel = subprocess.Popen([sys.executable, '-c', code, tmp_path], stdout=subprocess.PIPE, text=True)
    for _ in range(25): last = int(kernel.stdout.readline())
    kernel.kill()
    last = max([last, *(int(o) for o in kernel.stdout.read().split('\n')[:-1] if o)])
    kernel.wait()
    assert [o[0] for o in net(Edits(tmp_path))][:last + 1] == [str(i) for i in range(last + 1)], "what was answered is there"
    Edits(tmp_path).relabel('after', 'a', 'b') # the lock died with its holder

# Where it lies, and what pictures are called

def test_beside_a_list_in_a_run_or_by_name(tmp_path, pictures):
    run = tmp_path/'run'
    run.mkdir()
    (run/'config.yaml').write_text(plan_to_yaml(Plan(DataPlan(str(pictures)), ModelPlan('resnet18'))))
    (pictures/'train_list.txt').write_text('circle/000.png 0\n')
    for where, file, root in ((run, run/'edits.jsonl', pictures), (pictures, pictures/'edits.jsonl', pictures),
                              (pictures/'train_list.txt', pictures/'edits.jsonl', pictures),
                              (tmp_path/'mine.jsonl', tmp_path/'mine.jsonl', tmp_path)):
        assert (Edits(where).file, Edits(where).root) == (file, root)
    with pytest.raises(InputError, match="no .*nowhere"): Edits(tmp_path/'nowhere')

def test_a_path_and_a_name_are_one(pictures, monkeypatch):
    edits = Edits(pictures)
    monkeypatch.chdir(pictures.parent)
    (pictures.parent/'link').symlink_to(pictures)
    names = [pictures/'circle/000.png', 'circle/000.png', str(pictures.parent/'link/circle/000.png')]
    assert set(edits.names_of(names)) == {'circle/000.png'}
    assert Edits('shapes').names_of(['shapes/circle/000.png', pictures/'circle/001.png']) == ['circle/000.png', 'circle/001.png']

# New lists

def test_folders_become_a_list(pictures, tmp_path):
    before, edits = contents(pictures), Edits(pictures)
    edits.relabel('circle/000.png', 'circle', 'square')
    edits.ignore(pictures/'square/001.png')
    edits.ignore('square/999.png')
    edits.relabel('triangle/000.png', 'circle', 'square')
    done = apply_edits(pictures, edits, tmp_path/'new.txt')
    assert done.diff == ['- all circle/000.png circle', '+ all circle/000.png square', '- all square/001.png square']
    assert done.missing == ['square/999.png'] and len(done.conflicts) == 1
    assert "'triangle/000.png' is 'triangle' in the list" in done.conflicts[0]
    assert done.before['all'] == dict(circle=20, square=20, triangle=20)
    assert done.after['all'] == dict(circle=19, square=20, triangle=20)
    text = str(done)
    assert 'new.txt: 59 pictures, 60 before (circle -1)' in text and 'Left out' in text and 'In no list: square/999.png' in text
    pics = read_list_file(tmp_path/'new.txt', pictures, vocab=('circle', 'square', 'triangle'))
    shown = {pics.name(i): pics.vocab[pics.labels[i]] for i in range(len(pics))}
    want = {o: o.split('/')[0] for o in before if o != 'square/001.png'} | {'circle/000.png': 'square'}
    assert shown == want and contents(pictures) == before

def test_lists_at_home(pictures, monkeypatch):
    monkeypatch.setenv('HOME', str(pictures.parent))
    names, edits = write_table(pictures, pictures/'labels.csv'), Edits('~/shapes')
    edits.relabel(names[1], 'circle', 'square')
    found = [apply_edits(f'~/shapes{o}', edits, f'~/new{o or ".txt"}').diff for o in ('', '/labels.csv')]
    assert found == [[f'- all {names[1]} circle', f'+ all {names[1]} square']]*2

def write_table(pictures, file, split=False, extra=''): # of folders
    names = [o.relative_to(pictures).as_posix() for o in sorted(pictures.rglob('*.png'))]
    sides = ['val' if i % 3 == 0 else 'train' for i in range(len(names))]
    rows = [[o, o.split('/')[0], *([side] if split else []), f'note {i}'] for i, (o, side) in enumerate(zip(names, sides))]
    head = ['file', 'class', *(['split'] if split else []), 'remark']
    file.write_text('\n'.join(','.join(o) for o in [head, *rows]) + '\n' + extra)
    return names

@pytest.mark.parametrize('split', [False, True])
def test_a_table_stays_a_table(pictures, tmp_path, split):
    import pandas as pd
    names = write_table(pictures, pictures/'labels.csv', split, 'gone.png,circle,test,kept\n' if split else '')
    edits = Edits(pictures)
    edits.relabel(names[1], 'circle', 'square')
    edits.ignore(names[2])
    if split: edits.move(names[3], 'valid', 'train')
    before = (pictures/'labels.csv').read_bytes()
    revision = apply_edits(pictures/'labels.csv', edits, tmp_path/'new/labels.csv')
    assert len(revision.diff) == (5 if split else 3) and (pictures/'labels.csv').read_bytes() == before
    old, new = (pd.read_csv(o, dtype=str).set_index('remark') for o in (pictures/'labels.csv', tmp_path/'new/labels.csv'))
    assert list(old.columns) == list(new.columns) and set(old.index) - set(new.index) == {'note 2'}
    changed = new.drop(columns='file').compare(old.drop(index='note 2', columns='file')).index
    assert list(changed) == ['note 1', 'note 3'][:1 + split] and new['class']['note 1'] == 'square'
    if split: assert new['split']['note 3'] == 'train' and new['split']['kept'] == 'test'
    again = lists_of(tmp_path/'new/labels.csv')
    assert sum(map(len, again.values())) == len(names) - 1 and list(again) == (['train', 'valid'] if split else ['all'])
    assert revision.plan == dict(path=str(tmp_path/'new/labels.csv')) and find_pictures(DataPlan(**revision.plan))

@pytest.mark.parametrize('twice', ['valid', 'train', 'test'])
def test_rows_that_share_a_picture_keep_their_sides(pictures, tmp_path, twice): # and test pictures stay out of the training
    import pandas as pd
    names = write_table(pictures, pictures/'labels.csv', split=True)
    with open(pictures/'labels.csv', 'a') as f: f.write(f'{names[1]},circle, {twice.upper()},again\n')
    edits = Edits(pictures)
    edits.ignore(names[5])
    def sides(): return pd.read_csv(tmp_path/'new.csv').set_index('remark').split
    revision = apply_edits(pictures/'labels.csv', edits, tmp_path/'new.csv')
    found, after = sides(), {k: sum(o.values()) for k, o in revision.after.items()}
    assert (found['note 1'], found['again'], len(found)) == ('train', f' {twice.upper()}', 60) and len(revision.diff) == 1
    assert after == {k: len(o) for k, o in lists_of(tmp_path/'new.csv').items()}
    (tmp_path/'new.csv').unlink()
    edits.relabel(names[1], 'circle', 'square')
    edits.move(names[1], 'train', 'valid')
    apply_edits(pictures/'labels.csv', edits, tmp_path/'new.csv')
    table = pd.read_csv(tmp_path/'new.csv').set_index('remark')['class']
    assert sides()['note 1'] == 'val' and sides()['again'] == dict(test=' TEST', valid=' VALID').get(twice, 'val')
    assert table['note 1'] == 'square' and table['again'] == ('circle' if twice == 'test' else 'square')

def test_folders_and_splits_become_a_table(pictures, tmp_path):
    names = sorted(o.relative_to(pictures).as_posix() for o in pictures.rglob('*.png'))
    edits = Edits(pictures)
    edits.relabel(names[0], 'circle', 'square')
    apply_edits(pictures, edits, pictures/'mended.csv')
    assert (pictures/'mended.csv').read_text().splitlines()[:2] == ['image,label', f'{names[0]},square'], 'names below it'
    sides = find_pictures(DataPlan(str(pictures), valid=.25))
    told = str(apply_edits(sides, edits, tmp_path/'split.tsv'))
    assert 'split.tsv, train:' in told and 'split.tsv, valid:' in told
    assert [len(o) for o in lists_of(tmp_path/'split.tsv').values()] == [len(o) for o in sides]
    with pytest.raises(InputError, match='exists'): apply_edits(sides, edits, tmp_path/'split.tsv')

def test_twenty_planted_errors_are_repaired(pictures, tmp_path): # the new list equals the true one
    true = read_class_folders(pictures)
    rng, labels = np.random.default_rng(0), true.labels.copy()
    wrong = rng.choice(len(true), 20, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 3, 20)) % 3
    planted, edits = true.replace(labels=labels), Edits(pictures)
    for i in wrong: edits.relabel(planted.source(i), true.vocab[labels[i]], true.vocab[true.labels[i]])
    apply_edits(planted, edits, tmp_path/'new.txt')
    assert read_list_file(tmp_path/'new.txt', pictures, vocab=true.vocab).list_hash() == true.list_hash()

def test_applied_twice_nothing_more_changes(pictures, tmp_path):
    edits = Edits(pictures)
    edits.relabel('circle/000.png', 'circle', 'square')
    edits.ignore('circle/001.png')
    apply_edits(pictures, edits, pictures/'new.txt')
    again = apply_edits(pictures/'new.txt', edits, tmp_path/'again.txt', vocab=('circle', 'square', 'triangle'))
    assert not again.diff and not again.conflicts and (pictures/'new.txt').read_text() == (tmp_path/'again.txt').read_text()

@pytest.mark.parametrize('out, file', [('else/mended.txt', 'else/mended.txt'), ('mended', 'mended/train_list.txt'),
                                       ('shapes/mended.txt', 'shapes/mended.txt')])
def test_a_list_can_be_used_further(pictures, tmp_path, out, file):
    edits = Edits(pictures)
    edits.relabel('circle/000.png', 'circle', 'square')
    done = apply_edits(pictures, edits, tmp_path/out)
    assert done.files == dict(all=str(tmp_path/file)) and lists_of(done)['all'].vocab == ('circle', 'square', 'triangle')
    train, valid = find_pictures(DataPlan(**done.plan, valid=.2))
    assert len(train) + len(valid) == 60 and train.vocab == ('circle', 'square', 'triangle')
    edits.relabel('circle/001.png', 'circle', 'square')
    again = apply_edits(done, edits, tmp_path/'again.txt')
    assert again.diff == ['- all circle/001.png circle', '+ all circle/001.png square'] and not again.conflicts
    assert lists_of(again)['all'].counts() == dict(circle=18, square=22, triangle=20)
    if out.startswith('shapes'): assert lists_of(tmp_path/file)['all'].list_hash() == lists_of(done)['all'].list_hash()

def test_names_of_other_classes_are_not_written_over(pictures, tmp_path):
    edits, names = Edits(pictures), tmp_path/'label_list.txt'
    edits.relabel('circle/000.png', 'circle', 'square')
    names.write_text('0 cat\n1 dog\n2 owl\n')
    with pytest.raises(InputError, match='names other classes'): apply_edits(pictures, edits, tmp_path/'new.txt')
    assert names.read_text().startswith('0 cat') and not (tmp_path/'new.txt').exists()
    names.write_text('0 circle\n1 square\n2 triangle\n')
    assert len(apply_edits(pictures, edits, tmp_path/'new.txt').diff) == 2

def test_a_list_of_numbers_stays_one(pictures, tmp_path):
    (pictures/'l.txt').write_text('circle/000.png 0\nsquare/000.png 1\n')
    edits = Edits(pictures)
    edits.relabel('circle/000.png', '0', '1')
    done = apply_edits(pictures/'l.txt', edits, tmp_path/'new.txt')
    assert not list(tmp_path.glob('label*')) and lists_of(done)['all'].vocab == ('0', '1') and done.plan['num_classes'] == 2

def test_both_sides_of_a_split(pictures, tmp_path):
    plan, edits = DataPlan(str(pictures), valid=.2), Edits(pictures)
    train, valid = find_pictures(plan)
    a, b, c = valid.name(0), train.name(0), train.name(1)
    edits.move(a, 'valid', 'train')
    edits.move(b, 'train', 'valid')
    edits.relabel(b, b.split('/')[0], 'triangle')
    edits.ignore(c)
    done = apply_edits((train, valid), edits, tmp_path/'lists')
    new_train, new_valid = find_pictures(DataPlan(**done.plan))
    name_of = lambda pics: [pics.name(i) for i in range(len(pics))]
    assert name_of(new_train) == [*name_of(train)[2:], a] and name_of(new_valid) == [*name_of(valid)[1:], b]
    assert new_valid.vocab[new_valid.labels[-1]] == 'triangle' and new_train.vocab == train.vocab
    assert set(done.files) == {'train', 'valid'} and len(done.diff) == 5

def test_edits_by_path_and_the_pictures_of_a_run(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path/'run')
    plan = Run(run).plan.data
    name = find_pictures(plan)[1].name(0)
    with pytest.raises(InputError, match="edits.jsonl' is missing"): apply_edits(run, run, tmp_path/'no')
    Edits(run).move(name, 'valid', 'train')
    with pytest.raises(InputError, match=r"give the loaders .* or the run folder"): apply_edits(plan.path, run, tmp_path/'no.txt')
    for i, edits in enumerate((run, str(run/'edits.jsonl'))):
        done = apply_edits(run, edits, tmp_path/f'lists{i}')
        assert done.diff[0] == f"- valid {name} {name.split('/')[0]}" and len(done.diff) == 2 and not done.missing

@pytest.mark.parametrize('args, words', [((), 'the run folder they are in'), ((3,), 'edits=3 are no edits'),
                                         (('log',), 'need a place')])
def test_what_is_missing_is_said(pictures, args, words):
    if args == ('log',): args = (Edits(pictures),)
    with pytest.raises(InputError, match=words): apply_edits(pictures, *args)

def test_train_and_valid_folders_with_the_same_names(pictures, tmp_path): # are told apart by the folder of their side
    root = tmp_path/'both'
    for side in ('train', 'valid'): shutil.copytree(pictures, root/side)
    edits = Edits(root)
    edits.relabel(root/'valid/circle/000.png', 'circle', 'square')
    assert net(edits)[0][0] == 'valid/circle/000.png'
    done = apply_edits(root, edits, tmp_path/'lists')
    assert done.after['train'] == done.before['train'] and done.after['valid'] == dict(circle=19, square=21, triangle=20)
    assert done.diff == ['- valid valid/circle/000.png circle', '+ valid valid/circle/000.png square']
    train, valid = find_pictures(DataPlan(**done.plan))
    assert len(train) == len(valid) == 60

def test_lists_with_names_beside_them(pictures, tmp_path):
    write_split(pictures, *find_pictures(DataPlan(str(pictures), valid=.2)))
    edits = Edits(pictures)
    edits.relabel(first := (pictures/'val_list.txt').read_text().split()[0], first.split('/')[0], 'triangle')
    one = apply_edits(pictures/'val_list.txt', edits, tmp_path/'new.txt')
    assert len(one.diff) == 2
    with pytest.raises(InputError, match='exists. Edits go into a new list'): apply_edits(pictures, edits, pictures)
    assert apply_edits(DataPlan(str(pictures)), edits, tmp_path/'lists').files['train'].endswith('train_list.txt')

def test_a_picture_that_is_listed_twice_is_mended_twice(pictures, tmp_path):
    (pictures/'l.txt').write_text('circle/000.png 0\nsquare/000.png 1\ncircle/000.png 0\n')
    edits = Edits(pictures)
    edits.relabel('circle/000.png', '0', '1')
    assert len(apply_edits(pictures/'l.txt', edits, tmp_path/'new.txt').diff) == 4

def test_nothing_is_written_when_an_edit_would_be_lost(pictures, tmp_path):
    edits = Edits(pictures)
    done = edits.relabel('circle/000.png', 'circle', 'sqare')
    with pytest.raises(InputError, match=f"'sqare', for 'circle/000.png', is no class.*Did you mean 'square'.*{done['edit']}"):
        apply_edits(pictures, edits, tmp_path/'new.txt')
    edits.undo()
    edits.move('circle/000.png', 'train', 'valid')
    with pytest.raises(InputError, match='one list only'): apply_edits(pictures, edits, tmp_path/'new.txt')
    with pytest.raises(InputError, match='is no list of pictures'): lists_of(7)
    assert not (tmp_path/'new.txt').exists()

def test_pictures_without_files_have_no_list(tmp_path):
    from imgcls_nb.pictures import Arrays, PictureList
    pics = PictureList(tmp_path, Arrays(np.zeros((3, 4, 4), np.uint8)), [0, 1, 0], 'ab')
    edits = Edits(tmp_path)
    edits.relabel(pics.name(0), 'a', 'b')
    with pytest.raises(InputError, match='no file of its own'): apply_edits(pics, edits, tmp_path/'new.txt')

# Moved files

@pytest.fixture
def few(tmp_path): return make_shapes(tmp_path/'few', n=3)

def test_paths_from_where_one_is(few, monkeypatch):
    monkeypatch.chdir(few.parent)
    assert Edits(few).names_of([f'{few.name}/circle/001.png', 'circle/001.png']) == ['circle/001.png']*2
    monkeypatch.chdir(few/'circle')
    assert Edits(few).names_of(['001.png', '../square/002.png', 'circle/001.png']) == [
        'circle/001.png', 'square/002.png', 'circle/001.png']

def test_a_run_whose_plan_cannot_be_read(tmp_path):
    (tmp_path/'config.yaml').write_bytes(b'data: \xff\xfe')
    with pytest.raises(InputError, match='config.yaml'): Edits(tmp_path)

def prepared(pictures):
    edits = Edits(pictures)
    edits.relabel('circle/000.png', 'circle', 'square')
    edits.relabel('circle/001.png', 'circle', 'triangle')
    edits.ignore('square/002.png')
    edits.relabel('square/000.png', 'square', 'circle') # to where the first one was
    return edits

def test_moved_and_back(pictures):
    before, edits = contents(pictures), prepared(pictures)
    moves = dict(plan_moves(edits))
    assert contents(pictures) == before and moves['square/002.png'] == f'{IGNORED}/square/002.png'
    both = [moves[f'{o}/000.png'] for o in ('circle', 'square')]
    assert both == ['square/000-1.png', 'circle/000-1.png'], "no name is taken twice"
    journal = move_pictures(edits)
    assert contents(pictures) == {moves.get(k, k): v for k, v in before.items()}
    assert read_class_folders(pictures).counts() == dict(circle=19, square=19, triangle=21)
    assert edits.changes() == [] and move_pictures(edits) is None, "they are carried out, and not a second time"
    with pytest.raises(InputError, match='has been moved for this edit'): edits.undo()
    revert_moves(journal)
    assert contents(pictures) == before and len(edits.changes()) == 4 and not (pictures/IGNORED).exists()
    revert_moves(journal) # once more does nothing
    assert contents(pictures) == before
    assert move_pictures(edits).name == 'moves-2.jsonl'

def test_sides_are_folders(pictures, tmp_path):
    root = tmp_path/'both'
    for side in ('Train', 'val'): shutil.copytree(pictures, root/side)
    edits = Edits(root)
    edits.move('val/circle/000.png', 'valid', 'train')
    edits.relabel('val/circle/000.png', 'circle', 'square')
    edits.ignore('Train/circle/001.png')
    before = contents(root)
    journal = move_pictures(edits)
    assert {*contents(root)} - {*before} == {'Train/square/000-1.png', f'{IGNORED}/Train/circle/001.png'}
    revert_moves(journal)
    assert contents(root) == before

def moved_while(root, other): # happens, once it is looked at what is to be moved
    thread = threading.Thread(target=other)
    def meanwhile(*args):
        if threading.current_thread() is threading.main_thread():
            thread.start()
            time.sleep(.2)
        return plan_moves(*args)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(moves, 'plan_moves', meanwhile)
        journal = move_pictures(Edits(root))
    thread.join(10)
    return journal

def test_an_edit_that_comes_between_is_left_for_the_next_call(few):
    Edits(few).relabel('circle/000.png', 'circle', 'square')
    journal = moved_while(few, lambda: Edits(few).relabel('circle/001.png', 'circle', 'triangle'))
    assert json.loads(journal.read_bytes().splitlines()[0])['moves'] == [['circle/000.png', 'square/000-1.png']]
    assert net(Edits(few)) == [('circle/001.png', 'label', 'circle', 'triangle')] and (few/'circle/001.png').exists()
    assert move_pictures(Edits(few)).name == 'moves-2.jsonl' and not (few/'circle/001.png').exists()

def test_two_move_at_once(few):
    Edits(few).relabel('circle/000.png', 'circle', 'square')
    said = []
    journal = moved_while(few, lambda: said.append(_outcome(few)))
    assert said == [None] or 'begun and not finished' in said[0], "who comes second finds it done, or begun"
    assert [o.name for o in few.glob('moves-*')] == [journal.name] and (few/'square/000-1.png').exists()

def _outcome(root):
    try: return move_pictures(Edits(root))
    except InputError as e: return str(e)

def test_logs_of_one_folder_have_journals_of_their_own(few):
    for i, log in enumerate('ab'): Edits(few/f'{log}.jsonl').relabel(f'circle/00{i}.png', 'circle', 'square')
    journals = [move_pictures(Edits(few/f'{log}.jsonl')) for log in 'ab']
    assert [o.name for o in journals] == ['moves-1.jsonl', 'moves-2.jsonl'] and not list(few.glob('.*.part'))
    (few/'.a-moves.part').write_bytes(b'new')
    assert moves._new_journal(few/'a.jsonl', b'x').name == 'moves-3.jsonl'

def test_an_edit_is_not_taken_back_while_its_picture_moves(few, monkeypatch):
    said, real = [], moves.move_file
    def meanwhile(src, dst):
        with pytest.raises(InputError, match='has been moved for this edit'): Edits(few).undo()
        Edits(few).ignore('circle/002.png') # of another picture
        said.append(dst.name)
        return real(src, dst)
    monkeypatch.setattr(moves, 'move_file', lambda src, dst: real(src, dst) if src.suffix == '.part' else meanwhile(src, dst))
    edits = Edits(few)
    edits.relabel('circle/000.png', 'circle', 'square')
    move_pictures(edits)
    assert said == ['000-1.png'] and net(edits) == [('circle/002.png', 'ignore', False, True)]

def test_an_edit_that_was_taken_back_before_its_picture_moved(few):
    before, edits = contents(few), Edits(few)
    edits.relabel('circle/000.png', 'circle', 'square')
    with open(edits.file, 'a+b') as nothing: journal = moves._begin(edits, nothing)
    lines = edits.file.read_bytes().splitlines(keepends=True)
    edits.file.write_bytes(lines[0]) # the kill came before it was noted
    edits.undo()
    with pytest.raises(InputError, match='1 of the edits.*taken back before.*revert_moves'): finish_moves(journal)
    revert_moves(journal)
    assert contents(few) == before and move_pictures(edits) is None

def test_an_earlier_journal_moves_nothing(few):
    edits = Edits(few)
    edits.relabel('circle/000.png', 'circle', 'square')
    first = move_pictures(edits)
    revert_moves(first)
    second, moved = move_pictures(edits), contents(few)
    revert_moves(first)
    assert contents(few) == moved and edits.changes() == []
    (few/'square/000-1.png').rename(few/'circle/000.png') # by hand
    finish_moves(second)
    assert (few/'circle/000.png').exists(), "it was finished before"

class Killed(BaseException): pass

@pytest.mark.parametrize('way', ['finish', 'revert'])
def test_killed_at_every_moment(few, way, tmp_path, monkeypatch):
    for n in range(60):
        root = shutil.copytree(few, tmp_path/str(n))
        before, edits, calls = contents(root), prepared(root), iter(range(10**6))
        wanted = {dict(plan_moves(edits)).get(k, k): v for k, v in before.items()}
        with monkeypatch.context() as m:
            def dying(real):
                def call(*args, **kwargs):
                    if next(calls) == n: raise Killed # noqa: B023
                    return real(*args, **kwargs)
                return call
            for o in ('link', 'unlink', 'replace', 'fsync', 'mkdir'): m.setattr(os, o, dying(getattr(os, o)))
            try: move_pictures(edits)
            except Killed: pass
            else: break
        assert set(contents(root).values()) == set(before.values()), "no picture is ever lost"
        journals = list(root.glob('moves-*.jsonl'))
        if not journals: assert contents(root) == before
        elif way == 'finish':
            finish_moves(journals[0])
            assert contents(root) == wanted and edits.changes() == []
        else:
            revert_moves(journals[0])
            assert contents(root) == before and len(edits.changes()) == 4
    assert 12 < n < 60 and contents(root) == wanted

def test_killed_while_reverting(pictures, monkeypatch):
    before, edits = contents(pictures), prepared(pictures)
    journal = move_pictures(edits)
    real, calls = os.link, iter(range(9))
    def dying(*args, **kwargs):
        if next(calls) == 2: raise Killed
        return real(*args, **kwargs)
    with monkeypatch.context() as m:
        m.setattr(os, 'link', dying)
        with pytest.raises(Killed): revert_moves(journal)
    with pytest.raises(InputError, match='begun and not finished'): move_pictures(edits)
    revert_moves(journal)
    assert contents(pictures) == before and len(edits.changes()) == 4

def test_without_hard_links(pictures, monkeypatch):
    before, edits = contents(pictures), prepared(pictures)
    def no(*args, **kwargs): raise OSError(1, 'Operation not permitted')
    monkeypatch.setattr(os, 'link', no)
    revert_moves(move_pictures(edits))
    assert contents(pictures) == before

def test_nothing_is_written_over(pictures):
    edits = prepared(pictures)
    journal = move_pictures(edits)
    (pictures/'circle/001.png').write_bytes(b'a new picture')
    with pytest.raises(InputError, match="1 of 4 pictures are not back:\n.*001.png' is there already"): revert_moves(journal)
    assert (pictures/'circle/001.png').read_bytes() == b'a new picture' and (pictures/'circle/000.png').exists()
    (pictures/'circle/001.png').unlink()
    revert_moves(journal)
    assert (pictures/'circle/001.png').exists() and len(edits.changes()) == 4

@pytest.mark.parametrize('edit, says', [
    (('circle/000.png', 'label', 'circle', 'sqare'), "no class folder 'sqare'.*Did you mean 'square'"),
    (('circle/000.png', 'label', 'circle', '../out'), "no class folder '../out'"),
    (('circle/000.png', 'label', 'square', 'circle'), "does not lie in a folder 'square'"),
    (('circle/999.png', 'ignore', False, True), 'is gone'), (('circle/link.png', 'ignore', False, True), 'is a link'),
    (('circle/000.png', 'split', 'valid', 'train'), 'cannot change sides by moving'),
    (('../out.png', 'ignore', False, True), "'../out.png' does not lie in"),
    (('circle/../../out.png', 'ignore', False, True), 'does not lie in'),
    (('OUT', 'ignore', False, True), "out.png' does not lie in '.*shapes', and other folders")])
def test_what_cannot_be_moved_stops_all(pictures, edit, says):
    (pictures/'circle/link.png').symlink_to('000.png')
    shutil.copy(pictures/'circle/000.png', pictures.parent/'out.png')
    if edit[0] == 'OUT': edit = (pictures.parent/'out.png', *edit[1:])
    before, edits = contents(pictures), Edits(pictures)
    edits.ignore('square/000.png')
    edits.add(*edit)
    with pytest.raises(InputError, match=f'1 of the pictures cannot be moved, so none is[^$]*{says}'): move_pictures(edits)
    assert contents(pictures) == before and not list(pictures.glob('moves-*'))

@pytest.mark.skipif(not os.path.isdir('/dev/shm') or os.stat('/dev/shm').st_dev == os.stat('/tmp').st_dev, reason="one disk only")
def test_another_disk_is_seen_before_anything_moves(few):
    with tempfile.TemporaryDirectory(dir='/dev/shm') as other:
        shutil.move(few/'square', other)
        (few/'square').symlink_to(f'{other}/square')
        Edits(few).relabel('circle/000.png', 'circle', 'square')
        with pytest.raises(InputError, match="'square/000.png' would be on another disk than 'circle/000.png'"):
            move_pictures(Edits(few))
    assert not list(few.glob('moves-*')) and (few/'circle/000.png').exists()

def test_a_file_that_is_no_journal(tmp_path):
    for text in ('', '{}', '[1]', 'x'):
        (tmp_path/'moves-1.jsonl').write_text(text)
        with pytest.raises(InputError, match='is no journal of moves'): revert_moves(tmp_path/'moves-1.jsonl')

def test_move_file_names_what_is_wrong(tmp_path):
    a, b = tmp_path/'a', tmp_path/'b'
    with pytest.raises(InputError, match='is gone'): move_file(a, b)
    a.write_text('a'), b.write_text('b')
    with pytest.raises(InputError, match='is there already'): move_file(a, b)
    assert (a.read_text(), b.read_text()) == ('a', 'b')

# Files underneath

def test_write_atomic_leaves_the_old_file_when_it_dies(tmp_path, monkeypatch):
    write_atomic(tmp_path/'x', b'old')
    def dying(*args): raise Killed
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', dying)
        with pytest.raises(Killed): write_atomic(tmp_path/'x', b'new')
    assert (tmp_path/'x').read_bytes() == b'old'
    write_atomic(tmp_path/'x', b'new')
    assert [o.name for o in tmp_path.iterdir()] == ['x'] and (tmp_path/'x').read_bytes() == b'new'

def test_two_writers_of_one_file_take_turns(tmp_path, monkeypatch):
    (tmp_path/'.x.part').write_bytes(b'of a process that was killed')
    second = threading.Thread(target=write_atomic, args=(tmp_path/'x', b'two'), daemon=True)
    seen = []
    def reached(point):
        if point == 'x has its name': seen.append((tmp_path/'x').read_bytes())
        if point != '.x.part is partly written' or second.ident: return
        second.start()
        second.join(.2)
        assert second.is_alive() and not (tmp_path/'x').exists()
    monkeypatch.setattr('imgcls_nb.files.reached', reached)
    write_atomic(tmp_path/'x', b'first')
    second.join(10)
    assert seen == [b'first', b'two'] and os.listdir(tmp_path) == ['x']

def test_a_class_without_a_name_is_refused(tmp_path):
    with pytest.raises(InputError, match="right class of 'circle/000.png' is not said.*ignore leaves a picture out"):
        Edits(make_shapes(tmp_path/'few', n=1)).relabel('circle/000.png', 'circle', '')
    assert not list(tmp_path.rglob('*.jsonl'))

@contextmanager
def forked():
    "A child, such as a loader process, that has inherited what is open here"
    wait, go = os.pipe()
    if not (child := os.fork()):
        os.close(go)
        os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    try: yield
    finally:
        os.close(go)
        os.waitpid(child, 0)

@pytest.mark.skipif(not hasattr(os, 'fork'), reason="needs fork")
@pytest.mark.parametrize('held', [appending, lambda file: Records(file, {})], ids=['appending', 'Records'])
def test_a_child_keeps_no_lock(tmp_path, held):
    import fcntl
    with ExitStack() as until_the_end:
        with held(tmp_path/'x.csv'): until_the_end.enter_context(forked())
        file, = tmp_path.iterdir()
        with open(file) as f: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)

def test_a_line_after_a_cut_one(tmp_path):
    (tmp_path/'log').write_bytes(b'{"a": 1}\n{"b"')
    with appending(tmp_path/'log') as f: append_line(f, json.dumps(dict(c=3)).encode())
    assert (tmp_path/'log').read_bytes() == b'{"a": 1}\n{"b"\n{"c": 3}\n'
