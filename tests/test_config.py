"PaddleClas's YAML and `-o`: what a text means, the plan that comes out, and every slip named"
import re
from pathlib import Path

import numpy as np
import pytest
import torchvision.transforms.v2  # noqa: F401 (looks for a GPU when it is imported, so before we say that there is none)
import yaml

from imgcls_nb.config import find_config, plan_from_config, plan_from_folder, read_config, read_value
from imgcls_nb.core import InputError, Preprocess
from imgcls_nb.plan import DataPlan, FitPlan, ModelPlan, ObjectivePlan, plan_from_yaml, plan_to_dict, plan_to_yaml
from imgcls_nb.words import plan_in_words

QUICK = 'configs/quick_start/MobileNetV3_large_x1_0.yaml'
TRAIN, EVAL = (f'DataLoader.{o}.dataset.transform_ops' for o in ('Train', 'Eval'))

@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('torch.backends.mps.is_available', lambda: False)
    monkeypatch.setattr('imgcls_nb.config.free_cpus', lambda: 8)

def plan(*overrides, config=QUICK, demanded=()): return plan_from_config(read_config(config, overrides), demanded)

# Values

@pytest.mark.parametrize('text, value', [
    ('5', 5), ('-3', -3), ('0.5', .5), ('.5', .5), ('1e-3', .001), ('1.0e-6', 1e-6), ('5.', 5.), (' 7 ', 7), ('1_000', 1000),
    ('1.0/255.0', 1/255), ('1/255', 1/255), ('1./255.', 1/255), (' 1 / 2 ', .5), ('-1e2/4', -25.), ('1/0', '1/0'),
    ('1/2/3', '1/2/3'),
    ('True', True), ('true', True), ('FALSE', False), ('null', None), ('None', None), ('', ''), ('~', '~'), ('on', 'on'),
    ('[1, 2]', [1, 2]), ('[0.5, [1]]', [.5, [1]]), ('(3, 4)', (3, 4)), ("{'a': 1}", {'a': 1}), ('[1, 2', '[1, 2'),
    ('[a, b]', '[a, b]'), ('[true, null]', [True, None]), ('{"AutoAugment": null}', {'AutoAugment': None}),
    ("'5'", '5'), ('"a b"', 'a b'), ("'", "'"), ('a=b', 'a=b'), ('resnet18', 'resnet18'), ('./output/', './output/'),
    ('007', '007'),
    ('C:\\new', 'C:\\new'), ('ü 日', 'ü 日'), ('["ü"]', ['ü']), ('2021-01-01', '2021-01-01'), ('a\0b', 'a\0b'),
    ('['*5000, '['*5000)],
    ids=lambda o: repr(o)[:20])
def test_read_value(text, value):
    got = read_value(text)
    assert got == value and type(got) is type(value)

@pytest.mark.parametrize('value', [5, .5, None, True, [1], {'a': 1}], ids=repr)
def test_values_that_are_no_text_stay(value): assert read_value(value) is value

@pytest.mark.parametrize('code', [
    '__import__("os").system("touch trace")', 'open("trace", "w")', '[open("trace", "w")]', 'exec("open(1)")', '(lambda: 0)()'])
def test_code_is_never_run(tmp_path, monkeypatch, code):
    monkeypatch.chdir(tmp_path)
    assert read_value(code) == code
    cfg = read_config(QUICK, [f'Global.output_dir={code}'])
    assert cfg['Global']['output_dir'] == code and not (tmp_path/'trace').exists()

