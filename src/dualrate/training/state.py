"""All that changes during a run, and its form in a checkpoint.

AdamW is torch's. Its state is saved as tensors named `<parameter>.<slot>`, so that it is a safetensors file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.system.files import check_dtypes
from dualrate.training.checkpoint import Checkpoint
from dualrate.training.config import FitConfig, OptimConfig
from dualrate.training.ema import Ema
from dualrate.training.log import RunningMeans
from dualrate.training.method import Phase


class PhaseState:
    """One phase's parameters by name, in the networks' order, with their optimiser and average.

    ema: None for the parameters of auxiliaries, which are not sampled from
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig, ema: Ema | None) -> None:
        self.parameters, self.ema, self.skipped_in_a_row = parameters, ema, 0
        self.optimizer = torch.optim.AdamW(
            list(parameters.values()),
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,  # only this kernel can leave out a step on the device
        )

    def update(self, lr: float, rows: int, *, unless: Tensor) -> None:
        """One optimiser step from the gradients, which are gone then, and the average after it.

        unless: (); if it is not 0 the step is skipped, and only the average moves on
        """
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.found_inf = unless.float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(rows)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimiser's state by `<parameter>.<slot>`; parameters that never had a gradient have none."""
        slots = {name: self.optimizer.state.get(parameter, {}) for name, parameter in self.parameters.items()}
        return {f"{name}.{slot}": value for name, values in slots.items() for slot, value in values.items()}

    def load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        """Continue from tensors of `optimizer_tensors`, which are taken out of the dictionary.

        Each gets its parameter's memory layout: the fused kernels walk through both in memory order, whatever the
        strides. torch moves it to the parameter's device.
        """
        position = {name: i for i, name in enumerate(self.parameters)}
        state: dict[int, dict[str, Tensor]] = {}
        for key in tuple(tensors):
            value = tensors.pop(key)
            name, _, slot = key.rpartition(".")
            if name not in position:
                raise ValueError(f'optimiser state "{key}" is of no parameter of this phase; was the network changed?')
            like = self.parameters[name]
            check_dtypes({key: value}, {key: torch.float32 if slot == "step" else like.dtype})
            if value.shape == like.shape and value.stride() != like.stride():
                value = torch.empty_like(like, dtype=value.dtype).copy_(value)
            state.setdefault(position[name], {})[slot] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


class RunState:
    """Networks, phases and counters of a run.

    iteration: iterations done; seconds: of training; skipped: updates not made because something was not finite
    """

    def __init__(self, networks: nn.ModuleDict, auxiliaries: nn.ModuleDict, config: FitConfig) -> None:
        if shared := networks.keys() & auxiliaries.keys():
            raise ValueError(f"networks and auxiliaries both have {sorted(shared)}: their names must differ")
        self.networks, self.auxiliaries, self.config = networks, auxiliaries, config
        self.parameters = dict(networks.named_parameters()) | dict(auxiliaries.named_parameters())
        self.phases: dict[str, PhaseState] = {}
        self.iteration, self.seconds, self.skipped = 0, 0.0, 0
        self.precision: str = config.precision
        self.running_means = RunningMeans()

    def enter(self, phase: Phase) -> PhaseState:
        """The state of `phase`, made at its first update. Raises ValueError for parameters that are not the run's."""
        ids = {id(parameter) for parameter in phase.parameters}
        mine = {name: parameter for name, parameter in self.parameters.items() if id(parameter) in ids}
        if len(mine) != len(ids):
            raise ValueError(f'phase "{phase.name}" has parameters outside of `networks` and `auxiliaries`')
        state = self.phases.get(phase.name) or self._begin(phase.name, mine)
        if state.parameters.keys() != mine.keys():
            raise ValueError(f'phase "{phase.name}" has other parameters than before; give it another name')
        return state

    def _begin(self, name: str, parameters: Mapping[str, nn.Parameter]) -> PhaseState:
        sampled = {key: p for key, p in parameters.items() if key.partition(".")[0] in self.networks}
        ema = Ema(sampled, self.config.ema_halflife) if sampled else None
        self.phases[name] = PhaseState(parameters, self.config.optim, ema)
        return self.phases[name]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the networks hold their averages, in evaluation mode."""
        modes = {module: module.training for module in self.networks.modules()}
        with ExitStack() as stack:
            for phase in self.phases.values():
                if phase.ema is not None:
                    stack.enter_context(phase.ema.swapped())
            self.networks.eval()
            try:
                yield
            finally:
                for module, training in modes.items():
                    module.training = training

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Tensors of a checkpoint, by file."""
        tensors: dict[str, Mapping[str, Tensor]] = {"model": self.networks.state_dict()}
        if self.auxiliaries:
            tensors["auxiliaries"] = self.auxiliaries.state_dict()
        for name, phase in self.phases.items():
            tensors[f"optim-{name}"] = phase.optimizer_tensors()
            if phase.ema is not None:
                tensors[f"ema-{name}"] = phase.ema.average
        return tensors

    def record(self) -> dict[str, Any]:
        """The JSON-able rest of a checkpoint."""
        return {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "precision": self.precision,
            "phases": {
                name: {
                    "parameters": list(phase.parameters),
                    "images": 0 if phase.ema is None else phase.ema.images,
                    "skipped_in_a_row": phase.skipped_in_a_row,
                }
                for name, phase in self.phases.items()
            },
            "meter": self.running_means.sums,
        }

    def restore(self, saved: Checkpoint) -> None:
        """Continue from a checkpoint of the same networks, whose tensors are freed one after the other."""
        record = saved.state
        for module, stem in ((self.networks, "model"), (self.auxiliaries, "auxiliaries")):
            tensors = saved.tensors.pop(stem, {})
            check_dtypes(tensors, {name: tensor.dtype for name, tensor in module.state_dict().items()})
            module.load_state_dict(tensors)
        for name, counts in record["phases"].items():
            averages = saved.tensors.pop(f"ema-{name}", {})
            names = counts.get("parameters", averages)  # the first checkpoints of format 1 do not list them
            phase = self._begin(name, {key: p for key, p in self.parameters.items() if key in names})
            phase.load_optimizer(saved.tensors.pop(f"optim-{name}"))
            if phase.ema is not None:
                phase.ema.load(averages, counts["images"])
            phase.skipped_in_a_row = counts["skipped_in_a_row"]
        self.iteration, self.seconds, self.skipped = record["iteration"], record["seconds"], record["skipped"]
        self.precision, self.running_means = record["precision"], RunningMeans(record["meter"])


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Only the finite values: JSON knows no others."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
