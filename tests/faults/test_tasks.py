"""The demo trainings of all five tasks, cut to a few steps of small networks: killed, told to stop, and started again by the program, they end as whole ones; and so they do in another process, with other workers.

fault_jobs.py says how to kill more often (CLEARSIGHT_KILLS=20), and how to repeat the moments of an earlier run (CLEARSIGHT_SEED).
"""
import pytest, random, signal
from fault_jobs import KILLS, SEED, Jobs, same
from clearsight_nb.core.checkpoints import read_checkpoint

STEPS = ['training.steps=12', 'training.checkpoint_steps=3', 'training.ema_decay=0.9']
#: Task → settings of the sample, changes to the demo recipe; three epochs or more
TASKS = dict(
    glacier=('tiles=6 size=64', ['model.arch=HybridNet', 'data.crop=32', 'data.crops_per_tile=2', 'data.folds=3', 'training.batch_size=4', *STEPS]),
    weather=('n=8 n_valid=4 size=32', ['model.patch=16', 'model.ch=32', 'model.ch_mult=[1]', 'data.patch_n=2', 'data.repeat=1', *STEPS]),
    lowlight=('n=9 n_valid=5 n_test=1 size=24', ['data.img_resolution=16', 'model.model_channels=32', 'model.channel_mult=[1]', 'model.num_blocks=1', 'training.batch_size=4',
        'training.total_kimg=0.048', 'training.kimg_per_tick=0.016', 'training.lr_rampup_kimg=0', 'training.checkpoint_steps=3']),
    derain=('n=1 n_valid=1 size=32 variants=8 levels=[medium]', ['data.patch=16', 'data.patch_n=2', 'data.repeat=1', 'model.ch=8', 'model.ch_mult=[1]', *STEPS]),
    shadow=('', ['data.objects=12', 'data.valid=0.25', 'data.valid_items=5', 'training.batch_size=4', 'training.max_iterations=12', 'training.warmup_steps=2', 'training.eval_every=4', 'training.save_every=3']))

def train(task, folder, workers=0, preset='demo'):
    sample,changes = TASKS[task]
    return ['train', task, '--preset', preset, '--run-dir', str(folder), *(['--sample', sample] if sample else []), *changes, f'training.workers={workers}']

@pytest.fixture(scope='module')
def whole(jobs, tmp_path_factory):
    "Task → the folder of its whole run and the seconds of its training; trained when it is asked for"
    root,done = tmp_path_factory.mktemp('whole'),{}
    def get(task):
        if task not in done: done[task] = root/task,jobs.finish(root/task, argv=train(task, root/task))['fit']
        return done[task]
    return get

@pytest.mark.parametrize('task', TASKS)
def test_kills_and_signals(jobs, whole, tmp_path, task):
    "SIGKILL at random moments of the training; then SIGTERM or Ctrl-C, which save and end within 30 seconds; in the end the weights are those of the whole run"
    (folder,seconds),rng,events,n = whole(task),random.Random(f'{SEED} {task}'),[],0
    kills = -(-KILLS//len(TASKS))
    for number in [signal.SIGKILL]*kills + [rng.choice([signal.SIGTERM, signal.SIGINT])]:
        while True: # a run that is done before is compared, and the next one begins anew
            delay,name = rng.uniform(.05, .9)*seconds,signal.Signals(number).name
            done = jobs(tmp_path/f'{n}', argv=train(task, tmp_path/f'{n}'), kill_after=delay, signal=number)
            events.append(f'{task}: {name} {delay:.3f} s after its begin: {done["status"]}')
            if done['status']==0:
                same(folder, tmp_path/f'{n}')
                n += 1
            elif number==signal.SIGKILL or f'ended: {name}' in (tmp_path/f'{n}'/'training.log').read_text(): break
            else: assert done['status']==(-number if number==signal.SIGTERM else 130), done # before or behind the training, where a signal has its usual effect
        if number==signal.SIGKILL: assert done['status']==-signal.SIGKILL, done['text']
        else: assert done['status']=={signal.SIGTERM: 143, signal.SIGINT: 130}[number] and done['ending']<30, done
    jobs.finish(tmp_path/f'{n}', argv=['resume', str(tmp_path/f'{n}')])
    print(f'CLEARSIGHT_SEED={SEED}', *events, sep='\n')
    same(folder, tmp_path/f'{n}')

@pytest.fixture(scope='module')
def others(tmp_path_factory):
    "Jobs of another interpreter, which sorts its sets another way"
    jobs = Jobs(tmp_path_factory.mktemp('others'), '1')
    yield jobs
    jobs.close()

@pytest.mark.parametrize('task', TASKS)
def test_same_seed_same_metrics(others, whole, tmp_path, task):
    "Another interpreter, its own data, and two processes that read them: the same metrics, weights and states, to the last bit"
    others.finish(tmp_path/'a', argv=train(task, tmp_path/'a', 2))
    same(whole(task)[0], tmp_path/'a', ['recipe'])
    assert read_checkpoint(tmp_path/'a'/'checkpoints'/'latest.pt')['recipe']['training']['workers']==2