@pytest.mark.parametrize('text', ["!!python/object/apply:os.system ['touch trace']", 'Global: !!python/name:os.system'])
def test_yaml_runs_no_code(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    Path('x.yaml').write_text(text)
    with pytest.raises(InputError, match="'x.yaml' is not valid YAML"): read_config('x.yaml')
    assert not Path('trace').exists()

# Overrides

@pytest.mark.parametrize('override, path, value', [
    ('Global.epochs=5', ('Global', 'epochs'), 5), (' Global.epochs = 5', ('Global', 'epochs'), 5),
    ('Global.output_dir=./a=b', ('Global', 'output_dir'), './a=b'), ("Arch.name='test_resnet'", ('Arch', 'name'), 'test_resnet'),
    ('Global.output_dir="a b"', ('Global', 'output_dir'), 'a b'), ('Global.seed=7', ('Global', 'seed'), 7),
    (f'{TRAIN}.1.RandCropImage.size=32', ('DataLoader', 'Train', 'dataset', 'transform_ops', 1, 'RandCropImage', 'size'), 32),
    (f'{TRAIN}.-1.NormalizeImage.scale=1', ('DataLoader', 'Train', 'dataset', 'transform_ops', 3, 'NormalizeImage', 'scale'), 1),
    (f'{EVAL}.1=None', ('DataLoader', 'Eval', 'dataset', 'transform_ops', 1), None),
    ('Loss.Train.0.CELoss.epsilon=0.1', ('Loss', 'Train', 0, 'CELoss', 'epsilon'), .1),
    ('AMP.use_amp=False', ('AMP', 'use_amp'), False)])
def test_overrides(override, path, value):
    here = read_config(QUICK, [override])
    for key in path: here = here[key]
    assert here == value

def test_later_overrides_win(): assert read_config(QUICK, ['Global.epochs=5', 'Global.epochs=6'])['Global']['epochs'] == 6

@pytest.mark.parametrize('override, says', [
    ('Global.epochs', 'an override is written key=value'), ('=5', 'an override is written key=value'),
    ('', 'an override is written'),
    ('Globl.epochs=5', "the config has no 'Globl'.*Did you mean 'Global'"), ('.epochs=5', "has no ''"),
    ('DataLoader.Trian.sampler.batch_size=2', "DataLoader has no 'Trian'.*Did you mean 'Train'"),
    ('DataLoader.Train.datset.image_root=x', "DataLoader.Train has no 'datset'.*Did you mean 'dataset'"),
    (f'{TRAIN}.4.X.size=1', "is a list of 4; '4' is no position in it .0 to 3"), (f'{TRAIN}.-5.X=1', "'-5' is no position"),
    (f'{TRAIN}.first.X=1', "'first' is no position"), (f'{TRAIN}.9=x', "'9' is no position"),
    (f'{TRAIN}.1.5=x', 'expected one operation'),
    ('Global.checkpoints.x=1', "'Global.checkpoints' is None and has no keys below it"),
    ('Global.checkpoints.x.y=1', "'Global.checkpoints' is None"), ('Global.epochs.x=1', "'Global.epochs' is 20 and has no keys")])
def test_overrides_that_lead_nowhere(override, says):
    with pytest.raises(InputError, match=f'(-o {override}.*)?{says}'): plan(override)

# Files

def test_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(QUICK) == find_config('quick_start/MobileNetV3_large_x1_0.yaml') == find_config(f'somewhere/ppcls/{QUICK}')
    (tmp_path/QUICK).parent.mkdir(parents=True)
    (tmp_path/QUICK).write_text('Global: {epochs: 3}')
    assert read_config(QUICK) == dict(Global=dict(epochs=3)), "one's own file comes first"

@pytest.mark.parametrize('text, says', [
    ('', 'is no config'), ('- a', 'is no config'), ('text', 'is no config'), ('Global: 5', 'is no config'),
    ('Global: [', 'is not valid YAML'),
    (b'Global: {a: \xff}', 'is not valid YAML'), ('a: b: c', 'is not valid YAML'),
    ('['*10_000, 'is nested too deeply')], ids=lambda o: str(o)[:12])
def test_files_that_are_no_configs(tmp_path, text, says):
    (tmp_path/'x.yaml').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"x.yaml' {says}"): read_config(tmp_path/'x.yaml')

def test_missing_configs():
    with pytest.raises(InputError, match="no config file 'configs/quick_start/MobileNetV3.yaml'.*Did you mean '?configs/quick"):
        find_config('configs/quick_start/MobileNetV3.yaml')

# The plan

