"""Bad input gets an error that states the rule, what was got, and the cure."""

import lightning as L
import pytest
import torch
from lightning.pytorch.demos import LightningLSTM
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.sampling import (
    AlwaysOpen,
    ConstantTime,
    ConstantVariance,
    NeverOpen,
)
from lightning_is.scoring import Loss


def refused(kit, message, *, module=None, data=None, error=ValueError, **settings):
    """Fit, and expect to be told off; nothing may be left behind."""
    module = kit.Classifier(kit.mlp()) if module is None else module
    settings = {"batch_size": 4, "gate": AlwaysOpen()} | settings
    trainer = kit.trainer(ImportanceSamplingCallback(**settings))
    with pytest.raises(error, match=message):
        trainer.fit(module, kit.loader() if data is None else data)
    assert {"batch_to_device", "training_step"}.isdisjoint(vars(trainer.strategy))
    assert not any(part._forward_hooks for part in module.modules())


def as_loader(batches):
    return DataLoader(batches, batch_size=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1, got 0"),
        ({"batch_size": -3}, "at least 1, got -3"),
        ({"batch_size": 4, "seed": -1}, "`seed` must be at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        ImportanceSamplingCallback(**settings)


@pytest.mark.parametrize("batch_size", [12, 40])
def test_a_batch_size_that_leaves_nothing_to_draw_from(kit, batch_size):
    refused(
        kit,
        f"smaller than the batches of the loader, got batch_size={batch_size} and "
        "batches of at most 12.*OversamplingDataModule",
        batch_size=batch_size,
    )


def test_a_gate_that_chooses_sizes_beside_a_size():
    with pytest.raises(ValueError, match=r"ConstantVariance chooses how many .* Drop"):
        ImportanceSamplingCallback(4, gate=ConstantVariance())


def test_a_gate_that_needs_presamples_without_them(kit):
    message = "ConstantTime must be able to ask for more .* OversamplingDataModule"
    refused(kit, message, gate=ConstantTime())


def test_a_loader_of_unannounced_batches_that_are_too_small(kit):
    batches = list(kit.loader())
    refused(kit, "batches of at most 12", data=as_loader(batches), batch_size=16)


def test_a_presample_smaller_than_the_batch(kit):
    data = OversamplingDataModule(kit.loader(batch_size=4), presample_size=3)
    refused(kit, "`presample_size` must be at least the batch size, got 3", data=data)


def test_a_loader_batch_size_unlike_the_callbacks(kit):
    data = OversamplingDataModule(kit.loader(batch_size=6), presample_size=12)
    refused(kit, "got 6 and `batch_size=4`. Make them equal", data=data)


def test_an_empty_dataset(kit):
    data = DataLoader(TensorDataset(torch.empty(0, 6)), batch_size=4)
    module = OversamplingDataModule(data, presample_size=12)
    refused(kit, "got 0 examples .* not empty", data=module)


class NoHeadOnOddSteps(L.LightningModule):
    """The head runs in the first step alone."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        hidden = self.net[1](self.net[0](batch[0]))
        z = self.net[2](hidden) if batch_idx == 0 else hidden[:, :3]
        return functional.cross_entropy(z, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_head_that_stops_firing(kit):
    refused(
        kit,
        "The head must run in every training step.*Pass `head=`",
        module=NoHeadOnOddSteps(kit.mlp()),
        error=RuntimeError,
    )


def test_a_head_that_never_fires(kit):
    module = kit.Classifier(kit.mlp())
    module.unused = nn.Linear(2, 2)
    refused(kit, "must run in every", module=module, head="unused", error=RuntimeError)


def test_a_head_that_is_no_part_of_the_module(kit):
    refused(
        kit, r"must name a part of Classifier .* got 'nett'.*net, net\.0", head="nett"
    )


def test_a_head_that_is_not_the_last_layer(kit):
    refused(
        kit,
        r"Every parameter must reach the loss through the head \(Linear\).*net\.2\.",
        head="net.0",
        error=RuntimeError,
    )


def test_a_temperature_after_the_head(kit):
    class Tempered(kit.Classifier):
        def __init__(self, net):
            super().__init__(net)
            self.temperature = nn.Parameter(torch.tensor(0.5))

        def training_step(self, batch, batch_idx):
            return functional.cross_entropy(
                self.net(batch[0]) * self.temperature, batch[1]
            )

    refused(
        kit,
        "escapes the weights, got temperature beside it",
        module=Tempered(kit.mlp()),
        error=RuntimeError,
    )


def test_a_loss_that_is_no_mean_of_example_losses(kit):
    class Scaled(kit.Classifier):
        def training_step(self, batch, batch_idx):
            return 0.5 * super().training_step(batch, batch_idx)

    for gate in (AlwaysOpen(), NeverOpen()):
        refused(
            kit,
            "mean over the examples .* got a mean of .* Pass `per_sample_loss=",
            module=Scaled(kit.mlp()),
            scorer=Loss(),
            gate=gate,
        )


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step")
def test_a_step_that_fetches_its_own_batches(kit):
    class Fetching(kit.Classifier):
        def training_step(self, dataloader_iter):
            return None

    refused(
        kit,
        r"`training_step\(dataloader_iter\)`.*Take `batch`",
        module=Fetching(kit.mlp()),
        error=RuntimeError,
    )


def test_hidden_state_carried_across_batches(kit):
    class NoDownload(LightningLSTM):
        def prepare_data(self):
            pass

    torch.manual_seed(0)
    tokens = torch.randint(20, (12, 6))
    data = DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=6)
    refused(
        kit,
        "tensors it kept from the last one: hidden. Reset that state",
        module=NoDownload(vocab_size=20),
        data=data,
        batch_size=2,
        error=RuntimeError,
    )


def test_a_tensor_merely_kept_is_no_hidden_state(kit):
    class Keeping(kit.Classifier):
        def training_step(self, batch, batch_idx):
            self.kept = batch[0]
            return super().training_step(batch, batch_idx)

    module = Keeping(kit.mlp())
    kit.trainer(ImportanceSamplingCallback(4, gate=AlwaysOpen())).fit(
        module, kit.loader()
    )
    assert len(module.kept) == 4


def test_scores_that_are_not_finite(kit):
    batches = [[x.clone(), y] for x, y in kit.loader()]
    batches[2][0][[1, 5]] = torch.nan
    data = as_loader(batches)
    for gate in (AlwaysOpen(), NeverOpen()):
        refused(kit, "got 2 of 12 .* positions {1: nan, 5: nan}", data=data, gate=gate)


def test_a_batch_whose_parts_disagree(kit):
    batches = [[x, y, torch.ones(3)] for x, y in kit.loader()]
    refused(kit, r"got leading sizes \[12, 12, 3\].*index_fn", data=as_loader(batches))


def test_a_batch_of_unknown_objects(kit):
    batches = [[x, object()] for x, _ in kit.loader()]
    refused(
        kit, "got a object in it.*index_fn", data=as_loader(batches), error=TypeError
    )


def test_an_index_fn_that_does_not_count(kit):
    refused(
        kit,
        r"`index_fn\(batch, None\)` must return the number of examples.*got a list",
        index_fn=lambda batch, indices: batch,
        error=TypeError,
    )


def test_a_network_that_is_not_batch_first(kit):
    class TimeFirst(kit.Classifier):
        def training_step(self, batch, batch_idx):
            z = self.net(batch[0])  # (n, 3)
            z = self.head(z.unsqueeze(0).expand(5, -1, -1))  # (5, n, 3)
            return functional.cross_entropy(z.mean(0), batch[1])

    module = TimeFirst(kit.mlp())
    module.head = nn.Linear(3, 3)
    refused(kit, r"examples along dimension 0, got shape \(5, 4, 3\)", module=module)


def test_a_residual_around_the_last_layer(kit):
    class Residual(kit.Classifier):
        def training_step(self, batch, batch_idx):
            z = self.net(batch[0])
            return functional.cross_entropy(z + self.last(z), batch[1])

    module = Residual(kit.mlp())
    module.last = nn.Linear(3, 3)
    refused(kit, "several that feed one another", module=module, error=RuntimeError)


def test_an_unsupported_strategy(kit):
    trainer = kit.trainer(
        ImportanceSamplingCallback(4),
        strategy=L.pytorch.strategies.ModelParallelStrategy(
            data_parallel_size=1,
            tensor_parallel_size=1,
            process_group_backend="gloo",
        ),
    )
    callback = trainer.callbacks[0]
    with pytest.raises(RuntimeError, match="got ModelParallelStrategy"):
        callback.on_fit_start(trainer, kit.Classifier(kit.mlp()))
