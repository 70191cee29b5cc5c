"""Every method gets the same time, and the table says what it made of it."""

import csv
import itertools
import json
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from math import inf, isnan, log, nan
from pathlib import Path
from time import sleep

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Callback
from PIL import Image
from torch import nn

from lightning_is import ImportanceSamplingCallback
from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.compare import compare, jobs, meter
from lightning_is.experiments.compare.arms import composed
from lightning_is.experiments.compare.budget import Budget, Point
from lightning_is.experiments.compare.figure import draw, dress, on_grid, style
from lightning_is.experiments.compare.jobs import _outcome, check, plan
from lightning_is.experiments.compare.meter import Stopwatch, parse_budget
from lightning_is.experiments.compare.program import heading
from lightning_is.experiments.compare.referee import Measured, Referee, stored
from lightning_is.experiments.compare.report import print_rows, write_markdown
from lightning_is.experiments.compare.run import (
    Job,
    Result,
    attach,
    execute,
    read,
    write,
)
from lightning_is.experiments.compare.table import note, summarise, write_runs
from lightning_is.experiments.compare.target import time_to_target
from lightning_is.experiments.data import Digits
from tests.programs import run_program

ROOT = Path(__file__).parents[2]
TINY = ["data=digits", "model=mlp", "budget=0.3", "points=4"]
TWO = [*TINY, "methods=[uniform,trim]"]


def configured(folder, *overrides):
    return [*overrides, f"out={folder}", "title=a title"]


def compared(folder, *overrides):
    overrides = configured(folder, *overrides)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compare(compose("compare", overrides), overrides)


def planned(folder, *overrides):
    overrides = configured(folder, *overrides)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("compare", overrides)
        check(cfg, overrides)
        return plan(cfg, composed(cfg, overrides), {})


# The budget


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("2m", 120), ("1.5h", 5400), (" 7 ", 7), (12, 12), (0.5, 0.5)],
)
def test_a_budget_is_read_with_and_without_its_unit(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["soon", "", "-3s", "0", 0, "3 days", "inf", "1m30s"])
def test_what_is_no_length_of_time_is_refused_with_the_cure(text):
    with pytest.raises(ValueError, match=r"positive length of time.*Write 30s, 2m"):
        parse_budget(text)


class FakeTime:
    """A clock that stands still unless told to go on."""

    def __init__(self, monkeypatch):
        self.now = 50.0
        monkeypatch.setattr(meter, "perf_counter", lambda: self.now)


def test_a_stopped_watch_does_not_count(monkeypatch):
    time = FakeTime(monkeypatch)
    watch = Stopwatch("wall")
    watch.start()
    time.now += 2
    watch.stop()
    time.now += 100
    assert watch.spent == 2
    watch.start()
    time.now += 3
    assert watch.spent == 5


class SlowReferee(Referee):
    """Takes its time, and remembers what it was asked."""

    def __init__(self, time):
        self.time, self.thorough = time, []

    def measure(self, module, *, thorough=False):
        self.time.now += 1000
        self.thorough.append(thorough)
        return Measured(1.0, 1.0, 0.5, 1.0, 0.5, {"test": 0.5})


def trained(kit, monkeypatch, seconds, points, *others, **settings):
    time, rates = FakeTime(monkeypatch), []

    class Timed(kit.Classifier):
        def training_step(self, batch, batch_idx):
            time.now += 1
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

    budget = Budget(seconds, Stopwatch("wall"), SlowReferee(time), points)
    settings = {"max_epochs": -1, "limit_val_batches": 0} | settings
    trainer = kit.trainer(*others, budget, **settings)
    trainer.fit(Timed(kit.mlp(), lr=0.4), kit.loader())
    return budget, rates, trainer


