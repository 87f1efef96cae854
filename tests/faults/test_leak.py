"""Memory does not grow while a training goes on: 200 steps after the first 60, with epochs, validation, checkpoints and logs among them.

CI trains the small network; a long run (CLEARSIGHT_KILLS above 5) all demos, too. Peaks of whole demos are measured by benchmarks/memory.py.
"""
import json, pytest
from fault_jobs import KILLS
from test_tasks import TASKS, train

MIB = 4 # what may be added in 200 steps: 20 kB a step

def growth(path):
    "Bytes by which the resident set of the last 20 steps is larger than that of 20 steps after the first 40"
    sizes = json.loads(path.read_text())
    assert len(sizes)==260
    middle = lambda o: sorted(o)[len(o)//2]
    return middle(sizes[-20:])-middle(sizes[40:60])

def test_small_training_does_not_grow(jobs, tmp_path):
    jobs.finish(tmp_path/'a', measure=True, overrides=['training.steps=260', 'training.epochs=99', 'training.checkpoint_steps=20', 'training.keep_steps=false'])
    assert growth(tmp_path/'a.rss') < MIB*2**20

def test_a_leak_would_be_seen(jobs, tmp_path):
    "The same with 100 kB kept at each step"
    jobs.finish(tmp_path/'a', measure=True, leak=100_000, overrides=['training.steps=260', 'training.epochs=99', 'training.checkpoint_steps=20', 'training.keep_steps=false'])
    assert growth(tmp_path/'a.rss') > MIB*2**20

@pytest.mark.skipif(KILLS<=5, reason='only in a long run, CLEARSIGHT_KILLS=20')
@pytest.mark.parametrize('task', TASKS)
def test_demos_do_not_grow(jobs, tmp_path, task):
    argv = train(task, tmp_path/'a')
    more = dict(lowlight=['training.total_kimg=1.04'], shadow=['training.max_iterations=260', 'training.eval_every=20', 'training.save_every=20']).get(task, ['training.steps=260', 'training.checkpoint_steps=20'])
    jobs.finish(tmp_path/'a', measure=True, argv=[*argv, *more])
    assert growth(tmp_path/'a.rss') < MIB*2**20
