'What nbs/core/27_pictures, 29_controls, 30_viewer and the three pages 31 cannot show: every task, every kind of control, hostile names, no ipywidgets, bursts against slow drawings.'
import asyncio, base64, io, math, subprocess, sys, time
from html.parser import HTMLParser
import numpy as np, pytest, torch
from PIL import Image
from conftest import ROOT
from viewer_checks import check_controls, check_refused, check_state
from clearsight_nb.core.compare import CompareViewer
from clearsight_nb.core.controls import choice, slider, toggle
from clearsight_nb.core.diffusion import EDM, VP
from clearsight_nb.core.files import DataError, show_name
from clearsight_nb.core.pictures import as_plane, as_uint8, fit, histogram_strip, join, legend_strip, montage, open_picture, text_strip, tint, titled, to_png
from clearsight_nb.core.samples import SampleViewer, batch_items, split_sample
from clearsight_nb.core.sampling import SAMPLERS, GaussianDenoiser, ddim, spaced, start
from clearsight_nb.core.trajectory import Trajectory, TrajectoryViewer, record_trajectory
from clearsight_nb.core.viewer import Viewer

W = pytest.importorskip('ipywidgets', reason='ipywidgets is not installed')

def pictures(n=3, h=40, w=60, seed=0):
    rng = np.random.default_rng(seed)
    return {f'p{i}': rng.random((h, w, 3), dtype=np.float32) for i in range(n)}

def decoded(png): return np.asarray(Image.open(io.BytesIO(png)))

