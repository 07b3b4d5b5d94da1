"""CSDI, SAITS and BRITS of PyPOTS as systems of `_timeseries_worker`; run by an interpreter that has PyPOTS.

Trained by each model's own `fit` at its published sizes: CSDI 4 layers of 64 channels, 8 heads, embeddings of 128, 16
and 128, quadratic schedule, random targets, batches of 16; SAITS 2 layers, 256 wide, 4 heads of 64, 128 inside, dropout
0.1, batches of 32; BRITS 108 hidden, batches of 32. Adam 1e-3 (weight decay 1e-6 for CSDI), and the decay to a tenth at
75 % and again at 90 % that CSDI's paper has and PyPOTS has not: its schedules count neither epochs nor time, so the
optimizer passed to `fit` looks at the clock, which also ends the training when the budget is spent and saves what an
interrupted one needs to go on. Without validation, which would cost CSDI 50 calls a window and epoch, and with the last
state of the network, not that of the luckiest epoch by training loss, which `fit` would take.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np

from ._timeseries_worker import System, main

with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "ascii")):  # its banner
    import torch
    from pypots.imputation import BRITS, CSDI, SAITS  # pyright: ignore[reportMissingImports]
    from pypots.optim import Adam  # pyright: ignore[reportMissingImports]
    from pypots.utils.logging import logger  # pyright: ignore[reportMissingImports]

SAVE_EVERY = 120.0
"""Seconds of processor time between states that an interrupted training goes on from."""
DECAYS = (0.75, 0.9)


@final
class Clock(Adam):
    """Adam that decays by the share of the budget spent, and ends the training when it is."""

    def __init__(self, seconds: float, folder: Path | None, weight_decay: float = 0.0):
        super().__init__(lr=1e-3, weight_decay=weight_decay)
        self.seconds, self.folder = seconds, folder
        self.spent, self.steps, self.saved = 0.0, 0, 0.0
        self.started: float | None = None
        self.owner: Any = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Each step begins here."""
        if self.started is None:
            self.started = time.process_time() - self.spent
        super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """A step, then a look at the clock."""
        assert self.started is not None
        share = self.spent / self.seconds
        for group in self.torch_optimizer.param_groups:
            group["lr"] = self.lr * 0.1 ** sum(share >= decay for decay in DECAYS)
        super().step(closure)
        self.steps += 1
        self.spent = time.process_time() - self.started
        if self.spent - self.saved >= SAVE_EVERY:
            self.save()
        if self.spent >= self.seconds:
            self.owner.best_model_dict = {name: value.clone() for name, value in self.owner.model.state_dict().items()}
            self.owner.best_loss = 0.0
            raise KeyboardInterrupt  # `fit` takes it for the end and keeps the state above

    def save(self) -> None:
        """What training goes on from."""
        if self.folder is None:
            return
        parts = {f"model.{name}": value.numpy() for name, value in self.owner.model.state_dict().items()}
        for i, state in self.torch_optimizer.state_dict()["state"].items():
            parts |= {f"adam.{i}.{name}": value.numpy() for name, value in state.items()}
        draft = self.folder / "state.part.npz"
        np.savez(draft, spent=self.spent, steps=self.steps, random=torch.get_rng_state().numpy(), **parts)
        os.replace(draft, self.folder / "state.npz")
        self.saved = self.spent

    def resume(self) -> None:
        """Go on from what was saved, if anything was."""
        path = None if self.folder is None else self.folder / "state.npz"
        if path is None or not path.exists():
            return
        with np.load(path) as found:
            self.owner.model.load_state_dict(of("model.", found))
            state: dict[int, dict[str, Any]] = {}
            for name, value in of("adam.", found).items():
                i, _, part = name.partition(".")
                state.setdefault(int(i), {})[part] = value
            whole = self.torch_optimizer.state_dict()
            self.torch_optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
            torch.set_rng_state(torch.from_numpy(found["random"]))
            self.spent, self.steps = float(found["spent"]), int(found["steps"])
            self.saved = self.spent
            np.random.seed(self.steps)  # noqa: NPY002 - the peer draws from it


