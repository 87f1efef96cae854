"Low-light tiles: the contract breaks 1 to 6 of the specification by number, hostile metadata, damaged files, the packed store."
import json, os, shutil
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from clearsight_nb.core.files import DataError, read_json, write_json
from clearsight_nb.core.photos import load_photo, srgb_to_linear
from clearsight_nb.lowlight import shards
from clearsight_nb.lowlight.metadata import TileSet, Tiles, read_metadata, write_metadata
from clearsight_nb.lowlight.shards import ROUNDING, STEPS, StoreSet, TileStore, dequantise, pack_tiles, quantise
from clearsight_nb.lowlight.tiles import EXPOSURE_IN_ID, clean_by, hash_split, read_split_lists, read_tile, seconds, write_tile
from clearsight_nb.lowlight.validate import check_lowlight, find_metadata, validate_tiles

SCENES = {'00001': 'train', '00002': 'train', '20001': 'val', '10003': 'test'}

def picture(seed, size=16):
    "A dark linear tile of a photograph."
    seed %= 48
    x = .5*srgb_to_linear(load_photo('chelsea', 64))[seed:seed+size, seed:seed+size].transpose(2, 0, 1)
    return torch.tensor(2*x - 1, dtype=torch.float32)

def make(root, scenes=SCENES, short=.1, long=10., n=2, camera='sony', split=True):
    "Two long and two short tiles a scene in the layout of the earlier implementation, nested metadata."
    files,rng = [],np.random.default_rng(0)
    for k,(scene,s) in enumerate(scenes.items()):
        for kind,t in (('long', long), ('short', short)):
            tiles = []
            for i in range(n):
                tile_id = f'{camera}_{scene}_00_{t:g}s_tile_{i:04}'
                x = picture(3*k + 12*i)
                if kind == 'short': x = (x + torch.tensor(rng.normal(0, .05, x.shape), dtype=torch.float32)).clip(-1.1, 1.1)
                write_tile(root/f'pt_tiles/{camera}/{kind}/{tile_id}.pt', x)
                tiles.append(dict(tile_id=tile_id, pt_path=f'pt_tiles/{camera}/{kind}/{tile_id}.pt', channels=3, data_type=kind, scene_id=scene,
                    exposure_time=f'{t:g}s', tile_key=f'{camera}_{scene}_tile_{i}_0', grid_x=i, grid_y=0))
            about = dict(scene_id=scene, data_type=kind, exposure_time=t, camera_type=camera) | (dict(split=s) if split else {})
            files.append(dict(file_metadata=about, tiles=tiles))
    write_metadata(root/'metadata.json', files)
    return root

def flat(root, home='/somewhere/else', **change):
    "The same tiles in flat metadata, as another machine wrote them; a field that is None is left out."
    def entry(t):
        d = dict(tile_id=t.id, domain='photography', scene_id=t.scene, data_type='clean' if t.clean else 'noisy', split=t.split,
            pt_path=f'{home}/{t.path.relative_to(root.resolve()).as_posix()}')
        return {k: v for k,v in (d | change).items() if v is not None}
    write_json(dict(domain='photography', tiles=[entry(t) for t in read_metadata(root)]), root/'flat.json')
    return root/'flat.json'

def facts(tiles): return [(t.id, t.path, t.scene, t.clean, t.split) for t in tiles]

@pytest.fixture(scope='module')
def master(tmp_path_factory): return make(tmp_path_factory.mktemp('master')/'data')

@pytest.fixture
def data(tmp_path, master): return Path(shutil.copytree(master, tmp_path/'data'))

# contract breaks of the earlier implementation, by number

def test_1_both_generations_give_the_same_tiles(data):
    nested,old = read_metadata(data),read_metadata(flat(data))
    assert len(nested) == 16 and facts(nested) == facts(old)
    assert (old.counts['re-rooted paths'], nested.counts.get('re-rooted paths', 0)) == (16, 0)
    for none in ({}, dict(tiles=[]), dict(files=[]), dict(files=[dict(file_metadata={})]), dict(tiles=None, files=None)):
        write_json(none, data/'none.json')
        with pytest.raises(DataError, match='names no tiles'): read_metadata(data/'none.json')

