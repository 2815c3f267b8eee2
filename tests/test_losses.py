"Losses: equal to torch and timm where those are right, the same for both spellings of a target, and defects are named"
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.interpret import Interpretation
from fastai.layers import NoneReduce
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat
from timm.loss import BinaryCrossEntropy
from torch import nn

import imgcls_nb.data  # noqa: F401 (imports fastai without its warning)
from imgcls_nb.callbacks.clock import Clock
from imgcls_nb.callbacks.mixing import MixBatch
from imgcls_nb.core import InputError
from imgcls_nb.losses import LOSSES, as_loss, make_loss, weights_by_class
from imgcls_nb.mixing import Mixer
from imgcls_nb.samplers import class_weights

N, C = 23, 4
WEIGHT = torch.tensor([1., 5., .2, 3.])
ARGS = {'cross_entropy': {}, 'bce': {}, 'focal': dict(gamma=1.5)}
KINDS = [(name, smoothing, weight) for name in LOSSES for smoothing in (0., .1) for weight in (None, WEIGHT)]

def batch(n=N, c=C, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=rng, dtype=dtype)*3, torch.randint(c, (n,), generator=rng)

def soft_rows(n=N, c=C, seed=1): return torch.rand(n, c, generator=torch.Generator().manual_seed(seed)).softmax(1)

def make(name, smoothing=0., weight=None, reduction='mean', **args):
    loss = make_loss(name, smoothing, weight, **ARGS[name] | args)
    loss.reduction = reduction
    return loss

def near(a, b, **kwargs): torch.testing.assert_close(a, b, **kwargs)

# Numbers

@pytest.mark.parametrize('smoothing', [0., .1, .9])
@pytest.mark.parametrize('weight', [None, WEIGHT], ids=['alike', 'weighted'])
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_class_numbers_cost_what_torch_says(smoothing, weight, reduction):
    logits, y = batch()
    near(make('cross_entropy', smoothing, weight, reduction)(logits, y),
         F.cross_entropy(logits, y, weight, reduction=reduction, label_smoothing=smoothing))

@pytest.mark.parametrize('weight', [None, WEIGHT], ids=['alike', 'weighted'])
def test_rows_cost_what_torch_says_and_the_mean_is_ours(weight):
    logits, rows = batch()[0], soft_rows()
    want = F.cross_entropy(logits, rows, weight, reduction='none', label_smoothing=.1)
    near(make('cross_entropy', .1, weight, 'none')(logits, rows), want)
    near(make('cross_entropy', .1, weight)(logits, rows), want.sum()/(N if weight is None else (rows*weight).sum()))

@pytest.mark.parametrize('name, smoothing, weight', KINDS)
def test_a_label_costs_the_same_in_both_spellings(name, smoothing, weight):
    logits, y = batch()
    for reduction in ('mean', 'sum', 'none'):
        loss = make(name, smoothing, weight, reduction)
        want = loss(logits, y)
        for rows in (F.one_hot(y, C), F.one_hot(y, C).float(), F.one_hot(y, C).bool(), F.one_hot(y, C).double()):
            near(loss(logits, rows), want)
        for dtype in (torch.int32, torch.int16, torch.uint8): near(loss(logits, y.to(dtype)), want)

@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('smoothing', [0., .1])
def test_a_weight_of_two_is_the_picture_twice(name, smoothing):
    logits, y = batch()
    times = torch.tensor([1, 3, 2, 1])
    if name == 'bce' or not smoothing: # in the others a smoothed share has the weight of its class, as in torch
        near(make(name, smoothing, times)(logits, y),
             make(name, smoothing)(logits.repeat_interleave(times[y], 0), y.repeat_interleave(times[y])))
    near(make(name, smoothing, times)(logits, y), make(name, smoothing, times*7.)(logits, y))

@pytest.mark.parametrize('name, smoothing, weight', KINDS)
def test_parts_weighed_by_their_normalizer_make_the_whole(name, smoothing, weight):
    logits, y = batch()
    loss, rng = make(name, smoothing, weight), np.random.default_rng(0)
    for targ in (y, soft_rows()):
        for _ in range(5):
            a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
            cuts = np.sort(rng.choice(np.arange(1, N), 3, replace=False)).tolist()
            parts = [(o, t) for o, t in zip(a.tensor_split(cuts), targ.tensor_split(cuts))]
            pieces = sum(loss(*o)*loss.normalizer(o[1]) for o in parts)/loss.normalizer(targ)
            whole = loss(b, targ)
            near(pieces, whole)
            pieces.backward(), whole.backward()
            near(a.grad, b.grad)

