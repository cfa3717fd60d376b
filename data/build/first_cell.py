"""What the first code cell of every notebook says where the course is not installed: the one source of its text.

    python data/build/first_cell.py      # write it into all notebooks: a new one before its run, and all of them once
                                         # pyproject.toml has the repository's address in project.urls

A notebook travels alone, to Colab, say. While the course has no address, its first cell says how to get the package;
with one, it installs it. Where the package is, it is silent, so that nbval compares nothing.
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ID = "the-package"
METADATA = {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]}  # folded in JupyterLab and on the site
SAYS = '''\
# Without the course's package this cell says how to get it; with it, nothing.
from importlib.util import find_spec

if not getattr(find_spec("ldm_mini"), "origin", None):  # a folder of that name has none
    raise ModuleNotFoundError("""ldm_mini is not in this notebook's Python.

On your computer: clone the course or unpack it, and in its folder give
    python3 course.py lab      (Windows: py course.py lab)
In VS Code or Codespaces: in that folder give
    python3 course.py setup    (Windows: py course.py setup)
    and choose the Python of its folder .venv as this notebook's kernel.
In Colab or Kaggle: upload that folder or a wheel of it, and in a new cell give
    %pip install "PATH/OF/FOLDER_OR_WHEEL[course]"
Then run this notebook from the top.""")'''
INSTALLS = '''\
# Without the course's package this cell installs it; with it, it does nothing.
import importlib
import subprocess
import sys
from importlib.util import find_spec

if not getattr(find_spec("ldm_mini"), "origin", None):  # a folder of that name has none
    package = "ldm_mini[course] @ git+ADDRESS"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)
    importlib.invalidate_caches()'''


def first_cell(address: str = "") -> str:
    """The cell's code. address: of the repository, as `project.urls` in pyproject.toml has it; "" while unknown."""
    return INSTALLS.replace("ADDRESS", address) if address else SAYS


def main() -> None:
    import tomllib  # here and not above: Python 3.11

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = first_cell(project.get("urls", {}).get("Repository", ""))
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
        if not any(cell["id"] == ID for cell in cells):
            first = next(i for i, cell in enumerate(cells) if cell["cell_type"] == "code")
            cells.insert(first, {"cell_type": "code", "execution_count": None, "id": ID, "metadata": METADATA,
                                 "outputs": []})
        next(cell for cell in cells if cell["id"] == ID)["source"] = text.splitlines(keepends=True)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
