"""Python, the packages that this one needs, and whether torch was built for the GPU that is here."""

from __future__ import annotations

import operator
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from dualrate.doctor.finding import Finding, ok, problem, warning

PACKAGE = "dualrate"
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?\s*([^;]*?)\s*")  # without conditions, such as that of an extra
CLAUSE = re.compile(r"(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)")
COMPARE: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


def check_installation() -> Iterator[Finding]:
    """Python and packages."""
    yield ok(f"Python {platform.python_version()}, {sys.executable}")
    try:
        failed = unmet(PACKAGE)
    except PackageNotFoundError:
        yield warning(f"{PACKAGE} runs from its source, not installed: what it needs is unknown", "pip install -e .")
        return
    if failed:
        yield problem(f"packages that are missing or of another version: {', '.join(failed)}", "pip install -e .")
    else:
        yield ok(f"{PACKAGE} {version(PACKAGE)} and the packages that it needs")
    yield from _torchvision()


def _torchvision() -> Iterator[Finding]:
    """Only extras need it; where it is of another torch, importing it fails."""
    try:
        failed = unmet("torchvision")
    except PackageNotFoundError:
        return
    if failed:
        yield warning(f"torchvision was built for another torch: {', '.join(failed)}", "pip uninstall torchvision")


def unmet(package: str) -> list[str]:
    """What an installed package says it always needs that is not here, and what is here instead.

    Raises PackageNotFoundError if that package is not installed.
    """
    failed = []
    for text in requires(package) or ():
        match = REQUIREMENT.fullmatch(text)
        if match is None:  # under a condition
            continue
        name, wanted = match.groups()
        try:
            found = version(name)
        except PackageNotFoundError:
            failed.append(f"{text} (none)")
            continue
        if not satisfies(found, wanted):
            failed.append(f"{text} (found {found})")
    return failed


def satisfies(found: str, wanted: str) -> bool:
    """Whether a version meets clauses such as `>=2.10,<3`. By its release alone: 2.13.0+cpu is 2.13."""
    clauses = CLAUSE.findall(wanted)
    return all(COMPARE[sign](_release(found), _release(bound)) for sign, bound in clauses)


def _release(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", text)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def check_torch() -> Iterator[Finding]:
    """The build of torch, and whether it sees the GPU that is here."""
    built = torch.version.cuda or getattr(torch.version, "hip", None)
    build = f"torch {torch.__version__}, " + (f"built for GPUs ({built})" if built else "built for CPUs")
    if torch.cuda.is_available():
        yield ok(f"{build}; it sees {torch.cuda.device_count()} GPU(s)")
    elif not gpu_driver():
        yield ok(f"{build}; there is no NVIDIA driver here, so the CPU works")
    elif not built:
        yield problem(
            f"{build}, but there is an NVIDIA driver: the GPU stays unused",
            "pip install a torch that is built for GPUs (pytorch.org/get-started); constraints/cpu.txt is not for here",
        )
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield warning(f"{build}; CUDA_VISIBLE_DEVICES hides the GPUs from it", "unset CUDA_VISIBLE_DEVICES")
    else:
        yield problem(
            f"{build}, but it sees no GPU although there is an NVIDIA driver",
            "look at nvidia-smi: a driver older than this CUDA must be newer, a container needs --gpus all",
        )


def gpu_driver() -> bool:
    """Whether this machine seems to have an NVIDIA GPU."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
