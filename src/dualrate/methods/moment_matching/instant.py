"""The instant version of Moment Matching Distillation, in the teacher's parameter space.

The auxiliary is the teacher one infinitesimal step nu_A down its own loss on student samples A, so g_phi - g_theta is a
derivative, and L(eta) is over other samples B:

    nu_A = grad_theta E_A[ w(s) |x~ - g_theta(z_s)|^2 / d ]
    L(eta) = E_B[ w(s) <x~, sg(-J_theta(z_s) Lambda nu_A)> / d ]

Its gradient is that of 1/4 |E grad_theta w |x~ - g_theta|^2|^2 in the norm Lambda: the teacher's expected gradient,
zero on data if it is trained to its end with these weights. Lambda is the diagonal of the teacher's Adam: without it
the student is worse (docs/results/tried.md). The formula of this version is reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dualrate.denoisers.denoiser import posterior_mean
from dualrate.denoisers.guidance import Guided
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Batch, Cond
from dualrate.methods.moment_matching.student import StudentMethod
from dualrate.methods.times import moved, stratified_uniform
from dualrate.system.device import whole_products
from dualrate.training.method import Loss

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