def test_without_weights_the_normalizer_is_a_plain_count():
    assert [make(o).normalizer(batch()[1]) for o in LOSSES] == [N]*3 and make('focal').normalizer(soft_rows(7)) == 7

@pytest.mark.parametrize('weight', [None, WEIGHT], ids=['alike', 'weighted'])
@pytest.mark.parametrize('gamma', [0., .5, 2., 5.])
def test_focal_loss_by_hand(gamma, weight):
    logits, y = batch(dtype=torch.float64)
    p = logits.softmax(1)[range(N), y]
    w = torch.ones(N) if weight is None else weight[y]
    near(make('focal', weight=weight, gamma=gamma)(logits, y), -(w*(1 - p)**gamma*p.log()).sum()/w.sum())
    rows = soft_rows().double()
    terms = rows*(1 if weight is None else weight.double())*(1 - logits.softmax(1))**gamma*-logits.log_softmax(1)
    near(make('focal', weight=weight, gamma=gamma, reduction='none')(logits, rows), terms.sum(1))

def test_focal_loss_is_fastais_without_weights():
    logits, y = batch()
    near(make('focal', gamma=2.)(logits, y), FocalLossFlat(gamma=2.)(logits, y))

@pytest.mark.parametrize('name, smoothing, weight', KINDS)
def test_slopes_are_right_and_finite(name, smoothing, weight):
    logits, y = batch(5, dtype=torch.float64)
    for targ in (y, soft_rows(5).double()):
        assert torch.autograd.gradcheck(lambda x, t=targ: make(name, smoothing, weight)(x, t), logits.requires_grad_())
    far = torch.tensor([[90., -90, 0, 0], [0, 300, 0, 0], [-300, 0, 0, 0], [0., 0, 0, 0]], requires_grad=True)
    for args in [dict(gamma=o) for o in (0., .3, 1., 5.)] if name == 'focal' else [{}]:
        make(name, smoothing, weight, **args)(far, torch.tensor([0, 1, 0, 3])).backward()
        assert far.grad.isfinite().all()

@pytest.mark.parametrize('smoothing', [0., .1])
@pytest.mark.parametrize('sum_classes', [False, True])
def test_one_against_all_is_timms(smoothing, sum_classes):
    logits, y = batch()
    theirs = BinaryCrossEntropy(smoothing, sum_classes=sum_classes)
    near(make('bce', smoothing, sum_classes=sum_classes)(logits, y), theirs(logits, y))

@pytest.mark.parametrize('threshold', [0., .2, .5])
def test_shares_above_the_threshold_are_full_labels(threshold):
    logits, rows = batch()[0], soft_rows()
    near(make('bce', target_threshold=threshold)(logits, rows), BinaryCrossEntropy(0., threshold)(logits, rows))

def test_one_against_all_takes_several_labels_or_none():
    logits, rows = batch()[0], (torch.rand(N, C, generator=torch.Generator().manual_seed(0)) > .6).float()
    assert {0, 2} <= set(rows.sum(1).int().tolist())
    near(make('bce')(logits, rows), F.binary_cross_entropy_with_logits(logits, rows))
    each = F.binary_cross_entropy_with_logits(logits, rows, reduction='none').mean(1)
    w = torch.stack([WEIGHT[o.bool()].mean() if o.any() else torch.tensor(1.) for o in rows])
    near(make('bce', weight=WEIGHT)(logits, rows), (each*w).sum()/w.sum())

def test_weights_of_one_against_all_balance_classes(): # the best constant answer is the balanced share
    y = torch.tensor([0]*90 + [1]*10)
    for weight, want in ((None, [.9, .1]), (class_weights(y, 2), [.5, .5])):
        logits = torch.zeros(2, requires_grad=True)
        opt = torch.optim.LBFGS([logits], max_iter=100)
        def closure(logits=logits, opt=opt, weight=weight):
            opt.zero_grad()
            out = make('bce', weight=weight)(logits.expand(100, 2), y)
            out.backward()
            return out
        opt.step(closure)
        near(logits.detach().sigmoid(), torch.tensor(want), atol=1e-3, rtol=0)

