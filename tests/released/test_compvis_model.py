"""Whole released models, small and random: YAML and checkpoint in, the same numbers out; nothing foreign is run."""

import os
import pickle
import sys
import zipfile
from types import ModuleType

import compvis_reference as reference
import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_compvis import BASE, CLOSE, STAGES, TEXT
from torch.testing import assert_close

from ldm_mini.autoencoder import Autoencoder
from ldm_mini.cond import Cond
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.released import autoencoder_from_compvis, compvis_model, from_compvis
from ldm_mini.schedule import NoiseSchedule, linear_betas, scaled_linear_betas

T = torch.tensor([0, 999])
UNET, VQ = {**BASE, "num_heads": 4}, STAGES["vq-f4"]
KL = {**{k: v for k, v in VQ.items() if k != "n_embed"}, "ddconfig": {**VQ["ddconfig"], "double_z": True}}


class Released:
    """The YAML content and the weights of a small model, with its checkpoint's other entries."""

    def __init__(self, unet=None, stage=VQ, condition="__is_unconditional__", **params):
        unet = {**UNET, **(unet or {})}
        self.unet_params, self.stage_params = unet, stage
        named = (("unet_config", "ldm.modules.diffusionmodules.openaimodel.UNetModel", unet),
                 ("first_stage_config", "ldm.models.autoencoder.VQModelInterface", stage))
        self.yaml = dict(model=dict(target="ldm.models.diffusion.ddpm.LatentDiffusion", params=dict(
            linear_start=0.0015, linear_end=0.0195, timesteps=1000, image_size=8, channels=3, first_stage_key="image",
            cond_stage_config=condition, **{"concat_mode": False, **params},
            **{key: dict(target=target, params=options) for key, target, options in named})))
        self.params = self.yaml["model"]["params"]
        draw = torch.Generator().manual_seed(2)
        self.x = torch.randn(2, unet["in_channels"], 8, 8, generator=draw)
        self.context = torch.randn(2, 4, 24, generator=draw) if "context_dim" in unet else None
        self.image = torch.rand(2, 3, 32, 32, generator=draw) * 2 - 1
        self.net, self.stage = reference.Weights(3), reference.Weights(4)
        self.out = reference.unet(self.net, unet, self.x, T, self.context)
        h = reference.encode(self.stage, stage, self.image)
        self.z = h if "n_embed" in stage else h[:, :3]
        z_q = reference.nearest_code(self.stage, stage, self.z)[0] if "n_embed" in stage else self.z
        self.decoded = reference.decode(self.stage, stage, z_q)
        betas = scaled_linear_betas().float()
        self.state = {f"model.diffusion_model.{name}": value for name, value in self.net.items()}
        self.state |= {f"first_stage_model.{name}": value for name, value in self.stage.items()}
        self.state |= {"betas": betas, "alphas_cumprod": (1 - betas).cumprod(0), "logvar": torch.zeros(1000),
                       "first_stage_model.loss.logvar": torch.zeros(1)}

    def save(self, folder, name="model.ckpt", **others):
        (folder / "config.yaml").write_text(yaml.safe_dump(self.yaml))
        if name.endswith(".safetensors"):
            save_file({key: value.contiguous() for key, value in self.state.items()}, folder / name)
        else:
            torch.save({"state_dict": self.state, "epoch": 3, "global_step": 1000, **others}, folder / name)
        return folder / "config.yaml", folder / name

    def refused(self, folder, message):
        with pytest.raises(ValueError, match=message):
            from_compvis(*self.save(folder))

    def check(self, ldm):
        with torch.no_grad():
            assert_close(ldm.net(self.x, T, Cond(context=self.context)), self.out, **CLOSE)
            assert_close(ldm.autoencoder.encode(self.image), self.z, **CLOSE)
            assert_close(ldm.autoencoder.decode(self.z), self.decoded, **CLOSE)


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_an_unconditional_model(name, tmp_path):
    released = Released()
    ldm = from_compvis(*released.save(tmp_path, name))
    released.check(ldm)
    assert isinstance(ldm, LatentDiffusion) and not ldm.training and ldm.conditioner is None
    assert ldm.scale_factor.item() == 1 and ldm.image_size == (32, 32) and ldm.prediction == "eps"
    assert_close(ldm.schedule.alphas_cumprod, NoiseSchedule(scaled_linear_betas(1000, 0.0015, 0.0195)).alphas_cumprod)
    image = ldm.sample(num=1, steps=2, seed=0)
    assert image.shape == (1, 3, 32, 32)
    again = LatentDiffusion.from_pretrained(ldm.save_pretrained(tmp_path / "ours"))
    # a view of a file may lie between the boundaries that the fastest kernels want: other kernels, other last bits
    assert_close(again.sample(num=1, steps=2, seed=0), image, atol=1e-4, rtol=0)


