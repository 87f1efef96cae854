"""Runs trainings in child processes that can be killed, and whose disk, clock, data or workers can fail: used by the tests beside it.

Imports once, then forks a child for each line of JSON on stdin, because importing fastai takes longer than the trainings. Answers with one line of JSON.
A job with `argv` runs the program `clearsight`; without, it trains a small network that meets all that could go wrong with resuming.
"""
import ctypes, importlib, json, os, random, resource, shutil, signal, sys, time, traceback
from dataclasses import dataclass, field
from pathlib import Path
import numpy as np, torch, torch._dynamo # the first optimizer of a process would import it, for seconds
from fastai.basics import Callback, DataLoaders, TfmdDL, nn, noop
import clearsight_nb.core.checkpoints as checkpoints
from clearsight_nb.core.callbacks import TrainingCallback
from clearsight_nb.core.cli import main
from clearsight_nb.core.recipe import TrainingRecipe, load_recipe, register_recipe
from clearsight_nb.core.training import fit_recipe, recipe_learner

@register_recipe('resume_job')
@dataclass
class JobRecipe:
    "All that could go wrong at once: groups that do not divide the epoch, averages, many checkpoints, kept files."
    task:str = 'resume_job'
    name:str = 'job'
    training:TrainingRecipe = field(default_factory=lambda: TrainingRecipe(epochs=4, batch_size=8, accumulate=2, lr=.01, ema_decay=.95, grad_clip=.5,
        checkpoint_steps=3, keep_steps=True, seed=11))

class Pictures(torch.utils.data.Dataset):
    "Noisy pictures whose augmentation draws from three generators and depends on the number of the epoch; validation is noisy, too."
    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.x,self.y,self.epoch = torch.randn(n, 2, 8, 8, generator=g),torch.randint(3, (n,), generator=g),0
        self.x[range(n), 0, self.y] += 1
    def set_epoch(self, epoch): self.epoch = epoch
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        x = self.x[i].roll(self.epoch, 2)*random.uniform(.8, 1.2) + .1*torch.randn(2, 8, 8)
        return (x if np.random.rand() < .5 else x.flip(2)).contiguous(),self.y[i]

class Net(nn.Module):
    "BatchNorm, dropout, and a branch that is used now and then, so that some gradients come and go."
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(.2), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head,self.extra = nn.Linear(8, 3),nn.Linear(8, 3)
    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.head(x) + (self.extra(x) if self.training and random.random() < .3 else 0)

class Seen(TrainingCallback):
    "State of a callback behind the Checkpointer"
    order,keeps = checkpoints.Checkpointer.order + 1,'total'
    def __init__(self): self.total = 0.
    def begin(self): self.total = 0.
    def after_step(self): self.total += self.learn.loss.item()

def learner(folder, workers=0, overrides=(), cbs=(), **kwargs):
    recipe = load_recipe('resume_job', None, overrides=overrides)
    torch.manual_seed(os.getpid()) # the first weights come from the checkpoint, or from the seed of a fresh run below
    if not (Path(folder)/'checkpoints'/'latest.pt').exists(): torch.manual_seed(5)
    dls = DataLoaders(TfmdDL(Pictures(93, 0), bs=8, shuffle=True, num_workers=workers), TfmdDL(Pictures(24, 1), bs=12, num_workers=workers), device='cpu')
    learn = recipe_learner(dls, Net(), nn.CrossEntropyLoss(), [], recipe, run_dir=folder, cbs=[Seen(), *cbs], **kwargs)
    learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

# ---- what can go wrong; each is called in the child, with the job's folder and a setting

def at_checkpoint(n, do):
    "Call `do(state, file)` when this process has begun to write its n-th checkpoint"
    write,count = torch.save,[0]
    def _save(o, f):
        count[0] += 1
        if count[0]==n: do(o, f)
        return write(o, f)
    checkpoints.torch.save = _save

def die_at(folder, n):
    "The n-th checkpoint is cut in the middle by SIGKILL"
    def _die(o, f):
        f.write(b'half')
        f.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    at_checkpoint(n, _die)

def limit_at(folder, n):
    "From the n-th checkpoint on no file can be longer than 20 kB: a full disk that needs no privileges"
    def _limit(*_):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    at_checkpoint(n, _limit)

LIBC = ctypes.CDLL(None, use_errno=True)
NO_MOUNT = 77 # the status of a child that must not mount
def libc(name, *args):
    if not getattr(LIBC, name)(*args): return
    print(f'{name}: {os.strerror(ctypes.get_errno())}')
    raise SystemExit(NO_MOUNT)

def mount(folder, kind, flags=0, options=''):
    "Mount a file system that only this process sees"
    CLONE_NEWNS,CLONE_NEWUSER,MS_REC,MS_PRIVATE = 0x20000,0x10000000,0x4000,1<<18
    if not flags & 32: # 32: change what is mounted already
        me = os.getuid()
        libc('unshare', CLONE_NEWNS | (CLONE_NEWUSER if me else 0))
        if me: Path('/proc/self/uid_map').write_text(f'0 {me} 1')
        libc('mount', b'none', b'/', None, MS_REC | MS_PRIVATE, None)
    libc('mount', b'none', str(folder).encode(), kind.encode(), flags, options.encode())

def disk(folder, kib):
    "The job's folder is a disk of so many KiB"
    folder.mkdir(parents=True, exist_ok=True)
    mount(folder, 'tmpfs', options=f'size={kib}k')

