"""Bits per character by kernel, reading and loss, on novels: one network, one budget of training, one book held out.

    python -m tests.benchmarks.text_bits [--data-root FOLDER] [--models absorbing uniform ...] [--steps N]

Fifteen novels in the 27 symbols of text8 are trained on, in windows of 256; a book that no model has seen is scored.
All models share the network (the autoregressive one is its causal twin), the seed, the batches, the optimizer, the
number of steps and bf16. Bounds are those of grids of 1000, 256, 64 and 20 steps, whole (prior, gaps, reconstruction),
each from `--terms` stratified terms that are unbiased for all of them, on the same windows with the same draws; errors
are over windows. Differences to `absorbing` are paired by window.

Names are kernel[-reading][-loss]: the network read as p(x_0 | x_t) (the default) or, `context`, as p(x_0 | the other
tokens), D3PM's product rule; trained on cross-entropy or, `bound`, on L_vb of 1000 steps. `absorbing-weighted` is
trained on its chain's continuous bound, a weighted cross-entropy, `absorbing-root` on the root of that weight. Models
trained on cross-entropy as p(x_0 | x_t) are also read by the product rule, as D3PM's hybrid loss with a heavy
cross-entropy comes to. `neighbours` jumps between letters that stand between the same letters
(`text.model.neighbourhood`). `public-d3pm` is described in `_text_peers`.

Every model lives in a folder of --root; a run that was killed goes on where it stopped, and results are written part by
part; models that were not asked for keep their old entry.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polydiff.core import categorical, grids, objectives
from polydiff.core.bounds import elbo
from polydiff.core.categorical import Tokens
from polydiff.core.denoisers import TokenDenoiser, context, logits
from polydiff.core.estimates import elbo_estimate
from polydiff.core.files import write_atomically
from polydiff.core.hybrid import Hybrid
from polydiff.core.machine import machine
from polydiff.core.options import TrainingOptions
from polydiff.core.randomness import example_generators
from polydiff.core.schedules import Cosine, RectifiedFlow
from polydiff.core.score_entropy import half_unmasking, unmasking
from polydiff.core.training import train
from polydiff.text import metrics
from polydiff.text.autoregressive import Autoregressive
from polydiff.text.data import Text, load
from polydiff.text.kernel import band, gaussian_walk, nearest_neighbours
from polydiff.text.model import neighbourhood
from polydiff.text.network import Transformer, TransformerConfig

from ._text_peers import PublicD3PM

RESULT = Path(__file__).parent / "results" / "text_bits.json"
SEED, LENGTH = 0, 256
GRIDS = (1000, 256, 64, 20)
WIDTH, DEPTH, HEADS = 160, 5, 5

Reading = Callable[[Tensor, Tensor], Tensor]


class Recipe(NamedTuple):
    """How a model is made and read."""

    kernel: Callable[[Text], Tokens]
    reading: Reading = logits
    loss: Callable[[TokenDenoiser, Tokens], nn.Module] = lambda denoiser, kernel: objectives.Denoising(
        denoiser, kernel, objectives.plain, objectives.low_discrepancy(0.0)
    )
    also: Reading | None = None


def weighted(denoiser: TokenDenoiser, kernel: Tokens) -> nn.Module:
    """The continuous bound of an absorbing chain."""
    return objectives.Denoising(denoiser, kernel, unmasking, objectives.low_discrepancy(0.0))


def between(denoiser: TokenDenoiser, kernel: Tokens) -> nn.Module:
    """Half way between cross-entropy and that bound."""
    return objectives.Denoising(denoiser, kernel, half_unmasking, objectives.low_discrepancy(0.0))


def l_vb(denoiser: TokenDenoiser, kernel: Tokens) -> nn.Module:
    """L_vb of 1000 steps and nothing else."""
    times = grids.uniform(1000)
    return Hybrid(denoiser, kernel, times, 1.0, weight=lambda schedule, t: torch.zeros_like(t), stop=None)


def absorbing(data: Text) -> Tokens:
    """alpha = 1 - t: beta_t = 1/(T - t + 1), which is the mutual-information schedule."""
    return categorical.absorbing(RectifiedFlow(), data.vocabulary.size + 1, data.vocabulary.size)


def uniform(data: Text) -> Tokens:
    """With D3PM's cosine schedule, as the others below."""
    return categorical.uniform(Cosine(), data.vocabulary.size)


