"""Every task of the paper from the command line and from Python: inputs that tell no more than they should,
combinations in one guided call, sizes, pasted pixels, warm start."""

import copy
import json
from dataclasses import replace
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from ldm_mini import tasks
from ldm_mini.__main__ import main, sample
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.scenes.data import EmojiScenes, collate
from ldm_mini.scenes.scene import SceneConfig
from ldm_mini.show.inputs import batch_from_files, scenes_for, show_inputs, showcase
from ldm_mini.training import build, recipes
from ldm_mini.training.build import start_from
from ldm_mini.training.latents import LatentCache, cache_latents

MICRO = recipes.MICRO_DIFFUSION


def command(words, out):
    """Run a command line that must succeed."""
    assert main([*words.split(), "--device", "cpu", "--out", str(out)]) == 0


def train(folder, task):
    options = "--recipe micro --steps 2 --log-every 2 --latents 8"
    command(f"train diffusion {options} --task {task} --autoencoder {folder / 'ae' / 'model'}", folder / task)
    return json.loads((folder / task / "log.jsonl").read_text().splitlines()[-1])


def first_stage():
    torch.manual_seed(0)
    autoencoder = build.build_autoencoder(recipes.MICRO_AUTOENCODER)
    autoencoder.train()(scenes(4)["image"])                                     # the codebook needs data
    return autoencoder.eval()


def scenes(n=3, size=32):
    data = EmojiScenes(replace(MICRO.scenes, size=size), n)
    return collate([data[i] for i in range(n)])


def model(task, seed=1):
    torch.manual_seed(seed)
    ldm = build.build_diffusion(recipes.for_task(MICRO, task), first_stage()).eval()
    for name, parameter in ldm.net.named_parameters():                          # a fresh net says 0 to everything
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return ldm


@pytest.fixture(scope="module")
def everything():
    return model("all")


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_model_of_one_task_reads_what_the_paper_says(task):
    ldm = model(task)
    shape = {"superres": (3, None), "semantic": (8, None), "inpaint": (4, None), "unconditional": (0, None)}
    config = ldm.net.config
    assert (config.concat_channels, config.context_dim) == shape.get(task, (0, 16))
    assert tasks.possible(ldm) == (["unconditional", "text"] if task == "text" else [task])
    images = tasks.sample_task(ldm, task, scenes(), steps=2, seed=0)
    assert images.shape == (3, 3, 32, 32) and images.isfinite().all()
    other = next(name for name in ("layout", "superres") if name != task)
    with pytest.raises(ValueError, match=f"cannot do the task '{other}'; it can do"):
        tasks.sample_task(ldm, other, scenes())


def test_inputs_hold_nothing_but_the_tasks_keys(everything):
    batch = scenes()
    assert {name: sorted(tasks.inputs(name, batch, everything)) for name in tasks.TASKS} == {
        "unconditional": ["caption"], "class": ["class"], "text": ["caption"], "layout": ["boxes", "labels"],
        "superres": ["lowres"], "semantic": ["semantic"], "inpaint": ["image", "mask"]}
    assert tasks.inputs("unconditional", batch, everything) == {"caption": ["", "", ""]}
    assert tasks.possible(everything) == list(tasks.TASKS)
    with pytest.raises(ValueError, match="no task 'dreams'; there are unconditional"):
        tasks.inputs("dreams", batch)


@pytest.mark.parametrize("keys", [("caption",), ("labels", "boxes"), ("lowres",), ("semantic",), ("image", "mask"),
                                  ("caption", "labels", "boxes"), ("caption", "image", "mask"),
                                  ("class", "lowres", "semantic")])
def test_any_combination_is_sampled_in_one_guided_call(everything, keys):
    batch = {key: value for key, value in scenes().items() if key in keys}
    calls = []
    handle = everything.net.register_forward_pre_hook(lambda net, args: calls.append(len(args[0])))
    images = everything.sample(batch, steps=2, sampler="ddim", guidance_scale=3.0, seed=0, negative="an apple")
    handle.remove()
    assert calls == [6, 6], "condition and null in one batch, once a step"
    assert images.shape == (3, 3, 32, 32)
    if "mask" in keys:
        outside = (batch["mask"] == 0).expand(-1, 3, -1, -1)
        assert images[outside].equal(batch["image"][outside]) and not images.equal(batch["image"])


def test_every_condition_changes_the_picture(everything):
    batch, x, t = scenes(), torch.randn(3, 3, 8, 8), torch.tensor([100, 500, 900])
    with torch.no_grad():
        def eps(given):
            return everything.denoiser(given)(x, t)[1]

        plain = eps({"caption": [""] * 3})
        for task in ("text", "class", "layout", "superres", "semantic", "inpaint"):
            difference = (eps(tasks.inputs(task, batch)) - plain).abs().flatten(1).amax(1)
            assert (difference > 1e-5).all(), task


