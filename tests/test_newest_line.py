"The built wheel works on the newest fastai line too: it installs, every module imports, every kernel trains."
import os, shutil, subprocess, sys
import pytest
from conftest import ROOT

VENV = ROOT/'.newest'
TASKS = sorted(p.parent.name for p in (ROOT/'kaggle_kernels').glob('*/kernel-metadata.json'))

def run(cmd, **kwargs):
    done = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout

@pytest.fixture(scope='module')
def newest(tmp_path_factory):
    "A Python with the wheel, fastai ≥ 2.8.9 and fastcore ≥ 2.2; never this checkout."
    uv,out = shutil.which('uv', path=os.path.dirname(sys.executable)), tmp_path_factory.mktemp('wheel')
    source = tmp_path_factory.mktemp('source')
    for f in run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT).splitlines():
        if (ROOT/f).is_file():
            (source/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT/f, source/f)
    run([uv, 'build', '--quiet', '--wheel', '--out-dir', out, source])
    python = VENV/'bin/python'
    run([uv, 'venv', '--quiet', '--clear', '--python', sys.executable, VENV])
    wheel = next(out.glob('clearsight_nb-*.whl'))
    run([uv, 'pip', 'install', '--quiet', '--python', python, f'clearsight_nb[kernels] @ file://{wheel}', 'fastai>=2.8.9', 'fastcore>=2.2'])
    return python

def test_every_module_imports(newest, tmp_path):
    code = '''
import importlib, pkgutil, fastai, fastcore, clearsight_nb
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

@pytest.mark.parametrize('task', TASKS)
def test_kernel_trains(newest, task, tmp_path):
    code = f'from clearsight_nb.core.kernels import run_kernel; run_kernel({str(ROOT/"kaggle_kernels"/task/f"{task}.ipynb")!r}, {str(tmp_path)!r})'
    run([newest, '-W', 'ignore', '-c', code], cwd=tmp_path, env=os.environ | dict(SMOKE='1', PYTHONWARNINGS='ignore'))
    assert list(tmp_path.glob(f'runs/{task}/*/weights.safetensors')) and list((tmp_path/'figures').glob('*.png'))
