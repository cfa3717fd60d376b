"""What the options of the command line may be; all of them are looked at before any work begins.

An option that is `Annotated` with a `Check` is refused by it in one line that names it, in every command that has it:

    Side = Annotated[int, Between(1, 4096)]
"""

import functools
import math
import os
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints

from tyro.conf import arg

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
MOST_PROCESSES = 8 * (os.cpu_count() or 1)                      # more only wait for each other
PIXEL_BYTES = 150                                               # that drawing takes for each pixel, at least


class Check:
    """What a value has to be: `check(option, value)` raises ValueError if it is not."""


@dataclass(frozen=True)
class Between(Check):
    """A number from `low` to `high`; NaN is none."""

    low: float
    high: float
    why: str = ""

    def check(self, option: str, value) -> None:
        """Whether it is one."""
        if not self.low <= value <= self.high:
            raise ValueError(f"{option} must be from {self.low} to {self.high}{self.why}, got {value}.")


@dataclass(frozen=True)
class Folder(Check):
    """A folder that can be written, or made."""

    def check(self, option: str, value) -> None:
        """Whether it is one; tried, and nothing is left behind."""
        from .files import FileError, writable_folder  # torch comes with it, which takes a while

        try:
            writable_folder(value)
        except FileError as error:
            raise FileError(f"{option} {error}") from None


@dataclass(frozen=True)
class Picture(Check):
    """A file for a picture, in a format that can be written."""

    def check(self, option: str, value) -> None:
        """Whether it is one."""
        if value.is_dir() or value.suffix.lower() not in PICTURES:
            raise ValueError(f"{option} {value}: give the name of a picture, ending with {', '.join(PICTURES)}.")
        if value.exists() and not os.access(value, os.W_OK):
            raise ValueError(f"{option} {value} may not be overwritten: choose another file.")
        Folder().check(option, value.parent)


TaskName = Literal["unconditional", "class", "text", "layout", "superres", "semantic", "inpaint"]
SamplerName = Literal["dpm", "ddim", "ddpm", "euler", "heun"]
NAMES = "shipped weights by name, a folder that training wrote, or owner/name on the Hugging Face Hub."
Model = Annotated[str, arg(help=NAMES)]
AnyModel = Annotated[str | None, arg(help=f"{NAMES} Unless given: emoji-scenes; for video emoji-films.")]
Guidance = Annotated[float | None, Between(-100, 100),
                     arg(help="how strictly to follow the condition; 1 = no guidance. Unless given: 4 for words "
                              "and classes, whatever is beside them; 3 for layouts; 2 for pictures and maps.")]
Device = Annotated[str, arg(help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, Between(1, MOST_PROCESSES, ", 8 for each CPU here"),
                    arg(help="CPU threads for torch; its own choice unless given.")]
Workers = Annotated[int, Between(0, MOST_PROCESSES, ", 8 for each CPU here")]
Count = Annotated[int, Between(1, 10**9)]
Batch = Annotated[int, Between(1, 65_536)]
Pictures = Annotated[int, Between(1, 50_000)]
Measured = Annotated[int, Between(8, 50_000, " (fewer are too few to measure anything)")]
Evaluations = Annotated[int, Between(1, 1000)]
Side = Annotated[int, Between(1, 4096)]
Seed = Annotated[int, Between(0, 2**32 - 1)]
Minutes = Annotated[float, Between(0, 10**7)]            # 0: a single step
Rate = Annotated[float, Between(1e-12, 10)]                     # of learning
Out = Annotated[Path, Folder()]
OutPicture = Annotated[Path, Picture()]


def checked(command):
    """The command, which looks at all of its options first."""
    hints = get_type_hints(command, include_extras=True)

    @functools.wraps(command)
    def run(*args, **kwargs):
        given = signature(command).bind(*args, **kwargs)
        given.apply_defaults()
        for name, value in given.arguments.items():
            for check in _checks(hints[name]) if value is not None else ():
                check.check(f"--{name.replace('_', '-')}", value)
        return command(*args, **kwargs)

    return run


def _checks(hint) -> list[Check]:
    """Those in a type, also inside of `... | None`."""
    return [found for part in get_args(hint) for found in ([part] if isinstance(part, Check) else _checks(part))]


def ready(device: str, threads: int | None) -> str:
    """Give torch its threads; returns the device that a name means on this machine."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(kind for kind, is_here in here.items() if is_here)
    if not here.get(device):
        raise ValueError(f"--device {device}: torch finds no such device here; leave it out, or give cpu.")
    return device


def check_memory(num: int, size: tuple[int, int], device: str) -> None:
    """Raise ValueError where `num` pictures of (height, width) certainly take more memory than there is."""
    import torch

    has = math.inf
    if device == "cuda":
        has = torch.cuda.mem_get_info()[1]
    elif hasattr(os, "sysconf"):
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if (needs := num * math.prod(size) * PIXEL_BYTES) > has:
        raise ValueError(f"{num} pictures of {size[0]} x {size[1]} take {needs / 2**30:.0f} GB of memory or more, and "
                         f"here are {has / 2**30:.0f}: draw fewer (--num) or smaller ones (--size).")
