"""Two processes share a source: its work is divided, its history is the same."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from lightning_is import ImportanceSamplingCallback, monitor
from lightning_is.data import IndexSource, PassSource
from lightning_is.feed import Feed
from lightning_is.progress import Progress
from lightning_is.sampling import (
    AdaptiveSize,
    AlwaysOpen,
    ImportanceSubset,
    LossPercentile,
    NeverOpen,
    Prioritized,
)
from lightning_is.sampling.costs import Timing
from lightning_is.sampling.passes import Shuffled
from lightning_is.scoring import Loss
from lightning_is.state import State

N, BATCH = 24, 4
TWO = {"strategy": "ddp_fork", "devices": 2}


class Numbered(L.LightningModule):
    """Example ``i`` has ``i`` as its first feature."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self.head(x / N), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def numbered(n=N, **settings):
    x = torch.stack([torch.arange(n).float(), torch.ones(n)], 1)
    return DataLoader(
        TensorDataset(x, torch.arange(n) % 3), batch_size=BATCH, **settings
    )


def everyones(rows):
    """What every rank has, in order of the ranks."""
    found = [torch.empty_like(rows) for _ in range(2)]
    torch.distributed.all_gather(found, rows)
    return found


class Ranks(L.Callback):
    """Checks in both processes, whose exceptions end the fit."""

    def __init__(self, sampling, source):
        self.sampling, self.source, self.epochs = sampling, source, [[]]

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        ids = batch[0][:, 0].long()
        assert len(ids) == BATCH
        self.epochs[-1].append(ids)

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs.append([])

    def on_train_end(self, trainer, pl_module):
        self.sampling.state_dict()  # the last scores arrive
        for mine in (
            nn.utils.parameters_to_vector(pl_module.parameters()).detach(),
            self.source.scores,
            torch.tensor([self.source.state_dict()["passes"]]),
        ):
            one, other = everyones(mine)
            assert torch.equal(one, other)
        assert torch.isfinite(self.source.scores).all()
        self.check(trainer, pl_module)

    def check(self, trainer, pl_module):
        """More of it."""


class Disjoint(Ranks):
    def check(self, trainer, pl_module):
        assert trainer.global_step == 3 * N // BATCH // 2
        for epoch in self.epochs[:-1]:
            ranks = everyones(torch.cat(epoch))
            assert not set(ranks[0].tolist()) & set(ranks[1].tolist())
            assert sorted(torch.cat(ranks).tolist()) == list(range(N))


def fit(kit, kind, source, data=None, **settings):
    callback = {
        name: settings.pop(name)
        for name in ("batch_size", "gate", "acceptance", "scorer")
        if name in settings
    }
    callback = {"scorer": Loss()} | callback
    chosen = {} if "acceptance" in callback else {"source": source}
    sampling = ImportanceSamplingCallback(**chosen, **callback)
    look = kind(sampling, source)
    trainer = kit.trainer(sampling, look, **TWO, **settings)
    trainer.fit(Numbered(), data or numbered())


@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_load_disjoint_shares_of_every_pass(kit, workers):
    source = PassSource(Shuffled())
    data = numbered(num_workers=workers)
    fit(kit, Disjoint, source, data, max_epochs=3)


@pytest.mark.parametrize("size", [{}, {"batch_size": 2, "gate": AlwaysOpen()}])
def test_histories_and_parameters_stay_equal(kit, size):
    class Trimmed(Ranks):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert len(batch[0]) == size.get("batch_size", BATCH)

    fit(kit, Trimmed, PassSource(Prioritized()), max_epochs=6, **size)


class Hurried:
    """Ranks whose clocks do not agree on anything."""

    now = 0.0

    def perf_counter(self):
        ahead = torch.distributed.is_initialized() and torch.distributed.get_rank()
        self.now += 0.7 if ahead else 0.2
        return self.now


def test_ranks_with_clocks_of_their_own_choose_the_same_sizes(kit, monkeypatch):
    """Two stages by measured costs: what one rank measures, both go by."""
    monkeypatch.setattr(monitor, "time", Hurried())

    class Alike(Ranks):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.epochs[-1].append(torch.tensor(len(batch[0])))

        def check(self, trainer, pl_module):
            sizes = torch.stack([size for epoch in self.epochs for size in epoch])
            one, other = everyones(sizes)
            assert torch.equal(one, other)
            assert (sizes == BATCH).any()
            assert (sizes < BATCH).any()
            state = torch.tensor(list(self.sampling.gate.state_dict().values()))
            one, other = everyones(state.double())
            assert torch.equal(one, other)
            model = self.sampling.gate._chooser._model
            assert not model.is_empty

    class Uneven(Numbered):
        def training_step(self, batch, batch_idx):
            x, y = batch
            hard = 40.0 * (x[:, :1] % 8 == 0)  # one in eight is all that matters
            z = self.head(x / N) * 0.01 + 20.0 * functional.one_hot(y, 3) - hard
            return functional.cross_entropy(z * (1 - 2 * (hard > 0).float()), y)

    source = PassSource(ImportanceSubset(keep=0.5))
    sampling = ImportanceSamplingCallback(
        source=source, gate=AdaptiveSize((0.25, 0.5), smoothing=0.5), head="head"
    )
    look = Alike(sampling, source)
    trainer = kit.trainer(sampling, look, **TWO, max_epochs=40)
    trainer.fit(Uneven(), numbered())


