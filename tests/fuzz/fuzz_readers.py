"""Every reader of a file that may come from somebody else: how to write a small good file, how to read it, and which of its files to damage.

A reader that is not in this table is not fuzzed: add it here, and nothing else is to be done."""
import json
from pathlib import Path
from typing import Callable, NamedTuple
import numpy as np, torch
from clearsight_nb.core.files import DataError, check_manifest, make_manifest, read_json, write_json

class Reader(NamedTuple):
    name:str
    make:Callable # Writes good files into an empty folder
    read:Callable # Folder → what the files hold
    files:tuple # Patterns of the files whose bytes are damaged
    how:str = 'bytes' # 'bytes', or a structure: 'json', 'yaml', 'csv', 'list'
    exact:bool = False # The format has a checksum: what is read is as it was
    cost:int = 1 # Runs 1/cost of the cases
    heals:bool = False # What is damaged may be left out, or reported, without an error
    raises:type = DataError
    @property
    def format(self): return Path(self.files[0]).suffix # '.json', '.tif' …

READERS = []

def reader(*files, **more):
    "Decorator of the function that reads; its good files are written by `make`."
    def add(read):
        READERS.append(Reader(more.pop('name', read.__name__), more.pop('make'), read, files, **more))
        return read
    return add

def structured(*files, how='json', **more):
    "The same reader twice: with damaged bytes, and with changed structures."
    def add(read):
        name = more.pop('name', read.__name__)
        reader(*files, name=name, **more)(read)
        return reader(*files, name=f'{name}-{how}', how=how, **more)(read)
    return add

def rng(): return np.random.default_rng(0)

# ---- core

@structured('a.json', make=lambda d: write_json(dict(a=[1, 2.5, None], b=dict(c='é', d=True)), d/'a.json'))
def json_file(d): return read_json(d/'a.json')

def _manifest(d):
    (d/'x.png').write_bytes(b'12345')
    write_json(make_manifest(d, ['x.png']), d/'manifest.json')
@structured('manifest.json', make=_manifest)
def manifest(d): return len(check_manifest(d, read_json(d/'manifest.json')).findings)

def _recipe(task):
    from clearsight_nb.core.recipe import load_recipe, save_recipe
    return lambda d: save_recipe(load_recipe(task, 'demo', env='local'), d)
def _recipes():
    from clearsight_nb.core.recipe import read_recipe, recipe_hash
    for t in ('glacier', 'weather', 'lowlight', 'derain', 'shadow'):
        structured('recipe.yaml', how='yaml', make=_recipe(t), name=f'recipe_{t}')(lambda d: recipe_hash(read_recipe(d)))
_recipes()

def _preset(d):
    from clearsight_nb.core.recipe import _package_recipes
    (d/'a.yaml').write_bytes((_package_recipes()/'weather'/'new_allweather.yaml').read_bytes())
@structured('a.yaml', how='yaml', make=_preset)
def preset(d):
    from clearsight_nb.core.recipe import load_recipe, recipe_hash
    return recipe_hash(load_recipe('weather', d/'a.yaml', env='kaggle'))

def _published(d):
    from clearsight_nb.weather.lists import _published
    (d/'a.yml').write_bytes((_published()/'new_allweather.yml').read_bytes())
@structured('a.yml', how='yaml', make=_published)
def published_config(d):
    from clearsight_nb.core.legacy import known_config
    from clearsight_nb.weather.lists import published_config
    return sorted(published_config(d/'a.yml')),known_config('weather', str(d/'a.yml'))

def _store(d):
    from clearsight_nb.core.store import BandStore
    BandStore.create(d/'store', [(f't{i}', rng().integers(0, 99, (2, 8, 8)).astype(np.uint16), np.zeros((8, 8), np.uint8)) for i in range(3)], ['a', 'b'], progress=False)
@structured('store/index.json', make=_store)
def band_store(d):
    from clearsight_nb.core.store import BandStore
    s = BandStore(d/'store')
    return len(s),s.shape,s.bands,s.crop(0)

