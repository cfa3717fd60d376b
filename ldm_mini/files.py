"""Every file that is read or written: found in `data/` and checked by hash, or written whole."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import uuid
from functools import lru_cache
from pathlib import Path

import safetensors.torch

SUMS = "SHA256SUMS"                                             # as `sha256sum --check` reads it
JSON_BYTES = 256 * 2**20                                        # far more than the captions of any training
REMEDY = "Restore it with `git checkout -- data` in a clone, or reinstall ldm_mini."


class FileError(ValueError):
    """A file is missing, damaged, or made for another model; the message names it and says what to do."""


@lru_cache(maxsize=1)
def data_dir() -> Path:
    """The folder of sprites, tokenizer and weights: inside an installed package, else `data/` of the clone."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_data", package.parent / "data"):
        if (folder / SUMS).is_file():
            return folder
    raise FileError(f"ldm_mini's data folder was not found beside {package}. {REMEDY}")


@lru_cache(maxsize=1)
def checksums() -> dict:
    """{relative name: sha256 hex digest} as listed in `data/SHA256SUMS`."""
    try:
        return read_sums(data_dir())
    except FileError as error:
        raise FileError(f"{error} {REMEDY}") from None


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


def read_sums(folder) -> dict:
    """{file name: sha256 hex digest} of a folder's SHA256SUMS, {} if it has none. FileError if that file is damaged."""
    path = Path(folder) / SUMS
    if not path.exists():
        return {}
    lines = [line.split(maxsplit=1) for line in _read(path).decode(errors="replace").splitlines() if line.strip()]
    if not lines or not all(len(line) == 2 and re.fullmatch("[0-9a-f]{64}", line[0]) for line in lines):
        raise FileError(f"{path} is damaged: {'a line' if lines else 'it'} is no SHA-256 and name.")
    return {name.removeprefix("*"): digest for digest, name in lines}           # a star: read as bytes


def write_sums(folder, digests: dict) -> None:
    """Write a folder's SHA256SUMS from {file name: sha256 hex digest}."""
    write_file(Path(folder) / SUMS, "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode())


def check_sums(folder, *names: str) -> None:
    """Raise FileError if a file is not as the folder's SHA256SUMS lists it, or if that list lacks one of these names;
    without the list there is no check."""
    listed = read_sums(folder)
    if listed and (other := sorted({*names} - {*listed})):
        raise FileError(f"{Path(folder) / SUMS} does not list {', '.join(other)}. Fetch or write the folder again; if "
                        f"you changed it yourself, delete {SUMS}.")
    for name, digest in listed.items():
        path = Path(folder) / name
        if not path.is_file() or sha256(path) != digest:
            raise FileError(f"{path} is {'damaged' if path.is_file() else 'missing'}: {SUMS} beside it lists another "
                            f"content. Fetch or write it again; if you changed it yourself, delete {SUMS}.")


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
    # so that the rename, too, survives a power cut; network drives cannot do this for a folder
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(handle)
        os.close(handle)


def writable_folder(path) -> Path:
    """The path of a folder that can be written, or made. Raises FileError if not: tried, and nothing is left behind."""
    path = Path(path)
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise FileError(f"{path} cannot be written: {there} is no folder, or may not be written "
                        f"({error.strerror}).") from None
    return path


def write_json(path, value) -> None:
    """Write a value as JSON, atomically."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path) -> dict:
    """The object in a JSON file; FileError if it is missing, no such JSON, or too large to be one of ours."""
    if Path(path).is_file() and Path(path).stat().st_size > JSON_BYTES:
        raise FileError(f"{path} is larger than {JSON_BYTES / 2**20:.0f} MB: it is no file of ldm_mini's.")
    try:
        value = json.loads(_read(path).decode())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FileError(f"{path} is damaged, it holds no JSON: {error}. Fetch or write it again.") from None
    if not isinstance(value, dict):
        raise FileError(f"{path} is damaged, its JSON is a {type(value).__name__} in place of names and values. Fetch "
                        "or write it again.")
    return value


def save_safetensors(path, tensors: dict, metadata: dict | None = None) -> None:
    """Write {name: tensor} atomically. Metadata is {str: str}. Tensors may be on any device and may share memory."""
    write_file(path, safetensors_bytes(tensors, metadata))


def safetensors_bytes(tensors: dict, metadata: dict | None = None) -> bytes:
    """What `save_safetensors` writes."""
    copies = {name: v.detach().to("cpu", copy=True).contiguous() for name, v in tensors.items()}
    return safetensors.torch.save(copies, metadata={"format": "pt", **(metadata or {})})


def load_safetensors(path) -> dict:
    """{name: CPU tensor} of a file. Raises FileError if it is missing, truncated or damaged."""
    try:
        return safetensors.torch.load(_read(path))
    except safetensors.SafetensorError as error:
        raise FileError(f"{path} is truncated or damaged ({error}). Fetch or write it again.") from None


def _read(path) -> bytes:
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):             # of the latter sort: a file in place of its folder
        raise FileError(f"{path} does not exist.") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}.") from None
