"Fewer bits: what is made, how it is judged, and who wins; on a network that really learned"
import logging
import math
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from imgcls_nb import engines, export, quantize, trials
from imgcls_nb.core import BadPictureError, InputError
from imgcls_nb.engines import NEEDS, OnnxRuntime, can_run, cpu_features, engines_here, open_engine, ways_to_run
from imgcls_nb.export import export_onnx, to_onnx
from imgcls_nb.pictures import PictureList
from imgcls_nb.predict import Predictor
from imgcls_nb.quantize import VARIANTS, calibration_pictures, make_variants, needs_of, outer_layers, prepared, to_int8_static
from imgcls_nb.trained import load_trained
from imgcls_nb.trials import Trial, answers, choose, race, run_trials, trials_table


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    "A run that tells handwritten digits apart, and nearly all of them"
    from imgcls_nb.data import image_dls
    from imgcls_nb.datasets import named_dataset
    from imgcls_nb.learner import image_learner
    path = named_dataset('digits', tmp_path_factory.mktemp('data'))
    dls = image_dls(path, size=32, bs=64, aug='none', device='cpu', num_workers=0)
    learn = image_learner(dls, 'test_resnet', run=tmp_path_factory.mktemp('runs')/'digits', precision='fp32', save_interval=0)
    with learn.no_bar(): learn.fit_one_cycle(4, 1e-2)
    assert learn.epoch_metrics.values['top1'] > .93
    return learn

@pytest.fixture(scope='module')
def written(digits): return to_onnx(load_trained(digits.run_folder.path).model, digits.preprocess.shape)

@pytest.fixture
def writes(written, monkeypatch):
    "torch has written this network once already"
    def copy(*_):
        proto = onnx.ModelProto()
        proto.CopyFrom(written)
        return proto
    monkeypatch.setattr(export, 'to_onnx', copy)

@pytest.fixture(scope='module')
def report(digits, tmp_path_factory):
    return export_onnx(digits.run_folder, tmp_path_factory.mktemp('files')/'int8.onnx', precision='int8', max_drop=1.5, threads=1)

# What comes out of an export in 8 bits

def test_what_was_silenced_before_stays_so():
    logging.disable(logging.CRITICAL)
    try:
        with quantize.quiet(): pass
        assert logging.root.manager.disable == logging.CRITICAL
    finally: logging.disable(logging.NOTSET)

def test_eight_bits_keep_the_accuracy(report, digits):
    rows = {o.variant: o for o in report.trials if o.engine == 'onnxruntime'}
    assert list(rows) == ['fp32', *VARIANTS['int8']] and rows['fp32'].why == '' and rows['fp32'].max_diff < 1e-4
    static = [rows[k] for k in ('int8 per tensor', 'int8 per channel', 'int8 inner')]
    assert any(not o.why for o in static) and report.precision == 'int8' and not report.kept.why
    assert all(o.megabytes < .45*rows['fp32'].megabytes for o in static[:2])
    for o in rows.values():
        assert o.drop == pytest.approx(100*(rows['fp32'].top1 - o.top1), abs=1e-9) and .9 < o.agreement <= 1

def test_the_file_is_what_was_measured(report, digits):
    predictor, pics = Predictor(report.path), digits.dls.valid_ds
    card = predictor.card
    assert card.precision == 'int8' and {o['precision'] for o in card.passed} == {'int8'}
    assert next(o for o in card.passed if o['engine'] == 'onnxruntime')['needs'] == list(needs_of('int8'))
    guesses = [o.label for o in predictor.batch(pics.items, bs=16)]
    right = np.mean([o == pics.vocab[i] for o, i in zip(guesses, pics.labels)])
    kept = next(o for o in report.trials if o.variant == report.kept.variant and o.engine == 'onnxruntime')
    assert right == pytest.approx(kept.top1, abs=2/len(pics)) and report.pictures == len(pics)
    proto = onnx.load(report.path)
    assert {o.op_type for o in proto.graph.node} & {'QuantizeLinear', 'DynamicQuantizeLinear'}
    assert [o.domain for o in proto.opset_import] == [''] and {o.domain for o in proto.graph.node} == {''}

