"""The two losses of Moment Matching Distillation, of any proper score D: what `Process.deviance` is.

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

from collections.abc import Callable

from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]  # (x, x_hat) -> (R,), least in the mean where x_hat = E[x]


def student_loss(score: Score, x: Tensor, phi: Tensor, theta: Tensor) -> Tensor:
    """(R,): L(eta), whose value means little; gradient through x alone. x, phi, theta: (R, ...)."""
    return (score(x, theta.detach()) - score(x, phi.detach())) / 2


def auxiliary_loss(score: Score, x: Tensor, phi: Tensor, theta: Tensor) -> Tensor:
    """(R,): L(phi), gradient through phi alone. x: outputs of the student, or tokens drawn from them."""
    return score(x.detach(), phi) + score(theta.detach(), phi)
