"Every command of the program `clearsight` with every task, in process, on tiny data and runs of a few steps."
import json, os, subprocess, sys
from pathlib import Path
import pytest
from conftest import ROOT
from clearsight_nb.core import cli
from clearsight_nb.core.cli import COMMANDS, completion, main, setting_names
from clearsight_nb.core.legacy import LEGACY, translate
from clearsight_nb.core.verbs import PREDICT, find_weights, weights_facts

TASKS = 'glacier', 'weather', 'lowlight', 'derain', 'shadow'
CPU = ['training.precision=float32', 'training.workers=0']
SAMPLE = dict(glacier='tiles=5 size=64', weather='n=4 n_valid=2 size=64', lowlight='n=4 n_valid=2 n_test=2 size=32', derain='n=4 n_valid=2 size=32 variants=1',
    shadow='objects=6 lights=2 size=16 samples=2')
RECIPE = dict(glacier=[*CPU, 'training.steps=2', 'data.crop=32', 'data.crops_per_tile=2', 'training.batch_size=4'],
    weather=[*CPU, 'training.steps=2', 'data.repeat=1', 'model.patch=16', 'model.ch_mult=[1]', 'training.batch_size=2'],
    lowlight=[*CPU, 'training.total_kimg=.004', 'training.kimg_per_tick=.002', 'training.lr_rampup_kimg=0', 'training.batch_size=2', 'data.img_resolution=16'],
    derain=[*CPU, 'training.steps=2', 'data.patch=16', 'data.repeat=1', 'model.ch=8', 'training.batch_size=2'],
    shadow=['training.workers=0', 'data.dataset_type=custom', 'data.image_size=16', 'model.widths=[16,24]', 'model.attention=0', 'training.max_iterations=2', 'training.eval_every=1',
        'training.save_every=2', 'training.warmup_steps=0', 'training.batch_size=2'])
SCORE = dict(glacier=['pixels=300'], weather=['preset=fast'], lowlight=['modes=[scale,nlm]'], derain=['baselines=false', 'preset=mean'], shadow=['steps=[1]', 'seeds=[0]'])
HOW = dict(weather=['preset=fast'], lowlight=['alpha=.1', 'mode=oneshot'], derain=['preset=mean'], shadow=['theta=20'], glacier=[])

@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "A work folder that lasts as long as this file"
    folder,was = tmp_path_factory.mktemp('work'),os.environ.get('CLEARSIGHT_WORK')
    os.environ['CLEARSIGHT_WORK'] = str(folder)
    yield folder
    os.environ.pop('CLEARSIGHT_WORK') if was is None else os.environ.update(CLEARSIGHT_WORK=was)

@pytest.fixture
def run(capsys):
    "Status, output and errors of a command"
    def _run(*words):
        try: status = main([*map(str, words)])
        except SystemExit as e: status = e.code
        return status,*capsys.readouterr()
    return _run

@pytest.fixture
def trained(work, run):
    "Folder of a tiny run of a task, and of its data; made once"
    def _trained(task):
        data,folder = work/'data'/task,work/'runs'/task/'tiny'
        if not (folder/'weights.safetensors').is_file():
            status,out,_ = run('sample', task, data, *SAMPLE[task].split(), '--json')
            assert status==0 and json.loads(out)==dict(task=task, path=str(data))
            status,out,err = run('train', task, '--data', data, '--run-dir', folder, *RECIPE[task])
            assert status==0 and 'finished' in out and str(folder) in out and not err, out + err
        return folder,data
    return _trained

# ---- every command with every task

@pytest.mark.parametrize('task', TASKS)
def test_info(run, task):
    status,out,_ = run('info', task, '--json')
    facts = json.loads(out)
    assert status==0 and {*facts['tasks']}=={task} and facts['tasks'][task]['about'] and facts['environment']['torch']
    status,out,_ = run('info', task)
    assert out.startswith(f'{task}: ')

@pytest.mark.parametrize('task', TASKS)
def test_check(run, trained, task):
    _,data = trained(task)
    status,out,_ = run('check', task, data, '--json')
    report = json.loads(out)
    assert status==0 and report['ok'] and report['facts'] and not [f for f in report['findings'] if f['level']=='error']
    status,out,err = run('check', task, data/'nowhere', '--json')
    assert status==1 and out=='' and len(err.splitlines())==1

