'Bad input to the glacier reader: each fault is one clear error, or a listed skip, before training starts.'
import os, re, tracemalloc
import numpy as np, pytest, tifffile
from clearsight_nb.core.files import DataError, IGNORE
from clearsight_nb.glacier.check import check_glacier
from clearsight_nb.glacier.data import BandStack
from clearsight_nb.glacier.tiles import CLASS_NAMES, GLACIER_BANDS, LABEL_VALUES, LabelCodec, read_tif, valid_mask

SIZE = 16
IMG = {**{b: 'img{:03d}.tif' for b in GLACIER_BANDS}, 'labels': 'img{:03d}.tif'}
OLD = {b: f'{l}_{l}_masked_02_{{:02d}}.tif' for b,l in zip(GLACIER_BANDS, ('B2', 'B3', 'B4', 'B6', 'B10'))} | {'label': 'Y02_{:02d}.tif'}

def write_tiles(root, tiles=4, names=IMG, dtype=np.uint16, size=SIZE, **kw):
    "A small good data set: every class in every tile, no nodata"
    rng = np.random.default_rng(0)
    for folder,name in names.items():
        (root/folder).mkdir(parents=True)
        for t in range(1, tiles+1):
            if folder in GLACIER_BANDS: x = rng.integers(1, 120, (size,size)).astype(dtype)
            else: x = np.resize(np.array(LABEL_VALUES, np.uint8), (size,size))
            tifffile.imwrite(root/folder/name.format(t), x, **kw)
    return root

@pytest.fixture
def root(tmp_path): return write_tiles(tmp_path/'data'/'Train').parent

def tif(root, folder, x, tile=2, **kw): tifffile.imwrite(root/'Train'/folder/f'img{tile:03d}.tif', x, **kw)
def band(value=7, dtype=np.uint16, shape=(SIZE,SIZE)): return np.full(shape, value, dtype)

def bad_float(x):
    out = band(5, np.float32)
    out[3,4] = x
    return out

def truncate(root, folder, share=.6, **kw):
    file = root/'Train'/folder/'img002.tif'
    tif(root, folder, np.random.default_rng(1).integers(0, 60000, (64,64)).astype(np.uint16), **kw)
    file.write_bytes(file.read_bytes()[:int(file.stat().st_size*share)])

def all_nodata(root):
    for b in GLACIER_BANDS: tif(root, b, band(0))

def odd_size(root):
    for b in GLACIER_BANDS: tif(root, b, band(shape=(8,8)))
    tif(root, 'labels', band(85, np.uint8, (8,8)))

def label_with(value, dtype=np.uint8):
    y = np.resize(np.array(LABEL_VALUES, dtype), (SIZE,SIZE))
    y[0,0] = value
    return y