def test_2_short_exposures_are_noisy(data):
    tiles = read_metadata(data)
    assert all(t.clean == ('/long/' in t.path.as_posix()) for t in tiles)
    assert sum(t.clean for t in tiles) == 8
    with pytest.raises(DataError, match=r'is a noisy tile in the training split \(one of 4\)') as e: TileSet(tiles)
    assert 'short' in e.value.file.as_posix()
    with pytest.raises(DataError, match='7 more errors') as e: validate_tiles(tiles, clean=True, progress=False)
    assert 'pt_tiles/sony/short/sony_00001' in e.value.file and 'noisy tile in the train split' in e.value.fault

@pytest.mark.parametrize('word,clean', [('clean', 1), ('long', 1), ('gt', 1), ('GT', 1), ('noisy', 0), ('short', 0), (' Short ', 0)])
def test_2_vocabulary(word, clean): assert clean_by(dict(data_type=word))[0] == bool(clean)

def test_2_order_of_the_filter():
    rows = [(dict(is_clean=True, data_type='short'), .1, True), (dict(is_clean=False, data_type='clean'), 10., False),
        (dict(data_type='short'), 10., False), (dict(data_type='long'), .1, True), ({}, 10., True), ({}, .1, False), (dict(is_clean=None), .1, False)]
    for entry,t,want in rows: assert clean_by(entry, t, {.1, 10.})[0] is want
    for entry,t,others in [({}, None, {.1, 10.}), ({}, .1, {.1}), (dict(data_type='dark'), 10., {.1, 10.}), (dict(data_type=''), 10., {.1, 10.}),
        (dict(is_clean='true'), 10., {.1, 10.}), (dict(is_clean=2), 10., {.1, 10.}), (dict(data_type=['long']), 10., {.1, 10.})]:
        with pytest.raises(ValueError): clean_by(entry, t, others)

def test_2_a_clean_word_on_a_noisy_tile_is_found(data):
    "Metadata that call every tile clean: the folder, or else the exposure, betrays the short ones."
    meta = read_json(data/'metadata.json')
    for f in meta['files']:
        for d in (f['file_metadata'], *f['tiles']): d['data_type'] = 'clean'
    write_json(meta, data/'metadata.json')
    report = validate_tiles(data, on_bad='report', progress=False)
    assert {f.file.split('/')[2] for f in report.errors} == {'short'} and len(report.errors) == 8
    (data/'pt_tiles/sony/short').rename(data/'pt_tiles/sony/brief')
    (data/'metadata.json').write_text((data/'metadata.json').read_text().replace('sony/short', 'sony/brief'))
    assert {f.fault for f in validate_tiles(data, on_bad='report', progress=False).errors} == {'is called clean with 0.1 s, another of its scene has 10 s'}

def test_3_labels_on_request_and_no_swallowed_options(data):
    clean = read_metadata(data).select('train', clean=True)
    assert isinstance(TileSet(clean)[0], torch.Tensor) and TileSet.label_dim == StoreSet.label_dim == 0
    x,y = TileSet(clean, labels=True)[1]
    assert x.shape == (3, 16, 16) and y.shape == (0,) and y.dtype == torch.float32
    for loader in (TileSet(clean, labels=True), pack_tiles(clean, data/'store', progress=False).dataset('train', labels=True)):
        for xs,ys in torch.utils.data.DataLoader(loader, batch_size=2): assert xs.shape == (2, 3, 16, 16) and ys.shape == (2, 0)
    with pytest.raises(TypeError): TileSet(clean, use_labels=True)
    with pytest.raises(TypeError): TileSet(clean, data_range='normalized')

def test_4_tiles_inherit_the_split_of_their_file(data):
    tiles = read_metadata(data)
    assert {s: {t.split for t in tiles if t.scene == s} for s in SCENES} == {'00001': {'train'}, '00002': {'train'}, '20001': {'validation'}, '10003': {'test'}}
    assert len(tiles.select('test')) == 4 and len(tiles.select('val', clean=True)) == 2
    with pytest.raises(ValueError, match='holdout'): tiles.select('holdout')

