"Nothing in a file runs, no path in a file leads out of its folder, and the package holds no call that could let it."
import ast, importlib, io, json, os, pickle, tarfile, zipfile
import numpy as np, pytest, torch
from conftest import ROOT
from clearsight_nb.core.files import DataError

# ---- programs in files

class Payload:
    "Whoever unpickles this makes a folder"
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return os.mkdir,(self.marker,)

def _torch_zip(o, path): torch.save(o, path)
def _torch_old(o, path): torch.save(o, path, _use_new_zipfile_serialization=False)
def _pickle(o, path): path.write_bytes(pickle.dumps(o))
def _npy(o, path):
    with open(path, 'wb') as f: np.save(f, np.array([o], object), allow_pickle=True)
def _npz(o, path):
    with open(path, 'wb') as f: np.savez(f, mag_and_phase=np.array([o], object), allow_pickle=True)
def _tar(o, path):
    "The form of torch before 0.1.10: pickles in a tar"
    with tarfile.open(path, 'w') as tar:
        for name in ('sys_info', 'pickle', 'tensors', 'storages'):
            info = tarfile.TarInfo(name)
            info.size = len(data := pickle.dumps(o))
            tar.addfile(info, io.BytesIO(data))
def _zip(o, path):
    "A zip whose pickle is another one than torch writes"
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('archive/data.pkl', pickle.dumps(o))
        z.writestr('archive/version', '3')
def _yaml(o, path): path.write_text(f'a: !!python/object/apply:os.mkdir [{o.marker}]\ntask: weather\ndata: {{}}\ntraining: {{}}\n')

WRITERS = dict(torch=_torch_zip, torch_old=_torch_old, pickle=_pickle, npy=_npy, npz=_npz, tar=_tar, zip=_zip, yaml=_yaml)

def _readers():
    "Every reader of weights, arrays, pictures and settings, by the endings of its files"
    def get(names): return [getattr(importlib.import_module(f'clearsight_nb.{n.rpartition(".")[0]}'), n.rpartition('.')[2]) for n in names.split()]
    weights = get('core.plain.plain_torch core.checkpoints.read_checkpoint core.training.read_weights glacier.transfer.load_weights glacier.ensemble.unpack_ensemble lowlight.tiles.read_tile '
        'lowlight.prior.load_prior weather.checkpoint.read_weatherdiff weather.checkpoint.load_weatherdiff weather.restore.load_restorer derain.derain.load_derainer '
        'shadow.cast.load_caster shadow.train.load_shadow shadow.models.load_net shadow.models.net_facts')
    encoder,predictor,exposure,camera,array = get('glacier.model.encoder_weights glacier.predict.Predictor lowlight.exposure.read_exposure lowlight.sensor.SAMPLE_CAMERA glacier.crossval._load_array')
    weights += [predictor.of, lambda f: encoder(torch.nn.Conv2d(3, 2, 1), f), lambda f: exposure(f, camera)]
    arrays = get('core.plain.plain_array core.plain.plain_arrays derain.spectra.read_npz') + [lambda f: array(f, np.float16, 3)]
    pixels = get('weather.data.read_rgb derain.pairs.read_photo core.pictures.open_picture shadow.cast.read_cutout glacier.tiles.read_tif shadow.benchmark.read_benchmark lowlight.raw.read_raw')
    preset,legacy = get('core.recipe.load_recipe core.legacy.known_config')
    settings = get('core.recipe.read_recipe weather.lists.published_config derain.pairs.read_pairs') + [lambda f: preset('weather', f), lambda f: legacy('weather', str(f))]
    return {'.pt': weights, '.pth': weights, '.pth.tar': weights, '.pkl': weights+arrays, '.safetensors': weights, '.npz': arrays+weights, '.npy': arrays+weights, '.yaml': settings, '.yml': settings,
        '.png': pixels, '.tif': pixels, '.tar': pixels, '.dng': pixels}

@pytest.mark.parametrize('how', WRITERS)
def test_no_program_runs(how, tmp_path):
    "Whatever it is called and whoever reads it: refused with a DataError that names the file, and nothing was run."
    marker,n = tmp_path/'it-ran',0
    for ending,readers in _readers().items():
        for o in (Payload(marker), dict(state_dict=Payload(marker), model={})):
            if how in ('npy', 'npz', 'yaml') and isinstance(o, dict): continue
            WRITERS[how](o, file := tmp_path/f'evil{ending}')
            for read in readers:
                with pytest.raises(DataError) as e: read(file)
                assert 'evil' in str(e.value), (ending, read, e.value)
                assert not marker.exists(), (ending, read)
                n += 1
    assert n>50
    if how in ('torch', 'torch_old', 'pickle'): # the payload does work
        if how=='pickle': pickle.loads(pickle.dumps(Payload(marker)))
        else: torch.load(tmp_path/'evil.pt', weights_only=False)
        assert marker.exists()