def test_the_report_is_one_table(report):
    lines = str(report).splitlines()
    assert lines[2].split()[:4] == ['file', 'engine', 'computes', 'in'] and sum('kept' in o for o in lines[2:-1]) == 1
    assert len([o for o in lines if o.startswith(('fp32', 'int8'))]) == len(report.trials)
    assert 'times as fast as fp32' in lines[-1] and 'One picture is' in lines[-1]

def test_nothing_that_loses_too_much_is_kept(digits, tmp_path, monkeypatch, writes):
    def spoilt(proto, batches, *_, **__): # the classes are mixed up
        other = onnx.ModelProto()
        other.CopyFrom(proto)
        bias = next(o for o in other.graph.initializer if o.name.endswith('fc.bias'))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias)*0 + np.float32([50] + [0]*9), bias.name))
        return other
    monkeypatch.setattr(quantize, 'to_int8_static', spoilt)
    monkeypatch.setattr(quantize, 'to_int8_dynamic', lambda proto: 1/0)
    report = export_onnx(digits, tmp_path/'model.onnx', precision='int8', threads=1, limit=100)
    assert report.precision == 'fp32' and report.kept.variant == 'fp32'
    assert 'No way in int8 passed, so the file is in fp32.' in str(report) and 'cannot be made (ZeroDivisionError' in str(report)
    assert sum('points of accuracy, accepted are 0.5' in o.why for o in report.trials if o.engine == 'onnxruntime') == 3
    card = Predictor(tmp_path/'model.onnx').card
    assert card.precision == 'fp32' and {o['precision'] for o in card.passed} <= {'fp32', 'bf16'}

def test_half_precision_halves_the_file(digits, tmp_path, writes):
    report = export_onnx(digits, tmp_path/'model.onnx', precision='fp16', threads=1, softmax=True)
    sizes = {o.variant: o.megabytes for o in report.trials}
    assert report.precision == 'fp16' and sizes['fp16'] < .62*sizes['fp32'] and report.top1_agreement >= .99
    predictor = Predictor(tmp_path/'model.onnx')
    assert predictor.probs(np.zeros((2, *predictor.preprocess.shape), np.float32)).dtype == np.float32

def test_auto_takes_the_fastest_that_passed(digits, tmp_path, writes):
    report = export_onnx(digits, tmp_path/'model.onnx', precision='auto', threads=1, limit=60)
    passed = [o for o in report.trials if not o.why]
    base = next(o for o in passed if (o.variant, o.engine) == ('fp32', 'onnxruntime'))
    assert report.kept == base or report.kept.ms == min(o.ms for o in passed) < .95*base.ms
    assert {o.variant for o in report.trials} == set(VARIANTS['auto']) | {'fp32'}

@pytest.mark.parametrize('how, says', [
    (dict(precision='int4'), "Did you mean 'int8'"), (dict(temperature=0), 'temperature=0 is no positive'),
    (dict(temperature='warm'), 'no positive number'), (dict(activation='relu'), 'activation='), (dict(threshold=7), 'threshold'),
    (dict(precision='int8', calibration=[]), 'ranges for 8 bits')], ids=str)
def test_refused_arguments(digits, tmp_path, how, says):
    with pytest.raises(InputError, match=says): export_onnx(digits, tmp_path/'model.onnx', **how)
    assert not list(tmp_path.iterdir())

# Calibration

@pytest.mark.parametrize('n', [1, 4, 10, 30, 99])
def test_calibration_pictures_are_even_and_always_the_same(n):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [40, 20, 4]))
    pics = PictureList('.', [f'{i}.png' for i in range(len(labels))], labels, 'abc')
    few, again = calibration_pictures(pics, n), calibration_pictures(pics, n)
    assert few.list_hash() == again.list_hash() and len(few) == min(n, 64) == len({few.name(i) for i in range(len(few))})
    if n >= 10: assert np.abs(np.bincount(few.labels, minlength=3)/len(few) - np.array([40, 20, 4])/64).max() < .08

