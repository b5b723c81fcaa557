"""What a measurement ran on."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """Processor, GPU if that is the device, threads, versions, date (UTC) and, in a checkout, the commit; what is
    unknown is left out.
    """
    facts = {
        "processor": _processor(),
        "GPU": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else "",
        "threads": str(torch.get_num_threads()),
        "dualrate": _version(),
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
    }
    return {name: value for name, value in facts.items() if value}


def _version() -> str:
    """Of this package; empty where it is not installed."""
    try:
        return version("dualrate")
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _commit() -> str:
    """Short hash, "-dirty" with uncommitted changes; empty outside a checkout of this package."""
    here = Path(__file__).resolve().parent
    try:
        if not _git(here, "ls-files", Path(__file__).name):
            return ""
        return _git(here, "describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else ""
