"""What a command line may not ask for is refused in one line before anything is computed or written."""

import os
import re
import shlex
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from ldm_mini import options
from ldm_mini.__main__ import evaluate, info, main, sample, speedrun, train
from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.files import FileError, writable_folder
from ldm_mini.hub import save
from ldm_mini.kl import KLBottleneck
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.samplers import SAMPLERS
from ldm_mini.show.plotting import save_grid, to_uint8
from ldm_mini.text import TextTransformer
from ldm_mini.training import stages

SECOND = "train diffusion --recipe micro --device cpu --out runs/new --autoencoder"
REFUSED = {
    **{f"{command} --{option} {value}": f"--{option} must be from .*, got {told}"
       for command in ("sample owl", "evaluate", "train autoencoder", "info sd-v1", "speedrun")
       for option, value, told in (
           ("threads", "0", "0"), ("threads", "100000", "100000"), ("workers", "100000", "100000"),
           ("workers", "-1", "-1"), ("num", "10000000", "10000000"), ("num", "0", "0"), ("size", "100000", "100000"),
           ("size", "0", "0"), ("size", "-64", "-64"), ("steps", "0", "0"), ("steps", "-5", "-5"),
           ("guidance-scale", "nan", "nan"), ("guidance-scale", "inf", "inf"), ("guidance-scale", "1e30", "1e.30"),
           ("minutes", "nan", "nan"), ("minutes", "-1", "-1.0"), ("lr", "0", "0.0"),
           ("lr", "nan", "nan"), ("lr", "inf", "inf"), ("batch-size", "0", "0"), ("latents", "-1", "-1"),
           ("log-every", "0", "0"), ("sample-every", "0", "0"), ("save-every", "-2", "-2"), ("seed", "-1", "-1"),
           ("seed", "18446744073709551615", "18446744073709551615"))
       if option in {"sample owl": "threads num size steps guidance-scale seed", "info sd-v1": "size",
                     "evaluate": "threads num steps guidance-scale seed", "speedrun": "seed",
                     "train autoencoder": "threads workers minutes lr steps batch-size latents log-every sample-every "
                                          "save-every seed"}[command].split()},
    **{f"sample owl --out {name}": "name of a picture, ending with .png"
       for name in ("x.xyz", "x", ".", "folder", "x.png.txt", "''")},
    **{f"{command} --out {place}": rf"--out {told}\S* cannot be written: .* is no folder"
       for place, told in (("file/x", "file"), ("file/deep/x", "file"))
       for command in ("train text --recipe micro", "evaluate", "speedrun")},
    "sample owl --out file/x.png": "--out file cannot be written",
    "train text --recipe micro --out file": "--out file cannot be written",
    "sample owl --num 50000 --size 4096": "take .* GB of memory or more, and here are",
    f"{SECOND} nowhere": "no folder 'nowhere'",
    f"{SECOND} text": "describes no Autoencoder",
    f"{SECOND} whole --latents 3": "--latents 3 do not fill one batch of 4",
    f"{SECOND} whole --batch-size 1000": "do not fill one batch of 1000",
    f"{SECOND} coarse": "latents of 1 x 1 do not fit this recipe's network",
    f"{SECOND} whole --text whole": "describes no TextTransformer",
    f"{SECOND} whole --text text --task unconditional": "--text: this recipe or task reads no captions",
    f"{SECOND} whole --start-from whole": "describes no LatentDiffusion",
    f"{SECOND} holed": "holed.* not finite: these are no trained weights",
    "train autoencoder --recipe micro --start-from coarse --out runs/new": "differs from the recipe's",
    "train autoencoder --autoencoder whole": "--autoencoder is for diffusion",
    "train text --start-from whole": "--start-from is for autoencoder, diffusion, video; this is train text",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with first stages that can be used, and that cannot."""
    folder = tmp_path_factory.mktemp("door")
    torch.manual_seed(0)
    for name, factor in (("whole", 4), ("coarse", 32), ("holed", 4)):
        stage = Autoencoder(AutoencoderConfig(downsample_factor=factor, channels=8, groups=4, num_res_blocks=1,
                                              channel_mults=(1,) * factor.bit_length()), KLBottleneck(3))
        if name == "holed":
            torch.nn.init.constant_(next(stage.parameters()), float("nan"))
        save(folder / name, stage)
    save(folder / "text", TextTransformer(16, 1, 2))
    (folder / "file").write_text("no folder")
    (folder / "folder").mkdir()
    return folder


def files(folder: Path) -> dict:
    """Everything below a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("words", REFUSED)
def test_it_is_refused_in_one_line_and_nothing_is_written(place, monkeypatch, capsys, words):
    monkeypatch.chdir(place)
    before, threads = files(place), torch.get_num_threads()
    computed = []
    for kind, name in ((LatentDiffusion, "sample"), (stages.Run, "begin"), (Autoencoder, "encode")):
        monkeypatch.setattr(kind, name, lambda *args, **more: computed.append(args))
    assert main(shlex.split(words)) == 2
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 1 and len(said.err) < 400 and not said.out
    assert not computed and files(place) == before and torch.get_num_threads() == threads
    assert re.search(REFUSED[words], said.err), said.err


def test_a_refused_run_is_not_in_the_way_of_the_next(place, monkeypatch):
    monkeypatch.chdir(place)
    words = shlex.split(f"{SECOND} text --steps 1 --latents 8")
    assert main(words) == 2 and not Path("runs").exists()
    assert main([*words[:-5], "whole", *words[-4:]]) == 0 and Path("runs/new/model/config.json").is_file()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_others(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="cannot be written: .*Permission denied"):
        writable_folder(tmp_path / "a" / "b")


def test_a_folder_that_can_be_made_is_only_looked_at(tmp_path):
    assert writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("show", [lambda x: save_grid(x, "x.png"), lambda x: save_grid([x, x], "x.png"), to_uint8])
def test_a_picture_of_nan_is_refused(tmp_path, monkeypatch, show):
    monkeypatch.chdir(tmp_path)
    images = torch.zeros(3, 3, 8, 8)
    images[1, 0, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="of . pictures hold values that are no numbers"):
        show(images)
    assert not any(tmp_path.iterdir())


def test_a_model_that_draws_nan_leaves_no_picture(tmp_path, monkeypatch, capsys):
    nothing = torch.full((2, 3, 8, 8), torch.nan)
    monkeypatch.setattr(LatentDiffusion, "sample", lambda self, batch, **more: nothing)
    assert main(["sample", "an owl", "--num", "2", "--out", str(tmp_path / "x.png")]) == 2
    assert "2 of 2 pictures hold values that are no numbers" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")])
def test_too_little_memory_is_told(monkeypatch, capsys, tmp_path, error):
    def draw(*args, **more):
        raise error

    monkeypatch.setattr(LatentDiffusion, "sample", draw)
    assert main(["sample", "an owl", "--out", str(tmp_path / "x.png")]) == 1
    assert "too little memory" in capsys.readouterr().err


def test_every_number_of_the_command_line_has_its_bounds():
    """An option that takes a number without bounds would be the next hole in the door."""
    for command in (train, sample, evaluate, info, speedrun):
        for name, hint in get_type_hints(command, include_extras=True).items():
            numbers = {int, float, Path} & {part for part in _parts(hint)}
            outputs = name not in ("image", "mask", "return")
            assert not (numbers and outputs) or options._checks(hint), f"{command.__name__} --{name}"


def _parts(hint):
    yield hint
    for part in get_args(hint):
        yield from _parts(part)


def test_the_samplers_are_those_there_are():
    assert set(get_args(options.SamplerName)) == set(SAMPLERS)
