"""Picks are counted as they are, and counting changes nothing."""

from contextlib import nullcontext

import lightning as L
import pytest
import torch
from torch import nn

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.data import Digits, TensorSet, crop_flip
from lightning_is.experiments.picked.counting import Overheard, PickCounter
from lightning_is.experiments.picked.numbered import (
    NumberedBatch,
    NumberedData,
    numbered,
)
from lightning_is.experiments.picked.program import count
from lightning_is.sampling import AlwaysOpen
from lightning_is.scoring import HeadTap, Scored, UpperBound
from lightning_is.scoring.scorer import Step
from tests.experiments.picks import (
    BATCH,
    DRAWN,
    METHODS,
    N,
    configured,
    parameters,
    plain,
)


class Witness:
    """Knows examples by what they look like, and sees what a module is given."""

    def __init__(self, monkeypatch):
        train = Digits(BATCH).splits.train
        rows = train.__getitems__(range(N))[0]
        self.places = {row.numpy().tobytes(): k for k, row in enumerate(rows)}
        self.moved, self.trained = (torch.zeros(N, dtype=torch.int64) for _ in "ab")
        self.last = None
        step = Classifier.training_step

        def seen_step(module, batch, batch_idx):
            assert type(batch) is tuple
            assert len(batch) == 2
            if torch.is_grad_enabled():
                self.last = batch[0]
            return step(module, batch, batch_idx)

        def transfer(module, batch, dataloader_idx):
            assert type(batch) is tuple
            if module.trainer.training:
                self.note(self.moved, batch[0])
            return batch

        def end(module, outputs, batch, batch_idx):
            self.note(self.trained, self.last)

        monkeypatch.setattr(Classifier, "training_step", seen_step)
        for name, hook in {
            "on_after_batch_transfer": transfer,
            "on_train_batch_end": end,
        }.items():
            monkeypatch.setattr(Classifier, name, hook)

    def note(self, counts, x):
        for row in x:
            counts[self.places[row.numpy().tobytes()]] += 1


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
@pytest.mark.parametrize("method", METHODS)
def test_counting_changes_nothing_and_counts_what_the_module_is_given(
    method, tmp_path, monkeypatch
):
    expected = parameters(plain(tmp_path, method).lightning_module)
    witness = Witness(monkeypatch)
    run = count(configured(tmp_path, method))
    counter = run.counter
    assert torch.equal(parameters(run.model), expected)
    assert torch.equal(counter.trained, witness.trained)
    assert (counter.drawn <= counter.trained).all()
    drawn = int(counter.drawn.sum())
    assert drawn == DRAWN.get(method, drawn)
    assert (drawn > 0) == (DRAWN.get(method) != 0)
    assert "training_step" not in vars(run.model)
    afresh = witness.moved - counter.loaded  # scored between two steps
    if method == "online_batch_selection":
        assert torch.equal(counter.loaded, counter.trained)
        assert (afresh > 0).all()
    else:
        assert (afresh == 0).all()


def test_validation_would_change_how_later_epochs_are_shuffled(tmp_path):
    still, validated = (
        parameters(plain(tmp_path, "trim", *words).lightning_module)
        for words in ([], ["++trainer.limit_val_batches=1.0"])
    )
    assert not torch.equal(still, validated)


def test_uniform_draws_are_those_of_the_binomial_distribution(tmp_path):
    """What picks are compared with: a chance of 32 / 128 at every load."""
    word = "distribution@method.callback.plan.distribution=uniform"
    counter = count(configured(tmp_path, "trim", word)).counter
    twice = counter.trained[counter.loaded == 2]
    for times, chance in enumerate((9 / 16, 6 / 16, 1 / 16)):
        error = (chance * (1 - chance) / len(twice)) ** 0.5
        share = float((twice == times).double().mean())
        assert abs(share - chance) < 3.5 * error


