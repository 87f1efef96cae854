"Enhancing exposures: stripes, ratios, holes, full pixels, stitching, folders, raw files, scores, the blind mode, deepinv."
import json, math, warnings
from dataclasses import replace
import numpy as np, pytest, torch
from clearsight_nb.core.diffusion import EDM
from clearsight_nb.core.files import DataError
from clearsight_nb.core.photos import load_photo, srgb_to_linear
from clearsight_nb.core.sampling import GaussianDenoiser
from clearsight_nb.lowlight.blind import NoiseModel, enhance_blind, estimate_noise
from clearsight_nb.lowlight.enhance import display_rgb, enhance, stitch
from clearsight_nb.lowlight.evaluate import colouredness, evaluate_lowlight, lowlight_scores, paired_interval, whiteness
from clearsight_nb.lowlight.exposure import check_alpha, fit_exposure, measure, read_exposure, row_offsets
from clearsight_nb.lowlight.guidance import hqs
from clearsight_nb.lowlight.likelihoods import Gaussian, Heteroscedastic, Measurement
from clearsight_nb.lowlight.sensor import Calibration, simulate, to_unit
from clearsight_nb.lowlight.tiles import read_tile, write_tile
from clearsight_nb.lowlight.untrained import DCTPrior, inverse_anscombe, non_local_means

CAL = Calibration(gain=4., read=2., row=0., black=(512.,), white=4512.)
def scene(size=48, at=(60, 80)): return np.ascontiguousarray(srgb_to_linear(load_photo('coffee', 200))[at[0]:at[0]+size,at[1]:at[1]+size])
def exposed(x, alpha=.1, seed=0, cal=CAL, **kw): return to_unit(simulate(x, cal, alpha, seed, **kw), cal)
def db(a, b): return -10*math.log10(float(np.square(np.asarray(a, float)-np.asarray(b, float)).mean()))
PRIOR = DCTPrior(step=2)

class Identity:
    "A prior that knows nothing"
    process = EDM()
    def __call__(self, x, level, cond=None): return x

@pytest.mark.parametrize('size', [(32,32), (70,131), (9,40), (33,8)])
def test_stitching_is_exact_for_the_identity(size):
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))*50
    m = Measurement(x, 50., Heteroscedastic(2., at=x), weight=(x>5).float(), saturated=x>45)
    def solve(b):
        assert torch.equal(b.likelihood.at[b.weight>0], b.y[b.weight>0]) and b.saturated.dtype==torch.bool
        return torch.cat([b.y/b.k, b.weight, b.saturated.float()], 1)
    out = stitch(m, solve, tile=32, batch=3, multiple=8)
    torch.testing.assert_close(out, torch.cat([m.y/50, m.weight, m.saturated.float()], 1)[0], atol=1e-6, rtol=0)

def test_stitching_is_the_whole_for_the_method():
    "Tiles with a wide overlap give nearly what one tile gives; batches do not matter"
    x = scene(96, (20, 60))
    whole = enhance(exposed(x), PRIOR, CAL, .1, tile=96, progress=False)
    tiles = [enhance(exposed(x), PRIOR, CAL, .1, tile=64, batch=b, progress=False).image for b in (1, 4)]
    np.testing.assert_allclose(*tiles, atol=1e-5)
    assert db(tiles[0], whole.image)>db(whole.image, x)+3 # closer to each other than to the truth

def test_batches_are_bounded():
    seen = []
    class Spy(DCTPrior):
        def __call__(self, x, level, cond=None):
            seen.append(len(x))
            return super().__call__(x, level)
    r = enhance(exposed(scene()), Spy(step=2), CAL, .1, tile=16, batch=3, progress=False)
    assert max(seen)==3 and r.evaluations==9

@pytest.mark.parametrize('alpha', [.02, .1])
def test_better_than_scaling(alpha):
    x = scene()
    r = enhance(exposed(x, alpha), PRIOR, CAL, alpha, progress=False)
    assert db(r.image, x)>db(r.scaled.clip(0, 1), x)+4
    assert r.image.dtype==np.float32 and 0<=r.image.min() and r.image.max()<=1 and r.residual.shape==x.shape
    assert .4<r.chi2<1.3 and r.chi2_range[0]<1<r.chi2_range[1]

