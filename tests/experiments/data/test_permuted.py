"""Pixels are read in one order that nothing but its own seed determines."""

import numpy as np
import pytest
import torch

from lightning_is.experiments.data import HubImages, PermutedPixels, hub

datasets = pytest.importorskip("datasets")


def split(n):
    generator = np.random.default_rng(n)
    images = list(generator.integers(256, size=(n, 6, 5), dtype=np.uint8))
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)}
    rows = {"image": images, "label": [i % 3 for i in range(n)]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.fixture
def images(monkeypatch):
    """Let data modules find these images: 6 x 5 grey pixels of chance."""
    parts = datasets.DatasetDict(train=split(12), test=split(5))
    monkeypatch.setattr(hub, "fetch", lambda *_: parts, raising=True)


def permuted(**settings):
    return PermutedPixels("owner/name", 4, n_val=3, **settings)


def test_the_order_is_a_bijection_that_one_seed_determines():
    data = permuted()
    order = data.order(784)
    assert order.sort().values.tolist() == list(range(784))
    assert order.tolist() != list(range(784))
    torch.manual_seed(5)  # that of a run
    assert torch.equal(permuted().order(784), order)
    assert torch.equal(data.order(784), order)
    assert not torch.equal(permuted(seed=1).order(784), order)


@pytest.mark.parametrize(("stride", "steps"), [(1, 30), (7, 5), (100, 1)])
def test_a_stride_reads_every_so_many_th_pixel_of_the_same_order(stride, steps):
    order = permuted(stride=stride).order(30)
    assert order.tolist() == permuted().order(30)[::stride].tolist()
    assert len(order) == steps


@pytest.mark.parametrize("stride", [1, 4])
def test_every_part_holds_the_standardised_pixels_in_that_order(images, stride):
    data, plain = permuted(stride=stride), HubImages("owner/name", 4, n_val=3)
    order = data.order(30)
    for part, whole in zip(
        [data.splits.train, data.splits.val, data.splits.tests["test"]],
        [plain.splits.train, plain.splits.val, plain.splits.tests["test"]],
        strict=True,
    ):
        rows = range(len(whole))
        (x, y), (image, label) = part.__getitems__(rows), whole.__getitems__(rows)
        assert x.tolist() == [[i.flatten()[j].item() for j in order] for i in image]
        assert torch.equal(y, label)


def test_a_stride_below_one_is_refused():
    with pytest.raises(ValueError, match="`stride` must be at least 1, got 0"):
        permuted(stride=0)


def test_the_images_are_fetched_before_they_are_needed(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "fetch", lambda *names: asked.append(names))
    permuted().prepare_data()
    assert asked == [("owner/name", None)]


def test_real_digits_become_sequences(real_data):
    data = PermutedPixels(real_data("mnist"), n_train=300, n_val=50, n_test=50)
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (32, 784)
    assert abs(x.mean().item()) < 0.2
    assert set(y.tolist()) <= set(range(10))
