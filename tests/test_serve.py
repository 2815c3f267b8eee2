"`imgcls serve`: right answers to many at once, and a clear refusal for whatever else arrives"
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from colours import COLOURS, GOOD, PREPROCESS, colour, paint, paint_bad, write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip('starlette')
pytest.importorskip('uvicorn')

from imgcls_nb.core import InputError, list_images
from imgcls_nb.predict import Predictor
from imgcls_nb.serve import _Prompt, make_app, make_server, open_port

pytestmark = pytest.mark.alone # a caller who is slow is told by the clock

few = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

@contextmanager
def running(predictor, **how):
    sock, server = open_port(port=0), make_server(make_app(predictor, **how))
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[sock]), daemon=True)
    thread.start()
    try: yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        sock.close()
    assert not thread.is_alive()

@pytest.fixture(scope='module')
def predictor(tmp_path_factory): return Predictor(write_model(tmp_path_factory.mktemp('m')/'model.onnx'), threads=1)

@pytest.fixture(scope='module')
def port(predictor):
    with running(predictor) as port: yield port

@pytest.fixture(scope='module')
def pictures(tmp_path_factory): return list_images(paint(tmp_path_factory.mktemp('p')/'all', [f'{o}.png' for o in COLOURS]))

def ask(port, method='POST', path='/predict', body=None, **headers):
    c = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
    try:
        c.request(method, path, body, {k.replace('_', '-'): v for k, v in headers.items()})
        r = c.getresponse()
        return r.status, r.read(), r.headers
    finally: c.close()

def said(port, *args, **kwargs):
    status, body, _ = ask(port, *args, **kwargs)
    return status, json.loads(body)

def form(*files, name='picture'):
    parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{i}.png"\r\n\r\n'.encode() + o + b'\r\n'
             for i, o in enumerate(files)]
    return dict(body=b''.join(parts) + b'--x--\r\n', Content_Type='multipart/form-data; boundary=x')

# Right

def test_a_picture_as_the_body_or_in_a_form(port, pictures, predictor):
    for o in pictures:
        status, answer = said(port, body=o.read_bytes())
        assert status == 200 and answer['label'] == colour(o) and answer['error'] is None and answer['source'] is None
        assert [p['label'] for p in answer['topk']] == [label for label, _ in predictor(o).topk]
        assert said(port, **form(o.read_bytes())) == (200, answer)
    assert len(said(port, path='/predict?k=1', body=o.read_bytes())[1]['topk']) == 1

def test_many_at_once(port, pictures):
    work = pictures*40
    with ThreadPoolExecutor(16) as pool: got = list(pool.map(lambda o: said(port, body=o.read_bytes()), work))
    assert [(s, o['label']) for s, o in got] == [(200, colour(o)) for o in work]

def test_what_there_is(port):
    assert said(port, 'GET', '/health') == (200, dict(ok=True, busy=0))
    model = said(port, 'GET', '/model')[1]
    assert model['labels'] == list(COLOURS) and (model['width'], model['height']) == PREPROCESS.size
    status, page, headers = ask(port, 'GET', '/')
    assert status == 200 and b'Drop a picture here' in page and b'http' not in page.replace(b'http-equiv', b'')
    assert "default-src 'none'" in headers['content-security-policy'] and 'server' not in headers

# Refused

@pytest.mark.parametrize('how, status, says', [
    (dict(body=b''), 400, 'no picture in the request'), (dict(body=b'not a picture'), 400, 'The file sent: not a picture'),
    (dict(body=b'GIF89a'), 400, 'not a picture'), (dict(path='/predict?k=0', body=b'x'), 400, "k='0'"),
    (dict(path='/predict?topk=2', body=b'x'), 400, "takes no 'topk'"),
    (dict(path='/predict?k=all', body=b'x'), 400, "k='all'"), (dict(path=f'/predict?k={"9"*999}', body=b'x'), 400, 'no number'),
    (dict(method='GET'), 405, 'Not Allowed'), (dict(path='/predicted', body=b'x'), 404, 'Not Found'),
    (dict(path='/../../etc/passwd', method='GET'), 404, 'Not Found'), (form(), 400, 'holds 0 files'),
    (form(b'a', b'b'), 400, 'holds 2 files'), (form(*[b'a']*9), 400, 'files'),
    (dict(body=b'x', Content_Type='multipart/form-data'), 400, 'boundary'),
    (dict(body=b'--x\r\n\xff', Content_Type='multipart/form-data; boundary=x'), 400, '')], ids=lambda o: str(o)[:60])
