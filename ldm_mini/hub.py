"""Models in folders, as Hugging Face keeps them: `config.json` says what to build, `model.safetensors` has the weights.

A part (a network, a config) keeps its constructor's arguments under their own names. That is all this file needs to
describe the part as JSON, and to build it again:

    {"class": "conditioners.TextConditioner", "text_transformer": {"class": "text.TextTransformer", "width": 128, ...}}

An argument that is neither JSON nor a part, such as a tokenizer, is left out if it has a default, which is built then.
Where an attribute has to be something else, the part has a dict `arguments` of what is to be written instead.
"""

from dataclasses import is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path

from torch import Tensor, equal, nn

from .files import FileError, checksums, data_path, load_safetensors, read_json, save_safetensors, write_json

JSON = (bool, int, float, str, list, tuple, dict, type(None))
SHARD_BYTES = 16 * 2**20
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def describe(part):
    """JSON that `build` turns back into this part. A part of a class from elsewhere is named only, as "foreign"."""
    if isinstance(part, (list, tuple, nn.ModuleList)):
        return [describe(item) for item in part]
    if isinstance(part, (*JSON, Tensor)):
        return part.tolist() if isinstance(part, Tensor) else part
    # a class by its place in ldm_mini, and each argument of its constructor
    kind = type(part)
    if not _is_ours(kind):
        return {"foreign": kind.__name__}
    described = {"class": f"{kind.__module__}.{kind.__name__}".removeprefix(f"{__package__}.")}
    for name, argument in signature(kind).parameters.items():
        value = part.arguments[name] if name in getattr(part, "arguments", ()) else getattr(part, name)
        if isinstance(value, (*JSON, Tensor, nn.Module)) or is_dataclass(value) or argument.default is argument.empty:
            described[name] = describe(value)
    return described


def build(described, *place: str):
    """The part that was described, with fresh weights. Lists come as tuples; what is built already stays as it is.

    Raises FileError, which begins with the place (a file, then keys): for a name that is no network or dataclass of
    ldm_mini, so that a config runs no other code, and for missing, unknown or wrong arguments.
    """
    if isinstance(described, (list, tuple)):
        return tuple(build(item, *place, str(i)) for i, item in enumerate(described))
    if not isinstance(described, dict):
        return described
    # the class that is named; a dict that names none is a plain argument
    name = described.get("class", described.get("foreign"))
    kind = dict if name is None else _find_class(str(name))
    if kind is None:
        raise FileError(f"{', '.join(place)}: a {name} is no part of ldm_mini. Build it as it was, and pass it to what "
                        "loads this as net=, autoencoder= or conditioner=.")
    # from the inside out: arguments that are parts themselves first
    arguments = {key: build(value, *place, key) for key, value in described.items() if key != "class"}
    try:
        return kind(**arguments)
    except (FileError, ImportError):                            # which say themselves what is missing
        raise
    except Exception as error:                                  # a wrong value can fail anywhere in a constructor
        raise FileError(f"{', '.join(place)}: no {name} can be built of this: {error}") from error


def _find_class(name: str) -> type | None:
    """The class with a name such as "unet.UNet", if `build` may make one."""
    file, _, kind = name.rpartition(".")
    try:
        found = getattr(import_module(f"{__package__}.{file}"), kind)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if _is_ours(found) and found.__module__ == f"{__package__}.{file}" else None


def _is_ours(kind) -> bool:
    return (isinstance(kind, type) and kind.__module__.startswith(f"{__package__}.")
            and (issubclass(kind, nn.Module) or is_dataclass(kind)))


