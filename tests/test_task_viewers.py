'What the pages of the task viewers cannot show: every control of each, random data against other libraries, hostile input, learners and folders as sources, and work that is done once.'
import math
import numpy as np, pytest, torch
from PIL import Image
from clearsight_nb.core.files import IGNORE, DataError
from clearsight_nb.core.recipe import load_recipe
from clearsight_nb.derain.fourier import full_plane, spectrum
from clearsight_nb.derain.sample import derain_sample
from clearsight_nb.derain.viewer import SpectrumViewer, rain_pair, ring, ring_energy
from clearsight_nb.glacier.data import BandStack
from clearsight_nb.glacier.predict import Predictor
from clearsight_nb.glacier.sample import glacier_sample
from clearsight_nb.glacier.viewer import ERRORS, GlacierViewer, tile_readers
from clearsight_nb.lowlight.enhance import display_rgb
from clearsight_nb.lowlight.sensor import to_unit
from clearsight_nb.lowlight.untrained import DCTPrior
from clearsight_nb.lowlight.viewer import NoiseViewer, camera_of
from clearsight_nb.shadow.cast import ShadowCaster, cast_shadow
from clearsight_nb.shadow.models import shadow_net
from clearsight_nb.shadow.widget import LightViewer
from viewer_checks import check_controls, check_refused, check_state

BANDS,NAMES = ['blue', 'green', 'red', 'swir1', 'tir'],['background', 'glacier', 'debris', 'lake']

def predictor(seed=0, classes=4):
    g = torch.Generator().manual_seed(seed)
    net = torch.nn.Conv2d(5, classes, 1)
    net.weight.data,net.bias.data = 4*torch.randn(classes, 5, 1, 1, generator=g),torch.randn(classes, generator=g)
    return Predictor(net, lambda x: x.astype(np.float32)-.5, BANDS, NAMES if classes==4 else [f'class {i}' for i in range(classes)])

def tiles(n=3, h=24, w=30):
    "Labels that the predictor finds in three of four pixels, with unknown pixels; the first rows of tile 1 have no data"
    rng,res = np.random.default_rng(0),[]
    for i in range(n):
        x = rng.random((5, h, w), dtype=np.float32)+.01
        y = np.where(rng.random((h, w))<.75, predictor()(x), rng.integers(0, 4, (h, w))).astype(np.uint8)
        y[rng.random((h, w))<.1] = IGNORE
        if i==1: x[:,:5],y[:5] = 0,IGNORE
        res.append((x, y))
    return res

def cutout(): # a block of noise with soft edges, RGBA
    a = np.random.default_rng(0).integers(0, 256, (60, 80, 4), dtype=np.uint8)
    a[...,3] = 0
    a[19:41,29:56,3] = 128
    a[20:40,30:55,3] = 255
    return a

def photos(n=2, h=20, w=27, seed=0): return np.random.default_rng(seed).random((n, h, w, 3), dtype=np.float32)
def pairs(**kw): return [(x, np.clip(x+.3*y, 0, 1)) for x,y in zip(photos(**kw), photos(**kw|dict(seed=9))) ]

CASTER = ShadowCaster(shadow_net('tiny', seed=0, widths=(8, 16), attention=0), 32, 'random')
VIEWERS = dict(light=lambda **s: LightViewer(cutout(), CASTER, px=60, **s), glacier=lambda **s: GlacierViewer(predictor(), tiles(), px=60, **s),
    spectrum=lambda **s: SpectrumViewer(pairs(), px=60, **s),
    noise=lambda **s: NoiseViewer(dict(a=photos()[0], b=photos()[1]), DCTPrior(step=4), px=60, **s))
OTHER = dict(light=dict(theta=10., phi=300., size=7.5, intensity=.4),
    glacier=dict(index=2, view='errors', bands='tir', class_name='lake', opacity=.25),
    spectrum=dict(index=1, picture='difference', part='phase', log=False, low=.1, high=.3),
    noise=dict(picture='b', ratio=.01, electrons=300, read=7.5, row=1.5, linear=True, enhanced=True))

@pytest.mark.parametrize('name', VIEWERS)
def test_state_makes_the_picture(name): check_state(VIEWERS[name], OTHER[name])

