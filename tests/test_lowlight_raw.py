"Raw files that a page cannot show: damaged and strange ones, a reference demosaicing, interrupted tiling."
import io,json,struct,sys
import numpy as np, pytest, torch
from clearsight_nb.core.files import DataError
from clearsight_nb.lowlight import raw as raw_module, raw_tiles
from clearsight_nb.lowlight.demosaicing import demosaic, demosaic_mosaic, demosaic_variance, preview
from clearsight_nb.lowlight.metadata import read_metadata
from clearsight_nb.lowlight.raw import cfa, pack, raw_facts, read_raw, write_dng
from clearsight_nb.lowlight.raw_tiles import even_starts, exposure_in_name, plan_tiles, tile_raw
from clearsight_nb.lowlight.tiles import read_tile

BAYER = ['RGGB', 'BGGR', 'GRBG', 'GBRG']
XTRANS = 'GBRGRBRGGBGGBGGRGGGRBGBRBGGRGGRGGBGG'

@pytest.fixture(autouse=True)
def _rawpy(): pytest.importorskip('rawpy', reason='rawpy is not installed: pip install "clearsight_nb[raw]"')

@pytest.fixture
def counts(): return np.random.default_rng(0).integers(0, 16384, (60, 80))

def patch_tag(path, code, value, type_=None, new_code=None):
    "Change an entry of a DNG's first directory in place; values of four bytes only"
    b = bytearray(path.read_bytes())
    at, = struct.unpack_from('<I', b, 4)
    for i in range(struct.unpack_from('<H', b, at)[0]):
        c,t,n,_ = struct.unpack_from('<HHI4s', b, e := at+2+12*i)
        if c == code:
            struct.pack_into('<HHI4s', b, e, new_code or c, type_ or t, n, value)
            return path.write_bytes(b)
    raise KeyError(code)

# What is read

