"""Checks of notebook 11, pictures as condition."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checking import CheckFailed, attempt, compare, noise, passed


def join_lowres(function):
    """`function(z_t, lowres)`: noisy latent (B,c,h,w), small picture (B,3,h',w') -> (B,c+3,h,w)."""
    z, small = noise(2, 4, 8, 12), noise(2, 3, 8, 12, seed=1).clamp(-1, 1)
    got = attempt(function, z, small, name="join_lowres")
    added = {tuple(z.shape): "the result has no more channels than the latent. Join (torch.cat), do not add."}
    compare(got, torch.cat([z, small], 1), "join_lowres(z_t, lowres)", shapes=added, mistakes=[
        (torch.cat([small, z], 1), "the latent comes first, the condition after it: z_t has the first channels."),
        (torch.cat([z, (small + 1) / 2], 1), "leave the picture as it is, in [-1, 1]: tau is the identity."),
    ])
    larger = noise(2, 3, 16, 24, seed=2)

    def resized(mode="bilinear", **options):
        return torch.cat([z, F.interpolate(larger, size=(8, 12), mode=mode, **options)], 1)

    got = attempt(function, z, larger, name="join_lowres")
    if isinstance(got, Tensor) and got.shape[2:] == larger.shape[2:]:
        raise CheckFailed("join_lowres: the *latent* was resized to the picture. The network works at the latent's "
                          "size: bring the picture to it.")
    compare(got, resized(antialias=True), "join_lowres(z_t, a picture twice as large)", mistakes=[
        (resized(), "without antialias=True three of four pixels are hardly looked at."),
        (resized("nearest"), "nearest throws three of four pixels away: bilinear, with antialias=True."),
        (torch.cat([z, larger[..., :8, :12]], 1), "this is a corner of the picture: shrink it, do not cut."),
    ])
    passed("join_lowres: each latent pixel sees the small picture's pixel at its place")


def widen(function):
    """`function(conv, extra)`: nn.Conv2d -> a new one with `extra` more input channels that does the same so far."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1)
    before = {name: value.clone() for name, value in conv.state_dict().items()}
    wide = attempt(function, conv, 3, name="widen")
    if not isinstance(wide, nn.Conv2d):
        raise CheckFailed(f"widen should return an nn.Conv2d, not {type(wide).__name__}.")
    if wide.weight.shape != (6, 7, 3, 3):
        raise CheckFailed(f"widen(conv, 3): the new weight is {tuple(wide.weight.shape)}; from (6, 4, 3, 3) it should "
                          "become (6, 7, 3, 3): weights are (out, in, height, width), and `in` grows.")
    if any(not torch.equal(before[name], value) for name, value in conv.state_dict().items()):
        raise CheckFailed("widen changed the old convolution. Make a new one and copy.")
    z, condition = noise(2, 4, 5, 5), noise(2, 3, 5, 5, seed=1)
    old, got = conv(z).detach(), attempt(wide, torch.cat([z, condition], 1), name="the widened convolution")
    if wide.weight[:, :3].abs().max() == 0 and torch.allclose(wide.weight[:, 3:], conv.weight):
        raise CheckFailed("widen: the zeros stand in front of the old weights. The condition is joined *behind* z_t, "
                          "so its channels are the last.")
    if not torch.allclose(wide.weight[:, :4], conv.weight):
        raise CheckFailed("widen: the old weights are lost. Copy them to the first 4 input channels: all that the "
                          "network knows hangs on them.")
    if wide.weight[:, 4:].abs().max() > 0:
        raise CheckFailed("widen: the new channels do not start at zero, so the trained network meets, at once, "
                          "something it does not know. nn.Conv2d starts at random: set them to 0.")
    compare(got, old, "widen(conv, 3)(cat[z, condition])", mistakes=[
        (old - conv.bias.detach().view(-1, 1, 1), "the bias is lost: copy it too."),
        (F.conv2d(z, conv.weight, wide.bias, padding=1), "the bias is not the old one: copy it too."),
    ])
    if wide.weight.data_ptr() == conv.weight.data_ptr() or any(
            new is old for new in wide.parameters() for old in conv.parameters()):
        raise CheckFailed("widen: old and new convolution share a parameter: training one would change the other. "
                          "Copy the values.")
    target = noise(2, 6, 5, 5, seed=2)
    if not all(p.requires_grad for p in wide.parameters()) or not got.requires_grad:
        raise CheckFailed("widen: the new convolution must learn, but takes no gradient. Copy under torch.no_grad(), "
                          "build outside of it, and keep requires_grad.")
    (got - target).square().sum().backward()
    if wide.weight.grad is None or wide.weight.grad[:, 4:].abs().max() == 0:
        raise CheckFailed("widen: no gradient reaches the new channels, so they stay 0 for ever.")
    passed("widen: the same output today, and room to learn")