def test_garbage_is_answered(port, how, status, says):
    got, answer = said(port, **how)
    assert got == status and says in answer['error'] and 'Traceback' not in answer['error']

def test_another_name_is_refused(port, pictures):
    assert ask(port, body=pictures[0].read_bytes(), Host='evil.example')[0] == 400
    assert ask(port, body=pictures[0].read_bytes(), Host='localhost')[0] == 200

@few
@given(st.binary(max_size=200), st.sampled_from(['', 'image/png', 'multipart/form-data; boundary=x', 'multipart/form-data',
                                                 'multipart/form-data; boundary="', 'text/html; charset=\xff']))
def test_any_bytes_are_the_callers_error(port, data, kind):
    status, answer = said(port, body=data, Content_Type=kind)
    assert status == 400 and answer['error']

@few
@given(st.binary(max_size=300))
def test_what_is_not_even_http(port, data):
    with socket.create_connection(('127.0.0.1', port), 10) as s:
        s.sendall(data + b'\r\n\r\n')
        s.shutdown(socket.SHUT_WR)
        answer = s.recv(4096)
    assert not answer or answer.startswith(b'HTTP/1.1 4')

def test_bad_pictures(port, tmp_path):
    answers = {o.name: said(port, body=o.read_bytes()) for o in list_images(paint_bad(tmp_path)) if o.is_file()}
    assert {k: status for k, (status, _) in answers.items()} == {k: 200 if k in GOOD else 400 for k in answers}
    assert len(answers) == 11 and all(o['label'] == 'green' for status, o in answers.values() if status == 200)
    assert all(o['error'].startswith('The file sent: ') or k == 'empty.jpg' for k, (n, o) in answers.items() if n == 400)
    assert all('more than the limit' in answers[o][1]['error'] for o in ('bomb.png', 'scan.png'))

def test_too_large(predictor, pictures):
    with running(predictor, max_bytes=2000) as port:
        assert said(port, body=b'x'*2001)[0] == 413 and said(port, body=pictures[0].read_bytes())[0] == 200
        endless = (b'x'*100 for _ in range(100)) # in chunks, without a length
        try: assert said(port, body=endless)[0] == 413
        except (BrokenPipeError, ConnectionResetError): pass # it was closed while we wrote
        assert said(port, body=pictures[0].read_bytes())[0] == 200

