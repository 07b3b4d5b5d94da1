"""Text from a trained diffusion model: what users import.

    from polydiff.text.pipeline import TextPipeline

    pipeline = TextPipeline.from_pretrained("runs/text")
    pipeline(count=2, length=400, seed=0)                     # any length
    pipeline.infill("the [MASK:3] sat on the [MASK:12] ")     # the known part to the letter, for every kernel
    pipeline.continue_("once upon a time ", 100)
    pipeline.edit("the cat sat on the mat", strength=0.4)
    pipeline.score("the cat sat on the mat")[0].bits_per_character

Text i of a call depends on the seed and on i alone, so batches change nothing. Texts are in the vocabulary's symbols:
any other symbol is an error that names it and its place, unless `normalise` asks for the form that training text was
brought into (for the 27 symbols of text8 lower case, and a space for every run of anything else).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack, final

import torch
from torch import Tensor, nn

from ..core.ancestral import ancestral
from ..core.any_order import any_order, steps_of
from ..core.editing import edit
from ..core.errors import ArgumentError, check_counts
from ..core.grids import uniform
from ..core.inpainting import repaint
from ..core.pipeline import Pipeline
from ..core.randomness import example_generators
from ..core.sampling import Step, last
from ..core.sharpening import Change, sharpened
from . import revealing
from .drawing import Drawing, How, batches
from .filling import by_share, window_by_window
from .model import TextConfig, TextModel, kernel_of
from .scoring import Score, gathered, shares, token_bound
from .semi_autoregressive import Fill, clamped, semi_autoregressive
from .templates import Template, encoded
from .vocabulary import TOKENIZER, Vocabulary

__all__ = ["TextPipeline"]

Sampler = Callable[..., Iterator[Step[Tensor]]]
Write = Callable[[list[torch.Generator]], Tensor]


@final
class TextPipeline(Pipeline[TextConfig]):
    """A diffusion model of text.

    Args:
        config: sizes and names.
        model: the denoiser and statistics that `build(config)` makes, trained.

    Attributes:
        kernel: the forward process.
        unmasking: network calls -> how many tokens an absorbing model reveals in each, calibrated; saved with it.
    """

    config_class = TextConfig
    beside = (TOKENIZER, revealing.UNMASKING)
    model: TextModel

    def __init__(self, config: TextConfig, model: nn.Module):
        super().__init__(config, model)
        self.kernel = kernel_of(config, self.model)
        self.unmasking: dict[int, tuple[int, ...]] = {}

    @classmethod
    def build(cls, config: TextConfig) -> TextModel:
        return TextModel(config)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @property
    def vocabulary(self) -> Vocabulary:
        """What the tokens mean."""
        return self.config.vocabulary

    @property
    def window(self) -> int:
        """Tokens that the model was trained on at once."""
        return self.config.network.length

    def to(self, device: torch.device | str) -> Self:
        self.kernel.to(device)
        return super().to(device)

    def write_beside(self, folder: Path) -> None:
        self.vocabulary.save(folder)
        revealing.write(folder, self.unmasking)

    def read_beside(self, folder: Path) -> None:
        self.config = replace(self.config, vocabulary=self.vocabulary.at(folder))
        self.unmasking = revealing.read(folder, self.window)

    def __call__(self, count: int = 4, length: int | None = None, **how: Unpack[How]) -> list[str]:
        """New texts; arguments as `sample`."""
        return self._decoded(self.sample(count, length, **how))

    def sample(self, count: int = 4, length: int | None = None, **how: Unpack[How]) -> Tensor:
        """New texts as tokens, (count, length) long.

        Args:
            count: of texts.
            length: in tokens, the window by default. What is longer is written by half windows, each of which sees the
                half window before it.
            how: see `drawing.Drawing`.
        """
        length = self.window if length is None else length
        check_counts(count=count, length=length)
        drawing = Drawing(**how)
        if length > self.window:
            nothing = torch.empty(0, dtype=torch.long)
            return self._drawn(self._blocks(drawing, nothing, length, self.window // 2, None), count, drawing)
        denoise, sampler, times = self._plan(drawing)

        def write(generators: list[torch.Generator]) -> Tensor:
            like = torch.zeros(len(generators), length, dtype=torch.long, device=self.device)
            x = self.kernel.prior(like).sample(generators)
            return last(sampler(denoise, self.kernel, x, times, generator=generators))

        return self._drawn(write, count, drawing)

    def continue_(
        self,
        prompt: str,
        length: int | None = None,
        *,
        count: int = 1,
        context: int | None = None,
        fill: Fill | None = None,
        normalise: bool = False,
        **how: Unpack[How],
    ) -> list[str]:
        """Texts that begin with the prompt, written block by block.

        Args:
            prompt: not empty.
            length: tokens to add, any number; a window by default.
            count: of texts.
            context: how many of the last tokens each block sees, fewer than the window; of a longer prompt the last
                part conditions. By default what a block of `length` leaves of the window, at least half of it.
            fill: as in `infill`.
            normalise: bring the prompt into the vocabulary's form first.
            how: see `drawing.Drawing`.
        """
        length = self.window if length is None else length
        check_counts(count=count, length=length)
        drawing, (prompt, known) = Drawing(**how), self._read("prompt", prompt, normalise)
        context = self.window - max(1, min(length, self.window // 2)) if context is None else context
        texts = self._drawn(self._blocks(drawing, known, len(known) + length, context, fill), count, drawing)
        return [prompt + rest for rest in self._decoded(texts[:, len(known) :])]

    def infill(
        self, text: str, *, count: int = 1, fill: Fill | None = None, normalise: bool = False, **how: Unpack[How]
    ) -> list[str]:
        """The text with its gaps filled, `count` times: `[MASK]` is one token, `[MASK:12]` are twelve.

        The known characters stay to the letter. A text that fits the window is filled at once; a longer one from left
        to right, a window at a time, each gap with a quarter of a window on both sides where there is as much.

        Args:
            text: with at least one gap.
            count: of texts.
            fill: how: `fill(denoise, kernel, x, times, known=, mask=, generator=)`. Absorbing kernels default to
                `semi_autoregressive.clamped(sampler)`, which is exact; others to `core.inpainting.repaint`, or take
                `filling.particles(n)`. With `fill`, or another kernel than absorbing, there is no `sampler`.
            normalise: bring the known text into the vocabulary's form first.
            how: see `drawing.Drawing`.

        Raises:
            ArgumentError: no string, no gap, an empty gap, a symbol outside the vocabulary, or an argument that does
                not fit.
        """
        check_counts(count=count)
        drawing, template = Drawing(**how), Template.read(text, self.vocabulary, normalise)
        fill = self._fill(drawing, fill)
        denoise, _, times = self._plan(drawing)

        def write(generators: list[torch.Generator]) -> Tensor:
            def once(known: Tensor, mask: Tensor) -> Tensor:
                x = self.kernel.prior(known).sample(generators)
                return last(fill(denoise, self.kernel, x, times, known=known, mask=mask, generator=generators))

            rows = template.tokens.to(self.device).expand(len(generators), -1)
            return window_by_window(once, rows, template.hidden.to(self.device), self.window)

        return [template.filled(row, self.vocabulary) for row in self._drawn(write, count, drawing).tolist()]

    def edit(
        self, text: str, strength: float = 0.5, *, count: int = 1, normalise: bool = False, **how: Unpack[How]
    ) -> list[str]:
        """Versions of a text: noised part of the way and denoised again; longer texts window by window.

        Args:
            text: not empty.
            strength: share of the steps, in [0, 1]: 0 gives the text back (as its tokens spell it), 1 forgets it.
            count: of versions.
            normalise: bring the text into the vocabulary's form first.
            how: see `drawing.Drawing`.
        """
        check_counts(count=count)
        if not 0 <= strength <= 1:
            raise ArgumentError("strength", strength, "a number in [0, 1]")
        drawing, (_, tokens) = Drawing(**how), self._read("text", text, normalise)
        denoise, sampler, times = self._plan(drawing)

        def write(generators: list[torch.Generator]) -> Tensor:
            run = partial(edit, denoise, self.kernel, sampler=sampler, generator=generators)
            parts = tokens.to(self.device).expand(len(generators), -1).split(self.window, 1)
            return torch.cat([last(run(x_0, times, strength)) for x_0 in parts], 1)

        return self._decoded(self._drawn(write, count, drawing))

    @torch.no_grad()
    def score(
        self,
        texts: str | Sequence[str],
        *,
        steps: int | None = None,
        terms: int = 16,
        draws: int = 4,
        normalise: bool = False,
        seed: int = 0,
        batch_size: int = 32,
        precision: torch.dtype = torch.float32,
    ) -> list[Score]:
        """Upper bounds on the bits of texts, whole and by tokens, with standard errors; see `scoring`.

        The full bound: prior, gaps and reconstruction. Texts longer than the window are scored window by window.

        Args:
            texts: one or several, none of them empty.
            steps: of the chain whose bound it is; None for continuous time.
            terms: times met in each draw.
            draws: independent estimates, whose spread gives the standard error.
            normalise: bring the texts into the vocabulary's form first.
            seed: the draws of text i depend on (seed, i).
            batch_size: windows in the network at once.
            precision: torch.bfloat16 runs the network in autocast.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_counts(draws=draws, **{"number of texts": len(texts)})
        drawing = Drawing(seed=seed, batch_size=batch_size, precision=precision)
        read = [self._read(f"texts[{i}]", text, normalise) for i, text in enumerate(texts)]

        def bound(x_0: Tensor, generators: list[torch.Generator]) -> Tensor:
            with self._autocast(drawing):
                x_0 = x_0.to(self.device)
                return token_bound(self.given(), self.kernel, x_0, steps=steps, terms=terms, generator=generators)

        found = shares(bound, [tokens for _, tokens in read], self.window, draws, drawing)
        return [
            gathered(draws, text, tuple(self.vocabulary.decode([token]) for token in tokens.tolist()))
            for draws, (text, tokens) in zip(found, read, strict=True)
        ]

    def given(self, *changes: Change) -> Callable[[Tensor, Any], Tensor]:
        """The denoiser bound to the kernel, its beliefs changed by `changes` (see `core.sharpening`); of an absorbing
        kernel's states it reads the time off the share of masks, see `filling.by_share`."""
        denoise = self.model.denoiser.given(self.kernel)
        return sharpened(denoise if self.kernel.mask is None else by_share(denoise, self.kernel), *changes)

    def _plan(self, drawing: Drawing) -> tuple[Callable[[Tensor, Any], Tensor], Sampler, Tensor]:
        """The bound denoiser, the sampler and its grid."""
        denoise, counts = self.given(*drawing.changes), self.unmasking.get(drawing.steps)
        if drawing.sampler is None and counts is not None and self.kernel.mask is not None:
            return denoise, any_order, steps_of(counts, self.kernel.schedule)
        return denoise, drawing.sampler or ancestral, uniform(drawing.steps, self.kernel.schedule)

    def _fill(self, drawing: Drawing, fill: Fill | None) -> Fill:
        """How gaps are filled."""
        if drawing.sampler is not None and (fill is not None or self.kernel.mask is None):
            raise ArgumentError("sampler", drawing.sampler, "None: here `fill` says how gaps are filled")
        if fill is None:
            return repaint if self.kernel.mask is None else clamped(self._plan(drawing)[1])
        return fill

    def _blocks(self, drawing: Drawing, known: Tensor, length: int, context: int, fill: Fill | None) -> Write:
        """Writes texts of `length` tokens that begin with the known ones, (P,)."""
        fill = self._fill(drawing, fill)
        denoise, _, times = self._plan(drawing)
        sizes = {"length": length, "window": self.window, "context": context}

        def write(generators: list[torch.Generator]) -> Tensor:
            x = known.to(self.device).expand(len(generators), -1)
            return last(
                semi_autoregressive(denoise, self.kernel, x, times, fill=fill, generator=generators, **sizes)
            )  # fmt: skip

        return write

    @torch.no_grad()
    def _drawn(self, write: Write, count: int, drawing: Drawing) -> Tensor:
        """The tokens of texts first ... first + count - 1, in batches."""
        parts: list[Tensor] = []
        for batch in batches(range(drawing.first, drawing.first + count), drawing.batch_size):
            with self._autocast(drawing):
                parts.append(write(example_generators(drawing.seed, 0, batch)).cpu())
        return torch.cat(parts)

    def _autocast(self, drawing: Drawing) -> torch.autocast:
        return torch.autocast(self.device.type, drawing.precision, enabled=drawing.precision != torch.float32)

    def _read(self, name: str, text: str, normalise: bool) -> tuple[str, Tensor]:
        """A text, in the vocabulary's form if asked for, and its tokens (N,); an ArgumentError where there is none."""
        if isinstance(text, str) and normalise:
            text = self.vocabulary.normalise(text)
        if not isinstance(text, str) or not text:
            raise ArgumentError(name, text, "a text that is not empty")
        if not (tokens := encoded(name, text, self.vocabulary)):
            raise ArgumentError(name, text, "a text of at least one token")  # some tokenizers drop white space
        return text, torch.tensor(tokens)

    def _decoded(self, tokens: Tensor) -> list[str]:
        return [self.vocabulary.decode(row) for row in tokens.tolist()]
