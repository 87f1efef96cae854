"Diffusion core: the training loss against its optimum and against published formulas, and runs through `fit_recipe`."
from dataclasses import dataclass, field
import numpy as np, pytest, torch
from fastai.basics import Callback, DataLoaders, TfmdDL
from torch import nn
from clearsight_nb.core.diffusion import EDM, VP, Denoiser, Flow, concat_cond, convert
from clearsight_nb.core.objectives import DiffusionObjective, WeightedMSE, level_weight
from clearsight_nb.core.recipe import TrainingRecipe, load_recipe, register_recipe
from clearsight_nb.core.training import fit_recipe, recipe_learner

M,S = .2,.6 # mean and deviation of clean values
CASES = [(p, k) for p in (VP(), VP('cosine'), EDM(), Flow()) for k in p.predictions]
ids = [f'{p!r} {k}' for p,k in CASES]

def ideal(process, kind, x, level):
    "Expectation of the target for values from N(M, S²), by regression: slope = cov(target, x)/var(x), with a and s of x = a·x0 + s·noise"
    a,s = process.alpha(level),process.sigma(level)
    d = process.sigma_data or 1.
    c = d/(s*(s**2 + d**2)**.5) # edm: F = (x0 - skip·x)/out
    p,q = dict(epsilon=(0*a, 1+0*a), x0=(1+0*a, 0*a), v=(-s, a), velocity=(-1+0*a, 1+0*a))[kind] if kind!='edm' else ((s/d)/(s**2+d**2)**.5, -s*c)
    slope = (p*a*S**2 + q*s)/(a**2*S**2 + s**2)
    col = lambda o: o.reshape(-1, 1, 1, 1)
    return col(p*M) + col(slope)*(x - col(a*M))

@pytest.mark.parametrize('case', CASES, ids=ids)
def test_the_loss_has_its_minimum_at_the_ideal_denoiser(case):
    "At five levels: no gradient within five standard errors in any direction, and more loss at both sides"
    process,kind = case
    g = torch.Generator().manual_seed(3)
    o,n = DiffusionObjective(process, kind),20000
    for share in (.1, .3, .5, .7, .9):
        level = process.level_at(torch.full((n,), share, dtype=torch.float64))
        clean,noise = M + S*torch.randn(n, 1, 2, 2, generator=g, dtype=torch.float64),torch.randn(n, 1, 2, 2, generator=g, dtype=torch.float64)
        (x_in,number),(target,weight) = o.batch(clean, level, noise)
        x = x_in*(level**2 + process.sigma_data**2).sqrt().reshape(-1, 1, 1, 1) if isinstance(process, EDM) else x_in
        best = ideal(process, kind, x, level)
        z = (x-x.mean())/x.std()
        for direction in (torch.ones_like(x), z, z**2-1, z**3):
            grads = (2*(best-target)*direction).flatten(1).mean(1) # of each item, along this direction
            assert abs(grads.mean()) < 5*grads.std()/n**.5 + 1e-12, (share, float(grads.mean()))
        loss = o.loss_func(best, target, weight)
        for shift in (-.2, .2): assert o.loss_func(best + shift, target, weight) > loss
        estimate = Denoiser(lambda x_in, number: best, process, kind)(x, level)
        a,s = process.alpha(level[:1]),process.sigma(level[:1])
        assert torch.allclose(estimate, M + a*S**2/(a**2*S**2 + s**2)*(x - a*M), atol=1e-6, rtol=0)

