"""What layers over time buy, on the shipped film model, for notebook 16: `python data/measurements/films.py`.

Films of new scenes ("val"), and of things in a motion that training never showed them in ("heldout"): of the film
model, told a caption, and with a first frame that is kept (`keep_first`); and of the same network without its layers
over time, which then draws each frame alone, from noise of its own or from one noise for all. The recogniser reads
them frame by frame, and "flicker" is how much the background changes from frame to frame. About 20 minutes on one
thread; the results go to `films.json`.
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro
from torch import nn

from ldm_mini.files import write_json
from ldm_mini.hub import content_hash, find, read_config
from ldm_mini.measure import Recogniser
from ldm_mini.measure.films import evaluate_films
from ldm_mini.scenes import scenes_of
from ldm_mini.scenes.films import FilmConfig
from ldm_mini.video_diffusion import LatentVideoDiffusion


def without_time(ldm: LatentVideoDiffusion, share: float = 0.0) -> LatentVideoDiffusion:
    """Each frame by the image network alone; `share` of the noise's variance is common to all frames."""
    ldm.net.temporal = nn.ModuleList(nn.Identity() for _ in ldm.net.temporal)
    ldm.noise_share = share
    return ldm


def main(model: str = "emoji-films", num: int = 64, steps: int = 20,
         out: Path = Path(__file__).with_suffix(".json")) -> None:
    """num: films of each row."""
    torch.set_num_threads(1)
    recogniser, scenes = Recogniser.load(), scenes_of(read_config(find(model), "LatentVideoDiffusion"))
    report = {"films": num, "steps": steps, "content": content_hash(model), "rows": []}
    ways = {"film model": {}, "... with its first frame kept": {"first_frame": True}, "frames alone": {},
            "... with one noise for all": {}}
    for split in ("val", "heldout"):
        for way, options in ways.items():
            ldm = LatentVideoDiffusion.from_pretrained(model)
            if way in ("frames alone", "... with one noise for all"):
                if split == "heldout":
                    continue
                without_time(ldm, 0.0 if way == "frames alone" else 0.9999)
            films = FilmConfig(replace(scenes, split=split, max_objects=min(2, scenes.max_objects)), ldm.frames)
            scores = evaluate_films(ldm, films, num, steps, recogniser=recogniser, **options)
            report["rows"].append({"way": way, "split": split, "scores": {
                name: {key: round(value, 4) for key, value in seen.items()} for name, seen in scores.items()}})
            print(split, way, report["rows"][-1]["scores"]["model"], flush=True)
            write_json(out, report)


if __name__ == "__main__":
    tyro.cli(main)
