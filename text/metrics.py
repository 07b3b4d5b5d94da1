"""What a model of text is worth: bits per character of text that it has not seen, and what its samples are like.

**Bits.** -log2 p of held-out text over its characters, and over its words. Diffusion models give an upper bound of it,
all of it: prior, gaps and reconstruction, no time left out (`core.bounds`, `core.estimates`). Windows of tokens hold
different numbers of characters, so the figure is a ratio of sums, and its standard error that of a ratio estimator
over windows (Cochran 1977, "Sampling Techniques", eq. 2.39); it covers the choice of windows and the draws of the
bound, not the choice of the book. A word's bits are a character's times the characters per word of the whole held-out
text (the white space between words counts as characters), as is usual for word perplexities.

**Samples.** Every figure stands beside the same figure of as many held-out windows of the same length.

- entropy of tokens, in nats: of one sample's own token frequencies, averaged over samples (what papers on discrete
  diffusion print), of all samples' pooled frequencies, and of a token given the one before it. Plug-in estimates, too
  low in small samples: hence the equal numbers.
- spelling: the share of words that occur in the training text. Words are runs of letters and digits, with apostrophes
  inside, in lower case; the first and last of a sample are left out where its ends may have cut them.
- distinct n-grams of words: different ones over all (Li et al. 2016, arXiv:1510.03055).
- longest copied substring: the longest run of characters of a sample that the training text holds too. Held-out text
  shows how long natural ones are.
- generative perplexity under a judge, see `judges`; never printed without the entropy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import entropy
from torch import Tensor

from ..core.bounds import Bound
from ..core.errors import ArgumentError
from ..core.kernel import Kernel
from ..core.randomness import example_generators
from .judges import Judge, perplexity

__all__ = [
    "bound_nats",
    "characters",
    "conditional_entropy",
    "distinct",
    "evaluate_samples",
    "longest_copies",
    "ngram_nats",
    "pooled_entropy",
    "rate",
    "sample_entropy",
    "spelling",
    "words",
]

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
COPIES = 200  # samples, at most, whose copied substrings are searched for

Decode = Callable[[list[int]], str]


# ----------------------------------------------------------------------------------------------------------- bits


@torch.no_grad()
def bound_nats(
    denoise: Callable[[Tensor, Any], Tensor],
    kernel: Kernel[Tensor, Tensor],
    windows: Tensor,
    estimate: Callable[..., Bound],
    *,
    seed: int = 0,
    batch_size: int = 32,
    precision: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The bound on -log p of windows, in nats, by parts.

    Args:
        denoise: (x_t, t) -> belief, from `TokenDenoiser.given`.
        kernel: of the forward process.
        windows: tokens, long (N, L).
        estimate: `estimate(denoise, kernel, x_0, generator=...) -> Bound`: `partial(elbo, times=...)` for the whole
            sum, `partial(elbo_estimate, times=..., terms=...)` for an unbiased share of its terms,
            `partial(continuous_elbo, terms=...)` for the bound of infinitely many steps.
        seed: the draws of window i depend on (seed, i).
        batch_size: windows in the network at once.
        precision: torch.bfloat16 runs the network in autocast.

    Returns:
        {"prior", "gaps", "reconstruction", "total"}, each float64 (N,).
    """
    _check_tokens("windows", windows)
    parts: dict[str, list[Tensor]] = {"prior": [], "gaps": [], "reconstruction": [], "total": []}
    for start in range(0, len(windows), batch_size):
        x_0 = windows[start : start + batch_size]
        generators = example_generators(seed, 2, range(start, start + len(x_0)))
        with torch.autocast(x_0.device.type, precision, enabled=precision != torch.float32):
            bound = estimate(denoise, kernel, x_0, generator=generators)
        nats = [bound.prior.double(), bound.gaps.double().sum(0), bound.reconstruction.double()]
        for name, part in zip(parts, (*nats, torch.stack(nats).sum(0)), strict=True):
            parts[name].append(part.cpu())
    return {name: torch.cat(part) for name, part in parts.items()}


def characters(windows: Tensor, decode: Decode) -> Tensor:
    """The number of characters in each window of tokens, float64 (N,)."""
    return torch.tensor([len(decode(window)) for window in windows.tolist()], dtype=torch.float64)