# What spoils tile img002 → (what to do to the data, file in the error, words in the fault)
TILE_FAULTS = {
    'tile absent from one band': (lambda r: (r/'Train/Band3/img002.tif').unlink(), 'Band1/img002.tif', 'Band3'),
    'tile absent from all bands but one': (lambda r: [(r/f'Train/Band{i}/img002.tif').unlink() for i in (2,3,4,5)], 'Band1/img002.tif', 'Band2'),
    'tile without a label': (lambda r: (r/'Train/labels/img002.tif').unlink(), 'Band1/img002.tif', 'labels'),
    'band of another size': (lambda r: tif(r, 'Band4', band(shape=(SIZE,SIZE+1))), 'Band4/img002.tif', '16×17'),
    'label of another size': (lambda r: tif(r, 'labels', band(85, np.uint8, (8,8))), 'labels/img002.tif', '8×8'),
    'tile of another size': (odd_size, 'img002', '8×8'),
    'NaN': (lambda r: tif(r, 'Band5', bad_float(np.nan)), 'Band5/img002.tif', 'holds 1 values that are NaN or infinite'),
    'infinity': (lambda r: tif(r, 'Band2', bad_float(np.inf)), 'Band2/img002.tif', 'NaN or infinite'),
    '3-D in pages': (lambda r: tif(r, 'Band1', band(shape=(3,SIZE,SIZE)), photometric='minisblack'), 'Band1/img002.tif', '3-D'),
    '3-D in samples': (lambda r: tif(r, 'Band1', band(dtype=np.uint8, shape=(SIZE,SIZE,3)), photometric='rgb'), 'Band1/img002.tif', '3-D'),
    'complex': (lambda r: tif(r, 'Band1', band(dtype=np.complex64)), 'Band1/img002.tif', 'complex'),
    'label 86': (lambda r: tif(r, 'labels', label_with(86)), 'labels/img002.tif', 'holds 86 where only 0, 85, 170, 255'),
    'label 341 = 85 + 256': (lambda r: tif(r, 'labels', label_with(341, np.uint16)), 'labels/img002.tif', 'holds 341'),
    'label NaN': (lambda r: tif(r, 'labels', label_with(np.nan, np.float32)), 'labels/img002.tif', 'holds nan'),
    'truncated': (lambda r: truncate(r, 'Band2'), 'Band2/img002.tif', 'truncated'),
    'truncated deflate': (lambda r: truncate(r, 'Band2', compression='deflate'), 'Band2/img002.tif', 'truncated'),
    'truncated in the header': (lambda r: truncate(r, 'Band2', .002), 'Band2/img002.tif', 'cannot be read as a TIFF'),
    'zero bytes': (lambda r: (r/'Train/Band1/img002.tif').write_bytes(b''), 'Band1/img002.tif', 'empty (0 bytes)'),
    'not a TIFF': (lambda r: (r/'Train/Band1/img002.tif').write_text('<html>404 Not Found</html>'), 'Band1/img002.tif', 'cannot be read as a TIFF'),
    'a folder named like a tile': (lambda r: [(r/'Train/Band1/img002.tif').unlink(), (r/'Train/Band1/img002.tif').mkdir()], None, 'img002'),
    'all nodata': (all_nodata, 'img002', 'every pixel is nodata'),}

@pytest.mark.parametrize('fault', TILE_FAULTS)
def test_bad_tile(root, fault):
    "By default one error that names file, fault and mend; with on_bad='skip' a listed skip, and the other tiles are kept"
    spoil,file,words = TILE_FAULTS[fault]
    spoil(root)
    with pytest.raises(DataError) as e: check_glacier(root)
    assert words in str(e.value) and e.value.mend
    assert 'more error' not in str(e.value)
    if file: assert e.value.file == file
    report = check_glacier(root, on_bad='skip')
    assert report.stack.names == ['img001', 'img003', 'img004']
    skips = [f for f in report.warnings if 'skipped' in f.mend]
    assert len(skips) == 1 and words in skips[0].fault
    for t in report.stack.names: assert np.isfinite(report.stack.load(t)[0]).all()

def test_good(root):
    report = check_glacier(root)
    assert report.ok and not report.warnings and len(report.stack) == 4
    assert report.facts['nodata'] == '0.00%' and '25.000%, in 4 of 4 tiles' in report.facts['class lake']

# Faults of the whole, which no skip can mend
def drop(folder):
    def f(root):
        for p in (root/'Train'/folder).iterdir(): p.unlink()
        (root/'Train'/folder).rmdir()
    return f

def relabel(root, y):
    for t in range(1, 5): tif(root, 'labels', y, tile=t)

SET_FAULTS = {
    'missing band folder': (drop('Band4'), 'has no folder Band4'),
    'empty band folder': (lambda r: [p.unlink() for p in (r/'Train/Band4').iterdir()], 'holds no .tif file'),
    'no labels': (drop('labels'), "no folder 'labels'"),
    'one class': (lambda r: relabel(r, band(85, np.uint8)), 'all pixels are glacier'),
    'no name in common': (lambda r: [p.rename(p.with_name(f'x{i}.tif')) for i,p in enumerate((r/'Train/Band2').iterdir())], 'no tile is in every folder'),}

