"""Train a network, with or without importance sampling; `--help` lists the choices."""

import hydra
from omegaconf import DictConfig

from lightning_is.experiments.train import train


@hydra.main(config_path="../conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Train as configured."""
    train(cfg)


if __name__ == "__main__":
    main()