@pytest.mark.parametrize('name', VIEWERS)
def test_each_control_changes_the_picture(name):
    v = VIEWERS[name]()
    base = v.state | dict(glacier=dict(view='errors')).get(name, {})
    for k,x in OTHER[name].items():
        if x!=base[k]: assert not np.array_equal(v.draw(**base), v.draw(**base | {k: x})), k
    assert name!='glacier' or not np.array_equal(v.draw(**base), v.draw(**v.state))

@pytest.mark.parametrize('name', VIEWERS)
def test_controls_are_for_the_keyboard(name): check_controls(VIEWERS[name])

@pytest.mark.parametrize('name', VIEWERS)
def test_refused_values_change_nothing(name): check_refused(VIEWERS[name], OTHER[name])

@pytest.mark.parametrize('name', VIEWERS)
def test_pages_without_a_kernel(name, monkeypatch):
    "Without ipywidgets there are state, pictures and HTML, with each picture's sentence"
    monkeypatch.setitem(__import__('sys').modules, 'ipywidgets', None)
    v = VIEWERS[name]()
    text = v.static({}, OTHER[name])._repr_html_()
    assert text.count('<img')==2 and v.drawings==0
    with pytest.raises(ImportError, match=r"clearsight_nb\[widgets\]"): v.ui

# --- glacier

def test_errors_and_scores_against_scikit_learn():
    "Accuracy, R_K and the two errors of each class are scikit-learn's; the sentence and the colours say them; pixels without a label or data do not count"
    from sklearn.metrics import accuracy_score, matthews_corrcoef, multilabel_confusion_matrix
    v = GlacierViewer(predictor(), tiles())
    for i,(x,y) in enumerate(tiles()):
        on,pred = y!=IGNORE,predictor()(x)
        counts = multilabel_confusion_matrix(y[on], pred[on], labels=range(4))
        for k,name in enumerate(NAMES):
            s,(_,wrong),(missed,_) = v.scores(i, name),*counts[k].tolist()
            assert abs(s['accuracy']-accuracy_score(y[on], pred[on]))<1e-9 and abs(s['r_k']-matthews_corrcoef(y[on], pred[on]))<1e-9
            assert abs(s['missed']-missed/on.sum())<1e-12 and abs(s['found']-wrong/on.sum())<1e-12
            said = v.alt(**v.state | dict(index=i, view='errors', class_name=name))
            assert f'R_K {s["r_k"]:.3f}' in said and f'{missed/on.sum():.1%} of the pixels are {name} that is missed' in said and f'{wrong/on.sum():.1%} are taken for {name}' in said
            layer,colour = v.layer('errors', i, name),lambda k: [int(ERRORS[k][j:j+2], 16) for j in (1, 3, 5)]
            assert [(layer==colour(k)).all(-1).sum() for k in ('missed', 'found', 'other')]==[missed, wrong, (pred!=y)[on].sum()-missed-wrong]
            assert (layer[~on]==255).all() and (layer[on & (pred==y)]==255).all()

def test_layers_are_what_they_say():
    "Classes in the colours of all pages, probabilities in viridis; opacity 0 is the ground; any tile shape and number of classes"
    import matplotlib
    v,(x,y) = GlacierViewer(predictor(), tiles()),tiles()[1]
    p = predictor().probs(x)
    assert np.array_equal(v.layer('probability', 1, 'debris'), np.uint8(255*matplotlib.colormaps['viridis'](p[2])[...,:3]+.5))
    want = np.array(v.codec.rgb(y))
    want[y==IGNORE] = 255
    assert np.array_equal(v.layer('label', 1), want) and np.array_equal(v.layer('prediction', 1), v.codec.rgb(p.argmax(0)))
    assert (p[:,:5].argmax(0)==0).all() # no data is background
    ground = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    for view in v.views: assert abs(v.layer(view, 1, 'lake', ground, 0).astype(int)-ground).max()<=1
    for n in (2, 7):
        u = GlacierViewer(predictor(classes=n), [(tiles()[0][0], None)], px=30)
        assert u.views==('prediction', 'probability') and u.draw(**u.state | dict(view='all')).ndim==3 and len(set(u.codec.colors))==n

