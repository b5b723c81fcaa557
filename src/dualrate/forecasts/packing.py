"""Numbers of files as their attributes say: packed ones physical, fills and what lies outside a valid range as NaN.

Coordinates are as plain as they can be: dates that single precision rounded, places that files repeat at all times.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.forecasts.metadata import text_of

FILLS = ("_FillValue", "missing_value")
PACKING = ("scale_factor", "add_offset", *FILLS, "_Unsigned")
UNWRITTEN = {"f4": 15 * 2.0**119, "f8": 15 * 2.0**119, "i2": 1 - 2**15, "i4": 1 - 2**31, "i8": 2 - 2**63}
UNWRITTEN |= {"u2": 2**16 - 1, "u4": 2**32 - 1, "u8": 2**64 - 2}  # by the kind that is stored
ANOTHER = {"_FillValue", "_Unsigned", "filters"}  # say that whole numbers have another fill; the last is of zarr


def physical(values: NDArray[Any], data: Any) -> NDArray[Any]:
    """Numbers of a dataset of h5py, by the conventions of NetCDF as xarray knows them."""
    attributes, storage = data.attrs, {"dtype": data.dtype} if data.fillvalue else {}  # 0 unless NetCDF wrote it
    if packing := {name: attributes[name] for name in PACKING if name in attributes}:
        from xarray import Variable, conventions

        values = conventions.decode_cf_variable("", Variable([*map(str, range(values.ndim))], values, packing)).values
    return valid(values, attributes, packing | storage)


def unrounded(data: Any) -> dict[Any, dict[str, Any]]:
    """The encoding that writes the numbers of a Dataset or DataArray as they are, whatever packed them in its file."""
    variables = getattr(data, "data_vars", {getattr(data, "name", None) or "__xarray_dataarray_variable__": data})
    return {
        name: {"dtype": each.dtype} | {key: each.encoding[key] for key in PACKING[:2] if key in each.encoding}
        for name, each in variables.items()
        if each.dtype.kind == "f"
    }


def valid(values: NDArray[Any], attributes: Mapping[str, Any], packing: Mapping[str, Any]) -> NDArray[Any]:
    """Unpacked numbers, NaN where they lie outside their valid range. packing: how they were packed, and their dtype

    A range in whole numbers is one of packed numbers, if they were packed. Fills that are texts, which xarray leaves,
    are NaN too, and what NetCDF puts where nothing was written, of whole numbers where nothing says another fill.
    """
    scale, offset = (float(np.squeeze(packing.get(name, usual))) for name, usual in zip(PACKING, (1, 0), strict=False))
    packed, outside = (scale, offset) != (1, 0), np.zeros(values.shape, bool)
    stored = np.dtype(packing.get("dtype", values.dtype)).str[1:]
    texts = [packing[name] for name in FILLS if np.asarray(packing.get(name, 0)).dtype.kind in "SUO"]
    fills = [fill for text in texts for fill in _numbers(text).tolist()]
    if stored in UNWRITTEN and (stored[0] == "f" or ("dtype" in packing and not ANOTHER & {*packing})):
        fills.append(UNWRITTEN[stored])
    for fill in fills:
        outside |= np.abs(values - (fill * scale + offset)) <= abs(scale) / 2 if packed else values == fill
    lows, highs, both = (_numbers(attributes.get(f"valid_{name}")) for name in ("min", "max", "range"))
    lows, highs = (both[:1], both[1:]) if len(both) == 2 else (lows[:1], highs[:1])
    unsigned = text_of(packing.get("_Unsigned", "")).lower() == "true"
    none = values.dtype.kind not in "fiu" or (not unsigned and (lows > highs).any())  # NEMO writes 1e20 to -1e20
    for low, limits in () if none else ((True, lows), (False, highs)):
        whole, slack = limits.dtype.kind in "iu", 0.0
        for limit in limits.tolist():  # which takes the precision of the values
            if whole and unsigned:
                limit = limit % 256 ** int(stored[1:])  # a negative number stands for a large one
            if whole and packed:
                limit, slack = limit * scale + offset, abs(scale) / 2
            outside |= values < limit - slack if low else values > limit + slack
    return np.where(outside, np.float32("nan"), values) if outside.any() else values


def _numbers(said: Any) -> NDArray[Any]:
    """The numbers of an attribute, which may be written as text, such as 0s, 4000s; none of other texts."""
    array = np.ravel(said)
    if array.dtype.kind in "fiu":
        return array
    text = " ".join(map(text_of, array)).strip(" []()")
    words = [word.rstrip("bBdDfFlLsSuU") for word in re.split(r"[\s,;]+", text)]
    with suppress(ValueError):
        numbers = np.array([float(word) for word in words])
        return numbers.astype(np.int64) if all(word.lstrip("+-").isdecimal() for word in words) else numbers
    return np.zeros(0)


def whole_dates(clock: Any) -> Any:
    """Dates of a file in single precision as the days, hours or minutes that they all are next to, if they are."""
    if clock.encoding.get("dtype") != np.float32 or "units" not in clock.encoding:
        return clock
    from xarray.conventions import encode_cf_variable

    variable = clock.variable.copy(deep=False)
    variable.encoding |= {"units": re.sub(r"\S+", "days", clock.encoding["units"], count=1)}
    with suppress(ValueError):  # of dates that are out of bounds when they are rounded
        days = float(np.spacing(np.abs(encode_cf_variable(variable).values).max()))
        apart = np.timedelta64(round(86_400e9 * days), "ns")
        for minutes in (1440, 60, 30, 15, 10, 5, 1):
            whole = clock.dt.round(f"{minutes}min")
            if np.timedelta64(minutes, "m") > 2 * apart and (abs(whole - clock) <= apart).all():
                return clock.copy(data=whole)
    return clock


def at_rest(data: Any, times: Collection[str], names: Collection[str]) -> Any:
    """A dataset whose coordinates of these names are over space alone, where a hundred times have the same (WRF)."""
    for name in names:
        for time in {*data[name].dims[:-1]} & {*times}:
            place, count = data[name].variable, data.sizes[time]
            some = (place[{time: i}] for i in np.linspace(0, count - 1, min(count, 100), dtype=int))
            if count and all(np.array_equal(each.values, place[{time: 0}].values) for each in some):
                data = data.assign_coords({name: place[{time: 0}]})
    return data
