"""Processes that were launched together, by torchrun, srun or `--nproc`: which of them this is, and how all end.

A launcher sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Those of a training make the same updates
(training/distributed.py), those of other commands share out their work (team.py).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import torch

from dualrate.system.progress import stops

STOPPED, LOST = 75, 76  # exit codes: a signal came; the others were lost. The same command goes on


class Lost(OSError):
    """Other processes that were launched with this one ended, or did not answer in time."""


def is_launched() -> bool:
    """Whether a launcher started this process: torchrun, srun or `--nproc`."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_alone() -> bool:
    """Whether no other process was launched with this one."""
    return not is_launched() or os.environ["WORLD_SIZE"] == "1"


def check_alone(command: str) -> None:
    """Raises ValueError where several processes were launched of a command that is one."""
    if not is_alone():
        raise ValueError(
            f"{command} is one process, here are {os.environ['WORLD_SIZE']} that would each do all of it: start one"
        )


def launch(processes: int, retries: int, command: Sequence[str]) -> None:
    """Run Python with these words in each of several processes by torch's elastic launcher, and exit. 1: do nothing.

    The exit code is 75 where a signal stopped all of them, else that of the first process that failed.
    Does nothing in a process that was launched. Raises ValueError where torchrun started another number of them.
    """
    if is_launched():
        if processes not in (1, int(os.environ["WORLD_SIZE"])):
            raise ValueError(f"--nproc {processes}, but {os.environ['WORLD_SIZE']} processes are started: drop --nproc")
        return
    if processes == 1:
        return
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if os.environ.get("DUALRATE_THREADS", "auto") == "auto":  # processes scale better than threads
        os.environ["DUALRATE_THREADS"] = "1"
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # a restart would read the addresses of processes that ended
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"dualrate-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=retries,
        signals_to_handle=",".join(number.name for number in stops()),
        shutdown_timeout=600,  # seconds to save in, once a signal came
    )
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException:
        raise SystemExit(STOPPED) from None  # as of a single process
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        raise SystemExit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode) from None
    raise SystemExit(0)


def device_of_process(device: torch.device) -> torch.device:
    """The device of this process: of GPUs, the one of its number on this machine.

    Raises ValueError for one GPU that all processes should share, and for more processes here than GPUs.
    """
    if is_alone() or device.type == "cpu":
        return device
    if device.index:  # 0 is what is picked where none is named
        raise ValueError(f"every process has its GPU, got {device} for all: choose them by CUDA_VISIBLE_DEVICES")
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= gpus:
        raise ValueError(f"every process needs its GPU, here are {gpus} for process {local}: start fewer")
    return torch.device(device.type, local)


def timeout() -> float:
    """Seconds that an operation on the device waits for the other processes."""
    text = os.environ.get("DUALRATE_TIMEOUT", "600")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text) or not float(text):
        raise ValueError(f"DUALRATE_TIMEOUT is a number of seconds above 0, got {text!r}")
    return float(text)
