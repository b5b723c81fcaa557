"""The `dualrate` command: decides how it computes beside other programs, then runs `dualrate.cli.main`.

Torch computes in the threads of OpenMP (GCC's libgomp in the wheels), which reads its settings once, when torch is
loaded. So they are made here, in a module of its own: importing anything of `dualrate` loads torch, which takes two
seconds.

    how many   DUALRATE_THREADS; "auto", or nothing and no OMP_NUM_THREADS: one for every processor that is idle now,
               of those that this process may use, at least one
    waiting    asleep, unless OMP_WAIT_POLICY says otherwise. By default a thread keeps its processor busy while it
               waits for the others, and where other programs run that is often the processor which those need: on two
               busy processors, sampling with two threads took 10 to 60 times as long as with one, and asleep 0.5 to 0.9
               times (dev/LOG.md)

Waiting asleep alone does not do: kernels of oneDNN wait awake whatever the settings, so threads without a processor of
their own slow training down, 20 times where four shared two busy processors.
"""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Mapping, Set
from pathlib import Path

STAT = Path("/proc/stat")
USAGE = Path(__file__).parent / "dualrate" / "cli" / "usage.txt"
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "<microseconds> <of>", or "max <of>"


def settings(environment: Mapping[str, str], idle: int) -> dict[str, str]:
    """What to put into the environment. idle: processors for the automatic number.

    Raises ValueError for a number of threads that is none.
    """
    waiting = {"OMP_WAIT_POLICY": environment.get("OMP_WAIT_POLICY", "PASSIVE")}
    asked = environment.get("DUALRATE_THREADS")
    if asked == "auto" or (asked is None and "OMP_NUM_THREADS" not in environment):
        return {**waiting, "DUALRATE_THREADS": "auto", "OMP_NUM_THREADS": str(idle)}
    if asked is None:
        return waiting
    if not asked.isdecimal() or int(asked) < 1:
        raise ValueError(f"DUALRATE_THREADS is a whole number of at least 1, or auto, got {asked!r}")
    return {**waiting, "OMP_NUM_THREADS": asked, "MKL_DYNAMIC": "FALSE"}  # MKL would cut it down to the cores


def idle_processors(seconds: float = 0.2) -> int:
    """Of the processors that this process may use, how many are idle in the next `seconds`; at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    idle = _idle(allowed, seconds) if STAT.exists() else len(allowed) - os.getloadavg()[0]
    return max(1, min(round(idle), _quota()))


def _idle(processors: Set[int], seconds: float) -> float:
    """The sum of the idle shares of these processors over the next `seconds`."""
    before = ticks(STAT.read_text())
    time.sleep(seconds)
    after = ticks(STAT.read_text())
    shares = []
    for processor in processors & before.keys() & after.keys():
        idle, total = (new - old for new, old in zip(after[processor], before[processor], strict=True))
        shares.append(idle / max(total, 1))
    return sum(shares)


def ticks(stat: str) -> dict[int, tuple[int, int]]:
    """(idle, all) of each processor since the start of the machine, of the text of /proc/stat."""
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu") and line[3].isdecimal()]
    counts = {int(line[0][3:]): [int(count) for count in line[1:9]] for line in lines}  # guests' are in the users'
    return {processor: (count[3] + count[4], sum(count)) for processor, count in counts.items()}


def _quota() -> int:
    """Processors that the container's share of time comes to, rounded up; very many without a limit."""
    try:
        limit, period = QUOTA.read_text().split()
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if limit == "max" else math.ceil(int(limit) / int(period))


def settle_streams() -> None:
    """Have standard output and error take whatever is written, so that a result is not lost for what is said of it.

    One that was closed (`>&-`) is the null device: else the next file that is opened has its number. A letter that
    the encoding of standard output lacks is escaped, as standard error does by itself.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free: this
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def main() -> None:
    """Entry point of the `dualrate` command. What it can do is told at once: nothing is loaded for that."""
    settle_streams()
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(USAGE.read_text(), end="")
        return
    try:
        try:
            os.environ.update(settings(os.environ, idle_processors()))
        except ValueError as error:
            print(f"dualrate: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        from dualrate.cli.main import main as run
    except KeyboardInterrupt:  # loading torch takes seconds
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
