"Data sets by name: found, downloaded, checked, unpacked"
import errno
import functools
import hashlib
import http.server
import io
import multiprocessing
import os
import tarfile
import threading
import time

import pytest
from PIL import Image

import imgcls_nb.files
from imgcls_nb import datasets
from imgcls_nb.core import InputError
from imgcls_nb.datasets import (
    MAKERS,
    PUBLISHED,
    Download,
    Published,
    download_file,
    file_md5,
    named_dataset,
    unpack_file,
)
from imgcls_nb.places import cache_folder


def md5(data): return hashlib.md5(data).hexdigest()

def tar_of(members, mode='w:gz'):
    "The bytes of a tar file; members are names and contents, or `TarInfo`s"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo): tar.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()

class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

    def do_GET(self):
        self.server.asked.append(self.path)
        if 'short' in self.path: # promises more than it sends
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()
            self.wfile.write(b'x'*10)
            self.close_connection = True
        elif 'endless' in self.path: # does not say how much it sends
            self.send_response(200)
            self.end_headers()
            for _ in range(30): self.wfile.write(b'x'*10**5)
            self.close_connection = True
        elif 'silent' in self.path: time.sleep(3)
        else: super().do_GET()

@pytest.fixture
def site(tmp_path, monkeypatch):
    "A web server with nothing on it: a folder, and its address"
    folder = tmp_path/'site'
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=folder))
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('XDG_DATA_DIRS', str(tmp_path/'system'))
    yield folder, f'http://127.0.0.1:{server.server_port}', server.asked
    server.shutdown()
    server.server_close()

@pytest.fixture
def planted(site, monkeypatch):
    "Two files that a publisher offers, one of them an archive"
    folder, url, asked = site
    files = {'pics.tgz': tar_of({'pics/a/1.png': b'one', 'pics/b/2.png': b'two'}), 'ids.mat': b'ids'}
    for k, v in files.items(): (folder/k).write_bytes(v)
    downloads = tuple(Download((f'{url}/{k}',), md5(v), 1) for k, v in files.items())
    monkeypatch.setitem(PUBLISHED, 'planted', Published('a page', downloads, ('pics', 'ids.mat'), elsewhere=('Planted/raw',)))
    return folder, url, asked

def fetch(url, data, path): return download_file(Download((url,), md5(data), 1), path)

def left_over(folder): return [o for o in folder.rglob('.*') if o.name not in ('.complete', '.lock')]

# The catalogue

def test_catalogue_agrees_with_torchvision():
    from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST, Flowers102, Imagenette
    for name, cls in dict(mnist=MNIST, fashion_mnist=FashionMNIST).items():
        assert {(o.name, o.md5) for o in PUBLISHED[name].files} == set(cls.resources)
        assert PUBLISHED[name].files[0].urls[0].startswith(cls.mirrors[0])
    for name, cls in dict(cifar10=CIFAR10, cifar100=CIFAR100).items():
        assert PUBLISHED[name].files[0].urls[0] == cls.url.replace('python', 'binary')
        assert PUBLISHED[name].files[0].md5 != cls.tgz_md5
    assert {(o.name, o.md5) for o in PUBLISHED['flowers102'].files} == set(Flowers102._file_dict.values())
    assert {(PUBLISHED[o].files[0].urls[0], PUBLISHED[o].files[0].md5) for o in ('imagenette', 'imagenette160')} <= {
        *Imagenette._ARCHIVES.values()}

def test_catalogue_is_complete():
    for name, data in PUBLISHED.items():
        assert data.files and data.holds and not set(PUBLISHED) & set(MAKERS), name
        assert all(len(o.md5) == 32 and o.urls and o.limit_mb > 0 for o in data.files), name
        assert len({o.name for o in data.files}) == len(data.files), name

def test_unknown_name(tmp_path):
    with pytest.raises(InputError, match="no data set 'cifar'. Known: digits, shapes, .*Did you mean 'cifar10'"):
        named_dataset('cifar', tmp_path)

# Where things lie

