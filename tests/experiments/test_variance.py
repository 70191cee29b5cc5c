"""Draws are measured by the library's own parts, rightly, and without a trace."""

import csv
import json
import subprocess
import sys
from math import isnan
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is.experiments.variance import measure_variance, measuring
from lightning_is.experiments.variance.closed_form import expected_square
from lightning_is.experiments.variance.design import Design
from lightning_is.experiments.variance.draws import SCORES, UNIFORM, arms
from lightning_is.experiments.variance.figures import draw_probabilities, draw_variance
from lightning_is.experiments.variance.measuring import Measurer
from lightning_is.experiments.variance.observer import VarianceObserver, spaced
from lightning_is.experiments.variance.program import chosen
from lightning_is.experiments.variance.record import (
    Measurement,
    Ratio,
    Row,
    pooled_errors,
)
from lightning_is.experiments.variance.tables import cells, write_markdown
from lightning_is.sampling import (
    ImportancePlan,
    Mixed,
    Proportional,
    Uniform,
    multinomial,
    systematic,
    without_replacement,
)
from lightning_is.sampling.randomness import draw_generator

ROOT = Path(__file__).parents[2]
ARMS = [(arm.selection, arm.score) for arm in arms(Proportional())]
SIZE, DRAWN = 36, 9
ENDLESS = {"max_epochs": -1, "log_every_n_steps": 10**9}


class Once(L.Callback):
    """Measures before the first step."""

    def __init__(self, batch, design):
        self.batch, self.design, self.found = batch, design, None

    def on_train_start(self, trainer, pl_module):
        measurer = Measurer(trainer, pl_module, self.batch, self.design)
        self.found = measurer.measure(0)


def measured(kit, net, batch=None, **design):
    """Measure draws of a classifier by some network."""
    batch = kit.examples(SIZE) if batch is None else batch
    once = Once(batch, Design(**{"batch_size": DRAWN, **design}))
    trainer = kit.trainer(once, max_steps=1, **ENDLESS)
    trainer.fit(kit.Classifier(net, lr=0.0), kit.loader())
    return once.found


def single_gradients(net, x, y):
    """The gradient of each example, one after the other."""
    rows = []
    for i in range(len(x)):
        loss = functional.cross_entropy(net(x[i : i + 1]), y[i : i + 1])
        found = torch.autograd.grad(loss, list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]).double())
    return torch.stack(rows)


def scores_of(net, x, y):
    """Every score, by its formula."""
    z = net(x).detach()
    bound = (z.softmax(1) - functional.one_hot(y, z.shape[1])).norm(dim=1)
    return {
        "uniform": torch.ones(len(x)),
        "loss": functional.cross_entropy(z, y, reduction="none"),
        "upper_bound": bound,
        "gradient_norm": single_gradients(net, x, y).norm(dim=1),
    }


# What is measured


@pytest.fixture(scope="module")
def linear():
    """A linear classifier, measured many times, and the gradients of its examples."""
    from tests.conftest import _Kit as kit

    torch.manual_seed(0)
    net, batch = nn.Linear(6, 3), kit.examples(SIZE)
    found = measured(kit, net, batch, repeats=120)
    return found, single_gradients(net, *batch), scores_of(net, *batch)


def within_errors(row, expected):
    squares = torch.tensor(row.squares)
    error = squares.std() / len(squares) ** 0.5
    return abs(float((squares.mean() - expected) / error)) < 3.5


def test_uniform_draws_have_the_variance_of_the_textbook(linear):
    found, single, _ = linear
    spread = (single - single.mean(0)).square().sum(1)
    with_replacement = float(spread.mean() / DRAWN)
    without = float(spread.sum() / (SIZE - 1) / DRAWN * (1 - DRAWN / SIZE))
    for selection, expected in zip(
        ("multinomial", "systematic"), (with_replacement, without), strict=True
    ):
        row = found.row(selection, UNIFORM)
        assert row.expected == pytest.approx(expected, rel=1e-5)
        assert within_errors(row, expected)
        assert not within_errors(row, 1.3 * expected)


@pytest.mark.parametrize("score", SCORES)
def test_multinomial_draws_have_the_trace_of_the_covariance(linear, score):
    """Of w G under the draw, summed over all of its outcomes."""
    found, single, scores = linear
    p = scores[score].double() / scores[score].double().sum()
    mean = single.mean(0)
    outcomes = single / (SIZE * p)[:, None] - mean
    expected = float((p * outcomes.square().sum(1)).sum() / DRAWN)
    row = found.row("multinomial", score)
    assert row.expected == pytest.approx(expected, rel=1e-4)
    assert within_errors(row, expected)


