"""The CPU speed-run: how many CPU-seconds from nothing to a model that draws what simple captions say?

    python -m ldm_mini speedrun                 # about 40 minutes on one core; teachers: an assignment, see --help

Rules. (1) The task: scenes of `TINY_SCENES`, 64 pixels, from their captions. (2) It counts when the shipped recogniser
says that at least 80% of 256 captions of the `val` split, seeds 0 to 255, are drawn exactly, the first sample of each.
(3) Data is free: scenes, captions and their facts, as many as you like, of the `train` split only. (4) Weights are not:
all that learns starts fresh, the perceptual loss' network excepted. (5) First stage, text and diffusion all count, and
encoding latents too; validation does not. (6) One process, one thread; CPU-seconds, not the clock's. (7) Anything else
may change: networks, losses, optimizers, samplers, up to 32 network evaluations a picture, with guidance or without.
(8) An entry names its commit, processor and seed. (9) A second seed must reach .75. (10) The table:
data/measurements/speedrun.json.
"""

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch

from ..files import write_json
from ..latent_diffusion import latent_scale
from ..measure.recogniser import Recogniser
from ..measure.scoring import score_captions
from ..perceptual import PerceptualLoss
from ..scenes.data import scene_stream
from ..scenes.scene import SceneConfig, random_scene
from ..text import TextTransformer
from ..train import TrainState, train_autoencoder, train_diffusion
from .build import (
    build_autoencoder,
    build_diffusion,
    build_reader,
    cached_inputs,
    give_text,
    standardize,
    train_state,
)
from .latents import cache_latents
from .launch import bf16_pays
from .reading import facts_stream, train_reader
from .recipe import AutoencoderRecipe, DiffusionRecipe, TextRecipe
from .recipes import AUTOENCODERS, DIFFUSIONS, TEXTS

TARGET, CAPTIONS = 0.8, 256


@dataclass(frozen=True)
class Entry:
    """What a run does, and how its pictures are sampled; judged every `look_every` steps, the last third of them."""

    autoencoder: AutoencoderRecipe = AUTOENCODERS["speedrun"]
    text: TextRecipe = TEXTS["speedrun"]
    diffusion: DiffusionRecipe = DIFFUSIONS["speedrun"]
    guidance_scale: float = 5.0                 # with 32 steps, on other captions, .02 better than 4 with 20
    sampler_steps: int = 32
    look_every: int = 200


class Stopwatch:
    """CPU-seconds of this process since it was made, without those inside `paused`."""

    def __init__(self):
        self.began = time.process_time()

    @property
    def seconds(self) -> float:
        """So far."""
        return time.process_time() - self.began

    @contextmanager
    def paused(self):
        """What happens inside does not count."""
        before = time.process_time()
        yield
        self.began += time.process_time() - before


def speedrun(entry: Entry = Entry(), out=None, seed: int = 0, target: float = TARGET, captions: int = CAPTIONS) -> dict:
    """Train from nothing until `target` of the captions are drawn exactly; returns the line for the table.

    It runs on one thread, prints how far it is, and writes `out/speedrun.json` and `out/model` if there is a folder.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    watch, laps = Stopwatch(), {}

    # 1. a first stage (LDM sec. 3.1)
    first = train_first_stage(entry.autoencoder, seed)
    laps["first stage"] = watch.seconds
    print(f"{watch.seconds:7.0f} s  first stage", flush=True)
    # 2. words, before there is anything to draw
    text = train_text(entry.text, seed)
    laps["text"] = watch.seconds - sum(laps.values())
    print(f"{watch.seconds:7.0f} s  text transformer", flush=True)
    # 3. diffusion on its latents (sec. 3.2, 3.3), judged now and then
    r, exact = entry.diffusion, 0.0
    latents = cache_latents(first, scene_stream(r.scenes, 64, seed=seed), r.latents,
                            cached_inputs(r.parts, first)[0], sample=r.posterior, bf16=_bf16(r))
    laps["latents"] = watch.seconds - sum(laps.values())
    ldm = build_diffusion(r, first, latent_scale(first, [{"latent": latents.latents[:4096].float()}]))
    give_text(text, ldm)
    ldm.net.to(memory_format=torch.channels_last)
    state = _train_state(r, ldm, seed)
    batches = latents.batches(r.batch_size, seed=seed)
    for log in train_diffusion(state, batches, r.steps, warmup=r.warmup, decay=r.decay, t_power=r.t_power):
        look = log.step % entry.look_every == 0 and log.step >= r.steps * 2 // 3
        if look or log.step == r.steps:
            with watch.paused():
                exact = judge(ldm, state, r.scenes, entry, captions)
            print(f"{watch.seconds:7.0f} s  step {log.step} of {r.steps}: loss {log.loss:.3f}, exact {exact:.3f}",
                  flush=True)
            if exact >= target:
                break
    laps["diffusion"] = watch.seconds - sum(laps.values())
    line = {"date": date.today().isoformat(), "reached": exact >= target, "exact": round(exact, 3), "seed": seed,
            "cpu_seconds": round(watch.seconds), "laps": {name: round(lap) for name, lap in laps.items()},
            "steps": state.step, "bf16": state.bf16, "processor": _processor(), "torch": torch.__version__}
    print(json.dumps(line))
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        write_json(Path(out) / "speedrun.json", line)
        with state.ema.applied(ldm):
            ldm.save_pretrained(Path(out) / "model", half=True)
    return line


def _train_state(r, model, seed: int) -> TrainState:
    """As `train` does."""
    return train_state(r, model, seed, bf16=_bf16(r))


def _bf16(r) -> bool:
    """In bfloat16, if the recipe asks for it and this processor gains by it."""
    return r.bf16 and bf16_pays(torch.device("cpu"))


def train_first_stage(r: AutoencoderRecipe, seed: int):
    """A first stage of a recipe, its latents of mean 0 and variance 1 in each channel."""
    model = build_autoencoder(r).to(memory_format=torch.channels_last)
    state = _train_state(r, model, seed)
    scenes = scene_stream(r.scenes, r.batch_size, seed=seed)
    perceptual = PerceptualLoss().to(memory_format=torch.channels_last)
    for _ in train_autoencoder(state, scenes, r.steps, perceptual=perceptual, warmup=r.warmup, decay=r.decay,
                               **vars(r.loss)):
        pass
    standardize(r, model.eval(), seed)
    return model


def train_text(r: TextRecipe, seed: int) -> TextTransformer:
    """A text transformer that can read."""
    reader = build_reader(r)
    state = _train_state(r, reader, seed)
    for _ in train_reader(state, facts_stream(r.scenes, r.batch_size, seed=seed), r.steps, warmup=r.warmup,
                          decay=r.decay):
        pass
    return reader.text_transformer


@torch.no_grad()
def judge(ldm, state: TrainState, scenes: SceneConfig, entry: Entry, captions: int) -> float:
    """How many of the first `captions` captions of the val split are drawn exactly, by the averaged weights."""
    said = [random_scene(seed, replace(scenes, split="val")).caption for seed in range(captions)]
    generator, found, recogniser = torch.Generator().manual_seed(0), [], Recogniser.load()
    with state.ema.applied(ldm):
        for first in range(0, captions, 64):
            some = said[first:first + 64]
            found += recogniser.detect(ldm.sample({"caption": some}, steps=entry.sampler_steps,
                                                  guidance_scale=entry.guidance_scale, generator=generator))
    return score_captions(found, said)["exact"]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
             ] if info.is_file() else []
    return names[0] if names else "unknown"
