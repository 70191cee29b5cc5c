"""What a sceptic asks of a comparison: arithmetic, budgets, tuned rates, intervals."""

import csv
import math
import statistics
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from scipy import stats
from torch import nn
from torch.nn import functional

from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.compare import compare
from lightning_is.experiments.compare.arithmetic import Arithmetic, of_example
from lightning_is.experiments.compare.arms import composed
from lightning_is.experiments.compare.budget import DECAYS, Point
from lightning_is.experiments.compare.jobs import check, plan
from lightning_is.experiments.compare.meter import parse_budget, written
from lightning_is.experiments.compare.referee import Referee, measurable
from lightning_is.experiments.compare.run import Result, read
from lightning_is.experiments.compare.statistics import differences, interval, ratios
from lightning_is.experiments.compare.table import summarise
from lightning_is.experiments.compare.tuning import hopeless, trials, tuned
from lightning_is.experiments.data.rare_hard import RareHard

ROOT = Path(__file__).parents[2]
TINY = ["data=digits", "model=mlp", "points=2", "seeds=[0]"]
TWO = [*TINY, "methods=[uniform,trim]"]
DRAWN = ["methods=[trim,two_stage]", "baseline=trim"]


def configured(folder, *overrides):
    return [*overrides, f"out={folder}", "title=a title"]


def compared(folder, *overrides):
    overrides = configured(folder, *overrides)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compare(compose("compare", overrides), overrides)


def planned(folder, *overrides, rates=None, tries=False):
    overrides = configured(folder, *overrides)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("compare", overrides)
        check(cfg, overrides)
        arms = composed(cfg, overrides)
        return trials(cfg, arms) if tries else plan(cfg, arms, rates or {})


# Statistics


@pytest.mark.parametrize("count", [2, 5, 9])
def test_intervals_are_students_of_paired_seeds(count):
    draw = torch.Generator().manual_seed(count)
    one, other = torch.rand(2, count, generator=draw, dtype=torch.float64).tolist()
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    found = differences(one, other)
    assert (found.low, found.high) == pytest.approx(expected)
    logs = stats.ttest_rel([*map(math.log, one)], [*map(math.log, other)])
    expected = [math.exp(end) for end in logs.confidence_interval(0.95)]
    found = ratios(one, other)
    assert (found.low, found.high) == pytest.approx(expected)
    quotients = [a / b for a, b in zip(one, other, strict=True)]
    assert found.mean == pytest.approx(statistics.geometric_mean(quotients))


def test_intervals_hold_the_truth_as_often_as_they_say():
    draws = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)) + 7
    found = [interval(row) for row in draws.tolist()]
    share = sum(each.low < 7 < each.high for each in found) / len(found)
    assert abs(share - 0.95) < 4 * (0.95 * 0.05 / len(found)) ** 0.5


def test_what_diverged_has_no_interval():
    assert math.isnan(interval([1.0, math.inf]).mean)
    assert math.isnan(ratios([1.0, 0.0], [1.0, 1.0]).mean)
    assert math.isnan(ratios([], []).mean)
    assert math.isnan(differences([], []).mean)


# Arithmetic


def flops(module, batch):
    return of_example(Classifier(module, torch.optim.SGD), batch)


def test_an_example_costs_a_forward_pass_and_two_backward():
    batch = torch.zeros(8, 5), torch.zeros(8, dtype=torch.int64)
    # The first layer needs no gradient of its inputs: one product less.
    assert flops(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)), batch) == (
        2 * (5 * 7 * 2 + 7 * 3 * 3)
    )


def test_what_cannot_be_counted_is_refused():
    class Recurrent(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    batch = torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"recurrent layer 'net'.*clock=cpu"):
        flops(Recurrent(5, 3), batch)


class Attentive(nn.Module):
    def forward(self, x):
        heads = x.unflatten(-1, (2, 4)).transpose(1, 2)
        return functional.scaled_dot_product_attention(heads, heads, heads).mean((1, 2))


def test_attention_costs_what_its_products_cost():
    batch = torch.randn(3, 6, 8), torch.zeros(3, dtype=torch.int64)
    linear = 2 * (2 * 6 * 8 * 8)  # forward, and the gradient of the weights
    product = 2 * (2 * 6 * 6 * 4)  # of one of two heads with another
    # Scores and values forward; backward the scores again, and the gradients of both
    # factors of each.
    assert flops(nn.Sequential(nn.Linear(8, 8), Attentive()), batch) == (
        linear + (2 + 5) * product
    )


