"Reading folders and list files, and batches that repeat bit for bit"
import hashlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from imgcls_nb.core import BadPictureError, InputError, Preprocess, list_images
from imgcls_nb.data import ImageDL, image_dls
from imgcls_nb.datasets import make_shapes
from imgcls_nb.pictures import PictureList
from imgcls_nb.plan import DataPlan
from imgcls_nb.seeds import seeded
from imgcls_nb.sources import class_names, find_pictures, read_class_folders, read_label_file, read_list_file
from imgcls_nb.splits import SPLITS, grouped_split, hold_out, kfold_split, random_split, stratified_split


def touch(folder, *names):
    for o in names:
        (folder/o).parent.mkdir(parents=True, exist_ok=True)
        (folder/o).touch()
    return folder

# Class folders

def test_class_folders(tmp_path):
    touch(tmp_path, 'b/2.png', 'b/1.jpg', 'a c/deep/x.PNG', 'ü/y.webp', 'empty/notes.txt', '.hidden/z.png', 'loose.png')
    pics = read_class_folders(tmp_path)
    assert pics.vocab == ('a c', 'b', 'ü') and pics.labels.tolist() == [0, 1, 1, 2]
    assert [pics.name(i) for i in range(4)] == ['a c/deep/x.PNG', 'b/1.jpg', 'b/2.png', 'ü/y.webp']
    assert pics.counts() == {'a c': 1, 'b': 2, 'ü': 1}

def test_names_and_hash_do_not_depend_on_the_place(tmp_path, monkeypatch):
    for o in ('one', 'two/deep'): touch(tmp_path/o, 'a/1.png', 'b/2.png')
    one, two = (read_class_folders(tmp_path/o) for o in ('one', 'two/deep'))
    monkeypatch.chdir(tmp_path/'two')
    for o in ('deep', './deep/', '../two/deep'): assert read_class_folders(o).list_hash() == one.list_hash() == two.list_hash()
    touch(tmp_path, 'one/b/3.png')
    assert read_class_folders(tmp_path/'one').list_hash() != two.list_hash()

@pytest.mark.parametrize('files, says', [
    ([], 'no pictures'), (['notes.txt', 'a/notes.txt'], 'no pictures'), (['1.png', '2.jpg'], '2 pictures but no class folders'),
    (['a/1.png', 'a/2.png'], "one class only, 'a'"), (['a/1.png', 'b/readme.txt'], "one class only, 'a'"),
    (['a/1.png', '.b/2.png'], "one class only, 'a'")], ids=str)
@pytest.mark.parametrize('read', [read_class_folders, image_dls])
def test_folders_without_classes(tmp_path, read, files, says):
    with pytest.raises(InputError, match=f"'{tmp_path}' holds {says}"): read(touch(tmp_path, *files))

def test_missing_folder(tmp_path):
    for read in (read_class_folders, image_dls):
        with pytest.raises(InputError, match="There is no folder '.*nowhere'"): read(tmp_path/'nowhere')

def test_a_class_that_training_does_not_have(tmp_path):
    touch(tmp_path, *(f'train/{c}/1.png' for c in ('cat', 'dog')), *(f'valid/{c}/1.png' for c in ('cat', 'dogs', 'mouse')))
    with pytest.raises(InputError, match=r"valid: classes \['dogs', 'mouse'\] are not in the training set, which has cat, dog\."):
        image_dls(tmp_path)

def test_a_class_that_validation_does_not_have(tmp_path):
    touch(tmp_path, *(f'train/{c}/1.png' for c in ('cat', 'cow', 'dog')), 'valid/dog/1.png')
    train, valid = find_pictures(DataPlan(str(tmp_path)))
    assert train.vocab == valid.vocab == ('cat', 'cow', 'dog') and valid.labels.tolist() == [2]

@pytest.mark.parametrize('name', ['valid', 'val', 'validation'])
def test_the_folder_beside_train(tmp_path, name):
    touch(tmp_path, 'train/a/1.png', 'train/b/1.png', f'{name}/a/2.png', f'{name}/b/3.png')
    assert [o.root for o in find_pictures(DataPlan(str(tmp_path)))] == [tmp_path/'train', tmp_path/name]

