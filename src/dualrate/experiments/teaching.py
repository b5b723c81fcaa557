"""What methods with a teacher share: which runs can teach, and a teacher's network, frozen.

A teacher is in no checkpoint. All networks know noise levels and no times, so a student may have a schedule of its own:
the teacher is called at the noise levels of the student's steps.

Where training runs in bfloat16, the teacher is held in it: its matrix products are in bfloat16 in any case, so this
halves its memory and changes no number.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dualrate.denoisers.denoiser import Denoiser, Plain
from dualrate.diffusion.process import Process
from dualrate.experiments.experiment import Experiment, Model, Start
from dualrate.experiments.networks import NetworksConfig
from dualrate.networks.precision import cast_layers


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


def at_rest(single: NetworksConfig, process: Process, teacher: Model, start: Start) -> Denoiser:
    """A single-rate model without gradients or dropout, where the run computes, under the process of its student."""
    weights = teacher.networks["model"].state_dict()
    network = frozen_teacher(single, process, weights, bfloat16=start.bfloat16).to(start.device).eval()
    start.shard(network)
    return Plain(network, process)


class InBfloat16(nn.Module):
    """Runs a network under autocast, whatever the caller does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None) -> Tensor:
        with torch.autocast(z.device.type, torch.bfloat16):
            return self.network(z, log_snr, label)
