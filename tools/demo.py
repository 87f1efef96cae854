"Run a task's Kaggle kernel on embedded data, headless: `python tools/demo.py glacier`. SMOKE=1 makes it quick."
import os, re, shutil, sys, time
from pathlib import Path
from clearsight_nb.core.kernels import run_kernel

ROOT = Path(__file__).resolve().parent.parent

def main(task):
    kernel,work = ROOT/'kaggle_kernels'/task/f'{task}.ipynb', ROOT/'demo'/task
    if not kernel.exists():
        there = ', '.join(sorted(p.stem for p in (ROOT/'kaggle_kernels').glob('*/*.ipynb')))
        sys.exit(f'There is no kernel for {task!r}. Use TASK= one of: {there}')
    shutil.rmtree(work, ignore_errors=True)  # a demo always begins at the beginning
    start = time.time()
    try: run_kernel(kernel, work, dict(CLEARSIGHT_PROGRESS='text', PYTHONWARNINGS='ignore'))
    except Exception as e: sys.exit(re.sub(r'\x1b\[[0-9;]*m', '', str(e)) + f'\n\nThe demo stopped here. What ran before the error is in {os.path.relpath(work/kernel.name)}')
    print(f'\nThe {task} demo took {time.time()-start:.0f} s. Look at:')
    places = [('notebook, executed', kernel.name), ('figures', 'figures'), ('run (weights, log, recipe)', f'runs/{task}')]
    places += [(f'{k} pictures', k) for k in ('restored', 'enhanced', 'derained')] + [('submission', 'submission')]
    for what,path in places:
        if (work/path).exists(): print(f'  {what:<28}{os.path.relpath(work/path)}')

if __name__ == '__main__': main(*sys.argv[1:] or ['glacier'])
