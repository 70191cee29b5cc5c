"""A pretrained network keeps all it knows but its last layer, and is trained whole."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from lightning.pytorch.callbacks import StochasticWeightAveraging
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lightning_is import ImportanceSamplingCallback, OversamplingDataModule
from lightning_is.data import PassSource
from lightning_is.experiments.classifier import Classifier
from lightning_is.experiments.frozen_norm import FrozenBatchNorm
from lightning_is.experiments.train import train
from lightning_is.sampling import AlwaysOpen, ImportanceSubset

transformers = pytest.importorskip("transformers")
from lightning_is.experiments import pretrained as module  # noqa: E402
from lightning_is.experiments.pretrained import pretrained, resnet  # noqa: E402

CONF = Path(__file__).parents[2] / "conf"
HEAD = ("classifier.1.weight", "classifier.1.bias")
SGD = partial(torch.optim.SGD, lr=0.1)


def stored(folder):
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("classes", [3, 4])  # 4 as pretrained
def test_all_but_the_last_layer_is_the_checkpoints(checkpoint, classes):
    weights, found = (
        stored(checkpoint).state_dict(),
        pretrained(str(checkpoint), classes).model.state_dict(),
    )
    assert found.keys() == weights.keys()
    for name in weights.keys() - set(HEAD):
        assert torch.equal(found[name], weights[name]), name
    assert found[HEAD[0]].shape == (classes, 8)
    assert found[HEAD[1]].shape == (classes,)
    if classes == 4:
        assert (found[HEAD[0]] != weights[HEAD[0]]).all()
        assert (found[HEAD[1]] != weights[HEAD[1]]).all()


def test_the_new_layer_is_drawn_from_the_seed(checkpoint):
    def head(seed):
        torch.manual_seed(seed)
        return pretrained(str(checkpoint), 3).model.classifier[1].weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))
    assert head(1).abs().max() <= 8**-0.5  # as PyTorch begins a layer of 8 inputs


def test_everything_trains_by_the_statistics_it_was_pretrained_with(checkpoint):
    net, x = pretrained(str(checkpoint), 4), torch.randn(6, 3, 16, 16)
    assert all(part.training for part in net.modules())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in net.parameters())
    features = net.model.base_model(x).pooler_output
    torch.testing.assert_close(
        features, stored(checkpoint).base_model(x).pooler_output, atol=1e-5, rtol=1e-4
    )
    assert torch.allclose(net(x)[:2], net(x[:2]), atol=1e-6)  # each by itself
    free = pretrained(str(checkpoint), 4, frozen_statistics=False)
    assert not any(isinstance(part, FrozenBatchNorm) for part in free.modules())
    assert not torch.allclose(free(x)[:2], free(x[:2]), atol=1e-3)


def sampling(method):
    if method == "uniform":
        return []
    if method == "swa":
        return [StochasticWeightAveraging(0.1, swa_epoch_start=1, annealing_epochs=1)]
    source = PassSource(ImportanceSubset()) if method == "two stages" else None
    size = 12 if method == "paper" else 4
    return [ImportanceSamplingCallback(size, gate=AlwaysOpen(), source=source)]


@pytest.mark.parametrize("method", ["uniform", "trim", "two stages", "paper", "swa"])
def test_no_statistic_changes_by_a_bit_while_weights_do(kit, checkpoint, method):
    net = pretrained(str(checkpoint), 3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = kit.examples(48, (3, 16, 16))
    loader = DataLoader(TensorDataset(x, y), batch_size=12, shuffle=True)
    trainer = kit.trainer(*sampling(method), max_epochs=2)
    module = Classifier(net, SGD, channels_last=True)
    if method == "paper":
        data = OversamplingDataModule(loader, presample_size=24)
        trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, loader, DataLoader(TensorDataset(x, y), batch_size=12))
    trainer.validate(module, DataLoader(loader.dataset, batch_size=12), verbose=False)
    after = net.state_dict()
    buffers = {name for name, _ in net.named_buffers()}
    assert len(buffers) == 18  # of 6 layers
    for name, value in before.items():
        assert torch.equal(after[name], value) is (name in buffers), name


def test_without_freezing_they_would_change(kit, checkpoint):
    net = pretrained(str(checkpoint), 3, frozen_statistics=False)
    before = [value.clone() for value in net.buffers()]
    data = DataLoader(TensorDataset(*kit.examples(24, (3, 16, 16))), batch_size=12)
    kit.trainer().fit(Classifier(net, SGD), data)
    changed = [
        not torch.equal(one, other)
        for one, other in zip(before, net.buffers(), strict=True)
    ]
    assert all(changed)


@pytest.fixture
def broken(checkpoint, tmp_path):
    """Hand over a copy of the checkpoint, to be spoilt."""
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


def configured(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_folder_without_a_configuration_is_refused(broken):
    (broken / "config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"config.json.*model.safetensors.*expe"
    ):
        pretrained(str(broken), 3)


def test_a_folder_without_weights_is_refused(broken):
    (broken / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"with weights, got .*config.json"):
        pretrained(str(broken), 3)


def test_a_network_that_classifies_no_images_is_refused(broken):
    configured(broken, model_type="bert")
    with pytest.raises(ValueError, match=r"image classifier.*BertConfig.*of the task"):
        pretrained(str(broken), 3)


def test_weights_of_another_network_are_not_made_up(broken):
    configured(broken, hidden_sizes=[4, 16])
    with pytest.raises(ValueError, match=r"A checkpoint must.*encoder.stages.1"):
        pretrained(str(broken), 3)


def test_a_folder_that_is_not_there_is_refused():
    with pytest.raises(FileNotFoundError, match=r"'\./nowhere', and /.* not exist"):
        pretrained("./nowhere", 3)


@pytest.mark.parametrize("make", [resnet, partial(pretrained, "any")])
def test_one_class_is_refused(make):
    with pytest.raises(ValueError, match=r"at least 2 classes.*got 1. Set in"):
        make(1)


@pytest.mark.parametrize("make", [resnet, partial(pretrained, "folder")])
def test_an_installation_without_transformers_is_told_what_to_install(
    make, checkpoint, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").symlink_to(checkpoint)
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*finetune"):
        make(3)


def test_messages_of_transformers_are_as_they_were(checkpoint):
    from transformers.utils.logging import get_verbosity

    before = get_verbosity()
    pretrained(str(checkpoint), 3)
    assert get_verbosity() == before


def run(folder, *overrides):
    quiet = ["callbacks=none", "logger=none", "trainer.num_sanity_val_steps=0"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, *quiet, f"output_dir={folder}", "title=t"])
    return train(cfg)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of handwritten digits in the layout of the hub, sorted by class."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    pixels, labels = load_digits(return_X_y=True)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(10)}
    order = np.argsort(labels[:900], kind="stable")
    for part, rows in (("train", order[order % 5 > 0]), ("test", order[::5])):
        images = list((15 * pixels[rows]).astype(np.uint8).reshape(-1, 8, 8))
        datasets.Dataset.from_dict(
            {"image": images, "label": labels[rows]}, datasets.Features(features)
        ).to_parquet(tmp_path / "digits" / f"{part}.parquet")
    return tmp_path / "digits"


def test_a_network_pretrained_here_learns_new_classes(pictures, tmp_path):
    data = [
        *("data=images", f"data.path={pictures}", "data.n_val=50"),
        *("data.image_size=16", "inputs.channels=1"),
    ]
    first = run(
        tmp_path / "one",
        *("experiment=pretrain", *data, "data.batch_size=32", "model.widths=[8,16,32]"),
        *("data.conditions.classes=[0,1,2,3,4,5]", "inputs.classes=6"),
        *("trainer.max_epochs=5", "optimizer.lr=0.1"),
        f"save_network={tmp_path / 'network'}",
    )
    assert first["test/acc"] > 0.8
    tuned = ["experiment=finetune", *data, f"model.path={tmp_path / 'network'}"]
    tuned += ["data.conditions.classes=[6,7,8,9]", "inputs.classes=4"]
    tuned += ["trainer.accelerator=cpu", "trainer.max_epochs=3"]
    still = run(tmp_path / "two", *tuned, "optimizer.lr=0", "trainer.max_steps=1")
    sooner = ["optimizer.lr=0.02", "method.callback.tau_threshold=1.2"]
    tuned = run(tmp_path / "three", *tuned, *sooner)
    assert tuned["open_share"] > 0
    assert still["test/acc"] < 0.5  # of four classes
    assert tuned["test/acc"] > 0.75


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got a SmallCNN and save_network"),
        (["model=resnet"], "got data that do not, Digits, and save_network"),
        (
            ["model=resnet", "data=permuted_mnist", "inputs.channels=1"],
            "got data that do not, PermutedPixels",
        ),
    ],
    ids=["network", "data", "sequences"],
)
def test_what_cannot_be_written_is_refused_before_training(
    words, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("lightning.Trainer.fit", None)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *words, "save_network=somewhere")


def test_fine_tuning_before_pretraining_asks_no_hub(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InstantiationException, match="cifar10_0to5 does not exist"):
        run(tmp_path, "experiment=finetune_cifar10")


def test_code_that_comes_with_a_checkpoint_is_not_even_asked_about(
    broken, tmp_path, monkeypatch
):
    left = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    code = f"{left}class Config: pass\nModel = Config"
    (broken / "theirs.py").write_text(code)
    names = {"AutoConfig": "Config", "AutoModelForImageClassification": "Model"}
    own = {name: f"theirs.{kind}" for name, kind in names.items()}
    configured(broken, model_type="theirs", auto_map=own)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match=r"image classifier.*custom code"):
        pretrained(str(broken), 3)
    assert not (tmp_path / "ran").exists()


def test_real_images_are_pretrained_on_and_fine_tuned(real_data, tmp_path):
    network = tmp_path / "network"
    data = [
        *(f"data.path={real_data('cifar10')}", "data.n_val=50", "data.n_test=200"),
        *("data.n_train=320", "data.batch_size=32", "trainer.max_epochs=4"),
    ]
    small = ["model.widths=[8,16]", "model.depths=[1,1]"]
    first = run(
        tmp_path / "one",
        "experiment=pretrain",
        *data,
        *small,
        f"save_network={network}",
    )
    assert first["steps"] == 40
    assert first["train/loss"] < math.log(6)
    assert (network / "preprocessor_config.json").is_file()
    tuned = ["experiment=finetune_cifar10", *data, f"model.path={network}"]
    still = run(tmp_path / "two", *tuned, "optimizer.lr=0", "trainer.max_steps=1")
    moved = run(tmp_path / "three", *tuned, "optimizer.lr=0.02", "tau_threshold=1.01")
    assert moved["open_share"] > 0
    assert moved["train/loss"] < min(still["train/loss"], math.log(4)) - 0.05


def test_the_experiment_has_the_numbers_of_the_paper(checkpoint, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["experiment=finetune", f"output_dir={tmp_path}"])
        trim = compose("train", ["experiment=finetune", "method=trim"])
    assert (cfg.method.batch_size, cfg.method.presample_size) == (16, 48)
    assert cfg.method.callback.tau_threshold == 2.0
    assert (cfg.optimizer.lr, cfg.optimizer.momentum) == (0.001, 0.9)
    assert cfg.scheduler is None
    assert cfg.model.path == cfg.data.processor == "microsoft/resnet-50"
    assert cfg.model.frozen_statistics
    assert (cfg.data.image_size, cfg.data.augment) == (224, False)
    assert trim.method.presample_size is None
    assert "tau_threshold" not in trim.method.callback


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_conditions_are_set_from_the_command_line(name, tmp_path):
    words = [
        *("data.conditions.classes=[7,2,5]", "data.conditions.label_noise=0.2"),
        *("data.conditions.rare_classes=[5]", "data.conditions.rare_share=0.1"),
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"data={name}", *words])
        plain = compose("train", [f"data={name}"])
    assert cfg.model.classes == 3
    assert plain.model.classes == 10
    assert cfg.data.conditions.label_noise == 0.2
