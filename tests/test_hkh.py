'HKH patches under fire: a preparation killed at any moment ends with the same bytes, and every broken patch is one clear error.'
import json, os, signal, sys, time
import numpy as np, pytest, torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders
from omegaconf import OmegaConf
import clearsight_nb.glacier.hkh_store as hkh_store
from clearsight_nb.core.files import DataError, IGNORE
from clearsight_nb.core.recipe import load_recipe
from clearsight_nb.core.store import BandStore
from clearsight_nb.core.training import fit_recipe, recipe_learner, save_weights
from clearsight_nb.glacier.hkh import check_hkh, find_hkh, hkh_sample, hkh_split, read_hkh
from clearsight_nb.glacier.hkh_store import hkh_info, prepare_hkh
from clearsight_nb.glacier.pretrain import KnownClasses
from clearsight_nb.glacier.transfer import transfer_weights

SIZE = 48
KW = dict(size=SIZE, valid=.25, progress=False)

@pytest.fixture(scope='module')
def original(tmp_path_factory): return hkh_sample(tmp_path_factory.mktemp('hkh'), patches=40, size=SIZE)

@pytest.fixture(scope='module')
def whole(original, tmp_path_factory):
    "What an undisturbed preparation leaves"
    dest = tmp_path_factory.mktemp('whole')
    prepare_hkh(original, dest, **KW)
    return contents(dest)

@pytest.fixture
def data(tmp_path): return hkh_sample(tmp_path/'data', patches=8, size=SIZE)

def contents(folder): return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob('*')) if f.is_file()}
def img(data, s=1, k=0): return data/'slices'/f'slice_{s}_img_{k:03}.npy'
def mask(data, s=1, k=0): return data/'slices'/f'slice_{s}_mask_{k:03}.npy'

# --- killed -------------------------------------------------------------------

JOB = '''
import os, signal, sys
import clearsight_nb.glacier.hkh_store as m
from pathlib import Path
source, dest, at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
count, events = [0], ('fsync', 'replace', 'rename', 'unlink')
def tick(event, args): # dies at the at-th system call that makes something lasting
    count[0] += 1
    if count[0] == at: os.kill(os.getpid(), signal.SIGKILL)
def wrap(name):
    real = getattr(os, name)
    def call(*args, **kw):
        tick(name, args)
        return real(*args, **kw)
    setattr(os, name, call)
for name in events: wrap(name)
m.prepare_hkh(source, dest, size=48, valid=.25, progress=False)
print('calls', count[0])
'''

def start_job(source, dest, at):
    "Prepare in a child that kills itself at lasting call number `at`; its process id"
    pid = os.fork()
    if pid==0:
        code = 1
        try:
            sys.argv = ['job', str(source), str(dest), str(at)]
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            exec(JOB, {})
            code = 0
        finally: os._exit(code)
    return pid

def fork_job(source, dest, at):
    "Exit status of such a child; negative for a signal"
    return os.waitstatus_to_exitcode(os.waitpid(start_job(source, dest, at), 0)[1])

def test_killed_at_every_lasting_call(original, whole, tmp_path):
    "Kill at the 1st, 2nd, 3rd, … fsync, rename or deletion; the next call finishes with the same bytes, whatever was there"
    at = 0
    while True:
        at += 1
        dest = tmp_path/str(at)
        status = fork_job(original, dest, at)
        if status==0: break
        assert status==-signal.SIGKILL
        prepare_hkh(original, dest, **KW)
        assert contents(dest)==whole
    assert at>20

def test_killed_again_and_again(original, whole, tmp_path):
    "A machine that dies every few calls gets there in the end"
    lives = [fork_job(original, tmp_path/'s', 9) for _ in range(8)]
    assert lives[0]==-signal.SIGKILL and lives[-1]==0
    assert contents(tmp_path/'s')==whole

def test_killed_by_time(original, whole, tmp_path):
    "A process killed from outside, at some moment"
    for wait in (.005, .02, .05, .1, .2):
        dest = tmp_path/str(wait)
        pid = start_job(original, dest, 0)
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        prepare_hkh(original, dest, **KW)
        assert contents(dest)==whole

def interrupted(original, dest, monkeypatch, after=20):
    "Leave a preparation that stopped after some patches"
    real,n = hkh_store.read_hkh,[0]
    def read(*args):
        n[0] += 1
        if n[0]>after: raise KeyboardInterrupt
        return real(*args)
    with monkeypatch.context() as m:
        m.setattr(hkh_store, 'read_hkh', read)
        with pytest.raises(KeyboardInterrupt): prepare_hkh(original, dest, **KW)
    return dest/'preparing'

