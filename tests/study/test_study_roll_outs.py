"""Roll-outs: every method is trained for equal time, and scored by the sampler that other starts prefer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dualrate as dr
from dualrate.forecasts import recipe as forecast
from dualrate.forecasts.simulations import KuramotoSivashinsky
from studies import contest, roll_outs, systems
from studies.common import Row
from studies.roll_outs import RollOuts

WAYS = ("dual", "diffusion-1"), ("dual", "diffusion-2"), ("single", "rolling-2")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RollOuts:
    tier = replace(forecast.TIERS["tiny"], channels=(8, 8), blocks=(1, 1), embedding=8)
    monkeypatch.setitem(forecast.TIERS, "tiny", tier)
    simulation = KuramotoSivashinsky(points=32, burn_in=1.0)
    system = replace(systems.SYSTEMS["kuramoto-sivashinsky"], simulation=simulation, trajectories=20, frames=24)
    monkeypatch.setitem(systems.SYSTEMS, "tiny", system)
    monkeypatch.setitem(roll_outs.SIZES, "tiny", "tiny")
    for name, value in {"UPDATES": 1, "ROUNDS": 2}.items():
        monkeypatch.setattr(contest, name, value)
    small = {
        "WAYS": WAYS, "STEPS": {"diffusion": (2,), "rolling": (1, 2)}, "STARTS": 3, "SEARCHED": 2, "MEMBERS": 2,
        "AHEAD": 3, "CELLS": roll_outs.CELLS[::6], "SETTING": contest.Setting(2),
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(roll_outs, name, value)
    system.simulate(tmp_path)
    return RollOuts("tiny", tmp_path)


def test_every_way_is_scored_by_the_cell_that_other_starts_prefer(tiny: RollOuts) -> None:
    def run() -> list[Row]:
        tiny.train_all([0, 1], 0.01)
        tiny.search_samplers(0.01)
        tiny.score([0, 1], 0.01)
        return tiny.rows

    rows = run()
    assert run() == rows
    assert len(tiny.rows_with(part="search")) == 2 * 4  # cells, steps of all ways
    scores = tiny.rows_with(part="score")
    assert len(scores) == 2 * 4  # trainings, steps of all ways
    for row in scores:
        same = tiny.rows_with(part="search", network=row["network"], method=row["method"], steps=row["steps"])
        assert row["sampler"] == min(same, key=contest.mean)["sampler"]
        assert np.shape(row["crps"]) == (3, 3)
        assert np.shape(same[0]["crps"]) == (2, 3)
    by_steps = {row["steps"]: row["macs"] for row in scores if row["method"] == "rolling-2"}
    assert by_steps[2] == pytest.approx(2 * by_steps[1], rel=1e-6)
    row = next(row for row in scores if row["method"] == "diffusion-1")
    drawer = dr.Choice(steps=2).drawer(dr.load(str(tiny.folder(row))), precision="float32")
    assert row["macs"] == pytest.approx(drawer.cost.macs / 1e6, rel=1e-6)  # of a frame
    table = roll_outs.table(rows).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in table] == [
        "frame after frame", "windows of 2", "Rolling Diffusion",
    ]  # fmt: skip
