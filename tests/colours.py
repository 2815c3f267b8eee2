"A network that answers with the strongest colour, made by hand: what it must say is known"
import json
import re
from pathlib import Path

import onnx
from PIL import Image

from imgcls_nb.core import CARD_KEY, ModelCard, Preprocess

COLOURS = dict(red=(200, 10, 10), green=(10, 200, 10), blue=(10, 10, 200))
PREPROCESS = Preprocess(crop=(8, 8), resize_short=8, mean=(0, 0, 0), std=(.2, .2, .2))
CARD = ModelCard(tuple(COLOURS), PREPROCESS)

def colour_proto(batch='batch', scale=1., size=8):
    "Three logits: the means of the channels, times `scale`"
    helper, t = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node('GlobalAveragePool', ['image'], ['avg']), helper.make_node('Flatten', ['avg'], ['flat']),
             helper.make_node('Mul', ['flat', 'scale'], ['logits'])]
    graph = helper.make_graph(nodes, 'colour', [helper.make_tensor_value_info('image', t, [batch, 3, size, size])],
                              [helper.make_tensor_value_info('logits', t, [batch, 3])],
                              [helper.make_tensor('scale', t, [1], [scale])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)

def write_model(file, card=CARD, proto=None, **entries):
    "A model file; `card` may be any text, and `entries` replace some of it"
    proto, text = proto or colour_proto(), card if isinstance(card, str) or card is None else card.to_json()
    if entries: text = json.dumps(json.loads(text) | entries)
    if text is not None: onnx.helper.set_model_props(proto, {CARD_KEY: text})
    onnx.save(proto, file)
    return file

def paint(folder, names):
    "Pictures, each of the colour that its name holds"
    folder.mkdir(parents=True, exist_ok=True)
    for o in names: Image.new('RGB', (12, 9), COLOURS[colour(o)]).save(folder/o)
    return folder

def colour(path): return re.search('|'.join(COLOURS), Path(path).name)[0]
