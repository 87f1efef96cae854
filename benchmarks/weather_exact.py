"""Tier A of the weather sampler, the same result: `restore_batch` with the preset `reference` against the published loop, 256×256, patches of 64 at a stride of 16, 25 DDIM steps.

Both sides use the same network (that of WeatherDiff64; on a CPU with a quarter of the width and one residual block a level, random weights), the same noise, float32, and 64 patches at a time.
- ours: all steps of a restoration
- peer: the published loop, written from its description: patches cut one by one, noise averaged by slices, one DDIM step for the picture, every step's pictures kept
They take turns; the ratio is the median of peer/ours over the turns. The pictures must agree within half an 8-bit level.
"""
import statistics, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

MINUTES = 15

def published(unet, cond, x, patch=64, stride=16, steps=25, chunk=64):
    "Restored picture in [0, 1]; cond and x in [-1, 1], (1, 3, h, w)"
    ab = torch.cat([torch.ones(1), torch.cumprod(1-torch.linspace(1e-4, .02, 1000, dtype=torch.float64).float(), 0)]).to(x.device)
    h,w = x.shape[-2:]
    corners = [(i, j) for i in range(0, h-patch+1, stride) for j in range(0, w-patch+1, stride)]
    count = torch.zeros_like(x)
    for i,j in corners: count[:,:,i:i+patch,j:j+patch] += 1
    seq,kept = list(range(0, 1000, 1000//steps)),[]
    for t,after in zip(reversed(seq), reversed([-1]+seq[:-1])):
        eps = torch.zeros_like(x)
        xs = torch.cat([x[:,:,i:i+patch,j:j+patch] for i,j in corners])
        cs = torch.cat([cond[:,:,i:i+patch,j:j+patch] for i,j in corners])
        for k in range(0, len(corners), chunk):
            out = unet(torch.cat([cs[k:k+chunk], xs[k:k+chunk]], 1), torch.full((len(xs[k:k+chunk]),), float(t), device=x.device)).sample
            for o,(i,j) in zip(out, corners[k:k+chunk]): eps[0,:,i:i+patch,j:j+patch] += o
        eps = eps/count
        x0 = (x - eps*(1-ab[t+1]).sqrt())/ab[t+1].sqrt()
        x = ab[after+1].sqrt()*x0 + (1-ab[after+1]).sqrt()*eps
        kept += [x0.cpu(), x.cpu()]
    return ((x+1)/2).clamp(0, 1).cpu()

def timed(f, device):
    start = time.perf_counter()
    out = f()
    if device=='cuda': torch.cuda.synchronize()
    return out,time.perf_counter()-start

@torch.inference_mode()
def run(turns=2):
    "Seconds for one restoration; on the GPU if there is one, then with the full network"
    from clearsight_nb.core.diffusion import VP, Denoiser, concat_cond
    from clearsight_nb.core.photos import degrade, load_photo
    from clearsight_nb.core.sampling import start
    from clearsight_nb.weather.model import weather_unet
    from clearsight_nb.weather.restore import Restorer, restore_batch
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    small = dict(ch=32, ch_mult=(1,2,2), num_res_blocks=1) if device=='cpu' else {}
    unet = weather_unet('weatherdiff64', seed=0, **small).eval().to(device)
    x = torch.from_numpy(degrade(load_photo('china', 256)[:256,:256], 'rain', .6)[0].transpose(2,0,1).copy())[None]
    ours = Restorer(Denoiser(concat_cond(unet), VP(), 'epsilon'), 64, name='benchmark')
    noise = start(VP(), 999., x.shape, 0).to(device)
    sides = dict(peer=lambda: published(unet, 2*x.to(device)-1, noise), ours=lambda: restore_batch(ours, x, 'reference', seed=0))
    unet(torch.zeros(2,6,64,64, device=device), torch.zeros(2, device=device)) # wake up
    times = {k: [] for k in sides}
    for _ in range(turns):
        out = {}
        for k,f in sides.items():
            out[k],s = timed(f, device)
            times[k].append(s)
    worst = (out['ours']-out['peer']).abs().max().item()*255
    assert worst<.5, f'the pictures differ by {worst:.2f} levels'
    return dict(name=f'restoring 256², r=16, 25 steps, against the published loop; pictures differ by {worst:.4f} of 255 at most', ours=statistics.median(times['ours']),
        peer=statistics.median(times['peer']), unit='s', ratio=statistics.median(p/o for p,o in zip(times['peer'], times['ours'])), target=1)

if __name__ == '__main__': print(run())
