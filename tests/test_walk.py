"The newcomer's walk takes all that README says to do out of README itself"
import re
import subprocess
import sys
from pathlib import Path

import pytest
from walk import INSTALLS, LEFT_OUT, ROOT, SERVES, Step, Walk, answers, steps_of

README = (ROOT/'README.md').read_text('utf-8')

def test_every_command_of_readme_is_a_step():
    steps = list(steps_of(README))
    commands = [o for lang, o in steps if lang == 'sh']
    bodies = re.findall(r'^```sh\n(.*?)^```', README, re.M | re.S)
    fenced = [re.sub(r'\s+#.*', '', o) for body in bodies for o in body.splitlines()]
    assert [o for o in commands if o in fenced] == fenced and len(fenced) > 10
    assert {'make quickstart DATA=photos', 'imgcls app runs', 'make lab'} <= set(commands), "those in sentences, too"
    cells = [o for lang, texts in steps if lang == 'python' for o in texts]
    assert cells == re.findall(r'^```python\n(.*?)^```', README, re.M | re.S) and len(cells) >= 5
    assert commands.index('imgcls train photos --arch resnet18 --pretrained --epochs 5') > commands.index('make quickstart')

def test_what_is_left_out_is_still_there():
    commands = {o for lang, o in steps_of(README) if lang == 'sh'}
    assert set(LEFT_OUT) <= commands and [o for o in commands if o.startswith(SERVES)]
    assert [o for o in commands if INSTALLS.search(o)]

@pytest.fixture
def walk(tmp_path):
    walk = Walk(tmp_path)
    walk.home.mkdir()
    return walk

def says(text, code): return f'"{sys.executable}" -c "import sys; print({text!r}); sys.exit({code})"'

def test_a_refusal_needs_a_reason(walk, capsys):
    offline = 'imgcls: weights cannot be downloaded; put them there'
    for line in (says('fine', 0), says(offline, 2), says(offline, 2) + ' --pretrained', says(offline, 1) + ' --pretrained',
                 says('Traceback imgcls: download', 2) + ' --pretrained', says('imgcls: no such option', 2) + ' --pretrained'):
        walk.run('README', line)
    assert [o.status for o in walk.steps] == ['done', 'FAILED', 'refused', 'FAILED', 'FAILED', 'FAILED']
    walk.tell()
    assert capsys.readouterr().out.count('  FAILED: README: ') == 4

def test_what_needs_a_refused_result_may_be_refused(walk):
    line = says('imgcls: There are no weights there', 2) + ' -o Global.pretrained_model=x'
    walk.run('README', line)
    walk.note(Step('README', 'imgcls train --pretrained', 'refused'))
    walk.run('README', line)
    assert [o.status for o in walk.steps] == ['FAILED', 'refused', 'refused']

SERVER = "import http.server, sys; s = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler); " \
         "print(f'http://127.0.0.1:{s.server_port}/', flush=True); s.serve_forever()"

def test_a_server_is_asked_and_stopped(walk):
    walk.serve('README', f'"{sys.executable}" -c "{SERVER}"')
    url = re.search(r'http://\S+', Path(walk.home, 'served.log').read_text())[0]
    walk.serve('README', says('http://127.0.0.1:9/', 1))
    assert [o.status for o in walk.steps] == ['done', 'FAILED'] and not answers(url)

def test_a_command_without_an_end_fails(walk, monkeypatch):
    monkeypatch.setattr('walk.HOUR', .5)
    walk.run('README', f'"{sys.executable}" -c "import time; time.sleep(60)"; true')
    assert walk.steps[0].status == 'FAILED' and 'did not end' in walk.steps[0].said

def test_the_tools_explain_themselves():
    for name in ('walk', 'soak'):
        done = subprocess.run([sys.executable, ROOT/f'tests/{name}.py', '--help'], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and '--keep' in done.stdout
