"""Accepted examples fill batches: none is lost, none is trained on twice."""

import copy
import itertools

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_is import ImportanceSamplingCallback
from lightning_is.data import PassSource
from lightning_is.sampling import AlwaysOpen, LossPercentile, Shuffled, Window
from lightning_is.sampling.passes import Pass
from lightning_is.scoring import Loss

N, BATCH = 24, 6


def accepting(acceptance=None, **settings):
    settings = {"gate": AlwaysOpen(), "scorer": Loss()} | settings
    return ImportanceSamplingCallback(
        acceptance=acceptance or LossPercentile(), **settings
    )


class Every:
    """Accepts those whose turn it is, of all that was ever scored."""

    def __init__(self, acceptance, pattern):
        self.turn, self.scored = itertools.cycle(pattern), []
        acceptance.accept = self.accept

    def accept(self, losses, generator):
        self.scored.append(losses.clone())
        return torch.tensor([next(self.turn) for _ in losses])


class InOrder:
    """A scheme: every example, in order."""

    def __call__(self, scores, progress, generator):
        return Pass(torch.arange(len(scores)), torch.ones(len(scores)))


def ordered(pattern, **settings):
    acceptance = LossPercentile()
    every = Every(acceptance, pattern)
    sampling = accepting(acceptance, **settings)
    sampling._state.source = PassSource(InOrder(), warm_passes=0)  # not shuffled
    return sampling, every


SEEN: list[list[int]] = []


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


