"""The optimiser and the averaged weights.

AdamW is torch's. Ours are the learning-rate curve (linear warm-up, then constant, or down to zero as half a cosine or a
line) and the flat names `<parameter>.<slot>`, by which the state is a safetensors file.

`Ema` is an exponential moving average of weights, with a half-life in images:

    average <- decay * average + (1 - decay) * weights,   decay = 0.5 ** (rows / halflife)

Early on the half-life is at most RAMP times the images seen so far, so that the average is not dominated by the
initial weights (the ramp of Karras et al., "Elucidating the design space", arXiv 2206.00364, code release).
Counting images rather than updates makes the average independent of the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from dualrate.config.ranges import BelowOne, Factor, FirstIterations, LossWeight, Range, Ranged


@dataclass(frozen=True)
class OptimConfig(Ranged):
    """AdamW and its learning rate."""

    lr: Factor = 1e-3
    """Peak learning rate."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    """How much of the moving averages of the gradient and of its square an iteration keeps."""
    eps: Annotated[float, Range(1e-16, 1)] = 1e-8
    """Added to the root of the averaged square."""
    weight_decay: LossWeight = 0.0
    """Times the learning rate: the share of every weight that an iteration takes away."""
    warmup: FirstIterations = 500
    """Iterations of linear warm-up."""
    decay: Literal["none", "cosine", "linear"] = "none"
    """After the warm-up: none stays at the peak; cosine, half a wave, and linear, a line, fall to 0 at the last
    iteration."""
    decay_seconds: Annotated[float, Range(0, 1_000_000_000, above=True)] | None = None
    """Seconds of training, summed over resumes, in which the rate falls to 0 instead, and which end it: where time is
    given and not iterations, as on a machine that is rented. Two such runs differ."""
    clip: Annotated[float, Range(0, math.inf, above=True)] = 1.0
    """Largest global norm of the gradient; inf for no clipping."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay_seconds is not None and self.decay == "none":
            raise ValueError(
                f"got {self.decay_seconds:g} seconds of decay, and a rate that stays: add --fit.optim.decay cosine"
            )


def lr_at(config: OptimConfig, iteration: int, total: int, seconds: float) -> float:
    """The learning rate of iteration `iteration` (from 0) of `total`, after so many seconds of training."""
    warm = min((iteration + 1) / config.warmup, 1.0) if config.warmup else 1.0
    if config.decay == "none":
        return config.lr * warm
    if config.decay_seconds is not None:  # in which the warm-up is
        progress = seconds / config.decay_seconds
    else:
        progress = max(iteration - config.warmup, 0) / max(total - config.warmup, 1)
    progress = min(progress, 1.0)
    if config.decay == "linear":
        return config.lr * warm * (1 - progress)
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * progress))


def build(parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over named parameters, in torch's fused kernel: only that one can leave out a step on the device."""
    return torch.optim.AdamW(
        list(parameters.values()),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_rates(optimizer: torch.optim.Optimizer, lr: float, rates: Mapping[nn.Parameter, float]) -> None:
    """The learning rates of the next step: `lr`, times the factor of each parameter that `rates` names.

    Parameters of one factor make one group. An optimiser's state is each parameter's own, so a group may change at any
    step.
    """
    settings = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    groups: dict[float, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            groups.setdefault(rates.get(parameter, 1.0), []).append(parameter)
    optimizer.param_groups[:] = [
        {**settings, "params": parameters, "lr": lr * factor} for factor, parameters in groups.items()
    ]


def step(optimizer: torch.optim.AdamW, unless: Tensor) -> None:
    """One step, left out where `unless`, (), is not 0: weights and state then stay as they are, and nothing waits."""
    optimizer.found_inf = unless.float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()


def state_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state as `<parameter>.<slot>` tensors; parameters that never had a gradient have none."""
    return {
        f"{name}.{slot}": value
        for name, parameter in parameters.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Make tensors of `state_tensors` the optimiser's, out of `tensors`; torch moves each to its parameter's device.

    Each gets its parameter's memory layout: the fused kernels walk through both in memory order, whatever the strides.
    """
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    place = {id(parameter): index for index, parameter in enumerate(held)}
    position = {name: place[id(parameter)] for name, parameter in parameters.items()}
    state: dict[int, dict[str, Tensor]] = {}
    for key in tuple(tensors):
        value = tensors.pop(key)
        name, _, slot = key.rpartition(".")
        if name not in position:
            raise ValueError(f'optimiser state "{key}" belongs to no parameter of this phase; was the network changed?')
        like = parameters[name]
        if value.shape == like.shape and value.stride() != like.stride():
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.setdefault(position[name], {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


RAMP = 0.05


class Ema:
    """The average of named live tensors, which are read at every update and never replaced.

    named:    name -> live tensor (parameters, or floating buffers)
    halflife: in images
    """

    def __init__(self, named: Mapping[str, Tensor], halflife: float) -> None:
        if halflife <= 0:
            raise ValueError(f"got an EMA half-life of {halflife} images; it must be above 0")
        self.names = tuple(named)
        self.live = [tensor.detach() for tensor in named.values()]
        self.average = [tensor.clone() for tensor in self.live]
        self.halflife = halflife
        self.images = 0

    @torch.no_grad()
    def update(self, rows: int) -> None:
        """Fold in the current weights, `rows` images after the last update."""
        self.images += rows
        decay = 0.5 ** (rows / min(self.halflife, RAMP * self.images))
        torch._foreach_lerp_(self.average, self.live, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the live tensors hold the average; after it, whatever happened, the raw weights again."""
        raw = [tensor.clone() for tensor in self.live]
        try:
            self._put(self.average)
            yield
        finally:
            self._put(raw)

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.live, values)  # pyright: ignore[reportPrivateImportUsage, reportArgumentType]

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name."""
        return dict(zip(self.names, self.average, strict=True))

    def load(self, tensors: Mapping[str, Tensor], images: int) -> None:
        """Continue from saved averages and the number of images they have seen."""
        if set(tensors) != set(self.names):
            raise ValueError(f"averages of other weights: {sorted(set(tensors) ^ set(self.names))[:5]} do not match")
        for name, average in zip(self.names, self.average, strict=True):
            average.copy_(tensors[name])
        self.images = images
