"""Several processes: `accelerate launch` runs the same command, gradients are averaged, processes stay in step.

A launch imports for seconds in three processes, so there is one: it compares the processes, then becomes the command.
"""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.train import TrainState, train_autoencoder
from ldm_mini.training import runs

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="two gloo processes: Linux and macOS")


def launch(script):
    """`accelerate launch` with two processes of a Python file; returns what they printed.

    --multi_gpu means torchrun; the command itself asks for the CPU (accelerate's own --cpu would want MPI).
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = f"""-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no
                --dynamo_backend no --main_process_port {port}"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *start.split(), str(script)], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_accelerate_launch_trains_unchanged(launched):
    said, out = launched[0], launched[1] / "run"
    assert said.count("Finished at step 16 of 16") == 1, "one process speaks for all"
    assert [record["step"] for record in runs.read_log(out)] == [4, 8, 12, 16]
    assert '"processes": 2' in (out / "recipe.json").read_text()
    assert (out / "model" / "model.safetensors").is_file() and (out / "curve.png").is_file()
    assert len(list((out / "samples").glob("*.png"))) == 2


WORKER = """
import runpy, sys, torch
from accelerate import Accelerator
sys.path.insert(0, {tests!r})
from test_accelerate import autoencoder, pictures
from ldm_mini.discriminator import PatchDiscriminator
from ldm_mini.train import TrainState, train_autoencoder

accelerator = Accelerator(cpu=True)
rank, half = accelerator.process_index, slice(4 * accelerator.process_index, 4 * accelerator.process_index + 4)
state = TrainState(autoencoder(), lr=1e-3, seed=0, accelerator=accelerator)
next(train_autoencoder(state, [pictures()[half]], 1, perceptual_weight=0, disc_weight=0))
if rank == 0:
    torch.save({{name: p.grad for name, p in state.model.named_parameters()}}, {folder!r} + "/gradients.pt")

model, critic = autoencoder(restart_after=2), PatchDiscriminator(channels=4, num_layers=1)
adversary = TrainState(critic, lr=1e-3, betas=(0.5, 0.9), weight_decay=0.0, accelerator=accelerator)
before = {{name: p.detach().clone() for name, p in critic.named_parameters()}}
state = TrainState(model, lr=1e-3, seed=0, accelerator=accelerator, adversary=adversary)
for log in train_autoencoder(state, [pictures()[half]], 6, perceptual_weight=0, disc_start=2):
    pass
learned = all(not torch.equal(p, before[name]) for name, p in critic.named_parameters() if name.endswith("weight"))
values = [*model.state_dict().values(), *critic.parameters()]   # the codes and their counts too
both = accelerator.gather(torch.cat([v.detach().float().flatten() for v in values])[None])
print(f"rank {{rank}}: processes differ by {{(both[0] - both[1]).abs().max().item()}}; the critic learned {{learned}}")
sys.argv = ["ldm_mini", "train", "autoencoder", "--recipe", "micro", "--out", {folder!r} + "/run", "--device", "cpu",
            *"--steps 16 --log-every 4 --save-every 8 --sample-every 8".split()]
runpy.run_module("ldm_mini", run_name="__main__")               # as python -m ldm_mini does
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What the processes said, and the folder where they left gradients.pt and the run of the command."""
    folder = tmp_path_factory.mktemp("launched")
    script = folder / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).resolve().parent), folder=str(folder)))
    return launch(script), folder


def autoencoder(**options):
    """Restarts and data-dependent codes depend on the batch, so the comparison of gradients is without."""
    torch.manual_seed(0)
    config = AutoencoderConfig(downsample_factor=2, latent_channels=3, channels=8, channel_mults=(1, 1),
                               num_res_blocks=1, mid_attn=False, groups=2)
    options = {"restart_after": None, "init": "uniform", **options}
    return Autoencoder(config, VQBottleneck(VectorQuantizer(16, 3, **options)))


def pictures():
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_gradients_are_averaged_and_processes_stay_equal(launched):
    """Two processes with 4 pictures each have the gradient of one with all 8; and after GAN steps with restarts of
    codes, both hold the same weights."""
    def gradients(images):
        state = TrainState(autoencoder(), lr=1e-3, seed=0)
        next(train_autoencoder(state, [images], 1, perceptual_weight=0, disc_weight=0))
        return {name: p.grad for name, p in state.model.named_parameters()}

    said, folder = launched
    assert len(re.findall(r"differ by 0\.0; the critic learned True", said)) == 2, said
    shared, last = torch.load(folder / "gradients.pt", weights_only=True), "decoder.conv_out.weight"
    torch.testing.assert_close(shared, gradients(pictures()), rtol=1e-3, atol=1e-6)
    assert not torch.allclose(shared[last], gradients(pictures()[:4])[last], rtol=1e-3, atol=1e-6)
