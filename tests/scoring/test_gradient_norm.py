"""Gradient norms against one backward pass per example."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_is import ImportanceSamplingCallback
from lightning_is.data.batch import take
from lightning_is.sampling import AlwaysOpen
from lightning_is.scoring.context import TracelessContext
from lightning_is.scoring.gradient_norm import GradientNorm, chunk_size
from lightning_is.scoring.scorer import Scored, Scorer, Step
from lightning_is.scoring.tap import HeadTap
from lightning_is.scoring.upper_bound import UpperBound

N, K = 6, 4
METHODS = ["vmap", "loop"]


class Model(nn.Module):
    """A network with its loss, as a user's module has them.

    The batch is a mapping with inputs ``x`` and targets ``y``.
    """

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor] = F.cross_entropy):
        super().__init__()
        self.net, self.loss = net, loss

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.loss(self.net(batch["x"]), batch["y"])

    @property
    def head(self) -> nn.Module:
        return [m for m in self.net.modules() if isinstance(m, nn.Linear)][-1]


def labels() -> Tensor:
    return torch.randint(K, (N,))


def mlp() -> tuple[Model, Any]:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, K))
    return Model(net), {"x": 2 * torch.randn(N, 5), "y": labels()}


def conv_with_batch_norm() -> tuple[Model, Any]:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, K),
        nn.BatchNorm1d(K),
        nn.Linear(K, K),
    )
    return Model(net), {"x": 3 * torch.randn(N, 2, 6, 6) + 1, "y": labels()}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, K)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.block(self.embed(tokens)).mean(1))


def attention() -> tuple[Model, Any]:
    return Model(Attention()), {"x": torch.randint(7, (N, 3)), "y": labels()}


class Tied(nn.Module):
    """A language model whose last layer is its first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(K, 5), nn.Linear(5, K, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.embed(tokens).tanh()).transpose(1, 2)


def tied() -> tuple[Model, Any]:
    return Model(Tied()), {
        "x": torch.randint(K, (N, 3)),
        "y": torch.randint(K, (N, 3)),
    }


def frozen() -> tuple[Model, Any]:
    model, batch = mlp()
    model.net[0].weight.requires_grad_(False)
    return model, batch


def unused() -> tuple[Model, Any]:
    model, batch = mlp()
    model.spare = nn.Linear(2, 2)
    return model, batch


def summed() -> tuple[Model, Any]:
    model, batch = mlp()
    model.loss = lambda z, y: F.cross_entropy(z, y, reduction="sum")
    return model, batch


def one_loss_per_example() -> tuple[Model, Any]:
    model, batch = mlp()
    model.loss = lambda z, y: F.cross_entropy(z, y, reduction="none")
    return model, batch


def regression() -> tuple[Model, Any]:
    model, batch = mlp()
    model.loss = F.mse_loss
    return model, batch | {"y": torch.randn(N, K)}


class TwoViews(Model):
    """Two views of each example, one batch after the other."""

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        x = torch.cat([batch["x"], batch["x"].flip(1)])
        return self.loss(self.net(x), batch["y"].repeat(2))


def views() -> tuple[Model, Any]:
    model, batch = mlp()
    return TwoViews(model.net), batch


def reparametrised() -> tuple[Model, Any]:
    model, batch = mlp()
    nn.utils.parametrizations.weight_norm(model.net[2])
    return model, batch


MODELS = [
    mlp,
    conv_with_batch_norm,
    attention,
    tied,
    frozen,
    unused,
    summed,
    one_loss_per_example,
    regression,
    views,
    reparametrised,
]


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest) -> tuple[Model, Any]:
    return request.param()


def step_of(model: Model, batch: Any) -> Step:
    return Step(model.step, batch, model, take)


def score(model: Model, batch: Any, scorer: GradientNorm, examples: int = N) -> Scored:
    """Score in the mode the engine scores in: eval, but for the normalisation."""
    context = TracelessContext(model)
    with context(update_statistics=True):
        return scorer.score(step_of(model, batch), HeadTap([model.head]), examples)


