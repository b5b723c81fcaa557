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
from dualrate.diffusion.random import Draws
from dualrate.drawing.drawer import Drawer
from dualrate.forecasts.externals import beside
from dualrate.forecasts.model import Frame, drawn_forecast, forecast_of, frame_shape
from dualrate.forecasts.rolling import roll
from dualrate.forecasts.rolling_process import Rolling
from dualrate.forecasts.starts import Starts
from dualrate.sampling.trajectory import MEMBER, State, sample_batches
from dualrate.system.device import own_defaults
from dualrate.system.workers import Mapper, in_turn, streamed

WINDOW = 1 << 20  # between the keys of two windows of a roll-out; starts and windows are fewer


@dataclass(frozen=True, eq=False)
class FrameBlock:
    """New frames of some members of some starts. x: (n, m, f, C, H, W) float32, in the data's units, on the host."""

    starts: range
    members: range
    frames: range
    x: Frame


Earlier = Callable[[range, range], Frame]  # starts, members -> their frames that are there, (n, m, f, C, H, W)


def rolled_together(starts: int, drawer: Drawer) -> Iterator[tuple[range, range]]:
    """The starts and members that are rolled out together: at most a batch, and whole starts where that holds one."""
    for some in _split(starts, drawer.seeds_at_once):
        for members in _split(drawer.members, drawer.batch_size):
            yield some, members


def _split(count: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, count)) for first in range(0, count, size))


def check_starts(drawer: Drawer, starts: Starts, frames: int, seed: int) -> None:
    """Raise what `roll_out` raises."""
    forecast, shape = forecast_of(drawer.model), starts.past.shape
    expected = (forecast.past, *frame_shape(drawer.model))
    if shape[1:] != expected or not len(starts):
        raise ValueError(f"starts are (N, {', '.join(map(str, expected))}), got {shape}")
    if seed + len(starts) > WINDOW or not 0 < frames <= forecast.frames * WINDOW:
        raise ValueError(
            f"a forecast has at most {WINDOW:,} starts, seed included, and 1 to {forecast.frames * WINDOW:,} frames; "
            f"got {many(len(starts), 'start')} from seed {seed} on, of {many(frames, 'frame')}"
        )
    if forecast.stride > 1 and forecast.past > 1 and frames > forecast.frames:
        raise ValueError(
            f"{drawer.model.name} starts from {many(forecast.past, 'frame')}, {many(forecast.lead, 'time step')} "
            f"apart, and makes frames {forecast.ahead} apart, from which it cannot go on: ask for "
            f"{many(forecast.frames, 'frame')} at most, or drop the stride"
        )
    _ = forecast.year_parts(starts.dates, range(0))


def roll_out(
    drawer: Drawer,
    starts: Starts,
    frames: int,
    *,
    seed: int = 0,
    earlier: Earlier | None = None,
    mapper: Mapper = in_turn,
) -> Iterator[FrameBlock]:
    """Roll out all members of some starts: a batch of rows to its end, then the next; only the last frames are held.

    drawer:  its members are those of each start, its batch size the rows at a time
    seed:    of the first start
    earlier: frames of a forecast that was interrupted; what begins after them is all that comes
    mapper:  rolls out the batches, several at a time where it is a team and there are no forcings
    Raises ValueError for a model that is no forecast, starts of another shape, and more than 2^20 of them, or windows.
    """
    check_starts(drawer, starts, frames, seed)
    drawer, length = drawer.for_seeds(len(starts)), forecast_of(drawer.model).frames
    batches = []
    for numbers, members in rolled_together(len(starts), drawer):
        batch = MemberBatch.of(starts, numbers, members)
        if earlier is not None:
            before = earlier(numbers, members)
            stop = before.shape[2] // length * length  # of whole windows
            latest = np.asarray(before[:, :, max(0, stop - starts.past.shape[1]) : stop])
            batch = replace(batch, begun=before.shape[2], latest=latest)
        if batch.begun < frames:
            batches.append(batch)
    job = partial(_rolled_out, drawer.resolved, frames, seed)
    return streamed(mapper if starts.forcings is None else in_turn, job, batches)  # no other process has their files


@dataclass(frozen=True, eq=False)
class MemberBatch:
    """Members of starts that are rolled out together.

    past:   (n, past, C, H, W) of the starts; dates: (n,) of their latest frames, where they are known
    ahead:  time steps after the starts -> forcings from there on, (n, K, H, W)
    begun:  frames that are there of each member; latest: the last ones of whole windows, (n, m, past or fewer, C, H, W)
    """

    starts: range
    members: range
    past: Frame
    observed: bool = False
    dates: NDArray[Any] | None = None
    ahead: Callable[[int], Tensor] | None = None
    begun: int = 0
    latest: Frame | None = None

    @classmethod
    def of(cls, starts: Starts, numbers: range, members: range) -> MemberBatch:
        """Members of some starts, by number. Dates and forcings are counted round."""
        dates = None if starts.dates is None else starts.dates[np.asarray(numbers) % len(starts.dates)]
        ahead = None if starts.forcings is None else partial(starts.forcings, numbers)
        return cls(numbers, members, starts.past[numbers.start : numbers.stop], starts.observed, dates, ahead)


