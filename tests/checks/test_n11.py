"""Checks of notebook 11: known wrong solutions fail with a message that helps; right ones written another way pass."""

import copy

import torch
from solutions import spoiled, try_all
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from ldm_mini import checks
from ldm_mini.concat_conditioners import InpaintConditioner, LowResConditioner
from ldm_mini.concat_conditioners import paste as finished_paste


def joined(z, small, how="right"):
    if how == "half":
        small = F.interpolate(small, scale_factor=0.5, mode="bilinear", antialias=True) if small.shape != (
            *z.shape[:1], 3, *z.shape[2:]) else small
        return torch.cat([z, small], 1)
    if how == "cells":
        small = F.adaptive_avg_pool2d(small, z.shape[2:])
    options = {"aliased": {}, "nearest": {"mode": "nearest"}}.get(how, {"antialias": True})
    options = {"bicubic": {"mode": "bicubic", "antialias": True},
               "corners": {"antialias": True, "align_corners": True}}.get(how, options)
    if how == "latent resized":
        z = F.interpolate(z, size=small.shape[2:])
    elif how == "cut":
        small = small[..., :z.shape[2], :z.shape[3]]
    elif small.shape[2:] != z.shape[2:]:
        small = F.interpolate(small, size=z.shape[2:], **{"mode": "bilinear", **options})
    if how == "added":
        return z + F.pad(small, (0, 0, 0, 0, 0, 1))
    if how == "unit range":
        small = (small + 1) / 2
    joined = torch.cat([small, z] if how == "swapped" else [z, small], dim=1)
    return joined.double() if how == "double" else joined


def test_the_library_joins_a_picture_of_the_latents_size_as_it_is():
    z, small = torch.randn(2, 4, 8, 12), torch.rand(2, 3, 8, 12) * 2 - 1
    theirs = LowResConditioner(4, lowres_factor=4).eval().encode({"lowres": small}).concat
    assert torch.equal(joined(z, small), torch.cat([z, theirs], 1))


def by_filling(z, small):
    """Always resized, also where nothing is to be done."""
    out = z.new_empty(len(z), z.shape[1] + 3, *z.shape[2:])
    out[:, :-3] = z
    out[:, -3:] = F.interpolate(small, size=z.shape[2:], mode="bilinear", antialias=True)
    return out


def widened(conv, extra, how="right"):
    wide = nn.Conv2d(conv.in_channels + extra, conv.out_channels, 3, padding=1, bias=how != "no bias")
    with torch.no_grad():
        if how != "random":
            wide.weight.zero_()
        if how == "in front":
            wide.weight[:, extra:] = conv.weight
        elif how != "lost":
            wide.weight[:, :conv.in_channels] = conv.weight
        if how not in ("no bias", "fresh bias"):
            wide.bias.copy_(conv.bias)
    if how == "three":
        wide = nn.Conv2d(conv.in_channels + 3, conv.out_channels, 3, padding=1)
    if how == "silent":
        wide.in_channels = conv.in_channels
    if how == "live":
        wide.weight = None
        del wide.weight
        wide.weight = F.pad(conv.weight, (0, 0, 0, 0, 0, extra))
    if how == "view":
        wide.bias = nn.Parameter(conv.bias.data)
    if how == "small":
        wide.weight.data[:, conv.in_channels:] = 1e-3
    if how == "sequence":
        return nn.Sequential(wide)
    if how == "frozen":
        wide.requires_grad_(False)
    if how == "shared":
        wide.bias = conv.bias
    if how == "in place":
        conv.weight = nn.Parameter(wide.weight.detach())
        return conv
    if how == "out":
        return nn.Conv2d(conv.in_channels, conv.out_channels + extra, 3, padding=1)
    return wide


