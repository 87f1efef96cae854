"What the notebook of the glacier sample cannot show: killed writers, hostile markers, other readers, other processes."
import json,os,signal,subprocess,sys,time
from pathlib import Path
import numpy as np, pytest, tifffile
from conftest import light
from clearsight_nb.core.files import DataError
from clearsight_nb.glacier.sample import glacier_sample,glacier_scene

SMALL = dict(tiles=4, size=64, seed=3)
def contents(root): return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(Path(root).rglob('*')) if p.is_file()}
def start(dest, **env): return subprocess.Popen([sys.executable, '-c', light('glacier') + 'from clearsight_nb.glacier.sample import glacier_sample\n'
    f'glacier_sample({str(dest)!r}, **{SMALL!r})'], env=dict(os.environ, **env))

def test_other_process_same_bytes(tmp_path):
    assert start(tmp_path/'a', PYTHONHASHSEED='1').wait()==0
    assert contents(tmp_path/'a') == contents(glacier_sample(tmp_path/'b', **SMALL))

@pytest.mark.parametrize('files', [1, 9, 20])
def test_killed_writer(tmp_path, files):
    "A sample killed while files appear is not taken for complete, and the next call makes it whole."
    dest = tmp_path/'a'
    p = start(dest)
    while p.poll() is None and len(list(dest.glob('Train/*/*.tif')))<files: time.sleep(.0005)
    p.send_signal(signal.SIGKILL); p.wait()
    finished = json.loads((dest/'sample.json').read_text())['complete']
    assert not finished or len(list(dest.glob('Train/*/*.tif')))==24
    (dest/'Train/Band1/.img001.tif.0123abcd.tmp').write_bytes(b'left over')
    if finished: (dest/'Train/Band1/img001.tif').unlink()
    assert contents(glacier_sample(dest, **SMALL)) == contents(glacier_sample(tmp_path/'b', **SMALL))

def test_full_marker_but_files_gone(tmp_path):
    root = glacier_sample(tmp_path/'a', **SMALL)
    whole = contents(root)
    (root/'Train/labels/img004.tif').unlink()
    (root/'Train/Band5/img001.tif').write_bytes(b'')
    assert contents(glacier_sample(root, **SMALL)) == whole

@pytest.mark.parametrize('text', ['', '{"complete": tr', '[1, 2]', '{"what": "something else"}'])
def test_foreign_marker(tmp_path, text):
    (tmp_path/'sample.json').write_text(text)
    with pytest.raises(DataError, match='sample.json'): glacier_sample(tmp_path, **SMALL)
    assert (tmp_path/'sample.json').read_text()==text and not (tmp_path/'Train').exists()

def test_marker_cannot_reach_outside(tmp_path):
    victim = tmp_path/'precious.txt'; victim.write_text('keep')
    (tmp_path/'a').mkdir()
    (tmp_path/'a/sample.json').write_text(json.dumps(dict(what='glacier_sample', complete=False, parameters={}, files=['../precious.txt'])))
    with pytest.raises(DataError, match='goes up'): glacier_sample(tmp_path/'a', **SMALL)
    assert victim.read_text()=='keep'

def test_own_files_beside_stay(tmp_path):
    root = glacier_sample(tmp_path/'a', **SMALL)
    (root/'Train/labels/notes.txt').write_text('mine')
    glacier_sample(root, **{**SMALL, 'naming':'grid'})
    assert (root/'Train/labels/notes.txt').read_text()=='mine'
    assert not list((root/'Train').rglob('img*.tif'))

@pytest.mark.parametrize('compression', [None, 'deflate', 'lzw'])
def test_other_readers(tmp_path, compression):
    from PIL import Image
    f = glacier_sample(tmp_path/'a', compression=compression, **SMALL)/'Train/Band3/img002.tif'
    x = tifffile.imread(f)
    assert x.dtype==np.uint16 and (np.asarray(Image.open(f))==x).all()
    rasterio = pytest.importorskip('rasterio')
    with rasterio.open(f) as r:
        assert (r.read(1)==x).all() and r.crs.to_epsg()==32643 and r.res==(30,30)
        assert r.transform.c==700000+30*64 and r.transform.f==3600000

@pytest.mark.parametrize('tiles,size', [(1,32), (2,33), (3,40), (5,47), (7,100)])
def test_any_count_and_size(tmp_path, tiles, size):
    root = glacier_sample(tmp_path/'a', tiles=tiles, size=size, seed=tiles)
    y = np.stack([tifffile.imread(f) for f in sorted(root.glob('Train/labels/*.tif'))])
    x = np.stack([[tifffile.imread(f) for f in sorted(root.glob(f'Train/Band{b}/*.tif'))] for b in range(1,6)])
    assert y.shape==(tiles,size,size) and x.shape==(5,tiles,size,size)
    share = np.bincount(y.ravel()//85, minlength=4)/y.size
    assert set(np.unique(y))=={0,85,170,255} and np.abs(share-[.7,.25,.05,.0005]).max()<.003
    gone = (x==0).any(0)
    assert (gone==(x==0).all(0)).all() and y[gone].max(initial=0)==0

def test_tiles_are_one_connected_scene(tmp_path):
    s = glacier_scene((128,128), seed=SMALL['seed'])
    root = glacier_sample(tmp_path/'a', **SMALL)
    got = np.block([[tifffile.imread(root/f'Train/Band2/img00{2*r+c+1}.tif') for c in range(2)] for r in range(2)])
    assert (got==s.bands[1]).all()

def test_seeds_differ():
    a,b = (glacier_scene((64,64), seed=i) for i in (0,1))
    assert (a.label!=b.label).mean()>.1