def test_the_gradient_norm_draws_best_and_systematic_draws_better(linear):
    found, *_ = linear
    assert found.expected("multinomial", "gradient_norm") == min(
        found.expected("multinomial", score) for score in (UNIFORM, *SCORES)
    )
    for score in SCORES:
        one, other = (found.row(s, score) for s in ("systematic", "multinomial"))
        assert sum(one.squares) < sum(other.squares)


@pytest.mark.parametrize("net", ["mlp", "linear"])
def test_a_drawn_gradient_is_the_weighted_mean_of_single_ones(kit, net):
    net = nn.Linear(6, 3) if net == "linear" else kit.mlp()
    batch = kit.examples(SIZE)
    found = measured(kit, net, batch, repeats=3, seed=5, distribution=Mixed(share=0.2))
    single, scores = single_gradients(net, *batch), scores_of(net, *batch)
    assert found.norm == pytest.approx(float(single.mean(0).norm()), rel=1e-4)
    loss = functional.cross_entropy(net(batch[0]).detach(), batch[1])
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    for number, arm in enumerate(arms(Mixed(share=0.2))):
        expected = []
        for counter in range(3 * number, 3 * number + 3):
            generator = draw_generator(5, 0, counter)
            given = scores[arm.score].float(), DRAWN
            drawn = arm.plan.draw(*given, generator=generator)
            gradient = (drawn.weights[:, None] * single[drawn.indices]).mean(0)
            expected.append(float((gradient - single.mean(0)).square().sum()))
        row = found.row(arm.selection, arm.score)
        assert list(row.squares) == pytest.approx(expected, rel=1e-3)
        assert list(row.distances) == pytest.approx(
            [e**0.5 for e in expected], rel=1e-3
        )


def test_drawing_all_of_them_without_repeats_leaves_no_variance(kit):
    found = measured(kit, kit.mlp(), batch_size=SIZE)
    for score in (UNIFORM, *SCORES):
        assert max(found.row("systematic", score).squares) < 1e-10 * found.norm**2
        assert min(found.row("multinomial", score).squares) > 1e-4 * found.norm**2


@pytest.mark.parametrize("batch_size", [1, 7])
def test_what_the_best_draw_saves_is_its_distance_from_the_uniform_one(kit, batch_size):
    """Equations 20 to 26: Tr V_u[G] - Tr V_g[wG] = (mean s)^2 B |g - u|^2."""
    norms = scores_of(kit.mlp(), *kit.examples(SIZE))["gradient_norm"]
    plans = [ImportancePlan(d, multinomial) for d in (Uniform(), Proportional())]
    uniform, best = (
        expected_square(plan, norms, norms, 0.4, batch_size) for plan in plans
    )
    g = norms / norms.sum()
    saved = norms.mean() ** 2 * SIZE * (g - 1 / SIZE).square().sum()
    assert uniform - best == pytest.approx(float(saved) / batch_size)


def test_examples_of_probability_zero_do_not_spoil_the_closed_form():
    scores, norms = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1e-9, 1.0, 1.0])
    plan = ImportancePlan(Proportional(), multinomial)
    # Of the two that are drawn, weighted by 2 / 3 each, whose mean is opposite.
    assert expected_square(plan, scores, norms, 0.0, 1) == pytest.approx(4 / 9)
    assert expected_square(ImportancePlan(), scores, norms, 0.0, 1) is None


def test_squared_errors_are_those_of_a_loop(kit):
    net, batch = kit.mlp(), kit.examples(SIZE)
    found, scores = measured(kit, net, batch, repeats=1), scores_of(net, *batch)
    p = {name: [float(s / scores[name].sum()) for s in scores[name]] for name in scores}
    for name in SCORES:
        expected = 0.0
        for ours, best in zip(p[name], p["gradient_norm"], strict=True):
            expected += (ours - best) ** 2
        assert found.errors[name] == pytest.approx(expected, rel=1e-3, abs=1e-15)
    assert found.errors["loss"] > 0
    twice = pooled_errors([found, found])
    assert twice["loss"] == pytest.approx(2 * found.errors["loss"])


