"""Does the model keep the front door's promise? `python data/measurements/front_door.py`

README's first caption, 32 samples, and every noun that the model knows, alone ("a dog"), 8 samples each; several
guidance scales, 20 steps. The recogniser reads the pictures. About 4 minutes on one
thread; the results go to `front_door.json` beside this file.
"""

from pathlib import Path

import torch
import tyro

from ldm_mini.files import write_json
from ldm_mini.hub import find, read_config
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import Recogniser
from ldm_mini.measure.scoring import score_captions
from ldm_mini.scenes import NOUNS, scenes_of

CAPTION = "a red apple to the left of a dog on a blue background"
SCALES, SAMPLES, NOUN_SAMPLES = (1.0, 2.0, 3.0, 4.0, 6.0), 32, 8


def main(model: str = "emoji-scenes", out: Path = Path(__file__).with_suffix(".json")) -> None:
    """Draw, read, and keep what was measured so far."""
    torch.set_num_threads(1)
    ldm, recogniser = LatentDiffusion.from_pretrained(model), Recogniser.load()
    known = scenes_of(read_config(find(model), "LatentDiffusion")).nouns or NOUNS

    def exact(captions: list[str], scale: float) -> float:
        images = ldm.sample({"caption": captions}, steps=20, guidance_scale=scale, seed=0)
        return score_captions(recogniser.detect(images), captions)["exact"]

    report = {"model": model, "caption": CAPTION, "samples": SAMPLES, "noun_samples": NOUN_SAMPLES, "rows": []}
    for scale in SCALES:
        nouns = {noun: exact([f"a {noun}"] * NOUN_SAMPLES, scale) for noun in known}
        report["rows"].append({"scale": scale, "caption_exact": exact([CAPTION] * SAMPLES, scale),
                               "nouns_mean": round(sum(nouns.values()) / len(nouns), 4), "nouns": nouns})
        row = report["rows"][-1]
        print(scale, row["caption_exact"], row["nouns_mean"],
              "below .5:", [noun for noun, share in nouns.items() if share < 0.5], flush=True)
        write_json(out, report)


if __name__ == "__main__":
    tyro.cli(main)
