"Decoding at the size that is needed, and keeping what was decoded"
import io
import multiprocessing
import os
import random
import shutil
import time
from dataclasses import replace

import numpy as np
import PIL
import pytest
import simplejpeg
from PIL import Image, ImageFile

from imgcls_nb import decode as decoding
from imgcls_nb.augment import Augment, RandomResizedCrop
from imgcls_nb.core import BadPictureError, InputError, Preprocess, open_image
from imgcls_nb.data import Fitted, ImageDL, image_dls
from imgcls_nb.decode import CACHE_LEAST, Decoded, Need, PixelCache, decode, resized_crop
from imgcls_nb.pictures import PictureList, TarMember

WHOLE = Need((224, 224), area=0)
SOME = Need((64, 64), area=.35, ratio=(3/4, 4/3))

def scene(height, width, seed=0):
    "Smooth colours with an edge"
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    pixels = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    pixels[height//3:height//2, width//4:width//2] = 255 - pixels[height//3:height//2, width//4:width//2]
    return pixels

def encoded(pixels, format='JPEG', mode=None, **kwargs):
    out, im = io.BytesIO(), Image.fromarray(pixels)
    (im.convert(mode) if mode else im).save(out, format, **({'quality': 90} if format == 'JPEG' else {}) | kwargs)
    return out.getvalue()

def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return dict(exif=exif)

# At full size it is what `open_image` gives

KINDS = {
    'plain': dict(), 'progressive': dict(progressive=True), '4:4:4': dict(subsampling=0), '4:2:0': dict(subsampling=2),
    'grey': dict(mode='L'), 'CMYK': dict(mode='CMYK'), 'optimized': dict(optimize=True), 'low quality': dict(quality=20),
    **{f'turned {i}': turned(i) for i in range(1, 9)}, 'turned 9': turned(9),
    'PNG': dict(format='PNG'), 'palette': dict(format='PNG', mode='P'), 'alpha': dict(format='PNG', mode='RGBA'),
    'BMP': dict(format='BMP'), 'WebP': dict(format='WEBP', lossless=True), 'GIF': dict(format='GIF'), 'TIFF': dict(format='TIFF')}

@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('shape', [(28, 28), (37, 53, 3), (1, 5), (300, 200), (300, 200, 3)])
@pytest.mark.parametrize('need', [WHOLE, SOME])
def test_arrays_are_open_image_too(shape, mode, need):
    pixels = np.random.default_rng(shape).integers(0, 256, shape, np.uint8)
    got, out = decode(pixels, replace(need, mode=mode)), io.BytesIO()
    Image.fromarray(pixels).save(out, 'PNG')
    want = decode(out.getvalue(), replace(need, mode=mode)) # the same picture as a file
    assert got[1:] == want[1:] == shape[:2] and np.array_equal(got.pixels, want.pixels)

@pytest.mark.parametrize('shape, kind', [((5, 5), np.float32), ((5, 5, 4), np.uint8), ((0, 5), np.uint8), ((5, 5, 1), np.uint8)])
def test_arrays_that_are_no_pictures(shape, kind):
    with pytest.raises(BadPictureError, match='is no picture'): decode(np.zeros(shape, kind), WHOLE)

@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('hw', [(37, 53), (64, 48)])
def test_whole_pictures_are_open_image_exactly(kind, mode, hw):
    data = encoded(scene(*hw), **KINDS[kind])
    got = decode(data, Need((224, 224), area=0, mode=mode))
    want = np.asarray(open_image(data, mode)).reshape(*got.pixels.shape)
    assert np.array_equal(got.pixels, want)
    assert (got.height, got.width) == got.pixels.shape[:2] and got.pixels.flags.c_contiguous

@pytest.mark.parametrize('make', [lambda p: p, lambda p: Image.fromarray(p), lambda p: encoded(p, 'PNG')])
def test_every_kind_of_source(make): assert np.array_equal(decode(make(scene(20, 30)), WHOLE).pixels, scene(20, 30))

def test_a_member_of_a_tar_file(tmp_path):
    data = encoded(scene(40, 30))
    (tmp_path/'a.tar').write_bytes(b'x'*100 + data + b'y'*50)
    member = TarMember(str(tmp_path/'a.tar'), 'a.jpg', 100, len(data))
    assert np.array_equal(decode(member, WHOLE).pixels, decode(data, WHOLE).pixels)

# Smaller, but never too small

@pytest.mark.parametrize('log_aspect', [True, False])
def test_no_crop_is_enlarged_that_would_not_be_enlarged_anyway(log_aspect):
    rng = random.Random(1)
    for _ in range(150):
        hw = rng.choice([(rng.randint(30, 400), rng.randint(30, 400)), (rng.randint(400, 4000), rng.randint(400, 4000)),
                         (rng.randint(50, 200), rng.randint(2000, 6000))])
        size = rng.choice([(64, 64), (224, 224), (96, 160)])
        scale, ratio = sorted([rng.uniform(.05, 1), rng.uniform(.05, 1)]), sorted([rng.uniform(.3, 3), rng.uniform(.3, 3)])
        crop = RandomResizedCrop(size, scale=scale, ratio=ratio, log_aspect=log_aspect)
        m = Need(size, scale[0], tuple(ratio)).eighths(*hw)
        kept = [-(-n*m//8) for n in hw]
        for _ in range(50):
            top, left, h, w = crop.draw(*hw, rng)
            assert 0 <= top <= hw[0] - h and 0 <= left <= hw[1] - w and h > 0 and w > 0
            for start, n, full, have, want in ((top, h, hw[0], kept[0], size[0]), (left, w, hw[1], kept[1], size[1])):
                got = -(-(start + n)*have//full) - start*have//full
                assert got >= min(n, want), f'{hw} kept at {m}/8: {n} pixels became {got} for {want}'

def test_smaller_where_it_can_be():
    assert [SOME.eighths(*o) for o in ((64, 64), (150, 150), (300, 400), (3000, 4000))] == [8, 7, 3, 1]
    assert Need((224, 224), area=0).eighths(9000, 9000) == 8

@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
@pytest.mark.parametrize('m', range(1, 9))
def test_a_smaller_representation_shows_the_same(format, m):
    pixels, need = scene(640, 480), Need((1, 1))
    object.__setattr__(need, 'eighths', lambda h, w: m)
    got = decode(encoded(pixels, format), need)
    assert (got.height, got.width) == (640, 480)
    if format == 'JPEG': assert got.pixels.shape[:2] == (80*m, 60*m)
    crops = [resized_crop(o, (60, 40, 500, 400), (56, 44)).astype(int) for o in (got, Decoded(pixels, 640, 480))]
    assert abs(crops[0] - crops[1]).mean() < 2

def test_turned_pictures_are_small_and_upright():
    data = encoded(scene(400, 300), **turned(6))
    got = decode(data, SOME)
    assert (got.height, got.width) == (300, 400) and got.pixels.shape[0] < got.pixels.shape[1] <= 200
    want = np.asarray(open_image(data).resize(got.pixels.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert abs(got.pixels - want).mean() < 3

# `open_image` decides what can be read

@pytest.mark.parametrize('need', [WHOLE, SOME], ids=['whole', 'smaller'])
def test_damaged_files_are_bad_exactly_when_open_image_says_so(need):
    data, rng, verdicts = encoded(scene(300, 400)), random.Random(0), []
    damaged = [data[:n] for n in (0, 2, 3, 20, 200, len(data)//2, len(data) - 40)]
    for _ in range(40):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 30)): broken[rng.randrange(len(data))] = rng.randrange(256)
        damaged.append(bytes(broken))
    for o in damaged:
        verdicts.append([])
        for read in (open_image, lambda o: decode(o, need)):
            try: read(o)
            except BadPictureError: verdicts[-1].append('bad')
            else: verdicts[-1].append('good')
    assert verdicts[:7] == [['bad', 'bad']]*7 and all(a == b for a, b in verdicts)
    assert ['good', 'good'] in verdicts, "some damage can be read over"

def test_too_many_pixels_are_refused(monkeypatch):
    data = encoded(scene(300, 400))
    monkeypatch.setattr('imgcls_nb.core.MAX_PIXELS', 100_000), monkeypatch.setattr('imgcls_nb.decode.MAX_PIXELS', 100_000)
    with pytest.raises(BadPictureError, match='more than the limit'): decode(data, SOME)

def test_errors_name_the_file(tmp_path):
    (tmp_path/'a.jpg').write_bytes(encoded(scene(30, 40))[:300])
    for name in ('a.jpg', 'none.jpg'):
        with pytest.raises(BadPictureError, match=name): decode(str(tmp_path/name), SOME)

# What is kept

@pytest.fixture
def photos(tmp_path):
    for i in range(12):
        (tmp_path/f'data/{"ab"[i % 2]}').mkdir(parents=True, exist_ok=True)
        (tmp_path/f'data/{"ab"[i % 2]}/{i}.jpg').write_bytes(encoded(scene(150 + 10*i, 180, i), quality=97))
    return tmp_path/'data'

class Counted:
    "`decode`, counting"
    def __init__(self, need=SOME): self.need, self.n = need, 0
    def __call__(self, source):
        self.n += 1
        return decode(source, self.need)

def files_of(photos): return sorted(map(str, photos.glob('*/*.jpg')))

def test_a_shelf_that_another_process_removes_meanwhile(tmp_path, monkeypatch):
    (tmp_path/'kept').mkdir()
    (tmp_path/'kept/gone').symlink_to('nowhere') # a shelf when the folder was listed, and none when it is looked at
    monkeypatch.setattr('pathlib.Path.is_dir', lambda self: True)
    assert PixelCache(tmp_path/'kept', 'k', Counted(), limit=10**6).used() == 0

def test_cold_and_warm_are_equal_and_nothing_is_decoded_twice(photos, tmp_path):
    make = Counted()
    cache = PixelCache(tmp_path/'kept', 'k', make)
    cold, warm = ([cache(o) for o in files_of(photos)] for _ in range(2))
    again = [PixelCache(tmp_path/'kept', 'k', make)(o) for o in files_of(photos)]
    assert make.n == 12 and cache.used() >= sum(o.pixels.nbytes for o in cold)
    for a, b, c in zip(cold, warm, again):
        assert a[1:] == b[1:] == c[1:] and np.array_equal(a[0], b[0]) and np.array_equal(a[0], c[0])

def test_the_key_separates(photos, tmp_path):
    make, file = Counted(), files_of(photos)[0]
    for key in 'ab': PixelCache(tmp_path/'kept', key, make)(file)
    assert make.n == 2

def test_moved_folders_find_their_pixels_again(photos, tmp_path):
    make = Counted()
    first = PixelCache(tmp_path/'kept', 'k', make, data='here')
    want = [np.array(first(o).pixels) for o in files_of(photos)]
    moved = photos.rename(tmp_path/'moved')
    second = PixelCache(tmp_path/'kept', 'k', make, data='there')
    assert all(np.array_equal(second(o).pixels, a) for o, a in zip(files_of(moved), want)) and make.n == 12
    assert second.shelf != first.shelf and second.used() == first.used(), "each data set has a shelf of its own"
    shutil.rmtree(first.shelf)
    assert all(np.array_equal(second(o).pixels, a) for o, a in zip(files_of(moved), want)) and make.n == 12

@pytest.mark.parametrize('owner, name, value', [
    (PIL, '__version__', '99'), (simplejpeg, '__version__', '99'), (ImageFile, 'LOAD_TRUNCATED_IMAGES', True)])
def test_another_decoder_finds_nothing(photos, tmp_path, monkeypatch, owner, name, value):
    make, file = Counted(), files_of(photos)[0]
    PixelCache(tmp_path/'kept', 'k', make)(file)
    with monkeypatch.context() as m:
        m.setattr(owner, name, value)
        PixelCache(tmp_path/'kept', 'k', make)(file)
    assert make.n == 2
    PixelCache(tmp_path/'kept', 'k', make)(file)
    assert make.n == 2

def test_what_is_kept_for_evaluation_depends_on_what_changes_pixels():
    pre = Preprocess(crop=(48, 40), resize_short=56)
    key = Fitted(pre).key
    assert Fitted(replace(pre, mean=(.5,)*3, std=(.5,)*3)).key == key, "another normalization has the same pixels"
    others = dict(crop=(40, 40)), dict(resize_short=60), dict(interpolation='bicubic'), dict(antialias=False), \
        dict(mean=(.5,), std=(.5,)), dict(crop=None, resize_short=None, resize=(48, 40))
    assert len({key, *(Fitted(replace(pre, **o)).key for o in others)}) == 7

@pytest.mark.parametrize('part', ['valid', 'train'])
def test_another_normalization_decodes_nothing(photos, tmp_path, monkeypatch, part):
    opened = []
    for name in ('open_image', 'decode'):
        real = getattr(decoding, name)
        monkeypatch.setattr(decoding, name, lambda *args, real=real: opened.append(1) or real(*args))
    pics = PictureList(photos, files_of(photos), [0]*12, ('any',))
    for mean in (.4, .5):
        pre = Preprocess(crop=(48, 40), resize_short=56, mean=(mean,)*3)
        ops = None if part == 'valid' else (('RandomHorizontalFlip', {}),)
        list(ImageDL(pics, pre, ops, bs=4, cache=tmp_path/'kept', num_workers=0))
        assert len(opened) == 12

# A file that somebody writes at this very moment

def test_what_is_hashed_is_what_is_decoded(photos, tmp_path, monkeypatch):
    file, make = files_of(photos)[0], Counted()
    old, new, reads = open(file, 'rb').read(), encoded(scene(160, 180, 99), quality=97), []
    def read(source):
        reads.append(source)
        with open(source, 'rb') as f: found = f.read()
        with open(source, 'wb') as f: f.write(new)
        return found
    monkeypatch.setattr('imgcls_nb.decode.read_source', lambda o: read(o) if isinstance(o, str) else o.read_bytes())
    cache = PixelCache(tmp_path/'kept', 'k', make)
    assert np.array_equal(cache(file).pixels, decode(old, SOME).pixels) and len(reads) == 1, "a file is read once"
    monkeypatch.undo()
    (photos/'old.jpg').write_bytes(old)
    assert np.array_equal(cache(str(photos/'old.jpg')).pixels, decode(old, SOME).pixels)
    assert np.array_equal(cache(file).pixels, decode(new, SOME).pixels)

def test_a_second_change_within_a_tick_of_the_clock_is_seen(photos, tmp_path, monkeypatch):
    file = files_of(photos)[0]
    contents = [encoded(scene(150, 180, i), quality=97).ljust(60_000, b'\0') for i in (0, 1)]
    now, cache = time.time_ns(), PixelCache(tmp_path/'kept', 'k', Counted())
    monkeypatch.setattr('imgcls_nb.decode.size_and_times', lambda path: (60_000, now, now)) # a clock that stands still
    for o in contents:
        with open(file, 'wb') as f: f.write(o)
        assert np.array_equal(cache(file).pixels, decode(o, SOME).pixels)

def test_errors_through_the_cache_name_the_file(photos, tmp_path):
    (photos/'half.jpg').write_bytes(open(files_of(photos)[0], 'rb').read()[:6000])
    for o in ('half.jpg', 'none.jpg'):
        with pytest.raises(BadPictureError, match=o): PixelCache(tmp_path/'kept', 'k', Counted())(str(photos/o))

def test_content_decides(photos, tmp_path):
    make, files = Counted(), files_of(photos)
    cache = PixelCache(tmp_path/'kept', 'k', make)
    first, stat = cache(files[0]), os.stat(files[0])
    os.utime(files[0]), shutil.copy(files[0], photos/'copy.jpg')
    for o in (files[0], str(photos/'copy.jpg')): assert np.array_equal(cache(o).pixels, first.pixels)
    assert make.n == 1, "touched and copied files are known by their content"
    other = encoded(scene(160, 180, 99))
    with open(files[0], 'r+b') as f: # the same size and times
        f.truncate(), f.write(other[:stat.st_size].ljust(stat.st_size, b'\0'))
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    try: changed = cache(files[0]).pixels
    except BadPictureError: return
    assert not np.array_equal(changed, first.pixels)

@pytest.mark.parametrize('damage', ['cut', 'empty', 'header', 'longer'])
def test_damaged_entries_are_made_again(photos, tmp_path, damage):
    make, file = Counted(), files_of(photos)[0]
    cache = PixelCache(tmp_path/'kept', 'k', make)
    want = np.array(cache(file).pixels)
    for entry in [o for o in cache.shelf.glob('*/*') if o.is_file()]:
        data = entry.read_bytes()
        if len(data) < 64: continue # cut already, through its other name
        entry.write_bytes(dict(cut=data[:-100], empty=b'', header=b'?'*64 + data[64:], longer=data + b'x')[damage])
    assert np.array_equal(cache(file).pixels, want) and make.n == 2
    assert np.array_equal(cache(file).pixels, want) and make.n == 2

def test_room_is_bounded_and_the_rest_still_right(photos, tmp_path):
    make, files = Counted(), files_of(photos)
    one = decode(files[0], SOME).pixels.nbytes
    cache = PixelCache(tmp_path/'kept', 'k', make, limit=4*one)
    got = [[cache(o).pixels for o in files] for _ in range(3)]
    kept = sum(o.stat().st_size/o.stat().st_nlink for o in cache.shelf.glob('*/*'))
    assert 0 < kept <= 4*one + 4*64 and 12 < make.n < 36
    for pixels in zip(*got): assert all(np.array_equal(o, pixels[0]) for o in pixels)

def test_a_shelf_in_use_stays(photos, tmp_path, monkeypatch):
    cache = PixelCache(tmp_path/'kept', 'first', Counted())
    for o in files_of(photos): cache(o)
    os.utime(cache.shelf, (1, 1)) # the run is days old,
    cache(files_of(photos)[0])
    assert cache.shelf.stat().st_mtime == 1
    hours = time.monotonic() + 3700
    with monkeypatch.context() as m:
        m.setattr(time, 'monotonic', lambda: hours)
        cache(files_of(photos)[0]) # but goes on
    PixelCache(tmp_path/'kept', 'second', Counted(), limit=1)
    assert cache.shelf.exists()

def test_data_sets_not_opened_for_longest_make_room(photos, tmp_path):
    def fill(key, limit=None):
        cache = PixelCache(tmp_path/'kept', key, Counted(), limit)
        for o in files_of(photos): cache(o)
        return cache
    first, second = fill('first'), fill('second')
    os.utime(first.shelf, (1, 1)), os.utime(second.shelf, (2, 2))
    third = fill('third', limit=int(2.5*first.used()))
    assert not first.shelf.exists() and second.shelf.exists() and third.used() == second.used()

def test_small_pictures_are_not_worth_a_file(tmp_path):
    Image.fromarray(scene(20, 20)).save(tmp_path/'a.png')
    cache = PixelCache(tmp_path/'kept', 'k', make := Counted())
    for _ in range(2): cache(str(tmp_path/'a.png'))
    assert os.path.getsize(tmp_path/'a.png') < CACHE_LEAST and make.n == 2 and not list(cache.root.iterdir())

def test_disks_without_links_and_full_disks(photos, tmp_path, monkeypatch, capsys):
    make, file = Counted(), files_of(photos)[0]
    def fails(*args): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(os, 'link', fails)
        cache = PixelCache(tmp_path/'kept', 'k', make)
        assert np.array_equal(cache(file).pixels, cache(file).pixels) and make.n == 1
    with monkeypatch.context() as m:
        m.setattr(os, 'link', fails), m.setattr(os, 'replace', fails)
        cache = PixelCache(tmp_path/'full', 'k', make)
        for _ in range(2): cache(file)
        assert capsys.readouterr().out.count('No space left') == 1
        assert make.n == 3 and not list(cache.shelf.glob('*/*'))

def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(InputError, match='cannot be kept in .*cache=False'): PixelCache(tmp_path/'file', 'k', Counted())

def _read_all(folder, files, queue):
    cache = PixelCache(folder, 'k', Counted())
    queue.put([cache(o).pixels.sum() for _ in range(3) for o in files])

def test_processes_share_one_cache(photos, tmp_path):
    context = multiprocessing.get_context('fork')
    queue, files = context.Queue(), files_of(photos)
    workers = [context.Process(target=_read_all, args=(tmp_path/'kept', files, queue)) for _ in range(4)]
    for o in workers: o.start()
    sums = [queue.get(timeout=60) for _ in workers]
    for o in workers: o.join()
    assert sums == [[decode(o, SOME).pixels.sum() for _ in range(3) for o in files]]*4
    check_account(tmp_path/'kept')

def check_account(folder):
    files = list(folder.glob('*/*/*'))
    assert not [o for o in files if '.' in o.name], "no drafts are left"
    real = {o.stat().st_ino: -(-o.stat().st_size//4096)*4096 for o in files}
    assert 0 < PixelCache(folder, 'k', None).used() == sum(real.values()), "what is taken is what is there"

@pytest.mark.parametrize('links', [True, False])
def test_a_lost_race_gives_back(photos, tmp_path, monkeypatch, links):
    cache, rival, file = (*(PixelCache(tmp_path/'kept', 'k', Counted()) for _ in range(2)), files_of(photos)[0])
    def fails(*args): raise OSError(1, 'no links here')
    if not links: monkeypatch.setattr(os, 'link', fails)
    reserve = cache._reserve
    cache._reserve = lambda n: (reserve(n), rival(file))[0] # the other is quicker by a moment
    assert np.array_equal(cache(file).pixels, decode(file, SOME).pixels)
    check_account(tmp_path/'kept')
    other = PixelCache(tmp_path/'kept', 'k', Counted())
    other._reserve = None # not even asked
    other.make = lambda source: (rival(files_of(photos)[1]), decode(source, SOME))[1]
    other(files_of(photos)[1])
    check_account(tmp_path/'kept')

def test_a_full_cache_claims_nothing_and_says_so_once(photos, tmp_path, monkeypatch, capsys):
    cache, files = PixelCache(tmp_path/'kept', 'k', Counted(), limit=200_000), files_of(photos)
    for o in files: cache(o)
    used = cache.used()
    assert 0 < used <= 200_000
    for o in files: cache(o)
    assert cache.used() == used
    said = capsys.readouterr().out
    assert said.count('\n') == 1 and f"kept in '{tmp_path/'kept'}' (its limit of 0.0002 GB is reached, see cache_gb)" in said
    check_account(tmp_path/'kept')
    def fails(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('imgcls_nb.decode._publish', fails)
    more = PixelCache(tmp_path/'more', 'k', Counted())
    more(files[0])
    assert 'No space left' in capsys.readouterr().out
    assert more.used() == 0

# Batches

def hashes(dls, epochs=3):
    out = []
    for dls.train.epoch in range(epochs):
        out.append([(x.sum().item(), x[0, 0, 0, :5].tolist(), y.tolist()) for x, y in dls.train])
    return out, [x.sum().item() for x, _ in dls.valid]

def loaders(photos, cache, **kwargs): return image_dls(photos, valid=.25, size=64, bs=4, device='cpu', cache=cache, **kwargs)

@pytest.mark.parametrize('workers', [0, 1, 4])
def test_batches_are_equal_cold_warm_and_without(photos, tmp_path, workers):
    without = hashes(loaders(photos, False, num_workers=0))
    cold = hashes(loaders(photos, str(tmp_path/'kept'), num_workers=workers))
    warm = hashes(loaders(photos, str(tmp_path/'kept'), num_workers=workers))
    assert without == cold == warm and len({str(o) for o in without[0]}) == 3
    assert sum(o.stat().st_size for o in (tmp_path/'kept').glob('*/used')) > 0, "and something was kept"

def test_the_look_before_training_decodes_for_training(photos, tmp_path, monkeypatch):
    monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path/'nothing is known'))
    decoded, decode = [], decoding.decode
    monkeypatch.setattr(decoding, 'decode', lambda source, need: decoded.append(str(source)) or decode(source, need))
    dls = loaders(photos, str(tmp_path/'kept'), num_workers=0)
    assert sorted(decoded) == sorted(dls.train_ds.items), "each training picture once, and no other"
    list(dls.train)
    assert len(decoded) == len(dls.train_ds)

@pytest.mark.parametrize('workers', [0, 3])
def test_a_cache_that_cannot_hold_all_changes_nothing(photos, tmp_path, capfd, workers):
    want = hashes(loaders(photos, False))
    assert hashes(loaders(photos, str(tmp_path/'kept'), cache_gb=.0001, num_workers=workers)) == want
    assert capfd.readouterr().out.count('its limit of 0.0001 GB') in (1, 2), "for training and for validation"

def test_home_is_read_only(photos, tmp_path, monkeypatch, capsys):
    (tmp_path/'home').touch() # a file, which even root cannot make a folder in
    monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path/'home'))
    assert len(loaders(photos, True).train.one_batch()[1]) == 4
    assert 'decoded in every epoch' in capsys.readouterr().out

# Crops

@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_resize_agrees_with_pillow(interpolation):
    pixels = scene(300, 200)
    got = resized_crop(Decoded(pixels, 300, 200), (10, 20, 250, 150), (96, 64), interpolation).astype(int)
    want = Image.fromarray(pixels[10:260, 20:170]).resize((64, 96), Image.Resampling[interpolation.upper()])
    assert abs(got - np.asarray(want)).max() <= 2

@pytest.mark.parametrize('interpolation', ['nearest', 'lanczos', 'box', 'hamming'])
def test_other_filters_are_pillows(interpolation):
    pixels = scene(300, 200)
    got = resized_crop(Decoded(pixels, 300, 200), (0, 0, 300, 200), (96, 64), interpolation)
    assert np.array_equal(got, Image.fromarray(pixels).resize((64, 96), Image.Resampling[interpolation.upper()]))

@pytest.mark.parametrize('channels', [1, 3])
def test_shape_and_type_stay(channels):
    pixels = scene(90, 80)[..., :channels]
    for hw in ((32, 48), (90, 80), (200, 100)):
        got = resized_crop(Decoded(pixels, 90, 80), (0, 0, 90, 80), hw)
        assert got.shape == (*hw, channels) and got.dtype == np.uint8

@pytest.mark.parametrize('ops', ['light', 'standard', 'strong'])
def test_augment_keeps_its_promises(ops):
    aug = Augment(ops, Preprocess(crop=(48, 40), resize_short=56))
    kept = decode(encoded(scene(300, 200)), aug.need)
    before = kept.pixels.copy()
    pictures = [aug(kept, seed) for seed in (1, 1, 2)]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(kept.pixels, before), "what is kept is not written to"
    assert all(o.shape == (48, 40, 3) and o.dtype == np.uint8 for o in pictures)

def test_full_size_can_be_asked_for(tmp_path):
    for k in 'ab':
        (tmp_path/k).mkdir()
        for i in range(4): (tmp_path/f'{k}/{i}.jpg').write_bytes(encoded(scene(600, 800, i), quality=95))
    scaled, full = (loaders(tmp_path, False, decode=o) for o in ('scaled', 'full'))
    shapes = [dls.train.maker.kept(dls.train_ds.source(0)).pixels.shape for dls in (scaled, full)]
    assert shapes == [(150, 200, 3), (600, 800, 3)]
    x, y = (dls.train.one_batch()[0] for dls in (scaled, full))
    assert 0 < (x - y).abs().mean() < .1, "in standard deviations: nearly the same pictures"
