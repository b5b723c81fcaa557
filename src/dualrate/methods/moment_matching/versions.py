"""Moment Matching Distillation (Salimans et al. 2024, arXiv 2406.04103), in its two versions.

A student x~ = g(z_t) whose samples z_s ~ q(z_s | z_t, x~) have the teacher's conditional means at every s,

    E[x~ | z_s] = g_theta(z_s)

samples the teacher's distribution. Both versions descend the squared gap between the two sides with z_s held fixed: the
gradient passes through x~ only. w(s) = e^log_snr w(log_snr) of `diffusion/prediction.py`, without dlog_snr/dt: s, not
log_snr, is what is uniform, and w is free.

The alternating version has an auxiliary denoiser g_phi, started from the teacher, that learns E[x~ | z_s]. Of any
proper score D (`Process.deviance`), with theta = g_theta(z_s), phi = g_phi(z_s):

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

A dual-rate student (Dual-Rate Diffusion, arXiv 2605.18190) is the same with states of its own rollouts (states.py),
after a cheap pre-training of the light network and of the projections into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dualrate.config.ranges import Factor, FirstIterations, Ranged
from dualrate.denoisers.denoiser import Denoiser, posterior_mean
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.prediction import Weighting, x_loss_weight
from dualrate.diffusion.process import Process
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Batch, Cond, expand
from dualrate.methods.moment_matching.states import StateSource, StudentStates
from dualrate.methods.times import moved, stratified_uniform
from dualrate.networks.blocks import at_rest, frozen
from dualrate.system.device import whole_products
from dualrate.training.method import Loss, Phase, quarters


@dataclass(frozen=True, kw_only=True)
class StudentMethod(Ranged):
    """What both versions share: a student, where it is trained, and its pre-training.

    networks: the student's
    teacher:  never changed; it sees (z_s, s) of `process`
    states:   where (z_t, t, s) and the context come from
    pretraining: iterations of the denoising loss at `pretraining_states` with the encoder's U-ViT as it is: the
        light network and the projections learn to read it. Afterwards all of the student trains
    backbone: the encoder's U-ViT
    student_rate: factor of the student's learning rate, below 1 so that an auxiliary can follow it
    """

    networks: nn.ModuleDict
    student: Denoiser
    teacher: Denoiser
    process: Process
    weighting: Weighting
    states: StateSource
    pretraining: FirstIterations = 0
    pretraining_states: StateSource | None = None
    backbone: nn.Module | None = None
    student_rate: Factor = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretraining and (self.pretraining_states is None or self.backbone is None):
            raise ValueError(
                "pre-training is for a student with an encoder, and needs states with data: pass backbone, the "
                "encoder's U-ViT, and pretraining_states = ForwardPairs(...), or pretraining = 0; got "
                f"{self.pretraining} and networks {sorted(self.networks)}"
            )

    def denoiser(self) -> Denoiser:
        return self.student

    def phases(self, iteration: int) -> tuple[Phase, ...]:
        if iteration >= self.pretraining:
            return (self.phase(iteration - self.pretraining),)
        assert self.backbone is not None
        kept = {id(parameter) for parameter in self.backbone.parameters()}
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
        assert self.backbone is not None
        cond = Cond(batch.label)
        states = self.pretraining_states(self.student, batch, cond, draws)
        with at_rest(self.backbone):
            x_hat = states.x_hat(self.student, cond)
        error = self.process.deviance(batch.x[states.row], x_hat)
        return Loss((x_loss_weight(self.weighting, self.process.schedule, states.t).to(error.dtype) * error).mean())

    def sampled(self, batch: Batch, draws: Draws) -> tuple[StudentStates, Tensor, Tensor, Tensor]:
        """States, x~ there (with gradient, if the caller has it on), x drawn of it, and z_s ~ q(z_s | z_t, sg x)."""
        cond = Cond(batch.label)
        with frozen(self.networks):
            states = self.states(self.student, batch, cond, draws)
        x = states.x_hat(self.student, cond)
        of_states = draws.repeated(len(states.row) // len(batch))
        drawn = self.process.drawn(x.detach(), of_states, "x")
        (noise,) = self.process.noise(of_states, ["z_s"], *x.shape[1:])
        return states, x, drawn, self.process.posterior(states.z_t, drawn, states.t, states.s).sample(noise)

    def descent(self, loss: Tensor, drawn: Tensor, gap: Tensor, states: StudentStates) -> Loss:
        """E w(s) L(eta): its value means nothing, its gradient does. loss: (R,); drawn, gap: (R, ...).

        Logs: `gaps`, and `spread` in quarters of t: the variance over the places of what was drawn, a mean over
        channels; of tokens (1 - sum p^2) / V, p their shares in a sample. Where t is high z_t says little of x: there,
        in `spread_t3`, it is small for a student that collapses to grey, or to one token.
        """
        places = drawn.reshape(*drawn.shape[:2], -1)  # (R, C, of each channel)
        spread = quarters("spread_t", places.var(2, correction=0).mean(1), states.t)
        return Loss((self.weight(states.s, loss) * loss).mean(), gaps(gap, states.s) | spread)

    def weight(self, s: Tensor, like: Tensor) -> Tensor:
        """w(s), shaped to multiply `like`."""
        return expand(self.weighting.snr_weight(self.process.schedule.log_snr(s)), like)


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
    square = gap.detach().square().flatten(1).mean(1)
    return {"moment_gap": square.mean()} | quarters("gap_s", square, s)


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
            x = self.process.given(x_hat, states.z_t, z_s, states.t, states.s)
            g_theta, cond = self.taught(z_s, states, batch), Cond(batch.label)[states.row]
        g_phi = posterior_mean(self.auxiliary, z_s, states.s, cond)
        loss = auxiliary_loss(self.process.deviance, x, g_phi, g_theta)
        found = g_phi.detach()
        ahead = ((found - g_theta) * (x - found)).mean()
        logs = gaps(found - g_theta, states.s)
        return Loss((self.weight(states.s, loss) * loss).mean(), logs | {"gap_ahead": ahead})

    def student_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L(eta) of the module docstring."""
        states, x, drawn, z_s = self.sampled(batch, draws)
        with torch.no_grad():
            g_theta = self.taught(z_s, states, batch)
            g_phi = posterior_mean(self.auxiliary, z_s, states.s, Cond(batch.label)[states.row])
        loss = student_loss(self.process.deviance, x, g_phi, g_theta)
        return self.descent(loss, drawn, g_phi - g_theta, states)

    def taught(self, z_s: Tensor, states: StudentStates, batch: Batch) -> Tensor:
        """g_theta(z_s), leaving the random state as it was: the auxiliary's dropout layers then draw the same masks.

        They are the same only if both are in training mode, neither is compiled and the teacher is not guided, which
        doubles its rows.
        """
        with replayed(z_s.device):
            return posterior_mean(self.teacher, z_s, states.s, Cond(batch.label)[states.row])