def test_a_meter_that_stopped_does_not_count():
    meter, ones = Arithmetic(10.0), torch.ones(1, 5)
    meter.start()
    ones @ ones.T
    meter.stop()
    ones @ ones.T
    assert meter.spent == 1
    meter.start()
    ones @ ones.T
    assert meter.spent == 2
    meter.stop()
    meter.stop()
    assert meter.spent == 2


FORTH = 64 * 128 + 128 * 128 + 128 * 10
BACK = FORTH + 128 * 128 + 128 * 10  # none for the inputs of the first layer
SCORED = {  # what each of a presample costs beyond the step, in examples trained on
    "uniform": 0.0,
    "presample_uniform": FORTH / (FORTH + BACK),
    "gradient_norm": 1 + FORTH / (FORTH + BACK),  # and once more, to look at the loss
}


@pytest.mark.parametrize("method", SCORED)
def test_all_that_a_method_computes_is_charged(method, tmp_path):
    more = {
        "uniform": "",
        "presample_uniform": "method.callback.gate.threshold=1.0",
        "gradient_norm": "method.callback.tau_threshold=1.0",
    }[method]
    arm = f"+arms.it='method={method} {more}'"
    own = ["methods=[]", "clock=cost", "budget=12k", "baseline=it", arm]
    assert compared(tmp_path, *TINY, *own) == 0
    (job,) = planned(tmp_path, *TINY, *own)
    run = read(job)
    drawn = 0 if method == "uniform" else round(run.open_share * run.end.steps)
    assert method == "uniform" or drawn > 3
    spent = 128 * run.end.steps + 640 * drawn * SCORED[method]
    # How the first batch is looked at is charged, too.
    looked = 0 if method == "uniform" else 3 * 128
    assert spent - 1e-6 <= run.end.spent <= spent + looked + 1e-6
    assert 12_000 <= run.end.spent < 14_000


def test_nothing_goes_by_a_clock_where_time_is_none(tmp_path):
    cost = ["clock=cost", "budget=1k"]
    for job in planned(tmp_path, *TWO, *DRAWN, *cost):
        assert job.settings["method"]["callback"]["gate"]["costs"] == "assumed"
        assert job.settings["method"]["callback"]["score_precision"] is None
    for job in planned(tmp_path, *TWO, *DRAWN):
        assert job.settings["method"]["callback"]["gate"]["costs"] == "measured"
        assert job.settings["method"]["callback"]["score_precision"] == "auto"


@pytest.mark.parametrize(
    ("text", "examples"), [("300k", 3e5), ("2M", 2e6), ("0.5 k", 500), (700, 700)]
)
def test_a_budget_of_examples_is_read(text, examples):
    assert parse_budget(text, "cost") == examples


def test_units_of_another_clock_are_refused():
    with pytest.raises(ValueError, match=r"number of examples, got '30s'. Write 300k"):
        parse_budget("30s", "cost")
    with pytest.raises(ValueError, match=r"length of time, got '300k'"):
        parse_budget("300k")
    assert written(300_000.0, "cost") == (
        "the arithmetic of training on 300,000 examples"
    )


# Budgets and decay


def test_each_share_is_a_budget_of_its_own(tmp_path):
    jobs = planned(tmp_path, *TWO, "shares=[0.3,1,3]", "budget=10s")
    assert [job.settings["budget"] for job in jobs] == [3, 3, 10, 10, 30, 30]
    paths = [str(job.path.relative_to(tmp_path)) for job in jobs]
    assert paths[0] == "30%/uniform/seed0.json"
    assert paths[2] == "uniform/seed0.json"
    assert paths[5] == "300%/trim/seed0.json"


def test_rates_fall_to_zero_or_by_steps():
    assert [DECAYS["linear"](share) for share in (0, 0.25, 1)] == [1, 0.75, 0]
    steps = [DECAYS["steps"](share) for share in (0, 0.39, 0.4, 0.79, 0.8, 1)]
    assert steps == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


def test_an_experiment_may_bring_a_schedule_but_the_budget_decides(tmp_path):
    own = ["experiment=cifar10_wrn", "methods=[uniform]", "trainer=cpu"]
    jobs = planned(tmp_path, *own, "loader=default", "decay=steps")
    assert all(job.settings["classifier"]["scheduler"] is None for job in jobs)
    assert jobs[0].settings["decay"] == "steps"


# Arms


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "conf" / "arms").glob("*.yaml"))
)
def test_every_file_of_arms_can_be_compared(name, tmp_path):
    images = [*TINY[1:], "data=mnist"]  # the bundled digits are not augmented
    names = {job.arm for job in planned(tmp_path, *images, f"arms={name}")}
    if name == "none":
        assert "uniform" in names
        assert "trim" in names
    else:
        assert "uniform" in names
        assert len(names) > 1


