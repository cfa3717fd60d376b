"""The Diffusion Transformer: silent when fresh, published sizes, every part heard, trained like the U-Net.

That it computes what diffusers' DiT computes is tested in released/test_diffusers_parts.py.
"""

from dataclasses import replace

import pytest
import torch
from einops import rearrange
from random_nets import all_heard, awake, learns
from torch import nn
from torch.testing import assert_close

from ldm_mini import hub
from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss, make_denoiser
from ldm_mini.dit import DiT, DiTBlock, DiTConfig, position_code
from ldm_mini.samplers import ddim
from ldm_mini.schedule import NoiseSchedule, scaled_linear_betas
from ldm_mini.show.attention_maps import record_attention

TINY = DiTConfig(in_channels=3, width=32, depth=2, num_heads=4, input_size=8, num_classes=5)
T = torch.tensor([0, 999])
CLASSES = Cond(vector=torch.tensor([2, 5]))
FULL = replace(TINY, num_classes=None, vector_dim=7, context_dim=24, concat_channels=2)
WAYS = pytest.mark.parametrize("way", ["cross", "tokens"])


def full_cond(batch=2) -> Cond:
    """Five words, of which the first sample may read three."""
    mask = torch.ones(batch, 5, dtype=torch.bool)
    mask[0, 3:] = False
    return Cond(torch.randn(batch, 2, 8, 8), torch.randn(batch, 5, 24), mask, torch.randn(batch, 7))


@pytest.mark.parametrize("depth, width, heads, millions", [(12, 384, 6, 33), (12, 768, 12, 130), (24, 1024, 16, 458),
                                                           (28, 1152, 16, 675)])
def test_published_sizes(depth, width, heads, millions):
    """DiT-S, -B, -L, -XL with patches of 2 (Peebles & Xie, Tab. 1); the authors' count of XL has the position code."""
    with torch.device("meta"):
        net = DiT(DiTConfig(width=width, depth=depth, num_heads=heads, num_classes=1000, out_channels=8))
    count = sum(p.numel() for p in net.parameters()) + 256 * width
    assert abs(count / 1e6 - millions) < 1 and (millions != 675 or count == 675_129_632)


@WAYS
def test_masked_words_are_as_if_they_were_not_there(way):
    """The oracle of both ways to read a context: what the mask hides, cut out."""
    net, x, cond = awake(DiT(replace(FULL, context=way))).eval(), torch.randn(2, 3, 8, 8), full_cond()
    out = net(x, T, cond)
    assert_close(net(x[:1], T[:1], replace(cond[:1], context=cond.context[:1, :3], mask=None)), out[:1])
    assert_close(net(x[1:], T[1:], replace(cond[1:], mask=None)), out[1:])      # samples do not mix
    garbage = cond.context.clone()
    garbage[~cond.mask] = 1e3
    assert_close(net(x, T, replace(cond, context=garbage)), out)
    assert not torch.allclose(net(x, T, replace(cond, mask=None))[0], out[0], atol=1e-4)
    for part in ("concat", "context", "vector"):
        assert not torch.allclose(net(x, T, replace(cond, **{part: getattr(cond, part) + 1})), out, atol=1e-4)
    order = torch.tensor([2, 0, 1, 4, 3])                                       # a context is a set
    assert_close(net(x, T, replace(cond, context=cond.context[:, order], mask=cond.mask[:, order])), out)
    nothing = replace(cond, mask=torch.zeros(2, 5, dtype=torch.bool))
    assert net(x, T, nothing).isfinite().all()


def test_fresh_cross_attention_says_nothing():
    """Whatever the words, it is the network without: a trained one can be given a context later."""
    with_words, x, cond = DiT(FULL), torch.randn(2, 3, 8, 8), full_cond()
    without = awake(DiT(replace(FULL, context_dim=None)))
    assert not with_words.load_state_dict(without.state_dict(), strict=False).unexpected_keys
    assert_close(with_words(x, T, cond), without(x, T, replace(cond, context=None, mask=None)), atol=0, rtol=0)


