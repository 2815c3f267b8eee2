"What several processes do in tests/test_distributed.py, and one process for comparison"
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from fastai.callback.core import Callback

from imgcls_nb.callbacks.parallel import Parallel, wrapper_options
from imgcls_nb.data import image_dls  # first, because it imports fastai quietly
from imgcls_nb.evaluate import evaluate
from imgcls_nb.learner import image_learner
from imgcls_nb.moments import Moment
from imgcls_nb.ranks import LostError, all_values, first_alone, from_first, has_begun, join, rank, wait_for_all, world
from imgcls_nb.samplers import parts_of

BATCH = 8 # of all processes together
CASES = dict(plain={}, mixed=dict(mix='mixup+cutmix'), averaged=dict(cbs=[('ema', dict(decay=.9))]),
             gathered=dict(cbs=[('accumulate', dict(n=2)), ('ema', dict(decay=.9))], mix='mixup'),
             weighed=dict(loss_args=dict(weight=[1., 4., 9.])), as_cuda={},
             repeated=dict(data=dict(repeats=3), mix='cutmix'), lost=dict(data=dict(on_lost='skip')),
             compiled=dict(cbs=[('compile', dict(backend='aot_eager'))]),
             both_learn=dict(cbs=[('distill', dict(teacher='test_convnext', kind='udml')), ('accumulate', dict(n=2))]))

class Noted(Callback):
    "Note the gradient of each step, and its loss"
    order = 13.5 # when the gradient is ready
    def __init__(self): self.grads, self.losses = [], []
    def before_step(self): self.grads.append(torch.cat([p.grad.flatten().clone() for p in self.learn.model.parameters()]))
    def after_batch(self):
        if self.training: self.losses.append(float(self.loss.detach()))

