"""Train the recogniser that `data/weights/recogniser.safetensors` holds, on one CPU thread, and measure it.

    python data/build/train_recogniser.py --minutes 40 --state runs/recogniser      # may be stopped and started again
    python data/build/train_recogniser.py --measure data/weights/recogniser.safetensors
    python data/checksums.py

Writes STATE/recogniser.safetensors and prints a table: put the file in its place and the table into its card. Whole
vocabulary, all combinations (split "all"), a fifth of the scenes centred. The learning rate follows the clock, so a run
on another machine sees another number of scenes.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_mini.distortions import coarse_cosines, degrade, gaussian_blur, resample
from ldm_mini.measure.judge import others
from ldm_mini.measure.recogniser import Recogniser, _at, _boxes
from ldm_mini.measure.scoring import score_captions, score_scenes
from ldm_mini.scenes import TINY_NOUNS, SceneConfig, scene_batches
from ldm_mini.training import state as checkpoint

BATCH = 32
NEW = 10_000_000                # seeds from here on were never trained on


def heat_target(labels: Tensor, boxes: Tensor, num_nouns: int, side: int) -> tuple[Tensor, Tensor]:
    """Labels (B, n), -1 = none, and xyxy boxes (B, n, 4) in [0, 1] -> heat (B, K, side, side) in [0, 1], cells (B, n).

    Each object is a Gaussian bump, exactly 1 at the cell of its centre, as wide as a sixth of its box.
    """
    place = (boxes[..., :2] + boxes[..., 2:]) / 2 * side
    place = place.long().clamp(0, side - 1)                                  # (B, n, 2) as x, y
    sigma = ((boxes[..., 2:] - boxes[..., :2]).mean(-1) * side / 6).clamp_min(0.5)
    grid = torch.arange(side, device=boxes.device)
    square = (grid - place[..., None]).square()                              # (B, n, 2, side)
    bump = torch.exp(-(square[:, :, 1, :, None] + square[:, :, 0, None, :]) / (2 * sigma[..., None, None] ** 2))
    bump = bump * (labels >= 0)[..., None, None]
    heat = bump.new_zeros(len(labels), num_nouns, side, side)
    index = labels.clamp_min(0)[..., None, None].expand_as(bump)
    return heat.scatter_reduce(1, index, bump, "amax"), place[..., 1] * side + place[..., 0]


def recognition_loss(net: Recogniser, batch: dict) -> tuple[Tensor, dict]:
    """(scalar loss, its parts as floats) of a batch with image, labels, colors, boxes, background and style."""
    out, labels, known = net(batch["image"]), batch["labels"], batch["labels"] >= 0
    target, cell = heat_target(labels, batch["boxes"], net.config.num_nouns, out["heat"].shape[-1])
    log_p, log_q = F.logsigmoid(out["heat"]), F.logsigmoid(-out["heat"])
    focal = torch.where(target == 1, log_q.exp() ** 2 * log_p, (1 - target) ** 4 * log_p.exp() ** 2 * log_q)
    count = known.sum().clamp_min(1)
    color_index = (batch["colors"] + 1).where(known, -1)
    style_index = batch["style"].unsqueeze(1).where(known, -1)
    boxes = _boxes(out["box"], cell, net.config.image_size)
    parts = {
        "heat": -focal.sum() / count,
        "color": F.cross_entropy(_at(out["color"], cell), color_index, ignore_index=-1, reduction="sum") / count,
        "style": 0.5 * F.cross_entropy(_at(out["style"], cell), style_index, ignore_index=-1, reduction="sum") / count,
        "box": 10 * ((boxes - batch["boxes"]).abs().mean(-1) * known).sum() / count,
        "background": F.cross_entropy(out["background"], batch["background"])}
    return sum(parts.values()), {k: v.item() for k, v in parts.items()}


def train_recogniser(net: Recogniser, batches: Iterable, steps: int | None = None, minutes: float | None = None,
                     lr: float = 2e-3, optimizer=None, start: float = 0.0, augment=degrade) -> Iterator[dict]:
    """Train on `batches` until `steps` or else `minutes` have passed; yields {"step", "progress", "loss", parts}.

    AdamW with warm-up and cosine over progress in [0, 1]. To resume, pass the restored `optimizer` and the last
    `progress` as `start`.
    """
    optimizer = recogniser_optimizer(net, lr) if optimizer is None else optimizer
    began, progress, batches = time.monotonic(), start, iter(batches)
    net.train().to(memory_format=torch.channels_last)
    step = 0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(progress / 0.05 + 0.01, 0.5 + 0.5 * math.cos(math.pi * progress))
        batch = {k: v.to(net.cells.weight.device) if isinstance(v, Tensor) else v for k, v in next(batches).items()}
        batch["image"] = augment(batch["image"]).contiguous(memory_format=torch.channels_last)
        loss, parts = recognition_loss(net, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        step += 1
        progress = start + (step / steps if minutes is None else (time.monotonic() - began) / 60 / minutes)
        yield {"step": step, "progress": progress, "loss": loss.item(), **parts}


def recogniser_optimizer(net: Recogniser, lr: float = 2e-3) -> torch.optim.AdamW:
    """AdamW, weight decay on convolutions only."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.02},
                              {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0}], lr=lr)


