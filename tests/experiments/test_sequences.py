"""The experiments on sequences run by their names, by every method that is compared."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lightning_is.experiments.compare import compare
from lightning_is.experiments.data import hub
from lightning_is.experiments.doctor import doctor
from lightning_is.experiments.train import train
from tests.programs import run_program

datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).parents[2]
QUICK = ["trainer=quick", "logger=none", "callbacks=none", "threads=1"]
ALWAYS = ["gate@method.callback.gate=always_open", "method.batch_size=4"]
METHODS = {  # with what lets them sample within a few steps
    "uniform": [],
    "loss": ["tau_threshold=1.001", "trainer.max_steps=80", "trainer.max_epochs=8"],
    "upper_bound": [],  # at first scores are too even for any threshold
    "trim": ALWAYS,
    "two_stage": ALWAYS,
}
TEXT = [
    *("experiment=language_model", "data.length=16", "data.batch_size=16"),
    *("data.n_train=160", "data.val_share=0.01", "data.test_share=0.01"),
    *("model.width=8", "model.depth=1", "model.heads=2", "optimizer.lr=0.02"),
]
PIXELS = [
    *("experiment=permuted_mnist", "data.path=owner/name", "data.batch_size=16"),
    *("data.n_val=8", "data.stride=2", "model.hidden=8"),
]
SAMPLE = ("loss", "trim", "two_stage")


def configured(name, *overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, list(overrides))


def run(folder, *overrides):
    return train(configured("train", *overrides, f"output_dir={folder}", "title=a run"))


@pytest.fixture
def images(monkeypatch):
    """Let data modules find small images: half of them dark, half bright."""

    def split(n):
        generator = np.random.default_rng(n)
        labels = [i % 2 for i in range(n)]
        pixels = [generator.integers(128, size=(6, 6)) + 128 * y for y in labels]
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=2)}
        rows = {"image": [p.astype(np.uint8) for p in pixels], "label": labels}
        return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))

    parts = datasets.DatasetDict(train=split(168), test=split(20))
    monkeypatch.setattr(hub, "fetch", lambda *_: parts, raising=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_language_model(method, tmp_path):
    results = run(tmp_path, *TEXT, *QUICK, f"method={method}", *METHODS[method])
    assert results["train/loss"] < math.log(256)  # where guessing stands
    assert results["test/perplexity"] == pytest.approx(math.exp(results["test/loss"]))
    assert (results["open_share"] > 0) is (method in SAMPLE)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["test/perplexity"] == results["test/perplexity"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_permuted_pixels(images, method, tmp_path):
    words = [*PIXELS, *QUICK, f"method={method}", *METHODS[method], "optimizer.lr=0.05"]
    results = run(tmp_path, *words)
    assert results["train/loss"] < math.log(2)  # two of the ten classes are there
    assert (results["open_share"] > 0) is (method in SAMPLE)
    assert "test/acc" in results


def test_the_papers_numbers_are_the_experiments():
    cfg = configured("train", "experiment=permuted_mnist")
    assert (cfg.method.batch_size, cfg.method.presample_size) == (32, 128)
    assert cfg.method.callback.tau_threshold == 1.8
    assert cfg.trainer.gradient_clip_val == 1
    assert (cfg.optimizer._target_, cfg.optimizer.lr) == ("torch.optim.Adam", 0.001)
    assert cfg.model.hidden == 128
    assert len(instantiate(cfg.data).order(784)) == 784


@pytest.mark.parametrize("method", ["loss", "gradient_norm", "presample_uniform"])
def test_methods_that_presample_do_it_alike(method):
    cfg = configured("train", "experiment=permuted_mnist", f"method={method}")
    callback = instantiate(cfg.method.callback)
    assert cfg.method.presample_size == 128
    assert callback.gate.threshold == 1.8
    assert configured("train", f"method={method}").method.presample_size == 640


def test_the_doctor_looks_at_sequences(images, capsys):
    for words in (TEXT, PIXELS):
        cfg = configured("doctor", *words, "trainer=cpu", "method=trim", "threads=1")
        cfg.output_dir = "unused"
        report = doctor(cfg)
        assert report.head == "net.head (Linear), found"
        assert report.loss == "mean"


def test_permuted_pixels_are_compared(images, tmp_path, capsys):
    words = [
        *(*PIXELS, "methods=[uniform,two_stage]", "seeds=[0]", "budget=0.3"),
        *("points=2", f"out={tmp_path}", "title=t"),
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compare(compose("compare", words), words) == 0
    assert "two_stage" in (tmp_path / "table.md").read_text()


def test_the_program_trains_on_a_text_file_without_a_network(tmp_path):
    (tmp_path / "my.txt").write_text("the cat sat on the mat\n" * 300)
    words = [w for w in TEXT if "share" not in w]
    mine = ["data=text", "data.path=my.txt", "hydra.run.dir=run"]
    done = run_program("train.py", *words, *mine, *QUICK, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trim on text" in done.stdout
    assert "test/perplexity" in done.stdout
    assert "Warning" not in done.stderr
    assert (tmp_path / "run" / "results.json").is_file()


def test_real_digits_train_pixel_by_pixel(real_data, tmp_path):
    words = [w for w in PIXELS if not w.startswith(("data.path", "data.stride"))]
    few = ["data.n_train=192", "data.n_test=64", "data.stride=14"]
    words = [*words, *few, *QUICK, f"data.path={real_data('mnist')}"]
    still = run(tmp_path, *words, "optimizer.lr=0")
    results = run(tmp_path, *words, "optimizer.lr=0.02")
    assert results["steps"] == 12
    assert results["train/loss"] < still["train/loss"] - 0.05
