"""How fast: our U-Net against diffusers' with the same shape and weights, and the data against the network it feeds.

    python data/measurements/bench.py [--device auto|cpu|cuda] [--rounds 15] [--threads N]

On a CPU also what busy neighbours cost. Start it on a quiet machine: a minute, then some more for the neighbours, whose
cost it shows. Prints tables, writes nothing.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import tyro
from torch import Tensor

from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss, make_denoiser
from ldm_mini.released.diffusers_unet import unet_config_to_diffusers, unet_to_diffusers_state
from ldm_mini.samplers import ddim
from ldm_mini.schedule import NoiseSchedule, scaled_linear_betas
from ldm_mini.unet import UNet, UNetConfig

# Lean nets (heads of width 32, 16 channels per group, no attention at the large level), with a batch for the machine.
SIZES = {
    "cpu": (UNetConfig(in_channels=3, channels=64, channel_mults=(1, 2), num_res_blocks=1, attn_levels=(1,),
                       head_dim=32, groups=4, context_dim=160), 8),
    "gpu": (UNetConfig(in_channels=4, channels=128, channel_mults=(1, 2, 4), num_res_blocks=2, attn_levels=(1, 2),
                       head_dim=32, groups=8, context_dim=256), 256),
}
SPIN_COUNTS = (None, "20000")                  # GOMP_SPINCOUNT: how long a waiting thread keeps its core; None = unset
DRAWING = """\
import time
from ldm_mini.latent_diffusion import LatentDiffusion
ldm = LatentDiffusion.from_pretrained("emoji-scenes")
for steps in (1, 5, 5, 5):
    began = time.perf_counter()
    ldm.sample({"caption": ["a red apple"] * 16}, steps=steps, seed=0)
    print(time.perf_counter() - began)
