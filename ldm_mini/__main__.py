"""The command line: `python -m ldm_mini`."""

import os
import re
import sys
import time
import warnings
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from . import options as o
from .extras import NotInstalled

HELP = """\
ldm_mini: latent diffusion models, small and finished.

Pictures from the shipped model, no training, no network:
  python -m ldm_mini sample "a red apple to the left of a dog on a blue background" --out grid.png
  python -m ldm_mini sample "a yellow star" "an owl" --num 8 --seed 1 --guidance-scale 3
  python -m ldm_mini sample --class rocket --num 8
  python -m ldm_mini sample --task superres        held-out inputs, output and truth; also inpaint, semantic, layout
  python -m ldm_mini sample "an owl" --task inpaint --image photo.png --mask hole.png
  python -m ldm_mini sample "a red apple moves up" --task video --out film.gif       (with --image: the first frame)

Train your own, in two stages (Ctrl-C stops cleanly; the same line with --resume goes on, bit by bit):
  python -m ldm_mini train autoencoder --recipe tiny --out runs/autoencoder
  python -m ldm_mini train diffusion   --recipe tiny --out runs/diffusion --autoencoder runs/autoencoder/model
  python -m ldm_mini train diffusion   --net dit ...               a Diffusion Transformer in place of the U-Net
  python -m ldm_mini train video       --recipe small ... --start-from runs/diffusion/model         films of it
  python -m ldm_mini train text        --recipe small              first of recipes `small` and `base`: words to read
  accelerate launch -m ldm_mini train ...          the same on several GPUs or machines

Measure:
  python -m ldm_mini evaluate                      does the model draw what it is told? how sharp is the first stage?
  python -m ldm_mini evaluate --task all           every task that it was trained for
  python -m ldm_mini speedrun                      from nothing to captions drawn rightly: how many CPU-seconds?
  python -m ldm_mini info sd-v1                    parts, shapes, parameters, FLOPs of the paper's models, or of yours

Every command explains its options with --help. Names of recipes: ldm_mini/training/recipes.py.
"""


def train(stage: Positional[Literal["autoencoder", "text", "diffusion", "video"]], recipe: str = "tiny",
          out: o.Out | None = None, task: o.TaskName | Literal["all"] | None = None, language: bool = False,
          net: Literal["unet", "dit"] | None = None,
          autoencoder: str | None = None, start_from: str | None = None, text: str | None = None, resume: bool = False,
          minutes: o.Minutes | None = None, steps: o.Count | None = None, batch_size: o.Batch | None = None,
          lr: o.Rate | None = None, latents: o.Count | None = None, device: o.Device = "auto",
          compile: Literal["recipe", "on", "off"] = "recipe", workers: o.Workers | None = None,
          threads: o.Threads = None, seed: o.Seed = 0, log_every: o.Count = 20, sample_every: o.Count = 500,
          save_every: o.Count = 500, track: str | None = None) -> None:
    """Train one of the two stages, the text transformer, or a film model; the run's folder holds all, while it runs.

    Args:
        stage: the first stage (autoencoder) or the second (diffusion on its latents); words (text); films (video).
        recipe: name of a recipe in ldm_mini/training/recipes.py, such as tiny (a CPU) or base (a GPU).
        out: folder of the run; runs/STAGE-RECIPE unless given. A folder that holds something is never overwritten.
        task: for diffusion: the condition to learn, or all of them in one model; the recipe's own unless given.
        language: for diffusion: captions through a frozen language model with a small trained transformer on top, in
            place of the text transformer from scratch. Needs pip install "ldm_mini[language]".
        net: for diffusion: the network, a U-Net or a Diffusion Transformer; the recipe's own, a U-Net, unless given.
        autoencoder: for diffusion and video: the trained first stage, for example runs/autoencoder-tiny/model.
        start_from: a trained model of the same shape to train further: diffusion on other scenes or with conditions
            that are new to it, a first stage with more residual blocks; for video, the image model that it begins as.
        text: for diffusion and video: a text transformer that has learned to read, for example runs/text-small/model.
        resume: continue the run in this folder from its newest checkpoint, as if it had never stopped.
        minutes: stop after so long, with a checkpoint.
        steps: in place of the recipe's; the learning rate reaches zero at the last.
        batch_size: in place of the recipe's, per process.
        lr: in place of the recipe's.
        latents: number of scenes, or films, to encode for diffusion, in place of the recipe's.
        compile: torch.compile the networks; what fails to compile runs eagerly. On a CPU it takes longer than it saves.
        workers: processes that compose scenes beside the training; 0 composes them in between. Some for a GPU, else 0.
        seed: of the weights, the data and the noise.
        log_every: steps between lines of log.jsonl.
        sample_every: steps between pictures and validation.
        save_every: steps between checkpoints.
        track: log to tensorboard, wandb or another tracker of accelerate's, too, if it is installed.
    """
    from .training.launch import train_stage
    from .training.recipe import for_task
    from .training.recipes import find_recipe

    for stages, options in {
        ("diffusion",): {"task": task, "language": language, "net": net},
        ("diffusion", "video"): {"latents": latents, "text": text, "autoencoder": autoencoder},
        ("autoencoder", "diffusion", "video"): {"start-from": start_from, "workers": workers,
                                                "compile on": compile == "on"}}.items():
        for name, value in options.items():
            if value and stage not in stages:
                raise ValueError(f"--{name} is for {', '.join(stages)}; this is train {stage}.")
    chosen = find_recipe(stage, recipe)
    if task is not None:
        chosen = for_task(chosen, task)
    if language:
        if "text" not in chosen.parts:
            raise ValueError("--language is for captions; this recipe or task has none.")
        chosen = replace(chosen, parts=tuple("language" if part == "text" else part for part in chosen.parts))
    given = {"net": net, "steps": steps, "batch_size": batch_size, "lr": lr, "latents": latents}
    chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})
    out = out or Path("runs") / "-".join(filter(None, (stage, recipe, task, net)))
    o.Folder().check("--out", out)
    train_stage(stage, chosen, out, autoencoder=autoencoder, start_from=start_from, text=text, resume=resume,
                minutes=minutes,
                device=o.ready(device, threads), compile={"recipe": None, "on": True, "off": False}[compile],
                workers=workers, seed=seed, log_every=log_every, sample_every=sample_every, save_every=save_every,
                track=track)


