"""Reference curves: "is my loss normal?" The training of a notebook, run with several seeds, as a band to compare with.

A notebook says `SEED = 0` in a line of its own, trains, and calls `plot_curve(records, key, band="03-vq")`. Here the
very same cells run with other seeds, up to that call, whose records become `curves/03-vq.json` beside this file.
So a band always belongs to the training as it stands in the notebook. Made anew, one or all, by

    python data/measurements/reference_curves.py [03-vq ...] [--seeds 5]

Each seed takes as long as the notebook up to that call, some minutes on one thread of a CPU.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import tyro
from tyro.conf import Positional

from ldm_mini import show
from ldm_mini.files import data_dir
from ldm_mini.show import plotting

POINTS = 60                     # of a stored curve: more would not be seen


class _Recorded(BaseException):
    """Ends the cells where the curve is drawn; no `except Exception` of a notebook holds it up."""


def bands(notebooks) -> dict[str, Path]:
    """{name of a band: the notebook that draws it} of all notebooks in a folder."""
    found = {}
    for path in sorted(Path(notebooks).glob("*.ipynb")):
        for name in re.findall(r"band=[\"']([\w-]+)[\"']", "\n".join(_cells(path))):
            found[name] = path
    return found


def run_curves(names, seeds: int = 5, notebooks=None) -> list[Path]:
    """Train with seeds 1, 2, ... and write `curves/NAME.json` beside this file; no names: for all there are.

    Raises ValueError for a name that no notebook draws, or a notebook without its `SEED = 0`.
    """
    notebooks = Path(notebooks) if notebooks is not None else data_dir().parent / "notebooks"
    here = bands(notebooks)
    unknown = sorted(set(names) - set(here))
    if unknown or not here:
        raise ValueError(f"no notebook in {notebooks} draws a band {', '.join(unknown) or 'at all'}; there are "
                         f"{', '.join(here) or 'none'}. A notebook draws one by plot_curve(records, band=\"NAME\").")
    if seeds < 2:
        raise ValueError(f"a band needs at least 2 seeds, got {seeds}.")
    written = []
    for name in names or here:
        runs = []
        for seed in range(1, seeds + 1):
            print(f"{name}: seed {seed} of {seeds}", flush=True)
            runs.append(_in_own_process(here[name], name, seed))
        folder = data_dir() / "measurements" / "curves"
        folder.mkdir(parents=True, exist_ok=True)
        written.append(folder / f"{name}.json")
        text = json.dumps({"notebook": here[name].name, **band_of(runs)})
        written[-1].write_text(text + "\n", encoding="utf-8")
    checksums = data_dir() / "checksums.py"
    if checksums.is_file():
        subprocess.run([sys.executable, str(checksums)], check=True)
    return written


def band_of(runs: list[dict]) -> dict:
    """Runs {"x", "key", "points": [[x, y], ...]} of several seeds -> the columns of their band.

    From the lowest to the highest run, widened by half of that distance on either side: with 5 runs, a sixth of the
    same kind then seldom leaves it. Positive curves stay positive (they are often drawn on a logarithmic axis).
    """
    xs = np.array(runs[0]["points"], dtype=float)[:, 0]
    xs = xs[np.unique(np.linspace(0, len(xs) - 1, POINTS).round().astype(int))]
    ys = np.array([np.interp(xs, *np.array(run["points"], dtype=float).T) for run in runs])
    low, high = ys.min(0), ys.max(0)
    margin = (high - low) / 2
    widened = np.maximum(low - margin, low / 2) if (low > 0).all() else low - margin
    digits = {"low": widened, "median": np.median(ys, 0), "high": high + margin}
    return {"key": runs[0]["key"], "smooth": runs[0]["smooth"], "seeds": len(runs), runs[0]["x"]: xs.tolist(),
            **{name: [float(f"{v:.4g}") for v in column] for name, column in digits.items()}}


def _in_own_process(notebook: Path, name: str, seed: int) -> dict:
    """Record one run in a fresh interpreter, as a notebook has one."""
    here = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, str(Path(__file__).resolve()), "--record", notebook.name, name, str(seed)],
                          cwd=notebook.parent, capture_output=True, text=True,
                          env={**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": here})
    if done.returncode:
        raise ValueError(f"{notebook.name} stopped before it drew the band {name!r}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def record(notebook: Path, name: str, seed: int) -> dict:
    """Run a notebook's cells with `SEED = seed` until it draws the band `name`; that call's curve."""
    caught, original = {}, plotting.plot_curve

    def plot_curve(records, key="loss", band=None, x="step", smooth=1, **options):
        if band == name:
            xs, ys = plotting.curve_points(records, key, x, smooth)
            caught.update(key=key, x=x, smooth=smooth, points=np.stack([xs, ys], 1).tolist())
            raise _Recorded
        band = None if isinstance(band, str) else band          # another band, perhaps not made yet
        return original(records, key, band, x, smooth, **options)

    plotting.plot_curve = show.plot_curve = plot_curve          # where it is made, and where notebooks take it from
    try:
        for _ in run_cells(notebook, seed):
            pass
    except _Recorded:
        return caught
    finally:
        plotting.plot_curve = show.plot_curve = original
    raise ValueError(f"{notebook.name} ended without drawing the band {name!r}.")


def run_cells(notebook: Path, seed: int):
    """Run a notebook's code cells here, with `SEED = seed`; yields its variables, a dict, after each cell."""
    cells = _cells(notebook)
    if not any(re.search(r"(?m)^SEED = \d+", cell) for cell in cells):
        raise ValueError(f"{notebook.name} has no line `SEED = 0`: its training cannot be repeated with other seeds.")
    sys.modules["notebook_cells"] = module = ModuleType("notebook_cells")
    module.display = lambda *_: None                            # as IPython gives it to a notebook
    for cell in cells:
        source = re.sub(r"(?m)^SEED = \d+", f"SEED = {seed}", cell)
        exec(compile(source, f"{notebook.name}, a cell", "exec"), vars(module))
        yield vars(module)


def _cells(notebook: Path) -> list[str]:
    """The code cells that are Python: lines for the shell are left out."""
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
               and "nbval-raises-exception" not in cell["metadata"].get("tags", ()))
    return [re.sub(r"(?m)^[!%].*$", "", source) for source in sources]


def main(names: Positional[tuple[str, ...]] = (), seeds: int = 5) -> None:
    """Train again what the notebooks train, with several seeds, and renew the grey bands; no names: all there are."""
    for path in run_curves(names, seeds):
        print(f"wrote {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--record"]:                           # one run in a process of its own: notebook, name, seed
        sys.path.insert(0, os.getcwd())                         # as a notebook's kernel has it
        with contextlib.redirect_stdout(io.StringIO()):
            run = record(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        print(json.dumps(run))
    else:
        tyro.cli(main)
