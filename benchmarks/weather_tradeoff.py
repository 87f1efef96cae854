"""Fewer evaluations of the network at no lower quality: presets against the published sampling (25 DDIM steps, patches at a quarter of their side).

A net that predicts v is trained for the purpose on embedded photographs with synthetic rain and snow (about 15 minutes on one core, kept in runs/weather/benchmark and resumed there).
Predicting noise, as the published nets do, takes far longer: after 6,000 steps colours were still off by several decibels, because at high noise the estimate multiplies every error by 100. All settings restore the same held-out photographs (64×64) from the same noise; what counts is the luma PSNR of each photograph and seed, compared in pairs.
The ratio is that of evaluations for the cheapest setting whose mean is not more than 0.05 dB below the published one's, by the lower end of a 95 % bootstrap interval over photographs.
The whole table goes to weather_tradeoff.json, which nbs/weather/60_speed.ipynb shows. CLEARSIGHT_SEEDS changes the number of noise seeds (3).
"""
import json, os, time
from pathlib import Path
import numpy as np, torch

MINUTES = 60
HERE = Path(__file__).resolve().parent
RUN = HERE.parent/'runs'/'weather'/'benchmark'
NET = ['model.patch=16', 'model.ch=32', 'model.ch_mult=[1,2]', 'model.num_res_blocks=1', 'diffusion.predicts=v', 'diffusion.weighting=min_snr', 'diffusion.residual=false', 'data.repeat=1',
    'training.steps=5000', 'training.epochs=10000', 'training.batch_size=8', 'data.patch_n=4', 'training.ema_decay=0.999', 'training.workers=0', 'training.checkpoint_minutes=2', 'name=benchmark']
PUBLISHED = 'ddim 25 leading, 1/4, average'
SETTINGS = [PUBLISHED, 'ddim 10 leading, 1/4, average', 'ddim 10 trailing, 1/4, average', 'ddim 25 leading, 1/2, average', 'ddim 25 leading, 1/2, shifted',
    'ddim 25 leading, 1, average', 'ddim 25 leading, 1, shifted', 'ddim 10 karras, 1/2, shifted', 'ddim 10 karras, 3/4, shifted', 'ddim 8 karras, 3/4, shifted',
    'ddim 10 karras, 1, shifted', 'ddim 10 karras, 1, average', 'ddim 10 lu, 3/4, shifted', 'unipc 10 karras, 1/2, shifted', 'unipc 10 karras, 1, shifted',
    'dpmpp_2m 10 karras, 1/2, shifted', 'dpmpp_2m 10 lu, 1/2, shifted']

def pairs():
    "Training folder and held-out pairs"
    from clearsight_nb.weather.data import weather_pairs
    from clearsight_nb.weather.sample import weather_sample
    root = weather_sample(RUN.parent/'benchmark_data', n=240, n_valid=8, size=96, kinds=('rain', 'snow'), severity=(.5, .9))
    return root,weather_pairs(root, split='valid')

def trained():
    "The net, trained now if it was not before"
    from clearsight_nb.core.recipe import load_recipe
    from clearsight_nb.core.training import fit_recipe
    from clearsight_nb.weather.dls import weather_dls
    from clearsight_nb.weather.restore import load_restorer
    from clearsight_nb.weather.train import weather_learner
    if not (RUN/'weights.safetensors').exists():
        recipe = load_recipe('weather', 'demo', overrides=NET)
        fit_recipe(weather_learner(weather_dls(pairs()[0], recipe), recipe, RUN))
    return load_restorer(RUN)

def preset(text):
    from clearsight_nb.weather.restore import RestorePreset
    how,stride,mode = text.split(', ')
    sampler,steps,spacing = how.split()
    return RestorePreset(sampler, int(steps), spacing, float(np.divide(*map(int, (stride+'/1').split('/')[:2]))), mode)

def measure(seeds):
    "Setting → luma PSNR (photographs, seeds), evaluations for a photograph, seconds"
    from clearsight_nb.core.image_metrics import psnr, round8
    from clearsight_nb.weather.data import read_rgb
    from clearsight_nb.weather.restore import restore_batch, restore_cost
    net,(_,held) = trained(),pairs()
    net.denoiser.amp = torch.bfloat16
    x,y = (torch.stack([torch.from_numpy(read_rgb(f).transpose(2,0,1).copy()) for f in fs])[...,16:80,16:80] for fs in zip(*held))
    rows = {'input': dict(psnr=psnr(x, y, 'y').tolist())}
    for s in SETTINGS:
        start,p = time.perf_counter(),preset(s)
        out = [restore_batch(net, x, p, seed=[1000*k+i for i in range(len(x))]) for k in range(seeds)]
        rows[s] = dict(psnr=torch.stack([psnr(round8(o), y, 'y') for o in out], 1).tolist(), evaluations=restore_cost(*x.shape[2:], net.patch, p),
            seconds=(time.perf_counter()-start)/seeds/len(x))
        print(f"{s:36}{rows[s]['evaluations']:7,} evaluations {rows[s]['seconds']:6.2f} s  Y {np.mean(rows[s]['psnr']):.2f} dB", flush=True)
    return rows

def compare(rows):
    "Add to each setting the mean and the difference to the published one, with its 95 % interval over photographs"
    rng,base = np.random.default_rng(0),np.array(rows[PUBLISHED]['psnr'])
    at = rng.integers(len(base), size=(10_000, len(base)))
    for s in SETTINGS:
        d = (np.array(rows[s]['psnr'])-base).mean(1) # of each photograph
        low,high = np.percentile(d[at].mean(1), [2.5, 97.5])
        rows[s] |= dict(mean=float(np.mean(rows[s]['psnr'])), difference=float(d.mean()), low=float(low), high=float(high))
    return rows

def run():
    seeds = int(os.environ.get('CLEARSIGHT_SEEDS', 3))
    rows = compare(measure(seeds))
    (HERE/'weather_tradeoff.json').write_text(json.dumps(dict(seeds=seeds, threads=torch.get_num_threads(), published=PUBLISHED, rows=rows), indent=1))
    best = min((s for s in SETTINGS if rows[s]['low'] >= -.05), key=lambda s: rows[s]['evaluations'])
    return dict(name=f'restoring 64², evaluations: {best} against published sampling; Y-PSNR {rows[best]["difference"]:+.2f} dB '
        f'({rows[best]["low"]:+.2f}…{rows[best]["high"]:+.2f})', ours=rows[best]['evaluations'], peer=rows[PUBLISHED]['evaluations'], unit='evaluations',
        ratio=rows[PUBLISHED]['evaluations']/rows[best]['evaluations'], target=10)

if __name__ == '__main__': print(run())
