"""Train by every method for the same time: table, figure, numbers; see `--help`.

python scripts/compare.py data=digits budget=30s
python scripts/compare.py data=mnist budget=2m methods=[uniform,trim] seeds=[0,1]
"""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lightning_is.experiments.compare import compare
from lightning_is.experiments.machine import steady_memory


@hydra.main(config_path="../conf", config_name="compare", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Compare as configured; the exit status is 1 if a run failed."""
    steady_memory()
    sys.exit(compare(cfg, list(HydraConfig.get().overrides.task)))


if __name__ == "__main__":
    main()
