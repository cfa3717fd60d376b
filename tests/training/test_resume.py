"""A run that is killed, stopped or interrupted goes on bit by bit; nothing that was there is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldm_mini.files import load_safetensors
from ldm_mini.train import FirstStageLoss, Log
from ldm_mini.training import runs
from ldm_mini.training.launch import train_stage
from ldm_mini.training.recipes import AUTOENCODERS, DIFFUSIONS, TEXTS

ROOT = Path(__file__).resolve().parents[2]
PLAIN = FirstStageLoss(perceptual_weight=0.0, disc_weight=0.0)
EVERY = dict(log_every=4, sample_every=10, save_every=8, device="cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """The number of threads decides the order of sums, so the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing a curve takes longer than the steps between two; test_cli looks at one, and who is killed draws too."""
    monkeypatch.setattr(runs, "draw_curve", lambda out: None)


def recipe_of(stage):
    """Of 20 steps: the first stage learns by all of its losses from step 12 on."""
    return replace({"autoencoder": AUTOENCODERS, "diffusion": DIFFUSIONS, "text": TEXTS}[stage]["micro"], steps=20)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    out = tmp_path_factory.mktemp("first") / "run"
    train_stage("autoencoder", replace(recipe_of("autoencoder"), steps=4, loss=PLAIN), out, **EVERY)
    return str(out / "model")


def final(out):
    """Every tensor of the newest training state and of the exported model."""
    files = [runs.latest(out / "checkpoints"), *sorted((out / "model").glob("*.safetensors"))]
    return {f"{file.name}:{name}": value for file in files for name, value in load_safetensors(file).items()
            if not name.startswith("rng.")}


def assert_identical(a, b):
    assert a.keys() == b.keys() and len(a) > 20
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, for instance {different[:4]}"


def timeless(out):
    """The log without what depends on the clock."""
    return [{k: v for k, v in record.items() if k != "images_per_s"} for record in runs.read_log(out)]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("stage", ["autoencoder", "text", "diffusion"])
def test_killed_run_continues_bit_by_bit(stage, tmp_path, first_stage):
    recipe, first = recipe_of(stage), first_stage if stage == "diffusion" else None
    train_stage(stage, recipe, tmp_path / "straight", autoencoder=first, **EVERY)

    out = tmp_path / "killed"
    command = [sys.executable, "-m", "ldm_mini", "train", stage, "--recipe", "micro", "--out", str(out), "--threads",
               "1", "--steps", "20", *sum(([f"--{k.replace('_', '-')}", str(v)] for k, v in EVERY.items()), []),
               *(["--autoencoder", first] if first else [])]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (out / "checkpoints" / "step-00000008.safetensors").is_file() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, f"it ended before it could be killed: {said}"
    reached = int(runs.latest(out / "checkpoints").stem[5:])
    assert 8 <= reached < recipe.steps and not (out / "model").exists()
    with open(out / "log.jsonl", "a") as file:  # as if killed in the middle of a line
        file.write(json.dumps({"step": reached + 1, "loss": 9.0}) + '\n{"step": ')

    assert train_stage(stage, recipe, out, autoencoder=first, resume=True, **EVERY)
    assert_identical(final(tmp_path / "straight"), final(out))
    assert timeless(out) == timeless(tmp_path / "straight")


def test_stopped_by_the_clock_and_continued(tmp_path):
    recipe = replace(recipe_of("autoencoder"), steps=14, loss=FirstStageLoss(perceptual_weight=0.0, disc_start=12))
    assert train_stage("autoencoder", recipe, tmp_path / "straight", **EVERY)
    assert not train_stage("autoencoder", recipe, tmp_path / "stopped", minutes=0.0, **EVERY)
    assert runs.latest(tmp_path / "stopped" / "checkpoints").name == "step-00000001.safetensors"
    assert (tmp_path / "stopped" / "model" / "config.json").is_file(), "a stopped run still leaves a model"
    assert train_stage("autoencoder", recipe, tmp_path / "stopped", resume=True, **EVERY)
    assert_identical(final(tmp_path / "straight"), final(tmp_path / "stopped"))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_finishes_the_step(tmp_path, monkeypatch):
    recipe = replace(recipe_of("autoencoder"), loss=PLAIN)

    def interrupted(logs):
        for log in logs:
            if log.step == 6:
                os.kill(os.getpid(), signal.SIGINT)
            yield log

    follow, handler = runs.follow, signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(runs, "follow", lambda logs, *args, **options: follow(interrupted(logs), *args, **options))
    assert not train_stage("autoencoder", recipe, tmp_path / "run", **EVERY)
    assert runs.latest(tmp_path / "run" / "checkpoints").name == "step-00000006.safetensors"
    assert signal.getsignal(signal.SIGINT) is handler, "the handler must be put back"


def test_a_run_is_never_overwritten(tmp_path):
    out, recipe = tmp_path / "run", replace(recipe_of("autoencoder"), steps=2, loss=PLAIN)
    with pytest.raises(ValueError, match="no run to resume"):
        train_stage("autoencoder", recipe, out, resume=True, **EVERY)
    assert not out.exists()
    train_stage("autoencoder", recipe, out, **EVERY)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="continue it with --resume"):
        train_stage("autoencoder", recipe, out, **EVERY)
    with pytest.raises(ValueError, match=r"lr was 0\.002 and is 0\.5"):
        train_stage("autoencoder", replace(recipe, lr=0.5), out, resume=True, **EVERY)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="already holds files"):
        train_stage("autoencoder", recipe, other, **EVERY)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]


def test_a_run_without_checkpoint_begins_anew(tmp_path):
    out, recipe = tmp_path / "run", {"name": "x"}
    assert runs.open_run(out, recipe) is None
    with pytest.raises(ValueError, match="no checkpoint"):
        runs.open_run(out, recipe, resume=True)
    (out / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert runs.open_run(out, recipe) is None and runs.read_log(out) == []


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoints(tmp_path):
    out, recipe = tmp_path / "run", replace(recipe_of("autoencoder"), steps=20, loss=PLAIN)
    assert not train_stage("autoencoder", recipe, out, minutes=0.0, **EVERY)
    good = runs.latest(out / "checkpoints")

    # it has no state_dict: a broken state must not be saved
    poisoned, logs = SimpleNamespace(rank=0, step=1, accelerator=None), [Log(8, loss=float("nan"), grad_norm=1.0)]
    with pytest.raises(ValueError, match=f"loss became nan by step 8.*{good.name}"):
        runs.follow(logs, poisoned, out, 20, 1, dict, log_every=100, sample_every=100, save_every=8)
    assert runs.latest(out / "checkpoints") == good
