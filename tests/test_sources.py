"Every form that pictures come in, and every way in which it can be wrong"
import contextlib
import gzip
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from imgcls_nb import archives
from imgcls_nb.archives import index_tar, read_cifar, read_idx, read_pickled_batch, scan_tar
from imgcls_nb.columns import Texts, read_columns, write_columns
from imgcls_nb.core import BadPictureError, InputError
from imgcls_nb.lists import (
    find_columns,
    missing_files,
    read_label_file,
    read_list_file,
    read_rows,
    read_text,
    write_label_file,
    write_list_file,
    write_split,
)
from imgcls_nb.packed import FASHION, FASHION_CRC, read_cifar_folder, read_flowers102, read_idx_folder, read_shards
from imgcls_nb.pictures import Arrays, Files, PictureList, name_vocab, names_below, number_vocab, tell_apart
from imgcls_nb.plan import DataPlan
from imgcls_nb.seeds import mix_seed, name_bytes
from imgcls_nb.sources import (
    SOURCES,
    class_names,
    find_pictures,
    name_sides,
    read_class_folders,
    read_sides,
    recognize_source,
    tell_untested,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path/'cache'))

@pytest.fixture
def root(tmp_path):
    (tmp_path/'data').mkdir()
    return tmp_path/'data'

def touch(folder, *names):
    for o in names:
        (folder/o).parent.mkdir(parents=True, exist_ok=True)
        (folder/o).touch()
    return folder

def write(folder, **texts): # dots in names are written as __
    for k, v in texts.items(): (folder/k.replace('__', '.')).write_bytes(v if isinstance(v, bytes) else v.encode())
    return folder

def find(root, **plan): return find_pictures(DataPlan(str(root), **plan))
def sides(root, **plan): return read_sides(DataPlan(str(root), **plan)) # two pictures rarely leave each class one to train on
def names(pics): return [pics.name(i) for i in range(len(pics))]
def labelled(pics): return {pics.name(i): pics.vocab[pics.labels[i]] for i in range(len(pics))}

# Text

@pytest.mark.parametrize('data, encoding, text', [
    ('ü\n'.encode(), 'auto', 'ü\n'), ('\ufeffü\r\nx\ry'.encode(), 'auto', 'ü\nx\ny'), ('\ufeffü'.encode(), 'utf-8', 'ü'),
    ('花'.encode('gbk'), 'gbk', '花'), ('é'.encode('latin-1'), 'latin-1', 'é'), ('ü'.encode('utf-16'), 'utf-16', 'ü'),
    ('a\u2028b\x0cc'.encode(), 'auto', 'a\u2028b\x0cc'), (b'', 'auto', '')])
def test_text(root, data, encoding, text):
    assert read_text(write(root, x=data)/'x', encoding) == text

def test_gbk_is_guessed_aloud(root):
    with pytest.warns(UserWarning, match="'.*x' is not UTF-8 and was read as GBK"):
        assert read_text(write(root, x='向日葵'.encode('gbk'))/'x') == '向日葵'

@pytest.mark.parametrize('data, encoding, says', [
    (b'\xff\xfea', 'auto', "is not UTF-8, nor is it GBK. Save it as UTF-8"), (b'\xfc.png', 'utf-8', 'is not utf-8'),
    (b'x', 'utf-9', "encoding='utf-9' is unknown"), (b'x', 'base64', "encoding='base64' is unknown"),
    (b'\x81', 'gbk', 'is not gbk')])
def test_text_in_no_known_encoding(root, data, encoding, says):
    with pytest.raises(InputError, match=says): read_text(write(root, x=data)/'x', encoding)

# List files

def test_names_in_gbk(root):
    touch(root, '花/一.jpg')
    write(root, train__txt='花/一.jpg 1\n'.encode('gbk'), names__txt='0 草\n1 向日葵\n'.encode('gbk'))
    train, _ = find(root, train='train.txt', valid='train.txt', label_file='names.txt', encoding='gbk')
    assert labelled(train) == {'花/一.jpg': '向日葵'}

@pytest.mark.parametrize('delimiter, line', [('\\t', 'b c/x y.png\t1'), ('  ', 'b c/x y.png     1'), (';', 'b c/x y.png ; 1'),
                                             (' label=', 'b c/x y.png label=1')])
def test_delimiters(root, delimiter, line):
    write(touch(root, 'b c/x y.png'), l=line)
    assert labelled(read_list_file(root/'l', root, delimiter)) == {'b c/x y.png': '1'}

@pytest.mark.parametrize('delimiter', ['', '\n', '#', '1', ' 0'])
def test_delimiters_that_part_nothing(root, delimiter):
    with pytest.raises(InputError, match='cannot part a name from a label'):
        read_list_file(write(touch(root, 'x.png'), l='x.png 1')/'l', root, delimiter)

@pytest.mark.parametrize('text, says',
    [('x.png '+'9'*30, 'label 9{18}… of .* too large'), ('x.png 5000', '5000, which would make as many'),
    ('x.png ²', 'not a whole number'), ('x\0.png 1', 'no file'), ('x.png 1 2', "no file '.*x.png 1'")])
def test_bad_lines(root, text, says):
    with pytest.raises(InputError, match=says): read_list_file(write(touch(root, 'x.png'), l=text)/'l', root)

def test_gbk_that_is_utf_8_too(root):
    touch(root, *(f'图/{i}.png' for i in range(4)))
    lines = ''.join(f'图/{i}.png {i % 2}\n' for i in range(4))
    assert lines.encode('gbk').decode('utf-8') != lines, "both decode it"
    write(root, l__txt=lines.encode('gbk'), t__csv=b'path,label\n' + lines.replace(' ', ',').encode('gbk'), u__txt=lines)
    for read in (lambda: read_list_file(root/'l.txt', root), lambda: find(root, train='t.csv', valid=.5)[0]):
        with pytest.warns(UserWarning, match='names no file as UTF-8 and was read as GBK'): assert names(read())[0][0] == '图'
    assert names(read_list_file(root/'u.txt', root)) == [f'图/{i}.png' for i in range(4)]
    write(root, l__txt='ͼ/9.png 0\n')
    with pytest.raises(InputError, match="there is no file .*ͼ/9.png'\nNone of the files is there.*encoding='gbk'"):
        read_list_file(root/'l.txt', root)
    write(root, l__txt='图/1.png 0\nͼ/9.png 0\n')
    with pytest.raises(InputError) as e: read_list_file(root/'l.txt', root)
    assert 'encoding' not in str(e.value), "one of two is there"

@pytest.mark.parametrize('form', ['list', 'table'])
def test_one_picture_with_two_labels(root, form):
    touch(root, *(f'{i}.png' for i in range(4)))
    lines = ['0.png,0', '1.png,1', '0.png,0', './1.png,0', '2.png,1', '3.png,0']
    if form == 'list': write(root, x='\n'.join(lines).replace(',', ' '))
    else: write(root, x__csv='path,label\n' + '\n'.join(lines))
    plan = DataPlan(str(root), 'x' if form == 'list' else 'x.csv', valid=.5)
    where = 'line' if form == 'list' else 'row'
    with pytest.raises(InputError, match=f"1 bad {where},.*\n  {where} 4: '1.png' has the label 0 here, and 1 in {where} 2"):
        find_pictures(plan)
    both = read_sides(plan, found=(found := []))
    assert len(found) == 1 and sum(map(len, both)) == 5, "the rest can be looked at"

def test_bad_lines_may_be_gathered(root):
    touch(root, '0.png', '1.png', '2.png')
    write(root, l__txt='0.png 0\ngone.png 0\n1.png one\n2.png 1\n')
    pics = read_list_file(root/'l.txt', root, found=(found := []))
    assert names(pics) == ['0.png', '2.png'] and 'has 2 bad lines' in str(found[0])
    write(root, l__txt='gone.png 0\n')
    with pytest.raises(InputError, match='has 1 bad line'): read_list_file(root/'l.txt', root, found=[])

def test_two_classes_of_one_name(root):
    touch(root, *(f'{i}.png' for i in range(9)))
    write(root, l__txt=''.join(f'{i}.png {i % 3}\n' for i in range(9)), n__txt='0 crane\n1 dog\n2 crane\n')
    train, valid = find(root, train='l.txt', valid=1/3, label_file='n.txt')
    assert train.vocab == valid.vocab == class_names(DataPlan(str(root), label_file='n.txt')) == ('crane (0)', 'dog', 'crane (2)')
    assert train.counts() == {'crane (0)': 2, 'dog': 2, 'crane (2)': 2}
    assert train.replace(vocab=['a', 'a', 'b']).counts() == {'a (0)': 2, 'a (1)': 2, 'b': 2}

def test_a_name_that_looks_told_apart(): assert tell_apart(('a', 'a', 'a (0)')) == ('a (0) (0)', 'a (1)', 'a (0) (2)')

def test_a_list_in_a_new_folder(root):
    pics = read_class_folders(touch(root, 'a/1.png', 'b/1.png'))
    assert len(read_list_file(write_list_file(pics, root/'new/deep/l.txt'), root)) == 2

def test_a_list_that_cannot_be_written_leaves_no_draft(root):
    (root/'l.txt').mkdir()
    with pytest.raises(OSError): write_label_file(['a'], root/'l.txt')
    assert os.listdir(root) == ['l.txt']

def test_missing_files(root):
    paths = [str(root/o) for o in (*(f'many/{i}.png' for i in range(20)), 'few/x.png', 'few/y.png', 'none/z.png', 'many')]
    touch(root, *(f'many/{i}.png' for i in range(0, 20, 2)), 'few/x.png')
    os.symlink(root/'few/x.png', root/'many/1.png')
    os.symlink(root/'nowhere', root/'many/3.png')
    (root/'many/5.png').mkdir()
    assert missing_files(paths) == {*range(3, 20, 2), 21, 22, 23}

def test_folders_are_listed_once(root, monkeypatch):
    touch(root, *(f'{c}/{i}.png' for c in 'ab' for i in range(50)))
    asked, scandir = [], os.scandir
    with monkeypatch.context() as m:
        m.setattr(os, 'scandir', lambda o: asked.append(o) or scandir(o))
        m.setattr(os.path, 'isfile', lambda o: pytest.fail(f'{o} was asked for by itself'))
        missing = missing_files([str(root/f'{c}/{i}.png') for i in range(50) for c in 'ab'])
    assert not missing and len(asked) == 2

# Numbering anew

@pytest.fixture
def relabelled(root):
    touch(root, *(f'{i}.png' for i in range(6)))
    write(root, train__txt='0.png 40\n1.png 7\n2.png 100\n3.png 7\n', valid__txt='4.png 100\n5.png 40\n',
        names__txt='7 seven\n40 forty\n')
    return root

def test_labels_are_numbered_together(relabelled):
    train, valid = find(relabelled, train='train.txt', valid='valid.txt', relabel=True)
    assert train.vocab == valid.vocab == ('7', '40', '100')
    assert train.labels.tolist() == [1, 0, 2, 0] and valid.labels.tolist() == [2, 1]

def test_label_files_name_the_original_labels(relabelled):
    for num_classes in (None, 3):
        plan = dict(train='train.txt', valid='valid.txt', relabel=True, label_file='names.txt', num_classes=num_classes)
        train, valid = find(relabelled, **plan)
        assert train.vocab == valid.vocab == ('seven', 'forty', '100') and labelled(valid)['5.png'] == 'forty'

@pytest.mark.parametrize('texts, plan, says', [
    (dict(valid__txt='4.png 100\n5.png 8\n'), {},
    "valid.txt' has 1 bad line(.|\n)*line 2: label 8 of '5.png' is none of the training list's"),
    ({}, dict(num_classes=4), "train.txt' has 3 different labels .7, 40, 100., but num_classes is 4")])
def test_bad_relabelling(relabelled, texts, plan, says):
    with pytest.raises(InputError, match=says):
        find(write(relabelled, **texts), train='train.txt', valid='valid.txt', relabel=True, **plan)

