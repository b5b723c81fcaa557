"""Rolling Diffusion of frames, given those before: a window that moves on by a frame each time one becomes clean.

    clock c ~ U(0, 1), a roll, or with probability `whole` ~ U(1 - F, F): from all noise to all data
    L = mean over frames k of weight(u_k) |x^k - x_hat^k(z, c, y)|^2          z^k = alpha(u_k) x^k + sigma(u_k) eps^k

Frames whose time u_k(c) is 0 or 1 do not count. y are the frames before the window, as they are observed. Over a roll
the times of all F frames together are uniform. Times and process: forecasts/rolling_process.py.

    start   z ~ N(0, I), steps from c = F to 0, T from each whole clock to the next: frame 0 is clean, and the first one
    roll    z moves on by a frame, a new one of noise comes last; T steps from c = 1 to 0: frame 0 is the next one

A frame keeps its noise as it moves, and its x_hat of the step before, which a step of second order goes on from. Each
clean frame joins the past, and the condition is observed anew.

The roll is the natural clock of two rates: the heavy network sees y once for each frame that comes out, the light one
makes T steps, F T of them over a frame's way through the window. One that sees the window too (`BothRates`) does so
when a roll begins, and at each whole clock of the start. So its features serve the steps of one roll, and nothing that
it computed has to move with the frames:

    tau = t(ceil c),   (z_t, z_tau) on one forward path

Source: Rolling Diffusion Models (Ruhe, Heek, Salimans, Hoogeboom 2024, arXiv 2402.09470), whose start is trained with
probability 0.1. Deviates from it: `whole` has the times of the end too, so about half of it is the start's. Frames that
are given, clean ones at the front of the window there, are y here. Steps of second order, gamma and clocks of a roll
that are not even are ours; theirs are ancestral. A roll-out has no end of its own: the frames of an end, c from 0 to
1 - F, have the law of as many rolls, for as many calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.config.ranges import Probability, Ranged
from dualrate.denoisers.denoiser import Denoiser, read
from dualrate.diffusion.context import Batch, Cond, Context, Reuse, for_rows, shared_time
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.plan_support import AnyPlan
from dualrate.forecasts.condition import Forecast
from dualrate.forecasts.externals import beside
from dualrate.forecasts.rolling_process import Rolling
from dualrate.methods.denoising import WeightedDenoising
from dualrate.methods.times import SingleTime, TimeSource, to_device
from dualrate.sampling.ancestral import Reverse
from dualrate.sampling.step import Carry, Step
from dualrate.sampling.trajectory import MEMBER, State, StepNoise, first_state, trajectory
from dualrate.training.method import Loss

WHOLE = 0.2


@dataclass(frozen=True)
class RollingDenoising(WeightedDenoising):
    """The loss of the module, at as many times for each window and heavy call as its times have (`draws`)."""

    process: Rolling  # pyright: ignore[reportIncompatibleVariableOverride]
    whole: Probability = WHOLE

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """The mean over rows, draws and frames. Logs: `loss_frame0` to the last frame's, and an encoder's own."""
        many, x = draws.repeated(self.times.draws), batch.x.repeat_interleave(self.times.draws, 0)
        t, tau = to_device(x.device, *self.rolled(many.host))
        z_t, z_tau = self.process.pair(x, t, tau, *self.process.noise(many, ["z_tau", "z_t"], *x.shape[1:]))
        cond = read(self.model, Cond(given=batch.given))
        context = self.model.encode(z_tau, tau, cond)
        errors = self.weighted_errors(x, self.model.denoise(z_t, t, context.aged(), cond), t)
        logs, total = {f"loss_frame{k}": error for k, error in enumerate(errors.detach().mean(0))}, errors.mean()
        if context.x_hat is not None:
            encoder_error = self.weighted_errors(x, context.x_hat, tau).mean()
            logs["encoder_loss"], total = encoder_error.detach(), total + encoder_error
        return Loss(total, logs)

    def weighted_errors(self, x: Tensor, x_hat: Tensor, t: Tensor) -> Tensor:
        """The weighted error of every frame, (B, F)."""
        errors = self.process.frame_errors(self.condition.weighed(x), self.condition.weighed(x_hat))
        return self.process.frame_weights(self.weighting, t).to(errors.dtype) * errors

    def rolled(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Times (t, tau) of windows, (B,) both: t of a roll, or of any clock; tau that of the next whole clock."""
        t, last, first = self.times(draws).t, self.process.time(0), self.process.time(1)
        t = torch.where(draws.uniform("whole") < self.whole, t, last + (first - last) * t)
        least, span = self.process.frames - 1, 2 * self.process.frames - 1  # as of `Rolling.clock`
        return t, torch.maximum((torch.ceil(self.process.clock(t)) + least) / span, t)


