"""Every file of the configuration composes into objects, and no part lacks a file."""

from dataclasses import is_dataclass
from inspect import isabstract
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningModule
from omegaconf import DictConfig, OmegaConf
from typing_extensions import is_protocol

import lightning_is.data
from lightning_is import OversamplingDataModule, sampling, scoring
from lightning_is.data import IndexSource
from lightning_is.experiments import data, models, recurrent, transformer, wide_resnet
from lightning_is.experiments.curves import CurveRecorder
from lightning_is.experiments.train import make_trainer, presampled
from lightning_is.sampling import Gate, LossPercentile, Selection

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(
    path.relative_to(CONF).with_suffix("")
    for path in CONF.glob("*/*.yaml")
    if path.parent.name != "arms"  # of comparisons, not of a run
)
GROUPS = sorted({path.parent.name for path in FILES})
SEQUENCES = ["model=transformer", "task=language_model", "data=python_topics"]
NEEDS = {
    "data/rare_hard": ["model=mlp"],  # points are no images
    "data/permuted_mnist": ["model=lstm"],  # nor are sequences of pixels
    "data/python_topics": SEQUENCES[:2],
    "data/text": [*SEQUENCES[:2], "data.path=my.txt"],
    "model/transformer": SEQUENCES[1:],
    "task/language_model": [SEQUENCES[0], SEQUENCES[2]],
    "data/images": ["data.path=folder", "inputs.classes=3"],
    "experiment/finetune": ["data.path=folder", "inputs.classes=3"],
    "gate/adaptive_size": [],  # these choose a size themselves
    "gate/constant_variance": [],
}
PARTS = {  # groups that fill a place in a method
    "scorer": "scorer",
    "gate": "gate",
    "distribution": "plan.distribution",
    "selection": "plan.selection",
    "weights": "plan.weights",
    "scheme": "source.scheme",
}


def needs(path: Path) -> list[str]:
    """What a file must be composed with."""
    sized = ["method.batch_size=32"] if path.parent.name == "gate" else []
    return NEEDS.get(str(path), sized)


def composed(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*overrides, f"output_dir={folder}", "title=t"])


def chosen(path: Path) -> list[str]:
    group, option = path.parts
    if group in PARTS:
        method = "rs2" if group == "scheme" else "trim"
        return [f"method={method}", f"{group}@method.callback.{PARTS[group]}={option}"]
    return [] if group == "hydra" else [f"{group}={option}"]  # hydra's is in every run


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_becomes_objects(path, tmp_path, request):
    # Machines without a GPU must be able to build what asks for one.
    cpu = ["trainer.accelerator=cpu"]
    cfg = composed(tmp_path, *chosen(path), *needs(path), *cpu)
    if "path" in cfg.model:  # nothing is downloaded
        cfg.model.path = str(request.getfixturevalue("checkpoint"))
    assert isinstance(instantiate(cfg.classifier, _convert_="all"), LightningModule)
    trainer = make_trainer(cfg, CurveRecorder())
    module = presampled(cfg, instantiate(cfg.data))
    wanted = cfg.method.presample_size
    sized = isinstance(module, OversamplingDataModule)
    assert (module.presample_size if sized else None) == wanted
    assert any(isinstance(c, CurveRecorder) for c in trainer.callbacks)


def test_every_group_is_part_of_a_run():
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    named = {name for line in defaults if line != "_self_" for name in line}
    assert named | set(PARTS) == set(GROUPS)


def test_every_method_has_a_file():
    assert {p.name for p in FILES if p.parent.name == "method"} == {
        *("uniform", "trim", "upper_bound", "loss", "gradient_norm", "biased"),
        *("online_batch_selection", "prioritized", "prioritized_rank", "rs2"),
        *("selective_backprop", "stale_selective_backprop", "soft_pruning"),
        *("constant_variance", "constant_time", "presample_uniform"),
        *("indexed", "two_stage"),
    }


def targets() -> set[str]:
    def walk(node: Any) -> set[str]:
        if not isinstance(node, dict):
            return set()
        own = {node["_target_"].rsplit(".", 1)[-1]} if "_target_" in node else set()
        return own.union(*(walk(child) for child in node.values()))

    files = (OmegaConf.load((CONF / path).with_suffix(".yaml")) for path in FILES)
    return set().union(*(walk(OmegaConf.to_container(f)) for f in files))


def test_every_data_module_and_network_has_a_file():
    files = (data, models, recurrent, transformer, wide_resnet)
    modules = [vars(module) for module in files]
    parts = {
        name
        for names in modules
        for name, value in names.items()
        if isinstance(value, type)
        and name not in {"TensorDataModule", "Block"}
        and (issubclass(value, data.TensorDataModule) or hasattr(value, "forward"))
    }
    assert parts
    assert parts <= targets()


def is_part(value: Any) -> bool:
    """Whether this is something that a callback is put together from."""
    if not isinstance(value, type) or isabstract(value) or is_protocol(value):
        return False
    stateless = is_dataclass(value) and "__call__" in vars(value)
    kinds = (Gate, Selection, IndexSource, LossPercentile)
    return stateless or issubclass(value, kinds) or hasattr(value, "score")


def test_every_public_part_has_a_file():
    names = {
        name
        for package in (sampling, scoring, lightning_is.data)
        for name in package.__all__
        if is_part(getattr(package, name))
    } - {"Step"}  # what a scorer is given
    assert len(names) > 30
    assert names <= targets()


def test_a_part_of_a_method_can_be_exchanged(tmp_path):
    words = ["gate@method.callback.gate=always_open", "method.batch_size=32"]
    cfg = composed(tmp_path, "method=trim", *words)
    assert instantiate(cfg.method.callback).gate.is_open


def test_the_presample_follows_the_batch(tmp_path):
    cfg = composed(tmp_path, "method=upper_bound", "data.batch_size=32")
    assert (cfg.method.batch_size, cfg.method.presample_size) == (32, 160)


@pytest.mark.parametrize("option", ["default", "checkpoint"])
def test_a_run_without_loggers_needs_no_learning_rate_monitor(option, tmp_path):
    cfg = composed(tmp_path, "logger=none", f"callbacks={option}")
    names = [type(c).__name__ for c in make_trainer(cfg, CurveRecorder()).callbacks]
    assert "LearningRateMonitor" not in names
    assert "RichProgressBar" in names
