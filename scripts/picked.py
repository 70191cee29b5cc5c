"""Which images a method trains on, and how often; `--help` lists the choices.

python scripts/picked.py                                   # digits, trim
python scripts/picked.py -m method=trim,two_stage data=mnist data.n_train=20000
"""

import hydra
from omegaconf import DictConfig

from lightning_is.experiments.picked import picked


@hydra.main(config_path="../conf", config_name="picked", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Train and count as configured."""
    picked(cfg)


if __name__ == "__main__":
    main()
