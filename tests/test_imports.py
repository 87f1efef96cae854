"The package as a graph: modules import downwards, by the numbers of their notebooks; drawn from the sources, nothing is imported."
import ast
from functools import lru_cache
from graphlib import TopologicalSorter
import pytest
from conftest import ROOT, run
from test_notebooks import PAGES

PACKAGE = ROOT/'clearsight_nb'
#: Module (`core.files`) → number of its notebook
NUMBERS = {f'{p.parent.name}.{p.stem[3:]}': int(p.stem[:2]) for p in map(ROOT.joinpath, PAGES) if p.parent.name!='nbs'}

def imports(source, module):
    "Modules of ours that a module imports anywhere, inside functions too"
    here = ['clearsight_nb', *module.split('.')]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found = [a.name.split('.') for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[:-node.level] if node.level else []
            found = [[*base, *(node.module or '').split('.'), a.name] if node.module else [*base, a.name] for a in node.names]
        else: continue
        yield from ('.'.join(o[1:3]) for o in found if o[0]=='clearsight_nb' and '.'.join(o[1:3]) in NUMBERS)

@lru_cache
def graph():
    "Module → modules it imports"
    files = [p for p in PACKAGE.glob('*/*.py') if p.stem!='__init__']
    return {(m := f'{p.parent.name}.{p.stem}'): frozenset(imports(p.read_text(encoding='utf-8'), m)) - {m} for p in files}

def upward(edges):
    "Arrows that lead to another task, from core to a task, or to a number that is not smaller"
    task = lambda m: m.partition('.')[0]
    for a,bs in edges.items():
        for b in sorted(bs):
            if task(b) not in (task(a), 'core') or task(a)==task(b) and NUMBERS[b]>=NUMBERS[a]: yield f'{a} ({NUMBERS[a]:02}) imports {b} ({NUMBERS[b]:02})'

def test_every_module_is_in_the_graph():
    assert len(graph())>100 and graph().keys() <= NUMBERS.keys()
    assert {'core.files', 'core.recipe', 'core.training'} <= graph()['core.jobs'] and any('core.training' in graph()[f'{t}.train'] for t in ('weather', 'derain'))

def test_no_circle(): assert [*TopologicalSorter(graph()).static_order()]

def test_downwards_only(): assert not (up := [*upward(graph())]), up

@pytest.mark.parametrize('module,line', [('core.files', 'from clearsight_nb.weather.data import read_rgb'), ('weather.data', 'import clearsight_nb.derain.data'),
    ('weather.data', 'def f():\n from . import train'), ('weather.data', 'from .train import weather_learner'), ('core.files', 'from ..glacier import data')])
def test_upward_arrows_are_seen(module, line): assert [*upward({module: [*imports(line, module)]})]

def test_heavy_libraries_wait_until_they_are_used(newest, tmp_path):
    "In an environment without extras: importing all tasks loads none of these beside what fastai loads"
    run([newest, '-W', 'ignore', '-c', '''
import importlib, importlib.util, sys, fastai.vision.all
before = {*sys.modules}
for t in ('glacier', 'weather', 'lowlight', 'derain', 'shadow'): importlib.import_module(f'clearsight_nb.{t}')
loaded = {m.partition('.')[0] for m in {*sys.modules} - before}
heavy = {'diffusers', 'segmentation_models_pytorch', 'transformers', 'torchmetrics', 'skimage', 'tifffile', 'imagecodecs', 'accelerate', 'ipywidgets', 'nbclient'}
assert not heavy & loaded, f'loaded before they are used: {sorted(heavy & loaded)}'
assert not (there := [m for m in ('rasterio', 'rawpy', 'deepinv') if importlib.util.find_spec(m)]), f'{there}: extras that this environment should lack'
'''], cwd=tmp_path)
