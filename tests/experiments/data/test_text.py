"""Every byte is predicted once, from the bytes before it, in one part alone."""

import sys

import pytest
import torch

from lightning_is.experiments.data import Text, documents, labels_of
from lightning_is.experiments.data import text as text_module
from lightning_is.experiments.data.text import sequences
from lightning_is.experiments.token_losses import PADDING

datasets = pytest.importorskip("datasets")
DOCUMENTS = [b"abcdefg", b"hi", b"j", b"", b"klmno"]


def bytes_of(rows):
    """The bytes of some rows, without padding."""
    return bytes(rows[rows != PADDING].tolist())


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 50])
def test_every_byte_but_the_first_of_a_document_is_predicted_once(length):
    x, labels = sequences(DOCUMENTS, length)
    assert bytes_of(labels) == b"bcdefg" + b"i" + b"lmno"
    assert bytes_of(torch.where(labels == PADDING, PADDING, x.long())) == (
        b"abcdef" + b"h" + b"klmn"
    )
    assert x.shape == labels.shape == (sum(-(-n // length) for n in (6, 1, 4)), length)


def test_padding_is_at_the_end_of_the_last_sequence_of_a_document():
    x, labels = sequences(DOCUMENTS, 4)
    counts = (labels != PADDING).sum(1)
    assert counts.tolist() == [4, 2, 1, 4]
    for row, inputs, count in zip(labels, x, counts, strict=True):
        assert (row[:count] != PADDING).all()
        assert (inputs[count:] == 0).all()


@pytest.mark.parametrize("most", range(9))
def test_no_more_sequences_are_made_than_are_kept(most):
    found = [*DOCUMENTS, b"pqrstuvwxyz"]
    whole, kept = sequences(found, 4), sequences(found, 4, most)
    assert len(whole[0]) == 7
    for one, other in zip(whole, kept, strict=True):
        assert torch.equal(one[:most], other)
        assert other.untyped_storage().nbytes() == other.nbytes  # nothing behind them


def test_inputs_end_where_their_labels_begin():
    x, labels = sequences([bytes(range(1, 60))], 7)
    assert (labels[labels != PADDING] == x[labels != PADDING].long() + 1).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_a_split_is_contiguous_and_loses_nothing(share):
    head, tail = documents.split(DOCUMENTS, share)
    assert b"".join(head) + b"".join(tail) == b"".join(DOCUMENTS)
    assert len(b"".join(head)) == round(share * 15)
    assert len(head) + len(tail) <= len([d for d in DOCUMENTS if d]) + 1


@pytest.fixture
def text(tmp_path):
    """A file of numbered lines in no encoding at all."""
    lines = [b"line %d \xff\n" % i for i in range(300)]
    path = tmp_path / "my.txt"
    path.write_bytes(b"".join(lines))
    return path


def test_a_file_is_cut_into_parts_that_share_no_byte(text):
    splits = Text(str(text), length=16, val_share=0.2, test_share=0.1).splits
    parts = [splits.train, splits.val, splits.tests["test"]]
    whole = text.read_bytes()
    found = [bytes(part.x[0, :1].tolist()) + bytes_of(part.y) for part in parts]
    assert b"".join(found) == whole
    shares = [len(part) / len(whole) for part in found]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=1e-3)


def test_batches_are_numbers_that_an_embedding_takes(text):
    data = Text(str(text), 4, length=16, n_train=10, n_val=3, n_test=5)
    [(x, labels), _] = data.train_dataloader()
    assert x.dtype == labels.dtype == torch.int64
    assert x.shape == labels.shape == (4, 16)
    splits, whole = data.splits, Text(str(text), 4, length=16).splits
    for part, full, size in (
        (splits.train, whole.train, 10),
        (splits.val, whole.val, 3),
        (splits.tests["test"], whole.tests["test"], 5),
    ):
        assert len(part) == size
        assert torch.equal(part.y, full.y[:size])


def test_the_topics_of_python_are_text_that_no_two_parts_share():
    data = Text(length=64)
    splits = data.splits
    parts = [splits.train, splits.val, splits.tests["test"]]
    assert sum(part.y.numel() for part in parts) > 200_000
    texts = [bytes_of(part.y).decode(errors="ignore") for part in parts]
    paragraphs = [
        {" ".join(p.split()) for p in text.split("\n\n") if len(p) > 60}
        for text in texts
    ]
    assert all(paragraphs)
    for i, one in enumerate(paragraphs):
        assert not any(one & other for other in paragraphs[:i])


def test_a_paragraph_is_kept_where_it_comes_first():
    texts = ["a b\n\nc\n\n  d", "c", "e\n \n a\n  b\n\nc", "", "f\n\nf"]
    assert documents.without_repeats(texts) == ["a b\n\nc\n\n  d", "e", "f"]


def test_a_python_without_topics_is_told_from_a_wrong_path(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ImportError, match="Give `path` a text file of yours"):
        Text().setup("fit")


def hub_set(**parts):
    return datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": t}) for name, t in parts.items()}
    )


@pytest.fixture
def on_the_hub(monkeypatch):
    """Let the hub answer with these splits; note what it is asked for."""
    asked = []

    def give(**parts):
        def load(*names):
            asked.append(names)
            return hub_set(**parts)

        monkeypatch.setattr(datasets, "load_dataset", load)
        return asked

    return give


def test_a_set_on_the_hub_keeps_its_own_splits(on_the_hub):
    asked = on_the_hub(
        train=["one two", " ", "three"], validation=["four"], test=["five"], more=["x"]
    )
    splits = Text("owner/name", 1, length=8, subset="small").splits
    assert asked == [("owner/name", "small")]
    parts = [splits.train, splits.val, splits.tests["test"]]
    assert [bytes_of(part.y) for part in parts] == [b"ne twohree", b"our", b"ive"]
    assert len(splits.train) == 2  # a row is a document


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, (69, 19, b"x" * 9)), ({"test": ["tt"]}, (79, 19, b"t"))],
    ids=["train", "train-test"],
)
def test_parts_that_a_set_lacks_are_cut_off_its_training_text(
    on_the_hub, own, expected
):
    on_the_hub(train=["x" * 100], **own)
    splits = Text("owner/name", 1, val_share=0.2, test_share=0.1).splits
    counts = [len(bytes_of(part.y)) for part in (splits.train, splits.val)]
    assert (*counts, bytes_of(splits.tests["test"].y)) == expected