RECIPES: dict[str, Recipe] = {
    "absorbing": Recipe(absorbing),
    "absorbing-root": Recipe(absorbing, logits, between),
    "absorbing-weighted": Recipe(absorbing, logits, weighted),
    "uniform": Recipe(uniform, also=context),
    "uniform-context": Recipe(uniform, context),
    "uniform-bound": Recipe(uniform, logits, l_vb),
    "uniform-context-bound": Recipe(uniform, context, l_vb),
    "marginal-context": Recipe(lambda data: categorical.marginal(Cosine(), data.counts), context),
    "band-context": Recipe(lambda data: band(Cosine(), data.vocabulary.size, 3), context),
    "gaussian-context": Recipe(lambda data: gaussian_walk(Cosine(), data.vocabulary.size), context),
    "neighbours-context": Recipe(
        lambda data: nearest_neighbours(Cosine(), neighbourhood(data.tokens, data.vocabulary.size), 4), context
    ),
    "marginal": Recipe(lambda data: categorical.marginal(Cosine(), data.counts), also=context),
    "band": Recipe(lambda data: band(Cosine(), data.vocabulary.size, 3), also=context),
    "gaussian": Recipe(lambda data: gaussian_walk(Cosine(), data.vocabulary.size), also=context),
    "neighbours": Recipe(
        lambda data: nearest_neighbours(Cosine(), neighbourhood(data.tokens, data.vocabulary.size), 4), also=context
    ),
}
OTHERS = ("autoregressive", "public-d3pm")
DEFAULT = [
    "absorbing",
    "absorbing-root",
    "absorbing-weighted",
    "uniform",
    "uniform-bound",
    "uniform-context-bound",
    "band",
    "gaussian",
    "neighbours",
    *OTHERS,
]


