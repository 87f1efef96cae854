"The simulated sensor, its calibration and the low-light sample: moments at random settings, hostile files, broken frames."
import functools, json, os, pickle, warnings
import numpy as np, pytest, torch
from clearsight_nb.core.files import DataError, read_json
from clearsight_nb.core.photos import PHOTOS, load_photo, photo_names, srgb_to_linear
from clearsight_nb.lowlight import sensor
from clearsight_nb.lowlight.calibration import calibrate, calibration_from_image, fit_line, measure_darks, photon_transfer
from clearsight_nb.lowlight.sensor import (Calibration, SAMPLE_CAMERA, SAMPLE_SPLITS, camera_calibration, check_levels, linear_crop,
    load_calibration, lowlight_sample, simulate, to_electrons, to_unit)

BASE = dict(gain=8, read=2, row=.5, black=512, white=16383)
def flat(v=0., shape=(64, 64, 4)): return np.full(shape, v, np.float32)

# the model

@pytest.mark.parametrize('seed', range(6))
def test_moments_at_random_settings(seed):
    "Mean within 5 standard errors, total variance within 5 standard errors of a variance (rows give few degrees of freedom)."
    rng = np.random.default_rng(seed)
    cal = Calibration(rng.uniform(1, 30), rng.uniform(1, 8), rng.uniform(0, 1), rng.uniform(400, 600), 16383)
    x,alpha,delta = rng.uniform(0, .9),rng.uniform(.01, .5),rng.uniform(-20, 20)
    y = simulate(flat(x, (400, 300)), cal, alpha, seed, delta).astype(np.float64)
    m = alpha*cal.full_scale*float(np.float32(x))
    var = cal.gain**2*(m + cal.read**2) + 1/12
    assert abs(y.mean() - cal.black[0] - delta - cal.gain*m) < 5*np.sqrt(var/y.size + (cal.gain*cal.row)**2/400)
    assert y.var(1, ddof=1).mean() == pytest.approx(var, rel=5*np.sqrt(3/y.size))
    rows = y.mean(1).var(ddof=1)
    assert rows == pytest.approx((cal.gain*cal.row)**2 + var/300, rel=5*np.sqrt(2/399))
    assert to_electrons(y, cal).mean() == pytest.approx(m + delta/cal.gain, abs=5*np.sqrt(var/y.size + (cal.gain*cal.row)**2/400)/cal.gain)

def test_poisson_is_poisson_not_gaussian():
    e = to_electrons(simulate(flat(.002, (400, 400)), Calibration(1, 0, 0, 0, 1000), quantise=False), Calibration(1, 0, 0, 0, 1000))
    assert set(np.unique(e)) <= set(range(20)) and (e == 0).mean() == pytest.approx(np.exp(-2), abs=.005)
    assert ((e-e.mean())**3).mean() == pytest.approx(2, rel=.1)     # third central moment of a Poisson number is its mean

def test_seed_generator_and_dtypes():
    cal,x = Calibration(**BASE),flat(.1, (20, 30))
    assert (simulate(x, cal, seed=3) == simulate(x, cal, seed=np.random.default_rng(3))).all()
    assert (simulate(x, cal, seed=3) != simulate(x, cal, seed=4)).any()
    for dtype in (np.float32, np.float64, np.uint16, np.int32):
        y = simulate(x, cal).astype(dtype)
        assert to_unit(y, cal).dtype == (np.float64 if dtype == np.float64 else np.float32)
        np.testing.assert_allclose(to_unit(y, cal), to_unit(simulate(x, cal), cal), atol=1e-6)

def test_black_level_per_channel_and_dark_map():
    dark = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    cal = Calibration(2, 0, 0, (10, 20, 30), 1020, dark=dark)
    assert cal.full_scale == 500
    y = simulate(flat(0, (6, 5, 3)), cal, quantise=False, saturate=False)
    np.testing.assert_allclose(y, 2*dark[..., None] + np.array([10, 20, 30]), atol=1e-4)
    np.testing.assert_allclose(to_electrons(y, cal), 0, atol=1e-4)
    for bad in (flat(0, (6, 5, 4)), flat(0, (6, 5))):
        with pytest.raises(ValueError, match='black levels'): simulate(bad, cal)
    with pytest.raises(ValueError, match='dark map'): to_unit(flat(0, (5, 6, 3)), cal)
    with pytest.raises(ValueError): cal.dark[0, 0] = 1     # nobody changes it afterwards

