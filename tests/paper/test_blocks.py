"""Residual blocks, resizing and the time embedding, against formulas written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from random_nets import randomize
from torch.testing import assert_close

from ldm_mini.blocks import Downsample, ResBlock, TimeEmbedding, Upsample, group_norm, timestep_embedding, zeroed


def test_timestep_embedding_is_cosines_then_sines_from_frequency_one_down():
    code = timestep_embedding(torch.tensor([0, 3, 999]), 8)
    for row, t in zip(code, (0, 3, 999)):
        angles = [t / 10_000 ** (i / 4) for i in range(4)]                      # exponent i / half, not i / (half - 1)
        by_hand = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
        assert_close(row, by_hand, atol=1e-4, rtol=0)


def test_time_embedding_is_linear_silu_linear_four_times_wider():
    module, t = TimeEmbedding(16), torch.tensor([1, 500])
    by_hand = module.linear2(F.silu(module.linear1(timestep_embedding(t, 16))))
    assert by_hand.shape == (2, 64)
    assert_close(module(t), by_hand)
    assert TimeEmbedding(16, 24)(t).shape == (2, 24)


def test_group_norm_names_a_divisor():
    with pytest.raises(ValueError, match="instance 16"):
        group_norm(48, groups=32)
    x = torch.randn(2, 8, 3, 3)
    groups = x.view(2, 2, -1)
    by_hand = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    assert_close(group_norm(8, groups=2)(x), by_hand.view_as(x))


def _norm(module, x):
    return F.group_norm(x, module.num_groups, module.weight, module.bias, module.eps)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_resblock_with_time_is_what_the_formula_says(scale_shift):
    block = randomize(ResBlock(8, 12, time_dim=16, groups=4, eps=1e-5, scale_shift=scale_shift))
    x, time = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    h = F.conv2d(F.silu(_norm(block.norm1, x)), block.conv1.weight, block.conv1.bias, padding=1)
    embedding = (F.silu(time) @ block.time_proj.weight.T + block.time_proj.bias)[:, :, None, None]
    if scale_shift:
        h = _norm(block.norm2, h) * (1 + embedding[:, :12]) + embedding[:, 12:]
    else:
        h = _norm(block.norm2, h + embedding)
    h = F.conv2d(F.silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    assert_close(block(x, time), F.conv2d(x, block.shortcut.weight, block.shortcut.bias) + h)


def test_resblock_without_time_ignores_it_and_has_no_time_weights():
    block, x = ResBlock(8, 8, groups=2), torch.randn(2, 8, 4, 4)
    assert not any("time" in name or "shortcut" in name for name, _ in block.named_parameters())
    assert block.norm1.eps == block.norm2.eps == 1e-6
    assert_close(block(x, torch.randn(2, 16)), block(x))


def test_resblock_with_zero_init_starts_as_its_skip():
    x = torch.randn(2, 8, 4, 4)
    assert_close(ResBlock(8, 8, groups=2, zero_init=True)(x), x, atol=0, rtol=0)
    assert not torch.allclose(ResBlock(8, 8, groups=2)(x), x)


@pytest.mark.parametrize("resample, size", [("down", 4), ("up", 16)])
def test_resblock_resizes_both_branches_without_weights(resample, size):
    x, block = torch.randn(2, 8, 8, 8), randomize(ResBlock(8, 8, groups=2, resample=resample))
    resize = {"down": lambda v: F.avg_pool2d(v, 2),
              "up": lambda v: v.repeat_interleave(2, 2).repeat_interleave(2, 3)}[resample]
    h = block.conv1(resize(F.silu(_norm(block.norm1, x))))                      # between SiLU and convolution
    by_hand = resize(x) + block.conv2(F.silu(_norm(block.norm2, h)))
    assert by_hand.shape == (2, 8, size, size)
    assert_close(block(x), by_hand)


def test_resblock_dropout_acts_in_training_only():
    block, x = ResBlock(8, 8, groups=2, dropout=0.5), torch.randn(2, 8, 4, 4)
    assert not torch.allclose(block(x), block(x))
    block.eval()
    assert_close(block(x), block(x), atol=0, rtol=0)


def test_downsample_pads_all_sides_or_only_right_and_bottom():
    """An impulse tells: with all sides padded, output (0, 0) is centred on pixel (0, 0), else on pixel (1, 1)."""
    for asymmetric, centre in ((False, 0), (True, 1)):
        down = Downsample(1, asymmetric=asymmetric)
        zeroed(down.conv).weight.data[0, 0, 1, 1] = 1.0                         # the kernel's middle only
        x = torch.arange(64.0).view(1, 1, 8, 8)
        assert_close(down(x), x[:, :, centre::2, centre::2])
        assert down(x[:, :, :7, :7]).shape[2:] == ((3, 3) if asymmetric else (4, 4))


def test_upsample_repeats_pixels_before_its_convolution():
    up, x = Upsample(1), torch.arange(4.0).view(1, 1, 2, 2)
    zeroed(up.conv).weight.data[0, 0, 1, 1] = 1.0
    assert_close(up(x)[0, 0], torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]))
