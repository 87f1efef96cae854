"Photographs: what their page cannot show."
import subprocess, sys
import numpy as np, pytest
from clearsight_nb.core import photos
from clearsight_nb.core.photos import DEGRADATIONS, degrade, load_photo

def test_neither_package_is_imported():
    "Reading a photograph does not cost an import of scikit-image or scikit-learn."
    code = "import sys; from clearsight_nb.core.photos import load_photo; load_photo('chelsea'); load_photo('china')\n" \
        "assert not {'skimage', 'sklearn', 'torch', 'fastai'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)

def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(photos.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match='pip install scikit-image'): load_photo('coffee')

@pytest.mark.parametrize('kind', DEGRADATIONS)
def test_any_shape(kind):
    "Thin, tiny, black and white pictures are degraded without a fault, and stay in range."
    for shape in ((8, 8), (5, 90), (90, 5), (33, 70)):
        for value in (0, 1):
            x = np.full((*shape, 3), value, np.float32)
            y,m = degrade(x, kind, 1, 3)
            assert y.shape == x.shape and m.shape == shape and np.isfinite(y).all() and 0 <= y.min() and y.max() <= 1
            assert (x == value).all(), 'the input was written to'

def test_same_in_another_process():
    code = "from clearsight_nb.core.photos import *; import zlib\n" \
        "print([zlib.crc32(degrade(load_photo('coffee', 64), k, .6, 5)[0].tobytes()) for k in DEGRADATIONS])"
    a,b = (subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout for _ in range(2))
    assert a == b
