"""Data sets and loaders: one batch format, streams that resume exactly, and errors that say what to do."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ldm_mini.cond import together
from ldm_mini.scenes import vocabulary as v
from ldm_mini.scenes.data import EmojiScenes, collate, scene_batches, scene_stream, to_tensor
from ldm_mini.scenes.own_pictures import ImageFolderDataset
from ldm_mini.scenes.scene import SceneConfig, compose
from ldm_mini.show.plotting import to_uint8

SMALL = SceneConfig(size=32, nouns=("apple", "dog", "sun"), max_objects=2)


def format_of(batch):
    return {key: (tuple(value.shape[1:]), value.dtype) if torch.is_tensor(value) else type(value)
            for key, value in batch.items()}


def scene_format(size):
    return {
        "image": ((3, size, size), torch.float32), "lowres": ((3, size // 4, size // 4), torch.float32),
        "mask": ((1, size, size), torch.float32), "boxes": ((3, 4), torch.float32), "caption": list,
        "semantic": ((size, size), torch.int64), "labels": ((3,), torch.int64), "colors": ((3,), torch.int64),
        **dict.fromkeys(("class", "style", "background", "seed"), ((), torch.int64)),
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def save(folder, name, color=(255, 0, 0), size=(40, 20)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def test_scene_batch():
    batch = collate([EmojiScenes(SMALL, start=10)[i] for i in range(6)])
    assert format_of(batch) == scene_format(32)
    assert batch["seed"].tolist() == list(range(10, 16))
    assert batch["image"].abs().max() <= 1 and set(batch["mask"].unique().tolist()) == {0.0, 1.0}
    assert 0 <= batch["boxes"].min() and batch["boxes"].max() <= 1
    assert batch["semantic"].max() < len(v.SEMANTIC) and batch["background"].max() < len(v.BACKGROUNDS)
    for i in range(6):
        arrays = compose(10 + i, SMALL)
        np.testing.assert_array_equal(to_uint8(batch["image"][i])[0], arrays["image"])
        np.testing.assert_array_equal(batch["semantic"][i].numpy(), arrays["semantic"])
        assert batch["caption"][i] == arrays["caption"] and batch["class"][i] == arrays["class"]
    assert_close(torch.nn.functional.avg_pool2d(batch["image"], 4), batch["lowres"], atol=.5 / 127.5 + 1e-5, rtol=0)


def test_item_range():
    scenes = EmojiScenes(SMALL, length=3, start=4)
    assert len(scenes) == 3 and scenes[-1]["seed"] == scenes[2]["seed"] == 6
    assert [item["seed"] for item in scenes] == [4, 5, 6]
    with pytest.raises(IndexError, match="index 3 of 3"):
        scenes[3]


def test_scenes_can_be_shuffled_as_they_are():
    batch = next(iter(torch.utils.data.DataLoader(EmojiScenes(SMALL), batch_size=4, shuffle=True, collate_fn=collate)))
    assert len(set(batch["seed"].tolist())) == 4 and batch["image"].shape == (4, 3, 32, 32)


def test_batches_to_measure_on_end_and_are_put_together():
    batches = list(scene_batches(SMALL, 5, start=3, batch_size=2))
    assert [batch["seed"].tolist() for batch in batches] == [[3, 4], [5, 6], [7]]
    assert same(together(batches), collate([EmojiScenes(SMALL, start=3)[i] for i in range(5)]))


def test_a_resumed_stream_continues_exactly_and_workers_keep_the_order():
    whole = list(islice(scene_stream(SMALL, 3), 5))
    assert all(same(batch, next(scene_batches(SMALL, 3, start=3 * k))) for k, batch in enumerate(whole))
    assert not same(whole[3], whole[4])
    for workers in (0, 2):
        again = list(islice(scene_stream(SMALL, 3, start_step=1, num_workers=workers), 4))
        assert all(same(a, b) for a, b in zip(whole[1:], again, strict=True))


def test_ranks_share_the_work_and_seeds_are_apart():
    ranks = [scene_stream(SMALL, 2, start_step=5, rank=rank, world_size=3) for rank in range(3)]
    shared = torch.cat([next(stream)["seed"] for stream in ranks])
    assert shared.tolist() == next(scene_stream(SMALL, 6, start_step=5))["seed"].tolist()
    assert next(scene_stream(SMALL, 2, seed=1))["seed"].tolist() == [2 ** 32, 2 ** 32 + 1]


def test_a_batch_needs_items():
    with pytest.raises(ValueError, match="no items"):
        next(scene_stream(SMALL, 0))


def test_pixels_there_and_back():
    pixels = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    np.testing.assert_array_equal(to_uint8(to_tensor(pixels))[0], pixels)
    assert_close(to_tensor(pixels).aminmax().min, torch.tensor(-1.0))
    assert to_uint8(torch.full((3, 1, 1), 7.0)).max() == 255


def test_folder_of_pictures(tmp_path):
    save(tmp_path, "b/red.jpg"), save(tmp_path, "a.png", (0, 0, 255))
    (tmp_path / "notes.md").write_text("not a picture")
    data = ImageFolderDataset(tmp_path, np.int64(16))
    batch = collate([data[i] for i in range(len(data))])
    assert len(data) == 2 and batch["caption"] == ["", ""] and format_of(batch) == scene_format(16)
    assert to_uint8(batch["image"])[0, 8, 8].tolist() == [0, 0, 255]
    (tmp_path / "a.txt").write_text("a blue thing\n")
    (tmp_path / "b" / "red.txt").write_text("a red thing")
    told = ImageFolderDataset(tmp_path, 16)
    assert [told[i]["caption"] for i in range(2)] == ["a blue thing", "a red thing"]


def test_middle_square_and_transparency(tmp_path):
    picture = Image.new("RGBA", (30, 10), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (10, 0, 20, 5))
    picture.save(tmp_path / "a.png")
    pixels = to_uint8(ImageFolderDataset(tmp_path, 8)[0]["image"])[0]
    assert pixels[1, 4].tolist() == [255, 0, 0] and pixels[6, 4].tolist() == [255, 255, 255]


def test_bad_folders_are_refused(tmp_path):
    save(tmp_path, "a.png"), save(tmp_path, "b.png")
    (tmp_path / "a.txt").write_text("first")
    with pytest.raises(ValueError, match=r"1 of 2 pictures have no caption: write .*b\.txt"):
        ImageFolderDataset(tmp_path)
    with pytest.raises(ValueError, match="multiple of 4"):
        ImageFolderDataset(tmp_path, 30)


@pytest.mark.parametrize("damage", [lambda data: b"no picture", lambda data: data[:len(data) // 2]])
def test_an_unreadable_picture_is_named(tmp_path, damage):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "broken.png")
    (tmp_path / "broken.png").write_bytes(damage((tmp_path / "broken.png").read_bytes()))
    with pytest.raises(ValueError, match=r"broken\.png.*Remove or replace"):
        ImageFolderDataset(tmp_path, 16)[0]
