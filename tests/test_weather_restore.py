"Restoring: any picture, bounded memory, nothing lost when a file is bad, the published loop for batches and odd sizes."
import numpy as np, pytest, torch
from PIL import Image
from clearsight_nb.core.diffusion import VP, Denoiser, concat_cond
from clearsight_nb.core.files import DataError
from clearsight_nb.weather.model import weather_unet
from clearsight_nb.weather.restore import RestorePreset, Restorer, restore, restore_batch

SIXTEEN = dict(image_size=16, ch=32, ch_mult=(1,1), num_res_blocks=1, attn_resolutions=())
QUICK = RestorePreset('ddim', 2, 'leading', 1, 'average')

@pytest.fixture(scope='module')
def net(): return Restorer(Denoiser(concat_cond(weather_unet(seed=0, **SIXTEEN)), VP(), 'epsilon'), 16, 'reference', 'random')

def picture(shape=(20,30,3), seed=0): return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'CMYK', 'I;16'])
def test_kinds_of_pictures(net, mode, tmp_path):
    "Greyscale, transparent, palette, CMYK and 16-bit pictures are restored as RGB of the same size"
    a = picture()
    im = Image.fromarray(a[...,0].astype(np.uint16)*257) if mode=='I;16' else Image.fromarray(a).convert(mode)
    path = tmp_path/('x.tif' if mode=='CMYK' else 'x.png')
    im.save(path)
    out = restore(path, net, preset=QUICK, progress=False)
    assert out.shape==(20,30,3) and out.dtype==np.float32 and 0<=out.min() and out.max()<=1

def test_orientation(net, tmp_path):
    "A photograph that was held upright comes out upright"
    im = Image.fromarray(picture())
    exif = im.getexif()
    exif[0x0112] = 6
    im.save(tmp_path/'x.jpg', exif=exif, quality=95)
    assert restore(tmp_path/'x.jpg', net, preset=QUICK, progress=False).shape==(30,20,3)
    restore(tmp_path, net, tmp_path/'out', preset=QUICK, progress=False)
    with Image.open(tmp_path/'out'/'x.png') as out: assert out.size==(20,30) and not out.getexif()

@pytest.mark.parametrize('shape', [(1,1), (3,40), (16,16), (17,33), (40,5)])
def test_any_size(net, shape): assert restore(picture((*shape,3)), net, preset='fast', progress=False).shape==(*shape,3)

def test_bounded_batches(net, monkeypatch):
    "The network never sees more patches at a time than it was told, and each photograph comes out as it does alone"
    seen,forward = [],net.denoiser.net.forward
    monkeypatch.setattr(net.denoiser.net, 'forward', lambda x, *a: seen.append(len(x)) or forward(x, *a))
    x = torch.from_numpy(picture((2,3,24,40))/np.float32(255))
    p = RestorePreset('ddim', 3, 'leading', 1/4, 'average')
    both = restore_batch(net, x, p, seed=[4, 5], batch=7)
    assert max(seen)==7
    for k in range(2): torch.testing.assert_close(both[k:k+1], restore_batch(net, x[k:k+1], p, seed=[4+k], batch=64), atol=1e-4, rtol=0)

@pytest.mark.parametrize('bad', [b'', b'\x89PNG\r\n\x1a\nnot an image', 'cut'])
def test_a_bad_file_in_a_folder(net, bad, tmp_path):
    "It is named before anything is written"
    folder = tmp_path/'in'
    folder.mkdir()
    for k in range(2): Image.fromarray(picture(seed=k)).save(folder/f'{k}.png')
    (folder/'2.png').write_bytes((folder/'1.png').read_bytes()[:300] if bad=='cut' else bad)
    with pytest.raises(DataError, match='2.png'): restore(folder, net, tmp_path/'out', preset=QUICK, progress=False)
    assert not (tmp_path/'out').exists()

def test_names_stay_apart(net, tmp_path):
    (tmp_path/'in').mkdir()
    for name in ('a.png', 'a.jpg'): Image.fromarray(picture()).save(tmp_path/'in'/name)
    files = restore(tmp_path/'in', net, tmp_path/'out', preset=QUICK, samples=2, progress=False)
    assert sorted(f.name for f in files)==['a.jpg.png', 'a.png.png'] and all(f.exists() for f in files)
    with pytest.raises(ValueError, match='another folder'): restore(tmp_path/'in', net, tmp_path/'in', progress=False)
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match='holds no pictures'): restore(tmp_path/'empty', net, tmp_path/'o', progress=False)

def test_no_nan_at_the_border(net):
    "Sizes and strides at which the published loop leaves a border of NaN"
    x = torch.from_numpy(picture((1,3,28,30))/np.float32(255))
    for stride in (3/4, 1, .3): assert restore_batch(net, x, RestorePreset('ddim', 2, 'leading', stride, 'average')).isfinite().all()
