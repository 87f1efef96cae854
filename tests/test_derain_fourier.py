"The Fourier codec against numpy and against itself, on random pictures of random sizes."
import math
import numpy as np, pytest, torch
from clearsight_nb.core.files import DataError
from clearsight_nb.derain.fourier import (REPRESENTATIONS, Codec, direction, fourier_noise, from_magphase, full_plane, image, log_magnitude, magphase, oracle,
    phase_difference, spectrum)

SIZES = [(64,64), (65,65), (128,128), (63,50), (96,129), (11,16), (2,3), (1,1)]

def pair(h, w, seed=0, b=3):
    g = torch.Generator().manual_seed(seed)
    clean = torch.nn.functional.interpolate(torch.rand(b, 3, max(2, h//4), max(2, w//4), generator=g), (h, w), mode='bilinear') # smooth, as photographs are
    return clean,(clean + .3*(torch.rand(b, 1, h, w, generator=g)<.1)).clamp(0, 1)

@pytest.fixture(scope='module')
def codecs(): return {k: Codec(k).fit(pair(64, 64, s) for s in range(3)) for k in REPRESENTATIONS}

@pytest.mark.parametrize('size', SIZES)
def test_round_trip(codecs, size):
    for seed in range(3):
        clean,rain = pair(*size, seed)
        for k in ('complex', 'magphase', 'spatial'): assert (codecs[k].decode(codecs[k].encode(clean, rain), rain)-clean).abs().max() < 1e-5
        for one,both in zip((codecs['magphase'].encode(clean, rain), codecs['magphase'].condition(rain)), codecs['magphase'].encode_pair(clean, rain)): assert (one-both).abs().max() < 1e-3

@pytest.mark.parametrize('kind', REPRESENTATIONS)
def test_into_given_tensors(codecs, kind):
    "Encoding into parts of a large array gives the same bits and touches nothing else"
    c,(clean,rain) = codecs[kind],pair(33, 20)
    shape = c.state_shape(clean.shape)
    all_ = [torch.full((2+shape[0], *shape[1:]), 7.) for _ in range(2)]
    for given,x,new in zip(all_, c.encode_pair(clean, rain, [o[1:-1] for o in all_]), c.encode_pair(clean, rain)):
        assert torch.equal(x, new) and torch.equal(given[1:-1], new) and (given[[0,-1]]==7).all()
    with pytest.raises(ValueError, match='out is'): c.encode_pair(clean, rain, [o[1:] for o in all_])

@pytest.mark.parametrize('size', SIZES[:6])
def test_flat_and_black(codecs, size):
    flats = torch.tensor([0., 1e-3, .5, 1])[:,None,None,None].expand(4, 3, *size)
    noisy = torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(1))
    for clean,rain in ((flats, noisy), (noisy, flats), (flats, flats.flip(0)), (0*flats, 0*flats)):
        for k in ('complex', 'magphase', 'spatial'): assert (codecs[k].decode(codecs[k].encode(clean, rain), rain)-clean).abs().max() < 1e-5

def test_magphase_is_numpy_s():
    "Log magnitudes and wrapped phases as numpy computes them from the full plane in double precision"
    clean,rain = pair(33, 40, 5)
    A,B = (np.fft.rfft2(x.double().numpy(), norm='ortho') for x in (clean, rain))
    mag = np.log1p(255*abs(A))-np.log1p(255*abs(B))
    turn = (np.angle(A)-np.angle(B)+np.pi)%(2*np.pi)-np.pi
    d = magphase(*(spectrum(x) for x in (clean, rain))).double().numpy()
    sure = (abs(A)>1e-3) & (abs(B)>1e-3) & (abs(turn)<3.1) # float32 cannot know the phase of less
    assert abs(16*d[:,:3]-mag).max() < 1e-4 and abs(math.pi*d[:,3:]-turn)[sure].max() < 1e-2 and abs(d).max() <= 1

def test_wrapped_whatever_the_angles():
    g = torch.Generator().manual_seed(0)
    a,b = (2*math.pi*torch.rand(10_000, generator=g)-math.pi for _ in range(2))
    d = phase_difference(torch.polar(torch.rand(10_000, generator=g)+.1, a), torch.polar(torch.rand(10_000, generator=g)+.1, b))
    assert d.abs().max() <= math.pi+1e-6 and ((d-(a-b)).sin().abs().max() < 1e-4)

@pytest.mark.parametrize('size', [(8,8), (9,9), (8,9), (9,8), (1,6)])
def test_full_plane(size):
    x = torch.randn(2, 3, *size)
    assert torch.allclose(full_plane(spectrum(x), size[1]), torch.fft.fftshift(torch.fft.fft2(x, norm='ortho'), dim=(-2,-1)), atol=1e-5)

def test_hermitian_by_construction(codecs):
    "Whatever a network writes into a state, the picture is real; and what is not Hermitian in it does not matter"
    clean,rain = pair(24, 24)
    for c in codecs.values():
        wild = torch.randn(c.state_shape(rain.shape))
        y = c.decode(wild, rain)
        assert y.dtype==torch.float32 and y.isfinite().all()
        x = c.as_picture(wild, (24,24))
        assert torch.allclose(c.as_picture(c.as_state(x), (24,24)), x, atol=1e-5)
        if c.linear: assert torch.allclose(c.decode(c.as_state(x), rain), y, atol=1e-4)

def test_noise_is_that_of_an_image(codecs):
    n = fourier_noise((300, 3, 16, 17), torch.Generator().manual_seed(3))
    assert abs(image(n, (16,17)).var().item()-1) < .02 and abs(n[...,1:].real.var().item()-.5) < .02
    for c in codecs.values():
        a,b = (c.noise((4, 3, 16, 17), torch.Generator().manual_seed(s)) for s in (7, 7))
        assert torch.equal(a, b) and abs(c.as_picture(a, (16,17)).var().item()-1) < .1

@pytest.mark.parametrize('kind', REPRESENTATIONS)
def test_gradients(codecs, kind):
    c = codecs[kind]
    for x in (torch.zeros(1,3,12,13), torch.full((1,3,12,13), .7), pair(12, 13, b=1)[0]):
        for y in (torch.zeros(1,3,12,13), pair(12, 13, b=1)[1]):
            a = x.clone().requires_grad_()
            s = c.encode(a, y)
            s.square().mean().backward()
            t = s.detach().requires_grad_()
            c.decode(t, y).square().mean().backward()
            assert a.grad.isfinite().all() and t.grad.isfinite().all()
            assert kind=='magnitude' and (x==0).all() or (x==0).all() or a.grad.abs().sum() > 0

def test_gradcheck():
    "Analytic gradients of log magnitude, direction and wrapped phase against differences, in double precision"
    x = torch.rand(1, 1, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    other = spectrum(torch.rand(1, 1, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    assert torch.autograd.gradcheck(lambda o: log_magnitude(spectrum(o)), (x,), eps=1e-7, atol=1e-4)
    assert torch.autograd.gradcheck(lambda o: phase_difference(spectrum(o)[...,1:-1], other[...,1:-1]), (x,), eps=1e-7, atol=1e-4)
    assert torch.autograd.gradcheck(lambda o: direction(spectrum(o)).imag, (x,), eps=1e-7, atol=1e-4)

def test_statistics_fit_any_size(codecs):
    "Fitted at 64 pixels, the mean square of a state is near 1 at other sizes"
    for size in ((96,64), (128,128), (65,97)):
        clean,rain = pair(*size, 11, b=6)
        for k in ('complex', 'magphase'): assert .5 < codecs[k].as_picture(codecs[k].encode(clean, rain), size).square().mean() < 2

def test_checkpoints(codecs):
    for k,c in codecs.items():
        for other in REPRESENTATIONS:
            fresh = Codec(other)
            if k==other:
                fresh.load_state_dict(c.state_dict())
                assert torch.equal(fresh.encode(*pair(32, 32)), c.encode(*pair(32, 32)))
            else:
                with pytest.raises(DataError, match=f"representation '{k}'"): fresh.load_state_dict(c.state_dict())
    old = codecs['complex'].state_dict()
    old['label'] = old['label'].clone()
    old['label'][0] = 9
    with pytest.raises(DataError, match='version 9'): Codec('complex').load_state_dict(old)

def test_maps_follow_the_statistics():
    "A codec that is loaded or fitted anew does not go on with what it kept"
    a,b = (Codec('complex').fit([pair(32, 32, s)]) for s in (1, 2))
    x = pair(32, 32, 3)
    want = b.encode(*x)
    a.encode(*x)
    a.load_state_dict(b.state_dict())
    assert torch.equal(a.encode(*x), want)
    with torch.inference_mode(): a.encode(*pair(16, 16))
    y = pair(16, 16)[0].requires_grad_() # what was kept in inference mode does for training, too
    a.encode(y, pair(16, 16)[1]).sum().backward()

def test_bad_input(codecs):
    c = codecs['complex']
    with pytest.raises(ValueError, match='one size'): c.encode(torch.rand(1,3,8,8), torch.rand(1,3,8,9))
    with pytest.raises(ValueError, match=r'\(b, 3, h, w\)'): c.condition(torch.rand(1,4,8,8))
    with pytest.raises(ValueError, match='no statistics'): Codec().condition(torch.rand(1,3,8,8))
    with pytest.raises(DataError, match='are none'): Codec().fit([])
    with pytest.raises(ValueError, match="'magnitude' or 'phase'"): oracle(torch.rand(1,3,8,8), torch.rand(1,3,8,8), 'both')

def test_oracles():
    clean,rain = pair(48, 40)
    assert torch.allclose(oracle(clean, clean), clean, atol=1e-5)
    F = spectrum(oracle(clean, rain, 'magnitude')*1.)
    assert F.isfinite().all()
    both = from_magphase(magphase(spectrum(clean), spectrum(rain)), spectrum(rain))
    assert (image(both, (48,40))-clean).abs().max() < 1e-5
