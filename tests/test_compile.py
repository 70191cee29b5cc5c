"""Compiled networks: the draws of eager ones, in few graphs and one piece each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.torch_version import TorchVersion

from lightning_is import ImportanceSamplingCallback
from lightning_is.data import PassSource
from lightning_is.inspection import resolve_heads
from lightning_is.sampling import AlwaysOpen, NeverOpen
from lightning_is.sampling.subset import ImportanceSubset

HERE = Path(__file__).parent
LOG = "Skip calling `torch.compiler.disable()`d function"  # the user's own break


@pytest.fixture(scope="module")
def runs():
    """Return what `compiled.py` found."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-W", "ignore", HERE / "compiled.py"],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def same(ours, theirs):
    assert ours["parameters"] == pytest.approx(theirs["parameters"], rel=1e-5)
    assert ours["taus"] == pytest.approx(theirs["taus"], rel=1e-5)
    assert ours["draws"] == theirs["draws"]


def in_one_piece(ours, graphs, breaks=()):
    """Torch 2.6 breaks a graph where the weights enter it."""
    if TorchVersion(torch.__version__) >= "2.13":
        assert (ours["graphs"], ours["breaks"]) == (graphs, [*breaks])
    else:
        assert ours["graphs"] <= 2 * graphs


@pytest.mark.parametrize("how", ["whole", "part", "in place"])
def test_a_compiled_run_draws_what_an_eager_one_draws(runs, how):
    """One graph for closed steps, one that scores, one for steps on a draw."""
    ours = runs[f"both phases, {how}"]
    same(ours, runs["both phases, eager"])
    assert ours["draws"] == 2
    in_one_piece(ours, 3, [LOG] if how == "whole" else [])


def test_a_closed_gate_takes_one_graph(runs):
    same(runs["closed, part"], runs["closed, eager"])
    in_one_piece(runs["closed, part"], 1)


@pytest.mark.parametrize("how", ["whole", "part"])
def test_scoring_by_the_loss_of_a_compiled_network(runs, how):
    same(runs[f"by the loss, {how}"], runs["by the loss, eager"])


def test_weights_of_a_source_reach_a_compiled_network(runs):
    same(runs["weighted, part"], runs["weighted, eager"])
    in_one_piece(runs["weighted, part"], runs["weighted, part"]["graphs"])


@pytest.mark.parametrize("how", ["part and traced", "in place and traced"])
@pytest.mark.parametrize("gate", ["open", "closed"])
def test_a_network_that_was_traced_before_the_fit_is_traced_again(runs, how, gate):
    """Graphs do not notice new hooks: in old ones the tap would not fire."""
    same(runs[f"{gate}, {how}"], runs[f"{gate}, eager"])


def test_a_sanity_check_before_the_first_batch(runs):
    same(runs["open, sanity check"], runs["open, eager"])


def test_a_second_fit_of_a_compiled_network(runs):
    same(runs["twice, part"], runs["twice, eager"])


class Network(nn.Module):
    def __init__(self, kit):
        super().__init__()
        torch.manual_seed(0)
        layers = kit.mlp()
        self.body, self.head = layers[:2], layers[2]

    def forward(self, x):
        return self.head(self.body(x))


class Module(L.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def exported(kit):
    """A network that is one graph, and runs no hooks inside."""
    dynamic = ({0: torch.export.Dim("rows", min=2, max=64)},)
    program = torch.export.export(
        Network(kit), (torch.zeros(12, 6),), dynamic_shapes=dynamic
    )
    return program.module()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("head", "message"),
    [
        (None, "so that its parts run no hooks.*the whole of such a network"),
        ("net.head", "got a step in which it did not.*with the whole of it"),
    ],
)
def test_a_tap_that_cannot_fire_is_explained(kit, head, message):
    sampling = ImportanceSamplingCallback(4, gate=NeverOpen(), head=head)
    with pytest.raises(RuntimeError, match=message):
        kit.trainer(sampling).fit(Module(exported(kit)), kit.loader())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_whole_of_an_exported_network_is_a_head(kit):
    modules = Module(exported(kit)), Module(Network(kit))
    for module in modules:
        sampling = ImportanceSamplingCallback(4, gate=AlwaysOpen(), head="net")
        kit.trainer(sampling).fit(module, kit.loader())
    ours, theirs = ({n: p.detach() for n, p in m.named_parameters()} for m in modules)
    torch.testing.assert_close(ours, theirs)


def test_weights_that_no_head_applies_are_refused(kit):
    """A step around the head would train on them as if they were all one."""

    class Around(Module):
        def training_step(self, batch, batch_idx):
            hidden = self.net.body(batch[0])
            away = self.current_epoch == 1
            return (hidden[:, :3] if away else self.net.head(hidden)).square().mean()

    source = PassSource(ImportanceSubset(0.5))
    trainer = kit.trainer(ImportanceSamplingCallback(source=source), max_epochs=3)
    with pytest.raises(RuntimeError, match="must run in every training step"):
        trainer.fit(Around(Network(kit)), kit.loader())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["net.head", "net._orig_mod.head"])
def test_names_are_those_of_the_plain_network(kit, compiled, name):
    net = Network(kit)
    module = Module(torch.compile(net, backend="eager") if compiled else net)
    assert resolve_heads(module, name) == [net.head]
    assert resolve_heads(module, "net") == [module.net]  # what is called
    with pytest.raises(ValueError, match=r"got 'nett'.*: net, net\.body, "):
        resolve_heads(module, "nett")