def by_concatenation(conv, extra):
    weight = torch.cat([conv.weight.detach(), torch.zeros(len(conv.weight), extra, *conv.kernel_size)], dim=1)
    wide = nn.Conv2d(conv.in_channels + extra, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    wide.load_state_dict({"weight": weight, "bias": conv.bias})
    return wide


def by_copy(conv, extra):
    wide = copy.deepcopy(conv)
    wide.in_channels += extra
    wide.weight = nn.Parameter(F.pad(conv.weight.data, (0, 0, 0, 0, 0, extra)))
    return wide


def shares(semantic, num_classes, f, how="right"):
    one_hot = F.one_hot(semantic, num_classes).float()
    first = one_hot.view(len(semantic), num_classes, *semantic.shape[1:]) if how == "reshape" else one_hot.movedim(3, 1)
    if how == "numbers":
        first = semantic[:, None].float()
    mean = F.avg_pool2d(first, f)
    if how == "as many as seen":
        return F.avg_pool2d(F.one_hot(semantic).float().movedim(3, 1), f)
    if how == "four":
        return F.avg_pool2d(first, 4)
    if how == "most":
        return F.one_hot(mean.argmax(1), num_classes).movedim(3, 1).float()
    if how in ("double", "whole"):
        return mean.double() if how == "double" else (mean * f * f).long()
    changed = {"last": mean.movedim(1, 3), "full size": first, "corner": first[..., ::f, ::f],
               "max": F.max_pool2d(first, f), "sum": f**2 * mean, "nearest": F.interpolate(first, scale_factor=1 / f),
               "bilinear": F.interpolate(first, scale_factor=1 / f, mode="bilinear"),
               "antialias": F.interpolate(first, scale_factor=1 / f, mode="bilinear", antialias=True)}
    return changed.get(how, mean)


def by_comparison(semantic, num_classes, f):
    cells = semantic.unflatten(2, (-1, f)).unflatten(1, (-1, f))                # B h f w f
    return torch.stack([(cells == k).float().mean((2, 4)) for k in range(num_classes)], dim=1)


def by_halving(semantic, num_classes, f):
    """As the released model does it."""
    maps = torch.zeros(len(semantic), num_classes, *semantic.shape[1:]).scatter_(1, semantic[:, None], 1.0)
    while f > 1:
        maps, f = F.interpolate(maps, scale_factor=0.5, mode="bilinear"), f // 2
    return maps


def holed(encode, image, mask, how="right"):
    hole = mask < 0.5 if how == "inverted" else mask > 0.5
    masked = image.masked_fill(hole, {"grey": 0.0, "white": 1.0}.get(how, -1.0))
    if how == "four":
        return torch.cat([encode(masked), mask[..., ::4, ::4] * 2 - 1], 1)
    if how == "no encoder":
        return torch.cat([masked, mask * 2 - 1], 1)
    latent = encode(image if how in ("leak", "masked after") else masked)
    size = latent.shape[2:]
    f = image.shape[-1] // size[-1]
    small = {"average": F.avg_pool2d(mask, f), "middle": F.interpolate(mask, size, mode="nearest-exact"),
             "bilinear": F.interpolate(mask, size, mode="bilinear"),
             "antialias": F.interpolate(mask, size, mode="bilinear", antialias=True), "grown": F.max_pool2d(mask, f),
             }.get(how, F.interpolate(mask, size))
    if how == "masked after":
        latent = latent.masked_fill(small > 0.5, -1.0)
    channel = {"zero to one": small, "sign": 1 - small * 2}.get(how, small * 2 - 1)
    parts = {"no mask": [latent], "order": [channel, latent],
             "double": [latent.double(), channel],
             "mask kept large": [F.interpolate(latent, mask.shape[2:]), mask * 2 - 1]}.get(how, [latent, channel])
    return torch.cat(parts, 1)


def in_unit_range(encode, image, mask):
    """The released model's own words."""
    masked = (1 - mask) * (image + 1) / 2
    z = encode(masked * 2 - 1)
    f = mask.shape[-1] // z.shape[-1]
    return torch.cat([z, mask[:, :, ::f, ::f] * 2 - 1], 1)


def by_the_conditioner(encode, image, mask):
    part = InpaintConditioner(encode.channels, encode.f)
    part.use_first_stage(type("First", (), {"encode": staticmethod(encode)}))
    return part.encode({"image": image, "mask": mask}).concat


def by_index(drawn, image, mask):
    out, known = image.clone(), (mask > 0.5).expand_as(image)
    out[known] = drawn[known]
    return out


def kept(x, known, hole, alpha, sigma, eps, how="right"):
    noisy = {"clean": known, "loud": known + sigma * eps, "swapped": sigma * known + alpha * eps,
             "noise": eps, "squares": alpha**2 * known + sigma**2 * eps, "no noise": alpha * known,
             "roots": alpha.sqrt() * known + sigma.sqrt() * eps, "first level": alpha[:1] * known + sigma[:1] * eps,
             "other noise": alpha * known + sigma * torch.randn_like(eps)}.get(how, alpha * known + sigma * eps)
    if how in ("double", "empty"):
        return torch.where(hole, x, noisy).double() if how == "double" else noisy * ~hole
    if how in ("nothing", "all"):
        return x if how == "nothing" else noisy
    return torch.where(hole, noisy, x) if how == "inverted" else torch.where(hole, x, noisy)


CORRECT = {
    checks.join_lowres: [joined, by_filling, lambda z, small: torch.cat((z, TF.resize(small, z.shape[2:])), 1)],
    checks.widen: [widened, by_concatenation, by_copy],
    checks.class_shares: [shares, by_comparison, by_halving],
    checks.inpaint_condition: [
        holed, in_unit_range, by_the_conditioner,
        lambda encode, x, m: torch.cat([z := encode(x * (1 - m) - m), F.interpolate(m * 2 - 1, z.shape[2:])], 1),
    ],
    checks.paste: [finished_paste, by_index, lambda drawn, image, mask: drawn * mask + image * (1 - mask)],
    checks.keep_known: [kept, lambda x, known, hole, a, s, eps: hole * x + ~hole * (a * known + s * eps)],
}

MUTANTS = {
    checks.join_lowres: spoiled(
        joined, ("swapped", "latent comes first"), ("unit range", "tau is the identity"), ("added", "do not add"),
        ("latent resized", "the \\*latent\\* was resized"), ("aliased", "antialias=True"),
        ("nearest", "nearest throws"), ("cut", "do not cut|Sizes"), ("half", "Sizes|shape"), ("bicubic", "bilinear"),
        ("cells", "mean over cells|antialias"), ("corners", "align_corners"), ("double", "dtype")),
    checks.widen: spoiled(
        widened, ("random", "do not start at zero"), ("in front", "zeros stand in front"),
        ("lost", "old weights are lost"), ("no bias", "bias is lost"), ("fresh bias", "bias is not the old one"),
        ("frozen", "takes no gradient"), ("shared", "share a parameter"), ("in place", "changed the old convolution"),
        ("out", "`in` grows"), ("three", "old weights are lost|`in` grows"), ("silent", "in_channels"),
        ("live", "must learn|reaches the old"), ("view", "share a parameter"), ("small", "do not start at zero"),
        ("sequence", "nn.Conv2d")),
    checks.class_shares: spoiled(
        shares, ("numbers", "names, not amounts"), ("last", "classes \\*last\\*"), ("reshape", "reshape shuffles"),
        ("full size", "size of the latent"), ("corner", "nearest"), ("nearest", "nearest"), ("max", "not how much"),
        ("bilinear", "4 middle pixels"), ("antialias", "neighbouring cells"), ("sum", "shares add up to 1"),
        ("as many as seen", "does not occur"), ("four", "shape"), ("most", "Shares, please"), ("double", "dtype"),
        ("whole", "dtype")),
    checks.inpaint_condition: spoiled(
        holed, ("leak", "That leaks"), ("masked after", "That leaks"), ("grey", "mid-grey"), ("white", "is white"),
        ("inverted", "rest is hidden"), ("order", "mask comes last"), ("zero to one", r"in \[0, 1\]"),
        ("sign", "sign is flipped"), ("average", "soft"), ("bilinear", "soft"), ("antialias", "soft"),
        ("grown", "grown"), ("no mask", "one channel is missing"), ("no encoder", "never called encode"),
        ("mask kept large", "shape"), ("four", "differ in size"), ("middle", "takes the first one"),
        ("double", "dtype")) + [
        (lambda encode, image, mask: holed(encode, image, mask[:1].expand_as(mask)), "off by|what the first stage"),
        (lambda encode, image, mask: holed(encode, image, mask) * torch.tensor([1.0] * encode.channels + [0.0])[
            :, None, None], "off by"),
    ],
    checks.paste: [
        (lambda drawn, image, mask: torch.where(mask > 0.5, image, drawn), "wrong way round"),
        (lambda drawn, image, mask: drawn * mask, "there is nothing"),
        (lambda drawn, image, mask: drawn, "as it came"),
        (lambda drawn, image, mask: image, "answer and all"),
        (lambda drawn, image, mask: image * (1 - mask), "nothing in the hole"),
        (lambda drawn, image, mask: (drawn + image) / 2, "a mixture"),
        (lambda drawn, image, mask: torch.where(mask[:1] > 0.5, drawn, image), "off by up to"),
        (lambda drawn, image, mask: torch.where(mask > 0.5, drawn, image).double(), "dtype"),
        (lambda drawn, image, mask: torch.where(mask > 0.5, drawn, image).half(), "off by|bit for bit"),
        (lambda drawn, image, mask: torch.where(mask > 0.5, drawn, image + 1e-6), "bit for bit"),
        (lambda drawn, image, mask: ((drawn + 1) / 2 * mask + (image + 1) / 2 * (1 - mask)) * 2 - 1, "bit for bit"),
    ],
    checks.keep_known: spoiled(
        kept, ("inverted", "wrong way round"), ("clean", "known part is clean"), ("loud", "shrink by alpha"),
        ("swapped", "swapped"), ("noise", "only noise"), ("nothing", "nothing of what is known"), ("all", "is lost"),
        ("squares", "do not square"), ("roots", "no roots"), ("first level", "level of the first"),
        ("no noise", "noise is missing"), ("other noise", "off by up to"), ("double", "dtype"), ("empty", "is empty")),
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
