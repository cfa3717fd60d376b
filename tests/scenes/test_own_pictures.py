"""Pictures and masks from elsewhere: every depth, transparency, turn; what cannot be meant is refused."""

import warnings

import numpy as np
import pytest
from PIL import Image

from ldm_mini.scenes import ImageFolderDataset
from ldm_mini.scenes.own_pictures import read_hole, read_picture, read_square
from ldm_mini.show.inputs import batch_from_files

RAMP = np.linspace(0, 1, 64)[None].repeat(64, 0)
HOLE = np.zeros((64, 64), bool)
HOLE[20:40, 8:28] = True


def deep(kind):
    """The same ramp from black to white, in a picture of this kind."""
    grey = {"8": (RAMP * 255).round().astype(np.uint8), "16": (RAMP * 65535).round().astype(np.uint16),
            "32": (RAMP * 65535).round().astype(np.int32), "32 of 8": (RAMP * 255).round().astype(np.int32),
            "fractions": RAMP.astype(np.float32), "floats": (RAMP * 255).astype(np.float32)}[kind]
    return Image.fromarray(grey)


@pytest.mark.parametrize("kind, suffix", [("8", "png"), ("16", "png"), ("16", "tif"), ("32", "tif"),
                                          ("32 of 8", "tif"), ("fractions", "tif"), ("floats", "tif")])
def test_white_stays_white_at_any_depth(tmp_path, kind, suffix):
    path = tmp_path / f"p.{suffix}"
    deep(kind).save(path)
    assert np.abs(read_square(path, 64)[..., 0].astype(float) / 255 - RAMP).max() < 0.01


@pytest.mark.parametrize("grey", [[[np.nan, 1.0]], [[-1.0, 1.0]], [[0.0, 1e6]]])
def test_greys_of_no_known_range_are_refused(tmp_path, grey):
    Image.fromarray(np.float32(grey)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="f.tif .*neither from 0 to 1"):
        read_picture(tmp_path / "f.tif")


def masks():
    """One hole, as people mark it: {name: picture}."""
    grey = Image.fromarray(np.uint8(255) * HOLE)
    white = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    white.paste((255, 255, 255, 255), mask=grey)
    erased = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    erased.paste((0, 0, 0, 0), mask=grey)
    dark = Image.fromarray(np.where(HOLE, 65535, 300).astype(np.uint16))
    return {"grey": grey, "one bit": grey.convert("1"), "palette": grey.convert("P"), "colour": grey.convert("RGB"),
            "grey brush": Image.fromarray(np.uint8(100) * HOLE), "drawn on nothing": white, "erased": erased,
            "16 bit, not quite black": dark}


@pytest.mark.parametrize("name", masks())
def test_one_hole_is_understood_however_it_is_marked(tmp_path, name):
    masks()[name].save(tmp_path / "mask.png")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    hole, told = read_hole(tmp_path / "photo.png", 64, tmp_path / "mask.png")
    assert (hole == HOLE).all() and f"{HOLE.mean():.1%}" in told
    assert "erased" in told if name == "erased" else "the white of" in told


def test_soft_edges_and_other_sizes_keep_the_place(tmp_path):
    soft = Image.fromarray(np.uint8(255) * HOLE).resize((256, 256), Image.Resampling.BICUBIC)
    soft.save(tmp_path / "mask.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    hole, _ = read_hole(tmp_path / "photo.png", 64, tmp_path / "mask.png")
    assert (hole != HOLE).mean() < 0.01


def test_a_transparent_part_is_the_hole(tmp_path):
    picture = Image.new("RGBA", (64, 64), (200, 30, 30, 255))
    picture.paste((0, 0, 0, 0), mask=Image.fromarray(np.uint8(255) * HOLE))
    picture.save(tmp_path / "photo.png")
    with pytest.warns(UserWarning, match="the hole is the transparent part of .*photo.png, 9.8%"):
        batch = batch_from_files("inpaint", 64, 2, tmp_path / "photo.png")
    assert (batch["mask"][1, 0].numpy() == HOLE).all()
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    assert read_hole(tmp_path / "whole.png", 64) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch_from_files("inpaint", 64, 1, tmp_path / "whole.png")


@pytest.mark.parametrize("mask, words", [
    (Image.new("L", (64, 64), 0), "mask.png marks nothing"), (Image.new("L", (64, 64), 255), "marks everything"),
    (Image.new("RGBA", (64, 64), (0, 0, 0, 0)), "marks everything"),
    (Image.fromarray(np.uint8(255) * HOLE).resize((64, 32)), "is 64 x 32 pixels and the picture 64 x 64"),
    (Image.fromarray(np.pad(np.full((2, 2), 255, np.uint8), ((0, 62), (0, 62)))).resize((6400, 6400), 0)
     .crop((0, 0, 6400, 6400)), None)])
def test_masks_that_mark_nothing_or_elsewhere_are_refused(tmp_path, mask, words):
    mask.save(tmp_path / "mask.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    if words is None:
        assert read_hole(tmp_path / "photo.png", 64, tmp_path / "mask.png")[0].sum() == 4
        return
    with pytest.raises(ValueError, match=words):
        read_hole(tmp_path / "photo.png", 64, tmp_path / "mask.png")


def test_a_hole_outside_of_the_middle_square_is_refused(tmp_path):
    wide = np.zeros((64, 128), np.uint8)
    wide[:, :20] = 255
    Image.fromarray(wide).save(tmp_path / "mask.png")
    Image.new("RGB", (128, 64)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="marks nothing of the picture's middle square"):
        read_hole(tmp_path / "photo.png", 64, tmp_path / "mask.png")


def test_a_picture_of_gigapixels_is_one_line(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="Cannot read the picture .*huge.png .*exceeds limit"):
        read_square(tmp_path / "huge.png", 16)


def test_hidden_files_are_no_pictures(tmp_path):
    for place in (".", "__MACOSX", ".ipynb_checkpoints", "sub"):
        (tmp_path / place).mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / place / "cat.png")
    (tmp_path / "._cat.png").write_bytes(b"shadow")
    assert [path.parent.name for path in ImageFolderDataset(tmp_path, 16).files] == [tmp_path.name, "sub"]


def test_values_that_are_no_class_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "map.png")
    with pytest.raises(ValueError, match="holds values from 200 to 200, and a semantic map from 0 to"):
        batch_from_files("semantic", 16, 1, tmp_path / "map.png")
