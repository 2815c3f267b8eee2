"""How long a person waits for the confusion viewer: until it is there, and after each click.

    python benchmarks/widgets.py
    python benchmarks/widgets.py --browser
    python benchmarks/widgets.py --classes 1000 --pictures 50000 --json out.json

The evaluation is made up: a tenth of the guesses is wrong, mostly within groups of ten classes. Its probabilities are mapped
from a file, as those of a saved evaluation are. The pictures are JPEG files of 500x375 pixels, each under a name of its own, so
that no click finds a thumbnail that an earlier one has made.

1. In the kernel. `open` makes the viewer from the evaluation, `view` builds its widgets and the twin on paper. Then cells are
   clicked, each of which holds pictures; a click ends when everything is handed to the browser: 24 thumbnails, the picture in
   large, and what is drawn of the matrix. Of many classes the matrix is drawn in squares, so that there are clicks that go in
   (`zoom`) and clicks that choose (`click`). Medians, and the slowest of all.
2. With `--browser`, in JupyterLab in headless Chromium: from choosing a pair in the list of the most confused ones until
   its pictures are on the screen.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bars import Row, judged, save_rows
from PIL import Image

from imgcls_nb.edits import Edits
from imgcls_nb.evaluation import Evaluation
from imgcls_nb.widgets.confusion import CELLS, ConfusionViewer

FILES, CLICKS, VIEWS = 64, 20, 5

def make_evaluation(folder, classes, pictures):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(classes)
    targs = rng.integers(0, classes, pictures)
    near = targs//10*10 + rng.integers(0, 10, pictures)
    preds = np.where(rng.random(pictures) < .1, np.minimum(near, classes - 1), targs)
    probs = np.lib.format.open_memmap(folder/'probs.npy', 'w+', np.float32, (pictures, classes))
    for start in range(0, pictures, 5000):
        part = rng.random((min(5000, pictures - start), classes), np.float32)*(.5/classes)
        part[np.arange(len(part)), preds[start:start + len(part)]] += 1 - part.sum(1)
        probs[start:start + len(part)] = part
    (folder/'pictures').mkdir()
    names = [f'{i:06}.jpg' for i in range(pictures)]
    for i, name in enumerate(names):
        file = folder/'pictures'/name
        if i < FILES: Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((500, 375), 3).save(file, quality=90)
        else: os.link(folder/'pictures'/names[i % FILES], file)
    np.savez(folder/'rest.npz', targs=targs, vocab=[f'class {i:04}' for i in range(classes)], names=names)

def open_evaluation(folder):
    with np.load(folder/'rest.npz') as f: targs, vocab, names = f['targs'], f['vocab'].tolist(), f['names'].tolist()
    ev = Evaluation(np.load(folder/'probs.npy', mmap_mode='r'), targs, vocab, names, root=folder/'pictures')
    assert len(ev.preds) # it is opened before it is viewed
    return ev

# ---- In the kernel

def timed(do, *args):
    start = time.perf_counter()
    do(*args)
    return (time.perf_counter() - start)*1000

def show(viewer): return viewer.widget, viewer.plot()

def place_of(map_, truth, guess, step=1):
    top, _, left, _ = map_.window
    return (map_.place(truth) - top)//step, (map_.place(guess) - left)//step

def cells_to_click(ev, n=CLICKS):
    counts = ev.confusion.counts.copy()
    counts[np.diag_indices(len(counts))] //= 4 # mostly mistakes
    order = np.argsort(-counts, axis=None, kind='stable')[:n]
    return [tuple(map(int, divmod(o, len(counts)))) for o in order]

def measure_kernel(folder):
    ev = open_evaluation(folder)
    made = timed(lambda: ConfusionViewer(ev, edits=False)) # what is counted of an evaluation, it keeps
    view = []
    for _ in range(VIEWS):
        viewer = ConfusionViewer(ev, edits=Edits(folder/'edits.jsonl', root=folder/'pictures'))
        view.append(timed(show, viewer))
    zooms, clicks = [], []
    for truth, guess in cells_to_click(ev):
        viewer.whole()
        if (step := -(-len(ev.vocab)//CELLS)) > 1: zooms.append(timed(viewer.click, *place_of(viewer.map, truth, guess, step)))
        clicks.append(timed(viewer.click, *place_of(viewer.map, truth, guess)))
        assert viewer.map.cell == (truth, guess) and len(viewer.gallery.order)
    sent = len(json.dumps(viewer.desk.page)) + len(json.dumps(viewer.desk.marks))
    return dict(open=made, view=view, zoom=zooms, click=clicks, kilobytes=sent/1000)

# ---- In the browser

CELL = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from widgets import open_evaluation
from imgcls_nb.widgets.confusion import ConfusionViewer
viewer = ConfusionViewer(open_evaluation(Path({folder!r})), edits=False)
viewer
"""
SHOWN = """before => { const status = document.querySelector('.icd-status')?.textContent
  const images = [...document.querySelectorAll('.icd-card img')]
  return status !== before && images.length > 0 && images.every(o => o.complete) }"""

