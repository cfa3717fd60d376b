"""Choose the colours of semantic maps: each noun's far from all others, for the common kinds of colour vision.

    python data/build/map_colors.py     # a second; prints plotting.MAP_COLORS

The first are given, and suit what they stand for; then, one by one, the colour of a grid that is farthest from all
before. Any two nouns can stand in one picture, and each stands on a ground: hence a ground's distance counts less.
"""

import numpy as np
from matplotlib.colors import to_hex, to_rgb

from ldm_mini.scenes.vocabulary import SEMANTIC, STUFF

GROUNDS = "#D0D0D0 #56B4E9 #009E73 #0072B2 #DCC882 #FFFFFF #2A1A5E #3A3A3A".split()    # in the order of STUFF
STEPS, GROUND, FULL_VISION = 18, 1.8, 1.7       # levels of a channel; by what distances are divided
DARK = 0.3                                      # where light falls on a screen, what is darker looks black
# what is seen without one kind of cone, from linear RGB: Machado, Oliveira & Fernandes 2009, severity 1
VISION = np.array([
    np.eye(3),
    [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
    [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
    [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]]])
# Ottosson 2020: OKLab, in which equal distances look about equally large
CONES = np.array([[.4122214708, .5363325363, .0514459929], [.2119034982, .6806995451, .1073969566],
                  [.0883024619, .2817188376, .6299787005]])
OKLAB = np.array([[.2104542553, .7936177850, -.0040720468], [1.9779984951, -2.4285922050, .4505937099],
                  [.0259040371, .7827717662, -.8086757660]])


def linear(rgb) -> np.ndarray:
    """sRGB in [0, 1] -> linear light."""
    rgb = np.asarray(rgb, float)
    return np.where(rgb <= .04045, rgb / 12.92, ((rgb + .055) / 1.055) ** 2.4)


def contrast(a, b) -> float:
    """Of two colours, as WCAG 2 has it: from 1 to 21."""
    dark, light = sorted(float(linear(to_rgb(color)) @ (.2126, .7152, .0722)) + .05 for color in (a, b))
    return light / dark


def seen(rgb) -> np.ndarray:
    """sRGB (n, 3) in [0, 1] -> OKLab (4, n, 3): with all cones, without the long, the middle, the short ones."""
    return np.cbrt((linear(rgb) @ VISION.swapaxes(1, 2)).clip(0, 1) @ CONES.T) @ OKLAB.T


def distances(a, b) -> np.ndarray:
    """(4, n, m): how different the colours a (n, 3) look from b (m, 3), in hundredths; one sees 2 or so."""
    return 100 * np.linalg.norm(seen(a)[:, :, None] - seen(b)[:, None], axis=-1)


def chosen() -> list[str]:
    """Hex strings in the order of SEMANTIC."""
    levels = np.linspace(0, 255, STEPS).round() / 255
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid[seen(grid)[0, :, 0] > DARK]

    def far(color):
        near = distances(grid, [color])[..., 0]
        return np.minimum(near[0] / FULL_VISION, near[1:].min(0))

    colors = [to_rgb(color) for color in GROUNDS]
    nearest = np.min([far(color) / GROUND for color in colors], axis=0)
    while len(colors) < len(SEMANTIC):
        colors.append(grid[nearest.argmax()])
        nearest = np.minimum(nearest, far(colors[-1]))
    return [to_hex(color).upper() for color in colors]


if __name__ == "__main__":
    assert len(GROUNDS) == len(STUFF)
    colors = chosen()
    for first in range(0, len(colors), 12):
        print(" ".join(colors[first:first + 12]))
