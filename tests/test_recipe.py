"Recipes: packaged files stay as they are, tasks register themselves, hostile and damaged YAML is refused."
import hashlib, sys
from dataclasses import dataclass, field, fields
import pytest, clearsight_nb
from clearsight_nb.core import recipe as module
from clearsight_nb.core.files import write_json
from clearsight_nb.core.recipe import (Recipe, RecipeError, TrainingRecipe, add_presets, choice, list_presets, load_recipe, number, read_recipe, recipe_diff,
    recipe_hash, register_recipe, save_recipe)

PACKAGED = sorted((p.parent.name, p.stem) for p in module._package_recipes().glob('*/*.yaml'))

def fingerprint(): return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(module._package_recipes().rglob('*')) if p.is_file()}

@pytest.fixture(autouse=True)
def untouched():
    "Whatever a test does, packaged presets, their folders and the registry are afterwards as they were."
    before,folders = fingerprint(),list(module._preset_folders)
    yield
    for task in ('kites', 'testkites'): module._recipes.pop(task, None)
    module._preset_folders[:] = folders
    assert fingerprint()==before

@dataclass
class Wing:
    span:float = number(1., 0.1, 10)
    colour:str = choice('red', 'blue')

@dataclass
class KiteRecipe:
    task:str = 'kites'
    name:str = 'default'
    wing:Wing = field(default_factory=Wing)
    tail:Wing|None = None
    weights:dict[str, float] = field(default_factory=lambda: dict(a=1., b=2.))
    sizes:list[int] = field(default_factory=lambda: [1, 2])
    training:TrainingRecipe = field(default_factory=TrainingRecipe)

@pytest.fixture
def kites(): return register_recipe('kites')(KiteRecipe)

@pytest.mark.parametrize('env', ['kaggle', 'slurm', 'local'])
@pytest.mark.parametrize('task,preset', PACKAGED)
def test_packaged_preset(task, preset, env, tmp_path):
    "Every packaged preset loads everywhere, survives saving, and stays as it was on disk (see `untouched`)."
    recipe = load_recipe(task, preset, env=env, overrides=['training.batch_size=3', 'name=x'])
    assert (recipe.task, recipe.name, recipe.training.batch_size)==(task, 'x', 3)
    save_recipe(recipe, tmp_path)
    assert read_recipe(tmp_path)==recipe

def test_there_are_packaged_presets(): assert ('glacier', 'demo') in PACKAGED

def test_packaged_folder_is_refused(kites):
    link = module._package_recipes()
    with pytest.raises(RecipeError, match='never written to'): save_recipe(load_recipe('kites', None), link/'glacier')
    with pytest.raises(RecipeError, match='never written to'): save_recipe(load_recipe('kites', None), link/'..'/'recipes')

# ---- tasks register themselves ----

KITES = '''
from dataclasses import dataclass, field
from clearsight_nb.core.recipe import TrainingRecipe, register_recipe
@register_recipe('testkites')
@dataclass
class R:
    task:str = 'testkites'
    name:str = 'default'
    training:TrainingRecipe = field(default_factory=TrainingRecipe)
'''

@pytest.fixture
def extra_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr(clearsight_nb, '__path__', [*clearsight_nb.__path__, str(tmp_path)])
    yield tmp_path
    for name in [m for m in sys.modules if m.startswith('clearsight_nb.test')]: del sys.modules[name]

def test_task_is_imported_when_first_asked_for(extra_tasks):
    (extra_tasks/'testkites.py').write_text(KITES)
    run = save_recipe(load_recipe('testkites', None, overrides=['training.seed=7']), extra_tasks/'run')
    del module._recipes['testkites'], sys.modules['clearsight_nb.testkites']
    assert read_recipe(run).training.seed==7 # as in a new process: the file alone names its task

def test_missing_dependency_is_not_hidden(extra_tasks):
    (extra_tasks/'testbroken.py').write_text('import no_such_package')
    with pytest.raises(ModuleNotFoundError, match='no_such_package'): load_recipe('testbroken')

