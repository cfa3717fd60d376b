"""Going on from a trained model: on other scenes, or with new conditions beside those that it knows."""

import torch


@torch.no_grad()
def start_from(source, target) -> None:
    """Give a fresh LatentDiffusion `target` the weights of the trained `source`, as far as they have the same parts.

    Parts of the conditioner that are new stay fresh; channels that are new to the network's first convolution start at
    0, and tokens that are absent are masked. So at the start `target` does with the old conditions what `source` does.
    Raises ValueError if the networks differ in more than the number of joined channels, or if their latents come from
    different first stages.
    """
    if not _alike(source.autoencoder, target.autoencoder):
        raise ValueError("--start-from: that model was trained on latents of another first stage. Give --autoencoder "
                         "the one that it was trained with.")
    weights, wanted = source.net.state_dict(), target.net.state_dict()
    stem = "down.0.0.weight"
    old, new = weights.get(stem), wanted.get(stem)
    if old is not None and new is not None and old.shape != new.shape and old.shape[0] == new.shape[0]:
        channels = target.net.config.in_channels
        if old.shape[1] != channels:
            raise ValueError(f"--start-from: that model joins {old.shape[1] - channels} channels of conditions, the "
                             f"recipe {new.shape[1] - channels}: start from one with the same, or without any.")
        weights[stem] = torch.cat([old, torch.zeros_like(new[:, channels:])], dim=1)
    try:
        target.net.load_state_dict(weights)
        theirs = {type(part): part for part in _parts(source)}
        for part in _parts(target):
            if type(part) in theirs:
                part.load_state_dict(theirs[type(part)].state_dict())
    except RuntimeError as error:
        raise ValueError(f"--start-from: that model has another shape than the recipe's. {error}") from None


def _alike(a, b) -> bool:
    """Whether two first stages, or none, have the same weights, as far as half precision can tell."""
    if a is None or b is None:
        return a is b
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(
        x.shape == b[name].shape and torch.allclose(x.float(), b[name].to(x.device).float(), rtol=2e-3, atol=1e-4)
        for name, x in a.items())


def _parts(ldm) -> list:
    return list(getattr(ldm.conditioner, "parts", [] if ldm.conditioner is None else [ldm.conditioner]))
