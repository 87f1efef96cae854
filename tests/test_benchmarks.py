"Benchmarks: what runs them loses no result, tables follow from the stored results, and what needs a GPU runs here in small, too."
import json, re, sys
import pytest
from conftest import ROOT

sys.path.append(str(ROOT/'benchmarks'))
import gpu, run as bench

FAKE = dict(works="MINUTES = 2\ndef run(): return dict(name='a pond', ours=1., peer=3., unit='s', ratio=3., target=2)",
    lower="def run(): return dict(name='a lake', ours=2., peer=1., unit='GiB', ratio=2., target=1, lower_is_better=True)",
    breaks="def run(): return 1/0",
    cannot="def missing(): return 'there is no water'\ndef run(): return 1/0",
    several="MINUTES = 0.5\ndef run(): return {k: dict(name=f'{k} rows', ours=1., peer=2., unit='s', ratio=2., target=1) for k in ('two', 'more')}",
    drags="MINUTES = 29")

@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder of benchmarks; the names of their modules are its own"
    for k,text in FAKE.items(): (tmp_path/f'fake_{k}.py').write_text(text)
    monkeypatch.setattr(bench, 'HERE', tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for k in FAKE: sys.modules.pop(f'fake_{k}', None)

def stored(folder): return json.loads((folder/'results.json').read_text())

def test_one_that_fails_loses_no_other(folder, capsys):
    assert bench.main(['fake_works', 'fake_breaks', 'fake_cannot', 'fake_several'])==['fake_breaks']
    said,rows = capsys.readouterr().out,stored(folder)
    assert sorted(rows)==['fake_several.more', 'fake_several.two', 'fake_works'] and 'ZeroDivisionError' in said and 'fake_cannot left out: there is no water' in said
    for r in rows.values(): assert {'torch', 'fastai', 'numpy', 'Python'} <= r['versions'].keys() and re.match(r'\d+ cores \(', r['machine']) and re.match(r'\d{4}-', r['date'])
    assert bench.main(['fake_lower'])==[] and len(stored(folder))==4, 'what was stored before stays'
    assert (folder/'README.md').read_text()==bench.page(stored(folder)) and not list(folder.glob('.*'))

def test_table(folder):
    bench.main(['fake_works', 'fake_lower'])
    rows = stored(folder)
    rows['fake_lower'].pop('versions') # as it was before they were noted
    day = rows['fake_works']['date']
    assert f'| `fake_works` | a pond | 1 s | 3 s | 3 | ≥ 2 | yes | {day} | 1 |' in bench.table(rows)
    assert f'| `fake_lower` | a lake | 2 GiB | 1 GiB | 2 | ≤ 1 | no | {day} | – |' in bench.table(rows)
    assert f'1. Python {rows["fake_works"]["versions"]["Python"]}, torch ' in bench.page(rows)

def test_what_fits_is_chosen_and_the_rest_is_named(folder, capsys):
    names = [f'fake_{k}' for k in FAKE]
    assert bench.chosen(names)==['fake_several', 'fake_breaks', 'fake_lower', 'fake_works']
    said = capsys.readouterr().out
    assert 'fake_cannot left out: there is no water' in said and 'fake_drags left out: it takes 29 minutes: python benchmarks/run.py fake_drags' in said
    assert bench.chosen(names, limit=40)[-1]=='fake_drags'

def test_each_runs_in_a_process_of_its_own(tmp_path, monkeypatch):
    script = tmp_path/'run.py'
    script.write_text('import os, sys\nopen(sys.argv[1], "w").write(str(os.getpid()))\nsys.exit(sys.argv[1].endswith("bad"))')
    monkeypatch.setattr(bench, '__file__', str(script))
    names = [str(tmp_path/n) for n in ('good', 'bad', 'better')]
    assert bench.in_turn(names)==names[1:2] and len({(tmp_path/n).read_text() for n in ('good', 'bad', 'better')})==3

def test_stored_results_are_those_in_the_tables():
    "README.md follows from the results, and each of them has its file, which can run."
    rows = json.loads((ROOT/'benchmarks/results.json').read_text(encoding='utf-8'))
    assert (ROOT/'benchmarks/README.md').read_text(encoding='utf-8')==bench.page(rows)
    for k,r in rows.items():
        assert re.search(r'^def run\(', (ROOT/f'benchmarks/{k.split(".")[0]}.py').read_text(encoding='utf-8'), re.M), k
        ratio = r['ours']/r['peer'] if r.get('lower_is_better') else r['peer']/r['ours']
        assert r['unit'] in ('R_K', 'dB') or r['ratio']==pytest.approx(ratio, rel=.2), f'{k}: the ratio of medians is near the median of ratios'

def test_the_gpu_benchmark_in_small(monkeypatch):
    "On the processor, without a clock: each setting trains and restores, and gives its rows."
    monkeypatch.setattr(gpu.torch.cuda, 'is_available', lambda: False)
    assert 'no GPU' in gpu.missing()
    rows = gpu.run('cpu', 2, 16, 24, 2, 1, 0, ('plain', 'amp', 'channels_last'), image_size=16, ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    assert list(rows)==['amp', 'channels_last', 'train', 'restore']
    for r in rows.values(): assert r['ours']>0 and r['ratio']>0 and r['unit']=='s' and 'on cpu' in r['name']
    assert 'dB between them' in rows['restore']['name'] and 'amp and channels_last against float32' in rows['train']['name']

def test_a_setting_that_trains_otherwise_is_found(monkeypatch):
    right = gpu.training
    monkeypatch.setattr(gpu, 'training', lambda *a, amp=False, **kw: (lambda: 9.) if amp else right(*a, **kw))
    with pytest.raises(AssertionError, match='amp: the first loss is 9'):
        gpu.run('cpu', 2, 16, 24, 2, 1, 0, ('plain', 'amp'), image_size=16, ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
