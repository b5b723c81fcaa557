"""Several trainings as one point: means, the pooled deviation, and coverage, against known answers."""

import math

import numpy as np
import pytest
from scipy import stats

from studies.saving import Point
from studies.trainings import antithetic_normals, pooled, training_deviation

COUNT = 4000


def wider(freedom: int, level: float = 0.95) -> float:
    """A variance, as intervals of Student's t in place of the normal law ask."""
    return (stats.t.ppf((1 + level) / 2, freedom) / stats.norm.ppf((1 + level) / 2)) ** 2


def trained(scores, deviation: float = 0.0, seed: int = 0) -> list[list[Point]]:
    """scores: (trainings, plans)."""
    rng = np.random.default_rng(seed)
    noise = lambda: np.exp(deviation * rng.standard_normal(COUNT))  # noqa: E731
    return [
        [Point(f"plan {j}", 1.0 + j, score, score * noise(), "curve") for j, score in enumerate(row)] for row in scores
    ]


def test_scores_are_geometric_means():
    made = pooled({"heavy": trained([[1.0, 4.0], [4.0, 9.0], [2.0, 6.0], [2.0, 6.0]])})["heavy"]
    assert [point.score for point in made] == pytest.approx([2.0, 6.0])
    assert [(point.name, point.cost, point.curve) for point in made] == [("plan 0", 1, "curve"), ("plan 1", 2, "curve")]


def test_the_deviation_is_pooled_over_networks_by_their_degrees_of_freedom():
    networks = {
        "a": trained(np.exp([[0.1], [-0.1]])),  # squares 0.02, of 1
        "b": trained(np.exp([[0.3, 0.0], [0.0, 0.1], [-0.3, -0.1]])),  # squares 0.18 and 0.02, of 2
        "once": trained([[5.0]]),
    }
    assert training_deviation(networks) == pytest.approx(math.sqrt(wider(3) * (0.02 + 0.1) / 3), rel=2e-3)
    assert training_deviation(networks, 0.5) == pytest.approx(math.sqrt(wider(3, 0.5) * (0.02 + 0.1) / 3), rel=2e-3)


def test_what_images_explain_is_no_noise_of_training():
    """Independent noise of deviation 0.1 in scores that differ by as much: 4 x 0.1^2 x 3 / 4 goes, unwidened."""
    scores = np.array([[0.1], [-0.1], [0.1], [-0.1]])
    alike = {"a": trained(np.exp(scores), 0.1)}
    assert training_deviation(alike) == pytest.approx(math.sqrt((wider(3) * 0.04 - 0.03) / 3), rel=0.02)
    assert training_deviation({"a": trained(np.exp(scores / 10), 0.1)}) == 0


def test_noise_of_images_that_trainings_share_explains_nothing():
    shared = np.exp(0.1 * np.random.default_rng(0).standard_normal(COUNT))
    networks = {"a": [[Point("p", 1.0, s, s * shared)] for s in np.exp([0.1, -0.1, 0.1, -0.1])]}
    assert training_deviation(networks) == pytest.approx(math.sqrt(wider(3) * 0.04 / 3), rel=2e-3)


def test_noise_of_images_is_averaged_over_trainings_in_logarithms():
    """Equal scores: of trainings there is no noise."""
    trainings = trained([[1.0, 2.0]] * 4, 0.5)
    made = pooled({"a": trainings})["a"]
    for point, of_plan in zip(made, zip(*trainings, strict=True), strict=True):
        logs = np.mean([np.log(one.replicates) for one in of_plan], axis=0)
        assert np.log(point.replicates) == pytest.approx(np.tile(logs, 2))


def test_replicates_hold_both_noises():
    """Images are averaged over trainings."""
    networks = {str(i): trained(np.exp(0.1 * np.array([[1.0], [0.0], [-1.0]])), 0.08, seed=i) for i in range(4)}
    made = pooled(networks, seed=9)["0"][0]
    expected = math.sqrt(0.08**2 / 3 + (wider(8) * 0.1**2 - 0.08**2) / 3)
    assert np.log(made.replicates).std() == pytest.approx(expected, rel=0.05)


