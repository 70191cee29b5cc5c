"""A source chooses what to load; the user's module, hooks and loader stay theirs."""

import gc
import multiprocessing
import random

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.nn import functional
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_is import ImportanceSamplingCallback, host
from lightning_is.data import PassSource
from lightning_is.sampling import AlwaysOpen, NeverOpen, Shuffled
from lightning_is.sampling.passes import Pass
from lightning_is.scoring import Loss, UpperBound

N, BATCH, CLASSES = 24, 6, 3


class Fixed:
    """A scheme: every example, in order, with weights of a given length."""

    def __init__(self, weights=None):
        self.weights = torch.ones(N) if weights is None else weights
        self.given = []

    def __call__(self, scores, progress, generator):
        self.given.append(scores.clone())
        return Pass(torch.arange(len(self.weights)), self.weights)


class Drawn:
    """A scheme: a pass of uneven probabilities, with weights that undo them."""

    def __init__(self, shares):
        self.shares = shares

    def __call__(self, scores, progress, generator):
        drawn = torch.multinomial(self.shares, N, True, generator=generator)
        return Pass(drawn, 1 / (N * self.shares[drawn]))


class LookUp(L.LightningModule):
    """Example ``i`` is the ``i``-th unit vector, and has a row of weights."""

    def __init__(self, rate=0.0):
        super().__init__()
        self.rate, self.ids, self.found = rate, [], []
        self.head = nn.Linear(N, CLASSES, bias=False)
        self.head.weight.data = torch.randn(CLASSES, N, generator=seeded(1)) * 2

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.ids.append(x.argmax(1).tolist())
        return functional.cross_entropy(self.head(x), y)

    def on_before_optimizer_step(self, optimizer):
        self.found.append(self.head.weight.grad.norm(dim=0) / norms(self.head.weight))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def labels():
    return torch.arange(N) % CLASSES


def losses(weight):
    return functional.cross_entropy(weight.T, labels(), reduction="none").detach()


def norms(weight):
    gradients = weight.detach().T.softmax(1)
    gradients[torch.arange(N), labels()] -= 1
    return gradients.norm(dim=1)


def numbered(**settings):
    data = TensorDataset(torch.eye(N), labels())
    return DataLoader(data, batch_size=BATCH, **settings)


def sourced(scheme=None, *, warm=0, every=None, share=1.0, **settings):
    source = PassSource(
        scheme or Fixed(), warm_passes=warm, rescore_every=every, rescore_share=share
    )
    return ImportanceSamplingCallback(source=source, **settings), source


# What the user's code sees.


class Records(TensorDataset):
    def __init__(self, kind):
        super().__init__(torch.eye(N), labels())
        self.kind = kind

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        if self.kind is dict:
            return {"x": x, "y": y, "name": f"n{index}"}
        return x, y


def as_tuple(examples):
    return tuple(map(torch.stack, zip(*examples, strict=True)))


