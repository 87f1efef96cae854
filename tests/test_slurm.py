"Batch scripts on a cluster of shell scripts: really handed in, run, warned, cancelled, and handed in again until training has ended."
import os, re, shutil, signal, subprocess, time
from importlib import import_module
import pytest
from conftest import ROOT
from fork_server import programs
from clearsight_nb.core.cli import COMMANDS, main
from clearsight_nb.core.slurm import SlurmJob, slurm_script, write_slurm

PROGRAMS = dict(
    srun='while [[ $1 == --* ]]; do echo "srun $1" >> "$FAKE/calls"; shift; done\nexec "$@"',
    # as Slurm does: a script without #! on line 1 is refused, options are read from #SBATCH lines only
    sbatch='''
echo "sbatch $*" >> "$FAKE/calls"
[ -e "$FAKE/no_sbatch" ] && { echo "sbatch: error: not allowed here" >&2; exit 1; }
for script; do :; done
[ "$(head -c2 "$script")" = "#!" ] || { echo "sbatch: error: This does not look like a batch script." >&2; exit 1; }
bash -n "$script" || exit 1
n=$(( $(cat "$FAKE/last" 2>/dev/null || echo 100) + 1 ))
echo $n > "$FAKE/last"
echo "$n ${CLEARSIGHT_RESUBMITTED:-0} $script" >> "$FAKE/queue"
echo "Submitted batch job $n"''',
    scontrol='echo "scontrol $*" >> "$FAKE/calls"\n[ ! -e "$FAKE/no_scontrol" ]',
    # stands for training where only its end matters
    fake_train='trap \'echo saved; exit 143\' TERM\necho training\nfor i in {1..200}; do sleep .02; done\nexit 0')

@pytest.fixture(scope='module')
def program(tmp_path_factory):
    "The program `clearsight`, as a file that anybody can start; served by a process that has fastai imported"
    env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    modules = 'clearsight_nb.weather','torch._dynamo' # the first optimizer would import the latter, for seconds
    with programs(tmp_path_factory.mktemp('program'), ['clearsight'], ROOT/'tests'/'fork_server.py', *modules, env=env) as folder: yield folder/'clearsight'

