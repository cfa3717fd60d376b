"""What is handed over wrongly is refused where it is handed over, in one clear line; what has no effect is told."""

import numpy as np
import pytest
import torch
from torch import nn

from ldm_mini.attention import Attention, SpatialTransformer, attention, attention_weights
from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.concat_conditioners import InpaintConditioner, LowResConditioner, SemanticConditioner
from ldm_mini.cond import Cond, NotRead
from ldm_mini.conditioners import ClassConditioner, CombinedConditioner, LayoutConditioner, TextConditioner
from ldm_mini.diffusion import diffusion_loss, draw_timesteps
from ldm_mini.dit import DiT, DiTConfig
from ldm_mini.ema import EMA
from ldm_mini.files import FileError
from ldm_mini.hub import load, save
from ldm_mini.kl import KLBottleneck
from ldm_mini.latent_diffusion import LatentDiffusion, latent_scale
from ldm_mini.measure.metrics import (
    frechet_distance,
    low_resolution_consistency,
    masked_l1,
    mean_box_iou,
    mean_iou,
    precision_recall,
    psnr,
    ssim,
)
from ldm_mini.measure.recogniser import Recogniser
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.samplers import SAMPLERS
from ldm_mini.schedule import NoiseSchedule, cosine_betas
from ldm_mini.text import TextTransformer
from ldm_mini.train import TrainState, first_stage_loss, train_autoencoder, train_diffusion
from ldm_mini.training.latents import cache_latents
from ldm_mini.unet import UNet, UNetConfig
from ldm_mini.weights import load_weights, save_weights

TINY = dict(channels=16, channel_mults=(1, 2), attn_levels=(1,), head_dim=8, groups=4)
SCHEDULE = NoiseSchedule(cosine_betas(20))
BYTES = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
PICTURES = torch.zeros(2, 3, 16, 16)


def net(**options):
    return UNet(UNetConfig(4, **{**TINY, **options}))


def first_stage():
    return Autoencoder(AutoencoderConfig(channels=16, groups=4, latent_channels=4, num_res_blocks=1), KLBottleneck(4))


def model(conditioner=None):
    return LatentDiffusion(None, net(context_dim=8 if conditioner else None), SCHEDULE, conditioner, image_size=8)


def of_classes():
    return model(ClassConditioner(3, 8))


def of_all():
    parts = [LayoutConditioner(5, 8, layers=1, heads=2, vector=False), TextConditioner(words(), vector=False),
             InpaintConditioner(3, 1, presence=True)]
    reader = UNet(UNetConfig(3, **TINY, context_dim=8, concat_channels=5))
    return LatentDiffusion(None, reader, SCHEDULE, CombinedConditioner(parts), image_size=8)


def words():
    return TextTransformer(width=8, layers=1, heads=2)


def reads(part, **batch):
    """What a conditioner says to a batch."""
    return part.encode(batch)


LAYOUT, MAP, LOWRES = (LayoutConditioner(5, 8, layers=1, heads=2), SemanticConditioner(5, 4, channels=2, width=2),
                       LowResConditioner(4))
HOLE, NAN = InpaintConditioner(3, 1), float("nan")
R, X, T = torch.rand, torch.zeros(2, 4, 8, 8), torch.tensor([3, 4])


def told(concat=(2, 2, 8, 8), context=(2, 5, 8), vector=(2, 6)):
    """A U-Net of all conditions, given such shapes."""
    net(context_dim=8, vector_dim=6, concat_channels=2)(X, T, Cond(R(concat), R(context), vector=R(vector)))


def dit(vector, **options):
    DiT(DiTConfig(4, width=24, depth=1, num_heads=2, input_size=8, **options))(X, T, Cond(vector=vector))


