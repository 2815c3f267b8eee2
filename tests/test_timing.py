"How long training waits for its data: what is counted, what is not, and on which clock"
import time
from types import SimpleNamespace

import fastai.callback.schedule  # noqa: F401 (teaches learners `lr_find`)
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException, CancelTrainException
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn

import imgcls_nb.callbacks.timing as timing
import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.callbacks.timing import Step, StepTimer, _QueueWatch, _TimedLoader

pytestmark = pytest.mark.alone

N, BS = 30, 8 # the last batch has 6

class Slow: # a data set on a slow disk
    def __init__(self, seconds): self.seconds = seconds
    def __len__(self): return N
    def __getitem__(self, i):
        if i % BS == 0: time.sleep(self.seconds)
        return torch.zeros(3), i % 2

class Sleep(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.layer = seconds, nn.Linear(3, 2)
    def forward(self, x):
        if self.training: time.sleep(self.seconds)
        return self.layer(x)

def make(data_s=0., step_s=0., cbs=(), wait=None):
    dls = DataLoaders(*(DataLoader(Slow(o), bs=BS, num_workers=0) for o in (data_s, wait if wait is not None else data_s)))
    return Learner(dls, Sleep(step_s), F.cross_entropy, cbs=[StepTimer(), *cbs])

def fit(learn, n=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, **kwargs)
    return learn.step_timer

# What is counted

@pytest.mark.parametrize('data_s, step_s, share', [(.02, 0, .95), (.02, .02, .5), (.005, .02, .2), (0, .02, .0)])
def test_the_share_is_what_was_waited(data_s, step_s, share):
    t = fit(make(data_s, step_s))
    assert t.values['data_wait'] == pytest.approx(share, abs=.2)
    assert t.values['seconds'] >= 4*(data_s + step_s) and t.values['images_per_s'] == pytest.approx(N/t.values['seconds'])

def test_every_step():
    t = fit(make(.01, .02))
    assert [o.images for o in t.steps] == [8, 8, 8, 6] and all(isinstance(o, Step) for o in t.steps)
    assert all(o.wait >= .01 and o.seconds >= .03 and o.seconds >= o.wait for o in t.steps)
    assert sum(o.seconds for o in t.steps) == pytest.approx(t.values['seconds'])
    assert t.waits == [o.wait for o in t.steps]

class Busy(Callback):
    "Takes its time at every event of a step"
    def __init__(self, order): self.order = order
    def before_batch(self): time.sleep(.05)
    def after_batch(self): time.sleep(.05)

@pytest.mark.parametrize('order', [-100, 0, 100])
def test_other_callbacks_are_no_data(order): # whether they come before the timer or after it
    t = fit(make(.004, 0, [Busy(order)]))
    assert all(o.wait < .04 and o.seconds > .1 for o in t.steps)

def test_an_epoch_is_counted_anew():
    learn = make(.01)
    first = dict(fit(learn).values)
    assert len(fit(learn, 2).steps) == 4 and learn.step_timer.values != first

def test_validation_is_not_counted():
    t = fit(make(0, 0, wait=.1))
    assert t.values['seconds'] < .3

def test_beside_a_bar(): # which puts itself around the loader as well
    learn = make(.01)
    if not hasattr(learn, 'progress'): learn.add_cb(ProgressCallback())
    with learn.no_logging(): learn.fit(1)
    assert len(learn.step_timer.steps) == 4 and learn.step_timer.values['data_wait'] > .5

def test_nothing_is_left_behind():
    learn = make()
    loaders = list(learn.dls.loaders)
    fit(learn)
    assert learn.dls.loaders == loaders and learn.dl is None

def test_the_loader_is_itself_inside(): # what asks it something gets its answer
    dl = _TimedLoader(DataLoader(Slow(0), bs=BS), None)
    assert len(dl) == 4 and dl.bs == BS and dl.dataset is dl.dl.dataset

# What is not

def test_predictions_and_searches_leave_no_trace():
    learn = make(.001)
    assert learn.step_timer.values == {} and learn.step_timer.steps == [] and learn.step_timer.waits == []
    learn.validate()
    learn.get_preds()
    learn.lr_find(num_it=8, show_plot=False)
    assert learn.step_timer.values == {} and learn.step_timer.timed is None
    values = fit(learn).values
    learn.validate()
    learn.lr_find(num_it=8, show_plot=False)
    assert learn.step_timer.values is values and learn.step_timer.recent() == {}

class Stop(Callback):
    order = 200
    def __init__(self, event, error, step=1): self.event, self.error, self.step = event, error, step
    def __call__(self, event):
        if event == self.event and self.learn.training and self.learn.iter == self.step: raise self.error

@pytest.mark.parametrize('error', [CancelTrainException, CancelFitException])
@pytest.mark.parametrize('event, n', [('after_pred', 2), ('after_batch', 2)])
def test_an_epoch_cut_short_counts_as_far_as_it_went(event, n, error):
    t = fit(make(.01), cbs=[Stop(event, error)])
    time.sleep(.3)
    assert len(t.steps) == n and sum(o.seconds for o in t.steps) < .25
    if error is CancelFitException: assert t.values == {}, "fastai ends no epoch then"
    else: assert t.values['images_per_s'] == pytest.approx(2*BS/t.values['seconds'])

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError('defect')])
def test_after_an_interrupt(error):
    learn = make(.01)
    with pytest.raises((KeyboardInterrupt, RuntimeError)): fit(learn, cbs=[Stop('after_pred', error)])
    learn.step_timer.close() # as the learner does
    seconds = sum(o.seconds for o in learn.step_timer.steps)
    time.sleep(.02)
    assert learn.step_timer.values == {} and sum(o.seconds for o in learn.step_timer.steps) == seconds
    assert len(fit(learn).steps) == 4 and learn.step_timer.values['data_wait'] > .5

