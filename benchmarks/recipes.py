"""The configs that travel with the package, and what they reach: measured where the pictures are here, else what was published.

    python benchmarks/recipes.py                                # those that can be run here, three seeds each
    python benchmarks/recipes.py --only digits.yaml             # two minutes
    python benchmarks/recipes.py --render                       # nothing is run, RECIPES.md is written again

A config can be run where its data set is found: digits always, Fashion-MNIST where Debian's `dataset-fashion-mnist` is. Published
figures are PaddleClas's own, from its documentation, for the same network and schedule, and sometimes on more GPUs; they are what
to expect, and were not run here. What is reached is the top-1 of the best epoch on the pictures that the config evaluates on, as
PaddleClas states its own. A config that fails is named, and the others go on.
"""
import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from bars import Row, save_rows

from imgcls_nb.cli import main as imgcls
from imgcls_nb.runs import Run

HERE = Path(__file__).parent
ROOT, KEPT, PAGE = HERE.parent, HERE/'recipes.json', HERE/'RECIPES.md'
SEEDS = 1, 2, 3

RUNS = {'quick_start/digits.yaml': 'digits', 'quick_start/FashionMNIST_ResNet18.yaml': 'fashion_mnist'} # config to data set
STUDY = 'of the augmentation study; 77.31 without'
PUBLISHED = { # top-1 in percent, and of what
    'quick_start/ResNet50_vd.yaml': ('94.02', 'flowers102, from published weights; 27.35 from scratch'),
    'quick_start/MobileNetV3_large_x1_0.yaml': ('', 'flowers102; there is no figure for it'),
    'quick_start/CIFAR100_ResNet18.yaml': ('', 'CIFAR-100; ResNet50_vd: 41.5 from scratch, 71.8 from ImageNet weights, 73 from '
                                               'SSLD weights; MobileNetV3-large from ImageNet weights: 60.1'),
    'Distillation/ResNet50_vd_distill_MobileNetV3_large_x1_0.yaml': ('', 'flowers102; on CIFAR-100 this pair has 64.4, and 60.1 '
                                                                         'without a teacher'),
    'Distillation/ResNet34_distill_ResNet18_dkd.yaml': ('72.59', 'ImageNet; 70.8 without a teacher'),
    'ImageNet/ResNet50.yaml': ('76.50', 'ImageNet'),
    'ImageNet/MobileNetV3_large_x1_0.yaml': ('75.32', 'ImageNet'),
    'ImageNet/PPLCNet_x1_0.yaml': ('71.32', 'ImageNet'),
    'ImageNet/ViT_base_patch16_224.yaml': ('81.87', 'ImageNet'),
    'ImageNet/DeiT_small_patch16_224.yaml': ('79.82', 'ImageNet'),
    'ImageNet/SwinTransformer_tiny_patch4_window7_224.yaml': ('81.10', 'ImageNet'),
    'ImageNet/ConvNeXt_tiny.yaml': ('82.03', 'ImageNet'),
    **{f'DataAugment/ResNet50_{k}.yaml': (v, f'ImageNet, {STUDY}') for k, v in dict(
        AutoAugment='77.95', Mixup='78.28', Cutmix='78.39', Cutout='78.01', GridMask='77.85', RandAugment='77.70',
        RandomErasing='77.91', HideAndSeek='77.43').items()}}

def command(config): return f'imgcls train -c configs/{config}'

class Failed(Exception): pass

def train(config, seed, folder):
    "Best top-1 of a training in a new folder, and its minutes"
    began = time.monotonic()
    out = Path(folder)/f'{Path(config).stem}_{seed}'
    sets = {'Global.seed': seed, 'Global.device': 'cpu', 'Global.output_dir': out}
    status = imgcls(['train', '-c', f'configs/{config}', *(o for k, v in sets.items() for o in ('-o', f'{k}={v}'))])
    if status: raise Failed(f'`{command(config)}` ended with status {status}.')
    run = next(o.parent for o in out.rglob('config.yaml'))
    return float(Run.open(run).history().top1.max()), (time.monotonic() - began)/60

def measure(config, seeds):
    with tempfile.TemporaryDirectory() as folder: found = [train(config, o, folder) for o in seeds]
    top1, minutes = zip(*found)
    return dict(seeds=list(seeds), top1=list(top1), minutes=round(statistics.median(minutes), 1), date=date.today().isoformat())

# The page

def row(config, kept):
    published, of = PUBLISHED.get(config, ('', ''))
    if not (found := kept.get(config)): return [f'`{command(config)}`', '', 'not run', published, of]
    accs, middle = [f'{o:.2%}' for o in found['top1']], statistics.median(found['top1'])
    each = f"{', '.join(accs)}; {found['minutes']} minutes each" if len(accs) > 1 else f"{found['minutes']} minutes"
    reached = f"{middle:.2%} ({each}, {found['date']})"
    return [f'`{command(config)}`', ', '.join(map(str, found['seeds'])), reached, published, of]

def configs(): return sorted(o.relative_to(ROOT/'configs').as_posix() for o in (ROOT/'configs').glob('*/*.yaml'))

def render(kept):
    lines = [['command', 'seeds', 'top-1 reached here: median (each)', 'published, %', 'of'], ['---']*5,
             *(row(o, kept) for o in sorted(configs(), key=lambda o: (o not in RUNS, o)))]
    intro = ("Written by `benchmarks/recipes.py`: every config of `configs/` with what it reaches. Published figures are those "
             "of PaddleClas's documentation. They say what to expect, and were **not run** here, for want of pictures and GPUs. "
             "What was reached is the best epoch's, on the CPU, with `-o Global.seed=` and each of the seeds behind the command.")
    return '\n'.join(['# Recipes', '', intro, '', *(f"| {' | '.join(o)} |" for o in lines)]) + '\n'

def bar_row(config, found):
    top1, many = found['top1'], len(found['seeds']) > 1
    seeds, spread = ', '.join(map(str, found['seeds'])), f'{min(top1):.2%} to {max(top1):.2%}'
    return Row(f'recipe, {RUNS[config]}', f'{statistics.median(top1):.2%}', None, spread if many else '',
               note=f"seed{'s'*many} {seeds}; {found['minutes']} minutes{' each'*many}")

def load(): return json.loads(KEPT.read_text('utf-8')) if KEPT.exists() else {}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', default=list(RUNS), help=f"some of {', '.join(RUNS)}; the end of a name is enough")
    parser.add_argument('--seeds', nargs='+', type=int, default=SEEDS)
    parser.add_argument('--render', action='store_true', help='run nothing, write the page again')
    parser.add_argument('--bars', help='file for the rows of RESULTS.md')
    args, kept, failed = parser.parse_args(), load(), []
    chosen = [] if args.render else [c for c in RUNS if any(c.endswith(o) for o in args.only)]
    if not chosen and not args.render: parser.error(f"none of {', '.join(RUNS)} ends with {args.only[0]!r}")
    for o in chosen:
        try: kept[o] = measure(o, args.seeds)
        except Failed as e:
            failed.append(o)
            print(e, file=sys.stderr)
        else: KEPT.write_text(json.dumps(kept, indent=1) + '\n', 'utf-8')
    PAGE.write_text(render(kept), 'utf-8')
    if rows := [bar_row(o, kept[o]) for o in chosen if o not in failed]: save_rows(args.bars, rows)
    return int(bool(failed))

if __name__ == '__main__': sys.exit(main())
