"""The table of textbook bugs fits the modules as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks._mutants import MUTANTS
from tests.benchmarks.mutants import LEFT_OUT, ROOT, files_for, mutated


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_bug_is_found_once_compiles_and_differs(mutant):
    source = (ROOT / "core" / f"{mutant.module}.py").read_text(encoding="utf-8")
    assert mutated(mutant, source) != source


@pytest.mark.parametrize("module", sorted({mutant.module for mutant in MUTANTS}))
def test_the_files_of_tests_are_there(module):
    first, rest = files_for(module)
    files = first + rest
    assert len(files) == len(set(files)) > 20 and all(Path(ROOT, name).is_file() for name in files)
    # Every file is among those that must pass without a bug.
    assert not {f"tests/core/test_{name}.py" for name in LEFT_OUT} & set(files)


def test_a_bug_whose_text_has_gone_is_an_error():
    with pytest.raises(ValueError, match="0 times in core/"):
        mutated(MUTANTS[0], "")
