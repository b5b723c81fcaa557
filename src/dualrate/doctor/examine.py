"""All checks, one after another: a check that fails is a finding too."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from dualrate.config.ranges import as_path
from dualrate.data.cache import cache_dir
from dualrate.doctor.finding import Finding, problem
from dualrate.doctor.machine import (
    check_compiler,
    check_device,
    check_disk,
    check_installation,
    check_shared_memory,
    check_threads,
    check_torch,
    check_trial,
)
from dualrate.doctor.stored import check_images, check_stored, is_stored

Check = Callable[[], Iterator[Finding]]


def checks(target: str | None, device: torch.device) -> dict[str, Check]:
    """What is looked at, by name. target: a run, released weights, or images; None: the machine alone."""
    place = None if target is None else as_path(target)
    stored = place is not None and is_stored(place)
    runs = place if place is not None and stored else Path("runs")
    places = [("runs", runs), ("decoded images", cache_dir()), ("temporary files", Path(tempfile.gettempdir()))]
    found: dict[str, Check] = {
        "installation": check_installation,
        "torch": check_torch,
        "device": partial(check_device, device),
        "threads": check_threads,
        "disk": partial(check_disk, places),
        "shared memory": check_shared_memory,
        "compiler": partial(check_compiler, device),
        "training": partial(check_trial, device),
    }
    if target is not None and place is not None:
        found["run" if stored else "images"] = partial(check_stored, place) if stored else partial(check_images, target)
    return found


def examine(checks: dict[str, Check]) -> Iterator[Finding]:
    """The findings of these checks, as they are made."""
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # whatever a broken machine raises is what was looked for
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield problem(f"{name}: {type(error).__name__}: {what}", "mend that first, then run this again")
