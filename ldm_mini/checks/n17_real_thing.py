"""Checks of notebook 17, the real thing."""

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import CheckFailed, attempt, compare, count, number, passed, several
from .properties import fresh, fresh_whole, plain, same_dtype

NAMES = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_proj": "emb_layers.1", "norm2": "out_layers.0",
         "conv2": "out_layers.3", "shortcut": "skip_connection"}  # ours: the released code's


def res_block_parameters(function):
    """`function(width_in, width_out, time_dim)` -> how many numbers a residual block of the U-Net holds."""
    some = fresh_whole()
    for case in ((320, 640, 1280), (96, 96, 384), (64, 32, 48), (32, 32, 32),
                 (8 * some(1, 60), 8 * some(1, 60), 4 * some(1, 99))):
        a, b, time = case
        got = plain(attempt(function, *case, name="res_block_parameters"))
        norms, conv1, conv2, by_time = 2 * a + 2 * b, 9 * a * b + b, 9 * b * b + b, time * b + b
        skip = a * b + b if a != b else 0
        right = norms + conv1 + conv2 + by_time + skip
        no_bias = 3 * b + (b if a != b else 0)
        count(got, right, f"res_block_parameters{case}", mistakes={
            right - skip: "where the width changes the skip needs a 1x1 convolution, or there is nothing to add to.",
            right - skip + a * b + b: "where the width stays, the skip is the input itself: no convolution.",
            right - skip + (9 * a * b + b) * (a != b): "the skip's convolution is 1x1, not 3x3.",
            right - norms: "the two norms have a gain and a bias per channel.",
            right - norms // 2: "each norm has two numbers per channel, a gain and a bias.",
            right - norms + 4 * a: "the second norm comes after the first convolution: it has width_out channels.",
            right - norms + 4 * b: "the first norm comes before the first convolution: it has width_in channels.",
            right - no_bias: "all convolutions and the linear layer of the time have biases.",
            right - by_time: "the linear layer that reads the time embedding is missing.",
            right - by_time + time * a + a: "the time is added after the first convolution: to width_out channels.",
            right - conv2 + conv1: "the second convolution goes from width_out to width_out.",
            right - conv1 + 9 * a * a + a: "the first convolution goes from width_in to width_out.",
            right - 8 * (a * b + b * b): "the convolutions are 3x3.",
            right + by_time: "the time is added once: its layer gives width_out numbers (twice as many only where it "
                             "scales and shifts).",
        })
    passed("res_block_parameters: two norms, two convolutions, the time, and a skip where the width changes")


class _Norm:
    """A GroupNorm that remembers the mean square of what it was given."""

    def __init__(self, eps: float, groups: int):
        self.eps, self.groups, self.seen = eps, groups, []

    def __call__(self, x: Tensor) -> Tensor:
        x = torch.as_tensor(x)
        if x.ndim != 4 or x.shape[1] % 32:
            raise ValueError(f"the norm takes (B,C,H,W) with C a multiple of 32, not {tuple(x.shape)}")
        self.seen.append(x.double().var(correction=0).item())
        return F.group_norm(x, self.groups, eps=self.eps)


def epsilon(function):
    """`function(norm)`: norm takes (B,C,H,W), C a multiple of 32, and gives it normalised -> the norm's epsilon."""
    # not powers of ten alone: these could be guessed
    some = fresh_whole()
    drawn = some(11, 99) * 10.0 ** -some(5, 10)
    for eps, groups in ((1e-5, 32), (1e-6, 8), (1e-3, 1), (1e-8, 32), (3e-6, 32), (4e-5, 4), (drawn, 32)):
        norm = _Norm(eps, groups)
        got = number(attempt(function, norm, name="epsilon"), "epsilon").item()
        if not norm.seen:
            raise CheckFailed("epsilon never called the norm: it can only be found from what the norm does.")
        if abs(got - eps) <= 0.05 * eps:
            continue
        close, variance = (lambda value: abs(got - value) <= 0.05 * value), norm.seen[-1]
        hint = ""
        if close(eps + variance):
            hint = " That is variance + epsilon: subtract the variance of what you gave it."
        elif close(eps**0.5):
            hint = " That is its square root."
        elif close(1 / eps):
            hint = " That is 1 / epsilon."
        elif min(norm.seen) > 3000 * eps:
            hint = (f" Your input had the variance {variance:.1g}, beside which float32 cannot see an epsilon this "
                    "small. Give the norm something tiny.")
        elif max(norm.seen) < eps / 3000:
            hint = f" Your input had the variance {variance:.1g}: now epsilon is all there is, and rounding decides."
        elif groups == 1 and eps == 1e-3:
            hint = " It worked before: do not rely on the number of groups; use an input that is alike in all channels."
        raise CheckFailed(f"epsilon found {got:.3g} in a norm with {eps:.0e}.{hint}")
    passed("epsilon: read off from the outside")


