"""Notebooks that came back: whatever their format, encoding and state, read into cells of code."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..files import FileError

LARGEST = 50_000_000  # bytes
ENCODINGS = ("utf-8-sig", "utf-16", "latin-1")  # the last one reads anything


@dataclass(frozen=True)
class Code:
    """A cell of code. `id` is "" in formats that have none."""

    id: str
    source: str


def read_bytes(path: Path) -> bytes:
    """A submitted file. Raises FileError if it cannot be read, is no file of its own, or is too large."""
    try:
        if path.is_symlink() or not path.is_file():
            raise FileError("is no file")
        if path.stat().st_size > LARGEST:
            raise FileError(f"is larger than {LARGEST // 1_000_000} MB")
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot be read: {error}") from None


def code_cells(content: bytes) -> list[Code]:
    """The cells of code of a notebook of format 3 or 4, in any encoding. Raises FileError if it is none."""
    try:
        notebook = json.loads(_text(content))
        sheets = notebook.get("worksheets") or [notebook]  # format 3
        cells = [cell for sheet in sheets for cell in sheet["cells"] if cell.get("cell_type") == "code"]
        return [Code(str(cell.get("id", "")), "".join(cell.get("source", cell.get("input", "")))) for cell in cells]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"is no notebook, or a damaged one: {type(error).__name__}") from None


def _text(content: bytes) -> str:
    utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    for encoding in ENCODINGS:
        try:
            if encoding != "utf-16" or utf16:
                return content.decode(encoding)
        except UnicodeDecodeError:
            pass
    raise AssertionError("latin-1 reads anything")
