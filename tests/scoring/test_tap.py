"""The head tap against brute force: the gradient of each example's own loss."""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_is.scoring.tap import HeadTap, example_norms, rows_per_example

N, FEATURES, CLASSES, STEPS = 5, 4, 3, 2


@dataclass
class Case:
    """A network and its loss, as a whole and example by example.

    Attributes:
        heads: Where to tap.
        module: Holds all parameters.
        batch: Computes the loss, the mean of ``example(i)`` plus ``penalty``.
        example: Computes the loss of one example.
        penalty: What the loss has beside the examples.
        stacked: As in `HeadTap`.
    """

    heads: Sequence[nn.Module]
    module: nn.Module
    batch: Callable[[], Tensor]
    example: Callable[[int], Tensor]
    penalty: Callable[[], Tensor] = field(default=lambda: torch.zeros(()))
    stacked: bool = False


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def labels(*shape: int) -> Tensor:
    return torch.randint(CLASSES, shape)


def mlp(*, outputs: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, outputs)
    ).double()


def one_loss(
    net: nn.Sequential, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Case:
    """A network whose loss on one example is the loss of a batch of one."""
    return Case(
        heads=[net[-1]],
        module=net,
        batch=lambda: loss(net(x), y),
        example=lambda i: loss(net(x[i : i + 1]), y[i : i + 1]),
    )


def cross_entropy() -> Case:
    return one_loss(mlp(), normal(N, FEATURES), labels(N), F.cross_entropy)


def smoothed() -> Case:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y, label_smoothing=0.2)

    return one_loss(mlp(), normal(N, FEATURES), labels(N), loss)


def squared_error() -> Case:
    return one_loss(mlp(), normal(N, FEATURES), normal(N, CLASSES), F.mse_loss)


def binary() -> Case:
    y = torch.rand(N, CLASSES).double()
    return one_loss(mlp(), normal(N, FEATURES), y, F.binary_cross_entropy_with_logits)


def convolutional() -> Case:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)
    ).double()
    return one_loss(net, normal(N, 2, 4, 4), labels(N), F.cross_entropy)