def test_all_plans_of_a_training_move_together_and_networks_apart():
    networks = {str(i): trained(np.exp(0.1 * np.array([[1.0, 1], [-1, -1], [0, 0]]))) for i in range(3)}
    made = pooled(networks)
    logs = {name: [np.log(point.replicates) for point in points] for name, points in made.items()}
    assert np.corrcoef(*logs["0"])[0, 1] == pytest.approx(1)
    assert abs(np.corrcoef(logs["0"][0], logs["1"][0])[0, 1]) < 0.1


def test_a_network_trained_once_has_the_noise_of_the_others_whole():
    """All of it and half of it, of a normal law, whose quartiles are 0.6745 and tails of 5% 1.6449."""
    whole = math.sqrt(wider(3) * 0.04 / 3)
    made = pooled({"four": trained(np.exp([[0.1], [-0.1], [0.1], [-0.1]])), "once": trained([[5.0]])})
    for name, score, of_one in (("once", 5.0, whole), ("four", 1.0, whole / 2)):
        noise = np.log(made[name][0].replicates / score)
        expected = of_one * np.array([-1.6449, -0.6745, 0.6745, 1.6449])
        assert np.quantile(noise, [0.05, 0.25, 0.75, 0.95]) == pytest.approx(expected, rel=0.1)


def test_normals_are_of_variance_1_and_uncorrelated_with_each_other_and_with_what_is_there_twice():
    drawn = antithetic_normals(6, 200, 0)
    assert drawn.shape == (6, 400)
    assert np.cov(drawn) == pytest.approx(np.eye(6), abs=1e-12)
    assert 0.6 < (np.abs(drawn) < 1).mean() < 0.76  # 0.683 of a normal law
    twice = np.tile(np.random.default_rng(1).standard_normal(200), 2)
    assert drawn @ twice == pytest.approx(np.zeros(6), abs=1e-11)


def test_the_noise_of_a_difference_is_the_same_whatever_the_seed():
    thrice = np.array([[0.0], [0.1], [-0.1]])
    trainings = {"a": trained(np.exp(thrice), 0.05, 0), "b": trained(np.exp(2 * thrice), 0.05, 1)}
    made = [pooled(trainings, seed=seed) for seed in range(3)]
    found = [np.log(one["a"][0].replicates / one["b"][0].replicates).std(ddof=1) for one in made]
    assert found == pytest.approx([found[0]] * 3, rel=1e-12)


def test_what_cannot_be_pooled_is_refused():
    with pytest.raises(ValueError, match="other seeds, 2 times or more"):
        pooled({"a": trained([[1.0], [2.0]])})
    with pytest.raises(ValueError, match="different plans"):
        pooled({"a": [*trained([[1.0, 2.0]]), *trained([[1.0]])]})


@pytest.mark.parametrize(
    ("trainings", "of_training", "of_images"), [((3, 3), 0.1, 0.03), ((3, 3), 0.1, 0.1), ((3, 2), 0.1, 0.01)]
)
def test_intervals_of_a_difference_cover_what_they_say(trainings, of_training, of_images):
    """Two networks of equal true scores, so many trainings each: 95% intervals of log a - log b hold zero."""
    rng = np.random.default_rng(1)
    held, trials = 0, 1000
    for trial in range(trials):
        networks = {}
        for name, count in zip("ab", trainings, strict=True):
            truth = np.exp(of_training * rng.standard_normal((count, 1)) + of_images * rng.standard_normal((count, 1)))
            networks[name] = [
                [Point("p", 1.0, float(s[0]), float(s[0]) * np.exp(of_images * rng.standard_normal(100)))]
                for s in truth
            ]
        made = pooled(networks, seed=trial)
        a, b = made["a"][0], made["b"][0]
        difference = np.log(a.replicates) - np.log(b.replicates)
        held += abs(math.log(a.score / b.score)) <= 1.96 * difference.std(ddof=1)
    assert 0.925 < held / trials < 0.98  # of 3,000 trials 0.953, where images make as much noise 0.965