@pytest.mark.parametrize('env, where', [
    (dict(IMGCLS_CACHE='{}/own', XDG_CACHE_HOME='{}/xdg'), 'own/x'), (dict(XDG_CACHE_HOME='{}/xdg'), 'xdg/imgcls_nb/x'),
    (dict(HOME='{}/home'), 'home/.cache/imgcls_nb/x'), (dict(HOME='{}/home', IMGCLS_CACHE='~/c'), 'home/c/x')], ids=str)
def test_cache_folder(tmp_path, monkeypatch, env, where):
    for o in ('IMGCLS_CACHE', 'XDG_CACHE_HOME'): monkeypatch.delenv(o, raising=False)
    for k, v in env.items(): monkeypatch.setenv(k, v.format(tmp_path))
    assert cache_folder('x') == tmp_path/where

def test_without_a_root_the_cache_is_it(tmp_path, monkeypatch):
    monkeypatch.setenv('IMGCLS_CACHE', str(tmp_path))
    assert named_dataset('shapes') == tmp_path/'datasets/shapes' and len(list(tmp_path.glob('datasets/shapes/*/*.png'))) == 60

def test_made_once_and_finished_if_interrupted(tmp_path):
    path = named_dataset('shapes', tmp_path)
    (path/'circle/000.png').unlink()
    assert not (named_dataset('shapes', tmp_path)/'circle/000.png').exists()
    (path/'.complete').unlink()
    assert (named_dataset('shapes', tmp_path)/'circle/000.png').exists()

@pytest.mark.parametrize('where', ['root/planted', 'root/Planted/raw', 'system/datasets/planted', 'system/datasets/Planted/raw'])
def test_found_without_a_download(planted, tmp_path, where):
    (tmp_path/where/'pics').mkdir(parents=True)
    (tmp_path/where/'ids.mat.gz').touch()
    assert named_dataset('planted', tmp_path/'root') == tmp_path/where and not planted[2]

