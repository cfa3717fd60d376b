"""Where each word acts: the weights of every attention layer, recorded while a network runs."""

from contextlib import contextmanager

import torch
from torch import nn

from ..attention import Attention


@contextmanager
def record_attention(net: nn.Module, cross_only: bool = True):
    """Inside the `with`, every forward of `net` also records where its tokens look.

    Yields {module name: [weights (B,H,N,M) of each call, on the CPU]}. With `cross_only`, only attention to a context.

        with record_attention(unet) as maps:
            unet(x, t, cond)
        maps["up.3.attn.blocks.0.cross_attn"][0]
    """
    maps, hooks = {}, []

    def recorder(name):
        def hook(module, args, kwargs, output):
            with torch.no_grad():
                maps.setdefault(name, []).append(module.weights(*args, **kwargs).float().cpu())
        return hook

    for name, module in net.named_modules():
        if isinstance(module, Attention) and (module.context_dim is not None or not cross_only):
            hooks.append(module.register_forward_hook(recorder(name), with_kwargs=True))
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
