"Gathered gradients, clipping and back-off: the step is that of the large batch, whatever the loss, and nothing is left over"
import math
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback import fp16
from fastai.callback import schedule as _schedule  # noqa: F401 (adds lr_find)
from fastai.callback.core import Callback, CancelBatchException, CancelTrainException
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.optimizer import SGD, Adam
from torch import nn

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.callbacks.clock import Clock, EpochMetrics
from imgcls_nb.callbacks.mixing import MixBatch
from imgcls_nb.callbacks.precision import Precision
from imgcls_nb.callbacks.steps import Accumulate, BackOff, ClipNorm, is_out_of_memory, loss_divisor
from imgcls_nb.core import InputError
from imgcls_nb.mixing import Mixer

N, WEIGHT = 23, torch.tensor([1., 5., 20.])
GEN = torch.Generator().manual_seed(0)
X = torch.randn(N, 2, 4, 4, generator=GEN)
Y = torch.randint(3, (N,), generator=GEN)

def vector(model): return nn.utils.parameters_to_vector(model.parameters()).detach().clone()

def net(): # without a layer that looks across the batch
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))

class Focal: # no torch loss, divides by weights that it knows alone
    def __call__(self, pred, targ):
        logp = pred.log_softmax(1).gather(1, targ[:, None])[:, 0]
        return -((1 - logp.exp())**2*logp*WEIGHT[targ]).sum()/self.normalizer(targ)
    def normalizer(self, targ): return WEIGHT[targ].sum()

class Soft: # soft targets
    def __init__(self): self.func = nn.CrossEntropyLoss(weight=WEIGHT)
    def __call__(self, pred, targ): return self.func(pred, targ)

LOSSES = dict(plain=F.cross_entropy, module=nn.CrossEntropyLoss(), smooth=CrossEntropyLossFlat(label_smoothing=.1),
              weighted=CrossEntropyLossFlat(weight=WEIGHT), module_weighted=nn.CrossEntropyLoss(weight=WEIGHT),
              both=CrossEntropyLossFlat(weight=WEIGHT, label_smoothing=.2), ignored=nn.CrossEntropyLoss(ignore_index=1),
              ignored_weighted=nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1), own=Focal())
def soft(y): return F.one_hot(y, 3)*.8 + torch.tensor([.1, .06, .04])

class Record(Callback):
    order = 100
    def before_fit(self): self.weights, self.stepped = [], 0
    def after_step(self): self.stepped += 1
    def after_batch(self): self.training and self.weights.append(vector(self.learn.model))

def make(bs, cbs=(), loss=F.cross_entropy, model=None, opt=SGD, lr=.3, x=X, y=Y, valid=None, **kwargs):
    data = list(zip(x, y))
    dls = DataLoaders(DataLoader(data, bs=bs, num_workers=0), DataLoader(data, bs=valid or bs, num_workers=0))
    learn = Learner(dls, model or net(), loss, opt_func=opt, lr=lr, cbs=[Clock(), EpochMetrics(), Record(), *cbs], **kwargs)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ == 'ProgressCallback'])
    return learn

def fit(learn, n_epoch=2, **kwargs):
    with learn.no_logging(): learn.fit(n_epoch, **kwargs)
    return learn.record.weights

def groups(bs, n): # the large batches that the small ones make up
    ids = list(torch.arange(N).split(bs))
    return [torch.cat(ids[i:i + n]) for i in range(0, len(ids), n)]

def reference(model, loss, bs, n, lr=.3, n_epoch=2, y=Y):
    "Weights after each step with large batches, by torch alone"
    opt, out = torch.optim.SGD(model.parameters(), lr), []
    for _ in range(n_epoch):
        for ids in groups(bs, n):
            opt.zero_grad()
            loss(model(X[ids]), y[ids]).backward()
            opt.step()
            out.append(vector(model))
    return out

def gap(a, b): # the largest difference, of two tensors or of two lists of tensors
    a, b = (torch.stack(o) if isinstance(o, list) else o for o in (a, b))
    return (a - b).abs().max().item()

