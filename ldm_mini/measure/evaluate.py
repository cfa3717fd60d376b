"""How good is a model? Numbers that can be read alone: each stands beside what real scenes score, and what luck scores.

    python -m ldm_mini evaluate                          # the shipped model, text
    python -m ldm_mini evaluate --task superres          # any task it was trained for; "all" of them
    report = run_evaluate("runs/mine/model", num=256)    # the same from Python; `markdown(report)` is the table

Frechet distances here are on EfficientNet-Lite0 features (112 channels at stride 16): never compare them with FIDs.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .. import files, hub
from ..concat_conditioners import damage
from ..cond import together
from ..latent_diffusion import LatentDiffusion
from ..perceptual import PerceptualLoss
from ..scenes.data import scene_batches
from ..scenes.films import FilmConfig
from ..scenes.scene import TINY_SCENES, SceneConfig, random_scene, scenes_of, scenes_to_test
from ..tasks import advised_guidance, check_possible, inputs, possible
from ..video_diffusion import LatentVideoDiffusion
from . import metrics
from .films import evaluate_films
from .judge import REAL, Judge, after_first_stage, baseline, others
from .recogniser import Recogniser
from .scoring import score_captions

REFERENCE = 512                      # real scenes that Frechet distances are taken to, at least


def evaluate_autoencoder(autoencoder, config: SceneConfig | None = None, n: int = 256, seed: int = 0) -> dict:
    """Reconstruction of n scenes of split "val" (or `config`'s): means over images of psnr (dB), ssim and perceptual.

    Also frechet (reconstructions to their originals) with frechet_floor (other real scenes to the originals), read and
    read_real (share of captions that the recogniser reads exactly off reconstructions and off originals), and for a
    codebook, over these images: codebook_used (fraction of codes) and perplexity.
    """
    config = config or SceneConfig(split="val")
    device = next(autoencoder.parameters()).device
    autoencoder.eval()
    perceptual, look = PerceptualLoss().to(device), _frechet_features(device)
    scores, indices, features = {"psnr": [], "ssim": [], "perceptual": []}, [], {"real": [], "rec": []}
    recogniser, captions, found = Recogniser.load().to(device), [], {"read": [], "read_real": []}
    with torch.inference_mode():
        for batch in scene_batches(config, n, seed * n):
            x = batch["image"].to(device)
            z = autoencoder.encode(x)
            rec = autoencoder.decode(z).clamp(-1, 1)
            scores["psnr"].append(metrics.psnr(rec, x))
            scores["ssim"].append(metrics.ssim(rec, x))
            scores["perceptual"].append(perceptual(rec, x))
            features["real"].append(look(x))
            features["rec"].append(look(rec))
            captions += batch["caption"]
            found["read"] += recogniser.detect(rec)
            found["read_real"] += recogniser.detect(x)
            if hasattr(autoencoder.bottleneck, "quantizer"):
                indices.append(autoencoder.quantize(z)[1].cpu())
    real, rec = (torch.cat(features[name]) for name in ("real", "rec"))
    other = _features_of(look, config, n, REAL + seed * n)
    result = {"n": n, **{name: torch.cat(values).mean().item() for name, values in scores.items()},
              "perceptual_kind": perceptual.kind, "frechet": metrics.frechet_distance(rec, real).item(),
              "frechet_floor": metrics.frechet_distance(other, real).item(),
              **{name: score_captions(seen, captions)["exact"] for name, seen in found.items()}}
    if indices:
        quantizer, indices = autoencoder.bottleneck.quantizer, torch.cat(indices)
        result |= {"codebook_used": quantizer.used_fraction(indices), "perplexity": quantizer.perplexity(indices)}
    return result


def evaluate_diffusion(ldm, config: SceneConfig = SceneConfig(), task: str = "text", n: int = 256,
                       guidance_scale: float | None = None, steps: int = 20, split: str = "val", seed: int = 0,
                       recogniser: Recogniser | None = None) -> dict:
    """n pictures for the inputs of a task that n scenes give, on split "val", "heldout" or "train" of `config`.

    -> {"model", "real", "decoded", "baseline", "shuffled": what `Judge` says of the samples; of the true scenes
    (the ceiling), also after the first stage if there is one (what it leaves of the ceiling); of what needs no model,
    if there is such a thing; of the samples against each other's scenes (the floor)}, for "superres" also "degraded"
    and "degraded_baseline", from inputs damaged as in training (judged by the undamaged), "frechet" of the samples to
    other real scenes with "frechet_floor" for the scenes themselves, "precision", "recall", "seconds_per_image".
    guidance_scale: None = the task's own. Equal seeds give equal samples. `config`: what the model was trained on.
    """
    guidance_scale = advised_guidance(ldm, task) if guidance_scale is None else guidance_scale
    config = scenes_to_test(config, task, split)
    judge, look = Judge.of_scenes(config, [task], ldm.device, recogniser), _frechet_features(ldm.device)
    generator, samples, batches, seconds = torch.Generator().manual_seed(seed), [], [], 0.0

    def draw(batch: dict) -> Tensor:
        given = inputs(task, batch, ldm)
        return ldm.sample(given, **({} if given else {"num": len(batch["image"])}), steps=steps,
                          guidance_scale=guidance_scale, generator=generator).cpu()

    for batch in scene_batches(config, n, seed * n):
        began = time.perf_counter()
        samples.append(draw(batch))
        seconds += time.perf_counter() - began
        batches.append(batch)
    samples, batch = torch.cat(samples), together(batches)
    pictures = {"model": samples, "real": batch["image"], "decoded": after_first_stage(ldm, task, batch)}
    name, pictures["baseline"] = baseline(task, batch) or (None, None)
    if task == "superres":
        source = torch.Generator().manual_seed(seed)
        worse = [{**part, "lowres": damage(part["lowres"], source)} for part in batches]
        pictures["degraded"] = torch.cat([draw(part) for part in worse])
        pictures["degraded_baseline"] = baseline(task, together(worse))[1]
    scores = {row: judge.score(task, images.to(ldm.device), batch) for row, images in pictures.items()
              if images is not None}
    scores["shuffled"] = judge.score(task, samples.to(ldm.device), others(batch))
    model, real = look(samples), look(batch["image"])
    reference = _features_of(look, config, max(n, REFERENCE), REAL + seed * n)
    return {"task": task, "split": split, "n": n, "steps": steps, "guidance_scale": guidance_scale, "seed": seed,
            **scores, **({"baseline_name": name} if name else {}),
            "frechet": metrics.frechet_distance(model, reference).item(),
            "frechet_floor": metrics.frechet_distance(real, reference).item(),
            **metrics.precision_recall(reference, model), "seconds_per_image": seconds / n}


def run_evaluate(model: str = "emoji-scenes", task: str | None = None, *, num: int = 256, steps: int = 20,
                 guidance_scale: float | None = None, seed: int = 0, device: str = "auto",
                 out: Path | None = None, simple: bool = False) -> dict:
    """Measure a saved model, shipped or in a folder, and print the tables; what `python -m ldm_mini evaluate` does.

    task: one of tasks.TASKS, "all" that the model can do, or None: "text" if it can, else its first. A folder with a
    first stage alone gets its reconstruction measured. simple: on simple scenes of the model's size (TINY_SCENES: 16
    nouns, one or two things), not on those it was trained on. `out`: a folder for evaluation.json and .md.
    """
    if num < 8:
        raise ValueError(f"run_evaluate: {num} pictures are too few to measure anything; take at least 8, better 256.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    folder = hub.find(model)
    stored = files.read_json(folder / hub.CONFIG)
    config, report = scenes_of(stored), {"model": str(model), "device": device}
    config = replace(TINY_SCENES, size=config.size) if simple else config
    if stored.get("class") == "autoencoder.Autoencoder":
        for option, value in {"task": task, "guidance-scale": guidance_scale}.items():
            if value is not None:
                raise ValueError(f"{model} is a first stage alone: it has no tasks, so leave out --{option} {value}.")
        autoencoder = hub.load_autoencoder(folder, device=device)
    elif stored.get("class") == "video_diffusion.LatentVideoDiffusion":
        if task is not None:
            raise ValueError(f"{model} makes films, which have one table: leave out --task {task}.")
        ldm = LatentVideoDiffusion.from_pretrained(folder, device=device)
        config = replace(config, max_objects=min(2, config.max_objects))        # a film has no more
        autoencoder, films = ldm.autoencoder, FilmConfig(config, ldm.frames)
        report["films"] = [
            {"split": split, "n": num, "steps": steps, **evaluate_films(
                ldm, replace(films, scenes=replace(config, split=split)), num, steps, guidance_scale, seed)}
            for split in ("val", "heldout")]
    else:
        ldm = LatentDiffusion.from_pretrained(folder, device=device)
        autoencoder = ldm.autoencoder
        if guidance_scale is not None and _tasks(ldm, task) == ["unconditional"]:
            raise ValueError(f"nothing asked for, nothing is guided: leave out --guidance-scale {guidance_scale}.")
        report["diffusion"] = [evaluate_diffusion(ldm, config, chosen, num, guidance_scale, steps, split, seed)
                               for chosen in _tasks(ldm, task)
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


def markdown(report: dict) -> str:
    """A report as markdown tables."""
    lines = [f"# {report['model']}"]
    rows = {"model": "the model's", "real": "real scenes (ceiling)", "decoded": "real scenes after the first stage",
            "baseline": "", "degraded": "the model's, of damaged inputs",
            "degraded_baseline": "damaged inputs, enlarged (bicubic)",
            "shuffled": "the model's, of other scenes (floor)"}
    for r in report.get("diffusion", []):
        names, rows["baseline"] = list(r["real"]), r.get("baseline_name", "")
        seen = "Held-out" if r["split"] == "heldout" else "Seen"
        lines += ["", f"## {seen} combinations, task {r['task']}: {r['n']} scenes, {r['steps']} steps, "
                  f"guidance {r['guidance_scale']:g}", "",
                  *_table(r, rows, names),
                  f"Frechet distance {r['frechet']:.1f} (real scenes: {r['frechet_floor']:.1f}); precision "
                  f"{r['precision']:.2f}, recall {r['recall']:.2f}; {r['seconds_per_image']:.3f} s a picture."]
    rows = {"model": "the model's", "real": "real films (ceiling)", "decoded": "real films after the first stage",
            "shuffled": "the model's, frames in another order", "others": "the model's, for other captions (floor)"}
    for r in report.get("films", []):
        seen = "Held-out" if r["split"] == "heldout" else "Seen"
        lines += ["", f"## {seen} things and motions: {r['n']} films, {r['steps']} steps", "",
                  *_table(r, rows, list(r["real"]))]
    if r := report.get("autoencoder"):
        codes = "" if "perplexity" not in r else (f", {r['codebook_used']:.0%} of the codes used, perplexity "
                                                  f"{r['perplexity']:.0f}")
        lines += ["", f"## First stage: {r['n']} scenes", "",
                  f"PSNR {r['psnr']:.2f} dB, SSIM {r['ssim']:.3f}, perceptual distance {r['perceptual']:.4f} "
                  f"({r['perceptual_kind']}), Frechet distance {r['frechet']:.1f} (other real scenes: "
                  f"{r['frechet_floor']:.1f}){codes}. Captions read exactly: {r['read']:.3f} (real scenes: "
                  f"{r['read_real']:.3f})."]
    return "\n".join(lines)


def _table(scores: dict, rows: dict, names: list[str]) -> list[str]:
    """Lines of a table with a row for each of `rows` that has scores; none if nothing was scored."""
    def number(value) -> str:
        return "-" if value is None else f"{value:.3f}"

    if not names:
        return []
    return ["| pictures | " + " | ".join(n.removesuffix("_accuracy").replace("_", " ") for n in names) + " |",
            "|---" * (len(names) + 1) + "|",
            *(f"| {row} | " + " | ".join(number(scores[key].get(name)) for name in names) + " |"
              for key, row in rows.items() if key in scores), ""]


def _tasks(ldm, task: str | None) -> list[str]:
    """The tasks to measure. Raises ValueError if the model cannot do the one that was asked for."""
    can = possible(ldm)
    if task in (None, "all"):
        return can if task else ["text"] if "text" in can else can[:1]
    check_possible(ldm, task)
    return [task]


def _possible(config: SceneConfig) -> bool:
    """Whether such scenes exist: two uncoloured nouns on plain backgrounds, say, leave nothing to hold out."""
    try:
        return all(random_scene(seed, config) for seed in range(16))
    except ValueError:
        return False


def _frechet_features(device):
    """images (B,3,H,W) -> (B,112): always the shipped network, so that numbers compare across machines."""
    net = PerceptualLoss("efficientnet").to(device)
    return torch.inference_mode()(lambda images: net.features(images.to(device)).cpu())


def _features_of(look, config: SceneConfig, n: int, start: int) -> Tensor:
    """(n, D) features of real scenes."""
    return torch.cat([look(batch["image"]) for batch in scene_batches(config, n, start)])
