"""Picks are counted as they are, and counting changes nothing."""

import csv
import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torch import nn

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.curves import CurveRecorder
from lightning_is.experiments.data import Digits, TensorSet, crop_flip
from lightning_is.experiments.docs import read
from lightning_is.experiments.picked import picked
from lightning_is.experiments.picked.counting import (
    OverheardScorer,
    PickCounter,
    by_count,
    top_share,
)
from lightning_is.experiments.picked.numbered import (
    NumberedBatch,
    NumberedData,
    numbered,
)
from lightning_is.experiments.picked.picture import as_pictures
from lightning_is.experiments.picked.program import count
from lightning_is.experiments.train import make_trainer, presampled
from lightning_is.sampling import AlwaysOpen
from lightning_is.scoring import UpperBound

CONF = Path(__file__).parents[2] / "conf"
N, BATCH = 1297, 128  # of the digits
QUICK = ["trainer=quick", "model=mlp", "callbacks=none", "trainer.log_every_n_steps=99"]
LONG = ["trainer.max_steps=24", "trainer.max_epochs=3"]
OPEN = ["gate@method.callback.gate=always_open", "method.batch_size=32"]
LATER = [  # closed at first
    *("gate@method.callback.gate=warmup", "method.callback.gate.steps=12"),
    "method.batch_size=32",
]
METHODS = {
    "trim": OPEN,
    "two_stage": LATER,
    "upper_bound": [  # of presamples; tau needs a while to pass 1
        *("method.callback.tau_threshold=1.0", "data.batch_size=64"),
        *("trainer.max_steps=60", "trainer.max_epochs=3"),
    ],
    "selective_backprop": [],
    "prioritized": [],
}


