"Every notebook under nbs/ runs from top to bottom, in a process of its own, as `nbdev_test` runs it."
import os, sys, tempfile, warnings
import pytest
from conftest import ROOT, as_fresh

PAGES = sorted((p.relative_to(ROOT).as_posix() for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts),
    key=lambda p: ('fit_recipe(' not in (ROOT/p).read_text(encoding='utf-8'), p)) # those that train take longest

def tested_with_(cell, *words):
    "Cells with `#| tested_with steps=500 steps=100` train less here than for the outputs that are stored: each second word stands in the place of the one before"
    for old,new in zip(words[::2], words[1::2], strict=True):
        assert cell.source.count(old)==1, f'{old} is not once in\n{cell.source}'
        cell.source = cell.source.replace(old, new)
tested_with_.__test__ = False # nbdev finds it by this name; pytest should not

def run_page(page, work, tmp, log):
    "In a process of its own: run the page, with its output in a file; exit status 0 if it went well"
    with open(log, 'wb') as f:
        for fd in (1, 2): os.dup2(f.fileno(), fd)
    as_fresh()
    os.chdir(ROOT)
    os.environ |= dict(CLEARSIGHT_WORK=str(work), TMPDIR=tmp)
    tempfile.tempdir = None # it is looked up again
    from nbdev.config import get_config
    for w in (DeprecationWarning, PendingDeprecationWarning, FutureWarning): warnings.filterwarnings('error', category=w, module='clearsight_nb|__main__')
    import nbdev.test
    nbdev.test.FrontmatterProc = [nbdev.test.FrontmatterProc, tested_with_]
    ok,_ = nbdev.test.test_nb(ROOT/page, skip_flags=get_config().tst_flags.split(), do_print=True, basepath=ROOT)
    sys.stdout.flush()
    os._exit(not ok)

@pytest.mark.parametrize('page', PAGES)
def test_page(page, forks, tmp_path):
    log = tmp_path/'log.txt'
    with tempfile.TemporaryDirectory(prefix='page') as tmp: # for what the page leaves there: its process ends without clearing up. A short path, for sockets
        p = forks.Process(target=run_page, args=(page, tmp_path, tmp, log))
        p.start()
        p.join()
    out = log.read_text(errors='replace')
    assert p.exitcode == 0, out[-8000:]
    assert f'Completed {ROOT/page}' in out, out  # it is silent when it finds nothing to run
