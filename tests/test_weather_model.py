"WeatherDiffusion's network and checkpoints against an independent reading of the published architecture, in plain torch."
import argparse, math, os, pickle, zipfile
import pytest, torch
import torch.nn.functional as F
from torch import nn
from fastai.callback.hook import total_params
from clearsight_nb.core.files import DataError
from clearsight_nb.weather.model import WEATHER_NETS, WeatherNet, unet_config, weather_net, weather_unet
from clearsight_nb.weather.checkpoint import (convert_weights, key_map, load_weatherdiff, read_weatherdiff,
    save_weatherdiff, weatherdiff_shapes)

# --- The published network, written from the block table of the specification; it shares no code with diffusers or the package.
def norm(c): return nn.GroupNorm(32, c, eps=1e-6)
def swish(x): return x*torch.sigmoid(x)

class Res(nn.Module):
    def __init__(self, n_in, n_out, n_temb):
        super().__init__()
        self.norm1,self.conv1 = norm(n_in),nn.Conv2d(n_in, n_out, 3, padding=1)
        self.temb_proj = nn.Linear(n_temb, n_out)
        self.norm2,self.conv2 = norm(n_out),nn.Conv2d(n_out, n_out, 3, padding=1)
        if n_in != n_out: self.nin_shortcut = nn.Conv2d(n_in, n_out, 1)
    def forward(self, x, temb):
        h = self.conv1(swish(self.norm1(x))) + self.temb_proj(swish(temb))[:,:,None,None]
        h = self.conv2(swish(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, 'nin_shortcut') else x)

class Attn(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = norm(c)
        self.q,self.k,self.v,self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))
    def forward(self, x):
        b,c,h,w = x.shape
        n = self.norm(x)
        q,k,v = (f(n).reshape(b, c, h*w) for f in (self.q, self.k, self.v))
        share = torch.einsum('bci,bcj->bij', q, k).mul(c**-.5).softmax(dim=2)  # position i looks at position j
        return x + self.proj_out(torch.einsum('bij,bcj->bci', share, v).reshape(b, c, h, w))

class Down(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)
    def forward(self, x): return self.conv(F.pad(x, (0,1,0,1)))

class Up(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)
    def forward(self, x): return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))

def level(blocks, attns, **kw):
    m = nn.Module()
    m.block,m.attn = nn.ModuleList(blocks),nn.ModuleList(attns)
    for k,v in kw.items(): setattr(m, k, v)
    return m

def waves(t, n):
    f = torch.exp(-math.log(10000)*torch.arange(n//2)/(n//2-1))
    a = t.float()[:,None]*f
    return torch.cat([a.sin(), a.cos()], dim=1)

class Published(nn.Module):
    "`ch`, `mult`, `side` as in the published configurations; 2 residual blocks down, 3 up, attention at side 16."
    def __init__(self, ch, mult, side):
        super().__init__()
        self.ch,L,T = ch,len(mult),4*ch
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, T), nn.Linear(T, T)])
        self.conv_in = nn.Conv2d(6, ch, 3, padding=1)
        attns = lambda i, c, n: [Attn(c) for _ in range(n)] if side//2**i == 16 else []
        downs,ups,h,skips = [],[],ch,[ch]
        for i,m in enumerate(mult):
            c = ch*m
            halve = {} if i == L-1 else dict(downsample=Down(c))
            downs.append(level([Res(h, c, T), Res(c, c, T)], attns(i, c, 2), **halve))
            skips += [c]*(2+len(halve))
            h = c
        self.down,self.mid = nn.ModuleList(downs),nn.Module()
        self.mid.block_1,self.mid.attn_1,self.mid.block_2 = Res(h, h, T),Attn(h),Res(h, h, T)
        for i in range(L-1, -1, -1):
            c,blocks = ch*mult[i],[]
            for _ in range(3):
                blocks.append(Res(h+skips.pop(), c, T))
                h = c
            ups.insert(0, level(blocks, attns(i, c, 3), **(dict(upsample=Up(c)) if i else {})))
        self.up,self.norm_out,self.conv_out = nn.ModuleList(ups),norm(h),nn.Conv2d(h, 3, 3, padding=1)
    def forward(self, x, t):
        temb = self.temb.dense[1](swish(self.temb.dense[0](waves(t, self.ch))))
        hs = [self.conv_in(x)]
        for d in self.down:
            for j,block in enumerate(d.block):
                h = block(hs[-1], temb)
                hs.append(d.attn[j](h) if len(d.attn) else h)
            if hasattr(d, 'downsample'): hs.append(d.downsample(hs[-1]))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(hs[-1], temb)), temb)
        for u in reversed(self.up):
            for j,block in enumerate(u.block):
                h = block(torch.cat([h, hs.pop()], dim=1), temb)
                if len(u.attn): h = u.attn[j](h)
            if hasattr(u, 'upsample'): h = u.upsample(h)
        assert not hs
        return self.conv_out(swish(self.norm_out(h)))

