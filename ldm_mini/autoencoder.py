"""The first stage (LDM sec. 3.1, appendix G): images in [-1, 1] to a small latent, and back.

Built in notebook 03.
"""

from collections import OrderedDict
from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .asked import LARGEST, at_least
from .attention import AttentionBlock
from .blocks import Downsample, ResBlock, Upsample, group_norm

EPS = 1e-6                      # of every GroupNorm here; the U-Net has 1e-5
PAPER_MULTS = {2: (1, 2), 4: (1, 2, 4), 8: (1, 2, 4, 4), 16: (1, 1, 2, 2, 4), 32: (1, 1, 2, 2, 4, 4)}


@dataclass(frozen=True)
class AutoencoderConfig:
    """One first stage. Level 0 has the image's size divided by patch_size; each next level has half of that."""

    in_channels: int = 3                        # of the image, and of its reconstruction
    downsample_factor: int = 4                  # f: image side / latent side = patch_size * 2**(levels - 1)
    latent_channels: int = 3                    # c: the paper takes 3 at f=4, 4 at f=8, 8 to 16 at f=16
    channels: int = 128                         # width of level 0 is channels * channel_mults[0]
    channel_mults: tuple[float, ...] | None = None  # one per level; None: those of the paper's KL models
    num_res_blocks: int = 2                     # per level; the decoder has one more
    attn_levels: tuple[int, ...] = ()           # LEVEL INDICES with attention; vq-f8 has (3,), kl-f16 has (4,)
    mid_attn: bool = True                       # attention in the middle; False is "w/o attn" in Tab. 6 and 8
    groups: int = 32                            # of every GroupNorm; small nets: about 16 channels per group
    patch_size: int = 1                         # > 1 folds patches into channels first (TAESD-like): cheap on a CPU
    dropout: float = 0.0                        # inside residual blocks
    decoder_channels: tuple[int, ...] | None = None  # widths of the decoder's levels where it is not the encoder's
                                                # mirror; then its level 0 is the whole picture, nothing is folded
    decoder_blocks: tuple[int, ...] | None = None  # residual blocks of each of them; None: num_res_blocks + 1
    z_channels: int | None = None               # between encoder or decoder and the 1x1 convolutions beside the
                                                # bottleneck; None: latent_channels, as in all of the paper's models

    def __post_init__(self):
        at_least(1, "AutoencoderConfig", in_channels=self.in_channels, downsample_factor=self.downsample_factor,
                 latent_channels=self.latent_channels, channels=self.channels, num_res_blocks=self.num_res_blocks,
                 groups=self.groups, patch_size=self.patch_size, decoder_channels=self.decoder_channels)
        f, p = self.downsample_factor, self.patch_size
        mults = self.channel_mults or PAPER_MULTS.get(f / p, (1,))
        # how a frozen class sets its fields
        object.__setattr__(self, "channel_mults", mults)
        if f != p * 2 ** (len(mults) - 1):
            raise ValueError(f"downsample_factor={f} must be patch_size={p} doubled by each level after the first, but "
                             f"channel_mults={mults} has {len(mults)} levels.")
        if not set(self.attn_levels) <= set(range(len(mults))):
            raise ValueError(f"attn_levels={self.attn_levels} must be level indices below {len(mults)}, not sizes.")
        if self.decoder_channels is None and self.decoder_blocks is not None:
            raise ValueError("decoder_blocks are those of decoder_channels: give both.")
        if self.decoder_channels is not None:
            object.__setattr__(self, "decoder_blocks", self.decoder_blocks
                               or (self.num_res_blocks + 1,) * len(self.decoder_channels))
            if not f == 2 ** (len(self.decoder_channels) - 1) == 2 ** (len(self.decoder_blocks) - 1):
                raise ValueError(f"downsample_factor={f} is 2 for each level of the decoder after the first, but "
                                 f"decoder_channels={self.decoder_channels}, decoder_blocks={self.decoder_blocks}.")
            widths = (*self.decoder_channels, self.widths[-1])
            if [level for level, n in enumerate(self.decoder_blocks) if n == 0 and widths[level] != widths[level + 1]]:
                raise ValueError("a level of the decoder without blocks is as wide as the one before it (levels count "
                                 "from the whole picture).")
        if (fits := gcd(self.groups, self.channels, *self.widths, *(self.decoder_channels or ()))) < self.groups:
            raise ValueError(f"groups={self.groups} does not divide {self.channels} times {mults}; groups={fits} does.")

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [round(self.channels * mult) for mult in self.channel_mults]


