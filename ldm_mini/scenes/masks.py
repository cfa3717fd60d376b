"""Holes for inpainting: boxes, brush strokes, whole objects.

A mask is drawn first as a record of integers in units of 1/256, then painted at any size.
"""

import numpy as np
from PIL import Image, ImageDraw

from .draws import Draws
from .vocabulary import UNIT


def random_mask(draws: Draws, count: int) -> tuple:
    """A tuple of ("box", x0, y0, x1, y1), ("stroke", width, x, y, x, y, ...) or ("object", index, margin).

    count: how many objects the scene has; 0 if unknown.
    """
    kind = draws.choice(("box", "stroke", "object") if count else ("box", "stroke"))
    if kind == "object":
        return (("object", draws.below(count), draws.between(6, 20)),)
    shapes = []
    for _ in range(draws.between(1, 2)):
        if kind == "box":
            width, height = draws.between(64, 144), draws.between(64, 144)
            x, y = draws.between(0, UNIT - width), draws.between(0, UNIT - height)
            shapes.append(("box", x, y, x + width, y + height))
        else:
            points = [draws.below(UNIT), draws.below(UNIT)]
            for _ in range(draws.between(2, 5)):
                points += [min(max(v + draws.between(-110, 110), 0), UNIT - 1) for v in points[-2:]]
            shapes.append(("stroke", draws.between(20, 44), *points))
    return tuple(shapes)


def draw_mask(shapes: tuple, size: int, boxes=None) -> np.ndarray:
    """Paint a mask: (size, size) bool, True in the hole. boxes (n, 4) in pixels: the objects, for "object" shapes."""
    image = Image.new("L", (size, size))
    pen = ImageDraw.Draw(image)
    for kind, *numbers in shapes:
        if kind == "stroke":
            width, *line = (v * size // UNIT for v in numbers)
            pen.line(line, fill=1, width=max(width, 1))
            for x, y in zip(line[::2], line[1::2]):  # round joints and ends
                pen.ellipse((x - width // 2, y - width // 2, x + width // 2, y + width // 2), fill=1)
            continue
        if kind == "object":
            margin = numbers[1] * size // UNIT
            x0, y0, x1, y1 = (int(v) for v in boxes[numbers[0]])
            corners = x0 - margin, y0 - margin, x1 + margin, y1 + margin
        else:
            corners = [v * size // UNIT for v in numbers]
        pen.rectangle((corners[0], corners[1], corners[2] - 1, corners[3] - 1), fill=1)
    return np.asarray(image).astype(bool)
