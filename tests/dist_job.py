"""Trainings in one process and in several: used by test_distributed.py.

fork_server.py says how they are started: the processes of a training, and torchrun, too.
"""
import collections, importlib, importlib.util, json, os, shutil, signal, sys, time
from pathlib import Path
from fork_server import clearsight, serve

CPU = ['training.workers=0', 'training.precision=float32', 'training.checkpoint_minutes=null', 'training.grad_clip=1.0']
#: Task → preset, changes, settings of the sample
CASES = dict(
    # batches of 4 in pieces of 32 pixels; losses that are no means over items; two validation tiles, in batches of 1
    glacier=('demo', ['model.arch=HybridNet', 'data.crop=32', 'data.crops_per_tile=2', 'data.band_dropout=0.3', 'data.folds=3', 'training.batch_size=4',
        'training.steps=10', 'training.ema_decay=0.9', 'training.accumulate=1', 'loss.weights={focal: 0.3, dice: 0.3, mcc: 0.2, boundary: 0.2}', 'loss.gamma=2.0'],
        dict(tiles=6, size=64)),
    # 5 validation photographs in batches of 4: the last one has a single item
    weather=('demo', ['model.patch=16', 'model.ch=64', 'model.ch_mult=[1]', 'model.num_res_blocks=1', 'model.attn_resolutions=[]', 'data.patch_n=2', 'training.batch_size=4',
        'training.steps=10', 'training.ema_decay=0.9', 'training.accumulate=1'], dict(n=10, n_valid=5, size=32)),
    # 5 pictures and batches of 8: each batch is shared as 2 and 3; an optimizer to which the gradient's length matters
    derain=('demo', ['data.patch=16', 'data.patch_n=2', 'data.repeat=1', 'model.ch=8', 'model.ch_mult=[1]', 'diffusion.condition_dropout=0.5', 'training.batch_size=8',
        'training.optimizer=sgd', 'training.lr=0.05', 'training.grad_clip=null', 'training.steps=10', 'training.ema_decay=0.9', 'training.accumulate=1'], dict(n=1, n_valid=1, size=32, variants=5, levels=('medium',))),
    # a loader of its own, and two batches a step
    lowlight=('tiny', ['data.img_resolution=16', 'model.model_channels=32', 'model.channel_mult=[1]', 'model.num_blocks=1', 'training.batch_size=4', 'training.batch_gpu=2',
        'training.total_kimg=0.04', 'training.kimg_per_tick=0.02', 'training.snapshot_ticks=1', 'training.lr_rampup_kimg=0', 'training.early_stopping_patience=null'],
        dict(n=9, n_valid=5, n_test=1, size=24)))
if importlib.util.find_spec('clearsight_nb.shadow.train'): # half of a batch at time 1, and scores of single steps
    CASES['shadow'] = ('tiny', ['data.objects=12', 'data.valid=0.25', 'data.valid_items=5',
        'training.max_iterations=10', 'training.eval_every=5', 'training.mixed_precision=no', 'training.lr=2e-4'], None)

rank = lambda: int(os.environ.get('RANK', 0))
SEEN,WRITTEN = collections.Counter(),[]

def watch_items():
    "Count the numbers of training items that are read"
    from clearsight_nb.core.patches import PatchItems
    from clearsight_nb.glacier.dls import TileItems
    from clearsight_nb.lowlight.dls import TileItems as LightItems
    def count(cls, name, training):
        old = getattr(cls, name)
        def read(self, i):
            if training(self, i): SEEN[int(i)] += 1
            return old(self, i)
        setattr(cls, name, read)
    count(TileItems, 'bands', lambda o, i: i<len(o.crops))
    count(LightItems, '__getitem__', lambda o, i: o.fixed is None)
    count(PatchItems, '__getitem__', lambda o, i: not o.fixed)
    if 'shadow' not in CASES: return
    from clearsight_nb.shadow.dls import ShadowDL
    draw = ShadowDL.draw
    def drawn(self, j):
        ids,mirrored = draw(self, j)
        if self.batches is not None: SEEN.update(f'{self.epoch}.{j}.{i}' for i in ids)
        return ids,mirrored
    ShadowDL.draw = drawn

