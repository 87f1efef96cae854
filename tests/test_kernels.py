"""Every generated kernel runs headless in a made-up Kaggle, twice; the metadata pass the published client; the data set of wheels is whole.

The made-up Kaggle: a folder in the place of /kaggle with read-only inputs, its environment variables, a Python that has every package but ours
and can reach nothing outside this machine, and our package as a wheel in an attached data set.
"""
import json, os, re, shutil, subprocess, sys, venv, zipfile
from collections import namedtuple
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, patch
import nbformat, pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook
from clearsight_nb.core.files import DataError
from clearsight_nb.core.kernels import INSTALL, OWNER, run_kernel, slugify, train_on_gpus
from conftest import ROOT
from fork_server import programs

sys.path.append(str(ROOT/'tools'))
import kaggle_dataset

KERNELS = sorted((ROOT/'kaggle_kernels').glob('*/*.ipynb'))
# What a task's test data is called and how it is made; where Kaggle mounts it and the last session; what the kernel says and leaves in the end
Task = namedtuple('Task', 'slug sample mount session says leaves')
OLD,NEW,LAST = 'input/{}','input/datasets/ann/{}',('input/last-session', 'input/notebooks/ann/last-session')
TASKS = dict(
    glacier=Task('glacierhack-2025', dict(tiles=6, size=64, seed=1), 'input/competitions/{}', LAST[1], 'validation R_K', 'submission/img*.tif'),
    weather=Task('allweather', dict(n=6, n_valid=2, size=48, seed=1), OLD, LAST[0], 'RGB PSNR', 'restored/*.png'),
    lowlight=Task('lowlight-tiles', dict(n=8, n_valid=2, n_test=2, size=32), NEW, LAST[1], 'linear PSNR enhanced', 'enhanced/*.png'),
    derain=Task('derain', dict(n=2, n_valid=1, size=64, variants=2, levels=('medium',)), OLD, LAST[0], 'RGB PSNR derained', 'derained/*.png'),
    shadow=Task('shadow', dict(objects=12, lights=2, size=16, samples=3), NEW, LAST[1], 'Track 1, one step', 'tracks.tar'))

NO_NETWORK = '''
import sys
here = ('127.0.0.1', '::1', 'localhost', b'127.0.0.1', b'localhost', None, '')
def refuse(event, args):
    if event in ('socket.connect', 'socket.sendto') and isinstance(args[1], tuple) and args[1][0] not in here: raise OSError(101, 'Network is unreachable')
    if event in ('socket.getaddrinfo', 'socket.gethostbyname') and args[0] not in here: raise OSError(-3, 'Temporary failure in name resolution')
sys.addaudithook(refuse)
'''

# ---- the made-up Kaggle

def stand_in(folder, requirement, requires=()):
    "A wheel with a name and a version, and nothing inside"
    name,version = requirement.replace('-', '_').split('==')
    info = f'{name}-{version}.dist-info'
    with zipfile.ZipFile(folder/f'{name}-{version}-py3-none-any.whl', 'w') as z:
        z.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n' + ''.join(f'Requires-Dist: {r}\n' for r in requires))
        z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr(f'{info}/RECORD', '')

@pytest.fixture(scope='module')
def index(tmp_path_factory):
    "What pip finds instead of the package index"
    folder = tmp_path_factory.mktemp('index')
    for w in kaggle_dataset.WHEELS: stand_in(folder, w)
    with patch.dict(os.environ, PIP_NO_INDEX='1', PIP_FIND_LINKS=str(folder)): yield folder

@pytest.fixture(scope='module')
def upload(index, tmp_path_factory):
    "What `make kaggle-dataset OWNER=ann` makes, but that the other packages' wheels are empty"
    return kaggle_dataset.build(tmp_path_factory.mktemp('dist')/'kaggle', 'ann')

def clean_python(folder, newest):
    "A Python with the packages of the newest line but for ours, and without network"
    venv.create(folder, symlinks=True)
    site = next(folder.glob('lib/python*/site-packages'))
    for p in next(newest.parents[1].glob('lib/python*/site-packages')).iterdir():
        if not re.search(r'clearsight_nb|\.pth$|^__pycache__$', p.name): (site/p.name).symlink_to(p)
    (site/'no_network.py').write_text(NO_NETWORK)
    (site/'no_network.pth').write_text('import no_network\n')
    return folder

