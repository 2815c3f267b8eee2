"A network that answers with the strongest colour, made by hand: what it must say is known"
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
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

GOOD = 'green.png', 'grün 1 – kopie.PNG', 'broken exif.jpg' # of what follows, those that can be read

def paint_bad(folder):
    "Everything that is found under the name of a picture: odd names, damage, lies, links to nowhere"
    paint(folder, ['green.png'])
    good = (folder/'green.png').read_bytes()
    (folder/'grün 1 – kopie.PNG').write_bytes(good)
    Image.new('RGB', (12, 9), COLOURS['green']).save(folder/'broken exif.jpg', exif=b'Exif\0\0II*\0\xff\xff\xff\xff')
    (folder/'cut.png').write_bytes(good[:len(good)//2])
    (folder/'cut.jpg').write_bytes((folder/'broken exif.jpg').read_bytes()[:-60])
    (folder/'empty.jpg').touch()
    (folder/'page.jpg').write_text('<html>404</html>')
    (folder/'zeros.webp').write_bytes(bytes(1000))
    (folder/'bomb.png').write_bytes(bomb())
    Image.new('1', (13_000, 11_000)).save(folder/'scan.png') # Pillow would take it
    (folder/'broken.tif').symlink_to(folder/'nowhere.tif')
    (folder/'circle.png').symlink_to(folder/'circle.png')
    Image.fromarray(np.full((9, 9), 7.5, np.float32)).save(folder/'numbers.tiff')
    return folder

def bomb(side=50_000):
    "The header of a PNG of billions of pixels"
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(b'0'*99)) + chunk(b'IEND', b''))
