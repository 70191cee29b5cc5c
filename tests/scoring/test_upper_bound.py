"""The upper bound against its closed forms and autograd, one example at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_is.scoring.scorer import Scorer
from lightning_is.scoring.tap import HeadTap
from lightning_is.scoring.upper_bound import UpperBound

N, K, T = 6, 4, 3


@dataclass
class Case:
    """A loss of logits ``z``, with the norm of its gradient in closed form.

    Attributes:
        z: Logits.
        y: Targets.
        loss: Mean loss over the batch.
        closed: Closed form of the scores.
        each: Loss of one example; that of a batch of one by default.
    """

    z: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    closed: Callable[[], Tensor]
    each: Callable[[int, Tensor], Tensor] | None = field(default=None)

    def example(self, i: int, z: Tensor) -> Tensor:
        if self.each is not None:
            return self.each(i, z)
        return self.loss(z[None], self.y[i : i + 1])


def logits(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape)


def one_hot(y: Tensor) -> Tensor:
    return F.one_hot(y, K).float()


def hard_labels() -> Case:
    z, y = logits(N, K), torch.randint(K, (N,))
    return Case(z, y, F.cross_entropy, lambda: (z.softmax(1) - one_hot(y)).norm(dim=1))


def hard_labels_by_probabilities() -> Case:
    """The paper's own form: sqrt(1 - 2 p_y + sum of p squared)."""
    z, y = logits(N, K), torch.randint(K, (N,))
    p = z.softmax(1)
    return Case(
        z,
        y,
        F.cross_entropy,
        lambda: (1 - 2 * p[range(N), y] + p.square().sum(1)).sqrt(),
    )


def label_smoothing() -> Case:
    z, y, share = logits(N, K), torch.randint(K, (N,)), 0.2
    target = (1 - share) * one_hot(y) + share / K
    return Case(
        z,
        y,
        lambda z, y: F.cross_entropy(z, y, label_smoothing=share),
        lambda: (z.softmax(1) - target).norm(dim=1),
    )


def soft_targets() -> Case:
    z, t = logits(N, K), logits(N, K).softmax(1)
    return Case(z, t, F.cross_entropy, lambda: (z.softmax(1) - t).norm(dim=1))


def class_weights() -> Case:
    """The class weight of an example, over the mean class weight of the batch."""
    z, y = logits(N, K), torch.tensor([0, 1, 2, 3, 3, 0])
    weight = torch.tensor([0.5, 1.0, 2.0, 5.0])
    each = weight[y] / weight[y].mean()
    return Case(
        z,
        y,
        lambda z, y: F.cross_entropy(z, y, weight=weight),
        lambda: each * (z.softmax(1) - one_hot(y)).norm(dim=1),
        lambda i, row: each[i] * F.cross_entropy(row, y[i]),
    )


def binary_cross_entropy() -> Case:
    z, t = logits(N, K), torch.rand(N, K)
    return Case(
        z,
        t,
        F.binary_cross_entropy_with_logits,
        lambda: (z.sigmoid() - t).norm(dim=1) / K,
    )


def squared_error() -> Case:
    z, t = logits(N, K), logits(N, K)
    return Case(z, t, F.mse_loss, lambda: 2 * (z - t).norm(dim=1) / K)


def sequences() -> Case:
    z, y = logits(N, T, K), torch.randint(K, (N, T))
    return Case(
        z,
        y,
        lambda z, y: F.cross_entropy(z.transpose(1, 2), y),
        lambda: (z.softmax(2) - one_hot(y)).flatten(1).norm(dim=1) / T,
    )


def padded_sequences() -> Case:
    z, y = logits(N, T, K), torch.randint(K, (N, T))
    y[:2, 1:] = -100
    valid = y != -100
    error = (z.softmax(2) - one_hot(y.clamp(min=0))) * valid[..., None]
    scale = N / valid.sum()
    return Case(
        z,
        y,
        lambda z, y: F.cross_entropy(z.transpose(1, 2), y),
        lambda: scale * error.flatten(1).norm(dim=1),
        lambda i, row: scale * F.cross_entropy(row, y[i], reduction="sum"),
    )