# Accumulation equals the large batch, step by step

SHAPES = [(4, 2), (4, 3), (8, 2), (5, 4), (1, 5), (23, 2), (4, 100), (7, 1)]
CASES = [(o, *s) for o in LOSSES for s in (SHAPES if o in ('plain', 'both') else SHAPES[:4])]

@pytest.mark.parametrize('loss, bs, n', CASES, ids=str)
def test_each_step_is_that_of_the_large_batch(loss, bs, n):
    loss = LOSSES[loss]
    learn = make(bs, [Accumulate(n)], loss, wd=0.)
    weights, batches = fit(learn), len(learn.dls.train)
    steps = [w for i, w in enumerate(weights) if (i % batches + 1) % n == 0 or i % batches + 1 == batches]
    wanted = reference(net(), loss, bs, n)
    assert len(steps) == len(wanted) == learn.record.stepped and gap(steps, wanted) < 1e-6
    still = [i for i in range(1, len(weights)) if torch.equal(weights[i], weights[i - 1])]
    assert len(still) + len(steps) + (n > 1) >= len(weights), "between steps nothing moves"

@pytest.mark.parametrize('loss', [Soft(), BCEWithLogitsLossFlat()], ids=['soft', 'bce'])
def test_soft_targets(loss): assert gap(fit(make(4, [Accumulate(3)], loss, y=soft(Y), wd=0.))[-1],
                                          reference(net(), loss, 4, 3, y=soft(Y))[-1]) < 1e-6

def test_with_adam():
    learns = [make(bs, [Accumulate(n)], LOSSES['both'], opt=Adam, lr=1e-2) for bs, n in ((4, 3), (12, 1))]
    a, b = (fit(o, 4)[-1] for o in learns)
    assert gap(a, b) < 1e-6

def test_groups_of_one_change_no_bit():
    assert gap(fit(make(5, [Accumulate(1)])), fit(make(5))) == 0

def test_mixed_batches_count_by_their_own_labels():
    ops, loss, model = [('Mixup', {}), ('CutMix', {})], LOSSES['weighted'], net()
    learn, ids, mixer = make(4, [MixBatch(ops), Accumulate(3)], loss, wd=0.), list(torch.arange(N).split(4)), Mixer(ops, 42)
    got, opt, total = fit(learn, 1)[-1], torch.optim.SGD(model.parameters(), .3), 0
    for step, o in enumerate(ids):
        mix, y = mixer.draw(step, len(o), (4, 4)), Y[o]
        pred, (own, other) = model(mix.apply(X[o])), mix.weights
        batch = loss(pred, y)*own + (loss(pred, mix.partner(y))*other if mix.op else 0)
        (batch*WEIGHT[y].sum()).backward()
        total = total + WEIGHT[y].sum()
        if step % 3 == 2 or step == len(ids) - 1:
            for p in model.parameters(): p.grad /= total
            opt.step()
            opt.zero_grad()
            total = 0
    assert gap(got, vector(model)) < 1e-6

def test_losses_are_recorded_as_they_are():
    learn, plain = make(4, [Accumulate(6)], lr=0.), make(4, lr=0.)
    for o in (learn, plain): fit(o, 1)
    assert torch.equal(torch.stack(learn.recorder.losses), torch.stack(plain.recorder.losses))

@pytest.mark.parametrize('loss, targ, divisor', [
    (F.cross_entropy, Y, N), (nn.CrossEntropyLoss(weight=WEIGHT), Y, WEIGHT[Y].sum()), (Soft(), soft(Y), N),
    (nn.CrossEntropyLoss(ignore_index=2), Y, (Y != 2).sum()), (Focal(), Y, WEIGHT[Y].sum()), (nn.MSELoss(), Y[:5], 5),
    (CrossEntropyLossFlat(weight=WEIGHT), torch.tensor([0, -100]), 1.)], ids=range(7))
def test_divisors(loss, targ, divisor): assert loss_divisor(loss, targ) == divisor