def watch_files(root):
    "Note what this process opens for writing, links, renames or removes in the folder of the runs"
    def hook(event, args):
        if event=='open': paths = args[:1] if (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else ()
        else: paths = args[:2] if event in ('os.rename', 'os.link', 'os.remove', 'os.mkdir') else ()
        for p in paths:
            if isinstance(p, (str, os.PathLike)) and f'{root}/runs/' in f'{p}/': WRITTEN.append((event, str(p)))
    sys.addaudithook(hook)

def make_learner(task, root, name=None, cbs=(), more=()):
    from clearsight_nb.core.recipe import load_recipe
    from fastai.basics import Callback, noop, nn
    preset,changes,sample = CASES[task]
    module = importlib.import_module(f'clearsight_nb.{task}')
    recipe = load_recipe(task, preset, overrides=[*CPU, *changes, *more])
    quiet = {} if task in ('glacier', 'lowlight') else dict(progress=False)
    data = root/'data'/task
    if sample: getattr(module, f'{task}_sample')(data, **sample, **quiet)
    dls = getattr(module, f'{task}_dls')(data, recipe, **({} if task in ('glacier', 'derain') else dict(progress=False)))
    class Freeze(Callback): # BatchNorm, which exists for the share of a process only, stays out of it
        order = -9
        def before_train(self):
            for m in self.learn.model.modules():
                if isinstance(m, nn.BatchNorm2d): m.eval()
    learn = getattr(module, f'{task}_learner')(dls, recipe, run_dir=root/'runs'/(name or task), cbs=[Freeze(), *cbs])
    learn.remove_cb(learn.progress)
    learn.logger = noop
    return learn

def keep(learn, root, name):
    "Leave what this process has at the end of a fit for the test to compare"
    import torch
    from fastai.basics import Callback, get_model
    class Keep(Callback):
        order = 200
        def before_fit(self): SEEN.clear()
        def save(self):
            l = self.learn
            out = dict(model={k: v.clone() for k,v in get_model(l.model).state_dict().items()}, seen={str(k): v for k,v in SEEN.items()},
                ema=[o.clone() for o in l.ema.avg], values=[[float(v) for v in row] for row in l.recorder.values], dropped=l.finite_guard.dropped,
                losses=[float(o) for o in l.recorder.losses], names=list(l.recorder.metric_names),
                by_level=l.diffusion_objective.by_level if 'diffusion_objective' in vars(l) else [])
            (root/'out').mkdir(exist_ok=True)
            torch.save(out, root/'out'/f'{name}_{rank()}.pt')
        after_fit = save
    learn.add_cb(Keep())

def train(task, root, name=None, cbs=(), more=()):
    from clearsight_nb.core.training import fit_recipe
    learn = make_learner(task, root, name, cbs, more)
    keep(learn, root, name or task)
    fit_recipe(learn)
    return learn

def poison(when, last):
    "Make predictions, or the loss, not a number; of several processes in the last one only"
    from fastai.basics import Callback
    class Poison(Callback):
        order = 9 # before the guard looks
        def hit(self, what): return self.learn.training and when.get(self.learn.train_iter)==what and (last or rank()==int(os.environ.get('WORLD_SIZE', 1))-1)
        def after_pred(self):
            if self.hit('pred'): self.learn.pred = self.learn.pred*float('nan')
        def after_loss(self):
            if self.hit('loss'): self.learn.loss = self.learn.loss*float('nan')
    return Poison()

def at_step(n, f):
    from fastai.basics import Callback
    class At(Callback):
        order = 99 # before the checkpointer
        def after_step(self):
            if self.learn.rate_schedule.done==n: f(self.learn)
    return At()

def guards(root):
    "A batch that is dropped for its predictions, one for its loss, and a run that ends because of too many"
    train('weather', root, 'nan', [poison({1: 'pred', 4: 'loss'}, False)])
    try: train('weather', root, 'nans', [poison(dict.fromkeys(range(2, 99), 'pred'), False)], ['training.max_nonfinite=3'])
    except FloatingPointError as e: (root/'out'/f'nans_{rank()}.txt').write_text(str(e))

def resumed(root):
    "Stopped behind step 4 because the last process wants to, and gone on with; a copy of the stopped run stays"
    asks = rank()==int(os.environ['WORLD_SIZE'])-1
    learn = train('weather', root, 'resumed', [at_step(4, lambda l: l.checkpointer.stop('enough') if asks else None)])
    (root/'out'/f'stopped_{rank()}.txt').write_text(f'{learn.stopped}, step {learn.checkpointer.made if "checkpointer" in vars(learn) else learn.rate_schedule.done}')
    if not rank(): shutil.copytree(root/'runs'/'resumed', root/'runs'/'handed')
    train('weather', root, 'resumed')

def parallel(root):
    "DataParallel around the network: without a GPU it only hands on what it gets, but everything has to find the network within it"
    from fastai.distributed import ParallelTrainer
    train('weather', root, 'parallel', [ParallelTrainer([])])
    learn = make_learner('weather', root, 'parallel_nan', [ParallelTrainer([]), poison(dict.fromkeys(range(1, 99), 'loss'), False)], ['training.max_nonfinite=2'])
    from clearsight_nb.core.training import fit_recipe
    try: fit_recipe(learn)
    except FloatingPointError: (root/'out'/'parallel.txt').write_text(type(learn.model).__name__)

def killed(root):
    "The last process is killed in the middle of a step"
    def die(learn):
        if rank()!=int(os.environ['WORLD_SIZE'])-1: return
        (root/'out'/'killed.txt').write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)
    train('weather', root, 'killed', [at_step(2, die)])

def job(root, *parts):
    root = Path(root)
    os.environ['CLEARSIGHT_WORK'] = str(root)
    watch_items()
    watch_files(root)
    for p in parts:
        if p in CASES: train(p, root)
        elif p=='handed': train('weather', root, 'handed')
        elif p=='written': (root/'out'/f'written_{rank()}.json').write_text(json.dumps(WRITTEN))
        else: globals()[p](root)
        print(f'done: {p}', flush=True)

def program(name, *args):
    "What a client stands for"
    if name=='dist_job': return job(*args)
    if name=='clearsight': return clearsight(name, *args)
    if args[:2]==('-m', 'clearsight_nb.core.launch'): return importlib.import_module('clearsight_nb.core.launch').main(list(args[2:]))
    raise ValueError(f'unknown program {name} {args}')

if __name__ == '__main__':
    import torch
    torch.set_num_threads(1)
    names = ['clearsight_nb.core.training', 'clearsight_nb.core.distributed', 'torch.distributed.run', 'torch._dynamo', 'accelerate', 'segmentation_models_pytorch', 'diffusers',
        'clearsight_nb.core.cli', *(f'clearsight_nb.{t}' for t in CASES)]
    for name in names: importlib.import_module(name)
    serve(sys.argv[1], program)
