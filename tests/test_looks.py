"What viewers share: colours seen on both themes, words for errors, thumbnails that are made once and never fail"
import os
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('ipywidgets', reason="viewers need the lab extra")
from imgcls_nb.core import InputError, open_image
from imgcls_nb.figures import show_curves, show_pictures, show_points
from imgcls_nb.widgets import looks
from imgcls_nb.widgets.looks import SERIES, Act, Note, Thumbs, Viewer, bar_html, gallery_html, paper, series_color, watch


def contrast(a, b):
    def lightness(color):
        parts = [int(color[i:i + 2], 16)/255 for i in (1, 3, 5)]
        return np.dot([c/12.92 if c <= .04045 else ((c + .055)/1.055)**2.4 for c in parts], [.2126, .7152, .0722])
    low, high = sorted([lightness(a), lightness(b)])
    return (high + .05)/(low + .05)

def tags(html):
    found = []
    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs): found.append((tag, dict(attrs)))
    Reader().feed(html)
    return found

def picture(path, size=(640, 480), **kwargs):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)).save(path, **kwargs)
    return path


@pytest.mark.parametrize('color', SERIES)
@pytest.mark.parametrize('page', ['#ffffff', '#111111', '#212121'])
def test_lines_are_seen(color, page): assert contrast(color, page) >= 3

def test_there_is_a_colour_for_any_number_of_lines(): assert series_color(len(SERIES)) == series_color(0)

@pytest.mark.parametrize('text', ['<b>bold</b>', '"quoted" & more', '<script>alert(1)</script>'])
def test_text_stays_text(text):
    gallery = gallery_html([(Thumbs(8)(np.zeros((4, 4, 3), np.uint8)), [text], text)])
    for html in (looks.facts_html({text: text}), looks.empty_html(text), gallery, Note(text).value, bar_html(.5, text)):
        assert not [o for o, _ in tags(html) if o in ('b', 'script')]
    assert ('img', text) in [(o, a.get('alt')) for o, a in tags(gallery_html([(Thumbs(8)(b''), [], text)]))]

@pytest.mark.parametrize('share, width', [(-1, '0%'), (0, '0%'), (.333, '33.3%'), (1, '100%'), (7, '100%')])
def test_bar(share, width): assert f'width:{width}' in bar_html(share, 'x').replace('.0%', '%')

# Words

def test_an_error_is_said_and_raised():
    note = Note()
    with pytest.raises(InputError), note.telling(): raise InputError("Give a number.")
    assert (note.kind, note.text) == ('error', 'Give a number.') and 'role="alert"' in note.value
    with note.telling(): pass
    assert (note.kind, note.text) == ('info', '')
    note.say('Saved.', 'done')
    with note.telling(): pass
    assert note.text == 'Saved.', "only an error is taken back by the next thing that works"

def test_buttons_and_sliders_raise():
    import ipywidgets as ipw
    note, seen = Note(), []
    slider = ipw.IntSlider(1)
    watch(slider, lambda v: seen.append(v) if v < 5 else 1/0, note)
    slider.value = 3
    with pytest.raises(ZeroDivisionError): slider.value = 7
    with pytest.raises(ZeroDivisionError): Act('x', lambda: 1/0, note).click()
    assert seen == [3] and note.text == 'ZeroDivisionError: division by zero'

@pytest.mark.parametrize('names, shown', [
    (['a', 'b'], ['a', 'b']), (['x'*12], ['x'*12]), (['abcdefghijklmnop', 'short'], ['abcdef…lmnop', 'short']), ([], []),
    (['species number 1 of 20', 'species number 2 of 20'], ['…1 of 20', '…2 of 20']),
    (['same name twice'*2, 'same name twice'*2], ['same n…twice']*2)])
def test_short_names(names, shown):
    assert looks.short_names(names, 12) == shown and all(len(o) <= 12 for o in shown)

# Thumbnails

@pytest.mark.parametrize('name, size, options, kind, tiny', [
    ('a.jpg', (640, 480), {}, 'jpeg', False), ('a.jpg', (4000, 300), {}, 'jpeg', False), ('a.png', (640, 480), {}, 'jpeg', False),
    ('a.png', (28, 28), {}, 'png', True), ('a.jpg', (60, 30), {}, 'png', True), ('a.png', (64, 64), {}, 'png', True)])
def test_a_thumbnail_fits(tmp_path, name, size, options, kind, tiny):
    thumb = Thumbs(64)(picture(tmp_path/name, size, **options))
    im = open_image(thumb.data)
    assert (thumb.kind, thumb.tiny, thumb.why) == (kind, tiny, '') and max(im.size) <= 64
    if not tiny: assert abs(im.width/im.height - size[0]/size[1]) < .2*size[0]/size[1] and max(im.size) == 64
    assert thumb.url.startswith(f'data:image/{kind};base64,')