# Making

NET = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3),
                          torch.nn.Hardswish(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)).eval()

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    for p in NET.parameters(): torch.nn.init.normal_(p, std=.4)
    with torch.no_grad(): NET[-1].bias -= NET(torch.from_numpy(noise(50))).mean(0) # now every class is somebody's first guess
    return to_onnx(NET, (3, 12, 12))

def noise(n, seed=0): return np.random.default_rng(seed).normal(size=(n, 3, 12, 12)).astype(np.float32)

def test_making_leaves_the_original_alone(net):
    before = net.SerializeToString(deterministic=True)
    made = make_variants(net, 'auto', [noise(8)])
    assert net.SerializeToString(deterministic=True) == before and list(made) == ['fp32', *VARIANTS['auto']]
    want = OnnxRuntime(before, threads=1)(noise(8, 1))
    for name, proto in made.items():
        onnx.checker.check_model(proto)
        assert proto.graph.output[0].name == 'logits' and proto.graph.input[0].name == 'image'
        got = OnnxRuntime(proto.SerializeToString(), threads=1)(noise(8, 1))
        assert np.abs(got - want).max() < dict(fp32=1e-5, fp16=.02).get(name, .8)*want.std(), name

def test_making_is_repeatable(net):
    a, b = (to_int8_static(prepared(net), [noise(8)], True).SerializeToString(deterministic=True) for _ in range(2))
    assert a == b

def test_layers_that_are_left_stay_in_32_bits(net):
    folded = prepared(net)
    names = [o.name for o in folded.graph.node if o.op_type in ('Conv', 'Gemm')]
    assert outer_layers(folded, 1, 1) == [names[0], names[-1]] and outer_layers(folded) == names + names[-1:]
    part = to_int8_static(folded, [noise(8)], leave=[names[0]])
    floats = {o.name for o in part.graph.initializer if o.data_type == onnx.TensorProto.FLOAT and len(o.dims) == 4}
    assert len(floats) == 1 and not {o.name for o in to_int8_static(folded, [noise(8)]).graph.initializer
                                     if o.data_type == onnx.TensorProto.FLOAT and len(o.dims) == 4}

def test_without_the_instructions_weights_have_seven_bits(net, monkeypatch):
    def largest(): # of the convolutions' weights
        proto = to_int8_static(prepared(net), [noise(8)])
        return max(np.abs(onnx.numpy_helper.to_array(o)).max() for o in proto.graph.initializer if len(o.dims) == 4)
    for able, most in ((True, 127), (False, 64)):
        monkeypatch.setattr(quantize, 'can_run', lambda _, able=able: able)
        assert largest() == most and bool(needs_of('int8')) == able

# Engines

@pytest.mark.parametrize('text, want', [
    ('processor : 0\nflags\t\t: fpu avx2 avx512_vnni\nbugs : x\n', {'fpu', 'avx2', 'avx512_vnni'}),
    ('Features\t: fp asimd asimddp\n', {'fp', 'asimd', 'asimddp'}), ('nothing', set()), (None, set())])
def test_features_of_the_processor(monkeypatch, text, want):
    def read(_):
        if text is None: raise FileNotFoundError
        return text
    monkeypatch.setattr(engines.Path, 'read_text', read)
    assert cpu_features() == want and can_run('int8') == bool(want & set(NEEDS['int8']))
    assert can_run('fp32') and not can_run('bf16')

def test_rounding_in_32_bits_gives_the_same_without_the_instructions(net):
    small = to_int8_static(prepared(net), [noise(8)]).SerializeToString()
    fast, exact, full = (run(noise(8, 1)) for run in (
        OnnxRuntime(small, 1), OnnxRuntime(small, 1, exact=True), OnnxRuntime(net.SerializeToString(), 1)))
    assert 0 < np.abs(exact - full).max() and np.abs(exact - fast).max() < .05*full.std()

