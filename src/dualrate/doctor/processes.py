"""Whether two processes of a training find each other here."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch

from dualrate.doctor.finding import Finding, ok, problem, warning
from dualrate.machine.supervisor import Supervisor
from dualrate.machine.world import is_launched

PAIR = "dualrate.doctor.pair"
SLOW = 60.0  # seconds, most of them for loading torch twice


def check_processes(device: torch.device) -> Iterator[Finding]:
    """Starts two as `dualrate train --nproc 2` does: on GPUs where there are two, else on the CPU."""
    if is_launched():
        yield ok("processes: not tried, since this is one of several already")
        return
    kind = "cuda" if device.type == "cuda" and torch.cuda.device_count() > 1 else "cpu"
    group, notes, start = {"cuda": "NCCL", "cpu": "gloo"}[kind], [], time.monotonic()
    pair = Supervisor([sys.executable, "-m", PAIR, kind], 2, notes.append)
    code = pair.run(0)
    if pair.signals:
        raise KeyboardInterrupt
    seconds = time.monotonic() - start
    if code:
        yield problem(
            f"two processes did not work together over {group} (exit code {code}): {'; '.join(notes) or 'see above'}",
            "leave out --nproc; if it is the network, export GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo",
        )
    elif seconds > SLOW:
        yield warning(f"two processes took {seconds:.0f} s to meet over {group}", "see what else runs on this machine")
    else:
        yield ok(f"two processes met over {group} in {seconds:.1f} s")
