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
    ('Arch.stem_stride=0', 'Arch.stem_stride=0 is too small'), ('Arch.stem_stride=a', "'a' is not a whole number"),
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

MGD = dict(base_loss_name='MGDLoss', weight=1., s_key='blocks[7]', t_key='blocks[15]')
PEFD = dict(base_loss_name='PEFDLoss', s_key='avg_pool', t_key='avg_pool')

@pytest.mark.parametrize('losses, says', [
    ([dict(DistillationRKDLoss={})], "'DistillationRKDLoss' has no equal here"),
    ([dict(AFDLoss={})], 'two networks that are wrapped as AttentionModel'),
    ([dict(DistillationPairLoss={})], "base_loss_name=None is not supported. Known: MGDLoss, PEFDLoss"),
    ([dict(DistillationPairLoss=dict(base_loss_name='MGDLos'))], "Did you mean 'MGDLoss'"),
    ([dict(DistillationPairLoss=dict(base_loss_name='MGDLoss', s_key='blocks[7]'))], 's_key and t_key name a layer of each'),
    ([MGD | dict(s_key='blocks[8]')], "s_key='blocks.8.': ResNet18 has no layer.*Did you mean 'blocks.*It has stem, max_pool"),
    ([MGD | dict(t_key='layer4')], "t_key='layer4': ResNet34 has no layer"), ([MGD | dict(weight=0)], 'has weight=0'),
    ([MGD | dict(lambda_mgd=2)], 'lambda_mgd=2 does not fit'), ([MGD | dict(s_shape=[1])], 's_shape is not a key'),
    ([MGD, dict(DistillationDKDLoss={})], 'goes with DistillationGTCELoss and DistillationKLDivLoss, and not with Distill'),
    ([MGD, MGD], 'there are two DistillationPairLoss'), ([PEFD | dict(s_key='blocks[7]')], 'are maps, which are averaged here'),
    ([dict(DistillationDistanceLoss=dict(key='blocks[7]'))], 'is for two networks that both learn'),
    ([dict(DistillationCELoss=dict(epsilon=.1))], 'DistillationCELoss.epsilon is not a key'),
    ([dict(DistillationDMLLoss=dict(sum_across_class_dim=True))], 'sum_across_class_dim=True is not supported'),
    ([dict(DistillationSKDLoss=dict(weight=0))], 'DistillationSKDLoss has weight=0'),
    ([dict(DistillationCELoss=dict(model_name_pairs=[['Teacher', 'Student']]))], 'the student hears the teacher'),
    ([dict(DistillationGTCELoss=dict(model_names=['Student', 'Teacher']))], 'frozen is not one'),
    ([dict(DistillationGTCELoss={})], '0 losses between student and teacher')], ids=str)
def test_losses_without_an_equal(losses, says):
    losses = [dict(DistillationPairLoss=o) if 'base_loss_name' in o else o for o in losses]
    with pytest.raises(InputError, match=says): plan(*PAIR, f'Loss.Train={losses}')

# Distillation by layers

def distill(*overrides): return dict(plan(*overrides).callbacks)['distill']

LABEL, PAIRS = dict(DistillationGTCELoss=dict(weight=1., model_names=['Student'])), [['Student', 'Teacher']]

@pytest.mark.parametrize('loss, args', [
    (MGD | dict(name='loss_mgd', student_channels=512, teacher_channels=512, model_name_pairs=PAIRS),
     dict(kind='mgd', layers=['layer4.1'], teacher_layers=['layer4.2'], weight=1.756, mask=.15)),
    (MGD | dict(weight=2., alpha_mgd=3., lambda_mgd=.5),
     dict(kind='mgd', layers=['layer4.1'], teacher_layers=['layer4.2'], weight=6., mask=.5)),
    (PEFD | dict(weight=25., student_channel=512, teacher_channel=512),
     dict(kind='pefd', layers=['global_pool'], teacher_layers=['global_pool'], weight=25., projectors=3)),
    (PEFD | dict(weight=25., s_key='blocks[7]', t_key='blocks[15]', mode='gap', num_projectors=2),
     dict(kind='pefd', layers=['layer4.1'], teacher_layers=['layer4.2'], weight=25., projectors=2))], ids=str)
def test_a_pair_of_layers(loss, args):
    got = distill(*PAIR, f'Loss.Train={[LABEL, dict(DistillationPairLoss=loss)]}')
    assert got == dict(teacher='t.onnx', label_weight=1., logits_weight=0.) | args
    soft = dict(DistillationKLDivLoss=dict(weight=.5, temperature=2))
    got = distill(*PAIR, f'Loss.Train={[soft, LABEL, dict(DistillationPairLoss=loss)]}')
    assert got == dict(teacher='t.onnx', label_weight=1., logits_weight=.5, temperature=2.) | args

def attention(teacher=None, student=None, **changed): # overrides; changed keys of what is wrapped
    keys = dict(Teacher=[f'blocks[{i}]' for i in range(16)], Student=[f'blocks[{i}]' for i in range(8)])
    nets = dict(Teacher=dict(name='ResNet34', pretrained=True, return_patterns=keys['Teacher']),
                Student=dict(name='ResNet18', class_num=9))
    def wrapped(who, own):
        transform = dict(name=f'LinearTransform{who}', keys=keys[who], qk_dim=128, t_shapes=[[64, 56, 56]]) | own
        return {who: dict(name='AttentionModel', freeze_params_list=[who == 'Teacher', False],
                          models=[{'net': nets[who]}, {'transform': transform}]) | changed}
    arch = dict(name='DistillationModel', models=[wrapped('Teacher', teacher or {}), wrapped('Student', student or {})])
    losses = [LABEL, dict(DistillationKLDivLoss=dict(weight=.9, temperature=4, key='logits', model_name_pairs=PAIRS)),
              dict(AFDLoss=dict(weight=50., model_name_pair=['Student', 'Teacher'], student_keys=['bilinear_key', 'value'],
                                teacher_keys=['query', 'value'], s_shapes=[], t_shapes=[]))]
    return f'Arch={arch}', f'Loss.Train={losses}'

