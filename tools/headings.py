"Headings: each has one place, the same in the page, in its table of contents and in the search"
import re

from markdown.extensions.toc import nest_toc_tokens, slugify_unicode, unique
from mkdocs.structure.toc import get_toc

HEADING = re.compile(r'<h([1-6]) id="[^"]*">((?:(?!</h\1>).)*)<a class="anchor-link"[^>]*>[^<]*</a></h\1>', re.S)
COPY = '<div class="zeroclipboard-container">' # its word "Copied!" is not to be found

def on_config(config): # a Chinese heading is a place as well, and not a number
    config.mdx_configs.setdefault('toc', {})['slugify'] = slugify_unicode

def on_page_content(html, page, config, files):
    "Chapters, whose headings do not pass through the extensions of mkdocs.yml; before the search reads the page"
    if page.file.src_uri.startswith('tutorials/'): page.meta['search'] = dict(boost=2) # found before the reference
    if not page.file.src_uri.endswith('.ipynb'): return html
    taken, found = set(), []
    def place(m):
        words = re.sub('<[^>]+>', '', m[2])
        name = unique(slugify_unicode(re.sub(r'&\w+;', '', words), '-'), taken)
        found.append(dict(level=int(m[1]), name=words, id=name))
        return f'<h{m[1]} id="{name}">{m[2]}<a class="headerlink" href="#{name}" title="This place">¶</a></h{m[1]}>'
    html = HEADING.sub(place, html.replace(COPY, f'{COPY[:-1]} data-search-exclude="true">'))
    page.toc = get_toc(nest_toc_tokens(found))
    return html
