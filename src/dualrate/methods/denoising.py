"""The weighted denoising loss, single-rate and dual-rate (Dual-Rate Diffusion, arXiv 2605.18190).

    t, tau ~ times;  (z_t, z_tau) on one forward path of x
    context = encode(z_tau, tau) for the kept rows, absent for the others
    L = mean over rows of -1/2 dlog_snr/dt e^log_snr w(log_snr) |x - denoise(z_t, t, context)|^2 / numel(x)

where a categorical process has twice the cross-entropy in place of the squared error (`Process.deviance`).

With `multiscale` K, for large images, the error is that of K coarser copies too (simple diffusion, Hoogeboom, Heek,
Salimans 2023, arXiv 2301.11093; at 128 pixels in multistep consistency models), each a mean over its own numbers:

    |x - x_hat|^2 / d   becomes   sum_k |P^k (x - x_hat)|^2 / (d / 4^k),  k = 0, ..., K      P: the means of 2 x 2

All have one weight: the sources that were seen say only that a copy is added. The optimum E[x | z_t] stays.

Context dropout by encoding only the kept rows is the same law as dropping after encoding: a dropped row gives the
encoder neither effect nor gradient. At p = 0.5 an iteration costs F_heavy / 2 + F_light.

k draws of (t, z_t) may share a context (`TimeSampler.draws`): z_t are independent given (x, z_tau), so the expected
gradient is that of k = 1, for a k-th of the heavy calls.

Ours, not the paper's: an encoder with a head is trained on its own x_hat at tau too, with weight `encoder_weight`, so
that it denoises by itself at the steps where it is called.

Ours too: in place of x the target may be x_hat(z_t) of a trained model, or a mixture with it (`Targets`). As
E[x | z_t, z_tau] = E[x | z_t], the optimum is the same up to that model's error; the spread of x around it, which is
most of the gradient's variance where noise is high, is gone, for a call of that model at every z_t.

A single-rate model is the case whose `encode` returns an empty context and whose times are `SingleTime`.

A decoder p(x | z_0) is the case with a condition more: z_0 is drawn anew of the image at every iteration (`latents`).

The configuration of training by the denoising loss: single-rate, dual-rate, and with parts that start from runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from dualrate.codecs.codec import CodecConfig, NoCodec, noisy_latents
from dualrate.config.ranges import Classes, Factor, FirstIterations, LossWeight, Probability, Range, Ranged, Share
from dualrate.denoisers.denoiser import Denoiser, DualRate, posterior_mean
from dualrate.diffusion.plan import STEPS, StepPlan
from dualrate.diffusion.prediction import Sigmoid, Weighting, x_loss_weight
from dualrate.diffusion.process import GaussianProcess, Process, require_gaussian
from dualrate.diffusion.random import Draws
from dualrate.diffusion.schedule import Cosine, Schedule
from dualrate.diffusion.values import Batch, Cond, Shape
from dualrate.experiment.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiment.plan_support import AnyPlan
from dualrate.experiment.teaching import (
    check_drops_labels,
    check_latent_shape,
    check_latents,
    check_targets,
    start_from,
)
from dualrate.methods.times import SingleTime, TimeSampler, TimeSource, moved, with_null
from dualrate.networks.blocks import at_rest
from dualrate.sampling.ancestral import Ancestral
from dualrate.sampling.trajectory import sample_batches
from dualrate.training.method import Loss, Phase, quarters


@dataclass(frozen=True)
class Targets(Ranged):
    """What x_hat is regressed on: share x_hat_teacher(z_t) + (1 - share) x. The teacher gets no gradient."""

    teacher: Denoiser
    share: Share = 1.0

    @torch.no_grad()
    def __call__(self, x: Tensor, z_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """x, z_t: (R, ...); t: (R,). A heavy call of the teacher for every row."""
        return x.lerp(posterior_mean(self.teacher, z_t, t, cond).to(x.dtype), self.share)


@dataclass(frozen=True)
class Denoising(Ranged):
    """One phase, "model", that trains every network.

    null:           the null class, for classifier-free guidance; label_dropout: probability of training a row with it
    encoder_weight: weight of the encoder's own loss at tau, where it has a head; its target is x
    targets:        of x_hat(z_t); None: x
    latents:        images, and draws of their rows -> z_0, which a decoder is given; None: it is none
    multiscale:     K, copies of half the side, a quarter, ... whose errors are added
    backbone:       the encoder's U-ViT, for the next two
    backbone_rate:  its learning rate, over that of the rest
    release_at:     the iteration at which it begins to train; until then it is frozen, without dropout
    """

    networks: nn.ModuleDict
    model: Denoiser
    process: Process
    weighting: Weighting
    times: TimeSource
    null: Classes = 0
    label_dropout: Probability = 0.1
    encoder_weight: LossWeight = 1.0
    targets: Targets | None = None
    backbone: nn.Module | None = None
    backbone_rate: Factor = 1.0
    release_at: FirstIterations = 0
    latents: Callable[[Tensor, Draws], Tensor] | None = None
    multiscale: Annotated[int, Range(0, 16)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone is None and (self.release_at, self.backbone_rate) != (0, 1):
            raise ValueError(
                f"got release_at {self.release_at} and backbone_rate {self.backbone_rate} of no backbone: pass the "
                "encoder's U-ViT"
            )

    @property
    def auxiliaries(self) -> nn.ModuleDict:
        """None."""
        return nn.ModuleDict()

    def phases(self, iteration: int) -> tuple[Phase, ...]:
        parameters = tuple(p for p in self.networks.parameters() if p.requires_grad)
        slower = () if self.backbone is None or self.backbone_rate == 1 else self.backbone.parameters()
        return (Phase("model", parameters, self.loss, rates=dict.fromkeys(slower, self.backbone_rate)),)

    def denoiser(self) -> Denoiser:
        return self.model

    def loss(self, batch: Batch, iteration: int, draws: Draws) -> Loss:
        """The mean over the batch's rows. Every random number is a function of a row's sample number.

        Logs: `loss_t0` to `loss_t3`; with a context also the loss of the rows that have one and the encoder's own, as
        sums over their rows divided by all rows; with `targets` the loss with x for target, `data_loss`.
        """
        x, times, cond = batch.x, self.times(draws.host), self.condition(batch, draws)
        image = torch.arange(len(times.t), device=times.t.device) // (len(times.t) // len(batch))  # of each draw
        encoded, of_kept = torch.unique(image[times.kept], return_inverse=True)  # on the host, like the times
        times, (image,) = times.to(x.device), moved(x.device, image)
        encoded, of_kept = moved(x.device, encoded, of_kept)
        z_t, z_tau = self.pair(x, times.t, times.tau, draws)
        with nullcontext() if self.backbone is None or iteration >= self.release_at else at_rest(self.backbone):
            context = self.model.encode(z_tau[encoded], times.tau[encoded], cond[encoded])
        shared = context.rows(of_kept).scattered(times.kept, len(z_t))
        x_hat = self.model.denoise(z_t, times.t, shared, cond[image])
        target = x[image] if self.targets is None else self.targets(x[image], z_t, times.t, cond[image])
        loss = self.weighted_error(target, x_hat, times.t)
        logs = quarters("loss_t", loss, times.t)
        if self.targets is not None:
            logs["data_loss"] = self.weighted_error(x[image], x_hat.detach(), times.t).mean()
        total = loss.mean()
        # sums over what is kept are divided by everything, so that micro-batches add up to the batch's mean
        if context.features:
            logs["context_loss"] = loss[times.kept].sum().detach() / len(loss)
        if context.x_hat is not None:
            own = self.weighted_error(x[encoded], context.x_hat, times.tau[encoded]).sum() / len(batch)
            logs["encoder_loss"] = own.detach()
            total = total + self.encoder_weight * own
        return Loss(total, logs)

    def condition(self, batch: Batch, draws: Draws) -> Cond:
        """Labels, each replaced by the null class with probability `label_dropout`; of a decoder z_0 too."""
        z_0 = None if self.latents is None else self.latents(batch.x, draws)
        return Cond(with_null(batch, draws, self.null, self.label_dropout), z_0)

    def pair(self, x: Tensor, t: Tensor, tau: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(z_t, z_tau) on one forward path. t: (B k,); x, z_tau: (B, ...); z_t: (B k, ...)."""
        t, shape = t.unflatten(0, (len(x), -1)), x.shape[1:]
        if t.shape[1] == 1:  # both in as many kernels as one
            noise_tau, noise_t = self.process.noise(draws, ["z_tau", "z_t"], *shape)
        else:
            (noise_tau,) = self.process.noise(draws, ["z_tau"], *shape)
            (noise_t,) = self.process.noise(draws.repeated(t.shape[1]), ["z_t"], *shape)
        noise_t = noise_t.unflatten(0, t.shape)
        z_t, z_tau = self.process.pair(x[:, None], t, tau[:, None], noise_tau[:, None], noise_t)
        return z_t.flatten(0, 1), z_tau.squeeze(1)

    def weighted_error(self, x: Tensor, x_hat: Tensor, t: Tensor) -> Tensor:
        """(B,): the weighted error of each row, a mean over what it holds."""
        error = self.process.deviance(x, x_hat)
        if self.multiscale:
            error = error + coarser_errors(x - x_hat, self.multiscale)
        return x_loss_weight(self.weighting, self.process.schedule, t).to(error.dtype) * error


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
    times:       the joint law of t and tau, and the share of rows that keep their context
    """

    encoder: nn.Module
    light: nn.Module
    num_classes: Classes = 0
    schedule: Schedule = Cosine()
    weighting: Weighting = Sigmoid()
    times: TimeSource = TimeSampler()
    label_dropout: Probability = 0.1
    encoder_weight: LossWeight = 1.0

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

        rows: (B,) int64 sample numbers, which decide every random number. None: torch's generator decides.
        Raises ValueError for labels without classes, or classes without labels.
        """
        if (label is None) != (self.num_classes == 0):
            raise ValueError(
                f"num_classes is {self.num_classes} and labels are {'missing' if label is None else 'given'}: "
                "pass both, or neither"
            )
        seed, host = (int(torch.randint(2**62, ())), torch.arange(len(x))) if rows is None else (0, rows.cpu())
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
        seeds = range(seeds) if isinstance(seeds, int) else seeds
        device = next(self.light.parameters()).device
        of = (self.denoiser, Ancestral(self.process), plan, shape, seeds, label)
        return torch.cat(list(sample_batches(*of, batch_size=batch_size, device=device)))


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
    """Leave the encoder's weights as they are: the light network and the projections into it are trained."""
    release_encoder_at: FirstIterations = 0
    """Iterations in which the encoder's weights stay as they are; afterwards they train too."""
    encoder_rate: Factor = 1.0
    """The encoder's learning rate over that of the light network and of the projections into it."""
    light_from: str | None = None
    """A single-rate run whose averaged weights the light network starts from."""
    targets_from: str | None = None
    """A trained run, such as the heavy model: learn its x_hat instead of the images, at a heavy call of it more."""
    targets_share: Share = 1.0
    """Share of that run's x_hat in the targets; the images are the rest."""
    multiscale: Annotated[int, Range(0, 16)] = 0
    """Coarser copies of image and x_hat, of half the side, a quarter, ..., whose errors are added to the loss."""
    latents: CodecConfig = NoCodec()
    """Of a decoder: the codec, which does not train, of the latents that it is given."""

    @property
    def serves(self) -> AnyPlan:
        encoder = (0.0, 1.0) if self.freeze_encoder else self.times.of_heavy_calls
        return AnyPlan(self.times.heavy, drops=self.times.alone, times=encoder)

    @property
    def drops_labels(self) -> bool:
        return self.label_dropout > 0

    def check(self, experiment: Experiment) -> None:
        self._check_latents(experiment)
        if self.multiscale:
            require_gaussian(experiment.process, experiment.name)
            sides = experiment.networks.shape[1:]
            if any(side % 2**self.multiscale for side in sides):
                raise ValueError(
                    f"each copy of the loss halves the sides of the one before: {self.multiscale} copies need sides "
                    f"that are multiples of {2**self.multiscale}, {experiment.name} has {sides[0]} x {sides[1]}: lower "
                    "multiscale"
                )
        pair = {"encoder", "light"} <= set(experiment.networks.roles)
        if self.targets_share != 1 and not self.targets_from:
            raise ValueError(f"a share of {self.targets_share} in the targets is some run's: say which, targets_from")
        if (self.freeze_encoder or self.release_encoder_at) and not self.encoder_from:
            raise ValueError("a frozen encoder keeps the weights of a trained model: say which, with encoder_from")
        if self.freeze_encoder and (self.release_encoder_at or self.encoder_rate != 1):
            raise ValueError(
                "an encoder that is frozen throughout learns at no rate and is never released: drop freeze_encoder, or "
                "release_encoder_at and encoder_rate"
            )
        if self.encoder_weight != 1 and experiment.networks.single_rate:
            raise ValueError(f"encoder_weight is of an encoder's own loss, and {experiment.name} has none: drop it")
        if pair and self.times.heavy is None and experiment.networks.latent is None:
            raise ValueError(
                f"{experiment.name} has two networks, and {self.times} are times of one: a context would never be "
                "older than the step that it is used at. Pass times of a pair, such as "
                "DenoisingConfig(TimeSampler(heavy=(4, 32)))"
            )
        of_two = self.encoder_from or self.light_from or self.encoder_rate != 1
        if of_two and not pair:
            raise ValueError(
                f"{experiment.name} has a single network; encoder_from and light_from start the parts of a dual-rate "
                "model, and encoder_rate is for one of them"
            )

    def _check_latents(self, experiment: Experiment) -> None:
        wanted, given = experiment.networks.latent is not None, bool(self.latents.fingerprint)
        if wanted != given:
            which = "are a decoder's: name the codec" if wanted else "take no latents: drop the codec"
            raise ValueError(f"the networks of {experiment.name} {which} of the latents that they are given (latents)")
        if wanted and experiment.num_classes:
            raise ValueError(f"a decoder is given latents and no labels: set num_classes of {experiment.name} to 0")

    def prepare(self, experiment: Experiment, start: Start) -> Prepared:
        method = self.build(experiment)
        parts = {"encoder": self.encoder_from, "light": self.light_from} if start.fresh else {}
        sources = {role: start.load(run) for role, run in parts.items() if run is not None}
        for role, source in sources.items():
            check_latents(experiment, source)
            if role == "encoder" and self.freeze_encoder and self.label_dropout:
                check_drops_labels(experiment, source)
        weights = start_from(experiment.networks, method.networks, sources)
        identity: dict[str, Any] = {}
        if experiment.networks.latent is not None:
            codec = self.latents.build(method.networks, start.device)
            check_latent_shape(experiment, codec)
            method = replace(method, latents=partial(noisy_latents, codec))
            identity["latents"] = codec.fingerprint  # wherever it is
        if self.targets_from is None:
            return Prepared(method, weights, identity)
        teacher = start.load(self.targets_from)
        check_targets(experiment, teacher)
        macs = replace(teacher.call_cost, decode=0).of(steps=1, heavy=1)
        start.note(f"targets: x_hat of {teacher}, {macs / 1e6:.3g} million multiply-adds more at every time trained on")
        for network in teacher.networks.values():
            start.shard(network)
        return Prepared(
            replace(method, targets=Targets(teacher.denoiser, self.targets_share)),
            weights | {"targets": str(teacher)},
            identity | {"targets_from": f"weights {teacher.weights_hash[:12]}"},
        )

    def build(self, experiment: Experiment) -> Denoising:
        """With weights drawn from the run's seed."""
        networks, denoiser = experiment.build()
        apart = self.freeze_encoder or self.release_encoder_at or self.encoder_rate != 1
        backbone = experiment.networks.backbone(networks, "encoder") if apart else None
        if self.freeze_encoder and backbone is not None:
            backbone.eval().requires_grad_(False)
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
            backbone=backbone,
            backbone_rate=self.encoder_rate,
            release_at=self.release_encoder_at,
        )
