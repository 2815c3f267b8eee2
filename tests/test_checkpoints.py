"A checkpoint is whole or not there: after a kill at any point, a power cut, a full disk, a flipped bit"
import errno
import json
import os
import re
import shutil
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from fastcore.foundation import L

from imgcls_nb import files
from imgcls_nb.checkpoints import (
    Background,
    drop_checkpoint,
    link_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    read_manifest,
    save_checkpoint,
    take_snapshot,
    write_snapshot,
)
from imgcls_nb.core import InputError
from imgcls_nb.states import MAX_LEVELS, state_from_bytes, state_to_bytes

posix = pytest.mark.skipif(os.name != 'posix', reason="needs fork and signals")
root = pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0 or not shutil.which('mount'), reason="needs to mount")

def save(folder, step, name='latest', state=True):
    opt = dict(step=step, opt=[torch.full((50,), float(step))]) if state else None
    save_checkpoint(folder, name, dict(w=torch.full((300,), float(step))), opt, dict(step=step, epoch=step))

def steps_of(checkpoint): # all that says of which step it is: a whole one has one
    values = safetensors.torch.load_file(checkpoint.weights)['w'].tolist()
    state = checkpoint.state()
    return {checkpoint.facts['step'], *values, *([state['step'], *state['opt'][0].tolist()] if state else [])}

def left_over(folder): # parts that no manifest names
    named = {p['file'] for f in folder.glob('*.json') for p in json.loads(f.read_text())['parts'].values()}
    return {o.name for o in (folder/'parts').iterdir()} - named

# Killed at every point

def first(folder): save(folder, 1)
def overwrite(folder): save(folder, 2)
def link(folder): link_checkpoint(folder, 'latest', 'best_model')
def drop(folder): drop_checkpoint(folder, 'epoch_1')
def epoch(folder): # all that the end of an epoch does
    save(folder, 2)
    link_checkpoint(folder, 'latest', 'best_model')
    link_checkpoint(folder, 'latest', 'epoch_2')
    drop_checkpoint(folder, 'epoch_1')

def prepare(folder, work):
    if work is first: return
    save(folder, 1)
    for name in ('epoch_1', 'best_model'): link_checkpoint(folder, 'latest', name)
    if work in (link, drop): save(folder, 2)

def run_until(n, work, folder): # in a child that is killed at point n; False: it came to its end before
    calls = iter(range(10**6))
    def reached(point):
        if next(calls) == n: os.kill(os.getpid(), signal.SIGKILL)
    if (child := os.fork()) == 0:
        files.reached, files.CHUNK = reached, 700 # so that a part is written in several pieces
        try: work(folder)
        finally: os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

@posix
@pytest.mark.parametrize('work', [first, overwrite, link, drop, epoch])
def test_killed_at_every_point(work, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda fd: None) # a kill takes nothing from the system's memory
    seen, n, names = [], 0, ('latest', 'best_model', 'epoch_1', 'epoch_2')
    while True:
        folder = tmp_path/str(n)
        folder.mkdir()
        prepare(folder, work)
        before = {o.stem: read_checkpoint(folder, o.stem).facts['step'] for o in folder.glob('*.json')}
        if not run_until(n, work, folder): break
        for name in names: # each name means what it meant before, or something whole that is newer
            if not (folder/f'{name}.json').exists(): assert name not in before or (name == 'epoch_1' and work in (drop, epoch))
            else: assert len(s := steps_of(read_checkpoint(folder, name))) == 1 and min(s) >= before.get(name, 1)
        if before or (folder/'latest.json').exists(): seen.append(newest_checkpoint(folder).facts['step'])
        save(folder, 3) # the next save puts all right
        assert steps_of(newest_checkpoint(folder)) == {3} and not left_over(folder)
        for o in folder.glob('*.json'):
            assert files.same_file(folder/f'{o.stem}.safetensors', read_checkpoint(folder, o.stem).weights)
        assert {o.name.split('.')[0] for o in folder.glob('*.safetensors')} == {o.stem for o in folder.glob('*.json')}
        assert not [o for o in folder.rglob('.*')], "no drafts are left"
        shutil.rmtree(folder)
        n += 1
    assert seen == sorted(seen) and n >= (3 if work is drop else 6)
    if work in (overwrite, epoch): assert set(seen) == {1, 2} and n >= 20

