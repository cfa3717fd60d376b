"""How the loss falls with compute, DiT and U-Net, for notebook 15: `python data/measurements/scaling.py`.

Latents (4, 8, 8) of scenes of 32 pixels with one thing, by the shipped first stage; the network is told the noun. All
networks of a seed see the same latents in the same order, at the same noise levels, with the same noise; each is
judged on the same held-out scenes, at steps that are further and further apart. Also: patches of 1, 2 and 4 in one
transformer, and one without positions. One rate of learning serves them all. About 3 CPU-minutes on one thread for
three seeds; every finished run goes to `scaling.json` at once, and a second start goes on where the first one stopped.
`floor` is the loss of a network that knew all these latents by heart, the held-out ones among them.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ldm_mini.cond import Cond, together
from ldm_mini.diffusion import diffusion_loss, ideal_denoiser, prediction_target
from ldm_mini.dit import DiT, DiTConfig
from ldm_mini.files import write_json
from ldm_mini.hub import load_autoencoder
from ldm_mini.released.sizes import measure
from ldm_mini.scenes import NOUNS, TINY_SCENES, scene_batches
from ldm_mini.schedule import NoiseSchedule, cosine_betas
from ldm_mini.unet import UNet, UNetConfig

SCENES = replace(TINY_SCENES, size=32, max_objects=1, looks=("flat",), places=False, centred=True)
LATENTS, HELD_OUT, BATCH, STEPS, WARMUP, LR = 8192, 256, 16, 2000, 20, 2e-3
LOOKS = (25, 50, 100, 200, 400, 800, 1400, 2000)               # steps at which the loss on held-out scenes is measured
SCHEDULE = NoiseSchedule(cosine_betas(1000))
FIRST_STAGE = "emoji-vq-f4"


def dit(width: int, depth: int, **other) -> DiT:
    """Heads of 16, patches of 2 unless told otherwise."""
    return DiT(DiTConfig(4, width=width, depth=depth, num_heads=width // 16, input_size=8,
                         vector_dim=len(SCENES.nouns), **other))


def unet(channels: int) -> UNet:
    """Two levels, attention at the second."""
    return UNet(UNetConfig(4, channels=channels, channel_mults=(1, 2), num_res_blocks=1, attn_levels=(1,),
                           head_dim=min(2 * channels, 16), groups=max(1, channels // 16),
                           vector_dim=len(SCENES.nouns)))


# {kind: {name: how to build it}}: two families of sizes, and two questions asked of one transformer
NETS = {
    "DiT": {f"width {w}, depth {d}": (lambda w=w, d=d: dit(w, d))
            for w, d in ((16, 2), (32, 2), (48, 3), (64, 4), (96, 4))},
    "U-Net": {f"{c} channels": (lambda c=c: unet(c)) for c in (4, 8, 16, 24)},
    "patch size": {f"patches of {p}": (lambda p=p: dit(64, 4, patch_size=p)) for p in (4, 1)},  # 2: among the DiTs
    "positions": {"left out": lambda: dit(64, 4, positions=False)},
}


@torch.no_grad()
def latents(config, num: int, start: int = 0) -> tuple:
    """Of the scenes start ... start + num - 1: latents (num,4,8,8), and which noun, one-hot (num,16)."""
    first = load_autoencoder(FIRST_STAGE)
    scenes = together(list(scene_batches(config, num, start)))
    names = torch.tensor([list(config.nouns).index(NOUNS[i]) for i in scenes["class"].tolist()])
    z = torch.cat([first.encode(some) for some in scenes["image"].split(64)])
    return z, F.one_hot(names, len(config.nouns)).float()


def flops(make) -> int:
    """Of one sample through the network once; a multiplication and its addition are two."""
    with torch.device("meta"):
        net = make()
    return measure(net, 8)["flops"]


def run(make, data, held_out, seed: int) -> dict:
    """Train one network; its losses on held-out scenes by step, and the CPU-seconds until then."""
    torch.manual_seed(seed)
    net, (z, nouns), looks, spent = make(), data, {}, 0.0
    optimizer = torch.optim.AdamW(net.parameters(), LR, betas=(0.9, 0.99), weight_decay=0.01)
    g = torch.Generator().manual_seed(seed)
    for step in range(1, STEPS + 1):
        # the same for every network of this seed
        rows, t = torch.randint(len(z), (BATCH,), generator=g), torch.randint(1000, (BATCH,), generator=g)
        eps, began = torch.randn(BATCH, *z.shape[1:], generator=g), time.process_time()
        optimizer.param_groups[0]["lr"] = LR * min(1, step / WARMUP)
        loss = diffusion_loss(net, SCHEDULE, z[rows], Cond(vector=nouns[rows]), "v", t, eps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        spent += time.process_time() - began
        if step in LOOKS:
            looks[str(step)] = {"loss": round(judge(net, held_out), 5), "cpu_s": round(spent, 2)}
    return looks


def levels(z) -> tuple:
    """Held-out latents meet every noise level once, with the same noise every time: t (N,), eps as z."""
    return (torch.arange(len(z)) * 1000 // len(z),
            torch.randn(z.shape, generator=torch.Generator().manual_seed(1_000_003)))


@torch.no_grad()
def judge(net, held_out) -> float:
    """The loss on held-out latents."""
    z, nouns = held_out
    net.eval()
    loss = diffusion_loss(net, SCHEDULE, z, Cond(vector=nouns), "v", *levels(z)).item()
    net.train()
    return loss


def floor(data, held_out) -> float:
    """That loss, of one who knows all latents of the noun, and that they are all there is: nobody is below it but by
    luck. The true floor is higher, as there are more scenes."""
    z, nouns = held_out
    t, eps = levels(z)
    x_t, v = SCHEDULE.add_noise(z, eps, t), prediction_target("v", z, eps, SCHEDULE.alpha(t), SCHEDULE.sigma(t))
    known, named, errors = torch.cat([z, data[0]]), torch.cat([nouns, data[1]]).argmax(1), torch.zeros(len(z))
    for noun in named.unique():
        some = nouns.argmax(1) == noun
        x0, eps_hat = ideal_denoiser(known[named == noun], SCHEDULE)(x_t[some], t[some])
        said = prediction_target("v", x0, eps_hat, SCHEDULE.alpha(t[some]), SCHEDULE.sigma(t[some]))
        errors[some] = (said - v[some]).square().mean((1, 2, 3))
    return errors.mean().item()


def main() -> None:
    """Train and measure, seed by seed, and keep what was measured so far."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, held_out = latents(SCENES, LATENTS), latents(replace(SCENES, split="val"), HELD_OUT)
    scale = 1 / data[0].std()
    data, held_out = ((z * scale, nouns) for z, nouns in (data, held_out))
    path = Path(__file__).with_suffix(".json")
    found = json.loads(path.read_text()) if path.is_file() else {"runs": []}
    found |= {"batch": BATCH, "steps": STEPS, "lr": LR, "latents": LATENTS, "held_out": HELD_OUT,
              "floor": round(floor(data, held_out), 5)}
    write_json(path, found)
    done = {(row["kind"], row["name"], row["seed"]) for row in found["runs"]}
    for seed in range(options.seeds):
        for kind, names in NETS.items():
            for name, make in names.items():
                if (kind, name, seed) not in done:
                    looks = run(make, data, held_out, seed)
                    found["runs"].append({
                        "kind": kind, "name": name, "seed": seed, "flops": flops(make),
                        "parameters": sum(p.numel() for p in make().parameters()), "looks": looks})
                    print(seed, kind, name, looks[str(STEPS)], flush=True)
                    write_json(path, found)


if __name__ == "__main__":
    main()