def test_the_quick_start_config_field_by_field():
    p = plan()
    root = './dataset/flowers102/'
    assert p.data == DataPlan(
        root, f'{root}train_list.txt', f'{root}val_list.txt', num_classes=102, size=(224, 224), bs=32, valid_bs=64, num_workers=4,
        preprocess=Preprocess(crop=(224, 224), resize_short=256, interpolation='bilinear', antialias=False).to_dict(),
        augment=(('RandomResizedCrop', dict(scale=[.08, 1.], ratio=[3/4, 4/3], interpolation='bilinear',
                                              antialias=False, log_aspect=False)),
                 ('RandomHorizontalFlip', {})))
    assert p.model == ModelPlan('MobileNetV3_large_x1_0', False, 102)
    assert p.objective == ObjectivePlan('cross_entropy', opt='sgd', opt_args=dict(mom=.9), weight_decay=1e-6)
    args = dict(n_epoch=20, schedule='cosine', lr=.00375, warmup_epochs=5., warmup_lr=0., lr_min=0., by_epoch=False,
                after_warmup=False)
    assert p.schedule == (FitPlan('fit_scheduled', args),)
    assert (p.precision, p.channels_last, p.device, p.save_interval) == ('auto', 'auto', 'cpu', 1)
    assert Path(p.run) == Path('output/MobileNetV3_large_x1_0') and p.replayable and p.epochs == 20
    assert len(p.notes) == 3
    for o, says in zip(p.notes, ('flowers102_label_list.txt', 'device gpu', 'no AMP section')): assert says in o
    assert plan_to_dict(plan_from_yaml(plan_to_yaml(p))) == plan_to_dict(p)

@pytest.mark.parametrize('overrides, field', [
    (['Arch.pretrained=True'], lambda p: p.model.pretrained is True),
    (['Global.pretrained_model=w'], lambda p: p.model.pretrained == 'w'),
    (['Arch.pretrained=True', 'Global.pretrained_model=w'], lambda p: p.model.pretrained == 'w'), # the weights to evaluate
    (['Arch.name=ResNet50'], lambda p: p.objective.decay_norm_bias and Path(p.run) == Path('output/ResNet50')),
    (['Arch.drop_rate=0.2'], lambda p: p.model.kwargs == dict(drop_rate=.2)), (['Global.seed=7'], lambda p: p.data.seed == 7),
    (['Loss.Train.0.CELoss.epsilon=0.1'], lambda p: p.objective.label_smoothing == .1),
    (['Optimizer.name=AdamW', 'Optimizer.momentum=None'],
     lambda p: (p.objective.opt, p.objective.opt_args) == ('adamw', dict(mom=.9, sqr_mom=.999, eps=1e-8))),
    (['Optimizer.lr.warmup_start_lr=1e-5', 'Optimizer.lr.eta_min=1e-4'],
     lambda p: p.schedule[0].args | dict(warmup_lr=1e-5, lr_min=1e-4) == p.schedule[0].args),
    (['AMP.use_amp=False'], lambda p: p.precision == 'fp32'),
    (['AMP.use_amp=True', 'AMP.level=O1'], lambda p: p.precision == 'auto'),
    (['Global.save_interval=-1'], lambda p: p.save_interval == 0), ([f'{TRAIN}.2.RandFlipImage.flip_code=0'],
     lambda p: [o for o, _ in p.data.augment] == ['RandomResizedCrop', 'RandomVerticalFlip']),
    ([f'{TRAIN}.2.RandFlipImage.flip_code=-1'],
     lambda p: [o for o, _ in p.data.augment][1:] == ['RandomHorizontalFlip', 'RandomVerticalFlip']),
    ([f'{EVAL}.1.ResizeImage.backend=pil', f'{EVAL}.1.ResizeImage.interpolation=bicubic'],
     lambda p: (p.data.preprocess['interpolation'], p.data.preprocess['antialias']) == ('bicubic', True)),
    ([f'{EVAL}.1.ResizeImage={{"size": [300, 200]}}', f'{EVAL}.2.CropImage.size=[280, 160]'], # width before height
     lambda p: (p.data.preprocess['resize'], p.data.preprocess['crop'], p.data.size) == ([200, 300], [160, 280], (160, 280))),
    ([f'DataLoader.{o}.dataset.delimiter="\\t"' for o in ('Train', 'Eval')], lambda p: p.data.delimiter == '\t'),
    (['DataLoader.Eval.dataset.image_root=./dataset/flowers102'], lambda p: p.data.valid_path is None),
    (['DataLoader.Eval.dataset.image_root=./other'], lambda p: p.data.valid_path == './other'),
    ([f'{TRAIN}.1.RandCropImage.size=192'], lambda p: (p.data.bs, p.data.sizes) == (32, ((192, 192),))),
    ([f'{TRAIN}.1.RandCropImage.interpolation=2'], lambda p: p.data.augment[0][1]['interpolation'] == 'bicubic'),
    ([f'{EVAL}.1.ResizeImage={{"resize_short": 256, "interpolation": 2, "backend": "pil"}}'],
     lambda p: p.data.preprocess['interpolation'] == 'bilinear'), # each backend counts in its own way
    (['EMA.decay=0.9', 'EMA=None'], lambda p: [o for o, _ in p.callbacks] == ['console']),
    (['EMA={}'], lambda p: p.callbacks[0] == ('ema', dict(decay=.9999, warmup=0))),
    (['Global.seed=False'], lambda p: p.data.seed == 42), (['Global.seed=0'], lambda p: p.data.seed == 0),
    (['Arch.pretrained='], lambda p: p.model.pretrained is False),
    (['Metric.Eval.0.TopkAcc.topk=[3, 5]'], lambda p: (p.monitor, p.metrics) == ('top3', ('top3', 'top5'))),
    (['Optimizer.no_weight_decay_name=.bias norm', 'Optimizer.one_dim_param_no_weight_decay=True'],
     lambda p: (p.objective.decay_norm_bias, p.objective.no_decay) == (False, ('.bias', 'norm')))],
    ids=lambda o: str(o).partition(' at 0x')[0]) # the same in every process