@WAYS
@pytest.mark.parametrize("positions", [False, True])
def test_without_positions_it_takes_patches_in_any_order(positions, way):
    """A permutation of the patches comes back as the same permutation, to float64's last digits; with, it does not."""
    c = replace(FULL, context=way, positions=positions)
    net, x, cond = awake(DiT(c)).double(), torch.randn(2, 3, 8, 8).double(), full_cond().to(torch.float64)
    order = torch.randperm(16)

    def shuffled(pictures):
        patches = rearrange(pictures, "b c (i p) (j q) -> b (i j) c p q", p=2, q=2)[:, order]
        return rearrange(patches, "b (i j) c p q -> b c (i p) (j q)", i=4)

    there = net(shuffled(x), T, replace(cond, concat=shuffled(cond.concat)))
    error = (there - shuffled(net(x, T, cond))).abs().max()
    assert error > 1e-3 if positions else error < 1e-12


def test_a_block_begins_as_the_identity_and_its_gate_decides():
    block, x, condition = DiTBlock(16, 2, context_dim=12), torch.randn(2, 9, 16), torch.randn(2, 16)
    words = torch.randn(2, 3, 12)
    assert_close(block(x, condition, words), x, atol=0, rtol=0)
    # shift and scale alone move nothing: the gate is shut
    nn.init.normal_(block.modulation.bias[:32])
    assert_close(block(x, condition, words), x, atol=0, rtol=0)
    block.modulation.bias.data[32:48] = 1.0
    assert not torch.allclose(block(x, condition, words), x, atol=1e-3)


@WAYS
def test_fresh_with_all_conditions_it_returns_zero_and_then_learns_everywhere(way):
    net, x, cond = DiT(replace(FULL, context=way)), torch.randn(2, 3, 8, 8), full_cond()
    assert net(x, T, cond).abs().max() == 0
    assert all_heard(net, awake(net)(x, T, cond).square().mean())
    assert learns(DiT(replace(FULL, context=way)), 40, full_cond(4))


@WAYS
def test_it_is_described_and_built_again(way):
    net = DiT(replace(FULL, context=way, positions=False))
    again = hub.build(hub.describe(net))
    assert again.config == net.config
    again.load_state_dict(net.state_dict())


def test_attention_to_words_is_recorded():
    net, x = awake(DiT(FULL)), torch.randn(2, 3, 8, 8)
    with record_attention(net) as maps:
        net(x, T, full_cond())
    assert list(maps) == ["blocks.0.cross_attn", "blocks.1.cross_attn"]
    assert all(m[0].shape == (2, 4, 16, 5) and m[0][0, ..., 3:].max() == 0 for m in maps.values())


def test_fresh_net_returns_zero_and_after_the_first_steps_every_weight_learns():
    net, x = DiT(TINY), torch.randn(2, 3, 8, 8)
    assert net(x, T, CLASSES).abs().max() == 0
    assert all_heard(net, awake(net)(x, T, CLASSES).square().mean())


def test_tokens_are_patches_and_return_to_their_place():
    """With attention and MLP silent, a pixel touches its own patch only, in every channel."""
    net = DiT(replace(TINY, patch_size=4))
    for layer in (net.patchify, net.modulation_out, net.proj_out):
        nn.init.normal_(layer.weight, std=0.1)
    x = torch.randn(1, 3, 8, 12)
    changed = x.clone()
    changed[0, 1, 5, 9] += 1.0
    difference = (net(changed, T[:1], CLASSES[:1]) - net(x, T[:1], CLASSES[:1])).abs()[0]
    patches = rearrange(difference, "c (i p) (j q) -> i j (c p q)", p=4, q=4).amax(2)
    assert patches[1, 2] > 0 and (patches > 0).sum() == 1
    assert (difference[:, 4:8, 8:12] > 0).all()