@pytest.mark.parametrize("kind", [list, dict, tuple])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_module_sees_its_own_batches(kit, kind, workers):
    seen = []

    class Own(LookUp):
        def training_step(self, batch, batch_idx):
            seen.append(batch)
            pair = (batch["x"], batch["y"]) if kind is dict else batch
            return super().training_step(pair, batch_idx)

    collate = as_tuple if kind is tuple else None
    data = DataLoader(
        Records(kind), batch_size=BATCH, collate_fn=collate, num_workers=workers
    )
    module, (sampling, _) = Own(), sourced()
    kit.trainer(sampling).fit(module, data)
    assert all(type(batch) is kind for batch in seen)
    trained = module.ids[-N // BATCH :]
    assert [i for batch in trained for i in batch] == list(range(N))
    if kind is dict:
        assert seen[-1]["name"] == [f"n{i}" for i in range(N - BATCH, N)]


class Hooked:
    """Counts the transfer hooks and keeps what they are given."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.given.append(("before", type(batch), len(batch[0])))
        return batch

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.given.append(("after", type(batch), len(batch[0])))
        return batch


class HookedData(Hooked, L.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.given = []

    def train_dataloader(self):
        return numbered()


class HookedModule(Hooked, LookUp):
    def __init__(self):
        super().__init__()
        self.given = []


@pytest.mark.parametrize("owner", ["module", "datamodule"])
@pytest.mark.parametrize("trim", [False, True])
def test_the_transfer_hooks_see_each_batch_of_the_user_once(kit, owner, trim):
    extra = {"batch_size": 2, "gate": AlwaysOpen()} if trim else {}
    sampling, _ = sourced(**extra)
    if owner == "module":
        module, data = HookedModule(), numbered()
    else:
        module, data = LookUp(), HookedData()
    kit.trainer(sampling).fit(module, data)
    given = (module if owner == "module" else data).given
    assert given == [("before", list, BATCH), ("after", list, BATCH)] * (N // BATCH)


# Two stages.


def test_weights_of_source_and_trim_multiply_and_the_mean_update_is_unbiased(kit):
    shares = torch.linspace(1, 3, N)
    sampling, _ = sourced(Drawn(shares / shares.sum()), batch_size=3, gate=AlwaysOpen())
    module = LookUp()
    kit.trainer(sampling, max_epochs=400, log_every_n_steps=10**9).fit(
        module, numbered()
    )
    assert {len(ids) for ids in module.ids[-100:]} == {3}
    rows = torch.stack(module.found).double()
    error = rows.std(0) / len(rows) ** 0.5
    assert ((rows.mean(0) - 1 / N).abs() / error).max() < 4.5
    assert (rows.mean(0) * N - 1).abs().max() < 0.3


# Scores reach the source.


def losses_of(module, batch):
    x, y = batch
    return functional.cross_entropy(module.head(x), y, reduction="none")


SCORERS = {
    "loss": ({"scorer": Loss()}, losses),
    "upper_bound": ({"scorer": UpperBound()}, norms),
    "own": ({"scorer": Loss(), "per_sample_loss": losses_of}, losses),
}


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("trim", [None, "open", "all", "subset"])
def test_unweighted_scores_reach_the_source_by_index(kit, scorer, uneven, trim):
    settings, expected = SCORERS[scorer]
    settings = dict(settings)
    if trim is not None:
        gate = AlwaysOpen() if trim == "open" else NeverOpen()
        closed = "subset" if trim == "subset" else "all"
        settings |= {"batch_size": 3, "gate": gate, "when_closed": closed}
    weights = torch.linspace(0.5, 2.0, N) if uneven else torch.ones(N)
    sampling, source = sourced(Fixed(weights), **settings)
    module = LookUp()
    kit.trainer(sampling).fit(module, numbered())
    sampling.state_dict()  # the last arrive
    assert source.scores.shape == (N,)
    known = torch.isfinite(source.scores)
    trained = {i for ids in module.ids[-N // BATCH :] for i in ids}
    late = set(range(N - BATCH, N))  # the last are on their way when the fit ends
    if trim != "open":
        assert trained - late <= set(known.nonzero()[:, 0].tolist()) <= trained
    assert int(known.sum()) >= (N - BATCH) // (2 if trim == "subset" else 1)
    torch.testing.assert_close(
        source.scores[known], expected(module.head.weight)[known], rtol=1e-4, atol=1e-6
    )


def test_a_step_that_overflowed_under_a_gradient_scaler_tells_nothing(kit, monkeypatch):
    class Overflowing(LookUp):
        def training_step(self, batch, batch_idx):
            x, y = batch
            losses = functional.cross_entropy(self.head(x), y, reduction="none")
            return (losses * torch.where(x[:, 0] > 0, torch.inf, 1.0)).mean()

        def on_before_optimizer_step(self, optimizer):
            self.head.weight.grad.zero_()  # as a scaler skips the step

    monkeypatch.setattr(host, "scales_gradients", lambda trainer: True)
    sampling, source = sourced()
    kit.trainer(sampling).fit(Overflowing(), numbered())
    sampling.state_dict()  # the last arrive
    known = torch.isfinite(source.scores)
    assert known.tolist() == [False] + [True] * (N - 1)


@pytest.mark.parametrize("scorer", ["loss", "upper_bound"])
def test_accumulation_of_gradients_does_not_change_the_scores(kit, scorer):
    settings, expected = SCORERS[scorer]
    sampling, source = sourced(**settings)
    module = LookUp()
    kit.trainer(sampling, accumulate_grad_batches=2).fit(module, numbered())
    known = torch.isfinite(source.scores)
    torch.testing.assert_close(
        source.scores[known], expected(module.head.weight)[known], rtol=1e-4, atol=1e-6
    )


# Refusals.


class Endless(IterableDataset):
    def __iter__(self):
        return iter(torch.eye(N))


def refused(kit, data, error, match, callback=None, **settings):
    sampling = callback or sourced()[0]
    trainer = kit.trainer(sampling, **settings)
    with pytest.raises(error, match=match):
        trainer.fit(LookUp(), data)
    assert "process_dataloader" not in vars(trainer.strategy)
    return trainer


def test_a_sampler_of_the_users_own_is_refused(kit):
    sampler = WeightedRandomSampler(torch.ones(N), N)
    match = "got a WeightedRandomSampler with a choice of its own, which would be lost."
    refused(kit, numbered(sampler=sampler), TypeError, match)


@pytest.mark.parametrize(
    "make",
    [
        lambda data: RandomSampler(range(N - BATCH)),
        lambda data: SequentialSampler(range(N - BATCH)),
        lambda data: DistributedSampler(range(N - BATCH), 1, 0),
        lambda data: RandomSampler(data, num_samples=N - BATCH),
        lambda data: RandomSampler(data, replacement=True),
    ],
)
def test_a_sampler_that_leaves_examples_out_is_refused(kit, make):
    data = TensorDataset(torch.eye(N), labels())
    loader = DataLoader(data, batch_size=BATCH, sampler=make(data))
    refused(kit, loader, TypeError, "Sampler with a choice of its own")


def test_other_loaders_are_refused(kit):
    refused(kit, DataLoader(Endless()), TypeError, "got an IterableDataset")
    listed = DataLoader(
        TensorDataset(torch.eye(N), labels()), batch_sampler=[[0, 1], [2, 3]]
    )
    refused(kit, listed, TypeError, "got list as its batch sampler")


@pytest.mark.parametrize(
    "data",
    [
        lambda: CombinedLoader({"a": numbered()}, "max_size"),
        lambda: {"a": numbered(), "b": numbered()},
        lambda: [numbered(), numbered()],
    ],
)
def test_several_loaders_are_refused(kit, data):
    class First(LookUp):
        def training_step(self, batch, batch_idx):
            first = batch["a"] if isinstance(batch, dict) else batch[0]
            return super().training_step(first, batch_idx)

    trainer = kit.trainer(sourced()[0])
    with pytest.raises(RuntimeError, match="Return one DataLoader from `train_datal"):
        trainer.fit(First(), data())
    assert "process_dataloader" not in vars(trainer.strategy)


def checkpoint(kit, tmp_path, callback, data=None):
    path = tmp_path / "kept.ckpt"
    trainer = kit.trainer(callback)
    trainer.fit(LookUp(), data or numbered())
    trainer.save_checkpoint(path)
    return path


def test_checkpoints_with_and_without_a_source_do_not_mix(kit, tmp_path):
    plain = ImportanceSamplingCallback(3, gate=NeverOpen())
    for ours, theirs, match in [
        (sourced()[0], plain, "with a `source` for a callback without one. Pass"),
        (plain, sourced()[0], "without a `source` for a callback with one. Pass"),
    ]:
        path = checkpoint(kit, tmp_path, ours)
        trainer = kit.trainer(theirs, max_epochs=2)
        with pytest.raises(ValueError, match=match):
            trainer.fit(LookUp(), numbered(), ckpt_path=path)


def test_a_checkpoint_of_another_dataset_is_refused(kit, tmp_path):
    path = checkpoint(kit, tmp_path, sourced()[0])
    half = TensorDataset(torch.eye(N)[:12], labels()[:12])
    trainer = kit.trainer(sourced()[0], max_epochs=4)
    with pytest.raises(ValueError, match="got scores of 24 examples for 12"):
        trainer.fit(LookUp(), DataLoader(half, batch_size=BATCH), ckpt_path=path)


# The loader.


def test_the_strategy_is_restored(kit):
    sampling, _ = sourced()
    trainer = kit.trainer(sampling)
    before = dict(vars(trainer.strategy))
    trainer.fit(LookUp(), numbered())
    assert vars(trainer.strategy).keys() == before.keys()

    class Broken(LookUp):
        def on_train_batch_end(self, *args):
            raise KeyError("broken")

    trainer = kit.trainer(sourced()[0])
    with pytest.raises(KeyError, match="broken"):
        trainer.fit(Broken(), numbered())
    assert not {"process_dataloader", "batch_to_device", "training_step"} & set(
        vars(trainer.strategy)
    )


def test_validation_loaders_are_left_alone(kit):
    class Validated(LookUp):
        def __init__(self):
            super().__init__()
            self.checked = []

        def validation_step(self, batch, batch_idx):
            self.checked.append(batch[0].argmax(1).tolist())

    ours = numbered()
    sampling, _ = sourced(Fixed(torch.ones(6)))
    module = Validated()
    trainer = kit.trainer(
        sampling, max_epochs=2, num_sanity_val_steps=2, val_check_interval=2
    )
    trainer.fit(module, numbered(), ours)
    assert trainer.val_dataloaders is ours
    in_order = [list(range(i, i + BATCH)) for i in range(0, N, BATCH)]
    assert module.checked == in_order[:2] + in_order * 4
    assert all(ids == list(range(6)) for ids in module.ids[-8:])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reloaded_loader_goes_on_where_the_other_was(kit, workers):
    class Own(LookUp):
        def train_dataloader(self):
            return numbered(num_workers=workers)

    module, (sampling, _) = Own(), sourced(Shuffled())
    trainer = kit.trainer(
        sampling,
        max_epochs=6,
        reload_dataloaders_every_n_epochs=1,
        limit_train_batches=2,
    )
    trainer.fit(module)
    trained = [i for ids in module.ids[-12:] for i in ids]
    assert len(trained) == 72
    for begin in range(0, 72, N):  # whole passes, although loaders took turns
        assert sorted(trained[begin : begin + N]) == list(range(N))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_left_by_a_limited_epoch_come_in_the_next(kit, workers):
    module, (sampling, _) = LookUp(), sourced(Shuffled())
    trainer = kit.trainer(sampling, max_epochs=4, limit_train_batches=3)
    trainer.fit(module, numbered(num_workers=workers))
    assert trainer.global_step == 12
    trained = [i for ids in module.ids[-12:] for i in ids]
    for begin in range(0, 72, N):
        assert sorted(trained[begin : begin + N]) == list(range(N))


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_end_with_their_epoch_and_not_with_a_garbage_collection(
    kit, persistent
):
    """A collection would take the queues first, and then wait for each worker."""

    class Own(LookUp):
        def train_dataloader(self):
            return numbered(num_workers=2, persistent_workers=persistent)

        def on_train_batch_start(self, batch, batch_idx):
            alive.append(len(multiprocessing.active_children()))

    alive = []
    gc.collect()
    gc.disable()
    try:
        sampling, _ = sourced(Shuffled(), every=1, scorer=Loss())
        trainer = kit.trainer(
            sampling,
            max_epochs=3,
            limit_train_batches=3,
            reload_dataloaders_every_n_epochs=2,
        )
        trainer.fit(Own())
        left = len(multiprocessing.active_children())
    finally:
        gc.enable()
    assert alive == [2] * 9
    assert left == 0


def test_fewer_workers_than_before_lose_nothing_that_was_under_way(kit, tmp_path):
    """A checkpoint soon after resuming, in the middle of what was drawn before."""

    def run(steps, workers, ckpt=None):
        module, (sampling, _) = LookUp(), sourced(Shuffled())
        trainer = kit.trainer(sampling, max_steps=steps, max_epochs=-1)
        trainer.fit(module, numbered(num_workers=workers), ckpt_path=ckpt)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return module.ids

    first = run(1, 2)[-1:]
    second = run(2, 0, tmp_path / "1.ckpt")[-1:]
    rest = run(8, 0, tmp_path / "2.ckpt")[-6:]
    whole = run(8, 0)[-8:]
    assert first + second + rest == whole


def test_a_second_fit_of_the_same_callback_goes_on(kit):
    sampling, _ = sourced(Shuffled())
    ids = []
    for _ in range(2):
        module = LookUp()
        kit.trainer(sampling, max_steps=2).fit(module, numbered(num_workers=1))
        ids += [i for batch in module.ids[-2:] for i in batch]
    assert sorted(ids) == list(range(N))


# Scoring afresh.


MODES: list[tuple[bool, list[int]]] = []  # not the module's, whose lists are kept


@pytest.fixture(autouse=True)
def no_modes():
    MODES.clear()


class Watching(LookUp):
    """Has what scoring must not move, and what tells training from evaluation."""

    def __init__(self, rate=0.3):
        super().__init__(rate)
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(N, affine=False)
        self.steps = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        MODES.append((self.training, x.argmax(1).tolist()))
        self.norm(self.drop(x))
        self.steps += 1
        return functional.cross_entropy(self.head(x), y)


def scored_afresh():
    """In whole batches, unlike what is tried on the first batch."""
    scored = [ids for training, ids in MODES if not training and len(ids) == BATCH]
    return [i for ids in scored for i in ids]


class Around:
    """A scheme: notes scores and weights whenever a pass begins."""

    def __init__(self, module):
        self.module, self.notes = module, []

    def __call__(self, scores, progress, generator):
        weight = self.module.head.weight.detach().clone()
        self.notes.append((scores.clone(), losses(weight)))
        return Shuffled()(scores, progress, generator)


@pytest.mark.parametrize("workers", [0, 2])
def test_examples_are_scored_afresh_by_the_network_of_that_moment(kit, workers):
    module = Watching()
    scheme = Around(module)
    sampling, _ = sourced(scheme, warm=1, every=2, scorer=Loss())
    trainer = kit.trainer(sampling, max_epochs=6)
    trainer.fit(module, numbered(num_workers=workers))
    for scores, current in scheme.notes[::2]:
        torch.testing.assert_close(scores, current, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(*scheme.notes[1])  # in between, they lag
    scored = scored_afresh()
    times = torch.bincount(torch.tensor(scored), minlength=N)
    assert times.tolist() == [len(scheme.notes[::2])] * N
    assert module.norm.num_batches_tracked == trainer.global_step == 24
    assert module.steps == 24


def test_a_share_is_scored_afresh_from_the_highest_on(kit):
    module = Watching(rate=0.0)
    sampling, _ = sourced(Fixed(), warm=2, every=1, share=0.25, scorer=Loss())
    kit.trainer(sampling, max_epochs=3).fit(module, numbered())
    scored = scored_afresh()
    assert sorted(scored[-6:]) == sorted(
        losses(module.head.weight).topk(6).indices.tolist()
    )


def test_fresh_scores_are_not_covered_by_those_on_their_way(kit):
    """The last step's scores are older than the network that scores afresh."""
    module = Watching(rate=5.0)
    only = Pass(torch.arange(12), torch.ones(12))
    sampling, source = sourced(lambda *_: only, every=1, scorer=Loss())
    kept = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:  # the second pass has begun
                kept.append((source.scores.clone(), losses(module.head.weight)))

    kit.trainer(sampling, Look(), max_steps=3).fit(module, numbered())
    torch.testing.assert_close(*kept[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_scoring_afresh_leaves_no_trace(kit, workers):
    def run(every):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        module = Watching()
        sampling, _ = sourced(Shuffled(), every=every, scorer=Loss())
        data = numbered(num_workers=workers, generator=seeded(5))
        kit.trainer(sampling, max_epochs=3).fit(module, data)
        states = [torch.get_rng_state(), np.random.get_state()[1]]
        return module, [list(state) for state in states], data.generator.get_state()

    (without, states, users), (having, states_too, users_too) = run(None), run(1)
    assert states == states_too
    assert torch.equal(users, users_too)
    for one, other in zip(
        without.state_dict().values(), having.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_scoring_afresh_works_right_after_resuming_between_two_passes(
    kit, workers, tmp_path
):
    class Keep(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def run(*others, ckpt=None):
        torch.manual_seed(0)
        module = Watching()
        scheme = Around(module)
        sampling, _ = sourced(scheme, every=1, scorer=Loss())
        trainer = kit.trainer(sampling, *others, max_epochs=4)
        trainer.fit(module, numbered(num_workers=workers), ckpt_path=ckpt)
        return module, scheme.notes

    whole, _ = run(Keep())
    resumed, notes = run(ckpt=tmp_path / "1.ckpt")
    assert torch.equal(whole.head.weight, resumed.head.weight)
    torch.testing.assert_close(*notes[0], rtol=1e-4, atol=1e-6)


def test_a_step_without_a_loss_cannot_be_scored_afresh(kit):
    class Silent(LookUp):
        def training_step(self, batch, batch_idx):
            return None

    match = "Return the loss, or drop `rescore_every`"
    trainer = kit.trainer(sourced(every=1)[0])
    with pytest.raises(RuntimeError, match=match):
        trainer.fit(Silent(), numbered())


# The share of the run.


class Shares(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(host.share_of_run(trainer))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_steps": 5, "max_epochs": -1}, 5),
        ({"max_epochs": 2}, 8),
        ({"max_epochs": 2, "max_steps": 6}, 6),
        ({"max_epochs": 2, "limit_train_batches": 2}, 4),
        ({"max_epochs": 2, "max_time": "00:01:00:00"}, 8),
    ],
)
def test_the_share_of_a_run_is_counted_in_steps(kit, settings, steps):
    shares = Shares()
    kit.trainer(shares, **settings).fit(LookUp(), numbered())
    assert shares.seen == pytest.approx([(i + 1) / steps for i in range(steps)])


def test_the_share_of_a_run_with_accumulation_ends_at_one(kit):
    shares = Shares()
    trainer = kit.trainer(shares, max_epochs=2, accumulate_grad_batches=3)
    trainer.fit(LookUp(), numbered())
    assert shares.seen[-1] == 1
    assert shares.seen == sorted(shares.seen)


def test_the_share_of_a_run_that_only_the_clock_ends_is_that_of_its_time(kit):
    shares = Shares()
    timer = Timer("00:00:00:10")
    timer.time_elapsed = lambda stage="train": 2.5
    timer.time_remaining = lambda stage="train": 7.5
    trainer = kit.trainer(shares, timer, max_epochs=-1, limit_train_batches=3)
    ended = iter([False] * 2 + [True])

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = next(ended)

    trainer.callbacks.append(Stop())
    trainer.fit(LookUp(), numbered())
    assert shares.seen == [0.25] * 9


def test_the_share_of_an_endless_run_is_unknown(kit):
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    shares = Shares()
    kit.trainer(shares, Stop(), max_epochs=-1).fit(LookUp(), numbered())
    assert len(shares.seen) == 4
    assert np.isnan(shares.seen).all()


def test_a_source_refuses_to_overfit_a_few_batches(kit):
    trainer = kit.trainer(sourced()[0], overfit_batches=1)
    with pytest.raises(ValueError, match="got `overfit_batches`"):
        trainer.fit(LookUp(), numbered())
