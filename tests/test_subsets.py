"A few pictures of each class, from data in any form"
import os
import shutil

import pytest

from imgcls_nb import subsets
from imgcls_nb.core import InputError, list_images, open_image
from imgcls_nb.data import image_dls
from imgcls_nb.datasets import make_shapes
from imgcls_nb.subsets import choose_few, few_of_each, short_side


def counts(path): return {o.name: len(list_images(o)) for o in sorted(path.iterdir()) if o.is_dir()}

def names(path): return {o.relative_to(path).as_posix() for o in list_images(path)}

def test_a_larger_choice_keeps_the_smaller_one(shapes, tmp_path):
    few, more = (few_of_each(shapes, tmp_path, n) for n in (2, 5))
    assert counts(few) == dict(circle=2, square=2, triangle=2)
    assert names(few) < names(more)

def test_a_class_is_chosen_from_alone():
    a = choose_few([0]*50 + [1]*50, ('cat', 'dog'), 5)
    b = choose_few([0]*50, ('cat',), 5)
    assert a[:5].tolist() == b.tolist()

def test_two_that_choose_at_once(shapes, tmp_path, monkeypatch):
    def slow(*args, write=subsets._write_few): # another process is faster
        monkeypatch.setattr(subsets, '_write_few', write)
        few_of_each(shapes, tmp_path, 2)
        write(*args)
    monkeypatch.setattr(subsets, '_write_few', slow)
    path = few_of_each(shapes, tmp_path, 2)
    assert counts(path) == dict(circle=2, square=2, triangle=2) and list(tmp_path.iterdir()) == [path]

def test_another_seed_takes_others(shapes, tmp_path):
    assert names(few_of_each(shapes, tmp_path, 3, 1)) != names(few_of_each(shapes, tmp_path, 3, 2))

def test_files_are_copies_that_may_be_changed(shapes, tmp_path):
    path = few_of_each(shapes, tmp_path)
    name = sorted(names(path))[0]
    before = (shapes/name).read_bytes()
    assert (path/name).read_bytes() == before
    (path/name).write_bytes(b'x')
    assert (shapes/name).read_bytes() == before

@pytest.mark.parametrize('data, says', [('digit', "no folder 'digit', and no data set of this name. Did you mean 'digits'"),
                                        ('fotos', 'Data sets: digits, shapes, '), ('', "no folder ''")])
def test_data_that_are_not_there(data, says, tmp_path):
    with pytest.raises(InputError, match=says): few_of_each(data, tmp_path)
    assert not [*tmp_path.iterdir()]

def test_both_sides_of_a_split_and_packed_pictures(tmp_path):
    import gzip

    import numpy as np
    source = tmp_path/'fashion_mnist'
    source.mkdir()
    for part, n in (('train', 30), ('t10k', 10)):
        pixels, labels = np.arange(n*784, dtype=np.uint8).reshape(n, 28, 28), np.arange(n, dtype=np.uint8) % 10
        for kind, a in (('images-idx3', pixels), ('labels-idx1', labels)):
            head = bytes([0, 0, 8, a.ndim]) + np.array(a.shape, '>i4').tobytes()
            with gzip.open(source/f'{part}-{kind}-ubyte.gz', 'wb') as f: f.write(head + a.tobytes())
    path = few_of_each(source, tmp_path)
    assert sum(counts(path).values()) == 40 and len(counts(path)) == 10
    assert open_image(list_images(path)[0]).size == (28, 28)
    assert image_dls(path, size=32, bs=4, num_workers=0).c == 10

def test_nested_names_do_not_meet(shapes, tmp_path):
    pics = list_images(shapes)
    for kind in ('a', 'b'):
        for part in ('x', 'y'):
            to = tmp_path/'deep'/kind/part/'1.png'
            to.parent.mkdir(parents=True)
            to.write_bytes(pics[0].read_bytes())
    assert counts(few_of_each(tmp_path/'deep', tmp_path)) == dict(a=2, b=2)

