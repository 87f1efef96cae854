"What all tests share. The closing line counts notebooks and tests alike: each notebook is one test."
import os
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault('SMOKE', '1')  # kernel pages train for seconds, not minutes

@pytest.fixture
def root(): return ROOT

def pytest_unconfigure(config):
    report = config.pluginmanager.get_plugin('terminalreporter')
    if report is None or hasattr(config, 'workerinput'): return
    count = lambda *kinds: sum(len(report.stats.get(k, [])) for k in kinds)
    skipped = count('skipped', 'xfailed')
    print(f'{count("passed", "xpassed")} passed, {count("failed", "error")} failed' + (f', {skipped} skipped' if skipped else ''))
