"""A study goes on where it stopped, never mixes rows of two settings, and knows below which loss nobody can be."""

import numpy as np
import pytest
import scaling
import torch
from PIL import Image
from resuming import keep_row, resume

from ldm_mini.files import write_json

FRESH = {"steps": 200, "rate": 0.0, "bf16": True, "times": (1, 2), "scale": 0.7951, "real": {"frechet": 6.1},
         "rows": []}


def test_a_study_begins_fresh_then_goes_on_with_what_it_has(tmp_path):
    out = tmp_path / "study.json"
    assert resume(out, FRESH) == FRESH
    stored = {**FRESH, "scale": 0.795, "real": {"frechet": 6.0}, "rows": [{"seed": 0}]}
    write_json(out, stored)
    assert resume(out, FRESH) == {**stored, "times": [1, 2]}


@pytest.mark.parametrize("key, value", [("bf16", False), ("steps", 400), ("times", (1, 3)), ("scale", 0.9)])
def test_other_settings_are_refused_by_name(tmp_path, key, value):
    out = tmp_path / "study.json"
    write_json(out, FRESH)
    with pytest.raises(ValueError, match=f"{key} = .*not .*--out"):
        resume(out, {**FRESH, key: value})


def test_a_setting_that_the_file_lacks_is_another_one(tmp_path):
    out = tmp_path / "study.json"
    write_json(out, {key: value for key, value in FRESH.items() if key != "bf16"})
    with pytest.raises(ValueError, match="bf16 = None"):
        resume(out, FRESH)


def test_the_floor_is_the_loss_of_the_posterior_mean_over_all_latents_of_the_noun():
    g = torch.Generator().manual_seed(0)
    nouns = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 1, 1, 0]), 2).float()
    z = 0.2 * torch.randn(6, 4, 2, 2, generator=g)
    data, held_out = (z[:4], nouns[:4]), (z[4:], nouns[4:])
    t, eps = scaling.levels(held_out[0])
    assert t.tolist() == [0, 500]
    errors = []
    for i, (x0, noun) in enumerate(zip(*held_out, strict=True)):
        alpha, sigma = (getattr(scaling.SCHEDULE, name)(t[i:i + 1]).item() for name in ("alpha", "sigma"))
        x_t = alpha * x0 + sigma * eps[i]
        known = [x for x, other in zip(z, nouns, strict=True) if torch.equal(other, noun)]
        weights = torch.stack([-(x_t - alpha * x).square().sum() / (2 * sigma**2) for x in known]).softmax(0)
        mean = sum(w * x for w, x in zip(weights, known, strict=True))
        said, v = alpha * (x_t - alpha * mean) / sigma - sigma * mean, alpha * eps[i] - sigma * x0
        errors.append((said - v).square().mean().item())
    assert scaling.floor(data, held_out) == pytest.approx(sum(errors) / 2, rel=1e-4)
    assert errors[1] > 0.01


def test_who_knows_the_noun_but_too_many_latents_is_not_below_the_floor():
    z, nouns = torch.randn(40, 4, 2, 2, generator=torch.Generator().manual_seed(1)), torch.ones(40, 1)
    few, many = (scaling.floor((z[:n], nouns[:n]), (z[30:], nouns[30:])) for n in (0, 30))
    assert 0 < few < many


def test_a_sheet_of_pictures_grows_row_by_row_in_any_order(tmp_path):
    path = tmp_path / "sheet.png"
    keep_row(path, 2, 3, torch.ones(2, 3, 4, 4))
    keep_row(path, 0, 3, torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), -1.0)]))
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (12, 8, 3)
    assert sheet[::4, ::4, 0].tolist() == [[128, 0], [0, 0], [255, 255]]