def test_a_test_folder_is_left_alone(tmp_path):
    touch(tmp_path, *(f'train/{c}/{i}.png' for c in 'ab' for i in range(5)), 'test/a/9.png', 'test/c/9.png')
    assert [(o.root, len(o)) for o in find_pictures(DataPlan(str(tmp_path)))] == [(tmp_path/'train', 8), (tmp_path/'train', 2)]

def test_validation_without_training(tmp_path):
    touch(tmp_path, 'valid/a/1.png', 'valid/b/2.png', 'photos/a/3.png')
    with pytest.raises(InputError, match="has a folder 'valid', but no 'train'"): image_dls(tmp_path)

def test_a_named_validation_folder_is_no_class(tmp_path):
    touch(tmp_path, *(f'{c}/{i}.png' for c in 'ab' for i in range(3)), 'held out/a/4.png', 'held out/b/5.png')
    train, valid = find_pictures(DataPlan(str(tmp_path), valid='held out'))
    assert train.vocab == valid.vocab == ('a', 'b') and (len(train), len(valid)) == (6, 2)

def test_folders_of_the_working_directory_are_not_mistaken(tmp_path, monkeypatch):
    for o in ('here', 'there'): touch(tmp_path/o, *(f'{part}/{c}/{o}.png' for part in ('train', 'valid') for c in 'ab'))
    monkeypatch.chdir(tmp_path/'here')
    assert [o.name(0) for o in find_pictures(DataPlan(str(tmp_path/'there')))] == ['a/there.png']*2

@pytest.mark.parametrize('plan, says', [
    (dict(valid='nowhere'), "There is no 'nowhere', neither here nor in"), (dict(train='nowhere'), "There is no 'nowhere'"),
    (dict(valid=0), 'valid=0 is no share'), (dict(valid=1.), 'is no share'), (dict(valid=-.2), 'is no share'),
    (dict(valid=float('nan')), 'is no share'), (dict(label_file='nowhere.txt'), "no .*file '.*nowhere.txt'"),
    (dict(num_classes=2), '3 class folders .circle, square, triangle., but num_classes is 2')], ids=str)
def test_plans_that_find_nothing(shapes, plan, says):
    with pytest.raises(InputError, match=says): find_pictures(DataPlan(str(shapes), **plan))

# List files

@pytest.fixture
def listed(tmp_path):
    "Reads the text of a list file whose pictures are a/0.png to a/3.png and 'b c/x y.png'"
    touch(tmp_path, *(f'a/{i}.png' for i in range(4)), 'b c/x y.png')
    def read(text, **kwargs):
        (tmp_path/'list.txt').write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_list_file(tmp_path/'list.txt', tmp_path, **kwargs)
    return read

@pytest.mark.parametrize('text, kwargs', [
    ('a/0.png 0\na/1.png 2\n', {}), ('a/0.png 0\na/1.png 2', {}), ('a/0.png 0\r\na/1.png 2\r\n', {}),
    ('\ufeffa/0.png 0\na/1.png 2', {}), ('# list\n\na/0.png 0\n  \n#a/3.png 1\na/1.png 2\n\n', {}),
    ('a/0.png\t0\na/1.png\t2\n', dict(delimiter='\t')),
    ('a/0.png,0\na/1.png,2\n', dict(delimiter=',')), ('  a/0.png   0 \na/1.png  02\n', {}),
    ('./a/0.png 0\na/1.png 2\n', {})], ids=repr)
def test_list_files(listed, text, kwargs):
    pics = listed(text, **kwargs)
    assert pics.labels.tolist() == [0, 2] and pics.vocab == ('0', '1', '2')
    assert [pics.name(i) for i in range(2)] == ['a/0.png', 'a/1.png']

@pytest.mark.parametrize('delimiter', [' ', '\t', ','])
def test_names_with_spaces(listed, delimiter):
    assert listed(f'b c/x y.png{delimiter}1\n', delimiter=delimiter).name(0) == 'b c/x y.png'

def test_classes_of_list_files(listed):
    assert listed('a/0.png 1', num_classes=4).vocab == ('0', '1', '2', '3')
    assert listed('a/0.png 1', vocab=('cat', 'dog')).vocab == ('cat', 'dog')

