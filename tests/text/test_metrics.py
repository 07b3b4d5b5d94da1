"""Figures of text: bits with their errors, entropies, words, copies, perplexity; against brute force and libraries."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.text import Perplexity

from polydiff.core import categorical, grids
from polydiff.core.bounds import elbo
from polydiff.core.errors import ArgumentError, DataError
from polydiff.core.estimates import elbo_estimate
from polydiff.core.schedules import Cosine, RectifiedFlow
from polydiff.text import judges, metrics

LETTERS = "abcd"


def decode(ids: list[int]) -> str:
    """Tokens as letters."""
    return "".join(LETTERS[i] for i in ids)


def oracle(kernel: categorical.Categorical, law: Tensor) -> Any:
    """The exact belief about independent tokens of one law."""

    def denoise(x_t: Tensor, t: Any) -> Tensor:
        joined = law.log() + kernel.evidence(x_t, t)
        return joined.log_softmax(-1)

    return denoise


# Bits


@pytest.mark.parametrize("absorbing", [True, False])
@pytest.mark.parametrize("terms", [None, 3])
def test_bound_of_independent_tokens_is_their_entropy(absorbing: bool, terms: int | None) -> None:
    """With the exact denoiser the bound of independent tokens is -log p on average, whole or in part."""
    law = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    if absorbing:
        kernel = categorical.absorbing(RectifiedFlow(), 5, 4)
        law = torch.cat([law, torch.zeros(1, dtype=torch.float64)])
    else:
        kernel = categorical.uniform(Cosine(), 4)
    windows = torch.multinomial(law, 400 * 8, True, generator=torch.Generator().manual_seed(0)).view(400, 8)
    times = grids.uniform(12)
    estimate = partial(elbo, times=times) if terms is None else partial(elbo_estimate, times=times, terms=terms)
    parts = metrics.bound_nats(oracle(kernel, law), kernel, windows, estimate, seed=1, batch_size=150)
    torch.testing.assert_close(parts["total"], parts["prior"] + parts["gaps"] + parts["reconstruction"])
    exact = -law[windows].log().sum(1)
    rest = parts["total"] - exact
    assert abs(float(rest.mean())) < 4.5 * float(rest.std()) / math.sqrt(len(rest))
    assert float(parts["gaps"].mean()) > 0.5 * float(exact.mean())


def test_bound_does_not_depend_on_the_batches_and_prior_is_counted() -> None:
    kernel = categorical.uniform(RectifiedFlow(), 4)
    law = torch.full((4,), 0.25, dtype=torch.float64)
    windows = torch.randint(4, (7, 5), generator=torch.Generator().manual_seed(0))
    estimate = partial(elbo_estimate, times=grids.uniform(20), terms=2)
    one, other = (
        metrics.bound_nats(oracle(kernel, law), kernel, windows, estimate, seed=3, batch_size=size) for size in (7, 3)
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name])
    again = metrics.bound_nats(oracle(kernel, law), kernel, windows, estimate, seed=4)
    assert not torch.equal(one["total"], again["total"])
    halting = categorical.uniform(Cosine(), 4)
    object.__setattr__(halting, "schedule", lambda t: (0.5 + 0.5 * RectifiedFlow()(t)[0], None))
    prior = metrics.bound_nats(oracle(halting, law), halting, windows, partial(elbo, times=grids.uniform(3)))["prior"]
    kept = torch.tensor([0.625, 0.125, 0.125, 0.125], dtype=torch.float64)  # alpha_1 = 1/2
    torch.testing.assert_close(prior, torch.full((7,), 5 * float((kept * (kept / 0.25).log()).sum())).double())


def test_rate_is_a_ratio_of_sums_with_its_own_error() -> None:
    nats, counts = torch.tensor([10.0, 30.0, 20.0]), torch.tensor([5.0, 10.0, 5.0])
    found = metrics.rate(nats, counts, per_word=4.0)
    value = 60 / 20 / math.log(2)
    residuals = [y / math.log(2) - value * x for y, x in zip(nats.tolist(), counts.tolist(), strict=True)]
    error = math.sqrt(sum(r * r for r in residuals) / 2 / 3) / (20 / 3)
    assert found["bits per character"] == pytest.approx(value, rel=1e-12)
    assert found["standard error"] == pytest.approx(error, rel=1e-12)
    assert found["bits per word"] == pytest.approx(4 * value) and found["standard error per word"] == pytest.approx(
        4 * error
    )
    assert (found["windows"], found["characters"]) == (3, 20)
    # Windows of one length: the plain mean and its error.
    x = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 9
    plain = metrics.rate(x, torch.full((50,), 7.0))
    assert plain["standard error"] == pytest.approx(float(x.std()) / math.sqrt(50) / 7 / math.log(2), rel=1e-12)
    single = metrics.rate(x[:1], torch.ones(1), 5.0)
    assert single["standard error"] is None and single["standard error per word"] is None
    assert "bits per word" not in plain


@pytest.mark.parametrize(
    "nats, counts, word",
    [([], [], None), ([1.0], [1.0, 2.0], None), ([1.0], [0.0], None), ([1.0], [1.0], 0.0)],
)
def test_rate_refuses(nats: list[float], counts: list[float], word: float | None) -> None:
    with pytest.raises(ArgumentError):
        metrics.rate(torch.tensor(nats), torch.tensor(counts), word)


def test_characters_are_those_of_the_text() -> None:
    assert metrics.characters(torch.tensor([[0, 1], [2, 2]]), lambda ids: "ab" * ids[0] + "c").tolist() == [1, 5]


@pytest.mark.parametrize("order", [1, 2])
def test_ngram_baseline_counts(order: int) -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(3, (300,), generator=generator) * torch.randint(2, (300,), generator=generator)
    windows = torch.randint(4, (6, 5), generator=generator)
    single, pairs = Counter(train.tolist()), Counter(itertools.pairwise(train.tolist()))
    firsts = Counter(train[:-1].tolist())
    expected = []
    for row in windows.tolist():
        p = [(single[c] + 1) / (300 + 4) for c in row]
        if order == 2:
            p[1:] = [(pairs[a, b] + 1) / (firsts[a] + 4) for a, b in itertools.pairwise(row)]
        expected.append(-sum(map(math.log, p)))
    found = metrics.ngram_nats(train, windows, 4, order)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    total = torch.tensor(list(itertools.product(range(4), repeat=3)))
    assert float((-metrics.ngram_nats(train, total, 4, order)).exp().sum()) == pytest.approx(1)
    with pytest.raises(ArgumentError):
        metrics.ngram_nats(train, windows, 4, 3)


# Tokens and words


def test_entropies_are_in_nats_and_of_the_right_counts() -> None:
    tokens = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    assert metrics.sample_entropy(tokens) == pytest.approx(math.log(2) / 2)
    assert metrics.pooled_entropy(tokens) == pytest.approx(1.5 * math.log(2))
    # Pairs 00 01 11 and 22 22 22: none spans two samples.
    joint = math.log(6) - 3 / 6 * math.log(3)
    before = -(2 / 6 * math.log(2 / 6) + 1 / 6 * math.log(1 / 6) + 3 / 6 * math.log(3 / 6))
    assert metrics.conditional_entropy(tokens) == pytest.approx(joint - before)
    assert metrics.conditional_entropy(torch.tensor([[0, 1, 2, 0, 1, 2, 0]])) == pytest.approx(0)
    with pytest.raises(ArgumentError):
        metrics.sample_entropy(torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(ArgumentError):
        metrics.conditional_entropy(torch.zeros(2, 1, dtype=torch.long))


def test_words_and_what_the_ends_cut() -> None:
    assert metrics.words("Don't stop, 2 o’clock_now é!") == ["don't", "stop", "2", "o’clock", "now", "é"]
    assert metrics.words("alf done hal", cut=True) == ["done"]
    assert metrics.words(" all of it ", cut=True) == ["all", "of", "it"]
    assert metrics.words("one", cut=True) == []


def test_spelling_counts_whole_words_in_lower_case() -> None:
    known = {"the", "cat"}
    assert metrics.spelling([" The cat xat ", "the cat the", "xyz"], known) == 3 / 4
    assert math.isnan(metrics.spelling(["x"], known))


def test_distinct_counts_within_samples() -> None:
    texts = [" a b a b ", " a b "]
    assert metrics.distinct(texts, 1) == 2 / 6
    assert metrics.distinct(texts, 2) == 2 / 4
    assert metrics.distinct(texts, 3) == 2 / 2
    assert math.isnan(metrics.distinct(texts, 5))
    with pytest.raises(ArgumentError):
        metrics.distinct(texts, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab\U0001f600", max_size=12), min_size=1, max_size=4), st.text("ab\U0001f600", max_size=40))
def test_longest_copies_against_brute_force(texts: list[str], train: str) -> None:
    def longest(text: str) -> int:
        spans = itertools.combinations(range(len(text) + 1), 2)
        return max((b - a for a, b in spans if text[a:b] in train), default=0)

    assert metrics.longest_copies(texts, train) == [longest(text) for text in texts]


def test_longest_copies_of_copies() -> None:
    letters = random.Random(0)
    train = "".join(letters.choice("abcdefgh ") for _ in range(20_000))
    texts = [train[100:300], "zz" + train[-50:], train[:30] + "z" + train[7_000:7_080]]
    assert metrics.longest_copies(texts, train) == [200, 50, 80]
    assert metrics.longest_copies([], train) == [] and metrics.longest_copies([""], train) == [0]


# Judges and the whole


class Coin:
    """Judges every character of "a" at 1/4 and every other at 1/2."""

    name, dtype = "coin", "float64"

    def nats(self, texts: Any, /) -> tuple[Tensor, Tensor]:
        nats = [sum(math.log(4 if c == "a" else 2) for c in text) for text in texts]
        return torch.tensor(nats, dtype=torch.float64), torch.tensor([len(text) for text in texts])


def test_perplexity_averages_over_all_tokens_not_over_texts() -> None:
    assert judges.perplexity(["a", "bbb"], Coin()) == pytest.approx(math.exp((math.log(4) + 3 * math.log(2)) / 4))
    with pytest.raises(ArgumentError):
        judges.perplexity([""], Coin())


@pytest.mark.parametrize("start", [None, 0])
def test_causal_judge_agrees_with_torchmetrics(start: int | None) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=7, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)

    class Tokenizer:
        bos_token_id = start

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            assert not add_special_tokens
            return [int(c) for c in text]

    judge = judges.Causal("tiny", model, Tokenizer(), batch_size=2)
    texts = ["123456", "12", "654321", "333333", "6"]
    measure = Perplexity()
    for text in texts:
        ids = torch.tensor([([] if start is None else [start]) + [int(c) for c in text]])
        if ids.shape[1] > 1:
            with torch.no_grad():
                measure.update(model(input_ids=ids).logits[:, :-1], ids[:, 1:])
    assert judges.perplexity(texts, judge) == pytest.approx(float(measure.compute()), rel=1e-5)
    _, counts = judge.nats(texts)
    assert counts.tolist() == [len(text) - (start is None) for text in texts]
    assert judge.dtype == "float32"
    with pytest.raises(DataError, match="context of 16"):
        judge.nats(["1" * 17])


def test_a_judge_that_cannot_be_had_is_one_clear_error(tmp_path: Any) -> None:
    with pytest.raises(DataError, match="causal language model"):
        judges.Causal.from_pretrained(str(tmp_path))


def test_evaluate_samples_puts_held_out_text_beside() -> None:
    letters = torch.Generator().manual_seed(0)
    held_out = torch.randint(4, (12, 30), generator=letters)
    samples = torch.zeros(12, 30, dtype=torch.long)

    def spaced(ids: list[int]) -> str:
        return "".join("abc "[i] for i in ids)

    train = spaced(torch.randint(4, (2000,), generator=letters).tolist()) + "a" * 30
    found = metrics.evaluate_samples(samples, held_out, train, spaced, Coin())
    rows = found["figures"]
    assert rows["entropy of tokens, nats"]["value"] == 0 < rows["entropy of tokens, nats"]["reference"]
    assert rows["generative perplexity (coin, float64, mean over all tokens)"]["value"] == pytest.approx(4)
    assert rows["longest copied substring, longest, characters"]["value"] == 30
    assert rows["longest copied substring, longest, characters"]["reference"] < 20
    assert rows["share of words in the training vocabulary"]["value"] is None  # no whole word in a run of one letter
    assert rows["share of words in the training vocabulary"]["better"] == "higher"
    assert found["copies"]["samples"]["100%"] == 30 and (found["samples"], found["length"]) == (12, 30)
    itself = metrics.evaluate_samples(held_out, held_out, train, spaced)["figures"]
    assert all(row["value"] == row["reference"] for row in itself.values())
    assert not any("perplexity" in name for name in itself)
    with pytest.raises(ArgumentError):
        metrics.evaluate_samples(samples, held_out[:5], train, spaced)