def test_the_rate_falls_to_zero_with_the_budget_and_the_run_ends(kit, monkeypatch):
    _, rates, trainer = trained(kit, monkeypatch, 10.0, 5)
    assert rates == pytest.approx([0.4 * (1 - k / 10) for k in range(10)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0
    assert trainer.global_step == 10


def test_measurements_are_evenly_spaced_and_free(kit, monkeypatch):
    budget, _, _ = trained(kit, monkeypatch, 10.0, 4)
    assert [p.spent for p in budget.points] == [0, 3, 5, 8, 10]
    assert [p.steps for p in budget.points] == [0, 3, 5, 8, 10]
    assert budget._referee.thorough == [False] * 4 + [True]
    assert budget.meter.spent == 10


def test_the_curve_of_tau_is_the_mean_of_what_was_logged(kit, monkeypatch):
    taus = iter([1.0, 2.0, 3.0, 5.0])

    class Sampling(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step % 2 == 0 and trainer.global_step <= 8:
                pl_module.log("is/tau", next(taus))

    budget, _, _ = trained(kit, monkeypatch, 12.0, 3, Sampling(), log_every_n_steps=2)
    assert [p.steps for p in budget.points] == [0, 4, 8, 12]
    assert isnan(budget.points[0].tau)
    # The last part keeps what the callback logged before, as the logger does.
    assert [p.tau for p in budget.points[1:]] == [1.5, 4.0, 5.0]


def test_steps_longer_than_the_spacing_are_measured_once_each(kit, monkeypatch):
    budget, _, _ = trained(kit, monkeypatch, 3.0, 20)
    assert [p.spent for p in budget.points] == [0, 1, 2, 3]
    assert budget.share() == 1


def test_a_run_that_ends_early_is_measured_at_its_end(kit, monkeypatch):
    budget, _, _ = trained(kit, monkeypatch, 100.0, 2, max_steps=5)
    assert [p.steps for p in budget.points] == [0, 5]


def test_annealed_methods_go_by_the_budget_which_comes_last(kit, monkeypatch):
    budget = Budget(2.0, Stopwatch("wall"), SlowReferee(FakeTime(monkeypatch)))
    sampling = ImportanceSamplingCallback(3)
    trainer = kit.trainer(sampling)
    attach(budget, trainer)
    assert sampling.progress == budget.share
    assert trainer.callbacks[-1] is budget


# The referee


class Net(Classifier):
    def __init__(self):
        super().__init__(nn.Identity(), torch.optim.SGD)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(64)
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.drop(self.norm(x.flatten(1))))


def test_measuring_leaves_modes_random_states_and_statistics_alone():
    net, referee = Net(), Referee(Digits(64))
    net.norm.eval()
    before = torch.get_rng_state(), [p.training for p in net.modules()]
    statistics = net.norm.running_mean.clone()
    first = referee.measure(net)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert [part.training for part in net.modules()] == before[1]
    assert torch.equal(net.norm.running_mean, statistics)
    assert all(p.grad is None for p in net.parameters())
    assert referee.measure(net) == first


def test_the_referee_reports_plain_means_over_all_examples():
    net, data = Net().eval().requires_grad_(False), Digits(64)
    found = Referee(data).measure(net, thorough=True)
    for loader, loss in (
        (data.ordered_train_dataloader(), found.train_loss),
        (data.test_dataloader()[0], found.test_loss),
    ):
        x, y = loader.dataset.__getitems__(range(len(loader.dataset)))
        assert loss == pytest.approx(float(nn.functional.cross_entropy(net(x), y)))
    assert found.test_error == pytest.approx(float((net(x).argmax(1) != y).sum()) / 300)
    val = data.val_dataloader().dataset
    x, y = val.__getitems__(range(len(val)))
    assert found.val_error == pytest.approx(
        float((net(x).argmax(1) != y).sum()) / len(y)
    )


def test_a_glance_takes_the_same_part_of_the_training_set_every_time(monkeypatch):
    module = "lightning_is.experiments.compare.referee.GLANCE"
    monkeypatch.setattr(module, 100)
    net, data = Net(), Digits(64)
    glances = [Referee(data).measure(net).train_loss for _ in range(2)]
    assert glances[0] == glances[1]
    thorough = Referee(data).measure(net, thorough=True).train_loss
    assert glances[0] != thorough
    assert glances[0] == pytest.approx(thorough, rel=0.2)


def test_examples_outside_of_memory_are_refused(kit):
    with pytest.raises(TypeError, match=r"TensorSet, got\s+TensorDataset"):
        stored(kit.loader())


# What is run


def test_every_method_file_is_compared_unless_some_are_chosen(tmp_path):
    files = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    jobs = planned(tmp_path, *TINY, "seeds=[0,4]")
    assert {job.arm for job in jobs} == files
    assert [job.seed for job in jobs] == [0] * len(files) + [4] * len(files)
    chosen = planned(tmp_path, *TINY, "methods=[trim]", "seeds=[3]", "baseline=trim")
    assert [(job.arm, job.seed) for job in chosen] == [("trim", 3)]


def test_overrides_reach_every_run(tmp_path):
    own = ["optimizer.lr=0.3", "data.batch_size=64", "budget=2m", "clock=wall"]
    for job in planned(tmp_path, *TWO, *own):
        told = job.settings
        assert told["classifier"]["optimizer"]["lr"] == 0.3
        assert told["data"]["batch_size"] == 64
        assert told["classifier"]["scheduler"] is None
        assert told["trainer"]["accelerator"] == "cpu"
        assert told["trainer"]["max_epochs"] == -1
        assert (told["budget"], told["clock"], told["seed"]) == (120, "wall", job.seed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=trim", r"`method` is what is compared.*methods=\[trim\]"),
        ("seed=1", r"`seed` is what is compared.*seeds="),
        ("methods=[trimm]", r"got \['trimm'\]\. Choose among .*uniform"),
        ("seeds=[1,1]", "must be different numbers"),
        ("scheduler=linear", "fall with the budget alone"),
        ("points=0", "`points` must be at least 1, got 0"),
        ("jobs=0", "`jobs` must be at least 1, got 0"),
        ("clock=sun", "must be auto, cpu, wall or cost, got 'sun'"),
        ("loader=workers", "2 loader workers"),
    ],
)
def test_what_contradicts_a_comparison_is_refused(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, "data=digits", override)


def test_the_clock_suits_the_accelerator(tmp_path):
    def clock(*overrides):
        return planned(tmp_path, *TWO, *overrides)[0].settings["clock"]

    assert clock() == "cpu"
    assert clock("trainer=gpu") == "wall"
    with pytest.raises(ValueError, match="must see all the work"):
        clock("trainer=gpu", "clock=cpu")


def test_figures_are_named_and_titled_by_their_budget(tmp_path):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("compare", configured(tmp_path, *TINY, "budget=10s"))
    assert heading(cfg) == "a title: 10 s of CPU time of one thread"
    assert heading(cfg, 0.3) == "a title: 3 s of CPU time of one thread"


def test_runs_side_by_side_are_not_timed_by_the_wall(tmp_path):
    planned(tmp_path, *TWO, "jobs=2")
    planned(tmp_path, *TWO, "clock=wall")
    with pytest.raises(ValueError, match=r"slow one another.*jobs=2.*jobs=1"):
        planned(tmp_path, *TWO, "clock=wall", "jobs=2")


def test_a_run_that_does_not_use_its_budget_has_failed(tmp_path, monkeypatch):
    (job,) = planned(tmp_path, *TINY, "methods=[uniform]", "seeds=[0]")
    job.settings["trainer"]["max_steps"] = 5
    assert "A run must use its budget, got one that ended at" in str(execute(job))
    assert not job.path.exists()


def test_after_an_interrupt_no_run_begins(monkeypatch):
    begun = []

    def run(job):
        begun.append(job)
        sleep(0.05)

    monkeypatch.setattr(jobs, "execute", run)
    monkeypatch.setattr(
        jobs, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1)
    )
    many = [Job("a", seed, 1.0, None, {}, Path()) for seed in range(20)]
    runs = jobs.executed(many, 2)
    with suppress(StopIteration):
        next(runs)
    runs.close()
    assert 1 <= len(begun) < 10


