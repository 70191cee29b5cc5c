"""Heads are found in networks nobody described, and checked to be heads."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.demos import BoringModel, LightningTransformer
from torch import Tensor, nn

from lightning_is.scoring.discovery import (
    bypassing_parameters,
    changed_tensors,
    find_heads,
    kept_tensors,
    traced_outputs,
)
from lightning_is.scoring.tap import HeadTap

N, K = 6, 3


def found_in(module: nn.Module, step: Callable[[], Tensor]) -> list[nn.Module]:
    with traced_outputs(module) as owners:
        loss = step()
    return find_heads(loss, owners)


def labels() -> Tensor:
    return torch.arange(N) % K


class Scaled(nn.Module):
    """A parent whose own parameter scales what its last layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, K))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x)


class Holder(nn.Module):
    """A parent with a parameter of its own that returns what a child gives."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.ones(N, 4))
        self.last = nn.Linear(4, K)

    def forward(self) -> Tensor:
        return self.last(self.embedding)


def mlp() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K))
    x = torch.randn(N, 4)
    return net, lambda: F.cross_entropy(net(x), labels()), [net[2]]


def convolutional() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, K, 2)
    )
    x = torch.randn(N, 2, 4, 4)
    return net, lambda: F.cross_entropy(net(x).flatten(1), labels()), [net[3]]


def normalised() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    """The last module with parameters need not be a linear one."""
    net = nn.Sequential(nn.Linear(4, K), nn.LayerNorm(K))
    x = torch.randn(N, 4)
    return net, lambda: F.cross_entropy(net(x), labels()), [net[1]]


def scaled() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    net, x = Scaled(), torch.randn(N, 4)
    return net, lambda: F.cross_entropy(net(x), labels()), [net]


def held() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    net = Holder()
    return net, lambda: F.cross_entropy(net(), labels()), [net.last]


def two_headed() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    net = nn.ModuleDict(
        {"body": nn.Linear(4, 5), "a": nn.Linear(5, K), "b": nn.Linear(5, 1)}
    )
    x = torch.randn(N, 4)

    def step() -> Tensor:
        h = net["body"](x).relu()
        return F.cross_entropy(net["a"](h), labels()) + net["b"](h).square().mean()

    return net, step, [net["a"], net["b"]]


def applied_twice() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, K))
    x = torch.randn(N, 4)
    return net, lambda: F.cross_entropy(net(x) + net(-x), labels()), [net[2]]


def in_place() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, K), nn.ReLU(inplace=True))
    x = torch.randn(N, 4)
    return net, lambda: F.cross_entropy(net(x), labels()), [net[1]]


def boring() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    module, x = BoringModel(), torch.randn(N, 32)
    return module, lambda: module.training_step(x, 0)["loss"], [module.layer]


def transformer() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    module = LightningTransformer(vocab_size=50)
    batch = (torch.randint(50, (2, 8)), torch.randint(50, (2, 8)))
    return module, lambda: module.training_step(batch, 0), [module.model.decoder]


def frozen_backbone() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    net, step, heads = mlp()
    net[0].requires_grad_(False)
    return net, step, heads


def nested() -> tuple[nn.Module, Callable[[], Tensor], Sequence[nn.Module]]:
    """A module that computes its loss in a criterion with a learnable part of it."""

    class Classifier(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = mlp()[0]
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(K))

        def training_step(self, batch: Tensor) -> Tensor:
            return self.criterion(self.model(batch), labels())

    module, x = Classifier(), torch.randn(N, 4)
    return module, lambda: module.training_step(x), [module.model[2]]


@pytest.mark.parametrize(
    "make",
    [
        mlp,
        convolutional,
        normalised,
        scaled,
        held,
        two_headed,
        applied_twice,
        in_place,
        boring,
        transformer,
        frozen_backbone,
        nested,
    ],
    ids=lambda make: make.__name__,
)
def test_the_heads_are_found_and_nothing_bypasses_them(make):
    torch.manual_seed(0)
    module, step, heads = make()
    found = found_in(module, step)
    assert {id(head) for head in found} == {id(head) for head in heads}
    assert len(found) == len(heads)

    tap = HeadTap(found)
    tap.attach()
    if isinstance(module, LightningTransformer):
        module.eval()  # the two steps below must differ by their data alone
    assert bypassing_parameters(module, tap, (step, step)) == []


@pytest.mark.parametrize(
    "make", [mlp, scaled, two_headed, boring], ids=lambda make: make.__name__
)
def test_tracing_leaves_no_hooks(make):
    module, step, _ = make()

    def failing() -> Tensor:
        step()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        found_in(module, failing)
    found_in(module, step)
    assert not any(part._forward_hooks for part in module.modules())


class Residual(nn.Module):
    """Its last layer adds to what the layer before gives to the loss as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, K), nn.Linear(K, K)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h + self.last(h.relu())


