"Files under stress: full disks, kills, links, hostile names, workers."
import errno, json, os, random, shutil, signal, stat, subprocess, sys, threading
from pathlib import Path
import pytest
from clearsight_nb.core.files import (DataError, DataReport, atomic_write, check_manifest, list_images, make_manifest, pair_files, read_json,
    safe_path, sweep_leftovers, write_json)

def run(code, *args, **kw): return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, timeout=600, **kw)

# ---- a full disk ----

LIMITED = '''
import resource, signal, sys
from clearsight_nb.core.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with atomic_write(sys.argv[1]) as f: f.write(bytes(100_000))
except OSError as e: print(e)
'''

def test_file_size_limit_leaves_the_old_file(tmp_path):
    "The kernel itself refuses the write (EFBIG, as a quota would)."
    path = tmp_path/'best.pt'
    path.write_bytes(b'old')
    out = run(LIMITED, path)
    assert 'The disk is full' in out.stdout and 'the old file is as it was' in out.stdout and 'best.pt' in out.stdout, out
    assert path.read_bytes()==b'old' and os.listdir(tmp_path)==['best.pt']

WRAPPED = LIMITED.replace('f.write(bytes(100_000))', '''
        try: f.write(bytes(100_000)); f.flush()
        except OSError: raise RuntimeError("unexpected pos 704 vs 598")''')

def test_full_disk_behind_another_error(tmp_path):
    "torch.save turns the system's error into a RuntimeError; the cause is still found, and nothing was there before."
    out = run(WRAPPED, tmp_path/'new.pt')
    assert 'The disk is full' in out.stdout and 'nothing was left behind' in out.stdout, out
    assert os.listdir(tmp_path)==[]

TMPFS = '''
import os, subprocess, sys
from clearsight_nb.core.files import atomic_write
folder = sys.argv[1]
if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder]).returncode: sys.exit(77)
path = os.path.join(folder, 'best.pt')
with atomic_write(path) as f: f.write(b'o'*20_000)
try:
    with atomic_write(path) as f: f.write(b'n'*100_000)
except OSError as e: print(e.errno, e)
print(os.listdir(folder), open(path, 'rb').read()==b'o'*20_000)
'''

def test_full_tmpfs(tmp_path):
    "A real disk of 64 kB in a mount namespace of its own, where that is permitted."
    if not shutil.which('unshare'): pytest.skip('no unshare on this machine')
    out = subprocess.run(['unshare', '--map-root-user', '--mount', sys.executable, '-c', TMPFS, str(tmp_path)], capture_output=True, text=True)
    if out.returncode==77 or 'unshare' in out.stderr: pytest.skip('mounting is not permitted here')
    assert f'{errno.ENOSPC} [Errno {errno.ENOSPC}] The disk is full' in out.stdout, out
    assert "['best.pt'] True" in out.stdout, out

@pytest.mark.parametrize('fails', ['os.fsync', 'os.replace', 'os.chmod'])
def test_any_failing_step_leaves_the_old_file(tmp_path, monkeypatch, fails):
    path = tmp_path/'a'
    path.write_bytes(b'old')
    def no(*args, **kw): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(fails, no)
    with pytest.raises(OSError, match='The disk is full') as e:
        with atomic_write(path) as f: f.write(b'new')
    assert e.value.errno==errno.ENOSPC and path.read_bytes()==b'old' and os.listdir(tmp_path)==['a']

def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with atomic_write(tmp_path/'a') as f: f.write(str(1/0).encode())
    with pytest.raises(IsADirectoryError):
        with atomic_write(tmp_path) as f: f.write(b'x')
    assert os.listdir(tmp_path)==[] and not list(tmp_path.parent.glob(f'.{tmp_path.name}*'))

# ---- kills and races ----

WRITER = '''
import sys
from clearsight_nb.core.files import atomic_write
for i in range(10**9):
    with atomic_write(sys.argv[1]) as f:
        for _ in range(8): f.write(bytes([i%256])*20_000)
    if i==0: print('started', flush=True)
'''

def test_killed_at_any_moment(tmp_path):
    "SIGKILL leaves one whole version, and leftovers that can be swept."
    rng,path = random.Random(0),tmp_path/'best.pt'
    for _ in range(6):
        p = subprocess.Popen([sys.executable, '-c', WRITER, str(path)], stdout=subprocess.PIPE)
        assert p.stdout.readline()==b'started\n'
        try: p.wait(rng.uniform(0.005, 0.05))
        except subprocess.TimeoutExpired: pass
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
        data = path.read_bytes()
        assert len(data)==160_000 and len(set(data))==1
    sweep_leftovers(tmp_path)
    assert os.listdir(tmp_path)==['best.pt']

