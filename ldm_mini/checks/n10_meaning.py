"""Checks of notebook 10, meaning as condition."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checking import CheckFailed, attempt, compare, noise, passed


def class_tokens(module):
    """`module(num_classes, dim)`: an nn.Module; classes (B,), -1 = none -> (B, 1, dim); `.table` has K + 1 rows."""
    torch.manual_seed(0)
    net = attempt(module, 4, 6, name="ClassTokens")
    table = getattr(net, "table", None)
    if not isinstance(table, nn.Embedding) or table.weight.shape != (5, 6):
        raise CheckFailed("ClassTokens(4, 6) should keep its rows in `self.table`, an nn.Embedding of 4 + 1 rows of "
                          "width 6: one row more than there are classes, for \"no class\".")
    classes = torch.tensor([0, 3, -1, 1])
    got = attempt(net, classes, name="ClassTokens")
    rows = table.weight.detach()
    compare(got, rows[[0, 3, 4, 1]][:, None], "ClassTokens(4, 6)(classes)", mistakes=[
        (rows[[0, 3, 0, 1]][:, None], "-1 became class 0. No class is not the first class: it has the last row."),
        (rows[[0, 3, 3, 1]][:, None], "-1 became the last *class*; it has a row of its own, behind the classes."),
        (rows[[1, 4, 0, 2]][:, None], "the rows are shifted by one: class k has row k, and -1 the *last* row."),
    ])
    if not torch.is_tensor(got) or not got.requires_grad:
        raise CheckFailed("ClassTokens: the table must learn, but no gradient reaches it. No detach, no .data here.")
    passed("class_tokens: a learned row per class, and one for none")


def text_transformer(module):
    """`module(vocab_size, max_length, width=, layers=, heads=)`: ids (B,M), mask (B,M) bool -> (B,M,width)."""
    torch.manual_seed(0)
    net = attempt(lambda: module(20, 8, width=16, layers=2, heads=2), name="the text transformer")
    ids = torch.tensor([[1, 5, 6, 7, 2, 0, 0, 0], [1, 7, 6, 5, 2, 0, 0, 0], [1, 5, 6, 7, 9, 8, 3, 2]])
    mask = ids != 0
    if not isinstance(net, nn.Module):
        raise CheckFailed("the text transformer should be an nn.Module: give the class, or a function that makes one.")
    net.eval()
    out = attempt(net, ids, mask, name="the text transformer")
    if not isinstance(out, Tensor) or out.shape != (3, 8, 16):
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise CheckFailed(f"the text transformer should return (B, M, width) = (3, 8, 16), got {found}.")
    if not out.isfinite().all():
        raise CheckFailed("the text transformer gave NaN. Is the mask the right way round? src_key_padding_mask is "
                          "True where attention must NOT look, so it is ~mask.")
    other = ids.clone()
    other[:, 5:] = torch.where(mask[:, 5:], ids[:, 5:], 11)                     # other words where the padding is
    changed = attempt(net, other, mask, name="the text transformer")
    real = mask[:, :, None].expand_as(out)
    if not torch.allclose(changed[real], out[real], atol=1e-5):
        raise CheckFailed("what stands in the padding changes the real tokens: padding is read. Pass "
                          "src_key_padding_mask=~mask (True = do not look).")
    words = ids.clone()
    words[0, 1] = 12
    if torch.allclose(attempt(net, words, mask, name="the text transformer")[0, 4], out[0, 4], atol=1e-6):
        raise CheckFailed("changing the second word leaves the token of the fifth unchanged: real tokens are masked, "
                          "or attention is missing. Is the mask the right way round?")
    if torch.allclose(out[0, 2], out[1, 2], atol=1e-5):
        raise CheckFailed("\"5 6 7\" and \"7 6 5\" give the same middle token: the order is lost. Add positions.")
    later = ids[:1].clone()
    later[0, 3] = 13
    if torch.allclose(attempt(net, later, mask[:1], name="the text transformer")[0, 1], out[0, 1], atol=1e-6):
        raise CheckFailed("a word does not read the words *after* it. The whole caption is known: no causal mask.")
    norm = out.mean(-1).abs().max(), (out.std(-1, unbiased=False) - 1).abs().max()
    if norm[0] > 1e-2 or norm[1] > 5e-2:
        raise CheckFailed("pre-LN layers leave their sum as it is: a LayerNorm is needed at the very end, the `norm` "
                          "of nn.TransformerEncoder.")
    out.sum().backward()
    if not any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters()):
        raise CheckFailed("no gradient reaches the text transformer; it is trained together with the U-Net.")
    passed("text_transformer: words, order, context, and padding unread")


def word_maps(function):
    """`function(maps, size)`: {layer: list of weights (1,H,h*w,M)} -> (M, size, size)."""
    maps = {"a": [noise(1, 2, 16, 3).softmax(-1), noise(1, 2, 16, 3, seed=1).softmax(-1)],
            "b": [noise(1, 4, 4, 3, seed=2).softmax(-1), noise(1, 4, 4, 3, seed=3).softmax(-1)]}

    def layer(calls, heads=True, mode="bilinear", flip=False, last=False, **options):
        weights = calls[-1][0] if last else torch.stack(calls).mean(0)[0]       # (H, h*w, M)
        weights = weights.mean(0) if heads else weights.sum(0)
        side = round(len(weights) ** 0.5)
        picture = weights.T.reshape(1, -1, side, side)
        picture = picture.transpose(2, 3) if flip else picture
        return F.interpolate(picture, size=(8, 8), mode=mode, **options)[0]

    def every(**options):
        return torch.stack([layer(calls, **options) for calls in maps.values()]).mean(0)

    wrong = torch.stack([F.interpolate(torch.stack(c).mean((0, 1, 2)).reshape(1, 3, *2 * [round(c[0].shape[2] ** .5)]),
                                       size=(8, 8), mode="bilinear")[0] for c in maps.values()]).mean(0)
    got = attempt(function, maps, 8, name="word_maps")
    compare(got, every(), "word_maps(maps, 8)", mistakes=[
        (every(mode="nearest"), 'enlarge with mode="bilinear".'),
        (every(align_corners=True), "leave align_corners at its default, False."),
        (every(heads=False), "take the mean over the heads, not the sum."),
        (every(flip=True), "rows and columns are swapped: pixels are in reading order, row by row."),
        (every(last=True), "take the mean over all calls of a layer, not the last one."),
        (2 * every(), "average over the layers, do not add them."),
        (wrong, "(h*w, M) was reshaped to (M, h, w), which mixes pixels with tokens: transpose first."),
    ])
    passed("word_maps: where each word acts")


def drop_conditions(function):
    """`function(cond, null, p, generator)`: dicts of (B, ...) tensors -> a dict; each sample is wholly one of both."""
    size, p = 4000, 0.3
    cond = {"context": torch.ones(size, 3, 2), "mask": torch.ones(size, 3, dtype=torch.bool),
            "vector": torch.ones(size, 5)}
    null = {name: torch.zeros_like(value) for name, value in cond.items()}
    got = attempt(function, cond, null, p, torch.Generator().manual_seed(0), name="drop_conditions")
    if not isinstance(got, dict) or got.keys() != cond.keys():
        raise CheckFailed(f"drop_conditions should return a dict with the parts {list(cond)}.")
    for name, value in cond.items():
        if not isinstance(got[name], Tensor) or got[name].shape != value.shape or got[name].dtype != value.dtype:
            raise CheckFailed(f"drop_conditions: {name!r} must keep shape {tuple(value.shape)} and {value.dtype}.")
    flat = {name: value.float().flatten(1) for name, value in got.items()}
    for name, value in flat.items():
        if not ((value == 0) | (value == 1)).all():
            raise CheckFailed(f"drop_conditions: {name!r} is a mixture. A sample is wholly cond's or wholly null's.")
        if not (value == value[:, :1]).all():
            raise CheckFailed(f"drop_conditions: {name!r} was dropped in pieces within one sample. One draw per "
                              "sample, broadcast over its other axes.")
    kept = {name: value[:, 0] for name, value in flat.items()}
    if any(not torch.equal(kept["context"], value) for value in kept.values()):
        raise CheckFailed("drop_conditions: a sample has its tokens dropped but not its mask or vector. Draw once, "
                          "and use the same draw for all parts.")
    share = 1 - kept["context"].mean().item()
    if share in (0.0, 1.0):
        raise CheckFailed("drop_conditions: " + ("nothing was dropped." if share == 0 else "everything was dropped.")
                          + " Draw for each sample of the batch, not once for all.")
    if abs(share - p) > 0.04:
        raise CheckFailed(f"drop_conditions: {share:.0%} of the samples were dropped, with p = {p:.0%}."
                          + (" Kept and dropped are swapped." if abs(share - 1 + p) < 0.04 else ""))
    again = attempt(function, cond, null, p, torch.Generator().manual_seed(1), name="drop_conditions")
    if torch.equal(again["context"], got["context"]):
        raise CheckFailed("drop_conditions: other generators give the same samples; draw with torch.rand(..., "
                          "generator=generator).")
    passed("drop_conditions: now and then, nothing at all")
