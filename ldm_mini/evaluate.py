"""How good is a model? Numbers that can be read alone: each stands beside what real scenes score, and what luck scores.

    python -m ldm_mini evaluate                          # the shipped model
    report = run_evaluate("runs/mine/model", num=256)    # the same from Python; `markdown(report)` is the table

Frechet distances here are on EfficientNet-Lite0 features (112 channels at stride 16): never compare them with FIDs.
"""

import json
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from . import hub, metrics
from .data import EmojiScenes, collate
from .latent_diffusion import LatentDiffusion
from .perceptual import PerceptualLoss
from .recogniser import Recogniser
from .scenes import SceneConfig, random_scene
from .scoring import score_captions
from .vocabulary import NOUNS

BATCH = 32
REFERENCE = 512                      # real scenes that Frechet distances are taken to, at least
REFERENCE_START = 1_000_000          # their seeds begin here, far from those of the prompts
TASKS = ("text", "class")


def evaluate_autoencoder(autoencoder, config: SceneConfig | None = None, n: int = 256, seed: int = 0) -> dict:
    """Reconstruction of n scenes of split "val" (or `config`'s): means over images of psnr (dB), ssim and perceptual.

    Also frechet (reconstructions to their originals) with frechet_floor (other real scenes to the originals), and for a
    codebook, over these images: codebook_used (fraction of codes) and perplexity.
    """
    config = config or SceneConfig(split="val")
    device = next(autoencoder.parameters()).device
    autoencoder.eval()
    perceptual, judge = PerceptualLoss().to(device), _frechet_features(device)
    scores, indices, features = {"psnr": [], "ssim": [], "perceptual": []}, [], {"real": [], "rec": []}
    with torch.inference_mode():
        for batch in _scenes(config, n, seed * n):
            x = batch["image"].to(device)
            z = autoencoder.encode(x)
            rec = autoencoder.decode(z).clamp(-1, 1)
            scores["psnr"].append(metrics.psnr(rec, x))
            scores["ssim"].append(metrics.ssim(rec, x))
            scores["perceptual"].append(perceptual(rec, x))
            features["real"].append(judge(x))
            features["rec"].append(judge(rec))
            if hasattr(autoencoder.bottleneck, "quantizer"):
                indices.append(autoencoder.quantize(z)[1].cpu())
    real, rec = (torch.cat(features[name]) for name in ("real", "rec"))
    other = _features_of(judge, config, n, REFERENCE_START + seed * n)
    result = {"n": n, **{name: torch.cat(values).mean().item() for name, values in scores.items()},
              "perceptual_kind": perceptual.kind, "frechet": metrics.frechet_distance(rec, real).item(),
              "frechet_floor": metrics.frechet_distance(other, real).item()}
    if indices:
        quantizer, indices = autoencoder.bottleneck.quantizer, torch.cat(indices)
        result |= {"codebook_used": quantizer.used_fraction(indices), "perplexity": quantizer.perplexity(indices)}
    return result


def evaluate_diffusion(ldm, config: SceneConfig = SceneConfig(), task: str = "text", n: int = 256,
                       guidance_scale: float = 4.0, steps: int = 20, split: str = "val", seed: int = 0,
                       recogniser: Recogniser | None = None) -> dict:
    """n pictures for the captions (task "text") or classes ("class") of n scenes, on split "val", "heldout" or "train".

    -> {"model", "real", "decoded", "shuffled": scores of `score_captions` for the samples; for the scenes that the
    captions were written for (the ceiling), also after the first stage if there is one (what it leaves of the ceiling);
    and for the samples under each other's captions (the floor)}, "frechet" of the samples to other real scenes with
    "frechet_floor" for the scenes themselves, "precision", "recall", "seconds_per_image".
    Equal seeds give equal samples. `config`: the scenes that the model was trained on.
    """
    if task not in TASKS:
        raise ValueError(f"evaluate_diffusion: task must be one of {TASKS}, got {task!r}.")
    config = replace(config, split=split, **({"min_objects": 1, "max_objects": 1} if task == "class" else {}))
    recogniser = (Recogniser.load() if recogniser is None else recogniser).to(ldm.device)
    judge, generator = _frechet_features(ldm.device), torch.Generator().manual_seed(seed)
    captions, found, seconds = [], {"model": [], "real": [], "decoded": []}, 0.0
    features = {name: [] for name in found}
    for batch in _scenes(config, n, seed * n):
        prompt = {key: batch[key] for key in ({"text": "caption", "class": "class"}[task],)}
        captions += batch["caption"] if task == "text" else [f"a {NOUNS[k]}" for k in batch["class"].tolist()]
        began = time.perf_counter()
        samples = ldm.sample(prompt, steps=steps, guidance_scale=guidance_scale, generator=generator)
        seconds += time.perf_counter() - began
        pictures = {"model": samples, "real": batch["image"].to(ldm.device)}
        if ldm.autoencoder is not None:
            pictures["decoded"] = ldm.decode(ldm.encode(pictures["real"])).clamp(-1, 1)
        for name, images in pictures.items():
            found[name] += recogniser.detect(images)
            features[name].append(judge(images))
    model, real = (torch.cat(features[name]) for name in ("model", "real"))
    reference = _features_of(judge, config, max(n, REFERENCE), REFERENCE_START + seed * n)
    return {"task": task, "split": split, "n": n, "steps": steps, "guidance_scale": guidance_scale, "seed": seed,
            **{name: score_captions(found[name], captions) for name in found if found[name]},
            "shuffled": score_captions(found["model"], captions[1:] + captions[:1]),
            "frechet": metrics.frechet_distance(model, reference).item(),
            "frechet_floor": metrics.frechet_distance(real, reference).item(),
            **metrics.precision_recall(reference, model), "seconds_per_image": seconds / n}


