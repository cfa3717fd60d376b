"""What the studies share: a report, and a sheet of pictures, that go on where they stopped, if it is the same study."""

from math import isclose
from pathlib import Path

from PIL import Image

from ldm_mini.files import read_json
from ldm_mini.show.plotting import to_uint8

GROWS = {"rows", "runs", "shapes", "nets", "rates", "rate"}


def resume(out: Path, fresh: dict) -> dict:
    """The report in `out`, to which rows are added; `fresh` if there is none.

    Raises ValueError if a setting of `fresh` is another one in the file, or rows of two studies would stand in one
    table. What `GROWS` is no setting, nor are dicts: what was measured of real pictures.
    """
    if not out.is_file():
        return fresh
    before = read_json(out)
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in fresh.items()
                if key not in GROWS and not isinstance(value, dict)}
    if other := [f"{key} = {before.get(key)}, not {value}" for key, value in settings.items()
                 if not same(before.get(key), value)]:
        raise ValueError(f"{out} was made with {'; '.join(other)}. Give another --out, or the settings of before.")
    return fresh | before


def same(a, b) -> bool:
    """Measured numbers are rounded in the file."""
    return isclose(a, b, rel_tol=0.01) if isinstance(a, float) and isinstance(b, float) else a == b


def keep_row(path: Path, place: int, rows: int, pictures) -> None:
    """Put pictures (B,3,size,size) into row `place` of the sheet in `path`, which has so many; others stay black."""
    size = pictures.shape[-1]
    sheet = Image.open(path) if path.is_file() else Image.new("RGB", (len(pictures) * size, rows * size))
    for column, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(to_uint8(picture)[0]), (column * size, place * size))
    sheet.save(path, optimize=True)
