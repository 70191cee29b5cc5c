"""What loggers wrote, read back."""

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from lightning_is import ImportanceSamplingCallback
from lightning_is.sampling import AlwaysOpen, ImportancePlan, NeverOpen, Warmup

NAMES = {
    "is/tau",
    "is/open",
    "is/effective_batch",
    "is/max_weight",
    "is/presample_loss",
    "is/score_time_share",
}


def rows_of(logger):
    with open(f"{logger.log_dir}/metrics.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_csv_has_every_metric_in_the_rows_of_the_modules_own(kit, tmp_path, accumulate):
    logger = CSVLogger(tmp_path)
    sampling = ImportanceSamplingCallback(4, gate=Warmup(2))
    kit.trainer(
        sampling, logger=logger, max_epochs=2, accumulate_grad_batches=accumulate
    ).fit(kit.Classifier(kit.mlp()), kit.loader())

    rows = rows_of(logger)
    assert len(rows) == 8 // accumulate
    for row in rows:
        assert row["train/loss"]
        assert all(row[name] for name in NAMES)
    opened = [float(row["is/open"]) for row in rows]
    assert opened == [0.0] * (2 // accumulate) + [1.0] * (6 // accumulate)


def test_tensorboard_has_every_metric_on_the_same_steps(kit, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    sampling = ImportanceSamplingCallback(4, gate=AlwaysOpen())
    kit.trainer(sampling, logger=logger, log_every_n_steps=2).fit(
        kit.Classifier(kit.mlp()), kit.loader()
    )
    events = EventAccumulator(logger.log_dir).Reload()
    steps = {name: [e.step for e in events.Scalars(name)] for name in NAMES}
    assert set(events.Tags()["scalars"]) >= NAMES
    own = [e.step for e in events.Scalars("train/loss")]
    assert all(found == own for found in steps.values())
    assert own == [1, 3]


def test_the_logged_numbers_are_the_ones_of_the_step(kit, tmp_path):
    torch.manual_seed(0)
    net = kit.mlp()
    x, y = next(iter(kit.loader()))
    with torch.no_grad():
        z = net(x)
        loss = functional.cross_entropy(z, y).item()
        scores = (z.softmax(1) - functional.one_hot(y, 3)).norm(dim=1).double()
    expected = {
        "is/tau": (scores.square().mean().sqrt() / scores.mean()).item(),
        "is/effective_batch": ImportancePlan().effective_batch(scores, 4).item(),
        "is/presample_loss": loss,
    }
    for gate in (AlwaysOpen(), NeverOpen()):
        trainer = kit.trainer(ImportanceSamplingCallback(4, gate=gate), max_steps=1)
        torch.manual_seed(0)
        trainer.fit(kit.Classifier(kit.mlp()), kit.loader())
        logged = {k: float(v) for k, v in trainer.callback_metrics.items()}
        for name, value in expected.items():
            assert logged[name] == pytest.approx(value, rel=1e-4), name
        assert logged["is/open"] == float(gate.is_open)
        assert (logged["is/max_weight"] == 1) == (not gate.is_open)
        assert 0 <= logged["is/score_time_share"] < 1
        assert (logged["is/score_time_share"] > 0) == gate.is_open


def test_the_presample_loss_is_the_whole_batch_under_accumulation_too(kit):
    torch.manual_seed(0)
    module = kit.Classifier(kit.mlp(), lr=0.0)
    losses = [
        functional.cross_entropy(module.net(x), y).item() for x, y in kit.loader()
    ]
    for gate in (AlwaysOpen(), NeverOpen()):
        trainer = kit.trainer(
            ImportanceSamplingCallback(4, gate=gate), accumulate_grad_batches=4
        )
        trainer.fit(module, kit.loader())
        logged = float(trainer.callback_metrics["is/presample_loss"])
        assert logged == pytest.approx(losses[-1], rel=1e-5)


def test_tau_stands_in_the_progress_bar(kit):
    trainer = kit.trainer(ImportanceSamplingCallback(4))
    trainer.fit(kit.Classifier(kit.mlp()), kit.loader())
    assert trainer.progress_bar_metrics["is/tau"] > 1
    assert "is/open" not in trainer.progress_bar_metrics


def test_a_barebones_trainer_logs_nothing(kit):
    module = kit.Classifier(kit.mlp())
    module.log = lambda *args, **kwargs: None
    trainer = kit.trainer(
        ImportanceSamplingCallback(4, gate=AlwaysOpen()),
        barebones=True,
        logger=None,
        log_every_n_steps=None,
        enable_checkpointing=None,
        enable_progress_bar=None,
        enable_model_summary=None,
    )
    trainer.fit(module, kit.loader())
    assert module.seen == [4] * 4


def test_scoring_shows_in_the_profiler(kit):
    trainer = kit.trainer(
        ImportanceSamplingCallback(4, gate=AlwaysOpen()), profiler="simple"
    )
    trainer.fit(kit.Classifier(kit.mlp()), kit.loader())
    times = trainer.profiler.recorded_durations["[ImportanceSamplingCallback].score"]
    assert len(times) == 4