def test_chi2_of_the_truth():
    "Inside its interval for the truth (20 exposures), far outside for a wrong ratio"
    from clearsight_nb.lowlight.enhance import _residual
    x,inside = scene(),0
    truth = torch.from_numpy(x.transpose(2, 0, 1).copy())[None]
    for seed in range(20):
        m = measure(read_exposure(exposed(x, .1, seed), CAL), .1)
        _,chi2,(a,b) = _residual(m, truth)
        inside += a<chi2<b
    assert inside>=19
    _,chi2,(a,b) = _residual(measure(read_exposure(exposed(x), CAL), .12), truth)
    assert chi2>b+.1

def test_full_pixels_do_not_pull_down():
    "Where the sensor was full, the estimate may be brighter than the exposure says, and the residual is nan"
    x = np.full((32, 32, 3), .9, np.float32)
    light = exposed(x, 1.)
    light[8:16,8:16] = 1.
    r = enhance(light, PRIOR, CAL, 1., progress=False)
    assert np.isnan(r.residual[8:16,8:16]).all() and np.isfinite(r.residual[20:]).all()
    low = light.copy()
    low[8:16,8:16] = .3 # the same place, not full: believed
    assert r.image[10:14,10:14].mean()>.95 and enhance(low, PRIOR, CAL, 1., progress=False).image[10:14,10:14].mean()<.5

@pytest.mark.parametrize('channels', [1, 3, 4])
def test_stripes(channels):
    "Offsets of rows are found to a fraction of their size, and nothing is done to a picture without stripes"
    g = torch.Generator().manual_seed(0)
    y = 20 + 5*torch.randn(channels, 80, 200, generator=g)
    true = 3*torch.randn(1, 80, 1, generator=g).expand(channels, -1, -1).clone()
    if channels==4: true[2:] = 3*torch.randn(1, 80, 1, generator=g)
    rest = true - row_offsets(y+true, 3., 2.)
    assert rest.std()<.55*true.std()
    assert row_offsets(y, 3., 2.).std()<.6 and row_offsets(y, 0., 2.).abs().max()==0
    ramp = torch.linspace(0, 100, 80)[None,:,None].expand(channels, -1, 200)
    assert row_offsets(ramp, 3., 2.)[:,5:-5].abs().max()<.1 # a slope is no stripe

def test_stripes_in_a_picture():
    cal = replace(CAL, row=2.)
    x = scene()
    y = exposed(x, .1, 3, cal)
    with_,without = (enhance(y, PRIOR, c, .1, progress=False).image for c in (cal, CAL))
    assert db(with_, x)>db(without, x)

@pytest.mark.parametrize('alpha', [0, -.1, 1.0001, 100, math.nan, math.inf, '0.1', True, None])
def test_bad_ratios(alpha):
    with pytest.raises(ValueError, match='t_short/t_long'): check_alpha(alpha)
    with pytest.raises(ValueError, match='t_short/t_long'): enhance(exposed(scene()), PRIOR, CAL, alpha, progress=False)

def test_ratio_from_a_reference():
    "Fitted to half a percent, black level error found, a wrong ratio said aloud, mended if wished; the estimate's own light proves nothing"
    x = scene()
    truth,y = torch.from_numpy(x.transpose(2, 0, 1).copy()),exposed(x)
    fit = fit_exposure(read_exposure(y, CAL).light*CAL.full_scale, truth, CAL.full_scale, .1)
    assert abs(fit.mismatch)<.005 and abs(fit.offset)<.2
    shifted = fit_exposure(read_exposure(exposed(x, black_error=8), CAL).light*CAL.full_scale, truth, CAL.full_scale, .1)
    assert abs(shifted.offset-fit.offset-2)<.1 # 8 ADU are 2 electrons
    with pytest.warns(UserWarning, match=r'\+25 %|-20 %'): r = enhance(y, PRIOR, CAL, .125, 'oneshot', reference=x, progress=False)
    assert abs(r.alpha-.1)<.001 and abs(r.mismatch+.2)<.01
    with pytest.warns(UserWarning, match='given one is used'): assert enhance(y, PRIOR, CAL, .125, 'oneshot', reference=x, refine=False, progress=False).alpha==.125
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert abs(enhance(y, PRIOR, CAL, .1, 'oneshot', reference=float(x.mean()), progress=False).mismatch)<.01
        assert abs(enhance(y, PRIOR, CAL, None, 'oneshot', reference=x, progress=False).alpha-.1)<.001
    for bad in (torch.zeros_like(truth), truth[:,:9], -1.):
        with pytest.raises(ValueError): fit_exposure(torch.ones_like(truth), bad, 1000.)

