"""Video networks: at the start every frame is the image network's to the last bit; attention over time is a loop."""

from dataclasses import replace

import pytest
import torch
from random_nets import all_heard, awake, randomize
from torch.testing import assert_close

from ldm_mini.attention import attention_weights
from ldm_mini.cond import Cond
from ldm_mini.unet import UNet, UNetConfig
from ldm_mini.video import (
    TemporalBlock,
    VideoDiT,
    VideoDiTConfig,
    VideoUNet,
    as_films,
    as_images,
    each_frame,
    frame_code,
)

UNET = UNetConfig(3, channels=16, channel_mults=(1, 2), num_res_blocks=1, attn_levels=(1,), head_dim=8, groups=4,
                  context_dim=12, vector_dim=10, concat_channels=2)
DIT = VideoDiTConfig(3, width=24, depth=2, num_heads=2, context_dim=12, vector_dim=10, concat_channels=2)
T = torch.tensor([3, 700])


def film(frames=4, side=8):
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    return torch.randn(2, 3, frames, side, side), Cond(torch.randn(2, 2, frames, side, side), torch.randn(2, 5, 12),
                                                       mask, torch.randn(2, 10))


def inflated(source, **options):
    net = VideoUNet(source.config, **options)
    net.image.load_state_dict(source.state_dict())
    return net


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("config", [UNET, replace(UNET, resblock_updown=True, scale_shift=True),
                                    UNetConfig(3, channels=16, channel_mults=(1, 1, 2), attn_levels=(2,), groups=4)])
def test_an_inflated_network_is_the_image_network_frame_by_frame(config, frozen):
    source, (x, cond) = randomize(UNet(config), 0.1), film()
    cond = cond if config.context_dim else Cond()
    net = inflated(source, frozen=frozen)
    out = net(x, T, cond)
    assert out.shape == x.shape and out.abs().max() > 0.1
    # to the last bit, in one batch of all frames ...
    assert torch.equal(out, as_films(source(as_images(x), T.repeat_interleave(4), each_frame(cond, 4)), 4))
    # ... and frame by frame, but for the order of sums
    for k in range(4):
        alone = replace(cond, concat=None if cond.concat is None else cond.concat[:, :, k])
        assert_close(out[:, :, k], source(x[:, :, k], T, alone), atol=2e-5, rtol=1e-4)


def test_a_single_frame_is_the_image_networks_after_any_training():
    source, (x, cond) = randomize(UNet(UNET), 0.1), film(frames=1)
    net = inflated(source)
    randomize(net.temporal, 0.3)
    assert torch.equal(net(x, T, cond)[:, :, 0], source(x[:, :, 0], T, replace(cond, concat=cond.concat[:, :, 0])))


def test_frames_hear_each_other_once_time_is_learned():
    x, cond = film()
    other = x.clone()
    other[:, :, 3] += 1
    for net, heard in ((VideoUNet(UNET), False), (awake(VideoUNet(UNET)), True), (awake(VideoDiT(DIT)), True)):
        if not heard:
            randomize(net.image, 0.1)
        change = (net(other, T, cond) - net(x, T, cond)).abs().amax((0, 1, 3, 4))
        assert change[3] > 0 and (change[:3] > 0).all() == heard
        # never those of another film
        mixed = torch.cat([x[:1], other[1:]])
        assert_close(net(mixed, T, cond)[0], net(x, T, cond)[0], atol=1e-6, rtol=0)


def test_attention_over_time_is_a_loop_over_places():
    block = randomize(TemporalBlock(16, num_heads=2), 0.5)
    x, out = torch.randn(2, 5, 6, 16), torch.empty(2, 5, 6, 16)
    attn = block.time_attn
    for b in range(2):
        for place in range(6):
            tokens = block.norm1(x[b, :, place]) + frame_code(5, 16)                            # (F,C)
            heads = []
            for head in range(2):
                own = slice(8 * head, 8 * head + 8)
                q, k, v = (tokens @ layer.weight.T[:, own] for layer in (attn.to_q, attn.to_k, attn.to_v))
                rows = [sum(w * v[j] for j, w in enumerate(((q[i] @ k.T) / 8**0.5).softmax(0))) for i in range(5)]
                heads.append(torch.stack(rows))
            out[b, :, place] = x[b, :, place] + torch.cat(heads, 1) @ attn.to_out.weight.T + attn.to_out.bias
    assert_close(block(x), out, atol=1e-5, rtol=1e-5)


