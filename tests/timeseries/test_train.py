"""What options of training come to: networks, targets, weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polydiff.core.errors import ArgumentError
from polydiff.core.methods import WEIGHTS
from polydiff.core.options import TrainingOptions
from polydiff.core.randomness import seeded
from polydiff.core.schedules import Cosine
from polydiff.timeseries.csdi import CSDI
from polydiff.timeseries.data import Windows
from polydiff.timeseries.model import SeriesModel
from polydiff.timeseries.network import SeriesNet
from polydiff.timeseries.options import Sizes, Train
from polydiff.timeseries.pipeline import ImputationPipeline
from polydiff.timeseries.scaling import series_level, window_level
from polydiff.timeseries.series import Series
from polydiff.timeseries.targets import Random
from polydiff.timeseries.train import objective_of, series_config, targets_of, train

NAMES = ("a", "b", "c")


def windows(gaps: bool = True, level: Any = "series") -> Windows:
    """Ten windows of 8 rows and 3 features; `c` lacks row 2 of every window, if there are gaps."""
    rng = np.random.default_rng(0)
    values = np.array([1.0, 10.0, 100.0]) * rng.standard_normal((80, 3)) + 5
    if gaps:
        values[2::8, 2] = np.nan
    series = Series(values, np.arange(80.0), NAMES, 3600.0, "tiny")
    return Windows([series], 8, level=level, name="tiny (train)")


def settings(tmp_path: Path | None = None, **more: Any) -> Train:
    training = TrainingOptions(steps=2, batch_size=4, warmup=0, checkpoint_every=0, progress=False, cpu=True)
    out = {} if tmp_path is None else {"out": tmp_path / "run"}
    return Train(sizes=Sizes(width=8, blocks=1), training=training, **out, **more)


def drawn(options: Train, data: Windows | None = None) -> torch.Tensor:
    """Targets of the ten windows."""
    data = windows() if data is None else data
    seen = data.batch(range(len(data)))["seen"]
    target = targets_of(data, options)(seen, [seeded(3, i) for i in range(len(seen))])
    assert not (target & ~seen).any()
    return target


def test_targets_are_what_their_names_say() -> None:
    rows = torch.arange(8)
    assert set(drawn(settings(targets=("random",))).flatten(1).sum(1).tolist()) != {0}
    historical = drawn(settings(targets=("historical",)))
    assert not historical.any()  # the pattern of every window is its own
    forecast = drawn(settings(targets=("forecast",), horizon=3))
    assert torch.equal(forecast.any(2), (rows >= 5).expand(10, 8))
    any_horizon = drawn(settings(targets=("forecast",))).any(2).sum(1)
    assert 1 <= int(any_horizon.min()) < int(any_horizon.max()) <= 4
    series = drawn(settings(targets=("series",)))
    seen = windows().batch(range(10))["seen"]
    hidden = series.any(1, keepdim=True)
    assert torch.equal(series, seen & hidden)
    assert not hidden.all(2).any()
    blocks = drawn(settings(targets=("blocks",)))
    assert blocks.flatten(1).any(1).all()
    both = drawn(settings(targets=("forecast", "series"), horizon=3))
    last = torch.tensor([torch.equal(one, other) for one, other in zip(both, forecast, strict=True)])
    assert last.any() and not last.all()


def test_covariates_are_never_hidden() -> None:
    target = drawn(settings(targets=("series", "random"), covariates=("b",)))
    assert not target[..., 1].any()
    assert target[..., 0].any() and target[..., 2].any()
    with pytest.raises(ArgumentError, match="covariates: got 'd'"):
        targets_of(windows(), settings(covariates=("d",)))


def test_patterns_need_gaps() -> None:
    for name in ("historical", "mix"):
        with pytest.raises(ArgumentError, match="no gaps"):
            targets_of(windows(gaps=False), settings(targets=(name,)))


def test_a_mix_is_of_random_cells_and_patterns() -> None:
    found = targets_of(windows(), settings(targets=("mix",)))
    assert found.strategies[0] == Random()  # pyright: ignore[reportAttributeAccessIssue]
    assert len(found.strategies) == 2  # pyright: ignore[reportAttributeAccessIssue]


def test_the_loss_counts_cells_alike() -> None:
    data, options = windows(), settings(targets=("forecast",), horizon=2)
    config = series_config(data, options)
    objective = objective_of(SeriesModel(config, data.centre, data.scale), config, data, options)
    assert objective.per == 6  # two rows of three features, all of them seen
    assert objective.level is series_level
    assert objective.denoising.weight is WEIGHTS["velocity"]
    drifting = windows(level="window")
    config = series_config(drifting, options)
    model = SeriesModel(config, drifting.centre, drifting.scale)
    assert config.level == "window"
    assert objective_of(model, config, drifting, options).level is window_level
    other = objective_of(model, config, drifting, replace(options, weighting="plain"))
    assert other.denoising.weight is WEIGHTS["plain"]


def test_networks_by_name() -> None:
    data = windows()
    ours = series_config(data, settings())
    assert isinstance(ours.network.build(), SeriesNet)
    assert (ours.features, ours.window, ours.step) == (NAMES, 8, 3600.0)
    assert (ours.network.width, ours.network.blocks) == (8, 1)  # pyright: ignore[reportAttributeAccessIssue]
    csdi = series_config(data, Train(network="csdi", sizes=Sizes(width=16, heads=4, dropout=0.0)))
    network = csdi.network.build()
    assert isinstance(network, CSDI)
    assert (network.config.channels, network.config.layers, network.config.heads) == (16, 4, 4)
    assert (csdi.schedule, csdi.parametrisation, csdi.conditioning) == ("csdi", "eps", "index-50")
    model = SeriesModel(csdi)
    assert objective_of(model, csdi, data, Train(network="csdi")).denoising.weight is WEIGHTS["simple"]
    another = SeriesModel(series_config(data, settings(schedule="cosine", parametrisation="x0")))
    assert isinstance(another.denoiser.schedule, Cosine)


@pytest.mark.parametrize("network", ["ours", "csdi"])
def test_training_gives_the_averaged_model_that_is_kept(network: Any, tmp_path: Path) -> None:
    data, logged, sizes = windows(), [], []
    options = settings(tmp_path, network=network)
    options = replace(options, training=replace(options.training, log_every=1))
    pipeline, history = train(data, options, announce=sizes.append, on_log=logged.append)
    assert sizes == [sum(p.numel() for p in pipeline.model.parameters())]
    assert [entry["step"] for entry in logged] == [1, 2]
    assert not pipeline.model.training
    kept = ImputationPipeline.from_pretrained(tmp_path / "run")
    for name, value in pipeline.model.state_dict().items():
        assert torch.equal(kept.model.state_dict()[name], value)
    averaged = history.ema.denoising.denoiser.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    raw = history.objective.denoising.denoiser.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    own = pipeline.model.denoiser.state_dict()
    assert all(torch.equal(own[name], averaged[name]) for name in averaged)
    assert all(torch.equal(own[name], raw[name]) for name in raw)  # the pipeline's model is the trained module itself
    np.testing.assert_array_equal(kept.model.centre.numpy(), data.centre)
    np.testing.assert_array_equal(kept.model.scale.numpy(), data.scale)
    assert "tiny" in (tmp_path / "run" / "model" / "README.md").read_text()
