"""The recogniser finds what is drawn, scores are right where the answer is known, and damage leaves content alone."""

import copy

import pytest
import torch
from train_recogniser import heat_target, recogniser_optimizer, recognition_loss, train_recogniser

from ldm_mini import distortions
from ldm_mini.files import FileError
from ldm_mini.measure.recogniser import Recogniser, RecogniserConfig, _boxes
from ldm_mini.measure.scoring import score_captions, score_scenes, truth
from ldm_mini.scenes.data import scene_batches
from ldm_mini.scenes.scene import SceneConfig

SMALL = RecogniserConfig(num_nouns=2, num_colors=3, num_backgrounds=2, num_styles=2, widths=(16, 16, 32),
                         image_size=32)


def drawn(n: int, seed: int = 0, size: int = 32) -> dict:
    """Squares (noun 0) and crosses (noun 1), red, green or blue, one or two on a black or white ground."""
    g = torch.Generator().manual_seed(seed)
    image, labels = torch.empty(n, 3, size, size), torch.full((n, 3), -1)
    colors, boxes = torch.full((n, 3), -1), torch.zeros(n, 3, 4)
    background = torch.randint(0, 2, (n,), generator=g)
    for i in range(n):
        image[i] = -1.0 + 1.8 * background[i]
        for j in range(int(torch.randint(1, 3, (1,), generator=g))):
            noun, color = torch.randint(0, 2, (1,), generator=g).item(), torch.randint(0, 3, (1,), generator=g).item()
            x, y = torch.randint(0, size // 2 - 9, (2,), generator=g).tolist()
            x += j * size // 2                                               # left half, then right half: no overlap
            patch = image[i, :, y:y + 9, x:x + 9]
            paint = torch.full((3, 1, 1), -0.8)
            paint[color] = 0.9
            shape = torch.ones(9, 9, dtype=torch.bool)
            if noun == 1:
                shape[:3, :3] = shape[:3, 6:] = shape[6:, :3] = shape[6:, 6:] = False
            image[i, :, y:y + 9, x:x + 9] = torch.where(shape, paint, patch)
            labels[i, j], colors[i, j] = noun, color
            boxes[i, j] = torch.tensor([x, y, x + 9, y + 9]) / size
    return {"image": image, "labels": labels, "colors": colors, "boxes": boxes, "background": background,
            "style": torch.full((n,), -1)}


@pytest.fixture(scope="module")
def trained() -> Recogniser:
    torch.manual_seed(0)
    net = Recogniser(SMALL)
    pool = drawn(512)
    g = torch.Generator().manual_seed(0)

    def batches():
        while True:
            pick = torch.randint(0, 512, (16,), generator=g)
            yield {k: v[pick] for k, v in pool.items()}

    *_, last = train_recogniser(net, batches(), steps=250, lr=4e-3, augment=lambda x: distortions.degrade(x, g))
    assert last["progress"] == 1 and last["step"] == 250
    return net


def test_it_learns_to_read_scenes(trained):
    batch = drawn(128, seed=1)
    found = trained.detect(batch["image"])
    right = nouns = 0
    for scene, true in zip(found, truth(batch)):
        got, wanted = (sorted(s["objects"], key=lambda o: o["centre"][0]) for s in (scene, true))
        nouns += sorted(o["noun"] for o in got) == sorted(o["noun"] for o in wanted)
        right += [(o["noun"], o["color"]) for o in got] == [(o["noun"], o["color"]) for o in wanted] and all(
            abs(o["centre"][k] - w["centre"][k]) < 0.1 for o, w in zip(got, wanted) for k in (0, 1))
    assert nouns / 128 > 0.9 and right / 128 > 0.85
    assert sum(s["background"] == int(b) for s, b in zip(found, batch["background"])) / 128 > 0.95


def test_detect_resizes_and_keeps_the_mode(trained):
    batch = drawn(4, seed=2)
    trained.train()
    large = torch.nn.functional.interpolate(batch["image"], scale_factor=2, mode="nearest")
    small_found, large_found = trained.detect(batch["image"]), trained.detect(large)
    assert trained.training
    for a, b in zip(small_found, large_found):
        assert [o["noun"] for o in a["objects"]] == [o["noun"] for o in b["objects"]]
    trained.eval()


def test_save_and_load(trained, tmp_path):
    path = tmp_path / "recogniser.safetensors"
    trained.save(path)
    again = Recogniser.load(path)
    assert again.config == SMALL and not again.training
    x = drawn(8, seed=3)["image"]
    trained.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x)["heat"], trained(x)["heat"], rtol=0.02, atol=0.05)        # half precision
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="damaged"):
        Recogniser.load(path)


def test_heat_target_peaks_at_centres_only():
    labels = torch.tensor([[1, 0, -1], [1, 1, -1]])
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.25], [0.5, 0.5, 1.0, 1.0], [0.0] * 4],
                          [[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 0.5], [0.0] * 4]])
    heat, cell = heat_target(labels, boxes, num_nouns=3, side=8)
    assert (heat == 1).nonzero().tolist() == [[0, 0, 6, 6], [0, 1, 1, 2], [1, 1, 2, 2], [1, 1, 2, 6]]
    assert cell[0, :2].tolist() == [1 * 8 + 2, 6 * 8 + 6]
    assert heat[:, 2].eq(0).all() and heat.max() == 1 and heat[0, 1, 1, 3] < 1


