"""Every method runs on the smallest real case of every domain, and on kernels that no domain has brought yet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydiff.cli.main import DOMAINS, main
from polydiff.core import matrix, schedules, trials, trials_tokens
from polydiff.core.any_order import any_order
from polydiff.core.case import Case
from polydiff.core.categorical import Categorical, Tokens
from polydiff.core.clouds import Centred
from polydiff.core.denoisers import Denoiser, GaussianDenoiser, TokenDenoiser
from polydiff.core.errors import ArgumentError
from polydiff.core.gaussian import Gaussian
from polydiff.core.kernel import Kernel, Path
from polydiff.core.matrix import METHODS, Method
from polydiff.core.noise import Diagonal, Isotropic
from polydiff.core.objectives import Denoising
from polydiff.core.product import Product
from polydiff.core.trials_learning import trained
from tests.core import cases


class Cells(nn.Module):
    """A network on the elements of a state (rows, for clouds), each for itself, and the mean time."""

    def __init__(self, width: int, out: int, embedded: int = 0):
        super().__init__()
        self.embed = nn.Embedding(embedded, width) if embedded else None
        self.linear, self.out = nn.Linear(width + 1, 8), nn.Linear(8, out)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        hidden = x if self.embed is None else self.embed(x)
        time = (c.mean().to(hidden) / 1000).expand(*hidden.shape[:-1], 1)
        return self.out(torch.nn.functional.silu(self.linear(torch.cat([hidden, time], -1))))


class Parts(Denoiser[Any, Any]):
    """Denoisers side by side, for a product."""

    def __init__(self, parts: list[Denoiser]):
        super().__init__()
        self.network, self.schedule = nn.ModuleList(parts), parts[0].schedule

    def coefficients(self, t: Tensor, schedule: schedules.Schedule) -> tuple[Tensor, ...]:
        return (t,)

    def read(self, x_t: Any, t: Any, numbers: tuple[Any, ...], kernel: Any, condition: dict[str, Any]) -> Any:
        parts: Any = self.network
        both: Any = zip(parts, kernel.parts, x_t, strict=True)
        return tuple(denoiser.given(part)(x, t) for denoiser, part, x in both)


def denoiser_of(kernel: Any, x_0: Any) -> Denoiser:
    if isinstance(kernel, Product):
        return Parts([denoiser_of(part, x) for part, x in zip(kernel.parts, x_0, strict=True)])
    if isinstance(kernel, Categorical):
        data = kernel.K if kernel.mask is None else kernel.mask  # a mask, the last symbol, is never data
        return TokenDenoiser(Cells(4, data, embedded=kernel.K).double(), kernel.schedule)
    return GaussianDenoiser(Cells(x_0.shape[-1], x_0.shape[-1]).double(), kernel.schedule)


def core_case(name: str) -> Callable[[], Case]:
    """One of the core's own kernels with a small denoiser."""

    def build() -> Case:
        kernel, x_0 = cases.CASES[name]()
        return Case(name, kernel, denoiser_of(kernel, x_0), x_0)

    return build


OWN = ["uniform-cosine", "absorbing-rectified", "product-cosine", "centred-cosine", "diagonal-linear", "isotropic-edm"]
CASES: dict[str, Callable[[], Case]] = {
    **{domain: import_module(f"polydiff.{domain}.tiny").case for domain in DOMAINS},
    **{name: core_case(name) for name in OWN},
}


