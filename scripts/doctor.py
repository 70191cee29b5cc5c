"""Say what importance sampling could gain, without training; see `--help`.

python scripts/doctor.py data=digits model=cnn method=two_stage
"""

import logging

import hydra
from omegaconf import DictConfig

from lightning_is.experiments.doctor import doctor


@hydra.main(config_path="../conf", config_name="doctor", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Print the report on what is configured."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(doctor(cfg))


if __name__ == "__main__":
    main()
