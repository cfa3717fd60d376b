"""Every file that is read or written: found in `data/` and checked by hash, or written whole."""

import hashlib
import json
import os
import uuid
from functools import lru_cache
from pathlib import Path

import safetensors.torch

REMEDY = "Restore it with `git checkout -- data` in a clone, or reinstall ldm_mini."


class FileError(ValueError):
    """A file is missing, damaged, or made for another model; the message names it and says what to do."""


@lru_cache(maxsize=1)
def data_dir() -> Path:
    """The folder of sprites, tokenizer and weights: inside an installed package, else `data/` of the clone."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_data", package.parent / "data"):
        if (folder / "SHA256SUMS").is_file():
            return folder
    raise FileError(f"ldm_mini's data folder was not found beside {package}. {REMEDY}")


@lru_cache(maxsize=1)
def checksums() -> dict:
    """{relative name: sha256 hex digest} as listed in `data/SHA256SUMS`."""
    lines = (data_dir() / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines if line.strip())}


def sha256(path) -> str:
    """Hex digest of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@lru_cache(maxsize=None)
def data_path(*parts: str) -> Path:
    """Path of one file of `data/`, e.g. `data_path("sprites", "noto.png")`.

    Raises FileError if the file is missing, is not listed in `data/SHA256SUMS`, or has changed since it was.
    """
    name, path = "/".join(parts), data_dir().joinpath(*parts)
    if name not in checksums():
        raise FileError(f"data/{name} is not in data/SHA256SUMS. If you added it, run `python data/checksums.py`.")
    if not path.is_file():
        raise FileError(f"data/{name} is missing. {REMEDY}")
    if sha256(path) != checksums()[name]:
        raise FileError(f"data/{name} is damaged: its SHA-256 differs from data/SHA256SUMS. {REMEDY}")
    return path


def measurement(name: str):
    """What a longer run found, e.g. `measurement("guidance")`: the JSON that `data/measurements/guidance.py` wrote."""
    return json.loads(data_path("measurements", *f"{name}.json".split("/")).read_text(encoding="utf-8"))


def write_file(path, content: bytes) -> None:
    """Write a file atomically: after a crash, `path` holds either its old content or all of the new one."""
    path = Path(path)
    # beside the old file, so that the last step is a rename within one disk, which cannot be cut in two
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # so that the rename, too, survives a power cut
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path, value) -> None:
    """Write a value as JSON, atomically."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path):
    """The value in a JSON file; FileError if it is missing or no JSON."""
    try:
        return json.loads(_read(path).decode())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is damaged, it holds no JSON: {error}. Fetch or write it again.") from None


def save_safetensors(path, tensors: dict, metadata: dict | None = None) -> None:
    """Write {name: tensor} atomically. Metadata is {str: str}. Tensors may be on any device and may share memory."""
    copies = {name: v.detach().to("cpu", copy=True).contiguous() for name, v in tensors.items()}
    write_file(path, safetensors.torch.save(copies, metadata={"format": "pt", **(metadata or {})}))


def load_safetensors(path) -> dict:
    """{name: CPU tensor} of a file. Raises FileError if it is missing, truncated or damaged."""
    try:
        return safetensors.torch.load(_read(path))
    except safetensors.SafetensorError as error:
        raise FileError(f"{path} is truncated or damaged ({error}). Fetch or write it again.") from None


def _read(path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileError(f"{path} does not exist.") from None
