"""From a recipe to a model with fresh weights, and from a trained model to a larger one."""

from itertools import islice

import torch

from ..autoencoder import Autoencoder
from ..blocks import ResBlock, zeroed
from ..concat_conditioners import InpaintConditioner, LowResConditioner, SemanticConditioner
from ..cond import Conditioner
from ..conditioners import ClassConditioner, CombinedConditioner, LayoutConditioner, TextConditioner
from ..dit import DiT, DiTConfig
from ..kl import KLBottleneck, standardize_latents
from ..latent_diffusion import LatentDiffusion
from ..quantizer import VectorQuantizer, VQBottleneck
from ..scenes.data import scene_stream
from ..scenes.vocabulary import NOUNS, SEMANTIC
from ..scenes.words import words_of
from ..schedule import BETAS, NoiseSchedule
from ..text import TextTransformer
from ..train import TrainState
from ..unet import UNet, UNetConfig
from .from_words import from_words
from .reading import SceneReader

# The parts of a conditioner, in their order: tasks.PARTS, and "language", which may stand in place of "text": a frozen
# language model, an extra. How often each is trained alone, relative to the others: words need the most practice, maps
# the least; of words, the recipe says how often.
PRACTICE = {"text": None, "language": None, "class": 1, "layout": 3, "lowres": 1, "semantic": 1, "inpaint": 1}


def build_autoencoder(recipe) -> Autoencoder:
    """The first stage of an AutoencoderRecipe, with fresh weights."""
    c = recipe.model.latent_channels
    if recipe.codebook_size is None:
        return Autoencoder(recipe.model, KLBottleneck(c, weight=recipe.kl_weight))
    quantizer = VectorQuantizer(recipe.codebook_size, c, restart_after=recipe.restart_after)
    return Autoencoder(recipe.model, VQBottleneck(quantizer))


def build_diffusion(recipe, autoencoder: Autoencoder, scale_factor: float = 1.0) -> LatentDiffusion:
    """The second stage of a DiffusionRecipe on a trained first stage, with fresh weights.

    Raises ValueError for a net that is neither "unet" nor "dit", and for parts of a conditioner that do not exist.
    """
    r, conditioner = recipe, build_conditioner(recipe, autoencoder.config)
    # pictures are joined to the latent; all else comes as tokens, and maybe a vector, both of the text's width
    joined = [getattr(part, "concat_channels", 0) for part in _parts(conditioner)]
    width = r.text_width if 0 in joined else None
    inputs = {"in_channels": autoencoder.config.latent_channels, "context_dim": width,
              "vector_dim": width if r.vector else None, "concat_channels": sum(joined)}
    if r.net == "unet":
        net = UNet(UNetConfig(**inputs, channels=r.channels, channel_mults=r.channel_mults, groups=r.groups,
                              num_res_blocks=r.num_res_blocks, attn_levels=r.attn_levels, head_dim=r.head_dim))
    elif r.net == "dit":
        side = r.scenes.size // autoencoder.config.downsample_factor
        net = DiT(DiTConfig(**inputs, **vars(r.dit), input_size=side))
    else:
        raise ValueError(f'the recipe: net is "unet" or "dit", got {r.net!r}.')
    return LatentDiffusion(autoencoder, net, NoiseSchedule(BETAS[r.schedule]()), conditioner, prediction=r.prediction,
                           p_uncond=r.p_uncond, scale_factor=scale_factor, image_size=r.scenes.size)


def build_reader(recipe) -> SceneReader:
    """The text transformer of a TextRecipe with its questions, both with fresh weights."""
    r = recipe
    return SceneReader(TextTransformer(r.text_width, r.text_layers, r.text_heads, r.max_length,
                                       known=words_of(r.scenes)))


