"""The quantiser against diffusers, brute force and hand computation."""

import copy

import pytest
import torch
from torch.testing import assert_close

from ldm_mini.quantizer import VectorQuantizer, VQBottleneck


def plain(codebook_size=16, dim=3, seed=0, **options):
    """A quantiser without data init or restarts, whose codes are N(0, 1)."""
    torch.manual_seed(seed)
    vq = VectorQuantizer(codebook_size, dim, init="uniform", **{"restart_after": None, **options})
    with torch.no_grad():
        vq.codebook.normal_()
    return vq


def latents(*shape, seed=1, requires_grad=False):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(requires_grad)


@pytest.mark.parametrize("weight", [0.25, 2.0])
def test_output_loss_and_gradients_equal_diffusers(weight):
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    vq = plain(commitment_weight=weight)
    theirs = vae.VectorQuantizer(16, 3, beta=weight, legacy=False)
    theirs.embedding.weight.data.copy_(vq.codebook.data)
    z, z2 = (latents(2, 3, 5, 4, requires_grad=True) for _ in range(2))
    target = latents(2, 3, 5, 4, seed=2)
    z_q, indices, loss = vq(z)
    their_q, their_loss, (_, _, their_indices) = theirs(z2)
    assert_close(indices.flatten(), their_indices)
    assert_close(z_q, their_q, rtol=0, atol=1e-6)
    assert_close(loss, their_loss, rtol=0, atol=1e-6)
    (loss + (z_q - target).square().mean()).backward()
    (their_loss + (their_q - target).square().mean()).backward()
    assert_close(z.grad, z2.grad, rtol=0, atol=1e-6)
    assert_close(vq.codebook.grad, theirs.embedding.weight.grad, rtol=0, atol=1e-6)


def test_straight_through_passes_the_gradient_unchanged():
    vq = plain()
    z, gradient = latents(2, 3, 4, 4, requires_grad=True), latents(2, 3, 4, 4, seed=3)
    z_q, _, _ = vq(z)
    z_q.backward(gradient)
    assert torch.equal(z.grad, gradient)
    assert vq.codebook.grad is None


def test_codes_are_the_nearest_by_brute_force():
    vq = plain(200, 5)
    z = latents(3, 5, 7, 6)
    z_q, indices, _ = vq(z)
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 5).double()
    distances = (vectors[:, None] - vq.codebook.double()[None]).square().sum(-1)                # (N,K)
    assert torch.equal(indices.flatten(), distances.argmin(dim=1))
    assert_close(z_q.permute(0, 2, 3, 1), vq.codebook[indices])


def test_published_size_needs_little_memory(monkeypatch):
    """16384 codes and 4096 vectors: never more than 64 MiB of distances at once; parts do not change the result."""
    sizes, addmm = [], torch.addmm

    def spy(*args, **kwargs):
        out = addmm(*args, **kwargs)
        sizes.append(out.numel())
        return out

    monkeypatch.setattr(torch, "addmm", spy)
    vq, z = plain(16384, 4).eval(), latents(1, 4, 64, 64)
    indices = vq(z)[1]
    assert max(sizes) <= 2**24 and indices.shape == (1, 64, 64) and indices.dtype == torch.int64
    monkeypatch.setattr("ldm_mini.quantizer.DISTANCES_AT_ONCE", 2**26)
    assert torch.equal(vq(z)[1], indices) and sizes[-1] == 2**26


def test_nearest_code_survives_autocast_and_half_precision():
    vq = plain(256, 3).eval()
    z = latents(2, 3, 16, 16)
    right = vq(z)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vq(z)[1], right)
        z_q, _, loss = vq(z.bfloat16())
    assert z_q.dtype == torch.bfloat16 and loss.dtype == torch.float32
    half = copy.deepcopy(vq).half()
    z_q, indices, _ = half(z.half())
    assert z_q.dtype == torch.float16 and (indices == right).float().mean() > 0.95
    assert vq(z.double())[0].dtype == torch.float64


def test_ema_update_by_hand():
    vq = plain(2, 1, ema_decay=0.9)
    vq.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    vq.ema_sum.copy_(vq.codebook)
    z = torch.tensor([1.0, 2.0, 3.0, 8.0]).view(1, 1, 2, 2).requires_grad_()
    z_q, indices, loss = vq(z)
    assert indices.flatten().tolist() == [0, 0, 0, 1]
    assert_close(z_q.flatten(), torch.tensor([0.0, 0.0, 0.0, 10.0]))  # the codes before the update
    assert_close(loss, torch.tensor(0.25 * (1 + 4 + 9 + 4) / 4))                                # commitment only
    counts = torch.tensor([0.9 * 1 + 0.1 * 3, 0.9 * 1 + 0.1 * 1])
    sums = torch.tensor([0.9 * 0 + 0.1 * 6, 0.9 * 10 + 0.1 * 8])
    smoothed = (counts + 1e-5) / (counts.sum() + 2e-5) * counts.sum()
    assert_close(vq.ema_count, counts)
    assert_close(vq.codebook.flatten(), sums / smoothed)
    loss.backward()
    assert z.grad.abs().sum() > 0 and not any(p.requires_grad for p in vq.parameters())


