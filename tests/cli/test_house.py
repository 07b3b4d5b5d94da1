"""The house stands: mapping and folders agree, imports point down, nothing unsafe, and the wheel works elsewhere."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydiff.cli.main import DOMAINS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAPPING: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
FOLDERS = sorted(MAPPING.values())

# What each floor may import besides itself. A domain stands on the core alone; purification may use the domains.
SIBLINGS = {"purification": {"vision", "text", "audio", "molecules", "timeseries"}}
ALLOWED = {
    "core": set[str](),
    "cli": {"core", *DOMAINS},
    **{domain: {"core", *SIBLINGS.get(domain, ())} for domain in DOMAINS},
}

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "torch.hub.load"}


def modules() -> list[Path]:
    """Every module of every package."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Full names of what a module imports, wherever in the module; names imported from a package count as modules."""
    package = ["polydiff", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*whole, alias.name]) for alias in node.names)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_mapping_packages_and_folders_agree():
    setuptools = PROJECT["tool"]["setuptools"]
    assert setuptools["packages"] == list(MAPPING)
    assert {f"polydiff.{folder}": folder for folder in FOLDERS} == MAPPING
    with_init = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if not path.parent.name.startswith("."))
    assert with_init == FOLDERS
    assert sorted(DOMAINS) == sorted(set(FOLDERS) - {"core", "cli"})
    for folder in FOLDERS:
        assert (ROOT / folder / "py.typed").is_file()
    deeper = [name(path) for folder in FOLDERS for path in (ROOT / folder).glob("*/**/*.py")]
    assert deeper == []  # a package below a folder would need a line of its own in the mapping
    assert set(FOLDERS) <= set(PROJECT["tool"]["basedpyright"]["include"])


@pytest.mark.parametrize("path", modules(), ids=name)
def test_imports_point_down(path: Path):
    floor = path.relative_to(ROOT).parts[0]
    for imported in imports(path):
        words = imported.split(".")
        assert words[0] not in FOLDERS, f"{imported}: import it relatively"
        if words[0] == "polydiff":
            assert words[1] in {floor, *ALLOWED[floor]}, f"{floor} may not import {imported}"


@pytest.mark.parametrize("path", modules(), ids=name)
def test_nothing_unsafe(path: Path):
    assert not {imported.split(".")[0] for imported in imports(path)} & UNSAFE_MODULES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in UNSAFE_CALLS
            for keyword in node.keywords:
                setting = (keyword.arg, ast.unparse(keyword.value))
                assert setting not in {("allow_pickle", "True"), ("weights_only", "False")}
                assert setting != ("trust_remote_code", "True")


def test_unsafe_code_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The two checks above fail on what they are for."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    module = tmp_path / "core" / "bad.py"
    module.parent.mkdir()
    for line in (
        "import pickle",
        "from pickle import loads",
        "torch.load(f)",
        "eval('1')",
        "np.load(f, allow_pickle=True)",
    ):
        module.write_text(line)
        with pytest.raises(AssertionError):
            test_nothing_unsafe(module)
    for line in ("from ..vision import data", "from .. import vision", "import polydiff.vision.data", "import cli"):
        module.write_text(f"def f():\n    {line}")
        with pytest.raises(AssertionError):
            test_imports_point_down(module)
    module.write_text("from . import errors\nfrom .errors import ConfigError\nfrom ..core import errors\nimport torch")
    test_imports_point_down(module)


def test_every_module_explains_itself():
    for path in modules():
        if path.name == "__init__.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{name(path)}: no docstring"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built through the sdist from a copy of the tree in which an old build lies about."""
    copy = tmp_path_factory.mktemp("tree") / "polydiff"
    rubbish = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
    shutil.copytree(ROOT, copy, ignore=rubbish)
    stale = copy / "build" / "lib" / "polydiff" / "core" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    target = copy.parent / "dist"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(copy)]
    subprocess.run(command, check=True, capture_output=True, env=neutral())
    (built,) = target.glob("*.whl")
    return built


def neutral() -> dict[str, str]:
    """The environment without what would lead Python back to this tree."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COVERAGE"))}


def test_wheel_holds_the_packages_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        inside = {entry for entry in archive.namelist() if ".dist-info/" not in entry}
        metadata = [entry for entry in archive.namelist() if entry.endswith("licenses/LICENSE")]
    expected = {f"polydiff/{name(path)}" for path in modules()}
    for folder in FOLDERS:
        data = [ROOT / folder / "py.typed", *(ROOT / folder).glob("pretrained/*/*")]
        expected |= {f"polydiff/{name(path)}" for path in data}
    assert inside == expected
    assert metadata


def test_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path):
    def run(*command: str | Path) -> str:
        arguments = [str(part) for part in command]
        done = subprocess.run(arguments, cwd=tmp_path, env=neutral(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "--without-pip", "fresh")
    fresh = tmp_path / "fresh"
    python = fresh / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # The packages of this environment, without its .pth files: those would lead to this tree.
    (site / "first.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)

    names = [".".join(["polydiff", *path.relative_to(ROOT).with_suffix("").parts]) for path in modules()]
    code = f"import importlib\nfor name in {names}: print(importlib.import_module(name).__file__)"
    files = run(python, "-c", code).splitlines()
    assert len(files) == len(names)
    assert all(Path(file).is_relative_to(fresh) for file in files)
    assert "train" in run(fresh / "bin" / "polydiff", "--help")
    assert run(fresh / "bin" / "polydiff", "--version").split()[1] == PROJECT["project"]["version"]
    assert list(tmp_path.iterdir()) == [fresh]  # importing wrote nothing
