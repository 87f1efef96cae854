"Derain networks, training and sampling: sizes, resumption, refusals, tiles, folders."
import os, signal
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from PIL import Image
from clearsight_nb.core.files import DataError
from clearsight_nb.core.recipe import RecipeError, list_presets, load_recipe
from clearsight_nb.core.training import fit_recipe, read_weights, save_weights
from clearsight_nb.derain.derain import DERAIN_PRESETS, DerainPreset, Derainer, derain, derain_batch, load_derainer
from clearsight_nb.derain.dls import derain_dls
from clearsight_nb.derain.evaluate import evaluate_derain, mean_scores
from clearsight_nb.derain.fourier import Codec
from clearsight_nb.derain.model import derain_net
from clearsight_nb.derain.recipe import check_choices
from clearsight_nb.derain.sample import derain_sample
from clearsight_nb.derain.train import derain_learner

TINY = ['model.ch=8', 'model.ch_mult=[1,2]', 'model.fold=1', 'diffusion.rings=6', 'data.patch=16', 'data.patch_n=2', 'data.repeat=1', 'training.batch_size=2', 'training.workers=0',
    'training.ema_decay=0.9', 'training.epochs=100', 'training.precision=float32', 'training.checkpoint_minutes=null']

@pytest.fixture(scope='module')
def data(tmp_path_factory): return derain_sample(tmp_path_factory.mktemp('r')/'data', n=3, n_valid=1, size=32, levels=('medium',), variants=2, progress=False)

def recipe_of(*more, preset='demo'): return load_recipe('derain', preset, overrides=[*TINY, *more])

def learner(data, folder, *more, cbs=(), preset='demo'):
    recipe = recipe_of(*more, preset=preset)
    learn = derain_learner(derain_dls(data, recipe), recipe, folder, cbs=cbs)
    learn.remove_cb(learn.progress)
    return learn

class At(Callback):
    "Calls `f` behind optimizer step `n`, which the checkpointer has not counted yet"
    def __init__(self, n, f): self.n,self.f = n,f
    def after_step(self):
        if self.learn.checkpointer.made==self.n-1: self.f()

def untrained(*more, seed=0, wake=True):
    "A derainer with random weights in all layers"
    recipe = recipe_of(*more)
    g = torch.Generator().manual_seed(seed)
    clean = torch.rand(8, 3, 32, 32, generator=g)
    codec = Codec(recipe.diffusion.representation, recipe.diffusion.rings).fit([(clean, (clean+.1*torch.rand(8, 1, 32, 32, generator=g)).clamp(0, 1))])
    model = derain_net(recipe, codec)
    if wake: torch.nn.init.normal_(model.unet.conv_out.weight, std=.02, generator=g)
    return Derainer(model, recipe, 'untrained')

def test_presets():
    assert sorted(list_presets('derain'))==['base', 'demo', 'magphase', 'rain100h', 'spatial']
    for n in list_presets('derain'): check_choices(load_recipe('derain', n))

@pytest.mark.parametrize('net', ['image', 'spectrum'])
@pytest.mark.parametrize('kind', ['complex', 'magphase', 'magnitude', 'spatial'])
def test_trains_and_derains(data, tmp_path, net, kind):
    "Every representation and network: two steps, a file, a picture of odd size from it"
    learn = learner(data, tmp_path, f'model.net={net}', f'diffusion.representation={kind}', 'training.steps=2')
    with learn.no_logging(): fit_recipe(learn)
    assert all(p.isfinite().all() for p in learn.model.parameters())
    y = derain(np.random.default_rng(0).random((17, 33, 3), dtype=np.float32), tmp_path, preset=DerainPreset('ddim', 3))
    assert y.shape==(17, 33, 3) and np.isfinite(y).all() and y.min()>=0 and y.max()<=1

@pytest.mark.parametrize('more', [('diffusion.predicts=v',), ('diffusion.predicts=v', 'diffusion.representation=spatial'), ('diffusion.predicts=v', 'diffusion.representation=magphase', 'model.net=spectrum', 'diffusion.loss=state'),
    ('diffusion.condition_dropout=0.5',), ('diffusion.regression=true',), ('diffusion.weighting=min_snr',), ('model.attention=true',), ('model.fold=2',)])
