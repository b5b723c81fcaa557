"""The variational bound of tokens under a Markovian plan, in nats:

    -log p(x) <= sum over steps t -> s of E KL(q(z_s | z_t, x) | p(z_s | z_t, z_tau))

from t = 1, where no token is kept and the prior's term is 0, to s = 0, where all are, so that the last step's term is
the reconstruction, E[-log p(x | z_t)]. A KL is a sum over categories and tokens.

Of a masked process and an exact x_hat the bound reaches -log p(x) itself, for every x, as steps become small: tokens
are then revealed one by one, in a random order, and p(x) is the product of its conditionals in any order. The steps'
terms become -a_t' / (1 - a_t) times the cross-entropy of the masked tokens, integrated over t: the loss that trains.

Sources: Sahoo et al. 2024 (MDLM, arXiv 2406.07524); Shi et al. 2024 (MD4, arXiv 2406.04329).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.categorical import AXIS, Categorical
from dualrate.diffusion.draws import Draws
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.values import Cond
from dualrate.likelihood.bound import Bound, along_path
from dualrate.sampling.step import MarkovStep


def token_bound(denoiser: Denoiser, step: MarkovStep, plan: StepPlan, x: Tensor, cond: Cond, draws: Draws) -> Bound:
    """The bound of tokens x: (B, V, H, W), one-hot, along one path each; unbiased over `draws`, one row per x.

    Its dimensions are tokens. Raises ValueError for a plan that does not go from 1 to 0, and where the denoiser's
    context may not be reused under this step.
    """
    if (plan.t[0], plan.t[-1]) != (1, 0):
        raise ValueError(
            f"tokens are all noise at t = 1 and none at 0, this plan goes from {plan.t[0]} to {plan.t[-1]}"
        )
    with torch.no_grad():
        _, steps = along_path(denoiser, step, plan, x, cond, draws, divergence)
    nothing = steps.new_zeros(len(x))
    return Bound(nothing, steps, nothing, x[0].select(AXIS, 0).numel())


def divergence(q: Categorical, p: Categorical) -> Tensor:
    """KL(q | p) in nats: (B,), a sum over categories and tokens."""
    ours, theirs = q.probabilities.double(), p.probabilities.double()
    return (torch.special.xlogy(ours, ours) - torch.special.xlogy(ours, theirs)).flatten(1).sum(1)
