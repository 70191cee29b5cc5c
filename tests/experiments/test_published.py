"""What comparisons and measured variances give to the documents."""

import json
import math
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from lightning_is.experiments.compare import compare, program
from lightning_is.experiments.compare.budget import Point
from lightning_is.experiments.compare.published import finding, numbers_of
from lightning_is.experiments.compare.run import Result
from lightning_is.experiments.compare.table import summarise
from lightning_is.experiments.docs import read
from lightning_is.experiments.variance.program import measure_variance

ROOT = Path(__file__).parents[2]
TINY = ["data=digits", "model=mlp", "points=2"]


def composed(name, *words):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, list(words))


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(arm, seed, loss, *, share=1.0, rate=None):
    end = Point(loss, loss, 0.25, loss, 0.25, {"test": 0.25}, 8.0, 100)
    return Result(arm, seed, share, rate, math.nan, [end])


RUNS = [
    *(run("uniform", 0, 0.2), run("uniform", 1, 0.4)),
    *(run("keep_0.4", 0, 0.1, rate=0.05), run("keep_0.4", 1, 0.2, rate=0.05)),
]


def test_the_numbers_of_a_row_are_its_means_and_intervals():
    found = finding(summarise(RUNS, {}), "a title", "a note")
    assert found.values["keep_0_4"] == pytest.approx(
        {
            "rate": 0.05,
            "seeds": 2,
            "steps": 100,
            "spent_per_step": 0.08,
            "loss": 0.15,
            "test_loss": 0.15,
            "test_error": 25,
            "ratio": 0.5,
            "ratio_low": 0.5,
            "ratio_high": 0.5,
            **{f"test_difference{end}": 0 for end in ("", "_low", "_high")},
        }
    )
    assert found.values["uniform"]["loss"] == pytest.approx(0.3)
    assert (found.title, found.note) == ("a title", "a note")
    assert [row[0] for row in found.rows] == ["keep_0.4", "uniform"]
    assert found.columns[0] == "arm"


def test_several_budgets_share_a_table_and_keep_their_numbers_apart():
    more = [run("uniform", 0, 0.8, share=0.3), run("trim", 0, 0.2, share=0.3)]
    found = finding(summarise([*RUNS, *more], {}), "a title", "a note")
    assert found.columns[:2] == ["budget", "arm"]
    places = [row[:2] for row in found.rows]
    assert places == [
        *(["30%", "trim"], ["30%", "uniform"]),
        *(["100%", "keep_0.4"], ["100%", "uniform"]),
    ]
    assert found.values["at_30"]["trim"]["ratio"] == pytest.approx(0.25)
    assert found.values["at_100"]["uniform"]["loss"] == pytest.approx(0.3)


def test_what_failed_is_published_and_what_is_no_number_is_not():
    rows = summarise([run("lost", 0, math.nan)], {("gone", 1.0): "no memory"})
    found = finding(rows, "a title", "a note")
    assert found.note == "a note. gone failed: no memory"
    assert found.values["gone"] == {}
    assert "loss" not in found.values["lost"]
    assert found.values["lost"]["steps"] == 100
    assert numbers_of(summarise(RUNS[:1], {})[0]).keys().isdisjoint({"ratio_low"})


def test_a_comparison_publishes_its_table_its_figure_and_its_tau(
    project, monkeypatch, capsys
):
    own = ["methods=[uniform,trim]", "seeds=[0]", "clock=cost", "budget=10k"]
    words = [*TINY, *own, "title=t", "out=o", "trainer.log_every_n_steps=10"]
    words += ["shares=[0.5,1]", "publish=mine"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compare(compose("compare", words), words) == 0
    found = read(project / "docs" / "results" / "mine.json")
    first = project / "o" / "50%" / "trim" / "seed0.json"
    assert found.title.startswith("t: ")
    assert found.commit == json.loads(first.read_text())["commit"]
    assert len(found.rows) == 4
    assert found.values["at_100"]["trim"]["ratio"] > 0
    with (
        Image.open(project / "docs" / "figures" / "mine.png") as shown,
        Image.open(project / "o" / "compare.png") as drawn,
    ):
        assert shown.size == drawn.size == (17 * 150, 720)  # tau has a panel
    # Runs are kept; other code makes a table of them, and says so.
    monkeypatch.setattr(program, "commit", lambda: "later")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compare(compose("compare", words), words) == 0
    again = read(project / "docs" / "results" / "mine.json")
    assert (again.commit, again.rows) == (f"{found.commit} later", found.rows)


def test_variances_are_published(project):
    own = ["trainer.max_steps=12", "repeats=3", "presample_size=200", "drawn=25"]
    words = [*TINY, *own, "title=t", "output_dir=o", "publish=mine"]
    measured = measure_variance(composed("variance_reduction", *words))
    found = read(project / "docs" / "results" / "mine.json")
    last = measured[-1].variance("systematic", "upper_bound").mean
    assert found.values["last"]["systematic"]["upper_bound"] == pytest.approx(last)
    first = measured[0].variance("multinomial", "loss").mean
    assert found.values["first"]["multinomial"]["loss"] == pytest.approx(first)
    assert found.values["last"]["step"] == 12
    assert found.values["squared_errors"]["gradient_norm"] == 0
    assert "Squared errors of all steps together" in found.note
    assert found.values["points"] == 2 * 200
    for name, drawn in (("mine", "variance"), ("mine_probabilities", "probabilities")):
        with (
            Image.open(project / "docs" / "figures" / f"{name}.png") as shown,
            Image.open(project / "o" / f"{drawn}.png") as whole,
        ):
            assert shown.size == whole.size


@pytest.mark.parametrize("name", ["compare", "variance_reduction"])
def test_where_nothing_can_be_published_nothing_is_measured(name, tmp_path):
    words = [*TINY, "publish=My-Name", "title=t", "output_dir=o"]
    words[-1:] = [f"out={tmp_path}/o"] if name == "compare" else words[-1:]
    cfg = composed(name, *words)
    with pytest.raises(ValueError, match=r"`publish` must be a name of small letters"):
        compare(cfg, words) if name == "compare" else measure_variance(cfg)
    assert not (tmp_path / "o").exists()
