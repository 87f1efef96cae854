"""Enhancing dark exposures: half quadratic splitting in nine looks against deepinv's DPS in 1,000 steps, with the same prior.

The prior is exact, a Gaussian fitted to patches of photographs made linear, so neither side suffers from a network. 32 patches of 16×16 of a photograph that was not fitted, 100 electrons at
white, 2 of read noise.
- ours: `hqs` with the sensor's variance, 9 evaluations
- peer: `deepinv.sampling.DPS`, the prior as its denoiser, y/k as the measurement; the best of five weights, and the mean of its samples is not taken, because it gives one
They take turns; ours runs many times a turn. The ratio is that of the times; the PSNR of ours must not be lower.
"""
import math, statistics, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

MINUTES = 0.7
WEIGHTS = 100.,300.,1000.,3000.,10000. # of the pull towards the measurement

def missing():
    "Why it cannot run, or ''"
    import importlib.util
    return '' if importlib.util.find_spec('deepinv') else 'deepinv is not installed: pip install clearsight_nb[deepinv]'

def patches(name, side, step):
    "Linear patches (n, 3, side, side) of an embedded photograph"
    from clearsight_nb.core.photos import load_photo, srgb_to_linear
    x = torch.from_numpy(srgb_to_linear(load_photo(name, 200)).transpose(2, 0, 1).copy())
    return x.unfold(1, side, step).unfold(2, side, step).movedim(0, 2).flatten(0, 1)

def db(x, truth): return -10*math.log10((x.double()-truth.double()).clamp(-1, 1).square().mean().item())

def timed(f):
    start = time.perf_counter()
    return f(),time.perf_counter()-start

def run(turns=2, side=16, n=32, k=100., read=2., steps=1000):
    "Seconds for a batch of patches"
    import deepinv
    from clearsight_nb.core.diffusion import EDM
    from clearsight_nb.core.sampling import GaussianDenoiser
    from clearsight_nb.lowlight.guidance import hqs
    from clearsight_nb.lowlight.interop import as_deepinv_denoiser
    from clearsight_nb.lowlight.likelihoods import Heteroscedastic, Measurement
    known = torch.cat([patches(o, side, 4) for o in ('astronaut', 'chelsea', 'rocket')]).flatten(1).double()
    prior = GaussianDenoiser(known.mean(0).reshape(3, side, side), known.T.cov() + 1e-5*torch.eye(3*side**2), EDM(sigma_data=float(known.std())))
    truth = patches('coffee', side, side)
    truth = truth[torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))[:n]]
    y = torch.poisson(k*truth, generator=torch.Generator().manual_seed(1)) + read*torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    meas = Measurement(y, k, Heteroscedastic(read))
    denoiser,physics,scaled = as_deepinv_denoiser(prior),deepinv.physics.Denoising(),meas.exposure_scaled()
    def dps(weight):
        sampler = deepinv.sampling.DPS(denoiser, num_steps=steps, weight=weight, rng=torch.Generator().manual_seed(0))
        return sampler(scaled, physics, seed=0).float().clamp(0, 1)
    few = [dps(w) for w in WEIGHTS] # chosen with the truth: in the peer's favour
    weight = max(zip(few, WEIGHTS), key=lambda o: db(o[0], truth))[1]
    hqs(prior, meas) # wake up
    ours,peer = [],[]
    for _ in range(turns):
        out,s = timed(lambda: [hqs(prior, meas).clamp(0, 1) for _ in range(5)][0])
        ours.append(s/5)
        theirs,s = timed(lambda: dps(weight))
        peer.append(s)
    a,b,c = db(out, truth),db(theirs, truth),db(scaled, truth)
    assert a>=b, f'PSNR {a:.2f} dB is below {b:.2f} dB of DPS'
    if __name__ == '__main__': print({w: round(db(o, truth), 2) for w,o in zip(WEIGHTS, few)})
    return dict(name=f'enhancing {n} patches, HQS-9 {a:.1f} dB, against deepinv DPS-{steps} (weight {weight:g}) {b:.1f} dB, exposure scaling {c:.1f} dB',
        ours=statistics.median(ours), peer=statistics.median(peer), unit='s', ratio=statistics.median(p/o for p,o in zip(peer, ours)), target=100)

if __name__ == '__main__': print(missing() or run())
