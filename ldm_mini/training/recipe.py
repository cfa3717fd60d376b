"""What a training is told: a frozen dataclass for each stage. The numbers are in `recipes`."""

from dataclasses import dataclass, replace

from ..autoencoder import AutoencoderConfig
from ..scenes.films import MOTIONS, FilmConfig
from ..scenes.scene import SceneConfig
from ..tasks import PARTS, find_task
from ..train import FirstStageLoss


@dataclass(frozen=True)
class AutoencoderRecipe:
    """The first stage: LDM sec. 3.1."""

    name: str
    scenes: SceneConfig
    model: AutoencoderConfig
    codebook_size: int | None = 512             # None: a KL bottleneck instead
    kl_weight: float = 1e-6                     # only then; a mean over latents beside a mean over pixels
    restart_after: int | None = 100             # steps until an unused code is replaced
    steps: int = 10_000
    batch_size: int = 8
    lr: float = 2e-3
    warmup: int = 100
    decay: str = "cosine"
    muon_lr: float | None = None                # of hidden weights; None: AdamW for all
    betas: tuple[float, float] = (0.5, 0.9)     # as the released first stages: a GAN wants little momentum
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0
    ema_decay: float | None = None
    loss: FirstStageLoss = FirstStageLoss()
    disc_channels: int = 64
    disc_layers: int = 3
    disc_lr: float | None = None                # None: the autoencoder's
    bf16: bool = False                          # where it pays: on a GPU, and on CPUs that are measured to gain
    compile: bool = False                       # on a GPU only


@dataclass(frozen=True)
class DiTSizes:
    """A Diffusion Transformer in the place of a recipe's U-Net. The defaults take as many FLOPs as `small`'s."""

    width: int = 192
    depth: int = 6
    num_heads: int = 6
    patch_size: int = 1                         # of 8 x 8 latents every pixel is a token: 64 of them
    context: str = "cross"                      # or "tokens": DiTConfig


@dataclass(frozen=True)
class DiffusionRecipe:
    """The second stage: LDM sec. 3.2, 3.3, with a text transformer and class tokens unless `parts` says otherwise."""

    name: str
    scenes: SceneConfig
    net: str = "unet"                           # or "dit", of the sizes that `dit` says
    dit: DiTSizes = DiTSizes()
    channels: int = 64                          # of the U-Net; its inputs are the first stage's latents
    channel_mults: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 1
    attn_levels: tuple[int, ...] = (1, 2)       # not at the largest level: half the time, little loss
    head_dim: int = 32
    groups: int = 4                             # about 16 channels per group
    parts: tuple[str, ...] = ("text", "class")  # of the conditioner: tasks.PARTS
    text_width: int = 128                       # of all tokens
    text_layers: int = 3
    text_heads: int = 4
    text_lr: float = 1.0                        # times lr: lower for one that can read already
    vector: bool = True                         # conditions also as a vector for the time embedding (none in the paper)
    max_length: int = 24                        # tokens per caption; the longest has fewer
    p_uncond: float = 0.1                       # whole condition dropped, for guidance
    p_drop_each: float = 0.1                    # caption or class alone dropped, so that either can stand alone
    p_single: float = 0.0                       # all parts but one dropped
    text_practice: float = 3.0                  # how much more often than a picture words are the one part
    alone: str | None = None                    # the one part that is ever shown: a leg for what is hard to learn
    schedule: str = "cosine"                    # or "scaled_linear", the paper's
    prediction: str = "v"
    t_power: float = 1.0                        # above 1: high noise more often, where it is decided what stands where
    latents: int = 30_000                       # scenes encoded once, before training
    easy: SceneConfig | None = None             # simpler scenes among them ...
    p_easy: float = 0.5                         # ... so large a part
    posterior: bool = True                      # of a KL first stage: latents are samples (the paper), else modes
    steps: int = 8_000
    batch_size: int = 32
    muon_lr: float | None = None                # of hidden weights; None: AdamW for all
    lr: float = 4e-4                            # at 1e-3 the text transformer collapsed: all tokens of a caption alike
    warmup: int = 200
    decay: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    grad_clip: float | None = 1.0
    ema_decay: float = 0.9995
    bf16: bool = False
    compile: bool = False
    sample_captions: tuple[str, ...] = (
        "a red apple to the left of a dog on a blue background", "a yellow star", "a green car to the right of a house",
        "an owl", "a blue umbrella above a mushroom", "a cat and a purple balloon", "a rocket at night", "a pink heart")


@dataclass(frozen=True)
class TextRecipe:
    """A text transformer that learns to read (`training.reading`), before a second stage of the same sizes."""

    name: str
    scenes: SceneConfig
    text_width: int = 192
    text_layers: int = 2
    text_heads: int = 6
    max_length: int = 24
    steps: int = 800
    batch_size: int = 64
    lr: float = 2e-3
    muon_lr: float | None = 5e-3
    warmup: int = 20
    decay: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    grad_clip: float | None = 1.0
    ema_decay: float | None = None
    bf16: bool = False
    compile: bool = False


@dataclass(frozen=True)
class VideoRecipe(DiffusionRecipe):
    """Films: `latents` of them; after the paper. What it begins as has the same U-Net and words.

    net: "unet", an inflated image U-Net; or "dit", a transformer on space and time, whose depth counts pairs of blocks.
    """

    frames: int = 8
    frozen: bool = False                        # all of the image model stays; time is learned, and words of motion
    noise_share: float = 0.0                    # of the noise's variance, in common to all frames
    image_every: int | None = 5                 # each so many steps, pictures; None: films alone
    pictures: int = 6_000                       # scenes encoded for these steps
    motions: tuple = MOTIONS

    @property
    def films(self) -> FilmConfig:
        """The films of its scenes."""
        return FilmConfig(self.scenes, self.frames, self.motions)


def for_task(recipe: DiffusionRecipe, task: str) -> DiffusionRecipe:
    """The same budget for one task alone, or for "all" conditions in one model.

    "class" learns from scenes of one object, for only they have a class. "all": a tenth of the samples sees nothing,
    63% a single condition (words and layouts 19% each, the others 6%), 27% each of them with chance 1/2.
    """
    if task == "all":
        return replace(recipe, parts=PARTS, p_drop_each=0.5, p_single=0.7, alone=None)
    scenes = replace(recipe.scenes, min_objects=1, max_objects=1) if task == "class" else recipe.scenes
    return replace(recipe, parts=find_task(task).parts, scenes=scenes, alone=None)
