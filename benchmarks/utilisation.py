"""Model FLOPs utilisation (MFU): what a call computes, over what the device could have computed in that time.

MFU = FLOPs of the call's matrix products and convolutions / (its seconds x the vendor's FLOPs a second)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from dualrate.training.accelerators import ACCELERATORS


def flops_of(work: Callable[[], object]) -> int:
    """Of whatever `work` runs, its backward pass included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def known_peak(device: torch.device) -> float | None:
    """FLOPs a second of a GPU of `ACCELERATORS`, dense, in bfloat16; None of anything else, cards for PCIe included."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).replace(" ", "").lower()
    found = (one.flops for key, one in ACCELERATORS.items() if key.partition("-")[0] in name and "pcie" not in name)
    return next(found, None)
