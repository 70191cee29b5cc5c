"""Bad input gets an error that states the rule, what was got, and the cure.

One row per case: its name, how to provoke it, the message.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.demos import LightningLSTM
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.data import PassSource
from lightning_is.sampling import (
    AlwaysOpen,
    ConstantTime,
    NeverOpen,
    Shuffled,
)
from lightning_is.scoring import Loss, UpperBound
from lightning_is.scoring.scorer import Scored

# What is refused before there is a Trainer: an expression, and what it raises. They are
# evaluated as users would, without the run-time type checks of the other tests.

IMPORTS = """
import json, sys, warnings
import torch
from torch import nn
from torch.utils.data import DataLoader
from lightning_is import ImportanceSamplingCallback as C, OversamplingDataModule as D
from lightning_is.data import PassSource
from lightning_is.sampling import *
from lightning_is.scoring import *
loader = DataLoader(range(9), batch_size=4)
"""
AT_ONCE = {
    # Sizes and other numbers.
    "C(0)": "`batch_size` must be a whole number of at least 1, got 0. A quarter",
    "C(-3)": "at least 1, got -3",
    "C('4')": "at least 1, got '4'",
    "C(4.0)": "at least 1, got 4.0",
    "C(True)": "at least 1, got True",
    "C(4, seed=-1)": "`seed` must be at least 0, got -1. Any other number does",
    "C(4, seed=1.5)": "`seed` must be a whole number, got 1.5",
    "C(4, scale_factor=0.0)": "`scale_factor` must be in (0, 1], got 0.0. 0.5",
    "C(4, scale_factor='half')": "`scale_factor` must be a number, got 'half'",
    "D(loader, 0)": "`presample_size` must be a whole number of at least 1, got 0",
    "D(loader, '4')": "at least 1, got '4'. The paper presamples 3 to 5 times",
    "D(loader, keep='most')": "`keep` must be in (0, 1] or \"auto\", got 'most'. 0.6",
    "D(loader)": "Either presamples are loaded or the share that matters, got",
    "D([1, 2], 4)": "must be a LightningDataModule or a DataLoader, got list. Wrap",
    # Words.
    "C(4, when_closed='none')": 'must be "all" or "subset", got \'none\'',
    "C(4, score_mode=1)": 'must be "eval" or "train", got 1. "eval" scores',
    "C(4, score_precision=16)": 'must be "auto", "bf16", "fp16" or None, got 16. None',
    "C(4, bad_scores='ignore')": 'must be "skip" or "raise", got \'ignore\'. "skip"',
    "C(4, bad_scores=None)": 'must be "skip" or "raise", got None',
    "C.paper(4, 'high')": '`threshold` must be "auto" or a number of at least 1, got',
    # Parts of the wrong kind; a class where an object belongs.
    "C(4, scorer=nn.ReLU())": "`scorer` must be a Scorer, got ReLU(). Pass `Upper",
    "C(4, scorer=Loss)": "`scorer` must be a Scorer, got the class Loss",
    "C(4, gate='tau')": "`gate` must be a Gate, got 'tau'. Pass `TauGate(1.5)`",
    "C(4, gate=AlwaysOpen)": "`gate` must be a Gate, got the class AlwaysOpen",
    "C(4, plan=Mixed())": "`plan` must be an ImportancePlan, got Mixed(",
    "C(source=Prioritized())": "`source` must be an IndexSource, got Prioritized(",
    "C(acceptance=2.0)": "`acceptance` must be a LossPercentile, got 2.0. Pass",
    "C(4, head=3)": "`head` must be a module, its dotted name, or a list of them",
    "C(4, head=[])": "that is not empty, got []. Pass `head=",
    "C(4, per_sample_loss=3)": "must be a function `(module, batch) -> losses`, got 3",
    "C(4, index_fn='x')": "must be a function `(batch, indices) -> batch`, got 'x'",
    "C(4, proxy=nn.Linear(2, 2))": "`proxy` must be a LightningModule, got Linear(",
    "ImportancePlan(3)": "`distribution` of a plan must be a Distribution, got 3",
    "ImportancePlan(Mixed)": "must be a Distribution, got the class Mixed. Pass",
    "ImportancePlan(Mixed(), 'top')": "`selection` of a plan must be a Selection, got",
    "ImportancePlan(weights=1.0)": "`weights` of a plan must be a Weights, got 1.0",
    "PassSource(0.5)": "`scheme` must draw passes, got 0.5. Pass `Prioritized()`",
    # Parts that do not go together.
    "C(4, gate=ConstantVariance())": "ConstantVariance chooses how many examples to",
    "C(gate=AlwaysOpen())": "Someone must choose how many examples to train on, got",
    "C(when_closed='subset')": "takes a subset of `batch_size` examples, got none",
    "C(4, acceptance=LossPercentile())": "batches as large as the loader's, got batch",
    "C(4, scale_factor=0.5, index_fn=print)": "got an `index_fn` for batches only you",
}


@pytest.fixture(scope="module")
def at_once():
    """What each expression raised, in an interpreter that checks no types."""
    program = f"{IMPORTS}\nwarnings.simplefilter('error')\nfound = {{}}\n" + (
        "for expression in json.load(sys.stdin):\n"
        "    try: found[expression] = ['nothing', repr(eval(expression))]\n"
        "    except Exception as e: found[expression] = [type(e).__name__, str(e)]\n"
        "print(json.dumps(found))"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(  # noqa: S603  the program above
        [sys.executable, "-c", program],
        input=json.dumps(list(AT_ONCE)),
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(("expression", "message"), AT_ONCE.items(), ids=AT_ONCE)
def test_an_argument_is_refused_at_once(at_once, expression, message):
    kind, said = at_once[expression]
    assert kind in ("TypeError", "ValueError")
    assert message in said
    assert ", got " in said
    assert said.endswith(".")


# What is refused once the Trainer runs: how to fit, and what it raises.


class Row(NamedTuple):
    """A case: ``fit(kit)`` returns what to fit with, besides the defaults."""

    fit: Callable[[Any], dict[str, Any]]
    message: str
    error: type[Exception] = ValueError


def refused(kit, message, *, module=None, data=None, error=ValueError, **settings):
    """Fit, and expect to be told off; nothing may be left behind."""
    module = kit.Classifier(kit.mlp()) if module is None else module
    settings = {"batch_size": 4, "gate": AlwaysOpen()} | settings
    trainer = kit.trainer(ImportanceSamplingCallback(**settings))
    with pytest.raises(error, match=message):
        trainer.fit(module, kit.loader() if data is None else data)
    assert {"batch_to_device", "training_step"}.isdisjoint(vars(trainer.strategy))
    assert not any(part._forward_hooks for part in module.modules())


def as_loader(batches):
    return DataLoader(batches, batch_size=None)


def step_of(kit, step, **parts):
    """A module whose training step is ``step(self, x, y)``, with more parts."""

    class Module(kit.Classifier):
        def training_step(self, batch, batch_idx):
            self.batch_idx = batch_idx
            return step(self, *batch)

    module = Module(kit.mlp())
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def cross(z, y, **settings):
    return functional.cross_entropy(z, y, **settings)


def changed(kit, change):
    """The usual batches, each of them changed."""
    return as_loader([change(x.clone(), y) for x, y in kit.loader()])


def presampled(kit, size, presample):
    return OversamplingDataModule(kit.loader(batch_size=size), presample)


def first_step_alone(self, x, y):
    hidden = self.net[1](self.net[0](x))
    return cross(self.net[2](hidden) if self.batch_idx == 0 else hidden[:, :3], y)


def time_first(self, x, y):
    z = self.head(self.net(x).unsqueeze(0).expand(5, -1, -1))  # (5, n, 3)
    return cross(z.mean(0), y)


def residual(self, x, y):
    z = self.net(x)
    return cross(z + self.last(z), y)


def of_a_fixed_size(self, x, y):
    return cross(self.net(x.view(12, 6)), y)


def own_losses(found):
    """Settings with the user's own losses, found from the logits and labels."""

    def losses(module, batch):
        return found(module.net(batch[0]), batch[1])

    return {"per_sample_loss": losses, "scorer": Loss(), "head": "net.2"}


