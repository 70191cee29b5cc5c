"""What holds for every method, from its own file in ``conf/method``, through a Trainer.

The network looks its logits up, one row of weights for each example, and its learning
rate is zero: scores never change, and every gradient tells who was trained on and with
which weight.
"""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import lightning_is.experiments.train  # noqa: F401  for what the files compute
from lightning_is import OversamplingDataModule
from lightning_is.experiments.data import TensorSet, whole_batch
from lightning_is.sampling import Mixed, capped_inclusion

CONF = Path(__file__).parents[1] / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
UNBIASED = {
    *("uniform", "trim", "upper_bound", "loss", "gradient_norm", "rs2"),
    *("presample_uniform", "soft_pruning", "constant_variance", "constant_time"),
    *("indexed", "two_stage"),
}
N, BATCH, CLASSES = 40, 10, 3  # the presample of the paper's methods is everything


def numbered():
    """Example ``i`` is the ``i``-th unit vector: a row to look up."""
    return TensorSet(torch.eye(N), torch.arange(N) % CLASSES)


def logits():
    """Most examples are easy, one a batch is hard: losses differ, tau is about 2.5."""
    margin = torch.linspace(3.5, 5.5, N)[torch.randperm(N, generator=_generator(3))]
    margin[torch.arange(3, N, BATCH)] = torch.tensor([-2.0, -2.5, -3.0, -3.5])
    table = torch.zeros(N, CLASSES)
    table[torch.arange(N), torch.arange(N) % CLASSES] = margin
    return table


def _generator(seed):
    return torch.Generator().manual_seed(seed)


