"""A training run is a folder: its recipe, log, curve, samples and checkpoints, written while it runs.

    recipe.json   what is trained, number by number      samples/      pictures on the way
    log.jsonl     one line every few steps               checkpoints/  the newest training states, each written whole
    curve.png     the log as a picture                   model/        the result, for `from_pretrained`
    owner.json    which process trains here, while it does
"""

import json
import math
import os
import socket
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import torch
from tqdm import tqdm

from ..files import FileError, read_json, write_file, write_json
from ..show.plotting import plot_curve
from .state import NAMES, latest, load_training_state, save_training_state
from .stopping import Requests

LOCK = (".lock", "owner.json")


@contextmanager
def owned(out):
    """Hold a run's folder, so that no second process trains there. Raises ValueError if one does already.

    The lock goes with its process, however that ends: what a dead one left behind holds nobody.
    """
    out = Path(out)
    if out.is_dir() and not (out / "recipe.json").is_file() and {path.name for path in out.iterdir()} - {*LOCK}:
        raise ValueError(f"{out} already holds files: choose another --out. Nothing was changed.")
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    lock, owner = (out / name for name in LOCK)
    try:
        # where a file system knows no locks, a file with process and host stands for one
        held = filelock.FileLock(lock)
        held.acquire(timeout=0)
    except filelock.Timeout:
        raise _taken(out, owner) from None
    except NotImplementedError:
        held = filelock.SoftFileLock(lock)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            raise _taken(out, owner, f" If it died, delete {lock}.") from None
    try:
        write_json(owner, {"process": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        owner.unlink(missing_ok=True)
        # first the name, then the lock: who waits for it must not get one that a third cannot see
        if os.name == "posix":
            lock.unlink(missing_ok=True)
        held.release()
        lock.unlink(missing_ok=True)
        # a run that was refused leaves nothing behind
        with suppress(OSError):
            for folder in new:
                folder.rmdir()


def _taken(out: Path, owner: Path, more: str = "") -> ValueError:
    """Somebody else trains there: who, as far as that can be read."""
    who = {}
    with suppress(FileError):
        who = read_json(owner)
    return ValueError(f"{out} belongs to a run that is going on (process {who.get('process', '?')} on "
                      f"{who.get('host', '?')}): stop that one first, or choose another --out.{more}")


def find_checkpoint(out, recipe: dict, resume: bool = False, defaults: dict | None = None) -> Path | None:
    """The checkpoint to continue from, None for a new run. Writes nothing.

    A run that ended before its first checkpoint, and left no model, has nothing to lose and begins anew. One that is
    resumed has to have the same recipe: models it goes on from are compared by content ("weights"), their paths are for
    show; and only its "steps" may be more than they were. What a recipe could not say yet when it was written is as
    `defaults` have it.
    Raises ValueError if `out` holds a run and resume is False, if there is nothing to resume, or if the recipe changed.
    """
    out, recipe, defaults = Path(out), *json.loads(json.dumps([recipe, defaults or {}]))     # tuples are lists in JSON
    checkpoint = latest(out / "checkpoints", tell=print if resume else None)
    # also of a run whose checkpoints are damaged, or were deleted when it was finished
    left = any((out / "checkpoints").glob(NAMES)) or (out / "model").exists()
    if resume:
        if checkpoint is None:
            way = "whole checkpoint: start another, in a new --out" if left else "checkpoint: start it without --resume"
            raise ValueError(f"there is no run to resume in {out}, or it has no {way}.")
        saved = {**defaults, **read_json(out / "recipe.json")}
        longer = recipe["steps"] > _steps(saved)
        passed = {"steps"} if longer else set()
        # a run of a time when only paths were written down is told by them
        passed |= set(recipe.get("weights", ())) if "weights" in saved else {"weights"}
        if changed := [f"{name} was {saved.get(name)!r} and is {recipe.get(name)!r}"
                       for name in sorted((saved.keys() | recipe.keys()) - passed)
                       if saved.get(name) != recipe.get(name)]:
            raise ValueError(f"the run in {out} has another recipe: {', '.join(changed)}. Resume it as it was, or "
                             "start a new one.")
        if longer:
            print(f"{recipe['steps']} steps in place of {saved['steps']}: the learning rate goes on as if they had "
                  f"been planned from the start ({recipe.get('decay', 'constant')}).")
        return checkpoint
    if left:
        raise ValueError(f"{out} already holds a run: continue it with --resume, or choose another --out. Nothing was "
                         "changed.")
    return None


def _steps(recipe: dict) -> float:
    """How many a saved recipe has; more than any if that cannot be read."""
    return steps if isinstance(steps := recipe.get("steps"), int) else math.inf


def open_run(out, recipe: dict, checkpoint: Path | None = None) -> None:
    """Write down what is trained; a new run, which all is ready for, begins with an empty log."""
    out, recipe = Path(out), json.loads(json.dumps(recipe))
    (out / "samples").mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        (out / "log.jsonl").unlink(missing_ok=True)
    if checkpoint is None or recipe["steps"] > _steps(read_json(out / "recipe.json")):
        write_json(out / "recipe.json", recipe)


def restore(state, checkpoint, out) -> None:
    """Set a TrainState (already built as for a new run) to a checkpoint, and cut the log back to its step."""
    step, parts = load_training_state(checkpoint)
    try:
        state.load_state_dict(parts)
    except (KeyError, RuntimeError) as error:
        raise FileError(f"{checkpoint} was saved by a run of another model: {error}") from None
    if state.rank == 0:
        kept = [json.dumps(record) for record in read_log(out) if record["step"] <= step]
        write_file(Path(out) / "log.jsonl", "".join(line + "\n" for line in kept).encode())


def read_log(out) -> list[dict]:
    """The records of a run's log.jsonl, oldest first; a line that is damaged or cut off is passed over."""
    path, records = Path(out) / "log.jsonl", []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("step")) is int and all(
                    isinstance(value, (int, float)) for value in record.values()):
                records.append(record)
    return records


def follow(logs, state, out, steps: int, images_per_step: int, sample, *, log_every: int = 20,
           sample_every: int = 500, save_every: int = 500, minutes: float | None = None, asked=None) -> bool:
    """Run a training loop and write its folder. Returns True when all steps are done, False when it stopped before.

    logs: the generator of train_autoencoder or train_diffusion.
    sample: function () -> dict of measured values; draws pictures into the folder. Called on the first process only.
    asked: the Requests to stop, whose `number` tells afterwards if there was one.
    It stops, with a checkpoint, after `minutes` and when it is asked to; always between two steps.
    """
    asked = asked or Requests()
    out, main, window, first = Path(out), state.rank == 0, [], state.step
    began = clock = time.monotonic()
    interval = 0.5 if sys.stderr.isatty() else 20               # a log file needs no animation
    with asked.from_signals(), tqdm(total=steps, initial=first, disable=not main, unit="step", smoothing=0.1,
                                         mininterval=interval, maxinterval=interval, dynamic_ncols=True) as bar:
        for log in logs:
            window.append(log)
            bar.update()
            late = minutes is not None and time.monotonic() - began > 60 * minutes
            stop = _agree(state, late or asked.number is not None)
            last = stop or log.step == steps
            draw = last or log.step % sample_every == 0
            save = last or log.step % save_every == 0
            if main and (draw or save or log.step % log_every == 0):
                # before anything of it is kept
                _refuse_nan(log, out)
                speed = len(window) * images_per_step / (time.monotonic() - clock)
                record = _record({**_means(window), "images_per_s": speed, **(sample() if draw else {})}, out, bar)
                if state.accelerator is not None:
                    state.accelerator.log(record, step=log.step)
                # sampling is no part of the training speed
                window, clock = [], time.monotonic()
            if main and log.step == first + 20 and not last:
                seconds = (time.monotonic() - began) / 20
                bar.write(f"{seconds:.3g} s per step: about {seconds * (steps - log.step) / 60:.1f} minutes to go")
            if main and save:
                save_training_state(out / "checkpoints", log.step, state.state_dict())
                draw_curve(out)
            if stop:
                break
    if state.accelerator is not None:
        state.accelerator.wait_for_everyone()
    return state.step >= steps


def minutes_of(out, images_per_step: int) -> float:
    """How long the steps of a run took, however often it was resumed; by its log, without drawing and saving."""
    step, seconds = 0, 0.0
    for record in read_log(out):
        if speed := record.get("images_per_s"):
            seconds += (record["step"] - step) * images_per_step / speed
            step = record["step"]
    return seconds / 60


def _refuse_nan(log, out) -> None:
    """Stop a run whose loss is no number any more: training on would replace every good checkpoint."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(value := getattr(log, name)):
            raise ValueError(f"{name} became {value} by step {log.step}, so the run stopped. Lower the learning rate, "
                             f"in a new --out. The last good checkpoint: {latest(out / 'checkpoints')}.")


def draw_curve(out) -> None:
    """log.jsonl -> curve.png: the loss, and beside it whatever was measured on new pictures (names with `val_`)."""
    from matplotlib.figure import Figure  # no pyplot: no window, no global state

    records = read_log(out)
    names = ["loss", *sorted({name for r in records for name in r if name.startswith("val_")})]
    across = min(4, len(names))
    down = math.ceil(len(names) / across)
    figure = Figure(figsize=(3.6 * across, 2.4 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    for name, ax in zip(names, panels):
        plot_curve(records, name, ax=ax)
    for ax in panels:                                           # no more to show
        ax.remove()
    figure.savefig(Path(out) / "curve.png", dpi=100)


def _means(window) -> dict:
    """The last step, and the mean of each value since the last record; one that began in between counts from there."""
    values = {}
    for log in window:
        for name, value in log.floats().items():
            values.setdefault(name, []).append(value)
    return {**{name: sum(v) / len(v) for name, v in values.items()}, "step": window[-1].step}


def _record(record: dict, out: Path, bar) -> dict:
    record = {name: value if name == "step" else float(f"{value:.6g}") for name, value in record.items()}
    with open(out / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    bar.set_postfix_str(f"loss {record['loss']:.4f}, {record['images_per_s']:.0f} images/s")
    return record


def _agree(state, stop: bool) -> bool:
    """All processes stop at the same step: they compare notes every tenth one."""
    if state.accelerator is None or state.accelerator.num_processes == 1:
        return stop
    if state.step % 10:
        return False
    return bool(state.accelerator.reduce(torch.tensor(float(stop), device=state.device), reduction="sum").item())
