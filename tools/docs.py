"""Build the site: chapters and tutorials as they are stored, nothing is run, and a reference of all that is public

    python tools/docs.py               # build/site, links and pictures checked
    python tools/docs.py --only 60     # chapters whose name begins so; for a quick look
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from fastcore.nbio import read_nb, write_nb

sys.path.insert(0, str(Path(__file__).parent)) # also when a test imports this

from api import public_names

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT/'build/docs', ROOT/'build/site'
PAGES_OF_ROOT = 'README.md README.zh.md CONTRIBUTING.md CHANGELOG.md benchmarks/RESULTS.md benchmarks/RECIPES.md'.split()

# Pages

def new_place(link, page):
    "Where a link of `page`, a path in the repository, leads on the site; what is not on it stays"
    path, hash_, anchor = link.partition('#')
    if not path or urlsplit(link).scheme: return link
    target = (ROOT/page).parent.joinpath(path).resolve()
    if not target.is_relative_to(ROOT) or not target.exists(): return link
    name = target.relative_to(ROOT).as_posix()
    to, here = on_site(name), on_site(page)
    if to is None: return None
    up = '../'*here.count('/')
    return f'{up}{to}{hash_}{anchor}'

def on_site(name):
    "The page of a file of the repository, or None"
    if name == 'README.md': return 'index.html'
    if name in PAGES_OF_ROOT: return Path(name).name.replace('.md', '.html')
    if name.startswith('nbs/') and name.endswith('.ipynb'): return name.removeprefix('nbs/').replace('.ipynb', '.html')
    if name.startswith('nbs/') and Path(name).suffix in ('.png', '.svg'): return name.removeprefix('nbs/')

def relink(text, page):
    "Links to files become links to pages; a file that has none is only named"
    def swap(m):
        to = new_place(m[2], page)
        return f'[{m[1]}]({to})' if to is not None else m[1]
    return re.sub(r'\[([^\]\n]*)\]\(([^)\s]+)\)', swap, text)

def name_links(text, names, up):
    "What is public and stands in backticks leads to the reference; code blocks and links stay"
    parts = re.split(r'(^```.*?^```|\[[^\]]*\]\([^)]*\)|^#.*$)', text, flags=re.M | re.S)
    def swap(m): return f'[`{m[1]}`]({up}api/{names[m[1]][0]}.html#{names[m[1]][1]})' if m[1] in names else m[0]
    return ''.join(o if i % 2 else re.sub(r'(?<!`)`([A-Za-z_]\w*)`(?!`)', swap, o) for i, o in enumerate(parts))

def words_above(text):
    "The last paragraph of prose, without its marks"
    prose = re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S).strip()
    return ' '.join(re.sub(r'\[([^\]]*)\]\([^)]*\)|\*\*|[`#>]', r'\1', re.split(r'\n\s*\n', prose)[-1]).split())

def give_words(cells):
    "A picture is told to those who cannot see it: by the line of the viewer that it stands for, else by the prose above it"
    said = ''
    for c in cells:
        if c.cell_type == 'markdown': said = words_above(c.source) or said
        for data in (o.get('data', {}) for o in c.get('outputs', ())):
            found = {k: ''.join(data.pop(k)).strip() for k in ('image/jpeg', 'image/png') if k in data} # the last one is kept
            for kind, picture in found.items():
                line = ''.join(data.get('text/plain', ''))
                words = said if line.startswith('<') or not line else line
                data['text/html'] = f'<img alt="{escape(words)}" src="data:{kind};base64,{picture}">'

def write_chapter(path, names):
    nb, page = read_nb(path), path.relative_to(ROOT).as_posix()
    nb['cells'] = [o for o in nb.cells if not (o.cell_type == 'code' and o.has_directive('hide'))
                   and not o.source.startswith('#| default_exp')]
    give_words(nb.cells)
    for o in nb.cells:
        if o.cell_type == 'code': o.remove_directives()
        elif o.cell_type == 'markdown': o['source'] = name_links(relink(o.source, page), names, '../'*(page.count('/') - 1))
    out = PAGES/path.relative_to(ROOT/'nbs')
    out.parent.mkdir(parents=True, exist_ok=True)
    write_nb(nb, out)

def write_reference(modules):
    for o in modules:
        out = PAGES/f'api/{o}.md'
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f'# {o.removeprefix("imgcls_nb.")}\n\n::: {o}\n', 'utf-8')

def write_pages(chapters, names):
    shutil.rmtree(PAGES, ignore_errors=True)
    for o in chapters: write_chapter(o, names)
    for o in PAGES_OF_ROOT:
        text = relink((ROOT/o).read_text('utf-8'), o)
        (PAGES/('index.md' if o == 'README.md' else Path(o).name)).write_text(text, 'utf-8')
    shutil.copy(ROOT/'tools/site.css', PAGES)
    for o in (ROOT/'nbs').rglob('*'):
        if o.suffix in ('.png', '.svg') and '.ipynb_checkpoints' not in o.parts:
            (PAGES/o.relative_to(ROOT/'nbs')).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(o, PAGES/o.relative_to(ROOT/'nbs'))

# Navigation

def parts():
    "Parts of the package and their chapters, as README's table has them"
    for line in (ROOT/'README.md').read_text('utf-8').splitlines():
        if m := re.match(r'\| \*\*(.+?)\*\*', line): yield m[1], re.findall(r'\(nbs/([^)]+\.ipynb)\)', line)

def title(page):
    first = next((o.source for o in read_nb(ROOT/'nbs'/page).cells if o.cell_type == 'markdown'), page)
    return re.sub(r'^#+ ', '', first.split('\n')[0])

def navigation(chapters, modules):
    there = {o.relative_to(ROOT/'nbs').as_posix() for o in chapters}
    known = re.findall(r'\(nbs/(tutorials/[^)]+\.ipynb)\)', (ROOT/'README.md').read_text('utf-8'))
    order = [*dict.fromkeys([*known, *sorted(o for o in there if o.startswith('tutorials/'))])]
    tutorials = [{title(o): o} for o in order if o in there]
    book = [{part: [{Path(o).stem.partition('_')[2]: o} for o in found]} for part, every in parts()
            if (found := [o for o in every if o in there])]
    pages = [{'Moving over from PaddleClas': 'from_paddleclas.ipynb'}, {'从 PaddleClas 迁移': 'from_paddleclas.zh.ipynb'},
              {'ImageNet on many GPUs': 'many_gpus.ipynb'}]
    nav = [{'Home': ['index.md', {'中文': 'README.zh.md'}, *(o for o in pages if set(o.values()) <= there),
                     {'Results': 'RESULTS.md'}, {'Recipes': 'RECIPES.md'},
                     {'Changes': 'CHANGELOG.md'}, {'Contributing': 'CONTRIBUTING.md'}]},
           {'Tutorials': tutorials}, {'Chapters': book},
           {'Reference': [{o.removeprefix('imgcls_nb.'): f'api/{o}.md'} for o in modules]}]
    return [o for o in nav if list(o.values())[0]]

# Building

NO_WORDS = 'No description has been provided for this image' # nbconvert writes it where there are none

class Links(HTMLParser):
    "What a page links to, what it shows, and the places in it"
    def __init__(self, page):
        super().__init__()
        self.links, self.ids, self.silent, self.foreign = [], set(), [], []
        self.feed(page.read_text('utf-8'))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[o] for o in ('id', 'name') if a.get(o)}
        fetched = a.get('src') or (a.get('href') if tag == 'link' and a.get('rel') in ('stylesheet', 'icon') else None)
        if fetched and urlsplit(fetched).scheme in ('http', 'https'): self.foreign.append(fetched)
        elif to := a.get('src') or a.get('href'): self.links.append(to)
        if tag == 'img' and a.get('alt') in (None, '', NO_WORDS): self.silent.append(a.get('src', '')[:60])

def broken_links(site):
    "What leads nowhere, is fetched from elsewhere, or is a picture without a text"
    pages = {o.resolve(): Links(o) for o in site.rglob('*.html') if o.name != '404.html'}
    for page, found in pages.items():
        name = page.relative_to(site.resolve()).as_posix()
        yield from (f'{name}: fetches {o}' for o in found.foreign)
        yield from (f'{name}: {o} is shown without a text' for o in found.silent)
        for link in found.links:
            path, _, anchor = link.partition('#')
            if urlsplit(link).scheme or link.startswith('//'): continue
            target = (page.parent/unquote(path.partition('?')[0])).resolve() if path else page
            if not target.exists(): yield f'{name}: {link} is not there'
            elif anchor and target in pages and unquote(anchor) not in pages[target].ids:
                yield f'{name}: {link} has no such place'

def broken_search(site):
    "What the search leads to and is not there, or stands in its index twice, at which the search in the browser fails"
    found = json.loads((site/'search/search_index.json').read_text('utf-8'))['docs']
    ids = cache(lambda page: Links(page).ids)
    for location, n in Counter(o['location'] for o in found).items():
        path, _, anchor = location.partition('#')
        page = site/(path or 'index.html')
        if n > 1: yield f'search: {location} is there {n} times'
        if not page.exists() or anchor and anchor not in ids(page): yield f'search: {location} is not there'

def build(only=''):
    "What is wrong with the site; it is in its place when it is whole and was looked through"
    found = [o for o in sorted((ROOT/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in o.parts]
    chapters = [o for o in found if o.name != 'index.ipynb' and o.parent.name != 'app'
                and o.relative_to(ROOT/'nbs').as_posix().startswith(only)]
    names, modules = public_names()
    if only: modules = [o for o in modules if any(o.rpartition('.')[2] in c.name for c in chapters)]
    n = len(chapters) + len(modules) + len(PAGES_OF_ROOT)
    print(f'Building {n} pages, about {max(10, round(n/3, -1)):.0f} seconds; more on a busy machine', flush=True)
    write_pages(chapters, {} if only else names)
    write_reference(modules)
    cfg = yaml.safe_load((ROOT/'mkdocs.yml').read_text('utf-8'))
    config = PAGES.with_name('mkdocs.yml')
    unfinished = SITE.with_name(f'{SITE.name}.unfinished')
    hooks = [str(ROOT/'tools/headings.py')]
    cfg |= dict(docs_dir=str(PAGES), site_dir=str(unfinished), nav=navigation(chapters, modules), hooks=hooks)
    config.write_text(yaml.safe_dump(cfg, allow_unicode=True, sort_keys=False), 'utf-8')
    here = os.pathsep.join([str(ROOT/'tools'), str(ROOT)]) # docments.py, and this checkout's package
    env = os.environ | dict(NO_MKDOCS_2_WARNING='1', PYTHONPATH=here)
    command = [sys.executable, '-m', 'mkdocs', 'build', '--quiet', '--clean', '-f', str(config)]
    if status := subprocess.run(command, cwd=ROOT, env=env).returncode: sys.exit(status)
    bad = sorted({*broken_links(unfinished), *broken_search(unfinished)})
    shutil.rmtree(SITE, ignore_errors=True)
    unfinished.rename(SITE)
    return bad

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='', help='beginning of the names of chapters')
    args = parser.parse_args()
    bad = build(args.only)
    print(*bad, f'{SITE}/index.html', sep='\n')
    return int(bool(bad) and not args.only)

if __name__ == '__main__': sys.exit(main())
