"""Forecasts: roll-outs of members from starts (starts.py).

    past = start                                         frames of the data, in its units
    for each window:
        y = past, normalised and observed                of a member; of a start, in its first window
        x ~ model given y                                heavy: once a start in the first window, then once a member
        frames = x in the data's units                   written at once
        past = the last of (past, frames)

The first call of the heavy network is shared by all members of a start. After it each has a past of its own.

Where networks make latents (latent_forecast.py), a start is encoded, and frames are decoded as they come.

A model of Rolling Diffusion (rolling.py) makes a frame at a time, by rolls whose clocks are the plan's times. A batch
that was killed is drawn again from its start, and what is not there is written.

Start i has the key i + seed; noise of window w of member m has key + 2^20 w + 2^40 m, that of what is observed too. So
the first window is what `Drawer` draws, and the number of members decides no frame. Batches act on rounding alone,
which a chaotic roll-out amplifies. What goes on from a window are its frames: a roll-out that was interrupted goes on
with the same bits. folder.py keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dualrate.config.ranges import many
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Shape
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import Drawer
from dualrate.experiment.model import Model
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.externals import Forcings, beside
from dualrate.forecasts.rolling import roll
from dualrate.forecasts.rolling_process import Rolling, SharedNoise
from dualrate.sampling.trajectory import MEMBER, State, sample_batches
from dualrate.system.device import own_defaults
from dualrate.system.workers import Mapper, in_turn, streamed

WINDOW = 1 << 20  # between the keys of two windows of a roll-out; starts and windows are fewer
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


@dataclass(frozen=True, eq=False)
class FrameBlock:
    """New frames of some members of some starts. x: (n, m, f, C, H, W) float32, in the data's units, on the host."""

    starts: range
    members: range
    frames: range
    x: Frame


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


Ahead = Callable[[int], Tensor | None]  # time steps after the starts -> forcings from there on, (n, K, H, W)
Earlier = Callable[[range, range], Frame]  # starts, members -> their frames that are there, (n, m, f, C, H, W)


def rolled_together(starts: int, drawer: Drawer) -> Iterator[tuple[range, range]]:
    """The starts and members that are rolled out together: at most a batch, and whole starts where that holds one."""
    for some in _split(starts, drawer.seeds_at_once):
        for members in _split(drawer.members, drawer.batch_size):
            yield some, members


def _split(count: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, count)) for first in range(0, count, size))


def checked_starts(
    drawer: Drawer, starts: Frame | Tensor, frames: int, seed: int, dates: NDArray[Any] | None = None
) -> Tensor:
    """The starts, as a tensor. Raises what `roll_out` raises."""
    forecast, past = forecast_of(drawer.model), torch.as_tensor(np.asarray(starts, np.float32))
    expected = (forecast.past, *frame_shape(drawer.model))
    if tuple(past.shape[1:]) != expected or not len(past):
        raise ValueError(f"starts are (N, {', '.join(map(str, expected))}), got {tuple(past.shape)}")
    if seed + len(past) > WINDOW or not 0 < frames <= forecast.frames * WINDOW:
        raise ValueError(
            f"a forecast has at most {WINDOW:,} starts, seed included, and 1 to {forecast.frames * WINDOW:,} frames; "
            f"got {many(len(past), 'start')} from seed {seed} on, of {many(frames, 'frame')}"
        )
    if forecast.stride > 1 and forecast.past > 1 and frames > forecast.frames:
        raise ValueError(
            f"{drawer.model.name} starts from {many(forecast.past, 'frame')}, {many(forecast.lead, 'time step')} "
            f"apart, and makes frames {forecast.ahead} apart, from which it cannot go on: ask for "
            f"{many(forecast.frames, 'frame')} at most, or drop the stride"
        )
    _ = forecast.year_parts(dates, range(0))
    return past


