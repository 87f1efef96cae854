"Shadow networks: conditions, codecs, three kinds of U-Net, and SDXL's weights by diffusers' own loading code."
import json, math
import pytest, torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from clearsight_nb.core.diffusion import Denoiser, Flow
from clearsight_nb.core.files import DataError
from clearsight_nb.core.sampling import euler, one_step, start
from clearsight_nb.shadow.latent import SpaceToDepth, VAECodec, fit_vae, round_trip, small_vae
from clearsight_nb.shadow.models import Codec, light_of, load_net, net_facts, pack_cond, save_net, shadow_net, unpack_cond
from clearsight_nb.shadow.sdxl import NARROW, SDXL_UNET, SDXL_VAE, SDXLShadow, drop_cross_attention, light_embedding, load_sdxl, widen_conv_in

def make_batch(b=2, h=32, w=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.rand(*s, generator=g)
    return dict(object_image=r(b, 3, h, w), mask=r(b, 1, h, w), shadow_map=r(b, 1, h, w), theta=45*r(b), phi=360*r(b), size=2+6*r(b))

def params(net): return [p for p in net.parameters() if p.requires_grad]
def noise_for(net, prepared, seed=0): return start(Flow(), 1., (len(prepared), net.codec.channels, *prepared.shape[-2:]), seed)

# --- Condition
@pytest.mark.parametrize('seed', range(5))
def test_pack_and_back(seed):
    batch = make_batch(3, 8+seed, 9, seed)
    cond = pack_cond(batch)
    assert cond.shape==(3, 7, 8+seed, 9) and cond.dtype==torch.float32 and 0<=cond.min() and cond.max()<=1
    back = unpack_cond(cond)
    assert torch.equal(back['object_image'], batch['object_image']) and torch.equal(back['mask'], batch['mask'])
    for k in ('theta', 'phi', 'size'): assert (back[k]-batch[k]).abs().max()<1e-4
    items = torch.stack([pack_cond({k: v[i] for k,v in batch.items()}) for i in range(3)])
    assert torch.equal(items, cond)

def test_pack_takes_numbers_and_ends_of_ranges():
    batch = {k: v[0] for k,v in make_batch(1).items()} | dict(theta=45, phi=360., size=8)
    assert all(torch.equal(v, torch.tensor([float(batch[k])])) for k,v in unpack_cond(pack_cond(batch)[None]).items() if k in ('theta', 'phi', 'size'))

@pytest.mark.parametrize('change, words', [
    (dict(theta=torch.tensor([30., 60.])), 'theta is within 0…45'),
    (dict(size=torch.tensor([0., 4.])), 'size is within 2…8'),
    (dict(phi=torch.tensor([-1., 4.])), 'phi is within 0…360'),
    (dict(theta=torch.tensor([30., math.nan])), 'theta is within'),
    (dict(theta=torch.tensor([30.])), 'one number a picture'),
    (dict(mask=torch.zeros(2, 1, 32, 31)), 'does not fit'),
    (dict(mask=torch.full((2, 1, 32, 32), 255.)), 'mask is within'),
    (dict(object_image=torch.full((2, 3, 32, 32), -.5)), 'object_image is within'),
    (dict(object_image=torch.zeros(2, 4, 32, 32)), 'object_image is (b, 3, h, w)')])
def test_pack_refuses(change, words):
    with pytest.raises(ValueError) as e: pack_cond(make_batch() | change)
    assert words in str(e.value)

# --- Codecs
@pytest.mark.parametrize('codec', [Codec(), SpaceToDepth(2), SpaceToDepth(8)])
@pytest.mark.parametrize('h, w', [(16, 16), (17, 9)])
def test_exact_round_trip(codec, h, w):
    shadow = make_batch(2, h, w)['shadow_map']
    z = codec.encode(shadow)
    assert z.shape==(2, codec.channels, -(-h//codec.factor), -(-w//codec.factor))
    assert (codec.decode(z, (h, w))-shadow).abs().max()<1e-6
    assert round_trip(codec, torch.zeros(1, 1, h, w))==dict(iou=1., rmse=0.)

def test_vae_codec():
    vae = small_vae(seed=1)
    vae.register_to_config(scaling_factor=.5)
    codec,shadow = VAECodec(vae),make_batch()['shadow_map']
    d = vae.encode(2*shadow.expand(-1, 3, -1, -1)-1).latent_dist
    assert torch.equal(codec.encode(shadow), .5*d.mean) # mode, not sample, times the configured factor
    with torch.autocast('cpu', torch.bfloat16): assert torch.equal(codec.encode(shadow), .5*d.mean) # float32 also there
    assert torch.equal(codec.decode(.5*d.mean), ((vae.decode(d.mean).sample[:,:1]+1)/2).clamp(0, 1))
    assert not codec.train().vae.training and not params(codec)

def test_thin_legs_survive_on_the_latent_grid():
    codec,mask = VAECodec(small_vae(seed=1)),torch.zeros(1, 1, 32, 32)
    mask[...,5] = 1
    seen = (codec.condition(torch.ones(1, 3, 32, 32), mask)[:,0]+1)/2
    assert seen.sum()*codec.factor**2==mask.sum() and seen[...,1].min()==1/codec.factor

def test_fit_vae_learns_and_scales():
    pictures = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)), size=16, mode='bilinear')
    error = lambda vae: (vae.decode(vae.encode(2*pictures-1).latent_dist.mode()).sample-(2*pictures-1)).square().mean()
    vae = small_vae((8, 16), seed=0)
    with torch.no_grad(): before = error(vae)
    fit_vae(vae, pictures, steps=25, bs=8)
    with torch.no_grad():
        assert error(vae)<.7*before
        assert abs(VAECodec(vae).latent(pictures).std()-1)<.02

