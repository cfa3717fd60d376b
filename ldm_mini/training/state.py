"""A training on disk: everything needed to go on bit by bit, in a folder that appears whole."""

import random
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import FileError, _sync_folder, load_safetensors, read_json, save_safetensors, write_json

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
        except (FileError, OSError, KeyError, TypeError):
            return False

    return [p for p in sorted(folder.glob("step-????????"), reverse=True) if whole(p)]


def _discard(folder: Path) -> None:
    """Delete a checkpoint; hidden first, so that none is ever seen in part."""
    hidden = folder.with_name(f".{folder.name}.old.tmp")
    folder.rename(hidden)
    shutil.rmtree(hidden)