def roll_out(
    drawer: Drawer,
    starts: Frame | Tensor,
    frames: int,
    *,
    seed: int = 0,
    earlier: Earlier | None = None,
    observed: bool = False,
    mapper: Mapper = in_turn,
    forcings: Forcings | None = None,
    dates: NDArray[Any] | None = None,
) -> Iterator[FrameBlock]:
    """Roll out all members of some starts: a batch of rows to its end, then the next; only the last frames are held.

    drawer:   its members are those of each start, its batch size the rows at a time
    starts:   (N, past, C, H, W), in the data's units
    seed:     of the first start
    earlier:  frames of a forecast that was interrupted; what begins after them is all that comes
    observed, forcings, dates: as of `Starts`; dates and forcings are counted round
    mapper:   rolls out the batches, several at a time where it is a team and there are no forcings
    Raises ValueError for a model that is no forecast, starts of another shape, and more than 2^20 of them, or windows.
    """
    past = checked_starts(drawer, starts, frames, seed, dates).numpy()
    drawer, length = drawer.for_seeds(len(past)), forecast_of(drawer.model).frames
    batches = []
    for some, members in rolled_together(len(past), drawer):
        before = None if earlier is None else earlier(some, members)
        begun = 0 if before is None else before.shape[2]
        stop = begun // length * length  # of whole windows
        latest = None if before is None else np.asarray(before[:, :, max(0, stop - past.shape[1]) : stop])
        if begun < frames:
            moments = None if dates is None else dates[np.arange(some.start, some.stop) % len(dates)]
            batches.append(MemberBatch(some, members, past[some.start : some.stop], begun, latest, moments))
    job = partial(_rolled_out, drawer.resolved, frames, seed, observed, forcings)
    return streamed(in_turn if forcings is not None else mapper, job, batches)  # no other process has their files


@dataclass(frozen=True, eq=False)
class MemberBatch:
    """Members of starts that are rolled out together.

    past:   (n, past, C, H, W) of the starts; dates: (n,) of their latest frames, where they are known
    begun:  frames that are there of each member; latest: the last ones of whole windows, (n, m, past or fewer, C, H, W)
    """

    starts: range
    members: range
    past: Frame
    begun: int
    latest: Frame | None
    dates: NDArray[Any] | None = None


def _rolled_out(
    drawer: Drawer, frames: int, seed: int, observed: bool, forcings: Forcings | None, batch: MemberBatch
) -> Iterator[FrameBlock]:
    """The frames of a batch that are not there."""
    keys = torch.tensor(batch.starts, dtype=torch.int64, device=drawer.model.device) + seed
    ahead: Ahead = partial(forcings, batch.starts) if forcings is not None else lambda after: None
    for begun, new in windows_after(drawer, drawer.denoiser, batch, keys, observed, ahead):
        now = range(begun, min(begun + new.shape[2], frames))
        yield FrameBlock(batch.starts, batch.members, now, new[:, :, : len(now)].numpy())
        if now.stop == frames:
            break