# --- Networks
CASES = [(n, l) for n in ('tiny', 'depth', 'latent') for l in ('direction', 'sinusoidal', 'blob')] + [('small', 'direction')]

@pytest.mark.parametrize('name, light', CASES)
def test_networks_learn_and_take_any_size(name, light):
    net = shadow_net(name, seed=0, light=light).train()
    for h,w in ((32, 32), (21, 38)):
        prepared = net.prepare(pack_cond(make_batch(2, h, w)))
        x = noise_for(net, prepared)
        v = net(x, torch.tensor([1000., 300.]), prepared)
        assert v.shape==x.shape
    v.square().mean().backward()
    for n,p in net.named_parameters():
        if p.requires_grad: assert p.grad is not None and p.grad.isfinite().all(), n
    if light!='blob': assert net.project[0].weight.grad.abs().max()>0 if hasattr(net, 'project') else net.unet.class_embedding.linear_1.weight.grad.abs().max()>0
    one = net.eval()(x[:1], torch.tensor([1000.]), prepared[:1])
    assert (one-net(x, torch.tensor([1000., 300.]), prepared)[:1]).abs().max()<1e-4 # items of a batch do not see each other

@pytest.mark.parametrize('light', ['direction', 'sinusoidal', 'blob'])
def test_light_reaches_the_answer(light):
    net,batch = shadow_net('tiny', seed=0, light=light).eval(),make_batch(1)
    def answer(**kw):
        c = net.prepare(pack_cond(batch | {k: torch.tensor([float(v)]) for k,v in kw.items()}))
        with torch.no_grad(): return net(noise_for(net, c), torch.tensor([1000.]), c)
    a = answer(theta=30, phi=0, size=4)
    for other in (dict(theta=30, phi=90, size=4), dict(theta=10, phi=0, size=4), dict(theta=30, phi=0, size=8)): assert (answer(**other)-a).abs().max()>1e-5
    if light!='sinusoidal': assert (answer(theta=30, phi=360, size=4)-a).abs().max()<1e-4