def test_size_follows_the_inputs(everything):
    large = scenes(2, size=48)
    for keys in (("lowres",), ("semantic",), ("image", "mask")):
        batch = {key: large[key] for key in keys}
        assert everything.sample(batch, steps=1, guidance_scale=2.0).shape == (2, 3, 48, 48)
    assert everything.sample({"caption": ["a star"]}, steps=1, size=(32, 64)).shape == (1, 3, 32, 64)
    with pytest.raises(ValueError, match="different sizes"):
        everything.sample({"lowres": large["lowres"], "semantic": scenes(2)["semantic"]}, steps=1)
    for keys in (("lowres",), ("semantic",), ("image", "mask")):
        with pytest.raises(ValueError, match="size=32: this batch's .* are for pictures of 48 x 48"):
            everything.sample({key: large[key] for key in keys}, steps=1, size=32)


def test_cached_inputs_train_like_images(everything, tmp_path):
    keys, prepare = build.cached_inputs(tasks.PARTS, everything.autoencoder)
    batch = scenes(4)
    made = cache_latents(everything.autoencoder, [batch], 4, keys, tmp_path, "x", prepare=prepare)
    cache = LatentCache.load(tmp_path)
    assert cache.conditions["semantic"].dtype == torch.uint8 and cache.conditions["mask"].dtype == torch.bool
    assert cache.conditions["mask"].shape == (4, 1, 8, 8) and cache.conditions["mask"].equal(made.conditions["mask"])
    assert cache.conditions["masked_latent"].equal(made.conditions["masked_latent"])
    cached = cache[:]
    assert "image" not in cached and len(cached["caption"]) == 4
    losses = []
    for given in (cached, batch):
        torch.manual_seed(0)
        losses.append(everything.loss(given).item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-3), "half precision apart"
    assert build.cached_inputs(("text", "inpaint"), everything.autoencoder)[0] == ("caption",)


def test_the_old_model_is_inside_the_new_one():
    old_of_all, autoencoder = model("all", seed=5), first_stage()
    text_and_class = build.build_diffusion(MICRO, autoencoder).eval()
    for parameter in text_and_class.net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    new = build.build_diffusion(recipes.for_task(MICRO, "all"), autoencoder).eval()
    before = {name: value.clone() for name, value in new.conditioner.parts[2].state_dict().items()}
    start_from(text_and_class, new)
    x, t, batch = torch.randn(3, 3, 8, 8), torch.tensor([1, 500, 999]), {"caption": ["a star", "", "a red car"]}
    with torch.no_grad():
        for given in (batch, {"class": torch.tensor([1, -1, 2])}):
            a, b = (m.denoiser(given, 3.0)(x, t)[1] for m in (text_and_class, new))
            assert_close(a, b, atol=1e-5, rtol=1e-4)
            assert not torch.allclose(a, x)
        stem = new.net.down[0][0].weight
        assert not stem[:, 3:].any() and stem[:, :3].equal(text_and_class.net.down[0][0].weight)
    assert all(value.equal(before[name]) for name, value in new.conditioner.parts[2].state_dict().items())
    start_from(old_of_all, new)                                                 # the same shape: everything is taken
    theirs = old_of_all.state_dict()
    assert all(v.equal(theirs[k]) for k, v in new.state_dict().items() if k.startswith(("net", "conditioner")))
    with pytest.raises(ValueError, match="joins 18 channels of conditions, the recipe 3"):
        start_from(old_of_all, model("superres"))
    with pytest.raises(ValueError, match="another shape") as caught:
        start_from(model("unconditional"), new)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300      # of the hundred weights, a few
    with torch.no_grad():
        new.autoencoder = copy.deepcopy(autoencoder)
        next(new.autoencoder.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="another first stage"):
        start_from(text_and_class, new)


