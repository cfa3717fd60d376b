"""A notebook alone: its first code cell says what to do, or does it, and is silent where all is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from first_cell import ID, METADATA, first_cell
from test_packaging import PROJECT

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "notebooks/assignments").glob("*.ipynb")])
ADDRESS = "https://host/us"
BOTH = pytest.mark.parametrize("address", ["", ADDRESS], ids=["unknown", "known"])


def run(code, path=None):
    """A Python of its own, without site-packages: it finds what stands in `path`."""
    inside = f"import sys; sys.path[:0] = {[str(path)] if path else []}\n"
    return subprocess.run([sys.executable, "-I", "-S", "-c", inside + code], capture_output=True, text=True)


@pytest.mark.parametrize("near", [None, "a folder"])
def test_alone_it_stops_and_says_what_to_do(near, tmp_path):
    """A folder of the package's name, as a clone is one, is not the package."""
    (tmp_path / "ldm_mini").mkdir()
    out = run(first_cell(), near and tmp_path)
    assert out.returncode and out.stdout == ""
    message = out.stderr.split("ModuleNotFoundError: ")[1]
    assert message.startswith("ldm_mini is not in this notebook's Python.")
    for words in ("python3 course.py lab", "py course.py lab", ".venv", '%pip install "', "Colab", "Codespaces"):
        assert words in message


@BOTH
def test_where_the_package_is_it_is_silent(address):
    out = run(first_cell(address), ROOT)
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")


def test_alone_it_installs_from_the_address_and_the_package_is_there(tmp_path):
    """pip is the process that it starts; here it is one that brings an empty package."""
    pip = ("import subprocess, pathlib\n"
           f"def run(words, check):\n    pathlib.Path({str(tmp_path / 'ldm_mini.py')!r}).touch()\n"
           "    assert check; print(words[1:])\nsubprocess.run = run\n")
    out = run(f"{pip}{first_cell(ADDRESS)}\nimport ldm_mini", tmp_path)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == str(["-m", "pip", "install", "-q", f"ldm_mini[course] @ git+{ADDRESS}"])


@BOTH
def test_it_is_as_short_as_any_cell(address):
    lines = first_cell(address).splitlines()
    assert len(lines) <= 20 and max(map(len, lines)) <= 88


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_begins_with_it(path):
    """If not, as after an address came into pyproject.toml: `python data/build/first_cell.py`."""
    text = first_cell(PROJECT.get("urls", {}).get("Repository", ""))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    assert ("".join(first["source"]), first["id"], first["metadata"], first["outputs"]) == (text, ID, METADATA, [])
