"""Moment Matching Distillation (Salimans et al. 2024, arXiv 2406.04103): a student of few steps from a teacher of many.

A student x~ = g(z_t) whose samples z_s ~ q(z_s | z_t, x~) have the teacher's conditional means at every s,

    E[x~ | z_s] = g_theta(z_s)

samples the teacher's distribution. Both versions descend the squared gap between the two sides with z_s held fixed: the
gradient passes through x~ only. w(s) = e^log_snr w(log_snr) of `diffusion/weighting.py`, without dlog_snr/dt: s, not
log_snr, is what is uniform, and w is free.

The alternating version has an auxiliary denoiser g_phi, started from the teacher, that learns E[x~ | z_s]. Of any
proper score D (`Process.deviance`, of numbers that the condition weighs), theta = g_theta(z_s) and phi = g_phi(z_s):

    student     L(eta) = 1/2 (D(x~, sg theta) - D(x~, sg phi))
    auxiliary   L(phi) = D(sg x~, phi) + D(sg theta, phi)

The auxiliary's optimum is phi = (p + theta) / 2, p = E[x~ | z_s], so the student sees half the gap. There L(eta) has no
gradient in x~ at a z_s if and only if p = theta. Its value means nothing; what to watch is `moment_gap`,
|g_phi - g_theta|^2 / d.

    squared error     L(eta) has the gradient of <x~, phi - theta> / d: moment matching
    cross-entropy     L(eta) = -sum x~ (log theta - log phi): discrete moment matching (D-MMD, arXiv 2603.20155), x~ the
                      probabilities, whose gradient it is, z_s drawn by way of tokens x

The auxiliary's x~ may be whatever has the mean p given z_s; here it is E[x | z_t, z_s] (`Process.given`), which has
less noise than the tokens x. D-MMD has the tokens there, and the probabilities for masks.

The instant version has no auxiliary: it is the teacher one infinitesimal step nu_A down its own loss on student samples
A, so g_phi - g_theta is a derivative, and L(eta) is over other samples B:

    nu_A = grad_theta E_A[ w(s) |x~ - g_theta(z_s)|^2 / d ]
    L(eta) = E_B[ w(s) <x~, sg(-J_theta(z_s) Lambda nu_A)> / d ]

Its gradient is that of 1/4 |E grad_theta w |x~ - g_theta|^2|^2 in the norm Lambda, the diagonal of the teacher's Adam.
The formula of this version is reconstructed.

A dual-rate student (Dual-Rate Diffusion, arXiv 2605.18190) is the same with states of its own rollouts
(student_states.py), after a cheap pre-training of the light network and of the projections into it.

The teacher is frozen and in no checkpoint; the student is the model that comes out; the auxiliary, of the teacher's
shape, is trained along. Networks are given noise levels and not times, so a student may have another schedule: the
teacher is called at the noise levels of the student's steps. The instant version needs its teacher in float32.

Where auxiliary and teacher have dropout, they share its masks, so that their difference is not noise. A guided teacher,
and one beside compiled networks, run without. Sampling has no dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dualrate.config.ranges import BelowOne, Factor, FirstIterations, Pairs, Ranged, Share, TeacherGuidance
from dualrate.denoisers.denoiser import Denoiser, Plain, posterior_mean
from dualrate.denoisers.guidance import Guided, Sharpened
from dualrate.diffusion.categorical import CategoricalProcess
from dualrate.diffusion.context import Batch, Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.process import require_gaussian
from dualrate.diffusion.random import Draws
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.model import Model
from dualrate.experiment.plan_support import AtLeast, OnePlan
from dualrate.experiment.teaching import begin, built, check_teacher, frozen_teacher, require_no_decoder
from dualrate.methods.student_states import (
    ForwardPairs,
    FromData,
    FullRollout,
    SegmentRollout,
    StateSource,
    StudentMethod,
    StudentStates,
    gaps,
)
from dualrate.methods.times import stratified_uniform, to_device
from dualrate.methods.watch import LogWatch, Warnings, Windows, collapse, growth, lag
from dualrate.system.device import whole_products
from dualrate.training.method import Loss, Phase

Rollout = Literal["data", "segment", "full"]
PRECONDITIONING, ROWS = 64, 64  # batches of the instant version's preconditioner, their rows at most
LAG = (0.0, 3.0)  # `gap_ahead` in moment gaps: 1 where the auxiliary keeps up, below 0 where the student has passed it
LARGEST = 1000.0  # factor of a preconditioner, that of a parameter which has no gradient on data


@contextmanager
def replayed(device: torch.device) -> Iterator[None]:
    """Put the device's generator back after the block: whatever runs next draws the same numbers."""
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        yield


