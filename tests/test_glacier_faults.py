"Faults of an earlier implementation of this task (../shared/specs/glacier.md §2.6, by their numbers there) that must not come back. Most are shown on the pages, too."
import re
import numpy as np, pytest, torch
from conftest import ROOT
from torch import nn
from clearsight_nb.core.files import IGNORE
from clearsight_nb.glacier import (CLASS_NAMES, BandNorm, GlacierLoss, Predictor, TTA, clean_mask, glacier_dls, glacier_learner, glacier_sample,
                                   load_recipe, make_network, run_steps, transfer_weights)

@pytest.fixture(scope='module')
def data(tmp_path_factory): return glacier_sample(tmp_path_factory.mktemp('faults'), tiles=9, size=64, seed=0)

def small(*more):
    return load_recipe('glacier', 'demo', overrides=['data.crop=32', 'data.folds=3', 'data.crops_per_tile=2', 'training.batch_size=4', 'training.workers=0', *more])

def logits_for(y, scale, classes=4): return (nn.functional.one_hot(y, classes).permute(0, 3, 1, 2).float()*2 - 1)*scale

@pytest.fixture
def truth():
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 2, (2, 24, 24), generator=g) # two of four classes

def test_1_sources_are_in_git():
    ignored = (ROOT/'.gitignore').read_text().split()
    assert not {'data/', 'data', 'src/data'} & set(ignored)

def test_2_loss_needs_no_move_to_a_device():
    "No buffer or parameter that could stay behind on another device."
    loss = GlacierLoss('phase_b')
    assert not list(loss.buffers()) and not list(loss.parameters())
    meta = torch.device('meta')
    assert loss(torch.zeros(1, 4, 8, 8, device='cpu'), torch.zeros(1, 8, 8, dtype=torch.long)).device.type == 'cpu' and meta.type == 'meta'

@pytest.mark.parametrize('scale', [10., 17., 18., 50., 1e4])
def test_4_6_saturated_pixels(truth, scale):
    "Perfect and saturated: the gradient is finite, and the R_K term small rather than 1; wrong and saturated: finite as well."
    for sign in (1, -1):
        x = (sign*logits_for(truth, scale)).requires_grad_()
        loss = GlacierLoss('phase_b')
        loss(x, truth).backward()
        assert x.grad.isfinite().all()
        if sign == 1: assert loss.components['mcc'] < 1e-3

def test_5_zero_weights_are_not_evaluated(truth):
    loss = GlacierLoss('phase_a')
    def trap(px): raise AssertionError('evaluated')
    loss.terms['mcc'] = loss.terms['boundary'] = trap
    assert loss(torch.randn(2, 4, 24, 24), truth).isfinite()

def test_7_absent_classes_leave_no_floor(truth):
    loss = GlacierLoss(weights=dict(focal=0., dice=.5, mcc=.5))
    assert loss(logits_for(truth, 1e4), truth) < 1e-3

def test_8_one_batch_an_epoch_with_accumulation_makes_steps():
    from clearsight_nb.core.recipe import TrainingRecipe
    assert run_steps(TrainingRecipe(epochs=150, accumulate=2), 1)[0] == 150

@pytest.mark.parametrize('varied', [True, False])
def test_10_training_is_augmented_and_validation_is_not(data, tmp_path, varied):
    "Each has its own pipeline; nothing that one is told changes the other."
    more = [] if varied else ['data.d4=false', 'data.gain=0', 'data.offset=0']
    dls = glacier_dls(data, small(*more), cache=tmp_path)
    twice = lambda dl: [next(iter(dl))[0] for _ in range(2)]
    assert torch.equal(*twice(dls.valid))
    assert torch.equal(*twice(dls.train.new(shuffle=False))) is not varied

def test_11_module_prefix_loads_everything(tmp_path):
    net = make_network('unet', 'resnet18', None, 5, 4)
    torch.save({f'module.{k}': v for k,v in net.state_dict().items()}, tmp_path/'wrapped.pth')
    other = make_network('unet', 'resnet18', None, 5, 4)
    assert transfer_weights(other, tmp_path/'wrapped.pth').share == 1
    assert all(torch.equal(v, net.state_dict()[k]) for k,v in other.state_dict().items())

def test_15_tiles_of_a_scene_are_split_by_place(tmp_path):
    from clearsight_nb.glacier import BandStack, fold_contact, make_folds
    stack = BandStack(glacier_sample(tmp_path, tiles=25, size=32, seed=0, naming='grid'))
    contact = lambda how: np.mean([fold_contact([f], stack.grid) for f in make_folds(stack, 5, how=how, buffer=int(how == 'spatial'))])
    assert contact('spatial') == 0 < contact('order')

def test_17_thermal_is_not_taken_for_swir():
    from clearsight_nb.glacier import hkh_bands
    assert list(hkh_bands((0, 1, 2, 4, 5)))[3] == 'swir1'

def test_20_21_every_view_is_turned_back():
    "A network that treats all directions alike gives the same with all eight views; probabilities are averaged."
    class Alike(nn.Module):
        def forward(self, x): return torch.stack([x[:, 0], x[:, 1] + x[:, 2], x[:, 3], x[:, 4]], 1)
    p = Predictor(Alike(), BandNorm('zscore', list('abcde'), [0.]*5, [1.]*5), list('abcde'), CLASS_NAMES)
    p.model.p = nn.Parameter(torch.zeros(1))
    x = np.random.default_rng(0).normal(size=(5, 16, 24)).astype(np.float32)
    np.testing.assert_allclose(TTA(p, tuple(range(8))).probs(x), p.probs(x), atol=1e-6)

def test_22_small_components_really_go_and_lakes_stay():
    m = np.ones((40, 40), np.uint8)
    m[5:8, 5:8],m[20:24, 20:24] = 2,3 # nine pixels of debris, sixteen of lake
    out = clean_mask(m)
    assert (out[5:8, 5:8] == 1).all() and (out[20:24, 20:24] == 3).all()

def test_24_scores_below_zero_have_a_best(data, tmp_path):
    from clearsight_nb.glacier import fit_recipe
    learn = glacier_learner(glacier_dls(data, small('training.steps=2', 'training.lr=1e-9'), cache=tmp_path/'c'), small('training.steps=2', 'training.lr=1e-9'), run_dir=tmp_path/'r')
    fit_recipe(learn)
    assert (tmp_path/'r/checkpoints/best.pt').exists() and (tmp_path/'r/weights.safetensors').exists()

def test_25_ignored_pixels_count_nowhere(truth):
    y = truth.clone()
    y[:, :8] = IGNORE
    a = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(1))
    b = a.clone()
    b[:, :, :8] = 50*torch.randn(2, 4, 8, 24, generator=torch.Generator().manual_seed(2))
    loss = GlacierLoss('phase_b')
    torch.testing.assert_close(loss(a, y), loss(b, y))

def test_26_attention_is_there_or_refused():
    count = lambda att: sum(p.numel() for p in make_network('unet', 'resnet18', att, 5, 4).parameters())
    assert count('scse') > count('cse') > count(None)
    with pytest.raises(ValueError, match='attention'): make_network('fpn', 'resnet18', 'scse', 5, 4)

def test_28_nothing_is_unpickled():
    for path in (ROOT/'clearsight_nb/glacier').glob('*.py'):
        assert not re.search(r'torch\.load\((?![^\n]*weights_only=True)', path.read_text(encoding='utf-8')), path
