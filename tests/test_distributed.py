"""Several processes: the same weights, numbers and files as one, whatever happens to one of them.

One training of all tasks in a single process, one in two (gloo, started by torchrun), whose last part ends by a killed process; two local "nodes" by the Slurm script.
"""
import collections, json, os, re, signal, subprocess, sys, time
import pandas as pd, pytest, torch
from conftest import ROOT
from dist_job import CASES
from fork_server import programs
import clearsight_nb.core.launch as launch_module
from clearsight_nb.core.checkpoints import read_checkpoint
from clearsight_nb.core.env import Env
from clearsight_nb.core.files import DataError, in_turn
from clearsight_nb.core.launch import _status, launch
from clearsight_nb.core.slurm import SlurmJob, slurm_script, write_slurm

CLEAN = {k: v for k,v in os.environ.items() if not k.startswith(('SLURM', 'CLEARSIGHT', 'KAGGLE', 'TORCHELASTIC', 'PET_'))
    and k not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')}
CLEAN |= dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', GLOO_SOCKET_IFNAME='lo', PET_LOCAL_ADDR='127.0.0.1', TOKENIZERS_PARALLELISM='false')

@pytest.fixture(scope='module')
def bin(tmp_path_factory):
    "A folder with the programs dist_job, clearsight and python, served by a process that has everything imported"
    with programs(tmp_path_factory.mktemp('bin'), ['dist_job', 'clearsight', 'python'], ROOT/'tests'/'dist_job.py', env=CLEAN) as folder: yield folder

def run(*command, timeout=300, **env): return subprocess.run(list(map(str, command)), env=CLEAN | env, capture_output=True, text=True, timeout=timeout)
def torchrun(bin, *command, n=2): return run(bin/'python', '-m', 'clearsight_nb.core.launch', '--standalone', f'--nproc_per_node={n}', '--no_python', *command)

@pytest.fixture(scope='module')
def two(bin, tmp_path_factory):
    "Two processes: every task, then faults, and in the end one of them is killed"
    root = tmp_path_factory.mktemp('two')
    done = torchrun(bin, bin/'dist_job', root, *CASES, 'guards', 'resumed', 'written', 'killed')
    done.root,done.ended = root,time.time()
    assert done.stdout.count('done: written')==2, done.stdout[-2000:] + done.stderr[-6000:]
    return done

@pytest.fixture(scope='module')
def one(bin, two, tmp_path_factory):
    "The same in one process; and it goes on with a run that two have begun"
    root = tmp_path_factory.mktemp('one')
    (root/'runs').mkdir()
    (two.root/'runs'/'handed').rename(root/'runs'/'handed')
    done = run(bin/'dist_job', root, *CASES, 'guards', 'handed', 'parallel')
    assert done.returncode==0, done.stderr
    return root

def left(root, name, rank=0): return torch.load(root/'out'/f'{name}_{rank}.pt', weights_only=True)
def far(a, b):
    "Largest difference; without the bias of attention's keys, whose gradient is 0 (it moves all scores of a query alike), so that Adam follows the rounding"
    return max(float((a[k].double()-b[k].double()).abs().max()) for k in a if not k.endswith('to_k.bias'))

@pytest.mark.parametrize('task', CASES)
def test_two_processes_train_as_one(one, two, task):
    a,b,c = left(one, task),left(two.root, task),left(two.root, task, 1)
    assert len(a['losses'])>=10 and far(a['model'], b['model']) <= 1e-5
    assert all(torch.equal(b['model'][k], c['model'][k]) for k in b['model']), 'ranks differ'
    assert b['ema'] and all(map(torch.equal, b['ema'], c['ema'])), 'averages differ'
    assert all(float((x-y).abs().max())<=1e-5 for x,y in zip(a['ema'], b['ema']))

@pytest.mark.parametrize('task', CASES)
def test_losses_and_metrics_are_those_of_the_whole_batch(one, two, task):
    a,b,c = left(one, task),left(two.root, task),left(two.root, task, 1)
    assert a['names']==b['names'] and len(a['values'])==len(b['values'])>0
    for x,y,z in zip(a['values'], b['values'], c['values']):
        assert x==pytest.approx(y, rel=2e-4, abs=1e-5, nan_ok=True) and y==pytest.approx(z, rel=1e-6, abs=1e-9, nan_ok=True)
    assert a['losses']==pytest.approx(b['losses'], rel=1e-4)
    for x,y in zip(a['by_level'], b['by_level']): assert x==pytest.approx(y, rel=1e-4, nan_ok=True)
    tables = [pd.read_csv(r/'runs'/task/'log.csv').drop(columns='seconds') for r in (one, two.root)]
    pd.testing.assert_frame_equal(*tables, rtol=2e-4, atol=1e-5)

@pytest.mark.parametrize('task', CASES)
def test_every_item_is_read_once(one, two, task):
    "By one of the processes, and as often as by a single one"
    a,b,c = (collections.Counter(left(r, task, k)['seen']) for r,k in ((one, 0), (two.root, 0), (two.root, 1)))
    assert a and b + c==a and min(b.total(), c.total())>0

def test_only_the_first_process_writes(two):
    first,second = (json.loads((two.root/'out'/f'written_{r}.json').read_text()) for r in range(2))
    assert second==[] and any('latest.pt' in p for _,p in first)
    for task in CASES:
        run = two.root/'runs'/task
        assert len([line for line in (run/'training.log').read_text().splitlines() if 'begun:' in line])==1 and not list(run.rglob('.*.tmp'))
        assert {'recipe.yaml', 'log.csv', 'training.log', 'weights.safetensors'} <= {p.name for p in run.iterdir()}

def test_guards_agree(one, two):
    "What is not a number in one process is dropped by both, and too much of it ends the run in both"
    a,b,c = left(one, 'nan'),left(two.root, 'nan'),left(two.root, 'nan', 1)
    assert a['dropped']==b['dropped']==c['dropped']==2 and far(a['model'], b['model']) <= 1e-5 and far(b['model'], c['model'])==0
    said = [(r/'out'/f'nans_{k}.txt').read_text() for r,k in ((one, 0), (two.root, 0), (two.root, 1))]
    assert said[0]==said[1]==said[2] and 'not finite in 3 batches' in said[0]

def test_stop_and_resume(one, two):
    "One process wants to stop: both do, at the same step; resumed by two it is bit for bit the whole run, resumed by one it is that of one"
    for r in range(2): assert (two.root/'out'/f'stopped_{r}.txt').read_text()=='enough, step 4'
    whole,parts = (read_checkpoint(two.root/'runs'/n/'checkpoints'/'latest.pt') for n in ('weather', 'resumed'))
    assert whole['step']==parts['step']==10 and all(torch.equal(v, parts['model'][k]) for k,v in whole['model'].items())
    assert torch.equal(whole['place']['rng']['torch'], parts['place']['rng']['torch'])
    assert 'resumed at step 4 of 10' in (two.root/'runs'/'resumed'/'training.log').read_text()
    assert far(left(one, 'handed')['model'], left(one, 'weather')['model']) <= 1e-5

def test_a_killed_process_ends_the_job(two):
    assert two.returncode==128 + signal.SIGKILL, two.stderr[-3000:]
    assert two.ended - float((two.root/'out'/'killed.txt').read_text()) < 60
    assert 'Signal 9 (SIGKILL) received' in two.stderr and 'rank      : 1' in two.stderr
    assert read_checkpoint(two.root/'runs'/'killed'/'checkpoints'/'latest.pt')['step']<=2

@pytest.mark.parametrize('codes,status', [((1, -9), 137), ((-9, 1), 137), ((1, -6), 1), ((3, 1), 3), ((75, 75), 75), ((75, -15), 75), ((1, -15), 1), ((1, -11), 139)])
def test_the_cause_among_processes_that_ended_together(codes, status, capsys):
    "A killed process is the cause of what the others said at its end; one that aborted is not"
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError,ProcessFailure
    failures = {r: ProcessFailure(local_rank=r, pid=1000+r, exitcode=c, error_file='<N/A>') for r,c in enumerate(codes)}
    for f in failures.values(): f.timestamp = 1_800_000_000
    assert _status(ChildFailedError('train', failures), False)==status
    assert ('FAILED' in capsys.readouterr().err)==(status!=75)

def test_a_process_that_would_not_end_is_not_the_cause(capsys):
    "torchrun kills it half a minute after the failure of another one"
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError,ProcessFailure
    failures = {r: ProcessFailure(local_rank=r, pid=1000+r, exitcode=c, error_file='<N/A>') for r,c in enumerate((-9, 3))}
    failures[0].timestamp,failures[1].timestamp = 1_800_000_030,1_800_000_000
    assert _status(ChildFailedError('train', failures), False)==3

@pytest.mark.parametrize('program,status', [('exit 75', 75), ('exit 3', 3), ('exit 0', 0), ('kill -9 $BASHPID', 137), ('[ $RANK = 0 ] && exit 75; sleep 30', 75)])
def test_status_of_the_processes_is_passed_on(bin, program, status):
    done = torchrun(bin, 'bash', '-c', program)
    assert done.returncode==status, done.stderr
    assert ('failed' in done.stderr.lower())==(status not in (0, 75))

def test_term_reaches_the_processes(bin, tmp_path):
    p = subprocess.Popen(list(map(str, [bin/'python', '-m', 'clearsight_nb.core.launch', '--standalone', '--nproc_per_node=2', '--no_python', 'bash', '-c',
        f'trap "touch {tmp_path}/saved$RANK; exit 143" TERM; touch {tmp_path}/ready$RANK; for i in {{1..600}}; do sleep .05; done'])), env=CLEAN, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while len(list(tmp_path.glob('ready*')))<2 and time.monotonic()<end: time.sleep(.02)
    p.terminate()
    p.communicate(timeout=60)
    assert p.returncode==143 and len(list(tmp_path.glob('saved*')))==2

def test_data_parallel_is_the_same_training(one):
    assert far(left(one, 'parallel')['model'], left(one, 'weather')['model'])==0
    assert 'Parallel' not in (one/'out'/'parallel.txt').read_text(), 'an error leaves the network wrapped'

def bash(monkeypatch, text): monkeypatch.setattr(launch_module, 'torchrun_command', lambda args, n: ['bash', '-c', text])

def test_launch_shows_lines_and_tells_what_time_is_left(monkeypatch):
    bash(monkeypatch, 'echo "$CLEARSIGHT_TIME_BUDGET minutes"; echo; echo end >&2; exit 75')
    lines = []
    assert launch(['train'], 2, Env(deadline=time.time()+120), lines.append)==75
    assert 1.9<float(lines[0].split()[0])<=2 and lines[1:]==['', 'end']
    bash(monkeypatch, 'echo the cause; exit 3')
    with pytest.raises(RuntimeError, match='status 3(.|\n)*the cause'): launch(['train'], 2, Env(), lines.append)

def test_an_interrupted_cell_lets_the_processes_save(monkeypatch):
    bash(monkeypatch, 'trap "echo saved; exit 143" TERM; echo begun; for i in {1..600}; do sleep .05; done')
    lines = []
    def show(line):
        lines.append(line)
        if line=='begun': raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): launch(['train'], 2, Env(), show)
    assert lines==['begun', 'saved']

def test_processes_write_a_folder_in_turn(tmp_path, monkeypatch):
    "Several processes find a folder begun by a killed one: the lock of the dead holds nobody up"
    monkeypatch.setenv('WORLD_SIZE', '2')
    make = in_turn('dest')(lambda dest, text='': (dest.mkdir(exist_ok=True), text))
    assert make(tmp_path/'a', text='x')[1]==make(dest=tmp_path/'a', text='x')[1]=='x' and (tmp_path/'.a.lock').exists()
    code = f'import fcntl, os, time; f = open({str(tmp_path/".a.lock")!r}, "a"); fcntl.flock(f, fcntl.LOCK_EX); print("locked", flush=True); time.sleep(60)'
    p = subprocess.Popen([sys.executable, '-S', '-c', code], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline()=='locked\n'
    p.kill()
    p.communicate()
    assert make(tmp_path/'a')[1]==''
    monkeypatch.setattr('fcntl.flock', lambda *_: (_ for _ in ()).throw(OSError(38, 'Function not implemented')))
    with pytest.raises(DataError, match='cannot be locked'): make(tmp_path/'a')

# ---- several machines

SRUN = '''n=1
for o in "$@"; do case $o in --ntasks=*) n=${o#*=};; esac; done
while [[ $1 == --* ]]; do shift; done
for i in $(seq $n); do "$@" & done
worst=0
for i in $(seq $n); do wait -n; s=$?; [ $s -gt $worst ] && worst=$s; done
exit $worst'''

def test_two_machines(bin, tmp_path):
    "The batch script on a cluster of two nodes, both of them this machine: two torchruns find each other and train"
    for name,text in dict(srun=SRUN, scontrol='[ "$1 $2" = "show hostnames" ] && echo 127.0.0.1 && echo other', sbatch='exit 1').items():
        (bin/name).write_text(f'#!/bin/bash\n{text}\n')
        (bin/name).chmod(0o755)
    tiny = [o for o in CASES['weather'][1] if 'steps' not in o] + ['training.steps=2', 'training.workers=0', 'training.precision=float32']
    command = ['clearsight', 'train', 'weather', '--preset', 'demo', '--run-dir', tmp_path/'run', '--sample', 'n=8 n_valid=2 size=32', *tiny]
    script = write_slurm(tmp_path/'job.sh', command, SlurmJob('two', gres='', nodes=2, cpus=1), bin=bin, folder=tmp_path)
    done = run('bash', script, SLURM_JOB_ID=str(os.getpid()), SLURM_JOB_NODELIST='any[1-2]', CLEARSIGHT_WORK=str(tmp_path), PATH=f'{bin}:{os.environ["PATH"]}')
    log = (tmp_path/'run'/'training.log').read_text()
    assert done.returncode==0 and log.count('begun: 2 steps')==1 and log.strip().endswith('ended: finished'), done.stdout + done.stderr
    assert (tmp_path/'run'/'weights.safetensors').is_file() and 'training ended with status 0' in done.stdout

def test_scripts_for_one_process_are_what_they_were():
    text = slurm_script(['true'], 'job.sh', SlurmJob(gres='gpu:2'))
    assert 'srun --ntasks=1 --cpus-per-task=4 \\\n    true &' in text and '--nodes=1\n#SBATCH --ntasks=1\n#SBATCH --cpus' in text
    assert not re.search('launch|rdzv|port=', text)
