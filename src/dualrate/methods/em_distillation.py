"""EM Distillation (Xie et al. 2024, arXiv 2405.16852): a student of one step, x = g(z), z ~ N(0, I), by maximum
likelihood of the teacher's samples at every noise level, min KL(q_t | p_t) over t.

The E-step draws (x_t, z) of which x_t is the teacher's and z what the student would have made it of. With
x_t = alpha_t g(z) + sigma_t eps that is a density of eps and z,

    log rho = log q_t(x_t) - log p_t(x_t) - |z|^2 / 2 - |eps|^2 / 2

sampled by L steps of Langevin from eps, z ~ N(0, I), both from the same state. The scores' difference is one of two
posterior means, gap = g_theta(x_t) - g_phi(x_t) of teacher and auxiliary, and with u = alpha_t / sigma_t

    eps' = (1 - h) eps + h u gap + sqrt(2 h) n              h: noise_step
    z'   = (1 - k) z + k u^2 J_g(z)^T gap + sqrt(2 k) m     k: latent_step; n, m ~ N(0, I)

The M-step regresses g(z^L) on x_t^L / alpha_t less the noise in it: of what eps^L is made of, eps^0 and the n, which
say nothing of x, are taken out again (noise cancellation). What is left is the gap, summed up along the chain:

    student     L(eta) = E w(t) |g(z^L) - sg(g(z^L) + c^L)|^2 / d,   c' = (1 - h) c + h gap,   c^0 = 0
    auxiliary   L(phi) = E w(t) |sg g(z) - g_phi(alpha_t g(z) + sigma_t eps)|^2 / d

so (eps^L - noise in it) sigma_t = alpha_t c^L, and no difference of large numbers is formed. A special case, L = 1 with
k = 0, has the gradient of variational score distillation (Diff-Instruct), in proportion. Cancelling is unbiased to the
extent that z^L does not know the noise: exactly where z stays, k = 0, whatever L.

The student is the teacher's network at the noise level where its schedule ends, which is to be high and not pure noise.
Its schedule is the teacher's up to there (`Truncated`). No data are needed, labels only. Ours: w(t), which is moment
matching's; the times, the middle of (0, 1), for u^2 grows without bound as t falls; and L = 4, which takes hours of a
CPU, where the paper takes 16, as the ImageNet recipes do.

Teacher, student and auxiliary are as in moment matching: the teacher frozen and in no checkpoint, the auxiliary of its
shape and trained along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from dualrate.config.ranges import BelowOne, Factor, Probability, Range, Ranged, Share, Steps, TeacherGuidance
from dualrate.denoisers.denoiser import Denoiser, posterior_mean
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.context import Batch, Cond, expand
from dualrate.diffusion.process import GaussianProcess, require_gaussian
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.model import Model
from dualrate.experiment.plan_support import ONE_STEP, OwnSteps
from dualrate.experiment.teaching import begin, built, check_teacher, frozen_teacher, require_no_decoder
from dualrate.methods.student_states import Distillation
from dualrate.methods.times import stratified_uniform, to_device
from dualrate.methods.watch import LogWatch, Warnings, Windows, collapse, growth, lag
from dualrate.networks.blocks import eval_mode
from dualrate.training.method import Loss, Phase, by_time_quartile

NoiseStep = Annotated[float, Range(0, 1, above=True)]
LatentStep = Annotated[float, Range(0, 1)]
Times = tuple[Probability, Share]  # least and largest
TIMES = (0.05, 0.95)
LAG = 1.0  # `gap_ahead` in moment gaps: 0 where the auxiliary keeps up
ESCAPE = 2.0  # the mean square of z^L or eps^L, of which 1 is the prior's


@dataclass(frozen=True)
class Langevin(Ranged):
    """The chain of the E-step."""

    steps: Steps = 4
    """L."""
    noise_step: NoiseStep = 0.16
    """h, of eps."""
    latent_step: LatentStep = 0.01
    """k, of z; 0: z stays, and the student is not differentiated in it."""


class ChainState(NamedTuple):
    """State of the chain: z, eps and the correction c; each (B, ...)."""

    z: Tensor
    eps: Tensor
    correction: Tensor


class Estimates(NamedTuple):
    """Outputs of the networks at a state: x = g(z), g_phi(x_t) and the gap; each (B, ...)."""

    x: Tensor
    x_phi: Tensor
    gap: Tensor


@dataclass(frozen=True, kw_only=True)
class EMDistillation(Distillation):
    """The auxiliary in even iterations, the student, called at t = 1, in odd ones.

    auxiliaries: {"auxiliary": network}, started from the teacher's weights; auxiliary: that network as a denoiser
    times:       t is uniform between these
    """

    auxiliaries: nn.ModuleDict
    auxiliary: Denoiser
    process: GaussianProcess  # pyright: ignore[reportIncompatibleVariableOverride]
    langevin: Langevin = Langevin()
    times: Times = TIMES

    def phases(self, iteration: int) -> tuple[Phase, ...]:
        if iteration % 2:
            return (Phase("student", tuple(self.networks.parameters()), self.student_loss, self.student_rate),)
        return (Phase("auxiliary", tuple(self.auxiliaries.parameters()), self.auxiliary_loss),)

    def auxiliary_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L(phi) of the module docstring: the denoising loss on the student's images. Logs: its quarters of t."""
        t, cond = self.drawn_times(batch, draws), batch.cond
        z, eps = draws.normals(["z", "eps"], *batch.x.shape[1:]).to(batch.x.dtype)
        with torch.no_grad(), eval_mode(self.networks):
            x = self.generated(z, cond)
        error = self.deviance(x, posterior_mean(self.auxiliary, self.process.add_noise(x, t, eps), t, cond))
        return Loss((self.weight(t, error) * error).mean(), by_time_quartile("error_t", error, t))

    def student_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L(eta) of the module docstring.

        Logs, of the chain's beginning: `moment_gap`, the mean square of the gap, and its quarters of t; `gap_ahead`,
        the mean of <g_phi - g_theta, x - g_phi> / d, 0 at the auxiliary's optimum, above it while that lags behind the
        student, below it where the student has turned back; `power`, |x|^2 / d, small for a student that collapses to
        grey. Of its end: `latent_power` and `noise_power`, the mean squares of z^L and eps^L, 1 where nothing is left.
        """
        t, cond = self.drawn_times(batch, draws), batch.cond
        z, eps = draws.normals(["z", "eps"], *batch.x.shape[1:]).to(batch.x.dtype)
        with eval_mode(self.networks), eval_mode(self.auxiliaries):
            state, first = self.chain(ChainState(z, eps, torch.zeros_like(z)), t, cond, draws)
        x = self.generated(state.z, cond)
        error = self.deviance(x.detach() + state.correction, x)
        gap = first.gap.square().flatten(1).mean(1)
        logs = {
            "moment_gap": gap.mean(),
            "gap_ahead": -(first.gap * (first.x - first.x_phi)).mean(),
            "power": first.x.square().mean(),
            "latent_power": state.z.square().mean(),
            "noise_power": state.eps.square().mean(),
        }
        return Loss((self.weight(t, error) * error).mean(), logs | by_time_quartile("gap_t", gap, t))

    def chain(self, state: ChainState, t: Tensor, cond: Cond, draws: Draws) -> tuple[ChainState, Estimates]:
        """The state after L steps, and the networks' estimates before the first; no gradient."""
        by_step = []
        for i in range(self.langevin.steps):
            normals = draws.normals([f"langevin {i} eps", f"langevin {i} z"], *state.z.shape[1:]).to(state.z.dtype)
            state, estimates = self.step(state, t, cond, normals)
            by_step.append(estimates)
        return state, by_step[0]

    def step(self, state: ChainState, t: Tensor, cond: Cond, normals: Tensor) -> tuple[ChainState, Estimates]:
        """eps', z' and c' of the module docstring, and what they follow from. normals: (2, B, ...), n and m."""
        h, k = self.langevin.noise_step, self.langevin.latent_step
        z = state.z.detach().requires_grad_(k > 0)
        with torch.set_grad_enabled(k > 0):
            x = self.generated(z, cond)
        with torch.no_grad():
            x_t = self.process.add_noise(x, t, state.eps)
            x_phi = posterior_mean(self.auxiliary, x_t, t, cond)
            gap = posterior_mean(self.teacher, x_t, t, cond) - x_phi
        u = expand(self.process.alpha(t) / self.process.sigma(t), gap)
        eps = (1 - h) * state.eps + h * u * gap + math.sqrt(2 * h) * normals[0]
        z_next = z.detach()
        if k:
            (pull,) = torch.autograd.grad(x, z, u**2 * gap)
            z_next = (1 - k) * z_next + k * pull + math.sqrt(2 * k) * normals[1]
        return ChainState(z_next, eps, (1 - h) * state.correction + h * gap), Estimates(x.detach(), x_phi, gap)

    def generated(self, z: Tensor, cond: Cond) -> Tensor:
        """g(z)."""
        return posterior_mean(self.student, z, torch.ones(len(z), dtype=torch.float64, device=z.device), cond)

    def drawn_times(self, batch: Batch, draws: Draws) -> Tensor:
        low, high = self.times
        return to_device(batch.x.device, low + (high - low) * stratified_uniform(draws.host))[0]


