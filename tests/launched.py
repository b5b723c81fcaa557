"""Processes that are launched together, as torchrun does it: forks, which have all that is imported here."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from training.faults import context

from dualrate.cli.main import main
from dualrate.launchers.team import run_shared
from dualrate.system.launch import LOST, STOPPED, Lost


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _process(run: Callable[[], None], rank: int, size: int, port: int, log: Path, settings: dict[str, str]) -> None:
    with log.open("a") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= settings
    code = 0
    try:
        run()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def start(run: Callable[[], None], size: int, log: Path, **settings: str) -> list:
    """Processes that all run this, by rank. log: what they say, all of them together"""
    port, settings = free_port(), {"DUALRATE_TIMEOUT": "60"} | settings
    started = [
        context.Process(target=_process, args=(run, rank, size, port, log, settings), daemon=True)
        for rank in range(size)
    ]
    for process in started:
        process.start()
    return started


def ended(started: Sequence, seconds: float = 120) -> list[int]:
    """Their exit codes."""
    for process in started:
        process.join(seconds)
        assert process.exitcode is not None
    return [process.exitcode for process in started]


def command(*arguments: object) -> Callable[[], None]:
    """`dualrate <arguments>`."""

    def run() -> None:
        sys.argv = ["dualrate", *map(str, arguments)]
        main()

    return run


def dying(run: Callable[[], None], rank: int, sends: int) -> Callable[[], None]:
    """`run`, in which process `rank` is killed before it has sent so many messages."""

    def until_then() -> None:
        if os.environ["RANK"] == str(rank):
            send, left = Connection.send_bytes, iter(range(sends - 1))

            def counting(self: Connection, content: bytes) -> None:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                send(self, content)

            Connection.send_bytes = counting
        run()

    return until_then


def team(work: Callable[[], None]) -> Callable[[], None]:
    """Do `work` as a team, with the exit codes of commands."""

    def run() -> None:
        try:
            run_shared(work)
        except KeyboardInterrupt:
            raise SystemExit(STOPPED) from None
        except Lost as error:
            print(error)
            raise SystemExit(LOST) from None

    return run
