"""Checks of notebook 10, meaning as condition."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, own_randomness, same_dtype


def class_tokens(module):
    """`module(num_classes, dim)`: an nn.Module; classes (B,), -1 = none -> (B, 1, dim); `.table` has K + 1 rows."""
    for count, dim, classes in ((4, 6, [0, 3, -1, 1]), (7, 3, [-1, 5, 5, 0, 6, -1])):
        with own_randomness():
            net = attempt(module, count, dim, name="ClassTokens")
        table = getattr(net, "table", None)
        if not isinstance(table, nn.Embedding) or table.weight.shape != (count + 1, dim):
            raise CheckFailed(f"ClassTokens({count}, {dim}) should keep its rows in `self.table`, an nn.Embedding of "
                              f"{count} + 1 rows of width {dim}: one row more than there are classes, for \"no "
                              "class\".")
        if not table.weight[-1].any():
            with torch.no_grad():  # it may start at 0, but it has to count
                table.weight[-1] = 0.5
        classes, what = torch.tensor(classes), f"ClassTokens({count}, {dim})(classes)"
        got = attempt(net, classes, name="ClassTokens")
        rows, none = table.weight.detach(), classes < 0
        right = torch.where(none, count, classes)
        compare(got, rows[right][:, None], what, mistakes=[
            (rows[classes.clamp(min=0)][:, None], "-1 became class 0. No class is not the first class: it has the last "
                                                  "row."),
            (rows[torch.where(none, count - 1, classes)][:, None], "-1 became the last *class*; it has a row of its "
                                                                   "own, behind the classes."),
            (rows[classes + 1][:, None], "the rows are shifted by one: class k has row k, and -1 the *last* row."),
            (rows[right].masked_fill(none[:, None], 0)[:, None], "\"no class\" became zeros: it has a row that learns "
                                                                 "as the others do."),
        ])
        same_dtype(got, table.weight, what)
        if not torch.is_tensor(got) or not got.requires_grad:
            raise CheckFailed("ClassTokens: the table must learn, but no gradient reaches it. No detach, no .data "
                              "here.")
        [gradient] = torch.autograd.grad(got.sum(), [table.weight], allow_unused=True)
        if gradient is None or not torch.equal(gradient[:, 0], torch.bincount(right, minlength=count + 1).float()):
            dead = gradient is not None and not gradient[-1].any()
            raise CheckFailed("ClassTokens: the gradient does not reach " + (
                "the row of \"no class\". A padding_idx never learns, and a detached row neither." if dead else
                "every row that was used. No detach, no .data here."))
    passed("class_tokens: a learned row per class, and one for none")


VOCABULARY, LENGTH, WIDTH = 21, 8, 16  # of the text transformer that is tried out
NAME = "the text transformer"


def text_transformer(module):
    """`module(vocab_size, max_length, width=, layers=, heads=)`: ids (B,M), mask (B,M) bool -> (B,M,width)."""
    def make(length=LENGTH, layers=2):
        with own_randomness():
            return attempt(lambda: module(VOCABULARY, length, width=WIDTH, layers=layers, heads=2), name=NAME)

    net = make()
    ids = torch.tensor([[1, 5, 6, 7, 2, 0, 0, 0], [1, 7, 6, 5, 2, 0, 0, 0], [1, 5, 6, 20, 9, 8, 3, 2]])
    if not isinstance(net, nn.Module):
        raise CheckFailed(f"{NAME} should be an nn.Module: give the class, or a function that makes one.")
    _hold_parts(net.eval(), make)
    out = attempt(net, ids, ids != 0, name=NAME)
    if not isinstance(out, Tensor) or out.shape != (3, LENGTH, WIDTH):
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise CheckFailed(f"{NAME} should return (B, M, width) = (3, 8, 16), got {found}.")
    if not out.isfinite().all():
        raise CheckFailed(f"{NAME} gave NaN. Is the mask the right way round? src_key_padding_mask is "
                          "True where attention must NOT look, so it is ~mask.")
    same_dtype(out, torch.zeros(()), f"{NAME}'s result")
    if out.mean(-1).abs().max() > 1e-2 or (out.std(-1, unbiased=False) - 1).abs().max() > 5e-2:
        raise CheckFailed("pre-LN layers leave their sum as it is: a LayerNorm is needed at the very end, the `norm` "
                          "of nn.TransformerEncoder.")
    # some start their positions at zero; what a part does shows when it is awake
    draw = fresh()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * draw(*p.shape))
    _hold_reading(net, ids, ids != 0)
    _hold_gradients(net, ids, draw)
    passed("text_transformer: words, order, context, and padding unread")


def _hold_parts(net: nn.Module, make):
    """What can be counted: learned positions, `layers` layers, and how those of PyTorch are put together."""
    size = lambda module: sum(p.numel() for p in module.parameters())
    if size(make(length=LENGTH + 3)) - size(net) != 3 * WIDTH:
        raise CheckFailed("the positions are not learned: there should be a vector for each of max_length places, "
                          "nn.Embedding(max_length, width). (Sinusoids are fixed, and one vector for all is no place.)")
    if not size(make(layers=1)) < size(net) < size(make(layers=3)):
        raise CheckFailed("the number of layers does not depend on `layers`.")
    layers = [part for part in net.modules() if isinstance(part, nn.TransformerEncoderLayer)]
    if not all(layer.norm_first for layer in layers):
        raise CheckFailed("your layers are post-LN, PyTorch's default. Pre-LN, as the paper's: norm_first=True.")
    if any(layer.self_attn.num_heads != 2 for layer in layers):
        raise CheckFailed("the number of heads does not follow `heads`.")


def _hold_reading(net: nn.Module, ids: Tensor, mask: Tensor):
    """Who reads whom: all words all words, nobody the padding; and order counts."""
    read = lambda ids, mask=mask: attempt(net, ids, mask, name=NAME)
    out, other, real = read(ids), torch.where(mask, ids, 11), mask[:, :, None]
    unread = "what stands in the padding changes the real tokens: padding is read. Pass src_key_padding_mask=~mask " \
             "(True = do not look)."
    if not torch.allclose(read(other) * real, out * real, atol=1e-4):
        raise CheckFailed(unread)
    words = ids.clone()
    words[0, 1] = 12
    if torch.allclose(read(words)[0, 4], out[0, 4], atol=1e-5):
        raise CheckFailed("changing the second word leaves the token of the fifth unchanged: real tokens are masked, "
                          "or attention is missing. Is the mask the right way round?")
    if torch.allclose(out[0, 2], out[1, 2], atol=1e-4):
        raise CheckFailed("\"5 6 7\" and \"7 6 5\" give the same middle token: the order is lost. Add positions.")
    later = ids.clone()
    later[0, 3] = 13
    if torch.allclose(read(later)[0, 1], out[0, 1], atol=1e-5):
        raise CheckFailed("a word does not read the words *after* it. The whole caption is known: no causal mask.")
    if not torch.allclose(read(ids.flip(0), mask.flip(0)).flip(0) * real, out * real, atol=1e-4):
        raise CheckFailed("a caption's tokens depend on the other captions of the batch. Is batch_first=True missing?")
    try:  # shorter captions are a courtesy; but who takes them must not have read the padding, even emptied
        short = net(ids[:2, :5], mask[:2, :5])
    except Exception:
        return
    if short.shape == (2, 5, WIDTH) and not torch.allclose(short, out[:2, :5], atol=1e-4):
        raise CheckFailed("with less padding behind it, a caption has other tokens: padding is read (as zeros, "
                          "perhaps). Pass src_key_padding_mask=~mask (True = do not look).")


def _hold_gradients(net: nn.Module, ids: Tensor, draw):
    out = net(ids, ids != 0)
    if out.requires_grad:
        (out * draw(*out.shape)).sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    if not out.requires_grad or len(still) == len([*net.parameters()]):
        raise CheckFailed(f"no gradient reaches {NAME}; it is trained together with the U-Net.")
    if still:
        raise CheckFailed(f"no gradient reaches {', '.join(still)}. All of {NAME} is trained together with the U-Net: "
                          "no detach, no requires_grad=False, and no part that goes unused.")


def word_maps(function):
    """`function(maps, size)`: {layer: list of weights (1,H,h*w,M)} -> (M, size, size)."""
    draw = fresh()
    # layers differ in their calls and heads: a mean over all that there is would weigh them by those
    for tokens, size, layers in ((3, 8, [(2, 2, 4), (3, 4, 2)]), (5, 12, [(1, 1, 6), (2, 2, 3), (2, 1, 2)])):
        maps = {f"layer {i}": [draw(1, heads, side * side, tokens).softmax(-1) for _ in range(calls)]
                for i, (calls, heads, side) in enumerate(layers)}
        got = attempt(function, {name: list(calls) for name, calls in maps.items()}, size, name="word_maps")
        what, every = f"word_maps(maps, {size})", lambda **options: _word_maps(maps, size, **options)  # noqa: B023
        compare(got, every(), what, mistakes=[
            (every(mode="nearest"), 'enlarge with mode="bilinear".'),
            (every(mode="bicubic"), 'enlarge with mode="bilinear".'),
            (every(align_corners=True), "leave align_corners at its default, False."),
            (every(heads="sum"), "take the mean over the heads, not the sum."),
            (every(heads="first"), "take the mean over the heads, not the first one."),
            (every(heads="max"), "take the mean over the heads, not the largest."),
            (every(flip=True), "rows and columns are swapped: pixels are in reading order, row by row."),
            (every(calls="last"), "take the mean over all calls of a layer, not the last one."),
            (every(calls="first"), "take the mean over all calls of a layer, not the first one."),
            (every(calls="sum"), "take the mean over the calls of a layer, not their sum."),
            (every(layers="sum"), "average over the layers, do not add them."),
            (every(layers="calls"), "each layer counts once, however often it was called: first the mean of its calls, "
                                    "then that of the layers."),
            (every(layers="last"), "average over all layers; this is the last one."),
            (every(mix=True), "(h*w, M) was reshaped to (M, h, w), which mixes pixels with tokens: transpose first."),
        ])
        same_dtype(got, maps["layer 0"][0], what)
    passed("word_maps: where each word acts")


def _word_maps(maps, size, heads="mean", calls="mean", layers="mean", mode="bilinear", flip=False, mix=False, **more):
    """The maps of all words; the options change one thing."""
    pictures = []
    for each in maps.values():
        each = torch.cat(each)  # calls, H, h*w, M
        each = {"mean": each.mean(0), "sum": each.sum(0), "first": each[0], "last": each[-1]}[calls]
        each = {"mean": each.mean(0), "sum": each.sum(0), "first": each[0], "max": each.amax(0)}[heads]
        side = round(len(each) ** 0.5)
        picture = (each if mix else each.T).reshape(1, -1, side, side)
        picture = picture.transpose(2, 3) if flip else picture
        pictures.append(F.interpolate(picture, size=(size, size), mode=mode, **more)[0])
    counts = torch.tensor([float(len(each)) for each in maps.values()])
    weights = {"mean": torch.ones_like(counts) / len(counts), "sum": torch.ones_like(counts),
               "calls": counts / counts.sum(), "last": F.one_hot(torch.tensor(len(counts) - 1)).float()}[layers]
    return torch.einsum("l,lmhw->mhw", weights, torch.stack(pictures))


def drop_conditions(function):
    """`function(cond, null, p, generator)`: dicts of (B, ...) tensors -> a dict; each sample is wholly one of both."""
    draw = fresh()
    for size, p, shapes in ((4000, 0.3, {"context": (3, 2), "mask": (3,), "vector": (5,)}),
                            (3000, 0.85, {"context": (4, 1), "concat": (2, 2, 2)})):
        # each sample has a null of its own, or null[:1] would do as well
        cond, null = ({name: draw(size, *shape) for name, shape in shapes.items()} for _ in range(2))
        if "mask" in cond:
            cond["mask"], null["mask"] = cond["mask"] > 0, cond["mask"] <= 0  # never alike

        def drop(seed, p=p, cond=cond, null=null):
            kept = {name: value.clone() for name, value in cond.items()}
            source = torch.Generator().manual_seed(seed)
            got = attempt(lambda: function(kept, dict(null), p, source), name="drop_conditions")
            if any(not torch.equal(kept[name], value) for name, value in cond.items() if name in kept):
                raise CheckFailed("drop_conditions changed `cond` in place, which a cache or the next epoch may still "
                                  "need: torch.where makes new tensors.")
            return got

        dropped = _dropped(drop(0), cond, null, p)
        with own_randomness():
            again = _dropped(drop(0), cond, null, p)
        if not torch.equal(dropped, again) or torch.equal(dropped, _dropped(drop(1), cond, null, p)):
            raise CheckFailed("drop_conditions: the generator does not decide which samples are dropped; draw with "
                              "torch.rand(..., generator=generator).")
        if _dropped(drop(0, 0.0), cond, null, 0.0).any() or not _dropped(drop(0, 1.0), cond, null, 1.0).all():
            raise CheckFailed("drop_conditions: with p = 0 nothing is dropped, with p = 1 everything.")
    passed("drop_conditions: now and then, nothing at all")


def _dropped(got, cond: dict, null: dict, p: float) -> Tensor:
    """Which samples became null, (B,) bool; CheckFailed if they are mixtures, or too many."""
    if not isinstance(got, dict) or got.keys() != cond.keys():
        raise CheckFailed(f"drop_conditions should return a dict with the parts {list(cond)}: go through those that "
                          "are there.")
    for name, value in cond.items():
        if not isinstance(got[name], Tensor) or got[name].shape != value.shape or got[name].dtype != value.dtype:
            raise CheckFailed(f"drop_conditions: {name!r} must keep shape {tuple(value.shape)} and {value.dtype}.")
    same = {name: (got[name] == null[name]).flatten(1) for name in cond}
    for name, value in got.items():
        if not (same[name] | (value == cond[name]).flatten(1)).all():
            known = (value == null[name][:1]).flatten(1).all(1) | (value == cond[name]).flatten(1).all(1)
            zeros = (value == 0).flatten(1).all(1) | (value == cond[name]).flatten(1).all(1)
            raise CheckFailed(f"drop_conditions: {name!r} " + (
                "was filled with zeros; the null condition is `null`, and it may be anything." if zeros.all() else
                "got the first sample's null everywhere: take each sample's own." if known.all() else
                "is a mixture. A sample is wholly cond's or wholly null's."))
        if not (same[name] == same[name][:, :1]).all():
            raise CheckFailed(f"drop_conditions: {name!r} was dropped in pieces within one sample. One draw per "
                              "sample, broadcast over its other axes.")
    dropped = same["context"][:, 0]
    if any(not torch.equal(dropped, value[:, 0]) for value in same.values()):
        raise CheckFailed("drop_conditions: a sample has its tokens dropped but not its mask or vector. Draw once, "
                          "and use the same draw for all parts.")
    share = dropped.double().mean().item()
    if share in (0.0, 1.0) and 0 < p < 1:
        raise CheckFailed("drop_conditions: " + ("nothing was dropped." if share == 0 else "everything was dropped.")
                          + " Draw for each sample of the batch, not once for all.")
    if abs(share - p) > 0.04 and 0 < p < 1:
        raise CheckFailed(f"drop_conditions: {share:.0%} of the samples were dropped, with p = {p:.0%}."
                          + (" Kept and dropped are swapped." if abs(share - 1 + p) < 0.04 else ""))
    return dropped
