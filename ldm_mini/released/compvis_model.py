"""A whole released model from its YAML file and its checkpoint: networks, schedule, scale, and its conditions."""

from pathlib import Path

import torch
from torch import Tensor

from ..autoencoder import Autoencoder
from ..concat_conditioners import InpaintConditioner, LowResConditioner
from ..cond import Conditioner
from ..files import FileError
from ..latent_diffusion import LatentDiffusion
from ..schedule import NoiseSchedule
from .compvis import autoencoder_from_compvis, unet_from_compvis
from .conditioners import BERT, CLIP, ClassTable, ClipText, RescaledMap, TextEncoder, Words
from .names import COMPVIS_BETAS, betas_of, require, translate
from .reading import fit, on_meta, read_weights, seems, some

PREFIXES = ("model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model.")
# {kind of condition: how it reaches the U-Net} of all released models, by concatenation or by attention
CONDITIONS = {"__is_first_stage__": "concat", "Identity": "concat", "SpatialRescaler": "concat",
              "ClassEmbedder": "crossattn", "BERTEmbedder": "crossattn", "TransformerEmbedder": "crossattn",
              "FrozenCLIPEmbedder": "crossattn"}
IMAGENET = 1000                                                 # classes; one more row means "none"
# the text encoder of CLIP ViT-L/14, which is all of CLIP that released models have
VIT_L14 = dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
               max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2)


def from_compvis(yaml_path, ckpt_path, dtype: torch.dtype | None = None, tokenizer=None):
    """A released model: its YAML file, and its weights as .ckpt (read with weights_only) or .safetensors.

    -> LatentDiffusion in evaluation mode; for the YAML of a first stage alone, that Autoencoder. EMA weights are taken
    where there are any. dtype: of all weights; None as stored. Half precision runs under torch.autocast.
    tokenizer: for captions, a transformers tokenizer or the folder of one; None = the model's own from the Hugging Face
    Hub, when the first caption comes. Batches: "class", "caption", "semantic", "lowres", or "image" and "mask".
    Raises FileError, a ValueError, that lists whatever is unknown, missing or of another shape.
    """
    kind, params = _read_yaml(yaml_path)
    weights = read_weights(ckpt_path)
    if kind in ("VQModel", "VQModelInterface", "AutoencoderKL"):
        return autoencoder_from_compvis(params, weights, dtype)
    if kind != "LatentDiffusion":
        raise FileError(f"{yaml_path} describes a {kind}; known are LatentDiffusion, VQModel and AutoencoderKL.")
    # one file holds all networks, each behind its prefix, and the constants of training, whose names have no dots
    if unknown := sorted(name for name in weights if "." in name and not name.startswith(PREFIXES)):
        raise FileError(f"{ckpt_path} holds what no latent diffusion model has{seems(weights)}: {some(unknown)}.")
    unet, averages, stage, condition = (_below(weights, part) for part in PREFIXES)
    autoencoder = autoencoder_from_compvis(params["first_stage_config"]["params"], stage, dtype)
    net = unet_from_compvis(params["unet_config"]["params"], unet, dtype, averages)
    conditioner = _conditioner(params, autoencoder, condition, dtype, tokenizer)
    # what a model without a condition's opposite ("", no class) cannot do is guidance, for which p_uncond=0 stands
    with_null = (isinstance(conditioner, Words) and conditioner.tokenizer is not None
                 or isinstance(conditioner, ClassTable) and conditioner.has_null)
    # YAML files count in latents, we count in pixels
    side = params["image_size"] * autoencoder.config.downsample_factor if "image_size" in params else None
    return LatentDiffusion(
        autoencoder, net, _schedule_of_compvis(params, weights), conditioner, p_uncond=0.1 if with_null else 0.0,
        prediction=params.get("parameterization", "eps"), scale_factor=_scale_factor(params, weights),
        image_size=side).eval()


