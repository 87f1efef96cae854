"Rain pairs: hostile lists, odd files, killed writers, and the properties that a split must have."
import csv, io, os, random, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from conftest import light
from clearsight_nb.core.files import DataError
from clearsight_nb.core.photos import RAIN_LEVELS, add_rain, load_photo, photo_names
from clearsight_nb.derain.check import check_derain
from clearsight_nb.derain.pairs import COLUMNS, NPZ_COLUMNS, RainPair, derain_csv, derain_pairs, read_pairs, read_photo, same_scenes, split_pairs
from clearsight_nb.derain.sample import derain_sample
from clearsight_nb.derain.spectra import mag_and_phase, photo_of, read_npz, read_spectra, write_npz, write_spectra

RNG = np.random.default_rng(0)

def save(path, h=20, w=24, mode='RGB'):
    path.parent.mkdir(parents=True, exist_ok=True)
    a = RNG.integers(0, 256, (h, w, 3), np.uint8)
    Image.fromarray(a).convert(mode).save(path)
    return path

@pytest.fixture
def data(tmp_path):
    "Two photographs with 14 kinds of rain each, as Rain1400 has them"
    for i in (801, 995):
        save(tmp_path/'images'/f'{i}.png')
        for k in range(1, 15): save(tmp_path/'images_rain'/f'{i}_{k}.png')
    return tmp_path

def test_two_ids_and_fourteen_rains_are_28_pairs(data):
    report = derain_csv(data/'images', data/'images_rain')
    assert report.ok and len(report.pairs)==28
    rows = list(csv.reader(io.StringIO(report.csv.read_text())))
    assert rows[0]==list(COLUMNS) and rows[1]==['images/801.png', 'images_rain/801_1.png'] and rows[28]==['images/995.png', 'images_rain/995_14.png']
    assert read_pairs(report.csv)==report.pairs==derain_pairs(data)==check_derain(data).pairs

def test_a_moved_data_set_still_reads(data, tmp_path_factory):
    derain_csv(data/'images', data/'images_rain')
    moved = tmp_path_factory.mktemp('other')/'moved'
    data.rename(moved)
    assert all(p.clean.is_relative_to(moved.resolve()) and p.rain.is_file() for p in read_pairs(moved/'data.csv'))

@pytest.mark.parametrize('line,fault', [
    ('../a.png,images_rain/801_1.png', 'goes up'), ('images/../images/801.png,images_rain/801_1.png', 'goes up'),
    ('images/801.png,/etc/passwd', 'absolute path'), (r'images/801.png,C:\rain.png', 'Windows path'), (r'images\801.png,images_rain/801_1.png', 'Windows path'),
    ('images/801.png,', 'no file name'), ('images/801.png', 'no file name'), ('images/801.png,images_rain/801_99.png', 'does not exist'),
    ('images/801.png,images_rain', 'does not exist'), ('images/801.png,images_rain/a\0b.png', 'no file name|line contains NUL'),
    ('images/801.png,link/801_1.png', 'link that leaves'), ('"images/801.png,images_rain/801_1.png', 'no CSV file')])
def test_hostile_lines(data, tmp_path_factory, line, fault):
    outside = tmp_path_factory.mktemp('outside')
    save(outside/'801_1.png')
    (data/'link').symlink_to(outside)
    (data/'list.csv').write_text(f'{",".join(COLUMNS)}\nimages/995.png,images_rain/995_1.png\n\n{line}\n')
    with pytest.raises(DataError, match=fault) as e: read_pairs(data/'list.csv')
    assert 'list.csv' in str(e.value) and e.value.mend and ('CSV' in fault or 'NUL' in str(e.value) or 'line 4' in str(e.value))

@pytest.mark.parametrize('text,fault', [('', r'has no column image_filepath, image_rain_filepath \(its columns: none\)'), ('a,b\n1,2\n', 'has no column'),
    ('image_filepath,rain\na,b\n', 'has no column image_rain_filepath'), ('groundtruth_id,rain_id\n1,1_1\n', 'has no column diff_npz_filepath'),
    (','.join(COLUMNS) + '\n', 'lists no pairs')])
def test_lists_that_are_none(tmp_path, text, fault):
    (tmp_path/'list.csv').write_text(text)
    with pytest.raises(DataError, match=fault): read_pairs(tmp_path/'list.csv')

