"""Fields in several files: months, variables, members and splits, in folders and patterns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray

from dualrate.experiment.data_config import DataConfig
from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.recipe import Forecasting
from dualrate.forecasts.sources import find_fields, is_fields
from dualrate.forecasts.trajectories import timing_of
from dualrate.system.progress import Silent

V = np.random.default_rng(0).normal(size=(24, 2, 4, 6)).astype(np.float32)
HOURS = np.datetime64("2020-01-01", "ns") + np.arange(24) * np.timedelta64(6, "h")


def write(path: Path, first: int, last: int, names: str = "u", latitude: float = 0, number: int = 0) -> None:
    fields = {name: (("time", "lat", "lon"), V[first:last, "uv".index(name)] + number) for name in names}
    axes = {"lat": latitude + np.arange(4.0), "lon": np.arange(6.0)}
    path.parent.mkdir(exist_ok=True)
    xarray.Dataset(fields, {"time": HOURS[first:last], **axes}).to_netcdf(path, engine="h5netcdf")


def whole(source: Path | str, **how) -> np.ndarray:
    trajectory = find_fields(source, **how)[1].trajectories[0]
    assert timing_of(trajectory).breaks == ()
    return trajectory[0 : trajectory.shape[0]]


@pytest.fixture
def months(tmp_path: Path) -> Path:
    """Three files, whose names are not in the order of their times."""
    for name, first, last in (("c", 0, 10), ("a", 10, 11), ("b", 11, 24)):
        write(tmp_path / "months" / f"{name}.nc", first, last)
    return tmp_path / "months"


def test_files_are_joined_in_the_order_of_their_times(months: Path) -> None:
    for source in (months, str(months / "*.nc"), str(months.parent / "m*" / "?.nc"), str(months.parent / "**/*.nc")):
        assert is_fields(source)
        np.testing.assert_array_equal(whole(source), V[:, :1])
    trajectory = find_fields(months)[1].trajectories[0]
    for first, last in ((0, 1), (9, 12), (10, 11), (10, 24), (3, 3)):
        np.testing.assert_array_equal(trajectory[first:last], V[first:last, :1])
    experiment = Forecasting(DataConfig(str(months / "*.nc")))(Silent())
    assert len(experiment.load("train")) == 22
    assert len(read_fields(months, "test")) == 2


def test_files_with_a_gap_between_them_or_the_same_times_are_refused(months: Path) -> None:
    (months / "a.nc").unlink()
    with pytest.raises(
        ValueError, match=r"gap in time between .*c.nc \(to 2020-01-03T06.* and .*b.nc \(from 2020-01-03"
    ):
        find_fields(months)
    write(months / "a.nc", 9, 12)
    with pytest.raises(ValueError, match=r"a.nc begins at 2020-01-03T06.*c.nc ends at 2020-01-03T06.*keep one of each"):
        find_fields(months)


@pytest.mark.parametrize("clock", ["noleap", "360_day", "numbers"])
def test_files_with_times_of_other_kinds_are_refused(months: Path, clock: str) -> None:
    with xarray.open_dataset(months / "b.nc", engine="h5netcdf") as data:
        other = data.load()
    count = other.sizes["time"]
    times = np.arange(count) if clock == "numbers" else xarray.date_range("2020-01-04", periods=count, calendar=clock)
    other.assign_coords(time=times).to_netcdf(months / "b.nc", engine="h5netcdf")
    with pytest.raises(
        ValueError, match=rf"a.nc has the times as dates, and .*b.nc has (.* calendar )?{clock}: bring them to one"
    ):
        find_fields(months)


def test_a_gap_within_a_file_is_none_that_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m" / "a.nc", 0, 10)
    later = xarray.open_dataset(tmp_path / "m" / "a.nc").load().isel(time=[0, 1, 4, 5])
    later["time"] = later.time + np.timedelta64(60, "h")
    later.to_netcdf(tmp_path / "m" / "b.nc", engine="h5netcdf")
    assert timing_of(find_fields(tmp_path / "m")[1].trajectories[0]).breaks == (12,)


def test_files_of_other_variables_are_more_channels(tmp_path: Path) -> None:
    for name in "uv":
        for first in (0, 12):
            write(tmp_path / "m" / f"{name}_{first}.nc", first, first + 12, name)
    np.testing.assert_array_equal(whole(tmp_path / "m"), V)
    np.testing.assert_array_equal(whole(tmp_path / "m", names=("v", "u")), V[:, ::-1])
    assert find_fields(tmp_path / "m")[1].varying == ("u", "v")
    (tmp_path / "m" / "v_12.nc").unlink()
    with pytest.raises(ValueError, match=r"\(v\) and .*\(u\) have other times"):
        find_fields(tmp_path / "m")
    np.testing.assert_array_equal(whole(tmp_path / "m", names=("u",)), V[:, :1])


@pytest.mark.parametrize("names", [(), ("v", "u")])
def test_a_variable_in_files_of_other_variables_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    write(tmp_path / "m" / "a.nc", 0, 24, "u")
    write(tmp_path / "m" / "b.nc", 0, 24, "uv")
    with pytest.raises(ValueError, match=r"a.nc and .*b.nc: u comes twice, with other variables or .*: copy one"):
        find_fields(tmp_path / "m", names=names)
    np.testing.assert_array_equal(whole(tmp_path / "m", names=("v",)), V[:, 1:])


def test_a_file_without_a_level_of_the_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for name, (first, last), levels in (("a", (0, 12), [500.0, 850.0]), ("b", (12, 24), [500.0, 700.0])):
        axes = {"time": HOURS[first:last], "level": levels, "lat": np.arange(4.0), "lon": np.arange(6.0)}
        data = xarray.Dataset({"t": (("time", "level", "lat", "lon"), V[first:last])}, axes)
        data.to_netcdf(tmp_path / "m" / f"{name}.nc", engine="h5netcdf")
    np.testing.assert_array_equal(whole(tmp_path / "m", levels=(500,)), V[:, :1])
    with pytest.raises(ValueError, match=r"b.nc: t has no level 850"):  # else half of the times would be left out
        find_fields(tmp_path / "m", levels=(850,))


def test_a_projection_is_that_of_any_file(tmp_path: Path) -> None:
    write(tmp_path / "m" / "a.nc", 0, 12)
    write(tmp_path / "m" / "b.nc", 12, 24)
    with xarray.open_dataset(tmp_path / "m" / "b.nc", engine="h5netcdf") as file:
        data = file.load().assign(mapping=((), np.int32(0), {"grid_mapping_name": "mercator"}))
    data["u"].attrs["grid_mapping"] = "mapping"
    data.to_netcdf(tmp_path / "m" / "b.nc", engine="h5netcdf")
    assert find_fields(tmp_path / "m")[1].metadata.projection == '{"grid_mapping_name": "mercator"}'


def test_variables_of_other_heights_are_channels(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for name, height in {"u": 10.0, "v": 2.0}.items():
        write(flat := tmp_path / f"{name}.nc", 0, 24, name)
        data = xarray.load_dataset(flat, engine="h5netcdf")
        data.assign_coords(height=height, depth=0.5).to_netcdf(tmp_path / "m" / f"{name}.nc", engine="h5netcdf")
    np.testing.assert_array_equal(whole(tmp_path / "m"), V)
    source = find_fields(tmp_path / "m")[1]
    assert [each.name for each in source.metadata.coordinates if not each.axes] == ["depth"]


def test_variables_of_other_sections_are_no_channels_of_one(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for at, name in enumerate("uv"):
        write(field := tmp_path / f"{name}.nc", 0, 24, name)
        section = xarray.load_dataset(field, engine="h5netcdf").isel(lat=at)
        section.to_netcdf(tmp_path / "m" / f"{name}.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"has lat from 0 to 0, and .* has lat from 1 to 1"):
        find_fields(tmp_path / "m")


def test_files_of_the_same_times_are_trajectories(tmp_path: Path) -> None:
    for number in range(13):
        write(tmp_path / "m" / f"member_{number:03}.nc", 0, 6, number=number)
    source = find_fields(tmp_path / "m")[1]
    assert len(source.trajectories) == 13
    np.testing.assert_array_equal(source.trajectories[12][0:6], V[:6, :1] + 12)


@pytest.mark.parametrize("dated", [True, False])
def test_files_of_forecasts_are_trajectories_from_the_first_start_on(tmp_path: Path, dated: bool) -> None:
    (tmp_path / "m").mkdir()
    steps = np.arange(4) * np.timedelta64(6, "h")
    for start, (name, count) in enumerate({"c": 4, "a": 4, "b": 3}.items()):
        data = xarray.Dataset(
            {"u": (("step", "lat", "lon"), V[:count, 0] + start)},
            {"step": steps[:count], "time": HOURS[start], "lat": np.arange(4.0), "lon": np.arange(6.0)},
        )
        data = data.assign_coords(valid_time=data.time + data.step) if dated else data
        data.to_netcdf(tmp_path / "m" / f"{name}.nc", engine="h5netcdf")
    source = find_fields(tmp_path / "m")[1]
    assert ([trajectory.shape[0] for trajectory in source.trajectories], source.step) == ([4, 4, 3], 6)
    for start, trajectory in enumerate(source.trajectories):
        np.testing.assert_array_equal(trajectory[0:3], V[:3, :1] + start)
        assert timing_of(trajectory).times[0] == HOURS[start]


def test_files_of_one_step_each_follow_one_another(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    for i in range(4):
        data = xarray.Dataset(
            {"u": (("step", "lat", "lon"), V[i : i + 1, 0])},
            {"step": [np.timedelta64(6, "h")], "valid_time": ("step", HOURS[i : i + 1])}
            | {"lat": np.arange(4.0), "lon": np.arange(6.0)},
        )
        data.to_netcdf(tmp_path / "m" / f"{i}.nc", engine="h5netcdf")
    (trajectory,) = find_fields(tmp_path / "m")[1].trajectories
    np.testing.assert_array_equal(trajectory[0:4], V[:4, :1])


def test_splits_are_folders_or_in_names(tmp_path: Path) -> None:
    for folder, (train, test) in {"f": ("train/a.nc", "test/a.nc"), "n": ("u_train.nc", "u_test.nc")}.items():
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / train, 0, 12)
        write(tmp_path / folder / test, 12, 24)
        assert len(read_fields(tmp_path / folder, "train")) == 12
        np.testing.assert_array_equal(read_fields(tmp_path / folder, "test").frames(0, 0, 12), V[12:, :1])


def test_names_that_say_a_test_split_alone_have_a_way_out(months: Path) -> None:
    for file in [*months.iterdir()]:
        file.rename(file.with_stem(f"tas_evaluation_{file.stem}"))  # as CORDEX calls what is driven by a reanalysis
    with pytest.raises(ValueError, match=r"only the split eval: .*, or rename what is no split"):
        read_fields(months, "train")


def test_a_folder_of_folders_says_the_pattern_that_reads_it(months: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no files of fields; .*a pattern \('FOLDER/\*\*/\*.nc'\) names those"):
        find_fields(months.parent)


def test_files_of_other_places_are_refused(months: Path) -> None:
    write(months / "a.nc", 10, 11, latitude=30)
    with pytest.raises(ValueError, match=r"lat from .*lat from .*: bring them to one, or name those that fit"):
        find_fields(months)


def with_units(path: Path, units: str) -> None:
    with xarray.open_dataset(path, engine="h5netcdf") as data:
        other = data.load()
    other.u.attrs = {"units": units} if units else {}
    path.unlink()  # which may be open
    other.to_netcdf(path, engine="h5netcdf")


def test_files_of_other_units_are_refused_and_those_without_are_named(months: Path) -> None:
    """Whichever of them the first is."""
    for name, units in (("a", ""), ("b", "m s-1"), ("c", "")):
        with_units(months / f"{name}.nc", units)
    source = find_fields(months)[1]
    assert [each.units for each in source.metadata.variables] == ["m s-1"]
    assert source.note == "months/a.nc, months/c.nc without units or coordinates that months/b.nc says, which are taken"
    with_units(months / "c.nc", "km h-1")
    with pytest.raises(ValueError, match=r"has u in m s-1, and .*c\.nc has u in km h-1: bring them to one"):
        find_fields(months)


def curved(path: Path, first: int, last: int, name: str, latitude: float | None) -> None:
    """Fields of points with two coordinates each, or with units instead."""
    data = xarray.Dataset({name: (("time", "y", "x"), V[first:last, 0])}, {"time": HOURS[first:last]})
    if latitude is None:
        data[name].attrs["units"] = "m s-1"
    else:
        rows, columns = np.mgrid[0:4.0, 0:6.0]
        data = data.assign_coords(lat=(("y", "x"), rows + latitude), lon=(("y", "x"), columns))
    path.parent.mkdir(exist_ok=True)
    data.to_netcdf(path, engine="h5netcdf")


@pytest.mark.parametrize(
    ("parts", "names"),
    [([(0, 8), (8, 16), (16, 24)], "uuu"), ([(0, 24)] * 3, "uvw"), ([(0, 24)] * 3, "uuu")],
    ids=["times", "variables", "splits"],
)
def test_places_are_those_of_the_files_that_say_them(
    tmp_path: Path, parts: list[tuple[int, int]], names: str, request: pytest.FixtureRequest
) -> None:
    files = ["test", "train", "val"] if "splits" in request.node.name else ["a", "b", "c"]
    for file, part, name, latitude in zip(files, parts, names, (None, 0, None), strict=True):
        curved(tmp_path / "m" / f"{file}.nc", *part, name, latitude)
    source = find_fields(tmp_path / "m")[1]
    assert {each.name for each in source.metadata.coordinates} == {"lat", "lon"}
    assert f"m/{files[0]}.nc, m/{files[2]}.nc without units or coordinates that m/{files[1]}.nc says" in source.note
    (tmp_path / "m" / f"{files[2]}.nc").unlink()
    curved(tmp_path / "m" / f"{files[2]}.nc", *parts[2], names[2], 30)
    with pytest.raises(ValueError, match=r"lat from .*lat from .*: bring them to one"):
        find_fields(tmp_path / "m")


def test_files_of_the_same_variables_in_another_order_are_joined(tmp_path: Path) -> None:
    write(tmp_path / "m" / "a.nc", 0, 12, "uv")
    write(tmp_path / "m" / "b.nc", 12, 24, "vu")
    np.testing.assert_array_equal(whole(tmp_path / "m"), V)


def test_files_of_two_kinds_in_folders_of_splits_are_no_pattern(tmp_path: Path) -> None:
    for file in ("train/a.h5", "test/a.nc"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    with pytest.raises(ValueError, match=r"train/a.h5 and \S*test/a.nc: move one kind elsewhere"):
        find_fields(tmp_path)


def test_files_without_fields_are_left_out_and_named(months: Path) -> None:
    xarray.Dataset({"area": (("lat", "lon"), np.ones((4, 6)))}).to_netcdf(months / "area.nc", engine="h5netcdf")
    (months / "README").write_text("a text")
    assert "without fields: area.nc" in find_fields(months)[1].note
    np.testing.assert_array_equal(whole(months), V[:, :1])
    empty = months.parent / "empty"
    empty.mkdir()
    assert not is_fields(empty)
    with pytest.raises(FileNotFoundError, match="no such file or folder of fields"):
        find_fields(str(empty / "*.nc"))