MULT = dict(weatherdiff64=((1,2,3,4), 64), weatherdiff128=((1,1,2,3,4), 128), specific=((1,1,2,2,4,4), 64))

def published(ch, mult, side, seed=0):
    "Random weights of which none is at its initial value: norms and biases count too."
    torch.manual_seed(seed)
    ref = Published(ch, mult, side).eval().requires_grad_(False)
    for p in ref.parameters(): p.add_(torch.randn_like(p)*(.1 if p.dim() == 1 else .02*p[0].numel()**-.5))
    return ref

def inputs(side, n=1):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n,3,side,side, generator=g), torch.rand(n,3,side,side, generator=g)*2-1

def run(unet, x, t, cond): return unet(torch.cat([cond, x], dim=1), t).sample

def filled(ref, unet):
    unet.load_state_dict(convert_weights(ref.state_dict(), unet))
    return unet.eval()

def difference(ref, unet, t, side):
    x,cond = inputs(side)
    with torch.no_grad():
        want = ref(torch.cat([cond, x], dim=1), torch.tensor([t]))
        assert want.abs().max() > .3  # something to compare
        return (want-run(unet, x, torch.tensor([t]), cond)).abs().max().item()

@pytest.mark.parametrize('name', MULT)
def test_outputs_equal_the_published_architecture(name):
    ref = published(32, *MULT[name])
    unet = filled(ref, weather_unet(name, ch=32))
    for t in (0, 960): assert difference(ref, unet, t, MULT[name][1]) <= 1e-5

def test_outputs_equal_at_full_width():
    ref = published(128, *MULT['weatherdiff64'])
    with torch.device('meta'): unet = weather_unet('weatherdiff64')
    unet.load_state_dict(convert_weights(ref.state_dict(), unet), assign=True)
    assert difference(ref, unet.eval(), 960, 64) <= 1e-5

# --- Each setting that diffusers has otherwise by default would be noticed, the smallest by the tight tolerance only.
WRONG = dict(downsample_padding=1, flip_sin_to_cos=True, freq_shift=0, attention_head_dim=8, norm_eps=1e-5, act_fn='gelu')

@pytest.mark.parametrize('setting', WRONG)
def test_each_wrong_setting_shows(setting):
    from diffusers import UNet2DModel
    small = WeatherNet(32, 32, (1,2))
    ref = published(32, (1,2), 32)
    assert difference(ref, filled(ref, weather_unet(small)), 960, 32) <= 1e-5
    other = UNet2DModel(**unet_config(small) | {setting: WRONG[setting]})
    assert difference(ref, filled(ref, other), 960, 32) > 1e-5

def test_channel_order_shows():
    small,ref = WeatherNet(32, 32, (1,2)),published(32, (1,2), 32)
    unet,(x,cond) = filled(ref, weather_unet(small)),inputs(32)
    want = ref(torch.cat([cond, x], dim=1), torch.tensor([7]))
    with torch.no_grad():
        assert (run(unet, x, 7, cond)-want).abs().max() <= 1e-5  # a number for the step does, too
        assert (run(unet, cond, 7, x)-want).abs().max() > .01

