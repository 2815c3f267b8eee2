"Parts of the benchmarks that must be right before anything is measured"
import argparse
import importlib
import json
import operator
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1]/'benchmarks'

def flat(name):
    "torchvision's name as it was when the weights were made: layers of a block counted in one row, with the ReLU between"
    parts = name.split('.')
    if len(parts) == 6: return '.'.join([*parts[:3], str(3*int(parts[3]) + int(parts[4])), parts[5]])
    if len(parts) < 5: return name
    n = int(parts[3]) + (4 if parts[1] != '1' else 2) # the last convolution and its norm have no ReLU
    return '.'.join([*parts[:3], str(n), parts[4]])

def test_imagenet_weights_are_mapped_by_name(monkeypatch):
    import timm
    import torch
    import torchvision
    monkeypatch.syspath_prepend(BENCHMARKS)
    from imagenet_mobilenetv2 import timm_name, timm_state
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v2().eval()
    for m in theirs.modules(): # statistics that tell channels apart
        if not isinstance(m, torch.nn.BatchNorm2d): continue
        m.running_mean.normal_(), m.running_var.uniform_(.5, 2), m.weight.data.uniform_(.5, 2)
    ours = timm.create_model('mobilenetv2_100').eval()
    ours.load_state_dict(timm_state({flat(k): v for k, v in theirs.state_dict().items() if k.startswith('features.')}))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(theirs.features(x), ours.forward_features(x), atol=1e-5)
    for name in ('classifier.1.weight', 'features.3.block.0.weight', 'features.3.conv.2.weight'):
        with pytest.raises(KeyError): timm_name(name)

ARM = '''
import json, sys, time
def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
print(json.dumps(dict(event='start')), flush=True)
for top1 in (.5, .95, .9):
    work(float(sys.argv[1]))
    print(json.dumps(dict(event='epoch', top1=top1)), flush=True)
'''

