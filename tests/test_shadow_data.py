"Shadow data: hostile and broken input, the benchmark's tar under workers, augmentation against the renderer, metrics against brute force; what a page need not show."
import io,json,math,os,shutil,tarfile
import numpy as np, pytest, torch
from PIL import Image
from torch.utils.data import DataLoader,default_collate
from clearsight_nb.core.files import DataError
from clearsight_nb.shadow.benchmark import BenchmarkSet,check_benchmark,objects_of,parse_member,read_benchmark,tar_index
from clearsight_nb.shadow.data import ShadowSet,check_shadow,fit_square,flip,object_of,random_flip,read_light,read_shadows,show_shadows,split_items
from clearsight_nb.shadow.light import LightEncoder
from clearsight_nb.shadow.metrics import SCORES,control_scores,shadow_metric
from clearsight_nb.shadow.sample import TRACKS,shadow_sample,shadow_tracks

@pytest.fixture(scope='module')
def made(tmp_path_factory): return shadow_sample(tmp_path_factory.mktemp('shadow')/'set', objects=5, lights=2, size=32, samples=3, progress=False)

@pytest.fixture
def root(made, tmp_path): return shutil.copytree(made, tmp_path/'set')

@pytest.fixture(scope='module')
def tar(tmp_path_factory): return shadow_tracks(tmp_path_factory.mktemp('tar')/'t.tar', objects=(2, 1, 1), size=32, samples=4, progress=False)

def edit(root, **entries):
    f = root/'metadata.json'
    f.write_text(json.dumps(json.loads(f.read_text()) | entries))

def png(*size, mode='L', color=0):
    Image.new(mode, size, color).save(b := io.BytesIO(), format='PNG')
    return b.getvalue()

def jpeg():
    Image.new('RGB', (32, 32)).save(b := io.BytesIO(), format='JPEG')
    return b.getvalue()

def fault(f, *parts):
    with pytest.raises(DataError) as e: f()
    for p in parts: assert p in str(e.value), str(e.value)
    assert e.value.fault and e.value.mend
    return e.value

# The folder

@pytest.mark.parametrize('folder', ['objects', 'masks', 'shadows'])
def test_missing_folder_and_picture(root, folder):
    (root/folder/'0002_1.png').unlink()
    fault(lambda: read_shadows(root), '0002_1')
    shutil.rmtree(root/folder)
    fault(lambda: read_shadows(root), folder, 'does not exist')

def test_missing_root_and_table(root, tmp_path):
    fault(lambda: read_shadows(tmp_path/'nothing'), 'is no folder')
    (root/'metadata.json').unlink()
    fault(lambda: read_shadows(root), 'metadata.json', 'does not exist')

@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '[' * 100_000, '{"0000_0": 3}', '{"0000_0": {"theta": 1, "theta": 2}}', '\x00'])
def test_broken_table(root, text):
    (root/'metadata.json').write_text(text)
    fault(lambda: read_shadows(root), 'metadata.json')

def test_table_that_is_no_text(root):
    (root/'metadata.json').write_bytes(b'\xff\xfe{}')
    fault(lambda: read_shadows(root), 'is not JSON')

@pytest.mark.parametrize('bad', ['../x', 'a/b', '/etc/passwd', '.hidden', 'a\\b', '', 'a\nb', '..'])
def test_stems_are_plain_names(root, bad):
    edit(root, **{bad: dict(theta=1, phi=1, size=3)})
    fault(lambda: read_shadows(root), 'no plain file name')

