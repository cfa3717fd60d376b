"""Perceptual distance: compare what a trained network sees in two images, not their pixels (LPIPS, LDM sec. 3.1).

Two networks can do the seeing. LPIPS proper needs VGG16 weights, a download of half a gigabyte; EfficientNet-Lite0
comes with this package. `PerceptualLoss` says which one ran, and never runs an untrained one.

Built in notebook 04.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from .files import data_path

VGG_FILE = "vgg16-397923af.pth"
VGG_REMEDY = ("LPIPS needs the lpips package, `pip install \"ldm_mini[course]\"`, and torchvision's VGG16 weights: put "
              f"{VGG_FILE} into the folder `checkpoints` of torch.hub.get_dir() (torchvision.models.vgg16("
              "weights='IMAGENET1K_V1') does that, a download of 528 MB); or use kind='efficientnet', whose weights "
              "are included.")

# EfficientNet-Lite0, one row per stage: kernel, stride, expansion, output channels, blocks, is its output a tap?
LITE0_STAGES = ((3, 1, 1, 16, 1, True), (3, 2, 6, 24, 2, True), (5, 2, 6, 40, 2, True), (3, 2, 6, 80, 3, False),
                (5, 1, 6, 112, 3, True), (5, 2, 6, 192, 4, False), (3, 1, 6, 320, 1, True))


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: at stride 2 the odd pixel goes to the bottom right."""

    def forward(self, x):
        """(B,C,H,W) -> (B,D,ceil(H/stride),ceil(W/stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]]
        (top, left) = (pad // 2 for pad in pads)
        return super().forward(F.pad(x, (left, pads[1] - left, top, pads[0] - top)))


class InvertedResidual(nn.Module):
    """Expand, filter each channel on its own, project; the sum is taken where shapes allow (MobileNetV2)."""

    def __init__(self, in_channels, out_channels, kernel, stride, expansion):
        super().__init__()
        wide = in_channels * expansion
        self.expand = SameConv(in_channels, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, out_channels, 1)

    def forward(self, x):
        """(B,C,H,W) -> (B,D,H/stride,W/stride)."""
        h = x if self.expand is None else F.relu6(self.expand(x))
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if x.shape == h.shape else h


class EfficientNetLite0(nn.Module):
    """Feature layers of EfficientNet-Lite0 (Tan & Le 2019; the Lite variant has ReLU6 and no squeeze-excitation).

    Batch norm is folded into the convolutions, so train() and eval() are the same function.
    """

    channels = tuple(stage[3] for stage in LITE0_STAGES if stage[5])

    def __init__(self):
        super().__init__()
        self.stem = SameConv(3, 32, 3, stride=2)
        self.blocks, self.taps, width = nn.ModuleList(), [], 32
        for kernel, stride, expansion, out_channels, repeats, is_tap in LITE0_STAGES:
            for i in range(repeats):
                self.blocks.append(InvertedResidual(width, out_channels, kernel, stride if i == 0 else 1, expansion))
                width = out_channels
            if is_tap:
                self.taps.append(len(self.blocks) - 1)

    def forward(self, x):
        """(B,3,H,W) in [-1,1] -> list of 5 maps, strides 2, 4, 8, 16, 32 and channels 16, 24, 40, 112, 320."""
        # the scaling it was trained with: (255 u - 127) / 128 of u = (x + 1) / 2 in [0, 1]
        h, features = F.relu6(self.stem((127.5 * x + 0.5) / 128)), []
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i in self.taps:
                features.append(h)
        return features


class VGG16(nn.Module):
    """Convolutions of VGG16 (Simonyan & Zisserman 2014) with the input scaling and the five taps of LPIPS v0.1."""

    channels = (64, 128, 256, 512, 512)
    repeats = (2, 2, 3, 3, 3)

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.stages, width = nn.ModuleList(), 3
        for channels, repeats in zip(self.channels, self.repeats):
            widths = [width] + [channels] * repeats
            self.stages.append(nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:])))
            width = channels

    def forward(self, x):
        """(B,3,H,W) in [-1,1] -> list of 5 maps (relu1_2, 2_2, 3_3, 4_3, 5_3), strides 1, 2, 4, 8, 16."""
        # v0.0 of LPIPS forgot this scaling
        h, features = (x - self.shift) / self.scale, []
        for stage in self.stages:
            h = F.max_pool2d(h, 2) if features else h
            for conv in stage:
                h = F.relu(conv(h))
            # a tap before each pooling, and at the end
            features.append(h)
        return features


def lpips_heads():
    """The calibrated LPIPS v0.1 weights, five tensors (C,), from the installed lpips package; None without it."""
    # find, not import: lpips itself imports all of torchvision
    spec = importlib.util.find_spec("lpips")
    if spec is None:
        return None
    path = Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth"
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return [weights[f"lin{i}.model.1.weight"].flatten() for i in range(5)]


def load_vgg16(path):
    """VGG16 with the convolutions of a torchvision state dict. Raises RuntimeError for the file of another network."""
    net, weights = VGG16(), torch.load(path, map_location="cpu", weights_only=True)
    # they are called features.0, features.2, ... there, and stand in our order
    convolutions = [value for name, value in weights.items() if name.startswith("features.")]
    net.stages.load_state_dict(dict(zip(net.stages.state_dict(), convolutions)))
    return net


def load_efficientnet():
    """EfficientNet-Lite0 with the ImageNet weights of `data/weights`, as float32."""
    net = EfficientNetLite0()
    weights = load_file(data_path("weights", "efficientnet_lite0.safetensors"))
    net.load_state_dict({name: value.float() for name, value in weights.items()})
    return net


class PerceptualLoss(nn.Module):
    """Distance of two images in the features of a frozen, trained network.

    kind: "lpips" (VGG16 with calibrated heads), "efficientnet" (included), or "auto": lpips where its weights already
    are on the machine, else efficientnet. `.kind` says which one it became. Nothing is ever downloaded.
    Raises FileNotFoundError for "lpips" without its weights.

    What "efficientnet" says of 64-pixel emoji scenes (published LPIPS figures are of the same order):
    5% brighter 0.006, noise 0.02 0.03, shift by a pixel 0.06, Gaussian blur of sigma 1 0.11, JPEG quality 20 0.20,
    noise 0.1 0.30, blur of sigma 2 0.30, another image 1.2. It hardly sees brightness: keep an L1 or L2 term beside it.
    """

    # EfficientNet was trained on photographs, which are never free of noise. On the flat colours of drawings it takes
    # noise of one grey level for a texture, about as bad as a blur (measured in notebook 04). The same faint noise
    # under both images hides such differences and leaves the others.
    DITHER = 0.05

    def __init__(self, kind: str = "auto"):
        super().__init__()
        if kind not in ("auto", "lpips", "efficientnet"):
            raise ValueError(f"kind must be 'auto', 'lpips' or 'efficientnet', got {kind!r}.")
        path, heads = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE, lpips_heads()
        found = path.is_file() and heads is not None
        if kind == "lpips" and not found:
            raise FileNotFoundError(VGG_REMEDY)
        if kind != "efficientnet" and found:
            self.kind, self.net = "lpips", load_vgg16(path)
        else:
            # nobody has fitted heads to this trunk: a mean of the five taps
            self.kind, self.net = "efficientnet", load_efficientnet()
            heads = [torch.full((channels,), 1 / 5) for channels in self.net.channels]
        for i, head in enumerate(heads):
            self.register_buffer(f"head{i}", head[:, None, None])
        noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        self.register_buffer("dither", self.DITHER * noise)
        self.requires_grad_(False).eval()

    def forward(self, x, y):
        """x, y (B,3,H,W) in [-1,1] -> (B,) distances, 0 for equal images. Differentiable in both."""
        if x.shape != y.shape:
            raise ValueError(f"shapes differ, {tuple(x.shape)} and {tuple(y.shape)}; compare image with image.")
        distance = 0
        for i, (a, b) in enumerate(zip(self.taps(x), self.taps(y))):
            # LPIPS (arXiv 1801.03924) eq. 1: compare directions over the channels, weigh them, average the positions
            difference = F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)        # (B,C,h,w)
            distance = distance + (getattr(self, f"head{i}") * difference.square()).sum(1).mean((1, 2))
        return distance

    def taps(self, x):
        """x (B,3,H,W) in [-1,1] -> list of 5 feature maps (B,C,h,w), fine to coarse. Raises ValueError for others."""
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 16 or not x.is_floating_point():
            raise ValueError("Expected float RGB images (B,3,H,W) in [-1,1], at least 16 pixels each way, got "
                             f"{x.dtype} {tuple(x.shape)}. Repeat a grey channel with x.expand(-1, 3, -1, -1).")
        if self.kind == "lpips":
            return self.net(x)
        # the same faint noise under every image
        height, width = x.shape[2:]
        dither = self.dither.repeat(1, 1, -(-height // 64), -(-width // 64))
        return self.net(x + dither[..., :height, :width])

    def features(self, x):
        """x (B,3,H,W) in [-1,1] -> (B,C) for Frechet distances: tap 3 (stride 16) averaged over positions."""
        # a few at a time: whole sets are compared
        return torch.cat([self.taps(part)[3].float().mean((2, 3)) for part in x.split(64)])
