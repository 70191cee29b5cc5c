"""The wrapping data module is the wrapped one, but for the training loader."""

import copy
import json
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_is import OversamplingDataModule
from lightning_is import datamodule as datamodule_module
from lightning_is.data import PresampleBatchSampler

N, SMALL, LARGE = 24, 2, 6


def numbers(n: int = N) -> Dataset:
    return TensorDataset(torch.arange(float(n)))


def loader(n: int = N, **options: Any) -> DataLoader:
    return DataLoader(numbers(n), **({"batch_size": SMALL} | options))


class Bare(L.LightningDataModule):
    """Defines nothing but what it must."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def train_dataloader(self) -> DataLoader:
        return loader(**self.options)


class Full(Bare):
    """Defines every hook, and notes who called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def _note(self, *call: Any) -> str:
        self.calls.append(call)
        return f"answer of {call[0]}"

    def prepare_data(self) -> str:
        return self._note("prepare_data")

    def setup(self, stage: str) -> str:
        return self._note("setup", stage)

    def teardown(self, stage: str) -> str:
        return self._note("teardown", stage)

    def on_exception(self, exception: BaseException) -> str:
        return self._note("on_exception", exception)

    def val_dataloader(self) -> str:
        return self._note("val_dataloader")

    def test_dataloader(self) -> str:
        return self._note("test_dataloader")

    def predict_dataloader(self) -> str:
        return self._note("predict_dataloader")

    def state_dict(self) -> str:
        return self._note("state_dict")

    def load_state_dict(self, state: Any) -> str:
        return self._note("load_state_dict", state)

    def on_before_batch_transfer(self, batch: Any, index: int) -> str:
        return self._note("on_before_batch_transfer", batch, index)

    def transfer_batch_to_device(self, batch: Any, device: Any, index: int) -> str:
        return self._note("transfer_batch_to_device", batch, device, index)

    def on_after_batch_transfer(self, batch: Any, index: int) -> str:
        return self._note("on_after_batch_transfer", batch, index)


CALLS: dict[str, tuple[Any, ...]] = {
    "prepare_data": (),
    "setup": ("fit",),
    "teardown": ("fit",),
    "on_exception": (ZeroDivisionError(),),
    "val_dataloader": (),
    "test_dataloader": (),
    "predict_dataloader": (),
    "state_dict": (),
    "load_state_dict": ({"a": 1},),
    "on_before_batch_transfer": ("batch", 0),
    "transfer_batch_to_device": ("batch", "cpu", 0),
    "on_after_batch_transfer": ("batch", 0),
}


def test_every_hook_of_a_data_module_is_known_here():
    """A hook that Lightning gains must be forwarded as well."""
    hooks = {
        name
        for base in L.LightningDataModule.__mro__
        if base.__module__.startswith("lightning.pytorch")
        and base.__name__ in {"LightningDataModule", "DataHooks"}
        for name, value in vars(base).items()
        if callable(value) and not name.startswith("_")
    }
    assert hooks == CALLS.keys() | {"train_dataloader"}
    assert CALLS.keys() == set(datamodule_module._HOOKS)


@pytest.mark.parametrize("hook", CALLS)
def test_a_hook_that_is_defined_is_forwarded(hook: str):
    inner = Full()
    outer = OversamplingDataModule(inner, LARGE)
    assert is_overridden(hook, outer)
    assert getattr(outer, hook)(*CALLS[hook]) == f"answer of {hook}"
    assert inner.calls == [(hook, *CALLS[hook])]


@pytest.mark.parametrize("hook", CALLS)
@pytest.mark.parametrize("wrapped", [Bare, loader], ids=["data module", "loader"])
def test_a_hook_that_is_not_defined_stays_undefined(
    hook: str, wrapped: Callable[[], Any]
):
    """Or Lightning would call ours in place of the module's own."""
    assert not is_overridden(hook, OversamplingDataModule(wrapped(), LARGE))


def test_only_the_hooks_that_are_defined_are_forwarded():
    class Partial(Bare):
        def on_after_batch_transfer(self, batch: Any, index: int) -> Any:
            return batch

    outer = OversamplingDataModule(Partial(), LARGE)
    assert [name for name in CALLS if is_overridden(name, outer)] == [
        "on_after_batch_transfer"
    ]


def test_the_trainer_is_that_of_the_wrapped_module_as_well():
    inner = Bare()
    outer = OversamplingDataModule(inner, LARGE)
    assert outer.trainer is None
    outer.trainer = trainer = object()
    assert inner.trainer is outer.trainer is trainer


