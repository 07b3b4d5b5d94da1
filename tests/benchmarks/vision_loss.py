"""Held-out loss at equal wall time: our U-Net and diffusers' of the same parameters and FLOPs, trained side by side.

    python -m tests.benchmarks.vision_loss [--data fashion-mnist] [--data-root FOLDER] [--seconds 300]

Both sides are those of `vision_speed`, compiled. They see the same images, noise and times in the same order (batch k
and its noise depend on k and the seed alone), with the same optimizer; they train by turns of a few seconds each, so
that a busy machine slows both alike, until each has had `--seconds` of training; the quicker one takes more steps. The
loss is the squared error of the noise, per number, on held-out images at noise that is fixed.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polydiff.core.files import write_atomically
from polydiff.core.machine import machine
from polydiff.core.schedules import Tabulated
from polydiff.vision.data import Images, load

from .vision_speed import BETAS, SEED, SIDES, SIZES, T

RESULT = Path(__file__).parent / "results" / "vision_loss.json"
BATCH, RATE, TURN = 16, 2e-4, 10.0
SHAPES = {"fashion-mnist": "28x28x1", "cifar10": "32x32x3"}


def noisy(data: Images, indices: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x_t, c, label, noise) of some images."""
    batch, generator = data.batch(indices), torch.Generator().manual_seed(seed)
    noise = torch.randn(batch["x_0"].shape, generator=generator)
    c = torch.randint(T, (len(indices),), generator=generator)
    alpha, sigma = (part.float()[:, None, None, None] for part in SCHEDULE((c + 1).double() / T))
    return alpha * batch["x_0"] + sigma * noise, c.float(), batch["label"], noise


SCHEDULE = Tabulated.from_betas(torch.linspace(BETAS[0], BETAS[1], T))


class Runner:
    """One side in training."""

    def __init__(self, network: nn.Module, data: Images, precision: str):
        self.network, self.data, self.precision = network, data, precision
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)
        self.order = torch.randperm(len(data), generator=torch.Generator().manual_seed(SEED)).tolist()
        self.steps, self.seconds = 0, 0.0

    def loss(self, x: Tensor, c: Tensor, label: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the noise."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            out = self.network(x, c, label)
        return F.mse_loss(out.float(), noise)

    def step(self) -> None:
        """One batch."""
        first = self.steps * BATCH
        indices = [self.order[(first + k) % len(self.order)] for k in range(BATCH)]
        self.loss(*noisy(self.data, indices, SEED + 1 + self.steps)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def train(self, seconds: float) -> None:
        """Steps until that much time has gone."""
        before = time.perf_counter()
        while time.perf_counter() - before < seconds:
            self.step()
        self.seconds += time.perf_counter() - before

    @torch.no_grad()
    def held_out(self, batches: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> float:
        """Mean loss over fixed noisy images."""
        return sum(self.loss(*batch).item() for batch in batches) / len(batches)


def main() -> None:
    """Train both, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=SHAPES, default="fashion-mnist")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--measure", type=int, default=5, help="how often the held-out loss is measured")
    options = parser.parse_args()
    train, test = (load(options.data, split, data_root=options.data_root) for split in ("train", "test"))
    fixed = [noisy(test, list(range(i, i + BATCH)), -i - 1) for i in range(0, min(512, len(test)), BATCH)]
    runners = {}
    for side, build in SIDES.items():
        torch.manual_seed(SEED)
        network = build(SIZES[SHAPES[options.data]])
        state = {name: value.clone() for name, value in network.state_dict().items()}
        network.compile()
        warm = Runner(network, train, options.precision)
        warm.step()
        warm.held_out(fixed[:1])
        network.load_state_dict(state)
        runners[side] = Runner(network, train, options.precision)
    curve: list[dict[str, Any]] = []
    for part in range(1, options.measure + 1):
        until = options.seconds * part / options.measure
        while min(runner.seconds for runner in runners.values()) < until:
            for runner in runners.values():
                runner.train(min(TURN, max(until - runner.seconds, 0)))
        curve.append({"seconds": until})
        for side, runner in runners.items():
            curve[-1][side] = {"steps": runner.steps, "loss": runner.held_out(fixed)}
        print(curve[-1], flush=True)
    row = {
        "data": options.data,
        "precision": options.precision,
        "batch": BATCH,
        "held-out images": len(fixed) * BATCH,
        "curve": curve,
        "seed": SEED,
        "machine": machine(),
        "diffusers": diffusers.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    rows = [old for old in rows if (old["data"], old["precision"]) != (row["data"], row["precision"])] + [row]
    whole = {"command": "python -m tests.benchmarks.vision_loss", "seed": SEED, "rows": rows}
    write_atomically(RESULT, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
