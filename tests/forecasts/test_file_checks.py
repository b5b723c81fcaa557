"""Hostile and incomplete files of fields: what names code, other files or pieces that are not there is refused."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
import zarr
from cli.command import call
from numcodecs import pickles
from reading import names_used, tree_of
from scipy.io import netcdf_file

from dualrate.data import source
from dualrate.forecasts import file_checks
from dualrate.forecasts.fields import read_fields
from dualrate.forecasts.sources import find_fields, is_fields

ROOT = Path(__file__).resolve().parents[2]
WAVE = np.random.default_rng(0).normal(3, 2, (12, 8, 5)).astype(np.float32)  # (time, y, x)
PLAIN = {"compressor": None, "filters": None, "fill_value": None, "order": "C", "zarr_format": 2}
PICKLE = {"id": "pickle", "protocol": 4}


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def array_2(folder: Path, dims: tuple[str, ...], content: bytes, **metadata: Any) -> None:
    """An array of one chunk in zarr format 2."""
    folder.mkdir(parents=True)
    (folder / ".zarray").write_text(json.dumps(PLAIN | {"chunks": metadata["shape"]} | metadata))
    (folder / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": dims}))
    (folder / ".".join("0" * len(dims))).write_bytes(content)


def store_2(path: Path) -> Path:
    path.mkdir()
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    array_2(path / "u", ("time", "y", "x"), WAVE.tobytes(), shape=WAVE.shape, dtype="<f4")
    return path


def changed(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def store(path: Path, format: int, encoding: dict[str, Any] | None = None, wave: np.ndarray = WAVE) -> Path:
    """As xarray writes it, in chunks of five frames, but for what is said otherwise."""
    how = {"chunks": (5, 8, 5)} | (encoding or {})
    data = xarray.Dataset({"u": (("time", "y", "x"), wave)})
    data.to_zarr(path, zarr_format=format, consolidated=False, encoding={"u": how})  # pyright: ignore[reportCallIssue, reportArgumentType]
    return path


# Code


@pytest.mark.parametrize("name", ["time", "u", "unused", "group/deep"])
@pytest.mark.parametrize(
    "how",
    [
        {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, PICKLE]},
        {"dtype": "|O", "filters": [PICKLE]},
        {"dtype": "|O", "filters": [{"id": "vlen-utf8"}], "compressor": PICKLE},
        {"dtype": "<f8", "compressor": PICKLE},
        {"dtype": "<f8", "filters": [{"id": "json2"}]},
        {"dtype": "<f8", "filters": [{"id": "somebodys.codec"}]},
        {"dtype": "<f8", "filters": [{}]},
    ],
)
def test_a_store_names_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: dict[str, Any]) -> None:
    monkeypatch.setattr(pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)  # as before 0.16.6
    path = store_2(tmp_path / "a.zarr")
    if name == "u":
        changed(path / "u" / ".zarray", lambda one: one.update(how))
        (path / "u" / "0.0.0").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    else:
        array_2(path / name, ("time",), pickle.dumps(Payload(tmp_path / "ran")), shape=[12], **how)
    with pytest.raises(ValueError, match=rf"{name}/\.zarray names the codec .*expected one of .*zstd"):
        read_fields(path, "train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", ["|O", "O", "object", [["a", "<f4"]], "|V8", None, 4])
def test_a_store_holds_no_objects(tmp_path: Path, dtype: Any) -> None:
    path = store_2(tmp_path / "a.zarr")
    array_2(path / "time", ("time",), bytes(96), shape=[12], dtype=dtype)
    with pytest.raises(ValueError, match=r"time/\.zarray has the dtype .*expected numbers"):
        read_fields(path, "train")


@pytest.mark.parametrize("format", [2, 3])
@pytest.mark.parametrize("inline", [False, True])
def test_consolidated_metadata_name_no_code_either(tmp_path: Path, format: int, inline: bool) -> None:
    path = store(tmp_path / "a.zarr", format)
    bad = PLAIN | {"shape": [12], "chunks": [12], "dtype": "<f8", "compressor": PICKLE}
    if format == 2 and inline:
        (path / ".zmetadata").write_text(json.dumps({"zarr_consolidated_format": 1, "metadata": {"g/u/.zarray": bad}}))
    elif format == 2:
        changed(path / "u" / ".zarray", lambda one: one.update(filters=[PICKLE]))
    else:
        node = json.loads((path / "u" / "zarr.json").read_text())
        node["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
        if inline:
            inner = {"kind": "inline", "must_understand": False, "metadata": {"g/u": node}}
            changed(path / "zarr.json", lambda one: one.update(consolidated_metadata=inner))
        else:
            (path / "u" / "zarr.json").write_text(json.dumps(node))
    with pytest.raises(ValueError, match=r"a\.zarr/.*u.* names the codec '(numcodecs\.)?pickle'"):
        read_fields(path, "train")


def test_codecs_within_shards_are_looked_at(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", 3, {"chunks": (5, 8, 5), "shards": (10, 8, 5)})
    for inner in ("codecs", "index_codecs"):
        before = (path / "u" / "zarr.json").read_text()
        changed(
            path / "u" / "zarr.json",
            lambda one, inner=inner: one["codecs"][0]["configuration"][inner].append({"name": "numcodecs.pickle"}),
        )
        with pytest.raises(ValueError, match=r"u/zarr\.json names the codec 'numcodecs\.pickle'"):
            find_fields(path)
        (path / "u" / "zarr.json").write_text(before)


def test_a_store_of_both_formats_is_refused(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", 2)
    (path / "u" / "zarr.json").write_text("{}")
    with pytest.raises(ValueError, match="metadata of zarr formats 2 and 3"):
        find_fields(path)


@pytest.mark.parametrize("name", [".zarray", ".zattrs"])
@pytest.mark.parametrize("content", ["", "[1]", "{", '{"shape": 1, "shape": 2}', '"a"', "[" * 100_000])
def test_metadata_that_are_none(tmp_path: Path, name: str, content: str) -> None:
    path = store_2(tmp_path / "a.zarr")
    (path / "u" / name).write_text(content)
    with pytest.raises(ValueError, match=rf"a\.zarr/u/{name} (is not JSON|holds no JSON object)"):
        find_fields(path)
    (path / "u" / name).write_text(" " * (file_checks.MOST_METADATA + 1))
    with pytest.raises(ValueError, match="the most that is accepted here"):
        find_fields(path)


@pytest.mark.parametrize("format", [2, 3])
def test_texts_are_read(tmp_path: Path, format: int) -> None:
    data = xarray.Dataset({"u": (("time", "channel", "x"), WAVE)}, {"channel": [f"level {i}" for i in range(8)]})
    for i, kind in enumerate((np.dtype("U7"), object)):
        changed_type = data.assign_coords(channel=data.channel.astype(kind))
        changed_type.to_zarr(tmp_path / f"{i}.zarr", zarr_format=format, consolidated=False)  # pyright: ignore[reportArgumentType]
        assert find_fields(tmp_path / f"{i}.zarr")[1].variables[7] == "level 7"


def test_no_other_part_opens_such_files() -> None:
    libraries = ("xarray.open", "zarr.", "h5netcdf.", "h5py.File")
    opening = {
        path.name
        for path in (ROOT / "src").rglob("*.py")
        if any(name.startswith(libraries) for name in names_used(tree_of(path)))
    }
    assert opening == {"hdf5.py", "netcdf.py", "file_checks.py"}


@pytest.mark.slow
def test_old_versions_run_no_code_either(tmp_path: Path) -> None:
    old = tmp_path / "old"
    wanted = ("zarr==2.18.3", "numcodecs==0.15.1", "xarray==2024.7.0", "asciitree", "fasteners", "deprecated", "wrapt")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(old), *wanted]
    if (done := subprocess.run(pip, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"the old versions are not to be had: {done.stderr[-200:]}")
    for i, how in enumerate(
        (
            {"dtype": "|O", "filters": [{"id": "vlen-utf8"}, PICKLE]},
            {"dtype": "|O", "filters": [PICKLE]},
            {"dtype": "<f8", "compressor": PICKLE},
        )
    ):
        array_2(
            store_2(tmp_path / f"{i}.zarr") / "time",
            ("time",),
            pickle.dumps(Payload(tmp_path / "ran")),
            shape=[12],
            **how,
        )
    code = """
