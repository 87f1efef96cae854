"""Trains a small model in a child process that can be killed: used by test_resume.py.

Imports once, then forks a child for each line of JSON on stdin, because importing fastai takes longer than the training. Answers with one line of JSON.
"""
import json, os, random, resource, signal, sys, time, traceback
from dataclasses import dataclass, field
from pathlib import Path
import numpy as np, torch, torch._dynamo # the first optimizer of a process would import it, for seconds
from fastai.basics import DataLoaders, TfmdDL, nn, noop
import clearsight_nb.core.checkpoints as checkpoints
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

def learner(folder, workers=0, overrides=(), cbs=(), **kwargs):
    recipe = load_recipe('resume_job', None, overrides=overrides)
    torch.manual_seed(os.getpid()) # the first weights come from the checkpoint, or from the seed of a fresh run below
    if not (Path(folder)/'checkpoints'/'latest.pt').exists(): torch.manual_seed(5)
    dls = DataLoaders(TfmdDL(Pictures(93, 0), bs=8, shuffle=True, num_workers=workers), TfmdDL(Pictures(24, 1), bs=12, num_workers=workers), device='cpu')
    learn = recipe_learner(dls, Net(), nn.CrossEntropyLoss(), [], recipe, run_dir=folder, cbs=cbs, **kwargs)
    learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

def die_while_writing(n):
    "Let the n-th checkpoint of this process be cut in the middle by SIGKILL."
    write,count = torch.save,[0]
    def _save(o, f):
        count[0] += 1
        if count[0] < n: return write(o, f)
        f.write(b'half')
        f.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    checkpoints.torch.save = _save

def fill_disk(n):
    "Let the n-th checkpoint of this process meet a full disk: no file can be longer than 20 kB."
    write,count = torch.save,[0]
    def _save(o, f):
        count[0] += 1
        if count[0]==n:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return write(o, f)
    checkpoints.torch.save = _save

def child(folder, workers=0, overrides=(), die_at=None, full_at=None, **_):
    if die_at: die_while_writing(die_at)
    if full_at: fill_disk(full_at)
    fit_recipe(learner(folder, workers, overrides))

def serve(job):
    "Fork, wait, perhaps send a signal; the child's status (negative: the signal that killed it), seconds and error text"
    start = time.monotonic()
    errors = Path(job['folder']).with_suffix('.err')
    pid = os.fork()
    if pid==0:
        code = 1
        try:
            child(**job)
            code = 0
        except SystemExit as e: code = e.code
        except KeyboardInterrupt: code = 130
        except BaseException: errors.write_text(traceback.format_exc())
        finally: os._exit(code)
    kill_after = job.get('kill_after')
    while True:
        done,status = os.waitpid(pid, os.WNOHANG)
        if done: break
        ready = 'signal' not in job or (Path(job['folder'])/'checkpoints'/'latest.pt').exists() # handlers are in place by then
        if kill_after is not None and ready and time.monotonic()-start >= kill_after:
            os.kill(pid, job.get('signal', signal.SIGKILL))
            kill_after = None
        time.sleep(.002)
    return dict(status=os.waitstatus_to_exitcode(status), seconds=time.monotonic()-start, error=errors.read_text() if errors.exists() else '')

if __name__ == '__main__':
    torch.set_num_threads(1)
    for line in sys.stdin: print(json.dumps(serve(json.loads(line))), flush=True)
