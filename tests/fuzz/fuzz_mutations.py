"Damage to files: bytes that are cut, flipped, emptied, doubled, swapped or made huge; and structures (JSON, YAML, tables) with entries that are missing, odd or too many."
import copy, json, struct
from hypothesis import strategies as st

# ---- bytes, drawn from a `random.Random`

def cut(b, r): return b[:r.randrange(len(b))]
def flip_bit(b, r):
    b = bytearray(b)
    for _ in range(r.choice((1, 1, 1, 8))): b[r.randrange(len(b))] ^= 1<<r.randrange(8)
    return bytes(b)
def random_bytes(b, r):
    i = r.randrange(len(b))
    return b[:i] + r.randbytes(n := r.randint(1, 16)) + b[i+n:]
def _run(b, r): return (i := r.randrange(len(b))),min(len(b), i+r.choice((1, 4, 16, 64, 512)))
def zeros(b, r):
    i,j = _run(b, r)
    return b[:i] + bytes(j-i) + b[j:]
def doubled(b, r):
    i,j = _run(b, r)
    return b[:j] + b[i:]
def removed(b, r):
    i,j = _run(b, r)
    return b[:i] + b[j:]
def swapped(b, r):
    i,j,k = sorted(r.randrange(len(b)+1) for _ in range(3))
    return b[:i] + b[j:k] + b[i:j] + b[k:]
def huge(b, r):
    "A number near the beginning, where headers are, becomes huge or negative"
    n = r.choice((1, 2, 4, 8))
    i = r.randrange(min(len(b), r.choice((64, 512, len(b)))))
    return b[:i] + struct.pack(r.choice('<>')+'Q', r.choice((2**64-1, 2**63, 2**31-1, 2**32-1, 10**12, 65535)))[-n:] + b[i+n:]
def digits(b, r):
    "A digit of a header in text becomes another, or many"
    at = [i for i,c in enumerate(b[:4096]) if 48<=c<=57]
    if not at: return huge(b, r)
    i = r.choice(at)
    return b[:i] + r.choice((b'9', b'0', b'999999999', b'-1', b'1e999', b'NaN')) + b[i+1:]
def longer(b, r): return b + r.choice((b'\0', b'\0'*512, r.randbytes(20), b))
def nothing(b, r): return b''
def other_kind(b, r): return r.choice((b'GIF89a', b'\x89PNG\r\n\x1a\n', b'PK\x03\x04', b'II*\0', b'\x93NUMPY\x01\0', b'\x80\x04.', b'%!PS-Adobe-3.0 EPSF-3.0\n', b'<VRTDataset/>', b'\xff\xd8\xff')) + b[8:]

BYTES = cut,cut,flip_bit,flip_bit,flip_bit,random_bytes,zeros,doubled,removed,swapped,huge,huge,digits,longer,nothing,other_kind

# ---- structures, drawn by hypothesis

JUNK = st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from([2**31, 2**63, 10**30, -10**30, 1e308, float('nan'), float('inf'), -float('inf'), '', '\0', '../x', '/etc/passwd',
    'C:\\x', 'a'*300, 'x/'*200, '\ud800', '日本', 'NaN', '1e999', '${oc.env:HOME}', '!!python/object/apply:os.system [x]', [], {}, [[]], [[[[1]]]], {'a': {'b': []}}, [None], [1, 2, 3]]),
    st.text(max_size=5), st.lists(st.integers(), max_size=3))

def _junk(draw): return copy.deepcopy(draw(JUNK)) # what is changed later must not change the strategy

def _places(o, at=()):
    yield at
    for k,v in o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else (): yield from _places(v, (*at, k))

def _one(draw, o):
    "One change to a structure, in place where there is one"
    at = draw(st.sampled_from([*_places(o)]))
    if not at: return _junk(draw)
    parent = o
    for k in at[:-1]: parent = parent[k]
    k,how = at[-1],draw(st.sampled_from(('junk', 'junk', 'junk', 'remove', 'rename', 'wrap', 'more')))
    if how=='junk': parent[k] = _junk(draw)
    elif how=='remove': del parent[k]
    elif how=='wrap': parent[k] = draw(st.sampled_from(([parent[k]], {'x': parent[k]}, str(parent[k]))))
    elif isinstance(parent, list): parent.insert(k, _junk(draw) if how=='more' else copy.deepcopy(parent[k]))
    elif how=='more': parent[draw(st.text(max_size=4))] = _junk(draw)
    else: parent[draw(st.sampled_from((f'{k}s', f' {k}', str(k).upper())))] = parent.pop(k)
    return o

@st.composite
def structures(draw, good):
    "A structure with one to three changes"
    o = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))): o = _one(draw, o)
    return o

def dressed(draw, text):
    "Text as bytes: plain, with a byte order mark, with other line ends, in another code"
    how = draw(st.sampled_from(('plain',)*6 + ('bom', 'crlf', 'utf-16', 'latin-1', 'blank')))
    if how=='crlf': text = text.replace('\n', '\r\n')
    if how=='blank': text = '\n \n' + text + '\n\n'
    if how in ('utf-16', 'latin-1'): return text.encode(how, 'replace')
    return b'\xef\xbb\xbf'*(how=='bom') + text.encode('utf-8', 'surrogatepass')

@st.composite
def json_files(draw, blob): return dressed(draw, json.dumps(draw(structures(json.loads(blob))), ensure_ascii=draw(st.booleans())))

@st.composite
def yaml_files(draw, blob):
    import yaml
    text = yaml.safe_dump(draw(structures(yaml.safe_load(blob))), allow_unicode=draw(st.booleans()))
    return dressed(draw, text + draw(st.sampled_from(('', '', '', 'x: !!python/object/apply:os.system [x]\n', 'x: &a [*a]\n', '\tx: 1\n', '? [a]\n: b\n', 'x: 2001-01-01\n', 'x: !!binary aGk=\n', 'a: ${a}\n'))))

@st.composite
def tables(draw, blob, sep=','):
    rows = [l.split(sep) for l in blob.decode().splitlines()]
    rows = draw(structures([[c for c in r] for r in rows]))
    if not isinstance(rows, list): return dressed(draw, str(rows))
    text = lambda r: sep.join(map(str, r)) if isinstance(r, list) else str(r)
    return dressed(draw, '\n'.join(map(text, rows)) + draw(st.sampled_from(('\n', '', '"', '"\n', '\r', '\0\n', 'x'*140_000 + '\n'))))