def test_options_train(data, tmp_path, more):
    learn = learner(data, tmp_path, *more, 'training.steps=2')
    with learn.no_logging(): fit_recipe(learn)
    x = torch.rand(1, 3, 20, 21)
    assert derain_batch(load_derainer(tmp_path), x, DerainPreset('ddim', 2), guidance=1.5 if 'diffusion.condition_dropout=0.5' in more else 1).isfinite().all()

def test_v_and_x0_say_the_same():
    "A network that knows the truth gives the truth, whatever it is asked for and whichever the sampler"
    from clearsight_nb.core.diffusion import VP, Denoiser
    from clearsight_nb.core.sampling import SAMPLERS, spaced
    clean,rain = torch.rand(2, 3, 15, 18),torch.rand(2, 3, 15, 18)
    codec,p = Codec('complex', 4).fit([(clean, rain)]),VP('cosine')
    x0 = codec.encode(clean, rain)
    for kind in ('x0', 'v'):
        a,s = (lambda n, f: f(n.double()).reshape(-1,1,1,1).float()),None
        net = (lambda x, n, c: x0) if kind=='x0' else (lambda x, n, c: (a(n, p.alpha)*x - x0)/a(n, p.sigma))
        x = SAMPLERS['ddim'](Denoiser(net, p, kind), codec.noise(clean.shape, torch.Generator().manual_seed(0)), spaced(p, 4, 'trailing'), cond=rain)
        assert (codec.decode(x, rain)-clean).abs().max() < 1e-3

def test_interruption_then_on_to_the_same_weights(data, tmp_path):
    learn = learner(data, tmp_path/'a', 'training.steps=8', cbs=[At(5, lambda: os.kill(os.getpid(), signal.SIGINT))])
    with pytest.raises(KeyboardInterrupt), learn.no_logging(): fit_recipe(learn)
    for f in 'ab':
        learn = learner(data, tmp_path/f, 'training.steps=8')
        with learn.no_logging(): fit_recipe(learn)
    a,b = (read_weights(tmp_path/f)[0] for f in 'ab')
    assert a.keys()==b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())
    assert {'codec.label', 'codec.mean', 'codec.std', 'codec.edges'} <= a.keys()

def test_the_codec_sees_training_pairs_only(data, tmp_path):
    a = learner(data, tmp_path, 'data.fit_pairs=2').model.codec
    dls = derain_dls(data, recipe_of())
    assert a.count==4 and len(dls.valid.dataset)==2
    ids = {p.id for p in dls.train.dataset.pairs} & {p.id for p in dls.valid.dataset.pairs}
    assert not ids

def test_other_statistics_are_refused(data, tmp_path):
    learn = learner(data, tmp_path, 'training.steps=1')
    with learn.no_logging(): fit_recipe(learn)
    other = learner(data, tmp_path, 'training.steps=1', 'diffusion.representation=magphase')
    with pytest.raises(RecipeError, match='diffusion.representation'): fit_recipe(other)
    with pytest.raises(DataError, match="representation 'complex'"): fit_recipe(other, changed=True)
    wrong = recipe_of('diffusion.representation=spatial')
    save_weights(tmp_path/'wrong.safetensors', read_weights(tmp_path)[0], wrong)
    with pytest.raises(DataError, match="wrong.safetensors.*representation 'complex'"): load_derainer(tmp_path/'wrong.safetensors')
    small = recipe_of('model.ch=16')
    save_weights(tmp_path/'small.safetensors', read_weights(tmp_path)[0], small)
    with pytest.raises(DataError, match='does not fit'): load_derainer(tmp_path/'small.safetensors')
    with pytest.raises(DataError, match='does not exist'): load_derainer(tmp_path/'none')

@pytest.mark.parametrize('bad', [('model.ch=12',), ('diffusion.predicts=v', 'diffusion.representation=magphase'), ('diffusion.condition_dropout=0.1', 'diffusion.representation=magnitude'),
    ('diffusion.regression=true', 'diffusion.predicts=v'), ('data.patch=8', 'model.ch_mult=[1,1,1,1,1]')])
def test_settings_that_do_not_go_together(bad):
    with pytest.raises(ValueError, match="In the recipe 'demo'"): check_choices(recipe_of(*bad))

