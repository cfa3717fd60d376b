"""Conditions that are images themselves join the noisy latent on channels (LDM sec. 4.3.2, 4.4, 4.5; app. D.6, E.2.2):
a low-resolution picture, a semantic map, a picture with a hole.

Alone, such a condition is always there: null = encode. Beside others it may be absent: then (`presence=True`) its maps
are 0, and one more channel says so: 1 = present, 0 = absent. Built in notebook 11.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .asked import at_least, between, check_pictures
from .cond import Cond, Conditioner, batch_size
from .distortions import degrade


class ConcatConditioner(Conditioner):
    """Base: `maps(batch)` -> (B, channels, h, w) of the latent's size, which is the picture's / downsample_factor."""

    def __init__(self, channels: int, downsample_factor: int, presence: bool):
        super().__init__()
        at_least(1, type(self).__name__, channels=channels, downsample_factor=downsample_factor)
        self.channels, self.downsample_factor, self.presence = channels, downsample_factor, presence
        self.concat_channels = channels + presence                              # which the network gets to see

    def encode(self, batch: dict) -> Cond:
        """-> concat (B, concat_channels, h, w)"""
        maps = self.maps(batch)
        # the channel that says "present", behind the others
        return Cond(concat=F.pad(maps, (0, 0, 0, 0, 0, 1), value=1.0) if self.presence else maps)

    def null(self, batch: dict) -> Cond:
        """The same shape: all zero, or without a presence channel the condition itself."""
        if not self.presence:
            return self.encode(batch)
        # how large is the map that is absent? As the latent, else as the picture (LatentDiffusion.sample puts one in)
        key, factor = ("latent", 1) if "latent" in batch else ("image", self.downsample_factor)
        like = self._read(batch, key)
        h, w = (side // factor for side in like.shape[-2:])
        return Cond(concat=like.new_zeros(batch_size(batch), self.concat_channels, h, w))


class LowResConditioner(ConcatConditioner):
    """Super-resolution: the small picture as it is, tau = identity (LDM sec. 4.4).

    Where the latent's grid is coarser, each cell's pixels are folded into channels, so that nothing is lost: 3 r^2 of
    them for a grid coarser by r. Where it is finer, the picture is enlarged.
    lowres_factor: how much smaller than the wanted picture it is. p_degrade: share of the training inputs that are
    blurred, resampled, coarsely rounded or noisy besides, so that real small pictures work (after BSR, LDM app. D.6.1).
    """

    keys = ("lowres",)

    def __init__(self, downsample_factor: int, presence: bool = False, lowres_factor: int = 4, p_degrade: float = 0.5):
        at_least(1, "LowResConditioner", lowres_factor=lowres_factor)
        between(0, 1, "LowResConditioner", p_degrade=p_degrade)
        self.fold = max(1, downsample_factor // lowres_factor)
        super().__init__(3 * self.fold ** 2, downsample_factor, presence)
        self.lowres_factor, self.p_degrade = lowres_factor, p_degrade

    def maps(self, batch: dict) -> Tensor:
        """batch["lowres"] (B,3,H/4,W/4) in [-1,1] -> (B,channels,h,w)"""
        lowres = check_pictures('batch["lowres"]', self._read(batch, "lowres")).float()
        # what only ever saw clean inputs sharpens the flaws of others
        if self.training and self.p_degrade:
            chosen = (torch.rand(len(lowres)) < self.p_degrade).nonzero().flatten().to(lowres.device)
            if len(chosen):
                lowres = lowres.index_copy(0, chosen, damage(lowres[chosen]))
        # as large as the latent: nothing to do where both are smaller than the picture by the same factor
        size = tuple(side * self.lowres_factor * self.fold // self.downsample_factor for side in lowres.shape[-2:])
        if size != lowres.shape[-2:]:
            lowres = F.interpolate(lowres, size, mode="bilinear", antialias=True)
        return F.pixel_unshuffle(lowres, self.fold)

    def image_size(self, batch: dict) -> tuple[int, int]:
        """`lowres_factor` times the input's."""
        return tuple(side * self.lowres_factor for side in batch["lowres"].shape[-2:])


class SemanticConditioner(ConcatConditioner):
    """Semantic synthesis: a map of classes -> `channels` channels of the latent's size, trained with the network.

    A 1x1 convolution of one-hot classes is a table with one row per class. The paper averages pixels afterwards; here a
    strided convolution reads all pixels of a latent's cell, so that edges finer than a cell are not lost.
    """

    keys = ("semantic",)

    def __init__(self, num_classes: int, downsample_factor: int, presence: bool = False, channels: int = 8,
                 width: int = 16):
        super().__init__(channels, downsample_factor, presence)
        self.num_classes, self.width = num_classes, width
        self.classes = nn.Embedding(num_classes, width)
        self.rescale = nn.Conv2d(width, channels, downsample_factor, stride=downsample_factor)

    def maps(self, batch: dict) -> Tensor:
        """batch["semantic"] (B,H,W) integers below num_classes -> (B,channels,h,w)"""
        semantic = self._read(batch, "semantic")
        f, shape = self.downsample_factor, tuple(semantic.shape)
        if semantic.is_floating_point() or len(shape) != 3 or shape[-2] % f or shape[-1] % f:
            raise ValueError(f"a map holds integers, (B,H,W), sides in multiples of {f}; got {semantic.dtype} {shape}.")
        # on a GPU, to look is to wait
        if semantic.is_cpu and not (0 <= semantic.min() and semantic.max() < self.num_classes):
            raise ValueError(f"a map holds classes from 0 to {self.num_classes - 1}; got {semantic.min()} to "
                             f"{semantic.max()}.")
        # a row of the table for each pixel, a channels-last view without a copy; then a cell of pixels becomes one
        rows = self.classes(semantic.to(self.device).int())                     # (B,H,W,width)
        return self.rescale(rows.permute(0, 3, 1, 2))

    def image_size(self, batch: dict) -> tuple[int, int]:
        """The map's."""
        return tuple(batch["semantic"].shape[-2:])


