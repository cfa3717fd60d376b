"""Does the model keep the front door's promise? `python data/measurements/front_door.py`

README's first caption, 32 samples, and every noun that the model knows, alone ("a dog"), 4 samples each (256 of 64
nouns, so a share over all has a standard error of at most .03); four guidance scales, 20 steps. The recogniser reads
the pictures. About 6 minutes on one thread; the results go to `front_door.json` beside this file.
"""

from pathlib import Path

import torch
import tyro

from ldm_mini.files import write_json
from ldm_mini.hub import find, read_config
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import Recogniser
from ldm_mini.measure.scoring import score_captions
from ldm_mini.scenes import NOUNS, Description, scenes_of
from ldm_mini.scenes.captions import write

CAPTION = "a red apple to the left of a dog on a blue background"
SCALES, SAMPLES, NOUN_SAMPLES = (2.0, 3.0, 4.0, 6.0), 32, 4


def main(model: str = "emoji-scenes", out: Path = Path(__file__).with_suffix(".json")) -> None:
    """Draw, read, and keep what was measured so far."""
    torch.set_num_threads(1)
    ldm, recogniser = LatentDiffusion.from_pretrained(model), Recogniser.load()
    known = scenes_of(read_config(find(model), "LatentDiffusion")).nouns or NOUNS

    alone = {noun: write(Description(((noun, None),))) for noun in known}

    def exact(captions: list[str], scale: float) -> float:
        images = ldm.sample({"caption": captions}, steps=20, guidance_scale=scale, seed=0)
        return score_captions(recogniser.detect(images), captions)["exact"]

    report = {"model": model, "caption": CAPTION, "samples": SAMPLES, "noun_samples": NOUN_SAMPLES, "rows": []}
    for scale in SCALES:
        nouns = {noun: exact([caption] * NOUN_SAMPLES, scale) for noun, caption in alone.items()}
        report["rows"].append({"scale": scale, "caption_exact": exact([CAPTION] * SAMPLES, scale),
                               "nouns_mean": round(sum(nouns.values()) / len(nouns), 4), "nouns": nouns})
        row = report["rows"][-1]
        print(scale, row["caption_exact"], row["nouns_mean"],
              "below .5:", [noun for noun, share in nouns.items() if share < 0.5], flush=True)
        write_json(out, report)


if __name__ == "__main__":
    tyro.cli(main)