def test_what_an_override_does_to_the_plan(overrides, field): assert field(plan(*overrides))

def test_label_names_are_taken_when_the_file_is_there(tmp_path):
    (tmp_path/'names.txt').write_text('0 a\n')
    p = plan(f'Infer.PostProcess.class_id_map_file={tmp_path}/names.txt')
    assert p.data.label_file == f'{tmp_path}/names.txt' and len(p.notes) == 2

def test_numbers_up_to_255(tmp_path):
    cfg = yaml.safe_load(find_config(QUICK).read_text('utf-8'))
    for part, i in (('Train', 3), ('Eval', 3)):
        cfg['DataLoader'][part]['dataset']['transform_ops'][i]['NormalizeImage'] = dict(
            scale='1.0', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], order='', channel_num=3)
    (tmp_path/'x.yaml').write_text(yaml.safe_dump(cfg))
    pre, want = Preprocess(**plan(config=tmp_path/'x.yaml').data.preprocess), Preprocess(**plan().data.preprocess)
    pic = np.random.default_rng(0).integers(0, 256, (300, 250, 3), np.uint8)
    assert np.abs(pre(pic) - want(pic)).max() < 1e-4 and np.abs(want(pic)).max() < 3

# Departures

@pytest.mark.parametrize('override, says', [
    ('DataLoader.Eval.sampler.drop_last=True', 'DataLoader.Eval.sampler.drop_last is left out: every picture is evaluated'),
    ('Optimizer.lr.warmup_epoch=20', 'warmup_epoch=20 is all of the 20 epochs'),
    ('Global.class_num=7', 'Global.class_num=7 is not read'),
    ('Metric.Eval.0.TopkAcc.topk=[1, 500]', 'top500 says nothing of 102 classes'),
    ('Global.image_shape=[1,224,224]', r'image_shape=.1, 224, 224. is not what the evaluation makes, .3, 224, 224.'),
    ('Loss.Eval.0.CELoss.epsilon=0.1', 'Loss.Eval.0.CELoss.epsilon is left out')], ids=str)
def test_departures_are_told(override, says):
    told = set(plan(override).notes) - set(plan().notes)
    assert len(told) == 1 and re.search(says, told.pop())

def test_in_words():
    told = plan_in_words(plan('DataLoader.Eval.dataset.image_root=./other', 'Optimizer.no_weight_decay_name=fc norm'))
    assert 'val_list.txt, below ./other, in batches of 64' in told and "but none of what has fc or norm in its name" in told
    assert 'MobileNetV3_large_x1_0 is built as mobilenetv3_large_100' in told.partition('Departures:')[2]
    assert ' 20 epochs, cosine from 0.00375; 5 epochs of rise' in told
    assert ' 1 epoch, cosine from 0.00375; 1 epoch of' in plan_in_words(plan('Global.epochs=1', 'Optimizer.lr.warmup_epoch=1'))