def test_non_local_means_is_unbiased():
    "On a flat field the mean survives transform and inverse"
    for mean in (3., 30., 300.):
        g = torch.Generator().manual_seed(0)
        y = torch.poisson(torch.full((1, 1, 48, 48), mean), generator=g) + 2*torch.randn(1, 1, 48, 48, generator=g)
        out = non_local_means(Measurement(y, 1., Heteroscedastic(2.)))
        assert abs(out.mean()-mean)<.05*mean + .1 and out.std()<.5*y.std()
    assert inverse_anscombe(torch.tensor([0., 1., 1e3]), 2.).min()>=0

def test_samples_are_a_posterior():
    "With an exact prior and equal variances mean and standard deviation are those of theory, tiles or not"
    g = torch.Generator().manual_seed(0)
    a = torch.randn(16, 16, generator=g)/4
    cov,mean = (a@a.T + .1*torch.eye(16)).double()*.02,torch.full((1, 4, 4), .5)
    prior,v = GaussianDenoiser(mean, cov, EDM(sigma_data=.17, sigma_max=5.)),.05**2
    x = torch.full((1, 4, 4), .5) + .1*torch.randn(1, 4, 4, generator=g)
    meas = Measurement(x[None], 1., Gaussian(v))
    gain = cov@torch.linalg.inv(cov + v*torch.eye(16).double())
    exact = (.5 + gain@(x.flatten().double()-.5)).reshape(1, 4, 4)
    assert (hqs(prior, meas)[0]-exact).abs().max()<.03
    from clearsight_nb.lowlight.enhance import _solver
    out = stitch(meas, _solver('sample', prior, 32, 18, .1, 1., 0), 4)
    assert out.shape==(2, 4, 4) and (out[:1]-exact).abs().max()<.06 and .01<out[1].mean()<.1

def test_modes_and_sources(tmp_path):
    x = scene(32)
    y = exposed(x)
    CAL.save(tmp_path/'calibration.json')
    write_tile(tmp_path/'a'/'b'/'t.pt', torch.from_numpy(2*y-1).permute(2, 0, 1).contiguous())
    small = GaussianDenoiser(torch.full((3, 8, 8), .2), .05*torch.eye(192), EDM(sigma_data=.2, sigma_max=3.))
    for mode in ('mmse', 'hqs', 'sample', 'dps', 'kappa', 'scale', 'oneshot', 'homoscedastic', 'nlm'):
        r = enhance(y, small, CAL, .1, mode, samples=2, steps=3, batch=16, progress=False)
        assert r.image.shape==x.shape and np.isfinite(r.image).all() and (r.std is not None)==(mode=='sample') and mode in repr(r)
    for like in ('full', 'robust'): assert db(enhance(y, PRIOR, CAL, .1, likelihood=like, progress=False).image, x)>20
    same = [enhance(s, PRIOR, c, .1, 'oneshot', progress=False).image for s,c in
        ((y, CAL), (torch.from_numpy(y).permute(2, 0, 1), CAL), (tmp_path/'a'/'b'/'t.pt', None), (str(tmp_path/'a'/'b'/'t.pt'), tmp_path/'calibration.json'))]
    for s in same[1:]: np.testing.assert_allclose(s, same[0], atol=1e-4)
    a,b = (enhance(y, small, CAL, .1, 'sample', samples=2, steps=3, batch=16, progress=False).image for _ in range(2))
    np.testing.assert_array_equal(a, b)

