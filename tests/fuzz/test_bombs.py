"""Files that declare far more than they hold are refused before memory is taken: each is read in a forked child whose memory is measured.

The child may grow by less than 300 MB; each of these files would take from 400 MB to many terabytes."""
import io, json, os, resource, struct, tarfile, zipfile, zlib
import numpy as np, pytest, torch
from clearsight_nb.core.files import DataError
from clearsight_nb.core.plain import plain_array, plain_arrays, plain_torch

LIMIT,SECONDS = 300,10 # MB of memory, s of CPU

def peak():
    "Peak of this process's memory, MB"
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))/1024

def in_child(read):
    "(what became of it, growth in MB) of reading in a forked child"
    out,back = os.pipe()
    if not (pid := os.fork()):
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime+used.ru_stime)+SECONDS,)*2)
        try:
            with open('/proc/self/clear_refs', 'w') as f: f.write('5') # the peak begins anew
            before = peak()
            try: said = f'read: {type(read()).__name__}'
            except DataError as e: said = f'DataError {e}'
            except BaseException as e: said = f'{type(e).__name__} {e}'
            os.write(back, json.dumps([said[:500], peak()-before]).encode())
        finally: os._exit(0)
    os.close(back)
    with open(out, 'rb') as f: said = f.read()
    os.waitpid(pid, 0)
    return json.loads(said or f'["killed: over {SECONDS} s of CPU, or out of memory", 1e9]')

def _zeros(n):
    pack = zlib.compressobj(9)
    return b''.join([*(pack.compress(bytes(min(1<<20, n-i))) for i in range(0, n, 1<<20)), pack.flush()])

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
def png(w, h, rows=None, mode=2):
    "A PNG whose header says w×h; with `rows` of zeros in it, all by default"
    data = _zeros((w*{0: 1, 2: 3, 6: 4}[mode]+1)*(h if rows is None else rows))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, mode, 0, 0, 0)) + chunk(b'IDAT', data) + chunk(b'IEND', b'')

PNGS = dict(zeros=lambda: png(13000, 13000), header=lambda: png(100_000, 100_000, 1), wide=lambda: png(2**31-1, 1, 0), alpha=lambda: png(11000, 11000, mode=6))

def _picture_readers():
    from clearsight_nb.core.pictures import open_picture
    from clearsight_nb.derain.pairs import read_photo
    from clearsight_nb.lowlight.blind import _srgb
    from clearsight_nb.shadow.cast import read_cutout
    from clearsight_nb.shadow.data import open_png
    from clearsight_nb.weather.data import read_rgb
    return dict(weather=read_rgb, derain=read_photo, viewer=open_picture, lowlight=_srgb, cutout=read_cutout, shadow=lambda f: open_png(f.read_bytes(), f))

@pytest.mark.parametrize('kind', PNGS)
def test_png(kind, tmp_path):
    (file := tmp_path/'bomb.png').write_bytes(PNGS[kind]())
    for name,read in _picture_readers().items():
        said,grown = in_child(lambda: read(file))
        assert said.startswith('DataError') and 'bomb.png' in said and grown<LIMIT, (name, said, grown)

def _tiff(path, w, h, data, compression):
    "A TIFF of one strip whose header says w×h"
    tags = [(256, 4, w), (257, 4, h), (258, 3, 16), (259, 3, compression), (262, 3, 1), (273, 4, 8+2+12*9+4), (277, 3, 1), (278, 4, h), (279, 4, len(data))]
    entries = b''.join(struct.pack('<HHII', *t[:2], 1, t[2]) for t in tags) # little endian, so a short is a long with zeros behind it
    path.write_bytes(b'II*\0' + struct.pack('<IH', 8, 9) + entries + bytes(4) + data)

TIFFS = dict(short=(100_000, 100_000, b'\0'*64, 1), half=(20_000, 20_000, b'\0'*4096, 8), zeros=(11_000, 11_000, None, 8), wide=(2**31, 2, b'\0'*64, 1), 
    lzw=(60_000, 60_000, b'\0'*64, 5))