class Cluster:
    "Hands in scripts and runs what is in the queue, one job at a time"
    def __init__(self, folder):
        self.folder,self.bin = folder,folder/'bin'
        self.bin.mkdir()
        for name,text in PROGRAMS.items():
            (self.bin/name).write_text(f'#!/bin/bash\n{text}\n')
            (self.bin/name).chmod(0o755)
        clean = {k: v for k,v in os.environ.items() if not k.startswith(('SLURM', 'CLEARSIGHT', 'KAGGLE'))}
        self.env = clean | dict(PATH=f'{self.bin}:{os.environ["PATH"]}', FAKE=str(folder), PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    def read(self, name): return (self.folder/name).read_text() if (self.folder/name).exists() else ''
    def sbatch(self, script): return subprocess.run(['sbatch', script], env=self.env, capture_output=True, text=True)
    @property
    def queue(self): return [line.split(' ', 2) for line in self.read('queue').splitlines()]
    def start(self, **more):
        "Start the oldest job of the queue from a copy elsewhere, as Slurm does; its process"
        job,again,script = self.queue[0]
        (self.folder/'queue').write_text(''.join(f'{" ".join(q)}\n' for q in self.queue[1:]))
        options = dict(re.findall(r'^#SBATCH --([\w-]+)="?(.*?)"?$', open(script).read(), re.MULTILINE))
        names = [options[k].replace('%x', options['job-name']).replace('%j', job).replace('%%', '%') for k in ('output', 'error')]
        spool = self.folder/f'spool{job}'
        shutil.copy(script, spool)
        env = self.env | dict(SLURM_JOB_ID=job, SLURM_CPUS_PER_TASK=options['cpus-per-task'], CLEARSIGHT_RESUBMITTED=again) | more
        with open(names[0], 'ab') as out, open(names[1], 'ab') as err:
            p = subprocess.Popen(['bash', spool], env=env, stdout=out, stderr=err, cwd='/', start_new_session=True)
        p.out,p.err = names
        return p
    def run(self, **more):
        "Run the oldest job to its end: exit status, output, errors"
        p = self.start(**more)
        return p.wait(120),open(p.out).read(),open(p.err).read()

@pytest.fixture
def cluster(tmp_path): return Cluster(tmp_path)

def submit(cluster, *command, **job):
    path = write_slurm(cluster.folder/'job.sh', command, SlurmJob(**job), bin=cluster.bin, folder=cluster.folder)
    assert cluster.sbatch(path).returncode==0
    return path

def wait_for(path, text):
    end = time.monotonic() + 60
    while not (os.path.exists(path) and text in open(path).read()):
        assert time.monotonic() < end, f'{text!r} did not come'
        time.sleep(.01)

def test_training_goes_on_in_the_next_job(cluster, program):
    "Two steps of a real training; the first job has time for one of them only, the second one resumes and ends it"
    run,out = cluster.folder/'my runs'/'a',cluster.folder/'job.sh'
    tiny = ['model.patch=16', 'model.ch_mult=[1]', 'training.batch_size=2', 'training.precision=float32', 'training.workers=0', 'training.steps=2']
    cluster.env |= dict(CLEARSIGHT_WORK=str(cluster.folder))
    args = ['--out', out, '--run-dir', run, '--sample', 'n=4 n_valid=2 size=32', '--cpus', '1', '--gres', '', *tiny]
    done = subprocess.run([program, 'slurm', 'weather', *args], env=cluster.env, cwd=cluster.folder, capture_output=True, text=True)
    assert done.returncode==0 and f'sbatch {out}' in done.stdout and 'salloc --mem=20G' in done.stdout, done.stderr
    # the script puts this Python's own folder in front of PATH; the program that the tests start stands before that
    out.write_text(out.read_text().replace('export PATH=', f'export PATH={program.parent}:'))
    assert cluster.sbatch(out).returncode==0
    now = time.time()
    status,text,err = cluster.run(SLURM_JOB_START_TIME=str(int(now-600)), SLURM_JOB_END_TIME=str(int(now)))
    log = (run/'training.log').read_text()
    assert status==0 and 'time budget: the same command goes on' in text and 'training ended with status 75' in text, text + err
    assert 'ended: time budget' in log and '(time budget) at step 1' in log
    assert [q[1:] for q in cluster.queue]==[['1', str(out)]] and '--dependency=afterany:101' in cluster.read('calls')
    status,text,err = cluster.run(SLURM_JOB_START_TIME=str(int(now)), SLURM_JOB_END_TIME=str(int(now+7200)))
    log = (run/'training.log').read_text()
    assert status==0 and 'attempt 2' in text and 'resumed at step 1 of 2' in log and log.strip().endswith('ended: finished'), text + err
    assert (run/'weights.safetensors').is_file() and cluster.queue==[]
    assert 'srun --cpus-per-task=1' in cluster.read('calls')

def test_warning_of_slurm(cluster):
    "USR1 to the shell becomes TERM for the training, the job waits until that has saved, and is handed in again"
    script = submit(cluster, 'fake_train')
    p = cluster.start()
    wait_for(p.out, 'training')
    os.kill(p.pid, signal.SIGUSR1)
    assert p.wait(30)==0 and 'saved' in open(p.out).read() and cluster.queue==[['102', '1', str(script)]]

def test_a_training_that_ends_despite_the_warning_is_not_repeated(cluster):
    submit(cluster, 'bash', '-c', 'trap "" TERM; echo training; sleep .5; exit 0')
    p = cluster.start()
    wait_for(p.out, 'training')
    for _ in range(3): os.kill(p.pid, signal.SIGUSR1)
    assert p.wait(30)==0 and cluster.queue==[]

def test_cancelled_jobs_stay_cancelled(cluster):
    "scancel sends TERM to the step without a warning to the shell"
    submit(cluster, 'fake_train')
    p = cluster.start()
    wait_for(p.out, 'training')
    child = subprocess.run(['pgrep', '-P', str(p.pid)], capture_output=True, text=True).stdout.split()
    for c in child: os.kill(int(c), signal.SIGTERM)
    assert p.wait(30)==143 and cluster.queue==[]

@pytest.mark.parametrize('status', [1, 2, 137, 143])
def test_faults_are_not_repeated(cluster, status):
    submit(cluster, 'bash', '-c', f'exit {status}')
    assert cluster.run()[0]==status and cluster.queue==[]

def test_the_limit_of_repetitions(cluster):
    submit(cluster, 'bash', '-c', 'exit 75', resubmit=2)
    seen = [cluster.run() for _ in range(3)]
    assert [s for s,_,_ in seen]==[0, 0, 75] and cluster.queue==[] and 'handed in again 2 times already' in seen[2][2]

def test_requeue_where_sbatch_is_forbidden(cluster):
    submit(cluster, 'bash', '-c', 'exit 75')
    (cluster.folder/'no_sbatch').touch()
    assert cluster.run()[0]==0 and 'scontrol requeue 101' in cluster.read('calls')
    (cluster.folder/'no_sbatch').unlink()
    submit(cluster, 'bash', '-c', 'exit 75')
    for n in ('no_sbatch', 'no_scontrol'): (cluster.folder/n).touch()
    status,_,err = cluster.run()
    assert status==75 and 'could not be handed in again: sbatch' in err

@pytest.mark.parametrize('name', ['plain', 'two words', "it's", 'a$HOME', '100%', 'a;b&c', 'äß'])
def test_names_arrive_as_they_are(cluster, name):
    folder = cluster.folder/name
    path = write_slurm(folder/'job.sh', ['printf', '%s|', name, '$HOME', '`id`', '{x}', "q'q", ''], SlurmJob(), bin=cluster.bin, folder=folder)
    assert cluster.sbatch(path).returncode==0
    status,out,err = cluster.run()
    assert status==0 and f"{name}|$HOME|`id`|{{x}}|q'q||" in out and not err, out + err

def test_options_in_the_head():
    text = slurm_script(['true'], 'job.sh', SlurmJob('n', 'acct', 'gpu', 'gpu:a100:2', '80G', '1-00:00:00', 8, notice=300))
    lines = text.splitlines()
    head = lines[1:lines.index('')]
    assert lines[0]=='#!/bin/bash' and all(line.startswith('#SBATCH --') for line in head) # Slurm stops reading at the first command
    for want in ('job-name=n', 'account=acct', 'partition=gpu', 'gres=gpu:a100:2', 'mem=80G', 'time=1-00:00:00', 'nodes=1', 'ntasks=1', 'cpus-per-task=8',
                 'open-mode=append', 'signal=B:USR1@300'): assert f'#SBATCH --{want}' in head
    assert any(re.fullmatch(r'#SBATCH --output="/.*/%x-%j.out"', o) for o in head) and any(re.fullmatch(r'#SBATCH --error="/.*/%x-%j.err"', o) for o in head)

@pytest.mark.parametrize('kw', [dict(name='a b'), dict(name=''), dict(account='a\nb'), dict(partition='x;y'), dict(gres='gpu 1'), dict(mem='lots'), dict(time='8h'),
    dict(time='12:00:00:00'), dict(cpus=0), dict(cpus='4'), dict(notice=0), dict(resubmit=-1)])
def test_what_no_cluster_understands_is_refused(kw):
    with pytest.raises(ValueError, match=next(iter(kw))): SlurmJob(**kw)

def test_commands_explain_themselves(capsys):
    assert main([])==0
    text = capsys.readouterr().out
    for n in (*COMMANDS, 'weather', 'glacier', 'allweather'): assert n in text
    for name in COMMANDS:
        with pytest.raises(SystemExit) as e: main([name, '--help'])
        assert e.value.code==0 and 'example' in capsys.readouterr().out
    assert main(['slrum'])==2 and "Did you mean 'slurm'?" in capsys.readouterr().err
    assert main(['--version'])==0
    with pytest.raises(SystemExit) as e: main(['train'])
    assert e.value.code==2

def test_entry_point_names_a_function():
    module,_,func = re.search(r'^clearsight = "(.+)"$', (ROOT/'pyproject.toml').read_text(), re.MULTILINE)[1].partition(':')
    assert getattr(import_module(module), func) is main

@pytest.mark.parametrize('args,want', [('train weather training.lr', "has no '='"),
    ('train weather --preset none', "preset 'none' is unknown"), ('slurm weather training.stepps=2', "Did you mean 'training.steps'"),
    ('slurm weather --time 8h', "time is '8h'"), ('check weather nowhere', 'nowhere'), ('sample weather x n=0', 'n is 1 or more'), ('sample weather x m=1', 'm is no setting')])
def test_faults_are_told_in_a_line(program, tmp_path, args, want):
    done = subprocess.run([program, *args.split()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode==1 and want in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert not any(tmp_path.iterdir())
