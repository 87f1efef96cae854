"Weather data: bad files, hostile lists, and the behaviours K1 to K13 and K19 of the specification by number."
import hashlib, random, sys
from pathlib import Path
import numpy as np, pytest, torch, yaml
from PIL import Image
import clearsight_nb
from clearsight_nb.core.files import DataError
from clearsight_nb.core.patches import patch_dls
from clearsight_nb.weather.data import check_weather, leaks, read_filelist, read_pixels, read_rgb, weather_pairs
from clearsight_nb.weather.dls import WeatherPatches
from clearsight_nb.weather.lists import generate_filelist, prepare_allweather, published_config, write_kaggle_config

RNG = np.random.default_rng(0)

def write(path, size=(90, 80), mode='RGB', **kw):
    "An image of noise."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert(mode).save(path, **kw)
    return path

def allweather(root, train=('a.png', 'b.png'), valid=('v.png',)):
    for split,names in (('allweather', train), ('allweather_val', valid)):
        for n in names:
            for sub in ('input', 'gt'): write(root/split/sub/n)
    return root

# reading

@pytest.mark.parametrize('mode,ending', [(m, e) for e,ms in dict(png=('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'),
    jpg=('L', 'RGB', 'CMYK'), tif=('1', 'L', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16', 'I', 'F', 'YCbCr'), bmp=('RGB', 'P')).items() for m in ms])
def test_any_mode_becomes_rgb(tmp_path, mode, ending):
    path = tmp_path/f'x.{ending}'
    if mode in ('I;16', 'I', 'F'):
        a = RNG.integers(0, 65536, (20, 30))
        Image.fromarray(np.uint16(a) if mode == 'I;16' else np.int32(a) if mode == 'I' else np.float32(a/65535)).save(path)
    else: write(path, (30, 20), mode)
    x = read_rgb(path)
    assert x.dtype == np.float32 and x.shape == (20, 30, 3) and 0 <= x.min() and .9 < x.max() <= 1
    if mode in ('I;16', 'I', 'F'): np.testing.assert_allclose(x[..., 0], a/65535, atol=1e-6)

def test_16_bit_rgb_keeps_its_scale(tmp_path):
    import tifffile
    a = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path/'x.tif', a, photometric='rgb')
    np.testing.assert_allclose(read_rgb(tmp_path/'x.tif'), a/65535, atol=1/250)

def test_transparency_keeps_the_stored_colours(tmp_path):
    a = RNG.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    Image.fromarray(a).save(tmp_path/'x.png')
    np.testing.assert_array_equal(read_pixels(tmp_path/'x.png'), a[..., :3])

@pytest.mark.parametrize('tag', range(1, 9))
def test_orientation(tmp_path, tag):
    "All eight orientations, against Pillow's own transpositions; headers alone give the turned size."
    exif = Image.Exif()
    exif[0x0112] = tag
    im = Image.fromarray(RNG.integers(0, 256, (64, 80, 3), dtype=np.uint8))
    im.save(tmp_path/'x.png', exif=exif)
    T = Image.Transpose
    turn = {2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_270, 7: T.TRANSVERSE, 8: T.ROTATE_90}
    want = im.transpose(turn[tag]) if tag in turn else im
    np.testing.assert_array_equal(read_pixels(tmp_path/'x.png'), np.asarray(want))
    for sub in ('input', 'gt'):
        (tmp_path/'d'/sub).mkdir(parents=True)
        (want if sub == 'gt' else im).save(tmp_path/'d'/sub/'x.jpg', exif=exif if sub == 'input' else Image.Exif())
    assert check_weather(tmp_path/'d', deep=False, progress=False).ok and check_weather(tmp_path/'d', progress=False).ok

@pytest.mark.parametrize('ending', ['png', 'jpg', 'tif', 'bmp', 'webp'])
def test_damaged_files_are_named(tmp_path, ending):
    "Cut anywhere, a file is read or is a `DataError`, never another exception."
    whole = write(tmp_path/f'w.{ending}', (60, 50)).read_bytes()
    for n in (0, 1, 10, 40, len(whole)//3, len(whole)//2):
        (tmp_path/f'x.{ending}').write_bytes(whole[:n])
        with pytest.raises(DataError) as e: read_rgb(tmp_path/f'x.{ending}')
        assert e.value.file == tmp_path/f'x.{ending}' and e.value.fault and e.value.mend
    for k in range(40):
        noisy = bytearray(whole)
        for i in RNG.integers(0, len(whole), 20): noisy[i] = RNG.integers(256)
        (tmp_path/f'x.{ending}').write_bytes(noisy)
        try: read_rgb(tmp_path/f'x.{ending}')
        except DataError: pass

def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(DataError, match='too large'): read_rgb(write(tmp_path/'x.png'))

# pairs

def test_outdoor_rain(tmp_path):
    "The truth has the first seven characters; leaking scenes are out of training, and stay in the test set."
    for split in ('train', 'test1'):
        for scene in (1, 300, 301, 350, 351):
            for angle in ('s80_a04', 's90_a05'): write(tmp_path/split/'in'/f'im_{scene:04}_{angle}.png')
            write(tmp_path/split/'gt'/f'im_{scene:04}.png')
    report = check_weather(tmp_path, progress=False)
    assert report.layout == 'outdoor_rain' and len(report.train) == 6 and len(report.valid) == 10
    assert not any(leaks(p.input) for p in report.train)
    assert all(p.gt.name == p.input.name[:7] + '.png' and p.gt.is_file() for p in report.train + report.valid)

def test_leaking_names_elsewhere_are_a_warning(tmp_path):
    report = check_weather(allweather(tmp_path, ('im_0310_s80_a04.png',)), progress=False)
    assert [f.fault for f in report.warnings if 'Outdoor-Rain' in f.fault]

def test_other_layouts(tmp_path):
    for f in ('train/data/0_rain.png', 'train/gt/0_clean.png', 'test_a/data/9_rain.png', 'test_a/gt/9_clean.png'): write(tmp_path/'raindrop'/f)
    for f in ('train/synthetic/a.jpg', 'train/gt/a.jpg'): write(tmp_path/'snow100k'/f)
    for f in ('fog/input/a.jpg', 'fog/gt/a.jpg', 'fog_val/input/b.jpg', 'fog_val/gt/b.jpg'): write(tmp_path/'fog'/f)
    for f in ('train/input/a.jpg', 'train/gt/a.jpg', 'val/input/b.jpg', 'val/gt/b.jpg'): write(tmp_path/'toy'/f)
    for f in ('input/a.jpg', 'target/a.png', 'input/b.png', 'target/b.png'): write(tmp_path/'folders'/f)
    counts = dict(raindrop=(1, 1), snow100k=(1, 0), fog=(1, 1), toy=(1, 1), folders=(2, 0))
    for name,want in counts.items():
        report = check_weather(tmp_path/name, name, progress=False)
        assert (len(report.train), len(report.valid)) == want, name
    assert weather_pairs(tmp_path/'folders')[0].gt.name == 'a.png'

def test_links_that_lead_out(tmp_path):
    write(tmp_path/'secret.png')
    allweather(tmp_path/'d')
    (tmp_path/'d'/'allweather'/'gt'/'a.png').unlink()
    (tmp_path/'d'/'allweather'/'gt'/'a.png').symlink_to(tmp_path/'secret.png')
    with pytest.raises(DataError, match='leaves the folder'): weather_pairs(tmp_path/'d')
    assert len(weather_pairs(tmp_path/'d', links=True)) == 2

@pytest.mark.parametrize('entry', ['../../etc/passwd', '/etc/passwd', '/input/a.png', 'input/../../gt/a.png', '..\\input\\a.png',
    'C:/input/a.png', 'input/\0a.png', 'gt/a.png', 'input'])
def test_hostile_entries(tmp_path, entry):
    allweather(tmp_path)
    (tmp_path/'list.txt').write_text(f'input/a.png\n{entry}\n')
    with pytest.raises(DataError, match='list.txt, line 2'): read_filelist(tmp_path/'list.txt', tmp_path/'allweather')
    if entry != 'gt/a.png' and entry != 'input':
        with pytest.raises(DataError, match='line 2'): read_filelist(tmp_path/'list.txt', tmp_path/'allweather', links=True)

# the published behaviours by number

def test_K1_K2_no_path_hack_and_default_tree(tmp_path, capsys):
    before = list(sys.path)
    ready = prepare_allweather(allweather(tmp_path/'in'), tmp_path/'work', progress=False)
    assert sys.path == before and (len(ready.report.train), len(ready.report.valid)) == (2, 1)
    (tmp_path/'in'/'allweather').rename(tmp_path/'in'/'mine')
    assert prepare_allweather(tmp_path/'in', tmp_path/'work', train='mine', progress=False).report.ok

def test_K3_K4_K5_the_list(tmp_path, capsys):
    names = ['b.jpg', 'a.JPG', 'd.Png', 'e.JPEG', 'c.bmp', 'sub/deep/f.png', 'Z.png']
    for n in names: write(tmp_path/'in'/'input'/n, format='PNG')
    (tmp_path/'in'/'input'/'notes.txt').write_text('')
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'in').rglob('*')}
    path,n = generate_filelist(tmp_path/'in', 'train_files.txt', tmp_path/'work')
    assert (path, n) == (tmp_path/'work'/'train_files.txt', 7)
    assert path.read_text() == ''.join(f'input/{f}\n' for f in sorted(names))
    assert capsys.readouterr().out == f'Generated train_files.txt with 7 images at {path}\n'
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path/'in').rglob('*')}, 'the data folder was written to'

