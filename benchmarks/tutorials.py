"""How long the tutorials take, from top to bottom in a real kernel, one after the other.

    python benchmarks/tutorials.py full             # as a reader runs them, about 20 minutes
    python benchmarks/tutorials.py quick            # with `quick = True`, as the tests run them
    python benchmarks/tutorials.py full tuning      # one of them

Each has a new folder and an empty cache, as on a reader's first day; seconds count the start of the kernel too. The first cell of
a tutorial says how many minutes it takes; `full` also counts those that take no more. A tutorial that fails is named, the others
go on, and no bar is met.
"""
import argparse
import math
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from bars import Row, meets, save_rows
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from imgcls_nb.tutorials import with_settings

FOLDER = Path(__file__).parents[1]/'nbs/tutorials'
NUMBERS = dict(a=1, one=1, two=2, three=3)

def read(name): return nbformat.read(FOLDER/f'{name}.ipynb', as_version=4)

def stated(nb):
    "The minutes that a tutorial speaks of in its first cell"
    said = re.search(r'it takes (?:about )?(\w+) minutes?( or two)?\b', nb.cells[0].source)
    return 2 if said[2] else NUMBERS[said[1]]

def seconds_of(nb, settings):
    "What a tutorial takes in a folder of its own, and an error or nothing"
    with tempfile.TemporaryDirectory() as work:
        os.environ['IMGCLS_CACHE'] = f'{work}/cache' # the kernel inherits it
        client = NotebookClient(with_settings(nb, settings), kernel_name='python3', timeout=1200, store_widget_state=False,
                                resources={'metadata': {'path': work}})
        began, error = time.monotonic(), ''
        try: client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as e: error = f'{type(e).__name__}: {e}'
        return time.monotonic() - began, error

def measure(names, settings):
    found, failed = {}, {}
    for name in names:
        found[name], error = seconds_of(read(name), settings)
        print(f"{name:26} {found[name]:5.0f} s {'FAILED' if error else ''}", flush=True)
        if error:
            failed[name] = error
            print(error, file=sys.stderr)
    return found, failed

# What comes of it

def spread(found): return f'{min(found.values()):.0f} to {max(found.values()):.0f} s'

def and_failed(note, failed): return '; '.join([note, *(['failed: ' + ', '.join(failed)] if failed else [])])

def full_rows(found, failed, minutes):
    "Of seconds by name, errors by name, and the minutes that each speaks of"
    name, most = max(found.items(), key=lambda o: o[1])
    late = [f'{k} takes {o:.0f} s' for k, o in found.items() if math.ceil(o/60) > minutes[k]]
    n, total = len(found), sum(found.values())
    return [Row('tutorials, longest', f'{most:.0f} s', meets('tutorials, longest', most) and not failed, spread(found), '',
                and_failed(f'{name}; all {n} together {total:.0f} s', failed)),
            Row('tutorials, stated', f'{n - len(late)} of {n}', not late and not failed, note=', '.join(late))]

def quick_rows(found, failed):
    total = sum(found.values())
    return [Row('tutorials, quick', f'{total:.0f} s', meets('tutorials, quick', total) and not failed, spread(found), '',
                and_failed(f'{len(found)} tutorials', failed))]

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('how', choices=['full', 'quick'])
    parser.add_argument('names', nargs='*', help='of tutorials (default: all)')
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args, known = parser.parse_args(), sorted(o.stem for o in FOLDER.glob('*.ipynb'))
    if odd := [o for o in args.names if o not in known]: parser.error(f"no tutorial is named {odd[0]!r}: {', '.join(known)}")
    found, failed = measure(args.names or known, dict(quick=True) if args.how == 'quick' else {})
    rows = quick_rows(found, failed) if args.how == 'quick' else full_rows(found, failed, {o: stated(read(o)) for o in found})
    for o in rows: print(f"{o.key}: {o.measured}{'' if o.passed else ' MISSED'} ({o.note})")
    save_rows(args.bars, rows)

if __name__ == '__main__': main()
