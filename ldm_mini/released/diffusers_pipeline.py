"""Whole models in diffusers' folders: Stable Diffusion in, and what was trained here out."""

from pathlib import Path

import torch
from torch import nn

from ..dit import DiT
from ..files import FileError, read_json, write_json
from ..latent_diffusion import LatentDiffusion
from ..quantizer import VQBottleneck
from ..schedule import NoiseSchedule
from .compvis_model import clip_from_weights
from .conditioners import ClipText, Labels
from .diffusers_parts import DIFFUSERS, autoencoder_from_diffusers, diffusers_form, save_diffusers, unet_from_diffusers
from .names import DIFFUSERS_BETAS, betas_of, require
from .reading import read_folder

SCHEDULERS = ("DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete",
              "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "KDPM2Discrete", "KDPM2AncestralDiscrete",
              "DEISMultistep", "UniPCMultistep", "DDIMInverse", "LCM", "TCD", "SASolver", "DDPMParallel",
              "DDIMParallel")                   # of betas: `add_noise` is the same for all
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def from_diffusers(folder, dtype: torch.dtype | None = None, tokenizer=None) -> LatentDiffusion:
    """A pipeline's folder as a LatentDiffusion in evaluation mode: Stable Diffusion 1.x (and 2.x), or one without text.

    dtype: of the weights; None as stored. Half precision runs under torch.autocast.
    tokenizer: None = the folder's own. Batches: "caption"; "class" for a DiT; none for an unconditional model.
    Raises FileError, a ValueError, that lists whatever is unknown, missing or of another shape.
    """
    folder = Path(folder)
    parts = read_json(folder / "model_index.json")
    # the two networks, and what their configs say about the pictures
    net, autoencoder = unet_from_diffusers(folder, dtype), autoencoder_from_diffusers(folder, dtype)
    stage = read_json(folder / ("vae" if "vae" in parts else "vqvae") / "config.json")
    side = read_json(folder / ("unet" if "unet" in parts else "transformer") / "config.json").get("sample_size")
    # the condition: captions through CLIP, or classes that a DiT embeds itself
    conditioner = None
    if parts.get("text_encoder", [None])[0] is not None:
        config, weights = read_folder(folder / "text_encoder")
        require("text encoder", config, {"architectures": (["CLIPTextModel"],)})
        conditioner = clip_from_weights(weights, tokenizer or str(folder / "tokenizer"), dtype, config)
    elif isinstance(net, DiT):
        conditioner = Labels(net.config.num_classes)
    _check_conditions(folder, net.config, conditioner)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return LatentDiffusion(
        autoencoder, net, _schedule_of_diffusers(scheduler), conditioner, p_uncond=0.0 if conditioner is None else 0.1,
        prediction=PREDICTIONS[scheduler.get("prediction_type") or "epsilon"],
        scale_factor=stage.get("scaling_factor", 0.18215),
        image_size=image_size(side, autoencoder.config.downsample_factor)).eval()


def image_size(side, factor: int) -> tuple[int, int] | None:
    """(height, width) of the pictures for a config's `sample_size`: a side of latents, both of them, or None."""
    if side is None:
        return None
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    return height * factor, width * factor


def _check_conditions(folder: Path, c, conditioner) -> None:
    """Refuse a pipeline whose network reads what nothing here would make: it would load, and fail as it draws."""
    joined, width = getattr(c, "concat_channels", 0), getattr(c, "context_dim", None)
    made = conditioner.config.get("hidden_size", 512) if isinstance(conditioner, ClipText) else None  # CLIP's default
    unread = [f"{joined} further channels, as those of inpainting, depth or upscaling"] if joined else []
    if width != made:
        unread.append(f"tokens of width {width}, where the folder's text encoder makes {made or 'none'}")
    if c.vector_dim is not None:
        unread.append(f"a vector of width {c.vector_dim}, as SDXL's")
    if unread:
        raise FileError(f"{folder}: the network reads {' and '.join(unread)}: nothing here makes that. Load it alone, "
                        "with unet_from_diffusers, and give it a conditioner of your own.")