CASES = [
    hard_labels,
    hard_labels_by_probabilities,
    label_smoothing,
    soft_targets,
    class_weights,
    binary_cross_entropy,
    squared_error,
    sequences,
    padded_sequences,
]


@pytest.fixture(params=CASES, ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(1)
    return request.param()


def identity_tap() -> tuple[nn.Module, HeadTap]:
    head = nn.Identity()
    tap = HeadTap([head])
    tap.attach()
    return head, tap


def test_the_upper_bound_is_a_scorer():
    assert isinstance(UpperBound(), Scorer)


def test_scores_equal_the_closed_form(case: Case):
    head, tap = identity_tap()
    scores = UpperBound().score(lambda: case.loss(head(case.z), case.y), tap, N).scores
    torch.testing.assert_close(scores, case.closed(), rtol=1e-5, atol=1e-6)


def test_scores_equal_autograd_one_example_at_a_time(case: Case):
    expected = []
    for i in range(N):
        row = case.z[i].clone().requires_grad_()
        expected.append(torch.autograd.grad(case.example(i, row), row)[0].norm())
    head, tap = identity_tap()
    scores = UpperBound().score(lambda: case.loss(head(case.z), case.y), tap, N).scores
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_the_loss_is_reported_unweighted_and_without_its_graph(case: Case):
    head, tap = identity_tap()
    loss = UpperBound().score(lambda: case.loss(head(case.z), case.y), tap, N).loss
    torch.testing.assert_close(loss, case.loss(case.z, case.y))
    assert not loss.requires_grad


def test_an_ordinary_backward_pass_leaves_the_same_scores(case: Case):
    head, tap = identity_tap()
    z = case.z.clone().requires_grad_()
    with UpperBound().observing(tap) as read:
        loss = case.loss(head(z), case.y)
    loss.backward()
    torch.testing.assert_close(read(N), case.closed(), rtol=1e-5, atol=1e-6)


def test_observed_scores_carry_the_scale_of_the_loss():
    torch.manual_seed(1)
    case = hard_labels()
    head, tap = identity_tap()
    with UpperBound().observing(tap) as read:
        loss = case.loss(head(case.z), case.y)
    (loss * 1024 / 4).backward()
    torch.testing.assert_close(read(N), 256 * case.closed(), rtol=1e-5, atol=1e-3)


def test_there_is_nothing_to_read_before_a_backward_pass():
    head, tap = identity_tap()
    with UpperBound().observing(tap) as read:
        head(torch.ones(2, 2)).sum()
    assert read(2) is None


def test_there_is_nothing_to_read_where_no_head_ran():
    _, tap = identity_tap()
    with UpperBound().observing(tap) as read:
        torch.ones(2, requires_grad=True).sum().backward()
    assert read(2) is None


def test_a_confidently_wrong_example_scores_the_square_root_of_two():
    head, tap = identity_tap()
    z, y = torch.tensor([[20.0, 0.0, 0.0]]), torch.tensor([1])
    scored = UpperBound().score(lambda: F.cross_entropy(head(z), y), tap, 1)
    assert scored.scores.item() == pytest.approx(1.41421, abs=1e-5)


def test_a_perfect_example_scores_zero():
    head, tap = identity_tap()
    z = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    y = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    scores = UpperBound().score(lambda: F.mse_loss(head(z), y), tap, 2).scores
    assert scores.tolist() == [0.0, 3.0]


def test_a_sum_scores_n_times_as_much_as_a_mean():
    torch.manual_seed(1)
    case = hard_labels()
    head, tap = identity_tap()

    def total() -> Tensor:
        return F.cross_entropy(head(case.z), case.y, reduction="sum")

    scores = UpperBound().score(total, tap, N).scores
    torch.testing.assert_close(scores, N * case.closed())


def test_one_loss_per_example_scores_as_their_mean():
    torch.manual_seed(1)
    case = hard_labels()
    head, tap = identity_tap()

    def losses() -> Tensor:
        return F.cross_entropy(head(case.z), case.y, reduction="none")

    scored = UpperBound().score(losses, tap, N)
    torch.testing.assert_close(scored.scores, case.closed())
    torch.testing.assert_close(scored.loss, losses().mean())


@pytest.mark.parametrize("stacked", [False, True])
def test_the_views_of_an_example_are_scored_together(stacked: bool):
    torch.manual_seed(1)
    z, y = logits(2 * N, K), torch.randint(K, (N,))
    targets = y.repeat(2) if stacked else y.repeat_interleave(2)
    head, tap = identity_tap()
    tap.stacked = stacked
    error = (z.softmax(1) - one_hot(targets)) / 2
    expected = []
    for i in range(N):
        rows = [i, i + N] if stacked else [2 * i, 2 * i + 1]
        expected.append(error[rows].norm())

    def step() -> Tensor:
        return F.cross_entropy(head(z), targets)

    torch.testing.assert_close(
        UpperBound().score(step, tap, N).scores, torch.stack(expected)
    )
    with UpperBound().observing(tap) as read:
        step().backward()
    torch.testing.assert_close(read(N), torch.stack(expected))


def test_two_heads_are_scored_by_their_joint_gradient():
    torch.manual_seed(1)
    left, right = nn.Identity(), nn.Identity()
    a, b, t = logits(N, K), logits(N, 2), logits(N, 2)
    y = torch.randint(K, (N,))
    tap = HeadTap([left, right])
    tap.attach()

    def step() -> Tensor:
        return F.cross_entropy(left(a), y) + F.mse_loss(right(b), t)

    rows = torch.cat([a.softmax(1) - one_hot(y), b - t], dim=1)
    scores = UpperBound().score(step, tap, N).scores
    torch.testing.assert_close(scores, rows.norm(dim=1))


def test_a_head_whose_output_is_not_used_does_not_count():
    torch.manual_seed(1)
    case = hard_labels()
    head, tap = identity_tap()

    def step() -> Tensor:
        head(case.z * 2)
        return F.cross_entropy(head(case.z), case.y)

    torch.testing.assert_close(UpperBound().score(step, tap, N).scores, case.closed())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_do_not_vanish_in_half_precision(dtype: torch.dtype):
    """A mean over 4096 examples divides gradients below what half precision holds."""
    examples, error = 4096, 2.0**-14
    head, tap = identity_tap()
    z = torch.full((examples, 1), error, dtype=dtype)
    step: Callable[[], Tensor] = lambda: head(z).square().mean()  # noqa: E731
    scores = UpperBound().score(step, tap, examples).scores
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.full((examples,), 2 * error))


