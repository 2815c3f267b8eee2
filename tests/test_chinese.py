"The pages in Chinese say the same commands as those in English"
import re
from collections import Counter
from pathlib import Path

import pytest
from fastcore.nbio import read_nb

ROOT = Path(__file__).resolve().parents[1]

def blocks(text): # fenced ones, without their comments, which are translated
    found = re.findall(r'^```(\w*)\n(.*?)^```', text, re.M | re.S)
    return [(lang, re.sub(r'\s+#.*', '', body) if lang else body) for lang, body in found]

def test_readme_has_the_same_commands():
    english, chinese = ((ROOT/o).read_text('utf-8') for o in ('README.md', 'README.zh.md'))
    assert blocks(chinese) == blocks(english)
    assert 'README.zh.md' in english and '](README.md)' in chinese

def test_links_of_the_chinese_readme_exist():
    text = (ROOT/'README.zh.md').read_text('utf-8')
    assert not [o for o in re.findall(r'\]\((?!http)([^)#]+)', text) if not (ROOT/o).exists()]

PAGE = [read_nb(ROOT/f'nbs/from_paddleclas{o}.ipynb').cells for o in ('', '.zh')]

def test_the_page_about_paddleclas_runs_the_same_cells():
    english, chinese = ([(o.cell_type, o.source if o.cell_type == 'code' else '') for o in cells] for cells in PAGE)
    assert chinese == english

@pytest.mark.parametrize('english, chinese', [o for o in zip(*PAGE) if o[0].cell_type == 'markdown'],
                         ids=lambda o: o.source.splitlines()[0][:30])
def test_the_page_about_paddleclas_names_the_same_things(english, chinese):
    named = [Counter(re.findall(r'`([^`\n]+)`', o.source)) for o in (english, chinese)]
    assert named[1] == named[0]
    assert english.source.count('\n|') == chinese.source.count('\n|'), "a row is missing"
    assert re.search('[\u4e00-\u9fff]', chinese.source)
