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

`log_snr` is the clock as networks see it: that of the schedule at the fraction of c, each whole c further down by all
of the schedule's range. So it falls from end to end, and over a roll as over a single frame's diffusion.

Source: Rolling Diffusion Models (Ruhe, Heek, Salimans, Hoogeboom 2024, arXiv 2402.09470), without the frames that are
given: these are no part of a window here (`Cond.given`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dualrate.config.ranges import Range, Ranged
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.prediction import Weighting, x_loss_weight
from dualrate.diffusion.process import Gaussian, NormalNoise, posterior_of, transition_of
from dualrate.diffusion.schedule import Cosine, Schedule, alpha, sigma
from dualrate.diffusion.values import once

ROUNDING = 1e-12  # of a clock


@dataclass(frozen=True)
class Rolling(NormalNoise, Ranged):
    """See the module. A window's channels are a multiple of its frames, F. Its networks predict v of every frame."""

    schedule: Schedule = Cosine()
    frames: Annotated[int, Range(1, 256)] = 1
    """Frames of a window."""

    def time(self, clock: float) -> float:
        """t at a clock c, 1 - F to F."""
        return (clock + self.frames - 1) / (2 * self.frames - 1)

    def clock(self, t: Tensor) -> Tensor:
        """c, a whole number where rounding alone keeps it from that. Shape of t."""
        clock = (2 * self.frames - 1) * t - (self.frames - 1)
        whole = torch.round(clock)
        return torch.where((clock - whole).abs() < ROUNDING, whole, clock)

    def frame_times(self, t: Tensor) -> Tensor:
        """(..., F): u_k."""
        return _times(self.clock(t), self.frames)

    def served(self, plan: StepPlan) -> StepPlan:
        """A heavy call at the first step from each whole clock, or below it."""
        rolls = torch.ceil(self.clock(torch.tensor(plan.t[:-1], dtype=torch.float64))).tolist()
        return StepPlan.at(plan.t, [i for i, roll in enumerate(rolls) if i == 0 or roll < rolls[i - 1]])

    @once
    def log_snr(self, t: Tensor) -> Tensor:
        clock = self.clock(t)
        whole = torch.floor(clock).clamp(max=self.frames - 1)
        return self.schedule.log_snr(clock - whole) - whole * _range(self.schedule)[1]

    def add_noise(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        log_snr = _of_frames(self, t)
        return self._frames(alpha(log_snr), x) * x + self._frames(sigma(log_snr), x) * noise

    def transition(self, z_s: Tensor, s: Tensor, t: Tensor) -> Gaussian:
        scale, variance = _transition(self, s, t)
        return Gaussian(self._frames(scale, z_s) * z_s, self._frames(variance, z_s))

    def posterior(self, z_t: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Gaussian:
        from_z, from_x, variance = _posterior(self, t, s)
        return Gaussian(self._frames(from_z, z_t) * z_t + self._frames(from_x, z_t) * x, self._frames(variance, z_t))

    def x_hat(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        """Of v: x = alpha z - sigma v of every frame. log_snr: of the clock."""
        most, span = _range(self.schedule)
        whole = torch.floor((most - log_snr) / span).clamp(max=self.frames - 1)
        clock = whole + self.schedule.time(log_snr + whole * span)
        frames = _infinite_at_0(self.schedule, _times(clock, self.frames))
        return self._frames(alpha(frames), z) * z - self._frames(sigma(frames), z) * output

    def frame_errors(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """(B, F): the mean squared error of every frame."""
        return (x - x_hat).square().unflatten(1, (self.frames, -1)).flatten(2).mean(2)

    def frame_weights(self, weighting: Weighting, t: Tensor) -> Tensor:
        """(..., F): `x_loss_weight` at the time of each frame, 0 where that is 0 or 1."""
        times = self.frame_times(t)
        return torch.where((times > 0) & (times < 1), x_loss_weight(weighting, self.schedule, times), 0)

    def _frames(self, value: Tensor, like: Tensor) -> Tensor:
        """(..., F) -> (..., F C, 1, 1): a number for every frame, to multiply windows by."""
        channels, odd = divmod(like.shape[-3], self.frames)
        if odd:
            raise ValueError(
                f"windows of {self.frames} frames have a multiple of so many channels, not {like.shape[-3]}"
            )
        return value.repeat_interleave(channels, -1)[..., None, None].to(like, non_blocking=True)


def _times(clock: Tensor, frames: int) -> Tensor:
    """(..., F) of a clock (...)."""
    k = torch.arange(frames, dtype=clock.dtype, device=clock.device)
    return ((k + clock[..., None]) / frames).clamp(0, 1)


def _range(schedule: Schedule) -> tuple[float, float]:
    """log_snr(0), and how far log_snr(1) is below it."""
    most, least = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64, device="cpu")).tolist()
    return most, most - least


def _infinite_at_0(schedule: Schedule, times: Tensor) -> Tensor:
    """log_snr, infinite at time 0."""
    return torch.where(times > 0, schedule.log_snr(times), math.inf)


@once
def _of_frames(process: Rolling, t: Tensor) -> Tensor:
    """(..., F): log_snr of every frame."""
    return _infinite_at_0(process.schedule, process.frame_times(t))


@once
def _transition(process: Rolling, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Of every frame."""
    return transition_of(_of_frames(process, s), _of_frames(process, t))


@once
def _posterior(process: Rolling, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of every frame."""
    return posterior_of(_of_frames(process, t), _of_frames(process, s))