Score = Callable[[Tensor, Tensor], Tensor]  # (x, x_hat) -> (R,), least in the mean where x_hat = E[x]


def student_loss(score: Score, x: Tensor, phi: Tensor, theta: Tensor) -> Tensor:
    """(R,): L(eta), whose value means little; gradient through x alone. x, phi, theta: (R, ...)."""
    return (score(x, theta.detach()) - score(x, phi.detach())) / 2


def auxiliary_loss(score: Score, x: Tensor, phi: Tensor, theta: Tensor) -> Tensor:
    """(R,): L(phi), gradient through phi alone. x: outputs of the student, or tokens drawn from them."""
    return score(x.detach(), phi) + score(theta.detach(), phi)


@dataclass(frozen=True, kw_only=True)
class MomentMatching(StudentMethod):
    """The alternating version: after pre-training "auxiliary" in even iterations, "student" in odd ones.

    auxiliaries: {"auxiliary": network}, started from the teacher's weights; auxiliary: that network as a denoiser
    """

    auxiliaries: nn.ModuleDict
    auxiliary: Denoiser

    def phase(self, iteration: int) -> Phase:
        if iteration % 2:
            return super().phase(iteration)
        return Phase("auxiliary", tuple(self.auxiliaries.parameters()), self.auxiliary_loss)

    def auxiliary_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L(phi). Logs: those of `gaps`, and what tells whether the auxiliary keeps up.

        `gap_ahead` is the mean of <g_phi - g_theta, x~ - g_phi> / d. It equals `moment_gap` at the auxiliary's
        optimum and is above it while the auxiliary lags behind the student.
        """
        with torch.no_grad():
            states, x_hat, _, z_s = self.sampled(batch, draws)
            x = self.process.conditional_mean(x_hat, states.z_t, z_s, states.t, states.s)
            g_theta, cond = self.taught(z_s, states, batch), batch.cond[states.row]
        g_phi = posterior_mean(self.auxiliary, z_s, states.s, cond)
        loss = auxiliary_loss(self.deviance, x, g_phi, g_theta)
        gap = g_phi.detach() - g_theta
        logs = gaps(gap, states.s) | {"gap_ahead": (gap * (x - g_phi.detach())).mean()}
        return Loss((self.weight(states.s, loss) * loss).mean(), logs)

    def student_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L(eta) of the module docstring."""
        states, x, drawn, z_s = self.sampled(batch, draws)
        with torch.no_grad():
            g_theta = self.taught(z_s, states, batch)
            g_phi = posterior_mean(self.auxiliary, z_s, states.s, batch.cond[states.row])
        loss = student_loss(self.deviance, x, g_phi, g_theta)
        return self.descent(loss, drawn, g_phi - g_theta, states)

    def taught(self, z_s: Tensor, states: StudentStates, batch: Batch) -> Tensor:
        """g_theta(z_s), leaving the random state as it was: the auxiliary's dropout layers then draw the same masks.

        They are the same only if both are in training mode, neither is compiled and the teacher is not guided, which
        doubles its rows.
        """
        with replayed(z_s.device):
            return posterior_mean(self.teacher, z_s, states.s, batch.cond[states.row])


