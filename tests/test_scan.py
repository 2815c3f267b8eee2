"What a scan remembers, what it makes of deep pictures, and how long a search for copies may take"
import os
from contextlib import suppress
from itertools import count
from types import SimpleNamespace

import numpy as np
import PIL
import pytest
import simplejpeg
from PIL import Image, ImageFile

from imgcls_nb import scan as scan_module
from imgcls_nb.core import open_image
from imgcls_nb.decode import Need, decode
from imgcls_nb.pictures import PictureList
from imgcls_nb.scan import ROW, list_groups, look_at, near_groups, scan_pictures


@pytest.fixture(autouse=True)
def memory(monkeypatch, tmp_path): monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path/'memory'))

def save(path, pixels, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **kwargs)
    return path

def noise(i, h=40, w=50, high=256, kind=np.uint8): return np.random.default_rng(i).integers(0, high, (h, w), kind)

def scanned(folder, **kwargs):
    files = sorted(map(str, folder.iterdir()))
    return scan_pictures(PictureList(folder, files, [0]*len(files), ('any',)), **kwargs)

# What is remembered

@pytest.fixture
def looks(monkeypatch):
    seen = []
    monkeypatch.setattr(scan_module, 'look_at', lambda *args: seen.append(args[0]) or look_at(*args))
    return seen

