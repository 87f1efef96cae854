"Bands and store where a notebook cannot show them: killed writers, worker processes, hostile indexes, odd dtypes."
import json, random
import numpy as np, pytest, torch
from clearsight_nb.core.files import DataError
from clearsight_nb.core.store import BandStore

BANDS = ['blue', 'green', 'red']

def tiles(n=3, dtype=np.uint16, seed=0, size=16, labels=True):
    rng = np.random.default_rng(seed)
    for i in range(n):
        x,y = (rng.random((3,size,size))*200 + 1).astype(dtype),rng.integers(0, 4, (size,size), dtype=np.uint8)
        yield f't{i}',x,y if labels else None

def make(folder, **kwargs): return BandStore.create(folder, tiles(**kwargs), BANDS, progress=False)

# --- store

@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16', 'float32', '>u2', '>f4'])
def test_dtype_and_values_are_kept(tmp_path, dtype):
    store = make(tmp_path, dtype=dtype, labels=False)
    assert store.dtype == np.dtype(dtype).newbyteorder('=') and store.labels is None
    for i,(_,x,_) in enumerate(tiles(dtype=dtype)): assert (store.crop(i) == x).all()

def test_strided_tiles_are_stored_right(tmp_path):
    flat = [(n, x.transpose(1,2,0).copy().transpose(2,0,1)[:,::-1], y.T) for n,x,y in tiles()]
    store = BandStore.create(tmp_path, flat, BANDS, progress=False)
    for i,(_,x,y) in enumerate(flat): assert (store.crop(i) == x).all() and (store.labels[i] == y).all()

def test_nodata_counts_zeros_and_nan(tmp_path):
    x = np.ones((3,8,8), np.float32)
    x[:,0,:5],x[1,3,3],x[2,4,4] = 0,np.nan,np.inf
    assert BandStore.create(tmp_path, [('a', x, None)], BANDS, progress=False).nodata == [7]

def test_failing_reader_leaves_the_old_store(tmp_path):
    make(tmp_path)
    def broken():
        yield from tiles(2, seed=1)
        raise OSError('cable pulled')
    with pytest.raises(OSError, match='cable pulled'): BandStore.create(tmp_path, broken(), BANDS, progress=False)
    assert len(list(tmp_path.iterdir())) == 3 and (BandStore.open(tmp_path).crop(0) == next(tiles())[1]).all()

KILLED = '''
import sys, time, numpy as np
from clearsight_nb.core.store import BandStore
def slow():
    for i in range(10**6):
        yield f't{i}',np.full((3,256,256), 7, np.uint16),np.zeros((256,256), np.uint8)
        if i==3: print('writing', flush=True)
        if i>3: time.sleep(.01)
BandStore.create(sys.argv[1], slow(), ['blue','green','red'], progress=False)
'''

def test_killed_writer_leaves_the_old_store_and_its_rubbish_is_swept(python, tmp_path):
    make(tmp_path)
    p = python(KILLED, tmp_path)
    assert p.out.readline() == 'writing\n'
    p.kill()
    p.join()
    assert len(list(tmp_path.iterdir())) > 3, 'the killed writer left something to sweep'
    assert (BandStore.open(tmp_path).crop(0) == next(tiles())[1]).all()
    assert (make(tmp_path, seed=5).crop(0) == next(tiles(seed=5))[1]).all()
    assert len(list(tmp_path.iterdir())) == 3

def test_sweep_spares_strangers(tmp_path):
    for name in ('notes.txt', 'bands-mine.bin', 'bands.bin'): (tmp_path/name).write_text('keep me')
    make(tmp_path)
    make(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6

def test_store_in_a_file_is_refused(tmp_path):
    (tmp_path/'x').write_text('')
    with pytest.raises(DataError, match='holds no store'): BandStore.open(tmp_path/'x')
    with pytest.raises(OSError): make(tmp_path/'x')

def test_hostile_index_gives_one_kind_of_error(tmp_path):
    "Random edits of the index either open to the same data or raise DataError, nothing else."
    make(tmp_path)
    path = tmp_path/'index.json'
    good,rng = path.read_text(),random.Random(0)
    values = [None, -1, 0, 2**70, 1.5, True, 'x', '../x', [], [1], [[]], {}, {'a': 1}, [2**40]*4, ['a', None], 1e999]
    for _ in range(400):
        index = json.loads(good)
        for k in rng.sample(sorted(index), rng.randint(1, 3)): index[k] = rng.choice(values)
        if rng.random() < .1: del index[rng.choice(sorted(index))]
        path.write_text(json.dumps(index))
        try: assert BandStore.open(tmp_path).data.shape == (3,3,16,16)
        except DataError as e: assert e.fault and e.mend
    for text in ('', '[]', '[' * 100_000, good[:-9], 'NaN', '"a"', '\x00'):
        path.write_text(text)
        with pytest.raises(DataError): BandStore.open(tmp_path)
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='not valid JSON'): BandStore.open(tmp_path)

def test_moved_sources_are_the_same_and_a_lost_one_is_named(tmp_path):
    for d in ('a', 'b'): (tmp_path/'in'/d).mkdir(parents=True)
    files = [tmp_path/'in'/d/'1.tif' for d in ('a', 'b')]
    for f in files: f.write_bytes(b'II')
    def build(files): return BandStore.create(tmp_path/'store', tiles(), BANDS, files, progress=False).index['token']
    token = build(files)
    (tmp_path/'in').rename(tmp_path/'elsewhere')
    moved = [tmp_path/'elsewhere'/f.relative_to(tmp_path/'in') for f in files]
    assert build(moved) == token
    assert build(moved[:1]) != token
    moved[0].unlink()
    with pytest.raises(DataError, match='1.tif: cannot be read'): build(moved)