@pytest.mark.parametrize('on_bad', ('raise', 'skip'))
@pytest.mark.parametrize('fault', SET_FAULTS)
def test_bad_set(root, fault, on_bad):
    spoil,words = SET_FAULTS[fault]
    spoil(root)
    with pytest.raises(DataError, match=re.escape(words)) as e: check_glacier(root, on_bad=on_bad)
    assert e.value.file and e.value.mend

def test_not_a_folder(root):
    with pytest.raises(DataError, match='is a file, not a folder'): check_glacier(root/'Train/Band1/img001.tif')
    with pytest.raises(DataError, match='no such folder'): check_glacier(root/'nowhere')
    with pytest.raises(DataError, match='has no folder Band1'): check_glacier(root/'Train/Band1')

def test_nothing_left(root):
    for t in range(1, 5): tif(root, 'Band1', band(shape=(3,SIZE,SIZE)), tile=t, photometric='minisblack')
    with pytest.raises(DataError, match='no good tile is left'): check_glacier(root, on_bad='skip')
    with pytest.raises(DataError, match='3 more errors'): check_glacier(root)

def test_nan_as_nodata(root):
    tif(root, 'Band5', bad_float(np.nan))
    tif(root, 'Band2', bad_float(-np.inf))
    report = check_glacier(root, nan='nodata')
    x,y = report.stack.load('img002')
    assert (x[:,3,4] == 0).all() and y[3,4] == IGNORE and (y != IGNORE).sum() == SIZE*SIZE-1
    assert any('1 pixels with NaN' in f.fault for f in report.warnings)

def test_labels_optional(root):
    drop('labels')(root)
    report = check_glacier(root, labels=False)
    assert report.ok and not report.stack.has_labels
    with pytest.raises(DataError, match="no folder 'labels'"): report.stack.load('img001')

def test_unknown_label_ignored(root):
    tif(root, 'labels', label_with(86))
    report = check_glacier(root, codec=LabelCodec(unknown='ignore'))
    assert report.stack.label('img002')[0,0] == IGNORE
    assert any('1 pixels have a value that is no class' in f.fault for f in report.warnings)

def patch_tags(file, **tags):
    with tifffile.TiffFile(file, mode='r+') as t:
        for k,v in tags.items(): t.pages[0].tags[k].overwrite(v)

@pytest.mark.parametrize('tags', (dict(ImageWidth=2**31-1, ImageLength=2**31-1), dict(ImageWidth=10**6, ImageLength=10**6, RowsPerStrip=10**6),
    dict(ImageWidth=11000, ImageLength=11000), dict(RowsPerStrip=2**31-1, ImageLength=2**31-1),
    dict(StripByteCounts=2**31-1)))
@pytest.mark.parametrize('compression', (None, 'deflate', 'lzw'))
def test_header_bomb(root, tags, compression):
    "A header that declares gigabytes is refused before memory is taken"
    tif(root, 'Band1', band(), compression=compression)
    file = root/'Train/Band1/img002.tif'
    patch_tags(file, **tags)
    tracemalloc.start()
    with pytest.raises(DataError): read_tif(file)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()

def test_tile_bomb(root):
    "The same in a tiled TIFF whose blocks, not the image, are huge"
    tif(root, 'Band1', band(), tile=3)
    file = root/'Train/Band1/img003.tif'
    tifffile.imwrite(file, band(), tile=(16,16), compression='deflate')
    patch_tags(file, TileWidth=2**20, TileLength=2**20)
    with pytest.raises(DataError, match='pixels'): read_tif(file)

def test_corrupt_bytes(root):
    "Random damage gives an image or a DataError, never another exception"
    rng,outcome = np.random.default_rng(0),{True: 0, False: 0}
    for compression in (None, 'deflate', 'lzw'):
        tif(root, 'Band1', rng.integers(0, 99, (32,32)).astype(np.uint16), compression=compression)
        good = (root/'Train/Band1/img002.tif').read_bytes()
        for _ in range(60):
            raw = bytearray(good)
            for i in rng.integers(0, len(raw) if rng.random() < .5 else 200, 4): raw[i % len(raw)] = rng.integers(256)
            (root/'x.tif').write_bytes(raw)
            try: ok = read_tif(root/'x.tif').ndim == 2
            except DataError: ok = False
            outcome[ok] += 1
    assert min(outcome.values()) > 5