def test_relabel_leaves_class_folders_alone(root):
    touch(root, *(f'train/{c}/{i}.png' for c in 'ab' for i in range(3)), 'x.png')
    write(root, valid__txt='x.png 1\n')
    assert labelled(find(root, valid='valid.txt', relabel=True)[1]) == {'x.png': 'b'}

@pytest.mark.parametrize('text, says', [('0 a\n0 b\n', 'the number 0 has a name already'), ('99999 a\n', 'and the id 99999'),
                                        ('9999999999 a\n', 'does not begin with a number')])
def test_bad_label_files(root, text, says):
    with pytest.raises(InputError, match=says): read_label_file(write(root, n=text)/'n')

def test_label_files_may_have_tabs(root): assert read_label_file(write(root, n='1\tb c\n0   a\n')/'n') == ('a', 'b c')

# Writing

ODD_NAMES = 'a/#1.png', 'b/ x.png', 'a/x  y.png', 'b/ü 花.png', 'a/x\ty.png', 'b/x\u2028y.png', 'a/x 1.png', 'b/..x.png'

def test_round_trip(root):
    pics = read_class_folders(touch(root, *ODD_NAMES, '#c/1.png', ' d/1.png'))
    pics = pics.replace(vocab=['a', 'b b', '#c', 'ü'])
    train, valid = pics.take(range(0, len(pics), 2)), pics.take(range(1, len(pics), 2))
    written = write_split(root/'lists', train, valid)
    found = sides(written.pop('path'), **written)
    for old, new in zip((train, valid), found):
        assert (names(new), new.list_hash(), new.vocab) == (names(old), old.list_hash(), old.vocab)
    assert (root/'lists/train_list.txt').read_bytes().count(b'\n') == len(train) and len(list((root/'lists').iterdir())) == 3

def test_round_trip_of_two_folders(root):
    touch(root, *(f'{part}/{c}/{part}.png' for part in ('train', 'val') for c in 'ab'))
    written = write_split(root, *find(root))
    assert written['path'] == str(root)
    assert [names(o) for o in find(**{'root': written['path']}, **{k: v for k, v in written.items() if k != 'path'})] == [
        ['train/a/train.png', 'train/b/train.png'], ['val/a/val.png', 'val/b/val.png']]

def test_lists_beside_the_pictures_are_found(root):
    touch(root, 'jpg/1.jpg', 'jpg/2.jpg')
    write(root, train_list__txt='jpg/1.jpg 0\njpg/2.jpg 1\n', val_list__txt='jpg/2.jpg 1\n', label_list__txt='0 rose\n1 lily\n')
    assert [labelled(o) for o in find(root)] == [{'jpg/1.jpg': 'rose', 'jpg/2.jpg': 'lily'}, {'jpg/2.jpg': 'lily'}]
    write(touch(root, '3.jpg', '4.jpg'), train_list__txt='jpg/1.jpg 0\njpg/2.jpg 1\n3.jpg 0\n4.jpg 1\n')
    assert [len(o) for o in find(root, fold=[0, 2])] == [2, 2] # the published list stays unseen

def test_a_list_for_validation_below_a_root_of_its_own(root):
    write(touch(root, 'a/1.png', 'a/2.png', 'b/1.png', 'b/2.png'), t='1.png 0\n2.png 1\n', v='1.png 1\n2.png 0\n')
    train, valid = find_pictures(DataPlan(str(root/'a'), str(root/'t'), str(root/'v'), valid_path=str(root/'b')))
    assert [o.source(0) for o in (train, valid)] == [str(root/'a/1.png'), str(root/'b/1.png')]
    assert (labelled(train), labelled(valid)) == ({'1.png': '0', '2.png': '1'}, {'1.png': '1', '2.png': '0'})
    write(root, x__csv='image,label\na/1.png,0\nb/1.png,1\n')
    with pytest.raises(InputError, match='valid_path=.* goes with list files.*table'): find(root, train='x.csv', valid_path='b')

def test_absolute_names_and_another_root(root):
    pics = read_class_folders(touch(root, 'in/a/1.png', 'in/b/2.png')/'in')
    assert write_list_file(pics, root/'l', root, '\t').read_text() == 'in/a/1.png\t0\nin/b/2.png\t1\n'
    assert names(read_list_file(root/'l', root, '\t')) == ['in/a/1.png', 'in/b/2.png']
    write_list_file(pics, root/'l', root/'elsewhere')
    assert [o.source(0) for o in (read_list_file(root/'l', '/nowhere'), pics)] == [str(root/'in/a/1.png')]*2

@pytest.mark.parametrize('name, says',
    [('a/x\ny.png', 'line break'), ('a/x\ry.png', 'line break'), ('a/x.png ', 'space at its end'),
                                        (os.fsdecode(b'a/\xff.png'), 'which is no text')])
def test_names_that_cannot_be_written(root, name, says):
    pics = PictureList(root, [str(root/'a/fine.png'), str(root/name)], [0, 1], ('a', 'b'))
    for o in (lambda: write_list_file(pics, root/'l'), lambda: write_split(root/'s', pics, pics)):
        with pytest.raises(InputError, match=says): o()
    assert not list(root.iterdir())

@pytest.mark.parametrize('sources, labels, vocab, says', [
    (Arrays(np.zeros((2, 4, 4), np.uint8)), [0, 1], 'ab', 'are no files of their own'),
    (['1.png', '2.png'], [0, -1], 'ab', 'not all have labels'),
    (['1.png', '2.png'], [0, 1], ('a', ''), "class name '' is empty"),
    (['1.png', '2.png'], [0, 1], ('a', 'b '), "class name 'b ' is"),
    (['1.png', '2.png'], [0, 1], ('a', 'b\nc'), 'line break')])
def test_splits_that_cannot_be_written(root, sources, labels, vocab, says):
    pics = PictureList(root, sources, labels, vocab)
    with pytest.raises(InputError, match=says): write_split(root/'s', pics, pics)
    with pytest.raises(InputError, match='different classes'): write_split(root/'s', pics, pics.replace(vocab='xy'))
    assert not list(root.iterdir())

# Names

@pytest.fixture
def spelled(root, monkeypatch):
    "A folder `s` with a linked class, a link to it, and the working directory beside them"
    touch(root, 's/circle/0.png', 's/.hidden/1.png', 's/2.png', 'elsewhere/disc/3.png', 'far/4.png')
    (root/'s/disc').symlink_to(root/'elsewhere/disc')
    (root/'link').symlink_to('s')
    monkeypatch.chdir(root)
    return root

@pytest.mark.parametrize('top', ['s', './s', '{0}/s', 'link', '{0}/link', '{0}/link/', 's/../s', '{0}/far/../s', '.'])
@pytest.mark.parametrize('path, name', [
    ('circle/0.png', 'circle/0.png'), ('./circle/0.png', 'circle/0.png'), ('circle//0.png', 'circle/0.png'),
    ('circle/../circle/0.png', 'circle/0.png'), ('.hidden/1.png', '.hidden/1.png'), ('2.png', '2.png'), ('./2.png', '2.png'),
    ('disc/3.png', 'disc/3.png'), ('../far/4.png', None), ('disc/../disc/3.png', None)], ids=str)
def test_a_name_does_not_depend_on_the_way_to_the_folder(spelled, monkeypatch, top, path, name):
    if top == '.': monkeypatch.chdir(spelled/'s')
    top, here = top.format(spelled), spelled/'s'
    for o in (os.path.join(top, path), path, here/path, f'{spelled}/link/{path}', f'{here}/{path}'):
        found = Files(top, [o])
        assert os.path.samefile(found.source(0), here/path)
        if name: assert found.name(0) == name, o

def test_names_of_files_elsewhere(spelled):
    far, tops = str(spelled/'far/4.png'), ('s', str(spelled/'s'), 'link')
    for top in tops: assert names_below(top, [far, '../far/4.png', f'{spelled}/s/../far/4.png']) == [far]*3
    assert {tuple(names_below(o, [f'{spelled}/elsewhere/disc/3.png'])) for o in tops} == {(f'{spelled}/elsewhere/disc/3.png',)}

def test_names_where_up_from_a_link_is_elsewhere(spelled):
    touch(spelled, 'elsewhere/5.png')
    assert names_below('s', ['disc/../5.png']) == [str(spelled/'elsewhere/5.png')] # and not s/5.png

def test_the_disk_is_asked_once_for_a_folder(spelled, monkeypatch):
    asked, samefile = [], os.path.samefile
    monkeypatch.setattr(os.path, 'samefile', lambda *o: asked.append(o) or samefile(*o))
    names_below('s', [f's/circle/{i}.png' for i in range(1000)])
    assert not asked
    names_below('link', [f'{spelled}/s/circle/{i}.png' for i in range(1000)])
    assert len(asked) < 10

def test_lists_with_absolute_paths_and_every_root(spelled):
    write(spelled/'s', l__txt=f'{spelled}/s/circle/0.png 0\n./2.png 1\n')
    write(spelled/'s', t__csv=f'path,label\n{spelled}/s/circle/0.png,a\n2.png,b\n')
    for top in ('s', spelled/'s', 'link', spelled/'link'):
        pics = read_list_file(spelled/'s/l.txt', top)
        assert names(pics) == ['circle/0.png', '2.png'] and pics.list_hash() == read_list_file('s/l.txt', 's').list_hash()
        rows = read_rows(spelled/'s/t.csv', top)
        assert names(rows.pictures([0, 1], ('a', 'b'), dict(a=0, b=1))) == ['circle/0.png', '2.png']

def test_shards_have_one_name_too(spelled):
    tar(spelled/'s/train/0.tar', samples(range(2)))
    for top in ('s', spelled/'s', 'link', spelled/'link'):
        for file in ('train/0.tar', f'{spelled}/s/train/0.tar', f'{spelled}/link/train/0.tar'):
            assert names(read_shards(top, file)[0]) == ['train/0.tar:0000.png', 'train/0.tar:0001.png']

# Bytes of names

ODD = ['ü.png', '花', 'x', '', os.fsdecode(b'\xff.png'), '\ud800', 'a\0b']

@pytest.mark.parametrize('name', ['ü.png', '花/b.png', 'plain.png'])
def test_names_have_the_bytes_of_the_disk(name):
    ascii_ = name.encode().decode('ascii', 'surrogateescape') # what os.listdir gives in an ASCII locale
    assert name_bytes(name) == name_bytes(ascii_) == name.encode() and mix_seed(1, name) == mix_seed(1, ascii_)
    assert name_bytes(os.fsdecode(b'\xff')) == b'\xff'

def test_seeds_of_parts():
    parts = [*ODD, 1, 0, -1, 2**70, '1', '0', ('ab', 'c'), ('a', 'bc'), ('a', 1), ('a1',), ('i1',), (1, 1), (11,), ('s', 's'),
             ('ss',)]
    seeds = [mix_seed(*(o if isinstance(o, tuple) else (o,))) for o in parts]
    assert len(set(seeds)) == len(parts) and all(0 <= o < 2**63 for o in seeds)
    assert mix_seed(np.int64(7), True) == mix_seed(7, 1)
    with pytest.raises(TypeError): mix_seed(.5) # would be taken for 0

def test_a_seed_is_the_same_for_ever(): assert mix_seed(42, 0, 'cat.jpg') == 3398723240032350447

LOCALE = """
import os, sys
from imgcls_nb.pictures import PictureList
from imgcls_nb.seeds import mix_seed
folder = sys.argv[1]
pics = PictureList(folder, [*sorted(os.path.join(folder, o) for o in os.listdir(folder)), 'gr' + chr(252) + 'n.png'], [0]*3, 'a')
seeds = [mix_seed(pics.name(i)) for i in range(3)]
print(sys.getfilesystemencoding(), pics.list_hash(), *seeds, all(map(os.path.exists, pics.items)))
"""

