"""Models in folders, as Hugging Face keeps them: `config.json` says what to build, `model.safetensors` has the weights.

This is the one place that knows which classes a config names. A part of a class from elsewhere is named only: its
weights are saved all the same, and who loads them passes the part.
"""

import dataclasses
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from . import conditioners
from .autoencoder import Autoencoder
from .dit import DiT, DiTConfig
from .files import (
    CheckpointError,
    check_names,
    checksums,
    data_path,
    load_safetensors,
    read_json,
    save_safetensors,
    write_json,
)
from .unet import UNet, UNetConfig

SHARD_BYTES = 16 * 2**20
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


# ------------------------------------------------------------------------------------------------- weights of a model


def save_weights(folder, tensors: dict, half=(), shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write {name: tensor} into a folder as Hugging Face does; returns the names of the files.

    One `model.safetensors` if it stays within `shard_bytes`, else shards of at most that size (a larger single tensor
    gets a shard of its own) and `model.safetensors.index.json`. The tensors named in `half` are stored as float16.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: _half(name, v) if name in half else v for name, v in tensors.items()}
    shards = [{}]
    filled = 0
    for name, v in tensors.items():
        size = v.numel() * v.element_size() + len(name.encode()) + 160  # and its line in the header, at most
        if filled + size > shard_bytes - 256 and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = v
        filled += size
    many = len(shards) > 1
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)] if many else [WEIGHTS]
    for file, shard in zip(files, shards, strict=True):
        save_safetensors(folder / file, shard)
    if many:
        total = sum(v.numel() * v.element_size() for v in tensors.values())
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        files.append(INDEX)
    for old in folder.glob("model*.safetensors*"):  # of an earlier save with another number of shards
        if old.name not in files and re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?", old.name):
            old.unlink()
    return files


def load_weights(folder, expected=None) -> dict:
    """{name: CPU tensor} of a folder that `save_weights`, or any Hugging Face library, wrote. Errors: CheckpointError.

    `expected`, if given, is a {name: tensor} whose names and shapes it must have, such as a module's state_dict().
    """
    folder = Path(folder)
    where = folder / INDEX
    if where.is_file():
        tensors = {}
        weight_map = read_json(where)["weight_map"]
        for file in sorted(set(weight_map.values())):
            tensors |= load_safetensors(folder / file, [n for n, f in weight_map.items() if f == file])
    else:
        where = folder / WEIGHTS
        tensors = load_safetensors(where)
    if expected is not None:
        check_names(where, tensors, expected)
        wrong = [f"{name} {tuple(tensors[name].shape)} instead of {tuple(v.shape)}"
                 for name, v in expected.items() if tensors[name].shape != v.shape]
        if wrong:
            raise CheckpointError(f"{where} has other shapes than this model: {'; '.join(wrong[:8])}.")
        tensors = {name: tensors[name] for name in expected}
    return tensors


def _half(name: str, v: Tensor) -> Tensor:
    small = v.detach().half() if v.is_floating_point() else v
    if not torch.equal(small.isfinite(), v.isfinite()):
        raise CheckpointError(f"{name} has values beyond float16's 65504: save it without half precision.")
    return small


CONFIG = "config.json"
NETS = {"UNet": (UNet, UNetConfig), "DiT": (DiT, DiTConfig)}


def save(folder, kind: str, module: nn.Module, config: dict, half=False, shard_bytes=SHARD_BYTES) -> Path:
    """Write a module's weights and its config. half: parameters as float16; buffers stay as they are."""
    folder = Path(folder)
    save_weights(folder, module.state_dict(), dict(module.named_parameters()) if half else (), shard_bytes)
    write_json(folder / CONFIG, {"format": f"ldm_mini.{kind}", **config})
    return folder


def read_config(folder, kind: str) -> dict:
    """The config of a folder that `save` wrote for this kind of model. Raises CheckpointError for any other."""
    config = read_json(Path(folder) / CONFIG)
    if not isinstance(config, dict) or config.get("format") != f"ldm_mini.{kind}":
        found = config.get("format", "no format of ldm_mini") if isinstance(config, dict) else "no config"
        raise CheckpointError(f"{Path(folder) / CONFIG} describes no ldm_mini.{kind}: it says {found}.")
    return config