def test_4_missing_splits_are_hashed_by_scene(tmp_path):
    scenes = {f'{i:05}': None for i in range(30)}
    tiles = read_metadata(make(tmp_path, scenes, n=1, split=False))
    assert all(t.split == hash_split(t.scene) for t in tiles) and tiles.counts['split by hash'] == 60
    assert {t.split for t in tiles} == {'train', 'validation', 'test'}
    shares = [sum(hash_split(f's{i}') == s for i in range(5000))/5000 for s in ('train', 'validation', 'test')]
    np.testing.assert_allclose(shares, [.7, .15, .15], atol=.02) # 3 standard deviations: .0194
    assert ''.join(dict(train='t', validation='v', test='x')[hash_split(f's{i}')] for i in range(40)) == 'tvxttttvvvvttttttxtttxvvttttttxtvxtvtvvv' # the same on every machine, for ever

def test_4_a_scene_stays_whole(data):
    meta = read_json(data/'metadata.json')
    del meta['files'][0]['file_metadata']['split'] # its short file still names the split of the scene
    write_json(meta, data/'part.json')
    assert facts(read_metadata(data/'part.json')) == facts(read_metadata(data))
    meta['files'][0]['file_metadata']['split'] = 'test'
    write_json(meta, data/'two.json')
    with pytest.raises(DataError, match="scene '00001', which is in test and in train"): read_metadata(data/'two.json')
    tiles = read_metadata(data)
    with pytest.raises(DataError, match='scene 00001: is in test and in train'):
        validate_tiles([replace(tiles[0], split='test'), *tiles[1:]], progress=False)

def test_4_two_cameras_may_number_their_scenes_alike(tmp_path):
    make(tmp_path, {'00001': 'train'})
    one = read_json(tmp_path/'metadata.json')['files']
    make(tmp_path, {'00001': 'test'}, camera='fuji')
    write_json(dict(files=one + read_json(tmp_path/'metadata.json')['files']), tmp_path/'metadata.json')
    tiles = read_metadata(tmp_path)
    assert {(t.scene, t.split) for t in tiles} == {('sony/00001', 'train'), ('fuji/00001', 'test')}
    assert all(a.scene == b.scene for a,b in tiles.pairs()) and len(tiles.pairs()) == 4

@pytest.mark.parametrize('word', ['val', 'validation', 'valid', 'Val'])
def test_5_lists_of_splits(data, word):
    for w,s in (('train', ('00001', '00002')), (word, ('20001',)), ('test', ('10003',))):
        text = ''.join(f'./Sony/short/{n}_00_0.1s.ARW ./Sony/long/{n}_00_10s.ARW ISO200 F8\r\n' for n in s)
        (data/f'Sony_{w}_list.txt').write_text(text)
    splits = read_split_lists(data)
    assert splits == {'sony/00001': 'train', 'sony/00002': 'train', 'sony/20001': 'validation', 'sony/10003': 'test'}
    tiles = read_metadata(flat(data, split=None, camera_type='Sony'), splits=splits)
    assert facts(tiles) == facts(read_metadata(data)) and tiles.counts['split by list'] == 16
    with pytest.raises(DataError, match="scene '20001', which is in no list"):
        read_metadata(data, splits={k: v for k,v in splits.items() if '2000' not in k})
    (data/f'Sony_{word}_list.txt').unlink()
    with pytest.raises(DataError, match='no list validation of Sony'): read_split_lists(data)

