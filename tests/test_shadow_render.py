"The shadow renderer against brute force, its symmetries, and what a light controls."
import json, tarfile
import numpy as np, pytest
from PIL import Image
from clearsight_nb.shadow.objects import FAMILIES, random_scene, rest_on_ground
from clearsight_nb.shadow.render import Light, Scene, Solid, greyness, ground_grid, mirrored, render, shadow_at
from clearsight_nb.shadow.sample import TRACKS, random_camera, random_light, shadow_sample, shadow_tracks

def rmse(a, b): return float(np.sqrt(((a-b)**2).mean()))

def inside(solid, p):
    "Whether world points (…, 3) are in a solid, from its definition"
    q = (p-solid.center)@np.linalg.inv(solid.matrix).T
    if solid.kind=='ball': return (q*q).sum(-1) <= 1
    if solid.kind=='cube': return abs(q).max(-1) <= 1
    return (q[...,2]>=0) & (q[...,2]<=1) & (np.hypot(q[...,0], q[...,1]) <= 1 + (solid.taper-1)*q[...,2])

@pytest.mark.parametrize('family', FAMILIES)
def test_shadow_equals_marching(family):
    "Walking along every line in small steps gives the same shadow, up to lines that graze an edge."
    scene,light = random_scene(3, family),Light(33, 77, 5)
    points = ground_grid(10, 3)
    lamp,t = light.points(4),np.linspace(0, 1, 701)[:,None]
    d,dark = lamp-points[:,None],np.zeros((len(points), len(lamp)), bool)
    for i,j in np.ndindex(dark.shape):
        line = points[i] + t*d[i,j]
        dark[i,j] = any(inside(s, line).any() for s in scene.solids)
    r2 = (d*d).sum(-1)
    w = (d[...,2]/np.sqrt(r2))*((d@light.frame[0])/np.sqrt(r2))/r2
    assert rmse(shadow_at(scene, light, points, 4), (w*dark).sum(1)/w.sum(1)) < .02

@pytest.mark.parametrize('seed', range(6))
def test_symmetries(seed):
    "Mirror image for 180-phi; culling changes nothing; the shadow is on visible ground only; the amodal one is the whole."
    rng = np.random.default_rng(seed)
    scene,light,camera = random_scene(seed),random_light(rng),random_camera(rng)
    r = render(scene, light, 40, camera=camera)
    m = render(mirrored(scene), Light(light.theta, (180-light.phi)%360, light.size), 40, camera=camera)
    assert abs(m.shadow_map[:,:,::-1]-r.shadow_map).max() <= 1e-6 and (m.mask[:,:,::-1]==r.mask).all()
    np.testing.assert_allclose(m.object_image[:,:,::-1].mean(), r.object_image.mean(), atol=.1)
    assert np.array_equal(render(scene, light, 40, camera=camera, cull=False).amodal, r.amodal)
    assert (r.shadow_map*r.mask).max()==0 and np.array_equal(r.shadow_map, r.amodal*(1-r.mask))
    for x in (r.object_image, r.mask, r.shadow_map): assert x.dtype==np.float32 and 0 <= x.min() and x.max() <= 1

def test_light_samples_are_enough():
    "8 × 8 points are within 0.006 RMSE of 32 × 32, on average over objects and lights."
    rng = np.random.default_rng(5)
    errors = []
    for i in range(8):
        scene,light,camera = random_scene(i),random_light(rng),random_camera(rng)
        errors.append(rmse(render(scene, light, 48, camera=camera).shadow_map, render(scene, light, 48, 32, camera).shadow_map))
    assert np.mean(errors) <= .006, errors

def _ground(scene, light, n=60): return shadow_at(scene, light, ground_grid(n), 6)

def test_what_a_light_controls():
    "Azimuth opposite the light, extent grows with theta, greyness with size, total shadow stays."
    points,off,mass = ground_grid(60)[:,:2],[],[]
    for seed in range(4):
        scene = random_scene(seed)
        for phi in (0, 75, 160, 290):
            s = _ground(scene, Light(40, phi, 2))
            c = (points*s[:,None]).sum(0)/s.sum()
            off.append(abs((np.degrees(np.arctan2(c[1], c[0])) - phi)%360 - 180))
        reach = []
        for theta in (5, 15, 25, 35, 45):
            s = _ground(scene, Light(theta, 0, 2))
            reach.append((-points[:,0]*s).sum()/s.sum())
        assert (np.diff(reach)>0).all(), reach
        soft = [_ground(scene, Light(30, 0, s)) for s in (2, 4, 8)]
        assert (np.diff([greyness(s) for s in soft])>0).all()
        mass.append(soft[2].sum()/soft[0].sum())
    assert np.mean(off) < 3 and max(off) < 12, off
    assert .8 < np.mean(mass) < 1.05, mass

def test_phi_turns_the_scene():
    "A light turned about the vertical, over an object turned as far, gives a turned shadow."
    scene,a = random_scene(1),np.radians(50)
    m = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    points = ground_grid(20, 4)
    np.testing.assert_allclose(shadow_at(scene, Light(30, 20, 4), points, 6), shadow_at(scene.moved(m), Light(30, 70, 4), points@m.T, 6), atol=.03)

@pytest.mark.parametrize('kw,says', [(dict(theta=60), 'theta is 0…45'), (dict(phi=-1), 'phi is 0…360'), (dict(size=0), 'size is 2…8'), (dict(theta=float('nan')), 'theta')])
def test_lights_out_of_range(kw, says):
    with pytest.raises(ValueError, match=says): Light(**dict(theta=10, phi=10, size=2) | kw)

def test_an_empty_scene_is_lit(): assert not render(Scene((Solid('ball', np.eye(3)*.1, np.array([0, 0, -5.])),)), Light(0, 0, 2), 16).shadow_map.any()

def test_objects_rest_on_the_ground():
    for seed in range(200):
        lo,hi = random_scene(seed).box
        assert abs(lo[2]) < 1e-9 and abs((hi-lo).max()-2) < 1e-9
    assert len(rest_on_ground(random_scene(0)).solids)==len(random_scene(0).solids)

def test_sample_and_tracks(tmp_path):
    "Layouts, values, repeatability; training and benchmark objects differ; a failed write leaves nothing."
    a = shadow_sample(tmp_path/'a', objects=2, lights=3, size=24, samples=2, progress=False)
    meta = json.loads((a/'metadata.json').read_text())
    assert {p.parent.name for p in a.rglob('*.png')}=={'objects', 'masks', 'shadows'} and len(list(a.rglob('*.png')))==18
    assert all(set(m)=={'theta', 'phi', 'size'} for m in meta.values())
    assert Image.open(a/'masks'/'0001_2.png').mode=='L' and Image.open(a/'objects'/'0001_2.png').mode=='RGB'
    t = shadow_tracks(tmp_path/'t.tar', objects=(1, 1, 1), size=16, samples=2, progress=False)
    with tarfile.open(t) as tar: got = {n: json.load(tar.extractfile(n)) for n in tar.getnames() if n.endswith('metadata.json')}
    for track,lights in TRACKS.items(): assert [got[f'{track}_{k:03}.metadata.json'] for k in range(len(lights))]==[dict(theta=o.theta, phi=o.phi, size=o.size) for o in lights]
    with pytest.raises(ValueError, match='1 or more'): shadow_tracks(tmp_path/'u.tar', objects=(1,), size=0, progress=False)
    assert not list(tmp_path.glob('*u.tar*'))
