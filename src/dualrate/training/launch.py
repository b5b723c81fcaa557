"""Starts the processes of a training on this machine, and starts all of them again when one is lost.

Each gets what torchrun would give it: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. They end together:

    all finished                               0
    a signal, which is passed on to all        75, saved; 128 + its number if it came too early to save, or twice
    a mistake, or a fault of the program       that one's exit code
    one was killed, hung or lost the others    all start again, up to `retries` times; then 76

When one has failed the others have GRACE seconds to notice it. Those that have not by then hang: they are ended by
SIGABRT, upon which Python prints where they stood.

A watchdog: says what a process was at, and where every thread of it stood, when that has not ended in time.

Operations on the device fail by themselves when other processes do not answer (world.py); a loader that waits for a
disk does not, nor a process that hangs in its own work. The watchdog is a thread of Python: what never lets go of
Python's lock escapes it, and is ended by the supervisor once the others have given up.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from dualrate.system.progress import stops
from dualrate.training.distributed import LOST, SUPERVISOR

GRACE = 15.0
SAVED = 75  # exit code of a training that a signal ended
ENOUGH = 2  # signals after which nothing is waited for


class Supervisor:
    """note: told what happens, a line at a time."""

    def __init__(self, command: Sequence[str], processes: int, note: Callable[[str], None], grace: float = GRACE):
        self.command, self.processes, self.note, self.grace = command, processes, note, grace
        self.signals: list[int] = []

    def run(self, retries: int) -> int:
        """The exit code of it all. Only for the main thread, to which signals come."""
        with self._listening():
            code = self._outcome(self._attempt())
            for again in range(1, retries + 1):
                if code != LOST or self.signals:
                    break
                self.note(f"all {self.processes} processes start again ({again} of {retries} times)")
                code = self._outcome(self._attempt())
        return 128 + self.signals[-1] if code == LOST and self.signals else code

    def _attempt(self) -> list[int]:
        """The exit codes of all processes, in one attempt; negative: the signal it died of."""
        started: list[subprocess.Popen[bytes]] = []
        passed = 0
        try:
            for environment in self._environments():
                # a session of its own: Ctrl-C in a terminal reaches the supervisor alone, which passes it on once
                started.append(subprocess.Popen(self.command, env=environment, start_new_session=True))
            deadline = None
            while None in (codes := [process.poll() for process in started]):
                for number in self.signals[passed:]:
                    for process in started:
                        process.send_signal(number)
                    passed += 1
                failed = any(code not in (None, 0, SAVED) for code in codes)
                if deadline is None and (failed or len(self.signals) >= ENOUGH):
                    deadline = time.monotonic() + self.grace
                if deadline is not None and time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            self._tell(started)
        finally:
            self._end(started)
        return [process.returncode for process in started]

    def _environments(self) -> Iterator[dict[str, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(self.processes),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "PYTHONFAULTHANDLER": "1",
            SUPERVISOR: str(os.getpid()),
        }
        if os.environ.get("DUALRATE_THREADS", "auto") == "auto":  # processes scale better than threads
            shared["DUALRATE_THREADS"] = "1"
        for rank in range(self.processes):
            yield {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}

    def _tell(self, started: Sequence[subprocess.Popen[bytes]]) -> None:
        """What went wrong, but for what the processes say themselves."""
        for rank, process in enumerate(started):
            if process.returncode is None:
                self.note(f"process {rank} of {self.processes} hangs: it is ended")
            elif process.returncode < 0:
                name = signal.Signals(-process.returncode).name
                self.note(f"process {rank} of {self.processes} was ended by {name}")

    def _end(self, started: Sequence[subprocess.Popen[bytes]]) -> None:
        """Nothing that was started is left."""
        for number in (signal.SIGABRT, signal.SIGKILL):
            for process in started:
                process.send_signal(number)  # nothing, to one that has ended
            try:
                for process in started:
                    process.wait(5)
            except subprocess.TimeoutExpired:
                continue
            return
        for process in started:
            process.wait()

    @staticmethod
    def _outcome(codes: Sequence[int]) -> int:
        """One exit code for all."""
        mistakes = [code for code in codes if code > 0 and code not in (SAVED, LOST)]
        if mistakes:
            return mistakes[0]
        if any(code < 0 or code == LOST for code in codes):
            return LOST
        return max(codes)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Within the block the signals that stop a training are collected."""

        def receive(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)

        before = {number: signal.signal(number, receive) for number in stops()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


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
