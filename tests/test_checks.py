"The scan, what it remembers, the copies it finds, and the report that comes of it"
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from imgcls_nb import scan as scan_module
from imgcls_nb.checks import DataReport, Finding, check_data, quarantine
from imgcls_nb.cli import main
from imgcls_nb.core import BadPictureError, InputError, list_images, open_image
from imgcls_nb.datasets import draw_shape
from imgcls_nb.pictures import Arrays, Members, PictureList, TarMember
from imgcls_nb.places import cache_folder
from imgcls_nb.scan import FLAGS, ROW, exact_groups, list_groups, look_at, near_groups, picture_pattern, scan_pictures


def photo(i, w=150, h=110):
    "A picture with coarse and fine structure; equal numbers give equal pictures"
    rng = np.random.default_rng(i)
    layers = [(rng.integers(0, 256, (n, n + 2, 3), dtype=np.uint8), share) for n, share in ((4, .5), (9, .3), (30, .2))]
    a = sum(np.asarray(Image.fromarray(o).resize((w, h), Image.Resampling.BICUBIC), np.float32)*share for o, share in layers)
    return Image.fromarray((a + rng.normal(0, 4, (h, w, 1))).clip(0, 255).astype(np.uint8))

def coded(im, kind='JPEG', **kwargs):
    out = io.BytesIO()
    im.save(out, kind, **kwargs)
    return out.getvalue()

def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, Image.Image): data.save(path)
    elif isinstance(data, bytes): path.write_bytes(data)
    else: path.write_text(data)
    return path

def listed(path):
    files = list_images(path)
    return PictureList(path, files, [0]*len(files), ('any',))

def named(scan, flag): return [scan.pics.name(i) for i in np.flatnonzero(scan.has(flag))]

@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp('scans')
    monkeypatch.setenv('IMGCLS_CACHE', str(folder))
    return folder/'scans'

@pytest.fixture
def looks(monkeypatch):
    "The sources that were looked at, in no particular order"
    seen, look, lock = [], scan_module.look_at, threading.Lock()
    def spy(source, decode):
        with lock: seen.append(os.path.basename(str(source)))
        return look(source, decode)
    monkeypatch.setattr(scan_module, 'look_at', spy)
    return seen

# What a look finds is what open_image finds

def reads(f, *args):
    try: f(*args)
    except Exception: return False
    return True

@pytest.mark.parametrize('how', [dict(), dict(progressive=True), dict(subsampling=0), dict(optimize=True),
                                 dict(restart_marker_blocks=7)], ids=str)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('size', [(500, 375), (90, 700)])
def test_damaged_jpegs_are_found_as_by_a_full_decode(size, mode, how):
    good, rng, verdicts = coded(photo(1, *size).convert(mode), quality=85, **how), np.random.default_rng(0), set()
    damaged = [good[:-n] for n in (1, 2, 3, 10, 300)] + [good[:int(len(good)*x)] for x in rng.random(6)]
    for _ in range(20):
        bad, n = bytearray(good), int(rng.integers(1, 60))
        at = int(rng.integers(0, len(good) - n))
        bad[at:at + n] = rng.integers(0, 256, n, dtype=np.uint8).tobytes() if rng.random() < .7 else bytes(n)
        damaged.append(bytes(bad))
    for data in (good, *damaged):
        verdicts.add(full := reads(open_image, data))
        assert reads(look_at, data) == full, len(data)
    assert verdicts == {True, False}, "the cases hold both kinds"