def class_shares(function):
    """`function(semantic, num_classes, f)`: (B,H,W) int64 -> (B,num_classes,H/f,W/f), the share of each class."""
    semantic = (noise(2, 8, 12) * 2).long().abs().clamp(max=3)
    one_hot = F.one_hot(semantic, 5).float()                                    # (B,H,W,K)
    first = one_hot.permute(0, 3, 1, 2)
    got = attempt(function, semantic, 5, 4, name="class_shares")
    if isinstance(got, Tensor) and got.shape[1:2] == (1,):
        raise CheckFailed("class_shares has one channel: class numbers are names, not amounts: sand is not more than "
                          "sky. One channel per class: one-hot first.")
    compare(got, F.avg_pool2d(first, 4), "class_shares(semantic, 5, 4)", shapes={
        (2, 2, 3, 5): "F.one_hot puts the classes *last*, but channels come second: permute(0, 3, 1, 2).",
        (2, 5, 8, 12): "this has the size of the picture; the network needs it at the size of the latent, H/f x W/f.",
    }, mistakes=[
        (F.avg_pool2d(one_hot.reshape(2, 5, 8, 12), 4), "reshape shuffles pixels among classes: permute(0, 3, 1, 2)."),
        (first[..., ::4, ::4], "one pixel of each cell decides (nearest): thin things vanish. Average the cell."),
        (first[..., 2::4, 2::4], "one pixel of each cell decides (nearest): thin things vanish. Average the cell."),
        (F.interpolate(first, scale_factor=0.25, mode="bilinear"),
         "bilinear over a factor of 4 reads only the 4 middle pixels of the 16 of a cell: average all of them."),
        (F.interpolate(first, scale_factor=0.25, mode="bilinear", antialias=True),
         "with antialias=True the neighbouring cells are mixed in: average each cell by itself."),
        (F.max_pool2d(first, 4), "the largest says whether a class is there, not how much of it: average."),
        (16 * F.avg_pool2d(first, 4), "the sum over the cell: shares add up to 1, so divide by f * f."),
    ])
    passed("class_shares: one channel per class, shares that sum to 1")


class _Shown:
    """Stands for a first stage, f = 4: keeps what it is shown; its latents have four channels."""

    def __init__(self):
        self.seen = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        mean = F.avg_pool2d(images, 4)
        return torch.cat([2 * mean, mean[:, :1] - mean[:, 1:2]], 1)


def inpaint_condition(function):
    """`function(encode, image, mask)`: (B,3,H,W) in [-1,1], (B,1,H,W), 1 = hole -> (B,c+1,h,w)."""
    image, mask = noise(2, 3, 16, 24).clamp(-1, 1), torch.zeros(2, 1, 16, 24)
    # edges inside of the 4 x 4 cells: there nearest, average and largest disagree
    mask[0, :, 4:11, 6:18], mask[1, :, :8, :8], mask[1, 0, 12:15, 13:16] = 1, 1, 1
    encode = _Shown()
    got = attempt(function, encode, image, mask, name="inpaint_condition")
    hole = mask.bool()
    masked = image.masked_fill(hole, -1.0)
    if not encode.seen:
        raise CheckFailed("inpaint_condition never called encode: the masked picture goes through the first stage.")
    shown = encode.seen[-1]
    if shown.shape != image.shape:
        raise CheckFailed(f"inpaint_condition showed the first stage {tuple(shown.shape)}; show it the masked picture.")
    if torch.equal(shown, image):
        raise CheckFailed("inpaint_condition encodes the picture with nothing hidden. That leaks: a latent sees pixels "
                          "around its own, so what is in the hole can be read beside it. Hide first.")
    compare(shown, masked, "what the first stage is shown", mistakes=[
        (image * (1 - mask), "the hole is 0, which is mid-grey in [-1, 1]; the model has black there, -1."),
        (image.masked_fill(~hole, -1.0), "the hole is shown and the rest is hidden: mask = 1 is the *hole*."),
        (image.masked_fill(hole, 1.0), "the hole is white, 1; the model has black there, -1."),
    ])
    latent, small = _Shown()(masked), mask[..., ::4, ::4]
    hard = "The model was trained with nearest: a latent is in the hole or it is not."

    def both(mask):
        return torch.cat([latent, mask], 1)

    compare(got, both(small * 2 - 1), "inpaint_condition(encode, image, mask)", shapes={
        (2, 4, 4, 6): "one channel is missing, the mask. Black could be a night sky."}, mistakes=[
        (torch.cat([small * 2 - 1, latent], 1), "the order is [masked latent, mask]: the mask comes last."),
        (both(small), "the mask is in [0, 1]; like everything else it goes in as [-1, 1]: +1 in the hole."),
        (both(1 - small * 2), "the mask's sign is flipped: +1 in the hole, -1 outside."),
        (both(F.avg_pool2d(mask, 4) * 2 - 1), f"the mask is soft (an average). {hard}"),
        (both(F.interpolate(mask, size=(4, 6), mode="bilinear") * 2 - 1), f"the mask is soft (bilinear). {hard}"),
        (both(F.interpolate(mask, size=(4, 6), mode="bilinear", antialias=True) * 2 - 1),
         f"the mask is soft (bilinear). {hard}"),
        (both(F.max_pool2d(mask, 4) * 2 - 1), "the hole has grown (largest of each cell); the released model takes the "
                                              "nearest pixel."),
    ])
    passed("inpaint_condition: what is known, and where; and nothing of what is hidden")