def _raster(d):
    from test_scenes import land, save
    save(d/'scene.tif', land((48, 40)), tiled=True, blockxsize=16, blockysize=16, compress='deflate')
@reader('scene.tif', make=_raster)
def raster(d):
    from clearsight_nb.core.rasters import RasterBands
    with RasterBands(d/'scene.tif', 'abcde') as s:
        x = np.concatenate([s.rows(y, min(y+16, s.shape[0])) for y in range(0, min(s.shape[0], 64), 16)], 1)
        return str(s.crs),s.placed,x

def _labels(d):
    from test_scenes import save
    x = np.zeros((1, 40, 40), np.uint8)
    x[0,8:30,5:20] = 1
    f = save(d/'labels.tif', x)
    import rasterio
    with rasterio.open(f, 'r+') as r: r.update_tags(class_0='land', class_1='ice')
@reader('labels.tif', make=_labels)
def polygons(d):
    from clearsight_nb.core.rasters import write_polygons
    return write_polygons(d/'labels.tif', d/'out'/'x.json')

def _pictures(d):
    from PIL import Image
    im = Image.fromarray(rng().integers(0, 256, (20, 24, 3), np.uint8))
    for ext,how in dict(png={}, jpg={}, tif=dict(compression='tiff_lzw'), bmp={}, webp={}, ppm={}, gif={}).items(): im.save(d/f'a.{ext}', **how)
    Image.fromarray(rng().integers(0, 65535, (20, 24), np.uint16)).save(d/'b.png')
    im.quantize(16).save(d/'c.png', transparency=0)
    im.save(d/'d.jpg', exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0')
PICTURES = 'a.png','a.jpg','a.tif','a.bmp','a.webp','a.ppm','a.gif','b.png','c.png','d.jpg'

@reader(*PICTURES, make=_pictures)
def viewer_picture(d):
    from clearsight_nb.core.pictures import open_picture
    return [np.asarray(open_picture(d/f, 16)).ndim for f in PICTURES]

@reader(*PICTURES, make=_pictures)
def weather_picture(d):
    from clearsight_nb.weather.data import read_rgb
    return [_unit(read_rgb(d/f)) for f in PICTURES]

@reader(*PICTURES, make=_pictures)
def derain_picture(d):
    from clearsight_nb.derain.pairs import read_photo
    return [_unit(read_photo(d/f)) for f in PICTURES if f!='c.png'] # which is transparent

@reader(*PICTURES, make=_pictures)
def lowlight_picture(d):
    from clearsight_nb.lowlight.blind import _srgb
    return [_unit(_srgb(d/f).permute(1, 2, 0).numpy()) for f in PICTURES if f!='b.png']

def _unit(x):
    assert x.ndim==3 and x.shape[2]==3 and x.dtype==np.float32 and 0<=x.min() and x.max()<=1
    return x.ndim

# ---- weights: untrained networks, as small as can be

def _recipe_of(task, *overrides, preset='demo'):
    from clearsight_nb.core.recipe import load_recipe
    return load_recipe(task, preset, env='local', overrides=overrides)

def _weather_net():
    from clearsight_nb.weather.model import weather_unet
    from clearsight_nb.weather.recipe import recipe_net
    r = _recipe_of('weather', 'model.patch=16', 'model.ch=32', 'model.ch_mult=[1]', 'model.num_res_blocks=1', 'model.attn_resolutions=[]')
    return r,weather_unet(recipe_net(r.model), seed=0)

def _weather_run(d):
    from clearsight_nb.core.training import save_weights
    from clearsight_nb.weather.train import conditioned
    r,unet = _weather_net()
    save_weights(d/'weights.safetensors', conditioned(unet, r.diffusion).state_dict(), r)
@structured('weights.safetensors', how='notes', make=_weather_run)
def weather_weights(d):
    from clearsight_nb.weather.restore import load_restorer
    return repr(load_restorer(d/'weights.safetensors'))

def _published_weather(d):
    from clearsight_nb.weather.checkpoint import save_weatherdiff
    from clearsight_nb.weather.model import WeatherNet, weather_unet
    save_weatherdiff(d/'a.pth.tar', weather_unet(WeatherNet(16, 32, (1,), 1, [])), step=3)
@reader('a.pth.tar', make=_published_weather, exact=True)
def weather_published(d):
    from clearsight_nb.weather.checkpoint import load_weatherdiff
    ck = load_weatherdiff(d/'a.pth.tar', optimizer=True)
    return ck.step,ck.epoch,[v.numpy() for v in ck.unet.state_dict().values()]

def _derain_run(d):
    from clearsight_nb.core.training import save_weights
    from clearsight_nb.derain.model import derain_net
    from clearsight_nb.derain.fourier import Codec
    r = _recipe_of('derain', 'model.ch=32', 'model.ch_mult=[1]', 'diffusion.representation=spatial')
    codec = Codec(r.diffusion.representation, r.diffusion.rings, r.diffusion.signal)
    save_weights(d/'weights.safetensors', derain_net(r, codec).state_dict(), r)
@structured('weights.safetensors', how='notes', make=_derain_run)
def derain_weights(d):
    from clearsight_nb.derain.derain import load_derainer
    return repr(load_derainer(d/'weights.safetensors'))

def _prior(d):
    from clearsight_nb.lowlight.nets import lowlight_net
    from clearsight_nb.lowlight.prior import EDMStats, prior_config, save_prior
    net = lowlight_net('tiny', seed=0, channel_mult=(1,), model_channels=32, num_blocks=1)
    save_prior(d/'network-snapshot-000001.safetensors', net.state_dict(), prior_config(net.net, EDMStats((.1, .2, .3), .2, -1.2)))
@structured('*.safetensors', how='notes', make=_prior)
def prior(d):
    from clearsight_nb.lowlight.prior import load_prior
    return type(load_prior(d)).__name__

def _bare_prior(d):
    from safetensors.torch import load_file, save_file
    _prior(d)
    f = next(d.glob('*.safetensors'))
    save_file(load_file(f), f)
@structured('config.json', make=_bare_prior)
def prior_config(d):
    from clearsight_nb.lowlight.prior import load_prior
    return type(load_prior(d)).__name__

def _shadow_file(d):
    from clearsight_nb.shadow.models import save_net, shadow_net
    save_net(shadow_net('tiny', seed=0, widths=(8, 16), attention=0), d/'a.safetensors', image_size=32)
@structured('a.safetensors', how='notes', make=_shadow_file)
def shadow_weights(d):
    from clearsight_nb.shadow.cast import load_caster
    return repr(load_caster(d/'a.safetensors', 'cpu').image_size)

def _shadow_recipe(): return _recipe_of('shadow', 'model.widths=[8,16]', 'model.attention=0')

def _shadow_run(d):
    from clearsight_nb.core.training import save_weights
    from clearsight_nb.shadow.models import shadow_net
    net = shadow_net('tiny', seed=0, widths=(8, 16), attention=0)
    about = dict(settings=net.settings | dict(light=net.light_mode), objective='flow', image_size=32)
    save_weights(d/'weights.safetensors', net.state_dict(), _shadow_recipe(), about=json.dumps(about))
@structured('weights.safetensors', how='notes', make=_shadow_run)
def shadow_run(d):
    from clearsight_nb.shadow.cast import load_caster
    return load_caster(d, 'cpu').image_size

def _checkpoint(d):
    from clearsight_nb.core.checkpoints import FORMAT, plain
    from clearsight_nb.shadow.models import shadow_net
    from omegaconf import OmegaConf
    net,r = shadow_net('tiny', seed=0, widths=(8, 16), attention=0),_shadow_recipe()
    ck = dict(format=FORMAT, step=3, recipe=OmegaConf.to_container(r, resolve=True), model=net.state_dict(), cbs={}, trackers={}, opt={}, grads=[])
    torch.save(plain(ck), d/'latest.pt')
@reader('latest.pt', make=_checkpoint, exact=True)
def checkpoint(d):
    from clearsight_nb.core.checkpoints import checkpoint_weights, read_checkpoint
    return [v.numpy() for v in checkpoint_weights(read_checkpoint(d/'latest.pt')).values()]
@reader('latest.pt', make=_checkpoint, how='pt')
def shadow_checkpoint(d):
    from clearsight_nb.shadow.cast import load_caster
    return load_caster(d/'latest.pt', 'cpu').image_size
@reader('latest.pt', make=_checkpoint)
def transfer(d):
    from clearsight_nb.glacier.transfer import load_weights
    return sorted(load_weights(d/'latest.pt')[0])

@reader('a.pth', make=lambda d: torch.save({'module.a': torch.rand(3, 3)}, d/'a.pth'), exact=True)
def foreign_weights(d):
    from clearsight_nb.glacier.transfer import load_weights
    return [v.numpy() for v in load_weights(d/'a.pth')[0].values()]

BANDS = ['blue', 'green', 'red', 'swir1', 'tir']

def _tiny_glacier(d):
    from clearsight_nb.glacier.prepare import BandNorm
    return BandNorm('zscore', BANDS, [1.]*5, [2.]*5).to_dict(),torch.nn.Conv2d(5, 4, 1)

class _Flat(torch.nn.Module):
    def __init__(self, bands, n):
        super().__init__()
        self.net = torch.nn.Conv2d(len(bands), n, 1)
    def forward(self, x): return self.net(x)

def _pack(ext):
    def make(d):
        from clearsight_nb.glacier.ensemble import pack_ensemble
        from clearsight_nb.glacier.predict import Predictor
        from clearsight_nb.glacier.prepare import BandNorm
        norm = BandNorm('zscore', BANDS, [1.]*5, [2.]*5)
        pack_ensemble(d/f'a.{ext}', [Predictor(_Flat(BANDS, 4), norm, BANDS, list('abcd'))], args=[dict(arch='x')])
    return make
def _packs():
    def read(ext):
        def unpack(d):
            from clearsight_nb.glacier.ensemble import unpack_ensemble
            return unpack_ensemble(d/f'a.{ext}', lambda cfg, bands, n: _Flat(bands, n)).names
        return unpack
    reader('a.pt', make=_pack('pt'), name='ensemble_pt')(read('pt'))
    structured('a.safetensors', how='notes', make=_pack('safetensors'), name='ensemble')(read('safetensors'))
_packs()

def _glacier_run(d):
    from clearsight_nb.core.training import save_weights
    from clearsight_nb.glacier.model import glacier_model
    r = _recipe_of('glacier', 'model.encoder=mobilenet_v2', 'model.arch=unet', 'model.weights=none')
    norm,_ = _tiny_glacier(d)
    about = dict(bands=BANDS, classes=list('abcd'), label_values=[0, 85, 170, 255], norm=norm)
    save_weights(d/'weights.safetensors', glacier_model(r.model, BANDS).state_dict(), r, about=json.dumps(about))
@structured('weights.safetensors', how='notes', make=_glacier_run, cost=4)
def glacier_run(d):
    from clearsight_nb.glacier.predict import Predictor
    return Predictor.of(d).names

@reader('encoder.safetensors', make=lambda d: __import__('safetensors.torch').torch.save_file(torch.nn.Conv2d(3, 2, 1).state_dict(), d/'encoder.safetensors'))
def encoder(d):
    from clearsight_nb.glacier.model import encoder_weights
    encoder_weights(torch.nn.Conv2d(3, 2, 1), d/'encoder.safetensors')

def _submission(d):
    from clearsight_nb.glacier.predict import Predictor
    from clearsight_nb.glacier.prepare import BandNorm
    from clearsight_nb.glacier.submission import export_submission
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(5, 4, 1)).eval()
    export_submission([Predictor(net, BandNorm('zscore', BANDS, [1.]*5, [2.]*5), BANDS, list('abcd'))], d)