def test_K5_names_that_no_list_can_hold(tmp_path):
    write(tmp_path/'input'/'a\nb.png')
    with pytest.raises(DataError, match='line break'): generate_filelist(tmp_path, 'x.txt', tmp_path/'work')
    assert not (tmp_path/'work'/'x.txt').exists()

def test_K6_missing_input(tmp_path, capsys):
    assert generate_filelist(tmp_path/'no', 'x.txt', tmp_path) == (None, 0)
    assert f'WARNING: Input directory not found: {tmp_path/"no"}' in capsys.readouterr().out

@pytest.mark.parametrize('made', [False, True])
def test_K7_no_training_images(tmp_path, made):
    if made: (tmp_path/'allweather'/'input').mkdir(parents=True)
    with pytest.raises(ValueError, match=r'No training images found in .*allweather/input!'):
        prepare_allweather(tmp_path, tmp_path/'work', progress=False)

@pytest.mark.parametrize('made', [False, True])
def test_K8_no_validation_images(tmp_path, capsys, made):
    allweather(tmp_path, valid=())
    if made: (tmp_path/'allweather_val'/'input').mkdir(parents=True)
    ready = prepare_allweather(tmp_path, tmp_path/'work', progress=False)
    assert ready.valid is None and ready.report.ok and [f.level for f in ready.report.findings] == ['warning']
    assert 'WARNING: No validation images' in capsys.readouterr().out
    config = yaml.safe_load(write_kaggle_config('new_allweather', tmp_path/'work', ready).read_text())
    assert config['data']['val_filelist'] is None
    dls = loaders(ready.report.train, ready.report.valid, patch_n=1, batch_size=1, workers=0, device='cpu')
    assert len(dls.valid) == 0 and len(list(dls.train)) == 2