def train_state(recipe, model, seed: int, **other) -> TrainState:
    """A recipe's TrainState of a model; `other` arguments stand in place of the recipe's or join them."""
    names = ("lr", "betas", "weight_decay", "grad_clip", "ema_decay", "muon_lr")
    words = [name for name, part in model.named_modules() if isinstance(part, (TextTransformer, LayoutConditioner))]
    # what can read already learns on more slowly; a layout's transformer at full rate forgot within 500 steps
    slower = {f"{name}.": recipe.text_lr for name in words} if hasattr(recipe, "text_lr") else {}
    return TrainState(model, **{**{name: getattr(recipe, name) for name in names}, "seed": seed, "slower": slower,
                                **other})


def standardize(recipe, model: Autoencoder, seed: int) -> None:
    """Give a trained KL first stage latents of mean 0 and variance 1 in each channel, over scenes of its recipe."""
    device = next(model.parameters()).device
    scenes = scene_stream(recipe.scenes, 32, seed=seed)
    standardize_latents(model, (batch["image"].to(device) for batch in islice(scenes, 16)))


def build_conditioner(recipe, first_stage) -> Conditioner | None:
    """A fresh conditioner of a DiffusionRecipe's parts; None for none. first_stage: the config of its autoencoder.

    Alone, a part by concatenation is always there; among several, each can be absent, and says so.
    Of several, training shows the recipe's `alone` and keeps all others dropped; or each as often as PRACTICE says.
    """
    r, names, several = recipe, [name for name in PRACTICE if name in recipe.parts], len(recipe.parts) > 1
    if unknown := sorted(set(r.parts) - set(names)):
        raise ValueError(f"the recipe: there are no parts {unknown}; there are {', '.join(PRACTICE)}.")
    if {"text", "language"} <= set(names):
        raise ValueError('the recipe: "language" is another reader of captions: take it in place of "text".')
    factor = first_stage.downsample_factor
    width, words = r.text_width, (r.text_width, r.text_layers, r.text_heads, r.max_length)
    build = {
        "text": lambda: TextConditioner(TextTransformer(*words, known=words_of(r.scenes)), r.vector),
        "language": lambda: _language(*words),
        "class": lambda: ClassConditioner(len(NOUNS), width, width if r.vector else None),
        "layout": lambda: LayoutConditioner(len(NOUNS), width, heads=r.text_heads, vector=r.vector),
        "lowres": lambda: LowResConditioner(factor, several),
        # the coarser the grid, the more a cell of it has to tell
        "semantic": lambda: SemanticConditioner(len(SEMANTIC), factor, several, max(8, factor ** 2 // 4)),
        "inpaint": lambda: _inpaint(first_stage, several)}
    parts = [build[name]() for name in names]
    if not several:
        return parts[0] if parts else None
    if r.alone is None:
        often = {**PRACTICE, "text": r.text_practice, "language": r.text_practice}
        return CombinedConditioner(parts, r.p_drop_each, r.p_single, [often[name] for name in names])
    return CombinedConditioner(parts, r.p_drop_each, 1.0, [name == r.alone for name in names])


def _inpaint(first_stage, several: bool = False) -> InpaintConditioner:
    """On a coarse grid the mask keeps its edges to 4 pixels, as on that of f = 4."""
    factor = first_stage.downsample_factor
    return InpaintConditioner(first_stage.latent_channels, factor, several, max(1, factor // 4))


def _language(*sizes: int) -> Conditioner:
    from ..released.language import LanguageConditioner  # an extra, hence only here

    return LanguageConditioner(*sizes)


def _parts(conditioner) -> list:
    return [] if conditioner is None else conditioner.parts


def cached_inputs(names, autoencoder):
    """What to keep beside cached latents for some parts: (keys of a batch, function of a batch that makes more)."""
    keys = {"text": ("caption",), "language": ("caption",), "class": ("class",), "layout": ("labels", "boxes"),
            "lowres": ("lowres",), "semantic": ("semantic",), "inpaint": ()}
    kept = tuple(key for name in PRACTICE if name in names for key in keys[name])
    if "inpaint" not in names:
        return kept, None
    part = _inpaint(autoencoder.config)
    part.use_first_stage(autoencoder)
    return kept, part.prepare


@torch.no_grad()
def start_from(source, target) -> list[Conditioner]:
    """Give a fresh LatentDiffusion `target` the weights of the trained `source`, as far as they have the same parts.

    Returns the parts of the conditioner that are new and stay fresh. Channels that are new to the network's first
    convolution start at 0, and tokens that are absent are masked. So at the start `target` does with the old conditions
    what `source` does. Raises ValueError if the networks differ in more than the number of joined channels, or if their
    latents come from different first stages.
    """
    if not _alike(source.autoencoder, target.autoencoder):
        raise ValueError("--start-from: that model has another first stage: give its own with --autoencoder.")
    kinds = [type(ldm.net).__name__ for ldm in (source, target)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"--start-from: that model's network is a {kinds[0]}, the recipe's a {kinds[1]}: see --net.")
    channels = target.net.config.in_channels
    stem = "patchify.weight" if isinstance(target.net, DiT) else "down.0.0.weight"
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
        theirs, mine = ({type(part): part for part in _parts(ldm.conditioner)} for ldm in (source, target))
        for kind in mine.keys() & theirs.keys():
            mine[kind].load_state_dict(theirs[kind].state_dict())
    except RuntimeError as error:
        raise another_shape("--start-from: that model", error) from None
    return [part for kind, part in mine.items() if kind not in theirs]


@torch.no_grad()
def start_first_stage(source: Autoencoder, target: Autoencoder) -> None:
    """Give a fresh first stage the weights of a trained one. It may have more residual blocks, which begin as the
    identity, and another weight of its bottleneck. Raises ValueError if they differ in more."""
    theirs, mine = source.state_dict(), target.state_dict()
    new = [name for name in mine if name not in theirs]
    if [name for name in theirs if name not in mine or theirs[name].shape != mine[name].shape] or not all(
            ".blocks." in name for name in new):
        raise ValueError("--start-from: that first stage differs from the recipe's in more than residual blocks.")
    target.load_state_dict(theirs, strict=False)
    for name, module in target.named_modules():
        if isinstance(module, ResBlock) and f"{name}.conv2.weight" in new:
            zeroed(module.conv2)


def begin_as_words(target, new: list[Conditioner], scenes) -> None:
    """Where a LatentDiffusion reads captions already, begin its new classes and layouts as words (`from_words`)."""
    parts = _parts(target.conditioner)
    words = [part.text_transformer for part in parts if isinstance(part, TextConditioner) and part not in new]
    if words:
        from_words(words[0], new, scenes)


def all_but_words(target) -> list[Conditioner]:
    """The parts of a LatentDiffusion's conditioner that read no captions."""
    return [part for part in _parts(target.conditioner) if not isinstance(part, TextConditioner)]


def give_text(transformer: TextTransformer, target) -> None:
    """Give a LatentDiffusion's text transformer the weights of one that can read. Raises ValueError if it has another
    shape, or if there is none."""
    mine = [m for part in _parts(target.conditioner) for m in part.modules() if isinstance(m, TextTransformer)]
    if not mine:
        raise ValueError("--text: this recipe or task reads no captions.")
    try:
        mine[0].load_state_dict(transformer.state_dict())
    except RuntimeError as error:
        raise another_shape("--text: that transformer", error) from None


def _alike(*stages) -> bool:
    """Whether two first stages, or none, have the same weights, as far as half precision can tell."""
    a, b = ({} if stage is None else stage.state_dict() for stage in stages)
    return a.keys() == b.keys() and all(
        x.shape == b[name].shape and torch.allclose(x.float(), b[name].to(x.device).float(), rtol=2e-3, atol=1e-4)
        for name, x in a.items())


def another_shape(what: str, error: RuntimeError) -> ValueError:
    """Of torch's list of all the weights that do not fit, the beginning, in one line."""
    return ValueError(f"{what} has another shape than the recipe's. {' '.join(str(error).split()):.200} ...")
