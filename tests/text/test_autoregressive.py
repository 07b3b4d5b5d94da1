"""The baseline: its probabilities against enumeration, its draws against its probabilities."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from polydiff.core.config import from_dict, to_dict
from polydiff.core.errors import ArgumentError, CheckpointError
from polydiff.core.randomness import example_generators
from polydiff.text.autoregressive import Autoregressive, AutoregressiveConfig, AutoregressivePipeline
from polydiff.text.network import TransformerConfig
from polydiff.text.vocabulary import TEXT8, Characters, Pretrained
from tests.text.test_vocabulary import byte_level

CONFIG = TransformerConfig(vocabulary=3, width=8, depth=2, heads=2, length=4, causal=True)


def model(config: TransformerConfig = CONFIG, seed: int = 0) -> Autoregressive:
    torch.manual_seed(seed)
    network = config.build().double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return Autoregressive(network.eval())


def strings(V: int, length: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(V), repeat=length)))


@pytest.mark.parametrize("length", [1, 2, 4])
def test_probabilities_of_all_strings_sum_to_one(length: int):
    assert float(model().log_prob(strings(3, length)).exp().sum().detach()) == pytest.approx(1, abs=1e-12)


def test_chain_rule_and_loss():
    baseline, x = model(), strings(3, 4)
    terms = baseline.log_probs(x)
    assert terms.shape == x.shape
    # The conditional of a place is a ratio of marginals of prefixes.
    for i in range(4):
        ratio = baseline.log_prob(x[:, : i + 1]) - (baseline.log_prob(x[:, :i]) if i else 0)
        torch.testing.assert_close(terms[:, i], ratio)
    torch.testing.assert_close(baseline({"x_0": x}), -terms.mean(1))
    torch.testing.assert_close(baseline({"x_0": x}, example_generators(0, 0, range(81))), -terms.mean(1))


def test_draws_have_the_law():
    """Chi-square at a confidence of 0.999, twice over."""
    baseline, x = model(), strings(3, 3)
    expected = baseline.log_prob(x).exp()
    drawn = baseline.sample(4000, 3, generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.long and drawn.shape == (4000, 3)
    counts = torch.bincount(drawn @ torch.tensor([9, 3, 1]), minlength=27).double()
    assert stats.chisquare(counts, expected.detach() * 4000).pvalue > 1e-3
    # Temperature sharpens each conditional: of the first place, p^(1/T).
    first = torch.stack([baseline.log_prob(torch.tensor([[i]])) for i in range(3)]).squeeze(1)
    cold = torch.bincount(baseline.sample(4000, 1, 0.5, torch.Generator().manual_seed(1))[:, 0], minlength=3)
    assert stats.chisquare(cold, (2 * first).softmax(0).detach() * 4000).pvalue > 1e-3


def test_temperature_zero_is_greedy_by_the_whole_network():
    """The likeliest token by calls without a cache: the cache must not change the choice."""
    baseline = model()
    x = torch.empty(1, 0, dtype=torch.long)
    for _ in range(6):
        scores = [float(baseline.log_prob(torch.cat([x, torch.tensor([[i]])], 1)).detach()) for i in range(3)]
        x = torch.cat([x, torch.tensor([[scores.index(max(scores))]])], 1)
    assert torch.equal(baseline.sample(1, 6, 0.0), x)


def test_each_text_has_its_own_seed():
    baseline = model()
    whole = baseline.sample(5, 6, generator=example_generators(3, 0, range(5)))
    part = baseline.sample(2, 6, generator=example_generators(3, 0, [1, 4]))
    assert torch.equal(whole[[1, 4]], part)
    assert (
        len({tuple(row.tolist()) for row in baseline.sample(8, 12, generator=example_generators(0, 0, range(8)))}) > 1
    )


def test_prompts_are_kept_and_condition():
    baseline = model()
    prompt = torch.tensor([2, 0])
    drawn = baseline.sample(3000, 3, generator=torch.Generator().manual_seed(0), prompt=prompt)
    assert torch.equal(drawn[:, :2], prompt.expand(3000, 2))
    rows = torch.cat([prompt.expand(3, 2), torch.arange(3)[:, None]], 1)
    expected = baseline.log_probs(rows)[:, 2].exp().detach()
    assert stats.chisquare(torch.bincount(drawn[:, 2], minlength=3), expected * 3000).pvalue > 1e-3
    each = torch.tensor([[0, 1], [2, 2]])
    assert torch.equal(baseline.sample(2, 4, prompt=each)[:, :2], each)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"count": 0, "length": 2}, "count"),
        ({"count": 1, "length": 0}, "length"),
        ({"count": 1, "length": 2, "temperature": -1.0}, "temperature"),
        ({"count": 1, "length": 2, "temperature": math.nan}, "temperature"),
        ({"count": 1, "length": 2, "prompt": torch.zeros(2, dtype=torch.long)}, "length"),
        ({"count": 1, "length": 2, "prompt": torch.zeros(2, 1, dtype=torch.long)}, "prompt"),
        ({"count": 1, "length": 2, "prompt": torch.zeros(1)}, "prompt"),
    ],
)
def test_bad_input(arguments: dict, named: str):
    with pytest.raises(ArgumentError, match=named):
        model().sample(**arguments)


def test_only_causal_networks_without_mask():
    for other in (
        TransformerConfig(vocabulary=3, width=8, heads=2, depth=1),
        TransformerConfig(vocabulary=3, outputs=4, width=8, heads=2, depth=1, causal=True),
    ):
        with pytest.raises(ArgumentError, match="network"):
            Autoregressive(other.build())


def pipeline(vocabulary, **sizes) -> AutoregressivePipeline:
    network = TransformerConfig(vocabulary=vocabulary.size, width=8, depth=1, heads=2, length=12, causal=True)
    config = AutoregressiveConfig(vocabulary=vocabulary, network=network, data="a test")
    torch.manual_seed(0)
    built = AutoregressivePipeline.build(config)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return AutoregressivePipeline(config, built.eval())


def test_pipeline_writes_scores_and_is_kept(tmp_path: Path):
    one = pipeline(Characters(TEXT8))
    texts = one("The c", count=3, length=9, seed=1)
    assert [text[:5] for text in texts] == ["the c"] * 3 and {len(text) for text in texts} == {9}
    assert one("The c", count=2, length=9, seed=1) == texts[:2]
    assert len(one()[0]) == 12
    score = -float(one.model.log_prob(torch.tensor([one.config.vocabulary.encode("the cat")])).detach())
    assert one.score(["The CAT", "a"])[0] == pytest.approx(score)
    with pytest.raises(ArgumentError, match=r"texts\[1\]"):
        one.score(["a", ""])
    one.save_pretrained(tmp_path / "model")
    again = AutoregressivePipeline.from_pretrained(tmp_path / "model")
    assert again.config == one.config == from_dict(AutoregressiveConfig, to_dict(one.config))
    assert again("The c", count=3, length=9, seed=1) == texts


def test_pipeline_keeps_its_tokenizer(tmp_path: Path):
    one = pipeline(Pretrained.read(byte_level(tmp_path / "bpe")))
    one.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    again = AutoregressivePipeline.from_pretrained(tmp_path / "model")
    assert again("the cat", length=8, seed=2) == one("the cat", length=8, seed=2)
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        AutoregressivePipeline.from_pretrained(tmp_path / "model")


def test_vocabulary_and_network_must_agree():
    config = AutoregressiveConfig(vocabulary=Characters("ab"), network=CONFIG)
    with pytest.raises(ArgumentError, match="vocabulary"):
        AutoregressivePipeline.build(config)
