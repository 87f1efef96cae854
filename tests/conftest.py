"What all tests share. The closing line counts notebooks and tests alike: each notebook is one test."
import multiprocessing, os, shutil, subprocess, sys, traceback
from multiprocessing.forkserver import ensure_running
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
# What most pages and many programs import, imported once for all of them: processes are forked from one that has done so, and nothing else.
HEAVY = 'fastai.vision.all', 'nbdev.test', 'matplotlib.pyplot', 'diffusers.models.unets.unet_2d', 'torchmetrics.functional.image', 'skimage.metrics'
os.environ.setdefault('SMOKE', '1')  # kernel pages train for seconds, not minutes

@pytest.fixture
def root(): return ROOT

def run(cmd, **kwargs):
    "What a command prints; it must end well"
    done = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, **kwargs)
    assert done.returncode==0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout

def light(task):
    "The beginning of a program that imports modules of a task without fastai, where they do not need it"
    return f"import sys, types, clearsight_nb; m = types.ModuleType('clearsight_nb.{task}'); m.__path__ = [clearsight_nb.__path__[0] + '/{task}']; sys.modules[m.__name__] = m\n"

@pytest.fixture(scope='session')
def shared(tmp_path_factory):
    "A folder that the processes of pytest-xdist share"
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base

@pytest.fixture(scope='session')
def forks():
    "Like the module multiprocessing; a new process is forked from a fresh one that has what is HEAVY"
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(list(HEAVY))
    ensure_running()
    return ctx

def as_fresh():
    "In such a process: start others as a fresh Python would"
    multiprocessing.set_start_method('fork' if sys.platform=='linux' else 'spawn', force=True)

def run_code(code, args, environ, out):
    "In a process of its own: what `python -c code args` does"
    for fd in (1, 2): os.dup2(out.fileno(), fd)
    out.close()
    as_fresh()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv[:],status = ['-c', *args],0
    try: exec(compile(code, '<code>', 'exec'), dict(__name__='__main__'))
    except SystemExit as e: status = e.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status or 0)

@pytest.fixture
def python(forks):
    "`python(code, *args, **environ)` starts what `python -c code args` would, without the seconds of the heavy imports; all it says is in the file `out`"
    started = []
    def start(code, *args, **environ):
        here,there = forks.Pipe(duplex=False)
        p = forks.Process(target=run_code, args=(code, list(map(str, args)), os.environ | environ, there))
        p.start()
        there.close()
        p.out = open(os.dup(here.fileno()), encoding='utf-8', errors='replace')
        here.close()
        started.append(p)
        return p
    yield start
    for p in started:
        p.kill()
        p.join()
        p.out.close()

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

# What takes longest begins first, in one process of pytest-xdist: modules whose fixtures take long, then the pages, of which another process that has nothing left takes some.
FIRST = 'test_distributed', 'test_kernels', 'test_docs', 'test_browser', 'test_notebooks'

def pytest_collection_modifyitems(items): items.sort(key=lambda i: FIRST.index(i.path.stem) if i.path.stem in FIRST else len(FIRST))

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
