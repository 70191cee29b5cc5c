"""The benchmarks measure what they say, on a small scale."""

import time

import pytest
import torch

from lightning_is.experiments import bench
from lightning_is.experiments.bench.equal_time import CpuBudget


def test_the_learning_rate_falls_to_zero_as_the_time_runs_out(kit):
    rates = []

    class Watched(kit.Classifier):
        def training_step(self, batch, batch_idx):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

    begin = time.process_time()
    trainer = kit.trainer(CpuBudget(seconds=0.5, rate=0.4), max_epochs=-1)
    trainer.fit(Watched(kit.mlp()), kit.loader())
    assert 0.4 <= time.process_time() - begin < 10
    assert rates == sorted(rates, reverse=True)
    assert 0.3 < rates[0] <= 0.4
    assert rates[-1] < 0.05


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_benchmarks_report_ratios_of_paired_runs(real_data, one_thread):
    path = real_data("mnist")
    shut = bench.closed(path, rounds=1, steps=14)
    assert 0.5 < shut["closed / plain"] < 2
    best = bench.limit(path, rounds=1, steps=14)
    assert best["gain / limit"] == pytest.approx(best["gain"] / best["limit"])
    assert 0.1 < best["forward share"] < 1
    arms = bench.equal_time(path, seeds=1, seconds=1.0)
    assert [run["arm"] for run in arms["runs"]] == ["uniform", "trim"]
    assert all(run["steps"] > 0 and 0 < run["loss"] < 3 for run in arms["runs"])


def test_sources_are_timed_by_the_size_of_the_dataset(one_thread):
    found = bench.passes([200, 400], steps=3)
    assert {"shuffled", "biased", "prioritized"} <= set(found)
    for times in found.values():
        assert all(
            time >= 0 for size in ("200", "400") for time in times[size].values()
        )