class Spoilt:
    """A scorer that does something to the scores of another."""

    def __init__(self, spoil):
        self.spoil, self.observing = spoil, UpperBound().observing

    def score(self, step, tap, examples):
        scores, loss = UpperBound().score(step, tap, examples)
        return tuple.__new__(Scored, (self.spoil(scores), loss))


class Lstm(LightningLSTM):
    def prepare_data(self):
        pass


def carried_state(kit):
    tokens = torch.randint(20, (12, 6))
    data = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=6)
    return {"module": Lstm(vocab_size=20), "data": data, "batch_size": 2}


def fetching(kit):
    class Fetching(kit.Classifier):
        def training_step(self, dataloader_iter):
            return None

    return {"module": Fetching(kit.mlp())}


def poisoned(kit, **settings):
    """The third batch has two examples of NaN."""
    batches = [[x.clone(), y] for x, y in kit.loader()]
    batches[2][0][[1, 5]] = torch.nan
    return {"data": as_loader(batches), "bad_scores": "raise"} | settings


def headed(kit, head):
    return {"head": head}


def nested(rows):
    return torch.nested.nested_tensor(list(rows), layout=torch.jagged)


R = RuntimeError
ROWS = {
    # Sizes.
    "as-large-as-the-batch": Row(
        lambda kit: {"batch_size": 12},
        "smaller than the batches of the loader, got batch_size=12 and batches of at "
        "most 12.*OversamplingDataModule",
    ),
    "larger-than-the-batch": Row(
        lambda kit: {"batch_size": 40}, "got batch_size=40 and batches of at most 12"
    ),
    "unannounced-batches": Row(
        lambda kit: {"data": as_loader(list(kit.loader())), "batch_size": 16},
        "batches of at most 12",
    ),
    "no-presamples": Row(
        lambda kit: {"gate": ConstantTime()},
        "ConstantTime must be able to ask for more .* OversamplingDataModule",
    ),
    "presample-too-small": Row(
        lambda kit: {"data": presampled(kit, 4, 3)},
        "`presample_size` must be at least the batch size, got 3",
    ),
    "presample-larger-than-the-data": Row(
        lambda kit: {"data": presampled(kit, 4, 99)},
        "hold at least one presample, got 48 examples for `presample_size=99`",
    ),
    "two-batch-sizes": Row(
        lambda kit: {"data": presampled(kit, 6, 12)},
        "got 6 and `batch_size=4`. Make them equal",
    ),
    "empty-dataset": Row(
        lambda kit: {
            "data": OversamplingDataModule(
                DataLoader(TensorDataset(torch.empty(0, 6)), batch_size=4), 12
            )
        },
        "got 0 examples .* not empty",
    ),
    "empty-batch": Row(
        lambda kit: {"data": changed(kit, lambda x, y: [x[:0], y[:0]])},
        "must hold at least one example, got 0. Leave empty ones out",
    ),
    # Heads.
    "head-stops-firing": Row(
        lambda kit: {"module": step_of(kit, first_step_alone)},
        "The head must run in every training step.*Pass `head=`",
        R,
    ),
    "head-never-fires": Row(
        lambda kit: {
            "module": step_of(
                kit, lambda self, x, y: cross(self.net(x), y), unused=nn.Linear(2, 2)
            ),
            "head": "unused",
        },
        "must run in every",
        R,
    ),
    "head-of-nobody": Row(
        lambda kit: {"head": "nett"},
        r"must name a part of Classifier .* got 'nett'.*net, net\.0",
    ),
    "head-of-another": Row(
        lambda kit: {"head": nn.Linear(8, 3)}, r"or be one, got Linear\(in_features=8"
    ),
    "head-too-early": Row(
        lambda kit: {"head": "net.0"},
        r"Every parameter must reach the loss through the head \(Linear\).*net\.2\.",
        R,
    ),
    "head-of-two-outputs": Row(
        lambda kit: {
            "module": step_of(
                kit,
                lambda self, x, y: cross(self.lstm(x)[0], y),
                lstm=nn.LSTM(6, 3),
            ),
            "head": "lstm",
        },
        "output of the head must be a tensor, got a tuple from LSTM. Pass `head=`",
        TypeError,
    ),
    "temperature-after-the-head": Row(
        lambda kit: {
            "module": step_of(
                kit,
                lambda self, x, y: cross(self.net(x) * self.temperature, y),
                temperature=nn.Parameter(torch.tensor(0.5)),
            )
        },
        "escapes the weights, got temperature beside it",
        R,
    ),
    "residual-around-the-head": Row(
        lambda kit: {"module": step_of(kit, residual, last=nn.Linear(3, 3))},
        "several that feed one another",
        R,
    ),
    "not-batch-first": Row(
        lambda kit: {"module": step_of(kit, time_first, head=nn.Linear(3, 3))},
        r"examples along dimension 0, got shape \(5, 4, 3\)",
    ),
    "everything-frozen": Row(
        lambda kit: {
            "module": step_of(kit, lambda self, x, y: cross(x[:, :3] + 0.0, y))
        },
        "got a loss that reaches none .* every parameter frozen",
        R,
    ),
    # Losses.
    **{
        f"scaled-loss-{gate.__name__}": Row(
            lambda kit, gate=gate: {
                "module": step_of(kit, lambda s, x, y: 0.5 * cross(s.net(x), y)),
                "scorer": Loss(),
                "gate": gate(),
            },
            "mean over the examples .* got a mean of .* Pass `per_sample_loss=",
        )
        for gate in (AlwaysOpen, NeverOpen)
    },
    "loss-of-no-tensor": Row(
        lambda kit: {"module": step_of(kit, lambda s, x, y: cross(s.net(x), y).item())},
        "must return the loss as a tensor, .* or None, got float. Return `loss`",
        TypeError,
    ),
    "mapping-without-a-loss": Row(
        lambda kit: {
            "module": step_of(kit, lambda s, x, y: {"total": cross(s.net(x), y)})
        },
        r"under 'loss', or None, got a mapping with the keys \['total'\]",
        TypeError,
    ),
    "mapping-without-a-tensor": Row(
        lambda kit: {"module": step_of(kit, lambda s, x, y: {"loss": None})},
        r"or None, got a mapping with the keys \['loss'\]",
        TypeError,
    ),
    "own-losses-averaged": Row(
        lambda kit: own_losses(cross),
        r"`per_sample_loss` must return .* of shape \(4,\) on cpu, got .* shape \(\)",
    ),
    "own-losses-of-tokens": Row(
        lambda kit: own_losses(lambda z, y: z), r"got torch.float32 of shape \(4, 3\)"
    ),
    "own-losses-of-integers": Row(
        lambda kit: own_losses(lambda z, y: y), r"got torch.int64 of shape \(4,\)"
    ),
    "own-losses-of-no-tensor": Row(
        lambda kit: own_losses(lambda z, y: [1.0] * len(y)), "got a list. Average"
    ),
    "own-losses-elsewhere": Row(
        lambda kit: own_losses(lambda z, y: z[:, 0].to("meta")),
        r"of shape \(4,\) on cpu, got torch.float32 of shape \(4,\) on meta",
    ),
    # Scores.
    "nan-open": Row(
        lambda kit: poisoned(kit),
        "Scores must be finite and at least 0, got 2 of 12 that are not, at positions "
        "{1: nan, 5: nan}",
    ),
    "nan-closed": Row(
        lambda kit: poisoned(kit, gate=NeverOpen()),
        "got 2 of 12 .* positions {1: nan, 5: nan}.* Look at the loss of these",
    ),
    "nan-for-a-source": Row(
        lambda kit: poisoned(
            kit,
            data=DataLoader(
                TensorDataset(torch.full((12, 6), torch.nan), kit.examples(12)[1]),
                batch_size=6,
            ),
            source=PassSource(Shuffled()),
        ),
        "Scores must be finite",
    ),
    "negative-scores": Row(
        lambda kit: {"scorer": Spoilt(lambda scores: -scores)},
        "at least 0, got 12 of 12 .* a negative loss needs another scorer",
    ),
    "scores-of-another-shape": Row(
        lambda kit: {"scorer": Spoilt(lambda scores: scores[:, None])},
        r"one score per example, of shape \(12,\) on cpu, got shape \(12, 1\) on cpu",
    ),
    "too-few-scores": Row(
        lambda kit: {"scorer": Spoilt(lambda scores: scores[1:])},
        r"got shape \(11,\) on cpu. Reduce all dimensions but the first",
    ),
    "scores-elsewhere": Row(
        lambda kit: {"scorer": Spoilt(lambda scores: scores.to("meta"))},
        r"of shape \(12,\) on cpu, got shape \(12,\) on meta",
    ),
    # Batches.
    "parts-that-disagree": Row(
        lambda kit: {"data": changed(kit, lambda x, y: [x, y, torch.ones(3)])},
        r"got leading sizes \[12, 12, 3\].*index_fn",
    ),
    "unknown-objects": Row(
        lambda kit: {"data": changed(kit, lambda x, y: [x, object()])},
        "got a object in it.*index_fn",
        TypeError,
    ),
    "ragged-rows": Row(
        lambda kit: {
            "data": changed(
                kit, lambda x, y: [[r[: i + 1] for i, r in enumerate(x)], y]
            )
        },
        r"one row per example, got leading sizes \[1, 2, 3, .*index_fn",
    ),
    "nested-tensors": Row(
        lambda kit: {"data": changed(kit, lambda x, y: [nested(x), y])},
        "must be dense, .* got a nested one. Pad the examples, or pass `index_fn=`",
        TypeError,
    ),
    "sparse-tensors": Row(
        lambda kit: {"data": changed(kit, lambda x, y: [x.to_sparse(), y])},
        "must be dense, .* got a torch.sparse_coo one",
        TypeError,
    ),
    "no-batch-dimension": Row(
        lambda kit: {
            "data": as_loader(TensorDataset(*kit.examples())),
            "batch_size": 2,
        },
        "A step must run on a part of its batch, got one that runs on all of 6 "
        "examples and not on 2: .* one row per example",
        R,
    ),
    "scalars-alone": Row(
        lambda kit: {"data": as_loader([torch.tensor(1.0)] * 4)},
        "got leading sizes none. Put the examples along dimension 0",
    ),
    "a-step-of-a-fixed-size": Row(
        lambda kit: {"module": step_of(kit, of_a_fixed_size)},
        "got one that runs on all of 12 examples and not on 4: shape '.12, 6.' is "
        "invalid .* do not fix their size",
        R,
    ),
    "index-fn-that-does-not-count": Row(
        lambda kit: {"index_fn": lambda batch, indices: batch},
        r"`index_fn\(batch, None\)` must return the number of examples.*got a list",
        TypeError,
    ),
    "index-fn-that-counts-none": Row(
        lambda kit: {"index_fn": lambda batch, indices: 0},
        "must hold at least one example, got 0",
    ),
    # Steps and optimisation.
    "fetches-its-own-batches": Row(
        fetching, r"`training_step\(dataloader_iter\)`.*Take `batch`", R
    ),
    "carried-state": Row(
        carried_state, "tensors it kept from the last one: hidden. Reset that state", R
    ),
}


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step")
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_fit_is_refused(kit, row):
    refused(kit, row.message, error=row.error, **row.fit(kit))


