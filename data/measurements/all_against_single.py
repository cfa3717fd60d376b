"""One network for everything, or one for each task? The table of notebook 12.

    python data/measurements/all_against_single.py all=runs/single/all layout=runs/single/layout ... [SCENES]

NAME=FOLDER: models, as `train_single_tasks.py` leaves them. One called like a task is measured on that task, and all
such together make the column "one each"; any other is measured on all tasks. All draw from the same noise for the same
scenes, which no training saw, of seen ("val") and of held-out combinations. Beside them stand the true scenes after the
first stage, the best that can be reached. About 12 minutes for 128 scenes, "all" and six others on one quiet CPU
thread; the results go to `all_against_single.json`. Those stored are of the model that was shipped before: 64 pixels,
sixteen nouns.
"""

import sys
from pathlib import Path

import torch

from ldm_mini.cond import together
from ldm_mini.files import write_json
from ldm_mini.hub import find, read_config
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import Judge
from ldm_mini.measure.judge import after_first_stage
from ldm_mini.scenes import scene_batches, scenes_of, scenes_to_test
from ldm_mini.tasks import TASKS, sample_task

MEASURED = [task for task in TASKS if task != "unconditional"]
SPLITS, STEPS = ("val", "heldout"), 20


def main(*models: str, count: int = 128) -> None:
    """Measure each model, and keep what was measured so far."""
    folders = dict(model.split("=", 1) for model in models)
    first = next(iter(folders.values()))
    config = scenes_of(read_config(find(first), "LatentDiffusion"))
    judge, found = Judge.of_scenes(config), {}
    draws = {(task, split): list(scene_batches(scenes_to_test(config, task, split), count))
             for task in MEASURED for split in SPLITS}

    def keep(column: str, task: str, split: str, pictures) -> None:
        scores = judge.score(task, pictures, together(draws[task, split]))
        found.setdefault(column, {}).setdefault(task, {})[split] = {
            key: round(value, 4) for key, value in scores.items() if value is not None}
        print(column, task, split, found[column][task][split], flush=True)
        write_json(Path(__file__).with_suffix(".json"), {
            "scenes": count, "steps": STEPS, "guidance": {name: TASKS[name].guidance_scale for name in MEASURED},
            "models": found, "trained_steps": trained})

    trained = {name: read_config(find(folder), "LatentDiffusion")["card"].get("steps")
               for name, folder in folders.items()}
    for name, folder in folders.items():
        ldm = LatentDiffusion.from_pretrained(folder)
        for task in [name] if name in MEASURED else MEASURED:
            for split in SPLITS:
                source = torch.Generator().manual_seed(0)
                drawn = [sample_task(ldm, task, batch, steps=STEPS, generator=source) for batch in draws[task, split]]
                keep("one each" if name in MEASURED else name, task, split, torch.cat(drawn))
    for (task, split), batches in draws.items():
        keep("true scenes", task, split, after_first_stage(ldm, task, together(batches)))


if __name__ == "__main__":
    counts = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(*(word for word in sys.argv[1:] if "=" in word), count=counts[0] if counts else 128)
