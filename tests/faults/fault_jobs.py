"""What the tests of faults share: a server of trainings that may be killed, and what it means that two of them are the same.

CLEARSIGHT_KILLS is the number of SIGKILLs over the five tasks, and as many again for the small network of test_resume.py beside it (5: one for each task; 20 in a long run).
CLEARSIGHT_SEED repeats the moments of an earlier run, which are printed.
"""
import json, os, random, subprocess, sys
import pandas as pd, torch
from safetensors.torch import load_file
from conftest import ROOT
from clearsight_nb.core.checkpoints import read_checkpoint

KILLS = int(os.environ.get('CLEARSIGHT_KILLS', 5))
SEED = int(os.environ.get('CLEARSIGHT_SEED', random.SystemRandom().randrange(10**6)))
NO_MOUNT = 77 # the status of a child of fault_server.py that may not mount a disk
CLEAN = {k: v for k,v in os.environ.items() if not k.startswith(('SLURM', 'CLEARSIGHT', 'KAGGLE'))}

class Jobs:
    "A server process that forks one training after the other"
    def __init__(self, work, hashseed='random'):
        env = CLEAN | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), PYTHONWARNINGS='ignore', PYTHONHASHSEED=hashseed, CLEARSIGHT_WORK=str(work))
        self.p = subprocess.Popen([sys.executable, ROOT/'tests'/'faults'/'fault_server.py'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    def __call__(self, folder, **job):
        self.p.stdin.write(json.dumps(dict(folder=str(folder), **job)) + '\n')
        self.p.stdin.flush()
        return json.loads(self.p.stdout.readline())
    def finish(self, folder, **job):
        "A run that must end well"
        done = self(folder, **job)
        assert done['status']==0, done['text']
        return done
    def close(self):
        self.p.stdin.close()
        self.p.wait(120)
        self.p.stdout.close()

TIMES = ['seconds', 'sec_per_tick', 'sec_per_kimg', 'total_sec', 'timestamp', 'cpumem_gb'] # the only things in which runs may differ
def equal(x, y, at=''):
    "The same in all that is nested in it"
    if isinstance(x, torch.Tensor): assert torch.equal(x, y), at
    elif isinstance(x, dict):
        assert x.keys()==y.keys(), at
        for k in x.keys()-{*TIMES}: equal(x[k], y[k], f'{at}/{k}')
    elif isinstance(x, (list, tuple)):
        assert len(x)==len(y), at
        for i,(p,q) in enumerate(zip(x, y)): equal(p, q, f'{at}/{i}')
    else: assert x==y or (x!=x and y!=y), at

def same(a, b, but=()):
    "All that a run leaves is equal, but for times: the whole last state, and the best weights"
    states = [read_checkpoint(o/'checkpoints'/'latest.pt') for o in (a, b)]
    for s in states:
        for k in but: s.pop(k)
    equal(*states)
    equal(*(load_file(o/'weights.safetensors') for o in (a, b)))
    tables = [pd.read_csv(o/'log.csv').drop(columns=TIMES, errors='ignore') for o in (a, b)]
    assert tables[0].equals(tables[1])
    assert not leftovers(b), 'rubbish of killed writers was swept'

def leftovers(folder): return list(folder.rglob('.*.tmp'))