def distillation_warnings(windows: Windows) -> Warnings:
    """Warnings; of the gap from the second window on, as at first auxiliary and student are near the teacher."""
    yield from collapse(windows, "power", "mean square of its images")
    yield from growth(windows[1:], "moment_gap", "the moment gap grows", "lower --student-rate")
    yield from lag(windows, -LAG, LAG)
    latent, noise = windows[-1]["latent_power"], windows[-1]["noise_power"]
    if len(windows) > 1 and max(latent, noise) > ESCAPE:
        why = f"mean squares of {latent:.3g} (z) and {noise:.3g} (eps), not 1: lower --latent-step or --noise-step"
        yield "the Langevin chain runs away", why


WATCHED = "moment_gap", "gap_ahead", "power", "latent_power", "noise_power"
WATCH = partial(LogWatch, checks={"student": (WATCHED, distillation_warnings)})


@dataclass(frozen=True)
class EMDistillationConfig(MethodConfig, Ranged):
    """EM distillation. The model serves one step, from noise to its x_hat."""

    teacher: str
    """A single-rate run, released weights, or a folder of diffusers."""
    langevin: Langevin = Langevin()
    times: Times = TIMES
    """Least and largest time whose noise levels are matched; t is uniform between them."""
    guidance: TeacherGuidance = 1.0
    """Classifier-free guidance weight of the teacher; 1 is none."""
    dropout: BelowOne | None = None
    """Of student and auxiliary in training, not in sampling; as their networks say if not given."""
    student_rate: Factor = 1.0
    """The student's learning rate over the auxiliary's, which is fit.optim.lr."""
    weighting: Weighting = Sigmoid()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.times[0] < self.times[1]:
            raise ValueError(f"times are the least and the largest t of the chain's noise levels, got {self.times}")

    @property
    def serves(self) -> OwnSteps:
        return ONE_STEP

    def check(self, experiment: Experiment) -> None:
        require_gaussian(experiment.process, experiment.name)
        if not experiment.networks.single_rate:
            reason = "one step is one heavy call, so a light network would never run"
            raise ValueError(f"{experiment.name} is dual-rate: {reason}. Take a single network, or moment matching")
        require_no_decoder(experiment, "EM distillation")
        if experiment.networks.given is not None and not experiment.condition.labelled:
            raise ValueError(
                f"{experiment.name} is a conditional model, which EM distillation does not train: take --method "
                "moments or consistency"
            )

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        teacher: Model = start.load(self.teacher)
        single = check_teacher(experiment, teacher, self.teacher, self.guidance)
        dropping, process = single.with_dropout(self.dropout), experiment.gaussian
        networks, student = replace(experiment, networks=dropping).build()
        if start.fresh:
            begin(experiment, networks, teacher, start, {})
        _, taught = frozen_teacher(single, process, teacher, bfloat16=start.bfloat16)
        if self.guidance != 1:
            taught = Guided(taught, process, self.guidance, teacher.num_classes)
        copy, auxiliary = built(dropping, process, teacher)
        method = EMDistillation(
            networks=networks,
            student=student,
            auxiliaries=nn.ModuleDict({"auxiliary": copy["model"]}),
            auxiliary=auxiliary,
            teacher=taught,
            process=process,
            weighting=self.weighting,
            langevin=self.langevin,
            times=self.times,
            student_rate=self.student_rate,
        )
        return Prepared(method, {"teacher": str(teacher)}, {"teacher": f"weights {teacher.weights_hash[:12]}"}, WATCH)
