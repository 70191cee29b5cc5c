"""A step inside the traceless context changes nothing that the class names."""

import random
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassPrecision,
    MulticlassRecall,
)

from lightning_is.scoring.context import (
    TracelessContext,
    random_states_kept,
)

X = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(5))


class Untidy(LightningModule):
    """Its step leaves every kind of trace it can."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(3),
            nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(12, 3),
        )
        self.frozen = nn.BatchNorm1d(3).eval()
        self.accuracy = MulticlassAccuracy(num_classes=3)
        self.mean = MeanMetric()
        self.values = CatMetric()
        self.several = MetricCollection(
            [MulticlassPrecision(3, average=None), MulticlassRecall(3, average=None)]
        )
        self.steps = 0
        self.outputs: list[Tensor] = [torch.zeros(1)]
        self.latest: dict[str, Any] = {"loss": None, "calls": 0}
        self.window: deque[float] = deque([1.0, 2.0], maxlen=2)
        self.seen = {1}
        self.counts = Counter({"a": 1})
        self._private = [0]
        self.note = "before"

    def training_step(self, batch: Tensor, batch_idx: int = 0) -> Tensor:
        z = self.net(self.frozen(batch))
        y = torch.randint(3, (len(batch),))
        loss = nn.functional.cross_entropy(z, y)
        loss = loss + random.random() + np.random.rand()  # noqa: S311
        self.accuracy(z, y)
        self.mean.update(loss)
        self.values.update(loss)
        self.several.update(z, y)
        self.log("loss", loss)
        self.log_dict({"again": loss})
        self.steps += 1
        self.outputs.append(loss)
        self.outputs[0] = loss
        self.latest["loss"] = loss
        self.latest["calls"] += 1
        self.latest["new"] = loss
        self.window.append(3.0)
        self.seen.add(2)
        self.counts.update("ab")
        self._private.append(1)
        self.note = "after"
        self.invented = loss
        return loss


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Copy all that a step might change, down to plain values.

    To be taken after the context is made: the type checks of its arguments, which are
    made in tests alone, draw from Python's random numbers.
    """
    found: dict[str, Any] = {
        name: value.clone() for name, value in module.state_dict().items()
    }
    for path, part in module.named_modules():
        found[f"{path} training"] = part.training
        for name, value in vars(part).items():
            if name.startswith("_") and name not in {"_private", "_update_count"}:
                continue
            if isinstance(value, (list, dict, set, deque)):
                value = repr(value)
            found[f"{path} {name}"] = (
                value.clone() if isinstance(value, Tensor) else value
            )
    found |= {f"{name}.grad": p.grad for name, p in module.named_parameters()}
    found["torch"] = torch.random.get_rng_state()
    _, keys, position, *_ = np.random.get_state()
    found["numpy"] = (keys.tolist(), position)
    found["python"] = random.getstate()
    return found


def assert_same(after: dict[str, Any], before: dict[str, Any]) -> None:
    assert after.keys() == before.keys()
    for name, value in before.items():
        same = (
            torch.equal(after[name], value)
            if isinstance(value, Tensor)
            else after[name] == value
        )
        assert same, name


