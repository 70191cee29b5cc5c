"""Images of any size come out square, and normalised as a checkpoint says."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_is.experiments.data.decoding import ImageFormat, by_channels, decode
from lightning_is.experiments.data.places import checkpoint_file, local_folder
from lightning_is.experiments.data.processor import Processor, read_processor

RESNET_50 = {  # as microsoft/resnet-50 has it
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 224,
}


def noise(height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def checkpoint(folder, **settings):
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_images_of_the_right_size_stay_as_they_are():
    image = noise(12, 12)
    assert np.array_equal(ImageFormat(12)(image), image)
    assert np.array_equal(ImageFormat()(image), image)


@pytest.mark.parametrize(("height", "width"), [(30, 51), (51, 30), (5, 9)])
def test_the_shorter_side_is_resized_and_the_middle_cut_out(height, width):
    image = noise(height, width)
    found = ImageFormat(14, crop=0.7)(image)
    # As transformers' ConvNextImageProcessor: 14 / 0.7 = 20 pixels, then 14 of them.
    longer = int(20 * max(height, width) / min(height, width))
    size = (20, longer) if height > width else (longer, 20)
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - 14) // 2, (size[0] - 14) // 2
    assert np.array_equal(found, resized[top : top + 14, left : left + 14])


def test_shrinking_averages_instead_of_skipping():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(ImageFormat(8)(Image.fromarray(stripes)))
    assert np.abs(small.astype(int) - 127).max() < 20  # not 0 and 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_however_the_camera_was_held(orientation):
    datasets = pytest.importorskip("datasets")
    exif, stored = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    noise(4, 7).save(stored, "PNG", exif=exif)
    part = datasets.Dataset.from_dict(
        {"img": [{"bytes": stored.getvalue(), "path": None}]},
        datasets.Features({"img": datasets.Image()}),
    )
    [found] = decode(part, "img", "train", ImageFormat())
    assert found.shape == ((3, 4, 7) if orientation < 5 else (3, 7, 4))
    expected = np.asarray(part[0]["img"])  # by the library itself
    assert np.array_equal(found.permute(1, 2, 0), expected)


def test_the_filter_is_the_one_of_the_checkpoint():
    nearest = ImageFormat(20, resample=0)(noise(10, 10))
    assert np.array_equal(np.asarray(nearest)[::2, ::2], noise(10, 10))


@pytest.mark.parametrize(("channels", "shape"), [(1, (6, 6)), (3, (6, 6, 3))])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "CMYK"])
def test_every_kind_of_image_gets_the_channels_asked_for(mode, channels, shape):
    image = noise(6, 6).convert(mode)
    assert np.asarray(ImageFormat(channels=channels)(image)).shape == shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "at least 1 pixel, got 0"),
        ({"channels": 2}, "1 for grey or 3 for colour, got 2"),
    ],
)
def test_a_form_that_no_image_has_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageFormat(**settings)


def test_the_configuration_of_resnet_50_is_read(tmp_path):
    found = read_processor(checkpoint(tmp_path, **RESNET_50))
    assert found.mean == pytest.approx([123.675, 116.28, 103.53])
    assert found.std == pytest.approx([58.395, 57.12, 57.375])
    assert (found.crop, found.resample) == (0.875, 3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"do_normalize": False, "image_mean": None}, ([0, 0, 0], [255] * 3, 0.875)),
        ({"do_rescale": False}, ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0.875)),
        (
            {
                "crop_pct": None,
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "size": {"shortest_edge": 256},
            },
            ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], 0.875),
        ),
        ({"crop_pct": None}, ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], 1)),
    ],
)
def test_other_ways_to_say_it_are_understood(change, expected, tmp_path):
    found = read_processor(checkpoint(tmp_path, **{**RESNET_50, **change}))
    mean, std, crop = expected
    assert found.mean == pytest.approx(mean)
    assert found.std == pytest.approx(std)
    assert found.crop == crop


def test_what_was_written_is_read_back(tmp_path):
    written = Processor([12.0, 34.0, 56.0], [1.5, 2.5, 3.5], 0.9, 2)
    written.write(tmp_path, 40)
    found = read_processor(str(tmp_path))
    assert found.mean == pytest.approx(written.mean)
    assert found.std == pytest.approx(written.std)
    assert (found.crop, found.resample) == (0.9, 2)


def test_a_checkpoint_that_says_nothing_or_half_of_it(tmp_path):
    assert read_processor(str(tmp_path)) is None
    with pytest.raises(ValueError, match=r"got no image_std in .*preprocessor_config"):
        read_processor(checkpoint(tmp_path, **{**RESNET_50, "image_std": None}))


@pytest.mark.parametrize(
    "key", ["include_top", "rescale_offset", "do_flip_channel_order"]
)
def test_a_processor_that_does_more_to_images_is_refused(key, tmp_path):
    with pytest.raises(ValueError, match=rf"alone, got {key}=true in .*config.json"):
        read_processor(checkpoint(tmp_path, **RESNET_50, **{key: True}))
    assert read_processor(checkpoint(tmp_path, **RESNET_50, **{key: False}))


def test_each_channel_is_normalised_by_its_own_numbers():
    x = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1)
    x = x.expand(2, 3, 4, 4)
    scale = by_channels([10.0, 10.0, 10.0], [1.0, 2.0, 4.0], x)
    assert scale(x)[0, :, 0, 0].tolist() == [0, 5, 5]
    with pytest.raises(ValueError, match="got 3 for the means"):
        by_channels([1.0], [1.0], x)


def test_a_folder_is_told_from_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert local_folder("owner/name").is_dir()
    assert local_folder("owner/other") is None
    for path in ("./other", "/no/such", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            local_folder(path)


def test_the_hub_is_asked_for_what_is_no_folder(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def download(*names):
        asked.append(names)
        return str(tmp_path / "file")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert checkpoint_file("microsoft/resnet-50", "config.json") == tmp_path / "file"
    assert asked == [("microsoft/resnet-50", "config.json")]


def test_answers_of_the_hub_are_told_apart(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def failing(kind):
        def download(*_):
            # Its errors differ in what they are made with, not in what they mean.
            raise kind.__new__(kind)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    failing(errors.LocalEntryNotFoundError)
    with pytest.raises(ConnectionError, match="needs the network, got 'owner/name'"):
        checkpoint_file("owner/name", "config.json")
    failing(errors.RepositoryNotFoundError)
    with pytest.raises(FileNotFoundError, match="'owner/name', which is neither"):
        checkpoint_file("owner/name", "config.json")
    failing(errors.EntryNotFoundError)
    assert checkpoint_file("owner/name", "preprocessor_config.json") is None


def test_a_name_that_cannot_be_one_is_refused():
    with pytest.raises(FileNotFoundError, match="'no such name', which is neither"):
        checkpoint_file("no such name", "config.json")
