"""Weights from other programs: read without running their code, and fitted to a module without a second copy.

A module is built on the meta device, where it costs nothing, and then takes over the tensors as they were read, which
are views of the file: memory holds the weights once, and only those that were looked at.
"""

import pickletools
import re
import zipfile
from itertools import product
from pathlib import Path
from pickle import UnpicklingError

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..files import FileError, read_json

SAFE_TORCH = (2, 10)                            # before it `weights_only` could be made to run code
INERT = ("pytorch_lightning.", "lightning.")    # whose objects in a checkpoint are passed over: nothing of them is run
KINDS = (                                       # (pattern of a name, what has such names)
    (r"lora_(up|down|A|B)\b|\.lora\.", "a LoRA, an addition to a model: load the model it was made for"),
    (r"^control_model\.|controlnet_", "a ControlNet, an addition to a model"),
    (r"^conditioner\.embedders\.", "Stable Diffusion XL, which has two text encoders and another U-Net"),
    (r"double_blocks\.|joint_blocks\.|add_q_proj", "a transformer for flow matching (Flux, Stable Diffusion 3)"),
    (r"^model\.diffusion_model\.", "a whole latent diffusion model with CompVis' names"),
    (r"^(down_blocks|mid_block)\.", "a U-Net with diffusers' names"),
    (r"^(encoder|first_stage_model\.encoder)\.(down|down_blocks)\.", "a first stage alone"),
    (r"^text_model\.", "a text encoder alone"),
)
DIFFUSERS_FILES = ("diffusion_pytorch_model", "model", "pytorch_model")


def on_meta(build, *args) -> nn.Module:
    """build(*args), but without weights."""
    with torch.device("meta"):
        return build(*args)


def fit(module: nn.Module, names: dict, tensors: dict[str, Tensor], constants: dict | None = None,
        dtype: torch.dtype | None = None) -> nn.Module:
    """Give a module from `on_meta` its weights, not copied unless they must change, and set it to evaluation.

    names: {key of the module: name in `tensors`}, or (name, function) for a part of that tensor. A 1x1 convolution fits
    where the module has a linear layer, and the other way round. constants: {key: tensor} of buffers that `tensors`
    has not. dtype: that of the weights; None as they come.
    Raises FileError, a ValueError, that lists every missing, unknown or ill-shaped name.
    """
    own, found, shapes = module.state_dict(), dict(constants or {}), []
    sources = {key: source if isinstance(source, tuple) else (source, None) for key, source in names.items()}
    for key, (name, part) in sources.items():
        if name in tensors:
            value = _shaped(tensors[name], part, own[key].shape)
            if value is None:
                wanted = "a multiple of " if part else ""
                shapes.append(f"{name}: {tuple(tensors[name].shape)} instead of {wanted}{tuple(own[key].shape)}")
            else:
                found[key] = value if dtype is None else value.to(dtype)
    # whoever has another model sees all that is wrong at once
    known = {name for name, _ in sources.values()}
    missing, unknown = sorted(known - set(tensors)), sorted(set(tensors) - known)
    if missing or unknown or shapes:
        raise FileError(f"the weights do not fit this {type(module).__name__}{seems(tensors)}.\n"
                        f"missing: {some(missing)}\nunknown: {some(unknown)}\n"
                        f"wrong shape: {some(list(dict.fromkeys(shapes)))}")
    if bad := sorted(key for key, value in found.items() if own[key].is_floating_point() and not (
            value.is_floating_point() and (value.is_meta or value.isfinite().all()))):
        raise FileError(f"of the weights for this {type(module).__name__}, these are whole numbers or not finite: "
                        f"{some(bad)}.")
    # the tensors themselves become the weights: no copy
    module.load_state_dict(found, assign=True)
    return module.eval()


def some(names: list, most: int = 8) -> str:
    """A list for a message, cut where it would fill the screen."""
    return f"{names[:most]}" + (f" and {len(names) - most} more" if len(names) > most else "")


def seems(tensors) -> str:
    """", it seems to be ...": what a file of weights is by the names in it, for a message; "" for none we know."""
    kind = next((kind for pattern, kind in KINDS if any(re.search(pattern, name) for name in tensors)), None)
    return f"; they seem to be {kind}" if kind else ""


