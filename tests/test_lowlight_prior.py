"What the pages of the low-light prior cannot show: killed runs, hostile files, memory against a real pass."
import json,multiprocessing,os,random,signal,time
import pytest,torch
from fastai.callback.hook import total_params
from clearsight_nb.core.checkpoints import read_checkpoint
from clearsight_nb.core.diffusion import EDM,Denoiser
from clearsight_nb.core.files import DataError
from clearsight_nb.core.recipe import RecipeError,load_recipe,read_recipe
from clearsight_nb.core.training import fit_recipe
from clearsight_nb.lowlight.dls import TileItems,tile_dls,turn
from clearsight_nb.lowlight.memory import estimate_memory
from clearsight_nb.lowlight.nets import PRIOR_NETS,lowlight_net,prior_net
from clearsight_nb.lowlight.prior import EDMStats,Prior,fit_edm_stats,load_prior,prior_config,save_prior
from clearsight_nb.lowlight.recipe import plan_training,tick_plan
from clearsight_nb.lowlight.train import learner_prior,lowlight_learner

SMALL = ['data.img_resolution=16', 'model.channel_mult=[1,1]', 'training.batch_size=4', 'training.batch_gpu=2', 'training.total_kimg=0.048', 'training.kimg_per_tick=0.016',
    'training.snapshot_ticks=1', 'training.lr_rampup_kimg=0', 'training.workers=0', 'training.early_stopping_patience=null', 'training.precision=float32']

def tiles(n, seed=0, size=24, c=3):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, c, 6, 6, generator=g)
    return list((2*torch.nn.functional.interpolate(coarse, size=size, mode='bilinear')-1))

def learner(folder, *overrides, cbs=(), train=10):
    recipe = load_recipe('lowlight', 'tiny', overrides=[*SMALL, *overrides])
    return lowlight_learner(tile_dls(tiles(train), tiles(4, 1), recipe, device='cpu'), recipe, folder, cbs=cbs)

def fit(learn):
    with learn.no_bar(), learn.no_logging(): fit_recipe(learn)
    return learn

# ---- recipe

