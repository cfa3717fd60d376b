"""The tasks of the paper (LDM sec. 4): what a model of each is built of, what it reads, how to sample, what to show.

    ldm.sample(inputs("superres", batch), guidance_scale=advised_guidance(ldm, "superres"))

A model of several parts does all their tasks, and their combinations: give `sample` the keys of more than one.
Used from notebook 10 on.
"""

from dataclasses import dataclass

from torch import Tensor

from .cond import batch_size

# The guidance scale advised for words: most scenes exactly as told, and near real ones (data/measurements/guidance.py).
TEXT_GUIDANCE = 4.0
# The paper asks pictures and maps without guidance. A network as small as ours obeys small pictures and maps better
# with some; holes are filled no better for it (data/measurements/pictures_as_condition.py).
PICTURE_GUIDANCE = 2.0
PARTS = ("text", "class", "layout", "lowres", "semantic", "inpaint")           # of a conditioner; in this order


@dataclass(frozen=True)
class Task:
    """parts: the conditioner of a model for this task alone. keys: what is read of a batch. guidance_scale: advised."""

    parts: tuple[str, ...]
    keys: tuple[str, ...]
    guidance_scale: float = 1.0


TASKS = {
    "unconditional": Task((), ()),
    "class": Task(("class",), ("class",), TEXT_GUIDANCE),
    "text": Task(("text",), ("caption",), TEXT_GUIDANCE),
    "layout": Task(("layout",), ("labels", "boxes"), 3.0),
    "superres": Task(("lowres",), ("lowres",), PICTURE_GUIDANCE),
    "semantic": Task(("semantic",), ("semantic",), PICTURE_GUIDANCE),
    "inpaint": Task(("inpaint",), ("image", "mask"), PICTURE_GUIDANCE),
}


def find_task(name: str) -> Task:
    """The task of a name. Raises ValueError that lists the names."""
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(TASKS)}.")
    return TASKS[name]


def advised_guidance(ldm, task: str) -> float:
    """The task's own scale; 1 for a model that never learned to do without its condition (`p_uncond` 0)."""
    return find_task(task).guidance_scale if ldm.p_uncond else 1.0


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
    scale = advised_guidance(ldm, task) if guidance_scale is None else guidance_scale
    given = inputs(task, batch, ldm)
    num = batch_size(batch) if given is None else None
    return ldm.sample(given, num=num, guidance_scale=scale, **options)
