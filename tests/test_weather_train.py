"Weather training: published checkpoints at all the moments that matter, and nothing begun from a file that is not what it should be."
import os, pickle, signal
import pytest, torch
from fastai.callback.core import Callback
from clearsight_nb.core.files import DataError
from clearsight_nb.core.recipe import load_recipe
from clearsight_nb.core.training import fit_recipe
from clearsight_nb.weather.checkpoint import load_weatherdiff
from clearsight_nb.weather.dls import weather_dls
from clearsight_nb.weather.sample import weather_sample
from clearsight_nb.weather.train import weather_learner

TINY = ['model.patch=16', 'model.ch=32', 'model.ch_mult=[1,1]', 'model.num_res_blocks=1', 'model.attn_resolutions=[]', 'training.batch_size=2', 'data.patch_n=2',
    'training.workers=0', 'training.ema_decay=0.9', 'training.epochs=100']

@pytest.fixture(scope='module')
def data(tmp_path_factory): return weather_sample(tmp_path_factory.mktemp('w')/'data', n=8, n_valid=2, size=32, kinds=('rain','snow'), progress=False)

def learner(data, folder, *more, cbs=(), preset='new_allweather'):
    recipe = load_recipe('weather', preset, overrides=[*TINY, *more])
    learn = weather_learner(weather_dls(data, recipe, progress=False), recipe, folder, cbs=cbs)
    learn.remove_cb(learn.progress)
    return learn

class At(Callback):
    "Calls `f` behind optimizer step `n`, which the checkpointer has not counted yet"
    def __init__(self, n, f): self.n,self.f = n,f
    def after_step(self):
        if self.learn.checkpointer.made==self.n-1: self.f()

def published(folder): return load_weatherdiff(folder/'ckpts'/'NewAllWeather_ddpm.pth.tar', weights='raw', optimizer=True)

def test_step_1_and_the_end(data, tmp_path):
    seen = []
    learn = learner(data, tmp_path, 'training.steps=6', 'training.checkpoint_minutes=null', 'training.checkpoint_steps=null',
        cbs=[At(2, lambda: seen.append(published(tmp_path).step))])
    fit_recipe(learn)
    assert seen==[1] and published(tmp_path).step==6

def test_by_steps_and_by_minutes(data, tmp_path):
    for more,want in (('training.checkpoint_steps=2', 2), ('training.checkpoint_minutes=0', 3)): # the epoch's last step, 4, comes after
        seen = []
        learn = learner(data, tmp_path/str(want), 'training.steps=4', 'training.checkpoint_minutes=null', 'training.checkpoint_steps=null', more,
            cbs=[At(4, lambda: seen.append(published(tmp_path/str(want)).step))])
        fit_recipe(learn)
        assert seen==[want]

def test_interruption_then_on_to_the_same_weights(data, tmp_path):
    "Ctrl-C leaves both checkpoints; the resumed run ends as one that was never interrupted, in the published form too"
    learn = learner(data, tmp_path/'a', 'training.steps=10', cbs=[At(7, lambda: os.kill(os.getpid(), signal.SIGINT))])
    with pytest.raises(KeyboardInterrupt): fit_recipe(learn)
    assert published(tmp_path/'a').step==7
    for folder in ('a', 'b'): fit_recipe(learner(data, tmp_path/folder, 'training.steps=10'))
    a,b = (published(tmp_path/f) for f in 'ab')
    assert a.step==b.step==10
    for k,v in a.unet.state_dict().items(): assert torch.equal(v, b.unet.state_dict()[k]) and torch.equal(a.ema[k], b.ema[k])
    for i,s in a.optimizer['state'].items(): assert all(torch.equal(s[k], b.optimizer['state'][i][k]) for k in s)

def test_no_published_form_for_other_predictions(data, tmp_path):
    fit_recipe(learner(data, tmp_path, 'training.steps=2', 'diffusion.predicts=v'))
    assert not (tmp_path/'ckpts').exists() and (tmp_path/'weights.safetensors').exists()

def test_target_patches(data, tmp_path, capsys):
    learn = learner(data, tmp_path, 'training.steps=2', 'data.target_patches=16')
    assert learn.recipe.training.accumulate==4 and learn.accumulate.n==4
    assert '2 photographs × 2 patches × 4 batches = 16 patches of 16×16' in capsys.readouterr().out

def test_without_validation(data, tmp_path, capsys):
    "Training goes on without validation pairs, and says so"
    import shutil
    shutil.copytree(data/'allweather', tmp_path/'d'/'allweather')
    learn = learner(tmp_path/'d', tmp_path/'run', 'training.steps=5')
    assert 'without validation' in capsys.readouterr().out
    fit_recipe(learn)
    assert published(tmp_path/'run').step==5 and (tmp_path/'run'/'weights.safetensors').exists()

class Bomb:
    def __reduce__(self): return os.system, ('touch executed',)

def test_start_from_a_wrong_file(data, tmp_path, monkeypatch):
    "A pickle that would run a command is refused and runs nothing; another network's file names what differs"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'bomb.pth.tar').write_bytes(pickle.dumps(Bomb()))
    torch.save(dict(state_dict=Bomb()), tmp_path/'bomb2.pth.tar')
    for name in ('bomb.pth.tar', 'bomb2.pth.tar', 'nothing.pth.tar'):
        with pytest.raises(DataError, match=name): learner(data, tmp_path/'run', f'model.start={tmp_path/name}')
    assert not (tmp_path/'executed').exists()
    fit_recipe(learner(data, tmp_path/'a', 'training.steps=1'))
    with pytest.raises(DataError, match='NewAllWeather_ddpm.pth.tar'):
        learner(data, tmp_path/'b', f"model.start={tmp_path/'a'/'ckpts'/'NewAllWeather_ddpm.pth.tar'}", 'model.ch=64')
