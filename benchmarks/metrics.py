"""Confusion matrix and R_K against scikit-learn: `python benchmarks/metrics.py`

Timed, on the same arrays in memory (25 tiles of 512², 4 classes, shares 70/25/5/0.05 %, int64 ids):
- ours: `ConfusionMatrix.update` on each of the 25 tiles in turn, then `r_k()`
- peer: `sklearn.metrics.confusion_matrix`, then `matthews_corrcoef`, each once on all 6.55 million pixels
Both give the same matrix and R_K, which is checked.
The best of several runs counts. uint8 ids are timed too (`detail`).
"""
import time, numpy as np, torch
from sklearn.metrics import confusion_matrix, matthews_corrcoef
from clearsight_nb.core.metrics import ConfusionMatrix

MINUTES = 0.3

def scene(tiles=25, size=512, seed=42):
    "Truth with glacier-like shares and a prediction that is right on 80 % of the pixels, uint8 [tiles, size, size]"
    rng = np.random.default_rng(seed)
    truth = rng.choice(4, p=[.6995,.25,.05,.0005], size=(tiles,size,size)).astype(np.uint8)
    guess = rng.integers(0, 4, truth.shape, dtype=np.uint8)
    return truth,np.where(rng.random(truth.shape) < .8, truth, guess)

def best(f, n):
    "Shortest of `n` runs of `f`, in seconds, and what it gave"
    times = []
    for _ in range(n):
        start = time.perf_counter()
        res = f()
        times.append(time.perf_counter() - start)
    return min(times),res

def ours(truth, guess):
    cm = ConfusionMatrix(4)
    for t,g in zip(truth, guess): cm.update(g, t)
    return cm.matrix.numpy(),cm.r_k()

def peer(truth, guess): return confusion_matrix(truth, guess),matthews_corrcoef(truth, guess)

def compare(dtype):
    truth,guess = (o.astype(dtype) for o in scene())
    mine,(m,r) = best(lambda: ours(truth, guess), 7)
    theirs,(m2,r2) = best(lambda: peer(truth.ravel(), guess.ravel()), 2)
    assert (m == m2).all() and abs(r-r2) < 1e-12, (m, m2, r, r2)
    return mine*1000,theirs*1000

def run():
    "Time both; milliseconds"
    mine,theirs = compare(np.int64)
    mine8,theirs8 = compare(np.uint8)
    detail = f'uint8: {mine8:.1f} against {theirs8:.0f} ms, {theirs8/mine8:.0f}x; threads: {torch.get_num_threads()}'
    return dict(name='metrics: 25 tiles, matrix and R_K, against scikit-learn', ours=mine, peer=theirs,
        ratio=theirs/mine, target=20, unit='ms', detail=detail)

if __name__ == '__main__':
    res = run()
    print(f"{res['name']}: {res['ours']:.1f} {res['unit']} against {res['peer']:.0f} {res['unit']}, "
        f"{res['ratio']:.0f}x (target >= {res['target']}x); {res['detail']}")