@pytest.mark.parametrize('entry,says', [
    (dict(theta=60, phi=0, size=4), 'theta = 60'), (dict(theta=-1, phi=0, size=4), 'theta = -1'), (dict(theta=30, phi=361, size=4), 'phi = 361'),
    (dict(theta=30, phi=0, size=0), 'size = 0'), (dict(theta=30, phi=0, size=9), 'size = 9'), (dict(theta=30, phi=0, size=float('inf')), 'size = inf'),
    (dict(theta=30, phi=0, size=float('nan')), 'size = nan'), (dict(theta='30', phi=0, size=4), 'no number'), (dict(theta=True, phi=0, size=4), 'no number'),
    (dict(theta=None, phi=0, size=4), 'no number'), (dict(theta=30, phi=[0], size=4), 'no number'), (dict(theta=30, ph=0, size=4), "Rename 'ph' to 'phi'"),
    (dict(theta=30, phi=0, light_size=4), "Rename 'light_size' to 'size'"), (dict(Theta=30, phi=0, size=4), "Rename 'Theta' to 'theta'"), ({}, "Add 'theta'"), (None, 'NoneType')])
def test_lights(root, entry, says):
    edit(root, **{'0001_0': entry})
    fault(lambda: read_shadows(root), 'metadata.json: 0001_0', says)

def test_r_is_never_the_size():
    assert read_light(dict(theta=1, phi=2, size=3, r=8), 'm') == (1, 2, 3)
    fault(lambda: read_light(dict(theta=1, phi=2, r=8), 'm'), "Add 'size'")

@pytest.mark.parametrize('folder,data,says', [
    ('objects', jpeg(), 'not a PNG but a JPEG'), ('objects', b'', 'empty'), ('objects', b'GIF89a', 'not a PNG'), ('objects', png(16, 16, mode='RGB'), '32×32 pixels, the object 16×16'),
    ('objects', png(32, 32, mode='RGBA'), 'transparent all over'), ('masks', png(32, 32), 'is empty'), ('masks', png(32, 32, color=1), 'highest value is 1'),
    ('masks', png(16, 32), '16×32 pixels'), ('masks', png(32, 32, mode='RGB', color=(255, 0, 0)), 'colour picture'), ('masks', png(32, 32, mode='LA', color=(255, 9)), 'transparent pixels'),
    ('shadows', png(32, 33), '32×33 pixels'), ('shadows', png(32, 32)[:40], 'end is missing'), ('shadows', png(32, 32)[:-30], 'damaged'),
    ('shadows', b'\x89PNG\r\n\x1a\n' + bytes(50), 'damaged')])
def test_pictures(root, folder, data, says):
    (root/folder/'0001_0.png').write_bytes(data)
    e = fault(lambda: check_shadow(root), says)
    report = check_shadow(root, on_bad='report')
    assert len(report.errors) == 1 and len(report.items) == 9 and report.errors[0].file == str(e.file)
    with pytest.raises(DataError): ShadowSet(read_shadows(root), 16)
    late = ShadowSet(read_shadows(root), 16, cache=0)
    with pytest.raises(DataError): [late[i] for i in range(10)]

