"""The program that counts picks: what it leaves, what it shows, what it refuses."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.data import TensorSet
from lightning_is.experiments.docs import read
from lightning_is.experiments.picked import picked
from lightning_is.experiments.picked.counting import Overheard, PickCounter
from lightning_is.experiments.picked.picture import as_pictures, figure_of
from lightning_is.experiments.picked.program import count
from lightning_is.experiments.picked.ranking import by_count, top_share
from lightning_is.experiments.picked.report import COLUMNS, finding, summary
from lightning_is.experiments.train import train
from lightning_is.scoring import UpperBound
from tests.experiments.picks import BATCH, UNWATCHED, N, configured, plain


def counted(loaded, trained, scores=None):
    """A counter of some run."""
    counter = PickCounter(len(loaded), Overheard(UpperBound()))
    zeros = torch.zeros(len(loaded), dtype=torch.int64)
    scores = zeros if scores is None else scores
    counts = {"loaded": loaded, "trained": trained, "drawn": zeros, "scored": loaded}
    counter.load_state_dict({**counts, "sums": scores * loaded})
    return counter


# What is summed up


def test_the_share_of_the_top_is_that_of_all_trainings():
    counts = torch.tensor([0, 10, 0, 30, 60] + [0] * 95)
    assert top_share(counts, 0.01) == pytest.approx(0.6)
    assert top_share(counts, 0.1) == 1.0
    assert top_share(torch.full((40,), 3), 0.25) == pytest.approx(0.25)


def test_examples_are_ordered_by_counts_and_then_by_scores():
    counts = torch.tensor([2, 0, 2, 0, 0, 5])
    scores = torch.tensor([0.1, float("nan"), 0.9, 0.0, 0.2, 0.0]).double()
    assert by_count(counts, scores).tolist() == [5, 2, 0, 4, 3, 1]


def test_what_was_never_loaded_was_not_passed_over():
    loaded, trained = (
        torch.tensor(row) for row in ([3, 3, 2, 0, 0, 4], [3, 1, 1, 0, 0, 0])
    )
    found = summary(counted(loaded, trained))
    assert found["never"] == pytest.approx(1 / 4)
    assert found["never_loaded"] == pytest.approx(2 / 6)
    assert (found["most"], found["least"]) == (3, 0)
    all_trained = summary(counted(loaded[:5], trained[:5]))
    assert (all_trained["never"], all_trained["least"]) == (0, 1)


def test_the_row_of_the_documents_has_its_numbers_in_the_order_of_its_headings():
    trained = torch.tensor([50] + [3] * 9 + [1] * 15 + [1] * 8 + [0] * 67)
    counter = counted(torch.full_like(trained, 60), trained)
    found = finding({**summary(counter), "test/loss": float("nan")}, "a title")
    assert dict(zip(COLUMNS, found.rows[0], strict=True)) == {
        "": "a title",
        "examples": "100",
        "trainings": "100",
        "top 1 % take": "50.0%",
        "top 10 %": "77.0%",
        "top 25 %": "92.0%",
        "never trained on": "67.0%",
    }
    assert found.values["top_10"] == pytest.approx(0.77)
    assert "test_loss" not in found.values


# The picture


def test_pictures_have_their_colours_last_and_range_from_0_to_1():
    bytes_ = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert as_pictures(bytes_, bytes_)[0, 0, 0] == pytest.approx([0, 0.2, 1])
    grey = torch.tensor([-1.0, 0.0, 3.0]).reshape(3, 1, 1, 1)
    assert as_pictures(grey[1:2], grey).shape == (1, 1, 1)
    assert as_pictures(grey[1:2], grey).item() == pytest.approx(0.25)


def test_the_most_often_picked_are_on_the_left_and_the_least_often_on_the_right():
    """Example k has the shade k and is trained on k times; 5 were never loaded."""
    trained = torch.arange(60)
    trained[:5] = 0
    loaded = torch.where(trained > 0, 60, 0)
    shades = torch.arange(60, dtype=torch.uint8)[:, None, None, None].expand(
        60, 1, 2, 2
    )
    data = TensorSet(shades, torch.arange(60) % 10)
    figure = figure_of(counted(loaded, trained), data, names=list("abcdefghij"))
    upper, lower = figure.subfigs
    shown, titles, headings = [], [], []
    for part in upper.subfigs:
        images = [axis.images[0].get_array() for axis in part.axes]
        shown.append([round(255 * float(image[0, 0])) for image in images])
        titles.append(part.axes[0].get_title())
        headings += [text.get_text() for text in part.texts]
    assert shown == [list(range(59, 35, -1)), list(range(5, 29))]
    assert titles == ["j, 59\u00d7", "f, 5\u00d7"]
    starts = "trained on most often, then high", "trained on least often, then low"
    for heading, start in zip(headings, starts, strict=True):
        assert heading.startswith(start)
    bars = lower.axes[0].patches
    assert sum(bar.get_height() for bar in bars) == 55


# The program


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
    assert results["never_loaded"] == 0
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
    twin = configured(tmp_path / "twin", "two_stage", *UNWATCHED, program="train")
    assert train(twin)["test/loss"] == results["test/loss"]


def test_callbacks_and_loggers_are_those_of_the_settings(tmp_path):
    words = ["logger=csv", "trainer.log_every_n_steps=4", "callbacks=default"]
    quiet = ["~callbacks.progress_bar", "+trainer.enable_progress_bar=false"]
    count(configured(tmp_path, "trim", *words, *quiet))
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"train/loss", "is/tau", "lr-SGD"} <= set(columns)


def test_a_resumed_run_goes_on_counting(tmp_path):
    path = tmp_path / "10.ckpt"
    first = count(configured(tmp_path, "trim", "trainer.max_epochs=1"))
    first.trainer.save_checkpoint(path)
    assert first.trainer.global_step == 10
    words = [f"ckpt_path={path}", "trainer.max_epochs=4"]
    counter = count(configured(tmp_path, "trim", *words)).counter
    assert counter.trained.sum() == counter.drawn.sum() == 24 * 32
    assert counter.loaded.sum() == counter.scored.sum() == 24 * BATCH
    for name, counts in first.counter.state_dict().items():
        assert (counter.state_dict()[name] >= counts).all()


def test_a_checkpoint_without_these_counts_is_refused(tmp_path):
    path = tmp_path / "plain.ckpt"
    plain(tmp_path, "trim", "trainer.max_epochs=1").save_checkpoint(path)
    with pytest.raises(ValueError, match=r"1297 examples, got a checkpoint with no c"):
        count(configured(tmp_path, "trim", f"ckpt_path={path}"))
    four, three = (counted(torch.ones(n).long(), torch.ones(n).long()) for n in (4, 3))
    with pytest.raises(ValueError, match=r"its 3 examples, got a .* with those of 4"):
        three.load_state_dict(four.state_dict())


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("uniform", [], "got one without a callback. Choose method=trim"),
        ("trim", ["data=rare_hard"], r"shows images, got examples of shape \(2,\)"),
        ("trim", ["names=[a,b]"], "must name every class, 10 in all, got 2"),
        ("trim", ["save_network=net"], "by scripts/train.py alone, got save_network=n"),
        (
            "biased",
            ["scorer@method.callback.scorer=gradient_norm"],
            "got GradientNorm, whose steps leave another score",
        ),
    ],
)
def test_what_cannot_be_counted_is_refused_before_the_run(
    method, words, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(Classifier, "training_step", None)
    with pytest.raises(ValueError, match=message):
        picked(configured(tmp_path, method, *words))


def test_a_run_without_steps_is_refused(tmp_path):
    words = ["trainer.max_steps=0", "scheduler=none"]
    with pytest.raises(ValueError, match="needs steps to make, got none"):
        picked(configured(tmp_path, "trim", *words))
