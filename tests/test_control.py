"Pause, stop and save from anywhere; trainings in a thread; the pictures that validation is most wrong about"
import json
import math
import os
import signal
import threading
import time
from _thread import interrupt_main
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException, CancelTrainException

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb import checkpoints
from imgcls_nb.background import BackgroundFit, kept_apart
from imgcls_nb.callbacks.control import Control, RequestFile, ask_run
from imgcls_nb.callbacks.worst import WorstPictures, batch_worst
from imgcls_nb.checkpoints import read_checkpoint
from imgcls_nb.core import InputError
from imgcls_nb.data import image_dls
from imgcls_nb.evaluate import evaluate
from imgcls_nb.label_errors import picture_features
from imgcls_nb.learner import image_learner
from imgcls_nb.seeds import GENERATORS, seeded


class At(Callback): # does something when so many steps are made
    order = 5
    def __init__(self, *, valid=False, **what): self.what, self.valid = {int(k[1:]): v for k, v in what.items()}, valid
    def after_batch(self):
        if self.training == (not self.valid) and self.clock.steps in self.what: self.what.pop(self.clock.steps)()

def make(shapes, *cbs, run=None, **kwargs):
    dls = image_dls(shapes, size=32, bs=8, aug='none', device='cpu', num_workers=0, cache=False)
    learn = image_learner(dls, 'test_resnet', run=run, save_interval=0, cbs=[Control(), *cbs], precision='fp32', **kwargs)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'EpochTable'])
    return learn

def quiet(learn, method='fit', *args, **kwargs):
    with learn.no_bar(): getattr(learn, method)(*args, **kwargs)
    return learn

def names(run, *wanted): return [o['event'] for o in run.events() if o['event'] in wanted]

# Requests

@pytest.mark.parametrize('n', [1, 2, 7])
def test_a_stop_acts_at_the_end_of_its_batch(shapes, tmp_path, n):
    learn = make(shapes, run=tmp_path/'run')
    learn.add_cb(At(**{f'_{n}': lambda: learn.control.ask('stop')}))
    quiet(learn, 'fit', 5)
    assert (learn.clock.steps, learn.control.stopped, learn.control.active) == (n, True, False)
    event, = learn.run_folder.events('stopped')
    assert event['step'] == n and event['checkpoint'] == 'latest' and (tmp_path/'run/latest.safetensors').exists()

def test_a_stop_is_for_all_phases_of_its_call_and_for_no_other(shapes):
    learn = make(shapes)
    learn.add_cb(At(_2=lambda: learn.control.ask('stop')))
    quiet(learn, 'fine_tune', 5)
    assert learn.clock.steps == 2
    quiet(learn, 'fit', 1)
    assert learn.clock.steps == 2 + len(learn.dls.train) and not learn.control.stopped

def test_what_was_stopped_goes_on_in_the_same_learner(shapes, tmp_path):
    whole, learn = make(shapes, run=tmp_path/'whole'), make(shapes, run=tmp_path/'run')
    quiet(whole, 'fit_one_cycle', 3)
    learn.add_cb(stop := At(_7=lambda: learn.control.ask('stop')))
    learn.planned = tuple(learn.cbs)
    quiet(learn, 'fit_one_cycle', 3)
    assert learn.clock.steps == 7 and learn.interrupted and not stop.what
    quiet(learn, 'fit_one_cycle', 3, resume=True)
    assert learn.clock.steps == whole.clock.steps and len(learn.plan.schedule) == 1 and not learn.interrupted
    weights = learn.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in whole.model.state_dict().items())

def test_predictions_after_a_stop(shapes):
    learn = make(shapes)
    learn.add_cb(At(_2=lambda: learn.control.ask('stop')))
    quiet(learn, 'fit', 5)
    with learn.no_bar(): assert len(learn.get_preds()[0]) == len(learn.dls.valid_ds)