# A power cut: what was not forced to disk is gone, or half there

class Disk:
    "What would be on the disk of `folder` if the power failed now"
    def __init__(self, folder, torn): self.folder, self.torn, self.synced, self.listed = folder, torn, {}, {}

    def watch(self, monkeypatch):
        real = os.fsync
        def fsync(fd):
            real(fd)
            path = Path(os.readlink(f'/proc/self/fd/{fd}'))
            if path.is_dir(): self.listed[path] = {o.name: o.stat().st_ino for o in path.iterdir() if o.is_file()}
            else: self.synced[os.fstat(fd).st_ino] = path.read_bytes()
        monkeypatch.setattr(os, 'fsync', fsync)

    def image(self, to): # names as of the last sync of each folder, or as of now: both may come true
        for folder in (self.folder, self.folder/'parts'):
            if not folder.is_dir(): continue
            now = {o.name: o.stat().st_ino for o in folder.iterdir() if o.is_file()}
            names = self.listed.get(folder, {}) if self.torn == 'names lost' else now
            (place := to/folder.relative_to(self.folder)).mkdir(parents=True, exist_ok=True)
            for name, inode in names.items(): (place/name).write_bytes(self.synced.get(inode, b'')) # unsynced: empty
        return to

@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason="looks up open files")
@pytest.mark.parametrize('torn', ['names lost', 'names kept'])
@pytest.mark.parametrize('work', [overwrite, link, epoch])
def test_the_power_fails_at_every_point(work, torn, tmp_path, monkeypatch):
    disk, seen = Disk(tmp_path/'run', torn), []
    (tmp_path/'run').mkdir()
    disk.watch(monkeypatch)
    prepare(tmp_path/'run', work)
    def reached(point):
        image = disk.image(tmp_path/f'{len(seen)}')
        found = newest_checkpoint(image)
        assert len(steps_of(found)) == 1, point
        seen.append(found.facts['step'])
        shutil.rmtree(image)
    monkeypatch.setattr(files, 'reached', reached)
    work(tmp_path/'run')
    assert seen == sorted(seen) and len(seen) > 5 and seen[-1] == 2

# Damage

def cut(file, share): os.truncate(file, int(file.stat().st_size*share))
def flip(file, share):
    with open(file, 'r+b') as f:
        f.seek(at := min(int(file.stat().st_size*share), file.stat().st_size - 1))
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 4]))

@pytest.mark.parametrize('share', [0, .02, .5, .9, 1], ids=str)
@pytest.mark.parametrize('damage', [cut, flip])
@pytest.mark.parametrize('file', ['latest.safetensors', 'latest.state.safetensors', 'latest.json'])
def test_damage_is_named_and_the_one_before_is_used(file, damage, share, tmp_path, capsys):
    if damage is cut and share == 1: share = .999
    save(tmp_path, 1)
    link_checkpoint(tmp_path, 'latest', 'epoch_1')
    save(tmp_path, 2)
    damage(tmp_path/file, share)
    with pytest.raises(InputError, match=f"{file}' is damaged.*Use another checkpoint"): read_checkpoint(tmp_path, 'latest')
    found = newest_checkpoint(tmp_path)
    assert found.name == 'epoch_1' and steps_of(found) == {1} and f"{file}' is damaged" in capsys.readouterr().out
    save(tmp_path, 3)
    assert steps_of(newest_checkpoint(tmp_path)) == {3} and not left_over(tmp_path), "a damaged one is no obstacle"

def test_every_byte_of_a_manifest_counts(tmp_path):
    save(tmp_path, 1)
    file, good = tmp_path/'latest.json', (tmp_path/'latest.json').read_bytes()
    for i in range(len(good)):
        bad = bytes([*good[:i], good[i] ^ 1, *good[i + 1:]])
        file.write_bytes(bad)
        try: same = json.loads(bad) == json.loads(good) # one space for another is no damage
        except ValueError: same = False
        if same: continue
        with pytest.raises(InputError, match="latest.json' is damaged"): read_checkpoint(tmp_path, 'latest')