def _read_yaml(path) -> tuple[str, dict]:
    """The class that a YAML file describes, without its package, and its parameters."""
    import yaml

    try:
        model = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["model"]
        return str(model["target"]).rpartition(".")[2], dict(model["params"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} is no YAML file that describes a model ({type(error).__name__}: {error}).") from None


def _below(weights: dict, prefix: str) -> dict:
    return {name[len(prefix):]: value for name, value in weights.items() if name.startswith(prefix)}


def _schedule_of_compvis(params: dict, weights: dict) -> NoiseSchedule:
    """From the YAML file, unless the checkpoint's own betas say otherwise: the released code believes those."""
    betas = betas_of(COMPVIS_BETAS, params.get("beta_schedule", "linear"), params.get("timesteps", 1000),
                     params.get("linear_start", 1e-4), params.get("linear_end", 2e-2))
    stored = weights.get("betas")
    if stored is not None and not (stored.shape == betas.shape and torch.allclose(stored.double(), betas, rtol=1e-3)):
        betas = stored.double()
    return NoiseSchedule(betas)


def _scale_factor(params: dict, weights: dict) -> float:
    if "scale_factor" in weights:
        return float(weights["scale_factor"])
    if params.get("scale_by_std", False):
        raise FileError("the checkpoint lacks scale_factor, which this model measured on its first batch.")
    return float(params.get("scale_factor", 1.0))


def _conditioner(params: dict, autoencoder: Autoencoder, weights: dict, dtype, tokenizer) -> Conditioner | None:
    config, factor = params.get("cond_stage_config", "__is_unconditional__"), autoencoder.config.downsample_factor
    kind = config if isinstance(config, str) else config["target"].rpartition(".")[2]
    options = {} if isinstance(config, str) else config.get("params") or {}
    if kind == "__is_unconditional__":
        return None
    if kind not in CONDITIONS or params.get("conditioning_key") not in (None, CONDITIONS[kind]):
        raise FileError(f"no released model has the condition {kind} by conditioning_key="
                        f"{params.get('conditioning_key')}; known are {CONDITIONS}.")
    if kind == "__is_first_stage__":                            # its weights are stored a second time: not needed
        return InpaintConditioner(autoencoder.config.latent_channels, factor)
    if kind == "Identity":
        return LowResConditioner(factor, lowres_factor=factor, p_degrade=0.0)
    if kind == "SpatialRescaler":
        require(kind, options, {"method": ("bilinear",), "multiplier": (0.5,)})
        rescaler = on_meta(RescaledMap, options["in_channels"], options["out_channels"], options.get("n_stages", 1),
                           options.get("bias", False))
        return fit(rescaler, translate(rescaler, {"mix": "channel_mapper"}), weights, dtype=dtype)
    if kind == "ClassEmbedder":
        rows = options.get("n_classes", IMAGENET)
        table = on_meta(ClassTable, rows, options["embed_dim"], rows != IMAGENET)
        return fit(table, {"table.weight": "embedding.weight"}, weights, dtype=dtype)
    if kind == "FrozenCLIPEmbedder":
        return clip_from_weights(_below(weights, "transformer."), tokenizer or options.get("version", CLIP), dtype)
    return _text_encoder(kind, options, weights, dtype, tokenizer, params.get("cond_stage_key", "caption"))


def _text_encoder(kind: str, options: dict, weights: dict, dtype, tokenizer, key: str) -> TextEncoder:
    captions = kind == "BERTEmbedder" and options.get("use_tokenizer", True)
    encoder = on_meta(TextEncoder, options["n_embed"], options["n_layer"], options.get("vocab_size", 30522),
                      options.get("max_seq_len", 77), (tokenizer or BERT) if captions else tokenizer,
                      "caption" if captions else key)
    places = {"words": "token_emb", "positions": "pos_emb.emb", "norm": "norm"}
    # attention and MLP take turns in one list there, each behind its norm
    for i in range(encoder.layers):
        block, attention, mlp = f"blocks.{i}", *(f"attn_layers.layers.{2 * i + part}" for part in (0, 1))
        places |= {f"{block}.norm1": f"{attention}.0", f"{block}.attn": f"{attention}.1", f"{block}.norm2": f"{mlp}.0",
                   f"{block}.mlp.0": f"{mlp}.1.net.0.0", f"{block}.mlp.2": f"{mlp}.1.net.2"}
    # a head that predicts words is stored too, and never used
    weights = {name: value for name, value in _below(weights, "transformer.").items() if "to_logits." not in name}
    return fit(encoder, translate(encoder, places), weights, dtype=dtype)


def clip_from_weights(weights: dict[str, Tensor], tokenizer=CLIP, dtype=None, config: dict | None = None) -> ClipText:
    """CLIP's text encoder. config: of its CLIPTextModel; None = ViT-L/14's."""
    plain = {name.removeprefix("text_model."): value for name, value in weights.items()
             if not name.endswith("position_ids")}
    clip = on_meta(ClipText, config or VIT_L14, tokenizer)
    names = {key: key.removeprefix("model.").removeprefix("text_model.") for key in clip.state_dict()}
    fit(clip, names, plain, dtype=dtype)
    for module in clip.modules():                               # constants that no file has
        for name, value in list(module.named_buffers(recurse=False)):
            if value.is_meta:
                module.register_buffer(name, torch.arange(value.numel()).view(value.shape), persistent=False)
    return clip
