"""The prognostic protocol of earth2studio: its signatures, its coordinates, and a heavy call that members share."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from forecasts.made_forecasts import rolled
from forecasts.made_globes import LATITUDES, LONGITUDES, saved, small_networks, untrained, waves

import dualrate as dr
from dualrate.forecasts.prognostic import Prognostic
from dualrate.forecasts.starts import read_starts

CHOICE = dr.Choice(steps=2)
HOURS = np.array([-12, 0], "m8[h]")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dr.Model:
    """Two past frames, twelve hours apart; windows of two; forcings of dates."""
    folder, patch = tmp_path_factory.mktemp("run"), pytest.MonkeyPatch()
    small_networks(patch)
    source = saved(waves("ts", frames=100), folder / "a.nc")
    model = untrained(source, folder / "run", past=2, frames=2, lead=2, forcings=("day", "sun"))
    patch.undo()
    return model


def inputs(members: int = 3, first: int = 0) -> tuple[torch.Tensor, OrderedDict[str, Any]]:
    """Two starts of some members, all alike."""
    data = waves("ts", seed=5)
    x = np.stack([np.stack([data[name][[i, i + 2]].values for name in "ts"], 1) for i in (0, 7)])
    numbers, times = np.arange(first, first + members), data.time.values[[2, 9]]
    space = {"variable": np.array(["temp", "s"]), "lat": LATITUDES, "lon": LONGITUDES}
    return torch.tensor(x).expand(members, *x.shape), OrderedDict(
        {"ensemble": numbers, "time": times, "lead_time": HOURS} | space
    )


def prognostic(model: dr.Model, **how: Any) -> Prognostic:
    return Prognostic(model, {"t": "temp"}, choice=CHOICE, precision="float32", **how)


def test_its_signatures_are_those_of_the_protocol(model: dr.Model) -> None:
    """Signatures of earth2studio/models/px/base.py of 0.19.0."""
    published = {
        "__call__": ["self", "x", "coords"],
        "create_iterator": ["self", "x", "coords"],
        "input_coords": ["self"],
        "output_coords": ["self", "input_coords"],
        "to": ["self", "device"],
    }
    for name, parameters in published.items():
        assert [*inspect.signature(getattr(Prognostic, name)).parameters] == parameters
    ready = prognostic(model)
    assert ready.to("cpu") is ready


def test_its_class_is_one_of_earth2studio(model: dr.Model) -> None:
    base = pytest.importorskip("earth2studio.models.px.base")
    assert isinstance(prognostic(model), base.PrognosticModel)


def test_coordinates_say_what_goes_in_and_comes_out(model: dr.Model) -> None:
    ready = prognostic(model)
    goes_in = ready.input_coords()
    assert [*goes_in] == ["batch", "lead_time", "variable", "lat", "lon"]
    assert goes_in["batch"].shape == (0,)
    np.testing.assert_array_equal(goes_in["lead_time"], HOURS)
    np.testing.assert_array_equal(goes_in["variable"], ["temp", "s"])
    np.testing.assert_allclose(goes_in["lat"], LATITUDES)
    np.testing.assert_array_equal(ready.output_coords(goes_in)["lead_time"], np.array([12], "m8[h]"))
    _, coords = inputs()
    comes_out = ready.output_coords(coords | {"lead_time": HOURS + np.timedelta64(24, "h")})
    assert [*comes_out] == [*coords]
    np.testing.assert_array_equal(comes_out["lead_time"], np.array([36], "m8[h]"))
    for name, values in {"lat": LATITUDES[::-1], "lead_time": HOURS[1:], "variable": np.array(["t", "s"])}.items():
        with pytest.raises(ValueError, match=f"{name} is .*expected .*bring the input to that"):
            ready.output_coords(coords | {name: values})
    with pytest.raises(ValueError, match="the dimensions are lat, lon; expected lead_time"):
        ready.output_coords({"lat": LATITUDES, "lon": LONGITUDES})


def test_frames_are_those_of_a_forecast(model: dr.Model) -> None:
    """Members of a start share the first heavy call, and have one each later."""
    x, coords = inputs()
    data, folder, expected = waves("ts", seed=5), model.path, []
    assert folder is not None
    for i, first in enumerate((0, 7)):
        file = saved(data.isel(time=slice(first, first + 3)), folder.parent / f"start{i}.nc")
        start = read_starts(file, model, pytest.fail)
        drawer = CHOICE.drawer(model, members=3, precision="float32")
        assert start.observed
        expected.append(rolled(drawer, start, 3, seed=4 + i)[0])
    rows: list[int] = []
    encoder = next(module for name, module in model.networks.named_children() if name == "encoder")
    hook = encoder.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[1])))
    frames = [*islice(prognostic(model, seed=4).create_iterator(x, coords), 4)]
    hook.remove()
    assert rows == [2, 6]
    torch.testing.assert_close(frames[0][0], x[:, :, 1:])
    assert [int(made["lead_time"][0] / np.timedelta64(1, "h")) for _, made in frames] == [0, 12, 24, 36]
    for k, (frame, made) in enumerate(frames[1:]):
        assert [*made] == [*coords]
        assert frame.shape == (3, 2, 1, 2, 8, 16)
        for i in (0, 1):
            np.testing.assert_allclose(frame[:, i, 0], expected[i][:, k], rtol=1e-4)
    once, made = prognostic(model, seed=4)(x, coords)
    torch.testing.assert_close(once, frames[1][0])
    assert made["lead_time"] == frames[1][1]["lead_time"]


def test_members_that_differ_or_come_in_parts_have_the_same_noise(model: dr.Model) -> None:
    x, coords = inputs()
    whole, _ = prognostic(model)(x, coords)
    last, _ = prognostic(model)(*inputs(1, 2))
    torch.testing.assert_close(last[0], whole[2], rtol=1e-4, atol=1e-2)
    moved = x.clone()
    moved[1] += 1e-3  # a perturbation, so that no call is shared
    apart, _ = prognostic(model)(moved, coords)
    torch.testing.assert_close(apart, whole, rtol=1e-3, atol=0.5)
    assert (apart[1] != whole[1]).any()
    assert (whole[0] - whole[1]).abs().max() > 1


@pytest.mark.parametrize("at_once", [3, 2])
def test_a_workflow_runs_an_ensemble_from_xarray_to_xarray(model: dr.Model, at_once: int) -> None:
    """Do as run.ensemble of earth2studio does with a source of data, a model and a store, by their signatures."""
    ready, data, times = prognostic(model).to("cpu"), waves("ts", seed=5), inputs()[1]["time"]
    goes_in, calls = ready.input_coords(), 2

    def source(time: Any, variable: Any) -> xarray.DataArray:
        """Arrays (time, variable, lat, lon), as DataSource.__call__."""
        named = [data[{"temp": "t"}.get(str(name), str(name))].sel(time=time) for name in variable]
        return xarray.concat(named, "variable").assign_coords(variable=variable).transpose("time", "variable", ...)

    leads = [lead.astype("m8[ns]") for lead in goes_in["lead_time"]]
    parts = [source(times + lead, goes_in["variable"]).assign_coords(time=times) for lead in leads]
    whole = xarray.concat(parts, xarray.Variable("lead_time", leads)).transpose("time", "lead_time", ...)
    step = ready.output_coords(goes_in)["lead_time"]
    total = ready.output_coords(goes_in).copy()
    del total["batch"]
    total |= {
        "ensemble": np.arange(3),
        "time": times,
        "lead_time": np.concatenate([step * i for i in range(calls + 1)]),
    }
    dims = ["ensemble", "time", "lead_time", "variable", "lat", "lon"]
    store = xarray.DataArray(
        np.full([len(total[name]) for name in dims], np.nan, np.float32), {n: total[n] for n in dims}
    )
    for first in range(0, 3, at_once):
        numbers = np.arange(first, min(first + at_once, 3))
        x = torch.as_tensor(whole.values).unsqueeze(0).repeat(len(numbers), *[1] * whole.ndim)
        coords = OrderedDict({"ensemble": numbers} | {str(name): np.array(whole[name]) for name in whole.dims})
        for number, (frame, now) in enumerate(ready.create_iterator(x, coords)):
            assert [*now] == dims
            store.loc[{name: now[name] for name in dims}] = frame.numpy()
            if number == calls:
                break
    assert not store.isnull().any()
    np.testing.assert_array_equal(store[:, :, 0, 0], np.broadcast_to(data.t.sel(time=times), store[:, :, 0, 0].shape))
    assert store.std("ensemble")[:, 1:].min() > 0
    expected = [frame for frame, _ in islice(prognostic(model).create_iterator(*inputs()), 3)]
    np.testing.assert_allclose(store, torch.cat(expected, 2), rtol=1e-4, atol=1e-2)


def test_other_leading_dimensions(model: dr.Model) -> None:
    """None, or time before ensemble."""
    x, coords = inputs()
    whole, _ = prognostic(model)(x, coords)
    turned = OrderedDict((name, coords[name]) for name in ("time", "ensemble", *[*coords][2:]))
    other, made = prognostic(model)(x.transpose(0, 1), turned)
    assert [*made][:2] == ["time", "ensemble"]
    torch.testing.assert_close(other, whole.transpose(0, 1))
    with pytest.raises(ValueError, match="the starts have no dates"):
        prognostic(model)(x[0, 0], OrderedDict((name, coords[name]) for name in [*coords][2:]))


def test_models_without_places_or_dates_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_networks(monkeypatch)
    placeless = untrained(saved(waves().drop_vars(["lat", "lon"]), tmp_path / "a.nc"), tmp_path / "a")
    with pytest.raises(ValueError, match="without latitudes, longitudes and even dates"):
        Prognostic(placeless)
    forced = untrained(saved(waves("ts", frames=80), tmp_path / "b.nc"), tmp_path / "b", forcings=("s",))
    with pytest.raises(ValueError, match="wants s ahead, which no workflow gives"):
        Prognostic(forced)
