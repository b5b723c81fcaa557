"""Processes that were launched together, by torchrun, srun or `--nproc`: which of them this is, and how all end.

A launcher sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Those of a training make the same updates
(training/distributed.py), those of other commands share out their work (launchers/team.py).
"""

from __future__ import annotations

import os
import re

import torch

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
