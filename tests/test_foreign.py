"Model files of other makers: PaddleClas's YAML to a card, what is refused, and the answers of a graph in paddle2onnx's form"
import subprocess
import sys

import numpy as np
import onnx
import pytest
import yaml
from colours import write_model
from PIL import Image

from imgcls_nb.core import InputError, ModelFileError, Preprocess
from imgcls_nb.foreign import open_foreign, read_inference_config
from imgcls_nb.labels import read_class_map

SHIPPED = """
Global:
  infer_imgs: "./images"
  use_gpu: True
PreProcess:
  transform_ops:
    - ResizeImage:
        resize_short: 256
    - CropImage:
        size: 224
    - NormalizeImage:
        scale: 0.00392157
        mean: [0.485, 0.456, 0.406]
        std: [0.229, 0.224, 0.225]
        order: ""
        channel_num: 3
    - ToCHWImage:
PostProcess:
  main_indicator: Topk
  Topk:
    topk: 5
    class_id_map_file: "labels.txt"
  SavePreLabel:
    save_dir: ./pre_label/
"""

def graph(classes=4, last='Softmax', shape=('DynamicDimension.0', 3, 'DynamicDimension.1', 'DynamicDimension.2'), rank=2):
    "A linear classifier of the mean colour, with paddle2onnx's names"
    node, value, t = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    w = np.random.default_rng(5).normal(size=(3, classes)).astype(np.float32)
    nodes = [node('GlobalAveragePool', ['x'], ['pool']), node('Flatten', ['pool'], ['flat']),
             node('MatMul', ['flat', 'w'], ['fc']), node(last, ['fc'], ['softmax_1.tmp_0'])]
    out = ['DynamicDimension.3', classes][:rank]
    g = onnx.helper.make_graph(nodes, 'Model from PaddlePaddle.', [value('x', t, shape)], [value('softmax_1.tmp_0', t, out)],
                               [onnx.numpy_helper.from_array(w, 'w')])
    return onnx.helper.make_model(g, opset_imports=[onnx.helper.make_opsetid('', 11)], ir_version=8), w

@pytest.fixture
def folder(tmp_path):
    onnx.save(graph()[0], tmp_path/'inference.onnx')
    (tmp_path/'inference_cls.yaml').write_text(SHIPPED)
    (tmp_path/'labels.txt').write_text('3 chair, wooden\n0 red fox\n1 hut\n')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(tmp_path/'a.png')
    return tmp_path

def test_the_shipped_config_runs(folder):
    predictor = open_foreign(folder/'inference.onnx', folder/'inference_cls.yaml')
    assert predictor.labels == ('red fox', 'hut', '2', 'chair, wooden')
    assert predictor.preprocess == Preprocess(crop=(224, 224), resize_short=256, antialias=False)
    assert (predictor.card.output, predictor.card.activation) == ('probabilities', 'softmax')
    x = predictor.preprocess(folder/'a.png')
    z = x.mean((1, 2)) @ graph()[1]
    want = np.exp(z)/np.exp(z).sum()
    got = predictor(folder/'a.png')
    assert got.label == predictor.labels[want.argmax()] and got.prob == pytest.approx(want.max(), abs=1e-5)
    assert [o.label for o in predictor.batch([folder/'a.png']*3)] == [got.label]*3
    assert np.ptp(predictor.logits(x[None])[0] - z) < 1e-4, "logits are what the softmax was of, up to a constant"

@pytest.mark.parametrize('last, how, output', [
    ('Softmax', {}, 'probabilities'), ('Identity', {}, 'logits'), ('Sigmoid', dict(activation='sigmoid'), 'probabilities'),
    ('Sigmoid', {}, 'logits'), ('Identity', dict(activation='sigmoid'), 'logits'), ('Softmax', dict(output='logits'), 'logits')])
def test_what_the_outputs_are(tmp_path, last, how, output):
    onnx.save(graph(last=last)[0], tmp_path/'m.onnx')
    predictor = open_foreign(tmp_path/'m.onnx', preprocess=Preprocess(crop=(8, 8), resize_short=8), **how)
    assert predictor.card.output == output and predictor.labels == ('0', '1', '2', '3')
    probs = predictor.probs(np.ones((2, 3, 8, 8), np.float32))
    assert (how.get('activation') == 'sigmoid') != bool(np.allclose(probs.sum(1), 1, atol=1e-5))

