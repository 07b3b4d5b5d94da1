"""The time-series commands, end to end on small tables: train, resume, sample, calibrate, evaluate; bad input."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from polydiff.cli.main import main
from polydiff.timeseries.data import Windows
from polydiff.timeseries.loading import load_model
from polydiff.timeseries.options import Train
from polydiff.timeseries.table_model import counts
from polydiff.timeseries.train import data_of

SMALL = ["--width", 8, "--blocks", 1, "--window", 16, "--batch-size", 4, "--warmup", 0, "--decay-to", 1]
SMALL += ["--no-progress", "--cpu"]
DRAWN = ["--samples", 4, "--steps", 2, "--no-progress"]


def polydiff(*words: object) -> int:
    """Run the command in this process; its exit status."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def table(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """Two daily series with gaps, numbers of various kinds, and a remark."""
    rng = np.random.default_rng(seed)
    t = np.arange(rows)
    frame = pd.DataFrame(
        {
            "day": pd.date_range("2021-03-01", periods=rows, freq="D").strftime("%Y-%m-%d"),
            "low": np.sin(t / 4) + 0.1 * rng.standard_normal(rows),
            "high": 50 + 9 * np.cos(t / 4) + rng.standard_normal(rows),
        }
    )
    for name in ("low", "high"):
        frame.loc[rng.random(rows) < 0.2, name] = np.nan
    frame.loc[0, ["low", "high"]] = (1 / 3, 42.0)
    return frame


def trained(folder: Path, *words: object, steps: int = 2) -> Path:
    assert polydiff("train", "timeseries", *SMALL, *words, "--steps", steps, "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table as CSV, its last row without a line's end."""
    path = tmp_path_factory.mktemp("tables") / "gaps.csv"
    path.write_text(table().to_csv(index=False).rstrip("\n"))
    return path