def split_qkv(function):
    """`function(qkv, num_heads)`: (3C,C) or (3C,) in the released order -> q, k, v, each (C,C) or (C,)."""
    draw = fresh()
    for heads, width in ((2, 6), (3, 12), (1, 4), (4, 8)):
        for shape in ((3 * width, width), (3 * width,), (3 * width, 2 * width + 1, 1)):
            qkv, name = draw(*shape), f"split_qkv of {shape} with {heads} heads"
            got = attempt(function, qkv, heads, name="split_qkv")
            got = several(list(got) if isinstance(got, Tensor) else got, name, "three tensors, q, k and v")
            parts = qkv.unflatten(0, (heads, 3, -1))
            right = [parts[:, i].flatten(0, 1) for i in range(3)]
            wrong = {
                "that is the *new* order: first all q, then all k, then all v. The released weights go head by head, "
                "and within a head q, k, v.": list(qkv.chunk(3)),
                "you took every third row. A head's q are neighbours: C / num_heads rows, then as many k.":
                    [qkv[i::3] for i in range(3)],
                "the axes are (head, q k v, width of a head), in this order: unflatten(0, (num_heads, 3, -1)).":
                    [qkv.unflatten(0, (heads, -1, 3))[:, :, i].flatten(0, 1) for i in range(3)],
                "q and k have changed places.": [right[1], right[0], right[2]],
                "the order within a head is q, k, v.": right[::-1],
                "inside q the heads must stay blocks: (num_heads, width) flattened, not (width, num_heads).":
                    [parts[:, i].transpose(0, 1).flatten(0, 1) for i in range(3)],
            }
            for i, letter in enumerate("qkv"):
                compare(got[i], right[i], f"{name}: {letter}", mistakes=[
                    (value[i], message) for message, value in wrong.items()])
                same_dtype(got[i], qkv, f"{name}: {letter}")
    passed("split_qkv: head by head, q, k, v")


def block_from_compvis(function):
    """`function(state)`: {released name: tensor} of one residual block -> {our name: the same tensor}."""
    draw = fresh()
    for skip in (True, False):
        state = {f"{theirs}.{kind}": draw(3) for ours, theirs in NAMES.items() if skip or ours != "shortcut"
                 for kind in ("weight", "bias")}
        right = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in NAMES.items() for kind in ("weight", "bias")
                 if f"{theirs}.{kind}" in state}
        with_skip = "" if skip else " of a block without skip_connection"
        try:
            got = attempt(function, dict(state), name="block_from_compvis")
        except CheckFailed as error:
            if not skip and "KeyError" in str(error):
                raise CheckFailed("block_from_compvis: where the width stays the same there is no skip_connection. "
                                  "Go through the names that are there.") from error
            raise
        if not isinstance(got, dict):
            raise CheckFailed(f"block_from_compvis should return a dict, not {type(got).__name__}.")
        if left := sorted(set(got) & set(state)):
            raise CheckFailed(f"block_from_compvis{with_skip}: {left} still have the released names.")
        missing, unknown = sorted(set(right) - set(got)), sorted(set(got) - set(right))
        if missing or unknown:
            raise CheckFailed(f"block_from_compvis{with_skip}: missing {missing}, unknown {unknown}.")
        for ours, theirs in right.items():
            if not _alike(got[ours], state[theirs]):
                source = next((name for name, value in state.items() if _alike(got[ours], value)), "something else")
                raise CheckFailed(f"block_from_compvis: {ours} is {source}; it should be {theirs}. The number is the "
                                  "place in a Sequential: norm, SiLU, (dropout,) convolution.")
    passed("block_from_compvis: same numbers, other names")


