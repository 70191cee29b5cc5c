"""Trains compiled networks and prints, as JSON, what came of it, for `test_compile`.

Apart from the tests: they wrap every function of the package to check its types, and
torch cannot trace through that in one piece.
"""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from conftest import loader, mlp, quiet_trainer
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional

from lightning_is import ImportanceSamplingCallback
from lightning_is.data import PassSource
from lightning_is.sampling import AlwaysOpen, NeverOpen, Warmup
from lightning_is.sampling.subset import ImportanceSubset
from lightning_is.scoring import Loss


class Network(nn.Module):
    """A class of the user's own: torch compiles those of its own not in place."""

    def __init__(self) -> None:
        super().__init__()
        layers = mlp()
        self.body, self.head = layers[:2], layers[2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Network()

    def training_step(self, batch, batch_idx):
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Taus(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(float(trainer.callback_metrics["is/tau"]))


def eager(module, backend):
    return module


def whole(module, backend="aot_eager"):
    # Lightning 2.6 with torch 2.13 cannot compile a step that logs.
    module.log = torch.compiler.disable(module.log)
    return torch.compile(module, backend=backend)


def part(module, backend="aot_eager"):
    module.net = torch.compile(module.net, backend=backend)
    return module


def in_place(module, backend="aot_eager"):
    module.net.compile(backend=backend)
    return module


HOW = {"eager": eager, "whole": whole, "part": part, "in place": in_place}


def ran(module: Module) -> None:
    """Trace the network in every mode that a fit uses, before it has a tap."""
    x = torch.randn(12, 6)
    for training in (True, False):
        module.net.train(training)
        for rows in (x, x[:4]):
            module.net(rows)
            with torch.no_grad():
                module.net(rows)
    module.net.train()


def fitted(
    how: str,
    sampling: ImportanceSamplingCallback,
    *,
    before: Callable[[Module], Any] | None = None,
    backend: str = "aot_eager",
    fits: int = 1,
    **loaders: Any,
) -> dict[str, Any]:
    """Fit, and return what the draws led to, and graphs counted from the fit on."""
    torch.compiler.reset()
    module, taus = Module(), Taus()
    compiled = HOW[how](module, backend)
    if before is not None:
        before(module)
    counters.clear()
    for _ in range(fits):
        quiet_trainer(sampling, taus).fit(compiled, loader(), **loaders)
    flat = nn.utils.parameters_to_vector(module.parameters())
    return {
        "parameters": flat.tolist(),
        "draws": sampling.state_dict()["draws"],
        "taus": taus.seen,
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": [reason.splitlines()[0] for reason in counters["graph_break"]],
    }


def opened(**settings: Any) -> ImportanceSamplingCallback:
    return ImportanceSamplingCallback(4, **({"gate": AlwaysOpen()} | settings))


def weighted() -> ImportanceSamplingCallback:
    return ImportanceSamplingCallback(source=PassSource(ImportanceSubset(0.5)))


def results() -> dict[str, Any]:
    """Run every case by every way of compiling that it is for."""
    found = {}
    for how in HOW:
        found[f"both phases, {how}"] = fitted(how, opened(gate=Warmup(2)))
    for how in ("eager", "part"):
        found[f"closed, {how}"] = fitted(how, opened(gate=NeverOpen()))
        found[f"weighted, {how}"] = fitted(how, weighted())
        found[f"twice, {how}"] = fitted(how, opened(), fits=2, backend="eager")
    for how in ("eager", "whole", "part"):
        by_loss = opened(gate=Warmup(2), scorer=Loss())
        found[f"by the loss, {how}"] = fitted(how, by_loss)
    found["open, eager"] = fitted("eager", opened())
    checked = {"val_dataloaders": loader()}
    found["open, sanity check"] = fitted("part", opened(), backend="eager", **checked)
    for how in ("part", "in place"):
        for name, gate in (("open", AlwaysOpen()), ("closed", NeverOpen())):
            found[f"{name}, {how} and traced"] = fitted(
                how, opened(gate=gate), before=ran, backend="eager"
            )
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sys.stdout.write(json.dumps(results()))
