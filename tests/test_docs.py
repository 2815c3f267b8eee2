"The site of chapters, tutorials and reference: links that lead somewhere, and comments that become a reference"
import importlib
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
absent = not find_spec('mkdocs') and not os.environ.get('CI')
needs_mkdocs = pytest.mark.skipif(absent, reason="needs the docs extra")

@pytest.fixture
def docs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'tools')
    return importlib.import_module('docs')

@pytest.mark.parametrize('page, link, to', [
    ('README.md', 'nbs/tutorials/quickstart.ipynb', 'tutorials/quickstart.html'),
    ('README.md', 'CONTRIBUTING.md', 'CONTRIBUTING.html'), ('README.md', 'benchmarks/RESULTS.md', 'RESULTS.html'),
    ('README.md', 'README.zh.md', 'README.zh.html'),
    ('README.zh.md', 'README.md', 'index.html'),
    ('nbs/tutorials/quickstart.ipynb', '../00_core.ipynb', '../00_core.html'),
    ('nbs/from_paddleclas.ipynb', 'from_paddleclas.zh.ipynb#Commands', 'from_paddleclas.zh.html#Commands'),
    ('nbs/00_core.ipynb', 'https://example.org/x.ipynb', 'https://example.org/x.ipynb'), ('nbs/00_core.ipynb', '#here', '#here')])
def test_links_lead_to_pages(docs, page, link, to): assert docs.relink(f'see [it]({link})', page) == f'see [it]({to})'

def test_what_has_no_page_is_only_named(docs): assert docs.relink('the [license](LICENSE)', 'README.md') == 'the license'

def test_names_lead_to_the_reference(docs):
    names = dict(evaluate=('imgcls_nb.evaluate', 'imgcls_nb.evaluate.evaluate'))
    link = '[`evaluate`](../api/imgcls_nb.evaluate.html#imgcls_nb.evaluate.evaluate)'
    text = 'Use `evaluate`, not `validate`.\n\n# `evaluate`\n\n[`evaluate`](x.html)\n\n```\n`evaluate`\n```\n'
    assert docs.name_links(text, names, '../') == text.replace('Use `evaluate`', f'Use {link}')

def test_every_page_is_in_the_navigation(docs):
    chapters = [o for o in (ROOT/'nbs').rglob('*.ipynb') if o.name != 'index.ipynb' and o.parent.name != 'app'
                and '.ipynb_checkpoints' not in o.parts]
    _, modules = docs.public_names()
    def leaves(o):
        if isinstance(o, str): yield o
        else:
            for v in o if isinstance(o, list) else o.values(): yield from leaves(v)
    named = list(leaves(docs.navigation(chapters, modules)))
    assert len(named) == len(set(named))
    lost = {o.relative_to(ROOT/'nbs').as_posix() for o in chapters} - set(named)
    assert not lost, f"README's table of chapters does not have {sorted(lost)}"

def test_what_is_wrong_with_a_site_is_found(docs, tmp_path):
    (tmp_path/'a.html').write_text('<a href="b.html#there">x</a><a href="b.html#gone">x</a><a href="c.html">x</a>'
                                   '<img src="p.png"><img src="q.png" alt="No description has been provided for this image">'
                                   '<img src="p.png" alt="a dot"><script src="https://cdn.example.org/x.js"></script>'
                                   '<a href="https://example.org">x</a>')
    (tmp_path/'b.html').write_text('<h1 id="there">x</h1><a href="a.html">x</a>')
    for o in 'pq': (tmp_path/f'{o}.png').touch()
    assert sorted(docs.broken_links(tmp_path)) == [
        'a.html: b.html#gone has no such place', 'a.html: c.html is not there', 'a.html: fetches https://cdn.example.org/x.js',
        'a.html: p.png is shown without a text', 'a.html: q.png is shown without a text']

def test_pictures_of_chapters_have_words(docs):
    def picture(text): return nbformat.v4.new_output('display_data', {'image/png': 'cGlj\n', 'text/plain': text})
    def code(*outputs): return nbformat.v4.new_code_cell('x', outputs=list(outputs))
    prose = 'Not this.\n\nThe [sun](x.html) of `draw`,\nand a "hill".\n\n```\nnor this\n```'
    cells = [nbformat.v4.new_markdown_cell(prose), code(picture('<Figure size 6x4>')), code(picture('TopLosses(9 pictures)')),
             nbformat.v4.new_markdown_cell('## Side by side'), code(picture(''), nbformat.v4.new_output('stream', text='a line'))]
    docs.give_words(cells)
    pictures = [o.data['text/html'] for c in cells[1:] for o in c.get('outputs', ()) if o.output_type == 'display_data']
    assert [re.findall('alt="(.*?)" src="data:image/png;base64,cGlj"', o) for o in pictures] == [
        ['The sun of draw, and a &quot;hill&quot;.'], ['TopLosses(9 pictures)'], ['Side by side']]
    assert "'image/png':" not in str(cells) and cells[-1].outputs[1].text == 'a line'

MODULE = '''
from fastcore.basics import patch

class Box:
    "A box"
    def __init__(self,
        size:int, # Litres
    ): self.size = size

    @property
    def full(self) -> bool: return True # whether nothing more goes in

    def fill(self, n): return n # so many

@patch
def empty(self:Box,
    gently=True, # Not all at once
) -> int: # Litres that came out
    "Take all out"

@patch(as_prop=True)
def heavy(self:Box) -> bool: # Whether two are needed to carry it
    "How it is carried"
    return False
'''

@needs_mkdocs
def test_comments_become_the_reference(tmp_path, monkeypatch):
    import griffe
    monkeypatch.syspath_prepend(ROOT/'tools')
    (tmp_path/'box.py').write_text(MODULE)
    box = griffe.load('box', search_paths=[tmp_path], extensions=griffe.load_extensions('docments'))['Box']
    def said(o):
        sections = o.docstring.parse('google')
        return [(p.name, p.description) for s in sections if s.kind.value == 'parameters' for p in s.value]
    assert said(box['__init__']) == [('size', 'Litres')] and box['full'].docstring.value == 'whether nothing more goes in'
    assert box['fill'].docstring.value == 'so many'
    assert box['heavy'].is_attribute and 'How it is carried' in box['heavy'].docstring.value
    assert said(box['empty']) == [('gently', 'Not all at once')] and 'Litres that came out' in box['empty'].docstring.value

@needs_mkdocs
def test_the_whole_site_is_built(docs, tmp_path, monkeypatch): # with every link and picture
    monkeypatch.setattr(docs, 'PAGES', tmp_path/'pages')
    monkeypatch.setattr(docs, 'SITE', tmp_path/'site')
    assert not docs.build()
    page, reference = ((tmp_path/'site'/o).read_text('utf-8') for o in ('02_predict.html', 'api/imgcls_nb.predict.html'))
    assert 'nbdev_export' not in page and '#| export' not in page
    assert 'id="imgcls_nb.predict.Predictor"' in reference
    assert Path(sys.prefix).as_posix() not in page