def test_loader_processes_are_preferred_or_demanded(monkeypatch):
    monkeypatch.setattr('imgcls_nb.config.free_cpus', lambda: 2)
    path = 'DataLoader.Train.loader.num_workers'
    p = plan()
    assert p.data.num_workers == 2 and 'asks for 4 loader processes; this machine has 2 processors' in ''.join(p.notes)
    assert plan(f'{path}=4', demanded=(path,)).data.num_workers == 4 and plan(f'{path}=1').data.num_workers == 1

# Devices

@pytest.mark.parametrize('name, kind', [('gpu', 'cuda'), ('mps', 'mps')])
def test_a_device_that_is_preferred_or_demanded(monkeypatch, name, kind):
    p = plan(f'Global.device={name}')
    assert p.device == 'cpu' and [o for o in p.notes if f'device {name}' in o and 'CPU is used' in o]
    with pytest.raises(InputError, match=f'Global.device={name} was asked for, but this machine has none.*-o Global.device=cpu'):
        plan(f'Global.device={name}', demanded=('Global.device',))
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.backends.mps.is_available', lambda: True)
    for demanded in ((), ('Global.device',)):
        p = plan(f'Global.device={name}', demanded=demanded)
        assert p.device == kind and not [o for o in p.notes if 'device gpu' in o or 'device mps' in o]

def test_the_cpu_is_always_there():
    assert plan('Global.device=cpu', demanded=('Global.device',)).device == 'cpu'
    with pytest.raises(InputError, match="Global.device='cpuu' is not supported. Use gpu, cpu or mps. Did you mean 'cpu'"):
        plan('Global.device=cpuu')

# Slips

@pytest.mark.parametrize('override, near', [
    ('Global.epoch=5', 'epochs'), ('Global.save_intervall=1', 'save_interval'), ('Arch.class_nums=3', 'class_num'),
    ('Loss.Trian=1', 'Train'), ('Loss.Train.0.CELoss.epsilonn=1', 'epsilon'), ('Optimizer.momentun=1', 'momentum'),
    ('Optimizer.lr.warmup_epochs=1', 'warmup_epoch'), ('Optimizer.regularizer.coef=1', 'coeff'), ('AMP.use_ampp=True', 'use_amp'),
    ('DataLoader.Trian=1', 'Train'), ('DataLoader.Train.samplr=1', 'sampler'),
    ('DataLoader.Train.sampler.batchsize=1', 'batch_size'),
    ('DataLoader.Eval.sampler.batch_sizes=1', 'batch_size'), ('DataLoader.Train.loader.num_worker=1', 'num_workers'),
    ('DataLoader.Train.dataset.image_rot=x', 'image_root'), ('DataLoader.Eval.dataset.cls_label_paths=x', 'cls_label_path'),
    (f'{EVAL}.1.ResizeImage.resize_shrot=1', 'resize_short'), (f'{TRAIN}.1.RandCropImage.sizes=1', 'size'),
    (f'{TRAIN}.3.NormalizeImage.means=1', 'mean'), ('Infer.infer_img=x', 'infer_imgs'),
    ('Infer.PostProcess.class_id_map=x', 'class_id_map_file'), ('Metric.Evall=1', 'Eval')])
def test_unknown_keys_are_refused(override, near):
    where = override.partition('=')[0].rpartition('.')
    with pytest.raises(InputError, match=f"{where[2]}.*Did you mean .*'{near}'"): plan(override)

def test_unknown_sections_are_refused():
    with pytest.raises(InputError, match="Optimiser is not a section of a config. Did you mean 'Optimizer'"):
        plan_from_config(read_config(QUICK) | dict(Optimiser={}))
    with pytest.raises(InputError, match='Section Slim is for pruning and quantization'): plan('Slim={}')

@pytest.mark.parametrize('override, says', [
    ('Global.batch_size=8', 'The config has DataLoader.Train.sampler.batch_size and DataLoader.Eval.sampler.batch_size'),
    ('Global.learning_rate=1', 'The config has Optimizer.lr.learning_rate'), ('epochs=3', 'The config has Global.epochs'),
    ('Arch.use_visualdl=True', 'To leave it out: -o Arch.use_visualdl=None'),
    ('Optimizer.name=AdamW', 'Optimizer.momentum is not a key.*To leave it out: -o Optimizer.momentum=None'),
    ('Loss.Train.0.CELoss.lr=1', 'Loss.Train.0.CELoss.lr is not a key.*The config has Optimizer.lr')])
