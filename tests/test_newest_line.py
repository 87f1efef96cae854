"The built wheel works on the newest fastai line too: it installs and every module imports, without what is loaded when used. Kernels run on that line in test_kernels.py."
from conftest import ROOT, run

def test_every_module_imports(newest, tmp_path):
    code = '''
import importlib, importlib.util, pkgutil, sys, fastai.vision.all, fastcore, clearsight_nb
before = {*sys.modules}
for t in ('glacier', 'weather', 'lowlight', 'derain', 'shadow'): importlib.import_module(f'clearsight_nb.{t}')
loaded = {m.partition('.')[0] for m in {*sys.modules} - before}
heavy = {'diffusers', 'segmentation_models_pytorch', 'transformers', 'torchmetrics', 'skimage', 'tifffile', 'imagecodecs', 'accelerate', 'ipywidgets', 'nbclient'}
assert not heavy & loaded, f'loaded before they are used: {sorted(heavy & loaded)}'
assert not (there := [m for m in ('rasterio', 'rawpy', 'deepinv') if importlib.util.find_spec(m)]), f'{there}: extras that this environment should lack'
names = [m.name for m in pkgutil.walk_packages(clearsight_nb.__path__, 'clearsight_nb.') if not m.name.endswith('_modidx')]
for n in names: importlib.import_module(n)
assert '.newest' in clearsight_nb.__file__, clearsight_nb.__file__
print(len(names), fastai.__version__, fastcore.__version__)
exec('from clearsight_nb.glacier import *')
'''
    out = run([newest, '-W', 'ignore', '-c', code], cwd=tmp_path).split()
    modules = [p for p in (ROOT/'clearsight_nb').rglob('*.py') if p.name != '_modidx.py']
    assert int(out[0]) == len(modules) - 1  # all but the package itself
    assert tuple(map(int, out[1].split('.')[:3])) >= (2, 8, 9) and int(out[2].split('.')[0]) >= 2, out