class Kaggle:
    "A folder like /kaggle, and a Python whose kernels run in it"
    def __init__(self, python, root, argv=None):
        self.python,self.root,self.work = python,root,root/'working'
        spec = python/'jupyter/kernels/python3/kernel.json'
        spec.parent.mkdir(parents=True, exist_ok=True)
        argv = argv or [str(python/'bin/python'), '-m', 'ipykernel_launcher']
        spec.write_text(json.dumps(dict(argv=[*argv, '-f', '{connection_file}'], display_name='Python 3', language='python')))
    def attach(self, folder, mount):
        "Move a folder to an input; what is below the inputs is only read"
        to = self.root/mount
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, to)
        for p in [to, *to.rglob('*')]: p.chmod(0o555 if p.is_dir() else 0o444)
        return to
    def inputs(self): return {p: p.stat().st_mtime_ns for p in (self.root/'input').rglob('*')}
    def run(self, kernel, **environ):
        "What the kernel says; its inputs are as before"
        heard,before = [],self.inputs()
        env = dict(KAGGLE_KERNEL_RUN_TYPE='Batch', CLEARSIGHT_KAGGLE_ROOT=str(self.root), SMOKE='1', CLEARSIGHT_PROGRESS='text', OMP_NUM_THREADS='1')
        env |= dict(PYTHONPATH='', MPLBACKEND='module://matplotlib_inline.backend_inline')
        env |= dict(PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL='https://index.invalid/simple', PIP_NO_INDEX='', PIP_FIND_LINKS='', PIP_RETRIES='0')
        with patch.dict(os.environ, JUPYTER_PATH=str(self.python/'jupyter')): run_kernel(kernel, self.work, env | environ, echo=heard.append)
        assert self.inputs()==before, 'an input was changed'
        return ''.join(heard)

@pytest.fixture(scope='module')
def warm_python(tmp_path_factory, newest):
    "A clean Python, and the arguments by which Jupyter gets a kernel from a process of it that has fastai imported"
    python = clean_python(tmp_path_factory.mktemp('python'), newest)
    env = os.environ | dict(PYTHONPATH='', OMP_NUM_THREADS='1', MPLBACKEND='module://matplotlib_inline.backend_inline')
    with programs(python/'bin', ['kernel'], ROOT/'tests/kaggle_server.py', python=python/'bin/python', env=env, cwd=python): yield python,[str(python/'bin/kernel')]

# ---- the kernels as files

@pytest.mark.parametrize('kernel', KERNELS, ids=lambda p: p.stem)
def test_kernel_is_well_formed(kernel):
    "A valid notebook without outputs, with all that a kernel should show, in order."
    nb = nbformat.read(kernel, as_version=4)
    nbformat.validate(nb)
    assert len({c.id for c in nb.cells})==len(nb.cells)
    assert not any(c.get('outputs') or '#|' in c.source for c in nb.cells)
    assert re.match(r'# .+\n\n> .+', nb.cells[0].source) and nb.cells[1].source==INSTALL
    code,at = '\n'.join(c.source for c in nb.cells if c.cell_type=='code'),-1
    for part in ('show_env(env)', 'find_input(', 'load_recipe(', 'print(recipe)', 'show_batch(', 'train_on_gpus(recipe, data, env)', 'fetch_run(recipe', 'fit_recipe(learn',
                 'plot_log(', 'evaluate_', 'show_files(env.work)'):
        found = code.find(part)
        assert found >= 0, f'no {part}'
        if part not in ('find_input(', 'load_recipe(', 'print(recipe)', 'show_batch('): # data, recipe and pictures in the order that suits the task
            assert found > at, f'{part} comes too early'
            at = found

def test_every_task_with_a_kernel_is_run_here(): assert {k.stem for k in KERNELS}==set(TASKS), 'add a row to TASKS'

# ---- the kernels, run

