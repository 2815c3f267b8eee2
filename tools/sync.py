"Export and clean, and fail when that changed a file: the package must be the export of clean notebooks"
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

def state():
    "Path to hash, for all that nbdev writes"
    found = [*ROOT.glob('nbs/**/*.ipynb'), *ROOT.glob('nbs/**/*.txt'), *ROOT.glob('imgcls_nb/**/*.py')]
    kept = [o for o in found if '.ipynb_checkpoints' not in o.parts]
    return {o.relative_to(ROOT).as_posix(): sha256(o.read_bytes()).hexdigest() for o in kept}

def nbdev(command):
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} # nbdev exports nothing under IN_TEST
    done = subprocess.run([Path(sys.executable).with_name(command)], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f"{command} failed:\n{done.stdout}{done.stderr}")

def orphans():
    "Modules whose notebook is gone"
    for o in ROOT.glob('imgcls_nb/**/*.py'):
        nb = re.search(r'File to edit: (?:\.\./)+(\S+\.ipynb)', o.read_text(encoding='utf-8'))
        if nb and not (ROOT/nb[1]).exists(): yield f"{o.relative_to(ROOT).as_posix()} comes from {nb[1]}, which is gone"

def main():
    before = state()
    nbdev('nbdev-export')
    nbdev('nbdev-clean')
    after, lost = state(), sorted(orphans())
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if changed:
        print("Notebooks and package were out of step. Rewritten just now:", *changed, sep='\n  ')
        print("Look at the changes and keep them. An edit made in imgcls_nb/ is overwritten: make it in the notebook.")
    if lost: print("Delete these modules:", *lost, sep='\n  ')
    return int(bool(changed or lost))

if __name__ == '__main__': sys.exit(main())
