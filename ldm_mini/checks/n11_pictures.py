"""Checks of notebook 11, pictures as condition."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, own_randomness, same_dtype


def join_lowres(function):
    """`function(z_t, lowres)`: noisy latent (B,c,h,w), small picture (B,3,h',w') -> (B,c+3,h,w)."""
    draw = fresh()
    # as large as the latent, then larger (by 2, by 4, and by no whole number), then smaller
    for (size, channels, h, w), (height, width) in (
            ((2, 4, 8, 12), (8, 12)), ((2, 4, 8, 12), (16, 24)), ((3, 3, 4, 6), (16, 24)), ((1, 4, 6, 6), (9, 9)),
            ((2, 4, 8, 12), (4, 6))):
        z, small = draw(size, channels, h, w), draw(size, 3, height, width).clamp(-1, 1)
        got = attempt(function, z, small, name="join_lowres")
        if (height, width) == (h, w):
            what, right, wrong = "join_lowres(z_t, lowres)", small, []
        else:
            what = f"join_lowres(z_t of {h} x {w}, a picture of {height} x {width})"
            scaled = lambda mode="bilinear", **options: F.interpolate(  # noqa: B023
                small, size=(h, w), mode=mode, **options)  # noqa: B023
            if isinstance(got, Tensor) and got.shape[2:] == small.shape[2:]:
                raise CheckFailed("join_lowres: the *latent* was resized to the picture. The network works at the "
                                  "latent's size: bring the picture to it.")
            right = scaled(antialias=True)
            wrong = [(scaled(), "without antialias=True most pixels are hardly looked at."),
                     (scaled("nearest"), "nearest throws most pixels away: bilinear, with antialias=True."),
                     (scaled("bicubic", antialias=True), "here it is bilinear, with antialias=True."),
                     (scaled(antialias=True, align_corners=True), "leave align_corners at its default, False."),
                     (F.adaptive_avg_pool2d(small, (h, w)), "a mean over cells; here it is bilinear, with "
                                                            "antialias=True, which weighs neighbours too."),
                     (small[..., :h, :w], "this is a corner of the picture: shrink it, do not cut.")]
        join = lambda picture: torch.cat([z, picture], 1)  # noqa: B023
        added = {tuple(z.shape): "the result has no more channels than the latent. Join (torch.cat), do not add."}
        compare(got, join(right), what, shapes=added, mistakes=[
            (torch.cat([right, z], 1), "the latent comes first, the condition after it: z_t has the first channels."),
            (join((right + 1) / 2), "leave the picture as it is, in [-1, 1]: tau is the identity."),
            *[(join(picture), message) for picture, message in wrong if picture.shape[2:] == z.shape[2:]],
        ])
        same_dtype(got, z, what)
    passed("join_lowres: each latent pixel sees the small picture's pixel at its place")


def widen(function):
    """`function(conv, extra)`: nn.Conv2d -> a new one with `extra` more input channels that does the same so far."""
    for sizes, extra in (((4, 6), 3), ((3, 5), 1), ((2, 2), 4)):
        with own_randomness():
            conv = nn.Conv2d(*sizes, 3, padding=1)
            before = {name: value.clone() for name, value in conv.state_dict().items()}
            _hold_wide(conv, attempt(function, conv, extra, name="widen"), extra, before)
    passed("widen: the same output today, and room to learn")


def _hold_wide(conv, wide, extra, before):
    (c_out, c_in), draw = before["weight"].shape[:2], fresh()
    if not isinstance(wide, nn.Conv2d):
        raise CheckFailed(f"widen should return an nn.Conv2d, not {type(wide).__name__}.")
    old_shape, new_shape = (c_out, c_in, 3, 3), (c_out, c_in + extra, 3, 3)
    if wide.weight.shape != new_shape:
        raise CheckFailed(f"widen(conv, {extra}): the new weight is {tuple(wide.weight.shape)}; from {old_shape} it "
                          f"should become {new_shape}: weights are (out, in, height, width), and `in` grows.")
    if any(not torch.equal(before[name], value) for name, value in conv.state_dict().items()):
        raise CheckFailed("widen changed the old convolution. Make a new one and copy.")
    z, condition = draw(2, c_in, 5, 7), draw(2, extra, 5, 7)
    old, got = conv(z).detach(), attempt(wide, torch.cat([z, condition], 1), name="the widened convolution")
    if wide.weight[:, :extra].abs().max() == 0 and torch.allclose(wide.weight[:, extra:], conv.weight):
        raise CheckFailed("widen: the zeros stand in front of the old weights. The condition is joined *behind* z_t, "
                          "so its channels are the last.")
    if not torch.allclose(wide.weight[:, :c_in], conv.weight):
        raise CheckFailed(f"widen: the old weights are lost. Copy them to the first {c_in} input channels: all that "
                          "the network knows hangs on them.")
    if wide.weight[:, c_in:].abs().max() > 0:
        raise CheckFailed("widen: the new channels do not start at zero, so the trained network meets, at once, "
                          "something it does not know. nn.Conv2d starts at random: set them to 0.")
    compare(got, old, f"widen(conv, {extra})(cat[z, condition])", mistakes=[
        (old - conv.bias.detach().view(-1, 1, 1), "the bias is lost: copy it too."),
        *([] if wide.bias is None else [
            (F.conv2d(z, conv.weight, wide.bias, padding=1), "the bias is not the old one: copy it too.")]),
    ])
    if {p.data_ptr() for p in wide.parameters()} & {p.data_ptr() for p in conv.parameters()}:
        raise CheckFailed("widen: old and new convolution share a parameter: training one would change the other. "
                          "Copy the values.")
    if wide.in_channels != c_in + extra:
        raise CheckFailed(f"widen: the new convolution says in_channels = {wide.in_channels}; it reads "
                          f"{c_in + extra}.")
    if not all(isinstance(p, nn.Parameter) and p.requires_grad for p in (wide.weight, wide.bias)) or \
            not got.requires_grad:
        raise CheckFailed("widen: the new convolution must learn, but takes no gradient. Copy under torch.no_grad(), "
                          "build outside of it, and keep requires_grad.")
    (got - draw(*got.shape)).square().sum().backward()
    if wide.weight.grad is None or wide.weight.grad[:, c_in:].abs().max() == 0:
        raise CheckFailed("widen: no gradient reaches the new channels, so they stay 0 for ever.")
    if any(p.grad is not None for p in conv.parameters()):
        raise CheckFailed("widen: the gradient reaches the old convolution too. Copy the values, under "
                          "torch.no_grad().")


def class_shares(function):
    """`function(semantic, num_classes, f)`: (B,H,W) int64 -> (B,num_classes,H/f,W/f), the share of each class."""
    draw = fresh()
    for (size, height, width), classes, f in (((2, 8, 12), 5, 4), ((3, 6, 4), 3, 2), ((1, 16, 8), 7, 8)):
        # the last class never occurs, and has a channel all the same
        semantic = (draw(size, height, width) * 2).long().abs().clamp(max=classes - 2)
        one_hot = F.one_hot(semantic, classes).float()  # (B,H,W,K)
        first, what = one_hot.permute(0, 3, 1, 2), f"class_shares(semantic, {classes}, {f})"
        got = attempt(function, semantic, classes, f, name="class_shares")
        if isinstance(got, Tensor) and got.shape[1:2] == (1,):
            raise CheckFailed("class_shares has one channel: class numbers are names, not amounts: sand is not more "
                              "than sky. One channel per class: one-hot first.")
        shares, h, w = F.avg_pool2d(first, f), height // f, width // f
        compare(got, shares, what, shapes={
            (size, h, w, classes): "F.one_hot puts the classes *last*, but channels come second: permute(0, 3, 1, 2).",
            (size, classes, height, width): "this has the size of the picture; the network needs it at the size of "
                                            "the latent, H/f x W/f.",
            (size, classes - 1, h, w): "a class that does not occur has a channel too: F.one_hot(semantic, "
                                       "num_classes).",
        }, mistakes=[
            (F.avg_pool2d(one_hot.reshape(first.shape), f), "reshape shuffles pixels among classes: "
                                                            "permute(0, 3, 1, 2)."),
            (first[..., ::f, ::f], "one pixel of each cell decides (nearest): thin things vanish. Average the cell."),
            (first[..., f // 2::f, f // 2::f],
             "one pixel of each cell decides (nearest): thin things vanish. Average the cell."),
            (F.interpolate(first, scale_factor=1 / f, mode="bilinear"),
             "bilinear over a factor of 4 reads only the 4 middle pixels of the 16 of a cell: average all of them."),
            (F.interpolate(first, scale_factor=1 / f, mode="bilinear", antialias=True),
             "with antialias=True the neighbouring cells are mixed in: average each cell by itself."),
            (F.one_hot(shares.argmax(1), classes).permute(0, 3, 1, 2).float(),
             "each cell went to the class that has most of it: thin things vanish. Shares, please."),
            (F.max_pool2d(first, f), "the largest says whether a class is there, not how much of it: average."),
            (f * f * shares, "the sum over the cell: shares add up to 1, so divide by f * f."),
        ])
        same_dtype(got, shares, what)
    passed("class_shares: one channel per class, shares that sum to 1")


class _Shown:
    """Stands for a first stage of factor f: keeps what it is shown; its latents have `channels` channels."""

    def __init__(self, f: int, channels: int):
        self.f, self.channels, self.seen = f, channels, []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        mean = F.avg_pool2d(images, self.f)
        return torch.cat([2 * mean, mean[:, :1] - mean[:, 1:2]], 1)[:, :self.channels]


def inpaint_condition(function):
    """`function(encode, image, mask)`: (B,3,H,W) in [-1,1], (B,1,H,W), 1 = hole -> (B,c+1,h,w)."""
    draw = fresh()
    for f, channels, size in ((4, 4, 2), (8, 3, 1), (2, 4, 3)):
        image, mask = draw(size, 3, 16, 24).clamp(-1, 1), torch.zeros(size, 1, 16, 24)
        # edges inside of the f x f cells: there nearest, average and largest disagree
        mask[0, :, 4:11, 6:18], mask[-1, :, :8, :8], mask[-1, 0, 11:15, 13:16] = 1, 1, 1
        encode = _Shown(f, channels)
        try:
            got = attempt(function, encode, image, mask, name="inpaint_condition")
        except CheckFailed as failed:
            if "Sizes of tensors must match" in str(failed) and encode.seen:
                raise CheckFailed(f"inpaint_condition: latent and mask differ in size where f = {f}. Take the size "
                                  "from the latent: F.interpolate(mask, size=latent.shape[-2:]).") from None
            raise
        _hold_hole(got, encode, image, mask)
    passed("inpaint_condition: what is known, and where; and nothing of what is hidden")


def _hold_hole(got, encode, image, mask):
    f, hole = encode.f, mask.bool()
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
    latent, small = _Shown(f, encode.channels)(masked), mask[..., ::f, ::f]
    hard = "The model was trained with nearest: a latent is in the hole or it is not."
    both = lambda mask: torch.cat([latent, mask], 1)
    to = lambda **options: F.interpolate(mask, size=latent.shape[2:], **options)
    compare(got, both(small * 2 - 1), "inpaint_condition(encode, image, mask)", shapes={
        tuple(latent.shape): "one channel is missing, the mask. Black could be a night sky."}, mistakes=[
        (torch.cat([small * 2 - 1, latent], 1), "the order is [masked latent, mask]: the mask comes last."),
        (both(small), "the mask is in [0, 1]; like everything else it goes in as [-1, 1]: +1 in the hole."),
        (both(1 - small * 2), "the mask's sign is flipped: +1 in the hole, -1 outside."),
        (both(to(mode="nearest-exact") * 2 - 1), "this is another pixel of each cell: F.interpolate's default, "
                                                 '"nearest", takes the first one.'),
        (both(F.avg_pool2d(mask, f) * 2 - 1), f"the mask is soft (an average). {hard}"),
        (both(to(mode="bilinear") * 2 - 1), f"the mask is soft (bilinear). {hard}"),
        (both(to(mode="bilinear", antialias=True) * 2 - 1), f"the mask is soft (bilinear). {hard}"),
        (both(F.max_pool2d(mask, f) * 2 - 1), "the hole has grown (largest of each cell); the released model takes the "
                                              "nearest pixel."),
    ])
    same_dtype(got, image, "inpaint_condition(encode, image, mask)")


def paste(function):
    """`function(drawn, image, mask)`: (B,3,H,W) twice and (B,1,H,W), 1 = hole -> the known pixels, bit for bit."""
    draw = fresh()
    for shape in ((2, 3, 6, 8), (3, 3, 5, 5)):
        drawn, image = draw(*shape).clamp(-1, 1), draw(*shape).clamp(-1, 1)
        mask = (draw(shape[0], 1, *shape[2:]) > 0).float()
        got = attempt(function, drawn, image, mask, name="paste")
        compare(got, torch.where(mask > 0.5, drawn, image), "paste(drawn, image, mask)", mistakes=[
            (torch.where(mask > 0.5, image, drawn), "the wrong way round: the drawing belongs in the hole (mask = 1), "
                                                    "the picture everywhere else."),
            (drawn * mask, "outside the hole there is nothing; the picture belongs there."),
            (image * (1 - mask), "there is nothing in the hole; the drawing belongs there."),
            (drawn, "this is the drawing as it came: put the known pixels back."),
            (image, "this is the original picture, answer and all."),
            ((drawn + image) / 2, "this is a mixture of both: each pixel is one or the other."),
        ])
        known = (mask == 0).expand_as(image)
        if not torch.equal(got[known], image[known].to(got)):
            raise CheckFailed("paste: known pixels are nearly the picture's, but not bit for bit. Choose with "
                              "torch.where; sums and scalings round.")
        same_dtype(got, image, "paste(drawn, image, mask)")
    passed("paste: not a single known pixel changes")


def keep_known(function):
    """`function(x_s, known, hole, alpha_s, sigma_s, eps)`: the known part at noise level s; x_s stays in the hole."""
    draw = fresh()
    for shape, levels in (((2, 4, 4, 6), (0.8, 0.28)), ((3, 3, 5, 5), (0.6, 0.1, 0.96)), ((2, 4, 4, 6), (1.0, 1.0))):
        x, known, eps = (draw(*shape) for _ in range(3))
        hole = draw(shape[0], 1, *shape[2:]) > 0
        alpha = torch.tensor(levels).view(-1, 1, 1, 1)
        sigma = (1 - alpha**2).sqrt()
        noisy, put = alpha * known + sigma * eps, lambda outside: torch.where(hole, x, outside)  # noqa: B023
        what = "keep_known(x_s, known, hole, alpha_s, sigma_s, eps)"
        what = "keep_known at the end (alpha_s = 1, sigma_s = 0)" if levels[0] == 1 else what
        got = attempt(function, x, known, hole, alpha, sigma, eps, name="keep_known")
        compare(got, put(noisy), what, mistakes=[
            (torch.where(hole, noisy, x), "the wrong way round: x_s stays in the hole, what is known goes outside."),
            (put(known), "the known part is clean but x_s is noisy: the network never saw such a thing. "
                         "Bring it to the noise level of s: alpha_s known + sigma_s eps."),
            (put(known + sigma * eps), "the known part is too loud: it has to shrink by alpha_s."),
            (put(sigma * known + alpha * eps), "alpha and sigma are swapped."),
            (put(alpha**2 * known + sigma**2 * eps), "alpha and sigma are amplitudes already: do not square them."),
            (put(alpha.sqrt() * known + sigma.sqrt() * eps), "alpha and sigma are amplitudes already: no roots."),
            (put(alpha[:1] * known + sigma[:1] * eps), "all samples got the noise level of the first one."),
            (put(alpha * known), "the noise is missing: alpha_s known + sigma_s eps."),
            (put(eps), "there is nothing of the known part in it, only noise."),
            (noisy * ~hole, "the hole is empty: x_s stays there."),
            (x, "nothing of what is known has been put in."),
            (noisy, "the hole is filled with the known part's content: what the sampler made up is lost."),
        ])
        same_dtype(got, x, what)
    passed("keep_known: what is known, at the noise level of the moment")