# Lines of a log

class Lines(Callback):
    order = 65
    def __init__(self, n=10): self.n, self.told = n, []
    def after_batch(self):
        if self.training: self.told.append(self.step_timer.recent(self.n))

def test_recent():
    lines = Lines(2)
    fit(make(.05, .1, [lines]), 2)
    assert len(lines.told) == 8 and all(o.keys() == {'batch_cost', 'reader_cost', 'ips', 'eta'} for o in lines.told)
    for i, o in enumerate(lines.told):
        assert .15 <= o['batch_cost'] < .28 and .05 <= o['reader_cost'] < .12
        assert o['eta'] == pytest.approx(o['batch_cost']*(7 - i))
        assert o['ips'] == pytest.approx((8, 8, 8, 7)[i % 4]/o['batch_cost'])

def test_looks_cost_nothing():
    watch, n = timing._Watch(), 20_000
    dl = _TimedLoader([torch.zeros(1)]*n, watch)
    start = time.perf_counter()
    assert sum(1 for _ in dl) == n
    assert (time.perf_counter() - start)/n < 3e-5, "a step takes milliseconds"

# On a device that works by itself

class Queue:
    "A device that does in `takes` seconds each what it was told, one after the other, and its marks"
    def __init__(self): self.now, self.done, self.marks, self.waited = 0., 0., [], 0
    def work(self, takes): self.done = max(self.done, self.now) + takes
    def event(self, device, enable_timing): return Mark(self)

class Mark:
    def __init__(self, queue): self.queue = queue
    def record(self): self.at = max(self.queue.done, self.queue.now)
    def query(self): return self.at <= self.queue.now
    def synchronize(self): self.queue.now, self.queue.waited = max(self.at, self.queue.now), self.queue.waited + 1
    def elapsed_time(self, other): return 1000*(other.at - self.at)

def run(monkeypatch, load_s, copy_s, step_s, n=10):
    queue = Queue()
    monkeypatch.setattr(timing, 'torch', SimpleNamespace(Event=queue.event))
    watch = _QueueWatch('cuda')
    for _ in range(n):
        watch.start()
        queue.now += load_s # the program makes a batch, tells the device to copy it, and waits for that
        queue.work(copy_s)
        queue.now = queue.done
        watch.stop()
        queue.work(step_s) # it only says so
    return queue, watch

@pytest.mark.parametrize('load_s, copy_s, step_s, wait', [(.01, .01, .5, .01), (0, 0, .5, 0), (.2, .01, .05, .16)])
def test_waiting_is_when_the_device_has_no_step_to_do(monkeypatch, load_s, copy_s, step_s, wait):
    queue, watch = run(monkeypatch, load_s, copy_s, step_s)
    assert queue.waited == 0, "nobody waits for a mark while training"
    watch.settle()
    assert len(watch.waits) == 10 and watch.waits[1:] == pytest.approx([wait]*9)
    assert not watch.marks

def test_marks_are_not_kept(monkeypatch): # an epoch has many thousands
    queue, watch = run(monkeypatch, .01, .01, .05, 1000)
    assert len(watch.marks) < 3

@pytest.mark.gpu
def test_on_a_gpu():
    learn = make(.05, 0)
    learn.model.cuda()
    learn.dls.device = torch.device('cuda')
    assert fit(learn).values['data_wait'] > .5
