"""The tasks of the paper (LDM sec. 4): what a model of each is built of, what it reads, how to sample, what to show.

    ldm.sample(inputs("superres", batch), guidance_scale=TASKS["superres"].guidance_scale)

A model of several parts does all their tasks, and their combinations: give `sample` the keys of more than one.
"""

from dataclasses import dataclass

from torch import Tensor

from .conditioners import (
    ClassConditioner,
    CombinedConditioner,
    Conditioner,
    InpaintConditioner,
    LayoutConditioner,
    LowResConditioner,
    SemanticConditioner,
    TextConditioner,
)
from .conditioning import batch_size
from .diffusion import TEXT_GUIDANCE
from .text import TextTransformer
from .vocabulary import NOUNS, SEMANTIC

PARTS = ("text", "class", "layout", "lowres", "semantic", "inpaint")           # of a conditioner; in this order
LANGUAGE = "language"                           # in place of "text": a frozen language model, an extra (language.py)
# How often each is trained alone, relative to the others: words need the most practice, maps the least.
PRACTICE = {"text": 3, "layout": 2, "class": 1, "lowres": 1, "semantic": 1, "inpaint": 1}


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


def build_parts(names, first_stage, width: int, text_layers: int = 3, text_heads: int = 4, max_length: int = 24,
                p_drop_each: float = 0.0, p_single: float = 0.0, alone: str | None = None) -> Conditioner | None:
    """A fresh conditioner of some PARTS; None for none. first_stage: config of the autoencoder (its factor, channels).

    Alone, a part by concatenation is always there; among several, each can be absent, and says so.
    "language" in place of "text": the captions go through a frozen language model, which must be installed.
    alone: the one of several parts that training shows, in place of PRACTICE; all the others are kept dropped.
    """
    if alone is not None and (alone not in names or len(names) < 2):
        raise ValueError(f"build_parts: alone={alone!r} must be one of several parts, and these are {tuple(names)}.")
    if unknown := [name for name in names if name not in (*PARTS, LANGUAGE)]:
        raise ValueError(f"build_parts: there are no parts {unknown}; there are {', '.join((*PARTS, LANGUAGE))}.")
    if "text" in names and LANGUAGE in names:
        raise ValueError('build_parts: "language" is another reader of captions: take it in place of "text".')
    names = tuple("text" if name == LANGUAGE else name for name in names) if (frozen := LANGUAGE in names) else names
    factor, channels, several = first_stage.downsample_factor, first_stage.latent_channels, len(names) > 1
    build = {
        "text": lambda: (_language(width, text_layers, text_heads, max_length) if frozen else
                         TextConditioner(TextTransformer(width, text_layers, text_heads, max_length))),
        "class": lambda: ClassConditioner(len(NOUNS), width, width),
        "layout": lambda: LayoutConditioner(len(NOUNS), width, heads=text_heads),
        "lowres": lambda: LowResConditioner(factor, several),
        "semantic": lambda: SemanticConditioner(len(SEMANTIC), factor, several),
        "inpaint": lambda: InpaintConditioner(channels, factor, several)}
    parts = [build[name]() for name in PARTS if name in names]
    if not several:
        return parts[0] if parts else None
    practice = [PRACTICE[name] if alone is None else float(name == alone) for name in PARTS if name in names]
    return CombinedConditioner(parts, p_drop_each, p_single if alone is None else 1.0, practice)


def _language(width: int, layers: int, heads: int, max_length: int) -> Conditioner:
    from .language import LanguageConditioner  # an extra, hence only here

    return LanguageConditioner(width, layers, heads, max_length)


def net_inputs(conditioner, width: int) -> dict:
    """The widths of a UNetConfig for a conditioner of `build_parts`: context_dim, vector_dim, concat_channels."""
    parts = list(getattr(conditioner, "parts", [] if conditioner is None else [conditioner]))
    joined = sum(getattr(part, "concat_channels", 0) for part in parts)
    tokens = any(not hasattr(part, "concat_channels") for part in parts)
    return {"context_dim": width if tokens else None, "vector_dim": width if tokens else None,
            "concat_channels": joined}


def cached_inputs(names, autoencoder):
    """What to keep beside cached latents for some PARTS: (keys of a batch, function of a batch that makes more)."""
    keys = {"text": ("caption",), LANGUAGE: ("caption",), "class": ("class",), "layout": ("labels", "boxes"),
            "lowres": ("lowres",), "semantic": ("semantic",), "inpaint": ()}
    kept = tuple(key for name in (LANGUAGE, *PARTS) if name in names for key in keys[name])
    if "inpaint" not in names:
        return kept, None
    part = InpaintConditioner(autoencoder.config.latent_channels, autoencoder.config.downsample_factor)
    part.use_first_stage(autoencoder)
    return kept, part.prepare
