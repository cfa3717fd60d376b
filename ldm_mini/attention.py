"""Attention (LDM sec. 3.3): softmax(Q K^T / sqrt(d)) V, and the blocks by which an image reads itself and a condition.

Nothing here knows the order or the place of a token: no block adds a position code (notebook 13 asks why it works).
Built in notebook 02.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .blocks import group_norm, zeroed


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: every query takes a weighted mean of the values (LDM sec. 3.3).

    q (B,H,N,d), k (B,H,M,d), v (B,H,M,e) -> (B,H,N,e). mask (B,M): bool, True = may be attended to, by all queries
    alike; where there is nothing to attend to, they get zeros, not NaN.
    """
    if k.shape[:-1] != v.shape[:-1]:                            # torch's own does not look
        raise ValueError(f"attention: each key has one value; got keys {tuple(k.shape)} and values {tuple(v.shape)}.")
    _check(q, k, mask)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # the same in steps: torch's own has, on a CPU, a backward pass five times slower in bfloat16 than in float32
        return attention_weights(q, k, mask).to(v.dtype) @ v
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    mask, some = _broadcast_mask(mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask) * some


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """The weights that `attention` uses but never shows: (B,H,N,M); rows sum to 1, or to 0 if all is masked."""
    _check(q, k, mask)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is None:
        return scores.softmax(dim=-1)
    mask, some = _broadcast_mask(mask)
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) * some


def _check(q: Tensor, k: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError for what would be repeated in silence, or is no truth value."""
    if q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"attention: q (B,H,N,d) and k (B,H,M,d) agree in samples, heads and width; got "
                         f"{tuple(q.shape)} and {tuple(k.shape)}.")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (k.shape[0], k.shape[-2])):
        raise ValueError(f"attention: the mask is (B,M), bool with True = may be attended to; got {mask.dtype} "
                         f"{tuple(mask.shape)} for {k.shape[-2]} keys of {k.shape[0]} samples.")


def _broadcast_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mask as (B,1,1,M), and whether there is anything at all to attend to, (B,1,1,1)."""
    mask = mask[:, None, None, :]
    some = mask.any(dim=-1, keepdim=True)
    # a softmax over nothing is 0 / 0, and NaN in every gradient: such a query looks at all, and its result is dropped
    return mask | ~some, some


def head_layout(dim: int, num_heads: int | None = None, head_dim: int | None = None) -> tuple[int, int]:
    """(number of heads, width of a head): the paper's models fix one or the other. Both given: as they are; none: 8."""
    if num_heads and head_dim:
        return num_heads, head_dim
    name, given = ("head_dim", head_dim) if head_dim else ("num_heads", num_heads or 8)
    if dim % given:
        raise ValueError(f"a width of {dim} cannot be split into heads with {name} = {given}: choose a divisor.")
    return (dim // given, given) if head_dim else (given, dim // given)


class Attention(nn.Module):
    """Multi-head attention of tokens x to `context`; without a context, to themselves.

    num_heads or head_dim decides, 8 heads if neither (both: the inner width is their product). qkv_bias: the image
    self-attention of the first stage and of unconditional U-Nets has biases on q, k and v, the transformers have none.
    """

    def __init__(self, dim: int, context_dim: int | None = None, num_heads: int | None = None,
                 head_dim: int | None = None, qkv_bias: bool = False):
        super().__init__()
        self.num_heads, head_dim = head_layout(dim, num_heads, head_dim)
        self.context_dim = context_dim
        inner, source = self.num_heads * head_dim, dim if context_dim is None else context_dim
        self.to_q = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_k = nn.Linear(source, inner, bias=qkv_bias)
        self.to_v = nn.Linear(source, inner, bias=qkv_bias)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x (B,N,dim), context (B,M,context_dim), mask (B,M) bool -> (B,N,dim)"""
        context = x if context is None else context
        # 1. x asks, the context answers; each head has its own d numbers of a token (LDM sec. 3.3)
        q, k, v = self._split(self.to_q(x)), self._split(self.to_k(context)), self._split(self.to_v(context))
        # 2. head by head, then side by side and mixed
        return self.to_out(attention(q, k, v, mask).transpose(1, 2).flatten(2))  # (B,N,H*d) -> (B,N,dim)

    def weights(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Where each token of x looks: (B,H,N,M)."""
        context = x if context is None else context
        return attention_weights(self._split(self.to_q(x)), self._split(self.to_k(context)), mask)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)        # (B,N,H*d) -> (B,H,N,d)


class FeedForward(nn.Module):
    """The MLP of a transformer block with a GEGLU gate: values * GELU(gates), four times wider inside."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * 4 * dim)
        self.out = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B,N,dim) -> (B,N,dim)"""
        values, gates = self.proj(x).chunk(2, dim=-1)
        return self.out(values * F.gelu(gates))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each behind a LayerNorm and added to its input."""

    def __init__(self, dim: int, context_dim: int, num_heads: int | None = None, head_dim: int | None = None):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn = Attention(dim, None, num_heads, head_dim)
        self.cross_attn = Attention(dim, context_dim, num_heads, head_dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B,N,dim), context (B,M,context_dim), mask (B,M) bool -> (B,N,dim)"""
        # 1. tokens read each other
        x = x + self.self_attn(self.norm1(x))
        # 2. they read the condition
        x = x + self.cross_attn(self.norm2(x), context, mask)
        # 3. each makes something of what it read, by itself
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks on the pixels of a feature map, tokens in reading order, that look at a context (LDM Tab. 16).

    depth is 1 in the paper, 3 for layouts. The last projection starts at 0, so the whole starts as the identity.
    """

    def __init__(self, channels: int, num_heads: int | None = None, head_dim: int | None = None, depth: int = 1, *,
                 context_dim: int, groups: int = 32):
        super().__init__()
        self.norm = group_norm(channels, groups, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)                            # a 1x1 convolution, written for tokens
        self.blocks = nn.ModuleList(TransformerBlock(channels, context_dim, num_heads, head_dim) for _ in range(depth))
        self.proj_out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B,C,h,w), context (B,M,context_dim), mask (B,M) bool -> (B,C,h,w)"""
        # 1. pixels as tokens, which read each other and the condition
        h = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.blocks:
            h = block(h, context, mask)
        # 2. back in their places, added to what was there
        return x + rearrange(self.proj_out(h), "b (h w) c -> b c h w", h=x.shape[2])


class AttentionBlock(nn.Module):
    """Self-attention over a feature map's pixels: first stage (one head, eps 1e-6) and U-Nets without context (1e-5).

    One head if neither num_heads nor head_dim is given. zero_init: the last projection starts at 0 (U-Net only).
    """

    def __init__(self, channels: int, num_heads: int | None = None, head_dim: int | None = None, groups: int = 32,
                 eps: float = 1e-6, zero_init: bool = False):
        super().__init__()
        self.norm = group_norm(channels, groups, eps)
        num_heads = 1 if num_heads is None and head_dim is None else num_heads
        self.attn = Attention(channels, None, num_heads, head_dim, qkv_bias=True)
        if zero_init:
            zeroed(self.attn.to_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,h,w)"""
        h = self.attn(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        return x + rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])
