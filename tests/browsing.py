"Jupyter in a browser, for the tests that drive one: servers, pages, themes, screenshots, accessibility"
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

CHROMIUM = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
            '--disable-component-update --disable-sync')

needs_browser = [pytest.mark.browser, pytest.mark.skipif(not shutil.which('chromium'), reason="needs Debian's chromium")]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def wait_for(condition, seconds, what=''):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := condition(): return found
        except OSError: pass
        time.sleep(0.2)
    raise AssertionError(f'{what or "it"} was not there within {seconds} s')

@contextmanager
def jupyter(folder, app='lab'): # 'lab', or 'notebook' for Notebook 7
    port = free_port()
    url = f'http://127.0.0.1:{port}'
    options = ['--no-browser', '--ip=127.0.0.1', f'--port={port}', '--allow-root', '--IdentityProvider.token=',
               '--expose-app-in-browser'] # for `set_theme`
    env = {k: v for k, v in os.environ.items() if k != 'MPLBACKEND'} # figures belong on the page
    env['JUPYTER_CONFIG_DIR'] = _own_settings(folder)
    server = subprocess.Popen([sys.executable, '-m', 'jupyter', app, *options, f'--ServerApp.root_dir={folder}'], env=env,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: urllib.request.urlopen(f'{url}/api').status == 200, 60, 'Jupyter')
        yield url
    finally:
        server.terminate()
        server.wait(30)

def _own_settings(folder): # neither the user's themes and layouts, nor the question about news
    settings = Path(folder)/'.jupyter/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    return str(Path(folder)/'.jupyter')

@contextmanager
def chromium(width=1300, height=6000): # as high as all cells, for Lab draws only what is in view
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which('chromium'), args=CHROMIUM.split())
        try: yield browser.new_page(viewport=dict(width=width, height=height))
        finally: browser.close()

def write_notebook(path, *cells):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(o) for o in cells])
    nb.metadata.kernelspec = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nb, path)

def open_notebook(page, url, name, app='lab', reset=True):
    way = f'lab/tree/{name}{"?reset" if reset else ""}' if app == 'lab' else f'notebooks/{name}'
    page.goto(f'{url}/{way}', timeout=60_000)
    page.wait_for_selector('.jp-Notebook:visible .jp-Cell', timeout=60_000)

def run_all_cells(page): # a busy machine may drop what is asked before the kernel is there
    wait_for(lambda: page.evaluate(_KERNEL) == 'idle', 60, 'a kernel')
    for _ in range(5):
        page.click('.jp-Notebook:visible .jp-Cell')
        page.keyboard.press('Escape')
        page.click('.lm-MenuBar-itemLabel:text-is("Run")')
        page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
        time.sleep(1)
        if page.locator(_BEGUN).count(): return
        time.sleep(2)
    raise AssertionError('the cells did not run')

_KERNEL = "fetch('/api/sessions').then(r => r.json()).then(o => o.length ? o[0].kernel.execution_state : '')"
_BEGUN = '.jp-Notebook:visible .jp-InputPrompt:text-matches("[0-9*]")'

def set_theme(page, name): # 'JupyterLab Light' or 'JupyterLab Dark'
    page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
    page.wait_for_selector(f'body[data-jp-theme-light={"false" if "Dark" in name else "true"}]', state='attached', timeout=20_000)