def test_all_damaged(tmp_path, capsys):
    save(tmp_path, 1)
    cut(tmp_path/'latest.safetensors', .5)
    with pytest.raises(InputError, match='no checkpoint from which it could go on'): newest_checkpoint(tmp_path)
    assert capsys.readouterr().out.count('is damaged') == 1
    with pytest.raises(InputError, match='no checkpoint from which it could go on'): newest_checkpoint(tmp_path/'nowhere')

def test_weights_of_a_damaged_manifest_stay(tmp_path):
    save(tmp_path, 1, 'epoch_1')
    (tmp_path/'epoch_1.json').write_text('{')
    save(tmp_path, 2)
    assert safetensors.torch.load_file(tmp_path/'epoch_1.safetensors')['w'][0] == 1

def test_a_lost_link_loses_nothing(tmp_path):
    save(tmp_path, 1)
    (tmp_path/'latest.safetensors').unlink()
    assert steps_of(read_checkpoint(tmp_path, 'latest')) == {1}

def test_copied_without_the_parts(tmp_path):
    save(tmp_path, 1, 'best_model')
    (tmp_path/'copy').mkdir()
    for o in tmp_path.glob('best_model.*'): shutil.copy(o, tmp_path/'copy')
    assert steps_of(read_checkpoint(tmp_path/'copy', 'best_model')) == {1}

# The newest

def test_the_newest_by_step(tmp_path):
    steps = dict(epoch_3=3, epoch_10=10, latest=12, best_model=11, other=99)
    for name, step in steps.items(): save(tmp_path, step, name)
    assert newest_checkpoint(tmp_path).name == 'latest' and newest_checkpoint(tmp_path, ('epoch_*',)).name == 'epoch_10'
    save(tmp_path, 20, 'best_model', state=False)
    assert newest_checkpoint(tmp_path).name == 'latest', "weights alone are nothing to go on from"
    link_checkpoint(tmp_path, 'latest', 'epoch_12')
    assert newest_checkpoint(tmp_path).name == 'latest' and read_checkpoint(tmp_path, 'best_model').state() is None

def test_a_checkpoint_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    from imgcls_nb import checkpoints
    save(tmp_path, 1)
    real, turns = checkpoints._find_part, iter([2, 3])
    def find_part(*args): # training is faster, twice
        if step := next(turns, None): save(tmp_path, step)
        return real(*args)
    monkeypatch.setattr(checkpoints, '_find_part', find_part)
    assert steps_of(read_checkpoint(tmp_path, 'latest')) == {3}

def test_a_part_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    from imgcls_nb import checkpoints
    save(tmp_path, 1)
    def faster(path, sha256=checkpoints.sha256): # training is, once
        monkeypatch.setattr(checkpoints, 'sha256', sha256)
        save(tmp_path, 2)
        return sha256(path)
    monkeypatch.setattr(checkpoints, 'sha256', faster)
    assert steps_of(read_checkpoint(tmp_path, 'latest')) == {2}

def test_disk_use_is_bounded(tmp_path):
    for step in range(1, 30):
        save(tmp_path, step)
        link_checkpoint(tmp_path, 'latest', f'epoch_{step}')
        if step % 7 == 1: link_checkpoint(tmp_path, 'latest', 'best_model')
        drop_checkpoint(tmp_path, f'epoch_{step - 2}')
    assert {int(o.name.split('-')[0]) for o in (tmp_path/'parts').iterdir()} == {28, 29}
    assert len(list((tmp_path/'parts').iterdir())) == 4 and len({o.stat().st_ino for o in tmp_path.glob('*.safetensors')}) == 4

def test_equal_steps_of_different_content(tmp_path): # back to an earlier step, and on with other settings
    save(tmp_path, 5)
    link_checkpoint(tmp_path, 'latest', 'best_model')
    save_checkpoint(tmp_path, 'latest', dict(w=torch.zeros(9)), dict(step=5, opt=[torch.zeros(1)]), dict(step=5))
    assert steps_of(read_checkpoint(tmp_path, 'best_model')) == {5}