def test_every_sample_of_a_batch_has_its_own_step():
    small,ref = WeatherNet(32, 32, (1,2)),published(32, (1,2), 32)
    unet,(x,cond),t = filled(ref, weather_unet(small)),inputs(32, 2),torch.tensor([0,999])
    with torch.no_grad(): assert (run(unet, x, t, cond)-ref(torch.cat([cond, x], dim=1), t)).abs().max() <= 1e-5

@pytest.mark.parametrize('name', MULT)
def test_full_width_names_shapes_order_and_count(name):
    with torch.device('meta'): ref,unet = Published(128, *MULT[name]),weather_unet(name)
    assert {k: tuple(v.shape) for k,v in ref.state_dict().items()} == weatherdiff_shapes(unet)
    assert [k for k,_ in ref.named_parameters()] == list(weatherdiff_shapes(unet)) == list(key_map(unet))  # Adam's positions
    there,back = key_map(unet),key_map(unet, back=True)
    assert set(there.values()) == set(unet.state_dict()) == set(back) and len(there) == len(back) == len(set(there.values()))
    assert all(back[there[k]] == k for k in there)
    assert total_params(ref)[0] == total_params(unet)[0]
    assert len(there) == dict(weatherdiff64=332, weatherdiff128=392, specific=450)[name]
    assert round(total_params(unet)[0]/1e6, 3) == dict(weatherdiff64=82.962, weatherdiff128=85.606, specific=109.737)[name]

# --- Checkpoints in the published layout, written here without the package.
N = argparse.Namespace

def config(ch, mult, side):
    return N(data=N(image_size=side, conditional=True), model=N(in_channels=3, ch=ch, ch_mult=list(mult)), device=torch.device('cuda'))

def train_step(net, adam, forward):
    adam.zero_grad()
    x,cond = inputs(32)
    forward(net, x, torch.tensor([300]), cond).square().sum().backward()
    adam.step()

def ref_forward(net, x, t, cond): return net(torch.cat([cond, x], dim=1), t)

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    "A training of two steps by the plain network, its file in the published layout and what is in it."
    ref = published(32, (1,2), 32).requires_grad_(True)
    adam = torch.optim.Adam(ref.parameters(), lr=2e-5)
    for _ in range(2): train_step(ref, adam, ref_forward)
    ema = {k: v.detach()*.99+.001 for k,v in ref.named_parameters()}
    d = dict(epoch=3, step=2, state_dict=nn.DataParallel(ref).state_dict(), optimizer=adam.state_dict(), ema_helper=ema,
        params=N(config='allweather.yml', seed=61, resume=''), config=config(32, (1,2), 32))
    path = tmp_path_factory.mktemp('weather')/'tiny.pth.tar'
    torch.save(d, path)
    return path,d,ref

def same(a, b):
    "Equal to the bit, types included."
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, N): return isinstance(b, N) and same(vars(a), vars(b))
    if isinstance(a, dict): return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b and type(a) is type(b)

def test_published_layout_comes_back_to_the_bit(checkpoint, tmp_path):
    path,d,_ = checkpoint
    ck = load_weatherdiff(path, weights='raw', optimizer=True)
    assert not ck.unet.training and (ck.step, ck.epoch) == (2, 3) and ck.config.device == torch.device('cuda')
    assert all(p.requires_grad and p.device.type == 'cpu' for p in ck.unet.parameters())
    save_weatherdiff(tmp_path/'copy.pth.tar', ck.unet, ck.ema, ck.optimizer, ck.step, ck.epoch, ck.config, ck.params)
    again = read_weatherdiff(tmp_path/'copy.pth.tar')
    for k in d: assert same(dict(d[k]) if isinstance(d[k], dict) else d[k], dict(again[k]) if isinstance(d[k], dict) else again[k]), k
    assert [p.name for p in tmp_path.iterdir()] == ['copy.pth.tar']  # nothing left aside

