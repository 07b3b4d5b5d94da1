"""The product kernel: independent forward processes side by side, such as positions and atom types.

States and beliefs are tuples. The parts share the time and nothing else in the forward process; a denoiser that sees
all parts couples them in the reverse one. Structure for part i is given as `part_i={...}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from .distributions import Joint, total
from .errors import ArgumentError
from .kernel import Kernel, Time, interior
from .noise import own_view
from .randomness import Randomness
from .schedules import Schedule, time_of

__all__ = ["Product"]


class Product(Kernel[tuple[Any, ...], tuple[Any, ...]]):
    """Kernels side by side.

    Args:
        parts: one kernel per entry of the state's tuple.
    """

    def __init__(self, parts: Sequence[Kernel]):
        super().__init__()
        if not parts:
            raise ArgumentError("parts", parts, "at least one kernel")
        self.parts = nn.ModuleList(parts)

    def given(self, **structure: Any) -> Self:
        """`part_0={"index": ..., ...}, part_1={...}`."""
        names = [f"part_{i}" for i in range(len(self.parts))]
        if not structure.keys() <= set(names):
            raise ArgumentError("structure", sorted(structure), f"keys among {names}")
        view = own_view(self)
        view.parts = nn.ModuleList(
            part.given(**structure.get(name, {})) for name, part in zip(names, self._each(), strict=True)
        )
        return view

    @property
    def schedule(self) -> Schedule:
        """The first part's: the one by which times are drawn and losses weighted; the parts keep their own."""
        return self._each()[0].schedule

    def _each(self) -> list[Any]:
        return list(self.parts)

    def examples(self, x: tuple[Any, ...]) -> int:
        return self._each()[0].examples(x[0])

    def dims(self, x: tuple[Any, ...]) -> Tensor:
        return total(part.dims(y) for part, y in zip(self._each(), x, strict=True))

    def certain(self, x_0: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(part.certain(y) for part, y in zip(self._each(), x_0, strict=True))

    def prior(self, like: tuple[Any, ...]) -> Joint:
        return Joint(tuple(part.prior(y) for part, y in zip(self._each(), like, strict=True)))

    def marginal(self, x_0: tuple[Any, ...], t: Time) -> Joint:
        return Joint(tuple(part.marginal(y, t) for part, y in zip(self._each(), x_0, strict=True)))

    def transition(self, x_s: tuple[Any, ...], s: Time, t: Time) -> Joint:
        return Joint(tuple(part.transition(y, s, t) for part, y in zip(self._each(), x_s, strict=True)))

    def posterior(self, x_t: tuple[Any, ...], belief: tuple[Any, ...], s: Time, t: Time) -> Joint:
        zipped = zip(self._each(), x_t, belief, strict=True)
        return Joint(tuple(part.posterior(y, b, s, t) for part, y, b in zipped))

    def reverse(self, x_t: tuple[Any, ...], belief: tuple[Any, ...], s: Time, t: Time) -> Joint:
        zipped = zip(self._each(), x_t, belief, strict=True)
        return Joint(tuple(part.reverse(y, b, s, t) for part, y, b in zipped))

    def gap(self, x_t: tuple[Any, ...], x_0: tuple[Any, ...], belief: tuple[Any, ...], s: Time, t: Time) -> Tensor:
        zipped = zip(self._each(), x_t, x_0, belief, strict=True)
        return total(part.gap(y, y_0, b, s, t) for part, y, y_0, b in zipped)

    def gap_rate(self, x_t: tuple[Any, ...], x_0: tuple[Any, ...], belief: tuple[Any, ...], t: Time) -> Tensor:
        zipped = zip(self._each(), x_t, x_0, belief, strict=True)
        return total(part.gap_rate(y, y_0, b, t) for part, y, y_0, b in zipped)

    def pace(self, share: Tensor, low: float) -> tuple[Tensor, Tensor]:
        """By the even mixture of the parts' own laws of t.

        Where one part's cost is large its own law is dense, so the sum of costs over the mixture's density is bounded
        wherever each is; one part's law alone can be rare where another part still pays.
        """
        t = interior(time_of(lambda u: -self.share(u, low)[0], -share))
        return t, 1 / self.share(t, low)[1]

    def share(self, t: Tensor, low: float) -> tuple[Tensor, Tensor]:
        """The mean over the parts, above every part's t_min."""
        low = max(low, *(part.schedule.t_min for part in self._each()))
        shares, densities = zip(*(part.share(t, low) for part in self._each()), strict=True)
        return total(shares) / len(shares), total(densities) / len(densities)

    def likelihood(self, belief: tuple[Any, ...], t: Time) -> Joint:
        return Joint(tuple(part.likelihood(b, t) for part, b in zip(self._each(), belief, strict=True)))

    def conclude(self, belief: tuple[Any, ...], generator: Randomness = None) -> tuple[Any, ...]:
        return tuple(part.conclude(b, generator) for part, b in zip(self._each(), belief, strict=True))

    def blend(self, mask: Any, known: tuple[Any, ...], x: tuple[Any, ...]) -> tuple[Any, ...]:
        """mask: one per part."""
        zipped = zip(self._each(), mask, known, x, strict=True)
        return tuple(part.blend(m, k, y) for part, m, k, y in zipped)

    def take(self, x: tuple[Any, ...], index: Tensor) -> tuple[Any, ...]:
        return tuple(part.take(y, index) for part, y in zip(self._each(), x, strict=True))

    def taken(self, index: Tensor, like: tuple[Any, ...]) -> Self:
        view = own_view(self)
        view.parts = nn.ModuleList(part.taken(index, y) for part, y in zip(self._each(), like, strict=True))
        return view

    def error(self, x_0: tuple[Any, ...], belief: tuple[Any, ...], t: Time) -> Tensor:
        zipped = zip(self._each(), x_0, belief, strict=True)
        return total(part.error(y, b, t) for part, y, b in zipped)
