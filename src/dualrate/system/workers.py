"""Blocks of work: they go out one at a time and come back in their order.

Whoever has blocks of work takes a `Mapper`: `in_turn` does them here, one after the other, a team in the processes that
were launched with this one (launchers/team.py). Blocks do not depend on the number of processes, and each process has
one thread: so the results are bit for bit those of one process with one thread.

A job is pickled once: a model as the directory to load it from (runs/store.py), anything else by value.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

Block = TypeVar("Block")
Result = TypeVar("Result")
REFUSALS = (ValueError, OSError, MemoryError, FloatingPointError)  # kinds that an error keeps on its way to the parent


class Mapper(Protocol):
    """Does a job for every block."""

    def __call__(self, job: Callable[[Block], Result], blocks: Sequence[Block], /) -> Iterator[tuple[Block, Result]]:
        """Blocks with their results, in the order of the blocks. Raises what the job raises."""
        ...


def in_turn(job: Callable[[Block], Result], blocks: Sequence[Block], /) -> Iterator[tuple[Block, Result]]:
    """Do the blocks in this process, one after the other."""
    for block in blocks:
        yield block, job(block)


class TeamMapper(Mapper, Protocol):
    """The processes that were launched with this one, which leads them; this one among their number."""

    size: int
    device: str

    def stream(self, job: Callable[[Block], Iterator[Result]], blocks: Sequence[Block], /) -> Iterator[Result]:
        """Yield what the job yields of every block, as it comes. Raises what the job raises."""
        ...


_led: TeamMapper | None = None


@contextmanager
def leading(team: TeamMapper) -> Iterator[None]:
    """Have every `mapper` within the block be this team."""
    global _led
    _led = team
    try:
        yield
    finally:
        _led = None


def streamed(mapper: Mapper, job: Callable[[Block], Iterator[Result]], blocks: Sequence[Block]) -> Iterator[Result]:
    """Yield what the job yields of every block: of several at a time by a team; else here, one after the other."""
    if _led is not None and mapper is _led:
        return _led.stream(job, blocks)
    return (item for block in blocks for item in job(block))


def share_of_time(device: torch.device) -> float:
    """Share of the time that this process alone would take: several have a thread each, or a GPU."""
    count = 1 if _led is None else _led.size
    return 1 / count if count == 1 or device.type == "cuda" else torch.get_num_threads() / count


def mapper(device: torch.device) -> Mapper:
    """The team that this process leads, which then works on devices of this kind; else `in_turn`.

    Raises ValueError for one GPU that was chosen by its number, for several processes.
    """
    if _led is None:
        return in_turn
    if _led.size > 1 and device.type == "cuda" and device.index:  # 0 is what is taken where none is named
        raise ValueError(f"every process has its GPU, got {device} for all: choose them by CUDA_VISIBLE_DEVICES")
    _led.device = device.type
    return _led


def unpacked(content: bytes) -> Any:
    """The value that `packed` was given, in a process that trusts the one that packed it."""
    return pickle.loads(content)


def packed(value: object) -> bytes:
    """The value as bytes, tensors by value: multiprocessing's shared memory is small in most containers.

    Raises ValueError for what cannot be sent.
    """
    try:
        return pickle.dumps(value)
    except ValueError:
        raise
    except Exception as error:  # whatever a class of the user's raises
        raise ValueError(f"this cannot be sent to another process ({error}): use one (drop --nproc)") from error


def portable(error: Exception) -> Exception:
    """The error as another process can raise it: of a kind that is kept, without arguments that it could not make."""
    kind = next((kind for kind in REFUSALS if isinstance(error, kind)), None)
    return RuntimeError(f"{type(error).__name__}: {error}") if kind is None else kind(str(error))
