"""Muon: orthogonal against an SVD, its step by hand, AdamW's groups as torch's own, and a saved state that goes on."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm_mini.muon import STEPS, Muon, hidden_weights, orthogonalize
from ldm_mini.train import MUON_BETAS, TrainState


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bf16, close", [(False, 2e-3), (True, 0.15)])
@pytest.mark.parametrize("rows, columns", [(48, 48), (48, 200), (200, 48)])
def test_orthogonalize_keeps_directions_and_levels_sizes(rows, columns, bf16, close):
    x = draw(2, rows, columns)
    got = orthogonalize(x, bf16).float()
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    # the same singular vectors: U^T got V is diagonal, and its diagonal is the polynomial of each singular value
    inside = u.mT @ got @ vh.mT
    sizes = s / (x.norm(dim=(1, 2)) * 1.02)[:, None]
    for a, b, c in STEPS:
        sizes = a * sizes + b * sizes**3 + c * sizes**5
    assert_close(inside, torch.diag_embed(sizes), atol=close, rtol=0)
    large = s > 0.05 * s[:, :1]
    assert sizes[large].min() > 0.4 and sizes[large].max() < 1.6


@pytest.mark.parametrize("columns", [64, 256])
def test_in_bfloat16_what_is_nearly_zero_does_not_blow_up(columns):
    """Singular values over five powers of ten; a Gram matrix in eight bits keeps those of two."""
    u, _, vh = torch.linalg.svd(draw(1, 64, columns), full_matrices=False)
    got = orthogonalize(u * torch.logspace(0, -5, 64) @ vh, bf16=True)
    assert got.dtype == torch.bfloat16 and torch.linalg.matrix_norm(got.float(), 2).max() < 1.7


def test_a_training_in_bfloat16_makes_its_matrices_so():
    weights = []
    for bf16 in (False, True):
        state = TrainState(net(), 1e-2, muon_lr=3e-2, bf16=bf16)
        # the same gradients: what differs is Muon's
        state.update(state.model(draw(4, 3, 5, 5)).square().mean())
        weights.append([p.detach() for p in hidden_weights(state.model)])
        assert all(p.dtype == torch.float32 for p in weights[-1])
    for a, b in zip(*weights, strict=True):
        assert not torch.equal(a, b)
        assert_close(a, b, atol=0.01, rtol=0)


def test_the_polynomials_level_every_size_that_a_matrix_can_have():
    """The norm bounds them by 1 / 1.02, which a matrix of rank one has; four polynomials leave 0.44 to 1.56."""
    sizes = torch.linspace(0.01, 1 / 1.02, 2000, dtype=torch.float64)
    for a, b, c in STEPS:
        sizes = a * sizes + b * sizes**3 + c * sizes**5
    assert (sizes - 1).abs().max() < 0.565


def test_the_step_of_a_matrix_and_of_a_kernel_by_hand():
    weight, kernel, grads = nn.Parameter(draw(8, 20)), nn.Parameter(draw(6, 4, 3, 3)), (draw(8, 20, seed=1),
                                                                                     draw(6, 4, 3, 3, seed=2))
    before = [weight.detach().clone(), kernel.detach().clone()]
    optimizer = Muon([{"params": [weight, kernel], "muon": True, "betas": MUON_BETAS}], lr=0.1, weight_decay=0.5)
    weight.grad, kernel.grad = grads
    optimizer.step()
    for p, old, grad in zip((weight, kernel), before, grads, strict=True):
        momentum = 0.05 * grad
        ahead = grad + 0.95 * (momentum - grad)
        update = orthogonalize(ahead.reshape(1, len(ahead), -1))[0].view_as(p)
        assert_close(p.detach(), old * (1 - 0.1 * 0.5) - 0.1 * 0.2 * max(len(p), p[0].numel()) ** 0.5 * update,
                     atol=1e-4, rtol=1e-4)


def test_the_next_step_remembers_the_one_before():
    """By hand; the direction alone does not show it, since an update has one size, whatever its gradient's."""
    weight, first, second = nn.Parameter(draw(8, 20)), draw(8, 20, seed=1), draw(8, 20, seed=2)
    optimizer = Muon([{"params": [weight], "muon": True, "betas": MUON_BETAS}], lr=0.1, weight_decay=0.0)
    weight.grad = first
    optimizer.step()
    before, weight.grad = weight.detach().clone(), second.clone()
    optimizer.step()
    momentum = 0.95 * (0.05 * first) + 0.05 * second
    update = orthogonalize((0.05 * second + 0.95 * momentum)[None])[0]
    assert_close(weight.detach(), before - 0.1 * 0.2 * 20**0.5 * update, atol=1e-4, rtol=1e-4)


def test_other_groups_are_adamws():
    mine, theirs = nn.Parameter(draw(5)), nn.Parameter(draw(5))
    ours, plain = Muon([{"params": [mine]}], lr=0.1, betas=(0.5, 0.9)), torch.optim.AdamW([theirs], lr=0.1,
                                                                                          betas=(0.5, 0.9))
    for i in range(3):
        mine.grad = theirs.grad = draw(5, seed=i)
        ours.step()
        plain.step()
    assert_close(mine, theirs, atol=0, rtol=0)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.SiLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64, 48),
                         nn.LayerNorm(48), nn.Linear(48, 2))


def test_hidden_weights_are_the_wide_ones():
    model = net()
    assert [tuple(w.shape) for w in hidden_weights(model)] == [(64, 64, 3, 3), (48, 64)]
    model[2].weight.requires_grad_(False)
    assert len(hidden_weights(model)) == 1
    assert len(hidden_weights(nn.MultiheadAttention(64, 2))) == 2


def test_train_state_sorts_and_slows_and_goes_on_bit_by_bit():
    x, states = draw(4, 3, 5, 5), []
    for steps in (4, 2):
        state = TrainState(net(), 1e-2, muon_lr=3e-2, slower={"4.": 0.5})
        for _ in range(steps):
            state.update(state.model(x).square().mean(), factor=0.5)
        states.append(state)
    whole, half = states
    assert sorted((g.get("muon", False), g["lr"]) for g in half.optimizer.param_groups) == [
        (False, 0.0025), (False, 0.005), (True, 0.0075), (True, 0.015)]
    again = TrainState(net(), 1e-2, muon_lr=3e-2, slower={"4.": 0.5})
    again.load_state_dict(half.state_dict())
    for _ in range(2):
        again.update(again.model(x).square().mean(), factor=0.5)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_channels_last_changes_nothing():
    plain, last = net(), net().to(memory_format=torch.channels_last)
    for model in (plain, last):
        state = TrainState(model, 1e-2, muon_lr=3e-2)
        for _ in range(2):
            state.update(model(draw(4, 3, 5, 5)).square().mean())
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-4)