@pytest.mark.parametrize('task', ['glacer', 'core', 'os.path', '../glacier', '', 'nope'])
def test_unknown_task(task):
    with pytest.raises(RecipeError, match='is unknown'): load_recipe(task)

# ---- layers ----

def test_layers(kites, tmp_path):
    (tmp_path/'kites').mkdir()
    (tmp_path/'kites'/'big.yaml').write_text('wing: {span: 2}\ntraining: {lr: 1e-2}\nenvironments:\n  slurm: {wing: {span: 3}, training: {batch_size: 32}}\n')
    add_presets(tmp_path)
    assert list_presets('kites')==['big']
    local,slurm = load_recipe('kites', 'big', env='local'),load_recipe('kites', 'big', env='slurm', overrides=['wing.span=4'])
    assert (local.name, local.wing.span, local.training.batch_size, local.training.lr)==('big', 2., 8, 0.01)
    assert (slurm.wing.span, slurm.training.batch_size)==(4., 32)
    assert recipe_diff(local, slurm)=={'wing.span': (2., 4.), 'training.batch_size': (8, 32)}

def test_environment_is_detected(kites, tmp_path, monkeypatch):
    (tmp_path/'p.yaml').write_text('environments: {kaggle: {training: {batch_size: 64}}}')
    for k in ('SLURM_JOB_ID', 'KAGGLE_KERNEL_RUN_TYPE'): monkeypatch.delenv(k, raising=False)
    assert load_recipe('kites', tmp_path/'p.yaml').training.batch_size==8
    monkeypatch.setenv('KAGGLE_KERNEL_RUN_TYPE', 'Batch')
    assert load_recipe('kites', tmp_path/'p.yaml').training.batch_size==64

def test_own_preset_comes_first(tmp_path):
    (tmp_path/'glacier').mkdir()
    (tmp_path/'glacier'/'demo.yaml').write_text('name: mine')
    add_presets(tmp_path)
    assert module._find_preset('glacier', 'demo')[0]==tmp_path/'glacier'/'demo.yaml'

def test_groups_lists_and_dicts(kites):
    recipe = load_recipe('kites', None, overrides=['tail.span=3', 'weights.b=5', 'weights.c=1e-3', 'sizes=[4]'])
    assert recipe.tail.span==3. and recipe.tail.colour=='red' and dict(recipe.weights)==dict(a=1., b=5., c=0.001) and list(recipe.sizes)==[4]
    assert load_recipe('kites', None, overrides=['training.ema_decay=null', 'tail=null']).tail is None

def test_references_are_resolved(kites, tmp_path):
    (tmp_path/'p.yaml').write_text('training: {lr: 0.5, min_lr: "${training.lr}"}')
    recipe = load_recipe('kites', tmp_path/'p.yaml', env='local')
    assert '$' not in save_recipe(recipe, tmp_path).read_text() and read_recipe(tmp_path).training.min_lr==0.5
    (tmp_path/'p.yaml').write_text('wing: {colour: "${name}"}\nname: green')
    with pytest.raises(RecipeError, match="wing.colour is 'green'. It takes red, blue"): load_recipe('kites', tmp_path/'p.yaml', env='local')
    (tmp_path/'p.yaml').write_text('training: {epochs: "${name}"}\nname: green')
    with pytest.raises(RecipeError, match='training.epochs'): load_recipe('kites', tmp_path/'p.yaml', env='local')

# ---- slips and damage ----

@pytest.mark.parametrize('key', [f.name for f in fields(TrainingRecipe) if len(f.name)>4])
def test_slip_of_the_finger(kites, key):
    "Two letters exchanged: the error names the key that was meant."
    typo = key[:1] + key[2] + key[1] + key[3:]
    if typo==key: typo = key[:-1]
    with pytest.raises(RecipeError) as e: load_recipe('kites', None, overrides=[f'training.{typo}=1'])
    assert f"Did you mean 'training.{key}'?" in str(e.value) and f"override 'training.{typo}=1'" in str(e.value)