@pytest.mark.parametrize('name, smoothing, weight', KINDS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_16_bits_are_widened(name, smoothing, weight, dtype):
    logits, y = batch()
    loss, low = make(name, smoothing, weight), logits.to(dtype)
    for targ in (y, soft_rows()):
        assert loss(low, targ).dtype == torch.float32 and torch.equal(loss(low, targ), loss(low.float(), targ))

@pytest.mark.parametrize('name', LOSSES)
def test_pictures_of_no_weight(name): # where torch has 0/0
    logits, y = batch()[0].requires_grad_(), torch.full((N,), 2)
    loss = make(name, weight=[1, 1, 0, 1])
    loss(logits, y).backward()
    assert loss(logits, y) == 0 and not logits.grad.any()

@pytest.mark.parametrize('name', LOSSES)
def test_ready_made_for_a_learner(name):
    loss, logits = make(name, .1, WEIGHT), batch()[0]
    want = logits.sigmoid() if name == 'bce' else logits.softmax(1)
    near(loss.activation(logits), want)
    assert torch.equal(loss.decodes(logits), logits.argmax(1)) and torch.equal(loss.decodes(want), logits.argmax(1))
    assert loss.to('meta').weight.device.type == 'meta' and not list(make(name, weight=WEIGHT).parameters())
    with NoneReduce(loss) as o: assert o.reduction == 'none'
    assert loss.reduction == 'mean' and pickle.loads(pickle.dumps(make(name, .1, WEIGHT))).label_smoothing == .1
    assert name == 'bce' or 'label_smoothing=0.1' in repr(loss)

# Mixed pictures

@pytest.mark.parametrize('op', ['Mixup', 'CutMix'])
@pytest.mark.parametrize('name, smoothing, weight', KINDS)
def test_two_calls_are_the_soft_target(name, smoothing, weight, op):
    logits, y = batch()
    mix, loss = Mixer(op, 3).draw(0, N, (8, 8)), make(name, smoothing, weight)
    twice = sum(share*loss(logits, o) for share, o in zip(mix.weights, (y, mix.partner(y))))
    rows = sum(share*F.one_hot(o, C) for share, o in zip(mix.weights, (y, mix.partner(y))))
    if name == 'bce' and weight is not None: # a mixed picture would count what its classes do on average
        assert loss.normalizer(rows).item() == pytest.approx(loss.normalizer(y).item())
    else: near(twice, loss(logits, rows))

POINTS = torch.randn(35, 5, 1, 1, generator=torch.Generator().manual_seed(0))
PAIRS = [(o, i % C) for i, o in enumerate(POINTS)]

def learner(loss, cbs=(), bs=11, **kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, C))
    return Learner(DataLoaders(*[DataLoader(PAIRS, bs=bs)]*2), model, loss, lr=.1, cbs=[Clock(), *cbs], **kwargs)

def fit(learn, n=2):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn.recorder.values[-1]

@pytest.mark.parametrize('name, smoothing, weight', KINDS)
@pytest.mark.parametrize('cbs', [[], [MixBatch('mixup')], [MixUp()], [GradientAccumulation(22)]],
                         ids=['alone', 'ours', 'fastai', 'gathered'])
def test_training(name, smoothing, weight, cbs):
    learn = learner(make(name, smoothing, weight), cbs)
    before = learn.model[1].weight.clone()
    assert np.isfinite(fit(learn)).all() and not torch.equal(before, learn.model[1].weight)
    assert learn.loss_func.reduction == 'mean' and isinstance(learn.loss_func, LOSSES[name])

@pytest.mark.parametrize('name, smoothing, weight', KINDS)
def test_predictions_come_with_their_losses(name, smoothing, weight):
    learn = learner(make(name, smoothing, weight))
    with learn.no_bar(), learn.no_logging(): probs, targs, decoded, losses = learn.get_preds(with_loss=True, with_decoded=True)
    with torch.no_grad(): logits = learn.model(POINTS)
    near(probs, learn.loss_func.activation(logits))
    near(losses, make(name, smoothing, weight, 'none')(logits, targs))
    assert torch.equal(decoded, logits.argmax(1)) and learn.loss_func.reduction == 'mean'
    with learn.no_bar(): near(Interpretation.from_learner(learn).top_losses(3)[0], losses.sort(descending=True)[0][:3])

# Class weights by name

def test_class_weights_by_name():
    assert make_loss('Focal', weight=weights_by_class(dict(cat=2), ['ant', 'cat', 'dog'])).weight.tolist() == [1, 2, 1]
    assert weights_by_class(torch.tensor([1., 2.]), ['ant', 'cat']) == [1, 2] and weights_by_class(None, ['ant']) is None

@pytest.mark.parametrize('weight, message', [([1, 2], '2 numbers, and there are 3 classes'), (dict(cta=1), "Did you mean 'cat'"),
    (dict(cat=-1), 'does not fit'), ('abc', 'no list of numbers')], ids=str)
