"Every tutorial runs from top to bottom in a real kernel, with little of everything, and they share their words"
import ast
import pkgutil
import re
import runpy
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from imgcls_nb.cli import make_parser
from imgcls_nb.evaluation import Evaluation
from imgcls_nb.tutorials import with_settings
from imgcls_nb.widgets import VIEWERS

ROOT = Path(__file__).parent.parent
FOLDER = ROOT/'nbs/tutorials'
TUTORIALS = sorted(FOLDER.glob('*.ipynb'))
SHARED = 'path = few_of_each(data, ', 'def train(', 'def sh(' # a cell that begins so is the same in all
SAME_LINES = "data = 'digits'", 'quick = '
SAME_WORDS = '`data` is the one thing to change: '
SWITCHES = 'data', 'flowers', 'full', 'gpus' # one of them leads to photographs, published data or a GPU

def read(path): return nbformat.read(path, as_version=4)

def names(paths): return [o.stem for o in paths]

def sources(nb, kind): return [o.source for o in nb.cells if o.cell_type == kind]

def outputs(nb): return [(c, o) for c in nb.cells if c.cell_type == 'code' for o in c.outputs]

each = pytest.mark.parametrize('path', TUTORIALS, ids=names(TUTORIALS))

@each
def test_runs_in_a_kernel(path, tmp_path):
    nb = with_settings(read(path), dict(quick=True))
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = []
    NotebookClient(nb, kernel_name='python3', timeout=180, store_widget_state=False,
                   resources={'metadata': {'path': str(tmp_path)}}).execute()
    shown = [o for _, o in outputs(nb)]
    assert not [o.text for o in shown if o.output_type == 'stream' and o.name == 'stderr'], "warnings on the page"
    lines = [o.text.count('\n') for o in shown if o.output_type == 'stream']
    assert max(lines, default=0) <= 25, "a wall of output"

@each
def test_opens_and_closes_as_all_do(path):
    texts = sources(read(path), 'markdown')
    assert texts[0].startswith('# ') and 'you will have' in texts[0] and 'Run the cells from top to bottom; it takes' in texts[0]
    assert re.search('^## What to try next$', texts[-1], re.M)

@each
def test_one_variable_leads_to_the_real_thing(path):
    cell = next(c for c in read(path).cells if 'parameters' in c.metadata.get('tags', ()))
    assert set(SWITCHES) & set(re.findall(r'^(\w+) = ', cell.source, re.M))

@each
def test_figures_have_words(path):
    for cell, o in outputs(read(path)):
        html = ''.join(o.get('data', {}).get('text/html', ''))
        assert 'image/png' not in o.get('data', {}), f"use show_figure, which takes words: {cell.source[:80]}"
        assert all(re.search(r'alt="[^"]{10,}"', tag) for tag in re.findall('<img[^>]{,300}', html))

@each
def test_viewers_leave_something_on_the_page(path): # which has no kernel
    cells, viewer = [c for c in read(path).cells if c.cell_type == 'code'], f'(?:{"|".join(VIEWERS)})\\('
    made = re.findall(rf'^(\w+) = {viewer}', '\n'.join(c.source for c in cells), re.M)
    shown = [c for c in cells if (last := c.source.splitlines()[-1]) in made or re.match(viewer, last)]
    assert not [c.source for c in shown if 'answers to clicks' not in str(c.outputs)]

def test_of_a_viewer_its_picture_is_kept():
    kept = runpy.run_path(str(ROOT/'tools/tutorials.py'))['kept'] # the benchmarks have a module of that name
    def shown(text, **more): return nbformat.v4.new_output('display_data', {'text/plain': text, **more})
    live, png = {'application/vnd.jupyter.widget-view+json': {}}, {'image/png': 'cGlj\n'}
    viewer, empty, plain = kept([shown('TopLosses(9 "pictures")', **live, **png), shown('TrainingDashboard(a)', **live),
                                 shown('VBox()', **live), shown('x', **{'text/html': '<style>progress-bar'}), shown('12')])
    assert viewer.data.keys() == empty.data.keys() == {'text/html', 'text/plain'} and plain.data == {'text/plain': '12'}
    assert viewer.data['text/html'].startswith('<img alt="TopLosses(9 &quot;pictures&quot;)" src="data:image/png;base64,cGlj">')
    assert '<img' not in empty.data['text/html'] and 'this TrainingDashboard answers' in empty.data['text/html']

@each
def test_is_a_page_to_read(path):
    nb = read(path)
    assert [c for c, o in outputs(nb)], "stored without what it shows"
    assert not [o for _, o in outputs(nb) if o.get('name') == 'stderr' or o.output_type == 'error']
    lengths = sorted(len(o.splitlines()) for o in sources(nb, 'code') if 'import' not in o)
    assert lengths[len(lengths)//2] <= 6 and lengths[-1] <= 18, "one idea per cell"

@each
def test_results_are_computed(path): # never typed, or they are those of another day
    text = re.sub('`[^`]*`', '', '\n'.join(sources(read(path), 'markdown')))
    assert not re.findall(r'.{,60}\d ?(?:%|percent\b|points\b)', text)

@each
def test_imports_stand_alone(path):
    for source in sources(read(path), 'code'):
        if 'sys.path' in source or source.startswith('%%'): continue # a module just written, a program of its own
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body}
        assert len(kinds) <= 1, source[:80]

@each
def test_links_lead_to_tutorials(path):
    for text in sources(read(path), 'markdown'):
        for name in re.findall(r'\]\(([\w./]+\.ipynb)\)', text): assert (FOLDER/name).is_file(), name

@each
def test_what_prose_names_exists(path): # no cell runs it
    text = '\n'.join(sources(read(path), 'markdown'))
    verbs = make_parser()._subparsers._group_actions[0].choices
    for line in re.findall(r'(?:^|`)imgcls ([^`\n]+)', text, re.M):
        words = line.split()
        known = [verbs[o]._option_string_actions for o in words if o in verbs]
        assert words[0] in verbs and all(any(o in k for k in known) for o in words if o.startswith('--')), line
    for name in re.findall(r'`(imgcls_nb(?:\.\w+)+)', text): pkgutil.resolve_name(name)
    for name, call in re.findall(r'`(?:ev|evaluate\(.*?\))\.(\w+)(\(?)', text):
        assert callable(getattr(Evaluation, name)) == bool(call), name

def test_what_is_shared_is_the_same():
    cells = [c for o in TUTORIALS for c in sources(read(o), 'code')]
    for start in SHARED:
        found = [o for o in cells if o.startswith(start)]
        assert len(found) > 1 and len(set(found)) == 1, start
    for start in SAME_LINES:
        found = [line for o in cells for line in o.splitlines() if line.startswith(start)]
        assert len(found) > 1 and len(set(found)) == 1, start
    texts = '\n'.join(o for path in TUTORIALS for o in sources(read(path), 'markdown'))
    found = re.findall(f'{SAME_WORDS}.*?\\.', texts)
    assert len(found) > 1 and len(set(found)) == 1, found

@pytest.mark.parametrize('page', ['README.md', 'README.zh.md'])
def test_all_are_listed(page):
    listed = re.findall(r'^- \[(\w+)\]\(nbs/tutorials/\1\.ipynb\)', (ROOT/page).read_text('utf-8'), re.M)
    assert sorted(listed) == names(TUTORIALS)
