"""The checks of notebook 17: known wrong solutions must fail with a hint, right ones of any style must pass."""

import re
from functools import reduce

import torch
from solutions import spoiled, try_all, welford

from ldm_mini import checks
from ldm_mini.blocks import ResBlock


def by_formula(a, b, time, skip=None):
    skip = (a * b + b if a != b else 0) if skip is None else skip
    return 2 * a + 9 * a * b + b + time * b + b + 2 * b + 9 * b * b + b + skip


def by_building(a, b, time):
    with torch.device("meta"):
        return sum(p.numel() for p in ResBlock(a, b, time, groups=1).parameters())


def signs(size=1e-3):
    return size * (torch.arange(64) % 2 * 2.0 - 1).view(1, 1, 8, 8).expand(1, 32, 8, 8)


def from_signs(norm, size=1e-3):
    x = signs(size)
    return ((x / norm(x)) ** 2 - x**2).mean()


def from_deviations(norm):
    x = 1e-3 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(1, 32, 32, 32)
    y = norm(x).double()
    x = x.double()
    return float(x.var(correction=0) / y.var(correction=0) - x.var(correction=0))


def two_sizes(norm):
    """Solves y = s / sqrt(s^2 + e) at a larger size first, then refines with one near sqrt(e)."""
    guess = from_signs(norm, 3e-3).item()
    return from_signs(norm, guess**0.5).item()


def split_in_loops(qkv, num_heads):
    heads = [head.chunk(3) for head in qkv.chunk(num_heads)]
    return [torch.cat([head[i] for head in heads]) for i in range(3)]


