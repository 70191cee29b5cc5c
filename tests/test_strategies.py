"""Two processes under every strategy: the same steps, decisions and parameters."""

import multiprocessing
import os
import pickle
import socket
import traceback
from queue import Empty

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
from lightning.pytorch.plugins import FSDPPrecision
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)
from lightning.pytorch.strategies.xla import XLAStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional
from torch.utils.data import DataLoader

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule, host
from lightning_is.data import PassSource
from lightning_is.sampling import AlwaysOpen, LossPercentile, NeverOpen, TauGate
from lightning_is.sampling.passes import Shuffled
from lightning_is.scoring import GradientNorm, Loss

pytestmark = pytest.mark.filterwarnings(
    # Of Lightning and torch among themselves, about a GPU that is not here.
    "ignore:.*CUDA is not available:UserWarning",
)


def two_ranks(run, *args):
    """What a function returns in each of two processes; they must not hang."""
    fork = multiprocessing.get_context("fork")
    queue, port = fork.Queue(), free_port()

    def rank(number):
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": "2",
            "NODE_RANK": "0",
            "LOCAL_RANK": str(number),
        }
        try:
            found = run(number, *args), None
        except BaseException:
            found = None, traceback.format_exc()
        queue.put(pickle.dumps((number, *found)))
        queue.close()
        queue.join_thread()
        os._exit(0)

    ranks = [fork.Process(target=rank, args=(number,)) for number in range(2)]
    for process in ranks:
        process.start()
    found = {}
    try:
        for _ in ranks:
            number, value, problem = pickle.loads(queue.get(timeout=120))  # noqa: S301
            assert problem is None, problem
            found[number] = value
    except Empty:
        pytest.fail(f"Ranks wait for one another; done: {list(found)}.")
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [found[0], found[1]]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Counting(nn.Module):
    """A part of the user's own, which a scoring pass must leave as it was."""

    def __init__(self):
        super().__init__()
        self.linear, self.count = nn.Linear(8, 8), 0

    def forward(self, x):
        self.count += 1
        return self.linear(x)


class Module(L.LightningModule):
    """Shards its parts itself, if asked to."""

    shard = staticmethod(fully_shard)

    def __init__(self, units=(), lr=0.1):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(6, 8), nn.Tanh(), Counting(), nn.Tanh(), nn.Linear(8, 3))
        )
        nn.init.normal_(self.net[4].weight, std=4.0)
        self.units, self.lr, self.seen = units, lr, []

    def configure_model(self):
        for name in self.units:
            self.set_submodule(name, self.shard(self.get_submodule(name)))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append(len(x))
        return functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class OnCPU(FSDPStrategy):
    """FSDP without a GPU: all it needs is to be told the device."""

    def _setup_model(self, model):
        return FullyShardedDataParallel(
            model,
            device_id=torch.device("cpu"),
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            **self.kwargs,
        )


def fsdp2(data=2, tensor=1):
    return ModelParallelStrategy(data, tensor, process_group_backend="gloo")


EACH = ("net.0", "net.2", "net.4", "net")
# FSDP2 records events on a CPU's stand-in for streams, which torch 2.6 left without.
FSDP2 = hasattr(torch.cpu.Stream, "record_event")
NO_FSDP2 = f"FSDP2 of torch {torch.__version__} needs a GPU"
STRATEGIES = {  # name: strategy, units that a module shards itself
    "ddp": (lambda: "ddp", ()),
    "fsdp1": (OnCPU, ()),
    "fsdp1 nested": (lambda: OnCPU(auto_wrap_policy={nn.Linear, Counting}), ()),
    "fsdp2": (fsdp2, ("net",)),
    "fsdp2 nested": (fsdp2, EACH),
}
SHARDED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name.startswith("fsdp2") and not FSDP2, reason=NO_FSDP2
        ),
    )
    for name in STRATEGIES
    if name != "ddp"
]
OTHERS = {
    "fsdp1 wrapped": (OnCPU, EACH),
    "tensor parallel": (lambda: fsdp2(1, 2), ()),
}


def able(*names):
    """Those that run here without a GPU."""
    return tuple(name for name in names if FSDP2 or not name.startswith("fsdp2"))


def trained(name, sampling, data, *others, kind=Module, ckpt_path=None, **settings):
    """Fit a module under a strategy; return the Trainer."""
    torch.manual_seed(0)
    strategy, units = (STRATEGIES | OTHERS)[name]
    defaults = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 10**9,
        "max_epochs": 1,
        "use_distributed_sampler": not isinstance(data, Apart),
    }
    trainer = L.Trainer(
        *(),
        accelerator="cpu",
        devices=2,
        strategy=strategy(),
        callbacks=[sampling, *others],
        **(defaults | settings),
    )
    kept = {"datamodule": data} if isinstance(data, L.LightningDataModule) else {}
    loaders = {} if kept or data is None else {"train_dataloaders": data}
    trainer.fit(kind(units), ckpt_path=ckpt_path, **kept, **loaders)
    return trainer


