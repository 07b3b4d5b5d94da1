"""The text pipeline: laws by enumeration, what is known stays, seeds, folders, bad input."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from polydiff.core.any_order import any_order
from polydiff.core.errors import ArgumentError, CheckpointError, ConfigError
from polydiff.core.inpainting import repaint
from polydiff.core.unmasking import first_hitting
from polydiff.text.filling import by_share, particles, window_by_window
from polydiff.text.model import STATISTICS, TextConfig, TextModel, neighbourhood
from polydiff.text.network import TransformerConfig
from polydiff.text.pipeline import TextPipeline
from polydiff.text.templates import Template
from polydiff.text.vocabulary import TEXT8, AnyVocabulary, Bytes, Characters, Pretrained

KERNELS = ["absorbing", "uniform", "marginal", "band", "gaussian", "neighbours"]
MAT = "the cat sat on the mat and the dog did not"


def made(
    kernel: Any = "absorbing", length: int = 12, vocabulary: AnyVocabulary | None = None, **more: Any
) -> TextPipeline:
    """A small model with random weights."""
    vocabulary = Characters(TEXT8) if vocabulary is None else vocabulary
    network = TransformerConfig(vocabulary=vocabulary.size, width=8, depth=1, heads=2, length=length)
    config = TextConfig(vocabulary=vocabulary, network=network, kernel=kernel, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        statistics = {name: make(vocabulary.size) for name, make in STATISTICS.get(kernel, {}).items()}
        statistics = {name: torch.rand_like(value) + 0.1 for name, value in statistics.items()}
        model = TextModel(config, statistics)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return TextPipeline(config, model.eval())


class Exact(nn.Module):
    """The network that knows the law of texts: log p(x_0[i] | x_t), by enumeration."""

    def __init__(self, pipeline: TextPipeline, law: Tensor):
        super().__init__()
        self.kernel, self.V, self.L = pipeline.kernel, law.shape[0], law.ndim
        self.texts = torch.tensor(list(itertools.product(range(self.V), repeat=self.L)))
        self.log_law = law.flatten().log()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        t = (c.double() / 1000).clamp(1e-9, 1)
        rows = self.kernel.rows(torch.arange(self.kernel.K).expand(len(x), -1), torch.zeros_like(t), t)  # (B, K, K)
        index = torch.arange(len(x))[:, None, None], self.texts[None], x[:, None, :]
        joint = self.log_law + rows[index].sum(-1)  # (B, V^L)
        hot = nn.functional.one_hot(self.texts, self.V).to(joint)  # (V^L, L, V)
        return torch.einsum("bn,niv->biv", joint.softmax(1), hot).log()


def exact(law: Tensor, kernel: str = "absorbing") -> TextPipeline:
    """A pipeline whose network is exact, of texts over a, b, c, ..."""
    pipeline = made(kernel, law.ndim, Characters("abcdef"[: law.shape[0]]))
    pipeline.model.denoiser.network = Exact(pipeline, law)
    return pipeline


def random_law(V: int, L: int) -> Tensor:
    weights = torch.rand((V,) * L, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 3
    return weights / weights.sum()


def fits(texts: list[str], law: dict[str, float]) -> bool:
    """Chi-square at 1e-4."""
    assert set(texts) <= law.keys()
    found = [texts.count(text) for text in law]
    return stats.chisquare(found, [p * len(texts) for p in law.values()]).pvalue > 1e-4


def conditional(law: Tensor, known: dict[int, int]) -> dict[str, float]:
    every = {
        "".join("abcdef"[i] for i in text): float(law[text])
        for text in itertools.product(range(law.shape[0]), repeat=law.ndim)
        if all(text[place] == token for place, token in known.items())
    }
    return {text: p / sum(every.values()) for text, p in every.items()}


def test_an_exact_network_writes_the_law() -> None:
    law = random_law(2, 3)
    pipeline = exact(law)
    how: dict[str, Any] = {"steps": 3, "batch_size": 500}
    one_by_one = partial(any_order)
    assert fits(pipeline(1500, **how, sampler=first_hitting), conditional(law, {}))
    pipeline.unmasking[3] = (1, 1, 1)  # calibrated steps, one token each, are exact too
    assert fits(pipeline(1500, **how), conditional(law, {}))
    del pipeline.unmasking[3]
    assert not fits(pipeline(1500, steps=1, sampler=one_by_one, batch_size=500), conditional(law, {}))


@pytest.mark.parametrize(("text", "known"), [("b[MASK:2]", {0: 1}), ("[MASK]a[MASK]", {1: 0}), ("[MASK:2]b", {2: 1})])
def test_gaps_of_absorbing_models_have_the_conditional_law(text: str, known: dict[int, int]) -> None:
    law = random_law(2, 3)
    filled = exact(law).infill(text, count=1000, sampler=first_hitting, batch_size=500, seed=1)
    assert fits(filled, conditional(law, known))


def test_gaps_of_other_kernels_come_near_the_conditional_law() -> None:
    law = torch.tensor([[0.48, 0.02], [0.1, 0.4]], dtype=torch.float64)
    pipeline, target = exact(law, "uniform"), conditional(law, {0: 1})  # p(b | b) = 0.8, p(b) = 0.42
    for fill, steps, away in ((particles(12), 32, 0.06), (partial(repaint, jump=2, resamples=4), 16, 0.2)):
        filled = pipeline.infill("b[MASK]", count=400, steps=steps, fill=fill, batch_size=400)
        assert abs(filled.count("bb") / 400 - target["bb"]) < away


def test_continued_texts_have_the_conditional_law() -> None:
    law = random_law(2, 3)
    texts = exact(law).continue_("b", 2, count=1000, sampler=first_hitting, batch_size=500)
    assert fits(texts, conditional(law, {0: 1}))


@pytest.mark.parametrize(("kernel", "draws", "most"), [("absorbing", 40, 0.15), ("uniform", 300, 0.5)])
def test_scores_of_an_exact_network_are_the_bits_of_the_law(kernel: str, draws: int, most: float) -> None:
    law = (random_law(2, 3) + 1 / 8) / 2
    texts = list(conditional(law, {}))
    scores = exact(law, kernel).score(texts, draws=draws, terms=8, batch_size=1200)
    for text, score in zip(texts, scores, strict=True):
        bits = -math.log2(float(law[tuple("ab".index(c) for c in text)]))
        assert abs(score.bits - bits) < 4.5 * score.standard_error + 1e-3
        assert score.standard_error < most * bits
        assert (score.characters, score.tokens) == (3, tuple(text))
        assert abs(float(score.token_bits.sum()) - score.bits) < 1e-9
        assert score.bits_per_character == score.bits / 3
    errors = [scores[i].bits for i in range(len(texts))]
    assert len(set(errors)) == len(texts)


def test_each_token_of_independent_ones_has_its_own_bits() -> None:
    """Also beyond the window, whose last part is shorter, and on a grid, where one token's bound is tight."""
    p = torch.tensor([0.9, 0.09, 0.01], dtype=torch.float64)
    law = torch.einsum("i,j->ij", p, p)
    for kernel, steps in (("absorbing", None), ("absorbing", 5), ("uniform", 5)):
        pipeline = exact(law, kernel)
        (score,) = pipeline.score("abcaca", steps=steps, terms=5, draws=400, batch_size=2000)
        for place, letter in enumerate("abcaca"):
            bits = -math.log2(float(p["abc".index(letter)]))
            assert abs(float(score.token_bits[place]) - bits) < 0.15 * bits + 0.1, (kernel, steps, place)


