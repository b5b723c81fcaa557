"""The weighted denoising loss, single-rate and dual-rate (Dual-Rate Diffusion, arXiv 2605.18190).

    t, tau ~ times;  (z_t, z_tau) on one forward path of x
    context = encode(z_tau, tau) for the kept rows, absent for the others
    L = mean over rows of -1/2 dlog_snr/dt e^log_snr w(log_snr) |x - denoise(z_t, t, context)|^2 / numel(x)

A categorical process has twice the cross-entropy in place of the squared error (`Process.deviance`).

With `multiscale` K the errors of K coarser copies are added, each a mean over its own numbers (simple diffusion,
Hoogeboom, Heek, Salimans 2023, arXiv 2301.11093):

    |x - x_hat|^2 / d   becomes   sum_k |P^k (x - x_hat)|^2 / (d / 4^k),  k = 0, ..., K      P: the means of 2 x 2

Context dropout encodes only the kept rows. A dropped row would give the encoder neither effect nor gradient.

Ours, not the paper's: an encoder with a head is also trained on its own x_hat at tau, with weight `encoder_weight`. It
then denoises by itself at the steps where it is called.

A single-rate model has an empty context and the times `SingleTime`.

Of a condition y there are K noise levels for each image, of which one reading of y serves all:

    context = E(y)                                                          once for each image
    L = mean over K times of weight(t) |x - g(z_t, t, context)|^2

With a context that ages beside the condition (`BothRates`), a row without context has the features of y still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from dualrate.config.ranges import Classes, LossWeight, Probability, Range, Ranged, count_or_list
from dualrate.data.conditions import Conditioning, Unconditional
from dualrate.denoisers.denoiser import Denoiser, DualRate, read
from dualrate.diffusion.context import Batch, Cond, Context, Shape
from dualrate.diffusion.plan import STEPS, StepPlan
from dualrate.diffusion.process import GaussianProcess, Process, require_gaussian
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine, Schedule
from dualrate.diffusion.weighting import Sigmoid, Weighting, x_loss_weight
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.model import Model
from dualrate.experiment.plan_support import AnyPlan
from dualrate.experiment.teaching import (
    check_drops_labels,
    check_latent_shape,
    check_null_class,
    check_same_images,
    start_from,
)
from dualrate.methods.times import SingleTime, TimeSampler, TimeSource, to_device, with_null
from dualrate.networks.blocks import eval_mode
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.trajectory import sample_batches
from dualrate.training.method import Loss, OnePhase, by_time_quartile


@dataclass(frozen=True)
class WeightedDenoising(OnePhase):
    """Trains every network by the weighted error of x_hat.

    multiscale: copies of half the side, a quarter, ... whose errors are added
    condition:  whose `weighed` says how much each number counts
    """

    model: Denoiser
    process: Process
    weighting: Weighting
    times: TimeSource
    multiscale: Annotated[int, Range(0, 16)] = 0
    condition: Conditioning = Unconditional()

    def denoiser(self) -> Denoiser:
        return self.model

    def weighted_error(self, x: Tensor, x_hat: Tensor, t: Tensor) -> Tensor:
        """(B,): the weighted error of each row, a mean over what it holds."""
        x, x_hat = self.condition.weighed(x), self.condition.weighed(x_hat)
        error = self.process.deviance(x, x_hat)
        if self.multiscale:
            error = error + coarser_errors(x - x_hat, self.multiscale)
        return x_loss_weight(self.weighting, self.process.schedule, t).to(error.dtype) * error


@dataclass(frozen=True)
class Denoising(WeightedDenoising):
    """The loss of the module.

    null:           the null class, for classifier-free guidance; label_dropout: probability of training a row with it
    encoder_weight: weight of the encoder's own loss at tau, where it has a head
    K noise levels for each image, whose condition is read once, are those of the times (`draws`).
    """

    null: Classes = 0
    label_dropout: Probability = 0.1
    encoder_weight: LossWeight = 1.0

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """The mean over rows and draws. Every random number is a function of a row's sample number.

        Logs: `loss_t0` to `loss_t3`; with a context that ages also the loss of the rows that have one, and losses of
        the heavy network alone; as sums over their rows divided by all rows.
        """
        levels, cond = self.times.draws, read(self.model, self.given(batch, draws))
        x = batch.x.repeat_interleave(levels, 0)
        if cond.label is not None:
            cond = replace(cond, label=cond.label.repeat_interleave(levels))
        t, tau, heavy_rows = to_device(x.device, *self.times(draws.host.repeated(levels)))
        z_t, z_tau = self.pair(x, t, tau, draws.repeated(levels))
        if len(heavy_rows) == len(x):  # then the K rows of an image share their reading of the condition
            context = self.model.encode(z_tau, tau, cond)
            light_context = context.aged()
        else:
            label = None if cond.label is None else cond.label[heavy_rows]
            heavy_cond = replace(cond[heavy_rows // levels], label=label)
            context = self.model.encode(z_tau[heavy_rows], tau[heavy_rows], heavy_cond)
            light_context = context.scattered(heavy_rows, len(x))
        loss = self.weighted_error(x, self.model.denoise(z_t, t, self.detached(light_context), cond), t)
        logs, total = by_time_quartile("loss_t", loss, t), loss.mean()
        # sums over some rows are divided by all of them, so that micro-batches add up to the batch's mean
        if context.features and self.times.ages:
            logs["context_loss"] = loss[heavy_rows].sum().detach() / len(loss)
        if context.x_hat is not None:
            heavy_loss = self.weighted_error(x[heavy_rows], context.x_hat, tau[heavy_rows]).sum() / len(loss)
            logs["encoder_loss"] = heavy_loss.detach()
            total = total + self.encoder_weight * heavy_loss
        for name, value in self.heavy_losses(batch, context).items():
            logs[name], total = value.detach(), total + value
        return Loss(total, logs)

    def detached(self, context: Context) -> Context:
        """The context that the light network is trained with: all of it, unless overridden."""
        return context

    def heavy_losses(self, batch: Batch, context: Context) -> dict[str, Tensor]:
        """Further losses of the heavy network alone, by name: none, unless overridden."""
        return {}

    def given(self, batch: Batch, draws: Draws) -> Cond:
        """Labels, each replaced by the null class with probability `label_dropout`, and what is given."""
        return Cond(with_null(batch, draws, self.null, self.label_dropout), batch.given)

    def pair(self, x: Tensor, t: Tensor, tau: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(z_t, z_tau) on one forward path, one state where no context ages. t, tau: (B,); x, z_t, z_tau: (B, ...)."""
        if self.times.ages:
            return self.process.pair(x, t, tau, *self.process.noise(draws, ["z_tau", "z_t"], *x.shape[1:]))
        z_t = self.process.add_noise(x, t, self.process.noise(draws, ["z_tau"], *x.shape[1:])[0])
        return z_t, z_t


