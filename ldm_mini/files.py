"""Where the files in `data/` are: found by name, and checked by hash before they are trusted."""

import hashlib
from functools import lru_cache
from pathlib import Path

REMEDY = "Restore it with `git checkout -- data` in a clone, or reinstall ldm_mini."


class DataFileError(RuntimeError):
    """A data file is missing or damaged; the message names the file and the remedy."""


@lru_cache(maxsize=1)
def data_dir() -> Path:
    """The folder of sprites, tokenizer and weights: inside an installed package, else `data/` of the clone."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_data", package.parent / "data"):
        if (folder / "SHA256SUMS").is_file():
            return folder
    raise DataFileError(f"ldm_mini's data folder was not found beside {package}. {REMEDY}")


@lru_cache(maxsize=1)
def checksums() -> dict:
    """{relative name: sha256 hex digest} as listed in `data/SHA256SUMS`."""
    lines = (data_dir() / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines if line.strip())}


def sha256(path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@lru_cache(maxsize=None)
def data_path(*parts: str) -> Path:
    """Path of one file of `data/`, e.g. `data_path("sprites", "noto.png")`.

    Raises DataFileError if the file is missing, is not listed in `data/SHA256SUMS`, or has changed since it was.
    """
    name = "/".join(parts)
    path = data_dir() / name
    if name not in checksums():
        raise DataFileError(f"data/{name} is not listed in data/SHA256SUMS. "
                            "If you added it, run `python data/checksums.py`.")
    if not path.is_file():
        raise DataFileError(f"data/{name} is missing. {REMEDY}")
    if sha256(path) != checksums()[name]:
        raise DataFileError(f"data/{name} is damaged: its SHA-256 differs from data/SHA256SUMS. {REMEDY}")
    return path