def test_position_code_tells_all_places_apart_and_stretches():
    code = position_code(6, 4, 32, 4)
    assert code.shape == (24, 32)
    assert (torch.cdist(code, code) + 10 * torch.eye(24)).min() > 0.05
    rows = code.view(6, 4, 32)
    assert_close(rows[0, :, :16], rows[5, :, :16], atol=0, rtol=0)              # the first half is the column's
    assert_close(rows[:, 0, 16:], rows[:, 3, 16:], atol=0, rtol=0)
    assert_close(position_code(8, 8, 32, 4).view(8, 8, 32)[::2, ::2], position_code(4, 4, 32, 4).view(4, 4, 32))


def test_every_condition_is_heard():
    x = torch.randn(2, 3, 8, 8)
    net = awake(DiT(TINY))
    out = net(x, T, CLASSES)
    assert not torch.allclose(net(x, T, Cond(vector=torch.tensor([3, 5])))[0], out[0], atol=1e-4)
    assert_close(net(x, T, Cond(vector=torch.tensor([3, 5])))[1], out[1])       # samples do not mix
    assert not torch.allclose(net(x, T.flip(0), CLASSES), out, atol=1e-4)
    assert not torch.allclose(net(x.flip(3), T, CLASSES).flip(3), out, atol=1e-4)   # it knows left from right
    assert CLASSES.to(torch.float16).vector.dtype == torch.int64
    joined = awake(DiT(replace(TINY, num_classes=None, vector_dim=7, concat_channels=2)))
    vector, concat = torch.randn(2, 7), torch.randn(2, 2, 8, 8)
    out = joined(x, T, Cond(vector=vector, concat=concat))
    assert not torch.allclose(joined(x, T, Cond(vector=vector + 1, concat=concat)), out, atol=1e-4)
    assert_close(joined(torch.cat([x, concat], 1), T, Cond(vector=vector)), out)
    plain = awake(DiT(replace(TINY, num_classes=None)))
    assert plain(torch.randn(2, 3, 4, 16), T).shape == (2, 3, 4, 16)


@pytest.mark.parametrize("change, message", [
    ({"x": torch.randn(2, 3, 9, 8)}, "multiples of 2"), ({"x": torch.randn(2, 4, 8, 8)}, "in_channels=3"),
    ({"cond": Cond()}, "with vector, but was given no cond.vector"),
    ({"cond": Cond(vector=torch.tensor([1, 2]), context=torch.randn(2, 3, 4))}, "without context"),
])
def test_inputs_that_do_not_fit_are_explained(change, message):
    call = {"x": torch.randn(2, 3, 8, 8), "cond": CLASSES} | change
    with pytest.raises(ValueError, match=message):
        DiT(TINY)(call["x"], T, call["cond"])


@pytest.mark.parametrize("change, message", [
    ({"num_heads": 5}, "width of 32 cannot be split into heads with num_heads = 5"), ({"depth": 0}, "depth"),
    ({"context": "adaLN"}, '"cross" or "tokens"'), ({"width": 30, "num_heads": 3}, "multiple of 4")])
def test_what_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DiT(replace(TINY, **change))


def test_it_learns():
    assert learns(DiT(replace(TINY, num_classes=None)), 40)


def test_a_net_that_also_predicts_its_variance_samples_by_its_first_half():
    schedule, x = NoiseSchedule(scaled_linear_betas(50)), torch.randn(2, 3, 8, 8)
    both = awake(DiT(replace(TINY, out_channels=6)))
    first = lambda x, t, cond: both(x, t, cond)[:, :3]
    paths = [list(ddim(make_denoiser(net, schedule, CLASSES), x, schedule, steps=3)) for net in (both, first)]
    assert_close(paths[0][-1], paths[1][-1], atol=0, rtol=0)
    none = Cond(vector=torch.tensor([5, 5]))
    guided = make_denoiser(both, schedule, CLASSES, null=none, guidance_scale=2.0)(x, T // 20)[1]
    u, c = both(x, T // 20, none)[:, :3], both(x, T // 20, CLASSES)[:, :3]
    assert_close(guided, u + 2.0 * (c - u))
    with pytest.raises(ValueError, match="out_channels"):       # training it would need a loss for the variance
        diffusion_loss(both, schedule, x, CLASSES)