def test_one_set_of_digits_is_not_taken_for_another(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_DATA_DIRS', str(tmp_path/'system'))
    monkeypatch.setattr(datasets, '_get_dataset', lambda *args: 'download')
    for o in PUBLISHED['mnist'].holds:
        (tmp_path/'root/mnist').mkdir(parents=True, exist_ok=True)
        (tmp_path/'root/mnist'/f'{o}.gz').touch()
    for root in (tmp_path/'root', tmp_path/'root/mnist'): assert named_dataset('fashion_mnist', root) == 'download'
    assert named_dataset('mnist', tmp_path/'root') == tmp_path/'root/mnist'

# Several processes at once

def at_once(work, n=3):
    "What `n` forked processes say, which all begin when the last is ready"
    context = multiprocessing.get_context('fork')
    ready, said = context.Barrier(n), context.Queue()
    def run():
        try:
            ready.wait(120)
            said.put(work())
        except BaseException as e: said.put(repr(e))
    processes = [context.Process(target=run) for _ in range(n)]
    for o in processes: o.start()
    found = [said.get(timeout=300) for _ in processes]
    for o in processes: o.join()
    return found

@pytest.fixture(params=[True, False], ids=['locks', 'no locks'])
def locks(request, monkeypatch):
    "Whether the drive has locks, as some of the network have none"
    def refuse(f): raise OSError(errno.ENOLCK, 'No locks available')
    if not request.param: monkeypatch.setattr(imgcls_nb.files, '_lock', refuse)
    return request.param

@pytest.mark.parametrize('name, n', [('shapes', 60), ('digits', 1797)])
def test_processes_that_make_a_set_see_whole_files(tmp_path, monkeypatch, locks, name, n):
    makers = []
    def slow(path, make=MAKERS[name]): # leaves time to look at what is half there
        save = Image.Image.save
        def in_two_steps(self, file):
            save(self, file)
            data = file.read_bytes()
            file.write_bytes(data[:20])
            if file.stem.endswith('7'): time.sleep(.01)
            file.write_bytes(data)
        makers.append(1)
        with pytest.MonkeyPatch.context() as m:
            m.setattr(Image.Image, 'save', in_two_steps)
            make(path)
    monkeypatch.setitem(MAKERS, name, slow)
    def work():
        files = sorted(named_dataset(name, tmp_path).glob('*/*.png' if locks else '[!.]*/*.png'))
        for o in files*max(1, 1800//n): Image.open(o).load()
        return len(files), len(makers)
    said = at_once(work)
    assert [o[0] for o in said] == [n]*3 and not left_over(tmp_path)
    if locks: assert sum(o[1] for o in said) == 1 # nobody sees another's draft vanish

@pytest.mark.parametrize('round', range(3))
def test_processes_that_fetch_one_set(planted, tmp_path, monkeypatch, locks, round):
    is_tarfile = tarfile.is_tarfile
    def slow(path): # the winner removes the archive before the others look into it
        time.sleep(int.from_bytes(os.urandom(1))/500)
        return is_tarfile(path)
    monkeypatch.setattr(datasets.tarfile, 'is_tarfile', slow)
    def work():
        path = named_dataset('planted', tmp_path/'root')
        return (path/'pics/b/2.png').read_bytes() + (path/'ids.mat').read_bytes()
    assert at_once(work, 4) == [b'twoids']*4
    assert sorted(o.name for o in (tmp_path/'root/planted').iterdir()) == ['.lock', 'ids.mat', 'pics']
    if locks: assert planted[2].count('/pics.tgz') == 1

def test_an_archive_that_vanishes_with_nothing_in_its_place(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, 'unpack_file', lambda archive, *args: archive.unlink() or open(archive))
    with pytest.raises(InputError, match='pics.tgz.*Try again'): named_dataset('planted', tmp_path/'root')

# Downloading

def test_download(planted, tmp_path):
    path = named_dataset('planted', tmp_path/'root')
    assert path == tmp_path/'root/planted' and (path/'pics/b/2.png').read_bytes() == b'two'
    assert sorted(o.name for o in path.iterdir()) == ['.lock', 'ids.mat', 'pics'] # the archive is gone
    assert planted[2] == ['/pics.tgz', '/ids.mat']
    assert named_dataset('planted', tmp_path/'root') == path and len(planted[2]) == 2

def test_files_fetched_by_hand(planted, tmp_path):
    (tmp_path/'root/planted').mkdir(parents=True)
    archive = tmp_path/'root/planted/pics.tgz'
    archive.write_bytes((planted[0]/'pics.tgz').read_bytes())
    named_dataset('planted', tmp_path/'root')
    assert planted[2] == ['/ids.mat'] and archive.exists() # what somebody put there stays
    archive.write_bytes(b'changed')
    (tmp_path/'root/planted/ids.mat').unlink()
    with pytest.raises(InputError, match=f"pics.tgz' has MD5 {md5(b'changed')}; what a page offers has"):
        named_dataset('planted', tmp_path/'root')

def test_a_second_run_needs_only_what_is_missing(planted, tmp_path):
    ids = (planted[0]/'ids.mat').read_bytes()
    (planted[0]/'ids.mat').write_bytes(b'changed')
    with pytest.raises(InputError, match='ids.mat has MD5'): named_dataset('planted', tmp_path/'root')
    (planted[0]/'ids.mat').write_bytes(ids)
    named_dataset('planted', tmp_path/'root')
    assert planted[2] == ['/pics.tgz', '/ids.mat', '/ids.mat']

@pytest.mark.parametrize('name, md5_of, says', [
    ('pics.tgz', b'other', 'pics.tgz has MD5 [0-9a-f]{32}, not [0-9a-f]{32}'),
    ('short', b'', 'short ended after 10 of 1,000 bytes'),
    ('endless', b'', 'endless is larger than the limit of 1 MB'), ('none', b'', r'none cannot be reached \(File not found\)')])
def test_bad_downloads(planted, tmp_path, name, md5_of, says):
    with pytest.raises(InputError, match=says + '\n') as e: fetch(f'{planted[1]}/{name}', md5_of, tmp_path/'file')
    assert f"(MD5 {md5(md5_of)}), and put it at '{tmp_path/'file'}'." in str(e.value)
    assert not (tmp_path/'file').exists() and not left_over(tmp_path)

def test_a_large_answer_is_refused_before_it_is_read(planted, tmp_path):
    (planted[0]/'big').write_bytes(bytes(10**6 + 1))
    with pytest.raises(InputError, match='big is larger than the limit of 1 MB'):
        fetch(f'{planted[1]}/big', b'', tmp_path/'big')

def test_a_mirror_steps_in(planted, tmp_path):
    urls = 'http://127.0.0.1:1/ids.mat', f'{planted[1]}/none', f'{planted[1]}/ids.mat'
    assert download_file(Download(urls, md5(b'ids'), 1), tmp_path/'ids.mat').read_bytes() == b'ids'

@pytest.mark.parametrize('url', ['http://127.0.0.1:1/x', 'nonsense'])
def test_no_network(tmp_path, url):
    with pytest.raises(InputError, match="'x' could not be downloaded:(.|\n)*Fetch it from .* on a machine with a network"):
        fetch(url, b'', tmp_path/'x')

def test_a_server_that_does_not_answer(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, 'TIMEOUT_S', .2)
    with pytest.raises(InputError, match='silent cannot be reached .*timed out'):
        fetch(f'{planted[1]}/silent', b'', tmp_path/'x')

def test_a_root_that_cannot_be_made(planted, tmp_path):
    (tmp_path/'file').touch()
    for name in ('digits', 'planted'):
        with pytest.raises(InputError, match='Give another folder as root'): named_dataset(name, tmp_path/'file')

def test_an_archive_without_what_it_should_hold(planted, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, 'planted', Published('a page', PUBLISHED['planted'].files, ('jpg',)))
    with pytest.raises(InputError, match="planted' does not hold jpg, as a page promises"):
        named_dataset('planted', tmp_path/'root')

# Unpacking

def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info

@pytest.mark.parametrize('members', [
    {'../evil': b'x'}, {'a/../../evil': b'x'}, {'l': link('l', '../..')}, {'l': link('l', '/etc/passwd')},
    {'l': link('l', '../evil', tarfile.LNKTYPE)}, {'d': link('d', '', tarfile.CHRTYPE)}], ids=map(str, range(6)))
def test_members_that_would_leave_the_folder(tmp_path, members):
    (tmp_path/'x.tgz').write_bytes(tar_of({'good': b'x'} | members))
    (tmp_path/'in').mkdir()
    with pytest.raises(InputError, match="x.tgz' cannot be unpacked"): unpack_file(tmp_path/'x.tgz', tmp_path/'in', 1)
    assert not list((tmp_path/'in').iterdir()) and not (tmp_path/'evil').exists()

def test_archives_that_are_damaged_or_too_large(tmp_path):
    data = tar_of({'a': bytes(range(256))*20})
    for o in (b'', b'nothing', data[:len(data)//2]):
        (tmp_path/'x.tgz').write_bytes(o)
        with pytest.raises(InputError, match='cannot be unpacked'): unpack_file(tmp_path/'x.tgz', tmp_path, 1)
    (tmp_path/'x.tgz').write_bytes(tar_of({'a': bytes(6*10**5), 'b': bytes(6*10**5)}))
    with pytest.raises(InputError, match='unpacks to more than 1 MB'): unpack_file(tmp_path/'x.tgz', tmp_path, 1)
    assert [o.name for o in tmp_path.iterdir()] == ['x.tgz']

def test_what_is_there_stays(tmp_path):
    (tmp_path/'x.tgz').write_bytes(tar_of({'a': b'new', 'b': b'new'}))
    (tmp_path/'a').write_bytes(b'old')
    unpack_file(tmp_path/'x.tgz', tmp_path, 1)
    assert ((tmp_path/'a').read_bytes(), (tmp_path/'b').read_bytes()) == (b'old', b'new')

def test_checksum(tmp_path):
    (tmp_path/'x').write_bytes(b'x'*10**6)
    assert file_md5(tmp_path/'x') == md5(b'x'*10**6)
