"""Memory of this process does not grow with what a forecast holds on disk: reading it leaves nothing behind."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from forecasts.made_forecasts import written

from dualrate.experiment.model import Model
from dualrate.forecasts import evaluation
from dualrate.forecasts.evaluation import JUDGED, _by_lead, judged
from dualrate.forecasts.folder import ForecastArray
from dualrate.forecasts.netcdf import write_dataset
from dualrate.forecasts.output import LazyFrames
from dualrate.forecasts.rollout import FrameBlock
from dualrate.forecasts.scores import ForecastScorer
from dualrate.system.files import forget

STATUS, SIZE = Path("/proc/self/status"), 2**26  # bytes
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="only Linux says what a process holds of files")


def of_files() -> int:
    """Bytes of files, and of shared memory where those lie, that this process holds."""
    rows = dict(line.split(":") for line in STATUS.read_text().splitlines())
    return sum(1024 * int(rows[name].split()[0]) for name in ("RssFile", "RssShmem"))


def test_what_a_map_has_read_is_forgotten_and_read_anew(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(SIZE // 4, dtype=np.int32))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    total, before = x.sum(), of_files()
    assert x[7:][::3].sum()
    forget(x[7:])
    assert before - of_files() > 0.9 * SIZE
    assert x.sum() == total
    forget(np.zeros(3))


def test_frames_that_are_there_are_looked_at_piece_by_piece(tmp_path: Path) -> None:
    shape = 1, 4, 2, 2, 512, 1024
    array = ForecastArray(tmp_path, shape)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    array.write(FrameBlock(range(1), range(4), range(2), x))
    before = of_files()
    again = ForecastArray(tmp_path, shape)
    assert (again.done == 2).all()
    assert of_files() - before < x.nbytes / 4
    assert again.burst == 0
    assert of_files() - before < x.nbytes / 4
    assert again.damaged == 0


def test_a_store_and_scores_read_a_lead_time_at_a_time(model: Model, tmp_path: Path) -> None:
    done = written(model, tmp_path / "out", 2, members=2)
    shape = (len(done.starts), 512, 128, *done.x.shape[3:])
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape)
    x[:] = 1
    x.flush()
    write_dataset(tmp_path / "first.nc", done.dataset, "lead_time")  # what is imported stays
    forget(x)
    before = of_files()
    record = replace(done.record, lead_times=tuple(map(float, range(1, 129))))
    write_dataset(tmp_path / "a.nc", replace(done, x=x, record=record).dataset, "lead_time")
    assert of_files() - before < x.nbytes / 4
    scorer = ForecastScorer(record.lead_times)
    scorer.add((members, torch.ones(len(x), *x.shape[3:])) for members in _by_lead(x, 128))
    assert of_files() - before < x.nbytes / 4
    assert scorer.scores().crps.value.max() == 0
    assert os.stat(tmp_path / "a.nc").st_size > x.nbytes


def test_a_store_is_written_member_by_member(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All variables of a member lie side by side: were they written one after the other, all would be read anew."""
    done, places = written(model, tmp_path / "out", 4, members=3), []
    read = LazyFrames._read
    monkeypatch.setattr(LazyFrames, "_read", lambda self, key: (places.append(key[: self.lead]), read(self, key))[1])
    monkeypatch.setattr("dualrate.forecasts.netcdf.AT_A_TIME", 2 * done.x[0, 0, 0, 0].size)  # in pieces of two frames
    write_dataset(tmp_path / "a.zarr", done.dataset, "lead_time")
    members = [place for place in places if len(place) == 2]
    assert members == sorted(members)
    assert len(members) == 2 * done.x.shape[3] * len({*members}) > 2 * len(done.starts)
    store = xarray.open_zarr(tmp_path / "a.zarr", consolidated=True)
    assert store.equals(done.dataset)


@pytest.mark.parametrize("shape", [(1, 600, 40), (30, 20, 40), (3, 1, 8000)])
def test_few_frames_are_judged_at_a_time(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    done, sizes = written(model, tmp_path / "out", 2, members=1), []
    monkeypatch.setattr(evaluation, "JUDGED", 100 * done.x[0, 0, 0].size)
    numbers = evaluation.steady_numbers
    monkeypatch.setattr(
        evaluation, "steady_numbers", lambda now, *more: (sizes.append(now.shape), numbers(now, *more))[1]
    )
    starts = replace(done.starts, past=np.resize(done.starts.past, (shape[0], *done.starts.past.shape[1:])))
    judged(model, starts, np.resize(done.x[0, 0, :1], (*shape, *done.x.shape[3:])))
    assert max(np.prod(size[:-3]) for size in sizes) <= 100
    assert sum(np.prod(size[:3]) for size in sizes if len(size) > 4) == np.prod(shape)
    assert JUDGED < 2**22