@reader('model.pth', make=_submission, raises=ValueError) # solution.py stands alone and has no DataError
def submission_model(d):
    from clearsight_nb.glacier import solution
    solution.NETS = [lambda: torch.nn.Sequential(torch.nn.Conv2d(5, 4, 1))]
    solution.DEVICE = torch.device('cpu')
    return len(solution.load_model(d/'model.pth')[1])

# ---- glacier

def _glacier(d):
    from clearsight_nb.glacier.sample import glacier_sample
    glacier_sample(d, tiles=2, size=32, seed=3)
TILES = 'Train/Band1/*1.tif','Train/Band5/*2.tif','Train/labels/*1.tif','Train/label*/*2.tif'
@reader(*TILES, make=_glacier)
def glacier_data(d):
    from clearsight_nb.glacier.check import check_glacier
    return check_glacier(d).stack.load

def _tifs(d):
    import tifffile
    x = rng().integers(0, 999, (24, 20)).astype(np.uint16)
    for how in ('none', 'deflate', 'lzw', 'zstd', 'lzma', 'packbits'): tifffile.imwrite(d/f'{how}.tif', x, compression=None if how=='none' else how)
    tifffile.imwrite(d/'tiled.tif', np.float32(x), tile=(16, 16), compression='deflate', predictor=True)
    tifffile.imwrite(d/'big.tif', x, bigtiff=True)
