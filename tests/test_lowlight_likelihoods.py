'What nbs/lowlight/10_likelihoods.ipynb and 11_guidance.ipynb cannot show: wide nets of cases, extremes, number types, batches, hostile input.'
import math
import pytest, torch
from clearsight_nb.core.diffusion import EDM
from clearsight_nb.core.sampling import GaussianDenoiser
from clearsight_nb.lowlight.guidance import *
from clearsight_nb.lowlight.likelihoods import *

MAKERS = dict(gaussian=lambda r: Gaussian(r**2), frozen=Heteroscedastic, full=PoissonGaussian, poisson=lambda r: Poisson(),
    shifted=Poisson, robust=Robust, cauchy=lambda r: Robust(r, nu=1.))

def uniform(g, a, b, n): return a + (b-a)*torch.rand(n, generator=g, dtype=torch.float64)

def cases(seed, n=200):
    "Observed, guess, variance of the guess: from hopeless to certain, near zero and far from it."
    g = torch.Generator().manual_seed(seed)
    few = torch.rand(n, generator=g)<.5
    y = torch.where(few, uniform(g, -6, 20, n), 10**uniform(g, 0, 3.5, n))
    m0 = torch.where(torch.rand(n, generator=g)<.5, uniform(g, -10, 20, n), 10**uniform(g, 0, 3.5, n))
    return y,m0,10**uniform(g, -3, 7, n)

def grid_argmin(like, y, m0, t, n=3001):
    lo,hi,u = torch.zeros_like(y),torch.maximum(y.abs(), m0).clamp(min=0) + 10,torch.linspace(0, 1, n, dtype=torch.float64)[:,None]**2
    for _ in range(4):
        grid = lo + (hi-lo)*u
        i = like.objective(y, grid, m0, t).argmin(0, keepdim=True)
        lo,hi,u = grid.gather(0, (i-1).clamp(min=0))[0],grid.gather(0, (i+1).clamp(max=n-1))[0],torch.linspace(0, 1, n, dtype=torch.float64)[:,None]
    return (lo+hi)/2

@pytest.mark.parametrize('name', MAKERS)
@pytest.mark.parametrize('read', [.2, 1.5, 6.])
def test_prox_is_the_grids_argmin(name, read):
    like,(y,m0,t) = MAKERS[name](read),cases(int(10*read))
    p,best = like.prox(y, m0, t),grid_argmin(like, y, m0, t)
    a,b = like.objective(y, p, m0, t),like.objective(y, best, m0, t)
    assert (p>=0).all() and (a <= b + 1e-6*(1 + b.abs())).all()
    apart = (p-best).abs()>1e-2 # only where two places are equally good
    assert apart.sum()<=2 and ((a-b).abs()[apart]<1e-3).all()

@pytest.mark.parametrize('name', MAKERS)
def test_prox_never_makes_it_worse_and_lies_between_extremes(name):
    like,(y,m0,t) = MAKERS[name](2.),cases(7, 5000)
    p = like.prox(y, m0, t)
    assert p.isfinite().all() and (p>=0).all()
    assert (like.objective(y, p, m0, t) <= like.objective(y, m0.clamp(min=0), m0, t) + 1e-9).all()
    assert (like.prox(y, m0, torch.tensor(0.)) - m0.clamp(min=0)).abs().max()<1e-6

@pytest.mark.parametrize('name', MAKERS)
def test_score_is_autograds(name):
    like = MAKERS[name](2.)
    y,m,_ = cases(3, 2000)
    m = torch.cat([m, torch.zeros(5, dtype=torch.float64)]).requires_grad_()
    y = torch.cat([y, torch.tensor([-3., 0, .5, 10, 1000], dtype=torch.float64)])
    slope, = torch.autograd.grad(like.logp(y, m).sum(), m)
    score = like.score(y, m).detach()
    assert score.isfinite().all() and ((slope-score).abs() <= 1e-6*(1 + score.abs())).all()

