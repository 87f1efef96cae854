"""What a representation and a network are worth at equal budget: decibels of RGB PSNR above the rainy input, on held-out photographs with medium rain.

Every network is the demo's U-Net (`recipes/derain/demo.yaml`, with a sixth of its steps: 500 of 8 patches of 64 pixels) in one of three representations and one of two spaces, trained on the same patches in the same order; the last one is a plain U-Net without
Fourier space and without diffusion. 40 photographs for training and 6 for testing, of 128×128, each with 4 kinds of rain; one sample a picture, 10 DDIM steps. Seven networks are trained; runs are kept in
runs/derain/quality and resumed there.
- ours: the default, `complex` with a network over pictures
- peer: the version first described, `magphase` with a network over the spectrum
The whole table goes to derain_quality.json.
"""
import time
from pathlib import Path
import torch

MINUTES = 5.5
HERE = Path(__file__).resolve().parent
RUNS = HERE.parent/'runs'/'derain'/'quality'
STEPS = 500
NETS = {f'{r} + {n}': (f'diffusion.representation={r}', f'model.net={n}') for n in ('image', 'spectrum') for r in ('complex', 'magphase', 'spatial')}
NETS['plain U-Net'] = 'diffusion.representation=spatial','model.net=image','diffusion.regression=true'

def pairs():
    "Folder of photographs with rain"
    from clearsight_nb.derain.sample import derain_sample
    return derain_sample(RUNS/'pairs', n=40, n_valid=6, size=128, variants=4, vary=True, levels=('medium',), progress=False)

def trained(name):
    "The run of a network, trained now if it was not before; its minutes are kept beside it"
    from clearsight_nb.core.recipe import load_recipe
    from clearsight_nb.core.training import fit_recipe
    from clearsight_nb.derain.dls import derain_dls
    from clearsight_nb.derain.train import derain_learner
    slug = name.replace(' + ', '_').replace(' ', '_')
    run,recipe = RUNS/slug,load_recipe('derain', 'demo', overrides=[*NETS[name], f'name={slug}', f'training.steps={STEPS}', 'training.workers=0', 'training.checkpoint_minutes=2'])
    if not (run/'weights.safetensors').exists():
        start = time.perf_counter()
        fit_recipe(derain_learner(derain_dls(pairs(), recipe), recipe, run_dir=run))
        print(f'{name}: {(time.perf_counter()-start)/60:.1f} minutes', flush=True)
    return run

def run():
    "Decibels above the rainy input"
    from clearsight_nb.core.files import write_json
    from clearsight_nb.derain.evaluate import evaluate_derain, mean_scores
    first,*rest = NETS
    table = evaluate_derain(trained(first), pairs(), others={k: trained(k) for k in rest}, progress=False)
    mean = mean_scores(table).rename(index=dict(derained=first))
    rows = {k: {c: round(float(v), 4) for c,v in r.items()} for k,r in mean.iterrows()}
    write_json(dict(pictures=len(table.groupby(level='pair')), steps=STEPS, threads=torch.get_num_threads(), rows=rows), HERE/'derain_quality.json')
    print(mean.round(3).to_string())
    ours,peer = rows[first]['psnr_rgb'],rows['magphase + spectrum']['psnr_rgb']
    return dict(name=f'RGB PSNR of derained photographs after {STEPS} steps (rainy input {rows["rainy input"]["psnr_rgb"]:.1f} dB): complex + image against magphase + spectrum; plain U-Net {rows["plain U-Net"]["psnr_rgb"]:.1f} dB',
        ours=ours, peer=peer, unit='dB', ratio=ours/peer, target=1.1)

if __name__ == '__main__': print(run())