def test_a_loader_alone_is_given_no_trainer():
    wrapped = loader()
    outer = OversamplingDataModule(wrapped, LARGE)
    outer.trainer = object()
    assert not hasattr(wrapped, "trainer")


@pytest.mark.parametrize(
    "name",
    ["prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices"],
)
@pytest.mark.parametrize("value", [True, False])
def test_flags_that_lightning_reads_are_those_of_the_wrapped_module(
    name: str, value: bool
):
    inner = Bare()
    setattr(inner, name, value)
    assert getattr(OversamplingDataModule(inner, LARGE), name) is value


def test_the_loader_of_a_data_module_is_asked_for_each_time():
    inner = Bare()
    outer = OversamplingDataModule(inner, LARGE)
    assert len(outer.train_dataloader()) == N // SMALL
    inner.options = {"batch_size": 3}
    assert len(outer.train_dataloader()) == N // 3


@pytest.mark.parametrize("wrapped", [Bare, loader], ids=["data module", "loader"])
def test_batches_follow_the_gate_and_the_epoch_keeps_its_length(
    wrapped: Callable[[], Any],
):
    batches = OversamplingDataModule(wrapped(), LARGE).train_dataloader()
    assert isinstance(batches.batch_sampler, PresampleBatchSampler)
    assert len(batches) == N // SMALL
    assert [len(x) for (x,) in batches] == [SMALL] * (N // SMALL)
    batches.batch_sampler.is_open = True
    assert [len(x) for (x,) in batches] == [LARGE] * (N // SMALL)


def collate(examples: list[tuple[Tensor]]) -> Tensor:
    return torch.stack([x for (x,) in examples])


def worker_init(worker: int) -> None:
    """Does nothing."""


SETTINGS: dict[str, dict[str, Any]] = {
    "collate_fn": {"collate_fn": collate},
    "pin_memory": {"pin_memory": True},
    "worker_init_fn": {"worker_init_fn": worker_init},
    "generator": {"generator": torch.Generator()},
    "num_workers": {"num_workers": 2},
    "persistent_workers": {"num_workers": 1, "persistent_workers": True},
    "prefetch_factor": {"num_workers": 1, "prefetch_factor": 5},
    "timeout": {"num_workers": 1, "timeout": 7},
    "in_order": {"num_workers": 1, "in_order": False},
    "multiprocessing_context": {
        "num_workers": 1,
        "multiprocessing_context": multiprocessing.get_context("spawn"),
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_settings_of_the_loader_are_kept(name: str):
    original = loader(**SETTINGS[name])
    kept = OversamplingDataModule(original, LARGE).train_dataloader()
    for setting, value in SETTINGS[name].items():
        assert getattr(kept, setting) is getattr(original, setting) is value
    assert kept.dataset is original.dataset


@pytest.mark.parametrize("drop_last", [True, False])
def test_the_batch_sampler_is_told_whether_the_rest_is_dropped(drop_last: bool):
    made = OversamplingDataModule(loader(drop_last=drop_last), LARGE)
    assert made.train_dataloader().batch_sampler.drop_last is drop_last


def test_the_sampler_of_the_loader_is_kept():
    sampler = WeightedRandomSampler([1.0] * N, 8)
    made = OversamplingDataModule(loader(sampler=sampler), LARGE).train_dataloader()
    assert made.batch_sampler.sampler is sampler
    assert len(made) == 8 // SMALL


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_shuffled_loader_stays_shuffled(shuffle: bool):
    made = OversamplingDataModule(loader(shuffle=shuffle), LARGE).train_dataloader()
    epochs = [list(chain(*(x.tolist() for (x,) in made))) for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(N))] * 2
    assert (epochs[0] != epochs[1]) is shuffle


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(N))


class Fancy(DataLoader):
    """A loader with ideas of its own."""


class OwnBatches(BatchSampler):
    """A batch sampler of the user's."""


class ListOfLoaders(L.LightningDataModule):
    def train_dataloader(self) -> list[DataLoader]:
        return [loader(), loader()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            ListOfLoaders,
            r"must be one torch\.utils\.data\.DataLoader, got a list\.",
            id="list of loaders",
        ),
        pytest.param(
            lambda: Fancy(numbers(), batch_size=SMALL),
            r"must be one torch\.utils\.data\.DataLoader, got a Fancy\.",
            id="subclass of DataLoader",
        ),
        pytest.param(
            lambda: DataLoader(Stream(), batch_size=SMALL),
            r"a dataset with indices, got an IterableDataset\. .*Callback alone",
            id="iterable dataset",
        ),
        pytest.param(
            lambda: DataLoader(
                numbers(),
                batch_sampler=OwnBatches(SequentialSampler(range(N)), SMALL, True),
            ),
            r"must batch by itself, got OwnBatches as .*`batch_size` and `sampler`",
            id="own batch sampler",
        ),
        pytest.param(
            lambda: loader(batch_size=None),
            r"must batch by itself, got NoneType as its batch sampler",
            id="no batching",
        ),
    ],
)
def test_a_loader_that_cannot_presample_is_refused(
    make: Callable[[], Any], message: str
):
    outer = OversamplingDataModule(make(), LARGE)
    with pytest.raises(TypeError, match=message):
        outer.train_dataloader()


