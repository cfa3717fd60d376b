"""Training: the loops learn, the losses are the paper's, gates open at the right step, averages and rates are exact."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.discriminator import PatchDiscriminator
from ldm_mini.ema import EMA, ema_decay
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.schedule import NoiseSchedule, cosine_betas
from ldm_mini.train import (
    FirstStageLoss,
    Log,
    TrainState,
    first_stage_loss,
    lr_factor,
    seeded,
    train_autoencoder,
    train_diffusion,
)
from ldm_mini.training.latents import LatentCache, cache_latents
from ldm_mini.unet import UNet, UNetConfig


def micro_autoencoder(seed=0):
    torch.manual_seed(seed)
    config = AutoencoderConfig(downsample_factor=2, channels=8, channel_mults=(1, 1), num_res_blocks=1, mid_attn=False,
                               groups=2)
    return Autoencoder(config, VQBottleneck(VectorQuantizer(16, 3)))


def micro_critic(lr=1e-3):
    return TrainState(PatchDiscriminator(channels=4, num_layers=1), lr, betas=(0.5, 0.9), weight_decay=0.0)


def micro_diffusion():
    torch.manual_seed(0)
    net = UNet(UNetConfig(3, channels=8, channel_mults=(1,), num_res_blocks=1, attn_levels=(), head_dim=8, groups=2))
    return LatentDiffusion(micro_autoencoder(), net, NoiseSchedule(cosine_betas(50)), prediction="v")


def pictures(n=8, size=16, seed=0):
    """Blocks of flat colour: something a tiny autoencoder can learn."""
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=generator) * 2 - 1, size=size)


class Squared(nn.Module):
    """A stand-in for a perceptual distance, (B,) like the real one; counts its calls."""

    calls = 0

    def forward(self, x, y):
        Squared.calls += 1
        return (x - y).square().flatten(1).mean(1)


def test_autoencoder_learns():
    state = TrainState(micro_autoencoder(), lr=1e-2, seed=0)
    logs = [log.l1 for log in train_autoencoder(state, [pictures(4)], 80, perceptual_weight=0, disc_weight=0)]
    assert logs[-1] < 0.6 * logs[0]


def first_stage(ae, x, weights=FirstStageLoss(), perceptual=None, critic=None):
    x_rec, bottleneck = ae(x)
    return *first_stage_loss(x, x_rec, bottleneck, weights, perceptual, critic, ae.last_layer), x_rec


def test_l1_only_is_l1_and_codebook_loss_only():
    ae, x = micro_autoencoder().eval(), pictures()
    loss, terms, x_rec = first_stage(ae, x)
    assert_close(loss, (x - x_rec).abs().mean() + ae(x)[1])
    assert set(terms) == {"l1", "bottleneck"} and not any(value.requires_grad for value in terms.values())


def test_every_term_is_in_the_loss():
    judge, x = PatchDiscriminator(channels=4, num_layers=1).eval(), pictures()
    weights = FirstStageLoss(perceptual_weight=0.3, mse_weight=0.7, disc_weight=0.5)
    loss, terms, x_rec = first_stage(micro_autoencoder().eval(), x, weights, Squared(), judge)
    mse = (x - x_rec).square().mean()
    expected = terms["l1"] + 0.7 * mse + 0.3 * mse + terms["bottleneck"] - 0.5 * terms["lambda"] * judge(x_rec).mean()
    assert_close(loss.detach(), expected.detach())
    assert terms["lambda"] > 0


def test_adaptive_weight_balances_the_gradients():
    """lambda times the adversarial gradient at the last layer is as long as the reconstruction gradient there."""
    ae, judge, x = micro_autoencoder(), PatchDiscriminator(channels=4, num_layers=1), pictures()
    nn.init.normal_(judge.main[-1].weight)  # well above delta
    x_rec, _ = ae(x)
    nll, g = (x - x_rec).abs().mean(), -judge(x_rec).mean()
    nll_norm, g_norm = (torch.autograd.grad(v, ae.last_layer, retain_graph=True)[0].norm() for v in (nll, g))
    _, terms, _ = first_stage(ae, x, critic=judge)
    assert_close(terms["lambda"] * g_norm, nll_norm, rtol=2e-2, atol=0)


def test_gates_open_at_their_own_step():
    """Step numbers count from 0, and step == start is on."""
    Squared.calls = 0
    state = TrainState(micro_autoencoder(), lr=1e-3, seed=0, adversary=micro_critic())
    before = copy.deepcopy(state.adversary.model.state_dict())
    logs = []
    for log in train_autoencoder(state, [pictures()], 6, perceptual=Squared(), perceptual_start=2, disc_start=4):
        logs.append(log.floats())
        changed = any(not torch.equal(v, before[k]) for k, v in state.adversary.model.state_dict().items())
        assert changed == (log.step > 4), "the discriminator must rest before disc_start"
    assert ["perceptual" in log for log in logs] == [False] * 2 + [True] * 4
    assert ["g_loss" in log and "d_loss" in log for log in logs] == [False] * 4 + [True] * 2
    assert Squared.calls == 4 and state.adversary.step == 2 and state.step == 6


def test_the_critic_is_shown_reconstructions_as_fakes():
    """In the autoencoder's turn it sees these alone; in its own, pictures come first, as the real ones."""
    adversary, seen, judged = micro_critic(), [], []
    state = TrainState(micro_autoencoder(), lr=1e-3, seed=0, adversary=adversary)
    assert state.rank == 0
    adversary.model.register_forward_hook(lambda module, args, out: seen.append(args[0].detach().clone()))
    state.model.register_forward_hook(lambda module, args, out: judged.append(out[0].detach().clone()))
    x = pictures()
    before = [(adversary.model(v).mean()).item() for v in (x, state.model(x)[0])]
    seen.clear(), judged.clear()
    for _ in train_autoencoder(state, [x] * 30, 30, perceptual_weight=0):
        pass
    assert torch.equal(seen[0], judged[0]), "the autoencoder's turn"
    after = [(adversary.model(v).mean()).item() for v in (x, state.model(x)[0])]
    assert after[0] - after[1] > before[0] - before[1], "what is real is told from what is not"


