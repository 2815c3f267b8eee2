"""What ten million pictures in tar shards cost before one of them is decoded, as a table.

    python benchmarks/large_data.py                      # 10,000,000 pictures in 1,000 shards
    python benchmarks/large_data.py --pictures 1000000

The pictures are simulated: a shard is a tar file with one small picture in it, and its index says that there are thousands, all
at that one's place. Names, places, labels, order, batches and loader processes are real; only the headers of ten million pictures
are not read. What reading them takes is measured on a tar file of 10,000 pictures and as many labels.

Every line is taken in a process of its own. **Own memory** is what nobody else can use and the system cannot drop: anonymous
pages, or those that a forked process has written to. The index is a file that is mapped; its pages are in no process's own
memory, and all processes of a machine share them.
"""
import argparse
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from bars import Row, judged, save_rows
from PIL import Image

from imgcls_nb import archives
from imgcls_nb.archives import TarIndex, scan_tar
from imgcls_nb.columns import Texts
from imgcls_nb.packed import read_shards

CLASSES, REAL = 1000, 10_000 # classes; pictures in the tar file whose headers are read

# What is looked at

def jpeg():
    out = io.BytesIO()
    Image.fromarray(np.arange(64*64*3, dtype=np.uint8).reshape(64, 64, 3)).save(out, 'jpeg')
    return out.getvalue()

def write_tar(file, members):
    with tarfile.open(file, 'w') as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

def make_shards(folder, n_shards):
    folder.mkdir()
    for name in (*(f'train-{i:05}' for i in range(n_shards)), 'val-00000'): write_tar(folder/f'{name}.tar', [('a.jpg', jpeg())])

def simulated(pictures): # stands in for `scan_tar`
    def scan(file):
        n, size = pictures if 'train' in file.name else CLASSES, len(jpeg())
        names = Texts([f'{file.stem[-5:]}/{i:08}.jpg' for i in range(n)])
        labels = np.arange(n, dtype=np.int32) % CLASSES
        classes = tuple(map(str, range(CLASSES)))
        return TarIndex(names, np.zeros(n, np.int32), np.full(n, 512), np.full(n, size), labels, classes, True)
    return scan

def memory(kind='Anonymous', pid='self'): # bytes
    return sum(int(o.split()[1])*1024 for o in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines() if o.startswith(kind))

def timed(f): # what it gave, seconds, and own memory that it took
    before, start = memory(), time.perf_counter()
    out = f()
    return out, time.perf_counter() - start, memory() - before

# Processes that look

def headers(folder, args):
    file = folder/'real.tar'
    write_tar(file, [o for i in range(REAL) for o in ((f'{i:08}.jpg', jpeg()), (f'{i:08}.cls', b'7'))])
    _, seconds, _ = timed(lambda: scan_tar(file))
    file.unlink()
    return dict(us=1e6*seconds/REAL)

def objects(folder, args):
    n = args.pictures//10
    kept, _, own = timed(lambda: [(f'train/{i % 1000:05}/{i:08}.jpg', i % CLASSES) for i in range(n)])
    return dict(own=own/len(kept))

def first_start(folder, args):
    archives.scan_tar = simulated(args.pictures//args.shards)
    _, seconds, _ = timed(lambda: read_shards(folder/'shards'))
    return dict(seconds=seconds, file=max(o.stat().st_size for o in (folder/'cache/shards').iterdir())/args.pictures)

def later_start(folder, args):
    (train, _), seconds, own = timed(lambda: read_shards(folder/'shards'))
    _, checksum, _ = timed(train.list_hash)
    return dict(seconds=seconds, own=own/len(train), checksum=checksum)

def loader(folder, args, workers=0, **how):
    from imgcls_nb.data import image_dls
    dls, made, _ = timed(lambda: image_dls(folder/'shards', size=64, bs=64, aug='none', cache=False, on_bad='trust', device='cpu',
                                           num_workers=workers, **how))
    batches, order, own = timed(dls.train.epoch_batches)
    del batches
    start = time.perf_counter()
    pass_ = iter(dls.train)
    next(pass_)
    first = time.perf_counter() - start
    for _ in range(20): next(pass_)
    each = [memory('Private_Dirty', o.pid)/1e6 for o in multiprocessing.active_children()]
    return dict(made=made, order=order, own=own/len(dls.train_ds), first=first, worker=max(each, default=0))

LOOKS = dict(headers=headers, objects=objects, first_start=first_start, later_start=later_start, main=loader,
             workers=lambda *args: loader(*args, workers=2), window=lambda *args: loader(*args, shard_window=8))

def look(name, folder, args, **other):
    "What one of `LOOKS` finds, in a process of its own"
    given = [f'--{k}={v}' for k, v in (vars(args) | other).items() if k in ('pictures', 'shards')]
    env = os.environ | dict(IMGCLS_CACHE=str(folder/'cache'))
    command = [sys.executable, __file__, '--look', name, '--at', folder, *given]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode: sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])

