"""Model FLOPs utilisation (MFU): what a call computes, over what the device could have computed in that time.

MFU = FLOPs of the call's matrix products and convolutions / (its seconds x the vendor's FLOPs a second)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

# FLOPs a second at most, dense products of bfloat16, by NVIDIA's data sheets
PEAKS = {"h100": 989e12, "h200": 989e12, "b200": 2250e12, "a100": 312e12, "l40s": 362e12, "rtx4090": 165e12}


def flops_of(work: Callable[[], object]) -> int:
    """FLOPs of whatever `work` runs, its backward pass included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def known_peak(device: torch.device) -> float | None:
    """FLOPs a second of a GPU of `PEAKS`, dense, in bfloat16; None of anything else, cards for PCIe included."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).replace(" ", "").lower()
    peaks = (peak for key, peak in PEAKS.items() if key in name and "pcie" not in name)
    return next(peaks, None)
