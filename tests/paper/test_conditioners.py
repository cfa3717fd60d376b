"""Conditioners: encode and null of equal shapes, drops that happen and only where they should, configs that rebuild.

Layouts: the paper's words, order without meaning, padding that nobody hears, null without objects.
"""

import json
import math

import pytest
import torch
from tiny_tokenizer import tiny_tokenizer
from torch.testing import assert_close

from ldm_mini.cond import Cond, Conditioner, batch_size
from ldm_mini.conditioners import (
    ClassConditioner,
    CombinedConditioner,
    LayoutConditioner,
    TextConditioner,
    point_codes,
)
from ldm_mini.files import FileError
from ldm_mini.hub import build, describe
from ldm_mini.text import TextTransformer
from ldm_mini.unet import UNet, UNetConfig

SMALL = dict(channels=16, channel_mults=(1, 2), attn_levels=(1,), head_dim=16, groups=2, context_dim=16, vector_dim=16)
BATCH = {"caption": ["a red apple", "", "a dog left of the apple"], "class": torch.tensor([4, -1, 0])}


@pytest.fixture()
def text():
    torch.manual_seed(0)
    return TextConditioner(TextTransformer(16, layers=1, heads=2, max_length=9, tokenizer=tiny_tokenizer()))


@pytest.fixture()
def classes():
    torch.manual_seed(1)
    return ClassConditioner(5, 16, vector_dim=16)


class Palette(Conditioner):
    """A learner's own: a colour as a vector, and an image as concat whose null is itself."""

    keys = ("color",)

    def encode(self, batch):
        return Cond(vector=batch["color"], concat=batch["color"][:, :1, None, None].expand(-1, 1, 4, 4))

    def null(self, batch):
        return Cond(vector=torch.zeros(batch_size(batch), 16), concat=torch.zeros(batch_size(batch), 1, 4, 4))


def shapes(cond):
    return {name: None if value is None else tuple(value.shape) for name, value in vars(cond).items()}


def equal(a: Cond, b: Cond):
    assert shapes(a) == shapes(b)
    for name, value in vars(a).items():
        if value is not None:
            assert_close(value, getattr(b, name), atol=1e-5, rtol=1e-4)


def test_encode_and_null_have_the_same_shapes_so_guidance_stacks(text, classes):
    combined = CombinedConditioner([text, classes])
    expected = {text: (9, True), classes: (1, False), combined: (10, True)}
    for conditioner, (tokens, masked) in expected.items():
        cond, null = conditioner.encode(BATCH), conditioner.null(BATCH)
        assert shapes(cond) == shapes(null) == {"concat": None, "context": (3, tokens, 16),
                                                "mask": (3, tokens) if masked else None, "vector": (3, 16)}
        assert len(Cond.stack([null, cond]).context) == 6
        assert null.mask is None or null.mask.any(1).all()                      # there is always something to look at


def test_class_token_and_vector_come_from_the_row_of_the_class(classes):
    cond = classes.encode(BATCH)
    assert_close(cond.context[:, 0], classes.token.weight[[4, 5, 0]])
    assert_close(cond.vector, classes.vector.weight[[4, 5, 0]])
    equal(classes.null(BATCH), cond[[1, 1, 1]])                                 # -1 is null
    equal(classes.encode({"class": [4, -1, 0]}), cond)


def test_tables_have_a_row_for_each_class_and_one_for_none(classes):
    assert classes.token.weight.shape == classes.vector.weight.shape == (6, 16)


def test_a_condition_is_present_if_all_that_it_reads_is_there(text):
    layout = LayoutConditioner(3, 16)
    assert layout.present({"labels": [], "boxes": []}) and not layout.present({"labels": []})
    either = CombinedConditioner([text, layout])
    assert either.present({"caption": []}) and not either.present({"boxes": []})


def test_one_class_that_is_none_of_them_is_refused(classes):
    for bad in ([0, 5], [-2, 0], [0.0, 1.0], [[0, 1]]):
        with pytest.raises(ValueError, match="whole numbers below 5, or -1"):
            classes.encode({"class": torch.tensor(bad)})


