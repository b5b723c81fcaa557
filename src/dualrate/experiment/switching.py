"""One model of two runs: one for steps without a context, the other for the rest (denoisers/duodiff.py)."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from dualrate.denoisers.duodiff import Switched
from dualrate.diffusion.context import Reuse
from dualrate.experiment.model import Model


def switched(heavy: Model, light: Model) -> Model:
    """Model that calls `light` where a step has no context, `heavy` at the others; codec and process are theirs both.

    Raises ValueError for models that differ in shape, classes, process, latents or arithmetic, for distilled students,
    which know only their own steps, for a dual-rate decoder as the light model, and what `Switched` raises.
    """
    cannot = f"{light.name} cannot make steps of {heavy.name}"
    shared = [
        {
            "images": model.shape,
            "classes": model.num_classes,
            "null class": model.experiment.networks.null_class,
            "process": model.process,
            "codec": model.experiment.codec.fingerprint,
            "latents": model.experiment.condition.codec.fingerprint,
            "arithmetic": model.experiment.networks.bfloat16_weights,
        }
        for model in (heavy, light)
    ]
    if differing := [what for what, mine in shared[0].items() if shared[1][what] != mine]:
        raise ValueError(f"{cannot}: they differ in {', '.join(differing)}; name two models trained alike")
    for model in (heavy, light):
        if not model.serves.any_plan:
            raise ValueError(f"{cannot}: {model.name} is a distilled student, which knows only its steps")
    if light.denoiser.reuse is Reuse.FREE and light.call_cost.heavy:
        raise ValueError(f"{cannot}: it reads its latent by a heavy call; name a decoder of a single network")
    try:
        denoiser = Switched(light.denoiser, heavy.denoiser)
    except ValueError as error:
        raise ValueError(f"{cannot}: {error}") from error
    networks = nn.ModuleDict({**heavy.networks, **{f"light {name}": net for name, net in light.networks.items()}})
    return replace(
        heavy,
        name=f"{heavy.name} after {light.name}",
        networks=networks,
        denoiser=denoiser,
        weights_hash=f"{heavy.weights_hash} after {light.weights_hash}",
        called_by=None if light.path is None else str(light.path.resolve()),
    )
