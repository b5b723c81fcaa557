"""Processes that train together, for test_together.py: forks, as those of faults.py."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import launched
import torch
from contracts.test_method_contracts import CASES, images, method_of, prepared

from dualrate.diffusion.context import Batch
from dualrate.methods import moment_matching
from dualrate.system.launch import Lost
from dualrate.training.config import FitConfig, OptimConfig
from dualrate.training.distributed import Share, World, launched_world
from dualrate.training.loop import fit
from dualrate.training.method import Method
from training.faults import File, Plan, Watched, context
from training.toy import CONFIG, Points

WARMUP = 3
LOST = 76  # exit code of a process that lost the others

Work = Callable[[World], int | None]


class Images:
    """Batch k of the contracts' images, those rows of it that are asked for."""

    def __init__(self, batch_size: int, rows: torch.Tensor, dtype: torch.dtype = torch.float64) -> None:
        self.batch_size, self.rows, self.dtype = batch_size, rows, dtype

    def batch(self, iteration: int) -> Batch:
        return images(self.batch_size, iteration * self.batch_size, self.dtype)[self.rows]


def train(case: str, run_dir: Path, iterations: int, world: World, batch_size: int, micro_batch: int | None) -> None:
    """A case of the methods' contracts, in double precision; every iteration is logged."""
    config = FitConfig(
        iterations,
        batch_size=batch_size,
        micro_batch=micro_batch,
        precision="float32",  # no autocast
        optim=OptimConfig(warmup=WARMUP),
        log_every=1,
    )
    batches = Images(batch_size, Share(batch_size, micro_batch, world).rows)
    with mock.patch.object(moment_matching, "PRECONDITIONING", 2):
        method = method_of(CASES[case])
    fit(method, batches, config, run_dir, identity={}, world=world)


@dataclass(frozen=True)
class InBfloat16:
    """Trains, under autocast, a dual-rate model whose parts start from runs; one checkpoint midway, one at the end."""

    run: Path

    def method(self) -> Method:
        return prepared(CASES["denoising, from runs"], fresh=True).method

    def __call__(self, world: World) -> None:
        config = FitConfig(
            4,
            batch_size=7,
            micro_batch=5,
            precision="bfloat16",
            optim=OptimConfig(warmup=WARMUP),
            log_every=1,
            checkpoint_every=2,
        )
        batches = Images(7, Share(7, 5, world).rows, torch.float32)
        fit(self.method(), batches, config, self.run, identity={}, world=world)


@dataclass(frozen=True)
class Toys:
    """Trains the toy; exits with 75 if a signal stopped it.

    act, rank, when: what process `rank` does when it has reached its `when`-th loss
    nan:             a sample whose data is not finite; none by default
    """

    run_dir: Path
    act: Callable[[], None] | None = None
    rank: int = 1
    when: int = 0
    nan: int = -1
    iterations: int = CONFIG.iterations

    def __call__(self, world: World) -> int:
        config = replace(CONFIG, iterations=self.iterations, micro_batch=None)
        method = Watched(("a", "b"), dropout=0)
        batches = SomePoints(Share(config.batch_size, None, world).rows, self.nan)
        if self.act is not None and world.rank == self.rank:
            method.plans = (Plan(self.when, self.act),)
        notes = File(self.run_dir.with_suffix(f".notes{world.rank}"))
        try:
            result = fit(method, batches, config, self.run_dir, identity={}, progress=notes, world=world)
        except Lost as error:
            notes.note(str(error))
            raise
        return 75 if result.stopped == "signal" else 0


@dataclass(frozen=True)
class SomePoints:
    """The toy's batches, those rows that are asked for; one of them may not be finite."""

    rows: torch.Tensor
    nan: int

    def batch(self, iteration: int) -> Batch:
        batch = Points().batch(iteration)[self.rows]
        return replace(batch, x=torch.where((batch.sample == self.nan)[:, None], torch.nan, batch.x))


@dataclass(frozen=True)
class InTurn:
    works: tuple[Work, ...]

    def __call__(self, world: World) -> None:
        for work in self.works:
            assert not work(world)


def _process(work: Work, rank: int, size: int, port: int, timeout: float) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["DUALRATE_TIMEOUT"] = str(timeout)
    try:
        with launched_world(torch.device("cpu")) as world:
            code = work(world) or 0
    except Lost:
        code = LOST
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def start(work: Work, size: int = 2, timeout: float = 60) -> list:
    """Processes that do the same work. timeout: seconds that they wait for each other."""
    port = launched.free_port()
    started = [
        context.Process(target=_process, args=(work, rank, size, port, timeout), daemon=True) for rank in range(size)
    ]
    for process in started:
        process.start()
    return started


ended = partial(launched.ended, seconds=280)