@pytest.mark.parametrize(
    ("options", "presample_size", "message"),
    [
        pytest.param({"batch_size": 8}, 7, "at least the batch size, got 7", id="few"),
        pytest.param({}, N + 1, f"got {N} examples for .*={N + 1}", id="many"),
        pytest.param({"n": 0}, LARGE, "got 0 examples .*not empty", id="empty"),
    ],
)
def test_a_presample_size_out_of_range_is_refused_with_the_loader(
    options: dict[str, Any], presample_size: int, message: str
):
    outer = OversamplingDataModule(loader(**options), presample_size)
    with pytest.raises(ValueError, match=message):
        outer.train_dataloader()


def test_the_largest_presample_is_the_dataset():
    batches = OversamplingDataModule(loader(), N).train_dataloader()
    batches.batch_sampler.is_open = True
    assert {len(x) for (x,) in batches} == {N}


@pytest.mark.parametrize("size", [0, -3])
def test_a_presample_of_none_is_refused_at_once(size: int):
    message = rf"`presample_size` must be a whole number of at least 1, got {size}\."
    with pytest.raises(ValueError, match=message):
        OversamplingDataModule(loader(), size)


def test_something_else_is_refused_by_name():
    # Without the type checks of the tests, which would be first to say so.
    plain = OversamplingDataModule.__init__.__wrapped__
    outer = OversamplingDataModule.__new__(OversamplingDataModule)
    message = "a LightningDataModule or a DataLoader, got TensorDataset"
    with pytest.raises(TypeError, match=message):
        plain(outer, numbers(), LARGE)


