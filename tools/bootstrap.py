"""Makes `.venv`, ready to work in; needs Python >= 3.11 and nothing else.

The packages are installed by uv, not by pip: torch, torchvision and torchaudio must come from one index as one release
train, and uv does not read pip's configuration, where a `find-links` folder with a CPU-only torch would win and break
the other two. A finished set-up leaves the mark `.venv/.ready`; a `.venv` without it is a broken attempt and is made
anew (downloads are cached).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
READY = VENV / ".ready"
PYTHON = VENV / "bin" / "python"


def run(*command: str | Path, **environment: str) -> None:
    """Run a command in the root, shown first; a failure ends the set-up with the command's own exit status."""
    print("+", *command, flush=True)
    status = subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, **environment}).returncode
    if status:
        sys.exit(status if status > 0 else 1)


def write_links() -> None:
    """`.venv/links/polydiff/<name>` -> folder, from the mapping in pyproject.toml: where type checkers look."""
    import tomllib  # here, so that an older Python reaches the message in main()

    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"]
    links = VENV / "links"
    shutil.rmtree(links, ignore_errors=True)
    for package, folder in mapping.items():
        link = links.joinpath(*package.split("."))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(ROOT / folder, target_is_directory=True)


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the one file that an older Python may meet
        sys.exit(f"polydiff needs Python >= 3.11, this is {sys.version.split()[0]}; try `make setup PYTHON=python3.12`")
    if not (READY.exists() and PYTHON.exists()):
        run(sys.executable, "-m", "venv", "--clear", VENV)
    READY.unlink(missing_ok=True)
    run(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
    timeout = os.environ.get("UV_HTTP_TIMEOUT", "300")
    run(PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, "-e", ".[dev]", UV_HTTP_TIMEOUT=timeout)
    write_links()
    run(PYTHON, "-c", "import torch, torchvision, torchaudio; print('torch', torch.__version__)")
    READY.touch()


if __name__ == "__main__":
    main()