def test_a_residual_connection_around_the_last_layer_is_refused():
    net, x = Residual(), torch.randn(N, 4)
    message = r"one another \(Linear\), as residual .*Pass `head=`"
    with pytest.raises(RuntimeError, match=message):
        found_in(net, lambda: F.cross_entropy(net(x), labels()))


def test_a_head_that_feeds_another_directly_is_refused():
    """Deep supervision: the loss reads the layer below the last one, too."""
    net = nn.Sequential(nn.Linear(4, K), nn.LayerNorm(K))
    x = torch.randn(N, 4)

    def step() -> Tensor:
        z = net[0](x)
        return F.cross_entropy(z, labels()) + F.cross_entropy(net[1](z), labels())

    with pytest.raises(RuntimeError, match=r"another \(LayerNorm, Linear\)"):
        found_in(net, step)


def test_residual_connections_further_down_are_fine():
    net, last, x = Residual(), nn.Linear(K, K), torch.randn(N, 4)
    whole = nn.ModuleList([net, last])
    step: Callable[[], Tensor] = lambda: last(net(x)).square().mean()  # noqa: E731
    assert found_in(whole, step) == [last]


def test_a_frozen_network_is_refused():
    net, step, _ = mlp()
    net.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"a loss that reaches none .*frozen"):
        found_in(net, step)


def test_a_loss_of_bare_parameters_is_refused():
    net = nn.Linear(4, K)
    with pytest.raises(RuntimeError, match=r"output of a module with parameters"):
        found_in(net, lambda: net.weight.square().sum())


