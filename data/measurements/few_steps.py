"""How near few steps come to the data, notebook 14, sections 6 and 7: `python data/measurements/few_steps.py`.

The notebook's own cells are run with three seeds. About 2 minutes on one idle thread of a CPU. To `few_steps.json`:
the distance of samples to data, by sampler and number of evaluations, one value a seed; how crooked paths are; and
the error of each of four long steps alone.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from reference_curves import run_cells  # noqa: E402

from ldm_mini.files import write_json  # noqa: E402

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "14_flow_matching.ipynb"
SEEDS = 3


def main(notebook=NOTEBOOK) -> None:
    """Train, measure, and keep what was measured so far."""
    quality, crooked, local = {}, {}, {}
    for seed in range(SEEDS):
        # up to the cell of the race: the next ones read what is written here
        names = next(names for names in run_cells(Path(notebook), seed) if "by_heun" in names)
        for name, row in names["quality"].items():
            for calls, value in row.items():
                quality.setdefault(name, {}).setdefault(str(calls), []).append(round(value, 4))
        for kept, found in ((crooked, names["crooked"]), (local, names["local"])):
            for name, value in found.items():
                rounded = [round(v, 4) for v in value] if isinstance(value, list) else round(value, 4)
                kept.setdefault(name, []).append(rounded)
        print(seed, quality, crooked, local, flush=True)
        write_json(Path(__file__).with_suffix(".json"), {
            "seeds": seed + 1, "floor": round(names["floor"], 4), "quality": quality, "crooked": crooked,
            "local": local})


if __name__ == "__main__":
    main(*sys.argv[1:])
