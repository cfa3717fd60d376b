"""Checks of assignment A1: a palette as a condition."""

import torch
from torch import Tensor

from ..cond import Cond, Conditioner
from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, own_randomness


def palette(function):
    """`function(images, bands)`: images (B, 3, H, W) in [-1, 1] -> mean colours (B, bands, 3) in [0, 1], top first."""
    draw = fresh()
    for shape, bands in (((2, 3, 8, 12), 4), ((3, 3, 6, 12), 2), ((1, 3, 4, 4), 1)):
        images = draw(*shape).tanh()
        right = ((images + 1) / 2).unflatten(2, (bands, -1)).mean((3, 4)).mT
        got = attempt(function, images, bands, name="palette")
        upright = ((images + 1) / 2).unflatten(3, (bands, -1)).mean((2, 4)).mT
        compare(got, right, f"palette in {bands} bands", shapes={(shape[0], 3, bands): "colours come last."}, mistakes=[
            (right * 2 - 1, "pictures lie in [-1, 1], colours in [0, 1]: (images + 1) / 2."),
            (right.flip(1), "the top band comes first."),
            (right.flip(2), "red, green, blue, in the order of the channels."),
            (right.mean(1, keepdim=True).expand_as(right), "each band has its own mean."),
            (upright, "bands lie across: cut the height (axis 2), not the width."),
        ])
    passed("palette: the mean colour of each band, from the top")


def palette_conditioner(cls):
    """`cls(bands, vector_dim)`, a Conditioner: reads batch["palette"] (B, bands, 3), gives a Cond with a vector."""
    draw, name = fresh(), getattr(cls, "__name__", "your class")
    with own_randomness():
        for bands, dim, size in ((3, 8, 4), (1, 12, 2)):
            made = attempt(lambda: cls(bands, dim), name=f"{name}({bands}, {dim})")
            if not isinstance(made, Conditioner):
                raise CheckFailed(f"{name} should be a Conditioner: `class {name}(Conditioner)`.")
            if tuple(made.keys) != ("palette",):
                raise CheckFailed(f"{name}.keys should be ('palette',): what it reads; it is {made.keys!r}. Without it "
                                  "nobody knows whether a batch holds its condition.")
            colours = draw(size, bands, 3).sigmoid()
            told = _vector(attempt(made.encode, {"palette": colours}, name=f"{name}.encode"), size, dim, "encode")
            _must_read(made, colours, told, name)
            _judge_null(made, colours, dim, name)
            unread = [key for key, p in made.named_parameters() if p.grad is None or not p.grad.any()]
            if unread:
                raise CheckFailed(f"{name}: no gradient reaches {', '.join(unread)}, from encode and null together.")
    passed(f"{name}: all colours, each at its place, and a learned vector for none")


def _vector(cond, size: int, dim: int, method: str) -> Tensor:
    if not isinstance(cond, Cond):
        raise CheckFailed(f"{method} should return a Cond, not {type(cond).__name__}: `Cond(vector=...)`.")
    if cond.vector is None or cond.context is not None or cond.concat is not None:
        raise CheckFailed(f"{method} should give a vector and nothing else: `Cond(vector=...)`.")
    if tuple(cond.vector.shape) != (size, dim):
        raise CheckFailed(f"{method}'s vector has shape {tuple(cond.vector.shape)}; it should be (B, vector_dim) = "
                          f"{(size, dim)}.")
    return cond.vector


def _must_read(made, colours: Tensor, told: Tensor, name: str):
    """Each value of a palette acts on its own picture's vector, and on no other."""
    again = made.encode({"palette": colours}).vector
    if not torch.allclose(told, again):
        raise CheckFailed(f"{name}.encode gives the same palette another vector at each call.")
    for band in range(colours.shape[1]):
        for channel in range(3):
            other = colours.clone()
            other[0, band, channel] = 1 - other[0, band, channel] / 2
            moved = (made.encode({"palette": other}).vector - told).abs().amax(1) > 1e-6
            if not moved[0]:
                raise CheckFailed(f"{name}.encode does not read channel {channel} of band {band}.")
            if moved[1:].any():
                raise CheckFailed(f"{name}.encode mixes the pictures of a batch: one palette moved another's vector.")
    turned = made.encode({"palette": colours.flip(1)}).vector
    if colours.shape[1] > 1 and torch.allclose(told, turned, atol=1e-5):
        raise CheckFailed(f"{name}.encode does not know which colour is on top: give each band weights of its own.")


def _judge_null(made, colours: Tensor, dim: int, name: str):
    """No palette: a learned vector, the same for all, whether the batch has palettes or not."""
    none = _vector(attempt(made.null, {"palette": colours}, name=f"{name}.null"), len(colours), dim, "null")
    if not torch.allclose(none, none[:1].expand_as(none)):
        raise CheckFailed(f"{name}.null differs from picture to picture: it must not read the palette.")
    bare = attempt(made.null, {"caption": ["a dog"] * len(colours)}, name=f"{name}.null of a batch without palettes")
    if not torch.allclose(_vector(bare, len(colours), dim, "null"), none):
        raise CheckFailed(f"{name}.null must not depend on the palette: count the batch with batch_size(batch).")
    if not none.requires_grad:
        raise CheckFailed(f"{name}.null cannot be learned: make it an nn.Parameter.")
    black = made.encode({"palette": torch.zeros_like(colours)}).vector
    if torch.allclose(black, none, atol=1e-6):
        raise CheckFailed(f"{name}.null is what encode gives for black: then nobody can ask for black.")
    (made.encode({"palette": colours}).vector.square().sum() + none.cos().sum() + none.sum()).backward()


def palette_error(function):
    """`function(images, wanted)`: images (B, 3, H, W), wanted (B, bands, 3) -> mean absolute difference (B,)."""
    draw = fresh()
    for shape, bands in (((3, 3, 8, 8), 4), ((2, 3, 6, 4), 2)):
        images, wanted = draw(*shape).tanh(), draw(shape[0], bands, 3).sigmoid()
        found = ((images + 1) / 2).unflatten(2, (bands, -1)).mean((3, 4)).mT
        right = (found - wanted).abs().mean((1, 2))
        got = attempt(function, images, wanted, name="palette_error")
        compare(got, right, "palette_error", shapes={(): "one number for each picture, not one for all."}, mistakes=[
            ((found - wanted).mean((1, 2)), "too red here makes good for too blue there: .abs() first."),
            ((found - wanted).square().mean((1, 2)), "absolute differences, not squares."),
            ((found - wanted).abs().sum((1, 2)), "a mean, so that it does not grow with the number of bands."),
            ((found * 2 - 1 - wanted).abs().mean((1, 2)), "pictures lie in [-1, 1], palettes in [0, 1]."),
        ])
    passed("palette_error: how far from what was asked for, for each picture")
