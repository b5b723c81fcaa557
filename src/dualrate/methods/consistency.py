"""Multistep Consistency Models (Heek, Hoogeboom, Salimans 2024, arXiv 2403.06807): from data, or from a teacher.

[0, 1] is cut into S segments of equal length. In each, f(z_t, t) is the x_hat with which one step of DDIM goes where
the probability-flow ODE goes, to the segment's lower border b; so DDIM in S steps samples. It is learned from
neighbours among T + 1 times:

    T = S round(N(i) / S),   N(i) = N_0 (N_1 / N_0)^min(i / I, 1)                  more of them by and by, i: iteration
    t ~ U{1 / T, ..., 1},    s = t - 1 / T,    b = floor(S s) / S                  a border is the end of the one above
    x_t    = x from data; x_hat(z_t) of a teacher
    z_s    = aDDIM from t to s with x_t and the variance eta |x_t - x|^2 / d
    target = the x_hat of DDIM from z_t straight to where DDIM with sg f(z_s, s) gets from z_s, at b
    L      = E rho(|target - f(z_t, t)|^2 / (d sigma_t^2)),    rho(e) = e, or sqrt(e + c^2) - c     pseudo-Huber

|target - f| / sigma_t is the error of v, and its square has the weight SNR + 1. At s = b nothing of f is in the target,
which is x_t' below (x_t without the variance): that keeps it from collapsing. With T = S it is so everywhere, and from
data L is the v-loss of diffusion.

The paper takes the target from an inverse DDIM step in double precision, a difference of nearly equal numbers. Solved
on paper it is a mean: with u = alpha / sigma, DDIM is z_s / sigma_s = z_t / sigma_t + (u_s - u_t) x_hat, so

    target = w x_t' + (1 - w) f(z_s, s),   w = (u_s - u_t) / (u_b - u_t)

where x_t' is the x_hat with which DDIM makes the step of aDDIM (`adjusted` of sampling/ddim.py). It wants no more than
w in double precision.

A dual-rate student (ours; Dual-Rate Diffusion, arXiv 2605.18190, samples ancestrally) makes H < S heavy calls. With one
at (z_t, t) itself it is f, which learns as above. At a step that keeps its context the light network g learns what a
heavy call there would say, on the states of the student's own path of DDIM:

    L_kept = E rho(|sg f(z_t, t) - g(z_t, t, context of z_tau)|^2 / (d sigma_t^2)),    added to L
    z_1 = noise; z_tau, z_t: states of one path of the student's own steps from it, without gradient; t = k / S

Of the encoder L_kept trains the projections alone, not the U-ViT, which is f's.

A student of a condition, whose heavy network sees that alone, needs no L_kept: its context is right at every time.

Ours: the norm is of the error of v, per dimension, where the paper has SNR + 1 before one of the error of x; f(z_s, s)
is without dropout, as a sampler has it; as at sampling, a step that ends in x has no variance to put back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from dualrate.config.ranges import (
    BelowOne,
    Classes,
    FirstIterations,
    Probability,
    Range,
    Ranged,
    Steps,
    TeacherGuidance,
)
from dualrate.data.conditions import Conditioning, Unconditional
from dualrate.denoisers.denoiser import Denoiser, posterior_mean
from dualrate.diffusion.context import Batch, Cond, Refresh, Reuse, expand
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import GaussianProcess, require_gaussian
from dualrate.diffusion.random import Draws
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.plan_support import OwnSteps, steps_of_ddim
from dualrate.experiment.teaching import begin, check_teacher, frozen_teacher, require_no_decoder
from dualrate.methods.times import stratified_uniform, to_device
from dualrate.methods.watch import LogWatch, Warnings, Windows, collapse, growth
from dualrate.networks.blocks import eval_mode, frozen
from dualrate.sampling.ddim import DDIM, adjusted
from dualrate.sampling.step import move
from dualrate.sampling.trajectory import reuses, trajectory
from dualrate.training.method import Loss, OnePhase, by_time_quartile

Eta = Annotated[float, Range(0, 1000)]
Huber = Annotated[float, Range(0, 1000, above=True)]


@dataclass(frozen=True)
class TeacherSteps(Ranged):
    """N(i): from the first number to the last by equal factors, in so many iterations; then it stays."""

    first: Steps = 64
    last: Steps = 1280
    iterations: FirstIterations = 100_000

    def __call__(self, iteration: int) -> float:
        share = min(iteration / self.iterations, 1.0) if self.iterations else 1.0
        return self.first * (self.last / self.first) ** share

    def of_segment(self, iteration: int, segments: int) -> int:
        """T / S, steps of the teacher in a segment."""
        return max(1, round(self(iteration) / segments))


@dataclass(frozen=True)
class Consistency(OnePhase):
    """The loss of the module.

    steps:    S, of the student
    teacher:  never changed; it sees z_t under `process`. None: the data are
    guidance: its classifier-free guidance weight; 1 is none; null: the class it is guided against
    eta:      share of the teacher's error that its steps put back as variance; 0: they are DDIM's
    huber:    c, in the root mean square of the error of v; None: squares
    heavy:    H, of a dual-rate student, spread evenly over its steps; None: a heavy call at every step
    backbone: the U-ViT of its encoder, which L_kept does not train; None: L_kept trains all of it
    condition: whose `weighed` says how much each number counts
    """

    student: Denoiser
    process: GaussianProcess
    steps: Steps
    teacher: Denoiser | None = None
    teacher_steps: TeacherSteps = TeacherSteps()
    guidance: TeacherGuidance = 1.0
    null: Classes = 0
    eta: Eta = 0.75
    huber: Huber | None = None
    heavy: Steps | None = None
    backbone: nn.Module | None = None
    condition: Conditioning = Unconditional()

    phase = "student"

    @property
    def plan(self) -> StepPlan:
        """The plan that the student is sampled under."""
        return StepPlan.uniform(self.steps, self.heavy)

    def denoiser(self) -> Denoiser:
        return self.student

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L of the module docstring, the mean over the batch's rows.

        Logs: `loss_t0` to `loss_t3`, of L alone; `kept`, L_kept, of a dual-rate student; `power`, the mean square of
        f, small for a student that collapses to grey; `teacher_steps`, T.
        """
        t, s, border = to_device(batch.x.device, *self.times(iteration, draws.host))
        cond = batch.cond
        (noise,) = self.process.noise(draws, ["z_t"], *batch.x.shape[1:])
        z_t = self.process.add_noise(batch.x, t, noise.to(batch.x.dtype))
        with torch.no_grad(), eval_mode(self.networks):
            target = self.target(batch.x, z_t, t, s, border, cond)
        x_hat = posterior_mean(self.student, z_t, t, cond)
        loss = self.distance(target, x_hat, t)
        steps = self.steps * self.teacher_steps.of_segment(iteration, self.steps)
        logs = {"power": x_hat.detach().square().mean(), "teacher_steps": loss.new_full((), steps)}
        logs |= by_time_quartile("loss_t", loss, t)
        if not reuses(self.plan):
            return Loss(loss.mean(), logs)
        light_loss = self.kept_loss(batch, draws).sum() / len(batch)
        return Loss(loss.mean() + light_loss, logs | {"kept": light_loss.detach()})

    def distance(self, target: Tensor, x_hat: Tensor, t: Tensor) -> Tensor:
        """rho of the error of v, (B,). target, x_hat: (B, ...); t: (B,)."""
        error = self.condition.weighed(target - x_hat) / expand(self.process.sigma(t), x_hat)
        error = error.square().flatten(1).mean(1)
        return error if self.huber is None else torch.sqrt(error + self.huber**2) - self.huber

    def kept_loss(self, batch: Batch, draws: Draws) -> Tensor:
        """L_kept of the module docstring, of each of `pairs`: about as many as the batch has rows.

        Raises ValueError for a student whose contexts DDIM may not reuse.
        """
        with torch.no_grad(), eval_mode(self.networks):
            z_t, t, z_tau, tau, cond = self.pairs(batch, draws)
            target = posterior_mean(self.student, z_t, t, cond)
        with frozen(*(() if self.backbone is None else (self.backbone,))):
            context = self.student.encode(z_tau, tau, cond).aged()
        return self.distance(target, self.student.denoise(z_t, t, context, cond), t)

    def pairs(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor, Cond]:
        """z_t, t, z_tau, tau as sampling makes them, of the batch's labels alone: all those of a path at a time.

        With K steps that keep a context, every K-th sample number rolls out one path, which gives K pairs.
        """
        plan = self.plan
        light = [i for i, refresh in enumerate(plan.refresh) if refresh is Refresh.KEEP]
        heavy = [max(j for j in range(i) if plan.refresh[j] is Refresh.FULL) for i in light]
        (rows,) = to_device(batch.x.device, torch.nonzero(draws.host.row % len(light) == 0).flatten())
        some, times = batch[rows], torch.tensor(plan.t, dtype=torch.float64)
        (z,) = self.process.noise(Draws(draws.seed, draws.row[rows]), ["rollout start"], *batch.x.shape[1:])
        z = self.process.prior(z.to(batch.x.dtype), batch.x.shape[1:])
        path = trajectory(self.student, DDIM(self.process), plan, z, some.cond, lambda step, draw: z)
        states = [state.z for state in islice(path, light[-1] + 1)]
        z_t, z_tau = (torch.cat([states[i] for i in steps]) for steps in (light, heavy))
        t, tau = to_device(batch.x.device, *(times[steps].repeat_interleave(len(rows)) for steps in (light, heavy)))
        rows = torch.arange(len(some), device=z_t.device).repeat(len(light))
        return z_t, t, z_tau, tau, some.cond[rows]

    def times(self, iteration: int, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """t, s and the border b, each (B,) float64; at the end of a segment s is b, to the bit."""
        in_segment = self.teacher_steps.of_segment(iteration, self.steps)
        total = self.steps * in_segment
        index = torch.floor(stratified_uniform(draws) * total).clamp(max=total - 1)  # of s
        return (index + 1) / total, index / total, torch.floor(index / in_segment) * in_segment / total

    def target(self, x: Tensor, z_t: Tensor, t: Tensor, s: Tensor, border: Tensor, cond: Cond) -> Tensor:
        """The target of f(z_t, t). x, z_t and it: (B, ...); times: (B,). Calls the teacher at t, the student at s."""
        x_t, variance = self.taught(x, z_t, t, cond)
        if self.process.end is None:
            variance = variance * (s > 0)
        x_t = adjusted(self.process, z_t, x_t, t, s, variance)
        z_s = move(self.process, z_t, x_t, t, s)
        at_t, at_s, at_border = (torch.exp(self.process.log_snr(time) / 2) for time in (t, s, border))  # u
        rest = expand((at_border - at_s) / (at_border - at_t), z_t)  # 1 - w
        return x_t + rest * (posterior_mean(self.student, z_s, s, cond) - x_t)

    def taught(self, x: Tensor, z_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """x_t, and the variance per dimension that its step puts back, (B,): that of the teacher without guidance."""
        if self.teacher is None:
            return x, torch.zeros_like(t)
        x_hat = posterior_mean(self.teacher, z_t, t, cond)
        variance = self.eta * (x_hat - x).square().flatten(1).mean(1)
        if self.guidance == 1 or cond.label is None:
            return x_hat, variance
        against = posterior_mean(self.teacher, z_t, t, Cond(torch.full_like(cond.label, self.null), cond.given))
        return self.process.extrapolate(against, x_hat, torch.full_like(t, self.guidance)), variance


def consistency_warnings(windows: Windows) -> Warnings:
    """Warnings where the student collapses, or its loss grows more than by the teacher's growing number of steps."""
    remedy = "go back to a new run with a lower --fit.optim.lr or a larger --fit.batch-size"
    yield from collapse(windows, "power", "mean square of its images", remedy)
    yield from growth(windows, "loss", "the student's loss grows", remedy)


WATCH = partial(LogWatch, checks={"student": (("loss", "power"), consistency_warnings)})


@dataclass(frozen=True)
class ConsistencyConfig(MethodConfig, Ranged):
    """Multistep consistency. The model serves its own number of steps, under DDIM."""

    steps: Steps = 4
    """Steps of the student. Each covers its own part of the noise levels."""
    teacher: str | None = None
    """The teacher: a single-rate run, released weights, or a diffusers folder. Default: none, training from data."""
    teacher_steps: tuple[Steps, Steps] = (64, 1280)
    """How many steps the teacher, or the data, would take over all noise levels: at first, and in the end."""
    annealing: Probability = 0.5
    """Share of the iterations in which this number of steps grows, by equal factors. 0: it has its final value
    throughout."""
    eta: Eta = 0.75
    """Share of the teacher's error that its steps put back as variance (aDDIM). 0: DDIM."""
    huber: Huber | None = None
    """c of the pseudo-Huber loss, as a root mean square error of v. Default: the squared error."""
    guidance: TeacherGuidance = 1.0
    """Classifier-free guidance weight of the teacher; 1 is none."""
    dropout: BelowOne | None = None
    """Dropout of the student in training. Default: that of its network."""
    heavy: Steps | None = None
    """Heavy calls of a dual-rate student, fewer than its steps; 1 where the heavy network sees only a condition."""
    student_from: str | None = None
    """A run with the same networks, from which the student starts. Default: one network starts from the teacher, if
    there is one. Of two networks the encoder starts from the teacher, and the light one from `light_from`, if given.
    Otherwise weights are random."""
    light_from: str | None = None
    """A single-rate run that the light network of a dual-rate student starts from."""

    @property
    def serves(self) -> OwnSteps:
        return steps_of_ddim(self.steps, self.heavy)

    def adapted(self, denoiser: Any) -> Denoiser:
        """A dual-rate student reuses contexts along its own path of DDIM; those of a condition alone never age."""
        return denoiser if self.heavy is None or denoiser.reuse is Reuse.FREE else replace(denoiser, reuse=Reuse.OWN)

    def check(self, experiment: Experiment) -> None:
        require_gaussian(experiment.process, experiment.name)
        first, last = self.teacher_steps
        if not self.steps <= first <= last:
            got = f"{first} and {last} for a student of {self.steps}"
            raise ValueError(
                f"a teacher makes the student's steps or more, no fewer in the end than at first; got {got}"
            )
        require_no_decoder(experiment, "consistency")
        if not experiment.networks.ages:
            heavy = None if experiment.networks.single_rate else 1
            if (self.heavy, self.light_from) != (heavy, None):
                what = "one network, called at every step" if heavy is None else "a heavy network, called once"
                remedy = "drop heavy and" if heavy is None else "make heavy 1, drop"
                raise ValueError(f"{experiment.name} has {what}: {remedy} light_from")
        elif self.steps < 2:
            raise ValueError(
                f"{experiment.name} has two rates, of which a student of one step has no use: take 2 steps or more"
            )
        elif experiment.networks.roles != ("encoder", "light") or not 0 < (self.heavy or 0) < self.steps:
            raise ValueError(
                f"consistency trains one network, or an encoder and a light network with 1 to {self.steps - 1} heavy "
                f"calls (heavy); {experiment.name} has {', '.join(experiment.networks.roles)}, and heavy {self.heavy}"
            )
        if self.student_from is not None and self.light_from is not None:
            raise ValueError("student_from brings the light network's weights too: drop light_from, or student_from")
        if self.teacher is None and self.guidance != 1:
            raise ValueError(f"guidance is a teacher's, and the data have none; got a weight of {self.guidance:g}")

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        networks, student = replace(experiment, networks=experiment.networks.with_dropout(self.dropout)).build()
        teacher = None if self.teacher is None else start.load(self.teacher)
        taught, weights, identity, ages = None, {}, {}, experiment.networks.ages
        if teacher is not None:
            single = check_teacher(experiment, teacher, str(self.teacher), self.guidance)
            _, taught = frozen_teacher(single, experiment.process, teacher, bfloat16=start.bfloat16)
            weights["teacher"], identity["teacher"] = str(teacher), f"weights {teacher.weights_hash[:12]}"
        if start.fresh:
            runs = {"student": self.student_from, "light": self.light_from}
            weights |= begin(experiment, networks, teacher, start, runs)
        first, last = self.teacher_steps
        if self.annealing and experiment.fit.iterations is None:
            grow = "the teacher's steps grow in a share of the iterations"
            raise ValueError(f"{grow}: give --fit.iterations, or --annealing 0")
        annealed = round(self.annealing * (experiment.fit.iterations or 0))
        if "iterations" in experiment.fit.free():  # another number would be annealed in another way
            identity["annealing"] = f"{annealed} iterations"
        method = Consistency(
            networks,
            student,
            experiment.gaussian,
            self.steps,
            taught,
            TeacherSteps(first, last, annealed),
            guidance=self.guidance,
            null=experiment.num_classes,
            eta=self.eta,
            huber=self.huber,
            heavy=self.heavy if ages else None,
            backbone=experiment.networks.backbone(networks, "encoder") if ages else None,
            condition=experiment.condition,
        )
        return Prepared(method, weights, identity, WATCH)
