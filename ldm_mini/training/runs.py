"""A training run is a folder: its recipe, log, curve, samples and checkpoints, written while it runs.

    recipe.json   what is trained, number by number      samples/      pictures on the way
    log.jsonl     one line every few steps               checkpoints/  the newest training states, each written whole
    curve.png     the log as a picture                   model/        the result, for `from_pretrained`
"""

import json
import math
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from ..files import FileError, read_json, write_file, write_json
from ..show.plotting import plot_curve
from .state import latest, load_training_state, save_training_state


def open_run(out, recipe: dict, resume: bool = False) -> Path | None:
    """Make the folder of a new run, or find the checkpoint to continue from; never touches another run's results.

    A run that ended before its first checkpoint has nothing to lose and begins anew.
    Raises ValueError if `out` holds a run and resume is False, if there is nothing to resume, or if the recipe changed.
    """
    out = Path(out)
    began, checkpoint = (out / "recipe.json").is_file(), latest(out / "checkpoints")
    if resume:
        if checkpoint is None:
            raise ValueError(f"there is no run to resume in {out}, or it has no checkpoint: start it without --resume.")
        saved, recipe = read_json(out / "recipe.json"), json.loads(json.dumps(recipe))      # tuples are lists in JSON
        if changed := [f"{name} was {saved.get(name)!r} and is {recipe.get(name)!r}"
                       for name in sorted(saved.keys() | recipe.keys()) if saved.get(name) != recipe.get(name)]:
            raise ValueError(f"the run in {out} has another recipe: {', '.join(changed)}. Resume it as it was, or "
                             "start a new one.")
        return checkpoint
    if checkpoint is not None or (not began and out.exists() and any(out.iterdir())):
        raise ValueError(f"{out} already holds {'a run: continue it with --resume' if began else 'files'}, or choose "
                         "another --out. Nothing was changed.")
    (out / "samples").mkdir(parents=True, exist_ok=True)
    (out / "log.jsonl").unlink(missing_ok=True)
    write_json(out / "recipe.json", recipe)
    return None


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
    """The records of a run's log.jsonl, oldest first; a last line that was cut off is passed over."""
    path, records = Path(out) / "log.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def follow(logs, state, out, steps: int, images_per_step: int, sample, *, log_every: int = 20,
           sample_every: int = 500, save_every: int = 500, minutes: float | None = None) -> bool:
    """Run a training loop and write its folder. Returns True when all steps are done, False when it stopped before.

    logs: the generator of train_autoencoder or train_diffusion.
    sample: function () -> dict of measured values; draws pictures into the folder. Called on the first process only.
    It stops, with a checkpoint, after `minutes`, on Ctrl-C and on SIGTERM; always between two steps.
    """
    out, main, window, first = Path(out), state.rank == 0, [], state.step
    began = clock = time.monotonic()
    interval = 0.5 if sys.stderr.isatty() else 20               # a log file needs no animation
    with _stop_requests() as asked, tqdm(total=steps, initial=first, disable=not main, unit="step", smoothing=0.1,
                                         mininterval=interval, maxinterval=interval, dynamic_ncols=True) as bar:
        for log in logs:
            window.append(log)
            bar.update()
            stop = _agree(state, asked.is_set() or (minutes is not None and time.monotonic() - began > 60 * minutes))
            last = stop or log.step == steps
            draw = last or log.step % sample_every == 0
            save = last or log.step % save_every == 0
            if main and (draw or save or log.step % log_every == 0):
                # before anything of it is kept
                _refuse_nan(log, out)
                speed = len(window) * images_per_step / (time.monotonic() - clock)
                _record({**_means(window), "images_per_s": speed, **(sample() if draw else {})}, out, bar)
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
    figure = Figure(figsize=(4.5 * len(names), 3), layout="constrained")
    for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        plot_curve(records, name, ax=ax)
    figure.savefig(Path(out) / "curve.png", dpi=100)


def _means(window) -> dict:
    """The last step, and the mean of each value since the last record; one that began in between counts from there."""
    values = {}
    for log in window:
        for name, value in log.floats().items():
            values.setdefault(name, []).append(value)
    return {**{name: sum(v) / len(v) for name, v in values.items()}, "step": window[-1].step}


def _record(record: dict, out: Path, bar) -> None:
    record = {name: value if name == "step" else float(f"{value:.6g}") for name, value in record.items()}
    with open(out / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    bar.set_postfix_str(f"loss {record['loss']:.4f}, {record['images_per_s']:.0f} images/s")


def _agree(state, stop: bool) -> bool:
    """All processes stop at the same step: they compare notes every tenth one."""
    if state.accelerator is None or state.accelerator.num_processes == 1:
        return stop
    if state.step % 10:
        return False
    return bool(state.accelerator.reduce(torch.tensor(float(stop), device=state.device), reduction="sum").item())


@contextmanager
def _stop_requests():
    """An event that Ctrl-C and SIGTERM set, so that a step is never cut in two. A second Ctrl-C interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handle(number, frame):
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