def test_5_faulty_lists(tmp_path):
    with pytest.raises(DataError, match='holds no lists'): read_split_lists(tmp_path)
    line = './Sony/short/00001_00_0.1s.ARW ./Sony/long/00001_00_10s.ARW ISO200 F8\n'
    for w in ('train', 'val', 'test'): (tmp_path/f'Sony_{w}_list.txt').write_text(line)
    with pytest.raises(DataError, match='puts scene 00001 in'): read_split_lists(tmp_path)
    (tmp_path/'Sony_train_list.txt').write_text(line.replace('long/00001', 'long/00002'))
    with pytest.raises(DataError, match='of one scene'): read_split_lists(tmp_path)
    (tmp_path/'Sony_validation_list.txt').write_text(line)
    with pytest.raises(DataError, match='second list of validation'): read_split_lists(tmp_path)

def test_6_no_substring_decides(tmp_path):
    "An id with v_0.5 is not noisy, and a short exposure of a second is not clean."
    root = make(tmp_path, {'v_0.5': 'train'}, short=1., long=30.)
    kinds = [(t.id, t.clean) for t in read_metadata(root)]
    assert [c for _,c in kinds] == 2*[True] + 2*[False] and all('_0.' in i for i,_ in kinds)
    bare = flat(root, data_type=None)
    with pytest.raises(DataError, match='no is_clean, no data_type and no exposure_time'): read_metadata(bare)
    tiles = read_metadata(bare, pattern=EXPOSURE_IN_ID)
    assert [(t.id, t.clean) for t in tiles] == kinds and {t.exposure for t in tiles} == {1., 30.}
    with pytest.raises(DataError, match='no exposure_time'): read_metadata(bare, pattern=r'_(\d+)ms_')
    with pytest.raises(ValueError, match='needs a group'): read_metadata(bare, pattern='_0')

def test_6_a_single_exposure_decides_nothing(tmp_path):
    root = make(tmp_path, {'a': 'train'}, short=10., long=10.)
    with pytest.raises(DataError, match='its scene has only one exposure'): read_metadata(flat(root, data_type=None, exposure_time=10.))

@pytest.mark.parametrize('text,want', [('0.1s', .1), (' 10 ', 10), ('1/30', 1/30), ('1/30s', 1/30), ('1e-2', .01), (.04, .04), (30, 30)] + [(v, None) for v in
    ('', 'auto', '-1', '0', '1/0', 'nan', 'inf', '1e999', None, True, False, [1], {}, '0.1.2', '--1', float('nan'))])
def test_exposures(text, want): assert seconds(text) == (want if want is None else pytest.approx(want))

# hostile and foreign paths

@pytest.mark.parametrize('path,fault', [('../../etc/passwd', 'goes up'), ('pt_tiles/../../x.pt', 'goes up'), ('/etc/passwd', 'leaves the data root'),
    ('/elsewhere/pt_tiles/../../../etc/passwd', 'goes up'), (r'C:\\windows\\system32\\x.pt', 'leaves the data root'), (r'..\\..\\x.pt', 'goes up'), ('a\0b.pt', 'no file name'),
    (7, 'is no path'), (['a'], 'is no path')])
@pytest.mark.parametrize('field', ['pt_path', 'png_path'])
def test_paths_that_leave_the_root(data, path, fault, field):
    with pytest.raises(DataError, match=fault) as e: read_metadata(flat(data, **(dict(pt_path=None) | {field: path})))
    assert 'flat.json, tile sony_00001_00_10s_tile_0000' in str(e.value) and e.value.mend

def test_an_existing_file_outside_is_refused(data, tmp_path):
    write_tile(tmp_path/'secret.pt', picture(0))
    with pytest.raises(DataError, match='is an absolute path that leaves the data root'): read_metadata(flat(data, pt_path=str(tmp_path/'secret.pt')))
    tiles = read_metadata(flat(data, home=str(data.resolve())))
    assert facts(tiles) == facts(read_metadata(data)) and 're-rooted paths' not in tiles.counts

def test_links_that_leave_the_root(data, tmp_path):
    want = facts(read_metadata(data))
    (data/'pt_tiles').rename(tmp_path/'disk')
    (data/'pt_tiles').symlink_to(tmp_path/'disk')
    for meta in (data/'metadata.json',):
        with pytest.raises(DataError, match='link that leaves the folder'): read_metadata(meta)
    assert facts(read_metadata(data, links=True)) == want
    assert not validate_tiles(read_metadata(data, links=True), progress=False).errors
    (tmp_path/'alias').symlink_to(data) # a link to the root itself is no matter
    assert len(read_metadata(tmp_path/'alias', links=True)) == 16