def test_averages_are_preferred(tmp_path):
    """LitEma names its weights without dots; those of U-Net alone are averaged."""
    released = Released()
    ema = {"model_ema.diffusion_model" + name.replace(".", ""): value for name, value in released.net.items()}
    released.state |= ema | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    for name in released.net:
        released.state[f"model.diffusion_model.{name}"] = torch.zeros_like(released.net[name])
    released.check(from_compvis(*released.save(tmp_path)))
    for name in released.net:
        del released.state[f"model.diffusion_model.{name}"]
    released.check(from_compvis(*released.save(tmp_path)))      # averages alone will do
    released.state["model_ema.diffusion_modelspam"] = torch.zeros(1)
    released.refused(tmp_path, "spam")


def test_scale_and_schedule(tmp_path):
    assert from_compvis(*Released(stage=KL, scale_factor=0.18215).save(tmp_path)).scale_factor == pytest.approx(0.18215)
    churches = Released(stage=KL, scale_by_std=True)
    churches.refused(tmp_path, "scale_factor")
    churches.state["scale_factor"] = torch.tensor(0.22765929)
    ldm = from_compvis(*churches.save(tmp_path))
    churches.check(ldm)
    assert ldm.scale_factor.item() == pytest.approx(0.22765929)
    churches.params["parameterization"] = "x0"
    churches.state["betas"] = linear_betas(1000).float()        # the checkpoint's own word counts
    ldm = from_compvis(*churches.save(tmp_path))
    assert ldm.prediction == "x0" and ldm.schedule.betas[-1] == pytest.approx(0.02)
    del churches.state["betas"]
    churches.params["beta_schedule"] = "sqrt_linear"
    assert from_compvis(*churches.save(tmp_path)).schedule.config["kind"] == "linear"
    churches.params["beta_schedule"] = "sqrt"
    churches.refused(tmp_path, "'sqrt'")


def embedder(rows):
    return dict(target="ldm.modules.encoders.modules.ClassEmbedder", params=dict(n_classes=rows, embed_dim=24, key="c"))


def test_classes_with_and_without_a_null_row(tmp_path):
    table = torch.randn(7, 24)
    released = Released(TEXT, condition=embedder(7), cond_stage_key="class_label", conditioning_key="crossattn")
    released.state["cond_stage_model.embedding.weight"] = table
    ldm = from_compvis(*released.save(tmp_path))
    released.check(ldm)
    batch = {"class": torch.tensor([2, 6])}
    assert_close(ldm.conditioner.encode(batch).context, table[[2, 6]][:, None], atol=0, rtol=0)
    assert_close(ldm.conditioner.null(batch).context, table[[6, 6]][:, None], atol=0, rtol=0)
    assert ldm.sample(batch, steps=1, guidance_scale=2.0, seed=0).shape == (2, 3, 32, 32)
    again = LatentDiffusion.from_pretrained(ldm.save_pretrained(tmp_path / "ours"))
    assert_close(again.conditioner.encode(batch).context, table[[2, 6]][:, None], atol=0, rtol=0)
    assert_close(ldm.conditioner.encode({"class": [-1]}).context, table[[6]][:, None], atol=0, rtol=0)
    with pytest.raises(IndexError):
        ldm.conditioner.encode({"class": [7]})

    released.params["cond_stage_config"] = embedder(1000)                       # cin256: ImageNet's classes, no more
    released.state["cond_stage_model.embedding.weight"] = torch.randn(1000, 24)
    ldm = from_compvis(*released.save(tmp_path))
    with pytest.raises(ValueError, match="guidance_scale=1"):
        ldm.sample(batch, steps=1, guidance_scale=2.0)
    with pytest.raises(IndexError):
        ldm.conditioner.encode({"class": [-1]})                                 # it has no row for none
    assert ldm.sample(batch, steps=1, guidance_scale=1.0).shape == (2, 3, 32, 32)


