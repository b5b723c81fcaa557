"""Timing of alternatives in turn, A B A B ..., so that whatever else runs on the machine falls on all of them alike.

A quotient is taken within each round; reported are its median and its quartiles over the rounds. Wall time is what a
user waits for, CPU time (of the process, all threads) what depends less on other work; on a GPU only wall time counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

Rounds = dict[str, list["Seconds"]]


@dataclass(frozen=True)
class Seconds:
    """One call's duration."""

    wall: float
    cpu: float

    def __sub__(self, start: Seconds) -> Seconds:
        return Seconds(self.wall - start.wall, self.cpu - start.cpu)


@dataclass(frozen=True)
class Spread:
    """The median of a quantity over rounds, and its quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @staticmethod
    def of(values: list[float]) -> Spread:
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        return Spread(float(median), float(low), float(high))


def synchronize(device: torch.device) -> None:
    """Waits for a GPU's queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stamp(device: torch.device) -> Seconds:
    """The time, once the device has done what it was asked for."""
    synchronize(device)
    return Seconds(time.perf_counter(), time.process_time())


def once(call: Callable[[], object], device: torch.device) -> Seconds:
    """The duration of a call, until its results are there."""
    start = stamp(device)
    call()
    return stamp(device) - start


def interleaved(
    calls: Mapping[str, Callable[[], object]], device: torch.device, *, seconds: float, least: int = 3
) -> Rounds:
    """Durations of each call, in rounds that run every call once: one round to warm up, then `least` and `seconds`."""
    for call in calls.values():
        call()
    rounds: Rounds = {name: [] for name in calls}
    start = time.perf_counter()
    while len(next(iter(rounds.values()))) < least or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            rounds[name].append(once(call, device))
    return rounds


def quotient(rounds: Rounds, top: str, bottom: str, scale: float = 1.0) -> dict[str, Spread]:
    """scale x top / bottom within each round, in wall and in CPU time."""
    pairs = list(zip(rounds[top], rounds[bottom], strict=True))
    return {
        "wall": Spread.of([scale * a.wall / b.wall for a, b in pairs]),
        "cpu": Spread.of([scale * a.cpu / b.cpu for a, b in pairs]),
    }