@pytest.mark.parametrize('name', MAKERS)
def test_densities_have_mass_one_and_fisher_is_the_mean_square_of_the_score(name):
    m = torch.tensor([3., 40.], dtype=torch.float64)
    like = MAKERS[name](2.)
    like = like.refreeze(m)
    count = name in ('poisson', 'shifted')
    y = torch.arange(0, 400.).double()[:,None] - like.read**2 if count else torch.linspace(-3000, 3000, 600_001, dtype=torch.float64)[:,None]
    p = like.logp(y, m).exp()*(1 if count else .01)
    assert (p.sum(0)-1).abs().max()<(.01 if name=='cauchy' else 1e-4)
    assert (p*like.score(y, m)).sum(0).abs().max()<(1e-3 if name=='cauchy' else 1e-5)
    assert ((p*like.score(y, m)**2).sum(0)/like.fisher(m) - 1).abs().max()<.01

@pytest.mark.parametrize('name', ['gaussian', 'frozen', 'full', 'shifted'])
def test_mean_score_is_zero_for_photons_and_read_noise(name):
    g = torch.Generator().manual_seed(2)
    for light in (8., 60.):
        m = torch.full((400_000,), light, dtype=torch.float64)
        like = Gaussian(light+4) if name=='gaussian' else MAKERS[name](2.).refreeze(m)
        s = like.score(torch.poisson(m, generator=g) + 2*torch.randn(m.shape, generator=g, dtype=torch.float64), m)
        assert abs(s.mean()) < 4.5*s.std()/len(s)**.5

def test_leaving_out_the_middle_term_is_found_out():
    g,m = torch.Generator().manual_seed(2),torch.full((400_000,), 20., dtype=torch.float64)
    y = torch.poisson(m, generator=g) + 2*torch.randn(m.shape, generator=g, dtype=torch.float64)
    wrong = (y-m)/24 - 1/48
    assert abs(wrong.mean()) > 50*wrong.std()/len(m)**.5 # the score of an earlier implementation

@pytest.mark.parametrize('name', MAKERS)
def test_float32_pictures_and_maps(name):
    g = torch.Generator().manual_seed(0)
    y,m0 = torch.poisson(torch.full((2,3,5,7), 30.), generator=g),torch.full((2,3,5,7), 25.)
    like = MAKERS[name](torch.full((3,1,1), 2.)) if name!='poisson' else Poisson()
    p = like.prox(y, m0, torch.tensor([1., 100.]).view(2,1,1,1))
    assert p.dtype==torch.float32 and p.shape==y.shape
    wide = MAKERS[name](2.).prox(y.double(), m0.double(), torch.tensor([1., 100.]).double().view(2,1,1,1))
    assert (p-wide).abs().max()<1e-4
    for f in (like.logp, like.score): assert f(y, m0).shape==y.shape and f(y, m0).dtype==torch.float32
    assert f'{like}'.startswith(type(like).__name__)

@pytest.mark.parametrize('bad', [0., -1., math.nan, math.inf])
def test_impossible_noise_is_refused(bad):
    for f in (Gaussian, Heteroscedastic, PoissonGaussian, Robust):
        with pytest.raises(ValueError, match='above 0'): f(bad)
    with pytest.raises(ValueError, match='k is a finite number above 0'): Measurement(torch.ones(1,1,2,2), bad, PoissonGaussian(2.))
    with pytest.raises(ValueError, match='nu'): Robust(2., nu=bad)

def world(n=12, b=3, k=200., seed=0):
    "A prior that is exact, clean pictures, one exposure of them."
    i = torch.arange(n, dtype=torch.float64)
    line = (-(i[:,None]-i).abs()/4).exp()
    e = (.03*20**(i/(n-1))).expand(n, n).flatten()
    cov = .06*e[:,None]*e*torch.kron(line, line)
    prior = GaussianDenoiser(e.view(1,n,n), cov, EDM(float(cov.diagonal().mean().sqrt()), sigma_max=20.))
    g = torch.Generator().manual_seed(seed)
    x = (prior.mean + torch.randn(b, n*n, generator=g, dtype=torch.float64)@torch.linalg.cholesky(cov).T).view(b,1,n,n).clamp(min=0)
    y = torch.poisson(k*x, generator=g) + 2*torch.randn(x.shape, generator=g, dtype=torch.float64)
    return prior,cov,x,Measurement(y, k, Heteroscedastic(2.))

