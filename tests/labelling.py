"What the processes of tests/test_split.py do: label pictures, note which, and be killed on the way"
import json
import os
import signal
import sys
from pathlib import Path

from imgcls_nb.cli import make_parser
from imgcls_nb.deploy import save_predictions
from imgcls_nb.predict import Predictor
from imgcls_nb.ranks import rank
from imgcls_nb.records import Records


def noting(notes, die):
    "Every process notes the pictures it labels; the second of them dies before its fourth batch, if `die` is not there yet"
    label, batches = Predictor._label, []
    def noted(self, group, k):
        batches.append(group)
        if rank() == 1 and len(batches) == 4 and die and not die.exists():
            die.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with open(notes/f'{os.getpid()}.txt', 'a') as f: f.writelines(f'{Path(o).name}\n' for o, _ in group)
        yield from label(self, group, k)
    Predictor._label = noted

def waiting(mark, rows):
    "The first process waits to be killed when so many rows are written"
    add, n = Records.add, []
    def added(self, row):
        add(self, row)
        n.append(row)
        if len(n) < rows: return
        mark.touch()
        signal.pause()
    Records.add = added

def several(file):
    "Commands of a JSON file, one after the other, with a line between what they print"
    for o in json.loads(Path(file).read_text()):
        args = make_parser().parse_args(o)
        status = args.func(args)
        if rank() == 0: print(f'status {status}')

def main(model, pictures, notes, how, *outs):
    notes, (how, _, arg) = Path(notes), how.partition(':')
    noting(notes, notes/f'died-{arg}' if how == 'die' else None)
    if how == 'wait': waiting(notes/'waits', int(arg))
    for o in outs: save_predictions(Predictor(model, threads=1), [pictures], o, bs=2)

if __name__ == '__main__': (several if len(sys.argv) == 2 else main)(*sys.argv[1:])
