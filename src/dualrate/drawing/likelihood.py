"""The likelihood of held-out images, or of texts, under a model and its plan, as a bound in bits.

What is bounded is the chain that the sampler runs: the same denoiser, guided and in bfloat16 where sampling is, under
the same plan. But a sampler ends by returning x_hat without noise, which gives no image a probability, so a likelihood
needs an end with some noise left and a rule for rounding it (the reconstruction in `sampling/bound.py`). `ending`
cuts a plan there; a natural place is where the noise is one grey level wide, since finer states only guess at the
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from dualrate.data.images import ImageSet
from dualrate.data.loader import TrainingSet
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.context import Cond
from dualrate.diffusion.plan import StepPlan
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Schedule
from dualrate.drawing.drawer import Drawer, real_batches
from dualrate.experiment.model import Model
from dualrate.sampling.bound import Bound, FittedVariance, mean_errors, token_bound, variational_bound
from dualrate.sampling.catalogue import ANCESTRAL
from dualrate.sampling.step import MarkovStep
from dualrate.system.progress import ImageProgress

GREY_LEVEL = 2 * math.log(255 / 2)  # the log-SNR at which sigma / alpha is the distance of two 8-bit values, 2/255
FITTED_ON = 125  # training images
TRAINING_OFFSET = 1 << 40  # added to the numbers of training images, so that no held-out one shares their noise

Result = TypeVar("Result")


@dataclass(frozen=True)
class Estimate:
    """A mean over images, and the standard error of it."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"

    @staticmethod
    def of(values: Tensor) -> Estimate:
        """Mean of values (K,). Raises ValueError for K < 2."""
        if len(values) < 2:
            raise ValueError(f"a standard error needs at least 2 images or texts, got {len(values)}: ask for more")
        return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension of images: an upper bound on their negative log-likelihood given their labels.

    total:     of prior + steps + reconstruction
    each_step: (N,) means, whose sum is that of `steps`
    images:    the total of every image, so that models can be compared image by image
    """

    total: Estimate
    prior: Estimate
    steps: Estimate
    reconstruction: Estimate
    each_step: tuple[float, ...]
    images: tuple[float, ...]

    @staticmethod
    def of(bounds: list[Bound]) -> Likelihood:
        """Likelihood of all images of some batches."""
        bits = bounds[0].dimensions * math.log(2)
        prior, steps, reconstruction = (
            torch.cat([getattr(bound, name) for bound in bounds]).double() / bits
            for name in ("prior", "steps", "reconstruction")
        )
        total = prior + steps.sum(1) + reconstruction
        terms = [Estimate.of(term) for term in (total, prior, steps.sum(1), reconstruction)]
        return Likelihood(*terms, each_step=tuple(steps.mean(0).tolist()), images=tuple(total.tolist()))


def ending(plan: StepPlan, schedule: Schedule, log_snr: float) -> StepPlan:
    """The plan up to this log-SNR, where its last step then leads; a plan that ends before stays as it is.

    Raises ValueError if the plan begins after it.
    """
    end = schedule.time(torch.tensor(log_snr, dtype=torch.float64)).item()
    if end <= plan.t[-1]:
        return plan
    times = [t for t in plan.t if t > end]
    if not times:
        begins = schedule.log_snr(torch.tensor(plan.t[0], dtype=torch.float64)).item()
        raise ValueError(f"a plan that begins at log-SNR {begins:.4g} cannot end at {log_snr:.4g}: choose a later end")
    return StepPlan((*times, end), plan.refresh[: len(times)])


def bits_per_dimension(
    drawer: Drawer,
    images: ImageSet,
    *,
    count: int,
    seed: int = 0,
    progress: ImageProgress | None = None,
) -> Likelihood:
    """The bound of `count` images spread over a set, along one path each, under the plan cut at GREY_LEVEL.

    An image's noise depends on the seed and its place in the set, and on nothing else.
    Raises ValueError for a step without a kernel, a plan that begins after its end, fewer than 2 images or more than
    there are, and images or labels that are not the model's.
    """
    plan = ending(drawer.plan, drawer.model.process.schedule, GREY_LEVEL)
    return Likelihood.of(_of_batches(variational_bound, drawer, plan, images, count, seed, progress))


def bits_per_token(
    drawer: Drawer, data: ImageSet, *, count: int, seed: int = 0, progress: ImageProgress | None = None
) -> Likelihood:
    """Bound as of `bits_per_dimension`, under the whole plan, of tokens: characters of text, pixels in grey levels."""
    tokens = drawer.model.experiment.seen(data)
    return Likelihood.of(_of_batches(token_bound, drawer, drawer.plan, tokens, count, seed, progress))


def fit_variance(
    drawer: Drawer,
    images: ImageSet,
    *,
    count: int = FITTED_ON,
    seed: int = 0,
    progress: ImageProgress | None = None,
) -> FittedVariance:
    """The step with the variance that suits `count` images spread over a set, for this plan alone.

    For a bound, they must not be the images that it is of. Raises what `bits_per_dimension` raises.
    """
    plan = ending(drawer.plan, drawer.model.process.schedule, GREY_LEVEL)
    measured = torch.cat(_of_batches(mean_errors, drawer, plan, images, count, seed, progress, TRAINING_OFFSET))
    return FittedVariance(_kernel(drawer), plan.t[:-1], tuple(measured.mean(0).tolist()))


def check_bounded(model: Model) -> None:
    """Raises ValueError for a model of conditions, and for one that makes other steps than ancestral ones alone."""
    if model.experiment.networks.given is not None:
        raise ValueError(
            f"{model.name} makes samples of conditions, of which no bound is known here: drop --bound, and its samples "
            "are scored"
        )
    if model.serves.sampler not in (None, ANCESTRAL):
        raise ValueError(
            f"{model.name} was made for {model.serves.sampler} alone, which has no likelihood: bound its teacher"
        )


def _kernel(drawer: Drawer) -> MarkovStep:
    check_bounded(drawer.model)
    if not isinstance(drawer.step, MarkovStep):
        raise ValueError(f"{drawer.step} has no likelihood: its z_s is no Gaussian given z_t. Use the ancestral one")
    return drawer.step


def _of_batches(
    of: Callable[[Denoiser, MarkovStep, StepPlan, Tensor, Cond, Draws], Result],
    drawer: Drawer,
    plan: StepPlan,
    images: TrainingSet,
    count: int,
    seed: int,
    progress: ImageProgress | None,
    offset: int = 0,
) -> list[Result]:
    """Values of a function of every batch, under autocast as in sampling.

    offset: added to the images' numbers in the noise
    """
    device, kernel, denoiser, results, done = drawer.model.device, _kernel(drawer), drawer.denoiser, [], 0
    for batch in real_batches(drawer.model, images, count, drawer.batch_size):
        here = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=drawer.bfloat16):
            draws = Draws(seed, here.sample + offset)
            results.append(of(denoiser, kernel, plan, here.x, Cond(here.label), draws))
        done += len(here.x)
        if progress is not None:
            progress(done, count)
    return results
