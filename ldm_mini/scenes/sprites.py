"""Sprites: cut from the sheets in `data/sprites`, resized, recoloured, given a soft shadow.

All in integers at the end: every machine makes the same pixels.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from ..files import data_path
from .vocabulary import NOUN_INDEX

HSV = {  # colour: (hue in degrees, mean saturation, mean value) of a recoloured object
    "red": (357, .84, .86), "orange": (27, .87, .96), "yellow": (49, .84, .98), "green": (128, .68, .66),
    "blue": (213, .76, .88), "purple": (268, .62, .74), "pink": (330, .44, .98),
}
SIDE, COLUMNS = 128, 8  # pixels of a picture in a sheet, and pictures in a row of it
CACHED_STAMPS = 8192  # a scene vocabulary in 13 sizes is 9568 stamps, about 35 MB at 64 px and 130 MB at 128 px


@dataclass(frozen=True)
class Stamp:
    """A sprite over its shadow, ready to be put on a picture: picture = rgb + picture * keep / 255."""

    rgb: np.ndarray  # (h, w, 3) uint16, premultiplied
    keep: np.ndarray  # (h, w, 1) uint16, 255 minus the alpha of sprite and shadow together
    solid: np.ndarray  # (h, w) bool, where the sprite itself covers at least half of the pixel
    box: tuple  # x0, y0, x1, y1 of the solid part in pixels of the stamp


@lru_cache(maxsize=4)
def _sheet(style: str) -> Image.Image:
    with Image.open(data_path("sprites", f"nouns_{style}.png")) as image:
        return image.convert("RGBA")


@lru_cache(maxsize=256)
def noun_sprite(style: str, noun: str) -> Image.Image:
    """The 128 px picture of a noun, RGBA, cropped to what is visible."""
    x, y = NOUN_INDEX[noun] % COLUMNS * SIDE, NOUN_INDEX[noun] // COLUMNS * SIDE
    cell = _sheet(style).crop((x, y, x + SIDE, y + SIDE))
    return cell.crop(cell.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox())


def _hue_saturation_value(rgb: np.ndarray) -> tuple:
    """RGB (..., 3) in [0, 1] -> hue in degrees, saturation, value; only + - * /, so every machine agrees."""
    value, low = rgb.max(-1), rgb.min(-1)
    chroma = value - low
    safe = np.where(chroma > 0, chroma, 1)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    sector = np.where(value == red, (green - blue) / safe % 6,
                      np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4))
    return sector * 60, chroma / np.where(value > 0, value, 1), value


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The inverse: (..., 3) in [0, 1]."""
    k = (np.array([5, 3, 1]) + hue[..., None] / 60) % 6
    return value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1))


def _turn(hue, origin):
    """Signed distance between hues, in (-180, 180]."""
    return (hue - origin + 180) % 360 - 180


def _pixels(sprite: Image.Image) -> tuple:
    data = np.asarray(sprite)
    return data[..., :3].astype(np.float64) / 255, data[..., 3]


