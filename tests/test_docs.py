"The site of chapters, tutorials and reference: links that lead somewhere, and comments that become a reference"
import importlib
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import nbformat
import pytest
from browsing import absent as no_browser
from browsing import chromium, free_port, wait_for

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

def test_what_is_wrong_with_the_search_is_found(docs, tmp_path):
    (tmp_path/'search').mkdir()
    (tmp_path/'index.html').write_text('<h1>a</h1><h2 id="命令">b</h2>')
    places = ['', '#命令', '#gone', 'gone.html', '#命令']
    (tmp_path/'search/search_index.json').write_text(json.dumps(dict(docs=[dict(location=o) for o in places])))
    assert sorted(docs.broken_search(tmp_path)) == [
        'search: #gone is not there', 'search: #命令 is there 2 times', 'search: gone.html is not there']

@needs_mkdocs
def test_each_heading_has_a_place(monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'tools')
    def heading(level, text): return f'<h{level} id="_1">{text}<a class="anchor-link" href="#_1">¶</a></h{level}>\n'
    page = SimpleNamespace(file=SimpleNamespace(src_uri='x.ipynb'), meta={})
    texts = (1, 'draw'), (2, '<code>draw</code>'), (2, '配置项'), (3, 'Q &amp; A'), (2, '配置项')
    html = importlib.import_module('headings').on_page_content(''.join(heading(*o) for o in texts), page, None, None)
    names = ['draw', 'draw_1', '配置项', 'q-a', '配置项_1']
    assert re.findall('id="(.*?)"', html) == re.findall('href="#(.*?)"', html) == names
    assert re.findall(r' - #(\S+)', str(page.toc)) == names and '<code>draw</code>' in html

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
) -> int: # Litres: all that came out
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
    loaded = griffe.load('box', search_paths=[tmp_path], extensions=griffe.load_extensions('docments'), docstring_parser='google')
    box = loaded['Box']
    def said(o, kind='parameters'):
        return [(p.name, p.description) for s in o.docstring.parsed if s.kind.value == kind for p in s.value]
    assert said(box['__init__']) == [('size', 'Litres')] and box['full'].docstring.value == 'whether nothing more goes in'
    assert box['fill'].docstring.value == 'so many'
    assert box['heavy'].is_attribute and 'How it is carried' in box['heavy'].docstring.value
    assert said(box['empty']) == [('gently', 'Not all at once')]
    assert said(box['empty'], 'returns') == [('', 'Litres: all that came out')] # a colon makes no name of the words before it

@needs_mkdocs
def test_the_whole_site_is_built(docs, tmp_path, monkeypatch): # with every link and picture
    monkeypatch.setattr(docs, 'PAGES', tmp_path/'pages')
    monkeypatch.setattr(docs, 'SITE', tmp_path/'site')
    assert not docs.build()
    page, reference = ((tmp_path/'site'/o).read_text('utf-8') for o in ('02_predict.html', 'api/imgcls_nb.predict.html'))
    assert 'nbdev_export' not in page and '#| export' not in page
    assert 'id="imgcls_nb.predict.Predictor"' in reference
    assert re.search(r'<tr class="doc-section-item">\s*<td>\s*<code>bs</code>', reference) # each argument has a row
    assert not re.search(r'<p>[^<]*\b(Args|Returns|Attributes):', reference)
    assert Path(sys.prefix).as_posix() not in page

@pytest.mark.browser
@pytest.mark.skipif(absent or no_browser, reason="needs the docs extra and Debian's chromium")
def test_the_search_answers(docs, tmp_path, monkeypatch): # Chinese headings as well
    monkeypatch.setattr(docs, 'PAGES', tmp_path/'pages')
    monkeypatch.setattr(docs, 'SITE', tmp_path/'site')
    docs.build('from_paddleclas')
    url, said = f'http://127.0.0.1:{(port := free_port())}', []
    server = subprocess.Popen([sys.executable, '-m', 'http.server', str(port), '-b', '127.0.0.1', '-d', tmp_path/'site'],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: urlopen(url).status == 200, 30, 'the site')
        with chromium() as page:
            page.on('console', lambda o: said.append(o.text) if o.type == 'error' else None)
            for words, to in [('label', 'from_paddleclas.zh.html'), ('配置项', 'from_paddleclas.zh.html#%E9%85%8D'),
                              ('a crash', 'index.html')]:
                page.goto(f'{url}/index.html?q={words}')
                page.wait_for_selector(f'.md-search-result__link[href*="{to}"]', state='attached', timeout=30_000)
    finally:
        server.terminate()
        server.wait(30)
    assert not said
