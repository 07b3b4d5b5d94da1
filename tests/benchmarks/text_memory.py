"""Memory and time of categorical kernels at the vocabulary of GPT-2: one training step, one posterior, one draw.

    python -m tests.benchmarks.text_memory [--vocabulary 50257] [--length 128] [--batch 8] [--threads 1]

Each measurement is a process of its own. Peak memory is what the resident set of the process grows by (Linux), beside
the size of one float32 tensor (batch, length, K), of which a network's logits are one. The network is an embedding and
one linear layer, so that what is measured is the kernel's and the loss's. A K x K matrix of float64, which the general
form of these chains would take for every pair of times, is given for comparison.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polydiff.core import categorical, grids, objectives
from polydiff.core.denoisers import TokenDenoiser
from polydiff.core.files import write_atomically
from polydiff.core.hybrid import Hybrid
from polydiff.core.machine import machine
from polydiff.core.objectives import Denoising
from polydiff.core.schedules import Cosine, RectifiedFlow

RESULT = Path(__file__).parent / "results" / "text_memory.json"
SEED = 0
T, S = 0.5, 0.4

Work = Callable[[], Any]


class Table(nn.Module):
    """The cheapest network with logits: an embedding and a linear layer."""

    def __init__(self, symbols: int, outputs: int, width: int = 64):
        super().__init__()
        self.embedding, self.output = nn.Embedding(symbols, width), nn.Linear(width, outputs)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, L) to (B, L, outputs)."""
        return self.output(self.embedding(x))


def kernel_of(name: str, K: int) -> categorical.Categorical:
    """The kernel; the absorbing one has its mask besides the K tokens."""
    if name == "absorbing":
        return categorical.absorbing(RectifiedFlow(), K + 1, K)
    if name == "uniform":
        return categorical.uniform(Cosine(), K)
    return categorical.marginal(Cosine(), 1 / torch.arange(1, K + 1))


def works(kernel: categorical.Categorical, K: int, x_0: Tensor) -> dict[str, Work]:
    """What is measured, by name."""
    denoiser = TokenDenoiser(Table(kernel.K, K), kernel.schedule)
    hybrid = Hybrid(denoiser, kernel, grids.uniform(1000), bound_weight=1.0, weight=objectives.plain, stop=None)
    generator = torch.Generator().manual_seed(SEED)
    x_t = kernel.marginal(x_0, T).sample(generator)

    def step(objective: nn.Module) -> Any:
        denoiser.zero_grad(set_to_none=True)
        objective({"x_0": x_0}, generator).mean().backward()

    belief: list[Tensor] = []

    def look() -> Tensor:
        if not belief:
            with torch.no_grad():
                belief.append(denoiser.given(kernel)(x_t, T))
        return belief[0]

    return {
        "training step, cross-entropy": lambda: step(Denoising(denoiser, kernel, objectives.plain)),
        "training step, bound and cross-entropy": lambda: step(hybrid),
        "posterior": lambda: kernel.posterior(x_t, look(), S, T),
        "draw of x_s": lambda: kernel.posterior(x_t, look(), S, T).sample(generator),
    }


def high_water() -> int:
    """The largest resident set of this process since the last `forget`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget() -> None:
    """Begin a new high-water mark at the present size."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One measurement, in this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    x_0 = torch.randint(options.vocabulary, (options.batch, options.length))
    work = works(kernel_of(options.kernel, options.vocabulary), options.vocabulary, x_0)[options.work]
    if not options.work.startswith("training"):
        torch.set_grad_enabled(False)
        work()  # the belief is there beforehand
    forget()
    before, started = high_water(), time.perf_counter()
    work()
    seconds, peak = time.perf_counter() - started, high_water() - before
    return {"peak_bytes": peak, "seconds": seconds}


def table(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements, each in a process."""
    rows = []
    names = works(kernel_of("uniform", 5), 5, torch.zeros(1, 1, dtype=torch.long))
    unit = options.batch * options.length * options.vocabulary * 4
    for kernel in ("uniform", "absorbing", "marginal"):
        for name in names:
            words = [f"--{key}={getattr(options, key)}" for key in ("vocabulary", "length", "batch", "threads")]
            command = [sys.executable, "-m", "tests.benchmarks.text_memory", *words, "--kernel", kernel, "--work", name]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rows.append({"kernel": kernel, "work": name, **found, "peak_in_logits": found["peak_bytes"] / unit})
            print(
                f"{kernel:10} {name:40} {found['peak_bytes'] / 2**20:8.0f} MiB = {rows[-1]['peak_in_logits']:5.1f} "
                f"logits  {found['seconds']:7.2f} s",
                flush=True,
            )
    return {
        "K": options.vocabulary,
        "length": options.length,
        "batch": options.batch,
        "logits_bytes": unit,
        "matrix_bytes": 8 * options.vocabulary**2,
        "rows": rows,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--kernel", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kernel:
        print(json.dumps(measure(options)))
        return
    torch.set_num_threads(options.threads)
    found = table(options) | {
        "command": "python -m tests.benchmarks.text_memory",
        "seed": SEED,
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
    }
    options.out.parent.mkdir(exist_ok=True)
    write_atomically(options.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