def test_progress_bar_knows_the_number_of_tiles(tmp_path, capsys):
    BandStore.create(tmp_path/'a', list(tiles()), BANDS)
    assert '3/3' in capsys.readouterr().out
    BandStore.create(tmp_path/'b', tiles(), BANDS, total=3)
    assert '3/3' in capsys.readouterr().out
    assert len(BandStore.create(tmp_path/'c', tiles(), BANDS)) == 3  # a generator of unknown length

# --- bands in a DataLoader

class Reader:
    "What a task would write: picklable, so it can travel to workers and into an exported learner."
    def __init__(self, store): self.store = store
    def x(self, o): return self.store.crop(*o, 8, 8)/np.float32(100)
    def y(self, o): return self.store.labels[o[0], o[1]:o[1]+8, o[2]:o[2]+8]

def loaders(store, **kwargs):
    from fastai.vision.all import DataBlock, IndexSplitter
    from clearsight_nb.core.bands import BandsBlock, LabelsBlock
    r,items = Reader(store),[(i,y,x) for i in range(3) for y in (0,8) for x in (0,8)]
    block = DataBlock((BandsBlock(BANDS, r.x), LabelsBlock('abcd', r.y)), splitter=IndexSplitter(range(4)))
    return block.dataloaders(items, bs=4, device=kwargs.pop('device', 'cpu'), **kwargs)

def test_workers_give_what_the_main_process_gives(tmp_path):
    store = make(tmp_path)
    plain,workers = loaders(store),loaders(store, num_workers=1)
    for (x,y),(u,v) in zip(plain.valid, workers.valid):
        assert torch.equal(x, u) and torch.equal(y, v)
        assert u.bands == tuple(BANDS) and v.codes == list('abcd') and type(u) is type(x) and type(v) is type(y)

def test_exported_learner_comes_back_with_its_bands(tmp_path):
    from fastai.vision.all import Learner, CrossEntropyLossFlat, nn, load_learner
    from clearsight_nb.core.bands import BandDropout, BandJitter, D4
    dls = loaders(make(tmp_path/'store'), batch_tfms=[D4(), BandJitter(), BandDropout()])
    learn = Learner(dls, nn.Conv2d(3, 4, 1), CrossEntropyLossFlat(axis=1), path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    learn.export('a.pkl')
    again = load_learner(tmp_path/'a.pkl')
    with learn.no_bar(), again.no_bar(): assert torch.equal(again.predict((0,0,0))[2], learn.predict((0,0,0))[2])

def test_nan_stays_where_it_was():
    from clearsight_nb.core.bands import BandDropout, BandJitter, TensorBands
    x = TensorBands(torch.rand(8,3,4,4) + 1, BANDS)
    x[0,1,2,3] = float('nan')
    for tfm in (BandJitter(), BandDropout(0.)):
        out = tfm(x, split_idx=0)
        assert out.isnan().sum() == 1 and out.isnan()[0,1,2,3]
    void = TensorBands(torch.full((64,3,1,1), float('nan')), BANDS)
    assert not BandDropout(1.)(void, split_idx=0).isnan().all(1).any()

def test_augmentation_draws_are_free_of_numpy_and_python():
    "Each transform repeats under torch's state alone, and moves no other generator."
    from clearsight_nb.core.bands import BandDropout, BandJitter, D4, TensorBands
    x = TensorBands(torch.rand(8,3,4,4), BANDS)
    for tfm in (D4(), D4(p=.5), BandJitter(), BandDropout(.5)):
        state,py,npy = torch.get_rng_state(),random.getstate(),np.random.get_state()[1].copy()
        one = tfm(x, split_idx=0)
        assert random.getstate() == py and (np.random.get_state()[1] == npy).all()
        torch.set_rng_state(state)
        assert torch.equal(one, tfm(x, split_idx=0))

def test_float16_and_channels_last_batches():
    from clearsight_nb.core.bands import BandDropout, BandJitter, D4, TensorBands
    x = TensorBands(torch.rand(8,3,4,4), BANDS)
    for batch in (x.half(), x.to(memory_format=torch.channels_last)):
        for tfm in (D4(), BandJitter(), BandDropout(.5)):
            out = tfm(batch, split_idx=0)
            assert out.dtype == batch.dtype and out.shape == batch.shape and type(out) is TensorBands

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_gpu_draws_equal_cpu_draws(tmp_path):
    from clearsight_nb.core.bands import BandDropout, BandJitter, D4, TensorBands
    x = TensorBands(torch.rand(8,3,4,4), BANDS)
    for tfm in (D4(), BandJitter(), BandDropout(.5)):
        state = torch.get_rng_state()
        cpu = tfm(x, split_idx=0)
        torch.set_rng_state(state)
        gpu = tfm(x.cuda(), split_idx=0)
        assert gpu.is_cuda and torch.allclose(gpu.cpu(), cpu)

def test_all_nodata_tile_can_be_shown():
    import matplotlib.pyplot as plt
    from clearsight_nb.core.bands import TensorBands, composite, show_bands
    assert composite(np.full((3,4,4), np.nan), BANDS).max() == 0
    show_bands(TensorBands(torch.zeros(3,4,4), BANDS))
    plt.close('all')