@pytest.mark.parametrize('bad', [dict(gain=0), dict(gain=-1), dict(gain=None), dict(gain=True), dict(read=-.1), dict(row=np.inf), dict(black=()),
    dict(black='512'), dict(white=512), dict(white=100), dict(black=(1, 20000)), dict(iso=0), dict(source=3),
    dict(dark=np.zeros(4)), dict(dark=np.full((2, 2), np.nan))])
def test_impossible_calibration(bad):
    with pytest.raises(ValueError): Calibration(**BASE | bad)

@pytest.mark.parametrize('alpha', [0, -1, 1.01, 100, np.nan])
def test_exposure_ratio_is_short_over_long(alpha):
    with pytest.raises(ValueError, match='t_short/t_long'): simulate(flat(.1), Calibration(**BASE), alpha)

# files

def test_save_is_whole_or_not(tmp_path, monkeypatch):
    "A save that fails in between leaves the old numbers with the old map; a new map removes the old file."
    path = tmp_path/'cam[1].json'
    a,b = (Calibration(**BASE, dark=np.full((3, 4), v)) for v in (1, 2))
    a.save(path)
    monkeypatch.setattr(sensor, 'write_json', lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): b.save(path)
    assert load_calibration(path) == a
    monkeypatch.undo()
    b.save(path)
    assert load_calibration(path) == b and len(list(tmp_path.iterdir())) == 2
    Calibration(**BASE).save(path)
    assert load_calibration(path) == Calibration(**BASE) and len(list(tmp_path.iterdir())) == 1

class Bomb:
    def __reduce__(self): return os.mkdir, ('pickle_was_run',)

def test_hostile_dark_maps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path/'c.json'
    Calibration(**BASE, dark=np.ones((3, 4))).save(path)
    npy,good = next(tmp_path.glob('*.npy')),path.read_text()
    np.save(tmp_path/'bomb.npy', np.array([Bomb()], object), allow_pickle=True)
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (900000, 900000), }" + b' '*40 + b'\n'
    whole = npy.read_bytes()
    for data in ((tmp_path/'bomb.npy').read_bytes(), pickle.dumps(Bomb()), whole[:-3], b'', header, whole.replace(b'<f4', b'<i4')):
        npy.write_bytes(data)
        with pytest.raises(DataError) as e: load_calibration(path)
        assert npy.name in str(e.value.file)
    assert not (tmp_path/'pickle_was_run').exists()
    npy.write_bytes(whole)
    assert load_calibration(path).dark.shape == (3, 4)
    for name in ('/etc/passwd', '../x.npy', 'a\\b.npy', 3, ['x']):
        path.write_text(json.dumps(json.loads(good) | dict(dark=name)))
        with pytest.raises(DataError): load_calibration(path)
    for d in ({}, [], 3, json.loads(good) | dict(black='x'), json.loads(good) | dict(gain=[1]), json.loads(good) | dict(dark=None, white=1)):
        path.write_text(json.dumps(d))
        with pytest.raises(DataError, match='c.json'): load_calibration(path)

# the sample

@functools.lru_cache
def _sample(root): return lowlight_sample(root/'s', n=5, n_valid=2, n_test=2, size=24)

@pytest.fixture(scope='module')
def sample(tmp_path_factory): return _sample(tmp_path_factory.mktemp('lowlight'))

def test_sample_is_read_by_tiles(sample):
    "What this writes, 01_metadata reads: counts, splits, pairs, exposures; and no photograph is in two splits."
    from clearsight_nb.lowlight.metadata import read_metadata
    from clearsight_nb.lowlight.tiles import read_tile
    tiles = read_metadata(sample/'metadata.json')
    assert len(tiles) == 5 + 3*2 + 3*2 and len(tiles.select('train')) == 5 and all(t.clean for t in tiles.select('train'))
    assert len(tiles.pairs()) == 8
    assert {t.exposure for t in tiles if t.clean} == {10.} and {round(t.exposure, 6) for t in tiles if not t.clean} == {.2, 1.}
    scenes = {s: {t.scene for t in tiles.select(s)} for s in ('train', 'validation', 'test')}
    assert not scenes['train'] & scenes['test'] and not scenes['train'] & scenes['validation'] and not scenes['validation'] & scenes['test']
    for t in tiles:
        x = read_tile(t.path)
        assert x.shape == (3, 24, 24) == (t.channels, 24, 24) and x.dtype == torch.float32 and -1.1 <= x.min() and x.max() <= 1 and x.std() > 0

