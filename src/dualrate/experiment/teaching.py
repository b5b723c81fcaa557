"""Networks that start from other models, or learn from them: which models fit, and a teacher's network.

A teacher is in no checkpoint. Networks are given noise levels and not times, so a student may have another schedule:
the teacher is called at the noise levels of the student's steps. Where training runs in bfloat16, the teacher's weights
are held in it, which halves their memory and changes no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.codecs.codec import Codec
from dualrate.config.serial import to_plain
from dualrate.denoisers.denoiser import Denoiser
from dualrate.diffusion.process import Process
from dualrate.experiment.experiment import Experiment, Start
from dualrate.experiment.model import Model
from dualrate.experiment.network_configs import NOISE, NetworksConfig
from dualrate.networks.blocks import cast_layers
from dualrate.networks.conditional import FrameAttention
from dualrate.system.files import check_dtypes, shown


def check_teacher(student: Experiment, teacher: Model, name: str, guidance: float) -> NetworksConfig:
    """The teacher's network. Raises ValueError if it cannot teach the student, with this weight of guidance.

    name: the user's, of the teacher
    """
    network = teachers_network(teacher.experiment, name)
    check_same_images(student, teacher.experiment, f"{student.name} and its teacher {name}")
    if not student.networks.ages and student.networks.with_noise(0) != network:
        raise ValueError(f"a plain student starts from its teacher, so {student.name} must have the network of {name}")
    if guidance != 1 and not (teacher.num_classes and network.null_class and teacher.experiment.method.drops_labels):
        raise ValueError(f"{name} has no trained null class, so it cannot be guided: drop the guidance weight")
    return network


def check_same_images(first: Experiment, second: Experiment, names: str) -> None:
    """Raises ValueError unless two experiments have the same shapes, classes, codec and encoders of texts."""
    condition, other_condition = first.condition.identity, second.condition.identity
    if condition != other_condition:
        conditions = f"{condition or 'nothing'} and {other_condition or 'nothing'}"
        raise ValueError(f"{names} are given {conditions}: they must be given the same")
    images, other_images = (
        (experiment.shape, experiment.num_classes, experiment.codec.fingerprint or experiment.codec.identity)
        for experiment in (first, second)
    )
    if images != other_images:
        (shape, classes, _), (other_shape, other_classes, _) = images, other_images
        if (shape, classes) == (other_shape, other_classes) and second.codec.fingerprint:
            raise ValueError(
                f"{names} are of latents by different codecs: take latents by one (dualrate data encode IMAGES LATENTS "
                "--codec FOLDER)"
            )
        raise ValueError(
            f"{names} make images of {shape} (C, H, W) in {classes} classes and of {other_shape} in "
            f"{other_classes}: they must be the same, by the same codec"
        )


def require_no_decoder(experiment: Experiment, method: str) -> None:
    """Raises ValueError for a decoder and for windows that roll, which the method of this name does not train."""
    if experiment.condition.codec.fingerprint:
        raise ValueError(f"{experiment.name} is a decoder, which {method} does not train: take denoising")
    if not experiment.process.one_time:
        raise ValueError(
            f"{experiment.name} rolls windows, which {method} does not train: take a forecast by diffusion"
        )


def teachers_network(experiment: Experiment, name: str) -> NetworksConfig:
    """The networks of a run that can teach: one, or a pair whose heavy network sees a condition alone.

    Raises ValueError for others, for a decoder and for a student.
    """
    networks = experiment.networks
    if experiment.condition.codec.fingerprint:
        raise ValueError(f"{name} is a decoder, which has no students: name a model of images, latents or fields")
    if networks.ages and networks.given is not None and not experiment.condition.labelled:
        raise ValueError(
            f"{name} has both rates: its context ages beside the condition, and no method distils that. Name a run of "
            "--rate dual, single, medium or light"
        )
    if networks.ages:
        raise ValueError(
            f"{name} is {networks.kind}; a teacher is a single-rate one. For a dual-rate model name the run that its "
            "encoder came from, and start the student from the dual-rate one (--student-from). For a first stage name "
            "a base model of its latents"
        )
    if networks.guided_already:
        raise ValueError(
            f"guidance was distilled into {name}, so its x_hat is no posterior mean: name the model that it was "
            "distilled from"
        )
    if not experiment.serves.any_plan:
        raise ValueError(f"{name} is a student itself: name its teacher")
    return networks


def built(config: NetworksConfig, process: Process, teacher: Model) -> tuple[nn.ModuleDict, Denoiser]:
    """Networks of this kind with a teacher's weights, and their denoiser."""
    networks, denoiser = config.build(process)
    networks.load_state_dict(teacher.networks.state_dict())
    return networks.to(memory_format=torch.channels_last), denoiser  # pyright: ignore[reportCallIssue]