@dataclass(frozen=True)
class RollingConfig(MethodConfig, Ranged):
    """Frames that become clean one after the other, in a window that moves on."""

    times: TimeSource = SingleTime()
    """Of windows: uniform. GivenTimes() of two networks."""
    weighting: Weighting = Sigmoid()
    whole: Probability = WHOLE
    """Share of windows that train on all times, from all noise to all data. The others train on the times of a roll."""

    @property
    def serves(self) -> AnyPlan:
        return AnyPlan(self.times.heavy)

    def check(self, experiment: Experiment) -> None:
        process, forecast = experiment.process, experiment.condition
        if not isinstance(process, Rolling):
            raise ValueError(f"{experiment.name} rolls windows, whose process is Rolling, got {process}")
        if not isinstance(forecast, Forecast) or forecast.frames != process.frames:
            raise ValueError(
                f"{experiment.name} rolls windows of {process.frames} frames: its condition is a Forecast with as "
                f"many, got {forecast}"
            )
        if self.times.dropout or self.times.first is not None or self.times.heavy not in (None, (1, 1)):
            raise ValueError(
                f"{experiment.name} rolls windows, of which each roll has one heavy call: pass SingleTime() or "
                f"GivenTimes() as times, got {self.times}"
            )
        if forecast.difference:
            raise ValueError(
                "a window that rolls has frames, not their differences from one that changes with every roll: drop "
                "--difference"
            )

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        networks, denoiser = experiment.build()
        assert isinstance(experiment.process, Rolling)  # of `check`
        parts = networks, denoiser, experiment.process, self.weighting, self.times
        return Prepared(RollingDenoising(*parts, condition=experiment.condition, whole=self.whole))


@dataclass(frozen=True)
class Window:
    """The state of a roll-out when a frame has become clean: all that the next roll needs.

    rolls: before it; frame: (B, C, H, W), the clean one; z: (B, F C, H, W), the window at c = 0, which begins with it
    past:  (B, P C, H, W), which ends with it
    carry: the step's own
    """

    rolls: int
    frame: Tensor
    z: Tensor
    past: Tensor
    carry: Carry = ()


def roll(
    denoiser: Denoiser,
    process: Rolling,
    forecast: Forecast,
    past: Tensor,
    key: Tensor,
    steps: int | Sequence[float],
    *,
    step: Step | None = None,
    observed: bool = False,
    bfloat16: bool = False,
    ahead: Callable[[int], Tensor] | None = None,
) -> Iterator[Window]:
    """A window for every frame, without end and without gradient. A frame costs T light calls and a heavy one.

    past:   (n, P C, H, W) float32, normalised: the frames before the first one
    key:    (n M,) int64, on their device: seed + MEMBER m of M members of each past, those of a past one after the
            other. A frame depends on its key and its number alone, not on other rows. Members share
            the first y and its heavy call; later each has a past of its own
    steps:  T of a roll, or its T + 1 clocks themselves, from 1 to 0; the first frame takes F T
    step:   of these; None: ancestral
    observed: whether the past is what was observed, whose frames get no more noise
    ahead:  time steps of the data after the past -> forcings from there on, (n, K, H, W)
    Raises ValueError for a forecast of other windows than the process's, clocks that are no roll's, and a step of other
    processes.
    """
    clocks, step = StepPlan.at(steps, [0]).t, step or Reverse(process)
    if (clocks[0], clocks[-1]) != (1, 0):
        raise ValueError(f"a roll goes from the clock 1 to 0, got {clocks[0]:g} to {clocks[-1]:g}: give these ends")
    if not isinstance(process, step.of):
        raise ValueError(f"{step} is for a {step.of.__name__}, not {process}: take Reverse or SDEDPMSolver2M")
    if forecast.frames != process.frames:
        raise ValueError(f"windows of {process.frames} frames roll, the forecast has {forecast.frames}: give as many")

    def reached(z: Tensor, past: Tensor, number: int, clock: int, carry: Carry, draws: Draws) -> Window:
        """The window at c = 0, from one at a whole c."""
        times = [process.time(whole + c) for whole in reversed(range(clock)) for c in clocks[:-1]]
        noise = StepNoise(process, Draws(number, key), len(times), z.shape[1:])
        heavy = range(0, len(times), len(times) if denoiser.reuse is Reuse.FREE else len(clocks) - 1)
        plan = StepPlan.at((*times, process.time(0)), heavy)
        begun = State(0, z, shared_time(plan.t[0]), Context(), None, carry)
        with torch.no_grad(), torch.autocast(z.device.type, torch.bfloat16, enabled=bfloat16):
            still = max(0, forecast.past - number) if observed else 0
            now = None if ahead is None else ahead(number * forecast.ahead)
            cond = read(denoiser, Cond(given=forecast.observe(beside(past, now), draws, still)))
            for state in trajectory(denoiser, step, plan, z, cond, noise, state=begun):
                z, carry = state.z, state.carry
        past = for_rows(past, len(z))
        frame = z[:, : z.shape[1] // process.frames]
        return Window(number, frame, z, torch.cat((past[:, frame.shape[1] :], frame), 1), carry)

    def moved(carry: Carry, new: Tensor) -> Carry:
        """The carry of the window that has moved on by a frame: its states and its times, which are a whole clock more.

        What it holds of the new frame, which has not moved before, is not looked at.
        """
        if isinstance(carry, tuple):
            return tuple(moved(part, new) for part in carry)
        return torch.cat((carry[:, len(new[0]) :], new), 1) if carry.ndim else carry + process.time(1) - process.time(0)

    shape = past.shape[1] // forecast.past * process.frames, *past.shape[2:]
    z, seeds = first_state(process, Draws(0, key), shape), Draws(0, key[:: len(key) // len(past)] % MEMBER)
    window = reached(z, past, 0, process.frames, step.start(), seeds)
    yield window
    while True:
        number = window.rolls + 1
        draws = Draws(number, key)
        new = process.noise(draws, ["frame"], *window.frame.shape[1:])[0].to(window.z)
        window = reached(moved(window.z, new), window.past, number, 1, moved(window.carry, new), draws)
        yield window
