"""Times of trajectories: the usual step, and gaps that no window spans."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from dualrate.forecasts import trajectories
from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.sources import find_fields


def test_no_window_spans_a_gap_in_time(tmp_path: Path) -> None:
    """Frames 0 .. 99 that are 6 hours apart, with 4 of them missing before frame 30, and one before frame 94."""
    hours = 6 * (np.arange(100) + 4 * (np.arange(100) >= 30) + (np.arange(100) >= 94))
    frames = np.arange(100.0)[:, None] + (np.arange(100) >= 30)[:, None] * 50 + np.zeros(8)
    data = xarray.Dataset({"u": (("time", "x"), frames)}, coords={"time": np.datetime64("2020-01-01", "ns") + hours})
    data["time"] = np.datetime64("2020-01-01", "ns") + hours * np.timedelta64(1, "h")
    data.to_netcdf(tmp_path / "gap.nc", engine="h5netcdf")
    found = find_fields(tmp_path / "gap.nc")[1]
    assert "has 2 gap(s)" in found.note
    assert "6 apart, and frames 29 and 30 are 30" in found.note
    train, test = (read_fields(tmp_path / "gap.nc", split) for split in ("train", "test"))
    assert train.step == 6
    assert train.windows(4)[:, 1].tolist() == [*range(27), *range(30, 87)]
    assert test.windows(4)[:, 1].tolist() == [0, 4, 5, 6]  # frames 90 to 99
    assert train.statistics.difference == (1.0,)  # all differ by 1, but for the jump: its deviation is 0, so 1
    with pytest.raises(ValueError, match=r"windows of 61 frames, expected 1 to 60, the most in a row"):
        train.windows(61)


@pytest.mark.parametrize("steps", [[31, 28, 31, 30, 31, 30, 31, 31, 30], [1] * 9])
def test_months_are_no_gaps(tmp_path: Path, steps: list[int]) -> None:
    times = np.concatenate([[0], np.cumsum(steps)])
    data = xarray.Dataset({"u": (("time", "x"), np.random.default_rng(0).normal(size=(10, 8)))}, {"time": times})
    data.to_netcdf(tmp_path / "months.nc", engine="h5netcdf")
    found = find_fields(tmp_path / "months.nc")[1]
    assert (found.note, found.step) == ("", 1.0 if steps[0] == 1 else None)


@pytest.mark.parametrize(
    ("times", "step", "breaks"),
    [
        (np.cumsum([0, *[6, 18] * 20]), 6, 20),  # frames at 0 and 6 o'clock
        (np.cumsum([0, *[6, 18] * 19, 6]), 6, 19),
        (np.cumsum([0, *[18, 6] * 19, 18]), 6, 20),  # most steps are gaps
        (np.cumsum([0, *[1, 10] * 20]), 1, 20),
        (np.cumsum([0, *[10] * 20, 1, *[10] * 20]), 10, 1),  # a step that is too short
        ([datetime(2001, 1, 1 + day) for day in (0, 1, 2, 6, 7)], 24, 1),
        (2020_01_01_00 + np.arange(4) * 6, "2020010100.*write them as those", 0),
        (1_577_836_800 + np.arange(4) * 3600, 3600, 0),  # seconds since 1970
        (1_501_010_100 + np.arange(4) * 3600, 3600, 0),  # of which the first could be 1 January 1501
        ([0, 0, 1, 2], "do not rise, .*: after 0 comes 0: .*drop_duplicates", 0),
        ([0, 1, np.nan, 3], "one is missing", 0),
        (np.array(["2001-01-01", "NaT", "2001-01-03"], "M8[ns]"), "one is missing", 0),
    ],
)
def test_the_usual_step_and_gaps(times: Any, step: float | str, breaks: int) -> None:
    if isinstance(step, str):
        with pytest.raises(ValueError, match=step):
            trajectories.timed(Path("made"), np.array(times))
    else:
        found = trajectories.timed(Path("made"), np.array(times))
        assert (found.step, len(found.breaks)) == (step, breaks)


@pytest.mark.parametrize("time", [np.nan, np.datetime64("NaT", "ns")])
def test_a_single_time_that_is_missing_is_none(tmp_path: Path, time: Any) -> None:
    data = xarray.Dataset({"u": (("time", "y", "x"), np.ones((1, 4, 6), np.float32))}, {"time": [time]})
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    source = find_fields(tmp_path / "a.nc")[1]
    assert len(trajectories.timing_of(source.trajectories[0]).times) == 0