@pytest.mark.skipif(sys.platform != 'linux', reason='names are bytes there')
def test_names_in_an_ascii_locale(root):
    touch(root, 'grün.png', os.fsdecode(b'\xff.png'))
    run = [sys.executable, '-c', LOCALE, root]
    locales = (dict(PYTHONUTF8='1'), dict(PYTHONUTF8='0', LC_ALL='C', PYTHONCOERCECLOCALE='0'))
    said = [subprocess.run(run, capture_output=True, text=True, check=True, env=os.environ | o).stdout for o in locales]
    (one, *a), (two, *b) = (o.split() for o in said)
    assert (one, two, a[-1]) == ('utf-8', 'ascii', 'True') and a == b

def test_texts_say_where_each_stands_first():
    texts = [*ODD, *ODD[::-1], 'xx', 'x', 'ü.pn', 'g']
    assert Texts(texts).firsts().tolist() == [texts.index(o) for o in texts] and Texts([]).firsts().tolist() == []

def test_texts_from_the_end():
    texts = Texts(['a', 'bc', ''])
    assert [texts[-1], texts[-2], texts[np.int64(-3)]] == ['', 'bc', 'a'] and [*texts] == ['a', 'bc', '']
    for i in (3, -4):
        with pytest.raises(IndexError): texts[i]

@pytest.mark.parametrize('mapped', [False, True])
def test_a_file_of_columns_that_is_empty(tmp_path, mapped):
    (tmp_path/'x').touch()
    with pytest.raises(InputError, match="x' is damaged"): read_columns(tmp_path/'x', mapped)

# Classes

@pytest.mark.parametrize('labels, kwargs, vocab, placed', [
    (['b', 'a', 'b'], {}, ('a', 'b'), [1, 0, 1]), (['10', '9'], {}, ('9', '10'), [1, 0]),
    (['1.5', '-1', '1e1'], {}, ('-1', '1.5', '1e1'), [1, 0, 2]),
    (['10', 'x', '9'], {}, ('10', '9', 'x'), [0, 2, 1]), (['2', '0'], dict(num_classes=4), ('0', '1', '2', '3'), [2, 0]),
    (['1', '0'], dict(names=('cat', 'dog')), ('cat', 'dog'), [1, 0]), (['dog'], dict(names=('cat', 'dog')), ('cat', 'dog'), [1]),
    (['7', '8'], dict(names=('8', '7')), ('8', '7'), [1, 0]), (['nan', 'inf', '1'], {}, ('1', 'inf', 'nan'), [2, 1, 0])])
def test_classes_of_labels(labels, kwargs, vocab, placed):
    found, places = name_vocab(labels, 'x', **kwargs)
    assert found == vocab and [places[o] for o in labels] == placed

@pytest.mark.parametrize('labels, kwargs, says', [
    (['cat', 'dogs'], dict(names=('cat', 'dog')), "labels dogs are no classes. .*Did you mean 'dog'"),
    (['2'], dict(names=('a', 'b')), 'labels 2 are'),
    (['4'], dict(num_classes=4), 'labels 4 are no classes'),
    (['a', 'b'], dict(num_classes=3), 'there are 2 classes .a, b., but num_classes is 3')])
def test_labels_that_are_no_classes(labels, kwargs, says):
    with pytest.raises(InputError, match=says): name_vocab(labels, 'x', **kwargs)

def test_absurd_numbers():
    assert number_vocab([999], 'x')[-1] == '999'
    with pytest.raises(InputError, match='1000, which would make as many classes, of 1 pictures'): number_vocab([1000], 'x')

# Tables

@pytest.fixture
def pictured(root): return touch(root, *(f'{i}.png' for i in range(10)), 'a b/ü.png')

def table(n=4, **columns):
    return '\n'.join([','.join(columns), *(','.join(o[i] for o in columns.values()) for i in range(n))]) + '\n'

ROWS = dict(path=[f'{i}.png' for i in range(4)], label=['dog', 'cat', 'dog', 'cat'])

@pytest.mark.parametrize('header', ['path,label', 'Filename,Class', ' image , target ', 'filepath,category', 'file,LABEL'])
def test_usual_column_names(pictured, header):
    write(pictured, t__csv=table(**ROWS).replace('path,label', header))
    train, valid = find(pictured, valid=.5)
    assert train.vocab == ('cat', 'dog') and sorted(names(train) + names(valid)) == ROWS['path'] and len(valid) == 2

@pytest.mark.parametrize('column, words',
    [('valid', 'train valid'), ('split', 'train val'), ('split', 'Train Validation'), ('is_valid', 'False True'),
    ('is_valid', '0 1'), ('valid', 'no yes'), ('split', 'training VALID')])
def test_what_to_validate_on(pictured, column, words):
    a, b = words.split()
    write(pictured, t__csv=table(**ROWS, **{column: [a, a, b, b]}))
    assert [names(o) for o in find(pictured)] == [['0.png', '1.png'], ['2.png', '3.png']]
    held = sides(pictured, valid=.5, split='random')
    assert sorted(names(held[0]) + names(held[1])) == ['0.png', '1.png'] # held out from train

def test_test_rows_are_left_alone(pictured):
    write(pictured, t__csv=table(path=['0.png', '1.png', '2.png', '99.png'], label=['a', 'b', 'a', ''],
        split=['train', 'train', 'val', 'test']))
    assert [names(o) for o in find(pictured)] == [['0.png', '1.png'], ['2.png']]

def test_a_second_table(pictured):
    write(pictured, train__csv=table(**ROWS), valid__csv='image,class\n5.png,cat\n', other__csv='x\n')
    train, valid = find(pictured, train='train.csv', valid='valid.csv')
    assert train.vocab == valid.vocab and labelled(valid) == {'5.png': 'cat'} and len(train) == 4
    write(pictured, valid__csv='image,class\n5.png,cats\n')
    with pytest.raises(InputError,
        match=r"classes \['cats'\] are not in the training set, which has cat, dog.*Did you mean 'cat'"):
        find(pictured, train='train.csv', valid='valid.csv')

def test_a_number_in_validation_is_no_place(pictured): # 0 and 1 would be places of 3 and 7
    write(pictured, train__csv=table(path=ROWS['path'], label=['3', '7', '3', '7']), valid__csv='path,label\n5.png,0\n')
    with pytest.raises(InputError, match=r"classes \['0'\] are not in the training set"):
        find(pictured, train='train.csv', valid='valid.csv')

def test_the_table_itself_as_path(pictured):
    write(pictured, t__tsv=table(**ROWS).replace(',', '\t'), more__csv='x\n')
    train, valid = find(pictured/'t.tsv', valid=.5)
    assert train.root == pictured and len(train) == 2

def test_text_is_not_interpreted(pictured):
    write(pictured, t__csv=table(path=ROWS['path'], label=['NA', '007', 'None', '1e5']))
    assert sides(pictured, valid=.5, split='random')[0].vocab == ('007', '1e5', 'NA', 'None')

def test_quotes_encodings_and_other_delimiters(pictured):
    write(pictured, t__csv='path;label\n"a b/ü.png";"a;b"\n0.png;c\n'.encode('utf-8-sig'))
    rows = read_rows(pictured/'t.csv', pictured, delimiter=';')
    assert rows.labels == ['a;b', 'c'] and not rows.has_parts

def test_names_and_numbers_of_classes(pictured):
    write(pictured, t__csv=table(path=ROWS['path'], label=['2', '0', '2', '0']), n__txt='0 a\n1 b\n2 c\n')
    assert find(pictured, valid=.5)[0].vocab == ('0', '2') and find(pictured, valid=.5, num_classes=3)[0].vocab == ('0', '1', '2')
    assert find(pictured, valid=.5, label_file='n.txt')[0].counts() == dict(a=1, b=0, c=1)