@pytest.mark.parametrize("domain", CASES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_cell_that_should_work_does(method: Method, domain: str) -> None:
    (cell,) = matrix.evaluate({domain: CASES[domain]}, [method])
    assert cell.status != "FAILED", cell.reason
    assert (cell.status == "n.a.") == (not method.applies(CASES[domain]()))


@cache
def applicable(name: str) -> set[str]:
    return {method.name for method in METHODS if method.applies(CASES[name]())}


def test_what_applies_follows_from_the_mathematics() -> None:
    everywhere = {m.name for m in METHODS if m.needs is Kernel and not m.conditional and not m.masked}
    assert {"ancestral", "elbo", "repaint", "particle inpainting", "editing", "trajectories"} <= everywhere
    for name in OWN:
        assert everywhere <= applicable(name)
    gaussian = {method.name for method in METHODS if issubclass(method.needs, Path)}
    assert {"ddim", "euler", "heun", "dpm-solver++", "another schedule"} <= gaussian
    for name in ("uniform-cosine", "absorbing-rectified", "product-cosine"):
        assert not gaussian & applicable(name)
    assert gaussian <= applicable("isotropic-edm")
    tokens = {method.name for method in METHODS if method.needs is Tokens}
    masked = {method.name for method in METHODS if method.masked}
    assert {"tau-leaping", "sharpening"} == tokens
    assert {"first-hitting", "cached", "confidence", "any-order", "optimal steps", "any-order likelihood"} <= masked
    for name, some in (("text", tokens | masked), ("absorbing-rectified", tokens | masked), ("uniform-cosine", tokens)):
        assert (tokens | masked) & applicable(name) == some
    assert not (tokens | masked) & (applicable("vision") | applicable("isotropic-edm") | applicable("product-cosine"))
    assert everywhere <= applicable("text")
    assert "guidance" in applicable("vision")
    assert "guidance" not in applicable("isotropic-edm")
    assert trials.needed(import_module("polydiff.core.ddim").ddim) is Gaussian
    assert trials.needed(import_module("polydiff.core.ancestral").ancestral) is Kernel


def test_noise_laws_can_be_asked_for() -> None:
    asks = Method("x", "generic", lambda case: None, Gaussian, (Isotropic, Diagonal))
    assert asks.applies(CASES["diagonal-linear"]())
    assert not asks.applies(CASES["centred-cosine"]())
    assert not asks.applies(CASES["uniform-cosine"]())
    assert not replace(asks, needs=Kernel, noise=Centred).applies(CASES["isotropic-edm"]())


def broken_nan(denoise: Any, kernel: Gaussian, x: Tensor, times: Tensor, *, generator: Any = None) -> Any:
    yield from (step._replace(x=step.x * float("nan")) for step in ancestral(denoise, kernel, x, times, generator))


def broken_shape(denoise: Any, kernel: Gaussian, x: Tensor, times: Tensor, *, generator: Any = None) -> Any:
    yield from (step._replace(x=step.x[:-1]) for step in ancestral(denoise, kernel, x, times, generator))


def broken_space(denoise: Any, kernel: Gaussian, x: Tensor, times: Tensor, *, generator: Any = None) -> Any:
    yield from (step._replace(x=step.x + 1) for step in ancestral(denoise, kernel, x, times, generator))


def broken_type(denoise: Any, kernel: Gaussian, x: Tensor, times: Tensor, *, generator: Any = None) -> Any:
    yield from (step._replace(x=step.x.half()) for step in ancestral(denoise, kernel, x, times, generator))


def broken_seed(denoise: Any, kernel: Gaussian, x: Tensor, times: Tensor, *, generator: Any = None) -> Any:
    yield from ancestral(denoise, kernel, x, times, None)


def ancestral(denoise: Any, kernel: Gaussian, x: Tensor, times: Tensor, generator: Any) -> Any:
    return import_module("polydiff.core.ancestral").ancestral(denoise, kernel, x, times, generator=generator)


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [
        (broken_nan, "not finite"),
        (broken_shape, "shape"),
        (broken_space, "outside"),
        (broken_type, "type"),
        (broken_seed, "seed"),
    ],
)
def test_a_broken_method_is_reported(sampler: Any, reason: str) -> None:
    method = Method("broken", "generic", trials.sampled(sampler), trials.needed(sampler))
    some = {name: CASES[name] for name in ("centred-cosine", "uniform-cosine")}
    failed, absent = matrix.evaluate(some, [method])
    assert failed.status == "FAILED"
    assert reason in failed.reason
    assert absent.status == "n.a."
    lines = matrix.table([failed, absent]).splitlines()
    assert lines[0].split() == ["family", "method", "centred-cosine", "uniform-cosine"]
    assert lines[1].split() == ["generic", "broken", "FAILED", "n.a."]
    assert lines[-2].startswith("FAILED: broken on centred-cosine: AssertionError: ")
    assert lines[-1] == "0 ok, 1 n.a., 1 FAILED"


def broken_known(denoise: Any, kernel: Categorical, x: Tensor, times: Tensor, *, generator: Any = None) -> Any:
    yield from any_order(denoise, kernel, torch.full_like(x, kernel.mask or 0), times, generator=generator)


def broken_mask(denoise: Any, kernel: Categorical, x: Tensor, times: Tensor, *, generator: Any = None) -> Any:
    steps = list(ancestral(denoise, kernel, x, times, generator))  # type: ignore[arg-type]
    yield from steps[:-1]


@pytest.mark.parametrize(("sampler", "reason"), [(broken_known, "known"), (broken_mask, "mask")])
def test_a_broken_sampler_of_masks_is_reported(sampler: Any, reason: str) -> None:
    method = Method("broken", "generic", trials_tokens.revealing(sampler), masked=True)
    failed, absent = matrix.evaluate(
        {name: CASES[name] for name in ("absorbing-rectified", "uniform-cosine")}, [method]
    )
    assert (failed.status, reason in failed.reason) == ("FAILED", True)
    assert absent.status == "n.a."


def test_broken_objectives_are_reported() -> None:
    def blind(case: Case) -> Any:
        return lambda batch, generator: batch["x_0"].flatten(1).sum(1).requires_grad_()

    def endless(case: Case) -> Any:
        return lambda batch, generator: Denoising(case.denoiser, case.kernel)(batch, generator) / 0

    some = {"isotropic-edm": CASES["isotropic-edm"]}
    for objective, reason in ((blind, "no gradient"), (endless, "not finite")):
        (cell,) = matrix.evaluate(some, [Method("broken", "better likelihood", trained(objective))])
        assert (cell.status, reason in cell.reason) == ("FAILED", True)