def paste(function):
    """`function(drawn, image, mask)`: (B,3,H,W) twice and (B,1,H,W), 1 = hole -> the known pixels, bit for bit."""
    drawn, image = noise(2, 3, 6, 8).clamp(-1, 1), noise(2, 3, 6, 8, seed=1).clamp(-1, 1)
    mask = (noise(2, 1, 6, 8, seed=2) > 0).float()
    got = attempt(function, drawn, image, mask, name="paste")
    compare(got, torch.where(mask > 0.5, drawn, image), "paste(drawn, image, mask)", mistakes=[
        (torch.where(mask > 0.5, image, drawn), "the wrong way round: the drawing belongs in the hole (mask = 1), the "
                                                "picture everywhere else."),
        (drawn * mask, "outside the hole there is nothing; the picture belongs there."),
        (drawn, "this is the drawing as it came: put the known pixels back."),
        (image, "this is the original picture, answer and all."),
    ])
    known = (mask == 0).expand_as(image)
    if not torch.equal(got[known], image[known]):
        raise CheckFailed("paste: known pixels are nearly the picture's, but not bit for bit. Choose with torch.where; "
                          "sums and scalings round.")
    passed("paste: not a single known pixel changes")


def keep_known(function):
    """`function(x_s, known, hole, alpha_s, sigma_s, eps)`: the known part at noise level s; x_s stays in the hole."""
    x, known, eps = noise(2, 4, 4, 6), noise(2, 4, 4, 6, seed=1), noise(2, 4, 4, 6, seed=2)
    hole = noise(2, 1, 4, 6, seed=3) > 0
    alpha, sigma = torch.tensor([0.8, 0.28]).view(2, 1, 1, 1), torch.tensor([0.6, 0.96]).view(2, 1, 1, 1)
    noisy = alpha * known + sigma * eps
    got = attempt(function, x, known, hole, alpha, sigma, eps, name="keep_known")
    compare(got, torch.where(hole, x, noisy), "keep_known(x_s, known, hole, alpha_s, sigma_s, eps)", mistakes=[
        (torch.where(hole, noisy, x), "the wrong way round: x_s stays in the hole, what is known goes outside."),
        (torch.where(hole, x, known), "the known part is clean but x_s is noisy: the network never saw such a thing. "
                                      "Bring it to the noise level of s: alpha_s known + sigma_s eps."),
        (torch.where(hole, x, known + sigma * eps), "the known part is too loud: it has to shrink by alpha_s."),
        (torch.where(hole, x, sigma * known + alpha * eps), "alpha and sigma are swapped."),
        (torch.where(hole, x, eps), "there is nothing of the known part in it, only noise."),
        (x, "nothing of what is known has been put in."),
        (noisy, "the hole is filled with the known part's content: what the sampler made up is lost."),
    ])
    one, zero = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    got = attempt(function, x, known, hole, one, zero, eps, name="keep_known")
    compare(got, torch.where(hole, x, known), "keep_known at the end (alpha_s = 1, sigma_s = 0)")
    passed("keep_known: what is known, at the noise level of the moment")