class Spelling:
    """A tokenizer: letters as numbers, 0 for padding."""

    def __call__(self, captions, padding, truncation, max_length, return_tensors):
        ids = torch.zeros(len(captions), max_length, dtype=torch.int64)
        for row, caption in zip(ids, captions, strict=True):
            row[:len(caption)] = torch.tensor([ord(letter) - 96 for letter in caption[:max_length]])
        return {"input_ids": ids}


def bert(**options):
    return dict(target="ldm.modules.encoders.modules.BERTEmbedder",
                params=dict(n_embed=24, n_layer=2, vocab_size=30, max_seq_len=9, **options))


@pytest.mark.parametrize("use_tokenizer", [True, False])
def test_text_and_layouts(use_tokenizer, tmp_path):
    released = Released({**TEXT, "legacy": False}, stage=KL, condition=bert(use_tokenizer=use_tokenizer),
                        cond_stage_key="caption" if use_tokenizer else "coordinates_bbox", conditioning_key="crossattn")
    words, ids = reference.Weights(5), Spelling()(["dog", "abcabcabcabc"], None, True, 9, "pt")["input_ids"]
    expected = reference.text_encoder(words, ids, 30, 24, 2, 9)
    released.state |= {f"cond_stage_model.{name}": value for name, value in words.items()}
    ldm = from_compvis(*released.save(tmp_path), tokenizer=Spelling() if use_tokenizer else None)
    released.check(ldm)
    with torch.no_grad():
        if use_tokenizer:
            context = ldm.conditioner.encode({"caption": ["dog", "abcabcabcabc"]}).context
            assert_close(context, expected, **CLOSE)
            empty = ldm.conditioner.null({"caption": ["dog", "abcabcabcabc"]}).context
            assert_close(empty[1], reference.text_encoder(words, ids[:1] * 0, 30, 24, 2, 9)[0], **CLOSE)
            assert ldm.sample({"caption": ["dog"]}, steps=1, guidance_scale=2.0).shape == (1, 3, 32, 32)
            told = ldm.conditioner.remarks({"caption": ["dog", "abcabcabc", "abcabcabcabc"]})
            assert told == ['A caption may have 9 tokens; I do not read the end of "abcabcabcabc".']
        else:
            assert_close(ldm.conditioner.encode({"coordinates_bbox": ids}).context, expected, **CLOSE)
            with pytest.raises(ValueError, match="no tokenizer"):
                ldm.conditioner.encode({"coordinates_bbox": ["dog"]})
            assert ldm.p_uncond == 0


def test_stable_diffusion_1(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tiny = dict(vocab_size=30, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=1,
                max_position_embeddings=9)
    monkeypatch.setattr(compvis_model, "VIT_L14", compvis_model.VIT_L14 | tiny)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2, **tiny)).eval()
    released = Released({**TEXT, "legacy": False}, stage=KL, scale_factor=0.18215, cond_stage_key="txt",
                        condition=dict(target="ldm.modules.encoders.modules.FrozenCLIPEmbedder"),
                        conditioning_key="crossattn", use_ema=False)
    plain = {name.removeprefix("text_model."): value for name, value in text.state_dict().items()}
    released.state |= {f"cond_stage_model.transformer.text_model.{name}": value for name, value in plain.items()}
    released.state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(9)[None]
    ldm = from_compvis(*released.save(tmp_path, "model.safetensors"), tokenizer=Spelling())
    released.check(ldm)
    ids = Spelling()(["dog"], None, True, 9, "pt")["input_ids"]
    with torch.no_grad():
        assert_close(ldm.conditioner.encode({"caption": ["dog"]}).context, text(input_ids=ids).last_hidden_state,
                     **CLOSE)
    assert not any(p.requires_grad for p in ldm.conditioner.parameters()) and ldm.p_uncond == 0.1
    assert not any(v.is_meta for v in (*ldm.parameters(), *ldm.buffers()))


