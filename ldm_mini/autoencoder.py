"""The first stage (LDM sec. 3.1, appendix G): images in [-1, 1] to a small latent, and back."""

from dataclasses import dataclass
from math import gcd, log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import AttentionBlock
from .blocks import Downsample, ResBlock, Upsample, group_norm
from .quantizer import VQBottleneck

EPS = 1e-6                      # of every GroupNorm here; the U-Net has 1e-5
LARGEST = 20.0                  # no image in [-1, 1] reaches it, nor does any noise added to one
PAPER_MULTS = {1: (1,), 2: (1, 2), 3: (1, 2, 4), 4: (1, 2, 4, 4), 5: (1, 1, 2, 2, 4), 6: (1, 1, 2, 2, 4, 4)}


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
    z_channels: int | None = None               # between encoder or decoder and the 1x1 convolutions beside the
                                                # bottleneck; None: latent_channels, as in all of the paper's models

    def __post_init__(self):
        for name in ("in_channels", "latent_channels", "channels", "num_res_blocks", "groups", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"AutoencoderConfig: {name} must be at least 1, got {getattr(self, name)}.")
        factor = self.downsample_factor / self.patch_size
        if factor < 1 or not log2(factor).is_integer():
            raise ValueError(f"AutoencoderConfig: downsample_factor={self.downsample_factor} must be patch_size "
                             f"({self.patch_size}) times 1, 2, 4, 8, ...; each level after the first halves the size.")
        levels = int(log2(factor)) + 1
        mults = self.channel_mults
        if mults is None:
            mults = PAPER_MULTS.get(levels, (1, 1, 2, 2) + (4,) * (levels - 4))
        object.__setattr__(self, "channel_mults", mults)
        if len(self.channel_mults) != levels:
            raise ValueError(f"AutoencoderConfig: downsample_factor={self.downsample_factor} with patch_size="
                             f"{self.patch_size} has {levels} levels, so channel_mults needs {levels} entries, "
                             f"got {self.channel_mults}.")
        if bad := [level for level in self.attn_levels if not 0 <= level < levels]:
            raise ValueError(f"AutoencoderConfig: attn_levels {bad} do not exist. They are level indices 0 to "
                             f"{levels - 1} (one per entry of channel_mults), not sizes or factors.")
        if bad := [w for w in [self.channels, *self.widths] if w % self.groups]:
            raise ValueError(f"AutoencoderConfig: groups={self.groups} does not divide the widths {bad} (channels * "
                             f"channel_mults). Choose a divisor, like groups={gcd(self.groups, self.channels)}.")

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
        self.attns = nn.ModuleList(AttentionBlock(out_channels, groups=config.groups, eps=EPS)
                                   for _ in range(num_blocks if attn else 0))
        self.resize = resize

    def forward(self, h: Tensor) -> Tensor:
        """(B,in,h,w) -> (B,out,h',w'), where h' is h, h/2 or 2h"""
        for i, block in enumerate(self.blocks):
            h = block(h)
            if self.attns:
                h = self.attns[i](h)
        return self.resize(h)