def test_windows_paths_are_re_rooted(data):
    meta = read_json(flat(data))
    for t in meta['tiles']: t['pt_path'] = 'D:\\lowlight' + t['pt_path'].removeprefix('/somewhere/else').replace('/', '\\')
    write_json(meta, data/'flat.json')
    tiles = read_metadata(data/'flat.json')
    assert facts(tiles) == facts(read_metadata(data)) and tiles.counts['re-rooted paths'] == 16

def test_candidates_for_a_path(data):
    tiles = read_metadata(data)
    by_png = read_metadata(flat(data, pt_path=None, png_path='pt_tiles/sony/long/sony_00001_00_10s_tile_0000.png'))
    assert by_png[0].path == tiles[0].path
    for t in tiles:
        to = data/('clean' if t.clean else 'noisy')/t.path.name if t.scene != '00002' else data/t.path.name
        to.parent.mkdir(exist_ok=True)
        t.path.rename(to)
    found = read_metadata(flat(data, pt_path=None))
    assert all(t.path.is_file() for t in found) and found.counts['found by id'] == 16
    assert {t.path.parent.name for t in found if not t.clean} == {'noisy', 'data'}

def test_missing_tiles_are_all_named(data):
    tiles = read_metadata(data)
    for t in tiles[2:5]: t.path.unlink()
    for meta in (data/'metadata.json', flat(data)):
        report = validate_tiles(meta, on_bad='report', progress=False)
        assert [Path(f.file).name for f in report.errors] == [t.path.name for t in tiles[2:5]] and {f.fault for f in report.errors} == {'does not exist'}
        sampled = validate_tiles(meta, sample=1, on_bad='report', progress=False)
        assert len(sampled.errors) == 3 # existence is checked for all
    with pytest.raises(DataError, match='No such file'): pack_tiles(tiles, data/'store', progress=False)
    assert not (data/'store/index.json').exists()

@pytest.mark.parametrize('change', [dict(tile_id=None), dict(tile_id=''), dict(tile_id='..'), dict(tile_id='a/b'), dict(tile_id='a\\\\b'), dict(scene_id=None),
    dict(scene_id=' '), dict(split='holdout'), dict(split=3), dict(data_type='dark'), dict(is_clean='yes')])
def test_faulty_entries(data, change):
    with pytest.raises(DataError) as e: read_metadata(flat(data, **change))
    assert 'flat.json' in str(e.value) and e.value.fault and e.value.mend

def test_random_damage_to_metadata_is_a_data_error(data):
    "Values replaced anywhere by anything: tiles, or a DataError, and never a path outside."
    rng,root = np.random.default_rng(0),data.resolve()
    texts = [(data/'metadata.json').read_text(), flat(data).read_text()]
    junk = [None, 0, -1, 1.5, True, '', '..', '/', '../x', 'x'*300, [], {}, [[]], {'a': []}, 'NaN', '\ud800', 1e308]
    def places(o):
        keys = list(o) if isinstance(o, dict) else range(len(o))
        return [(o, k) for k in keys] + [p for k in keys if isinstance(o[k], (dict, list)) for p in places(o[k])]
    good = 0
    for n in range(300):
        meta = json.loads(texts[n % 2])
        for _ in range(1 + n % 3):
            all_places = places(meta)
            o,k = all_places[rng.integers(len(all_places))]
            o[k] = junk[rng.integers(len(junk))]
        (data/'fuzz.json').write_text(json.dumps(meta))
        try: tiles = read_metadata(data/'fuzz.json')
        except DataError as e: assert e.fault and e.mend
        else:
            good += 1
            assert tiles and all(t.path.resolve().is_relative_to(root) and t.split in ('train', 'validation', 'test') for t in tiles)
            len(tiles.pairs()), tiles.counts, validate_tiles(tiles, sample=2, on_bad='report', progress=False)
    assert 20 < good < 280

