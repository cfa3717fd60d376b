"""Weights and training states on disk: safetensors and JSON, nothing that runs code when read.

Every file is written beside its place and then renamed, every training state is a folder that appears whole: a crash,
kill -9 included, leaves what was there before. What is read back has the very bits that were written.
"""

import json
import os
import random
import re
import shutil
import uuid
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

SHARD_BYTES = 16 * 2**20
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or made for another model; the message says which and what to do."""


# ---------------------------------------------------------------------------------------------------------- one file


def write_file(path, content: bytes) -> None:
    """Write a file atomically: after a crash, `path` holds either its old content or all of the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_json(path, value) -> None:
    """Write a value as JSON, atomically."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path):
    """The value in a JSON file; CheckpointError if it is missing or no JSON."""
    try:
        return json.loads(_read(path).decode())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged, it holds no JSON: {error}. Fetch or write it again.") from None


def save_safetensors(path, tensors: dict, metadata: dict | None = None) -> None:
    """Write {name: tensor} atomically. Metadata is {str: str}. Tensors may be on any device and may share memory."""
    copies = {name: v.detach().to("cpu", copy=True).contiguous() for name, v in tensors.items()}
    write_file(path, safetensors.torch.save(copies, metadata={"format": "pt", **(metadata or {})}))


def load_safetensors(path, expected=None) -> dict:
    """{name: CPU tensor} of a file. `expected` names, if given, must be exactly those of the file.

    Raises CheckpointError if the file is missing, truncated or damaged, or lists the names that are missing or unknown.
    """
    try:
        tensors = safetensors.torch.load(_read(path))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}). Fetch or write it again.") from None
    if expected is not None:
        check_names(path, tensors, expected)
    return tensors


def check_names(path, found, expected) -> None:
    """CheckpointError, listing names, unless `found` and `expected` hold the same ones."""
    lists = {"missing": sorted(set(expected) - set(found)), "unknown": sorted(set(found) - set(expected))}
    if any(lists.values()):
        said = "; ".join(f"{len(names)} {kind}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
                         for kind, names in lists.items() if names)
        raise CheckpointError(f"{path} was made for another model: {said}.")


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


# ----------------------------------------------------------------------------------------------------- training state


def save_training_state(folder, step: int, state: dict, keep: int = 2) -> Path:
    """Write the folder `folder/step-00001000` whole, then delete all but the newest `keep`. Returns its path.

    state: {part: state}, for example {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ...};
    a state is any nesting of dicts, lists and tuples of tensors, numbers, strings, booleans and None. Each part's
    tensors go to `<part>.safetensors`, all else to `state.json`, and `rng_state()` joins as the part "rng".
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step-*.tmp"):  # of a run that was killed while it wrote
        shutil.rmtree(leftover)
    final = folder / f"step-{step:08}"
    temporary = folder / f".{final.name}.tmp"
    temporary.mkdir()
    described, sizes = {}, {}
    for part, value in {**state, "rng": rng_state()}.items():
        tensors = {}
        described[part] = _pack(value, tensors, part)
        save_safetensors(temporary / f"{part}.safetensors", tensors)
        sizes[f"{part}.safetensors"] = (temporary / f"{part}.safetensors").stat().st_size
    write_json(temporary / "state.json", {"step": step, "files": sizes, "state": described})
    if final.exists():  # the same step again: a folder cannot replace a full one
        _discard(final)
    temporary.rename(final)
    _sync_folder(folder)
    for old in _complete(folder)[keep:]:
        _discard(old)
    return final


def load_training_state(path, restore_rng: bool = True) -> tuple[int, dict]:
    """(step, {part: state}) of one checkpoint folder, every tensor on the CPU, bit by bit as saved.

    Also sets the random number generators as they were, unless restore_rng is False (then state["rng"] has them still).
    """
    path = Path(path)
    record = read_json(path / "state.json")
    state = {part: _unpack(value, load_safetensors(path / f"{part}.safetensors"))
             for part, value in record["state"].items()}
    if restore_rng:
        set_rng_state(state.pop("rng"))
    return record["step"], state


def latest(folder) -> Path | None:
    """The newest complete checkpoint of a run's folder, or None; incomplete ones are passed over."""
    return next(iter(_complete(Path(folder))), None)


def rng_state() -> dict:
    """State of the random numbers of Python, NumPy, torch and every CUDA device, as tensors, numbers and strings."""
    kind, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_rng_state(state: dict) -> None:
    """Continue the random numbers from `rng_state()`. CUDA states are set on the devices that are here."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for device, value in list(enumerate(state["cuda"]))[: torch.cuda.device_count()]:
        torch.cuda.set_rng_state(value, device)


# ------------------------------------------------------------------------------------------------------------ helpers


def _pack(value, tensors: dict, name: str):
    """JSON for any nesting; tensors are put into `tensors` and leave their name. Integer keys and tuples survive."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors, name), _pack(v, tensors, f"{name}.{k}")] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(v, tensors, f"{name}.{i}") for i, v in enumerate(value)]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"{name} is a {type(value).__name__}: a training state holds tensors, numbers, strings, booleans, "
                     "None, and dicts, lists and tuples of them.")


def _unpack(value, tensors: dict):
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in content}
    return {"list": list, "tuple": tuple}[kind](_unpack(v, tensors) for v in content)


def _complete(folder: Path) -> list[Path]:
    """Checkpoint folders that have every file at its full size, newest first."""

    def whole(path: Path) -> bool:
        try:
            files = read_json(path / "state.json")["files"]
            return all((path / name).stat().st_size == size for name, size in files.items())
        except (CheckpointError, OSError, KeyError, TypeError):
            return False

    return [p for p in sorted(folder.glob("step-????????"), reverse=True) if whole(p)]


def _discard(folder: Path) -> None:
    """Delete a checkpoint; hidden first, so that none is ever seen in part."""
    hidden = folder.with_name(f".{folder.name}.old.tmp")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _read(path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None


def _half(name: str, v: Tensor) -> Tensor:
    small = v.detach().half() if v.is_floating_point() else v
    if not torch.equal(small.isfinite(), v.isfinite()):
        raise CheckpointError(f"{name} has values beyond float16's 65504: save it without half precision.")
    return small


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can (POSIX)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
