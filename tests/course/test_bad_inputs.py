"""What a learner does wrong, and what he is told: each message names the thing and says what to do."""

import re
import shlex
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ldm_mini.__main__ import main
from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.concat_conditioners import InpaintConditioner, LowResConditioner, SemanticConditioner
from ldm_mini.conditioners import ClassConditioner, CombinedConditioner, LayoutConditioner, TextConditioner
from ldm_mini.kl import KLBottleneck
from ldm_mini.latent_diffusion import LatentDiffusion, latent_scale
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.scenes import EmojiScenes, ImageFolderDataset, SceneConfig, parse_caption
from ldm_mini.schedule import NoiseSchedule, linear_betas
from ldm_mini.tasks import sample_task
from ldm_mini.text import TextTransformer
from ldm_mini.train import TrainState, train_autoencoder, train_diffusion
from ldm_mini.training import load_or_train
from ldm_mini.unet import UNet, UNetConfig


@pytest.fixture(scope="module")
def w(tmp_path_factory):
    """A world for mistakes: a small model of all conditions, one of pixels without any, and a folder with files."""
    torch.manual_seed(0)
    stage = Autoencoder(AutoencoderConfig(channels=8, groups=4, num_res_blocks=1), VQBottleneck(VectorQuantizer(16, 3)))
    parts = [ClassConditioner(5, 12), LayoutConditioner(5, 12), LowResConditioner(4, presence=True),
             TextConditioner(TextTransformer(width=12, layers=1, heads=2)), InpaintConditioner(3, 4, presence=True),
             SemanticConditioner(5, 4, presence=True, channels=2, width=4)]
    small = dict(channels=8, channel_mults=(1, 2), attn_levels=(1,), num_res_blocks=1, groups=4, head_dim=8)
    net = UNet(UNetConfig(3, concat_channels=12, context_dim=12, vector_dim=12, **small))
    ldm = LatentDiffusion(stage, net, NoiseSchedule(linear_betas()), CombinedConditioner(parts), image_size=32)
    pixels = LatentDiffusion(None, UNet(UNetConfig(3, **small)), NoiseSchedule(linear_betas()))
    tmp = tmp_path_factory.mktemp("mistakes")
    ldm.save_pretrained(tmp / "model")
    Image.new("RGB", (32, 32)).save(tmp / "photo.png")
    (tmp / "words.txt").write_text("no picture")
    for folder in ("empty", "broken"):
        (tmp / folder).mkdir()
    (tmp / "broken" / "config.json").write_text("{")
    first = Autoencoder(stage.config, VQBottleneck(VectorQuantizer(16, 3)))  # its weights may still be trained
    return SimpleNamespace(ldm=ldm, pixels=pixels, first=first, images=torch.zeros(2, 3, 32, 32), tmp=tmp)