def test_the_wrapped_loader_itself_is_left_unchanged():
    original = loader()
    OversamplingDataModule(original, LARGE).train_dataloader()
    assert type(original.batch_sampler) is BatchSampler
    assert [len(x) for (x,) in original] == [SMALL] * (N // SMALL)


def test_a_copy_forwards_to_its_own_copy():
    inner = Full()
    outer = OversamplingDataModule(inner, LARGE)
    for twin in (copy.deepcopy(outer), pickle.loads(pickle.dumps(outer))):  # noqa: S301
        assert twin.setup("fit") == "answer of setup"
        assert twin.datamodule.calls == [("setup", "fit")]
        assert twin.datamodule is not inner
    assert inner.calls == []


# In a fit.


class Recorder(L.LightningModule):
    """Notes the examples of each step; opens the gate as the training starts."""

    def __init__(self, folder: Path | None = None, *, opens: bool = True) -> None:
        super().__init__()
        self.layer, self.folder, self.opens = nn.Linear(1, 1), folder, opens
        self.seen: list[list[int]] = []

    def sampler(self) -> PresampleBatchSampler:
        return self.trainer.train_dataloader.batch_sampler

    def on_train_start(self) -> None:
        self.sampler().is_open = self.opens

    def training_step(self, batch: list[Tensor]) -> Tensor:
        (x,) = batch
        self.seen.append([int(value) for value in x])
        return self.layer(x.view(-1, 1) / N).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def on_train_end(self) -> None:
        if self.folder is not None:
            inner = self.sampler().sampler
            report = {
                "seen": self.seen,
                "presample_size": self.sampler().presample_size,
                "sampler": type(inner).__name__,
                "distributed": isinstance(inner, DistributedSampler),
            }
            path = self.folder / f"{self.global_rank}.json"
            path.write_text(json.dumps(report))


def test_a_fit_without_sampling_sees_each_example_once_an_epoch(kit):
    module = Recorder(opens=False)
    data = OversamplingDataModule(loader(shuffle=True), LARGE)
    kit.trainer(max_epochs=2).fit(module, datamodule=data)
    steps = N // SMALL
    for epoch in (module.seen[:steps], module.seen[steps:]):
        assert sorted(chain(*epoch)) == list(range(N))


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_the_modules_own_transfer_hook_works_where_the_data_has_none(kit):
    class Doubling(Recorder):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [100 + x for x in batch]

    module = Doubling()
    data = OversamplingDataModule(loader(), LARGE)
    kit.trainer(max_epochs=1, limit_train_batches=1).fit(module, datamodule=data)
    assert module.seen == [list(range(100, 100 + LARGE))]


def test_the_transfer_hook_of_the_data_module_works_in_a_fit(kit):
    class Shifting(Bare):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert self.trainer.training
            return [x + 50 for x in batch]

    module = Recorder()
    data = OversamplingDataModule(Shifting(), LARGE)
    kit.trainer(max_epochs=1, limit_train_batches=1).fit(module, datamodule=data)
    assert module.seen == [list(range(50, 50 + LARGE))]


def test_validation_runs_on_the_loader_of_the_wrapped_module(kit):
    class WithValidation(Bare):
        def setup(self, stage: str) -> None:
            self.held_out = Subset(numbers(), range(5))

        def val_dataloader(self) -> DataLoader:
            return DataLoader(self.held_out, batch_size=5)

    sizes: list[int] = []

    class Validating(Recorder):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            sizes.append(len(batch[0]))

    data = OversamplingDataModule(WithValidation(), LARGE)
    trainer = kit.trainer(max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(Validating(), datamodule=data)
    assert sizes == [5]


def test_the_state_of_the_wrapped_module_is_saved_and_restored(kit, tmp_path: Path):
    class Stateful(Bare):
        def __init__(self) -> None:
            super().__init__()
            self.position = 0

        def state_dict(self) -> dict[str, int]:
            return {"position": self.position}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.position = state["position"]

    first, second = Stateful(), Stateful()
    first.position = 41
    trainer = kit.trainer(max_epochs=1)
    trainer.fit(Recorder(), datamodule=OversamplingDataModule(first, LARGE))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kit.trainer(max_epochs=2).fit(
        Recorder(),
        datamodule=OversamplingDataModule(second, LARGE),
        ckpt_path=tmp_path / "last.ckpt",
        weights_only=True,
    )
    assert second.position == 41


def test_worker_processes_that_persist_follow_the_gate_late(kit):
    """Those batches that workers have prefetched are of the old size."""
    workers, ahead = 2, 2

    class Opening(Recorder):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.current_epoch == 1 and batch_idx == 1:
                self.sampler().is_open = True

    module = Opening(opens=False)
    data = loader(
        shuffle=True,
        num_workers=workers,
        prefetch_factor=ahead,
        persistent_workers=True,
    )
    kit.trainer(max_epochs=3).fit(
        module, datamodule=OversamplingDataModule(data, LARGE)
    )
    steps = N // SMALL
    sizes = [len(batch) for batch in module.seen]
    assert sizes[:steps] == [SMALL] * steps
    assert sizes[2 * steps :] == [LARGE] * steps
    second = sizes[steps : 2 * steps]
    late = second.index(LARGE) - 2
    assert second == [SMALL] * (2 + late) + [LARGE] * (steps - 2 - late)
    assert 1 <= late <= workers * ahead + 1
    assert Counter(chain(*module.seen[2 * steps :])) == dict.fromkeys(range(N), 3)


@pytest.mark.parametrize("wrapped", [Bare, loader], ids=["data module", "loader"])
def test_two_processes_share_out_the_presamples(
    wrapped: Callable[..., Any], kit, tmp_path: Path
):
    """Lightning rebuilds the loader around a distributed sampler: B must survive."""
    data = OversamplingDataModule(wrapped(shuffle=True), LARGE)
    trainer = kit.trainer(strategy="ddp_fork", devices=2, max_epochs=2)
    trainer.fit(Recorder(tmp_path), datamodule=data)

    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    steps = N // 2 // SMALL
    passes = []
    for report in reports:
        assert report["distributed"], report["sampler"]
        assert report["presample_size"] == LARGE
        assert [len(batch) for batch in report["seen"]] == [LARGE] * steps * 2
        stream = list(chain(*report["seen"]))
        share = N // 2
        passes.append([stream[i : i + share] for i in range(0, len(stream), share)])
    assert len(passes[0]) == len(passes[1]) == 6
    for mine, yours in zip(*passes, strict=True):
        assert sorted(mine + yours) == list(range(N))
    assert len({tuple(part) for part in passes[0]}) == 6  # reshuffled each pass