def sample(captions: Positional[tuple[str, ...]] = (), *, task: o.TaskName | Literal["video"] | None = None,
           image: Path | None = None, mask: Path | None = None, size: o.Side | None = None,
           out: o.OutPicture = Path("grid.png"), num: o.Pictures = 8, steps: o.Evaluations = 20,
           guidance_scale: o.Guidance = None, seed: o.Seed = 0,
           model: o.AnyModel = None, sampler: o.SamplerName = "dpm",
           class_name: Annotated[str | None, arg(name="class")] = None, negative: str | None = None,
           device: o.Device = "auto", threads: o.Threads = None) -> None:
    """Draw pictures for captions (in quotes), a class, or the inputs of a task, and save them as one grid.

    Args:
        captions: one or more; several share the --num pictures.
        task: what to start from: held-out scenes, or --image. The grid shows inputs, outputs and the truth. video:
            films for the captions; --out film.gif moves, and beside it lies a strip of frames.
        image: for superres the small picture, for inpaint the picture, for semantic a PNG of class indices, for video
            the first frame.
        mask: for inpaint: white where there is a hole; a random one unless given.
        size: side of the pictures to draw; the model's own unless given. It has seen no other: at half of it, it draws
            next to nothing.
        out: the picture to write: .png, .jpg, .webp or .gif.
        num: number of pictures.
        steps: network evaluations per picture; with heun nearly twice as many.
        seed: same seed, same pictures.
        sampler: DPM-Solver++, DDIM, DDPM (which needs many steps), Euler's method or Heun's.
        class_name: one of the nouns, such as rocket.
        negative: a caption to steer away from.
    """
    began = time.monotonic()
    from .files import FileError
    from .latent_diffusion import LatentDiffusion
    from .scenes.vocabulary import NOUNS
    from .show.films import save_film
    from .show.inputs import film_inputs, run_task, tell_contradictions, told, words_for
    from .show.plotting import save_grid
    from .video_diffusion import LatentVideoDiffusion

    if num < len(captions):
        raise ValueError(f"--num {num} pictures are too few for {len(captions)} captions. One caption: in quotes.")
    device, words = o.ready(device, threads), words_for(captions, class_name, num)
    films = task == "video"
    model = ("emoji-films" if films else "emoji-scenes") if model is None else model
    try:
        ldm = (LatentVideoDiffusion if films else LatentDiffusion).from_pretrained(model, device=device)
    except FileError as error:
        hint = (" --task video needs a --model of films." if films else
                " It makes films: --task video." if "LatentVideoDiffusion" in str(error) else "")
        raise FileError(f"{error}{hint}") from None
    if side := size or ldm.image_size:
        o.check_memory(num * getattr(ldm, "frames", 1), (side, side) if size else side, device)
    loaded = time.monotonic()
    options = {"steps": steps, "sampler": _with_bar(sampler, steps), "seed": seed, "negative": negative}
    if guidance_scale is None and not (ldm.p_uncond or negative):
        guidance_scale = 1.0                                    # it never learned what "no condition" is
    if guidance_scale is not None:
        options["guidance_scale"] = guidance_scale
    with warnings.catch_warnings():
        # such as a word that the model does not know: in one line, without the place in the code
        warnings.showwarning = lambda message, *place, **more: print(f"note: {message}", file=sys.stderr)
        keys = getattr(ldm.conditioner, "keys", ())
        asked = words or negative or task not in (None, "unconditional")
        if guidance_scale not in (None, 1) and not (keys and asked):
            why = "nothing is asked for, and so there is" if keys else "a model without conditions has"
            warnings.warn(f"{why} nothing to be guided by: --guidance-scale has no effect.")
        if size and ldm.image_size and {size} != {*ldm.image_size}:
            learned = " x ".join(map(str, ldm.image_size))
            warnings.warn(f"this model learned from pictures of {learned}; at another --size it may draw little.")
        if len(captions) > 1 and all(len(c.split()) == 1 for c in captions) and {*captions} - {*NOUNS}:
            warnings.warn(f"these are {len(captions)} captions: one of several words is given in quotes.")
        batch, texts = words or ({"caption": [""] * num} if keys else {}), told(words)
        if films:
            batch = film_inputs(ldm, batch, num, size, image, mask)
        if films or (task, image, mask) == (None, None, None):
            if keys and not batch.keys() & {*keys}:
                way = "a caption" if "caption" in keys else "--class" if "class" in keys else "--task"
                raise ValueError(f"this model reads {', '.join(keys)}: give {way}.")
            tell_contradictions(batch)
            images = ldm.sample(batch or None, num=num, size=size, **options)
        else:
            images, texts = run_task(ldm, task, model, num, size, image, mask, words or None, **options)
    files = save_film(images, out, texts=texts) if films else [save_grid(images, out, min(num, 8), texts)]
    what = f"{num} {'film' if films else 'picture'}{'s' * (num > 1)} in {' and '.join(map(str, files))}"
    print(f"{what} ({loaded - began:.1f} s to load, {time.monotonic() - loaded:.1f} s to draw)")