SAMPLE, TRAIN = "sample --model {tmp}/model --device cpu", "train {} --recipe micro --device cpu --out {{tmp}}/out"
FIRST, SECOND = TRAIN.format("autoencoder"), TRAIN.format("diffusion")
COMMAND_LINE = [
    ("draw 'a red apple'", "(?i)unrecognized.*draw.*sample"),
    ("sample 'a red apple' --number 4", "(?i)unrecognized options: --number.*--help"),
    ("sample 'a red apple' --num many", "--num.*'many'.*INT"),
    ("train --recipe tiny", "{autoencoder,text,diffusion,video}"),
    ("train decoder", "'decoder'.*'autoencoder', 'text', 'diffusion'"),
    (f"{SAMPLE} --task paint", "'paint'.*--task.*'inpaint'"),
    (f"{SAMPLE} 'an owl' --num 0", "--num must be from 1 to 50000, got 0"),
    (f"{SAMPLE} 'an owl' 'a dog' --num 1", "--num 1 .* too few for 2 captions"),
    (f"{SAMPLE} 'an owl' --steps 0", "--steps must be from 1 to 1000, got 0"),
    (f"{SAMPLE} 'an owl' --steps 2000", "steps .* from 1 to 1000.* got 2000"),
    (f"{SAMPLE} 'an owl' --sampler magic", "'magic'.*--sampler.*dpm.*ddim.*ddpm.*euler"),
    (f"{SAMPLE} --class unicorn", "'unicorn'.*apple.*dog"),
    (f"{SAMPLE} --class Rokcet", "'Rokcet' is no noun.*did you mean \"rocket\"?"),
    (f"{SAMPLE} 'an owl' --size 30", "30 x 30.*multiples of 8"),
    (f"{SAMPLE} 'an owl' --image {{tmp}}/photo.png", "--image needs a --task.*superres, semantic or inpaint"),
    (f"{SAMPLE} --task superres --image {{tmp}}/none.png", "Cannot read .*none.png.*No such file"),
    (f"{SAMPLE} --task superres --image {{tmp}}/words.txt", "Cannot read .*words.txt.*cannot identify"),
    (f"{SAMPLE} --task semantic --image {{tmp}}/photo.png", "photo.png .*mode RGB.*one channel.*0 to"),
    (f"{SAMPLE} --task layout --image {{tmp}}/photo.png", "--image is for .*superres, semantic, inpaint"),
    (f"{SAMPLE} --task superres --image {{tmp}}/photo.png --mask {{tmp}}/photo.png", "--mask is for .*inpaint"),
    ("sample 'an owl' --model nowhere", "no folder 'nowhere'.*emoji-scenes"),
    ("sample 'an owl' --model {tmp}/photo.png", "no folder '.*photo.png'.*emoji-scenes"),
    ("sample 'an owl' --model {tmp}/empty", "there is no model in .*empty: neither it nor a folder `model`"),
    ("sample 'an owl' --model {tmp}/broken", "config.json is damaged.*again"),
    ("sample 'an owl' --device gpu", "--device gpu: torch finds no such device"),
    (f"{FIRST} --recipe huge", "no autoencoder recipe 'huge'.*tiny"),
    (f"{FIRST} --resume", "no run to resume in .*out.*without --resume"),
    (f"{FIRST} --batch-size 0", "--batch-size must be from 1 to 65536, got 0"),
    (f"{FIRST} --lr -1", "--lr must be from .*, got -1"),
    (f"{FIRST} --task text", "--task is for diffusion"),
    ("train autoencoder --recipe micro --out {tmp}/model", "model already holds.*another --out"),
    (SECOND, "diffusion needs .*--autoencoder FOLDER"),
    (f"{SECOND} --autoencoder nowhere", "no folder 'nowhere'"),
    ("train video --net dit", "--net is for diffusion; this is train video"),
    ("info sd-v9", "'sd-v9'.*sd-v1"),
    ("info sd-v1 --size 100", "100 x 100: sides must be multiples of 64"),
    ("evaluate --num 2", "--num must be from 8 .*too few.*, got 2"),
]
PARTS = [
    (lambda w: UNet(UNetConfig(3, channels=16, channel_mults=(1, 2), attn_levels=(1,), num_heads=5, groups=4)),
     r"32 .*split into heads.*num_heads = 5"),
    (lambda w: UNet(UNetConfig(3, channels=32, head_dim=7)), "64 .*split into heads.*head_dim = 7"),
    (lambda w: UNet(UNetConfig(3, channels=10, groups=4)), r"10 .*4|4 .*10"),
    (lambda w: UNetConfig(3, attn_levels=(8, 16)), r"attn_levels \[8, 16\].*level indices 0 to 2"),
    (lambda w: UNetConfig(3, chanels=32), "unexpected keyword argument 'chanels'"),
    (lambda w: AutoencoderConfig(downsample_factor=3), "downsample_factor=3 .*doubled by each level"),
    (lambda w: AutoencoderConfig(downsample_factor=4, channel_mults=(1, 2)), "downsample_factor=4 .*has 2 levels"),
    (lambda w: AutoencoderConfig(channels=30), "groups=32 does not divide .*30.*groups=2"),
    (lambda w: Autoencoder(AutoencoderConfig(latent_channels=4), VQBottleneck(VectorQuantizer(16, 3))),
     "latent_channels=4.*dim.* needs 4"),
    (lambda w: KLBottleneck(4, reduction="average"), "reduction must be \"mean\" or \"sum\""),
    (lambda w: NoiseSchedule("cosine"), r"NoiseSchedule\(cosine_betas\(\)\)"),
    (lambda w: LatentDiffusion(w.first, w.pixels.schedule, w.pixels.net), "autoencoder, net, schedule.*in this order"),
    (lambda w: LatentDiffusion(None, w.pixels.net, w.pixels.schedule, prediction="noise"), "'eps', 'x0', 'v'"),
    (lambda w: LatentDiffusion(None, w.pixels.net, w.pixels.schedule, p_uncond=10), "p_uncond .*below 1, got 10"),
    (lambda w: LatentDiffusion(None, w.pixels.net, w.pixels.schedule, scale_factor=0), "scale_factor .*latent_scale"),
    (lambda w: LatentDiffusion.from_pretrained("emoji-scene"), "'emoji-scene'.*emoji-scenes"),
    (lambda w: load_or_train(stage="both"), "stage must be .*autoencoder.*diffusion.*'both'"),
    (lambda w: TextTransformer(width=30, heads=4), "divisible by num_heads"),
    (lambda w: TrainState(w.ldm, lr=-1), "learning rate: -1"),
    (lambda w: TrainState(w.ldm.autoencoder), "empty parameter list"),
    (lambda w: SceneConfig(size=50), "size must be .*multiple of 16, got 50"),
    (lambda w: SceneConfig(nouns=("unicorn",)), r"nouns must .*apple.*unknown: \['unicorn'\]"),
    (lambda w: SceneConfig(nouns="apple"), "nouns must be a tuple of names.*'apple'"),
    (lambda w: SceneConfig(split="test"), "split must be one of .*val.*heldout.*'test'"),
    (lambda w: EmojiScenes(length=4)[4], "index 4 of 4"),
    (lambda w: ImageFolderDataset(w.tmp / "nowhere"), "nowhere; is it a folder"),
    (lambda w: ImageFolderDataset(w.tmp / "empty"), r"No pictures .*\.png.*empty"),
    (lambda w: parse_caption("a flying unicorn"), "'a flying unicorn'.*a red apple.*nouns are.*colours are"),
]
ONE = {"class": torch.tensor([1])}
BATCHES = [
    (lambda w: w.first.encode(torch.full((2, 3, 32, 32), 255.0)), r"\[-1, 1\].*255.*/ 127.5 - 1"),
    (lambda w: w.first.encode(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)), r"/ 127.5 - 1"),
    (lambda w: w.first.encode(torch.zeros(2, 32, 32, 3)), r"\(B, 3, H, W\).*got \(2, 32, 32, 3\)"),
    (lambda w: w.first.encode(torch.zeros(3, 32, 32)), r"\(B, 3, H, W\).*got \(3, 32, 32\)"),
    (lambda w: w.first.encode(torch.zeros(2, 3, 30, 32)), r"multiples of 4.*\(2, 3, 30, 32\)"),
    (lambda w: w.first.decode(w.images.new_zeros(2, 4, 8, 8)), r"latents are \(B, 3, h, w\); got \(2, 4, 8, 8\)"),
    (lambda w: w.ldm.loss(ONE), r"\"image\" or \"latent\".*\['class'\]"),
    (lambda w: w.ldm.loss({"image": w.images}), r"\['image'\], no condition: give .*caption"),
    (lambda w: w.ldm.loss({"image": w.images + 255, "class": torch.tensor([1, 2])}), r"\[-1, 1\].*/ 127.5 - 1"),
    (lambda w: w.ldm.loss({"image": w.images, "class": torch.tensor([1, 2, 3])}), "one length.*'image': 2, 'class': 3"),
    (lambda w: w.ldm.sample({"caption": "a dog"}), "lists .*\\[\"a dog\"\\].*'caption': 'a single value'"),
    (lambda w: w.ldm.sample(["a dog"]), r"dict .*\"caption\".*got \['a dog'\]"),
    (lambda w: w.ldm.sample({"captions": ["a dog"]}), r"'captions'.*no condition: give .*'caption'"),
    (lambda w: w.ldm.sample(num=2), r"conditional.*sample\({\"caption\""),
    (lambda w: w.pixels.sample(), "how many.*num=None"),
    (lambda w: w.pixels.sample(num=1), "image size.*size=64"),
    (lambda w: w.ldm.sample({"class": torch.tensor([5])}), "'class'.*classes 5 to 5 .*whole numbers below 5"),
    (lambda w: w.ldm.sample({"class": ["apple"]}), "'class'.*names.*indices.*NOUN_INDEX"),
    (lambda w: w.ldm.sample({"class": torch.tensor([0.5])}), "'class'.*0.5 to 0.5 .*whole numbers below 5"),
    (lambda w: w.ldm.sample({"labels": torch.tensor([[1]]), "boxes": torch.full((1, 1, 4), 16.0)}),
     r"boxes, x0 y0 x1 y1, are fractions of the picture"),
    (lambda w: w.ldm.sample({"labels": torch.tensor([[9]]), "boxes": torch.zeros(1, 1, 4)}), "labels lie below 5"),
    (lambda w: w.ldm.sample({"labels": torch.zeros(1, 9).long(), "boxes": torch.zeros(1, 9, 4)}), "N up to 3.*9"),
    (lambda w: w.ldm.sample({"image": w.images, "mask": torch.zeros(2, 1, 16, 16)}), r"mask .*\(B,1,H,W\).*16"),
    (lambda w: w.ldm.sample({"semantic": torch.zeros(2, 32, 32)}), r"map holds integers, \(B,H,W\).*float32"),
    (lambda w: w.ldm.sample(ONE, num=3), "num=3.*agree with a batch"),
    (lambda w: w.ldm.sample(ONE, size=30), "30 x 30.*multiples of 8"),
    (lambda w: w.ldm.sample(ONE, steps=0), "steps .* from 1 to 1000.*got 0"),
    (lambda w: w.ldm.sample(ONE, sampler="ddmi"), "sampler .*'ddim'.*'ddmi'"),
    (lambda w: w.ldm.sample(ONE, sampler="ddim", eta=2), "eta must be from 0 .*to 1 .*got 2"),
    (lambda w: w.ldm.sample(ONE, seed=1, generator=torch.Generator()), "seed or a generator, not both"),
    (lambda w: sample_task(w.ldm, "poem", {}), "no task 'poem'.*text.*inpaint"),
    (lambda w: sample_task(w.pixels, "text", {"caption": ["a"]}), "cannot do the task 'text'; it can do unconditional"),
    (lambda w: w.pixels.net(w.images, torch.tensor([0.5, 0.5])), "t must be one integer step per sample.*float32"),
    (lambda w: w.ldm.net(torch.zeros(2, 15, 8, 8), torch.tensor([1, 2])), "built with context.*no cond.context"),
    (lambda w: next(train_diffusion(TrainState(w.ldm), [w.images], 1)), "a dict; got a Tensor"),
    (lambda w: next(train_autoencoder(TrainState(w.first), [w.images[0]], 1)), r"images \(B,C,H,W\).*\(3, 32, 32\)"),
    (lambda w: next(train_autoencoder(TrainState(w.first), iter([]), 1)), "batches ended after step 0 of 1.*a list"),
    (lambda w: latent_scale(w.first, []), "at least one batch"),
]


@pytest.mark.parametrize("words, told", COMMAND_LINE)
def test_a_mistake_on_the_command_line(w, words, told, capsys):
    try:
        status = main(shlex.split(words.format(tmp=w.tmp) if "{tmp}" in words else words))
    except SystemExit as stopped:  # tyro did not understand the words
        status = stopped.code
    said = " ".join(capsys.readouterr().err.split())
    assert status == 2 and "Traceback" not in said
    assert re.search(told, said)


@pytest.mark.parametrize("mistake, told", PARTS + BATCHES, ids=[told for _, told in PARTS + BATCHES])
def test_a_mistake_in_python(w, mistake, told):
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError, AssertionError), match=f"(?s){told}"):
        mistake(w)