class LookUp(L.LightningModule):
    """Notes how often, and with which weight, each example was trained on."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate
        self.head = nn.Linear(N, CLASSES, bias=False)
        self.head.weight.data = logits().T.contiguous()
        gradients = logits().softmax(1)
        gradients[torch.arange(N), torch.arange(N) % CLASSES] -= 1
        self.norms = gradients.norm(dim=1)
        self.ids: list[torch.Tensor] = []
        self.weighted: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.ids.append(x.argmax(1))
        return functional.cross_entropy(self.head(x), y)

    def on_before_optimizer_step(self, optimizer):
        found = self.head.weight.grad.norm(dim=0) / self.norms
        self.weighted.append(found)  # weight over batch size, added up over draws

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def settings(method: str):
    """Compose a method as ``scripts/train.py`` does."""
    words = [f"method={method}", f"data.batch_size={BATCH}", "title=t", "output_dir=."]
    if method in {"upper_bound", "loss", "gradient_norm", "presample_uniform"}:
        words.append(f"method.presample_size={N}")
    if method == "trim":  # of one size, that shares can be worked out for
        words += ["gate@method.callback.gate=efficiency", "method.batch_size=3"]
    if method in {"trim", "two_stage"}:  # exact only where no clock decides
        words += ["method.callback.gate.costs=assumed", "score_precision=null"]
    if method == "two_stage":  # few enough steps see every weight
        words.append("method.callback.plan.distribution.share=0.3")
    if method == "biased":
        words.append("method.callback.source.warmup=8")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", words)


def configured(method: str):
    """Build the callback of a method, and say how much it presamples."""
    cfg = settings(method)
    callback = cfg.method.callback and instantiate(cfg.method.callback)
    return callback, cfg.method.presample_size


def loader(presample: int | None, **settings):
    settings |= {"collate_fn": whole_batch, "drop_last": True}
    data = DataLoader(numbered(), batch_size=BATCH, **settings)
    return data if presample is None else OversamplingDataModule(data, presample)


def fit(
    kit, method, module, *others, progress=None, fetching=None, ckpt=None, **settings
):
    callback, presample = configured(method)
    if callback is not None:
        callback.progress = progress
    callbacks = [*others] if callback is None else [callback, *others]
    trainer = kit.trainer(*callbacks, log_every_n_steps=10**9, **settings)
    data = loader(presample, **(fetching or {}))
    trainer.fit(module, data, ckpt_path=ckpt)
    return callback


# What a share of the draws each example should have, from scores worked out by hand.


def losses():
    return functional.cross_entropy(
        logits(), torch.arange(N) % CLASSES, reduction="none"
    )


def bounds():
    return LookUp().norms


def percentiles():
    return (losses()[:, None] > losses()[None]).double().mean(1)


def ranks():
    order = losses().argsort(descending=True)
    return order.argsort().double() + 1


SHARES: dict[str, Callable[[], torch.Tensor]] = {
    "uniform": lambda: torch.ones(N),
    "presample_uniform": lambda: torch.ones(N),
    "rs2": lambda: torch.ones(N),
    "upper_bound": bounds,
    "gradient_norm": bounds,
    "loss": losses,
    "online_batch_selection": lambda: torch.exp(-np.log(10) / N * ranks()),
    "prioritized": lambda: (losses() + 0.1) ** 0.6,
    "prioritized_rank": lambda: ranks() ** -0.6,
    "selective_backprop": percentiles,
    "stale_selective_backprop": percentiles,
    "trim": lambda: by_batch(lambda s: capped_inclusion(Mixed()(s), 3)),
    "constant_variance": lambda: by_batch(lambda s: s / s.sum()),
    "soft_pruning": lambda: torch.where(losses() < losses().mean(), 0.5, 1.0),
    "indexed": lambda: capped_inclusion(Mixed(share=0.5)(bounds()), round(0.6 * N)),
}
VARYING = {
    "constant_time",
    "biased",
    "two_stage",
}  # what they draw from, or by, always changes


def by_batch(share):
    """What share each example has of the draws from its own batch, which is fixed."""
    return torch.cat([share(scores) for scores in bounds().split(BATCH)])


@pytest.fixture(scope="module")
def run(request):
    """Run every method once, with scores that stay; the first steps do not count."""
    found: dict[str, LookUp] = {}

    def once(kit, method):
        if method not in found:
            torch.manual_seed(0)
            module = LookUp()
            # Presamples of its size, cut from a fixed order, would favour the first.
            order = {"shuffle": method == "constant_time"}
            settings = {"max_epochs": 150, "progress": lambda: 0.0}
            fit(kit, method, module, fetching=order, **settings)
            found[method] = module
        return found[method]

    return once


def per_step(rows, skip=100, block=20):
    """Means over blocks of steps, as neighbouring steps may share a pass."""
    rows = torch.stack(rows)[skip:].double()
    blocks = rows[: len(rows) // block * block].reshape(-1, block, N).mean(1)
    return blocks.mean(0), blocks.std(0) / len(blocks) ** 0.5


def test_every_method_is_here():
    assert set(METHODS) == set(SHARES) | VARYING
    assert set(METHODS) >= UNBIASED


@pytest.mark.parametrize("method", sorted(SHARES))
def test_examples_are_drawn_as_often_as_the_formula_says(kit, run, method):
    module = run(kit, method)
    drawn = {"trim", "constant_variance"}  # and while closed all of a batch
    counts = [
        torch.bincount(ids, minlength=N) / len(ids)
        for ids in module.ids
        if not (method in drawn and len(ids) == BATCH)
    ]
    mean, error = per_step(counts)
    expected = SHARES[method]().double()
    expected = expected / expected.sum()
    assert ((mean - expected).abs() < 5 * error + 0.01 * expected + 1e-9).all()
    assert mean.sum() == pytest.approx(1)


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_unbiased_where_promised_and_seen_to_be_biased_where_not(
    kit, run, method
):
    mean, error = per_step(run(kit, method).weighted)
    fair = 1 / N if method in UNBIASED else mean.mean()
    z = ((mean - fair) / error.clamp(min=1e-6)).abs()
    assert z.max() < 5 if method in UNBIASED else z.max() > 10


@pytest.mark.parametrize("method", METHODS)
def test_the_batch_keeps_its_size(kit, run, method):
    sizes = {len(ids) for ids in run(kit, method).ids}
    allowed = {
        "trim": {3, BATCH},
        "constant_variance": set(range(1, BATCH + 1)),
        "constant_time": set(range(1, BATCH + 1)),
        "two_stage": {1, 2, 5, BATCH},
    }
    assert sizes <= allowed.get(method, {BATCH})
    if method in allowed:
        assert len(sizes) > 1


class Keep(L.Callback):
    """Writes a checkpoint after a step."""

    def __init__(self, path, step) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and (trainer.global_step * BATCH) % N:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def plain(node):
    """Whether a state can be loaded without unpickling anything of ours."""
    if isinstance(node, dict):
        return all(isinstance(k, (str, int)) and plain(v) for k, v in node.items())
    if isinstance(node, (list, tuple)):
        return all(plain(item) for item in node)
    return node is None or type(node) in {int, float, str, bool, torch.Tensor}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_draws_what_the_whole_one_does(kit, method, tmp_path):
    steps = 3  # of an epoch: gates that look at every fourth one are between two looks

    def run(epochs, *others, **settings):
        torch.manual_seed(0)
        module = LookUp(rate=0.05)
        settings |= {"max_epochs": epochs, "limit_train_batches": steps}
        fit(kit, method, module, *others, **settings)
        return module

    path = tmp_path / "kept.ckpt"
    whole = run(40, Keep(path, 25 * steps))
    saved = torch.load(path, weights_only=True)["callbacks"]
    resumed = run(40, ckpt=path)

    assert all(plain(state) for state in saved.values())
    ids = whole.ids[len(whole.ids) - len(resumed.ids) :]
    assert len(resumed.ids) == 15 * steps
    assert all(map(torch.equal, ids, resumed.ids))
    assert torch.equal(whole.head.weight, resumed.head.weight)


@pytest.mark.parametrize(
    "method",
    [
        *("online_batch_selection", "biased", "soft_pruning", "prioritized", "rs2"),
        *("selective_backprop", "stale_selective_backprop", "prioritized_rank"),
    ],
)
def test_what_workers_fetched_ahead_is_not_lost_by_resuming(kit, method, tmp_path):
    """In the middle of an epoch, too."""

    def run(steps, *others, **settings):
        torch.manual_seed(0)
        module = LookUp()
        settings |= {"max_steps": steps, "max_epochs": -1}
        settings["fetching"] = {"num_workers": 1}
        fit(kit, method, module, *others, **settings)
        return module

    path = tmp_path / "kept.ckpt"
    whole = run(40, Keep(path, 30))
    resumed = run(40, ckpt=path)

    assert all(map(torch.equal, whole.ids[30:], resumed.ids))
    assert len(resumed.ids) == 10


@pytest.mark.parametrize("method", METHODS)
def test_the_random_numbers_of_the_user_stay_theirs(kit, method):
    def state_after(name):
        torch.manual_seed(0)
        np.random.seed(0)
        fit(kit, name, LookUp(), max_epochs=20)
        # Not Python's: the type checks of the tests draw from it.
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()

    assert state_after(method) == state_after("uniform")


DEFINING = {  # the part that makes a method what it is
    "trim": "lightning_is.sampling.Systematic",
    "upper_bound": "lightning_is.scoring.UpperBound",
    "loss": "lightning_is.scoring.Loss",
    "gradient_norm": "lightning_is.scoring.GradientNorm",
    "constant_variance": "lightning_is.sampling.ConstantVariance",
    "constant_time": "lightning_is.sampling.ConstantTime",
    "biased": "lightning_is.data.PredictedLoss",
    "online_batch_selection": "lightning_is.sampling.OnlineBatchSelection",
    "prioritized": "lightning_is.sampling.Prioritized",
    "prioritized_rank": "lightning_is.sampling.Prioritized",
    "selective_backprop": "lightning_is.sampling.LossPercentile",
    "stale_selective_backprop": "lightning_is.sampling.StaleSelection",
    "soft_pruning": "lightning_is.sampling.SoftPruned",
    "indexed": "lightning_is.sampling.ImportanceSubset",
    "two_stage": "lightning_is.sampling.ImportanceSubset",
    "rs2": "lightning_is.sampling.RandomSubset",
    "presample_uniform": "lightning_is.sampling.TauGate",
}


def targets(node):
    """Everything that a method's configuration names as its part."""
    if not isinstance(node, dict):
        return set()
    own = {node["_target_"]} if "_target_" in node else set()
    return own.union(*(targets(child) for child in node.values()))


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"uniform"}))
def test_the_source_of_every_method_is_named(method):
    name = DEFINING[method]
    found = targets(OmegaConf.to_container(settings(method).method, resolve=True))
    paper = "lightning_is.ImportanceSamplingCallback.paper"  # scores by its default
    assert name in found or (method == "upper_bound" and paper in found)
    assert "References:" in get_class(name).__doc__
