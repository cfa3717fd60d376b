"""What a model is made of: parts, shapes, parameters and FLOPs, without its weights (on the meta device)."""

from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from .. import hub
from ..asked import sides_of, whole
from ..autoencoder import Autoencoder, Decoder, Encoder
from ..cond import Cond
from ..dit import DiT
from ..files import FileError, read_json
from ..unet import UNet
from ..video import VideoDiT, VideoUNet
from .conditioners import ClipText
from .diffusers_parts import autoencoder_of_diffusers, dit_config_from_diffusers
from .diffusers_unet import unet_config_from_diffusers
from .presets import FIRST_STAGE_OF, FIRST_STAGES, LATENT_SIZE, TOKENS, UNETS, autoencoder_preset, unet_preset
from .reading import on_meta


def run_info(name_or_folder, size: int | None = None) -> dict:
    """Print what a preset, a shipped model, a folder of ours or one of diffusers consists of; return it as a dict.

    size: side of the picture; None = that of its training, or 256. FLOPs are those of one picture, or of one film of as
    many frames as the model makes, and one evaluation of the network, a multiplication and its addition counting as
    two; guidance doubles them. Raises ValueError for a size that the networks cannot halve as often as they must.
    """
    name = str(name_or_folder)
    networks, image_size = find_networks(name)
    # what it is measured on: a picture of this side, so many words
    tokens, size = TOKENS.get(name, _tokens(networks.get("conditioner"))), size or image_size or 256
    factor = _factor(networks)
    if size % (several := sides_of(factor, networks.get("network"))):
        raise ValueError(f"{name} knows no pictures of {size} x {size}: sides must be multiples of {several}.")
    report = {"name": f"{name} with {FIRST_STAGE_OF[name]}" if name in UNETS else name, "image_size": size, "parts": {
        title: measure(network, size // factor if title == "network" else size, tokens)
        for title, network in networks.items()}}
    print(table(report))
    return report


def find_networks(name: str) -> tuple[dict[str, nn.Module], int | None]:
    """({"first stage", "network", "conditioner": module on the meta device}, side of its pictures if known)."""
    if name in FIRST_STAGES or name in UNETS:
        found = {"first stage": on_meta(autoencoder_preset, name)}
        if name in UNETS:
            found["network"] = on_meta(unet_preset, name)
        return found, LATENT_SIZE[name] * _factor(found) if name in UNETS else 256
    try:
        folder = hub.find(name)
    except FileError as error:
        raise FileError(f"{error} The paper's models are {', '.join([*FIRST_STAGES, *UNETS])}.") from None
    config = read_json(folder / hub.CONFIG) if (folder / hub.CONFIG).is_file() else {}
    if config.get("class") == "autoencoder.Autoencoder":
        config.pop("card", None)
        return {"first stage": on_meta(hub.build, config, str(folder / hub.CONFIG))}, 64
    if config.get("class") not in ("latent_diffusion.LatentDiffusion", "video_diffusion.LatentVideoDiffusion"):
        return _of_diffusers(folder)
    parts = {"first stage": "autoencoder", "network": "net", "conditioner": "conditioner"}
    found = {title: on_meta(hub.build, config[part], str(folder / hub.CONFIG), part) for title, part in parts.items()
             if config.get(part)}
    if "network" not in found:
        raise FileError(f"{folder / hub.CONFIG} is damaged: it has no net.")
    if "frames" in config:
        found["network"].frames = config["frames"]              # what a film is, for `_run`
    sides = config.get("image_size") or [64]
    sides = [whole(f"{folder / hub.CONFIG}: image_size", side, 1, 2**16)
             for side in (sides if isinstance(sides, list) else [sides])]
    return found, sides[0]


def _of_diffusers(folder: Path) -> tuple[dict[str, nn.Module], int | None]:
    """The parts of a pipeline's folder, or the one part that the folder is, from their configs alone."""
    paths = [folder / hub.CONFIG, *(folder / part / hub.CONFIG for part in ("vae", "vqvae", "unet", "transformer"))]
    found, latent = {}, None
    for config in (read_json(path) for path in paths if path.is_file()):
        name = config.get("_class_name", "")
        if name in ("AutoencoderKL", "VQModel"):
            found["first stage"] = on_meta(autoencoder_of_diffusers, config)
        elif name.startswith("UNet2D"):
            found["network"], latent = on_meta(UNet, unet_config_from_diffusers(config)), config.get("sample_size")
        elif "num_embeds_ada_norm" in config:
            found["network"], latent = on_meta(DiT, dit_config_from_diffusers(config)), config["sample_size"]
    if (folder / "text_encoder" / hub.CONFIG).is_file():
        found["conditioner"] = on_meta(ClipText, read_json(folder / "text_encoder" / hub.CONFIG))
    if not found:
        raise FileError(f"{folder} holds no model that is known here: neither of ldm_mini nor of diffusers.")
    # measured on squares: of an oblong, on that of its longer side
    latent = max(latent) if isinstance(latent, list) else latent
    return found, latent and latent * _factor(found)


def _factor(networks: dict) -> int:
    return networks["first stage"].config.downsample_factor if "first stage" in networks else 1


def _tokens(conditioner: nn.Module | None) -> int:
    """How many context tokens it makes, as far as it has a fixed length of captions; else CLIP's number."""
    parts = () if conditioner is None else conditioner.modules()
    return next((getattr(p, name) for p in parts for name in ("max_length", "length") if hasattr(p, name)), 77)


def measure(network: nn.Module, side: int, tokens: int = 77) -> dict:
    """Of a module on the meta device, run once on a picture or latent of this side:

    {"kind", "parameters", "flops", "input", "tokens", "rows": [name, kind, output shape, FLOPs, parameters] of a part}
    """
    parts, shapes = dict(_parts(network)), {}
    names = {part: name for name, part in parts.items()}

    def remember(module, args, output):
        if module in names:
            shapes[names[module]] = tuple((output if isinstance(output, Tensor) else output[0]).shape)[1:]

    # run it once: torch counts FLOPs module by module
    counter = FlopCounterMode(display=False)
    with register_module_forward_hook(remember), torch.device("meta"), torch.no_grad(), counter:
        shape = _run(network.eval(), side, tokens)
    flops = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    kind, reads = type(network).__name__, getattr(getattr(network, "config", None), "context_dim", None) is not None
    # in the order they ran; what did not run is only counted
    order = [*shapes, *(name for name in parts if name not in shapes)]
    rows = [[name, _kind(parts[name]), shapes.get(name, ()),
             flops.get(f"{kind}.{name}", 0) if name in shapes else None, _size(parts[name])] for name in order]
    return {"kind": kind, "parameters": _size(network), "flops": counter.get_total_flops(), "input": shape,
            "tokens": tokens if reads else None, "rows": rows}


def _parts(module: nn.Module, prefix: str = ""):
    """(name, module) of the parts worth a line."""
    for name, child in module.named_children():
        if type(child) in (nn.ModuleList, Encoder, Decoder):
            yield from _parts(child, f"{prefix}{name}.")
        elif child.state_dict():
            yield f"{prefix}{name}", child


def _run(network: nn.Module, side: int, tokens: int) -> tuple | None:
    """Once through, with one picture or latent of this side; the shape of the input. A conditioner is not run."""
    films = isinstance(network, (VideoUNet, VideoDiT))
    if not films and not isinstance(network, (Autoencoder, UNet, DiT)):
        return None
    c, frames = network.config, [getattr(network, "frames", 8)] if films else []
    x = torch.zeros(1, c.in_channels + getattr(c, "concat_channels", 0), *frames, side, side)
    if isinstance(network, Autoencoder):
        network(x)
        return tuple(x.shape)[1:]
    t = torch.zeros(1, dtype=torch.int64)
    context = torch.zeros(1, tokens, c.context_dim) if getattr(c, "context_dim", None) else None
    # a DiT's own table takes classes
    vector = t if getattr(c, "num_classes", None) else torch.zeros(1, c.vector_dim) if c.vector_dim else None
    network(x, t, Cond(context=context, vector=vector))
    return tuple(x.shape)[1:]


def _kind(part: nn.Module) -> str:
    return " + ".join(type(layer).__name__ for layer in (part if isinstance(part, nn.ModuleList) else [part]))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def table(report: dict) -> str:
    """The report as text; equal parts that follow each other share a line."""
    lines = [f"{report['name']}: pictures of {report['image_size']} x {report['image_size']}"]
    for title, part in report["parts"].items():
        what = "there and back" if title == "first stage" else "per step"
        what += "" if part["tokens"] is None else f" with {part['tokens']} token{'s' * (part['tokens'] > 1)}"
        flops = f", {part['flops'] / 1e9:,.1f} GFLOPs {what}" if part["flops"] else ""
        given = f", input {_shape(part['input'])}" if part["input"] else ""
        lines += ["", f"{title}: {part['kind']}, {part['parameters']:,} parameters{given}{flops}",
                  f"  {'part':<18} {'kind':<41} {'output':>15} {'parameters':>13} {'GFLOPs':>9}"]
        lines += [_line(list(same)) for _, same in groupby(part["rows"], lambda row: [_list_of(row[0]), *row[1:]])]
    return "\n".join(lines)


def _list_of(name: str) -> str:
    """The list that a part stands in; of a part in no list, its name."""
    place, _, last = name.rpartition(".")
    return place if last.isdecimal() else name


def _line(same: list) -> str:
    name, kind, shape, flops, parameters = same[0]
    if len(same) > 1:
        name, kind = f"{name} - {same[-1][0].rpartition('.')[2]}", f"{len(same)} x {kind}, each"
    flops = "" if flops is None else f"{flops / 1e9:,.2f}"
    return f"  {name:<18} {kind:<41} {_shape(shape):>15} {parameters:>13,} {flops:>9}".rstrip()


def _shape(shape: tuple) -> str:
    return " x ".join(str(n) for n in shape)