def test_repetition_takes_structure_and_condition_along() -> None:
    case = CASES["centred-cosine"]()
    conditioned = replace(
        case,
        condition={"label": torch.arange(4), "row": torch.arange(len(case.x_0)), "number": 3, "none": torch.ones(7)},
    )
    many, index = trials.repeated(conditioned, 2)
    assert many.denoiser is case.denoiser and many.name == case.name
    assert index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert many.kernel.examples(many.x_0) == 8
    assert many.condition["label"].tolist() == index.tolist()
    assert torch.equal(case.x_0[many.condition["row"]], many.x_0)
    assert many.condition["number"] == 3
    assert len(many.condition["none"]) == 7


class Graphs:
    """A condition that is no tensor: names of graphs, with the row's graph."""

    def __init__(self, names: list[str], index: Tensor):
        self.names, self.index = names, index


class Told(nn.Module):
    """A network that looks into such a condition."""

    def __init__(self):
        super().__init__()
        self.cells = Cells(3, 3).double()

    def forward(self, x: Tensor, c: Tensor, graphs: Graphs, level: Tensor) -> Tensor:
        assert len(graphs.index) == len(x) and len(graphs.names) == len(c) == len(level)
        weight = torch.tensor([float(len(name)) for name in graphs.names], dtype=x.dtype) + level
        return self.cells(x, c) * weight[graphs.index].unsqueeze(1)


def choose(condition: Any, index: Tensor) -> dict[str, Any]:
    graphs = condition["graphs"]
    rows = torch.cat([torch.full((int((graphs.index == i).sum()),), j) for j, i in enumerate(index.tolist())])
    return {"graphs": Graphs([graphs.names[i] for i in index.tolist()], rows), "level": condition["level"][index]}


def graph_case() -> Case:
    plain = CASES["centred-cosine"]()
    denoiser = GaussianDenoiser(Told(), plain.kernel.schedule)  # pyright: ignore[reportArgumentType]
    condition = {"graphs": Graphs(["a", "bb", "ccc", "dddd"], cases.INDEX), "level": torch.ones(4)}
    return replace(plain, denoiser=denoiser, condition=condition, choose=choose)


@pytest.mark.parametrize("name", ["particle inpainting", "guidance", "another schedule", "reflow", "denoising", "elbo"])
def test_a_condition_may_be_more_than_tensors(name: str) -> None:
    for method in METHODS:
        if name in method.name:
            (cell,) = matrix.evaluate({"graphs": graph_case}, [method])
            assert cell.status == "ok", cell.reason


def test_a_case_says_how_its_condition_is_chosen() -> None:
    many = graph_case().chosen(torch.tensor([3, 1, 1]))
    assert many.condition["graphs"].names == ["dddd", "bb", "bb"]
    assert torch.bincount(many.condition["graphs"].index).tolist() == [3, 5, 5]
    assert many.choose is choose and many.kernel.examples(many.x_0) == 3
    with pytest.raises(ArgumentError, match="^choose: .*'graphs', a Graphs"):
        replace(graph_case(), choose=None).chosen(torch.tensor([0]))
    (guidance,) = [method for method in METHODS if method.name == "guidance"]
    assert not guidance.applies(replace(graph_case(), condition={"graphs": None}))


def test_as_markdown_each_line_has_the_same_columns() -> None:
    cells = [matrix.Cell("a", "generic", "one", "ok"), matrix.Cell("b", "generic", "one", "n.a.")]
    lines = matrix.table(cells, markdown=True).splitlines()
    assert [line.count("|") for line in lines[:4]] == [4] * 4
    assert set(lines[1]) == set("| -")


def status(*words: str) -> Any:
    with pytest.raises(SystemExit) as stopped:
        main(["methods", *words])
    return stopped.value.code


def test_the_command_prints_the_matrix_and_tells_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = Method("fine", "generic", lambda case: None)
    monkeypatch.setattr(matrix, "METHODS", [fine])
    assert status(DOMAINS[0]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "family   method  vision",
        "generic  fine    ok",
        "",
        "1 ok, 0 n.a., 0 FAILED",
    ]

    def fail(case: Case) -> None:
        raise ValueError("no\nluck")

    monkeypatch.setattr(matrix, "METHODS", [fine, Method("bad", "generic", fail)])
    assert status("--markdown") == 1
    shown = capsys.readouterr().out
    assert "| generic | bad    | FAILED |" in shown
    assert "FAILED: bad on vision: ValueError: no luck\n" in shown
    assert status("nope") == 2
    assert status("--nope") == 2


def test_help_loads_no_torch() -> None:
    code = "import sys\nfrom polydiff.cli.main import main\ntry:\n    main(['methods', '--help'])\n"
    code += "except SystemExit as stopped:\n    sys.exit('torch' in sys.modules or stopped.code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--markdown" in done.stdout
