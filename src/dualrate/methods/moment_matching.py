"""Moment Matching Distillation (Salimans et al. 2024, arXiv 2406.04103): a student of few steps from a teacher of many.

A student x~ = g(z_t) whose samples z_s ~ q(z_s | z_t, x~) have the teacher's conditional means at every s,

    E[x~ | z_s] = g_theta(z_s)

samples the teacher's distribution. Both versions below descend the squared gap between the two sides with z_s held
fixed: the gradient passes through x~ only.

`MomentMatching`, alternating: an auxiliary denoiser g_phi, started from the teacher, learns E[x~ | z_s].

    auxiliary   L(phi) = E w(s) ( |sg x~ - g_phi(z_s)|^2 + |sg g_theta(z_s) - g_phi(z_s)|^2 ) / d
    student     L(eta) = E w(s) <x~, sg(g_phi(z_s) - g_theta(z_s))> / d

The second term of L(phi) anchors it: its optimum is g_phi = (E[x~ | z_s] + g_theta) / 2, so the student sees half the
gap. L(eta) has a meaning in its gradient only: its *value* may be negative and follows no trend. What to watch is
`moment_gap`, |g_phi - g_theta|^2 / d.

`InstantMomentMatching`, in parameter space: the auxiliary is the teacher one infinitesimal step nu_A down its own
loss on student samples A, so g_phi - g_theta is a derivative, and L(eta) is over other samples B:

    nu_A = grad_theta E_A[ w(s) |x~ - g_theta(z_s)|^2 / d ]
    L(eta) = E_B[ w(s) <x~, sg(-J_theta(z_s) Lambda nu_A)> / d ]

Its gradient is that of 1/4 |E grad_theta w |x~ - g_theta|^2|^2 in the norm Lambda: the teacher's expected gradient,
zero on data if it is trained to its end with these weights. Lambda is the diagonal of the teacher's Adam: without it
the student is worse (docs/results.md, "A mixture in the plane"). The formula of this version is reconstructed.

A dual-rate student (Dual-Rate Diffusion, arXiv 2605.18190) is the same method with states of its own rollouts
(`student_states.py`), after a cheap pre-training of the light network and of the projections into it.

w(s) = e^log_snr w(log_snr) of `weighting.py`, without dlog_snr/dt: s, not log_snr, is what is uniform, and w is free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dualrate.combinators import Guided
from dualrate.denoiser import Denoiser
from dualrate.draws import Draws
from dualrate.freeze import frozen
from dualrate.methods.method import Loss, Phase
from dualrate.process import GaussianProcess, expand
from dualrate.ranges import Factor, FirstIterations, Ranged
from dualrate.student_states import StateSource, StudentStates
from dualrate.timing import stratified_uniform
from dualrate.types import Batch, Cond
from dualrate.weighting import Weighting, x_loss_weight

LARGEST = 1000.0  # factor of a preconditioner, that of a parameter which has no gradient on data


@dataclass(frozen=True, kw_only=True)
class StudentMethod(Ranged):
    """What both versions share: a student, where it is trained, and its pre-training.

    networks: the student's
    teacher:  never changed; it sees (z_s, s) of `process`
    states:   where (z_t, t, s) and the context come from
    pretraining: iterations of the denoising loss at `pretraining_states` with the encoder's U-ViT as it is: the
        light network and the projections learn to read it. Afterwards all of the student trains
    student_rate: factor of the student's learning rate, below 1 so that an auxiliary can follow it
    """

    networks: nn.ModuleDict
    student: Denoiser
    teacher: Denoiser
    process: GaussianProcess
    weighting: Weighting
    states: StateSource
    pretraining: FirstIterations = 0
    pretraining_states: StateSource | None = None
    student_rate: Factor = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretraining and (self.pretraining_states is None or "encoder" not in self.networks):
            raise ValueError(
                "pre-training is for a student with an encoder, and needs states with data: pass pretraining_states = "
                f"ForwardPairs(...), or pretraining = 0; got {self.pretraining} and networks {sorted(self.networks)}"
            )

    def denoiser(self) -> Denoiser:
        return self.student

    def phases(self, iteration: int) -> tuple[Phase, ...]:
        if iteration >= self.pretraining:
            return (self.phase(iteration - self.pretraining),)
        kept = {id(parameter) for parameter in self.networks.get_submodule("encoder.net").parameters()}
        trained = tuple(parameter for parameter in self.networks.parameters() if id(parameter) not in kept)
        return (Phase("pretraining", trained, self.pretraining_loss),)

    def phase(self, iteration: int) -> Phase:
        """The update of an iteration after pre-training, counted from there."""
        return Phase("student", tuple(self.networks.parameters()), self.student_loss, self.student_rate)

    def student_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        raise NotImplementedError

    def pretraining_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """The denoising loss of the student at `pretraining_states`."""
        assert self.pretraining_states is not None
        cond = Cond(batch.label)
        states = self.pretraining_states(self.student, batch, cond, draws)
        with frozen(self.networks.get_submodule("encoder.net")):
            x_hat = states.x_hat(self.student, cond)
        error = (batch.x[states.row] - x_hat).square().flatten(1).mean(1)
        return Loss((x_loss_weight(self.weighting, self.process.schedule, states.t).to(error.dtype) * error).mean())

    def sampled(self, batch: Batch, draws: Draws) -> tuple[StudentStates, Tensor, Tensor]:
        """States, x~ there (with gradient, if the caller has it on), and z_s ~ q(z_s | z_t, sg x~)."""
        cond = Cond(batch.label)
        with frozen(self.networks):
            states = self.states(self.student, batch, cond, draws)
        x = states.x_hat(self.student, cond)
        normal = draws.repeated(len(states.row) // len(batch)).normal("z_s", *x.shape[1:]).to(x.dtype)
        return states, x, self.process.posterior(states.z_t, x.detach(), states.t, states.s).sample(normal)

    def descent(self, x: Tensor, gap: Tensor, s: Tensor) -> Loss:
        """E w(s) <x~, sg gap> / d: its value means nothing, its gradient does. x, gap: (R, ...); s: (R,).

        Logs: `gaps`, and `power`, |x~|^2 / d, small for a student that collapses to grey.
        """
        return Loss((self.weight(s, x) * x * gap).mean(), gaps(gap, s) | {"power": x.detach().square().mean()})

    def weight(self, s: Tensor, like: Tensor) -> Tensor:
        """w(s), shaped to multiply `like`."""
        return expand(self.weighting.snr_weight(self.process.schedule.log_snr(s)), like)


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
        """L(phi) of the module docstring. Logs: those of `gaps`, and what tells whether the auxiliary keeps up.

        `gap_ahead` is the mean of <g_phi - g_theta, x~ - g_phi> / d. It equals `moment_gap` at the auxiliary's
        optimum and is above it while the auxiliary lags behind the student.
        """
        with torch.no_grad():
            states, x, z_s = self.sampled(batch, draws)
            g_theta, cond = self.taught(z_s, states, batch), Cond(batch.label)[states.row]
        g_phi = posterior_mean(self.auxiliary, z_s, states.s, cond)
        error = (x - g_phi).square() + (g_theta - g_phi).square()
        found = g_phi.detach()
        ahead = ((found - g_theta) * (x - found)).mean()
        logs = gaps(found - g_theta, states.s)
        return Loss((self.weight(states.s, error) * error).mean(), logs | {"gap_ahead": ahead})

    def student_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L(eta) of the module docstring."""
        states, x, z_s = self.sampled(batch, draws)
        with torch.no_grad():
            g_theta = self.taught(z_s, states, batch)
            gap = posterior_mean(self.auxiliary, z_s, states.s, Cond(batch.label)[states.row]) - g_theta
        return self.descent(x, gap, states.s)

    def taught(self, z_s: Tensor, states: StudentStates, batch: Batch) -> Tensor:
        """g_theta(z_s), leaving the random state as it was: the auxiliary's dropout layers then draw the same masks.

        They are the same only if both are in training mode, neither is compiled and the teacher is not guided, which
        doubles its rows.
        """
        with replayed(z_s.device):
            return posterior_mean(self.teacher, z_s, states.s, Cond(batch.label)[states.row])