def _schedule_of_diffusers(config: dict) -> NoiseSchedule:
    # networks of flow matching are told a noise level in another way, and none of them has a class here (SD3, Flux)
    name, kind = str(config.get("_class_name")), config.get("prediction_type") or "epsilon"
    if "flow" in name.lower() or config.get("use_flow_sigmas") or kind not in PREDICTIONS:
        raise FileError(f"{name} with prediction_type {kind!r}: flow matching and other predictions than "
                        f"{', '.join(PREDICTIONS)} cannot be read from a folder. A flow of your own networks is "
                        'LatentDiffusion(..., RectifiedFlow(), prediction="u").')
    # others, such as EDM's, count noise in other numbers than betas, and would be read as if they had none
    if name.removesuffix("Scheduler") not in SCHEDULERS:
        raise FileError(f"the schedule is a {name}; known are those of betas: {', '.join(SCHEDULERS)}.")
    require("schedule", config, {"rescale_betas_zero_snr": (False,)})       # no signal at all at its end
    if config.get("trained_betas") is not None:
        return NoiseSchedule(config["trained_betas"])
    kind, steps = config.get("beta_schedule", "linear"), config.get("num_train_timesteps", 1000)
    return NoiseSchedule(betas_of(DIFFUSERS_BETAS, kind, steps, config.get("beta_start", 1e-4),
                                  config.get("beta_end", 0.02)))


def to_diffusers(model: nn.Module, folder) -> Path:
    """Write a model so that diffusers opens it: a UNet, DiT or Autoencoder as `Class.from_pretrained(folder)`.

    A LatentDiffusion becomes a folder of such parts with a scheduler. Unconditional, it is a whole LDMPipeline; with
    CLIP's text encoder, a StableDiffusionPipeline; other conditions diffusers has no class for: their parts only.
    Raises ValueError for a network or a first stage that diffusers has no class for.
    """
    if not isinstance(model, LatentDiffusion):
        return save_diffusers(model, folder)
    folder, stage, net = Path(folder), model.autoencoder, model.net
    if stage is None:
        raise ValueError("to_diffusers: diffusers has no LatentDiffusion without a first stage; give its net alone.")
    if not isinstance(model.schedule, NoiseSchedule) or model.prediction not in PREDICTIONS.values():
        raise ValueError(f"to_diffusers: a {type(model.schedule).__name__} with prediction {model.prediction!r} fits no"
                         " pipeline with these networks there; give its net and its first stage alone.")
    kind, text = "transformer" if isinstance(net, DiT) else "unet", isinstance(model.conditioner, ClipText)
    alone = model.conditioner is None and kind == "unet"
    stage_name = "vqvae" if alone or isinstance(stage.bottleneck, VQBottleneck) else "vae"
    # refuses before a file is written
    classes = {part: diffusers_form(network)[0]["_class_name"] for part, network in ((kind, net), (stage_name, stage))}
    # the parts
    side = None if model.image_size is None else model.image_size[0]
    save_diffusers(net, folder / kind, side and side // stage.config.downsample_factor)
    save_diffusers(stage, folder / stage_name, side, model.scale_factor.item())
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", _scheduler_config(model))
    index = {part: ["diffusers", found] for part, found in {**classes, "scheduler": "DDIMScheduler"}.items()}
    if text:
        model.conditioner.model.save_pretrained(folder / "text_encoder")
        model.conditioner.load_tokenizer().save_pretrained(folder / "tokenizer")
        index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
                  "safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    # a pipeline of them, where diffusers has one
    if alone or text and stage_name == "vae":
        name = "StableDiffusionPipeline" if text else "LDMPipeline"
        write_json(folder / "model_index.json", {"_class_name": name, "_diffusers_version": DIFFUSERS, **index})
    return folder


def _scheduler_config(model: LatentDiffusion) -> dict:
    """A DDIMScheduler that takes the timesteps of our samplers."""
    config, names = model.schedule.config, {ours: theirs for theirs, ours in PREDICTIONS.items()}
    # where both have a schedule of this name, it is the same one
    betas = (dict(beta_schedule=config["kind"], beta_start=config["start"], beta_end=config["end"])
             if config["kind"] in DIFFUSERS_BETAS else dict(trained_betas=model.schedule.betas.tolist()))
    return {"_class_name": "DDIMScheduler", "_diffusers_version": DIFFUSERS, "clip_sample": False,
            "num_train_timesteps": model.schedule.num_steps, "prediction_type": names[model.prediction],
            "set_alpha_to_one": True, "timestep_spacing": "trailing", "steps_offset": 1, **betas}