"""
LATENT, TOKENS, GUIDANCE = 16, 20, 4.0                                          # 16x16 latents; 20 tokens per caption


def run_bench(device, size: str | None = None, rounds: int = 15, scenes: int = 64) -> dict:
    """Time everything on `device`, print a markdown table, return the figures as a dict.

    size: "cpu" or "gpu", by default what the device is. Two programs alternate in one process, and a ratio is that of
    their medians: a busy machine slows both alike, so compare ratios, not times. On a GPU both run in bf16 autocast.
    """
    device = torch.device(device)
    config, batch = SIZES[size or ("cpu" if device.type == "cpu" else "gpu")]
    report = {"device": str(device), "threads": torch.get_num_threads(), "batch": batch,
              "latent": (config.in_channels, LATENT, LATENT), "step": bench_unet(config, batch, device, rounds)}
    report["feeding"] = bench_feeding(report["step"]["train step"]["ours"], batch, scenes)
    print(table(report))
    return report


def bench_unet(config: UNetConfig, batch: int, device, rounds: int) -> dict:
    """{step: {"ours": seconds, "diffusers": seconds, "ratio": theirs / ours}}; without diffusers, ratio None."""
    net = _random_unet(config, device)
    ours, single = _Ours(net, config, batch, device), _Ours(net, config, 1, device)
    rivals = {"train step": {"ours": ours.train}, "guided sampling step": {"ours": ours.sample},
              "guided sampling step, one picture": {"ours": single.sample}}
    if diffusers_version() is not None:
        # the paper's layout: attention at every level, 8 heads and 32 groups at any width
        paper = replace(config, attn_levels=tuple(range(len(config.channel_mults))), num_heads=8, groups=32)
        twin, other = _diffusers_twin(net), _diffusers_twin(_random_unet(paper, device))
        theirs, layout = _Diffusers(twin, config, batch, device), _Diffusers(other, config, batch, device)
        rivals["train step"]["diffusers"] = theirs.train
        rivals["guided sampling step"]["diffusers"] = theirs.sample
        rivals["guided sampling step, one picture"]["diffusers"] = _Diffusers(twin, config, 1, device).sample
        sizes = f"our {_millions(net)} M parameters against the paper's layout, {_millions(other)} M"
        rivals[f"train step, {sizes}"] = {"ours": ours.train, "diffusers": layout.train}
        rivals[f"guided sampling step, {sizes}"] = {"ours": ours.sample, "diffusers": layout.sample}
    times = {step: alternate(pair, rounds, device) for step, pair in rivals.items()}
    return {step: {**t, "ratio": t["diffusers"] / t["ours"] if "diffusers" in t else None} for step, t in times.items()}


def alternate(programs: dict[str, Callable], rounds: int, device) -> dict[str, float]:
    """Median seconds of each program: one call of each per round, in turn, after two rounds of warm-up."""
    synchronize = getattr(torch, torch.device(device).type).synchronize
    seconds = {name: [] for name in programs}
    for _ in range(rounds + 2):
        for name, program in programs.items():
            synchronize()
            start = time.perf_counter()
            program()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(torch.tensor(values[2:]).median()) for name, values in seconds.items()}


class _Ours:
    """One training step and one guided DDIM step as this package does them."""

    def __init__(self, net, config: UNetConfig, batch: int, device):
        draw = torch.Generator().manual_seed(0)
        self.net, self.device = net, device
        self.z = torch.randn(batch, config.in_channels, LATENT, LATENT, generator=draw).to(device)
        self.cond, self.null = (self._cond(batch, config, draw, length).to(device) for length in (TOKENS, 2))
        self.schedule = NoiseSchedule(scaled_linear_betas()).to(device)
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)

    @staticmethod
    def _cond(batch: int, config: UNetConfig, draw, length: int) -> Cond:
        context = torch.randn(batch, TOKENS, config.context_dim, generator=draw)
        vector = None if config.vector_dim is None else torch.randn(batch, config.vector_dim, generator=draw)
        return Cond(context=context, mask=(torch.arange(TOKENS) < length).expand(batch, -1), vector=vector)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.net(x, t, cond)

    def train(self) -> None:
        with self._autocast():
            loss = diffusion_loss(self.predict, self.schedule, self.z, self.cond)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def sample(self) -> None:
        with self._autocast():
            denoise = make_denoiser(self.predict, self.schedule, self.cond, self.null, GUIDANCE)
            for _ in ddim(denoise, self.z, self.schedule, steps=[500]):
                pass

    def _autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")


class _Diffusers(_Ours):
    """The same two steps as diffusers does them: its network, its scheduler, the loop of its pipelines."""

    def __init__(self, *args):
        from diffusers import DDIMScheduler

        super().__init__(*args)
        self.scheduler = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear",
                                       clip_sample=False)
        self.scheduler.set_timesteps(2)
        self.both = Cond.stack([self.null, self.cond])

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.net(x, t, cond.context, class_labels=cond.vector, encoder_attention_mask=cond.mask).sample

    @torch.no_grad()
    def sample(self) -> None:
        t = self.scheduler.timesteps[0]
        with self._autocast():
            both = self.scheduler.scale_model_input(torch.cat([self.z, self.z]), t)
            uncond, text = self.predict(both, t, self.both).chunk(2)
            self.scheduler.step(uncond + GUIDANCE * (text - uncond), t, self.z)


def bench_feeding(step_seconds: float, batch: int, scenes: int) -> dict | None:
    """Scenes composed per second by one process, against the images per second that the training step takes."""
    from ldm_mini.scenes.data import EmojiScenes

    data = EmojiScenes()
    data[0]                                                                     # reads the sprite sheets
    start = time.perf_counter()
    for index in range(1, scenes + 1):
        data[index]
    made, wanted = scenes / (time.perf_counter() - start), batch / step_seconds
    return {"scenes_per_second": made, "step_images_per_second": wanted, "workers": max(1, -int(-wanted // made))}


def bench_neighbours(neighbours=(0, 2)) -> dict:
    """{(spin count, busy processes beside): median seconds to draw 16 pictures with the shipped model, loading apart}.

    Each in a process of its own: OpenMP reads its settings when torch is loaded.
    """
    seconds = {}
    for count in neighbours:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            for spin in SPIN_COUNTS:
                settings = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
                settings |= {} if spin is None else {"GOMP_SPINCOUNT": spin}
                printed = subprocess.check_output([sys.executable, "-c", DRAWING], env=settings, text=True)
                seconds[spin, count] = statistics.median(map(float, printed.split()[1:]))   # the first warms up
        finally:
            for process in busy:
                process.kill()
    return seconds


def neighbours_table(seconds: dict) -> str:
    """Times as multiples of the first, as markdown."""
    first, *_ = seconds.values()
    lines = [f"16 pictures of the shipped model in 5 steps, drawing only; 1 = {first:.1f} s", "",
             "| GOMP_SPINCOUNT | quiet | beside two busy processes |", "|---|---|---|"]
    return "\n".join(lines + [f"| {spin or 'unset'} | {seconds[spin, 0] / first:.2f} | {seconds[spin, 2] / first:.2f} |"
                              for spin in SPIN_COUNTS])


def table(report: dict) -> str:
    """The report as markdown."""
    version, threads = diffusers_version(), report["threads"]
    rival = f"diffusers {version}" if version else "diffusers is not installed (pip install diffusers): our times only"
    lines = [f"{report['device']}, {threads} thread{'s' * (threads > 1)}, latents {report['latent']}, "
             f"batch {report['batch']}, {rival}", "",
             "| step | ours, ms | diffusers, ms | ours is faster by |", "|---|---|---|---|"]
    for name, t in report["step"].items():
        theirs, ratio = ("-", "-") if t["ratio"] is None else (f"{1e3 * t['diffusers']:.1f}", f"{t['ratio']:.2f}x")
        lines.append(f"| {name} | {1e3 * t['ours']:.1f} | {theirs} | {ratio} |")
    f = report["feeding"]
    lines += ["", f"Data: one process composes {f['scenes_per_second']:.0f} scenes/s; the training step takes "
                  f"{f['step_images_per_second']:.0f} images/s: {f['workers']} worker(s) keep it fed."]
    return "\n".join(lines)


def diffusers_version() -> str | None:
    """The installed diffusers, or None: it is only needed here and in tests."""
    try:
        import diffusers
    except ImportError:
        return None
    return diffusers.__version__


def _random_unet(config: UNetConfig, device) -> UNet:
    """A U-Net whose zero layers are not zero, lest its rival skip work; channels_last saves both some per cent."""
    net = UNet(config)
    draw = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if not parameter.any():
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=draw))
    return net.to(device).to(memory_format=torch.channels_last)


def _diffusers_twin(net: UNet):
    from diffusers import UNet2DConditionModel

    twin = UNet2DConditionModel(**unet_config_to_diffusers(net.config))
    twin.load_state_dict(unet_to_diffusers_state(net))
    return twin.to(next(net.parameters()).device).to(memory_format=torch.channels_last)


def _millions(net) -> str:
    return f"{sum(p.numel() for p in net.parameters()) / 1e6:.1f}"


def main(device: str = "auto", rounds: int = 15, threads: int | None = None) -> None:
    """Time our U-Net against diffusers' of the same shape and weights, the data against both, and busy neighbours."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    run_bench(device, rounds=rounds)
    if device == "cpu":
        print("", neighbours_table(bench_neighbours()), sep="\n")


if __name__ == "__main__":
    tyro.cli(main)
