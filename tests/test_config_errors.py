"Where the original fails without a word, or with the wrong one: each case with the message it has here"
from contextlib import nullcontext

import pytest
import torchvision.transforms.v2  # noqa: F401 (looks for a GPU when it is imported, so before we say that there is none)

from imgcls_nb.config import plan_from_config, read_config
from imgcls_nb.core import InputError

QUICK = 'configs/quick_start/MobileNetV3_large_x1_0.yaml'
TRAIN = 'DataLoader.Train.dataset.transform_ops'

@pytest.fixture(autouse=True)
def no_gpu(monkeypatch): monkeypatch.setattr('torch.cuda.is_available', lambda: False)

def plan(*overrides): return plan_from_config(read_config(QUICK, ('Global.device=cpu', *overrides)))

def value(override):
    here = read_config(QUICK, [override])
    for key in override.partition('=')[0].split('.'): here = here[int(key) if isinstance(here, list) else key]
    return here

# What was a text there is the value that is meant

@pytest.mark.parametrize('text, meant', [
    ('Global.epochs=3', 3), ('Optimizer.lr.learning_rate=0.1/4', .025), ('Optimizer.lr.learning_rate=1e-3', .001),
    ('Global.image_shape=[3,32,32]', [3, 32, 32]), ('Arch.pretrained=True', True), ('Arch.pretrained=true', True),
    ('Arch.pretrained=false', False), ('Arch.pretrained=null', None), ('Arch.pretrained=None', None),
    ('Global.output_dir=', ''), ('Global.output_dir="out dir"', 'out dir'), ("Global.output_dir='out dir'", 'out dir'),
    ('Global.pretrained_model=http://a/b?c=d&e=f', 'http://a/b?c=d&e=f'), ('Arch.name=copy', 'copy'),
    (f'{TRAIN}.1.RandCropImage.size=192', 192), (f'{TRAIN}.-1.NormalizeImage.scale=1/255', 1/255),
    (f'{TRAIN}.3=None', None)], ids=str)
def test_values(text, meant):
    assert value(text) == meant and type(value(text)) is type(meant)

def test_several_overrides_in_their_order():
    cfg = read_config(QUICK, ['Global.epochs=3', 'AMP.use_amp=False', 'Global.epochs=4', 'Optimizer.regularizer=None',
                              'Optimizer.regularizer.coeff=0.1'])
    assert (cfg['Global']['epochs'], cfg['AMP'], cfg['Optimizer']['regularizer']) == (4, dict(use_amp=False), dict(coeff=.1))

def test_numbers_within_lists_are_numbers():
    ops = [dict(RandCropImage=dict(size=32, scale=['1e-1', '1.0'])), dict(RandomErasing=dict(EPSILON='1.0/4.0', sh='1.0/3.0'))]
    cfg = read_config(QUICK, [f'{TRAIN}={ops}'])
    assert cfg['DataLoader']['Train']['dataset']['transform_ops'][0]['RandCropImage']['scale'] == [.1, 1.]
    augment = dict(plan(f'{TRAIN}={ops}').data.augment)
    assert augment['RandomErasing']['p'] == .25 and augment['RandomErasing']['scale'] == [.02, pytest.approx(1/3)]

# What was silent, or a bare exception

@pytest.mark.parametrize('override, says', [
    ('Global.pretraned=1', "Global.pretraned is not a key that is read here. Did you mean 'pretrained_model'"),
    ('Foo.x=1', "the config has no 'Foo'"),
    ('DataLoader.TRAIN.sampler.batch_size=512', "DataLoader has no 'TRAIN'. Did you mean 'Train'"), # an example of its own FAQ
    (f'{TRAIN}.9.X.y=1', "is a list of 4; '9' is no position in it .0 to 3.. It holds: 0 DecodeImage, 1 RandCropImage"),
    (f'{TRAIN}.9=1', "'9' is no position"),
    (f'{TRAIN}.RandCropImage.size=1', "'RandCropImage' is no position in it .0 to 3.. Write 1 for RandCropImage"),
    ('Global.epochs.x=1', "'Global.epochs' is 20 and has no keys below it"),
    ('Global.checkpoints.x=1', "'Global.checkpoints' is None and has no keys below it"),
    ('Global.epochs', 'an override is written key=value, such as -o Global.epochs=5'),
    ('Arch.name=ResNet5', "Arch.name: There is no architecture 'ResNet5'. Did you mean"),
    ('Arch.class_num=0', 'Arch.class_num=0 is too small'),
    ('Global.device=gpuu', "Global.device='gpuu' is not supported.*Did you mean 'gpu'"),
    ('Arch.pretrained=3', 'Arch.pretrained=3 is not True, False or a file'),
    ('Loss.Train=None', None), ('Loss.Train.0.CELoss.weight=x', "weight='x' is not a number"),
    ('Optimizer.lr.learning_rate=0', 'Optimizer.lr: lr=0: a schedule needs'),
    ('Optimizer.lr.warmup_start_lr=1', 'warmup_lr=1.0 is above'),
    (f'{TRAIN}.2.Cutout={{}}', 'expected one operation'), ('Global.use_multilabel=True', 'use_multilabel=True is not supported'),
    ('Global.eval_mode=retrieval', "eval_mode='retrieval' is not supported"),
    ('Infer.PostProcess.name=MultiLabelThreshOutput', 'MultiLabelThreshOutput.*not supported. Known: Topk'),
    ('Metric.Eval.0={"Recallk": {}}', "'Recallk' is not supported"),
    ('Arch.lr_mult_list=[0, 1]', 'lr_mult_list is not supported'),
    ('Arch.infer_add_softmax=False', 'infer_add_softmax=False'), ('Arch.name=RecModel', 'is for retrieval'),
    ('Loss.Train.0={"TripletLossV2": {}}', 'It is for retrieval; here a picture has one label'),
    (f'{TRAIN}.1.RandCropImage.interpolation=cubic', "Did you mean 'bicubic'"),
    (f'{TRAIN}.2={{"TimmAutoAugment": {{"config_str": "randm9"}}}}', 'no policy of timm'),
    ('Arch.input_image_channel=4', 'The pictures have 3 channels.*and the network takes 4')], ids=lambda o: str(o)[:50])
