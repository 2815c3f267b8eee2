"Take the code cells of nbs/from_paddleclas.ipynb, with what they show, over into its translation; prose is translated by hand"
from copy import deepcopy
from pathlib import Path

from fastcore.nbio import read_nb, write_nb

NBS = Path(__file__).resolve().parents[1]/'nbs'

def main(english=NBS/'from_paddleclas.ipynb', chinese=NBS/'from_paddleclas.zh.ipynb'):
    theirs, ours = read_nb(english), read_nb(chinese)
    code = iter([o for o in theirs.cells if o.cell_type == 'code'])
    for o in ours.cells:
        if o.cell_type != 'code': continue
        new = deepcopy(next(code))
        o['source'], o['outputs'] = new.source, new.outputs
    write_nb(ours, chinese)

if __name__ == '__main__': main()