LARGEST = 1000.0  # factor of a preconditioner, that of a parameter which has no gradient on data


@dataclass(frozen=True, kw_only=True)
class InstantMomentMatching(StudentMethod):
    """The parameter-space version: one phase, "student", no auxiliary. A batch needs two rows or more.

    The halves of a batch are samples A for each other, so every row trains the student. They should see the same steps
    of a plan: make a batch (or micro-batch) a multiple of 2 N rows.

    teacher_network: the module whose parameters are the teacher's; it runs in float32, which TF32 is not, as nu is a
                     small difference
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
            draws = batch.draws(0)
            (s,) = moved(batch.x.device, stratified_uniform(draws.host))
            normal = draws.normal("preconditioner", *batch.x.shape[1:]).to(batch.x.dtype)
            z_s = self.process.add_noise(batch.x, s, normal)
            for name, part in plain.teacher_gradient(batch.x, z_s, s, Cond(batch.label), len(batch)).items():
                square[name] += part.square()
        root = {name: part.sqrt() for name, part in square.items()}
        mean = torch.cat([part.flatten() for part in root.values()]).mean()
        if not mean > 0:
            raise ValueError("no parameter of the teacher has a gradient on these batches: pass batches of data")
        return replace(self, preconditioner={n: mean / part.clamp(min=mean / LARGEST) for n, part in root.items()})

    def student_loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """L(eta) of the module docstring; its gap, -J Lambda nu, is in a unit of its own."""
        whole = batch.elsewhere.before + len(batch) + batch.elsewhere.after
        if whole < 2:
            raise ValueError("the two halves of a batch need a row each, got one row; use micro-batches of two or more")
        states, x, drawn, z_s = self.sampled(batch, draws)
        gap, per_row = torch.empty_like(z_s), len(states.row) // len(batch)
        s, cond = states.s, Cond(batch.label)[states.row]
        edge = per_row * min(max(whole // 2 - batch.elsewhere.before, 0), len(batch))
        first, second = slice(edge), slice(edge, None)
        for mine, other, rows in ((first, second, whole - whole // 2), (second, first, whole // 2)):
            nu = self.teacher_gradient(x.detach()[other], z_s[other], s[other], cond[other], rows * per_row)
            batch.elsewhere.add_up(nu.values())
            gap[mine] = -self.derivative(nu, z_s[mine], s[mine], cond[mine])
        return self.descent((x * gap).flatten(1).mean(1), drawn, gap, states)

    def teacher_gradient(self, x: Tensor, z_s: Tensor, s: Tensor, cond: Cond, states: int) -> dict[str, Tensor]:
        """Lambda nu, by parameter name; of the mean over `states`, what those that are here contribute."""
        parameters = {name: p.detach().requires_grad_() for name, p in self.teacher_network.named_parameters()}
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False), whole_products():
            error = (x - self.teach(parameters, z_s, s, cond)).square()
            loss = (self.weight(s, error) * error).sum() / (states * error.shape[1:].numel())
            nu = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
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
        plainly = sdpa_kernel(SDPBackend.MATH)
        with torch.no_grad(), torch.autocast(z_s.device.type, enabled=False), whole_products(), plainly:
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
