"""Reference curves are those of the notebooks' own cells, run with other seeds."""

import json

import nbformat
import numpy as np
import pytest
import reference_curves as curves

from ldm_mini import files
from ldm_mini.show import plotting

TRAINING = """\
import torch
from ldm_mini.show import plot_curve
SEED = 0
g = torch.Generator().manual_seed(SEED)
records = [{"step": i + 1, "loss": (3 + torch.rand(1, generator=g)).item() / (i + 1)} for i in range(200)]
plot_curve([5.0, 4.0], band="other")
"""
NEVER = "raise SystemExit('cells after the curve do not run')"


def write_notebook(folder, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    folder.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "03_test.ipynb")
    return folder


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder of our own, without curves."""
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(curves, "data_dir", lambda: tmp_path / "data")
    return tmp_path / "data"


def test_a_run_of_its_own_process_is_the_run_of_its_seed(tmp_path):
    curve = 'plot_curve(records, band="03-test", smooth=20)'
    path = write_notebook(tmp_path, TRAINING, curve, NEVER) / "03_test.ipynb"
    one = curves.record(path, "03-test", 1)
    assert curves._in_own_process(path, "03-test", 1) == one != curves.record(path, "03-test", 2)


def test_each_seed_trains_anew_and_the_band_holds_them(tmp_path, data, monkeypatch):
    monkeypatch.setattr(curves, "_in_own_process", curves.record)
    curve = 'plot_curve(records, band="03-test", smooth=20)'
    notebooks = write_notebook(tmp_path / "notebooks", TRAINING, curve, NEVER)
    (path,) = curves.run_curves(["03-test"], seeds=3, notebooks=notebooks)
    band = json.loads(path.read_text())
    assert path == data / "measurements" / "curves" / "03-test.json" and band["notebook"] == "03_test.ipynb"
    assert band["seeds"] == 3 and band["smooth"] == 20 and band["step"][0] == 20 and band["step"][-1] == 200
    assert len(band["step"]) == curves.POINTS
    low, median, high = (np.array(band[side]) for side in ("low", "median", "high"))
    assert (0 < low).all() and (low < median).all() and (median < high).all()
    assert np.allclose(median[-1], np.mean(3.5 / np.arange(181, 201)), rtol=0.1)


def test_band_is_widened_by_half_on_either_side():
    runs = [{"x": "step", "key": "loss", "smooth": 1, "points": [[1, level], [2, level]]} for level in (4.0, 5.0, 6.0)]
    band = curves.band_of(runs)
    assert band["low"] == [3, 3] and band["median"] == [5, 5] and band["high"] == [7, 7]


def test_names_are_found_in_the_notebooks(tmp_path, data):
    notebooks = write_notebook(tmp_path / "notebooks", TRAINING, "plot_curve(records, band='03-test')")
    assert set(curves.bands(notebooks)) == {"other", "03-test"}
    with pytest.raises(ValueError, match="draws a band 04-missing; there are other, 03-test"):
        curves.run_curves(["04-missing"], notebooks=notebooks)
    with pytest.raises(ValueError, match="at least 2 seeds"):
        curves.run_curves(["03-test"], seeds=1, notebooks=notebooks)


@pytest.mark.parametrize("sources, message", [
    (("x = 1", 'print(band="03-test")'), "no line `SEED = 0`"),
    (("SEED = 0", 'text = \'band="03-test"\''), "ended without drawing"),
])
def test_a_notebook_that_cannot_be_used_says_why(tmp_path, sources, message):
    with pytest.raises(ValueError, match=message):
        curves.record(write_notebook(tmp_path, *sources) / "03_test.ipynb", "03-test", 1)


def test_what_a_notebook_raises_comes_through(tmp_path, data):
    notebooks = write_notebook(tmp_path / "notebooks", "SEED = 0", "1 / 0", 'plot_curve([1], band="03-test")')
    with pytest.raises(ValueError, match="(?s)stopped before it drew the band '03-test'.*ZeroDivisionError"):
        curves.run_curves(["03-test"], seeds=2, notebooks=notebooks)


FOLDER = "measurements/curves/"
SHIPPED = sorted(name[len(FOLDER):-len(".json")] for name in files.checksums() if name.startswith(FOLDER))


def test_every_band_of_the_course_is_shipped_and_none_is_left_over():
    assert set(SHIPPED) == set(curves.bands(files.data_dir().parent / "notebooks"))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_bands_are_bands(name):
    band = plotting.reference_curve(name)
    low, median, high = (np.array(band[side]) for side in ("low", "median", "high"))
    assert band["seeds"] >= 3 and (low <= median).all() and (median <= high).all() and np.isfinite(high).all()
