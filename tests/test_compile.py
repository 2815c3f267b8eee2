"Compiled training is the same training; a compiler that fails costs one line"
import time

import pytest
import torch
import torch.nn.functional as F
from fastai.callback import schedule as _schedule  # noqa: F401 (adds lr_find)
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.callbacks.averaging import EMA
from imgcls_nb.callbacks.clock import Clock, EpochMetrics
from imgcls_nb.callbacks.compile import CompileModel, no_trace
from imgcls_nb.callbacks.precision import Precision
from imgcls_nb.callbacks.steps import Accumulate, BackOff

X = torch.randn(22, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long()

@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(.2), nn.Linear(64, 2))

def make(*cbs, model=None, bs=8, x=X, **kwargs):
    dls = DataLoaders(*(DataLoader(list(zip(x, Y)), bs=bs, num_workers=0) for _ in range(2)))
    learn = Learner(dls, model or net(), F.cross_entropy, opt_func=SGD, lr=.1, cbs=[Clock(), EpochMetrics(), *cbs], **kwargs)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    return learn

def fit(learn, n_epoch=2):
    with learn.no_logging(): learn.fit(n_epoch)
    return learn

def state(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}
def equal(a, b): return list(a) == list(b) and all(map(torch.equal, a.values(), b.values()))
def gap(a, b): return max((a[k].double() - b[k].double()).abs().max().item() for k in a)

class Backend: # counts what it compiles and how often that runs
    def __init__(self, fails=None): self.graphs, self.calls, self.fails = 0, [], fails
    def __call__(self, graph, inputs):
        if self.fails: raise self.fails
        self.graphs += 1
        def run(*args):
            self.calls.append(max(o.shape[0] for o in args if o.dim() == 4 and o.shape[1:] == X.shape[1:]))
            return graph(*args)
        return run

@pytest.mark.parametrize('more', [[], [Precision], [BackOff], [Precision, BackOff, EMA], [lambda: Accumulate(2)]], ids=range(5))
def test_the_training_is_the_same(more):
    backend = Backend()
    a, b = (fit(make(*cbs, *(o() for o in more))) for cbs in ([CompileModel(backend=backend)], []))
    assert gap(state(a), state(b)) < (1e-2 if Precision in more else 1e-6) and list(state(a)) == list(state(b))
    assert a.compile_model.why is None and 'forward' not in vars(a.model)
    assert backend.graphs == 1 and backend.calls == [8]*5, "one trial and four full batches; no ragged ones, no validation"

def test_another_fit_compiles_nothing_anew():
    backend = Backend()
    learn = fit(make(Precision(), CompileModel(backend=backend)))
    fit(learn)
    assert backend.graphs == 1 and len(backend.calls) == 10, "each fit tries once"

def test_other_sizes_are_tried_by_themselves():
    class Grow(Callback):
        def before_batch(self):
            if self.training and self.epoch: self.learn.xb = (F.interpolate(self.xb[0], scale_factor=2),)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    learn = fit(make(CompileModel(backend='eager'), Grow(), model=model), 3)
    assert len(learn.compile_model.tried) == 2 and learn.compile_model.why is None

def test_frozen_parts_are_tried_by_themselves():
    learn = make(CompileModel(backend='eager'), splitter=lambda m: [list(m[0].parameters()), list(m[1:].parameters())])
    learn.freeze()
    fit(learn, 1)
    learn.unfreeze()
    fit(learn, 1)
    assert len(learn.compile_model.tried) == 2

# Failures

def no_backward(graph, inputs): raise RuntimeError('backward is not supported')

@pytest.mark.parametrize('backend, says', [
    (Backend(RuntimeError('No working C++ compiler found')), 'No working C++ compiler'), (Backend(KeyError('op')), 'op'),
    (Backend(ImportError('triton')), 'triton'), ('no_such_backend', 'no_such_backend'),
    (aot_autograd(fw_compiler=lambda g, i: make_boxed_func(g), bw_compiler=no_backward), 'not supported')], ids=range(5))
@pytest.mark.parametrize('more', [[], [Precision, BackOff]], ids=['alone', 'more'])
def test_failures_cost_a_line(backend, says, more, capsys):
    learn = fit(make(CompileModel(backend=backend), *(o() for o in more)))
    out = capsys.readouterr().out
    assert equal(state(learn), state(fit(make(*(o() for o in more))))), "not a bit differs"
    assert says in learn.compile_model.why and out.count('\n') == 1 and out.startswith('torch.compile does not work here')
    fit(learn)
    assert capsys.readouterr().out == '' and 'forward' not in vars(learn.model)

