"""The smallest case of text is real, always the same, and every generic method runs on it."""

from __future__ import annotations

import torch

from polydiff.core import matrix
from polydiff.text.data import load
from polydiff.text.tiny import case


def test_the_case_is_real_text_and_always_the_same() -> None:
    mine, again = case(), case()
    data = load("python-docs", "valid", length=12)
    assert mine.name == "text"
    assert torch.equal(mine.x_0, data.tokens[:36].long().view(3, 12))
    assert torch.equal(mine.x_0, again.x_0)
    for one, other in zip(mine.denoiser.parameters(), again.denoiser.parameters(), strict=True):
        assert torch.equal(one, other)
        assert bool((one != 0).all())
    assert sum(parameter.numel() for parameter in mine.denoiser.parameters()) < 10_000


def test_every_generic_method_is_ok_or_not_about_tokens() -> None:
    cells = matrix.evaluate({"text": case})
    assert [cell for cell in cells if cell.status == "FAILED"] == []
    fine = {cell.method for cell in cells if cell.status == "ok"}
    generic = {method.name for method in matrix.METHODS if method.needs is matrix.Kernel and not method.conditional}
    assert generic <= fine
    assert {"first-hitting", "confidence", "any-order", "tau-leaping", "score entropy", "sharpening"} <= fine
