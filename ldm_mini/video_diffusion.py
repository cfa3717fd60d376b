"""Latent diffusion of films: every frame through the image first stage, all frames of a film denoised together.
After the paper: schedules, losses, samplers and conditioners are those of pictures, and a picture is a film of one
frame. Built in notebook 16."""

import json

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from . import hub
from .asked import whole
from .cond import Cond, Conditioner, batch_size
from .diffusion import draw_noise, to_x0_eps
from .files import read_json
from .latent_diffusion import LatentDiffusion
from .text import TextTransformer, load_tokenizer
from .video import as_films, as_images
from .weights import SHARD_BYTES


class LatentVideoDiffusion(LatentDiffusion):
    """`LatentDiffusion` of films: its "video" is (B,3,F,H,W) in [-1,1], its "latent" (B,C,F,h,w).

    An "image" (B,3,H,W), or its "latent" (B,C,h,w), is a film of one frame: a batch of either kind can be trained on.
    A "first" frame (B,3,H,W) makes image-to-video: by a conditioner that reads it (`FirstFrameConditioner`), else by
    `keep_first`, which needs no training.

    frames:      how many `sample` makes; it may be set to another number.
    noise_share: of the noise's variance, how much all frames of a film have in common: see `mixed_noise`.
    """

    def __init__(self, autoencoder, net, schedule, conditioner=None, prediction: str = "eps", p_uncond: float = 0.1,
                 scale_factor: float = 1.0, image_size=None, frames: int = 8, noise_share: float = 0.0):
        super().__init__(autoencoder, net, schedule, conditioner, prediction, p_uncond, scale_factor, image_size)
        if not 0 <= noise_share < 1:
            raise ValueError(f"noise_share is at least 0 and below 1, got {noise_share}.")
        self.frames, self.noise_share = whole("frames", frames, 1), noise_share

    def clean_latent(self, batch: dict) -> Tensor:
        """The scaled latents z0 (B,C,F,h,w) of a batch's "latent", "video" or "image"."""
        if "latent" in batch:
            z0 = batch["latent"] * self.scale_factor
            return z0[:, :, None] if z0.ndim == 4 else z0
        return super().clean_latent({"image": batch["video"]} if "video" in batch else batch)

    def save_pretrained(self, folder, half=False, card: dict | None = None, shard_bytes=SHARD_BYTES, base=None):
        """As of pictures. base: of the image model that it began as, the name or folder: what is still equal there is
        not stored again, so that a model that was `frozen` keeps little more than time. Read only with that model."""
        return hub.save(folder, self, half, card, shard_bytes, base and (base, self._of_images(base)))

    def _of_images(self, base) -> dict[str, str]:
        """{how names begin here: how in the image model}"""
        theirs = (read_json(hub.find(base) / hub.CONFIG).get("conditioner") or {}).get("parts", ())
        place = {part["class"].rpartition(".")[2]: f"conditioner.parts.{i}." for i, part in enumerate(theirs)}
        names = {"": "", "net.image.": "net."}
        for i, part in enumerate(getattr(self.conditioner, "parts", ())):
            if there := place.get(type(part).__name__):
                here = f"conditioner.parts.{i}."
                names |= {here: there, f"{here}text_transformer.words.old": f"{there}text_transformer.words.weight"}
        return names

    def noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """`mixed_noise` of this model's share."""
        return mixed_noise(like, self.noise_share, generator)

    def encode(self, images: Tensor, sample: bool = False) -> Tensor:
        """Films (B,3,F,H,W), or images (B,3,H,W), in [-1,1] -> scaled latents z0 (B,C,F,h,w); an image has F = 1."""
        films = images[:, :, None] if images.ndim == 4 else images
        return as_films(super().encode(as_images(films), sample), films.shape[2])

    def decode(self, z0: Tensor) -> Tensor:
        """Scaled latents z0 (B,C,F,h,w) -> films (B,3,F,H,W), frame by frame."""
        return as_films(super().decode(as_images(z0)), z0.shape[2])

    def latent_shape(self, size) -> tuple[int, int, int, int]:
        """(C, F, h, w) of the latent of a film of `size`, a side or (height, width)."""
        channels, height, width = super().latent_shape(size)
        return channels, self.frames, height, width

    def denoiser(self, batch: dict | None = None, guidance_scale: float = 1.0, negative=None, clip_x0=None, size=None):
        """As of pictures; with a "first" frame that no conditioner reads, it is kept by `keep_first`."""
        first = None
        if batch and "first" in batch and "first" not in getattr(self.conditioner, "keys", ()):
            first = self.encode(batch["first"].to(self.device))
            batch = {key: value for key, value in batch.items() if key != "first"} or None
        denoise = super().denoiser(batch, guidance_scale, negative, clip_x0, size)
        return denoise if first is None else keep_first(denoise, first, self.schedule)


