"A submission needs nothing but torch, numpy and tifffile or Pillow, and gives the labels of the learner under both contracts, pixel for pixel."
import ast, io, json, pickle, re, subprocess, sys
from importlib import metadata, util
from types import SimpleNamespace
import numpy as np, pytest, tifffile, torch
from torch import nn
from clearsight_nb.core.files import DataError
from clearsight_nb.core.recipe import load_recipe
from clearsight_nb.core.training import fit_recipe
from clearsight_nb.glacier.data import BandStack
from clearsight_nb.glacier.dls import glacier_dls
from clearsight_nb.glacier.ensemble import SIZE_LIMIT, Ensemble, pack_ensemble, half_weights, tta, unpack_ensemble
from clearsight_nb.glacier.model import glacier_learner, glacier_model
from clearsight_nb.glacier.predict import Predictor
from clearsight_nb.glacier.prepare import BandNorm
from clearsight_nb.glacier.sample import glacier_sample
from clearsight_nb.glacier.segment import segment
from clearsight_nb.glacier.submission import export_submission
from clearsight_nb.glacier.tiles import LabelCodec

BANDS,NAMES = ['blue', 'green', 'red', 'swir1', 'tir'],list(LabelCodec().names)

def args(arch='unet', encoder='mobilenet_v2', attention=None): return dict(arch=arch, encoder=encoder, attention=attention, weights='none')

def random_net(seed=0, **kw):
    "A network with statistics as if trained, whose labels are of every class"
    torch.manual_seed(seed)
    net = glacier_model(SimpleNamespace(**args(**kw)), BANDS).eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, .1)
            m.running_var.uniform_(.5, 1.5)
    return net

def norm(kind='zscore', clip=None): return BandNorm(kind, BANDS, [20000.1, 19000.7, 18000.3, 7000.9, 23000.5], [9000.3, 8000.1, 7000.7, 3000.9, 4000.2], clip)
def predictor(net, n=None): return Predictor(net, n or norm(), BANDS, NAMES)

# Tile number → (height, width), number type, how tifffile stores it
TILES = {
    '001': ((64,64), np.uint16, dict(compression='deflate')),
    '002': ((45,71), np.uint16, {}), # no multiples of 32, reflected
    '003': ((7,40), np.uint16, {}), # too short to be reflected
    '004': ((160,97), np.uint8, {}), # larger than the others
    '005': ((64,64), np.float32, {}), # with NaN and infinity
    '006': ((64,64), np.uint16, dict(compression='lzw')), # needs imagecodecs, or Pillow
    '007': ((32,64), np.uint16, {}),} # no data at all

