"""Three integers make one generator: reproducible, and unrelated to its neighbours."""

from itertools import product

import pytest
import torch

from lightning_is.sampling.randomness import draw_generator


def first(seed: int, rank: int, counter: int) -> float:
    generator = draw_generator(seed, rank, counter)
    return torch.rand(1, generator=generator, dtype=torch.float64).item()


def test_the_same_integers_draw_the_same():
    assert first(3, 1, 7) == first(3, 1, 7)


def test_every_seed_rank_and_counter_draws_on_its_own():
    """Nor do they stand in for one another, as their sum would."""
    drawn = {first(*key) for key in product(range(6), repeat=3)}
    assert len(drawn) == 6**3


@pytest.mark.parametrize("place", [0, 1, 2])
def test_neighbours_are_unrelated(place):
    draws = 2000
    keys = [[0, 0, 0] for _ in range(draws)]
    for value, key in enumerate(keys):
        key[place] = value
    values = torch.tensor([first(*key) for key in keys], dtype=torch.float64) - 0.5
    products = values[1:] * values[:-1]
    for sample in (values, products):  # mean and correlation: 0
        assert sample.mean().abs() <= 4 * sample.std() / len(sample) ** 0.5


@pytest.mark.parametrize(
    ("key", "state"),
    [((0, 0, 0), 1279368494785126216), ((2**64 - 1, 3, 12), 3408225375813446436)],
)
def test_a_stored_run_finds_its_draws_again_in_later_versions(key, state):
    """Three rounds of SplitMix64, computed apart; the top 63 bits."""
    assert draw_generator(*key).initial_seed() == state


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_any_seed_of_64_bits_will_do(seed):
    assert 0 <= first(seed, 0, 2**40) < 1


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    generator = draw_generator(0, 0, 0)
    torch.rand(1, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert generator.device.type == "cpu"