def by_hand(model: Model, batch: Any, parameters: str = "all") -> Tensor:
    """One ordinary backward pass per example, in eval mode."""
    alone = copy.deepcopy(model).eval()
    part = alone if parameters == "all" else alone.head
    norms = []
    for i in range(N):
        alone.zero_grad()
        alone.step({k: v[i : i + 1] for k, v in batch.items()}).mean().backward()
        grads = [p.grad.flatten() for p in part.parameters() if p.grad is not None]
        norms.append(torch.cat(grads).norm())
    return torch.stack(norms)


def test_the_gradient_norm_is_a_scorer():
    assert isinstance(GradientNorm(), Scorer)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parameters", ["all", "last_layer"])
def test_scores_are_the_norms_of_one_backward_pass_each(made, method, parameters):
    model, batch = made
    scores = score(model, batch, GradientNorm(parameters, method)).scores
    # Taken afterwards: the statistics of the batch are in by then.
    expected = by_hand(model, batch, parameters)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert scores.std() > 0.01 * scores.mean()


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_that_of_the_whole_batch(made, method):
    model, batch = made
    loss = score(model, batch, GradientNorm(method=method)).loss
    with TracelessContext(model)(update_statistics=True):
        expected = model.step(batch).mean().detach()
    torch.testing.assert_close(loss, expected)
    assert not loss.requires_grad


def test_the_last_layer_is_part_of_all():
    model, batch = mlp()
    last = score(model, batch, GradientNorm("last_layer")).scores
    assert (last < score(model, batch, GradientNorm()).scores).all()


def test_chunks_give_the_scores_of_the_whole(made):
    model, batch = made
    size = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    model.eval()  # or each pass would move the statistics
    whole = score(model, batch, GradientNorm()).scores
    for memory in (1, 2 * size, 4 * size):
        chunked = score(model, batch, GradientNorm(memory=memory)).scores
        torch.testing.assert_close(chunked, whole)


def test_no_more_gradients_are_held_than_fit_the_memory():
    model, batch = mlp()
    rows = []
    original = torch.func.vmap

    def watched(function, *, chunk_size, randomness):
        rows.append(chunk_size)
        return original(function, chunk_size=chunk_size, randomness=randomness)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.func, "vmap", watched)
        size = sum(4 * p.numel() for p in model.parameters())
        score(model, batch, GradientNorm(memory=3 * size + 1))
        score(model, batch, GradientNorm("last_layer", memory=3 * size + 1))
    assert rows[0] == 3
    assert rows[1] == (3 * size + 1) // (4 * (8 * K + K))


@pytest.mark.parametrize(
    ("memory", "expected"), [(1, 1), (399, 1), (400, 1), (800, 2), (1199, 2)]
)
def test_a_chunk_is_what_fits_but_never_nothing(memory, expected):
    assert chunk_size([torch.zeros(80), torch.zeros(20)], memory) == expected


def test_the_size_of_a_number_counts():
    assert chunk_size([torch.zeros(100, dtype=torch.float64)], 1600) == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("takes_in", [True, False])
