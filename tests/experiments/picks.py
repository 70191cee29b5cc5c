"""Short runs on the digits whose picks are counted, and the same without counting."""

from pathlib import Path

import lightning as L
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from lightning_is.experiments.train import make_trainer, presampled

CONF = Path(__file__).parents[2] / "conf"
N, BATCH = 1297, 128  # of the digits
QUICK = ["trainer=quick", "model=mlp", "callbacks=none", "trainer.log_every_n_steps=99"]
LONG = ["trainer.max_steps=24", "trainer.max_epochs=3"]
OPEN = ["gate@method.callback.gate=always_open", "method.batch_size=32"]
LATER = [  # closed at first
    *("gate@method.callback.gate=warmup", "method.callback.gate.steps=12"),
    "method.batch_size=32",
]
METHODS = {
    "trim": OPEN,
    "two_stage": LATER,
    "upper_bound": [  # of presamples; tau needs a while to pass 1
        *("method.callback.tau_threshold=1.0", "data.batch_size=64"),
        *("trainer.max_steps=60", "trainer.max_epochs=3"),
    ],
    "selective_backprop": [],
    "prioritized": [],
    "online_batch_selection": [],
}
DRAWN = {  # where it is known beforehand; a source alone chooses, and nobody draws
    "trim": 24 * 32,
    "two_stage": 12 * 32,
    **dict.fromkeys(("prioritized", "online_batch_selection"), 0),
}
UNWATCHED = ["logger=none", "++trainer.limit_val_batches=0"]  # as the counted run is


def configured(folder, method, *overrides, program="picked"):
    # No clock decides in which precision scores are computed.
    still = [*QUICK, *LONG, "score_precision=null", "title=t", f"output_dir={folder}"]
    words = [f"method={method}", *still, *METHODS.get(method, []), *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(program, words)


def plain(folder, method, *overrides):
    """Train as the training program does, without anybody counting."""
    cfg = configured(folder, method, *UNWATCHED, *overrides, program="train")
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    model = instantiate(cfg.classifier, _convert_="all")
    trainer = make_trainer(cfg, L.Callback())
    trainer.fit(model, datamodule=presampled(cfg, data))
    return trainer


def parameters(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()
