"""Peak memory of `segment_scene` on an 8,000 x 8,000 x 5 scene: `python benchmarks/glacier_scene.py [--size 8000] [--threads 2]`

The script writes a synthetic scene of uint16 bands, window by window, to a temporary folder and deletes it afterwards. A process of its own
then builds a U-Net (ResNet-18 encoder, random weights), notes its resident memory, segments the scene with probabilities and confidence, and
notes the peak. What is compared with the limit of 1.5 GiB is the difference: everything beyond Python, torch and the model.
"""
import argparse, json, os, subprocess, sys, tempfile, time
from pathlib import Path
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MINUTES = 2.5
LIMIT = 1.5 # GiB
BANDS = ['blue', 'green', 'red', 'swir1', 'tir']

def write_scene(path, size, seed=0):
    "Smooth land with noise and two corners without data, in blocks of 256 as satellite agencies deliver it."
    import numpy as np, rasterio
    from rasterio.transform import from_origin
    rng,cols = np.random.default_rng(seed),np.arange(size)
    profile = dict(driver='GTiff', count=5, height=size, width=size, dtype='uint16', tiled=True, blockxsize=256, blockysize=256, compress='deflate',
                   crs='EPSG:32643', transform=from_origin(500_000, 3_900_000, 30, 30), BIGTIFF='IF_SAFER')
    with rasterio.Env(GDAL_CACHEMAX=64), rasterio.open(path, 'w', **profile) as f:
        for y in range(0, size, 256):
            rows = np.arange(y, min(y+256, size))[:,None]
            land = 9000 + 4000*np.sin(cols/310 + rows/470) + 2500*np.sin(cols/37 - rows/53)
            x = np.stack([land*(1 + .1*i) for i in range(5)]) + rng.normal(0, 60, (5, len(rows), size))
            x[:, (rows + 3*cols < size//2) | (rows + 3*cols > 3.5*size)] = 0
            f.write(x.clip(0, 65535).astype(np.uint16), window=((y, y+len(rows)), (0, size)))

def resident():
    "Resident memory now, GiB."
    return int(Path('/proc/self/statm').read_text().split()[1])*os.sysconf('SC_PAGE_SIZE')/2**30

def measure(folder, stride):
    "In a process of its own: memory before and at the peak, time, and what came out."
    import resource, torch
    import rasterio, segmentation_models_pytorch as smp
    from clearsight_nb.glacier.tiles import CLASS_NAMES
    from clearsight_nb.glacier.prepare import BandNorm
    from clearsight_nb.glacier.scenes import segment_scene
    torch.manual_seed(0)
    net = smp.Unet('resnet18', encoder_weights=None, in_channels=5, classes=4).eval()
    class Model:
        bands,names,norm = BANDS,list(CLASS_NAMES),BandNorm('zscore', BANDS, [9000.]*5, [4000.]*5)
        @torch.inference_mode()
        def probs(self, x): return net(torch.from_numpy(self.norm(x))[None])[0].softmax(0).numpy()
    before,start = resident(),time.perf_counter()
    res = segment_scene(folder/'scene.tif', folder/'map.tif', Model(), probabilities=True, confidence=True, stride=stride, progress=False)
    seconds,peak = time.perf_counter()-start,resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20
    with rasterio.open(folder/'scene.tif') as a, rasterio.open(res.paths['labels']) as b:
        if (a.crs, a.transform, a.shape) != (b.crs, b.transform, b.shape): raise AssertionError('the map lies elsewhere than the scene')
    if sum(res.pixels) + res.nodata != a.width*a.height: raise AssertionError('pixels are lost')
    print(json.dumps(dict(before=before, peak=peak, seconds=seconds, threads=torch.get_num_threads(), nodata=res.nodata, km2=sum(res.km2))))

def run(size=8000, stride=448, threads=None):
    "Tiles of 512 every 448 pixels; `threads` of torch, its own choice if None"
    env = os.environ | (dict(OMP_NUM_THREADS=str(threads)) if threads else {})
    with tempfile.TemporaryDirectory() as tmp:
        write_scene(Path(tmp)/'scene.tif', size)
        mb = os.path.getsize(Path(tmp)/'scene.tif')/1e6
        cmd = [sys.executable, __file__, '--measure', tmp, '--stride', str(stride)]
        out = subprocess.run(cmd, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    m = json.loads(out.splitlines()[-1])
    ours = m['peak'] - m['before']
    print(f"scene of {mb:.0f} MB, {m['seconds']:.0f} s ({size*size/1e6/m['seconds']:.2f} megapixels a second), {m['threads']} threads; "
          f"resident {m['before']:.2f} GiB with the model, {m['peak']:.2f} GiB at the peak")
    name = f'peak memory beyond the model, scene {size:,}x{size:,}x5 against the limit, {m["seconds"]:.0f} s'
    return dict(name=name, ours=ours, peer=LIMIT, ratio=ours/LIMIT, target=1., lower_is_better=True, unit='GiB')

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', type=int, default=8000, help='side of the scene, pixels')
    p.add_argument('--stride', type=int, default=448, help='from one tile of 512 to the next, pixels')
    p.add_argument('--threads', type=int, help="torch's threads")
    p.add_argument('--measure', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.measure: measure(Path(a.measure), a.stride)
    else:
        r = run(a.size, a.stride, a.threads)
        print(f"{r['name']}: {r['ours']:.2f} {r['unit']} of {r['peer']} GiB, ratio {r['ratio']:.2f} (target ≤ {r['target']:g})")
