"""A redraw of `LightViewer` after its light has moved, against `cast_shadow` on the whole picture: cut-out of 1024×1024 pixels, one thread.

The network is the `small` one at 64 pixels; its weights are random, which takes the same time. Both sides end with the bytes of a PNG.
The name says how long the slowest of the redraws took: the viewer promises 0.5 s at most.
"""
import sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np

MINUTES = 0.4

def missing():
    from importlib.util import find_spec
    return '' if find_spec('ipywidgets') else 'ipywidgets is not installed'

def run(n=12):
    "Seconds for a picture"
    import torch
    from clearsight_nb.shadow.cast import ShadowCaster, cast_shadow, png_bytes
    from clearsight_nb.shadow.models import shadow_net
    from clearsight_nb.shadow.objects import random_scene
    from clearsight_nb.shadow.render import Light, render
    from clearsight_nb.shadow.widget import LightViewer
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    r = render(random_scene(3), Light(30, 0, 2), 256, 2)
    cutout = np.concatenate([r.object_image, r.mask]).transpose(1, 2, 0).repeat(4, 0).repeat(4, 1)
    caster = ShadowCaster(shadow_net('small', seed=0), 64, 'random weights')
    viewer,times = LightViewer(cutout, caster),dict(ours=[], peer=[])
    viewer.ui
    for phi in np.linspace(0, 340, n).round(-1)+5:
        start = time.perf_counter()
        viewer.inputs['phi'].value = float(phi)
        times['ours'].append(time.perf_counter()-start)
        start = time.perf_counter()
        png_bytes(cast_shadow(cutout, 35, float(phi), 3, .8, weights=caster, expand=False).composite(.93))
        times['peer'].append(time.perf_counter()-start)
    torch.set_num_threads(threads)
    assert viewer.drawings==n+1
    ours,peer = (float(np.median(times[k])) for k in ('ours', 'peer'))
    return dict(name=f'a redraw of LightViewer at 360², against casting on the whole 1024²; slowest redraw {max(times["ours"])*1e3:.0f} ms, promised 500',
        ours=ours, peer=peer, unit='s', ratio=peer/ours, target=2)

if __name__ == '__main__': print(run())
