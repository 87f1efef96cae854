"""Texture channels against scikit-image: `python benchmarks/glacier_glcm.py`

Contrast and energy of a 512 x 512 band in 16 grey levels, window 7, distance 1, mean over 0, 45, 90 and 135 degrees.
- ours: `glcm_maps` on the whole tile, borders included; the median of several runs
- peer: `graycomatrix(symmetric=True, normed=True)` and `graycoprops` for each window. All 262,144 would take half a
  minute, so 1,024 of them, spread over the interior, are timed in the same run and scaled to one for each pixel
Both give the same values on those windows, which is checked to 1e-6. Torch uses its default number of threads,
scikit-image one.
"""
import sys, time
from pathlib import Path
from statistics import median
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np, torch
from scipy.ndimage import gaussian_filter
from skimage.feature import graycomatrix, graycoprops
from clearsight_nb.glacier.features import glcm_maps

MINUTES = 0.3

def band(side=512, levels=16, seed=0):
    "Grey levels of smooth hills with noise on them, int32"
    rng = np.random.default_rng(seed)
    x = 6*gaussian_filter(rng.standard_normal((side, side)), 6) + .1*rng.standard_normal((side, side))
    lo,hi = np.percentile(x, (2, 98))
    return np.clip((x-lo)/(hi-lo)*levels, 0, levels-1).astype(np.int32)

def peer(q, places, levels, window):
    "(contrast, energy) in the windows around `places`, as scikit-image measures them"
    r,radians = window//2,np.radians((0, 45, 90, 135))
    def one(y, x):
        m = graycomatrix(q[y-r:y+r+1,x-r:x+r+1], [1], radians, levels, symmetric=True, normed=True)
        return [graycoprops(m, p).mean() for p in ('contrast', 'energy')]
    return np.array([one(y, x) for y,x in places])

def timed(f):
    "Seconds and result of a call"
    start = time.perf_counter()
    res = f()
    return time.perf_counter() - start, res

def run(side=512, levels=16, window=7, repeats=9):
    "Seconds for a whole tile"
    q,r = band(side, levels),window//2
    at = np.linspace(r, side-r-1, 32).astype(int)
    places = [(y, x) for y in at for x in at]
    glcm_maps(q, levels, window) # warm up
    ours,maps = zip(*[timed(lambda: glcm_maps(q, levels, window)) for _ in range(repeats)])
    theirs,values = timed(lambda: peer(q.astype(np.uint8), places, levels, window))
    worst = max(abs(maps[0][:,y,x].numpy() - v).max() for (y,x),v in zip(places, values))
    if worst>1e-6: raise AssertionError(f'the two differ by {worst:.1e}')
    ours,theirs = median(ours),theirs/len(places)*side*side
    name = f'GLCM contrast and energy against scikit-image ({side}x{side}, {levels} levels, window {window})'
    return dict(name=name, ours=ours, peer=theirs, ratio=theirs/ours, target=100., unit='s')

if __name__ == '__main__':
    for levels in (8, 16, 32):
        r = run(levels=levels)
        print(f"{r['name']}, {torch.get_num_threads()} threads: {r['ours']*1e3:.0f} ms against {r['peer']:.1f} s "
            f"(scaled from 1,024 windows), ratio {r['ratio']:.0f} (target ≥ {r['target']:.0f} at 16 levels)")
