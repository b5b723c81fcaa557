"""Worker processes: blocks of work go out one at a time, and that of a worker that dies is given to another one.

Whoever has blocks of work takes a `Mapper`: `in_turn` does them here, one after the other, `Workers` in processes. What
a block is does not depend on how many there are, and a worker has one thread: so the results are bit for bit those of
one process with one thread.

A worker is a process of its own from the start (spawned, since a fork of a process with threads may hang), on a CPU for
one core, on GPUs with one of them, in turns. What it works with is sent to it: a model as the directory to load it from
(runs/store.py), anything else by value. Nothing of it is left when its parent is gone, however that ended.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections import ChainMap, Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dualrate.system.device import keep_freed_memory

Block = TypeVar("Block")
Result = TypeVar("Result")
DEATHS = 3  # of workers at one block, after which it is given up
REFUSALS = (ValueError, OSError, MemoryError, FloatingPointError)  # kinds that an error keeps on its way to the parent
_context = multiprocessing.get_context("spawn")
_unpacked: Callable[[bytes], Any] = ForkingPickler.loads  # pyright: ignore[reportAttributeAccessIssue]


class Mapper(Protocol):
    """Does a job for every block."""

    def __call__(self, job: Callable[[Block], Result], blocks: Sequence[Block], /) -> Iterator[tuple[Block, Result]]:
        """Blocks with their results, in the order in which they are done. Raises what the job raises."""
        ...


def in_turn(job: Callable[[Block], Result], blocks: Sequence[Block], /) -> Iterator[tuple[Block, Result]]:
    """In this process, one block after the other."""
    for block in blocks:
        yield block, job(block)


def number_of_workers(asked: int | Literal["auto"], device: torch.device) -> int:
    """auto: one for each GPU, or for each thread that one process would have here (src/dualrate_command.py)."""
    if asked != "auto":
        return asked
    return torch.cuda.device_count() if device.type == "cuda" else torch.get_num_threads()


def mapper(
    asked: int | Literal["auto"], device: torch.device, note: Callable[[str], None]
) -> AbstractContextManager[Mapper]:
    """So many workers, for a `with`; one is this process. note: told of workers that died.

    ValueError for several on one GPU that was chosen by its number.
    """
    count = number_of_workers(asked, device)
    if count > 1 and device.type == "cuda" and device.index:  # 0 is what is taken where none is named
        raise ValueError(f"workers take the GPUs in turns, got {device} for all: choose them by CUDA_VISIBLE_DEVICES")
    return nullcontext(in_turn) if count == 1 else Workers(count, device, note)


class Workers:
    """A `Mapper` of `count` processes, each started when there is a block for it, all stopped at the end of a `with`.

    device: on "cuda", worker i takes GPU i modulo their number
    A script that uses it needs `if __name__ == "__main__":`, since every worker imports it.
    """

    def __init__(
        self,
        count: int,
        device: torch.device | str = "cpu",
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.count, self.device, self.note = count, torch.device(device).type, note
        self._workers: dict[int, _Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop(self._workers)

    def __call__(self, job: Callable[[Block], Result], blocks: Sequence[Block], /) -> Iterator[tuple[Block, Result]]:
        """See `Mapper`. ValueError for a job that cannot be sent; ChildProcessError after DEATHS at one block."""
        self._stop(self._busy)  # with blocks that nobody waits for any more
        waiting, deaths = deque(range(len(blocks))), Counter[int]()
        try:
            while waiting or self._busy:
                for worker in self._idle(len(waiting)):
                    worker.give(job, waiting.popleft(), blocks)
                for worker in self._heard():
                    try:
                        answer = worker.connection.recv_bytes()
                    except (EOFError, OSError):
                        self._mourn(worker, deaths, len(blocks))
                        waiting.appendleft(worker.at)
                        continue
                    result, error = _unpacked(answer)
                    at, worker.at = worker.at, -1
                    if error is not None:
                        worker.job = None  # which it may never have got
                        raise error
                    if waiting:  # at once: what is done with the result may take a while
                        worker.give(job, waiting.popleft(), blocks)
                    yield blocks[at], result
        finally:
            self._stop(self._busy)

    @property
    def _busy(self) -> dict[int, _Worker]:
        return {index: worker for index, worker in self._workers.items() if worker.at >= 0}

    def _idle(self, wanted: int) -> list[_Worker]:
        """At most `wanted` workers, started where there are not as many."""
        for index in range(self.count):
            if len(self._workers) - len(self._busy) >= wanted:
                break
            if index not in self._workers:
                self._workers[index] = _Worker(index, self.device)
        return [worker for worker in self._workers.values() if worker.at < 0][:wanted]

    def _heard(self) -> list[_Worker]:
        """Those that are done, or dead."""
        by_connection = {worker.connection: worker for worker in self._busy.values()}
        return [by_connection[one] for one in wait(list(by_connection)) if isinstance(one, Connection)]

    def _mourn(self, worker: _Worker, deaths: Counter[int], total: int) -> None:
        self._stop({worker.index: worker})
        deaths[worker.at] += 1
        what = f"a worker died ({_ending(worker.process.exitcode)}) at block {worker.at + 1} of {total}"
        if deaths[worker.at] >= DEATHS:
            raise ChildProcessError(
                f"{what}, as {DEATHS - 1} before it: mostly for lack of memory, of which each of the {self.count} "
                "workers takes its own: use fewer (--workers), or a smaller --batch-size where the command has one"
            )
        self.note(f"{what}, which is done again")

    def _stop(self, workers: dict[int, _Worker]) -> None:
        """At once: a worker holds nothing that would be lost."""
        for worker in workers.values():
            worker.process.kill()
        for index, worker in list(workers.items()):
            worker.process.join()
            worker.connection.close()
            del self._workers[index]


class _Worker:
    """at: the place of the block that it works on; -1: none. job: what it was sent."""

    def __init__(self, index: int, device: str) -> None:
        self.index, self.at = index, -1
        self.job: object = None
        self.connection, theirs = _context.Pipe()
        self.process = _context.Process(target=_work, args=(theirs, index, device), daemon=True)
        # what a child does about Ctrl-C it inherits; its parent stops it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that its end is heard

    def give(self, job: Callable[[Any], object], at: int, blocks: Sequence[object]) -> None:
        """The job goes with its first block. One that died meanwhile is found by whoever listens to it."""
        message = _packed((None if job is self.job else job, blocks[at]))
        self.job, self.at = job, at
        with suppress(OSError):
            self.connection.send_bytes(message)


def _packed(message: object) -> bytes:
    """Tensors by value: torch's way, in shared memory, asks for more of it than a container has by default."""
    buffer = io.BytesIO()
    pickler = ForkingPickler(buffer)
    by_value: dict[Any, Any] = {Tensor: _by_value, nn.Parameter: _by_value}
    pickler.dispatch_table = ChainMap(by_value, pickler.dispatch_table)  # pyright: ignore
    try:
        pickler.dump(message)
    except ValueError:
        raise
    except Exception as error:  # whatever a class of the user's raises
        raise ValueError(f"this cannot be sent to a worker ({error}): use one process (--workers 1)") from error
    return buffer.getvalue()


