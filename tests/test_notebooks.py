"Every notebook under nbs/ runs from top to bottom, in a process of its own, as `nbdev_test` runs it."
import multiprocessing, os, sys
import pytest
from conftest import ROOT

PAGES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
# What most pages import, imported once for all of them: processes are forked from one that has done so, and nothing else.
HEAVY = 'fastai.vision.all', 'nbdev.test', 'matplotlib.pyplot', 'diffusers.models.unets.unet_2d', 'torchmetrics.functional.image', 'skimage.metrics'

def run_page(page, work, log):
    "In a process of its own: run the page, with its output in a file; exit status 0 if it went well"
    with open(log, 'wb') as f:
        for fd in (1, 2): os.dup2(f.fileno(), fd)
    multiprocessing.set_start_method('fork' if sys.platform=='linux' else 'spawn', force=True) # what a fresh Python has
    os.chdir(ROOT)
    os.environ['CLEARSIGHT_WORK'] = str(work)
    from nbdev.config import get_config
    from nbdev.test import test_nb as run_notebook
    ok,_ = run_notebook(ROOT/page, skip_flags=get_config().tst_flags.split(), do_print=True, basepath=ROOT)
    sys.stdout.flush()
    os._exit(not ok)

@pytest.fixture(scope='session')
def forks():
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(list(HEAVY))
    return ctx

@pytest.mark.parametrize('page', PAGES)
def test_page(page, forks, tmp_path):
    log = tmp_path/'log.txt'
    p = forks.Process(target=run_page, args=(page, tmp_path, log))
    p.start()
    p.join()
    out = log.read_text(errors='replace')
    assert p.exitcode == 0, out[-8000:]
    assert f'Completed {ROOT/page}' in out, out  # it is silent when it finds nothing to run