def test_messages(override, says):
    with pytest.raises(InputError, match=says) if says else nullcontext(): plan(override) # a loss is cross entropy anyway

def test_a_missing_file():
    with pytest.raises(InputError, match="There is no config file 'nope.yaml'"): read_config('nope.yaml')

def test_keys_that_change_nothing_stay_silent():
    quiet = ('Global.to_static=True', 'Global.use_dali=True', 'Arch.use_fused_attn=True', 'Arch.data_format=NHWC',
             'AMP.scale_loss=128.0', 'DataLoader.Train.loader.use_shared_memory=False', 'Optimizer.multi_precision=True')
    assert plan(*quiet).notes == plan('AMP.use_amp=True').notes

def test_the_old_place_of_the_number_of_classes():
    assert plan('Arch.class_num=None', 'Global.class_num=7').model.num_classes == 7

@pytest.mark.parametrize('overrides, precision', [([], 'auto'), (['AMP.use_amp=True'], 'auto'), (['AMP.level=O1'], 'auto'),
                                                  (['AMP.use_amp=False'], 'fp32')], ids=str)
def test_a_section_of_its_own_switches_mixed_precision_on(overrides, precision): assert plan(*overrides).precision == precision

# Distillation

PAIR = ['Arch={"name": "DistillationModel", "models": [{"Teacher": {"name": "ResNet34", "pretrained": "t.onnx"}}, '
        '{"Student": {"name": "ResNet18", "class_num": 102}}]}']

@pytest.mark.parametrize('losses, args', [
    ([dict(DistillationCELoss=dict(weight=1.))], dict(kind='kl', alpha=1., temperature=1.)),
    ([dict(DistillationGTCELoss=dict(weight=1.)), dict(DistillationKLDivLoss=dict(weight=3., temperature=4))],
     dict(kind='kl', alpha=.75, temperature=4.)),
    ([dict(DistillationGTCELoss=dict(weight=1.)), dict(DistillationDKDLoss=dict(weight=2., temperature=1, alpha=1., beta=2.))],
     dict(kind='dkd', temperature=1., alpha=2., beta=4.)),
    ([dict(DistillationDMLLoss=dict(weight=1.))], dict(kind='dml', weight=1., label_weight=0.)),
    ([dict(DistillationGTCELoss=dict(weight=1.)), dict(DistillationDISTLoss=dict(weight=2.))],
     dict(kind='dist', beta=1., gamma=1., weight=2., label_weight=1.)),
    ([dict(DistillationGTCELoss=dict(weight=1.)), dict(DistillationWSLLoss=dict(weight=2.5, temperature=2))],
     dict(kind='wsl', temperature=2., weight=2.5, label_weight=1.)),
    ([dict(DistillationSKDLoss=dict(weight=1., temperature=1., multiplier=2., alpha=.9))],
     dict(kind='skd', temperature=1., multiplier=2., alpha=.9, weight=1., label_weight=0.))], ids=str)
def test_teacher_and_student(losses, args):
    p = plan(*PAIR, f'Loss.Train={losses}')
    assert p.model.arch == 'ResNet18' and p.callbacks[-1:] == (('distill', dict(teacher='t.onnx') | args),) or (
        ('distill', dict(teacher='t.onnx') | args) in p.callbacks)

@pytest.mark.parametrize('losses, says', [
    ([dict(DistillationPairLoss={})], "'DistillationPairLoss' has no equal here"), ([dict(AFDLoss={})], "'AFDLoss' has no equal"),
    ([dict(DistillationCELoss=dict(epsilon=.1))], 'DistillationCELoss.epsilon is not a key'),
    ([dict(DistillationDMLLoss=dict(sum_across_class_dim=True))], 'sum_across_class_dim=True is not supported'),
    ([dict(DistillationSKDLoss=dict(weight=0))], 'DistillationSKDLoss has weight=0'),
    ([dict(DistillationCELoss=dict(model_name_pairs=[['Teacher', 'Student']]))], 'the student hears the teacher'),
    ([dict(DistillationGTCELoss=dict(model_names=['Student', 'Teacher']))], 'only the student learns'),
    ([dict(DistillationGTCELoss={})], '0 losses between student and teacher')], ids=str)
def test_losses_without_an_equal(losses, says):
    with pytest.raises(InputError, match=says): plan(*PAIR, f'Loss.Train={losses}')

@pytest.mark.parametrize('given, teacher', [('True', 'ResNet34'), ('runs/r34', 'runs/r34')])
def test_who_teaches(given, teacher):
    p = plan(*PAIR, f'Arch.models.0.Teacher.pretrained={given}', "Loss.Train=[{'DistillationCELoss': {'weight': 1.0}}]")
    assert dict(p.callbacks)['distill']['teacher'] == teacher

@pytest.mark.parametrize('given', ['False', 'None', ''])
def test_a_teacher_that_knows_nothing(given):
    with pytest.raises(InputError, match='the teacher is a trained network.*-o Arch.models.0.Teacher.pretrained=output/ResNet34'):
        plan(*PAIR, f'Arch.models.0.Teacher.pretrained={given}', "Loss.Train=[{'DistillationCELoss': {'weight': 1.0}}]")