def test_generator_step_gives_the_discriminator_no_gradient():
    adversary, seen = micro_critic(), []
    state = TrainState(micro_autoencoder(), lr=1e-3, seed=0, adversary=adversary)
    update = adversary.update
    adversary.update = lambda *args: seen.append([p.grad for p in adversary.parameters]) or update(*args)
    next(train_autoencoder(state, [pictures()], 1, perceptual_weight=0, disc_weight=0))
    assert not seen and adversary.step == 0, "a weight of 0 switches the critic off"
    next(train_autoencoder(state, [pictures()], 2, perceptual_weight=0))
    assert seen and all(grad is None for grad in seen[0]), "the generator's backward pass reached the discriminator"
    assert all(p.grad is not None for p in adversary.parameters), "its own did not"


def test_diffusion_learns_and_leaves_the_first_stage_alone():
    ldm = micro_diffusion()
    first = copy.deepcopy(ldm.autoencoder.state_dict())
    state = TrainState(ldm, lr=3e-3, ema_decay=0.99, seed=0)
    batch = {"latent": pictures(16, 8)}
    losses = [log.loss for log in train_diffusion(state, [batch], 120, warmup=10, decay="cosine")]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert_close(ldm.autoencoder.state_dict(), first, rtol=0, atol=0)
    assert not ldm.autoencoder.training and ldm.net.training
    assert all(name.startswith("net.") for name in state.ema.averages)


def test_log_comes_after_optimizer_and_ema():
    state = TrainState(micro_diffusion(), lr=1e-2, ema_decay=0.9, seed=0)
    start = {n: p.detach().clone() for n, p in state.model.named_parameters() if p.requires_grad}
    log = next(train_diffusion(state, [{"latent": pictures(4, 8)}], 5))
    assert log.step == state.step == state.ema.updates == 1
    now = {n: p.detach() for n, p in state.model.named_parameters() if p.requires_grad}
    assert any(not torch.equal(p, start[n]) for n, p in now.items())
    for n, p in now.items():
        assert_close(state.ema.averages[n], 2 / 11 * start[n] + 9 / 11 * p)


def test_ema_decay_is_the_papers():
    assert ema_decay(1) == 2 / 11 and ema_decay(2) == 3 / 12 and ema_decay(10**6) == 0.9999
    model = nn.Linear(2, 1)
    ema, weights = EMA(model), model.weight
    expected = weights.detach().clone()
    for n in range(1, 6):
        with torch.no_grad():
            weights.add_(1.0)
        ema.update(model)
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay) * weights.detach()
    assert_close(ema.averages["weight"], expected)


