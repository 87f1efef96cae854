"Phase A leads to Phase B: each pair of presets runs from HKH patches to a fine-tuned network, in small."
import pytest
from clearsight_nb.glacier import (GlacierLoss, Predictor, fit_recipe, glacier_dls, glacier_learner, glacier_sample, hkh_dls, hkh_learner, hkh_sample,
                                   load_recipe, prepare_hkh)
SMALL = ['model.encoder=resnet18', 'data.crop=32', 'data.crops_per_tile=2', 'training.batch_size=2', 'training.accumulate=1', 'training.steps=3', 'training.workers=0']

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('presets')
    return prepare_hkh(hkh_sample(tmp/'hkh', patches=24, size=64), tmp/'store', size=64, progress=False), glacier_sample(tmp/'scene', tiles=10, size=64)

@pytest.mark.parametrize('where', ['', '_kaggle'])
def test_phase_a_to_phase_b(data, where, tmp_path, capsys):
    patches,scene = data
    a = load_recipe('glacier', f'hkh_pretrain{where}', overrides=SMALL)
    fit_recipe(hkh_learner(hkh_dls(patches, a), a, run_dir=tmp_path/'a'))
    b = load_recipe('glacier', f'competition_finetune{where}', overrides=[*SMALL, f'model.start={tmp_path/"a"}'])
    learn = glacier_learner(glacier_dls(scene, b, cache=tmp_path/'cache'), b, run_dir=tmp_path/'b')
    assert '100.0% of the parameters' in capsys.readouterr().out
    assert isinstance(learn.loss_func, GlacierLoss) and {'ramp_weights', 'ema'} <= set(vars(learn))
    fit_recipe(learn)
    x = learn.dls.store.crop(0)
    assert Predictor.of(tmp_path/'b').probs(x).shape == (4, *x.shape[1:])

def test_frozen_encoder_stays(data, tmp_path):
    r = load_recipe('glacier', 'demo', overrides=[*SMALL, 'model.freeze_encoder=true'])
    learn = glacier_learner(glacier_dls(data[1], r, cache=tmp_path/'cache'), r, run_dir=tmp_path/'run')
    before = {k: v.clone() for k,v in learn.model.state_dict().items()}
    fit_recipe(learn)
    moved = {k.split('.')[0] for k,v in learn.model.state_dict().items() if not v.equal(before[k])}
    assert moved == {'decoder', 'segmentation_head'}