@pytest.mark.parametrize('text', ['', '[]', '3', 'null', '{"tiles": 3}', '{"tiles": {}}', '{"tiles": [3]}', '{"files": [3]}', '{"files": [{"tiles": 3}]}',
    '{"files": [{"file_metadata": 3, "tiles": []}]}', '{"tiles": [{}], "files": [{"tiles": [{}]}]}', '['*100_000, '{"tiles": [{"tile_id": "a"}'])
def test_what_is_no_metadata(tmp_path, text):
    (tmp_path/'metadata.json').write_text(text)
    with pytest.raises(DataError) as e: read_metadata(tmp_path)
    assert 'metadata.json' in str(e.value)

def test_write_metadata_refuses_what_could_not_be_read(tmp_path):
    def files(**change): return [dict(file_metadata=dict(scene_id='a', data_type='long'), tiles=[dict(tile_id='t', pt_path='t.pt') | change])]
    for bad in (dict(pt_path='../t.pt'), dict(pt_path='/t.pt'), dict(tile_id='a/b'), dict(data_type='short')):
        with pytest.raises(DataError): write_metadata(tmp_path/'metadata.json', files(**bad))
    assert not list(tmp_path.iterdir())
    write_metadata(tmp_path/'metadata.json', files(mean=np.float32(.5), size=(3, 4), pt_path=tmp_path/'t.pt'), timestamp='now')
    meta = read_json(tmp_path/'metadata.json')
    assert meta['timestamp'] == 'now' and meta['files'][0]['tiles'] == [dict(tile_id='t', pt_path='t.pt', mean=.5, size=[3, 4])]
    with pytest.raises(ValueError): write_metadata(tmp_path/'metadata.json', files(mean=float('nan')))

# tiles that are none

def save(path, o):
    torch.save(o, path)
    return path

class Program:
    def __reduce__(self): return os.mkdir,('a_program_ran',)

def test_no_program_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match='nothing was run'): read_tile(save('x.pt', Program()))
    with pytest.raises(DataError): read_tile(save('x.pt', [torch.zeros(3, 4, 4), Program()]))
    assert not Path('a_program_ran').exists()

def test_damaged_tiles_are_errors_never_zeros(tmp_path):
    "Cut or changed anywhere, a tile is a DataError or a tensor of its own kind."
    whole,rng = save(tmp_path/'w.pt', picture(0)).read_bytes(),np.random.default_rng(0)
    for n in [0, 1, 100, *rng.integers(0, len(whole), 30).tolist(), len(whole)-1]:
        (tmp_path/'x.pt').write_bytes(whole[:n])
        with pytest.raises(DataError, match='x.pt'): read_tile(tmp_path/'x.pt')
    for _ in range(60):
        noisy = bytearray(whole)
        for i in rng.integers(0, len(whole), 8): noisy[i] = rng.integers(256)
        (tmp_path/'x.pt').write_bytes(noisy)
        try: x = read_tile(tmp_path/'x.pt')
        except DataError: continue
        assert x.dtype == torch.float32 and x.ndim == 3 and (x != 0).any()

@pytest.mark.filterwarnings('ignore:Validating sparse')
@pytest.mark.parametrize('make_one,fault', [(lambda x: x.half(), 'float16'), (lambda x: x.double(), 'float64'), (lambda x: (x*99).byte(), 'uint8'), (lambda x: x[0], 'shape'),
    (lambda x: x[None], 'shape'), (lambda x: x[:, :0], 'shape'), (lambda x: dict(x=x), 'dict'), (lambda x: None, 'NoneType'), (lambda x: x.to_sparse(), 'plain'),
    (lambda x: torch.zeros(3, 9, 9, device='meta'), 'plain'), (lambda x: torch.zeros(1).expand(3, 10**6, 10**6), 'declares')])
def test_what_is_no_tile(tmp_path, make_one, fault):
    with pytest.raises(DataError, match=fault): read_tile(save(tmp_path/'x.pt', make_one(picture(0))))