@pytest.mark.parametrize('nth', [1, 2], ids=['plain', 'averaged'])
@pytest.mark.parametrize('request_', ['stop', 'save'])
def test_what_is_asked_for_during_validation_is_done_after_it(shapes, tmp_path, request_, nth):
    class Ask(Callback):
        order, asked, looks = 94, False, 0
        def before_validate(self): self.looks = self.looks + 1 if self.clock.epochs == 2 else 0
        def after_batch(self):
            if self.training and self.asked: raise KeyboardInterrupt # a stop was not heard
            if not self.training and self.looks == nth and not self.asked:
                self.asked = True
                self.control.ask(request_)
    whole, cut, more = (make(shapes, 'ema', run=tmp_path/o) for o in ('whole', 'run', 'run'))
    quiet(whole, 'fit_one_cycle', 3)
    cut.add_cb(Ask())
    cut.planned = tuple(cut.cbs)
    with pytest.raises(KeyboardInterrupt) if request_ == 'save' else nullcontext(): quiet(cut, 'fit_one_cycle', 3)
    n = 2*len(cut.dls.train)
    done, = cut.run_folder.events('stopped' if request_ == 'stop' else 'saved')
    assert (done['step'], done['checkpoint'], len(cut.run_folder.events('epoch'))) == (n, 'latest', 2)
    assert read_checkpoint(tmp_path/'run', 'latest').facts['step'] == n
    quiet(more, 'fit_one_cycle', 3, resume=True)
    assert more.clock.steps == whole.clock.steps and more.run_folder.history().epoch.tolist() == [1, 2, 3]
    for a, b in ((whole.model, more.model), (whole.ema.average, more.ema.average)):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())

def interrupt(): signal.raise_signal(signal.SIGINT)

@pytest.mark.parametrize('during', ['training', 'validation', 'a pause'])
def test_an_interrupt_saves_first(shapes, tmp_path, capsys, during):
    whole, cut, more = (make(shapes, run=tmp_path/o) for o in ('whole', 'run', 'run'))
    quiet(whole, 'fit_one_cycle', 3)
    n = len(cut.dls.train)
    at = {f'_{n if during == "validation" else n + 2}': interrupt}
    if during == 'a pause':
        def pause():
            cut.control.ask('pause')
            threading.Timer(.3, interrupt_main).start()
        at = {f'_{n + 2}': pause}
    cut.add_cb(At(valid=during == 'validation', **at))
    cut.planned = tuple(cut.cbs)
    with pytest.raises(KeyboardInterrupt): quiet(cut, 'fit_one_cycle', 3)
    assert cut.clock.steps == read_checkpoint(tmp_path/'run', 'latest').facts['step'] == (n if during == 'validation' else n + 2)
    assert cut.run_folder.last_status == 'interrupted' and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capsys.readouterr().out.count('Interrupt again to end at once') == (during == 'validation')
    quiet(more, 'fit_one_cycle', 3, resume=True)
    weights = more.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in whole.model.state_dict().items())

@pytest.mark.parametrize('again, run', [(True, 'run'), (False, None)], ids=['the second', 'without a run'])
def test_an_interrupt_that_acts_at_once(shapes, tmp_path, again, run):
    class Press(Callback):
        def before_step(self):
            if self.clock.steps < 2: return
            if again: interrupt()
            interrupt()
    learn = make(shapes, run=run and tmp_path/run)
    learn.add_cb(Press())
    with pytest.raises(KeyboardInterrupt): quiet(learn, 'fit', 3)
    assert learn.clock.steps == 2 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not run or read_checkpoint(tmp_path/'run', 'latest').facts['step'] == 0

def test_who_handles_signals_keeps_them(shapes, tmp_path):
    heard, learn = [], make(shapes, run=tmp_path/'run')
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    try:
        learn.add_cb(At(_2=interrupt))
        quiet(learn, 'fit', 1)
    finally: signal.signal(signal.SIGINT, before)
    assert heard == [True] and learn.clock.epochs == 1