@pytest.mark.parametrize('n', [0, -1, 1.5, '2', True, None])
def test_what_is_no_number_of_batches(n):
    with pytest.raises(InputError, match='n='): Accumulate(n)

# What goes by batches and what by steps

def test_schedules_and_clock_count_batches():
    learn = make(4, [Accumulate(3)])
    with learn.no_logging(): learn.fit_one_cycle(2, .1)
    assert learn.clock.steps == len(learn.recorder.lrs) == 12 and len(set(learn.recorder.lrs)) == 12 and learn.record.stepped == 4

def test_clipping_sees_the_whole_gradient():
    learn, big = make(4, [ClipNorm(.05), Accumulate(6)]), make(N, [ClipNorm(.05)]) # in any order of adding
    assert gap(fit(learn, 1)[-1], fit(big, 1)[-1]) < 1e-6 and learn.clip_norm.last_norm == pytest.approx(big.clip_norm.last_norm)

def test_a_cut_epoch_drops_half_a_group():
    class Cut(Callback):
        order = 20
        def after_batch(self):
            if self.training and self.iter == 3: raise CancelTrainException
    learn = make(4, [Accumulate(3), Cut()], wd=0.)
    assert gap(fit(learn, 1)[-1], reference(net(), F.cross_entropy, 4, 3)[0]) < 1e-6
    learn.remove_cbs(Cut)
    twin = make(4, [Accumulate(3)], wd=0., model=learn.model)
    twin.model.load_state_dict(learn.model.state_dict())
    before = vector(learn.model)
    after = fit(learn, 1)[-1]
    nn.utils.vector_to_parameters(before, learn.model.parameters())
    assert torch.equal(after, fit(twin, 1)[-1])

def test_skipped_batches_do_not_count():
    class Skip(Callback):
        def before_batch(self):
            if self.training and self.iter == 1: raise CancelBatchException
    learn, model = make(4, [Accumulate(2), Skip()], wd=0.), net()
    got, opt = fit(learn, 1)[2], torch.optim.SGD(model.parameters(), .3)
    ids = torch.cat([torch.arange(4), torch.arange(8, 12)])
    F.cross_entropy(model(X[ids]), Y[ids]).backward()
    opt.step()
    assert gap(got, vector(model)) < 1e-6

@pytest.fixture
def scaler(monkeypatch): # fp16's scaler, and no half precision, on a CPU
    monkeypatch.setattr(fp16, 'GradScaler', lambda kind, **kw: torch.amp.GradScaler('cpu', init_scale=1024., growth_interval=3))
    monkeypatch.setattr(fp16, 'autocast', lambda kind, dtype: torch.autocast('cpu', torch.bfloat16, enabled=False))

@pytest.mark.parametrize('cbs', [[], [ClipNorm], [partial(Accumulate, 3)], [partial(Accumulate, 3), ClipNorm],
                                 [BackOff], [partial(BackOff, 3), partial(Accumulate, 2)]], ids=range(6))
def test_scaled_losses_change_nothing(scaler, cbs):
    def learner(*more): return make(4, [*(o(.05) if o is ClipNorm else o() for o in cbs), *more])
    a, b = learner(), learner(MixedPrecision())
    assert gap(fit(a)[-1], fit(b)[-1]) < 1e-6 and len(b.recorder.losses) == 12
    if ClipNorm in cbs: assert a.clip_norm.last_norm == pytest.approx(b.clip_norm.last_norm) and a.clip_norm.last_norm > .05

def test_an_overflow_skips_the_step_and_is_not_measured(scaler):
    class Overflow(Callback):
        def after_backward(self):
            if self.iter == 5: next(self.learn.model.parameters()).grad.fill_(math.inf)
    learn = make(4, [Overflow(), Accumulate(2), ClipNorm(1.), MixedPrecision()])
    weights = fit(learn, 1)
    assert torch.equal(weights[5], weights[4]) and math.isfinite(learn.clip_norm.last_norm)

# Clipping