def test_keys_in_the_wrong_place(override, says):
    with pytest.raises(InputError, match=says): plan(override)

@pytest.mark.parametrize('override, says', [
    (f'{TRAIN}.2={{"RandFlipImag": {{}}}}', "'RandFlipImag' is not supported.*Did you mean 'RandFlipImage'"),
    (f'{TRAIN}.2=RandErasing', "'RandErasing' is not supported.*Did you mean 'RandomErasing'.*Known: DecodeImage"),
    (f'{EVAL}.2={{"CropImag": {{}}}}', "'CropImag' is not supported.*Did you mean 'CropImage'"),
    (f'{EVAL}.2={{"RandCropImage": {{"size": 32}}}}', "'RandCropImage' is not supported"),
    (f'{EVAL}.2={{"CropImage": {{"size": 9}}, "x": 1}}', 'expected one operation'), (f'{EVAL}.2=5', 'expected one operation'),
    (f'{EVAL}.1.ResizeImage.interpolation=bicubik', "Did you mean 'bicubic'"),
    (f'{EVAL}.1.ResizeImage.backend=cv', "Did you mean 'cv2'"),
    (f'{EVAL}.2.CropImage.size=300', 'does not fit'), (f'{TRAIN}.3.NormalizeImage.mean=[0, 0, 0]', 'another mean or std'),
    (f'{TRAIN}.2.RandFlipImage.flip_code=3', 'flip_code=3 is not supported'),
    ('Loss.Train.0={"MultiLoss": {}}', "'MultiLoss' is not supported"),
    ('Optimizer.name=Momentun', "Did you mean 'Momentum'"), ('Optimizer.lr.name=Cosin', "Did you mean 'Cosine'"),
    ('Optimizer.regularizer.name=L1', "name='L1' is not supported"),
    ('Optimizer.lr.learning_rate=None', 'learning_rate is missing'),
    ('DataLoader.Train.dataset.name=ImageNetDatset', "Did you mean 'ImageNetDataset'"),
    ('DataLoader.Train.sampler.name=PKSampler', 'not supported'),
    ('DataLoader.Train.sampler.shuffle=False', 'shuffle must be True'),
    ('DataLoader.Train.dataset.delimiter=,', "delimiter is ',' and DataLoader.Eval.dataset.delimiter is ' '. Make them equal"),
    ('DataLoader.Eval.dataset.relabel=True', 'relabel is False and DataLoader.Eval.dataset.relabel is True'),
    ('DataLoader.Eval.sampler.name=RASampler', "name='RASampler' is not supported"),
    ('DataLoader.Train.sampler.name=MultiScaleSampler', 'scales=.. are no sizes'),
    ('DataLoader.Train.dataset.shuffle=True', 'dataset.shuffle is not a key.*has DataLoader.Train.sampler.shuffle'),
    ('Global.train_mode=fixmatch', "train_mode='fixmatch' is not supported"), ('Optimizer.lr.last_epoch=10', 'last_epoch=10'),
    ('Arch.drop_path_rate=2', 'Arch.drop_path_rate=2 does not fit: give a number from 0 to 1'),
    ('Optimizer.clip_norm=-1', 'Optimizer.clip_norm=-1 does not fit'), ('Optimizer.clip_norm=0', 'Optimizer: max_norm=0'),
    ('Optimizer.regularizer.coeff=-1', 'Optimizer.regularizer.coeff=-1 does not fit'),
    ('Arch.name=ResNet51', "Arch.name: There is no architecture 'ResNet51'. Did you mean"),
    ('Arch.name=CvT_13_224', 'Arch.name: .*neither timm nor torchvision has'),
    ('Infer.PostProcess.topk=x', 'Infer.PostProcess.topk'), ('Infer.PostProcess.delimiter=","', 'delimiter=.,. is not supported'),
    ('Infer.batch_size=0', 'Infer.batch_size=0 is too small'), (f'{TRAIN}.0.DecodeImage.backend=cv', "Did you mean 'cv2'"),
    ('DataLoader.Train.dataset.cls_label_path=None', 'need image_root and cls_label_path'),
    ('Arch.name=None', 'Arch.name is missing'),
    ('EMA.decay=2', 'EMA: decay=2.0 is no share'),
    ('Global.checkpoints=output/x/latest', 'Weights alone are for Global.pretrained_model')])
