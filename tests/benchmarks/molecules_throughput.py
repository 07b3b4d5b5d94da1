"""From SMILES to SDF: minutes and memory for a thousand small molecules, beside RDKit alone with as many processes.

    python -m tests.benchmarks.molecules_throughput --data-root FOLDER [--model qm9] [--count 1000] [--conformers 10]

The molecules are different ones of at most --heavy heavy atoms, by turns from FreeSolv, ESOL and QM9, of elements that
the model knows. Each side is one command in its own processes, timed from its start to its end, imports included:
`polydiff sample molecules` (as it is by default, with each of --steps network calls, and followed by MMFF94), ETKDGv3,
and ETKDGv3 followed by MMFF94. Memory is the worst moment of all processes of a command together, shared pages counted
once. The commands run one after the other; nothing else should. Results are written part by part, and parts that were
not asked for keep their entry.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polydiff.molecules.pipeline import ConformerPipeline

from ._molecules import Finished, cleared, keep, records, run, sample_command, small_molecules, statuses

RESULT = Path(__file__).parent / "results" / "molecules_throughput.json"
SEED = 0


def ours(options: argparse.Namespace, source: Path, name: str, more: list[str]) -> dict[str, Any]:
    """Our command."""
    out = cleared(options.root / f"{name.replace(' ', '-')}.sdf")
    told = ["--processes", str(options.processes), "--seed", str(SEED), *more]
    done = run(sample_command(source, out, options.model, options.conformers, *told), options.threads)
    if done.code:
        raise RuntimeError(f"{name} ended with {done.code}:\n{done.tail}")
    share = collections.Counter(statuses(out).values())
    return figures(out, done, share)


def theirs(options: argparse.Namespace, source: Path, name: str, more: list[str]) -> dict[str, Any]:
    """RDKit's."""
    out = options.root / f"{name.replace(' ', '-')}.sdf"
    command = [sys.executable, "-m", "tests.benchmarks._molecules_rdkit", str(source), str(out), *more]
    command += ["--conformers", str(options.conformers), "--processes", str(options.processes)]
    done = run(command, options.threads)
    if done.code:
        raise RuntimeError(f"{name} ended with {done.code}:\n{done.tail}")
    found = {identity for identity, _ in records(out)}
    rows = len(source.read_text(encoding="utf-8").splitlines())
    return figures(out, done, {"ok": len(found), "no-embedding": rows - len(found)})


def figures(out: Path, done: Finished, share: Mapping[str, int]) -> dict[str, Any]:
    """What is told of a command."""
    conformers = sum(1 for _ in records(out))
    return {
        "seconds": done.seconds,
        "cpu seconds": done.cpu_seconds,
        "conformers": conformers,
        "seconds per conformer": done.seconds / max(1, conformers),
        "peak bytes": done.peak_bytes,
        "statuses": dict(share),
    }


def main() -> None:
    """Run every part, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--conformers", type=int, default=10)
    parser.add_argument("--heavy", type=int, default=20)
    parser.add_argument("--steps", type=int, nargs="*", default=[5, 10], help="network calls, beside the default")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    parser.add_argument("--parts", nargs="+", help="some of the parts only")
    parser.add_argument("--root", type=Path, default=Path("runs/molecules-throughput"), help="where files are written")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    levels = ConformerPipeline.from_pretrained(options.model).config.levels
    elements = sorted({symbol for level in levels for symbol in level.elements})
    chosen = small_molecules(options.data_root, options.count, elements, options.heavy, SEED)
    options.root.mkdir(parents=True, exist_ok=True)
    source = options.root / "input.smi"
    source.write_text("".join(f"{smiles}\t{identity}\n" for smiles, identity in chosen), encoding="utf-8")
    about = {
        "command": "python -m tests.benchmarks.molecules_throughput",
        "seed": SEED,
        "model": Path(options.model).name,
        "molecules": len(chosen),
        "sources": dict(collections.Counter(identity.rpartition("-")[0] for _, identity in chosen)),
        "elements": elements,
        "heavy atoms at most": options.heavy,
        "conformers": options.conformers,
        "processes": options.processes,
        "threads of a process": options.threads,
    }
    parts = {
        "polydiff, by default": (ours, []),
        **{f"polydiff, {n} calls": (ours, ["--steps", str(n)]) for n in options.steps},
        "polydiff, relaxed": (ours, ["--relax"]),
        "ETKDGv3": (theirs, []),
        "ETKDGv3 + MMFF94": (theirs, ["--relax"]),
    }
    for name in options.parts or parts:
        side, more = parts[name]
        entry = side(options, source, name, more)
        keep(options.out, about, "runs", name, entry)
        print(
            f"{name:24} {entry['seconds'] / 60:7.2f} minutes  {entry['seconds per conformer'] * 1e3:7.1f} ms each"
            f"  {entry['peak bytes'] / 2**30:.2f} GiB  {entry['statuses']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
