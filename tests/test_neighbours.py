"""Lightning's callbacks and loaders beside ours: each sees what it should."""

import copy
import csv
from datetime import timedelta

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from lightning_is import ImportanceSamplingCallback
from lightning_is.data import PassSource
from lightning_is.sampling import AlwaysOpen, NeverOpen, TauGate
from lightning_is.sampling.subset import ImportanceSubset

pytestmark = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists",
    "ignore:The .* does not have many workers",
)


def opened(batch_size=4, **settings):
    return ImportanceSamplingCallback(batch_size, gate=AlwaysOpen(), **settings)


def parameters(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


class Scored(L.LightningModule):
    """Logs nothing itself."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Every(L.Callback):
    """Notes the parameters after every step, and at the start of every epoch."""

    def __init__(self):
        self.steps, self.epochs = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append(parameters(pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(parameters(pl_module))


# Averages of the parameters.


@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval")
def test_averaging_at_the_end_of_epochs(kit):
    """The mean of epochs that trained on draws; draws are those of a run without it."""
    every, plain = Every(), Every()
    averaged, sampling = kit.Classifier(kit.mlp()), opened()
    alone = copy.deepcopy(averaged)
    averaging = StochasticWeightAveraging(0.1, swa_epoch_start=2, annealing_epochs=1)
    kit.trainer(sampling, averaging, every, max_epochs=4).fit(averaged, kit.loader())
    kit.trainer(opened(), plain, max_epochs=4).fit(alone, kit.loader())
    assert averaged.seen[-1] == 4
    assert sampling.state_dict()["draws"] == 16
    assert torch.equal(every.steps[3], plain.steps[3])
    expected = torch.stack(every.epochs[1:]).mean(0)
    torch.testing.assert_close(parameters(averaged), expected)


@pytest.mark.parametrize("gate", [AlwaysOpen, NeverOpen])
def test_the_statistics_of_averaged_networks_are_those_of_whole_batches(kit, gate):
    """Its last pass only normalises; drawn batches would be no fair sample."""
    net = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    averaging = StochasticWeightAveraging(0.1, swa_epoch_start=1, annealing_epochs=1)
    sampling = ImportanceSamplingCallback(4, gate=gate())
    kit.trainer(sampling, averaging, max_epochs=3).fit(
        kit.Classifier(net), kit.loader()
    )
    means = torch.stack([x.mean(0) for x, _ in kit.loader()])
    variances = torch.stack([x.var(0) for x, _ in kit.loader()])
    torch.testing.assert_close(net[0].running_mean, means.mean(0))
    torch.testing.assert_close(net[0].running_var, variances.mean(0))
    assert net[0].num_batches_tracked == 4


def test_a_moving_average_of_drawn_steps(kit):
    every, module = Every(), kit.Classifier(kit.mlp())
    averaging = EMAWeightAveraging(decay=0.5)
    kit.trainer(opened(), every, averaging, max_epochs=2).fit(module, kit.loader())
    expected = every.steps[0]
    for step in every.steps[1:]:
        expected = 0.5 * expected + 0.5 * step
    torch.testing.assert_close(parameters(module), expected)
    assert module.seen[-1] == 4


# Searches before the run.


def searched(kit, tmp_path, *tuners, sampling, batches=None):
    module = kit.Classifier(kit.mlp())
    trainer = kit.trainer(sampling, *tuners, default_root_dir=tmp_path, max_epochs=2)
    trainer.fit(module, batches or kit.loader())
    return module, sampling.state_dict()


def test_the_learning_rate_finder_leaves_no_trace(kit, tmp_path):
    """Its steps are plain ones; the run after it draws as one with that rate would."""
    finder = LearningRateFinder(num_training_steps=6, early_stop_threshold=None)
    sampling = ImportanceSamplingCallback(4, gate=TauGate(1.15, smoothing=0.5))
    module, state = searched(kit, tmp_path, finder, sampling=sampling)
    searching = module.seen[:6]
    assert searching == [12] * 6

    torch.manual_seed(0)
    alone = kit.Classifier(kit.mlp(), lr=module.lr)
    again = ImportanceSamplingCallback(4, gate=TauGate(1.15, smoothing=0.5))
    kit.trainer(again, max_epochs=2).fit(alone, kit.loader())
    assert state == again.state_dict()
    assert state["draws"] > 0
    assert module.seen[6:] == alone.seen
    assert torch.equal(parameters(module), parameters(alone))


def test_a_tuner_before_the_run_leaves_no_trace(kit, tmp_path):
    module, sampling = kit.Classifier(kit.mlp()), opened()
    before = copy.deepcopy(sampling.state_dict())
    trainer = kit.trainer(sampling, default_root_dir=tmp_path)
    Tuner(trainer).lr_find(module, kit.loader(), num_training=5)
    assert sampling.state_dict() == before
    assert set(module.seen) == {12}
    trainer.fit(module, kit.loader())
    assert sampling.state_dict()["draws"] == 4
    assert module.seen[-1] == 4


def test_the_learning_rate_finder_beside_a_source(kit, tmp_path):
    """What it loads comes from a pass of the source, whose scores stay unknown."""
    finder = LearningRateFinder(num_training_steps=6, early_stop_threshold=None)
    source = PassSource(ImportanceSubset(0.5))
    sampling = ImportanceSamplingCallback(source=source)
    module, _ = searched(kit, tmp_path, finder, sampling=sampling)

    torch.manual_seed(0)
    alone = kit.Classifier(kit.mlp(), lr=module.lr)
    again = ImportanceSamplingCallback(source=PassSource(ImportanceSubset(0.5)))
    kit.trainer(again, max_epochs=2).fit(alone, kit.loader())
    assert torch.equal(parameters(module), parameters(alone))


def test_the_batch_size_finder_tries_plain_steps(kit, tmp_path):
    class Sized(Scored):
        batch_size = 6
        seen = ()

        def training_step(self, batch, batch_idx):
            self.seen = (*self.seen, len(batch[0]))
            return super().training_step(batch, batch_idx)

        def train_dataloader(self):
            return kit.loader(batch_size=self.batch_size)

    finder = BatchSizeFinder(init_val=6, steps_per_trial=1, max_trials=2)
    module, sampling = Sized(kit.mlp()), opened()
    kit.trainer(finder, sampling, default_root_dir=tmp_path).fit(module)
    assert module.batch_size == 12
    assert sampling.state_dict()["draws"] == 4
    assert module.seen[:2] == (6, 12)
    assert module.seen[-4:] == (4, 4, 4, 4)


# Clocks, monitors, checkpoints.


def rows_of(logger):
    with open(f"{logger.log_dir}/metrics.csv") as file:
        return list(csv.DictReader(file))


def test_a_timer_stops_the_run(kit):
    timer, sampling = Timer(duration=timedelta(microseconds=1)), opened()
    trainer = kit.trainer(timer, sampling, max_epochs=-1)
    trainer.fit(kit.Classifier(kit.mlp()), kit.loader())
    assert timer.time_elapsed("train") > 0
    assert sampling.state_dict()["draws"] == trainer.global_step == 1


@pytest.mark.parametrize("gate", [AlwaysOpen, NeverOpen])
def test_a_throughput_monitor_counts_what_is_trained_on(kit, tmp_path, gate):
    module = kit.Classifier(kit.mlp())
    module.flops_per_batch = 1
    monitor = ThroughputMonitor(lambda batch: len(batch[0]), window_size=4)
    logger = CSVLogger(tmp_path)
    sampling = ImportanceSamplingCallback(4, gate=gate())
    kit.trainer(sampling, monitor, logger=logger).fit(module, kit.loader())
    found = [float(r["train/samples"]) for r in rows_of(logger) if r["train/samples"]]
    assert found == [(4 if gate is AlwaysOpen else 12) * n for n in (1, 2, 3, 4)]


def test_early_stopping_and_checkpoints_by_what_is_logged(kit, tmp_path):
    stopping = EarlyStopping("is/presample_loss", patience=1, min_delta=10.0)
    checkpoint = ModelCheckpoint(tmp_path, monitor="is/tau", mode="max", save_top_k=1)
    trainer = kit.trainer(
        opened(), stopping, checkpoint, max_epochs=9, enable_checkpointing=True
    )
    # Both look when the training epoch ends; there is no validation.
    stopping._check_on_train_epoch_end = True
    trainer.fit(Scored(kit.mlp()), kit.loader())
    assert trainer.current_epoch == 2
    assert float(checkpoint.best_model_score) > 1

    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    state = next(v for k, v in saved["callbacks"].items() if "Importance" in k)
    assert state["draws"] == saved["global_step"]


def test_a_schedule_of_accumulation(kit):
    schedule, sampling = GradientAccumulationScheduler({0: 1, 1: 2}), opened()
    trainer = kit.trainer(schedule, sampling, max_epochs=2)
    trainer.fit(kit.Classifier(kit.mlp()), kit.loader())
    assert trainer.global_step == 4 + 2
    assert sampling.state_dict()["draws"] == 8


def test_free_scores_under_a_schedule_of_accumulation(kit):
    """Still, the scores are per example: the factor of the epoch is taken out."""

    class Losses(L.Callback):
        def __init__(self):
            self.found = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.found.append(float(trainer.callback_metrics["is/presample_loss"]))

    def found(*callbacks):
        losses = Losses()
        module = kit.Classifier(kit.mlp(), lr=0.0)
        sampling = ImportanceSamplingCallback(4, gate=NeverOpen())
        torch.manual_seed(0)
        kit.trainer(*callbacks, sampling, losses, max_epochs=2).fit(
            module, kit.loader()
        )
        return losses.found

    torch.manual_seed(0)
    scheduled = found(GradientAccumulationScheduler({0: 1, 1: 4}))
    assert scheduled[-1] == pytest.approx(scheduled[3])


def test_a_learning_rate_monitor(kit, tmp_path):
    logger = CSVLogger(tmp_path)
    kit.trainer(opened(), LearningRateMonitor(), logger=logger).fit(
        kit.Classifier(kit.mlp()), kit.loader()
    )
    rates = [float(row["lr-SGD"]) for row in rows_of(logger) if row["lr-SGD"]]
    assert rates == pytest.approx([0.1] * len(rates))
    assert rates


# Loaders.


class Two(Scored):
    def training_step(self, batch, batch_idx):
        (x, y), (x2, y2) = batch["a"], batch["b"]
        assert len(x) == len(x2) == len(y2)
        self.trained = len(x)
        both = self.net(torch.cat([x, x2]))
        return functional.cross_entropy(both, torch.cat([y, y2]))


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", None])
def test_two_loaders_side_by_side(kit, mode):
    """One example is one of each: they are drawn, and weighted, together."""
    loaders = {"a": kit.loader(48), "b": kit.loader(24)}
    sampling, module = opened(), Two(kit.mlp())
    data = loaders if mode is None else CombinedLoader(loaders, mode)
    kit.trainer(sampling).fit(module, data)
    assert module.trained == 4
    assert sampling.state_dict()["draws"] == (2 if mode == "min_size" else 4)


def test_loaders_of_different_batch_sizes_have_no_common_example(kit):
    loaders = {"a": kit.loader(48), "b": kit.loader(24, batch_size=6)}
    with pytest.raises(ValueError, match="or pass `index_fn"):
        kit.trainer(opened()).fit(Two(kit.mlp()), CombinedLoader(loaders, "min_size"))


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(zip(*self.rows, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_trimmed(kit, workers):
    """Of 50 examples without a length: four batches of 12, and one of 2 as it is."""
    data = DataLoader(Stream(kit.examples(50)), batch_size=12, num_workers=workers)
    sampling, module = opened(), kit.Classifier(kit.mlp())
    trainer = kit.trainer(sampling, max_steps=8, max_epochs=-1)
    trainer.fit(module, data)
    assert trainer.global_step == 8
    assert sampling.state_dict()["draws"] == 4 + 3
    assert module.seen[-1] == 4