@pytest.mark.parametrize('max_norm', [0, -1., '1', True, None, math.nan])
def test_what_is_no_length(max_norm):
    with pytest.raises(InputError, match='max_norm='): ClipNorm(max_norm)

def test_measuring_changes_no_bit():
    learn = make(5, [ClipNorm(math.inf)])
    assert learn.clip_norm.last_norm is None
    assert gap(fit(learn), fit(make(5))) == 0 and learn.clip_norm.last_norm > 0

def test_clipped_steps_keep_their_direction():
    moves = [fit(make(N, cbs, wd=0.), 1)[-1] - vector(net()) for cbs in ([], [ClipNorm(.01)])]
    assert moves[1].norm().item() == pytest.approx(.3*.01, rel=1e-4)
    assert F.cosine_similarity(*moves, dim=0).item() == pytest.approx(1.)

def test_frozen_parameters_have_no_length():
    model = net()
    model[0].requires_grad_(False)
    learn = make(N, [ClipNorm(1e-3)], model=model)
    fit(learn, 1)
    assert learn.clip_norm.last_norm > 0 and torch.equal(model[0].weight, net()[0].weight)

# Back-off: the network has room for a few pictures

class Tight(nn.Module):
    "Runs out of memory with more than `room` pictures, going forward, or going back"
    def __init__(self, room, back=False, error=torch.OutOfMemoryError, model=None, valid=False):
        super().__init__()
        self.body, self.room, self.back, self.error, self.valid, self.calls = model or net(), room, back, error, valid, []
    def forward(self, x):
        if self.training: self.calls.append(len(x))
        full = len(x) > self.room and (self.training or self.valid)
        if full and not self.back: raise self.error('CUDA out of memory. Tried to allocate 2 GiB')
        h = self.body[:2](x)
        if h.requires_grad and full: h.register_hook(self._fail) # when the head's gradients are there already
        return self.body[2:](h)
    def _fail(self, g): raise self.error('DefaultCPUAllocator: not enough memory')