def test_lists_in_odd_encodings(data):
    good = f'{",".join(COLUMNS)}\nimages/801.png,images_rain/801_3.png\n'
    pairs = []
    for raw in (good.encode(), b'\xef\xbb\xbf' + good.encode(), good.replace('\n', '\r\n').encode(), good.replace(',', ' , ').encode(),
                f'n,{COLUMNS[1]},{COLUMNS[0]}\n1,images_rain/801_3.png,images/801.png'.encode(), good.replace('images/', f'{data.resolve()}/images/', 1).encode()):
        (data/'list.csv').write_bytes(raw)
        pairs.append(read_pairs(data/'list.csv'))
    assert all(p==pairs[0] for p in pairs) and pairs[0][0][2:]==('801', '3')
    (data/'list.csv').write_bytes(good.encode('utf-16'))
    with pytest.raises(DataError, match='UTF-8'): read_pairs(data/'list.csv')
    with pytest.raises(DataError, match='does not exist'): read_pairs(data/'none.csv')

def test_orphans_and_doubles_are_told_and_left_out(data):
    (data/'images'/'801.png').unlink()
    save(data/'images'/'7.png')
    save(data/'images'/'995.jpg')
    report = derain_csv(data/'images', data/'images_rain')
    faults = {f.file: f.fault for f in report.errors}
    assert len(faults)==16 and faults['images/7.png']=='has no rainy photograph' and faults['images_rain/801_5.png']=="has no clean photograph '801'"
    assert 'same id' in faults.get('images/995.png', '') and len(report.pairs)==14
    with pytest.raises(DataError, match='holds no pairs'): derain_csv(data/'images')

@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', '1', 'CMYK', 'RGBA', 'LA'])
def test_modes_are_read_as_rgb(tmp_path, mode):
    f = save(tmp_path/('a.tif' if mode=='CMYK' else 'a.png'), mode=mode)
    x,m = read_photo(f, modes=True)
    assert x.shape==(20, 24, 3) and x.dtype==np.float32 and 0<=x.min() and x.max()<=1 and m==mode

def test_faulty_pairs_are_each_named(data):
    rain = data/'images_rain'
    save(rain/'801_1.png', 21, 24)
    clear = Image.new('RGBA', (24, 20), (1, 2, 3, 100))
    clear.save(rain/'801_2.png')
    (rain/'801_3.png').write_bytes(b'\x89PNG')
    save(rain/'801_4.png', mode='L')
    report = check_derain(data, on_bad='report')
    assert {f.file: f.fault[:20] for f in report.errors}=={'images_rain/801_1.png': 'is 24×21 pixels, its', 'images_rain/801_2.png': 'has transparent pixe',
        'images_rain/801_3.png': 'is not an image that'}
    assert [f.file for f in report.warnings]==['images_rain/801_4.png'] and all(f.mend for f in report.findings) and len(report.pairs)==25
    with pytest.raises(DataError, match='2 more errors'): check_derain(data)
    assert check_derain(data, on_bad='skip').ok
    for p in list(rain.iterdir()) + list((data/'images').iterdir()): p.write_bytes(b'x')
    with pytest.raises(DataError, match='not an image'): check_derain(data, on_bad='skip') # nothing is left: no option hides that