SIGNALLED = """
import signal, subprocess, sys
from imgcls_nb.engines import OpenVino
signal.signal(signal.SIGCHLD, lambda *_: print('heard', flush=True)) # as torch does for the processes of a loader
for _ in range(2):
    a, b = OpenVino(sys.argv[1]), OpenVino(sys.argv[1])
    del a
    del b
subprocess.run([sys.executable, '-c', ''], timeout=60)
print('alive')
"""

@pytest.mark.skipif('openvino' not in engines_here(), reason="OpenVINO is not installed")
def test_a_signal_finds_the_process_alive_after_openvino(written, tmp_path):
    onnx.save(written, tmp_path/'net.onnx')
    done = subprocess.run([sys.executable, '-c', SIGNALLED, tmp_path/'net.onnx'], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and {*done.stdout.split()} == {'heard', 'alive'}, done.stderr

@pytest.mark.skipif('openvino' not in engines_here(), reason="OpenVINO is not installed")
def test_openvino_answers_alike(net):
    want = OnnxRuntime(net.SerializeToString(), threads=1)(noise(3))
    for engine, precision in ways_to_run('fp32'):
        run = open_engine(net.SerializeToString(), engine, precision, threads=1)
        for n in (3, 1):
            assert np.abs(run(noise(3)[:n]) - want[:n]).max() < (.1 if precision == 'bf16' else 1e-4)*want.std()

# Judging

def measured(net, variants, labels=None, **kwargs):
    def network(x):
        with torch.no_grad(): return NET(torch.from_numpy(x)).numpy()
    rows, logits, kept = run_trials(network, variants, lambda o: o, list(noise(50)), labels, engines=['onnxruntime'], **kwargs)
    return {o.variant: o for o in rows}, logits

def biased(net, add):
    other = onnx.ModelProto()
    other.CopyFrom(net)
    bias = next(o for o in other.graph.initializer if o.dims == [5])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(add), bias.name))
    return other

def test_judged_by_labels_or_by_agreement(net):
    variants = {'fp32': net, 'int8 a': biased(net, [99, 0, 0, 0, 0]), 'int8 b': biased(net, [1e-3]*5), 'int8 c': 'broke'}
    rows, logits = measured(net, variants, timed=False)
    first = logits['torch'].argmax(1)
    other = 100*(first != 0).mean()
    assert rows['fp32'].why == rows['int8 b'].why == '' and rows['int8 c'].why == 'cannot be made (broke)'
    assert rows['int8 a'].drop == pytest.approx(other) and 'points of agreement, accepted are 0.5' in rows['int8 a'].why
    labels = np.where(np.arange(50) < 25, first, 0) # of the second half torch is right about zeros only
    rows, _ = measured(net, variants, labels, timed=False)
    assert rows['int8 a'].top1 == pytest.approx(np.mean(labels == 0))
    assert rows['int8 a'].drop == pytest.approx(100*(np.mean(first == labels) - np.mean(labels == 0)))
    assert math.isnan(rows['fp32'].ms)

def test_pictures_without_a_label_count_for_agreement_only(net):
    variants = {'fp32': net, 'int8 a': biased(net, [99, 0, 0, 0, 0])}
    rows, logits = measured(net, variants, np.full(50, -1), timed=False)
    assert math.isnan(rows['fp32'].top1) and 'agreement' in rows['int8 a'].why
    seen = np.where(np.arange(50) == 7, logits['torch'].argmax(1), -1)
    rows, _ = measured(net, variants, seen, timed=False)
    assert rows['fp32'].top1 == 1 and rows['int8 a'].drop in (0, 100)

@pytest.mark.parametrize('add, says', [([1, 0, 0, 0, 0], 'of their spread'), ([np.nan, 0, 0, 0, 0], 'not finite')])
def test_32_bits_have_no_excuse(net, add, says):
    rows, _ = measured(net, {'fp32': biased(net, add)}, timed=False, max_drop=100)
    assert says in rows['fp32'].why

