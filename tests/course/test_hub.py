"""A part is described by its class and its arguments, and built again from JSON; nothing else can be named."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.conditioners import CombinedConditioner, LayoutConditioner, TextConditioner
from ldm_mini.dit import DiT, DiTConfig
from ldm_mini.files import SUMS, FileError, load_safetensors, read_json, save_safetensors
from ldm_mini.hub import CONFIG, build, describe, find, load, push, save
from ldm_mini.kl import KLBottleneck
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.released.conditioners import ClassTable, ClipText, Labels, RescaledMap, TextEncoder
from ldm_mini.schedule import NoiseSchedule, linear_betas
from ldm_mini.text import TextTransformer
from ldm_mini.training.build import build_autoencoder, build_diffusion
from ldm_mini.training.recipes import AUTOENCODERS, DIFFUSIONS
from ldm_mini.unet import UNet, UNetConfig
from ldm_mini.weights import INDEX, WEIGHTS, weight_files

CLIP = {"vocab_size": 30, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 1,
        "max_position_embeddings": 9}
PARTS = {
    "kl": lambda: Autoencoder(AutoencoderConfig(channels=32, groups=4, attn_levels=(1,)), KLBottleneck(3, 1e-3, "sum")),
    "ema codebook": lambda: VQBottleneck(VectorQuantizer(16, 3, 0.5, 0.99, None, "uniform")),
    "heads of levels": lambda: UNet(UNetConfig(4, channels=32, groups=4, num_heads=(1, 2, 4), attn_levels=(0, 1))),
    "dit": lambda: DiT(DiTConfig(width=32, depth=1, num_heads=4, num_classes=5, own_embeddings=True)),
    "layout": lambda: LayoutConditioner(5, 16, max_objects=2, grid=4, layers=1, heads=2),
    "class table": lambda: ClassTable(11, 8, False, "kind"), "labels": lambda: Labels(10, "kind"),
    "text encoder": lambda: TextEncoder(16, 1, 40, 12, "a/folder", "words"), "no tokenizer": lambda: TextEncoder(
        16, 1, tokenizer=None), "clip": lambda: ClipText(CLIP, "a/folder"),
    "rescaled map": lambda: RescaledMap(7, 4, 3, True, "map"),
}


def round_trip(part):
    """The part after JSON, with the other's weights; it says of itself what the other does, to the types of values."""
    described = json.loads(json.dumps(describe(part)))
    again = build(described)
    again.load_state_dict(part.state_dict())
    assert type(again) is type(part) and json.dumps(describe(again)) == json.dumps(describe(part))
    assert getattr(again, "config", None) == getattr(part, "config", None)
    return again


@pytest.mark.parametrize("name", PARTS)
def test_every_part_comes_back(name):
    part = PARTS[name]()
    assert getattr(round_trip(part), "keys", ()) == getattr(part, "keys", ())


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_first_stage_of_a_recipe_comes_back(name):
    with torch.device("meta"):
        round_trip(build_autoencoder(AUTOENCODERS[name]))


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_every_model_of_a_recipe_comes_back(name):
    recipe = DIFFUSIONS[name]
    ldm = build_diffusion(replace(recipe, channels=32), build_autoencoder(AUTOENCODERS["micro"]), scale_factor=0.7)
    again = round_trip(ldm)
    assert (again.scale_factor, again.image_size) == (ldm.scale_factor, ldm.image_size)
    assert again.schedule.alphas_cumprod.equal(ldm.schedule.alphas_cumprod)


def test_the_shipped_config_is_what_its_model_says():
    stored = read_json(find("emoji-scenes") / CONFIG)
    stored.pop("card")
    ldm = round_trip(LatentDiffusion.from_pretrained("emoji-scenes"))
    said = json.loads(json.dumps(describe(ldm)))
    assert said == stored and list(said) == list(stored)


def test_what_json_cannot_hold_is_left_to_the_default():
    class Words:
        name_or_path = "the/words"

    assert describe(TextEncoder(16, 1, tokenizer=Words()))["tokenizer"] == "the/words"      # it has a name
    text = TextTransformer(16, 1, 2, 9)
    assert "tokenizer" not in describe(text) and describe(text)["width"] == 16
    assert describe(NoiseSchedule(linear_betas(50))) == {
        "class": "schedule.NoiseSchedule", "betas": {"kind": "linear", "steps": 50, "start": 1e-4, "end": 2e-2}}


