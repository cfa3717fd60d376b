"""The paper's networks by name: their sizes, counted a second time by hand from the released code's layout."""

import pytest
import torch

from ldm_mini.attention import AttentionBlock, SpatialTransformer
from ldm_mini.blocks import ResBlock
from ldm_mini.released.compvis import unet_config_from_compvis
from ldm_mini.released.presets import (
    FIRST_STAGE_OF,
    FIRST_STAGES,
    LATENT_SIZE,
    UNETS,
    autoencoder_preset,
    find_preset,
    unet_preset,
)


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


# ------------------------------------------------------------- the same sizes by arithmetic alone, from the YAML files


def conv(a, b, k=3):
    return a * b * k * k + b


def norm(c):
    return 2 * c


def res(a, b, time=0, scale_shift=False):
    """Two norms, two convolutions, the time projection, and a 1x1 convolution where the width changes."""
    by_time = conv(time, 2 * b if scale_shift else b, 1) if time else 0
    return norm(a) + conv(a, b) + by_time + norm(b) + conv(b, b) + (conv(a, b, 1) if a != b else 0)


def attention(c):
    return norm(c) + 4 * conv(c, c, 1)                                          # q, k, v and out, all with biases


def transformer(c, context, depth):
    """norm, in, out; per block: three norms, self- and cross-attention without biases but on out, and GEGLU."""
    cross = 2 * c * c + 2 * context * c + c
    block = 3 * norm(c) + 4 * c * c + c + cross + conv(c, 8 * c, 1) + conv(4 * c, c, 1)
    return norm(c) + 2 * conv(c, c, 1) + depth * block


def unet_size(ch, mults, factors, i, o, context=None, depth=1, scale_shift=False, updown=False):
    """A U-Net as its YAML describes it: `factors` are attention_resolutions, i and o input and output channels."""
    time, blocks = 4 * ch, 2

    def attend(c, factor):
        if factor not in factors:
            return 0
        return attention(c) if context is None else transformer(c, context, depth)

    total = conv(ch, time, 1) + conv(time, time, 1) + conv(i, ch)
    stack, width = [ch], ch
    for level, mult in enumerate(mults):
        for _ in range(blocks):
            total += res(width, ch * mult, time, scale_shift) + attend(ch * mult, 2**level)
            width = ch * mult
            stack.append(width)
        if level < len(mults) - 1:
            total += res(width, width, time, scale_shift) if updown else conv(width, width)
            stack.append(width)
    total += 2 * res(width, width, time, scale_shift) + (attention(width) if context is None else
                                                         transformer(width, context, depth))
    for level in reversed(range(len(mults))):
        for block in range(blocks + 1):
            total += res(width + stack.pop(), ch * mults[level], time, scale_shift)
            width = ch * mults[level]
            total += attend(width, 2**level)
            if level and block == blocks:
                total += res(width, width, time, scale_shift) if updown else conv(width, width)
    assert not stack
    return total + norm(width) + conv(width, o)


def first_stage_size(mults, resolutions, z, codes=None, attended=True):
    """A first stage of width 128 on images of 256: `resolutions` are true sizes, z latent channels, codes None: KL."""
    ch, blocks, z_out = 128, 2, z if codes else 2 * z
    widths = [ch * m for m in mults]
    middle = 2 * res(widths[-1], widths[-1]) + (attention(widths[-1]) if attended else 0)
    total, width = conv(3, ch) + 2 * middle, ch
    for level, w in enumerate(widths):
        here = 256 // 2**level in resolutions
        for _ in range(blocks):
            total += res(width, w) + (attention(w) if here else 0)
            width = w
        total += conv(w, w) if level < len(mults) - 1 else 0
    total += norm(width) + conv(width, z_out) + conv(z_out, z_out, 1) + conv(z, z, 1) + conv(z, width)
    for level, w in reversed(list(enumerate(widths))):
        here = 256 // 2**level in resolutions
        for _ in range(blocks + 1):
            total += res(width, w) + (attention(w) if here else 0)
            width = w
        total += conv(w, w) if level else 0
    return total + norm(width) + conv(width, 3) + (codes * z if codes else 0)


# ----------------------------------------------------------------- what the YAML files say, and what was ever published