class Level(nn.Module):
    """Residual blocks of one size, each followed by attention if the level has it, then maybe a change of size."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, attn: bool, resize: nn.Module, config):
        super().__init__()
        widths = [in_channels] + [out_channels] * num_blocks
        self.blocks = nn.ModuleList(_block(a, b, config) for a, b in zip(widths, widths[1:]))
        self.attns = nn.ModuleList(_attention(out_channels, config) for _ in range(num_blocks if attn else 0))
        self.resize = resize

    def forward(self, h: Tensor) -> Tensor:
        """(B,in,h,w) -> (B,out,h',w'), where h' is h, h/2 or 2h"""
        for i, block in enumerate(self.blocks):
            h = block(h)
            if self.attns:
                h = self.attns[i](h)
        return self.resize(h)


def _middle(channels: int, config: AutoencoderConfig) -> nn.Sequential:
    """The only place, in most first stages, where distant pixels meet: residual block, attention, residual block."""
    return nn.Sequential(OrderedDict(
        block1=_block(channels, channels, config),
        attn=_attention(channels, config) if config.mid_attn else nn.Identity(),
        block2=_block(channels, channels, config)))


class Encoder(nn.Module):
    """Image to features: stem, levels each half as large, middle, head.

    moments_per_channel: 2 if the bottleneck wants a mean and a log variance per latent channel.
    """

    def __init__(self, config: AutoencoderConfig, moments_per_channel: int = 1):
        super().__init__()
        c, widths = config, config.widths
        self.patch_size = c.patch_size
        self.conv_in = nn.Conv2d(c.in_channels * c.patch_size**2, c.channels, 3, padding=1)
        # each level but the last ends with half the size
        self.levels = nn.ModuleList()
        for i, (width_in, width) in enumerate(zip([c.channels] + widths, widths)):
            resize = Downsample(width, asymmetric=True) if i < len(widths) - 1 else nn.Identity()
            self.levels.append(Level(width_in, width, c.num_res_blocks, i in c.attn_levels, resize, c))
        # few pixels are left: here all of them can meet
        self.middle = _middle(widths[-1], c)
        self.norm_out = group_norm(widths[-1], c.groups, EPS)
        self.conv_out = nn.Conv2d(widths[-1], moments_per_channel * (c.z_channels or c.latent_channels), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,C,H,W) -> h (B, moments_per_channel * z_channels, H/f, W/f)"""
        h = self.conv_in(F.pixel_unshuffle(x, self.patch_size))                 # (B, channels, H/p, W/p)
        for level in self.levels:
            h = level(h)
        h = self.middle(h)                                                      # (B, widths[-1], H/f, W/f)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latent to image. No tanh at the end.

    The encoder's mirror with one more residual block per level, or levels of its own: those begin where the encoder
    ends and paint every pixel themselves, where unfolded patches would leave a dotted texture.
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        c, mirror = config, config.decoder_channels is None
        widths = c.widths if mirror else c.decoder_channels
        blocks = (c.num_res_blocks + 1,) * len(widths) if mirror else c.decoder_blocks
        self.patch_size = c.patch_size if mirror else 1
        self.conv_in = nn.Conv2d(c.z_channels or c.latent_channels, widths[-1], 3, padding=1)
        self.middle = _middle(widths[-1], c)
        # in the order they run: deepest first, each but the last ends with twice the size
        self.levels = nn.ModuleList()
        for i in reversed(range(len(widths))):
            width_in = widths[min(i + 1, len(widths) - 1)]
            resize = Upsample(widths[i]) if i > 0 else nn.Identity()
            self.levels.append(Level(width_in, widths[i], blocks[i], mirror and i in c.attn_levels, resize, c))
        self.norm_out = group_norm(widths[0], c.groups, EPS)
        self.conv_out = nn.Conv2d(widths[0], c.in_channels * self.patch_size**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """z (B,z_channels,h,w) -> image (B,C,f*h,f*w)"""
        h = self.middle(self.conv_in(z))
        for level in self.levels:
            h = level(h)
        h = self.conv_out(F.silu(self.norm_out(h)))                             # (B, C * p * p, H/p, W/p)
        return F.pixel_shuffle(h, self.patch_size)


class Autoencoder(nn.Module):
    """Encoder, 1x1 convolution, bottleneck (VQBottleneck or KLBottleneck), 1x1 convolution, decoder."""

    def __init__(self, config: AutoencoderConfig, bottleneck: nn.Module):
        super().__init__()
        if not hasattr(bottleneck, "to_decoder"):
            raise ValueError("Autoencoder(config, bottleneck): the bottleneck is a VQBottleneck(quantizer) or a "
                             f"KLBottleneck; got a {type(bottleneck).__name__}.")
        c, moments = config.latent_channels, bottleneck.moments_per_channel
        if bottleneck.latent_channels != c:
            raise ValueError(f"Autoencoder: latent_channels={c}, so the bottleneck (a quantiser's dim) needs {c} too.")
        self.config, self.bottleneck = config, bottleneck
        self.encoder, self.decoder = Encoder(config, moments), Decoder(config)
        # 1x1 convolutions on both sides of the bottleneck, also for widths that differ (VQGAN's code)
        z = config.z_channels or c
        self.quant_conv = nn.Conv2d(moments * z, moments * c, 1)
        self.post_quant_conv = nn.Conv2d(c, z, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,C,H,W) -> reconstruction (B,C,H,W), bottleneck loss (): what training the first stage needs."""
        z, loss = self.bottleneck(self.moments(x))
        # z is quantised already, or a sample
        return self.decode(z, quantize=False), loss

    def moments(self, x: Tensor) -> Tensor:
        """x (B,C,H,W) -> what the bottleneck reads (B, moments_per_channel * c, H/f, W/f)

        Raises ValueError for other channels, for sides that f does not divide, and on a CPU for bytes (elsewhere, to
        look is to wait).
        """
        f, channels = self.config.downsample_factor, self.config.in_channels
        # torch would not say so: the picture would come back smaller
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % f or x.shape[3] % f:
            raise ValueError(f"Autoencoder: images are (B, {channels}, H, W), H and W multiples of {f}; got "
                             f"{tuple(x.shape)}.")
        # nor this: norms make something of any range
        if not x.is_floating_point() or x.device.type == "cpu" and not x.detach().abs().amax() <= LARGEST:
            raise ValueError("Autoencoder: images lie in [-1, 1], these do not. From 0..255: x / 127.5 - 1.")
        return self.quant_conv(self.encoder(x))

    def encode(self, x: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """x (B,C,H,W) -> z (B,c,H/f,W/f), the latent that stage 2 models, not yet scaled.

        VQ: the vectors before quantisation. KL: the mode (for images that are conditions) or a sample (to train on).
        """
        return self.bottleneck.latent(self.moments(x), sample, generator)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B,c,h,w) -> z_q (B,c,h,w), indices (B,h,w), loss (); of a VQ first stage alone."""
        return self.bottleneck.quantizer.quantize(z)

    def decode(self, z: Tensor, quantize: bool = True) -> Tensor:
        """z (B,c,h,w) -> image (B,C,f*h,f*w). A VQ first stage quantises z first, unless told not to."""
        if z.shape[1] != (c := self.config.latent_channels):
            raise ValueError(f"Autoencoder: latents are (B, {c}, h, w); got {tuple(z.shape)}.")
        # "the quantization layer is absorbed by the decoder" (LDM sec. 3.1)
        if quantize:
            z = self.bottleneck.to_decoder(z)
        return self.decoder(self.post_quant_conv(z))

    @property
    def last_layer(self) -> nn.Parameter:
        """Where the adaptive weight measures gradients: the last weight of the decoder."""
        return self.decoder.conv_out.weight


def _block(in_channels: int, out_channels: int, config: AutoencoderConfig) -> ResBlock:
    return ResBlock(in_channels, out_channels, groups=config.groups, eps=EPS, dropout=config.dropout)


def _attention(channels: int, config: AutoencoderConfig) -> AttentionBlock:
    return AttentionBlock(channels, groups=config.groups, eps=EPS)