@reader('*.tif', make=_tifs)
def tif(d):
    from clearsight_nb.glacier.tiles import read_tif
    return [read_tif(f).ndim for f in sorted(d.glob('*.tif'))]
@reader('*.tif', make=_tifs, raises=ValueError)
def submission_tif(d):
    from clearsight_nb.glacier.solution import read_band
    return [read_band(f).ndim for f in sorted(d.glob('*.tif'))]

@structured('a.json', make=lambda d: write_json(dict(runs=[dict(name='a', seed=0, r_k=.5, macro_mcc=.4, iou=[.1, None], seconds=1., steps=3, size=32)]), d/'a.json'))
def ablation_results(d):
    from clearsight_nb.glacier.ablations import read_results
    return [r['r_k'] for r in read_results(d/'a.json')]

def _crossval(d):
    from clearsight_nb.core.recipe import recipe_hash, save_recipe
    from clearsight_nb.core.training import save_weights
    from clearsight_nb.glacier.crossval import _save_array
    from clearsight_nb.glacier.folds import FoldPlan
    from clearsight_nb.glacier.prepare import Fold
    r = _recipe_of('glacier')
    save_recipe(r, d)
    write_json(FoldPlan([Fold(['b'], ['a']), Fold(['a'], ['b'])], 'given', {'a': (0, 0), 'b': (0, 1)}, 'names', 0, {'a': [1, 2], 'b': [3, 4]}).to_dict(), d/'folds.json')
    for k,t in enumerate('ab'):
        save_weights(d/f'fold{k}'/'weights.safetensors', {'a': torch.zeros(1)}, r)
        _save_array(d/f'fold{k}'/'probs'/f'{t}.npy', np.ones((2, 4, 4), np.float16)/2)
        _save_array(d/f'fold{k}'/'labels'/f'{t}.npy', np.zeros((4, 4), np.uint8))
        write_json(dict(fold=k, recipe_hash=recipe_hash(r), classes=['x', 'y'], tiles={t: [[3, 1], [2, 5]]}, stopped='finished', monitor='r_k', value=.5, epoch=1, step=2), d/f'fold{k}'/'fold.json')