def test_without_hard_links(tmp_path, monkeypatch):
    def no_link(*args): raise OSError(errno.EPERM, 'not permitted')
    monkeypatch.setattr(os, 'link', no_link)
    save(tmp_path, 1)
    link_checkpoint(tmp_path, 'latest', 'best_model')
    times = {o: o.stat().st_mtime_ns for o in tmp_path.glob('best_model.*safetensors')}
    inodes = {o: o.stat().st_ino for o in times}
    save(tmp_path, 2)
    assert steps_of(read_checkpoint(tmp_path, 'best_model')) == {1} and steps_of(read_checkpoint(tmp_path, 'latest')) == {2}
    assert inodes == {o: o.stat().st_ino for o in times}, "it is copied once"

@pytest.mark.parametrize('links', [True, False])
def test_a_clock_that_stands_still(tmp_path, monkeypatch, links): # one network makes files of one size, and FAT counts 2 s
    def no_link(*args): raise OSError(errno.EPERM, 'not permitted')
    if not links: monkeypatch.setattr(os, 'link', no_link)
    real = files._write_pieces
    def write(f, data):
        real(f, data)
        f.flush()
        os.utime(f.fileno(), (1000, 1000))
    monkeypatch.setattr(files, '_write_pieces', write)
    def w(name): return safetensors.torch.load_file(tmp_path/f'{name}.safetensors')['w'][0].item()
    inodes = {}
    for step in range(1, 6):
        save(tmp_path, step)
        if step % 2: link_checkpoint(tmp_path, 'latest', f'epoch_{step}')
        assert w('latest') == step and all(w(f'epoch_{i}') == i for i in range(1, step + 1, 2))
        found = {o: o.stat().st_ino for o in tmp_path.glob('epoch_*.safetensors')}
        assert inodes.items() <= (inodes := found).items(), "and copied once"
    save(tmp_path, 1) # the same once more
    assert w('latest') == w('epoch_1') == 1 and w('epoch_5') == 5 and not left_over(tmp_path)

def test_files_of_one_size_and_time_are_two(tmp_path):
    for o in 'abc': (tmp_path/o).write_bytes(o.encode())
    os.link(tmp_path/'a', tmp_path/'a2')
    for o in 'abc': os.utime(tmp_path/o, (1000, 1000))
    assert files.same_file(tmp_path/'a', tmp_path/'a2') and not files.same_file(tmp_path/'a', tmp_path/'b')
    assert files.same_file(tmp_path/'b', tmp_path/'c'), "as far as copies can be told"

# A disk that takes no more

@contextmanager
def mounted(path, options):
    path.mkdir(exist_ok=True)
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', path], capture_output=True).returncode:
        pytest.skip('mounting is not allowed here')
    try: yield path
    finally: subprocess.run(['umount', path], check=True)

@root
@pytest.mark.parametrize('room', [40, 80, 150, 220], ids=str) # in KB, while one part has 80: nothing, parts, one of the two …
def test_a_full_disk(room, tmp_path):
    big = lambda step: dict(w=torch.full((20_000,), float(step)))
    with mounted(tmp_path/'disk', 'size=1m') as folder:
        save_checkpoint(folder, 'latest', big(1), dict(step=1, opt=[big(1)['w']]), dict(step=1))
        free = shutil.disk_usage(folder).free
        (folder/'other').write_bytes(bytes(free - room*1024))
        try: save_checkpoint(folder, 'latest', big(2), dict(step=2, opt=[big(2)['w']]), dict(step=2))
        except InputError as e:
            assert re.search("'latest' could not be written.*the disk is full. Free some space.*are whole: latest", str(e))
            assert steps_of(newest_checkpoint(folder)) == {1}
        else: assert room == 220 and steps_of(newest_checkpoint(folder)) == {2}
        assert not left_over(folder) and not [o for o in folder.rglob('.*')]
        (folder/'other').unlink()
        save_checkpoint(folder, 'latest', big(3), dict(step=3, opt=[big(3)['w']]), dict(step=3))
        assert steps_of(newest_checkpoint(folder)) == {3}

@pytest.mark.parametrize('name, error', [('fsync', errno.ENOSPC), ('replace', errno.ENOSPC), ('fsync', errno.EDQUOT),
                                         ('fsync', errno.EIO), ('replace', errno.EACCES)])
