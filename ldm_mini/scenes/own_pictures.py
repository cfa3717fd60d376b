"""Your own pictures: any file to a square array, its caption from the text file beside it, a data set of a folder."""

from contextlib import contextmanager
from numbers import Integral
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

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_picture(path) -> Image.Image:
    """The picture in a file, upright, as RGBA of 8 bits each. Greys of more bits keep their range: white stays white.

    Raises ValueError for a file that holds no picture, or one too large to be meant.
    """
    with opened(path) as image:
        if image.mode.startswith(("I", "F")):
            white = 65535 if image.mode.startswith("I;16") else None
            image = Image.fromarray(_eight_bits(np.asarray(image).astype(np.float64), white))
        return image.convert("RGBA")


@contextmanager
def opened(path):
    """The picture in a file, upright, as it is. What goes wrong inside is a ValueError that names the file."""
    try:
        with Image.open(path) as file:
            yield ImageOps.exif_transpose(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"Cannot read the picture {path} ({error}). Remove or replace the file.") from None


def _eight_bits(grey: np.ndarray, white: int | None) -> np.ndarray:
    """Greys from 0 to `white`, else to the least of 1, 255 and 65535 that holds them, as uint8."""
    if not np.isfinite(grey).all() or grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its greys are neither from 0 to 1, nor to 255, nor to 65535")
    white = white or next(top for top in (1, 255, 65535) if grey.max() <= top)
    return (grey * 255 / white).round().astype(np.uint8)


def read_square(path, size: int) -> np.ndarray:
    """The middle square of the picture in a file, (size, size, 3) uint8; transparent parts become white."""
    image = read_picture(path)
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


def read_hole(image, size: int, mask=None) -> tuple[np.ndarray, str] | None:
    """What to paint anew of a picture: (size, size) bool, True = hole, of its middle square, and in words how it was
    understood. None if neither file says.

    mask: a file of the picture's shape, whose white is the hole; where it is a drawing on a transparent ground, its
    opaque white, or, if nothing of it is white, what was erased. Half-tones count from the middle of their range on.
    Without a mask, the transparent part of the picture is the hole, if it has one.
    Raises ValueError for a mask of another shape, and for one that is of one tone: it marks nothing, or everything.
    """
    picture = read_picture(image)
    if mask is None:
        tones, what = 255 - np.asarray(picture.getchannel("A")), f"the transparent part of {image}"
        if not tones.any():
            return None
    else:
        drawn, (width, height) = read_picture(mask), picture.size
        if abs(drawn.width * height - drawn.height * width) > max(*drawn.size, width, height):
            raise ValueError(f"the mask {mask} is {drawn.width} x {drawn.height} pixels and the picture {width} x "
                             f"{height}: give them the same shape.")
        black = Image.new("RGBA", drawn.size, "black")
        tones, what = np.asarray(Image.alpha_composite(black, drawn).convert("L")), f"the white of {mask}"
        if not tones.any():
            tones, what = 255 - np.asarray(drawn.getchannel("A")), f"what was erased from {mask}"
    low, high = int(tones.min()), int(tones.max())
    if low == high:
        raise ValueError(f"{mask or image} marks {'everything' if high > 127 else 'nothing'}: a mask is white where "
                         "there is a hole, and black elsewhere.")
    hole = Image.fromarray(np.uint8(255) * (tones > (low + high) / 2))
    hole = np.asarray(ImageOps.fit(hole, (size, size), Image.Resampling.BOX)) > 127
    if hole.all() or not hole.any():
        raise ValueError(f"{what} marks {'everything' if hole.all() else 'nothing'} of the picture's middle square.")
    return hole, f"the hole is {what}, {hole.mean():.1%} of the picture's middle square"


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
        if not isinstance(size, Integral) or size < LOWRES_FACTOR or size % LOWRES_FACTOR:
            raise ValueError(f"ImageFolderDataset: size must be a positive multiple of {LOWRES_FACTOR}, got {size!r}.")
        self.size = size
        # neither macOS' shadows nor JupyterLab's copies
        self.files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and
                            path.is_file() and not
                            any(part.startswith((".", "__MACOSX")) for part in path.relative_to(folder).parts))
        if not self.files:
            raise ValueError(f"No pictures ({', '.join(IMAGE_SUFFIXES)}) under {folder}; is it a folder?")
        # ".TXT" is a caption, too
        beside = {path.with_suffix(".txt"): path for path in Path(folder).rglob("*") if path.suffix.lower() == ".txt"}
        texts = [beside.get(text, text) for text in (path.with_suffix(".txt") for path in self.files)]
        missing = [text for text in texts if not text.is_file()]
        if 0 < len(missing) < len(texts):
            raise ValueError(f"{len(missing)} of {len(texts)} pictures have no caption: write {missing[0]}, or remove "
                             "all captions.")
        self.captions = ["" if missing else _read_caption(text) for text in texts]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return plain_item(read_square(self.files[index], self.size), self.captions[index], seed=index % len(self))


def _read_caption(path: Path) -> str:
    """The caption in a text file, in one line. Raises ValueError for what is no UTF-8."""
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())           # -sig: without a mark of byte order
    except UnicodeDecodeError as error:
        raise ValueError(f"Cannot read the caption {path} ({error}). Save it as UTF-8.") from None
