"Train the packaged shadow weights: `OMP_NUM_THREADS=2 python tools/shadow_weights.py` (about 40 minutes on two cores); start it again after an interruption."
import argparse, json, os, time
from pathlib import Path
os.environ.setdefault('CLEARSIGHT_PROGRESS', 'text')
from clearsight_nb.core.files import atomic_write
from clearsight_nb.core.training import fit_recipe
from clearsight_nb.shadow.dls import shadow_dls
from clearsight_nb.shadow.evaluate import evaluate_shadow, short_table
from clearsight_nb.shadow.recipe import shadow_recipe
from clearsight_nb.shadow.sample import shadow_tracks
from clearsight_nb.shadow.train import load_shadow, save_shadow, shadow_learner

SCENES = 1_000_003  # seed of the tracks' objects, which are not among those of training

def spent(run_dir):
    "Seconds that all calls together have trained, from a file that each call adds to."
    file = run_dir/'seconds.json'
    return file, sum(json.loads(file.read_text())) if file.exists() else 0.

def train(recipe, folder, resume):
    "Train, or go on; the learner with the best weights, and the seconds of all calls."
    run_dir = folder/'runs'/recipe.name
    if not resume: (run_dir/'seconds.json').unlink(missing_ok=True)
    dls, start = shadow_dls(folder/'renders', recipe), time.monotonic()
    learn = shadow_learner(dls, recipe, run_dir=run_dir)
    try: fit_recipe(learn, resume=resume)
    finally:
        file, before = spent(run_dir)
        calls = json.loads(file.read_text()) if file.exists() else []
        with atomic_write(file, 'w') as f: json.dump([*calls, round(time.monotonic()-start, 1)], f)
    return learn, before + time.monotonic()-start

def tracks(folder, objects, size):
    "The three tracks of held-out objects, rendered once."
    tar = folder/f'tracks_{"_".join(map(str, objects))}_{size}px.tar'
    return tar if tar.exists() else shadow_tracks(tar, objects, size, seed=SCENES)

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--preset', default='small', help='recipe')
    p.add_argument('--folder', type=Path, default=Path('runs/shadow_weights'), help='where renders, the run and the tracks are kept')
    p.add_argument('--out', type=Path, default=Path('clearsight_nb/weights/shadow_small.safetensors'))
    p.add_argument('--anew', action='store_true', help='forget what an earlier call has trained')
    p.add_argument('--regression', action='store_true', help='also train the baseline without flow, for the table')
    p.add_argument('--objects', type=int, nargs=3, default=(50, 15, 15), help='objects in each track')
    p.add_argument('--steps', type=int, nargs='+', default=(1, 2, 4, 8, 20), help='numbers of steps in the table')
    p.add_argument('--seeds', type=int, default=3, help='seeds of the noise in the table')
    p.add_argument('overrides', nargs='*', help='changes of the recipe, such as training.max_iterations=600')
    a = p.parse_args()
    recipe = shadow_recipe(a.preset, overrides=a.overrides)
    learn, seconds = train(recipe, a.folder, not a.anew)
    if learn.stopped != 'finished': return print(f'Stopped ({learn.stopped}); call again to go on.')
    other = None
    if a.regression:
        other, _ = train(shadow_recipe(a.preset, overrides=[*a.overrides, 'flow.objective=regression', f'name={recipe.name}_regression']), a.folder, not a.anew)
    size = recipe.data.image_size
    facts = dict(steps=learn.rate_schedule.done, minutes=round(seconds/60, 1), cores=os.cpu_count(), threads=int(os.environ.get('OMP_NUM_THREADS', os.cpu_count())),
        batch_size=recipe.training.batch_size, objects=recipe.data.objects, renders=recipe.data.objects*recipe.data.lights, made_by='tools/shadow_weights.py',
        overrides=list(a.overrides), validation_iou=round(float(learn.watch.best), 4))
    save_shadow(learn, a.out, **facts)
    table = evaluate_shadow(load_shadow(a.out), tracks(a.folder, a.objects, size), a.steps, range(a.seeds), regression=other and load_shadow(other),
        image_size=size, scene_seed=SCENES, out=a.out.with_suffix('.json'))
    one = {t: {k: round(float(r[k, 'mean']), 4) for k in ('iou', 'rmse', 'srmse', 'zncc')} for t, r in table.xs('1 step', level=1).iterrows()}
    save_shadow(learn, a.out, figures=one, **facts)
    print(short_table(table).T.to_string())
    print(f'{a.out}: {a.out.stat().st_size/2**20:.2f} MiB, {facts["minutes"]} minutes of training in {facts["steps"]} steps')

if __name__ == '__main__': main()
