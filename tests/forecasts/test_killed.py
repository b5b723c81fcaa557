"""A forecast that is killed at any moment is gone on with: the same bits, in the array and in the store."""

from __future__ import annotations

import errno
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from forecasts.made_forecasts import written
from trouble import forked

from dualrate.experiment.model import Model
from dualrate.forecasts import folder
from dualrate.forecasts.folder import ForecastArray
from dualrate.forecasts.output import LazyFrames

CALLED = {".zattrs", ".zmetadata"}  # when, and by which command


def dying(model: Model, out: Path, calls: float) -> None:
    """Go on with a forecast, and die at so many calls of functions."""
    left = calls

    def counted(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(counted)
    written(model, out, format="zarr")


def content(out: Path) -> dict[str, bytes]:
    """Files of frames: the array, and all chunks of the store."""
    files = [out / "forecast.npy", out / "truth.npy", *(out / "forecast.zarr").rglob("*")]
    return {
        str(file.relative_to(out)): file.read_bytes() for file in files if file.is_file() and file.name not in CALLED
    }


def test_a_store_that_does_not_fit_the_disk_is_an_error_that_names_it(
    model: Model, tmp_path: Path, monkeypatch
) -> None:
    """Nothing of it is left, and the same call goes on once there is room."""
    straight = written(model, tmp_path / "straight", format="zarr")
    with monkeypatch.context() as patch:
        patch.setattr(LazyFrames, "_read", no_space)
        with pytest.raises(OSError, match=r"No space left .*forecast\.zarr.*frames are in .*the same command goes on"):
            written(model, tmp_path / "out", format="zarr")
    files = {".lock", "forecast.journal", "forecast.json", "forecast.npy", "truth.npy"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert written(model, tmp_path / "out", format="zarr").drawn == 0 < straight.drawn
    assert content(tmp_path / "out") == content(tmp_path / "straight")


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("frames", [1, 8, 11, 12, 20])  # of six members, in windows of two, while a batch is drawn
def test_a_forecast_stopped_while_it_writes_lost_nothing_that_it_noted(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    """Frames of some members of a window are there, those of others are not."""
    monkeypatch.setattr(folder, "SAVED_EVERY", 1000.0)
    straight, left = written(model, tmp_path / "straight"), frames

    def stopping(frame: Any, event: str, function: Any) -> None:
        nonlocal left
        left -= event == "c_return" and function.__name__ == "update" and frame.f_code is ForecastArray.write.__code__
        if not left:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(stopping)
    with pytest.raises(KeyboardInterrupt):
        written(model, tmp_path / "out")
    again = written(model, tmp_path / "out", note=pytest.fail)
    assert straight.drawn - again.drawn == (frames - 1) // 6 * 12
    np.testing.assert_array_equal(again.x, straight.x)


@pytest.mark.slow
def test_a_forecast_killed_again_and_again_ends_with_the_bits_of_one_that_was_not(model: Model, tmp_path: Path) -> None:
    """While it looks at what is there, draws, writes frames, or writes the store, of which nothing else is left."""
    assert forked(lambda: written(model, tmp_path / "straight", format="zarr")) == 0
    out, kills, stores = tmp_path / "out", 0, 0
    for calls in np.random.default_rng(0).uniform(5_000, 100_000, 12).tolist():  # the last third writes the store
        kills += forked(partial(dying, model, out, calls)) == -signal.SIGKILL
        stores += bool([*out.glob(".tmp-*")])
    assert kills >= 8
    assert stores
    assert forked(lambda: written(model, out, format="zarr")) == 0
    straight = content(tmp_path / "straight")
    assert content(out) == straight
    assert not [*out.glob(".tmp-*")]
    assert len(straight) > 20
    data, other = (xarray.open_zarr(place / "forecast.zarr") for place in (out, tmp_path / "straight"))
    assert data.equals(other)
