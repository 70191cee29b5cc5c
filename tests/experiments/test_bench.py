"""The benchmarks measure what they say, on a small scale."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from lightning_is.experiments import bench
from lightning_is.experiments.bench import cuda, loops, suite
from lightning_is.experiments.bench.networks import NETWORKS
from lightning_is.experiments.bench.table import print_table, verdict_on
from lightning_is.experiments.bench.turns import Turn, interleaved, spread
from lightning_is.experiments.docs.results import flat, read
from lightning_is.sampling import ImportancePlan

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench.py"
PROMISED = {
    "overhead": {"closed / lightning", "open / open loop", "lightning / loop"},
    "closed": {"shut / plain in all", "default / plain in all", "default / plain loss"},
    "limit": {"limit", "trim / uniform", "gain / limit", "b"},
    "stages": {"B", "pick us", "all us", "ns an example"},
    "share": {"stages / open step"},
    "history": {"N", "pass us a batch", "kept bytes an example"},
    "passes": {"source", "N", "first draw ms", "pass per batch ms"},
    "variance": {"variance / multinomial", "predicted"},
    "memory": {"run", "before MB", "peak adds MB", "beyond plain / inputs"},
    "cuda": {"open / ideal", "host waits", "score(B) ms"},
}
# Each part is a process or more that imports torch: one of four alike is enough.
FEWER = {"memory": ["default", "open steps", "history of 10 million"]}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def numbers(rows):
    return [v for row in rows for v in row.values() if isinstance(v, float)]


@pytest.mark.parametrize("name", [n for n in bench.BENCHMARKS if n != "cuda"])
def test_every_benchmark_fills_its_table(name, capsys, tmp_path, monkeypatch):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    only = FEWER.get(name, [])
    reports = bench.measure([name], bench.QUICK, only, publish_as="mine")
    rows = reports[name]["rows"]
    assert PROMISED[name] <= set(rows[0])
    assert all(set(row) == set(rows[0]) for row in rows)
    # What a step adds can come out below 0 where it adds next to nothing.
    assert all(math.isfinite(value) for value in numbers(rows))
    assert bench.BENCHMARKS[name].title.split()[0] in capsys.readouterr().out
    json.dumps(reports)
    found = read(tmp_path / "docs" / "results" / "mine.json")
    assert len(found.values) == len(found.rows) == len(rows)
    published = [v for v in flat(found.values).values() if isinstance(v, float)]
    assert published == numbers(rows)


def test_benchmarks_are_published_one_by_one(capsys):
    with pytest.raises(ValueError, match=r"One benchmark .* under one name, got sev"):
        bench.measure(["stages", "share"], bench.QUICK, publish_as="mine")
    with pytest.raises(ValueError, match=r"`publish` must be a name"):
        bench.measure(["stages"], bench.QUICK, publish_as="My Name")
    assert not capsys.readouterr().out


def test_every_benchmark_promises_columns():
    assert set(PROMISED) == set(bench.BENCHMARKS)
    for name, benchmark in bench.BENCHMARKS.items():
        assert set(benchmark.bounds) <= PROMISED[name]


def test_the_variance_is_what_must_be_shown_and_what_is_predicted():
    rows = suite.variance("lognormal", bench.QUICK)
    found = {row["scheme"]: row for row in rows}
    assert found["systematic"]["variance / multinomial"] == pytest.approx(
        0.31, abs=0.02
    )
    assert found["a uniform batch"]["variance / multinomial"] > 1.8
    for row in rows:
        assert row["variance / multinomial"] == pytest.approx(row["predicted"], rel=0.1)


def test_without_a_gpu_it_is_said_what_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reports = bench.measure(["cuda"], bench.QUICK)
    assert "WideResNet-28-2" in reports["cuda"]["left out"]
    assert "left out WideResNet-28-2" in capsys.readouterr().out


def test_the_gpus_part_runs_anywhere_but_for_its_numbers():
    effort = bench.Effort(rounds=1, steps=2, warm_up=1)
    (row,) = cuda.cuda("wrn10_1", effort, device="cpu")
    assert PROMISED["cuda"] <= set(row)
    assert row["open ms"] > 0


def test_the_script_writes_what_it_found(tmp_path, monkeypatch, capsys):
    out = tmp_path / "bench.json"
    words = ["stages", "--quick", "--only", "128", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    found = json.loads(out.read_text())
    assert [row["B"] for row in found["stages"]["rows"]] == [128]
    assert found["stages"]["missed"] == []
    assert "torch" in found


def test_what_is_missed_is_named_and_marked(capsys):
    rows = [{"network": name, "ratio": 1.5} for name in ("mlp", "tiny_mlp")]
    bound = suite.Bound(most=1.05, only=("mlp",))
    slow = suite.Benchmark(lambda part, effort: rows, ("a",), "t", {"ratio": bound})
    assert [verdict_on(row, "ratio", slow) for row in rows] == [False, None]
    print_table(slow, rows)
    shown = capsys.readouterr().out
    assert "ratio (≤ 1.05)" in shown
    assert shown.count("NO") == 1


class TestTurns:
    def test_programs_take_turns_in_alternating_order(self):
        order = []

        def arm(name):
            def run(turn: Turn) -> None:
                for _ in range(3):
                    turn.begin()
                    order.append(name)
                    turn.end()

            return run

        times = interleaved({name: arm(name) for name in "ab"}, warm_up=1)
        assert "".join(order) == "baabba"
        assert [len(seconds) for seconds in times.values()] == [2, 2]

    def test_time_between_turns_does_not_count(self):
        def burn():
            torch.randn(300, 300) @ torch.randn(300, 300)

        def run(turn: Turn) -> None:
            for _ in range(3):
                turn.begin()
                turn.end()
                for _ in range(20):
                    burn()

        (seconds,) = interleaved({"idle": run}).values()
        assert max(seconds) < 1e-3

    def test_an_error_comes_out(self):
        def fails(turn: Turn) -> None:
            raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            interleaved({"fails": fails})

    def test_the_spread_is_that_of_the_middle_half(self):
        assert spread("x", [float(i) for i in range(101)]) == {
            "x": 50.0,
            "x (low)": 24.5,
            "x (high)": 75.5,
        }


class TestLoops:
    def test_the_draw_by_hand_is_that_of_the_library(self):
        scores = torch.rand(24) ** 4
        counts, plan = torch.zeros(24).double(), ImportancePlan()
        expected = plan.expected_counts(scores, 8)
        for _ in range(2000):
            drawn, weights = loops.draw(scores, 8)
            assert len(set(drawn.tolist())) == 8
            torch.testing.assert_close(weights, (8 / (24 * expected[drawn])).float())
            counts[drawn] += 1
        error = (expected * (1 - expected) / 2000).clamp(min=1e-6).sqrt()
        assert ((counts / 2000 - expected) / error).abs().max() < 4.5

    def test_the_scores_by_hand_are_gradient_norms(self):
        mine = loops.Loop(NETWORKS["tiny_mlp"], 32)
        data = NETWORKS["tiny_mlp"].examples(16)
        logits = mine.net(data.x).detach().requires_grad_()
        functional.cross_entropy(logits, data.y, reduction="sum").backward()
        torch.testing.assert_close(mine.score(data.x, data.y), logits.grad.norm(dim=1))

    @pytest.mark.parametrize("name", NETWORKS)
    def test_every_network_learns_a_drawn_batch(self, name):
        mine, data = loops.Loop(NETWORKS[name], 8), NETWORKS[name].examples(32)
        before = [p.detach().clone() for p in mine.net.parameters()]
        mine.open_step(data.x, data.y)
        after = list(mine.net.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert mine.net.training

    def test_statistics_are_those_of_the_whole_batch(self):
        mine = loops.Loop(NETWORKS["wide_resnet"], 8)
        data = NETWORKS["wide_resnet"].examples(32)
        mine.open_step(data.x, data.y)
        norm = mine.net.norm
        assert norm.num_batches_tracked == 1
        assert norm.track_running_stats
