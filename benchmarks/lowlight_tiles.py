"A 256² tile of three channels, warm: from the packed store (uint16), against torch.load of its file, weights only."
import tempfile, time
from pathlib import Path
import numpy as np, torch
from clearsight_nb.lowlight.metadata import Tile
from clearsight_nb.lowlight.shards import ROUNDING, pack_tiles
from clearsight_nb.lowlight.tiles import write_tile

MINUTES = 0.3

def make(root, n, size, rng):
    "Tiles of dark linear noise: neither reader cares what a picture shows."
    tiles = []
    for i in range(n):
        x = rng.poisson(20, (3, size, size)).astype(np.float32)/1000
        write_tile(root/f'{i}.pt', 2*x - 1)
        tiles.append(Tile(f'{i}', root/f'{i}.pt', f'{i}', True, 'train'))
    return tiles

def per_tile(f, groups):
    "Seconds a tile when `f` is called for each group of tile numbers."
    start = time.perf_counter()
    for ids in groups: f(ids)
    return (time.perf_counter() - start)/sum(map(len, groups))

def run(n=96, size=256, batch=1, rounds=60, dtype='uint16', seed=0):
    """Both read the same tiles in the same random order; with `batch`>1 ours is one call and one tensor, the peer's a list.
    Rounds alternate and the best of each counts: a busy machine only adds time."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as tmp:
        tiles = make(Path(tmp), n, size, rng)
        store = pack_tiles(tiles, Path(tmp)/'store', dtype, progress=False)
        ours = store.batch if batch > 1 else lambda ids: store[ids[0]]
        def peer(ids): return [torch.load(tiles[i].path, weights_only=True) for i in ids]
        for i in range(n): # equal, and from here on both are warm
            assert (store[i]-peer([i])[0]).abs().max() <= ROUNDING
        draws = [rng.permutation(n)[:32].reshape(-1, batch).tolist() for _ in range(rounds)]
        a,b = zip(*[(per_tile(ours, d)*1e3, per_tile(peer, d)*1e3) for d in draws])
    return dict(name=f'{size}² tile from the store ({dtype}, {batch} a call), against torch.load with weights_only',
        ours=min(a), peer=min(b), ratio=min(b)/min(a), target=5, unit='ms')

if __name__ == '__main__':
    for dtype,batch in [('uint16', 1), ('uint16', 16), ('float32', 1), ('float32', 16)]:
        r = run(dtype=dtype, batch=batch)
        print(f"{r['name']}: {r['ours']:.4f} ms against {r['peer']:.3f} ms, ratio {r['ratio']:.1f} (target ≥ {r['target']})")
