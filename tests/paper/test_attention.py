"""Attention against a softmax by hand and against torch's own; what it cannot see; what masks and recordings do."""

import pytest
import torch
import torch.nn.functional as F
from random_nets import randomize
from torch import nn
from torch.testing import assert_close

from ldm_mini.attention import (
    Attention,
    AttentionBlock,
    FeedForward,
    SpatialTransformer,
    TransformerBlock,
    attention,
    attention_weights,
    head_layout,
)
from ldm_mini.show.attention_maps import record_attention


def _qkv():
    return torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)


def test_attention_is_a_softmax_over_keys():
    q, k, v = _qkv()
    out = torch.zeros(2, 3, 5, 6)
    for b in range(2):
        for h in range(3):
            for n in range(5):
                weights = torch.tensor([(q[b, h, n] @ k[b, h, m] / 2.0).exp() for m in range(7)])   # sqrt(4) = 2
                out[b, h, n] = (weights / weights.sum()) @ v[b, h]
    assert_close(attention(q, k, v), out)
    assert_close(attention_weights(q, k) @ v, out)


def test_masked_tokens_have_no_influence():
    q, k, v = _qkv()
    mask = torch.tensor([[True, True, False, True, False, True, True], [True] * 3 + [False] * 4])
    out, weights = attention(q, k, v, mask), attention_weights(q, k, mask)
    k2, v2 = k.clone(), v.clone()
    k2.transpose(1, 2)[~mask], v2.transpose(1, 2)[~mask] = 99.0, -99.0
    assert_close(attention(q, k2, v2, mask), out)
    assert_close(attention(q[1:], k[1:, :, :3], v[1:, :, :3]), out[1:])         # a mask is the same as leaving them out
    assert_close(weights @ v, out)
    assert weights.transpose(1, 3)[~mask].abs().max() == 0


def test_nothing_to_attend_to_gives_zeros_and_finite_gradients():
    q, k, v = (x.requires_grad_() for x in _qkv())
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0] = False
    out = attention(q, k, v, mask)
    assert out[0].abs().max() == 0 and out[1].abs().max() > 0
    assert attention_weights(q, k, mask)[0].abs().max() == 0
    for gradient in torch.autograd.grad(out.square().sum(), (q, k, v)):
        assert gradient.isfinite().all() and gradient[0].abs().max() == 0


def test_a_mask_that_is_not_boolean_is_refused():
    q, k, v = _qkv()
    for function, given in ((attention, (q, k, v)), (attention_weights, (q, k))):
        with pytest.raises(ValueError, match="bool with True"):
            function(*given, torch.ones(2, 7))


@pytest.mark.parametrize("context_dim", [None, 10])
def test_equals_torch_multihead_attention_with_the_same_weights(context_dim):
    own = Attention(12, context_dim, num_heads=3, qkv_bias=True)
    theirs = nn.MultiheadAttention(12, 3, kdim=context_dim, vdim=context_dim, batch_first=True)
    state = {"in_proj_bias": torch.cat([own.to_q.bias, own.to_k.bias, own.to_v.bias]),
             "out_proj.weight": own.to_out.weight, "out_proj.bias": own.to_out.bias}
    if context_dim is None:
        state["in_proj_weight"] = torch.cat([own.to_q.weight, own.to_k.weight, own.to_v.weight])
    else:
        state |= {f"{n}_proj_weight": layer.weight for n, layer in zip("qkv", (own.to_q, own.to_k, own.to_v))}
    theirs.load_state_dict(state)
    x, given = torch.randn(2, 5, 12), None if context_dim is None else torch.randn(2, 7, context_dim)
    context = x if given is None else given
    mask = torch.rand(2, context.shape[1]) > 0.4
    mask[:, 0] = True
    out, weights = theirs(x, context, context, key_padding_mask=~mask, average_attn_weights=False)
    assert_close(own(x, given, mask), out)
    assert_close(own.weights(x, given, mask), weights)


def test_head_layout():
    assert head_layout(96, head_dim=32) == (3, 32)
    assert head_layout(96, num_heads=4) == (4, 24)
    assert head_layout(96, 8, 64) == (8, 64)                                    # the inner width need not be dim
    assert head_layout(96) == (8, 12)
    for given, told in (({"num_heads": 5}, "num_heads = 5"), ({"head_dim": 20}, "head_dim = 20")):
        with pytest.raises(ValueError, match=told):
            head_layout(96, **given)
    assert Attention(10, None, 8, 4)(torch.randn(1, 3, 10)).shape == (1, 3, 10)


def test_transformers_have_no_bias_on_q_k_v_and_image_self_attention_has():
    attn = TransformerBlock(8, 8, num_heads=2).cross_attn
    assert attn.to_q.bias is None and attn.to_k.bias is None and attn.to_v.bias is None and attn.to_out.bias is not None
    attn = AttentionBlock(8, groups=2).attn
    assert all(layer.bias is not None for layer in (attn.to_q, attn.to_k, attn.to_v, attn.to_out))
    assert attn.num_heads == 1


