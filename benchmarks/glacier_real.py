"""A real Landsat-5 tile with six bands and four classes: `python benchmarks/glacier_real.py [--data ../shared/data/glacier]`

R_K on the right half of the tile, of a network and a forest that saw the left half. The data (ukis-csmask: cloud, cloud shadow, land, water; no ice in it) are not
part of the project; without them this benchmark says so and is left out. What it shows is that nothing in the way from files to scores knows about
five bands or glaciers: band list, class names and label values are arguments.
- ours: a U-Net (ResNet-18 encoder, random weights), 160 steps on crops of 128 pixels. It trains on three quarters of the left half, and the last
  quarter chooses its best epoch; the right half chooses nothing
- peer: a random forest of scikit-learn on single pixels, trained on all of the left half
"""
import argparse, os, sys, tempfile
from pathlib import Path
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MINUTES = 3
DATA = Path(os.environ.get('CLEARSIGHT_REAL_DATA', ROOT.parent/'shared/data/glacier'))
BANDS = ['blue', 'green', 'red', 'nir', 'swir1', 'swir2']

def missing(data=DATA):
    "Why the benchmark cannot run, or ''."
    file = Path(data)/'ukis_csmask_6band/landsat5.npz'
    return '' if file.is_file() else f'{file} is not there; give --data or set CLEARSIGHT_REAL_DATA'

def write_tiles(file, dest, side=128):
    "The tile as files of the competition's layout, named by row and column; names of the left and of the right half"
    import numpy as np, tifffile
    with np.load(file) as z: x,y = z['img'],z['msk'][..., 0]
    halves = [],[]
    for r in range(0, len(x), side):
        for c in range(0, len(x), side):
            name = f'{r//side:02}_{c//side:02}'
            halves[c >= len(x)//2].append(name)
            for i in range(len(BANDS)):
                (folder := dest/f'Train/Band{i+1}').mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(folder/f'{name}.tif', x[r:r+side, c:c+side, i])
            (dest/'Train/labels').mkdir(exist_ok=True)
            tifffile.imwrite(dest/f'Train/labels/{name}.tif', y[r:r+side, c:c+side])
    return halves

def run(data=DATA, steps=160):
    from clearsight_nb.glacier import (BASELINES, Fold, LabelCodec, check_glacier, evaluate_glacier, fit_recipe, fold_dls, glacier_learner, glacier_store,
                                       load_recipe)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        left,right = write_tiles(Path(data)/'ukis_csmask_6band/landsat5.npz', tmp)
        codec = LabelCodec((0, 1, 3, 4), ('shadow', 'water', 'land', 'cloud'), None)
        recipe = load_recipe('glacier', 'demo', overrides=[f'training.steps={steps}', f'data.bands={BANDS}', 'data.crops_per_tile=100',
            'data.gain=.05', 'data.offset=.05', 'training.weight_decay=.1'])
        stack = check_glacier(tmp, bands={f'Band{i}': b for i,b in enumerate(BANDS, 1)}, codec=codec).stack
        names = {n[-5:]: n for n in stack.names}
        fold = Fold([names[n] for n in left if n[:2] != '03'], [names[n] for n in left if n[:2] == '03'])
        learn = glacier_learner(fold_dls(stack, glacier_store(stack, tmp/'store', progress=False), fold, recipe), recipe, run_dir=tmp/'run')
        fit_recipe(learn)
        learn.dls.train_tiles,test = [[learn.dls.store.rows[names[n]] for n in half] for half in (left, right)] # the forest sees all of the left
        result = evaluate_glacier(learn, tiles=test, pixels=131_072)
        print(result)
    net,forest = [result.pooled(n).r_k() for n in ('network', list(BASELINES)[-1])]
    return dict(name='R_K on the right half of a real Landsat-5 tile, U-Net against random forest', ours=net, peer=forest, ratio=net/forest, target=1., unit='R_K')

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default=DATA, help='folder that holds ukis_csmask_6band/landsat5.npz')
    p.add_argument('--steps', type=int, default=160, help='optimizer steps of the U-Net')
    a = p.parse_args()
    if why := missing(a.data): sys.exit(why)
    r = run(a.data, a.steps)
    print(f"{r['name']}: {r['ours']:.3f} and {r['peer']:.3f}, ratio {r['ratio']:.2f} (target ≥ {r['target']:g})")