@pytest.mark.parametrize('task', TASKS)
def test_kernel_on_kaggle(task, upload, warm_python, tmp_path):
    "The first session installs the wheel, finds the data and is stopped by the time budget; the second goes on from its output and ends."
    t,kernel = TASKS[task],ROOT/f'kaggle_kernels/{task}/{task}.ipynb'
    kaggle = Kaggle(warm_python[0], tmp_path/'kaggle', warm_python[1])
    kaggle.attach(shutil.copytree(upload/'wheels', tmp_path/'wheels'), (OLD if t.mount==NEW else NEW).format('clearsight-wheels'))
    kaggle.attach(getattr(import_module(f'clearsight_nb.{task}'), f'{task}_sample')(tmp_path/'data', **t.sample), t.mount.format(t.slug))
    nb = nbformat.read(kernel, as_version=4)
    nb.cells = nb.cells[:1 + next(i for i,c in enumerate(nb.cells) if 'fit_recipe(' in c.source)]
    nbformat.write(nb, first := tmp_path/f'{task}.ipynb')
    said = kaggle.run(first, CLEARSIGHT_TIME_BUDGET='0')
    run = kaggle.work/f'runs/{task}/smoke'
    assert (run/'training.log').read_text().endswith('ended: time budget\n') and not (kaggle.work/'sample').exists(), said
    made = int(re.search(r'checkpoint \(time budget\) at step (\d+)', (run/'training.log').read_text())[1])
    kaggle.attach(kaggle.work, t.session)
    said = kaggle.run(kernel)
    log = (run/'training.log').read_text()
    assert f'Going on with the run in {t.session.removeprefix("input/")}/runs/{task}/smoke' in said
    assert re.search(rf'resumed at step {made} of (?!{made}\b)\d+\n', log) and log.rstrip().endswith('ended: finished'), log
    assert t.says in said and not (kaggle.work/'sample').exists(), 'the attached data was not used'
    assert re.search(r' files in all$', said.rstrip()) and re.search(rf'[kM]B  runs/{task}/smoke/weights.safetensors', said)
    assert list(kaggle.work.glob(t.leaves)) and (run/'recipe.yaml').exists() and len(list((kaggle.work/'figures').glob('*.png'))) >= 3

def test_install_cell(upload, newest, tmp_path):
    "Without the data set it says what to do; with it, it installs from it; there is no network, and the checkout is out of sight."
    kaggle = Kaggle(clean_python(tmp_path/'python', newest), tmp_path/'kaggle')
    (kaggle.root/'input/other').mkdir(parents=True)
    probe = 'import clearsight_nb, socket\nprint(clearsight_nb.__file__)\nsocket.create_connection(("192.0.2.1", 80), timeout=5)'
    nbformat.write(new_notebook(cells=[new_code_cell(INSTALL), new_code_cell(probe)]), notebook := tmp_path/'install.ipynb')
    with pytest.raises(CellExecutionError, match='Attach the data set that'): kaggle.run(notebook)
    kaggle.attach(shutil.copytree(upload/'wheels', tmp_path/'wheels'), 'input/datasets/ann/clearsight-wheels')
    with pytest.raises(CellExecutionError, match='Network is unreachable'): kaggle.run(notebook)
    said = nbformat.read(kaggle.work/notebook.name, as_version=4)
    assert f'from {kaggle.root}/input/datasets/ann/clearsight-wheels' in said.cells[0].outputs[0].text
    package = Path(said.cells[1].outputs[0].text.strip())
    assert package.is_relative_to(kaggle.python) and (package.parent/'recipes/glacier/demo.yaml').exists()

EVERY = '''import importlib, pkgutil, fastai, fastcore, clearsight_nb
names = [m.name for m in pkgutil.walk_packages(clearsight_nb.__path__, 'clearsight_nb.') if not m.name.endswith('_modidx')]
for n in names: importlib.import_module(n)
from clearsight_nb.glacier import *
print('found', clearsight_nb.__file__, len(names), fastai.__version__, fastcore.__version__)'''

def test_every_module_imports(upload, warm_python, tmp_path):
    "The wheel holds all modules, and they work on the newest fastai line."
    kaggle = Kaggle(warm_python[0], tmp_path/'kaggle', warm_python[1])
    kaggle.attach(shutil.copytree(upload/'wheels', tmp_path/'wheels'), 'input/datasets/ann/clearsight-wheels')
    nbformat.write(new_notebook(cells=[new_code_cell(INSTALL), new_code_cell(EVERY)]), notebook := tmp_path/'every.ipynb')
    file,n,*versions = re.search(r'found (\S+) (\d+) (\S+) (\S+)', kaggle.run(notebook)).groups()
    assert Path(file).is_relative_to(kaggle.python)
    assert int(n)==len([p for p in (ROOT/'clearsight_nb').rglob('*.py') if p.name!='_modidx.py']) - 1 # all but the package itself
    fastai,fastcore = ([int(o) for o in v.split('.')[:3]] for v in versions)
    assert fastai>=[2, 8, 9] and fastcore[0]>=2, versions

