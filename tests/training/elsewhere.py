"""Pretend that some tensors lie on a GPU: real numbers, computed on the CPU, and every mixture of places is refused.

    with Elsewhere() as gpu:
        gpu.put(model)
        model.loss(batch)

Whoever asks a tensor for its device and hands that on (`device=x.device`, `.to(x)`) makes a tensor on the GPU; whoever
names no device, or gives a generator, makes one on the CPU. Then, as on CUDA and MPS: operations of tensors in two
places raise WrongPlace, except for single numbers, index tensors from the CPU, and `copy_`; so do `.numpy()` on the GPU
and float64, which MPS does not know.
"""

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

MOVES = ("to", "type_as", "as_tensor", "asarray")                   # their result lies where they are told
MADE_LIKE = ("_like", "new_")                                       # zeros_like, new_zeros
TAKES_ANY = ("copy_", "__getitem__", "__setitem__", "index_select", "__get__", "__set__", "__repr__", "size", "dim",
             "requires_grad_", "is_floating_point", "is_complex", "numel", "backward", "set_", "data_ptr", "stride",
             "__len__", "tolist", "item", "detach_", "load", "__hash__", "register_hook", "is_contiguous", "type")


class WrongPlace(Exception):
    """A tensor on the CPU met one on the GPU."""


def on_gpu(x: Tensor) -> bool:
    """Was it put, moved or made there?"""
    return getattr(x, "on_gpu", False)


class Elsewhere(TorchFunctionMode):
    """See above."""

    def put(self, what):
        """Move a module, or a tensor, to the GPU; returns it."""
        for x in ([*what.parameters(), *what.buffers()] if isinstance(what, nn.Module) else [what]):
            x.on_gpu = True
        return what

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        out = func(*args, **kwargs)
        if name in ("numpy", "__array__") and on_gpu(args[0]):
            raise WrongPlace("numpy of a tensor on the GPU")
        if name == "cpu":
            return self._label(out.clone() if out is args[0] else out, False)
        device = kwargs.get("device") or next((a for a in args if isinstance(a, torch.device)), None)
        if name in MOVES:
            told = [a for a in (*args[1:], *kwargs.values()) if isinstance(a, (Tensor, torch.device, str))]
            there = on_gpu(args[0]) if isinstance(args[0], Tensor) else False
            for a in told:
                there = on_gpu(a) if isinstance(a, Tensor) else not isinstance(a, str)
            if any(out is x for x in given) and there != on_gpu(out):
                out = out.clone()
            return self._label(out, there)
        if name in TAKES_ANY:
            there = on_gpu(args[0]) if args and isinstance(args[0], Tensor) else False
            return self._label(out, there, keep=True)
        if any(part in name for part in MADE_LIKE):
            return self._label(out, device is not None or on_gpu(args[0]))
        if not given:
            # a generator belongs to a device, here always to the CPU, and can draw nowhere else
            told = device is not None and not isinstance(device, str)
            return self._label(out, told and kwargs.get("generator") is None)
        places = {on_gpu(x) for x in given if x.ndim}
        if len(places) > 1:
            shapes = [(tuple(x.shape), "GPU" if on_gpu(x) else "CPU") for x in given]
            raise WrongPlace(f"{resolve_name(func) or name} of tensors in two places: {shapes}")
        return self._label(out, any(on_gpu(x) for x in given))

    def _label(self, out, there: bool, keep: bool = False):
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and not (keep and hasattr(x, "on_gpu")):
                if there and x.dtype == torch.float64:
                    raise WrongPlace("float64 on the GPU: MPS does not know it")
                x.on_gpu = there
        return out
