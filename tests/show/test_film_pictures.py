"""Films as animations and strips: every frame in its place, colours kept, still things still."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from ldm_mini.scenes.films import FILM_SCENES, FilmConfig, film_batches
from ldm_mini.show.films import film_gif, film_strip, save_film
from ldm_mini.show.inputs import film_inputs
from ldm_mini.show.plotting import to_uint8


@pytest.fixture(scope="module")
def videos():
    return next(film_batches(FilmConfig(FILM_SCENES, frames=4), 2))["video"]


def frames_of(content):
    with Image.open(io.BytesIO(content)) as picture:
        return picture.info, [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(picture)]


def test_an_animation_shows_every_frame_of_every_film(videos):
    info, drawn = frames_of(film_gif(videos, 5))
    assert info["loop"] == 0 and info["duration"] == 200 and len(drawn) == 4
    assert drawn[0].shape == (64, 2 * 64 + 2, 3)
    for k, frame in enumerate(drawn):
        for i in range(2):
            true = to_uint8(videos[i, :, k])[0].astype(int)
            assert np.abs(frame[:, 66 * i:66 * i + 64] - true).mean() < 6, "256 colours are nearly all"
    assert (drawn[0][:, 64:66] > 245).all()


def test_what_does_not_change_does_not_flicker():
    still = torch.rand(1, 3, 1, 16, 16).repeat(1, 1, 3, 1, 1) * 2 - 1
    still[:, :, 1, :4, :4] = 1.0
    *_, (a, b, _) = frames_of(film_gif(still))
    assert np.array_equal(a[4:], b[4:])


def test_a_strip_has_a_row_for_each_film(videos, tmp_path):
    rows = film_strip(videos)
    assert len(rows) == 2 and torch.equal(rows[1][3], videos[1, :, 3])
    assert save_film(videos, tmp_path / "new" / "a.png") == [tmp_path / "new" / "a.png"]
    moving, strip = save_film(videos, tmp_path / "b.gif")
    assert (moving.name, strip.name) == ("b.gif", "b.png")
    assert Image.open(strip).size == (4 * 66 - 2, 2 * 66 - 2) and Image.open(moving).n_frames == 4


def test_a_file_is_the_first_frame_of_every_film(tmp_path):
    Image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "red.png")
    model, words = SimpleNamespace(image_size=(32, 32)), {"caption": ["a", "b", "c"]}
    given = film_inputs(model, words, 3, image=tmp_path / "red.png")
    assert given["caption"] == words["caption"] and given["first"].shape == (3, 3, 32, 32)
    assert given["first"][:, 0].min() == 1 and given["first"][:, 1:].max() == -1
    assert film_inputs(model, words, 3, size=16, image=tmp_path / "red.png")["first"].shape[-1] == 16
    assert film_inputs(model, words, 3) == words


@pytest.mark.parametrize("bad, said", [(torch.zeros(3, 4, 8, 8), r"videos\[None\]"),
                                       (torch.full((1, 3, 2, 8, 8), float("nan")), "no numbers")])
def test_what_is_no_film_is_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        film_gif(bad)
