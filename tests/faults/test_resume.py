"""A run killed at any moment and resumed ends with the same weights, bit for bit, as one that was not: a small network that meets all that could go wrong.

fault_jobs.py says how to kill more often, and how to repeat the moments of an earlier run.
"""
import pytest, random, signal
from fault_jobs import KILLS, SEED, same
from clearsight_nb.core.checkpoints import read_checkpoint

# a plain run; workers and a plateau; one step a batch, a run that ends within an epoch, and batches that are dropped
CASES = [dict(), dict(workers=2, overrides=['training.schedule=plateau', 'training.plateau_patience=0', 'training.early_stop_patience=3', 'training.epochs=3']),
         dict(overrides=['training.accumulate=1', 'training.steps=40', 'training.ema_decay=null', 'training.optimizer=sgd', 'training.grad_clip=null'], spoil=[5, 50])]

@pytest.fixture(scope='module')
def whole(jobs, tmp_path_factory):
    "Each case trained in one piece: its folder and the seconds it took"
    root = tmp_path_factory.mktemp('whole')
    return [(root/str(i), jobs.finish(root/str(i), **case)['seconds']) for i,case in enumerate(CASES)]

@pytest.mark.parametrize('i', range(len(CASES)))
def test_kill_at_random_moments(jobs, whole, tmp_path, i):
    "Each case is killed on its way, from the start of its process on; a run that is done before it is killed is compared, and the next one begins anew."
    rng,events,(folder,seconds),n = random.Random(SEED+i),[],whole[i],0
    kills = -(-KILLS//len(CASES))
    while kills:
        delay = rng.uniform(.02, seconds)
        done = jobs(tmp_path/f'{n}', kill_after=delay, from_start=True, **CASES[i])
        events.append(f'case {i} after {delay:.3f} s: {done["status"]}')
        assert done['status'] in (0, -signal.SIGKILL), done['text']
        if done['status']==0:
            same(folder, tmp_path/f'{n}')
            n += 1
        else: kills -= 1
    jobs.finish(tmp_path/f'{n}', **CASES[i])
    print(f'CLEARSIGHT_SEED={SEED}', *events, sep='\n')
    same(folder, tmp_path/f'{n}')

@pytest.mark.parametrize('n', [1, 2, 9])
def test_killed_in_the_middle_of_writing(jobs, whole, tmp_path, n):
    assert jobs(tmp_path/'a', die_at=n)['status']==-signal.SIGKILL
    jobs.finish(tmp_path/'a')
    same(whole[0][0], tmp_path/'a')

def test_batches_that_are_not_numbers_are_dropped(whole):
    "Case 2 has two bad pictures of 93 in each of its epochs: the batches that hold them leave no trace, and the log counts them"
    state = read_checkpoint(whole[2][0]/'checkpoints'/'latest.pt')
    assert state['cbs']['finite_guard']['dropped']>=3 and state['step']==40
    assert all(v.isfinite().all() for v in state['model'].values())

@pytest.mark.parametrize('n', [6, 7, 8])
def test_a_bad_batch_may_come_first(jobs, whole, tmp_path, n):
    "Case 2 killed while it writes the checkpoint behind the one that lies right in front of a batch that is dropped, and at its neighbours"
    assert jobs(tmp_path/'a', die_at=n, **CASES[2])['status']==-signal.SIGKILL
    jobs.finish(tmp_path/'a', **CASES[2])
    same(whole[2][0], tmp_path/'a')

def test_nothing_but_bad_batches_ends_the_run(jobs, tmp_path):
    done = jobs(tmp_path/'a', spoil=list(range(93)), overrides=['training.max_nonfinite=4'])
    assert done['status']==1 and 'The loss was not finite in 4 batches in a row' in done['text'], done['text']
    read_checkpoint(tmp_path/'a'/'checkpoints'/'latest.pt')
    assert 'ended: FloatingPointError' in (tmp_path/'a'/'training.log').read_text()

def test_jumps_of_the_clock_do_not_matter(jobs, whole, tmp_path):
    "Neither for the weights nor for limits of time, which are far away"
    changes = ['training.checkpoint_minutes=30', 'training.time_budget_minutes=60']
    for k in 'ab': jobs.finish(tmp_path/k, overrides=changes, **dict(clock=1) if k=='a' else {})
    same(tmp_path/'b', tmp_path/'a')
    assert '(time)' not in (tmp_path/'a'/'training.log').read_text()
