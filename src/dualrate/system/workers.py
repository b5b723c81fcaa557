"""Worker processes: blocks of work go out one at a time and come back in their order.

Whoever has blocks of work takes a `Mapper`: `in_turn` does them here, one after the other, `Workers` in processes of
`concurrent.futures`, a team in those that were launched with this one (launchers/team.py). Blocks do not depend on the
number of workers, and each worker has one thread: so the results are bit for bit those of one process with one thread.
A worker that dies ends the work.

A worker is spawned, since a fork of a process with threads may hang. It runs on one core of the CPU, or on one of the
GPUs in turns. A job is pickled once, to a file that the workers read: a model as the directory to load it from
(runs/store.py), anything else by value. No worker is left when its parent is gone, however that ended.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol, TypeVar

import torch

from dualrate.system.device import keep_freed_memory, pick_device

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


def number_of_workers(workers: int | Literal["auto"], device: torch.device) -> int:
    """The number of workers, or of the team. Raises ValueError for workers beside a team.

    auto: one for each GPU, or for each thread of one process (src/dualrate_command.py)
    """
    if _led is not None and workers not in (1, "auto"):
        raise ValueError(f"--workers {workers}, but {_led.size} processes are started: drop --workers")
    if _led is not None:
        return _led.size
    processors = torch.cuda.device_count() if device.type == "cuda" else torch.get_num_threads()
    return processors if workers == "auto" else workers


def share_of_time(workers: int | Literal["auto"], device: torch.device) -> float:
    """Share of the time that this process alone would take: several have a thread each, or a GPU."""
    if (count := number_of_workers(workers, device)) == 1:
        return 1.0
    if device.type != "cuda":
        return torch.get_num_threads() / count
    return 1 / (count if _led is not None else min(count, torch.cuda.device_count()))


def mapper(workers: int | Literal["auto"], device: torch.device) -> AbstractContextManager[Mapper]:
    """A `Mapper` of that many workers, for a `with`; one is this process, or the team that it leads.

    Raises ValueError for several on one GPU that was chosen by its number, and for workers beside a team.
    """
    count = number_of_workers(workers, device)
    if count > 1 and device.type == "cuda" and device.index:  # 0 is what is taken where none is named
        raise ValueError(f"workers take the GPUs in turns, got {device} for all: choose them by CUDA_VISIBLE_DEVICES")
    if _led is not None:
        _led.device = device.type
        return nullcontext(_led)
    return nullcontext(in_turn) if count == 1 else Workers(count, device)


class Workers:
    """A `Mapper` of `count` processes, each started when there is a block for it, all stopped at the end of a `with`.

    device: as of `pick_device`; on "cuda", worker i takes GPU i modulo their number
    A script that uses it needs `if __name__ == "__main__":`, since every worker imports it.
    """

    def __init__(self, count: int, device: torch.device | str | None = None) -> None:
        self.count, self.device = count, (pick_device(None) if device is None else torch.device(device)).type
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, job: Callable[[Block], Result], blocks: Sequence[Block], /) -> Iterator[tuple[Block, Result]]:
        """See `Mapper`. Raises ValueError for a job that cannot be sent; ChildProcessError if a worker dies."""
        with TemporaryDirectory(prefix="dualrate-job-") as folder:
            file = Path(folder, "job")
            file.write_bytes(packed(job))
            try:
                yield from self._results(file, blocks)
            except BrokenProcessPool as error:
                self._stop()
                raise ChildProcessError(
                    "a worker died, as most do for lack of memory: use fewer (--workers); what was finished is kept"
                ) from error
            except BaseException:
                self._stop()
                raise

    def _results(self, file: Path, blocks: Sequence[Block]) -> Iterator[tuple[Block, Any]]:
        """Results in the order of blocks; at most two blocks a worker are begun, so that results do not pile up."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            started = context.Value("i", 0)
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (started, self.device))
        begun: deque[tuple[Block, Future[bytes]]] = deque()
        for block in blocks:
            begun.append((block, self._pool.submit(_do, file, packed(block))))
            if len(begun) == 2 * self.count:
                first, future = begun.popleft()
                yield first, unpacked(future.result())
        for block, future in begun:
            yield block, unpacked(future.result())

    def _stop(self) -> None:
        """Stop at once: a worker holds nothing that would be lost."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):  # from Python 3.14 on: kill_workers
                process.kill()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


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
        raise ValueError(f"this cannot be sent to a worker ({error}): use one process (--workers 1)") from error


def _begin(started: Any, device: str) -> None:
    """The settings of a worker. started: how many were started before it, shared by all."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:  # the parent's end, however it came, also in the middle of a block
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops its workers
    warnings.simplefilter("ignore")  # the parent shows the same ones
    torch.set_num_threads(1)
    keep_freed_memory()
    with started.get_lock():
        index, started.value = started.value, started.value + 1
    if device == "cuda":
        torch.cuda.set_device(index % torch.cuda.device_count())


@lru_cache(1)
def _job(file: Path) -> Callable[[Any], object]:
    return unpacked(file.read_bytes())


def _do(file: Path, block: bytes) -> bytes:
    try:
        return packed(_job(file)(unpacked(block)))
    except Exception as error:
        raise portable(error) from error


def portable(error: Exception) -> Exception:
    """The error as another process can raise it: of a kind that is kept, without arguments that it could not make."""
    kind = next((kind for kind in REFUSALS if isinstance(error, kind)), None)
    return RuntimeError(f"{type(error).__name__}: {error}") if kind is None else kind(str(error))
