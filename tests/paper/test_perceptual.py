"""The perceptual distance: the right network with the right weights, and a distance that behaves like one."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ldm_mini.files import data_path
from ldm_mini.perceptual import VGG_FILE, EfficientNetLite0, PerceptualLoss, load_efficientnet


@pytest.fixture(scope="module")
def loss():
    return PerceptualLoss("efficientnet")


@pytest.fixture(scope="module")
def images():
    """Eight emoji of the shipped sheet over one colour: (8,3,64,64) in [-1,1]."""
    sheet = Image.open(data_path("sprites", "nouns_fluent_3d.png")).reduce(2)
    out = []
    for i in (4, 9, 18, 22, 33, 38, 45, 60):
        y, x = divmod(i, 8)
        page = Image.new("RGBA", (64, 64), (120, 170, 90, 255))
        page.alpha_composite(sheet.crop((64 * x, 64 * y, 64 * x + 64, 64 * y + 64)))
        out.append(torch.frombuffer(bytearray(page.convert("RGB").tobytes()), dtype=torch.uint8).view(64, 64, 3))
    return torch.stack(out).permute(0, 3, 1, 2).float() / 127.5 - 1


def blur(x, sigma):
    radius = int(3 * sigma + 1)
    kernel = torch.exp(-torch.arange(-radius, radius + 1.0).square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.pad(x, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def noise(x, std):
    return x + std * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def timm_with_our_weights(timm):
    """timm's tf_efficientnet_lite0 with the shipped (folded) convolutions; its batch norms then only add the bias."""
    reference = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    half = load_file(data_path("weights", "efficientnet_lite0.safetensors"))
    weights = {name: value.float() for name, value in half.items()}
    layers = [name.removesuffix(".weight") for name in EfficientNetLite0().state_dict() if name.endswith(".weight")]
    modules = [m for m in reference.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    convs, norms = modules[0::2], modules[1::2]  # they alternate; the head, last, stays unused
    assert len(convs) == len(norms) == len(layers) + 1
    for layer, conv, norm in zip(layers, convs, norms):
        conv.weight.data = weights[f"{layer}.weight"]
        norm.bias.data = weights[f"{layer}.bias"]
        norm.weight.data.fill_(1)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
    return reference


@pytest.mark.parametrize("size", [(64, 64), (65, 50)])
def test_trunk_equals_timm(size):
    timm = pytest.importorskip("timm")
    reference = timm_with_our_weights(timm)
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        h = reference.bn1(reference.conv_stem((255 * (x + 1) / 2 - 127) / 128))
        expected = []
        for stage, blocks in enumerate(reference.blocks):
            h = blocks(h)
            if stage in (0, 1, 2, 4, 6):
                expected.append(h)
        got = load_efficientnet()(x)
    assert [f.shape[1] for f in got] == list(EfficientNetLite0.channels) == [16, 24, 40, 112, 320]
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)  # features have norms around 50


def test_weights_are_trained_ones(loss, images):
    """A trained network tells a blurred picture from a darker one; the same network at random does not."""
    random = PerceptualLoss("efficientnet")
    torch.manual_seed(0)
    for module in random.net.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    ratio = [(f(images, blur(images, 1)).mean() / f(images, images - 0.1).mean()).item() for f in (loss, random)]
    assert ratio[0] > 5 > 2 * ratio[1]


def test_one_distance_per_pair(loss, images):
    other = blur(images, 2)
    together = loss(images, other)
    assert together.shape == (8,) and (together > 0).all()
    torch.testing.assert_close(loss(images, images.clone()), torch.zeros(8))
    torch.testing.assert_close(loss(other, images), together)
    torch.testing.assert_close(PerceptualLoss("efficientnet").train()(images, other), together)
    torch.testing.assert_close(together[3:4], loss(images[3:4], other[3:4]))


def test_grows_with_blur_and_noise(loss, images):
    for distort, strengths in ((blur, (0.5, 1, 2, 4)), (noise, (0.02, 0.05, 0.1, 0.3))):
        distances = torch.stack([loss(images, distort(images, s)) for s in strengths])
        assert (distances.diff(dim=0) > 0).all()


def test_ranks_distortions_like_eyes_do(loss, images):
    """Brightness and invisible noise are cheap, a blur is dear, though in L2 it is the other way round."""
    blurred, brighter, grainy = blur(images, 1), images + 0.1, noise(images, 0.01)
    assert (loss(images, blurred) > 5 * loss(images, brighter)).all()
    assert (loss(images, blurred) > 3 * loss(images, grainy)).all()
    assert (blurred - images).square().mean() < (brighter - images).square().mean()
    assert (loss(images, images.roll(1, 0)) > loss(images, blurred)).all()


