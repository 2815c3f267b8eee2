"One pass, by a learner, a run or a model file, gives the same table; classes are matched by name, and what is lost is said"
import shutil

import numpy as np
import pytest

from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.evaluate import evaluate, evaluate_plan, labelled_pictures, match_classes, plot_confusion
from imgcls_nb.evaluation import Evaluation, saved_in
from imgcls_nb.learner import image_learner
from imgcls_nb.lists import write_list_file, write_split
from imgcls_nb.plan import DataPlan
from imgcls_nb.predict import Predictor
from imgcls_nb.runs import Run
from imgcls_nb.sources import find_pictures, read_class_folders


@pytest.fixture(scope='module')
def learn(shapes, tmp_path_factory):
    dls = image_dls(shapes, valid=.5, size=32, bs=8, aug='light', device='cpu', num_workers=0, on_lost='skip')
    learn = image_learner(dls, 'test_resnet', precision='fp32', run=tmp_path_factory.mktemp('runs')/'a')
    with learn.no_bar(): learn.fit_one_cycle(4, 1e-2)
    return learn

@pytest.fixture
def pictures(shapes, tmp_path): return shutil.copytree(shapes, tmp_path/'shapes')

# With a learner

def test_it_is_what_the_training_said_and_is_kept(learn):
    ev = evaluate(learn)
    assert ev.top1 == pytest.approx(learn.epoch_metrics.values['top1']) and len(ev) == len(learn.dls.valid_ds)
    assert ev.paths == [learn.dls.valid_ds.name(i) for i in range(len(ev))] and ev.list_hash() == learn.dls.valid_ds.list_hash()
    assert ev.facts['step'] == learn.clock.steps and ev.facts['arch'] == 'test_resnet' and ev.facts['tta'] is None
    run = learn.run_folder.path
    assert list(saved_in(run)) == ['valid'] and np.array_equal(Evaluation.load(run).probs, ev.probs)
    assert ev.source(3) == learn.dls.valid_ds.source(3) and Evaluation.load(run).source(3) == str(learn.dls.valid_ds.source(3))
    same = evaluate(run/'evaluation/valid/evaluation.json')
    assert same.top1 == ev.top1 and evaluate(run/'evaluation/valid').top1 == ev.top1 and not plot_confusion(same).get_title()

def test_the_training_pictures_are_seen_plain(learn):
    seen = [evaluate(learn, learn.dls.train, run=False) for _ in range(2)]
    assert np.array_equal(seen[0].probs, seen[1].probs)
    assert seen[0].paths == [learn.dls.train_ds.name(i) for i in range(len(seen[0]))]
    assert np.allclose(evaluate(learn, learn.dls.train_ds, run=False).probs, seen[0].probs)

def test_each_set_of_pictures_has_a_name_and_a_side(learn, pictures):
    one, two = (read_class_folders(pictures).take(o) for o in ([0, 1, 20, 40], [2, 3, 21, 41]))
    evs = [evaluate(learn, o) for o in (learn.dls.train, learn.dls.train_ds, learn.dls.valid, learn.dls, None, one, two)]
    assert [o.facts['side'] for o in evs] == ['train', 'train', 'valid', 'valid', 'valid', None, None]
    saved = saved_in(learn.run_folder.path)
    assert {*saved} >= {'train', 'valid', *(f'data-{o.list_hash()[:8]}' for o in (one, two))}, "none took the place of another"
    for name, ev in zip(('train', 'valid'), (evs[0], evs[4])): assert Evaluation.load(saved[name]).paths == ev.paths
    for name in {*saved} - {'valid', 'valid-tta'}: shutil.rmtree(saved[name])

def test_sides_of_folders(model_file, pictures):
    both = pictures.parent/'both'
    for side in ('train', 'valid'): shutil.copytree(pictures, both/side)
    assert [evaluate(model_file, o, run=False).facts['side'] for o in (both, pictures)] == ['valid', None]