def test_conditions_by_concatenation(tmp_path):
    inpainting = Released(dict(in_channels=7), condition="__is_first_stage__", concat_mode=True)
    inpainting.state |= {f"cond_stage_model.{name}": value for name, value in inpainting.stage.items()}  # stored twice
    ldm = from_compvis(*inpainting.save(tmp_path))
    inpainting.check(ldm)
    image, mask = inpainting.image, torch.zeros(2, 1, 32, 32)
    mask[:, :, 8:20, 4:16] = 1
    masked = (1 - mask) * (image / 2 + 0.5) * 2 - 1             # the released script's arithmetic
    hole = torch.nn.functional.interpolate(mask * 2 - 1, size=(8, 8))
    with torch.no_grad():
        expected = torch.cat([reference.encode(inpainting.stage, VQ, masked), hole], dim=1)
        assert_close(ldm.conditioner.encode({"image": image, "mask": mask}).concat, expected, **CLOSE)
    painted = ldm.sample({"image": image, "mask": mask}, steps=1, guidance_scale=1.0)
    assert torch.equal(painted[:, :, :8], image[:, :, :8])

    sr = Released(dict(in_channels=6), condition=dict(target="torch.nn.Identity"), concat_mode=True)
    ldm = from_compvis(*sr.save(tmp_path))
    small = torch.rand(2, 3, 8, 8)
    assert_close(ldm.conditioner.encode({"lowres": small}).concat, small, atol=0, rtol=0)
    assert ldm.sample({"lowres": small}, steps=1, guidance_scale=1.0).shape == (2, 3, 32, 32)

    condition = dict(target="ldm.modules.encoders.modules.SpatialRescaler",
                     params=dict(n_stages=2, in_channels=5, out_channels=3))
    semantic = Released(dict(in_channels=6), condition=condition, concat_mode=True)
    weight = torch.randn(3, 5, 1, 1)
    semantic.state["cond_stage_model.channel_mapper.weight"] = weight
    ldm = from_compvis(*semantic.save(tmp_path))
    classes = torch.randint(5, (2, 32, 32))
    maps = torch.stack([(classes == c).float() for c in range(5)], dim=1)
    mean = maps.unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean((3, 5))          # halving averages 2 x 2 pixels
    expected = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], mean)
    with torch.no_grad():
        for given in (classes, maps):
            assert_close(ldm.conditioner.encode({"semantic": given}).concat, expected, **CLOSE)


def test_first_stages_have_yaml_files_of_their_own(tmp_path):
    released = Released()
    stage = {**released.stage, "loss.discriminator.main.0.weight": torch.zeros(2)}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dict(model=dict(
        base_learning_rate=4.5e-6, target="ldm.models.autoencoder.VQModel", params={**VQ, "monitor": "val/rec_loss"}))))
    torch.save({"state_dict": stage}, tmp_path / "model.ckpt")
    ours = from_compvis(tmp_path / "config.yaml", tmp_path / "model.ckpt")
    assert isinstance(ours, Autoencoder)
    with torch.no_grad():
        assert_close(ours.encode(released.image), released.z, **CLOSE)


def test_averages_of_a_first_stage_are_taken(tmp_path):
    released = Released()
    stale = {name: value + 1 for name, value in released.stage.items()}
    averages = {f"model_ema.{name.replace('.', '')}": value for name, value in released.stage.items()}
    ours = autoencoder_from_compvis(VQ, {**stale, **averages, "model_ema.decay": torch.tensor(0.999),
                                         "model_ema.num_updates": torch.tensor(3)})
    with torch.no_grad():
        assert_close(ours.encode(released.image), released.z, **CLOSE)


def test_constants_of_a_sampler_are_passed_over(tmp_path):
    """bsr_sr and inpainting_big store DDIM's."""
    released = Released()
    released.state |= {name: torch.rand(200) for name in ("ddim_sigmas", "ddim_alphas", "ddim_alphas_prev",
                                                         "ddim_sqrt_one_minus_alphas")}
    released.check(from_compvis(*released.save(tmp_path)))


@pytest.mark.parametrize("rename, words", [
    (lambda name: f"lora_unet_{name.replace('.', '_')}.lora_up.weight", "seem to be a LoRA"),
    (lambda name: f"lora_unet_{name.replace('.', '_')}.lora.down", "seem to be a LoRA"),
    (lambda name: f"control_model.{name}", "seem to be a ControlNet"),
    (lambda name: f"conditioner.embedders.0.{name}", "seem to be Stable Diffusion XL"),
    (lambda name: f"double_blocks.{name}", "flow matching"),
    (lambda name: f"text_model.{name}", "a text encoder alone"),
    (lambda name: f"first_stage_model.{name}" * 3, None)])
