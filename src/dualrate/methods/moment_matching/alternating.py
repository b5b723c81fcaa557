"""The alternating version of Moment Matching Distillation: an auxiliary denoiser g_phi, started from the teacher,
learns E[x~ | z_s].

    auxiliary   L(phi) = E w(s) ( |sg x~ - g_phi(z_s)|^2 + |sg g_theta(z_s) - g_phi(z_s)|^2 ) / d
    student     L(eta) = E w(s) ( |x~ - sg g_theta(z_s)|^2 - |x~ - sg g_phi(z_s)|^2 ) / 2 d

that is <x~, sg(g_phi(z_s) - g_theta(z_s))> up to what eta does not change. A categorical process has the deviance of
tokens in place of the squared error (losses.py).

The second term of L(phi) anchors it: its optimum is g_phi = (E[x~ | z_s] + g_theta) / 2, so the student sees half the
gap. L(eta) has a meaning in its gradient only: its *value* may be negative and follows no trend. What to watch is
`moment_gap`, |g_phi - g_theta|^2 / d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dualrate.denoisers.denoiser import Denoiser, posterior_mean
from dualrate.diffusion.random import Draws
from dualrate.diffusion.values import Batch, Cond
from dualrate.methods.moment_matching.states import StudentStates
from dualrate.methods.moment_matching.student import StudentMethod, auxiliary_loss, gaps, replayed, student_loss
from dualrate.training.method import Loss, Phase


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