def mixed_noise(like: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise (B,C,F,h,w), of which all frames have a part in common (Ge et al. 2023, arXiv 2305.10474).

    share: this part of the variance; any two frames of a film correlate by it. Their alpha gives alpha^2 / (1 +
    alpha^2). What frames have in common, their noise then has as well. Samplers that add fresh noise do not know of
    it: use one that does not (dpm, ddim, euler, heun).
    """
    own = draw_noise(like, generator)
    if not share:
        return own
    common = draw_noise(like[:, :, :1], generator)
    return share**0.5 * common + (1 - share) ** 0.5 * own


def keep_first(denoise, first: Tensor, schedule):
    """The same denoiser for films whose first frame is known: `first` (B,C,1,h,w), scaled latents.

    Whatever the network thinks of frame 0, its x0 is `first`. A sampler without fresh noise leads it there along the
    forward process' own path, so that at every step the network sees it as noisy as the others ("replacement", Ho et
    al. 2022, sec. 3.1).
    """
    def kept(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if first.shape[-2:] != x_t.shape[-2:]:
            raise ValueError(f"the first frame's latent is {tuple(first.shape)}, the film's is {tuple(x_t.shape)}: "
                             "give a frame of the film's size.")
        x0, _ = denoise(x_t, t)
        x0 = torch.cat([first.to(x0), x0[:, :, 1:]], dim=2)
        return to_x0_eps("x0", x0, x_t, schedule.alpha(t, x_t.ndim), schedule.sigma(t, x_t.ndim))

    return kept


class FirstFrameConditioner(Conditioner):
    """Image-to-video: the latent of the first frame, not scaled, joined to the noisy film; its place in all other
    frames is 0. One more channel says where a frame is known: 1 there, else 0. Absent: 0 everywhere.

    Reads "first" (B,3,H,W), or "first_latent" (B,C,h,w) as the first stage's `encode` gave it; how long and large the
    film is, from its "latent", else its "video" or "image".
    """

    keys = ("first",)

    def __init__(self, latent_channels: int, downsample_factor: int):
        super().__init__()
        self.latent_channels, self.downsample_factor = latent_channels, downsample_factor
        self.concat_channels = latent_channels + 1
        self.use_first_stage(None)

    def use_first_stage(self, autoencoder) -> None:
        """The first stage that encodes the frame; None = films of pixels. It is no part of this module."""
        self.__dict__["first_stage"] = autoencoder                              # not registered: never saved here

    def present(self, batch: dict) -> bool:
        """A first frame, or its latent."""
        return "first" in batch or "first_latent" in batch

    @torch.no_grad()
    def encode(self, batch: dict) -> Cond:
        """-> concat (B, latent_channels + 1, F, h, w)"""
        if "first_latent" in batch:
            known = batch["first_latent"].float()
        else:
            known = self._read(batch, "first")
            known = known if self.first_stage is None else self.first_stage.encode(known).float()
        maps = self.null(batch).concat.to(known)
        if maps.shape[-2:] != known.shape[-2:]:
            raise ValueError(f"the first frame's latent is {tuple(known.shape)}, the film's is {tuple(maps.shape)}: "
                             "give a frame of the film's size.")
        maps[:, :-1, 0], maps[:, -1, 0] = known, 1.0
        return Cond(concat=maps)

    def null(self, batch: dict) -> Cond:
        """The same shape, all zero."""
        key = next((key for key in ("latent", "video", "image") if key in batch), "video")
        like, factor = self._read(batch, key), 1 if key == "latent" else self.downsample_factor
        frames = like.shape[2] if like.ndim == 5 else 1
        sides = (side // factor for side in like.shape[-2:])
        return Cond(concat=like.new_zeros(batch_size(batch), self.concat_channels, frames, *sides))

    def image_size(self, batch: dict) -> tuple[int, int] | None:
        """The first frame's."""
        if not self.present(batch):
            return None
        key, factor = ("first", 1) if "first" in batch else ("first_latent", self.downsample_factor)
        return tuple(side * factor for side in batch[key].shape[-2:])


class FilmText(TextTransformer):
    """A text transformer with words of its own, which a model of pictures has not: their rows come behind all others.

    more_words: these. shared: how many of the shipped tokenizer's words stand before them; None = all. A model that
    was trained before the tokenizer got more keeps its number.
    """

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 4, max_length: int = 24,
                 known: tuple[str, ...] | None = None, more_words: tuple[str, ...] = (), shared: int | None = None):
        said = json.loads(load_tokenizer().to_str())
        old = {word: i for word, i in said["model"]["vocab"].items() if shared is None or i < shared}
        said["model"]["vocab"] = old | {word: len(old) + i for i, word in enumerate(more_words)}
        super().__init__(width, layers, heads, max_length, Tokenizer.from_str(json.dumps(said)), known)
        self.more_words, self.shared = tuple(more_words), len(old)
        self.words = TwoTables(*self.words.weight.detach().split([len(old), len(self.more_words)]))


class TwoTables(nn.Module):
    """An embedding whose first rows, `old` (n,D), and last rows, `new` (m,D), are parameters apart."""

    def __init__(self, old: Tensor, new: Tensor):
        super().__init__()
        self.old, self.new = nn.Parameter(old.clone()), nn.Parameter(new.clone())

    @property
    def weight(self) -> Tensor:
        """All rows, (n+m,D)."""
        return torch.cat([self.old, self.new])

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) int64 -> (...,D)"""
        return F.embedding(ids, self.weight)
