"""Start of several processes of one command on this machine, by torch's elastic launcher."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dualrate.system.launch import STOPPED, is_launched
from dualrate.system.progress import stops


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
