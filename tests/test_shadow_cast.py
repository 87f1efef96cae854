"Casting shadows: geometry to the pixel, objects untouched in files, bad input named, and a widget that keeps up with the hand."
import asyncio, io
import numpy as np, pytest, torch
from PIL import Image
from clearsight_nb.core.files import DataError
from clearsight_nb.shadow.cast import (FILL, FOOT, ShadowCaster, cast_shadow, clean_map, fill_hidden, frame_cutout, load_caster, png_bytes, read_cutout,
    resampling, stored_weights, unfold)
from clearsight_nb.shadow.models import save_net, shadow_net
from clearsight_nb.shadow.render import Light
from clearsight_nb.shadow.train import possible

LIGHT = Light(30, 0, 2)

@pytest.fixture(scope='module')
def caster(): return ShadowCaster(shadow_net('tiny', seed=0, widths=(8, 16), attention=0), 32, 'random')

class Blob(ShadowCaster):
    "Casts a known shadow: a Gaussian at a known place of the square"
    def __init__(self, x=.35, y=.7, sigma=.05, n=64): self.x,self.y,self.sigma,self.image_size,self.calls = x,y,sigma,n,0
    def __call__(self, image, mask, light, steps=1, seed=0):
        self.calls += 1
        o = (torch.arange(self.image_size)+.5)/self.image_size
        s = torch.exp(-((o-self.x)**2 + (o[:,None]-self.y)**2)/(2*self.sigma**2))[None,None]
        return possible(s, torch.zeros_like(s))

def cutout(h=60, w=80, box=(20, 40, 30, 55), seed=0):
    "An opaque block with soft edges in a transparent picture, uint8"
    a = np.random.default_rng(seed).integers(0, 256, (h, w, 4), dtype=np.uint8)
    a[...,3] = 0
    y0,y1,x0,x1 = box
    a[y0-1:y1+1,x0-1:x1+1,3] = 128
    a[y0:y1,x0:x1,3] = 255
    return a

def test_resampling_matches_torch():
    "Both kernels, reducing and enlarging at random scales, agree with torch inside the picture to 2e-5"
    rng = np.random.default_rng(0)
    for _ in range(30):
        n,m,cubic = int(rng.integers(20, 90)),int(rng.integers(20, 200)),bool(rng.integers(2))
        x = torch.from_numpy(rng.random((1, 1, 1, n), dtype=np.float32))
        want = torch.nn.functional.interpolate(x, (1, m), mode='bicubic' if cubic else 'bilinear', antialias=True)[0,0,0].numpy()
        got = resampling(n, m, 0, n/m, cubic)@x[0,0,0].numpy()
        edge = int(np.ceil(2*max(1, n/m)/(n/m)))+1
        np.testing.assert_allclose(got[edge:-edge], want[edge:-edge], atol=2e-5)

