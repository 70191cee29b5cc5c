"""The language model reports what it should, and its sequences have scores."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is.experiments import schedules
from lightning_is.experiments.language_model import LanguageModel
from lightning_is.experiments.token_losses import (
    PADDING,
    position_mean,
    sequence_mean,
    token_mean,
)
from lightning_is.experiments.transformer import Transformer
from lightning_is.scoring import GradientNorm, HeadTap, Loss, Step, UpperBound

LENGTHS, T, V = [5, 1, 3, 5, 2], 5, 7
ADAM = partial(torch.optim.Adam, lr=1e-3)
MEANS = [position_mean, sequence_mean, token_mean]


@pytest.fixture
def batch():
    x, labels = torch.randint(V, (2, len(LENGTHS), T))
    for row, length in zip(labels, LENGTHS, strict=True):
        row[length:] = PADDING
    return [x, labels]


class Quiet(LanguageModel):
    """Does not log, so that its step may run without a Trainer."""

    def log(self, *_, **__):
        pass


def model(loss=position_mean, kind=Quiet):
    net = Transformer(V, T, width=8, depth=1, heads=2)
    nn.init.normal_(net.head.weight)  # far from even predictions
    return kind(net, ADAM, loss=loss)


def alone(batch, i):
    return [part[i : i + 1] for part in batch]


def scored(scorer, module, batch):
    """The scores of a batch, as a callback would have them."""
    tap = HeadTap([module.net.head])
    tap.attach()
    step = Step(
        lambda rows: module.training_step(rows, 0),
        batch,
        module,
        lambda rows, places: [part[places] for part in rows],
    )
    return scorer.score(step, tap, len(LENGTHS)).scores


def test_reported_numbers_are_those_of_all_labels_despite_a_short_batch(kit, batch):
    module = model(kind=LanguageModel)
    loader = DataLoader(TensorDataset(*batch), batch_size=2)
    for stage in ("val", "test"):
        trainer = kit.trainer()
        run = trainer.validate if stage == "val" else trainer.test
        [row] = run(module, loader, verbose=False)
        logits = module(batch[0])
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten())
        perplexity = loss.exp().item()
        expected = {f"{stage}/loss": loss.item(), f"{stage}/perplexity": perplexity}
        assert row == pytest.approx(expected)


def test_each_of_several_parts_has_its_own_perplexity(kit, batch):
    module = model(kind=LanguageModel)
    loaders = [DataLoader(TensorDataset(*alone(batch, i))) for i in (0, 1)]
    rows = kit.trainer().test(module, loaders, verbose=False)
    for i, row in enumerate(rows):
        [loss], _ = module.evaluate(alone(batch, i))
        assert row[f"test/perplexity/dataloader_idx_{i}"] == pytest.approx(
            loss.exp().item()
        )


def test_it_learns_what_comes_next(kit):
    x = torch.arange(64)[:, None].add(torch.arange(T)).remainder(V)
    net = Transformer(V, T, width=16, depth=1, heads=2)
    module = LanguageModel(net, partial(torch.optim.Adam, lr=0.01))
    loader = DataLoader(TensorDataset(x, (x + 1) % V), batch_size=16)
    kit.trainer(max_epochs=20).fit(module, loader)
    losses, errors = module.evaluate([x, (x + 1) % V])
    assert losses.mean() < 0.3
    assert errors.mean() == 0


def test_the_evaluation_is_that_of_each_sequence_by_itself(batch):
    module = model()
    losses, errors = module.evaluate(batch)
    for i, length in enumerate(LENGTHS):
        logits, labels = module(batch[0])[i, :length], batch[1][i, :length]
        torch.testing.assert_close(losses[i], functional.cross_entropy(logits, labels))
        wrong = (logits.argmax(1) != labels).float().mean()
        torch.testing.assert_close(errors[i], wrong)


@pytest.mark.parametrize("loss", MEANS)
def test_padding_of_the_inputs_changes_no_gradient_and_no_score(loss, batch):
    module, (x, labels) = model(loss), batch
    other = torch.where(labels == PADDING, (x + 3) % V, x)
    assert not torch.equal(other, x)
    found = []
    for inputs in (x, other):
        step = module.training_step([inputs, labels], 0)
        gradients = torch.autograd.grad(step, list(module.parameters()))
        vector = nn.utils.parameters_to_vector(gradients)
        found.append((vector, scored(UpperBound(), module, [inputs, labels])))
    for one, another in zip(*found, strict=True):
        torch.testing.assert_close(one, another)


def upper_bound_alone(module, batch):
    logits = module(batch[0]).detach().requires_grad_()
    [gradient] = torch.autograd.grad(module.loss(logits, batch[1]), logits)
    return gradient.norm()


def gradient_norm_alone(module, batch):
    step = module.training_step(batch, 0)
    gradients = torch.autograd.grad(step, list(module.parameters()))
    return nn.utils.parameters_to_vector(gradients).norm()


def loss_alone(module, batch):
    return module.training_step(batch, 0).detach()


@pytest.mark.parametrize(
    ("loss", "scorer", "score"),
    [
        (position_mean, UpperBound(), upper_bound_alone),
        (position_mean, GradientNorm(), gradient_norm_alone),
        (position_mean, Loss(), loss_alone),
        (sequence_mean, UpperBound(), upper_bound_alone),
        (sequence_mean, GradientNorm(), gradient_norm_alone),
    ],
)
def test_scores_are_those_of_each_sequence_by_itself(loss, scorer, score, batch):
    module = model(loss)
    expected = [score(module, alone(batch, i)) for i in range(len(LENGTHS))]
    torch.testing.assert_close(scored(scorer, module, batch), torch.stack(expected))


@pytest.mark.parametrize(
    ("scorer", "score"), [(UpperBound(), upper_bound_alone), (Loss(), loss_alone)]
)
def test_the_usual_mean_counts_a_sequence_by_its_labels(scorer, score, batch):
    module, mean = model(token_mean), sum(LENGTHS) / len(LENGTHS)
    expected = [
        score(module, alone(batch, i)) * length / mean
        for i, length in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(scored(scorer, module, batch), torch.stack(expected))


@pytest.mark.parametrize(
    ("loss", "scorer"), [(token_mean, GradientNorm()), (sequence_mean, Loss())]
)
def test_an_average_that_a_scorer_cannot_see_is_refused_with_its_cure(
    loss, scorer, batch
):
    with pytest.raises(ValueError, match="per_sample_loss="):
        scored(scorer, model(loss), batch)


def test_the_schedule_ends_with_the_run(kit, batch):
    module = model(kind=LanguageModel)
    module.make_scheduler = schedules.linear
    loader = DataLoader(TensorDataset(*batch), batch_size=len(LENGTHS))
    trainer = kit.trainer(max_epochs=3)
    trainer.fit(module, loader)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_a_schedule_without_an_end_is_refused(kit, batch):
    module = model(kind=LanguageModel)
    module.make_scheduler = schedules.linear
    endless = kit.trainer(max_epochs=-1, max_time="00:00:01:00")
    with pytest.raises(ValueError, match="Set `max_epochs` or `max_steps`"):
        endless.fit(module, DataLoader(TensorDataset(*batch)))
