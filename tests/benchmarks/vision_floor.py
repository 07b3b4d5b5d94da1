"""The largest ratio that `vision_speed` could show: diffusers' time over that of our network's products alone.

    python -m tests.benchmarks.vision_floor

Convolutions, matrix products and attention of one forward pass of our U-Net are recorded with their shapes; then each
is timed by itself, in both memory layouts, and the quicker one counts. Their sum is what a network of this definition
costs if norms, activations, additions and the sampler took no time at all, with the kernels that the library has. It
stands beside diffusers' compiled sampling of `vision_speed`, by turns in one process. Where the ratio of the two is
below the goal, no rearrangement of the rest can reach it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from polydiff.core.files import write_atomically
from polydiff.core.machine import machine

from .vision_speed import GOALS, SEED, SIZES, STEPS, batch, our_network, sampling, seconds

RESULT = Path(__file__).parent / "results" / "vision_floor.json"
aten = torch.ops.aten
PRODUCTS = {
    aten.convolution.default,
    aten.addmm.default,
    aten.mm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
}


class Recorder(TorchDispatchMode):
    """Counts products by operator, shapes and other arguments."""

    def __init__(self):
        super().__init__()
        self.found: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            key = tuple(tuple(a.shape) if isinstance(a, Tensor) else _frozen(a) for a in args)
            named = tuple((name, _frozen(value)) for name, value in (kwargs or {}).items())
            shapes = tuple(isinstance(a, Tensor) for a in args)
            self.found[func, key, shapes, named] += 1
        return func(*args, **(kwargs or {}))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def replay(product: tuple[Any, ...], dtype: torch.dtype, channels_last: bool) -> Callable[[], None]:
    """The product alone, on numbers of its own."""
    function, arguments, shapes, named = product
    made = []
    for value, is_tensor in zip(arguments, shapes, strict=True):
        if is_tensor:
            tensor = torch.randn(value).to(dtype)
            if channels_last and tensor.ndim == 4 and function is aten.convolution.default:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            made.append(tensor)
        else:
            made.append(list(value) if isinstance(value, tuple) else value)
    keywords = dict(named)

    def run() -> None:
        with torch.inference_mode():
            function(*made, **keywords)

    return run


def quickest(run: Callable[[], None], repeats: int) -> float:
    """The least of several times."""
    run()
    return min(seconds(run) for _ in range(repeats))


def measure(name: str, precision: str, rounds: int) -> dict[str, Any]:
    """One row."""
    size = SIZES[name]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x, c, label = batch(size)
    network = our_network(size).eval().to(dtype)
    with torch.no_grad(), Recorder() as recorder:  # inference mode would hide what a convolution comes to
        network(x.to(dtype), c.float(), label)
    runs = {
        product: [replay(product, dtype, channels_last) for channels_last in (False, True)]
        for product in recorder.found
    }
    best = {product: [quickest(run, 2) for run in pair] for product, pair in runs.items()}
    chosen = {product: runs[product][times.index(min(times))] for product, times in best.items()}
    torch.compiler.reset()
    peer = sampling("diffusers", size, precision, "compiled")
    peer()
    floors, theirs = [], []
    for _ in range(rounds):
        floors.append(sum(seconds(run) * recorder.found[product] for product, run in chosen.items()) * STEPS)
        theirs.append(seconds(peer))
    ratios = sorted(b / a for a, b in zip(floors, theirs, strict=True))
    return {
        "size": name,
        "precision": precision,
        "batch": size.batch,
        "products": sum(recorder.found.values()),
        "products_s": statistics.median(floors),
        "diffusers_s": statistics.median(theirs),
        "largest ratio": statistics.median(theirs) / statistics.median(floors),
        "rounds": ratios,
        "goal": GOALS["sampling"],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(SEED)
    rows = []
    for name in options.sizes:
        for precision in options.precisions:
            rows.append(measure(name, precision, options.rounds))
            row = rows[-1]
            print(
                f"{name} {precision}: products {row['products_s']:.2f} s, diffusers {row['diffusers_s']:.2f} s, "
                f"largest ratio {row['largest ratio']:.2f} ({row['rounds'][0]:.2f} ... {row['rounds'][-1]:.2f})",
                flush=True,
            )
    facts = {
        "machine": machine(),
        "diffusers": diffusers.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    whole = {"command": "python -m tests.benchmarks.vision_floor", "seed": SEED, "rows": rows} | facts
    write_atomically(RESULT, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
