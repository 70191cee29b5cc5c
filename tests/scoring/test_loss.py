"""Recorded per-example losses against a loop over single examples."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_is.scoring import loss as loss_module
from lightning_is.scoring.loss import Loss, LossRecorder
from lightning_is.scoring.scorer import Scorer
from lightning_is.scoring.tap import HeadTap

N, K, T = 6, 4, 3


@dataclass
class Case:
    """A loss that is the mean over the examples of what one example gives alone.

    Attributes:
        batch: Computes the mean loss.
        example: Computes the share of one example, whose mean is that loss.
    """

    batch: Callable[[], Tensor]
    example: Callable[[int], Tensor]


def one(inputs: tuple[Tensor, ...], i: int) -> list[Tensor]:
    """A batch of one example; log_probs of ctc_loss have the time first."""
    return [x[i : i + 1] if len(x) == N else x[:, i : i + 1] for x in inputs]


def of(function: Callable[..., Tensor], *inputs: Tensor, **options: object) -> Case:
    """A loss whose value for one example is that for a batch of one."""
    return Case(
        batch=lambda: function(*inputs, **options),
        example=lambda i: function(*one(inputs, i), **options),
    )


def logits(*shape: int) -> Tensor:
    return 2 * torch.randn(*shape)


def labels(*shape: int) -> Tensor:
    return torch.randint(K, shape)


def class_weighted(function: Callable[..., Tensor], z: Tensor) -> Case:
    """The mean is over the class weights: a heavy class has a heavy share."""
    y, weight = torch.tensor([0, 1, 2, 3, 3, 0]), torch.tensor([0.5, 1.0, 2.0, 5.0])
    share = weight[y] / weight[y].mean()
    return Case(
        batch=lambda: function(z, y, weight=weight),
        example=lambda i: share[i] * function(z[i : i + 1], y[i : i + 1]),
    )


def ignoring(function: Callable[..., Tensor], z: Tensor) -> Case:
    """An ignored example loses nothing; the others share the mean."""
    y = torch.tensor([0, -100, 2, 3, 3, -100])
    return Case(
        batch=lambda: function(z, y),
        example=lambda i: (
            torch.zeros(())
            if y[i] == -100
            else function(z[i : i + 1], y[i : i + 1]) * N / 4
        ),
    )


def smoothed_and_weighted() -> Case:
    z, y = logits(N, K), torch.tensor([0, 1, 2, 3, 3, 0])
    weight = torch.tensor([0.5, 1.0, 2.0, 5.0])

    def loss(z: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(
            z, y, weight=weight, label_smoothing=0.3, reduction=reduction
        )

    return Case(
        batch=lambda: loss(z, y),
        example=lambda i: loss(z[i : i + 1], y[i : i + 1], "sum") / weight[y].mean(),
    )


def padded_tokens() -> Case:
    z, y = logits(N, K, T), labels(N, T)
    y[:2, 1:] = -100
    valid = (y != -100).sum()
    return Case(
        batch=lambda: F.cross_entropy(z, y),
        example=lambda i: (
            F.cross_entropy(z[i : i + 1], y[i : i + 1], reduction="sum") * N / valid
        ),
    )


def flattened_tokens() -> Case:
    z, y = logits(N, T, K), labels(N, T)
    return Case(
        batch=lambda: F.cross_entropy(z.flatten(0, 1), y.flatten()),
        example=lambda i: F.cross_entropy(z[i], y[i]),
    )


def two_losses() -> Case:
    z, y, t = logits(N, K), labels(N), logits(N, K)
    return Case(
        batch=lambda: F.cross_entropy(z, y) + F.mse_loss(z, t),
        example=lambda i: F.cross_entropy(z[i], y[i]) + F.mse_loss(z[i], t[i]),
    )


def transcripts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of different lengths, and one of none at all."""
    log_probs = logits(9, N, 5).log_softmax(2)
    heard, said = torch.tensor([9, 9, 8, 9, 7, 9]), torch.tensor([1, 2, 3, 4, 0, 3])
    return log_probs, torch.randint(1, 5, (N, 4)), heard, said


