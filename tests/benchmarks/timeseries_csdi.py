"""The published CSDI weights in our network, kernel and samplers on PhysioNet 2012, beside the published sampler.

    python -m tests.benchmarks.timeseries_csdi --data-root FOLDER [--windows 32] [--samples 100] [--parts rule fast ...]

FOLDER holds `csdi_official/` (model.safetensors: the tensors of the authors' checkpoint; parity.safetensors: one
forward pass of their network on fixed input) and PhysioNet 2012, also below `timeseries/`. Preprocessing, split (fold
0, seed 1), normalisation and the 10 % of held-out cells are the paper's (`physionet2012-csdi`), leak included: its
normalisation has seen the held-out values. The paper: CRPS 0.238, MAE 0.217 (whole fold, mean of 5 runs).

`parity`     our network on the fixture's input.
`rule`       the published update, written here from the paper (Tashiro et al. 2021, algorithm 2; Ho et al. 2020),
                 mean = (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(1 - beta_t),
                 variance = (1 - abar_{t-1}) / (1 - abar_t) beta_t, no noise in the last step,
             and our `ancestral` on the tabulated schedule, fed the same noise: largest distance over all 50 steps.
`precision`  `published` in float32 and in bfloat16 autocast on 4 windows, the same noise.
`published`  `ancestral`, 50 steps; like `fast` in float32 unless --precision says otherwise.
`calibrate`  solvers fitted to the flow of training windows (`core.calibration`), for `fast`; they begin at those of
             the classical tables that are polynomials of the belief in the clock of their grid, as DPM-Solver++.
`fast`       our solvers with few calls, same windows and number of samples, beside ancestral sampling respaced.
`figures`    CRPS, MAE and coverage of the interval from the 5 % to the 95 % quantile as the paper computes them;
             ratios to `published` on the windows that both have, with a bootstrap over windows.

Windows are taken evenly over the test fold. All samples of a window pass in batches through one network whose side
information is computed once; the noise of sample s of window w depends on (seed, w, s) alone. Draws lie in --root, a
file per window and method: a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from polydiff.core.ancestral import ancestral
from polydiff.core.calibration import Calibrated, calibrate, trajectories
from polydiff.core.candidates import candidates
from polydiff.core.denoisers import GaussianDenoiser, eps, index
from polydiff.core.dpm_solver import dpm_solver_pp_2m
from polydiff.core.dpm_solver_sde import dpm_solver_pp_sde
from polydiff.core.gaussian import Gaussian
from polydiff.core.grids import from_index, trailing
from polydiff.core.randomness import example_generators, seeded
from polydiff.core.sampling import last
from polydiff.core.schedules import Tabulated
from polydiff.timeseries.csdi import CSDI, official
from polydiff.timeseries.data import load
from polydiff.timeseries.kernel import targets
from polydiff.timeseries.objectives import pose

from ._results import keep, kept
from ._timeseries import compared, described, pinball_sums

RESULT = Path(__file__).parent / "results" / "timeseries_csdi.json"
SEED, T, RATE = 0, 50, 0.1
PUBLISHED = {"CRPS": 0.238, "MAE": 0.217}


def betas() -> Tensor:
    """Of the paper: a line in their square roots."""
    return torch.linspace(1e-4**0.5, 0.5**0.5, T, dtype=torch.float64) ** 2


def integer_times(schedule: Tabulated, calls: int) -> Tensor:
    """A grid of published steps, the first and last among them, as evenly in log-SNR as whole ones can be."""
    steps = len(schedule.alphas_bar)
    snr = schedule.log_snr(from_index(torch.arange(steps - 1, -1, -1), steps)[:-1])
    wanted = torch.linspace(float(snr[0]), float(snr[-1]), calls, dtype=torch.float64)
    nearest = (snr[None] - wanted[:, None]).abs().argmin(1)
    for k in range(1, calls):  # no step twice
        nearest[k] = max(int(nearest[k]), int(nearest[k - 1]) + 1)
    for k in range(calls - 1, -1, -1):
        nearest[k] = min(int(nearest[k]), steps - calls + k)
    return from_index(steps - 1 - nearest, steps)


class Asked(NamedTuple):
    """One window, posed: what `objectives.pose` gives, and the held-out cells (1, L, K)."""

    posed: dict[str, Any]
    held: Tensor
    truth: Tensor


class Run(NamedTuple):
    """A method on some windows."""

    name: str
    windows: list[int]
    samples: int
    precision: str


class Bench:
    """The windows, the network, and the figures."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        folders = [options.data_root / "csdi_official", options.data_root / "timeseries" / "csdi_official"]
        self.folder = next((folder for folder in folders if folder.exists()), folders[0])
        self.network = official(self.folder / "model.safetensors")
        self.schedule = Tabulated.from_betas(betas())
        self.test = load("physionet2012-csdi", "test", data_root=options.data_root)
        self.held = self.test.held(RATE, 1)
        count = min(options.windows, len(self.test))
        self.chosen = [round(k * len(self.test) / count) for k in range(count)]
        self.about = {
            "command": "python -m tests.benchmarks.timeseries_csdi",
            "seed": SEED,
            "set": "physionet2012-csdi, test fold 0 of seed 1, 10 % held out; the paper's normalisation, which leaks",
            "test windows": len(self.test),
            "windows": count,
            "samples": options.samples,
            "precision": options.precision,
            "published": PUBLISHED,
        }

    @functools.cached_property
    def compiled(self) -> Any:
        """The network compiled, the same function."""
        return torch.compile(self.network, dynamic=False)

    def keep(self, section: str, name: str, entry: dict[str, Any]) -> None:
        """Into the results, at once."""
        keep(self.options.out, self.about, section, name, entry)

    def asked(self, window: int) -> Asked:
        """A window of the test fold."""
        batch, held = self.test.batch([window]), self.held[[window]]
        posed = pose(batch["values"], batch["seen"] & ~held, batch["stamps"], counted=held)
        return Asked(posed, held, batch["values"])

    def bound(self, posed: dict[str, Any], copies: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Gaussian]:
        """Denoiser and kernel for so many states of each window; side information computed once."""
        network = self.network.to(dtype)
        called = self.compiled if self.options.compile and dtype == torch.float32 else network
        denoiser = GaussianDenoiser(called, self.schedule, eps, index(T))
        structure = {name: mask.repeat_interleave(copies, 0) for name, mask in posed["structure"].items()}
        kernel = targets(self.schedule).given(**structure)
        with torch.no_grad():
            side = network.side(posed["observed"].to(dtype), posed["known"], posed["stamps"].to(dtype))
        return denoiser.given(kernel, side=side), kernel

    # Methods

    def methods(self) -> dict[str, tuple[Callable[..., Any], Tensor | None]]:
        """Sampler and grid by name."""
        found: dict[str, tuple[Callable[..., Any], Tensor | None]] = {}
        for n in self.options.calls:
            grid = integer_times(self.schedule, n)
            found[f"DPM-Solver++ 2M, {n} calls"] = dpm_solver_pp_2m, grid
            found[f"SDE-DPM-Solver++ 2M, {n} calls"] = partial(dpm_solver_pp_sde, order=2), grid
            found[f"ancestral respaced, {n} calls"] = ancestral, trailing(n, T)
            path = self.calibrated_path(n)
            if path.exists():
                found[f"calibrated, {n} calls"] = Calibrated.load(path), None
        return found

    def calibrated_path(self, calls: int) -> Path:
        return self.options.root / f"calibrated-{calls}.json"

    def drawn(self, run: Run, sampler: Callable[..., Any], grid: Tensor | None) -> None:
        """Samples of the held-out cells, window by window, each in a file."""
        S = run.samples
        for window in run.windows:
            path = self.path(run, window)
            if path.exists():
                continue
            asked = self.asked(window)
            before, wall, parts = time.process_time(), time.perf_counter(), []
            for start in range(0, S, self.options.batch):
                rows = range(start, min(S, start + self.options.batch))
                generators = example_generators(SEED, window, rows)
                denoise, kernel = self.bound(asked.posed, len(rows))
                like = asked.held.new_zeros(len(rows), *asked.held.shape[1:], dtype=torch.float32)
                x = kernel.noise.draw(like, generators)  # as published; `prior` has sigma_1 = 0.99998
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16"):
                    x = last(sampler(denoise, kernel, x, grid, generator=generators))
                parts.append(x[:, asked.held[0]])
            seconds, wall = time.process_time() - before, time.perf_counter() - wall
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".part.npz")
            np.savez(draft, samples=torch.cat(parts).numpy(), seconds=seconds, wall=wall)
            draft.rename(path)
            print(f"{run.name}: window {window}, {seconds:.1f} s", flush=True)

    def path(self, run: Run, window: int) -> Path:
        folder = run.name.replace(", ", "-").replace(" ", "-").lower()
        return self.options.root / f"{folder}-{run.samples}-{run.precision}" / f"{window}.npz"

    def run(self, name: str) -> Run:
        """As the options ask."""
        return Run(name, self.chosen, self.options.samples, self.options.precision)

    # Figures

    def sums(self, run: Run) -> tuple[list[int], np.ndarray, float]:
        """The windows drawn, their sums (n, 5), and seconds a window."""
        there, rows, seconds = [], [], 0.0
        for window in run.windows:
            path = self.path(run, window)
            if not path.exists():
                continue
            with np.load(path) as found:
                samples, seconds = torch.from_numpy(found["samples"]), seconds + float(found["seconds"])
            asked = self.asked(window)
            truth = asked.truth[asked.held]
            rows.append(pinball_sums(samples, truth, torch.zeros(len(truth), dtype=torch.long), 1)[0])
            there.append(window)
        return there, np.array(rows), seconds / max(1, len(there))

    def figures(self, name: str) -> None:
        """Figures of a method, and its ratios to the published sampler."""
        there, sums, seconds = self.sums(self.run(name))
        if not there:
            return
        entry: dict[str, Any] = described(sums, self.options.samples) | {"seconds per window": seconds}
        base, reference, slow = self.sums(self.run("published"))
        both = [window for window in there if window in base]
        if both and name != "published":
            ours, theirs = (
                np.array([rows[index.index(window)] for window in both])
                for rows, index in ((sums, there), (reference, base))
            )
            entry["to published"] = compared(ours, theirs) | {"time ratio": seconds / slow}
        self.keep("methods", name, entry)
        told = "  ".join(f"{key} {entry[key]['value']:.4f}" for key in ("CRPS", "MAE", "coverage"))
        print(f"  {name:34} {told}  {seconds:.1f} s a window, {len(there)} windows", flush=True)