@pytest.mark.parametrize('case', TIFFS)
def test_tiff(case, tmp_path):
    from clearsight_nb.core.rasters import RasterBands
    from clearsight_nb.glacier.tiles import read_tif
    from clearsight_nb.glacier.solution import read_band
    from clearsight_nb.weather.data import read_rgb
    w,h,data,compression = TIFFS[case]
    _tiff(file := tmp_path/'bomb.tif', w, h, _zeros(2*w*h) if data is None else data, compression)
    def raster():
        with RasterBands(file, ['a']) as s: return s.rows(0, min(512, s.shape[0]))
    readers = dict(read_tif=lambda: read_tif(file), raster=raster, weather=lambda: read_rgb(file))
    for name,read in readers.items():
        said,grown = in_child(read)
        assert said.startswith('DataError') and 'bomb.tif' in said and grown<LIMIT, (name, said, grown)
    said,grown = in_child(lambda: read_band(file)) # of solution.py, which stands alone
    assert said.startswith('ValueError') and 'bomb.tif' in said and grown<LIMIT, (said, grown)

def _npy_head(shape, dtype='<f4'):
    np.lib.format.write_array_header_1_0(out := io.BytesIO(), dict(descr=dtype, fortran_order=False, shape=shape))
    return out.getvalue()

def test_npy_and_npz(tmp_path):
    from clearsight_nb.derain.spectra import read_npz
    (tmp_path/'bomb.npy').write_bytes(_npy_head((10**6, 10**5)) + bytes(100))
    with zipfile.ZipFile(tmp_path/'zeros.npz', 'w', zipfile.ZIP_DEFLATED) as z, z.open('mag_and_phase.npy', 'w') as f:
        f.write(_npy_head((10_000, 2000, 6)))
        for _ in range(480): f.write(bytes(10**6))
    with zipfile.ZipFile(tmp_path/'header.npz', 'w') as z: z.writestr('mag_and_phase.npy', _npy_head((10**5, 10**5, 6)) + bytes(100))
    for read,name in ((plain_array, 'bomb.npy'), (plain_arrays, 'zeros.npz'), (read_npz, 'zeros.npz'), (read_npz, 'header.npz')):
        said,grown = in_child(lambda: read(tmp_path/name))
        assert said.startswith('DataError') and name in said and grown<LIMIT, (said, grown)

def test_torch(tmp_path):
    "Records that are packed, and tensors that repeat a value"
    from clearsight_nb.core.checkpoints import read_checkpoint
    from clearsight_nb.lowlight.tiles import read_tile
    from clearsight_nb.weather.checkpoint import load_weatherdiff
    torch.save(torch.zeros(300, 1000, 1000, dtype=torch.uint8), out := io.BytesIO())
    with zipfile.ZipFile(out) as a, zipfile.ZipFile(tmp_path/'packed.pt', 'w', zipfile.ZIP_DEFLATED) as b:
        for i in a.infolist(): b.writestr(i.filename, a.read(i))
    out.close()
    torch.save(torch.zeros(1, 1, 1).expand(3, 10**5, 10**5), tmp_path/'wide.pt')
    torch.save({'model': {'a': torch.zeros(1).expand(10**11)}}, tmp_path/'model.pt')
    for name in ('packed.pt', 'wide.pt', 'model.pt'):
        for read in (plain_torch, read_checkpoint, read_tile, load_weatherdiff):
            said,grown = in_child(lambda: read(tmp_path/name))
            assert said.startswith('DataError') and name in said and grown<LIMIT, (read, said, grown)

def test_descriptions_of_huge_networks(tmp_path):
    "Weights whose description asks for a network of a million channels"
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file
    import fuzz_readers as R
    huge = dict(weather_weights=('recipe', 'ch', 32_000), derain_weights=('recipe', 'ch', 32_000), prior=('config', 'model_channels', 32_000), shadow_weights=('settings', 'widths', [64_000, 64_000]),
        shadow_run=('about', 'widths', [64_000, 64_000]))
    for r in R.READERS:
        if r.how!='bytes' or r.name not in huge: continue
        (d := tmp_path/r.name).mkdir()
        r.make(d)
        file,(entry,key,value) = next(d.glob('*.safetensors')),huge[r.name]
        with safe_open(file, 'pt') as f: meta = f.metadata()
        text = json.loads(meta[entry])
        for part in (text, text.get('model'), text.get('arch'), text.get('settings')):
            if isinstance(part, dict) and key in part: part[key] = value
        assert str(value) in (meta := meta | {entry: json.dumps(text)})[entry], r.name
        save_file(load_file(file), file, meta)
        said,grown = in_child(lambda: r.read(d))
        assert said.startswith('DataError') and file.name in said and grown<LIMIT, (r.name, said, grown)

