"""`fit_recipe` with everything switched on against a bare PyTorch loop: `python benchmarks/learner_overhead.py`

Seconds for one batch of training a U-Net (ResNet-18 encoder, 5 bands, 4 classes) on 8 x 5 x 128 x 128 inputs. Both sides see the same batches and do the same arithmetic:
forward, cross-entropy, backward, two batches a step, clipping at 1.0, AdamW with a one-cycle rate, moving average of weights and buffers.
- ours: `fit_recipe`, which also guards against NaN, counts, logs, shows progress as text, watches the time budget, and looks for the moment of a checkpoint (every 10 minutes)
- peer: the loop alone
The two take turns within one fit, so that a machine that slows down slows both: the data loader, asked for a batch, first runs a block of the peer's steps. The ratio is the median over the
pairs of blocks. A checkpoint is not within the blocks; its seconds are printed (one in 10 minutes).
"""
import os, statistics, sys, tempfile, time
from dataclasses import dataclass, field
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ['CLEARSIGHT_PROGRESS'] = 'text'
import torch
from fastai.basics import CrossEntropyLossFlat, DataLoaders, noop
from torch.optim.swa_utils import get_ema_multi_avg_fn
from clearsight_nb.core.recipe import TrainingRecipe, load_recipe, register_recipe
from clearsight_nb.core.schedules import learning_rate
from clearsight_nb.core.training import fit_recipe, recipe_learner

MINUTES = 1

@register_recipe('bench')
@dataclass
class BenchRecipe:
    "Recipe of the benchmark"
    task:str = 'bench'
    name:str = 'overhead'
    training:TrainingRecipe = field(default_factory=lambda: TrainingRecipe(epochs=1, accumulate=2, ema_decay=.999, time_budget_minutes=600.))

def make_model(seed=0):
    import segmentation_models_pytorch as smp
    torch.manual_seed(seed)
    return smp.Unet('resnet18', encoder_weights=None, in_channels=5, classes=4)

def batches(n, bs=8, side=128, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(bs, 5, side, side, generator=g), torch.randint(4, (bs, side, side), generator=g)) for _ in range(n)]

class Bare:
    "The peer: a training loop as one writes it by hand"
    def __init__(self, model, loss, total, lr=1e-3, decay=.999):
        self.model,self.loss,self.total,self.lr,self.decay,self.i = model.train(),loss,total,lr,decay,0
        self.opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=.01)
        self.live = [*(p.detach() for p in model.parameters()), *(b for b in model.buffers() if b.is_floating_point())]
        self.avg = [t.clone() for t in self.live]
    def step(self, x, y):
        (self.loss(self.model(x), y)/2).backward()
        self.i += 1
        if self.i%2: return
        for g in self.opt.param_groups: g['lr'] = learning_rate(self.i//2 - 1, self.total, self.lr)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.)
        self.opt.step()
        self.opt.zero_grad()
        get_ema_multi_avg_fn(min(self.decay, (1+self.i//2)/(10+self.i//2)))(self.avg, self.live, None)

class Turns:
    "A loader that lets the peer train a block whenever the learner has trained one, and notes the time of both"
    def __init__(self, data, peer, blocks, size):
        self.data,self.peer,self.blocks,self.size,self.times = data,peer,blocks,size,dict(ours=[], peer=[])
    def __len__(self): return self.blocks*self.size
    def __iter__(self):
        for k in range(self.blocks):
            block = [self.data[(k*self.size+i)%len(self.data)] for i in range(self.size)]
            start = time.perf_counter()
            for x,y in block: self.peer.step(x, y)
            middle = time.perf_counter()
            yield from block
            self.times['peer'].append((middle-start)/self.size)
            self.times['ours'].append((time.perf_counter()-middle)/self.size)

def run(blocks=17, size=4):
    "Seconds a batch, and their ratio; the weights of both sides are compared at the end"
    loss,data = CrossEntropyLossFlat(axis=1),batches(8)
    peer = Bare(make_model(), loss, blocks*size//2)
    turns = Turns(data, peer, blocks, size)
    with tempfile.TemporaryDirectory() as folder:
        learn = recipe_learner(DataLoaders(turns, data[:1], device='cpu'), make_model(), loss, [], load_recipe('bench', None), run_dir=folder)
        learn.progress.out = noop
        fit_recipe(learn)
    off = max(float((a-b).abs().max()) for a,b in zip(learn.ema.avg, peer.avg))
    if off>1e-5: raise AssertionError(f'the two trained differently: weights differ by {off:.1e}')
    ours,theirs = (turns.times[k][1:] for k in ('ours', 'peer')) # the first block warms up
    return dict(name='Learner with all callbacks against a bare loop (U-Net, 8x5x128x128)', ours=statistics.median(ours), peer=statistics.median(theirs),
                ratio=statistics.median(a/b for a,b in zip(ours, theirs)), target=1.05, unit='s', lower_is_better=True, times=turns.times)

if __name__ == '__main__':
    r = run()
    pairs = sorted(a/b for a,b in zip(*r['times'].values()))
    print(f"{r['name']}, {torch.get_num_threads()} threads: {r['ours']*1e3:.1f} ms against {r['peer']*1e3:.1f} ms, ratio {r['ratio']:.3f} "
          f"(pairs {pairs[0]:.3f} to {pairs[-1]:.3f}; target ≤ {r['target']})")