def frozen_teacher(
    config: NetworksConfig, process: Process, teacher: Model, *, bfloat16: bool
) -> tuple[nn.ModuleDict, Denoiser]:
    """A teacher's networks without gradients, in evaluation mode, on its device, and their denoiser.

    bfloat16: under autocast, with the weights of its matrix products, the head's excepted, in that where they may be
    """
    networks, denoiser = built(config, process, teacher)
    networks.requires_grad_(False).eval().to(teacher.device)
    if not bfloat16:
        return networks, denoiser
    for layer in cast_layers(networks) if config.bfloat16_weights else ():
        layer.to(torch.bfloat16)
    wrapped = {role: InBfloat16(network) for role, network in networks.items()}
    calling = deepcopy(denoiser, {id(networks[role]): network for role, network in wrapped.items()})
    return nn.ModuleDict(wrapped), calling


class InBfloat16(nn.Module):
    """Runs a network under autocast, whatever the caller does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, torch.bfloat16):
            return self.network(first, *rest)


def start_from(config: NetworksConfig, networks: nn.ModuleDict, sources: dict[str, Model]) -> dict[str, str]:
    """Start roles of a dual-rate model from single-rate models' weights. Says for each which weights those were.

    An encoder without a head takes all of its source but the head. Attention among frames is new, and adds nothing at
    first. A trained light network starts without any influence
    of the context, so training goes on from where it was.
    Raises ValueError if a model's network is not the role's.
    """
    for role, source in sources.items():
        if source.experiment.networks.roles != ("model",):
            raise ValueError(f"{source.path} is {source.experiment.networks.kind}; {role}_from takes a single-rate one")
        problem = f"{source.path}: its network is not this experiment's {role}"
        check_same_network(config.configs.get(role), source.experiment.networks.configs.get("model"), problem)
        backbone = config.backbone(networks, role)
        weights = config.starting(role, source.networks["model"].state_dict())
        if not any("head" in name.split(".") for name in backbone.state_dict()):
            weights = {name: tensor for name, tensor in weights.items() if "head" not in name.split(".")}
        among = [name for name, part in backbone.named_modules() if isinstance(part, FrameAttention)]
        fresh = {name: value for name, value in backbone.state_dict().items() if name.startswith(tuple(among))}
        fill(backbone, fresh | dict(weights), problem)
    if "light" in sources:
        config.disconnect(networks)
    return {role: str(source) for role, source in sources.items()}


def begin(
    experiment: Experiment, networks: nn.ModuleDict, teacher: Model | None, start: Start, runs: Mapping[str, str | None]
) -> dict[str, str]:
    """Put the weights in that a student's training begins with; says which those were, but for the teacher's own.

    runs: to begin from: "student", of all its networks, or "encoder" and "light", of one each. Where none is given
          networks like the teacher's have its weights, so has the encoder; the light network has random ones
    Raises ValueError for weights of other networks, and of models of other images.
    """
    config, loaded = experiment.networks, {role: start.load(run) for role, run in runs.items() if run is not None}
    for role, source in loaded.items():
        check_same_images(experiment, source.experiment, f"{experiment.name} and its {role}_from, {source.path},")
    problem = f"its networks are not those of {experiment.name}"
    if source := loaded.get("student"):
        parts = source.experiment.networks.configs
        for role, network_config in config.configs.items():
            check_same_network(
                network_config, parts.get(role), f"{source.path}: its {role} is not that of {experiment.name}"
            )
        unread = {
            name: torch.zeros_like(tensor) for name, tensor in networks.state_dict().items() if name.endswith(NOISE)
        }
        fill(networks, unread | source.networks.state_dict(), f"{source.path}: {problem}")
        return {"student": str(source)}
    if config.ages:
        return start_from(config, networks, loaded if teacher is None else {"encoder": teacher, **loaded})
    if teacher is not None:
        for role, network in networks.items():
            weights = config.starting(role, teacher.networks[role].state_dict())
            fill(network, weights, f"{teacher.path}: {problem}")
    return {}


def check_drops_labels(experiment: Experiment, source: Model) -> None:
    """Raises ValueError for a model whose null class is untrained, where its network is kept frozen."""
    if experiment.num_classes and not source.experiment.method.drops_labels:
        raise ValueError(
            f"{source.path} was trained without dropping labels, and its network is frozen, so its null class would "
            "never be trained: set label_dropout to 0, and leave guidance"
        )


def check_null_class(experiment: Experiment, label_dropout: float) -> None:
    """Raises ValueError for a share of images without their label, where no label stands for no class."""
    if label_dropout and experiment.num_classes and not experiment.networks.null_class:
        raise ValueError(
            f"{experiment.name} has no null class, which {label_dropout:.0%} of the images would train: set "
            "label_dropout to 0 (--method.label-dropout 0)"
        )


def check_latent_shape(experiment: Experiment, codec: Codec) -> None:
    """Raises ValueError unless the networks take a codec's latents of the images, which hold fewer numbers than these:
    of larger ones, such as tokens of pixels, there is nothing to decode.
    """
    latent_shape, expected = codec.latent_shape(experiment.shape), experiment.networks.given
    latents = f"images of {experiment.shape} (C, H, W) have latents of {latent_shape} by the codec"
    if prod(latent_shape) > prod(experiment.shape):
        raise ValueError(
            f"{latents}: it compresses nothing, so there is nothing to decode. Name a run that trained a codec, or an "
            "autoencoder"
        )
    if latent_shape != expected:
        raise ValueError(f"{latents}, the networks of {experiment.name} take {expected}: set their latent to it")


def check_targets(experiment: Experiment, teacher: Model, name: str) -> None:
    """Raises ValueError unless a model's x_hat is an estimate of what this experiment's networks estimate.

    name: of the option that names the model
    """
    if not teacher.serves.any_plan:
        raise ValueError(f"{teacher.path} is a student, whose x_hat is no posterior mean: name its teacher")
    check_same_images(experiment, teacher.experiment, f"{experiment.name} and its {name}, {teacher.path},")
    if experiment.process != teacher.process:
        raise ValueError(f"{name} is a run with the process of {experiment.name}; {teacher.path} has {teacher.process}")


def check_same_network(config: Any, other: Any, problem: str) -> None:
    """Raises ValueError, which begins with `problem`, if two networks are configured otherwise.

    Shapes of weights do not tell, for one, whether edges meet. Heads, dropout and planes of noise may differ. None: a
    network without a configuration, of which nothing is known here.
    """
    if config is None or other is None:
        return
    first, second = (to_plain(each.with_dropout(0)) | {"head": True, "noise": 0} for each in (config, other))
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    if names:
        differences = ", ".join(f"{name} is {second.get(name)}, not {first.get(name)}" for name in names)
        raise ValueError(f"{problem}: {differences[:300]}")


def fill(module: nn.Module, weights: Mapping[str, Tensor], problem: str) -> None:
    """Give a module weights. Raises ValueError, which begins with `problem`, if they are of another one."""
    try:
        check_dtypes(weights, {name: tensor.dtype for name, tensor in module.state_dict().items()})
        module.load_state_dict(weights)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{problem}: {shown(error, 300)}") from error