def test_what_is_not_supported_is_refused(override, says):
    with pytest.raises(InputError, match=says): plan(override)

FLOWERS = [f'DataLoader.{o}.dataset.name=flowers102' for o in ('Train', 'Eval')]

def test_a_named_data_set_takes_no_list(monkeypatch):
    monkeypatch.setattr('imgcls_nb.datasets.named_dataset', lambda *_: pytest.fail('fetched before it is refused'))
    with pytest.raises(InputError, match=r"Train.dataset.cls_label_path='./dataset/.*train_list.txt' cannot stand beside") as e:
        plan(*FLOWERS)
    monkeypatch.setattr('imgcls_nb.datasets.named_dataset', lambda name, root: Path(root or 'cache')/name)
    without = re.findall(r'-o (\S+=null)', str(e.value)) # what it says to do is enough
    for root, path in (('./dataset/flowers102/', 'dataset/flowers102'), ('a', 'a/flowers102'), ('null', 'cache/flowers102')):
        data = plan(*FLOWERS, *without, f'DataLoader.Train.dataset.image_root={root}').data
        assert (data.path, data.train, data.valid) == (path, None, None)

WRONG = {
    'Global.epochs': ('', 'abc', '0', '-1', '2.5', '__import__("os")'), 'Global.seed': ('x',), 'Global.save_interval': ('x',),
    'Global': ('5',), 'Arch': ('x',), 'Arch.class_num': ('', 'ten', '0'), 'Arch.name': ('', '5'), 'AMP.use_amp': ('maybe',),
    'Optimizer': ('x',), 'Optimizer.lr': ('5',), 'Optimizer.lr.learning_rate': ('', 'fast'), 'Optimizer.lr.warmup_epoch': ('x',),
    'Optimizer.momentum': ('x',), 'Optimizer.regularizer.coeff': ('x',), 'Loss.Train': ('5',), 'Loss.Train.0': ('5',),
    'Loss.Train.0.CELoss.epsilon': ('x',), 'Infer': ('5',), 'Infer.PostProcess': ('5',),
    'DataLoader': ('5',), 'DataLoader.Train': ('5',),
    'DataLoader.Train.sampler.batch_size': ('', 'x', '0', '-4', '2.5'), 'DataLoader.Eval.sampler.batch_size': ('x',),
    'DataLoader.Train.loader.num_workers': ('x', '-1'), 'DataLoader.Train.dataset.image_root': ('5',), TRAIN: ('5',),
    f'{TRAIN}.1.RandCropImage.size': ('', 'x', '0'), f'{EVAL}.2.CropImage.size': ('', '3.5', 'x'),
    f'{EVAL}.1.ResizeImage.resize_short': ('x',), f'{EVAL}.3.NormalizeImage.scale': ('0',),
    f'{EVAL}.3.NormalizeImage.mean': ('x',), f'{EVAL}.3.NormalizeImage.std': ('[0, 0, 0]',)}

@pytest.mark.parametrize('override', [f'{k}={v}' for k, vs in WRONG.items() for v in vs])
def test_values_of_the_wrong_kind_are_refused(override):
    with pytest.raises(InputError) as e: plan(override)
    key = override.partition('=')[0].split('.')[-1]
    assert key in str(e.value), "it says where"

# Label mixing

MIX = 'DataLoader.Train.dataset.batch_transform_ops'

@pytest.mark.parametrize('value, mix', [
    ('None', ()), ('[]', ()), ([{'MixupOperator': dict(alpha=.2)}], (('Mixup', dict(alpha=.2, prob=1.)),)),
    (['MixupOperator'], (('Mixup', dict(alpha=1., prob=1.)),)),
    ([{'CutmixOperator': dict(class_num=102)}], (('CutMix', dict(alpha=.2, prob=1.)),)),
    ([{'FmixOperator': dict(alpha=1, decay_power=2.5)}], (('FMix', dict(alpha=1., decay_power=2.5, prob=1.)),)),
    ([{'OpSampler': {'MixupOperator': dict(alpha=.8, prob=.5), 'CutmixOperator': dict(alpha=1., prob=.3, class_num=9),
                     'class_num': 9}}], (('Mixup', dict(alpha=.8, prob=.5)), ('CutMix', dict(alpha=1., prob=.3)))),
    ([{'OpSampler': {'FmixOperator': dict(prob=.1)}}], (('FMix', dict(alpha=1., decay_power=3., prob=.1)),))], ids=str)
