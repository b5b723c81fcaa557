"""The configuration of training by the denoising loss: single-rate, dual-rate, and with parts that start from runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from dualrate.codecs.codec import noisy_latents
from dualrate.codecs.config import CodecConfig, NoCodec
from dualrate.config.ranges import Factor, FirstIterations, LossWeight, Probability, Range, Ranged, Share
from dualrate.diffusion.process import require_gaussian
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiments.experiment import Experiment, MethodConfig, Prepared, Start
from dualrate.experiments.serves import AnyPlan
from dualrate.experiments.teaching import (
    check_drops_labels,
    check_latent_shape,
    check_latents,
    check_targets,
    start_from,
)
from dualrate.methods.denoising import Denoising, Targets
from dualrate.methods.times import SingleTime, TimeSource


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
    forecast: bool = False
    """The light network learns from contexts forecast from two heavy calls, a heavy call more, for
    --denoiser forecast-context."""
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
        if self.forecast and not pair:
            raise ValueError(f"contexts are forecast for a light network, {experiment.name} has none: drop forecast")
        if self.forecast and (experiment.networks.latent is not None or self.times.heavy == (1, 1)):
            raise ValueError(f"contexts are forecast from two heavy calls, {experiment.name} makes one: drop forecast")
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
            forecast=self.forecast,
        )