WIDE, EIGHT = dict(num_head_channels=32), dict(num_heads=8)
CELEBA = dict(ch=224, mults=(1, 2, 3, 4), factors=(8, 4, 2), i=3, o=3), WIDE
SEMANTIC = dict(ch=128, mults=(1, 4, 8), factors=(32, 16, 8), i=6, o=3), EIGHT
YAML_UNETS = {                                  # sizes, heads
    "celeba256": CELEBA, "ffhq256": CELEBA, "lsun_beds256": CELEBA,
    "lsun_churches256": (dict(ch=192, mults=(1, 2, 2, 4, 4), factors=(1, 2, 4, 8), i=4, o=4, scale_shift=True,
                              updown=True), EIGHT),
    "cin256": (dict(ch=256, mults=(1, 2, 4), factors=(4, 2, 1), i=4, o=4, context=512), WIDE),
    "cin256-v2": (dict(ch=192, mults=(1, 2, 3, 5), factors=(8, 4, 2), i=3, o=3, context=512), dict(num_heads=1)),
    "txt2img-1p4B": (dict(ch=320, mults=(1, 2, 4, 4), factors=(4, 2, 1), i=4, o=4, context=1280), EIGHT),
    "text2img256": (dict(ch=192, mults=(1, 2, 3, 5), factors=(8, 4, 2), i=3, o=3, context=640), WIDE),
    "layout2img-openimages256": (dict(ch=128, mults=(1, 2, 3, 4), factors=(8, 4, 2), i=3, o=3, context=512, depth=3),
                                 WIDE),
    "semantic_synthesis256": SEMANTIC, "semantic_synthesis512": SEMANTIC,
    "inpainting_big": (dict(ch=256, mults=(1, 2, 3, 4), factors=(8, 4, 2), i=7, o=3, updown=True), EIGHT),
    "bsr_sr": (dict(ch=160, mults=(1, 2, 2, 4), factors=(16, 8), i=6, o=3), WIDE),
    "rdm768": (dict(ch=448, mults=(1, 2, 3, 4), factors=(4, 2, 1), i=16, o=16, context=768), WIDE),
    "sd-v1": (dict(ch=320, mults=(1, 2, 4, 4), factors=(4, 2, 1), i=4, o=4, context=768), EIGHT),
}
YAML_FIRST_STAGES = {
    "vq-f4": dict(mults=(1, 2, 4), resolutions=(), z=3, codes=8192),
    "vq-f4-noattn": dict(mults=(1, 2, 4), resolutions=(), z=3, codes=8192, attended=False),
    "vq-f8": dict(mults=(1, 2, 2, 4), resolutions=(32,), z=4, codes=16384),
    "vq-f8-n256": dict(mults=(1, 2, 2, 4), resolutions=(32,), z=4, codes=256),
    "vq-f16": dict(mults=(1, 1, 2, 2, 4), resolutions=(16,), z=8, codes=16384),
    "kl-f4": dict(mults=(1, 2, 4), resolutions=(), z=3), "kl-f8": dict(mults=(1, 2, 4, 4), resolutions=(), z=4),
    "kl-f16": dict(mults=(1, 1, 2, 2, 4), resolutions=(16,), z=16),
    "kl-f32": dict(mults=(1, 1, 2, 2, 4, 4), resolutions=(16, 8), z=64),
}
# printed by the released code, in millions with two decimals, or known to the last parameter
PUBLISHED = {"celeba256": 274_056_163, "sd-v1": 859_520_964, "cin256-v2": 400.92, "txt2img-1p4B": 872.30}


@pytest.mark.parametrize("name", UNETS)
def test_unets_have_the_published_size(name):
    with torch.device("meta"):
        net = unet_preset(name)
    assert size(net) == unet_size(**YAML_UNETS[name][0])
    published = PUBLISHED.get(name, size(net))
    assert size(net) == published if isinstance(published, int) else round(size(net) / 1e6, 2) == published


