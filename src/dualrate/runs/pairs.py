"""Two runs as one model: one for steps without a context, the other for the rest (denoisers/switched.py)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from dualrate.denoisers.switched import Switched
from dualrate.diffusion.values import Reuse
from dualrate.experiments.experiment import Model
from dualrate.sampling.cost import varies


def switched(heavy: Model, light: Model) -> Model:
    """`light` where a step has no context, `heavy` at the others; codec and process are theirs both.

    Raises ValueError for models of different shapes, classes, processes or latents, early exits, a distilled student,
    which knows its own steps alone, a dual-rate decoder as the light one, and what `Switched` raises.
    """
    for what, (mine, other) in {
        "images": (heavy.shape, light.shape),
        "classes": (heavy.num_classes, light.num_classes),
        "null class": (heavy.experiment.networks.null_class, light.experiment.networks.null_class),
        "process": (heavy.process, light.process),
        "codec": tuple(model.experiment.codec.fingerprint or "none" for model in (heavy, light)),
        "latents": tuple(model.experiment.method.latents.fingerprint or "none" for model in (heavy, light)),
        "arithmetic": tuple(model.experiment.networks.bfloat16_weights for model in (heavy, light)),
    }.items():
        if mine != other:
            raise ValueError(
                f"{light.name} cannot make steps of {heavy.name}: both must have the same {what}, got {other} and "
                f"{mine}; name two models trained alike"
            )
    for model in (heavy, light):
        if not model.serves.any_plan:
            raise ValueError(
                f"{model.name} is a distilled student, which knows its own steps alone and makes none for another "
                "model: name a model that was trained at every noise level"
            )
        if varies(model.denoiser):
            raise ValueError(
                f"{model.name} has early exits, so it is a cheaper network at the steps that allow it by itself: name "
                "the run that they were trained beside"
            )
    if light.denoiser.reuse is Reuse.FREE and light.call_cost.heavy:
        raise ValueError(
            f"{light.name} sees its latent through a heavy call and makes no step without one: name a decoder of a "
            "single network"
        )
    try:
        denoiser = Switched(light.denoiser, heavy.denoiser)
    except ValueError as error:
        raise ValueError(f"{light.name} cannot make steps of {heavy.name}: {error}") from error
    networks = nn.ModuleDict({**heavy.networks, **{f"light {name}": net for name, net in light.networks.items()}})
    return replace(
        heavy,
        name=f"{heavy.name} after {light.name}",
        networks=networks,
        denoiser=denoiser,
        weights_hash=f"{heavy.weights_hash} after {light.weights_hash}",
        called_by=None if light.path is None else str(light.path.resolve()),
    )
