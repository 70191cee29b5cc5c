"""The program trains as the training program does, and leaves all that it found."""

import csv
import json
from math import isfinite
from pathlib import Path
from statistics import fmean

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.train import make_trainer
from lightning_is.experiments.variance import measure_variance
from lightning_is.experiments.variance.draws import SCORES, arms
from lightning_is.experiments.variance.figures import draw_probabilities, draw_variance
from lightning_is.experiments.variance.program import observe
from lightning_is.experiments.variance.record import Measurement, Row
from lightning_is.experiments.variance.tables import cells, write_markdown
from lightning_is.sampling import Proportional
from tests.programs import run_program

ROOT = Path(__file__).parents[2]
ARMS = [(arm.selection, arm.score) for arm in arms(Proportional())]
RUN = [  # 10 steps an epoch
    *("data=digits", "model=mlp", "trainer=cpu", "trainer.max_steps=12"),
    *("trainer.max_epochs=15", "title=a title"),
]
TINY = [*RUN, "repeats=3", "presample_size=200", "drawn=25"]


def configured(program, *words):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(program, list(words))


def composed(folder, *words):
    return configured("variance_reduction", *TINY, f"output_dir={folder}", *words)


class Saver(L.Callback):
    """Saves a checkpoint at the end of the first epoch."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def trained(tmp_path):
    """The network as the training program leaves it, and a checkpoint of step 10."""
    quiet = ["logger=none", "callbacks=none", "++trainer.limit_val_batches=0"]
    words = [*RUN, *quiet, "method=uniform", f"output_dir={tmp_path}"]
    cfg, path = configured("train", *words), tmp_path / "10.ckpt"
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data, model = instantiate(cfg.data), instantiate(cfg.classifier, _convert_="all")
    make_trainer(cfg, Saver(path)).fit(model, datamodule=data)
    return nn.utils.parameters_to_vector(model.parameters()).detach(), path


def test_the_program_leaves_tables_figures_and_numbers(tmp_path):
    words = [*TINY, "points=3", "hydra.run.dir=o"]
    done = run_program("variance_reduction.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "a title: 25 drawn of 200" in done.stdout
    folder = tmp_path / "o"
    results = json.loads((folder / "results.json").read_text())
    assert results["settings"]["drawn"] == 25
    assert results["settings"]["classifier"]["net"]["hidden"] == [128, 128]
    assert results["at_the_end"]["test/acc"] > 0.2
    steps = [found["step"] for found in results["measurements"]]
    assert steps == [1, 12]
    draws = results["measurements"][-1]["draws"]
    assert [(d["selection"], d["score"]) for d in draws] == ARMS
    assert all(len(d["squared_distances"]) == 3 for d in draws)
    assert results["points"] == 2 * 200
    uniform = draws[0]["expected_squared_distance"]
    assert draws[0]["expected_variance"] == 1
    for draw in draws[:4]:
        mean = fmean(draw["squared_distances"]) / uniform
        assert draw["variance"]["mean"] == pytest.approx(mean)
    assert draws[5]["expected_variance"] is None  # no closed form, and no NaN in JSON
    table = (folder / "table.md").read_text()
    assert table.count("\n| ") == 1 + 1 + 2 * 3
    assert "Squared errors of all steps together, 400 points: loss" in table
    with (folder / "variance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(ARMS)
    assert float(rows[-1]["variance_mean"]) == draws[-1]["variance"]["mean"]
    with (folder / "probabilities.csv").open() as file:
        points = [row for row in csv.DictReader(file) if row["step"] == "12"]
    assert len({row["example"] for row in points}) == 200
    for name in SCORES:
        assert sum(float(row[name]) for row in points) == pytest.approx(1, abs=1e-4)
        error = sum((float(p[name]) - float(p["gradient_norm"])) ** 2 for p in points)
        reported = results["measurements"][-1]["squared_errors"][name]
        assert error == pytest.approx(reported, rel=1e-2, abs=1e-12)
    for figure in ("variance.png", "probabilities.png"):
        assert (folder / figure).stat().st_size > 20_000


def test_given_steps_are_measured_and_the_network_is_that_of_the_training_program(
    tmp_path, trained
):
    run = observe(composed(tmp_path, "steps=[0,5]", "distribution=mixed"))
    assert [each.step for each in run.measurements] == [0, 5, 12]
    # No more than 1 / 0.05 times as unlikely as under uniform draws.
    for p in run.measurements[-1].probabilities.values():
        assert float(p.min()) >= 0.05 / 200
    found = nn.utils.parameters_to_vector(run.model.parameters()).detach()
    assert torch.equal(found, trained[0])


def test_a_run_goes_on_from_a_checkpoint_and_is_measured_from_there(
    tmp_path, trained, monkeypatch
):
    batches = []
    monkeypatch.setattr(Classifier, "on_train_batch_end", lambda *_: batches.append(1))
    word = f"ckpt_path={trained[1]}"
    resumed = observe(composed(tmp_path, "steps=[10]", word)).measurements
    assert len(batches) == 2
    assert [each.step for each in resumed] == [10, 12]
    whole = observe(composed(tmp_path, "steps=[10]")).measurements
    assert resumed[0].rows == whole[0].rows


@pytest.mark.parametrize(
    ("words", "got"), [(["steps=[5,11]"], r"\[5\]"), (["points=3"], r"\[1\]")]
)
def test_steps_before_a_checkpoint_are_refused(words, got, tmp_path, trained):
    cfg = composed(tmp_path, *words, f"ckpt_path={trained[1]}")
    with pytest.raises(ValueError, match=rf"must lie in \[10, 12\].*got {got}"):
        observe(cfg)


def test_callbacks_and_loggers_are_those_of_the_settings(tmp_path):
    words = ["callbacks=default", "~callbacks.progress_bar", "logger=csv", "points=1"]
    quiet = ["++trainer.enable_progress_bar=false", "trainer.log_every_n_steps=4"]
    observe(composed(tmp_path, *words, *quiet))
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"train/loss", "lr-SGD"} <= set(columns)


def test_what_was_measured_is_left_by_a_run_that_breaks_off(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        measure_variance(composed(tmp_path, "steps=[0,5]", "optimizer.lr=1e30"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert [found["step"] for found in results["measurements"]] == [0]
    assert results["at_the_end"] is None
    assert (tmp_path / "table.md").read_text().count("\n| ") == 1 + 1 + 3
    with (tmp_path / "variance.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(ARMS)
    with (tmp_path / "probabilities.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 200


def test_what_the_program_does_not_do_is_refused_before_the_run(tmp_path):
    message = "written by scripts/train.py alone, got save_network=net"
    with pytest.raises(ValueError, match=message):
        measure_variance(composed(tmp_path, "save_network=net"))


def test_training_by_a_method_that_samples_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"uniform training.*method=uniform"):
        measure_variance(composed(tmp_path, "method=trim"))


def test_a_run_without_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs steps to make"):
        measure_variance(composed(tmp_path, "trainer.max_steps=0", "scheduler=none"))


def made_up(step, *, even=False):
    generator = torch.Generator().manual_seed(step)
    scores = {name: torch.rand(50, generator=generator).double() for name in SCORES}
    squares, unit = ((0.0,), 0.0) if even else ((0.5, 1.0), 0.6)
    exact = {("systematic", score): None for score in SCORES}
    rows = tuple(Row(*arm, squares, exact.get(arm, unit)) for arm in ARMS)
    shares = {name: values / values.sum() for name, values in scores.items()}
    return Measurement(step, 0.1, 1.0, shares, dict.fromkeys(SCORES, 1.0), rows)


@pytest.mark.parametrize("steps", [[7], [0, 4], [1, 10, 100, 1000]], ids=str)
def test_figures_are_drawn_of_one_measurement_or_many(steps, tmp_path):
    found = [made_up(step) for step in steps]
    draw_variance(found, title="title", path=tmp_path / "v.png")
    draw_probabilities(found, title="title", path=tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        panels = (picture.width / 150 - 0.6) / 3.4
    assert panels == pytest.approx(min(len(steps), 3), abs=0.05)
    assert (tmp_path / "v.png").stat().st_size > 10_000


def test_every_line_with_a_closed_form_shows_it_the_uniform_one_included(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *_, **__: drawn.append(figure)
    )
    draw_variance([made_up(3), made_up(9)], title="title", path=Path("v.png"))
    for axis in drawn[0].axes:
        dashes = [line for line in axis.get_lines() if line.get_marker() == "_"]
        heights = {line.get_color(): list(line.get_ydata()) for line in dashes}
        assert heights["black"] == [1.0, 1.0]
        known = [name for name, y in heights.items() if y and isfinite(sum(y))]
        assert len(known) == (4 if "multinomial" in axis.get_title() else 1)


def test_ratios_that_do_not_exist_are_dashes_in_the_table(tmp_path):
    found = [made_up(3, even=True)]
    assert cells(found)[0][2:8] == ("loss", "-", "-", "-", "-", "-")
    assert cells(found)[1][:2] == ("", "")
    write_markdown(found, title="t", explained="n", path=tmp_path / "t.md")
    assert "nan" not in (tmp_path / "t.md").read_text()