def test_looked_at_several_times(learn):
    ev, tta = evaluate(learn), evaluate(learn, tta=3)
    assert not np.array_equal(tta.probs, ev.probs) and tta.paths == ev.paths and tta.facts['tta'] == dict(n=3)
    assert np.allclose(tta.probs.sum(1), 1, atol=1e-4) and np.allclose(tta.probs, learn.tta(n=3)[0].numpy())
    assert set(saved_in(learn.run_folder.path)) == {'valid', 'valid-tta'}
    assert np.array_equal(evaluate(learn, tta=dict(n=1, beta=1.), run=False).probs, ev.probs)

@pytest.mark.parametrize('tta', ['much', -1, 1.5, dict(beta=None)])
def test_no_number_of_looks(learn, tta):
    with pytest.raises(InputError, match='looks'): evaluate(learn, tta=tta)

def test_a_learner_that_has_not_trained_writes_nothing(learn, tmp_path):
    new = image_learner(learn.dls, 'test_resnet', run=tmp_path/'run')
    evaluate(new)
    assert not (tmp_path/'run').exists()
    evaluate(new, run=tmp_path/'other', name='first')
    assert list(saved_in(tmp_path/'other')) == ['first']

def test_lost_pictures_count_nowhere_and_are_named(learn, pictures, capsys):
    pics = read_class_folders(pictures)
    (pictures/'circle/004.png').unlink()
    (pictures/'square/005.png').write_bytes(b'no picture')
    ev = evaluate(learn, pics, run=False)
    said = capsys.readouterr().out
    assert '2 of 60 pictures cannot be read any more and count nowhere: circle/004.png, square/005.png.' in said
    assert len(ev) == 58 and ev.targs.tolist() == [pics.labels[i] for i in range(60) if pics.name(i) in ev.paths]
    with pytest.raises(InputError, match='2 of 60 pictures were lost'): evaluate(learn, pics, tta=2, run=False)

def test_a_lost_picture_that_a_list_names_twice(learn, pictures, capsys):
    pics = read_class_folders(pictures).take([0, 4, 4, 25])
    (pictures/'circle/004.png').unlink()
    ev = evaluate(learn, pics, run=False)
    assert ev.paths == [pics.name(0), pics.name(3)] and ev.targs.tolist() == [0, 1]
    assert '1 of 4 pictures cannot be read any more' in capsys.readouterr().out

def test_a_picture_deleted_later_does_not_matter(learn, pictures, tmp_path):
    ev = evaluate(learn, read_class_folders(pictures), run=tmp_path, name='all')
    shutil.rmtree(pictures)
    same = Evaluation.load(tmp_path, 'all')
    assert same.top1 == ev.top1 and same.report().equals(ev.report()) and same.source(0) == str(pictures/'circle/000.png')

@pytest.mark.parametrize('where', ['file/run', 'file'])
def test_where_nothing_can_be_kept_nobody_looks(learn, tmp_path, monkeypatch, where):
    (tmp_path/'file').touch()
    monkeypatch.setattr(learn, 'get_preds', None) # not called
    with pytest.raises(InputError, match="cannot be kept in .*file.*run=False keeps"): evaluate(learn, run=tmp_path/where)
    with pytest.raises(InputError, match='cannot be saved in'): Evaluation(np.eye(3), [0, 1, 2], 'abc').save(tmp_path/where)

# With a run, a plan or a model file

def test_a_run_without_predictions_is_asked_once(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path/'run')
    ev = evaluate(run)
    assert list(saved_in(run)) == ['valid'] and ev.facts['checkpoint'] == 'best_model'
    assert ev.top1 == pytest.approx(Run(run).events('epoch')[ev.facts['epoch'] - 1]['top1'])
    again = evaluate_plan(Run(run).plan, run/'best_model', tta=2, run=run)
    assert len(again) == len(ev) and again.facts['tta'] == dict(n=2) and list(saved_in(run)) == ['valid', 'valid-tta']

def test_older_predictions_are_said_to_be(trained_run, tmp_path, capsys):
    run = shutil.copytree(trained_run, tmp_path/'run')
    ev = evaluate(run)
    (run/'latest.json').write_text('{"facts": ')
    assert evaluate(run).top1 == ev.top1, "whatever has become of the checkpoints"
    ev.facts['step'] = 1
    ev.save(run/'evaluation/valid')
    capsys.readouterr()
    assert evaluate(run).top1 == ev.top1
    assert "'valid' was evaluated at step 1, and the run has come to step" in capsys.readouterr().out

