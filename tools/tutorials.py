"Run tutorials in a real kernel, and store what they show"
import argparse
import tempfile
import time
from html import escape
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from imgcls_nb.tutorials import with_settings
from imgcls_nb.widgets import VIEWERS

FOLDER = Path(__file__).parent.parent/'nbs/tutorials'

LIVE = 'application/vnd.jupyter.widget-view+json'

def still(data): # of a viewer: its picture, with words for those who cannot see it, and where it is more than that
    words = escape(''.join(data['text/plain']))
    html = f'<em>Run the notebook, and this {words.partition("(")[0]} answers to clicks.</em>'
    if png := data.get('image/png'): html = f'<img alt="{words}" src="data:image/png;base64,{png.strip()}"><br>{html}'
    return {'text/html': html, 'text/plain': data['text/plain']}

def kept(outputs): # what a page can show without a kernel
    for o in outputs:
        data = o.get('data', {})
        if 'progress-bar' in ''.join(data.get('text/html', '')): continue # its style stays when a bar is gone
        if LIVE in data:
            if ''.join(data['text/plain']).partition('(')[0] not in VIEWERS: continue
            o['data'] = still(data)
        yield o

def run(path, quick):
    nb, started = nbformat.read(path, as_version=4), time.monotonic()
    if quick: with_settings(nb, dict(quick=True))
    with tempfile.TemporaryDirectory() as work:
        client = NotebookClient(nb, kernel_name='python3', timeout=600, store_widget_state=False,
                                resources={'metadata': {'path': work}})
        client.execute()
    if not quick:
        for c in nb.cells:
            if c.cell_type == 'code': c.outputs, c.execution_count = list(kept(c.outputs)), None
        nbformat.write(nb, path)
    seconds = time.monotonic() - started
    print(f'{path.stem}: {seconds:.0f} s' + ', and a reader waits for three minutes at most'*(seconds > 180 and not quick))

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    known = sorted(o.stem for o in FOLDER.glob('*.ipynb'))
    parser.add_argument('names', nargs='*', metavar='NAME', help=f"some of {', '.join(known)}; none: all")
    parser.add_argument('--quick', action='store_true', help='with little of everything, to see that they run; nothing is stored')
    args = parser.parse_args()
    if odd := [o for o in args.names if o not in known]: parser.error(f"'{odd[0]}' is none of {', '.join(known)}")
    for name in args.names or known: run(FOLDER/f'{name}.ipynb', args.quick)