@pytest.mark.parametrize('kind', ['PNG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM'])
def test_other_formats_cut_short(kind):
    data = coded(photo(2), kind)
    for n in (len(data), len(data) - 3, len(data)//2, 40, 3):
        assert reads(look_at, data[:n]) == reads(open_image, data[:n]), n

BAD = {'empty.jpg': b'', 'page.jpg': b'<html>404</html>', 'half.png': coded(photo(1), 'PNG')[:900],
       'half.jpg': coded(photo(1))[:900], 'HALF.JPG': coded(photo(1), progressive=True)[:2000], 'ü (1).gif': b'GIF89a'}

@pytest.fixture
def mixed(tmp_path):
    for i in range(3): write(tmp_path/f'good/{i}.png', photo(i))
    for name, data in BAD.items(): write(tmp_path/'bad'/name, data)
    return tmp_path

def test_reasons_are_those_of_open_image(mixed):
    scan = scan_pictures(listed(mixed))
    assert {o.removeprefix('bad/') for o, _ in scan.bad} == set(BAD) and len(scan) == 3 + len(BAD)
    for name, why in scan.bad:
        with pytest.raises(BadPictureError) as e: open_image(mixed/name)
        assert str(e.value) == f'{mixed/name}: {why}'

def test_files_that_are_not_there_or_not_files(tmp_path):
    write(tmp_path/'a.png', photo(1))
    os.mkfifo(tmp_path/'pipe.png')
    (tmp_path/'folder.png').mkdir()
    (tmp_path/'loop.png').symlink_to('loop.png')
    (tmp_path/'gone.png').symlink_to('nowhere.png')
    names = 'a.png', 'pipe.png', 'folder.png', 'loop.png', 'gone.png', 'never.png'
    scan = scan_pictures(PictureList(tmp_path, [tmp_path/o for o in names], [0]*6, ('any',)))
    said = dict(scan.bad)
    assert set(said) == set(names[1:])
    assert said['pipe.png'] == said['folder.png'] == 'not a regular file'
    assert 'no such file' in said['gone.png'] and 'no such file' in said['never.png'] and 'loop.png' in said

def test_no_permission(tmp_path, monkeypatch):
    import builtins
    write(tmp_path/'a.png', photo(1))
    opened = builtins.open
    def refuse(file, *args, **kwargs): # root may read anything
        if str(file).endswith('a.png'): raise PermissionError(13, 'Permission denied')
        return opened(file, *args, **kwargs)
    with monkeypatch.context() as m:
        m.setattr(builtins, 'open', refuse)
        assert 'no permission to read it' in dict(scan_pictures(listed(tmp_path)).bad)['a.png']
    assert not scan_pictures(listed(tmp_path)).bad, "bad news is not remembered"

def test_too_many_pixels(tmp_path):
    write(tmp_path/'bomb.png', coded(Image.new('1', (13_000, 11_000)), 'PNG'))
    write(tmp_path/'large.png', coded(Image.new('1', (9_000, 6_000)), 'PNG'))
    scan = scan_pictures(listed(tmp_path))
    assert 'more than the limit' in dict(scan.bad)['bomb.png'] and list(scan.huge) == [False, True]

def test_what_pictures_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    im = photo(1)
    write(tmp_path/'rotated.jpg', coded(im, exif=exif))
    write(tmp_path/'broken exif.jpg', coded(im, exif=b'Exif\0\0II*\0\xff\xff\xff\xff'))
    write(tmp_path/'grey.jpg', im.convert('L'))
    write(tmp_path/'print.JPG', coded(im.convert('CMYK')))
    write(tmp_path/'palette.png', im.convert('P'))
    write(tmp_path/'alpha.png', im.convert('RGBA'))
    write(tmp_path/'deep.png', Image.fromarray(np.arange(40*50, dtype=np.uint16).reshape(40, 50)*30))
    write(tmp_path/'moving.gif', coded(im, 'GIF', save_all=True, append_images=[photo(2)]))
    write(tmp_path/'phone.jpg', coded(im, 'MPO', save_all=True, append_images=[photo(2)]))
    write(tmp_path/'tiny.png', photo(1, 40, 31))
    scan = scan_pictures(listed(tmp_path))
    assert not scan.bad
    assert named(scan, 'rotated') == ['rotated.jpg'] and named(scan, 'grey') == ['deep.png', 'grey.jpg']
    assert named(scan, 'cmyk') == ['print.JPG'] and named(scan, 'palette') == ['moving.gif', 'palette.png']
    assert named(scan, 'alpha') == ['alpha.png'] and named(scan, 'deep') == ['deep.png']
    assert named(scan, 'animated') == ['moving.gif']
    assert [scan.pics.name(i) for i in np.flatnonzero(scan.tiny)] == ['tiny.png']
    at = [scan.pics.name(i) for i in range(len(scan))].index('rotated.jpg')
    assert (scan.rows['width'][at], scan.rows['height'][at]) == (110, 150)
    assert scan.rows['bytes'].tolist() == [os.path.getsize(o) for o in list_images(tmp_path)]

def test_every_kind_of_source(tmp_path):
    im = photo(1)
    data, pixels = coded(im, 'PNG'), np.asarray(im)
    file = write(tmp_path/'a.png', data)
    with tarfile.open(tmp_path/'x.tar', 'w') as tar: tar.add(file, 'in/a.png')
    with tarfile.open(tmp_path/'x.tar') as tar: member = tar.getmembers()[0]
    there = TarMember(str(tmp_path/'x.tar'), 'in/a.png', member.offset_data, member.size)
    looks = [look_at(o) for o in (file, str(file), data, there, im, pixels)]
    assert len({o['pattern'].tobytes() for o in looks}) == 1
    assert {int(o['bytes']) for o in looks} == {len(data), 0}
    assert len({o['sha256'].tobytes() for o in looks[:4]}) == 1 and len({o['sha256'].tobytes() for o in looks[4:]}) == 1
    scan = scan_pictures(PictureList(tmp_path, [im, data, b'', there, pixels[..., 0], pixels.astype(float)], [0]*6, ('any',)))
    assert sorted(scan.reasons) == [2, 5]
    scan = scan_pictures(PictureList(tmp_path, Arrays(np.stack([pixels]*3)), [0]*3, ('any',)))
    assert not scan.bad and len(list_groups(exact_groups(scan.rows))) == 1

# What is remembered

def test_a_second_scan_decodes_nothing(mixed, looks):
    first = scan_pictures(listed(mixed/'good'))
    assert sorted(looks) == ['0.png', '1.png', '2.png']
    looks.clear()
    second = scan_pictures(listed(mixed/'good'))
    assert looks == [] and second.rows.tobytes() == first.rows.tobytes()

def test_what_changed_is_looked_at_again(mixed, looks):
    scan_pictures(listed(mixed/'good'))
    looks.clear()
    a, b = mixed/'good/0.png', mixed/'good/1.png'
    write(a, photo(10))
    data = b.read_bytes()
    b.write_bytes(b'GIF' + data[3:]) # the same size
    os.utime(b, ns=(1, 10**18))
    shutil.copy2(mixed/'good/2.png', mixed/'good/new.png')
    scan = scan_pictures(listed(mixed/'good'))
    assert sorted(looks) == ['0.png', '1.png', 'new.png'] and [o for o, _ in scan.bad] == ['1.png']
    assert list_groups(exact_groups(scan.rows))[0].tolist() == [2, 3]

def test_lists_of_one_folder_share_what_is_known(mixed, looks):
    pics = listed(mixed/'good')
    scan_pictures(pics.take([0, 1]))
    scan_pictures(pics.take([2]))
    (mixed/'good/0.png').unlink()
    looks.clear()
    assert len(scan_pictures(pics.take([2, 1]))) == 2 and looks == []
    write(mixed/'good/0.png', photo(0))
    scan_pictures(listed(mixed/'good'))
    assert looks == ['0.png']

def test_members_of_tar_files_are_remembered(tmp_path, looks):
    for part in ('a', 'b'):
        with tarfile.open(tmp_path/f'{part}.tar', 'w') as tar:
            for i in range(3): tar.add(write(tmp_path/f'{i}.png', photo(i)), f'{i}.png')
    def pics(part):
        with tarfile.open(tmp_path/f'{part}.tar') as tar: ms = tar.getmembers()
        place = Members([tmp_path/f'{part}.tar'], [0]*3, [m.name for m in ms], [m.offset_data for m in ms], [m.size for m in ms])
        return PictureList(tmp_path, place, [0]*3, ('any',))
    for part in 'ab': scan_pictures(pics(part))
    looks.clear()
    for part in 'ab': assert not scan_pictures(pics(part)).bad
    assert looks == []
    os.utime(tmp_path/'a.tar', ns=(1, 10**18))
    for part in 'ab': scan_pictures(pics(part))
    assert sorted(looks) == ['a.tar:0.png', 'a.tar:1.png', 'a.tar:2.png']

@pytest.mark.parametrize('damage', [lambda b: b'', lambda b: b[:len(b)//2], lambda b: b'x'*99,
                                    lambda b: b[:200] + b'\1'*40 + b[240:]], ids=['empty', 'half', 'other', 'changed'])
def test_a_damaged_memory_is_made_again(mixed, looks, cache, damage):
    first = scan_pictures(listed(mixed/'good'))
    file, = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    again = scan_pictures(listed(mixed/'good'))
    assert len(looks) == 6 and again.rows.tobytes() == first.rows.tobytes()
    scan_pictures(listed(mixed/'good'))
    assert len(looks) == 6 and [o.name for o in cache.iterdir()] == [file.name]

def test_a_pickle_is_not_read(mixed, looks, cache):
    scan_pictures(listed(mixed/'good'))
    file, = cache.iterdir()
    np.savez(file, head=np.array(['x'], dtype=object), keys=np.array(['x'], dtype=object), rows=np.zeros(3, ROW))
    assert len(scan_pictures(listed(mixed/'good'))) == 3 and len(looks) == 6

def test_another_decoder_looks_again(mixed, looks, monkeypatch):
    scan_pictures(listed(mixed/'good'))
    monkeypatch.setattr(scan_module, '_HEAD', 'pillow 99')
    scan_pictures(listed(mixed/'good'))
    assert len(looks) == 6

def test_nowhere_to_remember(mixed, monkeypatch, looks):
    monkeypatch.setenv('IMGCLS_CACHE', str(write(mixed/'file', 'x')))
    for _ in range(2): assert not scan_pictures(listed(mixed/'good')).bad
    assert len(looks) == 6

def test_the_place_of_the_memory(monkeypatch, tmp_path):
    assert cache_folder('scans').parent.as_posix() == os.environ['IMGCLS_CACHE']
    monkeypatch.delenv('IMGCLS_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder('scans') == tmp_path/'imgcls_nb/scans'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_folder('scans') == tmp_path/'.cache/imgcls_nb/scans'

def test_an_interrupted_scan_goes_on(tmp_path, monkeypatch):
    for i in range(40): write(tmp_path/f'{i:02}.png', photo(i, 40, 40))
    bar, seen = scan_module._with_bar, []
    def interrupted(items, n, progress):
        for k, o in enumerate(bar(items, n, progress)):
            if k == 10: raise KeyboardInterrupt
            yield o
    with monkeypatch.context() as m:
        m.setattr(scan_module, '_with_bar', interrupted)
        with pytest.raises(KeyboardInterrupt): scan_pictures(listed(tmp_path))
    look = scan_module.look_at
    monkeypatch.setattr(scan_module, 'look_at', lambda source, decode: seen.append(source) or look(source, decode))
    assert not scan_pictures(listed(tmp_path)).bad and len(seen) == 30

def test_names_and_links(tmp_path, looks):
    for name in ('ü ñ.JPG', 'a b/c d.Jpeg', '日本/x.png'): write(tmp_path/name, photo(len(name)))
    (tmp_path/'a b/loop').symlink_to(tmp_path)
    (tmp_path/'link.png').symlink_to('日本/x.png')
    with open(os.fsencode(tmp_path) + b'/latin-\xfc.png', 'wb') as f: f.write(coded(photo(1), 'PNG'))
    for _ in range(2): assert (len(scan := scan_pictures(listed(tmp_path))), scan.bad) == (5, [])
    assert len(looks) == 5 and [len(o) for o in list_groups(exact_groups(scan.rows))] == [2]

# Copies

DISTORTIONS = dict(
    half=lambda im: im.resize((im.width//2, im.height//2)), larger=lambda im: im.resize((im.width*7//4, im.height*7//4)),
    recompressed=lambda im: Image.open(io.BytesIO(coded(im, quality=30))),
    bright=lambda im: ImageEnhance.Brightness(im).enhance(1.15), pale=lambda im: ImageEnhance.Contrast(im).enhance(.7),
    cropped=lambda im: im.crop((2, 1, im.width - 2, im.height - 1)), grey=lambda im: im.convert('L'))

def rows_of(pictures): return np.array([look_at(o) for o in pictures], ROW)

@pytest.mark.parametrize('name', DISTORTIONS)
def test_altered_copies_are_found_and_strangers_are_not(name):
    originals = [photo(i) for i in range(60)]
    groups = list_groups(near_groups(rows_of([*originals, *map(DISTORTIONS[name], originals)])))
    pairs = {tuple(o.tolist()) for o in groups}
    assert not pairs - {(i, i + 60) for i in range(60)}, "no strangers"
    assert len(pairs) >= 57, "nearly all copies"

def test_an_upright_copy_of_a_turned_picture():
    exif = Image.Exif()
    exif[0x0112] = 8
    im = photo(3)
    turned = coded(im.transpose(Image.Transpose.ROTATE_270), exif=exif)
    assert len(set(near_groups(rows_of([im, turned, photo(4)])))) == 2

def test_flat_pictures_are_copies_by_bytes_only():
    flat = [Image.new('RGB', (50, 40), c) for c in ('black', 'white', 'gray')] + [Image.new('L', (64, 64), 3)]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 3, (50, 50), dtype=np.uint8))
    rows = rows_of([*map(coded, flat), coded(noise), coded(flat[0])])
    assert not rows['pattern'].any()
    assert [o.tolist() for o in list_groups(near_groups(rows))] == [[0, 5]]

def test_look_alikes_are_no_copies():
    "Shapes of one kind differ in place, size and colour only, and still are different pictures"
    rows = rows_of([draw_shape(kind, i) for kind in ('circle', 'square', 'triangle') for i in range(100)])
    assert len(list_groups(near_groups(rows))) <= 5

def test_copies_of_copies_are_one_group():
    im = photo(5)
    chain = [im, im.resize((75, 55)), Image.open(io.BytesIO(coded(im.resize((75, 55)), quality=50))), photo(6)]
    assert [o.tolist() for o in list_groups(near_groups(rows_of(chain)))] == [[0, 1, 2]]

def test_a_hundred_thousand():
    n, rng = 100_000, np.random.default_rng(0)
    a = rng.normal(0, 1, (n, 64))*np.linspace(2, .5, 64)
    rows = np.zeros(n, ROW)
    rows['pattern'] = np.round(a/abs(a).max(1, keepdims=True)*127)
    rows['pattern'][-300:] = (rows['pattern'][:300] + rng.integers(-2, 3, (300, 64))).clip(-127, 127)
    rows['pattern'][300:400] = rows['pattern'][300] # many equal ones are no burden
    rows['sha256'][:, :8] = np.arange(1, n + 1)[:, None].view('u1')
    groups = list_groups(near_groups(rows))
    assert len(groups) == 301 and sorted(map(len, groups))[-2:] == [2, 100]

def test_keys_at_the_edges():
    patterns = np.where(np.arange(4)[:, None] % 2, 127, -127)*np.ones((1, 64), np.int64)
    rows = np.zeros(4, ROW)
    rows['pattern'] = patterns + np.arange(64)*np.sign(-patterns)//4 # all bits set, and none
    rows['sha256'][:, 0] = np.arange(1, 5)
    assert [o.tolist() for o in list_groups(near_groups(rows))] == [[0, 2], [1, 3]]

@pytest.mark.parametrize('flipped', [[0], [0, 4, 8], [0, 1, 2, 3], [0, 4, 1, 5, 2, 6, 3]], ids=len)
def test_hashes_that_differ_in_up_to_seven_bits(flipped):
    rows = np.zeros(2, ROW)
    rows['pattern'] = np.where(np.random.default_rng(0).random(64) < .5, 100, -100)
    rows['pattern'][:, flipped] = 2
    rows['pattern'][1, flipped] = -2
    rows['sha256'][:, 0] = 1, 2
    assert len(list_groups(near_groups(rows))) == 1

@pytest.mark.parametrize('n', [0, 1])
def test_groups_of_few(n):
    rows = np.zeros(n, ROW)
    assert list_groups(exact_groups(rows)) == list_groups(near_groups(rows)) == []

def test_what_cannot_be_read_is_no_copy(mixed):
    shutil.copy(mixed/'bad/half.png', mixed/'bad/half2.png')
    scan = scan_pictures(listed(mixed/'bad'))
    assert len(scan.bad) == len(BAD) + 1 and not list_groups(near_groups(scan.rows))

@pytest.mark.parametrize('size', [(1, 1), (1, 500), (700, 2), (8, 8)])
def test_patterns_of_odd_sizes(size):
    assert picture_pattern(photo(1, *size).convert('L')).shape == (64,)

# The report

def kinds(found): return [o.kind for o in found]

def of(found, kind): return next(o for o in found if o.kind == kind)

@pytest.fixture
def clean(tmp_path):
    "Two classes on two sides, without fault"
    for k, (split, n) in enumerate((('train', 12), ('valid', 6))):
        for c in range(2):
            for i in range(n): write(tmp_path/f'data/{split}/{"ab"[c]}/{i:02}.jpg', photo(1000*k + 100*c + i, 80, 60))
    return tmp_path/'data'

def test_a_clean_set(clean):
    report = check_data(clean)
    assert report.ok and report.notes == () and 'No problems.' in report.to_text()
    assert report.counts == dict(train=dict(a=12, b=12), valid=dict(a=6, b=6)) and report.sizes.tolist() == [[60, 80]]*36
    assert check_data(clean/'train', valid=.25).counts == dict(train=dict(a=9, b=9), valid=dict(a=3, b=3))

def test_planted_faults(clean):
    for name, data in BAD.items(): write(clean/'train/a'/name, data)
    shutil.copy(clean/'train/a/00.jpg', clean/'valid/a/leak.jpg')
    shutil.copy(clean/'train/a/01.jpg', clean/'valid/b/leak and conflict.jpg')
    shutil.copy(clean/'train/a/02.jpg', clean/'train/b/conflict.jpg')
    shutil.copy(clean/'train/a/03.jpg', clean/'train/a/twice.jpg')
    Image.open(clean/'train/b/04.jpg').resize((60, 45)).save(clean/'valid/b/near.png')
    Image.open(clean/'train/b/05.jpg').resize((60, 45)).save(clean/'train/a/near conflict.png')
    Image.open(clean/'train/b/06.jpg').resize((60, 45)).save(clean/'train/b/near twice.png')
    (clean/'train/c').mkdir()
    write(clean/'train/c/photo.nef', b'x')
    write(clean/'train/loose.jpg', photo(1))
    report = check_data(clean)
    assert kinds(report.problems) == ['empty-class', 'unreadable', 'leakage', 'label-conflict']
    assert {'other-files', 'loose', 'copies', 'near-leakage', 'near-label-conflict', 'near-copies'} <= set(kinds(report.notes))
    assert of(report.problems, 'empty-class').items == ('c',) and of(report.notes, 'other-files').items == ('c/photo.nef',)
    assert of(report.notes, 'loose').items == ('loose.jpg',)
    bad = of(report.problems, 'unreadable')
    assert len(bad.items) == len(BAD) and 'above 5% training stops' in bad.text
    first, second = of(report.problems, 'leakage').items
    assert first == 'train: a/01.jpg (a) = valid: b/leak and conflict.jpg (b), labels disagree', "these come first"
    assert second == 'train: a/00.jpg (a) = valid: a/leak.jpg (a)'
    assert of(report.problems, 'label-conflict').items == ('train: a/02.jpg (a) = train: b/conflict.jpg (b), labels disagree',)
    assert of(report.notes, 'copies').items == ('train: a/03.jpg (a) = train: a/twice.jpg (a)',)
    assert of(report.notes, 'near-leakage').items == ('train: b/04.jpg (b) = valid: b/near.png (b)',)
    conflict = 'train: a/near conflict.png (a) = train: b/05.jpg (b), labels disagree'
    assert of(report.notes, 'near-label-conflict').items == (conflict,)
    assert of(report.notes, 'near-copies').items == ('train: b/06.jpg (b) = train: b/near twice.png (b)',)

def test_json_round_trip(clean):
    write(clean/'train/a/<b>&"ü.jpg', b'')
    report = check_data(clean)
    again = json.loads(report.to_json())
    assert again == report.to_dict() and again['pictures'] == dict(train=25, valid=12) and not again['ok']
    assert again['problems'][0]['items'] == ['a/<b>&"ü.jpg: not a picture that can be read (the file is empty).']
    page = report._repr_html_()
    assert '&lt;b&gt;&amp;' in page and '<b>&"' not in page

def test_names_that_are_no_text(clean):
    with open(os.fsencode(clean) + b'/train/a/\xfc\x1b[31m\n.jpg', 'wb') as f: f.write(b'')
    report = check_data(clean)
    report.to_json().encode() and report._repr_html_().encode()
    assert r'a/\udcfc\x1b[31m\n.jpg: not a picture' in report.to_text() and '\x1b' not in report.to_text()

def test_long_lists_end():
    finding = Finding('unreadable', 'Bad.', tuple(map(str, range(47))))
    report = DataReport('x', dict(train={}), (finding,), (), np.zeros((0, 2)))
    assert finding.lines(10)[-1] == '  and 37 more' and len(finding.lines(10)) == 12 and len(finding.lines(47)) == 48
    assert 'and 37 more' in report.to_text() and 'and 37 more' in report._repr_html_()
    assert repr(report) == str(report) == report.to_text() # no wall in a terminal
    assert len(report.to_dict()['problems'][0]['items']) == 47
    assert report.plot().axes

def test_the_figure(clean):
    left, right = check_data(clean).plot().axes
    assert sum(o.get_height() for o in left.patches) == 36
    assert [o.get_height() for o in right.patches] == [12, 12, 6, 6]

# What training refuses is a finding

def test_a_class_that_training_does_not_have(clean):
    for i in range(2): write(clean/f'valid/star/{i}.jpg', photo(50 + i))
    write(clean/'train/a/empty.jpg', b'')
    report = check_data(clean)
    assert kinds(report.problems) == ['class-not-in-train', 'unreadable'] and report.problems[0].items == ('star: 2 pictures',)
    assert report.counts['valid'] == dict(a=6, b=6, star=2)

def test_a_class_that_validation_does_not_have(clean):
    shutil.rmtree(clean/'valid/b')
    report = check_data(clean)
    assert report.ok and of(report.notes, 'class-not-in-valid').items == ('b',)

def test_a_single_class(clean):
    for split in ('train', 'valid'): shutil.rmtree(clean/split/'b')
    report = check_data(clean)
    assert kinds(report.problems) == ['one-class'] and report.counts == dict(train=dict(a=12), valid=dict(a=6))
    report = check_data(clean/'train')
    assert kinds(report.problems) == ['one-class'] and sum(len(o) for o in report.counts.values()) == 2

def test_one_picture_of_each_class(tmp_path):
    for c in 'ab': write(tmp_path/c/'1.jpg', photo(ord(c)))
    report = check_data(tmp_path)
    assert kinds(report.problems) == ['refused'] and 'Nothing is left to validate on' in report.problems[0].text
    assert report.counts == dict(train=dict(a=1, b=1), valid=dict(a=0, b=0))

@pytest.mark.parametrize('name, says', [('notes.txt', 'holds no pictures'), ('1.jpg', 'no class folders')])
def test_no_classes(tmp_path, name, says):
    write(tmp_path/name, coded(photo(1)))
    report = check_data(tmp_path)
    assert kinds(report.problems) == ['refused'] and says in report.problems[0].text
    json.loads(report.to_json()), report._repr_html_(), report.to_text(), report.plot()

def test_an_empty_validation_folder(clean):
    shutil.rmtree(clean/'valid')
    (clean/'valid').mkdir()
    report = check_data(clean)
    assert kinds(report.problems) == ['refused'] and report.counts['train'] == dict(a=12, b=12)

def test_number_of_classes(clean):
    report = check_data(clean, num_classes=3)
    assert kinds(report.problems) == ['refused'] and 'num_classes is 3' in report.problems[0].text and len(report.sizes) == 36

def test_list_files(clean):
    lines = [f'train/{c}/{i:02}.jpg {"ab".index(c)}' for c in 'ab' for i in range(12)]
    write(clean/'train.txt', '\n'.join(lines))
    write(clean/'valid.txt', 'valid/a/00.jpg 0\nvalid/b/00.jpg 1\ntrain/a/00.jpg 1\n')
    write(clean/'names.txt', '0 apple\n1 bear\n2 cat\n')
    report = check_data(clean, 'train.txt', 'valid.txt', label_file='names.txt')
    assert kinds(report.problems) == ['leakage'] and report.counts['valid'] == dict(apple=1, bear=2, cat=0)
    assert report.problems[0].items == ('train: train/a/00.jpg (apple) = valid: train/a/00.jpg (bear), labels disagree',)
    assert kinds(report.notes) == ['class-without-pictures'], "folders are no classes here"
    write(clean/'train.txt', '\n'.join([*lines, 'nowhere.jpg 1', 'train/a/01.jpg x']))
    report = check_data(clean, 'train.txt', 'valid.txt')
    assert kinds(report.problems) == ['refused', 'leakage'] and 'line 25: there is no file' in report.problems[0].text
    assert report.counts['train'] == {'0': 12, '1': 12}, "the good lines are looked at"

def test_a_refused_plan_is_looked_at_as_it_says(clean):
    report = check_data(clean, num_classes=3, fold=(0, 3))
    assert kinds(report.problems) == ['refused'] and report.counts == dict(train=dict(a=8, b=8), valid=dict(a=4, b=4))
    report = check_data(clean, num_classes=3, valid=.5, split='grouped', group=r'(\d)\.jpg')
    assert kinds(report.problems) == ['refused'] and sum(report.counts['valid'].values()) == 12

def test_lists_beside_the_pictures_with_a_bad_line(tmp_path):
    for i in range(4): write(tmp_path/f'jpg/{i}.jpg', photo(i))
    write(tmp_path/'train_list.txt', 'jpg/0.jpg 0\njpg/1.jpg one\njpg/3.jpg 1\n')
    write(tmp_path/'val_list.txt', 'jpg/2.jpg 0\ngone.jpg 1\njpg/0.jpg 1\n')
    report = check_data(tmp_path)
    assert kinds(report.problems) == ['refused', 'refused', 'leakage']
    assert [f"{o}_list.txt' has 1 bad line" in p.text for o, p in zip(('train', 'val'), report.problems)] == [True, True]
    assert report.counts == dict(train={'0': 1, '1': 1}, valid={'0': 1, '1': 1}), "a folder of pictures is no class here"

def test_a_numbered_class_that_training_does_not_have(tmp_path):
    for i in range(4): write(tmp_path/f'jpg/{i}.jpg', photo(i))
    write(tmp_path/'train_list.txt', 'jpg/0.jpg 0\njpg/1.jpg 2\n')
    write(tmp_path/'val_list.txt', 'jpg/2.jpg 0\njpg/3.jpg 1\n')
    report = check_data(tmp_path)
    assert kinds(report.problems) == ['class-not-in-train'] and report.problems[0].items == ('1: 1 picture',)

def test_tables(clean):
    rows = [(f'train/{c}/{i:02}.jpg', c) for c in 'ab' for i in range(12)]
    write(clean/'t.csv', 'path,label\n' + ''.join(f'{o},{c}\n' for o, c in rows) + 'gone.jpg,a\n')
    for report in (check_data(clean, 't.csv', .25), check_data(clean/'t.csv', valid=.25)):
        assert kinds(report.problems) == ['refused'] and 'row 25: there is no file' in report.problems[0].text
        assert report.counts == dict(train=dict(a=9, b=9), valid=dict(a=3, b=3))
    df = pd.DataFrame(rows, columns=['path', 'label'])
    assert check_data(clean, valid=.25, table=df).counts['train'] == dict(a=9, b=9)
    report = check_data(clean, valid=.25, table=df.rename(columns=dict(label='what')))
    assert kinds(report.problems) == ['refused'] and 'no column for the label' in report.problems[0].text and not report.classes

def test_a_tar_file(tmp_path):
    with tarfile.open(tmp_path/'x.tar', 'w') as t:
        for i in range(8):
            data = coded(photo(i))
            info = tarfile.TarInfo(f'{"ab"[i % 2]}/{i}.jpg')
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    report = check_data(tmp_path/'x.tar', valid=.25)
    assert report.ok and report.counts == dict(train=dict(a=3, b=3), valid=dict(a=1, b=1))
    (tmp_path/'x.tar').write_bytes(b'junk'*300)
    assert kinds(check_data(tmp_path).problems) == ['refused']

@pytest.mark.parametrize('name, text', [('l.txt', 'gone.jpg 0\n'), ('l.csv', 'path,label\ngone.jpg,a\n')])
def test_not_one_good_line(tmp_path, name, text):
    write(tmp_path/name, text)
    for report in (check_data(tmp_path, name), check_data(tmp_path, name, .5)):
        assert {*kinds(report.problems)} == {'refused'} and 'there is no file' in report.problems[0].text

def test_columns_do_not_make_folders_classes(tmp_path):
    for i in range(4): write(tmp_path/f'im/{i}.jpg', photo(i))
    write(tmp_path/'t.csv', 'path,what\nim/0.jpg,a\n')
    report = check_data(tmp_path, columns=dict(label='whta'))
    assert kinds(report.problems) == ['refused'] and "Did you mean 'what'" in report.problems[0].text

def test_a_picture_of_two_labels_in_a_list(tmp_path):
    for i in range(4): write(tmp_path/f'jpg/{i}.jpg', photo(i))
    write(tmp_path/'l.txt', 'jpg/0.jpg 0\njpg/1.jpg 1\njpg/0.jpg 1\njpg/2.jpg 0\njpg/3.jpg 1\n')
    report = check_data(tmp_path, 'l.txt', .5)
    assert kinds(report.problems) == ['refused'] and "line 3: 'jpg/0.jpg' has the label 1 here, and 0 in line 1" in str(report)

def test_classes_of_one_name(clean):
    write(clean/'l.txt', '\n'.join(f'train/a/{i:02}.jpg {i % 3}' for i in range(12)))
    write(clean/'n.txt', '0 crane\n1 crane\n2 dog\n')
    report = check_data(clean, 'l.txt', .25, label_file='n.txt')
    assert report.counts == {k: {'crane (0)': n, 'crane (1)': n, 'dog': n} for k, n in (('train', 3), ('valid', 1))}

@pytest.mark.parametrize('name', ['test/a/t.jpg', 'test/t.jpg', 'Testing/deep/b/t.jpg'])
def test_copies_in_the_test_folder(clean, name):
    write(clean/name, photo(99999))
    assert check_data(clean).ok
    shutil.copy(clean/'train/a/03.jpg', clean/name)
    report = check_data(clean)
    label = ' (a)' if '/a/' in name else ''
    assert kinds(report.problems) == ['leakage'] and list(report.counts) == ['train', 'valid']
    assert report.problems[0].items == (f'train: a/03.jpg (a) = test: {name.partition("/")[2]}{label}',)
    (clean/'train').rename(clean/'pictures')
    assert check_data(clean/'pictures', valid=.25).ok, "a test folder elsewhere is none of this set"

def test_permissions(clean, monkeypatch):
    scan = os.scandir
    def scandir(path):
        if str(path).endswith('train/a'): raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)
    with monkeypatch.context() as m, pytest.raises(InputError, match="train/a' cannot be read .Permission denied"):
        m.setattr(os, 'scandir', scandir)
        check_data(clean)

def test_palettes_and_dark_pictures(clean):
    photo(1).convert('P').save(clean/'train/a/palette.png')
    dark = np.random.default_rng(0).integers(0, 4096, (60, 80), dtype=np.uint16)
    Image.fromarray(dark).save(clean/'train/b/twelve bits.png')
    notes = check_data(clean).notes
    assert of(notes, 'palette').items == ('a/palette.png',) and of(notes, 'dim').items == ('b/twelve bits.png',)

def test_sizes_in_every_form(clean):
    for k, (w, h) in enumerate(((64, 64), (63, 64), (300, 200))): write(clean/f'train/a/x{k}.jpg', photo(900 + k, w, h))
    report = check_data(clean)
    assert report.size_counts == {32: 1, 64: 37, 128: 1} # 80 x 60 is 69 squared
    line = 'sizes, as the square root of height x width in pixels: 32 to 63: 1, 64 to 127: 37, 128 to 255: 1'
    assert line in report.to_text() and line in report._repr_html_()
    assert json.loads(report.to_json())['size_counts'][0] == {'from': 32, 'below': 64, 'pictures': 1}

def test_imbalance(clean):
    for i in range(40): write(clean/f'train/a/more{i}.jpg', photo(500 + i, 80, 60))
    for i in range(2, 12): (clean/f'train/b/{i:02}.jpg').unlink()
    report = check_data(clean)
    assert report.ok and kinds(report.notes) == ['imbalance', 'few'] and '26.0 times' in report.notes[0].text

@pytest.mark.parametrize('call, says', [
    (dict(path='nowhere'), "no folder or file 'nowhere'"), (dict(train='nowhere'), "There is no 'nowhere'"),
    (dict(valid='nowhere'), "There is no 'nowhere'"), (dict(valid=0), 'is no share'), (dict(valid=1.5), 'is no share'),
    (dict(split='statified'), "Did you mean 'stratified'"), (dict(label_file='none.txt'), 'none.txt'),
    (dict(fold=(3, 2)), 'is no fold'), (dict(sed=1), "Did you mean 'seed'"), (dict(seed='x'), 'seed')], ids=str)
def test_slips_in_the_call(clean, call, says):
    with pytest.raises(InputError, match=says): check_data(**dict(path=clean) | call)

# The quarantine

def many(tmp_path, bad, good=40):
    for i in range(good): write(tmp_path/f'{"ab"[i % 2]}/{i:02}.png', Image.fromarray(draw_shape('circle', i)))
    for i in range(bad): write(tmp_path/f'a/bad{i}.png', b'')
    files = list_images(tmp_path)
    return PictureList(tmp_path, files, ['ab'.index(o.parent.name) for o in files], ('a', 'b'))

def test_few_are_left_out(tmp_path):
    good, bad = quarantine(pics := many(tmp_path, 2))
    assert len(pics) == 42 and bad == [(f'a/bad{i}.png', 'not a picture that can be read (the file is empty).') for i in range(2)]
    assert good.counts() == dict(a=20, b=20) and not any('bad' in good.name(i) for i in range(40))
    assert quarantine(good) == (good, [])

def test_the_limit(tmp_path):
    pics = many(tmp_path, 3)
    with pytest.raises(InputError, match=r'3 pictures of 43 in .* at most 5% are left out') as e: quarantine(pics)
    assert all(f'a/bad{i}.png: ' in str(e.value) for i in range(3))
    assert len(quarantine(pics, limit=.1)[1]) == 3

def test_one_bad_picture_stops_nothing(tmp_path):
    assert len(quarantine(many(tmp_path, 1, 8))[0]) == 8
    assert 'Training leaves them out' in str(check_data(tmp_path, valid=.5))
    with pytest.raises(InputError, match='2 pictures of 10 .* at most 5% are left out, or one'): quarantine(many(tmp_path, 2, 8))

def test_all_bad_pictures_in_one_error(tmp_path):
    with pytest.raises(InputError, match='3 pictures of 43') as e: quarantine(many(tmp_path, 3), 'raise')
    assert [o.split(':')[0].strip() for o in str(e.value).splitlines()[1:]] == [f'a/bad{i}.png' for i in range(3)]
    with pytest.raises(InputError, match="on_bad='skip' is unknown"): quarantine(many(tmp_path, 3), 'skip')

def test_a_class_that_loses_all(tmp_path):
    pics = many(tmp_path, 1)
    labels = [2 if 'bad' in pics.name(i) else int(pics.labels[i]) for i in range(len(pics))]
    pics = PictureList(tmp_path, pics.place, labels, ('a', 'b', 'c'))
    with pytest.raises(InputError, match="every picture of 'c'"): quarantine(pics)
    (tmp_path/'c').mkdir()
    shutil.move(tmp_path/'a/bad0.png', tmp_path/'c/bad0.png')
    assert 'lost-class' in kinds(check_data(tmp_path, valid=.3).problems)

def test_arrays_need_no_look(looks, tmp_path):
    pics = PictureList(tmp_path, Arrays(np.zeros((5, 28, 28), np.uint8)), [0]*5, ('a',))
    assert quarantine(pics) == (pics, []) and not looks

# The verb

def run(capsys, *args):
    try: status = main([*map(str, args)])
    except SystemExit as e: status = e.code
    out, err = capsys.readouterr()
    assert 'Traceback' not in err and 'defect' not in err
    return status, out, err

def test_exit_statuses(clean, capsys, tmp_path):
    assert run(capsys, 'check-data', clean) == (0, check_data(clean).to_text() + '\n', '')
    for i in range(3, 12): (clean/f'train/b/{i:02}.jpg').unlink()
    status, out, _ = run(capsys, 'check-data', clean, '--json', tmp_path/'report.json')
    assert status == 0 and 'note: ' in out and json.loads((tmp_path/'report.json').read_text(encoding='utf-8'))['ok']
    for i in range(12): write(clean/f'train/a/bad{i}.jpg', b'')
    status, out, _ = run(capsys, 'check-data', clean, '--limit', 2)
    assert status == 1 and 'PROBLEM: 12 pictures of train' in out and 'and 10 more' in out
    assert run(capsys, 'check-data', clean/'train', '--valid', '0.3')[0] == 1
    status, out, _ = run(capsys, 'check-data', clean, '--source', 'shards')
    assert status == 1 and 'holds no tar files to train on' in out

def test_wrong_use(clean, capsys):
    for args in ((clean/'none',), (), (clean, '--valid', 'nowhere'), (clean, '--valid', '7'), (clean, '--json', clean),
                 (clean, '--what')):
        status, out, err = run(capsys, 'check-data', *args)
        assert status == 2 and not out and err, args

def test_a_process_of_its_own(clean):
    write(clean/'valid/star/1.jpg', photo(3))
    done = subprocess.run([sys.executable, '-m', 'imgcls_nb.cli', 'check-data', str(clean)], capture_output=True, text=True)
    assert done.returncode == 1 and 'star: 1 picture' in done.stdout and not done.stderr

def test_flags_fit(): assert sum(FLAGS.values()) < 2**16 and ROW.itemsize < 150

def test_a_search_that_was_cut_short_says_so(shapes, monkeypatch):
    from imgcls_nb import checks
    assert 'near-cut' not in [o.kind for o in check_data(shapes).notes]
    monkeypatch.setattr(checks, 'near_groups', lambda rows, return_cut: (np.arange(len(rows)), 7))
    found = next(o for o in check_data(shapes).notes if o.kind == 'near-cut')
    assert '7 pictures look so much alike that not all were compared' in found.text