class Middle(nn.Module):
    """The only place, in most first stages, where distant pixels meet: residual block, attention, residual block."""

    def __init__(self, channels: int, config: AutoencoderConfig):
        super().__init__()
        self.block1 = _block(channels, channels, config)
        self.attn = AttentionBlock(channels, groups=config.groups, eps=EPS) if config.mid_attn else nn.Identity()
        self.block2 = _block(channels, channels, config)

    def forward(self, h: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,h,w)"""
        return self.block2(self.attn(self.block1(h)))


class Encoder(nn.Module):
    """Image to features: stem, levels each half as large, middle, head.

    moments_per_channel: 2 if the bottleneck wants a mean and a log variance per latent channel.
    """

    def __init__(self, config: AutoencoderConfig, moments_per_channel: int = 1):
        super().__init__()
        c, widths = config, config.widths
        self.patch_size = c.patch_size
        self.conv_in = nn.Conv2d(c.in_channels * c.patch_size**2, c.channels, 3, padding=1)
        self.levels = nn.ModuleList()
        for i, (width_in, width) in enumerate(zip([c.channels] + widths, widths)):
            resize = Downsample(width, asymmetric=True) if i < len(widths) - 1 else nn.Identity()
            self.levels.append(Level(width_in, width, c.num_res_blocks, i in c.attn_levels, resize, c))
        self.middle = Middle(widths[-1], c)
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
    """Latent to image, the encoder's mirror with one more residual block per level. No tanh at the end."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        c, widths = config, config.widths
        self.patch_size = c.patch_size
        self.conv_in = nn.Conv2d(c.z_channels or c.latent_channels, widths[-1], 3, padding=1)
        self.middle = Middle(widths[-1], c)
        self.levels = nn.ModuleList()                                           # in the order they run: deepest first
        for i in reversed(range(len(widths))):
            width_in = widths[min(i + 1, len(widths) - 1)]
            resize = Upsample(widths[i]) if i > 0 else nn.Identity()
            self.levels.append(Level(width_in, widths[i], c.num_res_blocks + 1, i in c.attn_levels, resize, c))
        self.norm_out = group_norm(widths[0], c.groups, EPS)
        self.conv_out = nn.Conv2d(widths[0], c.in_channels * c.patch_size**2, 3, padding=1)

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
        if not isinstance(config, AutoencoderConfig) or not hasattr(bottleneck, "moments_per_channel"):
            raise ValueError("Autoencoder(config, bottleneck) takes an AutoencoderConfig and a VQBottleneck or "
                             f"KLBottleneck, got {type(config).__name__} and {type(bottleneck).__name__}.")
        c, moments = config.latent_channels, bottleneck.moments_per_channel
        if bottleneck.latent_channels != c:
            raise ValueError(f"Autoencoder: the bottleneck has {bottleneck.latent_channels} channels but the config "
                             f"latent_channels={c}. Make them equal (of a quantiser: its dim).")
        self.config, self.bottleneck = config, bottleneck
        self.encoder, self.decoder = Encoder(config, moments), Decoder(config)
        z = config.z_channels or c
        self.quant_conv = nn.Conv2d(moments * z, moments * c, 1)
        self.post_quant_conv = nn.Conv2d(c, z, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,C,H,W) -> reconstruction (B,C,H,W), bottleneck loss (): what training the first stage needs."""
        z, loss = self.bottleneck(self.moments(x))
        return self.decode(z, quantize=False), loss

    def moments(self, x: Tensor) -> Tensor:
        """x (B,C,H,W) -> what the bottleneck reads (B, moments_per_channel * c, H/f, W/f).

        Raises ValueError if x is not a batch of floating point images whose sides are multiples of f.
        """
        f, channels = self.config.downsample_factor, self.config.in_channels
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"Autoencoder: expected images (B, {channels}, H, W), got {tuple(x.shape)}.")
        if not x.is_floating_point():
            raise ValueError(f"Autoencoder: expected floating point images in [-1, 1], got {x.dtype}. "
                             "From bytes: x.float() / 127.5 - 1.")
        if x.device.type == "cpu" and x.numel() and x.detach().abs().amax() > LARGEST:  # elsewhere, to look is to wait
            raise ValueError(f"Autoencoder: images lie in [-1, 1], these reach {x.detach().abs().amax():.0f}. "
                             "From 0..255: x / 127.5 - 1.")
        if x.shape[2] % f or x.shape[3] % f or not x.numel():
            raise ValueError(f"Autoencoder: height and width must be multiples of {f} (downsample_factor) and the "
                             f"batch not empty, got {tuple(x.shape)}. Crop, pad or resize the images.")
        return self.quant_conv(self.encoder(x))

    def encode(self, x: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """x (B,C,H,W) -> z (B,c,H/f,W/f), the latent that stage 2 models, not yet scaled.

        VQ: the vectors before quantisation. KL: the mode (for images that are conditions) or a sample (to train on).
        """
        return self.bottleneck.latent(self.moments(x), sample, generator)

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B,c,h,w) -> z_q (B,c,h,w), indices (B,h,w), loss (). Raises ValueError if there is no codebook."""
        if not isinstance(self.bottleneck, VQBottleneck):
            raise ValueError("Autoencoder.quantize: a KL first stage has no codebook. Decode z as it is.")
        return self.bottleneck.quantizer.quantize(z)

    def decode(self, z: Tensor, quantize: bool = True) -> Tensor:
        """z (B,c,h,w) -> image (B,C,f*h,f*w). A VQ first stage quantises z first, unless told not to."""
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise ValueError(f"Autoencoder.decode: expected latents (B, {self.config.latent_channels}, h, w), "
                             f"got {tuple(z.shape)}.")
        if quantize:
            z = self.bottleneck.to_decoder(z)
        return self.decoder(self.post_quant_conv(z))

    @property
    def last_layer(self) -> nn.Parameter:
        """Where the adaptive weight measures gradients: the last weight of the decoder."""
        return self.decoder.conv_out.weight


def _block(in_channels: int, out_channels: int, config: AutoencoderConfig) -> ResBlock:
    return ResBlock(in_channels, out_channels, groups=config.groups, eps=EPS, dropout=config.dropout)
