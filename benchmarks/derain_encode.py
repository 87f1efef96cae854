"""Encoding a batch of rain pairs: `Codec` on tensors against the per-image numpy route of the task's first description, 64 pairs of 256×256.

- ours: `Codec()`, the default representation `complex`, fitted; standardised state and condition of all pairs, float32 (64, 6, 256, 129) each, four pairs at a time; how `magphase` does is told in the line's name
- peer: as described: for each picture and channel `fft2` of 0…255, `fftshift`, magnitude and phase into (256, 256, 6); difference clean - rain and the rainy spectrum; stacked, transposed, float32
Both sides start from the same 8-bit pictures in memory and may use all cores: a transform of tensors does, numpy's does not; the ratio with one thread is told in the name.
They take turns; the ratio is the median of peer/ours over the turns. `memory` is the same for the most memory that either side needs beyond its input, each in a process of
its own; it must be half at most. What ours encodes must decode to the clean pictures within 1e-5.
"""
import json, statistics, subprocess, sys, time
from pathlib import Path
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import numpy as np, torch

MINUTES = 1.2

def pictures(n=64, size=256):
    "Clean and rainy pictures, uint8 (n, size, size, 3)"
    from clearsight_nb.core.photos import add_rain, load_photo, photo_names, random_crops
    names = photo_names('all')
    clean = np.concatenate([random_crops(load_photo(m), size=size, n=-(-n//len(names)), seed=i) for i,m in enumerate(names)])[:n]
    rain = [add_rain(clean[i], 2/3, seed=i)[0] for i in range(8)] # eight kinds of rain are enough for a clock
    rain = np.stack([np.maximum(x, rain[i%8]-clean[i%8]+x).clip(0, 1) for i,x in enumerate(clean)])
    return np.uint8(255*clean+.5),np.uint8(255*rain+.5)

def mag_and_phase(x):
    "The spectrum of a picture (h, w, 3) as first described: (h, w, 6), three magnitudes, three phases, float64"
    F = [np.fft.fftshift(np.fft.fft2(x[...,c])) for c in range(3)]
    return np.stack([np.abs(f) for f in F] + [np.angle(f) for f in F], -1)

def peer(clean, rain):
    spectra = [(mag_and_phase(c), mag_and_phase(r)) for c,r in zip(clean, rain)]
    return [torch.from_numpy(np.stack(o).transpose(0,3,1,2).astype(np.float32)) for o in ([c-r for c,r in spectra], [r for _,r in spectra])]

def tensors(x): return torch.empty((len(x), 3, *x.shape[1:3])).copy_(torch.from_numpy(x).permute(0,3,1,2)).div_(255)

def ours(codec, clean, rain, chunk=4):
    out = [torch.empty(codec.state_shape((len(clean), 3, *clean.shape[1:3]))) for _ in range(2)]
    for k in range(0, len(clean), chunk):
        c,r = tensors(clean[k:k+chunk]),tensors(rain[k:k+chunk])
        codec.encode_pair(c, r, [o[k:k+chunk] for o in out])
    return out

def sides():
    from clearsight_nb.derain.fourier import Codec
    clean,rain = pictures()
    codecs = [Codec(k).fit([(tensors(clean[:8]), tensors(rain[:8]))]) for k in ('complex', 'magphase')]
    return codecs,clean,rain,dict(peer=lambda: peer(clean, rain), ours=lambda: ours(codecs[0], clean, rain), magphase=lambda: ours(codecs[1], clean, rain))

def status(key): return next(int(l.split()[1])*1024 for l in open('/proc/self/status') if l.startswith(key))

def needs(side):
    "Most memory that a side needs beyond what is there before it starts, bytes; measured in a process of its own"
    return json.loads(subprocess.run([sys.executable, __file__, side], capture_output=True, text=True, check=True, cwd=ROOT).stdout)

@torch.inference_mode()
def run(turns=11):
    "Seconds for one batch; both routes, with all threads and with one"
    codecs,clean,rain,both = sides()
    for codec,k in zip(codecs, ('ours', 'magphase')): # wakes them up, too
        worst = (codec.decode(both[k]()[0], tensors(rain)) - tensors(clean)).abs().max().item()
        assert worst<1e-5, f'what is decoded differs by {worst:.1e}'
    def clock(name, threads):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        both[name]()
        return time.perf_counter()-start
    every = torch.get_num_threads()
    times = {k: [] for k in [*both, 'one']}
    for _ in range(turns):
        for k in both: times[k].append(clock(k, every))
        times['one'].append(clock('ours', 1))
    torch.set_num_threads(every)
    memory = {k: needs(k) for k in ('peer', 'ours')}
    share = memory['ours']/memory['peer']
    assert share<=.5, f'ours needs {share:.2f} of the memory of the other route'
    ratio = lambda k: statistics.median(p/o for p,o in zip(times['peer'], times[k]))
    return dict(name=f'encoding 64 pairs of 256² on {every} cores, against the per-image numpy route, which uses one; {share:.2f} of its memory ({memory["ours"]/2**20:.0f} MiB); '
        f'one thread: {ratio("one"):.1f} times faster, magphase: {ratio("magphase"):.1f}', ours=statistics.median(times['ours']),
        peer=statistics.median(times['peer']), unit='s', ratio=ratio('ours'), target=10, memory=memory)

if __name__ == '__main__':
    if sys.argv[1:]:
        with torch.inference_mode():
            f = sides()[3][sys.argv[1]]
            torch.fft.rfft2(torch.zeros(8, 8))
            before = status('VmRSS')
            out = f()
        print(json.dumps(max(status('VmHWM')-before, 0)))
    else: print(run())
