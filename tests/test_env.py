"The environment, seen from fresh processes and made-up machines; nothing here expects a fact of the machine it runs on."
import os, subprocess, sys, time, types
from pathlib import Path
import pytest
from clearsight_nb.core import env as module
from clearsight_nb.core.env import Device, Env, detect_env, env_facts, find_deadline, show_env

KAGGLE = dict(KAGGLE_KERNEL_RUN_TYPE='Batch')

def fresh(code, **environ):
    keep = {k: v for k,v in os.environ.items() if not k.startswith(('KAGGLE', 'SLURM', 'CLEARSIGHT', 'SCRATCH'))}
    out = subprocess.run([sys.executable, '-c', code], env=keep | environ, capture_output=True, text=True, timeout=600)
    assert out.returncode==0, out.stderr
    return out.stdout.strip()

@pytest.mark.parametrize('name', ['env', 'recipe', 'files'])
def test_import_is_light(name):
    code = f'import sys, clearsight_nb.core.{name}; print([m for m in ("torch", "fastai", "numpy", "PIL") if m in sys.modules])'
    assert fresh(code)=='[]'

def test_detecting_does_not_import_torch():
    assert fresh('import sys; from clearsight_nb.core.env import detect_env; repr(detect_env()); print("torch" in sys.modules)')=='False'

@pytest.mark.parametrize('environ,name', [({}, 'local'), (KAGGLE, 'kaggle'), (dict(SLURM_JOB_ID='7'), 'slurm'),
    (KAGGLE | dict(SLURM_JOB_ID='7'), 'kaggle'), (dict(KAGGLE_KERNEL_RUN_TYPE=''), 'local')])
def test_kind_from_the_real_environment(environ, name):
    assert fresh('from clearsight_nb.core.env import detect_env; print(detect_env().name)', **environ)==name

def test_kaggle_folder_alone_is_not_kaggle(tmp_path):
    "The variable decides, not the folder."
    env = detect_env(dict(CLEARSIGHT_KAGGLE_ROOT=str(tmp_path)))
    assert env.name=='local' and tmp_path/'input' not in env.roots

# ---- workers ----