@pytest.mark.parametrize("name", UNETS)
def test_the_yaml_files_give_the_presets(name):
    short, heads = YAML_UNETS[name]
    names = dict(ch="model_channels", mults="channel_mult", factors="attention_resolutions", i="in_channels",
                 o="out_channels", context="context_dim", depth="transformer_depth", updown="resblock_updown",
                 scale_shift="use_scale_shift_norm")
    params = {names[key]: list(value) if isinstance(value, tuple) else value for key, value in short.items()}
    with_text = {"use_spatial_transformer": True, "legacy": False} if "context" in short else {}
    assert unet_config_from_compvis({**params, **heads, **with_text, "num_res_blocks": 2, "image_size": 64,
                                     "use_checkpoint": True}) == UNETS[name]


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stages_have_the_published_size_and_latent(name):
    with torch.device("meta"):
        stage = autoencoder_preset(name).eval()
        z = stage.encode(torch.zeros(1, 3, 256, 256))
    f, c, mults, *_ = FIRST_STAGES[name]
    assert f == 2 ** (len(mults) - 1) and z.shape == (1, c, 256 // f, 256 // f)
    assert size(stage) == first_stage_size(**YAML_FIRST_STAGES[name])
    assert size(stage) == {"kl-f8": 83_653_863, "vq-f4": 55_322_782}.get(name, size(stage))


# head layout of the attention at each width, (number, width of a head): paper_facts table 1.2
HEADS = {
    "celeba256": {448: (14, 32), 672: (21, 32), 896: (28, 32)},
    "lsun_churches256": {192: (8, 24), 384: (8, 48), 768: (8, 96)},
    "cin256": {256: (8, 32), 512: (16, 32), 1024: (32, 32)},
    "cin256-v2": {384: (1, 384), 576: (1, 576), 960: (1, 960)},
    "txt2img-1p4B": {320: (8, 40), 640: (8, 80), 1280: (8, 160)},
    "text2img256": {384: (12, 32), 576: (18, 32), 960: (30, 32)},
    "layout2img-openimages256": {256: (8, 32), 384: (12, 32), 512: (16, 32)},
    "semantic_synthesis256": {1024: (8, 128)},
    "inpainting_big": {512: (8, 64), 768: (8, 96), 1024: (8, 128)},
    "bsr_sr": {640: (20, 32)},
    "sd-v1": {320: (8, 40), 640: (8, 80), 1280: (8, 160)},
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_what_the_released_code_builds(name):
    found = {}
    with torch.device("meta"):
        for module in unet_preset(name).modules():
            if isinstance(module, (AttentionBlock, SpatialTransformer)):
                inner = module.attn if isinstance(module, AttentionBlock) else module.blocks[0].cross_attn
                width = module.norm.num_channels
                found.setdefault(width, set()).add((inner.num_heads, width // inner.num_heads))
                if isinstance(module, SpatialTransformer):
                    assert len(module.blocks) == (3 if name.startswith("layout") else 1)
    assert found == {width: {heads} for width, heads in HEADS[name].items()}


def test_the_blocks_that_only_some_models_have():
    with torch.device("meta"):
        for name in UNETS:
            blocks = [m for m in unet_preset(name).modules() if isinstance(m, ResBlock)]
            assert any(b.resample for b in blocks) == (name in ("lsun_churches256", "inpainting_big"))
            assert all(b.scale_shift == (name == "lsun_churches256") for b in blocks)


def test_every_net_fits_the_first_stage_it_was_trained_with():
    for name, config in UNETS.items():
        factor, channels, *_ = FIRST_STAGES[FIRST_STAGE_OF[name]]
        image = {"semantic_synthesis512": 512, "rdm768": 768, "sd-v1": 512}.get(name, 256)
        assert config.in_channels == channels and LATENT_SIZE[name] * factor == image
    with torch.device("meta"):
        assert size(autoencoder_preset("sd-v1")) == 83_653_863
        assert size(autoencoder_preset("inpainting_big")) == size(autoencoder_preset("vq-f4-noattn"))


def test_names_are_forgiving_and_errors_list_them():
    for name in ("sd-v1", "SD_V1", "sd1", "sd15", "sd-v1.5", "stable-diffusion-v1", "Stable_Diffusion-v1-4"):
        assert find_preset(name) == "sd-v1"
    assert find_preset("sd-v2") is None and find_preset("sdxl") is None
    assert find_preset("lsun-churches256") == "lsun_churches256" and find_preset("nobody") is None
    with pytest.raises(ValueError, match="'vq-f4'.*there are celeba256, ffhq256"):
        unet_preset("vq-f4")
    with pytest.raises(ValueError, match="'nobody'.*vq-f4, vq-f4-noattn"):
        autoencoder_preset("nobody")


def test_a_preset_is_a_working_net():
    """The smallest first stage for real, not on the meta device: 256 pixels would do as well, 32 are faster."""
    torch.manual_seed(0)
    stage = autoencoder_preset("vq-f4-noattn").eval()
    with torch.no_grad():
        z = stage.encode(torch.rand(1, 3, 32, 32) * 2 - 1)
        z_q, indices, _ = stage.quantize(z)
        assert stage.decode(z).shape == (1, 3, 32, 32) and indices.shape == (1, 8, 8)
        torch.testing.assert_close(stage.decode(z), stage.decode(z_q, quantize=False))
