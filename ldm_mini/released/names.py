"""One network, several languages: what CompVis' code and diffusers call the parts of ours, and what ours lacks."""

from torch import Tensor, nn

from ..files import FileError
from ..schedule import cosine_betas, linear_betas, scaled_linear_betas

# Of a SpatialTransformer, where diffusers took over CompVis' names; and of other attention there.
TRANSFORMER_WORDS = {"blocks": "transformer_blocks", "self_attn": "attn1", "cross_attn": "attn2", "to_out": "to_out.0",
                     "ff.proj": "ff.net.0.proj", "ff.out": "ff.net.2"}
ATTENTION_WORDS = {"norm": "group_norm", "attn.to_out": "to_out.0", "attn.to_q": "to_q", "attn.to_k": "to_k",
                   "attn.to_v": "to_v"}

# A trap: the same word, "linear", means two schedules.
COMPVIS_BETAS = {"linear": scaled_linear_betas, "sqrt_linear": linear_betas,
                 "cosine": lambda steps, start, end: cosine_betas(steps)}
DIFFUSERS_BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas,
                   "squaredcos_cap_v2": lambda steps, start, end: cosine_betas(steps)}


def betas_of(language: dict, kind: str, steps: int, start: float, end: float) -> Tensor:
    """The betas (steps,) that COMPVIS_BETAS or DIFFUSERS_BETAS has under this name."""
    if kind not in language:
        raise FileError(f"beta_schedule {kind!r} is unknown here; known are {', '.join(language)}.")
    return language[kind](steps, start, end)


def require(what: str, config: dict, values: dict[str, tuple], known: set | None = None) -> None:
    """Refuse, by name, a config that asks for what ours does not compute. Raises FileError that lists all of it.

    values: {name: the values that ours has, first the one that an absent name stands for}; known: names that may occur
    besides, None: any.
    """
    bad = {name: config[name] for name, ours in values.items() if config.get(name, ours[0]) not in ours}
    unknown = [] if known is None else sorted(set(config) - set(values) - known)
    if bad or unknown:
        raise FileError(f"ours is no such {what}: {bad} should be among { {name: values[name] for name in bad} }, "
                        f"unknown parameters: {unknown}.")


def reworded(name: str, words: dict[str, str]) -> str:
    """A dotted name in other words. words: {ours: theirs}, whole words or several with their dots, in this order."""
    name = f".{name}."
    for ours, theirs in words.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name[1:-1]


def translate(module: nn.Module, places: dict[str, str], inside: dict[type, dict[str, str]] | None = None) -> dict:
    """{key of the module: name elsewhere}. places: {path of a layer: its path there}; inside: the words that differ
    within the layers of a class."""
    layers = {here: module.get_submodule(here) for here in places}
    return {f"{here}.{key}": f"{places[here]}.{reworded(key, (inside or {}).get(type(layer), {}))}"
            for here, layer in layers.items() for key in layer.state_dict()}