def test_rows_without_text_are_left_out(on_the_hub):
    on_the_hub(train=["one", None, "", "two"], validation=["xx"], test=["yy"])
    assert bytes_of(Text("owner/name", 1, length=2).splits.train.y) == b"newo"


@pytest.mark.parametrize(
    ("parts", "column", "message"),
    [
        ({"train": ["a"]}, "story", r"column 'story' of every split, got .*'text'"),
        ({"train": [7, 8]}, "text", r"text in the column 'text' .*int64"),
        ({"train": ["a"], "test": [7]}, "text", r"of every split, got .*int64"),
        ({"test": ["a"]}, "text", r"needs a split `train`.*'test'"),
    ],
    ids=["no-column", "no-text", "no-text-to-test", "nothing-to-train"],
)
def test_a_set_without_text_where_it_should_be_is_refused(
    on_the_hub, parts, column, message
):
    on_the_hub(**parts)
    with pytest.raises(ValueError, match=message):
        Text("owner/name", column=column).setup("fit")


def test_what_the_hub_has_is_asked_for_and_then_read_once(on_the_hub, monkeypatch):
    asked = on_the_hub(train=["a b c"] * 2, validation=["d e"], test=["f g"])
    data = Text("owner/name", 1)
    reads, read = [], text_module.read
    monkeypatch.setattr(
        text_module, "read", lambda *names: (reads.append(names), read(*names))[1]
    )
    data.prepare_data()
    assert (len(asked), len(reads)) == (1, 0)
    for stage in ("fit", "test", "test"):  # as the Trainer asks when all three are run
        data.setup(stage)
        data.prepare_data()
    assert (len(asked), len(reads)) == (2, 1)


def test_nothing_is_read_to_prepare_text_on_this_machine(text, monkeypatch):
    monkeypatch.setattr(text_module, "read", None)
    monkeypatch.setattr(documents, "python_topics", None)
    Text(str(text)).prepare_data()
    Text().prepare_data()


@pytest.mark.parametrize("path", ["nowhere.txt", "./a/b", "a/b/c", "/tmp"])  # noqa: S108
def test_what_is_no_file_and_no_name_is_refused(path):
    with pytest.raises(FileNotFoundError, match=r"is no file\. Paths count from"):
        Text(path).prepare_data()


@pytest.mark.parametrize("error", [FileNotFoundError, ConnectionError])
def test_a_hub_that_does_not_answer_says_what_to_do(monkeypatch, error):
    def fail(*_):
        raise error("no")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(error, match=r"got 'owner/name'.*local text file"):
        Text("owner/name").prepare_data()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "`length` must be at least 1, got 0"),
        ({"n_train": 0}, "`n_train` must be at least 1.*got 0"),
        ({"n_val": 0}, "`n_val` must be at least 1.*got 0"),
        ({"n_test": -1}, "`n_test` must be at least 1.*got -1"),
        ({"val_share": 0.0}, "got 0.0 and 0.1"),
        ({"test_share": 0.95}, "got 0.1 and 0.95"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Text(**settings)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_more_sequences_than_there_are_are_refused(text, part):
    splits = Text(str(text), length=16).splits
    there = len({"train": splits.train, "val": splits.val, **splits.tests}[part])
    Text(str(text), length=16, **{f"n_{part}": there}).setup("fit")
    with pytest.raises(ValueError, match=f"`n_{part}` must be at most .* {there} ex"):
        Text(str(text), length=16, **{f"n_{part}": there + 1}).setup("fit")


def test_sequences_have_no_class_to_go_by(text):
    splits = Text(str(text), length=16).splits
    with pytest.raises(ValueError, match="got examples with 16 labels each"):
        labels_of(splits.train)
