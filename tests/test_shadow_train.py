"Training of shadows: a killed run ends as one that was not, options, damaged files, the tool."
import json, sys
from pathlib import Path
import pandas as pd, pytest, torch
from clearsight_nb.core.files import DataError
from clearsight_nb.core.recipe import RecipeError, load_recipe
from clearsight_nb.core.training import fit_recipe
from clearsight_nb.shadow.dls import shadow_dls
from clearsight_nb.shadow.evaluate import evaluate_shadow
from clearsight_nb.shadow.recipe import plan_training, shadow_recipe
from clearsight_nb.shadow.sample import shadow_sample, shadow_tracks
from clearsight_nb.shadow.train import OneStepFlow, draw_shadows, load_shadow, save_shadow, shadow_learner

REPO = Path(__file__).parents[1]

@pytest.fixture(scope='module')
def renders(tmp_path_factory):
    folder = tmp_path_factory.mktemp('renders')
    shadow_dls(folder, shadow_recipe('tiny'), progress=False)
    return folder

def trained(renders, run, resume=True, cbs=(), **options):
    recipe = shadow_recipe('tiny', **options)
    learn = shadow_learner(shadow_dls(renders, recipe, progress=False), recipe, run_dir=run, cbs=cbs)
    with learn.no_logging(): fit_recipe(learn, resume=resume)
    return learn

def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))

SCRIPT = '''
import sys, time
from fastai.basics import Callback
from clearsight_nb.core.training import fit_recipe
from clearsight_nb.shadow.dls import shadow_dls
from clearsight_nb.shadow.recipe import shadow_recipe
from clearsight_nb.shadow.train import shadow_learner
class Slow(Callback):
    order = 200
    def after_step(self): print(self.learn.rate_schedule.done, flush=True); time.sleep(.3)
r = shadow_recipe('tiny', max_iterations=40, save_every=3)
shadow = shadow_learner(shadow_dls(sys.argv[1], r, progress=False), r, run_dir=sys.argv[2], cbs=[Slow()])
fit_recipe(shadow)
'''

def test_a_killed_run_ends_the_same(python, renders, tmp_path):
    p = python(SCRIPT, renders, tmp_path/'killed')
    for line in p.out:
        if line.strip()=='8': break
    p.kill()
    p.join()
    assert (tmp_path/'killed'/'checkpoint_6.pt').exists() and not (tmp_path/'killed'/'weights.safetensors').exists()
    options = dict(max_iterations=40, save_every=3)
    again, whole = (trained(renders, tmp_path/o, **options) for o in ('killed', 'whole'))
    assert again.stopped=='finished' and same(again, whole)
    assert [len(pd.read_csv(tmp_path/o/'log.csv')) for o in ('killed', 'whole')]==[10, 10]

def test_going_back_within_a_run(renders, tmp_path):
    whole = trained(renders, tmp_path/'run')
    back = trained(renders, tmp_path/'run', resume_from=tmp_path/'run'/'checkpoint_5.pt')
    assert same(whole, back)
    assert 'resumed at step 5' in (tmp_path/'run'/'training.log').read_text()
    trained(renders, tmp_path/'run', resume_from=tmp_path/'run'/'checkpoint_5.pt')
    assert (tmp_path/'run'/'training.log').read_text().count('resumed at step 5')==1 # the second time it goes on from the end

def test_another_recipe_is_refused(renders, tmp_path):
    trained(renders, tmp_path/'run')
    with pytest.raises(RecipeError, match='training.lr'): trained(renders, tmp_path/'run', lr=.5)

def test_bad_checkpoints(renders, tmp_path):
    learn = trained(renders, tmp_path/'run')
    bad = tmp_path/'bad.pt'
    bad.write_bytes((tmp_path/'run'/'latest_model.pt').read_bytes()[:3000])
    for f in (lambda: load_shadow(bad), lambda: trained(renders, tmp_path/'other', resume_from=bad)):
        with pytest.raises(DataError, match='bad.pt'): f()
    torch.save(dict(a=1), bad)
    with pytest.raises(DataError, match='no checkpoint'): load_shadow(bad)
    file = save_shadow(learn, tmp_path/'w.safetensors')
    with pytest.raises(DataError, match='light encoding'): load_shadow(file, light='blob')
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match='w.safetensors'): load_shadow(file)
    with pytest.raises(DataError, match='light encoding'): load_shadow(tmp_path/'run', light='blob')

