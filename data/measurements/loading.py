"""How much memory it takes to load Stable Diffusion v1 in half precision.

Run `python data/measurements/loading.py [folder]`.
Writes a folder of its exact shape with random weights (2.1 GB, deleted afterwards; or give a real one), loads it in a
process of its own, and prints the peak of that process' resident memory. No test: it takes about a minute.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import tyro
from tyro.conf import Positional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from ldm_mini.released import autoencoder_preset, on_meta, unet_preset  # noqa: E402
from ldm_mini.released.compvis_model import VIT_L14  # noqa: E402
from ldm_mini.released.conditioners import ClipText  # noqa: E402
from ldm_mini.released.diffusers_parts import diffusers_form  # noqa: E402

LOAD = """
import resource, sys, time
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
import torch
import transformers.models.clip.modeling_clip
from ldm_mini.released import from_diffusers
before, start = peak(), time.monotonic()
ldm = from_diffusers(sys.argv[1])
loaded, seconds = peak(), time.monotonic() - start
size = sum(p.numel() * p.element_size() for p in ldm.parameters()) / 2**30
total = sum(p.detach().float().mean().item() for p in ldm.parameters())      # reads every weight: all are resident now
print(f"{sum(p.numel() for p in ldm.parameters()):,} parameters, {next(ldm.net.parameters()).dtype}: {size:.2f} GiB of "
      f"weights. Peak: {before:.2f} GiB after the imports, {loaded:.2f} after loading ({seconds:.1f} s), {peak():.2f} "
      "after every weight was read.")
"""


def write(path: Path, config: dict, state: dict) -> None:
    """A safetensors file of random float16 values, one tensor in memory at a time, and its config."""
    path.parent.mkdir(parents=True)
    (path.parent / "config.json").write_text(json.dumps(config))
    header, start = {}, 0
    for name, value in state.items():
        header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [start, start + 2 * value.numel()]}
        start += 2 * value.numel()
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in state.values():
            file.write((0.02 * torch.randn(value.shape)).half().numpy().tobytes())


def make(folder: Path) -> None:
    """A pipeline of Stable Diffusion v1's shape."""
    weights = "diffusion_pytorch_model.safetensors"
    write(folder / "unet" / weights, *diffusers_form(on_meta(unet_preset, "sd-v1"), 64))
    write(folder / "vae" / weights, *diffusers_form(on_meta(autoencoder_preset, "kl-f8"), 512, 0.18215))
    write(folder / "text_encoder" / "model.safetensors", VIT_L14, on_meta(ClipText, VIT_L14).model.state_dict())
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)))
    (folder / "model_index.json").write_text(json.dumps(dict(
        unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"],
        text_encoder=["transformers", "CLIPTextModel"])))


def main(given: Positional[Path | None] = None) -> None:
    """Load it, and tell what that took.

    Args:
        given: a folder as diffusers writes it; unless given, one is made and deleted again.
    """
    folder = given or Path(tempfile.mkdtemp())
    try:
        if given is None:
            make(folder)
        subprocess.run([sys.executable, "-c", LOAD, str(folder)], check=True, cwd=Path(__file__).resolve().parents[2])
    finally:
        if given is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    tyro.cli(main)
