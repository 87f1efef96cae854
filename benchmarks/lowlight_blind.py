"""The blind mode on pairs of real photographs: `python benchmarks/lowlight_blind.py FOLDER [N]`, where FOLDER has input/ and target/ with pictures of equal names, such as the PolyU data set.

Prints PSNR (RGB, data range 1) of the untouched input, of non-local means with the noise it estimates itself, and of `enhance_blind`, on crops of 256×256 from the middle.
"""
import math, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MINUTES = 10

def missing():
    "Why it is not among the benchmarks that run by themselves"
    return 'it needs a folder of pairs: python benchmarks/lowlight_blind.py FOLDER'

def main(folder, n=None, side=256):
    "Mean PSNR of the input, of the peer and of ours, one row a pair"
    import numpy as np
    from PIL import Image
    from skimage.restoration import denoise_nl_means
    from clearsight_nb.core.files import list_images
    from clearsight_nb.lowlight.blind import enhance_blind
    from clearsight_nb.lowlight.evaluate import paired_interval
    folder = Path(folder)
    def crop(path):
        with Image.open(path) as im: x = np.asarray(im.convert('RGB'), np.float32)/255
        i,j = (max(0, (s-side)//2) for s in x.shape[:2])
        return x[i:i+side,j:j+side]
    db = lambda a,b: -10*math.log10(float(np.square(a.clip(0, 1)-b).mean()))
    def peer(y):
        d = (y[1:,1:] - y[1:,:-1] - y[:-1,1:] + y[:-1,:-1])/2
        s = float(np.median(np.abs(d))/.6745)
        return denoise_nl_means(y, patch_size=5, patch_distance=6, h=.8*s, sigma=s, channel_axis=-1)
    files = list_images(folder/'input')
    files = files[::max(1, len(files)//n)][:n] if n else files
    rows,seconds = [],0.
    for f in files:
        y,x = crop(folder/'input'/f),crop(folder/'target'/f)
        start = time.perf_counter()
        out = enhance_blind(y).image
        seconds += time.perf_counter()-start
        rows.append((db(y, x), db(peer(y), x), db(out, x)))
    a = np.array(rows)
    gain,low,high = paired_interval(a[:,2], a[:,0])
    print(f'{len(a)} pairs: input {a[:,0].mean():.2f} dB, non-local means {a[:,1].mean():.2f} dB, blind {a[:,2].mean():.2f} dB, gain {gain:+.2f} ({low:+.2f}…{high:+.2f})')
    print(f'worse than the input: {int((a[:,2]<a[:,0]).sum())}, worst {float((a[:,2]-a[:,0]).min()):+.2f} dB; {seconds/len(a):.2f} s a picture of {side}×{side}')

if __name__ == '__main__':
    if len(sys.argv)<2: sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv)>2 else None)