def test_all_bad_lines_in_one_report(listed):
    lines = ['\ufeff# names', 'a/0.png 0', 'missing.png 1\r', '', 'a/1.png one', 'a/1.png -1', 'a/2.png 3',
             'onlyname', 'a/3.png 1.0', 'a 0']
    with pytest.raises(InputError) as e: listed('\n'.join(lines), num_classes=3)
    first, *report = str(e.value).splitlines()
    assert "list.txt' has 7 bad lines, each should be 'name label':" in first
    says = {3: 'missing.png', 5: "'one' of 'a/1.png' is not a whole number", 6: "'-1'", 7: "label 3 of 'a/2.png' is not below",
            8: "'onlyname' has no ' '", 9: "'1.0'", 10: 'no file'}
    assert len(report) == len(says)
    for o, (n, part) in zip(report, says.items()): assert o.strip().startswith(f'line {n}: ') and part in o

def test_a_long_report_ends(listed):
    with pytest.raises(InputError) as e: listed('x.png 0\n'*1000)
    assert 'has 1000 bad lines' in str(e.value) and 'line 20:' in str(e.value) and 'line 21:' not in str(e.value)
    assert str(e.value).endswith('and 980 more')

@pytest.mark.parametrize('text, kwargs, says', [
    ('', {}, "list.txt' names no pictures"), ('# only a comment\n', {}, 'names no pictures'),
    ('a/0.png 0', dict(delimiter='\t'), r"no '\\t'"), ('a/0.png\t0', {}, "no ' ' between"),
    ('a/0.png 2', dict(vocab=('x', 'y')), 'not below the number of classes, 2'),
    ('ü.png 0'.encode('latin-1'), {}, "list.txt' is not UTF-8"), ('a/0.png 0'.encode('utf-16'), {}, 'is not UTF-8')])
def test_bad_list_files(listed, text, kwargs, says):
    with pytest.raises(InputError, match=says): listed(text, **kwargs)

def test_missing_list_file(tmp_path):
    with pytest.raises(InputError, match="no list file '.*none.txt'"): read_list_file(tmp_path/'none.txt', tmp_path)

def test_list_files_to_a_plan(tmp_path):
    touch(tmp_path, *(f'jpg/{i}.png' for i in range(6)))
    (tmp_path/'train.txt').write_text('jpg/0.png 0\njpg/1.png 1\njpg/2.png 2\n')
    (tmp_path/'valid.txt').write_text('jpg/3.png 1\n')
    (tmp_path/'names.txt').write_text('0 pink primrose\n1 globe thistle\n2 daffodil\n')
    plan = DataPlan(str(tmp_path), 'train.txt', 'valid.txt', 'names.txt')
    train, valid = find_pictures(plan)
    assert train.vocab == valid.vocab == class_names(plan) == ('pink primrose', 'globe thistle', 'daffodil')
    assert (len(train), len(valid), valid.name(0)) == (3, 1, 'jpg/3.png')
    (tmp_path/'valid.txt').write_text('jpg/3.png 1\njpg/4.png 3\n')
    with pytest.raises(InputError, match="valid.txt' has 1 bad line,.*\n.*line 2: label 3 .*classes, 3"): find_pictures(plan)
    (tmp_path/'names.txt').write_text('0 pink primrose\n1 globe thistle\n')
    with pytest.raises(InputError, match="train.txt' has 1 bad line,.*\n.*line 3: label 2 .*classes, 2"): find_pictures(plan)

# Names of classes

@pytest.mark.parametrize('text, kwargs, names', [
    ('0 a circle\n2 three corners\n', {}, ('a circle', '1', 'three corners')), ('\ufeff1 b\r\n0 a\r\n\r\n', {}, ('a', 'b')),
    ('0 a\n1 b\n', dict(num_classes=3), ('a', 'b', '2')), ('0\n1 ü, x\n', {}, ('0', 'ü, x'))])
def test_label_files(tmp_path, text, kwargs, names):
    (tmp_path/'names.txt').write_text(text, 'utf-8', newline='')
    assert read_label_file(tmp_path/'names.txt', **kwargs) == names

@pytest.mark.parametrize('text, says', [
    (b'', 'names no classes'), (b'\n \n', 'names no classes'),
    (b'0 a\ncat\n-1 dog\n', "line 2: 'cat' .*\n.*line 3: '-1 dog'"), (b'0 a\xff', 'is not UTF-8')])
