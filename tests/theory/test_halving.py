"""Successive halving: it finds a known optimum, and pairs what it compares."""

import numpy as np
import pytest
import torch

from dualrate.metrics.distances import GaussianStats, frechet_distance, resampled_distances
from dualrate.planning.search import counts, halving


@pytest.mark.parametrize("optimum", [0.0, 0.31, 0.72, 1.0])
def test_the_known_optimum_is_found_through_noise_that_all_share(optimum):
    def measure(x: float, count: int) -> float:
        return (x - optimum) ** 2 + np.random.default_rng(count).normal() / count**0.5

    candidates = [i / 15 for i in range(16)]
    rounds = halving(candidates, 0.43, counts(800, 1), measure)
    assert rounds[-1].best == min([*candidates, 0.43], key=lambda x: abs(x - optimum))
    assert [len(one.values) for one in rounds] == [17, 9, 5, 3]
    assert all(0.43 in one.values for one in rounds)


def test_what_goes_on_is_the_better_half_and_what_stays_may_win():
    rounds = halving("abcdefgh", "h", [1, 2, 3], lambda name, count: ord(name))
    assert ["".join(sorted(one.values)) for one in rounds] == ["abcdefgh", "abcdh", "abh"]
    assert halving("ab", "a", [1, 2], lambda name, count: ord(name))[-1].best == "a"
    assert halving("a", "a", [1, 2], lambda name, count: 0.0)[-1].values == {"a": 0.0}


def test_rounds_double_up_to_the_last_and_none_is_too_small():
    assert counts(1000, 100) == [125, 250, 500, 1000]
    assert counts(500, 192) == [192, 250, 500]
    assert counts(192, 192) == [192]


def of_seeds(first: int, scale: float, count: int = 64) -> torch.Tensor:
    """What a sampler with an error makes of the noise of some seeds."""
    generator = torch.Generator().manual_seed(first)
    return scale * torch.randn(count, 3, generator=generator, dtype=torch.float64) + scale - 1


def test_shared_seeds_make_differences_precise():
    """The standard deviation of the difference of two samplers' distances falls to a fraction; replicates tell it."""
    reference = GaussianStats.of(of_seeds(10**6, 1.0, 5000))

    def distance(first: int, scale: float) -> float:
        return frechet_distance(GaussianStats.of(of_seeds(first, scale)), reference)

    paired = np.std([distance(seed, 1.2) - distance(seed, 1.25) for seed in range(200)])
    apart = np.std([distance(seed, 1.2) - distance(10_000 + seed, 1.25) for seed in range(200)])
    assert paired < 0.3 * apart

    spreads = []
    for seed in range(10):
        first, second = (
            resampled_distances(of_seeds(seed, scale), reference, resamples=100, seed=0) for scale in (1.2, 1.25)
        )
        spreads.append((first - second).std().item())
    assert np.mean(spreads) == pytest.approx(paired, rel=0.35)