@pytest.fixture(scope="module")
def run(gaps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps on that table."""
    return trained(tmp_path_factory.mktemp("runs") / "first", "--data", gaps, steps=4)


def cells(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()]


def test_train_writes_all_that_is_promised(run: Path, gaps: Path) -> None:
    assert {p.name for p in run.iterdir()} == {".lock", "config.json", "checkpoints", "metrics.jsonl", "logs", "model"}
    card = (run / "model" / "README.md").read_text()
    assert f"polydiff train timeseries --data {gaps} --window 16 --width 8 --blocks 1 --steps 4" in card
    config = json.loads((run / "config.json").read_text())
    assert (config["format_version"], config["command"], config["domain"]) == (1, "train", "timeseries")
    pipeline = load_model(str(run))
    assert (pipeline.config.features, pipeline.config.window, pipeline.config.step) == (("low", "high"), 16, 86400.0)
    seen = table()[["low", "high"]].iloc[:42]  # the first 70 %
    np.testing.assert_allclose(pipeline.model.centre.numpy(), seen.mean().to_numpy(), rtol=1e-12)
    np.testing.assert_allclose(pipeline.model.scale.numpy(), seen.std(ddof=0).to_numpy(), rtol=1e-12)


def test_a_stopped_run_goes_on_and_a_second_start_is_refused(run: Path, gaps: Path, tmp_path: Path, capsys) -> None:
    out = trained(tmp_path / "run", "--data", gaps, steps=2)
    assert polydiff("train", "timeseries", *SMALL, "--data", gaps, "--steps", 2, "--out", out) == 2
    assert "resume" in capsys.readouterr().err
    assert polydiff("train", "timeseries", "--out", out, "--resume", "--steps", 4) == 0
    whole, parts = (load_model(str(folder)).model.state_dict() for folder in (run, out))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_sample_keeps_what_came_to_the_letter(run: Path, gaps: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "filled.csv"
    words = ["--quantiles", 0.05, 0.5, 0.95, "--plot", tmp_path / "plot.png"]
    assert polydiff("sample", "timeseries", gaps, "-o", out, "--model", run, *DRAWN, *words) == 0
    said = capsys.readouterr().out
    before, after = cells(gaps), cells(out)
    ahead = [f"{name}@{level}" for level in ("0.05", "0.5", "0.95") for name in ("low", "high")]
    assert after[0] == [*before[0], *ahead]
    assert len(after) == len(before)
    missing = 0
    for old, new in zip(before[1:], after[1:], strict=True):
        for k in (0, 1, 2):
            assert new[k] == old[k] or (old[k] == "" and np.isfinite(float(new[k])))
        for k in (1, 2):
            missing += old[k] == ""
            low, middle, high = (float(new[j]) for j in (k + 2, k + 4, k + 6))
            assert low <= middle <= high
            assert float(new[k]) == middle  # filled with the median
            assert old[k] == "" or low == high
    assert missing > 10
    assert f"{missing} cells filled" in said and "the model's" not in said
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in tmp_path.iterdir()} == {"filled.csv", "plot.png"}  # nothing unfinished


def test_sample_is_the_same_again_and_mean_is_another_summary(run: Path, gaps: Path, tmp_path: Path) -> None:
    for name, words in {"a": [], "b": [], "c": ["--seed", 1], "d": ["--mean"]}.items():
        path = tmp_path / f"{name}.csv"
        assert polydiff("sample", "timeseries", gaps, "-o", path, "--model", run, *DRAWN, *words) == 0
    a, b, c, d = ((tmp_path / f"{name}.csv").read_bytes() for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3
    found = load_model(str(run)).impute(table().set_index("day"), count=4, steps=2)
    drawn = pd.read_csv(tmp_path / "a.csv")
    np.testing.assert_allclose(found.to_numpy(), drawn[["low", "high"]].to_numpy(), rtol=1e-6)


def test_a_horizon_adds_rows_that_follow(run: Path, gaps: Path, tmp_path: Path) -> None:
    out = tmp_path / "filled.csv"
    words = ["--horizon", 20, "--quantiles", 0.1, 0.9, "--plot", tmp_path / "plot.svg"]
    assert polydiff("sample", "timeseries", gaps, "-o", out, "--model", run, *DRAWN, *words) == 0
    plain = tmp_path / "plain.csv"
    assert polydiff("sample", "timeseries", gaps, "-o", plain, "--model", run, *DRAWN, "--quantiles", 0.1, 0.9) == 0
    found = cells(out)
    assert found[: len(cells(plain))] == cells(plain)  # a horizon changes nothing of what lies before
    ahead = found[len(cells(plain)) :]
    days = pd.date_range("2021-04-30", periods=20, freq="D").strftime("%Y-%m-%d")
    assert [row[0] for row in ahead] == list(days)
    values = np.array([row[1:] for row in ahead], dtype=float)
    assert np.isfinite(values).all()
    assert (values[:, 2:4] <= values[:, 4:6]).all() and (values[:, 2:4] < values[:, 4:6]).any()
    assert not out.read_text().endswith("\n")  # as the input
    assert (tmp_path / "plot.svg").read_text().lstrip().startswith("<?xml")


def test_parquet_keeps_its_types(run: Path, tmp_path: Path) -> None:
    frame = table()
    frame["day"] = pd.to_datetime(frame["day"])
    frame["high"] = frame["high"].round().astype("Int64")
    frame["remark"] = "ok"
    frame[["remark", "high", "day", "low"]].to_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    words = ["--carry", "remark", "--horizon", 3]
    assert polydiff("sample", "timeseries", tmp_path / "in.parquet", "-o", out, "--model", run, *DRAWN, *words) == 0
    before, after = pd.read_parquet(tmp_path / "in.parquet"), pd.read_parquet(out)
    assert list(after.columns) == list(before.columns)
    assert list(after.dtypes) == list(before.dtypes)
    assert len(after) == len(before) + 3
    for name in ("low", "high"):
        seen = before[name].notna()
        assert after[name][: len(before)][seen].tolist() == before[name][seen].tolist()
        assert not after[name].isna().tolist().count(True)
    assert set(after["day"].diff().dropna()) == {pd.Timedelta(days=1)}
    assert after["remark"].isna().tolist() == [False] * len(before) + [True] * 3


def test_without_a_model_one_is_fitted_and_kept(gaps: Path, tmp_path: Path, capsys) -> None:
    words = ["--fit-steps", 3, "--window", 8, "--keep", tmp_path / "kept"]
    assert polydiff("sample", "timeseries", gaps, "-o", tmp_path / "a.csv", *DRAWN, *words) == 0
    said = capsys.readouterr().out
    assert "3 training steps, then judging on held-out cells" in said and "use it by --model" in said
    again = ["--model", tmp_path / "kept"]
    assert polydiff("sample", "timeseries", gaps, "-o", tmp_path / "b.csv", *DRAWN, *again) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert load_model(str(tmp_path / "kept")).config.window == 8


def test_an_interrupted_fit_goes_on_where_it_is_kept(gaps: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    words = ["sample", "timeseries", gaps, *DRAWN, "--window", 8, "--no-judge", "--fit-steps", 6]
    assert polydiff(*words, "-o", tmp_path / "whole.csv", "--keep", tmp_path / "whole") == 0
    said = capsys.readouterr().out
    assert "6 training steps" in said and "--fit-steps" in said and "minute" not in said and "held-out" not in said
    plain, batches = Windows.batch, []

    def batch(self, indices):
        batches.append(1)
        if len(batches) == 5:
            signal.raise_signal(signal.SIGINT)
        return plain(self, indices)

    kept = tmp_path / "kept"
    with monkeypatch.context() as patched:
        patched.setattr(Windows, "batch", batch)
        assert polydiff(*words, "-o", tmp_path / "o.csv", "--keep", kept) == 130
    said = capsys.readouterr().err
    assert f"of 6; all is saved in {kept / 'run'}" in said and " 6 of 6" not in said
    assert polydiff(*words, "-o", tmp_path / "o.csv", "--keep", kept, "--seed", 1) == 2
    assert str(kept / "run") in capsys.readouterr().err
    assert polydiff(*words, "-o", tmp_path / "o.csv", "--keep", kept) == 0
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert {path.name for path in kept.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    assert not (kept / "run").exists()


def test_a_table_without_gaps_comes_back(run: Path, tmp_path: Path) -> None:
    whole = table().ffill().to_csv(index=False)
    (tmp_path / "whole.csv").write_text(whole)
    assert (
        polydiff("sample", "timeseries", tmp_path / "whole.csv", "-o", tmp_path / "o.csv", "--model", run, *DRAWN) == 0
    )
    assert (tmp_path / "o.csv").read_text() == whole


def test_columns_that_are_empty_or_count_can_be_carried(tmp_path: Path, capsys) -> None:
    rows = [f"{k + 5},{'' if k % 4 == 1 else k % 3},{k % 5 + 0.5}," for k in range(24)]
    (tmp_path / "in.csv").write_text("\n".join(["id,low,high,snow", *rows, ""]))
    words = ["sample", "timeseries", tmp_path / "in.csv", "-o", tmp_path / "o.csv", *DRAWN, "--fit-steps", 1]
    assert polydiff(*words, "--window", 8, "--no-judge", "--carry", "snow") == 0
    assert "column 'id' looks like a counter; --carry id leaves it as it is" in (said := capsys.readouterr().out)
    assert said.count("counter") == 1
    assert polydiff(*words, "--window", 8, "--no-judge", "--carry", "snow", "id") == 0
    assert "counter" not in capsys.readouterr().out
    before, after = cells(tmp_path / "in.csv"), cells(tmp_path / "o.csv")
    assert [(row[0], row[3]) for row in after] == [(row[0], row[3]) for row in before]
    assert all(row[1] for row in after)


def test_what_looks_like_a_counter() -> None:
    assert counts(np.array([3.0, 5.0, 7.0])) and counts(np.array([2.0, 1.0, 0.0]))
    for values in ([1, 1, 1], [0.5, 1.5, 2.5], [1, 2, 4], [1, np.nan, 3], [1, 2]):
        assert not counts(np.array(values, dtype=float))


def test_columns_of_text_are_left_out_of_training(tmp_path: Path, capsys) -> None:
    frame = table()
    frame["remark"] = "ok"
    frame.to_csv(tmp_path / "remarks.csv", index=False)
    run = trained(tmp_path / "run", "--data", tmp_path / "remarks.csv", "--carry", "remark")
    assert load_model(str(run)).config.features == ("low", "high")
    words = ["--windows", 2, "--samples", 2, "--rates", 0.5, "--steps", 1, "--no-progress"]
    capsys.readouterr()
    assert polydiff("evaluate", "timeseries", "--model", run, *words, "--out", tmp_path / "found") == 0
    assert "window/s" not in capsys.readouterr().err


def test_short_series_may_be_shorter_than_a_window(tmp_path: Path) -> None:
    for k in range(8):
        table(20 + k).drop(columns="day").to_csv(tmp_path / f"{k}.csv", index=False)
    data = data_of(Train(data=str(tmp_path), window=32), "train")
    assert len(data) == 8 and data.ragged


def test_pictures_alone_load_their_library() -> None:
    code = "import sys, polydiff.timeseries.sample; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_one_row_and_columns_in_another_order_are_filled(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("high,low\n47.5,\n")
    assert polydiff("sample", "timeseries", tmp_path / "in.csv", "-o", tmp_path / "o.csv", "--model", run, *DRAWN) == 0
    head, row = (tmp_path / "o.csv").read_text().splitlines()
    assert head == "high,low"
    assert row.split(",")[0] == "47.5"
    assert abs(float(row.split(",")[1])) < 10  # of `low`, not of `high`


def test_calibrated_solvers_are_kept_and_used(run: Path, gaps: Path, tmp_path: Path, capsys) -> None:
    folder = load_model(str(run)).save_pretrained(tmp_path / "model")
    words = ["calibrate", "timeseries", "--model", folder, "--calls", 2, "--count", 8, "--fine", 10]
    words += ["--iterations", 1, "--batch-size", 5, "--no-progress"]
    assert polydiff(*words) == 2
    assert "--data" in capsys.readouterr().err
    assert polydiff(*words, "--data", gaps) == 0
    said = capsys.readouterr().out
    calibrated, best = (float(found) for found in re.findall(r"([\d.e-]+) (?:deviations|by the best)", said))
    assert calibrated <= best
    assert polydiff("sample", "timeseries", gaps, "-o", tmp_path / "o.csv", "--model", folder, *DRAWN) == 0
    assert "the model's solver calibrated for 2 calls" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--data", "/nowhere/at/all"], "nowhere"),
        (["train", "--horizon", 3], "--horizon"),
        (["train", "--targets", "forecast", "--horizon", 16, "--window", 16], "--horizon"),
        (["train", "--targets", "random", "random"], "--targets"),
        (["train", "--covariates", "none"], "--covariates"),
        (["train", "--network", "csdi", "--inducing", 3], "--inducing"),
        (["train", "--network", "csdi", "--schedule", "linear"], "--schedule"),
        (["train", "--data", "elnino", "--targets", "historical"], "no gaps"),
        (["train", "--heads", 3, "--width", 8], "--heads: got 3"),
        (["train", "--width", 6, "--network", "csdi"], "--heads: got 8"),
        (["train", "--width", 1], "--width: got 1"),
        (["train", "--data", "FOLDER/named.csv"], "--carry keeps"),
        (["train", "--data", "FOLDER/named.csv", "--carry", "nope"], "--carry: got 'nope'"),
        (["train", "--data", "co2", "--carry", "co2"], "--carry"),
        (["train", "--data", "FOLDER/short.csv", "--window", 8], "--window: got 8, expected at most 6"),
        (["train", "--data", "FOLDER/one.csv"], "1 row, too few"),
        (["train", "--resume"], "--resume"),
        (["sample", "--model", "RUN"], "input"),
        (["sample", "/nowhere/at/all.csv", "--model", "RUN"], "nowhere"),
        (["sample", "FOLDER/gaps.txt", "--model", "RUN"], ".csv"),
        (["sample", "FOLDER/text.csv", "--model", "RUN"], "column 'low', row 2: 'warm' is no number; --carry"),
        (["sample", "FOLDER/infinite.csv", "--model", "RUN"], "column 'low', row 2"),
        (["sample", "FOLDER/twice.csv", "--model", "RUN"], "rows 1 and 2 have the same time stamp"),
        (["sample", "FOLDER/unsorted.csv", "--model", "RUN"], "row 2"),
        (["sample", "FOLDER/other.csv", "--model", "RUN"], "without high"),
        (["sample", "FOLDER/other.csv", "--model", "RUN"], "with higher"),
        (["sample", "FOLDER/more.csv", "--model", "RUN"], "--carry 'number of' leaves"),
        (["sample", "FOLDER/empty.csv"], "empty.csv: column 'low' is empty; --carry low leaves it as it is"),
        (["sample", "FOLDER/one.csv"], "1 row, too little"),
        (["sample", "FOLDER/whole.csv"], "whole.csv: nothing to do"),
        (["sample", "FOLDER/good.csv", "--window", 3], "--window: got 3, expected at most 2"),
        (["sample", "FOLDER/good.csv", "--time-column", "when"], "--time-column: got 'when'"),
        (["sample", "FOLDER/good.csv", "--carry", "nope"], "--carry: got 'nope'"),
        (["sample", "FOLDER/good.csv", "--horizon", -1], "--horizon: got -1"),
        (["sample", "FOLDER/good.csv", "-o", "/proc/nowhere/out.csv"], "/proc/nowhere"),
        (["sample", "FOLDER/good.csv", "--plot", "/proc/nowhere/out.png"], "/proc/nowhere"),
        (["sample", "FOLDER/good.csv", "--model", "RUN", "--window", 8], "--window"),
        (["sample", "FOLDER/good.csv", "--model", "RUN", "--quantiles", 0.5, 0.5], "--quantiles"),
        (["sample", "FOLDER/good.csv", "--model", "RUN", "--quantiles", 1.5], "--quantiles: got 1.5"),
        (["sample", "FOLDER/good.csv", "--model", "RUN", "--plot", "a.gif"], "--plot"),
        (["sample", "FOLDER/good.csv", "--model", "RUN", "--out", "a.parquet"], "--out"),
        (["sample", "FOLDER/good.csv", "--model", "RUN", "--out", "FOLDER/good.csv"], "--out"),
        (["sample", "FOLDER/good.csv", "--model", "/nowhere/at/all"], "nowhere"),
        (["calibrate", "--model", "/nowhere/at/all"], "nowhere"),
        (["evaluate", "--model", "RUN", "--data", "elnino"], "--data"),
        (["evaluate", "--model", "RUN", "--targets", "forecast", "--horizon", 16], "--horizon"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(words: list[object], said: str, run: Path, tmp_path: Path, capsys) -> None:
    for name, text in {
        "gaps.txt": "a\n1\n",
        "good": "low,high\n1,2\n,3\n",
        "text": "low,high\n1,2\nwarm,3\n",
        "infinite": "low,high\n1,2\ninf,3\n",
        "twice": "date,low,high\n2021-01-01,1,2\n2021-01-01,2,3\n",
        "unsorted": "date,low,high\n2021-01-02,1,2\n2021-01-01,2,3\n",
        "other": "low,higher\n1,2\n",
        "empty": "low,high\n,2\n,3\n,4\n",
        "one": "low,high\n,2\n",
        "whole": "low,high\n1,2\n3,4\n5,6\n",
        "named": "low,name\n1,a\n2,b\n",
        "more": "low,number of,high\n1,3,2\n,4,3\n",
        "short": "low,high\n" + "1,2\n3,4\n" * 4 + "5,6\n",
    }.items():
        (tmp_path / (name if "." in name else f"{name}.csv")).write_text(text)
    words = [run if word == "RUN" else str(word).replace("FOLDER", str(tmp_path)) for word in words]
    out = [] if words[0] == "calibrate" or {"--out", "-o"} & {*words} else ["--out", tmp_path / "out"]
    if words[0] == "sample" and out:
        out = ["--out", tmp_path / "out.csv"]
    assert polydiff(words[0], "timeseries", *words[1:], *out) == 2
    told, error = capsys.readouterr()
    assert "fitting" not in told and "sample paths" not in told
    assert said in error
    assert error.startswith("polydiff: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()