class Counter(L.LightningModule):
    """Example ``i`` has ``i`` as its first feature."""

    def __init__(self, rate=0.0):
        super().__init__()
        self.rate, self.ids, self.norms = rate, [], []
        self.head = nn.Linear(2, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.ids.append(x[:, 0].long().tolist())
        return functional.cross_entropy(self.head(x / N), y)

    def on_train_batch_start(self, batch, batch_idx):
        SEEN.append(batch[0][:, 0].long().tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def numbered(n=N, **settings):
    x = torch.stack([torch.arange(n).float(), torch.ones(n)], 1)
    return DataLoader(
        TensorDataset(x, torch.arange(n) % 3), batch_size=BATCH, **settings
    )


@pytest.mark.parametrize("beta", [0.2, 1.0, 5.0])
def test_batches_keep_their_size_and_epochs_their_steps(kit, beta):
    trainer = kit.trainer(accepting(LossPercentile(beta=beta)), max_epochs=5)
    trainer.fit(Counter(rate=0.1), numbered())
    assert {len(ids) for ids in SEEN} == {BATCH}
    assert trainer.global_step == len(SEEN) == 5 * N // BATCH


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "pattern", [[True], [True, False], [False] * 5 + [True], [True, True, False]]
)
def test_leftovers_begin_the_next_batch_in_order_and_none_is_lost(
    kit, pattern, workers
):
    sampling, _ = ordered(pattern)
    kit.trainer(sampling, max_epochs=3).fit(Counter(), numbered(num_workers=workers))
    trained = [i for ids in SEEN for i in ids]
    loaded = itertools.cycle(range(N))
    accepted = (
        i for i, yes in zip(loaded, itertools.cycle(pattern), strict=False) if yes
    )
    assert trained == list(itertools.islice(accepted, len(trained)))
    assert len(trained) == 3 * N


# What a batch may hold.


class Records(Dataset):
    """Batches with names, arrays, and a setting that is no row."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return index


def records(examples):
    numbers = torch.tensor(examples)
    return {
        "x": torch.stack([numbers.float(), torch.ones(len(examples))], 1),
        "y": numbers % 3,
        "name": tuple(f"n{i}" for i in examples),
        "list": [f"l{i}" for i in examples],
        "numbers": [np.float32(i) for i in examples],
        "array": np.array(examples, dtype=np.int16),
        "words": np.array([f"w{i}" for i in examples]),
        "width": 3,
    }


class Mixed(Counter):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)

    def on_train_batch_start(self, batch, batch_idx):
        ids = batch["x"][:, 0].long().tolist()
        SEEN.append(ids)
        assert batch["name"] == tuple(f"n{i}" for i in ids)
        assert batch["list"] == [f"l{i}" for i in ids]
        assert batch["numbers"] == ids
        assert batch["array"].dtype == np.int16
        assert batch["array"].tolist() == ids
        assert batch["words"].tolist() == [f"w{i}" for i in ids]
        assert batch["width"] == 3


def test_all_kinds_of_rows_survive_the_queue_and_a_checkpoint(kit, tmp_path):
    def run(steps, pattern, ckpt=None):
        data = DataLoader(Records(), batch_size=BATCH, collate_fn=records)
        sampling, _ = ordered(pattern)
        trainer = kit.trainer(sampling, max_steps=steps, max_epochs=-1)
        trainer.fit(Mixed(), data, ckpt_path=ckpt)
        return trainer, sampling

    pattern = [True] * 5 + [False] * 2  # leaves some over
    run(12, pattern)
    whole = copy.deepcopy(SEEN)
    SEEN.clear()
    trainer, sampling = run(4, pattern)
    path = tmp_path / "kept.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["callbacks"]
    waiting = saved[sampling.state_key]["queued"]
    assert len(waiting[0]) > 0
    done = sampling_offset(pattern, whole[:4], len(waiting[0]))
    run(12, pattern[done:] + pattern[:done], path)
    assert whole == SEEN


def sampling_offset(pattern, trained, waiting):
    """Where in the pattern the acceptance stood, whole batches scored."""
    accepted, scored = sum(map(len, trained)) + waiting, 0
    turns = itertools.cycle(pattern)
    while accepted > 0 or scored % BATCH:
        accepted -= next(turns)
        scored += 1
    return scored % len(pattern)


def test_a_queue_may_be_full_from_a_checkpoint_alone(kit):
    """Nothing of what is loaded now is accepted; the kinds of rows are still its."""
    sampling, _ = ordered([False])
    rows = records(list(range(8)))
    kept = [rows["x"], rows["y"]]
    kept += [list(rows[k]) for k in ("name", "list", "numbers")]
    kept += [torch.tensor(rows["array"]), rows["words"].tolist()]
    sampling._state.queued = kept
    data = DataLoader(Records(), batch_size=BATCH, collate_fn=records)
    kit.trainer(sampling, max_steps=1).fit(Mixed(), data)
    (trained,) = SEEN
    assert trained == list(range(6))


def test_examples_of_other_shapes_are_refused(kit):
    class Growing(Dataset):
        def __len__(self):
            return N

        def __getitem__(self, index):
            return torch.ones(2 + index // BATCH, 4), index % 3

    class Pooled(Counter):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return functional.cross_entropy(self.head(batch[0].mean(1)), batch[1])

    sampling, _ = ordered([True, False])
    with pytest.raises(ValueError, match=r"got \(2, 4\) and \(3, 4\). Collate to a"):
        kit.trainer(sampling).fit(Pooled(), DataLoader(Growing(), batch_size=BATCH))


# When.


class Opened(L.Callback):
    def __init__(self, sampling):
        self.sampling, self.steps = sampling, []

    def on_train_batch_end(self, *_):
        self.steps.append(self.sampling.is_sampling)


def opened(kit, gate, epochs):
    sampling = accepting(gate=gate)
    look = Opened(sampling)
    kit.trainer(sampling, look, max_epochs=epochs).fit(Counter(rate=0.1), numbered())
    return look.steps


def test_the_first_epoch_trains_on_everything(kit):
    steps = opened(kit, Window(), 3)
    assert steps == [False] * 4 + [True] * 8
    assert sorted(i for ids in SEEN[:4] for i in ids) == list(range(N))


def test_selection_starts_and_ends_with_its_window(kit):
    steps = opened(kit, Window(start=0.25, end=0.75, warmup=0.0), 4)
    assert steps == [False] * 4 + [True] * 8 + [False] * 4


def test_selection_is_interrupted(kit):
    steps = opened(kit, Window(interrupt=2, warmup=1.0), 4)
    assert steps[:4] == [False] * 4
    assert steps[4:] == [True, True, False] * 4


# What batch normalisation takes in.


class Normed(Counter):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        self.trained = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        return functional.cross_entropy(self.head(self.drop(self.norm(x))), y)


def test_running_statistics_are_of_everything_that_was_scored(kit):
    module, (sampling, every) = Normed(), ordered([True, False, False])
    norm = nn.BatchNorm1d(2)
    kit.trainer(sampling, max_epochs=2).fit(module, numbered())
    x = numbered().dataset.tensors[0]
    for count in range(len(every.scored)):
        first = count * BATCH % N
        norm(x[first : first + BATCH])
    assert len(every.scored) > 16
    assert norm.num_batches_tracked == module.norm.num_batches_tracked
    torch.testing.assert_close(norm.running_mean, module.norm.running_mean)
    torch.testing.assert_close(norm.running_var, module.norm.running_var)


# Smaller images.


class Images(Counter):
    """Convolutions of any size of image, and notes which it was given."""

    def __init__(self, *, adaptive=True):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        pool = nn.AdaptiveAvgPool2d(2) if adaptive else nn.AvgPool2d(4)
        self.net = nn.Sequential(self.norm, pool, nn.Flatten())
        self.head = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        SIZES.append((batch[0].shape[-1], self.training))
        return functional.cross_entropy(self.head(self.net(batch[0])), batch[1])

    def on_train_batch_start(self, batch, batch_idx):
        SEEN.append(batch[0])


SIZES: list[tuple[int, bool]] = []


def images(n=N):
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return DataLoader(TensorDataset(x, torch.arange(n) % 3), batch_size=BATCH)


def test_small_images_are_scored_and_whole_ones_trained_on(kit):
    SIZES.clear()
    module, (sampling, every) = Images(), ordered([True, False], scale_factor=0.5)
    kit.trainer(sampling, max_epochs=3).fit(module, images())
    scored = [training for size, training in SIZES if size == 4]
    assert scored == [False] * len(every.scored)
    assert SIZES[-1] == (8, True)
    assert [training for size, training in SIZES if size == 8].count(True) >= 12
    assert all(x.shape == (BATCH, 1, 8, 8) for x in SEEN)
    norm = nn.BatchNorm2d(1)  # of what was trained on, whole
    for x in SEEN:
        norm(x)
    torch.testing.assert_close(norm.running_mean, module.norm.running_mean)
    assert norm.num_batches_tracked == module.norm.num_batches_tracked


def test_a_module_of_one_image_size_is_told_of_the_scale_factor(kit):
    sampling, _ = ordered([True], scale_factor=0.5)
    match = r"scored with `scale_factor=0.5` must accept smaller images, got .* Pool"
    with pytest.raises(RuntimeError, match=match):
        kit.trainer(sampling).fit(Images(adaptive=False), images())


# What goes wrong.


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("silent", [{0}, {2}, {1, 2, 3}])
def test_a_step_without_a_loss_is_skipped(kit, silent):
    """A batch with a silent example in it has no loss; others go on."""

    class Silent(Counter):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if int(batch[0][0, 0]) // BATCH in silent else loss

    sampling, _ = ordered([True, False])
    trainer = kit.trainer(sampling, max_epochs=4)
    trainer.fit(Silent(), numbered())
    assert {len(ids) for ids in SEEN} == {BATCH}
    assert trainer.fit_loop.epoch_loop.total_batch_idx + 1 == 16


def test_acceptance_goes_with_neither_an_index_fn_nor_a_batch_size():
    with pytest.raises(ValueError, match="got an `index_fn` for batches only you"):
        accepting(index_fn=lambda batch, indices: batch)
    with pytest.raises(ValueError, match="as large as the loader's, got batch_size=4"):
        ImportanceSamplingCallback(4, acceptance=LossPercentile())


def test_equal_losses_do_not_hold_the_run_up(kit):
    module = Counter()
    nn.init.zeros_(module.head.weight)
    nn.init.zeros_(module.head.bias)
    with pytest.warns(UserWarning, match="too few examples were accepted"):
        kit.trainer(accepting(), max_steps=2).fit(module, numbered())
    assert {len(ids) for ids in SEEN} == {BATCH}


def test_a_shuffled_source_is_the_default(kit):
    sampling = accepting(LossPercentile(floor=1.0))
    kit.trainer(sampling, max_epochs=2).fit(Counter(), numbered())
    for epoch in (SEEN[:4], SEEN[4:]):
        assert sorted(i for ids in epoch for i in ids) == list(range(N))
    assert isinstance(sampling._state.source.scheme, Shuffled)
