"The page for people who do not read code, under Voilà in a browser"
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from importlib.util import find_spec

import pytest
from browsing import chromium, needs_browser, snap, violations, wait_for

absent = not find_spec('voila') and not os.environ.get('CI')
pytestmark = [*needs_browser, pytest.mark.skipif(absent, reason="needs the app extra")]

@pytest.fixture(scope='module')
def page_url(trained_run, model_file, tmp_path_factory):
    "`imgcls app` on a folder of two runs, and its address"
    from imgcls_nb.evaluate import evaluate
    folder = tmp_path_factory.mktemp('app')
    for name in ('first', 'second'):
        run = shutil.copytree(trained_run, folder/'runs'/name)
        shutil.copy(model_file, run/'model.onnx')
        evaluate(run)
    command = [sys.executable, '-m', 'imgcls_nb.cli', 'app', 'runs', '--port', '0', '--no-browser']
    env = {k: v for k, v in os.environ.items() if k != 'MPLBACKEND'}
    with (folder/'log').open('w') as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env=env)
    try:
        address = r'http://(?:127\.0\.0\.1|localhost):\d+/\S*token=\w+'
        found = wait_for(lambda: re.search(address, (folder/'log').read_text()), 60, 'Voilà')
        yield found[0]
        server.terminate()
        server.wait(30)
        with pytest.raises(urllib.error.URLError, match='refused'): urllib.request.urlopen(found[0]) # Voilà has ended with it
    finally:
        with suppress(ProcessLookupError): os.killpg(server.pid, signal.SIGKILL)

def test_a_person_without_code(page_url, shapes, tmp_path):
    failed = []
    with chromium(1200, 1400) as page:
        page.on('requestfailed', lambda o: failed.append((o.url, o.failure)))
        page.goto(page_url, timeout=60_000)
        page.wait_for_selector('text=Image classifier', timeout=120_000)
        assert page.title() == 'Image classifier'
        assert not page.locator('text=ModelPage(').count() and not page.locator('text=import os').count()
        page.fill('input[placeholder^=path]', str(shapes/'square'))
        page.keyboard.press('Enter')
        page.wait_for_selector('.ict li', timeout=60_000)
        assert page.locator('.ict li').first.inner_text().startswith('square')
        snap(page, 'app-try')
        page.click('button:has-text("Where it errs")')
        page.wait_for_selector('.js-plotly-plot .nsewdrag', timeout=60_000)
        page.get_by_label('Model').select_option('first')
        page.wait_for_selector('.js-plotly-plot .nsewdrag', timeout=60_000)
        snap(page, 'app-errs', full_page=True)
        assert not violations(page)
    home = page_url.partition('?')[0]
    assert {why for url, why in failed if not url.startswith(home)} <= {'csp'}, "no other address is asked, whatever Voilà names"

def test_only_who_knows_the_address(page_url):
    home = page_url.partition('?')[0]
    assert '/login' in urllib.request.urlopen(home).url and '/login' in urllib.request.urlopen(f'{home}api/kernels').url
    with pytest.raises(urllib.error.HTTPError, match='403'): urllib.request.urlopen(f'{home}api/kernels', data=b'{}')

