"""The four models of notebook 13, section 4, with four more seeds: `python data/measurements/position_code.py`.

They are trained by the notebook's own cells. About 4 minutes on one thread of a CPU; the share of discs in the corner
that was asked for, one number per seed, goes to `position_code.json` beside this file.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from reference_curves import run_cells  # noqa: E402

from ldm_mini.files import write_json  # noqa: E402

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "13_does_attention_know_where.ipynb"
SEEDS = 4


def main(notebook=NOTEBOOK) -> None:
    """Train, measure, and keep what was measured so far."""
    shares = {}
    for seed in range(1, SEEDS + 1):
        names = next(names for names in run_cells(Path(notebook), seed) if "right" in names)
        for variant, share in names["right"].items():
            shares.setdefault(variant, []).append(round(share, 3))
        print(seed, names["right"], flush=True)
        write_json(Path(__file__).with_suffix(".json"), {"corners": shares})


if __name__ == "__main__":
    main(*sys.argv[1:])
