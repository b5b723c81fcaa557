"""What the page says of made-up measurements: sides, ratios, and words for every kind of saving."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report.made import row

from dualrate.compare.contender import Contender
from dualrate.compare.contenders import rivals_table
from dualrate.compare.page import compare_page, front_table, reusing_plans, savings_table
from dualrate.compare.records import as_json
from dualrate.compare.savings import ComparisonResults, rising, savings
from dualrate.compare.speed import Speed
from dualrate.compare.work import Bench, MeasuredContender, TimedContender, chosen
from dualrate.diffusion.plan import StepPlan


def finished(
    network: str, cost: float, score: float, *, seconds: float | None = None, heavy: int = 2
) -> TimedContender:
    made = row(network, steps=4, heavy=heavy, macs=int(cost * 1e9), seconds=seconds or cost, value=score, half=0.1)
    plan = StepPlan.uniform(int(8 * cost), int(2 * cost * heavy))  # plans of a network differ in steps alone
    contender = Contender(Path(network), network, "ancestral", plan)
    measured = MeasuredContender(contender, made, np.full(9, score))
    return TimedContender(measured, Speed(cost, seconds or cost, 8), 10**6, np.zeros((2, 1, 4, 4), np.uint8))


def findings(
    judge, own: list[TimedContender], rivals: list[TimedContender], left: tuple[str, ...] = ()
) -> ComparisonResults:
    return ComparisonResults(
        [one.measured for one in own + rivals], own + rivals, frozenset({"dual"}), left, judge, "command"
    )


RIVALS = [finished("single", 1, 8.0, heavy=4), finished("single", 4, 2.0, heavy=4)]  # score 8 / cost


def test_dual_rate_is_set_against_all_others(judge):
    (found,) = savings(findings(judge, [finished("dual", 1, 4.0, seconds=4)], RIVALS))
    flops, batched, alone = found.savings
    assert (flops.ratio, batched.ratio, alone.ratio) == pytest.approx((2.0, 0.5, 2.0))


def test_a_timing_that_is_out_of_order_moves_no_curve(judge):
    """Two plans that took 1 s and 0.9 s for once and twice the FLOPs are taken to cost as much."""
    noisy = [finished("single", cost, 8 / cost, seconds=s, heavy=4) for cost, s in ((1, 1.0), (2, 0.9), (4, 4.0))]
    (found,) = savings(findings(judge, [finished("dual", 1, 3.0)], noisy))
    both = math.sqrt(0.9)
    between = both * (4 / both) ** (math.log(4 / 3) / math.log(2))
    assert [one.ratio for one in found.savings] == pytest.approx([8 / 3, between, 8 / 3])


def test_what_rises_stays_and_what_falls_is_pooled():
    assert rising([1, 2, 2, 5]) == pytest.approx([1, 2, 2, 5])
    assert rising([4, 1]) == pytest.approx([2, 2])
    assert rising([1, 8, 1, 8, 64]) == pytest.approx([1, math.sqrt(8), math.sqrt(8), 8, 64])
    assert rising([27, 3, 1]) == pytest.approx([81 ** (1 / 3)] * 3)


def test_without_another_side_nothing_is_saved(judge):
    assert savings(findings(judge, [finished("dual", 1, 4.0)], [])) == []
    assert savings(findings(judge, [], RIVALS)) == []
    assert not savings_table(findings(judge, [], RIVALS)).cells


@pytest.mark.parametrize(
    ("cost", "score", "said"),
    [
        (1, 4.0, "the others need 2.00 [2.00, 2.00] times its FLOPs for the same score"),
        (4, 4.0, "the others need 0.50 [0.50, 0.50] times its FLOPs"),
        (1, 0.5, "no other measured reaches it;"),
        (2, 9.0, "the others need at most 0.50 [0.00, 0.50] times its FLOPs"),
    ],
)
def test_every_kind_of_saving_has_its_words(judge, cost, score, said):
    assert said in compare_page(findings(judge, [finished("dual", cost, score)], RIVALS))


def test_of_several_trainings_it_is_more_of_these_that_tell(judge):
    dual = finished("dual", 1, 4.0)
    again = replace(dual, measured=replace(dual.measured, trainings={"FD-test": (4.0, 4.0)}))
    told = [savings_table(findings(judge, [one], RIVALS)).cells[0][-1] for one in (dual, again)]
    assert told == ["0", "0.0 times the trainings"]  # without any noise those at hand are more than enough


def test_the_table_says_how_far_the_others_were_measured(judge):
    made = savings_table(findings(judge, [finished("dual", 9, 4.0)], RIVALS))
    assert "the others were measured up to 8.00 GFLOPs" in made.notes[-1]  # 2 FLOPs a MAC; 18 are dual-rate's own


def test_a_curve_is_of_plans_of_one_rate():
    def curve(steps: int, heavy: int) -> str:
        return Contender(Path("dual"), "dual", "ancestral", StepPlan.uniform(steps, heavy)).curve

    assert curve(16, 4) == curve(32, 8) != curve(16, 8)
    assert curve(16, 0) == curve(32, 0)
    assert curve(16, 0) not in (curve(16, 1), curve(32, 2), curve(16, 16))


def test_what_is_unfinished_is_said_first(judge):
    page = compare_page(findings(judge, [finished("dual", 1, 4.0)], RIVALS, ("3 of 9 were not measured.",)))
    assert "So far. Best dual-rate" in page
    assert "3 of 9 were not measured. The same command goes on." in page


def test_json_tells_never_from_a_bound(judge):
    own = [finished("dual", 1, 0.5), finished("dual", 0.5, 9.0)]
    worse, best = json.loads(as_json(findings(judge, own, RIVALS)))["savings"]
    assert (best["FLOPs"]["ratio"], best["FLOPs"]["at_most"]) == ("never", False)
    assert (worse["FLOPs"]["ratio"], worse["FLOPs"]["at_most"]) == (2.0, True)


def test_the_table_is_in_order_of_cost():
    made = front_table([RIVALS[1], finished("dual", 2, 3.0), RIVALS[0]])
    assert [line[4] for line in made.cells] == ["1.00", "2.00", "4.00"]
    assert [line[3] for line in made.cells] == ["-", "2", "-"]
    assert made.cells[0][8] == "1"  # MB


def test_a_plan_that_reuses_is_drawn_once():
    dual = finished("dual", 1, 4.0)
    other = replace(dual.contender, gamma=0.5)
    again = replace(dual, measured=replace(dual.measured, contender=other))
    shown = reusing_plans([dual, again, finished("dual", 2, 3.0), *RIVALS])
    assert [name for name, _ in shown] == ["dual 8/4", "dual 16/8"]


def test_chosen_are_the_fronts_the_others_first():
    own = [finished("dual", cost, score).measured for cost, score in ((1, 5.0), (2, 6.0), (3, 4.0))]
    rivals = [one.measured for one in (*RIVALS, finished("single", 2, 9.0, heavy=4), finished("third", 5, 9.0))]
    bench = Bench.__new__(Bench)
    every = own + rivals
    bench.estimates = {one.contender.key: float(one.row.macs) for one in every}
    made = chosen(every, bench, [rivals, own])
    assert [one.network for one in made] == ["single", "dual", "single", "dual", "third"]
    named = replace(own[1], contender=replace(own[1].contender, named=True))
    assert chosen([*every, named], bench, [rivals, own])[0].named


def called_by(denoiser: str, cost: float, score: float) -> TimedContender:
    """The network `single` under another denoiser."""
    one = finished("single", cost, score)
    measured = one.measured
    made = replace(measured.row, network=f"single, {denoiser}")
    return replace(
        one,
        measured=replace(measured, contender=replace(measured.contender, denoiser=denoiser), row=made),
    )


def test_what_calls_a_network_stands_beside_the_network_itself_for_no_more_flops(judge):
    found = findings(judge, [], [*RIVALS, called_by("taylor", 3, 2.5), called_by("fora", 0.5, 9.0)])
    table = rivals_table(found.screened)
    assert [(line[0], line[5:]) for line in table.cells] == [
        ("single, fora", ("-", "-", "-")),
        ("single, taylor", ("ancestral 4", "2.00", "8.00 [7.90, 8.10]")),  # not the one of 4 GMACs
    ]
    assert table.header[5] == "the run itself"
    assert "What else calls a network" in compare_page(found)
    assert "Without training" not in compare_page(findings(judge, [], RIVALS))
    assert not rivals_table([]).cells