@pytest.mark.parametrize('spoil', ['torn line', 'lost data', 'too much data', 'garbage journal', 'no journal', 'no labels'])
def test_damaged_leftovers(original, whole, tmp_path, monkeypatch, spoil):
    "After a power cut anything may be short or torn; what cannot be believed is made again"
    work = interrupted(original, tmp_path, monkeypatch)
    journal,bands,labels = work/'journal.jsonl',work/'bands.bin',work/'labels.bin'
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines)==3
    if spoil=='torn line': journal.write_bytes(b''.join(lines)[:-7])
    if spoil=='lost data': bands.write_bytes(bands.read_bytes()[:-100])
    if spoil=='too much data': labels.write_bytes(labels.read_bytes() + b'x'*777)
    if spoil=='garbage journal': journal.write_bytes(b'\x00\xff{{' + os.urandom(50))
    if spoil=='no journal': journal.unlink()
    if spoil=='no labels': labels.unlink()
    prepare_hkh(original, tmp_path, **KW)
    assert contents(tmp_path)==whole

def test_other_plan_begins_anew(original, tmp_path, monkeypatch, capsys):
    interrupted(original, tmp_path, monkeypatch)
    store = prepare_hkh(original, tmp_path, channels=(0,1,2,4,6), **KW)
    assert 'going on' not in capsys.readouterr().out
    p = find_hkh(original)[0][0]
    y = read_hkh(p, (0,1,2,4,6), SIZE)[1]
    assert np.array_equal(store.labels[0], y)

def test_changed_source_is_seen(data, tmp_path):
    first = prepare_hkh(data, tmp_path/'s', **KW)
    x = np.load(img(data))
    x[...,0] += 9
    np.save(img(data), x)
    second = prepare_hkh(data, tmp_path/'s', **KW)
    assert second.index['token']!=first.index['token'] and not np.array_equal(second.crop('slice_1_000'), first.crop('slice_1_000'))
    assert len(list((tmp_path/'s').glob('bands-*.bin')))==1

def test_other_split_keeps_the_store(data, tmp_path, capsys):
    prepare_hkh(data, tmp_path/'s', **KW)
    before = {k: v for k,v in contents(tmp_path/'s').items() if k!='hkh.json'}
    capsys.readouterr()
    folds = [len(hkh_info(prepare_hkh(data, tmp_path/'s', **KW | dict(valid=v))).fold.valid) for v in (.25, .5, .25)]
    assert folds==[2, 4, 2] and capsys.readouterr().out==''
    assert {k: v for k,v in contents(tmp_path/'s').items() if k!='hkh.json'}==before

# --- broken -------------------------------------------------------------------

def save(file, x): np.save(file, x)
def edit(file, f):
    x = np.load(file)
    np.save(file, f(x))
def poke(x):
    x[3,4,0] = 7
    return x

FAULTS = { # what is wrong: (how to do it, file, words in the fault)
    'image too wide': (lambda d: save(img(d), np.zeros((SIZE, SIZE+1, 15), np.float32)), 'slice_1_img_000', '48×49×15, not 48×48×15'),
    'channels first': (lambda d: save(img(d), np.zeros((15, SIZE, SIZE), np.float32)), 'slice_1_img_000', '15×48×48'),
    'five channels': (lambda d: save(img(d), np.zeros((SIZE, SIZE, 5), np.float32)), 'slice_1_img_000', '48×48×5'),
    'two dimensions': (lambda d: save(mask(d), np.zeros((SIZE, SIZE), np.uint8)), 'slice_1_mask_000', '48×48, not 48×48×2 or 3'),
    'mask of four channels': (lambda d: save(mask(d), np.zeros((SIZE, SIZE, 4), np.uint8)), 'slice_1_mask_000', '48×48×4'),
    'mask value 7': (lambda d: edit(mask(d), poke), 'slice_1_mask_000', 'holds 7'),
    'mask of NaN': (lambda d: save(mask(d), np.full((SIZE, SIZE, 2), np.nan)), 'slice_1_mask_000', 'holds nan'),
    'mask of no convention': (lambda d: save(mask(d), np.stack([np.zeros((SIZE, SIZE))] + 2*[np.ones((SIZE, SIZE))], -1)), 'slice_1_mask_000', 'neither'),
    'empty file': (lambda d: img(d).write_bytes(b''), 'slice_1_img_000', 'is empty'),
    'cut in the header': (lambda d: img(d).write_bytes(img(d).read_bytes()[:40]), 'slice_1_img_000', 'truncated'),
    'cut in the data': (lambda d: img(d).write_bytes(img(d).read_bytes()[:-1]), 'slice_1_img_000', 'truncated'),
    'random bytes': (lambda d: mask(d).write_bytes(np.random.default_rng(0).bytes(999)), 'slice_1_mask_000', 'no .npy'),
    'archive': (lambda d: np.savez(open(mask(d), 'wb'), a=np.zeros(3)), 'slice_1_mask_000', 'archive'),
    'objects': (lambda d: np.save(img(d), np.array([[{}]]), allow_pickle=True), 'slice_1_img_000', 'no .npy'),
    'text': (lambda d: save(img(d), np.full((SIZE, SIZE, 15), 'x')), 'slice_1_img_000', 'not numbers'),
    'no mask': (lambda d: mask(d).unlink(), 'slice_1_img_000', 'no mask twin'),
    'no image': (lambda d: img(d).unlink(), 'slice_1_mask_000', 'no img twin'),
    'not in the geojson': (lambda d: [os.rename(f(d), f(d, 7)) for f in (img, mask)], 'slice_7_img_000', 'no known scene')}

