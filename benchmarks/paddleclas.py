"PaddleClas's own training command, on the files of a benchmark, with what it says about its speed"
import re
import subprocess
from pathlib import Path

CONFIGS = dict(resnet18='ResNet/ResNet18.yaml', mobilenetv3_large_100='MobileNetV3/MobileNetV3_large_x1_0.yaml')

def write_lists(folder):
    "Its list files, for `train` and `valid` folders of classes"
    for part in ('train', 'valid'):
        classes = sorted(o for o in (folder/part).iterdir() if o.is_dir())
        lines = [f'{o.relative_to(folder).as_posix()} {i}\n' for i, c in enumerate(classes) for o in sorted(c.iterdir())]
        (folder/f'{part}_list.txt').write_text(''.join(lines), 'utf-8')
    return len(classes)

def overrides(folder, out, bs, epochs, workers=2):
    sets = dict(Train='train_list.txt', Eval='valid_list.txt')
    settings = {'Global.device': 'cpu', 'Global.epochs': epochs, 'Global.output_dir': out, 'Global.print_batch_step': 1,
                'Global.save_interval': 0, 'Arch.class_num': write_lists(folder)}
    for part, file in sets.items():
        where = f'DataLoader.{part}'
        settings |= {f'{where}.dataset.image_root': folder, f'{where}.dataset.cls_label_path': folder/file,
                     f'{where}.sampler.batch_size': bs, f'{where}.loader.num_workers': workers,
                     f'Metric.{part}.0.TopkAcc.topk': '[1]'}
    return [o for k, v in settings.items() for o in ('-o', f'{k}={v}')]

def train(root, python, folder, arch, bs, epochs, out):
    "Seconds a step in each epoch, as its log has them at the epoch's end, and its last top-1"
    config = f'ppcls/configs/ImageNet/{CONFIGS[arch]}'
    command = [python, 'tools/train.py', '-c', config, *overrides(Path(folder), out, bs, epochs)]
    done = subprocess.run(command, cwd=root, text=True, capture_output=True)
    log = done.stdout + done.stderr
    last = dict(re.findall(r'\[Train\]\[Epoch (\d+)/.*ips: ([\d.]+) samples/s', log)) # of each epoch, its last line
    top1 = re.findall(r'\[Eval\]\[Epoch \d+\]\[Avg\].*top1: ([\d.]+)', log)
    if done.returncode or len(last) != epochs or not top1: raise RuntimeError(f'PaddleClas did not train:\n{log[-2000:]}')
    return [bs/float(o) for o in last.values()], float(top1[-1])
