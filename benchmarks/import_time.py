"""What `from clearsight_nb.TASK import *` costs beside fastai's own `from fastai.vision.all import *`, for all five tasks.

Each is imported in a fresh interpreter by `python -X importtime`, whose cumulative time of the module counts.
"""
import re, subprocess, sys
from statistics import median

MINUTES = 5
TASKS = 'glacier', 'weather', 'lowlight', 'derain', 'shadow'
FASTAI = 'fastai.vision.all'

def seconds(module):
    "How long a fresh interpreter says that it imported `module`"
    log = subprocess.run([sys.executable, '-W', 'ignore', '-X', 'importtime', '-c', f'from {module} import *'], check=True, capture_output=True, text=True).stderr
    return int(re.findall(rf'^import time: +\d+ \| +(\d+) \| {module}$', log, re.M)[-1])/1e6

def run(repeats=3):
    "In turns, so that a busy machine hits all alike; medians. `ours` and the ratio are those of the slowest task."
    modules = [FASTAI, *(f'clearsight_nb.{t}' for t in TASKS)]
    seconds(modules[-1]) # warms the disk
    times = {m: median(t) for m,t in zip(modules, zip(*([seconds(m) for m in modules] for _ in range(repeats))))}
    peer,ours = times.pop(FASTAI),max(times.values())
    each = ', '.join(f'{t} {s:.2f}' for t,s in zip(TASKS, times.values()))
    return dict(name=f'import of the slowest task against {FASTAI} (seconds: {each})', ours=ours, peer=peer, ratio=ours/peer, target=1.1, lower_is_better=True, unit='s')

if __name__ == '__main__':
    r = run()
    print(f"{r['name']}: {r['ours']:.2f} s against {r['peer']:.2f} s, ratio {r['ratio']:.3f} (target ≤ {r['target']})")