@pytest.mark.parametrize('bad', [b'', b'PK\x03\x04 no tile', 'nan', 'bright'])
def test_bad_tiles(bad, tmp_path):
    "A folder with a bad tile stops at it and names it; what was finished before stays"
    y = torch.from_numpy(2*exposed(scene(16))-1).permute(2, 0, 1).contiguous()
    write_tile(tmp_path/'in'/'a.pt', y)
    if isinstance(bad, bytes): (tmp_path/'in'/'b.pt').write_bytes(bad)
    else:
        z = y.clone()
        z[0,0,0] = math.nan if bad=='nan' else 7.
        torch.save(z, tmp_path/'in'/'b.pt')
    with pytest.raises(DataError, match='b.pt'): enhance(tmp_path/'in', PRIOR, CAL, .1, out=tmp_path/'out', progress=False)
    assert (tmp_path/'out'/'a.pt').exists() and not (tmp_path/'out'/'b.pt').exists()

def test_folders(tmp_path):
    y = torch.from_numpy(2*exposed(scene(16))-1).permute(2, 0, 1).contiguous()
    for n in ('s/a.pt', 's/t/a.pt', 's/b.PT'): write_tile(tmp_path/n, y)
    go = lambda **kw: enhance(tmp_path/'s', PRIOR, CAL, **dict(alpha=.1, out=tmp_path/'o', progress=False) | kw)
    files = go()
    assert [f.relative_to(tmp_path/'o').as_posix() for f in files]==['a.pt', 'b.pt', 't/a.pt']
    assert all((f.exists() and f.with_suffix('.png').exists() and json.loads(f.with_suffix('.json').read_text())['evaluations']==9) for f in files)
    files[0].unlink() # as if it had been stopped before
    stamp = files[1].stat().st_mtime_ns
    assert go()==files and files[0].exists() and files[1].stat().st_mtime_ns==stamp
    with pytest.raises(DataError, match='steps'): go(steps=3)
    with pytest.raises(DataError, match='a.pt.*no exposure ratio'): go(alpha={'b': .1}, out=tmp_path/'p')
    with pytest.raises(ValueError, match='another folder'): go(out=tmp_path/'s')
    with pytest.raises(ValueError, match='give `out`'): go(out=None)
    with pytest.raises(ValueError, match='reference'): go(reference=.5)
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match='no tiles'): enhance(tmp_path/'empty', PRIOR, CAL, .1, out=tmp_path/'q', progress=False)
    assert read_tile(files[2]).shape==(3, 16, 16)

def test_raw_file(tmp_path):
    "A DNG of a simulated mosaic, packed and as a colour picture, dark map taken off"
    pytest.importorskip('rawpy')
    from clearsight_nb.lowlight.likelihoods import bayer_mask
    from clearsight_nb.lowlight.raw import write_dng
    x = scene(64)
    plane = (x*bayer_mask('GRBG', 64, 64).permute(1, 2, 0).numpy()).sum(2)
    dark = np.linspace(0, 3, 64*64, dtype=np.float32).reshape(64, 64)
    cal = Calibration(gain=4., read=2., row=0., black=512, white=4512, dark=dark)
    adu = simulate(plane, cal, .1, 0)
    write_dng(tmp_path/'x.dng', adu.astype(np.uint16), 'GRBG', black=512, white=4512)
    e = read_exposure(tmp_path/'x.dng', cal)
    planes = np.stack([plane[0::2,1::2], plane[0::2,0::2], plane[1::2,1::2], plane[1::2,0::2]], 2) # R, G1, G2, B of GRBG
    assert e.light.shape==(4, 32, 32) and abs(float(e.light.mean())*10-planes.mean())<.01 and not e.full.any()
    r = enhance(tmp_path/'x.dng', PRIOR, cal, .1, progress=False)
    assert db(r.image, planes)>db(r.scaled.clip(0, 1), planes)+2
    rgb = enhance(tmp_path/'x.dng', PRIOR, cal, .1, layout='rgb', progress=False)
    assert rgb.image.shape==(64, 64, 3) and np.isfinite(rgb.residual).mean()==pytest.approx(1/3)
    assert db(rgb.image, x)>db(rgb.scaled.clip(0, 1), x) # where the holes are filled by interpolation, a picture already
    with pytest.raises(DataError, match='dark map'): read_exposure(tmp_path/'x.dng', replace(cal, dark=dark[:8]))