def test_bad_label_files(tmp_path, text, says):
    (tmp_path/'names.txt').write_bytes(text)
    with pytest.raises(InputError, match=f"names.txt'(.|\n)*{says}"): read_label_file(tmp_path/'names.txt')

# Holding out

@pytest.mark.parametrize('seed', [0, 42, 2**40])
@pytest.mark.parametrize('fraction', [.01, .2, .5, .9, .99])
def test_split_is_disjoint_complete_and_even(seed, fraction):
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2, 5], [1, 2, 10, 37]))
    train, held = stratified_split(labels, fraction, seed)
    assert sorted([*train, *held]) == list(range(50)) and not set(train) & set(held)
    for c, n in ((0, 1), (1, 2), (2, 10), (5, 37)):
        assert (labels[held] == c).sum() == min(max(1, round(n*fraction)), n - 1), c

def test_split_depends_on_the_seed_only():
    labels = np.repeat(range(4), 25)
    splits = []
    for o in (3, 4, 3):
        np.random.seed(o), random.seed(o), torch.manual_seed(o)
        splits.append(stratified_split(labels, .2, seed=7)[1].tolist())
    assert splits[0] == splits[1] == splits[2] == stratified_split(labels.tolist(), .2, 7)[1].tolist()
    assert len({tuple(stratified_split(labels, .2, s)[1]) for s in range(20)}) == 20

def test_nothing_to_hold_out():
    with pytest.raises(InputError, match='one picture only'): stratified_split(np.arange(5), .2)

@pytest.mark.parametrize('fraction', [.001, .2, .99])
def test_random_split(fraction):
    train, held = random_split(np.zeros(50, int), fraction, 3)
    assert sorted([*train, *held]) == list(range(50)) and len(held) == min(max(1, round(50*fraction)), 49)
    assert len({tuple(random_split(np.zeros(50, int), .2, s)[1]) for s in range(20)}) == 20

def grouped(seed, n=600, classes=5, groups=60): # large and small groups, frequent and rare classes
    rng = np.random.default_rng(seed)
    return rng.choice(classes, n, p=(p := .5**np.arange(classes))/p.sum()), np.minimum(rng.geometric(4/groups, n), groups)

@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('fraction', [.01, .05, .2, .5, .9])
def test_whole_groups_in_the_share_asked_for(seed, fraction):
    labels, groups = grouped(seed)
    train, held = grouped_split(labels, fraction, seed, groups)
    assert sorted([*train, *held]) == list(range(600)) and not set(groups[train]) & set(groups[held])
    assert abs(len(held) - fraction*600) <= 8, 'the smallest groups have fewer'
    assert set(labels[train]) == set(labels)
    for c in range(3): assert abs((labels[held] == c).mean() - (labels == c).mean()) < .12 or fraction < .1
    assert np.array_equal(held, grouped_split(labels.tolist(), fraction, seed, groups.tolist())[1])

def test_small_sets_with_groups():
    labels, groups = np.repeat([0, 1, 2], 15), np.arange(45)//2
    for seed in range(10):
        held = hold_out(labels, .2, seed=seed, groups=groups)[1]
        assert 8 <= len(held) <= 10 and all(1 <= (labels[held] == c).sum() <= 5 for c in range(3))
    assert [len(o) for o in grouped_split([0, 1, 0, 1], .01, groups=[0, 0, 1, 1])] == [2, 2], 'one group at least'