class Tied(nn.Module):
    """Its logits use the embedding once more, and a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.body = nn.Linear(4, 4)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(self.embedding(x))
        return F.linear(h, self.embedding.weight) * self.temperature


def on_halves(loss: Callable[[Tensor], Tensor]) -> tuple[Callable[[], Tensor], ...]:
    first, second = torch.arange(N // 2), torch.arange(N // 2, N)
    return lambda: loss(first), lambda: loss(second)


def bypassing(
    module: nn.Module, heads: Sequence[nn.Module], loss: Callable[[Tensor], Tensor]
) -> list[str]:
    tap = HeadTap(heads)
    tap.attach()
    return bypassing_parameters(module, tap, on_halves(loss))


def test_parameters_used_after_the_head_are_named():
    torch.manual_seed(0)
    net, x, y = (
        Tied(),
        torch.tensor([0, 1, 2, 3, 4, 5]),
        torch.tensor([3, 1, 4, 1, 5, 6]),
    )
    names = bypassing(net, [net.body], lambda i: F.cross_entropy(net(x[i]), y[i]))
    assert names == ["temperature", "embedding.weight"]


def test_a_temperature_alone_is_named():
    torch.manual_seed(0)
    net, x, y = Scaled(), torch.randn(N, 4), labels()
    heads = [net.inner[-1]]
    names = bypassing(net, heads, lambda i: F.cross_entropy(net(x[i]), y[i]))
    assert names == ["scale"]


def test_a_second_head_beside_the_tap_is_named():
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {"body": nn.Linear(4, 5), "a": nn.Linear(5, K), "b": nn.Linear(5, 1)}
    )
    x, y = torch.randn(N, 4), labels()

    def loss(i: Tensor) -> Tensor:
        h = net["body"](x[i]).tanh()
        return F.cross_entropy(net["a"](h), y[i]) + net["b"](h).square().mean()

    expected = {"body.weight", "body.bias", "b.weight", "b.bias"}
    assert set(bypassing(net, [net["a"]], loss)) == expected
    assert bypassing(net, [net["a"], net["b"]], loss) == []


def test_a_penalty_on_all_parameters_is_not_named():
    torch.manual_seed(0)
    net = mlp()[0]
    x, y = torch.randn(N, 4), labels()

    def loss(i: Tensor) -> Tensor:
        penalty = sum(p.square().sum() for p in net.parameters())
        return F.cross_entropy(net(x[i]), y[i]) + penalty

    assert bypassing(net, [net[-1]], loss) == []


def test_a_bypass_is_named_beside_a_penalty():
    torch.manual_seed(0)
    net = Scaled()
    x, y = torch.randn(N, 4), labels()

    def loss(i: Tensor) -> Tensor:
        penalty = sum(p.square().sum() for p in net.parameters())
        return F.cross_entropy(net(x[i]), y[i]) + penalty

    assert bypassing(net, [net.inner[-1]], loss) == ["scale"]


def test_a_parameter_that_only_some_steps_use_is_named():
    """Without a gradient in one step, with one in the other."""
    net = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
    x = torch.randn(N, 4)

    def loss(i: Tensor) -> Tensor:
        main = net["a"](x[i]).mean()
        return main + net["b"](x[i]).mean() if 0 in i else main + net["a"].bias.sum()

    assert set(bypassing(net, [net["a"]], loss)) == {"a.bias", "b.weight", "b.bias"}


def test_frozen_parameters_are_never_named():
    torch.manual_seed(0)
    net, x, y = Scaled(), torch.randn(N, 4), labels()
    net.scale.requires_grad_(False)
    heads = [net.inner[-1]]
    assert bypassing(net, heads, lambda i: F.cross_entropy(net(x[i]), y[i])) == []


def test_the_check_leaves_no_gradients_and_works_under_no_grad():
    """Also where the bypass is computed before the head runs."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
    x = torch.randn(N, 4)

    def loss(i: Tensor) -> Tensor:
        return net["b"](x[i]).square().mean() + net["a"](x[i]).square().mean()

    with torch.no_grad():
        assert bypassing(net, [net["a"]], loss) == ["b.weight", "b.bias"]
    assert all(p.grad is None for p in net.parameters())


def test_the_second_step_is_skipped_where_the_first_shows_no_bypass():
    net, step, heads = mlp()
    calls: list[int] = []

    def counted() -> Tensor:
        calls.append(1)
        return step()

    tap = HeadTap(heads)
    tap.attach()
    bypassing_parameters(net, tap, (counted, counted))
    assert calls == [1]


def test_tensors_kept_as_attributes_are_listed_by_path_and_identity():
    module = nn.ModuleDict({"part": nn.Linear(1, 1)})
    a, b, scalar = torch.ones(2), torch.ones(3), torch.ones(())
    module.state = a
    module["part"].hidden = [(a, b), "text", {"not": a}]
    module["part"].count = scalar
    module._private = a
    module.register_buffer("table", b)
    before = kept_tensors(module)
    assert [t is a for t, _ in before["state"]] == [True]
    assert [t is b for t, _ in before["part.hidden"]] == [False, True, False]
    # A running count is no hidden state.
    assert before.keys() == {"state", "part.hidden", "_private", "table"}
    assert changed_tensors(before, module) == []
    b.add_(1)
    assert changed_tensors(before, module) == ["part.hidden", "table"]
    module._private = torch.ones(2)
    assert changed_tensors(before, module) == ["_private", "part.hidden", "table"]