@pytest.mark.parametrize("name", [
    "files.write_file", "files.Path", "files.json.JSONEncoder", "..os.system", "os.system", ".os.system", "system", "",
    ".", "unet", "unet.", "unet.nn.Conv2d", "unet.Tensor", "unet.EPS", "unet.Step.forward", "hub.nn.Module", "a\0b.c",
    "attention.Attention.__init__", "ldm_mini.unet.UNet", "unet.UNet.UNet", "autoencoder.UNet", "latent_diffusion.hub",
    "autoencoder.ResBlock", "__main__.main", "torch.nn.Linear", "nowhere.UNet", "unet/../unet.UNet", 3, ["unet.UNet"]])
def test_nothing_but_networks_and_configs_can_be_named(name, tmp_path):
    evil = {"class": name, "path": str(tmp_path / "x"), "content": "y"}
    for described in (evil, [evil], {"parts": [evil]}, {"class": "conditioners.CombinedConditioner", "parts": [evil]}):
        with pytest.raises(FileError, match="no part of ldm_mini"):
            build(described)
    assert not list(tmp_path.iterdir())


def test_a_part_of_ones_own_is_named_only():
    class Spy(nn.Linear):
        pass

    class Mine(UNet):
        pass

    net = {"class": "unet.UNet", "config": describe(UNetConfig(4))}
    assert describe(Spy(1, 1)) == {"foreign": "Spy"} and describe(Mine(build(net["config"]))) == {"foreign": "Mine"}
    combined = CombinedConditioner([TextConditioner(Spy(1, 1))])
    assert describe(combined)["parts"][0]["text_transformer"] == {"foreign": "Spy"}
    with pytest.raises(FileError, match="^here, parts, 0, text_transformer: a Spy is no part of ldm_mini"):
        build(describe(combined), "here")
    spy = Spy(1, 1)
    assert build({"class": "conditioners.TextConditioner", "text_transformer": spy}).text_transformer is spy


@pytest.mark.parametrize("change, words", [
    ({"colour": 1}, "colour"), ({"in_channels": None}, "net, config, in_channels: a unet.UNetConfig wants int, not No"),
    ({"channels": "64"}, "net, config, channels: a unet.UNetConfig wants int, not '64'"),
    ({"channels": True}, "net, config, channels: "), ({"groups": 2.0}, "net, config, groups: "),
    ({"attn_levels": 3}, "net, config: no unet"), ({"groups": 0}, "net, config: no unet"),
    ({"attn_levels": [9]}, "attn_levels"), ({"dropout": "x"}, "net, config, dropout: a unet.UNetConfig wants float"),
])
def test_a_wrong_config_names_file_and_key(change, words, tmp_path):
    config = UNetConfig(3, channels=16, channel_mults=(1, 2), attn_levels=(1,), head_dim=16, groups=2)
    ldm = LatentDiffusion(None, UNet(config), NoiseSchedule(linear_betas(10)), image_size=8)
    folder = ldm.save_pretrained(tmp_path)
    assert load(folder, "LatentDiffusion").net.config == config
    stored = read_json(folder / CONFIG)
    stored["net"]["config"] |= change
    (folder / CONFIG).write_text(json.dumps(stored))
    with pytest.raises(FileError, match="config.json is damaged: SHA256SUMS .* delete SHA256SUMS"):
        LatentDiffusion.from_pretrained(folder)
    (folder / SUMS).unlink()
    with pytest.raises(FileError, match=f"{CONFIG}, net.*: (no|a) unet.*") as error:
        LatentDiffusion.from_pretrained(folder)
    assert words in str(error.value) and str(folder) in str(error.value)
    del stored["net"]["config"]
    (folder / CONFIG).write_text(json.dumps(stored))
    with pytest.raises(FileError, match=f"{CONFIG}, net: no unet.UNet can be built.*'config'"):
        LatentDiffusion.from_pretrained(folder)