def parameters(trainer):
    """All of them, whole, as one vector."""
    module = trainer.lightning_module
    if isinstance(trainer.strategy, FSDPStrategy):
        with FullyShardedDataParallel.summon_full_params(trainer.strategy.model):
            return nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    whole = [getattr(p, "full_tensor", lambda p=p: p)() for p in module.parameters()]
    return torch.cat([p.detach().flatten() for p in whole])


def opened(batch_size=4, **settings):
    return ImportanceSamplingCallback(batch_size, gate=AlwaysOpen(), **settings)


def own_losses(module, batch):
    x, y = batch
    return functional.cross_entropy(module.net(x), y, reduction="none")


class Penalised(Module):
    """Parameters that reach the loss around the head, whatever the data."""

    def training_step(self, batch, batch_idx):
        weight = self.net[0].weight
        weight = weight.full_tensor() if self.units else weight
        return super().training_step(batch, batch_idx) + 0.1 * weight.square().sum()


def proxy():
    torch.manual_seed(1)
    return Module()


class Wrapped(Module):
    """Brings its parts to FSDP wrapped; then the strategy does not wrap the whole."""

    def __init__(self, units):
        super().__init__(EACH)

    def shard(self, part):
        return FullyShardedDataParallel(
            part, device_id=torch.device("cpu"), use_orig_params=True
        )


CASES = {
    "open": lambda data: (opened(), data, {}),
    "accumulated": lambda data: (opened(), data, {"accumulate_grad_batches": 2}),
    # Scored apart from the step, in the midst of what accumulates.
    "closed": lambda data: (
        ImportanceSamplingCallback(
            4, gate=NeverOpen(), per_sample_loss=own_losses, scorer=Loss()
        ),
        data,
        {"max_epochs": 3, "accumulate_grad_batches": 2},
    ),
    "two stages": lambda data: (
        opened(),
        OversamplingDataModule(data, keep=0.5),
        {"max_epochs": 2},
    ),
    "source": lambda data: (
        ImportanceSamplingCallback(source=PassSource(Shuffled(), rescore_every=1)),
        data,
        {"max_epochs": 2},
    ),
    "presampled": lambda data: (opened(12), OversamplingDataModule(data, 24), {}),
    "cheap scores": lambda data: (
        opened(score_precision="bf16", proxy=proxy()),
        data,
        {},
    ),
}
FEW = able("ddp", "fsdp1 nested", "fsdp2 nested")


@pytest.mark.parametrize("case", CASES)
def test_every_strategy_takes_the_same_steps(kit, case):
    names = able(*STRATEGIES) if case == "open" else FEW
    names = (*FEW, "fsdp1 wrapped") if case == "accumulated" else names

    def run(rank):
        found = {}
        for name in names:
            sampling, data, settings = CASES[case](kit.loader(96))
            if name == "fsdp1 wrapped":
                settings["kind"] = Wrapped
            trainer = trained(name, sampling, data, **settings)
            module, state = trainer.lightning_module, sampling.state_dict()
            found[name] = parameters(trainer), state["draws"], module.seen
            # A pass that scores leaves no trace, also in parts of the user's own.
            assert module.net[2].count == len(module.seen)
        return found

    one, other = two_ranks(run)
    expected, draws, seen = one["ddp"]
    assert case in ("closed", "source") or draws > 0
    for name in names:
        assert torch.equal(one[name][0], other[name][0])
        torch.testing.assert_close(one[name][0], expected, rtol=1e-5, atol=1e-6)
        assert one[name][1:] == other[name][1:] == (draws, seen)


def test_every_strategy_scores_in_its_own_mixed_precision(kit):
    """FSDP1 rounds the parameters themselves, autocast each operation."""

    def run(rank):
        found = {}
        for name in able(*STRATEGIES):
            gate = TauGate(1.0, smoothing=0.0)  # closed, then open
            sampling = ImportanceSamplingCallback(4, gate=gate)
            trainer = trained(
                *(name, sampling, kit.loader()), precision="bf16-mixed", max_steps=2
            )
            assert sampling.state_dict()["draws"] == 1
            found[name] = parameters(trainer), gate.tau
        return found

    one, other = two_ranks(run)
    for name, (whole, tau) in one.items():
        like = "fsdp1" if name.startswith("fsdp1") else "ddp"
        assert torch.equal(whole, other[name][0])
        torch.testing.assert_close(whole, one[like][0], rtol=1e-5, atol=1e-6)
        assert tau == other[name][1] == pytest.approx(one["ddp"][1], rel=0.1)


