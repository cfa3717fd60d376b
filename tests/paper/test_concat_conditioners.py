"""Conditions by concatenation: channels in the paper's order, values at the hole, nulls that stack, any size."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from ldm_mini.concat_conditioners import InpaintConditioner, LowResConditioner, SemanticConditioner, paste
from ldm_mini.cond import Cond
from ldm_mini.conditioners import ClassConditioner, CombinedConditioner
from ldm_mini.distortions import coarse_cosines
from ldm_mini.hub import build, describe


class Halves(nn.Module):
    """A first stage, f = 2, that averages 2x2 pixels: what it was shown can be read off its latents."""

    def encode(self, x):
        self.shown = x
        return nn.functional.avg_pool2d(x, 2)


def picture_and_mask():
    mask = torch.zeros(2, 1, 8, 12)
    mask[0, :, :4, 2:6] = 1
    return {"image": torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)), "mask": mask}


def everything():
    return {**picture_and_mask(), "lowres": torch.rand(2, 3, 2, 3) * 2 - 1,
            "semantic": torch.arange(2 * 8 * 12).view(2, 8, 12) % 5}


def all_parts(presence):
    torch.manual_seed(0)
    inpaint = InpaintConditioner(3, 2, presence)
    inpaint.use_first_stage(Halves())
    return LowResConditioner(2, presence), SemanticConditioner(5, 2, presence, channels=6), inpaint


def test_inpainting_has_the_papers_channels_order_and_values():
    part, batch = all_parts(False)[2], picture_and_mask()
    concat = part.encode(batch).concat
    assert concat.shape == (2, 4, 4, 6) and part.concat_channels == 4
    hole = batch["mask"][:, :, ::2, ::2] == 1
    latent, mask = concat[:, :3], concat[:, 3:]                                 # masked picture first, the mask last
    assert mask[hole].eq(1).all() and mask[~hole].eq(-1).all()
    assert latent[hole.expand_as(latent)].eq(-1).all(), "the hole is black, -1, not grey, 0"
    outside = nn.functional.avg_pool2d(batch["image"], 2)
    assert_close(latent[~hole.expand_as(latent)], outside[~hole.expand_as(latent)])       # and not scaled
    shown = part.first_stage.shown
    in_unit_range = (1 - batch["mask"]) * (batch["image"] + 1) / 2              # the paper's formula, on [0, 1]
    assert_close(shown, in_unit_range * 2 - 1)


def test_the_mask_goes_to_the_nearest_pixel_and_is_never_soft():
    batch = {"image": torch.zeros(1, 3, 4, 4), "mask": torch.zeros(1, 1, 4, 4)}
    batch["mask"][0, 0, 0, 0] = batch["mask"][0, 0, 1, 3] = 1                   # one on a corner that is kept, one not
    assert all_parts(False)[2].encode(batch).concat[0, 3].tolist() == [[1, -1], [-1, -1]]


def test_what_is_prepared_once_says_the_same():
    part, batch = all_parts(True)[2], picture_and_mask()
    prepared = part.prepare(batch)
    assert prepared["masked_latent"].shape == (2, 3, 4, 6) and prepared["mask"].dtype == torch.bool
    assert_close(part.encode({**batch, **prepared}).concat, part.encode(batch).concat)
    assert part.present(prepared) and part.image_size(prepared) == part.image_size(batch) == (8, 12)
    assert not part.present({"image": batch["image"]})


def test_the_content_of_the_hole_is_never_seen():
    part, batch = all_parts(False)[2], picture_and_mask()
    other = {**batch, "image": torch.where(batch["mask"] == 1, torch.full_like(batch["image"], 0.7), batch["image"])}
    assert part.encode(batch).concat.equal(part.encode(other).concat)


def test_finish_keeps_known_pixels_bit_for_bit():
    part, batch = all_parts(False)[2], picture_and_mask()
    sample = torch.randn(2, 3, 8, 12)
    pasted, hole = part.finish(sample, batch), batch["mask"].expand(-1, 3, -1, -1) == 1
    assert pasted[~hole].equal(batch["image"][~hole]) and pasted[hole].equal(sample[hole])
    assert pasted.equal(paste(sample, batch["image"], batch["mask"]))
    assert part.finish(sample, part.prepare(batch)).equal(sample), "without the picture there is nothing to paste"


def test_alone_null_is_the_condition_itself_and_guidance_stacks():
    for part in all_parts(False):
        part.eval()
        batch = everything()
        cond, null = part.encode(batch), part.null(batch)
        assert cond.concat.equal(null.concat)
        assert Cond.stack([null, cond]).concat.shape == (4, part.concat_channels, 4, 6)


def test_absent_is_zero_and_says_so():
    for part in all_parts(True):
        cond, null = part.eval().encode(everything()), part.null({"latent": torch.zeros(2, 3, 4, 6)})
        assert cond.concat.shape == null.concat.shape == (2, part.concat_channels, 4, 6)
        assert cond.concat[:, -1].eq(1).all() and not null.concat.any()
        assert null.concat.equal(part.null({"image": torch.zeros(2, 3, 8, 12)}).concat)
        with pytest.raises(ValueError, match=r"reads batch\['image'\], but the batch has only \['caption'\]"):
            part.null({"caption": ["a dog"]})


def test_the_small_picture_comes_as_it_is_at_the_latents_size():
    lowres = torch.rand(2, 3, 4, 6) * 2 - 1
    assert LowResConditioner(4).eval().encode({"lowres": lowres}).concat.equal(lowres)     # f = 4, x4: tau = identity
    assert LowResConditioner(2).eval().encode({"lowres": lowres}).concat.shape == (2, 3, 8, 12)
    coarse = LowResConditioner(8).eval().encode({"lowres": lowres}).concat
    assert coarse.shape == (2, 12, 2, 3) and F.pixel_shuffle(coarse, 2).equal(lowres), "no pixel is lost"
    assert LowResConditioner(8).image_size({"lowres": lowres}) == (16, 24)
    assert LowResConditioner(4).eval().encode({"lowres": lowres.half()}).concat.dtype == torch.float32


def test_training_degrades_a_share_of_the_small_pictures_and_leaves_their_colours():
    torch.manual_seed(0)
    x, y = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = ((x // 2 + y // 2) % 2).float().expand(400, 3, 16, 16) - 0.5        # fine detail
    part = LowResConditioner(4, p_degrade=0.5).train()
    seen = part.encode({"lowres": board.clone()}).concat
    changed = (seen != board).flatten(1).any(1).float().mean()
    assert 0.25 < changed < 0.5, "half of them go through `degrade`, which leaves some alone"
    assert (seen.mean((2, 3)) - board.mean((2, 3))).abs().mean() < 0.02, "brighter inputs would teach to darken"
    assert part.eval().encode({"lowres": board}).concat.equal(board)


def test_a_share_is_at_most_one_and_a_mask_from_0_to_1_everywhere():
    with pytest.raises(ValueError, match="p_degrade"):
        LowResConditioner(4, p_degrade=1.5)
    part, batch = all_parts(False)[2], everything()
    mask = batch["mask"].float().clone()
    mask[0, 0, 0, 0] = 2.0                                      # one place is enough
    with pytest.raises(ValueError, match="mask of a picture"):
        part.encode({**batch, "mask": mask})


def test_coarse_cosines_takes_any_size():
    x = torch.rand(1, 3, 12, 20)
    assert coarse_cosines(x, 0.3).shape == x.shape
    assert_close(coarse_cosines(x, 1e-4), x, atol=1e-3, rtol=0)
    assert coarse_cosines(x[..., :8, :16], 0.3).equal(coarse_cosines(x[..., :8, :16].contiguous(), 0.3))


def test_semantic_maps_see_every_pixel_of_a_cell_and_learn():
    part = SemanticConditioner(5, 4, channels=6)
    semantic = torch.zeros(1, 8, 8, dtype=torch.int64)
    base = part.encode({"semantic": semantic}).concat
    assert base.shape == (1, 6, 2, 2)
    for y, x in torch.cartesian_prod(torch.arange(4), torch.arange(4)):
        other = semantic.clone()
        other[0, y, x] = 3
        changed = (part.encode({"semantic": other}).concat - base).abs().amax(1)[0] > 0
        assert changed.tolist() == [[True, False], [False, False]]
    one_hot = nn.functional.one_hot(semantic, 5).float() @ part.classes.weight  # a table is a 1x1 convolution
    assert_close(part.rescale(one_hot.movedim(-1, 1)), base)
    base.sum().backward()
    assert part.classes.weight.grad[0].any() and part.rescale.weight.grad.any()
    assert_close(part.encode({"semantic": semantic.to(torch.uint8)}).concat, base)
    for cut in (semantic[:, :6], semantic[:, :, :6]):
        with pytest.raises(ValueError, match="multiples of 4"):
            part.encode({"semantic": cut})


def test_any_subset_of_parts_joins_to_the_same_channels():
    parts = all_parts(True)
    combined = CombinedConditioner([ClassConditioner(3, 8), *parts]).eval()
    batch = {**everything(), "class": torch.tensor([0, 1])}
    channels = sum(part.concat_channels for part in parts)
    blank = {"latent": torch.zeros(2, 3, 4, 6)}
    for keys in (("class",), ("lowres",), ("semantic",), ("image", "mask"), ("lowres", "image", "mask"), tuple(batch)):
        given = {key: batch[key] for key in keys}
        cond = combined.encode({**given, **blank})
        assert cond.concat.shape == (2, channels, 4, 6)
        present = [cond.concat[0, i].eq(1).all().item() for i in (3, 10, 15)]   # each part's last channel
        assert present == ["lowres" in keys, "semantic" in keys, "mask" in keys]
        assert Cond.stack([combined.null({**given, **blank}), cond]).concat.shape[0] == 4
        assert combined.image_size(given) == (None if keys == ("class",) else (8, 12))
    with pytest.raises(ValueError, match="different sizes"):
        combined.image_size({"lowres": torch.zeros(2, 3, 4, 4), "semantic": batch["semantic"]})


def test_configs_rebuild_and_the_first_stage_is_not_saved_twice():
    combined = CombinedConditioner(list(all_parts(True)), p_drop_each=0.5, p_single=0.7, weights=(3, 1, 2))
    combined.use_first_stage(nn.Linear(3, 3))
    assert combined.parts[2].first_stage is not None
    assert not [name for name in combined.state_dict() if name.startswith("parts.2")]
    assert len(list(combined.parameters())) == 3
    again = build(json.loads(json.dumps(describe(combined))))
    again.load_state_dict(combined.state_dict())
    assert describe(again) == describe(combined)
    again.parts[2].use_first_stage(Halves())
    combined.parts[2].use_first_stage(Halves())
    batch = everything()
    assert_close(again.eval().encode(batch).concat, combined.eval().encode(batch).concat)


def test_a_mask_on_a_coarse_grid_keeps_its_edges_in_channels():
    mask = (torch.rand(2, 1, 16, 24) > 0.7).float()
    part = InpaintConditioner(5, 8, mask_fold=4)
    weight = torch.ones((), requires_grad=True)
    part.use_first_stage(SimpleNamespace(encode=lambda x: weight * F.avg_pool2d(x, 8).repeat(1, 2, 1, 1)[:, :5]))
    kept = part.prepare({"image": torch.rand(2, 3, 16, 24), "mask": mask})
    assert not kept["masked_latent"].requires_grad                              # the first stage is finished
    assert kept["masked_latent"].shape == (2, 5, 2, 3) and kept["mask"].shape == (2, 1, 8, 12)
    maps = part.encode(kept).concat
    assert maps.shape == (2, part.concat_channels, 2, 3) == (2, 5 + 16, 2, 3)
    assert F.pixel_shuffle(maps[:, 5:], 4).equal(kept["mask"].float() * 2 - 1)