def test_without_a_c_compiler(monkeypatch, capsys):
    from torch._inductor import config
    monkeypatch.setattr(config.cpp, 'cxx', (None, 'no-such-compiler'))
    monkeypatch.setattr(config, 'force_disable_caches', True)
    learn = fit(make(CompileModel()))
    assert learn.compile_model.why and equal(state(learn), state(fit(make()))) and capsys.readouterr().out.count('\n') == 1

def test_a_failure_in_the_middle(capsys):
    learn = make(CompileModel(backend=Backend()))
    class Break(Callback):
        order = 50
        def before_batch(self):
            if self.clock.steps == 3: self.learn.compile_model.compiled = fails
    def fails(*args): raise torch._dynamo.exc.Unsupported('what came later')
    learn.add_cb(Break())
    assert gap(state(fit(learn)), state(fit(make()))) < 1e-6 and 'what came later' in learn.compile_model.why

class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()
    def forward(self, x): return self.body(x) @ torch.ones(3, 2)

def test_errors_of_the_network_are_its_own():
    with pytest.raises(RuntimeError, match='mat1 and mat2'): fit(make(CompileModel(backend='eager'), model=Wrong()))

def test_memory_is_left_to_those_who_care():
    class Tight(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()
        @torch._dynamo.disable
        def check(self, x):
            if len(x) > 4 and self.training: raise torch.OutOfMemoryError('CUDA out of memory')
        def forward(self, x):
            self.check(x)
            return self.body(x)
    learn = fit(make(CompileModel(backend='eager'), BackOff(), model=Tight()))
    assert learn.back_off.at_once == 4 and learn.compile_model.why is None
    with pytest.raises(torch.OutOfMemoryError): fit(make(CompileModel(backend='eager'), model=Tight()))

# No trace

class Interrupt(Callback):
    order = 200
    def __init__(self, event, at): self.event, self.at, self.count = event, at, 0
    def __call__(self, event):
        super().__call__(event)
        if event == self.event and self.learn.training:
            self.count += 1
            if self.count == self.at + 1: raise KeyboardInterrupt

@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_step'])
@pytest.mark.parametrize('at', [0, 2, 4])
@pytest.mark.parametrize('closed', [True, False], ids=['closed', 'left'])
def test_interrupts(event, at, closed):
    cbs = [CompileModel(backend='eager'), BackOff()]
    learn = make(*cbs, Interrupt(event, at))
    with pytest.raises(KeyboardInterrupt): fit(learn)
    if closed:
        for cb in cbs: cb.close()
        assert 'forward' not in vars(learn.model)
    learn.remove_cbs(Interrupt)
    fit(learn, 1)
    assert 'forward' not in vars(learn.model) and learn.compile_model.why is None

def test_an_interrupt_while_it_is_tried():
    def stop(graph, inputs): raise KeyboardInterrupt
    learn = make(CompileModel(backend=stop))
    with pytest.raises(KeyboardInterrupt): fit(learn)
    learn.compile_model.close()
    assert equal(state(learn), {k: v for k, v in net().state_dict().items()})

def test_a_trial_changes_nothing():
    model = net()
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(KeyError), no_trace(model, X.device):
        model(X)
        raise KeyError
    assert equal(before, model.state_dict()) and torch.equal(rng, torch.get_rng_state())

def test_a_batch_of_one_and_none_that_is_full():
    backend = Backend()
    fit(make(CompileModel(backend=backend), bs=1))
    assert set(backend.calls) == {1}
    backend = Backend()
    fit(make(CompileModel(backend=backend), bs=64))
    assert not backend.calls

def test_a_search_for_the_learning_rate(tmp_path):
    learn = make(CompileModel(backend='eager'), path=tmp_path)
    with learn.no_logging(): learn.lr_find(num_it=7, show_plot=False)
    assert 'forward' not in vars(learn.model)

def test_a_long_wait_is_told(capsys, monkeypatch):
    from imgcls_nb.callbacks import compile as module
    times = iter(range(0, 1000, 30))
    monkeypatch.setattr(module, 'time', type('T', (), dict(monotonic=staticmethod(lambda: next(times)), sleep=time.sleep)))
    fit(make(CompileModel(backend='eager')))
    assert capsys.readouterr().out == 'torch.compile: ready after 30 s.\n'