def test_more_draws_make_the_error_smaller_and_one_has_none() -> None:
    pipeline = made()
    few, many = (pipeline.score(MAT, draws=draws, terms=2)[0].standard_error for draws in (8, 128))
    assert many < few
    assert math.isnan(pipeline.score(MAT, draws=1, terms=2)[0].standard_error)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "text", ["[MASK]he c[MASK:3] s", "t[MASK:12]" + MAT + " [MASK:5]", MAT + "[MASK]", "[MASK:30]"]
)
def test_what_is_known_stays_to_the_letter(kernel: str, text: str) -> None:
    pipeline = made(kernel)
    fill = partial(repaint, jump=1, resamples=2) if kernel != "absorbing" else None
    pieces = Template.read(text, pipeline.vocabulary).pieces
    for filled in pipeline.infill(text, count=2, steps=2, fill=fill):
        for piece in pieces:
            if isinstance(piece, str):
                assert filled.startswith(piece)
                filled = filled[len(piece) :]
            else:
                assert set(filled[:piece]) <= set(TEXT8)
                filled = filled[piece:]
        assert filled == ""


def test_gaps_are_filled_window_by_window_with_text_on_both_sides() -> None:
    seen: list[tuple[list[int], list[bool]]] = []

    def fill(known: Tensor, mask: Tensor) -> Tensor:
        seen.append((known[0].tolist(), mask[0].tolist()))
        return torch.where(mask, known, 100)

    rows = torch.arange(20).expand(2, -1)
    hidden = torch.zeros(20, dtype=torch.bool)
    hidden[[0, 9, 10, 19]] = True
    result = window_by_window(fill, rows, hidden, 8)
    assert result.tolist() == [[100 if i in (0, 9, 10, 19) else i for i in range(20)]] * 2
    assert [known[0] for known, _ in seen] == [0, 7, 12]
    assert all(len(known) == 8 for known, _ in seen)
    assert [mask.count(False) for _, mask in seen] == [1, 2, 1]
    # A gap on the right edge of a window is left to the next one.
    seen.clear()
    hidden[:] = False
    hidden[[2, 7]] = True
    window_by_window(fill, rows, hidden, 8)
    assert [known[0] for known, _ in seen] == [0, 5]
    # All at once where it fits.
    seen.clear()
    window_by_window(fill, rows, hidden, 20)
    assert len(seen) == 1


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_text_i_depends_on_the_seed_and_i_alone(kernel: str) -> None:
    pipeline = made(kernel)
    calls: list[Callable[..., list[str]]] = [
        lambda **how: pipeline(5, **how),
        lambda **how: pipeline(5, 30, **how),
        lambda **how: pipeline.infill("[MASK:4]" + MAT + "[MASK:4]", count=5, **how),
        lambda **how: pipeline.continue_("the ", 9, count=5, **how),
        lambda **how: pipeline.edit(MAT, 0.7, count=5, **how),
    ]
    for call in calls:
        texts = call(steps=2)
        assert len(set(texts)) == 5
        assert call(steps=2, batch_size=2) == texts
        assert call(steps=2, first=2)[:3] == texts[2:]
        assert not set(call(steps=2, seed=1)) & set(texts)
    if kernel == "uniform":
        texts = pipeline.infill("[MASK:4] cat", count=4, steps=2, fill=particles(3))
        assert pipeline.infill("[MASK:4] cat", count=4, steps=2, fill=particles(3), batch_size=1) == texts
        assert len(set(texts)) > 1