def test_feed_forward_is_geglu_first_half_times_gelu_of_the_second():
    ff, x = FeedForward(6), torch.randn(2, 3, 6)
    h = x @ ff.proj.weight.T + ff.proj.bias
    exact_gelu = 0.5 * h[..., 24:] * (1 + torch.erf(h[..., 24:] / 2**0.5))
    assert h.shape[-1] == 48
    assert_close(ff(x), (h[..., :24] * exact_gelu) @ ff.out.weight.T + ff.out.bias)


def test_transformer_block_reads_itself_then_the_context():
    block, x, context = TransformerBlock(8, 6, num_heads=2), torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    h = x + block.self_attn(F.layer_norm(x, (8,)))
    h = h + block.cross_attn(F.layer_norm(h, (8,)), context, mask)
    assert_close(block(x, context, mask), h + block.ff(F.layer_norm(h, (8,))))


@pytest.mark.parametrize("kind, options", [(AttentionBlock, {}), (SpatialTransformer, {"context_dim": 6})])
def test_image_attention_knows_no_place(kind, options):
    """Move the pixels, and the outputs move along: nothing tells one position from another."""
    block, x = randomize(kind(8, 2, groups=2, **options)), torch.randn(2, 8, 4, 4)
    extra = (torch.randn(2, 3, 6),) if isinstance(block, SpatialTransformer) else ()
    order = torch.randperm(16)
    moved = x.flatten(2)[:, :, order].view_as(x)
    assert_close(block(moved, *extra).flatten(2), block(x, *extra).flatten(2)[:, :, order], atol=1e-5, rtol=1e-4)


def test_the_order_of_context_tokens_is_invisible():
    block = randomize(SpatialTransformer(8, 2, groups=2, context_dim=6))
    x, context = torch.randn(2, 8, 4, 4), torch.randn(2, 5, 6)
    mask, order = torch.tensor([[True] * 5, [True] * 3 + [False] * 2]), torch.tensor([4, 2, 0, 1, 3])
    assert_close(block(x, context[:, order], mask[:, order]), block(x, context, mask), atol=1e-5, rtol=1e-4)


def test_spatial_transformer_is_norm_in_blocks_out_and_a_skip():
    block = randomize(SpatialTransformer(8, head_dim=4, depth=2, context_dim=6, groups=2))
    x, context = torch.randn(2, 8, 3, 4), torch.randn(2, 5, 6)
    h = F.group_norm(x, 2, block.norm.weight, block.norm.bias, 1e-6)
    h = torch.stack([h[:, :, i, j] for i in range(3) for j in range(4)], dim=1)  # reading order
    h = block.proj_in(h)
    for inner in block.blocks:
        h = inner(h, context)
    h = block.proj_out(h).transpose(1, 2).reshape(2, 8, 3, 4)
    assert len(block.blocks) == 2 and block.norm.eps == 1e-6
    assert_close(block(x, context), x + h)


def test_zero_initialised_outputs_start_as_the_identity():
    x = torch.randn(2, 8, 4, 4)
    assert_close(SpatialTransformer(8, 2, context_dim=6, groups=2)(x, torch.randn(2, 3, 6)), x, atol=0, rtol=0)
    assert_close(AttentionBlock(8, groups=2, zero_init=True)(x), x, atol=0, rtol=0)
    assert not torch.allclose(AttentionBlock(8, groups=2)(x), x)


def test_record_attention_keeps_the_maps_and_changes_nothing():
    block = randomize(SpatialTransformer(8, 2, depth=2, context_dim=6, groups=2))
    x, context, mask = torch.randn(2, 8, 4, 4), torch.randn(2, 3, 6), torch.tensor([[True] * 3, [True, False, False]])
    before = block(x, context, mask)
    with record_attention(block) as maps:
        assert_close(block(x, context, mask), before, atol=0, rtol=0)
        block(x, context, mask)
    block(x, context, mask)                                                     # outside: not recorded
    assert sorted(maps) == ["blocks.0.cross_attn", "blocks.1.cross_attn"]
    for recorded in maps.values():
        assert len(recorded) == 2 and recorded[0].shape == (2, 2, 16, 3) and not recorded[0].requires_grad
        assert_close(recorded[0].sum(-1), torch.ones(2, 2, 16))
        assert recorded[0][1, :, :, 1:].abs().max() == 0
    with record_attention(block, cross_only=False) as maps:
        block(x, context, mask)
    assert len(maps) == 4 and maps["blocks.0.self_attn"][0].shape == (2, 2, 16, 16)


def test_bfloat16_on_a_cpu_takes_steps_of_its_own_to_the_same_end():
    q, k, v = (torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 7, 7))
    mask = torch.tensor([[True] * 4 + [False] * 3, [False] * 7])
    for some in (None, mask):
        half = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), some)
        assert half.dtype == torch.bfloat16
        assert_close(half.float(), attention(q, k, v, some), atol=2e-2, rtol=2e-2)