@dataclass(frozen=True, kw_only=True)
class InstantMomentMatching(StudentMethod):
    """The parameter-space version: one phase, "student", no auxiliary. A batch needs two rows or more.

    The halves of a batch are samples A for each other, so every row trains the student. They should see the same steps
    of a plan: make a batch (or micro-batch) a multiple of 2 N rows.

    teacher_network: the module whose parameters are the teacher's; it runs in float32, as nu is a small difference
    preconditioner:  the diagonal of Lambda by parameter name, as `preconditioned` finds it. None: the identity
    """

    teacher_network: nn.Module
    auxiliaries: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    preconditioner: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.teacher, Guided):
            raise ValueError(
                "a guided teacher's own loss has a gradient on data too, so it cannot be matched in parameter space; "
                "use MomentMatching, or a teacher without guidance"
            )
        names = {name for name, _ in self.teacher_network.named_parameters()}
        if self.preconditioner is not None and set(self.preconditioner) != names:
            wrong = sorted(names ^ set(self.preconditioner))[:5]
            raise ValueError(f"the preconditioner has one tensor for every parameter of the teacher; not so: {wrong}")

    def preconditioned(self, batches: Iterable[Batch]) -> InstantMomentMatching:
        """The same with Lambda = 1 / sqrt(v), the diagonal of Adam, in units of the mean sqrt(v); LARGEST at most.

        v, of every parameter: the mean square of the gradient of the teacher's loss on batches of data, to which Adam's
        second moments come at the end of a training by this loss. Raises ValueError where all are zero.
        """
        plain = replace(self, preconditioner=None)
        square = {name: torch.zeros_like(p) for name, p in self.teacher_network.named_parameters()}
        for batch in batches:
            draws = Draws(0, batch.sample)
            s, normal = stratified_uniform(draws), draws.normal("preconditioner", *batch.x.shape[1:]).to(batch.x.dtype)
            z_s = self.process.add_noise(batch.x, s, normal)
            for name, part in plain.teacher_gradient(batch.x, z_s, s, Cond(batch.label)).items():
                square[name] += part.square()
        root = {name: part.sqrt() for name, part in square.items()}
        mean = torch.cat([part.flatten() for part in root.values()]).mean()
        if not mean > 0:
            raise ValueError("no parameter of the teacher has a gradient on these batches: pass batches of data")
        return replace(self, preconditioner={n: mean / part.clamp(min=mean / LARGEST) for n, part in root.items()})

    def student_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L(eta) of the module docstring; its gap, -J Lambda nu, is in a unit of its own."""
        if len(batch) < 2:
            raise ValueError("the two halves of a batch need a row each, got one row; use micro-batches of two or more")
        states, x, z_s = self.sampled(batch, draws)
        gap = torch.empty_like(z_s)
        s, cond, first = states.s, Cond(batch.label)[states.row], states.row < len(batch) // 2
        for mine, other in ((first, ~first), (~first, first)):
            nu = self.teacher_gradient(x.detach()[other], z_s[other], s[other], cond[other])
            gap[mine] = -self.derivative(nu, z_s[mine], s[mine], cond[mine])
        return self.descent(x, gap, s)

    def teacher_gradient(self, x: Tensor, z_s: Tensor, s: Tensor, cond: Cond) -> dict[str, Tensor]:
        """Lambda nu, by parameter name."""
        parameters = {name: p.detach().requires_grad_() for name, p in self.teacher_network.named_parameters()}
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            error = (x - self.teach(parameters, z_s, s, cond)).square()
            nu = torch.autograd.grad(
                (self.weight(s, error) * error).mean(), list(parameters.values()), allow_unused=True
            )
        gradient = {
            name: torch.zeros_like(p) if part is None else part
            for (name, p), part in zip(parameters.items(), nu, strict=True)
        }
        scale = self.preconditioner
        return gradient if scale is None else {name: part * scale[name] for name, part in gradient.items()}

    def derivative(self, direction: dict[str, Tensor], z_s: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """J_theta(z_s) times a direction in parameter space, by forward differentiation; no gradient."""
        parameters = {name: p.detach() for name, p in self.teacher_network.named_parameters()}
        # fused attention kernels have no forward rule
        with torch.no_grad(), torch.autocast(z_s.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(lambda p: self.teach(p, z_s, s, cond), (parameters,), (direction,))[1]

    def teach(self, parameters: dict[str, Tensor], z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """g_theta(z) with other parameters in the teacher's network."""
        module, named = _Call(self.teacher_network), {f"network.{name}": p for name, p in parameters.items()}
        return torch.func.functional_call(module, named, (lambda: posterior_mean(self.teacher, z, t, cond),))


class _Call(nn.Module):
    """Calls a function that uses `network`, for `functional_call`, which knows modules only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[[], Tensor]) -> Tensor:
        return function()


def posterior_mean(denoiser: Denoiser, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """x_hat of a denoiser that makes its heavy call here."""
    return denoiser.denoise(z, t, denoiser.encode(z, t, cond), cond)


@contextmanager
def replayed(device: torch.device) -> Iterator[None]:
    """After the block the device's generator is where it was before: whatever runs next draws the same numbers."""
    if device.type == "mps":  # its one generator is unknown to `fork_rng`
        state = torch.mps.get_rng_state()
        try:
            yield
        finally:
            torch.mps.set_rng_state(state)
    else:
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            yield


def gaps(gap: Tensor, s: Tensor) -> dict[str, Tensor]:
    """`moment_gap`, the mean square of g_phi - g_theta, and its parts in four quarters of s, whose mean it is."""
    square, quarter = gap.detach().square().flatten(1).mean(1), (s * 4).long().clamp(max=3)
    parts = {f"gap_s{i}": (4 * square * (quarter == i)).mean() for i in range(4)}
    return {"moment_gap": square.mean()} | parts