def test_only_the_own_time_of_an_arm_counts(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from fashion import Arm, compete, first_at, table
    arms = {o: Arm([sys.executable, '-c', ARM, str(s)]) for o, s in dict(quick=.03, slow=.15, endless=60).items()}
    compete(arms, turn=.1, cap=8, show=lambda line: None)
    result = {k: o.epochs for k, o in arms.items()}
    assert [[top1 for _, top1 in o] for o in result.values()] == [[.5, .95, .9]]*2 + [[]]
    assert first_at(result['quick']) < first_at(result['slow']) < 8 and first_at(result['endless']) is None
    assert all(o.process.returncode is not None for o in arms.values()) and arms['endless'].seconds >= 8
    lines = list(table(result, 8))
    assert lines[1].startswith('| quick |') and '| 95.00% |' in lines[1] and '| not reached | 0.00% |' in lines[3]
    assert 'quick is' in lines[4] and 'times as fast as the best of the others' in lines[4]

def test_an_arm_that_fails_is_out(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from fashion import Arm, compete, table
    arms = {o: Arm([sys.executable, '-c', code]) for o, code in dict(ours='raise SystemExit(1)', theirs='1/0').items()}
    compete(arms, turn=5, cap=20, show=None)
    assert list(table({k: o.epochs for k, o in arms.items()}, 20))[-1].endswith('did not reach 94.0%.')

SCRIPTS = sorted(o.name for o in BENCHMARKS.glob('*.py') if 'argparse' in o.read_text('utf-8'))

HELP = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, '--help']
    try: runpy.run_path(script, run_name='__main__')
    except SystemExit as e: assert not e.code, script
"""

def test_scripts_say_what_they_do(): # in one process, for what takes time is their libraries
    files = [BENCHMARKS/o for o in SCRIPTS]
    done = subprocess.run([sys.executable, '-c', HELP, *files], cwd=BENCHMARKS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.findall(r'^usage: (\S+)', done.stdout, re.M) == SCRIPTS

# Rows that are handed over, and the page that is made of them

@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module

def fits(rows, *jobs):
    "Rows that `bars.py` knows, as they come back from their file"
    known = {k for o in jobs for k in importlib.import_module('bars').JOBS[o].bars}
    rows = list(rows)
    assert rows and {o.key for o in rows} <= known and all(isinstance(o.measured, str) for o in rows)
    return {o.key: o for o in rows}

def test_bars_are_told_apart(bench):
    jobs = bench('bars').JOBS
    keys = [k for o in jobs.values() for k in o.bars]
    assert len(keys) == len(set(keys))
    scripts = {o.script for o in jobs.values()}
    assert {o for o in SCRIPTS if o != 'all.py'} <= scripts, "every script has a job"
    here = {o for o in scripts if (BENCHMARKS/o).exists()}
    assert not [o for o in here if "'--bars'" not in (BENCHMARKS/o).read_text('utf-8')]

def test_a_value_is_held_to_the_number_in_its_bar(bench):
    bars = bench('bars')
    met = [bars.meets(*o) for o in (('small, epoch 1, fastai', 1.5), ('small, epoch 1, fastai', 1.49), ('click, kernel', 300),
                                    ('click, kernel', 301), ('confusion, seconds', .999), ('precision, accuracy', -3))]
    assert met == [True, False, True, False, True, True]
    stated = {o for o in bars.BARS.values() if not bars.NUMBER.search(o)}
    assert stated == {'', 'all', '20 of 20', 'aim: 120 s', *(f'expected: about {o}' for o in ('3', '1.2', '1.3', '2.5'))}
    assert bars.meets('resnet18, timm', 9.) is None and bars.meets('quickstart, seconds', 9.) is None

def test_rows_of_loaders(bench):
    data = bench('data_pipeline')
    def row(name, first, later, **kwargs):
        return data.Row(name, 'as it is', None, times=dict(data.fresh_times(), first=[first]*2, later=[later, 2*later]), **kwargs)
    rows = [row('imgcls_nb', 2., 1., ours=True), row('by hand', .1, .1, by_hand=True), row('fastai', 4., 5.)]
    rows.append(row('timm', 1.9, 3.))
    small = fits(data.bar_rows('small', rows, 64), 'data')
    keys = [f'small, {part}, {peer}' for part in ('epoch 1', 'later') for peer in ('fastai', 'best')]
    assert [small[k].ratio for k in keys] == ['2.00', '0.95', '5.00', '3.00']
    assert [o.passed for o in small.values()] == [True, False, True, True]
    assert set(fits(data.bar_rows('large', rows, 64), 'data')) == {'large, epoch 1, fastai', 'large, later, fastai'}
    top1 = dict(cached=[.9, .91, .92], scaled=[.9, .91, .92], full=[.902, .909, .921])
    assert all(o.passed for o in fits(data.accuracy_rows(top1), 'cache').values())
    for accs in ([.5, .5, .51], [.88, .93, .93]): # far, and noisy: noise is no proof that nothing is lost
        assert [o.passed for o in data.accuracy_rows(top1 | dict(scaled=accs))] == [False, False]
        assert [o.passed for o in data.accuracy_rows(top1 | dict(full=accs))] == [True, False]

def test_rows_of_trainings(bench):
    speed = bench('train_speed')
    args = argparse.Namespace(minutes=25)
    names = 'imgcls_nb', *speed.PEERS
    result = [dict(arch=a, name=n, top1=.9, own=[1. + i]*3, bare=[.95]*3) for a in speed.LR for i, n in enumerate(names)
              if (a, n) != ('resnet18', 'PaddleClas, its command')]
    rows = fits(speed.steps_rows(result, args), 'steps')
    assert rows['resnet18, bare step'].passed and rows['resnet18, timm'].ratio == '3.00'
    assert rows['mobilenetv3_large_100, PaddleClas'].ratio == '4.00' and len(rows) == 7
    ours, slow, never = [(50, .9), (100, .941)], [(200, .5), (350, .94)], [(1500, .93)]
    rows = fits(speed.fashion_rows(dict(ours=ours, a=slow, b=never), args), 'fashion')
    assert rows['time to 94 %'].passed and rows['time to 94 %'].ratio == '3.5'
    assert speed.fashion_rows(dict(ours=ours, b=never), args)[0].ratio == 'above 15.0'
    assert speed.fashion_rows(dict(ours=[(1388, .94)], b=never), args)[0].ratio == 'above 1.08', "rounded down"
    assert rows['time to theirs'].measured == '100 s' and rows['time to theirs'].ratio == '3.5'
    lost = speed.fashion_rows(dict(ours=never, b=[(200, .5), (1400, .92)]), args)
    assert [o.measured for o in lost] == ['not reached', 'not reached', '1500 s'] and not any(o.passed for o in lost)
    assert 'best top-1 93.00%, theirs 92.00%' in lost[0].note and lost[2].ratio == '0.9'
    few = [{'from ImageNet': .8, 'a': .6, 'b': .5, 'seconds': 99.}, {'from ImageNet': .8, 'a': .6, 'b': .7, 'seconds': 99.}]
    assert fits(speed.few_rows(few, args), 'few')['few, gain'].passed and speed.few_rows(few, args)[0].measured == '15.0 points'
    assert speed.few_rows(few, args)[0].spread and not speed.few_rows(few[:1], args)[0].spread, "one is no range"

def test_rows_of_exports_and_checkpoints(bench):
    from imgcls_nb.export import ExportReport
    from imgcls_nb.trials import Trial
    base = Trial('fp32', 'onnxruntime', 'fp32', top1=.93, ms=4.)
    report = ExportReport('m.onnx', 500, 0, 0, 1, 1, 17, 9., kept=(kept := Trial('int8', 'openvino', 'int8', top1=.928, ms=1.)),
                          trials=(base, kept))
    rows = fits(bench('export').precision_rows(report), 'precision')
    assert rows['precision, accuracy'].passed and rows['precision, speed'].ratio == '4.00'
    cost = bench('checkpoint_cost')
    assert fits([cost.bar_row('checkpoint, ResNet-50', 300., [(0, 0, .6, 0), (0, 0, .9, 0)])], 'checkpoint'
                )['checkpoint, ResNet-50'].measured == '1.25 %, 0.750 s'
    seen = fits(bench('widgets').bar_rows(dict(open=5., view=[9., 20., 10.], click=[100., 400.], screen=[200.])), 'widgets')
    assert set(seen) == set(bench('bars').JOBS['widgets'].bars) and seen['view, kernel'][1:4:2] == ('15 ms', '14 to 25 ms')

def test_a_folder_is_held_to_what_its_processors_could_do(bench):
    limit = bench('inference').limit
    assert limit(1, 100., 25.) == pytest.approx(20) and limit(2, 100., 25.) == pytest.approx(40)
    assert limit(2, 270., 31.) == pytest.approx(2/(1/270 + 1/31))

@pytest.mark.alone
def test_rates_are_those_of_each_round(bench):
    delays = dict(quick=.001, slow=.02)
    got = bench('inference').rates(4, {k: partial(time.sleep, s) for k, s in delays.items()}, rounds=2)
    assert [len(o) for o in got.values()] == [2, 2] and max(got['quick']) > 2*max(got['slow']) and 100 < max(got['slow']) <= 200

# Networks of each family

def test_what_a_process_of_its_own_answers(bench):
    ask = bench('alone').ask
    assert ask(operator.add, 2, 3, seconds=60) == 5
    began = time.monotonic()
    assert ask(time.sleep, 60, seconds=1) == 'no answer within 1 s' and time.monotonic() - began < 30
    assert ask(os._exit, 7, seconds=60) == 'its process ended with status 7'
    if bench('alone').resource:
        assert ask(bytearray, 3*2**30, seconds=60, memory=2) == 'its process ended with status 1'
        assert bench('alone').most_memory() > .01

def test_a_family_has_the_network_that_costs_least(bench):
    import timm
    export = bench('export')
    assert export.smallest('resnet') == 'test_resnet' and export.smallest('hieradet_sam2') == 'hieradet_small'
    assert export.smallest('efficientnet') == 'tinynet_e', "by what a picture costs, not by parameters"
    assert export.costs()['resnet18'][1] == pytest.approx(11.69)
    names = timm.list_models(module='cspnext') # none of them is in the table
    assert not set(names) & set(export.costs()) and export.smallest('cspnext') == min(names, key=export.counted)
    assert set(export.SHORTER) <= set(timm.list_modules())

def test_rows_of_families(bench):
    found = dict(a=('net', '1.0e-06', True, 3., 1.5), b=('net', '0.5 DIFFERS', False, 3., 2.), c='no answer within 180 s')
    row = fits([bench('export').families_row(found)], 'families')['families']
    assert row.measured == '1 of 3' and not row.passed and row.note.endswith('at most 2.0 GB; not: b, c')
    assert bench('export').families_row({str(i): found['a'] for i in range(25)}).passed
    assert list(bench('export').show(found, found.values())) == list(found.values())

# Tutorials

def test_every_tutorial_says_how_long_it_takes(bench):
    tutorials = bench('tutorials')
    names = [o.stem for o in tutorials.FOLDER.glob('*.ipynb')]
    assert len(names) > 10 and {tutorials.stated(tutorials.read(o)) for o in names} == {1, 2}

def test_a_tutorial_that_fails_is_named_and_the_others_go_on(bench, monkeypatch, capsys):
    import nbformat
    tutorials = bench('tutorials')
    def read(name):
        cells = [nbformat.v4.new_code_cell(o) for o in ("quick = False", f"assert {name == 'good'} and quick; import os\n"
                 "assert os.environ['IMGCLS_CACHE'].startswith(os.getcwd())")]
        cells[0].metadata.tags = ['parameters']
        return nbformat.v4.new_notebook(cells=cells)
    monkeypatch.setattr(tutorials, 'read', read)
    monkeypatch.setenv('IMGCLS_CACHE', os.environ['IMGCLS_CACHE']) # put back afterwards
    found, failed = tutorials.measure(['bad', 'good'], dict(quick=True))
    assert set(found) == {'bad', 'good'} and set(failed) == {'bad'} and 'AssertionError' in failed['bad']
    row = fits(tutorials.quick_rows(found, failed), 'tutorials_quick')['tutorials, quick']
    assert not row.passed and row.note == '2 tutorials; failed: bad'
    assert tutorials.quick_rows(found, {})[0].passed and not tutorials.quick_rows(dict(a=300., b=181.), {})[0].passed

def test_rows_of_tutorials(bench):
    rows = bench('tutorials').full_rows
    found, minutes = dict(a=59., b=61., c=120.), dict(a=1, b=1, c=2)
    good = fits(rows(found, {}, minutes), 'tutorials')
    assert good['tutorials, longest'].passed and good['tutorials, longest'].measured == '120 s'
    assert not good['tutorials, stated'].passed and good['tutorials, stated'].note == 'b takes 61 s'
    assert rows(found, {}, minutes | dict(b=2))[1].passed and not rows(dict(a=181.), {}, dict(a=4))[0].passed
    assert not any(o.passed for o in rows(dict(a=1.), dict(a='NameError'), dict(a=1)))

def test_rows_of_the_whole_suite(bench):
    suite = bench('suite')
    taken = dict(app=(200, True), b=(2000, False), resume=(90, False), c=(101, True)) # seconds, in a browser
    times = {f'tests/test_{k}.py::test_killed[x]': dict(seconds=s, browser=o) for k, (s, o) in taken.items()}
    good = fits(suite.rows(44., 0, times), 'suite')
    assert [o.measured for o in good.values()] == ['44.0 minutes', '5.0 minutes', '1.5 minutes']
    assert [o.passed for o in good.values()] == [True, False, True] and good['suite, browser'].note == '2 tests'
    assert not any(next(suite.rows(*o, times)).passed for o in ((46., 0), (10., 2)))
    failed = list(suite.rows(1., 2, {}))
    assert len(failed) == 1 and failed[0].note == '0 tests; it failed, with status 2'

SCRIPT = '''
import argparse, sys, time
sys.path.insert(0, {here!r})
from bars import Row, save_rows
parser = argparse.ArgumentParser()
parser.add_argument('n', type=int)
parser.add_argument('--bars')
args = parser.parse_args()
if args.n == 9: time.sleep(600)
if args.n == 8: open(args.bars, 'w').write('[{{"key": 1}}]')
elif args.n: save_rows(args.bars, [Row('speed', f'{{args.n}} s', args.n < 5, '1 to 9', '3.0', 'by hand')])
sys.exit(args.n > 5) # a missed bar is a result
'''

@pytest.fixture
def runner(bench, tmp_path, monkeypatch):
    "all.py with jobs of our own, in a folder of its own"
    module, Job = bench('all'), bench('bars').Job
    (tmp_path/'script.py').write_text(SCRIPT.format(here=str(BENCHMARKS)))
    jobs = dict(one=Job('script.py', 1, {'speed': ('how fast', 'under 5 s')}, ('3',)),
                two=Job('script.py', 9, {'speed': ('how fast', ''), 'size': ('how large', '')}, ('7',)),
                lost=Job('script.py', 1, {'speed': ('how fast', '')}, ('0',)),
                odd=Job('script.py', 1, {'speed': ('how fast', '')}, ('8',)),
                endless=Job('script.py', .01, {'speed': ('how fast', '')}, ('9',)),
                given=Job('script.py', 1, {'speed': ('how fast', '')}, ('{paddleclas}',)),
                gone=Job('gone.py', 1, {'speed': ('how fast', '')}))
    for name, value in dict(JOBS=jobs, HERE=tmp_path, RESULTS=tmp_path/'results.json', PAGE=tmp_path/'RESULTS.md').items():
        monkeypatch.setattr(module, name, value)
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['all.py', *args])
        return module.main(), json.loads((tmp_path/'results.json').read_text()), (tmp_path/'RESULTS.md').read_text()
    return run

def test_all_gathers_what_was_found(runner, capfd):
    status, results, page = runner('--under', '5', '--paddleclas', '4')
    assert status == 1 and set(results) == {'one', 'given'} and results['one']['versions']['torch']
    said = capfd.readouterr().err
    assert 'lost: it left no rows' in said and 'odd: ' in said and 'endless: it did not end within 0.06 minutes' in said
    assert '| how fast | under 5 s | 3 s, ratio 3.0 | yes |' in page and '| how large |  | not measured yet |  |' in page
    assert '| how fast | under 5 s | 3 s | 1 to 9 | 3.0 | yes | by hand |' in page
    before = results['one']
    status, results, page = runner('--only', 'two', 'gone', 'given')
    assert status == 0 and results['one'] == before and results['given'], "others keep what they have"
    assert '**no**' in page and list(results) == ['one', 'two', 'given']
    said = capfd.readouterr().err
    assert 'gone: not run, there is no gone.py' in said and 'given: not run, it needs --paddleclas' in said

def test_results_are_rendered(bench):
    module = bench('all')
    results = module.load()
    assert module.PAGE.read_text('utf-8') == module.render(results), "run `python benchmarks/all.py --render`"
    for name, found in results.items(): assert {o['key'] for o in found['rows']} <= set(bench('bars').JOBS[name].bars)

def test_recipes_are_rendered_and_complete(bench):
    recipes = bench('recipes')
    kept = recipes.load()
    assert recipes.PAGE.read_text('utf-8') == recipes.render(kept), "run `python benchmarks/recipes.py --render`"
    assert set(recipes.configs()) == set(recipes.RUNS) | set(recipes.PUBLISHED)
    assert set(kept) <= set(recipes.RUNS)
    jobs = [o for o in bench('bars').JOBS.values() if o.script == 'recipes.py']
    assert {f'recipe, {o}' for o in recipes.RUNS.values()} == {k for o in jobs for k in o.bars}
    found = {'quick_start/digits.yaml': dict(seeds=[1, 2, 3], top1=[.98, .99, .97], minutes=.5, date='2026-01-31')}
    lines = recipes.render(found).splitlines()
    assert next(o for o in lines if 'digits.yaml' in o).split(' | ')[1:3] == [
        '1, 2, 3', '98.00% (98.00%, 99.00%, 97.00%; 0.5 minutes each, 2026-01-31)']
    assert '| not run | 94.02 | flowers102' in next(o for o in lines if 'ResNet50_vd.yaml`' in o and 'quick' in o)

def test_a_recipe_that_fails_is_named_and_the_others_go_on(bench, tmp_path, monkeypatch, capsys):
    recipes = bench('recipes')
    def measure(config, seeds):
        if 'digits' in config: raise recipes.Failed('no digits')
        return dict(seeds=seeds, top1=[.9]*len(seeds), minutes=1., date='2026-01-31')
    for name, value in dict(measure=measure, KEPT=tmp_path/'recipes.json', PAGE=tmp_path/'RECIPES.md').items():
        monkeypatch.setattr(recipes, name, value)
    monkeypatch.setattr(sys, 'argv', ['recipes.py', '--seeds', '4', '--bars', str(tmp_path/'rows.json')])
    assert recipes.main() == 1 and 'no digits' in capsys.readouterr().err
    assert [o.key for o in bench('bars').read_rows(tmp_path/'rows.json')] == ['recipe, fashion_mnist']
    assert (tmp_path/'RECIPES.md').read_text().count('90.00% (1.0 minutes, 2026-01-31)') == 1