def configured(folder, method, *overrides):
    # No clock decides in which precision scores are computed.
    still = [*QUICK, "score_precision=null"]
    words = [f"method={method}", *still, *LONG, *METHODS[method], *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("picked", [*words, "title=t", f"output_dir={folder}"])


def plain(cfg):
    """Train as the training program does, without anybody counting."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    model = instantiate(cfg.classifier, _convert_="all")
    trainer = make_trainer(cfg, CurveRecorder())
    trainer.fit(model, datamodule=presampled(cfg, data))
    return model


def parameters(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


class Witness:
    """Knows examples by what they look like, and sees what a module is given."""

    def __init__(self, monkeypatch):
        train = Digits(BATCH).splits.train
        rows = train.__getitems__(range(N))[0]
        self.places = {row.numpy().tobytes(): k for k, row in enumerate(rows)}
        self.loaded, self.trained = (torch.zeros(N, dtype=torch.int64) for _ in "ab")
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
                self.note(self.loaded, batch[0])
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
    cfg = configured(tmp_path, method)
    expected = parameters(plain(cfg))
    witness = Witness(monkeypatch)
    run = count(cfg)
    assert torch.equal(parameters(run.model), expected)
    assert torch.equal(run.counter.trained, witness.trained)
    assert torch.equal(run.counter.loaded, witness.loaded)
    assert (run.counter.drawn <= run.counter.trained).all()
    draws = method != "prioritized"  # whose source chooses, and nobody draws
    assert bool(run.counter.drawn.sum() > 0) == draws
    assert "training_step" not in vars(run.model)


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


def test_an_example_scored_again_within_a_step_counts_once_at_its_last_score(kit):
    scorer = OverheardScorer(UpperBound())
    counter = PickCounter(3, scorer)
    places = torch.tensor([2, 0])
    x = torch.zeros(2, 1)
    for step, scores in enumerate(([1.0, 4.0], [3.0, float("nan")], [5.0, 2.0])):
        scorer._passes.append((places, torch.tensor(scores)))
        if step > 0:
            batch = NumberedBatch(x, places, places)
            counter.on_train_batch_end(kit.trainer(), small(kit), None, batch, step)
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

    scorer, loaded = OverheardScorer(UpperBound()), 16 if wrapped else 64
    counter = PickCounter(N, scorer)
    numbers = NumberedData(Augmented(loaded), counter.hear)
    counted = run(numbers, counter, scorer=scorer)
    assert torch.equal(counted, run(Augmented(loaded), scorer=UpperBound()))
    assert counter.trained.sum() == 12 * 16


def test_a_run_that_fails_gives_the_module_its_step_back(kit):
    model, counter = small(kit), PickCounter(N, OverheardScorer(UpperBound()))

    class Stop(L.Callback):
        def on_train_batch_start(self, *_):
            raise ArithmeticError

    data = NumberedData(Digits(64), counter.hear)
    with pytest.raises(ArithmeticError):
        kit.trainer(counter, Stop()).fit(model, datamodule=data)
    assert "training_step" not in vars(model)


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("uniform", [], "got one without a callback. Choose method=trim"),
        ("trim", ["data=rare_hard"], r"shows images, got examples of shape \(2,\)"),
    ],
)
def test_what_cannot_be_counted_is_refused(method, words, message, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = [f"method={method}", *QUICK, *words, f"output_dir={tmp_path}"]
        cfg = compose("picked", [*given, "title=t"])
    with pytest.raises(ValueError, match=message):
        count(cfg)


def test_several_processes_are_refused(kit):
    class Two(L.Trainer):
        world_size = 2

    counter = PickCounter(3, OverheardScorer(UpperBound()))
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


def test_the_share_of_the_top_is_that_of_all_trainings():
    counts = torch.tensor([0, 10, 0, 30, 60] + [0] * 95)
    assert top_share(counts, 0.01) == pytest.approx(0.6)
    assert top_share(counts, 0.1) == 1.0
    assert top_share(torch.full((40,), 3), 0.25) == pytest.approx(0.25)


def test_examples_are_ordered_by_counts_and_then_by_scores():
    counts = torch.tensor([2, 0, 2, 0, 5])
    scores = torch.tensor([0.1, 0.2, 0.9, float("nan"), 0.0]).double()
    assert by_count(counts, scores).tolist() == [4, 2, 0, 1, 3]


def test_pictures_have_their_colours_last_and_range_from_0_to_1():
    bytes_ = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert as_pictures(bytes_, bytes_)[0, 0, 0] == pytest.approx([0, 0.2, 1])
    grey = torch.tensor([-1.0, 0.0, 3.0]).reshape(3, 1, 1, 1)
    assert as_pictures(grey[1:2], grey).shape == (1, 1, 1)
    assert as_pictures(grey[1:2], grey).item() == pytest.approx(0.25)


def test_the_program_leaves_its_picture_its_numbers_and_a_file_of_results(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = f"names=[{','.join('abcdefghij')}]"
    cfg = configured(tmp_path, "two_stage", "publish=mine", names)
    results = picked(cfg)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored == results
    assert results["steps"] == 24
    assert results["loaded"] == 24 * BATCH
    assert 0.01 < results["top_1"] < results["top_10"] < results["top_25"] < 1
    with (tmp_path / "examples.csv").open() as file:
        rows = list(csv.DictReader(file))
    trained = [int(row["trained"]) for row in rows]
    assert sorted(int(row["example"]) for row in rows) == list(range(N))
    assert trained == sorted(trained, reverse=True)
    assert sum(trained) == results["trained"]
    assert float(rows[0]["per_load"]) == pytest.approx(
        trained[0] / int(rows[0]["loaded"]), rel=1e-3
    )
    with Image.open(tmp_path / "picked.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert (pixels < 100).mean() > 0.03  # ink
    found = read(tmp_path / "docs" / "results" / "mine.json")
    assert found.values["top_10"] == results["top_10"]
    assert found.rows[0][:2] == ["t", "1,297"]
    assert (tmp_path / "docs" / "figures" / "mine.png").is_file()
    assert "1,297" in capsys.readouterr().out
