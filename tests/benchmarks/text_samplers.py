"""Samplers of the absorbing chain side by side: wall time and network calls for a batch of texts.

    python -m tests.benchmarks.text_samplers            # --help for size, rounds, device and precision

One untrained transformer of the size of the domain's default, told no time (so that the cache is exact), draws a batch
of texts by every sampler in turn, in rounds that go forth and back, so that a busy machine slows all alike. Calls count
network calls, examples how many texts went through the network in all. `speed` is the median over rounds of ancestral's
time over the sampler's in the same round. Equal law: `cached` gives the very texts of `ancestral` from the same
generators, which is checked; first hitting is the chain in continuous time. The others are not the chain's law.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polydiff.core import grids
from polydiff.core.ancestral import ancestral
from polydiff.core.any_order import any_order
from polydiff.core.categorical import absorbing
from polydiff.core.denoisers import TokenDenoiser
from polydiff.core.files import write_atomically
from polydiff.core.kernel import Time
from polydiff.core.machine import machine
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.sampling import Step
from polydiff.core.schedules import RectifiedFlow
from polydiff.core.unmasking import cached, confidence, first_hitting

RESULT = Path(__file__).parent / "results" / "text_samplers.json"
SEED = 0
GOAL = 3.0
"""Times faster than ancestral at equal law, of first hitting or cached."""

Sampler = Callable[..., Iterator[Step[Tensor]]]


class Plain(nn.Module):
    """A network in one precision whose output is in single precision, counting what goes through it."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network, self.dtype = network, dtype
        self.calls = self.examples = 0

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        self.calls, self.examples = self.calls + 1, self.examples + len(x)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.network(x, c).float()


def blind(t: Tensor, log_snr_t: Tensor) -> Tensor:
    """The same number at every time."""
    return torch.zeros_like(t)


def build(vocabulary: int, length: int) -> nn.Module:
    """The domain's default transformer with all its weights drawn, so that its beliefs depend on what it sees."""
    from polydiff.text.network import TransformerConfig

    network = TransformerConfig(vocabulary=vocabulary, length=length).build().eval().requires_grad_(False)
    generator = seeded(SEED)
    for parameter in network.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.02
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def samplers(denoise: Callable[[Tensor, Time], Tensor], steps: int) -> dict[str, tuple[Sampler, int, bool]]:
    """name -> (sampler, steps of its grid, whether its law is the chain's)."""
    return {
        f"ancestral, {steps} steps": (ancestral, steps, True),
        f"cached, {steps} steps, whole batch": (cached, steps, True),
        f"cached, {steps} steps, changed examples": (partial(cached, among=lambda index: denoise), steps, True),
        "first hitting": (first_hitting, 1, True),
        "first hitting, 4 per call": (partial(first_hitting, per_call=4), 1, False),
        "any order, 64 steps": (any_order, 64, False),
        "confidence, 64 steps": (confidence, 64, False),
        "confidence, 20 steps": (confidence, 20, False),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every sampler in every round."""
    device, dtype = torch.device(options.device), getattr(torch, options.precision)
    network = Plain(build(options.vocabulary, options.length), dtype).to(device)
    kernel = absorbing(RectifiedFlow(), options.vocabulary + 1, mask=options.vocabulary).to(device)
    denoise = TokenDenoiser(network, kernel.schedule, conditioning=blind).given(kernel)
    x = torch.full((options.batch, options.length), options.vocabulary, device=device)
    every = samplers(denoise, options.steps)
    first = next(iter(every))
    rows: dict[str, dict[str, Any]] = {name: {"equal_law": law, "seconds": []} for name, (_, _, law) in every.items()}
    denoise(x, 0.5)
    reference = None
    for number in range(options.rounds):
        for name in list(every)[:: 1 if number % 2 == 0 else -1]:
            sampler, steps, _ = every[name]
            generators = example_generators(SEED, number, range(options.batch))
            network.calls = network.examples = 0
            start, final = time.perf_counter(), None
            for step in sampler(denoise, kernel, x, grids.uniform(steps), generator=generators):
                final = step.x
            assert final is not None
            text = final.cpu()
            rows[name]["seconds"].append(time.perf_counter() - start)
            rows[name] |= {"calls": network.calls, "examples": network.examples}
            assert int((text == options.vocabulary).sum()) == 0
            if number == 0 and name == first:
                reference = text
            elif number == 0 and reference is not None and sampler is not ancestral and steps == options.steps:
                rows[name]["share_of_tokens_as_ancestral"] = float((text == reference).double().mean())
            print(f"{name:45}{rows[name]['seconds'][-1]:9.1f} s{network.calls:7} calls", flush=True)
    for row in rows.values():
        row["median_seconds"] = statistics.median(row["seconds"])
        row["speed"] = statistics.median(
            slow / fast for slow, fast in zip(rows[first]["seconds"], row["seconds"], strict=True)
        )
    return {"parameters": sum(p.numel() for p in network.parameters()), "samplers": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=27, help="symbols without the mask")
    parser.add_argument("--steps", type=int, default=1000, help="of ancestral and cached sampling")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with torch.no_grad():
        result = measure(options)
    sizes = {name: getattr(options, name) for name in ("length", "batch", "vocabulary", "steps", "rounds", "precision")}
    equal = {name: row["speed"] for name, row in result["samplers"].items() if row["equal_law"]}
    report = {
        "benchmark": "text_samplers",
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python -m tests.benchmarks.text_samplers",
        "machine": machine(),
        "device": options.device,
        "seed": SEED,
        **sizes,
        "goal": f">= {GOAL:g} times ancestral at equal law",
        "best_at_equal_law": max(equal.values()),
        **result,
    }
    for name, row in result["samplers"].items():
        print(f"{name:45}{row['median_seconds']:9.1f} s{row['calls']:7} calls{row['speed']:8.2f} x")
    options.result.parent.mkdir(exist_ok=True)
    write_atomically(options.result, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
