"The package as a graph: modules import downwards, by the numbers of their notebooks (docs/graph.py); heavy libraries wait until they are used."
import sys
from functools import lru_cache
from graphlib import TopologicalSorter
import pytest
from conftest import ROOT, run

sys.path.append(str(ROOT/'docs'))
from graph import NUMBERS, imports, upward
import graph as graphs

graph = lru_cache(graphs.graph)

def test_every_module_is_in_the_graph():
    assert len(graph())>100 and graph().keys() <= NUMBERS.keys()
    assert {'core.files', 'core.recipe', 'core.training'} <= graph()['core.jobs'] and any('core.training' in graph()[f'{t}.train'] for t in ('weather', 'derain'))

def test_no_circle(): assert [*TopologicalSorter(graph()).static_order()]

def test_downwards_only(): assert not (up := [*upward(graph())]), up

@pytest.mark.parametrize('module,line', [('core.files', 'from clearsight_nb.weather.data import read_rgb'), ('weather.data', 'import clearsight_nb.derain.pairs'),
    ('weather.data', 'def f():\n from . import train'), ('weather.data', 'from .train import weather_learner'), ('core.files', 'from ..glacier import data')])
def test_upward_arrows_are_seen(module, line): assert [*upward({module: [*imports(line, module)]})]

@pytest.mark.parametrize('section', sorted({m.partition('.')[0] for m in NUMBERS}))
def test_pictures_show_every_arrow(section):
    own = {m: bs for m,bs in graph().items() if m.startswith(f'{section}.')}
    ax, = graphs.draw(graph(), section).axes
    assert len(ax.patches)==sum(b in own for bs in own.values() for b in bs)
    assert {t.get_text() for t in ax.texts} >= {f'{NUMBERS[m]:02} {m.partition(".")[2]}' for m in own}

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
