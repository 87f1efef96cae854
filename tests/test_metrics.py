'What nbs/core/10_metrics.ipynb and 11_training_metrics.ipynb cannot show: two processes, GPU, odd inputs, brute force.'
import os, pickle, socket, sys, warnings
import numpy as np, pytest, torch
from clearsight_nb.core.metrics import *
from clearsight_nb.core.training_metrics import *

NAMES = ['rock', 'ice', 'debris', 'lake']

def slow_counts(pred, targ, n, ignore):
    "The plain loop"
    m = np.zeros((n,n), dtype=np.int64)
    for p,t in zip(np.ravel(pred).tolist(), np.ravel(targ).tolist()):
        if t != ignore: m[t,p] += 1
    return m

@pytest.mark.parametrize('n', [1, 2, 4, 16, 17, 200])   # 16*16 is the last that fits a byte
@pytest.mark.parametrize('dtype', [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64])
def test_counts_equal_the_plain_loop(n, dtype):
    rng = torch.Generator().manual_seed(n)
    p,t = (torch.randint(0, n, (3,7,5), generator=rng) for _ in range(2))
    hole = torch.rand(3,7,5, generator=rng) < .2
    p,t = p.masked_fill(hole, 99).to(dtype),t.masked_fill(hole, 255).to(dtype)   # what 99 stands on is never looked at
    want = slow_counts(p.long(), t.long(), n, 255)
    assert (count_pairs(p, t, n).numpy() == want).all()
    want = [slow_counts(a, b, n, 255) for a,b in zip(p.long(), t.long())]
    assert (count_pairs(p, t, n, per_item=True).numpy() == want).all()

@pytest.mark.parametrize('ignore', [None, -100, -1, 0, 2, 255, 300])
def test_ignore_is_exact_whatever_the_dtype(ignore):
    "torch compares uint8 with -1 as with 255 and with 300 as with 44: such an ignore must match no uint8 pixel"
    for dtype in (torch.uint8, torch.int64):
        t = torch.tensor([0,1,2,2,1], dtype=dtype)
        p = torch.tensor([0,1,2,1,0], dtype=dtype)
        assert (count_pairs(p, t, 3, ignore).numpy() == slow_counts(p, t, 3, ignore)).all()
    with pytest.raises(ValueError, match='truth holds class id -1'):   # int8 -1 is not 255
        count_pairs(torch.zeros(1).char(), torch.tensor([-1], dtype=torch.int8), 3, 255)
    for value in (255, 44):
        if ignore != value:
            with pytest.raises(ValueError, match=f'truth holds class id {value}'):
                count_pairs(torch.zeros(1).byte(), torch.tensor([value], dtype=torch.uint8), 3, ignore)

@pytest.mark.parametrize('pred,targ,match', [
    ([0,4], [0,1], 'prediction holds class id 4, outside 0..3'), ([0,-1], [0,1], 'prediction holds class id -1'),
    ([0,256], [0,1], 'prediction holds class id 256'), ([255,0], [0,1], 'prediction holds class id 255'),
    ([0,1], [0,4], 'truth holds class id 4, outside 0..3 and not the ignored 255'),
    ([0,1], [0,-100], 'truth holds class id -100'),
    ([0,1], [85,170], 'truth holds class id 85, 170'), ([[0,1]], [0,1], 'differ in shape'),
    ([0.,1.], [0,1], 'must be integers'),
    (torch.zeros(2), [0,1], 'prediction: class ids must be integers.*argmax'),
    ([0,1], torch.zeros(2), 'truth: class ids'),
    (list(range(9)), list(range(9)), 'class id 4, 5, 6, 7, 8, outside'),
    (list(range(12)), list(range(12)), 'and 3 more')])
def test_bad_ids_are_named(pred, targ, match):
    with pytest.raises(ValueError, match=match): ConfusionMatrix(4).update(pred, targ)

def test_nothing_is_counted_when_an_update_fails():
    cm = ConfusionMatrix(4).update([0,1], [0,1])
    with pytest.raises(ValueError): cm.update([0,9], [0,1])
    assert cm.matrix.sum() == 2

def test_odd_containers(tmp_path):
    "Read-only maps, strides, big-endian, booleans, images, empty: no warning, same counts"
    from PIL import Image
    t = np.random.default_rng(0).integers(0, 2, (6,8)).astype(np.uint8)
    p = 1-t
    t.tofile(tmp_path/'t')
    want = slow_counts(p, t, 2, 255)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for a in (np.memmap(tmp_path/'t', np.uint8, 'r', shape=t.shape), t[::-1][::-1], t.astype('>u2'),
                  t.astype(np.uint32), t.astype(np.int8), t > 0, Image.fromarray(t), t.tolist(),
                  torch.tensor(t).T.contiguous().T):
            assert (count_pairs(p, a, 2).numpy() == want).all()
        empty = np.zeros((0,4), np.uint8)
        assert count_pairs(empty, empty, 2).sum() == 0
        assert count_pairs(empty, empty, 2, per_item=True).shape == (0,2,2)

@pytest.mark.parametrize('seed', range(20))
def test_perfect_is_one_and_stays_in_range(seed):
    rng = np.random.default_rng(seed)
    k = int(10**rng.uniform(0, 14))
    assert r_k(np.diag(rng.integers(1, k+1, rng.integers(2, 9)))) == 1
    assert -1 <= r_k(rng.integers(0, k+1, (3,3))) <= 1

