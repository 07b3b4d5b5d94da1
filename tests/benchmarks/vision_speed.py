"""Training throughput and sampling time of the U-Net beside diffusers' `UNet2DModel` of the same size.

    python -m tests.benchmarks.vision_speed            # --help for one size, precision or task alone

Both sides are class-conditional with scale and shift after the group norms, attention at the same levels and the same
widths; parameters and counted FLOPs (torch.utils.flop_counter) of the networks as they are defined must agree within
5 %. Our upsampling convolution is executed as a transposed one, the same map with fewer multiplications; for the count
it is written out plainly, and the FLOPs that are executed stand beside it in the results. Each side first finds its
best of `MODES`, separately for every size, precision and task; then both run in that mode by turns, A B A B, in one
process.

A training step is forward, mean squared error, backward and fused AdamW (bf16: autocast over float32 weights). Sampling
is deterministic DDIM (bf16: bfloat16 weights), with their `DDIMScheduler` and our `ddim`. The ratio is theirs over ours
in median time; `rounds` are the ratios of neighbours in time, whose spread tells how quiet the machine was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polydiff.core import grids
from polydiff.core.ddim import ddim
from polydiff.core.denoisers import GaussianDenoiser, eps, index
from polydiff.core.files import write_atomically
from polydiff.core.gaussian import Gaussian
from polydiff.core.machine import machine
from polydiff.core.schedules import Tabulated
from polydiff.vision.architectures import UNetConfig
from polydiff.vision.network import Upsample

RESULT = Path(__file__).parent / "results" / "vision_speed.json"
SEED, T, STEPS = 0, 1000, 10
BETAS = (1e-4, 0.02)
MODES = {
    "eager": (False, False),
    "channels-last": (True, False),
    "compiled": (False, True),
    "compiled, channels-last": (True, True),
}
"""name -> (channels-last, compiled)"""
GOALS = {"training": 1.15, "sampling": 1.25}


@dataclass(frozen=True)
class Size:
    """Images and network of one measurement."""

    channels: int
    side: int
    batch: int

    @property
    def config(self) -> UNetConfig:
        """One attention level, channels in multiples of 64: the grouping of the norms is then alike on both sides."""
        return UNetConfig(
            in_channels=self.channels,
            out_channels=self.channels,
            num_classes=10,
            width=64,
            multipliers=(1, 2),
            blocks=1,
            attention=(1,),
            heads=2,
            groups=16,
        )


SIZES = {"32x32x3": Size(3, 32, 64), "28x28x1": Size(1, 28, 32)}


class Peer(nn.Module):
    """diffusers' U-Net of the sizes of a `UNetConfig`, called like ours."""

    def __init__(self, config: UNetConfig, side: int):
        super().__init__()
        levels = range(len(config.multipliers))
        attends = [level in config.attention for level in levels]
        self.network = UNet2DModel(
            sample_size=side,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            down_block_types=tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
            up_block_types=tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)),
            block_out_channels=tuple(config.channels(level) for level in levels),
            layers_per_block=config.blocks,
            attention_head_dim=config.channels(-1) // config.heads,
            norm_num_groups=config.groups,
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=config.num_classes + 1,
        )

    def forward(self, x: Tensor, c: Tensor, label: Tensor) -> Tensor:
        return self.network(x, c, label, return_dict=False)[0]


def our_network(size: Size) -> nn.Module:
    """Our U-Net of that size."""
    return size.config.build()


def their_network(size: Size) -> nn.Module:
    """Their U-Net of that size."""
    return Peer(size.config, size.side)


SIDES: dict[str, Callable[[Size], nn.Module]] = {"diffusers": their_network, "polydiff": our_network}


def batch(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images, indices of the noise level, labels."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(size.batch, size.channels, size.side, size.side, generator=generator)
    c = torch.randint(T, (size.batch,), generator=generator)
    return x, c, torch.randint(11, (size.batch,), generator=generator)


def plain(layer: Upsample, x: Tensor) -> Tensor:
    """Our upsampling as it is defined."""
    return layer._conv_forward(F.interpolate(x, scale_factor=2.0, mode="nearest"), layer.weight, layer.bias)


def count(network: nn.Module, size: Size) -> tuple[int, int]:
    """(parameters, executed FLOPs of one forward pass of one image)."""
    x, c, label = (part[:1] for part in batch(size))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, c.float(), label)
    return sum(p.numel() for p in network.parameters()), counter.get_total_flops()


def prepared(side: str, size: Size, mode: str) -> nn.Module:
    """A freshly built network in one of the modes."""
    torch.manual_seed(SEED)
    network = SIDES[side](size)
    channels_last, compiled = MODES[mode]
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        network.compile()
    return network