def coarser_errors(difference: Tensor, copies: int) -> Tensor:
    """(B,): the mean squares of a difference (B, C, H, W) at half its side, a quarter, ..., added up."""
    total = difference.new_zeros(len(difference))
    for _ in range(copies):
        difference = avg_pool2d(difference, 2)
        total = total + difference.square().flatten(1).mean(1)
    return total


@dataclass(frozen=True)
class DualRateLoss(Ranged):
    """The loss of a dual-rate pair, for a training loop of your own; and samples of the pair.

        loss = DualRateLoss(encoder, light, num_classes=10)
        loss(x, label).backward()
        images = loss.sample(16, (3, 32, 32), steps=16, heavy=4)

    encoder: nn.Module, (z_tau, log_snr_tau, label) -> (features, v or None). z_tau: (B', C, H, W) of the B' <= B rows
             that keep their context; log_snr_tau, label: (B',); features: a tuple of tensors (B', ...)
    light:   nn.Module, (z_t, log_snr_t, label, features, log_snr_tau, present) -> v (B, C, H, W). present: (B,) bool,
             False in rows without a context, whose features are zero; None where every row has one
    v is alpha eps - sigma x. An encoder that returns its own v is trained on that too, with weight `encoder_weight`.
    num_classes: the label num_classes is the null class, which replaces a share `label_dropout` of labels
    times:       the joint law of t and tau, the share of rows that keep their context, and noise levels for each image
    """

    encoder: nn.Module
    light: nn.Module
    num_classes: Classes = 0
    schedule: Schedule = Cosine()
    weighting: Weighting = Sigmoid()
    times: TimeSource = TimeSampler()
    label_dropout: Probability = 0.1
    encoder_weight: LossWeight = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.times.ages:
            raise ValueError(f"a pair is trained at two times, t and tau, got {self.times}: take TimeSampler()")

    @cached_property
    def process(self) -> GaussianProcess:
        """The forward process, of the schedule."""
        return GaussianProcess(self.schedule)

    @cached_property
    def denoiser(self) -> DualRate:
        """The pair as a sampler calls it."""
        return DualRate(self.encoder, self.light, self.process)

    @cached_property
    def _method(self) -> Denoising:
        networks = nn.ModuleDict({"encoder": self.encoder, "light": self.light})
        return Denoising(
            networks,
            self.denoiser,
            self.process,
            self.weighting,
            self.times,
            null=self.num_classes,
            label_dropout=self.label_dropout,
            encoder_weight=self.encoder_weight,
        )

    def __call__(self, x: Tensor, label: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """The mean over a batch, with gradient (module docstring). x: (B, C, H, W) in [-1, 1]; label: (B,) int64.

        rows: (B,) int64 sample numbers, which decide every random number, and which rows keep their context. None:
        torch's generator decides.
        Raises ValueError for images that are no floats, labels without classes, or classes without labels.
        """
        if not x.is_floating_point():
            raise ValueError(f"images are {x.dtype}; expected floats in [-1, 1]: x / 127.5 - 1 of 8-bit ones")
        if (label is None) != (self.num_classes == 0):
            labels = "missing" if label is None else "given"
            raise ValueError(f"num_classes is {self.num_classes} and labels are {labels}: pass both, or neither")
        seed, host = 0, rows
        if host is None:
            seed, first = torch.randint(2**31, (2,)).tolist()
            host = torch.arange(first, first + len(x))  # no place of a batch keeps its context in every call
        host = host.cpu()
        batch = Batch(x, label, host.to(x.device), here=host)
        return self._method.loss(batch, 0, Draws(seed, batch.sample, host)).total

    def sample(
        self,
        seeds: int | Sequence[int],
        shape: Shape,
        *,
        steps: int = STEPS,
        heavy: int | None = None,
        label: Sequence[int] | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Images (N, *shape) in about [-1, 1], under ancestral sampling; heavy calls are spread evenly over the steps.

        seeds: how many images, of seeds 0, 1, ...; or the seeds themselves. An image depends on its own seed alone
        heavy: H, calls of the encoder; None: a quarter of the steps
        Raises what `sample_batches` and `StepPlan.uniform` raise.
        """
        plan = StepPlan.uniform(steps, max(1, steps // 4) if heavy is None else heavy)
        keys: Sequence[int] = count_or_list("seeds", seeds)
        step = Ancestral(self.process)
        with eval_mode(nn.ModuleList([self.encoder, self.light])):
            return torch.cat([*sample_batches(self.denoiser, step, plan, shape, keys, label, batch_size=batch_size)])


@dataclass(frozen=True)
class DenoisingConfig(MethodConfig, Ranged):
    """The weighted denoising loss."""

    times: TimeSource = SingleTime()
    """What is drawn: t alone for a single network, t and tau for a pair."""
    weighting: Weighting = Sigmoid()
    label_dropout: Probability = 0.1
    """Share of the images that train without their label, for classifier-free guidance."""
    encoder_weight: LossWeight = 1.0
    """Weight of the encoder's own loss, where it denoises by itself."""
    encoder_from: str | None = None
    """A single-rate run whose averaged weights the encoder starts from."""
    freeze_encoder: bool = False
    """Freeze the encoder: only the light network and the projections into it are trained."""
    light_from: str | None = None
    """A single-rate run whose averaged weights the light network starts from; of frames that are made each by
    themselves, a run of one frame."""
    multiscale: Annotated[int, Range(0, 16)] = 0
    """Number of coarser copies of image and x_hat (half the side, a quarter, ...) whose errors are added to the
    loss."""

    @property
    def serves(self) -> AnyPlan:
        heavy, first, even = self.times.heavy, self.times.first, self.times.phase is not None
        earliest = (1.0, 1.0) if even else first
        encoder = (0.0, 1.0) if earliest is None or self.freeze_encoder else (earliest[0] / heavy[1], earliest[1])
        return AnyPlan(heavy, self.times.dropout > 0 or first is not None, encoder, even)

    def check(self, experiment: Experiment) -> None:
        check_null_class(experiment, self.label_dropout)
        if self.multiscale:
            require_gaussian(experiment.process, experiment.name)
            sides, factor = experiment.shape[1:], 2**self.multiscale
            if any(side % factor for side in sides):
                need = f"{self.multiscale} copies need sides that are multiples of {factor}"
                raise ValueError(f"{need}, {experiment.name} has {sides[0]} x {sides[1]}: lower multiscale")
        pair = {"encoder", "light"} <= set(experiment.networks.roles)
        if self.freeze_encoder and not self.encoder_from:
            raise ValueError("a frozen encoder keeps the weights of a trained model: say which, with encoder_from")
        if self.encoder_weight != 1 and experiment.networks.single_rate:
            raise ValueError(f"encoder_weight is of an encoder's own loss, and {experiment.name} has none: drop it")
        if pair and experiment.networks.given is None and (self.times.heavy is None or not self.times.ages):
            raise ValueError(
                f"{experiment.name} has two networks (roles encoder and light) whose context ages, and {self.times} "
                "are times of one network, or of a context that never ages. Pass times of a pair, such as "
                "DenoisingConfig(TimeSampler(heavy=(4, 32))); one network has the roles ('model',)"
            )
        if experiment.networks.given is not None and self.times.ages != experiment.networks.ages:
            rule = "ages: pass BothTimes()" if experiment.networks.ages else "never ages: pass GivenTimes()"
            raise ValueError(f"{self.times} do not fit {experiment.name}, whose context {rule}, or SingleTime() of one")
        if experiment.networks.blind_alone and self.serves.drops:
            raise ValueError(
                f"without a context the light network of {experiment.name} sees nothing of its condition: set "
                "times.dropout to 0, and leave times.first out"
            )
        if (self.encoder_from or self.light_from) and not pair:
            raise ValueError(f"{experiment.name} has a single network: drop encoder_from and light_from")

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        method = self.build(experiment)
        parts = {"encoder": self.encoder_from, "light": self.light_from} if start.fresh else {}
        sources: dict[str, Model] = {role: start.load(run) for role, run in parts.items() if run is not None}
        for role, source in sources.items():
            if not getattr(experiment.networks, "leads", ()) or getattr(source.experiment.networks, "leads", ()):
                names = f"{experiment.name} and its {role}_from, {source.path},"
                check_same_images(experiment, source.experiment, names)  # else it may be of one frame
            if role == "encoder" and self.freeze_encoder and self.label_dropout:
                check_drops_labels(experiment, source)
        weights = start_from(experiment.networks, method.networks, sources)
        if (codec := experiment.condition.codec).fingerprint:
            check_latent_shape(experiment, codec.build(method.networks, start.device))
        return Prepared(method, weights)

    def build(self, experiment: Experiment) -> Denoising:
        """With weights drawn from the run's seed."""
        networks, denoiser = experiment.build()
        if self.freeze_encoder:
            experiment.networks.backbone(networks, "encoder").eval().requires_grad_(False)
        return Denoising(
            networks,
            denoiser,
            experiment.process,
            self.weighting,
            self.times,
            null=experiment.num_classes,
            label_dropout=self.label_dropout,
            encoder_weight=self.encoder_weight,
            multiscale=self.multiscale,
            condition=experiment.condition,
        )
