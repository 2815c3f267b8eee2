"Jupyter in a browser, for the tests that drive one: servers, pages, themes, screenshots, accessibility"
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

CHROMIUM = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
            '--disable-component-update --disable-sync')

absent = not shutil.which('chromium') and not os.environ.get('CI') # where all is to be tested, a missing browser is a failure
needs_browser = [pytest.mark.browser, pytest.mark.skipif(absent, reason="needs Debian's chromium")]

HAS_NOTEBOOK = bool(find_spec('notebook') or os.environ.get('CI')) # there it is tested, and not left out when it is missing
needs_notebook = pytest.mark.skipif(not HAS_NOTEBOOK, reason='needs Notebook 7')
ANY_APP = 'notebook' if HAS_NOTEBOOK else 'lab' # whose server has Lab as well

def snap(page, name, **kwargs): # a page or a part of it, kept where people find it
    folder = Path(os.environ['IMGCLS_SCREENSHOTS']) # conftest.py gives one where there is none
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder/f'{name}.png', **kwargs)

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
               '--LabApp.expose_app_in_browser=True', '--JupyterNotebookApp.expose_app_in_browser=True'] # for `set_theme`
    module = dict(lab='jupyterlab', notebook='notebook')[app]
    env = {k: v for k, v in os.environ.items() if k != 'MPLBACKEND'} # figures belong on the page
    env['JUPYTER_CONFIG_DIR'] = _own_settings(folder)
    server = subprocess.Popen([sys.executable, '-m', module, *options, f'--ServerApp.root_dir={folder}'], env=env,
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
        try: yield browser.new_context(viewport=dict(width=width, height=height)).new_page()
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

def save(page): page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")

def errors(page): return page.locator('.jp-RenderedText[data-mime-type*=error]')

# Accessibility

def violations(page, within='.imgcls'): # what axe-core finds, as `rule: HTML`, and text that is too pale
    from axe_playwright_python.sync_playwright import Axe
    found = Axe().run(page, context=within).response['violations']
    return [f"{o['id']}: {n['html'][:200]}" for o in found for n in o['nodes']] + page.evaluate(_PALE, within)

# axe-core leaves out what lies below other layers, as much in Lab does; so contrast is computed here as well
_PALE = """within => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const paint = (color, base) => {
    canvas.fillStyle = base; canvas.fillRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return `rgb(${[...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)})`;
  };
  const behind = o => o ? paint(getComputedStyle(o).backgroundColor, behind(o.parentElement)) : 'rgb(255,255,255)';
  const light = color => color.match(/\\d+/g).map(v => v/255).map(v => v <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4)
    .reduce((sum, v, i) => sum + v*[.2126, .7152, .0722][i], 0);
  const pale = [];
  for (const o of document.querySelectorAll(within + ' *')) {
    const text = [...o.childNodes].filter(c => c.nodeType === 3).map(c => c.textContent.trim()).join('');
    if (!text || !o.getClientRects().length || o.closest('[disabled], style, script, .modebar, .hoverlayer')) continue;
    const style = getComputedStyle(o), ground = behind(o.closest('svg') || o);
    const ink = paint(o instanceof SVGElement ? style.fill : style.color, ground);
    const [a, b] = [light(ink), light(ground)].sort((x, y) => x - y), ratio = (b + .05)/(a + .05);
    if (ratio < 4.5) pale.push(`contrast ${ratio.toFixed(1)}: ${text.slice(0, 60)}`);
  }
  return [...new Set(pale)];
}"""
