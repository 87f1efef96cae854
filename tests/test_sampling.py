'What nbs/core/21_sampling.ipynb and 23_wrappers.ipynb cannot show: wide nets of cases, diffusers with noise, GPU, bounded memory.'
import subprocess, sys
import numpy as np, pytest, torch
from conftest import ROOT
from clearsight_nb.core.diffusion import EDM, VP, Denoiser, Flow
from clearsight_nb.core.sampling import *
from clearsight_nb.core.wrappers import *

PROCESSES = dict(linear=VP(), cosine=VP('cosine'), edm=EDM(), flow=Flow())
MEAN,COV = torch.tensor([.5,-.3]).view(2,1,1),torch.tensor([[.765,.675],[.675,.765]])
STEADY = [k for k in SAMPLERS if k!='one_step']

class Net(torch.nn.Module):
    "Convolutions with a norm over the patch; a condition is a map to be joined."
    def __init__(self, cond=0):
        super().__init__()
        self.a,self.b = torch.nn.Conv2d(3+cond, 8, 3, padding=1),torch.nn.Conv2d(8, 3, 3, padding=1)
    def forward(self, x, t, cond=None):
        h = torch.nn.functional.group_norm(self.a(x if cond is None else torch.cat([cond, x], 1)), 2)
        return torch.tanh(self.b(torch.relu(h + t.view(-1,1,1,1)/1000)))

def net(cond=0, seed=0):
    torch.manual_seed(seed)
    return Net(cond).requires_grad_(False)

@pytest.mark.parametrize('name', PROCESSES)
@pytest.mark.parametrize('sampler', STEADY)
def test_many_steps_find_the_exact_sample(name, sampler):
    p = PROCESSES[name]
    g,levels = GaussianDenoiser(MEAN, COV, p),spaced(p, 150, 'lu')
    x = start(p, levels[0], (200,2,1,1), seed=1)
    error = (SAMPLERS[sampler](g, x, levels) - g.flow(x, levels[0])).abs().mean()
    assert error < (.04 if sampler in ('ddim', 'euler') else .004)