def test_one_step_is_x_minus_v_and_more_steps_are_euler():
    net,batch = shadow_net('tiny', seed=0).eval(),make_batch()
    c = net.prepare(pack_cond(batch))
    x = noise_for(net, c)
    d = Denoiser(net, Flow(), 'velocity')
    with torch.no_grad():
        assert torch.equal(one_step(d, x, [1.], c), x-net(x, torch.full((2,), 1000.), c))
        half = x-.5*net(x, torch.full((2,), 1000.), c)
        by_hand = half-.5*net(half, torch.full((2,), 500.), c)
    assert (euler(d, x, [1., .5], c)-by_hand).abs().max()<1e-5

def test_recipe_part():
    part = OmegaConf.create(dict(net='tiny', light='blob', widths=[16, 24], start=None))
    net = shadow_net(part)
    assert net.settings==dict(net='tiny', light='blob', widths=(16, 24)) and net.unet.conv_in.in_channels==6 and net.multiple==2
    with pytest.raises(ValueError, match='There is no shadow network'): shadow_net('tinny')
    with pytest.raises(ValueError, match="mode is 'direction'"): shadow_net('tiny', light='lamp')

def test_small_fits_its_budget(tmp_path):
    file = save_net(shadow_net('small', seed=0), tmp_path/'w.safetensors')
    assert file.stat().st_size<=8e6

# --- Files
@pytest.mark.parametrize('name', ['tiny', 'depth', 'latent'])
def test_save_and_load(tmp_path, name):
    net = shadow_net(name, seed=0).eval()
    file = save_net(net, tmp_path/'w.safetensors', half=False, steps=3)
    again = load_net(file, light=net.light_mode)
    assert net_facts(file)[1]==dict(steps=3) and not again.training
    c = net.prepare(pack_cond(make_batch()))
    with torch.no_grad(): assert torch.equal(net(noise_for(net, c), torch.full((2,), 900.), c), again(noise_for(net, c), torch.full((2,), 900.), c))

