"""A resumed run computes on as many threads as before, where the number is automatic: its bits depend on it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from dualrate.runs.store import HISTORY


def resume_threads(run: Path) -> None:
    """Take the number of threads of the run's last start, unless DUALRATE_THREADS or OMP_NUM_THREADS asks for one."""
    if os.environ.get("DUALRATE_THREADS") != "auto":
        return
    try:
        threads = int(json.loads((run / HISTORY).read_text().splitlines()[-1])["threads"])
    except (OSError, ValueError, LookupError, TypeError):  # no run yet, or a line that a kill cut off
        return
    torch.set_num_threads(threads)