def test_arms_differ_by_their_own_settings_alone(tmp_path):
    jobs = {job.arm: job.settings for job in planned(tmp_path, *TINY, "arms=controls")}
    assert jobs["large_batch"]["data"]["batch_size"] == 256
    assert jobs["uniform"]["data"]["batch_size"] == 128
    same = jobs["large_batch"] | {"data": jobs["uniform"]["data"]}
    assert same == jobs["uniform"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+arms.big='data.batch_size=64'", r"must choose its method, got .* for 'big'"),
        ("+arms.uniform='method=trim'", r"names of their own.*got \['uniform'\]"),
        ("a/b", r"names of their own"),
        ("shares=[0]", r"`shares` of the budget must be positive"),
        ("shares=[1,1]", r"`shares` must be different numbers"),
        ("decay=fast", r"`decay` must be one of linear, steps, got 'fast'"),
        ("baseline=unifrom", r"`baseline` must be one of the arms, got 'unifrom'"),
        ("trainer.max_steps=9", r"budget alone must end a run, got .*max_steps=9"),
        ("trainer.max_epochs=2", r"budget alone must end a run, got .*max_epochs=2"),
    ],
)
def test_arms_and_budgets_without_sense_are_refused(override, message, tmp_path):
    if "a/b" in override:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("compare", configured(tmp_path, *TINY))
            cfg.arms = {"a/b": "method=trim"}
            with pytest.raises(ValueError, match=message):
                composed(cfg, configured(tmp_path, *TINY))
        return
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, *TINY, "methods=[uniform]", override)


# Tuned rates


def trial(arm, rate, loss, val, share=1.0, seed=1000):
    end = Point(loss, val, 1.0 - val, val, 0.5, {"test": 0.5}, 1.0, 10)
    return Result(arm, seed, share, rate, math.nan, [end])


def test_the_rate_with_the_lowest_mean_loss_is_chosen():
    tries = [
        *(trial("a", 0.1, 0.3, 0.5), trial("a", 0.1, 0.5, 0.6, seed=1001)),
        *(trial("a", 0.2, 0.1, 0.7), trial("a", 0.2, math.nan, 0.8, seed=1001)),
        *(trial("b", 0.1, 0.4, 0.9), trial("b", 0.2, 0.3, 1.0)),
        *(trial("b", 0.1, 0.2, 0.9, 3.0), trial("b", 0.2, 0.3, 0.8, 3.0)),
        # One of its trials failed, and left nothing.
        trial("a", 0.3, 0.0, 0.0, seed=1001),
    ]
    by_train = {("a", 1.0): 0.1, ("b", 1.0): 0.2, ("b", 3.0): 0.1}
    assert tuned(tries, "train_loss") == by_train
    by_val = {("a", 1.0): 0.1, ("b", 1.0): 0.1, ("b", 3.0): 0.2}
    assert tuned(tries, "val_loss") == by_val
    by_error = {("a", 1.0): 0.2, ("b", 1.0): 0.2, ("b", 3.0): 0.1}
    assert tuned(tries, "val_error") == by_error


def test_rates_that_came_to_no_good_end_are_named():
    def named(tries, by="train_loss", shares=(1,)):
        cfg = {"rates": [0.1, 0.2], "tuned_by": by, "shares": [*shares]}
        return hopeless(tries, DictConfig(cfg))

    good = [trial("a", 0.1, 0.3, 0.5), trial("a", 0.2, 0.3, 0.5)]
    assert named(good) == ""
    assert named([]) == ""
    lost = [trial("b", 0.1, math.nan, 0.9, 0.3), trial("b", 0.2, 0.3, 0.9, 0.3)]
    said = "; trials diverged or failed: b at 0.1 (30% of the budget)"
    assert named(good + lost, shares=(0.3, 1)) == said
    assert named(good + lost, "val_loss") == ""
    # Nothing is left of a trial that failed: of all at a rate, or of some.
    assert named(good[:1]) == "; trials diverged or failed: a at 0.2"
    whole = "; trials diverged or failed: a at 0.2 (100% of the budget)"
    assert named(good[:1], shares=(0.3, 1)) == whole
    again = trial("a", 0.1, 0.3, 0.5, seed=1001)
    assert named([*good, again]) == "; trials diverged or failed: a at 0.2"