def test_groups_of_a_table(pictured):
    write(pictured, t__csv=table(8, path=[f'{i}.png' for i in range(8)], label=list('abababab'), group=list('wwxxyyzz')))
    train, valid = find(pictured, split='grouped', valid=.25)
    assert len(valid) == 2 and not set(train.groups) & set(valid.groups)
    assert len({int(o[0])//2 for o in names(valid)}) == 1

def test_data_frames(pictured):
    df = pd.DataFrame(dict(path=[f'{i}.png' for i in range(4)], label=[10, 9, 10, None], valid=[False, False, True, False]),
        index=[5, 5, 7, 9])
    train, valid = find_pictures(DataPlan(str(pictured)), df[:3])
    assert train.vocab == ('9', '10') and (labelled(train), labelled(valid)) == ({'0.png': '10', '1.png': '9'}, {'2.png': '10'})
    with pytest.raises(InputError, match='the table.* has 1 bad row(.|\n)*row 4: no label'):
        find_pictures(DataPlan(str(pictured)), df)
    df = pd.DataFrame(dict(file=pd.Series(['0.png', '1.png'], dtype='string'), target=pd.Categorical(['b', 'a'])))
    assert labelled(read_sides(DataPlan(str(pictured), valid=.5, split='random'), df)[0]).items() <= {'0.png': 'b',
        '1.png': 'a'}.items()

@pytest.mark.parametrize('how', [dict(valid=.25), dict(fold=(1, 4)), dict(valid=.25, split='random')], ids=str)
def test_groups_stay_whole_whatever_the_split(pictured, how):
    touch(pictured, *(names := [f'{i}.png' for i in range(28)]))
    groups = np.repeat(np.arange(7.), 4)
    df = pd.DataFrame(dict(file=names, target=['a', 'b']*14, group=groups))
    train, valid = find_pictures(DataPlan(str(pictured), **how), df)
    assert len(train) and len(valid) and not set(train.groups) & set(valid.groups)

# Pictures that a list names several times

def repeated(root, form, n=12, times=3):
    touch(root, *(f'{i}.png' for i in range(n)))
    lines = [(f'{"./"*(k == 1)}{i}.png', i % 2, i//2) for k in range(times) for i in range(n)]
    if form == 'list': write(root, l__txt=''.join(f'{o} {c}\n' for o, c, _ in lines))
    else: write(root, l__csv='path,label,group\n' + ''.join(f'{o},{c},{g}\n' for o, c, g in lines))
    return dict(train='l.txt') if form == 'list' else dict(train='l.csv')

@pytest.mark.parametrize('how', [dict(valid=.25), dict(valid=.25, split='random'), dict(fold=(1, 4)),
                                 dict(fold=(0, 3), split='random'), dict(valid=.3, split='grouped', group=r'(\d)\.png')], ids=str)
@pytest.mark.parametrize('form', ['list', 'table'])
def test_all_lines_of_a_picture_are_on_one_side(root, form, how):
    if form == 'table': how = {k: v for k, v in how.items() if k != 'group'} # it has a column of groups
    train, valid = find(root, **repeated(root, form), **how)
    assert len(train) and len(valid) and len(train) + len(valid) == 36
    assert not {*names(train)} & {*names(valid)} and all(names(o).count(n) == 3 for o in (train, valid) for n in names(o))

def test_a_share_is_one_of_the_pictures(root):
    assert len({*names(find(root, **repeated(root, 'list', 20), valid=.1, split='random')[1])}) == 2

def test_lines_of_one_picture_in_several_groups(root):
    touch(root, *(f'{i}.png' for i in range(6)))
    rows = [('0.png', 'x'), ('1.png', 'x'), ('1.png', 'y'), ('2.png', 'y'), ('3.png', 'z'), ('4.png', 'z'), ('5.png', 'z')]
    write(root, t__csv='path,label,group\n' + ''.join(f'{o},{"ab"[int(o[0]) % 2]},{g}\n' for o, g in rows))
    held = [{*names(o)} for o in find(root, split='grouped', valid=.5)]
    assert sorted(map(sorted, held)) == [['0.png', '1.png', '2.png'], ['3.png', '4.png', '5.png']]
    write(root, t__csv='path,label,group\n0.png,a,x\n0.png,a,y\n1.png,b,y\n')
    with pytest.raises(InputError, match='in different groups, make all groups one'): find(root, split='grouped')

def test_lines_that_name_one_picture(root):
    pics = PictureList(root, ['a.png', f'{root}/b.png', './a.png', 'c.png', f'{root}/a.png'], [0]*5, 'x')
    assert pics.same.tolist() == [0, 1, 0, 3, 0] and pics.take([1, 3, 4]).same is None
    assert pics.take([2, 3, 4]).same.tolist() == [0, 3, 0]
    rows = PictureList(root, Arrays(np.zeros((3, 4, 4), np.uint8)), [0]*3, 'x')
    assert rows.same is None and rows.take([2, 0, 2]).same.tolist() == [2, 0, 2] and PictureList(root, [], [], ()).same is None

def test_all_bad_rows_in_one_report(pictured):
    write(pictured, t__csv=table(7, path=['0.png', '77.png', '', '3.png', '4.png', '98.png', '5.png'],
        label=['a', 'b', 'c', '', 'd', 'e', 'f'],
                                 split=['train', 'train', 'train', 'train', 'maybe', 'test', '']))
    with pytest.raises(InputError) as e: find(pictured)
    first, *report = str(e.value).splitlines()
    assert "t.csv' has 5 bad rows, each should be a picture and its label:" in first
    says = {2: "there is no file '.*77.png'", 3: 'no image', 4: 'no label', 5: "'maybe' is none of train", 7: "'' is none of"}
    for o, (n, part) in zip(report, says.items(), strict=True): assert re.search(f'row {n}: {part}', o), o

@pytest.mark.parametrize('text, plan, says', [
    ('', {}, 'cannot be read as a table'), ('path,label\n', {}, 'has a header, but no rows'),
    ('path,label\n0.png,a,b\n', {}, 'more columns than names'),
    ('path,label\n0.png,a\n1.png,b,c\n', {}, 'cannot be read as a table'),
    ('0.png,a\n1.png,b\n', {}, "no column for the (image|label). It has 0.png, a"),
    ('path;label\n0.png;a\n', {}, 'no column for the (image|label). It has path;label. Say which.*the right delimiter'),
    ('path,image,label\n', {}, "any of path, image could be the image. Say which: columns={'image': 'path'}, or rename"),
    ('path,class,label\n', {}, 'any of class, label could be the label'),
    ('path,label,valid,split\n', {}, 'any of valid, split could be the valid'),
    ('path,label\n', dict(columns=dict(image='pth')), "no column 'pth'. It has path, label. Did you mean 'path'"),
    ('path,label\n', dict(columns=dict(imge='path')), "columns has no 'imge'. Known: image, .*Did you mean 'image'"),
    ('path,label\n0.png,a\n', dict(delimiter='||'), 'cannot part the columns'),
    ('path,label,split\n0.png,a,val\n', {}, 'has no rows to train on, 1 to validate on')])
def test_bad_tables(pictured, text, plan, says):
    with pytest.raises(InputError, match=says): find(write(pictured, t__csv=text), **dict(train='t.csv') | plan)

@pytest.mark.parametrize('table', [[['0.png', 'a']], np.zeros((2, 2)), 3], ids=str)
def test_no_tables(pictured, table):
    with pytest.raises(InputError, match=f'table of type {type(table).__name__} is none. Give a CSV'):
        find_pictures(DataPlan(str(pictured)), table)

def test_several_tables(pictured):
    write(pictured, my_train__csv='x\n', a__csv='x\n')
    with pytest.raises(InputError, match="has the tables a.csv, my_train.csv. Say which one: train='my_train.csv'"):
        find(pictured)
    with pytest.raises(InputError, match='has no table'): find(touch(pictured/'empty', 'x.png'), source='table')

def test_columns_settle_what_a_table_is_for():
    assert find_columns(['path', 'image', 'label'], dict(image='image')) == dict(image='image', label='label')
    assert find_columns(['image', 'label', 'valid', 'split'], dict(valid='split', group='valid'))['group'] == 'valid'
    assert list(find_columns(['group', 'split', 'label', 'path'], {})) == ['image', 'label', 'valid', 'group'] # in every process

# IDX

PIXELS, LABELS = np.random.default_rng(0).integers(0, 256, (9, 5, 4), np.uint8), np.arange(9, dtype=np.uint8)%3

def idx(a, magic=None): return struct.pack(f'>I{a.ndim}I', magic or 0x800 + a.ndim, *a.shape) + a.tobytes()

def write_idx(root, part='train', pixels=PIXELS, labels=LABELS, dot='-', packed=False):
    for kind, a in (('images', pixels), ('labels', labels)):
        data = idx(a)
        (root/f"{part}-{kind}{dot}idx{a.ndim}-ubyte{'.gz'*packed}").write_bytes(gzip.compress(data) if packed else data)
    return root

@pytest.mark.parametrize('dot', '-.')
@pytest.mark.parametrize('packed', [False, True])
def test_idx(root, dot, packed):
    write_idx(write_idx(root, dot=dot, packed=packed), 't10k', PIXELS[:3], LABELS[:3], dot, packed)
    train, valid = find(root)
    assert train.vocab == valid.vocab == ('0', '1', '2') and (len(train), len(valid), valid.name(2)) == (9, 3, 't10k#2')
    assert (train.source(7) == PIXELS[7]).all() and train.labels.tolist() == LABELS.tolist()
    assert isinstance(train.place.pixels, np.memmap) != packed
    held = find(root, valid=1/3)
    assert [len(o) for o in held] == [6, 3] and {o.split('#')[0] for part in held for o in names(part)} == {'train'}
    assert find(root, label_file=write(root, n='0 a\n1 b\n2 c\n') and 'n')[0].vocab == ('a', 'b', 'c')

def test_idx_without_a_test_set_and_as_a_file(root):
    assert [len(o) for o in find(write_idx(root), fold=[0, 3])] == [6, 3]
    assert [len(o) for o in find(root/'train-images-idx3-ubyte', valid=1/3)] == [6, 3]

def test_plain_files_go_before_compressed_ones(root):
    write_idx(write_idx(root), packed=True, pixels=PIXELS*0)
    assert (find(root)[0].place.pixels == PIXELS).all()

def test_clothes_by_their_folder(tmp_path):
    for name, vocab in (('plain', ('0', '1', '2')), ('Fashion_MNIST', FASHION), ('fashion-mnist/raw', FASHION)):
        (tmp_path/name).mkdir(parents=True)
        assert find(write_idx(tmp_path/name))[0].vocab == vocab
    assert len(read_idx_folder(write_idx(tmp_path/'Fashion_MNIST', labels=LABELS + 8))[0].vocab) == 11 # not those clothes

def test_fashion_by_its_labels(root, monkeypatch):
    monkeypatch.setattr('imgcls_nb.packed.FASHION_CRC', zlib.crc32(LABELS.tobytes()))
    assert find(write_idx(root))[0].vocab == FASHION
    system = '/usr/share/datasets/fashion-mnist'
    if not os.path.isdir(system): return
    assert zlib.crc32(read_idx(f'{system}/train-labels-idx1-ubyte.gz', 1).tobytes()) == FASHION_CRC

GOOD = idx(PIXELS)

@pytest.mark.parametrize('data, says', [
    (b'', 'begins with nothing, not 00 00 08 03'), (b'\x89PNG', 'begins with 89 50 4e 47'),
    (idx(LABELS), 'is no IDX file of bytes in 3 dimensions'),
    (idx(PIXELS, 0xd03), 'begins with 00 00 0d 03'), (GOOD[:9], 'is no IDX file'), (GOOD[:-1], 'holds 179 of the 180 bytes'),
    (GOOD + b'x', 'holds more than the 180 bytes'), (idx(PIXELS[:0]), 'is an empty IDX file, 0x5x4'),
    (struct.pack('>4I', 0x803, 2**31, 2**31, 2**31), '(holds 0 of the|would unpack to)')])
@pytest.mark.parametrize('packed', [False, True])
def test_bad_idx(root, data, says, packed):
    file = root/('x.gz' if packed else 'x')
    file.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(InputError, match=says): read_idx(file, 3)

def test_bad_compressed_idx(root, monkeypatch):
    for o in (GOOD, gzip.compress(GOOD)[:-20], gzip.compress(GOOD)[:-30] + b'x'*30):
        with pytest.raises(InputError, match='x.gz. cannot be read'): read_idx(write(root, x__gz=o)/'x.gz', 3)
    monkeypatch.setattr(archives, 'UNPACK_LIMIT', 100)
    with pytest.raises(InputError, match='would unpack to 180 bytes'): read_idx(write(root, x__gz=gzip.compress(GOOD))/'x.gz', 3)

@pytest.mark.parametrize('files, plan, says', [
    (['t10k'], dict(source='idx'), "has no file 'train-images-idx3-ubyte'"),
    ([], dict(source='idx'), "has no file 'train-images-idx3-ubyte'"),
    (['train'], dict(num_classes=4), 'has 3 classes .0, 1, 2., but num_classes is 4'),
    (['train'], dict(label_file='n'), 'has labels up to 2, for which 2 classes are too few: a, b')])
def test_bad_idx_folders(root, files, plan, says):
    for o in files: write_idx(root, o)
    with pytest.raises(InputError, match=says): find(write(root, n='0 a\n1 b\n'), **plan)

def test_idx_that_do_not_belong_together(root):
    with pytest.raises(InputError, match="has 9 pictures, but 'train-labels-idx1-ubyte' 8 labels"):
        find(write_idx(root, labels=LABELS[:8]))
    (root/'train-labels-idx1-ubyte').unlink()
    with pytest.raises(InputError, match="has no file 'train-labels-idx1-ubyte'"): find(root)

# CIFAR

TINY = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), np.uint8)
PLANES = TINY.transpose(0, 3, 1, 2).reshape(12, -1)
FINE, COARSE = np.arange(12, dtype=np.uint8)%4, np.arange(12, dtype=np.uint8)%2

def pickled(o): return pickle.dumps({k.encode(): v for k, v in o.items()}, protocol=2)

def cifar(root, which, form):
    parts = {'data_batch_1': slice(5), 'data_batch_2': slice(5, 9), 'test_batch': slice(9, 12)} if which == 10 else {
        'train': slice(9), 'test': slice(9, 12)}
    for name, o in parts.items():
        labels = [FINE[o]] if which == 10 else [COARSE[o], FINE[o]]
        if form == 'bin':
            (root/f'{name}.bin').write_bytes(np.concatenate([*(a[:, None] for a in labels), PLANES[o]], 1).tobytes())
        else:
            d = dict(labels=FINE[o].tolist()) if which == 10 else dict(fine_labels=FINE[o].tolist(),
                coarse_labels=COARSE[o].tolist())
            (root/name).write_bytes(pickled(dict(data=PLANES[o], filenames=[b'x.png']*3, batch_label=b'one', **d)))
    if form == 'bin' and which == 10: write(root, batches__meta__txt='airplane\nbird\ncat\ndeer\n\n')
    if form == 'bin' and which == 100: write(root, fine_label_names__txt='a\nb\nc\nd\n', coarse_label_names__txt='x\ny\n')
    names = dict(label_names=[b'airplane', b'bird', b'cat', b'deer']) if which == 10 else dict(
        fine_label_names=list('abcd'), coarse_label_names=list('xy'))
    if form == 'py': (root/('batches.meta' if which == 10 else 'meta')).write_bytes(pickled(names))
    return root

@pytest.mark.parametrize('form', ['bin', 'py'])
@pytest.mark.parametrize('which, plan, vocab, labels', [
    (10, {}, ('airplane', 'bird', 'cat', 'deer'), FINE), (100, {}, tuple('abcd'), FINE),
    (100, dict(columns=dict(label='coarse')), tuple('xy'), COARSE)])
def test_cifar(root, form, which, plan, vocab, labels):
    train, valid = find(cifar(root, which, form), **plan)
    assert train.vocab == valid.vocab == vocab and (len(train), len(valid), valid.name(1)) == (9, 3, 'test#1')
    assert (np.stack([*train.items, *valid.items]) == TINY).all() and [*train.labels, *valid.labels] == labels.tolist()
    assert sum(map(len, find(root, valid=.5, **plan))) == 9

def test_cifar_without_names_or_test(root):
    cifar(root, 10, 'bin')
    for o in ('test_batch.bin', 'batches.meta.txt'): (root/o).unlink()
    train, valid = find(root, valid=1/3)
    assert train.vocab == ('0', '1', '2', '3') and len(train) + len(valid) == 9

def test_binary_goes_before_pickled(root):
    cifar(cifar(root, 10, 'bin'), 10, 'py')
    for o in ('data_batch_1', 'batches.meta'): (root/o).write_bytes(b'not looked at')
    assert len(find(root)[0]) == 9

@pytest.mark.parametrize('damage, says', [
    (lambda o: (o/'data_batch_2.bin').rename(o/'data_batch_3.bin'),
    'has data_batch_1.bin, data_batch_3.bin, but not those between'),
    (lambda o: write(o, data_batch_1__bin=b'x'*3072), '3,072 bytes, which is no multiple of 3073'),
    (lambda o: write(o, data_batch_1__bin=b''), 'has 0 bytes'),
    (lambda o: [f.unlink() for f in o.iterdir()], 'holds no CIFAR batches')])
def test_bad_cifar(root, damage, says):
    damage(cifar(root, 10, 'bin'))
    with pytest.raises(InputError, match=says): find(root, source='cifar')

def test_no_such_labels_of_cifar(root):
    with pytest.raises(InputError, match="no labels 'middle'. Use 'fine' or 'coarse'"):
        read_cifar_folder(cifar(root, 100, 'bin'), labels='middle')

# Pickles

def test_a_pickle_as_python_2_wrote_it(root):
    raw = PLANES[:2].tobytes()
    data = (b'\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R'
            b'q\x05(K\x01K\x02M\x00\x0c\x86'
            b'cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T'
            + struct.pack('<I', len(raw)) + raw + b'tbU\x06labels]q\x08(K\x03K\x01eu.')
    found = read_pickled_batch(write(root, x=data)/'x')
    assert (found['data'] == PLANES[:2]).all() and found['labels'] == [3, 1]

def test_columns_first(root):
    a = np.asfortranarray(PLANES[:3])
    assert (read_pickled_batch(write(root, x=pickled(dict(data=a)))/'x')['data'] == a).all()

class Runs:
    def __init__(self, f, *args): self.call = f, args
    def __reduce__(self): return self.call

@pytest.mark.parametrize('f, name',
    [(os.system, f'{os.system.__module__}.system'), (eval, '(__builtin__|builtins).eval'), (os.getenv, 'os.getenv'),
    (np.load, 'numpy.load'), (pickle.loads, '_?c?[pP]ickle.loads')], ids=lambda o: getattr(o, '__name__', ''))
@pytest.mark.parametrize('protocol', range(5))
def test_pickles_that_run_something(root, f, name, protocol):
    os.environ.pop('IMGCLS_EVIL', None)
    file = write(root, x=pickle.dumps({b'data': Runs(f, 'touch evil')}, protocol))/'x'
    with pytest.raises(InputError, match=f"x' is not read: it wants to run '{name}', which no array of pictures needs"):
        read_pickled_batch(file)

@pytest.mark.parametrize('o', [pd.DataFrame(dict(a=[1])), Image.new('L', (2, 2)), np.random.default_rng(0), Runs(sys.exit)],
    ids=lambda o: type(o).__name__)
def test_objects_are_refused(root, o):
    with pytest.raises(InputError, match='it wants to run'): read_pickled_batch(write(root, x=pickle.dumps({b'data': o}, 2))/'x')

@pytest.mark.parametrize('a', [np.zeros(3, np.float32), np.zeros(3, object), np.zeros(3, 'S4'), np.zeros(2, [('a', 'u1')])],
    ids=lambda a: str(a.dtype))
def test_only_arrays_of_bytes(root, a):
    with pytest.raises(InputError, match='is not read: it holds something other than arrays of bytes|is no pickled dict'):
        read_pickled_batch(write(root, x=pickled(dict(data=a)))/'x')

@pytest.mark.parametrize('data',
    [b'', b'junk', pickled(dict(data=PLANES))[:-9], pickle.dumps([1]), pickle.dumps({1: 2}), b'\x80\x02cnumpy\nndarray\nq\x00.',
    b'\x80\x02cnumpy\nndarray\n)\x81.', b'\x80\x02}(U\x04datacnumpy\ndtype\n)Ru.', b'\x80\x02Pid\n.', b'('*10**5],
    ids=map(str, range(10)))
def test_damaged_pickles(root, data):
    with pytest.raises(InputError, match="x' is no(t read| pickled dict of arrays)"): read_pickled_batch(write(root, x=data)/'x')

@pytest.mark.parametrize('change',
    [dict(data=[1]), dict(data=PLANES[:5, :9]), dict(labels=[0]*4), dict(labels=['a']*5), dict(labels=[0, 0, 0, 0, 256]),
                                    dict(labels=[True]*5), dict(data=PLANES[:0], labels=[])], ids=str)
def test_batches_that_are_none(root, change):
    batch = dict(data=PLANES[:5], labels=FINE[:5].tolist()) | change
    with pytest.raises(InputError, match="data_batch_1' is no(t read| CIFAR batch)"):
        find(write(root, data_batch_1=pickled(batch)))

# Flowers

def flowers(root, labels=(76, 5, 76, 5, 102, 1), **sets):
    for i in range(len(labels)): touch(root, f'jpg/image_{i + 1:05}.jpg')
    savemat(root/'imagelabels.mat', dict(labels=np.array(labels, np.uint8)))
    savemat(root/'setid.mat', dict(trnid=[1, 2], valid=[4, 3], tstid=[5, 6]) | sets)
    return root

def test_flowers(root):
    train, valid = find(flowers(root))
    assert labelled(train) == {'jpg/image_00001.jpg': 'morning glory', 'jpg/image_00002.jpg': 'english marigold'}
    assert names(valid) == ['jpg/image_00004.jpg', 'jpg/image_00003.jpg'] and valid.labels.tolist() == [4,
        75] and len(valid.vocab) == 102
    assert names(sides(root, valid=.5, split='random')[0])[0] in names(train)
    assert find(root, label_file=write(root, n=''.join(f'{i} f{i}\n' for i in range(102))) and 'n')[0].vocab[75] == 'f75'

@pytest.mark.parametrize('damage, says', [
    (lambda o: (o/'setid.mat').unlink(), "setid.mat' cannot be read as a MATLAB file"),
    (lambda o: write(o, imagelabels__mat=b'junk'), "imagelabels.mat' cannot"),
    (lambda o: flowers(o, labels=(0, 1, 2, 3)), 'labels from 0 to 3; there are 102 classes'),
    (lambda o: flowers(o, labels=(1, 2, 3, 103)), 'labels from 1 to 103'),
    (lambda o: flowers(o, trnid=[99]), 'pictures without labels'), (lambda o: flowers(o, trnid=[0]), 'pictures without labels'),
    (lambda o: savemat(o/'setid.mat', dict(trnid=[1])), "setid.mat' has no numbers 'valid'"),
    (lambda o: flowers(o, trnid='x'), "has no numbers 'trnid'"),
    (lambda o: (o/'jpg/image_00003.jpg').unlink(), "jpg' lacks 1 of 2 pictures: image_00003.jpg. Unpack")],
    ids=map(str, range(9)))
def test_bad_flowers(root, damage, says):
    damage(flowers(root))
    with pytest.raises(InputError, match=says): read_flowers102(root)

def test_flowers_as_the_seed_lists_them(root): # PaddleClas's flowers102.zip
    touch(root, *(f'jpg/image_{i:05}.jpg' for i in range(1, 13)))
    lists = dict(train=range(1, 5), val=range(5, 9), train_extra=range(1, 13))
    for k, v in lists.items(): write(root, **{f'{k}_list__txt': ''.join(f'jpg/image_{i:05}.jpg {i % 4}\n' for i in v)})
    write(root, flowers102_label_list__txt='0 pink primrose\n1 hard-leaved pocket orchid\n2 canterbury bells\n3 sweet pea\n')
    train, valid = find(root, label_file='flowers102_label_list.txt')
    assert labelled(train)['jpg/image_00001.jpg'] == 'hard-leaved pocket orchid' and (len(train), len(valid)) == (4, 4)
    assert train.vocab == valid.vocab and len(find(root, train='train_extra_list.txt', valid='val_list.txt')[0]) == 12

# ImageNet

WNIDS = 'n01440764', 'n02012849', 'n03126707'

def imagenet(root, **files):
    touch(root, *(f'train/{o}/{o}_{i}.JPEG' for o in WNIDS for i in range(3)),
        *(f'val/ILSVRC2012_val_{i:08}.JPEG' for i in range(1, 5)))
    return write(root, **files)

TRUTH = {'ILSVRC2012_val_00000001.JPEG': 2, 'ILSVRC2012_val_00000002.JPEG': 0, 'ILSVRC2012_val_00000003.JPEG': 1,
    'ILSVRC2012_val_00000004.JPEG': 0}
KAGGLE = 'ImageId,PredictionString\n' + ''.join(f'{k[:-5]},{WNIDS[v]} 1 2 3 4 {WNIDS[v]} 5 6 7 8 \n' for k,
    v in reversed(TRUTH.items()))
LIST = ''.join(f'val/{k} {v}\n' for k, v in TRUTH.items())
NUMBERS = '7\n9\n8\n9\n' # the development kit's own
META = np.array([(7, WNIDS[2], 'crane'), (8, WNIDS[1], 'crane'), (9, WNIDS[0], 'tench'), (1000, 'n00000001', 'group')],
                [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('words', 'O')])

def devkit(folder, numbers=NUMBERS):
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder/'meta.mat', dict(synsets=META))
    write(folder, ILSVRC2012_validation_ground_truth__txt=numbers)

@pytest.mark.parametrize('add, plan', [
    (lambda o: write(o, LOC_val_solution__csv=KAGGLE), {}), (lambda o: write(o, val_list__txt=LIST), {}), (devkit, {}),
    (lambda o: devkit(o/'ILSVRC2012_devkit_t12/data'), {}), (lambda o: write(o, mine__csv=KAGGLE), dict(valid='mine.csv')),
    (lambda o: write(o, mine__txt=LIST), dict(valid='mine.txt')),
    (lambda o: write(o, val_list__txt=LIST), dict(valid='val_list.txt')),
    (lambda o: write(o, val_list__txt=LIST), dict(train='train', valid='./val')),
    (lambda o: write(o, val_list__txt=LIST), dict(source='imagenet'))])
def test_imagenet(root, add, plan):
    add(imagenet(root))
    train, valid = find(root, **plan)
    assert train.vocab == valid.vocab == WNIDS and len(train) == 9
    assert {os.path.basename(valid.source(i)): int(valid.labels[i]) for i in range(4)} == TRUTH

def test_imagenet_as_kaggle_packs_it(root):
    imagenet(root/'ILSVRC/Data/CLS-LOC')
    write(root, LOC_val_solution__csv=KAGGLE,
        LOC_synset_mapping__txt='n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn09999999 x\n')
    train, valid = find(root)
    assert train.vocab == valid.vocab == ('tench, Tinca tinca', 'crane (n02012849)', 'crane (n03126707)') and valid.labels[0] == 2

def test_imagenet_without_what_validation_shows(root):
    with pytest.raises(InputError,
        match='holds 4 pictures without class folders. What they show .*LOC_val_solution.csv.*valid=0.05'): find(imagenet(root))
    assert [len(o) for o in find(root, valid=1/3)] == [6, 3] and [len(o) for o in find(root, fold=[0, 3])] == [6, 3]

def test_imagenet_with_class_folders_in_val_or_none(root):
    touch(root, *(f'{part}/{o}/{part}.JPEG' for part in ('train', 'val') for o in WNIDS))
    assert recognize_source(DataPlan(str(root))) == 'files'
    write(root, synset_words__txt='n01440764 tench\n')
    train, valid = find(root, source='imagenet')
    assert train.vocab == valid.vocab == ('tench', *WNIDS[1:]) and len(valid) == 3

def test_names_of_imagenet_from_a_label_file(root):
    imagenet(root, val_list__txt=LIST, n='0 a\n1 b\n2 c\n')
    assert find(root, label_file='n')[1].vocab == ('a', 'b', 'c')
    with pytest.raises(InputError, match="'n' names 2 classes, but '.*train' has 3 folders"):
        find(write(root, n='0 a\n1 b\n'), label_file='n')
    with pytest.raises(InputError, match='3 class folders .*, but num_classes is 1000'): find(root, num_classes=1000)

@pytest.mark.parametrize('add, says', [
    (lambda o: write(o, LOC_val_solution__csv=KAGGLE.replace('00000003', '00000009')),
    'does not say what ILSVRC2012_val_00000003.JPEG show'),
    (lambda o: write(o, LOC_val_solution__csv=KAGGLE + 'x\n'), 'line 6: it should be'),
    (lambda o: write(o, LOC_val_solution__csv='a,b\nx, \n'), 'line 2: it should'),
    (lambda o: write(o, LOC_val_solution__csv=KAGGLE.replace(WNIDS[1], 'n09999999')),
    r"classes \['n09999999'\] are not in the training set"),
    (lambda o: write(o, val_list__txt=LIST + 'val/ILSVRC2012_val_00000001.JPEG 3\n'),
    'label 3 of .* is not below the number of classes, 3'),
    (lambda o: devkit(o, '7\n8\n9\n'), 'does not say what ILSVRC2012_val_00000004.JPEG show'),
    (lambda o: devkit(o, '7\n8\n9\n5\n'), 'has 5, which .meta.mat'),
    (lambda o: devkit(o, '7\nx\n'), 'has x, which .meta.mat'),
    (lambda o: (devkit(o), (o/'meta.mat').unlink()), "There is no '.*meta.mat', without which the numbers in"),
    (lambda o: write(o, val_list__txt=LIST[:LIST.rindex('val/')]), "val_list.txt' does not say what .*4.JPEG show"),
    (lambda o: (devkit(o), savemat(o/'meta.mat', dict(a=1))), "meta.mat' cannot be read")], ids=map(str, range(11)))
def test_bad_truths(root, add, says):
    add(imagenet(root))
    with pytest.raises(InputError, match=says): find(root)

# Shards

def png(i): # a picture that differs from the others
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(out, 'png')
    return out.getvalue()

def pixel(source): return Image.open(io.BytesIO(source.read_bytes())).getpixel((0, 0))[0]

def tar(file, members, mode='w', **kwargs):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode, **kwargs) as t:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(data, tarfile.TarInfo): info.size = len(data)
            t.addfile(info, None if isinstance(data, tarfile.TarInfo) else io.BytesIO(data))
    return file

