"""The report on a configured run, without the run."""

from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig

from lightning_is import ImportanceSamplingCallback, Report, diagnose
from lightning_is.experiments.data import TensorDataModule
from lightning_is.experiments.docs import Finding, check_target, publish
from lightning_is.experiments.train import cpu_threads, known_warnings, presampled


def doctor(cfg: DictConfig) -> Report:
    """Compose what `train` would, and say what importance sampling could gain there.

    Writes the report for the documents as well, where ``publish`` names it.

    Args:
        cfg: As composed from ``conf/doctor.yaml``.

    Raises:
        ValueError: If the method samples nothing, or the report could not be published.
    """
    if cfg.publish is not None:
        check_target(cfg.publish)
    seed_everything(cfg.seed, workers=True, verbose=False)
    callback: Callback | None = instantiate(cfg.method.callback)
    if not isinstance(callback, ImportanceSamplingCallback):
        raise ValueError(
            "A report is on a method that samples, got one without the callback. Pass "
            "`method=trim`, or another of conf/method."
        )
    data: TensorDataModule = instantiate(cfg.data)
    module: LightningModule = instantiate(cfg.classifier, _convert_="all")
    trainer: Trainer = instantiate(cfg.trainer, logger=False)
    with cpu_threads(cfg.threads), known_warnings():
        report = diagnose(module, presampled(cfg, data), callback, trainer)
    if cfg.publish is not None:
        lines = [[line] for line in str(report).splitlines()]
        publish(cfg.publish, Finding(cfg.title, ["report"], lines))
    return report
