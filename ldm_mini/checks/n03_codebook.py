"""Checks of notebook 03, continued: what keeps the codes of a codebook alive."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import CheckFailed, attempt, compare, noise, passed, several


def ema_codebook(function):
    """`function(count, total, vectors, indices, decay)` -> codebook (K,D), count (K,), total (K,D), all new.

    count, total: running number and sum of the vectors (N,D) assigned to each code by indices (N,).
    """
    decay, vectors = 0.9, noise(20, 3)
    count, total = torch.tensor([2.0, 5.0, 1.0, 4.0]), noise(4, 3, seed=1)
    indices = torch.tensor([0, 1, 1, 3] * 5)                                    # code 2 gets nothing
    chosen = F.one_hot(indices, 4).float()
    number, sums = chosen.sum(0), chosen.T @ vectors
    mean = lambda a, b, d=decay: d * a + (1 - d) * b
    new_count, new_total = mean(count, number), mean(total, sums)
    out = attempt(function, count, total, vectors, indices, decay, name="ema_codebook")
    book, got_count, got_total = several(out, "ema_codebook", "three things: codebook, count, total")
    swapped = "decay is the part of the *old* value that stays: decay * old + (1 - decay) * new."
    batch_means = sums / number.clamp(min=1)[:, None]
    loose = {"rtol": 2e-3, "atol": 2e-3}                                        # some add a little to empty counts
    compare(got_count, new_count, "count", **loose, mistakes=[
        (mean(count, number, 1 - decay), swapped),
        (count, "the count did not move: it is a running mean of how many vectors choose each code."),
        (number, "this is the count of this batch alone: mix it with the old one."),
        (count + number, "counts must fade, or the codes stop moving: decay * old + (1 - decay) * new."),
        (torch.where(number > 0, new_count, count), "codes that got nothing fade too: their new number is 0."),
        (decay * count + number, "the new number has the weight 1 - decay."),
        (mean(count, number / len(indices)), "how many vectors, not which part of them."),
    ])
    compare(got_total, new_total, "total", **loose, mistakes=[
        (mean(total, sums, 1 - decay), swapped),
        (total, "the total did not move: it is a running mean of the sum of the vectors that choose each code."),
        (mean(total, batch_means), "the total is a running mean of the *sum* of a code's vectors, not of their mean: "
                                   "the division by the count comes last."),
        (torch.where(number[:, None] > 0, new_total, total), "codes that got nothing fade too: their sum is 0."),
        (decay * total + sums, "the new sum has the weight 1 - decay."),
    ])
    compare(book, new_total / new_count[:, None], "codebook", rtol=1e-2, atol=1e-2, mistakes=[
        (new_total, "divide the total by the count: a code is the mean of its vectors."),
        (batch_means, "this is the mean of this batch alone: new total / new count."),
        (total / count[:, None], "made from the old total and count: update them first."),
        (sums / new_count[:, None], "new total / new count."),
    ])
    passed("ema_codebook: every code is the running mean of its vectors, without any gradient")


def restart_dead(function):
    """`function(codebook, idle, vectors, patience)` -> codebook, idle: codes idle >= patience become random vectors."""
    codebook, vectors = 10 + noise(8, 3), noise(12, 3, seed=1)                  # few, so that a repeated draw shows
    idle = torch.tensor([0, 20, 3, 19, 21, 50, 0, 20])
    dead = idle >= 20
    places = []
    # random draws: look often enough that what never happens is no accident
    for _ in range(24):
        out = attempt(function, codebook, idle, vectors, 20, name="restart_dead")
        book, new_idle = several(out, "restart_dead", "two things: codebook, idle")
        compare(book, torch.where(dead[:, None], book if isinstance(book, Tensor) and book.shape == codebook.shape
                                  else codebook, codebook), "the codebook of living codes")
        found = (book[:, None] == vectors[None]).all(-1)                        # (K,N): which vector each code is
        if not found[dead].any(1).all():
            _name_failed_restart(book, codebook, idle, vectors)
        compare(new_idle, torch.where(dead, 0, idle), "idle", mistakes=[
            (idle, "a restarted code begins anew: set its idle to 0, or it is restarted again in every step."),
            (torch.zeros_like(idle), "only restarted codes begin anew; the others keep their count."),
        ])
        places.append(found[dead].int().argmax(1))
    if any(len(set(some.tolist())) < len(some) for some in places):
        raise CheckFailed("restart_dead gave several dead codes the same vector: they would share it, and one would "
                          "be dead again. Draw different ones, with torch.randperm.")
    if all(torch.equal(places[0], other) for other in places[1:]):
        raise CheckFailed("restart_dead takes the same vectors every time (the first are the top corner of the first "
                          "picture). Draw them at random, with torch.randperm.")
    if max(int(some.max()) for some in places) < len(codebook):
        raise CheckFailed("restart_dead only ever takes the first K vectors (the top of the first picture). Shuffle "
                          "all of them: torch.randperm(len(vectors)), and take as many as you need.")
    passed("restart_dead: unused codes get another life where the vectors are")


def _name_failed_restart(book: Tensor, codebook: Tensor, idle: Tensor, vectors: Tensor):
    kept = (book == codebook).all(1)
    if kept[idle >= 20].all():
        raise CheckFailed("restart_dead changed no code, but four had been idle for 20 steps or more.")
    if kept[idle == 20].all():
        raise CheckFailed("restart_dead left codes alone that had been idle for exactly `patience` steps: use >=.")
    raise CheckFailed("restart_dead: a dead code should become one of the given vectors, an encoder output as it is.")