def test_a_worker_that_died_is_said_to_have_failed():
    lost = Future()
    lost.set_exception(BrokenProcessPool())
    assert "a process died" in _outcome(lost)


def test_a_comparison_leaves_everything_behind_and_is_resumed(tmp_path, capsys):
    assert compared(tmp_path, *TWO, "seeds=[0,1]") == 0
    shown = capsys.readouterr().out
    assert "a title: 0.3 s of CPU time of one thread" in shown
    runs = sorted(tmp_path.glob("*/seed*.json"))
    assert len(runs) == 4
    told = {path: json.loads(path.read_text()) for path in runs}
    for run in told.values():
        first, last = run["points"][0], run["points"][-1]
        assert 0.3 <= last["spent"] < 0.6
        assert last["train_loss"] < first["train_loss"]
        assert last["steps"] > 0
    for seed in (0, 1):  # the same start for every method
        starts = {run["points"][0]["train_loss"] for run in told.values()
                  if run["seed"] == seed}  # fmt: skip
        assert len(starts) == 1
    assert "| uniform |" in (tmp_path / "table.md").read_text()
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 5
    with Image.open(tmp_path / "compare.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20

    before = {path: path.stat().st_mtime_ns for path in runs}
    assert compared(tmp_path, *TWO, "seeds=[0,1]") == 0
    assert {path: path.stat().st_mtime_ns for path in runs} == before
    with pytest.raises(ValueError, match=r"made with other\s+budget\. Choose another"):
        compared(tmp_path, *TWO, "seeds=[0,1]", "budget=0.4")


def test_a_method_that_fails_costs_the_others_nothing(tmp_path, capsys):
    # More to draw than there is to draw from: trim refuses, uniform does not care.
    status = compared(tmp_path, *TWO, "seeds=[0]", "++method.batch_size=500")
    assert status == 1
    assert (tmp_path / "uniform" / "seed0.json").is_file()
    assert "Traceback" in (tmp_path / "trim" / "seed0.error.txt").read_text()
    assert "trim failed: " in capsys.readouterr().out
    assert "trim failed: " in (tmp_path / "table.md").read_text()


def test_the_program_makes_runs_in_processes_of_their_own(tmp_path):
    arguments = [*TINY, "methods=[trim]", "seeds=[0]", "jobs=2", "out=here"]
    arguments += ["baseline=trim"]
    done = run_program("compare.py", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "mlp on digits" in done.stdout
    assert (tmp_path / "here" / "trim" / "seed0.json").is_file()


# Table and figure


def point(loss, error, spent, steps):
    return Point(loss, loss, error, loss, error, {"test": error}, spent, steps)


def result(arm, seed, loss, error=0.25, open_share=nan, share=1.0, rate=None):
    points = [point(2.3, 0.9, 0.0, 0), point(loss, error, 8.0, 100)]
    return Result(arm, seed, share, rate, open_share, points)


RESULTS = [
    *(result("uniform", 0, 0.2), result("uniform", 1, 0.4)),
    *(result("better", 0, 0.1, 0.125, 0.5), result("better", 1, 0.1, 0.125, 0.5)),
    *(result("lost", 0, nan, 0.9), result("lost", 1, 0.5)),
]


def test_rows_are_sorted_by_loss_and_compare_paired_seeds():
    rows = {row.arm: row for row in summarise(RESULTS, {("broken", 1.0): "why"})}
    assert list(rows) == ["better", "uniform", "broken", "lost"]
    assert rows["better"].cells == {
        "arm": "better",
        "seeds": "2",
        "steps": "100",
        "training loss": "0.1 ± 0",
        "/ uniform": "0.354 [0.00432, 28.9]",
        "test error [%]": "12.50 ± 0",
        "test - uniform": "-12.50 [-12.50, -12.50]",
        "open": "50%",
    }
    assert list(rows["uniform"].cells.values())[3:5] == ["0.3 ± 0.1", "1"]
    assert list(rows["lost"].cells.values())[3:5] == ["diverged", "-"]
    assert rows["broken"].error == "why"


def test_one_seed_has_no_spread_and_without_a_baseline_there_is_no_ratio():
    (row,) = summarise([result("trim", 0, 0.1)], {})
    plain = ["trim", "1", "100", "0.1", "-", "25.00", "-", "-"]
    assert list(row.cells.values()) == plain
    one, _ = summarise([result("trim", 0, 0.1), result("b", 0, 0.2)], {}, "b")
    assert one.cells["/ b"] == "0.5"
    two = [result("trim", 0, 0.1), result("trim", 1, 0.1), result("b", 0, 0.2)]
    assert summarise(two, {}, "b")[0].cells["seeds"] == "2 (1 paired)"


def curved(arm, seed, *losses, length=8):
    """A run whose last loss stays to its end, after eight measurements or so."""
    losses = [*losses, *[losses[-1]] * (length + 1 - len(losses))]
    points = [point(loss, 0.25, 2.0 * i, i) for i, loss in enumerate(losses)]
    return Result(arm, seed, 1.0, None, nan, points)


BASE = [curved("uniform", seed, 1.0, 0.5, 0.1) for seed in range(4)]  # there at 4.0


def reached(*curves, base=BASE):
    runs = [curved("b", seed, *losses) for seed, losses in enumerate(curves)]
    return time_to_target(runs, base)


def test_a_target_is_reached_where_the_curve_first_crosses_it():
    assert reached((1.0, 0.1, 0.3)).share == pytest.approx(2 / 4)  # the first time
    assert reached((1.0, 0.01)).share == pytest.approx(1 / 4)  # half, by logarithms
    assert reached((0.1, 1.0)).share == 0
    assert reached((1.0, 0.0)).share == reached((inf, 0.1)).share == 2 / 4
    assert reached((nan, 0.1)).share == 2 / 4
    assert reached((1.0, nan, 0.2)) == (inf, 0, 1)


def test_a_target_is_a_median_of_seeds_that_says_how_many_had_it():
    early, late, never = (1.0, 0.01), (1.0, 1.0, 0.01), (1.0, 1.0)
    assert reached(early, late, late) == (pytest.approx(3 / 4), 3, 3)
    assert reached(early, late, never) == (pytest.approx(3 / 4), 2, 3)
    assert reached(early, late, never, never) == (inf, 2, 4)


def test_the_baseline_has_its_own_loss_when_its_curve_first_does():
    # The last measurement is of all examples, those on the way of a few.
    base = [curved("uniform", 0, 1.0, 0.05, 0.1)]
    assert time_to_target(base, base) == (1, 1, 1)
    crossed = 2 * log(10) / log(20)
    assert reached((1.0, 0.1), base=base).share == pytest.approx(2 / crossed)


@pytest.mark.parametrize("end", [nan, inf, 1.5])
def test_there_is_no_target_where_the_baseline_got_nowhere(end):
    assert reached((1.0, 0.1), base=[curved("uniform", 0, 1.0, end)]) is None


def test_there_is_no_target_of_no_pair_or_of_few_measurements():
    assert time_to_target([curved("b", 7, 1.0, 0.01)], BASE) is None
    assert reached((1.0, 0.1), base=[curved("uniform", 0, 1.0, 0.1, length=7)]) is None
    short = [curved("b", 0, 1.0, 0.1, length=7)]
    assert time_to_target(short, BASE) is None


def test_a_table_has_a_column_of_targets_where_there_are_any():
    runs = [*BASE, *(curved("trim", seed, 1.0, 0.01) for seed in range(3))]
    runs.append(curved("trim", 3, 1.0))
    rows = {row.arm: row for row in summarise(runs, {})}
    assert rows["trim"].cells["uniform's loss at"] == "25% (3 of 4)"
    assert rows["uniform"].cells["uniform's loss at"] == "100%"
    assert rows["trim"].reached["target"] == pytest.approx(1 / 4)
    assert "uniform's loss at: " in note([*rows.values()], "uniform")
    few = summarise(RESULTS, {})
    assert not any("uniform's loss at" in row.cells for row in few)
    assert "loss at" not in note(few, "uniform")


def test_the_table_is_printed_and_written(tmp_path, capsys):
    rows = summarise(RESULTS, {("broken", 1.0): "a [bold] claim"})
    print_rows(rows, "title [x]", "a note")
    write_markdown(rows, "title [x]", "a note", tmp_path / "table.md")
    write_runs(RESULTS, tmp_path / "runs.csv")
    for text in (capsys.readouterr().out, (tmp_path / "table.md").read_text()):
        for wanted in ("title [x]", "0.354 [0.00432, 28.9]", "failed: a [bold] claim"):
            assert wanted in text
        assert "a note" in text
    with (tmp_path / "runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(RESULTS)
    assert float(lines[0]["train_loss"]) == 0.2
    header = (tmp_path / "runs.csv").read_text().splitlines()[0].split(",")
    assert len(header) == len(set(header))
    assert float(lines[0]["test_error"]) == 0.25


def test_names_of_arms_keep_their_place_among_many_columns(capsys):
    name, parts = "stale_selective_backprop", {"common": 0.125, "rare": 0.25}
    runs = [
        Result(
            arm, seed, 1.0, 0.05, 0.5, [replace(point(loss, 0.1, 8.0, 9), errors=parts)]
        )
        for arm, loss in ((name, 0.123), ("uniform", 0.321))
        for seed in (0, 1)
    ]
    print_rows(summarise(runs, {}, grid=[0.05, 0.1]), "title", "a note")
    assert name in capsys.readouterr().out


def test_many_methods_look_different_and_uniform_is_black():
    names = ["uniform", *(f"m{i:02}" for i in range(20))]
    looks = [style(name, names) for name in names]
    assert looks[0]["color"] == "black"
    assert all(one != other for one, other in itertools.combinations(looks, 2))
    assert style("m03", names[::-1]) == style("m03", names)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.3), (1.0, 3.0), (0.05, 4.0)])