def test_an_unsupported_strategy(kit):
    callback = ImportanceSamplingCallback(4)
    trainer = kit.trainer(callback)
    trainer._accelerator_connector.strategy = object.__new__(SingleDeviceXLAStrategy)
    with pytest.raises(RuntimeError, match=r"got SingleDeviceXLAStrategy.*'ddp'"):
        callback.on_fit_start(trainer, kit.Classifier(kit.mlp()))


# More callbacks than one, and fewer.


def opened():
    return ImportanceSamplingCallback(4, gate=AlwaysOpen())


class Once(L.Callback):
    """Does something at one hook of the second batch."""

    def __init__(self, act):
        self.act = act

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            self.act(trainer)


@pytest.mark.parametrize("same", [True, False], ids=["same", "another"])
def test_two_callbacks_of_one_trainer(kit, same):
    """Lightning refuses a list with two; those added later are refused here."""
    first = opened()
    second = first if same else opened()
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        kit.trainer(first, second)
    trainer = kit.trainer(first)
    trainer.callbacks.append(second)
    with pytest.raises(RuntimeError, match=r"got 2 in `trainer\.callbacks`. Keep one"):
        trainer.fit(kit.Classifier(kit.mlp()), kit.loader())
    assert {"batch_to_device", "training_step"}.isdisjoint(vars(trainer.strategy))


