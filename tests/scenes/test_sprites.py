"""The sprite sheets are what data/README.md says, in every style."""

import csv

import numpy as np
import pytest
from PIL import Image

from ldm_mini.files import data_path

STYLES = ("noto", "twemoji", "fluent_flat", "fluent_3d")
NOUNS = """
    car balloon umbrella shirt apple star fish butterfly guitar gift book heart boat bus rocket bird cap flower
    dog cat rabbit bear panda frog penguin owl lion pig octopus whale turtle ladybug bee banana strawberry carrot
    pizza burger cake donut mushroom cactus tree pine sunflower house plane bicycle clock robot snowman teddy
    crown key diamond ball drum camera sun moon cloud lemon mug duck
""".split()
RECOLORABLE = set("""
    heart star key cap shirt fish apple bird balloon umbrella flower book gift guitar car butterfly octopus teddy
    mushroom diamond
""".split())


def table(name):
    with open(data_path("sprites", name), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cells(name, size, columns):
    """All cells of a sheet as (N, size, size, 4) uint8, in reading order."""
    image = Image.open(data_path("sprites", name))
    assert image.mode == "RGBA"
    sheet = np.asarray(image)
    assert sheet.shape[1] == size * columns and sheet.shape[0] % size == 0
    return sheet.reshape(-1, size, columns, size, 4).swapaxes(1, 2).reshape(-1, size, size, 4)


def over_grey(rgba):
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 128 * (1 - alpha)


def test_nouns_table():
    rows = table("nouns.csv")
    assert [row["noun"] for row in rows] == NOUNS
    assert [int(row["index"]) for row in rows] == list(range(64))
    assert {row["noun"] for row in rows if row["recolourable"] == "1"} == RECOLORABLE
    assert {row["place_kind"] for row in rows} == {"sky", "ground", "water", "any"}
    assert {row["noun"] for row in rows if row["article"] == "an"} == {"umbrella", "apple", "owl", "octopus"}


@pytest.mark.parametrize("style", STYLES)
def test_noun_sheet(style):
    pictures = cells(f"nouns_{style}.png", 128, 8)
    assert len(pictures) == 64
    assert not pictures[pictures[..., 3] == 0].any()
    coverage = (pictures[..., 3] > 128).mean((1, 2))
    assert coverage.min() > 0.1, NOUNS[coverage.argmin()]
    assert coverage.max() < 0.95, NOUNS[coverage.argmax()]
    detail = over_grey(pictures).std((1, 2)).max(-1)
    assert detail.min() > 15, NOUNS[detail.argmin()]


@pytest.mark.parametrize("style", STYLES)
def test_one_hue_dominates_what_may_be_recoloured(style):
    pictures = cells(f"nouns_{style}.png", 128, 8)
    for i, noun in enumerate(NOUNS):
        if noun in RECOLORABLE:
            opaque = pictures[i, ..., 3] > 128
            hue, saturation, value = np.asarray(Image.fromarray(pictures[i, ..., :3]).convert("HSV")).transpose(2, 0, 1)
            counts = np.bincount(hue[opaque & (saturation > 50) & (value > 40)], minlength=256)
            window = sum(np.roll(counts, k) for k in range(-18, 19))  # 25 degrees to either side
            assert window.max() / opaque.sum() > 0.48, noun
