"Run tutorials in a real kernel and store what they show: python tools/tutorials.py [NAME…]; with --quick, only see that they run"
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from imgcls_nb.tutorials import with_settings

FOLDER = Path(__file__).parent.parent/'nbs/tutorials'


def kept(outputs): # what a page can show without a kernel
    return [o for o in outputs if 'application/vnd.jupyter.widget-view+json' not in o.get('data', {})
            and 'progress-bar' not in ''.join(o.get('data', {}).get('text/html', ''))] # its style stays when a bar is gone

def run(path, quick):
    nb, started = nbformat.read(path, as_version=4), time.monotonic()
    if quick: with_settings(nb, dict(quick=True))
    with tempfile.TemporaryDirectory() as work:
        client = NotebookClient(nb, kernel_name='python3', timeout=600, store_widget_state=False,
                                resources={'metadata': {'path': work}})
        client.execute()
    if not quick:
        for c in nb.cells:
            if c.cell_type == 'code': c.outputs, c.execution_count = kept(c.outputs), None
        nbformat.write(nb, path)
    seconds = time.monotonic() - started
    print(f'{path.stem}: {seconds:.0f} s' + ', and a reader waits for three minutes at most'*(seconds > 180 and not quick))

if __name__ == '__main__':
    names = [o for o in sys.argv[1:] if o != '--quick'] or sorted(o.stem for o in FOLDER.glob('*.ipynb'))
    for name in names: run(FOLDER/f'{name}.ipynb', '--quick' in sys.argv)