def test_a_network_is_asked_once_for_a_tile():
    p,calls = predictor(),[]
    ask = p.probs
    p.probs = lambda x: calls.append(1) or ask(x)
    v = GlacierViewer(p, tiles(), px=30)
    for i in (0, 1, 0, 2, 1):
        for s in (dict(view='errors'), dict(view='all', opacity=.1), dict(bands='red'), dict(class_name='lake', view='probability')): v.set(index=i, **s).png
    assert len(calls)==3

@pytest.fixture(scope='module')
def scene(tmp_path_factory): return glacier_sample(tmp_path_factory.mktemp('viewers'), tiles=6, size=32, seed=0)

def test_learners_and_folders_as_sources(scene, tmp_path):
    "A learner brings its validation tiles; numbers name tiles of its store; a folder is read as it lies; all agree"
    from clearsight_nb.glacier.dls import glacier_dls
    from clearsight_nb.glacier.model import glacier_learner
    recipe = load_recipe('glacier', 'demo', overrides=['data.crop=32', 'data.folds=3', 'data.crops_per_tile=1', 'training.batch_size=2', 'training.workers=0', 'model.weights=none'])
    learn = glacier_learner(glacier_dls(scene, recipe, cache=tmp_path/'c'), recipe, run_dir=tmp_path/'r')
    v,store = GlacierViewer(learn, px=30),learn.dls.store
    assert len(v.readers)==len(learn.dls.valid_tiles)>0 and v.labelled
    for i,t in enumerate(learn.dls.valid_tiles):
        a,b = v.tile(i),GlacierViewer(learn, BandStack(scene), px=30).tile(list(store.names).index(store.names[t]))
        assert a.name==store.names[t]==b.name and np.array_equal(a.bands, b.bands) and np.array_equal(a.label, b.label)
        assert np.array_equal(v.prediction(i), Predictor.of(learn)(store.crop(t)))
    one = GlacierViewer(learn, [5], px=30)
    assert 'index' not in one.state and one.tile(0).name==store.names[5] and one.png
    assert len(GlacierViewer(learn, scene/'Train', px=30).readers)==6

def test_tiles_that_cannot_be():
    with pytest.raises(ValueError, match='only a learner'): tile_readers(predictor())
    for none in ([], ()):
        with pytest.raises((DataError, ValueError)): tile_readers(predictor(), none)
    v = GlacierViewer(predictor(), [(np.ones((3, 8, 8), np.float32), None)])
    with pytest.raises(ValueError): v.png
    assert isinstance(v.error, ValueError)
    v = GlacierViewer(predictor(), [*tiles(), (tiles()[0][0], None)], index=3, view='errors')
    assert v.png and v.alt(**v.state).endswith('no label to compare with.')
    with pytest.raises(DataError, match='none_here'): GlacierViewer(predictor(), 'none_here')

# --- derain

@pytest.mark.parametrize('h,w', [(20, 27), (21, 16), (32, 32), (7, 5)])
def test_planes_and_rings_against_numpy(h, w):
    "Magnitude, phase, ring and energy are those of numpy's full transform, for even and odd sides; rings without a common border add up to the picture"
    v = SpectrumViewer(pairs(h=h, w=w), px=60)
    name,clean,rain = v.pair(1)
    grey = lambda x: (16 + np.tensordot([65.481, 128.553, 24.966], x.double().numpy(), 1))/255
    G = {k: np.fft.fftshift(np.fft.fft2(grey(x), norm='ortho')) for k,x in dict(clean=clean, rainy=rain, difference=rain-clean).items()}
    G['difference'] = G['rainy']-G['clean']
    r = np.fft.fftshift(np.hypot(np.fft.fftfreq(h)[:,None], np.fft.fftfreq(w)[None]))
    some = lambda F: abs(F)>1e-4
    for k,F in G.items():
        assert abs(v.plane(k, 'magnitude', True, 1)-np.log1p(255*abs(F))).max()<2e-3 and abs(v.plane(k, 'magnitude', False, 1)-255*abs(F)).max()<2e-2
        want = F if k!='difference' else G['rainy']*G['clean'].conj()
        apart = abs(np.exp(1j*v.plane(k, 'phase', True, 1))-np.exp(1j*np.angle(want)))
        assert apart[some(want) & some(G['clean']) & some(F)].max()<2e-2
        power = np.where(r>0, abs(F)**2, 0)
        for lo,hi in ((0, .71), (.1, .3), (.33, .2)):
            share = power[(r>=lo-1e-7) & (r<=hi+1e-7)].sum()/power.sum()
            assert abs(v.energy(k, lo, hi, 1)-share)<1e-4
        said = v.alt(index=1, picture=k, part='magnitude', log=True, low=.1, high=.3)
        assert f'{v.energy(k, .1, .3, 1):.1%} of its energy' in said and 'from 0.10 to 0.30 cycles' in said
    parts = [v.in_ring('rainy', a, b, 1) for a,b in ((0, .12345), (.12346, .3), (.30001, .71))]
    assert abs(sum(parts)-rain.numpy().transpose(1, 2, 0)).max()<1e-5 and abs(parts[1].mean())<1e-6