def test_timings_of_the_ranks_arrive_as_their_means(kit, monkeypatch):
    """Each in its own place, and whether the loader works ahead with them."""
    mine = Timing(BATCH, BATCH, wait=1.0, score=2.0, step=4.0, overlaps=True)
    monkeypatch.setattr(monitor.Timekeeper, "collect", lambda self: mine)
    gate, told = AdaptiveSize(), []
    observe = gate.observe
    gate.observe = lambda evidence: (told.extend(evidence.timings), observe(evidence))

    class Told(L.Callback):
        def on_train_end(self, trainer, pl_module):
            assert told
            assert set(told) == {mine}

    sampling = ImportanceSamplingCallback(gate=gate)
    trainer = kit.trainer(sampling, Told(), **TWO, max_epochs=6)
    trainer.fit(Numbered(), numbered())


@pytest.mark.parametrize("examples", [N, N + 1])  # shared out evenly, and not
def test_scoring_afresh_is_shared_and_known_to_all(kit, examples):
    class Shared(Ranks):
        def on_train_start(self, trainer, pl_module):
            self.scored = []
            pl_module.head.register_forward_hook(self.note)

        def note(self, head, args, output):
            if not head.training and len(args[0]) == BATCH:
                self.scored.append((args[0][:, 0] * N).round().long())

        def check(self, trainer, pl_module):
            x, y = trainer.train_dataloader.dataset.tensors
            fresh = self.table
            with torch.no_grad():
                expected = functional.cross_entropy(
                    pl_module.head(x / N), y, reduction="none"
                )
            torch.testing.assert_close(fresh, expected, rtol=1e-4, atol=1e-6)
            shares = -(-examples // 2)
            mine = torch.cat(self.scored)[-(-(-shares // BATCH) * BATCH) :][:shares]
            ranks = torch.cat(everyones(mine))
            assert set(ranks.tolist()) == set(range(examples))
            assert len(ranks) <= examples + 1

        @property
        def table(self):
            loading = self.source._loading
            return loading.rescore(torch.arange(examples))

    source = PassSource(Shuffled(), rescore_every=1)
    fit(kit, Shared, source, numbered(examples), max_epochs=4)


def test_accepted_examples_fill_batches_however_few_a_rank_accepts(kit):
    class Uneven(Ranks):
        def on_train_start(self, trainer, pl_module):
            self.scored, accept = 0, acceptance.accept
            keep = (0.9, 0.2)[trainer.global_rank]

            def some(losses, generator):
                self.scored += 1
                accept(losses, generator)
                return torch.rand(len(losses), generator=generator) < keep

            acceptance.accept = some

        def on_train_end(self, trainer, pl_module):
            mine = nn.utils.parameters_to_vector(pl_module.parameters()).detach()
            one, other = everyones(mine)
            assert torch.equal(one, other)
            few, many = everyones(torch.tensor(self.scored))
            assert few < many
            # Each rank has its own; a checkpoint would hand one rank's to the others.
            assert self.sampling.state_dict()["queued"] == []
            assert len(self.epochs) - 1 == 5
            assert all(len(epoch) == 3 for epoch in self.epochs[:-1])

    acceptance = LossPercentile()
    fit(
        *(kit, Uneven, PassSource(Shuffled())),
        acceptance=acceptance,
        gate=AlwaysOpen(),
        max_epochs=5,
    )


def test_a_sampler_of_the_users_own_is_refused_though_lightning_wraps_it(kit):
    sampler = WeightedRandomSampler(torch.ones(N), N)
    with pytest.raises(Exception, match="which would be lost"):
        fit(kit, Ranks, PassSource(Shuffled()), numbered(sampler=sampler))


# Without processes.


class Observed(IndexSource):
    """A source that keeps what it is told."""

    def bind(self, loading):
        pass

    def draw(self, batch_size):
        raise NotImplementedError

    def observe(self, indices, scores):
        self.told = indices, scores

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_positions_that_no_float_holds_survive_the_gathering(kit):
    source, trainer = Observed(), kit.trainer()
    trainer.strategy.world_size = 2
    trainer.strategy.reduce = lambda rows, reduce_op: torch.stack(
        [rows[0], rows[0] + 1]
    )
    feed = Feed(trainer, source, State(NeverOpen(), Progress(0)), lambda: 0.0)
    large = 2**24 + 1
    feed.send(torch.tensor([large, 2**53 + 1]), torch.tensor([1.0, 2.0]))
    feed.settle()
    indices, scores = source.told
    assert indices.tolist() == [large, 2**53 + 1, large + 1, 2**53 + 2]
    assert indices.dtype == torch.int64
    assert scores.tolist() == [1.0, 2.0, 2.0, 3.0]
