"""Curves, table and figure say what happened."""

import json
from math import nan

import numpy as np
import pytest
from PIL import Image

from lightning_is import ImportanceSamplingCallback
from lightning_is.experiments import report
from lightning_is.experiments.curves import CurveRecorder, Point
from lightning_is.sampling import AlwaysOpen, Warmup


def point(seconds, is_open, tau=1.5):
    return Point(int(seconds), seconds, 1 / seconds, tau, is_open)


def recorded(kit, *callbacks, **settings):
    model, curves = kit.Classifier(kit.mlp()), CurveRecorder()
    trainer = kit.trainer(*callbacks, curves, max_epochs=2, **settings)
    trainer.fit(model, kit.loader())
    return trainer, curves


def test_a_point_is_kept_at_every_logged_step(kit):
    _, curves = recorded(kit, log_every_n_steps=3)
    assert [p.step for p in curves.points] == [3, 6]
    assert not any(p.is_open for p in curves.points)
    seconds = [p.seconds for p in curves.points]
    assert 0 < seconds[0] < seconds[1] <= curves.seconds


def test_the_curve_shows_the_presample_and_not_the_hard_examples_drawn(kit):
    sampling = ImportanceSamplingCallback(batch_size=3, gate=AlwaysOpen())
    trainer, curves = recorded(kit, sampling)
    logged = trainer.callback_metrics
    assert all(p.is_open for p in curves.points)
    assert curves.points[-1].loss == pytest.approx(float(logged["is/presample_loss"]))
    assert curves.points[-1].loss != pytest.approx(float(logged["train/loss"]))
    assert curves.points[-1].tau == pytest.approx(float(logged["is/tau"]))


def test_every_step_counts_for_the_open_share(kit):
    sampling = ImportanceSamplingCallback(batch_size=3, gate=Warmup(2))
    _, curves = recorded(kit, sampling, log_every_n_steps=5)
    assert (curves.batches, curves.drawn) == (8, 6)


def test_a_resumed_recorder_goes_on_where_it_stopped(kit):
    _, curves = recorded(kit)
    resumed = CurveRecorder()
    resumed.load_state_dict(json.loads(json.dumps(curves.state_dict())))
    resumed.on_train_start(kit.trainer(), kit.Classifier(kit.mlp()))
    assert resumed.seconds == curves.seconds
    assert resumed.batches == curves.batches == 8
    assert [p.step for p in resumed.points] == [p.step for p in curves.points]


def test_spans_cover_exactly_the_time_the_gate_was_open():
    states = [True, False, True, True, False]
    points = [point(float(i + 1), state) for i, state in enumerate(states)]
    assert report.open_spans(points) == [(0.0, 1.0), (2.0, 4.0)]
    assert report.open_spans([]) == []


def test_what_does_not_exist_becomes_null(tmp_path):
    report.write_results({"steps": 3.0, "tau": nan}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == {"steps": 3.0, "tau": None}


def test_the_table_names_every_number(capsys):
    results = {"steps": 400.0, "tau": nan, "open_share": 0.85, "test/acc": 0.98765}
    report.print_table(results, "a title")
    shown = capsys.readouterr().out
    for text in ("a title", "400", "85%", "98.77%", "tau at the end", "test/acc"):
        assert text in shown


OPEN = [point(float(i + 1), i > 2) for i in range(6)]


@pytest.mark.parametrize(
    ("points", "panels"),
    [
        pytest.param(OPEN, 2, id="sampled"),
        pytest.param(
            [point(float(i + 1), False, nan) for i in range(6)], 1, id="uniform"
        ),
        pytest.param([], 1, id="nothing-logged"),
    ],
)
def test_the_figure_has_a_panel_for_tau_where_there_is_one(points, panels, tmp_path):
    report.draw_curves(points, "title", tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as picture:
        height = picture.height / 150
    assert height == pytest.approx(5.5 if panels == 2 else 3.5, abs=0.1)


def test_the_time_of_an_open_gate_is_shaded(tmp_path):
    shut = [point(float(i + 1), False) for i in range(6)]
    pictures = {}
    for name, points in {"open": OPEN, "shut": shut}.items():
        report.draw_curves(points, "title", tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=int)
        shade = np.array([247, 232, 203])  # the colour at 60 % over white
        pictures[name] = (np.abs(pixels - shade).max(axis=2) < 8).mean()
    assert pictures["open"] > 0.2
    assert pictures["shut"] < 0.01


def test_smoothing_keeps_a_constant_and_tames_a_spike():
    assert report.smoothed([2.0] * 50) == [2.0] * 50
    assert max(report.smoothed([0.0] * 10 + [9.0] + [0.0] * 10)) == 3.0