def test_scores_do_not_depend_on_batches_but_on_the_seed() -> None:
    pipeline, texts = made(), [MAT, "a", "the cat", MAT[:12]]
    whole, apart = (pipeline.score(texts, terms=3, draws=2, batch_size=size) for size in (32, 1))
    for one, other in zip(whole, apart, strict=True):
        assert one.bits == pytest.approx(other.bits, rel=1e-5)
    assert pipeline.score(texts, terms=3, draws=2, seed=1)[0].bits != whole[0].bits
    assert pipeline.score(MAT, terms=3, draws=2)[0].bits == pytest.approx(whole[0].bits, rel=1e-5)


def test_of_a_long_prompt_the_last_part_conditions() -> None:
    pipeline = made()
    texts = [pipeline.continue_(start + MAT, 20, steps=2, context=5)[0] for start in ("", "x")]
    assert texts[0].startswith(MAT)
    assert texts[0][len(MAT) :] == texts[1][len(MAT) + 1 :]
    assert len(texts[0]) == len(MAT) + 20
    seen: list[str] = []

    def fill(
        denoise: Any, kernel: Any, x: Tensor, times: Tensor, *, known: Tensor, mask: Tensor, generator: Any
    ) -> Any:
        seen.append(pipeline.vocabulary.decode(known[0][mask[0]].tolist()))
        yield from repaint(denoise, kernel, x, times, known=known, mask=mask, generator=generator)

    pipeline.continue_(MAT, 3, steps=1, fill=fill, context=5)
    # By default few tokens leave more of the window to the prompt.
    (text,) = pipeline.continue_(MAT, 12, steps=1, fill=fill)
    pipeline.continue_(MAT, 1, steps=1, fill=fill)
    pipeline.continue_("the", 1, steps=1, fill=fill)
    assert seen == [MAT[-5:], MAT[-6:], text[-12:-6], MAT[-11:], "the"]


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_edits_go_from_nothing_to_everything(kernel: str) -> None:
    pipeline = made(kernel, reading="context")
    assert pipeline.edit(MAT, 0.0, count=2) == [MAT, MAT]
    kept = [sum(a == b for a, b in zip(pipeline.edit(MAT, s, steps=20)[0], MAT, strict=True)) for s in (0.1, 0.9)]
    assert kept[0] > kept[1]
    assert kept[0] > len(MAT) / 2
    if kernel == "absorbing":
        other = MAT.replace("cat", "pig")
        assert pipeline.edit(MAT, 1.0, steps=4) == pipeline.edit(other, 1.0, steps=4)
    forgotten = pipeline.edit(MAT, 1.0, steps=4)[0]
    assert sum(a == b for a, b in zip(forgotten, MAT, strict=True)) < len(MAT) / 2


