"""A run that is killed, stopped or interrupted goes on bit by bit; nothing that was there is lost."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.tracking import GeneralTracker

from ldm_mini.files import load_safetensors, save_safetensors
from ldm_mini.train import FirstStageLoss, Log
from ldm_mini.training import runs, stopping
from ldm_mini.training.launch import defaults, train_stage
from ldm_mini.training.recipe import DiTSizes
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
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE"])
def test_whoever_asks_it_to_stop_finds_the_step_finished(tmp_path, monkeypatch, name):
    recipe, number = replace(recipe_of("autoencoder"), loss=PLAIN), getattr(signal, name)

    def closed(text):
        raise BrokenPipeError

    def interrupted(logs):
        for log in logs:
            if log.step == 6 and name == "SIGPIPE":             # the reader of our output has gone
                monkeypatch.setattr(sys.stderr.stream, "write", closed)
                print("is anybody there?", file=sys.stderr)
            elif log.step == 6:
                os.kill(os.getpid(), number)
            yield log

    before = signal.getsignal(number)
    if before is signal.SIG_IGN:                                # as under nohup, and for SIGPIPE in Python
        signal.signal(number, signal.SIG_DFL if name == "SIGHUP" else before)
    follow, handlers = runs.follow, [signal.getsignal(n) for n in stopping.SIGNALS]
    monkeypatch.setattr(runs, "follow", lambda logs, *args, **options: follow(interrupted(logs), *args, **options))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(stopping.Stopped) as stopped:
        train_stage("autoencoder", recipe, tmp_path / "run", **EVERY)
    assert stopped.value.status == 128 + number
    assert runs.latest(tmp_path / "run" / "checkpoints").name == "step-00000006.safetensors"
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert [signal.getsignal(n) for n in stopping.SIGNALS] == handlers, "the handlers must be put back"
    signal.signal(number, before)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_closed_terminal_and_a_closed_pipe_end_the_process_as_unfinished(tmp_path):
    command = [sys.executable, "-m", "ldm_mini", "train", "text", "--recipe", "micro", "--threads", "1", "--steps",
               "100000", "--save-every", "100000", "--log-every", "1", "--out"]
    # whoever runs the tests under nohup would hand its deafness on
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen([*command, str(tmp_path / "hup")], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, preexec_fn=heard)
    while not (tmp_path / "hup" / "log.jsonl").is_file() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    assert process.wait(300) == 129 and runs.latest(tmp_path / "hup" / "checkpoints")
    process = subprocess.Popen([*command, str(tmp_path / "pipe")], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(300) == 141 and runs.latest(tmp_path / "pipe" / "checkpoints")


def test_one_run_a_folder(tmp_path):
    out, recipe = tmp_path / "run", replace(recipe_of("autoencoder"), steps=2, loss=PLAIN)
    with runs.owned(out):
        with pytest.raises(ValueError, match=rf"belongs to a run that is going on \(process {os.getpid()} on"):
            train_stage("autoencoder", recipe, out, **EVERY)
        assert sorted(path.name for path in out.iterdir()) == [".lock", "owner.json"], "the other must not write"
    assert not out.exists()
    # what a process left that was killed
    out.mkdir()
    (out / ".lock").touch()
    (out / "owner.json").write_text('{"process": 1, "host": "elsewhere"}')
    assert train_stage("autoencoder", recipe, out, **EVERY)
    assert not (out / ".lock").exists() and not (out / "owner.json").exists()


def test_the_first_stage_is_known_by_its_content(tmp_path, first_stage, monkeypatch):
    def train(first, **options):
        return train_stage("diffusion", recipe, tmp_path / "run", autoencoder=first, **EVERY, **options)

    recipe = replace(recipe_of("diffusion"), steps=6)
    shutil.copytree(first_stage, tmp_path / "a" / "model")
    assert not train(str(tmp_path / "a" / "model"), minutes=0.0)
    monkeypatch.chdir(tmp_path)
    assert not train("./a//model/", minutes=0.0, resume=True)
    shutil.move(tmp_path / "a" / "model", tmp_path / "b")
    assert not train("b", minutes=0.0, resume=True)
    # the same place, another model
    other = load_safetensors(tmp_path / "b" / "model.safetensors")
    save_safetensors(tmp_path / "b" / "model.safetensors", {name: value + 1 for name, value in other.items()})
    with pytest.raises(ValueError, match="another recipe: weights was .*'autoencoder'"):
        train("b", resume=True)


def test_a_finished_run_can_go_on(tmp_path, capsys):
    recipe = replace(recipe_of("autoencoder"), steps=2, loss=PLAIN)
    assert train_stage("autoencoder", recipe, tmp_path / "run", **EVERY)
    assert train_stage("autoencoder", replace(recipe, steps=4), tmp_path / "run", resume=True, **EVERY)
    assert "4 steps in place of 2: the learning rate goes on" in capsys.readouterr().out
    assert runs.latest(tmp_path / "run" / "checkpoints").stem == "step-00000004"
    with pytest.raises(ValueError, match="steps was 4 and is 2"):
        train_stage("autoencoder", recipe, tmp_path / "run", resume=True, **EVERY)


@pytest.mark.parametrize("damage", ["header", "tensor", "other step", "gone"])
def test_a_damaged_checkpoint_is_passed_over_with_a_word(tmp_path, damage, capsys):
    recipe = replace(recipe_of("autoencoder"), steps=4, loss=PLAIN)
    straight, out, every = tmp_path / "straight", tmp_path / "run", {**EVERY, "save_every": 2}
    for folder in (straight, out):
        assert train_stage("autoencoder", recipe, folder, **every)
    old, new = sorted((out / "checkpoints").glob("step-*"))
    content = bytearray(new.read_bytes())
    if damage == "other step":
        content = bytearray(old.read_bytes())
    else:
        content[20 if damage == "header" else -20] ^= 1
    new.unlink() if damage == "gone" else new.write_bytes(content)
    shutil.rmtree(out / "model")
    assert train_stage("autoencoder", recipe, out, resume=True, **every)
    said = capsys.readouterr().out
    assert ("step-00000004.safetensors is damaged and passed over" in said) == (damage != "gone")
    assert_identical(final(straight), final(out))


def test_a_bad_line_of_the_log_is_the_only_one_lost(tmp_path):
    recipe = replace(recipe_of("autoencoder"), steps=3, loss=PLAIN)
    assert train_stage("autoencoder", recipe, tmp_path / "run", **{**EVERY, "log_every": 1})
    log = tmp_path / "run" / "log.jsonl"
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([lines[0], b'{"step": \xff', b"[]", lines[1][:9], *lines[2:]]) + b"\n")
    assert train_stage("autoencoder", replace(recipe, steps=4), tmp_path / "run", resume=True,
                       **{**EVERY, "log_every": 1})
    assert [record["step"] for record in runs.read_log(tmp_path / "run")] == [1, 3, 4]


def test_damaged_latents_are_encoded_anew(tmp_path, first_stage, capsys):
    recipe, out = replace(recipe_of("diffusion"), steps=2), tmp_path / "run"
    assert train_stage("diffusion", recipe, out, autoencoder=first_stage, **EVERY)
    before = (out / "latents" / "latents.json").read_bytes()
    (out / "latents" / "latents.json").write_text(before.decode().replace("a ", "the ", 1))
    assert train_stage("diffusion", replace(recipe, steps=3), out, autoencoder=first_stage, resume=True, **EVERY)
    assert "latents.json is damaged" in capsys.readouterr().out
    assert (out / "latents" / "latents.json").read_bytes() == before


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
    runs.open_run(out, recipe, runs.find_checkpoint(out, recipe))
    with pytest.raises(ValueError, match="no checkpoint"):
        runs.find_checkpoint(out, recipe, resume=True)
    (out / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    runs.open_run(out, recipe, runs.find_checkpoint(out, recipe))
    assert runs.read_log(out) == []


def test_a_run_of_a_time_without_some_setting_goes_on_if_that_is_at_its_default(tmp_path):
    out, recipe = tmp_path / "run", recipe_of("text")
    assert not train_stage("text", recipe, out, minutes=0.0, **EVERY)
    saved = json.loads((out / "recipe.json").read_text())
    assert saved.pop("grad_clip") == 1.0
    (out / "recipe.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"grad_clip was 1\.0 and is 2\.0"):
        train_stage("text", replace(recipe, grad_clip=2.0), out, resume=True, **EVERY)
    assert train_stage("text", recipe, out, resume=True, **EVERY)


def test_a_card_counts_the_minutes_of_all_its_sessions(tmp_path):
    out, recipe = tmp_path / "run", recipe_of("text")
    assert not train_stage("text", recipe, out, minutes=0.0, **EVERY)
    first, log = runs.read_log(out)[0], out / "log.jsonl"
    log.write_text(json.dumps({**first, "images_per_s": recipe.batch_size / 600}) + "\n")    # a step of ten minutes
    assert train_stage("text", recipe, out, resume=True, **EVERY)
    assert 10 <= json.loads((out / "model" / "config.json").read_text())["card"]["minutes"] < 11


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_a_run_of_a_time_without_transformers_goes_on(name):
    """Its recipe knows of no `net` and of no sizes of another one."""
    recipe = DIFFUSIONS[name]
    said, unsaid = asdict(recipe), defaults(recipe)
    assert {key: unsaid[key] for key in ("net", "dit")} == {"net": "unet", "dit": said["dit"]}
    assert defaults(replace(recipe, net="dit"))["dit"] == asdict(DiTSizes())


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoints(tmp_path):
    out, recipe = tmp_path / "run", replace(recipe_of("autoencoder"), steps=20, loss=PLAIN)
    assert not train_stage("autoencoder", recipe, out, minutes=0.0, **EVERY)
    good = runs.latest(out / "checkpoints")

    # it has no state_dict: a broken state must not be saved
    poisoned, logs = SimpleNamespace(rank=0, step=1, accelerator=None), [Log(8, loss=float("nan"), grad_norm=1.0)]
    with pytest.raises(ValueError, match=f"loss became nan by step 8.*{good.name}"):
        runs.follow(logs, poisoned, out, 20, 1, dict, log_every=100, sample_every=100, save_every=8)
    assert runs.latest(out / "checkpoints") == good


class Kept(GeneralTracker):
    """A tracker that keeps what it is told."""

    name, requires_logging_directory = "kept", False

    def __init__(self):
        super().__init__()
        self.config, self.records = None, []

    @property
    def tracker(self):
        """What accelerate asks for."""
        return self.records

    def store_init_configuration(self, values):
        """What is trained."""
        self.config = values

    def log(self, values, step=None, **options):
        """A record, and its step."""
        self.records.append((step, values))


def test_a_tracker_hears_what_the_log_holds(tmp_path):
    recipe, kept = replace(recipe_of("autoencoder"), steps=20, loss=PLAIN), Kept()
    assert train_stage("autoencoder", recipe, tmp_path / "run", track=kept, **EVERY)
    log = runs.read_log(tmp_path / "run")
    assert kept.records == [(record["step"], record) for record in log] and len(log) == 6
    assert kept.config == {"stage": "autoencoder", "recipe": "micro", "seed": 0}
    with pytest.raises(ValueError, match="--track nobody: accelerate knows no such tracker"):
        train_stage("autoencoder", recipe, tmp_path / "other", track="nobody", **EVERY)
    assert not (tmp_path / "other").exists()
