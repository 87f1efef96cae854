"""A run killed at any moment and resumed ends with the same weights, bit for bit, as one that was not.

CLEARSIGHT_LONG=1 makes 21 kills instead of 6; CLEARSIGHT_SEED repeats the moments of an earlier run, which are printed.
"""
import json, os, random, signal, subprocess, sys
import pandas as pd, pytest, torch
from safetensors.torch import load_file
from conftest import ROOT
from clearsight_nb.core.checkpoints import read_checkpoint

LONG = os.environ.get('CLEARSIGHT_LONG')=='1'
SEED = int(os.environ.get('CLEARSIGHT_SEED', random.SystemRandom().randrange(10**6)))
# a plain run; workers and a plateau; one step a batch, and a run that ends within an epoch
CASES = [dict(), dict(workers=2, overrides=['training.schedule=plateau', 'training.plateau_patience=0', 'training.early_stop_patience=3', 'training.epochs=3']),
         dict(overrides=['training.accumulate=1', 'training.steps=40', 'training.ema_decay=null', 'training.optimizer=sgd', 'training.grad_clip=null'])]

class Jobs:
    "A server process that forks one training after the other"
    def __init__(self):
        env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), PYTHONWARNINGS='ignore')
        self.p = subprocess.Popen([sys.executable, ROOT/'tests'/'resume_job.py'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    def __call__(self, folder, **job):
        self.p.stdin.write(json.dumps(dict(folder=str(folder), **job)) + '\n')
        self.p.stdin.flush()
        return json.loads(self.p.stdout.readline())
    def close(self):
        self.p.stdin.close()
        self.p.wait(30)
        self.p.stdout.close()

@pytest.fixture(scope='module')
def jobs():
    jobs = Jobs()
    yield jobs
    jobs.close()

@pytest.fixture(scope='module')
def whole(jobs, tmp_path_factory):
    "Each case trained in one piece: its folder and the seconds it took"
    root = tmp_path_factory.mktemp('whole')
    def train(i):
        done = jobs(root/str(i), **CASES[i])
        assert done['status']==0, done['error']
        return root/str(i),done['seconds']
    return [train(i) for i in range(len(CASES))]

def same(a, b):
    "All that a run leaves is equal, but for times: the whole last state, and the best weights"
    def equal(x, y, at=''):
        if isinstance(x, torch.Tensor): assert torch.equal(x, y), at
        elif isinstance(x, dict):
            assert x.keys()==y.keys(), at
            for k in x: equal(x[k], y[k], f'{at}/{k}')
        elif isinstance(x, (list, tuple)):
            assert len(x)==len(y), at
            for i,(p,q) in enumerate(zip(x, y)): equal(p, q, f'{at}/{i}')
        else: assert x==y, at
    states = [read_checkpoint(o/'checkpoints'/'latest.pt') for o in (a, b)]
    for s in states:
        for row in s['cbs']['run_log']['rows']: row.pop('seconds')
    equal(*states)
    equal(*(load_file(o/'weights.safetensors') for o in (a, b)))
    tables = [pd.read_csv(o/'log.csv').drop(columns='seconds') for o in (a, b)]
    assert tables[0].equals(tables[1])
    assert not list(b.rglob('.*.tmp')), 'rubbish of killed writers was swept'

def finish(jobs, folder, case):
    done = jobs(folder, **case)
    assert done['status']==0, done['error']

def test_kill_at_random_moments(jobs, whole, tmp_path):
    "Each case is killed several times on its way; a run that is done before it is killed is compared, and the next one begins anew."
    rng,events = random.Random(SEED),[]
    for i,(folder,seconds) in enumerate(whole):
        kills,n = 7 if LONG else 2,0
        while kills:
            delay = rng.uniform(.02, seconds)
            done = jobs(tmp_path/f'{i}-{n}', kill_after=delay, **CASES[i])
            events.append(f'case {i} after {delay:.3f} s: {done["status"]}')
            assert done['status'] in (0, -signal.SIGKILL), done['error']
            if done['status']==0:
                same(folder, tmp_path/f'{i}-{n}')
                n += 1
            else: kills -= 1
        finish(jobs, tmp_path/f'{i}-{n}', CASES[i])
        same(folder, tmp_path/f'{i}-{n}')
    print(f'CLEARSIGHT_SEED={SEED}', *events, sep='\n')

@pytest.mark.parametrize('n', [1, 2, 9])
def test_killed_in_the_middle_of_writing(jobs, whole, tmp_path, n):
    assert jobs(tmp_path/'a', die_at=n)['status']==-signal.SIGKILL
    finish(jobs, tmp_path/'a', {})
    same(whole[0][0], tmp_path/'a')

@pytest.mark.parametrize('number,status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_end(jobs, whole, tmp_path, number, status):
    done = jobs(tmp_path/'a', kill_after=whole[0][1]*.2, signal=number) # early: behind the fit a signal has its usual effect
    assert done['status'] in (status, 0), done['error']
    log = (tmp_path/'a'/'training.log').read_text()
    if done['status']: assert f'ended: {signal.Signals(number).name}' in log
    finish(jobs, tmp_path/'a', {})
    same(whole[0][0], tmp_path/'a')

def test_full_disk_leaves_the_old_checkpoint_and_says_so(jobs, whole, tmp_path):
    done = jobs(tmp_path/'a', full_at=6)
    assert done['status']==1 and 'The disk is full' in done['error'] and 'latest.pt' in done['error'], done
    read_checkpoint(tmp_path/'a'/'checkpoints'/'latest.pt')
    finish(jobs, tmp_path/'a', {})
    same(whole[0][0], tmp_path/'a')