def test_class_parts_are_optional():
    nothing = dict.fromkeys(("concat", "context", "mask", "vector"))
    assert shapes(ClassConditioner(5, None, 8).encode(BATCH)) == {**nothing, "vector": (3, 8)}
    assert shapes(ClassConditioner(5, 8).encode(BATCH)) == {**nothing, "context": (3, 1, 8)}
    assert ClassConditioner(4, 8, key="style").encode({"style": torch.tensor([3])}).context.shape == (1, 1, 8)


def test_text_context_mask_and_pooled_vector(text):
    cond = text.encode(BATCH)
    context, mask = text.text_transformer(BATCH["caption"])
    assert_close(cond.context, context)
    assert cond.mask.equal(mask)
    assert_close(cond.vector[1], context[1, :2].mean(0))
    equal(text.null(BATCH), cond[[1, 1, 1]])                                    # "" is null


def test_missing_keys_are_named(text, classes):
    with pytest.raises(ValueError, match=r"'caption'.*\['class'\]"):
        text.encode({"class": BATCH["class"]})
    with pytest.raises(ValueError, match=r"\['captoin'\].*\['caption', 'class'\]"):
        CombinedConditioner([text, classes]).encode({"captoin": ["a dog"]})


def test_combined_joins_and_fills_what_the_batch_lacks(text, classes):
    combined = CombinedConditioner([text, classes]).eval()
    both, only_text = combined.encode(BATCH), combined.encode({"caption": BATCH["caption"]})
    assert_close(both.context[:, :9], text.encode(BATCH).context)
    assert_close(both.context[:, 9:], classes.encode(BATCH).context)
    assert_close(both.vector, text.encode(BATCH).vector + classes.encode(BATCH).vector)
    equal(only_text, Cond.join([text.encode(BATCH), classes.null(BATCH)]))
    assert shapes(combined.encode({"class": torch.tensor([1, 2])}))["context"] == (2, 10, 16)
    equal(combined.null(BATCH), Cond.join([text.null(BATCH), classes.null(BATCH)]))


def test_parts_drop_independently_in_training_only(classes):
    other = ClassConditioner(5, 16, key="style")
    combined, size = CombinedConditioner([classes, other], p_drop_each=0.3), 4000
    batch = {"class": torch.full((size,), 2), "style": torch.full((size,), 3)}
    torch.manual_seed(0)
    cond = combined.train().encode(batch)
    first = (cond.context[:, 0] == classes.token.weight[5]).all(1)
    second = (cond.context[:, 1] == other.token.weight[5]).all(1)
    assert_close(cond.vector[first], classes.vector.weight[[5] * int(first.sum())])             # with its token
    for rate, expected in ((first, 0.3), (second, 0.3), (first & second, 0.09)):
        assert abs(rate.float().mean() - expected) < 0.04                       # more than 4 standard errors
    equal(combined.eval().encode(batch), CombinedConditioner([classes, other]).encode(batch))


def test_a_learners_own_part_joins_in_and_feeds_the_net(text):
    combined = CombinedConditioner([text, Palette()], p_drop_each=0.5)
    batch = {"caption": ["a dog", "a red apple"], "color": torch.rand(2, 16)}
    net = UNet(UNetConfig(3, concat_channels=1, **SMALL))
    nn_input = torch.randn(2, 3, 4, 4), torch.tensor([1, 2])
    for given in (batch, {"caption": batch["caption"]}, {"color": batch["color"]}):
        assert net(*nn_input, combined.encode(given)).shape == (2, 3, 4, 4)
    assert net(*nn_input, combined.null(batch)).shape == (2, 3, 4, 4)
    with pytest.raises(FileError, match="a Palette is no part of ldm_mini"):
        build(describe(combined)["parts"][1])


def test_words_by_cross_attention_alone(text):
    alone = TextConditioner(text.text_transformer, vector=False)
    cond = alone.encode(BATCH)
    assert cond.vector is None and torch.equal(cond.context, text.encode(BATCH).context)


def test_the_text_encoder_learns_with_the_net(text):
    net = UNet(UNetConfig(3, **SMALL))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    net(torch.randn(3, 3, 4, 4), torch.tensor([1, 2, 3]), text.encode(BATCH)).square().mean().backward()
    assert text.text_transformer.words.weight.grad.abs().max() > 0