@pytest.mark.parametrize('orientation, upright', [(1, (64, 32)), (3, (64, 32)), (6, (32, 64)), (8, (32, 64))])
def test_a_thumbnail_is_upright(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (400, 200)).save(tmp_path/'a.jpg', exif=exif)
    assert open_image(Thumbs(64)(tmp_path/'a.jpg').data).size == upright

@pytest.mark.parametrize('mode', ['L', 'CMYK', 'RGB'])
def test_modes_of_jpeg(tmp_path, mode):
    Image.new(mode, (300, 300)).save(tmp_path/'a.jpg')
    assert not Thumbs(64)(tmp_path/'a.jpg').why

def test_other_sources(tmp_path):
    data, thumbs = picture(tmp_path/'a.jpg').read_bytes(), Thumbs(64)
    for source in (data, np.zeros((9, 9), np.uint8), Image.new('L', (300, 20)), tmp_path/'a.jpg', str(tmp_path/'a.jpg')):
        assert not thumbs(source).why

@pytest.mark.parametrize('data, reason', [(b'', 'empty'), (b'no picture', 'unknown format'), (None, 'no such file')])
def test_what_cannot_be_read_has_a_place_and_a_reason(tmp_path, data, reason):
    file, thumbs = tmp_path/'a.jpg', Thumbs(64)
    if data is not None: file.write_bytes(data)
    thumb = thumbs(file)
    assert reason in thumb.why and open_image(thumb.data).size == (64, 64)
    assert 'cannot be shown' in gallery_html([(thumb, [], 'x')])
    picture(file)
    assert not thumbs(file).why, "it may be there later"

def test_a_changed_file_is_looked_at_anew(tmp_path):
    file, thumbs = tmp_path/'a.png', Thumbs(64)
    Image.new('RGB', (200, 200), 'red').save(file)
    first = thumbs(file)
    assert thumbs(file) is first
    Image.new('RGB', (200, 200), 'blue').save(file)
    os.utime(file, (1, 1))
    assert open_image(thumbs(file).data).getpixel((5, 5))[2] > 200

def test_no_more_are_kept_than_asked(tmp_path):
    files, thumbs = [picture(tmp_path/f'{i}.png', (20, 20)) for i in range(6)], Thumbs(64, keep=3)
    first = thumbs(files[0])
    for o in (files[1], files[2], files[0], files[3], files[4]): thumbs(o)
    assert len(thumbs.made) == 3 and thumbs(files[0]) is first, "the one used last stays"

# Viewers

def test_the_note_stands_below_the_buttons_and_above_the_rest():
    import ipywidgets as ipw
    class Long(Empty):
        def build(self): return [looks.row(Act('x', print, self.note)), ipw.HTML('much'), ipw.HTML('more')]
    o = Long()
    assert [type(c).__name__ for c in o.widget.children] == ['Dress', 'HTML', 'HBox', 'Note', 'HTML', 'HTML']

class Empty(Viewer):
    title = 'Empty'
    def build(self): return []
    def plot(self): return None

class Drawn(Empty):
    def plot(self): return paper(2, 1)[0]

def test_a_page_without_a_kernel_has_the_still_twin():
    assert set(Empty()._repr_mimebundle_()) == {'text/plain'}
    assert set(Drawn()._repr_mimebundle_()) == {'text/plain', 'image/png'}

def test_a_page_with_a_kernel_has_both(monkeypatch):
    monkeypatch.setattr('imgcls_nb.widgets.looks.has_kernel', lambda: True)
    assert {'application/vnd.jupyter.widget-view+json', 'image/png'} <= set(Drawn()._repr_mimebundle_())
    assert 'application/vnd.jupyter.widget-view+json' in Empty()._repr_mimebundle_()

def test_one_widget_for_all_places():
    viewer = Empty()
    assert viewer.widget is viewer.widget

def test_pyplot_knows_nothing_of_it():
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    Drawn()._repr_mimebundle_()
    assert plt.get_fignums() == before

@pytest.mark.parametrize('show, values', [(show_curves, [.5, .6]), (show_points, [.5, .6]), (lambda o, alt: show_pictures(
    [np.zeros((4, 4), np.uint8)], alt, list(o)), 0)], ids=['curves', 'points', 'pictures'])
def test_names_in_figures_are_no_formulas(show, values):
    assert '<img alt="words' in show({r'$\frac$': values}, 'words').data