@dataclass(frozen=True, kw_only=True)
class InstantMomentMatching(StudentMethod):
    """The parameter-space version: one phase, "student", no auxiliary. A batch needs two rows or more.

    The halves of a batch are samples A for each other, so every row trains the student. They see the same steps of a
    plan of N where a batch (or micro-batch) is a multiple of 2 N rows. Each micro-batch has its own halves: smaller
    ones have the same mean gradient with more noise, so a run keeps its micro-batches.

    teacher:        runs in float32, which TF32 is not, as nu is a small difference
    preconditioner: the diagonal of Lambda by parameter name, as `preconditioned` finds it. None: the identity
    """

    teacher: Plain
    auxiliaries: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    preconditioner: Mapping[str, Tensor] | None = None

    fixed_settings = ("micro_batch",)  # no annotation: no field

    def preconditioned(self, batches: Iterable[Batch]) -> InstantMomentMatching:
        """A copy with the preconditioner Lambda = 1 / sqrt(v), the diagonal of Adam, in units of the mean sqrt(v) and
        at most LARGEST.

        v, of every parameter: the mean square of the gradient of the teacher's loss on batches of data, to which Adam's
        second moments come at the end of a training by this loss. Raises ValueError where all are zero.
        """
        square = {name: torch.zeros_like(p) for name, p in self.teacher.network.named_parameters()}
        for batch in batches:
            draws = batch.draws(0)
            (s,) = to_device(batch.x.device, stratified_uniform(draws.host))
            (noise,) = self.process.noise(draws, ["preconditioner"], *batch.x.shape[1:])
            z_s = self.process.add_noise(batch.x, s, noise.to(batch.x.dtype))
            for name, part in self.teacher_gradient(batch.x, z_s, s, batch.cond, len(batch)).items():
                square[name] += part.square()
        root = {name: part.sqrt() for name, part in square.items()}
        mean = torch.cat([part.flatten() for part in root.values()]).mean()
        if not mean > 0:
            raise ValueError("no parameter of the teacher has a gradient on these batches: pass batches of data")
        return replace(self, preconditioner={n: mean / part.clamp(min=mean / LARGEST) for n, part in root.items()})

    def student_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L(eta) of the module docstring; its gap, -J Lambda nu, has another unit than that of the other version."""
        before, rows = batch.elsewhere.before, batch.elsewhere.before + len(batch) + batch.elsewhere.after
        if rows < 2:
            raise ValueError("the two halves of a batch need a row each, got one row; use micro-batches of two or more")
        states, x, drawn, z_s = self.sampled(batch, draws)
        s, cond, gap = states.s, batch.cond[states.row], torch.empty_like(z_s)
        pairs, half = len(states.row) // len(batch), rows // 2
        border = pairs * min(max(half - before, 0), len(batch))  # of the states that are here, between the halves
        first, second = slice(border), slice(border, None)
        for mine, rest, count in ((first, second, rows - half), (second, first, half)):
            nu = self.teacher_gradient(x.detach()[rest], z_s[rest], s[rest], cond[rest], count * pairs)
            batch.elsewhere.add_up(nu.values())
            gap[mine] = -self.condition.weighed(self.derivative(nu, z_s[mine], s[mine], cond[mine]), 1)
        return self.descent((x * gap).flatten(1).mean(1), drawn, gap, states)

    def teacher_gradient(self, x: Tensor, z_s: Tensor, s: Tensor, cond: Cond, states: int) -> dict[str, Tensor]:
        """Lambda nu, by parameter name; of the mean over `states`, what those that are here contribute."""
        parameters = {name: p.detach().requires_grad_() for name, p in self.teacher.network.named_parameters()}
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False), whole_products():
            error = self.condition.weighed(x - self.teach(parameters, z_s, s, cond)).square()
            loss = (self.weight(s, error) * error).sum() / (states * error.shape[1:].numel())
            nu = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        gradient, scale = dict(zip(parameters, nu, strict=True)), self.preconditioner
        return gradient if scale is None else {name: part * scale[name] for name, part in gradient.items()}

    def derivative(self, direction: dict[str, Tensor], z_s: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """J_theta(z_s) times a direction in parameter space, by forward differentiation; no gradient."""
        parameters = {name: p.detach() for name, p in self.teacher.network.named_parameters()}
        plainly = sdpa_kernel(SDPBackend.MATH)  # fused attention kernels have no forward rule
        with torch.no_grad(), torch.autocast(z_s.device.type, enabled=False), whole_products(), plainly:
            return torch.func.jvp(lambda p: self.teach(p, z_s, s, cond), (parameters,), (direction,))[1]

    def teach(self, parameters: dict[str, Tensor], z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """g_theta(z) with other parameters in the teacher's network."""

        def network(*inputs: Tensor | None) -> Tensor:
            return torch.func.functional_call(self.teacher.network, parameters, inputs)

        return posterior_mean(replace(self.teacher, network=network), z, t, cond)