def _read_crossval(d):
    from clearsight_nb.glacier.crossval import read_crossval
    cv = read_crossval(d)
    return cv.plan.contact,cv.complete,cv.folds.shape,[p.ndim for _,p,_ in cv.out_of_fold()]
reader('fold*/*/*.npy', 'fold*/fold.json', 'folds.json', 'fold0/weights.safetensors', make=_crossval, name='crossval')(_read_crossval)
reader('folds.json', make=_crossval, name='crossval_plan', how='json')(_read_crossval)
reader('fold0/fold.json', make=_crossval, name='crossval_fold', how='json')(_read_crossval)

def _hkh(d):
    from clearsight_nb.glacier.hkh import hkh_sample
    hkh_sample(d, patches=2, size=32, scenes=2)
def _check_hkh(d):
    from clearsight_nb.glacier.hkh import check_hkh
    r = check_hkh(d, 32, progress=False)
    r.raise_errors()
    return len(r.patches)
reader('*/slices/*.npy', '*/slices/slices.geojson', make=_hkh, name='hkh')(_check_hkh)
reader('*/slices/slices.geojson', make=_hkh, name='hkh_scenes', how='json')(_check_hkh)

def _journal(d):
    lines = [dict(plan=dict(a=1)), dict(done=[dict(name='a')]), dict(done=[dict(name='b', skip='x')]), dict(end=True)]
    (d/'journal.jsonl').write_text(''.join(json.dumps(l) + '\n' for l in lines))