@pytest.mark.parametrize('preset', list(DERAIN_PRESETS))
def test_samplers(preset):
    d,x = untrained(),torch.rand(2, 3, 16, 18)
    p = DERAIN_PRESETS[preset]
    p = DerainPreset(p.sampler, min(p.steps, 10), p.spacing, p.eta)
    a,b = (derain_batch(d, x, p, seed=[1, 2]) for _ in range(2))
    assert torch.equal(a, b) and a.isfinite().all()
    if not p.eta: assert torch.allclose(a[1:], derain_batch(d, x[1:], p, seed=[2]), atol=1e-4)

@pytest.mark.parametrize('net', ['image', 'spectrum'])
def test_tiles(net):
    d,x = untrained(f'model.net={net}'),torch.rand(1, 3, 70, 64)
    p = DerainPreset('ddim', 2)
    whole = derain_batch(d, x, p, tile=96)
    assert torch.equal(whole, derain_batch(d, x, p, tile=128))
    tiled = derain_batch(d, x, p, tile=32)
    assert tiled.shape==x.shape and tiled.isfinite().all()

@pytest.mark.parametrize('size', [(200, 64), (64, 203)])
def test_tiles_have_no_seams(size):
    "Where tiles overlap as far as the network looks, they give what the whole gives"
    d,x = untrained(),torch.rand(1, 3, *size)
    p = DerainPreset('ddim', 3)
    assert (derain_batch(d, x, p, tile=160)-derain_batch(d, x, p, tile=256)).abs().max() < 1e-4

def test_a_pixel_depends_on_its_surroundings_only():
    "What is far away does not change the network's answer, so patches, tiles and photographs are the same to it"
    d,x,g = untrained(),torch.rand(1, 3, 192, 192),torch.Generator().manual_seed(0)
    z = torch.rand(1, 3, 192, 192, generator=g)
    z[...,:96,:96] = x[...,:96,:96]
    a,b = (d.model.unet(torch.cat([o, o], 1), torch.tensor([500.])).sample for o in (x, z))
    assert (a-b)[...,:16,:16].abs().max() < 1e-5 and (a-b)[...,120:,120:].abs().max() > 1e-3

def test_an_untrained_network_changes_nothing():
    d,x = untrained(wake=False),torch.rand(1, 3, 30, 41)
    assert torch.allclose(derain_batch(d, x, DerainPreset('ddim', 3)), x, atol=1e-4)

def test_folders(tmp_path):
    d,rng = untrained(),np.random.default_rng(0)
    for n in ('a.png', 'a.jpg', 'sub/b.png'):
        (to := tmp_path/'in'/n).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(to)
    Image.fromarray(rng.integers(0, 255, (9, 12), dtype=np.uint8)).save(tmp_path/'in'/'grey.png')
    p = DerainPreset('ddim', 1)
    files = derain(tmp_path/'in', d, tmp_path/'out', p, progress=False)
    assert sorted(f.relative_to(tmp_path/'out').as_posix() for f in files)==['a.jpg.png', 'a.png.png', 'grey.png', 'sub/b.png']
    files[0].unlink()
    old = {f: f.stat().st_mtime_ns for f in files[1:]}
    derain(tmp_path/'in', d, tmp_path/'out', p, progress=False)
    assert files[0].exists() and all(f.stat().st_mtime_ns==t for f,t in old.items())
    with pytest.raises(ValueError, match='holds the inputs'): derain(tmp_path/'in', d, tmp_path/'in', p)
    with pytest.raises(ValueError, match='give `out`'): derain(tmp_path/'in', d, preset=p)
    (tmp_path/'in'/'z.png').write_bytes(b'no picture')
    with pytest.raises(DataError, match='z.png'): derain(tmp_path/'in', d, tmp_path/'new', p, progress=False)
    assert not (tmp_path/'new').exists()

@pytest.mark.parametrize('bad', [np.zeros((4, 4)), np.full((4, 4, 3), 2.), torch.zeros(4, 4, 3), np.zeros((4, 4, 4))])
def test_bad_pictures(bad):
    with pytest.raises(ValueError): derain(bad, untrained())

def test_evaluation(data):
    d = untrained(wake=False)
    mean = mean_scores(evaluate_derain(d, data, preset=DerainPreset('ddim', 1), progress=False))
    assert abs(mean.gain['derained']) < .05 and mean.gain['rainy input']==0
    assert len(mean)==6
    with pytest.raises(DataError, match='are none'): evaluate_derain(d, [])