def test_all_places_of_all_frames_read_the_caption_under_its_mask():
    block, (_, cond) = randomize(TemporalBlock(16, num_heads=2, context_dim=12), 0.5), film()
    tokens = torch.randn(2, 4, 6, 16)
    out = block(tokens, cond.context, cond.mask)
    hidden = cond.context.clone()
    hidden[1, 2:] += 9
    assert torch.equal(block(tokens, hidden, cond.mask), out)
    # by hand: one query, one head
    silent = randomize(TemporalBlock(16, num_heads=1, context_dim=12), 0.5)
    torch.nn.init.zeros_(silent.time_attn.to_out.weight)
    torch.nn.init.zeros_(silent.time_attn.to_out.bias)
    cross, got = silent.cross_attn, silent(tokens, cond.context, cond.mask)
    query = cross.to_q(silent.norm2(tokens[1, 2, 3]))[None, None, None]
    keys, values = (layer(cond.context[1])[None, None] for layer in (cross.to_k, cross.to_v))
    weights = attention_weights(query, keys, cond.mask[1:])
    assert_close(got[1, 2, 3], tokens[1, 2, 3] + cross.to_out(weights @ values)[0, 0, 0], atol=1e-5, rtol=1e-5)


def test_time_positions_tell_frames_apart():
    code = frame_code(16, 32)
    assert (torch.cdist(code, code) + 10 * torch.eye(16)).min() > 0.3
    # without them a film read backwards would be the same film, backwards
    block, x = randomize(TemporalBlock(16, num_heads=2), 0.5), torch.randn(1, 6, 3, 16)
    assert (block(x.flip(1)).flip(1) - block(x)).abs().max() > 0.01


@pytest.mark.parametrize("net", [VideoUNet(UNET), VideoDiT(DIT), VideoDiT(replace(DIT, patch_frames=2, patch_size=2))],
                         ids=["unet", "dit", "patches"])
def test_a_fresh_net_returns_zero_and_every_weight_learns(net):
    x, cond = film()
    assert net(x, T, cond).shape == x.shape and net(x, T, cond).abs().max() == 0
    assert all_heard(net, awake(net)(x, T, cond).square().mean())


def test_frozen_keeps_the_image_network():
    net = VideoUNet(UNET, frozen=True)
    assert {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad} == {"temporal"}
    assert all(p.requires_grad for p in VideoUNet(UNET).parameters())


def test_blocks_of_space_and_time_return_to_their_place():
    """With attention and MLP silent, a value touches its own block only."""
    net = VideoDiT(replace(DIT, patch_size=2, patch_frames=2, concat_channels=0, context_dim=None, vector_dim=None))
    for layer in (net.patchify, net.modulation_out, net.proj_out):
        torch.nn.init.normal_(layer.weight, std=0.1)
    x = torch.randn(1, 3, 4, 4, 6)
    changed = x.clone()
    changed[0, 1, 3, 2, 5] += 1
    difference = (net(changed, T[:1]) - net(x, T[:1])).abs()[0].amax(0)                          # (F,h,w)
    inside = torch.zeros(4, 4, 6, dtype=torch.bool)
    inside[2:, 2:, 4:] = True
    assert (difference[inside] > 0).all() and (difference[~inside] == 0).all()


def test_the_transformer_alternates_space_and_time():
    """With time silent a frame hears itself only; with space silent, a place."""
    net, (x, cond) = awake(VideoDiT(DIT)), film()
    changed = x.clone()
    changed[0, :, 1, 2, 3] += 1

    def heard():
        return (net(changed, T, cond) - net(x, T, cond)).abs()[0].amax(0) > 0

    for silent, wanted in ((net.time, (1, slice(None), slice(None))), (net.space, (slice(None), 2, 3))):
        before = {name: p.clone() for name, p in silent.named_parameters()}
        for block in silent:
            torch.nn.init.zeros_(block.modulation.weight)
            torch.nn.init.zeros_(block.modulation.bias)
        expected = torch.zeros(4, 8, 8, dtype=torch.bool)
        expected[wanted] = True
        assert torch.equal(heard(), expected)
        silent.load_state_dict(before)
    assert heard().all()


def test_sizes_that_cannot_be_are_refused_at_once():
    for one, words in ({"width": 18}, "multiple of 4; got 18"), ({"depth": 0}, "depth must be at least 1"):
        with pytest.raises(ValueError, match=words):
            replace(DIT, **one)


@pytest.mark.parametrize("net", [VideoUNet(UNET), VideoDiT(DIT)], ids=["unet", "dit"])
def test_what_does_not_fit_is_refused(net):
    x, cond = film()
    with pytest.raises(ValueError, match=r"films \(B,C,F,h,w\).*x\[:, :, None\]"):
        net(x[:, :, 0], T, cond)
    with pytest.raises(ValueError, match="without|no cond.context|built with context"):
        net(x, T, replace(cond, context=None, mask=None))
    with pytest.raises(ValueError, match="multiples of 2, its patch_frames"):
        VideoDiT(replace(DIT, patch_frames=2))(x[:, :, :3], T, replace(cond, concat=cond.concat[:, :, :3]))