def test_ema_applied_and_put_back_even_after_an_error():
    model = nn.Linear(2, 1)
    ema, trained = EMA(model), model.weight.detach().clone() + 1
    averaged = ema.averages["weight"].clone()
    with torch.no_grad():
        model.weight.copy_(trained)
    with pytest.raises(KeyError):
        with ema.applied(model):
            assert torch.equal(model.weight, averaged)
            raise KeyError
    assert torch.equal(model.weight, trained)


def test_learning_rate():
    assert [lr_factor(k, 100, warmup=4) for k in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(4, 100, warmup=4) == 1 and lr_factor(52, 100, warmup=4) == pytest.approx(0.5)
    assert 0 < lr_factor(99, 100, warmup=4) < 1e-3 and lr_factor(99, 100, decay="constant") == 1
    with pytest.raises(KeyError, match="linear"):
        lr_factor(0, 1, decay="linear")
    state = TrainState(micro_autoencoder(), lr=1e-3, seed=0)
    logs = train_autoencoder(state, [pictures(2)], 4, perceptual_weight=0, disc_weight=0, decay="cosine")
    rates = [log.lr for log in logs]
    assert rates == pytest.approx([0.5e-3 * (1 + math.cos(math.pi * k / 4)) for k in range(4)])


def test_gradient_clipping():
    state = TrainState(nn.Linear(1, 1, bias=False), lr=1.0, grad_clip=0.5)
    loss = 100 * state.model(torch.ones(1, 1)).sum()
    assert state.update(loss)["grad_norm"].item() == pytest.approx(100)
    assert state.parameters[0].grad.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_seed_makes_a_step_repeatable_whatever_happens_in_between():
    def run(disturb):
        state = TrainState(micro_diffusion(), lr=1e-3, seed=7)
        for log in train_diffusion(state, [{"latent": pictures(4, 8)}], 4):
            if disturb:
                torch.rand(log.step)  # what drawing samples does
        return log.loss

    assert run(False) == run(True)


def test_a_critic_is_made_where_none_was_given():
    """LDM's, which learns as fast as the autoencoder, with a GAN's little momentum."""
    state = TrainState(micro_autoencoder(), lr=2e-4, seed=0)
    log = next(train_autoencoder(state, [pictures(2, 32)], 1, perceptual_weight=0))
    assert log.d_loss > 0 and state.adversary.step == 1 and state.adversary.lr == 2e-4
    assert isinstance(state.adversary.model, PatchDiscriminator) and state.adversary.model.num_layers == 3
    assert state.adversary.optimizer.defaults["betas"] == (0.5, 0.9)
    with pytest.raises(TypeError, match="disc_strat"):
        next(train_autoencoder(state, [pictures(2, 32)], 2, disc_strat=1))


def test_seeded_draws_the_same_and_leaves_no_trace():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = []
    for _ in range(2):
        with seeded(1):
            drawn.append(torch.rand(3))
    with pytest.raises(KeyError), seeded(2):
        raise KeyError
    assert drawn[0].equal(drawn[1]) and torch.rand(3).equal(expected)


def test_state_dict_continues_bit_by_bit():
    def build():
        return TrainState(micro_autoencoder(), lr=1e-3, ema_decay=0.99, seed=3, adversary=micro_critic())

    def run(state, steps):
        batches = [pictures(seed=k) for k in range(state.step, steps)]
        list(train_autoencoder(state, batches, steps, perceptual_weight=0, disc_start=2))
        return state

    straight, half = run(build(), 6), run(build(), 3)
    saved = copy.deepcopy(half.state_dict())
    torch.manual_seed(99)
    resumed = build()
    resumed.load_state_dict(saved)
    resumed = run(resumed, 6)
    assert straight.ema.updates == resumed.ema.updates == 6
    assert_close(straight.state_dict(), resumed.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="another model: only one of them has adversary, ema"):
        TrainState(micro_autoencoder(), lr=1e-3).load_state_dict(saved)


def test_bad_input_is_refused():
    with pytest.raises(AttributeError, match="it has"):
        Log(1, loss=2.0).d_loss
    with pytest.raises(TypeError, match="disc_strat"):
        next(train_autoencoder(TrainState(micro_autoencoder()), [pictures(2)], 2, disc_strat=1))


def test_a_log_keeps_no_graph_alive():
    """Whoever collects logs for a curve would collect a graph, with all its activations, a step."""
    first = TrainState(micro_autoencoder(), lr=1e-3, seed=0, adversary=micro_critic())
    for log in (next(train_autoencoder(first, [pictures(2)], 1, perceptual=Squared())),
                next(train_diffusion(TrainState(micro_diffusion(), seed=0), [{"latent": pictures(2, 8)}], 1))):
        assert {"loss", "lr", "grad_norm"} < set(log.floats())
        assert [name for name, value in log._values.items() if torch.is_tensor(value) and value.requires_grad] == []


def test_batches_are_taken_one_per_step():
    state, stream = TrainState(micro_autoencoder(), lr=1e-3), iter([(pictures(2), "a label")] * 5)
    list(train_autoencoder(state, stream, 3, perceptual_weight=0, disc_weight=0))
    assert len(list(stream)) == 2
    with pytest.raises(ValueError, match="ended after step 5 of 9"):
        list(train_autoencoder(state, iter([{"image": pictures(2)}] * 2), 9, perceptual_weight=0,
                               disc_weight=0))


def test_bf16_computes_in_bf16_and_keeps_float32_weights():
    seen = []
    state = TrainState(micro_diffusion(), lr=1e-3, seed=0, bf16=True)
    state.model.net.conv_out.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    log = next(train_diffusion(state, [{"latent": pictures(4, 8)}], 1))
    assert seen == [torch.bfloat16] and math.isfinite(log.loss)
    assert {p.dtype for p in state.parameters} == {torch.float32}


def test_latent_cache_is_what_the_encoder_says(tmp_path):
    ae = micro_autoencoder()
    images = pictures(10)
    batches = [{"image": images[i:i + 4], "caption": [f"picture {j}" for j in range(i, min(i + 4, 10))],
                "class": torch.arange(i, min(i + 4, 10)), "mask": torch.zeros(len(images[i:i + 4]))} for i in (0, 4, 8)]
    cache = cache_latents(ae, batches, 9, path=tmp_path / "cache")
    assert ae.training and len(cache) == 9
    again = cache_latents(None, None, 9, path=tmp_path / "cache")[torch.tensor([8, 2])]
    assert again["caption"] == ["picture 8", "picture 2"] and again["class"].tolist() == [8, 2] and "mask" not in again
    assert_close(again["latent"], ae.eval().encode(images[[8, 2]]).detach(), atol=2e-3, rtol=2e-3)
    assert len(cache_latents(ae, batches, 5, path=tmp_path / "cache")) == 5
    other = cache_latents(micro_autoencoder(1), batches, 5, path=tmp_path / "cache", made_from="another first stage")
    assert not torch.equal(other.latents, cache.latents[:5]), "a cache made from something else must not be taken"
    with pytest.raises(ValueError, match="held 10 images, 11"):
        cache_latents(ae, batches, 11)


def test_latent_batches_are_a_function_of_seed_step_and_rank():
    cache = LatentCache(torch.arange(13.0).view(13, 1, 1, 1), {"class": torch.arange(13)})

    def classes(steps, **where):
        stream = cache.batches(2, **where)
        return [next(stream)["class"].tolist() for _ in range(steps)]

    assert classes(20)[7:] == classes(13, start_step=7)
    assert classes(6) != classes(6, seed=1)
    epoch = sum(classes(6), [])
    assert len(set(epoch)) == 12, "one epoch shows no scene twice"
    assert classes(12)[:6] != classes(12)[6:], "every epoch has its own order"
    both = [classes(3, rank=rank, world_size=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*both)] == [[*x] for x in zip(*[iter(sum(classes(6), []))] * 4)]
    with pytest.raises(ValueError, match="do not fill"):
        next(cache.batches(14))


def test_what_cannot_be_compiled_runs_eagerly(monkeypatch):
    import torch._dynamo
    import torch._functorch.config
    import torch._inductor.compile_fx

    from ldm_mini.training.launch import _compile

    asked = []

    def broken(*args, **options):
        asked.append(args)
        raise RuntimeError("no compiler on this machine")

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", broken)
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", torch._functorch.config.donated_buffer)
    eager, compiled = micro_diffusion(), micro_diffusion()
    _compile(compiled)
    assert compiled.state_dict().keys() == eager.state_dict().keys(), "checkpoints must fit with and without"
    losses = [next(train_diffusion(TrainState(ldm, lr=1e-3, seed=0), [{"latent": pictures(2, 8)}], 1)).loss
              for ldm in (eager, compiled)]
    torch._dynamo.reset()
    assert asked and losses[0] == losses[1]