def test_temperature_and_nucleus_sharpen() -> None:
    pipeline = made()
    cold = pipeline(3, steps=12, temperature=0.0, sampler=partial(any_order, order=torch.arange(12)))
    assert len(set(cold)) == 1
    assert len({c for text in pipeline(10, top_p=0.05) for c in text}) < len({c for text in pipeline(10) for c in text})


def test_an_absorbing_network_is_told_the_share_of_masks() -> None:
    pipeline, told = made(), list[Tensor]()

    def denoise(x: Tensor, t: Any) -> Tensor:
        told.append(t)
        return x

    x = torch.full((3, 12), 27)
    x[1, :9], x[2] = 0, 0
    by_share(denoise, pipeline.kernel)(x, 0.5)  # type: ignore[arg-type]
    assert torch.allclose(told[0], torch.tensor([1, 3 / 12, 0.5 / 12], dtype=torch.float64), atol=1e-6)
    with pytest.raises(ArgumentError, match="absorbing"):
        by_share(denoise, made("uniform").kernel)  # type: ignore[arg-type]


def test_bfloat16_runs() -> None:
    pipeline = made()
    assert len(pipeline(2, precision=torch.bfloat16, steps=2)[0]) == 12
    bits, rounded = (pipeline.score(MAT, precision=p)[0].bits for p in (torch.float32, torch.bfloat16))
    assert bits == pytest.approx(rounded, rel=0.05)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_folder_gives_the_same_texts(kernel: str, tmp_path: Path) -> None:
    pipeline = made(kernel, near=3 if kernel == "band" else None)
    again = TextPipeline.from_pretrained(pipeline.save_pretrained(tmp_path))
    assert again.config == pipeline.config
    assert again(2, steps=3) == pipeline(2, steps=3)
    assert again.score(MAT, terms=2)[0].bits == pipeline.score(MAT, terms=2)[0].bits


def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator([MAT] * 3, trainers.BpeTrainer(vocab_size=270, initial_alphabet=letters))
    return found


def test_a_tokenizer_lies_in_the_folder(tmp_path: Path) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    pipeline = made(vocabulary=Pretrained.read(tmp_path / "tokenizer.json"))
    folder = pipeline.save_pretrained(tmp_path / "model")
    again = TextPipeline.from_pretrained(folder)
    (text,) = again.infill("Thé cat [MASK:3] on the mat, [MASK]!", steps=2)
    assert text == pipeline.infill("Thé cat [MASK:3] on the mat, [MASK]!", steps=2)[0]
    assert text.startswith("Thé cat ")
    assert " on the mat, " in text
    (score,) = again.score(MAT, terms=2)
    assert "".join(score.tokens) == MAT
    assert score.characters == len(MAT) > len(score.tokens)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    with pytest.raises(CheckpointError, match="tokenizer"):
        TextPipeline.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        TextPipeline.from_pretrained(folder)
    (folder / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="leads out"):
        TextPipeline.from_pretrained(folder)