def test_two_gpus_train_in_two_processes(tmp_path, monkeypatch):
    "The earlier run is fetched, the recipe lies where the processes look for it, and `clearsight` understands the command."
    from clearsight_nb.core.cli import command_parser, train_task
    from clearsight_nb.core.env import Device, Env
    from clearsight_nb.core.recipe import load_recipe, read_recipe
    launch = Mock(return_value=0)
    monkeypatch.setitem(sys.modules, 'clearsight_nb.core.launch', SimpleNamespace(launch=launch))
    env = Env('kaggle', [tmp_path/'input'], tmp_path/'working')
    recipe = load_recipe('glacier', 'demo', env=env, overrides=['name=two'])
    before = tmp_path/'input/last/runs/glacier/two'
    for f in ('checkpoints/latest.pt', 'log.csv'):
        (before/f).parent.mkdir(parents=True, exist_ok=True)
        (before/f).write_text(f)
    env.devices = [Device('T4', 15, 'cuda')]
    assert train_on_gpus(recipe, tmp_path/'data', env) is None and not launch.called and not env.work.exists()
    env.devices *= 2
    assert train_on_gpus(recipe, tmp_path/'data', env)==0
    run = env.work/'runs/glacier/two'
    assert (run/'checkpoints/latest.pt').read_text()=='checkpoints/latest.pt' and read_recipe(run)==recipe
    (words,),kw = launch.call_args
    assert words[0]=='train' and kw==dict(env=env)
    args = vars(command_parser('train', train_task).parse_args(words[1:]))
    assert (args['task'], args['data'], args['run_dir'], args['preset'])==('glacier', str(tmp_path/'data'), str(run), None)

# ---- what is uploaded

@pytest.fixture
def client(tmp_path, monkeypatch):
    "The published client with a made-up account; what it would send goes to `client.sent`"
    for k in [k for k in os.environ if k.startswith('KAGGLE_')]: monkeypatch.delenv(k)
    monkeypatch.setenv('KAGGLE_CONFIG_DIR', str(tmp_path))
    monkeypatch.setenv('HOME', str(tmp_path))
    from kaggle.api.kaggle_api_extended import HTTPError, KaggleApi
    api = KaggleApi()
    api.config_values,api.sent = dict(username='ann'),Mock()
    api.build_kaggle_client = lambda *_: Mock(__enter__=lambda _: api.sent, __exit__=lambda *_: None)
    def status(*_): raise HTTPError('404')
    api.dataset_status = status
    return api

@pytest.mark.parametrize('task', TASKS)
def test_client_takes_the_kernel(task, client, upload, tmp_path, capsys):
    "`kaggle kernels push` finds nothing wrong: private, two T4s, no internet, the wheels attached."
    client.kernels_push(str(upload/task))
    sent = client.sent.kernels.kernels_api_client.save_kernel.call_args[0][0]
    assert sent.slug==f'ann/{slugify(sent.new_title)}' and 'does not resolve' not in capsys.readouterr().out
    assert (sent.is_private, sent.enable_gpu, sent.enable_internet, sent.enable_tpu, sent.machine_shape)==(True, True, False, False, 'NvidiaTeslaT4')
    assert sent.dataset_data_sources[0]=='ann/clearsight-wheels' and len(json.loads(sent.text)['cells']) > 10
    here = shutil.copytree(ROOT/f'kaggle_kernels/{task}', tmp_path/task)
    client.kernels_push(str(here)) # as it is in the repository
    assert client.sent.kernels.kernels_api_client.save_kernel.call_args[0][0].slug.startswith(f'{OWNER}/')
    meta = here/'kernel-metadata.json'
    meta.write_text(meta.read_text().replace('/clearsight-wheels', ''))
    with pytest.raises(ValueError, match='Dataset must be specified'): client.kernels_push(str(here)) # the rules are alive

