"""The mutation score of the core's fast tests: textbook bugs, each in a copy of the core, and the test that sees it.

    python -m tests.benchmarks.mutants [--only NAME ...] [--jobs N]

The bugs are those of `_mutants`. For each one, its module is changed in a copy of the repository, and pytest runs the
core's tests on the copy until the first failure: those of the module itself, then, in another process, those that
import it and the rest. Tests of files, options and processes, which know no mathematics, are left out. A mutant is

    killed      if a test fails,
    survived    if none does, or if 60 seconds of processor time do not suffice to tell,
    broken      if the tests cannot be collected: a bug that stops an import is no test of the tests.

The copy without a bug is run first, without the limit, and must pass. Every run is forked from a process that has the
libraries loaded but nothing of polydiff. Results are written after each mutant; `--only` replaces its own ones. The
exit status is 1 unless all are killed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import queue
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ._mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "mutants.json"
LIMIT = 60
"""seconds of processor time per mutant"""
PRELOAD = [
    "torch",
    "torchvision",
    "torchdiffeq",
    "scipy.stats",
    "scipy.integrate",
    "numpy",
    "diffusers",
    "hypothesis.strategies",
    "pytest",
]
LEFT_OUT = {"checkpoints", "commands", "config", "folder", "mutants", "pipeline", "report", "resume", "training"}
"""Tests about files, options and processes; and the one about the mutants themselves."""
TESTED_IN = {
    "ancestral": ["samplers"],
    "ddim": ["samplers"],
    "dpm_solver": ["multistep", "samplers"],
    "gaussian": ["laws", "distributions", "estimates"],
    "categorical": ["laws", "distributions", "tokens"],
    "score_entropy": ["score_entropy"],
    "product": ["product", "laws"],
    "kernel": ["laws", "vdm"],
    "noise": ["noise", "laws", "distributions"],
    "clouds": ["noise", "laws", "distributions"],
    "ode": ["samplers"],
    "sampling": ["samplers", "sde"],
    "spaces": ["multistep"],
    "truncation": ["prior"],
    "cold": ["interpolants", "samplers"],
    "case": ["matrix"],
    "layout": ["layout", "tokens", "structure", "inpainting"],
    "guidance": ["denoisers"],
}
"""Modules whose tests are not, or not only, in the file of their name."""


class Outcome(NamedTuple):
    """What came of one run."""

    status: str
    """killed, survived or broken"""
    by: str
    """the first test that failed, or why there is none"""
    seconds: float
    """of processor time"""


class Recorder:
    """A pytest plugin that keeps the first failure."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def mutated(mutant: Mutant, source: str) -> str:
    """The module with the bug; a ValueError unless the old text is there exactly once and the new one compiles."""
    if source.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.name}: its text occurs {source.count(mutant.old)} times in core/{mutant.module}.py, not once"
        )
    result = source.replace(mutant.old, mutant.new)
    try:
        compile(result, mutant.module, "exec")
    except SyntaxError as error:
        raise ValueError(f"{mutant.name}: {error}") from error
    return result


def files_for(module: str) -> tuple[list[str], list[str]]:
    """The files of tests: those about a module, and the others, which import it or not, in this order."""
    found = {path.stem.removeprefix("test_"): path for path in sorted((ROOT / "tests" / "core").glob("test_*.py"))}
    own = [name for name in TESTED_IN.get(module, [module]) if name in found]
    rest = [name for name in found if name not in LEFT_OUT and name not in own]
    imports = {name: f"polydiff.core.{module} " in found[name].read_text(encoding="utf-8") for name in rest}
    rest.sort(key=lambda name: (not imports[name], found[name].stat().st_size))
    first, second = ([f"tests/core/test_{name}.py" for name in names] for names in (own, rest))
    return first, second