def test_readers_and_writers_see_whole_files(tmp_path):
    path,bad = tmp_path/'a.json',[]
    write_json([0]*1000, path)
    def write(i):
        for _ in range(20): write_json([i]*1000, path)
    writers = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for t in writers: t.start()
    while any(t.is_alive() for t in writers):
        if len(set(got := read_json(path)))!=1 or len(got)!=1000: bad.append(got)
    for t in writers: t.join()
    assert not bad and os.listdir(tmp_path)==['a.json']

def test_sweep_touches_nothing_else(tmp_path):
    keep = ['.hidden.tmp', 'a.tmp', '.a.12345678.tmpx', '.a.1234567g.tmp']
    for n in keep: (tmp_path/n).touch()
    assert sweep_leftovers(tmp_path)==[] and sorted(os.listdir(tmp_path))==sorted(keep)

# ---- rights, links and names ----

def test_rights_and_links_are_kept(tmp_path):
    path = tmp_path/'a'
    with atomic_write(path) as f: f.write(b'1')
    (tmp_path/'plain').touch()
    assert path.stat().st_mode==(tmp_path/'plain').stat().st_mode
    path.chmod(0o640)
    os.symlink(path, tmp_path/'link')
    with atomic_write(tmp_path/'link') as f: f.write(b'2')
    assert (tmp_path/'link').is_symlink() and path.read_bytes()==b'2' and stat.S_IMODE(path.stat().st_mode)==0o640

def test_long_name_and_text(tmp_path):
    path = tmp_path/'neu'/('ü'*120 + '.txt')
    with atomic_write(path, 'w') as f: f.write('größer')
    assert path.read_bytes()=='größer'.encode() and len(os.listdir(path.parent))==1

def test_block_may_close_the_file(tmp_path):
    with atomic_write(tmp_path/'a') as f:
        f.write(b'x')
        f.close()
    assert (tmp_path/'a').read_bytes()==b'x'

HOSTILE = ['/etc/passwd', '//etc/passwd', '../x', 'a/../../x', '..', 'a/..', 'C:\\x', 'c:x', 'a\\..\\x', '\\\\host\\x', 'a\0b', '', 'out/x', 'in/out/x',
    'loop/x', 'file_link']

@pytest.mark.parametrize('rel', HOSTILE)
def test_safe_path_refuses(tmp_path, rel):
    root = tmp_path/'root'
    (root/'in').mkdir(parents=True)
    (tmp_path/'secret').touch()
    os.symlink('..', root/'out')
    os.symlink(tmp_path, root/'in'/'out')
    os.symlink('loop', root/'loop')
    os.symlink(tmp_path/'secret', root/'file_link')
    with pytest.raises(DataError) as e: safe_path(root, rel)
    assert e.value.mend and 'inside it' in str(e.value)

def test_safe_path_never_leaves(tmp_path):
    "Random paths of nasty pieces: whatever is accepted lies inside."
    rng,root = random.Random(1),tmp_path/'root'
    (root/'a'/'b').mkdir(parents=True)
    os.symlink(tmp_path, root/'a'/'up')
    os.symlink(root/'a', root/'self')
    pieces = ['a', 'b', '..', '.', '', 'up', 'self', '~', 'x.tif', '...', ' ', 'a:b', '%2e%2e']
    accepted = 0
    for _ in range(2000):
        rel = '/'.join(rng.choices(pieces, k=rng.randint(1, 5)))
        try: path = safe_path(root, rel)
        except DataError: continue
        accepted += 1
        assert path.resolve().is_relative_to(root.resolve()), rel
    assert accepted > 100

def test_root_may_itself_be_a_link(tmp_path):
    (tmp_path/'disk').mkdir()
    (tmp_path/'disk'/'a.png').touch()
    os.symlink(tmp_path/'disk', tmp_path/'data')
    assert safe_path(tmp_path/'data', 'a.png').exists() and list_images(tmp_path/'data')==[Path('a.png')]

