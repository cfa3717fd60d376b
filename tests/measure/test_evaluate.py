"""Evaluation of models whose quality is known: one that draws perfectly, one that draws nothing, one that copies."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ldm_mini import hub
from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.conditioners import ClassConditioner, CombinedConditioner, TextConditioner
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import evaluate
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.scenes import scene
from ldm_mini.scenes.data import EmojiScenes, collate
from ldm_mini.scenes.scene import TINY_SCENES, SceneConfig
from ldm_mini.schedule import NoiseSchedule, cosine_betas
from ldm_mini.text import TextTransformer
from ldm_mini.unet import UNet, UNetConfig
from ldm_mini.video import VideoUNet
from ldm_mini.video_diffusion import LatentVideoDiffusion

SCENES = SceneConfig(max_objects=2)


class Painter:
    """Stands for a model: knows the scene behind every caption of the test, draws it through `draw`."""

    device = torch.device("cpu")
    autoencoder = None
    p_uncond = 0.1

    def __init__(self, draw, split="val", n=24, config=SCENES):
        data = EmojiScenes(evaluate.replace(config, split=split), n, 0)
        self.known = {item["caption"]: item["image"] for item in (data[i] for i in range(n))}
        self.draw, self.seen = draw, []

    def sample(self, prompt, steps, guidance_scale, generator):
        self.seen.append((tuple(prompt), steps, guidance_scale))
        return torch.stack([self.draw(self.known[caption]) for caption in prompt["caption"]])


@pytest.fixture(autouse=True)
def few_reference_scenes(monkeypatch):
    monkeypatch.setattr(evaluate, "REFERENCE", 48)


def test_a_perfect_painter_reaches_the_ceiling(recogniser):
    painter = Painter(lambda image: image)
    result = evaluate.evaluate_diffusion(painter, SCENES, n=24, guidance_scale=3.0, steps=7, recogniser=recogniser)
    assert painter.seen == [(("caption",), 7, 3.0)]
    assert result["model"] == result["real"] and result["frechet"] == pytest.approx(result["frechet_floor"])
    assert result["real"]["object_recall"] > 0.95 and result["real"]["exact"] > 0.9
    assert result["shuffled"]["exact"] < 0.1


def test_a_grey_painter_gets_nothing(recogniser):
    result = evaluate.evaluate_diffusion(Painter(torch.zeros_like), SCENES, n=24, recogniser=recogniser)
    assert result["model"]["exact"] == 0 and result["model"]["object_recall"] < 0.2
    assert result["frechet"] > 2 * result["frechet_floor"] and result["recall"] < 0.1


def test_heldout_split_asks_for_heldout_scenes(recogniser):
    painter = Painter(lambda image: image, split="heldout")
    result = evaluate.evaluate_diffusion(painter, SCENES, n=8, split="heldout", recogniser=recogniser)
    assert result["split"] == "heldout" and result["real"]["object_recall"] > 0.9
    with pytest.raises(KeyError):                                            # those captions are no others'
        evaluate.evaluate_diffusion(painter, SCENES, n=8, split="val", recogniser=recogniser)
    with pytest.raises(ValueError, match="there is no task"):
        evaluate.evaluate_diffusion(painter, SCENES, task="dreams", recogniser=recogniser)


class Enlarger(Painter):
    """Does what the bicubic baseline does, and keeps what it was given."""

    def sample(self, prompt, steps, guidance_scale, generator):
        self.seen.append(prompt["lowres"])
        return nn.functional.interpolate(prompt["lowres"], scale_factor=4, mode="bicubic").clamp(-1, 1)


def test_superres_is_also_measured_on_damaged_inputs(recogniser):
    painter = Enlarger(None)
    report = evaluate.evaluate_diffusion(painter, SCENES, "superres", n=40, recogniser=recogniser)
    assert report["model"] == report["baseline"] and report["degraded"] == report["degraded_baseline"]
    clean, worse = torch.cat(painter.seen[:2]), torch.cat(painter.seen[2:])
    assert len(clean) == len(worse) == 40 and 0.3 < (clean != worse).flatten(1).any(1).float().mean() < 1
    assert report["degraded"]["consistency"] < report["model"]["consistency"] - 5   # judged by the undamaged picture
    assert report["degraded"]["perceptual"] > report["model"]["perceptual"] + 0.02
    again = evaluate.evaluate_diffusion(Enlarger(None), SCENES, "superres", n=40, recogniser=recogniser)
    assert again["degraded"] == report["degraded"]
    text = evaluate.markdown({"model": "an enlarger", "diffusion": [report]})
    assert "the model's, of damaged inputs" in text and "damaged inputs, enlarged" in text


class Copy(nn.Module):
    """A first stage that loses nothing, or all fine detail."""

    def __init__(self, factor=1):
        super().__init__()
        self.weight, self.bottleneck, self.factor = nn.Parameter(torch.zeros(1)), nn.Identity(), factor

    def encode(self, x):
        return nn.functional.avg_pool2d(x, self.factor)

    def decode(self, z):
        return nn.functional.interpolate(z, scale_factor=self.factor) + 0.001


def test_autoencoder_scores_rank_loss_of_detail():
    exact, coarse = (evaluate.evaluate_autoencoder(Copy(factor), n=16) for factor in (1, 8))
    assert exact["psnr"] > 60 and exact["ssim"] > 0.999 and exact["frechet"] < 0.05 * exact["frechet_floor"]
    assert coarse["psnr"] < 30 and coarse["ssim"] < 0.9 and coarse["perceptual"] > 10 * exact["perceptual"]
    assert coarse["frechet"] > exact["frechet"] and "perplexity" not in exact
    assert coarse["read"] < 0.5 < exact["read"] == exact["read_real"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny untrained model on disk, with the card that training writes."""
    torch.manual_seed(0)
    config = AutoencoderConfig(downsample_factor=4, latent_channels=3, channels=8, channel_mults=(1,), num_res_blocks=1,
                               mid_attn=False, groups=2, patch_size=4)
    first = Autoencoder(config, VQBottleneck(VectorQuantizer(16, 3)))
    first.train()(collate([EmojiScenes(SCENES, 4)[i] for i in range(4)])["image"])  # the codebook needs data
    net = UNet(UNetConfig(in_channels=3, channels=16, channel_mults=(1,), num_res_blocks=1, groups=4, attn_levels=(),
                          head_dim=16, context_dim=16, vector_dim=16))
    conditioner = CombinedConditioner([TextConditioner(TextTransformer(16, 1, 1, 24)), ClassConditioner(64, 16, 16)])
    ldm = LatentDiffusion(first, net, NoiseSchedule(cosine_betas()), conditioner, prediction="v", image_size=64)
    folder = tmp_path_factory.mktemp("models")
    card = {"recipe": {"scenes": {"max_objects": 1, "nouns": ["cat", "dog"], "size": 64, "unknown_to_us": 1}}}
    ldm.save_pretrained(folder / "ldm", card=card)
    hub.save(folder / "first", first, card=card)
    return folder


