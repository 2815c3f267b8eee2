"Every tutorial runs from top to bottom in a real kernel, with little of everything, and they share their words"
import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from imgcls_nb.tutorials import with_settings

FOLDER = Path(__file__).parent.parent/'nbs/tutorials'
TUTORIALS = sorted(FOLDER.glob('*.ipynb'))
SMALL = dict(quickstart=dict(epochs=2), fine_tuning=dict(epochs=4), resume_after_a_crash=None) # the others have quick=True
SHARED = 'path = few_of_each(data, ', 'def train(' # a cell that begins so is the same in all
SAME_LINES = "data = 'digits'", 'quick = '

def read(path): return nbformat.read(path, as_version=4)

def names(paths): return [o.stem for o in paths]

def sources(nb, kind): return [o.source for o in nb.cells if o.cell_type == kind]

NEW = [o for o in TUTORIALS if o.stem not in SMALL]

def outputs(nb): return [(c, o) for c in nb.cells if c.cell_type == 'code' for o in c.outputs]

@pytest.mark.parametrize('path', TUTORIALS, ids=names(TUTORIALS))
def test_runs_in_a_kernel(path, tmp_path):
    nb, settings = read(path), SMALL.get(path.stem, dict(quick=True))
    if settings: with_settings(nb, settings)
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = []
    NotebookClient(nb, kernel_name='python3', timeout=180, store_widget_state=False,
                   resources={'metadata': {'path': str(tmp_path)}}).execute()
    shown = [o for _, o in outputs(nb)]
    assert not [o.text for o in shown if o.output_type == 'stream' and o.name == 'stderr'], "warnings on the page"
    lines = [o.text.count('\n') for o in shown if o.output_type == 'stream']
    assert max(lines, default=0) <= 25, "a wall of output"

@pytest.mark.parametrize('path', NEW, ids=names(NEW))
def test_opens_and_closes_as_all_do(path):
    texts = sources(read(path), 'markdown')
    assert texts[0].startswith('# ') and 'At the end you will have' in texts[0]
    assert re.search('^## What to try next$', texts[-1], re.M)

@pytest.mark.parametrize('path', NEW, ids=names(NEW))
def test_figures_have_words(path):
    for cell, o in outputs(read(path)):
        html = ''.join(o.get('data', {}).get('text/html', ''))
        assert 'image/png' not in o.get('data', {}), f"use show_figure, which takes words: {cell.source[:80]}"
        assert all(re.search(r'alt="[^"]{10,}"', tag) for tag in re.findall('<img[^>]{,300}', html))

@pytest.mark.parametrize('path', NEW, ids=names(NEW))
def test_is_a_page_to_read(path):
    nb = read(path)
    assert [c for c, o in outputs(nb)], "stored without what it shows"
    assert not [o for _, o in outputs(nb) if o.get('name') == 'stderr' or o.output_type == 'error']
    lengths = sorted(len(o.splitlines()) for o in sources(nb, 'code') if 'import' not in o)
    assert lengths[len(lengths)//2] <= 6 and lengths[-1] <= 18, "one idea per cell"

def test_what_is_shared_is_the_same():
    cells = [c for o in TUTORIALS for c in sources(read(o), 'code')]
    for start in SHARED:
        found = [o for o in cells if o.startswith(start)]
        assert len(found) > 2 and len(set(found)) == 1, start
    for start in SAME_LINES:
        found = [line for o in cells for line in o.splitlines() if line.startswith(start)]
        assert len(found) > 2 and len(set(found)) == 1, start

def test_imports_stand_alone():
    for o in NEW:
        for source in sources(read(o), 'code'):
            if 'sys.path' in source: continue # a module that the notebook has just written
            kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body}
            assert len(kinds) <= 1, f'{o.stem}: {source[:80]}'

def test_links_lead_to_tutorials():
    for o in TUTORIALS:
        for text in sources(read(o), 'markdown'):
            for name in re.findall(r'\]\(([\w./]+\.ipynb)\)', text): assert (FOLDER/name).is_file(), f'{o.stem}: {name}'