def test_box_code_is_what_the_loss_asks_for():
    """A map that holds the distances to the sides decodes to the box itself."""
    box = torch.tensor([[[0.125, 0.25, 0.5, 0.625]]])
    _, cell = heat_target(torch.tensor([[0]]), box, 1, 16)
    middle = (torch.tensor([cell.item() % 16, cell.item() // 16]) + 0.5) / 16
    maps = torch.zeros(1, 4, 16, 16)
    maps.flatten(2)[0, :, cell.item()] = torch.cat([middle - box[0, 0, :2], box[0, 0, 2:] - middle]) * 64 / 16
    torch.testing.assert_close(_boxes(maps, cell, 64), box)


def test_padding_costs_nothing():
    """A scene without objects has no colour or box loss; extra padding changes nothing."""
    net, batch = Recogniser(SMALL).eval(), drawn(4)
    loss, parts = recognition_loss(net, batch)
    wider = {k: torch.cat([batch[k], batch[k][:, 2:]], 1) for k in ("labels", "colors", "boxes")}
    torch.testing.assert_close(recognition_loss(net, {**batch, **wider})[0], loss)
    empty = {**batch, "labels": torch.full((4, 3), -1)}
    parts = recognition_loss(net, empty)[1]
    assert parts["color"] == 0 and parts["box"] == 0 and parts["heat"] > 0


def test_training_resumes_where_it_stopped():
    batches, plain = [drawn(4, seed=s) for s in range(8)], lambda x: x
    whole = Recogniser(SMALL)
    parts = copy.deepcopy(whole)
    list(train_recogniser(whole, batches, steps=8, augment=plain))
    optimizer = recogniser_optimizer(parts)
    logs = train_recogniser(parts, batches, steps=8, optimizer=optimizer, augment=plain)
    progress = [next(logs)["progress"] for _ in range(3)][-1]
    *_, last = train_recogniser(parts, batches[3:], steps=8, optimizer=optimizer, start=progress, augment=plain)
    assert last["progress"] == 1
    torch.testing.assert_close(dict(whole.state_dict()), dict(parts.state_dict()))


def test_degrade_keeps_content_and_range():
    x = drawn(64)["image"]
    y = distortions.degrade(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(y, distortions.degrade(x, torch.Generator().manual_seed(0)), rtol=0, atol=0)
    assert y.abs().max() <= 1 and (y - x).abs().flatten(1).mean(1).gt(0).all()
    pooled_x, pooled_y = (torch.nn.functional.avg_pool2d(v, 8) for v in (x, y))
    assert (pooled_x - pooled_y).abs().mean() < 0.15


def test_distortions_known_answers():
    flat = torch.full((1, 3, 16, 16), 0.25)
    torch.testing.assert_close(distortions.gaussian_blur(flat, 1.5), flat)
    point = torch.zeros(1, 1, 17, 17)
    point[..., 8, 8] = 1
    spread = distortions.gaussian_blur(point, 1.0)
    torch.testing.assert_close(spread.sum(), torch.tensor(1.0))
    assert spread[0, 0, 8, 8].item() == pytest.approx(0.159, abs=0.01)  # 1 / (2 pi)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    torch.testing.assert_close(distortions.coarse_cosines(x, 1e-6), x, rtol=0, atol=1e-4)  # orthonormal, in its place
    assert (distortions.coarse_cosines(x, 1.0) - x).abs().mean() > 0.1


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match=r"\(B,3,H,W\)"):
        Recogniser(SMALL).detect(torch.zeros(3, 32, 32))


def scenes(n, **options):
    return next(scene_batches(SceneConfig(**{"split": "all", **options}), n, 20_000_000, n))


@pytest.mark.parametrize("options", [{}, {"split": "heldout"}, {"size": 128, "max_objects": 1}])
def test_shipped_recogniser_reads_real_scenes(recogniser, options):
    batch = scenes(48, **options)
    scores = score_scenes(recogniser.detect(batch["image"]), batch)
    assert scores["object_recall"] > 0.96 and scores["exact"] > 0.93 and scores["box_iou"] > 0.8
    assert score_captions(recogniser.detect(batch["image"]), batch["caption"])["exact"] > 0.93


def test_shipped_recogniser_judges_content(recogniser):
    """A blur costs little; another scene's caption, an empty background and shuffled tiles score next to nothing."""
    batch = scenes(48)
    x, captions = batch["image"], batch["caption"]
    assert score_scenes(recogniser.detect(distortions.gaussian_blur(x, 0.85)), batch)["exact"] > 0.9
    assert score_captions(recogniser.detect(x), captions[1:] + captions[:1])["exact"] < 0.05
    tiles = x.unflatten(2, (4, 16)).unflatten(4, (4, 16))                    # (B, 3, 4, 16, 4, 16)
    shuffled = tiles.flip(2).roll(1, 4).reshape(x.shape)
    assert score_captions(recogniser.detect(shuffled), captions)["exact"] < 0.1
    flat = torch.linspace(-1, 1, 8).view(8, 1, 1, 1).expand(8, 3, 64, 64)
    assert not any(found["objects"] for found in recogniser.detect(flat))