def test_the_folder_of_a_paused_run_can_be_copied(shapes, tmp_path, monkeypatch):
    def slow(*args, write=checkpoints.write_snapshot, **kwargs):
        time.sleep(.3)
        return write(*args, **kwargs)
    monkeypatch.setattr('imgcls_nb.callbacks.recording.write_snapshot', slow)
    learn = make(shapes, run=tmp_path/'run')
    n = len(learn.dls.train) + 1 # the first step after an epoch, whose checkpoint is being written
    learn.add_cb(At(**{f'_{n}': lambda: [learn.control.ask(o) for o in ('pause', 'resume')]}))
    quiet(learn, 'fit', 2)
    assert names(learn.run_folder, 'checkpoint', 'paused', 'resumed')[:3] == ['checkpoint', 'paused', 'resumed']

def test_other_processes_ask_through_the_folder(shapes, tmp_path):
    path = tmp_path/'run'
    learn = make(shapes, run=path)
    learn.add_cb(At(_1=lambda: ask_run(path, 'save'), _2=lambda: ask_run(path, 'stop')))
    quiet(learn, 'fit', 5)
    heard = [(o['event'], o['step']) for o in learn.run_folder.events() if o['event'] in ('saved', 'stopped')]
    assert learn.clock.steps == 2 and heard == [('saved', 1), ('stopped', 2)]

def test_what_was_asked_before_is_not_meant(shapes, tmp_path):
    learn = make(shapes, run=tmp_path/'run')
    quiet(learn, 'fit', 1)
    ask_run(tmp_path/'run', 'stop')
    quiet(learn, 'fit', 1)
    assert learn.clock.epochs == 2

def test_a_pause_waits_and_saves_meanwhile(shapes, tmp_path):
    learn, path = make(shapes, run=tmp_path/'run'), tmp_path/'run'
    learn.add_cb(At(_3=lambda: learn.control.ask('pause')))
    training = BackgroundFit(learn).start('fit', 2)
    end = time.monotonic() + 20
    while not learn.control.paused and time.monotonic() < end: time.sleep(.01)
    ask_run(path, 'save')
    while not learn.run_folder.events('saved') and time.monotonic() < end: time.sleep(.01)
    assert training.running and learn.clock.steps == 3
    ask_run(path, 'resume')
    assert training.wait(30) and learn.clock.epochs == 2
    assert names(learn.run_folder, 'paused', 'saved', 'resumed') == ['paused', 'saved', 'resumed']

def test_searches_are_left_alone(shapes):
    learn = make(shapes)
    learn.control.ask('stop')
    with learn.no_bar(): learn.lr_find(num_it=20, show_plot=False)
    assert learn.control.asked and not learn.control.stopped

def test_an_error_leaves_the_control_ready(shapes):
    learn = make(shapes)
    class Trips(Callback):
        def after_pred(self): raise ValueError('tripped')
    with pytest.raises(ValueError), learn.added_cbs(Trips()): quiet(learn, 'fit', 1)
    assert not learn.control.active and quiet(learn, 'fit', 1).clock.epochs == 1

@pytest.mark.parametrize('text, found', [
    ('{"ask": "stop"}\n', ['stop']), ('{"ask": "stop"}', []), ('stop\n', []), ('{"ask": "dance"}\n', []),
    ('[]\n{"ask": "save"}\n', ['save']),
    ('\n\n{"ask": 3}\n{"ask": "pause"}\n', ['pause'])])
def test_request_lines(tmp_path, text, found):
    file = RequestFile(tmp_path)
    (tmp_path/'requests.jsonl').write_text(text)
    assert file.read() == found and file.read() == []

@pytest.mark.parametrize('request_, words', [('stopp', "Did you mean 'stop'"), ('', 'It takes: pause')])
def test_unknown_requests(tmp_path, request_, words):
    with pytest.raises(InputError, match=words): ask_run(tmp_path, request_)
    with pytest.raises(InputError, match=words): Control().ask(request_)

@pytest.mark.parametrize('name', ['gone', ''])
def test_asking_what_is_no_run(tmp_path, name):
    with pytest.raises(InputError, match='is no run folder'): ask_run(tmp_path/name, 'stop')
    assert os.listdir(tmp_path) == []

# In the background

def test_the_thread_changes_nothing(shapes):
    a, b = make(shapes, 'ema', mix='mixup'), make(shapes, 'ema', mix='mixup')
    quiet(a, 'fine_tune', 1, freeze_epochs=1)
    BackgroundFit(b).start('fine_tune', 1, freeze_epochs=1).wait()
    assert all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))
    assert a.plan == b.plan and 'callback WorstPictures' not in b.plan.custom

