"""Images from a trained model: what users import.

    from polydiff.vision.pipeline import ImagePipeline

    pipeline = ImagePipeline.from_pretrained("fashion-mnist")          # ships with the package
    images = pipeline("boot", count=8, guidance=1.2, seed=0)           # PIL images
    pipeline.save_pretrained("my-model")

The pipeline holds the denoiser, the kernel and what it takes to turn states into pictures. Image i of a call depends on
the seed and on i alone, so batches and processes change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..core import grids
from ..core.bounds import bits_per_dim, elbo
from ..core.calibration import Calibrated
from ..core.config import Range
from ..core.denoisers import Conditioned, GaussianDenoiser
from ..core.dpm_solver import dpm_solver_pp_2m
from ..core.errors import ArgumentError, ConfigError
from ..core.gaussian import Belief
from ..core.guidance import ClassifierFree
from ..core.methods import PARAMETRISATIONS, SCHEDULES
from ..core.names import ParametrisationName, ScheduleName
from ..core.pipeline import Pipeline
from ..core.randomness import example_generators
from ..core.sampling import Step, last
from .architectures import DiTConfig, UNetConfig
from .data import find_label, picture, to_uint8, to_unit
from .kernel import Pixels

__all__ = ["ImageConfig", "ImagePipeline"]

Sampler = Callable[..., Iterator[Step[Tensor]]]
Grid = Callable[[int, Any], Tensor]
Label = int | str | Sequence[int | str] | Tensor | None


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """All that is needed to build the model, as `config.json` holds it."""

    shape: tuple[Annotated[int, Range(1, 64)], Annotated[int, Range(1, 16_384)], Annotated[int, Range(1, 16_384)]]
    """(C, H, W)"""
    levels: Annotated[int, Range(2, 256)] = 256
    """Values that a pixel can take."""
    class_names: tuple[str, ...] = ()
    """One name per class; empty for an unconditional model."""
    network: UNetConfig | DiTConfig = field(default_factory=UNetConfig)
    """Sizes of the network."""
    schedule: ScheduleName = "cosine"
    """Of training; sampling may use another."""
    parametrisation: ParametrisationName = "v"
    """How the network's output is read."""

    def __post_init__(self):
        channels, height, width = self.shape
        if self.network.in_channels != channels or self.network.out_channels != channels:
            raise ConfigError("network.in_channels", self.network.in_channels, f"{channels}, as shape says")
        if self.network.num_classes != len(self.class_names):
            raise ConfigError(
                "network.num_classes", self.network.num_classes, f"{len(self.class_names)}, the class names"
            )
        if height % self.network.factor or width % self.network.factor:
            raise ConfigError("shape", self.shape, f"height and width that {self.network.factor} divides")


