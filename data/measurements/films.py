"""What layers over time buy, on the shipped film model, for notebook 16: `python data/measurements/films.py`.

Films that move, of new scenes ("val") with one thing or two, in plain motions (left, grows, apart, ...) or on the paths
that came later (enters, turns, beside another, ...), and of one thing in a motion that training never showed it in
("heldout"): of the film model, told a caption, and with a first frame that is kept (`keep_first`); and of the same
network without its layers over time, which then draws each frame alone, from noise of its own or from one noise for
all. The recogniser reads them frame by frame, and "flicker" is how much the background changes from frame to frame.
"motion_gap": at some levels of noise, the loss with the right motion, and how much more it is with the opposite one.
`--before FOLDER` measures the model after its first leg, too (recipe small_time), `--middle FOLDER` after its second
(small_motion); both are not shipped. About 15 minutes on one thread; the results go to `films.json`.
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro
from torch import nn

from ldm_mini.cond import together
from ldm_mini.diffusion import diffusion_loss
from ldm_mini.files import write_json
from ldm_mini.hub import content_hash, find, read_config
from ldm_mini.measure import Recogniser
from ldm_mini.measure.films import evaluate_films
from ldm_mini.scenes import scenes_of
from ldm_mini.scenes.films import MOTIONS, OPPOSITE, PHRASES, PLAIN_MOTIONS, FilmConfig, film_batches
from ldm_mini.video_diffusion import LatentVideoDiffusion

LEVELS = (999, 950, 900, 800, 600, 300)


def without_time(ldm: LatentVideoDiffusion, share: float = 0.0) -> LatentVideoDiffusion:
    """Each frame by the image network alone; `share` of the noise's variance is common to all frames."""
    ldm.net.temporal = nn.ModuleList(nn.Identity() for _ in ldm.net.temporal)
    ldm.noise_share = share
    return ldm


@torch.no_grad()
def motion_gap(ldm: LatentVideoDiffusion, films: FilmConfig, num: int) -> dict:
    """{level of noise: [loss with the right motion, how much more with the opposite one]}, of films of one thing."""
    scenes, found = replace(films.scenes, min_objects=1, max_objects=1, p_paraphrase=0.0), {}
    batch = together(list(film_batches(replace(films, scenes=scenes, motions=tuple(OPPOSITE)), num)))
    z0, motions = ldm.encode(batch["video"]), [MOTIONS[i] for i in batch["motion"].tolist()]
    wrong = [caption.replace(PHRASES[motion][0], PHRASES[OPPOSITE[motion]][0])
             for caption, motion in zip(batch["caption"], motions, strict=True)]
    eps, nothing = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0)), torch.full((num,), -1)
    for level in LEVELS:
        right, other = (diffusion_loss(ldm.net, ldm.schedule, z0, ldm.conditioner.encode(
            {"caption": said, "class": nothing}), ldm.prediction, torch.full((num,), level), eps).item()
            for said in (batch["caption"], wrong))
        found[str(level)] = [round(right, 5), round(other - right, 5)]
    return found


def main(model: str = "emoji-films", before: str | None = None, middle: str | None = None, num: int = 64,
         steps: int = 20, out: Path = Path(__file__).with_suffix(".json")) -> None:
    """num: films of each row."""
    torch.set_num_threads(1)
    recogniser, scenes = Recogniser.load(), scenes_of(read_config(find(model), "LatentVideoDiffusion"))
    report = {"films": num, "steps": steps, "content": content_hash(model), "motion_gap": {}, "rows": []}
    legs = {name: folder for name, folder in (("after its first leg", before), ("after its second leg", middle))
            if folder}

    def load(way: str) -> LatentVideoDiffusion:
        ldm = LatentVideoDiffusion.from_pretrained(legs.get(way, model))
        return {"frames alone": without_time, "... with one noise for all": lambda m: without_time(m, 0.9999)
                }.get(way, lambda m: m)(ldm)

    def films(split: str, things: int, paths: str) -> FilmConfig:
        chosen = replace(scenes, split=split, min_objects=things, max_objects=things)
        return FilmConfig(chosen, motions=[motion for motion in MOTIONS if motion != "still"
                                           and (motion in PLAIN_MOTIONS) == (paths == "plain")])

    for name in ("film model", *legs):
        report["motion_gap"][name] = motion_gap(load(name), films("val", 1, "plain"), num)
        print(name, report["motion_gap"][name], flush=True)
    kept = "... with its first frame kept"
    for split, things, paths, ways in (
            ("val", 1, "plain", ["film model", kept, "frames alone", "... with one noise for all", *legs]),
            ("val", 1, "new", ["film model", kept]), ("val", 2, "plain", ["film model"]),
            ("val", 2, "new", ["film model"]), ("heldout", 1, "plain", ["film model"])):
        for way in ways:
            scores = evaluate_films(load(way), films(split, things, paths), num, steps, recogniser=recogniser,
                                    first_frame=way == kept)
            report["rows"].append({"way": way, "split": split, "things": things, "paths": paths, "scores": {
                name: {key: round(value, 4) for key, value in seen.items()} for name, seen in scores.items()}})
            print(split, things, paths, way, report["rows"][-1]["scores"]["model"], flush=True)
            write_json(out, report)


if __name__ == "__main__":
    tyro.cli(main)