def save(folder, model: nn.Module, half=False, card: dict | None = None, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a model. half: parameters as float16; buffers stay as they are. card: JSON that stays with the weights."""
    folder = Path(folder)
    save_weights(folder, model.state_dict(), dict(model.named_parameters()) if half else (), shard_bytes)
    write_json(folder / CONFIG, {**describe(model), "card": card or {}})
    return folder


def load(name_or_folder, kind: str, device=None, **parts) -> nn.Module:
    """A saved model of the class `kind`, in evaluation mode; `find` says what names mean. Raises FileError.

    parts: of your own classes, which no config describes, to be given their weights; None = as described.
    """
    folder = find(name_or_folder)
    described = read_config(folder, kind) | {name: part for name, part in parts.items() if part is not None}
    described.pop("card", None)
    model = build(described, str(folder / CONFIG))
    try:
        model.load_state_dict(load_weights(folder))
    except RuntimeError as error:
        raise FileError(f"the weights in {folder} were made for another model. {error!s:.2000}") from None
    return model.eval().to(device)


def load_autoencoder(name_or_folder, device=None) -> nn.Module:
    """A first stage that was saved alone."""
    return load(name_or_folder, "Autoencoder", device)


def read_config(folder, kind: str) -> dict:
    """The config of a folder that `save` wrote for a model of this class. Raises FileError for any other."""
    config = read_json(Path(folder) / CONFIG)
    name = str(config.get("class", config.get("foreign")) if isinstance(config, dict) else None)
    if name.rpartition(".")[2] != kind:
        raise FileError(f"{Path(folder) / CONFIG} describes no {kind} of ldm_mini: its class is {name}.")
    return config


def find(name_or_folder) -> Path:
    """The local folder of a model: a folder; else a bare name, which means shipped weights in `data/weights/`, checked
    by hash; else "owner/name" on the Hugging Face Hub, downloaded once. Raises FileError with what was tried."""
    folder, name = Path(name_or_folder), str(name_or_folder)
    if folder.is_dir():
        return folder
    shipped = sorted(file.split("/")[1] for file in checksums() if file.endswith(f"/{CONFIG}"))
    if name in shipped:
        return [data_path(*file.split("/")) for file in checksums() if file.startswith(f"weights/{name}/")][0].parent
    if name.count("/") != 1 or name.startswith((".", "/")) or name.endswith("/"):
        raise FileError(f"there is no folder {name!r}, nor such shipped weights; shipped are {shipped}. "
                        "A model on the Hugging Face Hub is named owner/name.")
    from huggingface_hub import snapshot_download  # slow to import, hence only here

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:                                  # offline, not found, no access: many classes
        raise FileError(f"there is no folder {name!r}, and it could not be had from the Hugging Face Hub "
                        f"({type(error).__name__}: {error}). Is there a network? Is the name right?") from error


def save_weights(folder, tensors: dict, half=(), shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write {name: tensor} into a folder as Hugging Face does; returns the names of the files.

    One `model.safetensors` if it stays within `shard_bytes`, else shards of at most that size (a larger single tensor
    gets a shard of its own) and `model.safetensors.index.json`. The tensors named in `half` are stored as float16.
    """
    folder, shards, filled = Path(folder), [{}], 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, v in tensors.items():
        if name in half and v.is_floating_point():
            if not equal(v.half().isfinite(), v.isfinite()):
                raise ValueError(f"{name} has values beyond float16's 65504: save it without half precision.")
            v = v.half()
        size = v.nbytes + len(name.encode()) + 160              # and its line in the header, at most
        if shards[-1] and filled + size > shard_bytes - 256:
            shards, filled = [*shards, {}], 0
        shards[-1][name] = v
        filled += size
    numbers = [f"-{i:05}-of-{len(shards):05}" for i in range(1, len(shards) + 1)] if shards[1:] else [""]
    files = {f"model{number}.safetensors": shard for number, shard in zip(numbers, shards, strict=True)}
    for file, shard in files.items():
        save_safetensors(folder / file, shard)
    names = list(files)
    if len(files) > 1:
        weight_map = {name: file for file, shard in files.items() for name in shard}
        total = sum(v.nbytes for shard in shards for v in shard.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        names.append(INDEX)
    # of an earlier save with another number of shards
    for old in {WEIGHTS, INDEX, *(path.name for path in folder.glob("model-?????-of-?????.safetensors"))} - {*names}:
        (folder / old).unlink(missing_ok=True)
    return names


def load_weights(folder) -> dict:
    """{name: CPU tensor} of a folder that `save_weights`, or any Hugging Face library, wrote. Errors: FileError."""
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        return load_safetensors(folder / WEIGHTS)
    files = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    return {name: v for file in files for name, v in load_safetensors(folder / file).items()}
