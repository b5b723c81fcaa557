"""A forecast as a prognostic model of earth2studio, whose workflows run it; nothing of that package is needed here.

    x       (..., lead_time, variable, lat, lon) in the units of the training data; its coordinates a dict in that order
    known   `past` frames, at lead times up to 0;   made: one frame after the other

Leading dimensions are any, such as `ensemble` and `time`. Where the starts along `ensemble` are alike, they share a
heavy call; else each has its own. Noise is by the seed, by the numbers of `ensemble` and by the place along the other
dimensions, so that an ensemble may be drawn in parts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import Precision
from dualrate.drawing.choice import Choice
from dualrate.experiment.model import Model
from dualrate.forecasts.externals import Forcings
from dualrate.forecasts.model import forecast_of
from dualrate.forecasts.rollout import MemberBatch, windows_after
from dualrate.sampling.trajectory import MEMBER

Coordinates = OrderedDict[str, NDArray[Any]]
ENSEMBLE, TIME, LEAD, VARIABLE = "ensemble", "time", "lead_time", "variable"


class Prognostic:
    """The protocol of earth2studio 0.19: `__call__`, `create_iterator`, `input_coords`, `output_coords` and `to`.

    names:  of variables there, by their names in the run: {"t_850": "t850"}; of the others the same
    choice: steps, heavy calls and sampler; seed: of the first start
    Raises ValueError for a model that makes no forecasts, or whose data does not say latitudes, longitudes and dates.
    """

    def __init__(
        self,
        model: Model,
        names: Mapping[str, str] | None = None,
        *,
        choice: Choice = Choice(),  # noqa: B008  frozen
        seed: int = 0,
        precision: Precision = "auto",
    ) -> None:
        forecast = forecast_of(model)
        self.model, self.choice, self.seed, self.precision = model, choice, seed, precision
        axes = [axis for axis in forecast.geometry.axes if axis.values]
        dated = forecast.metadata.time == "hours" and forecast.step is not None
        if [axis.place for axis in axes] != ["latitude", "longitude"] or not dated:
            raise ValueError(f"{model.name} is of data without latitudes, longitudes and even dates: train on such")
        if forecast.externals.variables:
            raise ValueError(
                f"{model.name} wants {', '.join(forecast.externals.variables)} ahead, which no workflow gives"
            )
        self.space = [("lat", np.array(axes[0].values)), ("lon", np.array(axes[1].values))]
        self.hours = [(forecast.step or 0) * forecast.lead * i for i in range(1 - forecast.past, 1)]
        self.variables = np.array([(names or {}).get(name, name) for name in forecast.names])

    def to(self, device: Any) -> Prognostic:
        """This model on a device."""
        self.model.networks.to(device)
        return self

    def input_coords(self) -> Coordinates:
        """The coordinates of what it takes; `batch` stands for any leading dimensions."""
        return self._coords([("batch", np.empty(0))], self.hours)

    def output_coords(self, input_coords: Mapping[str, NDArray[Any]]) -> Coordinates:
        """The coordinates of the next frame. Raises ValueError for other inputs than `input_coords` says."""
        leading = [(name, values) for name, values in input_coords.items() if name not in self._coords([], [])]
        expected = self._coords(leading, self.hours)
        latest = np.asarray(input_coords.get(LEAD, np.zeros(1, "m8[h]")))[-1]
        if [*input_coords] != [*expected]:
            raise ValueError(f"the dimensions are {', '.join(input_coords)}; expected {', '.join(expected)}")
        for name, values in expected.items():
            got = np.asarray(input_coords[name]) - latest if name == LEAD else np.asarray(input_coords[name])
            same = got.shape == values.shape and (
                np.allclose(got, values) if values.dtype.kind == "f" else (got == values).all()
            )
            if not same:
                raise ValueError(f"{name} is {_few(got)}; expected {_few(values)}: bring the input to that")
        forecast = forecast_of(self.model)
        return self._coords(leading, [latest / np.timedelta64(1, "h") + h for h in forecast.lead_times(1)])

    def __call__(self, x: Tensor, coords: Mapping[str, NDArray[Any]]) -> tuple[Tensor, Coordinates]:
        """The next frame, and its coordinates."""
        return next(islice(self.create_iterator(x, coords), 1, None))

    def create_iterator(self, x: Tensor, coords: Mapping[str, NDArray[Any]]) -> Iterator[tuple[Tensor, Coordinates]]:
        """The latest known frame, then one frame after the other, without end, each with its coordinates."""
        following = self.output_coords(coords)
        leading = [(name, values) for name, values in following.items() if name not in self._coords([], [])]
        latest = np.asarray(coords[LEAD])[-1]
        yield x[..., -1:, :, :, :], following | {LEAD: latest[None]}
        step, number = following[LEAD] - latest, 1
        for frame in self._frames(x.float(), OrderedDict(leading), latest):
            yield frame.to(x.device), self._coords(leading, []) | {LEAD: latest + number * step}
            number += 1

    def _frames(self, x: Tensor, leading: Mapping[str, NDArray[Any]], latest: Any) -> Iterator[Tensor]:
        """Frames (..., 1, C, H, W)."""
        forecast, device = forecast_of(self.model), self.model.device
        axis = [*leading].index(ENSEMBLE) if ENSEMBLE in leading else None
        rows = x.cpu()[None] if axis is None else x.cpu().movedim(axis, 0)
        numbers = range(1) if axis is None else [int(number) for number in leading[ENSEMBLE]]
        shared = bool((rows == rows[:1]).all()) and [*numbers] == [*range(numbers[0], numbers[0] + len(rows))]
        past = (rows[:1] if shared else rows).flatten(0, -5)
        count, apart = len(past) if shared else len(past) // len(rows), rows.shape[1:-4]
        keys = self.seed + torch.arange(count, device=device)
        members = range(numbers[0], numbers[0] + len(rows)) if shared else range(1)
        if not shared:
            keys = (keys + MEMBER * torch.tensor(numbers, device=device)[:, None]).flatten()
        ahead = None
        along = [len(values) if name == TIME else 1 for name, values in leading.items() if name != ENSEMBLE]
        times = leading[TIME].reshape(along) if TIME in leading else None
        dates = None if times is None else np.resize(np.broadcast_to(times, apart) + latest, len(past))
        if forecast.externals.forcings:
            grid = x.shape[-2], x.shape[-1]
            about = forecast.externals, forecast.geometry, grid, dates
            forcings = Forcings(*about, lambda number, after: np.zeros(0, np.float32))
            ahead = partial(forcings, range(len(past)))
        how = {"members": len(members), "batch_size": len(members), "precision": self.precision}
        drawer = self.choice.drawer(self.model, **how).for_seeds(len(past))
        batch = MemberBatch(range(len(past)), members, past.numpy(), True, dates, ahead)
        for _, new in windows_after(drawer, drawer.denoiser, batch, keys):
            for frame in new.transpose(0, 1).unbind(2):  # (m, n, C, H, W)
                whole = frame.reshape(len(rows), *apart, 1, *frame.shape[2:])
                yield whole[0] if axis is None else whole.movedim(0, axis)

    def _coords(self, leading: Sequence[tuple[str, NDArray[Any]]], hours: Sequence[float]) -> Coordinates:
        lead = np.array([np.timedelta64(round(3600 * float(hour)), "s") for hour in hours], "m8[s]")
        whole = lead.astype("m8[h]")
        lead = whole if (whole == lead).all() else lead
        return OrderedDict([*leading, (LEAD, lead), (VARIABLE, self.variables), *self.space])


def _few(values: NDArray[Any]) -> str:
    return f"{', '.join(map(str, values[:3]))} ... ({len(values)})" if len(values) > 4 else f"{values.tolist()}"