def test_ring_energy_of_nothing():
    for F in (spectrum(torch.zeros(3, 8, 8)), torch.zeros(8, 5, dtype=torch.complex64)): assert ring_energy(F, (8, 8), 0, .71)==0

def test_the_ring_is_drawn_where_it_is():
    "Outside of the ring the plane is dark, inside it keeps its colours"
    v = SpectrumViewer(pairs(), px=60)
    whole,cut = (v._seen('rainy', 'magnitude', True, lo, hi, 0).astype(int) for lo,hi in ((0, .71), (.2, .4)))
    keep = full_plane(ring((20, 27), .2, .4), 27).numpy()
    assert 0<keep.sum()<keep.size and np.array_equal(cut[keep], whole[keep]) and abs(cut[~keep]-(.35*whole[~keep]+25.5)).max()<=1

def test_pairs_of_all_kinds(tmp_path):
    "A folder, files, arrays, grey pictures; faults are named"
    root = derain_sample(tmp_path/'rain', n=2, n_valid=1, size=24, variants=2, levels=('heavy',), progress=False)
    v = SpectrumViewer(root, px=48)
    p = v.pairs[1]
    assert v.state['index']==0 and v.set(index=1).png and p.id in v.alt(**v.state)
    assert np.array_equal(v.pair(1)[2].numpy().transpose(1, 2, 0), np.asarray(Image.open(p.rain), np.float32)/255)
    assert torch.equal(rain_pair((str(p.clean), p.rain))[1], v.pair(1)[1])
    grey = rain_pair((photos()[0][...,0], torch.from_numpy(photos()[1][...,0])))
    assert grey[1].shape==grey[2].shape==(3, 20, 27)
    for bad in ((photos()[0], photos()[0][:9]), (np.zeros((8, 8, 4), np.float32),)*2, (photos()[0], photos()[0][...,0][:1])):
        with pytest.raises(ValueError): rain_pair(bad)
    with pytest.raises(DataError, match='no.png'): SpectrumViewer([(tmp_path/'no.png', photos()[0])]).png
    with pytest.raises(DataError, match='pairs is empty|pairs: is empty'): SpectrumViewer([])

# --- low light

@pytest.mark.parametrize('seed', range(4))
def test_noise_is_the_sensors(seed):
    "Mean and variance of the scaled picture within 4 standard errors of the formula; PSNR of the sentence within rounding of scikit-image's"
    from skimage.metrics import peak_signal_noise_ratio
    rng = np.random.default_rng(seed)
    level,e,a,read = float(rng.uniform(.1, .6)),int(rng.choice(NoiseViewer.wells[1:])),float(rng.choice([.5, .2, .1])),float(2*rng.integers(0, 5))
    n,v = 80*80*3,NoiseViewer(np.full((80, 80, 3), level, np.float32), seed=seed)
    y = v.light(a, e, read, 0.)['scaled'].astype(float)
    var = (a*e*level + read**2 + 1/12/camera_of(e).gain**2)/(a*e)**2
    assert abs(y.mean()-level)<4*math.sqrt(var/n) and abs(y.var()/var-1)<4*math.sqrt((2 + 1/(a*e*level))/n)
    u = NoiseViewer(photos()[0], seed=seed)
    for linear in (False, True):
        s = u.state | dict(ratio=a, electrons=e, read=read, linear=linear)
        show = (lambda x: x.clip(0, 1)) if linear else display_rgb
        db = peak_signal_noise_ratio(show(photos()[0]).astype(float), show(u.light(**s)['scaled']).astype(float), data_range=1)
        assert abs(u.measure(**s)['scaled']-db)<1e-4 and any(f'divided by the ratio {db+d:.2f} dB' in u.alt(**s) for d in (-1e-4, 1e-4))