def windows_after(
    drawer: Drawer,
    denoiser: Denoiser,
    batch: MemberBatch,
    keys: Tensor,
    observed: bool,
    ahead: Ahead,
    watch: Callable[[State], None] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Frames of a batch that are not there, without end, as many at a time as are drawn.

    keys: (n,) of the starts, on the model's device; watch: as of `sample_batches`, of windows that do not roll
    Each time the number of the first frame, and (n, m, f, C, H, W).
    """
    if isinstance(drawer.model.process, Rolling):
        yield from _rolled(drawer, denoiser, batch, keys, observed, ahead)  # without end, as below
    forecast, members = drawn_forecast(drawer.model), batch.members
    parts, coder = partial(forecast.year_parts, batch.dates), forecast.coder(drawer.model.device)
    past = coder.received(torch.tensor(batch.past))[:, None].expand(-1, len(members), *[-1] * 4)
    window, length = batch.begun // forecast.frames if coder.exact else 0, forecast.frames * coder.each
    if batch.latest is not None and window:
        past = torch.cat((past, torch.tensor(batch.latest)), 2)[:, :, -forecast.past :]
    while True:
        still = max(0, forecast.past - window * forecast.frames) if observed else 0
        now = ahead(window * forecast.frames * forecast.ahead)
        new = draw_window(drawer, denoiser, past, keys, members, window, still, now, parts, watch)
        if (window + 1) * length > batch.begun:
            yield window * length, coder.delivered(new, member_seeds(keys, members), window * forecast.frames)
        past, window = torch.cat((past, new), 2)[:, :, -forecast.past :], window + 1


def _rolled(
    drawer: Drawer, denoiser: Denoiser, batch: MemberBatch, keys: Tensor, observed: bool, ahead: Ahead
) -> Iterator[tuple[int, Tensor]]:
    """Frames by Rolling Diffusion that are not there, without end: the number, and the frame (n, m, 1, C, H, W).

    Frames before it are drawn again: the window behind them is not on disk.
    """
    model, forecast, process = drawer.model, drawn_forecast(drawer.model), drawer.model.process
    assert isinstance(process, Rolling)
    coder, parts = forecast.coder(model.device), partial(forecast.year_parts, batch.dates)
    past = coder.received(torch.tensor(batch.past)).to(model.device)[:, None]
    past = forecast.normalised(past, parts(range(-forecast.past, 0))).flatten(1, 3)
    rows = member_seeds(keys, batch.members)
    how: dict[str, Any] = {"observed": observed, "bfloat16": drawer.bfloat16, "ahead": ahead}
    for window in roll(denoiser, process, forecast, past, rows, drawer.plan.t, step=drawer.step, **how):
        if (window.rolls + 1) * coder.each > batch.begun:
            frame = window.frame.unflatten(0, (len(keys), len(batch.members)))[:, :, None]
            frame = forecast.restored(frame, parts(range(window.rolls, window.rolls + 1))).cpu()
            yield window.rolls * coder.each, coder.delivered(frame, rows, window.rolls)


def member_seeds(keys: Tensor, members: range) -> Tensor:
    """(n m,) seeds of members of starts with these keys, those of a start one after the other."""
    return (keys[:, None] + MEMBER * torch.arange(members.start, members.stop, device=keys.device)).flatten()


@own_defaults()
def draw_window(
    drawer: Drawer,
    denoiser: Denoiser,
    past: Tensor,
    keys: Tensor,
    members: range,
    window: int,
    observed: int,
    forcings: Tensor | None,
    parts: Callable[[range], NDArray[np.float64] | None],
    watch: Callable[[State], None] | None,
) -> Tensor:
    """The frames of one window, (n, m, f, C, H, W). past: (n, m, past, C, H, W), in the data's units, as these; keys:
    (n,). Of latents both are latents.

    observed: frames of the past that are observations; forcings: of the window, (n, K, H, W)
    parts: of the year, of frames after the start
    watch: as of `sample_batches`
    """
    model, forecast, count = drawer.model, drawn_forecast(drawer.model), len(members)
    begun = window * forecast.frames
    past = forecast.normalised(past.to(model.device), parts(range(begun - forecast.past, begun)))
    if window:
        seeds, rows, shared = member_seeds(keys + WINDOW * window, members), past.flatten(0, 1), 1
    else:
        seeds, rows, shared = keys, past[:, 0], count
    y = forecast.observe(beside(rows.flatten(1, 2), forcings), Draws(0, seeds), observed)
    (x,) = sample_batches(
        denoiser,
        drawer.step,
        drawer.plan,
        model.shape,
        seeds.tolist(),
        batch_size=len(keys) * count,
        device=model.device,
        bfloat16=drawer.bfloat16,
        given=lambda _: y,
        members=shared,
        first_member=0 if window else members.start,
        watch=watch,
    )
    frames = forecast.frames_of(x, past[:, :, -1].flatten(0, 1)).unflatten(0, (len(keys), count))
    return forecast.restored(frames, parts(range(begun, begun + forecast.frames))).cpu()
