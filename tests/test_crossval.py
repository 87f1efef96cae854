"Cross-validation: found borders on many scenes, leakage for many seeds, interruption at any point, damaged files"
import json
import numpy as np, pytest, torch
from fastai.vision.all import Callback, CrossEntropyLossFlat, nn
from clearsight_nb.core.files import DataError
from clearsight_nb.core.metrics import ConfusionMatrix
from clearsight_nb.core.recipe import RecipeError, load_recipe
from clearsight_nb.core.training import read_weights, recipe_learner
from clearsight_nb.glacier.crossval import cross_validate, read_crossval
from clearsight_nb.glacier.data import BandStack
from clearsight_nb.glacier.folds import FoldPlan, fold_contact, place_tiles, plan_folds, tile_neighbours
from clearsight_nb.glacier.prepare import Fold, make_folds
from clearsight_nb.glacier.sample import glacier_sample, tile_places

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    "Scenes of 36 tiles of 64 pixels, one a seed"
    root = tmp_path_factory.mktemp('scenes')
    return [BandStack(glacier_sample(root/str(s), tiles=36, size=64, seed=s, compression=None)/'Train') for s in range(3)]

@pytest.fixture(scope='module')
def larger(tmp_path_factory):
    "Scenes of 25 tiles of 128 pixels, one a seed"
    root = tmp_path_factory.mktemp('larger')
    return [BandStack(glacier_sample(root/str(s), tiles=25, size=128, seed=s, compression=None)/'Train') for s in range(20, 24)]

class Tiles:
    "What `tile_neighbours` needs of a stack, from arrays"
    nodata,where = 0,'arrays'
    def __init__(self, tiles): self.tiles,self.names = tiles,list(tiles)
    def read_raw(self, t): return self.tiles[t]

def pairs(found): return {(o.first, o.second) for o in found}
def borders(place): return {(a, b) for a,p in place.items() for b,q in place.items() if (q[0]-p[0], q[1]-p[1]) in ((0,1), (1,0))}

def test_borders_of_scenes(scenes):
    for stack in scenes:
        true = borders(dict(zip(stack.names, tile_places(36))))
        found = pairs(tile_neighbours(stack))
        assert not found - true
        assert len(found) >= .95*len(true)

def test_borders_of_larger_tiles(larger):
    for stack in larger: assert pairs(tile_neighbours(stack)) == borders(dict(zip(stack.names, tile_places(25))))

def test_places_of_scenes(scenes):
    for stack in scenes:
        place,grid = dict(zip(stack.names, tile_places(36))),place_tiles(stack.names, tile_neighbours(stack))
        piece = [n for n in stack.names if grid[n][1] <= 5]     # the first piece of the puzzle
        shift = {(grid[n][0]-place[n][0], grid[n][1]-place[n][1]) for n in piece}
        assert len(piece) >= 33 and len(shift) == 1

def board(stacks, n):
    "Every other tile of scenes of `n` tiles: no two have a common border, so each one found is false"
    return Tiles({f'{i}-{t}': s.read_raw(t) for i,s in enumerate(stacks) for t,(r,c) in zip(s.names, tile_places(n)) if (r+c) % 2 == 0})

def test_tiles_that_do_not_touch(scenes, larger):
    "Edges of 128 pixels give no false border in any scene; edges of 64 pixels are short enough for a rare match by chance"
    for stack in larger: assert tile_neighbours(board([stack], 25)) == []
    assert sum(len(tile_neighbours(board([stack], 36))) for stack in scenes) <= 2

def test_two_scenes_in_one_folder(scenes):
    tiles = {f'{i}-{t}': s.read_raw(t) for i,s in enumerate(scenes[:2]) for t in s.names}
    names = list(np.random.default_rng(0).permutation(list(tiles)))
    found = tile_neighbours(Tiles({n: tiles[n] for n in names}))
    assert all(a[0] == b[0] for a,b in pairs(found))
    grid = place_tiles(names, found, gap=2)
    assert len(set(grid.values())) == len(names)
    cols = [{grid[n][1] for n in names if n[0] == s} for s in '01']
    assert min(abs(a-b) for a in cols[0] for b in cols[1]) > 2

@pytest.mark.parametrize('noise', [.1, .3])
def test_noise_of_each_tile(scenes, noise):
    "Noise of a share of the usual step between pixels, drawn for each tile"
    stack,rng = scenes[0],np.random.default_rng(0)
    def noisy(x):
        size = np.diff(x.astype(float), axis=2).std((1,2), keepdims=True)
        return np.where((x != 0).any(0), x + rng.normal(0, noise, x.shape)*size, 0)
    found,true = pairs(tile_neighbours(Tiles({t: noisy(stack.read_raw(t)) for t in stack.names}))),borders(dict(zip(stack.names, tile_places(36))))
    assert not found - true and len(found) >= .85*len(true)

