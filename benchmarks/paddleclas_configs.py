"""Every config of a PaddleClas checkout, read and built: which work here, and why others do not

    python benchmarks/paddleclas_configs.py PaddleClas            # plan, network on the meta device, loss, optimizer, schedule
    python benchmarks/paddleclas_configs.py PaddleClas --train    # and train each distinct recipe, save it and resume it
"""
import argparse
import contextlib
import io
import json
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from bars import Row, save_rows
from PIL import Image

from imgcls_nb.archs import build_arch, find_arch
from imgcls_nb.callbacks.catalog import make_callbacks
from imgcls_nb.callbacks.distill import DISTILLATIONS
from imgcls_nb.config import plan_from_config, read_config
from imgcls_nb.core import InputError
from imgcls_nb.learner import learner_from_plan, run_schedule
from imgcls_nb.losses import make_loss
from imgcls_nb.models import create_model, split_params
from imgcls_nb.optim import make_optimizer
from imgcls_nb.schedules import Schedule

SMALL = 'test_resnet' # trains in their place

def config_files(root):
    "The configs of single-label classification; those of kunlun are of another, older schema"
    home = Path(root)/'ppcls/configs' if (Path(root)/'ppcls').is_dir() else Path(root)
    files = [o for d in ('ImageNet', 'quick_start') for o in sorted((home/d).rglob('*.yaml'))]
    return home, [o for o in files if 'kunlun' not in o.parts]

def build(plan):
    "All that a plan describes but the pictures, without memory for weights"
    net = plan.model
    with torch.device('meta'): model = create_model(net.arch, False, net.num_classes, plan.data.size, **net.kwargs)
    obj = plan.objective
    make_loss(obj.loss, obj.label_smoothing, **obj.loss_args)
    opt = make_optimizer(obj.opt, model, split_params(model), wd=obj.weight_decay, decay_norm_bias=obj.decay_norm_bias,
                         no_decay=obj.no_decay, **obj.opt_args)
    for fit in plan.schedule:
        args = dict(fit.args)
        named = {k: args.pop(k) for k in ('n_epoch', 'lr', 'warmup_epochs', 'warmup_lr', 'lr_min', 'by_epoch', 'after_warmup')
                 if k in args}
        made = Schedule(args.pop('schedule'), steps_per_epoch=100, args=args, **named)
        assert all(np.isfinite(made(o)) for o in range(0, made.steps, 50))
    make_callbacks([o for o in plan.callbacks if o[0] != 'distill'], plan.run)
    return model, opt

def undecayed_otherwise(cfg, model, opt):
    "Parameters that the file wants without decay and we decay, or the other way round, by the names of timm"
    said = cfg['Optimizer']
    words, flat = (said.get('no_weight_decay_name') or '').split(), said.get('one_dim_param_no_weight_decay')
    theirs = {n for n, p in model.named_parameters() if any(o in n for o in words) or flat and p.ndim == 1}
    spared = {id(p) for g in opt.opt.param_groups if not g['decays'] for p in g['params']}
    return sorted(theirs ^ {n for n, p in model.named_parameters() if id(p) in spared})

def recipe(plan):
    "What distinguishes two configs for a training: transforms, mixing, loss, optimizer, schedule, callbacks"
    data = asdict(plan.data)
    kept = {k: data[k] for k in ('augment', 'preprocess', 'repeats', 'sizes', 'start_size', 'drop_last')}
    kept['preprocess'] = {k: v for k, v in kept['preprocess'].items() if k not in ('crop', 'resize_short', 'resize')}
    fits = [{k: v for k, v in o.args.items() if k != 'n_epoch'} for o in plan.schedule]
    return json.dumps([kept, plan.mix, asdict(plan.objective), fits, plan.callbacks, plan.precision], sort_keys=True, default=str)

def draw_pictures(folder, n=16):
    "A small data set with list files"
    rng, lines = np.random.default_rng(0), []
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (48, 56, 3), np.uint8)).save(folder/f'{i}.png')
        lines.append(f'{i}.png {i % 4}\n')
    (folder/'list.txt').write_text(''.join(lines))

