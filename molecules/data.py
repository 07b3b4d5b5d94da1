"""Data sets of conformers: pairs of a draft and a target geometry, in memory, batched as one ragged graph.

The state is the displacement from the draft, y = (x - draft) / scale, both centred. From start "draft" the draft is a
conformer of distance geometry, to which the target was matched beforehand (best relabelling of equal atoms, best
proper rotation; `symmetry`), so the starting law is N(draft, scale^2 P): it depends on the molecule. From "harmonic"
and "centred" the draft is 0 and the state is x / scale. Targets: minima of B3LYP that come with the data, or minima
of MMFF94 made here; a batch says which.

Where the molecules come from and how they are split is the business of `sources` and `splits`; how drafts are made
and kept, of `preparing`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final, get_args

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor
from torch.utils.data import Dataset

from ..core.downloads import data_folder
from ..core.errors import ArgumentError, DataError
from .graphs import ELEMENTS, Arrays, assemble, structure
from .preparing import LEVELS, Broken, Entry, Options, prepare
from .readers import Source, from_file
from .sources import NAMES
from .splits import Split
from .tables import Table, join

__all__ = ["LEVELS", "NAMES", "STARTS", "Conformers", "Start", "cache_folder", "load"]

Start = Literal["draft", "harmonic", "centred"]
STARTS: tuple[Start, ...] = get_args(Start)


@final
class Conformers(Dataset[dict[str, Any]]):
    """Pairs of draft and target of M molecules, D each; index i is pair i // M of molecule i % M.

    A molecule counts once per level of theory.

    Args:
        table: of `preparing.prepare`, with at least one molecule.
        drafts: D.
        name: of the set in figures and errors.
        start: of the diffusion; "harmonic" adds the bonds to the structure.
        scale: Å, the unit of the states.
        levels: names; a batch's level is a place in these.

    Attributes:
        names: of the molecules.
        levels: those that occur, in the given order.
        pairs: (M,), how many different pairs a molecule really has, 1 … D; the others repeat them.
        problems: how many molecules failed, by reason.
        failures: (name, reason, detail) of each.

    Raises:
        DataError: no molecules. ArgumentError: start or scale.
    """

    def __init__(
        self, table: Table, *, drafts: int, name: str, start: Start, scale: float, levels: Sequence[str] = LEVELS
    ):
        if start not in STARTS:
            raise ArgumentError("start", start, " or ".join(STARTS))
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise ArgumentError("scale", scale, "a positive length in angstrom")
        self.failures = [(str(a), str(b), str(c)) for a, b, c in table["problem"]]
        self.problems: dict[str, int] = dict(sorted(Counter(reason for _, reason, _ in self.failures).items()))
        if not len(table["name"]):
            raise DataError(f"{name}: no molecule is left; failures by reason: {self.problems or 'none'}")
        self.name, self.start, self.scale, self.drafts = name, start, float(scale), drafts
        self.names: list[str] = table["name"].tolist()
        there = [LEVELS[k] for k in np.unique(table["level"])]
        self.levels = tuple(level for level in levels if level in there)
        self.pairs = torch.from_numpy(table["pairs"])
        self._table = table
        self._level = torch.tensor([self.levels.index(LEVELS[k]) for k in table["level"].tolist()])
        n, k = table["atoms"], table["references"]
        lengths = {
            "atom": n,
            "edge": n * (n - 1),
            "bond": table["bonds"],
            "chiral": table["centres"],
            "pair": n * drafts,
        }
        lengths |= {"reference": n * k, "energy": k, "mol": table["bytes"]}
        self._start = {key: np.concatenate([[0], np.cumsum(length)]).tolist() for key, length in lengths.items()}

    def __len__(self) -> int:
        return len(self.names) * self.drafts

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A batch of one."""
        return self.batch([index])

    def batch(self, indices: Sequence[int] | Tensor) -> dict[str, Any]:
        """Many pairs at once.

        Returns:
            "x_0": (rows, 3) float32, displacements from the draft in units of `scale`, each molecule centred;
            "structure": index (rows,) and num_graphs, with bonds (2, M) from start "harmonic";
            "graph": `Batch`; "level": long (B,); "draft": (rows, 3) float32 in units of `scale`.

        Raises:
            IndexError: there is no such pair; negative ones count from the end.
        """
        places = torch.as_tensor(indices, dtype=torch.int64)
        if places.numel() and not -len(self) <= int(places.min()) <= int(places.max()) < len(self):
            raise IndexError(f"{self.name}: {len(self)} pairs, asked for {int(places.min())} … {int(places.max())}")
        places = places.remainder(len(self))
        of = places.remainder(len(self.names))
        molecules, which = of.tolist(), (places // len(self.names)).tolist()
        graph = assemble([self.graph(m) for m in molecules])
        rows = []
        for m, k in zip(molecules, which, strict=True):
            size = int(self._table["atoms"][m])
            begin = self._start["pair"][m] + k * size
            rows.append(slice(begin, begin + size))
        target = torch.from_numpy(np.concatenate([self._table["target"][row] for row in rows]))
        if self.start == "draft":
            draft = torch.from_numpy(np.concatenate([self._table["draft"][row] for row in rows]))
            target, draft = (target - draft).div_(self.scale), draft.div_(self.scale)
        else:
            target, draft = target.div_(self.scale), torch.zeros_like(target)
        return {
            "x_0": target,
            "structure": structure(graph, bonds=self.start == "harmonic"),
            "graph": graph,
            "level": self._level[of],
            "draft": draft,
        }

    def graph(self, molecule: int) -> Arrays:
        """The graph of a molecule as compact arrays."""
        cut = self._cut
        bond, chiral = cut("bond", molecule).T, cut("chiral", molecule).T
        return Arrays(cut("atom", molecule), cut("edge", molecule), bond, chiral)

    def molecule(self, molecule: int) -> Chem.Mol:
        """A molecule with its reference conformers, the best first; energies in kcal/mol as their property "energy"."""
        mol = Chem.Mol(self._cut("mol", molecule).tobytes())  # pyright: ignore[reportCallIssue, reportArgumentType]
        energies = self._cut("energy", molecule).tolist()
        positions = self._cut("reference", molecule).reshape(len(energies), -1, 3)
        for x, energy in zip(positions.astype(np.float64), energies, strict=True):
            conformer = Chem.Conformer(len(x))
            conformer.SetPositions(x)
            conformer.Set3D(True)
            if np.isfinite(energy):
                conformer.SetDoubleProp("energy", energy)
            mol.AddConformer(conformer, assignId=True)
        mol.SetProp("_Name", self.names[molecule])
        return mol

    @cached_property
    def molecules(self) -> list[Chem.Mol]:
        """All molecules with their reference conformers, (M,)."""
        return [self.molecule(k) for k in range(len(self.names))]

    @cached_property
    def elements(self) -> Mapping[str, tuple[str, ...]]:
        """The elements that occur at each level, as symbols in the order of `ELEMENTS`."""
        whose = np.repeat(self._level.numpy(), self._table["atoms"])
        found = {level: np.unique(self._table["atom"][whose == k, 0]) for k, level in enumerate(self.levels)}
        return {level: tuple(ELEMENTS[k] for k in places) for level, places in found.items()}

    def fingerprint(self) -> str:
        """SHA-256 over molecules, pairs, start and scale: equal sets have equal fingerprints."""
        digest = hashlib.sha256(f"{self.start} {self.scale} {self.drafts} {self.levels}".encode())
        for key in ("atoms", "level", "atom", "edge", "chiral", "draft", "target"):
            digest.update(np.ascontiguousarray(self._table[key]).data)
        return digest.hexdigest()

    def _cut(self, key: str, molecule: int) -> np.ndarray:
        start = self._start[key]
        return self._table[key][start[molecule] : start[molecule + 1]]


def cache_folder() -> Path:
    """Where prepared molecules are kept: POLYDIFF_CACHE, else `$XDG_CACHE_HOME/polydiff` or `~/.cache/polydiff`."""
    own = os.environ.get("POLYDIFF_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polydiff"
    return base.expanduser() / "molecules"


def load(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    split: Split = "train",
    *,
    start: Start = "draft",
    scale: float = 0.25,
    data_root: str | os.PathLike[str] | None = None,
    count: int | None = None,
    drafts: int = 4,
    levels: Sequence[str] | None = None,
    seed: int = 0,
    attempts: int | None = None,
) -> Conformers:
    """Data sets by name (`NAMES`), or from the user's own files, as one.

    The first use prepares the molecules on all cores and keeps the result in `cache_folder`; an interrupted preparation
    goes on where it stopped.

    Args:
        source: "small" (no download), "mini-qm9", "qm9", "esol", "freesolv"; or a path: `.sdf` with 3-D conformers,
            which are then the references; or `.smi`, `.txt`, `.csv` of SMILES, of which minima of MMFF94 are made. See
            `sources`. Several are put one after another.
        split: "train", "valid" or "test".
        start: of the diffusion: "draft", "harmonic" or "centred".
        scale: Å, the unit of the states.
        data_root: where the named sets lie or are downloaded to; default: environment variable POLYDIFF_DATA, else
            `~/.cache/polydiff`. Files already there are only read.
        count: of molecules of each source at most, the first of a fixed random order.
        drafts: pairs per molecule, D.
        levels: names of LEVELS, in the order in which the network knows them. Default: what the set has, "B3LYP" for
            qm9, "MMFF94" where only SMILES are given. "MMFF94" is made of any molecule; "B3LYP" is passed over where
            a set has none. The conformers of an SDF file are "own", unless levels are named that do not say "own": then
            they count as the first of these.
        seed: of the drafts.
        attempts: conformers drawn per molecule where minima are made; default `drafts` for training, else
            5 * `drafts`, as the reference ensemble.

    Raises:
        DataError: names the file or set at fault and the way out. ArgumentError: source, split, start, scale, count,
            drafts, levels or attempts.
    """
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not sources or len(set(map(str, sources))) < len(sources):
        raise ArgumentError("source", sources, "names or files, each once")
    if split not in get_args(Split):
        raise ArgumentError("split", split, "'train', 'valid' or 'test'")
    if start not in STARTS:
        raise ArgumentError("start", start, " or ".join(STARTS))
    for name, value in (("count", count), ("drafts", drafts), ("attempts", attempts)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ArgumentError(name, value, "a positive number")
    if levels is not None and (not levels or len(set(levels)) < len(levels) or not set(levels) <= set(LEVELS)):
        raise ArgumentError("levels", levels, "some of " + ", ".join(LEVELS) + ", each once")
    found = [located(one, data_root) for one in sources]
    known = tuple(level for level in LEVELS if any(level in one.levels for one in found))
    relaxed = "MMFF94" in (levels or known)
    options = Options(
        drafts=drafts if start == "draft" or relaxed else 1,
        embedded=start == "draft",
        attempts=max(attempts or (drafts if split == "train" else 5 * drafts), drafts) if relaxed else 0,
        seed=seed,
    )
    tables = [prepared(one, split, levels, count, options) for one in found]
    names = " + ".join(one.name for one in found)
    return Conformers(
        join(tables), drafts=options.drafts, name=names, start=start, scale=scale, levels=levels or known
    )  # fmt: skip


def located(source: str | os.PathLike[str], data_root: str | os.PathLike[str] | None) -> Source:
    """Where molecules come from: a set by name, or a file."""
    own = NAMES.get(str(source))
    path = Path(source).expanduser()
    if own is None and not path.is_file():
        raise DataError(f"{source}: neither a data set ({', '.join(NAMES)}) nor a file of molecules")
    return from_file(path) if own is None else own(data_folder(data_root))


def prepared(found: Source, split: Split, levels: Sequence[str] | None, count: int | None, options: Options) -> Table:
    """The table of one source; arguments as `load`."""
    wanted = tuple(levels or found.levels)
    native = next((level for level in found.levels if level != "MMFF94"), None)  # that of geometries that come with it
    if native == "own" and native not in wanted:
        native = wanted[0]
    given = native is not None and native in wanted
    relaxed = "MMFF94" in wanted and not (given and native == "MMFF94")
    place = LEVELS.index(native) if native is not None else 0
    if not given and not relaxed:
        raise DataError(f"{found.name}: has no geometries of {', '.join(wanted)}; 'MMFF94' can be made of any molecule")

    def ask(entry: Entry | Broken) -> Entry | Broken:
        if not isinstance(entry, Entry):
            return entry
        references = entry.references if given else None
        return replace(entry, references=references, level=place, relaxed=relaxed)

    options = replace(options, attempts=options.attempts if relaxed else 0)
    key = f"{found.key} {split} {count} {place if given else None} {relaxed}"
    table = prepare(map(ask, found.entries(split, count)), count, key, options, cache_folder())
    if not len(table["name"]) and not len(table["problem"]):
        raise DataError(f"{found.name}: no molecule belongs to {split}")
    return table
