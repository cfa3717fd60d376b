"""A training on disk: everything needed to go on bit by bit, in one file that appears whole."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import FileError, load_safetensors, read_sums, safetensors_bytes, sha256, write_file, write_sums

NAMES = "step-????????.safetensors"


def save_training_state(folder, step: int, state: dict) -> Path:
    """Write `folder/step-00001000.safetensors`, then delete all but the newest two. Returns its path.

    state: {part: state}, for example {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1000};
    a state is any nesting of dicts, lists and tuples of tensors, numbers, strings, booleans and None. The tensors are
    the file's, all else is JSON in its header, and `rng_state()` joins as the part "rng". Nothing is pickled.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # what a run left that was killed while it wrote
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()
    path, tensors = folder / f"step-{step:08}.safetensors", {}
    described = {part: _pack(value, tensors, part) for part, value in {**state, "rng": rng_state()}.items()}
    content = safetensors_bytes(tensors, {"step": str(step), "state": json.dumps(described)})
    # the list first: a file that it names and that is not whole yet is passed over
    kept = latest(folder, but=path)
    sums = {} if kept is None else {kept.name: sha256(kept)}
    write_sums(folder, {**sums, path.name: hashlib.sha256(content).hexdigest()})
    write_file(path, content)
    for old in folder.glob(NAMES):
        if old not in (path, kept):
            old.unlink()
    return path


def load_training_state(path) -> tuple[int, dict]:
    """(step, {part: state}) of one checkpoint, every tensor on the CPU, bit by bit as saved.

    Also sets the random number generators as they were. Raises FileError if the file is missing or damaged.
    """
    tensors = load_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            record = file.metadata()
        state = {part: _unpack(value, tensors) for part, value in json.loads(record["state"]).items()}
        step = int(record["step"])
        set_rng_state(state.pop("rng"))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise FileError(f"{path} holds no training state: {type(error).__name__} {error}.") from None
    return step, state


def latest(folder, but: Path | None = None, tell=None) -> Path | None:
    """The newest checkpoint of a folder, `but` one, whose content is as it was written; None if there is none.

    That is told by SHA256SUMS beside them; without that list, by each file's size and header. `tell` hears, in a line,
    of each that is passed over.
    """
    tell, listed = tell or (lambda line: None), {}
    try:
        listed = read_sums(folder)
    except FileError as error:
        tell(f"{error} Checkpoints are told by their headers instead.")
    for path in sorted(set(Path(folder).glob(NAMES)) - {but}, reverse=True):
        try:
            # opening it reads the header, and compares the size
            with safe_open(path, "pt"):
                intact = not listed or listed.get(path.name) == sha256(path)
        except (SafetensorError, OSError):
            intact = False
        if intact:
            return path
        tell(f"{path} is damaged and passed over.")
    return None


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
