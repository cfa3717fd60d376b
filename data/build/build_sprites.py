"""Rebuild `data/sprites/` from the published emoji packages.

You need this only to change the artwork; the course reads the PNG sheets.

    npm pack @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5 @iconify-json/fluent-emoji-flat@1.2.6 \\
             @lobehub/fluent-emoji-3d@1.1.0 --pack-destination packages
    pip install resvg-py==0.5.0 pillow numpy
    python data/build/build_sprites.py packages
    python data/checksums.py

Writes `nouns_<style>.png` for each of the four styles: the 64 nouns of `nouns.csv`, a table kept by hand, at 128 px.
"""

import argparse
import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

SPRITES = Path(__file__).resolve().parents[1] / "sprites"
SVG_STYLES = {"noto": ("iconify-json-noto", "1.2.9"), "twemoji": ("iconify-json-twemoji", "1.2.5"),
              "fluent_flat": ("iconify-json-fluent-emoji-flat", "1.2.6")}
WEBP_STYLE = ("lobehub-fluent-emoji-3d", "1.1.0")
RENDER_SIZE = 256  # the size of the 3D pictures; the SVG are drawn as large and then reduced the same way
SIZE, COLUMNS = 128, 8


def read_package(folder, name, version):
    """{path inside the package: bytes} of an `npm pack` archive."""
    archive = Path(folder) / f"{name}-{version}.tgz"
    if not archive.is_file():
        raise SystemExit(f"{archive} is missing; see the npm command at the top of this script.")
    with tarfile.open(archive) as tar:
        return {m.name.split("/", 1)[1]: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}


def normalise(hexcode):
    """'2764-FE0F' -> '2764': the variation selector is written in some packages and not in others."""
    return hexcode.lower().replace("-fe0f", "")


def svg_source(icons, name):
    """One complete SVG document for an iconify icon; aliases are followed, flips and quarter turns applied."""
    flip_x = flip_y = False
    turns = 0
    while name not in icons["icons"]:
        alias = icons["aliases"][name]
        name, turns = alias["parent"], turns + alias.get("rotate", 0)
        flip_x, flip_y = flip_x ^ alias.get("hFlip", False), flip_y ^ alias.get("vFlip", False)
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    cx, cy = left + width / 2, top + height / 2
    sx, sy = -1 if flip_x else 1, -1 if flip_y else 1
    move = f"translate({cx} {cy}) rotate({90 * turns}) scale({sx} {sy}) translate({-cx} {-cy})"
    size = f'width="{RENDER_SIZE}" height="{RENDER_SIZE}" viewBox="{left} {top} {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {size}>' \
           f'<g transform="{move}">{icon["body"]}</g></svg>'


def svg_style(folder, package):
    """{hexcode: function that draws it at RENDER_SIZE} for one iconify package."""
    files = read_package(folder, *package)
    icons, chars = json.loads(files["icons.json"]), json.loads(files["chars.json"])

    def draw(name):
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg_source(icons, name)))))
    return {normalise(code): (lambda name=name: draw(name)) for code, name in chars.items()}


def webp_style(folder, package):
    """The same for the package of 256 px WebP pictures."""
    files = read_package(folder, *package)
    return {normalise(Path(name).stem): (lambda data=data: Image.open(io.BytesIO(data)))
            for name, data in files.items() if name.endswith(".webp")}


def reduce(picture, size):
    """RGBA picture -> (size, size, 4) uint8. Colours are weighted by alpha, so no background bleeds into the edges."""
    rgba = np.asarray(picture.convert("RGBA"), np.float32)
    alpha = rgba[..., 3:] / 255
    planes = np.concatenate([rgba[..., :3] * alpha, rgba[..., 3:]], -1)
    small = [Image.fromarray(planes[..., c]).resize((size, size), Image.Resampling.HAMMING) for c in range(4)]
    small = np.stack([np.asarray(plane) for plane in small], -1)
    out = small.copy()
    out[..., :3] = small[..., :3] / np.maximum(small[..., 3:] / 255, 1e-6)
    out = out.clip(0, 255).round().astype(np.uint8)
    out[out[..., 3] == 0] = 0
    return out


def sheet(draw, hexcodes, size=SIZE, columns=COLUMNS):
    """All pictures in reading order on one transparent sheet."""
    rows = -(-len(hexcodes) // columns)
    canvas = np.zeros((rows * size, columns * size, 4), np.uint8)
    for i, code in enumerate(hexcodes):
        y, x = divmod(i, columns)
        canvas[y * size:(y + 1) * size, x * size:(x + 1) * size] = reduce(draw[normalise(code)](), size)
    return Image.fromarray(canvas)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", help="folder with the four .tgz archives written by npm pack")
    folder = parser.parse_args().packages
    styles = {style: svg_style(folder, package) for style, package in SVG_STYLES.items()}
    styles["fluent_3d"] = webp_style(folder, WEBP_STYLE)
    with open(SPRITES / "nouns.csv", encoding="utf-8", newline="") as file:
        codes = [row["hexcode"] for row in csv.DictReader(file)]
    for style, draw in styles.items():
        path = SPRITES / f"nouns_{style}.png"
        # the stored sheets went through zopfli.png.optimize after this: the same pixels in an eighth fewer bytes
        sheet(draw, codes).save(path, optimize=True)
        print(f"{path.name}: {len(codes)} pictures, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
