"""What importance sampling does to batch normalisation; `--help` lists the choices.

python scripts/batch_norm.py                                  # MNIST
python scripts/batch_norm.py data=cifar10 trainer.max_epochs=10 seeds=[0,1,2]
"""

import hydra
from omegaconf import DictConfig

from lightning_is.experiments.batch_norm import compare_statistics


@hydra.main(config_path="../conf", config_name="batch_norm", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Compare as configured."""
    compare_statistics(cfg)


if __name__ == "__main__":
    main()