def test_ema_codes_converge_to_the_means_of_their_vectors():
    vq = plain(2, 2, ema_decay=0.8)
    z = torch.tensor([[3.0, 0.0], [4.0, 1.0], [-3.0, 0.0], [-5.0, 2.0]]).T.reshape(1, 2, 2, 2)
    vq.codebook.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    vq.ema_sum.copy_(vq.codebook)
    for _ in range(100):
        vq(z)
    assert_close(vq.codebook, torch.tensor([[3.5, 0.5], [-4.0, 1.0]]), rtol=1e-4, atol=1e-4)


def test_ema_codes_that_nothing_chooses_stay_finite():
    vq = plain(8, 2, ema_decay=0.5)
    for mean in (vq.ema_count, vq.ema_sum):                       # what very many steps alone leave
        mean.zero_()
    vq(latents(1, 2, 2, 2) * 0.1 + 5)                             # four vectors, so four codes at least stay alone
    assert vq.codebook.isfinite().all() and vq.codebook.abs().max() < 10


@pytest.mark.parametrize("ema_decay", [None, 0.99])
def test_first_batch_initialises_the_codebook(ema_decay):
    torch.manual_seed(0)
    vq = VectorQuantizer(16, 3, ema_decay=ema_decay)
    z = latents(1, 3, 8, 8) * 3 + 7
    vq.eval()(z)
    assert not vq.initialised and vq.codebook.abs().max() <= 1 / 16  # evaluation changes nothing
    vq.train()
    _, indices, _ = vq(z)
    assert vq.initialised
    assert len(indices.unique()) == 16                             # each code is its own nearest, as no two are alike
    if ema_decay is None:
        rows, before = z.permute(0, 2, 3, 1).reshape(-1, 3), vq.codebook.detach().clone()
        assert all((rows == code).all(dim=1).any() for code in before)                          # encoder outputs
        vq(z + 100)
        assert torch.equal(vq.codebook, before)                                                 # once only


def test_uniform_init_lets_one_code_win_and_data_init_does_not():
    torch.manual_seed(0)
    z = latents(4, 4, 16, 16)
    uniform, data = (VectorQuantizer(256, 4, init=init, restart_after=None) for init in ("uniform", "data"))
    used = [vq.used_fraction(vq(z)[1]) for vq in (uniform, data)]
    assert used[0] < 0.35 and used[1] > 0.95


def test_fewer_vectors_than_codes_still_initialise():
    vq = VectorQuantizer(64, 2)
    z = latents(1, 2, 3, 3)
    vq(z)
    assert len(vq.codebook.unique(dim=0)) == 9


def test_a_code_that_is_chosen_once_is_not_idle():
    vq = plain(2, 1, restart_after=9)
    with torch.no_grad():
        vq.codebook.copy_(torch.tensor([[0.0], [9.0]]))
    vq(torch.zeros(1, 1, 2, 2).index_put_((*torch.zeros(3, 1).long(), torch.tensor([1])), torch.tensor(9.0)))
    assert vq.usage.tolist() == [3, 1] and vq.idle.tolist() == [0, 0]


@pytest.mark.parametrize("ema_decay", [None, 0.99])
def test_dead_codes_restart_as_encoder_outputs_after_exactly_so_many_steps(ema_decay):
    vq = plain(4, 2, ema_decay=ema_decay, restart_after=3)
    with torch.no_grad():
        vq.codebook.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0], [-50.0, 0.0], [0.0, -50.0]]))
        if ema_decay:
            vq.ema_sum.copy_(vq.codebook)
            vq.ema_count.fill_(1.0)
    for step in (1, 2):
        vq(latents(1, 2, 4, 4, seed=step))
        assert vq.idle.tolist() == [0, step, step, step]
        assert vq.codebook[1:].abs().amax(dim=1).min() > 45
    z = latents(1, 2, 4, 4, seed=3)
    vq(z)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 2)
    assert all((rows == code).all(dim=1).any() for code in vq.codebook[1:].detach())
    assert not (rows == vq.codebook[0].detach()).all(dim=1).any()  # the living one was left alone
    assert vq.idle.tolist() == [0, 0, 0, 0]
    if ema_decay:
        assert_close(vq.ema_sum[1:] / vq.ema_count[1:, None], vq.codebook[1:])
    vq(z)
    assert vq.used_fraction(vq(z)[1]) > 0.5


def test_used_codes_are_never_restarted():
    vq = plain(4, 2, restart_after=1)
    with torch.no_grad():
        vq.codebook.copy_(torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]]))
    before = vq.codebook.detach().clone()
    for seed in range(5):
        vq(latents(1, 2, 8, 8, seed=seed))
    assert torch.equal(vq.codebook, before)


