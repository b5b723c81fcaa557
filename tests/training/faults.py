"""A training process that dies on cue, for test_faults.py. Children are forks, which have all that is imported here."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch._dynamo  # an optimiser loads it, which took each child most of a second

from dualrate.diffusion.context import Batch
from dualrate.diffusion.random import Draws
from dualrate.system import folders
from dualrate.training.loop import fit
from dualrate.training.method import Loss
from training.toy import CONFIG, Points, Toy

context = multiprocessing.get_context("fork")


class Plan:
    """Calls `act` at the `when`-th event; events are named points of a checkpoint's writing and "loss" evaluations.

    point: counts only events of this name; None: all
    """

    def __init__(self, when: int, act: Callable[[], None], point: str | None = None) -> None:
        self.left, self.act, self.point = when, act, point

    def reached(self, point: str) -> None:
        if self.point in (None, point):
            self.left -= 1
            if self.left == 0:
                self.act()


class File:
    """A progress that appends its notes to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def update(self, iteration: int, total: int, logs: object) -> None:
        pass

    def note(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text + "\n")

    def close(self) -> None:
        pass


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def warn() -> None:
    """As Slurm does ahead of its time limit."""
    os.kill(os.getpid(), signal.SIGUSR1)


def terminate_twice() -> None:
    terminate()
    terminate()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def hang() -> None:
    time.sleep(300)


def hang_aloud(file: Path) -> None:
    """Write what the process says from then on to a file."""
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 2)
    hang()


def full_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))


def free_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def settled(act: Callable[[], None]) -> None:
    """Acts once the checkpoint that is being written in the background is written."""
    for thread in threading.enumerate():
        if thread.name == "saving":
            thread.join()
    act()


class Watched(Toy):
    """A toy whose loss is an event."""

    plans: tuple[Plan, ...] = ()

    def loss(self, name: str, batch: Batch, iteration: int, draws: Draws) -> Loss:
        for plan in self.plans:
            plan.reached("loss")
        return super().loss(name, batch, iteration, draws)


def train(run_dir: Path, *plans: Plan, iterations: int = CONFIG.iterations) -> None:
    """Train the toy with faults; the process exits with 3 if a signal stopped it cleanly. Without: in this process."""
    torch.set_num_threads(1)
    method = Watched(("a", "b", "a"))
    method.plans = plans

    def reached(point: str) -> None:
        for plan in plans:
            plan.reached(point)

    config, notes = replace(CONFIG, iterations=iterations), File(run_dir.with_suffix(".notes"))
    with mock.patch.object(folders, "fault_point", reached):
        result = fit(method, Points(), config, run_dir, identity={}, progress=notes)
    if result.stopped == "signal":
        os._exit(3)


def start(run_dir: Path, *plans: Plan, iterations: int = CONFIG.iterations) -> multiprocessing.process.BaseProcess:
    child = context.Process(target=train, args=(run_dir, *plans), kwargs={"iterations": iterations}, daemon=True)
    child.start()
    return child


def run(run_dir: Path, *plans: Plan, iterations: int = CONFIG.iterations) -> int:
    """Exit code of a child that trains; negative: the signal it died of."""
    child = start(run_dir, *plans, iterations=iterations)
    child.join(60)
    assert child.exitcode is not None
    return child.exitcode