def test_bad_weights(tmp_path):
    net = shadow_net('tiny', seed=0)
    file = save_net(net, tmp_path/'w.safetensors')
    good = file.read_bytes()
    with pytest.raises(DataError, match='made for the light encoding'): load_net(file, light='sinusoidal')
    with pytest.raises(DataError, match='no such file'): load_net(tmp_path/'none.safetensors')
    (tmp_path/'cut.safetensors').write_bytes(good[:len(good)//2])
    with pytest.raises(DataError, match='not a file of shadow weights'): load_net(tmp_path/'cut.safetensors')
    from safetensors.torch import load, save
    tensors = load(good)
    (tmp_path/'bare.safetensors').write_bytes(save(tensors))
    with pytest.raises(DataError, match='not a file of shadow weights'): load_net(tmp_path/'bare.safetensors')
    for settings in (dict(net='tiny', light='sinusoidal'), dict(net='small', light='direction'), dict(net='tiny', light='direction', wings=2), dict(net='other', light='direction')):
        (tmp_path/'odd.safetensors').write_bytes(save(tensors, dict(settings=json.dumps(settings), facts='{}')))
        with pytest.raises(DataError, match='does not fit its own settings|cannot be used'): load_net(tmp_path/'odd.safetensors')
    with torch.no_grad(): next(net.parameters()).view(-1)[0] = 1e6
    with pytest.raises(DataError, match='not finite in float16'): save_net(net, file)
    assert file.read_bytes()==good

# --- SDXL
def narrow(seed=0, light='sinusoidal', amp=None):
    net = shadow_net('sdxl', seed=seed, light=light, amp='float32', **NARROW)
    with torch.no_grad():
        for p in params(net): p.add_(.02*torch.randn(p.shape, generator=torch.Generator().manual_seed(seed+1)))
    net.amp = amp
    return net

def narrow_parts(seed=0):
    from diffusers import AutoencoderKL, UNet2DConditionModel
    torch.manual_seed(seed)
    unet,vae = UNet2DConditionModel(**NARROW['unet']),AutoencoderKL(**NARROW['vae'])
    with torch.no_grad():
        for p in unet.parameters(): p.add_(.02*torch.randn_like(p))
    return unet.eval(),vae.eval()

def test_full_size_on_meta():
    from diffusers import UNet2DConditionModel
    with torch.device('meta'): unet,net = UNet2DConditionModel(**SDXL_UNET),shadow_net('sdxl', amp='float32') # meta has no autocast
    assert sum(p.numel() for p in unet.parameters())==2_567_463_684
    assert sum(p.numel() for p in net.codec.parameters())==83_653_863
    gone = sum(p.numel() for n,p in unet.named_parameters() if '.attn2.' in n or ('.norm2.' in n and 'transformer_blocks' in n))
    assert gone==545_836_800 and drop_cross_attention(unet)==gone
    assert sum(p.numel() for p in params(net))==2_567_463_684-gone+5*9*320+(768-2816)*1280
    assert net.unet.conv_in.weight.shape==(320, 9, 3, 3) and net.codec.scale==.13025==SDXL_VAE['scaling_factor'] and net.codec.factor==8
    x = torch.empty(1, 4, 64, 64, device='meta')
    assert net(x, torch.empty(1, device='meta'), torch.empty(1, 8, 64, 64, device='meta')).shape==x.shape

@pytest.mark.parametrize('seed', range(3))
def test_wide_conv_changes_nothing(seed):
    unet,_ = narrow_parts(seed)
    g = torch.Generator().manual_seed(seed)
    z,text,more = (torch.randn(*s, generator=g) for s in ((1, 4, 8, 8), (1, 3, 24), (1, 5, 8, 8)))
    kw = dict(added_cond_kwargs=dict(text_embeds=torch.randn(1, 20, generator=g), time_ids=torch.rand(1, 6, generator=g)*1024))
    with torch.no_grad():
        before = unet(z, 700., text, **kw).sample
        assert (widen_conv_in(unet, 5)(torch.cat([z, more], 1), 700., text, **kw).sample-before).abs().max()<1e-5*before.abs().max().clamp(min=1)

def test_block_without_text_by_hand():
    from diffusers.models.attention import BasicTransformerBlock
    unet,_ = narrow_parts()
    drop_cross_attention(unet)
    block = next(m for m in unet.modules() if isinstance(m, BasicTransformerBlock))
    h = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        n,a = F.layer_norm(h, (64,), block.norm1.weight, block.norm1.bias),block.attn1
        q,k,v = (f(n).unflatten(-1, (4, 16)).transpose(1, 2) for f in (a.to_q, a.to_k, a.to_v))
        s = h + a.to_out[0](((q@k.mT/4).softmax(-1)@v).transpose(1, 2).flatten(2))
        x,gate = block.ff.net[0].proj(F.layer_norm(s, (64,), block.norm3.weight, block.norm3.bias)).chunk(2, -1)
        by_hand = s + block.ff.net[2](x*F.gelu(gate))
        assert (block(h)-by_hand).abs().max()<1e-5

def test_light_starts_silent_and_then_counts():
    unet,_ = narrow_parts()
    old = [p.clone() for p in unet.add_embedding.parameters()]
    freq = 10000.**(-torch.arange(4)/4)
    waves = torch.cat([torch.cat([(v*freq).cos(), (v*freq).sin()]) for v in (1024., 1024, 0, 0, 1024, 1024)])
    with torch.no_grad():
        blank = F.linear(F.silu(F.linear(torch.cat([torch.zeros(20), waves]), *old[:2])), *old[2:])
        light_embedding(unet, 768)
        assert (unet.get_aug_embed(blank, None, dict(image_embeds=torch.randn(3, 768)))-blank).abs().max()<1e-4
    net = SDXLShadow(*narrow_parts(), amp=None)
    c = net.prepare(pack_cond(make_batch(2, 64, 64)))
    x = noise_for(net, c)
    net(x, torch.full((2,), 1000.), c).square().mean().backward()
    torch.optim.SGD(params(net), .1).step()
    turned = net.prepare(pack_cond(make_batch(2, 64, 64) | dict(phi=torch.tensor([10., 200.]))))
    with torch.no_grad(): assert (net(x, torch.full((2,), 1000.), c)-net(x, torch.full((2,), 1000.), turned)).abs().max()>1e-6

def gradients(net, x, c):
    net.zero_grad()
    net(x, torch.tensor([1000., 200.]), c).square().mean().backward()
    for n,p in net.named_parameters():
        if p.requires_grad: assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max()>0 and p.grad.dtype==torch.float32, n
        else: assert p.grad is None and n.startswith('codec.'), n
    return torch.cat([p.grad.flatten() for p in params(net)])

@pytest.mark.parametrize('light', ['sinusoidal', 'direction', 'blob'])
def test_every_weight_learns(light):
    net = narrow(light=light).train()
    c = net.prepare(pack_cond(make_batch(2, 64, 40)))
    x = noise_for(net, c)
    assert net.unet.conv_in.in_channels==(10 if light=='blob' else 9)
    exact = gradients(net, x, c)
    assert torch.allclose(gradients(net.checkpointing(), x, c), exact, atol=1e-7, rtol=1e-5)
    net.amp = torch.bfloat16
    rough = gradients(net, x, c)
    assert torch.cosine_similarity(exact, rough, 0)>.98
    assert torch.allclose(gradients(net.checkpointing(False), x, c), rough, atol=1e-6, rtol=1e-4)

def test_from_pretrained(tmp_path):
    for part,model in zip(('unet', 'vae'), narrow_parts()): model.save_pretrained(tmp_path/part)
    net,ours = SDXLShadow.from_pretrained(tmp_path, amp=None).eval(),SDXLShadow(*narrow_parts(), amp=None).eval()
    for (k,a),b in zip(net.state_dict().items(), ours.state_dict().values(), strict=True): assert torch.equal(a, b), k
    assert shadow_net(dict(net='sdxl', start=str(tmp_path))).settings==ours.settings
    c = net.prepare(pack_cond(make_batch(1, 64, 64)))
    x = noise_for(net, c)
    with torch.no_grad(): assert torch.equal(one_step(Denoiser(net, Flow(), 'velocity'), x, [1.], c), x-net(x, torch.tensor([1000.]), c))

def test_half_precision_files_load_as_float32(tmp_path):
    for part,model in zip(('unet', 'vae'), narrow_parts()): model.half().save_pretrained(tmp_path/part, variant='fp16')
    net = SDXLShadow.from_pretrained(tmp_path, variant='fp16')
    assert {p.dtype for p in net.parameters()}=={torch.float32}

def test_bad_sources(tmp_path):
    with pytest.raises(DataError, match='cannot be loaded'): load_sdxl('nobody/nothing', local_files_only=True)
    with pytest.raises(DataError, match='has no config.json'): load_sdxl(tmp_path)
    unet,vae = narrow_parts()
    vae.save_pretrained(tmp_path/'vae')
    unet.save_pretrained(tmp_path/'unet')
    weights = tmp_path/'unet'/'diffusion_pytorch_model.safetensors'
    good = weights.read_bytes()
    weights.write_bytes(good[:len(good)//2])
    with pytest.raises(DataError, match='cannot be loaded'): load_sdxl(tmp_path)
    weights.rename(weights.with_suffix('.bin')) # a pickle, perhaps: never opened
    with pytest.raises(DataError, match='no weights in safetensors'): load_sdxl(tmp_path)
    widen_conv_in(unet, 5).save_pretrained(tmp_path/'unet')
    with pytest.raises(DataError, match='is not a U-Net of SDXL'): load_sdxl(tmp_path)
    with pytest.raises(ValueError, match='amp is one of'): shadow_net('sdxl', amp='fp16', **NARROW)

def test_light_of_survives_stretching():
    batch = make_batch(64, 2, 2)
    for got,k in zip(light_of(2*pack_cond(batch)-1), ('theta', 'phi', 'size')): assert (got-batch[k]).abs().max()<1e-4