def test_no_program_in_stores_and_calibrations(tmp_path):
    from clearsight_nb.core.recipe import load_recipe
    from clearsight_nb.glacier.hkh import check_hkh, hkh_sample
    from clearsight_nb.lowlight.sensor import Calibration, load_calibration
    marker = tmp_path/'it-ran'
    Calibration(2., 1.5, .5, 512., 16383., dark=np.zeros((8, 8), np.float32)).save(tmp_path/'c.json')
    _npy(Payload(marker), next(tmp_path.glob('c.dark-*.npy')))
    with pytest.raises(DataError, match='c.dark'): load_calibration(tmp_path/'c.json')
    hkh_sample(tmp_path/'hkh', patches=2, size=32, scenes=2)
    _npy(Payload(marker), next((tmp_path/'hkh').rglob('*_img_*.npy')))
    with pytest.raises(DataError, match='_img_'): check_hkh(tmp_path/'hkh', 32, progress=False).raise_errors()
    for text in ('training.lr=!!python/object/apply:os.mkdir [%s]', 'name=!!python/name:os.system'):
        with pytest.raises(DataError): load_recipe('weather', overrides=[text % marker if '%' in text else text])
    assert not marker.exists()

def test_no_postscript_and_no_other_formats(tmp_path):
    "Pillow would hand PostScript to Ghostscript, and GDAL would read whatever files and addresses a VRT names, whatever their own names say."
    from clearsight_nb.core.rasters import RasterBands
    (secret := tmp_path/'secret.tif').write_bytes(b'')
    from PIL import Image
    Image.new('L', (8, 8), 7).save(secret)
    eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(it-ran) (w) file closefile\nshowpage\n%%EOF\n'
    vrt = f'<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{secret}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>'
    for name in ('a.png', 'a.tif', 'a.jpg', 'a.eps'):
        for data in (eps, vrt.encode()):
            (file := tmp_path/name).write_bytes(data)
            for read in _readers()['.png']:
                with pytest.raises(DataError, match='a.'): read(file)
            with pytest.raises(DataError, match='a.'): RasterBands(file, ['x'])

# ---- paths in files

OUT = '../secret.png','/etc/passwd','a/../../secret.png','C:\\secret.png','..\\secret.png','link.png','linked/secret.png','\0','x/'*3000

@pytest.fixture
def trap(tmp_path):
    "A folder beside a secret, with a link to it"
    from PIL import Image
    Image.new('RGB', (32, 32)).save(tmp_path/'secret.png')
    (d := tmp_path/'data').mkdir()
    (d/'link.png').symlink_to(tmp_path/'secret.png')
    (d/'linked').symlink_to(tmp_path)
    Image.new('RGB', (32, 32)).save(d/'good.png')
    return d

@pytest.mark.parametrize('path', OUT)
def test_paths_in_lists_and_metadata(path, trap):
    from clearsight_nb.core.files import check_manifest, safe_path
    from clearsight_nb.derain.pairs import COLUMNS, NPZ_COLUMNS, read_pairs
    from clearsight_nb.derain.spectra import read_spectra
    from clearsight_nb.lowlight.sensor import Calibration, load_calibration
    from clearsight_nb.lowlight.metadata import read_metadata
    from clearsight_nb.weather.data import read_filelist
    def refused(read, *names):
        with pytest.raises(DataError) as e: read()
        assert e.value.fault and e.value.mend
    refused(lambda: safe_path(trap, path))
    assert check_manifest(trap, {path: dict(bytes=1, sha256='')}).errors
    if '\0' not in path:
        (trap/'data.csv').write_text(f'{",".join(COLUMNS)}\ngood.png,{path}\n')
        refused(lambda: read_pairs(trap/'data.csv'))
        (trap/'spectra.csv').write_text(f'{",".join(NPZ_COLUMNS)}\na,a_1,{path},good.png,good.png,good.png,good.png\n')
        refused(lambda: read_spectra(trap/'spectra.csv'))
    (trap/'input').mkdir()
    (trap/'gt').mkdir()
    for f in ('input', 'gt'): (trap/f/'link.png').symlink_to(trap.parent/'secret.png')
    if path!='linked/secret.png' and path!='link.png': # there the text is good, and the files are others
        (trap/'list.txt').write_bytes(f'input/{path}'.encode() if not path.startswith('/') else path.encode())
        if '..' in path or path.startswith(('/', 'C')) or '\0' in path: refused(lambda: read_filelist(trap/'list.txt', trap))
    (trap/'list.txt').write_text('input/link.png')
    refused(lambda: read_filelist(trap/'list.txt', trap))
    tile = dict(tile_id='a', scene_id='1', split='train', data_type='clean', pt_path=path.replace('.png', '.pt'))
    (trap/'linked.pt').symlink_to(trap.parent/'secret.png')
    (trap/'metadata.json').write_text(json.dumps(dict(tiles=[tile | dict(tile_id=path)])))
    refused(lambda: [t.read() for t in read_metadata(trap)])
    (trap/'metadata.json').write_text(json.dumps(dict(tiles=[tile])))
    refused(lambda: [t.read() for t in read_metadata(trap)])
    Calibration(2., 1.5, .5, 512., 16383.).save(trap/'c.json')
    (trap/'c.json').write_text(json.dumps(json.loads((trap/'c.json').read_text()) | dict(dark=path)))
    refused(lambda: load_calibration(trap/'c.json'))

