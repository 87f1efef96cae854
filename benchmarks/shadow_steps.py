"""One step against twenty: casting the shadows of held-out objects with the weights in the package, `Flow` in one evaluation of the network and in 20 (Euler), one thread.

Objects and lights are those of the paper's three tracks, rendered at the network's own size (20 objects, 303 pictures, or fewer with CLEARSIGHT_OBJECTS). Both sides cast all of them, in turns; the name says the mean soft IoU and ZNCC of both on each track.
One step must not be worse than twenty by more than 0.01 in ZNCC on any track, or the benchmark fails.
"""
import os, statistics, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MINUTES = 2.5

def run(turns=3):
    "Seconds for all tracks"
    import torch
    from clearsight_nb.shadow.cast import stored_weights
    from clearsight_nb.shadow.evaluate import cast_all, track_batches
    from clearsight_nb.shadow.metrics import SCORES
    from clearsight_nb.shadow.models import load_net, net_facts
    from clearsight_nb.shadow.sample import shadow_tracks
    torch.set_num_threads(1)
    net,size,n = load_net(stored_weights()),net_facts(stored_weights())[1]['image_size'],int(os.environ.get('CLEARSIGHT_OBJECTS', 20))
    with tempfile.TemporaryDirectory() as tmp: tracks = track_batches(shadow_tracks(Path(tmp)/'t.tar', (n//2, n//4, n//4), size, progress=False), size)
    times,casts = {1: [], 20: []},{}
    for _ in range(turns):
        for steps,spent in times.items():
            start = time.perf_counter()
            casts[steps] = {t: cast_all(net, b, steps) for t,b in tracks.items()}
            spent.append(time.perf_counter()-start)
    score = lambda steps, t, k: float(SCORES[k](casts[steps][t], tracks[t]['shadow_map']).mean())
    for t in tracks: assert score(1, t, 'zncc') >= score(20, t, 'zncc')-.01, f'{t}: ZNCC {score(1, t, "zncc"):.3f} in one step, {score(20, t, "zncc"):.3f} in 20'
    said = '; '.join(f'{t}: IoU {score(1, t, "iou"):.3f} and {score(20, t, "iou"):.3f}, ZNCC {score(1, t, "zncc"):.3f} and {score(20, t, "zncc"):.3f}' for t in tracks)
    ours,peer = (statistics.median(times[k]) for k in (1, 20))
    return dict(name=f'casting the shadows of {sum(len(b["theta"]) for b in tracks.values())} pictures of {size}² in 1 step against 20; {said}', ours=ours, peer=peer, unit='s', ratio=peer/ours, target=10)

if __name__ == '__main__': print(run())