def test_a_text_of_no_token_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"cat": 0, "dog": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    pipeline = made(vocabulary=Pretrained.read(tmp_path))
    for call in (pipeline.continue_, pipeline.edit, pipeline.score):
        with pytest.raises(ArgumentError, match="at least one token"):
            call(" ")
    assert pipeline.infill(" cat [MASK:2]", steps=1)[0].startswith(" cat ")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        {"steps": {}},
        {"format_version": 2, "steps": {}},
        {"format_version": True, "steps": {}},
        {"format_version": 1, "steps": []},
        {"format_version": 1, "steps": {"2": [6, 6]}, "code": "x"},
        {"format_version": 1, "steps": {"3": [6, 6]}},
        {"format_version": 1, "steps": {"2": [6, 7]}},
        {"format_version": 1, "steps": {"3": [6, 6, 0]}},
        {"format_version": 1, "steps": {"2": [6, "6"]}},
        {"format_version": 1, "steps": {"2": [6.0, 6]}},
    ],
    ids=str,
)
def test_steps_are_read_strictly(content: Any, tmp_path: Path) -> None:
    folder = made().save_pretrained(tmp_path)
    (folder / "unmasking.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(CheckpointError, match=r"unmasking\.json"):
        TextPipeline.from_pretrained(folder)


def test_configurations_that_contradict_themselves_are_refused() -> None:
    network = TransformerConfig(vocabulary=27, width=8, depth=1, heads=2)
    letters = Characters(TEXT8)
    for bad, name in (
        ({"vocabulary": Bytes()}, "network.vocabulary"),
        ({"network": TransformerConfig(vocabulary=27, outputs=28, width=8, depth=1, heads=2)}, "network.outputs"),
        ({"network": TransformerConfig(vocabulary=27, width=8, depth=1, heads=2, causal=True)}, "network.causal"),
        ({"near": 2}, "near"),
        ({"kernel": "band", "near": 27}, "near"),
        *(({"schedule": name}, "schedule") for name in ("linear", "quadratic", "sub-vp", "ve", "edm")),
        *(({"kernel": kernel, "schedule": name}, "schedule") for kernel in KERNELS[1:] for name in ("ve", "edm")),
    ):
        with pytest.raises(ConfigError, match=name):
            TextConfig(**{"vocabulary": letters, "network": network, **bad})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="statistics"):
        TextModel(TextConfig(vocabulary=letters, network=network, kernel="marginal"), {})
    with pytest.raises(ArgumentError, match="counts"):
        TextModel(TextConfig(vocabulary=letters, network=network, kernel="marginal"), {"counts": torch.ones(3)})


def test_schedules_that_can_work_are_taken_and_named() -> None:
    network = TransformerConfig(vocabulary=27, width=8, depth=1, heads=2)
    ends = ("cosine", "sigmoid", "rectified-flow")
    for kernel in KERNELS:
        able = ends if kernel == "absorbing" else ("linear", "cosine", "sigmoid", "quadratic", "sub-vp", ends[2])
        for name in able:
            TextConfig(vocabulary=Characters(TEXT8), network=network, kernel=kernel, schedule=name)  # pyright: ignore
        with pytest.raises(ConfigError, match=f"{kernel}[)]: {', '.join(able)}$"):
            TextConfig(vocabulary=Characters(TEXT8), network=network, kernel=kernel, schedule="ve")  # pyright: ignore


PIPELINES = {kernel: made(kernel) for kernel in ("absorbing", "uniform")}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p: p(0), "count"),
        (lambda p: p(True), "count"),
        (lambda p: p(1, 0), "length"),
        (lambda p: p(1, 2.5), "length"),
        (lambda p: p(1, steps=0), "steps"),
        (lambda p: p(1, sampler="ancestral"), "sampler"),
        (lambda p: p(1, temperature=-1.0), "T"),
        (lambda p: p(1, top_p=0.0), "p"),
        (lambda p: p(1, seed=-1), "seed"),
        (lambda p: p(1, seed=0.5), "seed"),
        (lambda p: p(1, first=-1), "first"),
        (lambda p: p(1, batch_size=0), "batch_size"),
        (lambda p: p(1, precision=torch.int8), "precision"),
        (lambda p: p.infill("no gap"), r"\[MASK\]"),
        (lambda p: p.infill(""), r"\[MASK\]"),
        (lambda p: p.infill("a [MASK:0]"), r"\[MASK:0\]"),
        (lambda p: p.infill("a [MASK:]"), r"\[MASK:\]"),
        (lambda p: p.infill("a [MASK:-3]"), r"\[MASK:-3\]"),
        (lambda p: p.infill("a [MASK:x]"), r"\[MASK:x\]"),
        (lambda p: p.infill("a [MASK:99999999]"), r"\[MASK:99999999\]"),
        (lambda p: p.infill("a [mask] [MASK]"), r"'\['"),
        (lambda p: p.infill("The [MASK]"), "^text.*'T'.*position 0.*normalise"),
        (lambda p: p.infill("[MASK:2] Ä"), "'Ä'.*position 9"),
        (lambda p: p.infill("[MASK][MASK:2]a c[MASK] b9"), "'9'.*position 25"),
        (lambda p: p.infill(["a [MASK]"]), "text.*one text at a time"),
        (lambda p: p.infill(None), "text.*one text at a time"),
        (lambda p: p.infill("a [MASK]", count=0), "count"),
        (lambda p: p.infill("a [MASK]", sampler=first_hitting, fill=repaint), "sampler"),
        (lambda p: p.infill("a [MASK]", fill=particles(0)), "particles"),
        (lambda p: p.continue_(""), "prompt"),
        (lambda p: p.continue_("  9"), "^prompt.*position 2.*normalise"),
        (lambda p: p.continue_("a", 0), "length"),
        (lambda p: p.continue_("a", context=12), "context"),
        (lambda p: p.continue_(None), "prompt"),
        (lambda p: p.edit(""), "text"),
        (lambda p: p.edit("a", 1.1), "strength"),
        (lambda p: p.edit("a", float("nan")), "strength"),
        (lambda p: p.score([]), "texts"),
        (lambda p: p.score(["a", ""]), r"texts\[1\]"),
        (lambda p: p.score("A"), "'A'"),
        (lambda p: p.score("a", draws=0), "draws"),
        (lambda p: p.score("a", terms=0), "terms"),
        (lambda p: p.score("a", steps=0), "steps"),
        (lambda p: p.score("a", batch_size=0), "batch_size"),
    ],
)
def test_bad_input(call: Callable[[TextPipeline], Any], said: str) -> None:
    for pipeline in PIPELINES.values():
        with pytest.raises(ArgumentError, match=said):
            call(pipeline)


