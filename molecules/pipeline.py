"""Conformers from a trained model: what users import.

    from polydiff.molecules.pipeline import ConformerPipeline

    pipeline = ConformerPipeline.from_pretrained("qm9")                     # ships with the package
    mol = pipeline("CC(=O)Oc1ccccc1C(=O)O", num_conformers=50)              # an RDKit Mol with hydrogens, best first
    ensembles = pipeline.generate(["CCO", "c1ccccc1", "oops"], 10)          # many at once; none stops the others

Conformer k of a molecule depends on the seed, the molecule and k alone; what else is in the batch shows in the last
digits of its coordinates at most (1e-5 Angstrom). All conformers that come back have the stereochemistry asked for.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Self

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor, nn

from ..core import grids
from ..core.ancestral import ancestral
from ..core.denoisers import Conditioned, GaussianDenoiser
from ..core.errors import ArgumentError
from ..core.gaussian import Belief, Gaussian
from ..core.pipeline import Pipeline
from ..core.randomness import seeded
from ..core.sampling import Step, last
from .completion import complete
from .densities import log_likelihood
from .ensembles import Ensemble, MoleculeError, Moved, Settings, ensembles_of
from .graphs import Arrays, assemble, structure
from .model import LEVELS, ConformerConfig, build, kernel_of, number_of
from .options import LevelName
from .scaffolds import Core
from .trajectories import trajectory
from .work import Drafted, Failure, Rules, check_positive, chunks, draft, key_of

__all__ = ["DEFAULT_STEPS", "ConformerPipeline"]

DEFAULT_STEPS = 10
"""Network calls where the model has no calibrated solver."""

Sampler = Callable[..., Iterator[Step[Tensor]]]
Grid = Callable[[int, Any], Tensor]


class ConformerPipeline(Pipeline[ConformerConfig]):
    """A diffusion model of conformers.

    Args:
        config: sizes and names.
        model: the denoiser that `build(config)` makes, trained.

    Attributes:
        kernel: the forward process of displacements, to be bound to a batch by `given(**structure)`.
    """

    config_class = ConformerConfig
    model: GaussianDenoiser

    def __init__(self, config: ConformerConfig, model: nn.Module):
        super().__init__(config, model)
        self.kernel: Gaussian = kernel_of(config, self.model.schedule)
        self._network = threading.Lock()  # several threads may wait for chemistry, one computes

    @classmethod
    def build(cls, config: ConformerConfig) -> GaussianDenoiser:
        return build(config)

    def to(self, device: torch.device | str) -> Self:
        self.kernel.to(device)
        return super().to(device)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    # --- what users call

    def __call__(self, molecule: str | Chem.Mol, num_conformers: int = 10, **options: Any) -> Chem.Mol:
        """A molecule with explicit hydrogens and conformers 0 ... n - 1, best first.

        Each conformer has the properties energy (kcal/mol, MMFF94, where the force field knows the molecule),
        relative_energy, rmsd (to the best, Angstrom), rank, level and status. Fewer than asked for come where
        duplicates are left out, or where draws of the right stereochemistry ran out.

        Args:
            molecule: SMILES, or a molecule, whose atoms keep their order and whose conformers are not looked at.
            num_conformers: to draw.
            options: as for `generate`.

        Raises:
            MoleculeError: with the status that says why there are none.
        """
        (found,) = self.generate([molecule], num_conformers, **options)
        if found.mol is None:
            raise MoleculeError(found.status, found.message)
        return found.mol

    def generate(
        self,
        molecules: Sequence[str | Chem.Mol],
        num_conformers: int = 10,
        *,
        level: LevelName | None = None,
        steps: int | None = None,
        sampler: Sampler | None = None,
        grid: Grid = grids.uniform,
        seed: int = 0,
        relax: bool = False,
        energies: bool = True,
        keep_duplicates: bool = True,
        energy_window: float | None = None,
        threshold: float = 0.1,
        rounds: int = 4,
        max_atoms: int = 250,
        timeout: float = 60.0,
        pairs: int = 150_000,
        precision: torch.dtype = torch.float32,
        pool: Executor | None = None,
    ) -> list[Ensemble]:
        """Conformers of many molecules, batches of different ones passing through the network together.

        Args:
            molecules: SMILES or RDKit molecules.
            num_conformers: of each.
            level: whose geometries; None for B3LYP where the model knows all elements of a molecule by it, else
                MMFF94.
            steps: intervals of the time grid; None for the largest calibrated solver of at most 10 calls, else 10.
            sampler: `sampler(denoise, kernel, x, times)` -> steps, such as `core.ddim.ddim`; by default the solver
                calibrated for so many steps, where the model has one, else ancestral.
            grid: `grid(steps, schedule)` -> times.
            seed: of drafts and noise.
            relax: to MMFF94 minima afterwards.
            energies: of MMFF94, by which conformers are ranked; without, they stay as they were drawn.
            keep_duplicates: False leaves out what lies within `threshold` of a better conformer.
            energy_window: kcal/mol; conformers further above the best one are left out. None keeps all.
            threshold: Angstrom, symmetric RMSD without hydrogens on carbon.
            rounds: of drawing, until all conformers have the asked stereochemistry.
            max_atoms: with hydrogens.
            timeout: seconds for the drafts of a molecule.
            pairs: of atoms in the network at once; one conformer is always taken.
            precision: torch.bfloat16 runs the network in autocast.
            pool: processes for the chemistry.

        Returns:
            an `Ensemble` for each, in order; a failed one has a status other than ok and no `mol`.
        """
        settings = Settings(
            num_conformers, relax, energies, keep_duplicates, threshold, rounds, energy_window=energy_window
        )
        rules = Rules(self.levels(level), self.config.start == "draft", max_atoms, timeout, seed)
        check_positive(pairs=pairs, max_atoms=max_atoms, timeout=timeout)
        self.algorithm(steps, sampler)  # an error now is better than after the drafts

        def move(
            drafted: Sequence[Drafted], starts: Sequence[np.ndarray], numbers: Sequence[Sequence[int]], round_: int
        ) -> Moved:
            options = {"steps": steps, "sampler": sampler, "grid": grid, "pairs": pairs, "precision": precision}
            return self.move(drafted, starts, numbers, round_, seed=seed, **options)

        return ensembles_of(list(molecules), settings, rules, move, pool)

    def complete(self, molecule: str | Chem.Mol, core: Core, num_conformers: int = 10, **options: Any) -> Chem.Mol:
        """Conformers around a part whose coordinates are given, see `completion.complete`."""
        return complete(self, molecule, core, num_conformers, **options)

    def log_likelihood(self, molecule: Chem.Mol, **options: Any) -> np.ndarray:
        """log p of each conformer of a molecule, see `densities.log_likelihood`."""
        return log_likelihood(self, molecule, **options)

    def trajectory(
        self, molecule: str | Chem.Mol, num_conformers: int = 1, **options: Any
    ) -> Iterator[Step[np.ndarray]]:
        """The sampler's steps as positions (num_conformers, N, 3) in Angstrom, see `trajectories.trajectory`."""
        return trajectory(self, molecule, num_conformers, **options)

    # --- what these are made of

    def levels(self, level: LevelName | None = None) -> tuple[tuple[LevelName, frozenset[str]], ...]:
        """The levels that will do, best first, each with its elements."""
        known = {one.name for one in self.config.levels}
        if level is not None and level not in known:
            raise ArgumentError("level", level, f"one of {', '.join(sorted(known))}, or None")
        names: list[LevelName] = [name for name in LEVELS if name in known] if level is None else [level]
        return tuple((name, self.config.elements(name)) for name in names)

    def drafted(self, molecule: str | Chem.Mol, count: int, level: LevelName | None, seed: int) -> Drafted:
        """A molecule with drafts, or a MoleculeError."""
        found = draft(molecule, count, 0, Rules(self.levels(level), self.config.start == "draft", 10**9, 60.0, seed))
        if isinstance(found, Failure):
            raise MoleculeError(found.status, found.message)
        return found

    def algorithm(self, steps: int | None, sampler: Sampler | None) -> tuple[Sampler | None, int]:
        """The sampler and its number of steps; None where it has a grid of its own."""
        if sampler is not None and not callable(sampler):
            raise ArgumentError("sampler", sampler, "a function, such as polydiff.core.ddim.ddim")
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ArgumentError("steps", steps, "an integer >= 1")
        if sampler is None and steps is None:
            steps = max((calls for calls in self.solvers if calls <= DEFAULT_STEPS), default=DEFAULT_STEPS)
        steps = DEFAULT_STEPS if steps is None else steps
        if sampler is None and steps in self.solvers:
            return None, steps
        return (ancestral if sampler is None else sampler), steps

    def steps(
        self, denoise: Any, kernel: Gaussian, x: Tensor, generators: Any, *, steps: int | None = None,
        sampler: Sampler | None = None, grid: Grid = grids.uniform,
    ) -> Iterator[Step[Tensor]]:  # fmt: skip
        """The sampler's steps from x."""
        algorithm, count = self.algorithm(steps, sampler)
        if algorithm is None:
            return self.solvers[count](denoise, kernel, x)
        return algorithm(denoise, kernel, x, grid(count, kernel.schedule), generator=generators)

    def given(
        self, graphs: Sequence[Arrays], starts: Sequence[np.ndarray], levels: Sequence[LevelName]
    ) -> tuple[Conditioned[Tensor, Belief], Gaussian, Tensor]:
        """(denoiser, kernel, drafts (rows, 3) in Angstrom) bound to a batch.

        Args:
            graphs: one for each example.
            starts: a draft (N, 3) for each.
            levels: one for each, or one for all.
        """
        whole: Any = assemble(graphs)
        whole = whole.to(str(self.device))
        bound = self.kernel.given(**structure(whole, bonds=self.config.start == "harmonic"))
        dtype = next(self.model.parameters()).dtype
        drafts = torch.from_numpy(np.concatenate(starts)).to(self.device, dtype)
        numbers = torch.tensor([number_of(self.config, level) for level in levels], device=self.device).expand(
            len(graphs)
        )
        condition: Mapping[str, Any] = {"graph": whole, "level": numbers, "draft": drafts / self.config.scale}
        return self.model.given(bound, **condition), bound, drafts

    @torch.no_grad()
    def move(
        self,
        drafted: Sequence[Drafted],
        starts: Sequence[np.ndarray],
        numbers: Sequence[Sequence[int]],
        round_: int,
        *,
        seed: int = 0,
        pairs: int = 150_000,
        precision: torch.dtype = torch.float32,
        run: Callable[..., Iterator[Step[Tensor]]] | None = None,
        **options: Any,
    ) -> Moved:
        """The network's part: positions of conformers of molecules, batched by size.

        Args:
            drafted: the molecules.
            starts: of each, drafts (D, N, 3); they are taken in turn.
            numbers: of each, the numbers k of its conformers, (K,).
            round_, seed: of the noise.
            pairs: bound on the pairs of atoms in a batch.
            precision: see `generate`.
            run: `run(denoise, kernel, x, drafts, generators)` -> steps, in place of the sampler.
            options: `steps`, `sampler`, `grid`.
        """
        jobs = [(m, place) for m, these in enumerate(numbers) for place in range(len(these))]
        sizes = [len(drafted[m].graph.atom) for m, _ in jobs]
        found = [np.zeros((len(these), len(one.graph.atom), 3)) for one, these in zip(drafted, numbers, strict=True)]
        seconds = [0.0] * len(drafted)
        single = [i for i, size in enumerate(sizes) if size > 1]  # an atom alone has nowhere to go
        for part in chunks(single, [size * (size - 1) for size in sizes], pairs):
            mine = [jobs[i] for i in part]
            begin = [starts[m][place % len(starts[m])] for m, place in mine]
            generators = [seeded(seed, key_of(drafted[m].smiles), round_, numbers[m][place]) for m, place in mine]
            with self._network, self.autocast(precision):
                began = time.perf_counter()
                graphs = [drafted[m].graph for m, _ in mine]
                levels: list[LevelName] = [drafted[m].level for m, _ in mine]
                denoise, kernel, drafts = self.given(graphs, begin, levels)
                x = kernel.prior(torch.zeros_like(drafts)).sample(generators)
                if run is None:
                    x = last(self.steps(denoise, kernel, x, generators, **options))
                else:
                    x = last(run(denoise, kernel, x, drafts, generators))
                placed = (drafts.double() + self.config.scale * x.double()).cpu().numpy()
                share = (time.perf_counter() - began) / len(mine)
            ends = np.cumsum([len(drafted[m].graph.atom) for m, _ in mine])
            for (m, place), one in zip(mine, np.split(placed, ends[:-1]), strict=True):
                found[m][place] = one
                seconds[m] += share
        return Moved(found, seconds)

    def autocast(self, precision: torch.dtype) -> contextlib.AbstractContextManager[Any]:
        """The network's precision."""
        return torch.autocast(self.device.type, precision, enabled=precision != torch.float32)
