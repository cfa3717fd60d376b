"""Your own pictures: any file to a square array, captions from the files beside it, a data set of a folder."""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from .data import to_tensor
from .draws import Draws
from .masks import draw_mask, random_mask
from .scene import LOWRES_FACTOR, MAX_OBJECTS

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def square(image: Image.Image, size: int) -> np.ndarray:
    """Any picture -> its middle square, (size, size, 3) uint8; transparent parts become white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS))


def read_square(path, size: int) -> np.ndarray:
    """The picture in a file, (size, size, 3) uint8; ValueError with its name if it cannot be read."""
    try:
        with Image.open(path) as image:
            return square(image, size)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"Cannot read the picture {path} ({error}). Remove or replace the file.") from None


def read_captions(folder) -> dict:
    """{file: caption} of a folder's captions.csv or captions.jsonl (fields file and caption), {} if it has neither."""
    table = {}
    for path in (Path(folder) / "captions.csv", Path(folder) / "captions.jsonl"):
        if not path.is_file():
            continue
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file)) if path.suffix == ".csv" else _json_lines(path, file)
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not {"file", "caption"} <= row.keys():
                raise ValueError(f"{path}: entry {number} has no fields \"file\" and \"caption\".")
            table[Path(row["file"]).as_posix()] = (row["caption"] or "").strip()
    return table


def _json_lines(path, file) -> list:
    rows = []
    for number, line in enumerate(file, 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}).") from None
    return rows


def find_pictures(folder) -> tuple:
    """([paths], [captions]) of all pictures under a folder, sorted by path.

    A caption stands in `cat.txt` beside `cat.png`, or in the folder's captions.csv or captions.jsonl (fields file and
    caption, file relative to the folder). Without any, all are "". ValueError: see `data.ImageFolderDataset`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"No pictures ({', '.join(IMAGE_SUFFIXES)}) under {folder}.")
    names, table = [path.relative_to(folder).as_posix() for path in files], read_captions(folder)
    if unknown := sorted(table.keys() - set(names)):
        raise ValueError(f"A caption names {unknown[0]}, which is not a picture under {folder}.")
    for path, name in zip(files, names):
        text = path.with_suffix(".txt")
        if name not in table and text.is_file():
            table[name] = " ".join(text.read_text(encoding="utf-8").split())
    missing = [name for name in names if name not in table]
    if table and missing:
        raise ValueError(f"{len(missing)} of {len(names)} pictures have no caption, the first is {missing[0]}. Write "
                         f"{Path(missing[0]).with_suffix('.txt')} beside it, or remove all captions.")
    return files, [table.get(name, "") for name in names]


def plain_item(image: np.ndarray, caption: str = "", label: int = -1, seed: int = 0) -> dict:
    """An item for a picture (H,W,3) uint8 about which no more is known than a caption or a class."""
    height, width = image.shape[:2]
    tensor = to_tensor(image)
    none = torch.full((MAX_OBJECTS,), -1)
    hole = draw_mask(random_mask(Draws(seed, 3), 0), max(height, width))[:height, :width]
    return {"image": tensor, "caption": caption, "class": label, "style": -1, "labels": none, "colors": none.clone(),
            "boxes": torch.zeros(MAX_OBJECTS, 4), "background": -1,
            "semantic": torch.zeros(height, width, dtype=torch.int64),
            "lowres": torch.nn.functional.avg_pool2d(tensor[None], LOWRES_FACTOR)[0],
            "mask": torch.from_numpy(hole).float()[None], "seed": seed}


def _check_size(name: str, size: int):
    if size < LOWRES_FACTOR or size % LOWRES_FACTOR:
        raise ValueError(f"{name}: size must be a positive multiple of {LOWRES_FACTOR}, got {size}.")


class ImageFolderDataset(Dataset):
    """All pictures under a folder, with captions if it has any (`pictures.find_pictures` says where they may stand).

    ValueError for an empty folder, a picture without caption where others have one, a caption without picture, an
    unreadable picture.
    """

    def __init__(self, folder, size: int = 64):
        _check_size("ImageFolderDataset", size)
        self.size = size
        self.files, self.captions = find_pictures(folder)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return plain_item(read_square(self.files[index], self.size), self.captions[index], seed=index % len(self))
