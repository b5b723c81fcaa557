"""Saving while training goes on: it stops only for a copy of the tensors, which a thread then writes.

    save:  wait for the one before -> copy tensors to CPU memory, state to text -> start the thread -> training goes on
    thread: write, hash, sync, publish (checkpoint.py) -> remove the oldest

So between the copy and the end of the thread memory holds one state more; where the state is on a GPU the copy's pages
are pinned, and torch keeps them for the next one. A process that dies meanwhile leaves what it would leave at any point
of writing: the checkpoints of before, and an unfinished folder that the next start removes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from dualrate.machine import folders
from dualrate.training.checkpoint import Copy, prune, write


class Saver:
    """Writes the checkpoints of a run, one at a time and in their order.

    A `with` block waits for the last one at its end, also when an error ends it; not when a second Ctrl-C does.
    keep:     how many are kept
    saved_at: iteration of the newest one; -1 for none
    """

    def __init__(self, directory: Path, keep: int, note: Callable[[str], None], saved_at: int = -1) -> None:
        self.directory, self.keep, self.note, self.saved_at = directory, keep, note, saved_at
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._told = False

    def save(
        self, iteration: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, last: bool
    ) -> None:
        """Begin to save a checkpoint. If that fails training goes on, with one notice; the last one may not fail.

        last: whether to end when it is written, and raise its OSError
        """
        self.finish()
        folders.fault_point("before copy")
        copy = Copy.of(tensors, state)
        # a daemon: nothing waits for it where the process is to end at once
        self._thread = threading.Thread(target=self._write, args=(iteration, copy), name="saving", daemon=True)
        self._thread.start()
        if last:
            error = self._ended()
            if error is not None and self.saved_at != iteration:
                raise error
            self._tell(error)

    def look(self) -> None:
        """Tell what became of a checkpoint, if it has ended. Raises what is no OSError."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if one is, and tell what became of it."""
        self._tell(self._ended())

    def _ended(self) -> Exception | None:
        """Why the checkpoint that was being written failed, if it did."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        return error

    def _tell(self, error: Exception | None) -> None:
        if error is None:
            return
        if not isinstance(error, OSError):
            raise error
        if not self._told:
            self.note(f"could not save a checkpoint, training goes on: {error}")
        self._told = True

    def _write(self, iteration: int, copy: Copy) -> None:
        try:
            write(self.directory, iteration, copy)
            self.saved_at = iteration
            prune(self.directory, self.keep)
        except Exception as error:  # for the thread that trains
            self._error = error

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self.finish()