def samples(numbers, label=lambda i: str(i%3), ext='cls'):
    return [o for i in numbers for o in ((f'{i:04}.png', png(i)), (f'{i:04}.{ext}', label(i).encode()))]

def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info

def numbers_of(pics): return [pixel(pics.source(i)) for i in range(len(pics))]

@pytest.mark.parametrize('train, valid',
    [('train-000.tar', 'val-000.tar'), ('train/000.tar', 'valid/000.tar'), ('train/a.tar', 'validation/a.tar'),
    ('imagenet-train-00.tar', 'imagenet-validation-00.tar'), ('x_train_1.tar', 'x_val_1.tar'), ('train.tar', 'valid.tar'),
    ('Train0.tar', 'VAL0.tar')])
def test_shards(root, train, valid):
    tar(root/train, samples(range(9)))
    tar(root/valid, samples(range(9, 12)))
    tar(root/'test-000.tar', samples(range(12, 15)))
    a, b = find(root)
    assert numbers_of(a) == list(range(9)) and numbers_of(b) == [9, 10, 11] and a.labels.tolist() == [i%3 for i in range(9)]
    assert a.vocab == b.vocab == ('0', '1', '2') and a.name(4) == f'{train}:0004.png'
    assert sorted(numbers_of(find(root, valid=1/3)[1]))[-1] < 9

