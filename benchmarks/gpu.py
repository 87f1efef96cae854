"""What bfloat16, channels_last and torch.compile are worth on a GPU, in training and in restoring; needs CUDA.

The network is that of WeatherDiff64 at full width with random weights.
- `amp`, `channels_last`, `compile`: seconds of one training step (noise in, its prediction, squared error, backward, AdamW) on 32 patches of 64×64, each setting on top of the one before, against the one before
- `train`: all three against plain float32
- `restore`: seconds of a restoration of 256×256 in 10 steps (patches side by side, shifted) with all three, against plain float32
The two sides take turns; a ratio is the median of peer/ours over the turns. Losses of all settings must agree within 5 % at the first step, and restorations to 30 dB.
"""
import statistics, sys, time
from contextlib import nullcontext
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch, torch.nn.functional as F
from clearsight_nb.core.diffusion import VP, Denoiser, concat_cond
from clearsight_nb.core.image_metrics import psnr
from clearsight_nb.weather.model import weather_unet
from clearsight_nb.weather.restore import RestorePreset, Restorer, restore_batch

MINUTES = 5
SETTINGS = dict(plain={}, amp=dict(amp=True), channels_last=dict(amp=True, last=True), compile=dict(amp=True, last=True, compiled=True))

def missing(): return '' if torch.cuda.is_available() else 'there is no GPU that torch can use'

def seconds(f, device):
    "Of one call, with all that it started on the GPU"
    if device=='cuda': torch.cuda.synchronize()
    start = time.perf_counter()
    out = f()
    if device=='cuda': torch.cuda.synchronize()
    return time.perf_counter()-start,out

def network(device, last=False, compiled=False, **net):
    unet = weather_unet(seed=0, **net).to(device)
    if last: unet = unet.to(memory_format=torch.channels_last)
    return torch.compile(unet) if compiled else unet

def training(device, batch, size, amp=False, last=False, **how):
    "A function that trains one step and gives the loss"
    net,g = network(device, last, **how).train(),torch.Generator().manual_seed(1)
    cond,noise = (torch.randn(batch, 3, size, size, generator=g).to(device) for _ in range(2))
    x,t = torch.cat([cond, noise], 1),torch.randint(1000, (batch,), generator=g).to(device)
    if last: x = x.to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(net.parameters(), 1e-5)
    def step():
        with torch.autocast(device, torch.bfloat16) if amp else nullcontext(): loss = F.mse_loss(net(x, t).sample.float(), noise)
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss.item()
    return step

def restoring(device, side, patch, steps, amp=False, last=False, **how):
    "A function that restores a picture"
    unet = network(device, last, **how).eval()
    net = Restorer(Denoiser(concat_cond(unet), VP(), 'epsilon', torch.bfloat16 if amp else None), patch)
    rain = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    return lambda: restore_batch(net, rain, RestorePreset('ddim', steps, 'karras', 1, 'shifted'), seed=0)

def turns(sides, device, n, warm):
    "Seconds of each side in `n` turns after `warm`, and what the first call gave: {side: (times, result)}"
    out = {k: ([], None) for k in sides}
    for i in range(n+warm):
        for k,f in sides.items():
            s,res = seconds(f, device)
            out[k] = out[k][0]+[s]*(i>=warm),res if i==0 else out[k][1]
    return out

def row(name, ours, peer, target): return dict(name=name, ours=statistics.median(ours), peer=statistics.median(peer), unit='s',
    ratio=statistics.median(p/o for o,p in zip(ours, peer)), target=target)

def run(device='cuda', batch=32, size=64, side=256, steps=10, n=10, warm=3, settings=tuple(SETTINGS), **net):
    "Rows for training and restoring"
    every = {k: SETTINGS[k] for k in settings}
    train = turns({k: training(device, batch, size, **how, **net) for k,how in every.items()}, device, n, warm)
    (plain,loss),*_ = train.values()
    for k,(_,l) in train.items(): assert abs(l/loss-1)<.05, f'{k}: the first loss is {l:.4f}, not {loss:.4f}'
    what,names = f'a training step of {batch} patches of {size}² on {device}',list(train)
    rows = {b: row(f'{what}, {b} against {a}', train[b][0], train[a][0], 1) for a,b in zip(names, names[1:])}
    rows['train'] = row(f'{what}, {" and ".join(names[1:])} against float32', train[names[-1]][0], plain, 1.5)
    (slow,a),(fast,b) = turns({k: restoring(device, side, size, steps, **every[k], **net) for k in (names[0], names[-1])}, device, max(1, n//3), warm).values()
    db = psnr(a, b).item()
    assert db>=30, f'the restorations agree to {db:.1f} dB only'
    rows['restore'] = row(f'restoring {side}² in {steps} steps on {device}, {" and ".join(names[1:])} against float32; {db:.1f} dB between them', fast, slow, 1.5)
    return rows

if __name__ == '__main__': print(missing() or run())