import sys, numcodecs, xarray, zarr
assert (zarr.__version__, numcodecs.__version__, xarray.__version__) == ("2.18.3", "0.15.1", "2024.7.0")
for path in sys.argv[2:]:
    try:
        if sys.argv[1] == "guarded":
            from dualrate.forecasts.fields import read_fields
            read_fields(path, "train")
        else:
            xarray.open_dataset(path, engine="zarr", consolidated=False)["time"].values
    except Exception as error:
        print(error)
"""
    stores = [str(tmp_path / f"{i}.zarr") for i in range(3)]
    paths = os.pathsep.join([str(old), str(ROOT / "src")])
    for how in ("guarded", "plain"):
        done = subprocess.run(
            [sys.executable, "-c", code, how, *stores],
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (tmp_path / "ran").exists() == (how == "plain"), done.stdout
        assert how == "plain" or done.stdout.count("names the codec 'pickle'") == 3


# Other files


def fields_file(path: Path, group: str = "train") -> h5py.File:
    """HDF5 of PDEArena with everything but its fields."""
    file = h5py.File(path, "w")
    file.create_group(group)["t"] = np.arange(6.0)
    return file


def external(file: h5py.File, other: Path, name: str) -> None:
    file.create_dataset(name, (4, 6, 8), "u1", external=[(str(other), 0, 192)])


def linked(file: h5py.File, other: Path, name: str) -> None:
    file[name] = h5py.ExternalLink(str(other), "/data")


def virtual(file: h5py.File, other: Path, name: str) -> None:
    layout = h5py.VirtualLayout((4, 6, 8), "f4")
    layout[:] = h5py.VirtualSource(str(other), "data", (4, 6, 8))
    file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("version", [1, 2])
def test_netcdf_3_is_read(tmp_path: Path, version: int) -> None:
    with netcdf_file(tmp_path / "old.nc", "w", version=version) as file:
        for name, size in (("time", 6), ("y", 3), ("x", 5)):
            file.createDimension(name, size)
        file.createVariable("u", "f4", ("time", "y", "x"))[:] = np.arange(90).reshape(6, 3, 5)
    np.testing.assert_array_equal(find_fields(tmp_path / "old.nc")[1].trajectories[0][0:6].ravel(), np.arange(90))
    whole = (tmp_path / "old.nc").read_bytes()
    (tmp_path / "short.nc").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"short.nc cannot be read as NetCDF"):
        find_fields(tmp_path / "short.nc")[1].trajectories[0][0:6]
    (tmp_path / "wide.nc").write_bytes(b"CDF\x05" + whole[4:])
    with pytest.raises(ValueError, match=r"wide.nc is NetCDF 3 with data of 64 bits.*nccopy -k nc4"):
        find_fields(tmp_path / "wide.nc")


@pytest.mark.parametrize("suffix", [".h5", ".nc"])
@pytest.mark.parametrize("name", ["train/pde_6-8", "beside/deep/unused"])
@pytest.mark.parametrize(
    ("write", "message"),
    [(external, "in another file"), (linked, "a link to another file"), (virtual, "a virtual dataset")],
)
def test_hdf5_names_no_other_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
    name: str,
    write: Callable[..., None],
    message: str,
) -> None:
    with h5py.File(tmp_path / "other", "w") as file:
        file["data"] = np.ones((4, 6, 8), np.float32)
    path = tmp_path / f"a{suffix}"
    with fields_file(path) as file:
        write(file, tmp_path / "other", name)
    with pytest.raises(ValueError, match=rf"a\{suffix}: /?{name} .*{message}"):
        find_fields(path)
    (tmp_path / "other").unlink()
    os.mkfifo(tmp_path / "other")  # nothing waits for it
    with pytest.raises(ValueError, match=message):
        find_fields(path)
    assert call(monkeypatch, "train", "forecast", "--data.source", path, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err


def test_a_link_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other", "w") as file:
        file["pde_6-8"] = np.ones((4, 6, 8))
    with fields_file(tmp_path / "a.h5") as file:
        file["train/pde_6"] = np.ones((4, 6, 8))
    content = (tmp_path / "a.h5").read_bytes()
    assert content.count(b"pde_6\0") == 1
    (tmp_path / "a.h5").write_bytes(content.replace(b"pde_6\0", b"pde/6\0"))
    with pytest.raises(ValueError, match=r"a\.h5: a member of /train is called 'pde/6'"):
        find_fields(tmp_path / "a.h5")


def test_groups_within_groups_without_end(tmp_path: Path) -> None:
    with fields_file(tmp_path / "a.h5") as file:
        inner: Any = file
        for _ in range(1000):
            inner = inner.create_group("a")
        inner["last"] = h5py.ExternalLink("other", "/data")
    with pytest.raises(ValueError, match="/a/last is a link to another file"):
        find_fields(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "write", [lambda f, n: f.create_group(n), lambda f, n: f.create_dataset(n, data=h5py.Empty("f"))]
)
@pytest.mark.parametrize("name", ["train/pde_6-8", "train/t", "train/dt", "t0_fields/u", "dimensions/time"])
def test_what_is_no_array_is_named(tmp_path: Path, name: str, write: Callable[[h5py.File, str], Any]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write(file, name)
        file.require_group("dimensions").attrs["spatial_dims"] = ["x"]
        for other in ("train/pde_6-8",) if name.startswith("train") else ("t0_fields/u",):
            if other not in file:
                file[other] = np.ones((4, 6, 8))
    with pytest.raises(ValueError, match=rf"a\.h5: /{name} is no array"):
        find_fields(tmp_path / "a.h5")


def test_hdf5_within_one_file_is_read(tmp_path: Path) -> None:
    with fields_file(tmp_path / "a.h5") as file:
        file["store"] = np.random.default_rng(0).normal(size=(4, 6, 8))
        file["train/pde_6-8"] = h5py.SoftLink("/store")
        file["loop"] = file["train/above"] = file["/"]
        file["nowhere"] = h5py.SoftLink("/missing")
    assert len(read_fields(tmp_path / "a.h5", "train")) == 18


def test_filters_that_are_plugins_are_refused(tmp_path: Path) -> None:
    with fields_file(tmp_path / "a.h5") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((4, 6, 8))
        made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file["train"].id, b"pde_6-8", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4, 6, 8)), made)
    with pytest.raises(ValueError, match=r"train/pde_6-8 is written by filter 32015, a plugin; expected deflate"):
        find_fields(tmp_path / "a.h5")


@pytest.mark.parametrize("place", ["u/0.0.0", "u/.zarray", ".zgroup", "u", "beside"])
def test_a_store_leads_nowhere_and_holds_no_pipe(tmp_path: Path, place: str) -> None:
    path = store_2(tmp_path / "a.zarr")
    if (path / place).exists():
        (path / place).rename(tmp_path / "moved")
    else:
        (tmp_path / "moved").touch()
    (path / place).symlink_to(tmp_path / "moved")
    with pytest.raises(ValueError, match=rf"a\.zarr/{place} is a link"):
        find_fields(path)
    (path / place).unlink()
    os.mkfifo(path / place)
    with pytest.raises(ValueError, match=rf"a\.zarr/{place} is a named pipe"):
        find_fields(path)


@pytest.mark.parametrize("suffix", [".nc", ".h5", ".npz", ".npy", ".zarr"])
def test_a_pipe_is_no_source(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"a{suffix}")
    is_fields(tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match=r"is a named pipe|is no folder"):
        find_fields(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("ending", [".nc", ".h5", ".npy", ".npz"])
@pytest.mark.parametrize(
    ("content", "words"),
    [("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"), ("\n<!DOCTYPE html>", "of HTML")],
)
def test_what_stands_in_place_of_a_file_is_named(tmp_path: Path, ending: str, content: str, words: str) -> None:
    (file := tmp_path / f"a{ending}").write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} cannot be read as .*: it is a p.*{words}"):
        find_fields(file)


def test_a_store_is_a_folder_with_a_plain_name(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=r"a\.zarr is no folder, which a zarr store is: unpack it"):
        find_fields(tmp_path / "a.zarr")
    (tmp_path / "file::a.zarr").mkdir()
    with pytest.raises(ValueError, match="has :: in its name"):
        find_fields(tmp_path / "file::a.zarr")


# Missing pieces


@pytest.mark.parametrize(
    ("format", "how", "pieces", "lost"),
    [
        (2, {}, 3, "2.0.0"),
        (3, {}, 3, "c/2/0/0"),
        (3, {"chunks": (5, 4, 5)}, 6, "c/1/1/0"),
        (3, {"chunks": (5, 8, 5), "shards": (10, 8, 5)}, 3, "c/1/0/0"),
        (3, {"chunks": (5, 4, 5), "shards": (10, 8, 5)}, 6, None),
    ],
)
def test_chunks_that_are_not_there_are_counted(
    tmp_path: Path, format: int, how: dict[str, Any], pieces: int, lost: str | None
) -> None:
    how = {"_FillValue": None, **how} if format == 2 else how
    path = store(tmp_path / "a.zarr", format, how)
    assert file_checks.missing_of_zarr(path / "u") == (0, pieces)
    np.testing.assert_array_equal(find_fields(path)[1].trajectories[0][0:12][:, 0], WAVE)
    missing = 1
    if lost is None:  # one of the chunks of a shard
        wave = WAVE.copy()
        wave[0:5, 0:4] = np.nan  # the fill value
        path = store(tmp_path / "b.zarr", format, how, wave)
    else:
        missing = 1 if "/1/0/0" not in lost else pieces - 2
        (path / "u" / lost).unlink()
    with pytest.raises(ValueError, match=rf"\.zarr: u: {missing} of {pieces} piece\(s\).*write_empty_chunks=True"):
        find_fields(path)


@pytest.mark.parametrize("between", [".", "/"])
@pytest.mark.parametrize("format", [2, 3])
def test_both_ways_to_name_chunks(tmp_path: Path, format: int, between: str) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=format)  # pyright: ignore[reportArgumentType]
    for name in ("v2", "default")[: format - 1]:
        keys = {"name": name, "separator": between}
        array = group.create_array(
            name, shape=(12, 8, 5), dtype="f4", chunks=(5, 3, 5), chunk_key_encoding=keys, dimension_names=None
        )  # pyright: ignore[reportArgumentType]
        array[:] = WAVE
        folder = tmp_path / "a.zarr" / name
        assert file_checks.missing_of_zarr(folder) == (0, 9)
        (folder / "9.9.9").touch()  # no chunk of this array
        start = "c" + between if name == "default" else ""
        (folder / f"{start}{between.join('121')}").unlink(missing_ok=True)
        (folder / f"{start}{between.join('120')}").unlink()
        assert file_checks.missing_of_zarr(folder) == (1, 9)


@pytest.mark.parametrize("lost", ["valid_time", "lat", "west"])
@pytest.mark.parametrize("kind", ["zarr", "nc"])
def test_coordinates_beside_those_of_axes_are_looked_at_too(tmp_path: Path, kind: str, lost: str) -> None:
    """A mask may be 0 everywhere, and a height."""
    units = {"lat": "degrees_north", "west": "degrees_east"}
    places = {name: (("y", "x"), np.ones((3, 5)), {"units": said}) for name, said in units.items()}
    beside = {"valid_time": ("frame", np.arange(1.0, 9.0)), "mask": (("y", "x"), np.zeros((3, 5))), "height": 0.0}
    data = xarray.Dataset({"u": (("frame", "y", "x"), np.ones((8, 3, 5), np.float32))}, {**places, **beside})
    path, how = tmp_path / f"data.{kind}", {name: {"_FillValue": None} for name in data.coords}
    if kind == "zarr":
        data.to_zarr(path, zarr_format=2, consolidated=False, encoding=how)
        assert len(find_fields(path)[1].metadata.coordinates) == 4
        (chunk,) = (file for file in (path / lost).iterdir() if file.name[0] != ".")
        chunk.unlink()
    else:
        data.to_netcdf(path, engine="h5netcdf", encoding=how)
        with h5py.File(path, "a") as file:
            shape = file[lost].shape
            del file[lost]
            file.create_dataset(lost, shape, "f8").attrs["units"] = units.get(lost, "")
    with pytest.raises(ValueError, match=rf"data.{kind}: {lost}: 1 of 1 piece\(s\) \(chunks\) are not there") as error:
        find_fields(path)
    assert ("write_empty_chunks" in str(error.value)) == (kind == "zarr")


def test_one_number_of_a_coordinate_may_be_its_fill_value(tmp_path: Path) -> None:
    data = xarray.Dataset({"u": (("time", "y", "x"), WAVE)}, {"time": np.arange(12), "y": np.arange(8.0)})
    encoding = {"u": {"chunks": (5, 8, 5)}, "time": {"chunks": (1,)}, "y": {"chunks": (8,)}}
    data.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False, encoding=encoding)
    assert file_checks.missing_of_zarr(tmp_path / "a.zarr/time") == (1, 12)  # zarr leaves out what is all 0
    assert find_fields(tmp_path / "a.zarr")[1].step == 1
    (tmp_path / "a.zarr/time/c/5").unlink()
    with pytest.raises(ValueError, match=r"a\.zarr: time: 2 of 12 piece"):
        find_fields(tmp_path / "a.zarr")
    (tmp_path / "a.zarr/y/c/0").unlink()
    (tmp_path / "a.zarr/time").rename(tmp_path / "time")
    with pytest.raises(ValueError, match=r"a\.zarr: y: 1 of 1 piece"):
        find_fields(tmp_path / "a.zarr")


@pytest.mark.parametrize("chunks", [(1, 6, 8), (2, 3, 4), None])
@pytest.mark.parametrize("kind", ["pdearena", "planes", "well", "netcdf", "times"])
def test_hdf5_that_was_never_written_is_counted(tmp_path: Path, kind: str, chunks: tuple[int, ...] | None) -> None:
    numbers = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    path = tmp_path / ("a.nc" if kind == "netcdf" else "a.h5")

    def written(times: bool) -> None:
        path.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            group = file.create_group({"well": "t0_fields", "netcdf": "/beside"}.get(kind, "train"))
            shape, name = numbers.shape, {"well": "u", "planes": "u", "netcdf": "/u"}.get(kind, "pde_6-8")
            if kind == "planes":
                shape = (*shape, 1)
            data = group.create_dataset(name, shape, "f4", chunks=chunks and (*chunks, 1)[: len(shape)])
            if kind == "well":
                file.create_group("dimensions").attrs["spatial_dims"] = ["x"]
            if kind == "netcdf":
                for i, dim in enumerate(("sample", "time", "x")):
                    file[dim] = np.arange(shape[i])
                    file[dim].make_scale(dim)
                    data.dims[i].attach_scale(file[dim])
            if kind == "times":
                stamps = file.create_dataset("train/t", (4, 6), "f4", chunks=chunks and (2, 6))
                data[:] = numbers
                if times:
                    stamps[:] = np.arange(6)
                elif chunks:
                    stamps[:2] = np.arange(6)
            elif times:
                data[:] = numbers.reshape(shape)
            elif chunks:
                data[:2] = numbers.reshape(shape)[:2]

    written(True)
    assert len(find_fields(path)[1].trajectories) == 4
    written(False)
    pieces = {None: "1 of 1", (1, 6, 8): "2 of 4", (2, 3, 4): "4 of 8"}[chunks]
    with pytest.raises(
        ValueError, match=rf"a\.(h5|nc): /?\S+: {'1 of 2' if kind == 'times' and chunks else pieces} piece"
    ):
        find_fields(path)


# Claims


def test_more_trajectories_than_any_file_holds(tmp_path: Path) -> None:
    huge = 10**15
    with fields_file(tmp_path / "a.h5") as file:
        file["train"].create_dataset("pde_6-8", (huge, 6, 8), "f4", chunks=(1, 6, 8))
    with fields_file(tmp_path / "a.nc") as file:
        file.create_dataset("u", (huge, 6, 8), "f4", chunks=(1, 6, 8))
        for i, dim in enumerate(("sample", "time", "x")):
            file[dim] = np.arange(8)
            file[dim].make_scale(dim)
            file["u"].dims[i].attach_scale(file[dim])
    with fields_file(tmp_path / "b.nc") as file:
        file.create_dataset("time", (huge,), "f4", chunks=(8,))
    path = store_2(tmp_path / "a.zarr")
    changed(path / "u" / ".zarray", lambda one: one.update(shape=[huge, 8, 5]))
    other = store_2(tmp_path / "b.zarr")
    changed(other / "u" / ".zarray", lambda one: one.update(shape=[huge, 8, 5], chunks=[huge, 8, 5]))
    array_2(store_2(tmp_path / "c.zarr") / "time", ("time",), b"", shape=[huge], chunks=[8], dtype="<f8")
    array_2(store_2(tmp_path / "d.zarr") / "time", ("time",), b"", shape=[8], chunks=[8], dtype="<U999999999")
    for name in ("a.h5", "a.nc", "b.nc", "a.zarr", "b.zarr", "c.zarr", "d.zarr"):
        with pytest.raises(
            ValueError, match=rf"{name}.*(claims|of 1,000,000|pieces?\(s\)|bytes at once|different|cannot)"
        ):
            find_fields(tmp_path / name)


def test_few_bytes_that_claim_many_trajectories(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("train/pde_2-1", (2**25, 2, 1), "i1", chunks=(2**25, 2, 1), compression="gzip")[:] = 1
    np.save(tmp_path / "a.npy", np.zeros((2**25, 1, 1, 1), np.int8))
    for name in ("a.h5", "a.npy"):
        with pytest.raises(ValueError, match=rf"{name} claims 33,554,432 trajectories; at most 16,777,216"):
            find_fields(tmp_path / name)


# What comes later


def damaged(path: Path) -> Path:
    """Fields whose chunks cannot be decoded."""
    if path.suffix == ".zarr":
        store(path, 2, {"chunks": (12, 8, 5), "_FillValue": None})
        (path / "u" / "0.0.0").write_bytes(b"no blosc")
        return path
    with h5py.File(path, "w") as file:
        data = file.create_dataset("train/pde_6-8", (4, 6, 8), "f4", chunks=(4, 6, 8), compression="gzip")
        data[:] = 1
        data.id.write_direct_chunk((0, 0, 0), b"no deflate", 0)
    return path


@pytest.mark.parametrize("name", ["a.zarr", "a.h5"])
def test_what_fails_later_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = damaged(tmp_path / name)
    found = find_fields(path)[1]
    with pytest.raises(ValueError, match=rf"{name} cannot be read as fields"):
        found.trajectories[0][0:2]
    assert call(monkeypatch, "train", "forecast", "--data.source", path, "--out", tmp_path / "run") == 2
    assert re.fullmatch(rf"dualrate: .*{name} cannot be read as fields: .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(("size", "kind"), [(8, MemoryError), (10**15, ValueError)])
def test_memory_that_nobody_has_is_a_claim_of_the_file(tmp_path: Path, size: int, kind: type[Exception]) -> None:
    error = MemoryError(f"Unable to allocate {size} numbers")
    vars(error).update(shape=(size, 1000), dtype=np.dtype("f8"))  # as of numpy
    with pytest.raises(kind, match=r"a\.h5"), source.reading(tmp_path / "a.h5", "HDF5"):
        raise error


def test_integers_of_64_bits_are_no_constant(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).integers(-9, 10, (4, 6, 1, 8))
    for dtype, offset, refused in ((np.int64, 2**60, True), (np.uint64, 2**63 + 2**60, True), (np.int64, 2**10, False)):
        np.save(tmp_path / "a.npy", wave.astype(dtype) + dtype(offset))
        if refused:
            with pytest.raises(ValueError, match=r"u has the mean .* and the standard deviation 5\.\d+, .* subtract"):
                read_fields(tmp_path / "a.npy", "train")
        else:
            read_fields(tmp_path / "a.npy", "train")
    np.save(tmp_path / "a.npy", np.full((4, 6, 1, 8), 2**60))
    read_fields(tmp_path / "a.npy", "train")


def test_variables_differ_in_every_kind_of_file(tmp_path: Path) -> None:
    data = xarray.Dataset(
        {"u": (("time", "channel", "x"), WAVE)}, {"channel": ["a", "b", "c", "d", "e", "f", "g", "a"]}
    )
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    data.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("dimensions").attrs["spatial_dims"] = ["x", "y"]
        for group, name, ends in (("t0_fields", "velocity_x", ()), ("t1_fields", "velocity", (2,))):
            file[f"{group}/{name}"] = np.ones((3, 6, 4, 5, *ends))
    for name in ("a.nc", "a.zarr", "a.h5"):
        with pytest.raises(
            ValueError, match=rf"{name} has the variables .* expected \d+, a name for each channel, all of them diff"
        ):
            find_fields(tmp_path / name)
