"""The adversary of the first stage: a critic of patches, hinge losses, and the weight that balances them (VQGAN).

Built in notebook 05.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """PatchGAN (pix2pix, arXiv 1611.07004): 4x4 convolutions that judge every patch of an image on its own.

    num_layers: number of strided convolutions. 3 sees patches of 70 pixels, 2 of 34, 1 of 16; fewer for small images,
                whose sides must have 3 * 2**num_layers pixels or more.
    channels:   width after the first convolution; doubles up to 8-fold.
    """

    def __init__(self, in_channels: int = 3, channels: int = 64, num_layers: int = 3):
        super().__init__()
        self.in_channels, self.channels, self.num_layers = in_channels, channels, num_layers
        widths = [channels * min(2**n, 8) for n in range(num_layers + 1)]
        # no norm in the first layer nor the last: colours and verdicts keep their scale
        layers = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, num_layers + 1):
            # all halve the size but the last
            layers += [nn.Conv2d(widths[n - 1], widths[n], 4, stride=2 if n < num_layers else 1, padding=1, bias=False),
                       nn.BatchNorm2d(widths[n]), nn.LeakyReLU(0.2)]
        layers += [nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1)]
        self.main = nn.Sequential(*layers)
        self.apply(_dcgan_init)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,C,H,W) -> logits (B,1,h,w), one per patch, high = real; h = H / 2**num_layers - 2."""
        return self.main(x)

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the patch behind one logit."""
        size = 1
        # from one logit back to the image: n outputs of a layer see (n - 1) * stride + kernel of its inputs
        for layer in reversed([m for m in self.main if isinstance(m, nn.Conv2d)]):
            size = (size - 1) * layer.stride[0] + layer.kernel_size[0]
        return size


def _dcgan_init(module: nn.Module):
    """Convolutions N(0, 0.02), norms N(1, 0.02), as in DCGAN (arXiv 1511.06434): a quiet start."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def hinge_d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """logits of any shape -> (): 0.5 * (mean max(0, 1 - real) + mean max(0, 1 + fake)).

    The fake logits are those of detached reconstructions. The VQGAN paper writes log D + log(1 - D); the hinge is what
    its code runs.
    """
    return 0.5 * (F.relu(1 - real_logits.float()).mean() + F.relu(1 + fake_logits.float()).mean())


def hinge_g_loss(fake_logits: Tensor) -> Tensor:
    """logits of any shape -> (): -mean(fake), so that the autoencoder wants to be taken for real."""
    return -fake_logits.float().mean()


def adaptive_weight(nll: Tensor, g_loss: Tensor, last_layer: Tensor) -> Tensor:
    """lambda = |grad nll| / (|grad g_loss| + 1e-4), clamped to [0, 1e4], without gradient (VQGAN eq. 7): ().

    The gradients are those of the decoder's last weight, where both losses arrive: the adversarial one is made as
    strong as the reconstruction. The VQGAN paper adds 1e-6 below the line; its code, and LDM's, 1e-4.
    """
    # validation, under no_grad: there is nothing to measure, and nothing to train
    if not (nll.requires_grad and g_loss.requires_grad):
        return torch.zeros((), device=nll.device)
    # how hard each loss pulls at that weight; the backward pass that follows still needs both graphs
    nll_grad, g_grad = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float() for loss in (nll, g_loss))
    return (nll_grad.norm() / (g_grad.norm() + 1e-4)).clamp(0.0, 1e4)