@pytest.mark.parametrize('nth', range(5))
def test_an_error_at_every_call(name, error, nth, tmp_path, monkeypatch):
    save(tmp_path, 1)
    real, calls = getattr(os, name), iter(range(10**6))
    def failing(*args):
        if next(calls) == nth: raise OSError(error, os.strerror(error))
        return real(*args)
    monkeypatch.setattr(os, name, failing)
    try: save(tmp_path, 2)
    except InputError as e: assert "'latest' could not be written" in str(e) and str(e).count('..') == 0
    monkeypatch.setattr(os, name, real)
    found = newest_checkpoint(tmp_path)
    assert len(steps_of(found)) == 1 and not left_over(tmp_path)

def test_an_interrupt_leaves_no_draft(tmp_path, monkeypatch):
    def interrupt(fd): raise KeyboardInterrupt
    save(tmp_path, 1)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(os, 'fsync', interrupt)
        save(tmp_path, 2)
    assert not left_over(tmp_path) and steps_of(newest_checkpoint(tmp_path)) == {1}

# In the background

def test_in_the_background(tmp_path):
    writer, weights = Background(), torch.ones(300)
    for step in range(1, 5):
        writer.wait()
        weights.fill_(step)
        shot = take_snapshot(dict(w=weights), dict(step=step, opt=[weights]))
        writer.do(write_snapshot, tmp_path, 'latest', shot, dict(step=step))
        writer.do(link_checkpoint, tmp_path, 'latest', f'epoch_{step}')
        weights.fill_(-1) # training goes on
    writer.wait()
    assert [steps_of(read_checkpoint(tmp_path, f'epoch_{o}')) for o in range(1, 5)] == [{1}, {2}, {3}, {4}]

def test_what_waits_behind_a_failure_is_left_out(tmp_path):
    writer = Background()
    save(tmp_path, 1)
    writer.do(write_snapshot, tmp_path/'nowhere', 'latest', take_snapshot({}), {})
    writer.do(link_checkpoint, tmp_path, 'latest', 'best_model')
    with pytest.raises(InputError, match='could not be written'): writer.wait()
    assert not (tmp_path/'best_model.json').exists()
    writer.do(link_checkpoint, tmp_path, 'latest', 'best_model') # told once, it goes on
    writer.wait()
    assert (tmp_path/'best_model.json').exists()

# Names and facts

@pytest.mark.parametrize('name', ['../latest', '/elsewhere/x', 'a/b', '', '.', '..', '.x', 'a\0b', 'a\n', None], ids=repr)
def test_names_that_lead_elsewhere(name, tmp_path):
    save(tmp_path, 1)
    for act in (lambda: save(tmp_path, 1, name), lambda: read_checkpoint(tmp_path, name), lambda: drop_checkpoint(tmp_path, name),
                lambda: link_checkpoint(tmp_path, 'latest', name), lambda: read_manifest(tmp_path, name)):
        with pytest.raises(InputError, match='cannot be the name of a checkpoint'): act()

@pytest.mark.parametrize('facts', [dict(step=o) for o in (-1, 1.5, '1', True)] + [dict(top1=torch.ones(1))], ids=str)
def test_facts_that_are_none(facts, tmp_path):
    with pytest.raises(InputError): save_checkpoint(tmp_path, 'latest', {}, None, facts)
    assert not list(tmp_path.iterdir())

def test_facts_come_back(tmp_path):
    facts = dict(step=3, epoch=1, top1=.1 + .2, name='Größe', none=None, deep=dict(a=[1, 2.5, True]), big=2**70)
    save_checkpoint(tmp_path, 'latest', {}, None, facts)
    assert read_checkpoint(tmp_path, 'latest').facts == facts == read_manifest(tmp_path, 'latest')

def test_weights_are_tensors(tmp_path):
    with pytest.raises(InputError, match="'lr'. is a float"): save_checkpoint(tmp_path, 'latest', dict(lr=.1), None, {})

# A nest of tensors

def same(a, b):
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and a.shape == b.shape and a.equal(b)
    if isinstance(a, dict): return list(a) == list(b) and all(map(same, a.values(), b.values())) and \
        all(type(i) is type(j) for i, j in zip(a, b))
    if isinstance(a, list): return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
          torch.uint8, torch.bool]

