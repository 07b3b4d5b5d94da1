"""Gaps filled and futures drawn by a diffusion model: what users import.

    from polydiff.timeseries.pipeline import ImputationPipeline

    pipeline = ImputationPipeline().fit(X)                 # X: (N, L, K) array or DataFrame, NaN = missing
    pipeline.impute(X)                                     # X with its gaps filled, observed cells bit for bit
    pipeline.samples(X, count=100)                         # (100, N, L, K): sample paths
    pipeline.quantile(X, (0.05, 0.5, 0.95))                # (3, N, L, K)
    pipeline.forecast(X, horizon=24)                       # the 24 rows that follow
    pipeline.save_pretrained("runs/mine"); ImputationPipeline.from_pretrained("runs/mine")

X is an array (N, L, K) or (L, K), a DataFrame, a list of series (L, K) of any lengths, or any of these as
`frames.read(X, keep=, time=, day_first=)` read it, where columns or dates need a word. Series longer than the model's
window are filled in two passes, see `stitching`. Sample s of series n depends on the seed, n and s alone; what else is
in the call, and how it is split into batches, shows in the last digits at most.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, Unpack, final

import torch
from torch import Tensor, nn

from ..core.errors import ArgumentError, PolydiffError, check_counts
from ..core.gaussian import Gaussian
from ..core.options import TrainingOptions
from ..core.pipeline import Card, Pipeline
from .drawing import DEFAULT_SAMPLER, Drawing, How, snapped
from .filling import Plan, fill
from .fitting import JUDGES, fitted, judged
from .forecasting import prolonged
from .model import NetworkConfig, SeriesConfig, SeriesModel, kernel_of
from .scaling import Level
from .series import Series
from .stitching import Paths, Stretch, interleaved, run
from .summaries import PointName, quantiles_of, summarised, summary_of
from .tables import Taken, taken
from .targets import Strategy

__all__ = ["DEFAULT_COUNT", "ImputationPipeline", "NotFitted"]

DEFAULT_COUNT = 100
"""Samples."""

HELD = 1 << 25
"""Numbers of samples in memory at once, 256 MB, where only their quantiles are kept."""


class NotFitted(PolydiffError, ValueError, AttributeError):
    """A pipeline without a model was asked for what only a model can do."""

    def __init__(self, what: str):
        super().__init__(f"{what}: no model yet; call fit(X) first, or load one by from_pretrained(name)")


@final
class ImputationPipeline(Pipeline[SeriesConfig]):
    """A diffusion model of time series.

    Args:
        config: sizes and names; None for a pipeline that is to be fitted.
        model: the `SeriesModel` that `build(config)` makes, trained; None with `config`.

    Attributes:
        kernel: the forward process, to be bound to the cells of windows.
        validation: of `fit`: figures on cells that training has not seen, by name; empty otherwise.
    """

    config_class = SeriesConfig
    model: SeriesModel

    def __init__(self, config: SeriesConfig | None = None, model: nn.Module | None = None):
        if (config is None) != (model is None):
            raise ArgumentError("config, model", (config, model), "both, or neither for a pipeline to be fitted")
        super().__init__(config, model)  # pyright: ignore[reportArgumentType]: what needs them asks `ready` first
        self.validation: dict[str, float] = {}
        self._kernel = None if config is None else kernel_of(config, self.model)

    @classmethod
    def build(cls, config: SeriesConfig) -> SeriesModel:
        return SeriesModel(config)

    # --- state

    @property
    def is_fitted(self) -> bool:
        """Whether there is a model."""
        return self._kernel is not None

    @property
    def kernel(self) -> Gaussian:
        """The forward process."""
        if self._kernel is None:
            raise NotFitted("kernel")
        return self._kernel

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        self.ready("device")
        return self.model.centre.device

    def ready(self, what: str) -> None:
        """A NotFitted error unless there is a model."""
        if not self.is_fitted:
            raise NotFitted(what)

    def to(self, device: torch.device | str) -> Self:
        self.kernel.to(device)
        return super().to(device)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, card: Card | None = None, dtype: torch.dtype | None = None
    ) -> Path:
        self.ready("save_pretrained")
        return super().save_pretrained(folder, card=card, dtype=dtype)

    # --- what users call

    def fit(
        self,
        X: Any,
        *,
        window: int | None = None,
        level: Level | None = None,
        covariates: Sequence[str] = (),
        strategy: Strategy | None = None,
        options: TrainingOptions | None = None,
        network: NetworkConfig | None = None,
        held_out_share: float = 0.05,
        folder: str | os.PathLike[str] | None = None,
        resume: bool = False,
        seed: int = 0,
    ) -> Self:
        """Train a model on X, for minutes at most on two cores by default, and judge it; see `fitting.fitted`.

        Args:
            X: see the module; NaN = missing.
            window: rows that the model sees at once; None for what suits the data.
            level: "window" for series that drift; None for what suits the data.
            covariates: features whose future will be known; by name, which in arrays is "feature 0" and so on.
            strategy: which observed cells training hides; None for a mixture of gaps and futures.
            options: of the training loop; None for what suits the data.
            network: sizes; None for what suits the data.
            held_out_share: of the observed cells, by which the model is judged, see `validation`; 0 for none.
            folder: of the run, to be looked at or resumed; a temporary one by default.
            resume: go on with the run in `folder`, if there is one.
            seed: of everything random.
        """
        found = fitted(
            taken(X).series, window=window, level=level, covariates=tuple(covariates), strategy=strategy,
            options=options, network=network, held_out_share=held_out_share, folder=folder, resume=resume, seed=seed,
        )  # fmt: skip
        self.__init__(found.config, found.model)

        def draw(series: Sequence[Series]) -> Iterator[Tensor]:
            return self.drawn(series, JUDGES, Drawing(seed=seed))

        self.validation = judged(draw, found.shown, found.held)
        return self

    def impute(self, X: Any, *, count: int = DEFAULT_COUNT, point: PointName = "median", **how: Unpack[How]) -> Any:
        """X with its missing cells filled by the median (or mean) of samples; observed cells bit for bit as they came.

        Args:
            X: see the module; or a file as `frames.read_file` read it, of which the bytes come back.
            count: of samples.
            point: which summary of them.
            how: see `drawing.Drawing`.
        """
        summary, table = summary_of(point), self._taken("impute", X)
        return table.filled(summarised(self.drawn(table.series, count, Drawing(**how)), summary))

    def quantile(
        self, X: Any, q: float | Sequence[float] = (0.05, 0.5, 0.95), *, count: int = DEFAULT_COUNT, **how: Unpack[How]
    ) -> Any:
        """Quantiles of the missing cells, by linear interpolation between samples; observed cells as they came.

        Args:
            X: see the module.
            q: in [0, 1].
            count, how: as in `impute`.

        Returns:
            for a number q what `impute` returns; for several, arrays (Q, ...) of arrays, else a list with one for each.
        """
        summary, table = quantiles_of("q", q), self._taken("quantile", X)
        found = summarised(self.drawn(table.series, count, Drawing(**how)), summary)
        return table.quantiles(table.filled, found, q)

    def samples(self, X: Any, count: int = DEFAULT_COUNT, **how: Unpack[How]) -> Any:
        """Sample paths: (S, N, L, K) of an array (N, L, K), (S, L, K) of one series, a list of those of a list.

        Float64; observed cells are the same in all. Arguments as in `impute`.
        """
        table = self._taken("samples", X)
        found = self.drawn(table.series, count, Drawing(**how))
        return table.paths([samples.numpy() for samples in found])

    def forecast(
        self,
        X: Any,
        horizon: int,
        *,
        covariates: Any = None,
        quantiles: float | Sequence[float] | None = None,
        count: int = DEFAULT_COUNT,
        point: PointName = "median",
        **how: Unpack[How],
    ) -> Any:
        """The `horizon` rows that follow X: the median (or mean) of sample paths, or their quantiles.

        Only the last window of X is looked at. Beyond half a window, paths are continued block by block.

        Args:
            X: see the module.
            horizon: rows, >= 1.
            covariates: of a model with covariates their future, (horizon, C) in a DataFrame with these columns, or an
                array in the order of `config.covariates`; (N, horizon, C) or a list for several series.
            quantiles: as `q` of `quantile`, in place of the median.
            count, point, how: as in `impute`.

        Returns:
            rows in the form of X, their index continued; with `quantiles` as `quantile`.
        """
        summary = summary_of(point) if quantiles is None else quantiles_of("quantiles", quantiles)
        table = self._taken("forecast", X)
        longer, passes = prolonged(table.series, self.config, horizon, covariates)
        found = summarised(self.drawn(longer, count, Drawing(**how), passes), summary, last=horizon)
        return table.future(found) if quantiles is None else table.quantiles(table.future, found, quantiles)

    def futures(
        self, X: Any, horizon: int, count: int = DEFAULT_COUNT, *, covariates: Any = None, **how: Unpack[How]
    ) -> Any:
        """Sample paths of the `horizon` rows that follow X: (S, N, horizon, K), or as `samples`; float64."""
        table = self._taken("futures", X)
        longer, passes = prolonged(table.series, self.config, horizon, covariates)
        found = self.drawn(longer, count, Drawing(**how), passes)
        return table.paths([samples[:, -horizon:].numpy() for samples in found])

    # --- what these are made of

    def plan(self, drawing: Drawing) -> Plan:
        """The sampler and its grid of times."""
        self.ready("plan")
        sampler, times = drawing.sampler, None
        if sampler is None and drawing.fill is None and drawing.steps in self.solvers:
            sampler = self.solvers[drawing.steps]
        else:
            times = drawing.grid(drawing.steps, self.kernel.schedule)
            if self.config.indices is not None:
                times = snapped(times, self.config.indices)
        return Plan(self.model, self.kernel, DEFAULT_SAMPLER if sampler is None else sampler, times, drawing)

    def drawn(
        self,
        series: Sequence[Series],
        count: int,
        drawing: Drawing,
        passes: Sequence[list[list[Stretch]]] | None = None,
    ) -> Iterator[Tensor]:
        """Samples (S, T, K) of each series in turn, float64 in the units of the data.

        Args:
            series: of the model's features, their stamps in its steps.
            count: S.
            drawing: how.
            passes: windows of each series; None for those that fill all of its gaps.
        """
        check_counts(count=count)
        plan, samples = self.plan(drawing), range(drawing.first, drawing.first + count)
        if passes is None:
            passes = [interleaved(len(one), self.config.window) for one in series]
        begin, held = 0, 0
        for end, one in enumerate(series, 1):
            held += count * one.values.size
            if held < HELD and end < len(series):
                continue
            jobs = [
                Paths(torch.from_numpy(series[i].values), torch.from_numpy(series[i].stamps), i, passes[i])
                for i in range(begin, end)
            ]
            yield from run(partial(fill, plan), jobs, samples)
            begin, held = end, 0

    def _taken(self, what: str, X: Any) -> Taken:
        self.ready(what)
        return taken(X, self.config.features, self.config.step)