@pytest.mark.parametrize('fault', FAULTS)
def test_broken_patch(data, tmp_path, fault):
    "Reported by the check, an error in the preparation or a listed skip; the other patches are fine"
    spoil,file,words = FAULTS[fault]
    spoil(data)
    report = check_hkh(data, SIZE, progress=False)
    assert [(file in e.file, words in e.fault) for e in report.errors]==[(True, True)]
    assert len(report.patches)==7 and all(e.mend for e in report.errors)
    with pytest.raises(DataError) as e: prepare_hkh(data, tmp_path/'raise', **KW)
    assert file in str(e.value) and words in e.value.fault
    store = prepare_hkh(data, tmp_path/'skip', on_bad='skip', **KW)
    assert len(store)==7 and not any(n in store.names for n in ('slice_1_000', 'slice_7_000'))

def test_all_faults_at_once(data):
    img(data).write_bytes(b'')
    mask(data, 2).unlink()
    save(img(data, 3), np.zeros((9, 9, 15)))
    assert len(check_hkh(data, SIZE, progress=False).errors)==3

def test_goes_on_after_mending(data, tmp_path, capsys):
    "A fault in pixels stops the preparation; what was done stays done"
    good = mask(data, 3, 1).read_bytes()
    stat = mask(data, 3, 1).stat()
    bad = bytearray(good)
    bad[-1] = 9
    mask(data, 3, 1).write_bytes(bytes(bad))
    with pytest.raises(DataError, match='holds 9'): prepare_hkh(data, tmp_path/'s', **KW)
    mask(data, 3, 1).write_bytes(good)
    os.utime(mask(data, 3, 1), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(prepare_hkh(data, tmp_path/'s', **KW))==8

def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match='does not exist'): check_hkh(tmp_path/'nowhere', progress=False)
    (tmp_path/'empty').mkdir()
    with pytest.raises(DataError, match='no pair'): check_hkh(tmp_path/'empty', progress=False).raise_errors()
    with pytest.raises(DataError, match='no pair'): prepare_hkh(tmp_path/'empty', tmp_path/'s', on_bad='skip', progress=False)
    assert not (tmp_path/'s').exists()

@pytest.mark.parametrize('text', ['', '{"features": 3}', '[]', '{"features": [{"properties": null}]}', '{"features": [7]}', '\x00'])
def test_broken_geojson(data, text):
    (data/'slices'/'slices.geojson').write_text(text)
    try: report = check_hkh(data, SIZE, content=False, progress=False)
    except DataError as e: assert 'slices.geojson' in str(e)
    else: assert report.errors or report.warnings

# --- unusual but right ----------------------------------------------------------

def test_no_metadata(data):
    "Scenes come from the names, with a warning"
    (data/'slices'/'slices.geojson').unlink()
    patches,report = find_hkh(data)
    assert {p.scene for p in patches}=={f'slice_{s}' for s in range(4)} and {p.sensor for p in patches}=={'unknown'}
    assert report.ok and len(report.warnings)==1

def test_copies_in_splits(data):
    (data/'splits'/'train').mkdir(parents=True)
    for f in (img(data), mask(data)): (data/'splits'/'train'/f.name).write_bytes(f.read_bytes())
    patches,report = find_hkh(data)
    assert len(patches)==8 and report.facts['copies left out']==1 and all(p.img.parent.name=='slices' for p in patches)

