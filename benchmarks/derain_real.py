"""Real pairs, Rain100H: Y-PSNR of the recipe `rain100h` on pairs of scenes that training has not seen, `python benchmarks/run.py derain_real`.

The pairs (46 of Rain100H, folders `input` and `target`) are not part of the project; without them, or CLEARSIGHT_RAIN_DATA, this benchmark says so and is left out. A fifth of the scenes is held out,
and also chooses among the checkpoints. Training is resumed in runs/derain/rain100h.
- ours: the network, one sample a picture, 10 DDIM steps
- peer: the guided filter, the better of the two filters of the table; the whole table goes to derain_real.json
"""
import os, sys
from pathlib import Path
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MINUTES = 50
DATA = Path(os.environ.get('CLEARSIGHT_RAIN_DATA', ROOT.parent/'shared/data/derain/rain100h_mspfn'))

def missing():
    "Why the benchmark cannot run, or ''."
    return '' if DATA.is_dir() else f'{DATA} is not there; set CLEARSIGHT_RAIN_DATA'

def run():
    "Train by the recipe, or take the run that is there, and score it on the held-out scenes"
    from clearsight_nb.core.files import write_json
    from clearsight_nb.derain import derain_dls, derain_learner, derain_pairs, evaluate_derain, fit_recipe, load_recipe, mean_scores, split_pairs
    recipe,folder = load_recipe('derain', 'rain100h'),ROOT/'runs/derain/rain100h'
    train,held = split_pairs(derain_pairs(DATA), recipe.data.valid, recipe.training.seed, recipe.data.split)
    if not (folder/'weights.safetensors').exists(): fit_recipe(derain_learner(derain_dls(DATA, recipe), recipe, run_dir=folder))
    mean = mean_scores(evaluate_derain(folder, held, progress=False))
    rows = {k: {c: round(float(v), 4) for c,v in r.items()} for k,r in mean.iterrows()}
    write_json(dict(train=len(train), held_out=len(held), steps=recipe.training.steps, rows=rows), ROOT/'benchmarks/derain_real.json')
    print(mean.round(3).to_string())
    ours,peer = rows['derained']['psnr_y'],rows['guided filter']['psnr_y']
    return dict(name=f'Y-PSNR on {len(held)} pairs of Rain100H, of other scenes than the {len(train)} of training (rainy input {rows["rainy input"]["psnr_y"]:.2f} dB; SSIM {rows["derained"]["ssim_y"]:.3f}, '
        f'rainy {rows["rainy input"]["ssim_y"]:.3f}), rain100h against a guided filter', ours=ours, peer=peer, unit='dB', ratio=ours/peer, target=1.3)

if __name__ == '__main__': print(run())
