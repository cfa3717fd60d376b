"""Imports go strictly down: every module of the package imports only modules of the rows above its own.

Within the five layers of the design some modules lean on others; such a layer is written as several rows. What a row
may use is thus all that stands above it, and never a neighbour. Imports inside functions count like all others.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ldm_mini"
ROWS = {
    # 0: one idea each
    "0a": "files vocabulary draws pictures",
    "0b": "schedule diffusion cond blocks attention quantizer kl perceptual discriminator metrics plotting checkpoint "
          "ema sprites captions backgrounds masks distortions",
    "0c": "layout",
    "0d": "scenes collage scoring",
    # 1: networks, samplers and data, made of layer 0
    "1": "autoencoder unet dit text samplers data latents recogniser",
    # 2: compositions; `hub` is where configs name classes, so that latent_diffusion itself names no network
    "2x": "conditioning",
    "2y": "concat_conditioners layout_conditioner language",
    "2a": "conditioners video presets fitting",
    "2r": "released",
    "2b": "hub",
    "2c": "latent_diffusion tasks measures",
    # 3: loops, measurements, weights from outside, checks for exercises
    "3a": "warm_start train runs compvis diffusers_unet checking n07_mistakes",
    "3w": "diffusers_io compvis_models",
    "3e": "pipelines",
    "3p": "pretrained",
    "3n": "n00_start n01_data n02_attention n03_vq_vae n03_codebook n04_perceptual_loss n05_vqgan n06_diffusion "
          "n07_unet n08_samplers n09_latent_diffusion n10_meaning n11_pictures n12_layouts n13_where n14_dit n15_video "
          "n16_real_thing n17_clinic",
    "3o": "checks",  # 3n, 3o: one file per notebook, and their collection
    "3b": "recipes",
    "3c": "launch evaluate bench curves info",
    "3d": "showcase playground",
    # 4: the command line and the table of contents
    "4": "__init__ __main__",
}
RANK = {module: rank for rank, row in enumerate(ROWS.values()) for module in row.split()}
BY_CALL = ("import_module", "__import__")
FILES = {path.parent.name if path.stem == "__init__" and path.parent != PACKAGE else path.stem: path
         for path in PACKAGE.rglob("*.py")}
MODULES = sorted(FILES)


def imports(source: str, module: str = "?") -> set[str]:
    """The modules of ldm_mini that a source text imports, anywhere in it, by statement or by `import_module`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "ldm_mini" if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in BY_CALL:
            names = [str(argument.value).lstrip(".") for argument in node.args if isinstance(argument, ast.Constant)]
            names = [name if name.startswith("ldm_mini") else f"ldm_mini.{name}" for name in names if name]
        for name in names:
            first, *rest = name.split(".")
            if first == "ldm_mini":
                known = [part for part in rest if part in RANK.keys() | set(MODULES)]
                found.update(known or ["__init__"])
    return found - {module}


def upward(module: str, source: str) -> list[str]:
    """What a module imports and may not."""
    return sorted(name for name in imports(source, module) if RANK.get(name, 99) >= RANK[module])


def test_every_file_has_its_place():
    unknown = [module for module in MODULES if module not in RANK]
    assert not unknown, f"add {unknown} to ROWS in tests/test_layers.py: each to the first row below all it imports"


@pytest.mark.parametrize("module", [module for module in MODULES if module in RANK])
def test_imports_go_strictly_down(module):
    source = FILES[module].read_text(encoding="utf-8")
    bad = upward(module, source)
    row = next(name for name, row in ROWS.items() if module in row.split())
    assert not bad, f"{module} (row {row}) imports {bad}, which stand in its own row or below: move the code or the row"


@pytest.mark.parametrize("source, expected", [
    ("from .unet import UNet", {"unet"}), ("from ldm_mini.unet import UNet", {"unet"}),
    ("import ldm_mini.unet as u", {"unet"}), ("from . import unet, hub", {"unet", "hub"}),
    ("from ldm_mini import train", {"train"}), ("import ldm_mini", {"__init__"}),
    ("def f():\n    if True:\n        from .train import Log", {"train"}),
    ("from ldm_mini import __version__", {"__init__"}), ("import torch\nfrom math import pi", set()),
    ("import importlib\nimportlib.import_module('ldm_mini.train')", {"train"}),
    ("from importlib import import_module\nimport_module('.hub', __package__)", {"hub"})])
def test_the_test_sees_every_way_to_import(source, expected):
    found = imports(source)
    assert expected <= found and found - expected <= {"__init__"}


def test_the_test_can_fail():
    assert upward("schedule", "from .train import Log") == ["train"]
    assert upward("conditioners", "from .latent_diffusion import x\nfrom .text import y") == ["latent_diffusion"]
    assert upward("unet", "from .dit import DiT") == ["dit"], "the same row is not above"
    assert upward("train", "from .ema import EMA") == [] and upward("cond", "import ldm_mini") == ["__init__"]


def test_importing_the_package_is_light():
    """`import ldm_mini` costs a learner no more than it must."""
    heavy = {"transformers", "lpips", "matplotlib", "torchvision", "diffusers", "huggingface_hub", "accelerate"}
    code = f"import sys, ldm_mini; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.strip() == "[]", done.stdout