def measure_browser(folder):
    sys.path.insert(0, str(Path(__file__).parents[1]/'tests'))
    from browsing import chromium, jupyter, open_notebook, run_all_cells, write_notebook
    write_notebook(folder/'view.ipynb', CELL.format(here=str(Path(__file__).parent), folder=str(folder)))
    with jupyter(folder) as url, chromium(1300, 2200) as page:
        open_notebook(page, url, 'view.ipynb')
        run_all_cells(page)
        page.wait_for_selector('.js-plotly-plot .nsewdrag', timeout=120_000)
        page.wait_for_selector('.icd', timeout=30_000)
        page.wait_for_timeout(2000)
        options, clicks = page.get_by_label('Most confused pairs'), []
        for i in range(CLICKS):
            before = page.locator('.icd-status').inner_text()
            start = time.perf_counter()
            options.select_option(index=i)
            page.wait_for_function(SHOWN, arg=before, polling='raf', timeout=30_000)
            clicks.append((time.perf_counter() - start)*1000)
    return dict(screen=clicks)

# ---- The table

def row(classes, pictures, m):
    def both(times): return f'{statistics.median(times):8.0f} /{max(times):5.0f}' if times else f"{'':>14}"
    view = statistics.median(m['view'])
    cells = [f'{classes:>7}', f'{pictures:>8}', f"{m['open']:>6.0f}", f'{view:>6.0f}', both(m['zoom']), both(m['click']),
             f"{m['kilobytes']:>6.0f}", both(m.get('screen'))]
    return '  '.join(cells)

def bar_rows(m): # of 1000 classes
    def clicks(key, times):
        middle = statistics.median(times)
        return judged(key, middle, f'{middle:.0f} ms', f'{min(times):.0f} to {max(times):.0f} ms')
    yield clicks('click, kernel', m['click'])
    if 'screen' in m: yield clicks('click, screen', m['screen'])
    waits = [m['open'] + o for o in m['view']]
    yield Row('view, kernel', f'{statistics.median(waits):.0f} ms', spread=f'{min(waits):.0f} to {max(waits):.0f} ms',
              note=f"of these {m['open']:.0f} ms for the figures behind it, once")

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--classes', type=int, nargs='+', default=[10, 100, 1000])
    parser.add_argument('--pictures', type=int, default=50_000)
    parser.add_argument('--browser', action='store_true', help='measure in JupyterLab, too')
    parser.add_argument('--json', help='write all figures to this file')
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args, found = parser.parse_args(), {}
    print('milliseconds: median / slowest')
    print('classes  pictures    open    view            zoom            click      kB    from the list')
    for classes in args.classes:
        with tempfile.TemporaryDirectory() as temp:
            folder = Path(temp)/'evaluation'
            make_evaluation(folder, classes, args.pictures)
            found[classes] = measure_kernel(folder) | (measure_browser(folder) if args.browser else {})
            print(row(classes, args.pictures, found[classes]), flush=True)
    if args.json: Path(args.json).write_text(json.dumps(found, indent=1))
    if 1000 in found: save_rows(args.bars, bar_rows(found[1000]))

if __name__ == '__main__': main()
