"What all tests share. The closing line counts notebooks and tests alike: each notebook is one test."
import os, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('SMOKE', '1')  # kernel pages train for seconds, not minutes

@pytest.fixture
def root(): return ROOT

def run(cmd, **kwargs):
    "What a command prints; it must end well"
    done = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, **kwargs)
    assert done.returncode==0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout

@pytest.fixture(scope='session')
def shared(tmp_path_factory):
    "A folder that the processes of pytest-xdist share"
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base

@pytest.fixture(scope='session')
def newest(shared):
    "A Python with the wheel, fastai ≥ 2.8.9 and fastcore ≥ 2.2; never this checkout. Made once for all processes."
    from filelock import FileLock
    python,done,uv = ROOT/'.newest/bin/python',shared/'newest.done',shutil.which('uv', path=os.path.dirname(sys.executable))
    with FileLock(shared/'newest.lock'):
        if done.exists(): return python
        for f in run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT).splitlines():
            if (ROOT/f).is_file():
                (shared/'source'/f).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT/f, shared/'source'/f)
        run([uv, 'build', '--quiet', '--wheel', '--out-dir', shared/'wheel', shared/'source'])
        run([uv, 'venv', '--quiet', '--clear', '--python', sys.executable, ROOT/'.newest'])
        wheel = next((shared/'wheel').glob('clearsight_nb-*.whl'))
        run([uv, 'pip', 'install', '--quiet', '--python', python, f'clearsight_nb[kernels,widgets] @ file://{wheel}', 'fastai>=2.8.9', 'fastcore>=2.2', 'pip'])
        done.touch()
    return python

def pytest_unconfigure(config):
    report = config.pluginmanager.get_plugin('terminalreporter')
    if report is None or hasattr(config, 'workerinput'): return
    count = lambda *kinds: sum(len(report.stats.get(k, [])) for k in kinds)
    skipped = count('skipped', 'xfailed')
    print(f'{count("passed", "xpassed")} passed, {count("failed", "error")} failed' + (f', {skipped} skipped' if skipped else ''))

@pytest.fixture(scope='session')
def jobs(tmp_path_factory):
    "Trainings in children that can be killed, for the tests in faults/"
    from fault_jobs import Jobs
    jobs = Jobs(tmp_path_factory.mktemp('work'))
    yield jobs
    jobs.close()
