"""The speed-run from beginning to end, in miniature: it counts its legs, judges, stops at the target."""

import json
from dataclasses import replace

import pytest
import torch

from ldm_mini.train import FirstStageLoss
from ldm_mini.training import speedrun as run
from ldm_mini.training.recipes import AUTOENCODERS, DIFFUSIONS, TEXTS

PLAIN = FirstStageLoss(perceptual_weight=0.0, disc_weight=0.0)
ENTRY = run.Entry(
    replace(AUTOENCODERS["micro"], codebook_size=None, steps=4, loss=PLAIN, muon_lr=5e-3), TEXTS["micro"],
    replace(DIFFUSIONS["micro"], parts=("text",), vector=False, posterior=False, steps=8, muon_lr=5e-3, text_lr=0.2),
    sampler_steps=2, look_every=6)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_it_runs_to_its_end_or_to_its_target(tmp_path, capsys):
    line = run.speedrun(ENTRY, tmp_path, target=1.1, captions=8)
    assert (line["reached"], line["steps"]) == (False, 8)
    assert set(line["laps"]) == {"first stage", "text", "latents", "diffusion"} and (tmp_path / "model").is_dir()
    assert abs(line["cpu_seconds"] - sum(line["laps"].values())) <= 2
    assert json.loads((tmp_path / "speedrun.json").read_text()) == line
    assert capsys.readouterr().out.count("exact") == 3, "two looks, and the line"
    again = run.speedrun(ENTRY, target=0.0, captions=8)
    assert (again["reached"], again["steps"]) == (True, 6)


def test_all_its_legs_run_in_bfloat16(monkeypatch):
    monkeypatch.setattr(run, "bf16_pays", lambda device: True)
    half = {leg: replace(getattr(ENTRY, leg), bf16=True) for leg in ("autoencoder", "text", "diffusion")}
    assert run.speedrun(replace(ENTRY, **half), target=0.0, captions=8)["bf16"]


@pytest.mark.parametrize("pays", [True, False])
def test_bfloat16_where_it_is_asked_for_and_pays(monkeypatch, pays):
    monkeypatch.setattr(run, "bf16_pays", lambda device: pays)
    layer = torch.nn.Linear(2, 2)
    assert [run._train_state(replace(TEXTS["micro"], bf16=asked), layer, 0).bf16 for asked in (True, False)] \
        == [pays, False]


def test_the_stopwatch_leaves_out_what_is_paused():
    watch = run.Stopwatch()
    with watch.paused():
        sum(i * i for i in range(2_000_000))
    paused = watch.seconds
    sum(i * i for i in range(2_000_000))
    assert paused < 0.2 * (watch.seconds - paused)