@pytest.mark.parametrize("ema_decay", [None, 0.95])
def test_resume_is_exact(ema_decay):
    def run(vq, steps):
        for step in steps:
            loss = vq(latents(1, 3, 6, 6, seed=step))[2]
            if ema_decay is None:
                vq.codebook.data -= 0.1 * torch.autograd.grad(loss, vq.codebook)[0]
        return copy.deepcopy(vq.state_dict())

    torch.manual_seed(0)
    vq, again = (VectorQuantizer(64, 3, ema_decay=ema_decay, restart_after=2) for _ in range(2))
    again.load_state_dict(run(vq, range(5)))
    rng = torch.get_rng_state()
    straight = run(vq, range(5, 10))
    torch.set_rng_state(rng)
    assert_close(run(again, range(5, 10)), straight, rtol=0, atol=0)


def test_evaluation_and_quantize_change_nothing():
    z = latents(2, 3, 8, 8)
    for ema_decay in (None, 0.9):
        vq = VectorQuantizer(32, 3, ema_decay=ema_decay, restart_after=1)
        vq(z)
        state = copy.deepcopy(vq.state_dict())
        vq.quantize(z + 1)                                       # in training mode
        VQBottleneck(vq).to_decoder(z + 1)
        vq.eval()(z + 1)
        assert_close(dict(vq.state_dict()), dict(state), rtol=0, atol=0)


def test_usage_perplexity_and_reset():
    vq = plain(4, 1)
    with torch.no_grad():
        vq.codebook.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    vq(torch.tensor([0.0, 0.1, 1.0, 1.1]).view(1, 1, 2, 2))
    assert vq.usage.tolist() == [2, 2, 0, 0]
    assert vq.perplexity() == pytest.approx(2) and vq.used_fraction() == 0.5
    vq(torch.tensor([2.0, 2.1, 3.0, 3.1]).view(1, 1, 2, 2))
    assert vq.perplexity() == pytest.approx(4) and vq.used_fraction() == 1
    assert vq.perplexity(torch.tensor([[0, 0, 0]])) == pytest.approx(1)
    assert vq.perplexity(torch.tensor([0, 0, 0, 1])) == pytest.approx(4 / 27**0.25)             # 4 / 3**(3/4)
    vq.usage.zero_()
    assert vq.used_fraction() == 0 and vq.perplexity() != vq.perplexity()  # NaN: nothing counted yet


def _worker(rank, store, result):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(rank)                                       # other draws, other data
    vq = VectorQuantizer(16, 3, ema_decay=0.9, restart_after=2)
    for step in range(4):
        vq(latents(1, 3, 4, 4, seed=10 * step + rank) + step)
    torch.save(vq.state_dict(), f"{result}.{rank}")
    dist.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_keep_one_codebook(tmp_path):
    import torch.multiprocessing as mp

    mp.spawn(_worker, args=(str(tmp_path / "store").replace("\\", "/"), str(tmp_path / "state")), nprocs=2)
    a, b = (torch.load(tmp_path / f"state.{rank}", weights_only=True) for rank in (0, 1))
    assert_close(a, b, rtol=0, atol=0)
    assert a["usage"].sum() == 4 * 2 * 16                         # both processes' vectors


def test_bottleneck_contract():
    bottleneck = VQBottleneck(plain())
    h = latents(2, 3, 4, 4)
    z, loss = bottleneck(h)
    assert loss.ndim == 0 and torch.equal(bottleneck.latent(h), h) and torch.equal(bottleneck.latent(h, sample=True), h)
    assert_close(bottleneck.to_decoder(h), z)
    assert bottleneck.latent_channels == 3 and bottleneck.moments_per_channel == 1


@pytest.mark.parametrize("options, words", [
    ({"ema_decay": 1.0}, "give None"), ({"ema_decay": 0.0}, "give None"), ({"restart_after": 0}, "give None"),
    ({"init": "zeros"}, "uniform")])
def test_errors_say_what_to_do(options, words):
    with pytest.raises(ValueError, match=words):
        VectorQuantizer(**options)


@pytest.mark.parametrize("options", [{"ema_decay": 0.9}, {"ema_decay": 0.9, "restart_after": 1}, {"restart_after": 1}])
def test_one_bad_batch_does_not_stay_in_the_codebook(options):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(16, 4, **options).train()
    quantizer(torch.randn(2, 4, 8, 8))
    bad = torch.randn(2, 4, 8, 8)
    bad[0, :, 0] = float("nan")
    bad[1, 2, 3, 3] = float("inf")
    quantizer(bad)
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())
    quantizer(torch.randn(2, 4, 8, 8).index_fill_(1, torch.tensor([2]), float("nan")))  # one number of each vector
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())
    _, indices, loss = quantizer(torch.randn(2, 4, 8, 8))
    assert loss.isfinite() and indices.unique().numel() > 4