def test_random_recipes_translate_exactly():
    rng = random.Random(0)
    for _ in range(200):
        gpu,acc = rng.choice([1, 2, 4, 8]),rng.choice([1, 2, 4])
        n,total,tick = gpu*acc,rng.uniform(1, 50),rng.uniform(.1, 5)
        ticks = -(-round(1000*total/n)//round(1000*tick/n))
        every = rng.randint(1, ticks)
        r = load_recipe('lowlight', None, overrides=[f'training.batch_size={n}', f'training.batch_gpu={gpu}', f'training.total_kimg={total}', f'training.kimg_per_tick={tick}',
            f'training.snapshot_ticks={every}', 'training.lr_rampup_kimg=0'])
        p = plan_training(r)
        assert abs(p.steps*n/1000-total)<=n/2000+1e-9 and abs(p.tick_images/1000-tick)<=n/2000+1e-9
        assert p.snapshots and p.snapshots[-1]==p.ticks and abs(p.kimg(p.ticks)*1000-p.steps*n)<1e-6
        assert len({p.label(t) for t in p.snapshots})==len(p.snapshots)
        assert (r.training.epochs-1)*p.tick_steps<p.steps<=r.training.epochs*p.tick_steps

@pytest.mark.parametrize('overrides,word', [(['training.snapshot_ticks=9999'], 'no snapshot would fall'), (['training.batch_gpu=3'], 'does not divide'),
    (['training.kimg_per_tick=0'], 'less than one step'), (['training.lr_rampup_kimg=400'], 'never be reached'), (['training.warmup_steps=7'], 'warmup_steps'),
    (['training.early_stop_patience=3'], 'early_stop_patience'), (['training.accumulate=2'], 'accumulate')])
def test_numbers_that_do_not_go_together(overrides, word):
    with pytest.raises(RecipeError, match=word): plan_training(load_recipe('lowlight', 'base', overrides=overrides))

def test_saved_recipe_says_what_to_do(tmp_path):
    fit(learner(tmp_path/'run'))
    assert tick_plan(read_recipe(tmp_path/'run')).steps==12
    with pytest.raises(RecipeError, match='set steps to null'): plan_training(read_recipe(tmp_path/'run', ['training.total_kimg=0.096']))

# ---- network and prior

def test_published_parameter_count():
    with torch.device('meta'): assert abs(total_params(lowlight_net('base'))[0]/281_674_755-1)<.01
    assert prior_net('base').channel_mult==(1, 2, 3, 4) and prior_net('base').model_channels==192 and prior_net('base').num_blocks==3

@pytest.mark.parametrize('seed', range(5))
def test_closed_formula(seed):
    "EDM table 1 with statistics, to 1e-6, for random networks, levels and statistics"
    g = torch.Generator().manual_seed(seed)
    u = lambda *s: torch.rand(*s, generator=g, dtype=torch.float64)
    mean,std,sigma = u(3),float(u(1))+.02,(u(4)*14-7).exp()
    a,b = u(3, 3),u(1)
    net = lambda x, t: torch.einsum('dc,bchw->bdhw', a, x).tanh() + b*t[:,None,None,None]
    x = 3*torch.randn(4, 3, 5, 7, generator=g, dtype=torch.float64)
    s,m = sigma[:,None,None,None],mean[:,None,None]
    z,sz,sd = (x-m)*.5/std,s*.5/std,.5
    d = sd**2/(sz**2+sd**2)*z + sz*sd/(sz**2+sd**2).sqrt()*net(z/(sz**2+sd**2).sqrt(), (sz.log()/4).flatten())
    got = Prior(Denoiser(net, EDM()), mean, std)(x, sigma)
    assert (got-(m + d*std/.5)).abs().max()<1e-6*max(1, float(x.abs().max()))

def test_loss_invariants():
    "lambda·c_out² = 1, Var(c_in (y+n)) = 1, Var(target) = 1 (spec 1.2)"
    edm,n = EDM(),200_000
    g = torch.Generator().manual_seed(0)
    y,noise = .5*torch.randn(1, n, generator=g, dtype=torch.float64),torch.randn(1, n, generator=g, dtype=torch.float64)
    for s in (.01, .3, 4.):
        assert abs(float((edm.scale_in(torch.tensor(s))*(y + s*noise)).var())-1)<.02
        assert abs(float(edm.target(y, noise, s, 'edm').var())-1)<.02

def test_statistics_against_brute_force():
    t = tiles(9, size=17)
    x = (torch.stack(t).double()+1)/2
    s = fit_edm_stats(t)
    assert torch.allclose(torch.tensor(s.mean, dtype=torch.float64), x.mean((0, 2, 3)))
    assert abs(s.std-float((x-x.mean((0, 2, 3))[:,None,None]).square().mean().sqrt()))<1e-12
    bad = t[:3] + [torch.full_like(t[0], float('nan'))]
    with pytest.raises(DataError, match='not finite'): fit_edm_stats(bad)

@pytest.mark.parametrize('c', [3, 4, 9])
@pytest.mark.parametrize('size', [(8, 8), (13, 22), (1, 40)])
def test_any_size_and_channels(c, size):
    net = lowlight_net('tiny', seed=0, channels=c).eval()
    with torch.no_grad(): assert Prior(Denoiser(net, EDM()), [.1]*c, .2)(torch.rand(2, c, *size), .1).shape==(2, c, *size)

def test_gradient_reaches_the_input(): # for dps
    prior,x = Prior(Denoiser(lowlight_net('tiny', seed=0).eval(), EDM()), .1, .2),torch.rand(1, 3, 12, 12, requires_grad=True)
    prior(x, .1).sum().backward()
    assert x.grad.abs().sum()>0

# ---- files

@pytest.fixture
def snapshot(tmp_path):
    net = lowlight_net('tiny', seed=0, channel_mult=(1, 1))
    save_prior(tmp_path/'network-snapshot-000200.safetensors', net.state_dict(), prior_config(net.net, EDMStats((.1, .2, .3), .2, -1.2)))
    return tmp_path

def test_nothing_is_executed(tmp_path):
    class Evil:
        def __reduce__(self): return os.system, (f'touch {tmp_path}/hacked',)
    torch.save(Evil(), tmp_path/'network-snapshot-000200.safetensors')
    with pytest.raises(DataError): load_prior(tmp_path)
    assert not (tmp_path/'hacked').exists()

def test_flipped_bytes_never_crash_otherwise(snapshot):
    f,rng = snapshot/'network-snapshot-000200.safetensors',random.Random(1)
    whole = f.read_bytes()
    for _ in range(25):
        b = bytearray(whole)
        for _ in range(3): b[rng.randrange(3000)] = rng.randrange(256) # in the header
        f.write_bytes(bytes(b))
        try: load_prior(snapshot)
        except DataError: pass
    f.write_bytes(whole)
    load_prior(snapshot)

def test_weights_of_a_compiled_or_parallel_net(snapshot):
    from safetensors.torch import load_file,save_file
    f = snapshot/'network-snapshot-000200.safetensors'
    w = load_file(f)
    x = torch.rand(1, 3, 8, 8)
    want = load_prior(snapshot)(x, .1)
    save_file({f'module._orig_mod.{k}': v for k,v in w.items()}, f) # without description: config.json beside it is used
    assert torch.allclose(load_prior(snapshot)(x, .1), want, atol=1e-6)
    save_file({k: v/0 if i==3 else v for i,(k,v) in enumerate(w.items())}, f)
    with pytest.raises(DataError, match='not finite'): load_prior(snapshot)

# ---- loaders

def test_turns_are_the_group():
    x = torch.randn(64, 2, 6, 6)
    k = torch.randint(8, (64,), generator=torch.Generator().manual_seed(0))
    y = turn(x, k)
    sort = lambda t: t.flatten(1).sort(1)[0]
    assert torch.equal(sort(x), sort(y)) and len(k.unique())==8
    assert {tuple(o.flatten().tolist()) for o in turn(torch.arange(9.).reshape(1, 1, 3, 3).expand(8, 1, 3, 3), torch.arange(8))}.__len__()==8

def test_every_pass_has_every_tile_once():
    items = TileItems([torch.zeros(3, 8, 8)]*13, seed=5)
    for p in range(20): assert sorted(items.number(g) for g in range(13*p, 13*p+13))==list(range(13))

# ---- training

def test_accumulated_batches_count_as_one_step(tmp_path):
    a = fit(learner(tmp_path/'a', 'training.batch_gpu=4', 'data.augment=none'))
    b = fit(learner(tmp_path/'b', 'training.batch_gpu=2', 'data.augment=none'))
    assert a.rate_schedule.done==b.rate_schedule.done==12 and a.tick_log.rows[-1]['kimg']==b.tick_log.rows[-1]['kimg']

def test_killed_run_goes_on_bit_for_bit(tmp_path):
    more = ['training.checkpoint_steps=1', 'training.total_kimg=0.16']
    p = multiprocessing.get_context('fork').Process(target=lambda: fit(learner(tmp_path/'killed', *more)))
    p.start()
    end = time.monotonic()+60
    while not list((tmp_path/'killed').glob('training-state-*.pt')) and p.is_alive() and time.monotonic()<end: time.sleep(.005)
    p.kill() # SIGKILL as soon as the first snapshot is there
    p.join()
    assert p.exitcode==-signal.SIGKILL
    ck = read_checkpoint(tmp_path/'killed'/'checkpoints'/'latest.pt')
    assert 0<ck['step']<40
    killed,whole = fit(learner(tmp_path/'killed', *more)),fit(learner(tmp_path/'whole', *more))
    for a,b in zip(killed.model.parameters(), whole.model.parameters()): assert torch.equal(a, b)
    names = lambda d: sorted(f.name for f in d.iterdir() if f.is_file() and f.name!='training.log')
    assert names(tmp_path/'killed')==names(tmp_path/'whole')
    for f in (tmp_path/'whole').glob('network-*'): assert f.read_bytes()==(tmp_path/'killed'/f.name).read_bytes()
    rows = [json.loads(l) for l in (tmp_path/'killed'/'stats.jsonl').read_text().splitlines()]
    assert [r['tick'] for r in rows]==list(range(1, 11))

def test_snapshot_is_the_average(tmp_path):
    learn = fit(learner(tmp_path/'run', 'training.ema=power', 'training.ema_std=0.1'))
    snap = load_prior(sorted((tmp_path/'run').glob('network-*'))[-1])
    avg = learn.ema.averages()
    for k,v in snap.denoiser.net.state_dict().items(): assert torch.equal(v, avg[k])
    state = torch.load(sorted((tmp_path/'run').glob('training-state-*'))[-1], weights_only=True)
    assert state['step']==12 and torch.equal(state['cbs']['ema']['avg']['unet.first.weight'], avg['unet.first.weight'])
    x = torch.rand(1, 3, 9, 9)
    with torch.no_grad(): assert torch.allclose(learner_prior(learn)(x, .1), load_prior(tmp_path/'run')(x, .1), atol=1e-6)

def test_a_new_run_leaves_nothing_of_the_old(tmp_path):
    fit(learner(tmp_path/'run'))
    learn = learner(tmp_path/'run', 'training.snapshot_ticks=null')
    with learn.no_bar(), learn.no_logging(): fit_recipe(learn, resume=False)
    assert [f.name for f in (tmp_path/'run').glob('network-*')]==['network-snapshot-000000.048.safetensors']
    assert len((tmp_path/'run'/'log.txt').read_text().splitlines())==3

def test_loaders_of_another_recipe(tmp_path):
    a,b = (load_recipe('lowlight', 'tiny', overrides=[*SMALL, f'training.total_kimg={k}']) for k in (.048, .096))
    dls = tile_dls(tiles(6), tiles(2), a, device='cpu')
    with pytest.raises(ValueError, match='another recipe'): lowlight_learner(dls, b, tmp_path)

def test_nan_tile_is_noticed(tmp_path):
    recipe = load_recipe('lowlight', 'tiny', overrides=SMALL)
    with pytest.raises(DataError): tile_dls(tiles(3) + [tiles(1)[0]*float('nan')], tiles(2), recipe, device='cpu')

# ---- memory

def test_memory_grows_with_tile_and_net():
    r = lambda *o: load_recipe('lowlight', 'small', overrides=['training.precision=float32', *o])
    a,b = estimate_memory(r(), 32, 'cpu'),estimate_memory(r(), 64, 'cpu')
    assert 3.8<b.per_sample/a.per_sample<4.3 and a.static==pytest.approx(b.static, rel=.05)
    n = total_params(lowlight_net(prior_net(r().model)))[0]
    assert a.static==pytest.approx(5*4*n/1e9, rel=.1) # weights, gradient, two moments, average
    assert a.batch_gpu(1e6)==64 and a.batch_gpu(.01)==0

def test_all_presets_build_and_fit_their_plan():
    for name in ('demo', 'tiny', 'small', 'base'):
        r = load_recipe('lowlight', name)
        with torch.device('meta'): lowlight_net(r.model, channels=r.data.channels)
        assert plan_training(r).snapshots
    assert set(PRIOR_NETS)=={'tiny', 'small', 'base'}
