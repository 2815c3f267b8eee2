"""What is measured, what it should come to, and how a script hands over what it found.

Every script takes `--bars FILE` and writes its rows there with `save_rows`; `all.py` runs the scripts and gathers the rows.
"""
import json
import re
import statistics
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    key: str # of `Job.bars`
    measured: str # with its unit
    passed: bool|None = None # None: there is no bar, the figure is stated
    spread: str = '' # of what was measured, or of the ratio where there is one
    ratio: str = '' # to the peer, or to the limit
    note: str = ''

def save_rows(file, rows):
    "Hand over rows; without a file nothing is done"
    if file: Path(file).write_text(json.dumps([o._asdict() for o in rows], indent=1), 'utf-8')

def read_rows(file): return [Row(**o) for o in json.loads(Path(file).read_text('utf-8'))]

NUMBER = re.compile(r'\bat (least|most) (\d+(?:\.\d+)?)\b')

def meets(key, value):
    "Whether a value, in the unit of its bar, is at least or at most the number there; None where the bar has no such number"
    if not (bar := NUMBER.search(BARS[key])): return None
    return bool(value >= float(bar[2]) if bar[1] == 'least' else value <= float(bar[2]))

def judged(key, value, measured, spread='', ratio='', note=''):
    "A row whose value is held to its bar"
    return Row(key, measured, meets(key, value), spread, ratio, note)

def ratio_row(key, ratios, measured, note=''):
    "A row of ratios that were taken pair by pair; their median counts"
    middle = statistics.median(ratios)
    return judged(key, middle, measured, f'{min(ratios):.2f} to {max(ratios):.2f}', f'{middle:.2f}', note)

class Job(NamedTuple):
    script: str
    minutes: float # on two cores, about
    bars: dict # key: (what it is, the bar, whose number `meets` reads; '' where the figure is only stated)
    args: tuple = () # of the script; `{paddleclas}` stands for an option of `all.py`, without which it is not run
    more: tuple = () # further ones, where the options for them are given

    def filled(self, options):
        "Arguments with options put in; a missing one is a KeyError"
        given = {k: v for k, v in options.items() if v}
        args = [o.format_map(given) for o in self.args]
        try: return args + [o.format_map(given) for o in self.more]
        except KeyError: return args

    @property
    def command(self):
        args = [o.strip('{}').upper() if '{' in o else o for o in self.args]
        return ' '.join(['python', f'benchmarks/{self.script}', *args])

_LOADERS = {'small, epoch 1, fastai': ('500x375 JPEGs, first epoch, to fastai', 'at least 1.5'),
            'small, epoch 1, best': ('500x375 JPEGs, first epoch, to the best other loader', 'at least 1'),
            'small, later, fastai': ('500x375 JPEGs, later epochs, to fastai', 'at least 4'),
            'small, later, best': ('500x375 JPEGs, later epochs, to the best other loader', 'at least 2'),
            'large, epoch 1, fastai': ('12-megapixel JPEGs, first epoch, to fastai', 'at least 5'),
            'large, later, fastai': ('12-megapixel JPEGs, later epochs, to fastai', 'at least 30')}
_STEPS = {'resnet18, bare step': ('ResNet-18 from JPEGs, share of the bare training step', 'at least 0.93'),
          'mobilenetv3_large_100, bare step': ('MobileNetV3-large from JPEGs, share of the bare training step', 'at least 0.93'),
          'resnet18, fastai': ('ResNet-18, training against fastai as it is', 'expected: about 3'),
          'resnet18, timm': ("ResNet-18, training against timm's own loop at its best", 'expected: about 1.2'),
          'mobilenetv3_large_100, fastai': ('MobileNetV3-large, training against fastai as it is', 'expected: about 1.3'),
          'mobilenetv3_large_100, timm': ("MobileNetV3-large, training against timm's own loop at its best", ''),
          'mobilenetv3_large_100, PaddleClas': ("MobileNetV3-large, training against PaddleClas's command",
                                                'expected: about 2.5')}
_PICTURE = {f'{arch}, {key}': (f'{name}, file to top five, {what}', bar)
            for arch, name in (('resnet18', 'ResNet-18'), ('mobilenetv3_large_100', 'MobileNetV3-large'))
            for key, what, bar in (('fp32', 'fp32', 'at most 1.5 ms more than the parts alone'),
                                   ('auto', "auto, to fastai's `learn.predict`", 'at least 5'),
                                   ('folder', 'a folder, share of what its processors could do', 'at least 0.9'))}
_NONE_LOST = 'its 95 % interval holds 0, and reaches at most 1 point from it'