def test_a_loss_that_is_just_allowed(net):
    rows, logits = measured(net, {'fp32': net, 'int8 a': biased(net, [99, 0, 0, 0, 0])}, timed=False)
    drop = rows['int8 a'].drop
    for most, passes in ((drop, True), (drop - 1e-6, False)):
        assert (not measured(net, {'fp32': net, 'int8 a': biased(net, [99, 0, 0, 0, 0])}, timed=False, max_drop=most)[0]
                ['int8 a'].why) == passes

def test_damaged_pictures_of_a_list_that_was_found():
    def read(o):
        if o is None: raise BadPictureError("damaged")
        return np.float32([o])
    sources = [0, None, *range(1, 40), None]
    got, kept = answers(dict(a=lambda x: x, b=lambda x: -x), read, sources, skip_bad=True)
    assert got['a'][:, 0].tolist() == list(range(40)) and (got['b'] == -got['a']).all() and 1 not in kept and len(kept) == 40
    assert [sources[i] for i in kept] == list(range(40))
    with pytest.raises(BadPictureError): answers(dict(a=lambda x: x), read, sources)
    with pytest.raises(InputError, match='no picture to compare'): answers(dict(a=lambda x: x), read, [None], skip_bad=True)

# Speed, and who wins

def test_everyone_has_as_many_turns(monkeypatch):
    calls, clock = [], iter(range(10**6))
    monkeypatch.setattr(trials.time, 'perf_counter', lambda: next(clock)/1000)
    ms = race({k: lambda x, k=k: calls.append(k) for k in 'abc'}, None, turns=6, calls=2, rest=0)
    assert calls.count('a') == calls.count('b') == calls.count('c') == 18 and ms == pytest.approx(dict(a=1, b=1, c=1))
    turns = [calls[i:i + 3] for i in range(0, len(calls), 3)]
    assert all(len({*o}) == 1 for o in turns), "nobody meets another's threads on the clock"
    assert {o[0] for o in turns[::3]} == set('abc'), "each is first at times"
    assert race({}, None) == {}

def row(variant, ms, engine='onnxruntime', why='', precision=None):
    return Trial(variant, engine, precision or variant.split()[0], ms=ms, why=why)

BASE = row('fp32', 10)

@pytest.mark.parametrize('others, precision, want', [
    ([row('int8 a', 5), row('int8 b', 4)], 'auto', 2), ([row('int8 a', 9.6)], 'auto', 0), ([row('int8 a', 9.4)], 'auto', 1),
    ([row('int8 a', 5, why='loses')], 'auto', 0), ([row('int8 a', 5, why='loses')], 'int8', 0),
    ([row('int8 a', 20)], 'int8', 1), ([row('fp16', 30), row('int8 a', 1)], 'fp16', 1), ([row('fp16', 30)], 'int8', 0),
    ([row('fp32', 3, 'openvino', precision='bf16')], 'auto', 1),
    ([row('fp32', 3, 'openvino', precision='bf16', why='x')], 'auto', 0),
    ([row('int8 a', math.nan, why='loses'), row('int8 a', 2, 'openvino')], 'auto', 0), ([], 'int8', 0)])
def test_who_wins(others, precision, want): assert choose([BASE, *others], precision) == [BASE, *others][want]

def test_the_table_shows_what_was_measured():
    rows = [BASE, row('int8 a', 4.25), Trial('fp16', why='cannot be made (x)')]
    lines = trials_table(rows, rows[1]).splitlines()
    assert lines[0].split() == ['file', 'engine', 'computes', 'in', 'ms'] and lines[2].split()[-2:] == ['4.25', 'kept']
    assert lines[1].endswith('passed') and lines[3].startswith('fp16') and lines[3].endswith('cannot be made (x)')
    assert len({o.index('4.25') + 4 for o in lines[2:3]} | {lines[1].index('10.00') + 5}) == 1, "numbers end at one column"

def test_a_way_has_what_a_card_holds():
    way = Trial('int8 a', 'onnxruntime', 'int8', 1., .9, .1, .99, .01, 3.14159).way
    assert set(way) == {'engine', 'precision', 'needs', 'ms', 'top1', 'agreement'} and way['ms'] == 3.1416
    assert 'top1' not in BASE.way and BASE.way['needs'] == []