def test_each_path_has_a_name_of_its_own(trained_run, pictures, tmp_path):
    run = shutil.copytree(trained_run, tmp_path/'run')
    places = [shutil.copytree(pictures, tmp_path/o) for o in ('a/photos/test', 'b/photos/test', 'c/photos/test')]
    for _ in range(2):
        for o in places: evaluate(run, o)
    saved = saved_in(run)
    assert len(saved) == 3 and {o.partition('test')[0] for o in saved} == {'photos-'}, "the same pictures take the same place"
    assert {Evaluation.load(o).root for o in saved.values()} == {*map(str, places)}
    assert Evaluation.load(run, 'photos-test').root == str(places[0])
    (places[0]/'circle/000.png').unlink()
    evaluate(run, places[0])
    assert len(Evaluation.load(run, 'photos-test')) == 59 and set(saved_in(run)) == set(saved), "of a path the newest answer"
    (run/'evaluation/photos-test/evaluation.json').write_text('{"facts": ')
    assert len(evaluate(run, places[1])) == len(Evaluation.load(run, 'photos-test')) == 60, "what is damaged is in nobody's way"

@pytest.mark.parametrize('at', ['/valid', '/train', '/valid-tta', '/valid/tta', '/'])
def test_a_path_does_not_take_the_place_of_a_side(at):
    from imgcls_nb.evaluate import _usual_name
    ev = Evaluation(np.eye(2), [0, 1], 'ab', facts=dict(data=at, tta=None))
    name = _usual_name(ev, None, at, 'nowhere')
    assert name not in ('valid', 'train', 'valid-tta', '') and name.startswith(at.strip('/').replace('/', '-') or 'data')

def test_lists_with_the_same_names_in_two_places(learn, pictures, tmp_path):
    other = shutil.copytree(pictures, tmp_path/'other')
    for o in (pictures, other, pictures): evaluate(learn, read_class_folders(o), run=tmp_path/'run')
    saved = saved_in(tmp_path/'run')
    assert {Evaluation.load(o).root for o in saved.values()} == {str(pictures), str(other)} and len(saved) == 2

def test_looks_that_were_saved_answer_for_as_many(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path/'run')
    two, eight, again = (evaluate(run, tta=o) for o in (2, 8, 8))
    assert (two.facts['tta'], eight.facts['tta']) == (dict(n=2), dict(n=8)) and not np.array_equal(two.probs, eight.probs)
    assert again.facts == eight.facts and list(saved_in(run)) == ['valid-tta']
    assert evaluate(run, name='valid-tta').facts == eight.facts and evaluate(run/'evaluation/valid-tta').facts == eight.facts
    with pytest.raises(InputError, match="no saved predictions with tta={'n': 2}"): evaluate(run/'evaluation/valid-tta', tta=2)
    eight.save(run/'evaluation/valid')
    assert evaluate(run).facts['tta'] is None

def test_three_ways_agree(trained_run, model_file, shapes):
    by_run, by_file, by_predictor = (evaluate(o, shapes, run=False) for o in (trained_run, model_file, Predictor(model_file)))
    assert len(by_run) == 60 and np.allclose(by_run.probs, by_file.probs, atol=1e-4)
    assert np.array_equal(by_file.probs, by_predictor.probs)
    valid = evaluate(model_file, Run(trained_run).plan.data)
    assert valid.paths == evaluate(trained_run, run=False).paths and valid.facts['model'] == 'model.onnx'
    assert valid.correct.mean() == pytest.approx(evaluate(trained_run, run=False).top1, abs=.1)

def test_a_model_file_skips_what_it_cannot_read(model_file, pictures, capsys):
    (pictures/'circle/000.png').write_bytes(b'no')
    ev = evaluate(model_file, pictures)
    assert len(ev) == 59 and '1 of 60 pictures cannot be read any more' in capsys.readouterr().out

def test_the_temperature_of_a_model_file_is_known(model_file, shapes):
    from dataclasses import replace
    predictor = Predictor(model_file)
    plain = evaluate(predictor, shapes)
    predictor.card = replace(predictor.card, temperature=2.)
    warm = evaluate(predictor, shapes)
    assert warm.temperature == 2. and np.allclose(warm.calibrated(1.).probs, plain.probs, atol=1e-4)
    assert np.allclose(plain.calibrated(2.).probs, warm.probs, atol=1e-5)

