"""Categorical forward processes: tokens that are replaced by noise one by one, masked or uniform (D3PM, MDLM, MD4).

A token is one-hot over V categories, in the axis of channels: x, z: (B, V, H, W), a text has H = 1. So x_hat is
E[x | z_t], as ever, and holds the probabilities p(x | z_t) of every token, as if each were by itself.

With a_t the share of tokens that are kept, a_0 = 1, a_1 = 0, a = a_t / a_s for s < t, and pi the noise:

    q(z_t | x)      = a_t x + (1 - a_t) pi
    q(z_t | z_s)    = a z_s + (1 - a) pi
    q(z_s | z_t, x) = [a z_t + (1 - a) <pi, z_t>] [a_s x + (1 - a_s) pi] / (a_t <x, z_t> + (1 - a_t) <pi, z_t>)

    masked    pi is the last category, the mask, which no x is: what is revealed stays so, what is masked is revealed
              with probability (a_s - a_t) / (1 - a_t)
    uniform   pi = 1 / V

Of x_hat in place of x the posterior is its mean over x ~ x_hat, sum_x x_hat(x) q(z_s | z_t, x): p(z_s | z_t) of each
token, if x_hat is exact. (The formula with x_hat put in for x is another law where noise is uniform.)

Once z_s is drawn through x_hat, it tells more about x than z_t alone did: E[x | z_t, z_s], token by token, has the
weights x_hat(x) q(z_s | x) / q(z_t | x). Where noise is a mask that is x_hat while z_s is masked, and what z_s shows
afterwards. Where it is uniform x_hat itself would be biased, for z_s depends on the token that it was drawn from.

A network predicts logits g. x_hat is Bayes' rule, token by token, q(z_t | x) exp(g_x) over their sum: all on a token
that is revealed, none on the mask (MDLM's two rules), and where noise is uniform more on z_t itself as a_t grows. g is
the evidence of the other tokens, which has a limit at both ends of time.

a_t is alpha_t^2 = sigmoid(log_snr(t)), moved and stretched by 3e-7 so that it reaches 1 and 0: under `Linear` it is
1 - t, under `Cosine` cos^2(pi t / 2). The weight of the masked bound (Sahoo et al. 2024, Shi et al. 2024),

    -a_t' / (1 - a_t) = -dlog_snr/dt sigmoid(log_snr)

is twice that of `Sigmoid()` in `x_loss_weight`, and the deviance twice the cross-entropy: the denoising loss is the
bound, for ends at +-15 to 3e-7; where a schedule ends sooner, and is stretched by more, it weighs late times less.
Tokens that are revealed cost nothing, for x_hat is they.

Drawing takes one uniform number a token, whatever V, by inversion of the distribution in float64: the largest of V
Gumbel numbers in float32 would cut its tails, and so draw as if at a lower temperature (Zheng et al. 2024).

Sources: Austin et al. 2021 (D3PM, arXiv 2107.03006); Sahoo et al. 2024 (MDLM, arXiv 2406.07524); Shi et al. 2024 (MD4,
arXiv 2406.04329); Zheng et al. 2024 (arXiv 2409.02908).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dualrate.diffusion.context import cached_for_shared_time, expand
from dualrate.diffusion.process import Process
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Linear, Schedule

AXIS = -3  # of the categories


@dataclass(frozen=True)
class Categorical:
    """One category for each token. probabilities: (..., V, H, W); their sum over V need not be exactly 1."""

    probabilities: Tensor

    def sample(self, uniform: Tensor) -> Tensor:
        """One-hot, (..., V, H, W). uniform: (..., 1, H, W) in (0, 1)."""
        cumulative = self.probabilities.double().cumsum(AXIS)
        whole = cumulative.narrow(AXIS, -1, 1)
        index = (cumulative < uniform * whole).sum(AXIS, keepdim=True)
        return torch.zeros_like(self.probabilities).scatter_(AXIS, index, 1)


@cached_for_shared_time
def shares(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """a_t, the share of tokens that noise has not replaced, and 1 - a_t. Shape of t, or () where t is a plan's."""
    return _shares_at(schedule, schedule.log_snr(t))