def make(folder, run=None, arch='test_convnext', data=None, bs=None, **how):
    how = dict(precision='fp32', opt='sgd', opt_args=dict(mom=.9)) | how
    device = os.environ.get('TOGETHER_DEVICE', 'cpu')
    dls = image_dls(folder, **dict(size=32, bs=bs or BATCH//world(), device=device, num_workers=0, cache=False) | (data or {}))
    return image_learner(dls, arch, run=run, **how)

def seen(dl): # names of the pictures that this process takes of each batch
    names = []
    for _, idxs, _ in dl.epoch_batches():
        part = dl.own_part(len(idxs))
        names.append([dl.dataset.name(i) for i in idxs[part.start:part.stop]])
    return names

def hashes(learn): # of the weights and of their average, in every process
    states = learn.model.state_dict(), learn.ema.state()['weights'] if hasattr(learn, 'ema') else {}
    return all_values([hash_of(o) for o in states])

def hash_of(weights):
    sha = hashlib.sha256()
    for k, v in sorted(weights.items()): sha.update(k.encode() + v.contiguous().cpu().numpy().tobytes())
    return sha.hexdigest()

def copied(folder): # one copy for all processes
    copy = Path(from_first(tempfile.mkdtemp() if rank() == 0 else None))/'pictures'
    if rank() == 0: shutil.copytree(folder, copy)
    wait_for_all('pictures are copied')
    return copy

def lose(pics, idxs): # they vanish while the loaders are there
    if rank() == 0:
        for i in idxs: os.unlink(pics.source(i))
    wait_for_all('pictures are lost')

def case(folder, name):
    "Train for two epochs; the gradients of all steps and what came of them"
    if name == 'lost': folder = copied(folder)
    how = dict(arch='test_resnet', sync_bn=True) if name == 'synced' else CASES[name] # the former on CUDA only
    learn, watch = make(folder, **how), Noted()
    if name == 'as_cuda' and world() > 1: # the options of a GPU, but for its number
        options = {k: v for k, v in wrapper_options('cuda:0').items() if k != 'device_ids'}
        next(o for o in learn.cbs if isinstance(o, Parallel)).options = options
    if name == 'lost': lose(learn.dls.train_ds, learn.dls.train.epoch_batches()[1][1][BATCH//2:]) # all that the second of two has
    learn.add_cb(watch)
    with learn.no_bar(): learn.fit(2, .05)
    values = {k: float(v) for k, v in learn.epoch_metrics.values.items()}
    state = learn.ema.state()['weights'] if hasattr(learn, 'ema') else {}
    if name == 'compiled': assert learn.compile_model.tried and not learn.compile_model.why, learn.compile_model.why
    return dict(grads=torch.stack(watch.grads), losses=watch.losses, values=values, average=state,
                weights=learn.model.state_dict(), hashes=hashes(learn), bare='module' not in str([*learn.model.state_dict()][0]),
                counts=dict(right=float(learn.epoch_metrics.right), seen=float(learn.epoch_metrics.seen)))

def count(folder, out):
    "Evaluate a network that was trained alone, on a number of pictures that cannot be shared out evenly"
    learn = make(folder, run=out/'counted', arch='test_resnet', metrics=['top1', 'f1'])
    learn.model.load_state_dict(torch.load(out/'alone.pt', weights_only=True))
    with learn.no_bar(): values = list(learn.validate())
    ev = evaluate(learn, run=out/'evaluated')
    told = all_values([type(ev).__name__, ev.nll, ev.top1, ev.confusion_matrix().tolist(), ev.top_losses(3).to_json()])
    preds, targs = learn.get_preds()
    rows = all_values([len(learn.get_preds(whole=False)[0]), len(learn.tta(n=1, whole=False)[0])])
    few = learn.dls.test_dl([learn.dls.valid_ds.source(0)])
    with learn.no_bar(): learn.fit_one_cycle(1, 1e-2)
    pictures = [seen(learn.dls.train) for learn.dls.train.epoch in range(2)]
    return dict(values=values, matrix=ev.confusion_matrix().tolist(), per_class=ev.report().round(6).to_json(),
                names=ev.paths, preds=preds, targs=targs, few=learn.get_preds(dl=few)[0], pictures=all_values(pictures),
                worst=learn.worst_pictures.found, hashes=hashes(learn), told=told, rows=rows, rest=rest(folder))

def rest(folder):
    "A validation and predictions where the last of three processes can read none of its pictures"
    learn = make(copied(folder), arch='test_resnet', data=dict(on_lost='skip'))
    pics = learn.dls.valid_ds
    lose(pics, range(*parts_of(len(pics), 3)[2]))
    with learn.no_bar(): return dict(values=list(learn.validate()), preds=learn.get_preds(reorder=False)[0])

def curves(folder):
    "The mean loss of each epoch, for a few seeds, of a network that normalizes by the pictures of its process"
    losses = []
    for seed in range(4):
        learn = make(folder, arch='test_resnet', data=dict(seed=seed))
        with learn.no_bar(): learn.fit(4, .02)
        losses.append([sum(map(float, o))/len(o) for o in zip(*[iter(learn.recorder.losses)]*len(learn.dls.train))])
    return dict(losses=losses)

class Die(Callback):
    "Kill this process after a step, once"
    order = 99
    def __init__(self, step, mark): self.step, self.mark = step, Path(mark)
    def after_batch(self):
        if self.training and self.clock.steps == self.step and not self.mark.exists():
            self.mark.write_text('')
            os.kill(os.getpid(), signal.SIGKILL)

class Wait(Callback):
    "Say that a step is done, and wait to be killed"
    order = 99
    def __init__(self, step, mark): self.step, self.mark = step, Path(mark)
    def after_batch(self):
        if self.clock.steps != self.step: return
        self.mark.with_name(f'{self.mark.name}-{rank()}').write_text(str(os.getpid()))
        signal.pause()

class Linger(Callback):
    "Take time over each step, and say how far it is"
    order = 99
    def __init__(self, mark): self.mark = mark
    def after_batch(self):
        self.mark.with_name(f'{self.mark.name}-{rank()}').write_text(str(self.clock.steps))
        time.sleep(.4)

def add_silently(learn, cb): # it changes nothing, so that the plan stays whole
    learn.add_cb(cb)
    learn.planned = (*learn.planned, cb)

def run(folder, out, how='whole'):
    "A training with a run folder, which may be cut and go on"
    restarted = has_begun()
    how_to = dict(drop_rate=.2, save_steps=2, mix='mixup', cbs=[('ema', dict(decay=.9))])
    learn = make(folder, out/f"run-{how.partition('-')[0]}", 'test_resnet', **how_to)
    if how == 'one' and rank() == 1: add_silently(learn, Die(5, out/'died'))
    if how == 'all': add_silently(learn, Wait(5, out/'waits'))
    if how == 'linger': add_silently(learn, Linger(out/'lingers'))
    learn.fit_one_cycle(2, 1e-2, resume=how.endswith('-resumed') or restarted)
    moment = hash_of(Moment.of(learn, None).weights)
    return dict(moment=moment, hashes=hashes(learn), losses=[float(o) for o in learn.recorder.losses])

def main(folder, out, *jobs):
    "Do jobs such as `case:plain` or `run:whole`, and save what the first process has"
    join()
    out = Path(out)
    for job in jobs:
        what, _, arg = job.partition(':')
        if what == 'case': got = case(folder, arg)
        if what == 'count': got = count(folder, out)
        if what == 'run': got = run(folder, out, arg)
        if what == 'curves': got = curves(folder)
        if what == 'late': got = late(out)
        if what == 'apart': got = apart(out)
        if rank() == 0: torch.save(got, out/f'{what}-{arg}.pt')
    wait_for_all('the end')

def late(out):
    "What those say who wait for somebody"
    said = ''
    if rank() != 1:
        try: wait_for_all('lunch', wait_s=1)
        except LostError as e: said = str(e)
    with first_alone('a file is written'):
        if rank() == 0: (out/'first').write_text('here')
        there = (out/'first').exists()
    return json.loads(json.dumps(dict(said=all_values(said), there=all_values(there))))

def apart(out):
    "Wait for each other outside of a step; the second process comes when somebody has cut the cable"
    (out/f'apart-{rank()}').write_text('')
    if rank(): time.sleep(5)
    wait_for_all('lunch')

if __name__ == '__main__': main(*sys.argv[1:])
