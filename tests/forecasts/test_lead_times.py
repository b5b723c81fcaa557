"""Lead times as people read them: in the months, years, days or hours that the file's step is."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from forecasts.made_globes import saved, small_networks, untrained, waves

import dualrate as dr
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.folder import shown
from dualrate.forecasts.metadata import Metadata
from dualrate.forecasts.output import _months_after
from dualrate.forecasts.page import _ranks
from dualrate.forecasts.starts import read_starts


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)


def dated(frequency: str, calendar: str, frames: int = 60) -> xarray.Dataset:
    """Waves at such dates; of months in their middle."""
    times = xarray.date_range("2001-01-01", periods=frames, freq=frequency, calendar=calendar, use_cftime=True)
    if frequency == "MS":
        ends = xarray.date_range("2001-01-01", periods=frames + 1, freq=frequency, calendar=calendar, use_cftime=True)
        times = [start + (end - start) / 2 for start, end in pairwise(ends)]
    data = waves(frames=frames).assign_coords(time=("time", np.array(times)))
    data.time.encoding = {"units": "hours since 2001-01-01", "calendar": calendar}
    return data


@pytest.mark.parametrize(
    ("frequency", "calendar", "first", "times", "unit"),
    [
        ("YS", "360_day", "1 year", ["1", "2"], "years"),
        pytest.param("YS", "noleap", "1 year", ["1", "2"], "years", marks=pytest.mark.slow),
        pytest.param("YS", "standard", "1 year", ["1", "2"], "years", marks=pytest.mark.slow),
        pytest.param("MS", "360_day", "1 month", ["1", "2"], "months", marks=pytest.mark.slow),
        pytest.param("MS", "noleap", "1 month", ["1", "2"], "months", marks=pytest.mark.slow),
        ("MS", "standard", "1 month", ["1", "2"], "months"),
        ("ME", "standard", "1 month", ["1", "2"], "months"),
        ("QS-DEC", "standard", "3 months", ["3", "6"], "months"),
        ("6h", "360_day", "6 hours", ["6", "12"], "hours"),
        ("1h", "standard", "1 hour", ["1", "2"], "hours"),
        ("5D", "noleap", "5 days", ["5", "10"], "days"),
    ],
)
def test_labels_say_what_the_step_of_the_file_is(
    tmp_path: Path, frequency: str, calendar: str, first: str, times: list[str], unit: str
) -> None:
    model = untrained(saved(dated(frequency, calendar), tmp_path / "a.nc"), tmp_path / "run")
    task: Any = model.experiment.condition
    assert task.plain_time(task.lead_times(1)[0]) == first
    result = dr.forecast(model, 1, frames=2, members=2, choice=dr.Choice(1))
    assert result.scores is not None
    assert result.scores.shown_leads == (times, unit)
    assert result.scores.tables[0].header[0] == f"lead {unit}"
    picture = shown(result.ensemble, None, result.written.record, task)
    assert picture.lead == f"lead time in {unit}"
    np.testing.assert_allclose(picture.times, [float(each) for each in times])
    assert next(iter(_ranks(task, result.scores.by_name["forecast"]))) == f"lead {first}"
    assert task.identity == replace(task, months=0).identity


@pytest.mark.parametrize(
    ("frequency", "calendar"),
    [("MS", "standard"), ("MS", "noleap"), ("ME", "standard"), ("YS", "standard"), ("QS-DEC", "standard")],
)
def test_steps_of_months_have_the_dates_of_the_file(tmp_path: Path, frequency: str, calendar: str) -> None:
    """In the middle of months, as `dated` has them, at their ends and at their beginnings."""
    data = dated(frequency, calendar)
    model = untrained(saved(data, tmp_path / "a.nc"), tmp_path / "run", lead=2)
    result = dr.forecast(model, 2, frames=2, members=1, choice=dr.Choice(1))
    coder = xarray.coders.CFDatetimeCoder(use_cftime=calendar != "standard")
    with xarray.open_dataset(tmp_path / "a.nc", engine="h5netcdf", decode_times=coder) as source:
        for start, valid in zip(result.dataset.init_time.values, result.dataset.valid_time.values, strict=True):
            (at,) = np.flatnonzero(source.time.values == start)
            np.testing.assert_array_equal(valid, source.time.values[[at + 2, at + 4]])


def test_months_have_their_middle_or_last_day_if_all_starts_are_there() -> None:
    """The 15th of February is its middle, and the 30th of April its last day."""
    days = [datetime(2021, 1, 15), datetime(2021, 2, 15)]
    assert _months_after(days, [1, 12]) == [
        [datetime(2021, 2, 15), datetime(2022, 1, 15)],
        [datetime(2021, 3, 15), datetime(2022, 2, 15)],
    ]
    assert _months_after([datetime(2021, 2, 28), datetime(2021, 6, 30)], [1]) == [
        [datetime(2021, 3, 31)],
        [datetime(2021, 7, 31)],
    ]
    assert _months_after([datetime(2021, 1, 30, 12), datetime(2021, 4, 30, 12)], [1]) == [
        [datetime(2021, 2, 28, 12)],
        [datetime(2021, 5, 30, 12)],
    ]


def test_dates_a_month_apart_by_chance_are_no_months(tmp_path: Path) -> None:
    for frequency in ("30D", "1D", "7D", "365D"):
        task: Any = untrained(saved(dated(frequency, "standard"), tmp_path / f"{frequency}.nc"), tmp_path / frequency)
        assert task.experiment.condition.months == 0


def test_a_start_of_another_step_than_months_is_refused(tmp_path: Path) -> None:
    model = untrained(saved(dated("MS", "standard"), tmp_path / "a.nc"), tmp_path / "run", past=2)
    assert len(read_starts(saved(dated("MS", "standard", 3), tmp_path / "same.nc"), model, pytest.fail)) == 1
    for frequency, words in (("QS", "has 3 months between its time steps"), ("1D", "has 24 hours between its")):
        other = saved(dated(frequency, "standard", 4), tmp_path / f"{frequency}.nc")
        with pytest.raises(ValueError, match=f"{words}.*trained on 1 month: give time steps as far apart"):
            read_starts(other, model)


def test_years_are_those_of_the_calendar() -> None:
    for calendar, days in (("360_day", 360), ("noleap", 365), ("standard", 365.2425), ("", 365.2425)):
        task = Forecast(step=24.0, metadata=Metadata(time="hours", calendar=calendar))
        assert task.plain_time(3 * 24 * days) == "3 years"
        assert task.plain_time(24 * 360) == "360 days"
        assert [task.plain_time(hours) for hours in (24, 240)] == ["24 hours", "10 days"]
    assert Forecast(step=1.0, metadata=Metadata(time="s")).plain_time(500) == "500 s"
    assert Forecast(step=1.0, metadata=Metadata(time="s")).plain_time(1) == "1 s"
    assert Forecast().plain_time(1) == "1 time step"
