"""A study goes on where it stopped, and never mixes rows of two settings."""

import pytest
from resuming import resume

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
