"""How much draws by each score reduce the gradient's variance; `--help` lists choices.

python scripts/variance_reduction.py data.n_train=20000              # CNN on MNIST
python scripts/variance_reduction.py data=cifar10 data.n_train=20000 points=12
"""

import hydra
from omegaconf import DictConfig

from lightning_is.experiments.variance import measure_variance


@hydra.main(config_path="../conf", config_name="variance_reduction", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Measure as configured."""
    measure_variance(cfg)


if __name__ == "__main__":
    main()
