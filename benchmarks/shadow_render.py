"""The shadow renderer against its unculled self: 24 random objects under random lights, 128×128, 8×8 points on the light, one thread.

Both sides give the same pictures to the last bit; that is checked. The name says what a picture takes, and how far 8×8 points are from 32×32 (RMSE, mean over the pictures).
"""
import sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np

MINUTES = 0.5

def run(n=24, size=128):
    "Seconds for a picture"
    from clearsight_nb.shadow.objects import random_scene
    from clearsight_nb.shadow.render import render
    from clearsight_nb.shadow.sample import random_camera, random_light
    rng = np.random.default_rng(0)
    scenes = [(random_scene(i), random_light(rng), random_camera(rng)) for i in range(n)]
    times,errors = dict(ours=[], peer=[]),[]
    for scene,light,camera in scenes:
        maps = {}
        for side,cull in (('peer', False), ('ours', True)):
            start = time.perf_counter()
            maps[side] = render(scene, light, size, camera=camera, cull=cull).shadow_map
            times[side].append(time.perf_counter()-start)
        assert np.array_equal(maps['ours'], maps['peer'])
        errors.append(np.sqrt(((maps['ours'] - render(scene, light, size, 32, camera).shadow_map)**2).mean()))
    ours,peer = (float(np.mean(times[k])) for k in ('ours', 'peer'))
    return dict(name=f'rendering a soft shadow, {size}², culled against unculled, same bits; slowest {max(times["ours"])*1e3:.0f} ms, RMSE {np.mean(errors):.4f} against 32×32 points',
        ours=ours, peer=peer, unit='s', ratio=peer/ours, target=2)

if __name__ == '__main__': print(run())