def solve(prior, cov, z, v):
    fit = [prior.mean + cov@torch.linalg.solve(cov + a.diag(), o-prior.mean) for o,a in zip(z.flatten(1), v.flatten(1))]
    return torch.stack(fit).view_as(z)

def test_measurement_prox_equals_a_solver_on_the_whole_objective():
    _,_,x,meas = world()
    x0 = (x + .05).requires_grad_(False)
    for like in (PoissonGaussian(2.), Robust(2., at=200*x), Poisson(2.)):
        m = meas._new(likelihood=like)
        z = m.prox(x0, .01).requires_grad_()
        loss = ((z-x0)**2).sum()/(2*.01) - m.logp(z).sum()
        slope, = torch.autograd.grad(loss, z)
        inside = z>1e-6
        assert slope[inside].abs().max()<1e-4*200 and (slope[~inside]>-1e-6).all()

@pytest.mark.parametrize('rule', ['bridge', 'plain'])
def test_hqs_is_near_the_posterior_mean_in_nine_looks_for_many_worlds(rule):
    for seed,k in enumerate((30., 100., 400., 2000.)):
        prior,cov,x,meas = world(k=k, seed=seed)
        best = solve(prior, cov, meas.y/k, (k*x + 4)/k**2)
        asked = Counted(prior)
        out = hqs(asked, meas, rule=rule)
        assert asked.calls==9
        assert 10*math.log10((out-x).square().mean()/(best-x).square().mean())<.3

def test_point_of_rest_is_the_posterior_mean_with_masks_too():
    prior,cov,x,meas = world(b=1)
    weight = torch.ones_like(x)
    weight[...,3:6,4:7] = 0
    exact = Measurement(meas.y, 200., Heteroscedastic(2., at=200*x), weight)
    v = torch.where(weight>0, exact.variance(), 1e8)
    best,z = solve(prior, cov, meas.y/200, v),one_shot(prior, exact)
    s = exact.noise_range()[0].sqrt()
    for _ in range(3000): z = prior(exact.bridge(z, s), s)
    assert (z-best).abs().max()<1e-4

@pytest.mark.parametrize('method', [hqs, one_shot, lambda p,m: hqs(p, m, rule='plain'), lambda p,m: hqs(p, homoscedastic(m))])
def test_an_item_does_not_depend_on_its_batch(method):
    prior,_,_,meas = world()
    alone = torch.cat([method(prior, meas._new(y=meas.y[i:i+1])) for i in range(3)])
    assert (method(prior, meas)-alone).abs().max()<1e-9

def test_exposures_of_their_own_and_crops():
    prior,_,x,_ = world()
    g,k = torch.Generator().manual_seed(5),torch.tensor([50., 200., 1000.])
    y = torch.poisson(k.double().view(3,1,1,1)*x, generator=g)
    both = hqs(prior, Measurement(y, k, Heteroscedastic(2.)))
    for i in range(3): assert (both[i]-hqs(prior, Measurement(y[i:i+1], float(k[i]), Heteroscedastic(2.)))[0]).abs().max()<1e-9
    meas = Measurement(y, k, Heteroscedastic(torch.rand(12, 12, generator=g).double()+1, at=y), torch.rand(y.shape, generator=g).double(), y>100)
    part = meas.crop(2, 5, 6, 4)
    for f in (lambda m,x: m.prox(x, .01), lambda m,x: m.precision(x), lambda m,x: m.bridge(x, .02)):
        assert torch.equal(f(part, x[...,2:8,5:9]), f(meas, x)[...,2:8,5:9])

