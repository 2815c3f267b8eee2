"Edge tables of `core`: pictures of every kind, preprocessing to the grey level, what is refused and how"
import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from imgcls_nb import core
from imgcls_nb.core import BadPictureError, InputError, ModelCard, ModelFileError, Preprocess, open_image, resize_image, size_hw


def noise(height, width, *channels):
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, *channels), np.uint8)

def encode(im, kind='png', **kwargs):
    buf = io.BytesIO()
    (im if isinstance(im, Image.Image) else Image.fromarray(im)).save(buf, kind, **kwargs)
    return buf.getvalue()

def pixels(source, mode='RGB'): return np.asarray(open_image(source, mode))

# Opening

TURNS = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
         6: np.rot90, 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a, -1)}

@pytest.mark.parametrize('code', TURNS)
@pytest.mark.parametrize('kind', ['png', 'jpeg', 'tiff', 'webp'])
@pytest.mark.parametrize('channels', [1, 3])
def test_exif_orientation(tmp_path, kind, code, channels):
    # whole JPEG blocks, so that turning loses nothing
    upright = np.kron(noise(3, 5, channels), np.ones((16, 16, 1), np.uint8)).squeeze()
    how = dict(jpeg=dict(quality=100, subsampling=0), webp=dict(lossless=True)).get(kind, {})
    exif = Image.Exif()
    exif[0x0112] = code
    (tmp_path/'x').write_bytes(encode(np.ascontiguousarray(TURNS[code](upright)), kind, exif=exif, **how))
    for source in (tmp_path/'x', (tmp_path/'x').read_bytes()): # Pillow reads them in different ways
        got = pixels(source, 'RGB' if channels == 3 else 'L')
        assert np.array_equal(got, pixels(encode(upright, kind, **how), 'RGB' if channels == 3 else 'L'))
        assert np.abs(got.astype(int) - upright).max() <= 2

@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_damaged_exif_is_ignored():
    pic = noise(16, 24, 3)
    assert np.array_equal(pixels(encode(pic, exif=b'Exif\0\0MM\0*\xff\xff\xff\xff')), pic)

def palette(**transparency):
    im = Image.new('P', (4, 2))
    im.putpalette([200, 10, 20, 30, 40, 250])
    im.putdata([0, 1]*4)
    return encode(im, **transparency)

def grey16(value, kind='png'): return encode(np.full((2, 4), value, np.uint16), kind)

@pytest.mark.parametrize('data, first', [
    pytest.param(encode(np.full((2, 4), 77, np.uint8)), (77,)*3, id='grey'),
    pytest.param(encode(Image.new('RGBA', (4, 2), (9, 8, 7, 0))), (9, 8, 7), id='rgba, unseen pixels keep their colour'),
    pytest.param(encode(Image.new('LA', (4, 2), (90, 0))), (90,)*3, id='grey and alpha'),
    pytest.param(encode(Image.new('1', (4, 2), 1)), (255,)*3, id='bilevel'),
    pytest.param(palette(), (200, 10, 20), id='palette'),
    pytest.param(palette(transparency=0), (200, 10, 20), id='palette with an unseen colour'),
    pytest.param(palette(transparency=b'\x80\xff'), (200, 10, 20), id='palette with alpha'),
    pytest.param(encode(Image.new('CMYK', (4, 2), (0, 255, 255, 0)), 'jpeg', quality=100), (254, 0, 0), id='cmyk'),
    pytest.param(grey16(40_000), (156,)*3, id='16 bit'), pytest.param(grey16(65_535), (255,)*3, id='16 bit white'),
    pytest.param(grey16(255), (0,)*3, id='16 bit black'), pytest.param(grey16(40_000, 'tiff'), (156,)*3, id='16 bit tiff'),
    pytest.param(encode(Image.new('RGB', (4, 2), (7, 8, 9)), 'gif', save_all=True, append_images=[Image.new('RGB', (4, 2))]),
                 (7, 8, 9), id='animation, its first frame')])
def test_every_mode_becomes_rgb_and_grey(data, first):
    im, grey = open_image(data), open_image(data, 'L')
    assert (im.mode, im.size, grey.mode, grey.size) == ('RGB', (4, 2), 'L', (4, 2))
    assert np.abs(np.subtract(im.getpixel((0, 0)), first)).max() <= 1
    assert np.abs(np.asarray(grey) - np.asarray(im)@[.299, .587, .114]).max() <= 1