def test_other_kernels_fill_without_a_sampler() -> None:
    with pytest.raises(ArgumentError, match="sampler"):
        PIPELINES["uniform"].infill("a [MASK]", sampler=first_hitting)
    with pytest.raises(ArgumentError, match="kernel"):
        PIPELINES["uniform"](1, sampler=first_hitting)


def test_texts_can_be_brought_into_the_vocabulary() -> None:
    pipeline = PIPELINES["absorbing"]
    (text,) = pipeline.infill("The Cat's [MASK:2]!", steps=2, normalise=True)
    assert (text[:10], text[12:]) == ("the cat s ", " ")
    assert pipeline.continue_("The", 3, steps=1, normalise=True)[0][:3] == "the"
    assert pipeline.score("The", terms=1, normalise=True)[0].tokens == ("t", "h", "e")
    assert pipeline.edit("The", 0.0, normalise=True) == ["the"]


def test_templates_come_apart_and_together() -> None:
    template = Template.read("a[MASK][MASK:2]b c[MASK:1]", Characters(TEXT8))
    assert template.pieces == ("a", 1, 2, "b c", 1)
    assert template.hidden.tolist() == [False, True, True, True, False, False, False, True]
    assert template.tokens.tolist() == [1, 0, 0, 0, 2, 0, 3, 0]
    assert template.filled([9, 24, 25, 26, 9, 9, 9, 5], Characters(TEXT8)) == "axyzb ce"


def test_tokens_of_like_company_are_near() -> None:
    letters = torch.randint(0, 2, (4000,), generator=torch.Generator().manual_seed(0))
    tokens = torch.stack([torch.zeros(4000).long(), 1 + letters, torch.full((4000,), 3)], 1).flatten()
    places = neighbourhood(tokens, 6)
    assert places.shape == (6, 16)
    assert places.dtype == torch.float64
    distance = torch.cdist(places, places)
    assert float(distance[1, 2]) < 0.1 < float(distance[1, 0])
    assert not places[4:].any()


def test_the_shipped_model_fills_gaps_and_bounds_texts() -> None:
    pipeline = TextPipeline.from_pretrained("novels")
    (text,) = pipeline.infill("the [MASK:4] of the house ", steps=8)
    assert text.startswith("the ") and text.endswith(" of the house ") and len(text) == 22
    # Of English it knows more than how often letters occur (4.1 bits), and of noise less.
    english, noise = pipeline.score(
        ["it was a dark night and the wind was cold ", "xq zjv kqwx vzpq jxk qzw vkx jq"], terms=8
    )
    assert english.bits_per_character < 3.6 < 5 < noise.bits_per_character
    assert set(pipeline.unmasking) == {16, 32, 64}


@torch.no_grad()
def test_absorbing_models_read_the_time_off_the_masks() -> None:
    pipeline = TextPipeline.from_pretrained("novels")
    x = torch.tensor([pipeline.vocabulary.encode("the cat sat on the mat ")])
    mask = pipeline.kernel.mask
    assert mask is not None
    x[:, ::2] = mask
    early, late = (pipeline.given()(x, t) for t in (0.9, 0.2))
    torch.testing.assert_close(early, late)
    told = pipeline.model.denoiser.given(pipeline.kernel)
    assert not torch.allclose(told(x, 0.9), told(x, 0.2))  # the network itself is not deaf to it
