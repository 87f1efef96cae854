"The house is in order: generated files follow from the notebooks, pages carry their outputs, the style is kept."
import json, os, re, shutil, subprocess, sys
import nbformat, pytest
from conftest import ROOT
from test_notebooks import PAGES

BIN = os.path.dirname(sys.executable)

def tracked():
    "Files git knows or would add, as they are in the working tree."
    out = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True)
    return [f for f in out.stdout.splitlines() if (ROOT/f).is_file()]

def test_generated_files_follow_from_the_notebooks(tmp_path):
    "Neither nbdev_clean, nbdev_export, the kernel generator nor the README generator would change or add a file."
    files = tracked()
    for f in files:
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/f, tmp_path/f)
    generated = [f for f in files if re.match(r'clearsight_nb/.*\.py$|kaggle_kernels/|README\.md$', f)]
    for f in generated:  # a module whose notebook is gone would otherwise stay unnoticed
        if not f.endswith('__init__.py'): (tmp_path/f).unlink()
    env = os.environ | dict(PYTHONPATH=str(ROOT))  # the generators run from here, the notebooks are read there
    for cmd in ([f'{BIN}/nbdev_clean'], [f'{BIN}/nbdev_export'], [sys.executable, 'tools/generate.py']):
        run = subprocess.run(cmd, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    here = {f: (ROOT/f).read_bytes() for f in files}
    there = {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()
        and not {'__pycache__'} & set(p.parts) and not p.name.endswith('.egg-info')}
    changed = sorted(f for f in here.keys() | there.keys() if here.get(f) != there.get(f))
    assert not changed, f'`make export` would change: {changed}'

@pytest.mark.parametrize('page', PAGES)
def test_page_is_fit_to_read(page):
    "Stored outputs, no warning, no traceback, no path of a machine, pictures and page small."
    path = ROOT/page
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    outputs = [o for c in nb.cells for o in c.get('outputs', [])]
    assert outputs, 'no stored outputs: run `make notebooks NB=' + page + '`'
    assert path.stat().st_size <= 1.5e6, f'{path.stat().st_size/1e6:.1f} MB'
    text = json.dumps([{k: v for k,v in o.get('data', o).items() if not k.startswith('image/')} for o in outputs])
    assert not (bad := re.findall(r'Traceback|Warning|(?<![\w.~])/(?:root|home|tmp|work)/', text)), bad
    for o in outputs: assert all(len(v) <= 150_000*4/3 for k,v in o.get('data', {}).items() if k.startswith('image/'))
    assert nb.cells[0].cell_type == 'markdown' and re.match(r'# .+\n\n> .+', nb.cells[0].source), 'opens with `# Title` and a `>` line'
    for c in nb.cells:
        if re.match(r'#\|\s*exports?\b', c.source): assert c.source.count('\n') <= 40, f'an exported cell of {c.source.count(chr(10))+1} lines'

def test_modules_are_rooms_not_halls():
    "A module is about 300 lines, 400 at most; past that it is two."
    long = {f: n for f in tracked() if re.match(r'clearsight_nb/\w+/\w+\.py$', f) and (n := (ROOT/f).read_text(encoding='utf-8').count('\n'))>400}
    assert not long, f'split their notebooks: {long}'

def test_style():
    "The rules we chose (pyproject.toml, [tool.chkstyle]) hold for code and notebooks."
    run = subprocess.run([f'{BIN}/chkstyle', 'nbs', 'tools', 'tests', 'benchmarks'], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
