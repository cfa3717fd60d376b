"""Train the recogniser that `data/weights/recogniser.safetensors` holds, on one CPU thread, and measure it.

    python data/build/train_recogniser.py --minutes 40 --state /tmp/recogniser      # may be stopped and started again
    python data/build/train_recogniser.py --measure data/weights/recogniser.safetensors
    python data/checksums.py

Whole vocabulary, all combinations (split "all"), a fifth of the scenes centred. The learning rate follows the clock, so
a run on another machine sees another number of scenes. Then put the file in its place and the table into its card.
"""

import argparse
import json
import sys
import time
from itertools import count
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from ldm_mini import checkpoint, distortions  # noqa: E402
from ldm_mini.data import ENDLESS, EmojiScenes, collate  # noqa: E402
from ldm_mini.recogniser import Recogniser, recogniser_optimizer, train_recogniser  # noqa: E402
from ldm_mini.scenes import SceneConfig  # noqa: E402
from ldm_mini.scoring import score_captions, score_scenes  # noqa: E402

BATCH = 32


def batch_of(config, seeds) -> dict:
    """The scenes of these seeds."""
    data = EmojiScenes(config, ENDLESS)
    return collate([data[seed] for seed in seeds])


def stream(step: int = 0):
    """Batches of never repeated scenes, from a step on."""
    configs = [SceneConfig(split="all", centred=i == 4, p_same=0.2) for i in range(5)]
    for i in count(step):
        yield batch_of(configs[i % 5], range(i * BATCH, (i + 1) * BATCH))


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
    start, tables = 10_000_000, {}
    small = ("apple", "star", "fish", "car", "heart", "balloon", "umbrella", "mushroom", "dog", "cat", "owl", "tree",
             "house", "rocket", "cake", "sun")
    batch = batch_of(SceneConfig(split="all"), range(start, start + n))
    captions, image = batch["caption"], batch["image"]
    views = {"real scenes": image, "blurred (sigma 0.85)": distortions.gaussian_blur(image, 0.85),
             "32 px and back": distortions.resample(image, 32),
             "cosines rounded (step 0.2)": distortions.coarse_cosines(image, 0.2)}
    for name, view in views.items():
        found = net.detect(view, threshold)
        tables[name] = {**score_scenes(found, batch), "caption_exact": score_captions(found, captions)["exact"]}
    found = net.detect(image, threshold)
    other = {k: v.roll(1, 0) for k, v in batch.items() if k != "caption"}
    tables["of another scene"] = {**score_scenes(found, other),
                                  "caption_exact": score_captions(found, captions[1:] + captions[:1])["exact"]}
    subsets = {"16 nouns, 1-2 objects": {"nouns": small, "max_objects": 2}, "one object": {"max_objects": 1},
               "two objects": {"min_objects": 2, "max_objects": 2}, "three objects": {"min_objects": 3},
               "held-out combinations": {"split": "heldout"}, "centred": {"centred": True}, "128 px": {"size": 128}}
    for name, options in subsets.items():
        batch = batch_of(SceneConfig(**{"split": "all", **options}), range(start, start + n // 2))
        found = net.detect(batch["image"], threshold)
        tables[name] = {**score_scenes(found, batch), "caption_exact": score_captions(found, batch["caption"])["exact"]}
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