@pytest.mark.parametrize('task', TASKS)
def test_train_and_resume(run, trained, task):
    "Two steps more, by nothing but the folder; they continue the steps before"
    folder,data = trained(task)
    assert json.loads((folder/'run.json').read_text())==dict(task=task, data=str(data.resolve()), sample='')
    status,out,_ = run('resume', folder)
    assert status==0 and 'resumed at step 2 of 2' in (folder/'training.log').read_text()
    more = dict(lowlight='training.total_kimg=.008', shadow='training.max_iterations=4').get(task, 'training.steps=4')
    status,_,err = run('resume', folder, more)
    assert status==1 and 'with --changed' in err and len(err.splitlines())==1, err
    assert run('resume', folder, more, '--changed')[0]==0
    log = (folder/'training.log').read_text()
    assert 'resumed at step 2 of 4' in log and log.strip().endswith('ended: finished') and ', step 4,' in log

@pytest.mark.parametrize('task', TASKS)
def test_eval(run, trained, task):
    folder,data = trained(task)
    status,out,err = run('eval', task, folder, *SCORE[task], '--json')
    res = json.loads(out)
    assert status==0 and res['task']==task and len(res['table'])>1 and all(isinstance(v, (str, int, float, type(None))) for r in res['table'] for v in r.values()), err
    assert task=='shadow' or res['data']==str(data.resolve()) # what it was trained on
    status,out,_ = run('eval', task, folder, *SCORE[task], '--csv', '--out', folder/'scores.json', *(['--data', res['data']] if task=='shadow' else []))
    assert status==0 and len(out.strip().splitlines())==len(res['table'])+1 and json.loads((folder/'scores.json').read_text())==res

def inputs(task, data):
    "What a task's verb takes"
    return dict(weather=data/'allweather_val'/'input', derain=data/'valid'/'images_rain', glacier=data, lowlight=data/'pt_tiles').get(task)

@pytest.mark.parametrize('task', TASKS)
def test_predict(run, trained, tmp_path, task):
    folder,data = trained(task)
    where = inputs(task, data)
    if task=='shadow': where = cutouts(data, tmp_path/'cutouts')
    status,out,err = run('predict', task, folder, '--data', where, '--out', tmp_path/'out', *HOW[task], '--json')
    files = [Path(f) for f in json.loads(out)['files']]
    assert status==0 and files and all(f.is_file() and f.is_relative_to(tmp_path/'out') for f in files), err
    if task=='glacier': return
    one = next(f for f in sorted(where.rglob('*')) if f.is_file())
    status,out,_ = run('predict', task, folder, '--data', one, '--out', tmp_path/'one.png', *HOW[task])
    assert status==0 and 'one.png' in out
    assert (tmp_path/'one.png').read_bytes() in [f.read_bytes() for f in (tmp_path/'out').rglob('*.png')] # a file or a folder: the same picture

def cutouts(data, to):
    "Pictures with transparency, from the objects and masks of embedded data"
    from PIL import Image
    to.mkdir()
    for f in sorted((data/'objects').iterdir())[:2]:
        im = Image.open(f).convert('RGB')
        im.putalpha(Image.open(data/'masks'/f.name).convert('L'))
        im.save(to/f.name)
    return to

@pytest.mark.parametrize('task', TASKS)
def test_export(run, trained, tmp_path, task):
    "The exported folder is as good as the run"
    folder,data = trained(task)
    status,out,_ = run('export', task, folder, '--out', tmp_path/'shared', '--half', '--json')
    files = json.loads(out)['files']
    assert status==0 and [Path(f).name for f in files]==['weights.safetensors', 'recipe.yaml']
    assert weights_facts(tmp_path/'shared')==weights_facts(folder) and weights_facts(folder)['task']==task
    assert (tmp_path/'shared'/'weights.safetensors').stat().st_size < .8*(folder/'weights.safetensors').stat().st_size
    where = cutouts(data, tmp_path/'cutouts') if task=='shadow' else inputs(task, data)
    status,out,err = run('predict', task, tmp_path/'shared', '--data', where, '--out', tmp_path/'out', *HOW[task])
    assert status==0, err

@pytest.mark.parametrize('task', TASKS)
def test_slurm(run, work, tmp_path, task):
    status,out,_ = run('slurm', task, '--out', tmp_path/'job.sh', '--run_dir', tmp_path/'run', '--time', '01:00:00', *RECIPE[task])
    text = (tmp_path/'job.sh').read_text()
    assert status==0 and f'sbatch {tmp_path/"job.sh"}' in out and f'clearsight train {task} ' in text and RECIPE[task][-1] in text