@pytest.mark.parametrize('back', [False, True], ids=['forward', 'back'])
@pytest.mark.parametrize('room', [1, 2, 3, 6, 11, 22, 23, 100])
@pytest.mark.parametrize('loss', ['plain', 'both', 'own'])
def test_weights_are_those_of_the_whole_batch(room, back, loss, capsys):
    learn = make(N, [BackOff()], LOSSES[loss], Tight(room, back), wd=0.)
    assert gap(fit(learn, 3), reference(net(), LOSSES[loss], N, 1, n_epoch=3)) < 1e-6
    notes, want = capsys.readouterr().out.splitlines(), N
    while want > room: want = -(-want//2)
    assert learn.back_off.at_once == (None if room >= N else want)
    assert len(notes) == (room < N) and all(f'{want} pictures at a time' in o for o in notes)
    assert learn.model.calls.count(N) == (1 if room < N else 3), "what was found out stays"
    assert 'forward' not in vars(learn.model) and '_backward' not in vars(learn)

@pytest.mark.parametrize('back', [False, True], ids=['forward', 'back'])
@pytest.mark.parametrize('error', [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_in_the_middle_of_a_group(back, error):
    learn = make(8, [BackOff(), Accumulate(2), MixBatch('mixup'), ClipNorm(.1)], LOSSES['weighted'], Tight(100, back, error))
    twin = make(8, [Accumulate(2), MixBatch('mixup'), ClipNorm(.1)], LOSSES['weighted'])
    late = type('Late', (Callback,), dict(before_batch=lambda self: setattr(self.learn.model, 'room', 3 if self.iter else 100)))
    learn.add_cb(late())
    assert gap(fit(learn)[-1], fit(twin)[-1]) < 1e-6 and learn.back_off.at_once == 2

class Count(Callback):
    def before_fit(self): self.events = []
    def __call__(self, event):
        super().__call__(event)
        if self.learn.training and event.split('_')[1] in ('batch', 'pred', 'loss', 'backward', 'step'):
            self.events.append((event, len(self.yb[0])))

@pytest.mark.parametrize('back', [False, True], ids=['forward', 'back'])
def test_nothing_counts_twice(back):
    counts = [make(8, [BackOff(), Count(), *more], model=Tight(room, back)) for room, more in ((3, []), (100, []))]
    for o in counts: fit(o)
    a, b = counts
    assert a.count.events == b.count.events and a.clock.steps == b.clock.steps == 6 and a.epoch_metrics.seen == N
    assert a.epoch_metrics.values == pytest.approx(b.epoch_metrics.values)
    assert gap(torch.stack(a.recorder.losses), torch.stack(b.recorder.losses)) < 1e-6

def test_the_failed_computation_is_freed_before_the_next_one(): # at once, and not by the garbage collector
    alive = []
    class Remember(Tight):
        def forward(self, x):
            alive.append([o().shape[0] for o in self.acts if o() is not None])
            h = self.body[1](self.body[0](x))
            self.acts.append(weakref.ref(h))
            if len(x) > self.room and self.training:
                if not self.back: raise torch.OutOfMemoryError()
                h.register_hook(self._fail)
            return self.body[2:](h)
    for back in (False, True):
        model = Remember(6, back)
        model.acts = []
        alive.clear()
        fit(make(N, [BackOff()], model=model), 2)
        assert alive and not any(alive), alive

def test_parts_repeat_their_dropout():
    masks = []
    class Watch(nn.Dropout):
        def forward(self, x):
            out = super().forward(x)
            if self.training: masks.append((out == 0).clone())
            return out
    fit(make(N, [BackOff(at_once=6)], model=nn.Sequential(*net()[:3], Watch(), net()[3])), 1)
    first, second = masks[:4], masks[4:]
    assert len(masks) == 8 and all(map(torch.equal, first, reversed(second))) and not torch.equal(first[0], first[1])

@pytest.mark.parametrize('back', [False, True], ids=['forward', 'back'])
def test_batchnorm_learns_from_a_part_once(back):
    norm = nn.BatchNorm2d(2)
    fit(make(N, [BackOff(None if back else 6)], model=Tight(100, model=nn.Sequential(norm, *net()))), 1)
    assert norm.num_batches_tracked == (1 if back else 4)
    model = Tight(6, back, model=nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), *net()[1:]))
    fit(make(N, [BackOff()], model=model), 1)
    assert model.body[0].num_batches_tracked == (1 if back else 4) and model.body[0].track_running_stats

def test_parts_are_even_and_no_smaller_than_needed():
    model = Tight(12)
    learn = make(20, [BackOff()], model=model)
    fit(learn, 2)
    assert learn.back_off.at_once == 10 and {10, 3} >= set(model.calls) - {20} # the last batch of three goes as it is
    learn.training = True
    assert [len(o[0]) for o in learn.back_off._parts(torch.zeros(11))] == [6, 5]

def test_validation_backs_off_too(capsys):
    learn, plain = make(4, [BackOff()], model=Tight(4, valid=True), valid=N), make(4, valid=N)
    assert gap(fit(learn), fit(plain)) == 0
    assert learn.epoch_metrics.values == pytest.approx(plain.epoch_metrics.values)
    assert '3 pictures at a time. The numbers stay' in capsys.readouterr().out

def test_one_picture_is_the_end():
    learn = make(5, [BackOff()], model=Tight(0))
    with pytest.raises(InputError, match='single picture of 2x4x4'): fit(learn)
    with pytest.raises(InputError, match='single picture'): fit(make(5, [BackOff()], model=Tight(0, back=True)))

def test_other_errors_are_not_hidden():
    wrong = nn.Sequential(*net(), nn.Linear(5, 3))
    with pytest.raises(RuntimeError, match='mat1 and mat2'): fit(make(5, [BackOff()], model=wrong))

@pytest.mark.parametrize('text, yes', [
    ('CUDA out of memory. Tried to allocate 20.00 MiB', True), ('CUDA error: out of memory', True),
    ('cudnn error: CUDNN_STATUS_ALLOC_FAILED', True), ('MPS backend out of memory (MPS allocated: 18 GB)', True),
    ('DefaultCPUAllocator: not enough memory: you tried to allocate', True),
    ("DefaultCPUAllocator: can't allocate memory: you tried", True), ('CUBLAS_STATUS_NOT_INITIALIZED', False), ('', False)])
def test_how_devices_say_it(text, yes):
    assert is_out_of_memory(RuntimeError(text)) == yes and is_out_of_memory(torch.OutOfMemoryError(text))
    assert not is_out_of_memory(ValueError(text)) and is_out_of_memory(MemoryError())

def test_beside_16_bits():
    learns = [make(8, [BackOff(), Precision()], model=Tight(room), x=X) for room in (3, 100)]
    seen = []
    learns[0].model.body[0].register_forward_hook(lambda m, i, o: seen.append((o.dtype, m.training)))
    a, b = (fit(o)[-1] for o in learns)
    assert {o for o, _ in seen} == {torch.bfloat16} and gap(a, b) < 1e-2 and not any('forward' in vars(o.model) for o in learns)

# Interrupted at any batch, and then on as if nothing had been

class Interrupt(Callback):
    order = 100
    def __init__(self, event, at): self.event, self.at = event, at
    def __call__(self, event):
        super().__call__(event)
        if event == self.event and self.learn.training and self.iter == self.at: raise KeyboardInterrupt

@pytest.mark.parametrize('at', range(6))
@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_backward', 'after_step', 'after_batch'])
def test_interrupts(event, at):
    cbs = [Accumulate(2), BackOff(3), ClipNorm(.5), Precision()]
    learn = make(4, [*cbs, Interrupt(event, at)], x=X, model=net())
    stopped = event != 'after_step' or at % 2 == 1
    if stopped:
        with pytest.raises(KeyboardInterrupt): fit(learn)
        for o in cbs: getattr(o, 'close', lambda: None)()
        learn.opt.zero_grad()
    assert 'forward' not in vars(learn.model) and '_backward' not in vars(learn)
    learn.remove_cbs(Interrupt)
    learn.model.load_state_dict(net().state_dict())
    learn.opt, learn.clock.epochs, learn.clock.steps = None, 0, 0
    twin = make(4, [Accumulate(2), BackOff(3), ClipNorm(.5), Precision()], x=X, model=net())
    assert gap(fit(learn), fit(twin)) == 0

def test_a_plain_learner_that_was_interrupted_goes_on():
    learn = make(4, [Accumulate(2), BackOff(3), Interrupt('after_backward', 2)])
    with pytest.raises(KeyboardInterrupt): fit(learn)
    learn.remove_cbs(Interrupt)
    fit(learn)
    assert 'forward' not in vars(learn.model)

def test_a_search_for_the_learning_rate_leaves_no_trace(tmp_path):
    learn = make(4, [Accumulate(3), BackOff(), ClipNorm(1.)], model=Tight(3), path=tmp_path)
    before = [o.clone() for o in learn.model.state_dict().values()]
    with learn.no_logging(): learn.lr_find(num_it=7, show_plot=False)
    assert all(map(torch.equal, before, learn.model.state_dict().values()))
    assert learn.accumulate.done == 0 and 'forward' not in vars(learn.model)
    fit(learn)

def test_on_an_image_learner(shapes):
    from imgcls_nb.data import image_dls
    from imgcls_nb.learner import image_learner
    dls = image_dls(shapes, size=32, bs=8, aug='light', device='cpu', num_workers=0, balance='loss')
    cbs = [Accumulate(2), BackOff(3), ClipNorm(1.)]
    learn = image_learner(dls, 'test_resnet', mix='mixup', cbs=cbs)
    with learn.no_bar(): learn.fine_tune(1)
    assert learn.clock.epochs == 2 and learn.clip_norm.last_norm > 0 and 'forward' not in vars(learn.model)