def write_tiles(root, tiles=TILES, name='img{}.tif'):
    "Smooth random bands with a corner where nothing was measured"
    rng = np.random.default_rng(0)
    for band in range(1, 6):
        (root/f'Band{band}').mkdir(parents=True)
        for t in tiles:
            (h,w),dtype,kw = TILES[t]
            x = np.kron(rng.random((h//8+1, w//8+1)), np.ones((8,8)))[:h,:w] + .2*rng.random((h,w))
            x = (x/1.2*(250 if dtype == np.uint8 else 50000) + 1).astype(dtype)
            x[:h//4,:w//3] = 0
            if t == '007': x[:] = 0
            if t == '005': x[-3,band],x[-4,3] = np.nan,np.inf
            tifffile.imwrite(root/f'Band{band}'/name.format(t, band=band), x, **kw)
    return root

def expected(model, root):
    "{tile id: labels} by the library"
    stack,model = BandStack(root, labels=False),Predictor.of(model)
    return {t.removeprefix('img'): LabelCodec().encode(model(stack.read(t))) for t in stack.names}

@pytest.fixture(scope='module')
def tiles(tmp_path_factory): return write_tiles(tmp_path_factory.mktemp('tiles')/'all')

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    "A Learner after a few steps"
    folder = tmp_path_factory.mktemp('learn')
    recipe = load_recipe('glacier', 'demo', overrides=['training.steps=3', 'training.batch_size=2', 'data.crop=64', 'data.folds=3', 'training.workers=0'])
    data = glacier_sample(folder/'scene', tiles=6, size=64, seed=5)
    learn = glacier_learner(glacier_dls(data, recipe, cache=folder/'store'), recipe, run_dir=folder/'run')
    with learn.no_bar(), learn.no_logging(): fit_recipe(learn)
    learn.data = data
    return learn

@pytest.fixture(scope='module')
def models(learn, tmp_path_factory):
    "Name → (what is exported, what it must equal, arguments of the export)"
    unet = predictor(random_net().to(memory_format=torch.channels_last), norm('percentile', (0.,1.)))
    scse,small = predictor(random_net(1, attention='scse')),predictor(small_net(), BandNorm('instance', BANDS))
    half = random_net(2)
    half.load_state_dict(half_weights(half.state_dict()))
    pack = pack_ensemble(tmp_path_factory.mktemp('pack')/'pack.pth', [unet, scse], [2,1], [args(), args(attention='scse')])
    return dict(learner=(learn, learn, {}), scse=(scse, scse, {}),
        ensemble=([unet, small], Ensemble([unet, small], [3,1]), dict(weights=[3,1])),
        half=(predictor(random_net(2)), predictor(half), dict(half=True)), packed=(pack, unpack_ensemble(pack), dict(half=True)),
        transformer=(p := predictor(random_net(3, arch='segformer', encoder='mit_b0')), p, {}))

def small_net(seed=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()

@pytest.fixture(scope='module')
def exports(models, tmp_path_factory):
    root = tmp_path_factory.mktemp('exports')
    return {k: export_submission(m, root/k, **kw) for k,(m,_,kw) in models.items()}

# ---- another Python that has only what the platform has

WALL = '''import importlib, importlib.util, json, runpy, sys
job = json.load(open(sys.argv[1]))
class Wall:
    "Importing anything that is not on the platform fails"
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in job['blocked']: raise ImportError(name + ' is not on the platform')
sys.meta_path.insert(0, Wall())
for name in job['must_fail']:
    try: importlib.import_module(name)
    except ImportError: continue
    raise SystemExit(name + ' can be imported')
'''
CALLS = WALL + '''import numpy as np, torch
torch.set_num_threads(job['threads'])
out = {}
for model,folder in job['models'].items():
    spec = importlib.util.spec_from_file_location('solution', folder + '/solution.py')
    solution = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(solution)
    for name,bands in job['sets'].items():
        masks = solution.maskgeration(bands, folder + '/model.pth')
        assert type(masks) is dict and max(m.max() for m in masks.values()) <= 255
        out.update({f'{model} {name} {t}': m for t,m in masks.items()})
    if model == job['second']: # contract of the documents: the second argument is a folder
        again = solution.maskgeration(bands, job['dest'])
        assert again.keys() == masks.keys() and all((again[t] == masks[t]).all() for t in masks)
np.savez(job['out'], **out)
for sys.argv in job['programs']: runpy.run_path(sys.argv[0], run_name='__main__') # as python solution.py does
'''

def platform_lacks():
    "Top-level names of installed packages that neither torch, numpy, tifffile nor Pillow needs"
    clean = lambda s: re.split(r'[^\w.-]', s)[0].lower().replace('_', '-')
    need,todo = set(),['torch', 'numpy', 'tifffile', 'pillow']
    while todo:
        if (d := todo.pop()) in need: continue
        need.add(d)
        try: todo += [clean(r) for r in metadata.requires(d) or [] if 'extra ==' not in r]
        except metadata.PackageNotFoundError: pass # a requirement of other machines
    return sorted({top for top,ds in metadata.packages_distributions().items() if not {clean(d) for d in ds} & need} | {'clearsight_nb'})

def platform(folder, code, blocked=(), **job):
    "Run code in another Python, isolated from our folders and settings; its CompletedProcess"
    lacks = platform_lacks() + list(blocked)
    job |= dict(blocked=lacks, must_fail=['clearsight_nb', 'fastai', 'fastcore', 'segmentation_models_pytorch', 'imagecodecs', *blocked], threads=torch.get_num_threads())
    (folder/'job.json').write_text(json.dumps(job, default=str))
    (folder/'job.py').write_text(code)
    return subprocess.run([sys.executable, '-I', folder/'job.py', folder/'job.json'], capture_output=True, text=True, cwd=folder, timeout=300)

def as_dict(root): return {f'Band{i}': root/f'Band{i}' for i in range(1, 6)}

WORDS = (['--data', '--masks', '--out'], ['--imagepath', '--output'])

@pytest.fixture(scope='module')
def masks(exports, tiles, learn, tmp_path_factory):
    "All models on all tiles; with 'no tifffile' in front, some by Pillow. What was written lies in 'folder'"
    folder = tmp_path_factory.mktemp('masks')
    job = dict(sets=dict(tiles=as_dict(tiles), scene=as_dict(learn.data/'Train')))
    given = lambda w: tiles if w in ('--data', '--imagepath') else folder/'unused' if w == '--masks' else folder/w
    programs = [[exports['scse']/'solution.py', *(o for w in words for o in (w, given(w)))] for words in WORDS]
    done = platform(folder, CALLS, models=exports, second='scse', dest=folder/'written', out=folder/'a.npz', programs=programs, **job)
    assert done.returncode == 0 and done.stdout == '7 tiles labelled\n'*2, done.stderr
    some = {k: exports[k] for k in ('learner', 'ensemble')}
    done = platform(folder, CALLS, ['tifffile'], models=some, second='ensemble', dest=folder/'by_pillow', out=folder/'b.npz', programs=[], **job)
    assert done.returncode == 0, done.stderr
    b = np.load(folder/'b.npz')
    return dict(np.load(folder/'a.npz')) | {f'no tifffile {k}': b[k] for k in b} | dict(folder=folder)

# ---- the labels

MODELS = ('learner', 'scse', 'ensemble', 'half', 'packed', 'transformer')

@pytest.mark.parametrize('model', MODELS)
def test_labels_are_the_librarys(model, models, masks, tiles, learn):
    "Every pixel of every tile, under the contract of the platform"
    seen = set()
    for name,root in (('tiles', tiles), ('scene', learn.data/'Train')):
        want = expected(models[model][1], root)
        got = {k.split()[-1]: v for k,v in masks.items() if k.startswith(f'{model} {name} ')}
        assert list(got) == list(want) and all(t.isdigit() for t in got)
        for t,y in want.items():
            assert got[t].dtype == np.uint8 and got[t].shape == y.shape
            np.testing.assert_array_equal(got[t], y, f'{model} {name} {t}')
            seen |= set(np.unique(y))
    assert seen <= {0,85,170,255} and len(seen) > 1

@pytest.mark.parametrize('model', ('learner', 'ensemble'))
def test_without_tifffile(model, masks):
    "Pillow reads the same pixels"
    keys = [k for k in masks if k.startswith(f'{model} ')]
    assert len(keys) == len(TILES)+6
    for k in keys: np.testing.assert_array_equal(masks[f'no tifffile {k}'], masks[k], k)

def test_nodata_is_background(tiles, masks):
    stack = BandStack(tiles, labels=False)
    for t in stack.names:
        holes = ~stack.valid(t)
        assert holes.any()
        for k,v in masks.items():
            if k.endswith(f' tiles {t[3:]}'): assert not v[holes].any(), k

def test_folder_as_second_argument(masks, learn):
    "Files with the names of Band1's, by tifffile and by Pillow; the platform asked for no others"
    for folder,model in (('written', 'scse'), ('by_pillow', 'no tifffile ensemble')):
        files = sorted(p.name for p in (masks['folder']/folder).iterdir())
        assert files == sorted(p.name for p in (learn.data/'Train'/'Band1').iterdir())
        for f in files:
            y = tifffile.imread(masks['folder']/folder/f)
            assert y.dtype == np.uint8
            np.testing.assert_array_equal(y, masks[f'{model} scene {f[3:6]}'])

def test_command_line(tiles, masks):
    "Both documents' arguments write files"
    for words in WORDS:
        out = masks['folder']/words[-1]
        assert sorted(p.name for p in out.iterdir()) == [f'img{t}.tif' for t in TILES]
        for t in TILES: np.testing.assert_array_equal(tifffile.imread(out/f'img{t}.tif'), masks[f'scse tiles {t}'])

def test_segment_writes_the_same(learn, exports, masks, tmp_path):
    for p in segment(learn.data, tmp_path/'out', learn, progress=False):
        np.testing.assert_array_equal(tifffile.imread(p), masks[f'learner scene {p.stem[3:]}'])

# ---- the two files

def load(folder): return torch.load(folder/'model.pth', weights_only=True)

def test_source(exports):
    "Python 3.9 can parse it, and it imports nothing that the platform lacks"
    for folder in exports.values():
        nodes = list(ast.walk(ast.parse((folder/'solution.py').read_text(), feature_version=(3, 9))))
        names = [a.name for n in nodes if isinstance(n, ast.Import) for a in n.names] + [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
        assert {n.split('.')[0] for n in names} - set(sys.stdlib_module_names) == {'torch', 'numpy', 'tifffile', 'PIL'}

def test_weights_file(models, exports, learn):
    "Plain tensors and JSON; weights and normaliser are those of the learner"
    saved = load(exports['learner'])
    about,own = json.loads(saved['about']),learn.model.state_dict()
    assert saved.keys() == {'about', 'state'} and about['bands'] == BANDS and about['values'] == [0,85,170,255]
    assert {k[2:] for k in saved['state']} == {k for k in own if not k.endswith('num_batches_tracked')}
    for k,v in saved['state'].items(): assert v.dtype == own[k[2:]].dtype and torch.equal(v, own[k[2:]])
    n = about['members'][0]['norm']
    for k in ('shift', 'scale'): assert np.abs(np.array(n[k]) - np.array(getattr(learn.dls.norm, k))).max() <= 1e-6

def test_run_folder(learn, tmp_path):
    "A run is exported from its folder alone"
    saved,own = load(export_submission(learn.run_dir, tmp_path)),Predictor.of(learn.run_dir)
    for k,v in saved['state'].items(): assert torch.equal(v, own.model.state_dict()[k[2:]])
    assert json.loads(saved['about'])['members'] == [dict(norm=own.norm.to_dict(), weight=1., channels_last=True)]

def test_half(exports):
    "fp16 on disk: half the size"
    for model,n in (('half', 1), ('packed', 2)):
        state = load(exports[model])['state']
        assert {v.dtype for v in state.values()} == {torch.float16} and {k.split('.')[0] for k in state} == {str(i) for i in range(n)}
    size = lambda m: (exports[m]/'model.pth').stat().st_size
    assert size('half') < .6*sum(v.numel() for v in load(exports['half'])['state'].values())*4

def test_same_network_once(exports, tmp_path):
    "Folds of one architecture share one class"
    text = (export_submission([predictor(small_net(i)) for i in range(3)], tmp_path)/'solution.py').read_text()
    assert text.count('class Net') == 1 and 'NETS = [Net0, Net0, Net0]' in text

def test_size_guard(tmp_path):
    "At most 300 MB, or what a stricter place takes; nothing is written over the limit"
    assert SIZE_LIMIT == 300_000_000
    class Heavy(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.wide,self.head = nn.Conv2d(5, n, 1),nn.Conv2d(n, 4, 1)
        def forward(self, x): return self.head(self.wide(x))
    heavy = predictor(Heavy(1000))
    export_submission(heavy, tmp_path/'fits', limit=200_000_000)
    size = (tmp_path/'fits'/'model.pth').stat().st_size
    export_submission(heavy, tmp_path/'exact', limit=size)
    with pytest.raises(DataError, match=rf'model.pth: would have {size:,} bytes, over the limit of {size-1:,}.*half=True'):
        export_submission(heavy, tmp_path/'no', limit=size-1)
    assert not (tmp_path/'no').exists()

def test_default_limit(tmp_path, monkeypatch):
    "The guard is on without being asked for"
    from clearsight_nb.glacier import submission
    monkeypatch.setattr(submission.torch, 'save', lambda o, f: f.write(bytes(SIZE_LIMIT+1)))
    with pytest.raises(DataError, match='300,000,001 bytes, over the limit of 300,000,000'): export_submission(predictor(small_net()), tmp_path/'no')
    assert not (tmp_path/'no').exists()

# ---- what can be exported

ARCHS = ('manet', 'pan', 'pspnet', 'deeplabv3plus', 'linknet', 'upernet')

@pytest.mark.parametrize('arch', ARCHS)
def test_architectures(arch, tmp_path):
    "The unrolled network gives the same numbers, to the last bit, at sizes it was not traced at"
    net = random_net(arch=arch, encoder='resnet18')
    solution = module(export_submission(predictor(net), tmp_path))
    (twin,) = solution.load_model(tmp_path/'model.pth')[1]
    for h,w in ((128,192), (160,128)):
        x = torch.randn(1, 5, h, w)
        with torch.inference_mode(): assert torch.equal(twin(x), net(x))

def module(folder):
    spec = util.spec_from_file_location('solution', folder/'solution.py')
    spec.loader.exec_module(m := util.module_from_spec(spec))
    m.DEVICE = torch.device('cpu')
    return m

class BySize(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(5, 4, 1)
    def forward(self, x): return self.conv(x) if x.shape[-1] < 300 else self.conv(-x)

class ByValue(BySize):
    def forward(self, x): return self.conv(x) if x.mean() > 0 else self.conv(-x)

class Fixed(BySize): # int() of a side is no part of a list of operations
    def forward(self, x): return self.conv(x)[..., :int(x.shape[-1])]

class Foreign(BySize):
    def forward(self, x): return self.conv(x)*np.float32(2).item() + math_of(x)

class Pair(BySize):
    def forward(self, x): return self.conv(x), x

class Random(BySize):
    def forward(self, x): return self.conv(x) + torch.rand(1)

@torch.fx.wrap
def math_of(x): return x.mean()

def broken():
    net = small_net()
    net[0].weight.data[0,0,0,0] = np.nan
    return net

def odd_bands(extra): return Predictor(nn.Conv2d(5+len(extra), 4, 1).eval(), BandNorm('instance', BANDS+extra), BANDS+extra, NAMES)

REFUSED = {
    'depends on the size': (lambda: predictor(BySize()), 'depends on the size of the image.*Choose an architecture.*Unet'),
    'depends on the values': (lambda: predictor(ByValue()), 'straight list.*Choose an architecture.*Unet'),
    'converts a size': (lambda: predictor(Fixed()), 'straight list.*Choose an architecture.*Unet'),
    'calls another library': (lambda: predictor(Foreign()), 'Foreign calls .*math_of, which is not part of torch'),
    'gives two things': (lambda: predictor(Pair()), r'must give logits \(1, 4, 128, 160\)'),
    'draws numbers': (lambda: predictor(Random()), 'gives other values as source'),
    'NaN': (lambda: predictor(broken()), r'1 tensors hold NaN or infinity, first 0.weight: take an earlier'),
    'textures': (lambda: odd_bands(['swir1_contrast', 'swir1_energy']), 'swir1_contrast, swir1_energy cannot be exported.*measured bands'),
    'indices': (lambda: odd_bands(['NDSI', 'NDWI']), 'NDSI, NDWI cannot be exported.*measured bands'),
    'views': (lambda: tta(predictor(small_net()), 2), 'a TTA cannot be exported: give the predictors'),
    'classes without values': (lambda: Predictor(nn.Conv2d(5, 2, 1).eval(), norm(), BANDS, ['other', 'ice']), '4 label values for 2 classes'),}

@pytest.mark.parametrize('what', REFUSED)
def test_refused(what, tmp_path):
    "One clear error, and no file"
    make,words = REFUSED[what]
    with pytest.raises(ValueError, match=words): export_submission(make(), tmp_path/'out')
    assert not (tmp_path/'out').exists()

def test_two_classes(tiles, tmp_path):
    "Other classes and values than the competition's"
    two = Predictor(nn.Conv2d(5, 2, 1).eval(), norm(), BANDS, ['other', 'ice'])
    out = module(export_submission(two, tmp_path, values=(0, 1))).maskgeration(as_dict(tiles))
    stack = BandStack(tiles, labels=False)
    for t in stack.names: np.testing.assert_array_equal(out[t[3:]], two(stack.read(t)))

# ---- what the platform may give

@pytest.fixture(scope='module')
def small(tmp_path_factory): return export_submission(predictor(small_net()), tmp_path_factory.mktemp('small'))

@pytest.fixture(scope='module')
def solution(small): return module(small)

@pytest.mark.parametrize('name,want', [('img001.tif', '001'), ('img12.tif', '12'), ('B10_B10_masked_02_07.tif', '02_07'), ('12_12.tif', '12_12'),
    ('Y_output_resized_08_14.tif', '08_14'), ('img_7.tif', 'img_7'), ('IMG003.TIF', '003')])
def test_tile_id(solution, name, want): assert solution.tile_id(name) == want

def test_order_and_keys(solution, small, tiles):
    "Bands go by their names, whatever their order and letters; folders that are no bands are left alone"
    bands = {k.lower(): str(v) for k,v in reversed(as_dict(tiles).items())} | dict(labels='nowhere')
    out = solution.maskgeration(bands, str(small/'model.pth'))
    for t,y in expected(predictor(small_net()), tiles).items(): np.testing.assert_array_equal(out[t], y)
    for root in (tiles, tiles.parent): assert len(solution.find_tiles(str(root), 5)) == len(TILES)

def test_one_file_a_band(solution, small, tiles):
    out = solution.maskgeration({k: v/'img002.tif' for k,v in as_dict(tiles).items()}, small/'model.pth')
    assert list(out) == ['002']
    np.testing.assert_array_equal(out['002'], expected(predictor(small_net()), tiles)['002'])

def test_first_phase_names(solution, small, tmp_path):
    "Rows and columns where there is no number"
    old = write_tiles(tmp_path/'old', ['001'], 'B{band}_B{band}_masked_02_07.tif')
    out = solution.maskgeration(as_dict(old), small/'model.pth')
    ((_,y),) = expected(predictor(small_net()), old).items()
    assert list(out) == ['02_07']
    np.testing.assert_array_equal(out['02_07'], y)

@pytest.fixture
def spoilt(tmp_path): return write_tiles(tmp_path/'tiles', ['001', '002'])

def rewrite(file, x, **kw):
    tifffile.imwrite(file, x, **kw)
    return file

def cut_strips(r):
    file = rewrite(r/'Band2/img001.tif', np.ones((64,64), np.uint16), rowsperstrip=8)
    with tifffile.TiffFile(file) as tif: end = tif.pages[0].dataoffsets[4]
    file.write_bytes(file.read_bytes()[:end])

FAULTS = {
    'a band is missing': (lambda r: [f.unlink() for f in (r/'Band3').iterdir()], 'Band3: holds no .tif file'),
    'a tile is missing': (lambda r: (r/'Band4/img002.tif').unlink(), 'Band4: its tiles differ.*002'),
    'truncated': (lambda r: (r/'Band2/img001.tif').write_bytes((r/'Band2/img001.tif').read_bytes()[:700]), 'Band2/img001.tif: cannot be read'),
    'truncated between strips': (cut_strips, 'Band2/img001.tif: cannot be read.*truncated'),
    'empty': (lambda r: (r/'Band2/img001.tif').write_bytes(b''), 'Band2/img001.tif: cannot be read'),
    'colours': (lambda r: rewrite(r/'Band1/img001.tif', np.ones((64,64,3), np.uint8), photometric='rgb'), 'Band1/img001.tif: is no image of one band'),
    'another size': (lambda r: rewrite(r/'Band5/img002.tif', np.ones((64,32), np.uint16)), r'Band5/img002.tif: is \(64, 32\) pixels, but'),
    'two of a number': (lambda r: rewrite(r/'Band1/img001.tiff', np.ones((64,64), np.uint16)), 'img001.tiff: is tile 001, and so is img001.tif'),}

@pytest.mark.parametrize('fault', FAULTS)
def test_bad_tiles(fault, solution, small, spoilt, tmp_path):
    "An error that names the file: never fewer tiles than asked for"
    spoil,words = FAULTS[fault]
    spoil(spoilt)
    with pytest.raises(ValueError, match=words): solution.maskgeration(as_dict(spoilt), small/'model.pth')
    with pytest.raises(SystemExit, match=words): solution.main(['--data', str(spoilt), '--out', str(tmp_path/'out')])

def test_bad_weights(solution, small, tiles, tmp_path):
    "A file of another export, a program in a pickle, no file"
    class Program:
        def __reduce__(self): return open, (str(tmp_path/'ran'), 'w')
    state = load(small)
    cut = dict(state, state={k: v for k,v in state['state'].items() if k != '0.2.bias'})
    made = {'program.pth': pickle.dumps(Program()), 'text.pth': b'none'} | {n: packed(o) for n,o in (('zip.pth', Program()), ('cut.pth', cut))}
    for n,b in made.items(): (tmp_path/n).write_bytes(b)
    wrong = {n: 'is no model of this solution' for n in made} | {'cut.pth': 'tensors do not fit network 0', 'absent.pth': 'there is no such file of weights'}
    for n,words in wrong.items():
        with pytest.raises(ValueError, match=f'{n}: .*{words}'): solution.maskgeration(as_dict(tiles), tmp_path/n)
    assert not (tmp_path/'ran').exists()
    export_submission([predictor(small_net())]*2, tmp_path/'two')
    with pytest.raises(ValueError, match='has 2 networks, solution.py has 1'): solution.maskgeration(as_dict(tiles), tmp_path/'two'/'model.pth')

def packed(o):
    torch.save(o, b := io.BytesIO())
    return b.getvalue()
