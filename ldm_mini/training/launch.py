"""From a recipe to a finished run: what `python -m ldm_mini train` does, alone or under `accelerate launch`."""

import contextlib
import math
import os
import time
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import torch

from ..files import read_json
from ..hub import content_hash, load_autoencoder
from ..latent_diffusion import LatentDiffusion
from . import recipes, runs, stopping
from .stages import FirstStageRun, SecondStageRun, TextRun
from .video import VideoRun


def train_stage(stage: str, recipe, out, *, autoencoder: str | None = None, start_from: str | None = None,
                text: str | None = None, resume: bool = False, device: str | None = None, compile: bool | None = None,
                workers: int | None = None, seed: int = 0, track=None, **options) -> bool:
    """Train a recipe in the folder `out`; True when it is finished, False when `minutes` were over before.

    autoencoder: for stages "diffusion" and "video", the first stage: the `model` folder of its run, or a name that
                 `hub.find` knows.
    start_from:  a trained diffusion model of the same shape, to be trained further; new conditions may join it. For
                 stage "video", the image model that it begins as.
    text:        for the same, a text transformer that can read: the `model` folder of a run of stage "text".
    compile:     None = as the recipe says, on a GPU. workers: None = 0 on a CPU, which they would only slow down.
    track:       also log to what accelerate knows by this name ("tensorboard", "wandb", ...), or to a GeneralTracker.
    options:     of `runs.follow`: minutes, log_every, sample_every, save_every.
    Raises ValueError before anything is written, if the folder, the recipe or the first stage cannot be used, and
    `stopping.Stopped` when it was asked to stop, all saved. Both can be resumed.
    """
    if stage in ("diffusion", "video") and autoencoder is None:
        raise ValueError(f"{stage} needs a first stage: --autoencoder FOLDER, the `model` folder of a run of "
                         "`python -m ldm_mini train autoencoder`.")
    given = {"autoencoder": autoencoder, "start_from": start_from, "text": text}
    given = {name: str(model) for name, model in given.items() if model}
    out = Path(out)
    accelerator = _accelerator(device, track, out)
    settings = {"stage": stage, "seed": seed, "processes": accelerator.num_processes, **asdict(recipe), **given,
                "weights": {name: content_hash(model) for name, model in given.items()}}
    with contextlib.ExitStack() as inside:
        asked = stopping.Requests()
        inside.enter_context(asked.from_output())
        if accelerator.is_main_process:
            inside.enter_context(runs.owned(out))
        # a run that goes on computes as it began, wherever that was
        settings["bf16"] = (read_json(out / "recipe.json").get("bf16", False)
                            if resume and (out / "recipe.json").is_file() else
                            accelerator.mixed_precision == "bf16" or recipe.bf16 and bf16_pays(accelerator.device))
        # the first process looks what is there, the others find it
        with accelerator.main_process_first():
            checkpoint = (runs.find_checkpoint(out, settings, resume, defaults(recipe))
                          if accelerator.is_main_process else
                          runs.latest(out / "checkpoints") if resume else None)
        if workers is None:
            workers = 0 if accelerator.device.type == "cpu" else min(12, max(1, (os.cpu_count() or 2) - 2))
        # the same fresh weights in every process
        torch.manual_seed(seed)
        kind = {"autoencoder": FirstStageRun, "text": TextRun, "diffusion": SecondStageRun,
                "video": VideoRun}[stage]
        run = kind(recipe, out, accelerator, workers, seed, checkpoint, autoencoder, start_from, text,
                   settings["bf16"])
        # all is built, nothing was refused: from here on the folder is this run's
        if accelerator.is_main_process:
            runs.open_run(out, settings, checkpoint)
        if track is not None:
            accelerator.init_trackers("ldm_mini", {"stage": stage, "recipe": recipe.name, "seed": seed})
        run.begin()
        if (recipe.compile and run.state.device.type == "cuda") if compile is None else compile:
            _compile(run.state.model)
        finished = _finish(run, settings, asked, options)
    if asked.number is not None and not finished:
        raise stopping.Stopped(asked.number)
    return finished


def defaults(recipe) -> dict:
    """What nobody says of such a recipe: all of its settings that have a default."""
    given = {field.name: field.default for field in fields(recipe) if field.default is not MISSING}
    if getattr(recipe, "net", None) == "unet":
        given["dit"] = recipe.dit                               # of a network that it has not: any size will do
    return {name: value for name, value in asdict(replace(recipe, **given)).items() if name in given}