@reader('journal.jsonl', make=_journal, heals=True)
def hkh_journal(d):
    from clearsight_nb.glacier.hkh_store import _read_journal
    return len(_read_journal(d/'journal.jsonl', dict(a=1))[1])

# ---- weather and derain

def _weather(d):
    from clearsight_nb.weather.sample import weather_sample
    weather_sample(d, n=2, n_valid=1, size=32, progress=False)
@reader('allweather/*/*.png', make=_weather)
def weather_data(d):
    from clearsight_nb.weather.data import check_weather
    return len(check_weather(d, patch=16, workers=1, progress=False).train)

@structured('list.txt', how='list', make=lambda d: (d/'list.txt').write_text('input/a.png\ninput/b.png\ninput/sub/c.png\n'))
def weather_list(d):
    from clearsight_nb.weather.data import read_filelist
    pairs = read_filelist(d/'list.txt', d)
    assert all(p.is_relative_to(d.resolve()) for pair in pairs for p in pair)
    return len(pairs)

def _derain(d):
    from clearsight_nb.derain.sample import derain_sample
    derain_sample(d, n=2, n_valid=1, size=32, variants=2, levels=('medium',), progress=False)
@reader('train/*/*.png', 'train/data.csv', make=_derain)
def derain_data(d):
    from clearsight_nb.derain.check import check_derain
    return len(check_derain(d, workers=1).pairs)
@reader('train/data.csv', how='csv', make=_derain, name='derain_list')
def derain_list(d):
    from clearsight_nb.derain.pairs import read_pairs
    pairs = read_pairs(d/'train'/'data.csv')
    assert all(p.is_relative_to(d.resolve()) for pair in pairs for p in pair[:2])
    return len(pairs)

def _spectra(d):
    from clearsight_nb.derain.pairs import derain_pairs
    from clearsight_nb.derain.spectra import write_spectra
    _derain(d)
    write_spectra(derain_pairs(d/'train'), d/'train')
@reader('train/spectra.csv', how='csv', make=_spectra)
def spectra_list(d):
    from clearsight_nb.derain.spectra import read_spectra
    return len(read_spectra(d/'train'/'spectra.csv'))
@reader('train/rain*/*.npz', make=_spectra, exact=True)
def spectrum(d):
    from clearsight_nb.derain.spectra import read_npz
    return [read_npz(f) for f in sorted(d.glob('train/rain*/*.npz'))]

# ---- lowlight

def _lowlight(d):
    from clearsight_nb.lowlight.sensor import lowlight_sample
    lowlight_sample(d, n=4, n_valid=1, n_test=0, size=16)
@reader('pt_tiles/*/*.pt', 'metadata.json', make=_lowlight)
def lowlight_data(d):
    from clearsight_nb.lowlight.validate import check_lowlight
    return len(check_lowlight(d, workers=1, progress=False).tiles)
@reader('metadata.json', make=_lowlight, how='json')
def lowlight_metadata(d):
    from clearsight_nb.lowlight.validate import check_lowlight
    tiles = check_lowlight(d, workers=1, progress=False).tiles
    assert all(t.path.is_relative_to(d.resolve()) for t in tiles)
    return len(tiles.pairs())
