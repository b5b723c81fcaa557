"""A watchdog: says what a process was at, and where every thread of it stood, when that has not ended in time.

Operations on the device fail by themselves when other processes do not answer (world.py); a loader that waits for a
disk does not, nor a process that hangs in its own work. The watchdog is a thread of Python: what never lets go of
Python's lock escapes it, and is ended by the supervisor once the others have given up.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dualrate.machine.world import LOST

STDERR = 2
TICKS = 10  # looks within the time; counted, not timed: a process that was stopped for an hour has not hung


class Watchdog:
    """Watches from `__enter__` to `__exit__` over what stands in `with watchdog.over(...)`.

    seconds: after which something hangs, unless it may take several times as long
    ends:    whether to end the process then, with LOST, so that all are started again
    """

    def __init__(self, seconds: float, *, ends: bool) -> None:
        self.seconds, self.ends = seconds, ends
        self._doing: tuple[str, int] | None = None
        self._over = threading.Event()

    @contextmanager
    def over(self, doing: str, times: int = 1) -> Iterator[None]:
        """Something that ends in `times` times the time. doing: what it is, in a message."""
        self._doing = (doing, times)  # a new object every time
        try:
            yield
        finally:
            self._doing = None

    def __enter__(self) -> Watchdog:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        ticks, seen = 0, None
        while not self._over.wait(self.seconds / TICKS):
            doing = self._doing
            ticks, seen = (ticks + 1 if doing is seen else 0), doing
            if doing is not None and ticks == TICKS * doing[1]:
                self._bark(*doing)

    def _bark(self, doing: str, times: int) -> None:
        what = "the process is ended, to be started again" if self.ends else "it is waited for"
        after = f"has not ended after {times * self.seconds:g} seconds"
        text = f"dualrate: {doing} {after}, {what}. Where every thread stands:\n"
        os.write(STDERR, text.encode())  # whatever holds the locks of Python's own
        faulthandler.dump_traceback(STDERR)
        if self.ends:
            os._exit(LOST)