def _with_bar(name: str, steps: int):
    """The sampler of a name, with a bar that tells how far it is."""
    from tqdm.auto import tqdm

    from .samplers import SAMPLERS

    # wraps: `sample` sees that it is still the library's
    return wraps(SAMPLERS[name])(lambda *args, **options: tqdm(SAMPLERS[name](*args, **options), total=steps))


def evaluate(model: o.Model = "emoji-scenes", task: o.TaskName | Literal["all"] | None = None, *,
             num: o.Measured = 256, steps: o.Evaluations = 20, guidance_scale: o.Guidance = None,
             seed: o.Seed = 0, device: o.Device = "auto", threads: o.Threads = None, out: o.Out | None = None,
             simple: bool = False) -> None:
    """Measure a model: does it draw what it is told, on seen and on held-out combinations; and its first stage.

    Args:
        task: what to condition on; all that the model can do; or, unless given, captions.
        num: number of pictures per split.
        steps: network evaluations per picture.
        seed: of scenes and noise.
        out: folder for evaluation.json and evaluation.md.
        simple: on simple scenes (16 nouns, one or two things), whatever it was trained on.
    """
    from .measure.evaluate import run_evaluate

    run_evaluate(model, task, num=num, steps=steps, guidance_scale=guidance_scale, seed=seed,
                 device=o.ready(device, threads), out=out, simple=simple)


def speedrun(*, seed: o.Seed = 0, out: o.Out = Path("runs/speedrun")) -> None:
    """Train from nothing until simple captions are drawn rightly, and count the CPU-seconds: a race, with rules.

    The rules stand at the top of ldm_mini/training/speedrun.py, the entries in data/measurements/speedrun.json. To take
    part, change recipes or code; to reproduce the first entry, change nothing.

    Args:
        seed: of the weights, the data and the noise.
        out: folder for speedrun.json and the model.
    """
    from .training import speedrun as run

    run.speedrun(out=out, seed=seed)


def info(model: Positional[str], *, size: o.Side | None = None) -> None:
    """Parts, shapes, parameters and FLOPs per step of a model. Its weights are neither needed nor read.

    Args:
        model: a model of the paper (vq-f4, kl-f8, celeba256, cin256-v2, sd-v1, ...), shipped weights by name, a folder
            that training wrote, or one that diffusers wrote.
        size: side of the picture; that of its training unless given.
    """
    from .released.sizes import run_info

    run_info(model, size)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status. Mistakes of the user end in one line, not in a traceback."""
    # Threads that wait for work shall go to sleep soon: while they spin, nobody else on a busy machine can work, which
    # costs 5 to 18 times there. Each OpenMP reads its variable when torch is loaded, hence before.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")            # GNU's, on Linux: a fifteenth of its own number
    os.environ.setdefault("KMP_BLOCKTIME", "1")                 # LLVM's and Intel's, elsewhere: ms, in place of 200
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv in (["help"], ["--help"], ["-h"]):
        print(HELP)
        return 0
    import tyro

    try:
        commands = {command.__name__: o.checked(command) for command in (train, sample, evaluate, info, speedrun)}
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m ldm_mini", args=argv)
    except (ValueError, OSError, NotInstalled) as error:        # a files.FileError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        print("error: this machine has too little memory for it: fewer or smaller pictures, or a smaller batch.",
              file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        if status := getattr(error, "status", None):            # a training that was stopped, and has said so
            if status == 141:                                   # by a pipe that is closed: Python must not write there
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
            return status
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    status = main()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # Of many processes that end, now and then one aborts in the threads of torch.distributed while the interpreter
        # shuts down (1 run in 30 on a busy machine, torch 2.15), and the launcher calls the run failed. All is saved.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
