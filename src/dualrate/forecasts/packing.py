"""Numbers of files as their attributes say: packed ones physical, fills and what lies outside a valid range as NaN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
UNWRITTEN = 15 * 2.0**119  # of float and double


def physical(values: NDArray[Any], attributes: Mapping[str, Any]) -> NDArray[Any]:
    """Numbers of a dataset that nothing has decoded yet, by the conventions of NetCDF as xarray knows them."""
    if packing := {name: attributes[name] for name in PACKING if name in attributes}:
        from xarray import Variable, conventions

        dims = [f"axis{i}" for i in range(values.ndim)]
        values = conventions.decode_cf_variable("", Variable(dims, values, packing)).values
    return valid(values, attributes, attributes)


def valid(values: NDArray[Any], attributes: Mapping[str, Any], packing: Mapping[str, Any]) -> NDArray[Any]:
    """Unpacked numbers, NaN where they lie outside their valid range. packing: how they were packed

    A range in whole numbers is one of packed numbers, if they were packed. What NetCDF puts where nothing was
    written is NaN too.
    """
    if values.dtype.kind == "f" and values.itemsize > 2 and (unwritten := values == UNWRITTEN).any():
        values = np.where(unwritten, values.dtype.type("nan"), values)
    limits = attributes.get("valid_range", (attributes.get("valid_min"), attributes.get("valid_max")))
    low, high = (None, None) if np.size(limits) != 2 else limits
    if (low is None and high is None) or values.dtype.kind not in "fiu":
        return values
    scale, offset = (float(np.squeeze(packing.get(name, usual))) for name, usual in zip(PACKING, (1, 0), strict=False))
    outside = np.zeros(values.shape, bool)
    for limit, sign in ((low, 1), (high, -1)):
        if limit is not None:
            limit, slack = np.squeeze(limit), 0.0
            if limit.dtype.kind in "iu" and (scale, offset) != (1, 0):
                limit, slack = limit * scale + offset, abs(scale) / 2
            outside |= sign * values < sign * limit - slack
    return np.where(outside, np.float32("nan"), values) if outside.any() else values