def machine(monkeypatch, cores=8, shm=16e9, quota=None, memory=None):
    monkeypatch.setattr(module.os, 'sched_getaffinity', lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(module, 'shared_memory', lambda: shm)
    monkeypatch.setattr(module, '_cgroup', lambda file: {'cpu.max': quota, 'memory.max': memory}[file])

@pytest.mark.parametrize('cores,shm,environ,workers', [(8, 16e9, {}, 7), (1, 16e9, {}, 0), (64, 16e9, {}, 8), (4, 16e9, KAGGLE, 2), (4, 64e6, KAGGLE, 0),
    (4, 64e6, {}, 0), (4, None, {}, 3), (64, 16e9, dict(SLURM_JOB_ID='1', SLURM_CPUS_PER_TASK='4'), 3), (2, 16e9, dict(SLURM_CPUS_PER_TASK='16'), 1)])
def test_workers(monkeypatch, cores, shm, environ, workers):
    machine(monkeypatch, cores, shm)
    assert detect_env(environ).workers==workers

def test_container_limits(monkeypatch):
    machine(monkeypatch, cores=64, quota=300_000, memory=2**31)
    assert detect_env({}).cores<=3 or not Path('/sys/fs/cgroup/cpu.max').exists()
    assert module.memory_gib()==pytest.approx(min(2, os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')/2**30))

# ---- time ----

def test_deadlines(monkeypatch):
    monkeypatch.setattr(module, '_imported', 30.)
    monkeypatch.setattr(module, 'time', types.SimpleNamespace(time=lambda: 1010., monotonic=lambda: 40.)) # begun at 1000, 10 seconds ago
    assert find_deadline(KAGGLE)==1000 + 11.5*3600
    assert find_deadline(KAGGLE | dict(CLEARSIGHT_TIME_BUDGET='0.5'))==1030
    assert find_deadline(dict(CLEARSIGHT_TIME_BUDGET='60'))==4600
    assert find_deadline(dict(SLURM_JOB_ID='1')) is None
    assert find_deadline(dict(SLURM_JOB_ID='1', SLURM_JOB_START_TIME='0.', SLURM_JOB_END_TIME='100000'))==99400
    for name,environ in [('SLURM_JOB_END_TIME', dict(SLURM_JOB_ID='1', SLURM_JOB_END_TIME='Unknown')), ('CLEARSIGHT_TIME_BUDGET', dict(CLEARSIGHT_TIME_BUDGET='x'))]:
        with pytest.raises(ValueError, match=f'{name}=.*is not a number'): detect_env(environ)

def test_jumps_of_the_clock_change_no_budget(monkeypatch):
    "An hour after the beginning the clock on the wall says 1970"
    now = time.monotonic()
    monkeypatch.setattr(module, 'time', types.SimpleNamespace(time=lambda: 77., monotonic=lambda: now+3600))
    monkeypatch.setattr(module, '_imported', now)
    assert detect_env(KAGGLE).time_budget==pytest.approx(10.5*3600) and detect_env(dict(CLEARSIGHT_TIME_BUDGET='90')).time_budget==pytest.approx(1800)

def test_time_budget_runs_down_and_ends_at_zero():
    env = Env(deadline=time.time() + 1000)
    assert 900 < env.time_budget <= 1000
    assert Env(deadline=time.time() - 5).time_budget==0. and Env().time_budget is None

# ---- inputs ----

@pytest.fixture
def kaggle(tmp_path):
    (tmp_path/'input').mkdir()
    env = detect_env(KAGGLE | dict(CLEARSIGHT_KAGGLE_ROOT=str(tmp_path)))
    env.make = lambda *folders: [(tmp_path/'input'/f).mkdir(parents=True, exist_ok=True) for f in folders]
    return env

@pytest.mark.parametrize('folder', ['glacierhack', 'competitions/glacierhack', 'datasets/ana/glacierhack', 'glacierhack/train2', 'datasets/ana/glacierhack/a/b',
    'somebody-elses-name', 'datasets/bo/copy/train2'])
def test_layouts(kaggle, folder):
    kaggle.make(f'{folder}/Train/Band1', 'wheels', 'datasets/bo/other')
    assert kaggle.find_input('glacierhack', known_file='Train/Band1')==kaggle.roots[0]/folder

def test_name_comes_before_known_file(kaggle):
    kaggle.make('a-copy/Train/Band1', 'glacierhack/Train/Band1')
    assert kaggle.find_input('glacierhack', 'Train/Band1')==kaggle.roots[0]/'glacierhack'

def test_owner_is_respected(kaggle):
    kaggle.make('datasets/ana/glacierhack', 'datasets/bo/glacierhack')
    assert kaggle.find_input('bo/glacierhack')==kaggle.roots[0]/'datasets/bo/glacierhack'
    kaggle.make('glacierhack')
    assert kaggle.find_input('bo/glacierhack')==kaggle.roots[0]/'glacierhack' # the older layout hides owners

def test_data_set_given_by_variable(tmp_path):
    (tmp_path/'glacierhack'/'Train'/'Band1').mkdir(parents=True)
    for root in (tmp_path, tmp_path/'glacierhack'):
        env = detect_env(dict(CLEARSIGHT_DATA=str(root)))
        assert env.find_input('glacierhack', 'Train/Band1')==env.find_input('glacierhack')==tmp_path/'glacierhack'

def test_nothing_found_lists_what_is_there_but_not_all(kaggle):
    kaggle.make(*(f'set{i:03}/part' for i in range(300)), *(f'datasets/owner{i}/x' for i in range(300)))
    with pytest.raises(FileNotFoundError) as e: kaggle.find_input('glacierhack', 'Train/Band1')
    text = str(e.value)
    assert "'glacierhack'" in text and "'Train/Band1'" in text and 'datasets/' in text and 'set000' in text and 'Add Input' in text
    assert len(text) < 6000 and len(text.splitlines()) < 30

def test_no_root_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='data: no such folder'): detect_env({}).find_input('glacierhack')

def test_search_is_bounded(kaggle):
    "Links that lead in circles and deep folders do not keep it busy."
    kaggle.make('a/b/c/d/e/f/Train/Band1')
    os.symlink(kaggle.roots[0], kaggle.roots[0]/'a'/'loop')
    with pytest.raises(FileNotFoundError): kaggle.find_input('glacierhack', 'Train/Band1')

# ---- the set-up check ----

def test_show_env_with_gpus(monkeypatch, capsys):
    import torch
    props = types.SimpleNamespace(name='Tesla T4', total_memory=int(14.74*2**30))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda i: props)
    monkeypatch.setattr(torch.version, 'cuda', '12.4')
    env = detect_env(KAGGLE)
    assert env.devices==[Device('Tesla T4', pytest.approx(14.74), 'cuda')]*2
    show_env(env)
    out = capsys.readouterr().out
    for text in ('Python', torch.__version__, '12.4', 'GPUs           2', 'GPU 1          Tesla T4, 14.7 GiB', 'clearsight_nb', '/kaggle/working', ' h left'):
        assert text in out, text

def test_facts_hide_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path/'runs').mkdir()
    facts = env_facts(detect_env(dict(CLEARSIGHT_WORK=str(tmp_path/'runs'), CLEARSIGHT_DATA=str(tmp_path/'data'))))
    assert facts['work folder']=='~/runs' and facts['input'].startswith('~/data') and str(tmp_path) not in str(facts)