def test_only_the_sliders_change_the_noise():
    a,b,c = (NoiseViewer(photos()[0], seed=s, px=60) for s in (0, 0, 1))
    assert a.png==b.png!=c.png and np.array_equal(a.capture(.05, 1000, 2., 0.)[1], b.set(ratio=.5).set(ratio=.05).capture(.05, 1000, 2., 0.)[1])
    rows = a.light(1., 30000, 0., 5.)['captured']-a.light(1., 30000, 0., 0.)['captured']
    assert rows.std((1, 2)).max()<rows.mean((1, 2)).std()/2 # row noise moves whole rows
    quiet = NoiseViewer(photos()[0]).measure(ratio=1., electrons=30000, read=0., row=0.)
    assert quiet['scaled']>40 and quiet['captured']==quiet['scaled']

def test_enhanced_when_asked_for():
    "A prior is asked by the toggle alone, once for a state; grey pictures are fine"
    class Counted(DCTPrior):
        calls = 0
        def __call__(self, *args):
            Counted.calls += 1
            return super().__call__(*args)
    v = NoiseViewer(photos()[0], Counted(step=4), px=60)
    v.set(ratio=.1).png
    assert not Counted.calls
    v.set(enhanced=True).png
    n = Counted.calls
    v.set(linear=True).png
    v.alt(**v.state)
    assert n==Counted.calls>0
    grey = NoiseViewer(photos()[0][...,0], DCTPrior(step=4), 'hqs', px=60, enhanced=True)
    assert 'enhanced (hqs)' in grey.alt(**grey.state) and grey.png

def test_a_learner_enhances(tmp_path):
    "A low-light learner is taken for its prior"
    from clearsight_nb.lowlight.dls import tile_dls
    from clearsight_nb.lowlight.enhance import enhance
    from clearsight_nb.lowlight.train import learner_prior, lowlight_learner
    recipe = load_recipe('lowlight', 'tiny', overrides=['data.img_resolution=16', 'model.channel_mult=[1,1]', 'training.batch_size=4', 'training.batch_gpu=2', 'training.workers=0'])
    t = [2*torch.from_numpy(x.transpose(2, 0, 1)[:,:16,:16].copy())-1 for x in photos(n=8)]
    learn = lowlight_learner(tile_dls(t[:6], t[6:], recipe, device='cpu'), recipe, tmp_path)
    v = NoiseViewer(photos()[0][:16,:16], learn, px=48, enhanced=True)
    cal,adu = v.capture(.05, 1000, 2., 0.)
    want = enhance(to_unit(adu, cal), learner_prior(learn), cal, .05, progress=False).image
    assert np.array_equal(v.light(**v.state)['mmse'], want)

def test_light_that_cannot_be():
    for bad in (2*photos()[0], -photos()[0], np.full((8, 8, 3), np.nan, np.float32), np.zeros((8, 8, 4), np.float32)):
        with pytest.raises(ValueError, match='^night '): NoiseViewer(dict(night=bad))
    with pytest.raises(ValueError, match='no picture'): NoiseViewer({})
    v = NoiseViewer(photos()[0], DCTPrior(step=4), 'nonsense')
    with pytest.raises(ValueError, match='mode is one of'): v.set(enhanced=True).png

# --- shadow

def test_the_sentence_of_a_light():
    "Where the light is, and the share of pixels that it darkens; and the result is `cast_shadow`'s"
    v = LightViewer(cutout(), CASTER, px=60)
    for phi,side in ((0, 'right'), (50, 'right, behind'), (90, 'behind'), (180, 'left'), (270, 'in front'), (355, 'right')):
        s = dict(theta=40., phi=float(phi), size=4., intensity=.9)
        share = np.mean(v.shadow(**s).opacity>.1)
        assert f'40° from the zenith towards {phi}° ({side})' in v.alt(**s) and f'intensity 90%, covers {share:.1%} of the picture' in v.alt(**s)
    assert 'in the zenith' in v.alt(0., 77., 2., 1.)
    a,b = v.set(**OTHER['light']).result(),cast_shadow(cutout(), 10., 300., 7.5, .4, weights=CASTER)
    assert np.array_equal(a.merged, b.merged) and a.offset==b.offset