def test_shards_without_a_part_for_validation(root):
    for n in range(3): tar(root/f'{n}.tar', samples(range(4*n, 4*n + 4)))
    train, valid = find(root, valid=1/4)
    assert sorted(numbers_of(train) + numbers_of(valid)) == list(range(12)) and len(valid) == 3
    assert numbers_of(train.take([5, 0])) == [numbers_of(train)[5], numbers_of(train)[0]]
    assert len(set(names(train) + names(valid))) == 12
    assert sorted(numbers_of(sides(root/'1.tar', valid=.5, split='random')[0]))[0] >= 4

@pytest.mark.parametrize('plan',
    [dict(train='[01].tar', valid='2.tar'), dict(valid='2.tar'), dict(train='*.tar', valid='2.tar'),
    dict(train='in', valid='2.tar')])
def test_named_shards(root, plan):
    for n in range(3): tar(root/f'{n}.tar', samples(range(4*n, 4*n + 4)))
    if plan.get('train') == 'in':
        (root/'in').mkdir()
        for n in range(2): (root/f'{n}.tar').rename(root/f'in/{n}.tar')
    assert [numbers_of(o) for o in find(root, **plan)] == [list(range(8)), [8, 9, 10, 11]]

def test_equal_names_in_two_folders(root):
    for o in 'ab': tar(root/f'{o}/0.tar', samples(range(2)))
    assert names(read_shards(root)[0]) == ['a/0.tar:0000.png', 'a/0.tar:0001.png', 'b/0.tar:0000.png', 'b/0.tar:0001.png']

@pytest.mark.parametrize('members, vocab, labels', [
    (samples(range(3), lambda i: ['dog', 'cat', ' dog\n'][i]), ('cat', 'dog'), [1, 0, 1]),
    (samples([0, 2]), ('0', '1', '2'), [0, 2]),
    (samples(range(2), lambda i: json.dumps(dict(label=i + 1)), 'json'), ('0', '1', '2'), [1, 2]),
    (samples(range(2), lambda i: json.dumps(dict(cls='xy'[i], label='ab'[i])), 'json'), ('a', 'b'), [0, 1]),
    (samples(range(2), lambda i: json.dumps(dict(cls='xy'[i])), 'json'), ('x', 'y'), [0, 1]),
    ([('b/0.png', png(0)), ('a/1.PNG', png(1)), ('x/a/2.png', png(2))], ('a', 'b'), [1, 0, 0]),
    ([('10/0.png', png(0)), ('9/1.png', png(1))], ('9', '10'), [1, 0]),
    ([('s/a.left.png', png(0)), ('s/a.right.png', png(1)), ('s/a.cls', b'3')], tuple('0123'), [3, 3]),
    ([('a.1.png', png(0)), ('a.1.cls', b'1'), ('a.2.png', png(1)), ('a.cls', b'0')], ('0', '1'), [1, 0]),
    ([('0.json', b'{"caption": 1}'), ('0.cls', b'1'), ('0.png', png(0)), ('0.txt', b'a dog')], ('0', '1'), [1]),
    ([('c/0.json', b'{"caption": 1}'), ('c/0.png', png(0)), ('d/0.png', png(1))], ('c', 'd'), [0, 1])], ids=map(str, range(11)))
def test_labels_in_shards(root, members, vocab, labels):
    tar(root/'x.tar', members)
    pics, valid = read_shards(root)
    assert (pics.vocab, pics.labels.tolist(), valid) == (vocab, labels, None)

def test_numbers_in_shards_and_names(root):
    tar(root/'train.tar', samples(range(3), lambda i: ['7', '40', '7'][i]))
    tar(root/'val.tar', samples(range(3, 5), lambda i: '40'))
    assert find(root)[0].vocab == tuple(map(str, range(41)))
    write(root, n='7 seven\n')
    assert find(root, relabel=True)[0].vocab == ('7', '40') and find(root, relabel=True, label_file='n')[1].vocab == ('seven',
        '40')
    assert len(find(root, num_classes=50)[0].vocab) == 50
    write(root, n=''.join(f'{i} n{i}\n' for i in range(41)))
    assert labelled(find(root, label_file='n')[1])['val.tar:0003.png'] == 'n40'

def test_views_of_one_sample_stay_together(root):
    views = lambda name: f'{name}.left.png', lambda name: f'{name}.right.png'
    members = [o for i in range(12) for o in (*((view(i), png(i)) for view in views), (f'{i}.cls', str(i % 2).encode()))]
    for n in (0, 1): tar(root/f'{n}.tar', members)
    for how in (dict(valid=.25), dict(fold=(0, 4)), dict(valid=.25, split='random')):
        keys = [{o.rsplit('.', 2)[0] for o in names(pics)} for pics in find(root, **how)]
        assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == 24
    tar(root/'0.tar', [(f'a.{i}.{k}', png(i) if k == 'png' else b'01'[i % 2:][:1]) for i in range(9) for k in ('png', 'cls')])
    (root/'1.tar').unlink()
    assert find(root)[0].groups is None, "each has a label of its own"

def test_labels_in_capitals(root):
    tar(root/'x.tar', [('0.PNG', png(0)), ('0.CLS', b'1'), ('1.PNG', png(1)), ('1.Json', b'{"label": 0}')])
    assert read_shards(root)[0].labels.tolist() == [1, 0]

def test_groups_in_shards(root):
    tar(root/'x.tar', [(f'{"ab"[i%2]}/patient{i//4}_{i}.png', png(i)) for i in range(16)])
    train, valid = find(root, split='grouped', group=r'(patient\d)', valid=.25)
    assert len(valid) == 4 and not {o.split('_')[0][-1] for o in names(valid)} & {o.split('_')[0][-1] for o in names(train)}

