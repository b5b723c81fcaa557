"""Tables of the contest, of rows made here."""

import numpy as np

from studies import contest_page
from studies.contest import HALFLIFE


def final(network: str, method: str, steps: int, score: float, macs: float, seed: int = 0, seconds: int = 400) -> dict:
    """A row of 4 starts, all of this score, whose 16 members cost half as much where rates are two."""
    scores = np.full((4, 3), score)
    return {
        "kind": "final", "network": network, "method": method, "batch": 16, "rate": 2e-3, "halflife": HALFLIFE,
        "seconds": seconds, "seed": seed, "steps": steps, "macs": {"1": macs, "16": macs / (1 + (network == "dual"))},
        "crps": scores.tolist(), "energy": scores[:, 0].tolist(), "spread_skill": [1.0, 1.0, 1.0],
    }  # fmt: skip


ROWS = [
    *(final("single", "diffusion", steps, 0.4 / steps**0.5, 10.0 * steps) for steps in (1, 2, 4, 8)),
    *(final("dual", "diffusion", 2, 0.4 / 3**0.5, 5.0, seed) for seed in (0, 1)),  # as large in 3 steps
    final("single", "crps", 1, 0.3, 10.0),
    final("dual", "diffusion", 2, 0.2, 5.0, seconds=1600),
    {"kind": "time", "network": "dual", "method": "diffusion", "steps": 2, "ms": {"1": 0.5, "16": 0.25}},
    {"kind": "search", "network": "dual", "method": "diffusion", "batch": 8, "rate": 2e-3, "halflife": HALFLIFE,
     "crps": [[0.3]]},
    {"kind": "search", "network": "dual", "method": "diffusion", "batch": 16, "rate": 2e-3, "halflife": HALFLIFE,
     "crps": [[0.2]]},
]  # fmt: skip


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_scores_are_means_of_trainings_with_their_costs() -> None:
    lines = cells(contest_page.score_table(ROWS))
    assert [line[:3] for line in lines[:2]] == [["large", "diffusion", "8"], ["large", "diffusion", "4"]]
    (pair,) = (line for line in lines if line[0] == "two rates")
    assert pair[3:8] == ["5.00", "2.50", "0.50", "0.25", "0.2309 [0.2309, 0.2309]"]
    assert pair[-1] == "2"


def test_ratios_are_interpolated_and_one_call_is_a_rival_of_its_own() -> None:
    best, one_call = cells(contest_page.ratio_table(ROWS))
    assert best[:2] == ["diffusion, 2 steps", "the best single network"]
    assert best[2].startswith(f"{0.4 / 3**0.5 - 0.4 / 8**0.5:.4f} [")
    assert best[3:5] == ["6.00", "12.0"]
    assert best[5:7] == ["", ""]  # no single network was timed
    assert one_call[1] == "the best one in one call"
    assert one_call[3:5] == ["never", "never"]


def test_the_search_and_the_length_of_training_are_shown() -> None:
    assert cells(contest_page.search_table(ROWS)) == [
        ["two rates", "diffusion", "16", "0.002", "0.2000", "2", "8, 0.002: 0.3000"]
    ]
    assert cells(contest_page.length_table(ROWS)) == [["two rates", "diffusion", "2", "0.2309", "0.2000"]]


def test_the_figure_has_a_curve_for_each_network_and_method() -> None:
    left, right = contest_page.figure(ROWS).axes
    assert len(right.get_legend().get_texts()) == 3
    assert left.get_xlabel() == "million multiply-adds a member"