def test_K9_truths(tmp_path):
    allweather(tmp_path, ('my_input_1.png', 'input/input.png', 'gone.png'))
    (tmp_path/'allweather'/'gt'/'gone.png').unlink()
    ready = prepare_allweather(tmp_path, tmp_path/'work', progress=False)
    rel = lambda p: p.relative_to(tmp_path.resolve()/'allweather').as_posix()
    assert [tuple(map(rel, p)) for p in ready.report.train] == [('input/input/input.png', 'gt/input/input.png'), ('input/my_input_1.png', 'gt/my_input_1.png')]
    assert [(f.file, f.fault) for f in ready.report.errors] == [('allweather/input/gone.png', 'has no truth gt/gone.png')]
    assert ready.train.read_text().count('\n') == 3, 'the list holds what is there'

def test_K10_K11_K12_seven_overrides(tmp_path, monkeypatch):
    packaged = Path(clearsight_nb.__file__).parent/'recipes'/'weather'/'published'/'new_allweather.yml'
    monkeypatch.chdir(tmp_path)
    own = tmp_path/'base.yml'
    own.write_bytes(packaged.read_bytes())
    sums = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (packaged, own)]
    allweather(tmp_path/'in')
    ready = prepare_allweather('in', 'work', progress=False)
    for base in ('new_allweather', own):
        path = write_kaggle_config(base, 'work', ready)
        config,old = yaml.safe_load(path.read_text()),published_config(base)
        changed = {(a, b) for a in config for b in config[a] if config[a][b] != old[a][b]}
        assert changed == {('data', k) for k in ('data_dir', 'train_data_dir', 'val_data_dir', 'filelist', 'val_filelist', 'num_workers')} | {('training', 'batch_size')}
        assert {a: set(d) for a,d in config.items()} == {a: set(d) for a,d in old.items()}
        assert (config['training']['batch_size'], config['data']['num_workers']) == (4, 2)
        paths = {k: Path(v) for k,v in config['data'].items() if (('data', k) in changed) and isinstance(v, str)}
        assert len(paths) == 5 and all(p.is_absolute() and p.exists() for p in paths.values())
        assert paths['data_dir'] == (tmp_path/'work').resolve() == path.parent
        assert path.read_text() == yaml.safe_dump(config, sort_keys=True)
    assert sums == [hashlib.sha256(p.read_bytes()).hexdigest() for p in (packaged, own)]