@pytest.mark.parametrize('at_one', [.25, 1/3, .5, 1.])
def test_share_at_one(at_one):
    torch.manual_seed(0)
    for n in (1, 2, 12, 16):
        t = torch.cat([OneStepFlow(at_one).sample_levels(n) for _ in range(2000)])
        assert abs((t==1).float().mean()-at_one) < .03
        assert ((t>=0) & (t<=1)).all()

def test_bad_options(tmp_path):
    for overrides in (['flow.at_one=.2'], ['training.batch_size=0'], ['training.mixed_precision=int8'], ['data.image_size=4'], ['training.eval_evry=3']):
        with pytest.raises(RecipeError): load_recipe('shadow', 'small', overrides=overrides)
    assert plan_training(load_recipe('shadow', 'tiny', overrides=['training.mixed_precision=no'])) and shadow_recipe('tiny', mixed_precision='bf16').training.mixed_precision=='bf16'
    with pytest.raises(DataError, match='data_dir'): shadow_dls(None, shadow_recipe('tiny', dataset_type='benchmark'))
    with pytest.raises(DataError): shadow_dls(tmp_path/'nothing', shadow_recipe('tiny', dataset_type='custom'))

def test_a_faulty_folder_is_named(tmp_path):
    root = shadow_sample(tmp_path/'s', objects=4, lights=2, size=16, samples=2, progress=False)
    meta = json.loads((root/'metadata.json').read_text())
    stem = next(iter(meta))
    (root/'metadata.json').write_text(json.dumps(meta | {stem: dict(theta=60, phi=0, size=2)}))
    with pytest.raises(DataError, match='60'): shadow_dls(root, shadow_recipe('tiny', dataset_type='custom'))

def test_presets_describe_networks():
    for preset in ('demo', 'tiny', 'small', 'latent'):
        r = load_recipe('shadow', preset)
        assert r.flow.at_one>=.25 and plan_training(r).steps==r.training.max_iterations
    r = load_recipe('shadow', 'sdxl')
    plan = plan_training(r)
    assert (r.training.lr, plan.steps, plan.warmup, r.training.schedule, r.data.image_size)==(1e-5, 150_000, 1000, 'constant', 1024)

def test_evaluation_needs_no_order(renders, tmp_path):
    learn = trained(renders, tmp_path/'run')
    tar = shadow_tracks(tmp_path/'t.tar', (3, 1, 1), size=16, samples=3, progress=False)
    table = evaluate_shadow(learn, tar, (1, 2), (0, 1), progress=False)
    again = evaluate_shadow(learn, tar, (2, 1), (1, 0), tracks=('direction_control_vert',), progress=False)
    row = 'direction_control_vert', '2 steps'
    assert table.loc[row, ('iou', 'mean')]==pytest.approx(again.loc[row, ('iou', 'mean')], abs=1e-6)
    assert {m for _, m in table.index}=={'zero', 'mean shadow', 'φ + 20°', '1 step', '2 steps'}
    assert [m for t, m in table.index if t=='direction_control_horz'][2]=='φ + 20°' # the tar itself goes in steps of 20°

def test_the_tool_goes_on(tmp_path, monkeypatch):
    import runpy
    args = ['--preset', 'tiny', '--folder', tmp_path/'f', '--out', tmp_path/'w.safetensors', '--objects', 2, 1, 1, '--steps', 1, '--seeds', 1]
    monkeypatch.setattr(sys, 'argv', ['shadow_weights.py', *map(str, args)])
    for _ in range(2): runpy.run_path(str(REPO/'tools'/'shadow_weights.py'), run_name='__main__')
    from clearsight_nb.shadow.models import net_facts
    facts = net_facts(tmp_path/'w.safetensors')[1]
    assert facts['steps']==12 and facts['recipe']=='tiny' and {*facts['figures']}=={'softness_control', 'direction_control_horz', 'direction_control_vert'}
    assert draw_shadows(load_shadow(tmp_path/'w.safetensors'), torch.rand(1, 7, 16, 16)).shape==(1, 1, 16, 16)
