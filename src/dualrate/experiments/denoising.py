"""The configuration of training by the denoising loss: single-rate, dual-rate, and with parts that start from runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Annotated, Any

from torch import Tensor, nn

from dualrate.codecs.codec import Codec, noisy_latents
from dualrate.codecs.config import CodecConfig, NoCodec
from dualrate.config.ranges import Factor, FirstIterations, LossWeight, Probability, Range, Ranged, Share
from dualrate.diffusion.process import require_gaussian
from dualrate.diffusion.weighting import Sigmoid, Weighting
from dualrate.experiments.experiment import Experiment, MethodConfig, Model, Prepared, Start
from dualrate.experiments.networks import NetworksConfig
from dualrate.experiments.serves import AnyPlan
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


def start_from(config: NetworksConfig, networks: nn.ModuleDict, sources: dict[str, Model]) -> dict[str, str]:
    """Start roles of a dual-rate model from single-rate models' weights. Says for each which weights those were.

    An encoder without a head leaves its source's where it is. A trained light network starts without any influence of
    the context, so training goes on from where it was.
    Raises ValueError if a model's network is not the role's.
    """
    for role, source in sources.items():
        if source.experiment.networks.roles != ("model",):
            raise ValueError(f"{source.path} is {source.experiment.networks.kind}; {role}_from takes a single-rate one")
        backbone = config.backbone(networks, role)
        weights = config.starting(role, source.networks["model"].state_dict())
        if not any(_of_head(name) for name in backbone.state_dict()):
            weights = {name: tensor for name, tensor in weights.items() if not _of_head(name)}
        fill(backbone, weights, f"{source.path}: its network is not this experiment's {role}")
    if "light" in sources:
        config.disconnect(networks)
    return {role: str(source) for role, source in sources.items()}


def _of_head(name: str) -> bool:
    return "head" in name.split(".")


def check_latents(experiment: Experiment, source: Model) -> None:
    """Raises ValueError unless a model's networks are given latents of the same codec, or neither's are given any."""
    own, its = (one.method.latents.fingerprint[:12] or "none" for one in (experiment, source.experiment))
    if own != its:
        raise ValueError(f"{source.path} is given latents of the codec {its}, not {own}: name a decoder of the same")


def check_drops_labels(experiment: Experiment, source: Model) -> None:
    """Raises ValueError for a model whose null class nothing has trained, where its network is kept as it is."""
    if experiment.num_classes and not source.experiment.method.drops_labels:
        raise ValueError(
            f"{source.path} was trained with every label there, and its network is frozen, so its null class would "
            "never be trained: set label_dropout to 0, and leave guidance"
        )


def check_latent_shape(experiment: Experiment, codec: Codec) -> None:
    """Raises ValueError unless a codec's latents of an experiment's images are what its networks take, and of no more
    numbers than these images: of others, such as tokens of pixels, there is nothing to decode.
    """
    found, expected = codec.latent_shape(experiment.shape), experiment.networks.latent
    numbers, most = prod(found), prod(experiment.shape)
    if numbers > most:
        raise ValueError(
            f"images of {experiment.shape} (C, H, W) have latents of {found} by the codec, {numbers:,} numbers of "
            f"{most:,}: it compresses nothing, so there is nothing to decode. Name a run that trained a codec, or an "
            "autoencoder"
        )
    if found != expected:
        raise ValueError(
            f"images of {experiment.shape} (C, H, W) have latents of {found} by the codec, the networks of "
            f"{experiment.name} take {expected}: set their latent to it"
        )


def check_targets(experiment: Experiment, teacher: Model, name: str = "targets_from") -> None:
    """Raises ValueError unless a model's x_hat is an estimate of what this experiment's networks estimate.

    name: of the option that says which model
    """
    if not teacher.serves.any_plan:
        raise ValueError(f"{teacher.path} is a student, whose x_hat is no posterior mean: name what taught it")
    own, its = ({**_seen(one), "process": one.process} for one in (experiment, teacher.experiment))
    if differ := [f"{what} {its[what]}, not {own[what]}" for what in own if own[what] != its[what]]:
        raise ValueError(
            f"{name} is a run with this one's images, classes and process; {teacher.path} has {', '.join(differ)}"
        )


def _seen(experiment: Experiment) -> dict[str, object]:
    """What networks see, by what it is called."""
    codec, latents = (one.fingerprint[:12] or "none" for one in (experiment.codec, experiment.method.latents))
    seen: dict[str, object] = {"images of (C, H, W)": experiment.shape, "codec": codec, "latents": latents}
    return seen | {"classes": experiment.num_classes}


def fill(module: nn.Module, weights: Mapping[str, Tensor], problem: str) -> None:
    """Give a module weights. Raises ValueError, which begins with `problem`, if they are of another one."""
    if differ := _differences(module.state_dict(), weights):
        raise ValueError(f"{problem}: {', '.join(differ)}")
    module.load_state_dict(weights)


def _differences(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """In which tensors, by name and shape, some weights are not a module's own: how many, and the first."""
    lacking = [name for name in own if name not in weights]
    foreign = [name for name in weights if name not in own]
    unlike = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    found = []
    if unlike:
        its, wanted = (tuple(one[unlike[0]].shape) for one in (weights, own))
        found.append(f"{len(unlike)} of {len(own)} tensors have other shapes ({unlike[0]} has {its}, not {wanted})")
    if lacking:
        found.append(f"{len(lacking)} of {len(own)} tensors are missing ({lacking[0]})")
    if foreign:
        found.append(f"it has {len(foreign)} others ({foreign[0]})")
    return found