def _finish(run, settings: dict, asked, options: dict) -> bool:
    """The training itself, and the model that it leaves."""
    accelerator, recipe, state = run.accelerator, run.recipe, run.state
    if accelerator.is_main_process and recipe.bf16 and accelerator.device.type == "cpu":
        accelerator.print(f"on this CPU, {'bfloat16' if settings['bf16'] else 'float32'}: measured to be faster")
    together = recipe.batch_size * accelerator.num_processes
    finished = runs.follow(run.logs(), state, run.out, recipe.steps, together, run.sample, asked=asked, **options)
    if accelerator.is_main_process:
        computer = (torch.cuda.get_device_name(state.device) if state.device.type == "cuda" else
                    f"CPU, {torch.get_num_threads()} threads")
        run.export({"recipe": settings, "steps": state.step, "hardware": f"{computer}, torch {torch.__version__}",
                    "minutes": round(runs.minutes_of(run.out, together), 1)})
        accelerator.print(f"{'Finished' if finished else 'Stopped'} at step {state.step} of {recipe.steps}. "
                          f"The model so far: {run.out / 'model'}" + ("" if finished else "; continue with --resume."))
    accelerator.end_training()
    return finished


def load_or_train(train: bool = False, recipe: str = "base", *, stage: str = "diffusion", model: str = "emoji-scenes",
                  out=None, device: str | None = None, **options):
    """The shipped model, or your own: the same cell shows good pictures on a laptop and trains for real on a GPU.

    train=False: `model` by name or folder, for stage "autoencoder" also a first stage alone, such as "emoji-vq-f4".
    train=True: all stages of a recipe, in the folder `out` (runs/RECIPE unless given), continued where they were if
    they had begun; `options` go to `train_stage`.
    stage "diffusion" -> LatentDiffusion, "autoencoder" -> its first stage alone; in evaluation mode.
    Raises ValueError for an unknown stage or recipe.
    """
    stages = ("autoencoder", "diffusion")
    if stage not in stages:
        raise ValueError(f"load_or_train: stage must be one of {stages}, got {stage!r}.")
    if not train:
        load = load_autoencoder if stage == "autoencoder" else LatentDiffusion.from_pretrained
        return load(model, device=device)
    # words between the two, where the second stage wants them to be read already
    names = stages[:stages.index(stage) + 1]
    chosen = {name: recipes.find_recipe(name, recipe) for name in names}
    if "diffusion" in chosen and chosen["diffusion"].text_lr < 1:
        chosen = {"autoencoder": chosen["autoencoder"], "text": recipes.find_recipe("text", recipe), **chosen}
    out, made = Path("runs") / recipe if out is None else Path(out), {}
    for name, numbers in chosen.items():
        train_stage(name, numbers, out / name, **(made if name == "diffusion" else {}), device=device,
                    resume=runs.latest(out / name / "checkpoints") is not None, **options)
        made[name] = str(out / name / "model")
    load = load_autoencoder if stage == "autoencoder" else LatentDiffusion.from_pretrained
    return load(out / stage / "model", device=device)


def _accelerator(device: str | None, track=None, out=None):
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker, get_available_trackers

    # accelerate passes over what is not there, in silence
    there = [str(name) for name in get_available_trackers()]
    if not isinstance(track, GeneralTracker | None) and track not in there:
        raise ValueError(f"--track {track}: accelerate knows no such tracker, or it is not installed here. Found: "
                         f"{', '.join(there) or 'none'}.")

    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")              # TF32
        torch.backends.cudnn.allow_tf32 = True
    accelerator = Accelerator(cpu=device == "cpu", log_with=track, project_dir=out)
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(f"mixed precision {accelerator.mixed_precision!r} is not supported: use bf16 or no.")
    return accelerator


def bf16_pays(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: on a GPU always; on a CPU it is measured, a convolution's step
    with each. Processors with instructions for it gain half, all others lose 8 to 60 times."""
    if device.type != "cpu":
        return device.type == "cuda"
    layer, x, seconds = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(8, 64, 8, 8), {}
    for _ in range(16):                                         # the first prepare; the least is the undisturbed
        for enabled in (False, True):
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                layer(x).float().square().mean().backward()
            seconds[enabled] = min(seconds.get(enabled, math.inf), time.perf_counter() - began)
    return seconds[True] < 0.9 * seconds[False]


def _compile(model) -> None:
    """Compile the U-Net, or encoder and decoder; whatever the compiler cannot do runs eagerly.

    The decoder's last layer stays out: the adaptive weight asks for its gradient alone, and a compiled backward gives
    all or nothing. The buffers of a backward must outlive it, for the adaptive weight runs it before the loss does.
    """
    import torch._dynamo
    import torch._functorch.config

    torch._dynamo.config.suppress_errors = True
    torch._functorch.config.donated_buffer = False
    parts = [model.net] if hasattr(model, "net") else []
    if hasattr(model, "decoder"):
        parts = [model.encoder, model.decoder.middle, *model.decoder.levels]
    for part in parts:
        part.compile()