def test_labels_come_from_where_they_are(folder, monkeypatch, capsys):
    model, config = folder/'inference.onnx', folder/'inference_cls.yaml'
    assert open_foreign(model, config, labels=list('abcd')).labels == tuple('abcd')
    assert open_foreign(model, config, labels=folder/'labels.txt').labels[0] == 'red fox'
    (folder/'labels.txt').unlink()
    assert open_foreign(model, config).labels == tuple('0123')
    assert "There is no 'labels.txt'" in capsys.readouterr().err
    values = yaml.safe_load(SHIPPED)
    values['PostProcess'] = dict(Topk=dict(topk=1, label_list=list('wxyz')))
    assert open_foreign(model, values).labels == tuple('wxyz')
    values['PostProcess'] = dict(Topk=dict(topk=1, class_id_map_file='None'))
    assert open_foreign(model, values).labels == tuple('0123') and not capsys.readouterr().out

def test_several_labels_a_picture(folder):
    values = yaml.safe_load(SHIPPED)
    values['PostProcess'] = dict(main_indicator='MultiLabelThreshOutput', MultiLabelThreshOutput=dict(threshold='0.4'))
    said = dict(preprocess=Preprocess(antialias=False), labels={}, activation='sigmoid', threshold=.4)
    assert read_inference_config(values) == said

@pytest.mark.parametrize('text, want', [
    ('0 a\n1 b c\n', {0: 'a', 1: 'b c'}), ('\ufeff1 goldfish, Carassius auratus\r\n\n', {1: 'goldfish, Carassius auratus'}),
    ('0\tcat\r1  dog\n', {0: 'cat', 1: 'dog'}), (' 7\n', {7: '7'}), ('x 7', {}), ('0,x', {}), ('1 a\n1 b', {})])
def test_class_maps(tmp_path, text, want):
    (tmp_path/'m.txt').write_text(text, encoding='utf-8')
    if want: assert read_class_map(tmp_path/'m.txt') == want
    else:
        with pytest.raises(InputError, match=r'm.txt.*line \d: expected a number and a name'): read_class_map(tmp_path/'m.txt')

@pytest.mark.parametrize('delimiter, between', [('\t', '\t'), ('\\t', '\t'), (None, ' '), (',', ','), ('', ' ')])
def test_class_maps_have_a_delimiter(tmp_path, delimiter, between):
    (tmp_path/'m.txt').write_text(f'0{between}red fox\n')
    topk = dict(class_id_map_file=str(tmp_path/'m.txt'), delimiter=delimiter)
    config = yaml.safe_load(SHIPPED) | dict(PostProcess=dict(Topk=topk))
    assert read_inference_config(config)['labels'] == {0: 'red fox'}

def test_class_maps_in_chinese(tmp_path):
    (tmp_path/'m.txt').write_bytes('0 猫科动物\n'.encode('gbk'))
    assert read_class_map(tmp_path/'m.txt') == {0: '猫科动物'}

OP = [dict(ResizeImage=dict(size=[32, 24], backend='pil', interpolation='bicubic')), dict(NormalizeImage=dict(scale='1/255'))]

def with_ops(*ops): return dict(PreProcess=dict(transform_ops=list(ops)))
def prepared(*ops): return read_inference_config(with_ops(*ops))['preprocess']

def test_ops():
    wide = prepared(*OP)
    assert (wide.resize, wide.antialias, wide.interpolation, wide.crop) == ((24, 32), True, 'bicubic', None)
    planes = dict(NormalizeImage=dict(scale=1., mean=[0.]*3, std=[255.]*3, channel_num=4))
    four = prepared('DecodeImage', *OP[:1], planes)
    assert four.channels == 4 and four.std == (1., 1., 1.) and four.mean == (0., 0., 0.)

RESIZE = dict(ResizeImage=dict(resize_short=9))

def test_one_reader_for_training_and_serving(capsys): # also what only trainings used to be able to say
    area = prepared(dict(ResizeImage=dict(resize_short=9, interpolation='area')), dict(CropImage=dict(size=8)))
    assert area.interpolation == 'box' and not capsys.readouterr().err
    ratio = prepared(dict(DecodeImage=dict(to_rgb=False)), dict(CropImageAtRatio=dict(size=8, pad=2)))
    assert (ratio.crop, ratio.resize_short) == ((8, 8), 10) and 'swap red and blue' in capsys.readouterr().err
    labels = dict(PostProcess=dict(Topk=dict(label_list=['true', '007', '1/2'])))
    assert read_inference_config(with_ops(*OP) | labels)['labels'] == ['true', '007', '1/2'], "names are no values"

