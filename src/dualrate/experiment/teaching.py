"""Networks that start from other models, or are taught by them: which fit, which can teach, a teacher's network.

A teacher is in no checkpoint. All networks know noise levels and no times, so a student may have a schedule of its own:
the teacher is called at the noise levels of the student's steps. Where training runs in bfloat16, the teacher's weights
are held in it, which halves their memory and changes no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from dualrate.codecs.codec import Codec
from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.diffusion.process import Process
from dualrate.experiment.experiment import Experiment, Model, Start
from dualrate.experiment.network_configs import NetworksConfig
from dualrate.networks.blocks import cast_layers


def check_teacher(student: Experiment, teacher: Model, name: str, guidance: float) -> NetworksConfig:
    """The teacher's network. Raises ValueError if it cannot teach the student, with this weight of guidance.

    name: what the user calls it
    """
    network = teachers_network(teacher.experiment, name)
    if (teacher.shape, teacher.num_classes) != (student.shape, student.num_classes):
        raise ValueError(
            f"{name} makes images of {teacher.shape} (C, H, W) in {teacher.num_classes} classes, "
            f"{student.name} of {student.shape} in {student.num_classes}: they must be the same"
        )
    if student.networks.single_rate and student.networks.with_noise(0) != network:
        raise ValueError(f"a plain student starts from its teacher, so {student.name} must have the network of {name}")
    if _codec(teacher.experiment) != _codec(student):
        raise ValueError(f"{name} and {student.name} see images by different codecs: train on its latents")
    if guidance != 1 and not teacher.num_classes:
        raise ValueError(f"{name} has no classes, so there is nothing to guide: drop the guidance weight")
    if guidance != 1 and not (network.null_class and teacher.experiment.method.drops_labels):
        raise ValueError(f"{name} has no null class that was trained, to be guided against: drop the guidance weight")
    return network


def _codec(experiment: Experiment) -> object:
    """What tells one codec from another, wherever it is."""
    return experiment.codec.fingerprint or experiment.codec.identity


def encoders_network(experiment: Experiment, name: str, teacher: Experiment) -> NetworksConfig:
    """The network of a run that a student's encoder is to be. teacher: the student's

    Raises ValueError for one of several, for a decoder, and for one of other images than the teacher's.
    """
    if experiment.networks.latent is not None or not experiment.networks.single_rate:
        raise ValueError(
            f"{name} is {experiment.networks.kind}; encoder_from takes a single-rate one that is no decoder"
        )
    own, its = ((one.shape, one.num_classes, _codec(one)) for one in (experiment, teacher))
    if own != its:
        raise ValueError(
            f"{name} makes images of {own[0]} (C, H, W) in {own[1]} classes, its teacher of {its[0]} in {its[1]}: take "
            "as encoder_from one of the same, by the same codec"
        )
    return experiment.networks


def require_no_decoder(experiment: Experiment, method: str) -> None:
    """Raises ValueError for a decoder, which the method of this name does not train."""
    if experiment.networks.latent is not None:
        raise ValueError(f"{experiment.name} is a decoder, which {method} does not train: take denoising")


def teachers_network(experiment: Experiment, name: str) -> NetworksConfig:
    """The network of a run that can teach. Raises ValueError for one of several, for a decoder and for a student."""
    if experiment.networks.latent is not None:
        raise ValueError(f"{name} is a decoder, and what is distilled draws from noise alone: name a model without one")
    if not experiment.networks.single_rate:
        raise ValueError(
            f"{name} is {experiment.networks.kind}; a teacher is a single-rate one, called at any noise level: of a "
            "dual-rate model name what its encoder is from, and it as what the student starts from (--student-from), "
            "of a first stage a base model of its latents"
        )
    if not experiment.serves.any_plan:
        raise ValueError(f"{name} is a student itself, which knows its own few steps: name what taught it")
    return experiment.networks


def built(single: NetworksConfig, process: Process, weights: Mapping[str, Tensor]) -> nn.Module:
    """The network of a single-rate model."""
    network = single.build(process)[0]["model"]
    network.load_state_dict(weights)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def frozen_teacher(
    single: NetworksConfig, process: Process, weights: Mapping[str, Tensor], *, bfloat16: bool
) -> nn.Module:
    """A single-rate model's network without gradients.

    bfloat16: under autocast, with the weights of its matrix products, the head's excepted, in that where they may be
    """
    network = built(single, process, weights).requires_grad_(False)
    if not bfloat16:
        return network
    for layer in cast_layers(network) if single.bfloat16_weights else ():
        layer.to(torch.bfloat16)
    return InBfloat16(network)


def teacher_at_rest(single: NetworksConfig, process: Process, teacher: Model, start: Start) -> Denoiser:
    """A single-rate model without gradients or dropout, where the run computes, under the process of its student."""
    weights = teacher.networks["model"].state_dict()
    network = frozen_teacher(single, process, weights, bfloat16=start.bfloat16).to(start.device).eval()
    return Plain(network, process)


class InBfloat16(nn.Module):
    """Runs a network under autocast, whatever the caller does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        with torch.autocast(z.device.type, torch.bfloat16):
            return self.network(z, log_snr, label)


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


def check_targets(experiment: Experiment, teacher: Model, name: str) -> None:
    """Raises ValueError unless a model's x_hat is an estimate of what this experiment's networks estimate.

    name: of the option that says which model
    """
    if not teacher.serves.any_plan:
        raise ValueError(f"{teacher.path} is a student, whose x_hat is no posterior mean: name what taught it")
    own, its = (_seen(one) for one in (experiment, teacher.experiment))
    if differ := [f"{what} {its[what]}, not {own[what]}" for what in own if own[what] != its[what]]:
        raise ValueError(
            f"{name} is a run with this one's images, classes and process; {teacher.path} has {', '.join(differ)}"
        )


def _seen(experiment: Experiment) -> dict[str, object]:
    """What networks see, by what it is called."""
    return {
        "images of (C, H, W)": experiment.shape,
        "codec": experiment.codec.fingerprint[:12] or "none",
        "latents": experiment.method.latents.fingerprint[:12] or "none",
        "classes": experiment.num_classes,
        "process": experiment.process,
    }


def fill(module: nn.Module, weights: Mapping[str, Tensor], problem: str) -> None:
    """Give a module weights. Raises ValueError, which begins with `problem`, if they are of another one."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{problem}: {' '.join(str(error).split())[:300]}") from error
