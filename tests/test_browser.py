"""A tutorial in JupyterLab, in a browser, as a reader runs it."""
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from imgcls_nb.tutorials import with_settings

ROOT = Path(__file__).parent.parent
CHROMIUM = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
            '--disable-component-update --disable-sync')

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not shutil.which('chromium'), reason="needs Debian's chromium")]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@contextmanager
def jupyter_lab(folder):
    port = free_port()
    url = f'http://127.0.0.1:{port}'
    options = ['--no-browser', '--ip=127.0.0.1', f'--port={port}', '--allow-root', '--IdentityProvider.token=']
    server = subprocess.Popen([sys.executable, '-m', 'jupyter', 'lab', *options, f'--ServerApp.root_dir={folder}'],
                              env={k: v for k, v in os.environ.items() if k != 'MPLBACKEND'}, # figures belong on the page
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: urllib.request.urlopen(f'{url}/api').status == 200, 60)
        yield url
    finally:
        server.terminate()
        server.wait(30)

def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition(): return
        except OSError: pass
        time.sleep(0.5)
    raise AssertionError(f'not within {seconds} s')

@contextmanager
def page_of(url, notebook):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which('chromium'), args=CHROMIUM.split())
        page = browser.new_page(viewport=dict(width=1300, height=6000)) # all cells at once: Lab draws only what is in view
        page.goto(f'{url}/lab/tree/{notebook}?reset', timeout=60_000)
        page.wait_for_selector('.jp-Notebook:visible .jp-Cell', timeout=60_000)
        yield page
        browser.close()

def run_all_cells(page):
    page.click('.jp-Notebook:visible .jp-Cell')
    page.keyboard.press('Escape')
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')


def test_quickstart_in_jupyterlab(tmp_path):
    nb = nbformat.read(ROOT/'nbs/tutorials/quickstart.ipynb', as_version=4)
    with_settings(nb, dict(epochs=2))
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = [] # what is seen was made here
    nbformat.write(nb, tmp_path/'quickstart.ipynb')
    with jupyter_lab(tmp_path) as url, page_of(url, 'quickstart.ipynb') as page:
        run_all_cells(page)
        errors, done = page.locator('.jp-RenderedText[data-mime-type*=error]'), tmp_path/'runs/quickstart/summary.json'
        wait_for(lambda: done.exists() or errors.count(), 240)
        seen = {'.jp-OutputArea-output table': 2, '.jp-OutputArea-output img': 4} # batch, confusion, errors, example
        wait_for(lambda: errors.count() or all(page.locator(k).count() >= n for k, n in seen.items()), 30)
        wait_for(lambda: 'held-out pictures' in page.locator('.jp-Notebook:visible').inner_text(), 30)
        assert errors.count() == 0
        assert page.locator('.jp-RenderedText[data-mime-type*=stderr]').count() == 0, 'warnings on the page'
    assert (tmp_path/'runs/quickstart/model.onnx').stat().st_size > 500_000