def test_a_wrong_file_is_told_in_few_words(rename, words, tmp_path):
    released = Released()
    released.state = {rename(name): value for name, value in released.state.items()}
    with pytest.raises(ValueError, match=words) as error:
        from_compvis(*released.save(tmp_path, name="model.safetensors"))
    assert len(str(error.value)) < 2000


def test_pickles_are_refused_where_torch_could_be_made_to_run_them(tmp_path, monkeypatch):
    paths = Released().save(tmp_path)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
    with pytest.raises(ValueError, match="is a pickle, and torch 2.9.1 .*install torch 2.10 or newer"):
        from_compvis(*paths)


def test_a_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    paths = Released().save(tmp_path)
    with zipfile.ZipFile(paths[1], "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/bomb", bytes(32 * 2**20))
    with pytest.raises(ValueError, match="would unpack to .*no file of weights"):
        from_compvis(*paths)


class Foreign:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_lightning_objects_are_passed_over_and_others_refused(tmp_path, monkeypatch):
    """Released checkpoints hold Lightning's callbacks; they are not even imported. What else is pickled is refused."""
    monkeypatch.chdir(tmp_path)
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    for i in range(1, 4):
        parent = ".".join(name.split(".")[:i])
        monkeypatch.setitem(sys.modules, parent, module if i == 3 else ModuleType(parent))
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    released = Released()
    callback = module.ModelCheckpoint()
    callback.monitor = "val/loss"
    others = {"callbacks": {module.ModelCheckpoint: {"best": torch.tensor(1.0)}}, "more": [callback]}
    paths = released.save(tmp_path, **others)
    for i in range(1, 4):
        monkeypatch.delitem(sys.modules, ".".join(name.split(".")[:i]))
    released.check(from_compvis(*paths))
    before = set(torch.serialization.get_safe_globals())        # some of torch's own join when it first reads a file
    released.check(from_compvis(*paths))
    assert name not in sys.modules and set(torch.serialization.get_safe_globals()) == before
    assert not any("lightning" in str(allowed) for allowed in before)
    with pytest.raises(ValueError, match="could run foreign code: .*posix.system|could run foreign code: .*nt.system"):
        from_compvis(*released.save(tmp_path, evil=Foreign()))
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"state_dict": Foreign()}))
    with pytest.raises(ValueError):
        from_compvis(paths[0], tmp_path / "old.ckpt")
    assert not (tmp_path / "pwned").exists()


def test_files_that_will_not_do(tmp_path):
    released = Released()
    config, path = released.save(tmp_path)
    for name in ("nothing.ckpt", "nothing.safetensors"):
        with pytest.raises(ValueError, match="nothing.*No such file"):
            from_compvis(config, tmp_path / name)
    for content in (None, "model: 3", "model: {target: a}", "[1, 2]", "model: {target: a, params: 3}"):
        (tmp_path / "bad.yaml").write_text(content) if content else None
        with pytest.raises(ValueError, match="no YAML file"):
            from_compvis(tmp_path / "bad.yaml", path)
    for garbage in (b"garbage", b""):
        (tmp_path / "garbage.ckpt").write_bytes(garbage)
        with pytest.raises(ValueError, match="no file of weights, or a damaged one"):
            from_compvis(config, tmp_path / "garbage.ckpt")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged|foreign"):
        from_compvis(config, path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no state_dict"):
        from_compvis(config, path)


@pytest.mark.parametrize("change, message", [
    (dict(conditioning_key="hybrid"), "Identity by conditioning_key=hybrid"),
    (dict(conditioning_key="crossattn"), "Identity by conditioning_key=crossattn"),
    (dict(cond_stage_config=dict(target="my.Own")), "the condition Own"),
])
def test_conditions_that_nobody_released_are_refused(change, message, tmp_path):
    released = Released(dict(in_channels=6), condition=dict(target="torch.nn.Identity"))
    released.params |= {"concat_mode": True, **change}
    released.refused(tmp_path, message)


def test_what_belongs_nowhere_is_listed(tmp_path):
    released = Released()
    released.state["control_model.weight"] = torch.zeros(1)
    released.refused(tmp_path, "control_model.weight")
    del released.state["control_model.weight"]
    del released.state["first_stage_model.quant_conv.weight"]
    released.refused(tmp_path, r"missing: \['quant_conv.weight'\]")
    released.yaml["model"]["target"] = "ldm.models.diffusion.ddpm.LatentUpscaleDiffusion"
    released.refused(tmp_path, "LatentUpscaleDiffusion")