def test_tiles_scaled_one_by_one(scenes):
    "Gains of their own spoil jumps, not correlations"
    stack,rng = scenes[0],np.random.default_rng(0)
    tiles = Tiles({t: stack.read_raw(t)*rng.uniform(.9, 1.1, (5,1,1)) for t in stack.names})
    true = borders(dict(zip(stack.names, tile_places(36))))
    assert len(pairs(tile_neighbours(tiles)) & true) < .5*len(true)
    found = pairs(tile_neighbours(tiles, max_jump=None))
    assert len(found & true) >= .85*len(true) and len(found - true) <= 1

def test_odd_tiles():
    rng = np.random.default_rng(0)
    empty = {n: np.zeros((5,40,40), np.uint16) for n in 'ab'}
    assert tile_neighbours(Tiles(empty)) == []
    flat = {n: np.full((5,40,40), 7, np.uint16) for n in 'ab'}
    assert tile_neighbours(Tiles(flat)) == []
    scene = rng.normal(0, 1, (2,80,60)).cumsum(1).cumsum(2) + 1e3
    scene[1] = 5                                                # a band that says nothing
    assert pairs(tile_neighbours(Tiles(dict(a=scene[:,:40], b=scene[:,40:])))) == {('a','b')}
    with pytest.raises(DataError, match='has the shape'): tile_neighbours(Tiles(dict(a=scene[:,:40], b=scene[:,:30])))

def test_nodata_wedge():
    "Half of a border without data leaves enough; all but a few pixels do not"
    scene = np.random.default_rng(0).normal(0, 1, (2,80,64)).cumsum(1).cumsum(2) + 1e3
    for hidden,n in ((32,1), (60,0)):
        cut = scene.copy()
        cut[:,:,:hidden] = 0
        assert len(tile_neighbours(Tiles(dict(a=cut[:,:40], b=cut[:,40:])))) == n

def positions(stack):
    "Positions in the scene and class ids of labelled pixels, one of 64, of each tile"
    out = {}
    for t,p in zip(stack.names, tile_places(25)):
        y = stack.label(t)
        at = np.argwhere(y != 255)
        at = at[(at % 8 == 4).all(1)]
        out[t] = at + np.array(p)*128, y[tuple(at.T)]
    return out

def nearest_r_k(folds, pixels, other):
    from sklearn.neighbors import KNeighborsClassifier
    gather = lambda pixels, tiles: [np.concatenate(o) for o in zip(*[pixels[t] for t in tiles])]
    cms = ConfusionMatrix(4),ConfusionMatrix(4)
    for f in folds:
        model = KNeighborsClassifier(1).fit(*gather(pixels, f.train))
        for cm,(x,y) in zip(cms, (gather(pixels, f.valid), gather(other, other))): cm.update(model.predict(x), y)
    return cms[0].r_k() - cms[1].r_k()

def test_random_folds_leak_and_spatial_ones_do_not(larger):
    """A model that sees nothing but positions cannot foretell another scene; what it scores in folds above that is leakage.
    On one scene it scatters about its mean by 0.1, so scenes are compared in pairs, and freedom from leakage is asked of the mean."""
    tables,leak = [positions(s) for s in larger],dict(drawn=[], plan=[])
    for i,stack in enumerate(larger):
        plan = plan_folds(stack, load_recipe('glacier', overrides=['data.buffer=1']).data, seed=i)
        assert (plan.how, plan.places, plan.contact) == ('spatial', 'edges', 0)
        assert fold_contact(plan.folds, dict(zip(stack.names, tile_places(25)))) == 0       # on the true map, too
        names = list(np.random.default_rng(i).permutation(stack.names))
        drawn = [Fold([n for n in names if n not in names[k::5]], names[k::5]) for k in range(5)]
        assert fold_contact(drawn, plan.grid) > .9
        for k,folds in dict(drawn=drawn, plan=plan.folds).items(): leak[k].append(nearest_r_k(folds, tables[i], tables[(i+1) % 4]))
    drawn,plan = map(np.array, leak.values())
    assert (drawn > .1).all() and (drawn - plan > .1).all(), leak
    assert abs(plan.mean()) < .1, leak

# cross_validate, with a network that is one convolution