@pytest.mark.parametrize('dtype', (np.uint8, np.uint16, np.int16, np.float32))
@pytest.mark.parametrize('compression', (None, 'deflate', 'lzw'))
def test_types(tmp_path, dtype, compression):
    stack = check_glacier(write_tiles(tmp_path/'d', dtype=dtype, compression=compression)).stack
    raw = stack.read_raw('img001')
    assert raw.dtype == dtype and raw.shape == (5,SIZE,SIZE)
    assert stack.read('img001').dtype == np.float32 and (stack.read('img001') == raw).all()

@pytest.mark.parametrize('nest', ('.', 'Train', 'Train/Train', 'train'))
@pytest.mark.parametrize('names', (IMG, OLD))
def test_layouts(tmp_path, nest, names):
    write_tiles(tmp_path/nest, names=names)
    stack = check_glacier(tmp_path).stack
    assert len(stack) == 4 and stack.has_labels
    assert stack.grid == ({} if names is IMG else {f'02_{i:02d}': (2,i) for i in range(1,5)})
    assert (stack.label(stack.names[0]) == np.resize(np.arange(4), (SIZE,SIZE))).all()

def test_natural_order(tmp_path):
    names = {f'Band{i}': 'img{}.tif' for i in range(1,12)}
    for d in names:
        (tmp_path/d).mkdir()
        for t in range(1, 12): tifffile.imwrite(tmp_path/d/f'img{t}.tif', band(int(d[4:])))
    stack = BandStack({d: tmp_path/d for d in sorted(names)}, bands=list(names))
    assert stack.names == [f'img{t}' for t in range(1,12)]
    assert stack.read('img1')[:,0,0].tolist() == list(range(1,12))

def test_ambiguous_names(tmp_path):
    write_tiles(tmp_path/'d')
    tifffile.imwrite(tmp_path/'d/Band1/img002.tiff', band())
    with pytest.raises(DataError, match='same key'): BandStack(tmp_path/'d')
    assert BandStack(tmp_path/'d', on_bad='skip').names == ['img001', 'img003', 'img004']

def test_clutter_is_ignored(root):
    for n in ('.DS_Store', '._img001.tif', 'Thumbs.db', 'notes.txt'): (root/'Train/Band1'/n).write_text('x')
    assert len(check_glacier(root).stack) == 4

@pytest.mark.skipif(not hasattr(os, 'symlink'), reason='needs symbolic links')
def test_link_out_of_root(root, tmp_path):
    tifffile.imwrite(tmp_path/'secret.tif', band())
    (root/'Train/Band1/img002.tif').unlink()
    (root/'Train/Band1/img002.tif').symlink_to(tmp_path/'secret.tif')
    with pytest.raises(DataError, match='leads out'): BandStack(root)
    assert len(BandStack(root, links=True)) == 4

def test_codec_is_a_bijection():
    codec,allv = LabelCodec(),np.arange(256, dtype=np.uint8)
    for v in allv:
        if v in LABEL_VALUES: assert codec.encode(codec.decode([v]))[0] == v
        else:
            with pytest.raises(DataError): codec.decode([v])
    assert codec.decode(np.array(LABEL_VALUES)).tolist() == list(range(len(CLASS_NAMES)))

def test_error_does_not_list_a_million_values():
    with pytest.raises(DataError) as e: LabelCodec().decode(np.arange(10**5))
    assert len(str(e.value)) < 400

def test_valid_mask_of_a_batch():
    x = np.zeros((2,5,3,3), np.float32)
    x[0,2,1,1],x[1,0,0,0] = 4,np.nan
    assert valid_mask(x).sum() == 1 and valid_mask(x)[0,1,1]

def test_sparse_bomb(root):
    "Blocks of no bytes stand for zeros: a large image of them is refused too"
    file = root/'Train/Band1/img002.tif'
    patch_tags(file, ImageWidth=11000, ImageLength=11000, StripByteCounts=0)
    with pytest.raises(DataError, match='declares 242,000,000 bytes'): read_tif(file)