@contextmanager
def logging_ignored(module: LightningModule) -> Iterator[None]:
    """Let a step run outside a Trainer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*self.log.*")
        yield


@pytest.fixture
def module() -> Untidy:
    torch.manual_seed(0)
    return Untidy()


def fails() -> AbstractContextManager[object]:
    return pytest.raises(ZeroDivisionError)


MODES = pytest.mark.parametrize("score_mode", ["eval", "train"])


def test_the_step_leaves_traces_by_itself(module: Untidy):
    """Or the tests below would test nothing."""
    before = snapshot(module)
    with logging_ignored(module):
        module.training_step(X).backward()
    after = snapshot(module)
    changed = {name for name in before if not _same(before[name], after[name])}
    assert changed >= {
        "net.0.running_mean",
        "net.0.num_batches_tracked",
        "net.1.running_var",
        "net.4.weight.grad",
        "accuracy _update_count",
        "mean mean_value",
        "values value",
        "several.MulticlassPrecision tp",
        " steps",
        " outputs",
        " latest",
        " window",
        " seen",
        " counts",
        " _private",
        " note",
        "torch",
        "numpy",
        "python",
    }
    assert " invented" in after.keys() - before.keys()


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@MODES
def test_a_pass_changes_nothing(module: Untidy, score_mode: str):
    with logging_ignored(module):
        module.training_step(X)  # so that there is something to keep
    context = TracelessContext(module, score_mode)
    before = snapshot(module)
    for _ in range(2):
        with torch.no_grad(), context():
            module.training_step(X)
    assert_same(snapshot(module), before)


@MODES
def test_a_first_pass_changes_nothing(module: Untidy, score_mode: str):
    context = TracelessContext(module, score_mode)
    before = snapshot(module)
    with torch.no_grad(), context():
        module.training_step(X)
    assert_same(snapshot(module), before)


@MODES
def test_a_pass_that_fails_changes_nothing(module: Untidy, score_mode: str):
    context = TracelessContext(module, score_mode)
    before = snapshot(module)
    with fails(), context():
        module.training_step(X)
        raise ZeroDivisionError
    assert_same(snapshot(module), before)


@MODES
def test_a_failing_pass_with_statistics_restores_the_rest(
    module: Untidy, score_mode: str
):
    context = TracelessContext(module, score_mode)
    before = snapshot(module)
    with fails(), context(update_statistics=True):
        raise ZeroDivisionError
    assert_same(snapshot(module), before)


def test_containers_are_the_same_objects_afterwards(module: Untidy):
    """Others may hold them as well."""
    outputs, latest, window = module.outputs, module.latest, module.window
    with torch.no_grad(), TracelessContext(module)():
        module.training_step(X)
        module.outputs = []
    assert module.outputs is outputs
    assert module.latest is latest
    assert module.window is window


def test_items_that_a_step_removes_come_back(module: Untidy):
    with TracelessContext(module)():
        module.outputs.clear()
        module.latest.pop("loss")
        module.seen.clear()
        module.counts.clear()
        del module.note
    assert len(module.outputs) == 1
    assert module.latest == {"loss": None, "calls": 0}
    assert module.seen == {1}
    assert module.counts == {"a": 1}
    assert module.note == "before"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: MulticlassAccuracy(3), id="accuracy"),
        pytest.param(lambda: MulticlassConfusionMatrix(3), id="confusion matrix"),
        pytest.param(MeanMetric, id="mean"),
        pytest.param(CatMetric, id="list of values"),
        pytest.param(
            lambda: MetricCollection(
                [MulticlassPrecision(3), MulticlassRecall(3)], compute_groups=True
            ),
            id="collection in compute groups",
        ),
        pytest.param(
            lambda: MetricCollection(
                [MulticlassPrecision(3), MulticlassRecall(3)], compute_groups=False
            ),
            id="collection",
        ),
    ],
)
@pytest.mark.parametrize("early", [True, False], ids=["first pass", "later pass"])
def test_a_metric_ends_as_if_no_pass_had_been(make: Callable[[], Any], early: bool):
    """Also where the metrics of a collection share their states."""

    def update(metric: Any, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        if isinstance(metric, (MeanMetric, CatMetric)):
            metric.update(torch.rand(5, generator=random))
        else:
            z = torch.randn(7, 3, generator=random)
            metric.update(z, torch.randint(3, (7,), generator=random))

    plain, kept = make(), make()
    holder = nn.ModuleDict({"metric": kept})
    context = TracelessContext(holder)
    for seed in range(3):
        if seed > 0 or early:
            with context():
                update(kept, 100 + seed)
                kept.compute()
        update(plain, seed)
        update(kept, seed)
    torch.testing.assert_close(kept.compute(), plain.compute())
    kept.reset()
    plain.reset()
    update(plain, 9)
    update(kept, 9)
    torch.testing.assert_close(kept.compute(), plain.compute())


def test_logging_is_muted_inside_and_back_outside(module: Untidy):
    assert "log" not in vars(module)
    with TracelessContext(module)():
        assert module.log("a", 1) is None
        assert module.log_dict({"a": 1}) is None
    assert "log" not in vars(module)
    assert "log_dict" not in vars(module)
    assert module.log.__func__ is LightningModule.log


@pytest.mark.parametrize("name", ["log", "log_dict"])
def test_a_logging_method_of_the_users_own_is_muted_and_comes_back(
    module: Untidy, name: str
):
    logged: list[object] = []
    own = logged.append
    setattr(module, name, own)
    with fails(), TracelessContext(module)():
        getattr(module, name)("inside")
        raise ZeroDivisionError
    getattr(module, name)("outside")
    assert getattr(module, name) is own
    assert logged == ["outside"]


def test_only_the_given_loggers_are_muted(module: Untidy):
    outer = nn.ModuleDict({"module": module})
    with TracelessContext(outer, loggers=[module])():
        assert "log" in vars(module)
        assert "log" not in vars(outer)


@pytest.mark.parametrize(
    ("score_mode", "expected"),
    [("eval", [False, False]), ("train", [True, False])],
)
def test_the_score_mode_sets_the_train_flags(score_mode: str, expected: list[bool]):
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with TracelessContext(net, score_mode)():
        assert [part.training for part in net] == expected
        assert net.training is (score_mode == "train")
    assert [part.training for part in net] == [True, False]


def mixed() -> nn.Sequential:
    """Live and frozen normalisation, and dropout."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Dropout(0.5),
        nn.BatchNorm1d(3),
        nn.BatchNorm1d(3, momentum=None),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.InstanceNorm1d(3, track_running_stats=True),
        nn.BatchNorm1d(3),
        nn.InstanceNorm1d(3, track_running_stats=True),
    )
    net(X * 3 + 1)  # running statistics of their own
    net[5].eval()
    net[6].eval()
    return net