def deep(pixels, kind): return encode(np.asarray(pixels, kind).reshape(2, 4), 'tiff')

@pytest.mark.parametrize('kind, pixels, says', [
    (np.float32, np.linspace(0, 1, 8), 'floating point numbers from 0 to 1,'), (np.float32, [0, 255]*4, 'floating point'),
    (np.float32, [np.nan]*8, 'floating point'), (np.int32, [0, 65536]*4, 'whole numbers from 0 to 65536'),
    (np.int32, [-1024, 3071]*4, 'whole numbers from -1024 to 3071')], ids=str)
def test_depths_without_a_white_are_refused(tmp_path, kind, pixels, says):
    data = deep(pixels, kind)
    (tmp_path/'x.tif').write_bytes(data)
    im = Image.open(io.BytesIO(data))
    for source, name in ((tmp_path/'x.tif', str(tmp_path/'x.tif')), (data, '<bytes>'), (im, 'This picture')):
        for mode in ('RGB', 'L'):
            with pytest.raises(BadPictureError, match='Save it with 8 bits') as e: open_image(source, mode)
            assert says in str(e.value) and str(e.value).startswith(f'{name}: ')

@pytest.mark.parametrize('value', [0, 255, 256, 40_000, 65_535])
def test_whole_numbers_of_16_bits_are_read_alike(value):
    for data in (deep([value]*8, np.int32), grey16(value), grey16(value, 'tiff')):
        assert set(pixels(data).ravel()) == {value//256}

def test_sources_agree(tmp_path):
    pic, file = noise(9, 7, 3), tmp_path/'a b é.png'
    file.write_bytes(encode(pic))
    for o in (file, str(file), encode(pic), bytearray(encode(pic)), Image.fromarray(pic), pic):
        assert np.array_equal(pixels(o), pic), type(o)
    assert np.array_equal(pixels(pic[..., 0]), np.repeat(pic[..., :1], 3, 2))

PIC = noise(64, 48, 3)
BAD_FILES = {'empty.jpg': b'', 'text.jpg': b'I am not a picture', 'header.png': encode(PIC)[:20]}
BAD_FILES |= {f'half.{o}': encode(PIC, o)[:len(encode(PIC, o))//2] for o in ('jpeg', 'png', 'gif', 'bmp', 'tiff', 'webp')}

@pytest.mark.parametrize('name', [*BAD_FILES, 'folder.jpg', 'missing.jpg'])
@pytest.mark.parametrize('read', [open_image, Preprocess()], ids=['open', 'preprocess'])
def test_unreadable_files_are_named(tmp_path, read, name):
    if name in BAD_FILES: (tmp_path/name).write_bytes(BAD_FILES[name])
    elif name == 'folder.jpg': (tmp_path/name).mkdir()
    why = {'empty.jpg': 'file is empty', 'text.jpg': 'unknown format', 'missing.jpg': 'no such file'}.get(name, r'\w')
    for o in (tmp_path/name, str(tmp_path/name)):
        with pytest.raises(BadPictureError, match=rf'{name}: not a picture that can be read \(.*{why}'): read(o)

@pytest.mark.parametrize('kind', ['jpeg', 'png', 'gif', 'tiff', 'webp', 'half.jpeg', 'half.png'])
@pytest.mark.parametrize('read', [open_image, Preprocess()], ids=['open', 'preprocess'])
def test_no_file_stays_open(tmp_path, kind, read, recwarn):
    (tmp_path/'x').write_bytes(BAD_FILES.get(kind) or encode(PIC, kind))
    try: read(tmp_path/'x')
    except Exception: pass
    assert not [o for o in recwarn.list if issubclass(o.category, ResourceWarning)]

@pytest.mark.parametrize('data', [b'', b'no', BAD_FILES['half.jpeg'], BAD_FILES['half.png']], ids=len)
def test_unreadable_bytes(data):
    with pytest.raises(BadPictureError, match='^<bytes>: not a picture'): open_image(data)

@pytest.mark.parametrize('shape, kind', [
    ((4, 4, 3), float), ((4, 4), np.float32), ((4, 4), bool), ((4, 4, 3), np.int64), ((3, 4, 4), np.uint8), ((4, 4, 4), np.uint8),
    ((4, 4, 1), np.uint8), ((4,), np.uint8), ((1, 4, 4, 3), np.uint8), ((0, 4, 3), np.uint8), ((4, 0), np.uint8)])
def test_wrong_arrays(shape, kind):
    with pytest.raises(BadPictureError, match='is no picture'): open_image(np.zeros(shape, kind))

IN_HAND = {'image file is truncated': lambda: Image.open(io.BytesIO(BAD_FILES['half.jpeg'])),
           'conversion from La': lambda: Image.new('La', (4, 4)),
           'has no pixels, its size is 0x7': lambda: Image.new('RGB', (0, 7))}

@pytest.mark.parametrize('read', [open_image, Preprocess()], ids=['open', 'preprocess'])
@pytest.mark.parametrize('says', IN_HAND)
def test_pictures_in_hand_that_cannot_be_used(says, read):
    with pytest.raises(BadPictureError, match=f'^This picture: .*{says}'): read(IN_HAND[says]())

def test_too_many_pixels(monkeypatch):
    monkeypatch.setattr(core, 'MAX_PIXELS', 99)
    with pytest.raises(BadPictureError, match='<bytes>: 10x10 pixels is more than the limit of 99'):
        open_image(encode(noise(10, 10)))
    assert open_image(encode(noise(9, 11))).size == (11, 9)

@pytest.mark.parametrize('source, says', [
    (None, 'A NoneType is no picture. Give a path'), (5, 'A int is no picture'), (['a.png'], 'A list is no picture'),
    (io.BytesIO(b'x'), 'A BytesIO .* Of an open file give what its')], ids=lambda o: str(o).partition(' at 0x')[0])
def test_what_is_no_source(source, says):
    with pytest.raises(BadPictureError, match=says): open_image(source)

IN_THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from imgcls_nb.core import open_image
with ThreadPoolExecutor(2) as pool: print({o.size for o in pool.map(lambda o: open_image(o, 'L'), [sys.argv[1]]*4)})
"""

def test_the_limit_is_ours_and_not_pillows(tmp_path): # in a process of its own, since pytest shows warnings that are off
    side = int(Image.MAX_IMAGE_PIXELS**.5) + 200 # Pillow warns from here
    assert side**2 < core.MAX_PIXELS
    Image.new('1', (side, side)).save(tmp_path/'large.jpg', exif=b'Exif\0\0II*\0\xff\xff\xff\xff')
    done = subprocess.run([sys.executable, '-c', IN_THREADS, tmp_path/'large.jpg'], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f'{{({side}, {side})}}\n', '')

def test_where_pillow_would_speak_first_our_limit_does(tmp_path):
    side = int((2*Image.MAX_IMAGE_PIXELS)**.5) + 9 # Pillow refuses from here
    Image.new('1', (side, side)).save(tmp_path/'bomb.png')
    with pytest.raises(BadPictureError, match=r'bomb.png: .* more than the limit of 134,217,728. Make it smaller'):
        open_image(tmp_path/'bomb.png')

# Resize and crop

def test_filters_are_the_same_whichever_pillow_there_is():
    assert list(core.FILTERS) == ['nearest', 'box', 'bilinear', 'hamming', 'bicubic', 'lanczos']
    with pytest.raises(InputError, match='mks2013'): Preprocess(interpolation='mks2013')

def test_one_number_is_a_square():
    assert Preprocess(crop=32, resize_short=36) == Preprocess(crop=(32, 32), resize_short=36)
    assert Preprocess(crop=None, resize_short=None, resize=32).size == (32, 32)

SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (33, 47), (47, 33), (31, 250), (250, 31), (36, 36), (32, 32), (35, 37), (99, 101)]

@pytest.mark.parametrize('width, height', SIZES)
@pytest.mark.parametrize('crop', [(32, 32), (31, 36), (17, 20)], ids=str)
def test_short_side_and_centre_crop(width, height, crop):
    im, (h, w) = Image.fromarray(noise(height, width, 3)), crop
    big = im.resize([round(side*36/min(width, height)) for side in im.size], Image.Resampling.BILINEAR)
    left, top = (big.width - w)//2, (big.height - h)//2
    got = Preprocess(crop=crop, resize_short=36).pixels(im)
    assert got.shape == (3, h, w) and got.dtype == np.uint8 and got.flags.c_contiguous
    assert np.array_equal(got.transpose(1, 2, 0), np.asarray(big)[top:top + h, left:left + w])

@pytest.mark.parametrize('hw', [(1, 3000), (3000, 1), (2, 5001), (3, 3001), (4, 3000)], ids=str)
@pytest.mark.parametrize('how', [dict(), dict(interpolation='lanczos'), dict(interpolation='bicubic', antialias=False)], ids=str)
def test_a_thread_is_resized_where_the_crop_is(monkeypatch, hw, how):
    pre, pic, sizes, resize = Preprocess(crop=(32, 30), resize_short=36, **how), noise(*hw, 3), [], core.resize_image
    monkeypatch.setattr(core, 'resize_image', lambda im, *args: sizes.append(max(args[:2])) or resize(im, *args))
    whole = pre.pixels(pic)
    monkeypatch.setattr(core, 'MAX_PIXELS', 36*500)
    assert np.array_equal(core.channels_first(pre.fit(Image.fromarray(pic))), whole)
    assert sizes[0] > 20_000 and sizes[1] < 500

def test_a_long_picture_is_not_cut_below_its_shorter_side(monkeypatch):
    monkeypatch.setattr(core, 'MAX_PIXELS', 64*500)
    pic = noise(64, 3000, 3)
    got = Preprocess(crop=(8, 8), resize_short=64).fit(Image.fromarray(pic))
    assert np.array_equal(np.asarray(got), pic[28:36, 1496:1504])

def test_the_thinnest_picture_there_can_be():
    assert Preprocess().pixels(noise(1, 65_000, 3)).shape == Preprocess().pixels(noise(65_000, 1, 3)).shape == (3, 224, 224)

@pytest.mark.parametrize('side, want', [(3, 4), (5, 8), (7, 10), (9, 14)]) # from 4.5, 7.5, 10.5 and 13.5
def test_halves_round_to_even(side, want):
    im = Image.fromarray(noise(2, side, 3))
    big = np.asarray(im.resize((want, 3), Image.Resampling.BILINEAR))
    left = (want - 2)//2
    assert np.array_equal(Preprocess(crop=(3, 2), resize_short=3).pixels(im).transpose(1, 2, 0), big[:, left:left + 2])

@pytest.mark.parametrize('size', [(8, 8), (5, 12), (1, 1)], ids=str)
def test_stretch(size):
    im, pre = Image.fromarray(noise(21, 13, 3)), Preprocess(crop=None, resize_short=None, resize=size)
    assert pre.size == size
    assert np.array_equal(pre.pixels(im).transpose(1, 2, 0), np.asarray(im.resize(size[::-1], Image.Resampling.BILINEAR)))

def test_one_channel():
    pre = Preprocess(crop=(8, 8), resize_short=8, mean=(.5,), std=(.25,))
    assert pre.mode == 'L' and pre(noise(20, 10, 3)).shape == (1, 8, 8)
    assert pre(np.full((8, 8), 255, np.uint8)) == pytest.approx(2.)

@pytest.mark.parametrize('name', core.FILTERS)
@pytest.mark.parametrize('to', [(7, 9), (40, 50), (23, 40), (40, 31)], ids=str)
def test_antialiased_resize_is_pillows(name, to):
    im = Image.fromarray(noise(40, 31, 3))
    assert np.array_equal(np.asarray(resize_image(im, *to, name)), np.asarray(im.resize(to[::-1], core.FILTERS[name])))

@pytest.mark.parametrize('width, height', [(31, 40), (64, 64), (7, 5), (200, 90), (1, 30)])
@pytest.mark.parametrize('to', [(9, 7), (32, 32), (61, 80), (40, 31)], ids=str)
@pytest.mark.parametrize('channels', [(), (3,)], ids=['grey', 'rgb'])
def test_bilinear_without_antialias_is_torchs(width, height, to, channels):
    import torch
    im = Image.fromarray(noise(height, width, *channels))
    x = torch.from_numpy(core.channels_first(im).astype(np.float64))[None]
    want = torch.nn.functional.interpolate(x, to, mode='bilinear', align_corners=False, antialias=False)[0].numpy()
    assert np.abs(core.channels_first(resize_image(im, *to, antialias=False)) - want).max() <= 1

def test_antialias_matters():
    stripes = Image.fromarray(np.tile(np.uint8([[0, 0, 255, 255]]), (8, 64)))
    point, area = (np.asarray(resize_image(stripes, 2, 64, antialias=o))[:, 1:-1].astype(int) for o in (False, True))
    assert np.ptp(point) == 0 and set(point.flat) <= {127, 128}, "every fourth point lies on an edge"
    stripes = stripes.crop((1, 0, 253, 8)) # now in the middle of a stripe
    point, area = (np.asarray(resize_image(stripes, 2, 63, antialias=o))[:, 1:-1].astype(int) for o in (False, True))
    assert set(point.flat) <= {0, 255} and np.abs(area - 127).max() < 40

# Normalize

@pytest.mark.parametrize('mean, std', [
    (core.IMAGENET_MEAN, core.IMAGENET_STD), ((.5,)*3, (.5,)*3), ((.1307,), (.3081,)), ((0., .1, 1.), (1., .9, 1e-3))])
def test_normalize_is_the_same_on_numpy_and_torch(mean, std):
    import torch
    pre, x = Preprocess(mean=mean, std=std), np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(len(mean), 1)
    a, b = pre.normalize(x), pre.normalize(torch.from_numpy(x), torch.as_tensor).numpy()
    assert a.dtype == b.dtype == np.float32 and a.tobytes() == b.tobytes()
    assert np.allclose(a, (x/255 - np.reshape(mean, (-1, 1, 1)))/np.reshape(std, (-1, 1, 1)), rtol=1e-5, atol=1e-4)

# Written down

@pytest.mark.parametrize('how', [
    dict(), dict(crop=(10, 20), resize_short=24, interpolation='lanczos'), dict(crop=None, resize=(5, 6), resize_short=None),
    dict(resize=(256, 300), resize_short=None, antialias=False, interpolation='nearest'), dict(mean=(.5,), std=(.1,))])
def test_preprocess_survives_json(how):
    pre = Preprocess(**how)
    again = Preprocess(**json.loads(json.dumps(pre.to_dict())))
    assert again == pre and hash(again) == hash(pre) and again.to_dict() == pre.to_dict()

@pytest.mark.parametrize('how, says', [
    (dict(interpolation='bicubik'), "Did you mean 'bicubic'"), (dict(interpolation=2), 'interpolation=2 is unknown'),
    (dict(antialias=False, interpolation='lanczos'), 'antialias=False works with'),
    (dict(resize_short=None), 'Give either'), (dict(resize_short=0), 'Give either'), (dict(resize=(300, 300)), 'Give either'),
    (dict(resize_short=-4), 'resize_short=-4 is no size'), (dict(resize_short=256.5), 'resize_short=256.5 is no '),
    (dict(resize_short='256'), "resize_short='256'"), (dict(resize_short=(256, 256)), 'resize_short'),
    (dict(resize_short=10**6), 'is no size'), (dict(resize_short=12_000), 'has more pixels than the limit'),
    (dict(antialias='no'), "antialias='no' is neither"), (dict(resize_short=223), 'does not fit'),
    (dict(resize=(224, 223), resize_short=None), 'does not fit'),
    (dict(crop=None), 'needs crop or resize'), (dict(crop=(0, 5)), 'is no size'), (dict(crop=(224,)), r'\(224,\) is no size'),
    (dict(crop=(22.5, 20)), 'is no size'), (dict(crop=(-1, 5)), 'is no size'), (dict(crop='big'), "'big' is no size"),
    (dict(mean=(.5, .5)), 'one number a channel'), (dict(mean=(.5,)), 'one number a channel'),
    (dict(mean=()), 'one number a channel'), (dict(mean=.5, std=.2), 'one number a channel'),
    (dict(mean=('a', 'b', 'c')), 'one number a channel'),
    (dict(mean=(.5, float('nan'), .5)), 'one number a channel'), (dict(std=('a', 'b', 'c')), 'one number a channel'),
    (dict(std=(.2, .2, 0)), 'std above zero'), (dict(std=(.2, .2, -1)), 'std above zero'),
    (dict(std=(.2, .2, float('nan'))), 'std above zero')], ids=str)
def test_refused_settings(how, says):
    with pytest.raises(InputError, match=says): Preprocess(**how)

@pytest.mark.parametrize('size, hw', [(5, (5, 5)), ((4, 7), (4, 7)), ([4, 7], (4, 7)), (65_500, (65_500, 65_500))])
def test_sizes(size, hw): assert size_hw(size) == hw

@pytest.mark.parametrize('size', [0, -1, 2.5, '5', (), (1, 2, 3), (1, 2.), None, 65_501, True], ids=repr)
def test_no_sizes(size):
    with pytest.raises(InputError, match='image_size=.* is no size'): size_hw(size, 'image_size')

@pytest.mark.parametrize('name, says', [
    ('resnet81', " Did you mean 'resnet18'?"), ('VIT', " Did you mean 'vit'?"), ('convnex', " Did you mean 'ConvNeXt'?"),
    ('qqq', ''), (5, '')])
def test_did_you_mean(name, says): assert core.did_you_mean(name, ['resnet18', 'vit', 'ConvNeXt']) == says

# Listing

def touch(folder, *names):
    for o in names:
        (folder/o).parent.mkdir(parents=True, exist_ok=True)
        (folder/o).touch()

def test_list_images_order_and_hidden(tmp_path):
    shown = ['Z.tif', 'a c/ü ñ.JPeG', 'a.b/x.bmp', 'a/z.webp', 'a/日本.jpg', 'b/10.png', 'b/2.PNG']
    touch(tmp_path, *shown, '.hidden.png', '.git/x.png', 'a/.thumbs/x.png', 'a/notes.txt', 'a/png')
    assert [o.relative_to(tmp_path).as_posix() for o in core.list_images(tmp_path)] == shown
    assert core.list_images(str(tmp_path)) == core.list_images(tmp_path)
    assert core.list_images(tmp_path/'a/notes.txt') == [tmp_path/'a/notes.txt'], "named, so its suffix does not matter"

def test_list_images_ends_in_a_loop_of_links(tmp_path):
    touch(tmp_path, 'a/b/x.png', 'elsewhere/y.png')
    for link, target in (('a/b/loop', 'a'), ('a/linked', 'elsewhere'), ('a/dangling', 'nowhere')):
        os.symlink(tmp_path/target, tmp_path/link, target_is_directory=True)
    assert [o.name for o in core.list_images(tmp_path/'a')] == ['x.png', 'y.png']

def test_list_images_of_nothing(tmp_path):
    assert core.list_images(tmp_path) == []
    with pytest.raises(InputError, match="no file or folder '.*none'"): core.list_images(tmp_path/'none')

# The model card

CARD = ModelCard(('cat', 'hund ü'), Preprocess(), 1.5, .4, metrics=dict(top1=.9), data=dict(path='x'), code=dict(timm='1'))

def test_card_survives_json():
    assert ModelCard.from_json(CARD.to_json()) == CARD
    assert 'hund ü' in CARD.to_json() and '\n' not in CARD.to_json()

def card(**kwargs): return json.dumps({k: v for k, v in (json.loads(CARD.to_json()) | kwargs).items() if v != 'left out'})
def prep(**kwargs): return card(preprocess=CARD.preprocess.to_dict() | kwargs)

REFUSED_CARDS = {
    'is no JSON': ('not JSON', '', '{"labels": ', '['*100_000), 'is not an object': ('[1]', 'null', '"text"'),
    'card schema': tuple(card(schema=o) for o in ('left out', 0, 3, '1', None, True, [1])),
    'no list of labels': tuple(card(labels=o) for o in ('left out', [], 'cat', [1, 2], ['a', None], {'0': 'a'}, None)),
    'temperature': tuple(card(temperature=o) for o in (0, -1, '1', None, 'left out', float('nan'), float('inf'))),
    'threshold': tuple(card(threshold=o) for o in ('high', 1.5, -.1, float('nan'), True)),
    'activation': tuple(card(activation=o) for o in ('relu', None, ['softmax'])),
    'output': (card(output='votes'), card(output=None)), 'precision': (card(precision=8),),
    'metrics are': (card(metrics=[]),), 'data are': (card(data='x'),), 'code are': (card(code=None),),
    'ways to run': tuple(card(passed=o) for o in (
        None, {}, [1], [dict(engine='e', precision='p', needs='avx', ms=1)], [dict(engine='e', precision='p', needs=[])])),
    'a reader must know': (card(critical='turn'), card(critical=[1])),
    "understand its 'turn'": (card(critical=['turn'], turn=90),),
    'preprocessing cannot be read': (
        *(card(preprocess=o) for o in ('left out', None, [1], 'x')), prep(crop=[0, 0]), prep(zoom=2), prep(mean=None),
        prep(mean=['a', 'b', 'c']), prep(interpolation={}), prep(resize_short=[256, 256]), prep(std=[0, 1, 1]))}

@pytest.mark.parametrize('says, text', [(k, v) for k, vs in REFUSED_CARDS.items() for v in vs], ids=lambda o: o[:8])
def test_refused_cards(says, text):
    with pytest.raises(ModelFileError, match=f'^best.onnx: .*{says}'): ModelCard.from_json(text, 'best.onnx')

def test_an_unknown_schema_says_which():
    with pytest.raises(ModelFileError, match='schema 3; this version reads 1 to 2'): ModelCard.from_json(card(schema=3))

SCHEMA_1 = '''{"labels": ["cat", "dog"],
"preprocess": {"crop": [40, 40], "resize_short": 48, "resize": null, "interpolation": "bilinear", "antialias": true,
               "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
"temperature": 1.5, "threshold": null, "metrics": {"top1": 0.97}, "data": {}, "code": {"timm": "1"}, "schema": 1}'''

def test_cards_of_schema_1_are_read():
    old = ModelCard.from_json(SCHEMA_1)
    same = dict(labels=('cat', 'dog'), temperature=1.5, threshold=None, metrics=dict(top1=.97), code=dict(timm='1'))
    assert {k: getattr(old, k) for k in same} == same and old.preprocess.size == (40, 40)
    assert (old.activation, old.output, old.precision, old.passed, old.schema) == ('softmax', 'logits', 'fp32', (), 2)
    assert ModelCard.from_json(old.to_json()) == old

def test_entries_that_may_be_passed_over():
    later = card(author='Ada', critical=['labels', 'activation'])
    assert replace(ModelCard.from_json(later), critical=()) == CARD

WAYS = [dict(engine='onnxruntime', precision='fp32', needs=[], ms=9),
        dict(engine='onnxruntime', precision='int8', needs=['a', 'b'], ms=4),
        dict(engine='openvino', precision='bf16', needs=['c'], ms=2.5, top1=.9)]

@pytest.mark.parametrize('ways, engines, features, best', [
    (WAYS, ['onnxruntime', 'openvino'], {'a', 'c'}, 2), (WAYS, ['onnxruntime'], {'b', 'c'}, 1), (WAYS, ['openvino'], {'a'}, None),
    (WAYS, ['onnxruntime', 'openvino'], (), 0), (WAYS[1:], ['onnxruntime'], (), None), ([], ['onnxruntime'], {'a'}, None)])
def test_best_way(ways, engines, features, best):
    read = ModelCard.from_json(card(passed=ways))
    assert core.best_way(read, engines, features) == (None if best is None else ways[best])

# Planes that a picture lacks

def test_more_planes_than_a_picture_has():
    torch = pytest.importorskip('torch')
    pre, plain = (Preprocess(crop=(6, 5), resize_short=8, channels=n) for n in (5, None))
    x = np.stack([plain.pixels(noise(9, 11, 3))]*2)
    for own in (pre.normalize(x), pre.normalize(torch.from_numpy(x), torch.as_tensor).numpy()):
        assert own.shape == (2, *pre.shape) == (2, 5, 6, 5) and not own[:, 3:].any()
        assert np.array_equal(own[:, :3], plain.normalize(x))
    assert pre.resized((12, 10)).channels == 5 and Preprocess(**json.loads(json.dumps(pre.to_dict()))) == pre
    assert 'channels' not in plain.to_dict(), "files that do not need it stay readable to older versions"

@pytest.mark.parametrize('channels', [2, 0, -1, 3.5, '4', True, 17])
def test_numbers_of_planes_that_cannot_be(channels):
    with pytest.raises(InputError, match='channels='): Preprocess(channels=channels)
