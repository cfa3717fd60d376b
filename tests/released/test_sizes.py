"""What `python -m ldm_mini info` prints: counted by hand, and without any weights."""

import json
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm_mini.__main__ import main
from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.cond import Cond
from ldm_mini.conditioners import ClassConditioner
from ldm_mini.dit import DiT, DiTConfig
from ldm_mini.files import read_json
from ldm_mini.hub import CONFIG, find, save
from ldm_mini.kl import KLBottleneck
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.released.diffusers_pipeline import to_diffusers
from ldm_mini.released.sizes import run_info
from ldm_mini.schedule import NoiseSchedule, scaled_linear_betas
from ldm_mini.unet import UNet, UNetConfig


def row(part, name):
    return next(r for r in part["rows"] if r[0] == name)


def test_stable_diffusion(capsys):
    report = run_info("sd-v1")
    stage, net = report["parts"]["first stage"], report["parts"]["network"]
    assert net["parameters"] == 859_520_964 and stage["parameters"] == 83_653_863 and report["image_size"] == 512
    assert net["flops"] / 1e9 == pytest.approx(803.27, abs=0.01)                # 401.6 GMACs, as others count
    assert net["input"] == (4, 64, 64) and stage["input"] == (3, 512, 512) and net["tokens"] == 77
    for part in (stage, net):
        assert sum(r[4] for r in part["rows"]) == part["parameters"]
        assert sum(r[3] for r in part["rows"]) == part["flops"]
    name, kind, shape, flops, parameters = row(net, "down.0")
    assert (kind, shape) == ("Conv2d", (320, 64, 64)) and parameters == 9 * 4 * 320 + 320
    assert flops == 2 * 9 * 4 * 320 * 64 * 64
    printed = capsys.readouterr().out
    assert "network: UNet, 859,520,964 parameters, input 4 x 64 x 64, 803.3 GFLOPs per step with 77 tokens" in printed
    assert "down.1 - 2" in printed and "2 x ResBlock + SpatialTransformer, each" in printed


def test_presets_know_their_size_and_their_tokens():
    for name, image, tokens in (("cin256-v2", 256, 1), ("bsr_sr", 256, None)):
        report = run_info(name)
        assert report["image_size"] == image and report["parts"]["network"]["tokens"] == tokens
    assert list(run_info("vq-f16")["parts"]) == ["first stage"]
    small, large = (run_info("vq-f4-noattn", size)["parts"]["first stage"]["flops"] for size in (64, 128))
    assert 3.9 < large / small < 4.2
    with pytest.raises(ValueError, match="multiples of 8"):
        run_info("kl-f8", 100)
    with pytest.raises(ValueError, match="sides must be multiples of 32"):
        run_info("emoji-scenes", 48)


def test_the_shipped_model_and_its_tokens():
    parts = run_info("emoji-scenes")["parts"]
    assert list(parts) == ["first stage", "network", "conditioner"] and parts["network"]["tokens"] == 24
    assert parts["conditioner"]["flops"] == 0 and parts["conditioner"]["parameters"] > 0


@pytest.fixture
def trained():
    stage = Autoencoder(AutoencoderConfig(channels=16, groups=4, num_res_blocks=1), KLBottleneck(3))
    net = UNet(UNetConfig(3, channels=16, channel_mults=(1, 2), groups=4, head_dim=8, attn_levels=(1,), context_dim=6))
    schedule = NoiseSchedule(scaled_linear_betas())
    return LatentDiffusion(stage, net, schedule, ClassConditioner(5, 6), image_size=(32, 64))


def test_folders_of_ours_without_their_weights(trained, tmp_path):
    trained.save_pretrained(tmp_path / "run" / "model")
    save(tmp_path / "stage", trained.autoencoder)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    for folder in ("run", "run/model"):                         # the folder of a training, and the model in it
        report = run_info(tmp_path / folder)
        assert {title: part["parameters"] for title, part in report["parts"].items()} == {
            title: sum(p.numel() for p in part.parameters()) for title, part in
            (("first stage", trained.autoencoder), ("network", trained.net), ("conditioner", trained.conditioner))}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trained.net(torch.zeros(1, 3, 8, 8), torch.tensor([1]), Cond(context=torch.zeros(1, 77, 6)))
    counted = run_info(tmp_path / "run")["parts"]["network"]["flops"]
    # torch's CPU attention is not counted by every version; what is must agree
    assert counter.get_total_flops() <= counted <= 1.5 * counter.get_total_flops()
    assert list(run_info(tmp_path / "stage", 64)["parts"]) == ["first stage"]


def test_folders_of_diffusers_without_their_weights(trained, tmp_path):
    to_diffusers(trained, tmp_path / "pipe")
    dit = DiT(DiTConfig(width=16, depth=3, num_heads=2, input_size=8, num_classes=5, time_code_to_the_end=True))
    to_diffusers(dit, tmp_path / "dit")
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    parts = run_info(tmp_path / "pipe")["parts"]
    assert parts["network"]["parameters"] == sum(p.numel() for p in trained.net.parameters())
    assert parts["first stage"]["parameters"] == sum(p.numel() for p in trained.autoencoder.parameters())
    assert run_info(tmp_path / "pipe" / "unet")["parts"]["network"]["parameters"] == parts["network"]["parameters"]
    found = run_info(tmp_path / "dit")["parts"]["network"]
    assert found["parameters"] == sum(p.numel() for p in dit.parameters())
    assert [r[0] for r in found["rows"] if r[1] == "DiTBlock"] == ["blocks.0", "blocks.1", "blocks.2"]


def test_command_line(capsys, tmp_path):
    assert main(["info", "vq-f4", "--size", "64"]) == 0
    assert "first stage: Autoencoder, 55,322,782 parameters, input 3 x 64 x 64" in capsys.readouterr().out
    assert main(["info", str(tmp_path)]) == 2
    assert "no model that is known here" in capsys.readouterr().err


@pytest.mark.parametrize("change, words", [
    (lambda c: c.pop("net"), "it has no net"),
    (lambda c: c["net"]["config"].update(channels="8"), "net, config, channels"),
    (lambda c: c.update(image_size="64"), "image_size"), (lambda c: c.update(image_size=[10**9] * 2), "image_size")])
def test_a_damaged_config_is_one_line_that_names_it(change, words, tmp_path, capsys):
    config = read_json(find("emoji-scenes") / CONFIG)
    change(config)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert main(["info", str(tmp_path)]) == 2
    assert re.fullmatch(f"error: .*{CONFIG}.*{words}.*\n", capsys.readouterr().err)