def test_an_axis_has_numbers_to_read_it_by(low, high):
    from matplotlib.figure import Figure

    picture = Figure()
    axis = picture.subplots()
    axis.plot([0, 1], [low, high])
    dress(axis)
    picture.draw_without_rendering()
    bottom, top = axis.get_ylim()
    shown = [tick for tick in axis.get_yticks() if bottom <= tick <= top]
    assert 3 <= len(shown) <= 10


def test_curves_are_averaged_at_the_same_times():
    times = torch.linspace(0, 8, 3).double().numpy()
    values = on_grid(RESULTS[:2], "test_error", times)
    assert values == pytest.approx(torch.tensor([[0.9, 0.575, 0.25]] * 2).numpy())


def test_a_curve_begins_with_what_was_said_first_and_ends_where_it_diverged():
    run = result("late", 0, 0.1)
    first, last = run.points
    middle = replace(last, spent=4.0, tau=1.5)
    run = replace(run, points=[first, middle, replace(last, tau=nan, train_loss=nan)])
    times = torch.linspace(0, 8, 3).double().numpy()
    nothing = [False, False, True]
    for field, begins in (("tau", 1.5), ("train_loss", first.train_loss)):
        (values,) = on_grid([run], field, times)
        assert values[0] == begins
        assert [isnan(value) for value in values] == nothing
    silent = replace(run, points=[replace(point, tau=nan) for point in run.points])
    assert all(map(isnan, on_grid([silent], "tau", times)[0]))


