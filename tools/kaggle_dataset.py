"""Make what goes to Kaggle, in dist/kaggle/: a data set of wheels, and the kernels that have it attached.

`python tools/kaggle_dataset.py ann` puts the account `ann` into the metadata.
"""
import re, shutil, subprocess, sys, zipfile
from email.parser import HeaderParser
from pathlib import Path
from tempfile import TemporaryDirectory
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from clearsight_nb.core.files import DataError
from clearsight_nb.core.kernels import OWNER

ROOT = Path(__file__).resolve().parent.parent
DEST = ROOT/'dist/kaggle'

# What the image lacks: package → why the data set carries it. Versions are pinned, so that the same data set can be made again.
WHEELS = {
    'segmentation-models-pytorch==0.6.0': 'encoders and decoders of the glacier networks',
    'imagecodecs==2026.3.6': 'lets tifffile read compressed TIFF (glacier)',
    'rawpy==0.28.0': "reads a camera's raw files (lowlight)",
    'plum-dispatch==2.9.0': 'the image has it now, but any day may bring 2.10, which breaks Learner.export'}

# What the image has of all that we and those wheels need; None: some version. It is Colab's of May 2026 (github.com/googlecolab/backend-info,
# pip-freeze.gpu.txt) with what kaggle_requirements.txt in github.com/Kaggle/docker-python adds: torchmetrics, which brings lightning-utilities.
PYTHON,PLATFORMS = '3.12',('manylinux_2_28_x86_64', 'manylinux2014_x86_64')
IMAGE = {
    'accelerate': '1.13.0', 'beartype': '0.22.9', 'diffusers': '0.37.1', 'fastai': '2.8.7', 'huggingface-hub': '1.17.0', 'lightning-utilities': None,
    'numpy': '2.0.2', 'omegaconf': '2.3.0', 'pillow': '11.3.0', 'rich': '13.9.4', 'safetensors': '0.7.0', 'scikit-image': '0.25.2', 'scikit-learn': '1.6.1', 'scipy': '1.16.3',
    'tifffile': '2026.4.11', 'timm': '1.0.27', 'torch': '2.10.0', 'torchmetrics': None, 'torchvision': '0.25.0', 'tqdm': '4.67.3', 'typing-extensions': '4.15.0'}

def run(cmd):
    "Run a command; if it fails, say with which words"
    done = subprocess.run([str(c) for c in cmd], capture_output=True, text=True)
    if done.returncode: raise DataError(cmd[2], 'failed', f'Nothing in {DEST.name} was changed. It said:\n{(done.stdout + done.stderr)[-2000:]}')

def build_wheel(dest):
    "Our wheel, from a copy of the sources, because a build leaves its folders where it runs"
    with TemporaryDirectory() as tmp:
        shutil.copytree(ROOT/'clearsight_nb', Path(tmp)/'clearsight_nb', ignore=shutil.ignore_patterns('__pycache__'))
        for f in ('pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(ROOT/f, tmp)
        run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', dest, tmp])

def fetch_wheels(dest, wheels=WHEELS):
    "The wheels that the image lacks, as built for the image's Python"
    platforms = [w for p in PLATFORMS for w in ('--platform', p)]
    if wheels: run([sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:', '--python-version', PYTHON, *platforms, '--dest', dest, *wheels])

def requirements(wheel, extras=('', 'raw')):
    "What a wheel requires in the image, with the extras that the install cell of a kernel asks for"
    with zipfile.ZipFile(wheel) as z: text = z.read(next(n for n in z.namelist() if n.endswith('.dist-info/METADATA'))).decode()
    place = dict(python_version=PYTHON, python_full_version=f'{PYTHON}.0', sys_platform='linux', platform_machine='x86_64', platform_system='Linux')
    wanted = [Requirement(r) for r in HeaderParser().parsestr(text).get_all('Requires-Dist', [])]
    return [r for r in wanted if r.marker is None or any(r.marker.evaluate(place | dict(extra=e)) for e in extras)]

def check_complete(folder):
    "Every requirement of every wheel is met by another wheel or by the image; `DataError` names the one that is not."
    there = IMAGE | {name: str(version) for name,version,*_ in (parse_wheel_filename(w.name) for w in folder.glob('*.whl'))}
    for wheel in sorted(folder.glob('*.whl')):
        for r in requirements(wheel):
            have = there.get(canonicalize_name(r.name), 'absent')
            if have is not None and not (have!='absent' and r.specifier.contains(have, prereleases=True)):
                raise DataError(wheel.name, f'requires {r}, and without internet there is {have}', 'Add it to WHEELS, or to IMAGE if the image has it, in tools/kaggle_dataset.py.')

def copy_as(folder, dest, owner):
    "A generated folder, with the name of the account in its metadata"
    shutil.copytree(folder, dest)
    for f in dest.glob('*-metadata.json'): f.write_text(f.read_text(encoding='utf-8').replace(OWNER, owner), encoding='utf-8')

def build(dest=DEST, owner=OWNER, wheels=WHEELS, kernels=ROOT/'kaggle_kernels'):
    "Fill a folder beside `dest`, check it, and put it in the place of `dest`: whole or not at all"
    dest.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f'.{dest.name}-', dir=dest.parent) as tmp:
        new = Path(tmp)/'new'
        for folder in sorted(p for p in kernels.iterdir() if p.is_dir()): copy_as(folder, new/folder.name, owner)
        build_wheel(new/'wheels')
        fetch_wheels(new/'wheels', wheels)
        check_complete(new/'wheels')
        if dest.exists(): dest.rename(Path(tmp)/'old')
        new.rename(dest)
    return dest

def main(owner=OWNER):
    if not re.fullmatch(r'[A-Za-z0-9_-]+', owner): sys.exit(f'{owner!r} is no Kaggle account. Give its name, as in `make kaggle-dataset OWNER=ann`.')
    try: dest = build(owner=owner)
    except DataError as e: sys.exit(str(e))
    why,shown = {canonicalize_name(Requirement(w).name): reason for w,reason in WHEELS.items()},dest.relative_to(ROOT)
    print(f'{shown/"wheels"}:')
    for w in sorted((dest/'wheels').glob('*.whl')):
        print(f'{w.stat().st_size/1e6:8.2f} MB  {w.name}\n{"":13}{why.get(parse_wheel_filename(w.name)[0], "this project")}')
    if owner==OWNER: print(f'\nThe account is still called {OWNER}: say `make kaggle-dataset OWNER=name` to upload it.')
    print(f'\nUpload:  kaggle datasets create -p {shown/"wheels"}    (a later one: kaggle datasets version -m "what is new" -p {shown/"wheels"})')
    for k in sorted(dest.glob('*/kernel-metadata.json')): print(f'         kaggle kernels push -p {k.parent.relative_to(ROOT)}')

if __name__ == '__main__': main(*sys.argv[1:])
