"""The evaluate and demo commands of text: what they write, what they compare, whom they refuse."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polydiff.core.errors import ArgumentError, DataError
from polydiff.core.report import Report
from polydiff.text import demo, evaluate, metrics
from polydiff.text.autoregressive import Autoregressive, AutoregressiveConfig, AutoregressivePipeline
from polydiff.text.data import Text
from polydiff.text.model import TextConfig, TextModel
from polydiff.text.network import TransformerConfig
from polydiff.text.options import Demo, Evaluate
from polydiff.text.pipeline import TextPipeline
from polydiff.text.vocabulary import Characters

LETTERS = Characters(" abc")


def text(count: int, seed: int, length: int = 16) -> Text:
    """Words of three letters."""
    x = torch.randint(1, 4, (count, 4), generator=torch.Generator().manual_seed(seed))
    x[:, 3] = 0
    return Text(x.flatten().to(torch.uint8), LETTERS, length, name="letters")


def network(causal: bool = False) -> TransformerConfig:
    return TransformerConfig(vocabulary=4, width=8, depth=1, heads=1, length=16, causal=causal)


def diffusion(kernel: str = "absorbing") -> TextPipeline:
    """An untrained model, whose beliefs are even."""
    config = TextConfig(vocabulary=LETTERS, network=network(), kernel=kernel)  # pyright: ignore[reportArgumentType]
    torch.manual_seed(0)
    return TextPipeline(config, TextModel(config).eval())


def baseline() -> AutoregressivePipeline:
    config = AutoregressiveConfig(vocabulary=LETTERS, network=network(causal=True))
    return AutoregressivePipeline(config, Autoregressive(config.network.build()).eval())


SMALL = Evaluate(model="m", count=6, windows=9, terms=3, steps=3, batch_size=4, bound_steps=(3, 20))


def test_figures_of_an_even_model_are_those_of_even_letters() -> None:
    train, test = text(200, 0), text(60, 1)
    results, samples = evaluate.evaluate(diffusion(), train, test, SMALL)
    assert samples.shape == (6, 16) and int(samples.max()) < 4  # no mask is left
    bits = results["bits"]
    assert list(bits) == ["continuous bound", "bound of 3 steps", "bound of 20 steps", "unigrams", "bigrams"]
    # Zeroed output: each letter costs exactly two bits however it is reached.
    for name in ("bound of 3 steps", "bound of 20 steps", "continuous bound"):
        found = bits[name]
        assert abs(found["bits per character"] - 2) < 4 * found["standard error"] + 1e-4
        whole = found["prior"] + found["gaps"] + found["reconstruction"]
        assert whole == pytest.approx(found["bits per character"], rel=1e-9)
        assert found["bits per word"] == pytest.approx(found["bits per character"] * test.characters / test.words)
    assert bits["bigrams"]["bits per character"] < bits["unigrams"]["bits per character"] < 2.05
    rows = results["figures"]
    held_out = evaluate.spaced(test, 6)
    assert rows["entropy of tokens, nats"]["reference"] == pytest.approx(metrics.pooled_entropy(held_out))
    assert rows["entropy of tokens, nats"]["value"] == pytest.approx(metrics.pooled_entropy(samples))
    assert json.loads(json.dumps(results, allow_nan=False)) == json.loads(json.dumps(results))
    assert {"machine", "date", "seed", "command", "options", "copies"} <= results.keys()
    names = [row["figure"] for row in evaluate.table(results)]
    assert any("continuous bound" in name for name in names) and any("copied" in name for name in names)


def test_samples_and_bits_do_not_depend_on_the_batch() -> None:
    train, test = text(100, 0), text(40, 1)
    one, other = (evaluate.evaluate(diffusion(), train, test, replace(SMALL, batch_size=n)) for n in (2, 6))
    assert torch.equal(one[1], other[1])
    for name, found in one[0]["bits"].items():
        assert found["bits per character"] == pytest.approx(other[0]["bits"][name]["bits per character"], rel=1e-5)


def test_more_samples_than_held_out_windows_are_compared_at_their_number() -> None:
    results, samples = evaluate.evaluate(diffusion(), text(100, 0), text(20, 1), replace(SMALL, windows=0))
    assert len(samples) == 6 and results["samples"] == 5  # 80 tokens: five windows
    assert "bits" not in results


def test_baseline_is_exact_and_refuses_what_it_has_not() -> None:
    train, test = text(100, 0), text(40, 1)
    options = replace(SMALL, bound_steps=())
    results, samples = evaluate.evaluate(baseline(), train, test, options)
    assert results["bits"]["exact"]["bits per character"] == pytest.approx(2, rel=1e-5)
    assert samples.shape == (6, 16)
    for changes in ({"sampler": "ancestral"}, {"top_p": 0.9}, {"bound_steps": (3,)}):
        with pytest.raises(ArgumentError, match="baseline"):
            evaluate.evaluate(baseline(), train, test, replace(options, **changes))


def test_another_vocabulary_is_refused() -> None:
    other = Text(text(50, 0).tokens, Characters("xyz "), 16)
    with pytest.raises(ArgumentError, match="model's"):
        evaluate.evaluate(diffusion(), other, text(40, 1), SMALL)


def test_windows_are_spaced_over_the_whole_text() -> None:
    test = text(60, 1)
    whole = test.batch(range(len(test)))["x_0"]
    assert torch.equal(evaluate.spaced(test, len(test)), whole)
    assert torch.equal(evaluate.spaced(test, 2), whole[[0, -1]])
    assert torch.equal(evaluate.spaced(test, 1), whole[:1])


def test_judge_is_the_baseline_or_a_clear_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = baseline()
    torch.nn.init.normal_(model.model.network.output.weight)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(tmp_path / "ar")
    judge = evaluate.judge(str(tmp_path / "ar"))
    assert "autoregressive" in judge.name and judge.dtype == "float32"
    nats, counts = judge.nats(["abc", "a b c"])
    assert counts.tolist() == [3, 5]
    tokens = torch.tensor([LETTERS.encode("a b c")])
    with torch.no_grad():
        assert float(nats[1]) == pytest.approx(-float(model.model.log_prob(tokens)), rel=1e-5)
    figure = "generative perplexity (" + judge.name + ", float32, mean over all tokens)"
    options = replace(SMALL, windows=0, judge=str(tmp_path / "ar"))
    results, samples = evaluate.evaluate(diffusion(), text(100, 0), text(40, 1), options)
    texts = [LETTERS.decode(row) for row in samples.tolist()]
    assert results["figures"][figure]["value"] == pytest.approx(
        math.exp(float(judge.nats(texts)[0].sum()) / (6 * 16)), rel=1e-5
    )
    diffusion().save_pretrained(tmp_path / "diffusion")
    with pytest.raises(ArgumentError, match="causal"):
        evaluate.judge(str(tmp_path / "diffusion"))


def test_data_must_be_known_or_told() -> None:
    assert evaluate.with_data(Evaluate(model="novels")).data == "novels"
    assert evaluate.with_data(Evaluate(model="x", data="text8")).data == "text8"
    with pytest.raises(ArgumentError, match="--data"):
        evaluate.with_data(Evaluate(model="x"))


def test_demo_and_evaluate_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(Demo(out=tmp_path, quick=True))
    page = (tmp_path / "index.html").read_text()
    for part in ("unfold", "bigrams", "[MASK:24]", "held-out text", "polydiff train text", "../demo/index.html"):
        assert part in page
    out = tmp_path / "evaluation"
    options = Evaluate(model=str(tmp_path / "text"), count=2, windows=2, terms=1, steps=2, out=out)
    evaluate.main(options)
    printed = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["data"] == "python-docs" and "continuous bound" in results["bits"]
    assert "texts drawn by: ancestral, 2 steps" in printed
    (heading,) = [line for line in printed.splitlines() if line.split() == ["model", "held-out", "text"]]
    figures = [line for line in printed.splitlines() if line.startswith("bits per character, continuous bound")]
    assert printed.index(heading) < printed.index(figures[0])
    assert "continuous bound" in printed and len((out / "samples.txt").read_text().split("\n=\n")) == 2
    assert json.loads((out / "config.json").read_text())["command"] == "evaluate"
    with pytest.raises(DataError):
        evaluate.main(replace(options, model=str(tmp_path / "nothing")))


def test_unmasked_tells_the_step_of_every_letter() -> None:
    pieces, order = demo.unmasked(diffusion(), 5, 0)
    assert len(pieces) == len(order) == 16
    assert all(0 <= step < 5 for step in order) and len(set(order)) > 1
    again = diffusion().sample(1, steps=5, seed=0)
    assert "".join(pieces) == LETTERS.decode(again[0].tolist())


def test_report_unfolds_and_links(tmp_path: Path) -> None:
    report = Report("r")
    report.unfold(["a", "<", " c"], [0, 4, 2], "a caption", seconds=2)
    report.link("../next/index.html", "next & last")
    report.write(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert '<span style="--s:0.00">a</span><span style="--s:2.00">&lt;</span><span style="--s:1.00"> c</span>' in page
    assert '<a href="../next/index.html">next &amp; last</a>' in page
    for steps in ([0, 1], [0, 1, -1]):
        with pytest.raises(ArgumentError):
            report.unfold(["a", "b", "c"], steps, "")
    for target in ("https://example.org", "/etc", "javascript:alert(1)"):
        with pytest.raises(ArgumentError):
            report.link(target, "x")