def test_long_scales_against_decimals():
    from decimal import Decimal, getcontext
    getcontext().prec = 80
    m = [[12345678901, 987654321, 55, 1], [23456789, 5555555555, 7654321, 12], [3, 1234567, 99999999, 5],
         [0, 2, 17, 4321]]
    t,p,s = [sum(r) for r in m],[sum(c) for c in zip(*m)],sum(map(sum, m))
    num = Decimal(sum(m[i][i] for i in range(4))*s - sum(a*b for a,b in zip(t, p)))
    want = num / (Decimal(s*s - sum(o*o for o in p)) * Decimal(s*s - sum(o*o for o in t))).sqrt()
    assert abs(Decimal(ConfusionMatrix(4, matrix=m).r_k()) - want) < Decimal('2e-16')

def test_matrix_refuses_nonsense():
    for bad in ([[1,2]], [[1,-1], [0,0]], [[.5,1], [0,0]]):
        with pytest.raises(ValueError): ConfusionMatrix(2, matrix=bad)
    with pytest.raises(TypeError): ConfusionMatrix(2) + 3
    cm = ConfusionMatrix(NAMES, matrix=np.eye(4, dtype=int))
    assert pickle.loads(pickle.dumps(cm)).r_k() == 1    # a Learner with metrics can be sent to a worker

def learner(n=7, bs=2):
    "A tiny Learner on `n` validation items, and the metrics it should report"
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.vision.core import TensorImage, TensorMask
    rng = torch.Generator().manual_seed(0)
    x,y = torch.randn(n,8,6,6, generator=rng),torch.randint(0, 4, (n,6,6), generator=rng)
    y[torch.rand(y.shape, generator=rng) < .2] = 255
    y[1] = 255                                            # a tile of nodata
    items = [(TensorImage(a), TensorMask(b)) for a,b in zip(x, y)]
    model = torch.nn.Conv2d(8, 4, 1, bias=False)
    with torch.no_grad(): model.weight.copy_(torch.randn(model.weight.shape, generator=rng))
    dls = DataLoaders(DataLoader(items, bs=bs), DataLoader(items, bs=bs))
    loss = CrossEntropyLossFlat(axis=1, ignore_index=255)
    learn = Learner(dls, model, loss_func=loss, metrics=class_metrics(NAMES))
    with torch.no_grad(): pred = model(x).argmax(1)
    tiles = [ConfusionMatrix(NAMES).update(a, b) for a,b in zip(pred, y)]
    cm = sum(tiles)
    return learn,[cm.r_k(), cm.macro_mcc(), cm.mean_iou(), tile_r_k(tiles)]

@pytest.mark.parametrize('bs', [1, 2, 7, 64])
def test_learner_reports_the_matrix_whatever_the_batches(bs):
    learn,want = learner(bs=bs)
    with learn.no_logging():
        np.testing.assert_allclose(list(learn.validate())[1:], want, atol=1e-12)
        np.testing.assert_allclose(list(learn.validate())[1:], want, atol=1e-12)   # nothing is left from before

def test_train_metrics_and_validation_do_not_mix():
    learn,want = learner()
    learn.recorder.train_metrics = True
    with learn.no_logging(): learn.fit(1, lr=0.)          # rate 0: both passes see the same weights
    vals = list(learn.recorder.values[-1])
    np.testing.assert_allclose(vals[1:5], want, atol=1e-12)
    np.testing.assert_allclose(vals[6:10], want, atol=1e-12)

def worker(rank, port, n):
    "One of two processes: the metrics of a distributed validation equal those of one process"
    import importlib.util, types, torch.distributed as dist
    if importlib.util.find_spec('accelerate') is None:    # fastai.distributed wants the name; its loader does not
        sys.modules['accelerate'] = types.SimpleNamespace(Accelerator=object)
    from fastai.distributed import DistributedDL
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    def _broadcast(self, t, rank):                        # fastai's own calls .cuda()
        t = torch.LongTensor(t)
        dist.broadcast(t, rank)
        return t.tolist()
    DistributedDL._broadcast = _broadcast
    cm = ConfusionMatrix(NAMES, matrix=(rank+1) * torch.arange(16).reshape(4,4) * 10**12)
    assert (cm.all_reduce().matrix == 3 * torch.arange(16).reshape(4,4) * 10**12).all()
    assert cm.matrix[0,1] == (rank+1) * 10**12            # the summand is left alone
    for size in n:
        learn,want = learner(n=size)
        dl = DistributedDL(learn.dls.valid)
        with learn.no_logging(): got = list(learn.validate(dl=dl))[1:]
        np.testing.assert_allclose(got, want, atol=1e-12)
        assert [m.value for m in learn.metrics] == got    # reading again asks nobody
    dist.barrier()
    dist.destroy_process_group()
    print('rank', rank, 'fine')

def test_two_processes_agree_with_one(python):
    "Odd sizes are padded by fastai with repeated items, which must not count"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = str(s.getsockname()[1])
    code = 'import sys, test_metrics as o; o.worker(int(sys.argv[1]), sys.argv[2], (5, 6, 7))'
    for r,p in enumerate([python(code, r, port, OMP_NUM_THREADS='1', GLOO_SOCKET_IFNAME='lo') for r in range(2)]):
        said = p.out.read()
        p.join(600)
        assert p.exitcode == 0 and f'rank {r} fine' in said, said

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU on this machine')
def test_gpu_counts_equal_cpu_counts():
    for dtype in (torch.uint8, torch.int64):
        p,t = torch.randint(0, 4, (5,64,64)).to(dtype),torch.randint(0, 4, (5,64,64)).to(dtype)
        t[:,:9] = 255
        res = count_pairs(p.cuda(), t.cuda(), 4, per_item=True)
        assert res.is_cuda and (res.cpu() == count_pairs(p, t, 4, per_item=True)).all()
    cm = ConfusionMatrix(4).update(p.cuda(), t.cuda()).update(p, t)
    assert cm.r_k() == ConfusionMatrix(4).update(p, t).r_k()
    assert len(cm.table()) == 5 and cm.plot() is not None
