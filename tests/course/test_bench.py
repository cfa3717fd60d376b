"""The bench: the two programs it times compute the same thing, and it reports what it measured."""

import time

import bench
import pytest
import torch
from torch.testing import assert_close

from ldm_mini.unet import UNetConfig

TINY = UNetConfig(in_channels=3, channels=32, channel_mults=(1, 2), num_res_blocks=1, attn_levels=(1,), head_dim=16,
                  groups=4, context_dim=12)
CPU = torch.device("cpu")


def test_both_programs_compute_the_same():
    pytest.importorskip("diffusers")
    net = bench._random_unet(TINY, CPU)
    ours, theirs = bench._Ours(net, TINY, 2, CPU), bench._Diffusers(bench._diffusers_twin(net), TINY, 2, CPU)
    t = torch.tensor([3, 700])
    assert_close(ours.z, theirs.z)
    with torch.no_grad():
        assert_close(ours.predict(ours.z, t, ours.cond), theirs.predict(ours.z, t, ours.cond), atol=5e-5, rtol=0)
        assert not torch.allclose(ours.predict(ours.z, t, ours.cond), ours.predict(ours.z, t, ours.null), atol=1e-4)
    assert sum(p.numel() for p in ours.net.parameters()) == sum(p.numel() for p in theirs.net.parameters())


def test_alternate_takes_medians_in_turn():
    order = []

    def program(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)
        return run

    times = bench.alternate({"a": program("a", 0.002), "b": program("b", 0.02)}, rounds=3, device="cpu")
    assert order == ["a", "b"] * 5
    assert 0.002 <= times["a"] < times["b"] and times["b"] >= 0.02


def test_run_bench_reports_all_it_measured(capsys, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setitem(bench.SIZES, "cpu", (TINY, 2))
    report = bench.run_bench("cpu", rounds=1, scenes=2)
    steps = list(report["step"])
    assert steps[:3] == ["train step", "guided sampling step", "guided sampling step, one picture"] and len(steps) == 5
    for t in report["step"].values():
        assert t["ours"] > 0 and t["ratio"] == t["diffusers"] / t["ours"]
    feeding = report["feeding"]
    assert feeding["step_images_per_second"] == 2 / report["step"]["train step"]["ours"]
    assert feeding["workers"] * feeding["scenes_per_second"] >= feeding["step_images_per_second"]
    printed = capsys.readouterr().out
    assert printed.strip() == bench.table(report) and all(step in printed for step in steps)


def test_without_diffusers_it_still_times_ours(monkeypatch):
    monkeypatch.setattr(bench, "diffusers_version", lambda: None)
    steps = bench.bench_unet(TINY, 2, CPU, rounds=1)
    assert len(steps) == 3 and all(t["ratio"] is None and t["ours"] > 0 for t in steps.values())
    report = {"device": "cpu", "threads": 1, "batch": 2, "latent": (3, 16, 16), "step": steps,
              "feeding": {"scenes_per_second": 100.0, "step_images_per_second": 50.0, "workers": 1}}
    assert "pip install diffusers" in bench.table(report) and "| - | - |" in bench.table(report)


def test_a_training_step_changes_the_weights_and_a_sampling_step_does_not():
    net = bench._random_unet(TINY, CPU)
    program, before = bench._Ours(net, TINY, 2, CPU), net.conv_out.weight.clone()
    program.sample()
    assert_close(net.conv_out.weight, before, atol=0, rtol=0)
    program.train()
    assert not torch.equal(net.conv_out.weight, before)


def test_neighbours_are_there_and_gone_and_the_spin_count_is_set(monkeypatch):
    started = []

    class Busy(bench.subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(command, **options)
            started.append(self) if command[-1] == "while True: pass" else None

    monkeypatch.setattr(bench.subprocess, "Popen", Busy)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    drawing = "import os; print(9, *[{None: 4.0, '20000': 3.0}[os.environ.get('GOMP_SPINCOUNT')]] * 3)"
    monkeypatch.setattr(bench, "DRAWING", drawing)
    seconds = bench.bench_neighbours()
    assert seconds == {(spin, count): 3.0 if spin else 4.0 for count in (0, 2) for spin in (None, "20000")}
    assert len(started) == 2 and all(process.wait(10) for process in started)
    assert bench.neighbours_table(seconds).splitlines()[-2:] == ["| unset | 1.00 | 1.00 |", "| 20000 | 0.75 | 0.75 |"]


def test_the_sizes_it_offers_can_be_built():
    for config, batch in bench.SIZES.values():
        with torch.device("meta"):
            assert batch > 0 and sum(p.numel() for p in bench.UNet(config).parameters()) > 1e6
