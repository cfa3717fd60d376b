"""The command line, from training to pictures; mistakes end in one line that says what to do."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_mini.__main__ import HELP, evaluate, info, main, sample, train
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.training import load_or_train, recipes, runs

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--device", "cpu", "--steps", "6", "--log-every", "2", "--sample-every", "3", "--save-every", "3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both stages, trained for six steps by the command line."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", "autoencoder", "--recipe", "micro", "--out", str(folder / "ae"), *QUICK]) == 0
    assert main(["train", "diffusion", "--recipe", "micro", "--out", str(folder / "ldm"), "--autoencoder",
                 str(folder / "ae" / "model"), *QUICK]) == 0
    return folder


def fails(capsys, *argv):
    """The one line that a mistake ends in."""
    assert main([str(a) for a in argv]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and "Traceback" not in said
    return said


def test_without_arguments_a_page_of_help(capsys):
    assert main([]) == 0
    page = capsys.readouterr().out
    assert page.strip() == HELP.strip()
    for command in ("sample", "train autoencoder", "train diffusion", "evaluate", "--resume", "accelerate launch"):
        assert command in page


@pytest.mark.parametrize("command", [train, sample, evaluate, info])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main([command.__name__, "--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert command.__doc__.splitlines()[0][:40] in page
    for name, option in signature(command).parameters.items():
        assert "help=" in str(option.annotation) or f"        {name}: " in command.__doc__, name


@pytest.mark.parametrize("stage", ["ae", "ldm"])
def test_training_writes_its_folder(trained, stage):
    out = trained / stage
    records = runs.read_log(out)
    assert [r["step"] for r in records] == [2, 3, 4, 6]
    assert all(r["loss"] > 0 and r["images_per_s"] > 0 for r in records)
    measured = {"ae": {"val_psnr", "val_codes_used"}, "ldm": {"val_loss"}}[stage]
    assert [measured <= r.keys() for r in records] == [False, True, False, True]
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["step-00000003.png", "step-00000006.png"]
    assert Image.open(out / "curve.png").size[0] > 400
    assert [p.name for p in sorted((out / "checkpoints").iterdir())] == [
        "SHA256SUMS", "step-00000003.safetensors", "step-00000006.safetensors"]
    card = json.loads((out / "model" / "config.json").read_text())["card"]
    assert card["steps"] == 6 and card["recipe"]["name"] == "micro" and "torch" in card["hardware"]
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["steps"] == 6 and recipe["scenes"]["size"] == 32
    assert not [p for p in out.rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl")]


def test_sample_writes_the_same_grid_for_the_same_seed(trained, tmp_path, capsys):
    def draw(name, *more):
        assert main(["sample", "a red star", "an apple", "--model", str(trained / "ldm" / "model"), "--num", "4",
                     "--steps", "2", "--device", "cpu", "--out", str(tmp_path / name), *more]) == 0
        return (tmp_path / name).read_bytes()

    first = draw("a.png")
    width, height = Image.open(tmp_path / "a.png").size
    assert width == 4 * 34 - 2 and height > 32, "the captions stand below"
    assert "4 pictures" in capsys.readouterr().out
    assert draw("b.png") == first and draw("c.png", "--seed", "1") != first
    assert draw("d.png", "--class", "apple") != first and draw("e.png", "--sampler", "ddpm") != first
    assert draw("f.png", "--class", " Apple") == draw("d.png", "--class", "apple")
    draw("new/folder/g.png")


def test_the_first_picture_does_not_depend_on_how_many_there_are(trained, tmp_path):
    """Not with fresh noise in every step, either."""
    def first(num, sampler):
        assert main(["sample", *["a red star"] * num, "--model", str(trained / "ldm" / "model"), "--num", str(num),
                     "--steps", "3", "--device", "cpu", "--sampler", sampler, "--out", str(tmp_path / "a.png")]) == 0
        return np.asarray(Image.open(tmp_path / "a.png"))[:32, :32].astype(int)

    for sampler in ("ddpm", "dpm"):
        assert abs(first(1, sampler) - first(3, sampler)).max() <= 1


def test_a_class_that_the_caption_does_not_name_is_a_contradiction(trained, tmp_path, capsys):
    def said(caption, noun):
        main(["sample", caption, "--class", noun, "--model", str(trained / "ldm" / "model"), "--num", "1", "--steps",
              "1", "--device", "cpu", "--out", str(tmp_path / "a.png")])
        return [line for line in capsys.readouterr().err.splitlines() if "told both" in line]

    assert said("a red star", "cat") == ['note: "a red star" names star, the class cat: the model is told both.']
    assert said("a red star", "star") == said("", "cat") == said("on a blue background", "cat") == []


def test_a_word_the_model_does_not_know_is_named(trained, tmp_path, capsys):
    main(["sample", "an aple", "--model", str(trained / "ldm" / "model"), "--num", "1", "--steps", "1", "--device",
          "cpu", "--negative", "a rocket", "--out", str(tmp_path / "a.png")])
    assert capsys.readouterr().err.splitlines()[:2] == ['note: I do not know "aple"; did you mean "apple"?',
        'note: I do not know "rocket". I know: apple, star, car, red, orange, yellow, green, blue ...']


def test_mistakes_end_in_one_line(trained, tmp_path, capsys):
    # the others: test_bad_inputs
    first, second = (["train", stage, "--recipe", "micro", "--out", tmp_path / "x"]
                     for stage in ("autoencoder", "diffusion"))
    assert "no run to resume" in fails(capsys, *first, "--resume")
    assert "--resume" in fails(capsys, *first, "--out", trained / "ae", *QUICK)
    assert "no folder 'nowhere'" in fails(capsys, *second, "--autoencoder", "nowhere", *QUICK)
    for option, value in (("--latents", 9), ("--task", "text"), ("--steps", 0), ("--device", "abacus"),
                          ("--text", trained / "ldm")):
        assert option in fails(capsys, *first, option, value)
    assert "captions" in fails(capsys, *second, "--task", "superres", "--language")
    assert not (tmp_path / "x").exists(), "a refused run must leave nothing behind"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_cuda_asked_for_and_absent(capsys):
    for command in (["train", "autoencoder"], ["sample", "a star"], ["evaluate"]):
        assert "--device cuda: torch finds no such device" in fails(capsys, *command, "--device", "cuda")


def test_start_from_trains_a_saved_model_further(trained, tmp_path, capsys):
    model, first = trained / "ldm" / "model", trained / "ae" / "model"
    argv = ["train", "diffusion", "--recipe", "micro", "--autoencoder", str(first), "--device", "cpu"]
    further = [*argv, "--out", str(tmp_path / "on"), "--start-from", str(model), "--steps", "1", "--lr", "1e-9"]
    assert main(further) == 0
    before, after = (LatentDiffusion.from_pretrained(m).state_dict() for m in (model, tmp_path / "on" / "model"))
    trainable = [name for name in before if name.startswith(("net.", "conditioner."))]
    assert len(trainable) > 20
    for name in trainable:
        torch.testing.assert_close(after[name], before[name], atol=1e-7, rtol=0)
    assert "describes no" in fails(capsys, *argv, "--out", tmp_path / "y", "--start-from", first, "--steps", 1)
    assert "no folder" in fails(capsys, *argv, "--out", tmp_path / "x", "--start-from", "nowhere", "--steps", 1)
    assert not (tmp_path / "x").exists()


def test_films_by_the_command_line(trained, tmp_path, capsys):
    """From an image model to films that move, from a first frame, too, and what is in them."""
    out, first = tmp_path / "films", trained / "ae" / "model"
    train = ["train", "video", "--recipe", "micro", "--out", str(out), "--autoencoder", str(first), *QUICK]
    assert main([*train, "--steps", "2", "--start-from", str(trained / "ldm" / "model")]) == 0
    assert (out / "samples" / "newest.gif").is_file()
    draw = ["sample", "an apple moves up", "--task", "video", "--model", str(out / "model"), "--num", "2", "--steps",
            "1", "--device", "cpu", "--out", str(tmp_path / "film.gif")]
    assert main(draw) == 0 and "2 films in" in capsys.readouterr().out
    told = (tmp_path / "film.gif").read_bytes()
    assert Image.open(tmp_path / "film.gif").n_frames == 3
    width, height = Image.open(tmp_path / "film.png").size
    assert width == 3 * 34 - 2 and height > 2 * 34 - 2, "the captions stand below"
    assert main(draw) == 0 and (tmp_path / "film.gif").read_bytes() == told
    assert main([*draw, "--image", str(tmp_path / "film.png")]) == 0
    assert "--mask is for the task inpaint" in fails(capsys, *draw, "--mask", tmp_path / "film.png")
    assert "describes no LatentVideoDiffusion" in fails(capsys, *draw, "--model", trained / "ldm" / "model")
    assert "It makes films: --task video" in fails(capsys, "sample", "an owl", "--model", out / "model")
    # the shipped one, unless another is given
    assert main(["sample", "a star moves up", "--task", "video", "--num", "1", "--steps", "1", "--out",
                 str(tmp_path / "film.gif")]) == 0 and Image.open(tmp_path / "film.gif").n_frames == 8
    said = fails(capsys, *train, "--recipe", "tiny", "--out", tmp_path / "x")
    assert "there are small, small_time, small_motion, small_paths, small_dit, micro" in said
    assert "video needs a first stage" in fails(capsys, "train", "video", "--recipe", "micro", "--out", tmp_path / "x")
    assert "--task is for diffusion" in fails(capsys, *train, "--task", "text", "--out", tmp_path / "x")
    assert main(["info", str(out / "model")]) == 0
    assert re.search(r"VideoUNet, .*input 7 x 3 x 8 x 8, .*GFLOPs", capsys.readouterr().out)
    assert main(["evaluate", "--model", str(out / "model"), "--num", "8", "--steps", "1", "--device", "cpu"]) == 0
    page = capsys.readouterr().out
    assert "## Held-out things and motions: 8 films" in page and "| real films (ceiling) |" in page
    assert "motion score" in page and "flicker" in page and "First stage" in page


def test_resume_by_the_command_line(trained, capsys):
    def checkpoints():
        return {p.name: p.read_bytes() for p in (trained / "ae" / "checkpoints").iterdir()}

    before = checkpoints()
    assert main(["train", "autoencoder", "--recipe", "micro", "--out", str(trained / "ae"), "--resume", *QUICK]) == 0
    assert "Finished at step 6 of 6" in capsys.readouterr().out and before == checkpoints()


def test_a_transformer_in_the_unets_place_trains_goes_on_draws_and_is_measured(trained, tmp_path, capsys):
    out = tmp_path / "dit"
    argv = ["train", "diffusion", "--recipe", "micro", "--net", "dit", "--out", str(out), "--autoencoder",
            str(trained / "ae" / "model"), *QUICK]
    assert main([*argv, "--minutes", "0"]) == 0 and "Stopped at step 1 of 6" in capsys.readouterr().out
    assert main([*argv, "--resume"]) == 0 and "Finished at step 6 of 6" in capsys.readouterr().out
    model = str(out / "model")
    net = LatentDiffusion.from_pretrained(model).net
    assert type(net).__name__ == "DiT" and net.config.input_size == 8 and net.config.context_dim == 16
    assert main(["sample", "a red star", "--model", model, "--num", "1", "--steps", "2", "--device", "cpu", "--out",
                 str(tmp_path / "grid.png")]) == 0
    assert main(["evaluate", "--model", model, "--num", "8", "--steps", "1", "--device", "cpu"]) == 0
    assert main(["info", model]) == 0 and "DiTBlock" in capsys.readouterr().out
    # a U-Net's weights do not fit it, nor another command
    argv[argv.index(str(out))] = str(tmp_path / "none")
    assert "is a UNet, the recipe's a DiT" in fails(capsys, *argv, "--start-from", trained / "ldm" / "model")
    assert "--net is for diffusion" in fails(capsys, "train", "autoencoder", "--net", "dit")


def test_load_or_train(tmp_path, monkeypatch):
    """The same call loads what is shipped, trains both stages, or continues and then loads what it trained."""
    for table in (recipes.AUTOENCODERS, recipes.DIFFUSIONS):
        monkeypatch.setitem(table, "micro", replace(table["micro"], steps=4))
    shipped = load_or_train(stage="autoencoder")
    assert not shipped.training and shipped.config.downsample_factor == 16
    options = {"out": tmp_path / "run", "device": "cpu", "log_every": 2}
    first = load_or_train(True, "micro", stage="autoencoder", **options)
    both = load_or_train(True, "micro", **options)
    again = load_or_train(True, "micro", **options)
    assert isinstance(both, LatentDiffusion) and not both.training
    torch.testing.assert_close(first.state_dict(), both.autoencoder.state_dict(), rtol=0, atol=0)
    assert both.scale_factor != 1, "the latent scale is measured"
    torch.testing.assert_close(both.state_dict(), again.state_dict())
    with pytest.raises(ValueError, match="no autoencoder recipe 'nope'"):
        load_or_train(True, "nope", out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_evaluate_passes_its_options_on(monkeypatch):
    seen = []
    monkeypatch.setattr("ldm_mini.measure.evaluate.run_evaluate", lambda *args, **more: seen.append((args, more)))
    assert main(["evaluate", "--model", "m", "--task", "class", "--num", "9", "--steps", "3", "--out", "o"]) == 0
    (evaluated, options), = seen
    assert evaluated == ("m", "class") and (options["num"], options["steps"], options["out"]) == (9, 3, Path("o"))


def test_importing_the_package_is_light():
    code = ("import sys, ldm_mini, ldm_mini.__main__ as m; m.main([]); "
            "print([x for x in ('torch', 'numpy', 'transformers', 'matplotlib') if x in sys.modules])")
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith("[]"), said


@pytest.mark.parametrize("given", [None, "7"])
def test_idle_threads_go_to_sleep(given):
    """The OpenMP of torch itself says what it has read; what the user set stays."""
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {name: value for name, value in os.environ.items() if name not in (*names, "OMP_WAIT_POLICY")}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **({name: given for name in names} if given else {})}
    command = [sys.executable, "-m", "ldm_mini", "sample", "a star", "--device", "abacus"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = dict(re.findall(r"(GOMP_SPINCOUNT|KMP_BLOCKTIME)\s*=\s*'(\d+)", done.stdout + done.stderr))
    assert done.returncode == 2 and said, done.stdout + done.stderr
    wanted = {"GOMP_SPINCOUNT": given or "20000", "KMP_BLOCKTIME": given or "1"}
    assert said == {name: wanted[name] for name in said}
