"""Memory of one training step of the `sdxl` shadow network, with gradient checkpointing and without; lower is better.

On a GPU SDXL at full size (random weights, bfloat16 autocast, a shadow of 512×512 pixels, batch of 1; about 40 GB are needed); on a CPU the narrow instance of the same classes (float32, 256×256 pixels, batch of 2).
- ours: the step with `net.checkpointing()`
- peer: the same step, the same network, without
Compared is the peak of what a forward and backward pass allocates beyond weights and gradients, which are there before: by torch's allocator on a GPU, and on a CPU from the profiler's record of every allocation and release.
The gradients of both must agree. The time of both steps is in the result's name.
"""
import sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

MINUTES = 0.3

def peak(step, device):
    "Most bytes that `step` holds at once beyond what is there at its start"
    if device=='cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()-before
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof: step()
    events = sorted((e for e in prof.profiler.kineto_results.events() if e.name()=='[memory]'), key=lambda e: e.start_ns())
    held = torch.tensor([e.nbytes() for e in events], dtype=torch.int64).cumsum(0)
    return int(held.max())

def make(device):
    "Network and batch"
    from clearsight_nb.shadow.models import pack_cond, shadow_net
    from clearsight_nb.shadow.sdxl import NARROW
    g,px,b = torch.Generator().manual_seed(0),*((512, 1) if device=='cuda' else (256, 2))
    with torch.device(device): net = shadow_net('sdxl', seed=0, **({} if device=='cuda' else NARROW | dict(amp='float32'))).train()
    cond = pack_cond(dict(object_image=torch.rand(b, 3, px, px, generator=g), mask=(torch.rand(b, 1, px, px, generator=g)>.5).float(),
        theta=torch.full((b,), 30.), phi=torch.full((b,), 100.), size=torch.full((b,), 4.))).to(device)
    with torch.no_grad(): prepared = net.prepare(cond)
    x = torch.randn(b, net.codec.channels, px//net.codec.factor, px//net.codec.factor, generator=g).to(device)
    return net,(x, torch.full((b,), 1000., device=device), prepared)

def run():
    "Peak bytes of a step, with checkpointing over without"
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    net,batch = make(device)
    params = [p for p in net.parameters() if p.requires_grad]
    for p in params: p.grad = torch.zeros_like(p)
    def step():
        for p in params: p.grad.zero_()
        net(*batch).square().mean().backward()
    bytes_,times,grads = {},{},{}
    for on in (False, True):
        net.checkpointing(on)
        step() # wake up
        start = time.perf_counter()
        step()
        if device=='cuda': torch.cuda.synchronize()
        times[on] = time.perf_counter()-start
        bytes_[on] = peak(step, device)
        grads[on] = torch.cat([p.grad.flatten() for p in params]).cpu()
    off = ((grads[True]-grads[False]).norm()/grads[False].norm()).item()
    assert off<1e-2, f'the gradients differ by {off:.1e}'
    size = 'SDXL, 512²' if device=='cuda' else 'narrow SDXL, 256²'
    return dict(name=f'peak memory of a step, {size}, gradient checkpointing against none; {times[True]/times[False]:.2f} times the time, gradients differ by {off:.0e}',
        ours=bytes_[True]/2**20, peer=bytes_[False]/2**20, unit='MiB', ratio=bytes_[True]/bytes_[False], target=.6, lower_is_better=True)

if __name__ == '__main__': print(run())
