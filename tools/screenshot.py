"""The picture of README: the confusion viewer, as JupyterLab shows it where the tutorial about errors opens it

    python tools/screenshot.py      # writes nbs/images/confusion_viewer.png
"""
import sys
import tempfile
from pathlib import Path

from fastcore.nbio import read_nb

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tests'))

from browsing import chromium, errors, jupyter, open_notebook, run_all_cells, wait_for, write_notebook

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL, PICTURE = ROOT/'nbs/tutorials/where_the_model_is_wrong.ipynb', ROOT/'nbs/images/confusion_viewer.png'
WIDTH, HEIGHT = 1250, 6000 # as high as all cells, for JupyterLab draws only what is in view
SHOWN = 860 # of the viewer's height, in pixels

def cells(viewer='ConfusionViewer(ev)'):
    "The tutorial's code up to the viewer"
    code = [o.source for o in read_nb(TUTORIAL).cells if o.cell_type == 'code']
    return code[:code.index(viewer) + 1]

def main():
    PICTURE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_notebook(Path(folder)/'errors.ipynb', *cells())
        with jupyter(folder) as url, chromium(WIDTH, HEIGHT) as page:
            open_notebook(page, url, 'errors.ipynb')
            page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
            run_all_cells(page)
            viewer = page.locator('.imgcls')
            wait_for(lambda: viewer.count() or errors(page).count(), 300, 'the viewer')
            if errors(page).count(): sys.exit(errors(page).first.inner_text())
            page.wait_for_selector('.js-plotly-plot .nsewdrag', timeout=60_000)
            page.wait_for_timeout(2000) # until thumbnails have come, too
            box = viewer.first.bounding_box()
            page.screenshot(path=PICTURE, clip=box | dict(height=min(SHOWN, box['height'])))
    print(f'{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size/1e3:.0f} KB')

if __name__ == '__main__': main()
