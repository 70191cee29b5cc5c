"""Each augmented image is one window of its padded original, or the mirror of one."""

import torch
from torch.nn import functional

from lightning_is.experiments.data import crop_flip


def windows(image, pad):
    """All windows, by a plain loop: {bytes of the window: (top, left, flipped)}."""
    padded = functional.pad(image, (pad, pad, pad, pad))
    height, width = image.shape[1:]
    found = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            window = padded[:, top : top + height, left : left + width]
            found[window.numpy().tobytes()] = (top, left, False)
            found[window.flip(2).contiguous().numpy().tobytes()] = (top, left, True)
    return found


def test_every_window_and_both_mirrorings_occur_and_nothing_else():
    images = torch.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4) + 1
    seen = [set(), set()]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        for place, out in enumerate(crop_flip(images, pad=1, generator=generator)):
            key = out.contiguous().numpy().tobytes()
            seen[place].add(windows(images[place], pad=1)[key])
    assert [len(kinds) for kinds in seen] == [18, 18]


def test_images_of_one_batch_move_independently():
    images = torch.rand(1, 1, 6, 6).expand(32, 1, 6, 6)
    out = crop_flip(images, generator=torch.Generator().manual_seed(0))
    assert len({image.contiguous().numpy().tobytes() for image in out}) > 16


def test_a_given_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    crop_flip(torch.ones(4, 1, 6, 6), generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_images_keep_their_type_and_lie_in_channels_last():
    out = crop_flip(torch.ones(4, 3, 6, 6, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