# The order of the classes

@pytest.mark.parametrize('by', ['learner', 'file'])
def test_classes_are_matched_by_name(learn, model_file, shapes, by):
    source, pics = learn if by == 'learner' else model_file, read_class_folders(shapes)
    order = [2, 0, 1]
    other = pics.replace(vocab=[pics.vocab[i] for i in order], labels=np.argsort(order)[pics.labels])
    assert np.array_equal(evaluate(source, other, run=False).targs, pics.labels)
    fewer = pics.take(np.flatnonzero(pics.labels > 0)).replace(vocab=('none', 'square', 'triangle'))
    assert set(evaluate(source, fewer, run=False).targs) == {1, 2}, "a class without a picture may have any name"
    with pytest.raises(InputError, match="class 'ring', which the network does not know.*circle, square"):
        evaluate(source, pics.replace(vocab=('ring', 'square', 'triangle')), run=False)

def test_pictures_without_labels(learn, shapes):
    with pytest.raises(InputError, match='have no labels'): evaluate(learn, learn.dls.test_dl(shapes), run=False)

def test_match_classes_by_hand(shapes):
    pics = read_class_folders(shapes)
    assert match_classes(pics, ['square', 'triangle', 'x', 'circle']).tolist() == [3, 0, 1]

# Where pictures come from

def test_every_form_of_labelled_pictures(learn, pictures, tmp_path):
    vocab, pics = tuple(learn.dls.vocab), read_class_folders(pictures)
    def read(data): return labelled_pictures(data, vocab).list_hash()
    want = pics.list_hash()
    assert read(pictures) == read(str(pictures)) == read(pics) == want
    assert read(write_list_file(pics, pictures/'list.txt')) == want
    rows = [f'{pics.name(i)},{pics.vocab[pics.labels[i]]}' for i in range(60)]
    (pictures/'table.csv').write_text('\n'.join(['path,label', *rows]))
    assert read(pictures/'table.csv') == want
    parts = [f"{o},{'train' if i else 'valid'}" for i, o in enumerate(rows)]
    (pictures/'held.csv').write_text('\n'.join(['path,label,split', *parts]))
    assert len(labelled_pictures(pictures/'held.csv', vocab)) == 1
    assert read(learn.dls) == read(learn.dls.valid) == learn.dls.valid_ds.list_hash()

def test_of_a_split_the_validation_part(learn, pictures, tmp_path):
    vocab = tuple(learn.dls.vocab)
    for side in ('train', 'valid'): shutil.copytree(pictures, tmp_path/'both'/side)
    (tmp_path/'both/valid/circle/000.png').unlink()
    assert len(labelled_pictures(tmp_path/'both', vocab)) == 59
    train, valid = find_pictures(learn.dls.plan)
    plan = write_split(tmp_path/'lists', train, valid)
    assert labelled_pictures(DataPlan(**plan), vocab).list_hash() == valid.list_hash()

@pytest.mark.parametrize('data, says', [
    ('no/where', "There is no 'no.where'"), (7, 'data is a int'), (None, 'does not know its pictures')])
def test_what_is_nothing_to_evaluate_on(model_file, data, says):
    with pytest.raises(InputError, match=says): evaluate(model_file, data)

def test_classes_that_the_network_does_not_know(model_file, pictures):
    (pictures/'circle').rename(pictures/'cirkle')
    with pytest.raises(InputError, match="cirkle.*not in the training set"): evaluate(model_file, pictures)

@pytest.mark.parametrize('source, says', [
    (3, 'A int cannot be evaluated'), ('no/where', "There is no 'no.where'"),
    ('tests', 'holds no saved predictions, and is no run folder')])
def test_what_cannot_be_evaluated(source, says, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    with pytest.raises(InputError, match=says): evaluate(source)

def test_tta_needs_a_learner(model_file, shapes):
    with pytest.raises(InputError, match='tta needs what only training has'): evaluate(model_file, shapes, tta=True)