@pytest.mark.parametrize('state', [
    {}, [], None, True, False, 0, -1, 1.5, float('inf'), 2**80, 1e-320, 'text', 'Ω\n"', {'': ''}, {'a': {}}, [[], [None]],
    {0: 'a', '0': 'b', True: 'c', None: 'd', 2.5: 'e'}, {1: {2: {3: torch.ones(2)}}},
    {'a.b': torch.ones(1), 'a': {'b': torch.zeros(2)}},
    {0: torch.ones(1), '0': torch.zeros(1)}, {'tensor': 'x', 'dict': {'value': 1}, 'list': [1], 'items': []},
    torch.tensor(3.), torch.empty(0), torch.empty(0, 4), [torch.empty(2, 0, 3), torch.tensor(7)],
    {str(o): torch.ones(3, 2).to(o) for o in DTYPES}, torch.tensor([float('nan'), float('-inf'), -0.])[1:]],
    ids=lambda o: str(o)[:30])
def test_states_come_back(state): assert same(state, state_from_bytes(state_to_bytes(state)))

def test_what_changes_its_kind():
    given = dict(t=(1, (2, 3)), l=L(1, 2), i=np.int64(3), f=np.float32(.5), b=np.bool_(True), nan=float('nan'),
                 p=torch.nn.Parameter(torch.ones(2)))
    back = state_from_bytes(state_to_bytes(given))
    assert back['t'] == [1, [2, 3]] and back['l'] == [1, 2] and back['nan'] != back['nan']
    assert [type(back[o]) for o in 'ifbp'] == [int, float, bool, torch.Tensor] and not back['p'].requires_grad

def test_tensors_that_share_memory():
    base = torch.arange(24.).view(2, 3, 4)
    given = [base, base, base[0], base[:, 1], base.permute(2, 0, 1), base[..., ::2], base.expand(2, 2, 3, 4), base.view(-1)[5:9],
             base[:0]]
    back = state_from_bytes(state_to_bytes(given))
    assert all(a.equal(b) and a.shape == b.shape for a, b in zip(given, back))
    back[0].fill_(0)
    assert back[1].equal(base) and base[0, 0, 1] == 1, "they don't any more, and the given ones are untouched"

def test_the_order_in_memory_comes_back():
    for shape in ((2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 4), (2, 3, 1, 1)):
        t = torch.randn(shape).to(memory_format=torch.channels_last)
        back = state_from_bytes(state_to_bytes([t]))[0]
        assert back.equal(t) and back.is_contiguous(memory_format=torch.channels_last)
        assert back.is_contiguous() == t.is_contiguous()

@pytest.mark.parametrize('o, says', [
    (lambda: 0, 'state.x is a function'), (object(), 'state.x is a object'), ({1, 2}, 'is a set'), (b'x', 'is a bytes'),
    (np.ones(3), 'is a ndarray'), (torch.float32, 'is a dtype'), (1j, 'is a complex'), ({(1, 2): 3}, 'is a tuple')],
    ids=lambda o: type(o).__name__)
def test_what_no_state_holds(o, says):
    with pytest.raises(InputError, match=says): state_to_bytes(dict(x=o))

def test_depth():
    def nest(n, o=0): return o if n == 0 else nest(n - 1, dict(a=o))
    def lists(n): return 0 if n == 0 else [lists(n - 1)]
    for state in (nest(MAX_LEVELS), lists(MAX_LEVELS)): assert state_from_bytes(state_to_bytes(state)) == state
    for state in (nest(MAX_LEVELS + 1), nest(900)):
        with pytest.raises(InputError, match='nested too deeply'): state_to_bytes(state)
    loop = {}
    loop['again'] = loop
    with pytest.raises(InputError, match='nested too deeply'): state_to_bytes(loop)

def test_an_optimizer_goes_on_as_before():
    def train(net, opt, n):
        for i in range(n):
            net(torch.randn(4, 3, generator=torch.Generator().manual_seed(i))).square().sum().backward()
            opt.step()
            opt.zero_grad()
    nets = [torch.nn.Linear(3, 2) for _ in range(2)]
    opts = [torch.optim.AdamW(o.parameters(), amsgrad=True) for o in nets]
    train(nets[0], opts[0], 3)
    nets[1].load_state_dict(nets[0].state_dict())
    opts[1].load_state_dict(state_from_bytes(state_to_bytes(opts[0].state_dict())))
    for net, opt in zip(nets, opts): train(net, opt, 3)
    assert all(a.equal(b) for a, b in zip(*(o.parameters() for o in nets)))