def test_configs_rebuild(text, classes, monkeypatch):
    monkeypatch.setattr("ldm_mini.text.load_tokenizer", tiny_tokenizer)         # a tokenizer is in no config
    combined = CombinedConditioner([text, classes], p_drop_each=0.2).eval()
    again = build(json.loads(json.dumps(describe(combined)))).eval()
    again.load_state_dict(combined.state_dict())
    assert again.p_drop_each == 0.2 and again.keys == ("caption", "class")
    equal(again.encode(BATCH), combined.encode(BATCH))


def test_batch_size_and_its_complaints():
    assert batch_size(BATCH) == 3
    for bad in ({}, {"caption": "a dog"}, {"caption": ["a dog"], "class": torch.tensor([1, 2])}, ["a dog"], "a dog",
                {"class": 3}, {"class": torch.tensor(3)}):
        with pytest.raises(ValueError, match="A batch is a dict"):
            batch_size(bad)


def test_the_base_class_asks_for_its_methods():
    for method in (Conditioner().encode, Conditioner().null):
        with pytest.raises(NotImplementedError, match="must define"):
            method({})


def test_parts_and_where_they_are(text, classes):
    combined = CombinedConditioner([text, classes, Palette()])
    assert list(combined.parts) == [text, classes, combined.parts[2]] and text.parts == [text]
    assert "parts.1.token.weight" in combined.state_dict()
    assert classes.device == combined.device == torch.device("cpu") and Palette().device is None
    assert classes.to("meta").device.type == classes.null(BATCH).vector.device.type == "meta"


def test_subsets_are_drawn_as_promised(classes):
    parts = [ClassConditioner(5, 16, key=key) for key in "abc"]
    combined, size = CombinedConditioner(parts, p_drop_each=0.5, p_single=0.6, weights=(3, 1, 1)), 20000
    torch.manual_seed(0)
    kept = combined.draw_subsets(size)
    alone = kept & (kept.sum(1, keepdim=True) == 1)
    share = alone.float().mean(0)                                               # 0.6 * weight + 0.4 / 8 by chance
    assert_close(share, torch.tensor([0.41, 0.17, 0.17]), atol=0.02, rtol=0)
    assert abs(kept.all(1).float().mean() - 0.05) < 0.01 and abs((~kept).all(1).float().mean() - 0.05) < 0.01
    always_one = CombinedConditioner(parts, p_drop_each=0.0, p_single=1.0).train()
    batch = {key: torch.ones(200, dtype=torch.long) for key in "abc"}
    cond = always_one.encode(batch).context
    nulls = torch.stack([(cond[:, i] == part.token.weight[5]).all(1) for i, part in enumerate(parts)])
    assert nulls.sum(0).eq(2).all() and nulls.float().mean(1).max() < 0.9
    only = CombinedConditioner(parts, p_drop_each=0.0, p_single=1.0, weights=(0, 1, 0)).draw_subsets(50)
    assert only[:, 1].all() and only.sum() == 50


NONE = [0.0] * 4
BOXES = torch.tensor([[[0.0, 0.25, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5], NONE], [[0.1, 0.2, 0.3, 0.9], NONE, NONE],
                      [NONE, NONE, NONE]])
LAYOUTS = {"labels": torch.tensor([[4, 1, -1], [2, -1, -1], [-1, -1, -1]]), "boxes": BOXES}


@pytest.fixture()
def layout():
    torch.manual_seed(0)
    return LayoutConditioner(5, 16, grid=9, layers=1, heads=2)