def test_splits_use_every_photograph_once_and_hold_out_the_held_out():
    names = [n for v in SAMPLE_SPLITS.values() for n in v]
    assert sorted(names) == sorted(PHOTOS) and set(SAMPLE_SPLITS['test']) == set(photo_names('held_out'))

def test_metadata_has_the_fields_of_the_layout(sample):
    about = set('file_path split scene_id data_type camera_model exposure_time camera_type iso aperture all_short_exposures all_long_exposures '
        'long_partner black_level white_level domain_range image_stats pair_id pair_type pair_partner'.split())
    entry = set('tile_id pt_path sensor_type data_type sensor_range tile_size channels processing_timestamp scene_id exposure_time tile_key '
        'grid_x grid_y image_x image_y quality_score valid_ratio is_edge_tile tile_stats'.split())
    for f in read_json(sample/'metadata.json')['files']:
        assert about <= set(f['file_metadata']) and f['file_metadata']['data_type'] in ('short', 'long')
        for t in f['tiles']:
            assert entry <= set(t) and ('corresponding_long_tile' in t) == (t['data_type'] == 'short')
            x = torch.load(sample/t['pt_path'], weights_only=True)
            assert t['tile_stats']['mean'] == pytest.approx(x.mean().item(), abs=1e-5) and t['tile_stats']['min'] == x.min().item()

@pytest.mark.parametrize('alpha,k', [('0.2s', 20), ('1s', 100)])
def test_noise_of_short_tiles_is_the_model(sample, alpha, k):
    "Over all places: (y-x)/sd has mean 0 and variance 1."
    r = []
    for p in sorted((sample/'pt_tiles/sim/short').glob(f'*_{alpha}_*.pt')):
        long = sample/'pt_tiles/sim/long'/p.name.replace(f'_{alpha}_', '_10s_')
        x,y = (((torch.load(f, weights_only=True).double()+1)/2).numpy() for f in (long, p))
        m = k*x
        r.append((1000*y-m)/np.sqrt(m + SAMPLE_CAMERA.read**2 + SAMPLE_CAMERA.row**2))
    r = np.concatenate([a.ravel() for a in r])
    assert r.size == 4*3*24*24 and abs(r.mean()) < .06 and r.var() == pytest.approx(1, rel=.1)

def test_interrupted_sample_is_finished(tmp_path, monkeypatch):
    real,count = sensor.write_tile,[0]
    def stop(path, x):
        count[0] += 1
        if count[0] == 4: raise KeyboardInterrupt
        real(path, x)
    args = dict(n=4, n_valid=1, n_test=1, size=16)
    monkeypatch.setattr(sensor, 'write_tile', stop)
    with pytest.raises(KeyboardInterrupt): lowlight_sample(tmp_path/'a', **args)
    assert not (tmp_path/'a/metadata.json').exists()
    monkeypatch.undo()
    a,b = lowlight_sample(tmp_path/'a', **args),lowlight_sample(tmp_path/'b', **args)
    files = sorted(p.relative_to(a) for p in a.rglob('*.pt'))
    assert files == sorted(p.relative_to(b) for p in b.rglob('*.pt')) and len(files) == 4 + 3 + 3
    assert all(torch.equal(torch.load(a/f, weights_only=True), torch.load(b/f, weights_only=True)) for f in files)

def test_sample_leaves_other_folders_alone(tmp_path):
    (tmp_path/'metadata.json').write_text('{}')
    with pytest.raises(DataError, match='not from lowlight_sample'): lowlight_sample(tmp_path, n=1)
    assert (tmp_path/'metadata.json').read_text() == '{}'
    for wrong in (dict(seed=-1), dict(n_test=-1), dict(alphas=(.1, .1)), dict(alphas=(1.,)), dict(size=4), dict(noisy=('test', 'x')),
        dict(cal=Calibration(**BASE, dark=np.zeros((2, 2)))), dict(cal=Calibration(**BASE | dict(black=(1, 2))))):
        with pytest.raises(ValueError): lowlight_sample(tmp_path/'x', **wrong)
    assert not (tmp_path/'x').exists()

