"""What bfloat16 costs attention on a CPU, notebook 18: `python data/measurements/attention_speed.py`.

Attention by torch's `scaled_dot_product_attention` and by two matrix products with a softmax, in float32 and bfloat16,
with and without the way back. CPU seconds of one thread, the median of several runs, three rounds. A few seconds. To
`attention_speed.json`, with what the processor is able to do.
"""

import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from ldm_mini.files import write_json

BATCH, HEADS, WIDTH, TOKENS = 4, 4, 32, (64, 128, 256)
ROUNDS, REPEATS, WARMUP = 3, 5, 2


def plain(q, k, v):
    """Two matrix products and a softmax."""
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v


WAYS = {"fused": F.scaled_dot_product_attention, "plain": plain}


def seconds(run) -> float:
    """The median of some runs, after a warm-up, in seconds of CPU time."""
    times = []
    for number in range(WARMUP + REPEATS):
        before = time.process_time()
        run()
        times += [time.process_time() - before] if number >= WARMUP else []
    return statistics.median(times)


def measure(way, tokens: int, dtype) -> tuple[float, float]:
    """Seconds of the way there, and of the way there and back."""
    q, k, v = torch.randn(3, BATCH, HEADS, tokens, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)

    def there():
        with torch.no_grad():
            way(q, k, v)

    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    return seconds(there), seconds(lambda: torch.autograd.grad(way(*leaves).sum(), leaves))


def main() -> None:
    """Measure all, print, and write."""
    torch.set_num_threads(1)
    found = {}
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            for dtype in (torch.float32, torch.bfloat16):
                for tokens in TOKENS:
                    there, both = measure(way, tokens, dtype)
                    row = found.setdefault(f"{name} {str(dtype)[6:]}", {})
                    row = row.setdefault(str(tokens), {"there": [], "both": []})
                    row["there"].append(round(1e3 * there, 3))
                    row["both"].append(round(1e3 * both, 3))
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    result = {"milliseconds": found, "batch": BATCH, "heads": HEADS, "head_width": WIDTH, "rounds": ROUNDS,
              "torch": torch.__version__.partition("+")[0], "capability": torch.backends.cpu.get_cpu_capability(),
              "avx512_bf16": "avx512_bf16" in flags, "amx_bf16": "amx_bf16" in flags}
    print(result)
    write_json(Path(__file__).with_suffix(".json"), result)


if __name__ == "__main__":
    main()
