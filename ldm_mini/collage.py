"""Free arrangements of all 984 objects, for training autoencoders: more shapes and colours than captions can name.

Layer 0: imports scene parts only (vocabulary, draws, sprites, backgrounds).
"""

from functools import lru_cache

import numpy as np

from .backgrounds import LOOKS, UNIT, VARIANTS, paint
from .draws import Draws
from .sprites import noun_objects, object_stamp, object_table, put
from .vocabulary import BACKGROUNDS, STYLES

SPLITS = ("train", "test")


@lru_cache(maxsize=2)
def collage_objects(split: str) -> tuple:
    """Indices into the object sheets: "test" is one emoji in twenty, never a noun of the scenes; "train" the rest."""
    if split not in SPLITS:
        raise ValueError(f"collage: split must be one of {SPLITS}, got {split!r}.")
    held = {i for i in range(len(object_table())) if i % 20 == 7 and i not in noun_objects()}
    return tuple(i for i in range(len(object_table())) if (i in held) == (split == "test"))


def collage(seed: int, size: int = 64, split: str = "train") -> np.ndarray:
    """One to eight objects of any style and size, overlapping freely on any background: image (size, size, 3) uint8."""
    if size < 16 or size % 16 or seed < 0:
        raise ValueError(f"collage: size must be a positive multiple of 16, seed not negative; got {size} and {seed}.")
    objects = collage_objects(split)
    draws = Draws(seed, SPLITS.index(split), 2)
    image, _ = paint(draws.choice(BACKGROUNDS), draws.choice(LOOKS), draws.below(VARIANTS), size)
    for _ in range(draws.choice((1, 1, 2, 3, 4, 6, 8))):
        longest = min(max(draws.between(6, 22) * 8 * size // UNIT, 2), 64)  # the sheets have no more than 64 pixels
        stamp = object_stamp(draws.choice(STYLES), draws.choice(objects), longest, draws.chance(.5), size)
        x, y = (draws.between(16, UNIT - 16) * size // UNIT for _ in range(2))
        put(image, stamp, x - stamp.solid.shape[1] // 2, y - stamp.solid.shape[0] // 2)
    return image