def test_noisy_training_tiles_on_request(tmp_path):
    d = lowlight_sample(tmp_path/'a', n=1, n_valid=0, n_test=0, size=16, noisy=('train',), alphas=(.5,), cal=camera_calibration(1600))
    assert sorted(p.name for p in d.rglob('*.pt')) == ['sim_astronaut_00_10s_tile_0000.pt', 'sim_astronaut_00_5s_tile_0000.pt']

# calibration

def frames(cal, lights, n_darks, shape=(64, 64, 4), seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(simulate(flat(v, shape), cal, seed=rng) for _ in 'ab') for v in lights],[simulate(flat(0, shape), cal, seed=rng) for _ in range(n_darks)]

@pytest.mark.parametrize('seed,shape', [(0, (64, 64, 4)), (1, (128, 128)), (2, (64, 90, 3)), (3, (72, 64, 9)), (4, (130, 101))])
def test_calibration_recovers_random_cameras(seed, shape):
    rng = np.random.default_rng(100+seed)
    cal = Calibration(rng.uniform(.6, 20), rng.uniform(1.5, 5), rng.uniform(.4, 1), rng.uniform(400, 700), 16383)
    found = calibrate(*frames(cal, np.linspace(.02, .8, 10), 16, shape, seed), 16383, iso=800)
    assert found.gain == pytest.approx(cal.gain, rel=.02) and found.read == pytest.approx(cal.read, rel=.05)
    assert found.row == pytest.approx(cal.row, rel=.1) and found.black == pytest.approx([cal.black[0]]*(1 if len(shape) == 2 else shape[2]), abs=.1*cal.gain)
    assert abs(found.dark).mean() < .2 and found.iso == 800

def test_no_row_noise_and_no_rounding():
    cal = Calibration(10, 3, 0, 500, 15000)
    rng = np.random.default_rng(0)
    darks = [simulate(flat(), cal, seed=rng, quantise=False) for _ in range(8)]
    d = measure_darks(darks)
    assert d.row/10 < .1 and d.read/10 == pytest.approx(3, rel=.02)
    rough = Calibration(.6, 1, 0, 500, 15000)     # a step of 1.7 electrons: rounding is a fifth of the variance
    d = measure_darks([simulate(flat(), rough, seed=rng) for _ in range(16)])
    assert d.read/.6 == pytest.approx(1, rel=.05)

def test_a_wandering_level_is_not_read_noise():
    cal,rng = Calibration(**BASE),np.random.default_rng(0)
    darks = [simulate(flat(), cal, seed=rng, black_error=40*rng.standard_normal()) for _ in range(12)]
    d = measure_darks(darks)
    assert d.read/8 == pytest.approx(2, rel=.05) and d.row/8 == pytest.approx(.5, rel=.1)

def test_frames_may_be_loaded_one_at_a_time():
    flats,darks = frames(Calibration(**BASE), (.1, .5), 4)
    class Lazy:
        def __len__(self): return 4
        def __getitem__(self, i):
            if i >= 4: raise IndexError(i)
            return darks[i].astype(np.uint16)
    a,b = calibrate(flats, Lazy(), 16383),calibrate(flats, darks, 16383)
    assert a == b

def test_flicker_dust_and_a_moving_edge():
    "Light that differs by 2 % within a pair, and a shadow that moved: the gain stands."
    cal,rng = Calibration(**BASE),np.random.default_rng(1)
    flats = []
    for i,v in enumerate(np.linspace(.05, .7, 8)):
        a,b = flat(v, (128, 128)),flat(v*1.02, (128, 128))
        b[:, 20*(i%3):20*(i%3)+8] *= .7
        flats.append((simulate(a, cal, seed=rng), simulate(b, cal, seed=rng)))
    t = photon_transfer(flats, [simulate(flat(0, (128, 128)), cal, seed=rng) for _ in range(8)], 16383)
    assert t.gain == pytest.approx(8, rel=.03)

