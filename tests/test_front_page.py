"The front page says what the pages have stored: its table of results, its picture strip, and commands that the program understands."
import ast, importlib, inspect, re, shlex, sys
import nbformat, numpy as np, pytest
from PIL import Image
from conftest import ROOT
sys.path.insert(0, str(ROOT/'tools'))
import front

PAGE = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
REMEDY = '`make notebooks NB=nbs/index.ipynb` makes it again'

def test_results_are_those_of_the_pages():
    cell = next(c for c in PAGE.cells if c.cell_type=='code' and 'results()' in c.source)
    assert cell.outputs[0].data['text/markdown']==front.results(), REMEDY
    assert front.results() in (ROOT/'README.md').read_text(encoding='utf-8'), '`make export` makes README.md again'

def test_results_agree_with_what_the_kernels_print():
    "The table is read from HTML; the last line that each kernel prints was made from the same scores in another way."
    rows = [l.split('|') for l in front.results().split('\n') if 'make demo' in l]
    ours = {r[1].strip(): [float(x) for x in re.findall(r'[\d.]+', r[4])] for r in rows}
    said = dict(glacier=r'validation R_K ([\d.]+)', weather=r'RGB PSNR ([\d.]+)', lowlight=r'enhanced ([\d.]+)', derain=r'derained ([\d.]+)', shadow=r'this training: IoU ([\d.]+)')
    for task,pattern in said.items():
        last = nbformat.read(ROOT/f'nbs/{task}/90_kernel.ipynb', as_version=4).cells[-1].outputs[-1].text
        theirs = [float(x) for x in re.findall(pattern, last)]
        assert theirs and np.allclose(ours[task][:len(theirs)], theirs, rtol=0, atol=.06 if theirs[0]>1 else .0011), (task, ours[task], theirs)

def test_tables_with_groups_are_read():
    grouped = '<table><tr><th></th><th colspan="2">a</th></tr><tr><th></th><th>x</th><th>y</th></tr><tr><th>r</th><td>1</td><td>2</td></tr></table>'
    assert front.read_table(grouped)==dict(r={'a x': '1', 'a y': '2'})
    rows = '<table><tr><th></th><th></th><th>x</th></tr><tr><th rowspan="2">g</th><th>r</th><td>1</td></tr><tr><th>s</th><td>2</td></tr></table>'
    assert front.read_table(rows)=={'g r': dict(x='1'), 'g s': dict(x='2')}

def test_strip_shows_the_pages(tmp_path):
    stored,jpeg = ROOT/front.STRIP,front.strip_jpeg()
    assert stored.stat().st_size<=200_000 and front.shows_the_same(jpeg, stored), '`make export` makes it again'
    other = np.asarray(Image.open(stored)).copy()
    other[100:140, 400:440] = 255 - other[100:140, 400:440] # another result in a part of one panel
    Image.fromarray(other).save(tmp_path/'other.png')
    assert not front.shows_the_same(jpeg, tmp_path/'other.png') and not front.shows_the_same(jpeg, tmp_path/'none.jpg')

def test_strip_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(front.PICTURES, 'derain', ('derain/90_kernel.ipynb', 'plot_log(', 0, (3, 4), []))
    with pytest.raises(SystemExit, match='panels'): front.strip()
    with pytest.raises(SystemExit, match='has 0 cells'): front.outputs('derain/90_kernel.ipynb', 'no such call')

def do_that():
    "What the table of data says to do: the commands and the lines of Python"
    text = next(c.source for c in PAGE.cells if c.source.startswith('## Your data'))
    return re.findall(r'\| `([^`|]+)` \|$', text, re.M)

def test_the_table_has_every_task():
    assert 10<=len(do_that())<=14
    for task in front.PICTURES: assert any(re.search(rf'\b{task}\b', l) for l in do_that()), task

@pytest.mark.parametrize('command', [l for l in do_that() if l.startswith('clearsight')])
def test_command_is_understood(command):
    "Options, presets, keys and settings exist."
    from clearsight_nb.core.cli import COMMANDS, _parse, setting_names
    from clearsight_nb.core.recipe import load_recipe
    program,name,*words = shlex.split(command)
    args = _parse(name, COMMANDS[name], words)
    if name in ('train', 'slurm'): load_recipe(args['task'], args['preset'], overrides=args['overrides'])
    else: assert {o.split('=')[0] for o in args['overrides']} <= set(setting_names(name, args['task']))

@pytest.mark.parametrize('source', [l for l in do_that() if not l.startswith('clearsight')])
def test_line_of_python_calls_what_is_there(source):
    imports,call = ast.parse(source).body
    func = getattr(importlib.import_module(imports.module), call.value.func.id)
    inspect.signature(func).bind(*call.value.args)