def fully_convolutional() -> Case:
    """A map of logits per example: the head's output has four dimensions."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, CLASSES, 1))
    return one_loss(net.double(), normal(N, 2, 4, 4), labels(N, 2, 2), F.cross_entropy)


def batch_normalised() -> Case:
    """Examples meet in the backbone, so each loss needs the whole forward pass."""
    net = nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    net, x, y = net.double(), normal(N, FEATURES), labels(N)
    return Case(
        heads=[net[-1]],
        module=net,
        batch=lambda: F.cross_entropy(net(x), y),
        example=lambda i: F.cross_entropy(net(x)[i], y[i]),
    )


def sequences() -> Case:
    net, x, y = mlp(), normal(N, STEPS, FEATURES), labels(N, STEPS)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x).transpose(1, 2), y)

    return Case(
        heads=[net[-1]],
        module=net,
        batch=lambda: loss(x, y),
        example=lambda i: loss(x[i : i + 1], y[i : i + 1]),
    )


def flattened_sequences() -> Case:
    net, x, y = mlp(), normal(N, STEPS, FEATURES), labels(N, STEPS)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x.flatten(0, 1)), y.flatten())

    return Case(
        heads=[net[-1]],
        module=net,
        batch=lambda: loss(x, y),
        example=lambda i: loss(x[i : i + 1], y[i : i + 1]),
    )


def ragged_sequences() -> Case:
    """The mean over the tokens: a long example counts more than a short one."""
    net, x, y = mlp(), normal(N, STEPS, FEATURES), labels(N, STEPS)
    y[1:3, 1] = -100
    tokens = int((y != -100).sum())

    def example(i: int) -> Tensor:
        each = F.cross_entropy(net(x[i]), y[i], reduction="none")
        return each.sum() * N / tokens

    return Case(
        heads=[net[-1]],
        module=net,
        batch=lambda: F.cross_entropy(net(x).transpose(1, 2), y),
        example=example,
    )


def head_applied_twice() -> Case:
    net, x, other = mlp(), normal(N, FEATURES), normal(N, FEATURES)
    y = labels(N)

    def loss(x: Tensor, other: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x) - 0.5 * net(other), y)

    return Case(
        heads=[net[-1]],
        module=net,
        batch=lambda: loss(x, other, y),
        example=lambda i: loss(x[i : i + 1], other[i : i + 1], y[i : i + 1]),
    )


def two_stacked_views() -> Case:
    net, x, y = mlp(), normal(2, N, FEATURES), labels(N)

    def example(i: int) -> Tensor:
        return F.cross_entropy(net(x[:, i]), y[i].repeat(2))

    return Case(
        heads=[net[-1]],
        module=net,
        batch=lambda: F.cross_entropy(net(x.flatten(0, 1)), y.repeat(2)),
        example=example,
        stacked=True,
    )


def in_place_activation() -> Case:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.relu_(), y)

    return one_loss(mlp(), normal(N, FEATURES), labels(N), loss)


def masked_logits() -> Case:
    mask = torch.tensor([False, True, False])

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.masked_fill(mask, -torch.inf), y)

    y = torch.tensor([0, 2, 0, 2, 2])
    return one_loss(mlp(), normal(N, FEATURES), y, loss)


def penalised() -> Case:
    case = cross_entropy()
    data, parameters = case.batch, list(case.module.parameters())

    def penalty() -> Tensor:
        return 0.1 * torch.stack([p.square().sum() for p in parameters]).sum()

    case.batch, case.penalty = lambda: data() + penalty(), penalty
    return case


def two_heads() -> Case:
    body = nn.Linear(FEATURES, 6).double()
    left, right = nn.Linear(6, CLASSES).double(), nn.Linear(6, 1).double()
    x, y, t = normal(N, FEATURES), labels(N), normal(N, 1)

    def loss(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        h = body(x).tanh()
        return F.cross_entropy(left(h), y) + 3 * F.mse_loss(right(h), t)

    return Case(
        heads=[left, right],
        module=nn.ModuleList([body, left, right]),
        batch=lambda: loss(x, y, t),
        example=lambda i: loss(x[i : i + 1], y[i : i + 1], t[i : i + 1]),
    )


CASES = [
    cross_entropy,
    smoothed,
    squared_error,
    binary,
    convolutional,
    fully_convolutional,
    batch_normalised,
    sequences,
    flattened_sequences,
    ragged_sequences,
    head_applied_twice,
    two_stacked_views,
    in_place_activation,
    masked_logits,
    penalised,
    two_heads,
]
WEIGHTS = torch.tensor([0.0, 0.25, 1.0, 2.0, 7.0])


@pytest.fixture(params=CASES, ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return request.param()


def tap_on(case: Case) -> HeadTap:
    tap = HeadTap(case.heads)
    tap.stacked = case.stacked
    tap.attach()
    return tap


def gradients(loss: Tensor, case: Case) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(case.module.parameters())))


def example_gradients(case: Case) -> list[list[Tensor]]:
    return [gradients(case.example(i), case) for i in range(N)]


def norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in tensors]).sum().sqrt()


def test_the_cases_state_the_mean_of_their_examples(case: Case):
    mean = torch.stack([case.example(i) for i in range(N)]).mean()
    torch.testing.assert_close(case.batch(), mean + case.penalty(), check_dtype=False)


def test_weighting_gives_the_gradient_of_the_weighted_mean(case: Case):
    weighted = sum(w * case.example(i) for i, w in enumerate(WEIGHTS.double())) / N
    expected = gradients(weighted + case.penalty(), case)

    tap = tap_on(case)
    with tap.weighting(WEIGHTS):
        loss = case.batch()
    torch.testing.assert_close(gradients(loss, case), expected)


def test_weighting_leaves_the_loss_bit_identical(case: Case):
    before = case.batch()
    with tap_on(case).weighting(WEIGHTS):
        assert torch.equal(case.batch(), before)


def test_an_idle_tap_leaves_loss_and_gradient_bit_identical(case: Case):
    before = case.batch()
    expected = gradients(before, case)
    tap_on(case)
    after = case.batch()
    assert torch.equal(after, before)
    assert all(map(torch.equal, gradients(after, case), expected))


@pytest.mark.parametrize("cut", [False, True])
def test_probing_leaves_the_loss_bit_identical(case: Case, cut: bool):
    before = case.batch()
    with tap_on(case).probing(cut=cut):
        assert torch.equal(case.batch(), before)


def test_probes_hold_the_gradient_of_the_loss_at_the_heads(case: Case):
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # so that an in-place operation leaves ours alone

    handles = [head.register_forward_hook(keep) for head in case.heads]
    expected = torch.autograd.grad(case.batch(), outputs)
    for handle in handles:
        handle.remove()

    with tap_on(case).probing() as probes:
        case.batch().backward()
    torch.testing.assert_close([p.grad for p in probes], list(expected))


def test_probing_leaves_the_gradient_of_the_parameters(case: Case):
    expected = gradients(case.batch(), case)
    with tap_on(case).probing():
        torch.testing.assert_close(gradients(case.batch(), case), expected)


def test_reading_under_weights_gives_the_unweighted_gradient(case: Case):
    tap = tap_on(case)
    with tap.probing() as plain:
        case.batch().backward()
    case.module.zero_grad()
    with tap.weighting(WEIGHTS), tap.probing() as probes:
        loss = case.batch()
    loss.backward()
    assert len(probes) == len(plain) > 0
    for probe, reference in zip(probes, plain, strict=True):
        torch.testing.assert_close(probe.grad, reference.grad)

    weighted = sum(w * case.example(i) for i, w in enumerate(WEIGHTS.double())) / N
    expected = gradients(weighted + case.penalty(), case)
    found = [p.grad for p in case.module.parameters()]
    torch.testing.assert_close(found, expected)


def test_a_cut_keeps_nothing_of_the_backbone_even_under_no_grad(case: Case):
    with torch.no_grad(), tap_on(case).probing(cut=True) as probes:
        loss = case.batch()
    assert not torch.is_grad_enabled() or loss.requires_grad
    assert loss.requires_grad
    loss.backward()
    assert all(probe.grad is not None for probe in probes)
    if not case.penalty().requires_grad:
        assert all(p.grad is None for p in case.module.parameters())


def test_grad_mode_is_restored_after_a_cut_under_no_grad(case: Case):
    tap = tap_on(case)
    with torch.no_grad():
        with torch.no_grad(), tap.probing(cut=True):
            case.batch()
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def saved_elements(step: Callable[[], Tensor]) -> int:
    """Count the elements that autograd keeps for the backward pass."""
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(0 if isinstance(tensor, nn.Parameter) else tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step()
    assert loss.requires_grad
    return sum(saved)


def test_a_cut_under_no_grad_keeps_no_activations_of_the_backbone():
    net = nn.Sequential(nn.Linear(4, 512), nn.ReLU(), nn.Linear(512, CLASSES))
    x, y = torch.randn(N, 4), labels(N)
    tap = HeadTap([net[-1]])
    tap.attach()
    ordinary = saved_elements(lambda: F.cross_entropy(net(x), y))
    with torch.no_grad(), tap.probing(cut=True):
        cut = saved_elements(lambda: F.cross_entropy(net(x), y))
    assert ordinary > N * 512
    assert cut <= 4 * N * CLASSES


def test_the_output_object_passes_an_idle_tap():
    head = nn.Linear(2, 2)
    outputs: list[Tensor] = []
    head.register_forward_hook(lambda m, a, output: outputs.append(output))
    tap = HeadTap([head])
    tap.attach()
    assert head(torch.ones(1, 2)) is outputs[0]


def test_an_idle_tap_lets_outputs_of_any_kind_pass():
    head = nn.LSTM(2, 3, batch_first=True)
    x = torch.ones(2, 4, 2)
    expected = head(x)[0]
    tap = HeadTap([head])
    tap.attach()
    assert torch.equal(head(x)[0], expected)


@pytest.mark.parametrize("mode", ["probing", "weighting"])
def test_an_exception_inside_leaves_the_tap_off(mode: str):
    head, x = nn.Linear(2, 2), torch.ones(3, 2)
    tap = HeadTap([head])
    tap.attach()
    context = (
        tap.probing(cut=True) if mode == "probing" else tap.weighting(torch.zeros(3))
    )
    with pytest.raises(ZeroDivisionError), torch.no_grad(), context:
        raise ZeroDivisionError
    head(x).sum().backward()
    assert head.weight.grad is not None
    assert torch.equal(head.weight.grad, torch.full((2, 2), 3.0))


def test_a_cut_ends_with_its_context():
    head = nn.Linear(2, 2)
    tap = HeadTap([head])
    tap.attach()
    with tap.probing(cut=True):
        pass
    with tap.probing() as probes:
        head(torch.ones(3, 2)).sum().backward()
    assert head.weight.grad is not None
    assert len(probes) == 1


def test_each_probing_starts_with_fresh_probes():
    head = nn.Linear(2, 2)
    tap = HeadTap([head])
    tap.attach()
    for _ in range(2):
        with tap.probing() as probes:
            head(torch.ones(3, 2)).sum().backward()
        assert [p.grad.tolist() for p in probes] == [[[1.0, 1.0]] * 3]


def test_attaching_twice_weights_once():
    head = nn.Linear(1, 1, bias=False)
    tap = HeadTap([head])
    tap.attach()
    tap.attach()
    with tap.weighting(torch.tensor([3.0])):
        head(torch.ones(1, 1)).sum().backward()
    assert head.weight.grad.item() == 3.0


def test_a_detached_tap_leaves_no_hooks_and_the_module_copies_and_pickles():
    net = mlp()
    untouched = {name: len(m._forward_hooks) for name, m in net.named_modules()}
    tap = HeadTap([net[-1]])
    tap.attach()
    assert len(net[-1]._forward_hooks) == 1
    tap.detach()
    assert {n: len(m._forward_hooks) for n, m in net.named_modules()} == untouched

    x = normal(N, FEATURES)
    with tap.weighting(torch.zeros(N)):
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301
            assert torch.equal(twin(x), net(x))
            assert twin[-1](torch.ones(N, 6).double()).grad_fn is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_weighted_in_their_own_type(dtype: torch.dtype):
    """The network's weights stay single: only the head's output is half."""
    torch.manual_seed(0)
    net, x, y = mlp().float(), torch.randn(N, FEATURES), labels(N)

    def losses() -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            z = net(x)
            assert z.dtype == dtype
            return F.cross_entropy(z.float(), y, reduction="none")

    expected = torch.autograd.grad((WEIGHTS * losses()).mean(), net[0].weight)[0]
    tap = HeadTap([net[-1]])
    tap.attach()
    with tap.weighting(WEIGHTS):
        loss = losses().mean()
    found = torch.autograd.grad(loss, net[0].weight)[0]
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 2e-2


def test_weights_reach_a_backward_pass_after_the_context():
    head = nn.Linear(1, 1, bias=False)
    tap = HeadTap([head])
    tap.attach()
    with tap.weighting(torch.tensor([5.0, 0.0])):
        loss = head(torch.ones(2, 1)).sum()
    with tap.weighting(torch.tensor([9.0, 9.0])):
        loss.backward()
    assert head.weight.grad.item() == 5.0


def test_weighting_a_frozen_head_does_nothing():
    head = nn.Linear(1, 1).requires_grad_(False)
    tap = HeadTap([head])
    tap.attach()
    with tap.weighting(torch.tensor([5.0])):
        assert not head(torch.ones(1, 1)).requires_grad


@pytest.mark.parametrize("mode", ["probing", "weighting"])
def test_a_head_that_returns_no_tensor_is_refused(mode: str):
    head = nn.LSTM(2, 3, batch_first=True)
    tap = HeadTap([head])
    tap.attach()
    context = tap.probing() if mode == "probing" else tap.weighting(torch.ones(2))
    with (
        pytest.raises(TypeError, match="must be a tensor, got a tuple from LSTM"),
        context,
    ):
        head(torch.ones(2, 4, 2))


@pytest.mark.parametrize(
    ("shape", "got"),
    [
        pytest.param((5, 2), r"shape \(5, 2\) for a batch of 3", id="indivisible"),
        pytest.param((2, 2), r"shape \(2, 2\) for a batch of 3", id="too few"),
        pytest.param((0, 2), r"shape \(0, 2\) for a batch of 3", id="empty"),
        pytest.param((), r"shape \(\) for a batch of 3", id="scalar"),
    ],
)
def test_rows_that_do_not_divide_among_the_examples_are_refused(
    shape: tuple[int, ...], got: str
):
    with pytest.raises(ValueError, match=got):
        rows_per_example(torch.zeros(shape), 3)
    with pytest.raises(ValueError, match=got):
        example_norms([torch.zeros(shape)], 3)


def test_weighting_rows_that_do_not_divide_is_refused_in_the_backward_pass():
    head = nn.Linear(1, 1)
    tap = HeadTap([head])
    tap.attach()
    with tap.weighting(torch.ones(2)):
        loss = head(torch.ones(3, 1)).sum()
    with pytest.raises(ValueError, match=r"shape \(3, 1\) for a batch of 2"):
        loss.backward()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("calls", [1, 2])
def test_example_norms_join_all_rows_of_an_example(
    stacked: bool, copies: int, calls: int
):
    torch.manual_seed(0)
    found = [torch.randn(N * copies, 2, 3) for _ in range(calls)]
    expected = []
    for i in range(N):
        rows = [i + N * k if stacked else i * copies + k for k in range(copies)]
        expected.append(norm([gradient[rows] for gradient in found]))
    norms = example_norms(found, N, stacked=stacked)
    torch.testing.assert_close(norms, torch.stack(expected))


def test_example_norms_are_summed_in_single_precision():
    """A thousand squares of 1e-4 vanish in half precision."""
    gradient = torch.full((2, 1000), 1e-4, dtype=torch.float16)
    expected = gradient.float().square().sum(1).sqrt()
    norms = example_norms([gradient], 2)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, expected)


def test_probes_fit_whatever_the_last_ones_were_like():
    """They are made beforehand from the last ones, or anew where those do not fit."""
    head = nn.Identity()
    tap = HeadTap([head])
    tap.attach()
    two = [(2, 3), (4, 3)]  # a head that runs twice, on other numbers of rows
    for examples, shapes, dtype in (
        *((2, two, torch.float32), (3, [(3, 3), (6, 3)], torch.float32)),
        *((3, [(6, 3)], torch.float32), (3, [(3, 3)], torch.float32)),
        *((3, [(3, 5)], torch.float32), (3, [(3, 5)], torch.float64)),
        *((3, [(4, 5)], torch.float64), (2, [(), (2, 2)], torch.float64)),
        *((2, [(), (2, 2)], torch.float64), (0, [(2, 2)], torch.float64)),
    ):
        outputs = [torch.randn(shape, dtype=dtype) for shape in shapes]
        with tap.probing(examples=examples) as probes:
            loss = sum((head(z) ** 2).sum() for z in outputs)
        loss.backward()
        for probe, z in zip(probes, outputs, strict=True):
            assert probe.is_leaf
            torch.testing.assert_close(probe.grad, 2 * z, rtol=0, atol=0)


def test_a_tap_knows_whether_a_head_ran_in_the_last_context():
    head = nn.Identity()
    tap = HeadTap([head])
    tap.attach()
    for context in (tap.probing, lambda: tap.weighting(torch.ones(2))):
        head(torch.ones(2, 1))
        assert not tap.has_fired  # it is off outside
        with context():
            head(torch.ones(2, 1))
        assert tap.has_fired
        with context():
            pass
        assert not tap.has_fired