def test_the_all_model_survives_the_disk_in_half_precision(everything, tmp_path):
    everything.save_pretrained(tmp_path / "m", half=True)
    again = LatentDiffusion.from_pretrained(tmp_path / "m")
    weights = json.loads((tmp_path / "m" / "config.json").read_text())["conditioner"]
    kinds = ["conditioners.Text", "conditioners.Class", "conditioners.Layout", "concat_conditioners.LowRes",
             "concat_conditioners.Semantic", "concat_conditioners.Inpaint"]     # in the order of tasks.PARTS
    assert [part["class"] for part in weights["parts"]] == [f"{kind}Conditioner" for kind in kinds]
    batch = {key: scenes()[key] for key in ("caption", "image", "mask", "lowres")}
    a, b = (m.sample(batch, steps=2, seed=0, sampler="ddim") for m in (everything, again))
    assert (a - b).abs().mean() < 0.02


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A first stage and one model of all conditions, both from the command line."""
    folder = tmp_path_factory.mktemp("tasks")
    command("train autoencoder --recipe micro --steps 2", folder / "ae")
    assert {f"val_{task}" for task in tasks.TASKS} <= train(folder, "all").keys(), "each task is measured"
    return folder


def test_what_never_did_without_its_condition_is_not_guided(everything, monkeypatch):
    assert tasks.advised_guidance(everything, "superres") == tasks.PICTURE_GUIDANCE > 1
    monkeypatch.setattr(everything, "p_uncond", 0.0)
    assert tasks.advised_guidance(everything, "superres") == tasks.advised_guidance(everything, "text") == 1


def test_the_help_tells_the_scales_that_are_used(everything, monkeypatch):
    said = str(get_type_hints(sample, include_extras=True)["guidance_scale"])
    scale = {name: f"{task.guidance_scale:g}" for name, task in tasks.TASKS.items()}
    assert scale["text"] == scale["class"] and scale["superres"] == scale["semantic"] == scale["inpaint"]
    assert f"{scale['text']} for words and classes, whatever" in said
    assert f"{scale['layout']} for layouts; {scale['superres']} for pictures and maps" in "".join(said.split("\n"))
    asked, batch = [], scenes_for("superres", SceneConfig(size=32), 1)
    monkeypatch.setattr(everything, "sample", lambda *args, guidance_scale, **more: (
        asked.append(guidance_scale) or torch.zeros(1, 3, 32, 32)))
    for words in (None, {"caption": ["a dog"]}, {"class": torch.tensor([1])}):
        showcase(everything, "superres", batch, words)
    assert asked == [tasks.PICTURE_GUIDANCE, tasks.TEXT_GUIDANCE, tasks.TEXT_GUIDANCE]


def test_the_first_scene_is_the_same_however_many_there_are():
    one, three = (scenes_for("layout", SceneConfig(size=32), num, seed=1) for num in (1, 3))
    assert torch.equal(one["image"][0], three["image"][0])
    assert not {*three["seed"].tolist()} & {*scenes_for("layout", SceneConfig(size=32), 3)["seed"].tolist()}


def with_texts(grid, rows):
    """Whether a grid is as high as `rows` rows of 32-pixel pictures, each with a line of text or more below it."""
    lines = (grid.height - (rows * 34 - 2)) / 12  # pixels of a line at this size
    return lines == int(lines) >= rows


@pytest.mark.parametrize("task", ["layout", "inpaint", "unconditional"])
def test_training_a_single_task(runs, task):
    assert train(runs, task)["val_loss"] > 0
    grid = Image.open(runs / task / "samples" / "step-00000002.png")
    assert grid.width == 8 * 34 - 2 and with_texts(grid, rows=2), "eight true scenes, eight samples"


@pytest.mark.parametrize("task, rows", [("superres", 3), ("semantic", 3), ("inpaint", 3), ("layout", 3), ("text", 2),
                                        ("class", 2), ("unconditional", 1)])
def test_sample_draws_input_output_and_truth(runs, tmp_path, task, rows):
    command(f"sample --task {task} --model {runs / 'all' / 'model'} --num 2 --steps 1", tmp_path / "grid.png")
    grid = Image.open(tmp_path / "grid.png")
    assert grid.width == 2 * 34 - 2 and with_texts(grid, rows)


def test_sample_inpaints_a_file_with_words(runs, tmp_path, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    hole = np.zeros((32, 32), np.uint8)
    hole[8:20, 4:16] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    words = f"sample star --task inpaint --mask {tmp_path / 'hole.png'} --model {runs / 'all' / 'model'}"
    command(f"{words} --image {tmp_path / 'photo.png'} --num 2 --steps 1", tmp_path / "grid.png")
    grid, photo = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("grid.png", "photo.png"))
    outside = hole == 0
    kept = [top for top in range(32, len(grid) - 31) if (grid[top:top + 32, :32] == photo)[outside].all()]
    assert kept, "below the input, with the text between, stands the picture: outside of the hole as it was"
    assert (abs(grid[kept[0]:kept[0] + 32, :32] - photo)[~outside] > 8).any()
    assert main([*words.split(), "--device", "cpu"]) == 2 and "--mask an --image" in capsys.readouterr().err


def test_files_of_every_kind_are_read(tmp_path):
    Image.new("RGB", (50, 40), (255, 0, 0)).save(tmp_path / "red.png")
    lowres = batch_from_files("superres", 64, 2, tmp_path / "red.png")["lowres"]
    assert lowres.shape == (2, 3, 16, 16) and lowres[0, 0].eq(1).all() and lowres[0, 1].eq(-1).all()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "map.png")
    semantic = batch_from_files("semantic", 16, 1, tmp_path / "map.png")["semantic"]
    assert semantic.shape == (1, 16, 16) and semantic[0, ::2, ::2].flatten().tolist() == list(range(64))
    with pytest.raises(ValueError, match="one channel"):
        batch_from_files("semantic", 16, 1, tmp_path / "red.png")
    batch = batch_from_files("inpaint", 32, 2, tmp_path / "red.png")
    assert batch["mask"].shape == (2, 1, 32, 32) and not batch["mask"][0].equal(batch["mask"][1])
    shown = show_inputs("inpaint", batch, (32, 32))
    assert shown[batch["mask"].expand(-1, 3, -1, -1) == 1].eq(0).all()
