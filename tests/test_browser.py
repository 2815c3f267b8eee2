"""A tutorial in JupyterLab, in a browser, as a reader runs it."""
from pathlib import Path

import nbformat
from browsing import chromium, errors, jupyter, needs_browser, open_notebook, run_all_cells, wait_for

from imgcls_nb.tutorials import with_settings

ROOT = Path(__file__).parent.parent

pytestmark = needs_browser


def test_quickstart_in_jupyterlab(tmp_path):
    nb = nbformat.read(ROOT/'nbs/tutorials/quickstart.ipynb', as_version=4)
    with_settings(nb, dict(epochs=2))
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = [] # what is seen was made here
    nbformat.write(nb, tmp_path/'quickstart.ipynb')
    with jupyter(tmp_path) as url, chromium() as page:
        open_notebook(page, url, 'quickstart.ipynb')
        run_all_cells(page)
        wrong, done = errors(page), tmp_path/'runs/quickstart/summary.json'
        wait_for(lambda: done.exists() or wrong.count(), 240)
        seen = {'.jp-OutputArea-output table': 2, '.jp-OutputArea-output img': 4} # batch, confusion, errors, example
        wait_for(lambda: wrong.count() or all(page.locator(k).count() >= n for k, n in seen.items()), 30)
        wait_for(lambda: 'held-out pictures' in page.locator('.jp-Notebook:visible').inner_text(), 30)
        assert wrong.count() == 0
        assert page.locator('.jp-RenderedText[data-mime-type*=stderr]').count() == 0, 'warnings on the page'
    assert (tmp_path/'runs/quickstart/model.onnx').stat().st_size > 500_000
