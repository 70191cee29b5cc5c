"""The program trains by every method, reports honestly, and explains a wrong word."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from lightning_is.data import PredictedLoss
from lightning_is.experiments.train import cpu_threads, train

ROOT = Path(__file__).parents[2]
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
QUICK = ["trainer=quick", "model=mlp", "logger=none", "callbacks=none"]
EXACT = (
    "method.callback.gate.costs=assumed",
    "score_precision=null",
)  # no clock decides
SOONER = {  # what lets a method sample within 60 steps; the others do so anyway
    "trim": [*EXACT, "method.callback.gate.smoothing=0.8"],
    "two_stage": [*EXACT, "method.callback.gate.smoothing=0.0"],
    "biased": ["method.callback.source.warmup=20"],
    "constant_variance": ["method.callback.gate.extra=0.0"],
    "constant_time": [
        *("+method.callback.gate.smoothing=0.5", "method.callback.gate.threshold=1.5"),
        "method.callback.gate.menu=32",
    ],
}
WITHOUT_A_GATE = {
    *("uniform", "biased", "online_batch_selection", "prioritized", "rs2", "indexed"),
    *("prioritized_rank", "soft_pruning", "stale_selective_backprop"),
}


def run(folder, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [*overrides, f"output_dir={folder}", "title=a run"])
    return train(cfg)


def program(folder, *arguments):
    return subprocess.run(  # noqa: S603 - our own program and arguments
        [sys.executable, ROOT / "scripts" / "train.py", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def predicted(monkeypatch):
    """Whether the batches drawn so far went by predicted losses, not uniformly."""
    found, plain = [], PredictedLoss.draw

    def draw(self, batch_size):
        drawn = plain(self, batch_size)
        found.append(bool((drawn.weights != 1).any()))
        return drawn

    monkeypatch.setattr(PredictedLoss, "draw", draw)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_the_digits_and_leaves_its_report(
    method, predicted, tmp_path
):
    long = ["trainer.max_steps=60", "trainer.max_epochs=6"]
    sooner = SOONER.get(method, [])
    results = run(tmp_path, f"method={method}", *QUICK, *long, *sooner)
    assert results["steps"] == 60
    if method not in WITHOUT_A_GATE:
        assert results["open_share"] > 0
    if method == "biased":
        assert predicted[:60] == [False] * 20 + [True] * 40
    assert results["train/loss"] < 1.2  # ln 10 = 2.30 is where guessing stands
    assert results["test/acc"] > 0.75
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["test/loss"] == results["test/loss"]
    assert (tmp_path / "training.png").stat().st_size > 10_000


def test_the_default_run_opens_the_gate_and_learns_the_digits(tmp_path):
    results = run(tmp_path, "logger=none", "callbacks=none", *EXACT)
    assert results["test/acc"] >= 0.97
    assert results["tau"] > 2
    assert results["open_share"] > 0.5


@pytest.mark.parametrize("method", ["upper_bound", "loss"])
def test_the_paper_method_samples_from_presamples_of_its_own_size(method, tmp_path):
    results = run(
        tmp_path,
        f"method={method}",
        *QUICK,
        "trainer.max_epochs=6",
        "trainer.max_steps=-1",
        "data.batch_size=64",
        "method.callback.tau_threshold=1.01",
    )
    assert results["steps"] == 6 * (1297 // 64)  # as many as without presamples
    assert results["open_share"] > 0.3


def test_the_reported_training_loss_is_that_of_the_whole_training_set(tmp_path):
    one = run(tmp_path, "method=uniform", *QUICK)
    # No step moves the weights, so every method must report the same loss.
    still = [
        run(tmp_path, f"method={m}", *QUICK, "optimizer.lr=0")
        for m in ("uniform", "trim")
    ]
    assert still[0]["train/loss"] == pytest.approx(still[1]["train/loss"])
    assert one["train/loss"] < still[0]["train/loss"]


def test_loggers_hear_of_the_test_and_not_of_the_training_set(tmp_path):
    words = [word for word in QUICK if not word.startswith("logger")]
    results = run(tmp_path, *words, "logger=csv")
    with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
        rows = [row["test/loss"] for row in csv.DictReader(file)]
    found = [float(row) for row in rows if row]
    assert found == [pytest.approx(results["test/loss"])]
    assert results["train/loss"] != pytest.approx(results["test/loss"])


def test_the_same_seed_gives_the_same_run(tmp_path):
    first, again = (run(tmp_path, *QUICK, *EXACT) for _ in range(2))
    other = run(tmp_path, *QUICK, *EXACT, "seed=1")
    assert first["train/loss"] == again["train/loss"]
    assert first["train/loss"] != other["train/loss"]


def test_parts_of_the_test_are_reported_by_their_names(tmp_path):
    results = run(tmp_path, "data=rare_hard", *QUICK)
    assert results["common/acc"] > results["rare/acc"]
    assert "test/acc" not in results


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_real_images_train_from_a_folder(real_data, tmp_path):
    path = real_data("mnist")
    few = ["data.n_train=512", "data.n_val=64", "data.n_test=256"]
    results = run(tmp_path, "data=mnist", f"data.path={path}", *few, *QUICK)
    assert results["steps"] == 8
    assert results["train/loss"] < 2.2


def test_the_program_runs_a_sweep(tmp_path):
    sweep = ["-m", "method=uniform,trim", *QUICK, "hydra.sweep.dir=sweep"]
    done = program(tmp_path, *sweep)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    for number, name in enumerate(["uniform", "trim"]):
        assert f"{name} on digits" in done.stdout
        assert (tmp_path / "sweep" / str(number) / "results.json").is_file()


def test_a_misspelt_word_is_named_and_nothing_runs(tmp_path):
    done = program(tmp_path, "trainer.max_epoch=3")
    assert done.returncode != 0
    assert "Key 'max_epoch' is not in struct" in done.stderr
    assert not list(tmp_path.rglob("results.json"))
