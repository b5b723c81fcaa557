"""Experiments and models in a few lines, for whoever prints them."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

import torch

from dualrate.config.ranges import many
from dualrate.denoisers.catalogue import denoiser_named
from dualrate.denoisers.denoiser import Denoiser
from dualrate.sampling.cost import CallCost, call_cost, in_macs


def on_paper(experiment: Any, called_by: str | None = None) -> tuple[dict[str, int], CallCost | None]:
    """Parameters of each network, and multiply-adds of its calls: on torch's meta device, without memory or arithmetic.

    called_by: the name of another denoiser. Nothing of networks that need numbers to be built
    """
    with suppress(Exception), warnings.catch_warnings():  # whatever a network of a user's own raises there
        warnings.simplefilter("ignore")
        with torch.random.fork_rng([]), torch.device("meta"):
            networks, denoiser = experiment.parts()
        if called_by is not None:
            denoiser = denoiser_named(called_by)(denoiser, experiment.process)
        parameters = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
        return parameters, cost_of_calls(experiment, denoiser, "meta")
    return {}, None


def cost_of_calls(experiment: Any, denoiser: Denoiser, device: torch.device | str) -> CallCost | None:
    """Multiply-adds of calls of a denoiser; None where a network has not all that it needs for them."""
    label = 0 if experiment.num_classes else None
    with suppress(Exception):
        shape = experiment.process.state_shape(experiment.shape)
        return call_cost(denoiser, shape, label, device, given=experiment.networks.given)
    return None


def title(experiment: Any) -> str:
    """Name and kind of an experiment, and what its samples are."""
    classes = f", classes: {experiment.num_classes}" * bool(experiment.num_classes)
    condition = "" if experiment.networks.given is None else f", condition: {type(experiment.condition).__name__}"
    return f"{experiment.name}: {experiment.networks.kind}, {experiment.noun}s {experiment.shape}{classes}{condition}"


def networks_line(parameters: dict[str, int], cost: CallCost | None) -> str:
    """Parameters of networks, and multiply-adds of their calls on a sample."""
    calls = ""
    if cost is not None:
        heavy = f"{in_macs(cost.heavy)} a heavy call, " * bool(cost.heavy)
        calls = f"; {heavy}{in_macs(cost.light)} a {'light ' * bool(cost.heavy)}call"
    sizes = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
    return f"  networks  parameters: {sizes or 'unknown'}{calls}"


def training_line(experiment: Any, iteration: int | None = None) -> str:
    """Method and data of an experiment, and how long it trains. iteration: that a model is from"""
    fit, source = experiment.fit, experiment.data.source
    length = f"{fit.limit:g} s" if fit.iterations is None else many(fit.iterations, "iteration")
    at = "" if iteration is None else f"iteration {iteration:,}, of "
    how = f"{at}{length}, batches of {fit.batch_size}, learning rate {fit.optim.lr:g}"
    whole = f"{type(experiment.method).__name__} on {source or 'no data yet'}: {how}"
    return f"  training  {'none here' if iteration == 0 and not source else whole}"


def stopped_early(experiment: Any, iteration: int) -> str:
    """A clause on a model of an iteration before the last of its training; empty where it is the last."""
    last = experiment.fit.iterations
    return f"this run stopped at iteration {iteration:,} of {last:,}" if last and 0 < iteration < last else ""


def sampling_line(experiment: Any, called_by: str | None = None) -> str:
    """Steps and heavy calls of an experiment's model, where no others are asked for."""
    if called_by is not None:
        return f"  sampling  called by {called_by}"
    plan = experiment.serves.default_plan()
    counts = plan.counts if plan.num_heavy < plan.num_steps else many(plan.num_steps, "step")
    return f"  sampling  {counts}, where no others are asked for"
