"""Checks of notebook 03, continued: what keeps the codes of a codebook alive."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import CheckFailed, attempt, compare, passed, several
from .properties import fresh, own_randomness, same_dtype


def ema_codebook(function):
    """`function(count, total, vectors, indices, decay)` -> codebook (K,D), count (K,), total (K,D), all new.

    count, total: running number and sum of the vectors (N,D) assigned to each code by indices (N,).
    """
    draw = fresh()
    # code 2 gets nothing; then the last one, which one_hot and bincount leave out unless they are told the number
    for decay, codes, dim, chosen in ((0.9, 4, 3, [0, 1, 1, 3]), (0.6, 6, 2, [4, 0, 2, 2, 3, 1, 0])):
        vectors, indices = draw(5 * len(chosen), dim), torch.tensor(chosen * 5)
        count, total = 1 + 4 * draw(codes).sigmoid(), draw(codes, dim)
        out = attempt(function, count, total, vectors, indices, decay, name="ema_codebook")
        book, got_count, got_total = several(out, "ema_codebook", "three things: codebook, count, total")
        _judge_means(book, got_count, got_total, count, total, vectors, indices, decay)
        for got, name in ((book, "codebook"), (got_count, "count"), (got_total, "total")):
            same_dtype(got, total, name)
    passed("ema_codebook: every code is the running mean of its vectors, without any gradient")


def _judge_means(book, got_count, got_total, count, total, vectors, indices, decay: float):
    chosen = F.one_hot(indices, len(count)).float()
    number, sums = chosen.sum(0), chosen.T @ vectors
    mean = lambda a, b, d=decay: d * a + (1 - d) * b
    new_count, new_total = mean(count, number), mean(total, sums)
    short = {(len(count) - 1,): "the last code got nothing and was left out: tell one_hot or bincount the number of "
                                "codes, len(count)."}
    constant = "decay is a fixed number: use the argument."
    swapped = "decay is the part of the *old* value that stays: decay * old + (1 - decay) * new."
    batch_means = sums / number.clamp(min=1)[:, None]
    loose = {"rtol": 2e-3, "atol": 2e-3}                                        # some add a little to empty counts
    compare(got_count, new_count, "count", **loose, shapes=short, mistakes=[
        *[(mean(count, number, d), constant) for d in (0.9, 0.99)],
        (mean(count, number, 1 - decay), swapped),
        (count, "the count did not move: it is a running mean of how many vectors choose each code."),
        (number, "this is the count of this batch alone: mix it with the old one."),
        (count + number, "counts must fade, or the codes stop moving: decay * old + (1 - decay) * new."),
        (torch.where(number > 0, new_count, count), "codes that got nothing fade too: their new number is 0."),
        (decay * count + number, "the new number has the weight 1 - decay."),
        (mean(count, number / len(indices)), "how many vectors, not which part of them."),
    ])
    compare(got_total, new_total, "total", **loose, mistakes=[
        *[(mean(total, sums, d), constant) for d in (0.9, 0.99)],
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
        (new_total / count[:, None], "new total / *new* count."),
    ])


def restart_dead(function):
    """`function(codebook, idle, vectors, patience)` -> codebook, idle: codes idle >= patience become random vectors."""
    draw = fresh()
    with own_randomness():
        # few vectors, so that a repeated draw shows
        _restarts(function, 10 + draw(8, 3), torch.tensor([0, 20, 3, 19, 21, 50, 0, 20]), draw(12, 3), 20)
        _restarts(function, draw(5, 2) - 10, torch.tensor([7, 6, 8, 0, 5]), draw(9, 2), 7)
        # none is dead, and all are
        _one_restart(function, draw(4, 3), torch.tensor([0, 4, 2, 1]), draw(6, 3), 5)
        _one_restart(function, 10 + draw(4, 3), torch.tensor([5, 9, 6, 7]), draw(6, 3), 5)
    passed("restart_dead: unused codes get another life where the vectors are")


def _one_restart(function, codebook: Tensor, idle: Tensor, vectors: Tensor, patience: int) -> Tensor:
    """One call, judged -> which vector each dead code became."""
    dead = idle >= patience
    out = attempt(function, codebook, idle, vectors, patience, name="restart_dead")
    book, new_idle = several(out, "restart_dead", "two things: codebook, idle")
    compare(book, torch.where(dead[:, None], book if isinstance(book, Tensor) and book.shape == codebook.shape
                              else codebook, codebook), "the codebook of living codes")
    same_dtype(book, codebook, "codebook")
    found = (book[:, None] == vectors[None]).all(-1)                            # (K,N): which vector each code is
    if not found[dead].any(1).all():
        _name_failed_restart(book, codebook, idle, found.any(1), patience)
    compare(new_idle, torch.where(dead, 0, idle), "idle", mistakes=[
        (idle, "a restarted code begins anew: set its idle to 0, or it is restarted again in every step."),
        (torch.zeros_like(idle), "only restarted codes begin anew; the others keep their count."),
        (torch.where(dead, 0, idle + 1), "idle is counted elsewhere: only set it to 0 where a code begins anew."),
    ])
    return found[dead].int().argmax(1)


def _restarts(function, codebook: Tensor, idle: Tensor, vectors: Tensor, patience: int):
    # random draws: look often enough that what never happens is no accident
    places = [_one_restart(function, codebook, idle, vectors, patience) for _ in range(24)]
    if any(len(set(some.tolist())) < len(some) for some in places):
        raise CheckFailed("restart_dead gave several dead codes the same vector: they would share it, and one would "
                          "be dead again. Draw different ones, with torch.randperm.")
    if all(torch.equal(places[0], other) for other in places[1:]):
        raise CheckFailed("restart_dead takes the same vectors every time (the first are the top corner of the first "
                          "picture). Draw them at random, with torch.randperm.")
    if max(int(some.max()) for some in places) < len(codebook):
        raise CheckFailed("restart_dead only ever takes the first K vectors (the top of the first picture). Shuffle "
                          "all of them: torch.randperm(len(vectors)), and take as many as you need.")


def _name_failed_restart(book: Tensor, codebook: Tensor, idle: Tensor, found: Tensor, patience: int):
    kept = (book == codebook).all(1)
    dead = idle >= patience
    if kept[dead].all():
        raise CheckFailed(f"restart_dead changed no code, but {int(dead.sum())} had been idle for {patience} steps or "
                          "more.")
    if (idle == patience).any() and kept[idle == patience].all() and not kept[idle > patience].any():
        raise CheckFailed("restart_dead left codes alone that had been idle for exactly `patience` steps: use >=.")
    if (kept | found)[dead].all():
        raise CheckFailed(f"restart_dead left some codes alone that had been idle for `patience` = {patience} steps or "
                          "more: replace all of them.")
    raise CheckFailed("restart_dead: a dead code should become one of the given vectors, an encoder output as it is.")
