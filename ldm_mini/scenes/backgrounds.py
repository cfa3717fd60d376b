"""Backgrounds of Emoji Scenes: ten colours in seven looks, and six painted places, each in many variants.

All positions are in units of 1/256 of the picture, so a variant looks the same at every size. Arithmetic is + - * / and
square roots on rounded sine tables: every machine paints the same pixels.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

from .draws import Draws
from .vocabulary import BACKGROUND_INDEX, GROUND_TOP, PLAIN, STUFF, UNIT

LOOKS = ("flat", "gradient", "glow", "stripes", "diagonal", "dots", "clouds")
VARIANTS = 64  # of every look and place
BASE = {"red": (214, 82, 80), "orange": (226, 150, 76), "yellow": (228, 204, 88), "green": (106, 178, 106),
        "blue": (98, 154, 222), "purple": (152, 112, 206), "pink": (234, 166, 198), "white": (236, 236, 234),
        "gray": (146, 150, 160), "black": (44, 45, 52)}
SEA_TOP = 122  # of the beach
SINES = np.rint(np.sin(np.arange(1024) * (2 * np.pi / 1024)) * 4096) / 4096  # of 1024 angles, rounded to 1/4096


def _grid(size: int) -> tuple:
    """Centres of the pixels in units: x (1, size), y (size, 1)."""
    line = (np.arange(size) * 2 + 1) * (UNIT / (2 * size))
    return line[None, :], line[:, None]


def _sin(turns: np.ndarray) -> np.ndarray:
    """Sine of an angle in turns, from the table."""
    return SINES[np.floor(np.asarray(turns) * 1024).astype(np.int64) % 1024]


def _noise(draws: Draws, cells, size: int) -> np.ndarray:
    """Smooth random field (size, size), about -1 to 1, from a grid of (rows, columns) random values."""
    field = Image.fromarray(draws.bytes(cells)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(field).astype(np.float64) / 127.5 - 1


def _edge(distance: np.ndarray, size: int) -> np.ndarray:
    """Coverage of a pixel by the side where distance (in units) is positive: an antialiased step."""
    return np.clip(distance * (size / UNIT) + .5, 0, 1)


@lru_cache(maxsize=512)
def _shade(look: str, variant: int, size: int) -> np.ndarray:
    """How much lighter or darker each pixel of a plain background is: uint8 (size, size), 128 = the colour itself."""
    draws = Draws(LOOKS.index(look), variant, 71)
    x, y = _grid(size)
    light = draws.between(-12, 12)
    if look == "gradient":
        light = light + draws.between(30, 46) * (.5 - y / UNIT) * draws.choice((1, 1, 1, -1))
    elif look == "glow":
        cx, cy = draws.between(80, 176), draws.between(70, 176)
        light = light + 24 - np.sqrt((x - cx) ** 2 + (y - cy) ** 2) * (46 / UNIT)
    elif look in ("stripes", "diagonal"):
        width, shift = draws.choice((16, 20, 24, 32)), draws.below(64)
        along = x + 0 * y if look == "stripes" else (x + y * draws.choice((1, -1))) * (181 / UNIT)
        phase = (along + shift) % (2 * width)
        light = light + 16 * (_edge(width / 2 - np.abs(phase - width), size) - .5) - 14 * (y / UNIT - .5)
    elif look == "dots":
        step = draws.choice((32, 43, 64))
        radius = step * draws.choice((.16, .22, .27))
        dx, dy = (x + draws.below(step)) % step - step / 2, (y + draws.below(step)) % step - step / 2
        light = light + 18 * _edge(radius - np.sqrt(dx * dx + dy * dy), size) - 6 - 14 * (y / UNIT - .5)
    elif look == "clouds":
        light = light + 16 * _noise(draws, (5, 5), size) + 7 * _noise(draws, (9, 9), size)
    return np.clip(np.rint(128 + 2 * light + np.zeros((size, size))), 0, 255).astype(np.uint8)


@lru_cache(maxsize=len(PLAIN))
def _ramp(color: str) -> np.ndarray:
    """(256, 3) uint8: a background colour from shade 0 (darker) over 128 (itself) to 255 (lighter)."""
    light = (np.arange(UNIT)[:, None] - 128) / 2
    base = np.array(BASE[color], np.float64)
    lift = np.where(light > 0, light * (1.1 - base / 400), light * (.35 + base / 300))
    return np.clip(np.rint(base + lift), 0, 255).astype(np.uint8)


class _Canvas:
    """A place while it is painted: `image` (size, size, 3) float 0..255 and the stuff under every pixel."""

    def __init__(self, draws: Draws, size: int):
        self.draws, self.size = draws, size
        self.x, self.y = _grid(size)
        self.image = np.zeros((size, size, 3))
        self.stuff = np.zeros((size, size), np.uint8)

    def hill(self, top: float, swing: float, waves: float = 1.0) -> np.ndarray:
        """Distance below a wavy line at height `top`, positive on the ground."""
        phases = [self.draws.below(1024) / 1024 for _ in range(2)]
        line = top + swing * (_sin(self.x * waves / 300 + phases[0]) + .4 * _sin(self.x * waves / 110 + phases[1]))
        return self.y - line

    def fill(self, distance, stuff: str, upper, lower, start=0, stop=UNIT, texture=0.0):
        """Colour everything where distance > 0 from `upper` at height `start` to `lower` at height `stop`."""
        mix = np.clip((self.y - start) / (stop - start), 0, 1)[..., None]
        color = np.array(upper, np.float64) * (1 - mix) + np.array(lower, np.float64) * mix
        cover = _edge(distance + 0 * self.x, self.size)
        color = color + np.broadcast_to(texture, cover.shape)[..., None]
        self.image += (color - self.image) * cover[..., None]
        self.stuff[cover > .5] = STUFF.index(stuff)

    def noise(self, rows: int, columns: int) -> np.ndarray:
        return _noise(self.draws, (rows, columns), self.size)

    def sky(self, upper, lower, stuff="sky", stop=170):
        self.fill(UNIT + 0 * self.y, stuff, upper, lower, stop=stop)


def _meadow(c: _Canvas):
    hue = c.draws.between(-10, 10)
    c.sky((88 + hue, 160, 236), (206, 232, 250))
    c.fill(c.hill(146, 10, 1.3), "grass", (136, 190, 112 + hue), (112, 174, 84), 130, 190, 5 * c.noise(6, 10))
    c.fill(c.hill(GROUND_TOP["meadow"], 8), "grass", (112 + hue, 178, 72), (62 + hue, 132, 48), 156, 256,
           8 * c.noise(10, 18) + 7 * c.noise(24, 52))


def _beach(c: _Canvas):
    hue = c.draws.between(-10, 10)
    c.sky((82 + hue, 156, 238), (208, 234, 252), stop=SEA_TOP)
    ripple = _sin(c.y / 15 + .35 * c.noise(6, 4) + c.draws.below(64) / 64) * 9
    c.fill(c.y - SEA_TOP, "sea", (28, 102, 178 + hue), (66, 168, 208), SEA_TOP, 180, ripple)
    shore = c.hill(GROUND_TOP["beach"], 5, 1.2)
    c.fill(shore + 7, "sea", (232, 246, 248), (232, 246, 248))
    grain = 5 * c.noise(8, 14) + 6 * c.noise(48, 48)
    c.fill(shore, "sand", (222, 192, 132), (240, 216 + hue // 2, 158), 166, 256, grain)


def _snow(c: _Canvas):
    hue = c.draws.between(-8, 8)
    c.sky((138 + hue, 168, 204), (212, 224, 238))
    c.fill(c.hill(138, 12, 1.2), "snow", (218, 228, 242), (228, 236, 247), 120, 200, 3 * c.noise(5, 8))
    c.fill(c.hill(GROUND_TOP["snow"] + 8, 9), "snow", (242, 246, 252), (226, 234, 247 - abs(hue)), 156, 256,
           4 * c.noise(7, 10))
    for _ in range(c.draws.between(0, 14)):  # snow in the air
        _speck(c, c.draws.below(UNIT), c.draws.below(150), (250, 252, 255), c.draws.choice((60, 80, 95)))


def _desert(c: _Canvas):
    hue = c.draws.between(-8, 8)
    c.sky((244, 174 + hue, 98), (253, 226, 176))
    c.fill(c.hill(140, 9, 1.3), "sand", (224, 164, 100), (218, 156, 92), 130, 190, 3 * c.noise(5, 6))
    ripple = _sin((c.y + .25 * c.x) / 24 + .5 * c.noise(5, 4)) * 8
    c.fill(c.hill(GROUND_TOP["desert"] + 4, 9), "sand", (228, 172 + hue, 104), (200, 138, 74), 156, 256,
           ripple + 3 * c.noise(30, 30))


def _night(c: _Canvas):
    hue = c.draws.between(-6, 8)
    c.sky((14, 16 + hue, 50), (58 + hue, 56, 112), "night sky", stop=190)
    for _ in range(c.draws.between(24, 44)):
        _speck(c, c.draws.below(UNIT), c.draws.below(160), (255, 250, 228), c.draws.choice((40, 60, 80, 100)))
    c.fill(c.hill(158, 9, 1.4), "dark ground", (34, 40, 66), (30, 38, 56), 140, 190)
    c.fill(c.hill(GROUND_TOP["night"], 7), "dark ground", (34, 50, 52), (20, 30, 34), 166, 256, 4 * c.noise(12, 18))


def _under_water(c: _Canvas):
    hue = c.draws.between(-10, 10)
    c.fill(UNIT + 0 * c.y, "sea", (58, 178 + hue, 222), (14, 66 + hue, 142), 0, 230)
    slant, shift = c.draws.between(-40, 40) / 100, c.draws.below(256)
    rays = np.clip(_sin((c.x + slant * c.y + shift) / 96) + .5 * _sin((c.x + slant * c.y) / 41), 0, 1.5)
    c.image += (rays * 22 * np.clip(1 - c.y / 210, 0, 1))[..., None]
    c.fill(c.hill(GROUND_TOP["under water"], 8), "sand", (178, 158, 112), (134, 122, 96), 212, 256, 6 * c.noise(24, 32))


def _speck(c: _Canvas, x: int, y: int, color, percent: int):
    """One pixel of light at 64 px, a small square above."""
    width = max(1, c.size // 64)
    row, column = y * c.size // UNIT, x * c.size // UNIT
    patch = c.image[row:row + width, column:column + width]
    patch += (np.array(color) - patch) * (percent / 100)


PAINTERS = {"meadow": _meadow, "beach": _beach, "snow": _snow, "desert": _desert, "night": _night,
            "under water": _under_water}


@lru_cache(maxsize=512)
def _place(name: str, variant: int, size: int) -> tuple:
    canvas = _Canvas(Draws(BACKGROUND_INDEX[name], variant, 72), size)
    PAINTERS[name](canvas)
    return np.clip(np.rint(canvas.image), 0, 255).astype(np.uint8), canvas.stuff


def paint(background: str, look: str, variant: int, size: int) -> tuple:
    """A background and what it is made of: image (size, size, 3) uint8, index into STUFF (size, size) uint8, both new.

    `look` is one of LOOKS and matters for plain colours only; `variant` is 0 to VARIANTS - 1.
    """
    if background in PLAIN:
        return _ramp(background)[_shade(look, variant, size)], np.zeros((size, size), np.uint8)
    image, stuff = _place(background, variant, size)
    return image.copy(), stuff.copy()
