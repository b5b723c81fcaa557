"""The device and its precision, threads and load, the compiler."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import torch

from dualrate.doctor.finding import Finding, ok, problem, warning
from dualrate.machine.device import compiles, pays
from dualrate.machine.environment import environment

BUSY = 0.5  # share of the processors that other programs use, above which times say little
BFLOAT16 = 80  # compute capability, times 10, from which there are units for it


def check_device(device: torch.device) -> Iterator[Finding]:
    """Whether the device computes, and in which precision."""
    if device.type != "cuda":
        yield ok(f"{device}: {environment()['processor']}")
    else:
        yield from _gpu(device)
    wrong = _wrong_product(device)
    if wrong:
        yield problem(f"{device}: a product of matrices is off by {wrong:.3g}", "use another device; test this one")
    better = "bfloat16" if pays(device) else "float32"
    why = {"bfloat16": "it is clearly faster here", "float32": "bfloat16 would be no faster here"}[better]
    yield ok(f"{device}: --fit.precision auto is {better}, {why}")


def _gpu(device: torch.device) -> Iterator[Finding]:
    major, minor = torch.cuda.get_device_capability(device)
    name, (free, total) = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)
    about = f"{device}: {name}, compute capability {major}.{minor}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    built = torch.cuda.get_arch_list()
    if built and not _runs(10 * major + minor, built):
        yield problem(f"{about}; this torch is built for {', '.join(built)} alone", "install a torch built for it")
    elif 10 * major + minor < BFLOAT16:
        yield warning(f"{about}: no units for bfloat16", "expect float32's speed; --fit.precision float32 says so")
    elif free < total / 2:
        yield warning(f"{about}: others use it", "see nvidia-smi; lower --fit.micro-batch if memory runs short")
    else:
        yield ok(about)


def _runs(capability: int, built: list[str]) -> bool:
    """Whether code for one of these architectures, such as sm_90 or compute_90, runs on this capability.

    Machine code is of its major version, from its minor version on; the code of compute_* is translated for any later.
    """
    for name in built:
        kind, _, digits = name.partition("_")
        number = int("".join(filter(str.isdigit, digits)) or 0)
        if number <= capability and (kind == "compute" or number // 10 == capability // 10):
            return True
    return False


def _wrong_product(device: torch.device) -> float:
    """How far a small product of integers is off: all are exact in every precision, so 0."""
    left = torch.arange(64.0, device=device).reshape(8, 8) % 7
    exact = [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in left.tolist()] for row in left.tolist()
    ]
    return float((left @ left.T - torch.tensor(exact, device=device)).abs().max())


def check_threads() -> Iterator[Finding]:
    """Threads, the processors for them, and who else uses these."""
    threads, processors = torch.get_num_threads(), _processors()
    load = os.getloadavg()[0]
    about = f"{threads} thread(s), {processors} processor(s), load {load:.1f}"
    if threads > processors:
        yield warning(f"{about}: more threads than processors", f"DUALRATE_THREADS={processors} before the command")
    elif threads > 1 and os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        yield warning(f"{about}; threads wait awake, in the way of other programs", "export OMP_WAIT_POLICY=PASSIVE")
    elif load > BUSY * (os.cpu_count() or 1) + threads:
        yield warning(f"{about}: other programs are at work", "expect longer times; results do not depend on it")
    else:
        yield ok(about)


def _processors() -> int:
    """Those that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_compiler(device: torch.device) -> Iterator[Finding]:
    """Whether networks can be compiled, which they are only if asked to be."""
    if failed := compiles(device):
        yield warning(
            f"torch.compile does not work on {device} ({failed})",
            "install a C++ compiler (g++); without one, leave out --fit.compile: it changes the speed alone",
        )
    else:
        yield ok(f"torch.compile works on {device}")