@pytest.mark.parametrize("method", ["trim", "two_stage"])
def test_the_mean_score_is_that_of_the_network(method, tmp_path):
    """Which stays as it is at a learning rate of 0; steps are open, and closed too."""
    still = ["optimizer.lr=0.0", "optimizer.weight_decay=0.0"]
    run = count(configured(tmp_path, method, *still))
    x, y = run.data.splits.train.__getitems__(range(N))
    with torch.no_grad():
        slopes = run.model(x).softmax(1) - nn.functional.one_hot(y, 10)
    counter, known = run.counter, run.counter.scored > 0
    assert known.sum() > 0.9 * N
    torch.testing.assert_close(
        counter.scores[known], slopes.norm(dim=1)[known].double()
    )
    assert counter.scores[~known].isnan().all()
    # One that a batch holds twice, where a pass ends in it, is scored in one step.
    twice = counter.loaded - counter.scored
    assert (twice >= 0).all()
    assert twice.sum() == 0 if method == "trim" else 0 < twice.sum() < 0.05 * N


class Told:
    """Scores as it is told to."""

    def __init__(self, *scores):
        self.scores = list(scores)

    def score(self, step, tap, examples):
        return Scored(torch.tensor(self.scores.pop(0)), torch.tensor(0.0))

    def observing(self, tap):
        return nullcontext(lambda examples: None)


def test_an_example_scored_again_within_a_step_counts_once_at_its_last_score(kit):
    told = Told([1.0, 4.0], [3.0, float("nan")], [5.0, 2.0])
    counter = PickCounter(3, Overheard(told))
    places, head = torch.tensor([2, 0]), nn.Identity()
    batch = NumberedBatch(torch.zeros(2, 1), places, places)
    step = Step(lambda batch: batch.x, batch, head, take=lambda batch, rows: batch)
    for number in range(3):
        told.score(step, HeadTap([head]), 2)
        if number > 0:
            counter.on_train_batch_end(kit.trainer(), small(kit), None, batch, number)
    assert counter.scored.tolist() == [2, 0, 2]
    assert counter.scores.tolist()[::2] == [(4.0 + 2.0) / 2, (3.0 + 5.0) / 2]
    assert counter.trained.tolist() == [2, 0, 2]
    assert counter.drawn.sum() == counter.loaded.sum() == 0


class Augmented(Digits):
    """Transforms training batches at random, and asks its Trainer which they are."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return (crop_flip(x, 1), y) if self.trainer.training else batch


def small(kit):
    torch.manual_seed(0)
    return kit.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_data_modules_own_transformations_stay(kit, wrapped):
    def run(data, *others, scorer):
        model = small(kit)
        sampling = ImportanceSamplingCallback(16, scorer=scorer, gate=AlwaysOpen())
        served = OversamplingDataModule(data, 64) if wrapped else data
        trainer = kit.trainer(sampling, *others, max_steps=12, max_epochs=2)
        torch.manual_seed(1)
        trainer.fit(model, datamodule=served)
        return parameters(model)

    scorer, loaded = UpperBound(), 16 if wrapped else 64
    counter = PickCounter(N, Overheard(scorer))
    numbers = NumberedData(Augmented(loaded), counter.hear)
    counted = run(numbers, counter, scorer=scorer)
    assert torch.equal(counted, run(Augmented(loaded), scorer=UpperBound()))
    assert counter.trained.sum() == 12 * 16


def test_a_run_that_fails_gives_the_module_its_step_back(kit):
    model, counter = small(kit), PickCounter(N, Overheard(UpperBound()))

    class Stop(L.Callback):
        def on_train_batch_start(self, *_):
            raise ArithmeticError

    data = NumberedData(Digits(64), counter.hear)
    with pytest.raises(ArithmeticError):
        kit.trainer(counter, Stop()).fit(model, datamodule=data)
    assert "training_step" not in vars(model)


def test_several_processes_are_refused(kit):
    class Two(L.Trainer):
        world_size = 2

    counter = PickCounter(3, Overheard(UpperBound()))
    with pytest.raises(RuntimeError, match="by one process, got a Trainer with 2"):
        counter.setup(Two(accelerator="cpu", logger=False), small(kit), "fit")


def test_examples_outside_of_memory_are_refused(kit):
    with pytest.raises(TypeError, match="in a TensorSet, got a TensorDataset"):
        numbered(kit.loader().dataset)


def test_a_numbered_set_serves_single_examples_too():
    data = numbered(TensorSet(torch.arange(3.0)[:, None], torch.tensor([5, 6, 7])))
    x, y, place = data[2]
    assert (float(x), int(y), int(place)) == (2.0, 7, 2)
    assert isinstance(data[2], NumberedBatch)