@pytest.mark.parametrize('share', [.01, .02, .034, .1])
def test_small_shares_of_many_groups(share):
    labels = np.random.default_rng(0).integers(0, 10, 8000)
    held = grouped_split(labels, share, groups=np.arange(8000)//4)[1]
    assert abs(len(held)/8000 - share) < .001 and np.ptp(np.bincount(labels[held], minlength=10)/np.bincount(labels)) < .03

def test_many_small_classes_that_each_round_down():
    groups = np.repeat(np.arange(500), 4) # five groups of each class: no class by itself gives one to a share of 8 percent
    assert abs(len(grouped_split(groups % 100, .08, groups=groups)[1])/2000 - .08) < .01

def test_training_keeps_a_group_of_every_class():
    labels, groups = np.repeat([0, 1, 2, 3], [40, 40, 40, 8]), np.repeat(np.arange(16), 8) # class 3 has one group
    for fraction in (.1, .5, .9):
        for seed in range(10): assert set(labels[grouped_split(labels, fraction, seed, groups)[0]]) == {0, 1, 2, 3}
    with pytest.raises(InputError, match='each group has all pictures of a class'):
        grouped_split([0, 0, 1, 1], .5, groups=[0, 0, 1, 1])

def test_groups_are_as_even_as_by_scikit_learn():
    from sklearn.model_selection import StratifiedGroupKFold
    def unevenness(held, labels): return np.abs(np.bincount(labels[held], minlength=5)/np.bincount(labels) - .2).mean()
    ours, theirs = [], []
    for seed in range(10):
        labels, groups = grouped(seed)
        kfold = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        theirs += [unevenness(o, labels) for _, o in kfold.split(labels, labels, groups)]
        ours += [unevenness(kfold_split(labels, (i, 5), seed, groups)[1], labels) for i in range(5)]
    assert np.mean(ours) < 1.5*np.mean(theirs)

def test_many_groups_take_a_moment():
    rng = np.random.default_rng(0)
    labels, groups, start = rng.integers(0, 100, 200_000), rng.integers(0, 20_000, 200_000), time.process_time()
    held = grouped_split(labels, .2, groups=groups)[1]
    assert time.process_time() - start < 4 and abs(len(held)/200_000 - .2) < .001
    assert np.ptp(np.bincount(labels[held])/np.bincount(labels)) < .01

@pytest.mark.parametrize('k', [2, 5, 12])
@pytest.mark.parametrize('by', ['pictures', 'groups'])
def test_folds_are_all_pictures_once(by, k):
    labels, groups = grouped(1, groups=40)
    folds = [kfold_split(labels, (i, k), 7, groups if by == 'groups' else None) for i in range(k)]
    assert np.array_equal(np.sort(np.concatenate([o for _, o in folds])), np.arange(600))
    for train, held in folds:
        assert not set(train) & set(held) and len(train) + len(held) == 600 and abs(len(held) - 600/k) < 25
        if by == 'groups': assert not set(groups[train]) & set(groups[held])

def test_as_many_folds_as_groups():
    labels, groups = np.arange(12) % 2, np.array([0]*8 + [1, 2, 3, 4])
    assert [len(kfold_split(labels, (i, 5), 0, groups)[1]) for i in range(5)].count(1) == 4

@pytest.mark.parametrize('how, says', [
    (dict(fold=(5, 5)), 'is no fold of 30 pictures'), (dict(fold=(0, 1)), 'is no fold'), (dict(fold=(0, 31)), 'is no fold'),
    (dict(fold=(0.5, 2)), 'is no fold'), (dict(fold=(0, 20)), '20 folds cannot be made of these classes'),
    (dict(fold=(0, 5), groups=[0, 1, 2]*10), '3 groups do not make 5 folds'),
    (dict(groups=[0]*30), 'All pictures are of one group'),
    (dict(groups=[0, 1]), 'There are 2 groups for 30 pictures'), (dict(split='grouped'), 'needs groups'),
    (dict(fold=(0, 2), split='grouped'), 'needs groups'), (dict(split='group'), "Did you mean 'grouped'")], ids=str)
def test_splits_that_cannot_be(how, says):
    with pytest.raises(InputError, match=says): hold_out(np.arange(30) % 2, **how)

@pytest.mark.parametrize('split', [*SPLITS, 'fold'])
def test_lines_of_one_picture_are_never_parted(split):
    labels, same = np.arange(90) % 3, np.arange(90) % 30
    groups = same//3 if split == 'grouped' else None
    how = dict(fold=(0, 5)) if split == 'fold' else dict(split=split)
    train, held = hold_out(labels, groups=groups, same=same, **how)
    assert sorted([*train, *held]) == list(range(90)) and not set(same[train]) & set(same[held]) and 12 <= len(held) <= 24
    once = hold_out(labels[:30], groups=None if groups is None else groups[:30], **how)[1]
    assert set(same[held]) == set(once), 'the split of the pictures'

# Batches

HOW = dict(size=32, bs=16, aug='strong', device='cpu')

def hash_batches(dl, epoch=0):
    "Of every batch, pixel for pixel, in order"
    dl.epoch = epoch
    return [hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest() for x, y in dl]

@pytest.fixture(scope='module')
def expected(shapes):
    "Of two epochs, without loader processes"
    return [hash_batches(image_dls(shapes, **HOW, num_workers=0).train, e) for e in range(2)]

def test_the_loader_changes_with_what_it_should_only(shapes, expected):
    assert len(expected[0]) == 3 and not set(expected[0]) & set(expected[1]), "epochs differ in every batch"
    assert not set(expected[0]) & set(hash_batches(image_dls(shapes, **HOW, num_workers=0, seed=43).train)), "and so do seeds"
    again = image_dls(shapes, **HOW, num_workers=0).train
    items = [again.create_item(5)[0] for again.epoch in (0, 1, 0)]
    assert np.array_equal(items[0], items[2]) and not np.array_equal(items[0], items[1]), "a picture is varied anew in each epoch"
    assert hash_batches(again, 1) == expected[1] and hash_batches(again, 0) == expected[0], "in any order"

@pytest.mark.parametrize('workers', [1, 4])
def test_loader_processes_change_nothing(shapes, expected, workers):
    dl = image_dls(shapes, **HOW, num_workers=workers).train
    assert [hash_batches(dl, e) for e in range(2)] == expected

SPAWNED = """
import sys, torch
from imgcls_nb.data import image_dls
sys.path.insert(0, sys.argv[2])
from test_data import HOW, hash_batches

if __name__ == '__main__':
    torch.multiprocessing.set_start_method('spawn')
    print(*hash_batches(image_dls(sys.argv[1], **HOW, num_workers=1).train, 1))
"""

def test_spawned_loader_processes_change_nothing(shapes, expected, tmp_path):
    script = tmp_path/'spawned.py'
    script.write_text(SPAWNED)
    done = subprocess.run([sys.executable, script, shapes, __file__.rpartition('test_data')[0]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected[1]

def peek_one(dls): dls.train.one_batch()
def peek_show(dls): dls.show_batch(max_n=4)
def peek_valid(dls): list(dls.valid)
def peek_part(dls): next(iter(dls.train))
def peek_item(dls): dls.train.create_item(5)
def peek_new(dls): list(dls.train.new(bs=7))

@pytest.mark.parametrize('peek', [peek_one, peek_show, peek_valid, peek_part, peek_item, peek_new])
def test_peeking_changes_nothing(shapes, expected, peek):
    dls = image_dls(shapes, **HOW, num_workers=0)
    peek(dls)
    assert hash_batches(dls.train) == expected[0]
    peek(dls)
    assert hash_batches(dls.train, 1) == expected[1]

def states(): return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

@pytest.mark.parametrize('seed', [0, 1])
def test_global_generators_neither_matter_nor_move(shapes, expected, seed):
    dls = image_dls(shapes, **HOW, num_workers=0)
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    before = states()
    for i in range(4): dls.train.create_item(i)
    assert states() == before
    assert hash_batches(dls.train) == expected[0]

def test_seeded_holds_for_every_generator():
    def draw(): return random.random(), np.random.rand(), torch.rand(1).item()
    rows = []
    for seed in (5, 6, 5):
        with seeded(seed): rows.append(draw())
    assert rows[0] == rows[2] and all(a != b for a, b in zip(rows[0], rows[1]))
    before = states()
    with pytest.raises(ZeroDivisionError), seeded(5): draw(), 1/0
    assert states() == before, "after an error, too"

def test_a_moved_folder_gives_the_same_batches(shapes, expected, tmp_path, monkeypatch):
    shutil.copytree(shapes, tmp_path/'moved here')
    monkeypatch.chdir(tmp_path)
    assert hash_batches(image_dls('moved here', **HOW, num_workers=0).train) == expected[0]

@pytest.mark.parametrize('way', ['link', '{0}/link', '{0}/s/../s', 's'])
def test_lists_give_the_same_batches_however_the_folder_is_written(shapes, tmp_path, monkeypatch, way):
    shutil.copytree(shapes, tmp_path/'s')
    (tmp_path/'link').symlink_to('s')
    lines = [f'{tmp_path}/s/{c}/{i:03}.png {n}\n' for n, c in enumerate(['circle', 'square']) for i in range(16)]
    (tmp_path/'s/l.txt').write_text(''.join(lines))
    monkeypatch.chdir(tmp_path)
    want = hash_batches(image_dls(tmp_path/'s', 'l.txt', **HOW, num_workers=0).train)
    assert hash_batches(image_dls(way.format(tmp_path), 'l.txt', **HOW, num_workers=0).train) == want

def test_every_picture_once_an_epoch(shapes):
    dl = image_dls(shapes, **HOW, num_workers=0).train
    for dl.epoch in range(3): assert sorted(dl.get_idxs()) == list(range(48))
    assert dl.get_idxs().tolist() != sorted(dl.get_idxs())

def test_drop_last(shapes):
    assert [len(y) for _, y in image_dls(shapes, **HOW | dict(bs=20), num_workers=0).train] == [20, 20, 8]
    assert [len(y) for _, y in image_dls(shapes, **HOW | dict(bs=20), num_workers=0, drop_last=True).train] == [20, 20]

@pytest.mark.parametrize('pre', [
    None, Preprocess(crop=(24, 40), resize_short=44, antialias=False),
    Preprocess(crop=(32, 32), resize_short=32, mean=(.4,), std=(.2,))])
def test_the_validation_loader_is_the_preprocessing(shapes, pre):
    dls = image_dls(shapes, **HOW, preprocess=pre, num_workers=0)
    x, y = map(torch.cat, zip(*dls.valid))
    want = np.stack([dls.preprocess(o) for o in dls.valid_ds.items])
    assert want.dtype == np.float32 and x.numpy().tobytes() == want.tobytes()
    assert y.tolist() == dls.valid_ds.labels.tolist()

def test_a_loader_of_unlabelled_pictures(shapes):
    dls = image_dls(shapes, **HOW, num_workers=0)
    files = list_images(shapes)[::-7]
    x = torch.cat([b[0] for b in dls.test_dl(files)])
    assert np.array_equal(x.numpy(), np.stack([dls.preprocess(o) for o in files]))
    assert len(dls.test_dl(shapes/'circle').dataset) == 20

# Pictures that turn bad

def cut(file): file.write_bytes(file.read_bytes()[:file.stat().st_size//2])
def overwrite(file): file.write_text('I am not a picture')
def remove(file): file.unlink()

@pytest.mark.parametrize('part, damage, workers', [ # torch takes 5 seconds to end a loader process, so only one case has one
    ('train', cut, 0), ('train', overwrite, 0), ('train', remove, 0), ('valid', cut, 0), ('valid', overwrite, 0),
    ('train', overwrite, 1)])
def test_a_picture_that_turns_bad_is_named(tmp_path, part, damage, workers):
    dls = image_dls(make_shapes(tmp_path/'shapes', n=4), **HOW, num_workers=workers)
    dl = getattr(dls, part)
    damage(tmp_path/'shapes'/dl.dataset.name(1))
    with pytest.raises(BadPictureError) as e: list(dl)
    assert str(e.value).startswith(f'{dl.dataset.items[1]}: not a picture that can be read (')
    assert 'Traceback' not in str(e.value) and '\n' not in str(e.value)

def test_pictures_can_be_anything_that_opens():
    pics = PictureList('.', [np.full((40, 40, 3), 10*i, np.uint8) for i in range(4)], [0, 1, 0, 1], ('a', 'b'))
    x, y = ImageDL(pics, Preprocess(crop=(32, 32), resize_short=32, mean=(0,)*3, std=(1,)*3), bs=4, num_workers=0).one_batch()
    assert x[:, 0, 0, 0].mul(255).round().tolist() == [0, 10, 20, 30] and y.tolist() == [0, 1, 0, 1]
    assert pics.name(2) == '<2>'

@pytest.mark.parametrize('valid', ['valid', './valid', '{root}/valid'])
def test_a_validation_folder_is_never_a_class(tmp_path, valid):
    touch(tmp_path, *(f'{part}{c}/{i}.png' for part in ('', 'valid/') for c in 'ab' for i in range(2)))
    train, held = find_pictures(DataPlan(str(tmp_path), valid=valid.format(root=tmp_path)))
    assert train.vocab == held.vocab == ('a', 'b') and not set(train.items) & set(held.items)
