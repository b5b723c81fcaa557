"""Forecasts at two rates: every stage of a system runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dualrate.forecasts import recipe as forecast
from dualrate.forecasts.simulations import KuramotoSivashinsky
from studies import forecasts
from studies.forecasts import SYSTEMS


def on_page(name: str) -> str:
    """The table at the place of this name."""
    return forecasts.PAGE.read_text().partition(f"<!-- {name} -->\n")[2].partition(f"<!-- end of {name} -->")[0]


def test_a_system_is_trained_scored_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames that are each made by themselves, and a student."""
    tiny = replace(forecast.TIERS["tiny"], channels=(8, 8), blocks=(1, 1), embedding=8)
    monkeypatch.setitem(forecast.TIERS, "tiny", tiny)
    system = replace(
        SYSTEMS["kuramoto-sivashinsky-leads"], simulation=KuramotoSivashinsky(points=16, burn_in=1.0), trajectories=10,
        frames=16, models=(("dual", "diffusion"), ("single", "diffusion")), starts=3, members=2, steps=(2,),
        students=(("consistency", 1),),
    )  # fmt: skip
    place = f"{system.page} scores"
    for name, value in {"RESULTS": tmp_path, "PAGE": tmp_path / "page.md"}.items():
        monkeypatch.setattr(forecasts, name, value)
    forecasts.PAGE.write_text(f"<!-- {place} -->\n<!-- end of {place} -->\n")
    forecasts.simulate(system, tmp_path)
    forecasts.train(system, tmp_path, 0.01, [0])
    kept = (tmp_path / "rows.jsonl").read_text()
    forecasts.train(system, tmp_path, 0.01, [0])
    assert (tmp_path / "rows.jsonl").read_text() == kept
    forecasts.page(system, tmp_path)
    forecasts.times(system, tmp_path)
    forecasts.page(system, tmp_path)
    printed = capsys.readouterr().out

    table = on_page(place)
    assert table in printed
    assert sorted(tuple(cell.strip() for cell in line.split("|")[1:4]) for line in table.splitlines()[2:]) == [
        ("large", "diffusion", "2"), ("two rates", "diffusion", "2"), ("two rates", "diffusion, then consistency", "1"),
    ]  # fmt: skip
    shown = [line.split("|")[6:8] for line in table.splitlines()[2:]]
    assert all(float(cell) > 0 for line in shown for cell in line)
    two, one, student = (row["macs"] for row in forecasts.rows_of(tmp_path))
    heavy = (two["1"] - two["16"]) / (1 - 1 / 16)
    assert one["1"] == one["16"] == pytest.approx(2 * 3 * heavy, rel=0.1)  # steps, frames
    assert two["1"] - student["1"] == pytest.approx((two["1"] - heavy) / 2)  # its light calls halve


def test_scores_count_points_by_their_area() -> None:
    members, truth = torch.randn(3, 4, 2, 1, 2, 5).double(), torch.randn(3, 2, 1, 2, 5).double()
    area = torch.tensor([0.5, 1.5]).double()[:, None]
    rows = [forecasts.by_lead(members[..., [i], :], truth[..., [i], :], torch.ones(1, 1).double()) for i in (0, 1)]
    scores = forecasts.by_lead(members, truth, area)
    np.testing.assert_allclose(
        scores["crps"], (np.array(rows[0]["crps"]) + 3 * np.array(rows[1]["crps"])) / 4, atol=1e-4
    )
    alike = forecasts.by_lead(members * area.sqrt(), truth * area.sqrt(), torch.ones(1, 1).double())
    assert (scores["energy"], scores["spread_skill"]) == (alike["energy"], alike["spread_skill"])