def test_a_callback_of_two_fits_at_once(kit):
    """It would have ended the sampling of the first fit in silence."""
    sampling, module = opened(), kit.Classifier(kit.mlp())

    def fit_another(trainer):
        with pytest.raises(RuntimeError, match="one Trainer at a time, got a second"):
            kit.trainer(sampling).fit(kit.Classifier(kit.mlp()), kit.loader())

    kit.trainer(sampling, Once(fit_another)).fit(module, kit.loader())
    assert module.seen == [4] * 4
    kit.trainer(sampling).fit(module, kit.loader())  # one after the other is fine
    assert module.seen == [4] * 8


def test_a_callback_that_is_taken_away_for_a_while(kit):
    """Batches pass whole without it; the one in hand keeps its weights."""
    sampling, module = opened(), kit.Classifier(kit.mlp())
    weighted, unweighted = [], []

    class TakesAway(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                trainer.callbacks = [c for c in trainer.callbacks if c is not sampling]
            if batch_idx == 1:
                loss = cross(pl_module.net(batch[0]), batch[1])
                unweighted.extend(torch.autograd.grad(loss, pl_module.net[2].bias))
            if batch_idx == 2:
                trainer.callbacks = [*trainer.callbacks, sampling]

        def on_after_backward(self, trainer, pl_module):
            weighted.append(pl_module.net[2].bias.grad.clone())

    plain, seen = kit.Classifier(kit.mlp()), []
    plain.load_state_dict(module.state_dict())

    class Sees(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            seen.append(pl_module.net[2].bias.grad.clone())

    trainer = kit.trainer(sampling, TakesAway())
    trainer.fit(module, kit.loader())
    assert module.seen == [4, 12, 12, 4]
    kit.trainer(opened(), Sees()).fit(plain, kit.loader())
    assert torch.equal(weighted[0], seen[0])
    assert torch.allclose(weighted[1], unweighted[0])
    assert {"batch_to_device", "training_step"}.isdisjoint(vars(trainer.strategy))


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.filterwarnings("ignore:Failed to compute suggestion")
def test_a_tuner_tries_learning_rates_without_the_callback(kit, tmp_path):
    module = kit.Classifier(kit.mlp())
    sampling = opened()
    trainer = kit.trainer(sampling, default_root_dir=tmp_path, max_epochs=2)
    Tuner(trainer).lr_find(module, kit.loader(), num_training=6)
    assert set(module.seen) == {12}
    assert trainer.callbacks[0] is sampling
    module.seen.clear()
    trainer.fit(module, kit.loader())
    assert set(module.seen) == {4}


# Steps that do less, or log otherwise, than expected.


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_that_never_returns_a_loss_trains_on_nothing(kit):
    """As without the callback: Lightning says that there was none."""
    module = step_of(kit, lambda self, x, y: self.seen.append(len(x)))
    before = nn.utils.parameters_to_vector(module.parameters()).clone()
    kit.trainer(opened()).fit(module, kit.loader())
    assert torch.equal(before, nn.utils.parameters_to_vector(module.parameters()))
    assert module.seen[-1] == 12


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("skipped", [0, 2])
def test_a_step_may_return_none_for_some_batches(kit, skipped):
    module = step_of(
        kit,
        lambda self, x, y: None if self.batch_idx == skipped else cross(self.net(x), y),
    )
    trainer = kit.trainer(opened())
    trainer.fit(module, kit.loader())
    assert float(trainer.callback_metrics["is/open"]) == 1
    assert float(trainer.callback_metrics["is/skipped"]) == 0


@pytest.mark.parametrize("own", ["class", "instance"])
def test_the_users_own_log_is_left_alone(kit, own):
    """It is called once a step, never while scoring, and not with our arguments."""
    calls = []

    class Narrow(kit.Classifier):
        def log(self, name, value):
            calls.append(name)

    kind = Narrow if own == "class" else kit.Classifier
    module = kind(kit.mlp())
    if own == "instance":
        module.log = lambda name, value: calls.append(name)
    mine = module.log
    trainer = kit.trainer(opened())
    trainer.fit(module, kit.loader())
    assert calls == ["train/loss"] * 4
    assert module.log == mine
    assert float(trainer.callback_metrics["is/open"]) == 1


def test_a_batch_on_another_device_fails_as_it_would_without_the_callback(kit):
    """The user's own error comes through, and nothing is left behind."""

    class Elsewhere(kit.Classifier):
        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return [part.to("meta") for part in batch]

    with pytest.raises(RuntimeError, match="meta") as plain:
        kit.trainer().fit(Elsewhere(kit.mlp()), kit.loader())
    words = "^" + re.escape(str(plain.value)[:40])  # not within words of ours
    refused(kit, words, module=Elsewhere(kit.mlp()), error=RuntimeError)


def test_a_tensor_merely_kept_is_no_hidden_state(kit):
    def keeping(self, x, y):
        self.kept = x
        return cross(self.net(x), y)

    module = step_of(kit, keeping)
    kit.trainer(opened()).fit(module, kit.loader())
    assert len(module.kept) == 4