def test_unusual_tensors_are_read_as_they_are(tmp_path):
    x = picture(0)
    for o in (torch.nn.Parameter(x), torch.stack([x, x])[1], x.transpose(1, 2).contiguous().transpose(1, 2), x.to(memory_format=torch.contiguous_format)):
        y = read_tile(save(tmp_path/'x.pt', o))
        assert (y == x).all() and y.is_contiguous() and not y.requires_grad and y.untyped_storage().nbytes() == 4*x.numel()
    torch.save(x, tmp_path/'old.pt', _use_new_zipfile_serialization=False)
    assert (read_tile(tmp_path/'old.pt') == x).all()

@pytest.mark.parametrize('make_one,fault', [(lambda x: x*1.5, 'outside of'), (lambda x: x.where(x < x.max(), torch.tensor(torch.nan)), 'not finite'),
    (lambda x: x - torch.inf, 'not finite'), (lambda x: x*0, 'constant'), (lambda x: x*0 + .3, 'constant'), (lambda x: x[:2], '2 channels'),
    (lambda x: torch.cat([x, x[:1]]), '4 channels, its metadata say 3'), (lambda x: x[:, :8], 'has the shape'), (lambda x: x.half(), 'float16')])
def test_one_bad_tile_is_found_and_named(data, make_one, fault):
    tiles = read_metadata(data)
    save(tiles[9].path, make_one(picture(40)))
    with pytest.raises(DataError, match=fault) as e: check_lowlight(data, report=data/'report.json', progress=False)
    assert Path(e.value.file).name == tiles[9].path.name
    written = read_json(data/'report.json')
    assert not written['ok'] and {Path(r['file']).name for r in written['errors']} == {tiles[9].path.name}
    rest = check_lowlight(data, on_bad='skip', progress=False)
    assert len(rest.tiles) == 15 and rest.warnings and rest.ok and tiles[9].path not in [t.path for t in rest.tiles]

def test_duplicates(data):
    tiles = read_metadata(data)
    tiles[5].path.write_bytes(tiles[0].path.read_bytes())
    save(tiles[6].path, tiles[1].read().clone()) # another file, the same values
    report = validate_tiles(tiles, on_bad='report', progress=False)
    assert [(Path(f.file).name, f.fault) for f in report.errors] == [(tiles[j].path.name, f'has the same content as {tiles[i].id} of train') for i,j in ((0, 5), (1, 6))]
    report = validate_tiles([*tiles[:4], replace(tiles[7], id=tiles[3].id)], on_bad='report', progress=False)
    assert [f.fault for f in report.errors] == [f'has the same id as {tiles[3].id} of train']

def test_a_report_is_written_whole_and_the_same_each_time(data):
    texts = set()
    for workers in (1, 4):
        check_lowlight(data, report=data/'r.json', workers=workers, progress=False)
        texts.add((data/'r.json').read_text())
    assert len(texts) == 1 and not list(data.glob('.*'))

def test_a_set_without_clean_training_tiles(tmp_path):
    make(tmp_path, {'20001': 'val', '10003': 'test'})
    with pytest.raises(DataError, match='leaves no good clean tile for training'): check_lowlight(tmp_path, progress=False)
    with pytest.raises(DataError, match='holds no metadata.json'): find_metadata(tmp_path/'pt_tiles')

# the packed store

def test_sixteen_bits():
    rng = np.random.default_rng(0)
    x = np.float32(rng.uniform(-1.1, 1.1, 200_000))
    err = np.abs(np.float64(dequantise(quantise(x))) - x)
    assert err.max() <= ROUNDING and np.abs(err.mean() - .25/STEPS) < .01*.25/STEPS # uniform in 0 … half a step
    codes = np.arange(65536, dtype=np.uint16)
    inside = np.abs(dequantise(codes)) <= 1.1
    assert (quantise(dequantise(codes[inside])) == codes[inside]).all() and inside.sum() == 2*int(1.1*STEPS) + 1
    for bad in (np.nextafter(np.float32(1.1001), 2), -1.2, np.nan, -np.inf):
        with pytest.raises(ValueError): quantise(np.float32([0, bad]))