@pytest.mark.parametrize('spacing', SPACINGS)
@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_any_number_of_steps_is_honoured(name, spacing):
    p = PROCESSES[name]
    for n in [*range(1, 70), 125, 333, 400, 500, 999, 1000]:
        levels = spaced(p, n, spacing)
        assert len(levels)==n and 0<=levels[-1] and levels[0]<=999 and all(a>b for a,b in zip(levels, levels[1:]))
    for n in (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, 1000):
        if spacing=='leading': assert spaced(p, n, spacing)==list(range(0, 1000, 1000//n))[::-1]

@pytest.mark.parametrize('n', [1, 3, 5, 10, 15, 25, 60, 400])
@pytest.mark.parametrize('eta', [0., .5, 1.])
def test_ddim_is_that_of_diffusers_with_noise(n, eta):
    from diffusers import DDIMScheduler
    f,x,vp = net(),torch.randn(2,3,8,8, generator=torch.Generator().manual_seed(0)),PROCESSES['linear']
    sched = DDIMScheduler(1000, 1e-4, .02, 'linear', clip_sample=False, set_alpha_to_one=True, timestep_spacing='leading')
    sched.set_timesteps(n)
    y,rng = x,torch.Generator().manual_seed(7)
    for t in sched.timesteps:
        noise = torch.randn(x.shape, generator=rng) if eta and t>0 else torch.zeros_like(x)
        y = sched.step(f(y, t.float()), t, y, eta=eta, variance_noise=noise).prev_sample
    ours = ddim(Denoiser(f, vp), x, sched.timesteps, eta=eta, generator=torch.Generator().manual_seed(7))
    assert (ours-y).abs().max() < 1e-5*y.abs().max()

@pytest.mark.parametrize('kind', ['epsilon', 'sample'])
@pytest.mark.parametrize('n', [1, 2, 8, 14, 15, 30])
@pytest.mark.parametrize('sampler,cls,spacing,how', [
    ('dpmpp_2m', 'DPMSolverMultistepScheduler', 'karras', 'use_karras_sigmas'), ('dpmpp_2m', 'DPMSolverMultistepScheduler', 'lu', 'use_lu_lambdas'),
    ('unipc', 'UniPCMultistepScheduler', 'karras', 'use_karras_sigmas'), ('unipc', 'UniPCMultistepScheduler', 'lu', 'use_exponential_sigmas')])
def test_multistep_is_the_loop_of_diffusers(sampler, cls, spacing, how, n, kind):
    import diffusers
    f,vp = net(),PROCESSES['linear']
    den,x = Denoiser(f, vp, 'epsilon' if kind=='epsilon' else 'x0'),start(vp, 999, (2,3,8,8), seed=3)
    sched = getattr(diffusers, cls)(trained_betas=vp.betas.numpy(), prediction_type=kind, **{how: True})
    sched.set_timesteps(n)
    y = x
    for t,s in zip(sched.timesteps, sched.sigmas): y = sched.step(f(y, vp.embed(vp.noise_to_level(s)).expand(2)), t, y).prev_sample
    ours = SAMPLERS[sampler](den, x, spaced(vp, n, spacing))
    assert (ours-y).abs().max() < 1e-4*y.abs().max()

def test_edm_heun_is_algorithm_1():
    "Karras et al. 2022, algorithm 1 with S_churn=0, written out"
    p = EDM()
    den,levels = Denoiser(net(), p),spaced(p, 18)
    i = np.arange(18)
    want = (80**(1/7) + i/17*(.002**(1/7) - 80**(1/7)))**7
    assert np.abs(np.array(levels)/want - 1).max() < 1e-9
    x = y = start(p, levels[0], (2,3,8,8), seed=0)
    for a,b in zip(want, [*want[1:], 0.]):
        slope = (y - den(y, a))/a
        z = y + (b-a)*slope
        if b: z = y + (b-a)*(slope + (z - den(z, b))/b)/2
        y = z
    assert (heun(den, x, levels)-y).abs().max() < 1e-4

def test_flow_euler_is_the_plain_one():
    f = net()
    x = y = start(Flow(), 1., (2,3,8,8), seed=0)
    levels = [1., .9, .55, .3, .07] # explicit ones
    for a,b in zip(levels, [*levels[1:], 0.]): y = y + (b-a)*f(y, torch.full((2,), 1000*a))
    assert (euler(Denoiser(f, Flow(), 'velocity'), x, levels)-y).abs().max() < 1e-5

@pytest.mark.parametrize('sampler', SAMPLERS)
def test_bad_levels_are_refused(sampler):
    g,x = GaussianDenoiser(MEAN, COV, VP()),torch.zeros(1,2,1,1)
    for levels in ([], [10,20], [10,10], [10,-1], [10,-2]):
        with pytest.raises(ValueError, match='levels go down'): SAMPLERS[sampler](g, x, levels)

@pytest.mark.parametrize('mode', MODES)
def test_grid_covers_everything(mode):
    rng = np.random.default_rng(0)
    for _ in range(400):
        h,w,size = (int(o) for o in rng.integers(1, 200, 3))
        stride,level = int(rng.integers(1, size+1)),float(rng.random()*1000)
        d = Patchwise(GaussianDenoiser(MEAN, COV, VP()), size, stride, mode, seed=3)
        h2,w2 = max(h, size),max(w, size)
        (ys,_),(xs,_) = d.plan(h2, w2, level)
        assert d.coverage(h2, w2, level).min()>=1
        assert len(ys)*len(xs)==patch_count(h, w, size, stride, mode, level, seed=3)<=patch_count(h, w, size, stride, mode)

def slow(f, x, level, cond, p, r):
    "The published loop, one patch at a time: mean of the predicted noise"
    h,w = x.shape[2:]
    total,count = torch.zeros_like(x),torch.zeros_like(x)
    for i in sorted({*range(0, h-p+1, r), h-p}):
        for j in sorted({*range(0, w-p+1, r), w-p}):
            total[:,:,i:i+p,j:j+p] += f(x[:,:,i:i+p,j:j+p], torch.full((len(x),), float(level)), cond[:,:,i:i+p,j:j+p])
            count[:,:,i:i+p,j:j+p] += 1
    return total/count

@pytest.mark.parametrize('h,w,r', [(32,48,4), (33,47,8), (16,29,16), (31,31,5)])
def test_whole_restoration_is_the_published_loop(h, w, r):
    "Ten DDIM steps on patches of 16, with noise averaged by the slow loop"
    f,vp = net(3),VP()
    cond,x = torch.rand(2,3,h,w, generator=torch.Generator().manual_seed(0))*2 - 1,start(vp, 900, (2,3,h,w), seed=[1,2])
    ab,y = torch.cat([vp.alphas_cumprod, torch.ones(1)]),x
    seq = list(range(0, 1000, 100))[::-1]
    for t,after in zip(seq, [*seq[1:], -1]):
        eps = slow(f, y, t, cond, 16, r)
        x0 = (y - (1-ab[t]).sqrt()*eps)/ab[t].sqrt()
        y = ab[after].sqrt()*x0 + (1-ab[after]).sqrt()*eps
    ours = ddim(patchwise(Denoiser(f, vp), 16, r, batch=50), x, seq, cond)
    assert (ours-y).abs().max() < 1e-5*y.abs().max()

def test_shifted_is_reproducible_and_moves():
    f,vp = net(3),VP()
    cond,x = torch.rand(1,3,40,40),start(vp, 999, (1,3,40,40))
    d = [patchwise(Denoiser(f, vp), 16, 8, 'shifted', seed=s) for s in (0, 0, 1)]
    assert torch.equal(d[0](x, 500., cond), d[1](x, torch.tensor([500.]), cond))
    assert not torch.allclose(d[0](x, 500., cond), d[2](x, 500., cond), atol=1e-4)
    assert len({d[0].offset(t) for t in spaced(vp, 25, 'karras')}) > 15
    inside = [d[0].plan(40, 40, t)[0][0] for t in spaced(vp, 100)]
    assert {int(o[0]) for o in inside}=={0} and {int(o[1]) for o in inside}==set(range(1, 9)) # no line has a fixed place

def test_offsets_are_the_same_in_another_process():
    code = 'from clearsight_nb.core.wrappers import grid_offset; print([grid_offset(32, t, 5) for t in (0, 371.6, 960)])'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.strip()==str([grid_offset(32, t, 5) for t in (0, 371.6, 960)])

def test_float64_passes_through_patches():
    d = patchwise(GaussianDenoiser(torch.zeros(1,4,4), torch.eye(16), VP()), 4, 3)
    assert d(torch.zeros(1,1,9,9, dtype=torch.float64), 10).dtype==torch.float64

def test_memory_does_not_grow_with_the_overlap():
    "Whatever the stride, one chunk of patches exists at a time"
    alive = []
    class Watch:
        process = VP()
        def __call__(self, x, level, cond=None):
            alive.append(x.untyped_storage().nbytes())
            return x
    x = torch.zeros(1,3,96,96)
    for r in (2, 8, 16): patchwise(Watch(), 16, r, batch=32)(x, 5)
    assert max(alive)==32*3*16*16*4

def test_guided_exact_for_correlated_prior_and_blur():
    "A 1-D picture of 12 smooth pixels, its means over blocks measured: the posterior's exact denoiser comes out"
    n,vp,tau = 12,VP(),.1
    cov = .5*torch.exp(-(torch.arange(n)[:,None]-torch.arange(n)).abs()/4.).double()
    A = torch.eye(4, dtype=torch.float64).repeat_interleave(3, 1)/3
    y = torch.tensor([.8,-.1,.3,-.6], dtype=torch.float64)
    gain = cov@A.T@torch.linalg.inv(A@cov@A.T + tau**2*torch.eye(4))
    post = GaussianDenoiser((gain@y).view(1,1,n), cov - gain@A@cov, vp)
    def logp(x0, level):
        a,s = float(vp.alpha(level)),float(vp.sigma(level))
        C = tau**2*torch.eye(4) + A@torch.linalg.inv(torch.linalg.inv(cov) + a**2/s**2*torch.eye(n))@A.T
        r = y - x0.double().flatten(1)@A.T
        return -(r@torch.linalg.inv(C)*r).sum(1)/2
    d = guided(GaussianDenoiser(torch.zeros(1,1,n), cov, vp), logp)
    x = torch.randn(10,1,1,n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0, 77.7, 500, 999): assert (d(x, t)-post(x, t)).abs().max() < 1e-6
    levels,x = spaced(vp, 40, 'lu'),start(vp, 999, (4000,1,1,n), seed=0)
    out = dpmpp_2m(d, x, levels).flatten(1)
    assert (out.mean(0)-post.mean).abs().max() < .05 and (torch.cov(out.T)-(cov - gain@A@cov)).abs().max() < .05

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_gpu_gives_the_same():
    f,vp = net(3),VP()
    cond,x = torch.rand(2,3,40,45),start(vp, 999, (2,3,40,45))
    for name in SAMPLERS:
        run = lambda f,dev: SAMPLERS[name](patchwise(Denoiser(f.to(dev), vp), 16, 8, 'shifted'), x.to(dev), spaced(vp, 10, 'karras'), cond.to(dev)).cpu()
        a,b = run(f, 'cpu'),run(f, 'cuda')
        assert (a-b).abs().max() < 5e-3*a.abs().max()