def test_mixing(value, mix):
    p = plan(f'{MIX}={value}')
    assert p.mix == mix and plan_to_dict(plan_from_yaml(plan_to_yaml(p))) == plan_to_dict(p)

def test_mixing_as_the_files_write_it(tmp_path):
    text = find_config(QUICK).read_text('utf-8')
    ops = """
      batch_transform_ops:
        - OpSampler:
            MixupOperator:
              alpha: 0.8
              prob: 0.5
            CutmixOperator: 
              alpha: 1.0
              prob: 0.5
    sampler:"""
    (tmp_path/'x.yaml').write_text(text.replace('\n    sampler:', ops, 1), 'utf-8')
    assert plan(config=tmp_path/'x.yaml').mix == (('Mixup', dict(alpha=.8, prob=.5)), ('CutMix', dict(alpha=1., prob=.5)))

@pytest.mark.parametrize('value, says', [
    ([{'MixupOperater': {}}], "'MixupOperater' is not supported. Did you mean 'MixupOperator'.*FmixOperator, OpSampler"),
    ([{'MixupOperator': dict(alfa=1)}], "MixupOperator.alfa is not a key.*Did you mean 'alpha'"),
    ([{'MixupOperator': dict(alpha='x')}], 'MixupOperator.alpha=.x. is not a number'),
    ([{'MixupOperator': dict(alpha=0)}], 'ops.0.MixupOperator.*Mixup has alpha=0. Give a number above 0'),
    ([{'MixupOperator': dict(prob=.5)}], 'MixupOperator.prob is not a key'),
    ([{'OpSampler': {'MixupOperator': dict(alpha=1)}}], 'OpSampler.MixupOperator.prob is missing'),
    ([{'OpSampler': {'MixupOperator': None}}], 'OpSampler.MixupOperator.prob is missing'),
    ([{'OpSampler': {'MixupOperator': dict(prob=.7), 'CutmixOperator': dict(prob=.5)}}], 'add up to 1.2'),
    ([{'OpSampler': {'OpSampler': dict(prob=.7)}}], "'OpSampler' is not supported"),
    ([{'OpSampler': 5}], 'OpSampler: expected keys'), (5, 'batch_transform_ops=5 is not a list'),
    ([{'MixupOperator': {}}, {'CutmixOperator': {}}], 'has 2 operations.*into one OpSampler')], ids=str)
def test_mixing_that_cannot_be(value, says):
    with pytest.raises(InputError, match=says): plan(f'{MIX}={value}')

def test_the_evaluation_is_never_mixed():
    with pytest.raises(InputError, match='Eval.dataset.batch_transform_ops is not a key'):
        plan('DataLoader.Eval.dataset.batch_transform_ops=["MixupOperator"]')

# Folders

def test_the_plan_of_a_folder(tmp_path):
    p = plan_from_folder(tmp_path/'my photos')
    assert p.data == DataPlan(str(tmp_path/'my photos'), size=(224, 224), augment=p.data.augment)
    assert p.model == ModelPlan('resnet18', False) and p.schedule == (FitPlan('fit_one_cycle', dict(n_epoch=5)),)
    assert Path(p.run) == Path('runs/my photos')
    p = plan_from_folder('.', pretrained=True, epochs=2, lr=.01, valid='0.3', num_workers='2', size=(32, 48), run='r')
    assert p.schedule == (FitPlan('fine_tune', dict(epochs=2, base_lr=.01)),) and p.epochs == 3
    assert (p.data.valid, p.data.num_workers, p.data.size, p.run) == (.3, 2, (32, 48), 'r')
    assert plan_from_folder('.').run.startswith('runs') and plan_from_folder('.', valid='valid').data.valid == 'valid'

@pytest.mark.parametrize('given', [
    dict(epochs=0), dict(size=0), dict(bs=0), dict(aug='stron'), dict(num_workers='x'), dict(lr=-1.)], ids=str)
def test_folder_settings_that_cannot_be(given):
    with pytest.raises(InputError, match=next(iter(given))): plan_from_folder('.', **given)
