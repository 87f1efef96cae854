"Execute notebooks in place and keep their outputs: `python tools/execute.py nbs/core/00_files.ipynb` (or a folder)."
import base64, io, os, sys, tempfile, time
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from PIL import Image

def notebooks(roots):
    "Notebooks below folders, or named ones."
    found = [p for r in map(Path, roots) for p in ([r] if r.is_file() else sorted(r.rglob('*.ipynb')))]
    return [p for p in found if '.ipynb_checkpoints' not in p.parts]

def slim(png, limit=150_000):
    "A picture of at most `limit` bytes: first with 256 colours, then smaller."
    if len(png) <= limit: return png
    image,scale = Image.open(io.BytesIO(png)).convert('RGB'), 1.
    while len(png) > limit:
        small = image.resize([round(scale*o) for o in image.size], Image.LANCZOS).quantize(256, dither=Image.Dither.NONE)
        small.save(out := io.BytesIO(), 'PNG', optimize=True)
        png,scale = out.getvalue(), scale*.9
    return png

def slim_pictures(nb):
    for data in (o.data for c in nb.cells for o in c.get('outputs', []) if 'image/png' in o.get('data', {})):
        data['image/png'] = base64.b64encode(slim(base64.b64decode(data['image/png']))).decode()

def execute(path):
    "Run the notebook at `path` with a fresh kernel; write it back only when every cell passed."
    nb = nbformat.read(path, as_version=4)
    nb.metadata.setdefault('kernelspec', dict(name='python3', display_name='python3', language='python'))
    quiet = ['--IPKernelApp.log_level=ERROR']  # the kernel's own warnings are not the notebook's output
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as tmp:  # a kernel page leaves files where it runs, others in TMPDIR
        cwd = work if path.stem.endswith('_kernel') else str(path.parent)
        NotebookClient(nb, timeout=None, extra_arguments=quiet, resources=dict(metadata=dict(path=cwd))).execute(env=os.environ | dict(TMPDIR=tmp))
    slim_pictures(nb)
    aside = path.with_suffix('.tmp')
    nbformat.write(nb, aside)
    aside.replace(path)

if __name__ == '__main__':
    os.environ.setdefault('PYTHONWARNINGS', 'ignore')  # a stored page shows no warnings; the tests run the same cells with them
    for path in notebooks(sys.argv[1:] or ['nbs']):
        start = time.time()
        execute(path)
        print(f'{path}: {time.time()-start:.0f} s', flush=True)
