"""How fast a picture becomes a label, side by side with what people use now, in one run on the same files.

    python benchmarks/inference.py                    # all of it, some minutes on two quiet cores
    python benchmarks/inference.py picture start      # some of it: picture, folder, start, bits
    python benchmarks/inference.py --work DIR         # keep the networks, and use them again

Pictures are JPEGs of 500x375 pixels, drawn: noise of many sizes as photos have it, in a tint that is their class. ResNet-18 and
MobileNetV3-large have random weights below a head that was fitted to the tints, so that each way has an accuracy on the same
held-out pictures beside its time. fastai gets the very same network, in a `Learner` of its own with its usual transforms, and is
asked by `learn.predict`.

picture  One picture at a time, from the file to the top five. Each way has a process of its own, and the processes take turns;
         the median counts. The parts alone are what cannot be less: decode + preprocess, and the engine's own run.
folder   Pictures of a folder in one second. The limit: a picture takes a processor the time to decode and preprocess it, and
         then that of the engine, each measured alone on one thread, in batches as the folder has them; n processors can do n
         times what one can. The three are measured by turns, the best of five each. It is a limit from above: processors that
         share memory, caches or a clock do less, and so does an engine whose threads wait for each other.
start    From the start of a process to the first prediction, and the most memory that it held (VmHWM of Linux), the least of
         five of each, by turns, since other work can only add. All have their bytecode, as what pip installs does. The bare
         script is what one would write by hand on onnxruntime, with the same options of the session.
bits     ResNet-50 with random weights in ONNX Runtime at 32 bits, and in OpenVINO at bf16 and int8, by turns; agreement is of
         the first guesses. What fewer bits cost a MobileNetV2 that learned from ImageNet is `benchmarks/export.py precision`.

Ratios on a busy machine are better than its times, and not good: the load is printed, look at it first.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from bars import BARS, Row, meets, save_rows
from PIL import Image

from imgcls_nb.engines import OnnxRuntime, can_run, engines_here, open_engine
from imgcls_nb.inputs import free_cpus
from imgcls_nb.predict import Predictor

ARCHS = 'resnet18', 'mobilenetv3_large_100'
TINTS = dict(amber=(230, 160, 40), moss=(90, 140, 60), plum=(130, 50, 120), slate=(90, 110, 130))

# Pictures and networks

def draw(rng, tint):
    noise = [Image.fromarray(rng.integers(0, 256, (375//s + 1, 500//s + 1, 3), np.uint8)).resize((500, 375)) for s in (2, 8, 40)]
    return Image.fromarray((.65*sum(np.asarray(o, np.float32) for o in noise)/3 + .35*np.array(tint)).astype(np.uint8))

def make_pictures(folder, side, n, seed):
    rng = np.random.default_rng(seed)
    for i in range(n):
        for name, tint in TINTS.items():
            (folder/side/name).mkdir(parents=True, exist_ok=True)
            draw(rng, tint).save(folder/side/name/f'{i:03}.jpg', quality=90)

def fit_head(model, files, labels, preprocess):
    "A linear classifier for what the random layers below see, by least squares"
    import torch
    head, seen = model.get_classifier(), []
    hook = head.register_forward_hook(lambda m, x, y: seen.append(x[0]))
    with torch.no_grad():
        for o in files: model(torch.from_numpy(preprocess(o))[None])
        x, y = torch.cat(seen), torch.eye(len(TINTS))[torch.as_tensor(np.asarray(labels))]
        mean, k = x.mean(0), (x - x.mean(0)) @ (x - x.mean(0)).T
        w = 8*(x - mean).T @ torch.linalg.solve(k + 1e-3*k.trace()/len(k)*torch.eye(len(k)), y - .25)
        head.weight.copy_(w.T), head.bias.copy_(-mean @ w)
    hook.remove()

def make_network(work, arch):
    "model.onnx under the gate, and the same network exported by fastai"
    import torch
    from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Learner, Normalize, Resize, imagenet_stats

    from imgcls_nb.data import image_dls
    from imgcls_nb.export import export_onnx
    from imgcls_nb.learner import image_learner
    dls = image_dls(work/'pictures', train='train', valid='valid', size=224, bs=8, aug='none', num_workers=0, seed=0)
    with redirect_stdout(StringIO()): learn = image_learner(dls, arch, precision='fp32')
    fit_head(learn.model.eval(), dls.train_ds.items, dls.train_ds.labels, learn.preprocess)
    export_onnx(learn, work/f'{arch}.onnx')
    auto = dict(precision='auto', calibration=dls.train_ds.items)
    report = export_onnx(learn, work/f'{arch}-auto.onnx', **auto)
    print(f'{arch}: {report}\n', file=sys.stderr)
    plain = ImageDataLoaders.from_folder(work/'pictures', train='train', valid='valid', item_tfms=Resize(224), bs=8,
                                         batch_tfms=Normalize.from_stats(*imagenet_stats), num_workers=0, device='cpu')
    model = learn.model.to('cpu', torch.float32, memory_format=torch.contiguous_format)
    Learner(plain, model, loss_func=CrossEntropyLossFlat()).export(work/f'{arch}.pkl')

def prepare(work):
    if not (work/'pictures/valid').is_dir():
        make_pictures(work/'pictures', 'train', 8, 0)
        make_pictures(work/'pictures', 'valid', 8, 1)
    for o in ARCHS:
        if not (work/f'{o}.pkl').exists(): make_network(work, o)

def files_of(work): return sorted((work/'pictures/valid').rglob('*.jpg'))

def top1(labels, files): return statistics.mean(a == o.parent.name for a, o in zip(labels, files))

# The table

ROWS = [] # that are handed over

def row(case, measured, note, accuracy, key=None, value=None, spread='', ratio=''):
    "Print a row; one with a key is kept, and its value held to the bar"
    right, passed = '' if accuracy is None else f'top-1 {accuracy:.1%}', None if value is None else meets(key, value)
    if key: ROWS.append(Row(key, measured, passed, spread, ratio, '; '.join(filter(None, [note, right]))))
    verdict = {True: 'yes', False: 'NO', None: ''}[passed]
    print(f"| {case} | {measured} | {BARS.get(key, '')} | {verdict} | {note} | {right} |", flush=True)

def head():
    print(f"load {os.getloadavg()[0]:.1f} on {free_cpus()} processors\n")
    print(f"| case | measured | bar | met | how | right |\n|{'---|'*6}")

def quartiles(values, unit):
    low, _, high = statistics.quantiles(values)
    return f'{low:.2f} to {high:.2f} {unit}, quartiles'

def between(values, unit, form='.2f'): return f'{min(values):{form}} to {max(values):{form}} {unit}'

def clock(f, *args):
    began = time.perf_counter()
    got = f(*args)
    return got, 1e3*(time.perf_counter() - began)

# One picture

def way_of(work, arch, name):
    "What answers a file, and how it says what it computes in"
    if name == 'fastai': return fastai_predict(work, arch), 'learn.predict'
    model = Predictor(work/f'{arch}-auto.onnx') if name == 'auto' else Predictor(work/f'{arch}.onnx', engine='onnxruntime')
    if name == 'apart': return lambda o: model.labels[model.outputs(model.preprocess(o)[None])[0].argmax()], ''
    return lambda o: model(o).label, str(model.way)

def fastai_predict(work, arch):
    from fastai.learner import load_learner
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = load_learner(work/f'{arch}.pkl')
    def predict(file):
        with learn.no_bar(): return learn.predict(file)[0]
    return predict

def ask_alone(work, arch, name): # in a process of its own, which writes what it found as JSON
    ask, way = way_of(work, arch, name)
    said = [ask(o) for o in files_of(work)] # warms up
    print(json.dumps(dict(way=way, said=list(map(str, said)), ms=[clock(ask, o)[1] for o in files_of(work)*2])))

def ask_in_turns(work, arch, rounds):
    "One engine's threads go on looking for work when it has answered: each has a process, and the processes take turns"
    found = {o: [] for o in WAYS}
    for _ in range(rounds):
        for name in WAYS:
            command = [sys.executable, __file__, '--work', str(work), '--way', arch, name]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found[name].append(json.loads(out.splitlines()[-1]))
    return {k: v[0] | dict(ms=[x for o in v for x in o['ms']], turns=[statistics.median(o['ms']) for o in v])
            for k, v in found.items()}

WAYS = 'fastai', 'apart', 'fp32', 'auto'

def picture(work, rounds=5):
    for arch in ARCHS: one_picture(arch, files_of(work), ask_in_turns(work, arch, rounds))

def one_picture(arch, files, found):
    theirs, apart, mine, best = (statistics.median(found[o]['ms']) for o in WAYS)
    right = {k: top1(v['said'], files) for k, v in found.items()}
    row(f'{arch}, one picture, fastai', f'{theirs:.1f} ms', 'learn.predict', right['fastai'])
    row(f'{arch}, one picture, fp32', f'{mine - apart:.2f} ms more',
        f'{mine:.2f} ms, the parts alone {apart:.2f}; {theirs/mine:.1f} times fastai', right['fp32'],
        f'{arch}, fp32', mine - apart, quartiles(found['fp32']['ms'], 'ms'))
    ratios = [a/b for a, b in zip(found['fastai']['turns'], found['auto']['turns'])]
    faster = statistics.median(ratios)
    row(f'{arch}, one picture, auto', f'{best:.2f} ms', f"{found['auto']['way']}; fastai {theirs:.1f} ms", right['auto'],
        f'{arch}, auto', faster, f'{min(ratios):.2f} to {max(ratios):.2f}', f'{faster:.2f}')

# A folder

def rates(n, ways, rounds=5):
    "Pictures in a second of each way to go through n of them, round by round, by turns"
    for run in ways.values(): run() # warms up
    turns = [{k: 1e3*n/clock(run)[1] for k, run in ways.items()} for _ in range(rounds)]
    return {k: [o[k] for o in turns] for k in ways}

def limit(cpus, *alone):
    "What processors could do in a second, of the rates at which one of them does each of the parts"
    return cpus/sum(1/o for o in alone)

def ways_through(file, files):
    "The folder, and its parts on one thread"
    whole, engine = Predictor(file, engine='onnxruntime', idle=True), OnnxRuntime(file, threads=1)
    x = np.stack([whole.preprocess(o) for o in files])
    return dict(folder=lambda: [o.label for o in whole.batch(files)],
                read=lambda: [whole.preprocess(o) for o in files],
                engine=lambda: [engine(x[i:i + 16]) for i in range(0, len(x), 16)])

def folder(work):
    files, n = files_of(work), free_cpus()
    for arch in ARCHS:
        ways = ways_through(work/f'{arch}.onnx', files)
        found = rates(len(files), ways)
        got = {k: max(v) for k, v in found.items()}
        most = limit(n, got['read'], got['engine'])
        share = got['folder']/most
        note = f"{most:.1f} could be, by {n} processors; on one thread alone: {got['read']:.0f} read, {got['engine']:.0f} run"
        row(f'{arch}, a folder', f"{got['folder']:.1f} pictures/s", f'{note}; the best of five each',
            top1(ways['folder'](), files), f'{arch}, folder', share, between(found['folder'], 'pictures/s', '.1f'),
            f'{share:.2f}')

# The start

STARTS = {'fastai': '''
import warnings
warnings.simplefilter('ignore')
from fastai.vision.all import load_learner
learn = load_learner(sys.argv[1] + '.pkl')
with learn.no_bar(): label = learn.predict(sys.argv[2])[0]
''', 'bare onnxruntime': '''
import json
import numpy as np
import onnxruntime as ort
from PIL import Image
options = ort.SessionOptions()
options.log_severity_level = 3
session = ort.InferenceSession(sys.argv[1] + '.onnx', options, providers=['CPUExecutionProvider'])
card = json.loads(session.get_modelmeta().custom_metadata_map['imgcls_nb'])
p = card['preprocess']
im = Image.open(sys.argv[2]).convert('RGB')
short = p['resize_short']
im = im.resize([round(o*short/min(im.size)) for o in im.size], Image.Resampling[p['interpolation'].upper()])
h, w = p['crop']
left, top = (im.width - w)//2, (im.height - h)//2
x = np.asarray(im.crop((left, top, left + w, top + h)), np.float32)/255
x = ((x - np.array(p['mean'], np.float32))/np.array(p['std'], np.float32)).transpose(2, 0, 1)[None]
label = card['labels'][session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(x)})[0][0].argmax()]
''', 'Predictor': '''
from imgcls_nb.predict import Predictor
label = Predictor(sys.argv[1] + '.onnx')(sys.argv[2]).label
'''}
LAST = '''
import time
done = time.time()
print(done, int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])/1024, label)
'''

def start(work, rounds=5, arch='resnet18'):
    files, found = files_of(work), {o: [] for o in STARTS}
    for i in range(rounds):
        for name in STARTS: found[name].append(start_once(work/arch, files[i*len(files)//rounds], STARTS[name]))
    taken = {k: list(zip(*((s, mb) for s, mb, _ in v))) for k, v in found.items()} # seconds, and megabytes
    theirs, bare, ours = ([min(v) for v in taken[o]] for o in STARTS)
    seconds, memory = (between(v, unit, form) for v, unit, form in zip(taken['Predictor'], ('s', 'MB'), ('.2f', '.0f')))
    right = {k: statistics.mean(o[2] for o in v) for k, v in found.items()}
    for o, (s, mb) in zip(STARTS, (theirs, bare, ours)):
        row(f'{arch}, start, {o}', f'{s:.2f} s, {mb:.0f} MB', '', right[o])
    for key, ratio, measured, peer, spread in (
            ('start, fastai', theirs[0]/ours[0], f'{ours[0]:.2f} s', f'fastai {theirs[0]:.2f} s', seconds),
            ('start, time', ours[0]/bare[0], f'{ours[0]:.2f} s', f'bare {bare[0]:.2f} s', seconds),
            ('start, memory', ours[1]/bare[1], f'{ours[1]:.0f} MB', f'bare {bare[1]:.0f} MB', memory)):
        note = f'{peer}; the least of five each'
        row(f'{arch}, {key}', measured, note, right['Predictor'], key, ratio, spread, f'{ratio:.2f}')

def start_once(model, file, code):
    began = time.time()
    command = [sys.executable, '-c', f'import sys{code}{LAST}', model, file]
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
    end, mb, label = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.split()[-3:]
    return float(end) - began, float(mb), label == file.parent.name

# Fewer bits

def bits(work, rounds=5, calls=8):
    if 'openvino' not in engines_here() or not (can_run('bf16') or can_run('int8')):
        return row('ResNet-50, fewer bits', 'not run', 'needs openvino and units for bf16 or int8', None, 'resnet50, fewer bits')
    import timm
    import torch

    from imgcls_nb.export import to_onnx
    from imgcls_nb.quantize import make_variants
    torch.manual_seed(0)
    preprocess = Predictor(work/'resnet18.onnx').preprocess
    x = [preprocess(o)[None] for o in files_of(work)]
    made = make_variants(to_onnx(timm.create_model('resnet50').eval(), (3, 224, 224)), 'int8', [np.concatenate(x)])
    ways = dict(fp32=('fp32', 'onnxruntime', 'fp32'), bf16=('fp32', 'openvino', 'bf16'),
                int8=('int8 per tensor', 'openvino', 'fp32'))
    run = {k: open_engine(made[name].SerializeToString(), *how) for k, (name, *how) in ways.items() if can_run(k)}
    ms, first = {k: [] for k in run}, {k: [int(f(o).argmax()) for o in x] for k, f in run.items()}
    for _ in range(rounds): # by turns of some calls, for one engine's threads go on turning for a moment
        for k, f in run.items():
            f(x[0])
            ms[k] += [clock(f, x[i % len(x)])[1] for i in range(calls)]
    spread, ms = {k: quartiles(v, 'ms') for k, v in ms.items()}, {k: statistics.median(v) for k, v in ms.items()}
    best = min(ms.keys() - {'fp32'}, key=ms.get)
    same = statistics.mean(a == b for a, b in zip(first['fp32'], first[best]))
    others, faster = ', '.join(f'{k} {v:.1f} ms' for k, v in ms.items() if k != best), ms['fp32']/ms[best]
    row('ResNet-50, fewer bits', f'{ms[best]:.1f} ms, {best}', f'{others}, medians; first guesses agree on {same:.0%}', None,
        'resnet50, fewer bits', faster, spread[best], f'{faster:.2f}')

PARTS = dict(picture=picture, folder=folder, start=start, bits=bits)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', metavar='PART', help=f"some of {', '.join(PARTS)}")
    parser.add_argument('--work', type=Path, help='a folder that keeps pictures and networks')
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    parser.add_argument('--way', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way: return ask_alone(args.work, *args.way)
    if odd := [o for o in args.parts if o not in PARTS]: parser.error(f"no part is named {odd[0]!r}: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as tmp:
        work = args.work or Path(tmp)
        prepare(work)
        head()
        for o in args.parts or PARTS: PARTS[o](work)
    met, missed = (sum(o.passed is v for o in ROWS) for v in (True, False))
    print(f'\n{json.dumps(dict(load=os.getloadavg()[0], met=met, missed=missed))}')
    save_rows(args.bars, ROWS)

if __name__ == '__main__': main()
