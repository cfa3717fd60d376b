"""Your own pictures: any file to a square array, its caption from the text file beside it, a data set of a folder."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from .data import to_tensor
from .draws import Draws
from .masks import draw_mask, random_mask
from .scene import LOWRES_FACTOR, MAX_OBJECTS

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def read_square(path, size: int) -> np.ndarray:
    """The middle square of the picture in a file, (size, size, 3) uint8; transparent parts become white."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS))
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"Cannot read the picture {path} ({error}). Remove or replace the file.") from None


def plain_item(image: np.ndarray, caption: str = "", seed: int = 0) -> dict:
    """An item for a square picture (H,H,3) uint8 about which no more is known than a caption; `seed` draws its hole."""
    size, tensor = len(image), to_tensor(image)
    hole = draw_mask(random_mask(Draws(seed, 3), 0), size)
    return {"image": tensor, "caption": caption, "class": -1, "style": -1,
            "labels": torch.full((MAX_OBJECTS,), -1), "colors": torch.full((MAX_OBJECTS,), -1),
            "boxes": torch.zeros(MAX_OBJECTS, 4), "background": -1,
            "semantic": torch.zeros(size, size, dtype=torch.int64),
            "lowres": F.avg_pool2d(tensor[None], LOWRES_FACTOR)[0],
            "mask": torch.from_numpy(hole).float()[None], "seed": seed}


class ImageFolderDataset(Dataset):
    """All pictures under a folder, sorted by path; the caption of `cat.png` stands in `cat.txt` beside it.

    Without any captions all are "". ValueError for an empty folder, a picture without caption where others have one, an
    unreadable picture.
    """

    def __init__(self, folder, size: int = 64):
        if size < LOWRES_FACTOR or size % LOWRES_FACTOR:
            raise ValueError(f"ImageFolderDataset: size must be a positive multiple of {LOWRES_FACTOR}, got {size}.")
        self.size = size
        self.files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not self.files:
            raise ValueError(f"No pictures ({', '.join(IMAGE_SUFFIXES)}) under {folder}; is it a folder?")
        texts = [path.with_suffix(".txt") for path in self.files]
        missing = [text for text in texts if not text.is_file()]
        if 0 < len(missing) < len(texts):
            raise ValueError(f"{len(missing)} of {len(texts)} pictures have no caption: write {missing[0]}, or remove "
                             "all captions.")
        self.captions = ["" if missing else " ".join(text.read_text(encoding="utf-8").split()) for text in texts]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return plain_item(read_square(self.files[index], self.size), self.captions[index], seed=index % len(self))