def of(prefix: str, found: Any) -> dict[str, torch.Tensor]:
    """The tensors of an npz whose names begin so, without that."""
    return {name.removeprefix(prefix): torch.from_numpy(found[name]) for name in found.files if name.startswith(prefix)}


@final
class Peer(System):
    """One of PyPOTS' imputers."""

    def __init__(self, make: Callable[..., Any], weight_decay: float = 0.0, **sizes: Any):
        torch.set_num_threads(1)
        logger.setLevel("ERROR")
        self.make, self.sizes, self.weight_decay = make, sizes, weight_decay
        self.model: Any = None

    def build(self, length: int, features: int, optimizer: Any) -> Any:
        """The imputer, untrained."""
        told = {"epochs": 10**9, "device": "cpu", "saving_path": None, "model_saving_strategy": None, "verbose": False}
        return self.make(n_steps=length, n_features=features, optimizer=optimizer, **told, **self.sizes)

    def train(self, x: np.ndarray, folder: Path, seconds: float, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        clock = Clock(seconds, folder, self.weight_decay)
        clock.owner = self.build(x.shape[1], x.shape[2], clock)
        clock.resume()
        wall = time.perf_counter()
        clock.owner.fit({"X": x})
        state = {name: value.numpy() for name, value in clock.owner.model.state_dict().items()}
        np.savez(folder / "model.npz", **state)
        parameters = sum(p.numel() for p in clock.owner.model.parameters())
        return {
            "steps": clock.steps,
            "batch": self.sizes["batch_size"],
            "seconds": clock.spent,
            "wall seconds of the last start": time.perf_counter() - wall,
            "parameters": parameters,
        }

    def load(self, folder: Path, length: int, features: int) -> None:
        self.model = self.build(length, features, Adam())
        with np.load(folder / "model.npz") as found:
            self.model.model.load_state_dict(of("", found))

    def impute(self, x: np.ndarray, samples: int, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        if self.make is CSDI:
            return self.model.predict({"X": x}, n_sampling_times=samples)["imputation"].swapaxes(0, 1)
        return self.model.predict({"X": x})["imputation"][None]

    def cost(self, task: str, length: int, features: int) -> Callable[[], Any]:
        network = self.build(length, features, Adam()).model
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, features, length, generator=generator)
        known = (torch.rand(x.shape, generator=generator) < 0.7).float()
        stamps = torch.arange(length, dtype=torch.float32)[None]
        if task == "call":
            network.eval()
            with torch.no_grad():
                side = network.get_side_info(stamps, known)
            both = torch.stack([known * x, (1 - known) * x], 1)
            t = torch.tensor([25])

            def call() -> Any:
                with torch.no_grad():
                    return network.backbone.diff_model(both, side, t)

            return call
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        network.train()
        told = {"X_ori": x, "indicating_mask": 1 - known, "cond_mask": known, "observed_tp": stamps}

        def step() -> None:
            optimizer.zero_grad()
            network(told, calc_criterion=True)["loss"].backward()
            optimizer.step()

        return step


def csdi() -> Peer:
    return Peer(
        CSDI, weight_decay=1e-6, n_layers=4, n_heads=8, n_channels=64, d_time_embedding=128, d_feature_embedding=16,
        d_diffusion_embedding=128, batch_size=16,
    )  # fmt: skip


def saits() -> Peer:
    return Peer(
        SAITS, n_layers=2, d_model=256, n_heads=4, d_k=64, d_v=64, d_ffn=128, dropout=0.1, batch_size=32
    )  # fmt: skip


def brits() -> Peer:
    return Peer(BRITS, rnn_hidden_size=108, batch_size=32)


SYSTEMS: dict[str, Callable[[], System]] = {"csdi": csdi, "saits": saits, "brits": brits}

if __name__ == "__main__":
    main(SYSTEMS)