def test_one_at_a_time(shapes):
    learn = make(shapes)
    training = BackgroundFit(learn).start('fit', 1000)
    try:
        for other in (training, BackgroundFit(learn)):
            with pytest.raises(InputError, match='trained already'): other.start('fit', 1)
    finally:
        training.stop()
        training.wait(30)
    assert BackgroundFit(learn).start('fit', 1).wait(30)

def test_who_looks_from_another_thread_is_told_to_wait(shapes, tmp_path):
    learn, modes = make(shapes, run=tmp_path/'run'), []
    learn.add_cb(At(**{f'_{i}': lambda: modes.append(learn.model.training) for i in range(1000)}))
    looks = [lambda: evaluate(learn), learn.validate, learn.get_preds, learn.tta, lambda: learn.fit(1), learn.freeze,
             lambda: picture_features(learn, learn.dls.valid_ds), lambda: learn.no_bar().__enter__()]
    training = BackgroundFit(learn).start('fit', 1000)
    try:
        for look in looks: # the first ones perhaps before the fit has begun
            with pytest.raises(InputError, match=r"another thread.*Wait for the end.*evaluate\('.*run'\)"): look()
    finally: training.stop()
    assert training.wait(30) and all(modes), "nor has anything become of the training"
    assert len(evaluate(learn)) == len(picture_features(learn, learn.dls.valid_ds)) == len(learn.dls.valid_ds)

def test_a_stop_before_the_first_batch_counts(shapes):
    learn, told = make(shapes), threading.Event()
    learn.add_cb(Callback(before_train=lambda self: told.wait(30)))
    training = BackgroundFit(learn).start('fit', 1000)
    training.stop()
    told.set()
    assert training.wait(30) and learn.clock.steps <= 1

def test_an_old_stop_does_not(shapes):
    training = BackgroundFit(make(shapes))
    training.learn.control.ask('stop')
    training.start('fit', 1).wait(30)
    assert training.learn.clock.epochs == 1

@pytest.mark.parametrize('fit, args, words', [('fitt', (), "Did you mean 'fit'"), ('fit', (-1, 2, 3, 4, 5, 6, 7, 8), 'argument')])
def test_what_cannot_be_started(shapes, fit, args, words):
    training = BackgroundFit(make(shapes))
    with pytest.raises((InputError, TypeError), match=words): training.start(fit, *args).wait(30)

def test_errors_come_out_and_the_next_start_forgets_them(shapes):
    training = BackgroundFit(make(shapes))
    def trip(): raise ValueError('tripped')
    training.start(trip)
    for _ in range(2):
        with pytest.raises(ValueError, match='tripped'): training.wait(30)
    assert training.start('fit', 1).wait(30)

def test_nothing_to_ask(shapes):
    with pytest.raises(InputError, match='no training is running'): BackgroundFit(make(shapes)).stop()

def test_prints_are_kept_apart(capsys):
    kept, turn = [], threading.Barrier(2)
    def work():
        with kept_apart(kept.append):
            turn.wait()
            print('from the thread')
            turn.wait()
    thread = threading.Thread(target=work)
    thread.start()
    turn.wait()
    print('from the cell')
    turn.wait()
    thread.join()
    print('after')
    assert ''.join(kept) == 'from the thread\n' and capsys.readouterr().out == 'from the cell\nafter\n'

def test_what_another_thread_draws_waits_for_the_end_of_a_step(shapes):
    within, learn = threading.Event(), make(shapes)
    class Slow(Callback):
        def after_pred(self):
            if not self.training or within.is_set(): return
            within.set()
            time.sleep(.3)
    training = BackgroundFit(learn)
    learn.add_cb(Slow())
    training.start('fit', 1)
    assert within.wait(20)
    with seeded(1): assert learn.clock.steps >= 1
    training.wait()

