"What `from clearsight_nb.glacier import *` costs beside fastai's own `from fastai.vision.all import *`."
import subprocess, sys, time
from statistics import median

def seconds(code):
    "Wall time of a fresh interpreter that runs `code`."
    start = time.perf_counter()
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
    return time.perf_counter() - start

def run(repeats=5):
    "Interleaved, so that a busy machine hits both alike; medians."
    both = [(seconds('from clearsight_nb.glacier import *'), seconds('from fastai.vision.all import *')) for _ in range(repeats + 1)]
    ours,peer = (median(t) for t in zip(*both[1:]))  # the first pair warms the disk
    return dict(name='import of clearsight_nb.glacier against fastai.vision.all', ours=ours, peer=peer, ratio=ours/peer,
        target=1.1, lower_is_better=True, unit='s')

if __name__ == '__main__':
    r = run()
    print(f"{r['name']}: {r['ours']:.2f} s against {r['peer']:.2f} s, ratio {r['ratio']:.3f} (target ≤ {r['target']})")