def test_class_weights_that_do_not_fit(weight, message):
    with pytest.raises(InputError, match=message): weights_by_class(weight, ['ant', 'cat', 'dog'])

def test_a_loss_for_each_picture_is_no_loss_to_train_on():
    with pytest.raises(InputError, match="reduction='mean'"): as_loss(nn.CrossEntropyLoss(reduction='none'))

# What does not fit

@pytest.mark.parametrize('args, message', [
    (dict(name='cross_entropi'), "loss='cross_entropi' is unknown.*cross_entropy, bce, focal.*Did you mean 'cross_entropy'"),
    (dict(name='CE'), "Did you mean 'cross_entropy'"), (dict(name='DKD'), "cbs=.'distill'.*kind='dkd'"),
    (dict(name='focal_loss'), "Did you mean 'focal'"), (dict(name=F.cross_entropy), 'is unknown'),
    (dict(name=['bce']), 'is unknown'),
    (dict(name='focal', gama=1.), "loss='focal' takes no 'gama'.*Did you mean 'gamma'.*label_smoothing, weight, gamma"),
    (dict(name='bce', gamma=1.), "loss='bce' takes no 'gamma'.*target_threshold, sum_classes"),
    (dict(name='cross_entropy', reduction='sum'), "takes no 'reduction'"),
    *[(dict(name='bce', label_smoothing=o), 'label_smoothing=.* does not fit') for o in (1., -.1, float('nan'), 'a', None, True)],
    (dict(name='focal', gamma=-1), 'gamma=-1 does not fit'), (dict(name='focal', gamma='2'), 'gamma=.2. does not fit'),
    (dict(name='bce', target_threshold=1.), 'target_threshold=1.0 does not fit'),
    (dict(name='bce', target_threshold=.2, label_smoothing=.1), 'label_smoothing=0.1 would be void'),
    *[(dict(name='focal', weight=o), 'weight=.* does not fit')
      for o in ([1., -1], [], 3., [[1., 2]], [1., float('nan')], [0, 0])],
    (dict(name='focal', weight='heavy'), "weight='heavy' is no list of numbers")], ids=lambda o: str(o).partition(' at 0x')[0])
def test_arguments_that_do_not_fit(args, message):
    with pytest.raises(InputError, match=message): make_loss(**args)

Z = torch.zeros
@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('logits, targ, message', [
    (Z(4, C), torch.tensor([0, 1, C, 0]), 'class 4, but the network has 4 outputs, for the classes 0 to 3'),
    (Z(4, C), torch.tensor([0, -1, 0, 0]), 'A target is -1, which is no class'),
    (Z(4, C), torch.tensor([0, -100, 9, 0]), 'A target is -100'),
    (Z(4, C), Z(4), r'shape \(4,\), float32, do not fit logits of shape \(4, 4\)'),
    (Z(4, C), Z(3).long(), r'shape \(3,\), int64, do not fit'), (Z(4, C), Z(4, 1).long(), r'shape \(4, 1\)'),
    (Z(4, C), Z(4, 3), r'shape \(4, 3\)'), (Z(4, C), Z(()).long(), r'shape \(\)'),
    (Z(4, C), torch.full((4, C), -.1), 'from -0.1 to -0.1'), (Z(4, C), torch.full((4, C), 1.1), 'Give numbers from 0 to 1'),
    (Z(4, C), torch.full((4, C), float('nan')), 'from nan to nan'),
    (Z(4, C, 2), Z(4).long(), r'gave shape \(4, 4, 2\).*\(pictures, classes\)'), (Z(4), Z(4).long(), r'gave shape \(4,\)'),
    ((Z(4, C), Z(4, C)), Z(4).long(), 'gave a tuple.*alone')],
    ids=lambda o: o[:20] if isinstance(o, str) else '')
def test_targets_that_do_not_fit(name, logits, targ, message):
    loss = make(name)
    for _ in range(2): # on the CPU every batch is looked at
        with pytest.raises(InputError, match=message): loss(logits, targ)
        loss(*batch())

@pytest.mark.parametrize('name', LOSSES)
def test_shares_add_up_to_one_unless_there_may_be_several(name):
    rows = torch.tensor([[.5, .5, 0, 0], [1, 1, 0, 0]])
    if name == 'bce': make(name)(Z(2, C), rows)
    else:
        with pytest.raises(InputError, match="add up to 2, not to 1.*take loss='bce'"): make(name)(Z(2, C), rows)
        with pytest.raises(InputError, match="add up to 0, not to 1"): make(name)(Z(2, C), rows*0)
    make(name)(Z(2, C), rows[:1].repeat(2, 1).to(torch.float16).softmax(1)) # rounded