@pytest.mark.parametrize('how', [KeyError, KeyboardInterrupt, CancelFitException, CancelEpochException, CancelTrainException])
def test_a_step_that_is_cut_short_keeps_nobody_waiting(shapes, how):
    class Cut(Callback):
        def after_pred(self):
            if self.training: raise how('x')
    learn = make(shapes)
    learn.add_cb(Cut())
    with pytest.raises(how) if how in (KeyError, KeyboardInterrupt) else nullcontext(): quiet(learn, 'fit', 1)
    assert free_for_others() and not learn.take_turns.holding

def free_for_others():
    got = []
    def look():
        got.append(GENERATORS.acquire(timeout=5))
        if got[0]: GENERATORS.release()
    (thread := threading.Thread(target=look)).start()
    thread.join()
    return got[0]

@pytest.mark.skipif(not hasattr(os, 'fork'), reason="needs fork")
def test_a_child_is_not_kept_waiting_by_a_thread_it_has_not():
    within = threading.Event()
    def draw():
        with seeded(1):
            within.set()
            time.sleep(.3)
    (thread := threading.Thread(target=draw)).start()
    within.wait()
    pid = os.fork()
    if not pid: os._exit(0 if free_for_others() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and free_for_others()
    thread.join()

def test_a_thread_with_loader_processes(shapes):
    dls = image_dls(shapes, size=32, bs=8, aug='none', device='cpu', num_workers=1, cache=False)
    training = BackgroundFit(image_learner(dls, 'test_resnet')).start('fit', 1)
    assert training.wait(60)

# The worst pictures

@pytest.mark.parametrize('n', [1, 3, 8, 20])
def test_worst_of_a_batch(n):
    rng = np.random.default_rng(0)
    logits, targs = torch.tensor(rng.normal(size=(8, 5)), dtype=torch.float), torch.tensor(rng.integers(0, 5, 8))
    rows = batch_worst(logits, targs, n, start=100)
    losses = torch.nn.functional.cross_entropy(logits, targs, reduction='none')
    assert rows[:, 0].tolist() == (losses.argsort(descending=True)[:n] + 100).tolist()
    assert torch.allclose(rows[:, 3].float(), losses.sort(descending=True).values[:n])
    assert torch.allclose(rows[:, 4].float(), logits.softmax(1).max(1).values[losses.argsort(descending=True)[:n]])

def test_no_number_is_worst():
    logits = torch.tensor([[0., 9], [math.nan, 0], [9, 0]])
    assert batch_worst(logits, torch.tensor([0, 0, 0]), 1)[0, 0] == 1

def test_worst_agrees_with_predictions(shapes, tmp_path):
    learn = quiet(make(shapes, WorstPictures(5), run=tmp_path/'run'), 'fit_one_cycle', 2, 1e-2)
    with learn.no_bar(): probs, targs = learn.get_preds(reorder=False)
    losses = -probs[torch.arange(len(targs)), targs].log()
    order = losses.argsort(descending=True)[:5].tolist()
    event = learn.run_folder.events('worst')[-1]
    assert event['epoch'] == 2 and len(learn.run_folder.events('worst')) == 2
    assert [o[0] for o in event['pictures']] == [learn.dls.valid_ds.name(i) for i in order]
    assert [o[3] for o in event['pictures']] == pytest.approx([float(losses[i]) for i in order], rel=1e-3)
    assert json.loads(json.dumps(event)) == event and (tmp_path/'run/run.jsonl').read_text().count('NaN') == 0

def test_only_an_epochs_own_validation_counts(shapes):
    learn = quiet(make(shapes, WorstPictures(2), 'ema'), 'fit', 1)
    found = learn.worst_pictures.found
    with learn.no_bar(): learn.validate(), learn.get_preds()
    assert learn.worst_pictures.found is found and len(found) == 2

def test_values_that_are_no_classes_are_left_alone():
    worst = WorstPictures()
    worst.learn = type('Learn', (), dict(pred=torch.zeros(4, 3), yb=(torch.zeros(4, 3),)))()
    worst.due = True
    worst.after_loss()
    assert worst.batches == []

def test_at_least_one():
    with pytest.raises(InputError, match='n=0'): WorstPictures(0)
