"""From a recipe to a model with fresh weights, and from a trained model to a larger one."""

import torch

from ..autoencoder import Autoencoder
from ..concat_conditioners import InpaintConditioner, LowResConditioner, SemanticConditioner
from ..cond import Conditioner
from ..conditioners import ClassConditioner, CombinedConditioner, LayoutConditioner, TextConditioner
from ..kl import KLBottleneck
from ..latent_diffusion import LatentDiffusion
from ..quantizer import VectorQuantizer, VQBottleneck
from ..scenes.vocabulary import NOUNS, SEMANTIC
from ..schedule import BETAS, NoiseSchedule
from ..tasks import PARTS
from ..text import TextTransformer
from ..unet import UNet, UNetConfig
from .recipes import AutoencoderRecipe, DiffusionRecipe

LANGUAGE = "language"                           # in place of "text": a frozen language model, an extra (language.py)
# How often each is trained alone, relative to the others: words need the most practice, maps the least.
PRACTICE = {"text": 3, "layout": 2, "class": 1, "lowres": 1, "semantic": 1, "inpaint": 1}


def build_autoencoder(recipe: AutoencoderRecipe) -> Autoencoder:
    """The recipe's first stage, with fresh weights."""
    c = recipe.model.latent_channels
    if recipe.codebook_size is None:
        return Autoencoder(recipe.model, KLBottleneck(c, weight=recipe.kl_weight))
    quantizer = VectorQuantizer(recipe.codebook_size, c, restart_after=recipe.restart_after)
    return Autoencoder(recipe.model, VQBottleneck(quantizer))


def build_diffusion(recipe: DiffusionRecipe, autoencoder: Autoencoder, scale_factor: float = 1.0) -> LatentDiffusion:
    """The recipe's second stage on a trained first stage, with fresh weights."""
    r = recipe
    conditioner = build_parts(r.parts, autoencoder.config, r.text_width, r.text_layers, r.text_heads, r.max_length,
                              r.p_drop_each, r.p_single, r.alone)
    net = UNet(UNetConfig(in_channels=autoencoder.config.latent_channels, channels=r.channels,
                          channel_mults=r.channel_mults, num_res_blocks=r.num_res_blocks, attn_levels=r.attn_levels,
                          head_dim=r.head_dim, groups=r.groups, **net_inputs(conditioner, r.text_width)))
    return LatentDiffusion(autoencoder, net, NoiseSchedule(BETAS[r.schedule]()), conditioner, prediction=r.prediction,
                           p_uncond=r.p_uncond, scale_factor=scale_factor, image_size=r.scenes.size)


@torch.no_grad()
def start_from(source, target) -> None:
    """Give a fresh LatentDiffusion `target` the weights of the trained `source`, as far as they have the same parts.

    Parts of the conditioner that are new stay fresh; channels that are new to the network's first convolution start at
    0, and tokens that are absent are masked. So at the start `target` does with the old conditions what `source` does.
    Raises ValueError if the networks differ in more than the number of joined channels, or if their latents come from
    different first stages.
    """
    if not _alike(source.autoencoder, target.autoencoder):
        raise ValueError("--start-from: that model has another first stage: give its own with --autoencoder.")
    stem, channels = "down.0.0.weight", target.net.config.in_channels
    weights, new = source.net.state_dict(), target.net.state_dict()[stem]
    old = weights.get(stem, new)
    try:
        # what is joined to the latent and new has no say at first
        if old.shape[1] == channels < new.shape[1]:
            weights[stem] = torch.cat([old, torch.zeros_like(new[:, channels:])], dim=1)
        elif old.shape[1] != new.shape[1]:
            raise ValueError(f"--start-from: that model joins {old.shape[1] - channels} channels of conditions, the "
                             f"recipe {new.shape[1] - channels}: start from one with the same, or without any.")
        target.net.load_state_dict(weights)
        # parts of a kind that is not there yet stay fresh
        theirs = {type(part): part for part in _parts(source.conditioner)}
        for part in _parts(target.conditioner):
            if type(part) in theirs:
                part.load_state_dict(theirs[type(part)].state_dict())
    except RuntimeError as error:
        raise ValueError(f"--start-from: that model has another shape than the recipe's. {error}") from None


