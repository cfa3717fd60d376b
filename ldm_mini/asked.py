"""What a person hands over is looked at once, here: sizes, numbers, pictures, and what of a batch has no effect."""

import math
from operator import index

from torch import Tensor

LARGEST = 20.0                  # no image in [-1, 1] reaches it, nor does any noise added to one
SCENE_KEYS = ("image", "caption", "class", "style", "background", "labels", "colors", "boxes", "semantic", "lowres",
              "mask", "seed", "latent", "masked_latent", "video", "motion", "first_latent")     # of `scenes`' batches
ENCODED = {"masked_latent": "mask", "first_latent": "first"}    # pictures encoded ahead: who reads the key, reads them


def at_least(least: int, who: str, **values) -> None:
    """Raise ValueError for a number that is less, or NaN; None means none."""
    between(least, math.inf, who, **values)


def between(low: float, high: float, who: str, **values) -> None:
    """Raise ValueError for a number outside of [low, high], or NaN; None means none."""
    bounds = f"at least {low}" if high == math.inf else f"from {low} to {high}"
    for name, value in values.items():
        for one in value if isinstance(value, (tuple, list)) else [value]:
            if one is not None and not low <= one <= high:
                raise ValueError(f"{who}: {name} must be {bounds}, got {value}.")


def whole(name: str, value, low: int, high: float = math.inf) -> int:
    """The whole number from low to high that it is. Raises ValueError for any other thing."""
    try:
        number = None if isinstance(value, bool) else index(value)              # also of NumPy's and torch's
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise ValueError(f"{name} is a whole number from {low}{'' if high == math.inf else f' to {high}'}; got "
                         f"{value!r:.80}.")
    return number


def pair(size) -> tuple[int, int]:
    """(height, width) of a side or a pair. Raises ValueError for what is neither."""
    try:
        sides = tuple(size)
    except TypeError:
        sides = (size, size)
    if len(sides) != 2:
        raise ValueError(f"a size is a side or (height, width), in pixels; got {size!r:.80}.")
    return whole("a side", sides[0], 1), whole("a side", sides[1], 1)


def sides_of(factor: int, net) -> int:
    """What the sides of pictures must be multiples of: a first stage of this factor and a network halve them so often.
    net: None, or one of your own, which says nothing of that."""
    return factor * getattr(getattr(net, "config", None), "min_factor", 1)


def check_pictures(what: str, x: Tensor, channels: int | None = 3) -> Tensor:
    """The pictures, if they are (B,C,H,W), floats in [-1,1] or little beyond: a network makes something of any range.

    channels: C; None = any. Raises ValueError; of values on a CPU only, for on a GPU to look is to wait.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or channels not in (None, x.shape[1]) or not x.is_floating_point():
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
    elif x.device.type == "cpu" and x.numel() and not (most := x.detach().abs().amax()) <= LARGEST:
        got = f"values up to {most:.3g}"
    else:
        return x
    raise ValueError(f"{what} must be pictures (B,{channels or 'C'},H,W), floats from -1 to 1 (bytes: x / 127.5 - 1); "
                     f"got {got}.")


def check_first_stage(part) -> None:
    """Raise ValueError for what is no first stage; a LatentDiffusion, which scales what it encodes, is none."""
    if not hasattr(part, "encode") or hasattr(part, "denoiser"):
        raise ValueError("a first stage is wanted, such as an Autoencoder or ldm.autoencoder; got a "
                         f"{type(part).__name__}.")


def not_read(conditioner, batch: dict, negative: dict, guidance_scale: float) -> list[str]:
    """Sentences about what of a batch, and of what to steer away from, has no effect on a model with this conditioner.

    A data set's batch may tell more of its scenes than is read.
    """
    reads = list(getattr(conditioner, "keys", ()))
    parts = [part for part in getattr(conditioner, "parts", ()) if hasattr(part, "remarks") and part.keys]
    said = [remark for one in (batch, negative) for part in parts if part.present(one) for remark in part.remarks(one)]
    for one in (batch, negative):
        known = SCENE_KEYS if one.keys() & {"image", "video", "latent", "seed"} else ()
        said += [f"this model does not read {key!r}: it has no effect. It reads {', '.join(reads) or 'nothing'}."
                 for key in one if ENCODED.get(key, key) not in reads and key not in known]
        for part in parts:
            half = sorted(one.keys() & {*part.keys} - {"image"})
            if half and not part.present(one):
                lacks = ", ".join(key for key in part.keys if key not in one)
                said.append(f"{', '.join(half)} alone has no effect: there is no {lacks} with it.")
    if negative and guidance_scale == 1:
        said.append("without guidance (guidance_scale=1) nothing is steered away from: `negative` has no effect.")
    if conditioner is None and guidance_scale != 1 and negative:
        said.append("a model without conditions has nothing to be guided by: `negative` has no effect.")
    return list(dict.fromkeys(said))