def buffers(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.named_buffers()}


@MODES
def test_statistics_are_taken_in_as_by_one_ordinary_step(score_mode: str):
    net, reference = mixed(), mixed()
    reference[0].p = net[0].p = 0.0  # dropout has its own test
    expected = reference(X)
    with torch.no_grad(), TracelessContext(net, score_mode)(update_statistics=True):
        assert torch.equal(net(X), expected)
    assert buffers(net).keys() == buffers(reference).keys()
    for name, value in buffers(reference).items():
        assert torch.equal(buffers(net)[name], value), name


def test_dropout_is_off_while_statistics_are_taken_in():
    net, reference = mixed(), mixed()
    reference[0].eval()
    expected = reference(X)
    with torch.no_grad(), TracelessContext(net)(update_statistics=True):
        assert torch.equal(net(X), expected)
    assert torch.equal(net[1].running_mean, reference[1].running_mean)
    assert net[0].training


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: nn.BatchNorm1d(3), id="batch norm"),
        pytest.param(lambda: nn.BatchNorm1d(3, momentum=None), id="cumulative"),
        pytest.param(
            lambda: nn.BatchNorm1d(3, track_running_stats=False), id="no statistics"
        ),
        pytest.param(
            lambda: nn.InstanceNorm1d(3, track_running_stats=True), id="instance norm"
        ),
        pytest.param(lambda: nn.InstanceNorm1d(3), id="instance norm, no statistics"),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_frozen_statistics_stay_and_normalisation_goes_on(
    make: Callable[[], nn.Module], training: bool
):
    norm, reference = make(), make()
    norm(X * 3 + 1)
    reference(X * 3 + 1)
    norm.train(training)
    reference.train(training)
    before, tracked = buffers(norm), norm.track_running_stats
    with TracelessContext(norm).frozen_statistics():
        out = norm(X)
    assert torch.equal(out, reference(X))
    assert norm.track_running_stats is tracked
    assert list(norm.state_dict()) == list(reference.state_dict())
    assert buffers(norm).keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(buffers(norm)[name], value), name
    norm(X)
    reference.load_state_dict(before, strict=False)  # those of affine layers differ
    reference(X)
    for name, value in buffers(reference).items():  # it takes in statistics again
        assert torch.equal(buffers(norm)[name], value), name


def test_statistics_thaw_after_an_exception():
    norm = nn.BatchNorm1d(3)
    context = TracelessContext(norm)
    with fails(), context.frozen_statistics():
        raise ZeroDivisionError
    norm(X)
    assert norm.num_batches_tracked.item() == 1


def test_statistics_are_not_frozen_unless_active():
    norm = nn.BatchNorm1d(3)
    with TracelessContext(norm).frozen_statistics(active=False):
        norm(X)
    assert norm.num_batches_tracked.item() == 1


def test_a_gradient_that_is_there_stays():
    net = nn.Linear(4, 1)
    net(X).sum().backward()
    gradient = net.weight.grad
    before = gradient.clone()
    with torch.no_grad(), TracelessContext(net)():
        net(X)
    assert net.weight.grad is gradient
    assert torch.equal(gradient, before)


def test_a_module_without_parameters_can_run():
    net = nn.Identity()
    with TracelessContext(net)():
        assert torch.equal(net(X), X)


def test_random_states_are_kept_after_an_exception():
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: S311

    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    with fails(), random_states_kept(torch.device("cpu")):
        inside = draw()
        raise ZeroDivisionError
    assert draw() == inside