def copied(folder: Path) -> Path:
    """A copy of the packages and the tests in a folder, importable by its `links`."""
    ignored = shutil.ignore_patterns("__pycache__", "results", ".*")
    packages = [path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()]
    (folder / "links" / "polydiff").mkdir(parents=True)
    for name in [*packages, "tests"]:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in packages:
        (folder / "links" / "polydiff" / name).symlink_to(folder / name, target_is_directory=True)
    for name in ("pyproject.toml", "README.md", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def tested(folder: Path, files: Sequence[str], limit: float, report: Path) -> None:
    """Runs pytest in a copy, in this process, and writes the outcome as JSON."""
    if limit < math.inf:
        seconds = max(1, math.ceil(limit))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    os.chdir(folder)
    output = os.open(report.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # The copy must come before the checkout, which the parent may have on its path.
    sys.path[:] = [str(folder / "links"), str(folder), *(p for p in sys.path if p and not Path(p).is_relative_to(ROOT))]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("polydiff", "tests")]:
        del sys.modules[name]
    os.environ["PYTHONPATH"] = str(folder / "links")
    torch.set_num_threads(1)
    import pytest

    import polydiff.core

    assert Path(polydiff.core.__file__ or "").is_relative_to(folder), polydiff.core.__file__
    recorder = Recorder()
    options = ["-x", "-q", "--import-mode=importlib", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
    status = int(pytest.main([*options, *files], plugins=[recorder]))
    report.write_text(json.dumps({"status": status, "failed": recorder.failed, "seconds": time.process_time()}))
    sys.stdout.flush()
    os._exit(0)


def run(folder: Path, module: str, limit: float = math.inf) -> Outcome:
    """The tests on a copy as it stands; in two parts, so that most bugs do not wait for all tests to be collected."""
    outcome, spent = Outcome("survived", "", 0.0), 0.0
    for files in filter(None, files_for(module)):
        outcome = part(folder, files, limit - spent)
        spent += outcome.seconds
        if outcome.status != "survived" or outcome.by:
            break
    return outcome._replace(seconds=round(spent, 1))


def part(folder: Path, files: list[str], limit: float) -> Outcome:
    """Some of the tests, in a process of their own."""
    report = folder / "outcome.json"
    report.unlink(missing_ok=True)
    process = multiprocessing.get_context("forkserver").Process(target=tested, args=(folder, files, limit, report))
    process.start()
    # Processor time is what counts; this is for a run that waits for something.
    process.join(20 * LIMIT)
    if process.is_alive():
        process.kill()
        process.join()
        return Outcome("survived", "it waits for ever", 0.0)
    if not report.exists():
        late = process.exitcode == -signal.SIGXCPU
        return Outcome("survived", "time is up", limit) if late else Outcome("broken", "the run crashed", 0.0)
    found = json.loads(report.read_text())
    status = {0: "survived", 1: "killed"}.get(found["status"], "broken")
    return Outcome(status, found["failed"], found["seconds"])


def judged(mutant: Mutant, folder: Path) -> Outcome:
    """A mutant in a copy, which is as before afterwards."""
    path = folder / "core" / f"{mutant.module}.py"
    source = (ROOT / "core" / f"{mutant.module}.py").read_text(encoding="utf-8")

    def put(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        # Compiled files are told apart by second and size, which may be equal.
        for compiled in (folder / "core" / "__pycache__").glob(f"{mutant.module}.*.pyc"):
            compiled.unlink()

    put(mutated(mutant, source))
    try:
        return run(folder, mutant.module, LIMIT)
    finally:
        put(source)


def machine() -> str:
    """The processor, without anything that tells the machine apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{(models or [platform.processor()])[0]}; Python {platform.python_version()}, torch {torch.__version__},"
        " one thread per run"
    )


def write(outcomes: dict[str, Outcome]) -> None:
    """The report, in the order of the table; of mutants that there are no more nothing is kept."""
    kept = {mutant.name: outcomes[mutant.name] for mutant in MUTANTS if mutant.name in outcomes}
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "command": "python -m tests.benchmarks.mutants",
        "mutants": len(MUTANTS),
        **{status: sum(one.status == status for one in kept.values()) for status in ("killed", "survived", "broken")},
        "outcomes": {name: one._asdict() for name, one in kept.items()},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def known() -> dict[str, Outcome]:
    """What the last run left."""
    if not RESULT.exists():
        return {}
    return {name: Outcome(**one) for name, one in json.loads(RESULT.read_text(encoding="utf-8"))["outcomes"].items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutants or modules, by the beginning of their names")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if options.only is None or m.name.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"no mutant is called {options.only}")
    for mutant in MUTANTS:
        mutated(mutant, (ROOT / "core" / f"{mutant.module}.py").read_text(encoding="utf-8"))

    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.set_forkserver_preload(PRELOAD)
    outcomes = known() if options.only is not None else {}
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in chosen:
        waiting.put(mutant)
    lock = threading.Lock()

    def work(folder: Path) -> None:
        while True:
            try:
                mutant = waiting.get_nowait()
            except queue.Empty:
                return
            outcome = judged(mutant, folder)
            with lock:
                outcomes[mutant.name] = outcome
                print(f"{outcome.status:9}{outcome.seconds:5.1f} s  {mutant.name}   [{outcome.by}]", flush=True)
                write(outcomes)

    with tempfile.TemporaryDirectory() as temporary:
        folders = [copied(Path(temporary).resolve() / str(i)) for i in range(max(1, options.jobs))]
        sound = run(folders[0], "schedules")
        print(f"without a bug: {'passed' if sound.status == 'survived' else sound}, {sound.seconds} s", flush=True)
        if sound.status != "survived":
            print((folders[0] / "outcome.log").read_text(encoding="utf-8")[-3000:])
            return 1
        threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    left = [name for name in (mutant.name for mutant in chosen) if outcomes[name].status != "killed"]
    print(f"{len(chosen) - len(left)} of {len(chosen)} killed", *left, sep="\n  ")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