@pytest.mark.parametrize('name', ['0.png', 'x'*90 + '/0.png', 'y'*150 + '.png', 'ü/'*60 + 'ß.png', './a/0.png', 'a//b/0.png'])
@pytest.mark.parametrize('form', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_all_formats(root, name, form):
    if form == tarfile.USTAR_FORMAT and len(name.encode()) > 120: name = 'z'*80 + '/' + 'w'*80 + '.png'
    tar(root/'x.tar', [('first.png', png(1)), (name, png(7))], format=form)
    index = scan_tar(root/'x.tar')
    assert index.names[1] == os.path.normpath(name)
    with open(root/'x.tar', 'rb') as f:
        f.seek(index.offsets[1])
        assert f.read(index.sizes[1]) == png(7)

def test_odd_members(root):
    tar(root/'x.tar', [('/abs/0.png', png(0)), ('../../up/1.png', png(1)), ('a/.hidden.png', b'x'), ('a/._2.png', b'x'),
        ('a/2.png', png(2)),
                       ('notes.md', b'x'), ('a/2.png', png(3)), (os.fsdecode(b'b/\xff.png'), png(4))])
    pics = read_shards(root)[0]
    assert labelled(pics) == {'x.tar:abs/0.png': 'abs', 'x.tar:../../up/1.png': 'up', 'x.tar:a/2.png': 'a',
        os.fsdecode(b'x.tar:b/\xff.png'): 'b'}
    assert numbers_of(pics) == [0, 1, 3, 4] # of two members with one name the last counts, as for tar itself
    assert pics.list_hash() == read_shards(root)[0].list_hash()
    assert not (root.parent.parent/'up').exists() and [o.name for o in root.iterdir()] == ['x.tar']

def test_links(root):
    tar(root/'x.tar', [link('b/1.png', '../a/0.png'), ('a/0.png', png(5)), link('b/2.png', 'a/0.png', tarfile.LNKTYPE),
        link('b/3.png', '2.png')])
    pics = read_shards(root)[0]
    assert numbers_of(pics) == [5]*4 and sorted(names(pics)) == ['x.tar:a/0.png', 'x.tar:b/1.png', 'x.tar:b/2.png',
        'x.tar:b/3.png']

@pytest.mark.parametrize('member', [link('b/1.png', '/etc/passwd'), link('b/1.png', '../../evil.png'), link('b/1.png', '1.png'),
                                    link('b/1.png', 'gone.png', tarfile.LNKTYPE)], ids=map(str, range(4)))
def test_links_that_lead_nowhere(root, member):
    tar(root/'x.tar', [('a/0.png', png(0)), member])
    with pytest.raises(InputError, match="'b/1.png' is a link to '.*', which is not in the file"): read_shards(root)

@pytest.mark.parametrize('mode, kind', [('w:gz', 'gzip'), ('w:bz2', 'bzip2'), ('w:xz', 'xz')])
@pytest.mark.parametrize('name', ['x.tar', 'x.tar.{}', 'x.tgz'])
def test_compressed_shards(root, mode, kind, name):
    tar(root/name.format(mode[2:]), samples(range(2)), mode)
    with pytest.raises(InputError, match=f'is compressed with {kind}, so no picture can be reached'): find(root)
    tar(root/'y.tar', samples(range(4)))
    if name != 'x.tar': assert sum(map(len, find(root, valid=.5))) == 4 # plain ones beside it are taken

def test_damaged_shards(root):
    whole = tar(root/'x.tar', samples(range(8))).read_bytes()
    for n in (0, 100, 512, 700, 1024, 2048, 512*11 + 100, len(whole.rstrip(b'\0')), 512*3):
        with pytest.raises(InputError, match='cannot be read as a tar file|breaks off after'):
            scan_tar(write(root, x__tar=whole[:n])/'x.tar')
    with pytest.raises(InputError, match='breaks off after 4,096 bytes'):
        scan_tar(write(root, x__tar=whole[:4096] + b'x'*512 + whole[4608:])/'x.tar')
    with pytest.raises(InputError, match='cannot be read as a tar file'): scan_tar(root/'none.tar')

@pytest.mark.parametrize('members, says', [
    ([('0.png', png(0))], '1 of 1 pictures have no label, such as .0.png'),
    (samples(range(2)) + [('c/2.png', png(2))], "1 of 3 pictures have no label, such as 'c/2.png'"),
    (samples(range(2), lambda i: ''), '2 of 2 pictures have no label'), ([('0.txt', b'x')], 'there are no pictures in x.tar'),
    ([], 'there are no pictures in x.tar'),
    ([('0.png', png(0)), ('0.cls', b'x'*2**21)], "'0.cls' has 2,097,152 bytes, too many for a label"),
    ([('0.png', png(0)), ('0.json', b'{')], "'0.json' cannot be read"),
    ([('0.png', png(0)), ('0.json', b'{"label": [1]}')], r"'0.json' has the label \[1\]"),
    ([('0.png', png(0)), ('0.json', b'{"label": true}')], 'has the label True'),
    ([('0.png', png(0)), ('0.cls', b'\xff')], "'0.cls' cannot be read"),
    ([('0.png', png(0)), ('0.json', b'['*10**5)], "'0.json' cannot be read"),
    (samples([0], lambda i: '5000'), '5000, which would make as many classes')], ids=map(str, range(12)))
def test_bad_shards(root, members, says):
    tar(root/'x.tar', members)
    with pytest.raises(InputError, match=says): read_shards(root)

@pytest.mark.parametrize('files, plan, says', [
    (['train.tar', 'more.tar'], {}, 'tar files for training or validation, and others: more.tar'),
    (['val.tar'], {}, 'for validation, but none for training'),
    (['x.tar'], dict(valid='y*.tar'), r"has no tar files 'y\*.tar'"),
    (['x.tar'], dict(train='nowhere/*.tar'), r"has no tar files 'nowhere/\*.tar'"),
    (['x.tar'], dict(valid='x.tar'), 'holds no tar files to train on'), (['test.tar'], {}, 'holds no tar files to train on'),
    ([], dict(source='shards'), 'holds no tar files'),
    (['x.tar'], dict(num_classes=2), 'labels 2 are no classes')], ids=map(str, range(8)))
def test_bad_sets_of_shards(root, files, plan, says):
    for o in files: tar(root/o, samples(range(3)))
    with pytest.raises(InputError, match=says): find(root, **plan)

def test_a_class_that_only_validation_shards_have(root):
    tar(root/'train.tar', samples(range(3), 'abc'.__getitem__))
    tar(root/'val.tar', samples(range(3, 5), lambda i: 'ad'[i - 3]))
    with pytest.raises(InputError, match=r"classes \['d'\] are not in the training set"): find(root)

def test_a_shard_that_shrank(root):
    pics = read_shards(tar(root/'x.tar', samples(range(3))))[0]
    (root/'x.tar').write_bytes((root/'x.tar').read_bytes()[:600])
    with pytest.raises(BadPictureError, match="x.tar:0001.png: the tar file ends before it does"): pics.source(1).read_bytes()

# The index of a shard

@pytest.fixture
def counted(monkeypatch):
    calls = []
    monkeypatch.setattr(archives, 'scan_tar', lambda file: calls.append(file) or scan_tar(file))
    return calls

def plain(o): return [*o.names], o.texts, o.beside, *(getattr(o, k).tolist() for k in ('which', 'offsets', 'sizes', 'labels'))

def same(a, b): return plain(a) == plain(b)

def test_the_index_is_kept(root, tmp_path, counted):
    file = tar(root/'x.tar', [*samples(range(3), lambda i: 'ü\n'), ('a/9.png', png(9)), (os.fsdecode(b'\xff.png'), png(1))])
    first = index_tar(file)
    assert same(index_tar(file), first) and same(index_tar(os.path.relpath(file)), first) and len(counted) == 1
    assert [o.suffix for o in (tmp_path/'cache/shards').iterdir()] == ['.index'] and [o.name for o in root.iterdir()] == ['x.tar']
    os.utime(file, ns=(1, 1))
    assert same(index_tar(file), first) and len(counted) == 2
    tar(file, samples(range(5)))
    assert len(index_tar(file).names) == 5 and len(counted) == 3 and len(list((tmp_path/'cache/shards').iterdir())) == 1

@pytest.mark.parametrize('damage', [lambda o: b'', lambda o: b'junk', lambda o: o[:-30], lambda o: o[:100] + b'\0'*60 + o[160:]],
    ids=map(str, range(4)))
def test_a_damaged_index_is_made_anew(root, tmp_path, counted, damage):
    file = tar(root/'x.tar', samples(range(3)))
    first, kept = index_tar(file), next((tmp_path/'cache/shards').iterdir())
    kept.write_bytes(damage(kept.read_bytes()))
    for n in (2, 2): assert same(index_tar(file), first) and len(counted) == n

def test_an_index_of_lies_is_made_anew(root, tmp_path, counted):
    file = tar(root/'x.tar', samples(range(3)))
    first, kept = index_tar(file), next((tmp_path/'cache/shards').iterdir())
    columns = read_columns(kept)
    def with_(i, new): return [*columns[:i], new, *columns[i + 1:]]
    for lie in (with_(6, columns[6] + 10**6), with_(5, columns[5][:2]), columns[1:], with_(0, np.frombuffer(b'[]', np.uint8))):
        write_columns(kept, lie)
        assert same(index_tar(file), first)
    assert len(counted) == 5

def test_a_cache_that_cannot_be_written(root, tmp_path, counted):
    (tmp_path/'cache').write_text('in the way')
    file = tar(root/'x.tar', samples(range(3)))
    for _ in range(2): assert len(index_tar(file).names) == 3
    assert len(counted) == 2 and (tmp_path/'cache').read_text() == 'in the way'

# Published sets and the names of their parts

@pytest.mark.parametrize('make, plan, sizes', [
    (lambda o: cifar(o, 100, 'py'), dict(train='train'), (9, 3)), (lambda o: cifar(o, 10, 'bin'), dict(valid='test'), (9, 3)),
    (lambda o: cifar(o, 10, 'bin'), dict(train='test', valid='train'), (3, 9)),
    (lambda o: cifar(o, 10, 'bin'), dict(train='train', valid=1/3), (5, 4)),
    (flowers, dict(valid='tstid'), (2, 2)), (flowers, dict(train='tstid', valid='trnid'), (2, 2)),
    (flowers, dict(train='valid', valid='tstid'), (2, 2)),
    (lambda o: write_idx(write_idx(o), 't10k'), dict(train='train', valid='t10k'), None)], ids=map(str, range(8)))
def test_parts_by_the_publishers_names(root, make, plan, sizes):
    found = sides(make(root), **plan)
    assert sizes is None or tuple(map(len, found)) == sizes
    if plan.get('valid') == 'tstid': assert names(found[1]) == ['jpg/image_00005.jpg', 'jpg/image_00006.jpg']

@pytest.mark.parametrize('make, plan, says', [
    (lambda o: cifar(o, 10, 'bin'), dict(valid='nonsense'), "valid='nonsense' cannot be taken .* Its parts are train, test;"),
    (lambda o: cifar(o, 10, 'bin'), dict(train='data_batch_1.bin'), "train='data_batch_1.bin' cannot be taken .*cifar"),
    (lambda o: cifar(o, 10, 'bin'), dict(valid='train'), 'give two different ones'),
    (write_idx, dict(valid='t1k'), "mean 't10k'"),
    (flowers, dict(valid='tstidd'), "Its parts are trnid, valid, tstid; .*Did you mean 'tstid'"),
    (lambda o: (cifar(o, 10, 'bin')/'test_batch.bin').unlink(), dict(valid='test'), "has no part 'test'")],
    ids=map(str, range(6)))
def test_parts_that_there_are_not(root, make, plan, says):
    make(root)
    with pytest.raises(InputError, match=says): find(root, **plan)

# A class that training lacks, however it came about

def few(root, labels): # a picture for each label
    lines = [f'{i}_{o}.png {o}' for i, o in enumerate(labels)]
    touch(root, *(o.split()[0] for o in lines))
    return write(root, l__txt='\n'.join(lines))

@pytest.mark.parametrize('labels, plan', [
    ('001122' + '3', dict(fold=(0, 2))), ('001122' + '3', dict(fold=(1, 2))),
    ('0011' + '2', dict(valid=.4, split='random', seed=1)),
    ('000111222', dict(fold=(0, 3), group=r'_(\d)'))], ids=str)
def test_a_class_that_a_split_takes_from_training(root, labels, plan):
    few(root, labels)
    train, valid = sides(root, train='l.txt', **plan)
    lost = {*valid.labels.tolist()} - {*train.labels.tolist()}
    if not lost: return find(root, train='l.txt', **plan) # the other fold
    with pytest.raises(InputError, match=f"pictures of '{lost.pop()}' .*the training set none"): find(root, train='l.txt', **plan)

def test_numbered_classes_that_training_lacks(root):
    few(root, '0022')
    write(root, v__txt='0_0.png 0\n1_0.png 1\n2_2.png 2\n')
    with pytest.raises(InputError, match=r"pictures of '1' \(1\), the tr"): find(root, train='l.txt', valid='v.txt')
    write(root, v__txt='0_0.png 0\n2_2.png 2\n')
    assert find(root, train='l.txt', valid='v.txt', num_classes=5)[1].counts() == {'0': 1, '1': 0, '2': 1, '3': 0, '4': 0}

# Links and permissions

def test_links_into_other_classes(root):
    folders(root)
    os.symlink('..', root/'a/up')
    os.symlink('.', root/'a/here')
    assert read_class_folders(root).counts() == dict(a=3, b=3), "what lies above is not in it"
    touch(root.parent/'more', '7.png')
    os.symlink(root.parent/'more', root/'a/more')
    assert read_class_folders(root).counts() == dict(a=4, b=3), "pictures kept elsewhere are"
    os.symlink('../b', root/'a/other')
    for o in (root, root/'.'):
        with pytest.raises(InputError, match="'.*b' and '.*a/other' are one folder, by a link.*'b' and 'a'"): find(o)
    (root/'a/other').unlink()
    os.symlink('b', root/'c')
    with pytest.raises(InputError, match="are one folder, by a link.*Remove the link"): find(root)

@contextlib.contextmanager
def somebody_else(): # for whom permissions count
    os.seteuid(65534)
    try: yield
    finally: os.seteuid(0)

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize('closed, plan, says', [
    ('a', {}, "/a' cannot be read .Permission denied"),
    ('a/deep', {}, "/a/deep' cannot be read"), ('.', {}, "'.*' cannot be read .Permission denied"),
    ('l.txt', dict(train='l.txt'), "The list file '.*l.txt' cannot be read"),
    ('t.csv', dict(train='t.csv'), "The list file '.*t.csv' cannot be read")])
def test_what_may_not_be_read(closed, plan, says):
    with tempfile.TemporaryDirectory(dir='/tmp') as d: # pytest's own folders are closed to others
        root = Path(d)
        touch(folders(root), 'a/deep/1.png')
        few(root, '0101')
        write(root, t__csv='path,label\na/0.png,a\nb/0.png,b\n')
        os.chmod(root, 0o755)
        os.chmod(root/closed, 0)
        with somebody_else(), pytest.raises(InputError, match=says): find(root, **plan)
        os.chmod(root/closed, 0o755)

def test_a_folder_that_cannot_be_listed(root, monkeypatch): # the same for those who are not root
    folders(root)
    scan = os.scandir
    def scandir(path):
        if str(path).endswith('/a'): raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)
    with monkeypatch.context() as m, pytest.raises(InputError, match="/a' cannot be read .Permission denied.. Allow it"):
        m.setattr(os, 'scandir', scandir)
        find(root)