# The table

def measure(folder, args):
    few = folder/'few'
    for o, shards in ((folder, args.shards), (few, 10)):
        o.mkdir(exist_ok=True)
        make_shards(o/'shards', shards)
    look('first_start', few, args, pictures=10_000, shards=10)
    found = {k: look(k, folder, args) for k in LOOKS}
    return found | dict(few=look('workers', few, args, pictures=10_000, shards=10))

def lines(found, n):
    first, later, main, near = (found[o] for o in ('first_start', 'later_start', 'main', 'window'))
    yield f"headers of a tar file, first start only{found['headers']['us']:>13.0f} s for a million pictures and process"
    yield f"index joined and kept, first start only{first['seconds']:>13.1f} s, {first['file']:.0f} bytes a picture in a file"
    yield f"pictures found, every later start{later['seconds']:>19.1f} s, own memory {later['own']:.0f} bytes a picture"
    yield f"  as Python tuples of name and label{'':20}own memory {found['objects']['own']:.0f} bytes a picture"
    yield f"checksum of all names, for a run{later['checksum']:>20.1f} s"
    yield f"image_dls, all of it{main['made']:>32.1f} s"
    yield f"order and batches of an epoch{main['order']:>23.1f} s, own memory {main['own']:.0f} bytes a picture"
    yield f"  within a window of 8 shards{near['order']:>23.1f} s, own memory {near['own']:.0f} bytes a picture"
    yield f"to the first batch{main['first']:>34.1f} s"
    for what, o in (('', found['workers']), (', of 10,000 pictures', found['few'])):
        yield f"{f'  with two loader processes{what}':48}{o['first']:.1f} s, own memory of each {o['worker']:.0f} MB"

def bar_rows(found, n):
    later, main, workers, few = (found[o] for o in ('later_start', 'main', 'workers', 'few'))
    own, start, first = later['own'] + main['own'], main['made'], max(main['first'], workers['first'])
    what = f'{n:,} pictures, simulated'
    return [Row('large, index', f"{found['first_start']['file']:.0f} bytes", None, note=f'{what}; a file that processes share'),
            judged('large, memory', own, f'{own:.0f} bytes', note='index and order, own memory of the main process'),
            Row('large, headers', f"{found['headers']['us']:.0f} s", note=f'one process, of {REAL:,} pictures with labels'),
            judged('large, start', start, f'{start:.1f} s', note="image_dls with on_bad='trust'"),
            judged('large, first batch', first, f'{first:.1f} s', note='the slower of none and two loader processes'),
            judged('large, worker', workers['worker'], f"{workers['worker']:.0f} MB",
                   note=f"{few['worker']:.0f} MB with 10,000 pictures")]

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--pictures', type=int, default=10_000_000)
    parser.add_argument('--shards', type=int, default=1000)
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    parser.add_argument('--look', choices=LOOKS, help=argparse.SUPPRESS)
    parser.add_argument('--at', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.look:
        with redirect_stdout(sys.stderr): found = LOOKS[args.look](Path(args.at), args)
        return print(json.dumps(found))
    with tempfile.TemporaryDirectory() as folder: found = measure(Path(folder), args)
    print(f'{args.pictures:,} pictures in {args.shards:,} tar shards', *lines(found, args.pictures), sep='\n')
    save_rows(args.bars, bar_rows(found, args.pictures))

if __name__ == '__main__': main()
