"""Conformers of a file of SMILES: `polydiff sample molecules input.smi -o out.sdf`, or by `polydiff.molecules.sample`.

The rows are worked on in chunks, which are kept as they are finished. Chemistry runs in processes of its own where
--processes is more than 1; two chunks are then under way at a time, so that those have work while the network computes.
A chunk is drawn by itself, so neither that nor an interruption changes a bit of what is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import rdkit
import torch
from tqdm.auto import tqdm

from ..core.commands import run
from ..core.config import to_dict
from ..core.methods import GRIDS, SAMPLERS
from . import generation_sample
from .checks import check_file, rows_from
from .ensembles import Ensemble
from .generation_options import GenerationSample
from .loading import load_model, task_of
from .options import Evaluate, Sample, TaskName
from .pipeline import ConformerPipeline
from .rows import Row
from .sdf import Parts, records, report_path
from .tasks import CONFORMERS, MOLECULES, chosen, refuse
from .work import STATUSES

__all__ = ["main", "processes", "sample", "used"]

LOCAL = ("processes", "progress", "out", "model", "input", "smiles", "smiles_column", "id_column")
"""Options that may change when a run is resumed, or whose meaning is kept otherwise."""


def main(options: Sample) -> None:
    """Draw with a model of either task, which the model tells."""
    TASKS[task_of(options.model)](options)


def whole_molecules(options: Sample) -> None:
    """Draw whole molecules."""
    generation_sample.main(chosen(GenerationSample, options, CONFORMERS))


def conformers(options: Sample) -> None:
    """Write the SDF file and its table."""
    refuse(options, ["drawing"], MOLECULES)
    check_file(options.out)
    rows = rows_from(options)
    pipeline = load_model(options.model)
    pipeline.levels(options.level)
    if options.resume and options.out.exists() and not Parts(options.out).folder.exists():
        print(f"{options.out}: finished already")
        return
    print(f"{len(rows)} molecules, {used(pipeline, options)}", flush=True)
    counts = sample(pipeline, rows, options)
    told = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    print(f"{counts['conformers']} conformers in {options.out}; rows: {told}; the table is {report_path(options.out)}")


TASKS: Mapping[TaskName, Callable[[Sample], None]] = {"conformers": conformers, "molecules": whole_molecules}


def sample(pipeline: ConformerPipeline, rows: Sequence[Row], options: Sample) -> Counter[str]:
    """Draw and write; returns how many rows have each status, and how many conformers there are."""
    parts, size = Parts(options.out), options.chunk
    parts.begin(facts_of(pipeline, rows, options), options.resume, free=("chunk",))
    whole = [rows[start : start + size] for start in range(0, len(rows), size)]
    done = [number for number in range(len(whole)) if parts.has(number)]
    todo = [number for number in range(len(whole)) if number not in set(done)]
    with (
        tqdm(total=len(rows), initial=sum(len(whole[number]) for number in done), unit="molecule",
             disable=not options.progress) as bar,
        processes(options.processes) as pool,
        contextlib.closing(drawn(pipeline, whole, todo, options, pool)) as found,
    ):  # fmt: skip
        for number, ensembles in found:
            texts = [
                records(one, row.id, {"model": options.model, "seed": options.seed})
                for row, one in zip(whole[number], ensembles, strict=True)
            ]
            lines = [line_of(row, one) for row, one in zip(whole[number], ensembles, strict=True)]
            parts.write(number, "".join(texts), lines)
            bar.update(len(ensembles))
    lines = parts.finish(len(whole))
    counts = Counter(str(line["status"]) for line in lines)
    counts["conformers"] = sum(int(line["conformers"]) for line in lines)
    return counts


def drawn(
    pipeline: ConformerPipeline, whole: Sequence[Sequence[Row]], todo: Sequence[int], options: Sample,
    pool: Executor | None,
) -> Generator[tuple[int, list[Ensemble]]]:  # fmt: skip
    """(number of the chunk, its ensembles), in order."""

    def draw(number: int) -> list[Ensemble]:
        return pipeline.generate([row.smiles for row in whole[number]], options.num_conformers, **common)

    common: dict[str, Any] = {
        "level": options.level,
        "steps": options.steps,
        "sampler": None if options.sampler is None else SAMPLERS[options.sampler],
        "grid": GRIDS[options.grid],
        "seed": options.seed,
        "relax": options.relax,
        "energies": options.energies,
        "keep_duplicates": options.keep_duplicates,
        "energy_window": options.energy_window,
        "threshold": options.threshold,
        "rounds": options.rounds,
        "max_atoms": options.max_atoms,
        "timeout": options.timeout,
        "pairs": options.pairs,
        "precision": torch.bfloat16 if options.precision == "bf16" else torch.float32,
        "pool": pool,
    }
    if pool is None:
        for number in todo:
            yield number, draw(number)
        return
    ahead: list[tuple[int, Future[list[Ensemble]]]] = []
    threads = ThreadPoolExecutor(2, thread_name_prefix="chunk")
    try:
        for number in todo:
            ahead.append((number, threads.submit(draw, number)))
            if len(ahead) > 2:
                first, future = ahead.pop(0)
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def line_of(row: Row, found: Ensemble) -> dict[str, object]:
    """The row of the table."""
    return {
        "row": row.number,
        "id": row.id,
        "smiles": row.smiles,
        "status": found.status,
        "conformers": 0 if found.mol is None else found.mol.GetNumConformers(),
        "level": found.level or "",
        "seconds": f"{found.seconds:.3f}",
        "message": "; ".join(part for part in (found.message, row.note) if part),
    }


def facts_of(pipeline: ConformerPipeline, rows: Sequence[Row], options: Sample) -> dict[str, Any]:
    """What decides every bit of the result: a resumed run must share it."""
    weights = hashlib.sha256()
    for name, tensor in sorted(pipeline.model.state_dict().items()):
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    asked = hashlib.sha256(repr([(row.id, row.smiles) for row in rows]).encode()).hexdigest()
    facts = {name: value for name, value in to_dict(options).items() if name not in LOCAL}
    versions = {"torch": torch.__version__, "rdkit": rdkit.__version__}
    return facts | {"input": asked, "weights": weights.hexdigest(), "solvers": sorted(pipeline.solvers)} | versions


def used(pipeline: ConformerPipeline, options: Sample | Evaluate) -> str:
    """Which algorithm the options come to, in words."""
    sampler = None if options.sampler is None else SAMPLERS[options.sampler]
    algorithm, steps = pipeline.algorithm(options.steps, sampler)
    if algorithm is None:
        return f"the model's solver calibrated for {steps} calls"
    return f"{options.sampler or 'ancestral'}, {steps} steps"


@contextlib.contextmanager
def processes(count: int) -> Iterator[Executor | None]:
    """So many processes for chemistry; None for one, which is this.

    They are spawned, not forked: a fork would inherit locks of the threads of torch. They end with this process,
    however it ends.
    """
    if count <= 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=begin_process)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def begin_process() -> None:
    """One thread for chemistry, and one that waits for the parent's end."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


if __name__ == "__main__":
    run(Sample, main, command="sample", domain="molecules")
