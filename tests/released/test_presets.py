"""The paper's networks by name: what their YAML files ask for, and the weights that compvis_reference then needs."""

import compvis_reference as reference
import pytest
import torch

from ldm_mini.released.compvis import autoencoder_from_compvis, unet_config_from_compvis, unet_from_compvis
from ldm_mini.released.presets import FIRST_STAGE_OF, FIRST_STAGES, LATENT_SIZE, UNETS, autoencoder_preset, unet_preset


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


class Shapes(reference.Weights):
    """The weights that a computation asks for, without their values."""

    def ask(self, name, *shape, mean=0.0):
        return self.setdefault(name, torch.empty(shape, device="meta"))


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
YAML_FIRST_STAGES = {                           # multipliers, sizes with attention, latent channels, codes, attention
    "vq-f4": ((1, 2, 4), (), 3, 8192, True), "vq-f4-noattn": ((1, 2, 4), (), 3, 8192, False),
    "vq-f8": ((1, 2, 2, 4), (32,), 4, 16384, True), "vq-f8-n256": ((1, 2, 2, 4), (32,), 4, 256, True),
    "vq-f16": ((1, 1, 2, 2, 4), (16,), 8, 16384, True), "kl-f4": ((1, 2, 4), (), 3, None, True),
    "kl-f8": ((1, 2, 4, 4), (), 4, None, True), "kl-f16": ((1, 1, 2, 2, 4), (16,), 16, None, True),
    "kl-f32": ((1, 1, 2, 2, 4, 4), (16, 8), 64, None, True),
}
# printed by the released code, in millions with two decimals, or known to the last parameter
PUBLISHED = {"celeba256": 274_056_163, "sd-v1": 859_520_964, "cin256-v2": 400.92, "txt2img-1p4B": 872.30}


@pytest.mark.parametrize("name", UNETS)
def test_unets_are_those_of_the_yaml_files_and_have_the_published_size(name):
    short, heads = YAML_UNETS[name]
    names = dict(ch="model_channels", mults="channel_mult", factors="attention_resolutions", i="in_channels",
                 o="out_channels", context="context_dim", depth="transformer_depth", updown="resblock_updown",
                 scale_shift="use_scale_shift_norm")
    params = {names[key]: list(value) if isinstance(value, tuple) else value for key, value in short.items()}
    with_text = {"use_spatial_transformer": True, "legacy": False} if "context" in short else {}
    params |= {**heads, **with_text, "num_res_blocks": 2, "image_size": 64, "use_checkpoint": True}
    assert unet_config_from_compvis(params) == UNETS[name]
    weights = Shapes()
    with torch.device("meta"):
        net, context = unet_preset(name), torch.zeros(1, 1, short.get("context", 1))
        reference.unet(weights, params, torch.zeros(1, short["i"], 16, 16), torch.zeros(1), context)
    unet_from_compvis(params, weights)                          # every name and shape fits
    assert size(net) == sum(v.numel() for v in weights.values())
    published = PUBLISHED.get(name, size(net))
    assert size(net) == published if isinstance(published, int) else round(size(net) / 1e6, 2) == published


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_first_stages_are_those_of_the_yaml_files_and_have_the_published_size(name):
    mults, resolutions, z, codes, attended = YAML_FIRST_STAGES[name]
    params = dict(embed_dim=z, ddconfig=dict(
        double_z=codes is None, z_channels=z, resolution=256, in_channels=3, out_ch=3, ch=128, ch_mult=mults,
        num_res_blocks=2, attn_resolutions=resolutions, attn_type="vanilla" if attended else "none"))
    params |= {} if codes is None else {"n_embed": codes}
    weights, f = Shapes(), 2 ** (len(mults) - 1)
    with torch.device("meta"):
        stage, x = autoencoder_preset(name).eval(), torch.zeros(1, 3, 256, 256)
        assert stage.encode(x).shape == (1, z, 256 // f, 256 // f)
        reference.encode(weights, params, x)
        reference.decode(weights, params, torch.zeros(1, z, 8, 8))
        weights |= {} if codes is None else {"quantize.embedding.weight": torch.empty(codes, z)}
    assert autoencoder_from_compvis(params, weights).config == stage.config
    assert size(stage) == sum(v.numel() for v in weights.values())
    assert size(stage) == {"kl-f8": 83_653_863, "vq-f4": 55_322_782}.get(name, size(stage))


def test_every_net_fits_the_first_stage_it_was_trained_with():
    for name, config in UNETS.items():
        factor, channels, *_ = FIRST_STAGES[FIRST_STAGE_OF[name]]
        image = {"semantic_synthesis512": 512, "rdm768": 768, "sd-v1": 512}.get(name, 256)
        assert config.in_channels == channels and LATENT_SIZE[name] * factor == image
    with torch.device("meta"):
        assert size(autoencoder_preset("sd-v1")) == 83_653_863
        assert size(autoencoder_preset("inpainting_big")) == size(autoencoder_preset("vq-f4-noattn"))


def test_errors_list_the_names():
    with pytest.raises(ValueError, match="'vq-f4'.*there are celeba256, ffhq256"):
        unet_preset("vq-f4")
    with pytest.raises(ValueError, match="'nobody'.*vq-f4, vq-f4-noattn"):
        autoencoder_preset("nobody")