def _alike(a, b) -> bool:
    """Whether two first stages, or none, have the same weights, as far as half precision can tell."""
    if a is None or b is None:
        return a is b
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(
        x.shape == b[name].shape and torch.allclose(x.float(), b[name].to(x.device).float(), rtol=2e-3, atol=1e-4)
        for name, x in a.items())


def _parts(conditioner) -> list:
    return [] if conditioner is None else list(conditioner.parts)


def build_parts(names, first_stage, width: int, text_layers: int = 3, text_heads: int = 4, max_length: int = 24,
                p_drop_each: float = 0.0, p_single: float = 0.0, alone: str | None = None) -> Conditioner | None:
    """A fresh conditioner of some PARTS; None for none. first_stage: config of the autoencoder (its factor, channels).

    Alone, a part by concatenation is always there; among several, each can be absent, and says so.
    "language" in place of "text": the captions go through a frozen language model, which must be installed.
    alone: the one of several parts that training shows, in place of PRACTICE; all the others are kept dropped.
    """
    if alone is not None and (alone not in names or len(names) < 2):
        raise ValueError(f"build_parts: alone={alone!r} must be one of several parts, and these are {tuple(names)}.")
    if unknown := [name for name in names if name not in (*PARTS, LANGUAGE)]:
        raise ValueError(f"build_parts: there are no parts {unknown}; there are {', '.join((*PARTS, LANGUAGE))}.")
    if "text" in names and LANGUAGE in names:
        raise ValueError('build_parts: "language" is another reader of captions: take it in place of "text".')
    names = tuple("text" if name == LANGUAGE else name for name in names) if (frozen := LANGUAGE in names) else names
    factor, channels, several = first_stage.downsample_factor, first_stage.latent_channels, len(names) > 1
    build = {
        "text": lambda: (_language(width, text_layers, text_heads, max_length) if frozen else
                         TextConditioner(TextTransformer(width, text_layers, text_heads, max_length))),
        "class": lambda: ClassConditioner(len(NOUNS), width, width),
        "layout": lambda: LayoutConditioner(len(NOUNS), width, heads=text_heads),
        "lowres": lambda: LowResConditioner(factor, several),
        "semantic": lambda: SemanticConditioner(len(SEMANTIC), factor, several),
        "inpaint": lambda: InpaintConditioner(channels, factor, several)}
    parts = [build[name]() for name in PARTS if name in names]
    if not several:
        return parts[0] if parts else None
    practice = [PRACTICE[name] if alone is None else float(name == alone) for name in PARTS if name in names]
    return CombinedConditioner(parts, p_drop_each, p_single if alone is None else 1.0, practice)


def _language(width: int, layers: int, heads: int, max_length: int) -> Conditioner:
    from ..released.language import LanguageConditioner  # an extra, hence only here

    return LanguageConditioner(width, layers, heads, max_length)


def net_inputs(conditioner, width: int) -> dict:
    """The widths of a UNetConfig for a conditioner of `build_parts`: context_dim, vector_dim, concat_channels."""
    parts = _parts(conditioner)
    joined = sum(getattr(part, "concat_channels", 0) for part in parts)
    tokens = any(not hasattr(part, "concat_channels") for part in parts)
    return {"context_dim": width if tokens else None, "vector_dim": width if tokens else None,
            "concat_channels": joined}


def cached_inputs(names, autoencoder):
    """What to keep beside cached latents for some PARTS: (keys of a batch, function of a batch that makes more)."""
    keys = {"text": ("caption",), LANGUAGE: ("caption",), "class": ("class",), "layout": ("labels", "boxes"),
            "lowres": ("lowres",), "semantic": ("semantic",), "inpaint": ()}
    kept = tuple(key for name in (LANGUAGE, *PARTS) if name in names for key in keys[name])
    if "inpaint" not in names:
        return kept, None
    part = InpaintConditioner(autoencoder.config.latent_channels, autoencoder.config.downsample_factor)
    part.use_first_stage(autoencoder)
    return kept, part.prepare
