"Render nbs/index.ipynb to README.md; with --check, only say whether they agree"
import posixpath
import re
import sys
from pathlib import Path

from fastcore.nbio import join_out, read_nb

ROOT = Path(__file__).resolve().parents[1]

def fence(text, lang=''):
    ticks = '`' * max(3, *(len(o) + 1 for o in re.findall('`{3,}', text)), 3)
    return f"{ticks}{lang}\n{text.strip(chr(10))}\n{ticks}"

def texts(outputs):
    "The outputs that a page of text can show: what was printed, and values without a picture or table"
    for o in outputs:
        data = o.get('data', {})
        text = o['text'] if o.get('name') == 'stdout' else data.get('text/plain', '') if set(data) <= {'text/plain'} else ''
        if join_out(text).strip(): yield fence(join_out(text))

MARK = re.compile(r'<!-- table of (\S+) -->') # a notebook shows nothing in its place

def first_table(page): return re.search(r'(?:^\|.*\n)+', page.read_text(encoding='utf-8'), re.M)[0].rstrip('\n')

def from_root(text, folder):
    "A text of a notebook in `folder` for a page at the root: links lead where they led"
    def swap(m): return f']({posixpath.normpath(posixpath.join(folder, m[1]))}'
    parts = re.split(r'(^```.*?^```|`[^`\n]*`)', text, flags=re.M | re.S) # code stays
    return ''.join(o if i % 2 else re.sub(r'\]\((?![a-z]+:|#)([^)\s]+)', swap, o) for i, o in enumerate(parts))

def blocks(nb, folder):
    for cell in nb.cells:
        if cell.has_directive('hide'): continue
        cell.remove_directives()
        source = cell.source.strip()
        if not source: continue
        if cell.cell_type == 'markdown': yield MARK.sub(lambda m: first_table(ROOT/m[1]), from_root(source, folder))
        elif cell.cell_type == 'code':
            shell = re.match(r'%%(?:ba)?sh\b.*\n', source)
            yield fence(source[shell.end():], 'sh') if shell else fence(source, 'python')
            yield from texts(cell.get('outputs', []))

def render(path=ROOT/'nbs/index.ipynb'):
    return '\n\n'.join(blocks(read_nb(path), path.parent.relative_to(ROOT).as_posix())) + '\n'

def main(check=False, readme=ROOT/'README.md'):
    text = render()
    if not check: readme.write_text(text, encoding='utf-8', newline='\n')
    elif not readme.exists() or readme.read_text(encoding='utf-8') != text:
        sys.exit("README.md is not the rendering of nbs/index.ipynb: run `python tools/readme.py`.")

if __name__ == '__main__':
    if sys.argv[1:] not in ([], ['--check']): sys.exit("usage: python tools/readme.py [--check]")
    main(bool(sys.argv[1:]))