def weighted_squares() -> Case:
    """The mean is over the weights of the elements."""
    z, t, weight = logits(N, K), logits(N, K), torch.rand(N, K)
    each = ((z - t).square() * weight).sum(1) / weight.sum() * N
    return Case(
        batch=lambda: F.mse_loss(z, t, weight=weight), example=lambda i: each[i]
    )


def of_both_signs() -> Case:
    """Losses that cancel but for their last digits."""
    z, var = torch.zeros(N), torch.tensor([4.0, 0.25] * (N // 2))
    return of(F.gaussian_nll_loss, z, z, var)


def signs() -> Tensor:
    return torch.randint(2, (N, K)) * 2.0 - 1


FUNCTIONS = {
    F.binary_cross_entropy: lambda: (logits(N, K).sigmoid(), torch.rand(N, K)),
    F.binary_cross_entropy_with_logits: lambda: (logits(N, K), torch.rand(N, K)),
    F.cosine_embedding_loss: lambda: (logits(N, K), logits(N, K), signs()[:, 0]),
    F.cross_entropy: lambda: (logits(N, K), labels(N)),
    F.ctc_loss: lambda: transcripts(),
    F.gaussian_nll_loss: lambda: (logits(N, K), logits(N, K), torch.rand(N, K) + 2),
    F.hinge_embedding_loss: lambda: (logits(N, K), signs()),
    F.huber_loss: lambda: (logits(N, K), logits(N, K)),
    F.kl_div: lambda: (logits(N, K).log_softmax(1), logits(N, K).softmax(1)),
    F.l1_loss: lambda: (logits(N, K), logits(N, K)),
    F.margin_ranking_loss: lambda: (logits(N, K), logits(N, K), signs()),
    F.mse_loss: lambda: (logits(N, K), logits(N, K)),
    F.multi_margin_loss: lambda: (logits(N, K), labels(N)),
    F.multilabel_margin_loss: lambda: (
        logits(N, K),
        torch.tensor([[0, -1, 0, 0], [1, 2, -1, 0]] * (N // 2)),
    ),
    F.multilabel_soft_margin_loss: lambda: (logits(N, K), (signs() + 1) / 2),
    F.nll_loss: lambda: (logits(N, K).log_softmax(1), labels(N)),
    F.poisson_nll_loss: lambda: (logits(N, K), torch.rand(N, K)),
    F.smooth_l1_loss: lambda: (logits(N, K), logits(N, K)),
    F.soft_margin_loss: lambda: (logits(N, K), signs()),
    F.triplet_margin_loss: lambda: (logits(N, K), logits(N, K), logits(N, K)),
    F.triplet_margin_with_distance_loss: lambda: (
        logits(N, K),
        logits(N, K),
        logits(N, K),
    ),
}
MODULES = {
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.CosineEmbeddingLoss: F.cosine_embedding_loss,
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.CTCLoss: F.ctc_loss,
    nn.GaussianNLLLoss: F.gaussian_nll_loss,
    nn.HingeEmbeddingLoss: F.hinge_embedding_loss,
    nn.HuberLoss: F.huber_loss,
    nn.KLDivLoss: F.kl_div,
    nn.L1Loss: F.l1_loss,
    nn.MarginRankingLoss: F.margin_ranking_loss,
    nn.MSELoss: F.mse_loss,
    nn.MultiLabelMarginLoss: F.multilabel_margin_loss,
    nn.MultiLabelSoftMarginLoss: F.multilabel_soft_margin_loss,
    nn.MultiMarginLoss: F.multi_margin_loss,
    nn.NLLLoss: F.nll_loss,
    nn.PoissonNLLLoss: F.poisson_nll_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.SoftMarginLoss: F.soft_margin_loss,
    nn.TripletMarginLoss: F.triplet_margin_loss,
    nn.TripletMarginWithDistanceLoss: F.triplet_margin_with_distance_loss,
}
SPECIAL = {
    "class-weighted cross_entropy": lambda: class_weighted(
        F.cross_entropy, logits(N, K)
    ),
    "class-weighted nll_loss": lambda: class_weighted(
        F.nll_loss, logits(N, K).log_softmax(1)
    ),
    "cross_entropy with ignored examples": lambda: ignoring(
        F.cross_entropy, logits(N, K)
    ),
    "nll_loss with ignored examples": lambda: ignoring(
        F.nll_loss, logits(N, K).log_softmax(1)
    ),
    "label smoothing": lambda: of(
        F.cross_entropy, logits(N, K), labels(N), label_smoothing=0.2
    ),
    "label smoothing and class weights": smoothed_and_weighted,
    "soft targets": lambda: of(F.cross_entropy, logits(N, K), logits(N, K).softmax(1)),
    "positive weights": lambda: of(
        F.binary_cross_entropy_with_logits,
        logits(N, K),
        torch.rand(N, K),
        pos_weight=torch.tensor([1.0, 2.0, 3.0, 4.0]),
    ),
    "element weights": lambda: of(
        F.binary_cross_entropy, logits(N, K).sigmoid(), torch.rand(N, K), logits(N, K)
    ),
    "element weights of logits": lambda: of(
        F.binary_cross_entropy_with_logits,
        logits(N, K),
        torch.rand(N, K),
        torch.rand(N, K),
    ),
    "weighted squares": weighted_squares,
    "losses of both signs": of_both_signs,
    "kl_div of logarithms": lambda: of(
        F.kl_div,
        logits(N, K).log_softmax(1),
        logits(N, K).log_softmax(1),
        log_target=True,
    ),
    "kl_div by batch, of logarithms, over sequences": lambda: of(
        F.kl_div,
        logits(N, K, T).log_softmax(1),
        logits(N, K, T).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    ),
    "kl_div by batch": lambda: of(
        F.kl_div,
        logits(N, K).log_softmax(1),
        logits(N, K).softmax(1),
        reduction="batchmean",
    ),
    "one logit per example": lambda: of(
        F.binary_cross_entropy_with_logits, logits(N), torch.rand(N)
    ),
    "smooth_l1 with its parameter": lambda: of(
        F.smooth_l1_loss, logits(N, K), logits(N, K), beta=0.5
    ),
    "huber with its parameter": lambda: of(
        F.huber_loss, logits(N, K), logits(N, K), delta=0.5
    ),
    "a class-weighted margin": lambda: of(
        F.multi_margin_loss,
        logits(N, K),
        labels(N),
        p=2,
        weight=torch.tensor([0.5, 1.0, 2.0, 5.0]),
    ),
    "class-weighted soft margins": lambda: of(
        F.multilabel_soft_margin_loss,
        logits(N, K),
        (signs() + 1) / 2,
        weight=torch.tensor([0.5, 1.0, 2.0, 5.0]),
    ),
    "triplets with swaps": lambda: of(
        F.triplet_margin_loss, logits(N, K), logits(N, K), logits(N, K), swap=True
    ),
    "Poisson rates in full": lambda: of(
        F.poisson_nll_loss,
        torch.rand(N, K),
        3 * torch.rand(N, K),
        log_input=False,
        full=True,
    ),
    "transcripts too long to say": lambda: of(
        F.ctc_loss,
        *transcripts()[:2],
        torch.tensor([9, 9, 8, 3, 7, 9]),
        torch.tensor([1, 2, 3, 4, 0, 3]),
        zero_infinity=True,
    ),
    "nll_loss of images": lambda: of(
        F.nll_loss, logits(N, K, 2, 3).log_softmax(1), labels(N, 2, 3)
    ),
    "soft targets of sequences": lambda: of(
        F.cross_entropy, logits(N, K, T), logits(N, K, T).softmax(1)
    ),
    "images": lambda: of(F.cross_entropy, logits(N, K, 2, 3), labels(N, 2, 3)),
    "sequences": lambda: of(F.cross_entropy, logits(N, K, T), labels(N, T)),
    "padded sequences": padded_tokens,
    "flattened sequences": flattened_tokens,
    "two losses": two_losses,
}


def record(step: Callable[[], Tensor], examples: int = N) -> Tensor:
    with LossRecorder() as recorder:
        loss = step()
    return recorder.example_losses(examples, loss)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_every_function_the_recorder_knows_is_tried_here():
    assert set(FUNCTIONS) == loss_module._LOSSES
    assert set(MODULES.values()) == loss_module._LOSSES


@pytest.mark.parametrize(
    "make",
    [
        *(
            pytest.param(lambda f=f, m=m: of(f, *m()), id=f.__name__)
            for f, m in FUNCTIONS.items()
        ),
        *(
            pytest.param(lambda c=c, f=f: of(c(), *FUNCTIONS[f]()), id=c.__name__)
            for c, f in MODULES.items()
        ),
        *(pytest.param(make, id=name) for name, make in SPECIAL.items()),
    ],
)
@pytest.mark.filterwarnings("ignore:reduction. 'mean':UserWarning")  # of kl_div
def test_example_losses_are_those_of_single_examples(make: Callable[[], Case]):
    case = make()
    losses = record(case.batch)
    expected = torch.stack([case.example(i) for i in range(N)])
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.mean(), case.batch(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_sum_counts_each_example_n_times(function: Callable[..., Tensor]):
    """So that the mean of the example losses is the loss, whatever it is."""
    inputs = FUNCTIONS[function]()
    losses = record(lambda: function(*inputs, reduction="sum"))
    expected = [N * function(*one(inputs, i), reduction="sum") for i in range(N)]
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_losses_reduced_by_the_step_itself_are_found(function: Callable[..., Tensor]):
    inputs = FUNCTIONS[function]()
    losses = record(lambda: function(*inputs, reduction="none").mean())
    each = function(*inputs, reduction="none")
    torch.testing.assert_close(
        losses, each.reshape(N, -1).mean(1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "positional",
    [
        pytest.param(lambda z, t: F.mse_loss(z, t, None, None, "mean"), id="mean"),
        pytest.param(
            lambda z, t: F.mse_loss(z, t, None, None, "none").mean(), id="none"
        ),
    ],
)
def test_a_reduction_given_by_position_is_understood(positional):
    z, t = logits(N, K), logits(N, K)
    torch.testing.assert_close(
        record(lambda: positional(z, t)), (z - t).square().mean(1)
    )


def test_all_arguments_by_position_are_understood():
    z, y, weight = logits(N, K), labels(N), torch.tensor([1.0, 2.0, 3.0, 4.0])

    def step() -> Tensor:
        return F.cross_entropy(z, y, weight, None, -100, None, "sum", 0.1)

    each = F.cross_entropy(z, y, weight, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(record(step), N * each)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_the_step_sees_its_loss_and_gradient_unchanged(
    function: Callable[..., Tensor], reduction: str
):
    first, *others = FUNCTIONS[function]()
    first = first.requires_grad_()
    plain = function(first, *others, reduction=reduction)
    with LossRecorder():
        seen = function(first, *others, reduction=reduction)
    assert torch.equal(seen, plain)
    expected = torch.autograd.grad(plain.sum(), first)
    assert torch.equal(torch.autograd.grad(seen.sum(), first)[0], expected[0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_lengths_of_transcripts_may_be_plain_numbers(reduction: str):
    """As cuDNN's implementation asks for."""
    log_probs, said, *lengths = transcripts()
    expected = record(
        lambda: F.ctc_loss(log_probs, said, *lengths, reduction=reduction)
    )
    plain = [tuple(x.tolist()) for x in lengths]
    losses = record(lambda: F.ctc_loss(log_probs, said, *plain, reduction=reduction))
    assert torch.equal(losses, expected)


@pytest.mark.parametrize(
    ("deprecated", "factor"),
    [({"size_average": False}, N * K), ({"reduce": True}, 1), ({"reduce": False}, 1)],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
def test_deprecated_names_of_reductions_are_understood(deprecated, factor: int):
    z, t = logits(N, K), logits(N, K)
    losses = record(lambda: F.mse_loss(z, t, **deprecated).mean())
    torch.testing.assert_close(losses, factor * (z - t).square().mean(1))


def test_losses_that_cancel_are_compared_within_their_own_size():
    z, var = torch.zeros(N), torch.tensor([4.0, 0.25 + 1e-7] * (N // 2))
    losses = record(lambda: F.gaussian_nll_loss(z, z, var))
    torch.testing.assert_close(losses, 0.5 * var.log())


def test_sums_that_cancel_count_each_example_n_times():
    z, var = torch.zeros(N), torch.tensor([4.0, 0.25] * (N // 2))
    losses = record(lambda: F.gaussian_nll_loss(z, z, var, reduction="sum"))
    torch.testing.assert_close(losses, N * 0.5 * var.log())


def test_means_by_batch_that_cancel_are_sums_of_rows():
    z = torch.tensor([1.0, -1.0] * (N // 2))[:, None].expand(N, K)
    losses = record(lambda: F.kl_div(z, 0 * z, reduction="batchmean", log_target=True))
    torch.testing.assert_close(losses, -z.sum(1))


def test_only_the_loss_that_is_not_a_number_is_so():
    z = torch.ones(N)
    z[2] = torch.nan
    losses = record(lambda: F.mse_loss(z, torch.zeros(N)))
    assert losses.isnan().tolist() == [i == 2 for i in range(N)]


def test_an_infinite_loss_is_left_to_whoever_draws_by_it():
    z = torch.ones(N)
    z[2] = torch.inf
    losses = record(lambda: F.mse_loss(z, torch.zeros(N)))
    assert losses.tolist() == [1, 1, torch.inf, 1, 1, 1]


def test_a_mean_over_nothing_is_no_number():
    losses = record(lambda: F.cross_entropy(logits(N, K), torch.full((N,), -100)))
    assert losses.isnan().all()


def test_losses_that_are_all_zero_are_zero():
    assert record(lambda: F.mse_loss(torch.ones(N), torch.ones(N))).tolist() == [0] * N


def test_recorded_losses_hold_no_graph():
    z = logits(N, K).requires_grad_()
    assert not record(lambda: F.cross_entropy(z, labels(N))).requires_grad


def test_losses_in_half_precision_agree_within_its_rounding():
    z, y = logits(N, K).bfloat16(), labels(N)
    losses = record(lambda: F.cross_entropy(z, y))
    assert losses.dtype == torch.float32
    expected = F.cross_entropy(z.float(), y, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=5e-2, atol=5e-2)


def test_a_sum_of_losses_is_compared_within_the_rounding_of_its_type():
    """1 + 1.5 / 256 is not a number of bfloat16; the sum is off by 0.2 %."""
    large, small = (torch.full((N,), v).bfloat16() for v in (1.0, 1.5 / 256))

    def step() -> Tensor:
        return F.l1_loss(large, 0 * large) + F.l1_loss(small, 0 * small)

    assert step().item() == 1 + 2 / 256
    assert record(step).tolist() == [1 + 1.5 / 256] * N


def test_nothing_is_recorded_outside():
    recorder = LossRecorder()
    with recorder:
        F.mse_loss(torch.ones(2), torch.zeros(2))
    F.mse_loss(torch.ones(2), torch.full((2,), 9.0))
    assert recorder.example_losses(2).tolist() == [1.0, 1.0]


Z, Y = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("step", "got"),
    [
        pytest.param(
            lambda: 0.5 * F.cross_entropy(Z, Y),
            r"a mean of 0\.711\d+ and a loss of 0\.355\d+",
            id="scaled",
        ),
        pytest.param(
            lambda: 1.005 * F.cross_entropy(Z, Y),
            r"a mean of 0\.711\d+ and a loss of 0\.714\d+",
            id="scaled a little",
        ),
        pytest.param(
            lambda: F.cross_entropy(Z, Y) + 0.01 * Z.square().sum(),
            r"a mean of 0\.711\d+ and a loss of 0\.781\d+",
            id="penalised",
        ),
        pytest.param(
            lambda: (F.cross_entropy(Z, Y, reduction="none") * Z[:, 0]).mean(),
            r"a mean of .* and a loss of",
            id="weighted by hand",
        ),
        pytest.param(
            lambda: Z.square().mean(), "no call of a known loss function", id="by hand"
        ),
        pytest.param(
            lambda: F.cross_entropy(Z[:2], Y[:2]),
            r"losses of shape \(2,\) for 3",
            id="other rows",
        ),
        pytest.param(
            lambda: F.cross_entropy(Z[0], Y[0]),
            r"losses of shape \(\) for 3",
            id="one example",
        ),
        pytest.param(
            lambda: F.cross_entropy(Z, Y) * torch.nan,
            r"a mean of .* and a loss of nan",
            id="nan",
        ),
    ],
)
def test_a_loss_that_is_no_mean_of_known_losses_is_refused(step, got: str):
    message = rf"mean over the examples of losses.*got {got}.*`per_sample_loss="
    with pytest.raises(ValueError, match=message):
        record(step, 3)
    with pytest.raises(ValueError, match=message):
        Loss().score(step, HeadTap([]), 3)


def test_the_loss_is_a_scorer():
    assert isinstance(Loss(), Scorer)


def test_a_score_is_the_loss_of_the_example():
    net, x, y = nn.Linear(3, K), torch.randn(N, 3), labels(N)
    scored = Loss().score(lambda: F.cross_entropy(net(x), y), HeadTap([net]), N)
    each = [F.cross_entropy(net(x[i]), y[i]) for i in range(N)]
    torch.testing.assert_close(scored.scores, torch.stack(each).detach())
    torch.testing.assert_close(scored.loss, F.cross_entropy(net(x), y).detach())
    assert not scored.loss.requires_grad


def test_scoring_by_the_loss_builds_no_graph():
    net, seen = nn.Linear(3, K), []

    def step() -> Tensor:
        loss = F.cross_entropy(net(torch.ones(N, 3)), labels(N))
        seen.append(loss.requires_grad)
        return loss

    Loss().score(step, HeadTap([net]), N)
    assert seen == [False]


def test_losses_that_the_user_gives_are_taken_as_they_are():
    given = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    scored = Loss().score(lambda: given, HeadTap([]), 3)
    assert scored.scores.dtype == scored.loss.dtype == torch.float32
    assert scored.scores.tolist() == [3.0, 1.0, 2.0]
    assert scored.loss.item() == 2.0


def test_losses_of_stacked_views_are_joined_by_example():
    z, y = logits(2 * N, K), labels(N)
    tap = HeadTap([])
    tap.stacked = True

    def step() -> Tensor:
        return F.cross_entropy(z, y.repeat(2))

    each = F.cross_entropy(z, y.repeat(2), reduction="none").view(2, N).mean(0)
    torch.testing.assert_close(Loss().score(step, tap, N).scores, each)
    with Loss().observing(tap) as read:
        step()
    torch.testing.assert_close(read(N), each)


def test_an_ordinary_step_leaves_the_same_scores():
    net, x, y = nn.Linear(3, K), torch.randn(N, 3), labels(N)

    def step() -> Tensor:
        return F.cross_entropy(net(x), y)

    with Loss().observing(HeadTap([net])) as read:
        loss = step()
    loss.backward()
    assert net.weight.grad is not None
    torch.testing.assert_close(read(N), Loss().score(step, HeadTap([net]), N).scores)