def rate(nats: Tensor, counts: Tensor, per_word: float | None = None) -> dict[str, float | int | None]:
    """Bits per character and per word.

    Args:
        nats: -log p of each window, (N,).
        counts: its characters, (N,).
        per_word: characters per word of the whole text, white space included; None: no figure per word.

    Returns:
        {"bits per character", "standard error", "bits per word", "standard error per word", "windows", "characters"};
        the errors are None for a single window.
    """
    nats, counts = nats.double().cpu(), counts.double().cpu()
    if nats.ndim != 1 or len(nats) == 0 or nats.shape != counts.shape:
        raise ArgumentError("nats, counts", (tuple(nats.shape), tuple(counts.shape)), "two shapes (N,), N >= 1")
    if not bool((counts > 0).all()):
        raise ArgumentError("counts", float(counts.min()), "at least one character in every window")
    if per_word is not None and not (math.isfinite(per_word) and per_word > 0):
        raise ArgumentError("per_word", per_word, "a positive number of characters per word")
    value = float(nats.sum() / counts.sum()) / math.log(2)
    error = None
    if len(nats) > 1:
        rest = nats / math.log(2) - value * counts
        error = float((rest.square().sum() / (len(nats) - 1) / len(nats)).sqrt() / counts.mean())
    found: dict[str, float | int | None] = {"bits per character": value, "standard error": error}
    if per_word is not None:
        found |= {"bits per word": value * per_word, "standard error per word": error and error * per_word}
    return found | {"windows": len(nats), "characters": int(counts.sum())}


def ngram_nats(train: Tensor, windows: Tensor, size: int, order: int = 1) -> Tensor:
    """-log p of windows under the unigram (order 1) or bigram (order 2) model of training tokens, in nats, (N,).

    Add-one smoothing; a window's first token is scored by its unigram frequency.

    Args:
        train: training tokens, long (M,). windows: long (N, L). size: of the vocabulary. order: 1 or 2.
    """
    if order not in (1, 2):
        raise ArgumentError("order", order, "1 (unigram) or 2 (bigram)")
    _check_tokens("windows", windows)
    counts = torch.bincount(train, minlength=size).double() + 1
    single = -(counts / counts.sum()).log()
    if order == 1:
        return single[windows].sum(1)
    pairs, seen = (train[:-1] * size + train[1:]).unique(return_counts=True)
    wanted = windows[:, :-1] * size + windows[:, 1:]
    place = torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)
    found = torch.where(pairs[place] == wanted, seen[place], 0).double()
    before = torch.bincount(train[:-1], minlength=size).double()[windows[:, :-1]]
    return single[windows[:, 0]] - ((found + 1) / (before + size)).log().sum(1)


# ---------------------------------------------------------------------------------------------------- tokens and words


def sample_entropy(tokens: Tensor) -> float:
    """Entropy of the token frequencies within one sample, averaged over samples, in nats. Tokens long (N, L)."""
    _check_tokens("tokens", tokens)
    return float(np.mean([entropy(row.bincount().numpy()) for row in tokens.cpu()]))


def pooled_entropy(tokens: Tensor) -> float:
    """Entropy of the token frequencies of all samples together, in nats. Tokens long (N, L)."""
    _check_tokens("tokens", tokens)
    return float(entropy(tokens.cpu().flatten().bincount().numpy()))


def conditional_entropy(tokens: Tensor) -> float:
    """Entropy of a token given the one before it within its sample, in nats. Tokens long (N, L), L >= 2."""
    _check_tokens("tokens", tokens, 2)
    before, after = tokens.cpu()[:, :-1].flatten(), tokens.cpu()[:, 1:].flatten()
    pairs = (before * (int(after.max()) + 1) + after).unique(return_counts=True)[1]
    return float(entropy(pairs.numpy()) - entropy(before.bincount().numpy()))


def words(text: str, cut: bool = False) -> list[str]:
    """The words of a text in lower case; with `cut`, without a first or last one that touches the text's end."""
    found = [(match.group().lower(), match.start(), match.end()) for match in WORD.finditer(text)]
    return [word for word, start, end in found if not cut or (start > 0 and end < len(text))]