def test_place_of_the_shadow():
    "A shadow at a known place of the square comes out at that place of the picture, to a fifth of a pixel, at any size"
    rng = np.random.default_rng(0)
    for _ in range(12):
        h,w = (int(o) for o in rng.integers(40, 300, 2))
        y0,x0 = int(rng.integers(2, h//2)),int(rng.integers(2, w//2))
        a = cutout(h, w, (y0, int(rng.integers(y0+8, h-1)), x0, int(rng.integers(x0+8, w-1))))
        caster = Blob(*rng.uniform(.25, .75, 2), n=int(rng.choice([32, 64])))
        r = cast_shadow(a, *vars(LIGHT).values(), weights=caster)
        left,top,side = frame_cutout(a[...,3]/255)
        s = unfold(torch.as_tensor(caster(None, None, None)[0,0]).numpy(), (left, top, side), np.float32(a/255), LIGHT) # without the filling under the object
        y,x = np.indices(s.shadow.shape)
        got = [((c+.5)*s.shadow).sum()/s.shadow.sum()-o for c,o in ((x, s.offset[0]), (y, s.offset[1]))]
        np.testing.assert_allclose(got, (left + caster.x*side, top + caster.y*side), atol=.2)
        assert r.offset[0]>=0 and r.cutout.shape[:2]==r.shadow.shape
        np.testing.assert_array_equal(r.cutout[r.offset[1]:,r.offset[0]:][:h,:w], np.float32(a)/np.float32(255))

def test_frame():
    "Larger side and foot are where training had them"
    a = cutout()[...,3]/255
    left,top,side = frame_cutout(a)
    assert side==pytest.approx(27/FILL) and (41-top)/side==pytest.approx(FOOT) and left+side/2==pytest.approx(42.5)

@pytest.mark.parametrize('shape', [(2, 3), (7, 400), (333, 5)])
def test_odd_sizes(caster, shape):
    a = np.zeros((*shape, 4), np.float32)
    a[1:,1:] = 1
    r = cast_shadow(a, *vars(LIGHT).values(), weights=caster)
    assert np.isfinite(r.shadow).all() and 0<=r.shadow.min() and r.shadow.max()<=1 and r.inner==shape

def test_expand():
    "A long shadow makes the layer grow, and only where it needs to; without `expand` it is cut at the cut-out's border"
    a = np.ones((40, 40, 4), np.float32)
    a[0,0,3] = 0
    grown = cast_shadow(a, *vars(LIGHT).values(), weights=Blob(.15, .6))
    kept = cast_shadow(a, *vars(LIGHT).values(), weights=Blob(.15, .6), expand=False)
    x,y = grown.offset
    assert x>20 and grown.shadow.shape[1]==x+40 and kept.shadow.shape==(40, 40) and kept.offset==(0, 0)
    np.testing.assert_allclose(grown.shadow[y:,x:][:40,:40], kept.shadow, atol=1e-6)
    border = np.concatenate([grown.shadow[0], grown.shadow[-1], grown.shadow[:,0]])
    assert grown.shadow.max()>.95 and border.max()<.05 # nothing is cut

def test_no_bright_seam():
    "An evenly dark ground stays evenly dark up to the object and under it"
    hidden = torch.zeros(24, 24)
    hidden[8:16,9:14] = 1
    torch.testing.assert_close(clean_map(.7*(1-hidden), hidden)[3:-3,3:-3], torch.full((18, 18), .7))
    assert fill_hidden(torch.ones(4, 4), torch.ones(4, 4, dtype=bool)).max()==0 # nothing is known: no shadow, and it ends

def test_composite(caster):
    "Object pixels to the last bit, intensity 0 leaves the ground, linear, darker with every step"
    a,rng = np.float32(cutout())/np.float32(255),np.random.default_rng(0)
    r,ground = cast_shadow(a, *vars(LIGHT).values(), weights=caster),rng.random((60, 80, 3), dtype=np.float32)
    assert r.shadow.max()>.1
    xs = [r.change(intensity=i/4).composite(ground) for i in range(5)]
    for x in xs: np.testing.assert_array_equal(x[a[...,3]==1], a[a[...,3]==1][:,:3])
    np.testing.assert_array_equal(xs[0][a[...,3]==0], ground[a[...,3]==0])
    for lower,upper in zip(xs[1:], xs): assert (lower<=upper+1e-7).all()
    np.testing.assert_allclose(xs[1], .75*xs[0]+.25*xs[4], atol=1e-6)
    brown = r.change(color=(.5, .2, 0))
    m = brown.merged
    np.testing.assert_allclose(m[...,:3]*m[...,3:] + 1-m[...,3:], brown.composite(1.), atol=1e-6) # on white, painting and multiplying agree
    np.testing.assert_array_equal(r.change(color=1).composite(ground), xs[0]) # a white shadow is none

def test_backgrounds(caster):
    r = cast_shadow(cutout(), *vars(LIGHT).values(), weights=caster)
    x,y = r.offset
    h,w = r.shadow.shape
    large = np.full((200, 300, 3), .5, np.float32)
    a = r.composite(large, at=(100, 90))
    np.testing.assert_array_equal(a[90-y:90-y+h,100-x:100-x+w], r.composite(.5))
    np.testing.assert_array_equal(r.composite(large[:60,:80]), r.composite(.5)[y:y+60,x:x+80]) # the cut-out's size
    np.testing.assert_array_equal(r.composite(large, at=(-40, 180))[180:,:40], r.composite(.5)[y:y+20,x+40:x+80]) # juts out
    for where in ((-1000, 0), (0, 999)): np.testing.assert_array_equal(r.composite(large, at=where), large)
    np.testing.assert_array_equal(r.composite(Image.new('L', (w, h), 255)), r.composite())
    with pytest.raises(ValueError, match='say by `at`'): r.composite(large)
    with pytest.raises(ValueError, match='a colour is in 0…1'): r.composite((255, 255, 255))

def test_files_keep_object_pixels(caster, tmp_path):
    "From a PNG to a PNG, the object's opaque pixels are the same bytes"
    a = cutout()
    (tmp_path/'in').mkdir()
    Image.fromarray(a).save(tmp_path/'in'/'a.png')
    Image.fromarray(a).save(tmp_path/'in'/'a.webp', lossless=True)
    files = cast_shadow(tmp_path/'in', *vars(LIGHT).values(), weights=caster, out=tmp_path/'out', progress=False)
    assert [f.name for f in files]==['a.png.png']*2 + ['a.webp.png']*2 # two of one name stay apart
    r = cast_shadow(a, *vars(LIGHT).values(), weights=caster)
    got = np.asarray(Image.open(files[0]))[r.offset[1]:,r.offset[0]:][:60,:80]
    np.testing.assert_array_equal(got[a[...,3]==255], a[a[...,3]==255])
    on_grey = np.asarray(Image.open(io.BytesIO(png_bytes(r.composite(Image.new('RGB', (80, 60), (77, 77, 77)))))))
    np.testing.assert_array_equal(on_grey[a[...,3]==255], a[a[...,3]==255][:,:3])
    assert np.asarray(Image.open(files[1])).shape==(*r.shadow.shape, 4)

def test_deterministic(caster):
    a = cutout()
    one,two,other = (cast_shadow(a, *vars(LIGHT).values(), weights=caster, seed=s).shadow for s in (0, 0, 1))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert not np.array_equal(one, cast_shadow(a, *vars(LIGHT).values(), weights=caster, steps=3).shadow)

@pytest.mark.parametrize('light,what', [((60, 0, 2), 'theta is 0…45, not 60'), ((30, 400, 2), 'phi'), ((30, 0, 0), 'size is 2…8, not 0'), ((float('nan'), 0, 2), 'theta')])
def test_bad_lights(light, what):
    with pytest.raises(ValueError, match=what): cast_shadow(cutout(), *light) # before weights are looked for

@pytest.mark.parametrize('kind,what', [('jpg', 'x.jpg: has no alpha channel.*mask'), ('clear', 'x.png: is transparent all over'), ('opaque', 'x.png: is opaque all over'),
    ('cut', 'x.png: is cut short or damaged'), ('missing', 'x.png: does not exist'), ('text', 'x.png: is not an image that can be read'), ('grey', 'x.png: has no alpha channel')])
def test_bad_cutouts(caster, tmp_path, kind, what):
    a,path = cutout(),tmp_path/('x.jpg' if kind=='jpg' else 'x.png')
    if kind in ('clear', 'opaque'): a[...,3] = 255*(kind=='opaque')
    if kind=='text': path.write_text('no picture')
    elif kind!='missing': (Image.fromarray(a) if kind in ('clear', 'opaque', 'cut') else Image.fromarray(a[...,:3]).convert('L' if kind=='grey' else 'RGB')).save(path)
    if kind=='cut': path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=what): cast_shadow(path, *vars(LIGHT).values(), weights=caster)

def test_pairs(tmp_path):
    "A JPEG with a mask file is a cut-out; a mask of another size, in colours or with 0 and 1 in bytes is none"
    a = cutout()
    Image.fromarray(a[...,:3]).save(tmp_path/'x.jpg', quality=100)
    Image.fromarray(a[...,3]).save(tmp_path/'m.png')
    got = read_cutout((tmp_path/'x.jpg', tmp_path/'m.png'))
    np.testing.assert_array_equal(got[...,3], a[...,3]/np.float32(255))
    np.testing.assert_array_equal(read_cutout((a[...,:3], a[...,3]>100))[...,3], a[...,3]>100)
    for mask,what in ((a[:-1,:,3], 'is 80×59 pixels, the picture 80×60'), (a[...,:3], 'is a colour picture'), (a[...,3]//128, 'transparent all over'), (a[...,3].astype(int), 'type int')):
        with pytest.raises(DataError, match=what): read_cutout((a[...,:3], mask))

def test_kinds_of_transparency():
    "Palette and grey with transparency are cut-outs as RGBA is"
    im = Image.fromarray(cutout())
    np.testing.assert_array_equal(read_cutout(im.convert('LA'))[...,3], np.asarray(im)[...,3]/np.float32(255))
    p = Image.fromarray(np.uint8(np.indices((20, 20)).sum(0)>15)).convert('P')
    p.info['transparency'] = 0
    assert 0<read_cutout(p)[...,3].mean()<1

def test_weights(caster, tmp_path, monkeypatch):
    "Stored weights are found where the package is; what is no shadow network is named"
    import clearsight_nb
    monkeypatch.setattr(clearsight_nb, '__file__', str(tmp_path/'__init__.py'))
    with pytest.raises(DataError, match='shadow_small.safetensors: is not in this copy'): load_caster()
    (tmp_path/'weights').mkdir()
    file = save_net(caster.net, tmp_path/'weights'/'shadow_small.safetensors', image_size=32)
    assert stored_weights()==file and load_caster(device='cpu').image_size==32
    save_net(caster.net, file)
    with pytest.raises(DataError, match='does not say how large'): load_caster()
    file.write_bytes(b'nothing')
    with pytest.raises(DataError, match='shadow_small.safetensors'): load_caster(file)
    from safetensors.torch import save_file
    save_file({'a': torch.zeros(1)}, file)
    with pytest.raises(DataError, match='not a file of shadow weights'): load_caster(file)

def decoded(v): return np.asarray(Image.open(io.BytesIO(v.png))).astype(int)

def test_light_viewer(caster):
    "Each slider changes the picture and no slider the object; the network is asked only for another light; every button of the dome is a light, and gets the sun"
    pytest.importorskip('ipywidgets')
    from clearsight_nb.shadow.widget import LightViewer
    v = LightViewer(cutout(), caster, background=.5, px=120)
    v.ui
    solid,start = v.stage[...,3]==1,decoded(v)
    assert solid.sum()>200
    for k,x in dict(theta=10, phi=300, size=7, intensity=.4).items():
        before,asked = decoded(v),v.cast.cache_info().misses
        v.inputs[k].value = x
        assert (decoded(v)!=before).any() and np.array_equal(decoded(v)[solid], start[solid]) and v.cast.cache_info().misses==asked+(k!='intensity')
    v.inputs['intensity'].value = 0
    a = v.stage[...,3:]
    assert abs(decoded(v) - 255*(a*v.stage[...,:3] + (1-a)*np.float32(.5))).max()<=.501
    n = v.drawings
    v.dome.buttons[(0, -1)].click()
    assert v.drawings==n+1 and v.state==dict(theta=45, phi=270, size=7, intensity=0)
    v.dome.buttons[(0, 0)].click() # the zenith has no direction: phi stays
    assert v.state==dict(theta=0, phi=270, size=7, intensity=0)
    assert sum(b.description=='☀' for b in v.dome.buttons.values())==1
    for b in v.dome.buttons.values():
        b.click()
        assert b.description=='☀'

def test_light_viewer_follows_the_last_value(caster):
    "Fifty values while a loop runs make one drawing, of the last, and ask the network once; the next change is drawn again"
    pytest.importorskip('ipywidgets')
    from clearsight_nb.shadow.widget import LightViewer
    v = LightViewer(cutout(), caster, px=60)
    v.ui
    async def drag(values):
        for x in values: v.inputs['phi'].value = x
        await asyncio.sleep(.15)
    n,asked = v.drawings,v.cast.cache_info().misses
    asyncio.run(drag(range(0, 250, 5)))
    assert v.drawings==n+1 and v.cast.cache_info().misses==asked+1 and 'towards 245°' in v.image.tooltip
    asyncio.run(drag([10]))
    assert v.drawings==n+2 and 'towards 10°' in v.image.tooltip

def test_light_viewer_refuses(caster):
    from clearsight_nb.shadow.widget import LightViewer
    with pytest.raises(ValueError, match='theta'): LightViewer(cutout(), caster, theta=60)
    with pytest.raises(ValueError, match='stage is square'): LightViewer(cutout(), caster, background=np.ones((20, 30, 3), np.float32))