def test_averaged_and_raw_weights_are_told_apart(checkpoint):
    path,d,ref = checkpoint
    ck = load_weatherdiff(path)
    assert 'averaged (EMA) weights, step 2, epoch 3' in repr(ck) and ck.optimizer is None and ck.ema is None
    back = convert_weights(ck.unet.state_dict(), ck.unet, back=True)
    assert all(torch.equal(back[k], v) for k,v in d['ema_helper'].items())
    raw = load_weatherdiff(path, weights='raw')
    assert 'raw weights' in repr(raw) and difference(ref, raw.unet, 500, 32) <= 1e-5
    assert difference(ref, ck.unet, 500, 32) > 1e-3

def test_training_goes_on_as_the_published_one_would(checkpoint):
    "With the same gradients by name, the next step of Adam from the carried state is the same to the bit."
    path,d,_ = checkpoint
    ref = published(32, (1,2), 32).requires_grad_(True)
    ref.load_state_dict({k.removeprefix('module.'): v for k,v in d['state_dict'].items()})
    theirs = torch.optim.Adam(ref.parameters(), lr=1.)
    theirs.load_state_dict(d['optimizer'])
    ck = load_weatherdiff(path, weights='raw', optimizer=True)
    ours = torch.optim.Adam(ck.unet.parameters(), lr=1.)
    ours.load_state_dict(ck.optimizer)
    assert ours.param_groups[0]['lr'] == 2e-5
    grads = {k: torch.randn_like(p) for k,p in ref.named_parameters()}
    for k,p in ref.named_parameters(): p.grad = grads[k]
    for k,g in convert_weights(grads, ck.unet).items(): ck.unet.get_parameter(k).grad = g
    theirs.step()
    ours.step()
    after = convert_weights(ck.unet.state_dict(), ck.unet, back=True)
    assert all(torch.equal(after[k], v) for k,v in ref.state_dict().items())
    assert not torch.equal(after['conv_in.weight'], d['state_dict']['module.conv_in.weight'])

def test_old_forms_are_read(checkpoint, tmp_path):
    "Adam before torch 1.12 kept its step as a number, torch before 1.6 wrote no zip."
    path,d,ref = checkpoint
    old = dict(d, optimizer=dict(d['optimizer'], state={i: dict(s, step=2) for i,s in d['optimizer']['state'].items()}))
    torch.save(old, tmp_path/'old.pth.tar', _use_new_zipfile_serialization=False)
    ck = load_weatherdiff(tmp_path/'old.pth.tar', weights='raw', optimizer=True)
    assert ck.optimizer['state'][0]['step'] == 2 and difference(ref, ck.unet, 500, 32) <= 1e-5

# --- Files that are something else.
def rewritten(checkpoint, folder, **changes):
    d = {k: v for k,v in (checkpoint[1] | changes).items() if v is not None}
    torch.save(d, folder/'changed.pth.tar')
    return folder/'changed.pth.tar'

def fault(path, **kw):
    "The message of the refusal; it names the file, and says what to do."
    with pytest.raises(DataError) as e: load_weatherdiff(path, **kw)
    assert str(path) in str(e.value) and e.value.fault and e.value.mend
    return str(e.value)

class Hostile:
    def __init__(self, command): self.command = command
    def __reduce__(self): return os.system, (self.command,)

@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('protocol', [0, 2, 4, None])
def test_a_hostile_pickle_is_refused_and_not_run(checkpoint, tmp_path, protocol):
    mark,path = tmp_path/'was_run',tmp_path/'hostile.pth.tar'
    hostile = Hostile(f'touch {mark}')
    if protocol is None: torch.save(checkpoint[1] | dict(config=hostile), path)
    else: path.write_bytes(pickle.dumps(hostile, protocol=protocol))
    said = fault(path)
    assert not mark.exists()
    if protocol in (2, None): assert 'system while it is read' in said and 'refused and nothing was run' in said
    if protocol is not None:
        pickle.loads(path.read_bytes())  # it was live
        assert mark.exists()