def _shaped(value: Tensor, part, shape: torch.Size) -> Tensor | None:
    """The part of a tensor that is wanted, as `shape`, which may only add or drop trailing axes of length 1."""
    try:
        value = value if part is None else part(value)
    except (RuntimeError, IndexError):                          # it cannot be divided so
        return None
    short, long = sorted((tuple(value.shape), tuple(shape)), key=len)
    same = short == long[:len(short)] and set(long[len(short):]) <= {1}
    return value.reshape(shape) if same else None


def read_weights(path) -> dict[str, Tensor]:
    """The state dict in a file of weights (.safetensors, or a pickle: .ckpt, .pt, .bin), as CPU tensors, memory-mapped.

    Of a pickle only tensors and plain values are read; Lightning's objects are passed over.
    Raises FileError if the file is missing, damaged, or wants to run code.
    """
    path = Path(path)
    try:
        content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except UnpicklingError:
        foreign = sorted(name for name in _classes(path) if not name.startswith(("torch.", "collections.", *INERT)))
        raise FileError(f"{path} holds more than weights, and reading that could run foreign code: "
                        f"{', '.join(foreign) or 'of no name'}. Where you trust it, load it with torch.load(..., "
                        "weights_only=False) and save its state_dict as safetensors.") from None
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, FileError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileError(f"{path} is no file of weights, or a damaged one ({reason}). Fetch it again.") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        what = some([str(name) for name in content]) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise FileError(f"{path} holds no state_dict, names with tensors, but {what}.")
    return dict(content)


def _unpickle(path: Path):
    """What a pickle holds, without running any code of it."""
    if torch.__version__ < SAFE_TORCH:
        raise FileError(f"{path} is a pickle, and torch {torch.__version__} can be made to run code by one "
                        "(CVE-2026-24747): install torch 2.10 or newer, or fetch the weights as safetensors.")
    if (size := path.stat().st_size) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > 2 * size + 2**20:                         # torch stores its tensors as they are
            raise FileError(f"{path} of {size} bytes would unpack to {unpacked}: that is no file of weights.")
    zipped = zipfile.is_zipfile(path)
    with path.open("rb") as file:
        if not zipped and file.read(1) != b"\x80":              # how every pickle begins
            raise EOFError("no pickle begins like this")
    # objects of these classes are read as empty ones that do nothing
    names = [name.rpartition(".") for name in _classes(path) if name.startswith(INERT)]
    stand_ins = [type(name, (), {"__module__": module, "__init__": lambda *args, **options: None})
                 for module, _, name in names]
    torch.serialization.add_safe_globals(stand_ins)
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    finally:
        allowed = [one for one in torch.serialization.get_safe_globals() if one not in stand_ins]
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _classes(path) -> set[str]:
    """The names of all classes and functions that a zipped pickle refers to; nothing of it is executed."""
    if not zipfile.is_zipfile(path):                            # older files: torch looks through them alone
        return set()
    with zipfile.ZipFile(path) as archive:
        inside = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
        if inside is None:
            raise EOFError("a zip file without weights in it")
        code = archive.read(inside)
    return {argument.replace(" ", ".") for opcode, argument, _ in pickletools.genops(code) if opcode.name == "GLOBAL"}


def read_folder(folder) -> tuple[dict, dict[str, Tensor]]:
    """(config, {name: CPU tensor}) of one part as diffusers' `save_pretrained` writes it: whole, sharded or pickled."""
    folder = Path(folder)
    config = read_json(folder / "config.json")
    for stem, suffix, variant in product(DIFFUSERS_FILES, (".safetensors", ".bin"), ("", ".fp16", ".non_ema")):
        index = folder / f"{stem}{suffix}.index{variant}.json"
        if index.is_file():
            files = sorted(set(read_json(index)["weight_map"].values()))
            if foreign := [file for file in files if file != Path(file).name]:
                raise FileError(f"{index} names files outside of its folder: {some(foreign)}.")
            return config, {name: v for file in files for name, v in read_weights(folder / file).items()}
        if (folder / f"{stem}{variant}{suffix}").is_file():
            return config, read_weights(folder / f"{stem}{variant}{suffix}")
    raise FileError(f"{folder} has a config.json but no {DIFFUSERS_FILES[0]}.safetensors or the like.")
