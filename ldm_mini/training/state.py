"""A training on disk: everything needed to go on bit by bit, in one file that appears whole."""

import contextlib
import json
import random
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import load_safetensors, save_safetensors


def save_training_state(folder, step: int, state: dict) -> Path:
    """Write `folder/step-00001000.safetensors`, then delete all but the newest two. Returns its path.

    state: {part: state}, for example {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1000};
    a state is any nesting of dicts, lists and tuples of tensors, numbers, strings, booleans and None. The tensors are
    the file's, all else is JSON in its header, and `rng_state()` joins as the part "rng". Nothing is pickled.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # what a run left that was killed while it wrote
    for leftover in folder.glob(".step-*.tmp"):
        leftover.unlink()
    path, tensors = folder / f"step-{step:08}.safetensors", {}
    described = {part: _pack(value, tensors, part) for part, value in {**state, "rng": rng_state()}.items()}
    save_safetensors(path, tensors, {"step": str(step), "state": json.dumps(described)})
    for old in _complete(folder)[2:]:
        old.unlink()
    return path


def load_training_state(path) -> tuple[int, dict]:
    """(step, {part: state}) of one checkpoint, every tensor on the CPU, bit by bit as saved.

    Also sets the random number generators as they were. Raises FileError if the file is missing or damaged.
    """
    tensors = load_safetensors(path)
    with safe_open(path, "pt") as file:
        record = file.metadata()
    state = {part: _unpack(value, tensors) for part, value in json.loads(record["state"]).items()}
    set_rng_state(state.pop("rng"))
    return int(record["step"]), state


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
    return value


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
    """The checkpoints that can be read, newest first. One that was copied in part is not among them."""
    found = []
    for path in sorted(folder.glob("step-????????.safetensors"), reverse=True):
        # opening it reads the header, and compares the size
        with contextlib.suppress(SafetensorError, OSError), safe_open(path, "pt"):
            found.append(path)
    return found