def run_evaluate(model: str = "emoji-scenes", task: str = "text", *, num: int = 256, steps: int = 20,
                 guidance_scale: float = 4.0, seed: int = 0, device: str = "auto", out: Path | None = None) -> dict:
    """Measure a saved model, shipped or in a folder, and print the tables; what `python -m ldm_mini evaluate` does.

    A folder with a first stage alone gets its reconstruction measured. `out`: a folder for evaluation.json and .md.
    """
    if num < 8:
        raise ValueError(f"run_evaluate: {num} pictures are too few to measure anything; take at least 8, better 256.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    folder = hub.find(model)
    stored = json.loads((folder / hub.CONFIG).read_text(encoding="utf-8"))
    config, report = scenes_of(stored), {"model": str(model), "device": device}
    if stored.get("format") == "ldm_mini.Autoencoder":
        autoencoder = hub.load_autoencoder(folder, device=device)
    else:
        ldm = LatentDiffusion.from_pretrained(folder, device=device)
        autoencoder = ldm.autoencoder
        report["diffusion"] = [evaluate_diffusion(ldm, config, task, num, guidance_scale, steps, split, seed)
                               for split in ("val", "heldout") if _possible(replace(config, split=split))]
    if autoencoder is not None:
        report["autoencoder"] = evaluate_autoencoder(autoencoder, replace(config, split="val"), num, seed)
    text = markdown(report)
    print(text)
    if out is not None:
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        (out / "evaluation.md").write_text(text + "\n", encoding="utf-8")
    return report


def scenes_of(stored: dict) -> SceneConfig:
    """The scenes a model was trained on, from the card in its config; all of Emoji Scenes if it says nothing."""
    said = ((stored.get("card") or {}).get("recipe") or {}).get("scenes") or {}
    return SceneConfig(**{f.name: said[f.name] for f in fields(SceneConfig) if f.name in said})


def markdown(report: dict) -> str:
    """A report as markdown tables."""
    lines = [f"# {report['model']}"]
    rows = {"model": "the model's", "real": "real scenes (ceiling)", "decoded": "real scenes after the first stage",
            "shuffled": "the model's, other captions (floor)"}
    for r in report.get("diffusion", []):
        names = list(r["real"])
        seen = "Held-out" if r["split"] == "heldout" else "Seen"
        lines += ["", f"## {seen} combinations, task {r['task']}: {r['n']} captions, {r['steps']} steps, "
                  f"guidance {r['guidance_scale']:g}", "",
                  "| pictures | " + " | ".join(n.removesuffix("_accuracy").replace("_", " ") for n in names) + " |",
                  "|---" * (len(names) + 1) + "|",
                  *(f"| {row} | " + " | ".join(_number(r[key].get(name)) for name in names) + " |"
                    for key, row in rows.items() if key in r), "",
                  f"Frechet distance {r['frechet']:.1f} (real scenes: {r['frechet_floor']:.1f}); precision "
                  f"{r['precision']:.2f}, recall {r['recall']:.2f}; {r['seconds_per_image']:.3f} s a picture."]
    if r := report.get("autoencoder"):
        codes = "" if "perplexity" not in r else (f", {r['codebook_used']:.0%} of the codes used, perplexity "
                                                  f"{r['perplexity']:.0f}")
        lines += ["", f"## First stage: {r['n']} scenes", "",
                  f"PSNR {r['psnr']:.2f} dB, SSIM {r['ssim']:.3f}, perceptual distance {r['perceptual']:.4f} "
                  f"({r['perceptual_kind']}), Frechet distance {r['frechet']:.1f} (other real scenes: "
                  f"{r['frechet_floor']:.1f}){codes}."]
    return "\n".join(lines)


def _number(value) -> str:
    return "-" if value is None else f"{value:.3f}"


def _possible(config: SceneConfig) -> bool:
    """Whether such scenes exist: two uncoloured nouns on plain backgrounds, say, leave nothing to hold out."""
    try:
        return all(random_scene(seed, config) for seed in range(16))
    except ValueError:
        return False


def _scenes(config: SceneConfig, n: int, start: int, keys=("image", "caption", "class")):
    """Batches of the scenes with seeds start ... start + n - 1."""
    data = EmojiScenes(config, n, start)
    for i in range(0, n, BATCH):
        batch = collate([data[j] for j in range(i, min(i + BATCH, n))])
        yield {key: batch[key] for key in keys}


def _frechet_features(device):
    """images (B,3,H,W) -> (B,112): always the shipped network, so that numbers compare across machines."""
    net = PerceptualLoss("efficientnet").to(device)

    @torch.inference_mode()
    def features(images: Tensor) -> Tensor:
        return net.features(images.to(device)).cpu()

    return features


def _features_of(judge, config: SceneConfig, n: int, start: int) -> Tensor:
    """(n, D) features of real scenes."""
    return torch.cat([judge(batch["image"]) for batch in _scenes(config, n, start)])