def test_loose_pictures_are_told(root, capsys):
    touch(folders(root), 'x.png', 'y.png', '.z.png')
    find(root, valid=1/3)
    assert capsys.readouterr().out == f"Left out, as they lie in no class folder of '{root}': x.png, y.png.\n"
    read_sides(DataPlan(str(root), valid=1/3), found=[])
    assert capsys.readouterr().out == '', "a report says it"

def test_what_counts_as_a_picture_does_not_depend_on_the_machine(root):
    touch(root, *(f'{c}/1{o}' for c in 'ab' for o in ('.jpe', '.avif', '.HEIC', '.heif', '.txt')))
    assert read_class_folders(root).counts() == dict(a=4, b=4)

# Which sides a plan names

@pytest.mark.parametrize('files, plan, sides', [
    (['train/a/1.png', 'val/a/1.png'], {}, ('train', 'val')),
    (['train/a/1.png', 'val/a/1.png'], dict(fold=(0, 2)), ('train', None)),
    (['train/a/1.png', 'val/a/1.png'], dict(valid=.5), ('train', .5)), (['a/1.png', 'b/1.png'], {}, (None, None)),
    (['a/1.png', 'b/1.png', 'train_list.txt'], {}, (None, None)),
    (['jpg/1.jpg', 'train_list.txt', 'val_list.txt'], {}, ('train_list.txt', 'val_list.txt')),
    (['jpg/1.jpg', 'train_list.txt', 'val_list.txt'], dict(fold=(0, 2)), ('train_list.txt', None)),
    (['x/a/1.png', 'train/a/1.png', 'valid/a/1.png'], dict(train='x'), ('x', 'valid')),
    (['Train/a/1.png', 'Train/b/1.png', 'VALID/a/1.png'], {}, ('Train', 'VALID')),
    (['training/a/1.png', 'training/b/1.png', 'testing/a/1.png'], {}, ('training', None)),
    (['training/1.png', 'resting/1.png'], {}, (None, None))], ids=str)
def test_sides(root, files, plan, sides):
    found = name_sides(DataPlan(str(touch(root, *files)), **plan))
    assert (found.train, found.valid) == sides

@pytest.mark.parametrize('valid', [.3, 'held'])
@pytest.mark.parametrize('name', ['val', 'Valid', 'test', 'Testing'])
def test_a_class_that_may_be_a_split(root, name, valid):
    touch(folders(root), f'{name}/1.png', '__MACOSX/1.png')
    if valid == 'held': touch(root, 'held/a/1.png', 'held/b/1.png')
    with pytest.raises(InputError, match=f"has a folder '{name}', but no 'train'. .*train='.'"): find(root, valid=valid)
    assert len(find(root, valid=valid, train='.')[0].vocab) == 3

@pytest.mark.parametrize('n', [3000])
def test_many_classes_take_no_longer_for_each_picture(root, monkeypatch, n):
    class Slow(tuple): # a look through all classes for a picture takes minutes where there are 20,000
        def index(self, *args): pytest.fail('classes are looked through')
    monkeypatch.setattr('imgcls_nb.sources.list_images', lambda o: [o/'1.png', o/'2.png'])
    for i in range(9): (root/f'{i}').mkdir()
    assert read_class_folders(root, Slow(map(str, range(9)))).labels.tolist() == np.repeat(range(9), 2).tolist()
    labels = [f'{i:05}x' for i in range(n)]
    assert len(name_vocab(labels, 'x', names=[*labels, *labels])[1]) == n

# What lies there

def test_sources_by_name():
    assert SOURCES.keys() == {'files', 'table', 'idx', 'cifar', 'flowers102', 'imagenet', 'shards'}

def folders(root): return touch(root, *(f'{c}/{i}.png' for c in 'ab' for i in range(3)))

@pytest.mark.parametrize('make, plan, source', [
    (folders, {}, 'files'), (lambda o: folders(o/'train'), {}, 'files'), (write_idx, {}, 'idx'),
    (lambda o: cifar(o, 10, 'bin'), {}, 'cifar'),
    (lambda o: cifar(o, 100, 'py'), {}, 'cifar'), (flowers, {}, 'flowers102'), (imagenet, {}, 'imagenet'),
    (lambda o: tar(o/'train/x.tar', samples([0])), {}, 'shards'),
    (lambda o: write(o, x__csv='a\n'), {}, 'table'), (lambda o: touch(o, 'x.csv', 'a/1.png'), {}, 'table'),
    (lambda o: touch(folders(o), 'x.csv', 'x.tar', 'x.tgz'), {}, 'files'),
    (lambda o: touch(folders(o), 'x.csv'), dict(columns=dict(image='x')), 'table'),
    (lambda o: touch(o, 'train_list.txt', 'x.csv', 'jpg/1.jpg'), {}, 'files'),
    (lambda o: touch(o, 'l.txt', 'x.csv'), dict(train='l.txt'), 'files'),
    (lambda o: touch(o, 'l.txt', 'x.csv'), dict(train='x.csv'), 'table'),
    (lambda o: touch(o, 'in/x.tar'), dict(train='in'), 'shards'),
    (lambda o: touch(o, 'in/a/1.png', 'in/x.tar'), dict(train='in'), 'files'), (lambda o: o, {}, 'files'),
    (lambda o: touch(o, '1.png'), {}, 'files')], ids=map(str, range(19)))
def test_recognition(root, make, plan, source):
    make(root)
    assert recognize_source(DataPlan(str(root), **plan)) == source

@pytest.mark.parametrize('name, source',
    [('x.csv', 'table'), ('x.TSV', 'table'), ('x.tar', 'shards'), ('x.tar.gz', 'shards'), ('x.tgz', 'shards'),
    ('list.txt', 'files'),
    ('train-images-idx3-ubyte.gz', 'idx'), ('data_batch_1.bin', 'cifar')])
def test_files_as_path(root, name, source): assert recognize_source(DataPlan(str(touch(root, name)/name))) == source

@pytest.mark.parametrize('name', ['x.zip', 'x.JPG', 'x.parquet', 'x.csv.gz'])
def test_files_that_are_no_data_set(root, name):
    with pytest.raises(InputError, match=f"{name}' is no folder, list file, table or tar file"): find(touch(root, name)/name)

def test_a_list_file_as_path(root):
    write(touch(root, *(f'{i}.png' for i in range(4))), list__txt='0.png 0\n1.png 1\n2.png 0\n3.png 1\n', n__txt='0 a\n1 b\n')
    train, valid = find(root/'list.txt', valid=.5, label_file='n.txt')
    assert train.vocab == class_names(DataPlan(str(root/'list.txt'), label_file='n.txt')) == ('a',
        'b') and train.root == root and len(valid) == 2

@pytest.mark.parametrize('makes, says', [
    ((folders, write_idx), 'in several forms: files, idx. Say which: source='),
    ((write_idx, lambda o: cifar(o, 10, 'bin')), 'several forms: idx, cifar'),
    ((lambda o: tar(o/'x.tar', samples([0])), lambda o: write(o, x__csv='a\n')), 'several forms: shards, table'),
    ((flowers, write_idx), 'several forms: idx, flowers102')])
def test_two_forms_in_one_folder(root, makes, says):
    for o in makes: o(root)
    with pytest.raises(InputError, match=says): find(root)

def test_a_name_settles_it(root):
    write_idx(folders(root))
    assert [find(root, source=o, valid=1/3)[0].vocab for o in ('files', 'idx')] == [('a', 'b'), ('0', '1', '2')]

@pytest.mark.parametrize('make', [lambda o: write_idx(o), lambda o: cifar(o, 10, 'bin'), flowers, imagenet],
    ids=map(str, range(4)))
def test_a_folder_too_high(root, make):
    (root/'inner').mkdir()
    make(root/'inner')
    with pytest.raises(InputError, match=f"holds no data itself, but 'inner' in it does .*. Give path='{root}/inner'"): find(root)

@pytest.mark.parametrize('plan, says', [
    (dict(source='file'), "source='file' is unknown. Use 'auto', or one of files, .*Did you mean 'files'"),
    (dict(fold=[0, 3], valid='x'), "valid='x' and fold=.0, 3. both say what to validate on")])
def test_plans_that_contradict_themselves(root, plan, says):
    with pytest.raises(InputError, match=says): find(folders(root), **plan)

def test_folds_of_training_folders_leave_the_published_set_alone(root):
    touch(root, *(f'train/{c}/{i}.png' for c in 'ab' for i in range(4)), 'val/a/x.png', 'val/b/y.png')
    for plan in (dict(fold=[0, 4]), dict(valid=.25)):
        train, valid = find(root, **plan)
        assert (len(train), len(valid)) == (6, 2) and not {'a/x.png', 'b/y.png'} & {*names(train), *names(valid)}

def test_home_folder(root, monkeypatch):
    monkeypatch.setenv('HOME', str(root))
    folders(root/'pics')
    assert find('~/pics', valid=1/3)[0].vocab == ('a',
        'b') and class_names(DataPlan('~/pics', label_file=write(root/'pics', n='0 x\n') and 'n')) == ('x',)

def test_cifar_maps_its_file(root):
    pixels, labels = read_cifar(cifar(root, 10, 'bin')/'test_batch.bin', 1)
    assert isinstance(pixels, np.memmap) and np.shares_memory(pixels, labels.base) and (pixels == TINY[9:]).all()

@pytest.mark.skipif(sys.platform != 'linux', reason="names are bytes there")
def test_a_class_whose_name_is_no_text(shapes, tmp_path):
    for name in (b'red', b'\xba\xec'):
        (folder := tmp_path/os.fsdecode(name)).mkdir()
        (folder/'1.png').write_bytes((shapes/'circle/000.png').read_bytes())
    with pytest.raises(InputError, match=r"class folder b'\\xba\\xec' in .* no UTF-8.*convmv"): read_class_folders(tmp_path)

def test_classes_that_validation_lacks_are_told(capsys):
    pics = [PictureList('.', Arrays(np.zeros((len(o), 2, 2, 3), np.uint8)), o, 'ab') for o in ([0, 1], [0])]
    assert tell_untested(*pics) == tuple(pics) and 'Validation has no picture of b: ' in capsys.readouterr().out
    assert tell_untested(pics[0], pics[0]) and not capsys.readouterr().out
