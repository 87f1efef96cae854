"Forward and backward of `GlacierLoss` against torch's cross-entropy on 4 x 4 x 512 x 512 logits, a tenth of the pixels ignored."
import sys, time
from pathlib import Path
from statistics import median
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch, torch.nn.functional as F
from clearsight_nb.core.files import IGNORE
from clearsight_nb.glacier.losses import GlacierLoss

MINUTES = 0.3

def case(b=4, c=4, side=512, seed=0):
    "Logits that need a gradient, and blocky labels: rock, glacier, debris and a few lakes"
    g = torch.Generator().manual_seed(seed)
    coarse = torch.multinomial(torch.tensor([.70,.25,.045,.005]), b*(side//16)**2, True, generator=g).view(b, side//16, side//16)
    y = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
    y[torch.rand(y.shape, generator=g) < .1] = IGNORE
    return torch.randn(b, c, side, side, generator=g).requires_grad_(),y

def seconds(loss, x, y):
    "Time of one forward and backward pass"
    x.grad = None
    start = time.perf_counter()
    loss(x, y).backward()
    return time.perf_counter() - start

def measure(preset, repeats=21):
    "Medians (ours, peer) of interleaved calls, so that a busy machine hits both alike"
    x,y = case()
    ours,peer = GlacierLoss(preset),lambda x,y: F.cross_entropy(x, y, ignore_index=IGNORE)
    both = [(seconds(ours, x, y), seconds(peer, x, y)) for _ in range(repeats + 2)][2:]   # the first two warm up
    return tuple(median(o) for o in zip(*both))

def run(preset='phase_b', threads=1):
    "Phase B has all four terms; one thread, since two that wait for each other on a busy machine measure its other load"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    ours,peer = measure(preset)
    torch.set_num_threads(before)
    return dict(name=f'loss {preset}, forward and backward, against cross-entropy, 4x4x512x512, threads: {threads}', ours=ours, peer=peer,
        ratio=ours/peer, target=3., lower_is_better=True, unit='s')

if __name__ == '__main__':
    for threads in (1, 2):
        for preset in ('phase_a', 'phase_b'):
            r = run(preset, threads)
            print(f"{r['name']}: {r['ours']*1e3:.1f} ms against {r['peer']*1e3:.1f} ms, ratio {r['ratio']:.2f} (target ≤ {r['target']})")
