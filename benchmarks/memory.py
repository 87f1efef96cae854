"""Peak memory (resident set) of each demo training, of a whole scene, and of `restore` on a picture of 4,000×3,000 pixels, each against its bound; lower is better.

Each part runs in a process of its own, of which the system tells the peak: Python, torch, network, data and all; processes that only read data are not counted.
- TASK demo: the program trains the demo recipe as it is, on embedded data as in the task's kernel but fewer pictures, for 30 steps instead of hundreds (the peak of a
  step is that of every step, and a checkpoint, a validation and the writing of weights belong to it); `--steps 0` takes the recipe's own number
- glacier scene: `segment_scene` on 4,000×4,000 pixels in 5 bands with probabilities and confidence, U-Net with a ResNet-18 encoder (glacier_scene.py does 8,000×8,000)
- weather restore: 4,000×3,000 pixels, the demo's network with random weights, 2 of the 10 steps of 'fast' (all steps need the same memory)
The result is the part that comes nearest to its bound; all are printed. `python benchmarks/memory.py --parts "weather restore" "weather demo"` runs some.
"""
import argparse, json, os, subprocess, sys, tempfile
from pathlib import Path
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT/'benchmarks')]
MINUTES = 5
#: Part → the most it may take, MiB; a demo is for laptops; Python with fastai alone takes about 900
BOUNDS = {f'{t} demo': 2048 for t in ('glacier', 'weather', 'lowlight', 'derain', 'shadow')} | {'glacier scene': 3072, 'weather restore': 2304}
#: Task → settings of its embedded data: pictures as large as in its kernel, but fewer
SAMPLES = dict(glacier='tiles=9', weather='n=8 n_valid=2 size=160', lowlight='n=12 n_valid=4 n_test=2 size=96', derain='n=4 n_valid=2 levels=[medium] variants=2', shadow='')

def demo(task, folder, steps):
    "The program trains"
    from clearsight_nb.core.cli import main
    number = {'lowlight': [f'training.total_kimg={steps*8/1000}', 'training.kimg_per_tick=0.08', 'training.lr_rampup_kimg=0'],
        'shadow': [f'training.max_iterations={steps}', 'training.eval_every=10', f'training.save_every={steps}', 'training.warmup_steps=5', 'data.objects=40']}.get(task, [f'training.steps={steps}'])
    sample = ['--sample', SAMPLES[task]] if SAMPLES[task] else []
    status = main(['train', task, '--preset', 'demo', '--run-dir', f'{folder}/run', *sample, *(number if steps else [])])
    if status: raise SystemExit(status)

def scene(folder, size=4000):
    import glacier_scene
    glacier_scene.write_scene(Path(folder)/'scene.tif', size)

def restore_picture(steps=2):
    import numpy as np
    from clearsight_nb.core.diffusion import VP, Denoiser, concat_cond
    from clearsight_nb.weather.model import weather_unet
    from clearsight_nb.weather.restore import RESTORE_PRESETS, Restorer, restore
    from dataclasses import replace
    unet = weather_unet('weatherdiff64', image_size=32, ch=32, ch_mult=(1,2,4), num_res_blocks=1, attn_resolutions=(), seed=0).eval()
    picture = np.random.default_rng(0).random((3000, 4000, 3), np.float32)
    out = restore(picture, Restorer(Denoiser(concat_cond(unet), VP(), 'x0'), 32, name='memory'), preset=replace(RESTORE_PRESETS['fast'], steps=steps), progress=False)
    assert out.shape==(3000, 4000, 3) and np.isfinite(out).all()

def child(part, folder, steps):
    "One part; the last line says the peak of this process, KiB"
    import resource
    if part=='weather restore': restore_picture()
    elif part=='glacier scene': __import__('glacier_scene').measure(Path(folder), 512)
    else: demo(part.split()[0], folder, steps)
    print(json.dumps(dict(peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)))

def measure(part, steps):
    "Peak of a part, MiB"
    with tempfile.TemporaryDirectory() as tmp:
        if part=='glacier scene': subprocess.run([sys.executable, __file__, '--child', 'write', '--folder', tmp], check=True)
        env = {k: v for k,v in os.environ.items() if not k.startswith(('CLEARSIGHT', 'KAGGLE', 'SLURM'))} | dict(CLEARSIGHT_WORK=tmp, CLEARSIGHT_PROGRESS='text', PYTHONPATH=str(ROOT))
        done = subprocess.run([sys.executable, __file__, '--child', part, '--folder', tmp, '--steps', str(steps)], env=env, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(f'{part}: {done.stdout[-1000:]}{done.stderr[-2000:]}')
    return json.loads(done.stdout.splitlines()[-1])['peak']/1024

def run(parts=tuple(BOUNDS), steps=30):
    "MiB of the part nearest to its bound"
    peaks = {}
    for p in parts:
        peaks[p] = measure(p, steps)
        print(f'{p:<16} {peaks[p]:6.0f} MiB of {BOUNDS[p]}', flush=True)
    worst = max(peaks, key=lambda p: peaks[p]/BOUNDS[p])
    return dict(name=f'peak memory of {len(peaks)} parts, each against its bound; nearest to it: {worst} ({", ".join(f"{p} {m:.0f}" for p,m in peaks.items())})',
        ours=peaks[worst], peer=BOUNDS[worst], unit='MiB', ratio=peaks[worst]/BOUNDS[worst], target=1, lower_is_better=True)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--parts', nargs='+', default=[*BOUNDS], metavar='PART', help=', '.join(BOUNDS))
    p.add_argument('--steps', type=int, default=30, help='of each demo training; 0: all that its recipe says')
    p.add_argument('--child', help=argparse.SUPPRESS)
    p.add_argument('--folder', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child=='write': scene(a.folder)
    elif a.child: child(a.child, a.folder, a.steps)
    else: print(run(a.parts, a.steps))