@pytest.mark.parametrize('dtype', ['uint16', 'float32'])
@pytest.mark.parametrize('channels', [3, 4, 9])
def test_a_store_gives_back_what_was_packed(tmp_path, dtype, channels):
    rng,tiles = np.random.default_rng(0),[]
    for i in range(7):
        write_tile(tmp_path/f'{i}.pt', np.float32(rng.uniform(-1.1, 1.1, (channels, 6, 10))))
        tiles.append(dict(tile_id=f'{i}', pt_path=f'{i}.pt', scene_id=f'{i//2}', data_type='short' if i % 2 else 'long', exposure_time='1/30'))
    write_metadata(tmp_path/'metadata.json', [dict(file_metadata={}, tiles=tiles)])
    tiles = read_metadata(tmp_path)
    store,x = pack_tiles(tmp_path, tmp_path/'store', dtype, progress=False),torch.stack([t.read() for t in tiles])
    for _ in range(20):
        ids = rng.integers(0, 7, rng.integers(1, 12)).tolist()
        got = store.batch(ids)
        assert got.dtype == torch.float32 and (got - x[ids]).abs().max() <= (ROUNDING if dtype == 'uint16' else 0)
        assert all((store[i] == g).all() for i,g in zip(ids, got)) and (store.batch([f'{i}' for i in ids]) == got).all()
    got[:] = 0 # a copy: the store does not change
    assert (store[0] - x[0]).abs().max() <= ROUNDING
    assert [(r['id'], r['split'], r['clean'], r['exposure']) for r in store.index] == [(t.id, t.split, t.clean, t.exposure) for t in tiles]
    assert store.batch([]).shape == (0, channels, 6, 10)

def test_a_killed_packing_leaves_the_old_store(data):
    tiles = read_metadata(data)
    store = pack_tiles(tiles[:4], data/'store', progress=False)
    def quantise_and_die(x, n=[0]):
        n[0] += 1
        if n[0] == 6: os.kill(os.getpid(), 9)
        return quantise(x)
    if (pid := os.fork()) == 0:
        shards.quantise = quantise_and_die
        try: pack_tiles(tiles, data/'store', progress=False)
        finally: os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 9
    assert len(list((data/'store').iterdir())) == 4 # what the killed one left aside
    again = TileStore(data/'store')
    assert len(again) == 4 and again.verify().ok and (again.batch(range(4)) == store.batch(range(4))).all()
    whole = pack_tiles(tiles, data/'store', progress=False)
    assert len(whole) == 16 and whole.verify().ok and len(list((data/'store').iterdir())) == 3

def test_a_damaged_store(data):
    store = pack_tiles(data, data/'store', progress=False)
    bands = next((data/'store').glob('bands-*.bin'))
    with pytest.raises(DataError, match='bytes where the index says'):
        os.truncate(bands, bands.stat().st_size - 2)
        TileStore(data/'store')
    assert not store.verify().ok
    store = pack_tiles(data, data/'store', progress=False) # what is broken is built anew
    assert store.verify().ok
    index = read_json(data/'store/index.json')
    for change in (dict(tag='x'), dict(tag='3'), dict(tag='{"kind": "lowlight tiles"}'), dict(tag=index['tag'].replace('29788', '29787')), dict(tag='['*10**5)):
        write_json(index | change, data/'store/index.json')
        with pytest.raises(DataError, match='index.json'): TileStore(data/'store')

def test_tiles_are_picklable_and_selectable(data):
    import pickle
    tiles = read_metadata(data)
    again = pickle.loads(pickle.dumps(tiles))
    assert list(again) == list(tiles) and again.counts == tiles.counts and isinstance(tiles.select(clean=True), Tiles)
    loader = torch.utils.data.DataLoader(TileSet(tiles.select('train', True)), batch_size=4, num_workers=1)
    assert next(iter(loader)).shape == (4, 3, 16, 16)