class ImagePipeline(Pipeline[ImageConfig]):
    """A diffusion model of images.

    Args:
        config: sizes and names.
        model: the denoiser that `build(config)` makes, trained.

    Attributes:
        kernel: the forward process, with the exact probability of pixel values.
    """

    config_class = ImageConfig
    model: GaussianDenoiser

    def __init__(self, config: ImageConfig, model: nn.Module):
        super().__init__(config, model)
        self.kernel = Pixels(self.model.schedule, config.levels)

    @classmethod
    def build(cls, config: ImageConfig) -> GaussianDenoiser:
        schedule = SCHEDULES[config.schedule]()
        return GaussianDenoiser(config.network.build(), schedule, PARAMETRISATIONS[config.parametrisation])

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    @property
    def num_classes(self) -> int:
        """0 for an unconditional model; the label `num_classes` means "no label"."""
        return len(self.config.class_names)

    def labels(self, label: Label, count: int | None = None) -> Tensor | None:
        """Class numbers for `count` images, (count,), or None for an unconditional model.

        Args:
            label: a name or number, several of them to be repeated in turn, or None for every class in turn.
            count: default: as many as there are labels, else one.

        Raises:
            ArgumentError: no such class.
        """
        if self.num_classes == 0:
            if label is not None:
                raise ArgumentError("label", label, "None: this model knows no classes")
            return None
        several = isinstance(label, Sequence) and not isinstance(label, str)
        wanted: list[Any] = label.tolist() if isinstance(label, Tensor) else list(label) if several else [label]  # pyright: ignore[reportArgumentType]
        if label is None or not wanted:
            wanted = list(range(self.num_classes))
        numbers = [self._label(item) for item in wanted]
        count = count if count is not None else len(numbers)
        return torch.tensor([numbers[i % len(numbers)] for i in range(count)])

    def _label(self, label: int | str) -> int:
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label <= self.num_classes:
            return label
        return find_label(self.config.class_names, str(label))

    def given(self, label: Tensor | None = None, guidance: float = 1.0) -> Conditioned[Tensor, Belief]:
        """The denoiser bound to labels (B,), with classifier-free guidance where its weight is not 1."""
        if self.num_classes == 0:
            if guidance != 1.0:
                raise ArgumentError("guidance", guidance, "1: this model knows no classes")
            return self.model.given(self.kernel)
        if label is None:
            raise ArgumentError("label", label, "class numbers; num_classes for none")
        denoiser = self.model
        if guidance != 1.0:
            network = ClassifierFree(denoiser.network, guidance, {"label": self.num_classes})
            denoiser = GaussianDenoiser(network, denoiser.schedule, denoiser.parametrisation, denoiser.conditioning)
        return denoiser.given(self.kernel, label=label.to(self.device))

    def solver(self, calls: int, guidance: float) -> Calibrated | None:
        """The solver that was calibrated for so many network calls and this guidance, if there is one."""
        found = self.solvers.get(calls)
        return found if found is not None and found.guidance == guidance else None

    def trajectory(
        self,
        label: Label = None,
        *,
        count: int | None = None,
        steps: int = 25,
        sampler: Sampler | None = None,
        grid: Grid = grids.log_snr,
        guidance: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> Iterator[Step[Tensor]]:
        """The sampler's steps, states (count, C, H, W) in [-1, 1] at the end; arguments as `sample`."""
        labels = self.labels(label, count)
        count = len(labels) if labels is not None else (count if count is not None else 1)
        if not isinstance(count, int) or count < 1:
            raise ArgumentError("count", count, "at least one image")
        for name, function in (("sampler", sampler), ("grid", grid)):
            if not callable(function) and not (name == "sampler" and function is None):
                raise ArgumentError(name, function, "a function, such as polydiff.core.ddim.ddim, core.grids.uniform")
        generators = example_generators(seed, 0, range(first, first + count))
        like = torch.zeros(count, *self.config.shape, device=self.device)
        denoise = self.given(labels, guidance)
        x = self.kernel.prior(like).sample(generators)
        solver = self.solver(steps, guidance)
        if sampler is None and solver is not None:
            return solver(denoise, self.kernel, x)
        sampler = dpm_solver_pp_2m if sampler is None else sampler
        return sampler(denoise, self.kernel, x, grid(steps, self.kernel.schedule), generator=generators)

    @torch.no_grad()
    def sample(
        self,
        label: Label = None,
        *,
        count: int | None = None,
        steps: int = 25,
        sampler: Sampler | None = None,
        grid: Grid = grids.log_snr,
        guidance: float = 1.0,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 64,
        precision: torch.dtype = torch.float32,
        progress: bool = False,
    ) -> Tensor:
        """Images as integers, uint8 (count, C, H, W), values 0 ... levels - 1.

        Args:
            label: see `labels`.
            count: number of images.
            steps: intervals of the time grid.
            sampler: `sampler(denoise, kernel, x, times)` -> steps, such as `core.ddim.ddim`; by default the solver
                that was calibrated for so many steps and this guidance, where the model has one, else DPM-Solver++ 2M.
            grid: `grid(steps, schedule)` -> times, such as `core.grids.uniform`.
            guidance: weight of classifier-free guidance; 1 for none.
            seed: image i depends on (seed, first + i).
            first: number of the first image.
            batch_size: images in the network at once.
            precision: torch.bfloat16 runs the network in autocast.
            progress: show a bar.
        """
        labels = self.labels(label, count)
        total = len(labels) if labels is not None else (count if count is not None else 1)
        if batch_size < 1:
            raise ArgumentError("batch_size", batch_size, "at least 1")
        if total < 1:
            raise ArgumentError("count", count, "at least one image")
        drawn: list[Tensor] = []
        options: dict[str, Any] = {"steps": steps, "sampler": sampler, "grid": grid, "guidance": guidance, "seed": seed}
        with tqdm(total=total, unit="image", disable=not progress) as bar:
            for start in range(0, total, batch_size):
                part = labels[start : start + batch_size] if labels is not None else None
                size = min(batch_size, total - start)
                with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
                    x = last(self.trajectory(part, count=size, first=first + start, **options))
                drawn.append(to_uint8(x, self.config.levels).cpu())
                bar.update(size)
        return torch.cat(drawn)

    def __call__(self, label: Label = None, *, scale: int = 1, **options: Any) -> list[Image.Image]:
        """PIL images; arguments as `sample`, `scale` pixels squared for each pixel."""
        return [picture(image, self.config.levels, scale) for image in self.sample(label, **options)]

    @torch.no_grad()
    def bits_per_dim(
        self,
        images: Tensor,
        label: Tensor | None = None,
        *,
        steps: int = 100,
        grid: Grid = grids.uniform,
        seed: int = 0,
        batch_size: int = 100,
        precision: torch.dtype = torch.float32,
        progress: bool = False,
    ) -> dict[str, Tensor]:
        """Upper bound on -log2 P(image) per pixel and channel, by parts: prior, gaps, reconstruction, total, (B,) each.

        The full bound on the discrete pixels, one draw per term: unbiased, no truncated time, no dequantisation.

        Args:
            images: uint8 (B, C, H, W).
            label: (B,), or None where there are no classes (then, for a class-conditional model: no label).
            steps: of the grid of times; more are tighter.
            grid, seed, batch_size, precision, progress: as `sample`.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != self.config.shape or len(images) == 0:
            raise ArgumentError("images", images, f"a uint8 tensor (B, {', '.join(map(str, self.config.shape))})")
        if int(images.max()) >= self.config.levels:
            raise ArgumentError("images", int(images.max()), f"values 0 ... {self.config.levels - 1}")
        if label is not None and label.shape != images.shape[:1]:
            raise ArgumentError("label", label, f"shape ({len(images)},)")
        if label is None and self.num_classes:
            label = torch.full((len(images),), self.num_classes)
        times = grid(steps, self.kernel.schedule)
        parts: dict[str, list[Tensor]] = {"prior": [], "gaps": [], "reconstruction": [], "total": []}
        for start in tqdm(range(0, len(images), batch_size), unit="batch", disable=not progress):
            x_0 = to_unit(images[start : start + batch_size], self.config.levels).to(self.device)
            denoise = self.given(label[start : start + batch_size] if label is not None else None)
            generators = example_generators(seed, 1, range(start, start + len(x_0)))
            with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
                bound = elbo(denoise, self.kernel, x_0, times, generator=generators)
            dims = self.kernel.dims(x_0)
            for name, nats in zip(
                parts, (bound.prior, bound.gaps.sum(0), bound.reconstruction, bound.total), strict=True
            ):
                parts[name].append(bits_per_dim(nats, dims).cpu())
        return {name: torch.cat(values) for name, values in parts.items()}
