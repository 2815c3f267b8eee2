"""How long `make test` takes as a whole, the install of an empty environment included, and the share of some of its tests.

    python benchmarks/suite.py

The last commit is cloned into a new folder, as a reader has it; what is not committed is not tested. pip may take packages from
its own cache, or from the network. Shares are sums over single tests, with what they set up; those in a browser run one after the
other, and of most others two at a time.
"""
import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from bars import Row, judged, meets, save_rows

ROOT = Path(__file__).resolve().parents[1]
OURS = 'PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV', 'IMGCLS_CACHE' # what this process runs in is not the clone's

def measure(folder):
    "Minutes and exit status of `make test` in a new clone, and its tests: name to seconds, and whether they need a browser"
    clone = Path(folder)/'imgcls_nb'
    subprocess.run(['git', 'clone', '--quiet', ROOT, clone], check=True)
    env, began = {k: v for k, v in os.environ.items() if k not in OURS}, time.monotonic()
    status = subprocess.run(['make', 'test'], cwd=clone, env=env).returncode
    minutes, times = (time.monotonic() - began)/60, clone/'.venv/times.json'
    return minutes, status, json.loads(times.read_text('utf-8')) if times.is_file() else {}

def share(times, chosen): return sum(o['seconds'] for name, o in times.items() if chosen(name, o))/60 # minutes

def counted(n): return f"{n} test{'s'*(n != 1)}"

def rows(minutes, status, times):
    note = counted(len(times)) + f'; it failed, with status {status}'*bool(status)
    yield Row('suite, whole', f'{minutes:.1f} minutes', meets('suite, whole', minutes) and not status, note=note)
    if not times: return # it did not come to them
    for key, chosen in (('suite, browser', lambda name, o: o['browser']), ('suite, kills', lambda name, o: is_kill(name))):
        part = share(times, chosen)
        yield judged(key, part, f'{part:.1f} minutes', note=counted(sum(chosen(*o) for o in times.items())))

def is_kill(name): return 'test_resume.py' in name and 'killed' in name

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder: found = list(rows(*measure(folder)))
    for o in found: print(f"{o.key}: {o.measured}{'' if o.passed else ' MISSED'} ({o.note})")
    save_rows(args.bars, found)

if __name__ == '__main__': main()
