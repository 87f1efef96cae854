"Every notebook under nbs/ runs from top to bottom, in a process of its own, as `nbdev_test` runs it."
import os, subprocess, sys
import pytest
from conftest import ROOT

PAGES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)

@pytest.mark.parametrize('page', PAGES)
def test_page(page, tmp_path):
    run = subprocess.run([os.path.join(os.path.dirname(sys.executable), 'nbdev_test'), '--path', page, '--n_workers', '0', '--do_print'],
        cwd=ROOT, env=os.environ | dict(CLEARSIGHT_WORK=str(tmp_path)), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-8000:]
    assert f'Completed {ROOT/page}' in run.stdout, run.stdout  # nbdev_test is silent when it finds nothing to run