@pytest.mark.parametrize('case', CASES, ids=ids)
def test_conversions_come_back(case):
    "From every prediction to this one and back, at many levels, float64"
    process,new = case
    level = process.level_at(torch.linspace(.005, .995, 64, dtype=torch.float64))
    clean,noise = torch.randn(2, 64, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = process.mix(clean, noise, level)
    for old in process.predictions:
        out = process.target(clean, noise, level, old)
        there = convert(out, x, level, process, old, new)
        assert torch.allclose(there, process.target(clean, noise, level, new), atol=1e-6, rtol=0)
        assert torch.allclose(convert(there, x, level, process, new, old), out, atol=1e-6, rtol=0)

def test_published_loss():
    "WeatherDiffusion's loss, written out: the sum over values of (noise - answer)², mean over the batch"
    torch.manual_seed(0)
    betas = torch.from_numpy(np.linspace(1e-4, .02, 1000)).float()
    net = nn.Conv2d(6, 3, 3, padding=1)
    cond,clean,noise = torch.randn(3, 4, 3, 8, 8)
    t = torch.tensor([0, 17, 500, 999])
    a = (1-betas).cumprod(0).index_select(0, t).view(-1, 1, 1, 1)
    theirs = (noise - net(torch.cat([cond, clean*a.sqrt() + noise*(1-a).sqrt()], 1))).square().sum(dim=(1, 2, 3)).mean(dim=0)
    o = DiffusionObjective(VP(), 'epsilon', reduction='sum')
    xb,yb = o.batch(clean, t.float(), noise, cond)
    ours = o.loss_func(concat_cond(lambda x, t: net(x))(*xb), *yb)
    assert torch.allclose(ours, theirs, rtol=1e-5)

def test_diffusers_agrees():
    "The velocity of DDPMScheduler, its clean estimates for three predictions, and EDM's preconditioning"
    from diffusers import DDPMScheduler, EDMEulerScheduler
    clean,noise = torch.randn(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for ours,kwargs in ((VP(), dict(beta_schedule='linear')), (VP('cosine'), dict(beta_schedule='squaredcos_cap_v2'))):
        t = torch.tensor([3, 400, 900])
        theirs = DDPMScheduler(1000, **kwargs)
        assert torch.allclose(ours.target(clean, noise, t, 'v'), theirs.get_velocity(clean, noise, t), atol=1e-5)
        for kind,name in dict(epsilon='epsilon', v='v_prediction', x0='sample').items():
            step = DDPMScheduler(1000, **kwargs, prediction_type=name, clip_sample=False)
            for x,out,i in zip(ours.mix(clean, noise, t), ours.target(clean, noise, t, kind), t):
                assert torch.allclose(step.step(out, int(i), x).pred_original_sample, ours.estimate(x, out, float(i), kind), atol=2e-4)
    edm,theirs = EDM(),EDMEulerScheduler(sigma_data=.5, prediction_type='epsilon')
    for s in (.01, .5, 30.):
        s = torch.tensor(s, dtype=torch.float64)
        x,out = clean.double(),noise.double()
        assert torch.allclose(edm.scale_in(s)*x, theirs.precondition_inputs(x, s))
        assert torch.allclose(edm.estimate(x, out, s, 'edm'), theirs.precondition_outputs(x, out, s))
        assert torch.allclose(edm.embed(s), theirs.precondition_noise(s).double())

@pytest.mark.parametrize('n', [1, 2, 3, 8])
def test_antithetic_levels(n):
    "Any number of steps; the second half mirrors the first"
    t = VP().sample_levels(n, torch.Generator().manual_seed(0))
    k = n//2+1
    assert t.shape==(n,) and t.dtype==torch.float32
    assert torch.equal(t[k:], 999-t[:n-k])

def test_levels_between_steps():
    "Interpolation is continuous and monotone down to the clean level, and inverts"
    vp = VP()
    level = torch.linspace(-1, 999, 5001, dtype=torch.float64)
    ratio = vp.sigma(level)/vp.alpha(level)
    assert (ratio.diff() > 0).all() and ratio[0]==0
    assert torch.allclose(vp.noise_to_level(ratio), level, atol=1e-6)
    assert torch.allclose(vp.alpha(level)**2 + vp.sigma(level)**2, torch.ones(5001).double(), atol=1e-12)
    assert torch.allclose(vp.alpha(torch.arange(1000))**2, vp.alphas_cumprod, rtol=1e-6)
    assert float(Flow().noise_to_level(float('inf')))==1
    weights = level_weight(vp, 'epsilon', torch.arange(1000.), 'min_snr')
    assert (weights <= 1+1e-9).all() and (weights > 0).all() # min-SNR only takes away

def test_nan_is_not_hidden():
    "A loss with NaN in it is NaN, for the guard to see"
    assert WeightedMSE()(torch.tensor([[float('nan')]]), torch.zeros(1, 1), torch.ones(1)).isnan()

@register_recipe('diffusion_test')
@dataclass
class TinyRecipe:
    "Recipe of the following tests"
    task:str = 'diffusion_test'
    name:str = 'run'
    training:TrainingRecipe = field(default_factory=lambda: TrainingRecipe(
        epochs=3, batch_size=4, accumulate=2, ema_decay=.9, precision='bf16', checkpoint_steps=1, lr=3e-3))

class Net(nn.Module):
    "Condition and picture through two convolutions, with dropout"
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(7, 8, 3, padding=1), nn.SiLU(), nn.Dropout(.1), nn.Conv2d(8, 3, 3, padding=1))
    def forward(self, x, number, cond):
        t = (number/1000)[:,None,None,None].expand(-1, 1, *x.shape[2:])
        return self.layers(torch.cat([cond, x, t], 1))

class Stop(Callback):
    "Ends the run in the middle, as a kill would"
    def __init__(self, at): self.at = at
    def before_batch(self):
        if self.learn.training and self.learn.train_iter==self.at: raise RuntimeError('killed')

def learner(folder, *cbs):
    torch.manual_seed(0)
    pairs = torch.rand(2, 12, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) # two crops of each picture
    train,valid = (TfmdDL(torch.utils.data.TensorDataset(*pairs), bs=4, shuffle=s, num_workers=0) for s in (True, False))
    o = DiffusionObjective(VP('cosine'), 'v', 'min_snr')
    recipe = load_recipe('diffusion_test', None)
    return recipe_learner(DataLoaders(train, valid, device='cpu'), Net(), o.loss_func, [], recipe, cbs=[o, *cbs], run_dir=folder)

@pytest.mark.parametrize('at', [1, 4, 7])
def test_resume_is_exact(tmp_path, at):
    "EMA, accumulation, guard and bfloat16 together; a run that was killed ends with the same weights and the same losses by level"
    whole = learner(tmp_path/'whole')
    with whole.no_bar(): fit_recipe(whole)
    assert whole.ema.updates==6 and whole.finite_guard.dropped==0 and len(whole.diffusion_objective.by_level)==3
    with pytest.raises(RuntimeError, match='killed'): fit_recipe(learner(tmp_path/'killed', Stop(at)))
    again = learner(tmp_path/'killed')
    fit_recipe(again)
    for a,b in zip(whole.model.state_dict().values(), again.model.state_dict().values()): assert torch.equal(a, b)
    assert np.array_equal(whole.diffusion_objective.by_level, again.diffusion_objective.by_level, equal_nan=True)

def test_validation_of_the_saved_weights_is_the_recorded_value(tmp_path):
    "Validation noise is fixed, so the best weights give the best value again"
    learn = learner(tmp_path)
    fit_recipe(learn)
    best = learn.watch.best
    torch.randn(1000)
    with learn.no_bar(): assert learn.validate()[0]==pytest.approx(float(best), rel=1e-6)
