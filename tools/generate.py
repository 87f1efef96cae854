"Make what follows from the notebooks: `kaggle_kernels/` from the kernel pages, README.md and its pictures from nbs/index.ipynb."
import json, posixpath, re
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from clearsight_nb.core.files import atomic_write
from clearsight_nb.core.kernels import dataset_metadata, kernel_source, make_kernel
from front import write_strip

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 'docs/images'

def link_from_root(match):
    "A relative link in nbs/index.ipynb, as seen from the repository's root."
    text,url = match.groups()
    return match.group(0) if '://' in url or url.startswith('#') else f'[{text}]({posixpath.normpath("nbs/" + url)})'

def is_bar(output):
    "A progress bar or its style sheet, which say nothing once the work is done."
    html = ''.join(output.get('data', {}).get('text/html', ''))
    return 'progress' in html and '<table' not in html

def readme(page=ROOT/'nbs/index.ipynb'):
    "README.md and its pictures, as the front page shows them."
    nb = nbformat.read(page, as_version=4)
    for c in nb.cells:
        if re.match(r'#\|\s*hide_input', c.source): c.metadata['transient'] = dict(remove_source=True) # nbconvert's own mark
    for c in nb.cells: c.source = kernel_source(c.source) if c.cell_type == 'code' else re.sub(r'\[([^]]*)\]\(([^)]*)\)', link_from_root, c.source)
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs = [o for o in c.outputs if not is_bar(o)]
    nb.cells = [c for c in nb.cells if c.source]
    nb.metadata['language_info'] = dict(name='python')
    text,extras = MarkdownExporter().from_notebook_node(nb, resources=dict(unique_key='readme', output_files_dir=IMAGES))
    for name,data in extras['outputs'].items():
        (ROOT/name).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(ROOT/name) as f: f.write(data)
    note = f'<!-- Made from {page.relative_to(ROOT)} by `make export`; do not edit here. -->\n\n'
    with atomic_write(ROOT/'README.md', 'w') as f: f.write(note + re.sub(r'\n{3,}', '\n\n', text.strip().replace('![png]', '![Picture drawn by the code above]')) + '\n')

def wheels(folder=ROOT/'kaggle_kernels/wheels'):
    "Metadata of the data set that `make kaggle-dataset` fills."
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder/'dataset-metadata.json', 'w') as f: f.write(json.dumps(dataset_metadata(), indent=1) + '\n')

if __name__ == '__main__':
    for page in sorted((ROOT/'nbs').glob('*/90_kernel.ipynb')): make_kernel(page, ROOT/'kaggle_kernels')
    wheels()
    write_strip()
    readme()