class Harmless:
    "A class that something else in the process declared safe."
    def __setstate__(self, state): Harmless.ran = True

def test_only_namespace_is_allowed_whatever_others_allow(checkpoint, tmp_path):
    path,o = tmp_path/'other.pth.tar',Harmless()
    o.x = 1
    torch.save(checkpoint[1] | dict(config=o), path)
    torch.serialization.add_safe_globals([Harmless])
    try:
        assert 'Harmless while it is read' in fault(path)
        assert not hasattr(Harmless, 'ran')
        assert Harmless in torch.serialization.get_safe_globals()  # the others' list is as it was
        assert argparse.Namespace not in torch.serialization.get_safe_globals()
    finally: torch.serialization.clear_safe_globals()

def test_damaged_files_are_refused(checkpoint, tmp_path):
    whole,path = checkpoint[0].read_bytes(),tmp_path/'bad.pth.tar'
    assert 'does not exist' in fault(path)
    path.write_bytes(b'')
    assert 'is empty' in fault(path)
    for n in (1, 100, len(whole)//2, len(whole)-1, len(whole)-30):
        path.write_bytes(whole[:n])
        assert 'cut short' in fault(path), n
    path.write_text('<html>404 Not Found</html>')
    assert 'no file of torch' in fault(path)
    assert 'is a folder' in fault(tmp_path) and 'bad.pth.tar' in fault(tmp_path)

def test_one_flipped_bit_is_found(checkpoint, tmp_path):
    path,whole = tmp_path/'bit.pth.tar',bytearray(checkpoint[0].read_bytes())
    with zipfile.ZipFile(checkpoint[0]) as z: big = max(z.infolist(), key=lambda i: i.file_size)
    whole[big.header_offset + big.file_size//2] ^= 1
    path.write_bytes(whole)
    assert f'is damaged at {big.filename}' in fault(path)

def test_other_content_is_refused_by_the_first_difference(checkpoint, tmp_path):
    _,d,_ = checkpoint
    ema = d['ema_helper']
    new = lambda **kw: rewritten(checkpoint, tmp_path, **kw)
    without = lambda *keys: {k: v for k,v in ema.items() if k not in keys}
    assert "has no 'down.1.attn.0.k.bias'" in fault(new(ema_helper=without('down.1.attn.0.k.bias', 'up.0.block.1.conv1.weight')))
    assert "also has 'fc.weight'" in fault(new(ema_helper=ema | {'fc.weight': torch.zeros(2)}))
    assert "'norm_out.bias' is [31], not [32]" in fault(new(ema_helper=ema | {'norm_out.bias': torch.zeros(31)}))
    assert "'norm_out.bias' holds no floating-point" in fault(new(ema_helper=ema | {'norm_out.bias': torch.zeros(32, dtype=torch.int64)}))
    assert "'norm_out.bias' holds NaN" in fault(new(ema_helper=ema | {'norm_out.bias': torch.full((32,), math.nan)}))
    assert "no 'temb.dense.0.weight', it begins with 'layer.0'" in fault(new(ema_helper={'layer.0': torch.zeros(2)}))
    assert "has no averaged weights" in fault(new(ema_helper=None)) and "weights='raw'" in fault(new(ema_helper=None))
    assert "has no 'step', it begins with 'epoch'" in fault(new(step=None))
    assert "'step' is a str" in fault(new(step='many'))
    assert "has no 'state_dict'" in fault(new(state_dict=None))
    assert "begins with 'temb.dense.0.weight'" in fault(new(**{k: None for k in d} | ema))
    torch.save([1,2], tmp_path/'list.pth.tar')
    assert 'but a list' in fault(tmp_path/'list.pth.tar')
    torch.save(torch.zeros(3), tmp_path/'tensor.pth.tar')
    assert 'but a Tensor' in fault(tmp_path/'tensor.pth.tar')

def test_an_optimizer_that_does_not_fit_is_refused_only_when_asked_for(checkpoint, tmp_path):
    _,d,_ = checkpoint
    adam = d['optimizer']
    two = dict(adam, param_groups=[dict(adam['param_groups'][0], params=[0,1])])
    small,twice = dict(adam, state={0: dict(exp_avg=torch.zeros(3))}),dict(adam, param_groups=adam['param_groups']*2)
    for bad in (None, dict(state={}), two, small, twice):
        path = rewritten(checkpoint, tmp_path, optimizer=bad)
        assert 'not Adam over all weights' in fault(path, optimizer=True)
        assert load_weatherdiff(path).step == 2

def test_weights_of_another_network_are_refused_by_both_names(tmp_path):
    "WeatherDiff128 into WeatherDiff64 and back, at full width; the tensors hold one number each, so the file is small."
    cases = [('weatherdiff128', 'weatherdiff64', 'down.1.block.0.conv1.weight'), ('specific', 'weatherdiff128', 'down.3.block.0.conv1.weight')]
    for holds,wanted,key in cases:
        with torch.device('meta'): shapes = weatherdiff_shapes(weather_unet(holds))
        weights = {k: torch.zeros(1).expand(s) for k,s in shapes.items()}
        d = dict(epoch=1, step=1, state_dict={f'module.{k}': v for k,v in weights.items()}, ema_helper=weights)
        torch.save(d, tmp_path/'full.pth.tar')
        said = fault(tmp_path/'full.pth.tar', preset=wanted)
        assert f'The file holds {holds}, wanted is {wanted}.' in said and key in said

def test_configuration_that_lies_does_no_harm(checkpoint, tmp_path):
    for side in ('big', 10**9, -4, 0, 3.5, [64], True):
        assert 'as data.image_size' in fault(rewritten(checkpoint, tmp_path, config=N(data=N(image_size=side))))
    half = rewritten(checkpoint, tmp_path, config=N(data=N(image_size=16)))
    assert load_weatherdiff(half).net == WeatherNet(16, 32, (1,2), attn_resolutions=(8,))
    assert load_weatherdiff(rewritten(checkpoint, tmp_path, config=None)).net == WeatherNet(32, 32, (1,2))

def test_saving_refuses_what_could_not_be_loaded(tmp_path):
    from diffusers import UNet2DModel
    unet,path = weather_unet(WeatherNet(32, 32, (1,2))),tmp_path/'x.pth.tar'
    with pytest.raises(ValueError, match='linear_1.weight. is not among'): save_weatherdiff(path, unet, ema={'a': torch.zeros(1)})
    few = torch.optim.Adam([unet.conv_in.bias]).state_dict()
    with pytest.raises(ValueError, match='not Adam over all'): save_weatherdiff(path, unet, optimizer=few)
    other = UNet2DModel(**unet_config(weather_net(WeatherNet(32, 32, (1,2)))) | dict(freq_shift=0))
    with pytest.raises(ValueError, match='freq_shift is 0'): save_weatherdiff(path, other)
    assert not list(tmp_path.iterdir())

def test_a_killed_save_leaves_the_old_file(checkpoint, tmp_path, monkeypatch):
    path,unet = tmp_path/'x.pth.tar',load_weatherdiff(checkpoint[0]).unet
    before = save_weatherdiff(path, unet, step=1).read_bytes()
    monkeypatch.setattr(torch, 'save', lambda d, f: (f.write(b'half'), 1/0))
    with pytest.raises(ZeroDivisionError): save_weatherdiff(path, unet, step=2)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1

def test_names_of_presets():
    assert {k: (v.ch_mult, v.image_size) for k,v in WEATHER_NETS.items()} == MULT
    with pytest.raises(ValueError, match='no weather network'): weather_unet('resnet')