JOBS = dict(
    data=Job('data_pipeline.py', 25, _LOADERS),
    cache=Job('data_pipeline.py', 40, {
        'cache, accuracy': ('top-1 with the decoded cache, less that without', _NONE_LOST),
        'decoding, accuracy': ('top-1 with pictures decoded at a smaller size, less that at full size', _NONE_LOST)},
        ('--accuracy', '--seeds', '10')),
    steps=Job('train_speed.py', 30, _STEPS, ('steps',), ('--paddleclas', '{paddleclas}', '--paddle-python', '{paddle_python}')),
    fashion=Job('train_speed.py', 105, {
        'time to 94 %': ('Fashion-MNIST to 94.0 %, against the best of three settings of fastai', 'at least 3'),
        'seconds to 94 %': ('Fashion-MNIST to 94.0 %, from nothing', 'aim: 120 s'),
        'time to theirs': ("Fashion-MNIST to the best that fastai reaches in the time, against fastai", '')}, ('fashion',)),
    few=Job('train_speed.py', 12, {
        'few, gain': ('20 pictures a class: from ImageNet weights, above the best baseline', 'at least 15 points')}, ('few',)),
    kill=Job('kill_resume.py', 15, {
        'kills, equal': ('trainings that were killed and ended bit for bit as the others', '20 of 20')}),
    checkpoint=Job('checkpoint_cost.py', 2, {
        'checkpoint, ResNet-50': ('a checkpoint of a ResNet-50 with AdamW, share of an epoch of one minute', 'at most 2 %'),
        'checkpoint, quickstart': ("a checkpoint of the quickstart's network", '')}),
    evaluation=Job('evaluation.py', 3, {
        'confusion, seconds': ('confusion matrix of 1000 classes and 50,000 pictures', 'at most 1 s'),
        'confusion, memory': ('the same, memory beyond the predictions', 'at most 200 MB')}),
    widgets=Job('widgets.py', 3, {
        'click, kernel': ('a click into 1000 classes and 50,000 pictures, in the kernel', 'at most 300 ms'),
        'click, screen': ('a pair chosen from the list, until its pictures are on the screen', ''),
        'view, kernel': ('the viewer of 1000 classes, until it is handed to the browser', '')}, ('--browser',)),
    families=Job('export.py', 10, {'families': ('families of timm whose ONNX file answers as torch does', 'at least 25')},
                 ('families',)),
    precision=Job('export.py', 8, {
        'precision, accuracy': ('MobileNetV2, fine-tuned, fewer bits: top-1 against fp32', 'at most 0.5 points less'),
        'precision, speed': ('the same, time for a picture against ONNX Runtime fp32', '')}, ('precision',)),
    inference=Job('inference.py', 6, _PICTURE | {
        'start, fastai': ("start to first answer, against fastai's `load_learner`", 'at least 8'),
        'start, time': ('start to first answer, against a bare script on onnxruntime', 'at most 1.15'),
        'start, memory': ('memory until then, against the same', 'at most 1.15'),
        'resnet50, fewer bits': ('ResNet-50, OpenVINO in bf16 or int8 against ONNX Runtime fp32', 'at least 3')}),
    configs=Job('paddleclas_configs.py', 6, {
        'configs, built': ('configs of PaddleClas whose network has an equivalent, built whole', 'all'),
        'configs, trained': ('their distinct recipes, trained two epochs, saved and resumed', 'all')},
        ('{paddleclas}', '--train')),
    scaling=Job('scaling.py', 10, {
        'scaling, resnet18': ('ResNet-18, two processes of one thread against one process of two', 'at least 0.85'),
        'scaling, mobilenetv3_large_100': ('MobileNetV3-large, the same', 'at least 0.85')}),
    large=Job('large_data.py', 5, {
        'large, index': ('10,000,000 pictures in tar shards: their index, for each picture', ''),
        'large, memory': ('the same, own memory of the training process, for each picture', 'at most 32 bytes'),
        'large, headers': ('the same, first start: headers of tar files, for a million pictures', ''),
        'large, start': ('the same, every later start', 'at most 20 s'),
        'large, first batch': ('the same, from there to the first batch', 'at most 20 s'),
        'large, worker': ('the same, own memory of a loader process', 'at most 150 MB')}),
    quickstart=Job('quickstart_seeds.py', 3, {'quickstart, top-1': ('the quickstart on digits, top-1 of five seeds', ''),
                                             'quickstart, seconds': ('the same, from kernel start to the end', '')}),
    tutorials=Job('tutorials.py', 20, {
        'tutorials, longest': ('the longest tutorial, as a reader runs it', 'at most 180 s'),
        'tutorials, stated': ('tutorials that take no more than the minutes they speak of', 'all')}, ('full',)),
    tutorials_quick=Job('tutorials.py', 5, {
        'tutorials, quick': ('all tutorials with little of everything, as the tests run them', 'at most 480 s')}, ('quick',)),
    suite=Job('suite.py', 40, {
        'suite, whole': ('all tests in a new clone, the install included', 'at most 45 minutes'),
        'suite, browser': ('of that, tests in a browser', 'at most 5 minutes'),
        'suite, kills': ('of that, trainings that are killed and resumed', 'at most 3 minutes')}),
    recipe_digits=Job('recipes.py', 2, {'recipe, digits': ('configs/quick_start/digits.yaml, top-1', '')},
                      ('--only', 'digits.yaml')),
    recipe_fashion=Job('recipes.py', 60, {
        'recipe, fashion_mnist': ('configs/quick_start/FashionMNIST_ResNet18.yaml, top-1', '')},
        ('--only', 'FashionMNIST_ResNet18.yaml')),
)

BARS = {key: bar for job in JOBS.values() for key, (_, bar) in job.bars.items()} # their numbers stand nowhere else