def _alike(got, value: Tensor) -> bool:
    return isinstance(got, Tensor) and got.dtype == value.dtype and torch.equal(got, value)


def pooled_scale(function):
    """`function(batches)`: latents (b,c,h,w), b differs, once through -> 1 / standard deviation of all values."""
    differ = "Batches differ in size and in mean: add up n, sum and sum of squares."
    # the third stream has a mean of hundreds of spreads: in float32 the difference of two sums is rounding
    draw = fresh()
    for sizes, mean, spread, shape in (((3, 2), 0.5, 1.0, (4, 2, 2)), ((8, 1, 4, 3), -1.0, 2.0, (3, 2, 4)),
                                       ((5,), 0.5, 1.0, (4, 1, 3)), ((4, 4, 2), 40.0, 0.02, (4, 2, 2))):
        parts = [mean + spread * (1 + i) * draw(b, *shape) + spread * i for i, b in enumerate(sizes)]
        stream = _Stream(parts)
        got = attempt(function, stream, name="pooled_scale")
        if stream.begun > 1 or stream.given < len(parts):
            raise CheckFailed("pooled_scale: the batches come once, as from a data loader; go through all of them, in "
                              "one loop.")
        if isinstance(got, Tensor) and got.numel() > 1:
            raise CheckFailed(f"pooled_scale returned {got.numel()} numbers; one for all channels.")
        got = number(got, "pooled_scale")
        z, n = [p.double() for p in parts], sum(p.numel() for p in parts)
        all_values = torch.cat(z)
        within = sum(p.var(correction=0) * p.numel() for p in z) / n
        compare(got, 1 / all_values.std(), f"pooled_scale of batches of {sizes}", rtol=2e-5, atol=0, mistakes=[
            (all_values.std(), "upside down: it multiplies the latents, so it is 1 / standard deviation."),
            (1 / all_values.std(correction=0), "divide by n - 1, as torch's std and the released code do; the paper "
                                               "writes n. (With a whole batch of pictures nobody can tell.)"),
            (sum(1 / p.std() for p in z) / len(z), f"a mean of the batches' factors. {differ}"),
            (len(z) / sum(p.std() for p in z), f"1 / the mean of the batches' standard deviations. {differ}"),
            ((sum(p.var() for p in z) / len(z)) ** -0.5, f"a mean of the batches' variances. {differ}"),
            (within**-0.5, "each batch was centred by its own mean; what differs between batches counts too."),
            (1 / z[-1].std(), "the last batch alone."), (1 / z[0].std(), "the first batch alone."),
            (all_values.square().mean().rsqrt(), "root mean square: a standard deviation is about the mean."),
            (1 / all_values.var(), "1 / variance; take the root."),
        ] if mean != 40 else [
            (got, "right as long as the mean is small. Here it is hundreds of standard deviations, and the difference "
                  "of two large sums has lost all its digits: add up in float64."),
        ])
        if stream.kept:
            raise CheckFailed("pooled_scale is right, but keeps all the batches. Three numbers are enough: n, sum, sum "
                              "of squares.")
    passed("pooled_scale: any number of batches, three sums")


class _Stream:
    """Batches, each made when it is asked for; notices when they are asked for twice, or all kept."""

    def __init__(self, parts: list[Tensor]):
        self.parts, self.begun, self.given, self.alive, self.kept = parts, 0, 0, [], False

    def __iter__(self):
        self.begun += 1
        for part in self.parts:
            batch = part.clone()
            self.alive.append(weakref.ref(batch))
            self.given += 1
            yield batch
            del batch
        self.kept = len(self.alive) > 2 and all(ref() is not None for ref in self.alive)

    def __len__(self):
        return len(self.parts)