WRONG = [('training.epochs', 'ten', 'int'), ('training.epochs', 2.5, 'int'), ('training.lr', 'fast', 'float'), ('training.keep_steps', 'perhaps', 'bool'),
    ('training.steps', 'x', 'int or null'), ('training.lr', None, 'float'), ('sizes', 'x', 'list[int]'), ('sizes', ['x'], 'list[int]'),
    ('weights', dict(a='x'), 'dict[str, float]'), ('training.grad_clip', True, 'float or null')]

@pytest.mark.parametrize('key,value,kind', WRONG)
def test_wrong_type(kites, tmp_path, key, value, kind):
    group,_,name = key.rpartition('.')
    write_json({group: {name: value}} if group else {name: value}, tmp_path/'p.yaml') # JSON is YAML
    with pytest.raises(RecipeError) as e: load_recipe('kites', tmp_path/'p.yaml', env='local')
    assert f'p.yaml: {key} is {value!r}. It takes {kind}.' in str(e.value)

@pytest.mark.parametrize('override', ['training.optimizer=adamx', 'training.precision=fp61', 'training.schedule=onecycle', 'training.epochs=0', 'training.lr=-1',
    'training.lr=.inf.', 'training.ema_decay=1.5', 'training.workers=-1', 'wing.span=11', '=3', '.=3', 'training.=3', 'training..lr=3', 'name', 'training=[1', 'environments.kaggle=1',
    'training.lr.x=3', 'training[lr=1', 'name=${', 'name=${nothing}'])
def test_refused_override(kites, override):
    with pytest.raises(RecipeError) as e: load_recipe('kites', None, overrides=[override])
    assert override in str(e.value)

BAD = [b'- a\n- b', b'just text', b'a: [1', b'\xff\xfe\x00', b'lr: !!python/object/apply:os.system ["true"]', b'a: 1\na: 2', b'\tx: 1', b'? [a, b]\n: 1', b'1: 2',
    b'training:\n- 1', b'name: {a: 1}', b'task: [1]']

@pytest.mark.parametrize('data', BAD)
def test_bad_files(kites, tmp_path, data):
    (tmp_path/'p.yaml').write_bytes(data)
    with pytest.raises(RecipeError, match='p.yaml'): load_recipe('kites', tmp_path/'p.yaml', env='local')
    with pytest.raises(RecipeError, match='p.yaml'): read_recipe(tmp_path/'p.yaml')

def test_empty_file(kites, tmp_path):
    "An empty preset changes nothing; an empty saved recipe is a damaged one."
    (tmp_path/'p.yaml').write_bytes(b'')
    assert load_recipe('kites', tmp_path/'p.yaml', env='local').name=='p'
    with pytest.raises(RecipeError, match='task is missing'): read_recipe(tmp_path/'p.yaml')
    with pytest.raises(RecipeError, match='does not exist'): read_recipe(tmp_path/'nothing'/'recipe.yaml')
    with pytest.raises(RecipeError, match='does not exist'): read_recipe(tmp_path)

def test_saved_recipe_cut_short(kites, tmp_path):
    "However much of the file is left: it is refused, or the remaining lines are whole and the rest are defaults."
    path = save_recipe(load_recipe('kites', None), tmp_path)
    text = path.read_text()
    for n in range(0, len(text), 7):
        path.write_text(text[:n])
        try: recipe = read_recipe(path)
        except RecipeError: continue
        assert recipe.task=='kites'

# ---- what a recipe is ----

def test_recipe_object(kites):
    import copy, pickle
    recipe = load_recipe('kites', None)
    for other in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))): assert other==recipe and recipe_hash(other)==recipe_hash(recipe)
    assert isinstance(recipe, Recipe) and 'wing:\n  span: 1.0' in str(recipe)

def test_hash_is_of_values_not_of_text(kites):
    a = load_recipe('kites', None, overrides=['training.lr=1e-2', 'wing.span=2', 'name=a'])
    b = load_recipe('kites', None, overrides=['wing.span=2.0', 'training.lr=0.01', 'name=b'])
    assert recipe_hash(a)==recipe_hash(b)!=recipe_hash(load_recipe('kites', None))
    assert recipe_hash(KiteRecipe())==recipe_hash(load_recipe('kites', None))
