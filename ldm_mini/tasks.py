"""The tasks of the paper (LDM sec. 4): what a model of each is built of, what it reads, how to sample, what to show.

    ldm.sample(inputs("superres", batch), guidance_scale=TASKS["superres"].guidance_scale)

A model of several parts does all their tasks, and their combinations: give `sample` the keys of more than one.
Used from notebook 10 on.
"""

from dataclasses import dataclass

from torch import Tensor

from .cond import batch_size

# The guidance scale advised for words: most scenes exactly as told, and near real ones (data/measurements/guidance.py).
TEXT_GUIDANCE = 4.0
PARTS = ("text", "class", "layout", "lowres", "semantic", "inpaint")           # of a conditioner; in this order


@dataclass(frozen=True)
class Task:
    """parts: the conditioner of a model for this task alone. keys: what it reads of a batch. guidance_scale: advised.

    Maps and pictures say nearly everything: they need no guidance, which then costs nothing.
    """

    parts: tuple[str, ...]
    keys: tuple[str, ...]
    guidance_scale: float = 1.0


TASKS = {
    "unconditional": Task((), ()),
    "class": Task(("class",), ("class",), TEXT_GUIDANCE),
    "text": Task(("text",), ("caption",), TEXT_GUIDANCE),
    "layout": Task(("layout",), ("labels", "boxes"), 3.0),
    "superres": Task(("lowres",), ("lowres",)),
    "semantic": Task(("semantic",), ("semantic",)),
    "inpaint": Task(("inpaint",), ("image", "mask")),
}


def find_task(name: str) -> Task:
    """The task of a name. Raises ValueError that lists the names."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}.")
    return TASKS[name]


def possible(ldm) -> list[str]:
    """The tasks that a LatentDiffusion can do. Without any condition too, if it knows the empty caption."""
    keys = set(ldm.conditioner.keys) if ldm.conditioner is not None else set()
    return [name for name, task in TASKS.items()
            if (set(task.keys) <= keys if task.keys else not keys or "caption" in keys)]


def check_possible(ldm, task: str) -> None:
    """Raise ValueError if there is no such task, or if the model was not trained for it."""
    find_task(task)
    if task not in possible(ldm):
        raise ValueError(f"this model cannot do the task {task!r}; it can do {', '.join(possible(ldm))}.")


def inputs(task: str, batch: dict, ldm=None) -> dict | None:
    """What `ldm.sample` is given for a batch of scenes: the task's keys of it, and nothing that would tell more.

    "unconditional": None; with an `ldm` that has conditions, the empty captions.
    """
    keys = find_task(task).keys
    if not keys:
        return None if ldm is None or ldm.conditioner is None else {"caption": [""] * batch_size(batch)}
    return {key: batch[key] for key in keys}


def sample_task(ldm, task: str, batch: dict, guidance_scale: float | None = None, **options) -> Tensor:
    """One picture (B,3,H,W) per scene of the batch, from nothing but the task's inputs. options: of `ldm.sample`.

    Raises ValueError if the model was not trained for the task.
    """
    check_possible(ldm, task)
    scale = TASKS[task].guidance_scale if guidance_scale is None else guidance_scale
    given = inputs(task, batch, ldm)
    num = batch_size(batch) if given is None else None
    return ldm.sample(given, num=num, guidance_scale=scale, **options)