def test_every_cut_of_a_png_is_noticed(root):
    f = root/'objects/0001_0.png'
    whole = f.read_bytes()
    for n in sorted({*range(0, len(whole), max(1, len(whole)//40)), len(whole)-1, len(whole)-5}):
        f.write_bytes(whole[:n])
        assert not check_shadow(root, on_bad='report').ok, n

def test_other_names_and_places(root):
    shutil.copy(root/'objects/0001_0.png', root/'objects/0001_0.PNG')
    fault(lambda: read_shadows(root), 'same key')
    (root/'objects/0001_0.PNG').unlink()
    (root/'masks/0001_0.png').rename(root/'masks/0001_0.tif')
    fault(lambda: read_shadows(root), 'not .png')
    (root/'masks/0001_0.tif').unlink()
    (root/'masks/0001_0.png').symlink_to('/etc/hostname')
    fault(lambda: read_shadows(root), 'link')

def test_capital_ending_is_fine(root):
    for d in ('objects', 'masks', 'shadows'): (root/d/'0001_0.png').rename(root/d/'0001_0.PNG')
    assert len(check_shadow(root).items) == 10

def test_warnings_do_not_stop(root):
    (root/'shadows/0001_0.png').write_bytes(png(32, 32, color=255))
    (root/'shadows/0001_1.png').write_bytes(png(32, 32))
    report = check_shadow(root)
    assert {f.fault.split(' for ')[0] for f in report.warnings} == {'is dark nearly everywhere', 'lies on the object too', 'is empty'}

# Split, tensors, augmentation

@pytest.mark.parametrize('seed', range(5))
def test_no_object_on_both_sides(made, seed):
    items = read_shadows(made)
    train,valid = split_items(items, .3, seed)
    assert not {i.object_id for i in train} & {i.object_id for i in valid} and len(train)+len(valid) == 10 and len({i.object_id for i in valid}) == 2
    assert split_items(sorted(items, key=lambda i: i.theta), .3, seed)[1] != [] and set(split_items(items[::-1], .3, seed)[1]) == set(valid)

def test_split_edges(made):
    items = read_shadows(made)
    assert len(split_items(items[:4], .001)[1]) == 2 and len(split_items(items[:4], .999)[0]) == 2
    for v in (0, 1, -1, 2):
        with pytest.raises(ValueError): split_items(items, v)
    fault(lambda: split_items(read_shadows(made, key=lambda s: 'all')), 'show 1 object')
    assert object_of('a_b_c') == 'a_b'

def test_split_stays_when_pictures_of_known_objects_come(made):
    items = read_shadows(made)
    assert {i.object_id for i in split_items(items[::2], .3)[1]} == {i.object_id for i in split_items(items, .3)[1]}

def test_area_scaling_against_block_means():
    x = np.random.default_rng(0).integers(0, 256, (5, 24, 24), np.uint8)
    want = x.reshape(5, 8, 3, 8, 3).mean((2, 4))
    assert abs(fit_square(x, 8)-want).max() < 1
    assert (fit_square(x, 24) == x).all()
    wide = fit_square(x[:,:10], 24)
    assert (wide[:3,0] == 255).all() and (wide[3:,0] == 0).all() and (wide[:,7:17] == x[:,:10]).all()

@pytest.mark.parametrize('cache', [0, 1<<20])
def test_batches_with_workers(made, cache):
    ds = ShadowSet(read_shadows(made), 24, cache=cache)
    a,b = (list(DataLoader(ds, batch_size=4, num_workers=n)) for n in (0, 2))
    assert list(a[0]) == ['object_image', 'mask', 'shadow_map', 'theta', 'phi', 'size']
    for x,y in zip(a, b):
        for k in x: assert torch.equal(x[k], y[k]) and x[k].dtype == torch.float32
    assert (ds.pixels is None) == (cache == 0)

def test_no_shadow_reaches_the_object_image(root):
    "A picture with ground and shadow in it: everything outside of the mask is white."
    f = root/'objects/0001_0.png'
    im = np.asarray(Image.open(f)).copy()
    mask = np.asarray(Image.open(root/'masks/0001_0.png'))>0
    im[~mask] = 90
    Image.fromarray(im).save(f)
    x = ShadowSet([i for i in read_shadows(root) if i.object_path.stem == '0001_0'], 32)[0]
    assert (x['object_image'][:,~torch.from_numpy(mask)] == 1).all()

def test_flip_of_one_and_of_many(made):
    b = default_collate(list(ShadowSet(read_shadows(made), 24)))
    f = random_flip(b, .5, torch.Generator().manual_seed(3))
    for i in range(len(b['phi'])):
        one = {k: v[i] for k,v in b.items()}
        same = torch.equal(f['mask'][i], one['mask']) and torch.equal(f['shadow_map'][i], one['shadow_map'])
        want = one if same else flip(one)
        for k in one: assert torch.equal(f[k][i], want[k])
    for p,q in ((0., b), (1., flip(b))):
        for k,v in random_flip(b, p).items(): assert torch.equal(v, q[k])
    assert all(0 <= p < 360 for p in flip(dict(phi=torch.arange(0, 360.)))['phi'])
    assert len(show_shadows(b, 3, pred=b['shadow_map']).axes) == 12

# The benchmark

def test_tar_holds_what_was_rendered(tar):
    b = read_benchmark(tar)
    assert [len(v) for v in b.tracks.values()] == [6, 18, 9] and len(b) == 33
    for t,n in zip(TRACKS, (2, 1, 1)): assert [b.lights[i] for i in b.tracks[t]] == [(l.theta, l.phi, l.size) for l in TRACKS[t]]*n
    with tarfile.open(tar) as f: want = np.asarray(Image.open(f.extractfile('direction_control_horz_007.shadow.png')))
    assert (b.load(b.tracks['direction_control_horz'][7])[4] == want).all()
    assert torch.equal(b[-1]['mask'], b[32]['mask'])
    with pytest.raises(IndexError): b[33]
    assert [len(g) for t in b.tracks for g in objects_of(b, t)] == [3, 3, 18, 9]

def test_workers_read_any_order(tar):
    b = read_benchmark(tar, 16)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0)).tolist()
    got = torch.cat([x['shadow_map'] for x in DataLoader(b, 4, sampler=order, num_workers=2)])
    assert torch.equal(got, torch.stack([b[i]['shadow_map'] for i in order]))

def test_every_cut_of_the_tar_is_noticed(tar, tmp_path):
    whole = tar.read_bytes()
    with tarfile.open(tar) as f: end = max(m.offset_data + -(-m.size//512)*512 for m in f)
    cuts = set(range(0, end, 512)) | set(range(100, end, 7001)) | {end, end-1, end+1, end+511}
    for n in sorted(cuts):
        (tmp_path/'cut.tar').write_bytes(whole[:n])
        fault(lambda: read_benchmark(tmp_path/'cut.tar'), 'cut.tar')
    (tmp_path/'cut.tar').write_bytes(whole[:end+512])
    assert len(read_benchmark(tmp_path/'cut.tar')) == 33

def test_file_that_shrinks_later(tar, tmp_path):
    b = read_benchmark(shutil.copy(tar, tmp_path/'t.tar'))
    os.truncate(tmp_path/'t.tar', 20_000)
    fault(lambda: b[32], 'cut short')
    (tmp_path/'t.tar').unlink()
    fault(lambda: b[0], 'cannot be read')

@pytest.mark.parametrize('name', ['/etc/passwd', '../softness_control_000.image.png', 'softness_control_0.image.jpg', 'softness_control_x.mask.png', 'softness_control_0.image.png/..',
                                  'colour_control_0.image.png', 'softness_control/metadata/0.png', 'softness_control/image/0.json', '', 'a\nb'])
def test_odd_names(name): fault(lambda: parse_member(name))

def test_odd_tars(tar, tmp_path):
    p = tmp_path/'x.tar'
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        with tarfile.open(p, 'w') as f:
            i = tarfile.TarInfo('softness_control_000.image.png')
            i.type,i.linkname = kind,'/etc/passwd'
            f.addfile(i)
        fault(lambda: read_benchmark(p), 'link or a device')
    with tarfile.open(p, 'w') as f:
        for _ in range(2): f.addfile(tarfile.TarInfo('softness_control_000.image.png'))
    fault(lambda: read_benchmark(p), 'twice')
    with tarfile.open(p, 'w') as f:
        for n in ('softness_control_000.image.png', 'softness_control_0.image.png'): f.addfile(tarfile.TarInfo(n))
    fault(lambda: read_benchmark(p), 'second image')
    with tarfile.open(p, 'w:gz') as f: f.addfile(tarfile.TarInfo('softness_control_000.image.png'))
    fault(lambda: read_benchmark(p), 'compressed')
    for data in (b'', b'no tar at all', bytes(511)):
        p.write_bytes(data)
        fault(lambda: read_benchmark(p))
    p.write_bytes(bytes(10240))
    fault(lambda: read_benchmark(p), 'no samples')
    with tarfile.open(p, 'w', format=tarfile.PAX_FORMAT) as f: f.addfile(tarfile.TarInfo('./' + 'softness_control_' + '0'*120 + '.image.png'))
    fault(lambda: read_benchmark(p), 'has no mask')
    fault(lambda: tar_index(tmp_path), 'cannot be read')

def test_folder_with_a_link_out(tar, tmp_path):
    with tarfile.open(tar) as f: f.extractall(tmp_path/'flat', filter='data')
    assert torch.equal(read_benchmark(tmp_path/'flat')[5]['mask'], read_benchmark(tar)[5]['mask'])
    g = tmp_path/'flat/softness_control_000.mask.png'
    g.unlink()
    g.symlink_to('/etc/hostname')
    fault(lambda: read_benchmark(tmp_path/'flat'), 'leaves the folder')

def test_check_benchmark_sees_every_picture(tar, tmp_path):
    with tarfile.open(tar) as f: f.extractall(tmp_path/'flat', filter='data')
    for i,n in enumerate(('softness_control_001.image.png', 'direction_control_horz_003.mask.png', 'direction_control_vert_008.shadow.png')):
        (tmp_path/'flat'/n).write_bytes((jpeg(), png(32, 32), png(30, 32))[i])
    assert len(check_benchmark(tmp_path/'flat', on_bad='report').errors) == 3
    assert isinstance(read_benchmark(tar), BenchmarkSet)

# Light and scores

@pytest.mark.parametrize('mode', ['direction', 'sinusoidal', 'blob'])
def test_encoders_tell_lights_apart(mode):
    g = torch.Generator().manual_seed(0)
    theta,phi,size = torch.rand(60, generator=g)*40 + 5,torch.rand(60, generator=g)*360,torch.rand(60, generator=g)*6 + 2
    e = LightEncoder(mode)(theta, phi, size).flatten(1)
    assert e.isfinite().all() and (torch.cdist(e, e) + 9*torch.eye(60)).min() > 1e-3
    again = LightEncoder(mode)(theta, phi+360, size).flatten(1)
    assert ((again-e).abs().max() < 1e-4) == (mode != 'sinusoidal')
    zero = LightEncoder(mode)(0*theta, phi, 0*size+4).flatten(1)
    assert ((zero-zero[0]).abs().max() < 1e-6) == (mode != 'sinusoidal')

def test_metrics_against_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p,g = (rng.random((3, 1, 6, 5))**rng.uniform(.3, 4)*(rng.random((3, 1, 6, 5)) < rng.uniform(.2, 1)) for _ in range(2))
        got = {k: f(torch.from_numpy(p), torch.from_numpy(g)).numpy() for k,f in SCORES.items()}
        for i in range(3):
            a,b = p[i].ravel(),g[i].ravel()
            scales = np.linspace(0, 3, 3001)
            best = min(np.sqrt(((s*a-b)**2).mean()) for s in scales)
            assert abs(got['iou'][i] - np.minimum(a, b).sum()/np.maximum(a, b).sum()) < 1e-12
            assert abs(got['rmse'][i] - np.linalg.norm(a-b)/len(a)**.5) < 1e-12
            assert got['srmse'][i] <= best+1e-9 and (got['srmse'][i] > best-1e-3 or a@b/(a@a) > 3)
            assert abs(got['zncc'][i] - np.corrcoef(a, b)[0, 1]) < 1e-10

def test_metrics_of_half_precision_and_on_batches():
    g = torch.rand(5, 1, 8, 8)
    p = g.to(torch.bfloat16)
    for name,f in SCORES.items():
        m = shadow_metric(name)
        for a,b in zip(p.split(2), g.split(2)): m.update(a, b)
        assert math.isclose(float(m.compute()), float(f(p, g).mean()), rel_tol=1e-9)
    for bad in (g*2, g-1, g*float('nan')):
        with pytest.raises(ValueError): SCORES['iou'](bad, g)

def test_control_of_truth_and_of_nothing(tar):
    b = default_collate(list(read_benchmark(tar)))
    c = control_scores(b['shadow_map'], b)
    assert c['extent'] > .98 and c['softness'] == 1 and c['azimuth'] < 6
    assert control_scores(0*b['shadow_map'], b) == dict(extent=0, softness=0, azimuth=90)
    still = b['shadow_map'][:1].expand_as(b['shadow_map'])*(1-b['mask'])
    assert control_scores(still, b)['azimuth'] > 60
