"""Training throughput of the text network beside backbones of transformers, and of the objective beside it alone.

    python -m tests.benchmarks.text_network            # --help for other sizes

Every side reads the same tokens (B, L) and its step is forward and backward of a cross-entropy over the 27 symbols of
text8; fp32, and bf16 by autocast over float32 weights. `bare` is our network with that cross-entropy and nothing else;
`objective` is `objectives.Denoising` of an absorbing kernel, which draws times and masks and reads the output as a
belief besides. `bert` and `modernbert` are randomly initialised backbones of equal width, depth and heads with an
output layer; they are not told the time. Their perceptrons are given the width that brings the number of parameters
nearest to ours.

All sides run by turns in one process; a figure is the median over the rounds of tokens per second, and a ratio the
median over rounds of neighbours in time. Each step is also timed by the processor's own clock (`cpu_...`), which does
not see other programs on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from polydiff.core.categorical import absorbing
from polydiff.core.denoisers import TokenDenoiser
from polydiff.core.files import write_atomically
from polydiff.core.machine import machine
from polydiff.core.objectives import Denoising, low_discrepancy
from polydiff.core.randomness import example_generators
from polydiff.core.schedules import RectifiedFlow
from polydiff.core.score_entropy import unmasking
from polydiff.text.network import Transformer, TransformerConfig
from polydiff.text.vocabulary import TEXT8

RESULT = Path(__file__).parent / "results" / "text_network.json"
V = len(TEXT8)
GOALS = {"objective / bare": 0.9, "bare / bert": 1.0, "bare / modernbert": 1.0}


class Backbone(nn.Module):
    """A transformers encoder with an output layer, called as ours but for the time."""

    def __init__(self, encoder: nn.Module, width: int):
        super().__init__()
        self.encoder, self.output = encoder, nn.Linear(width, V)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L) -> (B, L, V)."""
        return self.output(self.encoder(input_ids=x).last_hidden_state)


def bert(config: TransformerConfig, hidden: int) -> nn.Module:
    sizes = BertConfig(
        vocab_size=V + 1, hidden_size=config.width, num_hidden_layers=config.depth, num_attention_heads=config.heads,
        intermediate_size=hidden, max_position_embeddings=config.length, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=0,
    )  # fmt: skip
    return Backbone(BertModel(sizes, add_pooling_layer=False), config.width)


def modernbert(config: TransformerConfig, hidden: int) -> nn.Module:
    sizes = ModernBertConfig(
        vocab_size=V + 1, hidden_size=config.width, num_hidden_layers=config.depth, num_attention_heads=config.heads,
        intermediate_size=hidden, max_position_embeddings=config.length, layer_types=["full_attention"] * config.depth,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, cls_token_id=0, sep_token_id=0,
    )  # fmt: skip
    return Backbone(ModernBertModel(sizes), config.width)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def matched(make: Callable[[TransformerConfig, int], nn.Module], config: TransformerConfig) -> nn.Module:
    """The backbone whose hidden layers bring it nearest to our number of parameters."""
    low, high = (parameters(make(config, hidden)) for hidden in (16, 32))
    hidden = 16 + 16 * (config.num_parameters - low) / (high - low)
    return make(config, max(16, 16 * round(hidden / 16)))


def sides(config: TransformerConfig, batch: int) -> dict[str, tuple[nn.Module, Callable[[bool], Tensor]]]:
    """Name -> module, and what computes its loss, in bfloat16 or not."""
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randint(V, (batch, config.length), generator=generator)
    network, other = Transformer(config), Transformer(config)
    c = torch.rand(batch, generator=generator) * 1000
    schedule = RectifiedFlow()
    denoiser = TokenDenoiser(other, schedule)
    objective = Denoising(denoiser, absorbing(schedule, V + 1, V), unmasking, low_discrepancy())
    steps = iter(range(1 << 30))

    def autocast(reduced: bool) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=reduced)

    def bare(reduced: bool) -> Tensor:
        with autocast(reduced):
            logits = network(x_0, c)
        return F.cross_entropy(logits.flatten(0, 1).float(), x_0.flatten())

    def whole(reduced: bool) -> Tensor:
        generators = example_generators(0, next(steps), range(batch))
        with autocast(reduced):
            return objective({"x_0": x_0}, generators).mean()

    def theirs(module: nn.Module) -> Callable[[bool], Tensor]:
        def loss(reduced: bool) -> Tensor:
            with autocast(reduced):
                logits = module(x_0)
            return F.cross_entropy(logits.flatten(0, 1).float(), x_0.flatten())

        return loss

    found: dict[str, tuple[nn.Module, Callable[[bool], Tensor]]] = {
        "bare": (network, bare),
        "objective": (other, whole),
    }
    for name, make in (("bert", bert), ("modernbert", modernbert)):
        module = matched(make, config)
        found[name] = module, theirs(module)
    return found


def timed(module: nn.Module, loss: Callable[[bool], Tensor], reduced: bool) -> tuple[float, float]:
    """Seconds of one step by the wall's clock and by the processor's."""
    module.zero_grad(set_to_none=True)
    wall, own = time.perf_counter(), time.process_time()
    loss(reduced).backward()
    return time.perf_counter() - wall, time.process_time() - own


def measure(config: TransformerConfig, batch: int, rounds: int, reduced: bool) -> dict[str, Any]:
    """The figures of one precision."""
    contestants = sides(config, batch)
    tokens = batch * config.length
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, (module, loss) in contestants.items():
            found = timed(module, loss, reduced)
            if turn:  # the first one warms up
                seconds[name].append(found)
    ratios = {}
    for pair in GOALS:
        first, second = pair.split(" / ")
        by_turn = [b[0] / a[0] for a, b in zip(seconds[first], seconds[second], strict=True)]
        by_own = [b[1] / a[1] for a, b in zip(seconds[first], seconds[second], strict=True)]
        ratios[pair] = {
            "median": statistics.median(by_turn), "rounds": by_turn, "cpu_median": statistics.median(by_own)
        }  # fmt: skip
    return {
        "parameters": {name: parameters(module) for name, (module, _) in contestants.items()},
        "tokens_per_second": {name: tokens / statistics.median(s for s, _ in all_) for name, all_ in seconds.items()},
        "cpu_tokens_per_second": {
            name: tokens / statistics.median(s for _, s in all_) for name, all_ in seconds.items()
        },
        "ratios": ratios,
    }


def main() -> None:
    """Measure, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (("width", 160), ("depth", 5), ("heads", 5), ("length", 256), ("batch", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = TransformerConfig(
        vocabulary=V, width=options.width, depth=options.depth, heads=options.heads, length=options.length
    )
    found = {
        name: measure(config, options.batch, options.rounds, reduced)
        for name, reduced in (("fp32", False), ("bf16", True))
    }
    for precision, result in found.items():
        print(f"{precision}: tokens per second of a training step (by the processor's own clock), parameters")
        for side, speed in result["tokens_per_second"].items():
            own = result["cpu_tokens_per_second"][side]
            print(f"  {side:12s} {speed:9.0f} ({own:9.0f})  {result['parameters'][side] / 1e6:.2f} M")
        for pair, ratio in result["ratios"].items():
            print(f"  {pair:20s} {ratio['median']:.2f} ({ratio['cpu_median']:.2f}), goal {GOALS[pair]}")
    whole = {
        "date": datetime.now(UTC).date().isoformat(), "machine": machine(), "goals": GOALS, "results": found,
        "sizes": {key: getattr(options, key) for key in ("width", "depth", "heads", "length", "batch", "rounds")},
    }  # fmt: skip
    write_atomically(options.out, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