def test_line_against_maximum_likelihood():
    "Without outliers the weighted line is as exact as its standard error says, over 40 draws."
    rng = np.random.default_rng(2)
    z = []
    for _ in range(40):
        m = rng.uniform(0, 3000, 300)
        slope,_,error = fit_line(m, (5*m + 200)*rng.chisquare(255, 300)/255, 255)
        z.append((slope-5)/error)
    assert abs(np.mean(z)) < .6 and .7 < np.std(z) < 1.4

@pytest.mark.parametrize('spoil,match', [
    (lambda f, d: (f, d[:1]), 'too few frames'), (lambda f, d: (f[:1], d), 'too few frames'), (lambda f, d: ([], d), 'are 0 pairs'),
    (lambda f, d: (f, [*d, d[0][:-1]]), r'darks\[4\]: has the shape'), (lambda f, d: ([*f, (f[0][0], f[0][1][:-1])], d), r'flats\[3\]: has the shape'),
    (lambda f, d: ([(a, a) for a,_ in f], d), 'same frame twice'), (lambda f, d: (f, [x[0] for x in d]), 'is no picture'),
    (lambda f, d: (f, [np.where(x > x.max()-1, np.nan, x) for x in d]), 'not finite'), (lambda f, d: (f, [(x-512).clip(0) for x in d]), 'cut off'),
    (lambda f, d: (f, [x+9000 for x in d]), 'black is above the data'), (lambda f, d: (f, [x+16000 for x in d]), 'have the black level'),
    (lambda f, d: ([[d[0], d[1]], [d[2], d[3]]], d), 'no gain'), (lambda f, d: ([(a*9, b*9) for a,b in f], d), '3 that reach white'),
    (lambda f, d: (f, [x.astype(str) for x in d]), 'is no picture'), (lambda f, d: ([(a,) for a,_ in f], d), 'pairs of two')])
def test_bad_frames(spoil, match):
    flats,darks = frames(Calibration(**BASE), (.2, .4, .6), 4)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(DataError, match=match): calibrate(*spoil(flats, darks), 16383)

def test_saturated_flats_are_counted_not_used():
    cal = Calibration(**BASE)
    flats,darks = frames(cal, (.1, .3, .6, .97, 1, 2), 8)
    found = calibrate(flats, darks, 16383)
    assert '3 pairs of flats (3 more reach white)' in found.source and found.gain == pytest.approx(8, rel=.02)

# one picture

@pytest.mark.parametrize('name,k,gain', [('flower', 50, 4.), ('rocket', 150, 15.), ('china', 100, 1.5)])
def test_gain_from_one_picture(name, k, gain):
    x = srgb_to_linear(load_photo(name))
    cal = Calibration(gain, 3, .3, 300, 300+gain*2000)
    found = calibration_from_image(simulate(x, cal, k/2000, seed=5), 300, cal.white)
    assert found.gain == pytest.approx(gain, rel=.12) and found.read == pytest.approx(3, abs=.4)

def test_one_picture_errors():
    x = linear_crop('china', 0, 256)
    cal = Calibration(16, 2, .2, 512, 16383)
    y = simulate(x, cal, .1)
    for args,match in (((y, 900, 16383), 'above the data'), ((y, 512, 400), 'White must be above black'), ((y, 512, 700), 'above the white level'),
        ((y*np.nan, 512, 16383), 'not finite'), ((y[:40, :40], 512, 16383), '100 are needed'), (((y-512).clip(0), 0, 15871), 'cut off'),
        ((np.rint(512 + 1587*x), 512, 16383), 'noise'), ((simulate(0*x, cal), 512, 16383), 'how noise grows')):
        with pytest.raises(DataError, match=match) as e: calibration_from_image(*args, file='dim.raw')
        assert 'dim.raw' in str(e.value)

@pytest.mark.parametrize('seed', range(5))
def test_levels_that_fit_pass(seed):
    "No false alarm: dark pictures with noise, row noise and dark shading."
    rng = np.random.default_rng(seed)
    dark = np.outer(np.linspace(-1, 1, 90), rng.uniform(0, 2, 70))
    cal = Calibration(rng.uniform(.5, 25), rng.uniform(1, 6), rng.uniform(0, 1), rng.uniform(200, 900), 16383, dark=dark)
    check_levels(simulate(flat(rng.uniform(0, 1e-3), (90, 70, 3)), cal, seed=seed), cal.black, cal.white)