def test_samplers_repeat_and_spread_as_they_should():
    prior,cov,x,meas = world()
    exact = meas._new(likelihood=Gaussian(100.))
    a,b = posterior_samples(prior, exact, 32, steps=40, seed=3),posterior_samples(prior, exact, 2, steps=40, seed=3)
    assert torch.equal(a[:2], b) and not torch.equal(a[0], posterior_samples(prior, exact, 1, steps=40, seed=4)[0])
    v = torch.full((144,), 100/200**2, dtype=torch.float64)
    true = (cov - cov@torch.linalg.solve(cov + v.diag(), cov)).diagonal().mean()
    assert abs(a.var(0).mean()/true - 1)<.2
    assert (a.mean(0)-solve(prior, cov, meas.y/200, v.view(1,-1).expand(3,-1))).square().mean()<true/32*2
    assert (a[0]-posterior_samples(prior, exact, 1, steps=40, seed=3, rule='proximal')[0]).abs().max()>1e-3
    with pytest.raises(ValueError, match='fused'): posterior_samples(prior, meas, 1, rule='both')

def test_saturated_pixels_pull_only_upwards():
    prior,_,x,meas = world(k=200.)
    full = torch.rand(x.shape, generator=torch.Generator().manual_seed(3))<.15
    y = torch.where(full, meas.y/2, meas.y) # they could hold only half of what came
    blind,aware = (hqs(prior, Measurement(y, 200., Heteroscedastic(2.), saturated=s)) for s in (None, full))
    assert (aware-x).square().mean()<.5*(blind-x).square().mean()
    assert (aware-x).square().mean()<2*(hqs(prior, meas)-x).square().mean()

def test_much_that_is_missing_is_filled_in_nine_looks():
    prior,cov,x,meas = world(n=16)
    weight = (torch.rand(x.shape, generator=torch.Generator().manual_seed(1))<1/3).double()
    m = Measurement(meas.y, 200., Heteroscedastic(2.), weight)
    best = solve(prior, cov, meas.y/200, torch.where(weight>0, (200*x + 4)/200**2, 1e6))
    assert 10*torch.log10((hqs(prior, m)-x).square().mean()/(best-x).square().mean())<1

def test_kappa_rule_falls_below_multiplication():
    prior,_,x,meas = world(k=400.)
    bad,naive = kappa_rule(prior, meas),meas.exposure_scaled()
    assert (bad-x).square().mean()>(naive-x).square().mean()>(hqs(prior, meas)-x).square().mean()
    assert torch.equal(bad, kappa_rule(prior, meas)) and bad.isfinite().all()

def test_dps_is_seeded_and_leaves_no_graph():
    prior,_,x,meas = world()
    with torch.no_grad(): out = dps(prior, meas, steps=10)
    assert torch.equal(out, dps(prior, meas, steps=10)) and not out.requires_grad and out.shape==x.shape
    with torch.inference_mode(): assert dps(prior, meas, steps=3).isfinite().all()

@pytest.mark.parametrize('pattern', PATTERNS)
def test_a_raw_frame_of_any_size(pattern):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1,3,7,9, generator=g)*.1 + .4
    raw = bayer_measurement(1000*mosaic(x, pattern), 1000., PoissonGaussian(2.), pattern)
    assert (raw.exposure_scaled()-x).abs().max()<.15 and raw.prox(x, .01).shape==x.shape
    assert (raw.precision(x)>0).sum()==63 and bayer_mask(pattern, 7, 9).sum(0).eq(1).all()

def test_what_does_not_fit_is_named():
    y,like = torch.ones(1,1,4,4),PoissonGaussian(2.)
    for a,kw,match in ((y[0], {}, r'\(b, c, h, w\)'), (y.int(), {}, 'float'), (y*math.nan, {}, '16 measured'), (y, {'weight': torch.ones(5)}, 'weight'), (y, {'saturated': torch.ones(3,3)}, 'saturated')):
        with pytest.raises(ValueError, match=match): Measurement(a, 100., like, **kw)
    with pytest.raises(ValueError, match='BGGR'): bayer_measurement(y, 100., like, 'XTRANS')
    with pytest.raises(ValueError, match='single measured'): Measurement(y, 100., like, weight=torch.zeros_like(y)).exposure_scaled()
    with pytest.raises(ValueError, match='bridge, plain'): hqs(world()[0], world()[3], rule='dps')