def fill_at(folder, n):
    "When the n-th checkpoint is begun, somebody else has filled the disk to the last byte"
    def _fill(*_):
        with open(folder/'ballast', 'wb', buffering=0) as f:
            try:
                while f.write(bytes(4096)): pass
            except OSError: pass
    at_checkpoint(n, _fill)

def read_only(folder, n):
    "The job's folder becomes a disk that cannot be written to: at once (0), or when the n-th checkpoint is begun"
    MS_RDONLY,MS_REMOUNT = 1,32
    folder.mkdir(parents=True, exist_ok=True)
    mount(folder, 'tmpfs', 0 if n else MS_RDONLY)
    if n: # what is open for writing would hold it up
        save = checkpoints.Checkpointer.save
        def _save(self, *args, **kwargs):
            if self.made==n: mount(folder, 'tmpfs', MS_REMOUNT | MS_RDONLY)
            return save(self, *args, **kwargs)
        checkpoints.Checkpointer.save = _save

def clock(folder, _):
    "The clock on the wall jumps by years, to and fro, whenever somebody looks at it"
    real,rng = time.time,random.Random(0)
    time.time = lambda: real() + rng.uniform(-1e8, 1e8)

def worker_dies(folder, how):
    "A process that reads data ends at its 20th item: 'kill' by a signal, 'exit' on its own"
    def _die(): os.kill(os.getpid(), signal.SIGKILL) if how=='kill' else os._exit(3)
    read,count,me = Pictures.__getitem__,[0],os.getpid()
    def _read(self, i):
        count[0] += 1
        if count[0]==20 and os.getpid()!=me: _die()
        return read(self, i)
    Pictures.__getitem__ = _read

def spoil(folder, numbers):
    "Pictures with these numbers are not numbers"
    read = Pictures.__getitem__
    def _read(self, i):
        x,y = read(self, i)
        return (x*float('nan') if len(self)==93 and i in numbers else x),y
    Pictures.__getitem__ = _read

FAULTS = dict(die_at=die_at, limit_at=limit_at, disk=disk, fill_at=fill_at, read_only=read_only, clock=clock, worker_dies=worker_dies, spoil=spoil)

def rss(): return int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()

class Measure(Callback):
    "Notes the memory of the process at each optimizer step, and may leak"
    order = 200
    def __init__(self, path, leak=0): self.path,self.sizes,self.leak,self.kept = path,[],leak,[]
    def after_step(self):
        if not self.learn.training: return
        self.kept.append(bytearray(b'x'*self.leak))
        self.sizes.append(rss())
    def after_fit(self): self.path.write_text(json.dumps(self.sizes))

# ---- the child, and the server

def child(job, folder):
    "The exit status of the job"
    faults = {k: v for k,v in job.items() if k in FAULTS}
    for k,v in faults.items(): FAULTS[k](folder, v)
    cbs = [Measure(folder.with_suffix('.rss'), job.get('leak', 0))] if job.get('measure') else []
    try:
        if 'argv' in job:
            if cbs: watch_learners(cbs)
            return main(job['argv'])
        return fit_recipe(learner(folder, job.get('workers', 0), job.get('overrides', ()), cbs)) or 0
    finally: # a private disk goes with its process
        if 'disk' in faults or 'read_only' in faults: shutil.copytree(folder, folder.with_name(f'{folder.name}_left'))

def watch_learners(cbs):
    "Give the callbacks to every learner that a recipe makes"
    import clearsight_nb.core.training as training
    make = training.fit_recipe
    training.fit_recipe = lambda learn, **kwargs: make(learn.add_cbs(cbs), **kwargs)

def run(job, folder, errors):
    "All that the child does; never returns"
    code = 1
    try:
        sys.stdout = sys.stderr = open(errors, 'w', buffering=1)
        for fd in (1, 2): os.dup2(sys.stderr.fileno(), fd)
        code = child(job, folder)
    except SystemExit as e: code = e.code
    except KeyboardInterrupt: code = 130
    except BaseException:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL) # torch raises in this handler when the next worker has died, in the middle of what is printed
        traceback.print_exc()
    finally: os._exit(code)

def serve(job):
    "Fork, wait, perhaps send a signal; the child's status (negative: the signal that killed it), seconds and what it said"
    start,folder = time.monotonic(),Path(job['folder'])
    errors,log = folder.with_suffix('.err'),folder/'training.log'
    folder.parent.mkdir(parents=True, exist_ok=True)
    said = lambda: log.stat().st_mtime_ns if log.exists() else 0
    old,begun,kill_after,sent = said(),None,job.get('kill_after'),None
    if not (pid := os.fork()): run(job, folder, errors)
    while True:
        done,status = os.waitpid(pid, os.WNOHANG)
        now = time.monotonic()
        if done: break
        if begun is None and said()!=old: begun = now # data and network are there
        since = start if job.get('from_start') else begun
        if kill_after is not None and since is not None and now-since >= kill_after:
            os.kill(pid, job.get('signal', signal.SIGKILL))
            kill_after,sent = None,now
        time.sleep(.002)
    return dict(status=os.waitstatus_to_exitcode(status), seconds=now-start, fit=now-(begun or now), ending=sent and now-sent, text=errors.read_text())

if __name__ == '__main__':
    torch.set_num_threads(1)
    for task in ('glacier', 'weather', 'lowlight', 'derain', 'shadow'): importlib.import_module(f'clearsight_nb.{task}')
    for line in sys.stdin: print(json.dumps(serve(json.loads(line))), flush=True)
    os._exit(0) # tearing all this down would take seconds