def test_too_slow_to_arrive(predictor, pictures):
    with running(predictor, timeout_s=2) as port:
        with socket.create_connection(('127.0.0.1', port), 10) as s:
            s.sendall(b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx')
            assert s.recv(100).startswith(b'HTTP/1.1 408')
        assert said(port, body=pictures[0].read_bytes())[0] == 200

def test_too_slow_to_ask(predictor, pictures, monkeypatch):
    monkeypatch.setattr(_Prompt, 'patience_s', .2)
    with running(predictor, timeout_s=5) as port:
        for head in (b'', b'POST /predict HTTP/1.1\r\nHost: loc', b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET'):
            with socket.create_connection(('127.0.0.1', port), 10) as s:
                if head: s.sendall(head)
                answer = b''.join(iter(lambda s=s: s.recv(4096), b'')) # until it is closed
                assert answer.startswith(b'HTTP/1.1 200') == head.endswith(b'GET')
        with socket.create_connection(('127.0.0.1', port), 10) as s: # one who is at it has the time of the request
            body = pictures[0].read_bytes()
            s.sendall(f'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n'.encode())
            time.sleep(.7)
            s.sendall(body)
            assert s.recv(100).startswith(b'HTTP/1.1 200')

def test_it_ends_when_it_is_told_to(predictor):
    with running(predictor) as port: # which waits for less than the 30 s that a picture may take to arrive
        s = socket.create_connection(('127.0.0.1', port), 10)
        s.sendall(b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx')
        while not said(port, 'GET', '/health')[1]['busy']: time.sleep(.02)
    with s: assert s.recv(100).startswith(b'HTTP/1.1 503')

@contextmanager
def held(predictor, monkeypatch):
    "The predictor answers when it is let go"
    go, run = threading.Event(), predictor._run
    monkeypatch.setattr(predictor, '_run', lambda x: go.wait(10) and run(x))
    try: yield go
    finally: go.set()

def test_too_slow_to_answer(predictor, pictures, monkeypatch):
    with running(predictor, timeout_s=2) as port, held(predictor, monkeypatch):
        assert said(port, body=pictures[0].read_bytes())[0] == 503
        assert said(port, 'GET', '/health')[0] == 200, "others are still answered"

def test_too_many(predictor, pictures, monkeypatch):
    with running(predictor, at_once=1, waiting=2) as port, held(predictor, monkeypatch) as go, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(said, port, body=pictures[0].read_bytes()) for _ in range(3)]
        while said(port, 'GET', '/health')[1]['busy'] < 3: time.sleep(.02)
        status, _, headers = ask(port, body=pictures[0].read_bytes())
        assert status == 503 and headers['retry-after'] == '1'
        go.set()
        assert [o.result()[0] for o in waiting] == [200]*3
        assert said(port, body=pictures[0].read_bytes())[0] == 200

def test_callers_who_leave(port, pictures):
    for _ in range(20):
        with socket.create_connection(('127.0.0.1', port), 10) as s:
            s.sendall(b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nx')
    assert said(port, body=pictures[0].read_bytes())[0] == 200

def test_a_defect_of_ours_is_500(predictor, pictures, monkeypatch):
    with running(predictor) as port:
        monkeypatch.setattr(predictor, '_run', lambda x: 1/0)
        status, answer = said(port, body=pictures[0].read_bytes())
        assert status == 500 and 'ZeroDivision' not in json.dumps(answer)

# The verb

def test_a_port_that_is_taken():
    with open_port(port=0) as sock, pytest.raises(InputError, match='--port, 0 for any'): open_port(port=sock.getsockname()[1])
    with pytest.raises(InputError, match='cannot be listened on'): open_port('127.0.0.1', 99999)
    with pytest.raises(InputError, match='cannot be listened on'): open_port('ü'*300)

def test_the_verb(predictor, pictures):
    command = [sys.executable, '-m', 'imgcls_nb.cli', 'serve', str(predictor.path), '--port', '0', '--threshold', '1']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r'http://127\.0\.0\.1:(\d+)/', process.stdout.readline())[1])
        status, answer = said(port, body=pictures[1].read_bytes())
        assert status == 200 and answer['label'] == colour(pictures[1]) and not answer['sure']
    finally: process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode in (0, 130) and 'Traceback' not in err and 'run folder' not in err

# The page

@pytest.mark.browser
def test_the_page_shows_what_the_model_says(port, pictures, tmp_path):
    import shutil

    from playwright.sync_api import sync_playwright
    bad, noise = tmp_path/'bad.png', np.random.default_rng(0).bytes(99)
    bad.write_bytes(noise)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox', '--disable-gpu'])
        page, errors = browser.new_page(viewport=dict(width=800, height=700)), []
        page.on('console', lambda o: errors.append(o.text) if o.type == 'error' else None)
        page.goto(f'http://127.0.0.1:{port}/')
        page.get_by_text('3 classes, 8×8 pixels').wait_for()
        for o in pictures:
            page.set_input_files('#file', o)
            page.locator('#top li').first.get_by_text(colour(o)).wait_for()
            assert page.locator('#top li').count() == 3 and page.locator('#say').inner_text() == o.name
        assert not errors
        page.set_input_files('#file', bad)
        page.locator('#say.bad').get_by_text('not a picture').wait_for()
        assert page.locator('#top li').count() == 0
        page.set_input_files('#file', pictures[0])
        page.locator('#top li').first.wait_for()
        if shots := os.environ.get('IMGCLS_SCREENSHOTS'): page.screenshot(path=f'{shots}/serve.png')
        browser.close()