def test_images_and_masks_folders(data):
    "The layout that torchrs reads"
    for kind,folder in (('img', 'images'), ('mask', 'masks')):
        (data/folder).mkdir()
        for f in (data/'slices').glob(f'*_{kind}_*.npy'): f.rename(data/folder/f.name)
    assert [p.name for p in find_hkh(data)[0]][:2]==['slice_0_000', 'slice_0_001']

def test_mask_forms_agree(tmp_path):
    labels = {k: [read_hkh(p, size=SIZE)[1] for p in find_hkh(hkh_sample(tmp_path/k, patches=8, size=SIZE, masks=k))[0]] for k in ('two','union','onehot')}
    for k in ('union','onehot'): assert all(np.array_equal(a, b) for a,b in zip(labels['two'], labels[k]))

@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16', 'float32'])
def test_number_types(data, tmp_path, dtype):
    store = prepare_hkh(data, tmp_path/dtype, dtype=dtype, **KW)
    assert store.dtype==dtype
    for p in find_hkh(data)[0]:
        x,y,_ = read_hkh(p, (0,1,2,4,5), SIZE)
        want = x if dtype=='float32' else np.rint(x).clip(1, np.iinfo(dtype).max)*(y!=IGNORE)
        assert np.array_equal(store.crop(p.name), want)

def test_other_scale_is_refused(data, tmp_path):
    "16-bit counts do not silently become 255"
    for s in range(4):
        for k in range(2): edit(img(data, s, k), lambda x: x*257)
    with pytest.raises(DataError, match='outside of 0 to 255'): prepare_hkh(data, tmp_path/'s', **KW)
    assert len(prepare_hkh(data, tmp_path/'s', dtype='uint16', **KW))==8

def test_mostly_nodata_is_left_out(data, tmp_path):
    def blank(x):
        x[...,:13] = np.nan
        return x
    edit(img(data), blank)
    store = prepare_hkh(data, tmp_path/'s', **KW)
    assert len(store)==7 and hkh_info(store).skipped=={'slice_1_000': 'data in only 0.0% of its pixels'}
    assert len(check_hkh(data, SIZE, progress=False).warnings)==1

def test_infinity_is_nodata(data):
    def spike(x):
        x[0,0,0],x[0,1,4] = np.inf,-np.inf
        return x
    edit(img(data), spike)
    x,y,_ = read_hkh(find_hkh(data)[0][2], (0,1,2,4,5), SIZE)
    assert (y[0,:2]==IGNORE).all() and np.isfinite(x).all() and not x[:,0,:2].any()

def test_statistics_by_sensor(tmp_path):
    "Two sensors: statistics of each, and each patch scaled by its own"
    data = hkh_sample(tmp_path/'d', patches=24, size=SIZE, scenes=6)
    f = data/'slices'/'slices.geojson'
    geo = json.loads(f.read_text())
    for o in geo['features']:
        if int(o['properties']['img_slice'].split('slice_')[1].split('_')[0])<3: o['properties']['img_source'] = o['properties']['img_source'].replace('LE07', 'LT05')
    f.write_text(json.dumps(geo))
    store = prepare_hkh(data, tmp_path/'s', **KW)
    info = hkh_info(store)
    assert set(info.statistics)=={'LE07', 'LT05'}
    for s,st in info.statistics.items():
        x = np.concatenate([store.crop(n)[:, store.labels[store.rows[n]]!=IGNORE] for n in info.fold.train if info.patches[n]['sensor']==s], 1)
        assert np.allclose(st.mean, x.mean(1)) and np.allclose(st.std, x.std(1))

def test_split_is_by_scene():
    "35 scenes of very different size: no scene on both sides, and the shares near what was asked for"
    rng = np.random.default_rng(0)
    scenes = {f'slice_{s}_{k:03}': f'LE07_{s}' for s in range(35) for k in range(int(rng.integers(120, 280)))}
    counts = {n: [1000, int(rng.integers(9)), int(s[5:])%4] for n,s in scenes.items()}
    assert len({tuple(hkh_split(scenes, counts, .15, s).valid) for s in range(3)})==3
    for seed in range(3):
        fold = hkh_split(scenes, counts, .15, seed)
        assert not {scenes[n] for n in fold.train} & {scenes[n] for n in fold.valid}
        assert sorted(fold.train + fold.valid)==sorted(scenes)
        assert .1 < len(fold.valid)/len(scenes) < .2
        assert .1 < sum(counts[n][2] for n in fold.valid)/sum(c[2] for c in counts.values()) < .2