def student_warnings(windows: Windows) -> Warnings:
    """Warnings; of the gap from the second window on, as the student is at first near what it started from."""
    yield from collapse(windows, "spread_t3", "spread of its samples")
    yield from growth(windows[1:], "moment_gap", "the moment gap grows", "lower --student-rate")


WATCH = partial(
    LogWatch,
    checks={
        "student": (("moment_gap", "spread_t3"), student_warnings),
        "auxiliary": (("moment_gap", "gap_ahead"), partial(lag, least=LAG[0], most=LAG[1])),
    },
    hidden="student/loss",  # its gradient says something, its value nothing
)


@dataclass(frozen=True)
class MomentMatchingConfig(MethodConfig, Ranged):
    """Moment matching. A dual-rate student serves one plan, a plain one all steps that are short enough."""

    teacher: str
    """A single-rate run, released weights, or a folder of diffusers."""
    plans: AtLeast | OnePlan
    """Those that the student is made for."""
    version: Literal["alternating", "instant"] = "alternating"
    """With an auxiliary network, or in the teacher's parameter space."""
    rollout: Rollout = "data"
    """The student's states in training: noised data (data, of a plain student); its own steps since the last heavy
    call (segment); its own steps from noise (full)."""
    guidance: TeacherGuidance = 1.0
    """Classifier-free guidance weight of the teacher; 1 is none."""
    temperature: Factor = 1.0
    """Of a teacher's probabilities of tokens; below 1 likely tokens become likelier."""
    top_p: Share = 1.0
    """Share of a teacher's probabilities that its likeliest tokens keep; others become far less likely."""
    dropout: BelowOne | None = None
    """Of student and auxiliary in training, not in sampling; as their networks say if not given."""
    pretraining: FirstIterations = 0
    """Iterations at first in which the light network learns to denoise beside the frozen encoder."""
    pairs: Pairs = 1
    """Times (t, s) trained on from one rollout."""
    student_rate: Factor = 1.0
    """The student's learning rate over the auxiliary's, which is fit.optim.lr."""
    student_from: str | None = None
    """A dual-rate run that the whole student starts from; from the teacher if not given."""
    encoder_from: str | None = None
    """A single-rate run that the encoder starts from, whose network it has; the teacher if not given."""
    light_from: str | None = None
    """A single-rate run that the light network starts from."""
    weighting: Weighting = Sigmoid()

    @property
    def serves(self) -> AtLeast | OnePlan:
        return self.plans

    @property
    def plan(self) -> StepPlan:
        """The plan that the student is sampled under while it trains."""
        return self.plans.default_plan()

    @property
    def _sharpened(self) -> bool:
        return (self.temperature, self.top_p) != (1, 1)

    def check(self, experiment: Experiment) -> None:
        require_no_decoder(experiment, "moment matching")
        fit, one_plan, ages = experiment.fit, isinstance(self.plans, OnePlan), experiment.networks.ages
        of_two = {"plans": one_plan, "rollout": self.rollout != "data", "pairs": self.pairs > 1}
        of_two |= {name: getattr(self, name) for name in ("pretraining", "student_from", "encoder_from", "light_from")}
        if ages and (self.rollout == "data" or not one_plan):
            got = f"{self.plans} and rollout {self.rollout}"
            raise ValueError(f"a dual-rate student serves one plan and learns from its own steps, got {got}")
        if not ages and (wrong := [name for name, chosen in of_two.items() if chosen]):
            what = "a plain student serves all steps, starts from its teacher and learns from noised data"
            raise ValueError(f"{what}: drop {', '.join(wrong)}")
        if fit.iterations is not None and self.pretraining >= fit.iterations:
            pretraining = f"{self.pretraining} of {fit.iterations} iterations are pre-training"
            raise ValueError(f"{pretraining}: lower --pretraining, or raise --fit.iterations")
        if self.student_from is not None and (self.encoder_from or self.light_from):
            raise ValueError("student_from brings both networks: drop encoder_from and light_from, or student_from")
        if self._sharpened and not isinstance(experiment.process, CategoricalProcess):
            raise ValueError(f"temperature and top-p are of tokens, and {experiment.name} has none: drop them")
        if self.version == "alternating":
            return
        require_gaussian(experiment.process, experiment.name)
        if not ages and not experiment.networks.single_rate:
            raise ValueError(f"the instant version has a teacher of one network, {experiment.name} two: drop --version")
        if self.guidance != 1:
            raise ValueError("the instant version needs a teacher without guidance: take the alternating one")
        rows = fit.batch_size if fit.micro_batch is None else min(fit.micro_batch, fit.batch_size)
        if 1 in (rows, fit.batch_size % rows):
            got = f"batches of {fit.batch_size} in micro-batches of {rows}"
            raise ValueError(f"the instant version halves every micro-batch, so none may have one row: got {got}")
        each = 2 * self.plan.num_steps
        if self.rollout != "data" and (rows % each or fit.batch_size % each):
            raise ValueError(
                f"the instant version compares the halves of every micro-batch at all {self.plan.num_steps} steps: "
                f"make batches and micro-batches multiples of {each} rows, got {fit.batch_size} and {rows}"
            )

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        teacher: Model = start.load(self.teacher)
        method = self.build(experiment, teacher, bfloat16=start.bfloat16)
        if isinstance(method, InstantMomentMatching):
            start.note(f"preconditioner: the teacher's gradients on {PRECONDITIONING} batches")
            method = method.preconditioned(start.batch(i)[:ROWS] for i in range(PRECONDITIONING))
        weights = {"teacher": str(teacher)}
        if start.fresh:
            runs = {"student": self.student_from, "encoder": self.encoder_from, "light": self.light_from}
            weights |= begin(experiment, method.networks, teacher, start, runs)
        return Prepared(method, weights, {"teacher": f"weights {teacher.weights_hash[:12]}"}, WATCH)

    def build(
        self, experiment: Experiment, teacher: Model, *, bfloat16: bool
    ) -> MomentMatching | InstantMomentMatching:
        """Student and auxiliary as new, before `begin`. Raises ValueError if the teacher cannot teach this student."""
        single = check_teacher(experiment, teacher, self.teacher, self.guidance).with_dropout(self.dropout)
        process, instant = experiment.process, self.version == "instant"
        networks, student = replace(experiment, networks=experiment.networks.with_dropout(self.dropout)).build()
        frozen_networks, taught = frozen_teacher(single, process, teacher, bfloat16=bfloat16 and not instant)
        frozen_networks.train(not instant and self.guidance == 1 and not experiment.fit.compile)  # then it shares masks
        if self.guidance != 1:
            taught = Guided(taught, process, self.guidance, teacher.num_classes)
        if self._sharpened:
            taught = Sharpened(taught, process, self.temperature, self.top_p)
        if self.rollout == "data":
            states: StateSource = FromData(self.plan.num_steps, process)
        else:
            states = (SegmentRollout if self.rollout == "segment" else FullRollout)(self.plan, process, self.pairs)
        roles = {
            "networks": networks,
            "student": student,
            "teacher": taught,
            "process": process,
            "weighting": self.weighting,
            "states": states,
            "pretraining": self.pretraining,
            "student_rate": self.student_rate,
            "condition": experiment.condition,
            "pretraining_states": ForwardPairs(self.plan, process) if self.pretraining else None,
            "backbone": experiment.networks.backbone(networks, "encoder") if self.pretraining else None,
        }
        if not instant:
            copy, auxiliary = built(single, process, teacher)
            auxiliaries = nn.ModuleDict({"auxiliary": copy["model"] if single.single_rate else copy})
            return MomentMatching(auxiliaries=auxiliaries, auxiliary=auxiliary, **roles)
        if any(isinstance(part, nn.GroupNorm) for part in frozen_networks.modules()):
            lack = f"forward derivatives, which torch lacks for the group norms of {self.teacher}"
            raise ValueError(f"the instant version needs {lack}: pass --version alternating")
        return InstantMomentMatching(**roles)
