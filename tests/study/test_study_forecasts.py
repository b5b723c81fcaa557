"""Tables of the contest, of rows made here."""

import numpy as np

from studies import forecasts
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
    *(final("dual", "diffusion", 4, 0.4 / 3**0.5, 5.0, seed) for seed in (0, 1)),  # as large in 3 steps
    final("single", "crps", 1, 0.3, 10.0),
    final("dual", "diffusion", 4, 0.2, 5.0, seconds=1600),
    {"kind": "time", "network": "dual", "method": "diffusion", "steps": 4, "ms": {"1": 0.5, "16": 0.25}},
    {"kind": "search", "network": "dual", "method": "diffusion", "batch": 8, "rate": 2e-3, "halflife": HALFLIFE,
     "crps": [[0.3]]},
]  # fmt: skip


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_scores_are_means_of_trainings_with_their_costs() -> None:
    lines = cells(forecasts.score_table(ROWS))
    assert [line[:3] for line in lines[:2]] == [["large", "diffusion", "8"], ["large", "diffusion", "4"]]
    (pair,) = (line for line in lines if line[0] == "two rates")
    assert pair[3:] == ["16, 0.002", "2", "5.00/2.50", "0.50/0.25", "0.2309 [0.2309, 0.2309]", "1.00"]


def test_scores_leave_out_few_steps_and_all_but_the_best_plan_of_further_networks() -> None:
    rows = [*ROWS, *(final("medium", "diffusion", steps, 0.5 / steps, 3.0 * steps) for steps in (1, 2))]
    lines = [line[:3] for line in cells(forecasts.score_table(rows))]
    assert ["large", "diffusion", "2"] not in lines
    assert ["large", "CRPS, one call", "1"] in lines
    assert [line for line in lines if line[0] == "medium"] == [["medium", "diffusion", "2"]]


def test_few_steps_of_a_frozen_encoder_are_left_out_too() -> None:
    rows = [*ROWS, *(final("dual", "frozen", steps, 0.5 / steps, 3.0 * steps) for steps in (1, 2, 4))]
    frozen = forecasts.word("frozen")
    assert [line[2] for line in cells(forecasts.score_table(rows)) if line[1] == frozen] == ["4"]
    lines = [line[0] for line in cells(forecasts.ratio_table(rows))]
    assert [line for line in lines if line.startswith(frozen)] == [f"{frozen}, 4 steps"]


def test_ratios_are_interpolated() -> None:
    rows = [*ROWS, final("dual", "crps", 1, 0.4 / 2**0.5, 5.0)]
    one_call, steps = cells(forecasts.ratio_table(rows))
    assert steps[0] == "diffusion, 4 steps"
    assert steps[1].startswith(f"{0.4 / 3**0.5 - 0.4 / 8**0.5:.4f} [")
    assert steps[2:4] == ["6.00", "12.0"]
    assert steps[4:6] == ["", ""]  # no single network was timed
    assert steps[6] == "12.0"  # its energy score is the same
    assert [one_call[0], *one_call[2:4]] == ["CRPS, one call", "4.00", "8.00"]


def test_single_networks_by_ml_em_are_rivals_too() -> None:
    """One cell that scores as the pair does, for less than large, without milliseconds."""
    levels = final("medium + single", "ML-EM", 8, 0.4 / 3**0.5, 20.0)
    levels |= {"kind": "levels", "between": 0, "sampler": "ancestral", "probabilities": [0.25]}
    (line,) = cells(forecasts.ratio_table([*ROWS, levels]))
    assert line[2:4] == ["4.00", "8.00"]


def test_milliseconds_of_ml_em_are_those_of_its_calls() -> None:
    levels = final("medium + single", "ML-EM", 8, 0.4 / 3**0.5, 20.0) | {"calls": [8, 2]}
    levels |= {"kind": "levels", "between": 0, "sampler": "ancestral", "probabilities": [0.25]}
    times = [("medium", 4, 0.4, 0.2), ("single", 8, 4.0, 4.0), ("single", 2, 9.0, 9.0)]
    rows = [
        {"kind": "time", "network": name, "method": "diffusion", "steps": steps, "ms": {"1": of_one, "16": of_many}}
        for name, steps, of_one, of_many in times
    ]
    (line,) = cells(forecasts.ratio_table([*ROWS, levels, *rows]))
    assert line[4:6] == ["3.60", "5.60"]  # (8 x 0.1 + 2 x 0.5) / 0.5, (8 x 0.05 + 2 x 0.5) / 0.25


def test_members_have_what_they_cost_together_and_the_ratio_at_equal_crps_is_with_fifty() -> None:
    scores = {1: 0.4, 2: 0.4 / 2**0.5, 4: 0.2, 8: 0.2, 16: 0.21}
    rows = [
        *(final("single", "diffusion", steps, score, 10.0 * steps, seconds=240) for steps, score in scores.items()),
        *(final("dual", "crps", 1, 0.4 / 3**0.5, 5.0, seed, seconds=240) for seed in (0, 1)),  # as large in 3 steps
    ]
    for row in rows:
        macs = 2.0 if row["network"] == "dual" else row["macs"]["1"]
        row["macs"] |= {"6": macs, "50": macs}
    plans = [("dual", "crps", 1, 0.5), *(("single", "diffusion", steps, 1.0 * steps) for steps in scores)]
    rows += [
        {"kind": "time", "network": network, "method": method, "steps": steps,
         "ms": dict.fromkeys(("1", "6", "16", "50"), ms), "mib": {"1": 5.0, "6": 7.4, "16": 16.0, "50": 40.0}}
        for network, method, steps, ms in plans
    ]  # fmt: skip
    cell = {"kind": "levels", "between": 0, "sampler": "ancestral", "probabilities": [0.25]}
    rows.append(final("medium + single", "ML-EM", 8, 0.19, 40.0, seconds=240) | cell)
    levels, single, pair = cells(forecasts.member_table(rows))
    assert levels[:5] == ["medium, large, ML-EM", "8, ancestral, p = 0.25", "40.0/40.0", "", ""]
    assert single[:2] == ["large, diffusion", "4"]  # more steps are no better
    assert pair[:2] == ["two rates, CRPS, one call", "1"]
    assert pair[2:5] == ["5.00/2.50/2.00", "0.500/8.00/25.0", "5/7/16/40"]
    assert pair[5].startswith("0.231 [")
    assert pair[7] == "15.0; 6.00"  # (10 x 3) / 2 and 3 / 0.5
    assert single[7] == ""


def test_the_length_of_training_is_shown() -> None:
    rows = [*ROWS, final("single", "diffusion", 4, 0.21, 40.0, seconds=1600)]
    assert cells(forecasts.length_table(rows)) == [
        ["two rates", "diffusion", "4", "0.2309", "0.2000"],
        ["large", "diffusion", "4", "0.2000", "0.2100"],
        ["two rates less large", "diffusion", "4", "0.0309 [0.0309, 0.0309]", "-0.0100 [-0.0100, -0.0100]"],
    ]


def test_the_figure_has_a_curve_for_each_network_and_method() -> None:
    figure = forecasts.figure(ROWS)
    (legend,), (left, _) = figure.legends, figure.axes
    assert len(legend.get_texts()) == 3
    assert left.get_xlabel() == "million multiply-adds a member"
    counted = [row | {"macs": {**row["macs"], "50": 1.0}} if row["kind"] == "final" else row for row in ROWS]
    assert len(forecasts.figure(counted).axes) == 3
