"""Dual-Rate Diffusion (arXiv 2605.18190) as its authors describe it, of any dual-rate experiment of U-ViTs.

features       concatenated with the light network's own activations, and projected (networks/concatenated.py)
light network  at every step: the encoder has no head, so there is no x_hat of its own to train, use or hand over
heavy calls    on an even grid from t = 1, in training (tau = ceil(t H) / H) and in plans
context        dropped with p = 0.5
sampler        ancestral, in equal steps of t, where no other is named
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dualrate.experiment.experiment import Experiment
from dualrate.experiment.summary import networks_line, on_paper
from dualrate.methods.times import TimeSampler
from dualrate.networks.concatenated import concatenated
from dualrate.networks.sid2 import with_sid2


def as_published(experiment: Experiment) -> Experiment:
    """A dual-rate experiment in the paper's form (module docstring); sizes of networks, data and training stay.

    Raises ValueError for networks other than two U-ViTs that see states alone, and for another method than denoising.
    """
    networks, times = experiment.networks, getattr(experiment.method, "times", None)
    if tuple(networks.configs) != ("encoder", "light") or not getattr(times, "ages", False):
        raise ValueError(
            f"the paper's form is of two networks that see states alone, trained by denoising; {experiment.name} is "
            f"{networks.kind} trained by {type(experiment.method).__name__}: name a recipe such as cifar10-dual, and "
            "no --method"
        )
    light = concatenated(networks.configs["light"], experiment.name)
    encoder = networks.configs["encoder"].with_head(False)
    return replace(
        experiment,
        name=f"{experiment.name}-as-paper",
        networks=replace(networks, encoder=encoder, light=light),  # pyright: ignore[reportArgumentType]
        method=replace(experiment.method, times=TimeSampler(times.heavy, dropout=0.5, phase=0)),  # pyright: ignore
    )


def as_sid2(experiment: Experiment) -> Experiment:
    """An experiment whose U-ViTs are SiD2's (networks/sid2.py). Raises ValueError for one that has none."""
    networks: Any = experiment.networks
    configs = {name: with_sid2(config) for name, config in networks.configs.items()}
    theirs = {name: config for name, config in configs.items() if config is not None}
    if not theirs:
        raise ValueError(f"{experiment.name} has no U-ViT: name a recipe of some, for example cifar10-heavy")
    return replace(experiment, name=f"{experiment.name}-as-sid2", networks=replace(networks, **theirs))


def listed_costs(*forms: Experiment) -> str:
    """Lines with name, parameters and multiply-adds of each experiment."""
    return "\n".join(f"{form.name}\n{networks_line(*on_paper(form))}" for form in forms)