@pytest.mark.skipif(os.name != 'posix', reason="needs names that Windows forbids")
@pytest.mark.parametrize('classes', [('Kreis (rund) & co', '方形', "tri'angle #1%20"), ('C#', 'C++'), ('a b', 'a_b'),
                                     ('b. ', 'b\\c', 'a\nb', 'a..')], ids=str)
def test_classes_keep_their_names(shapes, tmp_path, classes):
    for name in classes:
        (to := tmp_path/'odd'/name).mkdir(parents=True)
        for o in ('1.png', '1 (copy)#.png'): (to/o).write_bytes(list_images(shapes)[0].read_bytes())
    path = few_of_each(tmp_path/'odd', tmp_path)
    assert names(path) == names(tmp_path/'odd')

def listed(shapes, folder, *classes): # in a list file, whose names may be anything
    shutil.copytree(shapes, folder/'pics')
    (folder/'label_list.txt').write_text(''.join(f'{i} {o}\n' for i, o in enumerate(classes)))
    rows = [f'pics/{kind}/00{n}.png {i}\n' for i, kind in enumerate(('circle', 'square', 'triangle')) for n in range(2)]
    (folder/'train_list.txt').write_text(''.join(rows))
    return folder

def test_names_that_no_folder_can_have(shapes, tmp_path):
    path = few_of_each(listed(shapes, tmp_path/'odd', 'A/C', '..', '.net'), tmp_path)
    assert counts(path) == {'A_C': 2, '_.': 2, '_net': 2}
    assert image_dls(path, size=32, bs=2, num_workers=0).vocab == ('A_C', '_.', '_net'), "with dots in front they were none"

def test_classes_that_would_be_one_folder(shapes, tmp_path):
    data = listed(shapes, tmp_path/'odd', 'A/C', 'A_C', 'B')
    with pytest.raises(InputError, match="'A/C' and 'A_C' would be one folder, 'A_C'"): few_of_each(data, tmp_path)

def test_sides_with_equal_names_lose_nothing(tmp_path): # as cameras number them
    for part in ('train', 'valid'): make_shapes(tmp_path/'photos'/part, 3)
    path = few_of_each(tmp_path/'photos', tmp_path)
    assert counts(path) == dict(circle=6, square=6, triangle=6)
    assert {o.name for o in list_images(path/'circle')} == {f'{i:03}{more}.png' for i in range(3) for more in ('', '_2')}

def test_a_folder_that_has_changed_is_not_taken_for_what_it_was(tmp_path):
    source = make_shapes(tmp_path/'photos', 3)
    path = few_of_each(source, tmp_path/'data')
    assert few_of_each(source, tmp_path/'data') == path
    (source/'circle/000.png').rename(source/'circle/new.png')
    with pytest.raises(InputError, match='changed since.*remove that folder'): few_of_each(source, tmp_path/'data')

@pytest.mark.parametrize('n', [0, -1, 1.5, True, 'all'])
def test_odd_numbers_are_refused(shapes, tmp_path, n):
    with pytest.raises(InputError, match='Give at least 1'): few_of_each(shapes, tmp_path, n)
    assert not list(tmp_path.iterdir())

def test_what_cannot_be_read_is_left_out(shapes, tmp_path, capsys):
    own = shutil.copytree(shapes, tmp_path/'own')
    first, second = list_images(own)[:2]
    first.write_bytes(first.read_bytes()[:60]), second.write_text('no picture')
    few = few_of_each(own, tmp_path)
    said = capsys.readouterr().out
    assert len(list_images(few)) == len(list_images(own)) - 2 and first.name in said and second.name in said
    assert few_of_each(own, tmp_path) == few and not capsys.readouterr().out, "once is enough"

def test_how_large_pictures_are(shapes, tmp_path):
    own = shutil.copytree(shapes, tmp_path/'own')
    for o in list_images(own)[:5]: o.write_text('no picture')
    assert short_side(own) == short_side(shapes) == 48 and type(short_side(own)) is int
    for o in list_images(own): o.write_text('no picture')
    with pytest.raises(InputError, match='check_data'): short_side(own)