REFUSED = {
    'no PreProcess.transform_ops': [{}, dict(PreProcess=None), dict(PreProcess={})],
    'is not a list': [dict(PreProcess=dict(transform_ops=3)), with_ops(RESIZE, dict(NormalizeImage=dict(mean=.5)))],
    'expected one operation': [with_ops(3), with_ops(dict(a=1, b=2))], "'Flip' is not supported": [with_ops(dict(Flip={}))],
    'expected keys and values': [with_ops(dict(CropImage=224))], 'is not a key that is read here': [
        with_ops(dict(CropImage=dict(size=3, sizes=3))), with_ops(dict(ToCHWImage=dict(a=1)))],
    'is no size': [with_ops(dict(CropImage={})), with_ops(dict(CropImage=dict(size='big'))), with_ops(dict(ResizeImage={}))],
    "interpolation='spline' is not supported": [with_ops(dict(ResizeImage=dict(resize_short=9, interpolation='spline')))],
    'is not a list of numbers': [with_ops(RESIZE, dict(NormalizeImage=dict(mean=['a'])))],
    'is not a number': [with_ops(RESIZE, dict(NormalizeImage=dict(scale=o))) for o in ('1/0', '1/2/3', 'x', True, [1])],
    'is not above zero': [with_ops(RESIZE, dict(NormalizeImage=dict(scale=0)))],
    'one number a channel': [with_ops(RESIZE, dict(CropImage=dict(size=8)), dict(NormalizeImage=dict(mean=[1, 2])))],
    'does not fit into a picture': [with_ops(RESIZE, dict(CropImage=dict(size=10)))],
    'needs crop or resize': [with_ops(RESIZE)], "'ThreshOutput' is not supported": [
        with_ops(*OP) | dict(PostProcess=dict(main_indicator='ThreshOutput'))]}

@pytest.mark.parametrize('says, config', [(k, v) for k, vs in REFUSED.items() for v in vs], ids=lambda o: str(o)[:20])
def test_refused_configs(says, config):
    with pytest.raises(InputError, match=says): read_inference_config(config)

@pytest.mark.parametrize('text, says', [(None, 'no config file'), ('a: [', 'not valid YAML'), ('- 1', 'is no config')])
def test_refused_files(tmp_path, text, says):
    if text: (tmp_path/'c.yaml').write_text(text)
    with pytest.raises(InputError, match=says): read_inference_config(tmp_path/'c.yaml')

@pytest.mark.parametrize('how, says', [
    (dict(labels=['a']), 'The model has 4 classes, numbered 0 to 3, and 1 names are given'),
    (dict(labels={9: 'x'}), 'there is a name for class 9'),
    (dict(activation='relu'), "activation='relu' is unknown. Use 'softmax' or 'sigmoid'"),
    (dict(preprocess=Preprocess(mean=(.5,), std=(.5,))), 'cannot take pictures of'),
    (dict(threshold=2), 'threshold=2 is no probability'), (dict(output='votes'), "output='votes' is unknown")], ids=str)
def test_models_that_do_not_fit(folder, how, says):
    with pytest.raises(InputError, match=f'{says}'): open_foreign(folder/'inference.onnx', folder/'inference_cls.yaml', **how)

def test_answers_that_are_no_rows(tmp_path):
    proto = graph(rank=2)[0]
    proto.graph.node.append(onnx.helper.make_node('Flatten', ['softmax_1.tmp_0'], ['row'], axis=0))
    proto.graph.node.append(onnx.helper.make_node('Squeeze', ['row'], ['flat_row']))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info('flat_row', onnx.TensorProto.FLOAT, ['n']))
    onnx.save(proto, tmp_path/'m.onnx')
    with pytest.raises(ModelFileError, match='not with a row of them'):
        open_foreign(tmp_path/'m.onnx', preprocess=Preprocess(crop=(8, 8), resize_short=8))

def test_what_is_ours_is_not_foreign(tmp_path):
    with pytest.raises(InputError, match='is one of ours.*Predictor'):
        open_foreign(write_model(tmp_path/'model.onnx'), preprocess=Preprocess(crop=(8, 8), resize_short=8))

def test_it_needs_to_be_said_how(folder):
    with pytest.raises(InputError, match='Give config='): open_foreign(folder/'inference.onnx')

def test_it_is_light():
    code = "import sys, imgcls_nb.foreign; print(*sys.modules.keys() & {'torch', 'fastai', 'timm', 'fastcore', 'onnx'})"
    assert not subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()