def test_links_in_data_sets(trap):
    "Listing a folder does not follow a link that leads out of it."
    from clearsight_nb.core.files import list_images
    with pytest.raises(DataError, match='leads out'): list_images(trap)

def _add(tar, name, data=b'{}', **about):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for k,v in about.items(): setattr(info, k, v)
    tar.addfile(info, io.BytesIO(data))

@pytest.mark.parametrize('name,about', [('../out.png', {}), ('/abs/softness_control_000.image.png', {}), ('softness_control_000.image.png', dict(type=tarfile.SYMTYPE, linkname='/etc/passwd', size=0)),
    ('softness_control_000.image.png', dict(type=tarfile.LNKTYPE, linkname='../x', size=0)), ('softness_control_000.image.png', dict(type=tarfile.FIFOTYPE, size=0)),
    ('softness_control_000.image.png', dict(type=tarfile.CHRTYPE, size=0)), ('a/../../softness_control_000.image.png', {})])
def test_tar_members(name, about, tmp_path):
    "A tar is read in place; members with other names, links and devices are refused, and nothing is written."
    from clearsight_nb.shadow.benchmark import read_benchmark
    (d := tmp_path/'in').mkdir()
    with tarfile.open(d/'a.tar', 'w') as tar: _add(tar, name, **about)
    with pytest.raises(DataError, match='a.tar|out.png|softness'): read_benchmark(d/'a.tar')
    assert sorted(p.name for p in tmp_path.rglob('*'))==['a.tar', 'in']

def test_zip_members(tmp_path):
    "Names of members are keys of arrays, never paths."
    from clearsight_nb.core.plain import plain_arrays
    np.save(out := io.BytesIO(), np.arange(3))
    with zipfile.ZipFile(tmp_path/'a.npz', 'w') as z:
        for n in ('../../out.npy', '/abs.npy', 'a.npy'): z.writestr(n, out.getvalue())
    assert set(plain_arrays(tmp_path/'a.npz'))=={'../../out', '/abs', 'a'}
    assert [p.name for p in tmp_path.iterdir()]==['a.npz'] and not (tmp_path.parent/'out.npy').exists()

# ---- calls in the package

def called(node):
    "Dotted name of what is called, such as torch.load"
    parts,f = [],node.func
    while isinstance(f, ast.Attribute): parts,f = [f.attr, *parts],f.value
    if isinstance(f, ast.Call) and called(f)=='need_rasterio': return '.'.join(['rasterio', *parts])
    return '.'.join([f.id if isinstance(f, ast.Name) else '?', *parts])

def keyword(node, name): return next((k.value.value for k in node.keywords if k.arg==name and isinstance(k.value, ast.Constant)), None)

NEVER = {'pickle.load', 'pickle.loads', 'pickle.Unpickler', 'cPickle.load', 'dill.load', 'dill.loads', 'joblib.load', 'cloudpickle.load', 'cloudpickle.loads', 'marshal.load', 'marshal.loads', 'shelve.open', 'pd.read_pickle',
    'pandas.read_pickle', 'yaml.load', 'yaml.load_all', 'yaml.unsafe_load', 'yaml.full_load', 'eval', 'exec', 'os.system', 'os.popen', 'commands.getoutput', 'shutil.unpack_archive', 'torch.jit.load', 'torch.package.PackageImporter',
    'load_learner', 'torch.hub.load', 'Image.open', 'rasterio.open', 'xml.etree.ElementTree.parse', 'subprocess.getoutput', 'subprocess.getstatusoutput'}