@pytest.fixture(scope='module')
def data(tmp_path_factory): return glacier_sample(tmp_path_factory.mktemp('data'), tiles=9, size=32, seed=1, compression=None)

def recipe(*more):
    return load_recipe('glacier', 'demo', env='local', overrides=['data.crop=32', 'data.crops_per_tile=4', 'data.folds=3', 'training.steps=10',
        'training.batch_size=4', 'training.workers=0', 'training.checkpoint_steps=2', *more])

class Counts:
    "Makes learners and counts them; those of fold `fail` are interrupted at a step"
    def __init__(self, fail=None, step=5): self.fail,self.step,self.made = fail,step,[]
    def __call__(self, dls, recipe, run_dir):
        self.made.append(recipe.data.fold)
        torch.manual_seed(recipe.training.seed)
        cbs = [Interrupt(self.step)] if recipe.data.fold == self.fail else []
        about = dict(bands=list(dls.store.bands), classes=list(dls.codec.names), norm=dls.norm.to_dict())
        model = nn.Conv2d(5, 4, 3, padding=1)
        return recipe_learner(dls, model, CrossEntropyLossFlat(axis=1, ignore_index=255), [], recipe, run_dir=run_dir, cbs=cbs, about=about)

class Interrupt(Callback):
    def __init__(self, step): self.step = step
    def before_batch(self):
        if self.learn.training and self.learn.train_iter == self.step: raise KeyboardInterrupt

@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    "A cross-validation that nothing has disturbed"
    root = tmp_path_factory.mktemp('whole')
    return cross_validate(data, recipe('training.monitor=valid_loss'), root/'run', learner=Counts(), cache=root/'store', progress=False)

def again(cv, run_dir, data, **kw):
    kw = dict(learner=Counts(), cache=cv.run_dir.parent/'store', progress=False, out=lambda s: None) | kw
    return cross_validate(data, recipe('training.monitor=valid_loss'), run_dir, **kw)

@pytest.fixture
def copied(whole, tmp_path):
    import shutil
    return shutil.copytree(whole.run_dir, tmp_path/'run')

def test_interrupted_ends_the_same(whole, data, tmp_path):
    "Interrupted in the second fold, the same call skips the first, goes on in the second, and ends with the same weights"
    with pytest.raises(KeyboardInterrupt): again(whole, tmp_path/'run', data, learner=Counts(fail=1))
    assert list(read_crossval(tmp_path/'run').results) == [0]
    lines,counts = [],Counts()
    cv = again(whole, tmp_path/'run', data, learner=counts, out=lines.append)
    assert counts.made == [1,2] and 'finished before' in lines[1] and cv.complete
    assert 'resumed at step' in (tmp_path/'run'/'fold1'/'training.log').read_text()
    assert torch.equal(cv.pooled().matrix, whole.pooled().matrix)
    for k in range(3):
        a,b = (read_weights(o.run_dir/f'fold{k}')[0] for o in (cv, whole))
        assert all(torch.equal(a[n], b[n]) for n in a)

def test_killed_before_fold_json(whole, data, copied):
    "Trained, but what it says was not kept: nothing is trained again"
    (copied/'fold2'/'fold.json').unlink()
    before = (copied/'fold2'/'log.csv').read_text()
    cv = again(whole, copied, data)
    assert cv.complete and (copied/'fold2'/'log.csv').read_text() == before
    assert torch.equal(cv.pooled().matrix, whole.pooled().matrix)

def test_time_budget_stops_and_goes_on(whole, data, tmp_path):
    lines,counts = [],Counts()
    short = recipe('training.monitor=valid_loss', 'training.time_budget_minutes=0')
    kw = dict(learner=counts, cache=whole.run_dir.parent/'store', progress=False, out=lines.append)
    cv = cross_validate(data, short, tmp_path/'run', **kw)
    assert not cv.complete and counts.made == [0] and 'goes on from here' in lines[-1]
    assert repr(cv).startswith('0 of 3 folds') and cv._repr_html_()
    with pytest.raises(DataError, match='no finished fold'): cv.report()
    assert torch.equal(again(whole, tmp_path/'run', data).pooled().matrix, whole.pooled().matrix)

def test_only_some_folds(whole, data, tmp_path):
    "As in the jobs of a Slurm array: any order, and the last call sees all"
    for k in (2,0,1): cv = again(whole, tmp_path/'run', data, only=[k])
    assert cv.complete and torch.equal(cv.pooled().matrix, whole.pooled().matrix)
    with pytest.raises(ValueError, match='no fold 3'): again(whole, tmp_path/'run', data, only=[3])

