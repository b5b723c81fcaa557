"""All that changes during a run, and its form in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dualrate.training import optim
from dualrate.training.checkpoint import Checkpoint
from dualrate.training.distributed import World
from dualrate.training.log import RunningMeans
from dualrate.training.method import Phase
from dualrate.training.optim import Ema


class PhaseState:
    """One phase's parameters by name, in the networks' order, with their optimiser and average.

    ema: None for the parameters of auxiliaries, which nobody samples from
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: optim.OptimConfig, ema: Ema | None) -> None:
        self.parameters = parameters
        self.optimizer = optim.build(parameters, config)
        self.clip = config.clip
        self.ema = ema
        self.skipped_in_a_row = 0

    def clip_gradients(self) -> Tensor:
        """Scale the gradients down to the configured norm; returns (), the norm they had."""
        return nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)

    def update(self, lr: float, rates: Mapping[nn.Parameter, float], rows: int, *, unless: Tensor) -> None:
        """One optimiser step from the gradients, which are gone then, and the average after it.

        rates: factors of `lr`; unless: (), where it is not 0 the weights stay, and the average counts them once more
        """
        optim.set_rates(self.optimizer, lr, rates)
        optim.step(self.optimizer, unless)
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(rows)


class RunState:
    """Networks, phases and counters of a run.

    iteration: iterations done; seconds: of training; skipped: updates not made because something was not finite
    """

    def __init__(
        self,
        networks: nn.ModuleDict,
        auxiliaries: nn.ModuleDict,
        config: optim.OptimConfig,
        ema_halflife: int,
        precision: str,
    ) -> None:
        if shared := networks.keys() & auxiliaries.keys():
            raise ValueError(f"networks and auxiliaries both have {sorted(shared)}: their names must differ")
        self.networks, self.auxiliaries = networks, auxiliaries
        self._config, self._ema_halflife = config, ema_halflife
        self.parameters = dict(networks.named_parameters()) | dict(auxiliaries.named_parameters())
        self.phases: dict[str, PhaseState] = {}
        self.iteration, self.seconds, self.skipped = 0, 0.0, 0
        self.precision = precision
        self.running_means = RunningMeans()

    def enter(self, phase: Phase) -> PhaseState:
        """The state of `phase`, made at its first update. Raises ValueError for parameters that are not the run's."""
        ids = {id(parameter) for parameter in phase.parameters}
        mine = {name: parameter for name, parameter in self.parameters.items() if id(parameter) in ids}
        if len(mine) != len(ids):
            raise ValueError(
                f'phase "{phase.name}" updates parameters outside of `networks` and `auxiliaries`; '
                "put their module there"
            )
        if phase.name not in self.phases:
            self.phases[phase.name] = self._begin(mine)
        if self.phases[phase.name].parameters.keys() != mine.keys():
            raise ValueError(f'phase "{phase.name}" has other parameters than before; give it another name')
        return self.phases[phase.name]

    def _begin(self, parameters: Mapping[str, nn.Parameter]) -> PhaseState:
        sampled = {name: p for name, p in parameters.items() if name.partition(".")[0] in self.networks}
        return PhaseState(parameters, self._config, Ema(sampled, self._ema_halflife) if sampled else None)

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

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, by file."""
        tensors: dict[str, dict[str, Tensor]] = {"model": self.networks.state_dict()}
        if self.auxiliaries:
            tensors["auxiliaries"] = self.auxiliaries.state_dict()
        for name, phase in self.phases.items():
            tensors[f"optim-{name}"] = optim.state_tensors(phase.optimizer, phase.parameters)
            if phase.ema is not None:
                tensors[f"ema-{name}"] = phase.ema.tensors()
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
        """Continue from a checkpoint of the same networks, whose tensors are let go one after the other."""
        record = saved.state
        for networks, file in ((self.networks, "model"), (self.auxiliaries, "auxiliaries")):
            networks.load_state_dict(saved.tensors.pop(file, {}))
        for name, counts in record["phases"].items():
            averages = saved.tensors.pop(f"ema-{name}", {})
            names = set(counts.get("parameters", averages))  # checkpoints of before there were auxiliaries do not list
            phase = self._begin({key: parameter for key, parameter in self.parameters.items() if key in names})
            optim.load_state_tensors(phase.optimizer, phase.parameters, saved.tensors.pop(f"optim-{name}"))
            if phase.ema is not None:
                phase.ema.load(averages, counts["images"])
            phase.skipped_in_a_row = counts["skipped_in_a_row"]
            self.phases[name] = phase
        self.iteration, self.seconds, self.skipped = record["iteration"], record["seconds"], record["skipped"]
        self.precision, self.running_means = record["precision"], RunningMeans(record["meter"])


def surroundings(device: torch.device, world: World) -> dict[str, Any]:
    """What bit-for-bit resuming depends on."""
    here = {"torch": str(torch.__version__), "threads": torch.get_num_threads(), "device": device.type}
    return here | {"processes": world.size}


def note_changes(before: Mapping[str, Any], now: Mapping[str, Any], note: Callable[[str], None]) -> None:
    changes = [f"{key} was {before.get(key)}, is {value}" for key, value in now.items() if before.get(key) != value]
    if changes:
        note(f"resuming, but not bit for bit: {'; '.join(changes)}")


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Container[str], places: Mapping[str, str]
) -> list[str]:
    """Lines `key: before -> now` for every leaf that differs, except keys in `free`.

    places: of a key that says where something is, the key that says what it is: where that is the same, it may differ
    """
    old, new = _leaves(before), _leaves(now)
    moved = {place for place, what in places.items() if old.get(what) and old.get(what) == new.get(what)}
    keys = [key for key in old | new if key not in free and key not in moved]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Only the finite values: JSON knows no others."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