#: File and function → why a call that is forbidden elsewhere is right there
ALLOWED = {('core/plain.py', 'plain_image', 'Image.open'): 'the one place', ('core/rasters.py', 'open_geotiff', 'rasterio.open'): 'the one place', ('core/photos.py', 'load_photo', 'Image.open'): 'of an installed package',
    ('glacier/solution.py', 'by_pillow', 'Image.open'): 'solution.py stands alone', ('weather/sample.py', '_short_side', 'Image.open'): 'of an installed package',
    ('tools/execute.py', 'slim', 'Image.open'): 'our own output', ('tools/front.py', 'chosen', 'Image.open'): 'our own output',
    ('tools/front.py', 'shows_the_same', 'Image.open'): 'our own output', ('glacier/submission.py', '_twins', 'exec'): 'runs the solution that was just written from our own networks, to compare it'}

def unsafe(node):
    "What is wrong with a call, or None"
    name = called(node)
    if name in NEVER: return name
    last = name.rpartition('.')[2]
    if name=='torch.load' and keyword(node, 'weights_only') is not True: return 'torch.load without weights_only=True'
    if keyword(node, 'allow_pickle') is True: return f'{name} with allow_pickle=True'
    if name in ('np.load', 'numpy.load') and keyword(node, 'allow_pickle') is not False: return 'np.load without allow_pickle=False'
    if last in ('extractall', 'extract') and keyword(node, 'filter')!='data' and name!='re.extract': return f'{name} without filter="data"'
    if keyword(node, 'shell') is True: return f'{name} with shell=True'
    if keyword(node, 'trust_remote_code') is True: return f'{name} with trust_remote_code=True'
    if last=='from_pretrained' and name!='SDXLShadow.from_pretrained' and keyword(node, 'use_safetensors') is not True: return f'{name} without use_safetensors=True'

def faults(text, where):
    "(function, fault, line) of all unsafe calls and imports in a source"
    out,tree = [],ast.parse(text)
    def visit(node, func):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): func = node.name
        if isinstance(node, ast.Call) and (f := unsafe(node)) and (where, func, f) not in ALLOWED: out.append((func, f, node.lineno))
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, 'module', '') or '']
            out.extend((func, f'import of {n}', node.lineno) for n in names if n.split('.')[0] in ('pickle', 'cPickle', 'dill', 'joblib', 'cloudpickle', 'marshal', 'shelve'))
        for child in ast.iter_child_nodes(node): visit(child, func)
    visit(tree, '')
    return out

@pytest.mark.parametrize('folder', ['clearsight_nb', 'tools', 'docs'])
def test_no_unsafe_call(folder):
    "The syntax tree of every module is searched; what is allowed is listed with its reason."
    files = sorted((ROOT/folder).rglob('*.py'))
    bad = {f'{f.relative_to(ROOT)}:{line} {what}' for f in files for _,what,line in faults(f.read_text(encoding='utf-8'), f.relative_to(ROOT/'clearsight_nb' if folder=='clearsight_nb' else ROOT).as_posix())}
    assert files and not bad, bad

@pytest.mark.parametrize('line', ['torch.load(f)', 'torch.load(f, weights_only=False)', 'torch.load(f,\n map_location="cpu")', 'import pickle', 'from pickle import loads', 'np.load(f)', 'np.load(f, allow_pickle=True)', 'yaml.load(f, Loader=L)',
    'eval(x)', 'exec(x)', 'os.system(x)', 'subprocess.run(x, shell=True)', 'tar.extractall(d)', 'z.extract(n)', 'joblib.load(f)', 'A.from_pretrained(p)', 'Image.open(f)', 'rasterio.open(f)'])
def test_the_search_finds_them(line): assert faults(f'def f():\n    {line}', 'x.py')

def test_allowed_calls_are_there():
    "An exception that nobody needs any more is removed from the list."
    for where,func,what in ALLOWED:
        file = ROOT/where if where.startswith('tools') else ROOT/'clearsight_nb'/where
        found = [n for n in ast.walk(ast.parse(file.read_text(encoding='utf-8'))) if isinstance(n, ast.Call) and called(n)==what]
        assert found, (where, what)
