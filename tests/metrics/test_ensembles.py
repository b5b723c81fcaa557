"""Scores of ensembles: closed forms of Gaussians, and another package."""

import math

import numpy as np
import pytest
import scoringrules
import torch

from dualrate.metrics.ensembles import EnsembleScores, energy_score, fair_crps, psnr, ranks

GENERATOR = torch.Generator().manual_seed(0)


def normals(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("members", [2, 5])
def test_fair_crps_of_a_gaussian_is_its_closed_form_whatever_the_number_of_members(members: int) -> None:
    mean, std, y = 0.3, 0.7, 1.1
    found = fair_crps(mean + std * normals(200_000, members, 1), torch.full((200_000, 1), y, dtype=torch.float64))
    z = (y - mean) / std  # CRPS of N(mean, std^2): std (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))
    phi, big = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(z / math.sqrt(2)))
    exact = std * (z * (2 * big - 1) + 2 * phi - 1 / math.sqrt(math.pi))
    error = found.std().item() / math.sqrt(len(found))
    assert abs(found.mean().item() - exact) < 4 * error < 0.02


def test_they_are_those_of_scoringrules() -> None:
    members, truth = normals(6, 7, 5), normals(6, 5)
    theirs = scoringrules.crps_ensemble(truth.numpy(), members.numpy(), m_axis=1, estimator="fair").mean(1)
    np.testing.assert_allclose(fair_crps(members, truth).numpy(), theirs, rtol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):  # of a loss in training
        np.testing.assert_allclose(fair_crps(members.float(), truth.float()).numpy(), theirs, rtol=1e-5)
    theirs = scoringrules.es_ensemble(truth.numpy(), members.numpy(), m_axis=1, v_axis=2, estimator="fair")
    np.testing.assert_allclose(energy_score(members, truth).numpy() * math.sqrt(5), theirs, rtol=1e-12)


def test_a_calibrated_ensemble_has_spread_as_skill_and_even_ranks() -> None:
    centre = 0.5 + 0.05 * normals(400, 1, 1, 8, 8)
    members, truth = (
        centre[:, None] + 0.05 * normals(400, 5, 1, 8, 8)[:, :, None],
        centre + 0.05 * normals(400, 1, 1, 8, 8),
    )
    x, y = ((255 * part).round().clamp(0, 255).byte().numpy() for part in (members.flatten(2, 3), truth.flatten(1, 2)))
    scores = EnsembleScores.of((x[i : i + 100], y[i : i + 100], None) for i in range(0, 400, 100))
    assert scores.spread_skill == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(scores.ranks, 1 / 6, atol=0.01)
    sure = centre[:, None] + 0.025 * normals(400, 5, 1, 8, 8)[:, :, None]
    x = (255 * sure.flatten(2, 3)).round().clamp(0, 255).byte().numpy()
    assert EnsembleScores.of([(x, y, None)]).spread_skill < 0.65


def test_equal_numbers_have_ranks_by_chance() -> None:
    counts = ranks(torch.zeros(30_000, 2, 1), torch.zeros(30_000, 1), torch.Generator().manual_seed(1))
    np.testing.assert_allclose(counts.numpy() / 30_000, 1 / 3, atol=0.01)


def test_pixels_that_the_condition_shows_have_no_rank() -> None:
    """Members that are far too sure of a quarter of the pixels, and right in the others: half the ranks at each end."""
    truth = (255 * torch.rand(50, 1, 8, 8)).byte().numpy()
    unknown = torch.zeros(50, 1, 8, 8, dtype=torch.bool)
    unknown[..., 4:, 4:] = True
    members = np.repeat(truth[:, None], 4, 1)
    members[..., 4:, 4:] = 128
    found = EnsembleScores.of([(members, truth, unknown)])
    assert found.ranks[0] + found.ranks[-1] > 0.98
    assert EnsembleScores.of([(members, truth, None)]).ranks[0] < 0.4


def test_of_one_condition_the_error_is_unknown() -> None:
    found = EnsembleScores.of([(np.zeros((1, 3, 1, 2, 2), np.uint8), np.ones((1, 1, 2, 2), np.uint8), None)])
    assert all(map(math.isnan, found.errors))
    assert "fair CRPS 0.0039 (standard error unknown)" in str(found)


def test_psnr_is_in_decibels() -> None:
    assert psnr(torch.full((1, 3), 0.6), torch.full((1, 3), 0.5)).item() == pytest.approx(20)


def test_one_member_is_refused() -> None:
    with pytest.raises(ValueError, match="2 members a condition or more, got 1"):
        EnsembleScores.of([(np.zeros((3, 1, 1, 2, 2), np.uint8), np.zeros((3, 1, 2, 2), np.uint8), None)])