def test_what_another_model_has_is_read_from_there(tmp_path):
    """Only what differs is stored; a config that names no other model is told by its key."""
    net = UNet(UNetConfig(3, channels=16, channel_mults=(1, 2), attn_levels=(1,), head_dim=16, groups=2))
    ldm = LatentDiffusion(None, net, NoiseSchedule(linear_betas(10)), image_size=8)
    ldm.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        net.conv_out.bias += 1
    folder = save(tmp_path / "more", ldm, base=(tmp_path / "base", {"": ""}))
    assert set(load_safetensors(folder / "model.safetensors")) == {"net.conv_out.bias"}
    assert_close(load(folder, "LatentDiffusion").state_dict(), ldm.state_dict(), rtol=0, atol=0)
    (folder / SUMS).unlink()
    stored = read_json(folder / CONFIG)
    for wrong in (3, {}, {**stored["base"], "model": None}, {**stored["base"], "prefixes": {"": 1}}):
        (folder / CONFIG).write_text(json.dumps({**stored, "base": wrong}))
        with pytest.raises(FileError, match=f"{CONFIG}, base: it names a model"):
            load(folder, "LatentDiffusion")
    (folder / CONFIG).write_text(json.dumps({**stored, "base": {**stored["base"], "model": "owner/name"}}))
    with pytest.raises(FileError, match="on top of owner/name: there is no such folder here"):
        load(folder, "LatentDiffusion")


@pytest.mark.parametrize("change", [{"num_res_blocks": 10**7}, {"channels": 2**16, "groups": 2}])
def test_a_config_cannot_fill_the_memory(change, tmp_path):
    ldm = LatentDiffusion(None, UNet(UNetConfig(3, channels=16, channel_mults=(1, 2), attn_levels=(), groups=2)),
                          NoiseSchedule(linear_betas(10)), image_size=8)
    folder = ldm.save_pretrained(tmp_path)
    stored = read_json(folder / CONFIG)
    stored["net"]["config"] |= change
    (folder / CONFIG).write_text(json.dumps(stored))
    (folder / SUMS).unlink()
    with pytest.raises(FileError, match=f"{CONFIG}.*(larger model than its weights|allocate)"):
        LatentDiffusion.from_pretrained(folder)


@pytest.mark.parametrize("weight_map", [{"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": 3}, {}, [], None])
def test_an_index_names_files_of_its_own_folder_only(weight_map, tmp_path):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(FileError, match="index.json is damaged: its weight_map names no files of this folder"):
        weight_files(tmp_path)


def test_weights_that_changed_are_not_loaded(tmp_path):
    folder = save(tmp_path, VQBottleneck(VectorQuantizer(4, 3)))
    weights = load_safetensors(folder / WEIGHTS)
    save_safetensors(folder / WEIGHTS, {name: value + 1 for name, value in weights.items()})
    with pytest.raises(FileError, match="model.safetensors is damaged"):
        load(folder, "VQBottleneck")
    (folder / SUMS).write_text("no digest\n")
    with pytest.raises(FileError, match="SHA256SUMS is damaged"):
        load(folder, "VQBottleneck")
    (folder / SUMS).unlink()
    load(folder, "VQBottleneck")


class Hub:
    """Stands for the Hugging Face Hub: what was published, by name."""

    kept: dict = {}

    def __init__(self, library_name):
        assert library_name == "ldm_mini"

    def create_repo(self, name, private, exist_ok):
        """A place for a model."""
        if "/" not in name:
            raise ValueError("owner/name")
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, repo_id, folder_path, allow_patterns):
        """Keep the files that may go."""
        self.kept[repo_id] = {path.name: path.read_bytes() for path in folder_path.iterdir()
                              if any(path.match(pattern) for pattern in allow_patterns)}


def test_a_published_model_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    model = build_diffusion(DIFFUSIONS["micro"], build_autoencoder(AUTOENCODERS["micro"]))
    assert model.push_to_hub("someone/tiny", half=True) == "https://huggingface.co/someone/tiny"

    def fetched(name, revision, allow_patterns):
        for file, content in Hub.kept[name].items():
            (tmp_path / file).write_bytes(content)
        return tmp_path

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    again = LatentDiffusion.from_pretrained("someone/tiny").state_dict()
    assert all(torch.equal(again[name].half(), v.half()) for name, v in model.state_dict().items())


def test_only_whole_models_are_published(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    folder = save(tmp_path / "model", build_autoencoder(AUTOENCODERS["micro"]))
    (folder / "README.md").write_text("a card")
    (folder / "notes.txt").write_text("not for others")
    push(folder, "someone/first-stage")
    assert {CONFIG, WEIGHTS, "README.md"} == {*Hub.kept["someone/first-stage"]}
    with pytest.raises(FileError, match="could not be published as 'nameless' .*logged in"):
        push(folder, "nameless")
    with pytest.raises(FileError):
        push(tmp_path, "someone/nothing")
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(FileError, match=WEIGHTS):
        push(folder, "someone/damaged")
