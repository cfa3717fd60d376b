"""Checks of notebook 15: a block that its condition steers, a context among the tokens, and the whole transformer."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..cond import Cond
from ..dit import DiT, DiTBlock, DiTConfig, position_code
from .checking import CheckFailed, attempt, compare, passed
from .n17_modules import hold, wake
from .properties import fresh, generator, learn, own_randomness, same_dtype, same_gradient


def dit_block(cls):
    """`cls(width, heads)` with the layers of `ldm_mini.dit.DiTBlock`: `forward(x, condition)`, (B,N,D), (B,D)."""
    draw = fresh()
    for width, heads, (size, n) in ((16, 2, (2, 5)), (24, 3, (3, 4))):
        net = wake(lambda: cls(width, heads), "Block")  # noqa: B023
        hold(net, (draw(size, n, width), draw(size, width)), _block, BLOCK_MISTAKES, "Block.forward")
    passed("Block: the condition scales, shifts and gates")


BLOCK_MISTAKES = {
    "no gate": "the gates are missing: x + gate * attn(...).",
    "gate skip": "the gate is on what is added, not on x itself.",
    "no skip": "x itself is missing: what was computed is *added* to it.",
    "scale": "the norm is multiplied by 1 + scale, not by scale.",
    "no scale": "the scales are missing: norm(x) * (1 + scale) + shift.",
    "no shift": "the shifts are missing: norm(x) * (1 + scale) + shift.",
    "no silu": "the condition goes through SiLU before `modulation`.",
    "swapped": "the six are shift, scale, gate for attention, then shift, scale, gate for the MLP.",
    "gate first": "the three of each half are shift, scale, gate, in this order.",
    "shift second": "the three of each half are shift, scale, gate, in this order.",
    "no norm": "the norms are missing.",
    "post": "norm, scale and shift come *before* attention and MLP.",
    "parallel": "the MLP reads what attention has added to already.",
    "mlp first": "attention first, then the MLP.",
    "no mlp": "the MLP is missing.",
    "shared": "attention and MLP have three numbers each; here the MLP got those of attention.",
    "first condition": "all samples were steered by the condition of the first.",
}


def _block(net, x, condition, how=""):
    """The forward with one thing changed."""
    condition = condition[:1].expand_as(condition) if how == "first condition" else condition
    six = net.modulation(condition if how == "no silu" else F.silu(condition))[:, None].chunk(6, dim=-1)
    one, two = six[:3], six[3:]
    one, two = {"swapped": (two, one), "shared": (one, one)}.get(how, (one, two))

    def part(x, read, layer, norm, three):
        shift, scale, gate = {"gate first": (three[1], three[2], three[0]),
                              "shift second": (three[1], three[0], three[2])}.get(how, three)
        gate = 1.0 if how == "no gate" else gate
        scale = {"scale": scale - 1, "no scale": 0 * scale}.get(how, scale)
        shift = 0 * shift if how == "no shift" else shift
        if how == "post":
            return x + gate * (norm(layer(read)) * (1 + scale) + shift)
        out = layer((read if how == "no norm" else norm(read)) * (1 + scale) + shift)
        return {"gate skip": gate * x + out, "no skip": gate * out}.get(how, x + gate * out)

    attended, mlp = (net.attn, net.norm1, one), (net.mlp, net.norm2, two)
    if how == "mlp first":
        attended, mlp = (net.mlp, net.norm2, two), (net.attn, net.norm1, one)
    h = part(x, x, *attended)
    return h if how == "no mlp" else part(h, x if how == "parallel" else h, *mlp)


def start_as_identity(function):
    """`function(block)` changes a DiTBlock so that it returns x, whatever the condition, and can still learn."""
    draw = fresh()
    for width, heads in ((16, 2), (24, 3)):
        with own_randomness():
            block = DiTBlock(width, heads)
            nn.init.normal_(block.modulation.weight, std=0.3)
            nn.init.normal_(block.modulation.bias, std=0.3)
        before = {name: p.detach().clone() for name, p in block.named_parameters()}
        attempt(function, block, name="start_as_identity")
        _identity(block, before, draw(2, 5, width), draw(2, width))
    passed("start_as_identity: nothing at first, and ready to learn")


def _identity(block: nn.Module, before: dict, x: Tensor, condition: Tensor) -> None:
    """Raise CheckFailed unless the block is the identity, by its gates, and learns."""
    now = dict(block.named_parameters())
    if now.keys() != before.keys():
        raise CheckFailed("start_as_identity: change the values of the parameters, and keep the parameters: "
                          "nn.init.zeros_(layer.weight).")
    if [name for name, p in now.items() if not p.requires_grad]:
        raise CheckFailed("start_as_identity froze a layer: it must be able to learn.")
    touched = {name for name, p in now.items() if not torch.equal(p, before[name])}
    if others := sorted(name for name in touched if not name.startswith("modulation.")):
        raise CheckFailed(f"start_as_identity changed {others[0]}: only `modulation` has to be 0. With the layers "
                          "behind a shut gate at 0 as well, no gradient would ever reach either.")
    if now["modulation.weight"].any() and not now["modulation.bias"].any():
        raise CheckFailed("start_as_identity: the weight of `modulation` is not 0 yet: the gates still depend on the "
                          "condition.")
    if not now["modulation.weight"].any() and now["modulation.bias"].any():
        raise CheckFailed("start_as_identity: the bias of `modulation` is not 0 yet: the gates are open for any "
                          "condition.")
    out = attempt(block, x, condition, name="the block after start_as_identity")
    if not torch.equal(out, x):
        raise CheckFailed("after start_as_identity the block does not return x itself.")
    out.square().sum().backward()
    if not now["modulation.weight"].grad.any():
        raise CheckFailed("after start_as_identity no gradient reaches `modulation`: the block could never wake up.")


def read_as_tokens(function):
    """`function(run, x, words, mask)`: run(tokens, mask) -> tokens; x (B,N,D), words (B,M,D), mask (B,M) -> (B,N,D)."""
    draw = fresh()
    for size, n, m, width in ((2, 5, 3, 8), (3, 2, 4, 6)):
        x, words, mix = draw(size, n, width), draw(size, m, width), draw(width, width)
        mask = torch.rand(size, m, generator=generator(4)) < 0.5
        mask[0, 0], mask[0, 1] = False, True
        seen = []

        def run(tokens, mask, mix=mix, seen=seen):
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != tokens.shape[:2]:
                raise ValueError(f"run(tokens, mask) wants a bool for each token, {tuple(tokens.shape[:2])}")
            seen.append((tokens, mask))
            return _run(tokens, mask, mix)

        got, what = attempt(function, run, x, words, mask, name="read_as_tokens"), "read_as_tokens(run, x, words, mask)"
        if len(seen) != 1:
            raise CheckFailed(f"read_as_tokens ran the blocks {len(seen)} times; once, with all tokens together.")
        yes, tokens = torch.ones(size, n, dtype=torch.bool), torch.cat([x, words], 1)
        whole = lambda mask, tokens=tokens, mix=mix: _run(tokens, mask, mix)
        right = whole(torch.cat([yes, mask], 1))
        compare(got, right[:, :n], what, shapes={
            (size, n + m, width): "the words are still among the tokens: only the picture's go on."}, mistakes=[
            (right[:, -n:], "these are the last tokens; the picture's come first in the sequence you made."),
            (whole(torch.cat([mask, yes], 1))[:, :n], "the mask is in another order than the tokens."),
            (whole(torch.cat([yes, ~mask], 1))[:, :n], "the mask is upside down: True = may be read."),
            (whole(torch.cat([yes, torch.ones_like(mask)], 1))[:, :n], "words that the mask hides are read."),
            (whole(torch.cat([~yes, mask], 1))[:, :n], "the picture's own tokens may always be read: True for them."),
            (_run(x, yes, mix), "the words are not among the tokens."),
            (right[:, :n] + x, "the blocks add to x already."),
        ])
        same_dtype(got, x, what)
        leaves = learn(x, words)
        joined = _run(torch.cat(leaves, 1), torch.cat([yes, mask], 1), mix)[:, :n]
        same_gradient(function(run, *leaves, mask), joined, {"x": leaves[0], "words": leaves[1]}, what)
    passed("read_as_tokens: words and patches read each other")


def _run(tokens: Tensor, mask: Tensor, mix: Tensor) -> Tensor:
    """Blocks that nobody knows by heart: attention to what the mask shows, added."""
    scores = (tokens @ mix @ tokens.mT / tokens.shape[-1]).masked_fill(~mask[:, None], -1e9)
    return tokens + scores.softmax(-1) @ torch.tanh(tokens)


def small_dit(cls):
    """`cls(config)` with the layers of `ldm_mini.dit.DiT`: `forward(x, t, cond)`, (B,C,h,w) -> (B,C,h,w)."""
    draw = fresh()
    for c, p, width, side, size in ((3, 2, 16, 8, 2), (2, 1, 8, 4, 3)):
        config = DiTConfig(c, patch_size=p, width=width, depth=2, num_heads=2, input_size=side, vector_dim=5)
        net = wake(lambda: cls(config), "SmallDiT", like=DiT(config))  # noqa: B023
        t = torch.randint(1000, (size,), generator=generator())
        inputs = (draw(size, c, side, side), t, Cond(vector=draw(size, 5)))
        hold(net, inputs, _small_dit, DIT_MISTAKES, "SmallDiT.forward", shapes={
            (size, (side // p) ** 2, p * p * c): "these are tokens: bring them back with from_tokens."})
    passed("SmallDiT: tokens, blocks, and a picture again")


DIT_MISTAKES = {
    "no places": "the places are missing: add place_code to the tokens.",
    "no time": "t is not used: embeddings[0](t, cond.vector).",
    "no vector": "cond.vector is not used: embeddings[0](t, cond.vector).",
    "one block": "all blocks, one after the other: only the first ran.",
    "last block": "all blocks, one after the other: the last did not run.",
    "same input": "each block reads what the one before it made.",
    "turned": "the blocks ran from the last to the first.",
    "no norm": "the last norm is missing: norm_out(h) * (1 + scale) + shift.",
    "no modulation": "the last scale and shift are missing: modulation_out(silu(condition)).",
    "scale first": "modulation_out gives shift, then scale.",
    "no silu": "the condition goes through SiLU before modulation_out.",
    "channels": "proj_out's numbers are row, column, channel: from_tokens lays them out.",
    "skip": "the network predicts: x is not added.",
    "places last": "the places are added before the blocks, not behind them.",
}


def _small_dit(net, x, t, cond, how=""):
    """The forward with one thing changed."""
    c = net.config
    h = net.patchify(x)
    rows, columns = h.shape[2:]
    h = rearrange(h, "b d i j -> b (i j) d")
    places = position_code(rows, columns, c.width, rows)
    h = h if how in ("no places", "places last") else h + places
    embed = net.embeddings[0]
    condition = {"no time": lambda: embed.vector(cond.vector), "no vector": lambda: embed.time(t)}.get(
        how, lambda: embed(t, cond.vector))()
    blocks = {"one block": net.blocks[:1], "last block": net.blocks[:-1], "turned": list(net.blocks)[::-1]}.get(
        how, net.blocks)
    start = h
    for block in blocks:
        h = block(start if how == "same input" else h, condition)
    h = h + places if how == "places last" else h
    two = net.modulation_out(condition if how == "no silu" else F.silu(condition))[:, None].chunk(2, dim=-1)
    shift, scale = two[::-1] if how == "scale first" else two
    shift, scale = (0, 0) if how == "no modulation" else (shift, scale)
    h = net.proj_out((h if how == "no norm" else net.norm_out(h)) * (1 + scale) + shift)
    order = "(c p q)" if how == "channels" else "(p q c)"
    out = rearrange(h, f"b (i j) {order} -> b c (i p) (j q)", i=rows, p=c.patch_size, q=c.patch_size)
    return out + x if how == "skip" else out