def test_client_takes_the_wheels(client, upload):
    "`kaggle datasets create` finds nothing wrong, and sends the wheels."
    client.upload_files = Mock()
    client.with_retry = lambda f: f
    client.dataset_create_new(str(upload/'wheels'), quiet=True)
    sent = client.sent.datasets.dataset_api_client.create_dataset.call_args[0][0]
    assert (sent.owner_slug, sent.slug, sent.license_name, sent.is_private)==('ann', 'clearsight-wheels', 'other', True)
    assert slugify(sent.title)==sent.slug and client.upload_files.call_args[0][2]==str(upload/'wheels')
    meta = json.loads((ROOT/'kaggle_kernels/wheels/dataset-metadata.json').read_text())
    assert json.loads((upload/'wheels/dataset-metadata.json').read_text())==meta | dict(id='ann/clearsight-wheels')

def test_wheels_are_whole(upload, tmp_path):
    "What a wheel requires is in the data set or in Kaggle's image; one that is absent, or too old there, is named."
    wheels = shutil.copytree(upload/'wheels', tmp_path/'wheels')
    assert len(list(wheels.glob('*.whl')))==len(kaggle_dataset.WHEELS) + 1
    with zipfile.ZipFile(next(wheels.glob('clearsight_nb-*.whl'))) as z: names = z.namelist()
    assert {f for f in names if f.endswith('.py')}=={p.relative_to(ROOT).as_posix() for p in (ROOT/'clearsight_nb').rglob('*.py')}
    assert 'clearsight_nb/recipes/weather/allweather.yaml' in names
    stand_in(wheels, 'pond==1.0', ['numpy>=99; python_version>="3.12"', 'ripples; extra=="lake"', 'waves; sys_platform=="win32"'])
    with pytest.raises(DataError, match=r'pond-1.0.*requires numpy>=99.*there is 2\.'): kaggle_dataset.check_complete(wheels)
    stand_in(wheels, 'pond==1.0')
    next(wheels.glob('imagecodecs*')).unlink()
    with pytest.raises(DataError, match='clearsight_nb.*requires imagecodecs.*absent'): kaggle_dataset.check_complete(wheels)

def test_a_failed_download_changes_nothing(index, upload, tmp_path, monkeypatch):
    "A wheel that cannot be had is named, and what was made before stays; the next try replaces it."
    monkeypatch.setattr(kaggle_dataset, 'build_wheel', lambda dest: shutil.copy(next((upload/'wheels').glob('clearsight_nb-*.whl')), dest))
    dest = tmp_path/'kaggle'
    kaggle_dataset.build(dest, 'ann')
    before = {p.relative_to(dest) for p in dest.rglob('*')}
    (dest/'stale').touch()
    with pytest.raises(DataError, match='no-such-pond'): kaggle_dataset.build(dest, 'ann', [*kaggle_dataset.WHEELS, 'no-such-pond==1.0'])
    assert (dest/'stale').exists() and [p.name for p in tmp_path.iterdir()]==['kaggle']
    kaggle_dataset.build(dest, 'ann')
    assert {p.relative_to(dest) for p in dest.rglob('*')}==before

# ---- on a machine of one's own

def test_demo_command(tmp_path):
    "The demo streams what the kernel says and ends with the places to look at; an unknown task and an error are told in words."
    shutil.copytree(ROOT/'tools', tmp_path/'tools', ignore=shutil.ignore_patterns('__pycache__'))
    cell = 'from pathlib import Path\nfrom PIL import Image\nPath("submission").mkdir()\nprint("3 ponds")\nImage.new("RGB", (4, 4))'
    for name,source in dict(pond=cell, bog='1/0').items():
        (tmp_path/f'kaggle_kernels/{name}').mkdir(parents=True)
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), tmp_path/f'kaggle_kernels/{name}/{name}.ipynb')
    def demo(task): return subprocess.run([sys.executable, 'tools/demo.py', task], cwd=tmp_path, env=os.environ | dict(PYTHONPATH=str(ROOT)), capture_output=True, text=True)
    done = demo('pond')
    assert done.returncode==0 and '3 ponds' in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]
    for place in ('demo/pond/pond.ipynb', 'demo/pond/figures', 'demo/pond/submission'): assert place in done.stdout and (tmp_path/place).exists()
    wrong,broken = demo('ponds'),demo('bog')
    assert wrong.returncode==1 and "There is no kernel for 'ponds'. Use TASK= one of: bog, pond" in wrong.stderr
    assert broken.returncode==1 and 'ZeroDivisionError' in broken.stderr and 'demo/bog/bog.ipynb' in broken.stderr