def test_names_that_are_no_text(tmp_path):
    "A name with bytes that are not UTF-8, and one that would recolour the terminal, can be listed, reported and printed."
    open(os.fsencode(tmp_path) + b'/caf\xe9.png', 'w').close()
    (tmp_path/'\x1b[31mred\n.png').touch()
    report = DataReport()
    for f in list_images(tmp_path): report.add(f, 'is empty', 'Remove it.')
    assert len(report.errors)==2
    for text in (str(report), report._repr_html_(), str(DataError(report.errors[0].file, 'is empty', 'Remove it.'))):
        text.encode('utf-8')
        assert '\x1b' not in text and 'red\n.png' not in text
    with pytest.raises(DataError) as e: report.raise_errors()
    str(e.value).encode('utf-8')

def test_links_in_listings(tmp_path):
    root,away = tmp_path/'root',tmp_path/'away'
    (root/'a').mkdir(parents=True)
    away.mkdir()
    (root/'a'/'1.png').touch()
    (away/'2.png').touch()
    os.symlink(root/'a', root/'again')           # its files are listed where they are
    os.symlink(root/'a'/'1.png', root/'one.png') # a link to a file inside is a file
    os.symlink(root, root/'a'/'loop')
    assert list_images(root)==[Path('a/1.png'), Path('one.png')]
    os.symlink(away, root/'away')
    with pytest.raises(DataError, match='away: is a link that leads out'): list_images(root)
    os.symlink(root, away/'back')
    os.symlink(away, away/'loop')
    assert list_images(root, links=True)==[Path('a/1.png'), Path('away/2.png'), Path('one.png')]
    (root/'away').unlink()
    os.symlink(away/'2.png', root/'two.png')
    with pytest.raises(DataError, match='two.png: is a link that leads out'): list_images(root)
    assert Path('two.png') in list_images(root, links=True)

@pytest.mark.parametrize('kind', ['dead link', 'pipe'])
def test_no_ordinary_file(tmp_path, kind):
    if kind=='pipe': os.mkfifo(tmp_path/'a.png')
    else: os.symlink(tmp_path/'gone.png', tmp_path/'a.png')
    with pytest.raises(DataError, match=r'a\.png: is no'): list_images(tmp_path)

def test_order_does_not_depend_on_the_disk(tmp_path):
    names = [f'{a}/{b}{i}{e}' for a in 'bBa' for b in 'xX' for i in (10, 9) for e in ('.PNG', '.tif')]
    random.Random(0).shuffle(names)
    for n in names:
        (tmp_path/n).parent.mkdir(exist_ok=True)
        (tmp_path/n).touch()
    assert [p.as_posix() for p in list_images(tmp_path)]==sorted(names)

def test_pairing_folders(tmp_path):
    for n in ['in/a/1.JPG', 'in/2.png', 'out/a/1.png', 'out/3.png']:
        (tmp_path/n).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/n).touch()
    pairs,report = pair_files(tmp_path/'in', tmp_path/'out')
    assert pairs==[(Path('a/1.JPG'), Path('a/1.png'))] and {f.file for f in report.errors}=={'input/2.png', 'target/3.png'}
    with pytest.raises(DataError, match='1 more error: target/3.png'): report.raise_errors()

# ---- JSON, manifests, workers ----

@pytest.mark.parametrize('text', ['', '{', '[1,]', '\xff', '['*100_000, '{"a": 1'])
def test_broken_json(tmp_path, text):
    (tmp_path/'a.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(DataError, match='is not JSON'): read_json(tmp_path/'a.json')

def test_manifest_is_not_trusted(tmp_path):
    (tmp_path/'root').mkdir()
    (tmp_path/'secret.png').write_bytes(b'x')
    (tmp_path/'root'/'a.png').write_bytes(b'y')
    os.symlink(tmp_path/'secret.png', tmp_path/'root'/'b.png')
    manifest = json.loads(json.dumps(make_manifest(tmp_path/'root', ['a.png'])))
    assert check_manifest(tmp_path/'root', manifest).ok
    manifest |= {n: manifest['a.png'] for n in ('b.png', '../secret.png', str(tmp_path/'secret.png'))}
    assert len(check_manifest(tmp_path/'root', manifest).errors)==3
    with pytest.raises(DataError): make_manifest(tmp_path/'root', ['../secret.png'])

class Broken:
    def __len__(self): return 1
    def __getitem__(self, i): raise DataError('img005.tif', 'is cut short', 'Download it again.')

def test_data_error_survives_a_worker():
    from torch.utils.data import DataLoader
    with pytest.raises(DataError, match='img005.tif: is cut short. Download it again.'): list(DataLoader(Broken(), num_workers=1))