@pytest.mark.parametrize("dim", [16, 18, 3])                  # what four does not divide stays noise
def test_neighbouring_points_begin_alike_and_as_large_as_the_rest(dim):
    layout = LayoutConditioner(5, dim, grid=9, layers=1, heads=1)
    points = layout.token.weight[:81, :dim // 4 * 4].detach().unflatten(0, (9, 9))
    assert layout.token.weight.isfinite().all() and (dim < 4 or 0.4 < points.std() < 0.6)
    for a, b in ((points[:-1], points[1:]), (points[:, :-1], points[:, 1:])) if dim > 3 else ():
        assert (a - b).norm(dim=-1).mean() < 0.6 * (points[:4, :4] - points[5:, 5:]).norm(dim=-1).mean()
    assert len(layout.token.weight[:81].unique(dim=0)) == 81    # and every point is another


def test_a_point_is_sines_and_cosines_of_its_row_then_of_its_column():
    """From half a wave over the picture up to a wave in four points, each frequency as many times the last."""
    codes = point_codes(5, 3).view(5, 5, 12)
    for row in range(5):
        for column in range(5):
            angles = [[place / 4 * math.pi * 2.5 ** (i / 2) for i in range(3)] for place in (row, column)]
            by_hand = [f(a) / math.sqrt(2) for place in angles for f in (math.sin, math.cos) for a in place]
            assert_close(codes[row, column], torch.tensor(by_hand), atol=1e-5, rtol=0)


def test_an_object_is_its_class_and_two_corners_on_the_grid(layout):
    words = layout.eval().tokenize(LAYOUTS)
    assert words.shape == (3, 9) and layout.pad == 81
    assert words[0].tolist() == [4, 2 * 9 + 0, 8 * 9 + 4, 1, 0 * 9 + 4, 4 * 9 + 8, 81, 81, 81]
    assert words[2].tolist() == [81] * 9
    paper = LayoutConditioner(100, 8, max_objects=30, grid=90, layers=1, heads=1)
    word = paper.eval().tokenize({"labels": [[7]], "boxes": [[[0.25, 0.5, 1.0, 1.0]]]})[0, :3].tolist()
    assert word == [7, round(0.5 * 89) * 90 + round(0.25 * 89), 89 * 90 + 89] and len(paper.position) == 90


def test_no_objects_is_no_condition(layout):
    cond, null = layout.encode(LAYOUTS), layout.null(LAYOUTS)
    assert cond.context.shape == null.context.shape == (3, 9, 16)
    assert cond.mask.sum(1).tolist() == [6, 3, 0] and not null.mask.any()
    assert_close(cond.vector[2], torch.zeros(16))
    assert_close(null.vector, torch.zeros(3, 16))
    assert_close(null.context[0], layout.eval().encode(LAYOUTS).context[2])
    assert len(Cond.stack([null, cond]).context) == 6
    net = UNet(UNetConfig(3, **SMALL))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert net(torch.randn(3, 3, 4, 4), torch.tensor([1, 2, 3]), cond).isfinite().all()


def test_order_is_shuffled_in_training_only_and_objects_stay_whole(layout):
    layout.train()
    torch.manual_seed(1)
    seen = {tuple(map(tuple, layout.tokenize(LAYOUTS)[0].view(3, 3).tolist())) for _ in range(60)}
    assert len(seen) == 6, "three places, two objects and a gap: six orders"
    assert all(set(order) == {(4, 18, 76), (1, 4, 44), (81, 81, 81)} for order in seen)
    assert len({tuple(layout.eval().tokenize(LAYOUTS)[0].tolist()) for _ in range(5)}) == 1


def test_moving_a_box_changes_the_context_and_it_learns(layout):
    moved = {**LAYOUTS, "boxes": BOXES.clone()}
    moved["boxes"][0, 0, 2] = 1.0
    a, b = layout.eval().encode(LAYOUTS), layout.encode(moved)
    assert (a.context[0] - b.context[0]).abs().max() > 1e-3 and a.context[1].equal(b.context[1])
    a.context.square().mean().backward()
    assert layout.token.weight.grad[76].any() and layout.position.grad.any()


def test_layout_mistakes_are_explained(layout):
    for boxes, message in ((BOXES - 0.1, "fractions of the picture"), (BOXES[:, :2], "labels .B,N. and boxes")):
        with pytest.raises(ValueError, match=message):
            layout.encode({**LAYOUTS, "boxes": boxes})
    for change in ({"boxes": BOXES.clone().index_fill_(2, torch.tensor([3]), 1.01)}, {"labels": LAYOUTS["labels"] + 1},
                   {"boxes": torch.where(BOXES == 0.1, -0.01, BOXES)},          # one wrong number is enough
                   {"boxes": torch.tensor([0.5, 0.1, 0.2, 0.9]).expand_as(BOXES)}):     # its right before its left
        with pytest.raises(ValueError, match="fractions of the picture"):
            layout.encode({**LAYOUTS, **change})


def test_a_layout_combines(layout):
    combined = CombinedConditioner([ClassConditioner(5, 16, 16), layout], p_drop_each=0.5).eval()
    both = combined.encode({**LAYOUTS, "class": torch.tensor([1, 2, -1])})
    assert both.context.shape == (3, 10, 16) and both.mask[2].tolist() == [True] + [False] * 9