def test_every_arm_gets_the_same_trials_in_every_budget(tmp_path):
    own = ["shares=[0.5,1]", "rates=[0.1,0.2]", "tuning_seeds=[7,8]"]
    jobs = planned(tmp_path, *TWO, *own, tries=True)
    places = {(job.arm, job.share, job.rate, job.seed) for job in jobs}
    assert len(places) == len(jobs) == 2 * 2 * 2 * 2
    assert len({job.path for job in jobs}) == len(jobs)
    for job in jobs:
        assert job.settings["classifier"]["optimizer"]["lr"] == job.rate
    runs = planned(tmp_path, *TWO, rates={("trim", 1.0): 0.2})
    rates = {job.arm: job.settings["classifier"]["optimizer"]["lr"] for job in runs}
    assert rates["trim"] == 0.2
    assert rates["uniform"] != 0.2


def test_an_arm_whose_trials_fail_is_named_and_not_run(tmp_path, capsys):
    own = [*TWO, "rates=[0.1,0.2]", "clock=cost", "budget=1k"]
    assert compared(tmp_path, *own, "++method.batch_size=500") == 1
    assert "trim failed: " in (tmp_path / "table.md").read_text()
    assert not (tmp_path / "trim").exists()
    assert (tmp_path / "uniform" / "seed0.json").is_file()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["rates=[0.1]"], "several different positive numbers"),
        (["rates=[0.1,0.1]"], "several different positive numbers"),
        (["rates=[0.1,-1]"], "several different positive numbers"),
        (
            ["rates=[0.1,0.2]", "tuning_seeds=[0]"],
            "not be those that are compared",
        ),
        (["rates=[0.1,0.2]", "tuning_seeds=[]"], "not be those that are compared"),
        (
            ["rates=[0.1,0.2]", "tuned_by=luck"],
            "must be one of train_loss, val_loss, val_err",
        ),
        (
            ["rates=[0.1,0.2]", "+arms.fast='method=trim optimizer.lr=0.2'"],
            "or set by the arms, got `rates` and optimizer.lr in fast",
        ),
    ],
)
def test_tuning_without_sense_is_refused(own, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, *TWO, *own, tries=True)


def test_rates_at_which_trials_diverge_are_named_under_the_table(tmp_path, capsys):
    own = [*TINY, "methods=[uniform]", "clock=cost", "budget=5k"]
    assert compared(tmp_path, *own, "rates=[1e9,0.05]") == 0
    told = "; trials diverged or failed: uniform at 1e+09\n"
    assert told in (tmp_path / "table.md").read_text()
    assert told.strip() in " ".join(capsys.readouterr().out.split())


def test_a_tuned_comparison_uses_what_it_chose(tmp_path, capsys):
    own = [*TINY, "methods=[uniform]", "clock=cost", "budget=5k"]
    assert compared(tmp_path, *own, "rates=[0.00001,0.05]", "shares=[0.5,1]") == 0
    with (tmp_path / "tuning.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rate"], row["chosen"]) for row in rows] == [
        *(("1e-05", "0"), ("0.05", "1")),
        *(("1e-05", "0"), ("0.05", "1")),
    ]
    with (tmp_path / "runs.csv").open() as file:
        assert {row["rate"] for row in csv.DictReader(file)} == {"0.05"}
    text = (tmp_path / "table.md").read_text()
    assert "50% of it" in text
    assert "100% of it" in text
    assert "| rate |" in text
    assert "| 0.05 ! |" in text
    assert (tmp_path / "compare.png").is_file()
    assert (tmp_path / "compare_50.png").is_file()


# Parts of the test examples


def test_each_part_of_the_test_examples_has_its_error():
    data = RareHard(n=400, rare_share=0.05)
    net = Classifier(nn.Linear(2, 4), torch.optim.SGD)
    found = Referee(data).measure(net, thorough=True)
    for name, part in data.splits.tests.items():
        wrong = (net(part.x).argmax(1) != part.y).double().mean()
        assert found.errors[name] == pytest.approx(float(wrong))
    assert found.test_error == pytest.approx(statistics.fmean(found.errors.values()))


def test_rows_have_columns_of_every_part():
    def run(arm, seed, rare):
        end = Point(0.1, 0.1, 0.1, 0.1, 0.2, {"common": 0.1, "rare": rare}, 1.0, 10)
        return Result(arm, seed, 1.0, None, math.nan, [end])

    rows = summarise([run("uniform", 0, 0.4), run("trim", 0, 0.3)], {})
    cells = {row.arm: row.cells for row in rows}
    assert cells["trim"]["rare error [%]"] == "30.00"
    assert cells["trim"]["rare - uniform"] == "-10.00"
    assert cells["trim"]["common - uniform"] == "+0.00"


def test_a_module_that_cannot_be_measured_is_refused(kit):
    with pytest.raises(TypeError, match=r"by `evaluate\(batch\)`, which Classifier"):
        measurable(kit.Classifier(kit.mlp()))