class Bench:
    """The novels, the models and their figures."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.data = load("novels", "train", length=LENGTH, data_root=options.data_root)
        self.test = load("novels", "test", length=LENGTH, data_root=options.data_root)
        count = min(options.windows, len(self.test))
        chosen = [round(i * (len(self.test) - 1) / max(1, count - 1)) for i in range(count)]
        self.windows = self.test.batch(chosen)["x_0"]
        self.counts = metrics.characters(self.windows, self.data.vocabulary.decode)

    # Models

    def config(self, causal: bool = False, mask: bool = False) -> TransformerConfig:
        """Sizes of the network."""
        size = self.data.vocabulary.size
        return TransformerConfig(
            vocabulary=size,
            outputs=size + mask,
            width=WIDTH,
            depth=DEPTH,
            heads=HEADS,
            length=LENGTH,
            causal=causal,
        )

    def network(self, causal: bool = False, mask: bool = False) -> Transformer:
        """The network, the same weights for all."""
        torch.manual_seed(SEED)
        return self.config(causal, mask).build()

    @property
    def training(self) -> TrainingOptions:
        """The common budget."""
        return TrainingOptions(
            steps=self.options.steps,
            batch_size=self.options.batch,
            learning_rate=self.options.learning_rate,
            warmup=min(100, self.options.steps // 10),
            decay_to=0.02,
            betas=(0.9, 0.98),
            ema=0.995,
            precision="bf16",
            checkpoint_every=max(1, min(100, self.options.steps // 4)),
            log_every=max(1, self.options.steps // 40),
            seed=SEED,
            cpu=True,
            progress=False,
        )

    def trained(self, name: str, objective: nn.Module) -> tuple[Any, dict[str, Any]]:
        """The objective with averaged weights after the common budget, and what the training took."""
        folder = self.options.root / name
        found = train(objective, self.data, self.training, folder=folder, resume=folder.exists())
        seconds = found.history[-1]["seconds"]
        speed = statistics.median(entry["examples_per_second"] for entry in found.history) * LENGTH
        print(f"{name}: {self.options.steps} steps in {seconds:.0f} s, {speed:.0f} tokens/s", flush=True)
        return found.ema, {"training_seconds": seconds, "tokens_per_second": speed}

    # Figures

    def bound(self, denoiser: TokenDenoiser, kernel: Tokens, steps: int) -> dict[str, Tensor]:
        """The bound of a grid in nats, by parts and windows."""
        times = grids.uniform(steps)
        whole = steps - 1 <= self.options.terms
        estimate = (
            partial(elbo, times=times) if whole else partial(elbo_estimate, times=times, terms=self.options.terms)
        )
        return metrics.bound_nats(
            denoiser.given(kernel), kernel, self.windows, estimate, seed=SEED, precision=torch.bfloat16
        )

    def scored(self, name: str, score: Callable[[int], dict[str, Tensor]], steps: tuple[int, ...] = GRIDS) -> None:
        """Score a model on every grid that has not been scored, and put the figures into the results."""
        path = self.options.root / name.partition(" ")[0] / f"{name.replace(' ', '-')}.nats.json"
        about = {"windows": len(self.windows), "terms": self.options.terms, "steps": self.options.steps}
        kept = json.loads(path.read_text()) if path.exists() else {}
        if kept.get("about") != about:
            kept = {"about": about, "nats": {}}
        for n in steps:
            if str(n) not in kept["nats"]:
                started = time.monotonic()
                kept["nats"][str(n)] = {part: nats.tolist() for part, nats in score(n).items()}
                write_atomically(path, json.dumps(kept))
                found = self.rate(torch.tensor(kept["nats"][str(n)]["total"]))
                print(
                    f"  {name:36} {n:5} steps {found['bits per character']:.4f} ± {found['standard error']:.4f} "
                    f"bits/char  {time.monotonic() - started:5.0f} s",
                    flush=True,
                )

    def rate(self, nats: Tensor) -> dict[str, Any]:
        """Bits per character and per word of the test windows."""
        return metrics.rate(nats, self.counts, self.test.characters / self.test.words)

    def keep(self, name: str, **facts: Any) -> None:
        """Put a model's figures into the results, with its difference to the absorbing model, paired by window."""
        entry: dict[str, Any] = dict(facts)
        for reading, nats in self.nats(name).items():
            bits = {n: self.rate(torch.tensor(parts["total"])) for n, parts in nats.items()}
            scale = float(self.counts.sum()) * math.log(2)
            for n, parts in nats.items():
                bits[n] |= {part: sum(values) / scale for part, values in parts.items() if part != "total"}
            entry.setdefault("bits", {})[reading] = bits
        whole = json.loads(self.options.out.read_text()) if self.options.out.exists() else {}
        entry |= {"machine": machine(), "date": datetime.date.today().isoformat()}
        whole |= self.about()
        whole.setdefault("models", {})[name] = entry
        base = self.nats("absorbing").get("", {})
        for other, row in whole["models"].items():
            row["minus absorbing"] = {
                reading: {n: self.difference(nats[n], base[n]) for n in nats if n in base}
                for reading, nats in self.nats(other).items()
            }
        write_atomically(self.options.out, json.dumps(whole, indent=1) + "\n")

    def nats(self, name: str) -> dict[str, dict[str, Any]]:
        """Reading ("" the model's own) -> steps -> part -> nats of every window, as far as they are scored alike."""
        found = {}
        for path in sorted((self.options.root / name).glob(f"{name}*.nats.json")):
            kept = json.loads(path.read_text())
            if kept["about"]["windows"] == len(self.windows):
                reading = path.name.removesuffix(".nats.json").removeprefix(name).removeprefix("-")
                found[reading] = kept["nats"]
        return found

    def difference(self, mine: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
        """Bits per character more than the base's, on the same windows."""
        rest = torch.tensor(mine["total"], dtype=torch.float64) - torch.tensor(base["total"], dtype=torch.float64)
        found = self.rate(rest)
        return {key: found[key] for key in ("bits per character", "standard error")}

    def about(self) -> dict[str, Any]:
        """What is common to all models."""
        size = self.data.vocabulary.size
        ngrams = {
            name: self.rate(metrics.ngram_nats(self.data.tokens.long(), self.windows, size, order))
            for name, order in (("unigram", 1), ("bigram", 2))
        }
        return {
            "command": "python -m tests.benchmarks.text_bits",
            "seed": SEED,
            "length": LENGTH,
            "parameters": self.config().num_parameters,
            "network": {"width": WIDTH, "depth": DEPTH, "heads": HEADS},
            "steps": self.options.steps,
            "batch": self.options.batch,
            "learning_rate": self.options.learning_rate,
            "windows": len(self.windows),
            "terms": self.options.terms,
            "training_characters": self.data.characters,
            "test_characters": self.test.characters,
            "n-gram": ngrams,
        }


def diffusion(bench: Bench, name: str) -> None:
    """Train and score one of our diffusion models."""
    recipe = RECIPES[name]
    kernel = recipe.kernel(bench.data)
    denoiser = TokenDenoiser(bench.network(), kernel.schedule, recipe.reading)
    found, facts = bench.trained(name, recipe.loss(denoiser, kernel))
    denoiser = next(part for part in found.modules() if isinstance(part, TokenDenoiser))
    bench.scored(name, lambda n: bench.bound(denoiser, kernel, n))
    bench.keep(name, **facts)
    if recipe.also is not None:
        again = TokenDenoiser(denoiser.network, kernel.schedule, recipe.also)
        bench.scored(f"{name} read as {recipe.also.__name__}", lambda n: bench.bound(again, kernel, n))
        bench.keep(name, **facts)


def autoregressive(bench: Bench, name: str) -> None:
    """The causal twin, whose figure is exact."""
    found, facts = bench.trained(name, Autoregressive(bench.network(causal=True)))

    @torch.no_grad()
    def score(n: int) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return {"total": torch.cat([-found.log_prob(part).double() for part in bench.windows.split(32)])}

    bench.scored(name, score, (LENGTH,))
    bench.keep(name, **facts)


def public_d3pm(bench: Bench, name: str) -> None:
    """The public recipe, by our bound and by its own."""
    symbols = bench.data.vocabulary.size + 1
    found, facts = bench.trained(name, PublicD3PM(bench.network(mask=True), symbols))
    kernel = absorbing(bench.data)
    bench.scored(name, lambda n: bench.bound(found.denoiser, kernel, n))

    def own(n: int) -> dict[str, Tensor]:
        parts = []
        for part in torch.arange(len(bench.windows)).split(32):
            generators = example_generators(SEED, 2, part.tolist())
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(found.own_nats(bench.windows[part], bench.options.terms + 1, generators))
        return {"total": torch.cat(parts)}

    bench.scored(f"{name} by its own bound", own, (1000,))
    bench.keep(name, **facts)


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--root", type=Path, default=Path("runs/text-bits"), help="where models are kept")
    parser.add_argument("--models", nargs="+", choices=[*RECIPES, *OTHERS], default=DEFAULT)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--windows", type=int, default=160)
    parser.add_argument("--terms", type=int, default=19, help="of each bound")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    for name in options.models:
        {"autoregressive": autoregressive, "public-d3pm": public_d3pm}.get(name, diffusion)(bench, name)


if __name__ == "__main__":
    main()
