"""Tier B of the weather sampler, the same result up to rounding: bfloat16 inside the network (`amp=torch.bfloat16`; on a GPU also channels_last and torch.compile) against float32.

- speed: WeatherDiff64 at full width, random weights: seconds for one step of 4 patches (64 on a GPU) through `Denoiser`, which is over 98 % of what a restoration costs. Both sides take turns.
- agreement: whole restorations of held-out photographs (25 DDIM steps, patches at a quarter of their side) by the trained net of weather_tradeoff.py, from the same noise; PSNR between the two
  results in dB, which must be 50 or more for each photograph.
"""
import statistics, sys, time
from pathlib import Path
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import torch

MINUTES = 20 # of which 15 train the net that weather_tradeoff.py keeps

def agreement():
    "PSNR between float32 and bfloat16 restorations, and what either scores against the truth"
    from clearsight_nb.core.image_metrics import psnr
    from clearsight_nb.weather.data import read_rgb
    from clearsight_nb.weather.restore import restore_batch
    from weather_tradeoff import pairs, trained
    net,held = trained(),pairs()[1][:4]
    x,y = (torch.stack([torch.from_numpy(read_rgb(f).transpose(2,0,1).copy()) for f in fs])[...,16:80,16:80] for fs in zip(*held))
    out = []
    for amp in (None, torch.bfloat16):
        net.denoiser.amp = amp
        out.append(restore_batch(net, x, 'reference', seed=[*range(len(x))]))
    return psnr(*out).min().item(),[psnr(o, y, 'y').mean().item() for o in out]

@torch.inference_mode()
def run(turns=3):
    "Seconds for one step of a batch of patches"
    from clearsight_nb.core.diffusion import VP, Denoiser, concat_cond
    from clearsight_nb.weather.model import weather_unet
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    n = 64 if device=='cuda' else 4
    nets = [weather_unet('weatherdiff64', seed=0).eval().to(device) for _ in range(2)]
    if device=='cuda': nets[1] = torch.compile(nets[1].to(memory_format=torch.channels_last))
    sides = dict(peer=Denoiser(concat_cond(nets[0]), VP(), 'epsilon'), ours=Denoiser(concat_cond(nets[1]), VP(), 'epsilon', torch.bfloat16))
    x,cond = (torch.randn(n,3,64,64, generator=torch.Generator().manual_seed(k)).to(device) for k in range(2))
    times = {k: [] for k in sides}
    for turn in range(turns+1):
        for k,d in sides.items():
            start = time.perf_counter()
            d(x, 480., cond)
            if device=='cuda': torch.cuda.synchronize()
            if turn: times[k].append(time.perf_counter()-start) # the first turn warms up and compiles
    db,(a,b) = agreement()
    assert db>=50, f'the restorations agree to {db:.1f} dB only'
    return dict(name=f'WeatherDiff64, a step of {n} patches, bfloat16 against float32; restorations agree to {db:.1f} dB at least, Y-PSNR {b:.2f} and {a:.2f} dB',
        ours=statistics.median(times['ours']), peer=statistics.median(times['peer']), unit='s', ratio=statistics.median(p/o for p,o in zip(times['peer'], times['ours'])), target=1.5)

if __name__ == '__main__': print(run())
