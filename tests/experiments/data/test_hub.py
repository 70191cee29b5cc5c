"""Hub layouts are read as they are, and what does not fit is refused with its cure."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_is.experiments.data import Conditions, HubImages, hub
from lightning_is.experiments.data.processor import Processor

datasets = pytest.importorskip("datasets")
COLOURS = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]


def colour_images(n, size=(6, 5)):
    return [np.full((*size, 3), COLOURS[i % 4], dtype=np.uint8) for i in range(n)]


def split(images, **labels):
    names = {"classes": ["black", "red", "green", "blue"]}
    features = {"img": datasets.Image()} | {
        name: datasets.ClassLabel(names=names["classes"]) for name in labels
    }
    return datasets.Dataset.from_dict(
        {"img": images, **labels}, features=datasets.Features(features)
    )


def colours(n, **settings):
    return split(colour_images(n, **settings), label=[i % 4 for i in range(n)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A local folder in the hub's layout: 20 training and 8 test images."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "colours"
    place.mkdir()
    colours(20).to_parquet(place / "train-00000-of-00001.parquet")
    colours(8).to_parquet(place / "test-00000-of-00001.parquet")
    return place


@pytest.fixture
def given(monkeypatch):
    """Let a data module find these splits instead of reading any."""

    def give(**splits):
        monkeypatch.setattr(
            hub, "fetch", lambda *_: datasets.DatasetDict(splits), raising=True
        )
        return HubImages("owner/name", 2, n_val=2)

    return give


def test_a_local_folder_is_read_like_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder)
    data = HubImages("../colours", 4, n_train=10, n_val=3, n_test=5)
    data.prepare_data()
    splits = data.splits
    sizes = [len(splits.train), len(splits.val), len(splits.tests["test"])]
    assert sizes == [10, 3, 5]
    assert splits.train.y.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]  # the first
    assert splits.val.y.tolist() == [1, 2, 3]  # the tail
    black, red = splits.train.x[:2]
    assert black.unique().tolist() == [0]
    assert red[:, 0, 0].tolist() == [255, 0, 0]


def test_inputs_are_standardised_by_the_training_images_alone(folder):
    splits = HubImages(str(folder), 4, n_train=16, n_val=4).splits
    x, _ = splits.train.__getitems__(range(16))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    std = x.std((0, 2, 3), correction=0)
    torch.testing.assert_close(std, torch.ones(3), atol=1e-5, rtol=0)
    assert splits.val.transform is splits.train.transform


def test_grey_images_have_one_channel(given):
    grey = [np.full((4, 4), i, dtype=np.uint8) for i in range(8)]
    part = split(grey, label=[0] * 8)
    x = given(train=part, test=part).splits.train.x
    assert x[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("training", [True, False])
def test_only_training_batches_are_augmented(kit, training):
    data = HubImages("owner/name", augment=True)
    data.trainer = kit.trainer()
    data.trainer.training = training
    x = torch.rand(16, 1, 8, 8)
    moved, labels = data.on_after_batch_transfer((x, torch.arange(16)), 0)
    assert torch.equal(moved, x) is not training
    assert labels.tolist() == list(range(16))


def test_a_missing_folder_is_named_with_the_place_it_was_sought(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"'\./nowhere'.*nowhere does not exist"
    ):
        HubImages("./nowhere").prepare_data()


def test_an_unreachable_hub_is_told_from_a_wrong_name(monkeypatch):
    def offline(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConnectionError, match=r"needs the network, got 'owner/name'"):
        HubImages("owner/name").prepare_data()


def test_two_columns_of_labels_ask_for_a_choice(given):
    part = split(colour_images(8), coarse=[0] * 8, fine=[1] * 8)
    data = given(train=part, test=part)
    with pytest.raises(ValueError, match=r"got 2: \['coarse', 'fine'\].*`label=`"):
        data.setup("fit")
    data.label = "fine"
    assert data.splits.train.y.unique().tolist() == [1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: {"train": colours(4)}, r"got \['train'\]", id="no-test-split"
        ),
        pytest.param(
            lambda: {
                "train": datasets.concatenate_datasets(
                    [colours(4), colours(4, size=(9, 9))]
                ),
                "test": colours(4),
            },
            r"one size and kind, got \(6, 5, 3\) and \(9, 9, 3\).*Set `image_size`",
            id="two-sizes",
        ),
        pytest.param(
            lambda: {
                "train": split(colour_images(8), label=[0, 0, 0, 0, 1, 1, 2, 2]),
                "test": colours(4),
            },
            r"got the train split sorted by them: its 8 labels of 3 classes change 2 "
            "times. Set `shuffled=True`",
            id="sorted",
        ),
        pytest.param(
            lambda: {"train": colours(8), "test": split(colour_images(1), label=[-1])},
            r"Labels must be numbers from 0 on, got -1 to -1 in the test split",
            id="not-labelled",
        ),
        pytest.param(
            lambda: {"train": colours(2), "test": colours(4)},
            r"leave half of the training.*got n_val=2 of 2 examples.*Lower `n_val`",
            id="nothing-left-to-train-on",
        ),
        pytest.param(
            lambda: {
                name: datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
                for name in ("train", "test")
            },
            r"one column of images \(Image\), got 0",
            id="no-images",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given, make, message):
    with pytest.raises(ValueError, match=message):
        given(**make()).setup("fit")


ORDERS = {  # of labels that are sorted, if not all of them upwards
    "down": [2, 2, 2, 1, 1, 0, 0, 0],
    "grouped": [1, 1, 2, 2, 0, 0, 0, 0],
    "twice": ([0] * 40 + [1] * 40 + [2] * 40) * 2,
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_sorted_split_is_refused_whatever_the_order(given, order):
    found = ORDERS[order]
    part = split(colour_images(len(found), size=(2, 2)), label=found)
    with pytest.raises(ValueError, match="got the train split sorted by them"):
        given(train=part, test=colours(4)).setup("fit")
    shuffled = given(train=part, test=colours(4))
    shuffled.shuffled = True
    shuffled.setup("fit")


@pytest.mark.parametrize(
    "found",
    [
        pytest.param([0, 1, 2, 0, 2, 1, 1, 0], id="mixed"),
        pytest.param([3, 2, 1, 0], id="one-of-each"),
        pytest.param([1] * 8, id="one-class"),
        pytest.param(([0] * 5 + [1] * 5) * 8, id="fives-of-a-kind"),
    ],
)
def test_a_split_that_holds_its_classes_everywhere_is_let_through(given, found):
    part = split(colour_images(len(found), size=(2, 2)), label=found)
    given(train=part, test=colours(4)).setup("fit")


def test_a_test_part_may_be_sorted_where_all_of_it_is_kept(given):
    part = split(colour_images(6), label=[0, 0, 1, 1, 2, 2])
    given(train=colours(8), test=part).setup("fit")
    cut = given(train=colours(8), test=part)
    cut.n_test = 4
    with pytest.raises(ValueError, match="got the test split sorted by them"):
        cut.setup("fit")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_train": 0}, "`n_train` must be at least 1.*got 0"),
        ({"n_val": 0}, "`n_val` must be at least 1.*got 0"),
        ({"n_test": -3}, "`n_test` must be at least 1.*got -3"),
        ({"test_split": "train"}, "`test_split` must be another split.*got 'train'"),
    ],
)
def test_parts_without_examples_of_their_own_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        HubImages("owner/name", **sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_train": 9}, "`n_train` must be at most what there is, 8 examples, got 9"),
        ({"n_test": 5}, "`n_test` must be at most what there is, 4 examples, got 5"),
    ],
)
def test_more_examples_than_there_are_are_refused(given, sizes, message):
    given(train=colours(10), test=colours(4))
    HubImages("owner/name", 2, n_train=8, n_val=2, n_test=4).setup("fit")
    with pytest.raises(ValueError, match=message):
        HubImages("owner/name", 2, n_val=2, **sizes).setup("fit")


def test_validation_may_leave_less_than_half_where_that_is_asked_for(given, tmp_path):
    Processor([255.0, 0.0, 0.0], [1.0, 5.0, 1.0]).write(tmp_path, 4)
    given(train=colours(10), test=colours(4))
    settings = {"n_val": 6, "processor": str(tmp_path)}
    with pytest.raises(ValueError, match=r"half.*got n_val=6 of 10 examples in 'own"):
        HubImages("owner/name", 2, **settings).setup("fit")
    splits = HubImages("owner/name", 2, n_train=3, **settings).splits
    assert (len(splits.train), len(splits.val)) == (3, 6)
    few = HubImages("owner/name", 2, n_train=3, n_val=10, processor=str(tmp_path))
    with pytest.raises(ValueError, match="got n_val=10 of 10 examples"):
        few.setup("fit")


def test_images_of_different_sizes_and_kinds_are_brought_to_one(given):
    grey = [np.full((7, 9), 200, dtype=np.uint8)]
    images = colour_images(3) + colour_images(3, size=(9, 4)) + grey * 2
    part = split(images, label=[0, 1, 2, 0, 1, 2, 3, 0])
    data = given(train=part, test=part)
    data.form = hub.ImageFormat(4, channels=3)
    splits = data.splits
    assert splits.train.x.shape == (6, 3, 4, 4)
    assert splits.train.x[[1, 4], :, 0, 0].tolist() == [[255, 0, 0], [255, 0, 0]]
    assert splits.val.x.unique().tolist() == [200]


def test_images_are_normalised_as_the_checkpoint_says(given, tmp_path):
    Processor([255.0, 0.0, 0.0], [1.0, 5.0, 1.0], 0.5).write(tmp_path, 4)
    data = given(train=colours(8), test=colours(8))
    data.processor, data.form = str(tmp_path), hub.ImageFormat(4)
    x, _ = data.splits.train.__getitems__([1, 2])  # red and green
    assert x[:, :, 0, 0].tolist() == [[0, 0, 0], [-255, 51, 0]]
    assert data.form.crop == 0.5


def test_a_checkpoint_without_a_processor_leaves_it_to_the_training_images(
    given, tmp_path
):
    data = given(train=colours(8), test=colours(8))
    plain = data.splits.train.transform
    data = given(train=colours(8), test=colours(8))
    data.processor = str(tmp_path)
    with pytest.warns(UserWarning, match="does not say how"):
        found = data.splits.train.transform
    assert torch.equal(found.mean, plain.mean)


def test_classes_are_picked_before_examples_are_counted(given):
    data = given(train=colours(20), test=colours(8))
    data = HubImages(
        "owner/name", 2, n_train=4, n_val=3, conditions=Conditions(classes=[3, 1])
    )
    splits = data.splits
    assert splits.train.y.tolist() == [1, 0, 1, 0]
    assert len(splits.val) == 3
    assert splits.train.x[0, :, 0, 0].tolist() == [255, 0, 0]  # red was class 1


def test_more_classes_than_the_network_has_are_refused(given):
    given(train=colours(20), test=colours(8))
    HubImages("owner/name", 2, n_val=2, n_classes=4).setup("fit")
    with pytest.raises(ValueError, match=r"0 to 2, got 0 to 3 in the train.*classes"):
        HubImages("owner/name", 2, n_val=2, n_classes=3).setup("fit")
    kept = Conditions(classes=[3, 1])
    HubImages("owner/name", 2, n_val=2, n_classes=2, conditions=kept).setup("fit")


def test_a_set_with_several_configurations_needs_the_name_of_one(folder):
    lines = ["---", "configs:"]
    for name, n in (("few", 12), ("many", 16)):
        (folder / name).mkdir()
        lines += [f"- config_name: {name}", "  data_files:"]
        for part in ("train", "test"):
            colours(n).to_parquet(folder / name / f"{part}.parquet")
            lines += [f"  - split: {part}", f"    path: {name}/{part}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    data = HubImages(str(folder), 2, n_val=2, subset="many")
    data.prepare_data()
    assert len(data.splits.train) == 14
    for wrong in (None, "none"):
        with pytest.raises(ValueError, match=rf"subset={wrong!r}, of which.*'many'"):
            HubImages(str(folder), subset=wrong).prepare_data()


def test_another_split_may_be_tested_on(given):
    given(train=colours(8), validation=colours(5))
    data = HubImages("owner/name", 2, n_val=2, test_split="validation")
    assert len(data.splits.tests["test"]) == 5
    with pytest.raises(ValueError, match=r"train and test, got \['train', 'valid"):
        HubImages("owner/name", 2, n_val=2).setup("fit")


def test_a_folder_of_images_is_read_and_shuffled_alike_every_time(tmp_path, folder):
    place = tmp_path / "pictures"
    for part, n in (("train", 6), ("test", 2)):
        for name, colour in zip(("black", "red"), COLOURS, strict=False):
            (place / part / name).mkdir(parents=True)
            for number in range(n):
                pixels = np.full((4 + number, 5, 3), colour, dtype=np.uint8)
                path = place / part / name / f"{number}.png"
                Image.fromarray(pixels).save(path)
    settings = {"n_val": 4, "image_size": 4, "shuffled": True, "n_classes": 2}
    one, again = (HubImages(str(place), 2, **settings).splits for _ in range(2))
    assert torch.equal(one.train.y, again.train.y)
    labels = torch.cat([one.train.y, one.val.y])
    assert torch.bincount(labels).tolist() == [6, 6]
    assert labels.tolist() != sorted(labels.tolist())
    red = torch.cat([one.train.x, one.val.x])[:, 0, 0, 0] == 255
    assert torch.equal(red, labels == 1)


def test_a_label_column_that_is_not_there_is_refused(given):
    data = given(train=colours(8), test=colours(8))
    data.label = "digit"
    with pytest.raises(ValueError, match=r"got 'digit'. Columns: \['img', 'label'\]"):
        data.setup("fit")


def typed(labels, kind):
    features = datasets.Features({"img": datasets.Image(), "label": kind})
    rows = {"img": colour_images(len(labels)), "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["int8", "int64", "uint8"])
def test_labels_may_be_plain_numbers_if_they_are_named(given, kind):
    part = typed([0, 1, 2] * 3, datasets.Value(kind))
    data = given(train=part, test=part)
    data.label = "label"
    assert data.splits.train.y.tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (["a", "b"] * 4, "string", r"whole numbers.*'label' of the type.*string"),
        ([0.0, 1.5] * 4, "float32", r"whole numbers.*'label' of the type.*float32"),
        ([0, None, 1, 0] * 2, "int64", "got 2 of 8 without one.* of the train split"),
    ],
    ids=["text", "fractions", "missing"],
)
def test_labels_that_are_no_numbers_are_refused(given, labels, kind, message):
    data = given(train=typed(labels, datasets.Value(kind)), test=colours(4))
    data.label = "label"
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


@pytest.mark.parametrize(("name", "channels"), [("mnist", 1), ("cifar10", 3)])
def test_real_images_are_learnable_inputs(real_data, name, channels):
    data = HubImages(real_data(name), n_train=500, n_val=50, n_test=50)
    x, y = next(iter(data.train_dataloader()))
    assert x.shape[:2] == (128, channels)
    assert abs(x.mean().item()) < 0.2
    assert set(y.tolist()) == set(range(10))