class InpaintConditioner(ConcatConditioner):
    """Inpainting: [latent of the masked picture, not scaled; mask], in that order (LDM sec. 4.5, app. E.2.2).

    The hole is -1 (black) in the picture, +1 in the mask, which is -1 outside and resized to the nearest pixel: of the
    latent's grid, as in the paper, or of one finer by `mask_fold`, folded into mask_fold^2 channels.
    Reads "image" and "mask" (1 = hole), or what `prepare` made of them. The picture's own pixels outside the hole come
    back exactly: `finish` pastes them over the sample.
    """

    keys = ("image", "mask")

    def __init__(self, latent_channels: int, downsample_factor: int, presence: bool = False, mask_fold: int = 1):
        at_least(1, "InpaintConditioner", mask_fold=mask_fold)
        super().__init__(latent_channels + mask_fold ** 2, downsample_factor, presence)
        self.latent_channels, self.mask_fold = latent_channels, mask_fold
        self.use_first_stage(None)

    def use_first_stage(self, autoencoder) -> None:
        """The first stage that encodes masked pictures; None = diffusion on pixels. It is no part of this module."""
        self.__dict__["first_stage"] = autoencoder                              # not registered: never saved here

    def present(self, batch: dict) -> bool:
        """A mask, and the picture or its masked latent."""
        return "mask" in batch and ("image" in batch or "masked_latent" in batch)

    def remarks(self, batch: dict) -> list[str]:
        """Of a mask without a hole: there is nothing to paint."""
        masks = batch["mask"]
        empty = sum(not (mask > 0.5).any() for mask in masks) if isinstance(masks, Tensor) else 0
        return [f"{empty} of {len(masks)} masks mark nothing: those pictures come back as they are."] if empty else []

    @torch.no_grad()
    def prepare(self, batch: dict) -> dict:
        """image (B,3,H,W) in [-1,1], mask (B,1,H,W) -> masked_latent (B,c,h,w), mask (B,1,h,w) bool: once, to keep.

        The mask's sides are mask_fold times the latent's.
        """
        image, mask = check_pictures('batch["image"]', self._read(batch, "image"), None), self._read(batch, "mask")
        if not isinstance(mask, Tensor) or mask.shape != (len(image), 1, *image.shape[-2:]) or (
                mask.is_cpu and not ((0 <= mask) & (mask <= 1)).all()):
            got = f"{tuple(mask.shape)} up to {mask.max():.3g}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"the mask of a picture {tuple(image.shape)} must be (B,1,H,W), 1 in the hole and 0 "
                             f"elsewhere; got {got}.")
        mask = mask > 0.5
        # the first stage is shown black where the hole is; the mask goes to the nearest pixel, so it is never soft
        masked = image.masked_fill(mask, -1.0)
        latent = masked if self.first_stage is None else self.first_stage.encode(masked).float()
        size = tuple(side * self.mask_fold for side in latent.shape[-2:])
        return {"masked_latent": latent, "mask": F.interpolate(mask.float(), size, mode="nearest") > 0.5}

    def maps(self, batch: dict) -> Tensor:
        """-> (B, latent_channels + mask_fold^2, h, w)"""
        if "masked_latent" not in batch:
            batch = self.prepare(batch)
        # from {0, 1} to {-1, 1}, the range of pictures
        mask = F.pixel_unshuffle(batch["mask"].float() * 2 - 1, self.mask_fold)
        return torch.cat([batch["masked_latent"].float(), mask], dim=1)

    def image_size(self, batch: dict) -> tuple[int, int]:
        """The picture's."""
        f, masked = self.downsample_factor, batch.get("masked_latent")
        return tuple(batch["image"].shape[-2:]) if masked is None else tuple(side * f for side in masked.shape[-2:])

    def finish(self, images: Tensor, batch: dict) -> Tensor:
        """The known pixels in place of the sample's, if the batch has the picture itself."""
        return paste(images, batch["image"], batch["mask"]) if "image" in batch else images


def damage(lowres: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Small pictures (B,3,h,w) as they come from the world: some blurred, resampled, coarsely rounded or noisy; their
    brightness is kept, for a change of it would teach the model to change it back."""
    return degrade(lowres, generator, exposure=0.0, blur=(0.3, 0.9))


def paste(images: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """`images` (B,3,H,W) in the hole, mask (B,1,H,W) = 1, and `known` elsewhere, bit for bit."""
    return torch.where(mask.to(images.device) > 0.5, images, known.to(images))