def split_by_index(qkv, num_heads):
    d = len(qkv) // num_heads // 3
    rows = torch.arange(len(qkv))
    return torch.stack([qkv[rows // d % 3 == i] for i in range(3)])


WORDS = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_proj", "out_layers.0": "norm2",
         "out_layers.3": "conv2", "skip_connection": "shortcut"}


def rename(state, words=WORDS):
    return {f"{words[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in state.items()}


def rename_by_replacing(state):
    return {reduce(lambda name, pair: name.replace(*pair), WORDS.items(), name): state[name] for name in state}


def rename_by_pattern(state):
    pattern = re.compile("|".join(map(re.escape, WORDS)))
    return {pattern.sub(lambda match: WORDS[match[0]], name): value.clone() for name, value in state.items()}


def swapped(a, b):
    return lambda state: rename(state, WORDS | {a: WORDS[b], b: WORDS[a]})


def three_sums(batches, dtype=torch.float64, less=1):
    n = total = squares = 0
    for z in batches:
        z = z.to(dtype)
        n, total, squares = n + z.numel(), total + z.sum(), squares + z.square().sum()
    return ((squares - total**2 / n) / (n - less)) ** -0.5


def centred(batches):
    sums = [((z - z.mean()).square().sum().item(), z.numel()) for z in batches]
    return (sum(s for s, _ in sums) / sum(n for _, n in sums)) ** -0.5


def over(batches, function, then=lambda v: v):
    """A mean over the batches."""
    values = [function(z.double()) for z in batches]
    return then(sum(values) / len(values))


CORRECT = {
    checks.res_block_parameters: [by_formula, by_building, lambda *case: float(by_formula(*case)),
                                  lambda *case: torch.tensor(by_formula(*case))],
    checks.epsilon: [from_signs, from_deviations, two_sizes],
    checks.split_qkv: [
        split_in_loops, split_by_index,
        lambda qkv, heads: tuple(part.flatten(0, 1) for part in qkv.unflatten(0, (heads, 3, -1)).unbind(1)),
    ],
    checks.block_from_compvis: [rename, rename_by_replacing, rename_by_pattern],
    checks.pooled_scale: [three_sums, welford],
}

MUTANTS = {
    checks.res_block_parameters: [
        *spoiled(by_formula, (dict(skip=0), "1x1 convolution")),
        (lambda a, b, t: by_formula(a, b, t, skip=a * b + b), "the skip is the input itself"),
        (lambda a, b, t: by_formula(a, b, t, skip=(9 * a * b + b) * (a != b)), "not 3x3"),
        (lambda a, b, t: by_formula(a, b, t) - 2 * a - 2 * b, "a gain and a bias per channel"),
        (lambda a, b, t: by_formula(a, b, t) - a - b, "two numbers per channel"),
        (lambda a, b, t: by_formula(a, b, t) - 2 * b + 2 * a, "the second norm"),
        (lambda a, b, t: by_formula(a, b, t) - 3 * b - (b if a != b else 0), "have biases"),
        (lambda a, b, t: by_formula(a, b, t) - t * b - b, "time embedding is missing"),
        (lambda a, b, t: by_formula(a, b, t) - t * b - b + t * a + a, "to width_out channels"),
        (lambda a, b, t: by_formula(a, b, t) - 9 * b * b + 9 * a * b, "second convolution"),
        (lambda a, b, t: by_formula(a, b, t) + t * b + b, "once"),
        (lambda a, b, t: by_formula(a, b, t) - 9 * a * b - 9 * b * b + a * b + b * b, "are 3x3"),
        (lambda a, b, t: by_formula(a, b, t) + 1, "expected"),
        (lambda a, b, t: None, "whole number"),
        (lambda a, b, t: by_formula(a, b, t, skip=(a * b + b) * (a < b)), "1x1 convolution"),
        (lambda a, b, t: by_formula(a, b, 4 * b), "expected"),
        (lambda a, b, t: by_formula(a, b, t) - t * b - b + t * 2 * b + 2 * b, "once"),
        (lambda a, b, t: by_formula(a, b, t) / 1e6, "whole number"),
        (lambda a, b, t: by_formula(b, a, t), "expected"),
    ],
    checks.epsilon: [
        (lambda norm: from_signs(norm, 1.0), "float32 cannot see"),
        (lambda norm: ((signs() / norm(signs())) ** 2).mean(), "subtract the variance"),
        (lambda norm: from_signs(norm) ** 0.5, "square root"),
        (lambda norm: 1 / from_signs(norm), "1 / epsilon"),
        (lambda norm: 1e-5, "never called"),
        (lambda norm: 10.0 ** torch.log10(from_signs(norm)).round(), "found .* in a norm with"),
        (lambda norm: min((1e-5, 1e-6, 1e-3, 1e-8), key=lambda e: abs(from_signs(norm).item() - e)), "found"),
        (lambda norm: from_signs(norm) * 2, "found"),
        (lambda norm: None, "None"),
        (lambda norm: norm(signs()), "one number"),
        (lambda norm: norm(signs()).mean().item() + 1e-5, "found 1e-05 in a norm with 1e-06"),
        (lambda norm: norm(torch.zeros(1, 3, 4, 4)), "multiple of 32"),
    ],
    checks.split_qkv: [
        (lambda qkv, heads: qkv.chunk(3), "that is the \\*new\\* order"),
        (lambda qkv, heads: [qkv[i::3] for i in range(3)], "every third row|the \\*new\\* order"),
        (lambda qkv, heads: [qkv.unflatten(0, (heads, -1, 3))[:, :, i].flatten(0, 1) for i in range(3)],
         "every third row|the axes are"),
        (lambda qkv, heads: [split_in_loops(qkv, heads)[i] for i in (1, 0, 2)], "changed places"),
        (lambda qkv, heads: split_in_loops(qkv, heads)[::-1], "q, k, v"),
        (lambda qkv, n: [p.unflatten(0, (n, -1)).transpose(0, 1).flatten(0, 1) for p in split_in_loops(qkv, n)],
         "must stay blocks"),
        (lambda qkv, heads: qkv, "three tensors"),
        (lambda qkv, heads: [qkv] * 3, "has shape"),
        (lambda qkv, heads: [part.double() for part in split_in_loops(qkv, heads)], "dtype"),
        (lambda qkv, heads: [part[:, :len(part)] if part.ndim > 1 else part for part in split_in_loops(qkv, heads)],
         "has shape"),
        (lambda qkv, heads: split_in_loops(qkv, 2 if heads == 4 else heads), "off by up to|must stay blocks"),
        (lambda qkv, heads: [part.mT if part.ndim == 2 else part for part in split_in_loops(qkv, heads)], "off by"),
        (lambda qkv, heads: dict(zip("qkv", split_in_loops(qkv, heads))), "three tensors"),
    ],
    checks.block_from_compvis: [
        (swapped("in_layers.0", "out_layers.0"), "norm1.weight is out_layers.0.weight"),
        (swapped("in_layers.2", "out_layers.3"), "place in a Sequential"),
        (lambda state: rename(state, {**WORDS, "out_layers.2": "conv2"} | {"out_layers.3": "conv3"}), "unknown"),
        (lambda state: {name: value for name, value in rename(state).items() if "shortcut" not in name}, "missing"),
        (lambda state: {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for theirs, ours in WORDS.items()
                        for kind in ("weight", "bias")}, "no skip_connection"),
        (lambda state: rename({n: v for n, v in state.items() if n.endswith("weight")}), "missing .*bias"),
        (lambda state: state | rename(state), "still have the released names"),
        (lambda state: {name: value * 2 for name, value in rename(state).items()}, "something else"),
        (lambda state: list(rename(state)), "should return a dict"),
        (swapped("emb_layers.1", "skip_connection"), "KeyError|is skip_connection|unknown|missing"),
        (lambda state: {name: value.half() for name, value in rename(state).items()}, "something else"),
        (lambda state: {name: None for name in rename(state)}, "something else|raised"),
        (lambda state: {name.replace("bias", "weight"): value for name, value in rename(state).items()}, "missing"),
        (lambda state: {f"block.{name}": value for name, value in rename(state).items()}, "unknown"),
    ],
    checks.pooled_scale: [
        *spoiled(three_sums, (dict(less=0), "n - 1")),
        (lambda b: over(b, lambda z: 1 / z.std()), "mean of the batches' factors"),
        (lambda b: over(b, torch.std, lambda v: 1 / v), "standard deviations. Batches differ"),
        (lambda b: over(b, torch.var, lambda v: v**-0.5), "batches' variances"),
        (centred, "centred by its own mean"),
        (lambda b: [1 / z.double().std() for z in b][-1], "last batch"),
        (lambda b: 1 / three_sums(b), "upside down"),
        (lambda b: three_sums(b) ** 2, "take the root"),
        (lambda b: over(b, lambda z: 0 * z.sum() + 1), "off by"),
        (lambda b: three_sums(b, torch.float32), "float64"),
        (lambda b: 1 / torch.cat(list(b)).double().std(), "keeps all the batches"),
        (lambda b: 1 / next(iter(b)).double().std(), "come once"),
        (lambda b: sum(z.mean() for z in b) * 0 + three_sums(b), "come once"),
        (lambda b: torch.ones(4) * sum(z.numel() for z in b), "returned 4 numbers"),
        (lambda b: [z for z in b] and None, "returned None"),
        (lambda b: over(b, lambda z: z.std() * len(z), lambda v: 1 / v), "off by up to"),
        (lambda b: three_sums(z - z.mean() for z in b), "off by up to|centred"),
        (lambda b: 1 / (1 / three_sums(b) + 1e-3), "off by up to"),
        (lambda b: three_sums(b).half(), "off by up to"),
        (lambda b: three_sums(z[:, :1] for z in b), "off by up to"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