def test_another_recipe_is_refused(whole, data, copied):
    with pytest.raises(RecipeError, match='training.lr was 0.001, now it is 0.5') as e:
        cross_validate(data, recipe('training.monitor=valid_loss', 'training.lr=0.5'), copied, learner=Counts())
    assert 'another run folder' in str(e.value)
    named = recipe('training.monitor=valid_loss', 'name=other', 'training.checkpoint_minutes=3')
    assert cross_validate(data, named, copied, learner=Counts(), out=lambda s: None).complete

def test_other_tiles_labels_or_folds_are_refused(whole, data, copied, tmp_path):
    with pytest.raises(DataError, match='other tiles'): again(whole, copied, BandStack(data/'Train').subset([f'img00{i}' for i in range(1,9)]))
    other = glacier_sample(tmp_path/'other', tiles=9, size=32, seed=2)
    with pytest.raises(DataError, match='other labels'): again(whole, copied, other)
    with pytest.raises(DataError, match='other folds'): again(whole, copied, data, folds=make_folds(list(whole.plan.counts), 3, 'order'))

def test_folds_of_ones_own_and_scenes(whole, data, tmp_path):
    names = list(whole.plan.counts)
    cv = again(whole, tmp_path/'own', data, folds=make_folds(names, 2, 'order'), only=[1])
    assert cv.plan.how == 'given' and set(cv.fold_of) == set(names[5:])
    cv = again(whole, tmp_path/'scenes', data, groups={n: n in names[:3] or n in names[6:8] for n in names} | {names[8]: 'third'}, only=[])
    assert cv.plan.how == 'group' and sorted(len(f.valid) for f in cv.plan.folds) == [1,3,5]
    with pytest.raises(DataError, match='cannot be split'): again(whole, tmp_path/'bad', data, folds=[Fold(names, names)])

def test_damaged_files_are_named(whole, data, copied):
    t = next(iter(whole.plan.folds[0].valid))
    p = copied/'fold0'/'probs'/f'{t}.npy'
    good = p.read_bytes()
    p.write_bytes(good[:100])
    with pytest.raises(DataError, match='no .npy file'): list(read_crossval(copied).out_of_fold())
    np.save(p, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match='no .npy file'): list(read_crossval(copied).out_of_fold([t]))
    np.save(p, np.zeros((4,32,32)))
    with pytest.raises(DataError, match='holds float64'): list(read_crossval(copied).out_of_fold([t]))
    p.unlink()
    with pytest.raises(DataError, match='is missing'): read_crossval(copied)
    p.write_bytes(good)
    fold = json.loads((copied/'fold0'/'fold.json').read_text())
    for bad,word in ((dict(fold, recipe_hash='0'*12), 'another recipe'), (dict(fold, tiles={}), 'other tiles'), ([], 'not the result')):
        (copied/'fold0'/'fold.json').write_text(json.dumps(bad))
        with pytest.raises(DataError, match=word): read_crossval(copied)
    (copied/'fold0'/'fold.json').write_text('{"fold": 0')
    with pytest.raises(DataError, match='fold.json: is not JSON'): again(whole, copied, data)

def test_hostile_plan(copied):
    plan = json.loads((copied/'folds.json').read_text())
    (copied/'folds.json').write_text(json.dumps(plan | dict(extra=1)))
    with pytest.raises(DataError, match='no plan of folds'): read_crossval(copied)
    name = '../../../outside'
    plan['folds'][0]['valid'][0] = name
    for k in ('grid', 'counts'): plan[k][name] = next(iter(plan[k].values()))
    (copied/'folds.json').write_text(json.dumps(plan))
    fold = json.loads((copied/'fold0'/'fold.json').read_text())
    fold['tiles'] = {name: m for m in list(fold['tiles'].values())[:1]} | dict(list(fold['tiles'].items())[1:])
    (copied/'fold0'/'fold.json').write_text(json.dumps(fold))
    with pytest.raises(DataError, match=r'goes up'): read_crossval(copied)

def test_report_is_made_of_finite_numbers(whole):
    text = whole.report().read_text()
    saved = json.loads((whole.run_dir/'report.json').read_text(), parse_constant=lambda s: pytest.fail(s))
    assert saved['r_k'] == whole.pooled().r_k() and len(saved['tiles']) == 9 and saved['recipe_hash'] in text
    assert all(t in text for t in whole.plan.counts)
    assert FoldPlan.from_dict(json.loads(json.dumps(whole.plan.to_dict()))) == whole.plan