def test_guidance_of_nothing_is_refused(saved):
    with pytest.raises(ValueError, match="nothing is guided: leave out --guidance-scale 3"):
        evaluate.run_evaluate(str(saved / "ldm"), "unconditional", num=8, guidance_scale=3.0)


def test_run_evaluate_writes_what_it_prints(saved, tmp_path, capsys):
    report = evaluate.run_evaluate(str(saved / "ldm"), num=8, steps=2, device="cpu", out=tmp_path / "new")
    text = (tmp_path / "new" / "evaluation.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip() and "Held-out" in text and "ceiling" in text
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text()) == json.loads(json.dumps(report))
    assert [r["split"] for r in report["diffusion"]] == ["val", "heldout"]
    assert 0 < report["autoencoder"]["codebook_used"] <= 1 <= report["autoencoder"]["perplexity"] <= 16
    real = report["diffusion"][0]["real"]
    assert report["diffusion"][0]["decoded"]["object_recall"] < real["object_recall"]  # an untrained first stage
    assert "count_accuracy" in real and "relation_accuracy" not in real       # the card says: one object each
    again = evaluate.run_evaluate(str(saved / "ldm"), num=8, steps=2, device="cpu")
    for r in report["diffusion"] + again["diffusion"]:
        del r["seconds_per_image"]
    assert again == report


def test_simple_scenes_are_of_the_models_size(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluate, "evaluate_diffusion", lambda ldm, config, *rest: asked.append(config) or {})
    monkeypatch.setattr(evaluate, "markdown", lambda report: "")
    for simple in (False, True):
        evaluate.run_evaluate(str(saved / "ldm"), num=8, device="cpu", simple=simple)
    size = asked[0].size
    assert asked[-1] == replace(TINY_SCENES, size=size) and asked[0].nouns != asked[-1].nouns


def test_a_film_model_without_a_card_has_films_of_two_things(saved, tmp_path, monkeypatch):
    source, asked = LatentDiffusion.from_pretrained(saved / "ldm"), []
    LatentVideoDiffusion(source.autoencoder, VideoUNet(source.net.config), source.schedule, source.conditioner,
                         image_size=64, frames=2).save_pretrained(tmp_path)
    monkeypatch.setattr(evaluate, "evaluate_films", lambda ldm, films, *rest: asked.append(films) or {})
    monkeypatch.setattr(evaluate, "markdown", lambda report: "")
    evaluate.run_evaluate(str(tmp_path), num=8, device="cpu")
    assert [(films.frames, films.scenes.max_objects) for films in asked] == [(2, 2)] * 2
    with pytest.raises(ValueError, match="leave out --task text"):
        evaluate.run_evaluate(str(tmp_path), "text", num=8, device="cpu")


def test_run_evaluate_by_class_and_first_stage_alone(saved):
    report = evaluate.run_evaluate(str(saved / "ldm"), "class", num=8, steps=2, device="cpu")
    assert report["diffusion"][0]["real"]["object_recall"] > 0.9  # "a cat" or "a dog"; real scenes of them
    first = evaluate.run_evaluate(str(saved / "first"), num=8, device="cpu")
    assert "diffusion" not in first and first["autoencoder"] == report["autoencoder"]
    with pytest.raises(ValueError, match="too few"):
        evaluate.run_evaluate(str(saved / "first"), num=2)


def test_impossible_splits_are_left_out():
    plain = SceneConfig(nouns=("cat", "dog"), max_objects=1, places=False)
    assert evaluate._possible(plain) and not evaluate._possible(evaluate.replace(plain, split="heldout"))


def test_scenes_of_reads_the_card_and_ignores_the_unknown():
    card = {"card": {"recipe": {"scenes": {"nouns": ["cat"], "max_objects": 1, "later_option": True}}}}
    assert scene.scenes_of(card) == SceneConfig(nouns=("cat",), max_objects=1)
    assert scene.scenes_of({}) == SceneConfig()
