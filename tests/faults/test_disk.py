"""Full disks, folders that cannot be written to, and readers that die: the checkpoint before stays, one clear error is told, and a later run ends as one that met nothing of it.

Small disks are tmpfs that only the trained process sees (a mount namespace of its own: as root, or where users may have such); where they are refused, the tests that need them
are skipped and say so, and a limit on the size of files stands for a full disk.
"""
import pytest, shutil
from fault_jobs import NO_MOUNT, leftovers, same
from clearsight_nb.core.checkpoints import read_checkpoint

@pytest.fixture(scope='module')
def whole(jobs, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')/'run'
    jobs.finish(folder)
    return folder

def on_disk(jobs, folder, **job):
    "A run on a disk of its own; afterwards what was on it lies in `folder`"
    done = jobs(folder, **job)
    if done['status']==NO_MOUNT: pytest.skip(f'No disk may be mounted here ({done["text"].strip()})')
    shutil.rmtree(folder)
    folder.with_name(f'{folder.name}_left').rename(folder)
    return done

def says(done, *words):
    "The last line, which is all that people see of an error in a terminal, holds these words"
    line = [o for o in done['text'].splitlines() if o.strip()][-1]
    assert done['status']==1 and all(w in line for w in words), done['text']

def goes_on(jobs, folder, whole):
    "Only whole files are left; once there is room again, the run ends as the whole one"
    assert not leftovers(folder)
    for p in folder.rglob('*.pt'): read_checkpoint(p)
    assert (folder/'checkpoints'/'latest.pt').is_file()
    jobs.finish(folder)
    same(whole, folder)

def test_limit_on_files(jobs, whole, tmp_path):
    done = jobs(tmp_path/'a', limit_at=6)
    says(done, 'The disk is full', 'latest.pt', 'Free space')
    goes_on(jobs, tmp_path/'a', whole)

def test_own_files_fill_the_disk(jobs, whole, tmp_path):
    "Checkpoints that are kept, on a disk of 400 KiB"
    done = on_disk(jobs, tmp_path/'a', disk=400)
    says(done, 'The disk is full', '.pt', 'Free space')
    assert list((tmp_path/'a').rglob('step_*.pt'))
    goes_on(jobs, tmp_path/'a', whole)

@pytest.mark.parametrize('n', [1, 6])
def test_others_fill_the_disk(jobs, whole, tmp_path, n):
    "Not a byte is left, not even for a line in the log: the error says so all the same"
    done = on_disk(jobs, tmp_path/'a', disk=2000, fill_at=n)
    says(done, 'The disk is full', 'latest.pt', 'Free space')
    (tmp_path/'a'/'ballast').unlink()
    if n==1: assert not leftovers(tmp_path/'a') and not list(tmp_path.rglob('*.pt'))
    else: goes_on(jobs, tmp_path/'a', whole)

def test_program_on_a_full_disk(jobs, tmp_path):
    "One line from the program"
    (tmp_path/'a').mkdir()
    argv = ['train', 'weather', '--run-dir', str(tmp_path/'a'), '--sample', 'n=8 n_valid=4 size=32', 'model.patch=16', 'model.ch_mult=[1]', 'training.steps=4', 'training.workers=0']
    done = on_disk(jobs, tmp_path/'a', argv=argv, disk=100)
    says(done, 'clearsight train: ', 'The disk is full', '.pt')
    assert 'Traceback' not in done['text'] and done['text'].count('clearsight train: ')==1, done['text']

def test_disk_turns_read_only(jobs, whole, tmp_path):
    done = on_disk(jobs, tmp_path/'a', read_only=6)
    says(done, 'cannot be written', 'latest.pt')
    goes_on(jobs, tmp_path/'a', whole)

def test_program_cannot_write(jobs, tmp_path):
    "A disk that is read-only, a file in the place of a folder, and a file system that takes no files"
    sample = ['--sample', 'n=8 n_valid=4 size=32', 'training.workers=0']
    (tmp_path/'file').write_text('a')
    for folder in ('/proc/run', tmp_path/'file'/'run'):
        done = jobs(tmp_path/'b', argv=['train', 'weather', '--run-dir', str(folder), *sample])
        says(done, 'clearsight train: ', str(folder), 'cannot be written')
        assert 'Traceback' not in done['text'] and done['text'].count('clearsight train: ')==1, done['text']
    assert (tmp_path/'file').read_text()=='a'
    done = on_disk(jobs, tmp_path/'c', argv=['train', 'weather', '--run-dir', str(tmp_path/'c'), *sample], read_only=0)
    says(done, 'clearsight train: ', str(tmp_path/'c'), 'cannot be written')

@pytest.mark.parametrize('how', ['kill', 'exit'])
def test_a_worker_dies(jobs, whole, tmp_path, how):
    "A process that reads data is killed, as by a machine without memory, or leaves"
    done = jobs(tmp_path/'a', workers=2, worker_dies=how)
    says(done, 'worker', 'training.workers', 'goes on')
    goes_on(jobs, tmp_path/'a', whole)
