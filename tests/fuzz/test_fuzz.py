"""Damaged files, for every reader in `fuzz_readers.READERS`.

The only outcomes that are allowed: a DataError that names the file, its fault and its mend; or success. For formats with checksums (zip: .npz and .pt)
success means equal data; in others a flipped bit of a pixel is another picture that nobody can tell from the true one, and success means data
of the right shape, number type and range, which the readers of the table assert.

CI runs 100 cases of each format, shared by its readers (under a minute of CPU in all); the long run is
`CLEARSIGHT_FUZZ=1000 python -m pytest tests/fuzz`."""
import contextlib, io, json, logging, os, random, resource, signal, warnings
from collections import Counter
import numpy as np, pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from clearsight_nb.core.files import DataError
import fuzz_mutations as mutations
from fuzz_readers import READERS

CASES = int(os.environ.get('CLEARSIGHT_FUZZ', 100)) # of each format
SHARED = Counter(r.format for r in READERS)
SECONDS,GROWTH,WARNINGS = 10,300,20 # a case takes no more CPU, no more memory (MB), and warns no more often

def same(a, b):
    if isinstance(a, (list, tuple)): return len(a)==len(b) and all(map(same, a, b))
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a==b

class Late(BaseException): "Of no kind that a reader could take for a fault of its file"

@contextlib.contextmanager
def limits(what):
    "Time, memory and warnings of a case"
    def late(*_): raise Late(f'{what}: over {SECONDS} s')
    before,old = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, 1) # and again, should the first be lost within a destructor
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/1024
    assert grown<GROWTH, f'{what}: took {grown:.0f} MB'
    assert len(said)<=WARNINGS, f'{what}: {len(said)} warnings, such as {said[0].message}'

def outcome(r, folder, file, good, what):
    "Read a folder in which `file` is damaged"
    with limits(what):
        try: got = r.read(folder)
        except r.raises as e:
            assert isinstance(e, DataError) or r.raises is not DataError
            assert file.stem.split('.')[0] in str(e) or isinstance(e, DataError) and str(e.file).strip(), f'{what}: does not name the file: {e}'
            if isinstance(e, DataError): assert e.fault and e.mend, f'{what}: {e!r}'
            return 'refused'
    assert not r.exact or same(got, good), f'{what}: other data, and nothing was said'
    return 'read'

def notes(draw, blob):
    "A safetensors file whose description is changed, also inside the JSON that it holds"
    n = int.from_bytes(blob[:8], 'little')
    head,rest = json.loads(blob[8:8+n]),blob[8+n:]
    meta = {}
    for k,v in head['__metadata__'].items():
        try: meta[k] = json.loads(v) if v[:1] in '{[' else v
        except ValueError: meta[k] = v
    keys = [k for k,v in meta.items() if isinstance(v, (dict, list))] or [*meta]
    k = draw(st.sampled_from(keys))
    meta[k] = draw(mutations.structures(meta[k]))
    if draw(st.integers(0, 9))==0: meta = draw(mutations.structures(meta))
    text = lambda v: v if isinstance(v, str) else json.dumps(v)
    head['__metadata__'] = {str(a): text(v) for a,v in meta.items()} if isinstance(meta, dict) else meta
    data = json.dumps(head).encode('utf-8', 'replace')
    return len(data).to_bytes(8, 'little') + data + rest

def pt(draw, blob):
    "A checkpoint of which some entry but the weights is changed"
    import torch
    ck = torch.load(io.BytesIO(blob), weights_only=True)
    rest = {k: v for k,v in ck.items() if k!='model'}
    new = draw(mutations.structures(rest))
    torch.save(new | dict(model=ck['model']) if isinstance(new, dict) else new, out := io.BytesIO())
    return out.getvalue()

STRUCTURED = dict(json=lambda d, b: d(mutations.json_files(b)), yaml=lambda d, b: d(mutations.yaml_files(b)), csv=lambda d, b: d(mutations.tables(b)),
    list=lambda d, b: d(mutations.tables(b, '/')), notes=notes, pt=pt)

@pytest.fixture(autouse=True)
def quiet(caplog): caplog.set_level(logging.CRITICAL)

@pytest.mark.parametrize('r', READERS, ids=lambda r: r.name)
def test_damaged_files(r, tmp_path):
    "Every case from a seed of its own: a failure names reader, case and file, and can be run again alone."
    r.make(tmp_path)
    files,n = sorted({f for p in r.files for f in tmp_path.glob(p)}),max(5, CASES//SHARED[r.format])//r.cost
    assert files, r.files
    blobs = {f: f.read_bytes() for f in files}
    good,seen = r.read(tmp_path),set()
    def case(file, blob, what):
        file.write_bytes(blob)
        try: seen.add(outcome(r, tmp_path, file, good, what))
        finally: file.write_bytes(blobs[file])
    if r.how=='bytes':
        for i in range(n):
            rand = random.Random(f'{r.name}-{i}')
            file,damage = rand.choice(files),rand.choice(mutations.BYTES)
            case(file, damage(blobs[file], rand), f'{r.name}, case {i}, {damage.__name__} of {file.name}')
    else:
        @settings(max_examples=n, deadline=None, database=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(st.data())
        def some(data):
            file = data.draw(st.sampled_from(files))
            case(file, STRUCTURED[r.how](data.draw, blobs[file]), f'{r.name}, {file.name}')
        some()
    assert same(r.read(tmp_path), good) or not r.exact
    assert n<20 or r.heals or 'refused' in seen, 'no damage was noticed: is the right file damaged?'