class Tone(Viewer):
    "A grey square of the level that the slider says; fails above 200"
    pause = 0
    def controls(self): return dict(level=slider(10, 0, 255, 'level'), size=choice([8, 16], 'size'), half=toggle(False, 'half'))
    def draw(self, level, size, half):
        time.sleep(self.pause)
        if level>200: raise RuntimeError('too <bright> & "loud"')
        return np.full((size, size//2 if half else size, 3), level, np.uint8)
    def alt(self, level, size, half): return f'Grey {level}.'

class Samples:
    "Seven bands with a mask; tile 2 has no data at all"
    def __len__(self): return 5
    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        return torch.rand(7, 20, 30, generator=g)*(i!=2), torch.randint(0, 4, (20, 30), generator=g), f'tile {i}'

def trajectory(b=2, c=3, steps=5):
    d = GaussianDenoiser(torch.zeros(c, 8, 8), .25*torch.eye(64*c), EDM())
    levels = spaced(d.process, steps)
    return record_trajectory(ddim, d, start(d.process, levels[0], (b, c, 8, 8), seed=0), levels)

VIEWERS = dict(tone=Tone, compare=lambda **s: CompareViewer(pictures(), px=90, **s), two=lambda **s: CompareViewer(pictures(2), px=90, **s),
    samples=lambda **s: SampleViewer(Samples(), classes=['a', 'b', 'c', 'd'], px=60, **s), trajectory=lambda **s: TrajectoryViewer(trajectory(), px=32, **s))
OTHER = dict(tone=dict(level=99, size=16, half=True), two=dict(show='side by side', wipe=7, gain=9, zoom=1.5, x=3, y=100),
    compare=dict(left='p2', right='p1', show='difference', wipe=0, gain=2, zoom=4, x=0, y=77),
    samples=dict(index=4, bands='channel 3', stretch='min-max', opacity=.35, histogram=True), trajectory=dict(step=5, item=1))

@pytest.mark.parametrize('name', VIEWERS)
def test_state_makes_the_picture(name): check_state(VIEWERS[name], OTHER[name])

@pytest.mark.parametrize('name', [k for k in VIEWERS if k!='tone'])
def test_controls_are_for_the_keyboard(name): check_controls(VIEWERS[name])

@pytest.mark.parametrize('name', VIEWERS)
def test_refused_values_change_nothing(name): check_refused(VIEWERS[name], OTHER[name])

def test_no_whole_number():
    with pytest.raises(ValueError, match='whole number'): Tone(level=3.5)

def test_any_widget_is_a_control():
    "Controls that a subclass makes by itself: pairs of label and value, a range, a tick box, numpy's numbers"
    class Own(Viewer):
        def controls(self):
            return dict(k=W.Dropdown(options=[('one', 1), ('two', 2)], value=1), r=W.FloatRangeSlider(value=(.2, .4), min=0, max=1), t=W.Checkbox(value=True))
        def draw(self, k, r, t): return np.full((4, 4, 3), int(100*k*r[1]*t), np.uint8)
        def alt(self, k, r, t): return 'A tone.'
    v = Own(k=np.int64(2), r=np.array([0, .5]))
    assert v.state==dict(k=2, r=(0., .5), t=True) and type(v.state['k']) is int and decoded(v.png)[0,0,0]==100
    for bad in (dict(k='two'), dict(r=(0, 2)), dict(r=.5), dict(t=1)):
        with pytest.raises(ValueError): v.set(**bad)

async def drag(v, values, pause=0, after=.3):
    for x in values:
        v.inputs['level'].value = x
        await asyncio.sleep(pause)
    await asyncio.sleep(after)

def test_a_burst_draws_once():
    "Without a loop each change draws; with a loop a burst draws its last value once, also while a drawing takes longer than changes come"
    v = Tone()
    v.ui
    assert v.drawings==1
    v.inputs['level'].value = 20
    assert v.drawings==2 and decoded(v.image.value)[0,0,0]==20
    v.set(level=30, size=16, half=True) # three controls, one drawing
    assert v.drawings==3 and decoded(v.image.value).shape==(16, 8, 3)
    v.set(level=30)
    v.inputs['level'].value = 30
    assert v.drawings==3 # nothing new
    asyncio.run(drag(v, range(200)))
    assert v.drawings==4 and decoded(v.image.value)[0,0,0]==199
    asyncio.run(drag(v, [5, 199])) # there and back within a burst
    assert v.drawings==4
    v.pause = .05
    asyncio.run(drag(v, range(100), pause=.001, after=.3))
    assert v.drawings<=4+12 and decoded(v.image.value)[0,0,0]==99

def test_asking_for_the_picture_does_not_wait():
    "`png` is the picture of the present state, also when a drawing is due; which is then not done twice"
    v = Tone()
    v.ui
    async def job():
        v.set(level=77)
        assert v.drawings==1 and decoded(v.png)[0,0,0]==77 and v.drawings==2
        await asyncio.sleep(.2)
        assert v.drawings==2 and decoded(v.image.value)[0,0,0]==77
    asyncio.run(job())

def test_errors_are_seen():
    "The message stands in the picture's place, escaped; `png` and `static` raise; the next drawing that works puts all back"
    v = Tone()
    assert v.image.layout.display is None
    asyncio.run(drag(v, [250])) # raised inside of a loop, where it would get lost
    assert isinstance(v.error, RuntimeError) and v.image.layout.display=='none' and v.image.value==b''
    assert 'RuntimeError: too &lt;bright&gt; &amp; &quot;loud&quot;' in v._note.value and 'role="alert"' in v._note.value
    for f in (lambda: v.png, v.static):
        with pytest.raises(RuntimeError, match='too <bright>'): f()
    v.set(level=3)
    assert v.error is None and v.image.layout.display is None and 'Grey 3.' in v._note.value and decoded(v.image.value)[0,0,0]==3
    class Wrong(Tone):
        def draw(self, **state): return np.zeros((4, 4))
    with pytest.raises(ValueError, match='uint8 array .h, w, 3., not float64'): Wrong().png

def test_without_ipywidgets(monkeypatch):
    "State, checks, pictures and HTML are there; the widget says what to install"
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    v = Tone(level=40)
    assert v.state==dict(level=40, size=8, half=False) and decoded(v.png).shape==(8, 8, 3)
    with pytest.raises(ValueError, match='in 0…255, not 300'): v.set(level=300)
    with pytest.raises(ImportError, match=r"clearsight_nb\[widgets\]"): v.ui
    shown = []
    monkeypatch.setattr('IPython.display.display', shown.append)
    v._ipython_display_()
    assert 'alt="Grey 40."' in shown[0]._repr_html_()

class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags,self.open = [],[]
        self.feed(text)
        self.close()
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag!='img': self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop()==tag

@pytest.mark.parametrize('name', ['plain', '"><script>alert(1)</script>', "O'Hara & <b>Söhne</b>", '\x00\n\u202e雪'])
def test_static_pages(name):
    "HTML that parses, whatever things are called; every picture has its sentence, and is the picture of its state; controls stay"
    x = pictures(2)
    v = CompareViewer({name: x['p0'], 'other': x['p1']}, px=120)
    old,states = v.state,(dict(), dict(wipe=10, zoom=2), dict(show='side by side'))
    s = v.static(*states, columns=2)
    page = Tags(s._repr_html_())
    imgs = [a for t,a in page.tags if t=='img']
    assert not page.open and {t for t,_ in page.tags}=={'div', 'figure', 'img', 'figcaption'} and len(imgs)==3 and v.state==old and v.drawings==0
    for a,state in zip(imgs, states):
        assert a['alt']==show_name(v.alt(**(old|state))) and a['src'].startswith('data:image/png;base64,')
        assert np.array_equal(decoded(base64.b64decode(a['src'].split(',')[1])), v.draw(**(old|state)))
    assert repr(s).count('PSNR')==3
    with pytest.raises(ValueError, match='no control'): v.static(dict(step=1))

@pytest.mark.parametrize('seed', range(12))
def test_psnr_of_what_is_visible(seed):
    "As scikit-image has it on the same pixels, within 1e-3 dB, at random zooms and places, in the sentence too"
    from skimage.metrics import peak_signal_noise_ratio
    rng = np.random.default_rng(seed)
    h,w = (int(o) for o in rng.integers(5, 200, 2))
    a = rng.random((h, w, 3), dtype=np.float32)
    b = (a + rng.normal(0, 10**rng.uniform(-3, -.5), a.shape)).clip(0, 1).astype(np.float32)
    v = CompareViewer(dict(a=a, b=torch.from_numpy(b).permute(2, 0, 1)), px=100)
    for _ in range(6):
        v.set(zoom=float(rng.choice(v.zooms)), x=int(rng.integers(101)), y=int(rng.integers(101)))
        rows,cols = v.visible(**v.state)
        assert 0<=rows.start<rows.stop<=h and 0<=cols.start<cols.stop<=w
        want = peak_signal_noise_ratio(a[rows,cols].astype(float), b[rows,cols].astype(float), data_range=1)
        assert abs(v.measure(**v.state)-want)<1e-3 and any(f'{want+e:.2f} dB' in v.alt(**v.state) for e in (-1e-5, 1e-5))
        assert v.draw(**v.state).shape[:2]==(v.draw().shape[0], v.draw().shape[1]) # the picture keeps its size

def test_what_a_comparison_shows():
    "Left of the wipe the left picture, right of it the right one, pixel by pixel; the difference times the gain; grey and 8-bit pictures are fine"
    x = pictures(2, 32, 40)
    v = CompareViewer(x, px=80)
    a,b = (as_uint8(o).repeat(2, 0).repeat(2, 1) for o in x.values())
    for wipe in (0, 25, 60, 100):
        got,at = v.draw(wipe=wipe)[-64:],round(wipe/100*80)
        assert np.array_equal(got[:,:max(at-1, 0)], a[:,:max(at-1, 0)]) and np.array_equal(got[:,at+1:], b[:,at+1:])
    d = as_uint8(5*abs(x['p0']-x['p1']))
    assert np.array_equal(v.draw(show='difference', gain=5)[-64:,:80], d.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(v.draw(zoom=4, x=100, y=0, wipe=100)[-64:,:79], as_uint8(x['p0'][:8,30:]).repeat(8, 0).repeat(8, 1)[:,:79])
    grey = CompareViewer(dict(a=x['p0'][...,0], b=as_uint8(x['p0'][...,0]), c=Image.fromarray(as_uint8(x['p0'][...,0]))), px=80)
    assert 52<grey.measure('a', 'b')<70 and grey.measure('b', 'c')==math.inf and 'no difference' in grey.set(left='b', right='c').alt(**grey.state)
    for bad,why in ((dict(a=x['p0']), 'two pictures'), (dict(a=x['p0'], b=x['p1'][:9]), 'a 40×32, b 40×9'), (dict(a=x['p0'], b=torch.zeros(7, 32, 40)), 'b has 7 channels'),
        (dict(a=x['p0'], b=x['p1']*np.nan), 'b has values that are not finite')):
        with pytest.raises(ValueError, match=why): CompareViewer(bad)

def test_large_pictures_are_averaged():
    x = np.random.default_rng(0).random((512, 1024, 3), dtype=np.float32)
    v = CompareViewer(dict(a=x, b=x[::-1]), px=256)
    got = v.draw(wipe=100)[-128:,:-1].astype(float)
    assert abs(got - 255*x.reshape(128, 4, 256, 4, 3).mean((1, 3))[:,:-1]).max()<=1.5

def test_anything_is_a_picture(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    t = torch.from_numpy(x.transpose(2, 0, 1).copy())
    kinds = [x, x/255, np.float16(x/255), Image.fromarray(x), t, t/255, (t/255).bfloat16()]
    Image.fromarray(x).save(tmp_path/'x.png')
    for o in [*kinds, tmp_path/'x.png', str(tmp_path/'x.png')]: assert abs(as_plane(o).x - x.transpose(2, 0, 1)/255).max()<5e-3
    Image.fromarray(np.arange(54, dtype=np.uint16).reshape(6, 9)*1000).save(tmp_path/'deep.png')
    assert abs(as_plane(tmp_path/'deep.png').x[0] - np.arange(54).reshape(6, 9)*1000/65535).max()<1e-6
    Image.fromarray(np.dstack([x, np.full((6, 9), 9, np.uint8)])).save(tmp_path/'alpha.png')
    assert np.array_equal(as_plane(tmp_path/'alpha.png').x, as_plane(x).x)
    exif = Image.Exif()
    exif[274] = 6 # lies on its side
    Image.fromarray(x).save(tmp_path/'turned.png', exif=exif)
    assert as_plane(tmp_path/'turned.png').x.shape==(3, 9, 6)
    for bad in (np.zeros((2, 3, 4, 5)), np.zeros((0, 4, 3)), torch.zeros(5), torch.zeros(1, 1, 2, 2, 2)):
        with pytest.raises(ValueError, match='a picture is'): as_plane(bad)
    with pytest.raises(ValueError, match='2 names of bands'): as_plane(torch.zeros(3, 4, 4), ('a', 'b'))
    (tmp_path/'cut.png').write_bytes((tmp_path/'x.png').read_bytes()[:50])
    (tmp_path/'none.jpg').write_bytes(b'')
    for f in ('cut.png', 'none.jpg', 'missing.png'):
        with pytest.raises(DataError, match=f): open_picture(tmp_path/f)

@pytest.mark.parametrize('n', range(1, 11))
def test_montage_keeps_every_picture(n):
    x = np.random.default_rng(n).random((n, 2, 5, 4), dtype=np.float32)
    m = montage(x, 1)
    cols = math.ceil(math.sqrt(n))
    for k in range(n): assert np.array_equal(m[:,k//cols*6:k//cols*6+5,k%cols*5:k%cols*5+4], x[k])
    assert np.isfinite(m).sum()==x.size

def test_pieces():
    "Tints mix, 255 and colourless classes stay clear, a class without a colour is an error; strips hold what they are given"
    x,ids = np.full((2, 3, 3), 100, np.uint8),np.array([[0, 1, 255], [1, 1, 0]])
    t = tint(x, ids, [None, '#ff0000'], .5)
    assert (t[0,0]==100).all() and (t[0,2]==100).all() and t[0,1].tolist()==[178, 50, 50]
    for bad in (ids+1, ids-1):
        with pytest.raises(ValueError, match='class ids are 0…1'): tint(x, bad, [None, 'red'])
    assert histogram_strip(dict(a=np.array([np.nan, np.inf])), dict(a=(0, 1))).shape[0]<30
    assert histogram_strip(dict(a=np.ones(9)), dict(a=(0, 1))).shape==(90, 360, 3)
    long = [f'a class with a rather long name {i}' for i in range(9)]
    assert legend_strip(long, ['red']*9, 300).shape[1]<330 and legend_strip(['a'], [None], 300).shape==(1, 1, 3)
    assert titled(x, 'a title').shape[1]==text_strip('a title').shape[1] and join([x, x], 0, 5).shape==(9, 3, 3)
    assert np.array_equal(fit(x, 7), x.repeat(2, 0).repeat(2, 1)) and to_png(x)==to_png(x.copy(order='F'))

def test_samples_of_any_kind(tmp_path):
    "Stretches are those of core.bands; a tile without data is black; masks take names, notes are told; a folder with a broken file shows the fault and goes on"
    from clearsight_nb.core.bands import band_limits, composite
    v = VIEWERS['samples'](bands='channel 3', stretch='min-max', opacity=0)
    x = Samples()[0][0]
    want = as_uint8(composite(x, [f'channel {i}' for i in range(7)], 'channel 3', (0, 100))).repeat(2, 0).repeat(2, 1)
    assert np.array_equal(v.draw(**v.state)[22:62,:60], want) and np.array_equal(v.draw(**v.state)[22:62,68:128], want)
    v.set(index=2)
    assert not v.draw(**v.state)[22:62,:60].any() and 'part 3 tile 2' in v.alt(**v.state) and 'd 2' in v.alt(**v.state)
    assert v.set(histogram=True).png
    assert SampleViewer([Samples()[0]]).alt().count('%')==4 and 'index' not in SampleViewer([Samples()[0]]).state
    for n in 'ab': Image.fromarray(as_uint8(pictures()['p0'])).save(tmp_path/f'{n}.png')
    (tmp_path/'aa.jpg').write_bytes(b'no picture')
    f = SampleViewer(tmp_path, px=60)
    assert f.inputs['index'].max==2 and 'a.png of 60×40' in f.alt(**f.state)
    f.ui
    f.set(index=1)
    assert isinstance(f.error, DataError) and 'aa.jpg' in f._note.value
    assert f.set(index=2).png and f.error is None
    with pytest.raises(DataError, match='holds no samples'): SampleViewer([])
    with pytest.raises(DataError, match='does not exist'): SampleViewer(tmp_path/'no')
    assert SampleViewer([('a note', 3)]).png # nothing to see, but no crash
    reads = []
    class Counted(Samples):
        def __getitem__(self, i):
            reads.append(i)
            return super().__getitem__(i)
    c = SampleViewer(Counted(), px=60)
    for o in (.1, .2, .3): c.set(opacity=o).png
    assert reads==[0] # a change of the look reads nothing again
    assert band_limits(x, v.sample(0).pictures['input'].bands)['channel 0']==v.band_limits(v.sample(0).pictures['input'], 'channel 0', 'percentile')['channel 0']

def glacier(tmp):
    from clearsight_nb.core.recipe import load_recipe
    from clearsight_nb.glacier.dls import glacier_dls
    from clearsight_nb.glacier.sample import glacier_sample
    recipe = load_recipe('glacier', 'demo', overrides=['training.batch_size=2', 'training.workers=0', 'data.crop=32', 'data.folds=2', 'data.crops_per_tile=1'])
    return glacier_dls(glacier_sample(tmp/'scene', tiles=4, size=64)/'Train', recipe, cache=tmp/'store'),{}

def weather(tmp):
    from clearsight_nb.weather.data import check_weather
    from clearsight_nb.core.patches import patch_dls
    from clearsight_nb.weather.dls import WeatherPatches
    from clearsight_nb.weather.sample import weather_sample
    report = check_weather(weather_sample(tmp/'w', n=3, n_valid=1, size=32, kinds=('rain',), progress=False), patch=16, progress=False)
    return patch_dls(*(WeatherPatches(o, 16, 4) for o in (report.train, report.valid)), batch_size=2, workers=0, device='cpu'),{}

def derain(tmp):
    from clearsight_nb.core.recipe import load_recipe
    from clearsight_nb.derain.dls import derain_dls
    from clearsight_nb.derain.sample import derain_sample
    data = derain_sample(tmp/'r', n=3, n_valid=1, size=32, levels=('medium',), variants=1, progress=False)
    return derain_dls(data, load_recipe('derain', 'demo', overrides=['training.workers=0', 'training.batch_size=2', 'data.patch_n=4', 'data.patch=16'])),{}

def lowlight(tmp):
    from clearsight_nb.core.recipe import load_recipe
    from clearsight_nb.lowlight.dls import tile_dls
    tiles = [torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(i))*2 - 1 for i in range(6)]
    recipe = load_recipe('lowlight', 'tiny', overrides=['data.img_resolution=16', 'training.batch_size=2', 'training.batch_gpu=2', 'training.total_kimg=0.1',
        'training.kimg_per_tick=0.05', 'training.lr_rampup_kimg=0', 'training.snapshot_ticks=1', 'training.workers=0'])
    return tile_dls(tiles, tiles[:2], recipe, device='cpu'),dict(names=('tile', 'turn'), limits=(-1, 1))

def shadow(tmp):
    from clearsight_nb.shadow.data import ShadowSet, read_shadows
    from clearsight_nb.shadow.sample import shadow_sample
    return ShadowSet(read_shadows(shadow_sample(tmp/'s', objects=2, lights=2, size=32, samples=2, progress=False)), 32),{}

@pytest.mark.parametrize('task', [glacier, weather, derain, lowlight, shadow])
def test_samples_of_every_task(task, tmp_path):
    "A task's DataLoaders (of shadow the data set) as they are: first and last sample, every control, training and validation"
    source,more = task(tmp_path)
    v = SampleViewer(source, px=64, **more)
    s = v.sample(0)
    assert s.pictures and (task is not glacier or list(s.masks)==['target'] and 'debris' in str(s.masks['target'][1]).lower())
    seen = {v.png}
    for k,w in v.inputs.items():
        for e in (w.options if hasattr(w, 'options') else [w.max] if hasattr(w, 'max') else [True]):
            seen.add(v.set(**{k: e}).png)
            assert v.alt(**v.state).startswith('Sample ')
    assert len(seen)>len(v.inputs)
    if hasattr(source, 'valid'): assert SampleViewer(source.valid, px=64, **more).png
    if hasattr(source, 'loaders'):
        b = batch_items(source.train.one_batch())
        assert len(SampleViewer(b, px=64, **more).items)==len(b) and SampleViewer(b, px=64, **more).png

def test_loaders_without_a_data_set():
    "A loader that is only a stream, or whose data set is a list of numbers, shows one batch"
    class Stream:
        def __init__(self): self.dataset = np.arange(9)
        def one_batch(self): return torch.rand(3, 5, 8, 8),torch.rand(3, 1, 8, 8)
    v = SampleViewer(Stream())
    assert v.inputs['index'].max==2 and len(v.sample(0).pictures)==2
    with pytest.raises(ValueError, match='by number'): SampleViewer(iter([]))
    s = split_sample(dict(theta=torch.tensor(3.), light=torch.tensor([1., 2.]), vec=torch.zeros(99), name='x', nothing=None))
    assert s.notes==dict(theta='3', light='1, 2', vec='99 values', name='x') and not s.pictures

@pytest.mark.parametrize('name', SAMPLERS)
def test_a_recorded_sampler_does_what_it_does(name):
    "The record neither changes the result nor misses a look; states are not overwritten; noise and condition pass through"
    d = GaussianDenoiser(torch.full((3, 4, 4), .2), .1*torch.eye(48), VP())
    levels,x = spaced(d.process, 6, 'lu'),torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    kw = lambda: dict(eta=.5, generator=torch.Generator().manual_seed(3)) if name=='ddim' else {}
    seen = []
    want = SAMPLERS[name](d, x, levels, callback=lambda i,l,x,x0: seen.append((l, x.clone(), x0.clone())), **kw())
    t = record_trajectory(SAMPLERS[name], d, x, levels, **kw())
    assert isinstance(t, Trajectory) and torch.equal(t.result, want.float()) and t.levels==[float(l) for l,*_ in seen]
    for i,(_,a,b) in enumerate(seen): assert torch.equal(t.noisy[i], a.float()) and torch.equal(t.clean[i], b.float())
    assert all(abs(s-1)<1e-4 for s in t.scales)
    v = TrajectoryViewer(t, px=16)
    assert len({v.set(step=i).png for i in range(len(t.levels)+1)})==len(t.levels)+1

def test_trajectories_that_cannot_be_shown():
    with pytest.raises(ValueError, match='never called its callback'): record_trajectory(lambda d, x, levels, cond, callback: x, None, torch.zeros(1, 3, 4, 4), [1.])
    with pytest.raises(ValueError, match='4 channels are no picture yet'): TrajectoryViewer(trajectory(1, 4))
    v = TrajectoryViewer(trajectory(1, 4), show=lambda x: x[0,:1])
    assert list(v.state)==['step'] and v.png and 'of picture' not in v.alt(0)

def test_nothing_heavy_is_loaded():
    "The module, a viewer of one's own and its HTML load neither torch nor fastai nor pandas"
    code = '''import sys, numpy as np, clearsight_nb.core.viewer as m
class V(m.Viewer):
    def controls(self): return {}
    def draw(self): return np.zeros((4, 4, 3), np.uint8)
    def alt(self): return 'Black.'
heavy = {'torch', 'fastai', 'pandas', 'scipy', 'matplotlib', 'ipywidgets'}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert 'Black.' in V().static()._repr_html_()
assert not (heavy - {'ipywidgets'}) & set(sys.modules)
assert not [n for n in sys.modules if n.startswith('clearsight_nb.') and n.split('.')[1]!='core']'''
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode==0, run.stderr