@reader('pt_tiles/**/*.pt', make=_lowlight, exact=True)
def lowlight_tile(d):
    from clearsight_nb.lowlight.exposure import read_exposure
    return [read_exposure(f).light.numpy() for f in sorted(d.glob('pt_tiles/**/*.pt'))[:3]]

def _packed(d):
    from clearsight_nb.lowlight.shards import pack_tiles
    _lowlight(d)
    pack_tiles(d, d/'store', progress=False)
@structured('store/index.json', make=_packed)
def tile_store(d):
    from clearsight_nb.lowlight.shards import TileStore
    s = TileStore(d/'store')
    return s.select('train').shape,tuple(s.batch([0]).shape)
@reader('store/*.bin', 'store/manifest.json', make=_packed, heals=True)
def tile_store_sums(d):
    from clearsight_nb.lowlight.shards import TileStore
    s = TileStore(d/'store')
    return s.verify().ok

def _lists(d):
    line = './Sony/short/{0}_00_0.1s.ARW ./Sony/long/{0}_00_10s.ARW ISO200 F8\n'.format
    for split,scenes in dict(train=(1, 2), val=(3,), test=(4,)).items(): (d/f'Sony_{split}_list.txt').write_text(''.join(line(f'{i:05}') for i in scenes))
@structured('Sony_*_list.txt', how='list', make=_lists)
def split_lists(d):
    from clearsight_nb.lowlight.tiles import read_split_lists
    return len(read_split_lists(d))

def _calibration(d):
    from clearsight_nb.lowlight.sensor import Calibration
    Calibration(2., 1.5, .5, (512., 513., 511., 512.), 16383., 800., dark=np.float32(rng().normal(0, 1, (8, 8, 4)))).save(d/'calibration.json')
@structured('calibration.json', make=_calibration)
def calibration(d):
    from clearsight_nb.lowlight.sensor import load_calibration
    return load_calibration(d/'calibration.json').full_scale>0
@reader('*.npy', make=_calibration)
def dark_map(d):
    from clearsight_nb.lowlight.sensor import load_calibration
    return load_calibration(d/'calibration.json').dark.ndim in (2, 3)

def _dng(d):
    from clearsight_nb.lowlight.raw import write_dng
    write_dng(d/'a.dng', rng().integers(600, 9000, (48, 64)), iso=800, exposure=.1)
@reader('a.dng', make=_dng)
def raw(d):
    from clearsight_nb.lowlight.raw import read_raw
    return read_raw(d/'a.dng').mosaic.ndim

# ---- shadow

def _shadow(d):
    from clearsight_nb.shadow.sample import shadow_sample
    shadow_sample(d, objects=2, lights=2, size=16, samples=2, progress=False)
@reader('objects/*.png', 'masks/*.png', 'shadows/*.png', make=_shadow)
def shadow_data(d):
    from clearsight_nb.shadow.data import check_shadow
    return len(check_shadow(d, workers=1).items)
@structured('metadata.json', make=_shadow)
def shadow_lights(d):
    from clearsight_nb.shadow.data import check_shadow
    return len(check_shadow(d, workers=1).items)

def _tar(d):
    from clearsight_nb.shadow.sample import shadow_tracks
    shadow_tracks(d/'a.tar', (1, 1, 1), size=16, samples=2, progress=False)
@reader('a.tar', make=_tar)
def benchmark(d):
    from clearsight_nb.shadow.benchmark import check_benchmark
    return check_benchmark(d/'a.tar', workers=1).facts['samples']

def _cutout(d):
    from PIL import Image
    x = rng().integers(0, 256, (20, 16, 4), np.uint8)
    x[:4,:,3] = 0
    for ext in ('png', 'webp', 'tif'): Image.fromarray(x).save(d/f'a.{ext}')
@reader('a.*', make=_cutout)
def cutout(d):
    from clearsight_nb.shadow.cast import read_cutout
    return [read_cutout(f).shape[2] for f in sorted(d.glob('a.*'))]