@pytest.mark.parametrize('pattern', BAYER)
@pytest.mark.parametrize('shape', [(60, 80), (61, 83)])
def test_written_is_read(tmp_path, pattern, shape):
    a = np.random.default_rng(1).integers(0, 65536, shape)
    write_dng(tmp_path/'a.dng', a, pattern, (0, 100, 200, 300), 65535, iso=25600, exposure=1/30, camera='Acme X')
    r = read_raw(tmp_path/'a.dng')
    assert (r.mosaic == a).all() and r.mosaic.dtype == np.float32 and r.pattern == pattern
    assert (r.black, r.white, r.iso, r.exposure, r.camera) == ((0, 100, 200, 300), 65535, 25600, 1/30, 'Acme X')
    x = pack(r)
    assert x.shape == (4, shape[0]//2, shape[1]//2) and x.dtype == torch.float32
    of = np.tile(cfa(pattern).cell, (31, 42))[:shape[0],:shape[1]]
    assert np.array_equal(np.sort(pack(r, adu=True)[0].numpy().ravel()), np.sort(a[:shape[0]//2*2,:shape[1]//2*2][of[:shape[0]//2*2,:shape[1]//2*2] == 'R']))
    for k,b in enumerate(r.black): assert torch.allclose(x[k]*(65535-b) + b, pack(r, adu=True)[k], atol=.02)

@pytest.mark.parametrize('area', [(1, 0, 59, 78), (0, 1, 60, 79), (3, 5, 58, 78), (2, 4, 60, 80)])
@pytest.mark.parametrize('pattern', BAYER)
def test_visible_crop_turns_pattern_and_black(tmp_path, counts, pattern, area):
    write_dng(tmp_path/'a.dng', counts, pattern, (10, 20, 30, 40), area=area)
    r,f = read_raw(tmp_path/'a.dng'),raw_facts(tmp_path/'a.dng')
    assert r.black == (10, 20, 30, 40) and f['shape'] == r.shape
    h,w = r.shape
    y,x = next((y, x) for y in range(8) for x in range(8) if np.array_equal(counts[y:y+h,x:x+w], r.mosaic))
    of = np.tile(cfa(pattern).cell, (40, 50))[y-area[0]+40:, x-area[1]+40:] # the pattern begins with the active area
    assert ''.join(of[:2,:2].ravel()) == r.pattern

def test_fractional_black_and_large_iso(tmp_path, counts):
    write_dng(tmp_path/'a.dng', counts, iso=409600, exposure=.1, black=64)
    assert read_raw(tmp_path/'a.dng').iso == 409600
    b = bytearray((tmp_path/'a.dng').read_bytes()) # black level 64, 64, 64, 64 → rationals 129/2 behind the file
    at, = struct.unpack_from('<I', b, 4)
    e = next(at+2+12*i for i in range(40) if struct.unpack_from('<H', b, at+2+12*i)[0] == 50714)
    struct.pack_into('<HHII', b, e, 50714, 5, 4, len(b))
    (tmp_path/'a.dng').write_bytes(b + struct.pack('<8I', *[129, 2]*4))
    assert read_raw(tmp_path/'a.dng').black == (64.5,)*4

def test_missing_metadata_is_said(tmp_path, counts):
    write_dng(tmp_path/'a.dng', counts, camera='')
    r = read_raw(tmp_path/'a.dng')
    assert r.exposure is None and r.iso is None
    assert 'exposure unknown' in repr(r) and 'ISO unknown' in repr(r)
    r = read_raw(tmp_path/'a.dng', exposure=.5, iso=800, black=(1, 2, 3, 4), white=9000)
    assert (r.exposure, r.iso, r.black, r.white) == (.5, 800, (1, 2, 3, 4), 9000)
    for k in ('exposure', 'iso', 'white'):
        with pytest.raises(ValueError, match='must be above 0'): read_raw(tmp_path/'a.dng', **{k: -1})

def test_negatives_are_kept(tmp_path):
    a = np.random.default_rng(0).normal(512, 5, (200, 200)).round()
    write_dng(tmp_path/'a.dng', a)
    x = pack(read_raw(tmp_path/'a.dng'))
    assert .4 < (x < 0).float().mean() < .6 and abs(x.mean()*15871) < .15
    assert abs(demosaic(read_raw(tmp_path/'a.dng')).mean()*15871) < .15

# What is refused

def fault(path, f=read_raw, **kwargs):
    with pytest.raises(DataError) as e: f(path, **kwargs)
    assert str(path) in str(e.value) and e.value.mend
    return e.value.fault

@pytest.mark.parametrize('keep', [0, 10, 300, 700, 3000, -200, -40])
def test_cut_short(tmp_path, counts, keep):
    write_dng(tmp_path/'a.dng', counts) # without EXIF only six bytes stand behind the pixels
    whole = (tmp_path/'a.dng').read_bytes()
    (tmp_path/'a.dng').write_bytes(whole[:keep])
    assert any(s in fault(tmp_path/'a.dng') for s in ('cut short', 'is empty', 'no raw file'))

def test_no_raw_file(tmp_path):
    from PIL import Image
    Image.new('RGB', (50, 50)).save(tmp_path/'a.png')
    (tmp_path/'b.ARW').write_text('hello, I am no raw file'*100)
    assert 'no raw file' in fault(tmp_path/'a.png')
    assert any(s in fault(tmp_path/'b.ARW') for s in ('no raw file', 'damaged'))
    assert fault(tmp_path/'none.dng') == fault(tmp_path) == 'does not exist'

def test_noise_in_the_header_never_crashes(tmp_path, counts):
    write_dng(tmp_path/'a.dng', counts, iso=100, exposure=.1)
    whole,rng,read = (tmp_path/'a.dng').read_bytes(),np.random.default_rng(0),0
    for _ in range(150):
        b = bytearray(whole)
        for k in rng.integers(0, 700, 8): b[k] = rng.integers(256)
        (tmp_path/'b.dng').write_bytes(b)
        try: r = read_raw(tmp_path/'b.dng')
        except DataError: continue
        read += 1
        assert r.white > max(r.black) and pack(r).isfinite().all() and np.isfinite(preview(r)).all()
        assert r.exposure is None or r.exposure > 0
    assert 0 < read < 150

@pytest.mark.parametrize('cell', ['3415', '0132', '0662', '1002', '0110', '0000'])
def test_unknown_pattern(tmp_path, counts, cell):
    write_dng(tmp_path/'a.dng', counts)
    patch_tag(tmp_path/'a.dng', 33422, bytes(map(int, cell)))
    f = fault(tmp_path/'a.dng')
    assert 'pattern that cannot be packed' in f or 'no raw file' in f # LibRaw itself refuses the last ones

def test_several_colours_a_pixel(tmp_path, counts):
    import tifffile
    f = io.BytesIO()
    tags = [t for t in raw_module._dng_tags('RGGB', (0,)*4, 16383, 'x', (1, 1, 1), np.eye(3), None) if t[0] not in (33421, 33422)]
    tifffile.imwrite(f, np.stack([counts]*3, -1).astype(np.uint16), photometric=34892, metadata=None, extratags=[(*t, True) for t in tags])
    (tmp_path/'a.dng').write_bytes(f.getvalue())
    assert 'several colours a pixel' in fault(tmp_path/'a.dng')

class Mono:
    "LibRaw's view of a sensor without colour filters"
    color_desc,raw_pattern = b'RGBG',None
    def __init__(self): self.raw_type = raw_module.need_rawpy().RawType.Flat

def test_monochrome():
    with pytest.raises(DataError, match='monochrome'): raw_module._pattern(Mono(), 'a.raw')

def test_absurd_levels(tmp_path, counts):
    for black,white in ((512, 512), (600, 400)):
        write_dng(tmp_path/'a.dng', counts, black=black, white=white)
        assert f'white level of {white}, not above black' in fault(tmp_path/'a.dng')
    write_dng(tmp_path/'a.dng', counts//100 + 256, black=512)
    assert 'black level of 512 above the data' in fault(tmp_path/'a.dng')
    assert read_raw(tmp_path/'a.dng', black=256).black == (256,)*4
    write_dng(tmp_path/'a.dng', np.random.default_rng(0).normal(512, 4, (60, 80)).round(), black=512)
    read_raw(tmp_path/'a.dng') # a dark frame is no fault

def test_without_rawpy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rawpy', None)
    with pytest.raises(ImportError, match=r"pip install 'clearsight_nb\[raw\]'"): read_raw(tmp_path/'a.dng')
    write_dng(tmp_path/'a.dng', np.full((30, 30), 600)) # needs no rawpy

@pytest.mark.parametrize('bad', [dict(mosaic=np.full((30, 30), np.nan)), dict(mosaic=np.full((30, 30), 7e4)), dict(mosaic=np.zeros((3, 30, 30))),
    dict(mosaic=np.zeros((10, 30))), dict(pattern='XXXX'), dict(black=1.5), dict(black=(1, 2)), dict(white=0), dict(exposure=0), dict(iso=-5)])
def test_what_write_dng_refuses(tmp_path, bad):
    with pytest.raises(ValueError): write_dng(tmp_path/'a.dng', **(dict(mosaic=np.full((30, 30), 600)) | bad))
    assert not list(tmp_path.iterdir())

# Demosaicing against another way to write it

def malvar(x, pattern):
    "Malvar, He and Cutler (2004), section 3: bilinear plus a gain times the gradient, a pixel at a time in float64"
    (h,w),rows = x.shape,[pattern[:2], pattern[2:]]
    inside = lambda i,n: i if 0 <= i < n else -i if i < 0 else 2*n-2-i
    at = lambda y,x_: x[inside(y, h), inside(x_, w)].astype(np.float64)
    colour = lambda y,x_: rows[y%2][x_%2]
    near = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    out = np.zeros((3, h, w))
    for k,y,x_ in np.ndindex(3, h, w):
        want,have,here = 'RGB'[k],colour(y, x_),at(y, x_)
        if want == have:
            out[k,y,x_] = here
            continue
        bilinear = np.mean([at(y+dy, x_+dx) for dy,dx in near if colour(y+dy, x_+dx) == want])
        cross = np.mean([at(y+dy, x_+dx) for dy,dx in ((-2,0), (2,0), (0,-2), (0,2))])
        if want == 'G': gain,gradient = 1/2,here - cross
        elif have != 'G': gain,gradient = 3/4,here - cross
        else: # nine-point: the greens in the direction of the wanted colour count less across it
            along = rows[y%2][(x_+1)%2] == want
            two = [at(y, x_-2), at(y, x_+2)] if along else [at(y-2, x_), at(y+2, x_)]
            across = [at(y-2, x_), at(y+2, x_)] if along else [at(y, x_-2), at(y, x_+2)]
            diagonal = [at(y+dy, x_+dx) for dy in (-1, 1) for dx in (-1, 1)]
            gain,gradient = 5/8,here - (sum(two) + sum(diagonal) - sum(across)/2)/5
        out[k,y,x_] = bilinear + gain*gradient
    return out

@pytest.mark.parametrize('pattern', BAYER)
def test_demosaic_equals_the_reference(pattern):
    x = np.random.default_rng(BAYER.index(pattern)).normal(size=(9, 12))
    y = demosaic_mosaic(torch.from_numpy(x), pattern)
    assert y.dtype == torch.float64 and np.abs(y.numpy() - malvar(x, pattern)).max() < 1e-12

def test_demosaic_equals_scipy_convolution():
    from scipy.ndimage import convolve
    from clearsight_nb.lowlight.demosaicing import MALVAR
    x = np.random.default_rng(0).normal(size=(31, 26)).astype(np.float32)
    taps = [convolve(x, k.numpy(), mode='mirror') for k in MALVAR]
    y = demosaic_mosaic(torch.from_numpy(x), 'RGGB').numpy()
    assert np.allclose(y[1,::2,::2], taps[0][::2,::2], atol=1e-5) and np.allclose(y[0,1::2,1::2], taps[3][1::2,1::2], atol=1e-5)
    assert np.allclose(y[0,::2,1::2], taps[1][::2,1::2], atol=1e-5) and np.allclose(y[0,1::2,::2], taps[2][1::2,::2], atol=1e-5)

def test_demosaic_is_linear_and_uses_each_black(tmp_path):
    light,black = np.random.default_rng(0).integers(0, 9000, (40, 42)),np.array([500, 510, 520, 530])
    cell = np.zeros((2, 2), int)
    for b,s in zip(black, cfa('GBRG').sites.reshape(-1, 2)): cell[tuple(s)] = b
    write_dng(tmp_path/'a.dng', light + np.tile(cell, (20, 21)), 'GBRG', black, 10_000)
    white = 10_000 - np.tile(cell, (20, 21))
    assert np.allclose(demosaic(read_raw(tmp_path/'a.dng')), demosaic_mosaic(torch.tensor(light/white), 'GBRG'), atol=1e-6)
    v = demosaic_variance('GBRG').mean((1, 2))
    assert np.allclose(v, [.984, .781, .984], atol=1e-3)

# Tiles

def shoot(folder, scene, seconds, seed=0, pattern='RGGB', shape=(90, 120), name=None, black=512):
    rng,file = np.random.default_rng(seed),folder/(name or f'{scene}_00_{seconds:g}s.dng')
    light = rng.uniform(0, 1, shape)*seconds
    write_dng(file, (black + 5000*light + rng.normal(0, 6, shape)).round().clip(0, 16383), pattern, black, 16383, 800, seconds, 'Acme One')
    return file

@pytest.fixture
def files(tmp_path): return [shoot(tmp_path, f'{i:05d}', t, 10*i+k) for i in range(3) for k,t in enumerate((2, .1))]

SPLITS = {'00000': 'train', '00001': 'val', 'acme/00002': 'test'}
def tile(files, dest, **kwargs): return tile_raw(files, dest, **(dict(size=16, overlap=4, splits=SPLITS, progress=False) | kwargs))
def everything(dest): return {p.relative_to(dest).as_posix(): p.read_bytes() for p in dest.rglob('*') if p.is_file() and p.name != 'metadata.json'}

def test_metadata(tmp_path, files):
    meta = json.loads(tile(files, tmp_path/'d').read_text())
    assert len(meta['files']) == meta['files_processed'] == 6 and str(tmp_path) not in json.dumps(meta)
    for f in meta['files']:
        m,long = f['file_metadata'],f['file_metadata']['data_type'] == 'long'
        assert m['exposure_time'] == (2 if long else .1) and m['iso'] == 800 and m['camera_model'] == 'Acme One'
        assert (m['black_level'], m['white_level'], m['domain_range']['max']) == (512, 16383, 15871)
        assert m['split'] == dict(zip(('00000', '00001', '00002'), ('train', 'validation', 'test')))[m['scene_id']]
        assert (m['long_partner'] is None) == long and (m['all_short_exposures'], m['all_long_exposures']) == ([.1], [2])
        assert {t['data_type'] for t in f['tiles']} == {m['data_type']}
        for t in f['tiles']:
            x = read_tile(tmp_path/'d'/t['pt_path'])
            assert x.shape == (t['channels'], t['tile_size'], t['tile_size']) == (4, 16, 16)
            assert abs(t['tile_stats']['mean'] - x.mean()) < 1e-6 and t['tile_stats']['min'] == x.min()
            assert ('corresponding_long_tile' in t) == (not long)
    tiles = read_metadata(tmp_path/'d')
    assert len(tiles.pairs()) == len(tiles)//2 and {t.split for t in tiles} == {'train', 'validation', 'test'}
    assert [s.meta['corresponding_long_tile'] for s,_ in tiles.pairs()] == [l.id for _,l in tiles.pairs()]

@pytest.mark.parametrize('form', ['packed', 'rgb'])
def test_tiles_cover_the_image(tmp_path, files, form):
    tile(files, tmp_path/'d', form=form)
    for file,stem in zip(files, ('00000_00_2s', '00000_00_0.1s')):
        r = read_raw(file)
        x = 2*(pack if form == 'packed' else demosaic)(r)-1
        seen = torch.full_like(x, 9)
        for t in read_metadata(tmp_path/'d'):
            if stem not in t.id: continue
            y0,x0 = t.meta['image_y'],t.meta['image_x']
            seen[:, y0:y0+16, x0:x0+16] = read_tile(t.path)
        assert torch.equal(seen, x.clamp(-1.1, 1.1))
        if stem.endswith('0.1s'): assert (seen < -1).any()

def test_interrupted_anywhere(tmp_path, files, monkeypatch):
    tile(files, tmp_path/'whole')
    write,left = raw_tiles.write_tile,[0]
    def stop_after(path, x):
        if not left[0]: raise KeyboardInterrupt
        left[0] -= 1
        write(path, x)
    monkeypatch.setattr(raw_tiles, 'write_tile', stop_after)
    for n in (1, 30, 5, 60, 10_000):
        left[0] = n
        try: tile(files, tmp_path/'d')
        except KeyboardInterrupt: assert n < 10_000 and not (tmp_path/'d'/'metadata.json').exists()
    a,b = everything(tmp_path/'whole'),everything(tmp_path/'d')
    assert a == b and len(a) == 6*20 + 6
    assert (tmp_path/'d'/'metadata.json').read_text() == (tmp_path/'whole'/'metadata.json').read_text()
    left[0] = 0
    tile(files, tmp_path/'d') # writes no tile

def test_what_changed_is_made_again(tmp_path, files, monkeypatch):
    tile(files[:2], tmp_path/'d')
    shoot(tmp_path, '00000', .1, seed=99)
    file = tile(files, tmp_path/'d') # one file replaced, four are new
    tile(files, tmp_path/'whole')
    assert everything(tmp_path/'d') == everything(tmp_path/'whole')
    t = read_metadata(file)[0]
    t.path.write_bytes(t.path.read_bytes()[:-9])
    tile(files, tmp_path/'d')
    assert read_tile(t.path).shape == (4, 16, 16)
    tile(files, tmp_path/'d', black=500)
    assert read_metadata(file)[0].meta['black_level'] == 500
    decoded = []
    monkeypatch.setattr(raw_tiles, 'read_raw', lambda *a, **k: decoded.append(a))
    tile(files, tmp_path/'d', black=500, splits=dict.fromkeys(('00000', '00001', '00002'), 'test')) # a new split needs no pixels
    assert not decoded and {t.split for t in read_metadata(file)} == {'test'}

def test_xtrans_tiles(tmp_path):
    files = [shoot(tmp_path, 'a', t, pattern=XTRANS) for t in (2, .1)]
    tiles = read_metadata(tile(files, tmp_path/'d', splits=None))
    assert {t.channels for t in tiles} == {9} and read_tile(tiles[0].path).shape == (9, 16, 16)
    with pytest.raises(DataError, match='is X-Trans'): tile(files, tmp_path/'e', splits=None, form='rgb')

def test_a_lone_exposure_is_not_called_clean(tmp_path):
    file = shoot(tmp_path, 'a', .1)
    with pytest.raises(DataError, match='nothing says whether it is clean'): tile([file], tmp_path/'d', splits=None)
    assert not (tmp_path/'d').exists()
    for lone in ('long', 'short'):
        assert {t.clean for t in read_metadata(tile([file], tmp_path/lone, splits=None, lone=lone))} == {lone == 'long'}

def test_faulty_plans(tmp_path, files):
    no = lambda match: pytest.raises(DataError, match=match)
    with no('00002, which is in no split'): plan_tiles(files, dict(list(SPLITS.items())[:2]))
    with no("split 'tset'"): plan_tiles(files, SPLITS | {'00000': 'tset'})
    with no('has the same name as'): plan_tiles(files, SPLITS, name=lambda p: 'same')
    (tmp_path/'o').mkdir()
    other = shoot(tmp_path/'o', '00000', .5, shape=(90, 122))
    with no(r'has the shape \(90, 122\)'): plan_tiles([*files, other], SPLITS)
    other = shoot(tmp_path/'o', '00000', .5, pattern='BGGR')
    with no('has the pattern BGGR'): plan_tiles([*files, other], SPLITS)
    for bad in ('../../x', 'a/b', '.hidden', 'a\\b', 'a\n'):
        with no('leads to the name'): tile(files[:2], tmp_path/'d', name=lambda p: p.stem if '2s' in p.stem else bad)
    assert not list(tmp_path.parent.glob('x*'))
    with no('given an exposure of -1'): plan_tiles(files, SPLITS, exposures={files[0].name: -1})
    with pytest.raises(ValueError, match='no raw files'): plan_tiles([])
    for k in (dict(size=16, overlap=16), dict(form='yuv')):
        with pytest.raises(ValueError): tile(files, tmp_path/'d', **k)
    with no('is too small'): tile(files, tmp_path/'d', size=64)
    files[3].write_bytes(files[3].read_bytes()[:2000])
    with no(files[3].name): tile(files, tmp_path/'d')

def test_exposure_of_the_name(tmp_path):
    files = [tmp_path/f'a_{t}s.dng' for t in ('2', '0.1')]
    for i,f in enumerate(files): write_dng(f, np.random.default_rng(i).integers(512, 9000, (60, 60)))
    with pytest.raises(DataError, match='states no exposure time'): plan_tiles(files)
    assert [f['exposure'] for f in plan_tiles(files, exposures=exposure_in_name)] == [2, .1]
    assert [f['exposure'] for f in plan_tiles(files, exposures={'a_2s': 4, 'a_0.1s.dng': 3})] == [4, 3]

def test_even_starts_against_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(1, 60))
        length,overlap = int(rng.integers(size, 500)),int(rng.integers(0, size))
        s = even_starts(length, size, overlap)
        gaps = np.diff(s)
        assert s[0] == 0 and s[-1] == length-size and len(set(s)) == len(s)
        assert max(gaps, default=0) <= size-overlap and (len(gaps) == 0 or gaps.max()-gaps.min() <= 1)
        assert (len(s)-1)*(size-overlap) < length-overlap + (length == size) # no fewer would do