def shrink(plan, folder, run, teacher=None):
    "The same recipe on few small pictures with a small network, and with the run of one as teacher"
    pre = dict(plan.data.preprocess, crop=[32, 32]) | (dict(resize_short=36) if plan.data.preprocess['resize_short']
                                                       else dict(resize=[32, 32], crop=None))
    sizes = ((32, 32), (24, 24)) if len(plan.data.sizes) > 1 else ((24, 24),) if plan.data.sizes else ()
    data = replace(plan.data, path=str(folder), train='list.txt', valid='list.txt', valid_path=None, label_file=None,
                   num_classes=4, bs=8, valid_bs=8, size=(32, 32), preprocess=pre, sizes=sizes,
                   start_size=plan.data.start_size and 24, cache=False, num_workers=0)
    kwargs = {k: v for k, v in plan.model.kwargs.items() if k == 'in_chans'}
    fit = plan.schedule[0]
    args = fit.args | dict(n_epoch=2, warmup_epochs=min(1., fit.args['warmup_epochs']))
    return replace(plan, data=data, model=replace(plan.model, arch=SMALL, num_classes=4, pretrained=False, kwargs=kwargs),
                   schedule=(replace(fit, args=args),), run=str(run), notes=(), device='cpu',
                   callbacks=tuple((k, in_small(v, teacher) if k == 'distill' else v) for k, v in plan.callbacks
                                   if k != 'distill' or teacher))

def in_small(args, teacher):
    "A distillation from the run of a small network, or with another one, by those of its layers that the small network has"
    known = {k for k, _ in build_arch(find_arch(SMALL), False, 4).named_modules()}
    layers = {k: [o for o in args[k] if o in known] or None for k in ('layers', 'teacher_layers') if k in args}
    return args | layers | dict(teacher=SMALL if DISTILLATIONS[args['kind']].mutual else str(teacher))

def train(plan):
    "Train, stop after the first epoch, and go on from what was saved"
    from fastai.callback.core import Callback
    class Stop(Callback):
        order = 100
        def after_epoch(self): raise KeyboardInterrupt
    with contextlib.redirect_stdout(io.StringIO()):
        learn = learner_from_plan(plan)
        with contextlib.suppress(KeyboardInterrupt), learn.added_cbs(Stop()): run_schedule(learn, plan.schedule)
        done = run_schedule(learner_from_plan(plan), plan.schedule, resume=True, allow=['callback stop'])
    assert done.clock.epochs == 2 and all(p.isfinite().all() for p in done.model.parameters())
    return done.run_folder.path

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('root', help='a checkout of PaddleClas, or a folder with its ImageNet and quick_start configs')
    parser.add_argument('--train', action='store_true', help='also train each distinct recipe for a few batches')
    parser.add_argument('--limit', type=int, help='recipes to train at most')
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    home, files = config_files(args.root)
    refused, decay, recipes, built = {}, {}, {}, 0
    for file in files:
        name = file.relative_to(home).as_posix()
        try:
            cfg = read_config(file, ['Global.device=cpu'])
            plan = plan_from_config(cfg)
            with contextlib.redirect_stdout(io.StringIO()): model, opt = build(plan)
        except InputError as e: refused[name] = str(e)
        else:
            built += 1
            recipes.setdefault(recipe(plan), (name, plan))
            if plan.objective.no_decay is not None and (odd := undecayed_otherwise(cfg, model, opt)): decay[name] = odd
    print(f'{built} of {len(files)} configs are built, with {len(recipes)} distinct recipes. Refused:')
    missing = {k: v for k, v in refused.items() if 'neither timm nor torchvision has' in v}
    families = ', '.join(dict.fromkeys(o.split('/')[1] for o in missing))
    print(f'{len(missing):4}  have an architecture without an equivalent: {families}')
    others = {k: v for k, v in refused.items() if k not in missing}
    for why, n in Counter(others.values()).most_common(): print(f"{n:4}  {next(k for k, v in others.items() if v == why)}: {why}")
    for name, odd in decay.items(): print(f"decay differs  {name}: {len(odd)} parameters, such as {', '.join(odd[:3])}")
    possible = len(files) - len(missing)
    odd = [f"refused: {', '.join(Path(o).stem for o in others)}"]*bool(others)
    note = '; '.join([f'{len(missing)} more have no equivalent', *odd])
    bars = [Row('configs, built', f'{built} of {possible}', built == possible, note=note)]
    if args.train: bars.append(train_all(list(recipes.values())[:args.limit]))
    save_rows(args.bars, bars)

def train_all(recipes):
    "A few steps of each"
    failed = {}
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'pictures'
        folder.mkdir()
        draw_pictures(folder)
        teacher = train(shrink(recipes[0][1], folder, Path(tmp)/'runs/teacher'))
        for i, (name, plan) in enumerate(recipes):
            try: train(shrink(plan, folder, Path(tmp)/f'runs/{i}', teacher))
            except Exception as e: failed[name] = f'{type(e).__name__}: {e}' # what fails is what this is for
    print(f'{len(recipes) - len(failed)} of {len(recipes)} recipes were trained, saved and resumed.')
    for name, why in failed.items(): print(f'  {name}: {why}')
    return Row('configs, trained', f'{len(recipes) - len(failed)} of {len(recipes)}', not failed)

if __name__ == '__main__': main()
