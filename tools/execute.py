"Execute notebooks in place and keep their outputs: `python tools/execute.py nbs/core/02_files.ipynb` (or a folder)."
import os, sys, time
from pathlib import Path
import nbformat
from nbclient import NotebookClient

def notebooks(roots): return [p for r in map(Path, roots) for p in ([r] if r.is_file() else sorted(r.rglob('*.ipynb')))
                              if '.ipynb_checkpoints' not in p.parts]

def execute(path):
    "Run the notebook at `path` with a fresh kernel in its own folder; write it back only when every cell passed."
    nb = nbformat.read(path, as_version=4)
    nb.metadata.setdefault('kernelspec', dict(name='python3', display_name='python3', language='python'))
    NotebookClient(nb, timeout=None, extra_arguments=['--IPKernelApp.log_level=ERROR'], resources=dict(metadata=dict(path=str(path.parent)))).execute()
    aside = path.with_suffix('.tmp')
    nbformat.write(nb, aside)
    aside.replace(path)

if __name__ == '__main__':
    # A stored page shows no warnings; the tests run the same cells with warnings on.
    os.environ.setdefault('PYTHONWARNINGS', 'ignore')
    for path in notebooks(sys.argv[1:] or ['nbs']):
        start = time.time()
        execute(path)
        print(f'{path}: {time.time()-start:.0f} s', flush=True)