def find(name_or_folder) -> Path:
    """The local folder of a model: a folder; else a bare name, which means shipped weights in `data/weights/`, checked
    by hash; else "owner/name" on the Hugging Face Hub, downloaded once. Raises CheckpointError with what was tried."""
    folder, name = Path(name_or_folder), str(name_or_folder)
    if folder.is_dir():
        return folder
    if (f"weights/{name}/{CONFIG}") in checksums():
        config = data_path("weights", name, CONFIG)
        for file in (f for f in checksums() if f.startswith(f"weights/{name}/")):
            data_path(*file.split("/"))
        return config.parent
    if name.count("/") != 1 or name.startswith((".", "/")) or name.endswith("/"):
        shipped = sorted(f.split("/")[1] for f in checksums() if f.startswith("weights/") and f.endswith(f"/{CONFIG}"))
        raise CheckpointError(f"there is no folder {name!r}, nor such shipped weights; shipped are {shipped}. "
                              "A model on the Hugging Face Hub is named owner/name.")
    from huggingface_hub import snapshot_download  # slow to import, hence only here

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # offline, not found, no access: its many classes differ between versions
        raise CheckpointError(f"there is no folder {name!r}, and it could not be had from the Hugging Face Hub "
                              f"({type(error).__name__}: {error}). Is there a network? Is the name right?") from error


def describe_autoencoder(autoencoder) -> dict | None:
    """JSON that `build_autoencoder` turns back into this first stage; only its class name if it is of another."""
    return autoencoder.to_config() if type(autoencoder) is Autoencoder else _foreign(autoencoder)


def build_autoencoder(described: dict | None) -> Autoencoder | None:
    """A first stage with fresh weights; None for None, diffusion on pixels."""
    _refuse_foreign(described, "autoencoder")
    return None if described is None else Autoencoder.from_config(described)


def describe_net(net: nn.Module) -> dict:
    """JSON that `build_net` turns back into this network; only its class name if it is of another class."""
    name = next((name for name, (kind, _) in NETS.items() if type(net) is kind), None)
    return _foreign(net) if name is None else {"kind": name, "config": dataclasses.asdict(net.config)}


def build_net(described: dict) -> nn.Module:
    """A network with fresh weights."""
    _refuse_foreign(described, "net")
    if described["kind"] not in NETS:
        raise CheckpointError(f"the network is a {described['kind']}, this version knows {list(NETS)}: pass net=.")
    kind, config = NETS[described["kind"]]
    return kind(config(**described["config"]))


def describe_conditioner(conditioner) -> dict | None:
    """JSON that `build_conditioner` turns back into this conditioner; its class name alone if it has no to_config."""
    try:
        return None if conditioner is None else conditioner.to_config()
    except (NotImplementedError, AttributeError):
        return _foreign(conditioner)


def build_conditioner(described: dict | None):
    """A conditioner with fresh weights; None for None, an unconditional model."""
    _refuse_foreign(described, "conditioner")
    from .released import conditioners as released  # a wing of its own, that imports this file

    try:
        if described is not None and described.get("kind") in released.KINDS:
            arguments = {name: value for name, value in described.items() if name != "kind"}
            return released.KINDS[described["kind"]](**arguments)
        return None if described is None else conditioners.build_conditioner(described)
    except ValueError as error:
        raise CheckpointError(f"the conditioner of this checkpoint could not be built: {error} If it is of your own "
                              "class, pass conditioner=.") from error


def save_autoencoder(folder, autoencoder, half=False, card: dict | None = None, shard_bytes=SHARD_BYTES) -> Path:
    """A first stage alone, in a folder of its own."""
    config = {"autoencoder": describe_autoencoder(autoencoder), "card": card or {}}
    return save(folder, "Autoencoder", autoencoder, config, half, shard_bytes)


def load_autoencoder(name_or_folder, autoencoder=None, device=None) -> nn.Module:
    """A saved first stage, in evaluation mode. autoencoder: one of your own class, to be given its weights."""
    folder = find(name_or_folder)
    if autoencoder is None:
        autoencoder = build_autoencoder(read_config(folder, "Autoencoder")["autoencoder"])
    autoencoder.load_state_dict(load_weights(folder, autoencoder.state_dict()))
    return autoencoder.eval().to(device)


def _foreign(part) -> dict | None:
    return None if part is None else {"class": type(part).__name__}


def _refuse_foreign(described: dict | None, argument: str) -> None:
    if described is not None and "class" in described:
        raise CheckpointError(f"this checkpoint has a {described['class']}, which is no class of ldm_mini: build it as "
                              f"it was and pass {argument}=.")