@pytest.mark.parametrize('task', [t for t in TASKS if (ROOT/'nbs'/t/'90_kernel.ipynb').is_file()])
def test_kernels(run, tmp_path, task):
    status,out,_ = run('kernels', task, '--pages', ROOT/'nbs', '--out', tmp_path, '--json')
    [kernel] = json.loads(out)['kernels']
    assert status==0 and kernel['written'] and Path(kernel['file'])==tmp_path/task/f'{task}.ipynb' and kernel['title']
    status,out,_ = run('kernels', '--pages', ROOT/'nbs', '--out', tmp_path/'none', '--list')
    assert status==0 and 'not written yet' in out and not (tmp_path/'none').exists()

@pytest.mark.parametrize('task', TASKS)
def test_help_of_tasks(run, task):
    for command in ('sample', 'check', 'train', 'eval', 'predict'):
        status,out,_ = run(command, task, '--help')
        assert status==0 and 'example' in out, (command, out)
        for name in setting_names(command, task): assert f'  {name}=' in out, (command, name)
    assert 'training.lr=' in run('train', task, '-h')[1]

# ---- promises

def test_every_option_is_explained():
    for name,func in COMMANDS.items():
        for a in cli.command_parser(name, func)._actions: assert a.help, (name, a.dest)
        assert func.__doc__.endswith('.') and name in cli.EXAMPLES and name in cli.overview()

