"""The report alone, before a run: nothing is trained, and nothing is left behind."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from lightning_is import (
    ImportanceSamplingCallback,
    OversamplingDataModule,
    Report,
    diagnose,
)
from lightning_is.data import PassSource
from lightning_is.experiments.docs import read
from lightning_is.experiments.doctor import doctor
from lightning_is.sampling import AlwaysOpen, Prioritized, TauGate
from lightning_is.scoring import Loss

ROOT = Path(__file__).parents[1]


def states(module):
    return [value.tolist() for value in module.state_dict().values()]


def test_a_module_is_looked_at_and_left_as_it_was(kit, capsys):
    module, gate = kit.Classifier(kit.mlp()), TauGate(1.5)
    sampling = ImportanceSamplingCallback(4, gate=gate)
    before = states(module), copy.deepcopy(vars(module)["seen"]), gate.state_dict()
    numpy, torchs = np.random.get_state()[2], torch.get_rng_state()
    found = diagnose(module, kit.loader(shuffle=True), sampling)
    assert isinstance(found, Report)
    assert found.ordinary.sizes == (12, 12)
    assert [p.sizes for p in found.prospects] == [(12, 4)]
    assert found.opening.measure == "is/tau"
    assert (states(module), module.seen, gate.state_dict()) == before
    assert sampling.diagnosis is None
    assert torch.equal(torch.get_rng_state(), torchs)
    assert np.random.get_state()[2] == numpy
    assert "Importance" not in capsys.readouterr().out  # whoever asks prints it


def test_what_was_found_is_what_a_fit_finds(kit, caplog):
    sampling = ImportanceSamplingCallback(4, gate=AlwaysOpen())
    alone = diagnose(kit.Classifier(kit.mlp()), kit.loader(), sampling)
    caplog.set_level("INFO", "lightning.pytorch")
    kit.trainer(sampling).fit(kit.Classifier(kit.mlp()), kit.loader())
    within = sampling.diagnosis
    for name in ("method", "head", "loss", "keep", "opening"):
        assert getattr(alone, name) == getattr(within, name)


def test_the_callback_is_the_default_one(kit):
    found = diagnose(kit.Classifier(kit.mlp()), kit.loader())
    assert [p.sizes.batch for p in found.prospects] == [2, 3, 6]


def test_sources_learn_nothing(kit):
    data = OversamplingDataModule(kit.loader(), keep=0.5)
    found = diagnose(kit.Classifier(kit.mlp()), data)
    assert found.keep == 0.5
    assert len(data.source.scores) == 0
    source = PassSource(Prioritized())
    diagnose(
        kit.Classifier(kit.mlp()),
        kit.loader(),
        ImportanceSamplingCallback(scorer=Loss(), source=source),
    )
    assert len(source.scores) == 0


def test_a_head_that_is_given_as_a_module_is_found_in_the_copy(kit):
    module = kit.Classifier(kit.mlp())
    sampling = ImportanceSamplingCallback(4, head=module.net[2])
    assert diagnose(module, kit.loader(), sampling).head == "net.2 (Linear), as given"


def test_a_trainer_may_be_given_to_use_up(kit):
    trainer = kit.trainer(precision="bf16-mixed", max_epochs=50)
    diagnose(kit.Classifier(kit.mlp()), kit.loader(), trainer=trainer)
    assert trainer.global_step < 10


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_a_loss_shows_nothing(kit):
    class Silent(kit.Classifier):
        def training_step(self, batch, batch_idx):
            return None

    trainer = kit.trainer(max_steps=-1, max_epochs=1)
    with pytest.raises(RuntimeError, match="needs a training step that returns a loss"):
        diagnose(Silent(kit.mlp()), kit.loader(), trainer=trainer)


# The program.


def configured(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("doctor", [*overrides, "model=mlp", "trainer=cpu"])
    cfg.output_dir, cfg.title = "unused", "a title"
    return doctor(cfg)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("two_stage", "two stages: 16, 32 or 64 of every 128 that ImportanceSubset"),
        ("upper_bound", "presample: 128 of 640 loaded"),
        ("selective_backprop", "acceptance: 128 of about 256 scored, by Loss, Window"),
    ],
)
def test_methods_are_looked_at_as_they_are_configured(method, says):
    assert says in str(configured(f"method={method}"))


def test_ordinary_training_has_nothing_to_report():
    with pytest.raises(ValueError, match="on a method that samples"):
        configured("method=uniform")


def test_the_report_is_published_line_by_line(tmp_path, monkeypatch):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    report = configured("method=trim", "publish=said")
    found = read(tmp_path / "docs" / "results" / "said.json")
    assert found.title == "a title"
    assert [line for (line,) in found.rows] == str(report).splitlines()


def test_a_report_that_cannot_be_published_is_refused_before_it_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_is.experiments.doctor.diagnose", None)
    with pytest.raises(ValueError, match="root of a clone"):
        configured("method=trim", "publish=said")


def test_the_program_prints_the_report_and_leaves_nothing_behind(tmp_path):
    (folder := tmp_path / "here").mkdir()
    done = subprocess.run(  # noqa: S603 - our own program and arguments
        [sys.executable, ROOT / "scripts" / "doctor.py", "model=mlp", "method=trim"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Importance sampling: what the first batches show")
    assert "Warning" not in done.stderr
    assert not list(folder.iterdir())