def _shares_at(schedule: Schedule, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """a_t and 1 - a_t at a log-SNR."""
    ends = (schedule.log_snr(torch.full_like(log_snr, t)) for t in (0.0, 1.0))
    most, least, share = map(torch.sigmoid, (*ends, log_snr))
    return (share - least) / (most - least), (most - share) / (most - least)


@cached_for_shared_time
def _transition(schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """a = a_t / a_s and 1 - a."""
    (intact_s, lost_s), (intact_t, lost_t) = shares(schedule, s), shares(schedule, t)
    return intact_t / intact_s, (lost_t - lost_s) / intact_s


def _log(probability: Tensor) -> Tensor:
    """The logarithm, finite at 0, where a softmax underflows or a category is impossible."""
    return probability.clamp(min=torch.finfo(probability.dtype).tiny).log()


class CategoricalProcess(Process):
    """Tokens x -> z_t, one-hot in the axis of channels. Its networks predict logits, (B, V, H, W)."""

    @abstractmethod
    def pi(self, like: Tensor) -> Tensor:
        """(V, 1, 1): the distribution of noise, for states (..., V, H, W)."""

    def noise(self, draws: Draws, streams: Sequence[str], *shape: int) -> Tensor:
        """(S, B, 1, H, W): uniform in (0, 1), one number a token."""
        return draws.uniforms(streams, 1, *shape[1:])

    def prior(self, noise: Tensor, shape: Sequence[int]) -> Tensor:
        like = torch.zeros(len(noise), *shape, device=noise.device)
        return Categorical(like + self.pi(like)).sample(noise)

    def marginal(self, x: Tensor, t: Tensor) -> Categorical:
        """q(z_t | x)."""
        intact, lost = (expand(share, x) for share in shares(self.schedule, t))
        return Categorical(intact * x + lost * self.pi(x))

    def add_noise(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return self.marginal(x, t).sample(noise)

    def transition(self, z_s: Tensor, s: Tensor, t: Tensor) -> Categorical:
        intact, lost = (expand(share, z_s) for share in _transition(self.schedule, s, t))
        return Categorical(intact * z_s + lost * self.pi(z_s))

    def posterior(self, z_t: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Categorical:
        """q(z_s | z_t, x) for s <= t, s < 1; of x_hat its mean over x. An x that cannot give z_t counts for nothing."""
        intact_s, lost_s = (expand(share, z_t) for share in shares(self.schedule, s))
        share = self._explaining(x, z_t, t)
        earlier = intact_s * share + lost_s * self.pi(z_t) * share.sum(AXIS, keepdim=True)
        return Categorical(self._evidence(z_t, *_transition(self.schedule, s, t)) * earlier)

    def x_hat(self, z: Tensor, output: Tensor, log_snr: Tensor) -> Tensor:
        """Bayes' rule of a token: the softmax of log q(z_t | x) and logits, the evidence of the other tokens."""
        evidence = torch.log(self._evidence(z, *_shares_at(self.schedule, log_snr)))
        return torch.softmax((output + evidence).masked_fill(self.pi(z) == 1, -math.inf), AXIS)

    def drawn(self, x_hat: Tensor, draws: Draws, stream: str) -> Tensor:
        """Tokens drawn with the probabilities x_hat, one-hot."""
        return Categorical(x_hat).sample(self.noise(draws, [stream], *x_hat.shape[1:])[0])

    def conditional_mean(self, x_hat: Tensor, z_t: Tensor, z_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_hat(x) q(z_s | x) / q(z_t | x) over their sum. A token that is masked in z_s has x_hat; another, z_s."""
        share = self._explaining(x_hat, z_t, t) * self._evidence(z_s, *shares(self.schedule, s))
        return share / share.sum(AXIS, keepdim=True)

    def deviance(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """(B,): twice the cross-entropy -sum x log x_hat in nats, a mean over tokens."""
        return -2 * (x * _log(x_hat)).sum(AXIS).flatten(1).mean(1)

    def extrapolate(self, x_hat: Tensor, other: Tensor, weight: Tensor) -> Tensor:
        """x_hat^(1 - weight) other^weight, normalised (Ho and Salimans 2022 of tokens), by log-probabilities."""
        start, end = _log(x_hat), _log(other)
        logits = start + expand(weight, start) * (end - start)
        return torch.softmax(logits.masked_fill(other <= 0, -math.inf), AXIS)

    def _evidence(self, z: Tensor, intact: Tensor, lost: Tensor) -> Tensor:
        """q(z | x) of every x, for intact = a_t and lost = 1 - a_t."""
        by_chance = (self.pi(z) * z).sum(AXIS, keepdim=True)  # <pi, z>
        return expand(intact, z) * z + expand(lost, z) * by_chance

    def _explaining(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """x / q(z | x), 0 where x cannot give z."""
        evidence = self._evidence(z, *shares(self.schedule, t))
        return x / evidence.masked_fill(evidence <= 0, math.inf)


@dataclass(frozen=True)
class Masked(CategoricalProcess):
    """Noise is the last category, the mask."""

    schedule: Schedule = Linear()

    def pi(self, like: Tensor) -> Tensor:
        pi = like.new_zeros(like.shape[AXIS], 1, 1)
        pi[-1] = 1
        return pi


@dataclass(frozen=True)
class Uniform(CategoricalProcess):
    """Noise is any category."""

    schedule: Schedule = Linear()

    def pi(self, like: Tensor) -> Tensor:
        size = like.shape[AXIS]
        return like.new_full((size, 1, 1), 1 / size)