@pytest.mark.parametrize('seed', range(8))
def test_splits_share_no_id_and_no_scene(seed):
    rng = random.Random(seed)
    ids = [str(i) for i in range(rng.randrange(2, 60))]
    pairs = [RainPair(Path(f'{i}.png'), Path(f'{i}_{k}.png'), i, str(k)) for i in ids for k in range(rng.randrange(1, 15))]
    rng.shuffle(pairs)
    scene = {i: int(i)//2 for i in ids}
    for by in ('id', scene) if len(ids)>2 else ('id',):
        share = rng.uniform(.05, .9)
        train,valid = split_pairs(pairs, share, seed, by)
        assert train and valid and sorted(train + valid)==sorted(pairs) and (train, valid)==split_pairs(pairs, share, seed, by)
        group = lambda p: p.id if by=='id' else scene[p.id]
        assert {map(group, train)}.isdisjoint({map(group, valid)}) and not {group(p) for p in train} & {group(p) for p in valid}
        groups,held = {group(p) for p in pairs},{group(p) for p in valid}
        assert len(held)==min(max(1, round(share*len(groups))), len(groups)-1)

def test_split_refuses_what_cannot_be_split():
    one = [RainPair(Path('a'), Path('b'), '1', '')]
    for pairs in ([], one, one*3):
        with pytest.raises(DataError, match='two are needed'): split_pairs(pairs)
    for kw in (dict(valid=0), dict(valid=1), dict(by='name'), dict(by={})):
        with pytest.raises(ValueError): split_pairs(one*2, **kw)

def test_same_scene_under_other_sizes_and_files(tmp_path):
    smooth = lambda: Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)
    a,b = smooth(),smooth()
    files = dict(a=a, a2=a.crop((0, 0, 119, 89)), a3=a.resize((240, 180)), b=b, black=Image.new('RGB', (9, 9)), black2=Image.new('RGB', (9, 9)))
    for n,im in files.items(): im.save(tmp_path/f'{n}.png')
    s = same_scenes([RainPair(tmp_path/f'{n}.png', tmp_path/f'{n}.png', n, '') for n in files])
    assert s['a']==s['a2']==s['a3']!=s['b'] and len(set(s.values()))==4 # flat pictures have no likeness that could be measured

@pytest.mark.parametrize('shape', [(64, 64), (65, 65), (128, 128), (33, 70), (1, 1)])
@pytest.mark.parametrize('dtype,eps', [('float32', 1e-4), ('float64', 1e-5)])
def test_npz_round_trip(tmp_path, shape, dtype, eps):
    for x in (RNG.random((*shape, 3), np.float32), np.zeros((*shape, 3), np.float32), np.full((*shape, 3), .5, np.float32)):
        write_npz(tmp_path/'a.npz', mag_and_phase(x).astype(dtype))
        a = read_npz(tmp_path/'a.npz')
        assert a.dtype==dtype and a.shape==(*shape, 6) and np.abs(photo_of(a)-x).max()<eps

def test_npz_of_the_brief(tmp_path):
    "The formula of the original: full complex FFT of 0…255, shifted, magnitude and angle"
    x = RNG.integers(0, 256, (16, 20, 3), np.uint8)
    a = mag_and_phase(x.astype(np.float32)/255)
    for c in range(3):
        f = np.fft.fftshift(np.fft.fft2(x[...,c].astype(np.float64)))
        np.testing.assert_allclose(a[...,c], np.abs(f), rtol=1e-4, atol=1e-2)
    assert a[8, 10, :3]==pytest.approx(x.sum((0, 1)), rel=1e-6)