def test_K13_effective_batch(tmp_path):
    report = check_weather(allweather(tmp_path, [f'{i}.png' for i in range(5)]), progress=False)
    dls = loaders(report.train, batch_size=4, workers=0, device='cpu')
    assert dls.patches == 64 and dls.one_batch()[0].shape == (4, 16, 3, 64, 64)

def test_K19_no_machine_path_in_the_package():
    folder = Path(clearsight_nb.__file__).parent/'recipes'/'weather'/'published'
    for path in folder.glob('*.yml'):
        assert not any(isinstance(v, str) and v.startswith(('/', '~')) for v in yaml.safe_load(path.read_text())['data'].values())

# loaders

def loaders(train, valid=(), patch=64, patch_n=16, flip=False, **kw):
    return patch_dls(WeatherPatches(train, patch, patch_n, flip=flip), WeatherPatches(valid, patch, patch_n, fixed=True), **kw)

def test_workers_and_restart_give_the_same_batches(tmp_path):
    "Batches of epoch 3 are the same in a fresh process state, with 0 or 2 workers."
    report = check_weather(allweather(tmp_path, [f'{i}.png' for i in range(6)]), progress=False)
    def epoch(workers, before=0):
        dls = loaders(report.train, report.valid, patch=32, patch_n=3, batch_size=2, workers=workers, flip=True, device='cpu')
        for _ in range(before): list(dls.train)
        for o in (torch.manual_seed, np.random.seed, random.seed): o(1)
        dls.train.rng.seed(1)
        dls.train.dataset.set_epoch(3)
        return [torch.stack(b) for b in dls.train]
    one = epoch(0)
    for other in (epoch(2), epoch(0, before=1)): assert all(torch.equal(a, b) for a,b in zip(one, other, strict=True))

def test_faults_in_items_are_named(tmp_path):
    "Files that change after the check still give an error that names them, from a worker too."
    pairs = check_weather(allweather(tmp_path), progress=False).train
    with pytest.raises(DataError, match='smaller than a patch of 81×81'): WeatherPatches(pairs, patch=81)[0]
    write(pairs[0].gt, (70, 70))
    with pytest.raises(DataError, match='its truth is 70×70'): WeatherPatches(pairs)[0]
    pairs[0].gt.write_bytes(b'')
    dls = loaders(pairs[:1], patch_n=1, batch_size=1, workers=1, device='cpu')
    with pytest.raises(Exception, match='is empty'): list(dls.train)
