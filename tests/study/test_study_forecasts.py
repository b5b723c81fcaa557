"""Forecasts at two rates: their tables stand on the page as the kept rows give them, and every system runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from dualrate.recipes import forecast
from studies import forecasts
from studies.forecasts import PAGE, RESULTS, SYSTEMS

KEPT = [name for name, system in SYSTEMS.items() if (RESULTS / f"{system.page}.json").exists()]


def on_page(name: str) -> str:
    """The table at the place of this name."""
    return PAGE.read_text().partition(f"<!-- {name} -->\n")[2].partition(f"<!-- end of {name} -->")[0]


@pytest.mark.parametrize("name", KEPT)
def test_the_page_s_tables_are_those_of_the_kept_rows(name: str) -> None:
    system = SYSTEMS[name]
    for place, table in forecasts.tables(system, json.loads((RESULTS / f"{system.page}.json").read_text())).items():
        assert on_page(place) == table, f"python -m studies.forecasts page OUT --system {name}"


@pytest.mark.parametrize("name", ["kuramoto-sivashinsky", "kuramoto-sivashinsky-leads"])
def test_a_system_is_trained_scored_and_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = replace(forecast.TIERS["tiny"], channels=(8, 8), blocks=(1, 1), embedding=8)
    monkeypatch.setitem(forecast.TIERS, "tiny", tiny)
    small = replace(SYSTEMS[name].simulation, points=16, burn_in=1.0)
    models = (("dual", "diffusion"), ("single", "diffusion"), ("single", "crps"))
    system = replace(
        SYSTEMS[name], simulation=small, trajectories=10, frames=16, models=models, starts=3, members=2, steps=(2,)
    )
    monkeypatch.setattr(forecasts, "RESULTS", tmp_path)
    monkeypatch.setattr(forecasts, "RESAMPLES", 10)
    monkeypatch.setattr(forecasts, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text(f"<!-- {system.page} scores -->\n<!-- end of {system.page} scores -->\n")
    forecasts.simulate(system, tmp_path)
    forecasts.train(system, tmp_path, 0.01, [0])
    rows = forecasts.read(tmp_path)
    forecasts.train(system, tmp_path, 0.01, [0])
    assert forecasts.read(tmp_path) == rows
    forecasts.page(system, tmp_path)
    heavy, light = rows[1]["macs"]["1"] / 2, (rows[0]["macs"]["1"] - rows[0]["macs"]["16"]) * 16 / 15
    print(heavy, light)
    print(capsys.readouterr().out)
    assert 0