def test_store_of_others(data, tmp_path):
    "A store that was swapped under its description is noticed"
    a,b = prepare_hkh(data, tmp_path/'a', **KW),prepare_hkh(data, tmp_path/'b', channels=(0,1,2,4,6), **KW)
    for f in ('hkh.json', 'patches.json'):
        was = (a.folder/f).read_bytes()
        (a.folder/f).write_bytes((b.folder/f).read_bytes())
        with pytest.raises(DataError, match='belongs to another store'): hkh_info(BandStore.open(a.folder))
        (a.folder/f).write_bytes(was)
    assert len(hkh_info(a).patches)==8

# --- transfer -------------------------------------------------------------------

class Net(torch.nn.Module):
    def __init__(self, bands=5, classes=4):
        super().__init__()
        self.stem,self.segmentation_head = torch.nn.Conv2d(bands, 8, 3, padding=1),torch.nn.Conv2d(8, classes, 1)
    def forward(self, x): return self.segmentation_head(self.stem(x).relu())

class Trap:
    def __reduce__(self): return os.mkdir, ('sprung',)

def test_pickles_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'model': Trap()}, 'trap.pt')
    with pytest.raises(DataError, match='trap.pt'): transfer_weights(Net(), 'trap.pt')
    assert not (tmp_path/'sprung').exists()

@pytest.mark.parametrize('spoil', ['missing', 'empty', 'cut', 'text', 'list', 'no tensors'])
@pytest.mark.parametrize('end', ['pt', 'safetensors'])
def test_broken_weights(tmp_path, spoil, end):
    file,net = tmp_path/f'weights.{end}',Net()
    if end=='pt': torch.save(net.state_dict(), file)
    else: save_weights(file, net.state_dict(), OmegaConf.create(dict(task='glacier', name='x')))
    assert transfer_weights(Net(), file).share==1
    if spoil=='missing': file.unlink()
    if spoil=='empty': file.write_bytes(b'')
    if spoil=='cut': file.write_bytes(file.read_bytes()[:-200])
    if spoil=='text': file.write_text('weights')
    if spoil=='list': torch.save([1, 2], file)
    if spoil=='no tensors': torch.save({'a': 3}, file)
    with pytest.raises(DataError, match='weights'): transfer_weights(Net(), file)

def trained(folder, **kw):
    "A short pretraining of a small network, with decay, EMA, and checkpoints after each step"
    recipe = load_recipe('glacier', 'demo', overrides=['training.steps=7', 'training.weight_decay=1', 'training.ema_decay=0.9', 'training.lr=0.05', 'training.precision=float32',
        'training.accumulate=2', 'training.monitor=valid_loss', 'training.checkpoint_steps=1', 'training.keep_steps=true', 'training.workers=0'])
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(2, 5, 8, 8, generator=g), torch.randint(3, (2, 8, 8), generator=g)) for _ in range(6)]
    torch.manual_seed(kw.pop('seed', 3))
    learn = recipe_learner(DataLoaders(batches, batches[:1], device='cpu'), Net(), CrossEntropyLossFlat(axis=1), [], recipe, run_dir=folder, cbs=[KnownClasses()])
    start = [p.detach()[3].clone() for p in learn.model.segmentation_head.parameters()]
    with learn.no_logging(), learn.no_bar(): fit_recipe(learn, **kw)
    return learn,start

def test_lake_row_survives_a_resume(tmp_path):
    "A run resumed from the middle, in a process with other first weights, keeps the row of the run it continues"
    learn,start = trained(tmp_path/'a', resume=False)
    want = learn.model.state_dict()
    assert all(torch.equal(p[3], s) for p,s in zip(learn.model.segmentation_head.parameters(), start))
    steps = tmp_path/'a'/'checkpoints'
    (steps/'latest.pt').write_bytes((steps/'step_4.pt').read_bytes())
    (tmp_path/'a'/'weights.safetensors').unlink()
    again,_ = trained(tmp_path/'a', seed=99)
    assert all(torch.equal(v, want[k]) for k,v in again.model.state_dict().items())
    receipt = transfer_weights(torch.nn.DataParallel(Net()), steps/'best.pt', bands=['blue','green','red','swir1','tir'])
    assert (receipt.share, receipt.left_out)==(1, [])
    with pytest.raises(DataError, match='trained on 5 bands.*takes 7'): transfer_weights(Net(7), steps/'latest.pt')
    with pytest.raises(DataError, match='task glacier, this is weather'): transfer_weights(Net(), steps/'latest.pt', task='weather')