def test_only_the_statistics_of_the_batch_remain(method, takes_in):
    model, batch = conv_with_batch_norm()
    model.net[5].eval()  # the user's own choice
    before = copy.deepcopy(model)
    with TracelessContext(model)(update_statistics=takes_in):
        GradientNorm(method=method).score(
            step_of(model, batch), HeadTap([model.head]), N
        )
    if takes_in:
        before.step(batch)
    for (name, left), right in zip(
        model.state_dict().items(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(left, right), name
    flags = [m.training for m in model.modules()]
    assert flags == [m.training for m in before.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_flags_come_back_after_an_error(method):
    model, batch = conv_with_batch_norm()
    model.net[5].eval()  # the user's own choice
    flags = [m.training for m in model.modules()]
    runs = []

    def fails(part: Any) -> Tensor:
        runs.append(part)
        if len(runs) > 1:
            raise RuntimeError("no more\nof this")
        return model.step(part)

    step = Step(fails, batch, model, take)
    with pytest.raises(RuntimeError, match="no more") as caught:
        GradientNorm(method=method).score(step, HeadTap([model.head]), N)
    assert ("of this" in str(caught.value)) is (method == "loop")
    assert [m.training for m in model.modules()] == flags
    assert type(model.net[0].weight) is nn.Parameter


def test_a_step_that_writes_to_its_batch_leaves_the_batch_alone():
    model, batch = mlp()

    def writes(part: Any) -> Tensor:
        part["x"] *= 2
        part["x"] /= 2
        return model.step(part)

    x = batch["x"].clone()
    expected = by_hand(model, batch)
    for method in METHODS:
        step = Step(writes, batch, model, take)
        scored = GradientNorm(method=method).score(step, HeadTap([model.head]), N)
        torch.testing.assert_close(scored.scores, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(batch["x"], x)


def item_in_control_flow(model: Model, part: Any) -> Tensor:
    return model.step(part) * (2 if part["x"].sum().item() > 0 else 1)


def control_flow_on_values(model: Model, part: Any) -> Tensor:
    return model.step(part) if part["x"].sum() > -1e9 else part["x"].sum()


def numpy_in_the_step(model: Model, part: Any) -> Tensor:
    return model.step(part) * float(part["x"].numpy().std() > 0)


def metric_in_place(model: Model, part: Any) -> Tensor:
    loss = model.step(part)
    model.metric(loss.detach())
    return loss


@pytest.mark.parametrize(
    "run",
    [item_in_control_flow, control_flow_on_values, numpy_in_the_step, metric_in_place],
    ids=lambda run: run.__name__,
)
def test_a_step_that_cannot_be_taken_apart_is_refused_with_the_cure(run):
    model, batch = mlp()
    model.metric = MeanMetric()
    step = Step(lambda part: run(model, part), batch, model, take)
    tap = HeadTap([model.head])
    message = r"needs a step.*take apart, got '.+'\. Pass .*method=\"loop\".*is slow"
    with TracelessContext(model)():
        with pytest.raises(RuntimeError, match=message) as caught:
            GradientNorm().score(step, tap, N)
        assert caught.value.__cause__ is not None
        assert "\n" not in str(caught.value)
        assert GradientNorm(method="loop").score(step, tap, N).scores.shape == (N,)


def test_lists_of_plain_values_need_the_loop():
    model, batch = mlp()
    batch["name"] = ["a"] * N
    with pytest.raises(RuntimeError, match=r'Pass `GradientNorm\(method="loop"\)`'):
        score(model, batch, GradientNorm())
    looped = score(model, batch, GradientNorm(method="loop")).scores
    torch.testing.assert_close(looped, by_hand(model, batch))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_taken_where_others_are_not(method):
    model, batch = mlp()
    expected = by_hand(model, batch)
    with torch.no_grad():
        scores = score(model, batch, GradientNorm(method=method)).scores
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("method", METHODS)
def test_the_whole_batch_runs_without_grad(method):
    model, batch = mlp()
    seen = []

    def run(part: Any) -> Tensor:
        loss = model.step(part)
        seen.append(loss.requires_grad)
        return loss

    step = Step(run, batch, model, take)
    GradientNorm(method=method).score(step, HeadTap([model.head]), N)
    assert seen[0] is False
    assert all(seen[1:])


def test_other_errors_of_the_step_pass_through():
    class MineError(Exception):
        pass

    model, batch = mlp()

    def fails(part: Any) -> Tensor:
        if len(part["x"]) == N:
            return model.step(part)
        raise MineError

    with pytest.raises(MineError):
        GradientNorm().score(Step(fails, batch, model, take), HeadTap([model.head]), N)


@pytest.mark.parametrize("method", METHODS)
def test_each_example_gets_random_numbers_of_its_own(method):
    model = Model(nn.Sequential(nn.Dropout(0.5), nn.Linear(20, K)))
    batch = {"x": torch.ones(N, 20), "y": torch.zeros(N, dtype=torch.long)}
    noisy = GradientNorm(method=method).score(
        step_of(model, batch), HeadTap([model.head]), N
    )
    assert len(noisy.scores.unique()) > 1
    assert len(score(model, batch, GradientNorm(method=method)).scores.unique()) == 1


@pytest.mark.parametrize("method", METHODS)
def test_an_example_without_labels_scores_zero(method):
    model, batch = mlp()
    batch["y"][2] = -100
    scores = score(model, batch, GradientNorm(method=method)).scores
    assert scores[2] == 0
    assert (scores.isfinite() & (scores > 0)).sum() == N - 1


@pytest.mark.parametrize("method", METHODS)
def test_an_example_whose_loss_is_a_constant_scores_zero(method):
    model, batch = mlp()

    def masked(part: Any) -> Tensor:
        z = model.net(part["x"])
        return (z - z).sum() if method == "vmap" else torch.zeros(())

    step = Step(masked, batch, model, take)
    scored = GradientNorm(method=method).score(step, HeadTap([model.head]), N)
    assert scored.scores.tolist() == [0.0] * N


def test_sparse_gradients_can_be_looped_over():
    net = nn.Sequential(nn.Embedding(7, 5, sparse=True), nn.Flatten(), nn.Linear(15, K))
    tokens = torch.tensor(
        [[0, 1, 2], [3, 3, 3], [4, 4, 1], [0, 0, 5], [6] * 3, [5] * 3]
    )
    model, batch = Model(net), {"x": tokens, "y": labels()}
    scores = score(model, batch, GradientNorm(method="loop")).scores
    net[0].sparse = False
    torch.testing.assert_close(scores, by_hand(model, batch))


def test_recurrent_networks_can_be_looped_over():
    class Last(nn.Module):
        def forward(self, output: Any) -> Tensor:
            return output[0][:, -1]

    net = nn.Sequential(nn.LSTM(3, 4, batch_first=True), Last(), nn.Linear(4, K))
    model, batch = Model(net), {"x": torch.randn(N, 5, 3), "y": labels()}
    scores = score(model, batch, GradientNorm(method="loop")).scores
    torch.testing.assert_close(scores, by_hand(model, batch))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory", [1, 2**28])
def test_autocast_of_the_step_is_kept(method, memory):
    model, batch = mlp()
    with torch.autocast("cpu", torch.bfloat16):
        scores = score(model, batch, GradientNorm("all", method, memory)).scores
        again = score(model, batch, GradientNorm("all", method, memory)).scores
    torch.testing.assert_close(scores, by_hand(model, batch), rtol=0.05, atol=0.02)
    assert not torch.equal(scores, score(model, batch, GradientNorm()).scores)
    assert torch.equal(scores, again)


def test_half_precision_parameters_are_scored_in_float32():
    model, batch = mlp()
    half = copy.deepcopy(model).bfloat16()
    batch["x"] = batch["x"].bfloat16()
    scores = score(half, batch, GradientNorm()).scores
    assert scores.dtype == torch.float32
    batch["x"] = batch["x"].float()
    torch.testing.assert_close(scores, by_hand(model, batch), rtol=0.05, atol=0.02)


def test_an_ordinary_step_leaves_the_upper_bound():
    model, batch = mlp()
    tap = HeadTap([model.head])
    tap.attach()
    with GradientNorm().observing(tap) as read:
        loss = model.step(batch)
    loss.backward()
    bound = UpperBound().score(step_of(model, batch), tap, N).scores
    torch.testing.assert_close(read(N), bound)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_to_take_the_gradient_by_is_refused(method):
    model, batch = mlp()
    model.net[2].requires_grad_(False)
    with pytest.raises(ValueError, match=r'none in `parameters="last_layer"`. Pass'):
        score(model, batch, GradientNorm("last_layer", method))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"parameters": "head"},
            r'`parameters` must be "all" or .*got \'head\'.*"all"',
        ),
        ({"method": "map"}, r'`method` must be "vmap" or "loop", got \'map\''),
        ({"memory": 0}, r"`memory` must be at least 1 byte, got 0\. "),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    # As a user without type checks at run time meets it.
    scorer = object.__new__(GradientNorm)
    fields = {"parameters": "all", "method": "vmap", "memory": 1} | arguments
    for name, value in fields.items():
        object.__setattr__(scorer, name, value)
    with pytest.raises(ValueError, match=message):
        scorer.__post_init__()


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_draws_by_it(kit, method):
    module = kit.Classifier(kit.mlp())
    callback = ImportanceSamplingCallback(
        batch_size=4, scorer=GradientNorm(method=method), gate=AlwaysOpen()
    )
    trainer = kit.trainer(callback, limit_val_batches=0)
    trainer.fit(module, kit.loader())
    assert module.seen[-4:] == [4, 4, 4, 4]
    assert trainer.callback_metrics["is/tau"] > 1
