"""What is handed over wrongly is refused where it is handed over, in one clear line; what has no effect is told."""

import pytest
import torch
from torch import nn

from ldm_mini.attention import attention
from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.cond import Cond, NotRead
from ldm_mini.conditioners import ClassConditioner
from ldm_mini.ema import EMA
from ldm_mini.files import FileError
from ldm_mini.hub import load, load_weights, save, save_weights
from ldm_mini.kl import KLBottleneck
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure.metrics import frechet_distance, mean_box_iou, mean_iou, psnr, ssim
from ldm_mini.quantizer import VectorQuantizer
from ldm_mini.samplers import SAMPLERS
from ldm_mini.schedule import NoiseSchedule, cosine_betas
from ldm_mini.train import TrainState
from ldm_mini.unet import UNet, UNetConfig

TINY = dict(channels=16, channel_mults=(1, 2), attn_levels=(1,), head_dim=8, groups=4)
SCHEDULE = NoiseSchedule(cosine_betas(20))
BYTES = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)


def net(**options):
    return UNet(UNetConfig(4, **{**TINY, **options}))


def first_stage():
    return Autoencoder(AutoencoderConfig(channels=16, groups=4, latent_channels=4, num_res_blocks=1), KLBottleneck(4))


def model(conditioner=None):
    return LatentDiffusion(None, net(context_dim=8 if conditioner else None), SCHEDULE, conditioner, image_size=8)


def of_classes():
    return model(ClassConditioner(3, 8))


CALLS = {
    "parts in another order": (lambda: LatentDiffusion(net(), first_stage(), SCHEDULE), "in this order; got UNet"),
    "a first stage for a network": (lambda: LatentDiffusion(first_stage(), first_stage(), SCHEDULE), "in this order"),
    "a schedule for a network": (lambda: LatentDiffusion(first_stage(), SCHEDULE, net()), "in this order"),
    "an average of another shape": (lambda: EMA(nn.Linear(4, 4)).load_state_dict(EMA(nn.Linear(4, 1)).averages, 1),
                                    r"weight has shape \(4, 4\) here and \(1, 4\) there"),
    "keys without values": (lambda: attention(torch.ones(1, 1, 3, 8), torch.ones(1, 1, 6, 8), torch.ones(1, 1, 5, 8)),
                            "got 6 keys and 5 values"),
    "a mask of nothing": (lambda: Cond(mask=torch.ones(2, 5, dtype=torch.bool)), "and no context"),
    "a mask of other tokens": (lambda: Cond(context=torch.ones(2, 5, 8), mask=torch.ones(2, 4, dtype=torch.bool)),
                               r"a mask \(2, 4\) and tokens \(2, 5\)"),
    "maps of floats": (lambda: mean_iou(torch.rand(2, 8, 8), torch.rand(2, 8, 8), 3), "predicted must hold whole"),
    "maps of other classes": (lambda: mean_iou(torch.full((1, 2, 2), 3), torch.zeros(1, 2, 2).long(), 3), "3 to 3"),
    "maps of other shapes": (lambda: mean_iou(torch.zeros(1, 2, 2).long(), torch.zeros(2, 2, 2).long(), 3), "shape"),
    "boxes of fewer images": (lambda: mean_box_iou([[]], [[], []]), "got 1 and 2"),
    "pictures of bytes": (lambda: psnr(BYTES, BYTES), "floats from -1 to 1 .*uint8"),
    "structure of bytes": (lambda: ssim(BYTES, BYTES), "floats from -1 to 1"),
    "pictures up to 255": (lambda: psnr(BYTES.float(), BYTES.float()), "float32 up to 2"),
    "pictures that are no numbers": (lambda: psnr(BYTES * float("nan"), BYTES * float("nan")), "up to nan"),
    "features of other width": (lambda: frechet_distance(torch.rand(9, 4), torch.rand(9, 5)), "widths 4 and 5"),
    "features that are no numbers": (lambda: frechet_distance(torch.rand(9, 4) / 0, torch.rand(9, 4)), "finite"),
    "codes that are none": (lambda: VectorQuantizer(8, 4).used_fraction(torch.tensor([7, 8])), "below 8, got .*7 to 8"),
    "codes below 0": (lambda: VectorQuantizer(8, 4).perplexity(torch.tensor([-1])), "whole numbers below 8"),
    "a first stage of bytes": (lambda: model().loss({"image": BYTES}), "floats from -1 to 1 .*uint8"),
    "no pictures": (lambda: model().sample(num=0, steps=1), "how many"),
    "guidance that is no number": (lambda: of_classes().sample({"class": [1]}, guidance_scale=float("nan"), steps=1),
                                   "guidance_scale must be a number"),
    "a class between two": (lambda: of_classes().sample({"class": torch.tensor([1.5])}, steps=1), "1.5 .*whole"),
    "a class below none": (lambda: of_classes().sample({"class": [-5]}, steps=1), "or -1 for none"),
    "several to steer away from": (lambda: of_classes().sample({"class": [1]}, negative=["x"], steps=1), "one caption"),
    **{f"{name} of a network": (lambda s=sampler: list(s(net(), torch.ones(2, 4, 8, 8), SCHEDULE, 2)), "got a UNet")
       for name, sampler in SAMPLERS.items()},
    **{f"{name} {value}": (lambda name=name, value=value: net(**{name: value}), f"{name} must be at least 1, got")
       for name, value in (("channels", -16), ("head_dim", 0), ("groups", -1), ("transformer_depth", 0),
                           ("num_res_blocks", 0), ("num_heads", 0), ("context_dim", 0))},
    **{f"{name} {value} in training": (lambda one={name: value}: TrainState(nn.Linear(2, 2), **one), words)
       for name, value, words in (("grad_clip", -1, "grad_clip must be"), ("ema_decay", 2.0, "ema_decay must be"),
                                  ("ema_decay", float("nan"), "ema_decay must be"),
                                  ("muon_lr", -1.0, "muon_lr must be"),
                                  ("lr", float("nan"), "learning rate"), ("weight_decay", -1.0, "weight_decay"))},
    **{f"{name} {value} of a first stage": (lambda name=name, value=value: AutoencoderConfig(**{name: value}), name)
       for name, value in (("channels", 0), ("latent_channels", -1), ("num_res_blocks", 0), ("groups", 0))},
}


