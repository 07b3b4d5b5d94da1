r"""Molecules from nothing: what users import.

    from polydiff.molecules.generation import MoleculePipeline

    pipeline = MoleculePipeline.from_pretrained("runs/generator")
    pipeline(100, seed=0)                                  # RDKit molecules with a conformer and bonds
    pipeline.generate(100, sizes=18)                       # elements and positions alone
    pipeline.complete(fragment, size=20, count=10)         # the fragment stays, the rest is new
    pipeline.log_likelihood(molecules)[0].nats             # a bound, for labelled atoms

Molecule i of a call depends on the seed and on i alone; those beside it in a batch change it by rounding at most. The
number of atoms is drawn from the training set's histogram unless it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self, Unpack, final

import torch
from rdkit import Chem
from torch import Tensor, nn

from ..core.ancestral import ancestral
from ..core.bounds import elbo
from ..core.errors import ArgumentError
from ..core.estimates import elbo_estimate
from ..core.grids import uniform
from ..core.inpainting import repaint
from ..core.pipeline import Pipeline
from ..core.randomness import example_generators, rand, seeded
from ..core.sampling import Step, last
from ..core.trajectories import frames
from .generation_drawing import How, Likelihood, State, atoms_of, molecule, parted
from .generation_model import MoleculeConfig, MoleculeModel, checked_sizes, kernel_of, structure_of
from .stability import Atoms, Perceive, determined

__all__ = ["MoleculePipeline"]

MASKED = "*"
"""Stands for an atom whose type is masked, on the way."""
_SIZES = 0x73697A6573  # sets this use of the seed apart from the noise


@final
class MoleculePipeline(Pipeline[MoleculeConfig]):
    """A diffusion model of molecules.

    Args:
        config: sizes and names.
        model: the denoiser that `build(config)` makes, trained.

    Attributes:
        kernel: the forward process, to be bound to a batch.
    """

    config_class = MoleculeConfig
    model: MoleculeModel

    def __init__(self, config: MoleculeConfig, model: nn.Module):
        super().__init__(config, model)
        self.kernel = kernel_of(config, self.model)

    @classmethod
    def build(cls, config: MoleculeConfig) -> MoleculeModel:
        return MoleculeModel(config)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights, and of positions while they are drawn."""
        return next(self.model.parameters()).dtype

    def to(self, device: torch.device | str) -> Self:
        super().to(device)
        self.kernel = kernel_of(self.config, self.model)
        return self

    def __call__(
        self,
        count: int = 10,
        sizes: int | Sequence[int] | None = None,
        *,
        bonds: Perceive = determined,
        **how: Unpack[How],
    ) -> list[Chem.Mol]:
        """New molecules, each with one conformer.

        Args:
            count, sizes, how: as `generate`.
            bonds: how bonds are read from positions: `stability.determined` or `stability.by_lengths`.

        Returns:
            `count` molecules, never fewer. The property `status` is "ok"; or "invalid" where no bonds can be made out,
            and then the molecule has atoms and positions only and is not sanitised.
        """
        return [molecule(atoms, bonds) for atoms in self.generate(count, sizes, **how)]

    @torch.no_grad()
    def generate(self, count: int = 10, sizes: int | Sequence[int] | None = None, **how: Unpack[How]) -> list[Atoms]:
        """New molecules as elements and positions.

        Args:
            count: of molecules.
            sizes: numbers of atoms, one for all or one for each; None to draw them as the training set has them.
            how: steps, sampler, seed, first, batch_size; see `How`.

        Raises:
            ArgumentError: a number that cannot be used.
        """
        sampler = how.get("sampler", ancestral)
        drawn = self._sizes(count, sizes, how)

        def draw(x: State, kernel: Any, denoise: Any, times: Tensor, own: list[torch.Generator], _: Any) -> State:
            return last(sampler(denoise, kernel, x, times, generator=own))

        return self._drawn(drawn, how, draw)

    @torch.no_grad()
    def trajectory(self, size: int | None = None, *, count: int = 10, **how: Unpack[How]) -> list[Atoms]:
        """How one molecule comes about: `count` frames, evenly spaced, the last one the molecule.

        Args:
            size: atoms; None to draw it.
            count: of frames.
            how: as `generate`; the molecule is number `first`. An atom whose type is still masked is "*".
        """
        shown: list[Step[State]] = []
        sampler = how.get("sampler", ancestral)

        def draw(x: State, kernel: Any, denoise: Any, times: Tensor, own: list[torch.Generator], _: Any) -> State:
            shown.extend(frames(sampler(denoise, kernel, x, times, generator=own), count))
            return shown[-1].x

        drawn = self._sizes(1, size, how)
        self._drawn(drawn, how, draw)
        return [self._read(step.x, drawn)[0] for step in shown]

    @torch.no_grad()
    def complete(
        self,
        fragment: Chem.Mol | Atoms,
        size: int | Sequence[int],
        count: int = 10,
        *,
        jump: int = 10,
        resamples: int = 5,
        **how: Unpack[How],
    ) -> list[Atoms]:
        """Molecules around a fragment, by RePaint (Lugmayr et al. 2022).

        Args:
            fragment: its atoms are the first of every molecule, with their elements and positions, to the letter. Leave
                out the hydrogens where the rest is to be joined.
            size: atoms of the whole, one for all or one for each.
            count: of molecules.
            jump, resamples: as `core.inpainting.repaint`; network calls grow about `resamples` fold.
            how: as `generate`, without a sampler.

        Raises:
            ArgumentError: a fragment with other elements, or not smaller than the whole.
        """
        known = fragment if isinstance(fragment, Atoms) else atoms_of(fragment)
        part = len(known.elements)
        drawn = self._sizes(count, size, how)
        if "sampler" in how:
            raise ArgumentError("sampler", how["sampler"], "nothing: fragments are kept by RePaint")
        if part >= min(drawn):
            raise ArgumentError("size", size, f"more atoms than the fragment's {part}")
        positions, types, _ = self._encoded([known])

        def draw(x: State, kernel: Any, denoise: Any, times: Tensor, own: list[torch.Generator], of: Any) -> State:
            starts = torch.tensor([0, *of[:-1]], device=self.device).cumsum(0)
            rows = (starts[:, None] + torch.arange(part, device=self.device)).flatten()
            there = torch.zeros(len(x[1]), dtype=torch.bool, device=self.device).index_fill(0, rows, True)
            fixed = torch.zeros_like(x[0]).index_copy(0, rows, positions.repeat(len(of), 1))
            kinds = torch.zeros_like(x[1]).index_copy(0, rows, types.repeat(len(of)))
            options: dict[str, Any] = {"known": (fixed, kinds), "mask": (there[:, None], there)}
            run = partial(repaint, denoise, kernel, x, times, jump=jump, resamples=resamples, **options)
            return last(run(generator=own))

        found = self._drawn(drawn, how, draw)
        # Positions are known up to a shift: the fragment goes back to where it was, without its rounding.
        exact = known.positions.double()
        shifted = [one.positions + (exact - one.positions[:part]).mean(0) for one in found]
        return [one._replace(positions=torch.cat([exact, x[part:]])) for one, x in zip(found, shifted, strict=True)]

    @torch.no_grad()
    def log_likelihood(
        self,
        molecules: Sequence[Chem.Mol | Atoms],
        *,
        steps: int = 1000,
        terms: int | None = 32,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[Likelihood]:
        """Upper bounds on -log p of molecules: prior, gaps and reconstruction of the chain of `steps` steps.

        Args:
            molecules: with all hydrogens; elements that the model knows.
            steps: of the chain whose bound it is.
            terms: gaps that are drawn, unbiased for all; None to add up all.
            seed: the draws of molecule i depend on (seed, i).
            batch_size: molecules in the network at once.
        """
        every = [one if isinstance(one, Atoms) else atoms_of(one) for one in molecules]
        total, found = sum(self.config.sizes), []
        for numbers in parted(len(every), batch_size):
            x, types, sizes = self._encoded([every[i] for i in numbers])
            kernel, denoise = self.bound_to(sizes)
            own = example_generators(seed, 0, numbers)
            times = uniform(steps, kernel.schedule)
            estimate = elbo if terms is None else partial(elbo_estimate, terms=terms)
            nats = estimate(denoise, kernel, (x, types), times, generator=own).total
            for n, value in zip(sizes, nats.tolist(), strict=True):
                seen = self.config.sizes[n] if n < len(self.config.sizes) else 0
                dof = 3 * (n - 1)
                value += dof * math.log(self.config.network.scale)
                found.append(Likelihood(value, math.log(total / seen) if seen else math.inf, dof, n))
        return found

    def bound_to(self, sizes: Sequence[int]) -> tuple[Any, Callable[[State, Any], Any]]:
        """The kernel and the denoiser of a batch of molecules of so many atoms."""
        structure = structure_of(sizes, self.device)
        kernel = self.kernel.given(**structure)
        return kernel, self.model.denoiser.given(kernel, index=structure["part_0"]["index"])

    def _sizes(self, count: int, sizes: int | Sequence[int] | None, how: How) -> list[int]:
        """A size for every molecule, those not given drawn from (seed, number)."""
        if strange := sorted(how.keys() - How.__annotations__.keys()):
            raise ArgumentError(strange[0], how[strange[0]], f"one of the keywords {', '.join(How.__annotations__)}")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ArgumentError("count", count, "an integer >= 1")
        if sizes is None:
            table = torch.tensor(self.config.sizes, dtype=torch.float64).cumsum(0)
            numbers = range(how.get("first", 0), how.get("first", 0) + count)
            own = [seeded(how.get("seed", 0), number, _SIZES) for number in numbers]
            u = rand((count, 1), own, dtype=torch.float64).squeeze(1)
            return torch.searchsorted(table, u * table[-1], right=True).clamp(max=len(table) - 1).tolist()
        found = checked_sizes("sizes", [sizes] * count if isinstance(sizes, int) else sizes)
        if len(found) != count:
            raise ArgumentError("sizes", found, f"{count} numbers, one for each molecule")
        return found

    def _drawn(self, sizes: list[int], how: How, draw: Callable[..., State]) -> list[Atoms]:
        """Molecules of these sizes, in batches."""
        steps, first = how.get("steps", 250), how.get("first", 0)
        times = uniform(steps, self.kernel.schedule)
        found: list[Atoms] = []
        for numbers in parted(len(sizes), how.get("batch_size", 64)):
            own = example_generators(how.get("seed", 0), 0, [first + i for i in numbers])
            of = [sizes[i] for i in numbers]
            kernel, denoise = self.bound_to(of)
            like = torch.zeros(sum(of), 3, dtype=self.dtype, device=self.device)
            x = draw(kernel.prior((like, like[:, 0].long())).sample(own), kernel, denoise, times, own, of)
            found += self._read(x, of)
        return found

    def _read(self, x: State, sizes: Sequence[int]) -> list[Atoms]:
        """A state as molecules in Angstrom, on the CPU."""
        names = (*self.config.elements, MASKED)
        parts = zip(x[0].cpu().split(list(sizes)), x[1].cpu().split(list(sizes)), strict=True)
        scale = self.config.network.scale
        return [Atoms(tuple(names[a] for a in types.tolist()), y.double() * scale) for y, types in parts]

    def _encoded(self, molecules: Sequence[Atoms]) -> tuple[Tensor, Tensor, list[int]]:
        """Centred positions (rows, 3) in units of `scale`, types (rows,), and sizes."""
        known = {element: place for place, element in enumerate(self.config.elements)}
        for i, one in enumerate(molecules):
            if strange := sorted(set(one.elements) - known.keys()):
                raise ArgumentError(f"molecules[{i}]", strange, f"the elements {', '.join(known)}")
        sizes = checked_sizes("molecules", [len(one.elements) for one in molecules])
        centred = [one.positions.double() - one.positions.double().mean(0) for one in molecules]
        x = torch.cat(centred).to(self.device, self.dtype) / self.config.network.scale
        return x, torch.tensor([known[e] for one in molecules for e in one.elements], device=self.device), sizes
