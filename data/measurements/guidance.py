"""How much guidance? The measurement of notebook 10: `python data/measurements/guidance.py`.

The shipped model draws the same 128 captions from the same noise at several guidance scales; the recogniser reads what
is in the pictures, and a Frechet distance compares them with real scenes. About 6 minutes on one thread of a CPU; the
results go to `guidance.json` beside this file.
"""

from pathlib import Path

from ldm_mini.files import write_json
from ldm_mini.hub import find, read_config
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import Recogniser, evaluate_diffusion
from ldm_mini.scenes import scenes_of

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)
CAPTIONS, STEPS = 128, 20


def main() -> None:
    """Measure every scale, and keep what was measured so far."""
    ldm, recogniser = LatentDiffusion.from_pretrained("emoji-scenes"), Recogniser.load()
    config = scenes_of(read_config(find("emoji-scenes"), "LatentDiffusion"))
    rows = []
    for scale in SCALES:
        report = evaluate_diffusion(ldm, config, "text", CAPTIONS, scale, STEPS, recogniser=recogniser)
        rows.append({"scale": scale, **{key: round(value, 4) for key, value in report["model"].items()},
                     **{key: round(report[key], 4) for key in ("frechet", "frechet_floor", "precision", "recall")}})
        print(rows[-1], flush=True)
        write_json(Path(__file__).with_suffix(".json"), {"captions": CAPTIONS, "steps": STEPS, "rows": rows})


if __name__ == "__main__":
    main()
