"""Model FLOPs utilisation (MFU): what a call computes, over what the device could have computed in that time.

    MFU = FLOPs of the call's matrix products and convolutions / (its seconds x FLOPs a second at most)

At most: of a GPU that is listed its vendor's figure, dense, for matrices in bfloat16; of anything else the product of
two square matrices, measured in turn with the calls, in the same precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.interleave import Spread, interleaved, quotient
from benchmarks.workloads import Work

# FLOPs a second at most, dense products of bfloat16, by NVIDIA's data sheets
PEAKS = {"h100": 989e12, "h200": 989e12, "b200": 2250e12, "a100": 312e12, "l40s": 362e12, "rtx4090": 165e12}
SIDE = 1024  # of the matrices


def flops_of(work: Callable[[], object]) -> int:
    """Of whatever `work` runs, its backward pass included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def known_peak(device: torch.device, *, bfloat16: bool) -> float | None:
    """FLOPs a second of a GPU of `PEAKS`, in bfloat16; None of anything else, cards for PCIe included."""
    if device.type != "cuda" or not bfloat16:
        return None
    name = torch.cuda.get_device_name(device).replace(" ", "").lower()
    found = (peak for key, peak in PEAKS.items() if key in name and "pcie" not in name)
    return next(found, None)


def product(device: torch.device, *, bfloat16: bool) -> Work:
    """Of two matrices of SIDE x SIDE."""
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    matrix, into = (
        torch.ones(SIDE, SIDE, device=device, dtype=dtype),
        torch.empty(SIDE, SIDE, device=device, dtype=dtype),
    )

    def work() -> None:
        torch.mm(matrix, matrix, out=into)

    return work


def utilisation(
    calls: Mapping[str, Work], device: torch.device, *, bfloat16: bool, seconds: float
) -> dict[str, dict[str, Spread]]:
    """MFU of each call, in wall and in CPU time."""
    flops = {name: flops_of(call) for name, call in calls.items()}
    peak, best = known_peak(device, bfloat16=bfloat16), "product of matrices"
    rounds = interleaved({**calls, best: product(device, bfloat16=bfloat16)}, device, seconds=seconds)
    if peak is None:
        return {name: quotient(rounds, best, name, flops[name] / (2 * SIDE**3)) for name in calls}
    of_peak = {name: Spread.of([flops[name] / (peak * one.wall) for one in rounds[name]]) for name in calls}
    return {name: {"wall": spread, "cpu": spread} for name, spread in of_peak.items()}