def test_a_change_that_hides_is_seen(tmp_path, looks):
    file = save(tmp_path/'data/a.bmp', noise(0))
    first, stat = scanned(tmp_path/'data'), os.stat(file)
    save(file, noise(1))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (os.stat(file).st_size, os.stat(file).st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert (scanned(tmp_path/'data').rows['sha256'] != first.rows['sha256']).any() and len(looks) == 2
    scanned(tmp_path/'data')
    assert len(looks) == 2

@pytest.mark.parametrize('owner, name, value', [
    (PIL, '__version__', '99'), (simplejpeg, '__version__', '99'), (ImageFile, 'LOAD_TRUNCATED_IMAGES', True)])
def test_another_decoder_looks_again(tmp_path, looks, monkeypatch, owner, name, value):
    save(tmp_path/'data/a.png', noise(0))
    scanned(tmp_path/'data')
    monkeypatch.setattr(owner, name, value)
    for _ in range(2): scanned(tmp_path/'data')
    assert len(looks) == 2

@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_a_full_disk_gets_no_drafts(tmp_path, monkeypatch, error):
    save(tmp_path/'data/a.png', noise(0))
    def stopped(file, **kwargs):
        file.write(b'half')
        raise error
    monkeypatch.setattr(np, 'savez', stopped)
    with suppress(KeyboardInterrupt): scanned(tmp_path/'data')
    assert os.listdir(tmp_path/'memory/scans') == []

def test_a_bar_is_taken_away(tmp_path, monkeypatch):
    for i in range(3): save(tmp_path/f'data/{i}.png', noise(i))
    shown = []
    def bar(items, total, leave):
        shown.append((total, leave))
        yield from items
        shown.append('gone')
    for name, o in dict(progress_bar=bar, IN_NOTEBOOK=True, time=SimpleNamespace(monotonic=count(step=2).__next__)).items():
        monkeypatch.setattr(scan_module, name, o)
    assert len(scanned(tmp_path/'data').reasons) == 0 and shown == [(2, False), 'gone']

@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
def test_sizes_are_upright(tmp_path, suffix, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    row = look_at(save(tmp_path/f'a.{suffix}', noise(0, 40, 90), exif=exif))
    assert (row['width'], row['height']) == open_image(tmp_path/f'a.{suffix}').size == ((40, 90) if turn > 4 else (90, 40))

# Deep pictures

@pytest.mark.parametrize('decoder', [None, lambda o: decode(o, Need((8, 8), area=0))], ids=['pattern', 'training'])
@pytest.mark.parametrize('bits, suffix, flags', [
    (10, 'png', ['deep', 'dim']), (12, 'png', ['deep', 'dim']), (12, 'tif', ['deep', 'dim']), (14, 'png', ['deep', 'dim']),
    (15, 'png', ['deep']), (16, 'png', ['deep']), (16, 'tif', ['deep']), (5, 'bmp', []), (8, 'png', [])])
def test_few_bits_in_16_are_flagged(tmp_path, decoder, bits, suffix, flags):
    save(tmp_path/f'data/a.{suffix}', noise(0, high=2**bits, kind=np.uint8 if bits <= 8 else np.uint16))
    scan = scanned(tmp_path/'data', decode=decoder)
    assert [o for o in ('deep', 'dim') if scan.has(o)[0]] == flags and not scan.bad

@pytest.mark.parametrize('decoder', [None, lambda o: decode(o, Need((8, 8), area=0))], ids=['pattern', 'training'])
def test_pixels_without_a_white_are_bad(tmp_path, decoder):
    save(tmp_path/'data/a.tif', noise(0).astype(np.float32)/255)
    (_, why), = scanned(tmp_path/'data', decode=decoder).bad
    assert why.startswith('its pixels are floating point numbers from 0 to 1')

# Copies among many

def rows_of(patterns):
    rows = np.zeros(len(patterns), ROW)
    rows['pattern'], rows['sha256'][:, :8] = patterns, np.arange(len(patterns))[:, None].astype(np.int64).view(np.uint8)
    return rows

def look_alikes(n, spread, copies=10, seed=0): # the last ones are altered copies of the first ones
    rng = np.random.default_rng(seed)
    patterns = rng.normal(0, 40, 64)*(spread < 40) + rng.normal(0, spread, (n, 64))
    patterns[-copies:] = patterns[:copies] + rng.normal(0, 1, (copies, 64))
    return rows_of(patterns.clip(-127, 127).round().astype(np.int8))

def pairs(groups): return [o.tolist() for o in list_groups(groups)]

@pytest.fixture
def compared(monkeypatch):
    n, neighbours = [0], scan_module._neighbours
    def spy(*args):
        for o in neighbours(*args):
            n[0] += o.shape[1]
            yield o
    monkeypatch.setattr(scan_module, '_neighbours', spy)
    return n

@pytest.mark.parametrize('spread, candidates', [(40, True), (8, False)])
def test_copies_are_found_the_cheaper_way(compared, spread, candidates):
    n = 4000
    groups, cut = near_groups(look_alikes(n, spread), return_cut=True)
    assert pairs(groups) == [[i, n - 10 + i] for i in range(10)] and cut == 0
    assert 0 < compared[0] < n*n//20 if candidates else not compared[0]

@pytest.mark.parametrize('most', [1000, 10_000, 4_000_000])
def test_look_alikes_are_compared_no_more_than_allowed(compared, most):
    rows = look_alikes(3000, 8)
    groups, cut = near_groups(rows, return_cut=True, most=most)
    assert 0 < compared[0] <= max(most//40, 4*17*3000) and 0 < cut <= 3000, "one comparison a key is the least"
    assert all(set(o) <= {i % 2990 if i >= 2990 else i for i in o} | set(o) for o in pairs(groups))
    assert pairs(near_groups(rows)) == [[i, 2990 + i] for i in range(10)], "nothing is cut where there is time"

def test_cut_says_how_many(compared):
    rows = np.concatenate([look_alikes(3000, 40), look_alikes(500, 3)])
    assert 400 < near_groups(rows, return_cut=True, most=200_000)[1] < 1500

def test_fewer_links_connect_the_same():
    rng = np.random.default_rng(0)
    for n, k in ((50, 30), (50, 400), (1, 0), (30, 0)):
        links = rng.integers(0, n, (2, k))
        fewer = scan_module._fewer(links, n)
        assert fewer.shape[1] < n and (scan_module._connected(fewer, n) == scan_module._connected(links, n)).all()
