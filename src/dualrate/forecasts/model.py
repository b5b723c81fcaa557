"""A model as a forecast: the frames that it makes, when its windows begin, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualrate.diffusion.context import Shape
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.model import Model
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.rolling_process import Rolling, SharedNoise

Frame = NDArray[np.float32]


def forecast_of(model: Model) -> Forecast:
    """The forecast that a model makes, of frames as the data has them. Raises ValueError for one that makes none."""
    return drawn_forecast(model).of_data


def drawn_forecast(model: Model) -> Forecast:
    """The same, of frames as networks see them: of latents, where they make these."""
    if not isinstance(condition := model.experiment.condition, Forecast):
        raise ValueError(
            f"{model.name} is no forecast: `dualrate sample` draws what it makes, and `dualrate train forecast` trains "
            "forecasts of arrays"
        )
    return condition


def frame_shape(model: Model) -> Shape:
    """(C, H, W) of a frame."""
    return drawn_forecast(model).frame(model.shape)


def with_stride(model: Model, stride: int) -> Model:
    """A model that makes every `stride`-th frame of a window alone: the rest cost nothing.

    Raises ValueError for a model whose frames are not made each by themselves, and where none would be left.
    """
    forecast, experiment = drawn_forecast(model), model.experiment
    networks: Any = experiment.networks
    if stride == 1:
        return model
    leads: tuple[int, ...] = getattr(networks, "leads", ())
    if not leads or networks.attention or forecast.of_data is not forecast:
        way = "train with window leads" if forecast.of_data is forecast else "leave out frames of the whole forecast"
        raise ValueError(f"{model.name} makes several frames together: drop the stride, or {way}")
    if stride > len(leads):
        raise ValueError(f"{model.name} makes frames 1 to {len(leads)} of a window, got a stride of {stride}")
    leads = leads[stride - 1 :: stride]
    scale = np.array(forecast.scale).reshape(forecast.frames, -1)[stride - 1 :: stride].flatten().tolist()
    fewer: Any = {"frames": len(leads)}
    process = replace(model.process, **fewer) if isinstance(model.process, SharedNoise) else model.process
    condition = replace(forecast, stride=stride, scale=tuple(scale), **fewer)
    return model.with_experiment(
        replace(experiment, networks=replace(networks, leads=leads), condition=condition, process=process)
    )


def costs(drawer: Drawer) -> dict[str, float]:
    """Cost of a window. frames: of one window; first_window, later_window: multiply-adds of a member for these.

    A roll makes one frame by one heavy call, whatever the plan's. Before the first one of them a window goes through as
    many whole clocks as it has frames, of which each has a heavy call where contexts age. Of latents the past of a
    start is encoded once, for all members, and each is decoded.
    """
    model, forecast = drawer.model, drawn_forecast(drawer.model)
    frames, coder = forecast.frames, forecast.coder(model.device)
    if isinstance(model.process, Rolling):
        calls, steps, count = model.call_cost, drawer.plan.num_steps, 1
        first = calls.shared(drawer.members).of(frames * steps, frames if model.reuses_context else 1)
        later = calls.of(steps, 1)
    else:
        first, later, count = drawer.cost.macs, replace(drawer, members=1).cost.macs, frames
    writing = count * coder.writing
    first, later = first + coder.reading / drawer.members + writing, later + writing
    return {"frames": count * coder.each, "first_window": round(first), "later_window": round(later)}


def begins(model: Model, frames: int) -> range:
    """Time steps after a start at which windows of its first frames begin: forcings are known from there on."""
    forecast = forecast_of(model)
    apart = (1 if isinstance(model.process, Rolling) else forecast.frames) * forecast.ahead
    return range(0, frames * forecast.ahead, apart)


def window_cost(drawer: Drawer) -> int:
    """Multiply-adds of a member's first window: of one that rolls, of as many frames."""
    cost = costs(drawer)
    later = forecast_of(drawer.model).frames / cost["frames"] - 1
    return round(cost["first_window"] + later * cost["later_window"])
