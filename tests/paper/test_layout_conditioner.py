"""Layouts as tokens: the paper's words, order without meaning, padding that nobody hears, null without objects."""

import pytest
import torch
from torch.testing import assert_close

from ldm_mini.cond import Cond
from ldm_mini.conditioners import ClassConditioner, CombinedConditioner, LayoutConditioner
from ldm_mini.hub import build, describe
from ldm_mini.unet import UNet, UNetConfig

LABELS = torch.tensor([[4, 1, -1], [2, -1, -1], [-1, -1, -1]])
BOXES = torch.zeros(3, 3, 4)
BOXES[0, 0] = torch.tensor([0.0, 0.25, 0.5, 1.0])
BOXES[0, 1] = torch.tensor([0.5, 0.0, 1.0, 0.5])
BOXES[1, 0] = torch.tensor([0.1, 0.2, 0.3, 0.9])
BATCH = {"labels": LABELS, "boxes": BOXES}


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


def test_an_object_is_its_class_and_two_corners_on_the_grid(layout):
    words = layout.eval().tokenize(BATCH)
    assert words.shape == (3, 9) and layout.pad == 81
    assert words[0].tolist() == [4, 2 * 9 + 0, 8 * 9 + 4, 1, 0 * 9 + 4, 4 * 9 + 8, 81, 81, 81]
    assert words[2].tolist() == [81] * 9
    paper = LayoutConditioner(100, 8, max_objects=30, grid=90, layers=1, heads=1)
    word = paper.eval().tokenize({"labels": [[7]], "boxes": [[[0.25, 0.5, 1.0, 1.0]]]})[0, :3].tolist()
    assert word == [7, round(0.5 * 89) * 90 + round(0.25 * 89), 89 * 90 + 89] and len(paper.position) == 90


def test_no_objects_is_no_condition(layout):
    cond, null = layout.encode(BATCH), layout.null(BATCH)
    assert cond.context.shape == null.context.shape == (3, 9, 16)
    assert cond.mask.sum(1).tolist() == [6, 3, 0] and not null.mask.any()
    assert_close(cond.vector[2], torch.zeros(16))
    assert_close(null.vector, torch.zeros(3, 16))
    assert_close(null.context[0], layout.eval().encode(BATCH).context[2])
    assert len(Cond.stack([null, cond]).context) == 6
    net = UNet(UNetConfig(3, channels=16, channel_mults=(1, 2), attn_levels=(1,), head_dim=16, groups=2,
                          context_dim=16, vector_dim=16))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert net(torch.randn(3, 3, 4, 4), torch.tensor([1, 2, 3]), cond).isfinite().all()


def test_order_is_shuffled_in_training_only_and_objects_stay_whole(layout):
    layout.train()
    torch.manual_seed(1)
    seen = {tuple(map(tuple, layout.tokenize(BATCH)[0].view(3, 3).tolist())) for _ in range(60)}
    assert len(seen) == 6, "three places, two objects and a gap: six orders"
    assert all(set(order) == {(4, 18, 76), (1, 4, 44), (81, 81, 81)} for order in seen)
    assert len({tuple(layout.eval().tokenize(BATCH)[0].tolist()) for _ in range(5)}) == 1


def test_colours_are_a_fourth_word():
    layout = LayoutConditioner(5, 16, grid=9, num_colors=7, layers=1, heads=2).eval()
    colors = torch.tensor([[3, -1, -1], [0, -1, -1], [-1, -1, -1]])
    words = layout.tokenize({**BATCH, "colors": colors})
    assert words[0].view(3, 4)[:, 3].tolist() == [4, 0, 81] and layout.keys == ("labels", "boxes", "colors")
    assert layout.encode({**BATCH, "colors": colors}).mask.sum(1).tolist() == [8, 4, 0]


def test_moving_a_box_changes_the_context_and_it_learns(layout):
    moved = {**BATCH, "boxes": BOXES.clone()}
    moved["boxes"][0, 0, 2] = 1.0
    a, b = layout.eval().encode(BATCH), layout.encode(moved)
    assert (a.context[0] - b.context[0]).abs().max() > 1e-3 and a.context[1].equal(b.context[1])
    a.context.square().mean().backward()
    assert layout.token.weight.grad[76].any() and layout.position.grad.any()


@pytest.mark.parametrize("change, message", [
    ({"labels": torch.full((3, 3), 5)}, "between 0 and 4.*got 5 to 5"),
    ({"boxes": BOXES * 64}, "fractions of the picture"),
    ({"boxes": BOXES[:, :2]}, "labels .B,N. and boxes"),
    ({"labels": torch.zeros(3, 4, dtype=torch.long), "boxes": torch.zeros(3, 4, 4)}, "N up to 3"),
])
def test_mistakes_are_explained(layout, change, message):
    with pytest.raises(ValueError, match=message):
        layout.encode({**BATCH, **change})


def test_it_combines_and_its_config_rebuilds(layout):
    combined = CombinedConditioner([ClassConditioner(5, 16, 16), layout], p_drop_each=0.5).eval()
    both = combined.encode({**BATCH, "class": torch.tensor([1, 2, -1])})
    assert both.context.shape == (3, 10, 16) and both.mask[2].tolist() == [True] + [False] * 9
    again = build(describe(combined)).eval()
    again.load_state_dict(combined.state_dict())
    assert_close(again.encode(BATCH).context, combined.encode(BATCH).context)