def test_a_figure_shows_a_tau_that_was_seen_once_at_the_end(tmp_path):
    runs = [result("late", seed, 0.1) for seed in (0, 1)]
    for run, spent in zip(runs, (8.0, 8.1), strict=True):
        run.points[0] = replace(run.points[0], tau=nan)
        run.points[-1] = replace(run.points[-1], tau=1.2, spent=spent)
    draw(runs, ["late"], "title", tmp_path / "late.png")
    assert (tmp_path / "late.png").is_file()


def test_the_figure_survives_what_diverged_and_what_is_without_error(tmp_path):
    perfect = [result("perfect", 0, 1e-3, error=0.0)]
    order = ["perfect", "better", "uniform", "lost", "broken"]
    draw([*RESULTS, *perfect], order, "title", tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 20_000


def test_a_result_is_read_as_it_was_written(tmp_path):
    job = Job("lost", 1, 1.0, None, {"budget": 3.0}, tmp_path / "seed1.json")
    assert read(job) is None
    write(RESULTS[2], Job("better", 0, 1.0, None, job.settings, job.path))
    back = read(job)
    assert back.points == RESULTS[2].points
    assert back.open_share == 0.5
    write(RESULTS[4], job)
    assert read(job).end.train_loss != read(job).end.train_loss  # NaN