class Apart(L.LightningDataModule):
    """Each rank has batches of its own."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader(self.batches[self.trainer.global_rank], batch_size=None)


def apart(kit, scales, sizes):
    """Inputs of each rank multiplied, batches of its sizes."""
    x, y = kit.examples(sum(sizes[0]) + sum(sizes[1]))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    parts = order.split([*sizes[0], *sizes[1]])
    batches = [[x[part], y[part]] for part in parts]
    one, other = batches[: len(sizes[0])], batches[len(sizes[0]) :]
    return Apart(
        [[x * scales[0], y] for x, y in one], [[x * scales[1], y] for x, y in other]
    )


class Decisions(L.Callback):
    """Notes of every step whether it was drawn."""

    def __init__(self):
        self.taken = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.taken.append(trainer.callbacks[0].is_sampling)


def test_ranks_with_very_different_data_never_disagree(kit):
    """One alone would open the gate often, the other hardly ever."""

    def run(rank):
        look, data = Decisions(), apart(kit, (0.01, 10.0), ([12] * 20, [12] * 20))
        gate = TauGate(1.08, smoothing=0.5)
        sampling = ImportanceSamplingCallback(4, gate=gate)
        trainer = trained("ddp", sampling, data, look, max_epochs=10)
        assert len(look.taken) == 200
        return look.taken, parameters(trainer), gate.state_dict()

    one, other = two_ranks(run)
    assert one[0] == other[0]
    assert 20 < sum(one[0]) < 180
    assert torch.equal(one[1], other[1])
    assert one[2] == other[2]


def test_the_mean_gradient_over_ranks_is_that_of_one_process(kit):
    """Each rank draws from its own examples, a few of which matter most by far."""
    steps, scales = 250, (0.3, 3.0)

    class Same(Apart):
        def train_dataloader(self):
            batch = self.batches[self.trainer.global_rank][0]
            return DataLoader([batch] * steps, batch_size=None)

    class Gradients(L.Callback):
        def __init__(self):
            self.found = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            every = [p.grad.flatten() for p in pl_module.parameters()]
            self.found.append(torch.cat(every))

    data = apart(kit, scales, ([12], [12]))

    def run(rank):
        look = Gradients()
        trainer = trained("ddp", opened(), Same(*data.batches), look, kind=Still)
        assert trainer.global_step == steps
        return torch.stack(look.found)

    one, other = two_ranks(run)
    assert torch.equal(one, other)
    torch.manual_seed(0)
    module = Module()
    x, y = (torch.cat(part) for part in zip(*(b[0] for b in data.batches), strict=True))
    functional.cross_entropy(module.net(x), y).backward()
    full = torch.cat([p.grad.flatten() for p in module.parameters()])
    error = one.std(0) / steps**0.5
    assert ((one.mean(0) - full).abs() < 4.5 * error + 1e-6).all()
    assert (full.abs() > 9 * error).any()  # or it would show nothing


class Still(Module):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_uneven_batches_do_not_hang(kit):
    """Ranks run as often however many examples they have; few are all trained on."""
    sizes = [12, 12, 12], [6, 12, 3]

    def run(rank):
        found = {}
        for name in FEW:
            data = apart(kit, (1.0, 1.0), sizes)
            trainer = trained(name, opened(), data)
            found[name] = parameters(trainer), trainer.lightning_module.seen
        return found

    ranks = two_ranks(run)
    for found, own in zip(ranks, sizes, strict=True):
        for name in FEW:
            assert torch.equal(found[name][0], ranks[0][name][0])
            torch.testing.assert_close(
                found[name][0], ranks[0]["ddp"][0], rtol=1e-5, atol=1e-6
            )
            assert found[name][1] == [min(4, size) for size in own]


@pytest.mark.skipif(not FSDP2, reason=NO_FSDP2)
def test_a_run_goes_on_where_its_checkpoint_ends(kit, tmp_path):
    """Under FSDP2 the state is loaded only after the fit has begun."""

    def run(rank):
        def fit(**settings):
            gate = TauGate(1.05, smoothing=0.8)
            sampling = ImportanceSamplingCallback(4, gate=gate)
            trainer = trained("fsdp2 nested", sampling, kit.loader(96), **settings)
            return trainer, parameters(trainer), sampling

        _, whole, sampling = fit(max_epochs=4)
        first, _, _ = fit(max_epochs=2)
        first.save_checkpoint(tmp_path / "last.ckpt")
        path = str(tmp_path / "last.ckpt")
        resumed, again, anew = fit(max_epochs=4, ckpt_path=path)
        assert resumed.global_step == 2 * first.global_step
        assert torch.equal(whole, again)
        states = sampling.state_dict(), anew.state_dict()
        for part in ("draws", "batches", "pending", "gate"):
            assert states[0][part] == states[1][part]
        return states[0]["draws"]

    one, other = two_ranks(run)
    assert one == other > 0


def test_a_presample_size_that_lightning_loses_is_refused(kit):
    def run(rank):
        loader = OversamplingDataModule(kit.loader(), 24).train_dataloader()
        with pytest.raises(ValueError, match=r"`presample_size` must .*datamodule="):
            trained("ddp", opened(12), loader)

    two_ranks(run)


class Warm(Module):
    """A temperature after the head."""

    def __init__(self, units):
        super().__init__((*units, "warmth") if units else units)
        self.warmth = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self.net(x) * self.warmth(x[:, :1]), y)


@pytest.mark.parametrize("name", SHARDED)
def test_a_shard_around_the_head_is_refused(kit, name):
    def run(rank):
        sampling = opened(head="net.4")
        got = r"through the head \((FSDP)?Linear\).*got a shard of shape"
        with pytest.raises(RuntimeError, match=got):
            trained(name, sampling, kit.loader(), kind=Warm)

    two_ranks(run)


def test_penalties_beside_accumulation_are_looked_at_again(kit):
    """Gradients of the parameters are then taken, between two batches of a step."""

    def run(rank):
        return {
            name: parameters(
                trained(
                    *(name, opened(), kit.loader(288)),
                    kind=Penalised,
                    accumulate_grad_batches=2,
                )
            )
            for name in able("ddp", "fsdp1", "fsdp2 nested")
        }

    one, _ = two_ranks(run)
    for whole in one.values():
        torch.testing.assert_close(whole, one["ddp"], rtol=1e-4, atol=1e-5)


def test_tensor_parallelism_is_refused(kit):
    def run(rank):
        with pytest.raises(RuntimeError, match="got tensor parallelism over 2 of them"):
            trained("tensor parallel", opened(), kit.loader())

    two_ranks(run)


# Without processes.


def test_spawned_processes_train(kit):
    trainer = kit.trainer(
        *(opened(),), strategy="ddp_spawn", devices=2, log_every_n_steps=10**9
    )
    module = BoringModel()
    before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    trainer.fit(module, DataLoader(RandomDataset(32, 64), batch_size=8))
    after = nn.utils.parameters_to_vector(module.parameters())
    assert not torch.equal(before, after)


@pytest.mark.parametrize("kind", [DeepSpeedStrategy, XLAStrategy])
def test_strategies_derived_from_ddp_are_refused_all_the_same(kit, kind):
    trainer = kit.trainer(opened())
    trainer._accelerator_connector.strategy = object.__new__(kind)
    with pytest.raises(RuntimeError, match=f"got {kind.__name__}.*strategy='ddp'"):
        host.refuse_unsupported(trainer, Module())


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({"acceptance": LossPercentile(), "scorer": Loss()}, "strategy='ddp'"),
        ({"scorer": GradientNorm(), "batch_size": 4}, r"scorer=UpperBound\(\)"),
    ],
    ids=["acceptance", "gradient norm"],
)
def test_what_needs_whole_parameters_or_ways_of_ones_own_is_refused(
    kit, settings, cure
):
    sampling = ImportanceSamplingCallback(**settings)
    trainer = kit.trainer(sampling)
    trainer._accelerator_connector.strategy = OnCPU()
    with pytest.raises(RuntimeError, match=f"under OnCPU.*{cure}"):
        sampling.on_fit_start(trainer, Module())


def test_manual_optimisation_of_shards_is_refused(kit):
    trainer, module = kit.trainer(opened()), Module()
    trainer._accelerator_connector.strategy = OnCPU()
    module.automatic_optimization = False
    with pytest.raises(RuntimeError, match=r"got manual optimisation.*let the Trainer"):
        host.refuse_unsupported(trainer, module)


def test_a_scaler_of_fsdp_is_known(kit):
    trainer = kit.trainer()
    plugin = FSDPPrecision("16-mixed")
    trainer.strategy._precision_plugin = plugin
    assert host.scales_gradients(trainer)
    plugin.scaler = None
    assert not host.scales_gradients(trainer)
    assert host.gradient_scale(trainer) == 1