def _by_value(tensor: Tensor) -> tuple[Callable[..., Tensor], tuple[object, ...]]:
    values = tensor.detach().cpu().numpy()
    return (_parameter, (values,)) if isinstance(tensor, nn.Parameter) else (torch.from_numpy, (values,))


def _parameter(values: NDArray[Any]) -> nn.Parameter:
    """Of a network that is used, not trained."""
    return nn.Parameter(torch.from_numpy(values), requires_grad=False)


def _work(connection: Connection, index: int, device: str) -> None:
    """A worker's life: blocks come, results and errors go."""
    leave_with_parent()
    warnings.simplefilter("ignore")  # the parent has said it
    torch.set_num_threads(1)
    keep_freed_memory()
    if device == "cuda":
        torch.cuda.set_device(index % torch.cuda.device_count())
    job: Any = None
    with suppress(EOFError, OSError):  # the parent has gone
        while True:
            message = connection.recv_bytes()
            try:
                new, block = _unpacked(message)
                job = job if new is None else new
                answer = _packed((job(block), None))
            except Exception as error:
                answer = _packed((None, _portable(error)))
            connection.send_bytes(answer)


def _portable(error: Exception) -> Exception:
    """The error in a kind that every process can make, with where it was raised."""
    kind = next((kind for kind in REFUSALS if isinstance(error, kind)), RuntimeError)
    text = str(error) if kind is not RuntimeError else f"{type(error).__name__}: {error}"
    sent = kind(text)
    sent.add_note(f"In a worker:\n{traceback.format_exc()}")
    return sent


def leave_with_parent() -> None:
    """Have this process end when its parent is gone, however, also in the middle of a block."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _ending(code: int | None) -> str:
    return f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
