"""The sums of errors behind a predicted saving, against Gaussian data whose best estimate is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dualrate as dr
from dualrate.drawing.drawer import subset_batches
from dualrate.drawing.likelihood import Estimate
from dualrate.sampling.grids import grid_times
from tests.test_gap import PROCESS, VARIANCE, gaussian_images, model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "studies"))

import saving_model

PLAN = dr.StepPlan.spread((1.0, 0.7, 0.4, 0.1, 0.0), 4)


def error(factor: float) -> np.ndarray:
    """E(x - f g z)^2 = V (1 - f g alpha)^2 + f^2 g^2 sigma^2 at every step's time."""
    alpha2 = torch.sigmoid(PROCESS.schedule.log_snr(torch.tensor(PLAN.t[:-1], dtype=torch.float64))).numpy()
    gain = factor * alpha2**0.5 * VARIANCE / (alpha2 * VARIANCE + 1 - alpha2)
    return VARIANCE * (1 - gain * alpha2**0.5) ** 2 + gain**2 * (1 - alpha2)


def test_a_plans_errors_are_weighted_by_what_its_steps_span() -> None:
    heavy, other = model(1.0), model(0.5)
    batches = list(subset_batches(heavy, gaussian_images(), 384, saving_model.ROWS))
    own, heavys = saving_model.weighted_errors(other, heavy, PLAN, batches).T
    log_snr = PROCESS.schedule.log_snr(torch.tensor(PLAN.t, dtype=torch.float64))
    weights = 0.5 * heavy.experiment.method.weighting.integral(log_snr[:-1], log_snr[1:]).numpy()
    for found, factor in ((own, 0.5), (heavys, 1.0)):
        estimate = Estimate.of(torch.from_numpy(found))
        assert estimate.value == pytest.approx(weights @ error(factor), abs=4 * estimate.error)
        assert estimate.error < 0.05 * estimate.value


def test_what_is_predicted_and_seen_of_scores_that_are_what_plans_are_off_by() -> None:
    """A single network of 10 MACs a call that lacks 0.001 and is off by N^-3 in all, a pair as 6 of its steps."""
    steps = {n: n**-3.0 - 0.001 for n in range(2, 10)}
    alone = [saving_model.Scored("one", dr.StepPlan.uniform(n), 10 * n, (n**-3.0,) * 3) for n in (4, 8)]
    pair = saving_model.Scored("pair", dr.StepPlan.uniform(8, 2), 40, (6**-3.0,) * 3)
    sums = [saving_model.Off(Estimate(0.001, 0.0), steps[n], 0.1) for n in (4, 8)]
    sums.append(saving_model.Off(Estimate(0.003, 0.0), 6**-3.0 - 0.003, 0.1))
    found = saving_model.savings([*alone, pair], sums, steps)
    (one,) = found
    assert (one.row, one.single) == ("pair 8/2", "one")
    assert one.predicted == pytest.approx(60 / 40)
    assert one.seen == ((pytest.approx(60 / 40), ""),) * 3
    assert one.lacks == pytest.approx(0.001 / 0.1)
    assert one.wanted == pytest.approx((6**-3.0 - steps[4]) / 0.1)
    assert saving_model.agreement(found) == [(pytest.approx(1.0), 1)] * 3


def test_what_is_seen_beside_what_is_predicted() -> None:
    one = saving_model.Saving("a", "b", 2.0, ((2.0, ""), (4.0, ">"), (1.0, "")), 0.0, 0.0)
    other = saving_model.Saving("c", "b", 1.0, ((4.0, ""), (4.0, "<"), (0.5, "<")), 0.0, 0.0)
    (first, both), (_, none), (third, single) = saving_model.agreement([one, other])
    assert (first, third) == pytest.approx((2.0, 0.5))
    assert (both, none, single) == (2, 0, 1)
    assert "> 4.00" in saving_model.savings_table([one], ["first", "second", "third"])


def test_where_a_single_network_s_rows_end_only_a_bound_is_seen() -> None:
    """By the first judge its second row is worse than its first, by the others each is better than that before."""
    alone = [
        saving_model.Scored("one", dr.StepPlan.uniform(n), 10 * n, scores)
        for n, scores in ((4, (1.0, 4.0, 4.0)), (8, (2.0, 2.0, 2.0)), (16, (0.5, 1.0, 1.0)))
    ]
    pair = saving_model.Scored("pair", dr.StepPlan.uniform(8, 2), 40, (0.75, 5.0, 0.5))
    sums = [saving_model.Off(Estimate(0.0, 0.0), n**-3.0, 0.1) for n in (4, 8, 16, 6)]
    steps = {n: n**-3.0 for n in range(2, 20)}
    (one,) = saving_model.savings([*alone, pair], sums, steps)
    assert 1 < one.seen[0][0] < 4
    assert one.seen[0][1] == ""
    assert one.seen[1:] == ((1.0, "<"), (4.0, ">"))


def test_a_network_of_one_row_has_no_line() -> None:
    steps = {n: n**-3.0 for n in range(2, 10)}
    rows = [saving_model.Scored("one", dr.StepPlan.uniform(4), 40, (1.0,) * 3)]
    rows.append(saving_model.Scored("pair", dr.StepPlan.uniform(8, 2), 40, (1.0,) * 3))
    sums = [saving_model.Off(Estimate(0.0, 0.0), 4**-3.0, 0.1)] * 2
    assert saving_model.savings(rows, sums, steps) == []


def test_rows_of_a_report_are_those_of_the_very_sampler_and_single_ones_of_one_grid(tmp_path: Path) -> None:
    schedule = PROCESS.schedule
    pair = dr.StepPlan.uniform(4, 2)
    alone = [dr.StepPlan.spread(grid_times(grid, schedule, 4)) for grid in ("log-snr", "blend:0.5")]

    def row(sampler: str, score: float, plan: dr.StepPlan = pair) -> dict[str, object]:
        judged = {"metric": "FD-one", "value": score, "FD-other value": 2 * score}
        name = "one" if plan in alone else "pair"
        return {"network": name, "sampler": sampler, "plan": json.loads(plan.to_json()), "macs": 7, **judged}

    samplers = (saving_model.SAMPLER, f"{saving_model.SAMPLER}, blend-0.5-4-2", f"{saving_model.SAMPLER}5", "DDIM")
    front = [row(name, i) for i, name in enumerate(samplers)]
    front += [row(saving_model.SAMPLER, 10 + i, plan) for i, plan in enumerate(alone)]
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"front": front}))
    judges, rows = saving_model.report_rows(file, schedule, "blend:0.5")
    assert judges == ["FD-one", "FD-other"]
    assert [(one.name, one.scores) for one in rows] == [("pair 4/2", (0, 0)), ("pair 4/2", (1, 2)), ("one 4", (11, 22))]
    assert {one.macs for one in rows} == {7}
