"""`EMACallback`'s update of 83 million weights against a loop over parameters: `python benchmarks/ema.py`

Seconds for one update of the averages of a diffusers UNet2DModel with the shapes of WeatherDiff64 (Özdenizci and Legenstein 2023).
- ours: `EMACallback.after_step`
- peer: a loop over the parameters, each copied and then averaged by `lerp_`
- printed beside it: the loop as EMAHelper of DDIM and WeatherDiffusion writes it (`average = (1-mu)*weight + mu*average`), and a loop of `lerp_` without copies. On a CPU the last one
  is as fast as we are: both read two numbers and write one for each weight, and memory is the limit. On a GPU it makes one launch for each parameter.
All take turns, and each time the weights have moved, so that caches see what they see in training. The ratio is the median over the turns. The averages are compared at the end.
"""
import statistics, sys, time, warnings
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from clearsight_nb.core.callbacks import EMACallback

MINUTES = 0.5

def make_model(seed=0, widths=(128, 256, 384, 512)):
    "U-Net of WeatherDiff64, 6 channels in, 3 out"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        from diffusers import UNet2DModel
    torch.manual_seed(seed)
    return UNet2DModel(sample_size=64, in_channels=6, out_channels=3, block_out_channels=widths, layers_per_block=2, downsample_padding=0, norm_eps=1e-6,
                       attention_head_dim=None, freq_shift=1, flip_sin_to_cos=False, down_block_types=('DownBlock2D', 'DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D'),
                       up_block_types=('UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D', 'UpBlock2D'))

class Loop:
    "The peer: one parameter after the other, a copy of it and a lerp towards the copy"
    def __init__(self, model, mu): self.model,self.mu,self.shadow = model,mu,{k: p.detach().clone() for k,p in model.named_parameters()}
    def update(self):
        for k,p in self.model.named_parameters(): self.one(self.shadow[k], p.detach())
    def one(self, avg, p): avg.lerp_(p.clone(), 1-self.mu)

class Helper(Loop):
    "As EMAHelper of DDIM and WeatherDiffusion does it"
    def one(self, avg, p): avg.data = (1-self.mu)*p + self.mu*avg.data

class Lerp(Loop):
    "Without the copy"
    def one(self, avg, p): avg.lerp_(p, 1-self.mu)

def settle(device):
    if device.type=='cuda': torch.cuda.synchronize()

def seconds(f, device):
    settle(device)
    start = time.perf_counter()
    f()
    settle(device)
    return time.perf_counter()-start

@torch.no_grad()
def run(turns=28, mu=.9999):
    "Seconds an update; on the GPU if there is one"
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    model = make_model().to(device)
    ours = EMACallback(mu, warmup=False)
    ours.learn = SimpleNamespace(model=model)
    ours.begin()
    ours.before_train()
    loops = dict(peer=Loop(model, mu), helper=Helper(model, mu), lerp=Lerp(model, mu))
    sides = dict(ours=ours.after_step) | {k: o.update for k,o in loops.items()}
    times,weights = {k: [] for k in sides},list(model.parameters())
    for i in range(turns+2):
        torch._foreach_mul_(weights, 1.01 if i%2 else .99)
        for k in (*list(sides)[i%4:], *list(sides)[:i%4]): times[k].append(seconds(sides[k], device))
    off = max(float((a-b).abs().max()) for o in loops.values() for a,b in zip(ours.avg, o.shadow.values()))
    if off>1e-6: raise AssertionError(f'the averages differ by {off:.1e}')
    times = {k: v[2:] for k,v in times.items()} # the first two warm up
    n = sum(p.numel() for p in weights)/1e6
    return dict(name=f'average of {n:.0f} M weights on {device.type}, EMACallback against a loop over parameters', ours=statistics.median(times['ours'])*1e3,
                peer=statistics.median(times['peer'])*1e3, ratio=statistics.median(b/a for a,b in zip(times['ours'], times['peer'])), target=1.5, unit='ms', times=times)

if __name__ == '__main__':
    r = run()
    print(f"{r['name']}, {torch.get_num_threads()} threads: {r['ours']:.1f} ms against {r['peer']:.1f} ms, ratio {r['ratio']:.2f}, target ≥ {r['target']}")
    for k,name in dict(peer='copy and lerp', helper='EMAHelper', lerp='lerp without copy').items():
        ratios = sorted(b/a for a,b in zip(r['times']['ours'], r['times'][k]))
        print(f'{name}: ratio {statistics.median(ratios):.2f} (middle half of the turns {ratios[len(ratios)//4]:.2f} to {ratios[3*len(ratios)//4]:.2f})')
