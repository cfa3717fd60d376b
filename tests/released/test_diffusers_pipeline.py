"""Whole pipelines: diffusers' Stable Diffusion draws the same picture here, and models trained here draw it there."""

import json
import shutil

import pytest
import torch
from test_diffusers_parts import CLOSE, awake
from torch.testing import assert_close

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.dit import DiT, DiTConfig
from ldm_mini.files import FileError
from ldm_mini.kl import KLBottleneck
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.released.conditioners import Labels
from ldm_mini.released.diffusers_pipeline import from_diffusers, to_diffusers
from ldm_mini.released.names import COMPVIS_BETAS, DIFFUSERS_BETAS, betas_of
from ldm_mini.released.sizes import run_info
from ldm_mini.schedule import NoiseSchedule, RectifiedFlow, cosine_betas, scaled_linear_betas
from ldm_mini.unet import UNet, UNetConfig

diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
CAPTIONS = ["a cat", "cab at a bat"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tiny_tokenizer(folder):
    letters = "abct"
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "at</w>", "ca", "<|startoftext|>",
                  "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\na t</w>\nc a\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12,
                                      unk_token="<|endoftext|>", bos_token="<|startoftext|>", eos_token="<|endoftext|>",
                                      pad_token="<|endoftext|>")


def stable_diffusion(folder, version=1, **scheduler):
    """A pipeline of Stable Diffusion's shape, small and random, saved."""
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=12, hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=12, bos_token_id=10, eos_token_id=11, pad_token_id=11,
        hidden_act="quick_gelu" if version == 1 else "gelu"))
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8,
        attention_head_dim=8 if version == 1 else [2, 4], use_linear_projection=version == 2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    vae = diffusers.AutoencoderKL(block_out_channels=(32, 64), latent_channels=4, norm_num_groups=8, sample_size=16,
                                  down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    scheduler = diffusers.DDIMScheduler(**{**dict(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="epsilon" if version == 1 else "v_prediction"), **scheduler})
    pipe = diffusers.StableDiffusionPipeline(
        vae=awake(vae), text_encoder=text.eval(), tokenizer=tiny_tokenizer(folder.with_name("words")), unet=awake(unet),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return pipe


@pytest.mark.parametrize("version", [1, 2])
def test_stable_diffusion_draws_the_same_picture(version, tmp_path):
    pipe = stable_diffusion(tmp_path / "sd", version)
    ldm = from_diffusers(tmp_path / "sd")
    assert not ldm.training and ldm.image_size == (16, 16) and ldm.scale_factor.item() == pytest.approx(0.18215)
    assert ldm.prediction == ("eps" if version == 1 else "v") and ldm.p_uncond == 0.1
    with torch.no_grad():
        assert_close(ldm.conditioner.encode({"caption": CAPTIONS}).context, pipe.encode_prompt(
            CAPTIONS, torch.device("cpu"), 1, False)[0], **CLOSE)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = pipe(CAPTIONS, latents=z, num_inference_steps=4, guidance_scale=3.0, output_type="pt").images * 2 - 1
    ask = dict(guidance_scale=3.0, sampler="ddim", offset=1, spacing="leading", clean_end=False, seed=0)
    assert theirs.std() > 0.1
    assert_close(ldm.sample({"caption": CAPTIONS}, steps=4, **ask), theirs, atol=2e-4, rtol=0)
    negative = pipe(CAPTIONS, negative_prompt=["bat"] * 2, latents=z, num_inference_steps=2, output_type="pt",
                    guidance_scale=3.0).images * 2 - 1
    ours = ldm.sample({"caption": CAPTIONS}, steps=2, negative="bat", **ask)
    assert_close(ours, negative, atol=2e-4, rtol=0)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_that_could_not_draw_is_refused(tmp_path):
    stable_diffusion(tmp_path / "sd")
    config = json.loads((tmp_path / "sd" / "unet" / "config.json").read_text())
    index = tmp_path / "sd" / "model_index.json"

    def unet(**changes):
        shutil.rmtree(tmp_path / "sd" / "unet")
        diffusers.UNet2DConditionModel.from_config({**config, **changes}).save_pretrained(tmp_path / "sd" / "unet")

    unet(in_channels=9)
    with pytest.raises(FileError, match="reads 5 further channels, as those of inpainting.*unet_from_diffusers"):
        from_diffusers(tmp_path / "sd")
    unet(cross_attention_dim=48)
    with pytest.raises(FileError, match="tokens of width 48, where the folder's text encoder makes 32"):
        from_diffusers(tmp_path / "sd")
    unet(class_embed_type="simple_projection", projection_class_embeddings_input_dim=20)
    with pytest.raises(FileError, match="a vector of width 20"):
        from_diffusers(tmp_path / "sd")
    unet()
    edit(index, text_encoder=[None, None])
    with pytest.raises(FileError, match="tokens of width 32, where the folder's text encoder makes none"):
        from_diffusers(tmp_path / "sd")
    for path in (tmp_path / "sd" / "unet", index, tmp_path / "nowhere"):
        with pytest.raises(FileError, match="model_index.json does not exist"):
            from_diffusers(path)


@pytest.mark.parametrize("config, told", [
    (dict(_class_name="FlowMatchEulerDiscreteScheduler"), "FlowMatchEulerDiscreteScheduler.*RectifiedFlow"),
    (dict(_class_name="FlowMatchHeunDiscreteScheduler", shift=3.0), "FlowMatchHeunDiscreteScheduler"),
    (dict(_class_name="DPMSolverMultistepScheduler", use_flow_sigmas=True), "DPMSolverMultistep.*flow matching"),
    (dict(prediction_type="flow_prediction"), "'flow_prediction'"), (dict(prediction_type="edm"), "'edm'"),
    (dict(_class_name="EDMEulerScheduler"), "EDMEulerScheduler; known are those of betas"),
    (dict(_class_name="CMStochasticIterativeScheduler"), "CMStochastic"), (dict(_class_name="ScoreSdeVeScheduler"),
                                                                          "ScoreSdeVe"),
    (dict(_class_name="DDPMWuerstchenScheduler"), "Wuerstchen"), (dict(_class_name=None), "None")])
def test_other_schedules_are_refused_by_name(config, told, tmp_path):
    stable_diffusion(tmp_path / "sd")
    edit(tmp_path / "sd" / "scheduler" / "scheduler_config.json", **config)
    with pytest.raises(FileError, match=told):
        from_diffusers(tmp_path / "sd")


def test_pictures_need_not_be_square(tmp_path):
    stable_diffusion(tmp_path / "sd")
    edit(tmp_path / "sd" / "unet" / "config.json", sample_size=[8, 12])
    ldm = from_diffusers(tmp_path / "sd")
    assert ldm.sample({"caption": ["cab"]}, steps=1, seed=0).shape == (1, 3, 16, 24)
    assert run_info(tmp_path / "sd")["image_size"] == 24


def test_half_precision_holds_one_copy_and_runs_under_autocast(tmp_path):
    stable_diffusion(tmp_path / "sd")
    full, half = from_diffusers(tmp_path / "sd"), from_diffusers(tmp_path / "sd", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = half.sample({"caption": CAPTIONS}, steps=2, guidance_scale=2.0, seed=0)
    exact = full.sample({"caption": CAPTIONS}, steps=2, guidance_scale=2.0, seed=0)
    assert image.dtype == torch.float32 and (image - exact).abs().mean() < 0.1


def test_stable_diffusion_is_kept_and_goes_back(tmp_path):
    pipe = stable_diffusion(tmp_path / "sd")
    assert list(run_info(tmp_path / "sd")["parts"]) == ["first stage", "network", "conditioner"]
    ldm, ask = from_diffusers(tmp_path / "sd"), dict(steps=2, guidance_scale=2.0, seed=0)
    again = LatentDiffusion.from_pretrained(ldm.save_pretrained(tmp_path / "ours"))
    assert_close(again.sample({"caption": CAPTIONS}, **ask), ldm.sample({"caption": CAPTIONS}, **ask), atol=0, rtol=0)
    to_diffusers(ldm, tmp_path / "back")
    back = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "back")
    back.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 8, 8)
    back.scheduler = pipe.scheduler                             # ours visits other timesteps by default
    images = [p("a cat", latents=z, num_inference_steps=3, output_type="pt").images for p in (pipe, back)]
    assert_close(images[0], images[1], **CLOSE)


@pytest.mark.parametrize("kind, betas", [("vq", scaled_linear_betas(1000, 0.001, 0.02)), ("kl", cosine_betas())])
def test_an_unconditional_model_trained_here_draws_the_same_there(kind, betas, tmp_path):
    config = AutoencoderConfig(latent_channels=3, channels=16, groups=4, num_res_blocks=1)
    stage = Autoencoder(config, KLBottleneck(3) if kind == "kl" else VQBottleneck(VectorQuantizer(64, 3)))
    net = UNet(UNetConfig(3, channels=32, channel_mults=(1, 2), num_res_blocks=1, attn_levels=(1,), groups=8))
    ldm = LatentDiffusion(awake(stage), awake(net), NoiseSchedule(betas), scale_factor=0.7, image_size=32)
    to_diffusers(ldm, tmp_path)
    pipe = diffusers.LDMPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(batch_size=2, generator=torch.Generator().manual_seed(3), num_inference_steps=5, output_type="np")
    ours = ldm.sample(num=2, steps=5, sampler="ddim", seed=3)
    assert_close(ours.permute(0, 2, 3, 1) / 2 + 0.5, torch.from_numpy(theirs.images), atol=2e-4, rtol=0)
    again = from_diffusers(tmp_path)
    assert_close(again.sample(num=2, steps=5, sampler="ddim", seed=3), ours, atol=1e-5, rtol=0)
    assert again.schedule.num_steps == 1000 and again.conditioner is None and again.image_size == (32, 32)


def test_a_dit_pipeline(tmp_path):
    net = DiT(DiTConfig(width=16, depth=1, num_heads=2, input_size=8, num_classes=1000, out_channels=8,
                        time_code_to_the_end=True))
    stage = Autoencoder(AutoencoderConfig(latent_channels=4, channels=16, groups=4, num_res_blocks=1), KLBottleneck(4))
    ldm = LatentDiffusion(awake(stage), awake(net), NoiseSchedule(scaled_linear_betas()), Labels(1000), image_size=32)
    to_diffusers(ldm, tmp_path)
    assert not (tmp_path / "model_index.json").exists()         # diffusers' own pipeline needs names of the classes
    parts = {"transformer": diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "transformer"),
             "vae": diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae"),
             "scheduler": diffusers.DDIMScheduler.from_pretrained(tmp_path / "scheduler")}
    pipe = diffusers.DiTPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipe")
    theirs = pipe([1, 4], guidance_scale=2.0, num_inference_steps=3, generator=torch.Generator().manual_seed(3),
                  output_type="np").images
    ask = dict(steps=3, guidance_scale=2.0, sampler="ddim", seed=3)
    ours = from_diffusers(tmp_path / "pipe").sample({"class": torch.tensor([1, 4])}, **ask)
    assert_close(ours, ldm.sample({"class": [1, 4]}, **ask), atol=1e-5, rtol=0)
    assert_close(ours.permute(0, 2, 3, 1) / 2 + 0.5, torch.from_numpy(theirs), atol=2e-4, rtol=0)
    kept = LatentDiffusion.from_pretrained(ldm.save_pretrained(tmp_path / "kept"))
    assert_close(kept.sample({"class": [1, 4]}, **ask), ldm.sample({"class": [1, 4]}, **ask), atol=0, rtol=0)