def test_as_many_weights_as_classes():
    loss = make('focal', weight=[1, 2, 3])
    with pytest.raises(InputError, match='3 class weights, but the network has 4 outputs'): loss(*batch())

@pytest.mark.parametrize('name', LOSSES)
def test_elsewhere_only_the_first_batch_is_read(name): # to read from the device "meta" is an error
    loss, logits, targ = make(name, weight=WEIGHT).to('meta'), Z(4, C, device='meta'), Z(4, device='meta').long()
    with pytest.raises(Exception, match='meta'): loss(logits, targ)
    assert not loss.looked
    loss.looked = True
    assert loss(logits, targ).shape == () and loss(logits, Z(4, C, device='meta')).shape == ()
    with pytest.raises(InputError, match='do not fit'): loss(logits, targ[:3])

def test_a_wrong_label_is_named_in_training():
    learn = learner(make('cross_entropy'))
    learn.model[1] = nn.Linear(5, C - 1)
    with pytest.raises(InputError, match='class 3, but the network has 3 outputs'): fit(learn)

def test_a_batch_of_none(): assert torch.equal(make('bce', reduction='sum')(Z(0, C), Z(0).long()), Z(()))

# Losses from elsewhere

def one_minus(pred, targ): return 1 - pred.softmax(1).gather(1, targ[:, None]).mean()

class Object:
    def __call__(self, pred, targ): return one_minus(pred, targ)

OWN = {'module': nn.CrossEntropyLoss(), 'weights': nn.CrossEntropyLoss(WEIGHT), 'function': F.cross_entropy,
       'partial': partial(F.cross_entropy, label_smoothing=.1), 'plain': one_minus, 'object': Object(),
       'lambda': lambda pred, targ: F.multi_margin_loss(pred, targ), 'sum': nn.CrossEntropyLoss(reduction='sum')}

@pytest.mark.parametrize('name', OWN)
def test_any_loss_gives_probabilities_and_ranks(name):
    logits, y = batch()
    func, loss = OWN[name], as_loss(OWN[name])
    before = loss.reduction
    near(loss(logits, y), func(logits, y))
    learn = learner(loss)
    with learn.no_bar(), learn.no_logging(): probs, targs, losses = learn.get_preds(with_loss=True)
    with torch.no_grad(): logits = learn.model(POINTS)
    near(probs, logits.softmax(1))
    divide = WEIGHT[targs] if name == 'weights' else 1
    near(losses/divide, torch.stack([func(p[None], t[None]) for p, t in zip(logits, targs)]))
    assert loss.reduction == before == ('sum' if name == 'sum' else 'mean')
    assert np.isfinite(fit(learner(loss, [MixBatch('mixup')]))).all()
    total = sum(loss(o, t)*loss.normalizer(t) for o, t in zip(logits.split(10), targs.split(10)))
    near(total/(1 if name == 'sum' else loss.normalizer(targs)), func(logits, targs))

def test_a_sum_is_a_sum():
    logits, y = batch()
    for func in (F.cross_entropy, one_minus):
        loss = as_loss(func)
        loss.reduction = 'sum'
        near(loss(logits, y), func(logits, y)*N)
        assert loss.normalizer(y) == 1

def test_sigmoids():
    logits = batch()[0]
    assert torch.equal(as_loss(nn.BCEWithLogitsLoss()).activation(logits), logits.sigmoid())
    assert torch.equal(as_loss(BinaryCrossEntropy(), sigmoid=True).activation(logits), logits.sigmoid())
    assert torch.equal(as_loss(nn.BCEWithLogitsLoss(), sigmoid=False).activation(logits), logits.softmax(1))
    near(as_loss(nn.NLLLoss()).activation(logits.log_softmax(1)), logits.softmax(1))

def test_what_answers_already_is_left_alone():
    for loss in (CrossEntropyLossFlat(), make('focal'), as_loss(F.cross_entropy)): assert as_loss(loss) is loss

def test_weights_move_with_the_loss(): assert as_loss(nn.CrossEntropyLoss(WEIGHT)).to('meta').func.weight.device.type == 'meta'

@pytest.mark.parametrize('func', ['focal', None, 3, nn.CrossEntropyLoss], ids=str)
def test_what_is_no_loss(func):
    with pytest.raises(InputError, match='cross_entropy, bce, focal, or an object such as'): as_loss(func)