def test_attention():
    p = plan(*attention())
    args, blocks = dict(p.callbacks)['distill'], [f'layer{s}.{i}' for s, n in enumerate((3, 4, 6, 3), 1) for i in range(n)]
    assert p.model.arch == 'ResNet18' and p.model.num_classes == 9 and args == dict(
        teacher='ResNet34', kind='afd', layers=[f'layer{s}.{i}' for s in range(1, 5) for i in range(2)], teacher_layers=blocks,
        weight=50., label_weight=1., logits_weight=.9, temperature=4., dim=128)
    args = distill(*attention(dict(qk_dim=64), dict(qk_dim=64)))
    assert args['dim'] == 64

@pytest.mark.parametrize('how, says', [
    (dict(teacher=dict(qk_dim=64)), r'qk_dim is \[64, 128\]. Make them equal'),
    (dict(teacher=dict(keys=['blocks[16]'])), "Teacher.keys='blocks.16.': ResNet34 has no layer.*or 'blocks.15.'"),
    (dict(teacher=dict(shapes=1)), 'shapes is not a key'),
    (dict(freeze_params_list=[False, False]), "teacher's network is frozen"),
    (dict(student=dict(name='LinearTransformTeacher')), 'expected a network and a LinearTransformStudent, found ResNet18'),
    (dict(name='Attention'), 'freeze_params_list is not a key')], ids=str)
def test_attention_that_has_no_equal(how, says):
    with pytest.raises(InputError, match=says): plan(*attention(**how))

def mutual(*losses, freeze=(False, False), pretrained=False, names=('Student', 'Teacher')):
    models = [{who: dict(name='PPLCNet_x2_5', class_num=9, pretrained=pretrained and who == 'Teacher',
                         return_patterns=['blocks3', 'blocks5'])} for who in ('Teacher', 'Student')]
    arch = dict(name='DistillationModel', class_num=9, freeze_params_list=list(freeze), models=models)
    usual = [dict(DistillationDMLLoss=dict(weight=1., key='logits', model_name_pairs=PAIRS)),
             dict(DistillationDistanceLoss=dict(weight=2., key='blocks5', model_name_pairs=PAIRS))]
    label = dict(DistillationGTCELoss=dict(weight=1., key='logits', model_names=list(names)))
    return f'Arch={arch}', f'Loss.Train={[label, *(losses or usual)]}'

def test_two_students():
    p = plan(*mutual())
    assert p.model.arch == 'PPLCNet_x2_5' and p.model.num_classes == 9 and dict(p.callbacks)['distill'] == dict(
        teacher='PPLCNet_x2_5', kind='udml', layers=['blocks.4'], teacher_layers=['blocks.4'], weight=2., label_weight=1.,
        logits_weight=1.)
    assert distill(*mutual(dict(DistillationDMLLoss=dict(weight=3., model_name_pairs=PAIRS)))) == dict(
        teacher='PPLCNet_x2_5', kind='mutual', weight=3., label_weight=1.)

@pytest.mark.parametrize('how, losses, says', [
    (dict(freeze=(False, True)), [], 'has no equal for Teacher, Student: the student learns'),
    (dict(freeze=(False,)), [], 'has no equal'), (dict(pretrained=True), [], 'a teacher that learns begins without weights here'),
    (dict(names=('Student',)), [], 'labels are for those who learn, and of these the config has Student and Teacher'),
    ({}, [dict(DistillationCELoss={})], 'by DistillationDMLLoss, alone or with a DistillationDistanceLoss; Loss.Train has D'),
    ({}, [dict(DistillationDistanceLoss=dict(key='blocks5'))], 'Loss.Train has none'),
    ({}, [dict(DistillationDistanceLoss=dict(mode='l1', key='blocks5'))], "mode='l1' is not supported"),
    ({}, [dict(DistillationDistanceLoss=dict(key='blocks7'))], "key='blocks7': PPLCNet_x2_5 has no layer.*Did you mean")],
    ids=str)
def test_two_students_without_an_equal(how, losses, says):
    with pytest.raises(InputError, match=says): plan(*mutual(*losses, **how))

@pytest.mark.parametrize('given, teacher', [('True', 'ResNet34'), ('runs/r34', 'runs/r34')])
def test_who_teaches(given, teacher):
    p = plan(*PAIR, f'Arch.models.0.Teacher.pretrained={given}', "Loss.Train=[{'DistillationCELoss': {'weight': 1.0}}]")
    assert dict(p.callbacks)['distill']['teacher'] == teacher

@pytest.mark.parametrize('given', ['False', 'None', ''])
def test_a_teacher_that_knows_nothing(given):
    with pytest.raises(InputError, match='the teacher is a trained network.*-o Arch.models.0.Teacher.pretrained=output/ResNet34'):
        plan(*PAIR, f'Arch.models.0.Teacher.pretrained={given}', "Loss.Train=[{'DistillationCELoss': {'weight': 1.0}}]")