def test_one_word_for_two_schedules():
    """CompVis' "linear" is diffusers' "scaled_linear"."""
    ask = dict(beta_start=0.001, beta_end=0.02)
    theirs = {word: diffusers.DDIMScheduler(beta_schedule=word, **ask).betas for word in DIFFUSERS_BETAS}
    for word, betas in theirs.items():
        assert_close(betas_of(DIFFUSERS_BETAS, word, 1000, *ask.values()).float(), betas)
    for word, same in (("linear", "scaled_linear"), ("sqrt_linear", "linear"), ("cosine", "squaredcos_cap_v2")):
        assert_close(betas_of(COMPVIS_BETAS, word, 1000, *ask.values()).float(), theirs[same])


def test_what_is_unknown_is_refused(tmp_path):
    stable_diffusion(tmp_path / "sd")
    path = tmp_path / "sd" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    for change, message in (({"beta_schedule": "exp"}, "exp"), ({"rescale_betas_zero_snr": True}, "zero_snr")):
        path.write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            from_diffusers(tmp_path / "sd")
    with pytest.raises(ValueError, match="model_index.json does not exist"):
        from_diffusers(tmp_path)
    net = UNet(UNetConfig(3, channels=32, channel_mults=(1, 2), attn_levels=(1,), groups=8))
    with pytest.raises(ValueError, match="without a first stage"):
        to_diffusers(LatentDiffusion(None, net, NoiseSchedule(scaled_linear_betas())), tmp_path / "no")
    config = AutoencoderConfig(downsample_factor=2, latent_channels=3, channels=32, groups=8)
    stage = Autoencoder(config, KLBottleneck(latent_channels=3))
    with pytest.raises(ValueError, match="RectifiedFlow with prediction 'u'"):
        to_diffusers(LatentDiffusion(stage, net, RectifiedFlow(), prediction="u"), tmp_path / "no")
    shipped = LatentDiffusion.from_pretrained("emoji-scenes")   # its first stage begins with patches
    with pytest.raises(ValueError, match="patch_size=1"):
        to_diffusers(shipped, tmp_path / "no")
    assert not (tmp_path / "no").exists()                       # no half of a model


def test_without_a_tokenizer_it_says_so(tmp_path):
    stable_diffusion(tmp_path / "sd")
    (tmp_path / "sd" / "tokenizer").rename(tmp_path / "elsewhere")
    ldm = from_diffusers(tmp_path / "sd")
    with pytest.raises(ValueError, match="pass tokenizer="):
        ldm.conditioner.encode({"caption": ["a cat"]})
    found = from_diffusers(tmp_path / "sd", tokenizer=str(tmp_path / "elsewhere"))
    ids = found.conditioner.tokenize(["a cat"])
    assert ids.shape == (1, 12)
    assert_close(found.conditioner.encode({"caption": ["a cat"]}).context,
                 ldm.conditioner.encode({"caption": ids}).context, atol=0, rtol=0)