def training(side: str, size: Size, precision: str, mode: str) -> Callable[[], None]:
    """One step of training."""
    network = prepared(side, size, mode).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    x, c, label = batch(size)
    layout = torch.channels_last if MODES[mode][0] else torch.contiguous_format
    x, c, target = x.contiguous(memory_format=layout), c.float(), x.flip(0)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = network(x, c, label)
        F.mse_loss(out.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sampling(side: str, size: Size, precision: str, mode: str) -> Callable[[], None]:
    """A batch drawn by DDIM in `STEPS` steps."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = prepared(side, size, mode).eval().to(dtype)
    x, _, label = batch(size)
    if MODES[mode][0]:
        x = x.contiguous(memory_format=torch.channels_last)
    run = our_sampler(network, x, label) if side == "polydiff" else their_sampler(network, x, label, dtype)

    def sample() -> None:
        with torch.inference_mode():
            run()

    return sample


def our_sampler(network: nn.Module, x: Tensor, label: Tensor) -> Callable[[], Tensor]:
    """Our DDIM with our denoiser."""
    denoiser = GaussianDenoiser(network, Tabulated.from_betas(torch.linspace(BETAS[0], BETAS[1], T)), eps, index(T))
    kernel, times = Gaussian(denoiser.schedule), grids.leading(STEPS, T)

    def run() -> Tensor:
        *_, last = ddim(denoiser.given(kernel, label=label), kernel, x, times)
        return last.x

    return run


def their_sampler(network: nn.Module, x: Tensor, label: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """Their DDIM, as its documentation writes the loop."""

    def run() -> Tensor:
        scheduler = DDIMScheduler(num_train_timesteps=T, clip_sample=False, beta_start=BETAS[0], beta_end=BETAS[1])
        scheduler.set_timesteps(STEPS)
        x_t = x
        for t in scheduler.timesteps:
            output = network(x_t.to(dtype), t, label)
            x_t = scheduler.step(output.float(), int(t), x_t, return_dict=False)[0]
        return x_t

    return run


TASKS = {"training": training, "sampling": sampling}


def seconds(run: Callable[[], None]) -> float:
    """Wall time of one call."""
    before = time.perf_counter()
    run()
    return time.perf_counter() - before


def best(task: str, side: str, size: Size, precision: str, modes: list[str]) -> tuple[str, Callable[[], None], dict]:
    """(best mode, its run, seconds of every mode)."""
    runs, times = {}, {}
    for mode in modes:
        runs[mode] = TASKS[task](side, size, precision, mode)
        runs[mode]()
        runs[mode]()
    for mode in modes:
        times[mode] = float("inf")
    for _ in range(3):  # by turns, so that a noisy moment hits all modes alike
        for mode in modes:
            times[mode] = min(times[mode], seconds(runs[mode]))
    winner = min(times, key=lambda mode: times[mode])
    return winner, runs[winner], times


def measure(task: str, name: str, precision: str, modes: list[str], rounds: int) -> dict[str, Any]:
    """One row of the table."""
    size, row = SIZES[name], {"task": task, "size": name, "precision": precision, "batch": SIZES[name].batch}
    runs, times = {}, {}
    for side in SIDES:
        torch.compiler.reset()
        mode, runs[side], search = best(task, side, size, precision, modes)
        row[f"{side}_mode"], row[f"{side}_search_s"] = mode, search
        times[side] = []
    for turn in range(rounds + 1):
        for side, run in runs.items():
            elapsed = seconds(run)
            if turn > 0:  # the first turn warms up again
                times[side].append(elapsed)
    for side, values in times.items():
        row[f"{side}_s"] = statistics.median(values)
        row[f"{side}_images_per_s"] = size.batch / row[f"{side}_s"]
    ratios = sorted(a / b for a, b in zip(*times.values(), strict=True))
    row |= {"ratio": row["diffusers_s"] / row["polydiff_s"], "rounds": ratios, "goal": GOALS[task]}
    return row


def matched(name: str) -> dict[str, Any]:
    """Parameters and FLOPs of both sides; an error if they differ by more than 5 %."""
    with patch.object(Upsample, "forward", plain):
        ours, theirs = (count(SIDES[side](SIZES[name]), SIZES[name]) for side in ("polydiff", "diffusers"))
    for a, b in zip(ours, theirs, strict=True):
        if abs(a / b - 1) > 0.05:
            raise AssertionError(f"the two sides differ by more than 5 %: {ours} against {theirs} (parameters, FLOPs)")
    _, executed = count(our_network(SIZES[name]), SIZES[name])
    return {"polydiff": ours, "diffusers": theirs, "executed by polydiff": executed}


def main() -> None:
    """Measures, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES)[:3])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    facts = {
        "seed": SEED,
        "machine": machine(),
        "diffusers": diffusers.__version__,
        "sampling_steps": STEPS,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modes": options.modes,
    }
    print(f"{'task':9} {'size':8} {'type':5} {'diffusers':>24} {'polydiff':>32}   ratio (rounds)")
    for name in options.sizes:
        sizes = matched(name)
        for precision in options.precisions:
            for task in options.tasks:
                row = measure(task, name, precision, options.modes, options.rounds)
                keep(row | facts | {"parameters_and_flops": sizes}, options.out)
                sides = [f"{row[f'{side}_images_per_s']:7.1f}/s {row[f'{side}_mode']}" for side in SIDES]
                low, high = row["rounds"][0], row["rounds"][-1]
                text = f"{task:9} {name:8} {precision:5} {sides[0]:>32} {sides[1]:>32}"
                print(f"{text}   {row['ratio']:.2f} ({low:.2f} ... {high:.2f})", flush=True)


def keep(row: dict[str, Any], path: Path) -> None:
    """Put a row into the results at once, in the place of an older one of the same task, size and precision."""

    def key(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["size"], row["task"], row["precision"]

    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = sorted([*(old for old in rows if key(old) != key(row)), row], key=key)
    whole = {"command": "python -m tests.benchmarks.vision_speed", "seed": SEED, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
