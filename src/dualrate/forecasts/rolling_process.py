"""Windows of frames, each at a time of its own: noise grows from the first frame to the last (Rolling Diffusion).

x is F frames, stacked in channels: (B, F C, H, W). The window has a clock c, and frame k = 0 .. F - 1 the time

    u_k(c) = clip((k + c) / F, 0, 1),      c = (2 F - 1) t - (F - 1),      t in [0, 1]

    c = F -> 0       the start: all frames are noise, then noise rises evenly, and frame 0 is clean
    c = 1 -> 0       a roll: u_{k+1}(0) = u_k(1), so a window at c = 0, moved by one frame and with noise for its last
                     one, is a window at c = 1
    c = 0 -> 1 - F   the end: the other frames become clean too

The paper has two phases, of t from 1 to 0: u_k = clip(k / F + t) at the start, which is c = F t, and clip((k + t) / F)
of a roll, which is c = t. They are one family, so that a network needs one number beside the window, from which all
frames' times follow. The end is ours: with it t runs from data to noise as that of any process does, and a sampler from
t = 1 to 0 draws a whole window. With F = 1 c is t, and the process is the Gaussian one.

    z^k = alpha(u_k) x^k + sigma(u_k) eps^k      of q(z_t | z_s) and q(z_s | z_t, x) too, each frame has its own (u, u')

A frame at time 0 is x itself, its log_snr infinite: what becomes clean is x_hat. A frame whose time a step does not
change, as it is noise or clean before and after, keeps its state.

`log_snr` is the log-SNR of no frame but the clock as networks see it, on a line over the range that they are made for:

    log_snr = 15 - 30 t      for F > 1; of F = 1 the schedule's

A roll is 30 / (2 F - 1) of it, and a frame's way through the window 15 to 20, whatever F: noise levels are as far apart
in a long window as in a short one, and all lie within the longest period of a network's embedding. On an AR(1) with
windows of 4, 8 and 32 frames, wider ranges and ones that grow with F were no better at any clock, and worse near c = F,
where training has few.

Source: Rolling Diffusion Models (Ruhe, Heek, Salimans, Hoogeboom 2024, arXiv 2402.09470), without the frames that are
given: these are no part of a window here (`Cond.given`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dualrate.config.ranges import Range, Ranged
from dualrate.diffusion.context import cached_for_shared_time
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianNoise, GaussianProcess
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine, Schedule, alpha, sigma
from dualrate.diffusion.weighting import Weighting, x_loss_weight

ROUNDING = 16  # of a clock, in units of F and of its precision
FIRST, RANGE = 15.0, 30.0  # of the clock as networks see it: at t = 0, and how far it falls


@dataclass(frozen=True)
class FirstFrame(Schedule):
    """A schedule over the first 1 / F of its time, in which the first of F frames becomes clean."""

    schedule: Schedule
    frames: int

    def log_snr(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr(t / self.frames)

    def log_snr_derivative(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr_derivative(t / self.frames) / self.frames

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.time(log_snr) * self.frames


@dataclass(frozen=True)
class Rolling(GaussianNoise, Ranged):
    """See the module. A window's channels are a multiple of its frames, F. Its networks predict v of every frame."""

    one_time = False  # no annotation: frames have times of their own

    schedule: Schedule = Cosine()
    frames: Annotated[int, Range(1, 256)] = 1
    """Frames of a window."""
    linear: bool = True
    """Whether networks see the clock on a line. Runs of before, where they could not tell it, are refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.linear:
            raise ValueError(
                "this run of Rolling Diffusion is of an earlier version, whose networks could not tell the window's "
                "clock: train it again"
            )

    def time(self, clock: float) -> float:
        """t at a clock c, 1 - F to F."""
        return (clock + self.frames - 1) / (2 * self.frames - 1)

    def clock(self, t: Tensor) -> Tensor:
        """c, a whole number where rounding alone keeps it from that. Shape of t."""
        clock = (2 * self.frames - 1) * t - (self.frames - 1)
        whole = torch.round(clock)
        return torch.where((clock - whole).abs() < ROUNDING * self.frames * torch.finfo(t.dtype).eps, whole, clock)

    def frame_times(self, t: Tensor) -> Tensor:
        """(..., F): u_k."""
        k = torch.arange(self.frames, dtype=t.dtype, device=t.device)
        return ((k + self.clock(t)[..., None]) / self.frames).clamp(0, 1)

    def served(self, plan: StepPlan) -> StepPlan:
        """A heavy call at the first step from each whole clock, or below it."""
        rolls = torch.ceil(self.clock(torch.tensor(plan.t[:-1], dtype=torch.float64))).tolist()
        return StepPlan.at(plan.t, [i for i, roll in enumerate(rolls) if i == 0 or roll < rolls[i - 1]])

    @cached_for_shared_time
    def log_snr(self, t: Tensor) -> Tensor:
        return FIRST - RANGE * t if self.frames > 1 else self.schedule.log_snr(t)

    @property
    def pace(self) -> Schedule:
        """Schedule of the first frame over a roll, c from 1 to 0."""
        return FirstFrame(self.schedule, self.frames)

    @cached_for_shared_time
    def levels(self, t: Tensor) -> Tensor:
        """(..., F): log_snr of every frame."""
        return _infinite_at_0(self.schedule, self.frame_times(t))

    def x_hat(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        """x = alpha z - sigma v of every frame, where the output is v. log_snr: of the clock."""
        t = (FIRST - log_snr) / RANGE if self.frames > 1 else self.schedule.time(log_snr)
        frames = _infinite_at_0(self.schedule, self.frame_times(t))
        return self.spread(alpha(frames), z) * z - self.spread(sigma(frames), z) * output

    def frame_errors(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """(B, F): the mean squared error of every frame."""
        return (x - x_hat).square().unflatten(1, (self.frames, -1)).flatten(2).mean(2)

    def frame_weights(self, weighting: Weighting, t: Tensor) -> Tensor:
        """(..., F): `x_loss_weight` at the time of each frame, 0 where that is 0 or 1."""
        times = self.frame_times(t)
        return torch.where((times > 0) & (times < 1), x_loss_weight(weighting, self.schedule, times), 0)

    def spread(self, value: Tensor, like: Tensor) -> Tensor:
        """(..., F) -> (..., F C, 1, 1): a number for every frame, to multiply windows by."""
        channels, remainder = divmod(like.shape[-3], self.frames)
        if remainder:
            raise ValueError(
                f"windows of {self.frames} frames have a multiple of so many channels, not {like.shape[-3]}"
            )
        return value.repeat_interleave(channels, -1)[..., None, None].to(like, non_blocking=True)


def _infinite_at_0(schedule: Schedule, times: Tensor) -> Tensor:
    """log_snr, infinite at time 0."""
    return torch.where(times > 0, schedule.log_snr(times), math.inf)


@dataclass(frozen=True)
class SharedNoise(GaussianProcess, Ranged):
    """A process of frames stacked in channels, with the same noise for all: each has the law of a frame alone.

    A sampler is a function of noise and condition. So from frame to frame samples change as little as the condition's
    forecast of them does (arXiv 2410.05431).
    """

    frames: Annotated[int, Range(1, 256)] = 1
    """Frames of a state."""

    def noise(self, draws: Draws, streams: Sequence[str], *shape: int) -> Tensor:
        """(S, B, F C, H, W) standard normal numbers, the same for all F frames."""
        channels, *space = shape
        return draws.normals(streams, channels // self.frames, *space).repeat(1, 1, self.frames, 1, 1)
