"Every generated kernel runs headless in a made-up Kaggle, and the demo command tells where things lie."
import json, os, shutil, subprocess, sys
import nbformat, pytest
from clearsight_nb.core.kernels import run_kernel, slugify
from conftest import ROOT

KERNELS = sorted((ROOT/'kaggle_kernels').glob('*/*.ipynb'))

@pytest.mark.parametrize('kernel', KERNELS, ids=lambda p: p.stem)
def test_kernel_is_well_formed(kernel):
    nb,meta = nbformat.read(kernel, as_version=4), json.loads((kernel.parent/'kernel-metadata.json').read_text())
    nbformat.validate(nb)
    assert not any(c.get('outputs') or '#|' in c.source for c in nb.cells)
    assert meta['code_file'] == kernel.name and meta['id'].split('/')[1] == slugify(meta['title'])
    assert meta['is_private'] is True and meta['enable_internet'] is False

@pytest.mark.parametrize('layout', ['kaggle/input/{}', 'kaggle/input/competitions/{}'])
def test_glacier_kernel_on_kaggle(layout, tmp_path):
    "Data in either mount layout is found, read-only; everything is written under working/."
    from clearsight_nb.glacier import glacier_sample
    data = tmp_path/layout.format('glacierhack-2025')
    glacier_sample(data, tiles=6, size=64, seed=1)
    for p in [data, *data.rglob('*')]: p.chmod(0o555 if p.is_dir() else 0o444)
    before = {p: p.stat().st_mtime_ns for p in data.rglob('*')}
    work = tmp_path/'kaggle/working'
    heard = []
    env = dict(KAGGLE_KERNEL_RUN_TYPE='Batch', CLEARSIGHT_KAGGLE_ROOT=str(tmp_path/'kaggle'), SMOKE='1', CLEARSIGHT_PROGRESS='text')
    run_kernel(ROOT/'kaggle_kernels/glacier/glacier.ipynb', work, env, echo=heard.append)
    assert before == {p: p.stat().st_mtime_ns for p in data.rglob('*')}
    assert not (work/'sample').exists(), 'the attached data was not used'
    text = ''.join(heard)
    assert 'r_k' in text and list(work.glob('submission/img*.tif')) and list(work.glob('runs/glacier/*/checkpoints/best.pt'))

def test_demo_command(tmp_path):
    "`make demo SMOKE=1` streams its progress and ends with the places to look at; an unknown task is named."
    run = lambda task: subprocess.run([sys.executable, 'tools/demo.py', task], cwd=ROOT, env=os.environ | dict(SMOKE='1'), capture_output=True, text=True)
    done = run('glacier')
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for place in ('demo/glacier/glacier.ipynb', 'demo/glacier/figures', 'demo/glacier/submission'):
        assert place in done.stdout and (ROOT/place).exists()
    wrong = run('glaciers')
    assert wrong.returncode and 'glacier' in wrong.stderr and 'There is no kernel' in wrong.stderr

def test_weather_kernel_on_kaggle_goes_on_where_the_last_session_stopped(tmp_path):
    "AllWeather data is read from its read-only mount; a second session takes up the run that is attached as an input."
    from clearsight_nb.weather import weather_sample
    weather_sample(tmp_path/'kaggle/input/allweather', n=6, n_valid=2, size=48, seed=1, progress=False)
    env = dict(KAGGLE_KERNEL_RUN_TYPE='Batch', CLEARSIGHT_KAGGLE_ROOT=str(tmp_path/'kaggle'), SMOKE='1', CLEARSIGHT_PROGRESS='text')
    kernel,heard = ROOT/'kaggle_kernels/weather/weather.ipynb',[]
    work = tmp_path/'kaggle/working'
    run_kernel(kernel, work, env, echo=heard.append)
    text = ''.join(heard)
    assert not (work/'sample').exists() and 'RGB PSNR' in text and 'Going on' not in text
    assert len(list(work.glob('restored/*.png'))) == 2
    shutil.move(work, tmp_path/'kaggle/input/last-session')
    heard.clear()
    run_kernel(kernel, work, env, echo=heard.append)
    assert 'Going on with the run in last-session/runs/weather/smoke' in ''.join(heard)
    assert 'resumed at step 6 of 6' in (work/'runs/weather/smoke/training.log').read_text()

@pytest.mark.parametrize('task, slug, sample, says', [
    ('lowlight', 'lowlight-tiles', dict(n=8, n_valid=2, n_test=2, size=32), 'linear PSNR enhanced'),
    ('derain', 'derain', dict(n=2, n_valid=1, size=64, variants=2, levels=('medium',)), 'RGB PSNR derained')])
def test_kernel_finds_its_data_on_kaggle(task, slug, sample, says, tmp_path):
    "Attached data is read from its read-only mount, nothing is made in its place, and the last line says how good it got."
    from importlib import import_module
    module = import_module(f'clearsight_nb.{task}')
    data = getattr(module, f'{task}_sample')(tmp_path/'kaggle/input'/slug, **sample)
    for p in [data, *data.rglob('*')]: p.chmod(0o555 if p.is_dir() else 0o444)
    before,heard = {p: p.stat().st_mtime_ns for p in data.rglob('*')},[]
    env = dict(KAGGLE_KERNEL_RUN_TYPE='Batch', CLEARSIGHT_KAGGLE_ROOT=str(tmp_path/'kaggle'), SMOKE='1', CLEARSIGHT_PROGRESS='text')
    work = tmp_path/'kaggle/working'
    run_kernel(ROOT/f'kaggle_kernels/{task}/{task}.ipynb', work, env, echo=heard.append)
    assert before=={p: p.stat().st_mtime_ns for p in data.rglob('*')}
    assert not (work/'sample').exists() and says in ''.join(heard)
    assert list(work.glob(f'runs/{task}/smoke/weights.safetensors')) and list(work.glob(f'{dict(lowlight="enhanced", derain="derained")[task]}/*.png'))