def test_help_is_light():
    "Help of the program and of a command import no framework"
    code = ('import sys\nfrom clearsight_nb.core.cli import COMMANDS, main\nmain([])\nfor c in COMMANDS:\n try: main([c, "--help"])\n except SystemExit as e: assert e.code==0\n'
        'main(["completion"])\nmain(["--version"])\nprint(sorted({"torch", "fastai", "pandas", "diffusers"} & {*sys.modules}))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    assert done.stdout.splitlines()[-1:]==['[]'], done.stderr

@pytest.mark.parametrize('words,status,want', [
    ('trian', 2, "Did you mean 'train'?"), ('train', 2, 'task'), ('predict weather --out x', 2, '--data'), ('train weather --presett x', 2, "Did you mean '--preset'?"),
    ('train weather --zzz', 2, '--help'), ('slurm weather --cpus many', 2, 'cpus'), ('train weather --preset', 2, 'preset'), ('train weather --config nothing.yml', 2, 'preset'),
    ('train nothing', 2, 'is no task'), ('train weather training.lr', 1, "has no '='"), ('train weather --preset none_such', 1, 'unknown'), ('resume nowhere', 1, 'clearsight train'),
    ('eval weather nowhere', 1, 'does not exist'), ('predict weather --data nowhere --out x', 1, 'nowhere'), ('sample weather x n=0', 1, 'n is 1 or more'),
    ('sample weather x m=1', 1, 'm is no setting'), ('info nothing', 2, 'is no task'), ('export weather --out x', 1, 'clearsight train weather'), ('kernels --pages nowhere', 1, '--pages'),
    ('eval weather --out x.xls', 1, '.csv'), ('check glacier nowhere', 1, 'nowhere')])
def test_faults_are_one_line(run, tmp_path, monkeypatch, words, status, want):
    monkeypatch.setenv('CLEARSIGHT_WORK', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code,out,err = run(*words.split())
    assert (code,out)==(status,'') and len(err.splitlines())==1 and want in err and 'Traceback' not in err, err

def test_unforeseen_errors(run, monkeypatch):
    def broken(
        task:str, # A task
    ):
        "Break."
        raise RuntimeError('first line\nsecond line')
    monkeypatch.setitem(COMMANDS, 'info', broken)
    assert run('info', 'weather')==(1, '', 'clearsight info: RuntimeError: first line second line (CLEARSIGHT_TRACEBACK=1 shows where)\n')
    monkeypatch.setenv('CLEARSIGHT_TRACEBACK', '1')
    with pytest.raises(RuntimeError): main(['info', 'weather'])
    def interrupted(
        task:str, # A task
    ):
        "Stop."
        raise KeyboardInterrupt
    monkeypatch.setitem(COMMANDS, 'info', interrupted)
    assert run('info', 'weather')==(130, '', 'interrupted\n')

def test_json_keeps_other_output_apart(run, monkeypatch):
    def noisy(
    )->cli.Answer: # An answer
        "Talk."
        print('noise')
        return cli.Answer(dict(a=1), 'text', 1)
    monkeypatch.setitem(COMMANDS, 'info', noisy)
    assert run('info', '--json')==(1, '{\n "a": 1\n}\n', 'noise\n') and run('info')==(1, 'text\n', 'noise\n')

def test_time_is_over(run, trained, tmp_path, monkeypatch):
    "Status 75, and the folder alone goes on"
    _,data = trained('weather')
    monkeypatch.setenv('CLEARSIGHT_TIME_BUDGET', '0')
    status,out,_ = run('train', 'weather', '--data', data, '--run-dir', tmp_path/'run', *RECIPE['weather'])
    assert status==75 and 'clearsight resume' in out
    monkeypatch.delenv('CLEARSIGHT_TIME_BUDGET')
    assert run('resume', tmp_path/'run')[0]==0 and (tmp_path/'run'/'weights.safetensors').is_file()

def test_data_that_moved(run, trained, tmp_path):
    folder,data = trained('weather')
    new = tmp_path/'elsewhere'
    data.rename(new)
    try:
        status,_,err = run('resume', folder)
        assert status==1 and '--data' in err and len(err.splitlines())==1
        assert run('eval', 'weather', folder)[0]==1
        assert run('resume', folder, '--data', new)[0]==0 and json.loads((folder/'run.json').read_text())['data']==str(new)
    finally: new.rename(data)
    assert run('resume', folder, '--data', data)[0]==0
    (folder/'run.json').rename(folder/'none.json')
    assert 'does not say what data' in run('resume', folder)[2]
    (folder/'none.json').rename(folder/'run.json')

def test_embedded_data_is_remembered(run, work, tmp_path):
    status,_,_ = run('train', 'weather', '--run-dir', tmp_path/'run', '--sample', SAMPLE['weather'], *RECIPE['weather'])
    assert status==0 and json.loads((tmp_path/'run'/'run.json').read_text())['sample']==SAMPLE['weather']
    status,out,_ = run('train', 'weather', '--run-dir', tmp_path/'run', 'training.steps=3', '--changed')
    assert status==0 and len([*(work/'cache'/'samples').glob('weather*')])==1

def test_the_newest_run_is_meant(run, trained, work):
    folder,_ = trained('weather')
    assert find_weights('weather')==folder
    other = work/'runs'/'weather'/'other'
    other.mkdir()
    (other/'weights.safetensors').write_bytes((folder/'weights.safetensors').read_bytes())
    os.utime(other/'weights.safetensors', (2e9, 2e9))
    assert find_weights('weather')==other
    (other/'weights.safetensors').write_bytes(b'nothing')
    status,_,err = run('eval', 'weather')
    assert status==1 and 'safetensors' in err and len(err.splitlines())==1
    (other/'weights.safetensors').unlink()
    assert 'of the task weather' in run('eval', 'derain', folder)[2]

def test_completion():
    script = completion() + '\nCOMP_WORDS=(clearsight tr) COMP_CWORD=1; _clearsight; echo "${COMPREPLY[@]}"\nCOMP_WORDS=(clearsight train --preset allw) COMP_CWORD=3; _clearsight; echo "${COMPREPLY[@]}"'
    assert subprocess.run(['bash', '-c', script], capture_output=True, text=True).stdout.split()==['train', 'allweather', 'allweather128']

# ---- the names people know

def recipe(monkeypatch, *words):
    "Recipe, data and run directory that a training would have got"
    seen = {}
    def stop(recipe, run_dir, data, sample, restart, changed):
        seen.update(recipe=recipe, run_dir=run_dir, data=data)
        return 0
    monkeypatch.setattr('clearsight_nb.core.jobs._fit', stop)
    assert main([*map(str, words)])==0
    return seen['recipe'],seen['data'],seen['run_dir']

def test_weather_as_it_was(monkeypatch, tmp_path):
    r,data,_ = recipe(monkeypatch, 'train', 'weather', '--config', 'new_allweather.yml')
    assert (r.name, r.training.epochs, r.training.batch_size, r.data.dataset, data)==('new_allweather', 1775, 16, 'NewAllWeather', None)
    from clearsight_nb.weather.lists import prepare_allweather, write_kaggle_config
    assert main(['sample', 'weather', str(tmp_path/'set'), *SAMPLE['weather'].split()])==0
    config = write_kaggle_config('new_allweather', tmp_path/'w', prepare_allweather(tmp_path/'set', tmp_path/'w', patch=16, progress=False))
    r,data,_ = recipe(monkeypatch, 'train', 'weather', '--config', config, '--resume', 'ckpts/x.pth.tar', '--seed', '61')
    assert (r.training.batch_size, r.training.workers, r.training.epochs, r.training.lr, r.training.seed)==(4, 2, 1775, 2e-5, 61)
    assert r.model.start=='ckpts/x.pth.tar' and Path(data)==tmp_path/'set' and r.training.optimizer=='adam'

def test_lowlight_as_it_was(monkeypatch, tmp_path):
    r,data,folder = recipe(monkeypatch, 'train', 'lowlight', '--data_root', tmp_path/'d', '--metadata_json', tmp_path/'d'/'m.json', '--total_kimg', '200', '--batch_size=4',
        '--ema_halflife_kimg', '40', '--channel_mult', '1', '2', '--img_resolution', '64', '--num-workers', '3', '--output_dir', tmp_path/'r', '--pin_memory')
    t = r.training
    assert (t.total_kimg, t.batch_size, t.ema_halflife_kimg, t.workers, r.data.img_resolution, list(r.model.channel_mult))==(200, 4, 40, 3, 64, [1, 2])
    assert r.name=='base' and Path(data)==tmp_path/'d'/'m.json' and folder==tmp_path/'r'
    names = setting_names('train', 'lowlight')
    known = 'batch_size batch_gpu total_kimg ema_halflife_kimg lr_rampup_kimg kimg_per_tick snapshot_ticks early_stopping_patience img_resolution channels model_channels channel_mult lr seed'
    for k in known.split(): assert sum(n.endswith(f'.{k}') for n in names)==1, k
    for k in 'data_root metadata_json output_dir resume_from device config num_workers pin_memory'.split(): assert k in LEGACY['train', 'lowlight']

def test_shadow_as_it_was(monkeypatch, tmp_path):
    r,_,folder = recipe(monkeypatch, 'train', 'shadow', '--dataset_type', 'custom', '--data_dir', tmp_path, '--mixed_precision', '--max-iterations', '5000', '--checkpoint_dir', tmp_path/'c')
    assert (r.data.dataset_type, r.data.data_dir, r.training.mixed_precision, r.training.max_iterations, folder)==('custom', str(tmp_path), 'True', 5000, tmp_path/'c')
    assert (r.training.lr, r.training.warmup_steps, r.training.save_every, r.data.image_size)==(1e-5, 1000, 5000, 512) # as the original's
    from clearsight_nb.shadow.recipe import OPTIONS
    names = setting_names('train', 'shadow')
    for k,group in OPTIONS.items(): assert translate('train', ['shadow', f'--{k}', '1'], {}, lambda: names)[1:2]==[f'{group}.{k}=1'], k
    names = setting_names('predict', 'shadow')
    for to in LEGACY['predict', 'shadow'].values(): assert to[0] in '(!-' or to=='WEIGHTS' or to in names

def test_glacier_as_it_was(run, trained, tmp_path):
    folder,data = trained('glacier')
    status,out,err = run('predict', 'glacier', folder, '--data', data, '--masks', data/'labels', '--out', tmp_path/'a')
    assert status==0 and err.startswith('--masks has no effect') and len([*(tmp_path/'a').glob('*.tif')])==5
    status,out,_ = run('predict', 'glacier', '--imagepath', data, '--output', tmp_path/'b') # the newest run
    assert status==0 and [f.read_bytes() for f in sorted((tmp_path/'a').iterdir())]==[f.read_bytes() for f in sorted((tmp_path/'b').iterdir())]

def test_derain_as_it_was(monkeypatch, tmp_path):
    r,data,_ = recipe(monkeypatch, 'train', 'derain', '--dataset_path', tmp_path, '--epochs', '70', '--batch_size', '1', '--image_size', '128', '--lr', '5e-4', '--run_name', 'mag')
    assert (r.training.epochs, r.training.batch_size, r.data.patch, r.training.lr, r.name, data)==(70, 1, 128, 5e-4, 'mag', str(tmp_path))

def test_settings_as_options(run, trained, tmp_path):
    folder,data = trained('weather')
    status,_,err = run('predict', 'weather', '--preset', 'fast', '--seed', '3', folder, '--data', inputs('weather', data), '--out', tmp_path/'o')
    assert status==0 and len([*(tmp_path/'o').iterdir()])==2, err
    assert {*PREDICT}=={*TASKS}