def test_documented_sizes(loss, images):
    """The sizes that the docstring of PerceptualLoss gives, so that LPIPS's usual loss weight of 1 fits both kinds."""
    assert 0.05 < loss(images, blur(images, 1)).mean() < 0.2
    assert 0.15 < loss(images, blur(images, 2)).mean() < 0.5
    assert 0.5 < loss(images, images.roll(1, 0)).mean() < 1.5


def test_gradient_reaches_both_images_and_no_parameter(loss, images):
    pair = [images.clone().requires_grad_(), blur(images, 2).requires_grad_()]
    loss(*pair).sum().backward()
    assert all(x.grad.isfinite().all() and (x.grad.flatten(1).norm(dim=1) > 0).all() for x in pair)
    assert not any(p.requires_grad or p.grad is not None for p in loss.parameters())


def test_finite_on_constant_images(loss):
    y = torch.zeros(1, 3, 32, 32, requires_grad=True)
    distance = loss(torch.zeros(1, 3, 32, 32), y)
    distance.sum().backward()
    assert distance.item() == 0 and y.grad.isfinite().all()


@pytest.mark.parametrize("size", [(16, 16), (100, 70), (128, 128)])
def test_other_sizes(loss, size):
    x = torch.rand(1, 3, *size) * 2 - 1
    assert loss(x, -x).item() > 0.1


def test_features_for_frechet(loss, images):
    with torch.no_grad():
        pooled = loss.features(images)
        assert pooled.shape == (8, 112)
        torch.testing.assert_close(pooled, loss.taps(images)[3].mean((2, 3)))
        change = [(loss.features(y) - pooled).norm() for y in (noise(images, 0.01), blur(images, 1), images.roll(1, 0))]
    assert change[0] < change[1] < change[2]


def test_bad_input(loss):
    good = torch.zeros(1, 3, 32, 32)
    for bad, message in ((torch.zeros(1, 1, 32, 32), "expand"), (torch.zeros(3, 32, 32), "RGB"),
                         (torch.zeros(1, 3, 8, 32), "16 pixels"), (good.byte(), "float")):
        with pytest.raises(ValueError, match=message):
            loss(bad, bad)
    with pytest.raises(ValueError, match="kind must be"):
        PerceptualLoss("vgg")


@pytest.fixture
def hub(tmp_path):
    """An empty torch hub folder in place of the real one."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def test_without_vgg_weights(hub):
    assert PerceptualLoss("auto").kind == "efficientnet"
    with pytest.raises(FileNotFoundError, match="vgg16-397923af.pth.*kind='efficientnet'"):
        PerceptualLoss("lpips")


def test_damaged_vgg_weights_are_no_reason_to_fall_back(hub):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}, hub / VGG_FILE)
    with pytest.raises(RuntimeError, match="Missing key"):
        PerceptualLoss("auto")


def test_lpips_equals_the_lpips_package(hub, images, monkeypatch):
    """Both with the package's calibrated heads and the same RANDOM VGG16: no download is allowed, so this test holds
    the computation (scaling, taps, normalisation, heads, sum), not the trained weights."""
    pytest.importorskip("lpips")
    torchvision = pytest.importorskip("torchvision")
    import lpips
    torch.manual_seed(0)
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    for module in features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.normal_(module.bias, std=0.1)
    weights = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(weights, hub / VGG_FILE, _use_new_zipfile_serialization=False)  # as the published file is stored
    ours = PerceptualLoss("auto")
    assert ours.kind == "lpips" and PerceptualLoss("efficientnet").kind == "efficientnet"
    monkeypatch.setattr(lpips.pretrained_networks.tv, "vgg16", lambda pretrained: SimpleNamespace(features=features))
    theirs = lpips.LPIPS(net="vgg", verbose=False)
    x, y = images[:2], blur(images[:2], 2)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, y), theirs(x, y).flatten(), rtol=1e-4, atol=1e-6)
    assert ours.features(x).shape == (2, 512)
    assert not any(p.requires_grad for p in ours.parameters())


def test_imports_neither_lpips_nor_torchvision():
    """They take seconds, and torchvision wants the matching torch build; only a file of the lpips package is read."""
    code = ("import sys; from ldm_mini.perceptual import PerceptualLoss, lpips_heads; PerceptualLoss('efficientnet'); "
            "lpips_heads(); sys.exit('torchvision' in sys.modules or 'lpips' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