def test_every_selection_is_divided_by_the_uniform_draw_of_its_kind():
    plans = {(arm.selection, arm.score): arm.plan for arm in arms(Mixed())}
    assert plans["multinomial", UNIFORM] == ImportancePlan(Uniform(), multinomial)
    alone = ImportancePlan(Uniform(), without_replacement)
    assert plans["systematic", UNIFORM] == alone
    assert plans["systematic", "loss"] == ImportancePlan(Mixed(), systematic)
    rows = tuple(
        Row(selection, score, (4.0 * place, 16.0 * place), 2.0 * place)
        for place, (selection, score) in enumerate(ARMS, 1)
    )
    found = Measurement(3, 0.1, 1.0, {}, {}, rows)
    assert found.variance("systematic", "loss") == Ratio(6 / 5, 24 / 50, 96 / 50)
    root = 1.2**0.5
    assert found.distance("systematic", "loss") == pytest.approx(
        Ratio(root, root * 2 / 3, root * 4 / 3)
    )
    assert found.expected("multinomial", "gradient_norm") == 4


def test_draws_without_variance_give_no_ratio():
    assert isnan(Ratio.of([1.0], uniform=[0.0]).mean)


# When, and without a trace


class Busy(L.LightningModule):
    """Has all that a pass could change: statistics, dropout, counters, augmentation."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)),
            nn.Linear(8, 3),
        )
        self.steps = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return x + 0.1 * torch.randn_like(x) * np.random.rand(), y

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = functional.cross_entropy(self.net(x), y)
        self.steps += 1
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


def busy_run(kit, *observers, **settings):
    torch.manual_seed(3)
    np.random.seed(3)
    module = Busy()
    trainer = kit.trainer(*observers, max_epochs=2, **settings)
    trainer.fit(module, DataLoader(TensorDataset(*kit.examples()), 12, shuffle=True))
    streams = torch.rand(3).tolist(), float(np.random.rand())
    logged = {k: float(v) for k, v in trainer.logged_metrics.items()}
    return module.state_dict(), streams, logged, module.steps


def observing(kit, *, steps=(0, 1, 3), **design):
    return VarianceObserver(
        kit.examples(SIZE),
        Design(**{"batch_size": DRAWN, "repeats": 2, **design}),
        steps=list(steps),
    )


@pytest.mark.parametrize("accumulated", [1, 2])
def test_measuring_changes_nothing_in_the_fit(kit, accumulated):
    observer = observing(kit)
    settings = {"accumulate_grad_batches": accumulated}
    state, *plain = busy_run(kit, **settings)
    seen_state, *seen = busy_run(kit, observer, **settings)
    assert plain == seen
    assert all(torch.equal(state[name], seen_state[name]) for name in state)
    last = 8 // accumulated
    assert [found.step for found in observer.measurements] == [0, 1, 3, last]


def test_what_is_measured_follows_from_the_seed_and_the_step_alone(kit):
    runs = {}
    for name, steps, seed in [
        ("one", (0, 1, 3), 0),
        ("again", (0, 1, 3), 0),
        ("fewer", (3,), 0),
        ("other", (3,), 1),
    ]:
        observer = observing(kit, steps=steps, seed=seed)
        busy_run(kit, observer)
        runs[name] = {found.step: found.rows for found in observer.measurements}
    assert runs["one"] == runs["again"]
    assert runs["one"][3] == runs["fewer"][3] != runs["other"][3]


def test_no_two_draws_are_made_by_the_same_numbers(kit, monkeypatch):
    used = []

    def noted(seed, rank, counter):
        used.append((seed, rank, counter))
        return draw_generator(seed, rank, counter)

    monkeypatch.setattr(measuring, "draw_generator", noted)
    kit.trainer(observing(kit), max_steps=3, **ENDLESS).fit(
        kit.Classifier(kit.mlp()), kit.loader()
    )
    assert len(used) == len(set(used)) == 3 * len(ARMS) * 2
    assert {(seed, rank) for seed, rank, _ in used} == {(0, 0)}


def test_networks_that_normalise_and_drop_are_measured_as_in_evaluation(kit):
    module, batch = Busy().eval(), kit.examples(SIZE)
    single = single_gradients(module.net, *batch)
    module.train()
    module.on_after_batch_transfer = lambda batch, _: batch
    observer = observing(kit, steps=(0,))
    trainer = kit.trainer(observer, max_steps=1, **ENDLESS)
    trainer.fit(module, kit.loader())
    found = observer.measurements[0]
    assert found.norm == pytest.approx(float(single.mean(0).norm()), rel=1e-4)
    expected = single.norm(dim=1) / single.norm(dim=1).sum()
    torch.testing.assert_close(
        found.probabilities["gradient_norm"], expected, rtol=1e-3, atol=1e-6
    )


def test_the_module_hooks_of_a_batch_are_called_on_what_is_measured(kit):
    module = Busy()
    module.on_after_batch_transfer = lambda batch, _: (0 * batch[0], 0 * batch[1])
    observer = observing(kit, steps=(0,))
    kit.trainer(observer, max_steps=1, **ENDLESS).fit(module, kit.loader())
    p = observer.measurements[0].probabilities["loss"]
    torch.testing.assert_close(p, torch.full_like(p, 1 / SIZE))


def test_nothing_of_the_fit_is_kept_afterwards(kit):
    module, observer = kit.Classifier(kit.mlp()), observing(kit)
    kit.trainer(observer, max_steps=4, **ENDLESS).fit(module, kit.loader())
    assert not any(part._forward_hooks for part in module.modules())
    assert observer._measurer is None


def test_steps_are_spaced_by_their_logarithm_and_end_with_the_run(kit):
    assert spaced(2340, 8) == [23, 45, 87, 168, 325, 628, 1212, 2340]
    assert spaced(50, 1) == [50]
    observer = VarianceObserver(kit.examples(SIZE), Design(DRAWN, 1), points=3)
    trainer = kit.trainer(observer, max_steps=20, **ENDLESS)
    trainer.fit(kit.Classifier(kit.mlp()), kit.loader())
    assert [found.step for found in observer.measurements] == [1, 2, 20]


# What is refused


def refused(kit, observer, module=None, **settings):
    module = module or kit.Classifier(kit.mlp())
    kit.trainer(observer, **{"max_steps": 3, **ENDLESS, **settings}).fit(
        module, kit.loader()
    )


def test_steps_beyond_the_run_are_refused(kit):
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\].*got \[5, -1\]"):
        refused(kit, observing(kit, steps=(1, 5, -1)))


def test_a_run_without_end_is_refused(kit):
    with pytest.raises(ValueError, match="needs an end"):
        refused(kit, observing(kit), max_steps=-1, max_time={"seconds": 5})


def test_several_processes_are_refused(kit, monkeypatch):
    class Grown(L.Callback):
        def on_train_start(self, trainer, pl_module):
            monkeypatch.setattr(L.Trainer, "world_size", 2)

    trainer = kit.trainer(Grown(), observing(kit), max_steps=3, **ENDLESS)
    with pytest.raises(RuntimeError, match=r"one process, got a Trainer with 2"):
        trainer.fit(kit.Classifier(kit.mlp()), kit.loader())


def test_coarse_numbers_are_refused(kit):
    with pytest.raises(RuntimeError, match=r"full precision, got `bf16-mixed`"):
        refused(kit, observing(kit), precision="bf16-mixed")


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("sum", lambda z, y: functional.cross_entropy(z, y, reduction="sum")),
        ("coupled", lambda z, y: functional.cross_entropy(z - z.mean(0), y)),
    ],
)
@pytest.mark.filterwarnings("ignore:The loss couples the examples")
def test_losses_that_are_no_mean_of_single_ones_are_refused(kit, kind, loss):
    module = kit.Classifier(kit.mlp())
    module.training_step = lambda batch, batch_idx: loss(module.net(batch[0]), batch[1])
    with pytest.raises(ValueError, match=f"must be a mean.*kind `{kind}`"):
        refused(kit, observing(kit), module)


def test_a_step_without_a_loss_is_refused(kit):
    module = kit.Classifier(kit.mlp())
    module.training_step = lambda batch, batch_idx: None
    with pytest.raises(RuntimeError, match="got None"):
        refused(kit, observing(kit), module)


@pytest.mark.parametrize("name", ["batch_size", "repeats"])
def test_a_design_needs_something_to_draw(name):
    with pytest.raises(ValueError, match=f"`{name}` of a measurement.*got 0"):
        Design(**{name: 0})


@pytest.mark.parametrize("wanted", [4, 21])
def test_a_presample_must_be_there_and_exceed_the_draw(wanted):
    with pytest.raises(ValueError, match=f"exceed the 4.*20 training.*got {wanted}"):
        chosen(20, wanted, Design(batch_size=4))


def test_the_presample_is_uniform_and_follows_from_the_seed():
    first, other = (chosen(2000, 500, Design(seed=s)) for s in (0, 1))
    assert len(set(first.tolist())) == 500
    assert torch.equal(first, chosen(2000, 500, Design(seed=0)))
    assert not torch.equal(first, other)
    assert abs(first.double().mean() - 1000) < 4 * 2000 / 12**0.5 / 500**0.5


# The program


TINY = [
    *("data=digits", "model=mlp", "trainer.max_steps=12", "repeats=3"),
    *("presample_size=200", "drawn=25", "title=a title"),
]


def composed(folder, *words):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("variance_reduction", [*TINY, f"output_dir={folder}", *words])


def test_the_program_leaves_tables_figures_and_numbers(tmp_path):
    words = [*TINY, "points=3", "hydra.run.dir=o"]
    done = subprocess.run(  # noqa: S603 - our own program and arguments
        [sys.executable, ROOT / "scripts" / "variance_reduction.py", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "a title: 25 drawn of 200" in done.stdout
    folder = tmp_path / "o"
    results = json.loads((folder / "results.json").read_text())
    assert results["settings"]["drawn"] == 25
    assert results["settings"]["classifier"]["net"]["hidden"] == [128, 128]
    assert results["at_the_end"]["test/acc"] > 0.2
    steps = [found["step"] for found in results["measurements"]]
    assert steps == [1, 12]
    draws = results["measurements"][-1]["draws"]
    assert [(d["selection"], d["score"]) for d in draws] == ARMS
    assert all(len(d["squared_distances"]) == 3 for d in draws)
    assert draws[0]["variance"]["mean"] == 1
    assert draws[5]["expected_variance"] is None  # no closed form, and no NaN in JSON
    table = (folder / "table.md").read_text()
    assert table.count("\n| ") == 1 + 1 + 2 * 3
    assert "Squared errors of all steps together" in table
    with (folder / "variance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(ARMS)
    assert float(rows[-1]["variance_mean"]) == draws[-1]["variance"]["mean"]
    with (folder / "probabilities.csv").open() as file:
        points = [row for row in csv.DictReader(file) if row["step"] == "12"]
    assert len({row["example"] for row in points}) == 200
    for name in SCORES:
        assert sum(float(row[name]) for row in points) == pytest.approx(1, abs=1e-4)
        error = sum((float(p[name]) - float(p["gradient_norm"])) ** 2 for p in points)
        reported = results["measurements"][-1]["squared_errors"][name]
        assert error == pytest.approx(reported, rel=1e-2, abs=1e-12)
    for figure in ("variance.png", "probabilities.png"):
        assert (folder / figure).stat().st_size > 20_000


def test_given_steps_are_measured_and_the_network_is_that_of_a_plain_run(
    tmp_path, capsys
):
    found = measure_variance(composed(tmp_path, "steps=[0,5]", "distribution=mixed"))
    assert [each.step for each in found] == [0, 5, 12]
    # No more than 1 / 0.05 times as unlikely as under uniform draws.
    for p in found[-1].probabilities.values():
        assert float(p.min()) >= 0.05 / 200
    assert "after" not in capsys.readouterr().err


def test_training_by_a_method_that_samples_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"uniform training.*method=uniform"):
        measure_variance(composed(tmp_path, "method=trim"))


def test_a_run_without_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs steps to make"):
        measure_variance(composed(tmp_path, "trainer.max_steps=0", "scheduler=none"))


def made_up(step, *, even=False):
    generator = torch.Generator().manual_seed(step)
    scores = {name: torch.rand(50, generator=generator).double() for name in SCORES}
    rows = tuple(Row(*arm, (0.0,) if even else (0.5, 1.0), None) for arm in ARMS)
    shares = {name: values / values.sum() for name, values in scores.items()}
    return Measurement(step, 0.1, 1.0, shares, dict.fromkeys(SCORES, 1.0), rows)


@pytest.mark.parametrize("steps", [[7], [0, 4], [1, 10, 100, 1000]], ids=str)
def test_figures_are_drawn_of_one_measurement_or_many(steps, tmp_path):
    found = [made_up(step) for step in steps]
    draw_variance(found, "title", tmp_path / "v.png")
    draw_probabilities(found, "title", tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        panels = (picture.width / 150 - 0.6) / 3.4
    assert panels == pytest.approx(min(len(steps), 3), abs=0.05)
    assert (tmp_path / "v.png").stat().st_size > 10_000


def test_ratios_that_do_not_exist_are_dashes_in_the_table(tmp_path):
    found = [made_up(3, even=True)]
    assert cells(found)[0][2:8] == ("loss", "-", "-", "-", "-", "-")
    assert cells(found)[1][:2] == ("", "")
    write_markdown(found, "t", "n", tmp_path / "t.md")
    assert "nan" not in (tmp_path / "t.md").read_text()