def spelling(texts: Sequence[str], known: set[str]) -> float:
    """The share of the samples' words that are in `known`; NaN where there are no words."""
    found = [word for text in texts for word in words(text, cut=True)]
    return sum(word in known for word in found) / len(found) if found else math.nan


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams, within samples; NaN where there are none."""
    if n < 1:
        raise ArgumentError("n", n, "a positive number of words")
    grams = [
        gram
        for text in texts
        for found in [words(text, cut=True)]
        for gram in zip(*(found[i:] for i in range(n)), strict=False)
    ]
    return len(set(grams)) / len(grams) if grams else math.nan


def longest_copies(texts: Sequence[str], train: str) -> list[int]:
    """For each text the length, in characters, of its longest substring that `train` contains.

    Exact. Substrings that both sides hold are numbered; those of n + 1 characters are pairs of a number and the next
    character, looked for only where those of n characters were found.
    """
    if not texts:
        return []
    lengths = np.array([len(text) for text in texts])
    ends = np.cumsum(lengths)
    mine, theirs = _codes("".join(texts)), _codes(train)
    owner = np.repeat(np.arange(len(texts)), lengths)
    here, there = np.arange(len(mine)), np.arange(len(theirs))
    name, other = np.zeros(len(mine), np.int64), np.zeros(len(theirs), np.int64)
    longest, n = np.zeros(len(texts), np.int64), 0
    while True:
        inside, left = here + n < ends[owner[here]], there + n < len(theirs)
        here, name, there, other = here[inside], name[inside], there[left], other[left]
        key, wanted = name << 21 | mine[here + n], other << 21 | theirs[there + n]
        keys, number = np.unique(key, return_inverse=True)
        place = np.searchsorted(keys, wanted).clip(max=max(0, len(keys) - 1))
        stay = keys[place] == wanted if len(keys) else np.zeros(len(wanted), bool)
        common = np.zeros(len(keys), bool)
        common[place[stay]] = True
        keep = common[number]
        if not keep.any():
            return longest.tolist()
        here, name, there, other = here[keep], number[keep], there[stay], place[stay]
        n += 1
        longest[owner[here]] = n


def _codes(text: str) -> np.ndarray:
    """Code points, below 2^21."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


# ------------------------------------------------------------------------------------------------- judges and the whole


def evaluate_samples(
    samples: Tensor,
    held_out: Tensor,
    train: str,
    decode: Decode,
    judge: Judge | None = None,
) -> dict[str, Any]:
    """All figures of samples, each with the same figure of held-out windows.

    Args:
        samples: tokens, long (N, L).
        held_out: as many windows of held-out text, long (N, L).
        train: the training text.
        decode: tokens to text, from the vocabulary.
        judge: for the generative perplexity; None for none.

    Returns:
        JSON-able: {"samples", "length", "figures": {name: {"value", "reference", "better"}}, "copies": quantiles of
        the longest copied substrings}.
    """
    _check_tokens("samples", samples, 2)
    if held_out.shape != samples.shape or held_out.dtype != torch.int64:
        raise ArgumentError("held_out", held_out, f"as many windows of the same length, long {tuple(samples.shape)}")
    known = set(words(train))
    sides = {"value": samples, "reference": held_out}
    texts = {side: [decode(ids) for ids in tokens.tolist()] for side, tokens in sides.items()}
    copies = {side: longest_copies(some[:COPIES], train) for side, some in texts.items()}
    figures: dict[str, dict[str, float | None]] = {}
    for side, tokens in sides.items():
        figures[side] = {
            "entropy of tokens within a sample, nats": sample_entropy(tokens),
            "entropy of tokens, nats": pooled_entropy(tokens),
            "entropy of a token given the one before, nats": conditional_entropy(tokens),
            "share of words in the training vocabulary": _finite(spelling(texts[side], known)),
            **{f"distinct {n}-grams of words": _finite(distinct(texts[side], n)) for n in (1, 2, 3)},
            "longest copied substring, median, characters": float(np.median(copies[side])),
            "longest copied substring, longest, characters": float(max(copies[side])),
        }
        if judge is not None:
            rule = f"generative perplexity ({judge.name}, {judge.dtype}, mean over all tokens)"
            figures[side][rule] = perplexity(texts[side], judge)
    rows = {
        name: {"value": value, "reference": figures["reference"][name], "better": _better(name)}
        for name, value in figures["value"].items()
    }
    spread = {
        side: {f"{q:.0%}": float(np.quantile(found, q)) for q in QUANTILES}
        for side, found in (("samples", copies["value"]), ("held-out", copies["reference"]))
    }
    return {"samples": len(samples), "length": samples.shape[1], "figures": rows, "copies": spread}


def _better(name: str) -> str:
    """Which way a figure improves: "higher", or towards its "reference"."""
    return "higher" if name.startswith("share of words") else "reference"


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


def _check_tokens(argument: str, tokens: Tensor, least: int = 1) -> None:
    if tokens.dtype != torch.int64 or tokens.ndim != 2 or len(tokens) < 1 or tokens.shape[1] < least:
        raise ArgumentError(argument, tokens, f"tokens, long (N, L) with N >= 1 and L >= {least}")