def _rolled_out(drawer: Drawer, frames: int, seed: int, batch: MemberBatch) -> Iterator[FrameBlock]:
    """The frames of a batch that are not there."""
    keys = torch.tensor(batch.starts, dtype=torch.int64, device=drawer.model.device) + seed
    for begun, new in windows_after(drawer, drawer.denoiser, batch, keys):
        now = range(begun, min(begun + new.shape[2], frames))
        yield FrameBlock(batch.starts, batch.members, now, new[:, :, : len(now)].numpy())
        if now.stop == frames:
            break


def windows_after(
    drawer: Drawer, denoiser: Denoiser, batch: MemberBatch, keys: Tensor, watch: Callable[[State], None] | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Frames of a batch that are not there, without end, as many at a time as are drawn.

    keys: (n,) of the starts, on the model's device; watch: as of `sample_batches`, of windows that do not roll
    Each time the number of the first frame, and (n, m, f, C, H, W).
    """
    if isinstance(drawer.model.process, Rolling):
        yield from _rolled(drawer, denoiser, batch, keys)  # without end, as below
    forecast, members = drawn_forecast(drawer.model), batch.members
    coder = forecast.coder(drawer.model.device)
    past = coder.received(torch.tensor(batch.past))[:, None].expand(-1, len(members), *[-1] * 4)
    window, length = batch.begun // forecast.frames if coder.exact else 0, forecast.frames * coder.each
    if batch.latest is not None and window:
        past = torch.cat((past, torch.tensor(batch.latest)), 2)[:, :, -forecast.past :]
    while True:
        new = draw_window(drawer, denoiser, batch, keys, past, window, watch)
        if (window + 1) * length > batch.begun:
            yield window * length, coder.delivered(new, member_seeds(keys, members), window * forecast.frames)
        past, window = torch.cat((past, new), 2)[:, :, -forecast.past :], window + 1


def _rolled(drawer: Drawer, denoiser: Denoiser, batch: MemberBatch, keys: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Frames by Rolling Diffusion that are not there, without end: the number, and the frame (n, m, 1, C, H, W).

    Frames before it are drawn again: the window behind them is not on disk.
    """
    model, forecast, process = drawer.model, drawn_forecast(drawer.model), drawer.model.process
    assert isinstance(process, Rolling)
    coder, parts = forecast.coder(model.device), partial(forecast.year_parts, batch.dates)
    past = coder.received(torch.tensor(batch.past)).to(model.device)[:, None]
    past = forecast.normalised(past, parts(range(-forecast.past, 0))).flatten(1, 3)
    rows = member_seeds(keys, batch.members)
    how: dict[str, Any] = {"observed": batch.observed, "bfloat16": drawer.bfloat16, "ahead": batch.ahead}
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
    batch: MemberBatch,
    keys: Tensor,
    past: Tensor,
    window: int,
    watch: Callable[[State], None] | None,
) -> Tensor:
    """The frames of one window, (n, m, f, C, H, W), in the data's units. Of latents it has and is given latents.

    keys: (n,) of the starts; past: of this window, (n, m, past, C, H, W), in these units; watch: as of `sample_batches`
    """
    model, forecast, members = drawer.model, drawn_forecast(drawer.model), batch.members
    begun, parts = window * forecast.frames, partial(forecast.year_parts, batch.dates)
    past = forecast.normalised(past.to(model.device), parts(range(begun - forecast.past, begun)))
    if window:
        seeds, rows, shared = member_seeds(keys + WINDOW * window, members), past.flatten(0, 1), 1
    else:
        seeds, rows, shared = keys, past[:, 0], len(members)
    forcings = None if batch.ahead is None else batch.ahead(begun * forecast.ahead)
    observed = max(0, forecast.past - begun) if batch.observed else 0  # frames of the past that are observations
    y = forecast.observe(beside(rows.flatten(1, 2), forcings), Draws(0, seeds), observed)
    (x,) = sample_batches(
        denoiser,
        drawer.step,
        drawer.plan,
        model.shape,
        seeds.tolist(),
        batch_size=len(keys) * len(members),
        device=model.device,
        bfloat16=drawer.bfloat16,
        given=lambda _: y,
        members=shared,
        first_member=0 if window else members.start,
        watch=watch,
    )
    frames = forecast.frames_of(x, past[:, :, -1].flatten(0, 1)).unflatten(0, (len(keys), len(members)))
    return forecast.restored(frames, parts(range(begun, begun + forecast.frames))).cpu()
