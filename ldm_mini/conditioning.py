"""The contract of all conditioners: a conditioner turns keys of a batch into a Cond, or into "nothing" (LDM sec. 3.3).

encode(batch) -> Cond and null(batch) -> Cond of the same parts and shapes, so that a sample's condition can be dropped
in training, and both halves of guidance fit in one batch. The conditioners themselves: `conditioners` (text, class, any
combination), `layout_conditioner` (boxes), `concat_conditioners` (small images, maps, pictures with holes).
"""

from collections.abc import Mapping

from torch import Tensor, nn

from .cond import Cond


def batch_size(batch: dict) -> int:
    """How many samples a batch holds. Raises ValueError if it is empty or its entries disagree."""
    example = 'such as {"caption": ["a dog"] * 8}'
    if not isinstance(batch, Mapping):
        raise ValueError(f"A batch is a dict of lists or tensors, {example}; got a {type(batch).__name__}.")
    several = {key: value for key, value in batch.items() if hasattr(value, "__len__") and not isinstance(value, str)}
    sizes = {key: len(value) for key, value in several.items() if getattr(value, "ndim", 1)}
    if len(set(sizes.values())) != 1 or len(sizes) < len(batch):
        found = {key: sizes.get(key, "a single value") for key in batch} if batch else "an empty one"
        raise ValueError(f"A batch is a dict of lists or tensors of one length, {example}; got {found}.")
    return next(iter(sizes.values()))


class Conditioner(nn.Module):
    """Base of all conditioners. `keys`: the batch entries that it reads."""

    keys: tuple[str, ...] = ()

    def encode(self, batch: dict) -> Cond:
        """The condition of each of the batch's B samples."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(batch) -> Cond.")

    def null(self, batch: dict) -> Cond:
        """"No condition" for B samples, with the same parts and shapes as encode(batch)."""
        raise NotImplementedError(f"{type(self).__name__} must define null(batch) -> Cond with the shapes of encode.")

    def present(self, batch: dict) -> bool:
        """Whether the batch holds what this condition reads."""
        return all(key in batch for key in self.keys)

    def image_size(self, batch: dict) -> tuple[int, int] | None:
        """(height, width) of the pictures that the batch asks for; None if this condition fits every size."""
        return None

    def use_first_stage(self, autoencoder) -> None:
        """LatentDiffusion shows every conditioner its first stage, so that none has to keep a second copy."""

    def finish(self, images: Tensor, batch: dict) -> Tensor:
        """Finished samples (B,3,H,W) -> the same, with what the condition knows for certain put in."""
        return images

    def to_config(self) -> dict:
        """What `build_conditioner` needs to build it again; kept as JSON beside the weights."""
        raise NotImplementedError(f"{type(self).__name__} has no to_config(), so a checkpoint cannot describe it: "
                                  "build it yourself and pass it when you load the weights.")

    def _read(self, batch: dict, key: str):
        if key not in batch:
            raise ValueError(f"{type(self).__name__} reads batch[{key!r}], but the batch has only {sorted(batch)}.")
        return batch[key]