def test_faulty_npz(tmp_path):
    good = np.zeros((4, 5, 6), np.float32)
    for name,kw in dict(key=dict(a=good), shape=dict(mag_and_phase=good[0]), depth=dict(mag_and_phase=good[...,:3]), empty=dict(mag_and_phase=good[:0]),
                        type=dict(mag_and_phase=good.astype(complex)), nan=dict(mag_and_phase=np.full_like(good, np.inf))).items():
        np.savez(tmp_path/f'{name}.npz', **kw)
        with pytest.raises(DataError) as e: read_npz(tmp_path/f'{name}.npz')
        assert f'{name}.npz' in str(e.value) and e.value.mend
    np.savez(tmp_path/'pickle.npz', mag_and_phase=np.array([dict(a=1)]))
    with pytest.raises(DataError, match='pickle'): read_npz(tmp_path/'pickle.npz')
    np.save(tmp_path/'array.npy', good)
    with pytest.raises(DataError, match='no .npz file'): read_npz(tmp_path/'array.npy')
    write_npz(tmp_path/'good.npz', good)
    raw = (tmp_path/'good.npz').read_bytes()
    for cut in (0, 10, len(raw)//2, len(raw)-5):
        (tmp_path/'short.npz').write_bytes(raw[:cut])
        with pytest.raises(DataError, match='short.npz'): read_npz(tmp_path/'short.npz')
    with pytest.raises(ValueError, match='int64'): write_npz(tmp_path/'good.npz', np.zeros((4, 4, 6), int))
    assert (tmp_path/'good.npz').read_bytes()==raw and not list(tmp_path.glob('.*'))

def test_seven_columns(data):
    pairs = derain_pairs(data)[:3]
    listed = write_spectra(pairs, data)
    assert listed.read_text().splitlines()[0]==','.join(NPZ_COLUMNS)
    assert listed.read_text().splitlines()[1]==('801,801_1,diff_mag_and_phase/801_1.npz,groundtruth_mag_and_phase/801.npz,rain_mag_and_phase/801_1.npz,'
        'images/801.png,images_rain/801_1.png')
    assert sorted(read_pairs(listed))==sorted(pairs)
    for p,s in read_spectra(listed):
        d,c,r = map(read_npz, s)
        np.testing.assert_allclose(r+d, c, rtol=1e-5, atol=1e-2)
        assert np.abs(photo_of(r+d)-read_photo(p.clean)).max()<1e-3
    text = listed.read_text()
    for bad in ('../x.npz', '/etc/passwd', 'none.npz'):
        listed.write_text(text.replace('diff_mag_and_phase/801_1.npz', bad))
        with pytest.raises(DataError, match='spectra.csv, line 2'): read_spectra(listed)
    with pytest.raises(DataError, match='names no spectra'): read_spectra(derain_csv(data/'images', data/'images_rain').csv)

def test_sample_is_the_same_in_another_process_and_survives_a_kill(tmp_path):
    kw = dict(n=2, n_valid=1, size=32, variants=3, progress=False)
    files = lambda d: {p.relative_to(d).as_posix(): p.read_bytes() for p in sorted(d.rglob('*')) if p.is_file()}
    here = files(derain_sample(tmp_path/'a', **kw))
    assert len(here)==3*4 + 2 + 1 # photographs with their rain, two lists, the manifest
    code = f'import sys; from clearsight_nb.derain.sample import derain_sample; derain_sample(sys.argv[1], **{kw})'
    die = 'import os, clearsight_nb.derain.sample as s; write,n = s.atomic_write,[0]\n' \
          'def fail(*a):\n    n[0] += 1\n    if n[0]==6: os._exit(9)\n    return write(*a)\ns.atomic_write = fail\n'
    run = lambda code: subprocess.run([sys.executable, '-c', light('derain') + code, str(tmp_path/'b')], env=os.environ | dict(PYTHONWARNINGS='ignore')).returncode
    assert run(die + code)==9 and files(tmp_path/'b').keys() < here.keys()
    assert run(code)==0 and files(tmp_path/'b')==here

def psnr(a, b): return -10*np.log10(max(np.mean((a-b)**2, dtype=np.float64), 1e-12))

@pytest.mark.parametrize('size', [24, 64, 200])
def test_more_rain_is_never_less(size):
    "With steady streaks each pixel gets more rain, in a picture of any size; so PSNR falls strictly wherever there is a streak"
    x = np.float32(.8*np.kron(RNG.random((8, 8, 3)), np.ones((size//8, size//8, 1))))
    for seed in range(6):
        seen = [add_rain(x, s, seed, steady=True) for s in np.linspace(.05, 1, 12)]
        for (y0,r0),(y1,r1) in zip(seen, seen[1:]):
            assert (r1>=r0-1e-5).all()
            if (r1>r0+1e-3).any(): assert psnr(y0, x)>psnr(y1, x) # there may be no streak yet
        assert r1.max()>.1

def test_levels_fall_in_psnr_for_every_photograph():
    for name in photo_names('all'):
        x = load_photo(name, 256)
        for seed in range(2):
            db = [psnr(add_rain(x, seed=seed, **kw)[0], x) for kw in RAIN_LEVELS.values()]
            assert db[0]>db[1]>db[2], name

@pytest.mark.parametrize('level', RAIN_LEVELS)
def test_streaks_lean_as_asked(level):
    "The spectrum of rain stands at right angles to its streaks, to 1.5 degrees, at each whole angle"
    black = np.zeros((256, 256, 3), np.float32)
    fy,fx = np.meshgrid(*[np.fft.fftfreq(256)]*2, indexing='ij')
    f,window = fx + 1j*fy,np.outer(*[np.hanning(256)]*2)
    ring = (.03<=abs(f)) & (abs(f)<=.35)
    for angle in range(-30, 31, 3):
        r = add_rain(black, angle=angle, seed=100+angle, **RAIN_LEVELS[level])[1]
        p = np.abs(np.fft.fft2((r-r.mean())*window))**2
        assert abs(np.degrees(np.angle((p*f**2)[ring].sum()))/2 - angle)<=1.5, angle