def stream(step: int = 0):
    """Batches of never repeated scenes, from a step on."""
    configs = [SceneConfig(split="all", centred=i == 4, p_same=0.2) for i in range(5)]
    for i in count(step):
        yield next(scene_batches(configs[i % 5], BATCH, i * BATCH, BATCH))


def train(minutes: float, state: Path) -> Recogniser:
    """Train, or continue what `state` holds; log to standard output."""
    torch.manual_seed(0)
    net = Recogniser()
    optimizer, done, progress = recogniser_optimizer(net), 0, 0.0
    if newest := checkpoint.latest(state):
        done, saved = checkpoint.load_training_state(newest)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        progress = saved["loop"]["progress"]
        print(f"continuing at step {done}, {progress:.0%}", flush=True)
    saved_at, sums = time.monotonic(), {}
    for log in train_recogniser(net, stream(done), minutes=minutes, optimizer=optimizer, start=progress):
        step = done + log["step"]
        for key, value in log.items():
            sums[key] = sums.get(key, 0.0) + value
        if log["step"] % 100 == 0:
            means = {key: round(value / 100, 4) for key, value in sums.items() if key not in ("step", "progress")}
            record = {"step": step, "scenes": step * BATCH, "progress": round(log["progress"], 4), **means}
            print(json.dumps(record), flush=True)
            sums = {}
        if time.monotonic() - saved_at > 180:
            checkpoint.save_training_state(state, step, {"net": net.state_dict(), "optimizer": optimizer.state_dict(),
                                                         "loop": {"progress": log["progress"]}})
            saved_at = time.monotonic()
    print(f"finished at step {step}, {step * BATCH} scenes", flush=True)
    return net


def measure(net: Recogniser, n: int = 1000, threshold: float = 0.3) -> dict:
    """{condition: scores} on scenes that no training of at most ten million scenes has seen."""
    def scores(images, batch) -> dict:
        found = net.detect(images, threshold)
        return {**score_scenes(found, batch), "caption_exact": score_captions(found, batch["caption"])["exact"]}

    batch = next(scene_batches(SceneConfig(split="all"), n, NEW, n))
    image = batch["image"]
    views = {"real scenes": image, "blurred (sigma 0.85)": gaussian_blur(image, 0.85),
             "32 px and back": resample(image, 32), "cosines rounded (step 0.2)": coarse_cosines(image, 0.2)}
    tables = {name: scores(view, batch) for name, view in views.items()}
    tables["of another scene"] = scores(image, others(batch))
    subsets = {"16 nouns, 1-2 objects": {"nouns": TINY_NOUNS, "max_objects": 2}, "one object": {"max_objects": 1},
               "two objects": {"min_objects": 2, "max_objects": 2}, "three objects": {"min_objects": 3},
               "held-out combinations": {"split": "heldout"}, "centred": {"centred": True}, "128 px": {"size": 128}}
    for name, options in subsets.items():
        batch = next(scene_batches(SceneConfig(**{"split": "all", **options}), n // 2, NEW, n // 2))
        tables[name] = scores(batch["image"], batch)
    return tables


def table(tables: dict) -> str:
    """Scores as a markdown table."""
    columns = {"object_recall": "recall", "object_precision": "precision", "color_accuracy": "color",
               "box_iou": "box IoU", "relation_accuracy": "relation", "count_accuracy": "count",
               "background_accuracy": "background", "style_accuracy": "style", "exact": "exact",
               "caption_exact": "caption exact"}
    rows = [f"| {name} | " + " | ".join(f"{s[c]:.3f}" if c in s else "-" for c in columns) + " |"
            for name, s in tables.items()]
    return "\n".join([f"| scenes | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|", *rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--state", type=Path, default=Path("runs/recogniser"))
    parser.add_argument("--measure", type=Path, help="only measure this file")
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--scenes", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net = Recogniser.load(args.measure) if args.measure else train(args.minutes, args.state)
    if not args.measure:
        args.state.mkdir(parents=True, exist_ok=True)
        net.save(args.state / "recogniser.safetensors")
    print(table(measure(net, args.scenes, args.threshold)))


if __name__ == "__main__":
    main()