def test_the_backbone_runs_without_grad_and_gets_none_from_a_score():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, K))
    net[0].register_forward_hook(lambda m, a, out: recorded.append(out.requires_grad))
    recorded: list[bool] = []
    tap = HeadTap([net[-1]])
    tap.attach()
    x, y = torch.randn(N, 3), torch.randint(K, (N,))
    UpperBound().score(lambda: F.cross_entropy(net(x), y), tap, N)
    assert recorded == [False]
    assert all(p.grad is None for p in net.parameters())


def test_a_head_that_does_not_run_is_refused():
    _, tap = identity_tap()
    with pytest.raises(RuntimeError, match=r"must run in every training step.*`head=`"):
        UpperBound().score(lambda: torch.ones(()), tap, 2)


def test_a_loss_that_does_not_depend_on_the_head_is_refused():
    head, tap = identity_tap()

    def step() -> Tensor:
        head(torch.ones(2, 2))
        with torch.no_grad():
            return torch.ones(2).mean()

    with pytest.raises(RuntimeError, match=r"computed from the output of the head"):
        UpperBound().score(step, tap, 2)


def test_a_loss_of_something_else_that_learns_is_refused_as_well():
    """Its graph reaches a parameter, only not through the head."""
    head, tap = identity_tap()
    other = nn.Parameter(torch.ones(2))

    def step() -> Tensor:
        head(torch.ones(2, 2))
        return other.square().mean()

    with pytest.raises(RuntimeError, match=r"computed from the output of the head"):
        UpperBound().score(step, tap, 2)


def test_a_head_with_the_time_first_is_refused_where_rows_tell():
    head, tap = identity_tap()
    with pytest.raises(ValueError, match=r"shape \(5, 2\) for a batch of 2"):
        UpperBound().score(lambda: head(torch.ones(5, 2)).mean(), tap, 2)
