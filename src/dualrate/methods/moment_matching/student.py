"""What the versions of Moment Matching Distillation share (Salimans et al. 2024, arXiv 2406.04103).

A student x~ = g(z_t) whose samples z_s ~ q(z_s | z_t, x~) have the teacher's conditional means at every s,

    E[x~ | z_s] = g_theta(z_s)

samples the teacher's distribution. Both versions, alternating.py and instant.py, descend the squared gap between the
two sides with z_s held fixed: the gradient passes through x~ only.

A dual-rate student (Dual-Rate Diffusion, arXiv 2605.18190) is the same method with states of its own rollouts
(states.py), after a cheap pre-training of the light network and of the projections into it.

w(s) = e^log_snr w(log_snr) of `diffusion/prediction.py`, without dlog_snr/dt: s, not log_snr, is what is uniform, and w
is free.

The two losses of Moment Matching Distillation, of any proper score D: what `Process.deviance` is.

    student     L(eta) = 1/2 (D(x~, sg theta) - D(x~, sg phi))               theta = g_theta(z_s), phi = g_phi(z_s)
    auxiliary   L(phi) = D(sg x~, phi) + D(sg theta, phi)

for x~ = g(z_t) and z_s ~ q(z_s | z_t, x~), which is held fixed. The auxiliary's optimum is phi = (p + theta) / 2, of
p = E[x~ | z_s], whatever D; and there L(eta) has no gradient in x~ at a z_s (within the simplex, of probabilities) if
and only if p = theta. A student may be stationary before that: gradients of many z_s add up in one z_t.

    squared error     L(eta) has the gradient of <x~, phi - theta> / d: moment matching (arXiv 2406.04103)
    cross-entropy     L(eta) = -sum x~ (log theta - log phi): discrete moment matching (D-MMD, arXiv 2603.20155), x~ the
                      probabilities, whose gradient it is, z_s drawn by way of tokens x

The auxiliary's x~ may be whatever has the mean p given z_s: the tokens x, or E[x | z_t, z_s] (`Process.given`), which
has less noise. Probabilities of z_t alone would not do where noise is uniform: z_s says which token it was drawn from.
Deviates from D-MMD: that has the tokens there, and the probabilities for masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualrate.config.ranges import Factor, FirstIterations, Ranged
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.prediction import Weighting, x_loss_weight
from dualrate.diffusion.process import Process
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Batch, Cond, expand
from dualrate.methods.moment_matching.states import StateSource, StudentStates
from dualrate.networks.blocks import at_rest, frozen
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