def test_yaml(tmp_path):
    from clearsight_nb.core.legacy import known_config
    from clearsight_nb.core.recipe import load_recipe, read_recipe
    from clearsight_nb.weather.lists import published_config
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]'] + [f'a{i}: &a{i} [{", ".join([f"*a{i-1}"]*10)}]' for i in range(1, 10)]
    (tmp_path/'bomb.yaml').write_text('task: weather\n' + '\n'.join(lines))
    (tmp_path/'long.yaml').write_text('task: weather\n' + 'x: 1\n'*10**6)
    (tmp_path/'deep.yaml').write_text('task: ' + '['*20_000)
    for name in ('bomb.yaml', 'long.yaml', 'deep.yaml'):
        for read in (read_recipe, published_config, lambda f: load_recipe('weather', f), lambda f: known_config('weather', str(f))):
            said,grown = in_child(lambda: read(tmp_path/name))
            assert said.startswith('DataError') and name in said and grown<LIMIT, (said, grown)

def test_json(tmp_path):
    from clearsight_nb.core.files import read_json
    from clearsight_nb.shadow.data import read_lights
    (tmp_path/'deep.json').write_text('['*200_000)
    (tmp_path/'number.json').write_text('{"a": ' + '9'*100_000 + '}')
    for name in ('deep.json', 'number.json'):
        for read in (read_json, read_lights):
            said,grown = in_child(lambda: read(tmp_path/name))
            assert said.startswith('DataError') and name in said and grown<LIMIT, (said, grown)

def test_tar(tmp_path):
    "Members that say they are huge, sparse, or negative"
    from clearsight_nb.shadow.benchmark import check_benchmark
    def member(size=None, kind=tarfile.REGTYPE, name='softness_control_000.image.png'):
        info = tarfile.TarInfo(name)
        info.type,info.size = kind,size or 0
        return info
    heads = dict(huge=member(2**60), sparse=member(2**50, tarfile.GNUTYPE_SPARSE), longname=member(2**40, tarfile.GNUTYPE_LONGNAME),
        pax=member(2**40, tarfile.XHDTYPE))
    for name,info in heads.items():
        (file := tmp_path/f'{name}.tar').write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
        said,grown = in_child(lambda: check_benchmark(file))
        assert said.startswith('DataError') and name in said and grown<LIMIT, (name, said, grown)
    b = bytearray(member(512).tobuf(tarfile.GNU_FORMAT)) # a size below 0 leads back to the same member
    b[124:136] = b'\xff'*10 + b'\xfe\x00'
    b[148:156] = b' '*8
    b[148:156] = b'%06o\0 ' % sum(b[:512])
    (tmp_path/'negative.tar').write_bytes(bytes(b) + bytes(10240))
    said,grown = in_child(lambda: check_benchmark(tmp_path/'negative.tar'))
    assert said.startswith('DataError') and 'negative' in said and grown<LIMIT, (said, grown)

def test_dng(tmp_path):
    from clearsight_nb.lowlight.raw import read_raw, write_dng
    write_dng(tmp_path/'bomb.dng', np.full((48, 64), 600), iso=100, exposure=.1)
    b = bytearray((tmp_path/'bomb.dng').read_bytes())
    for tag,old in ((256, 64), (257, 48), (278, 48)): # width, height, rows of a strip
        for kind,size in ((3, '<HHIHxx'), (4, '<HHII')):
            at = b.find(struct.pack(size, tag, kind, 1, old))
            if at>=0: b[at:at+12] = struct.pack('<HHII', tag, 4, 1, 30_000)
    (tmp_path/'bomb.dng').write_bytes(b)
    said,grown = in_child(lambda: read_raw(tmp_path/'bomb.dng'))
    assert said.startswith('DataError') and 'bomb.dng' in said and grown<LIMIT, (said, grown)
