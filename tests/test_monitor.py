"""Numbers reach the host once each; a stopwatch reads the clock."""

import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import host, monitor
from lightning_is.monitor import Readback, Stopwatch, Timekeeper

CPU = torch.device("cpu")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_values_arrive_once(device: str):
    readback = Readback()
    assert readback.pop() is None
    readback.push(torch.tensor([1.5, -2.0], device=device))
    assert readback.pop().tolist() == [1.5, -2.0]
    assert readback.pop() is None


@pytest.mark.parametrize("device", DEVICES)
def test_later_values_replace_those_nobody_read(device: str):
    readback = Readback()
    readback.push(torch.tensor([1.0, 2.0], device=device))
    readback.push(torch.tensor([3.0], device=device))
    assert readback.pop().tolist() == [3.0]
    assert readback.pop() is None


def test_values_on_the_cpu_replace_those_of_another_device():
    readback = Readback()
    readback._arrived = object()  # what would be waited for
    readback.push(torch.tensor([4.0]))
    assert readback.pop().tolist() == [4.0]


def test_a_readback_keeps_no_graph():
    readback = Readback()
    readback.push(torch.ones(2, requires_grad=True) * 2)
    assert not readback._pending.requires_grad
    assert readback.pop().tolist() == [2.0, 2.0]


def test_a_stopwatch_measures_seconds(monkeypatch: pytest.MonkeyPatch):
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    watch = Stopwatch(CPU)
    start, end = watch.mark(), watch.mark()
    assert watch.seconds(start, end) == 2.5


def test_a_stopwatch_agrees_with_the_clock():
    watch = Stopwatch(CPU)
    before, start = time.perf_counter(), watch.mark()
    time.sleep(0.01)
    end, after = watch.mark(), time.perf_counter()
    assert 0.01 <= watch.seconds(start, end) <= after - before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_stopwatch_measures_the_work_of_its_device():
    watch = Stopwatch(torch.device("cuda"))
    work = torch.ones(2048, 2048, device="cuda")
    start = watch.mark()
    for _ in range(20):
        work = work @ work / 2048
    end = watch.mark()
    assert 0 < watch.seconds(start, end) < 60


class Ticking:
    """A clock that is told what time it is."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize("parts", [1, 4])
def test_steps_that_share_a_presample_share_the_time_it_took(monkeypatch, parts):
    clock = Ticking()
    monkeypatch.setattr(monitor, "time", clock)
    times = Timekeeper(Stopwatch(CPU))
    times.leave()
    for _ in range(3):
        clock.now += 2.0  # loading
        begun = times.arrive()
        clock.now += 4.0  # scoring
        scored = begun, clock.now
        clock.now += 1.0  # the step
        times.finish((64, 8), scored, parts)
        times.leave()
    found = times.collect()
    assert (found.loaded, found.trained) == (64 // parts, 8)
    assert (found.wait, found.score) == (2.0 / parts, 4.0 / parts)
    assert found.step == 1.0


def test_a_batch_that_comes_after_a_pause_is_not_timed(monkeypatch):
    clock = Ticking()
    monkeypatch.setattr(monitor, "time", clock)
    times = Timekeeper(Stopwatch(CPU))
    for _ in range(5):
        times.leave()
        times.pause()
        times.arrive()
        times.finish((8, 8), None)
    assert times.collect() is None


@pytest.mark.parametrize(("loading", "idle"), [(2.0, 0.0), (7.0, 2.0)])
def test_loading_behind_a_busy_device_is_no_waiting(monkeypatch, loading, idle):
    """The host hands a step of 5 seconds over in none, and loads the next batch."""
    clock, busy_until = Ticking(), 0.0
    monkeypatch.setattr(monitor, "time", clock)
    # A mark is the moment the device gets there.
    monkeypatch.setattr(Stopwatch, "mark", lambda self: max(clock.now, busy_until))
    watch = Stopwatch(CPU)
    times = Timekeeper(watch)
    found = None
    for _ in range(6):
        clock.now += loading
        busy_until = times.arrive() + 5.0
        times.finish((8, 8), None)
        times.leave()
        found = times.collect() or found
    assert (found.wait, found.step) == (idle, 5.0)


@pytest.mark.parametrize(
    ("device", "workers", "ahead"),
    [("cpu", 0, False), ("cpu", 1, True), ("cuda", 0, True)],
)
def test_batches_come_ahead_by_workers_or_behind_a_device(
    kit, monkeypatch, device, workers, ahead
):
    trainer = kit.trainer()
    loader = DataLoader(TensorDataset(torch.zeros(4, 1)), num_workers=workers)
    monkeypatch.setattr(type(trainer), "train_dataloader", loader)
    placed = torch.device(device)
    monkeypatch.setattr(type(trainer.strategy), "root_device", placed)
    assert host.loads_ahead(trainer) == ahead