@pytest.mark.parametrize('shape', [(5,6,1), (5,6,3), (5,6,4), (5,6,9)])
def test_display(shape):
    out = display_rgb(np.full(shape, .25, np.float32), 2.)
    assert out.shape==(5,6,3) and np.allclose(out, out[0,0,0]) and .7<out.min()<.76

def test_scores_against_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    rng = np.random.default_rng(0)
    t = rng.random((3, 40, 50)).astype(np.float32)
    p = np.clip(t + .1*rng.standard_normal(t.shape), 0, 1).astype(np.float32)
    s = lowlight_scores(torch.from_numpy(p), torch.from_numpy(t), 80.)
    f = lambda x: x.astype(float)**(1/2.2)
    assert s['psnr']==pytest.approx(peak_signal_noise_ratio(t, p, data_range=1), abs=1e-3)
    assert s['psnr_gamma']==pytest.approx(peak_signal_noise_ratio(f(t), f(p), data_range=1), abs=1e-3)
    peer = structural_similarity(t.astype(float), p.astype(float), data_range=1., channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert s['ssim']==pytest.approx(peer, abs=2e-4)
    low = (80*t<10)
    assert s['0…10 e-']==pytest.approx(-10*math.log10(np.square(t.astype(float)-p)[low].mean()), abs=1e-3)

def test_autocorrelation_by_brute_force():
    r = np.random.default_rng(0).standard_normal((12, 15, 2))
    r[2,3,0] = np.nan
    z = r - np.nanmean(r)
    auto,bound = whiteness(r, 2)
    power = np.nanmean(z**2)
    for i in range(-2, 3):
        for j in range(-2, 3):
            pairs = [z[a,b,c]*z[a+i,b+j,c] for a in range(12) for b in range(15) for c in range(2) if 0<=a+i<12 and 0<=b+j<15]
            assert auto[2+i,2+j]==pytest.approx(np.nanmean(pairs)/power, abs=1e-9)
    assert bound==pytest.approx(3/math.sqrt(359))
    flat = [colouredness(np.random.default_rng(i).standard_normal((40, 40, 1))) for i in range(20)]
    assert .8<np.mean(flat)<1.2

def test_intervals_cover():
    "Of 200 intervals of 90 %, about that many hold the truth (30 pictures, percentile bootstrap)"
    rng,hit = np.random.default_rng(0),0
    for i in range(200):
        a = rng.normal(0, 5, 30)
        mean,low,high = paired_interval(a + rng.normal(.3, 1, 30), a, .9, 600, i)
        hit += low<.3<high
    assert 164<=hit<=195
    assert paired_interval([1.], [0.])[0]==1 and math.isnan(paired_interval([1.], [0.])[1])

def test_evaluation_is_the_same_twice(tmp_path):
    pairs = {str(i): (exposed(x := scene(24, (10*i, 30))), x) for i in range(2)}
    a,b = (evaluate_lowlight(pairs, PRIOR, CAL, .1, out=tmp_path/'s.json', progress=False) for _ in range(2))
    assert a.equals(b) and a.index.get_level_values('mode').nunique()==6
    with pytest.raises(DataError, match='none'): evaluate_lowlight([], PRIOR, CAL, .1)
    with pytest.raises(ValueError, match='mode is one of'): evaluate_lowlight(pairs, PRIOR, CAL, .1, modes=('best',))

@pytest.mark.parametrize('name', ['chelsea', 'flower'])
def test_blind_noise_is_found(name):
    "Standard deviation of white noise within 35 % on photographs, and at least 1.5 dB gained"
    x = torch.from_numpy(load_photo(name, 160)[:160,:160].transpose(2, 0, 1).copy())*.8 + .1
    y = (x + .04*torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    m = estimate_noise(y)
    assert .65<float(m.variance.sqrt().mean())/.04<1.35
    r = enhance_blind(y)
    assert db(r.image, x.permute(1, 2, 0))>db(y, x)+1.5
    assert r.image.shape==(160, 160, 3) and r.evaluations==9

def test_blind_sources(tmp_path):
    from PIL import Image
    a = (255*load_photo('chelsea', 64)[:50,:40]).astype(np.uint8)
    Image.fromarray(a).save(tmp_path/'a.png')
    one,two = enhance_blind(tmp_path/'a.png'),enhance_blind(a)
    np.testing.assert_array_equal(one.image, two.image)
    assert enhance_blind(a[...,:1]).image.shape==(50, 40, 1)
    given = NoiseModel(torch.tensor([.5]), torch.full((1, 3), 1e-8), torch.ones(3, 64))
    assert np.abs(enhance_blind(a, noise=given).image - a/np.float32(255)).max()<.01
    np.testing.assert_allclose(enhance_blind(a, Identity()).image, a/np.float32(255), atol=1e-5)
    (tmp_path/'b.png').write_bytes(b'no picture')
    with pytest.raises(DataError, match='b.png'): enhance_blind(tmp_path/'b.png')
    for bad in (np.zeros((9, 9, 3), np.float32), np.full((20, 20, 3), 2., np.float32), np.zeros((20, 20, 2), np.float32)):
        with pytest.raises(ValueError): enhance_blind(bad)
    flat = enhance_blind(np.full((20, 20, 3), .5, np.float32)) # no noise at all
    np.testing.assert_allclose(flat.image, .5, atol=1e-6)

def test_deepinv():
    "Its HQS with our parts is our HQS; its gradient of our likelihood is that of autograd; its sampler runs with our prior"
    deepinv = pytest.importorskip('deepinv')
    from clearsight_nb.lowlight.guidance import hqs_levels, one_shot
    from clearsight_nb.lowlight.interop import as_data_fidelity, as_deepinv_denoiser, as_prior
    from clearsight_nb.lowlight.likelihoods import PoissonGaussian
    prior = GaussianDenoiser(torch.full((3, 6, 6), .3), .02*torch.eye(108) + .02, EDM(sigma_data=.2))
    g = torch.Generator().manual_seed(0)
    x = (.3 + .2*torch.randn(2, 3, 6, 6, generator=g)).clamp(.02, 1)
    y = torch.poisson(100*x, generator=g)
    full = torch.rand(x.shape, generator=g)<.1
    m = Measurement(y, 100., Gaussian(torch.full_like(y, 30.)), weight=(torch.rand(x.shape, generator=g)<.9).float(), saturated=full)
    s = hqs_levels(m, 6, one_shot(prior, m), 'plain', .4)[:,0].tolist()
    algorithm = deepinv.optim.HQS(as_data_fidelity(m), deepinv.optim.PnP(as_deepinv_denoiser(prior)), stepsize=[o**2 for o in s], g_param=s, max_iter=6)
    out = algorithm(m.exposure_scaled(), deepinv.physics.Denoising(), init=one_shot(prior, m))
    torch.testing.assert_close(out, hqs(prior, m, 6, rule='plain'), atol=2e-4, rtol=0)
    p = Measurement(y, 100., PoissonGaussian(2.))
    like = PoissonGaussian(2.).score(y.double(), 100*x.double())*-100
    torch.testing.assert_close(as_data_fidelity(p).grad(x.double(), p.exposure_scaled()), like, rtol=1e-4, atol=1e-3)
    sampler = deepinv.sampling.DPS(as_deepinv_denoiser(prior), num_steps=10, rng=torch.Generator().manual_seed(0))
    drawn = sampler(p.exposure_scaled(), deepinv.physics.Denoising(), seed=0)
    assert drawn.shape==x.shape and drawn.isfinite().all()
    torch.testing.assert_close(as_prior(as_deepinv_denoiser(prior))(x, .1), prior(x, .1))