@pytest.mark.parametrize("name", CALLS)
def test_it_is_refused_in_one_line(name):
    call, words = CALLS[name]
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("sample, words", [
    (lambda: of_classes().sample({"class": [1], "captoin": ["a"]}, steps=1), "does not read 'captoin'.*reads class"),
    (lambda: of_classes().sample({"class": [1]}, negative="a cat", steps=1), "does not read 'caption'"),
    (lambda: of_classes().sample({"class": [1]}, negative={"class": [2]}, guidance_scale=1, steps=1), "no effect"),
    (lambda: model().sample({"caption": ["a"]}, steps=1), "reads nothing"),
    (lambda: model().sample(num=1, negative="a", steps=1), "reads nothing")])
def test_what_has_no_effect_is_told(sample, words):
    with pytest.warns(NotRead, match=words):
        sample()


def test_a_data_sets_batch_may_hold_more_than_is_read(recwarn):
    of_classes().sample({"class": [1], "image": torch.zeros(1, 3, 8, 8), "caption": ["a"], "seed": [3]}, steps=1)
    assert not [warning for warning in recwarn if issubclass(warning.category, NotRead)]


@pytest.mark.parametrize("change", [lambda v: v.long(), lambda v: v * float("nan"), lambda v: v / 0])
def test_integers_and_nan_are_no_weights(tmp_path, change):
    save(tmp_path, net())
    weights = load_weights(tmp_path)
    name = next(name for name, value in weights.items() if value.ndim == 4)
    save_weights(tmp_path, {**weights, name: change(weights[name])})
    with pytest.raises(FileError, match=f"{name} in .* these are no trained weights"):
        load(tmp_path, "UNet")
