"""Muon: the update of a hidden weight matrix, made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

A gradient's singular values differ by orders of magnitude: a few directions learn, the others wait. Muon keeps the
directions of the momentum, U and V of its U S V^T, and sets all singular values to about 1, so that all of them learn.
"""

import torch
from torch import Tensor, nn

# A step is X <- a X + (b A + c A A) X with A = X X^T: each singular value s becomes a s + b s^3 + c s^5. These four
# sets, one per step, bring any s in (0.01, 1] near 1, as fast as such steps can (Polar Express, arXiv 2505.16932).
STEPS = ((8.2051, -22.9019, 16.4607), (4.0664, -2.8612, 0.5184), (3.9096, -2.8234, 0.5250), (3.2856, -2.4153, 0.4853))


def orthogonalize(matrices: Tensor, bf16: bool = False) -> Tensor:
    """(N,rows,columns) -> the same shape: U V^T of each U S V^T, all but tiny singular values between 0.4 and 1.6.

    bf16: in bfloat16, for machines that multiply faster so.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.02 + 1e-7)
    if bf16:
        # step by step: a Gram matrix of eight bits has lost the small singular values, and what is gathered below
        # would blow up
        x = x.bfloat16()
        for a, b, c in STEPS:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.mT if tall else x
    # every step multiplies X from the left by a polynomial of A, and these commute: gather them in the small square
    # `left`, and touch the wide X only at both ends
    gram, left, factor = x @ x.mT, None, None
    for a, b, c in STEPS:
        if factor is not None:
            gram = factor @ (gram @ factor)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        left = factor if left is None else factor @ left
    x = left @ x
    return x.mT if tall else x


def hidden_weights(model: nn.Module, smallest: int = 48, largest: int = 384) -> list[nn.Parameter]:
    """What Muon is for: trainable weights of Linear and Conv2d layers, wide on both sides. First and last layers are
    narrow on one, embeddings are tables, norms and biases are vectors: they are AdamW's. So are matrices over `largest`
    on both sides, for the work grows with the cube: a time embedding of 512 x 512 took a quarter of all Muon's time."""
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.MultiheadAttention))]
    weights = [m.in_proj_weight if isinstance(m, nn.MultiheadAttention) else m.weight for m in layers]
    return [w for w in weights if w is not None and w.requires_grad and smallest <= min(w.shape[:2]) <= largest]


class Muon(torch.optim.AdamW):
    """AdamW that gives parameter groups with `muon=True` Muon's step instead; their `lr` is Muon's.

    A convolution (out,in,k,k) counts as the matrix (out, in k k). The update is scaled by 0.2 sqrt(max(rows, columns)),
    which makes it as large as AdamW's (Moonlight, arXiv 2502.16982 sec. 2.2). betas[0] of such a group is its momentum.
    bf16: of `orthogonalize`; weights and momenta stay as they are.
    """

    def __init__(self, params, *args, bf16: bool = False, **options):
        super().__init__(params, *args, **options)
        self.bf16 = bf16

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every group."""
        every = self.param_groups
        # AdamW must not see the others
        self.param_groups = [group for group in every if not group.get("muon")]
        loss = super().step(closure)
        self.param_groups = every
        for group in every:
            if group.get("muon"):
                self._step_muon(group)
        return loss

    def _step_muon(self, group: dict) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                # the count is not used here; loading a saved state looks for it
                self.state[p].update(momentum=torch.zeros_like(p), step=torch.zeros(()))
        if not params:
            return
        momenta, grads = [self.state[p]["momentum"] for p in params], [p.grad for p in params]
        # 1. momentum, and a look ahead along it (Nesterov)
        torch._foreach_lerp_(momenta, grads, 1 - group["betas"][0])
        ahead = torch._foreach_lerp(grads, momenta, group["betas"][0])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        # 2. orthogonal, all matrices of a shape at once
        shapes = {}
        for p, u in zip(params, ahead, strict=True):
            shapes.setdefault((len(u), u[0].numel()), []).append((_last(p), _last(u)))
        for (rows, columns), pairs in shapes.items():
            updates = orthogonalize(torch.stack([u.reshape(rows, columns) for _, u in pairs]).float(), self.bf16)
            # 3. a step as long as AdamW's
            for (p, _), update in zip(pairs, updates, strict=True):
                p.add_(update.view(p.shape).to(p), alpha=-0.2 * max(rows, columns) ** 0.5 * group["lr"])


def _last(kernel: Tensor) -> Tensor:
    """A kernel with its input channels last, as it lies in memory; the order of a matrix' columns does not matter."""
    return kernel.permute(0, 2, 3, 1) if kernel.ndim == 4 else kernel