@lru_cache(maxsize=256)
def main_color(style: str, noun: str) -> tuple:
    """(hue, mean saturation, mean value) of a sprite's dominant hue, the one recolouring moves."""
    rgb, alpha = _pixels(noun_sprite(style, noun))
    hue, saturation, value = _hue_saturation_value(rgb[alpha > 127])
    weight = np.rint(saturation * value * 256).astype(np.int64)
    counts = np.bincount((hue // 4).astype(int) % 90, weights=weight, minlength=90)
    near = np.arange(-6, 7)
    window = np.array([counts[(k + near) % 90].sum() for k in range(90)])
    peak = int(window.argmax())
    around = counts[(peak + near) % 90]
    main = (peak + (around * near).sum() / around.sum()) * 4 + 2
    own = (np.abs(_turn(hue, main)) < 32) & (saturation > .15)
    # integer sums: exact
    means = (int(np.rint(part[own] * 4096).sum()) / 4096 / int(own.sum()) for part in (saturation, value))
    return float(main % 360), *means


def _shift_mean(part, mean, target):
    """Move values in [0, 1] so that `mean` lands on `target`: scaled when lowered, black and white kept when raised."""
    scaled = part * (target / mean)
    return scaled if target <= mean else np.where(part < mean, scaled, 1 - (1 - part) * ((1 - target) / (1 - mean)))


def recolor(sprite: Image.Image, source: tuple, color: str) -> Image.Image:
    """Move a sprite's main hue (`source`, from `main_color`), its mean saturation and value to a colour of HSV."""
    rgb, alpha = _pixels(sprite)
    hue, saturation, value = _hue_saturation_value(rgb)
    main, mean_saturation, mean_value = source
    target_hue, target_saturation, target_value = HSV[color]
    away = _turn(hue, main)
    belongs = np.clip((46 - np.abs(away)) / 12, 0, 1) * np.clip((saturation - .06) / .12, 0, 1)
    new = _rgb((target_hue + away * .25) % 360,
               np.clip(_shift_mean(saturation, mean_saturation, target_saturation), 0, 1),
               np.clip(_shift_mean(value, mean_value, target_value), 0, 1))
    mixed = rgb + (new - rgb) * belongs[..., None]
    return Image.fromarray(np.dstack([np.rint(mixed * 255).astype(np.uint8), alpha]))


def _resize(sprite: Image.Image, longest: int) -> Image.Image:
    """Longest side to `longest` pixels, premultiplied while filtering (Pillow does so for RGBA)."""
    width, height = sprite.size
    scale = max(width, height)
    size = tuple(max(1, (2 * side * longest + scale) // (2 * scale)) for side in (width, height))
    return sprite.resize(size, Image.Resampling.LANCZOS if longest > 48 else Image.Resampling.BICUBIC)


def _times(a, b):
    """a * b / 255 rounded, for whole numbers in 0..255 held in uint16."""
    product = a * b + 128
    return (product + (product >> 8)) >> 8


@lru_cache(maxsize=CACHED_STAMPS)
def noun_stamp(style: str, noun: str, color, longest: int, flip: bool, canvas: int) -> Stamp:
    """Stamp of a noun, in a colour of HSV or as drawn (None), its longest side `longest` pixels.

    It has a soft shadow that fits a canvas of this many pixels.
    """
    sprite = _resize(noun_sprite(style, noun), longest)
    sprite = recolor(sprite, main_color(style, noun), color) if color else sprite
    sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else sprite
    pad = max(2, canvas // 24)
    padded = Image.new("RGBA", (sprite.width + 2 * pad, sprite.height + 2 * pad))
    padded.paste(sprite, (pad, pad))
    pixels = np.asarray(padded).astype(np.uint16)
    shadow = Image.new("L", padded.size)
    shadow.paste(padded.getchannel("A"), (canvas // 64, canvas // 42))
    shadow = np.asarray(shadow.filter(ImageFilter.GaussianBlur(canvas / 56))).astype(np.uint16) * 5 // 13
    alpha = pixels[..., 3:]
    solid = pixels[..., 3] > 127
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    box = tuple(int(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return Stamp(_times(pixels[..., :3], alpha), _times(255 - alpha, 255 - shadow[..., None]), solid, box)


def put(picture: np.ndarray, stamp: Stamp, x: int, y: int) -> tuple:
    """Draw a stamp with its upper left corner at (x, y) on a picture (H, W, 3) uint8, in place.

    Returns two index pairs, (rows, columns) of the picture and of the stamp, of the part that is inside.
    """
    height, width = picture.shape[:2]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + stamp.solid.shape[1], width), min(y + stamp.solid.shape[0], height)
    left, top = min(left, right), min(top, bottom)              # nothing of it is inside
    there = (slice(top, bottom), slice(left, right))
    here = (slice(top - y, bottom - y), slice(left - x, right - x))
    picture[there] = stamp.rgb[here] + _times(picture[there].astype(np.uint16), stamp.keep[here])
    return there, here
