"""Make the figures stored in executed notebooks smaller: every version of a notebook stays in the history for good.

    python data/build/compress_figures.py notebooks/03_vq_vae.ipynb ...      # after the run, before the commit

A plot gets a palette of at most 256 colours where no patch of 8 x 8 pixels looks different; a grid of pictures would
lose colours by that, so it keeps its own, rounded by 3 of 255 at most. Sizes in pixels stay; text, code and all other
outputs are left as they are, and strict nbval does not compare pictures.
"""

import base64
import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

UNSEEN = 10  # root mean square error of the worst patch, of 255, that a person does not see in a plot
STEP = 6  # colours of pictures are rounded to its multiples


def compressed(png: bytes) -> bytes:
    """The same figure in fewer bytes; as it was, if that saves less than a tenth."""
    figure = Image.open(io.BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", figure.size, "white")  # a figure's ground is white, or shown on white
    page.alpha_composite(figure)
    page = page.convert("RGB")
    few = page.quantize(256, Image.Quantize.MEDIANCUT, kmeans=8, dither=Image.Dither.NONE)
    few = page.quantize(palette=few, dither=Image.Dither.FLOYDSTEINBERG)
    best = few if worst_patch(page, few.convert("RGB")) <= UNSEEN else Image.fromarray(rounded(np.asarray(page)))
    small = io.BytesIO()
    best.save(small, "PNG", optimize=True)
    return small.getvalue() if len(small.getvalue()) < 0.9 * len(png) else png


def rounded(colors: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8, to the nearest multiple of STEP; white stays white."""
    near = (colors.astype(int) + STEP // 2) // STEP * STEP
    return np.where(colors >= 254, 255, near).astype(np.uint8)


def worst_patch(a: Image.Image, b: Image.Image, side: int = 8) -> float:
    """The largest root mean square difference of two RGB pictures over patches of side x side."""
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean(-1)
    h, w = (n // side * side for n in error.shape)
    return float(np.sqrt(error[:h, :w].reshape(h // side, side, w // side, side).mean((1, 3)).max()))


def compress(notebook: Path) -> tuple[int, int]:
    """Rewrite the figures of a notebook; returns its size before and after, in bytes."""
    before = notebook.stat().st_size
    nb = json.loads(notebook.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "image/png" in data:
                png = base64.b64decode(data["image/png"])
                data["image/png"] = base64.b64encode(compressed(png)).decode("ascii")
    notebook.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return before, notebook.stat().st_size


if __name__ == "__main__":
    for name in sys.argv[1:]:
        before, after = compress(Path(name))
        print(f"{name}: {before / 1e3:.0f} -> {after / 1e3:.0f} kB")