# a single one would be repeated for all samples, heads, channels or pixels
BROADCAST = {
    "a context for one": (lambda: told((1, 2, 8, 8), (1, 5, 8), (1, 6)), r"concat must be \(2, 2, 8, 8\), one for"),
    "a context for others": (lambda: Cond(R(2, 2, 8, 8), R(1, 5, 8)), r"for the same samples; got \[1, 2\] of them"),
    "a vector for others": (lambda: Cond(context=R(2, 5, 8), vector=R(3, 6)), r"got \[2, 3\]"),
    "tokens of another width": (lambda: told(context=(2, 5, 1)), r"cond.context must be \(2, any, 8\).*\(2, 5, 1\)"),
    "tokens without a batch": (lambda: told(context=(2, 8)), r"cond.context must be \(2, any, 8\).*\(2, 8\)"),
    "a vector of another width": (lambda: told(vector=(2, 1)), r"cond.vector must be \(2, 6\)"),
    "a map of one pixel": (lambda: told(concat=(2, 2, 1, 1)), r"cond.concat must be \(2, 2, 8, 8\)"),
    "one class for a DiT": (lambda: dit(torch.tensor([1]), num_classes=5), r"cond.vector must be \(2\)"),
    "a column of classes": (lambda: dit(torch.tensor([[1], [2]]), num_classes=5), r"cond.vector must be \(2\)"),
    "one vector for a DiT": (lambda: dit(R(1, 6), vector_dim=6), r"cond.vector must be \(2, 6\)"),
    "cross attention to one": (lambda: Attention(8, 6, 2)(R(2, 3, 8), R(1, 4, 6)), "agree in samples, heads and width"),
    "cross attention of one": (lambda: Attention(8, 6, 2)(R(1, 3, 8), R(2, 4, 6)), "agree in samples"),
    "a transformer's context": (lambda: SpatialTransformer(16, 2, context_dim=8, groups=4)(R(2, 16, 4, 4), R(1, 5, 8)),
                                "agree in samples"),
    "one head of keys": (lambda: attention(R(2, 2, 3, 4), R(2, 1, 5, 4), R(2, 1, 5, 4)), "agree in samples, heads"),
    "weights to one": (lambda: attention_weights(R(2, 2, 3, 4), R(1, 2, 5, 4)), "agree in samples"),
    "one value": (lambda: attention(R(1, 1, 3, 8), R(1, 1, 6, 8), R(1, 1, 1, 8)), "each key has one value"),
    "a mask for one": (lambda: attention(R(2, 1, 3, 8), R(2, 1, 6, 8), R(2, 1, 6, 8), torch.ones(1, 6).bool()),
                       r"mask is \(B,M\), bool.*for 6 keys of 2 samples"),
    "a mask of one token": (lambda: attention(R(2, 1, 3, 8), R(2, 1, 6, 8), R(2, 1, 6, 8), torch.ones(2, 1).bool()),
                            r"mask is \(B,M\), bool"),
    "a mask of numbers": (lambda: attention_weights(R(2, 1, 3, 8), R(2, 1, 6, 8), torch.ones(2, 6)),
                          "got torch.float32"),
    "a mask beside no context": (lambda: Cond.join([Cond(vector=R(2, 8)), Cond(mask=torch.ones(2, 5).bool())]),
                                 "and no context"),
    "joined with one": (lambda: Cond.join([Cond(vector=R(2, 5)), Cond(vector=R(1, 5))]), r"got \[1, 2\]"),
    "joined with others": (lambda: Cond.join([Cond(vector=R(2, 5)), Cond(context=R(3, 4, 5))]), r"got \[2, 3\]"),
    "kept for one": (lambda: Cond(vector=R(4, 5)).where(torch.ones(1).bool(), Cond(vector=R(4, 5))), "for 4 samples"),
    "kept by numbers": (lambda: Cond(vector=R(4, 5)).where(torch.ones(4), Cond(vector=R(4, 5))), "got torch.float32"),
    "instead of one": (lambda: Cond(vector=R(4, 5)).where(torch.ones(4).bool(), Cond(vector=R(1, 5))), r"\[1, 4\]"),
    "an average moved by another": (lambda: EMA(nn.Linear(4, 4)).update(nn.Linear(4, 1)), "has shape"),
    "an average lent to another": (lambda: EMA(nn.Linear(4, 1)).applied(nn.Linear(4, 4)).__enter__(), "has shape"),
    "an average of nothing": (lambda: EMA(nn.Linear(4, 4)).load_state_dict({}, 1), "only one of both .* bias, weight"),
    "an average of more": (lambda: EMA(nn.Linear(4, 4, bias=False)).update(nn.Linear(4, 4)), "only one .* trains bias"),
    "an average that runs away": (lambda: EMA(nn.Linear(2, 2), 2.0), "max_decay is from 0 to 1"),
    "one noise level": (lambda: diffusion_loss(lambda x, t, c: x, SCHEDULE, X, Cond(), t=T[:1]), "t for each sample"),
    "one noise": (lambda: diffusion_loss(lambda x, t, c: x, SCHEDULE, X, Cond(), eps=X[:1]), "eps of its shape"),
    "a grey reconstruction": (lambda: first_stage_loss(PICTURES, PICTURES[:, :1], R(())), r"returned \(2, 1, 16, 16\)"),
    "seen beside one": (lambda: PerceptualLoss()(PICTURES, PICTURES[:1]), "shapes differ"),
    "a picture alone": (lambda: psnr(PICTURES[0], PICTURES[0]), r"x\[None\]"),
    "pictures of truth values": (lambda: psnr(PICTURES > 0, PICTURES > 0), "got torch.bool up to 0"),
    "pictures for half a window": (lambda: ssim(PICTURES[..., :4], PICTURES[..., :4]), "6 x 6 or more"),
    "features to recall, of other width": (lambda: precision_recall(R(9, 4), R(9, 5)), "of one width"),
    "features to recall, too few": (lambda: precision_recall(R(3, 4), R(9, 4)), "more than k = 3"),
    "features to recall, no numbers": (lambda: precision_recall(R(9, 4), R(9, 4) / 0), "finite"),
    "no neighbour": (lambda: precision_recall(R(9, 4), R(9, 4), k=0), "k >= 1"),
    "larger than the output": (lambda: low_resolution_consistency(PICTURES, R(2, 3, 32, 32)), "larger than the image"),
    "small pictures of bytes": (lambda: low_resolution_consistency(BYTES, BYTES), "floats from -1 to 1"),
    "a hole in others": (lambda: masked_l1(PICTURES, PICTURES[:1], R(2, 1, 16, 16)), "shapes differ"),
    "a hole of one pixel": (lambda: masked_l1(PICTURES, PICTURES, R(2, 1, 1, 1)), "mask is .B, 1, H, W. from 0 to 1"),
    "a hole of bytes": (lambda: masked_l1(PICTURES, PICTURES, R(2, 1, 16, 16) * 255), "mask is .* from 0 to 1"),
    "no maps": (lambda: mean_iou(torch.zeros(0, 2, 2).long(), torch.zeros(0, 2, 2).long(), 3), "no maps"),
    "no codes": (lambda: VectorQuantizer(8, 4).used_fraction(torch.zeros(0).long()), "no indices"),
}
# not what a condition is made of
CONDITIONS = {
    **{f"a caption that is {value!r}": (lambda value=value: reads(TextConditioner(words()), caption=[value]),
                                        "captions, that is of strings") for value in (3, None, ["a dog"], b"a dog")},
    "captions in one string": (lambda: reads(TextConditioner(words()), caption="a dog"), "that is of strings"),
    **{f"a small picture of {name}": (lambda x=x: reads(LOWRES, lowres=x), r"lowres.* must be pictures \(B,3,H,W\)")
       for name, x in (("bytes", BYTES), ("0 to 255", BYTES.float()), ("NaN", PICTURES * NAN), ("grey", X[:, :1]),
                       ("no batch", PICTURES[0]), ("lists", [[0.0]]))},
    **{f"a picture of {name} with a hole": (lambda x=x: reads(HOLE, image=x, mask=PICTURES[:, :1]), "image.* must be")
       for name, x in (("bytes", BYTES), ("NaN", PICTURES * NAN))},
    **{f"a mask of {name}": (lambda x=x: reads(HOLE, image=PICTURES, mask=x), r"must be \(B,1,H,W\), 1 in the hole")
       for name, x in (("255", PICTURES[:, :1] + 255), ("NaN", PICTURES[:, :1] * NAN), ("no channel", PICTURES[:, 0]),
                       ("-1 and 1", PICTURES[:, :1] - 1), ("lists", [[1]]))},
    **{f"a map of {name}": (lambda x=x: reads(MAP, semantic=x), told) for name, x, told in (
        ("a class too many", torch.full((1, 8, 8), 5), "from 0 to 4; got 5 to 5"),
        ("-1", torch.full((1, 8, 8), -1), "got -1 to -1"), ("two axes more", X.long()[None], "map holds integers"))},
    **{f"{name} in a layout": (lambda k=k, b=b: reads(LAYOUT, labels=k, boxes=b), told) for name, k, b, told in (
        ("corners the other way", torch.tensor([[1]]), torch.tensor([[[0.9, 0.1, 0.2, 0.8]]]), "corner at the top"),
        ("NaN", torch.tensor([[1]]), torch.full((1, 1, 4), NAN), "fractions of the picture"),
        ("a label between two", torch.tensor([[1.5]]), R(1, 1, 4), "labels whole numbers"),
        ("a label below none", torch.tensor([[-5]]), R(1, 1, 4).sort().values, "-1 is none"),
        ("names", [["dog"]], [[[0, 0, 1, 1]]], "lists of numbers, all of one length"),
        ("rows of two lengths", [[1], [1, 2]], [[[0, 0, 1, 1]]], "lists of numbers"))},
    **{f"a class that is {value!r}": (lambda value=value: of_classes().sample({"class": value}, steps=1), told)
       for value, told in (([None], "lists of numbers"), ([True], "bool"), ([[1]], r"\(1, 1\)"))},
}
# numbers that are none, or of another kind
NUMBERS = {
    **{f"size {size!r}": (lambda size=size: model().sample(num=1, steps=1, size=size), "size is a side|side is a whole")
       for size in ("64", 8.5, (8,), (8, 8, 8), (8.5, 8), -8, True, 0)},
    "a side between the network's": (lambda: model().sample(num=1, steps=1, size=9), "multiples of 2"),
    **{f"num {num!r}": (lambda num=num: model().sample(num=num, steps=1), "num is a whole number from 0")
       for num in (2.0, "2", True, -1)},
    **{f"seed {seed!r}": (lambda seed=seed: model().sample(num=1, steps=1, seed=seed), "seed is a whole number")
       for seed in (-1, 1.5, 2**64, "1")},
    **{f"guidance {scale!r}": (lambda scale=scale: of_classes().sample({"class": [1]}, steps=1, guidance_scale=scale),
                               "guidance_scale must be a number") for scale in ("2", None)},
    "a list of samplers": (lambda: model().sample(num=1, steps=1, sampler=["dpm"]), "sampler must be one of"),
    "an offset below 0": (lambda: model().sample(num=1, steps=1, offset=-5), "offset must be 0 or more"),
    **{f"t_power {power}": (lambda power=power: draw_timesteps(SCHEDULE, 2, "cpu", power=power), "must be above 0")
       for power in (0, -1.0, NAN)},
    **{f"{name} {value} of a codebook": (lambda one={name: value}: VectorQuantizer(**one), f"{name} must be")
       for name, value in (("codebook_size", 0), ("dim", 0), ("commitment_weight", -1), ("commitment_weight", NAN),
                           ("ema_decay", 2.0), ("ema_decay", NAN), ("restart_after", -3))},
    **{f"{name} {value} of a KL bottleneck": (lambda one={name: value}: KLBottleneck(**one), f"{name} must be")
       for name, value in (("weight", NAN), ("weight", -1.0), ("latent_channels", 0))},
    **{f"{name} {value} of a text transformer": (lambda one={name: value}: TextTransformer(**one), f"{name} must be")
       for name, value in (("width", 0), ("layers", 0), ("heads", 0), ("max_length", 1))},
    **{f"{name} {value} of a DiT": (lambda one={name: value}: DiTConfig(**one), f"{name} must be")
       for name, value in (("depth", -1), ("depth", 0), ("input_size", 0), ("patch_size", 0), ("width", 0))},
    **{f"{name} {value} of a {kind.__name__}": (lambda kind=kind, given=given, one={name: value}: kind(*given, **one),
                                                f"{name} must be") for kind, given, name, value in (
        (LayoutConditioner, (5, 8), "grid", 0), (LayoutConditioner, (5, 8), "max_objects", 0),
        (LowResConditioner, (4,), "lowres_factor", 0), (LowResConditioner, (4,), "p_degrade", 2.0),
        (InpaintConditioner, (3, 4), "mask_fold", 0), (CombinedConditioner, ([LAYOUT],), "p_drop_each", 2.0),
        (CombinedConditioner, ([LAYOUT],), "p_single", NAN))},
    "no classes": (lambda: ClassConditioner(0, 8), "num_classes must be"),
    **{f"conditions with weights {weights}": (lambda w=weights: CombinedConditioner([LAYOUT, MAP], weights=w),
                                              "weight >= 0 for each") for weights in ([1], [1, -2], [0, 0], [1, NAN])},
    "NaN channels": (lambda: UNetConfig(4, **TINY | {"channels": NAN}), "channels must be"),
}
# one part in place of another
SWAPPED = {
    "no conditions to combine": (lambda: CombinedConditioner([]), "one Conditioner or more"),
    "networks to combine": (lambda: CombinedConditioner([net()]), "one Conditioner or more.*UNet"),
    "a text transformer for a conditioner": (lambda: model(words()), "in this order; got .* TextTransformer"),
    "a model for a conditioner": (lambda: model(model()), "in this order"),
    "a dict for a conditioner": (lambda: LatentDiffusion(None, net(), SCHEDULE, {"class": 1}), "in this order"),
    "a conditioner for a network": (lambda: LatentDiffusion(None, LAYOUT, SCHEDULE), "in this order"),
    "a config for a network": (lambda: LatentDiffusion(None, UNetConfig(4), SCHEDULE), "in this order"),
    "no network": (lambda: LatentDiffusion(None, None, SCHEDULE), "in this order"),
    "betas for a schedule": (lambda: LatentDiffusion(None, net(), cosine_betas(20)), "in this order"),
    "a first stage of other latents": (lambda: LatentDiffusion(first_stage(), UNet(UNetConfig(3, **TINY)), SCHEDULE),
                                       "latents of 4 channels, and the network reads 3"),
    "a quantiser for a bottleneck": (lambda: Autoencoder(AutoencoderConfig(), VectorQuantizer(16, 3)), "VQBottleneck"),
    "a bottleneck for a config": (lambda: Autoencoder(KLBottleneck(3), AutoencoderConfig()), "got a AutoencoderConfig"),
    "a bottleneck for a quantiser": (lambda: VQBottleneck(KLBottleneck(3)), "is a VectorQuantizer; got a KLBottleneck"),
    "the second stage's state in the first loop": (lambda: next(train_autoencoder(TrainState(model()), [PICTURES], 1)),
                                                   "an Autoencoder; got a TrainState of a LatentDiffusion"),
    "the first stage's state in the second loop": (lambda: next(train_diffusion(TrainState(net()), [{}], 1)),
                                                   "a LatentDiffusion; got a TrainState of a UNet"),
    "a model for its state": (lambda: next(train_autoencoder(first_stage(), [PICTURES], 1)), "got a Autoencoder"),
    "a config to train": (lambda: TrainState(UNetConfig(4)), "an nn.Module; got a UNetConfig"),
    "grey pictures for a first stage of colours": (lambda: first_stage().encode(PICTURES[:, :1]),
                                                   r"images are \(B, 3, H, W\).* got \(2, 1, "),
    "pictures for a first stage": (lambda: latent_scale([PICTURES], first_stage()), "first stage is wanted.* a list"),
    "a model for its first stage": (lambda: latent_scale(model(), [X]), "first stage is wanted"),
    "latents of a whole model": (lambda: cache_latents(model(), [{"image": X}], 2), "first stage is wanted"),
    **{f"{name} to be recognised": (lambda x=x: Recogniser().detect(x), "images must be pictures")
       for name, x in (("bytes", BYTES), ("0 to 255", BYTES.float()), ("NaN", PICTURES * NAN), ("grey", X[:, :1]))},
}
CALLS = {
    **BROADCAST,
    **CONDITIONS,
    **NUMBERS,
    **SWAPPED,
    "parts in another order": (lambda: LatentDiffusion(net(), first_stage(), SCHEDULE), "in this order; got UNet"),
    "a first stage for a network": (lambda: LatentDiffusion(first_stage(), first_stage(), SCHEDULE), "in this order"),
    "a schedule for a network": (lambda: LatentDiffusion(first_stage(), SCHEDULE, net()), "in this order"),
    "an average of another shape": (lambda: EMA(nn.Linear(4, 4)).load_state_dict(EMA(nn.Linear(4, 1)).averages, 1),
                                    r"weight has shape \(4, 4\) here and \(1, 4\) there"),
    "keys without values": (lambda: attention(torch.ones(1, 1, 3, 8), torch.ones(1, 1, 6, 8), torch.ones(1, 1, 5, 8)),
                            r"keys \(1, 1, 6, 8\) and values \(1, 1, 5, 8\)"),
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
    **{f"{name} in no such view": (lambda s=SAMPLERS[name]: list(s(lambda x, t: (x, x), torch.ones(2, 4), SCHEDULE, 2,
                                                                   view="vp")), "view must be one of .*'vp'")
       for name in ("euler", "heun")},
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


class OwnNet(nn.Module):
    """A network that has its own row for "no condition"."""

    def __init__(self):
        super().__init__()
        self.config, self.conv, self.null = UNetConfig(4), nn.Conv2d(4, 4, 3, padding=1), nn.Parameter(torch.zeros(4))

    def forward(self, x, t, cond):
        return self.conv(x)


class OwnFirstStage(nn.Module):
    """A first stage whose layers are called `net`."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 4, 1)
        self.last_layer = self.net.weight

    def encode(self, x, sample=False):
        return self.net(x)

    def decode(self, z):
        return z[:, :3]

    def forward(self, x):
        return self.decode(self.net(x)), x.new_zeros(())


class OwnLoss(nn.Module):
    """What a training of diffusion calls: its forward is its loss."""

    def __init__(self):
        super().__init__()
        self.inside = model()

    def forward(self, batch, t_power=1.0):
        return self.inside(batch, t_power)


class OwnDiffusion(LatentDiffusion):
    """A subclass."""


def drawn(ldm=None, **options):
    return (ldm or model()).sample(**{"num": 2, "steps": 1, **options}).shape == (2, 4, 8, 8)


def trained(whole):
    return len(list(train_diffusion(TrainState(whole), [{"latent": X}], 1))) == 1


def of_grey():
    stage = Autoencoder(AutoencoderConfig(in_channels=1, channels=16, groups=4, num_res_blocks=1), KLBottleneck(3))
    hole = InpaintConditioner(3, 4)
    hole.use_first_stage(stage.eval())
    return hole.encode({"image": PICTURES[:, :1], "mask": PICTURES[:, :1]}).concat.shape == (2, 4, 4, 4)


TAKEN = {
    "a network with a parameter `null`": lambda: drawn(LatentDiffusion(None, OwnNet(), SCHEDULE, image_size=8)),
    "a first stage with layers `net`": lambda: latent_scale(OwnFirstStage(), [PICTURES + R(1)]) > 0,
    "its latents": lambda: len(cache_latents(OwnFirstStage(), [{"image": PICTURES}], 2, ())) == 2,
    "a first stage of one's own to train": lambda: len(list(train_autoencoder(
        TrainState(OwnFirstStage()), [PICTURES], 1, perceptual_weight=0.0, disc_weight=0.0))) == 1,
    "a model of one's own to train": lambda: trained(OwnLoss()),
    "a wrapped model to train": lambda: trained(nn.DataParallel(model())),
    "a hole in a grey picture": of_grey,
    **{f"a {kind} of a number as {name}": lambda one={name: value}: drawn(**one) for name, value, kind in (
        ("seed", torch.tensor(3), "tensor"), ("num", torch.tensor(2), "tensor"), ("size", torch.tensor(8), "tensor"),
        ("size", np.array([8, 8]), "array"), ("size", torch.Size([8, 8]), "size"), ("num", np.int32(2), "NumPy"),
        ("steps", torch.tensor(1), "tensor"), ("seed", np.uint8(3), "NumPy"))},
    "a tensor as guidance": lambda: len(of_classes().sample({"class": [1]}, steps=1, guidance_scale=torch.tensor(2.0))),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_of_ones_own_is_taken(name):
    """A network is anything that can be called as one, a number anything that is one."""
    assert TAKEN[name]()


def test_a_subclass_reads_what_its_base_saved(tmp_path):
    model().save_pretrained(tmp_path)
    assert isinstance(OwnDiffusion.from_pretrained(tmp_path), LatentDiffusion)


def test_maps_of_bytes_are_counted_as_numbers():
    maps = torch.full((1, 2, 2), 20, dtype=torch.uint8)
    assert mean_iou(maps, maps, 30) == {"miou": 1.0, "pixel_accuracy": 1.0}


@pytest.mark.parametrize("sample, words", [
    (lambda: of_classes().sample({"class": [1], "captoin": ["a"]}, steps=1), "does not read 'captoin'.*reads class"),
    (lambda: of_classes().sample({"class": [1]}, negative="a cat", steps=1), "does not read 'caption'"),
    (lambda: of_classes().sample({"class": [1]}, negative={"class": [2]}, guidance_scale=1, steps=1), "no effect"),
    (lambda: model().sample({"caption": ["a"]}, steps=1), "reads nothing"),
    (lambda: of_classes().sample({"class": [1], "image": X[:1, :3], "captoin": ["a"]}, steps=1), "read 'captoin'"),
    (lambda: of_all().sample({"caption": ["a dog"], "mask": torch.ones(1, 1, 8, 8)}, steps=1), "mask alone.*no image"),
    (lambda: of_all().sample({"caption": ["a dog"], "boxes": R(1, 1, 4)}, steps=1), "boxes alone.*no labels"),
    (lambda: of_all().sample({"caption": ["a dog"], "labels": torch.tensor([[1]])}, steps=1), "labels alone.*no boxes"),
    (lambda: of_all().sample({"image": X[:1, :3], "mask": X[:1, :1]}, steps=1), "1 of 1 masks mark nothing"),
    (lambda: of_all().sample({"caption": ["一只红苹果"]}, steps=1), "I do not know"),
    (lambda: model().sample(num=1, negative="a", steps=1), "reads nothing")])
def test_what_has_no_effect_is_told(sample, words):
    with pytest.warns(NotRead, match=words):
        sample()


def test_what_is_said_of_captions_is_bounded():
    said = words().remarks(["x" * 20_000, *(f"blub{i} " * 50 for i in range(50))])
    assert len(said) < 80 and max(map(len, said)) < 200 and "43 more words" in " ".join(said)


def test_what_is_encoded_ahead_is_read(recwarn):
    of_all().sample({"masked_latent": X[:1, :3], "mask": torch.ones(1, 1, 8, 8)}, steps=1)
    assert not [warning for warning in recwarn if issubclass(warning.category, NotRead)]


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
