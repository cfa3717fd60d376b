"""Checks of notebook 03, continued: the two networks around the codes, and what trains all three."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checking import CheckFailed, attempt, compare, number, passed, several
from .n03_vq_vae import nearest
from .properties import fresh, generator, own_randomness, same_dtype, scalar
from .steps import Watched


def fold_patches(function):
    """`function(x, f)`: x (B,C,H,W) -> (B, C*f*f, H/f, W/f), every f x f patch in the channels of one pixel."""
    draw, name = fresh(), "fold_patches(x, f)"
    for (b, c, h, w), f in (((2, 3, 8, 12), 4), ((1, 2, 9, 6), 3), ((3, 1, 4, 6), 2)):
        x = draw(b, c, h, w)
        cut, shape = x.reshape(b, c, h // f, f, w // f, f), (b, c * f * f, h // f, w // f)
        moved = lambda *axes, cut=cut, shape=shape: cut.permute(*axes).reshape(shape)
        got = attempt(function, x, f, name="fold_patches")
        compare(got, moved(0, 1, 3, 5, 2, 4), name, shapes={
            (b, c, h // f, f, w // f, f): "the axes are cut; now move those of the patch behind the channels.",
            (b, c, f, f, h // f, w // f): "join the channels with the two axes of the patch: (B, C*f*f, H/f, W/f).",
            (b, c * f * f, w // f, h // f): "height and width have changed places."}, mistakes=[
            (x.reshape(shape), "a reshape alone takes pixels in reading order, across patches: cut the axes, permute, "
                               "then join."),
            (moved(0, 3, 5, 1, 2, 4), "the colour comes first, then the place in the patch, as in nn.PixelUnshuffle."),
            (moved(0, 3, 1, 5, 2, 4), "the colour comes first, then the row, then the column in the patch."),
            (moved(0, 1, 5, 3, 2, 4), "rows and columns of each patch have changed places."),
            (moved(0, 1, 2, 4, 3, 5), "this puts the *patches* in the channels; the pixels of a patch belong there."),
            (x.reshape(b, c, f, h // f, f, w // f).permute(0, 1, 2, 4, 3, 5).reshape(shape),
             "H is cut into H/f patches of f rows: (H/f, f), in this order; and W alike."),
        ])
        same_dtype(got, x, name)
    passed("fold_patches: every patch in the channels of one pixel, nothing lost")


@own_randomness()
def make_decoder(function):
    """`function(width, dim)` -> a network from codes (B,dim,h,w) to a picture (B,3,4h,4w)."""
    draw = fresh()
    # without sizes, too: as the notebook calls it
    for sizes in ((6, 3), (5, 4), ()):
        net, (width, dim) = attempt(function, *sizes, name="make_decoder"), sizes or (48, 4)
        if not isinstance(net, nn.Module):
            raise CheckFailed(f"make_decoder should return one network, such as an nn.Sequential, not {type(net)}.")
        z = draw(2, dim, 9, 11)
        out = attempt(net, z, name=f"make_decoder({width}, {dim})")
        if isinstance(out, Tensor) and out.shape != (2, 3, 36, 44):
            raise CheckFailed(f"the decoder makes {tuple(out.shape)} of {tuple(z.shape)}, not {(2, 3, 36, 44)}: " + (
                "unfold the 48 channels at the end, nn.PixelShuffle(4)." if out.shape[1:] == (48, 9, 11) else
                "48 = 3 x 4 x 4 channels, unfolded by nn.PixelShuffle(4)." if out.shape[1] != 3 else
                "3 x 3 convolutions need padding=1 to keep the size."))
        _judge_decoder(net, z, width, dim, draw)
    passed("make_decoder: from one code per patch to a picture")


def _judge_decoder(net, z: Tensor, width: int, dim: int, draw):
    kernels = [(width, dim, 3, 3), *[(width, width, 3, 3)] * 4, (48, width, 3, 3)]
    if len(list(net.parameters())) < len(list(net.named_parameters(remove_duplicate=False))):
        raise CheckFailed("make_decoder: the two blocks share their weights: make two, Block(width), Block(width).")
    weights = [p for p in net.parameters() if p.dim() == 4]
    if [tuple(w.shape) for w in weights] != kernels or len(list(net.parameters())) != 12:
        raise CheckFailed(f"make_decoder({width}, {dim}) has convolutions of {[tuple(w.shape) for w in weights]}; they "
                          f"should be {kernels}, each with a bias: 3 x 3 into the width, two blocks, 3 x 3 to 48.")
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * draw(*p.shape))
    conv = lambda x, i: F.conv2d(x, *list(net.parameters())[2 * i:2 * i + 2], padding=1)
    block = lambda x, i: x + conv(conv(x.relu(), i).relu(), i + 1)
    h = conv(z, 0)
    end = lambda h, unfold=lambda x: F.pixel_shuffle(x, 4): unfold(conv(h, 5))
    h2 = block(block(h, 1), 3)
    other = lambda x: x.unflatten(1, (4, 4, 3)).permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
    compare(net(z), end(h2), "make_decoder's picture", rtol=1e-3, atol=1e-3, mistakes=[
        (end(h2).clamp(-1, 1), "no clamp: outside of [-1, 1] there would be no gradient."),
        (end(h2).tanh(), "no tanh at the end: the last layer is the convolution, unfolded."),
        (end(h2.relu()), "no ReLU after the blocks: each block begins with its own."),
        (end(h2, other), "the order of unfolding: nn.PixelShuffle undoes nn.PixelUnshuffle."),
        (end(block(block(h.relu(), 1), 3)), "no ReLU before the blocks: each block begins with its own."),
    ])


def perplexity(function):
    """`function(indices, codebook_size)`: indices of any shape -> exp of the entropy of their shares, one number."""
    source = generator()
    for size, shape in ((8, (3, 4, 5)), (40, (50,)), (6, (2, 3, 3))):
        used = max(2, size // 2)  # the last codes get nothing
        indices = torch.randint(used, shape, generator=source) * torch.randint(2, shape, generator=source)
        _one_perplexity(function, indices, size)
    for size in (7, 16):
        _one_perplexity(function, torch.full((2, 3, 3), size // 2), size)
        _one_perplexity(function, torch.arange(size).repeat(3), size)
    passed("perplexity: 1 if one code does all the work, K if all share it")


def _one_perplexity(function, indices: Tensor, size: int):
    share = torch.bincount(indices.flatten()).double() / indices.numel()
    share = share[share > 0]
    entropy = -(share * share.log()).sum()
    name = f"perplexity of {indices.numel()} indices in {len(share)} of {size} codes"
    got = number(attempt(function, indices, size, name="perplexity"), name)
    if got.isnan():
        raise CheckFailed(f"{name} is NaN: a share of 0 adds 0, but 0 * log(0) is NaN. torch.xlogy(p, p) knows that.")
    compare(got, entropy.exp(), name, mistakes=[
        (entropy, "this is the entropy; the perplexity is its exponential."),
        (entropy / torch.tensor(2.0).double().log(), "this is the entropy in bits; take exp of that in nats."),
        ((-entropy).exp(), "a sign: exp(*minus* the sum of p log p)."),
        ((entropy / torch.tensor(2.0).double().log()).exp(), "exp belongs to natural logarithms."),
        (2**entropy, "exp belongs to natural logarithms."),
        (len(share), "this counts the codes in use, however rarely: weigh them by their shares."),
        ((entropy / size).exp(), "a sum over the codes, not a mean."),
        (1 / share.square().sum(), "this is 1 / sum of p squared, another count; here it is exp of the entropy."),
    ])


class _Codes(nn.Module):
    """A right quantiser with both losses, which counts its calls."""

    def __init__(self, draw, size: int, dim: int):
        super().__init__()
        self.codebook, self.calls = nn.Parameter(draw(size, dim)), 0

    def forward(self, z: Tensor):
        """z (B,D,h,w) -> z_q (B,D,h,w), indices (B,h,w), loss ()"""
        self.calls += 1
        indices = nearest(z.detach(), self.codebook.detach())
        e = self.codebook[indices].permute(0, 3, 1, 2)
        return z + (e - z).detach(), indices, F.mse_loss(e, z.detach()) + 0.25 * F.mse_loss(z, e.detach())


@own_randomness()
def vq_vae_step(function):
    """`function(model, optimizer, x, distance)`: one step of (encoder, quantizer, decoder) -> loss (), indices."""
    draw = fresh()
    for side, rate, distance, training in ((4, 0.1, F.l1_loss, True), (6, 0.03, F.mse_loss, False)):
        encoder, decoder = nn.Conv2d(3, 2, 2, stride=2), nn.ConvTranspose2d(2, 3, 2, stride=2)
        model = nn.ModuleList([encoder, _Codes(draw, 5, 2), decoder]).train(training)
        with torch.no_grad():
            for p in (*encoder.parameters(), *decoder.parameters()):
                p.copy_(0.5 * draw(*p.shape))
        _one_step(function, model, draw(2, 3, side, side + 2), distance, Watched(
            model.parameters(), rate, draw, "the model"))
    passed("vq_vae_step: forward, both losses, one step for all three")


def _one_step(function, model: nn.ModuleList, x: Tensor, distance, watched: Watched):
    encoder, quantizer, decoder = model
    z = encoder(x)
    z_q, indices, vq = quantizer(z)
    loss, training = distance(decoder(z_q), x), model.training
    other = F.mse_loss if distance is F.l1_loss else F.l1_loss
    alone = quantizer.codebook[indices].permute(0, 3, 1, 2)
    watched.expect(loss + vq, [
        (loss, "the codes did not move: add the quantizer's own loss before backward()."),
        (vq, "only the quantizer's loss was followed; the picture's loss comes first."),
        (distance(decoder(z), x) + vq, "the decoder read z. It reads z_q, what is left after quantising."),
        (distance(decoder(z), x), "the decoder read z, and the quantizer's loss is missing."),
        (distance(decoder(z_q.detach()), x) + vq, "the encoder learned nothing from the picture: no detach there."),
        (distance(decoder(alone), x) + vq, "the decoder read the codes themselves; give it the quantizer's z_q, which "
                                           "passes the gradient on to the encoder."),
        (other(decoder(z_q), x) + vq, "the argument `distance` was not used."),
        (loss - vq, "the two losses are added."), (loss * vq, "the two losses are added, not multiplied."),
        (loss + 0.25 * vq, "the quantizer's loss has its weights inside already: add it as it is."),
    ])
    quantizer.calls = 0
    out = attempt(lambda: function(model, watched.optimizer, x, distance), name="vq_vae_step")
    got, found = several(out, "vq_vae_step", "two things: the loss of the picture and the indices")
    watched.judge("distance(decoder(z_q), x) + the quantizer's loss")
    if quantizer.calls != 1:
        raise CheckFailed(f"vq_vae_step called the quantizer {quantizer.calls} times. Once is enough, and each call "
                          "may change its running means.")
    compare(scalar(got), loss, "the returned loss", mistakes=[
        (loss + vq, "return the loss of the picture alone: it is what you compare between runs."),
        (vq, "this is the quantizer's loss; return the picture's."),
        (distance(decoder(encoder(x)), x), "return the loss as it was *before* the step.")])
    compare(found, indices, "the returned indices", shapes={
        tuple(z.shape): "return the indices (B,h,w), not the codes."})
    if model.training != training:
        raise CheckFailed("vq_vae_step left the model in another mode: leave train() and eval() to the caller.")