def parity(bench: Bench) -> None:
    """One forward pass of the authors' network, in its precision and in float64."""
    found = load_file(bench.folder / "parity.safetensors")
    entry = {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        network: CSDI = bench.network.to(dtype)

        def turned(key: str, dtype: torch.dtype = dtype) -> Tensor:
            return found[key].to(dtype).transpose(1, 2)

        known = turned("cond_mask") > 0.5
        with torch.no_grad():
            output = network(
                turned("noisy"), found["step"].to(dtype), observed=turned("observed") * known, known=known,
                stamps=found["timepoints"].to(dtype),
            )  # fmt: skip
        off = (output - turned("predicted_noise")).abs().max()
        entry[f"largest difference, {name}"] = float(off)
    bench.network.to(torch.float32)
    entry["largest output"] = float(found["predicted_noise"].abs().max())
    alpha = bench.schedule(torch.arange(1, T + 1, dtype=torch.float64) / T)[0]
    entry["largest difference, alpha_bar"] = float((alpha**2 - found["alpha_bar"]).abs().max())
    entry["parameters"] = sum(p.numel() for p in bench.network.parameters())
    bench.keep("checks", "parity", entry)
    print(entry, flush=True)


def published_rule(
    network: Callable[[Tensor, int], Tensor], beta: Tensor, x: Tensor, noise: Iterator[Tensor]
) -> Iterator[Tensor]:
    """The states of the published sampler, one after every step.

    Args:
        network: (x_t, 0-based step) -> eps.
        beta: (T,) float64.
        x: standard normal, the first state.
        noise: standard normal states, one for every step but the last.
    """
    bar = (1 - beta).cumprod(0)
    for t in range(len(beta) - 1, -1, -1):
        x = (x - float(beta[t] / (1 - bar[t]).sqrt()) * network(x, t)) / float((1 - beta[t]).sqrt())
        if t > 0:
            x = x + float(((1 - bar[t - 1]) / (1 - bar[t]) * beta[t]).sqrt()) * next(noise)
        yield x


def rule(bench: Bench) -> None:
    """Both samplers, the same noise."""
    entry: dict[str, Any] = {"steps": T, "states": bench.options.rule_samples}
    S, window = bench.options.rule_samples, bench.chosen[0]
    asked = bench.asked(window)
    shape = (S, *asked.held.shape[1:])
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        mask = asked.posed["structure"]["mask"].expand(shape)
        denoise, kernel = bench.bound(asked.posed, S, dtype)
        observed, known, stamps = (asked.posed[key].repeat_interleave(S, 0) for key in ("observed", "known", "stamps"))

        def network(
            x: Tensor, t: int, dtype: Any = dtype, observed: Any = observed, known: Any = known, stamps: Any = stamps
        ) -> Tensor:
            c = torch.full((len(x),), float(t), dtype=dtype)
            return bench.network(x, c, observed=observed.to(dtype), known=known, stamps=stamps.to(dtype))

        source = torch.Generator().manual_seed(SEED)
        noise = iter(lambda source=source, dtype=dtype: torch.randn(shape, generator=source, dtype=dtype), None)
        generator = torch.Generator().manual_seed(SEED)
        x = kernel.noise.draw(torch.zeros(shape, dtype=dtype), generator)
        off, size = 0.0, 0.0
        with torch.no_grad():
            theirs = published_rule(network, betas(), next(noise), noise)
            ours = ancestral(denoise, kernel, x, trailing(T, T), generator=generator)
            for one, other in zip(ours, theirs, strict=True):
                # The published sampler also moves given cells, which its network does not look at.
                off = max(off, float((one.x - other)[mask].abs().max()))
                size = max(size, float(other[mask].abs().max()))
        if not torch.equal(torch.rand(3, generator=source), torch.rand(3, generator=generator)):
            raise SystemExit("the two samplers drew different amounts of noise")
        entry[f"largest difference, {name}"], entry["largest state"] = off, size
        print(f"  rule, {name}: {off:.2g} of states up to {size:.2g}", flush=True)
    bench.network.to(torch.float32)
    bench.keep("checks", "rule", entry)


def calibrated(bench: Bench) -> None:
    """Fit the solvers on training windows of which 10 % are held out."""
    train = load("physionet2012-csdi", "train", stride=48, data_root=bench.options.data_root)
    held = train.held(RATE, 1)
    size, batches = bench.options.calibration_batch, []
    for part in range(3):
        windows = [round((part * size + k) * len(train) / (3 * size)) for k in range(size)]
        batch = train.batch(windows)
        posed = pose(batch["values"], batch["seen"] & ~held[windows], batch["stamps"], counted=held[windows])
        denoise, kernel = bench.bound(posed, 1)
        x = kernel.prior(posed["x_0"]).sample(seeded(SEED, 1, part))
        batches.append(trajectories(denoise, kernel, x, steps=bench.options.fine))
        print(f"  calibrate: flow of {size} windows", flush=True)
    for n in bench.options.calls:
        path = bench.calibrated_path(n)
        if path.exists():
            continue
        before = time.process_time()
        starts = [
            one for one in candidates(bench.schedule, 1.0, n) if one.name.startswith(("data, order 2", "data, order 3"))
        ]
        starts = [one for one in starts if one.name.split(", ")[2].endswith(one.name.split("uniform in ")[1])]
        solver = calibrate(
            batches[:2], batches[2:], n, starts=starts, rivals=1, probes=1, iterations=bench.options.iterations,
            generator=seeded(SEED, 2),
        )  # fmt: skip
        solver.save(path)
        entry = {"start": solver.start, "rmse": solver.rmse, "rmse of the best classical": solver.rmse_start}
        bench.keep("solvers", f"{n} calls", entry | {"seconds": time.process_time() - before, "windows": 3 * size})
        print(f"  calibrate: {n} calls, {entry}", flush=True)


def published(bench: Bench) -> None:
    """Ancestral sampling, 50 steps."""
    bench.drawn(bench.run("published"), ancestral, trailing(T, T))
    bench.figures("published")


def fast(bench: Bench) -> None:
    """All solvers with few calls."""
    for name, (sampler, grid) in bench.methods().items():
        bench.drawn(bench.run(name), sampler, grid)
        bench.figures(name)


def precision(bench: Bench) -> None:
    """The published sampler in float32 and in bfloat16 autocast, same noise."""
    windows, found = bench.chosen[:: max(1, len(bench.chosen) // 4)][:4], []
    for kind in ("no", "bf16"):
        run = Run("published", windows, bench.options.precision_samples, kind)
        bench.drawn(run, ancestral, trailing(T, T))
        draws = []
        for window in windows:
            with np.load(bench.path(run, window)) as file:
                draws.append(file["samples"].astype(np.float64))
        found.append((bench.sums(run), np.concatenate(draws, 1)))
    (_, exact, slow), full = found[0]
    (_, coarse, fast_), half = found[1]
    entry: dict[str, Any] = {"bf16 to float32": compared(coarse, exact), "samples": bench.options.precision_samples}
    entry["root mean square difference in standard deviations of the samples"] = float(
        np.sqrt(np.mean((half - full) ** 2) / np.mean(full.var(0, ddof=1)))
    )
    entry["time ratio"] = fast_ / slow
    bench.keep("checks", "precision", entry)
    print(f"  precision: {entry}", flush=True)


def figures(bench: Bench) -> None:
    """From the draws that are there."""
    for name in ("published", *bench.methods()):
        bench.figures(name)
    found = kept(bench.options.out, bench.about).get("methods", {}).get("published")
    if found:
        ratios = {key: found[key]["value"] / PUBLISHED[key] for key in PUBLISHED}
        bench.keep("checks", "to the paper", {"ratios": ratios, "windows": found["windows"]})


PARTS: dict[str, Callable[[Bench], None]] = {
    "parity": parity,
    "rule": rule,
    "precision": precision,
    "published": published,
    "calibrate": calibrated,
    "fast": fast,
    "figures": figures,
}


def main() -> None:
    """Read the command line and do the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("runs/timeseries-csdi"), help="where draws are kept")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--windows", type=int, default=32, help="of the test fold, evenly")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--batch", type=int, default=10, help="samples that pass through the network together")
    parser.add_argument("--precision", choices=["no", "bf16"], default="no", help="bf16: the network in autocast")
    parser.add_argument("--precision-samples", type=int, default=25, help="of each of the 4 windows of `precision`")
    parser.add_argument("--calls", type=int, nargs="+", default=[10, 6])
    parser.add_argument("--rule-samples", type=int, default=4)
    parser.add_argument("--compile", action="store_true", help="the network, for whole batches")
    parser.add_argument("--calibration-batch", type=int, default=12, help="windows of each of three batches")
    parser.add_argument("--fine", type=int, default=20, help="steps of the flow that is fitted, four calls each")
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.root.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    print(f"{bench.about}", flush=True)
    for name in options.parts:
        PARTS[name](bench)


if __name__ == "__main__":
    main()
