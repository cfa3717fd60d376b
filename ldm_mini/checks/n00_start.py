"""Checks of notebook 00, start here."""

import torch

from .checking import CheckFailed, attempt, compare, noise, passed, several


def to_picture(function):
    """`function(x)`: network output (B,3,H,W), nominally in [-1,1] -> uint8 picture (B,H,W,3) in 0..255."""
    x = torch.cat([noise(1, 3, 4, 6), torch.tensor([-1.5, -1.0, -0.25, 0.0, 0.25, 1.5]).expand(1, 3, 4, 6)])
    right = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    scaled = (x + 1) * 127.5
    got = attempt(function, x, name="to_picture")
    compare(got, right, "to_picture(x)", atol=1.01, mistakes=[
        (scaled.round().to(torch.int64).to(torch.uint8).permute(0, 2, 3, 1),
         "values outside [-1, 1] wrapped around to the other end. Clamp before converting to uint8."),
        ((x.clamp(0, 1) * 255).round().permute(0, 2, 3, 1), "the input lives in [-1, 1], not [0, 1]: shift it."),
        (((x.clamp(-1, 1) + 1) * 127.5).round().reshape(2, 4, 6, 3),
         "reshape scrambles the pixels; moving an axis needs permute (or einops.rearrange)."),
    ])
    passed("to_picture: right range, right axes, nothing wraps around")


def guidance(function):
    """`function(uncond, cond, scale)`: classifier-free guidance, u + s (c - u)."""
    u, c = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1)
    backwards = "the arrow points the wrong way: move from the unconditional prediction towards the conditional one."
    for s in (4.0, 1.0, 0.0):
        got = attempt(function, u, c, s, name="guide")
        compare(got, u + s * (c - u), f"guide(u, c, {s:g})", mistakes=[
            (c + s * (c - u), "the other convention (Ho & Salimans' w = s - 1). Here a scale of 1 means: no guidance."),
            (c + s * (u - c), backwards),
            (u + s * (u - c), backwards),
            (u + s * c, "add the *difference* c - u, not c itself."),
        ])
    passed("guide: 0 ignores the caption, 1 follows it, more than 1 exaggerates it")


def latent_numbers(function):
    """`function(height, width, f, channels)`: (numbers in an RGB picture, numbers in its latent)."""
    for h, w, f, c in ((64, 64, 4, 3), (256, 256, 8, 4), (512, 256, 16, 16)):
        right, call = (h * w * 3, (h // f) * (w // f) * c), f"latent_numbers({h}, {w}, {f}, {c})"
        got = several(attempt(function, h, w, f, c, name="latent_numbers"), call, "two numbers (picture, latent)")
        if got == (right[0], h * w // f * c):
            raise CheckFailed(f"{call}: f divides the height *and* the width, so the area shrinks by f squared.")
        if got == (h * w, right[1]):
            raise CheckFailed(f"{call}: a picture has three numbers per pixel (red, green, blue).")
        if got != right:
            raise CheckFailed(f"{call} returned {got}; it should be {right}.")
    passed("latent_numbers: the diffusion model sees that many times fewer numbers")
