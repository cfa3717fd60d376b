"""The sprite sheets are what data/README.md says, in every style."""

import csv

import numpy as np
import pytest
from PIL import Image

from ldm_mini.files import data_path
from ldm_mini.scenes.vocabulary import NOUNS, PLACE_KIND, RECOLORABLE, STYLES


@pytest.fixture(params=STYLES, scope="module")
def pictures(request):
    """All cells of a sheet as (64, 128, 128, 4) uint8, in reading order."""
    image = Image.open(data_path("sprites", f"nouns_{request.param}.png"))
    assert image.mode == "RGBA" and image.size == (8 * 128, 8 * 128)
    return np.asarray(image).reshape(8, 128, 8, 128, 4).swapaxes(1, 2).reshape(64, 128, 128, 4)


def test_nouns_table():
    with open(data_path("sprites", "nouns.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["noun"] for row in rows] == list(NOUNS)
    assert [int(row["index"]) for row in rows] == list(range(64))
    assert {row["noun"] for row in rows if row["recolourable"] == "1"} == set(RECOLORABLE)
    assert [row["place_kind"] for row in rows] == [PLACE_KIND.get(noun, "any") for noun in NOUNS]
    assert {row["noun"] for row in rows if row["article"] == "an"} == {"umbrella", "apple", "owl", "octopus"}


def test_noun_sheet(pictures):
    assert not pictures[pictures[..., 3] == 0].any()
    coverage = (pictures[..., 3] > 128).mean((1, 2))
    assert coverage.min() > 0.1, NOUNS[coverage.argmin()]
    assert coverage.max() < 0.95, NOUNS[coverage.argmax()]
    alpha = pictures[..., 3:] / 255
    detail = (pictures[..., :3] * alpha + 128 * (1 - alpha)).std((1, 2)).max(-1)
    assert detail.min() > 15, NOUNS[detail.argmin()]


def test_one_hue_dominates_what_may_be_recoloured(pictures):
    for i, noun in enumerate(NOUNS):
        if noun in RECOLORABLE:
            opaque = pictures[i, ..., 3] > 128
            hue, saturation, value = np.asarray(Image.fromarray(pictures[i, ..., :3]).convert("HSV")).transpose(2, 0, 1)
            counts = np.bincount(hue[opaque & (saturation > 50) & (value > 40)], minlength=256)
            window = sum(np.roll(counts, k) for k in range(-18, 19))  # 25 degrees to either side
            assert window.max() / opaque.sum() > 0.48, noun
